"""The exact meaning of every scalar instruction, as NumPy functions: what emitted code is held to.

Here: ``NUMPY_MEANING``, a table from instruction name to a function of arrays.  Not here: statements (spmd.py), the
instructions themselves (kernel.py).  Read next: spmd.py.

Functions take arrays (or NumPy scalars) of one dtype and return that dtype, or bool for comparisons; ``cast`` and
``bitcast`` take the target dtype second.  Integers wrap.  16-bit floats are computed in f32 and rounded once per
instruction.  Transcendental functions of f32 are computed in f64 and rounded: within half a unit in the last place and
a little, for f64 they are NumPy's own.  Callers turn floating-point warnings off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from flowc.ops.rules import each, in_f32, in_f64, ndtr
from flowc.types import DType, bf16, dtype, f32

Array = Any  # np.ndarray or np.generic


# ---- integers -------------------------------------------------------------------------------------------------------

def idiv(a: Array, b: Array) -> Array:
    """Floor of a / b; 0 where b is 0; the least value by -1 wraps to itself."""
    special = (b == 0) | _minus_one(b)
    q = np.floor_divide(a, np.where(special, np.ones_like(b), b))
    return np.where(b == 0, np.zeros_like(q), np.where(_minus_one(b), np.negative(a), q))


def imod(a: Array, b: Array) -> Array:
    """a - b * floor(a / b) with the sign of b; 0 where b is 0."""
    special = (b == 0) | _minus_one(b)
    r = np.remainder(a, np.where(special, np.ones_like(b), b))
    return np.where(special, np.zeros_like(r), r)


def _minus_one(b: Array) -> Array:
    return b == -1 if np.asarray(b).dtype.kind == "i" else np.zeros(np.shape(b), bool)


def _shift_fits(b: Array) -> Array:
    return (b >= 0) & (b < 8 * np.asarray(b).dtype.itemsize)


def shl(a: Array, b: Array) -> Array:
    fits = _shift_fits(b)
    return np.where(fits, np.left_shift(a, np.where(fits, b, np.zeros_like(b))), np.zeros_like(a))


def shr(a: Array, b: Array) -> Array:
    fits = _shift_fits(b)
    beyond = np.where(a < 0, ~np.zeros_like(a), np.zeros_like(a))  # the sign alone is left
    return np.where(fits, np.right_shift(a, np.where(fits, b, np.zeros_like(b))), beyond)


# ---- fused multiply-add ---------------------------------------------------------------------------------------------

def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Sum and its exact rounding error (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Product and its exact rounding error (Dekker, with Veltkamp's splitting); no overflow or underflow assumed."""
    p = a * b

    def halves(x: Array) -> tuple[Array, Array]:
        c = x * 134217729.0  # 2**27 + 1
        high = c - (c - x)
        return high, x - high
    (ah, al), (bh, bl) = halves(a), halves(b)
    return p, al * bl - (((p - ah * bh) - al * bh) - ah * bl)


def _round_to_odd(s: Array, error: Array) -> Array:
    """``s + error`` rounded to odd, given the nearest double ``s`` and its error: rounding that once more to a narrower
    format is then correct (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008)."""
    s = np.asarray(s, np.float64)
    inexact = (error != 0) & np.isfinite(s) & np.isfinite(error)
    even = (s.view(np.int64) & 1) == 0
    return np.where(inexact & even, np.nextafter(s, np.where(error > 0, np.inf, -np.inf)), s)


def _fma32(a: Array, b: Array, c: Array) -> Array:
    p = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact: 48 bits
    s, error = _two_sum(p, np.asarray(c, np.float64))
    return _round_to_odd(s, error).astype(np.float32)


def _fma64(a: Array, b: Array, c: Array) -> Array:
    a, b, c = np.broadcast_arrays(a, b, c)
    p, low = _two_product(a, b)
    t, t_low = _two_sum(c, low)
    v, v_low = _two_sum(p, t)
    out = v + _round_to_odd(*_two_sum(t_low, v_low))
    plain = a * b + c
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    # the transformation needs room on both sides of every exponent
    safe = finite & (_middling(a) & _middling(b) & _middling(c))
    out = np.where(safe, out, plain)
    endless = np.isfinite(a) & np.isfinite(b) & np.isinf(c)
    out = np.where(endless, c, out)  # where the product alone would overflow
    hard = finite & ~safe & (a != 0) & (b != 0)
    if hard.any():
        out = np.array(out)
        for at in zip(*np.nonzero(np.atleast_1d(hard)), strict=True):
            x, y, z = (np.atleast_1d(v)[at] for v in (a, b, c))
            np.atleast_1d(out)[at] = _exact_fma(float(x), float(y), float(z))
    return out


def _middling(x: Array) -> Array:
    magnitude = np.abs(x)
    return (magnitude > 2.0 ** -400) & (magnitude < 2.0 ** 400)


def _exact_fma(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return 0.0  # of two terms with opposite signs
    try:
        magnitude = float(abs(exact))
    except OverflowError:
        magnitude = math.inf
    return magnitude if exact > 0 else -magnitude


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with one rounding; for 16-bit floats the rounding to f32 and then that of the result."""
    return _fma32(a, b, c) if np.asarray(a).dtype == np.float32 else _fma64(a, b, c)


def dot_bf16(a: Array, b: Array, c: Array) -> Array:
    """a plus the product of the high halves, rounded, plus that of the low halves, rounded."""
    def halves(x: Array) -> tuple[Array, Array]:
        x = np.asarray(x, np.uint32)
        return (x & np.uint32(0xFFFF0000)).view(np.float32), (x << np.uint32(16)).view(np.float32)
    (bh, bl), (ch, cl) = halves(b), halves(c)
    return _fma32(bl, cl, _fma32(bh, ch, a))


def dot_i16(a: Array, b: Array, c: Array) -> Array:
    """a plus the products of the upper and of the lower halves, all wrapping."""
    b, c = (np.asarray(x, np.uint32).view(np.int32) for x in (b, c))
    with np.errstate(over="ignore"):
        return a + (b >> 16) * (c >> 16) + ((b << 16) >> 16) * ((c << 16) >> 16)


def dot_i8(a: Array, b: Array, c: Array) -> Array:
    """a plus the products of the unsigned bytes of b and the signed ones of c, all wrapping."""
    b, c = (np.asarray(x, np.uint32).view(np.int32) for x in (b, c))
    with np.errstate(over="ignore"):
        return a + sum(((b << s) >> 24 & 255) * ((c << s) >> 24) for s in (0, 8, 16, 24))


# ---- conversions ----------------------------------------------------------------------------------------------------

def cast(x: Array, to: DType) -> Array:
    """The value in another dtype.  Float to integer truncates and saturates, NaN gives 0; integers wrap; anything but
    zero is true; bf16 is reached through f32."""
    x = np.asarray(x)
    source = dtype(x.dtype)
    if source.floating and source.bits == 16 and to is not source:
        x, source = x.astype(np.float32), f32
    if to.kind == "b":
        return x != 0
    if source.floating and to.integer:
        return _saturated(x.astype(np.float64), to)
    if to is bf16 or to.floating and to.bits == 16 and source.integer:
        x = x.astype(np.float32)
    return x.astype(to.numpy)


def _saturated(x: np.ndarray, to: DType) -> np.ndarray:
    info = np.iinfo(to.numpy)
    end = 2.0 ** (to.bits - (to.kind == "i"))  # the first value above the range; its least value is exact
    whole = np.trunc(x)
    low, high = whole < float(info.min), whole >= end
    inside = np.where(low | high | np.isnan(x), 0.0, whole).astype(to.numpy)
    return np.where(high, to.numpy.type(info.max), np.where(low, to.numpy.type(info.min), inside))


def bitcast(x: Array, to: DType) -> Array:
    return np.ascontiguousarray(x).view(to.numpy).reshape(np.shape(x))


# ---- the table ------------------------------------------------------------------------------------------------------

_HALF_TOO: dict[str, Callable[..., Any]] = {  # exact or correctly rounded in f32 and f64
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "fmod": np.fmod, "neg": np.negative,
    "abs": np.abs, "min": np.minimum, "max": np.maximum, "sqrt": np.sqrt, "fma": fma, "floor": np.floor,
    "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint, "copysign": np.copysign, "ldexp": np.ldexp,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_WHOLE: dict[str, Callable[..., Any]] = {
    "idiv": idiv, "imod": imod, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shl": shl, "shr": shr, "select": np.where, "cast": cast, "bitcast": bitcast, "dot_bf16": dot_bf16,
    "dot_i16": dot_i16, "dot_i8": dot_i8}
_ROUNDED: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10,
    "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "erf": each(math.erf), "erfc": each(math.erfc), "ndtr": each(ndtr), "cbrt": np.cbrt,
    "pow": np.power, "atan2": np.arctan2}

NUMPY_MEANING: dict[str, Callable[..., Any]] = {
    **{n: in_f32(f) for n, f in _HALF_TOO.items()}, **_WHOLE, **{n: in_f64(f) for n, f in _ROUNDED.items()}}
