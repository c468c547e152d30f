"""Stencils: producers that are asked for at several places, bounded recomputation, several steps in one kernel.

Programs are drawn as data (taps, boundary, dtype, sizes) and run through the compiler and the interpreter, which must
agree in every bit: fusing steps only decides where and when a value is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc.backends.runtime import compile_program
from flowc.diag import VerifyError
from flowc.kernel import walk
from flowc.parse import parse_kernel
from flowc.passes import stencil
from flowc.passes.build import BuildOptions, build
from flowc.passes.manager import PassContext
from flowc.passes.pipeline import optimise
from flowc.passes.schedule import Machine
from flowc.size import SizeUnknownError
from flowc.text import kernel_text
from flowc.verify import verify_kernel

DTYPES = ("float32", "float32", "float64", "float16", "bfloat16", "int32", "int8", "uint8", "bool", "int64")
BOUNDARIES = ("pad", "prepad", "update", "where", "concat", "valid", "roll")


@dataclass(frozen=True)
class Step:
    """One step: the sum of the neighbours at ``taps``, by a boundary rule where a neighbour is missing."""

    taps: tuple[tuple[int, ...], ...]
    boundary: str
    value: int

    def reach(self) -> list[tuple[int, int]]:
        return [(max(0, *(-t[a] for t in self.taps), 0), max(0, *(t[a] for t in self.taps), 0))
                for a in range(len(self.taps[0]))]

    def combine(self, parts):
        first, *rest = parts
        if first.dtype == np.bool_:
            out = first
            for p in rest:
                out = out ^ p
            return out
        scale = np.asarray(0.25 if first.dtype.kind not in "iu" else 3).astype(first.dtype)
        for p in rest:
            first = first + p
        return first * scale

    def inner(self, u, reach):
        """The stencil where every neighbour exists."""
        return self.combine([u[tuple(slice(lo + o, n - hi + o) for o, (lo, hi), n in
                                     zip(t, reach, u.shape, strict=True))] for t in self.taps])

    def __call__(self, u):
        reach = self.reach()
        value = np.asarray(self.value).astype(u.dtype)
        if self.boundary == "roll":
            return self.combine([fnp.roll(u, [-o for o in t], tuple(range(u.ndim))) for t in self.taps])
        if self.boundary == "pad":
            return fnp.pad(self.inner(u, reach), reach, constant_values=value)
        if self.boundary == "update":
            out = fnp.where(True, u, u) if u.dtype == np.bool_ else u + np.asarray(0).astype(u.dtype)
            out[tuple(slice(lo, n - hi) for (lo, hi), n in zip(reach, u.shape, strict=True))] = self.inner(u, reach)
            return out
        if self.boundary == "concat":
            mid = self.inner(u, reach)
            for a, (lo, hi) in enumerate(reach):
                window = tuple(slice(r[0], n - r[1]) if b > a else slice(None)
                               for b, (r, n) in enumerate(zip(reach, u.shape, strict=True)))
                side = u[window]
                low, high = [slice(None)] * u.ndim, [slice(None)] * u.ndim
                low[a], high[a] = slice(0, lo), slice(u.shape[a] - hi, u.shape[a])
                mid = fnp.concatenate([side[tuple(low)], mid, side[tuple(high)]], axis=a)
            return mid
        if self.boundary == "valid":
            return self.inner(u, reach)
        new = self.inner(fnp.pad(u, reach, constant_values=value), reach)
        if self.boundary == "prepad":
            return new
        inside = None
        for a, ((lo, hi), n) in enumerate(zip(reach, u.shape, strict=True)):
            i = fnp.reshape(fnp.arange(n), tuple(-1 if a == b else 1 for b in range(u.ndim)))
            here = (i >= lo) & (i < n - hi)
            inside = here if inside is None else inside & here
        return fnp.where(inside, new, u)


@st.composite
def programs(draw, max_steps: int = 12, boundaries=BOUNDARIES, min_steps: int = 1, min_taps: int = 1):
    """(function of one array, the array): steps with one or several rules."""
    rank = draw(st.integers(1, 3))
    radius = draw(st.integers(1, 3 if rank == 1 else 2))
    offsets = st.tuples(*[st.integers(-radius, radius)] * rank)
    kinds = [Step(tuple(draw(st.lists(offsets, min_size=min_taps, max_size=6))), draw(st.sampled_from(boundaries)),
                  draw(st.integers(0, 3))) for _ in range(draw(st.integers(1, 2)))]
    count = draw(st.integers(min_steps, max_steps))
    steps = [kinds[i % len(kinds)] for i in range(count)]
    least = [1] * rank
    for s in steps:
        for a, (lo, hi) in enumerate(s.reach()):
            least[a] = least[a] + lo + hi if s.boundary == "valid" else max(least[a], lo + hi)
    extra = [0, 1, 2, 5, 16, 17, 33, 64] + [200, 1000] * (rank == 1) + [130] * (rank == 2)
    shape = tuple(n + draw(st.sampled_from(extra)) for n in least)
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype == "bfloat16":
        from flowc.types import bf16
        u = rng.standard_normal(shape).astype(bf16.numpy)
    elif dtype.startswith("float"):
        u = rng.standard_normal(shape).astype(dtype)
    else:
        u = rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    extra_output = draw(st.none() | st.integers(0, count - 1))

    def run(u):
        kept = None
        for i, s in enumerate(steps):
            u = s(u)
            kept = u if i == extra_output else kept
        return u if kept is None or kept is u else (u, kept)
    return run, u


def same_bits(got, want) -> None:
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize]
        differ = a.view(kind) != b.view(kind)
        if a.dtype.kind == "f" or a.dtype.name == "bfloat16":
            differ &= ~(np.isnan(a.astype(np.float64)) & np.isnan(b.astype(np.float64)))
        assert not differ.any(), np.argwhere(differ)[:5]


@given(programs())
def test_drawn_stencils(case):
    run, u = case
    want = flowc.interpret(run, u)
    same_bits(flowc.jit(run)(u), want)
    with flowc.options(num_threads=1):
        same_bits(flowc.jit(run)(u), want)


@given(programs(max_steps=8))
def test_drawn_stencils_of_symbolic_sizes(case):
    run, u = case
    same_bits(flowc.jit(run, dynamic=True)(u), flowc.interpret(run, u))


# ---- recomputation is bounded ---------------------------------------------------------------------------------------

def jacobi(steps: int):
    def run(u):
        for _ in range(steps):
            u = np.pad(0.25 * (u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]), 1)
        return u
    return run


def instructions(program) -> int:
    """Statements of all kernels, a measure of code size."""
    return sum(1 for k in program.kernels.values() for _ in walk(k.body))


def built(fn, *specs, machine: Machine | None = None):
    graph = optimise(flowc.jit(fn).lower(*map(flowc.spec, specs)).graph, PassContext())
    return build(graph, BuildOptions(machine or Machine()))


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize("steps", [3, 30])
def test_steps_do_not_multiply(machine, steps):
    """Every step asked for the one before at four places: 30 steps were 4**30 evaluations in one kernel."""
    p = built(jacobi(steps), "f32[n, m]", machine=Machine(name=machine))
    assert len(p.plan.steps) <= steps and instructions(p) <= 150 * steps


def test_thirty_steps():
    u = np.random.default_rng(0).standard_normal((70, 45)).astype(np.float32)
    same_bits(flowc.jit(jacobi(30))(u), flowc.interpret(jacobi(30), u))


def test_rolls_do_not_multiply():
    """Conditions multiply too: each roll reads two parts of what it rolls."""
    def run(x):
        for k in range(24):
            x = np.roll(x, k + 1) + x
        return x
    x = np.arange(50.0)
    assert instructions(built(run, "f64[50]")) < 1000
    same_bits(flowc.jit(run)(x), flowc.interpret(run, x))


@st.composite
def tangles(draw):
    """Random graphs of slices, pads, flips, rolls, reversals and sums in which every node is used several times."""
    plan = [(draw(st.sampled_from(("shift", "pad", "flip", "roll", "grow", "where"))), draw(st.integers(0, 3)),
             draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 24)))]

    def run(x):
        n = x.shape[0]
        seen = [x, x * 2]
        for kind, k, i, j in plan:
            a, b = seen[-min(i, len(seen))], seen[-min(j, len(seen))]
            moved = {"shift": lambda a=a, k=k: np.pad(a[k:], (0, k)), "pad": lambda a=a, k=k: np.pad(a, (k, 2))[:n],
                     "flip": lambda a=a: a[::-1], "roll": lambda a=a, k=k: np.roll(a, k),
                     "grow": lambda a=a: np.pad(a, 1)[1:-1] + np.pad(a, 1)[2:],
                     "where": lambda a=a, b=b: np.where(a > b, b, a)}[kind]()
            seen.append(moved + b)
        return seen[-1]
    return run, np.random.default_rng(0).integers(-9, 9, draw(st.sampled_from((3, 4, 17, 70)))).astype(np.int64)


@given(tangles())
def test_tangles(case):
    run, x = case
    same_bits(flowc.jit(run)(x), flowc.interpret(run, x))
    low = flowc.jit(run).lower(x)
    program = build(optimise(low.graph, PassContext()), BuildOptions(Machine(name="gpu")))
    nodes = len(low.graph.nodes)
    assert instructions(program) <= 60 * nodes + 60


# ---- steps tile by tile ---------------------------------------------------------------------------------------------

def tiled(fn, *args, dynamic: bool = False, threads: int = 0, strict: bool = False):
    """What ``fn`` gives where every chain of steps runs tile by tile, on tiles so small that there are many, and the
    program.  Kernels obey the laws and survive printing; ``strict``: the bounds of all accesses are proved."""
    try:
        low = flowc.jit(fn, dynamic=dynamic).lower(*args)
    except SizeUnknownError:  # sizes that have to be equal and are not known to be
        low = flowc.jit(fn).lower(*args)
    graph = optimise(low.graph, PassContext())
    small = {"GAIN": 1e9, "MIN_SIZE": 0, "REDUNDANT": 9.0, "INNER": (32, 64), "LINES": (64, 96), "OUTER": (3, 8),
             "FIRST": (3, 8, 21)}
    with mock.patch.multiple(stencil, **small):
        program = build(graph, BuildOptions(Machine()))
    for k in program.kernels.values():
        verify_kernel(k)
        if strict and stencils(k):
            try:
                verify_kernel(k, strict=True)
            except VerifyError as e:
                assert e.code == "V109", e  # buffers that take turns: not proved to be different ones
        assert parse_kernel(kernel_text(k)) == k
    sizes: dict[str, int] = {}
    for p, a in zip(graph.params, args, strict=True):
        sizes |= {str(d): n for d, n in zip(p.shape, a.shape, strict=True) if not isinstance(d, int)}
    with flowc.options(num_threads=threads):
        out = compile_program(program).run(args, sizes)
    return (out[0] if len(out) == 1 else tuple(out)), program


def stencils(k) -> list[str]:
    return [n for n in k.notes if n.startswith("stencil: ") and " steps, tile " in n]


def count_tiled(program) -> int:
    return sum(len(stencils(k)) for k in program.kernels.values())


@given(programs(max_steps=10, min_steps=4, min_taps=3))
def test_drawn_steps_tile_by_tile(case):
    run, u = case
    want = flowc.interpret(run, u)
    same_bits(tiled(run, u)[0], want)
    same_bits(tiled(run, u, threads=1)[0], want)


@settings(max_examples=20)
@given(programs(max_steps=8, boundaries=("roll", "update", "where"), min_steps=4, min_taps=3))
def test_drawn_steps_of_symbolic_sizes_tile_by_tile(case):
    run, u = case
    same_bits(tiled(run, u, dynamic=True)[0], flowc.interpret(run, u))


def laplacian(u, roll: bool):
    if roll:
        return sum((np.roll(u, s, a) for a in range(u.ndim) for s in (1, -1)), -2 * u.ndim * u)
    inner = (slice(1, -1),) * u.ndim
    total = -2 * u.ndim * u[inner]
    for a in range(u.ndim):
        for s in (slice(None, -2), slice(2, None)):
            total = total + u[(*inner[:a], s, *inner[a + 1:])]
    return np.pad(total, 1)


@st.composite
def waves(draw):
    """Leapfrog: every step reads the two before it and coefficients that lie along all axes or one."""
    rank, count, roll = draw(st.integers(1, 3)), draw(st.integers(3, 7)), draw(st.booleans())
    shape = tuple(draw(st.sampled_from((2, 3, 8, 33, 70)[:4 if rank == 3 else 5])) for _ in range(rank))
    along = draw(st.integers(-1, rank - 1))
    keep = draw(st.booleans())
    dtype = draw(st.sampled_from(("float32", "float64", "int32", "int16")))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def data(*shape):
        return rng.integers(-99, 99, shape).astype(dtype)

    def run(u, before, c):
        if along >= 0:
            c = c[tuple(slice(None) if a == along else None for a in range(rank))]
        for _ in range(count):
            u, before = 2 * u - before + c * laplacian(u, roll), u
        return (u, before) if keep else u
    return run, (data(*shape), data(*shape), data(*(shape if along < 0 else (shape[along],))))


@settings(max_examples=8)
@given(waves(), st.booleans())
def test_drawn_waves(case, dynamic):
    run, args = case
    got, program = tiled(run, *args, dynamic=dynamic)
    same_bits(got, flowc.interpret(run, *args))
    assert count_tiled(program) == 1 or min(args[0].shape) < 8


def life(u):
    for _ in range(6):
        around = sum(np.roll(u, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) - u
        u = ((around == 3) | ((around == 2) & (u == 1))).astype(u.dtype)
    return u


def replaced(u):
    for _ in range(6):
        new = fnp.copy(u)
        new[1:-1, 2:-1] = 0.25 * (u[:-2, 2:-1] + u[2:, 2:-1] + u[1:-1, :-3] + u[1:-1, 3:])
        u = new
    return u


def staggered(u):
    """Two maps per step, of different sizes."""
    v = u[1:]
    for _ in range(6):
        v = v + (u[1:] - u[:-1])
        u = np.pad(v[1:] - v[:-1], ((1, 1), (0, 0))) + u
    return u, v


def heat(u):
    """The padding is taken off again in every step."""
    for _ in range(6):
        c = u[1:-1, 1:-1]
        u = np.pad(c + 0.1 * (u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4 * c), 1)
    return u


def ring(u):
    for _ in range(6):
        p = np.pad(u, 1, mode="wrap")
        u = 0.25 * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:])
    return u


PROGRAMS = {"jacobi": lambda u: jacobi(7)(u), "life": life, "replaced": replaced, "staggered": staggered, "heat": heat,
            "ring": ring}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_of_all_kinds_run_tile_by_tile(name, dynamic):
    for shape in ((3, 4), (21, 140)):
        u = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        u = (u > 0).astype(np.int8) if name == "life" else u
        got, program = tiled(PROGRAMS[name], u, dynamic=dynamic, strict=True)
        same_bits(got, flowc.interpret(PROGRAMS[name], u))
        assert count_tiled(program) >= 1, name


def test_results_on_the_way_cut_chains():
    def run(u):
        first = jacobi(4)(u)
        second = jacobi(4)(first)
        return first, np.sum(second), jacobi(4)(second)
    u = np.random.default_rng(0).standard_normal((50, 60)).astype(np.float32)
    got, program = tiled(run, u)
    same_bits(got, flowc.interpret(run, u))
    assert count_tiled(program) == 3


def test_steps_that_depend_on_what_comes_between():
    """What a step reads is computed from an earlier step by something that is no map: no chain may hold both."""
    def run(u):
        for _ in range(6):
            u = np.pad(u[2:] - u[:-2], 1) * np.sum(u)
        return u
    u = np.random.default_rng(0).integers(-3, 3, 200)
    same_bits(tiled(run, u)[0], flowc.interpret(run, u))


def test_equal_maps_that_are_no_steps():
    """Maps with equal bodies that read nothing of each other, or every result of which is wanted."""
    def apart(x):
        return [np.pad(x[:, i + 1:] - x[:, :-i - 1], ((0, 0), (0, i + 1)))[:, i] for i in range(40)]

    def history(u):
        out = []
        for _ in range(12):
            u = jacobi(1)(u)
            out.append(u)
        return tuple(out)
    u = np.random.default_rng(0).standard_normal((50, 60)).astype(np.float32)
    for run in (apart, history):
        got, program = tiled(lambda u, run=run: tuple(run(u)), u)
        same_bits(got, flowc.interpret(lambda u, run=run: tuple(run(u)), u))
        assert count_tiled(program) <= 6


def test_only_where_it_pays():
    def heavy(u):
        for _ in range(8):
            u = np.pad(np.exp(np.sin(np.tanh(u[2:]))) * np.log(np.cosh(np.arctan(u[:-2]))), 1)
        return u
    assert count_tiled(built(jacobi(10), "f32[2048, 2048]")) == 1
    assert count_tiled(built(jacobi(10), "f32[n, m]")) == 1
    assert not count_tiled(built(jacobi(10), "f32[50, 60]"))
    assert not count_tiled(built(heavy, "f32[4000000]"))
    assert not count_tiled(built(jacobi(10), "f32[n, m]", machine=Machine(name="gpu")))


def test_many_steps_are_short_code():
    """The steps of a kernel are a loop: ten cost what two do."""
    few, many = (built(jacobi(n), "f32[n, m]") for n in (6, 12))
    assert count_tiled(few) == count_tiled(many) == 1
    assert instructions(many) == instructions(few) < 80


def wave(steps: int):
    def run(u, v):
        for _ in range(steps):
            u, v = np.pad(2 * u[1:-1] - v[1:-1] + 0.25 * (u[:-2] - 2 * u[1:-1] + u[2:]), 1), u
        return u, v
    return run


def padded_first(rank: int, steps: int):
    """Steps that begin by padding: neighbours are read padded, the element itself is not, nor is the last result."""
    def run(u):
        for _ in range(steps):
            c = np.pad(u, 1)
            total = u * 0.5
            for a in range(rank):
                for s in (slice(None, -2), slice(2, None)):
                    total = total + c[tuple(s if b == a else slice(1, -1) for b in range(rank))] * (0.1 + a)
            u = total
        return u
    return run


@pytest.mark.parametrize("steps", [3, 19, 40])
def test_waves_in_several_kernels(steps):
    """What a kernel's last but one step gives to the next kernel was not written."""
    rng = np.random.default_rng(steps)
    u, v = rng.standard_normal((2, 300)).astype("float32")
    got, program = tiled(wave(steps), u, v)
    same_bits(got, flowc.interpret(wave(steps), u, v))
    assert count_tiled(program)
    assert count_tiled(built(wave(50), "f32[1000000]", "f32[1000000]"))


@pytest.mark.parametrize(("rank", "shape"), [(1, (500,)), (2, (40, 150)), (3, (30, 17, 70))])
def test_results_that_are_read_padded_and_not(rank, shape):
    run = padded_first(rank, 6)
    u = np.random.default_rng(rank).standard_normal(shape).astype("float32")
    got, program = tiled(run, u)
    same_bits(got, flowc.interpret(run, u))
    same_bits(tiled(run, u, threads=1)[0], got)
    assert count_tiled(program)


def test_three_axes():
    def heat(u):
        for _ in range(10):
            u = np.pad((u + 0.1 * laplacian(u, False))[1:-1, 1:-1, 1:-1], 1)
        return u
    assert count_tiled(built(heat, "f32[128, 128, 128]"))
    assert count_tiled(built(padded_first(2, 10), "f32[2048, 2048]"))
