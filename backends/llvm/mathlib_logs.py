"""Logarithms by a table of inverses.

Here: the reduction and the tables, for both precisions.  Not here: functions (mathlib_f32.py, mathlib_f64.py), how an
element of a table is found (emit_lookup.py).

x = m * 2**e with m between 2/3 and 4/3 (exponent_split).  The leading bits of m choose one of 16 numbers c near 1 / m;
m * c is 1 + r with |r| < 1/32, and log(x) = e * log(2) - log(c) + log(1 + r).  Around m = 1 the number is 1 and its
logarithm 0, so that nothing cancels.  The logarithms of those of f32 are nearly f32; of those of f64 a multiple of
2**-42 is taken, which e * log(2) meets without rounding, and the rest apart.  (After Tang, "Table-driven
implementation of the logarithm function", 1990, with fewer entries, as registers hold them.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from flowc.backends.llvm.mathlib_parts import (
    BIAS,
    INF,
    MANTISSA,
    bits,
    lookup,
    nan_like,
    poly_pairs,
    rarely,
    two_product,
)
from flowc.kernel import Builder, Expr
from flowc.types import DType, f32, f64, u32, u64

T = TypeVar("T")
Table = Mapping[DType, tuple[float, ...]]

THIRDS = {f32: 0x3F2AAAAB, f64: 0x3FE5555555555555}  # bits of 2/3

INVERSE = {
    f32: (1.46870613, 1.40527749, 1.34065139, 1.28174293, 1.23130715, 1.1859256, 1.15631127, 1.10621738, 1.06677341,
          1.0, 1.0, 1.0, 0.896553874, 0.849576235, 0.810298026, 0.763459504),
    f64: (1.46484375, 1.40234375, 1.34375, 1.2890625, 1.23828125, 1.19140625, 1.1484375, 1.109375, 1.07421875,
          1.0390625, 1.0, 0.94921875, 0.8984375, 0.84765625, 0.80859375, 0.76953125),
}
SERIES = {  # (log(1 + r) - r) / r**2
    f32: (-0.156112745, 0.200414136, -0.250028491, 0.333333045, -0.5),
    f64: (-0.10080772663907024, 0.11129658373808533, -0.1249988676872249, 0.14285701649284113, -0.16666666719238515,
          0.2000000000319642, -0.2499999999999225, 0.33333333333333115, -0.5),
}
LOGS = {  # -log(c)
    f32: (-0.384381831, -0.340234786, -0.293155611, -0.248220816, -0.208076328, -0.170523569, -0.145235002,
          -0.100946434, -0.0646385923, 0.0, 0.0, 0.0, 0.109196894, 0.163017601, 0.210353166, 0.269895196),
    f64: (-0.3817485814909105, -0.3381449440087181, -0.2954642128938758, -0.25391520998095984, -0.21372432939779173,
          -0.17513433212775453, -0.13840232285906495, -0.10379679368156758, -0.07159365318693744,
          -0.03831886430202758, 0.0, 0.05211600113898385, 0.10709813555627079, 0.16528009093917717,
          0.21245865121409224, 0.26197371574153294),
}
LOG2S = {  # -log2(c)
    f32: (-0.55454576, -0.490855038, -0.422934145, -0.358106941, -0.300190687, -0.246013507, -0.209529817,
          -0.145634919, -0.0932537764, 0.0, 0.0, 0.0, 0.157537818, 0.235184684, 0.303475469, 0.389376462),
    f64: (-0.5507467853833532, -0.4878400338229767, -0.4262647547020606, -0.3663222142458835, -0.3083390301394502,
          -0.2526654324501578, -0.1996723448364719, -0.14974711950458186, -0.10328780841200569, -0.05528243550111256,
          0.0, 0.07518749639416455, 0.15450994905563675, 0.23844876755561017, 0.3065130425006828, 0.3779481805436262),
}
LOG10S = {  # -log10(c)
    f32: (-0.166934907, -0.14776209, -0.127315864, -0.107800931, -0.0903664008, -0.0740574449, -0.0630747601,
          -0.0438404791, -0.028072184, 0.0, 0.0, 0.0, 0.0474236086, 0.0707976446, 0.0913552195, 0.117213994),
    f64: (-0.1657913024159825, -0.146854483266452, -0.12831847725965417, -0.11027397456609833, -0.09281929690587276,
          -0.07605987403485415, -0.060107365100293464, -0.04507837473511245, -0.031092728518387958,
          -0.016641671319121087, 0.0, 0.022633691713508597, 0.04651212929434223, 0.07178023146320811,
          0.09226961985496018, 0.11377373915024691),
}
LOGS_LOW = {
    f64: (6.217032364573391e-14, 1.686950122813039e-15, 3.993416384387844e-14, -3.600176732637335e-15,
          7.359580186440514e-14, -9.461516580665081e-14, -5.4183331379008994e-14, -7.598636597194141e-14,
          -7.137308225343178e-14, -1.0902154302203302e-13, 0.0, 3.0171021061886944e-14, 9.631011033519217e-14,
          -7.424679100316254e-14, 1.0115944196590467e-13, 4.102651071698446e-14),
}
LOG2S_LOW = {
    f64: (1.0997393018517238e-13, -7.465230539625898e-14, -3.733907276649932e-14, 6.772958123003094e-14,
          4.2933210821224646e-14, -9.080130144022394e-14, 1.0749702129807047e-13, -1.002010237055886e-13,
          -1.626364337092712e-14, -7.704224011519306e-14, 0.0, 5.453807295940214e-14, -1.197291053561484e-14,
          -8.949114335712472e-14, -8.021541520069169e-15, -2.4888447947828258e-15),
}
LOG10S_LOW = {
    f64: (1.1321000759665903e-13, -1.7578878109644966e-14, -2.6376941728557574e-14, 6.041537128168437e-14,
          -2.9171571423880465e-14, -8.213007734416112e-14, -1.4268312358298685e-14, -7.566728595279791e-14,
          -2.513102031623821e-14, -9.633831674452717e-14, 0.0, 2.877835813549402e-14, -8.554758121956687e-14,
          1.1194067719549717e-13, -2.837489526277392e-14, 9.723470885581972e-15),
}


def reduce(b: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """(e, index of c, m) of a positive normal number, integers of the dtype's width and a float."""
    i, d = bits(b, x), x.dtype
    above = b.sub(i, THIRDS[d])
    e = b.shr(above, MANTISSA[d])
    return e, b.shr(above, MANTISSA[d] - 4), b.bitcast(b.sub(i, b.shl(e, MANTISSA[d])), d)


def entry(b: Builder, index: Expr, table: Table, dtype: DType) -> Expr:
    return lookup(b, index, table[dtype], dtype)


def near_one(b: Builder, m: Expr, index: Expr) -> tuple[Expr, Expr | None]:
    """r = m * c - 1, for f64 also what rounding takes from it: next to the parts around 1 log(c) cancels most of r."""
    c = entry(b, index, INVERSE, m.dtype)
    if m.dtype is f32:
        return b.fma(m, c, -1.0), None
    product, low = two_product(b, m, c)
    return b.sub(product, 1.0), low


def near_one_apart(b: Builder, f: Expr, index: Expr) -> tuple[Expr, Expr | None]:
    """The same of m = 1 + f, which may have more digits than fit."""
    c = entry(b, index, INVERSE, f.dtype)
    return b.fma(f, c, b.sub(c, 1.0)), None


def log1p_rest(b: Builder, r: Expr) -> Expr:
    """log(1 + r) - r."""
    square = b.mul(r, r)
    return b.mul(square, poly_pairs(b, r, square, SERIES[r.dtype]))


def logarithm(b: Builder, x: Expr, near: Callable[[Builder, Expr, Expr | None, Expr], T],
              finish: Callable[[Builder, Expr, T], Expr]) -> Expr:
    """A logarithm of any x: ``finish(e, near(r, its low part, index))``.  Everything but positive normal numbers is
    rare: one comparison tells them."""
    d = x.dtype
    unsigned, m = {f32: u32, f64: u64}[d], MANTISSA[d]
    odd = b.ge(b.sub(b.bitcast(x, unsigned), 1 << m), 2 * BIAS[d] << m)
    tiny = b.lt(x, 2.0 ** (1 - BIAS[d]))
    e, index, mantissa = reduce(b, rarely(b, odd, b.select(tiny, b.mul(x, 2.0**m), x), x))
    e, rest = b.cast(e, d), near(b, *near_one(b, mantissa, index), index)
    value = finish(b, b.select(tiny, b.sub(e, float(m)), e), rest)
    value = b.select(b.lt(x, INF), value, x)
    value = b.select(b.eq(x, 0.0), -INF, value)
    value = b.select(b.ge(x, 0.0), value, nan_like(b, x))
    return rarely(b, odd, value, finish(b, e, rest))
