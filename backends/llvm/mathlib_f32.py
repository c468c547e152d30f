"""Functions of f32 as primitive expressions, without branches.

Here: one function per instruction; special values fall out of the arithmetic or are selected at the end.
Not here: f64 (mathlib_f64.py), polynomials by pieces (mathlib_pieces.py), the table and the bounds of the errors
(mathlib.py).

The polynomials are minimax fits of our own: Remez' exchange for the weight that makes the result's relative error
even, coefficients rounded one after the other and the rest fitted again.  Reductions are the classic ones: Cody and
Waite, Software Manual for the Elementary Functions (1980); Payne and Hanek (1983) for large angles.
"""

from __future__ import annotations

from flowc.backends.llvm.mathlib_logs import (
    LOG2S,
    LOG10S,
    LOGS,
    SERIES,
    entry,
    log1p_rest,
    logarithm,
    near_one_apart,
    reduce,
)
from flowc.backends.llvm.mathlib_parts import (
    INF,
    MAGIC,
    at_most,
    bits,
    clamp,
    cube_root,
    exponent_split,
    nan_like,
    poly,
    power_of_two,
    power_signs,
    quarter_turns_f32,
    rarely,
    scale,
    two_sum,
)
from flowc.backends.llvm.mathlib_pieces import ERF_F32, ERFCX_F32, NDTRX_F32, TANH_F32, Pieces, pieces
from flowc.kernel import Builder, Expr
from flowc.types import f32, f64, i32, i64

LN2, LN2_LOW = 0.6931471824645996, -1.9046542121259336e-09
LN2_SHORT, LN2_REST = 0.693145751953125, 1.4286068203094173e-06  # a multiple of 2**-16
LOG2_E, LOG2_E_LOW = 1.4426950216293335, 1.925963033500011e-08
LOG10_E, LOG10_E_LOW = 0.4342944920063019, -1.0103049952192578e-08
PI_2, PI_2_LOW, PI_2_LAST = 1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15
PI, PI_LOW = 3.1415927410125732, -8.742277657347586e-08
TURN = 71476.0        # largest angle that three parts of pi/2 reduce

EXP = (0.00138213055, 0.00836866815, 0.0416682586, 0.166665211, 0.49999994)
EXP2 = (1.43209036e-05, 0.000154521971, 0.00133379665, 0.00961808674, 0.0555040501, 0.240226507, 0.693147182)
LOG2_F64 = (-0.14998599933708473, 0.15713947701279318, -0.11195446263057821, 0.12371591592097664,
            -0.1449800088713542, 0.16086874132110662, -0.18030500059085766, 0.20607756468644503, -0.24044988845399187,
            0.28853938681062169, -0.36067375348102337, 0.48089834477411891, -0.72134752046032879)
SIN = (2.83268992e-06, -0.000198530703, 0.0083333794, -0.166666672)
COS = (2.44325638e-05, -0.00138873106, 0.0416666456)
TAN = (0.00437231269, 9.88741303e-05, 0.0108270766, 0.0212862976, 0.0540589057, 0.133326754, 0.333333492)
SINH = (2.78221319e-06, 0.000198428956, 0.00833331048, 0.166666672)
ATAN = (-0.0017875476, 0.0108873611, -0.0311270021, 0.0579065457, -0.0840047523, 0.109511748, -0.142640516,
        0.19998531, -0.333332986)
ASIN = (0.0376968421, 0.0143148107, 0.0318390988, 0.0445133746, 0.0750052184, 0.166666597)


def to_integer(b: Builder, x: Expr, factor: float) -> tuple[Expr, Expr]:
    """rint(x * factor) as f32 and as i32, for small results."""
    k = b.fma(x, factor, MAGIC[f32])
    return b.sub(k, MAGIC[f32]), b.sub(bits(b, k), 0x4B400000)


# ---- exponentials ---------------------------------------------------------------------------------------------------

def exp_parts(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """(p, j, n) with exp(x) = p * 2**j, p about 0.7 to 1.42 and j whole, n the same as i32; ``x`` within +-20000."""
    j, n = to_integer(b, x, 1.4426950408889634)
    r = b.fma(j, -LN2_LOW, b.fma(j, -LN2, x))
    return b.fma(r, b.fma(r, poly(b, r, EXP), 1.0), 1.0), j, n


def exp(b: Builder, x: Expr) -> Expr:
    return scale(b, *exp_parts(b, clamp(b, x, -104.0, 89.0)))


def exp2(b: Builder, x: Expr) -> Expr:
    x = clamp(b, x, -151.0, 129.0)
    j, n = to_integer(b, x, 1.0)
    return scale(b, exp2_near(b, b.sub(x, j)), j, n)


def exp2_near(b: Builder, r: Expr) -> Expr:
    """2**r for -1/2 <= r <= 1/2."""
    return b.fma(r, poly(b, r, EXP2), 1.0)


def expm1(b: Builder, x: Expr) -> Expr:
    y = clamp(b, x, -20.0, 89.0)
    j, n = to_integer(b, y, 1.4426950408889634)
    r = b.fma(j, -LN2_LOW, b.fma(j, -LN2, y))
    p, lost = two_sum(b, r, b.mul(b.mul(r, r), poly(b, r, EXP)))  # expm1(r)
    half = power_of_two(b, b.sub(n, 1), f32)    # 2**n would overflow before the result does
    out = b.fma(lost, half, b.fma(p, half, b.sub(half, 0.5)))
    return b.select(b.lt(b.abs(x), 2.0**-25), x, b.add(out, out))


def _exp_half(b: Builder, a: Expr) -> Expr:
    """exp(a) / 2 for a >= 0, right up to where sinh overflows."""
    p, j, n = exp_parts(b, at_most(b, a, 90.0))
    return scale(b, p, b.sub(j, 1.0), b.sub(n, 1))


def sinh(b: Builder, x: Expr) -> Expr:
    a, z = b.abs(x), b.mul(x, x)
    e = _exp_half(b, a)
    far = b.copysign(b.sub(e, b.div(0.25, e)), x)
    near = b.fma(b.mul(x, z), poly(b, z, SINH), x)
    return b.copysign(b.select(b.lt(a, 1.0), near, far), x)


def cosh(b: Builder, x: Expr) -> Expr:
    e = _exp_half(b, b.abs(x))
    return b.add(e, b.div(0.25, e))


def tanh(b: Builder, x: Expr) -> Expr:
    *_, d, slope, value = pieces(b, b.abs(x), TANH_F32)
    return b.copysign(b.fma(d, slope, value), x)


# ---- logarithms -----------------------------------------------------------------------------------------------------

def _log_near(b: Builder, r: Expr, low: Expr | None, index: Expr) -> Expr:
    return b.add(entry(b, index, LOGS, f32), b.fma(b.mul(r, r), poly(b, r, SERIES[f32]), r))


def log(b: Builder, x: Expr) -> Expr:
    return logarithm(b, x, _log_near, lambda b, e, near: b.fma(e, LN2, near))


def _base(b: Builder, r: Expr, unit: float, unit_low: float) -> Expr:
    """log(1 + r) * (unit + unit_low)."""
    return b.fma(r, unit, b.fma(log1p_rest(b, r), unit, b.mul(r, unit_low)))


def log2(b: Builder, x: Expr) -> Expr:
    return logarithm(b, x, lambda b, r, low, index: b.add(entry(b, index, LOG2S, f32), _base(b, r, LOG2_E, LOG2_E_LOW)),
                     lambda b, e, near: b.add(near, e))


def log10(b: Builder, x: Expr) -> Expr:
    return logarithm(
        b, x, lambda b, r, low, index: b.add(entry(b, index, LOG10S, f32), _base(b, r, LOG10_E, LOG10_E_LOW)),
        lambda b, e, near: b.fma(e, 0.3010300099849701, b.fma(e, -1.432098883924482e-08, near)))


def _log1p_value(b: Builder, x: Expr) -> Expr:
    """log(1 + x) for x > -1 and below infinity."""
    u = b.add(x, 1.0)
    e, index, _ = reduce(b, u)
    s = power_of_two(b, b.sub(2, e), f32)  # 4 * 2**-e: the smallest 2**-e is no normal number
    f = b.mul(b.fma(x, s, b.sub(s, 4.0)), 0.25)
    return b.fma(b.cast(e, f32), LN2, _log_near(b, *near_one_apart(b, f, index), index))


def log1p(b: Builder, x: Expr) -> Expr:
    value = b.select(b.lt(x, INF), _log1p_value(b, x), x)
    value = b.select(b.eq(x, -1.0), -INF, value)
    value = b.select(b.ge(x, -1.0), value, nan_like(b, x))
    return b.select(b.lt(b.abs(x), 2.0**-25), x, value)


def asinh(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    far = b.gt(a, 2.0**30)  # there asinh(a) is log(2*a), and log(1 + a) is log(a)
    t = b.add(a, b.div(b.mul(a, a), b.add(b.sqrt(b.fma(a, a, 1.0)), 1.0)))
    t = b.select(far, a, t)
    value = b.add(_log1p_value(b, t), b.select(far, b.const(LN2, f32), 0.0))
    value = b.select(b.lt(a, 2.0**-12), b.fma(b.mul(a, a), b.mul(a, -1.0 / 6.0), a), value)
    return b.copysign(b.select(b.lt(a, INF), value, a), x)


def acosh(b: Builder, x: Expr) -> Expr:
    far = b.gt(x, 2.0**30)
    u = b.sub(x, 1.0)
    t = b.select(far, x, b.add(u, b.sqrt(b.fma(u, u, b.add(u, u)))))
    value = b.add(_log1p_value(b, t), b.select(far, b.const(LN2, f32), 0.0))
    value = b.select(b.lt(x, INF), value, x)
    return b.select(b.ge(x, 1.0), value, nan_like(b, x))


def atanh(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    t = b.div(b.add(a, a), b.sub(1.0, a))
    value = b.mul(_log1p_value(b, t), 0.5)
    value = b.select(b.lt(a, 2.0**-12), b.fma(b.mul(a, a), b.mul(a, 1.0 / 3.0), a), value)
    value = b.select(b.eq(a, 1.0), INF, value)
    return b.copysign(b.select(b.le(a, 1.0), value, nan_like(b, x)), x)


# ---- angles ---------------------------------------------------------------------------------------------------------

def _reduce(b: Builder, x: Expr) -> tuple[Expr, Expr]:
    """(quadrant as i32, remainder) for angles up to TURN."""
    k = b.fma(x, 0.6366197723675814, MAGIC[f32])
    j = b.sub(k, MAGIC[f32])
    return bits(b, k), b.fma(j, -PI_2_LAST, b.fma(j, -PI_2_LOW, b.fma(j, -PI_2, x)))


def _reduce_far(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """The same for any finite angle beyond TURN, with what rounding takes from the remainder; NaN for infinities."""
    q, r = quarter_turns_f32(b, b.abs(x))
    negative = b.lt(x, 0.0)
    r = b.add(r, b.cast(b.sub(x, x), f64))  # NaN for an infinity
    r = b.select(negative, b.neg(r), r)
    near = b.cast(r, f32)
    return b.select(negative, b.neg(q), q), near, b.cast(b.sub(r, b.cast(near, f64)), f32)


def _wave(b: Builder, q: Expr, r: Expr, low: Expr | None = None) -> Expr:
    """sin(q * pi/2 + r + low) for -pi/4 <= r <= pi/4, and what rounding took from r, if known."""
    z = b.mul(r, r)
    w = b.fma(z, -0.5, 1.0)
    rest = b.fma(z, -0.5, b.sub(1.0, w))
    if low is None:
        sine = b.fma(b.mul(r, z), poly(b, z, SIN), r)
    else:
        sine = b.add(r, b.fma(b.mul(r, z), poly(b, z, SIN), low))
        rest = b.fma(b.neg(r), low, rest)
    cosine = b.add(w, b.fma(b.mul(z, z), poly(b, z, COS), rest))
    v = b.select(b.ne(b.and_(q, 1), 0), cosine, sine)
    return b.bitcast(b.xor(bits(b, v), b.shl(b.and_(q, 2), 30)), f32)


def sin(b: Builder, x: Expr) -> Expr:
    v = rarely(b, b.gt(b.abs(x), TURN), _wave(b, *_reduce_far(b, x)), _wave(b, *_reduce(b, x)))
    return b.select(b.eq(x, 0.0), x, v)


def cos(b: Builder, x: Expr) -> Expr:
    q, *rest = _reduce(b, x)
    far_q, *far = _reduce_far(b, x)
    return rarely(b, b.gt(b.abs(x), TURN), _wave(b, b.add(far_q, 1), *far), _wave(b, b.add(q, 1), *rest))


def _slope(b: Builder, q: Expr, r: Expr, low: Expr | None = None) -> Expr:
    """tan(q * pi/2 + r + low)."""
    z = b.mul(r, r)
    t = poly(b, z, TAN)
    t = b.fma(b.mul(r, z), t, r) if low is None else b.add(r, b.fma(b.mul(r, z), t, b.fma(z, low, low)))
    return b.select(b.ne(b.and_(q, 1), 0), b.div(-1.0, t), t)


def tan(b: Builder, x: Expr) -> Expr:
    v = rarely(b, b.gt(b.abs(x), TURN), _slope(b, *_reduce_far(b, x)), _slope(b, *_reduce(b, x)))
    return b.select(b.eq(x, 0.0), x, v)


def _atan_unit(b: Builder, t: Expr) -> Expr:
    """atan(t) for 0 <= t <= 1."""
    z = b.mul(t, t)
    return b.fma(b.mul(t, z), poly(b, z, ATAN), t)


def atan(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    far = b.gt(a, 1.0)
    v = _atan_unit(b, b.select(far, b.div(1.0, a), a))
    v = b.select(far, b.sub(PI_2, b.sub(v, PI_2_LOW)), v)
    return b.copysign(v, x)


def atan2(b: Builder, y: Expr, x: Expr) -> Expr:
    ax, ay = b.abs(x), b.abs(y)
    steep = b.gt(ay, ax)
    top, bottom = b.select(steep, ax, ay), b.select(steep, ay, ax)
    t = b.div(top, bottom)
    t = b.select(b.eq(top, bottom), 1.0, t)      # also infinities
    t = b.select(b.eq(bottom, 0.0), 0.0, t)
    v = _atan_unit(b, t)
    v = b.select(steep, b.sub(PI_2, b.sub(v, PI_2_LOW)), v)
    v = b.select(b.lt(bits(b, x), 0), b.sub(PI, b.sub(v, PI_LOW)), v)
    v = b.copysign(v, y)
    return b.select(b.or_(b.ne(x, x), b.ne(y, y)), b.add(x, y), v)


def _asin_near(b: Builder, x: Expr, z: Expr) -> Expr:
    """asin(x) for z = x*x <= 1/4."""
    return b.fma(b.mul(x, z), poly(b, z, ASIN), x)


def asin(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    far = b.gt(a, 0.5)
    z = b.select(far, b.fma(a, -0.5, 0.5), b.mul(a, a))
    s = b.select(far, b.sqrt(z), a)
    p = b.mul(b.mul(s, z), poly(b, z, ASIN))  # asin(s) - s
    high = b.fma(s, -2.0, PI_2)
    rest = b.fma(s, -2.0, b.sub(PI_2, high))  # what rounding took from high
    high = b.add(high, b.fma(p, -2.0, b.add(rest, PI_2_LOW)))
    return b.copysign(b.select(far, high, b.add(s, p)), x)


def acos(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    far = b.gt(a, 0.5)
    z = b.select(far, b.fma(a, -0.5, 0.5), b.mul(a, a))
    p = _asin_near(b, b.select(far, b.sqrt(z), x), z)
    twice = b.add(p, p)
    high = b.select(b.lt(x, 0.0), b.sub(PI, b.sub(twice, PI_LOW)), twice)
    return b.select(far, high, b.sub(PI_2, b.sub(p, PI_2_LOW)))


# ---- error functions ------------------------------------------------------------------------------------------------

def erf(b: Builder, x: Expr) -> Expr:
    """Around 0 the value is the argument: its slope there, 2 / sqrt(pi), is no f32, but 1 and the rest are."""
    _, key, d, slope, value = pieces(b, b.abs(x), ERF_F32)
    return b.copysign(b.fma(d, slope, b.select(b.lt(key, ERF_F32.add + 0.125), d, value)), x)


def _bell_tail(b: Builder, a: Expr, table: Pieces, by: float) -> Expr:
    """A function of a >= 0 that vanishes as exp(-a*a / by) does: their ratio by pieces, ``by`` a power of two.  In the
    exponent, of which r is ``by`` times the remainder, the square meets an exact multiple of LN2_SHORT before it is
    rounded."""
    t, _, d, slope, value = pieces(b, a, table)
    j, n = to_integer(b, b.mul(t, t), -1.4426950408889634 / by)
    r = b.fma(j, -by * LN2_REST, b.fma(b.neg(t), t, b.mul(j, -by * LN2_SHORT)))
    terms = [c * by ** (k - len(EXP) - 1) for k, c in enumerate((*EXP, 1.0))]
    power = b.mul(r, poly(b, r, terms))  # without the 1, which comes last
    scaled = b.fma(d, slope, value)
    return scale(b, b.fma(scaled, power, scaled), j, n)


def erfc(b: Builder, x: Expr) -> Expr:
    far = _bell_tail(b, b.abs(x), ERFCX_F32, 1.0)
    return b.select(b.lt(x, 0.0), b.sub(2.0, far), far)


def ndtr(b: Builder, x: Expr) -> Expr:
    far = _bell_tail(b, b.abs(x), NDTRX_F32, 2.0)
    return b.select(b.gt(x, 0.0), b.sub(1.0, far), far)


# ---- roots and powers -----------------------------------------------------------------------------------------------

def cbrt(b: Builder, x: Expr) -> Expr:
    def start(b: Builder, y: Expr) -> Expr:
        return b.bitcast(b.sub(0x54A20000, b.mul(b.shr(bits(b, y), 15), 10923)), f32)  # 10923 / 2**15: a third
    return cube_root(b, x, start, 1, 30)


def pow(b: Builder, x: Expr, y: Expr) -> Expr:
    """x ** y: logarithm and product in f64, whose error is far below half a unit of f32."""
    a = b.abs(x)
    e, m = exponent_split(b, b.cast(a, f64), 0x3FE5555555555555)
    f = b.sub(m, 1.0)
    log = b.fma(f, 1.4426950408889634, b.mul(b.mul(f, f), poly(b, f, LOG2_F64)))
    log = b.add(log, b.cast(e, f64))
    log = b.select(b.eq(a, 0.0), -INF, b.select(b.lt(a, INF), log, b.cast(a, f64)))
    t = clamp(b, b.mul(log, b.cast(y, f64)), -200.0, 200.0)
    k = b.add(t, MAGIC[f64])
    j = b.sub(k, MAGIC[f64])
    value = scale(b, exp2_near(b, b.cast(b.sub(t, j), f32)), b.cast(j, f32), b.cast(b.bitcast(k, i64), i32))
    return power_signs(b, x, y, value)


FUNCTIONS = {f.__name__: f for f in (
    exp, exp2, expm1, log, log2, log10, log1p, sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, asinh, acosh, atanh,
    erf, erfc, ndtr, cbrt, pow, atan2)}
