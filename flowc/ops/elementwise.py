"""Elementwise ops of one operand: arithmetic, rounding, transcendental functions, tests of floats.

Here: one record per op, through ``unary``.  Not here: two operands, select, cast (arithmetic.py).
Read next: arithmetic.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flowc.graph import Node
from flowc.kernel import Builder, Expr
from flowc.op import HostCall, Op, Pointwise
from flowc.ops.rules import (
    EXACT,
    bound,
    declare,
    diagonal_jvp,
    each,
    half_in_f32,
    in_f32,
    in_f64,
    n,
    ndtr,
)
from flowc.ops.samples import elementwise as elementwise_samples
from flowc.types import ALL, BOOLS, COMPLEX, FLOATS, INTS, NUMBERS, DType, Type, bool_

ANALYTIC = FLOATS + COMPLEX
MATH, WIDE = bound(2), bound(4)  # one polynomial; several roundings one after the other


def _kept(d: DType) -> DType:
    return d


def unary(name: str, doc: str, numpy: Callable[..., Any], *, dtypes: tuple[DType, ...] = FLOATS,
          scalar: Callable[..., Expr] | None = None, result: Callable[[DType], DType] = _kept,
          vjp: Callable[..., tuple] | None = None, jvp: Callable[..., Any] | None = None,
          ulp: dict[str, float] = EXACT, domain: tuple[float, float] = (-8.0, 8.0), movement: bool = False,
          host: bool = False) -> Op:
    """An op of one operand.  ``scalar(b, x)``: its expression if it is no single instruction of the same name;
    16-bit floats are then computed in f32.  ``result``: dtype of the result from that of the operand."""
    def plain(b: Builder, x: Expr) -> Expr:
        return b.emit(name, x)

    body = scalar or plain
    if scalar and not movement:
        body = half_in_f32(scalar)

    def expr(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple[Type, ...], attrs: dict) -> Expr:
        return body(b, load(0, idx))

    return declare(name, doc, numpy=in_f32(numpy) if ulp is EXACT else in_f64(numpy),
                   infer=lambda x: x.with_dtype(result(x.dtype)),
                   lower=HostCall() if host else Pointwise(expr, movement), dtypes=dtypes, vjp=vjp,
                   jvp=jvp or (diagonal_jvp(vjp) if vjp else None), ulp=ulp, domain=domain,
                   samples=elementwise_samples(dtypes, 1, domain))


def _no_gradient(g: Node, y: Node, *xs: Node, **attrs: Any) -> tuple:
    return (None,) * len(xs)


# ---- arithmetic and signs -------------------------------------------------------------------------------------------

def _sign(b: Builder, x: Expr) -> Expr:
    if x.dtype.kind == "u":
        return b.select(b.gt(x, 0), b.const(1, x.dtype), 0)
    rest = b.select(b.eq(x, 0), 0, x) if x.dtype.floating else b.const(0, x.dtype)
    return b.select(b.gt(x, 0), 1, b.select(b.lt(x, 0), -1, rest))


def _abs_vjp(g: Node, y: Node, x: Node) -> tuple:
    if x.dtype.kind == "c":
        return (n.mul(n.cast(g, dtype=x.dtype), n.conj(n.sign(x))),)
    return (n.mul(g, n.sign(x)),)


def _abs_jvp(ts: tuple, y: Node, x: Node) -> Node | None:
    (t,) = ts
    if t is None or x.dtype.kind != "c":
        return None if t is None else n.mul(t, n.sign(x))
    return n.real(n.mul(t, n.conj(n.sign(x))))


def _sign_vjp(g: Node, y: Node, x: Node) -> tuple:
    if x.dtype.kind != "c":
        return (None,)
    along = n.cast(n.real(n.mul(g, y)), dtype=x.dtype)  # the part of a change along x leaves x / |x| as it is
    return (n.div(n.sub(g, n.mul(n.conj(y), along)), n.cast(n.abs(x), dtype=x.dtype)),)


def _sign_jvp(ts: tuple, y: Node, x: Node) -> Node | None:
    (t,) = ts
    if t is None or x.dtype.kind != "c":
        return None
    along = n.cast(n.real(n.mul(t, n.conj(y))), dtype=x.dtype)
    return n.div(n.sub(t, n.mul(y, along)), n.cast(n.abs(x), dtype=x.dtype))


unary("neg", "-x; integers wrap.", np.negative, dtypes=NUMBERS, vjp=lambda g, y, x: (n.neg(g),))
unary("abs", "Magnitude of x; the least integer stays as it is.", np.abs, dtypes=NUMBERS,
      result=lambda d: d.real, vjp=_abs_vjp, jvp=_abs_jvp)
unary("sign", "-1, 0 or 1 with the sign of x, NaN for NaN; x / |x| for complex x.", np.sign, dtypes=NUMBERS,
      scalar=_sign, vjp=_sign_vjp, jvp=_sign_jvp)
unary("stop_gradient", "x, through which no derivative flows.", lambda x: x, dtypes=ALL,
      scalar=lambda b, x: x, vjp=_no_gradient, movement=True)

# ---- roots, exponentials, logarithms --------------------------------------------------------------------------------

LN2, LN10 = math.log(2.0), math.log(10.0)

unary("sqrt", "Square root, correctly rounded.", np.sqrt, dtypes=ANALYTIC, domain=(0.01, 50.0),
      vjp=lambda g, y, x: (n.div(g, n.mul(y, 2.0)),))
unary("rsqrt", "1 / sqrt(x).", lambda x: 1 / np.sqrt(x), dtypes=ANALYTIC, domain=(0.01, 50.0), ulp=MATH,
      scalar=lambda b, x: b.div(1.0, b.sqrt(x)),
      vjp=lambda g, y, x: (n.mul(g, n.mul(n.mul(y, -0.5), n.mul(y, y))),))
unary("cbrt", "Cube root, also of negative x.", np.cbrt, ulp=WIDE, domain=(0.1, 50.0),
      vjp=lambda g, y, x: (n.div(g, n.mul(n.mul(y, y), 3.0)),))
unary("exp", "e to the power x.", np.exp, dtypes=ANALYTIC, ulp=MATH, vjp=lambda g, y, x: (n.mul(g, y),))
unary("exp2", "2 to the power x.", np.exp2, dtypes=ANALYTIC, ulp=MATH,
      vjp=lambda g, y, x: (n.mul(n.mul(g, y), LN2),))
unary("expm1", "exp(x) - 1 without cancellation.", np.expm1, dtypes=ANALYTIC, ulp=MATH,
      vjp=lambda g, y, x: (n.mul(g, n.add(y, 1.0)),))
unary("log", "Natural logarithm.", np.log, dtypes=ANALYTIC, ulp=MATH, domain=(0.01, 50.0),
      vjp=lambda g, y, x: (n.div(g, x),))
unary("log2", "Logarithm to base 2.", np.log2, dtypes=ANALYTIC, ulp=MATH, domain=(0.01, 50.0),
      vjp=lambda g, y, x: (n.div(g, n.mul(x, LN2)),))
unary("log10", "Logarithm to base 10.", np.log10, dtypes=ANALYTIC, ulp=MATH, domain=(0.01, 50.0),
      vjp=lambda g, y, x: (n.div(g, n.mul(x, LN10)),))
unary("log1p", "log(1 + x) without cancellation.", np.log1p, dtypes=ANALYTIC, ulp=MATH, domain=(-0.9, 50.0),
      vjp=lambda g, y, x: (n.div(g, n.add(x, 1.0)),))


def _logistic_value(x: np.ndarray) -> Any:
    e = np.exp(-np.abs(x))  # no overflow on either side
    return np.where(x >= 0, np.ones_like(e), e) / (1 + e)


def _logistic(b: Builder, x: Expr) -> Expr:
    e = b.exp(b.neg(b.abs(x)))
    return b.div(b.select(b.ge(x, 0), 1.0, e), b.add(e, 1.0))


unary("logistic", "1 / (1 + exp(-x)).", _logistic_value, scalar=_logistic, ulp=WIDE,
      vjp=lambda g, y, x: (n.mul(g, n.mul(y, n.sub(1.0, y))),))

# ---- trigonometry ---------------------------------------------------------------------------------------------------

unary("sin", "Sine of x in radians.", np.sin, dtypes=ANALYTIC, ulp=MATH, vjp=lambda g, y, x: (n.mul(g, n.cos(x)),))
unary("cos", "Cosine of x in radians.", np.cos, dtypes=ANALYTIC, ulp=MATH,
      vjp=lambda g, y, x: (n.neg(n.mul(g, n.sin(x))),))
unary("tan", "Tangent of x in radians.", np.tan, dtypes=ANALYTIC, ulp=WIDE, domain=(-1.4, 1.4),
      vjp=lambda g, y, x: (n.mul(g, n.add(n.mul(y, y), 1.0)),))
unary("asin", "Angle in -pi/2..pi/2 whose sine is x.", np.arcsin, dtypes=ANALYTIC, ulp=WIDE, domain=(-0.95, 0.95),
      vjp=lambda g, y, x: (n.div(g, n.sqrt(n.sub(1.0, n.mul(x, x)))),))
unary("acos", "Angle in 0..pi whose cosine is x.", np.arccos, dtypes=ANALYTIC, ulp=WIDE, domain=(-0.95, 0.95),
      vjp=lambda g, y, x: (n.neg(n.div(g, n.sqrt(n.sub(1.0, n.mul(x, x))))),))
unary("atan", "Angle in -pi/2..pi/2 whose tangent is x.", np.arctan, dtypes=ANALYTIC, ulp=WIDE,
      vjp=lambda g, y, x: (n.div(g, n.add(n.mul(x, x), 1.0)),))
unary("sinh", "Hyperbolic sine.", np.sinh, dtypes=ANALYTIC, ulp=WIDE, vjp=lambda g, y, x: (n.mul(g, n.cosh(x)),))
unary("cosh", "Hyperbolic cosine.", np.cosh, dtypes=ANALYTIC, ulp=WIDE, vjp=lambda g, y, x: (n.mul(g, n.sinh(x)),))
unary("tanh", "Hyperbolic tangent.", np.tanh, dtypes=ANALYTIC, ulp=WIDE,
      vjp=lambda g, y, x: (n.mul(g, n.sub(1.0, n.mul(y, y))),))
unary("asinh", "Inverse hyperbolic sine.", np.arcsinh, dtypes=ANALYTIC, ulp=WIDE,
      vjp=lambda g, y, x: (n.div(g, n.sqrt(n.add(n.mul(x, x), 1.0))),))
unary("acosh", "Inverse hyperbolic cosine, at least 0.", np.arccosh, dtypes=ANALYTIC, ulp=WIDE, domain=(1.1, 50.0),
      vjp=lambda g, y, x: (n.div(g, n.mul(n.sqrt(n.sub(x, 1.0)), n.sqrt(n.add(x, 1.0)))),))
unary("atanh", "Inverse hyperbolic tangent.", np.arctanh, dtypes=ANALYTIC, ulp=WIDE, domain=(-0.95, 0.95),
      vjp=lambda g, y, x: (n.div(g, n.sub(1.0, n.mul(x, x))),))


_ERF_SLOPE = 2.0 / math.sqrt(math.pi)


def _bell(g: Node, x: Node, slope: float, by: float = 1.0) -> Node:
    return n.mul(n.mul(g, slope), n.exp(n.mul(n.mul(x, x), -by)))


unary("erf", "Error function, 2 / sqrt(pi) * integral of exp(-t*t) from 0 to x.", each(math.erf), ulp=WIDE,
      vjp=lambda g, y, x: (_bell(g, x, _ERF_SLOPE),))
unary("erfc", "1 - erf(x) without cancellation.", each(math.erfc), ulp=WIDE,
      vjp=lambda g, y, x: (_bell(g, x, -_ERF_SLOPE),))
unary("ndtr", "The normal distribution: erfc(-x / sqrt(2)) / 2.", each(ndtr), ulp=WIDE,
      vjp=lambda g, y, x: (_bell(g, x, 1.0 / math.sqrt(2.0 * math.pi), 0.5),))

# ---- rounding, tests, bits ------------------------------------------------------------------------------------------

unary("floor", "Largest integer not above x.", np.floor, vjp=_no_gradient)
unary("ceil", "Smallest integer not below x.", np.ceil, vjp=_no_gradient)
unary("trunc", "x without its fraction.", np.trunc, vjp=_no_gradient)
unary("rint", "Nearest integer, ties to even.", np.rint, vjp=_no_gradient)

unary("isnan", "Is x NaN.", np.isnan, dtypes=ANALYTIC, result=lambda d: bool_, scalar=lambda b, x: b.ne(x, x))
unary("isinf", "Is x an infinity.", np.isinf, dtypes=ANALYTIC, result=lambda d: bool_,
      scalar=lambda b, x: b.eq(b.abs(x), math.inf))
unary("isfinite", "Is x neither NaN nor an infinity.", np.isfinite, dtypes=ANALYTIC, result=lambda d: bool_,
      scalar=lambda b, x: b.lt(b.abs(x), math.inf))
unary("not", "Logical not of booleans, bitwise complement of integers.", np.invert, dtypes=BOOLS + INTS)

# ---- complex --------------------------------------------------------------------------------------------------------


def _tangent(fn: Callable[[Node], Node]) -> Callable[..., Node | None]:
    return lambda ts, y, x: None if ts[0] is None else fn(ts[0])


unary("real", "Real part.", np.real, dtypes=COMPLEX, result=lambda d: d.real, host=True,
      vjp=lambda g, y, x: (n.cast(g, dtype=x.dtype),), jvp=_tangent(lambda t: n.real(t)))
unary("imag", "Imaginary part.", np.imag, dtypes=COMPLEX, result=lambda d: d.real, host=True,
      vjp=lambda g, y, x: (n.mul(n.cast(g, dtype=x.dtype), -1j),), jvp=_tangent(lambda t: n.imag(t)))
unary("conj", "Complex conjugate.", np.conj, dtypes=COMPLEX, host=True,
      vjp=lambda g, y, x: (n.conj(g),), jvp=_tangent(lambda t: n.conj(t)))
