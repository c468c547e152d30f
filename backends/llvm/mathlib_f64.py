"""Functions of f64 as primitive expressions, without branches.

Here: one function per instruction.  Not here: f32 (mathlib_f32.py), the table and the bounds of the errors
(mathlib.py).

Structure as for f32, with more terms; where one rounding too many would show, values are pairs (high, low) whose sum
is meant.  Coefficients are minimax fits of our own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from flowc.backends.llvm.mathlib_logs import (
    LOG2S,
    LOG2S_LOW,
    LOG10S,
    LOG10S_LOW,
    LOGS,
    LOGS_LOW,
    Table,
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
    poly_either,
    poly_pairs,
    power_of_two,
    power_signs,
    quarter_turns_f64,
    rarely,
    scale,
    two_product,
    two_sum,
)
from flowc.kernel import Builder, Expr
from flowc.types import f64, i32, i64

LN2, LN2_LOW = 0.6931471805599453, 2.3190468138462996e-17
LN2_SHORT, LN2_REST = 0.6931471805598903, 5.497923018708371e-14  # a multiple of 2**-42
LOG2_E, LOG2_E_LOW = 1.4426950408889634, 2.0355273740931033e-17
LOG10_E, LOG10_E_LOW = 0.4342944819032518, 1.098319650216765e-17
LOG10_2_SHORT, LOG10_2_REST = 0.3010299956640665, -8.532344317057107e-14
PI_2, PI_2_LOW, PI_2_LAST = 1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33
PI_4, PI_4_LOW = 0.7853981633974483, 3.061616997868383e-17
PI, PI_LOW = 3.141592653589793, 1.2246467991473532e-16
THIRDS = 0x3FE5555555555555
TURN = 2.0**28   # largest angle that three parts of pi/2 reduce

EXP = (2.5000198525032462e-08, 2.763023395548138e-07, 2.7557585839347506e-06, 2.4801493137814944e-05,
       0.00019841269507298544, 0.0013888888943594524, 0.0083333333334940675, 0.04166666666653028, 0.16666666666666413,
       0.50000000000000111)
EXP2 = (2.5625358950423462e-11, 4.4565698183403011e-10, 7.0549745349433395e-09, 1.0178051946963349e-07,
        1.3215486594711667e-06, 1.5252733854305011e-05, 0.00015403530393641048, 0.0013333558146392706,
        0.0096181291076283294, 0.055504108664821687, 0.24022650695910072, 0.69314718055994529)
LOG_TAIL = (0.12581625672591162, 0.11590708802431081, 0.13341253899324557, 0.15384402823287077, 0.18181821601440956,
            0.22222222190422003, 0.28571428571581881, 0.39999999999999714)
SIN = (1.5896214780911588e-10, -2.5050747492107666e-08, 2.755731361964205e-06, -0.00019841269829584622,
       0.008333333333322113, -0.1666666666666663)
COS = (-1.135853361468997e-11, 2.0875700787710131e-09, -2.7557314178920784e-07, 2.4801587288850572e-05,
       -0.0013888888888873056, 0.041666666666666595)
SINH = (7.7587403395922038e-13, 1.6057260083287458e-10, 2.5052123132186404e-08, 2.7557319157103705e-06,
        0.00019841269841431761, 0.0083333333333331476, 0.16666666666666669)
TANH = (5.9109474376162424e-06, -2.9889265968719679e-05, 9.1263864303400331e-05, -0.00023684496804303578,
        0.00058939214276151333, -0.0014557119155580271, 0.0035921118106238717, -0.0088632340894940261,
        0.021869488454469819, -0.053968253965532426, 0.13333333333328776, -0.33333333333333309)
ATAN = (0.015192129742949558, -0.033470921279092278, 0.045033717059647989, -0.052183538171967012,
        0.058770127883269511, -0.066662257096890956, 0.076922826783437356, -0.090909081405266753,
        0.11111111088053326, -0.14285714285385773, 0.1999999999999765, -0.33333333333333326)
ASIN = (0.032628768553225738, -0.020999236244758031, 0.021707532137188425, 0.0037063871762906416,
        0.010780255816095456, 0.011398911934728357, 0.013980820589787817, 0.017351612005895235, 0.02237221498850692,
        0.030381942707734335, 0.044642857174613117, 0.074999999999707995, 0.1666666666666676)
ERF = (5.296215985364876e-11, -7.765578446645039e-10, 9.392288631306447e-09, -1.042060314372694e-07,
       1.0536437343795531e-06, -9.614808082907292e-06, 7.829649540142966e-05, -0.0005611894221840187,
       0.003480274496657427, -0.01828388448914985, 0.07940998675593501, -0.2810721780454343, -0.03453126133013269)
ERF_FAR = (-4.833108534450209e-14, 2.9314580566160573e-12, -8.134480369629611e-11, 1.3614612300078258e-09,
           -1.5250567266060973e-08, 1.2004256170052204e-07, -6.814553824003852e-07, 2.86015284304431e-06,
           -9.355791280310343e-06, 2.600663604210622e-05, -5.9966873362645145e-05, 7.517301461310315e-05,
           -2.079296985985519e-06, 0.000640750623684237, -0.0035681568501608196, -0.0018068162435921976,
           0.031164633023790543, 0.02608207295539177, -0.20077552382861194, -0.4744194488420368, 1.6817922800549348)
ERFC = (1.596407548042345e-05, 0.0003668055067616279, 0.003955899093414869, 0.02655562126895057, 0.12254863795150876,
        0.40399055104903253, 0.9549291973156157, 1.5715779868936053, 1.6546569390121773, 0.8716208329044814)
ERFC_BELOW = (0.00012435098187555662, 0.002310717422110683, 0.02120572976337084, 0.12408813005235712,
              0.5067026747037178, 1.4963271777164178, 3.2165505734850823, 4.946344367439637, 5.1876851055057225,
              3.340231397982008, 1.0)


def to_integer(b: Builder, x: Expr, factor: float) -> tuple[Expr, Expr]:
    """rint(x * factor) as f64 and as i32, for small results."""
    k = b.fma(x, factor, MAGIC[f64])
    return b.sub(k, MAGIC[f64]), b.cast(bits(b, k), i32)  # the low half of the bits of MAGIC is 0


# ---- exponentials ---------------------------------------------------------------------------------------------------

def exp_parts(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """(p, j, n) with exp(x) = p * 2**j, p about 0.7 to 1.42 and j whole, n the same as i32."""
    j, n, r = exp_remainder(b, x)
    return exp_whole(b, r, poly(b, r, EXP)), j, n


def exp_remainder(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """(j, n, r) with x = j * log(2) + r, j whole and n the same as i32."""
    j, n = to_integer(b, x, LOG2_E)
    return j, n, b.fma(j, -LN2_LOW, b.fma(j, -LN2, x))


def exp_whole(b: Builder, r: Expr, p: Expr) -> Expr:
    """exp(r) from the polynomial."""
    return b.fma(r, b.fma(r, p, 1.0), 1.0)


def exp(b: Builder, x: Expr) -> Expr:
    return scale(b, *exp_parts(b, clamp(b, x, -746.0, 710.0)))


def exp2_near(b: Builder, r: Expr) -> Expr:
    """2**r for -1/2 <= r <= 1/2."""
    return b.fma(r, poly(b, r, EXP2), 1.0)


def exp2(b: Builder, x: Expr) -> Expr:
    x = clamp(b, x, -1076.0, 1025.0)
    j, n = to_integer(b, x, 1.0)
    return scale(b, exp2_near(b, b.sub(x, j)), j, n)


def expm1(b: Builder, x: Expr) -> Expr:
    y = clamp(b, x, -40.0, 710.0)
    j, n = to_integer(b, y, LOG2_E)
    r = b.fma(j, -LN2_LOW, b.fma(j, -LN2, y))
    tail = b.mul(b.mul(r, r), poly(b, r, EXP))
    p, lost = two_sum(b, r, tail)
    half = power_of_two(b, b.cast(b.sub(n, 1), i64), f64)  # 2**n would overflow before the result does
    out = b.fma(lost, half, b.fma(p, half, b.sub(half, 0.5)))
    return b.select(b.lt(b.abs(x), 2.0**-54), x, b.add(out, out))


def _exp_half(b: Builder, a: Expr) -> Expr:
    """exp(a) / 2 for a >= 0, right up to where sinh overflows."""
    p, j, n = exp_parts(b, at_most(b, a, 711.0))
    return scale(b, p, b.sub(j, 1.0), b.sub(n, 1))


def sinh(b: Builder, x: Expr) -> Expr:
    a, z = b.abs(x), b.mul(x, x)
    e = _exp_half(b, a)
    near = b.fma(b.mul(x, z), poly(b, z, SINH), x)
    return b.copysign(b.select(b.lt(a, 1.0), near, b.sub(e, b.div(0.25, e))), x)


def cosh(b: Builder, x: Expr) -> Expr:
    e = _exp_half(b, b.abs(x))
    return b.add(e, b.div(0.25, e))


def tanh(b: Builder, x: Expr) -> Expr:
    """Odd function near 0, 1 - 2 / (exp(2 * x) + 1) beyond: one of the two polynomials is computed."""
    a, z = b.abs(x), b.mul(x, x)
    near = b.lt(a, 0.625)
    j, n, r = exp_remainder(b, at_most(b, b.add(a, a), 80.0))
    p = poly_either(b, near, b.select(near, z, r), TANH, EXP)
    far = b.sub(1.0, b.div(2.0, b.add(scale(b, exp_whole(b, r, p), j, n), 1.0)))
    return b.copysign(b.select(near, b.fma(b.mul(x, z), p, x), far), x)


# ---- logarithms -----------------------------------------------------------------------------------------------------

class _Base(NamedTuple):
    """Logarithms of the table in two parts, those of 2, and that of e unless it is 1."""

    table: Table
    low: Table
    two: float
    two_low: float
    unit: tuple[float, float] | None = None


NATURAL = _Base(LOGS, LOGS_LOW, LN2_SHORT, LN2_REST)
BINARY = _Base(LOG2S, LOG2S_LOW, 1.0, 0.0, (LOG2_E, LOG2_E_LOW))
DECIMAL = _Base(LOG10S, LOG10S_LOW, LOG10_2_SHORT, LOG10_2_REST, (LOG10_E, LOG10_E_LOW))


def _log_near(b: Builder, r: Expr, r_low: Expr | None, index: Expr, base: _Base) -> tuple[Expr, ...]:
    """(log(1 + r) as high and low part, the logarithm of 1 / c as high and low part)."""
    high, low = r, log1p_rest(b, r)
    if r_low is not None:
        low = b.add(low, b.fma(b.neg(r), r_low, r_low))  # divided by 1 + r
    if base.unit is not None:
        unit, unit_low = base.unit
        high, q = two_product(b, r, b.const(unit, f64))
        low = b.fma(low, unit, b.fma(r, unit_low, q))
    return high, low, entry(b, index, base.table, f64), entry(b, index, base.low, f64)


def _log_sum(b: Builder, e: Expr, near: tuple[Expr, ...], base: _Base) -> Expr:
    high, low, table, table_low = near
    whole, rest = two_sum(b, b.fma(e, base.two, table), high)  # the product and its sum are exact
    return b.add(whole, b.add(rest, b.add(b.fma(e, base.two_low, table_low), low)))


def _logarithm(b: Builder, x: Expr, base: _Base) -> Expr:
    return logarithm(b, x, lambda b, r, low, index: _log_near(b, r, low, index, base),
                     lambda b, e, near: _log_sum(b, e, near, base))


def log(b: Builder, x: Expr) -> Expr:
    return _logarithm(b, x, NATURAL)


def log2(b: Builder, x: Expr) -> Expr:
    return _logarithm(b, x, BINARY)


def log10(b: Builder, x: Expr) -> Expr:
    return _logarithm(b, x, DECIMAL)


def _log1p_value(b: Builder, x: Expr) -> Expr:
    """log(1 + x) for x > -1 and below infinity."""
    u = b.add(x, 1.0)
    e, index, _ = reduce(b, u)
    s = power_of_two(b, b.sub(2, e), f64)  # 4 * 2**-e: the smallest 2**-e is no normal number
    f = b.mul(b.fma(x, s, b.sub(s, 4.0)), 0.25)
    return _log_sum(b, b.cast(e, f64), _log_near(b, *near_one_apart(b, f, index), index, NATURAL), NATURAL)


def log1p(b: Builder, x: Expr) -> Expr:
    value = b.select(b.lt(x, INF), _log1p_value(b, x), x)
    value = b.select(b.eq(x, -1.0), -INF, value)
    value = b.select(b.ge(x, -1.0), value, nan_like(b, x))
    return b.select(b.lt(b.abs(x), 2.0**-54), x, value)


def asinh(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    far = b.gt(a, 2.0**60)  # there asinh(a) is log(2*a), and log(1 + a) is log(a)
    t = b.add(a, b.div(b.mul(a, a), b.add(b.sqrt(b.fma(a, a, 1.0)), 1.0)))
    value = b.add(_log1p_value(b, b.select(far, a, t)), b.select(far, b.const(LN2, f64), 0.0))
    value = b.select(b.lt(a, 2.0**-26), b.fma(b.mul(a, a), b.mul(a, -1.0 / 6.0), a), value)
    return b.copysign(b.select(b.lt(a, INF), value, a), x)


def acosh(b: Builder, x: Expr) -> Expr:
    far = b.gt(x, 2.0**60)
    u = b.sub(x, 1.0)
    t = b.select(far, x, b.add(u, b.sqrt(b.fma(u, u, b.add(u, u)))))
    value = b.add(_log1p_value(b, t), b.select(far, b.const(LN2, f64), 0.0))
    value = b.select(b.lt(x, INF), value, x)
    return b.select(b.ge(x, 1.0), value, nan_like(b, x))


def atanh(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    t = b.div(b.add(a, a), b.sub(1.0, a))
    value = b.mul(_log1p_value(b, t), 0.5)
    value = b.select(b.lt(a, 2.0**-26), b.fma(b.mul(a, a), b.mul(a, 1.0 / 3.0), a), value)
    value = b.select(b.eq(a, 1.0), INF, value)
    return b.copysign(b.select(b.le(a, 1.0), value, nan_like(b, x)), x)


# ---- angles ---------------------------------------------------------------------------------------------------------

def _reduce(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """(quadrant as i32, remainder, what its rounding took) for angles up to TURN."""
    k = b.fma(x, 0.6366197723675814, MAGIC[f64])
    j = b.sub(k, MAGIC[f64])
    first = b.fma(j, -PI_2, x)  # exact
    p, q = two_product(b, j, b.const(PI_2_LOW, f64))
    r = b.sub(first, p)
    low = b.sub(b.sub(b.sub(first, r), p), b.fma(j, PI_2_LAST, q))
    return b.cast(bits(b, k), i32), *two_sum(b, r, low)


def _reduce_far(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """The same for any finite angle beyond TURN; NaN for infinities."""
    q, r, low = quarter_turns_f64(b, b.abs(x))
    negative = b.lt(x, 0.0)
    r = b.add(r, b.sub(x, x))
    return tuple(b.select(negative, b.neg(v), v) for v in (q, r, low))  # type: ignore[return-value]


def _both(b: Builder, r: Expr, low: Expr) -> tuple[Expr, Expr]:
    """(sine, cosine) of r + low for -pi/4 <= r <= pi/4."""
    z = b.mul(r, r)
    half = b.mul(z, 0.5)
    sine = b.add(r, b.fma(b.mul(r, z), poly(b, z, SIN), b.fma(b.neg(half), low, low)))
    w = b.sub(1.0, half)
    rest = b.sub(b.sub(1.0, w), half)
    return sine, b.add(w, b.fma(b.mul(z, z), poly(b, z, COS), b.fma(b.neg(r), low, rest)))


def _wave(b: Builder, q: Expr, r: Expr, low: Expr) -> Expr:
    """sin(q * pi/2 + r + low)."""
    sine, cosine = _both(b, r, low)
    v = b.select(b.ne(b.and_(q, 1), 0), cosine, sine)
    return b.bitcast(b.xor(bits(b, v), b.shl(b.cast(b.and_(q, 2), i64), 62)), f64)


def sin(b: Builder, x: Expr) -> Expr:
    v = rarely(b, b.gt(b.abs(x), TURN), _wave(b, *_reduce_far(b, x)), _wave(b, *_reduce(b, x)))
    return b.select(b.eq(x, 0.0), x, v)


def cos(b: Builder, x: Expr) -> Expr:
    q, *rest = _reduce(b, x)
    far_q, *far = _reduce_far(b, x)
    return rarely(b, b.gt(b.abs(x), TURN), _wave(b, b.add(far_q, 1), *far), _wave(b, b.add(q, 1), *rest))


def _slope(b: Builder, q: Expr, r: Expr, low: Expr) -> Expr:
    """tan(q * pi/2 + r + low)."""
    sine, cosine = _both(b, r, low)
    odd = b.ne(b.and_(q, 1), 0)
    return b.div(b.select(odd, cosine, sine), b.select(odd, b.neg(sine), cosine))


def tan(b: Builder, x: Expr) -> Expr:
    v = rarely(b, b.gt(b.abs(x), TURN), _slope(b, *_reduce_far(b, x)), _slope(b, *_reduce(b, x)))
    return b.select(b.eq(x, 0.0), x, v)


def _angle(b: Builder, top: Expr, bottom: Expr) -> Expr:
    """atan(top / bottom) for 0 <= top <= bottom: around 1 the angle from pi/4."""
    far = b.gt(top, b.mul(bottom, 0.41421356237309503))
    t = b.div(b.select(far, b.sub(top, bottom), top), b.select(far, b.add(top, bottom), bottom))
    z = b.mul(t, t)
    p = b.mul(b.mul(t, z), poly(b, z, ATAN))
    return b.select(far, b.add(b.add(t, b.add(p, PI_4_LOW)), PI_4), b.add(t, p))


def atan(b: Builder, x: Expr) -> Expr:
    a = b.abs(x)
    far = b.gt(a, 1.12)
    inverse = b.div(1.0, a)
    v = _angle(b, b.select(far, inverse, a), b.const(1.0, f64))
    return b.copysign(b.select(far, b.sub(PI_2, b.sub(v, PI_2_LOW)), v), x)


def atan2(b: Builder, y: Expr, x: Expr) -> Expr:
    ax, ay = b.abs(x), b.abs(y)
    steep = b.gt(ay, ax)
    top, bottom = b.select(steep, ax, ay), b.select(steep, ay, ax)
    t = b.div(top, bottom)
    t = b.select(b.eq(top, bottom), 1.0, t)      # also infinities
    t = b.select(b.eq(bottom, 0.0), 0.0, t)
    v = _angle(b, t, b.const(1.0, f64))
    v = b.select(steep, b.sub(PI_2, b.sub(v, PI_2_LOW)), v)
    v = b.select(b.lt(bits(b, x), 0), b.sub(PI, b.sub(v, PI_LOW)), v)
    v = b.copysign(v, y)
    return b.select(b.or_(b.ne(x, x), b.ne(y, y)), b.add(x, y), v)


def _asin_parts(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """(whether |x| > 1/2, s, what rounding took from s, asin(s) - s) where s is |x| or sqrt((1 - |x|) / 2)."""
    a = b.abs(x)
    far = b.gt(a, 0.5)
    z = b.select(far, b.fma(a, -0.5, 0.5), b.mul(a, a))
    root = b.sqrt(z)
    s = b.select(far, root, a)
    lost = b.div(b.fma(b.neg(root), root, z), b.add(root, root))
    lost = b.select(b.and_(far, b.gt(z, 0.0)), lost, 0.0)
    return far, s, lost, b.fma(b.mul(s, z), poly(b, z, ASIN), lost)


def asin(b: Builder, x: Expr) -> Expr:
    far, s, _, p = _asin_parts(b, x)
    high = b.fma(s, -2.0, PI_2)
    rest = b.fma(s, -2.0, b.sub(PI_2, high))  # what rounding took from high
    high = b.add(high, b.fma(p, -2.0, b.add(rest, PI_2_LOW)))
    return b.copysign(b.select(far, high, b.add(s, p)), x)


def acos(b: Builder, x: Expr) -> Expr:
    far, s, _, p = _asin_parts(b, x)
    twice = b.add(s, s)
    right = b.fma(p, 2.0, twice)
    high = b.sub(PI, twice)
    left = b.add(high, b.fma(p, -2.0, b.add(b.sub(b.sub(PI, high), twice), PI_LOW)))
    signed, tail = b.copysign(s, x), b.copysign(p, x)
    middle = b.sub(PI_2, signed)
    rest = b.sub(b.sub(PI_2, middle), signed)
    middle = b.add(middle, b.add(b.sub(rest, tail), PI_2_LOW))
    return b.select(far, b.select(b.lt(x, 0.0), left, right), middle)


# ---- error functions ------------------------------------------------------------------------------------------------

def _erfc_far(b: Builder, t: Expr, a: Expr | None = None) -> Expr:
    """erfc(t) = exp(-t*t) * (1 + t * R(t) / S(t)) / (1 + 2 * t) for t >= 0 up to where it vanishes.  With ``a``, which
    is t * sqrt(2) without its rounding: half of it.

    The fraction is small, and S is in numerator and denominator, so that few of the roundings count; no sum cancels.
    In the exponent the square meets an exact multiple of LN2_SHORT before it is rounded."""
    z = b.mul(t, t)
    below = poly_pairs(b, t, z, ERFC_BELOW)
    above = b.fma(t, poly_pairs(b, t, z, ERFC), below)
    j, n = to_integer(b, z, -LOG2_E)
    square = b.mul(j, -LN2_SHORT)
    square = b.fma(b.neg(t), t, square) if a is None else b.fma(b.mul(a, -0.5), a, square)
    r = b.fma(j, -LN2_REST, square)
    power = b.mul(r, b.fma(r, poly(b, r, EXP), 1.0))  # without the 1, which comes last
    if a is not None:
        j, n = b.sub(j, 1.0), b.sub(n, 1)
    return scale(b, b.div(b.fma(above, power, above), b.fma(below, b.add(t, t), below)), j, n)


def erf(b: Builder, x: Expr) -> Expr:
    """Odd function near 0, in powers of x*x - 1/2; beyond, the fourth root of 8 * erfc: nearly straight, and just below
    1, where roundings are smallest, as long as they count."""
    a, z = b.abs(x), b.fma(x, x, -0.5)
    far = b.gt(a, 1.12)
    t = at_most(b, a, 5.95)
    p = poly_either(b, far, b.select(far, t, z), ERF_FAR, ERF)
    half = b.mul(p, p)
    return b.copysign(b.select(far, b.fma(b.mul(half, -0.125), half, 1.0), b.fma(a, p, a)), x)


def erfc(b: Builder, x: Expr) -> Expr:
    far = _erfc_far(b, at_most(b, b.abs(x), 28.0))
    return b.select(b.lt(x, 0.0), b.sub(2.0, far), far)


def ndtr(b: Builder, x: Expr) -> Expr:
    a = at_most(b, b.abs(x), 39.5)
    far = _erfc_far(b, b.mul(a, math.sqrt(0.5)), a)
    return b.select(b.gt(x, 0.0), b.sub(1.0, far), far)


# ---- roots and powers -----------------------------------------------------------------------------------------------

def cbrt(b: Builder, x: Expr) -> Expr:
    def start(b: Builder, y: Expr) -> Expr:
        high = b.shr(b.cast(b.shr(bits(b, y), 32), i32), 12)  # enough for the first digits
        third = b.add(b.mul(high, 1365), b.add(b.shr(high, 2), b.shr(high, 4)))  # times 2**12
        return b.bitcast(b.shl(b.cast(b.sub(0x553ECC00, third), i64), 32), f64)
    return cube_root(b, x, start, 2, 54)


def log_split(b: Builder, x: Expr) -> tuple[Expr, Expr]:
    """(e, f) with x = (1 + f) * 2**e for positive x, also subnormal; -1/3 <= f < 1/3."""
    tiny = b.lt(x, 2.0**-1022)
    e, m = exponent_split(b, b.select(tiny, b.mul(x, 2.0**54), x), THIRDS)
    return b.add(b.cast(e, f64), b.select(tiny, b.const(-54.0, f64), 0.0)), b.sub(m, 1.0)


def _log2_pair(b: Builder, a: Expr) -> tuple[Expr, Expr]:
    """log2(a) of a positive finite number as a pair, with about 64 bits."""
    e, f = log_split(b, a)
    d = b.add(f, 2.0)
    d_low = b.sub(f, b.sub(d, 2.0))
    inverse = b.div(1.0, d)
    s = b.mul(f, inverse)
    s_low = b.mul(b.fma(b.neg(s), d_low, b.fma(b.neg(s), d, f)), inverse)
    z, z_low = two_product(b, s, s)
    z_low = b.fma(b.add(s, s), s_low, z_low)
    c, c_low = two_product(b, z, s)
    c_low = b.fma(z, s_low, b.fma(z_low, s, c_low))
    t, t_low = two_product(b, c, b.const(0.6666666666666666, f64))
    t_low = b.fma(c, 3.700743415417188e-17, b.fma(c_low, 0.6666666666666666, t_low))
    t_low = b.add(t_low, b.mul(b.mul(c, z), poly(b, z, LOG_TAIL)))
    high, low = two_sum(b, b.add(s, s), t)
    low = b.add(low, b.fma(s_low, 2.0, t_low))
    high, low = two_sum(b, high, low)
    p, q = two_product(b, high, b.const(LOG2_E, f64))
    q = b.fma(low, LOG2_E, b.fma(high, LOG2_E_LOW, q))
    whole, rest = two_sum(b, e, p)
    return two_sum(b, whole, b.add(rest, q))


def pow(b: Builder, x: Expr, y: Expr) -> Expr:
    """x ** y as 2 ** (y * log2|x|), the product as a pair."""
    a = b.abs(x)
    high, low = _log2_pair(b, a)
    exponent = clamp(b, y, -(2.0**66), 2.0**66)
    p, q = two_product(b, high, exponent)
    q = b.fma(low, exponent, q)
    inside = b.lt(b.abs(p), 1100.0)
    p, q = b.select(inside, p, b.copysign(1100.0, p)), b.select(inside, q, 0.0)
    j, n = to_integer(b, p, 1.0)
    value = scale(b, exp2_near(b, b.add(b.sub(p, j), q)), j, n)
    grows = b.eq(b.gt(y, 0.0), b.gt(a, 1.0))
    edge = b.or_(b.eq(a, 0.0), b.eq(a, INF))
    value = b.select(edge, b.select(grows, b.const(INF, f64), 0.0), value)
    return power_signs(b, x, y, value)


FUNCTIONS = {f.__name__: f for f in (
    exp, exp2, expm1, log, log2, log10, log1p, sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, asinh, acosh, atanh,
    erf, erfc, ndtr, cbrt, pow, atan2)}
