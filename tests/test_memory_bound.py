"""Kernels that memory bounds: tiles of transposes, strips of columns, tallies, streaming stores.

Every mechanism is drawn over layouts, sizes around its tile edges and dtypes, and compared with NumPy or with the
interpreter; one thread and several give the same bits.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.nn as nn
import flowc.numpy as fnp
import flowc.ops
from flowc.backends.llvm import emit_stream
from flowc.numpy_core import op_call
from flowc.op import get
from flowc.passes import moments, reductions

NUMBERS = ("float32", "float64", "float16", "int32", "int64", "uint8")
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "int16": "i16", "int32": "i32", "int64": "i64",
         "uint8": "u8"}
EDGE = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129])
few = settings(max_examples=12, deadline=None)


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, shape).astype(dtype)


def kernels(fn, *specs: str) -> str:
    return flowc.jit(fn).lower(*map(flowc.spec, specs)).compile().as_text("kernel")


@pytest.fixture
def small_streams(monkeypatch):
    monkeypatch.setattr(emit_stream, "STREAM", 1 << 20)
    monkeypatch.setattr(emit_stream, "TURNED", 1 << 12)
    monkeypatch.setenv("FLOWC_CACHE", "0")


# ---- transposes -----------------------------------------------------------------------------------------------------

@few
@given(EDGE, EDGE, st.sampled_from(NUMBERS), st.booleans())
def test_turned_matrix(m, n, dtype, pointwise):
    x = numbers((m, n), dtype)
    fn = (lambda x: fnp.transpose(x) + 1) if pointwise else fnp.transpose
    assert np.array_equal(flowc.jit(fn)(x), x.T + 1 if pointwise else x.T)


@few
@given(st.tuples(EDGE, EDGE, st.sampled_from([1, 3, 18])), st.permutations(range(3)), st.sampled_from(NUMBERS))
def test_turned_axes(shape, perm, dtype):
    x = numbers(shape, dtype)
    assert np.array_equal(flowc.jit(lambda x: fnp.transpose(x, tuple(perm)))(x), np.transpose(x, perm))


@few
@given(EDGE, EDGE)
def test_long_bodies_read_turned_tiles(m, n):
    x, y = numbers((m, n), "float32"), numbers((n, m), "float32", 1)

    def fn(x, y):
        t = fnp.transpose(x)
        return t * 3 + y * (t - 1) * (y + 2) - t * y
    want = x.T * 3 + y * (x.T - 1) * (y + 2) - x.T * y
    assert np.array_equal(flowc.jit(fn)(x, y), want)


@few
@given(EDGE, EDGE)
def test_turned_at_symbolic_sizes(m, n):
    exe = flowc.jit(fnp.transpose).lower(flowc.spec("f32[n, m]")).compile()
    x = numbers((m, n), "float32")
    assert np.array_equal(exe(x), x.T)


ROWS = st.sampled_from([1, 2, 15, 16, 17, 48, 64, 80, 130, 192, 256, 272, 300, 512])


@few
@given(st.tuples(ROWS, ROWS, st.sampled_from([1, 3, 16])), st.permutations(range(3)), st.booleans(),
       st.sampled_from([("float32", "float32"), ("float64", "float32"), ("uint8", "float32"), ("int16", "int16"),
                        ("uint8", "uint8"), ("float32", "uint8"), ("int64", "int64")]))
def test_turned_into_streams(small_streams, shape, perm, static, dtypes):
    x = numbers(shape, dtypes[0])

    def fn(x):
        return fnp.astype(fnp.transpose(x, tuple(perm)), dtypes[1])
    exe = flowc.jit(fn) if static else flowc.jit(fn).lower(flowc.spec(f"{SHORT[dtypes[0]]}[a, b, c]")).compile()
    assert np.array_equal(exe(x), np.transpose(x, perm).astype(dtypes[1]))


@few
@given(ROWS, ROWS, st.sampled_from([1, 5]), st.sampled_from(["float32", "uint8", "int64"]), st.booleans())
def test_turned_beside_what_is_not(small_streams, m, n, lead, dtype, static):
    x, y = numbers((lead, m, n), dtype), numbers((n, lead, m), dtype, 1)
    run = flowc.jit(lambda x, y: fnp.transpose(x, (2, 0, 1)) - y)
    if not static:
        run = run.lower(*(flowc.spec(f"{SHORT[dtype]}[{shape}]") for shape in ("a, b, c", "c, a, b"))).compile()
    assert np.array_equal(run(x, y), np.transpose(x, (2, 0, 1)) - y)


def test_lines_of_a_turned_result_are_streamed(small_streams):
    for spec in ("f32[500, 512]", "f32[a, b]", "u8[512, 640]", "f64[a, 2, 16]"):
        text = flowc.jit(fnp.transpose).lower(flowc.spec(spec)).compile().as_text("llvm")
        assert "nontemporal" in text or spec == "f32[500, 512]", spec  # rows of 500 do not begin with a line


def test_what_is_turned():
    assert "turned: " in kernels(lambda x: fnp.transpose(x) * 2, "f32[n, m]")
    assert "turned: " not in kernels(lambda x: x * 2, "f32[n, m]")


# ---- reductions -----------------------------------------------------------------------------------------------------

@few
@given(st.sampled_from([1, 7, 8, 9, 65, 1023, 1025, 2100]), st.sampled_from([1, 64, 65, 130, 1023, 1024, 1030]),
       st.sampled_from(NUMBERS))
def test_columns(rows, columns, dtype):
    x = numbers((rows, columns), dtype)
    flowc.verify(lambda x: (fnp.sum(x, axis=0), fnp.max(x, axis=0)), x)
    assert np.array_equal(flowc.jit(lambda x: fnp.argmax(x, axis=0))(x), np.argmax(x, axis=0))


@few
@given(EDGE, EDGE, st.sampled_from(NUMBERS))
def test_reductions_of_transposes(m, n, dtype):
    x = numbers((m, n), dtype)
    flowc.verify(lambda x: fnp.sum(fnp.transpose(x) * 2, axis=1), x)
    flowc.verify(lambda x: fnp.max(fnp.transpose(x) + fnp.arange(m).astype(dtype), axis=0), x)


@few
@given(st.tuples(*[st.sampled_from([1, 2, 3, 7, 20])] * 4), st.sets(st.integers(0, 3), min_size=1),
       st.sampled_from(NUMBERS), st.sampled_from(["sum", "max", "prod"]), st.booleans())
def test_reductions_of_scattered_axes(shape, axes, dtype, name, symbolic):
    x = numbers(shape, dtype) % 2 + (1 if name == "prod" else 0)
    fn = flowc.jit(lambda x: getattr(fnp, name)(x * 2 - 1, axis=tuple(axes)), dynamic=symbolic)
    want = getattr(np, name)(x * 2 - 1, axis=tuple(axes), **({} if name == "max" else {"dtype": fn(x).dtype}))
    assert np.array_equal(fn(x), want)


@few
@given(st.sampled_from([(4, 64), (8, 130), (2, 12, 5000), (6, 70)]), st.sampled_from(NUMBERS),
       st.sampled_from(["sum", "max", "dot"]))
def test_rows_walked_together(shape, dtype, name):
    """The bits of rows walked one by one."""
    x, w = numbers(shape, dtype) - numbers(shape, dtype, 1), numbers(shape[-1:], dtype)
    fns = {"sum": lambda x, w: fnp.sum(x * 2, axis=-1), "max": lambda x, w: fnp.max(x + w, axis=-1),
           "dot": lambda x, w: (fnp.sum(x * w, axis=-1), fnp.sum(x, axis=-1))}
    with pytest.MonkeyPatch.context() as m:
        alone = flowc.jit(fns[name])(x, w)
        for limit in ("LARGE", "LONG"):
            m.setattr(reductions, limit, 0)
        together = flowc.jit(fns[name])
        for a, b in zip(np.atleast_2d(alone), np.atleast_2d(together(x, w)), strict=True):
            assert a.tobytes() == b.tobytes()
        if shape[-2] % 4 == 0 and dtype == "float32":
            text = together.lower(flowc.spec(f"f32{list(shape)}"), flowc.spec(f"f32[{shape[-1]}]")).compile()
            assert text.as_text("kernel").count("fold") >= (8 if shape[-2] % 8 == 0 or name == "dot" else 4)


def test_16_bit_sums_of_scattered_axes_are_rounded_once():
    x = np.full((64, 3, 64), 1 + 2 ** -10, np.float16)
    want = np.sum(x.astype(np.float32), axis=(0, 2)).astype(np.float16)
    assert np.array_equal(flowc.jit(lambda x: fnp.sum(x, axis=(0, 2)))(x), want)


def test_scattered_axes_are_reduced_along_memory():
    for dtype, reduce in (("f32", fnp.sum), ("i32", fnp.max), ("bool", fnp.all)):
        text = kernels(lambda x, reduce=reduce: reduce(x, axis=(0, 2, 3)), f"{dtype}[4, 8, 16, 16]")
        assert " // " not in text and " % " not in text

    def spread(x):
        mean = fnp.mean(x, axis=(0, 2, 3), keepdims=True)
        return (x - mean) / fnp.sqrt(fnp.var(x, axis=(0, 2, 3), keepdims=True))
    plan = flowc.jit(spread).lower(flowc.spec("f32[32, 8, 16, 16]")).compile().as_text("plan")
    assert int(plan.split("arena ")[1].split()[0]) < 4096, "no difference is written"


def test_the_grain_is_found():
    text = flowc.jit(lambda x: fnp.sum(fnp.exp(fnp.transpose(x)), axis=1)).lower(
        flowc.spec("f32[n, m]")).compile().as_text("graph")
    assert "transpose" not in text


@few
@given(st.integers(1, 300), st.sampled_from(["float32", "float64", "float16"]), st.data())
def test_positions_of_special_values(n, dtype, data):
    x = np.array(data.draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan]), min_size=n,
                                    max_size=n)), dtype)
    assert flowc.jit(fnp.argmax)(x) == np.argmax(x)
    assert flowc.jit(fnp.argmin)(x) == np.argmin(x)


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_positions_where_all_are_equal(value):
    for n in (1, 70, 70_000):
        x = np.full(n, value, np.float32)
        assert flowc.jit(fnp.argmax)(x) == flowc.jit(fnp.argmin)(x) == 0


# ---- moments --------------------------------------------------------------------------------------------------------

@pytest.fixture
def small_pieces(monkeypatch):
    for name, value in (("LARGE", 1 << 8), ("MANY", 1 << 8), ("PIECE", (64, 256)), ("ROWS", (4, 8))):
        monkeypatch.setattr(moments, name, value)
    monkeypatch.setenv("FLOWC_CACHE", "0")


@few
@given(st.sampled_from([(4096,), (700, 3), (61, 67), (40, 130), (8, 16, 33), (1021,), (64, 1100), (96, 5000)]),
       st.data(), st.sampled_from(["float32", "float64"]), st.sampled_from([0.0, 3.0, 1000.0]))
def test_moments_in_one_trip(small_pieces, shape, data, dtype, shift):
    axes = data.draw(st.sampled_from([None, *({(0,), (len(shape) - 1,), (*range(len(shape) - 1),)} - {()})]))
    x = (np.random.default_rng(0).standard_normal(shape) + shift).astype(dtype)

    def fn(x):
        return fnp.sum(x, axis=axes), fnp.mean(x, axis=axes), fnp.var(x, axis=axes), fnp.std(x * 2, axis=axes)
    flowc.verify(fn, x)
    wide = x.astype("float64")
    for got, want in zip(flowc.jit(fn)(x), (wide.sum(axes), wide.mean(axes), wide.var(axes), 2 * wide.std(axes)),
                         strict=True):
        eps = np.finfo(dtype).eps
        assert np.allclose(got, want, rtol=200 * eps, atol=200 * eps * max(1.0, shift) * (want.size != x.size))


def test_large_moments_read_once():
    def reads(axis, spec):
        text = kernels(lambda x: (fnp.mean(x, axis=axis), fnp.var(x, axis=axis)), spec)
        return text.count(f"in {spec}")
    assert reads(None, "f32[5000, 1100]") == reads(0, "f32[5000, 1100]") == 1
    assert reads(None, "f32[1000003]") == 2  # pieces, and the few elements behind the last of them
    x = np.random.default_rng(0).standard_normal((5500, 1030), dtype="float32") + np.float32(100)
    for axis in (None, 0, 1):
        flowc.verify(lambda x, axis=axis: (fnp.mean(x, axis=axis), fnp.var(x, axis=axis)), x)
        assert np.allclose(flowc.jit(lambda x, axis=axis: fnp.var(x, axis=axis))(x), np.var(x.astype("f8"), axis=axis),
                           rtol=1e-5)


@few
@given(st.sampled_from([1, 5, 8, 9, 64]), st.sampled_from([1, 3, 64, 65, 1024, 1030, 4100]), st.sampled_from([1, 3]))
def test_walks_over_the_same_rows(rows, columns, lead):
    x = np.random.default_rng(rows).standard_normal((lead, rows, columns), dtype="float32")

    def fn(x):
        top = fnp.max(x, axis=1)
        e = fnp.exp(x - top[:, None])
        return top, fnp.sum(e, axis=1), fnp.argmax(e, axis=1)
    flowc.verify(fn, x)


# ---- tallies --------------------------------------------------------------------------------------------------------

@few
@given(st.sampled_from([0, 1, 3, 255, 256, 257, 20_000, 70_001]), st.integers(1, 40), st.integers(-3, 3),
       st.sampled_from(["int32", "int64", "uint8"]))
def test_counts(n, values, first, dtype):
    k = np.random.default_rng(n).integers(0, 30, n).astype(dtype)
    bins = np.arange(first, first + values)
    if dtype == "uint8":
        bins = bins - min(first, 0)
    got = flowc.jit(lambda k: fnp.sum(fnp.equal(k[:, None], bins), axis=0))(k)
    assert np.array_equal(got, np.sum(np.equal(k[:, None], bins), axis=0))


@few
@given(st.sampled_from([1, 257, 40_000]), st.integers(1, 20))
def test_segments_of_integers(n, count):
    rng = np.random.default_rng(n)
    x, s = rng.integers(-9, 9, n).astype("int32"), rng.integers(-2, 22, n)
    want = np.zeros(count, "int32")
    np.add.at(want, s[(s >= 0) & (s < count)], x[(s >= 0) & (s < count)])
    assert np.array_equal(flowc.jit(lambda x, s: nn.segment_sum(x, s, count))(x, s), want)


@few
@given(st.sampled_from([1, 257, 65_536, 70_001]), st.sampled_from([1, 3, 16, 300]), st.sampled_from([(), (3,), (2, 5)]),
       st.sampled_from(["float32", "float64", "float16", "int32", "uint8"]), st.booleans())
def test_segments_of_rows(n, count, tail, dtype, static):
    rng = np.random.default_rng(n)
    x, s = rng.integers(0, 9, (n, *tail)).astype(dtype), rng.integers(-2, count + 3, n)
    if dtype == "float16":
        x, s = x[:500], s[:500]  # sums stay exact
    want = np.zeros((count, *tail), dtype)
    np.add.at(want, s[(s >= 0) & (s < count)], x[(s >= 0) & (s < count)])

    def fn(x, s):
        return nn.segment_sum(x, s, count)
    shape = ", ".join(("n", *map(str, tail)))
    run = flowc.jit(fn) if static else flowc.jit(fn).lower(flowc.spec(f"{SHORT[dtype]}[{shape}]"),
                                                           flowc.spec("i64[n]")).compile()
    assert np.array_equal(run(x, s), want)


def test_rounded_sums_of_segments_pass_verification():
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal((80_000, 3)).astype("float32"), rng.integers(0, 4, 80_000)
    assert "tally" in kernels(lambda x, s: nn.segment_sum(x, s, 4), "f32[80000, 3]", "i64[80000]")
    flowc.verify(lambda x, s: nn.segment_sum(x, s, 4), x, s)
    ones = np.full(80_000, 0.1, "float32")
    flowc.verify(lambda x, s: nn.segment_sum(x, s, 4), ones, s)


def test_positions_of_updates_are_computed_with_them():
    def fn(x):
        return nn.segment_sum(fnp.ones_like(x), fnp.astype(fnp.floor(x * 256), "int64"), 256)
    assert kernels(fn, "f32[100000]").count("kernel @") == 2  # pieces and their sum


def test_counts_become_tallies():
    assert "tally" in kernels(lambda k: fnp.sum(fnp.equal(k[:, None], np.arange(24)), axis=0), "i32[n]")
    assert "tally" not in kernels(lambda k: fnp.sum(fnp.equal(k[:, None], np.arange(24)), axis=0), "i32[8]")


@few
@given(st.sampled_from([1, 5, 65, 300]), st.sampled_from([1, 3, 70]), st.integers(0, 1))
def test_running_sums_compute_their_operands(m, n, axis):
    x = numbers((m, n), "float32")
    assert np.array_equal(flowc.jit(lambda x: fnp.cumsum(x * 2 + 1, axis=axis))(x),
                          np.cumsum(x * 2 + 1, axis=axis, dtype="float32"))


@few
@given(st.sampled_from([1, 15, 16, 17, 40]), st.sampled_from([1, 3, 63, 64, 65, 200]), st.sampled_from([None, 2]),
       st.sampled_from(["float32", "float64", "int64", "int16"]), st.booleans(), st.booleans())
def test_running_values_of_rows(rows, length, lead, dtype, products, static):
    x = numbers((rows, length) if lead is None else (lead, rows, length), dtype) - 1
    fn, want = (fnp.cumprod, np.cumprod) if products else (fnp.cumsum, np.cumsum)
    with np.errstate(all="ignore"):
        run = flowc.jit(lambda x: fn(x, axis=-1))
        if not static:
            run = run.lower(flowc.spec(f"{SHORT[dtype]}[{'a, b, c'[:x.ndim * 3 - 2]}]")).compile()
        assert np.array_equal(run(x), want(x, axis=-1), equal_nan=True)
        flowc.verify(lambda x: op_call("linear_scan", x * 0.5, x, axis=x.ndim - 1), x.astype("float32"))


@few
@given(st.sampled_from([1, 3, 4, 5, 9]), st.sampled_from([1, 64, 65, 256, 300, 1024, 1100, 5000]), st.booleans())
def test_running_values_of_columns(rows, columns, static):
    x = np.random.default_rng(rows).standard_normal((rows, columns), dtype="float32")
    run = flowc.jit(lambda x: fnp.cumsum(x, axis=0))
    if not static:
        run = run.lower(flowc.spec("f32[n, m]")).compile()
    assert np.array_equal(run(x), np.cumsum(x, axis=0))


# ---- streaming stores -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(300_000,), (262_144,), (600, 512), (601, 511)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "float16"])
def test_streamed_results(small_streams, shape, dtype):
    x = numbers(shape if dtype != "uint8" else (shape[0] * 8, *shape[1:]), dtype)
    assert np.array_equal(flowc.jit(lambda x: x + 3)(x), x + 3)
    if x.ndim == 2:
        assert np.array_equal(flowc.jit(lambda x: fnp.transpose(x) + 3)(x), x.T + 3)


def test_streamed_results_of_symbolic_size(small_streams):
    exe = flowc.jit(lambda x: x * 2).lower(flowc.spec("f32[n]")).compile()
    for n in (0, 1, 17, 262_143, 262_144, 300_001):
        x = numbers((n,), "float32")
        assert np.array_equal(exe(x), x * 2)


def test_unaligned_results_are_stored_as_usual(small_streams):
    from flowc.backends.llvm.cpu import compile_program
    from flowc.passes.build import BuildOptions, build
    from flowc.passes.pipeline import optimise
    graph = flowc.jit(lambda x: x + 1).lower(flowc.spec("f32[524288]")).traced.graph
    native = compile_program(build(optimise(graph), BuildOptions()))
    (step,) = native.plan.steps
    assert "nontemporal" in native.as_text("llvm")
    if platform.machine() == "x86_64":
        assert "movnt" in native.as_text("asm")  # LLVM merges stores that look alike
    x, raw = numbers((524288,), "float32"), np.zeros(524288 * 4 + 128, np.uint8)
    for skip in (0, 4, 16, 36):
        start = -raw.ctypes.data % 64 + skip
        out = raw[start:start + x.nbytes].view("float32")
        out[:] = 0
        native.run_step(step, dict(zip(step.buffers, (x, out), strict=True)), {})
        assert np.array_equal(out, x + 1)


# ---- joined and padded operands -------------------------------------------------------------------------------------

LONGER = st.sampled_from([1, 2, 17, 255, 256, 257, 300, 4095, 4097, 5000])
JOINS = {
    "join": lambda x, y: fnp.concatenate([x, y, x]),
    "pad": lambda x, y: fnp.pad(x, (3, 5)) * 2,
    "roll": lambda x, y: fnp.roll(x, 3) + 1,
    "turned": lambda x, y: fnp.concatenate([x, y])[::-1],
    "every": lambda x, y: fnp.concatenate([x, y])[::3],
    "grid": lambda x, y: fnp.pad(fnp.stack([x, x + 1]), 1),
    "rows": lambda x, y: fnp.concatenate([fnp.stack([x, x]), fnp.stack([x, x])], axis=1),
    "inner": lambda x, y: fnp.stack([x, x * 2], axis=1),
    "chosen": lambda x, y: fnp.where(fnp.concatenate([x, y]) > 4, fnp.concatenate([y, x]), 0),
    "many": lambda x, y: fnp.concatenate([x, y] * 9),
}


@few
@given(st.sampled_from(sorted(JOINS)), LONGER, LONGER, st.sampled_from(NUMBERS), st.booleans())
def test_joined_operands(name, m, n, dtype, symbolic):
    if symbolic:  # compiled once each
        dtype = "float32"
    x, y = numbers((m,), dtype), numbers((n,), dtype, 1)
    exe = symbolic_join(name) if symbolic else flowc.jit(JOINS[name])
    assert np.array_equal(exe(x, y), JOINS[name](x, y))


@cache
def symbolic_join(name: str):
    return flowc.jit(JOINS[name]).lower(flowc.spec("f32[m]"), flowc.spec("f32[n]")).compile()


def test_joined_operands_are_read_without_masks():
    assert all("load(" not in kernels(JOINS[name], "f32[m]", "f32[n]") for name in ("join", "pad", "roll"))


@few
@given(st.sampled_from([1, 3, 64, 1000, 5000]), st.sampled_from([1, 5, 40]))
def test_rows_read_by_position_are_lanes(n, count):
    x, at = numbers((50, n), "float32"), np.arange(count) * 7 % 50
    assert np.array_equal(flowc.jit(lambda x, at: x[at] * 2)(x, at), x[at] * 2)
    assert " vector " in kernels(lambda x, at: x[at] * 2, f"f32[50, {n}]", "i64[c]")


@few
@given(parts=st.integers(2, 9), n=EDGE, rows=st.integers(1, 3), dtype=st.sampled_from([*NUMBERS, "bool"]),
       kind=st.sampled_from(["stack", "repeat", "shuffle", "two sums"]))
def test_interleaved_operands(parts, n, rows, dtype, kind):
    """Neighbours that come from different places: every operand is read in whole vectors."""
    r = np.random.default_rng(n)
    xs = [(r.standard_normal((rows, n)) * 9).astype(dtype) for _ in range(parts)]

    def fn(*xs):
        if kind == "repeat":
            return fnp.repeat(xs[0], parts, axis=1) + xs[1][:, :1]
        mixed = fnp.reshape(fnp.stack(xs, axis=-1), (rows, n * parts))
        if kind == "shuffle":
            return fnp.reshape(fnp.swapaxes(fnp.stack([mixed, mixed + xs[1][:, :1]]), 0, 1), (2 * rows, n * parts))
        return (mixed, mixed + xs[0][:, -1:]) if kind == "two sums" else mixed
    report = flowc.verify(fn, *xs)
    assert report, report


def test_strands_are_read_in_order():
    x = np.ones((50, 96), np.float32)
    kernel = flowc.jit(lambda x, y: fnp.reshape(fnp.stack([x, y], axis=-1), (50, 192))).lower(x, x).as_text("kernel")
    assert "in 2 unroll" in kernel and "// 2)]" not in kernel, kernel


# ---- writes at positions --------------------------------------------------------------------------------------------

@few
@given(st.sampled_from([1, 255, 256, 257, 1000]), st.sampled_from(["random", "sorted", "one", "runs"]),
       st.sampled_from(["float32", "float64", "float16", "int32"]), st.booleans(), st.booleans())
def test_many_writes_in_order(n, kind, dtype, add, symbolic):
    at = np.random.default_rng(n).integers(-2, 42, n)
    at = {"random": at, "sorted": np.sort(at), "one": at * 0 + 7, "runs": np.repeat(at, 3)[:n]}[kind]
    x, v = numbers((40,), dtype), (np.random.default_rng(1).standard_normal(n) * 8).astype(dtype)
    if symbolic:
        dtype = "float32"
        x, v = x.astype(dtype), v.astype(dtype)
    want = get("scatter_add" if add else "scatter").numpy(x, at, v, axis=0)
    exe = symbolic_writes(add) if symbolic else flowc.jit(writes(add))
    assert exe(x, at, v).tobytes() == want.tobytes()


def writes(add: bool):
    return lambda x, at, v: op_call("scatter_add" if add else "scatter", x, at, v, axis=0)


@cache
def symbolic_writes(add: bool):
    return flowc.jit(writes(add)).lower(*map(flowc.spec, ("f32[k]", "i64[n]", "f32[n]"))).compile()


# ---- rows in one kernel ---------------------------------------------------------------------------------------------

def test_log_softmax_is_one_kernel():
    for shape in ("f32[n, 1000]", "f32[40, m]"):
        text = kernels(lambda x: nn.log_softmax(x, axis=1), shape)
        assert text.count("kernel @") == 1 and text.count("log(") == 1
    x = numbers((5, 300), "float32")
    want = x - np.log(np.sum(np.exp(x), axis=1, keepdims=True))
    assert np.allclose(flowc.jit(lambda x: nn.log_softmax(x, axis=1))(x), want)


def test_axes_of_one_place_leave_the_lanes_alone():
    for text in (kernels(lambda x, at: fnp.sum(fnp.take_along_axis(x, at[:, None], axis=1)), spec, "i64[300]")
                 for spec in ("f32[300, 40]", "f32[300, n]")):
        assert "in 64 vector" in text


# ---- threads --------------------------------------------------------------------------------------------------------

def test_same_bits_with_any_number_of_threads():
    code = """
import hashlib, numpy as np, flowc, flowc.numpy as fnp, flowc.nn as nn
x = np.random.default_rng(0).standard_normal((1500, 1300), dtype=np.float32)
k = np.random.default_rng(1).integers(0, 30, 100_000)
h = hashlib.sha256()
for fn, a in ((lambda x: fnp.sum(x, axis=0), x), (lambda x: fnp.sum(fnp.transpose(x), axis=0), x),
              (lambda x: fnp.exp(fnp.transpose(x)), x), (lambda x: fnp.argmax(x, axis=0), x),
              (lambda k: fnp.sum(fnp.equal(k[:, None], np.arange(24)), axis=0), k),
              (lambda k: nn.segment_sum(fnp.sin(fnp.astype(fnp.arange(100_000), "float32")), k, 30), k)):
    h.update(np.ascontiguousarray(flowc.jit(fn)(a)).tobytes())
print(h.hexdigest())
"""
    found = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "FLOWC_NUM_THREADS": t},
                            capture_output=True, text=True, check=True).stdout for t in ("1", "2", "3")}
    assert len(found) == 1


# ---- one element of every row ---------------------------------------------------------------------------------------

@few
@given(st.integers(1, 3), st.integers(0, 2), st.booleans(), st.sampled_from(["float32", "float64", "float16", "int32"]),
       st.integers(0, 99))
def test_gradients_of_picked_elements(rank, axis, symbolic, dtype, seed):
    rng = np.random.default_rng(seed)
    axis %= rank
    shape = tuple(int(n) for n in rng.choice([1, 2, 3, 5, 8], rank))
    x = rng.integers(-9, 9, shape).astype(dtype)
    rows = tuple(1 if a == axis else n for a, n in enumerate(shape))
    at = rng.integers(-shape[axis], shape[axis], rows)
    w = rng.integers(1, 9, rows).astype(dtype)

    def adjoint(x, at, w):
        y = fnp.zeros_like(x)
        y[tuple(at if a == axis else fnp.reshape(fnp.arange(n), [n if b == a else 1 for b in range(rank)])
                for a, n in enumerate(x.shape))] += w
        return y
    want = np.zeros_like(x)
    np.put_along_axis(want, at, w, axis)
    f = flowc.jit(adjoint)
    kind = {"float32": "f32", "float64": "f64", "float16": "f16", "int32": "i32"}[dtype]
    sizes = list("nml"[:rank]) if symbolic else [str(n) for n in shape]
    there = ", ".join("1" if a == axis else n for a, n in enumerate(sizes))
    exe = f.lower(flowc.spec(f"{kind}[{', '.join(sizes)}]"), flowc.spec(f"i64[{there}]"),
                  flowc.spec(f"{kind}[{there}]")).compile()
    assert np.array_equal(exe(x, at, w), want)
    g = flowc.grad(lambda x: fnp.sum(fnp.take_along_axis(x, at, axis) * w))
    if dtype.startswith("float"):
        assert np.array_equal(flowc.jit(g)(x), want)


def test_picked_elements_need_no_scatter():
    step = flowc.value_and_grad(nn.cross_entropy)
    for sizes in (("f32[n, m]", "i64[n]"), ("f32[8, n, 50]", "i64[8, n]"), ("f32[64, 10]", "i64[64]")):
        exe = flowc.jit(step).lower(*map(flowc.spec, sizes)).compile()
        assert "scatter" not in exe.as_text("graph")


# ---- rows in order --------------------------------------------------------------------------------------------------

@few
@given(st.sampled_from([1, 7, 8, 9, 40, 1030]), st.sampled_from([65, 96, 300, 1024]),
       st.sampled_from(["sum", "max", "argmax", "prod", "var"]),
       st.sampled_from(["float32", "float64", "float16", "int32"]))
def test_columns_of_any_number_of_rows_have_the_same_bits(m, n, op, dtype):
    x = numbers((m, n), dtype)

    def f(x):
        return getattr(fnp, op)(x, axis=0)
    kind = {"float32": "f32", "float64": "f64", "float16": "f16", "int32": "i32"}[dtype]
    exe = flowc.jit(f).lower(flowc.spec(f"{kind}[m, {n}]")).compile()
    small = flowc.jit(f).lower(flowc.spec(f"{kind}[{m}, {n}]")).compile()
    assert np.asarray(exe(x)).tobytes() == np.asarray(small(x)).tobytes()
