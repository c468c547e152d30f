"""Sorting: bits against NumPy's, over dtypes, axes, sizes around the edges of every way to sort."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.nn as nn
import flowc.numpy as fnp

DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8", "int16", "uint64", "bool")
ROWS = st.sampled_from([1, 2, 5, 6, 15, 16, 17, 40])
SIZES = st.sampled_from([0, 1, 2, 3, 8, 63, 64, 65, 100, 257, 2048, 2049])
few = settings(max_examples=25, deadline=None)


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Few different numbers, so that many are equal; floats with everything that is special."""
    rng, d = np.random.default_rng(seed), np.dtype(dtype)
    if d.kind != "f":
        return rng.integers(-4 if d.kind == "i" else 0, 9 if seed % 2 else 127, shape).astype(d)
    x = rng.integers(-4, 5, shape) * (rng.random(shape).astype(d) if seed % 2 else d.type(0.5))
    special = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, np.finfo(d).tiny, -np.finfo(d).max], d)
    return np.where(rng.random(shape) < 0.3, rng.choice(special, shape), x).astype(d)


def check(x: np.ndarray, axis: int, order: np.ndarray, ordered: np.ndarray) -> None:
    assert np.array_equal(order, np.argsort(x, axis, kind="stable"))
    assert ordered.dtype == x.dtype and np.array_equal(ordered, np.sort(x, axis), equal_nan=x.dtype.kind == "f")
    turned = flowc.jit(lambda x: fnp.sort(fnp.flip(x, axis), axis))(x)
    assert turned.tobytes() == ordered.tobytes()  # the bits do not depend on the order they come in


def both(axis: int):
    return lambda x: (fnp.argsort(x, axis), fnp.sort(x, axis))


@few
@given(ROWS, SIZES, st.sampled_from(DTYPES), st.booleans(), st.integers(0, 99))
def test_orders(rows, size, dtype, across, seed):
    axis = 0 if across else 1
    x = values((size, rows) if across else (rows, size), dtype, seed)
    check(x, axis, *flowc.jit(both(axis))(x))


@few
@given(ROWS, SIZES, st.sampled_from(["float32", "int64"]), st.booleans(), st.integers(0, 99))
def test_orders_at_symbolic_sizes(rows, size, dtype, across, seed):
    x = values((size, rows) if across else (rows, size), dtype, seed)
    check(x, 1 - across, *symbolic(dtype, 1 - across)(x))


@cache
def symbolic(dtype: str, axis: int):
    return flowc.jit(both(axis)).lower(flowc.spec(f"{dtype}[n, m]")).compile()


@few
@given(SIZES, st.sampled_from(DTYPES), st.integers(0, 99))
def test_orders_of_one_row(size, dtype, seed):
    x = values((size,), dtype, seed)
    check(x, 0, *flowc.jit(both(0))(x))


@pytest.mark.parametrize("shape", [(3, 17, 5), (2, 1, 90), (5, 4, 16)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_orders_between_other_axes(shape, axis):
    x = values(shape, "float32", 1)
    check(x, axis, *flowc.jit(both(axis))(x))


def test_what_is_sorted_may_be_computed_on_the_way():
    x = values((40, 30), "float32", 1)
    fn = flowc.jit(lambda x: fnp.sort(x / 2 - 1, axis=1))
    assert np.array_equal(fn(x), np.sort(x / 2 - 1, axis=1), equal_nan=True)
    assert len(fn.lower(x).compile().compiled.program.kernels) == 1
    assert flowc.verify(fn, x)


# ---- the first few --------------------------------------------------------------------------------------------------

SHAPES = ["few", "same", "falling", "bunched"]


def row_of(kind: str, size: int, dtype: str, seed: int) -> np.ndarray:
    if kind == "few":
        return values((size,), dtype, seed)
    if kind == "same":
        return np.ones(size, dtype)
    rising = np.arange(size) % (127 if dtype == "uint8" else 1 << 30)
    return (rising[::-1] if kind == "falling" else rising * (np.arange(size) % 97 < 90)).astype(dtype)


@few
@given(st.sampled_from(SHAPES), st.sampled_from([31, 32, 33, 400, 5000]), st.sampled_from([1, 2, 7, 25]),
       st.sampled_from(["float32", "int64", "uint8"]), st.integers(0, 99))
def test_first_of_an_order(kind, size, count, dtype, seed):
    x = np.stack([row_of(kind, size, dtype, seed), values((size,), dtype, seed)])
    axis = seed % 2
    x = x if axis else x.T.copy()
    fn = flowc.jit(lambda x: fnp.argsort(x, axis)[:, :count] if axis else fnp.argsort(x, axis)[:count])
    want = np.argsort(x, axis, kind="stable")
    assert np.array_equal(fn(x), want[:, :count] if axis else want[:count])
    assert ("argselect" in fn.lower(x).compile().as_text("graph")) == (16 * count <= size)


@few
@given(st.sampled_from(["float32", "int8", "uint16", "bool", "float64"]), st.sampled_from([20, 300]),
       st.sampled_from([1, 4, 18]), st.integers(0, 99))
def test_top_k(dtype, size, k, seed):
    x = values((3, size), dtype, seed)
    best, at = flowc.jit(lambda x: nn.top_k(x, k))(x)
    numbers = x.astype("float64")
    want = np.argsort(-numbers, axis=1, kind="stable")[:, :k]
    assert np.array_equal(at, want)
    assert best.tobytes() == np.take_along_axis(x, want, 1).tobytes()
