"""Elementwise ops of two operands, select and cast.

Here: arithmetic, powers, extremes, bits, comparisons, choice, conversion.  Not here: one operand (elementwise.py).
Read next: movement.py.

Fixed meanings where NumPy warns, raises or follows the machine: an integer divided by zero, also modulo, is 0; shifts
by a negative amount or at least the width leave only the sign; an integer to a negative power is the fraction rounded
towards zero (1 for base 1, +1 or -1 for base -1, else 0); a float becomes the nearest integer towards zero that the
integer dtype can hold, NaN becomes 0.  The sign of a zero that is the extreme of two zeros is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flowc.graph import Node
from flowc.kernel import Builder, Expr
from flowc.op import Op, Pointwise
from flowc.ops.rules import (
    EXACT,
    bound,
    convert,
    declare,
    diagonal_jvp,
    half_in_f32,
    in_f32,
    in_f64,
    like,
    n,
    need_dtype,
    same,
    same_shape,
    zeros,
)
from flowc.ops.samples import SHAPES, Call, Samples, draw
from flowc.ops.samples import elementwise as elementwise_samples
from flowc.types import ALL, BOOLS, COMPLEX, FLOATS, INTS, NUMBERS, REALS, DType, Type, bool_, f32, f64, i8, i32

MATH = bound(4)


def binary(name: str, doc: str, numpy: Callable[..., Any], *, dtypes: tuple[DType, ...],
           scalar: Callable[..., Expr] | None = None, result: Callable[[DType], DType] = lambda d: d,
           vjp: Callable[..., tuple] | None = None, ulp: dict[str, float] = EXACT,
           domain: tuple[float, float] = (-8.0, 8.0), commutative: bool = False, samples: Samples | None = None) -> Op:
    """An op of two operands of one type.  ``scalar(b, x, y)``: its expression if it is no single instruction of the
    same name; 16-bit floats are then computed in f32."""
    def plain(b: Builder, x: Expr, y: Expr) -> Expr:
        return b.emit(name, x, y)

    body = half_in_f32(scalar) if scalar else plain

    def expr(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple[Type, ...], attrs: dict) -> Expr:
        return body(b, load(0, idx), load(1, idx))

    def infer(x: Type, y: Type) -> Type:
        t = same(x, y)
        return t.with_dtype(result(t.dtype))

    return declare(name, doc, numpy=in_f32(numpy) if ulp is EXACT else in_f64(numpy), infer=infer,
                   lower=Pointwise(expr), arity=2, dtypes=dtypes, vjp=vjp, jvp=diagonal_jvp(vjp) if vjp else None,
                   ulp=ulp, domain=domain, commutative=commutative,
                   samples=samples or elementwise_samples(dtypes, 2, domain))


# ---- sums, products, quotients --------------------------------------------------------------------------------------

binary("add", "x + y; integers wrap.", np.add, dtypes=NUMBERS, commutative=True, vjp=lambda g, y, a, b: (g, g))
binary("sub", "x - y; integers wrap.", np.subtract, dtypes=NUMBERS, vjp=lambda g, y, a, b: (g, n.neg(g)))
binary("mul", "x * y; integers wrap.", np.multiply, dtypes=NUMBERS, commutative=True,
       vjp=lambda g, y, a, b: (n.mul(g, b), n.mul(g, a)))
binary("div", "x / y, correctly rounded.", np.divide, dtypes=FLOATS + COMPLEX,
       vjp=lambda g, y, a, b: (n.div(g, b), n.neg(n.div(n.mul(g, y), b))))


def _float_divmod(b: Builder, x: Expr, y: Expr) -> tuple[Expr, Expr]:
    """Quotient before rounding and remainder of floored division, from the exact remainder of truncated division:
    where its sign is not that of ``y``, one step down."""
    rem = b.fmod(x, y)
    step = b.and_(b.ne(rem, 0), b.ne(b.lt(y, 0), b.lt(rem, 0)))
    quotient = b.div(b.sub(x, rem), y)
    return b.select(step, b.sub(quotient, 1), quotient), b.select(step, b.add(rem, y), rem)


def _floor_divide(b: Builder, x: Expr, y: Expr) -> Expr:
    if not x.dtype.floating:
        return b.idiv(x, y)
    quotient, _ = _float_divmod(b, x, y)
    down = b.floor(quotient)
    near = b.select(b.gt(b.sub(quotient, down), 0.5), b.add(down, 1), down)  # the quotient was rounded below it
    ratio = b.div(x, y)
    signed = b.select(b.eq(quotient, 0), b.copysign(0.0, ratio), near)
    return b.select(b.eq(y, 0), ratio, signed)


def _mod(b: Builder, x: Expr, y: Expr) -> Expr:
    if not x.dtype.floating:
        return b.imod(x, y)
    rem = b.fmod(x, y)
    _, floored = _float_divmod(b, x, y)
    signed = b.select(b.eq(floored, 0), b.copysign(0.0, y), floored)
    return b.select(b.eq(y, 0), rem, signed)


def _fmod(b: Builder, x: Expr, y: Expr) -> Expr:
    if x.dtype.floating:
        return b.fmod(x, y)
    rem = b.imod(x, y)
    if x.dtype.kind == "u":
        return rem
    other_sign = b.ne(b.lt(x, 0), b.lt(rem, 0))
    return b.select(b.and_(b.ne(rem, 0), other_sign), b.sub(rem, y), rem)


binary("floor_divide", "Largest integer not above x / y; 0 for integers where y is 0.", np.floor_divide, dtypes=REALS,
       scalar=_floor_divide, vjp=lambda g, y, a, b: (None, None))
binary("mod", "x - y * floor(x / y), with the sign of y; 0 for integers where y is 0.", np.remainder, dtypes=REALS,
       scalar=_mod, vjp=lambda g, y, a, b: (g, n.neg(n.mul(g, n.floor_divide(a, b)))))
binary("fmod", "x - y * trunc(x / y), with the sign of x; 0 for integers where y is 0.", np.fmod, dtypes=REALS,
       scalar=_fmod, vjp=lambda g, y, a, b: (g, n.neg(n.mul(g, n.trunc(n.div(a, b))))))

# ---- powers, angles, signs ------------------------------------------------------------------------------------------


def _power_value(x: np.ndarray, y: np.ndarray) -> Any:
    if x.dtype.kind not in "iu":
        return np.power(x, y)
    out = np.power(x, np.maximum(y, 0))
    if x.dtype.kind == "i":
        odd = (y & 1).astype(bool)
        fraction = np.where(x == 1, 1, np.where(x == -1, np.where(odd, -1, 1), 0))
        out = np.where(y < 0, fraction, out).astype(x.dtype)
    return out


def _power(b: Builder, x: Expr, y: Expr) -> Expr:
    """Square and multiply over the bits of the exponent, without a loop."""
    if x.dtype.floating:
        return b.pow(x, y)
    signed = x.dtype.kind == "i"
    bits = x.dtype.bits - signed
    out, square = b.const(1, x.dtype), x
    for k in range(bits):
        use = b.ne(b.and_(b.shr(y, k), 1), 0)
        out = b.select(use, b.mul(out, square), out)
        if k + 1 < bits:
            square = b.mul(square, square)
    if not signed:
        return out
    odd = b.ne(b.and_(y, 1), 0)
    fraction = b.select(b.eq(x, 1), b.const(1, x.dtype),
                        b.select(b.eq(x, -1), b.select(odd, b.const(-1, x.dtype), 1), 0))
    return b.select(b.lt(y, 0), fraction, out)


def _power_samples(rng: np.random.Generator) -> list[Call]:
    out: list[Call] = []
    for d in INTS + FLOATS + COMPLEX:
        for s in SHAPES:
            y = draw(rng, d, s, (-3, 3))
            if d.integer:
                y = np.asarray(rng.integers(-3 if d.kind == "i" else 0, 12, s)).astype(d.numpy)
            out.append(((draw(rng, d, s, (0.1, 4.0)), y), {}))
    return out


def _power_vjp(g: Node, y: Node, a: Node, b: Node) -> tuple:
    # x**0 is 1 everywhere, also where x**-1 is infinite; 0**y does not move with y
    base = n.select(n.eq(b, 0.0), zeros(a.type), n.mul(n.mul(g, b), n.pow(a, n.sub(b, 1.0))))
    log = n.select(n.eq(a, 0.0), zeros(a.type), n.log(n.select(n.eq(a, 0.0), like(1, a), a)))
    return base, n.mul(n.mul(g, y), log)


def _atan2_vjp(g: Node, y: Node, a: Node, b: Node) -> tuple:
    scale = n.div(g, n.add(n.mul(a, a), n.mul(b, b)))
    return n.mul(scale, b), n.neg(n.mul(scale, a))


binary("pow", "x to the power y; integers wrap.", _power_value, dtypes=INTS + FLOATS + COMPLEX, scalar=_power,
       ulp={**{d.name: 0 for d in INTS}, **MATH}, domain=(0.1, 4.0), samples=_power_samples, vjp=_power_vjp)
binary("atan2", "Angle of the point (y, x) from the positive x axis, in -pi..pi; x is the second operand.", np.arctan2,
       dtypes=FLOATS, ulp=MATH, vjp=_atan2_vjp)
binary("copysign", "Magnitude of x with the sign of y.", np.copysign, dtypes=FLOATS,
       vjp=lambda g, y, a, b: (n.mul(g, n.mul(n.copysign(like(1, a), a), n.copysign(like(1, a), b))), None))

# ---- extremes -------------------------------------------------------------------------------------------------------


def _extreme_vjp(beats: str) -> Callable[..., tuple]:
    def vjp(g: Node, y: Node, a: Node, b: Node) -> tuple:
        tie = n.select(n.eq(a, b), n.mul(g, 0.5), zeros(g.type))  # equal operands share the gradient
        return (n.select(getattr(n, beats)(a, b), g, tie), n.select(getattr(n, beats)(b, a), g, tie))
    return vjp


binary("max", "The larger of x and y, NaN if either is.", np.maximum, dtypes=ALL, commutative=True,
       vjp=_extreme_vjp("gt"))
binary("min", "The smaller of x and y, NaN if either is.", np.minimum, dtypes=ALL, commutative=True,
       vjp=_extreme_vjp("lt"))

# ---- bits and comparisons -------------------------------------------------------------------------------------------

BITS = BOOLS + INTS
binary("and", "Logical and of booleans, bitwise and of integers.", np.bitwise_and, dtypes=BITS, commutative=True)
binary("or", "Logical or of booleans, bitwise or of integers.", np.bitwise_or, dtypes=BITS, commutative=True)
binary("xor", "Logical or bitwise exclusive or.", np.bitwise_xor, dtypes=BITS, commutative=True)
binary("shl", "x * 2**y, wrapping; 0 where y is negative or at least the width.", np.left_shift, dtypes=INTS)
binary("shr", "floor(x / 2**y); the sign alone where y is negative or at least the width.", np.right_shift, dtypes=INTS)


def _compare(name: str, doc: str, numpy: Callable[..., Any], commutative: bool = False) -> Op:
    return binary(name, doc, numpy, dtypes=ALL, result=lambda d: bool_, commutative=commutative)


_compare("eq", "Is x equal to y; NaN equals nothing.", np.equal, commutative=True)
_compare("ne", "Is x not equal to y.", np.not_equal, commutative=True)
_compare("lt", "Is x less than y; complex numbers by real part, then imaginary part.", np.less)
_compare("le", "Is x at most y.", np.less_equal)
_compare("gt", "Is x greater than y.", np.greater)
_compare("ge", "Is x at least y.", np.greater_equal)

# ---- choice and conversion ------------------------------------------------------------------------------------------


def _select_type(c: Type, x: Type, y: Type) -> Type:
    need_dtype(c, bool_, "the condition")
    t = same(x, y)
    same_shape(c.shape, t.shape, "condition and values")
    return t


def _select_expr(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple[Type, ...], attrs: dict) -> Expr:
    return b.select(load(0, idx), load(1, idx), load(2, idx))


def _select_vjp(g: Node, y: Node, c: Node, a: Node, b: Node) -> tuple:
    return None, n.select(c, g, zeros(g.type)), n.select(c, zeros(g.type), g)


def _select_jvp(ts: tuple, y: Node, c: Node, a: Node, b: Node) -> Node | None:
    _, t, u = ts
    if t is None and u is None:
        return None
    return n.select(c, zeros(y.type) if t is None else t, zeros(y.type) if u is None else u)


def _select_samples(rng: np.random.Generator) -> list[Call]:
    return [((draw(rng, bool_, s), draw(rng, d, s), draw(rng, d, s)), {}) for d in ALL for s in SHAPES]


declare("select", "x where the condition holds, y elsewhere.", numpy=lambda c, x, y: np.where(c, x, y),
        infer=_select_type, lower=Pointwise(_select_expr), arity=3, dtypes=BOOLS, ulp=EXACT, vjp=_select_vjp,
        jvp=_select_jvp, samples=_select_samples)


def _to_integer(x: np.ndarray, d: np.dtype) -> np.ndarray:
    """Towards zero, saturating, NaN to 0.  The bounds are powers of two, exact in f64."""
    info = np.iinfo(d)
    low, end = float(info.min), math.ldexp(1.0, info.bits - (info.kind == "i"))
    t = np.trunc(x.astype(np.float64))
    out = np.where((t >= low) & (t < end), t, 0.0).astype(d)
    return np.where(t >= end, info.max, np.where(t < low, info.min, out)).astype(d)


def _cast_value(x: np.ndarray, dtype: DType) -> np.ndarray:
    if x.dtype.kind == "c" and dtype.kind not in "bc":
        x = x.real
    if dtype.kind == "b":
        return x != 0
    if dtype.integer and x.dtype.kind not in "biu":
        return _to_integer(x, dtype.numpy)
    if dtype.name == "bf16" and x.dtype.itemsize > 2:
        x = x.astype(np.float32)  # the path of ml_dtypes, stated
    return x.astype(dtype.numpy)


def _cast_type(x: Type, dtype: DType) -> Type:
    if not isinstance(dtype, DType):
        raise TypeError(f"dtype must be a flowc dtype, got {dtype!r}")
    return x.with_dtype(dtype)


def _cast_vjp(g: Node, y: Node, x: Node, dtype: DType) -> tuple:
    return (n.cast(g, dtype=x.dtype) if x.dtype.kind in "fc" and dtype.kind in "fc" else None,)


def _cast_jvp(ts: tuple, y: Node, x: Node, dtype: DType) -> Node | None:
    (t,) = ts
    return n.cast(t, dtype=dtype) if t is not None and dtype.kind in "fc" else None


def _cast_samples(rng: np.random.Generator) -> list[Call]:
    wanted = [(s, d) for s in ALL for d in ALL if s is not d]
    out: list[Call] = [((draw(rng, s, (7,), (-300.0, 300.0)),), {"dtype": d}) for s, d in wanted]
    return [*out, ((draw(rng, f64, ()),), {"dtype": f32}), ((draw(rng, f32, (0,)),), {"dtype": i8}),
            ((np.array([np.nan, np.inf, -np.inf, 1e10, -1e10, -0.0, 0.9, -0.9]),), {"dtype": i32})]


declare("cast", "The value in another dtype; see the file's head for floats that no integer can hold.",
        numpy=_cast_value, infer=_cast_type, lower=Pointwise(
            lambda b, idx, load, types, attrs: convert(b, load(0, idx), attrs["dtype"])),
        attrs=("dtype",), ulp=EXACT, vjp=_cast_vjp, jvp=_cast_jvp, samples=_cast_samples)

