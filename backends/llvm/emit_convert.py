"""Conversions between dtypes, division of integers, remainders of floats.

Here: ``cast``, ``idiv``, ``imod``, ``fmod``, free of undefined results for every operand.  Not here: other
instructions (emit_expr.py).

Float to integer: towards zero, out of range saturates, NaN gives 0; written with compares and selects, which stay
vectors where LLVM's saturating conversions would not.  Vectors of short integers divide through floats: the rounded
quotient of two integers of n bits never reaches the next integer if the float has a few bits more than n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.builder import float_literal
from flowc.backends.llvm.emit_code import Val, register_type
from flowc.backends.llvm.emit_order import half
from flowc.dims import DimLike
from flowc.kernel import Expr
from flowc.types import DType, bool_, f32, f64, i32, i64

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values


def cast(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """The instruction ``cast``."""
    if args:
        return convert(c, args[0], x.args[0].dtype, x.dtype)
    (size,) = x.args
    short = _short_size(c, size.attr, x.dtype) if c.lanes > 1 and c.varying(size.attr) else None
    return short or convert(c, c.value(size), size.dtype, x.dtype)


def _short_size(c: Values, size: DimLike, d: DType) -> Val | None:
    """A size that grows by a fixed step from lane to lane, in an integer of fewer bits; None for any other.  What it
    has in common with neighbouring vectors is spread over the lanes once."""
    p = c.place(size)
    if p.offsets is not None or not isinstance(p.stride, int):
        return None
    ty, end = register_type(d), 1 << (d.bits - 1)
    with c.index_arithmetic():
        lanes = ", ".join([f"{ty} {(p.const + p.stride * k + end) % (2 * end) - end}" for k in range(c.lanes)])
        base = c.whole(p.terms)
        if base == 0:
            return Val(f"<{lanes}>", True)
        first = c.splat(Val(c.op(f"trunc i64 {base} to {ty}")), ty)
        return Val(c.op(f"add {c.vec(ty)} <{lanes}>, {first}"), True)


def convert(c: Values, v: Val, a: DType, b: DType) -> Val:
    """``v`` of dtype ``a`` in dtype ``b``."""
    if a is b:
        return v
    if half(a):
        return convert(c, c.widen(v, a), f32, b)
    if half(b):
        if a is f64:
            v = _to_odd(c, v) if b.name == "f16" else convert(c, v, f64, f32)
        else:
            v = convert(c, v, a, f32)
        return c.narrow(v, b)
    ta, tb = c.vec(register_type(a), v.wide), c.vec(register_type(b), v.wide)
    zero = "zeroinitializer" if v.wide else float_literal(0.0, ta) if a.floating else "0"
    if b is bool_:
        return Val(c.op(f"{'fcmp une' if a.floating else 'icmp ne'} {ta} {v.text}, {zero}"), v.wide)
    if a.floating and b.floating:
        return Val(c.op(f"{'fpext' if b.bits > a.bits else 'fptrunc'} {ta} {v.text} to {tb}"), v.wide)
    if a.floating:
        return _to_integer(c, v, a, b)
    signed = a.kind == "i"
    if b.floating:
        return Val(c.op(f"{'sitofp' if signed else 'uitofp'} {ta} {v.text} to {tb}"), v.wide)
    if a.bits == b.bits and a is not bool_:
        return v
    wider = a is bool_ or b.bits > a.bits
    return Val(c.op(f"{('sext' if signed else 'zext') if wider else 'trunc'} {ta} {v.text} to {tb}"), v.wide)


def _to_integer(c: Values, v: Val, a: DType, b: DType) -> Val:
    ty, out, flags = c.vec(register_type(a), v.wide), c.vec(register_type(b), v.wide), c.vec("i1", v.wide)

    def number(k: float) -> str:
        text = float_literal(k, register_type(a))
        return f"splat ({register_type(a)} {text})" if v.wide else text

    def integer(k: int) -> str:
        return f"splat ({register_type(b)} {k})" if v.wide else str(k)

    signed = b.kind == "i"
    end, low = 2.0 ** (b.bits - signed), -(2.0 ** (b.bits - 1)) if signed else 0.0
    above = c.op(f"fcmp ogt {ty} {v.text}, {number(low)}")  # not for NaN
    safe = c.op(f"select {flags} {above}, {ty} {v.text}, {ty} {number(low)}")
    r = c.op(f"{'fptosi' if signed else 'fptoui'} {ty} {safe} to {out}")  # anything for what is too large
    over = c.op(f"fcmp oge {ty} {v.text}, {number(end)}")
    r = c.op(f"select {flags} {over}, {out} {integer((1 << (b.bits - signed)) - 1)}, {out} {r}")
    if signed:
        nan = c.op(f"fcmp uno {ty} {v.text}, {number(0.0)}")
        r = c.op(f"select {flags} {nan}, {out} {integer(0)}, {out} {r}")
    return Val(r, v.wide)


def _to_odd(c: Values, v: Val) -> Val:
    """f64 to f32, inexact results made odd: rounding that to fewer bits is then right (Boldo and Melquiond 2008)."""
    d, f, i, flags = (c.vec(t, v.wide) for t in ("double", "float", "i32", "i1"))

    def one(k: int) -> str:
        return f"splat (i32 {k})" if v.wide else str(k)

    near = c.op(f"fptrunc {d} {v.text} to {f}")
    back = c.op(f"fpext {f} {near} to {d}")
    inexact = c.op(f"fcmp one {d} {back}, {v.text}")
    big = c.op(f"fcmp ogt {d} {c.intrinsic('fabs', d, f'{d} {back}')}, {c.intrinsic('fabs', d, f'{d} {v.text}')}")
    bits = c.op(f"bitcast {f} {near} to {i}")
    less = c.op(f"sub {i} {bits}, {one(1)}")
    low = c.op(f"select {flags} {big}, {i} {less}, {i} {bits}")
    odd = c.op(f"or {i} {low}, {one(1)}")
    out = c.op(f"select {flags} {inexact}, {i} {odd}, {i} {bits}")
    return Val(c.op(f"bitcast {i} {out} to {f}"), v.wide)


def divide(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """``idiv`` and ``imod``: floor division, 0 where the divisor is 0."""
    d, quotient = x.dtype, x.op == "idiv"
    wide, (a, b) = c.together(args, [d, d])
    one = register_type(d)
    ty, flags, signed = c.vec(one, wide), c.vec("i1", wide), d.kind == "i"

    def number(k: int) -> str:
        return f"splat ({one} {k})" if wide else str(k)

    by = x.args[1].attr if x.args[1].op == "const" else None
    if by is not None and by not in (0, -1):
        safe, trouble = b, None
    else:
        trouble = c.op(f"icmp eq {ty} {b}, {number(0)}")
        minus = c.op(f"icmp eq {ty} {b}, {number(-1)}") if signed else None
        bad = trouble if minus is None else c.op(f"or {flags} {trouble}, {minus}")
        safe = c.op(f"select {flags} {bad}, {ty} {number(1)}, {ty} {b}")
    q = _quotient(c, a, safe, d, wide, by)
    r = c.op(f"sub {ty} {a}, {c.op(f'mul {ty} {q}, {safe}')}")
    out = q if quotient else r
    if signed:
        inexact = c.op(f"icmp ne {ty} {r}, {number(0)}")
        opposite = c.op(f"icmp slt {ty} {c.op(f'xor {ty} {r}, {safe}')}, {number(0)}")
        step = c.op(f"and {flags} {inexact}, {opposite}")
        moved = c.op(f"sub {ty} {q}, {number(1)}") if quotient else c.op(f"add {ty} {r}, {safe}")
        out = c.op(f"select {flags} {step}, {ty} {moved}, {ty} {out}")
    if trouble is not None:
        if quotient and signed:
            negated = c.op(f"sub {ty} {number(0)}, {a}")
            out = c.op(f"select {flags} {minus}, {ty} {negated}, {ty} {out}")
        out = c.op(f"select {flags} {trouble}, {ty} {number(0)}, {ty} {out}")
    return Val(out, wide)


def _quotient(c: Values, a: str, b: str, d: DType, wide: bool, by: int | None) -> str:
    """Truncated quotient for b != 0, and b != -1 if signed."""
    ty, signed = c.vec(register_type(d), wide), d.kind == "i"
    if not wide or by is not None or d.bits == 64:
        return c.op(f"{'sdiv' if signed else 'udiv'} {ty} {a}, {b}")
    through = f32 if d.bits <= 16 else f64
    x, y = (convert(c, Val(t, True), d, through).text for t in (a, b))
    real = c.vec(register_type(through))
    q = c.op(f"fdiv {real} {x}, {y}")
    return c.op(f"{'fptosi' if signed else 'fptoui'} {real} {q} to {ty}")


# ---- fmod -----------------------------------------------------------------------------------------------------------

def fmod(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """Remainder of truncated division, exact, as a loop that takes all but two bits of a mantissa per turn.

    With t = |y| * 2**s chosen so that |x| / t is below 2**(p-1) for a p-bit mantissa, the rounded quotient cut to an
    integer is right or one too large, and its multiple of t is taken off without rounding; the loop ends at s = 0."""
    d, b = x.dtype, c.builder
    wide = any(a.wide for a in args)
    mark = c.fresh("fmod")[1:]
    names = {k: b.ref(f"{mark}.{k}", d) for k in "xyr"}
    saved, c.memo = c.memo, {}
    for k, a in zip("xy", args, strict=True):
        c.env[f"{mark}.{k}"] = Val(c.splat(a, register_type(d)), True) if wide else a
    u, v, r = b.abs(names["x"]), b.abs(names["y"]), names["r"]
    inf = b.const(float("inf"), d)
    valid = b.and_(b.lt(u, inf), b.gt(v, 0.0))
    start = c.value(b.select(valid, u, 0.0))
    following = _fmod_step(c, r, v, d)
    more = b.ge(r, v)
    first = c.any_lane(c.value(b.and_(valid, b.ge(u, v))))
    ty = c.vec(register_type(d), wide)
    begin = c.splat(start, register_type(d)) if wide else start.text
    before = c.block
    with c.branch(first):
        scope, head, done = c.begin_scope(False), c.label("body"), c.label("done")
        entry = c.block
        c.br(head)
        c.begin(head)
        at, lines, now = len(c.lines), c.lines, c.fresh("r")
        c.raw("")
        c.enter_scope(scope, now)
        c.env[f"{mark}.r"] = Val(now, wide)
        c.memo = {}
        last = c.value(following).text
        c.env[f"{mark}.r"], c.memo = Val(last, wide), {}
        again = c.any_lane(c.value(more))
        lines[at] = f"  {now} = phi {ty} [ {begin}, %{entry} ], [ {last}, %{c.block} ]"
        c.cond_br(again, head, done)
        c.end_scope()
        c.begin(done)
        after = c.block
    c.env[f"{mark}.r"] = Val(c.here(f"phi {ty} [ {last}, %{after} ], [ {begin}, %{before} ]"), wide)
    c.memo = {}
    ordinary = b.and_(valid, b.eq(names["y"], names["y"]))
    out = c.value(b.select(ordinary, b.copysign(r, names["x"]), float("nan")))
    c.memo = saved
    return out


def _fmod_step(c: Values, r: Expr, v: Expr, d: DType) -> Expr:
    """One turn of fmod for r >= 0, v > 0; lanes with r < v stay."""
    b, m = c.builder, {32: 23, 64: 52}[d.bits]
    integer = {32: i32, 64: i64}[d.bits]

    def exponent(y: Expr) -> tuple[Expr, Expr, Expr]:
        """(y made normal, by which power of two, its exponent before that)"""
        tiny = b.lt(y, 2.0 ** (1 - (1 << (d.bits - m - 2)) + 1))
        up = b.select(tiny, b.mul(y, 2.0 ** (m + 1)), y)
        shift = b.select(tiny, b.const(m + 1, integer), 0)
        return up, shift, b.sub(b.shr(b.bitcast(up, integer), m), shift)

    normal, shift, low = exponent(v)
    _, _, high = exponent(r)
    s = b.max(b.sub(b.sub(high, low), m - 1), 0)
    power = b.cast(b.sub(s, shift), i32)
    t = b.make("scale", (normal, b.cast(power, d), power), d)
    left = b.fma(b.neg(b.trunc(b.div(r, t))), t, r)
    left = b.select(b.lt(left, 0.0), b.add(left, t), left)
    return b.select(b.ge(r, v), left, r)
