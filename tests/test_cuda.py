"""CUDA: schedules, PTX and programs, without a GPU.

Every kernel runs three times: as it was lowered and as it was bound to blocks and threads (kernel interpreter), and as
PTX (PTX interpreter); the bits must be equal.  Where ptxas is installed it must accept the code without spills.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import flowc
import flowc.ops
from flowc import config
from flowc.backends.cuda import driver as drivers
from flowc.backends.cuda.ptx import Assembled, assemble, compile_kernel, ptxas
from flowc.backends.cuda.sim import Device, MemoryFault, Module, RaceFault
from flowc.backends.interp import run_kernel
from flowc.compiled import compile_graph, machine
from flowc.diag import FlowcError, UnsupportedError
from flowc.dims import DimLike, ceildiv, evaluate, sym
from flowc.graph import CONSTANT, PARAM, Graph, make, param
from flowc.kernel import Alloc, Barrier, Expr, Fold, Kernel, walk
from flowc.op import REGISTRY, HostCall
from flowc.passes.build import BuildOptions, build
from flowc.passes.gpu import bind
from flowc.passes.gpu_space import Names
from flowc.passes.inline import KernelBuilder
from flowc.types import array_type, bf16, f16, f32, f64, i8, i64
from flowc.verify import verify_kernel

ARCHS = ("sm_80", "sm_90")
n, m = sym("n"), sym("m")
rng = np.random.default_rng(3)
assert flowc.ops  # imported for its records


@pytest.fixture(autouse=True)
def simulated():
    with config.options(gpu="sim"):
        yield


def checked(text: str, arch: str) -> Assembled | None:
    """ptxas accepts the code, without spills and stack."""
    if ptxas() is None:
        return None
    a = assemble(text, arch)
    assert a.spills == 0 and a.stack == 0, (a.spills, a.stack)
    return a


def elements(shape, dims) -> int:
    return int(np.prod([evaluate(d, dims) for d in shape]))


def on_device(kernel: Kernel, arrays: dict, dims: dict, arch: str = "sm_80", edit=lambda text: text, short: int = 0,
              profile: bool = False, grid: int | None = None) -> tuple[dict, Device]:
    """The buffers after a run of the kernel's PTX on an interpreted device."""
    code = compile_kernel(kernel, arch)
    device = Device(1 << 24, profile=profile)
    held = {p.name: device.alloc(arrays[p.name].nbytes - (short if p.role != "in" else 0), p.name) for p in code.params}
    for p in code.params:
        if p.role != "out" or not short:
            device.copy_in(held[p.name], arrays[p.name])
    scratch = [device.alloc(elements(b.shape, dims) * b.dtype.bytes, b.name) for b in code.scratch]
    grid = evaluate(code.grid, dims) if grid is None else grid
    if grid:
        device.launch(Module(edit(code.text)), code.entry, (grid,), (code.threads,), 0,
                      [*held.values(), *scratch, *[dims[d] for d in code.dims]])
    return {k: device.get(a, arrays[k].shape, arrays[k].dtype) for k, a in held.items()}, device


def by_interpreter(kernel: Kernel, arrays: dict, dims: dict, scratch=()) -> dict:
    out = {k: a.copy() for k, a in arrays.items()}
    extra = {b.name: np.zeros(elements(b.shape, dims), b.dtype.numpy) for b in scratch}
    run_kernel(kernel, {**out, **extra}, {d: dims[d] for d in kernel.dims}, races=True)
    return out


def compare(kernel: Kernel, arrays: dict, dims: dict, strategy: str = "", arch: str = "sm_80") -> dict:
    """Lowered, bound and compiled kernel give the same bits; returns the buffers."""
    want = by_interpreter(kernel, arrays, dims)
    bound = bind(kernel)
    verify_kernel(bound.kernel)
    assert strategy in " ".join(bound.kernel.notes), bound.kernel.notes
    mid = by_interpreter(bound.kernel, arrays, dims, bound.scratch)
    got, _ = on_device(kernel, arrays, dims, arch)
    for k, w in want.items():
        for other in (mid[k], got[k]):
            assert np.array_equal(other.view(np.uint8), w.view(np.uint8)), (k, other, w)
    return got


# ---- kernels --------------------------------------------------------------------------------------------------------

def scaled(dtype=f32, shape: tuple[DimLike, ...] = (n,)) -> Kernel:
    """y = x * 2 + 1"""
    k = KernelBuilder("scaled", {"n": (0, None), "m": (0, None)})
    k.buffer("x", dtype, shape)
    k.buffer("y", dtype, shape, "out")
    size: DimLike = 1
    for d in shape:
        size = size * d
    with k.loop(size, "parallel") as i:
        k.write("y", i, k.b.add(k.b.mul(k.b.load("x", i, dtype), 2), 1))
    return k.finish(("m", "n"))


def transposed() -> Kernel:
    k = KernelBuilder("transposed", {"n": (0, None), "m": (0, None)})
    k.buffer("x", f32, (m, n))
    k.buffer("y", f32, (n, m), "out")
    with k.loop(n, "parallel") as i, k.loop(m, "parallel") as j:
        k.write("y", i * m + j, k.b.load("x", j * n + i, f32))
    return k.finish(("m", "n"))


def tiled() -> Kernel:
    """A map cut into tiles, as the CPU has it."""
    k = KernelBuilder("tiled", {"n": (0, None)})
    k.buffer("x", f64, (n,))
    k.buffer("y", f64, (n,), "out")
    from flowc.dims import dmin
    with k.loop(ceildiv(n, 300), "parallel") as i, k.loop(dmin(300, n - 300 * i), "vector", width=8) as j:
        k.write("y", 300 * i + j, k.b.neg(k.b.load("x", 300 * i + j, f64)))
    return k.finish(("n",))


def fold(k: KernelBuilder, acc: str, dtype, combine) -> Expr:
    left, right, name = k.fresh("x"), k.fresh("y"), k.fresh("r")
    k.add(Fold((name,), (acc,), 64, (left,), (right,), (combine(k.b.ref(left, dtype), k.b.ref(right, dtype)),)))
    return k.b.ref(name, dtype)


def softmax(columns: DimLike, dtype=f32, cached: bool = True) -> Kernel:
    """Rows: maximum, differences kept beside the row, their sum of squares, quotient.  (No exp: bits are compared.)"""
    k = KernelBuilder("softmax", {"n": (0, None), "m": (0, None)})
    b = k.b
    k.buffer("x", dtype, (m, columns))
    k.buffer("y", dtype, (m, columns), "out")
    k.buffer("s", dtype, (m,), "out")

    def walk_row(body):
        with k.loop(ceildiv(columns, 64), "seq") as j, k.loop(64, "vector", "l", 16) as lane:
            at = 64 * j + lane
            body(at, lane, b.lt(b.index(at), b.index(columns)))
    with k.loop(m, "parallel") as i:
        top = k.acc(dtype, b.const(float("-inf"), dtype), (64,))
        row = k.alloc(dtype, columns) if cached else ""

        def larger(at, lane, w):
            old = k.get(top, lane)
            k.set(top, b.select(w, b.max(old, b.load("x", i * columns + at, dtype, w)), old), lane)
        walk_row(larger)
        best = fold(k, top, dtype, b.max)
        total = k.acc(dtype, b.const(0, dtype), (64,))

        def element(at, lane, w):
            e = k.let(b.sub(b.load("x", i * columns + at, dtype, w), best))
            if cached:
                k.write(row, at, e, w)
            k.set(total, b.select(w, b.fma(e, e, k.get(total, lane)), k.get(total, lane)), lane)
        walk_row(element)
        s = k.let(b.sqrt(fold(k, total, dtype, b.add)))
        k.write("s", i, s)
        with k.loop(columns, "vector", "j", 16) as j:
            e = b.load(row, j, dtype) if cached else b.sub(b.load("x", i * columns + j, dtype), best)
            k.write("y", i * columns + j, b.div(e, s))
    return k.finish(("m", "n"))


def scan() -> Kernel:
    """Running sums down the columns: a result that is read again, one barrier per row."""
    k = KernelBuilder("scan", {"n": (0, None), "m": (0, None)})
    k.buffer("x", f32, (m, n))
    k.buffer("y", f32, (m, n), "out")
    with k.loop(n, "vector", "j", 16) as j:
        k.write("y", j, k.b.load("x", j, f32))
    with k.loop(m - 1, "seq") as i, k.loop(n, "vector", "j", 16) as j:
        above = k.b.load("y", i * n + (n - 1 - j), f32)
        k.write("y", (i + 1) * n + j, k.b.add(above, k.b.load("x", (i + 1) * n + j, f32)))
    return k.finish(("m", "n"))


def row_data(rows: int, columns: int, dtype=f32) -> dict:
    x = rng.normal(size=(rows, columns)).astype(dtype.numpy)
    return {"x": x, "y": np.full_like(x, 9), "s": np.full(rows, 9, dtype.numpy)}


@pytest.mark.parametrize("dtype", (f32, f64, f16, bf16, i8, i64), ids=str)
@pytest.mark.parametrize("size", (0, 1, 31, 256, 1000))
def test_maps(dtype, size):
    x = (rng.normal(size=size) * 20).astype(dtype.numpy)
    got = compare(scaled(dtype), {"x": x, "y": np.zeros_like(x)}, {"n": size}, "gpu map")
    if dtype in (f32, f64):
        assert np.array_equal(got["y"], x * 2 + 1)


@pytest.mark.parametrize("shape", ((1, 1), (33, 70), (0, 5), (5, 0), (300, 3)))
def test_maps_over_two_axes(shape):
    x = rng.normal(size=shape).astype("f4")
    got = compare(transposed(), {"x": x, "y": np.zeros(shape[::-1], "f4")}, {"m": shape[0], "n": shape[1]}, "gpu map")
    assert np.array_equal(got["y"], x.T)


@pytest.mark.parametrize("size", (0, 7, 300, 1501))
def test_tiles(size):
    x = rng.normal(size=size)
    compare(tiled(), {"x": x, "y": np.zeros_like(x)}, {"n": size}, "threads per tile")


@pytest.mark.parametrize("rows, columns", ((5, 200), (1, 64), (3, 7), (0, 9), (2, 1000)))
@pytest.mark.parametrize("cached", (True, False))
def test_rows(rows, columns, cached):
    data = row_data(rows, columns)
    got = compare(softmax(n, cached=cached), data, {"m": rows, "n": columns}, "gpu rows")
    x = data["x"].astype("f8")
    e = x - x.max(1, keepdims=True) if columns else x
    assert np.allclose(got["s"], np.sqrt((e * e).sum(1)), rtol=1e-5)


@pytest.mark.parametrize("dtype", (f64, f16), ids=str)
def test_rows_of_static_size_use_shared_memory(dtype):
    kernel = softmax(130, dtype)
    bound = bind(kernel)
    shared = [s for s in walk(bound.kernel.body) if isinstance(s, Alloc)]
    assert not bound.scratch and all(s.space == "shared" for s in shared) and len(shared) == 3
    compare(kernel, row_data(4, 130, dtype), {"m": 4}, "gpu rows")


def test_rows_too_long_for_shared_memory_share_scratch():
    kernel = softmax(n)
    bound = bind(kernel)
    assert [b.dtype for b in bound.scratch] == [f32]
    compare(kernel, row_data(200, 5), {"m": 200, "n": 5}, "gpu rows")  # more rows than areas


@pytest.mark.parametrize("rows, columns", ((5, 200), (1, 3), (4, 64)))
def test_results_read_again_are_ordered_by_barriers(rows, columns):
    data = {k: v for k, v in row_data(rows, columns).items() if k != "s"}
    assert any(isinstance(s, Barrier) for s in walk(bind(scan()).kernel.body))
    compare(scan(), data, {"m": rows, "n": columns}, "gpu rows")


def test_tasks_with_large_working_memory():
    k = KernelBuilder("reverse", {"n": (0, None), "m": (0, None)})
    k.buffer("x", f32, (m, n))
    k.buffer("y", f32, (m, n), "out")
    with k.loop(m, "parallel") as i:
        t = k.alloc(f32, n)
        with k.loop(n, "seq") as j:
            k.write(t, j, k.b.load("x", i * n + j, f32))
        with k.loop(n, "seq") as j:
            k.write("y", i * n + j, k.b.load(t, n - 1 - j, f32))
    kernel = k.finish(("m", "n"))
    assert len(bind(kernel).scratch) == 1
    data = {k: v for k, v in row_data(700, 3).items() if k != "s"}
    got = compare(kernel, data, {"m": 700, "n": 3}, "gpu tasks")
    assert np.array_equal(got["y"], data["x"][:, ::-1])


def test_bound_kernels_stay_as_they_are():
    once = bind(softmax(n, cached=False)).kernel
    assert bind(once).kernel is once


@pytest.mark.parametrize("lanes", (2, 8, 16, 32, 64))
def test_folds_keep_their_tree(lanes):
    """A combination that is not associative shows every pair of the tree."""
    k = KernelBuilder("tree", {"m": (0, None)})
    b = k.b
    k.buffer("x", f64, (m, lanes))
    k.buffer("y", f64, (m,), "out")
    with k.loop(m, "parallel") as i:
        a = k.acc(f64, b.const(0, f64), (lanes,))
        with k.loop(40, "vector", "q", 8) as q:  # something worth a block, so that the fold is shared
            k.let(b.load("x", i * lanes + q % lanes, f64))
        with k.loop(lanes, "vector", "l", 8) as lane:
            k.set(a, b.load("x", i * lanes + lane, f64), lane)
        k.add(Fold(("r",), (a,), lanes, ("p",), ("q",), (b.sub(b.mul(b.ref("p", f64), 3.0), b.ref("q", f64)),)))
        k.write("y", i, b.ref("r", f64))
    x = rng.normal(size=(3, lanes))
    got = compare(k.finish(("m",)), {"x": x, "y": np.zeros(3)}, {"m": 3}, "gpu rows")
    want = x
    while want.shape[1] > 1:
        h = want.shape[1] // 2
        want = want[:, :h] * 3 - want[:, h:]
    assert np.array_equal(got["y"], want[:, 0])


def test_names_are_fresh():
    names = Names.of(softmax(n))
    made = [names.fresh("t") for _ in range(3)]
    assert len(set(made)) == 3 and not set(made) & Names.of(softmax(n)).taken


# ---- remainders -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", (f32, f64, f16), ids=str)
def test_remainders_are_exact(dtype):
    dt = dtype.numpy
    info = np.finfo(dt)
    some = [0, -0.0, 1, -1, 3, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal, 0.1]
    grid = np.array([(x, y) for x in some for y in some], dt)
    raw = rng.integers(0, 256, (400, 2, dt.itemsize), dtype=np.uint8).view(dt)[:, :, 0]
    x, y = np.concatenate([grid, raw, (rng.normal(size=(200, 2)) * [100, 1]).astype(dt)]).T.copy()
    ps = [param("x", array_type(x)), param("y", array_type(y))]
    got = compile_graph(Graph("g", ps, [make("fmod", ps)]), device="cuda")([x, y])[0]
    with np.errstate(all="ignore"):
        want = np.fmod(x, y)
    fine = ~np.isnan(want)
    assert np.array_equal(got, want, equal_nan=True) and np.array_equal(np.signbit(got[fine]), np.signbit(want[fine]))


# ---- PTX ------------------------------------------------------------------------------------------------------------

def product_kernel(dtype=f32, sizes=(70, 45, 33)) -> Kernel:
    rows, cols, depth = sizes
    a, b = param("a", flowc_type(dtype, (rows, depth))), param("b", flowc_type(dtype, (depth, cols)))
    node = make("dot", (a, b), {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (0,)})
    program = build(Graph("g", [a, b], [node]), BuildOptions(machine("cuda"), "cuda"))
    (kernel,) = program.kernels.values()
    return kernel


def flowc_type(dtype, shape):
    from flowc.types import Type
    return Type(dtype, tuple(shape))


KERNELS = {"map": scaled, "map f64": lambda: scaled(f64), "map f16": lambda: scaled(f16),
           "map bf16": lambda: scaled(bf16), "map i8": lambda: scaled(i8), "transpose": transposed, "tiles": tiled,
           "rows": lambda: softmax(n),
           "rows static": lambda: softmax(200), "rows f64": lambda: softmax(n, f64), "scan": scan,
           "product": product_kernel, "product f64": lambda: product_kernel(f64),
           "product i64": lambda: product_kernel(i64),
           "product even": lambda: product_kernel(f32, (128, 128, 64)),
           "product any size": lambda: product_kernel(f32, (m, n, sym("k")))}


@pytest.mark.skipif(ptxas() is None, reason="ptxas is not installed")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", KERNELS)
def test_ptxas_accepts(name, arch):
    code = compile_kernel(KERNELS[name](), arch)
    a = checked(code.text, arch)
    assert a is not None and a.registers <= 255 and a.cubin[:4] == b"\x7fELF"
    assert abs(a.shared - code.shared) < 128 and f".target {arch}" in code.text


@pytest.mark.skipif(ptxas() is None, reason="ptxas is not installed")
def test_ptxas_refuses_with_its_report():
    text = compile_kernel(scaled()).text.replace("add.rn.f32", "add.rn.f99")
    with pytest.raises(FlowcError, match="C323") as e:
        assemble(text, "sm_80")
    assert any("f99" in line for line in e.value.notes)


@pytest.mark.parametrize("arch", ARCHS)
def test_both_architectures_give_the_same_bits(arch):
    x = rng.normal(size=99).astype(bf16.numpy)
    compare(scaled(bf16), {"x": x, "y": np.zeros_like(x)}, {"n": 99}, arch=arch)
    compare(softmax(n), row_data(3, 100), {"m": 3, "n": 100}, arch=arch)


def test_ptx_is_no_newer_than_needed():
    assert ".version 7.0" in compile_kernel(scaled(), "sm_80").text
    assert ".version 7.8" in compile_kernel(scaled(), "sm_90").text
    with pytest.raises(FlowcError, match="C110"):
        compile_kernel(scaled(), "sm_8x")


def test_instructions_without_an_exact_form_are_refused():
    from flowc.backends.cuda import ptx
    with pytest.raises(UnsupportedError, match="C321"):
        ptx._refuse("  %t1 = frem float %a, %b")


# ---- products -------------------------------------------------------------------------------------------------------

def chain(a: np.ndarray, b: np.ndarray, acc) -> np.ndarray:
    """The product as one chain of multiply-adds per element, fused for floats."""
    from flowc.backends.cuda.sim.numeric import fma32, fma64
    out = np.zeros((a.shape[0], b.shape[1]), acc)
    step = {"f4": fma32, "f8": fma64}.get(np.dtype(acc).str[1:], lambda x, y, z: x * y + z)
    with np.errstate(all="ignore"):
        for k in range(a.shape[1]):
            out = step(a[:, k:k + 1].astype(acc) + np.zeros_like(out), b[k].astype(acc) + np.zeros_like(out), out)
    return out


@pytest.mark.parametrize("sizes", ((64, 64, 16), (70, 45, 33), (1, 130, 5), (65, 1, 17), (3, 3, 1), (128, 64, 64),
                                   (2, 3, 0), (0, 3, 4)))
@pytest.mark.parametrize("dtype", (f32, f64, i64), ids=str)
def test_products(sizes, dtype):
    rows, cols, depth = sizes
    a = (rng.normal(size=(rows, depth)) * 9).astype(dtype.numpy)
    b = (rng.normal(size=(depth, cols)) * 9).astype(dtype.numpy)
    kernel = product_kernel(dtype, (m, n, sym("k")))
    dims = dict(zip(("m", "n", "k"), (rows, cols, depth)))
    names = [p.name for p in kernel.params]
    values = dict(zip(kernel.dims, _in_order(kernel, dims)))
    arrays = dict(zip(names, (a, b, np.full((rows, cols), 7, dtype.numpy))))
    got = compare(kernel, arrays, values)
    assert np.array_equal(got[names[2]], chain(a, b, dtype.numpy))


def _in_order(kernel: Kernel, dims: dict) -> list[int]:
    """Kernels name their dims d0, d1, ...: find the values from the shapes of the parameters."""
    a, b = kernel.params[:2]
    known = {str(a.shape[0]): dims["m"], str(a.shape[1]): dims["k"], str(b.shape[1]): dims["n"]}
    return [known[d] for d in kernel.dims]


@pytest.mark.parametrize("dtype", (f16, bf16), ids=str)
def test_small_floats_are_summed_in_f32(dtype):
    a, b = (rng.normal(size=s).astype(dtype.numpy) for s in ((20, 40), (40, 30)))
    kernel = product_kernel(dtype, (20, 30, 40))
    names = [p.name for p in kernel.params]
    got = compare(kernel, dict(zip(names, (a, b, np.zeros((20, 30), dtype.numpy)))), {})
    assert np.array_equal(got[names[2]], chain(a, b, "f4").astype(dtype.numpy))


# ---- seeded faults --------------------------------------------------------------------------------------------------

def test_a_short_result_buffer_is_seen():
    data = {"x": np.zeros(1000, "f4"), "y": np.zeros(1000, "f4")}
    with pytest.raises(MemoryFault, match="next to y"):
        on_device(scaled(), data, {"n": 1000}, short=4)


def test_a_missing_barrier_between_results_is_seen():
    data = {k: v for k, v in row_data(6, 100).items() if k != "s"}
    with pytest.raises(RaceFault, match="global"):
        on_device(scan(), data, {"m": 6, "n": 100}, edit=lambda text: re.sub(r"bar\.sync[^;]*;", "", text))


def test_blocks_that_share_results_are_seen():
    """Each block reads its neighbour's result."""
    k = KernelBuilder("shared", {"n": (0, None)})
    k.buffer("y", f32, (n,), "inout")
    with k.loop(n - 1, "parallel") as i:
        k.write("y", i, k.b.load("y", i + 1, f32))
    with pytest.raises(RaceFault, match="global"):
        on_device(k.finish(("n",)), {"y": np.zeros(600, "f4")}, {"n": 600})


@pytest.mark.parametrize("which", (1, 2, 3))  # the first in the text closes the loop over blocks, for other kernels
@pytest.mark.parametrize("name", ("rows", "product"))
def test_every_missing_barrier_is_seen(name, which):
    def without(text: str) -> str:
        places = [x.start() for x in re.finditer(r"bar\.sync[^;]*;", text)]
        at = places[which]
        return text[:at] + re.sub(r"bar\.sync[^;]*;", "", text[at:], count=1)
    if name == "rows":
        kernel, data, dims = softmax(200), row_data(3, 200), {"m": 3}
    else:
        kernel, dims = product_kernel(f32, (100, 64, 40)), {}
        data = dict(zip([p.name for p in kernel.params], (np.ones((100, 40), "f4"), np.ones((40, 64), "f4"),
                                                           np.zeros((100, 64), "f4"))))
    on_device(kernel, data, dims, grid=1)
    with pytest.raises(RaceFault):
        on_device(kernel, data, dims, edit=without, grid=1)


def test_memory_is_read_in_whole_sectors():
    data = {"x": np.zeros(4096, "f4"), "y": np.zeros(4096, "f4")}
    _, device = on_device(scaled(), data, {"n": 4096}, profile=True)
    assert device.stats.sectors == device.stats.ideal_sectors
    kernel = product_kernel(f32, (128, 128, 64))
    names = [p.name for p in kernel.params]
    shapes = ((128, 64), (64, 128), (128, 128))
    _, device = on_device(kernel, {k: np.zeros(s, "f4") for k, s in zip(names, shapes)}, {}, profile=True)
    assert device.stats.sectors == device.stats.ideal_sectors
    assert device.stats.wavefronts <= 1.3 * device.stats.ideal_wavefronts


# ---- programs -------------------------------------------------------------------------------------------------------

def standardised(x):
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + np.float32(1e-5))


def layer(x, w):
    return np.maximum(x @ w + 1, 0).sum(axis=0)


def sorted_twice(x):
    return np.sort(x, axis=1) * 2 + np.sort(x * 2, axis=1)


PROGRAMS = [
    (lambda x: x * 2 + 1, [(33, 70)]), (lambda x: x.T.copy() + 1, [(33, 70)]), (lambda x: x.sum(), [(300000,)]),
    (lambda x: x.sum(axis=0), [(3000, 70)]), (lambda x: np.argmax(x, axis=1), [(9, 200)]),
    (lambda x: np.cumsum(x, axis=1), [(5, 30)]), (standardised, [(33, 70)]), (layer, [(33, 70), (70, 45)]),
    (sorted_twice, [(5, 30)]), (lambda x: (x, x + 1, x), [(4,)]), (lambda x: x.sum(axis=1), [(4, 0)]),
    (lambda x: x * 2, [(0, 7)]), (lambda x, w: x @ w, [(3, 0), (0, 4)]),
    (lambda x: np.exp(x) - np.log(x * x + 1), [(7,)]), (lambda x: np.tanh(x * x) - flowc.numpy.erf(x), [(700,)]),
]


@pytest.mark.parametrize("case", range(len(PROGRAMS)))
def test_programs_give_the_bits_of_the_cpu(case):
    fn, shapes = PROGRAMS[case]
    arrays = [rng.normal(size=s).astype("f4") for s in shapes]
    got, want = (flowc.jit(fn, device=d)(*arrays) for d in ("cuda", "cpu"))
    for g, w in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
        assert g.dtype == w.dtype and g.shape == w.shape and np.array_equal(g, w, equal_nan=True)


def test_sizes_may_change():
    f = flowc.jit(lambda x: (x - x.mean(axis=1, keepdims=True)).sum(axis=0), device="cuda", dynamic=True)
    for shape in ((3, 5), (40, 129), (1, 1)):
        x = rng.normal(size=shape).astype("f4")
        assert np.allclose(f(x), (x - x.mean(axis=1, keepdims=True)).sum(axis=0), atol=1e-4)


def test_results_are_fresh_and_arguments_kept():
    f = flowc.jit(lambda x: (x, x + 1), device="cuda")
    x = np.ones(4, "f4")
    same, more = f(x)
    same[:] = 5
    more[:] = 5
    assert (x == 1).all() and (f(x)[1] == 2).all()
    assert np.array_equal(f(np.ones((4, 2), "f4")[:, 1])[1], np.full(4, 2, "f4"))


def test_device_memory_is_given_back():
    f = flowc.jit(layer, device="cuda")
    x, w = np.ones((9, 9), "f4"), np.ones((9, 9), "f4")
    f(x, w)
    memory = drivers.get_driver().device.memory  # type: ignore[attr-defined]
    before = memory.live
    for _ in range(5):
        f(x, w)
    assert memory.live == before


def test_looking_inside():
    x = np.ones((4, 5), "f4")
    p = param("x", array_type(x))
    c = compile_graph(Graph("g", [p], [make("exp", [p])]), device="cuda")
    assert ".visible .entry" in c.as_text("ptx") and "ptx_kernel" in c.as_text("llvm")
    assert c.executable.kernel_asm("k0") in c.as_text("ptx")
    with pytest.raises(FlowcError):
        c.executable.as_text("asm")
    assert c.verify([x])


OPS = [op for op in REGISTRY.values() if op not in (PARAM, CONSTANT) and op.samples is not None
       and not isinstance(op.lower, HostCall)]


def _calls(op, most: int):
    """Sample calls of an op, one per combination of dtypes, the larger ones first."""
    seen, out = set(), []
    for arrays, attrs in sorted(op.samples(np.random.default_rng(1)), key=lambda c: -sum(a.size for a in c[0])):
        key = tuple(a.dtype for a in arrays)
        if key not in seen and all(a.dtype.kind != "c" for a in arrays):
            seen.add(key)
            out.append((arrays, attrs))
    return out[:most]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_gives_the_bits_of_the_cpu(op, request):
    for arrays, attrs in _calls(op, 99 if request.config.getoption("--long", False) else 4):
        ps = [param(f"x{i}", array_type(a)) for i, a in enumerate(arrays)]
        graph = Graph("g", ps, [make(op, ps, attrs)])
        got, want = (compile_graph(graph, device=d)(arrays)[0] for d in ("cuda", "cpu"))
        assert got.dtype == want.dtype and got.shape == want.shape
        kinds = array_type(got).dtype.floating
        assert np.array_equal(got, want, equal_nan=kinds), (arrays, attrs, got, want)
