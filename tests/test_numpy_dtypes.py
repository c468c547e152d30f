"""Result dtypes of NumPy functions on traced values: promotion, Python numbers, special values."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from tracing import check, record

import flowc.numpy as fnp
from flowc.diag import FlowcError
from flowc.numpy_elementwise import UFUNCS
from flowc.types import DTYPES, bf16, dtype

RNG = np.random.default_rng(7)
BF16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_DTYPES = [d.numpy for d in DTYPES.values() if d is not bf16]
A = RNG.normal(size=(3, 4))


def sample(d: np.dtype) -> np.ndarray:
    if d.kind == "b":
        return np.array([True, False, True])
    if d.kind in "iu":
        return np.array([1, 2, 3], d)
    return (np.array([0.5, 1.0, 2.0]) + (0.25j if d.kind == "c" else 0)).astype(d)


BINARY = [u for u in UFUNCS if u.nin == 2]
UNARY = [u for u in UFUNCS if u.nin == 1]


def compare_dtypes(fn, *args):
    """Result dtype as NumPy's; where NumPy refuses, so does tracing (by a FlowcError)."""
    try:
        with np.errstate(all="ignore"):
            want = fn(*args)
    except (TypeError, ValueError, OverflowError):
        with pytest.raises(FlowcError):
            record(fn, *args)
        return
    traced = record(fn, *args)
    got = [o.dtype.numpy for o in traced.graph.outputs]
    wanted = [w.dtype for w in (want if isinstance(want, tuple) else (want,))]
    assert got == wanted, (args[0].dtype, args[1:], got, wanted)


@pytest.mark.parametrize("ufunc", BINARY, ids=lambda u: u.__name__)
def test_promotion_of_all_pairs(ufunc):
    for a, b in itertools.product(NUMPY_DTYPES, repeat=2):
        compare_dtypes(ufunc, sample(a), sample(b))


@pytest.mark.parametrize("ufunc", BINARY, ids=lambda u: u.__name__)
def test_promotion_with_python_numbers(ufunc):
    for a, k in itertools.product(NUMPY_DTYPES, (True, 2, 2.5, 1 + 2j)):
        compare_dtypes(lambda x, k=k: ufunc(x, k), sample(a))
        compare_dtypes(lambda x, k=k: ufunc(k, x), sample(a))


@pytest.mark.parametrize("ufunc", UNARY, ids=lambda u: u.__name__)
def test_unary_dtypes(ufunc):
    for a in NUMPY_DTYPES:
        compare_dtypes(ufunc, sample(a))


@pytest.mark.parametrize("ufunc", list(UFUNCS), ids=lambda u: u.__name__)
def test_ufunc_values(ufunc):
    for d in (np.bool_, np.int8, np.uint8, np.int64, np.float32, np.float64, np.complex128):
        a, b = sample(np.dtype(d)), sample(np.dtype(d))[::-1].copy()
        if ufunc in (np.arccosh,):
            a = a + a if d is not np.bool_ else a
        args = (a, b)[:ufunc.nin]
        try:
            with np.errstate(all="ignore"):
                ufunc(*args)
        except TypeError:
            continue
        check(ufunc, *args, rtol=2e-3 if d in (np.bool_, np.int8, np.uint8) else 1e-6, dynamic=False)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, np.inf, -np.inf, np.nan, 1e300, 5e-324])


@pytest.mark.parametrize("ufunc", [np.hypot, np.logaddexp, np.logaddexp2, np.heaviside, np.fmax, np.fmin, np.copysign,
                                   np.maximum, np.minimum, np.arctan2], ids=lambda u: u.__name__)
def test_special_values(ufunc):
    x, y = np.meshgrid(SPECIAL, SPECIAL)
    check(ufunc, x, y, rtol=1e-15, dynamic=False)


@pytest.mark.parametrize("fn", [np.modf, np.signbit, np.reciprocal, np.sign, np.rint, np.isfinite, np.cbrt, np.fabs,
                                np.nan_to_num, np.isposinf, np.isneginf, np.sinc], ids=lambda u: u.__name__)
def test_special_values_of_one(fn):
    check(fn, SPECIAL, rtol=1e-15, dynamic=False)


def test_reciprocal_of_integers():
    check(np.reciprocal, np.array([1, -1, 2, -3]), dynamic=False)


def test_bfloat16_stays():
    x = np.arange(3).astype(BF16)
    for fn, want in ((lambda x: x + 1, BF16), (lambda x: x * 1.5, BF16), (lambda x: np.exp(x), BF16),
                     (lambda x: x + np.float32(1), np.float32), (lambda x: x.sum(), BF16), (lambda x: x.mean(), BF16),
                     (lambda x: x > 1, np.bool_), (lambda x: x + np.int8(1), BF16), (lambda x: x @ x, BF16),
                     (lambda x: np.where(x > 1, x, 0.0), BF16), (lambda x: x + 1j, np.complex64),
                     (lambda x: x + np.float16(1), np.float32), (lambda x: x.astype(np.float32), np.float32)):
        assert record(fn, x).graph.outputs[0].dtype is dtype(want)
    assert fnp.sum(np.full(1000, 1.0, BF16)) == 1000 and fnp.sum(x).dtype == BF16
    assert fnp.bfloat16 is BF16.type


def test_weak_python_arguments():
    def fn(x, k, f):
        return x * k, x + f, k * f, k + 1, k / 2, x ** k
    check(fn, np.ones(3, np.float32), 2, 0.5)
    check(lambda b: b + b, True)
    assert record(lambda k: k ** -1, 3).graph.outputs[0].dtype.numpy == np.float64


def test_comparison_with_numbers_out_of_range():
    x = np.array([0, 255], np.uint8)
    for k in (-1, 300):
        check(lambda x, k=k: (x < k, x <= k, x > k, x >= k, x == k, x != k, k < x, k >= x), x)


def test_signed_against_unsigned():
    a = np.array([-1, 0, 5, 2 ** 62])
    b = np.array([2 ** 64 - 1, 0, 4, 2 ** 62], np.uint64)
    for ufunc in (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal):
        check(lambda a, b, u=ufunc: (u(a[:, None], b), u(b[:, None], a)), a, b)


def test_numpy_scalars_are_strong():
    check(lambda x: (x + np.float64(1), np.float64(1) + x, x * np.int64(2)), np.ones(3, np.float32))


def test_powers_as_numpy_does():
    x = np.array([4.0, 0.0, np.inf])
    check(lambda x: (x ** 2, x ** 0.5, x ** -1, x ** 0, x ** 1, x ** 3.0), x)
    check(lambda x: (x ** 2, x ** 3, 2 ** x, x ** 0.5), np.array([1, 2, 3]), rtol=1e-15)
