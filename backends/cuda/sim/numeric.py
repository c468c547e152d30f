"""Arithmetic of PTX on NumPy arrays, exact to the bit.

Here: fused multiply-add with one rounding, integer division, wide products, minimum and maximum, bit operations,
rounding between float formats, conversions with saturation.  Not here: which instruction calls what (instructions.py).
Read next: instructions.py.

Arguments are arrays over lanes or NumPy scalars (values that are the same in every lane); results too.  bfloat16 lies
in uint16 and is widened for arithmetic.  Results that are NaN are some NaN: which one is not part of the model, except
for the instructions that PTX defines to give the canonical one.

Rounding to odd: to round a value once although it passes through a wider format, the wide value keeps "inexact" in its
last bit (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
2008).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

V = Any  # an array over lanes, or a NumPy scalar

U: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
NAN: dict[int, Any] = {16: np.uint16(0x7FFF), 32: np.uint32(0x7FFFFFFF), 64: np.uint64(0x7FFFFFFFFFFFFFFF)}  # canonical
SPLIT = float((1 << 27) + 1)


def bits(x: V) -> V:
    """The unsigned integers with the same bits."""
    return x.view(f"u{x.dtype.itemsize}")


# ---- bfloat16 and rounding to odd -----------------------------------------------------------------------------------

def widen(h: V) -> V:
    """bfloat16 bits to f32."""
    return (np.asarray(h).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(x: V) -> V:
    """f32 to bfloat16 bits, to nearest, ties to even."""
    u = np.asarray(x).astype(np.float32).view(np.uint32)
    up = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(NAN[16]), up).astype(np.uint16)


def _to_odd(s: V, e: V) -> V:
    """The float s, which stands for s + e with |e| at most half an ulp of s, rounded to odd."""
    s = np.asarray(s)
    u = s.view(f"i{s.dtype.itemsize}")
    away = np.where((e > 0) == (s > 0), 1, -1).astype(u.dtype)
    move = (e != 0) & ((u & 1) == 0) & np.isfinite(s) & (s != 0)
    return np.where(move, u + away, u).view(s.dtype)


def odd32(x: V) -> V:
    """f64 to f32, rounded to odd: a later rounding to a still narrower format is then the only one."""
    x = np.asarray(x)
    y = x.astype(np.float32)
    tiny = (y == 0) & (x != 0)
    y = np.where(tiny, np.copysign(np.float32(1e-45), x.astype(np.float32)), y)
    big = np.isinf(y) & np.isfinite(x)
    y = np.where(big, np.copysign(np.finfo(np.float32).max, y), y)  # all ones: odd
    return np.where(tiny | big, y, _to_odd(y, x - y))


def _two_sum(a: V, b: V) -> tuple[V, V]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: V, b: V) -> tuple[V, V]:
    p = a * b
    x, y = a * SPLIT, b * SPLIT
    ah, bh = x - (x - a), y - (y - b)
    al, bl = a - ah, b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


# ---- fused multiply-add ---------------------------------------------------------------------------------------------

def _fma_odd(a: V, b: V, c: V) -> V:
    """a*b + c in f64 rounded to odd, for operands whose product is exact in f64."""
    p = np.asarray(a).astype(np.float64) * b
    s, e = _two_sum(p, np.asarray(c).astype(np.float64))
    return _to_odd(s, np.where(np.isfinite(s), e, 0.0))


def fma32(a: V, b: V, c: V) -> V:
    return _fma_odd(a, b, c).astype(np.float32)


def fma16(a: V, b: V, c: V) -> V:
    return _fma_odd(a, b, c).astype(np.float16)


def fma_bf16(a: V, b: V, c: V) -> V:
    """bfloat16 bits to bfloat16 bits."""
    return narrow(odd32(_fma_odd(widen(a), widen(b), widen(c))))


def fma64(a: V, b: V, c: V) -> V:
    """Error-free transformations where no exponent is extreme; integers where one is."""
    a, b, c = np.broadcast_arrays(np.asarray(a), b, c)
    hi, lo = _two_product(a, b)
    th, tl = _two_sum(c, lo)
    vh, vl = _two_sum(hi, th)
    z, e = _two_sum(tl, vl)
    out = vh + _to_odd(z, e)
    rough = hi + c
    out = np.where(out == 0, rough, out)  # an exact zero: only its sign is in question, and plain arithmetic has it
    plain = _moderate(a, 400) & _moderate(b, 400) & _moderate(c, 800)
    if plain.all():
        return out
    out = np.where(np.isfinite(a) & np.isfinite(b) & np.isfinite(c), out, rough)
    hard = ~plain & np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    if hard.any():
        out[hard] = [_fma_exact(*t) for t in zip(a[hard].tolist(), b[hard].tolist(), c[hard].tolist())]
    return out


def _moderate(x: V, exponent: int) -> V:
    e = ((np.ascontiguousarray(x).view(np.uint64) >> np.uint64(52)) & np.uint64(0x7FF)).astype(np.int64) - 1023
    return (np.abs(e) <= exponent).reshape(np.shape(x)) | (x == 0)


def _fma_exact(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c if a * b == 0 else 0.0  # signs of zeros add as usual; x - x is +0
    try:
        size = abs(exact.numerator) / exact.denominator  # correctly rounded by Python
    except OverflowError:
        size = math.inf
    return -size if exact < 0 else size


# ---- integers -------------------------------------------------------------------------------------------------------

def _magnitude(x: V) -> V:
    return np.abs(np.asarray(x)).view(f"u{x.dtype.itemsize}") if x.dtype.kind == "i" else np.asarray(x)


def idiv(a: V, b: V) -> V:
    """Quotient towards zero.  All ones for b = 0, as devices give; the least value by -1 wraps."""
    q = _magnitude(a) // np.where(b == 0, 1, _magnitude(b)).astype(f"u{b.dtype.itemsize}")
    if a.dtype.kind == "i":
        q = np.where((a < 0) != (b < 0), -q, q).astype(q.dtype).view(a.dtype)
    return np.where(b == 0, ~np.zeros_like(q), q)


def irem(a: V, b: V) -> V:
    """Remainder with the sign of a; a itself for b = 0."""
    r = _magnitude(a) % np.where(b == 0, 1, _magnitude(b)).astype(f"u{b.dtype.itemsize}")
    if a.dtype.kind == "i":
        r = np.where(a < 0, -r, r).astype(r.dtype).view(a.dtype)
    return np.where(b == 0, a, r)


def mul_wide(a: V, b: V) -> V:
    """Product in twice the bits."""
    wide = f"{a.dtype.kind}{2 * a.dtype.itemsize}"
    return np.asarray(a).astype(wide) * np.asarray(b).astype(wide)


def mul_hi(a: V, b: V) -> V:
    """Upper half of the product."""
    n = 8 * a.dtype.itemsize
    if n < 64:
        return (mul_wide(a, b) >> np.asarray(n).astype(f"{a.dtype.kind}{n // 4}")).astype(a.dtype)
    x, y = np.asarray(a).view(np.uint64), np.asarray(b).view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    xl, xh, yl, yh = x & low, x >> half, y & low, y >> half
    mid = xh * yl + ((xl * yl) >> half)
    mid2 = xl * yh + (mid & low)
    hi = xh * yh + (mid >> half) + (mid2 >> half)
    if a.dtype.kind == "i":
        hi = hi - np.where(a < 0, y, 0).astype(np.uint64) - np.where(b < 0, x, 0).astype(np.uint64)
    return hi.view(a.dtype)


def mul24(a: V, b: V) -> V:
    """Low 32 bits of the product of two 24-bit numbers."""
    def cut(x: V) -> V:
        x = np.asarray(x) << x.dtype.type(8)
        return x >> x.dtype.type(8)
    return cut(a) * cut(b)


def shl(x: V, n: V) -> V:
    width = 8 * x.dtype.itemsize
    return np.where(n < width, x << np.minimum(n, width - 1).astype(x.dtype), x ^ x)


def shr(x: V, n: V) -> V:
    width = 8 * x.dtype.itemsize
    m = np.minimum(n, width - 1).astype(x.dtype)
    return x >> m if x.dtype.kind == "i" else np.where(n < width, x >> m, x ^ x)


def funnel(lo: V, hi: V, n: V, left: bool, clamp: bool) -> V:
    """shf: the 64-bit value hi:lo shifted; its upper word for left, its lower for right."""
    n = (np.minimum(n, 32) if clamp else n & np.uint32(31)).astype(np.uint64)
    both = (np.asarray(hi).astype(np.uint64) << np.uint64(32)) | np.asarray(lo).astype(np.uint64)
    return ((both << n) >> np.uint64(32) if left else both >> n).astype(np.uint32)


def popc(x: V) -> V:
    return np.bitwise_count(x).astype(np.uint32)


def clz(x: V) -> V:
    """Leading zeros, as uint32."""
    x, width = np.asarray(x), 8 * x.dtype.itemsize
    for s in (1, 2, 4, 8, 16, 32):
        if s < width:
            x = x | (x >> x.dtype.type(s))
    return np.uint32(width) - popc(x)


def bfind(x: V) -> V:
    """Position of the highest bit that differs from the sign; all ones if there is none."""
    u = bits(np.where(x < 0, ~x, x)) if x.dtype.kind == "i" else x
    return np.uint32(8 * x.dtype.itemsize - 1) - clz(u)


def brev(x: V) -> V:
    x = np.asarray(x)
    raw = np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape, x.dtype.itemsize)[..., ::-1]
    flipped = np.ascontiguousarray(_REVERSED[raw])
    return flipped.view(x.dtype).reshape(x.shape)


_REVERSED = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)


def bfe(x: V, pos: V, count: V) -> V:
    """Bits pos .. pos + count - 1, sign extended for signed types."""
    width = 8 * x.dtype.itemsize
    pos, count = (np.minimum(v & np.uint32(255), width).astype(np.uint32) for v in (np.asarray(pos), np.asarray(count)))
    end = np.minimum(pos + count, np.uint32(width))
    keep = end - np.minimum(pos, end)
    if x.dtype.kind == "u":
        field = shl(shr(x, pos), np.uint32(width) - keep)
        return np.where(keep == 0, x ^ x, shr(field, np.uint32(width) - keep))
    top = shl(x, np.uint32(width) - end)
    sign = np.where(count == 0, 0, np.where(end == pos, np.where(x < 0, -1, 0), 0)).astype(x.dtype)
    value = shr(top, np.minimum(np.uint32(width) - keep, np.uint32(width)))
    return np.where(keep == 0, sign, value)


def bfi(field: V, into: V, pos: V, count: V) -> V:
    """The low ``count`` bits of ``field`` put into ``into`` at ``pos``."""
    one = np.asarray(into).dtype.type(1)
    pos, count = np.asarray(pos) & np.uint32(255), np.asarray(count) & np.uint32(255)
    mask = shl(shl(one, count) - one, pos)
    return (into & ~mask) | (shl(field, pos) & mask)


def prmt(a: V, b: V, select: V) -> V:
    """Four bytes chosen from the eight of b:a; bit 3 of a selector repeats the sign of its byte."""
    both = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | np.asarray(a).astype(np.uint64)
    out: V = np.uint32(0)
    for k in range(4):
        s = (np.asarray(select).astype(np.uint64) >> np.uint64(4 * k)) & np.uint64(15)
        byte = (both >> ((s & np.uint64(7)) << np.uint64(3))) & np.uint64(255)
        byte = np.where(s & np.uint64(8), np.where(byte & np.uint64(128), 255, 0), byte).astype(np.uint32)
        out = out | (byte << np.uint32(8 * k))
    return out


def lop3(a: V, b: V, c: V, table: int) -> V:
    """Any function of three bits, by its truth table."""
    out = a ^ a
    for k in range(8):
        if table >> k & 1:
            out = out | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return out


def add_sat(a: V, b: V, minus: bool = False) -> V:
    """Signed 32-bit sum or difference, saturating."""
    x, y = np.asarray(a).astype(np.int64), np.asarray(b).astype(np.int64)
    return np.clip(x - y if minus else x + y, -(1 << 31), (1 << 31) - 1).astype(np.int32)


def add_carry(a: V, b: V, carry: V) -> tuple[V, V]:
    """Unsigned a + b + carry and the carry out (uint32 0 or 1)."""
    s = a + b
    t = s + np.asarray(carry).astype(s.dtype)
    return t, ((s < a) | (t < s)).astype(np.uint32)


def sub_borrow(a: V, b: V, borrow: V) -> tuple[V, V]:
    """Unsigned a - b - borrow and the borrow out."""
    s = a - b
    t = s - np.asarray(borrow).astype(s.dtype)
    return t, ((a < b) | (s < t)).astype(np.uint32)


# ---- floats ---------------------------------------------------------------------------------------------------------

def fmin(a: V, b: V, nan: bool = False) -> V:
    """min: -0 is less than +0; a NaN loses against a number, or with ``nan`` wins; the result is then canonical."""
    return _pick(a, b, np.less, np.bitwise_or, nan)


def fmax(a: V, b: V, nan: bool = False) -> V:
    return _pick(a, b, np.greater, np.bitwise_and, nan)


def _pick(a: V, b: V, better: Any, zeros: Any, nan: bool) -> V:
    a, b = np.asarray(a), np.asarray(b)
    na, nb = np.isnan(a), np.isnan(b)
    x, y = bits(a), bits(b)
    out = np.where(a == b, zeros(x, y), np.where(better(a, b), x, y))
    canonical = NAN[8 * a.dtype.itemsize]
    if nan:
        return np.where(na | nb, canonical, out).view(a.dtype)
    return np.where(na, np.where(nb, canonical, y), np.where(nb, x, out)).view(a.dtype)


def fneg(x: V) -> V:
    return (bits(x) ^ _sign(x)).view(x.dtype)


def fabs(x: V) -> V:
    return (bits(x) & ~_sign(x)).view(x.dtype)


def copysign(sign: V, x: V) -> V:
    """The magnitude of x with the sign of the first operand: PTX's order."""
    return ((bits(x) & ~_sign(x)) | (bits(sign) & _sign(x))).view(x.dtype)


def _sign(x: V) -> V:
    width = 8 * x.dtype.itemsize
    return U[width](1 << (width - 1))


def ftz(x: V) -> V:
    """Subnormal f32 to zero of the same sign."""
    return np.where(np.abs(x) < np.float32(1.1754944e-38), copysign(x, np.float32(0)), x)


def sat01(x: V) -> V:
    """Clamp to 0 .. 1; NaN gives 0."""
    return np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))


def testp(kind: str, x: V) -> V:
    tiny = np.finfo(x.dtype).tiny
    return {"finite": lambda: np.isfinite(x), "infinite": lambda: np.isinf(x), "number": lambda: ~np.isnan(x),
            "notanumber": lambda: np.isnan(x), "normal": lambda: np.isfinite(x) & (np.abs(x) >= tiny),
            "subnormal": lambda: (x != 0) & (np.abs(x) < tiny)}[kind]()


def through64(fn: Any, x: V) -> V:
    """A function of f32 evaluated in f64 and rounded: stands for the device's approximation."""
    return np.asarray(fn(np.asarray(x).astype(np.float64))).astype(x.dtype)


# ---- conversions ----------------------------------------------------------------------------------------------------

_INTEGRAL = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}


def integral(x: V, mode: str) -> V:
    """Round to an integral value of the same format."""
    return _INTEGRAL[mode](x)


def float_to_int(x: V, mode: str, dtype: str) -> V:
    """Saturating; NaN gives 0, but 1 << (width - 1) where either side has 64 bits."""
    dt: Any = np.dtype(dtype)
    x = np.asarray(x)
    info = np.iinfo(dt)
    wide = _INTEGRAL[mode](x.astype(np.float64))
    low, high = wide <= float(info.min), wide >= float(info.max)
    inner = np.where(low | high | np.isnan(wide), 0.0, wide).astype(dt)
    nan = 0 if dt.itemsize < 8 and x.dtype.itemsize < 8 else 1 << (8 * dt.itemsize - 1)
    out = np.where(low, dt.type(info.min), np.where(high, dt.type(info.max), inner))
    return np.where(np.isnan(wide), np.uint64(nan).astype(dt), out)


def int_to_int(x: V, dtype: str, saturate: bool) -> V:
    if saturate:
        info = np.iinfo(dtype)
        low, high = max(info.min, np.iinfo(x.dtype).min), min(info.max, np.iinfo(x.dtype).max)
        x = np.clip(x, x.dtype.type(low), x.dtype.type(high))
    return np.asarray(x).astype(dtype)


def int_to_float(x: V, dtype: str, mode: str) -> V:
    """Rounded once from any integer to f16, f32 or f64."""
    x = np.asarray(x)
    if x.dtype.itemsize < 8 and dtype == "f8":
        return x.astype(np.float64)
    if x.dtype.itemsize < 8:
        return to_float(x.astype(np.float64), dtype, mode)
    if mode == "rn" and dtype in ("f4", "f8"):
        return x.astype(dtype)
    hi = (x >> x.dtype.type(32)).astype(np.float64) * 4294967296.0
    s, e = _two_sum(hi, (x & x.dtype.type(0xFFFFFFFF)).astype(np.float64))
    if dtype == "f8":
        return _step(s, e, mode)
    return to_float(_to_odd(s, e), dtype, mode)


def to_float(x: V, dtype: str, mode: str = "rn") -> V:
    """A float of any format in another; ``dtype`` "bf" gives bfloat16 bits.  mode: rn, rz, rm or rp."""
    x = np.asarray(x)
    if dtype == "bf":
        if mode == "rn":
            return narrow(odd32(x) if x.dtype.itemsize == 8 else x.astype(np.float32))
        return _directed_bf(x.astype(np.float64), mode)
    y = x.astype(dtype)
    if mode == "rn" or y.dtype.itemsize >= x.dtype.itemsize:
        return y
    y = np.where(np.isinf(y) & np.isfinite(x), np.copysign(np.finfo(y.dtype).max, y), y)  # exact - y has a sign now
    return _step(y, np.asarray(x.astype(np.float64) - y.astype(np.float64)), mode)


def _directed_bf(x: V, mode: str) -> V:
    y = np.asarray(narrow(x.astype(np.float32)))
    over = np.isinf(widen(y)) & np.isfinite(x)
    y = np.where(over, (y & np.uint16(0x8000)) | np.uint16(0x7F7F), y)
    error = x - widen(y).astype(np.float64)
    down = _wrong_side(widen(y), error, mode)
    return (y.view(np.int16) + down.astype(np.int16)).view(np.uint16)


def _wrong_side(y: V, error: V, mode: str) -> V:
    """By how many units the magnitude of y must change when the exact value is y + error."""
    negative = np.signbit(y) | ((y == 0) & (error < 0))
    up = np.where(error > 0, 1, 0) if mode == "rp" else 0
    down = np.where(error < 0, 1, 0) if mode == "rm" else 0
    inward = (np.where(negative, error > 0, error < 0)).astype(np.int64) if mode == "rz" else 0
    return np.where(negative, down - up, up - down) - inward


def _step(y: V, error: V, mode: str) -> V:
    """y, the nearest value, moved to the side that ``mode`` wants."""
    y = np.asarray(y)
    if mode == "rn":
        return y
    toward = {"rp": np.inf, "rm": -np.inf, "rz": 0.0}[mode]
    move = {"rp": error > 0, "rm": error < 0, "rz": np.where(y > 0, error < 0, error > 0) & (y != 0)}[mode]
    return np.where(move & np.isfinite(y), np.nextafter(y, y.dtype.type(toward)), y)


def directed(op: str, a: V, b: V, c: V, mode: str) -> V:
    """add, sub, mul or fma in f32 or f64 with a rounding mode other than nearest."""
    one, zero = a.dtype.type(1), a.dtype.type(0)
    if op == "mul":
        c = np.copysign(zero, a) * np.copysign(one, b)  # a zero of the product's sign
    elif op != "fma":
        b, c = one, b if op == "add" else -b
    if a.dtype.itemsize == 4:
        return to_float(_fma_odd(a, b, c), "f4", mode)
    y = np.array(fma64(a, b, c))
    a, b, c = np.broadcast_arrays(a, b, c)
    error = np.zeros(y.shape)
    for i in np.ndindex(y.shape):
        if np.isfinite([a[i], b[i], c[i]]).all():
            if np.isinf(y[i]):
                y[i] = math.copysign(np.finfo(np.float64).max, y[i])
            exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
            error[i] = float(exact > float(y[i])) - float(exact < float(y[i]))
    return _step(y, error, mode)
