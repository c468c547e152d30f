"""Compiled kernels against the kernel interpreter: instructions, loops, memory, reductions, GPU text.

Most kernels here are small and written by hand, so that each speaks about one duty of the emitter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from flowc.backends.interp import run_kernel
from flowc.backends.llvm import engine
from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.target import cpu_target
from flowc.dims import DimLike, ceildiv, dmin, sym
from flowc.kernel import (
    INSTRS,
    Acc,
    Alloc,
    Buffer,
    Builder,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Store,
)
from flowc.types import ALL, BOOLS, FLOATS, INTS, bf16, bool_, f16, f32, f64, i8, i32, i64, u8, u32

TARGET = cpu_target(*engine.host())
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
GUARD = 64   # elements around every buffer that must not change

b = Builder()
n, i, j, k = sym("n"), sym("i"), sym("j"), sym("k")


def text_of(kernel: Kernel, target=TARGET) -> str:
    module = Module()
    emit_kernel(kernel, module, target, "k")
    return module.text()


def compiled(kernel: Kernel) -> engine.Code:
    return engine.compile_module(text_of(kernel))


def native(kernel: Kernel, arrays: Mapping[str, np.ndarray], dims: Mapping[str, int], chunks: int = 1
           ) -> dict[str, np.ndarray]:
    """All buffers after the kernel ran in ``chunks`` pieces; each buffer lies between guards, on an odd element."""
    code = compiled(kernel)
    rng = np.random.default_rng(7)
    room: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, a in arrays.items():
        whole = rng.integers(0, 255, (a.size + 2 * GUARD + 1) * a.itemsize, np.uint8).view(a.dtype)
        if a.dtype == bool:
            whole = np.zeros(whole.shape, bool)
        whole[GUARD + 1:GUARD + 1 + a.size] = a.ravel()
        room[name] = (whole, whole.copy())
    slots = np.array([room[p.name][0].ctypes.data + (GUARD + 1) * room[p.name][0].itemsize for p in kernel.params]
                     + [dims[d] for d in kernel.dims], np.int64)
    run = CALL(code.address("k"))
    for c in range(chunks):
        run(slots.ctypes.data, c, chunks)
    out = {}
    for name, (whole, before) in room.items():
        size = arrays[name].size
        for part in (slice(0, GUARD + 1), slice(GUARD + 1 + size, None)):
            assert whole[part].tobytes() == before[part].tobytes(), f"written outside {name}"
        out[name] = whole[GUARD + 1:GUARD + 1 + size].reshape(arrays[name].shape)
    return out


def same_bits(a: np.ndarray, c: np.ndarray) -> bool:
    """Equal, any NaN being as good as another."""
    nan = (a != a) & (c != c)
    return bool((nan | (a.view(f"u{a.itemsize}") == c.view(f"u{c.itemsize}"))).all())


def check(kernel: Kernel, arrays: Mapping[str, np.ndarray], dims: Mapping[str, int] | None = None,
          chunks: Sequence[int] = (1,)) -> dict[str, np.ndarray]:
    """Native equals interpreted, bit for bit."""
    dims = dims or {}
    want = {name: a.copy() for name, a in arrays.items()}
    run_kernel(kernel, want, dims)
    got = {}
    for c in chunks:
        got = native(kernel, arrays, dims, c)
        for p in kernel.params:
            assert same_bits(got[p.name], want[p.name]), (p.name, got[p.name], want[p.name])
    return got


def values(d, count: int, seed: int = 0) -> np.ndarray:
    """Special values and plain ones, mixed."""
    rng = np.random.default_rng(seed)
    if d is bool_:
        return rng.random(count) < 0.5
    if d.integer:
        info = np.iinfo(d.numpy)
        special = [0, 1, 2, 3, 7, info.max, info.min, info.max - 1, info.min + 1, d.bits, d.bits - 1, d.bits + 1]
        if d.kind == "i":
            special += [-1, -2, -3, -7]
        out = np.concatenate([np.array(special, d.numpy), rng.integers(info.min, info.max, count, d.numpy, True),
                              rng.integers(0, 20, count).astype(d.numpy)])
    else:
        top = {"f16": 65504.0, "bf16": 3.38e38, "f32": 3.4028235e38, "f64": 1.7976931348623157e308}[d.name]
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, top, -top, 6e-8, -6e-8,
                   2.0**31, -(2.0**31), 2.0**63, 255.5, -128.7, 1e-310, 1e-40]
        with np.errstate(all="ignore"):
            out = np.concatenate([special, rng.normal(0, 3, count), rng.normal(0, 1e4, count)]).astype(d.numpy)
    order = rng.permutation(len(out))
    return out[order][:count] if count < len(out) else out[order]


# ---- instructions ---------------------------------------------------------------------------------------------------

def map_kernel(value, *dtypes, out, kind: str = "vector", width: int = 16) -> Kernel:
    """z[i] = value(x0[i], x1[i], ...)."""
    xs = [b.load(f"x{m}", i, d) for m, d in enumerate(dtypes)]
    return Kernel("k", (*[Buffer(f"x{m}", d, (n,)) for m, d in enumerate(dtypes)], Buffer("z", out, (n,), "out")),
                  ("n",), (Loop("i", n, kind, (Store("z", i, value(*xs)),), width),))


def check_map(value, *dtypes, out, count: int = 150, most: float | None = None) -> None:
    """``most``: the largest finite magnitude."""
    arrays = {f"x{m}": values(d, count, m) for m, d in enumerate(dtypes)}
    if most is not None:
        arrays = {name: np.where(np.isinf(a), a, np.clip(a, -most, most)) for name, a in arrays.items()}
    size = min(a.size for a in arrays.values())
    arrays = {name: a[:size] for name, a in arrays.items()}
    arrays["z"] = np.zeros(size, out.numpy)
    for kind, width in (("vector", 16), ("seq", 1)):
        check(map_kernel(value, *dtypes, out=out, kind=kind, width=width), arrays, {"n": size})


KINDS = {"b": BOOLS, "i": INTS[:4], "u": INTS[4:], "f": FLOATS}
FUNCTIONS = {"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh",
             "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf", "erfc", "ndtr", "cbrt", "pow",
             "atan2"}
PLAIN = [(name, d) for name, row in INSTRS.items() for d in ALL
         if row.arity and d.kind in row.kinds and row.result != "attr" and not row.operands
         and name not in FUNCTIONS | {"select"}]


@pytest.mark.parametrize(("name", "d"), PLAIN, ids=[f"{name}-{d}" for name, d in PLAIN])
def test_instructions_match_the_interpreter(name, d):
    row = INSTRS[name]
    if name in ("min", "max") and d.floating:
        def value(x, y):  # which zero is open
            return b.add(b.emit(name, x, y), 0.0)
    else:
        def value(*xs):
            return b.emit(name, *xs)
    # the interpreter's fma in f64 works with fractions, which have no infinity
    check_map(value, *[d] * row.arity, out=bool_ if row.result == "bool" else d,
              most=1e150 if name == "fma" and d is f64 else None)


@pytest.mark.parametrize("a", [d for d in ALL if d.kind != "c"], ids=str)
def test_casts_match_the_interpreter(a):
    for to in ALL:
        if to.kind != "c" and to is not a:
            check_map(lambda x, to=to: b.cast(x, to), a, out=to)


def test_division_by_constants():
    for d in (i8, i32, i64, u8, u32):
        for by in (1, 2, 3, 7, 100) + ((-1, -2, -5) if d.kind == "i" else ()):
            check_map(lambda x, by=by: b.add(b.mul(b.idiv(x, by), 3), b.imod(x, by)), d, out=d)
        check_map(lambda x: b.idiv(x, 0), d, out=d)


def test_shifts_by_constants():
    for by in (0, 1, 31, 32, 40, -1):
        check_map(lambda x, by=by: b.add(b.shl(x, by), b.shr(x, by)), i32, out=i32)


def test_select_and_bits():
    for d in (bool_, i8, f16, bf16, f32, f64, i64):
        check_map(lambda c, x, y: b.select(c, x, y), bool_, d, d, out=d)
    check_map(lambda x: b.bitcast(b.xor(b.bitcast(x, i32), 1 << 31), f32), f32, out=f32)
    check_map(lambda x: b.bitcast(x, f64), i64, out=f64)


def test_fmod_over_the_whole_range():
    for d in (f32, f64):
        bits = np.random.default_rng(3).integers(0, 1 << d.bits, 4000, np.uint64).astype(f"u{d.bytes}")
        x, y = bits.view(d.numpy), np.random.default_rng(4).permutation(bits).view(d.numpy)
        arrays = {"x0": x, "x1": y, "z": np.zeros(len(x), d.numpy)}
        got = check(map_kernel(lambda x, y: b.fmod(x, y), d, d, out=d), arrays, {"n": len(x)})
        assert np.isfinite(got["z"]).mean() > 0.9


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_products_of_words(width):
    rng = np.random.default_rng(width)
    words = [(rng.standard_normal((2, 70)) * 8).astype(bf16.numpy).view(np.uint16).astype(np.uint32) for _ in "ab"]
    arrays = {"x0": rng.standard_normal(70).astype(np.float32), "z": np.zeros(70, np.float32),
              **{f"x{m}": w[0] << 16 | w[1] for m, w in enumerate(words, 1)}}
    kind = "vector" if width > 1 else "seq"
    kernel = map_kernel(lambda *xs: b.mixed("dot_bf16", *xs), f32, u32, u32, out=f32, kind=kind, width=width)
    check(kernel, arrays, {"n": 70})
    assert ("dpbf16ps" in text_of(kernel)) == ("dot_bf16" in TARGET.native)
    with pytest.raises(TypeError, match="dot_bf16"):
        b.mixed("dot_bf16", b.const(0, u32), b.const(0, u32), b.const(0, u32))


OLDER = "+avx2,+fma,-avx512f"
TARGETS = [TARGET, cpu_target(TARGET.triple, "x86-64-v3", OLDER, 256), cpu_target(TARGET.triple, "x86-64-v2", "", 128)]


@pytest.mark.parametrize("target", TARGETS, ids=["here", "v3", "v2"])
@pytest.mark.parametrize("width", [1, 2, 16, 32])
@pytest.mark.parametrize("name", ["dot_i16", "dot_i8"])
def test_products_of_integer_words(name, width, target):
    arrays = {"x0": values(i32, 70), "x1": values(u32, 70, 1), "x2": values(u32, 70, 2), "z": np.zeros(70, np.int32)}
    arrays["x1"][:9] = arrays["x2"][:9] = 0x80008000  # the only sum of two products that wraps
    kind = "vector" if width > 1 else "seq"
    kernel = map_kernel(lambda *xs: b.mixed(name, *xs), i32, u32, u32, out=i32, kind=kind, width=width)
    text = text_of(kernel, target)
    assert (name in target.native) == any(i in text for i in ("pmadd", "vpdpwssd", "vpdpbusd"))
    assert target is not TARGETS[1] or ("pmadd.wd" in text) == (name == "dot_i16")
    want = {name: a.copy() for name, a in arrays.items()}
    run_kernel(kernel, want, {"n": 70})
    if not target.native - TARGET.native:
        room = {name: a.copy() for name, a in arrays.items()}
        slots = np.array([*(room[p.name].ctypes.data for p in kernel.params), 70], np.int64)
        code = engine.compile_module(text)
        CALL(code.address("k"))(slots.ctypes.data, 0, 1)
        assert np.array_equal(room["z"], want["z"])


def test_ldexp():
    for d in (f32, f64, f16):
        check_map(lambda x, m: b.ldexp(x, b.imod(m, 3000)), d, i32, out=d, count=400)
        check_map(lambda x, m: b.ldexp(x, b.imod(m, 40)), d, i32, out=d, count=400)


def test_constants_are_exact():
    for d in FLOATS:
        for c in (0.1, -0.0, float("inf"), float("nan"), 1e-40, 65519.0, 3.0e38):
            with np.errstate(over="ignore"):
                kernel = Kernel("k", (Buffer("z", d, (3,), "out"),), (), (
                    Loop("i", 3, "vector", (Store("z", i, b.const(c, d)),), 4),))
                check(kernel, {"z": np.zeros(3, d.numpy)})


# ---- loops and indices ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 32, 33, 4095, 4096, 4097, 9000])
def test_tiled_map(size):
    tile = sym("t")
    at = 4096 * tile + i
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("y", f32, (n,)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("t", ceildiv(n, 4096), "parallel", (
            Loop("i", dmin(4096, n - 4096 * tile), "vector", (
                Store("z", at, b.fma(b.load("x", at, f32), 2.0, b.load("y", at, f32))),), 32),)),))
    check(kernel, {"x": values(f32, size)[:size], "y": values(f32, size, 1)[:size], "z": np.zeros(size, np.float32)},
          {"n": size}, (1, 2, 5))


@pytest.mark.parametrize("size", [0, 1, 5, 8, 13, 64, 100])
def test_static_vector_loops(size):
    kernel = Kernel("k", (Buffer("x", i32, (size,)), Buffer("z", i32, (size,), "out")), (), (
        Loop("i", size, "vector", (Store("z", i, b.add(b.load("x", i, i32), b.cast(b.index(i), i32))),), 8),))
    check(kernel, {"x": np.arange(size, dtype=np.int32), "z": np.zeros(size, np.int32)})


def test_collapsed_parallel_nests():
    m = sym("m")
    body = Store("z", (i * m + j) * 3 + k, b.cast(b.index(100 * i + 10 * j + k), f32))
    kernel = Kernel("k", (Buffer("z", f32, (n, m, 3), "out"),), ("n", "m"), (
        Loop("i", n, "parallel", (Loop("j", m, "parallel", (Loop("k", 3, "parallel", (body,)),)),)),))
    for sizes in ((0, 3), (3, 0), (1, 1), (4, 5), (7, 2)):
        check(kernel, {"z": np.zeros((*sizes, 3), np.float32)}, {"n": sizes[0], "m": sizes[1]}, (1, 3, 40))


def test_inner_extents_may_depend_on_outer_variables():
    kernel = Kernel("k", (Buffer("z", i64, (n * n,), "out"),), ("n",), (
        Loop("i", n, "parallel", (Loop("j", i + 1, "parallel", (Store("z", i * n + j, b.index(i + j)),)),)),))
    check(kernel, {"z": np.zeros(81, np.int64)}, {"n": 9}, (1, 4))


def test_two_parallel_nests_run_in_one_call():
    kernel = Kernel("k", (Buffer("y", f32, (n,), "out"), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("i", n, "parallel", (Store("y", i, b.cast(b.index(i), f32)),)),
        Loop("j", n, "parallel", (Store("z", j, b.add(b.load("y", n - 1 - j, f32), 1.0)),))))
    check(kernel, {"y": np.zeros(9, np.float32), "z": np.zeros(9, np.float32)}, {"n": 9}, (1, 4))


INDICES: dict[str, tuple[DimLike, int]] = {
    "contiguous": (i + 3, 50), "splat": (7, 8), "backward": (40 - i, 50), "stride 2": (2 * i + 1, 100),
    "stride -3": (150 - 3 * i, 160), "symbolic stride": (n * i, 40 * 40), "row": (i // 8, 10), "column": (i % 8, 8),
    "odd row": (i // 7, 10), "odd column": (i % 7, 7), "whole rows": (3 * (i // 16) + i % 16, 60),
    "two vectors": (i // 32, 4), "minimum": (dmin(i, 9), 10), "transposed": (i % 8 * 5 + i // 8, 60),
    "square": (i * i, 1600), "by size": ((i * 3) // n, 4),
}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("static", [True, False])
def test_load_indices(name, static):
    index, room = INDICES[name]
    size: DimLike = 40 if static else n
    kernel = Kernel("k", (Buffer("x", f32, (room,)), Buffer("z", f32, (size,), "out")), ("n",), (
        Loop("i", size, "vector", (Store("z", i, b.load("x", index, f32)),), 16),))
    check(kernel, {"x": values(f32, room)[:room], "z": np.zeros(40, np.float32)}, {"n": 40})


@pytest.mark.parametrize("name", ["contiguous", "backward", "stride 2", "stride -3", "symbolic stride", "transposed",
                                  "whole rows"])
@pytest.mark.parametrize("d", [f32, bool_, f64, i8], ids=str)
def test_store_indices(name, d):
    index, room = INDICES[name]
    kernel = Kernel("k", (Buffer("x", d, (n,)), Buffer("z", d, (room,), "out")), ("n",), (
        Loop("i", n, "vector", (Store("z", index, b.load("x", i, d)),), 16),))
    check(kernel, {"x": values(d, 40)[:40], "z": np.zeros(room, d.numpy)}, {"n": 40})


def test_gather_through_a_let():
    kernel = Kernel("k", (Buffer("at", i64, (n,)), Buffer("x", f64, (50,)), Buffer("z", f64, (n,), "out")), ("n",), (
        Loop("i", n, "vector", (
            Let("p", b.min(b.max(b.load("at", i, i64), 0), 49), (0, 49)),
            Store("z", i, b.load("x", sym("p"), f64))), 16),))
    arrays = {"at": values(i64, 37)[:37], "x": values(f64, 50)[:50], "z": np.zeros(37)}
    check(kernel, arrays, {"n": 37})


def test_indices_as_values_and_conditions():
    value = b.select(b.lt(b.index(i), b.index(n - i)), b.index(3 * i + n), b.index(i * i // 5))
    kernel = Kernel("k", (Buffer("z", i64, (n,), "out"),), ("n",), (
        Loop("i", n, "vector", (Store("z", i, value),), 8),))
    check(kernel, {"z": np.zeros(43, np.int64)}, {"n": 43})
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        for x, y in ((i, n - 40), (n - 40, i), (5, i), (i, 5 + 0 * n), (-i, -5), (2 * i, n)):
            test = b.emit(name, b.index(x), b.index(y))
            kernel = Kernel("k", (Buffer("z", bool_, (n,), "out"),), ("n",), (
                Loop("i", n, "vector", (Store("z", i, test),), 16),))
            check(kernel, {"z": np.zeros(51, bool)}, {"n": 51})


def test_masked_loads_and_stores():
    inside = b.lt(b.index(i), b.index(n - 5))
    shifted = b.load("x", i + 5, f32, inside, -1.0)
    outs = [Buffer(name, f32, (n,), "out") for name in "zw"]
    kernel = Kernel("k", (Buffer("x", f32, (n,)), *outs), ("n",), (
        Loop("i", n, "vector", (Store("z", i, shifted), Store("w", i, shifted, b.gt(shifted, 0.0))), 16),))
    for size in (3, 16, 50):
        check(kernel, {"x": values(f32, size)[:size], "z": np.zeros(size, np.float32), "w": np.ones(size, np.float32)},
              {"n": size})
    scalar = Kernel("k", kernel.params, ("n",), (Loop("i", n, "seq", kernel.body[0].body),))
    check(scalar, {"x": values(f32, 50)[:50], "z": np.zeros(50, np.float32), "w": np.ones(50, np.float32)}, {"n": 50})


def test_a_load_that_no_lane_may_do_is_not_done():
    where = b.lt(b.index(n), b.const(0, i64))
    for index in (i + 10**12, 10**12 + 0 * i, 3 * i + 10**12):
        kernel = Kernel("k", (Buffer("x", f32, (1,)), Buffer("z", f32, (n,), "out")), ("n",), (
            Loop("i", n, "vector", (Store("z", i, b.load("x", index, f32, where, 2.0)),), 16),))
        check(kernel, {"x": np.ones(1, np.float32), "z": np.zeros(20, np.float32)}, {"n": 20})


def test_conditions_in_vector_loops_are_masks():
    x = b.load("x", i, f32)
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("i", n, "vector", (
            If(b.gt(x, 0.0), (
                Store("z", i, b.sqrt(x)),
                If(b.gt(x, 2.0), (Store("z", i, b.load("x", 0, f32)),)),
            ), (Store("z", i, b.neg(x)),)),
            If(b.gt(b.index(n), 10), (Store("z", i, b.add(b.load("z", i, f32), 1.0)),))), 16),))
    for size in (9, 33):
        check(kernel, {"x": values(f32, size)[:size], "z": np.zeros(size, np.float32)}, {"n": size})


def test_loops_inside_vector_loops_and_private_registers():
    kernel = Kernel("k", (Buffer("x", f32, (n, 6)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("i", n, "vector", (
            Acc("s", f32, (), b.const(0.0, f32)), Acc("last", f32, (2,), b.load("x", 6 * i, f32)),
            Loop("j", 6, "seq", (
                Set("s", (), b.add(b.ref("s", f32), b.load("x", 6 * i + j, f32))),
                If(b.gt(b.ref("s", f32), 0.0), (Set("last", (j % 2,), b.ref("s", f32)),)))),
            Store("z", i, b.add(b.ref("last", f32, 0), b.ref("last", f32, 1)))), 16),))
    check(kernel, {"x": values(f32, 6 * 21)[:126].reshape(21, 6), "z": np.zeros(21, np.float32)}, {"n": 21})


def test_a_loop_whose_extent_differs_by_lane():
    kernel = Kernel("k", (Buffer("x", i32, (n,)), Buffer("z", i32, (n,), "out")), ("n",), (
        Loop("i", n, "vector", (
            Acc("s", i32, (), b.const(0, i32)),
            Loop("j", i + 1, "seq", (Set("s", (), b.add(b.ref("s", i32), b.load("x", j, i32))),)),
            Store("z", i, b.ref("s", i32))), 16),))
    check(kernel, {"x": values(i32, 21)[:21], "z": np.zeros(21, np.int32)}, {"n": 21})


def test_values_seen_before_a_write_are_read_again():
    z = b.load("z", 0, f32)
    kernel = Kernel("k", (Buffer("z", f32, (2,), "inout"),), (), (
        Loop("i", 5, "seq", (Store("z", 0, b.add(z, 1.0)), If(b.gt(z, 2.0), (Store("z", 0, b.mul(z, 2.0)),)),
                             Store("z", 1, z))),
        Loop("j", 3, "unroll", (Store("z", 0, b.add(z, 1.0)),)),
        Store("z", 1, b.add(b.load("z", 1, f32), z))))
    check(kernel, {"z": np.zeros(2, np.float32)})


# ---- registers, reductions, memory ----------------------------------------------------------------------------------

def dot_tile(dtype=f32, rows: int = 8, columns: int = 48, width: int = 16) -> Kernel:
    """The register tile of a matrix product: c += a[k] (outer) b[k]."""
    x, y = b.load("a", rows * k + i, dtype), b.load("b", columns * k + j, dtype)
    old = b.ref("c", dtype, i, j)
    return Kernel("k", (Buffer("a", dtype, (n, rows)), Buffer("b", dtype, (n, columns)),
                        Buffer("z", dtype, (rows, columns), "out")), ("n",), (
        Acc("c", dtype, (rows, columns), b.const(0, dtype)),
        Loop("k", n, "seq", (Loop("i", rows, "unroll", (Loop("j", columns, "vector", (
            Set("c", (i, j), b.fma(x, y, old) if dtype.floating else b.add(b.mul(x, y), old)),), width),)),)),
        Loop("i", rows, "unroll", (Loop("j", columns, "vector", (
            Store("z", columns * i + j, old),), width),))))


@pytest.mark.parametrize(("d", "rows", "columns", "width"), [
    (f32, 8, 48, 16), (f64, 8, 24, 8), (i32, 6, 32, 8), (f32, 3, 20, 8), (f32, 1, 7, 16), (f16, 2, 16, 8)])
def test_register_tiles(d, rows, columns, width):
    kernel = dot_tile(d, rows, columns, width)

    def table(height: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return (10 * rng.normal(size=(13, height))).astype(d.numpy)
    arrays = {"a": table(rows, 0), "b": table(columns, 1), "z": np.zeros((rows, columns), d.numpy)}
    check(kernel, arrays, {"n": 13})


SUM = (b.add(b.ref("p", f32), b.ref("q", f32)),)


@pytest.mark.parametrize("width", [1, 8, 16, 64])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 200])
def test_lanes_and_fold(width, size):
    lane, left = sym("l"), n % 64
    rest = b.lt(b.index(lane), b.index(left))
    old = b.ref("s", f32, lane)
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", f32, (2,), "out")), ("n",), (
        Acc("s", f32, (64,), b.const(0.0, f32)),
        Loop("j", n // 64, "seq", (Loop("l", 64, "vector", (
            Set("s", (lane,), b.add(old, b.load("x", 64 * j + lane, f32))),), width),)),
        Loop("l", 64, "vector", (
            Set("s", (lane,), b.select(rest, b.add(old, b.load("x", n // 64 * 64 + lane, f32, rest)), old)),), width),
        Fold(("r",), ("s",), 64, ("p",), ("q",), SUM),
        Store("z", 0, b.ref("r", f32)), Store("z", 1, b.mul(b.ref("r", f32), 2.0))))
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    check(kernel, {"x": x, "z": np.zeros(2, np.float32)}, {"n": size})


def test_fold_of_several_registers():
    """The position of the largest element: two registers of different widths, exact ties."""
    lane, x = sym("l"), b.load("x", 16 * j + sym("l"), f32)
    pos, best, where = b.index(16 * j + lane), b.ref("best", f32, lane), b.ref("where", i64, lane)
    v, w, p, q = b.ref("v", f32), b.ref("w", f32), b.ref("p", i64), b.ref("q", i64)
    left = b.or_(b.gt(v, w), b.and_(b.eq(v, w), b.lt(p, q)))
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", i64, (1,), "out")), ("n",), (
        Acc("best", f32, (16,), b.const(-np.inf, f32)), Acc("where", i64, (16,), b.const(0, i64)),
        Loop("j", n // 16, "seq", (
            Loop("l", 16, "vector", (Set("where", (lane,), b.select(b.gt(x, best), pos, where)),), 8),
            Loop("l", 16, "vector", (Set("best", (lane,), b.max(best, x)),), 16))),
        Fold(("m", "at"), ("best", "where"), 16, ("v", "p"), ("w", "q"), (b.select(left, v, w), b.select(left, p, q))),
        Store("z", 0, b.ref("at", i64))))
    x = np.round(np.random.default_rng(1).normal(size=160) * 3).astype(np.float32)
    got = check(kernel, {"x": x, "z": np.zeros(1, np.int64)}, {"n": 160})
    assert got["z"][0] == np.argmax(x)


@pytest.mark.parametrize("d", [bool_, i8, bf16], ids=str)
def test_fold_of_small_types(d):
    lane = sym("l")
    both = {"b": b.or_, "i": b.add, "f": b.add}[d.kind]
    kernel = Kernel("k", (Buffer("x", d, (32,)), Buffer("z", d, (1,), "out")), (), (
        Acc("s", d, (32,), b.const(0, d)),
        Loop("l", 32, "vector", (Set("s", (lane,), b.load("x", lane, d)),), 16),
        Fold(("r",), ("s",), 32, ("p",), ("q",), (both(b.ref("p", d), b.ref("q", d)),)),
        Store("z", 0, b.ref("r", d))))
    check(kernel, {"x": values(d, 32)[:32], "z": np.zeros(1, d.numpy)})


@pytest.mark.parametrize("d", [f32, f64, f16, i32, bool_], ids=str)
@pytest.mark.parametrize("rows", [2, 3, 5, 8])
@pytest.mark.parametrize(("extent", "width"), [(64, 16), (16, 16), (8, 2)])
def test_rows_are_folded_together(d, rows, extent, width):
    """Two rows share a vector; each is added up as it is alone."""
    lane, names = sym("l"), [f"s{r}" for r in range(rows)]
    both = b.or_ if d is bool_ else b.add
    x = [b.load("x", extent * r + lane, d) for r in range(rows)]
    kernel = Kernel("k", (Buffer("x", d, (rows, extent)), Buffer("z", d, (rows,), "out")), (), (
        *[Acc(s, d, (extent,), b.const(0, d)) for s in names],
        Loop("l", extent, "vector", tuple(Set(s, (lane,), v) for s, v in zip(names, x, strict=True)), width),
        *[Fold((f"r{r}",), (s,), extent, (f"p{r}",), (f"q{r}",), (both(b.ref(f"p{r}", d), b.ref(f"q{r}", d)),))
          for r, s in enumerate(names)],
        *[Store("z", r, b.ref(f"r{r}", d)) for r in range(rows)]))
    check(kernel, {"x": values(d, rows * extent, rows)[:rows * extent].reshape(rows, extent),
                   "z": np.zeros(rows, d.numpy)})


@pytest.mark.parametrize("extent", [64, n])
@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_lanes_are_compared_with_sizes(name, extent):
    """Neighbouring vectors share a bound, which may lie anywhere; known answers are constants."""
    compare, far = getattr(b, name), 1 << 40
    lane = b.index(i)
    tests = [compare(lane, b.index(d)) for d in (16 * j + 5, 37, -3, 1 << 20, far, far * j, 3 - j)]
    tests += [compare(b.index(9 * j - i), b.const(4, i64)), compare(b.index(40), lane)]
    kernel = Kernel("k", (Buffer("x", f32, (1,)), Buffer("z", f32, (3, len(tests), 64), "inout")), ("n",), (
        Loop("j", 3, "seq", (Loop("i", extent, "vector", tuple(
            Store("z", 64 * (len(tests) * j + t) + i, b.load("x", 0, f32, where, 7.0), where if t % 2 else None)
            for t, where in enumerate(tests)), 16),)),))
    for size in (64, 21):
        check(kernel, {"x": values(f32, 40)[:1], "z": np.zeros((3, len(tests), 64), np.float32)}, {"n": size})


@pytest.mark.parametrize("d", [i8, u8, i32, u32], ids=str)
def test_indices_as_short_integers(d):
    at = [i, 3 * i - 70000, i + (1 << 31) * j, 5 - 7 * i + 100 * j, i * n, i // 3 + j]
    kernel = Kernel("k", (Buffer("z", d, (2, len(at), n), "out"),), ("n",), (
        Loop("j", 2, "seq", (Loop("i", n, "vector", tuple(
            Store("z", n * (len(at) * j + t) + i, b.cast(b.index(e), d)) for t, e in enumerate(at)), 16),)),))
    for size in (5, 48):
        check(kernel, {"z": np.zeros((2, len(at), size), d.numpy)}, {"n": size})


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("d", [f16, f32, f64, i32], ids=str)
def test_comparisons_asked_the_other_way_round(name, d):
    check_map(lambda x, y: b.not_(getattr(b, name)(x, y)), d, d, out=bool_)


@pytest.mark.parametrize(("size", "count"), [(40, 40), (n, 40), (n, 3_000_000), (100_000, 100_000), (n + i, 50)])
def test_working_memory(size, count):
    """On the stack, from malloc, and of a size that a loop decides."""
    kernel = Kernel("k", (Buffer("x", f64, (4, n)), Buffer("z", f64, (4, n), "out")), ("n",), (
        Loop("i", 4, "parallel", (
            Alloc("t", f64, size),
            Loop("j", n, "vector", (Store("t", j, b.mul(b.load("x", n * i + j, f64), 3.0)),), 8),
            Loop("j", n, "vector", (Store("z", n * i + j, b.load("t", n - 1 - j, f64)),), 8))),))
    x = np.arange(4.0 * count).reshape(4, count)
    for chunks in (1, 3):
        got = native(kernel, {"x": x, "z": np.zeros((4, count))}, {"n": count}, chunks)
        assert (got["z"] == 3 * x[:, ::-1]).all()


def test_registers_with_moving_indices():
    """Registers indexed by a loop that is not unrolled stay memory."""
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", f32, (8,), "out")), ("n",), (
        Acc("c", f32, (8,), b.const(1.0, f32)),
        Loop("i", n, "seq", (Set("c", (i % 8,), b.add(b.ref("c", f32, i % 8), b.load("x", i, f32))),)),
        Loop("j", 8, "vector", (Store("z", j, b.ref("c", f32, j)),), 8)))
    x = np.random.default_rng(0).normal(size=50).astype(np.float32)
    check(kernel, {"x": x, "z": np.zeros(8, np.float32)}, {"n": 50})


@pytest.mark.parametrize("d", [f32, f64, i8, bf16], ids=str)
@pytest.mark.parametrize(("columns", "room", "width"), [(8, 8, 16), (12, 12, 16), (6, 6, 8), (7, 9, 16), (2, 2, 4),
                                                        (24, 24, 8), (4, 5, 2)])
def test_packed_columns(d, columns, room, width):
    """Rows written as the columns of a table: shuffles instead of scatters."""
    for size in (3, 16, 35):
        kernel = Kernel("k", (Buffer("x", d, (columns, n)), Buffer("z", d, (n, room), "out")), ("n",), (
            Loop("i", columns, "seq", (Loop("k", n, "vector", (
                Store("z", room * k + i, b.load("x", n * i + k, d)),), width),)),))
        arrays = {"x": values(d, columns * size)[:columns * size].reshape(columns, size),
                  "z": np.zeros((size, room), d.numpy)}
        check(kernel, arrays, {"n": size})


@pytest.mark.parametrize("d", [f32, f64, i32, i8], ids=str)
@pytest.mark.parametrize(("columns", "width"), [(32, 16), (48, 8), (20, 8), (6, 2), (7, 4)])
def test_transposed_rows(d, columns, width):
    """Columns of a row-major table side by side: rows loaded whole instead of gathers, any number of rows."""
    for size in (0, 1, 4, 11):
        kernel = Kernel("k", (Buffer("x", d, (columns, n)), Buffer("z", d, (n, columns), "out")), ("n",), (
            Loop("k", n, "seq", (Loop("j", columns, "vector", (
                Let("v", b.load("x", n * j + k, d)),
                Store("z", columns * k + j, b.add(b.ref("v", d), b.load("x", n * j + k, d)))), width),)),))
        check(kernel, {"x": values(d, columns * size)[:columns * size].reshape(columns, size),
                       "z": np.zeros((size, columns), d.numpy)}, {"n": size})


def test_fields_of_records_at_two_widths():
    kernel = Kernel("k", (Buffer("x", f64, (16, 3)), Buffer("z", f64, (2, 16), "out")), (), tuple(
        Loop("j", 16, "vector", (Store("z", 16 * m + j, b.load("x", 3 * j + 1, f64)),), 8 << m) for m in range(2)))
    check(kernel, {"x": values(f64, 48)[:48].reshape(16, 3), "z": np.zeros((2, 16))})
