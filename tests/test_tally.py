"""Tallies: counts by comparison, positions in narrow numbers, and kernels that write what they compute on the way.

Drawn over sizes around blocks and pieces, numbers of places, dtypes and orders of the outputs; compared with NumPy.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.nn as nn
import flowc.numpy as fnp
from flowc.backends.runtime import compile_program
from flowc.passes.build import BuildOptions, build
from flowc.passes.manager import PassContext
from flowc.passes.pipeline import optimise
from flowc.passes.schedule import Machine

few = settings(max_examples=12, deadline=None)
SIZES = st.sampled_from([1, 31, 33, 4_096, 4_097, 32_769, 70_001])


def kernels(fn, *specs: str) -> str:
    return flowc.jit(fn).lower(*map(flowc.spec, specs)).compile().as_text("kernel")


def count(np, k, bins, dtype="int32"):
    return np.sum(np.astype(np.equal(k[:, None], bins), dtype), axis=0)


@few
@given(SIZES, st.integers(1, 60), st.sampled_from([0, -3, 5, 126]), st.booleans(),
       st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]),
       st.sampled_from(["int8", "int32", "uint64"]))
def test_counts_of_all_integers(n, places, first, ends, dtype, counts):
    info = np.iinfo(dtype)
    first = max(first, info.min)
    places = min(places, info.max + 1 - first)
    if ends:
        first = int(info.max) - places + 1
    rng = np.random.default_rng(n)
    k = (rng.integers(first - 2, first + places + 2, n, dtype="int64" if info.max < 2 ** 63 - 9 else "uint64")
         if not ends else np.full(n, info.max, dtype) - rng.integers(0, min(60, info.max), n).astype(dtype))
    k = k.astype(dtype)
    k[::7], k[3::11] = info.min, info.max
    bins = np.array([first + i for i in range(places)], dtype)
    want = count(np, k, bins, counts)
    assert np.array_equal(flowc.jit(lambda k: count(fnp, k, bins, counts))(k), want)
    one = flowc.jit(lambda k: count(fnp, k, bins, counts)).lower(flowc.spec(f"{SHORT[dtype]}[n]")).compile()
    assert np.array_equal(one(k), want)


SHORT = {**{f"int{b}": f"i{b}" for b in (8, 16, 32, 64)}, **{f"uint{b}": f"u{b}" for b in (8, 16, 32, 64)},
         "float32": "f32", "float64": "f64"}


def test_registers_of_any_length():
    k = np.random.default_rng(0).integers(-2, 30, 70_001).astype("int32")
    graph = optimise(flowc.jit(lambda k: (count(fnp, k, np.arange(24)), k + 1)).lower(k).graph, PassContext())
    for bits in (0, 64, 128, 256, 512):
        counts, more = compile_program(build(graph, BuildOptions(Machine(vector_bits=bits)))).run((k,), {})
        assert np.array_equal(counts, count(np, k, np.arange(24))) and np.array_equal(more, k + 1)


def test_values_that_count_up_only_as_long_as_they_fit():
    k = np.arange(20_000).astype("uint8")
    got = flowc.jit(lambda k: fnp.sum(fnp.equal(k[:, None], fnp.astype(fnp.arange(300), "uint8")), axis=0))(k)
    assert np.array_equal(got, np.sum(k[:, None] == np.arange(300).astype("uint8"), axis=0))


@few
@given(SIZES, st.sampled_from([3, 24, 60, 700]), st.sampled_from(["float32", "float64"]), st.booleans(),
       st.permutations(range(5)), st.integers(1, 5))
def test_maps_are_written_by_the_kernel_that_counts(n, places, dtype, static, order, wanted):
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    x[::17] = np.nan

    def fn(x):
        np = fnp
        y = np.where(x > 0.3, x * 2.0, np.clip(x, -0.5, 0.5))
        k = np.astype(np.floor((y + 1) * 9), "int32")
        all_of_them = (y, count(np, k, np.arange(places)), k, x - 1, nn.segment_sum(y * y, k, places))
        return tuple(all_of_them[i] for i in order[:wanted])
    flowc.verify(fn, x)
    run = flowc.jit(fn) if static else flowc.jit(fn).lower(flowc.spec(f"{SHORT[dtype]}[n]")).compile()
    with flowc.options(num_threads=1):
        one = flowc.jit(fn)(x)
    for a, b in zip(run(x), one, strict=True):
        assert a.tobytes() == b.tobytes()


@few
@given(st.sampled_from([65_536, 70_001]), st.sampled_from([(3,), (2, 5)]), st.booleans())
def test_rows_are_written_by_the_kernel_that_adds_them(n, tail, narrow):
    rng = np.random.default_rng(n)
    x, s = rng.integers(-9, 9, (n, *tail)).astype("int64"), rng.integers(0, 7, n)

    def fn(x, s):
        y = x * 2 + 1
        return nn.segment_sum(y, s, 7), *((s + 1,) if narrow else ()), y
    got = flowc.jit(fn)(x, s)
    want = np.zeros((7, *tail), "int64")
    np.add.at(want, s, x * 2 + 1)
    assert np.array_equal(got[0], want) and np.array_equal(got[-1], x * 2 + 1)
    assert not narrow or np.array_equal(got[1], s + 1)


def test_one_pass():
    def counts(x):
        y = fnp.where(x > 0.3, x * 2.0, fnp.clip(x, -0.5, 0.5))
        k = fnp.astype(fnp.floor((y + 1) * 8), "int32")
        return y, count(fnp, k, np.arange(24)), x + 1

    def means(x, s):
        return nn.segment_sum(x, s, 50), fnp.bincount(s, length=50)
    for text, walks in ((kernels(counts, "f32[n]"), 1), (kernels(counts, "f32[4000000]"), 1),
                        (kernels(means, "f32[n]", "i64[n]"), 1)):
        assert text.count("tally: pieces") == walks and text.count("kernel @") <= 5, text


@few
@given(SIZES, st.sampled_from([1, 20, 52, 300]))
def test_bincount(n, length):
    x = np.random.default_rng(n).integers(0, length + 9, n)
    want = np.bincount(x, minlength=length)[:length]
    assert np.array_equal(flowc.jit(lambda x: fnp.bincount(x, length=length))(x), want)
    x -= 4
    want = np.bincount(x[x >= 0], minlength=length)[:length]
    assert np.array_equal(flowc.jit(lambda x: fnp.bincount(x, length=length))(x), want)


@few
@given(st.sampled_from(["float32", "float64"]), st.sampled_from([-1.0, 0.5, np.inf, np.nan]), st.booleans())
def test_extremes_with_a_number(dtype, number, left):
    x = np.array([np.nan, -np.inf, np.inf, -2, -1, 0.25, 0.5, 3] * 5, dtype)

    def fn(np, x):
        c = np.asarray(number, dtype=dtype)
        return [op(c, x) if left else op(x, c) for op in (np.maximum, np.minimum)]
    for a, b in zip(flowc.jit(lambda x: fn(fnp, x))(x), fn(np, x), strict=True):
        assert np.array_equal(a, b, equal_nan=True)


@few
@given(st.sampled_from(["float32", "float64"]), st.sampled_from(["int8", "uint8", "int32", "uint32", "int64"]))
def test_conversions_saturate(dtype, to):
    info = np.iinfo(to)
    x = np.array([np.nan, -np.inf, np.inf, -1e30, 1e30, -0.9, -1, 1.9, info.min, info.max, info.max + 1.0,
                  float(info.min) - 1, 0.0] * 5, dtype)
    flowc.verify(lambda x: fnp.astype(x, to), x)
    assert flowc.jit(lambda x: fnp.astype(x, to))(x)[:5].tolist() == [0, info.min, info.max, info.min, info.max]
