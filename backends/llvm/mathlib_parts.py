"""Pieces of which mathlib's functions are made: polynomials, scaling, arguments far from zero.

Here: helpers over the expression builder, and operations that only the emitter knows.  Not here: functions
(mathlib_f32.py, mathlib_f64.py), the table (mathlib.py).

``rarely(cond, rare, common)`` is ``select``, but ``rare`` is computed only if a lane needs it.
``scale(p, j, n)`` is ``p * 2**floor(j)`` for a ``p`` of magnitude 1/8 to 8, which two multiplications do with one
rounding.  ``lookup(i, table)`` is an element of a table of 8 or 16 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from flowc.kernel import Builder, Expr
from flowc.types import DType, f32, f64, i32, i64, u32, u64

T = TypeVar("T")

# 2 / pi in words of 32 bits, after a word of its integer part: enough for the largest f64
TWO_OVER_PI = (
    0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB, 0xDEBBC561, 0xB7246E3A,
    0x424DD2E0, 0x06492EEA, 0x09D1921C, 0xFE1DEB1C, 0xB129A73E, 0xE88235F5, 0x2EBB4484, 0xE99C7026, 0xB45F7E41,
    0x3991D639, 0x835339F4, 0x9C845F8B, 0xBDF9283B, 0x1FF897FF, 0xDE05980F, 0xEF2F118B, 0x5A0A6D1F, 0x6D367ECF,
    0x27CB09B7, 0x4F463F66, 0x9E5FEA2D, 0x7527BAC7, 0xEBE5F17B, 0x3D0739F7, 0x8A5292EA, 0x6BFB5FB1, 0x1F8D5D08,
    0x56033046)

INT_OF = {f32: i32, f64: i64}
MANTISSA = {f32: 23, f64: 52}
BIAS = {f32: 127, f64: 1023}
INF = float("inf")
MAGIC = {f32: 1.5 * 2.0**23, f64: 1.5 * 2.0**52}  # adding it rounds to an integer, in the low bits of the sum


def dot_bf16(b: Builder, total: Expr, x: Expr, y: Expr) -> Expr:
    """A bf16 is the upper half of an f32."""
    for widen in (lambda w: b.and_(w, 0xFFFF0000), lambda w: b.shl(w, 16)):
        total = b.fma(b.bitcast(widen(x), f32), b.bitcast(widen(y), f32), total)
    return total


def dot_i16(b: Builder, total: Expr, x: Expr, y: Expr) -> Expr:
    x, y = b.bitcast(x, i32), b.bitcast(y, i32)
    for widen in (lambda w: b.shr(w, 16), lambda w: b.shr(b.shl(w, 16), 16)):
        total = b.add(total, b.mul(widen(x), widen(y)))
    return total


def dot_i8(b: Builder, total: Expr, x: Expr, y: Expr) -> Expr:
    x, y = b.bitcast(x, i32), b.bitcast(y, i32)
    for s in (0, 8, 16, 24):
        total = b.add(total, b.mul(b.and_(b.shr(b.shl(x, s), 24), 255), b.shr(b.shl(y, s), 24)))
    return total


def poly(b: Builder, x: Expr, coefficients: Sequence[float]) -> Expr:
    """The polynomial in ``x``, highest power first, by Horner's rule."""
    r = b.fma(b.const(coefficients[0], x.dtype), x, coefficients[1])
    for c in coefficients[2:]:
        r = b.fma(r, x, c)
    return r


def poly_pairs(b: Builder, x: Expr, square: Expr, coefficients: Sequence[float]) -> Expr:
    """The same by pairs of terms and powers of the square: half as many roundings and half the time in a row."""
    c = list(coefficients)
    r = b.const(c.pop(0), x.dtype) if len(c) % 2 else b.fma(x, c.pop(0), c.pop(0))
    for high, low in zip(c[::2], c[1::2], strict=True):
        r = b.fma(r, square, b.fma(x, high, low))
    return r


def poly_either(b: Builder, cond: Expr, x: Expr, one: Sequence[float], other: Sequence[float]) -> Expr:
    """The polynomial ``one`` where ``cond`` holds, else ``other``, which is shorter: choosing between two coefficients
    keeps no multiplier busy, as computing both polynomials would.  Worth it for long ones."""
    extra = len(one) - len(other)
    r = b.select(cond, poly(b, x, one[:extra + 1]), other[0])
    for c, d in zip(one[extra + 1:], other[1:], strict=True):
        r = b.fma(r, x, b.select(cond, b.const(c, x.dtype), d))
    return r


def rarely(b: Builder, cond: Expr, rare: Expr, common: Expr) -> Expr:
    return b.make("rarely", (cond, rare, common), common.dtype)


def scale(b: Builder, p: Expr, j: Expr, n: Expr) -> Expr:
    """``p * 2**n`` for p of magnitude 1/8 to 8 and i32 n, the floor of j."""
    return b.make("scale", (p, j, n), p.dtype)


def lookup(b: Builder, index: Expr, table: Sequence[float], dtype: DType) -> Expr:
    """The element ``index`` modulo the length of the table, 8 or 16; the index is an integer of the dtype's width."""
    return b.make("lookup", (index,), dtype, tuple(table))


def bits(b: Builder, x: Expr) -> Expr:
    return b.bitcast(x, INT_OF[x.dtype])


def power_of_two(b: Builder, n: Expr, dtype: DType) -> Expr:
    """``2**n`` for an integer n of the dtype's width within the normal exponents."""
    return b.bitcast(b.shl(b.add(n, BIAS[dtype]), MANTISSA[dtype]), dtype)


def two_factors(b: Builder, p: Expr, j: Expr, n: Expr) -> Expr:
    """What ``scale`` is where the machine has no such instruction."""
    wide = b.cast(n, INT_OF[p.dtype])
    first = b.shr(wide, 1)
    return b.mul(b.mul(p, power_of_two(b, first, p.dtype)), power_of_two(b, b.sub(wide, first), p.dtype))


def ldexp(b: Builder, x: Expr, n: Expr) -> Expr:
    """``x * 2**n`` for every x and n, rounded once."""
    d = x.dtype
    wide, m, bias = INT_OF[d], MANTISSA[d], BIAS[d]
    big = 2 * bias + 2 * m
    n = b.cast(b.min(b.max(n, -2 * big), 2 * big), wide)
    tiny = b.lt(b.abs(x), 2.0 ** (1 - bias))
    y = b.select(tiny, b.mul(x, 2.0 ** (m + 1)), x)
    exponent = b.and_(b.shr(bits(b, y), m), 2 * bias + 1)
    top = b.sub(b.add(exponent, n), b.select(tiny, b.const(m + 1, wide), 0))  # biased exponent of the result
    top = b.min(b.max(top, -(m + 3)), 2 * bias + 1)
    kept = b.and_(bits(b, y), (1 << m) - 1 | -(1 << (d.bits - 1)))  # sign and fraction
    mantissa = b.bitcast(b.or_(kept, bits(b, b.const(1.0, d))), d)
    # subnormal results: a power that keeps the first product normal, the second rounds
    low = b.mul(b.mul(mantissa, power_of_two(b, b.const(-(bias - 2 * m), wide), d)),
                power_of_two(b, b.sub(top, 2 * m), d))
    high = b.bitcast(b.or_(kept, b.shl(top, m)), d)
    high = b.select(b.gt(top, 2 * bias), b.copysign(b.const(INF, d), x), high)
    scaled = b.select(b.lt(top, 1), low, high)
    plain = b.and_(b.ne(x, 0.0), b.lt(b.abs(x), float("inf")))
    return b.select(plain, scaled, x)


def exponent_split(b: Builder, x: Expr, low: int) -> tuple[Expr, Expr]:
    """(e, m) with positive ``x == m * 2**e``, m at least the float with the bits ``low`` and less than twice it; e is
    an integer of the dtype's width.  ``x`` must be normal."""
    i, d = bits(b, x), x.dtype
    e = b.shr(b.sub(i, low), MANTISSA[d])
    return e, b.bitcast(b.sub(i, b.shl(e, MANTISSA[d])), d)


def nan_like(b: Builder, x: Expr) -> Expr:
    return b.const(float("nan"), x.dtype)


def two_sum(b: Builder, x: Expr, y: Expr) -> tuple[Expr, Expr]:
    """x + y and its rounding error, for |x| >= |y| or x == 0 (Dekker 1971)."""
    s = b.add(x, y)
    return s, b.sub(y, b.sub(s, x))


def two_product(b: Builder, x: Expr, y: Expr) -> tuple[Expr, Expr]:
    """x * y and its rounding error."""
    p = b.mul(x, y)
    return p, b.fma(x, y, b.neg(p))


def at_most(b: Builder, x: Expr, hi: float) -> Expr:
    """``x``, at most ``hi``; NaN stays."""
    return b.select(b.gt(x, hi), hi, x)


def clamp(b: Builder, x: Expr, lo: float, hi: float) -> Expr:
    """``x`` between lo and hi; NaN stays."""
    x = at_most(b, x, hi)
    return b.select(b.lt(x, lo), lo, x)


ROOT = (0.17485319, 0.22352167, 0.33332681)  # ((1 - h)**(-1/3) - 1) / h for |h| < 0.113


def cube_root(b: Builder, x: Expr, start: Callable[[Builder, Expr], Expr], steps: int, up: int) -> Expr:
    """The cube root of any x, without a division: ``start`` gives 1 / root to 4 %; a step of fourth order and
    ``steps - 1`` of Newton's follow, then one for the root, whose remainder is exact.  Numbers whose remainder might
    not be normal are multiplied by 2**(3*up) before; they, 0, infinities and NaN are rare."""
    d, a = x.dtype, b.abs(x)
    unsigned, m = {f32: u32, f64: u64}[d], MANTISSA[d]
    least = 3 * m  # exponent of normal numbers and their remainders
    odd = b.ge(b.sub(b.bitcast(a, unsigned), least << m), (2 * BIAS[d] + 1 - least) << m)
    tiny = b.lt(a, 2.0 ** (least - BIAS[d]))
    y = rarely(b, odd, b.select(tiny, b.mul(a, 2.0 ** (3 * up)), a), a)
    r = start(b, y)
    for step in range(steps):
        h = b.fma(b.neg(b.mul(y, r)), b.mul(r, r), 1.0)
        r = b.fma(b.mul(r, h), poly(b, h, ROOT) if step == 0 else 1.0 / 3.0, r)
    square = b.mul(r, r)
    t = b.mul(y, square)
    p, low = two_product(b, t, t)
    rest = b.fma(b.neg(low), t, b.fma(b.neg(p), t, y))
    t = b.fma(rest, b.mul(square, 1.0 / 3.0), t)
    value = b.copysign(b.select(tiny, b.mul(t, 2.0 ** -up), t), x)
    value = b.select(b.and_(b.gt(a, 0.0), b.lt(a, INF)), value, x)
    return rarely(b, odd, value, b.copysign(t, x))


def power_signs(b: Builder, x: Expr, y: Expr, value: Expr) -> Expr:
    """``|x| ** y`` made into ``x ** y``: signs and special values of C99."""
    d, a = x.dtype, b.abs(x)
    value = b.select(b.eq(a, 1.0), b.const(1.0, d), value)
    whole = b.eq(b.rint(y), y)
    half = b.mul(y, 0.5)
    odd = b.and_(whole, b.ne(b.trunc(half), half))
    below = b.lt(bits(b, x), 0)
    value = b.select(b.and_(below, odd), b.neg(value), value)
    undefined = b.and_(b.and_(b.lt(x, 0.0), b.gt(x, -INF)), b.not_(whole))
    value = b.select(undefined, nan_like(b, x), value)
    value = b.select(b.or_(b.ne(x, x), b.ne(y, y)), b.add(x, y), value)
    return b.select(b.or_(b.eq(y, 0.0), b.eq(x, 1.0)), b.const(1.0, d), value)


# ---- large angles ---------------------------------------------------------------------------------------------------

def window(b: Builder, at: Expr, count: int, last: int) -> list[Expr]:
    """``count`` words of 2/pi from word ``at``, a u32 of at most ``last``: the table is moved by the bits of ``at``."""
    words = [b.const(w, u32) for w in TWO_OVER_PI[:last + count]]
    for k in reversed(range(last.bit_length())):
        move = b.ne(b.and_(at, 1 << k), 0)
        need = count + (1 << k) - 1
        words = [b.select(move, words[i + (1 << k)], words[i]) if i + (1 << k) < len(words) else words[i]
                 for i in range(min(need, len(words)))]
    return words


def shifted(b: Builder, words: Sequence[Expr], by: Expr) -> list[Expr]:
    """Neighbouring u32 words moved left by 0 to 31 bits, as u64 values below 2**32; one less than were given."""
    wide = [b.cast(w, u64) for w in words]
    back = b.sub(32, by)
    return [b.and_(b.shr(b.or_(b.shl(x, 32), y), back), 0xFFFFFFFF) for x, y in pairwise(wide)]


def quarter_turns_f32(b: Builder, a: Expr) -> tuple[Expr, Expr]:
    """(quadrant as i32, remainder in radians as f64) of a finite f32 ``a`` > 2**16, after Payne and Hanek (1983).

    a = m * 2**E with 24-bit m.  The bits of 2/pi that matter begin where their product with a falls below 4."""
    i = b.bitcast(a, u32)
    m = b.cast(b.or_(b.and_(i, 0x7FFFFF), 0x800000), u64)
    at = b.sub(b.shr(i, 23), 150 - 30)  # E + 30
    p = shifted(b, window(b, b.shr(at, 5), 4, 4), b.cast(b.and_(at, 31), u64))
    turns = b.add(b.add(b.shl(b.mul(m, p[0]), 32), b.mul(m, p[1])), b.shr(b.mul(m, p[2]), 32))  # 2**62: a quadrant
    q = b.shr(b.add(turns, 1 << 61), 62)
    rest = b.bitcast(b.sub(turns, b.shl(q, 62)), i64)
    return b.cast(q, i32), b.mul(b.cast(rest, f64), 1.5707963267948966 * 2.0**-62)


def quarter_turns_f64(b: Builder, a: Expr) -> tuple[Expr, Expr, Expr]:
    """(quadrant as i32, remainder in radians, what its rounding took) of a finite f64 ``a`` > 2**27.

    As for f32 with a 53-bit m in digits of 32 bits: no f64 is nearer to a multiple of pi/2 than 2**-62, so that of the
    192 bits of the product the upper 128 hold a full remainder."""
    i = b.bitcast(a, u64)
    m0 = b.and_(i, 0xFFFFFFFF)
    m1 = b.or_(b.and_(b.shr(i, 32), 0xFFFFF), 0x100000)
    at = b.cast(b.sub(b.shr(i, 52), 1075 - 30), u32)
    p = shifted(b, window(b, b.shr(at, 5), 7, 31), b.cast(b.and_(at, 31), u64))
    columns: list[list[Expr]] = [[] for _ in range(7)]
    for k in range(6):  # p[5] is the lowest digit
        for m, at_least in ((m0, 5 - k), (m1, 6 - k)):
            if at_least < 6:
                product = b.mul(m, p[k])
                columns[at_least].append(b.and_(product, 0xFFFFFFFF))
                columns[at_least + 1].append(b.shr(product, 32))
    digits, carry = [], b.const(0, u64)
    for parts in columns[:6]:
        total = carry
        for x in parts:
            total = b.add(total, x)
        digits.append(b.and_(total, 0xFFFFFFFF))
        carry = b.shr(total, 32)
    top = b.or_(b.shl(digits[5], 32), digits[4])  # 2**62 is a quadrant
    q = b.shr(b.add(top, 1 << 61), 62)
    rest = b.bitcast(b.sub(top, b.shl(q, 62)), i64)
    high = b.mul(b.cast(b.shr(rest, 32), f64), 2.0**64)
    middle = b.mul(b.cast(b.and_(rest, 0xFFFFFFFF), f64), 2.0**32)
    s, e = two_sum(b, middle, b.cast(digits[3], f64))
    h, l = two_sum(b, high, s)
    l = b.add(l, b.fma(b.cast(digits[2], f64), 2.0**-32, e))
    r, low = two_product(b, h, b.const(1.5707963267948966 * 2.0**-94, f64))
    low = b.fma(h, 6.123233995736766e-17 * 2.0**-94, b.fma(l, 1.5707963267948966 * 2.0**-94, low))
    return b.cast(q, i32), *two_sum(b, r, low)
