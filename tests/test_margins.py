"""What a mask over positions leaves out is not computed, and nobody can tell from the results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp

MASKS = {
    "causal": lambda np, i, j: j <= i,
    "strict": lambda np, i, j: j < i - 3,
    "ahead": lambda np, i, j: np.logical_not(j - 1 < i),
    "window": lambda np, i, j: (j <= i + 2) & (j > i - 17),
    "falling": lambda np, i, j: i + j < 40,
    "steep": lambda np, i, j: 2 * j <= 3 * i + 1,
    "columns": lambda np, i, j: j < 37,
    "narrow": lambda np, i, j: np.astype(j, np.int32) <= np.astype(i, np.int32),
    "numbers": lambda np, i, j: np.where(j <= i, np.float32(1), np.float32(0)) != 0,
}


def attend(np, mask, fill, q, k, v):
    i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
    s = np.where(MASKS[mask](np, i, j), q @ np.swapaxes(k, -1, -2), np.asarray(fill, dtype=q.dtype))
    e = np.exp(s - np.max(s, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True) @ v


def operands(seed, lead, rows, columns, depth, out, dtype="float32"):
    r = np.random.default_rng(seed)
    return [r.standard_normal((*lead, *s)).astype(dtype) for s in ((rows, depth), (columns, depth), (columns, out))]


def is_cut(fn, *args) -> bool:
    return ": i64 = 1" in flowc.jit(fn).lower(*args).as_text("kernel")


@settings(max_examples=15)
@given(mask=st.sampled_from(sorted(MASKS)), fill=st.sampled_from([-np.inf, -1e9, -2.0, 0.0, np.inf, np.nan]),
       lead=st.sampled_from([(), (2,)]), rows=st.integers(1, 150), columns=st.integers(2, 150),
       out=st.integers(1, 40), dtype=st.sampled_from(["float32", "float64"]), dynamic=st.booleans(),
       special=st.sampled_from([None, "rows", "columns", "values"]), at=st.floats(0, 0.999),
       what=st.sampled_from([np.inf, -np.inf, np.nan]))
def test_margins_change_nothing(mask, fill, lead, rows, columns, out, dtype, dynamic, special, at, what):
    q, k, v = operands(rows, lead, rows, columns, 5, out, dtype)
    for name, x in (("rows", q), ("columns", k), ("values", v)):
        if special == name:
            x[..., int(at * x.shape[-2]), 0] = what

    def fn(q, k, v):
        return attend(fnp, mask, fill, q, k, v)
    with np.errstate(all="ignore"):  # the interpreter warns
        report = flowc.verify(flowc.jit(fn, dynamic=dynamic), q, k, v)
        assert report, report
        with flowc.options(num_threads=1):
            one = flowc.jit(fn)(q, k, v)
        with flowc.options(num_threads=2):
            two = flowc.jit(fn)(q, k, v)
    assert np.array_equal(one, two, equal_nan=True)


@pytest.mark.parametrize("mask", sorted(MASKS))
def test_every_kind_of_mask_is_seen(mask):
    q, k, v = operands(0, (2,), 60, 70, 5, 20)
    assert is_cut(lambda q, k, v: attend(fnp, mask, -np.inf, q, k, v), q, k, v)


@settings(max_examples=15)
@given(rows=st.integers(20, 90), columns=st.integers(210, 250), diagonal=st.integers(-40, 300), lead=st.booleans(),
       values=st.sampled_from([(1, 0), (0.0, np.nan), (-np.inf, 2.5), (False, True), (True, False), (-0.0, 0.0)]))
def test_triangles_of_numbers_are_comparisons(rows, columns, diagonal, lead, values):
    a = np.where(np.tri(rows, columns, diagonal, dtype=bool), *map(np.array, values))
    a = a[None] if lead else a
    x = np.random.default_rng(0).random(a.shape) < 0.5

    def fn(x):
        return np.where(x, a, a[..., :1])
    report = flowc.verify(fn, x)
    assert report and np.array_equal(flowc.jit(fn)(x), fn(x), equal_nan=a.dtype != bool), report
    graph = flowc.jit(fn).lower(x).compile().as_text("graph")
    uniform = diagonal <= -rows or diagonal >= columns - 1
    assert uniform or "iota" in graph, graph


def test_a_mask_made_by_numpy_is_seen():
    q, k, v = operands(5, (2,), 70, 80, 6, 9)
    seen = np.tri(70, 80, dtype=bool)

    def fn(q, k, v):
        s = np.where(seen, q @ np.swapaxes(k, -1, -2), -np.inf)
        e = np.exp(s - np.max(s, axis=-1, keepdims=True))
        return e @ v
    assert is_cut(fn, q, k, v)
    report = flowc.verify(fn, q, k, v)
    assert report, report
    other = seen.copy()
    other[30, 5] = False
    report = flowc.verify(lambda q, k: np.where(other, q @ np.swapaxes(k, -1, -2), 0), q, k)
    assert report, report


def test_long_rows_whose_sums_are_collected_in_chunks():
    q, k, v = operands(1, (), 9000, 5000, 2, 3)
    window = [x[:200] for x in (q,)] + [k, v]

    def fn(q, k, v):
        i, j = fnp.arange(q.shape[0])[:, None] + 4050, fnp.arange(k.shape[0])
        s = fnp.where((j <= i) & (j > i - 100), q @ k.T, -fnp.inf)
        e = fnp.exp(s - fnp.max(s, axis=-1, keepdims=True))
        return e / fnp.sum(e, axis=-1, keepdims=True) @ v
    assert is_cut(fn, *window)
    report = flowc.verify(fn, *window)
    assert report, report


def test_rows_that_are_written():
    """Without a second product the margins of the rows are results, too."""
    q, k, _ = operands(2, (), 300, 64, 8, 1)

    def fn(q, k):
        i, j = fnp.arange(q.shape[0])[:, None], fnp.arange(k.shape[0])
        s = fnp.where(j <= i, q @ k.T, -1e30)
        e = fnp.exp(s - fnp.max(s, axis=-1, keepdims=True))
        return e / fnp.sum(e, axis=-1, keepdims=True), fnp.max(s, axis=-1)
    assert is_cut(fn, q, k)
    report = flowc.verify(fn, q, k)
    assert report, report


def test_a_mask_with_more_in_it_than_positions():
    """Padding known at run time, and an offset that differs per column: the first is no obstacle, the second is one."""
    q, k, v = operands(3, (), 50, 60, 4, 6)
    here = np.random.default_rng(4).random(60) < 0.7

    def padded(q, k, v, here):
        s = fnp.where(fnp.logical_and(fnp.tri(50, 60, dtype=bool), here), q @ k.T, -fnp.inf)
        return fnp.exp(s - fnp.max(s, axis=-1, keepdims=True)) @ v

    def biased(q, k, v, here):
        s = fnp.where(fnp.tri(50, 60, dtype=bool), q @ k.T, -1e9) + here
        return fnp.exp(s - fnp.max(s, axis=-1, keepdims=True)) @ v
    assert is_cut(padded, q, k, v, here) and not is_cut(biased, q, k, v, here.astype(np.float32))
    for fn, extra in ((padded, here), (biased, here.astype(np.float32))):
        report = flowc.verify(fn, q, k, v, extra)
        assert report, report
