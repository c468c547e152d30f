"""Reductions of columns in one kernel with the maps that use them: against the interpreter, and what is fused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
from flowc import numpy as fnp

WIDE = 2048 + 37  # columns that are shared as strips, the last of them short


def softmax(x, axis):
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def normalised(x, axis):
    m = np.mean(x, axis=axis, keepdims=True)
    return (x - m) / np.sqrt(np.var(x, axis=axis, keepdims=True) + 1e-3)


def log_softmax(x, axis):
    y = x - np.max(x, axis=axis, keepdims=True)
    return y - np.log(np.sum(np.exp(y), axis=axis, keepdims=True))


def with_parts(x, axis):
    """Values in between are results, too."""
    e = np.exp(x - np.max(x, axis=axis))
    s = np.sum(e, axis=axis)
    return e, s, e / s


def centred(x, axis):
    return x - np.mean(x, axis=axis)


def shifted(x, axis):
    """Other columns are asked for: not one kernel."""
    y = x - np.max(x, axis=axis)
    return y + np.flip(np.sum(y, axis=axis))


def turned(x, axis):
    """Rows that are asked for upside down may be computed again, and are right."""
    y = np.exp(x - np.max(x, axis=axis))
    return np.flip(y, axis=axis) / np.sum(y, axis=axis)


def kernels(fn, *args) -> int:
    specs = [flowc.spec(f"{a.dtype.name.replace('float', 'f')}[{','.join(map(str, a.shape))}]") for a in args]
    return flowc.jit(fn).lower(*specs).compile().as_text("kernel").count("kernel @")


FUNCTIONS = [softmax, normalised, log_softmax, with_parts, centred, shifted, turned]


@settings(max_examples=12, deadline=None)
@given(fn=st.sampled_from(FUNCTIONS), rows=st.sampled_from([1, 2, 7, 9, 65, 256]),
       dtype=st.sampled_from(["f2", "f4", "f8"]), columns=st.sampled_from([2048, WIDE, 4096]), seed=st.integers(0, 9))
def test_columns_are_those_of_the_interpreter(fn, rows, dtype, columns, seed):
    x = np.random.default_rng(seed).normal(size=(rows, columns)).astype(dtype)
    assert flowc.verify(flowc.jit(lambda x: fn(x, 0)), x)


@pytest.mark.parametrize("fn", [softmax, normalised, log_softmax, centred])
def test_families_are_one_kernel(fn):
    x = np.random.default_rng(0).normal(size=(40, WIDE)).astype("f4")
    assert kernels(lambda x: fn(x, 0), x) == 1
    np.testing.assert_allclose(flowc.jit(lambda x: fn(x, 0))(x), fn(x.astype(float), 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fn", [softmax, normalised])
def test_an_axis_in_the_middle(fn):
    x = np.random.default_rng(1).normal(size=(3, 20, WIDE)).astype("f4")
    assert kernels(lambda x: fn(x, 1), x) == 1
    assert flowc.verify(flowc.jit(lambda x: fn(x, 1)), x)
    np.testing.assert_allclose(flowc.jit(lambda x: fn(x, 1))(x), fn(x.astype(float), 1), rtol=1e-4, atol=1e-5)


def test_two_axes_at_once():
    def fn(x):
        return x / np.sum(x * x, axis=(0, 1))
    x = np.random.default_rng(2).normal(size=(6, 5, WIDE)).astype("f4")
    assert kernels(fn, x) == 1
    assert flowc.verify(flowc.jit(fn), x)


def test_values_in_between_stay_results():
    x = np.random.default_rng(3).normal(size=(30, WIDE)).astype("f4")
    for got, want in zip(flowc.jit(lambda x: with_parts(x, 0))(x), with_parts(x.astype(float), 0), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_other_columns_are_not_near():
    x = np.random.default_rng(4).normal(size=(30, WIDE)).astype("f4")
    assert kernels(lambda x: shifted(x, 0), x) > 1
    np.testing.assert_allclose(flowc.jit(lambda x: shifted(x, 0))(x), shifted(x.astype(float), 0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(4000, 2048), (40, 100)])
def test_long_and_narrow_columns_stay_apart(shape):
    assert kernels(lambda x: softmax(x, 0), np.zeros(shape, "f4")) > 1


def test_bits_do_not_depend_on_threads():
    x = np.random.default_rng(5).normal(size=(100, 3 * WIDE)).astype("f4")
    f = flowc.jit(lambda x: fnp.softmax(x, axis=0))
    want = f(x)
    with flowc.options(num_threads=1):
        np.testing.assert_array_equal(flowc.jit(lambda x: fnp.softmax(x, axis=0))(x), want)
