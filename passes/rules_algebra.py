"""Laws of arithmetic, logic, comparison, selection and conversion.

Here: rules as data, in the order in which they are tried.  Not here: movement and reductions (rules_movement.py), how
rules run (flowc/rewrite.py).  Read next: simplify.py.

Integers wrap, so every law of the ring modulo 2**bits holds for them.  For floats a law stands here only if both
sides have the same bits for NaN, infinities and both zeros; the others are marked ``fast``.  The usual traps:
x + 0 is not x for -0.0, x * 0 is not 0 for infinity, x - x is not 0 for infinity, -(x - y) is not y - x for x = y.
Complex numbers are left alone but for what holds part by part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowc.graph import Node
from flowc.op import REGISTRY, Op
from flowc.rewrite import Match, P, Rule, any_op, attr, const, elementwise, rest, rule, splat_value, var
from flowc.types import DType

x, y, z = var("x"), var("y"), var("z")
c, d = const("c"), const("d")
cond = var("cond")

# ---- conditions -----------------------------------------------------------------------------------------------------


def kinds(letters: str) -> Callable[[Match], bool]:
    """The first operand's dtype is of one of these kinds: b i u f c."""
    return lambda m: m.root.inputs[0].dtype.kind in letters


ints, floats, reals, bits = kinds("iu"), kinds("f"), kinds("iuf"), kinds("biu")


def is_float(value: Any) -> bool:
    """Also true for bfloat16, whose NumPy kind depends on its library."""
    return np.dtype(value.dtype).kind not in "biuc"


def all_ones(value: Any) -> bool:
    return np.dtype(value.dtype).kind in "biu" and bool(np.invert(value) == 0)


def has_reciprocal(value: Any) -> bool:
    """Is the float's reciprocal an ordinary number of its dtype, if not an exact one?"""
    if not is_float(value) or not np.isfinite(np.float64(value)) or value == 0:
        return False
    with np.errstate(all="ignore"):
        reciprocal = np.float64(np.asarray(1.0 / np.float64(value)).astype(value.dtype))
    return bool(np.isfinite(reciprocal) and reciprocal != 0)


def exact_reciprocal(value: Any) -> bool:
    """Is the float a power of two, of either sign, whose reciprocal is a number of its dtype too?  Then dividing by it
    and multiplying by the reciprocal both round the same real number once."""
    if not has_reciprocal(value):
        return False
    mantissa, _ = np.frexp(np.float64(value))
    reciprocal = np.asarray(1.0 / np.float64(value)).astype(value.dtype)
    return bool(abs(mantissa) == 0.5 and np.float64(reciprocal) * np.float64(value) == 1.0)


def power_of_two(value: Any) -> bool:
    return np.dtype(value.dtype).kind in "iu" and int(value) > 0 and int(value) & (int(value) - 1) == 0


def limit(largest: bool) -> Callable[[Any], bool]:
    """The greatest (least) value of its dtype: infinity among floats."""
    def test(value: Any) -> bool:
        kind = np.dtype(value.dtype).kind
        if kind in "iu":
            info = np.iinfo(value.dtype)
            return int(value) == (info.max if largest else info.min)
        return kind not in "bc" and bool(np.float64(value) == (np.inf if largest else -np.inf))
    return test


# ---- building constants ---------------------------------------------------------------------------------------------

def computed(op: str, *names: str) -> Callable[[Match], Node]:
    """A template part: ``op`` of the constants ``names``, computed now by the op's own meaning."""
    def build(m: Match) -> Node:
        value = REGISTRY[op].numpy(*[np.asarray(m.value(n)) for n in names])
        return m.splat(np.asarray(value)[()], m.bound[names[0]].type)
    return build


def with_constant(op: str | None, constant: Callable[[Match], Node]) -> Callable[[Match], Node]:
    """``op(x, constant)``; None: the root's own op."""
    return lambda m: m.make(op or m.root.op, m.x, constant(m))


def whole(value: bool | int) -> Callable[[Match], Node]:
    """Every element ``value``; -1 of an unsigned or boolean dtype has all bits set."""
    return lambda m: m.splat(bool(value) if m.root.dtype.kind == "b" else value)


# ---- general --------------------------------------------------------------------------------------------------------

def _is_constant(n: Node) -> bool:
    return splat_value(n) is not None


def _commutes(op: Op) -> bool:
    return op.commutative and op.arity == 2


MIRROR = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}

CANON = [
    rule("const-right", any_op(_commutes, c, x), lambda m: m.again(m.root.op, m.x, m.c),
         when=lambda m: not _is_constant(m.x)),
    *(rule(f"const-right-{a}", P[a](c, x), P[b](x, c), when=lambda m: not _is_constant(m.x))
      for a, b in MIRROR.items()),
]

# ---- + - * / --------------------------------------------------------------------------------------------------------

NEUTRAL = [
    rule("add-zero", x + -0.0, x),
    rule("sub-zero", x - 0, x),
    rule("mul-one", x * 1, x),
    rule("div-one", x / 1, x),
    rule("pow-one", P.pow(x, 1), x),
    rule("floordiv-one", P.floor_divide(x, 1), x, when=ints),
    rule("mod-one", P.mod(x, 1), 0, when=ints),
    rule("mul-zero", x * 0, 0, when=ints),
    rule("mul-zero-fast", x * 0, 0, when=floats, fast=True),
    rule("add-zero-fast", x + 0.0, x, when=floats, fast=True),
    rule("pow-zero", P.pow(x, 0), 1, when=reals),
]

SIGNS = [
    rule("neg-neg", P.neg(P.neg(x)), x),
    rule("add-neg", x + (-y), x - y),
    rule("sub-neg", x - (-y), x + y),
    rule("zero-sub", -0.0 - x, -x),
    rule("mul-minus-one", x * -1, -x),
    rule("div-minus-one", x / -1, -x),
    rule("mul-neg-neg", (-x) * (-y), x * y),
    rule("div-neg-neg", (-x) / (-y), x / y, when=floats),
    rule("mul-neg-const", (-x) * c, with_constant("mul", computed("neg", "c")), when=reals),
    rule("div-neg-const", (-x) / c, with_constant("div", computed("neg", "c")), when=floats),
    rule("neg-mul-const", -(x * c), with_constant("mul", computed("neg", "c")), when=reals),
    rule("neg-sub", -(x - y), y - x, when=ints),
    rule("abs-abs", P.abs(P.abs(x)), P.abs(x)),
    rule("abs-neg", P.abs(-x), P.abs(x), when=lambda m: m.x.dtype.kind != "u"),
    rule("abs-copysign", P.abs(P.copysign(x, y)), P.abs(x)),
    rule("copysign-abs", P.copysign(P.abs(x), y), P.copysign(x, y)),
    rule("copysign-neg", P.copysign(-x, y), P.copysign(x, y)),
    rule("square-abs", P.abs(x) * P.abs(x), x * x, when=lambda m: m.x.dtype.kind != "c"),
    rule("conj-conj", P.conj(P.conj(x)), x),
]

RING = [
    rule("sub-self", x - x, 0, when=ints),
    rule("sub-self-fast", x - x, 0, when=floats, fast=True),
    rule("div-self-fast", x / x, 1, when=floats, fast=True),
    rule("sub-const", x - c, with_constant("add", computed("neg", "c")), when=ints),
    rule("add-sub", (x - y) + y, x, when=ints),
    rule("sub-add", (x + y) - y, x, when=ints),
    *(rule(f"{op}-consts", P[op](P[op](x, c), d), with_constant(None, computed(op, "c", "d")), when=bits)
      for op in ("add", "mul", "and", "or", "xor", "max", "min")),
    *(rule(f"{op}-consts-fast", P[op](P[op](x, c), d), with_constant(None, computed(op, "c", "d")), when=floats,
           fast=True) for op in ("add", "mul")),
]

POWERS = [
    # the product is correctly rounded, the power within its own bound
    rule("pow-two", P.pow(x, 2), x * x, when=reals, ulp=2),
    rule("pow-minus-one", P.pow(x, -1), 1.0 / x, when=floats, ulp=2),
    rule("pow-three-fast", P.pow(x, 3), (x * x) * x, when=floats, fast=True),
    rule("exp-log-fast", P.exp(P.log(x)), x, when=floats, fast=True),
    rule("log-exp-fast", P.log(P.exp(x)), x, when=floats, fast=True),
    rule("div-power-of-two", x / const("c", exact_reciprocal), with_constant("mul", lambda m: m.splat(
        (1.0 / np.float64(m.value("c"))), m.c.type))),
    rule("div-const-fast", x / const("c", has_reciprocal), with_constant("mul", lambda m: m.splat(
        1.0 / np.float64(m.value("c")), m.c.type)), fast=True),
    rule("floordiv-power-of-two", P.floor_divide(x, const("c", power_of_two)), with_constant("shr", lambda m: m.splat(
        int(m.value("c")).bit_length() - 1, m.c.type))),
    rule("mod-power-of-two", P.mod(x, const("c", power_of_two)), with_constant("and", lambda m: m.splat(
        int(m.value("c")) - 1, m.c.type))),
]

# ---- max and min, rounding, classes of floats -----------------------------------------------------------------------

EXTREMES = [r for op, other in (("max", "min"), ("min", "max")) for r in (
    rule(f"{op}-self", P[op](x, x), x),
    rule(f"{op}-limit", P[op](x, const("c", limit(op == "min"))), x),
    rule(f"{op}-absorb", P[op](x, P[op](x, y)), P[op](x, y), when=ints),
    rule(f"{op}-{other}-absorb", P[op](x, P[other](x, y)), x, when=ints),
)]

ROUNDINGS = ("floor", "ceil", "trunc", "rint")


def _integer_valued(n: Node) -> bool:
    return n.op.name in ROUNDINGS or n.op.name == "cast" and n.inputs[0].dtype.kind in "biu"


ROUNDING = [
    *(rule(f"{op}-of-integer", P[op](var("x", _integer_valued)), x) for op in ROUNDINGS),
    rule("sign-sign", P.sign(P.sign(x)), P.sign(x), when=reals),
]

CLASSES = [rule(f"{test}-{inner}", P[test](P[inner](x)), P[test](x), when=floats)
           for test in ("isnan", "isinf", "isfinite") for inner in ("neg", "abs")]

# ---- logic and bits -------------------------------------------------------------------------------------------------

ONES = const("c", all_ones)

LOGIC = [
    rule("not-not", P["not"](P["not"](x)), x),
    rule("and-self", P["and"](x, x), x),
    rule("or-self", P["or"](x, x), x),
    rule("xor-self", P["xor"](x, x), whole(0)),
    rule("and-ones", P["and"](x, ONES), x),
    rule("or-ones", P["or"](x, ONES), lambda m: m.c),
    rule("xor-ones", P["xor"](x, ONES), P["not"](x)),
    *(r for zero, suffix in ((0, ""), (False, "-bool")) for r in (
        rule(f"and-zero{suffix}", P["and"](x, zero), zero),
        rule(f"or-zero{suffix}", P["or"](x, zero), x),
        rule(f"xor-zero{suffix}", P["xor"](x, zero), x))),
    rule("and-not-self", P["and"](x, P["not"](x)), whole(0)),
    rule("or-not-self", P["or"](x, P["not"](x)), whole(-1)),
    rule("xor-xor", P["xor"](P["xor"](x, y), y), x),
    rule("and-or-absorb", P["and"](x, P["or"](x, y)), x),
    rule("or-and-absorb", P["or"](x, P["and"](x, y)), x),
    rule("shl-zero", P.shl(x, 0), x),
    rule("shr-zero", P.shr(x, 0), x),
]

# ---- comparisons ----------------------------------------------------------------------------------------------------

NEGATED = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}

COMPARE = [
    *(rule(f"{op}-self", P[op](x, x), op in ("eq", "le", "ge"), when=bits) for op in NEGATED),
    # NaN makes both lt and ge false, but eq and ne are opposites everywhere
    *(rule(f"not-{a}", P["not"](P[a](x, y)), P[b](x, y), when=None if a in ("eq", "ne") else
           lambda m: m.x.dtype.kind in "biu") for a, b in NEGATED.items()),
    rule("eq-true", P.eq(x, True), x),
    rule("ne-false", P.ne(x, False), x),
    rule("eq-false", P.eq(x, False), P["not"](x)),
    rule("ne-true", P.ne(x, True), P["not"](x)),
]

# ---- select and cast ------------------------------------------------------------------------------------------------

SELECT = [
    rule("select-same", P.select(cond, x, x), x),
    rule("select-true", P.select(True, x, y), x),
    rule("select-false", P.select(False, x, y), y),
    rule("select-not", P.select(P["not"](cond), x, y), P.select(cond, y, x)),
    rule("select-then-select", P.select(cond, P.select(cond, x, y), z), P.select(cond, x, z)),
    rule("select-else-select", P.select(cond, x, P.select(cond, y, z)), P.select(cond, x, z)),
    rule("select-bool", P.select(cond, True, False), cond),
    rule("select-bool-not", P.select(cond, False, True), P["not"](cond)),
]

# binary digits that an integer needs to survive the way through a float
_MANTISSA = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}
_FLOAT_INTO = {("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")}


def lossless(a: DType, b: DType) -> bool:
    """Does every value of ``a`` exist in ``b``?  Complex dtypes only into themselves."""
    if a is b or a.kind == "b" and b.kind in "iuf":
        return True
    if a.integer and b.integer:
        return b.bits > a.bits if a.kind == "u" or b.kind == "i" else False
    if a.integer and b.floating:
        return a.bits - (a.kind == "i") <= _MANTISSA[b.name]
    return (a.name, b.name) in _FLOAT_INTO


def skips_middle(a: DType, b: DType, e: DType) -> bool:
    """Is a cast from ``a`` through ``b`` to ``e`` the cast from ``a`` to ``e``?"""
    if lossless(a, b):
        # an integer wraps into a narrower integer, but saturates when it comes from a float
        return not (a.kind in "iu" and b.floating and e.integer) or lossless(a, e)
    return a.integer and b.integer and e.integer and b.bits >= e.bits  # wrapping twice is wrapping once


CAST = [
    rule("cast-same", P.cast(x, dtype=attr("to")), x, when=lambda m: m.x.dtype is m.to),
    rule("cast-cast", P.cast(P.cast(x, dtype=attr("via")), dtype=attr("to")), P.cast(x, dtype=attr("to")),
         when=lambda m: skips_middle(m.x.dtype, m.via, m.to)),
]

# ---- elementwise work before broadcasts instead of after ------------------------------------------------------------


def _before_broadcast(m: Match) -> Node | None:
    """All operands are broadcast in one way, or are one value: compute on the smaller tensors, then broadcast."""
    wide = m.root.inputs
    if any(n.op.name != "broadcast" for n in wide):
        return None
    lead = max(wide, key=lambda n: n.inputs[0].rank)
    small = lead.inputs[0].type
    operands = []
    for n in wide:
        inner = n.inputs[0]
        if n.attrs["axes"] == lead.attrs["axes"] and inner.shape == small.shape:
            operands.append(inner)
        elif inner.rank == 0:
            operands.append(m.broadcast(inner, small.shape, ()))
        else:
            return None
    return m.broadcast(m.again(m.root.op, *operands), m.root.shape, lead.attrs["axes"])


LIFT = [rule("broadcast-last", any_op(elementwise, P.broadcast(x), rest("xs")), _before_broadcast)]

ALGEBRA: list[Rule] = [*CANON, *NEUTRAL, *SIGNS, *RING, *POWERS, *EXTREMES, *ROUNDING, *CLASSES, *LOGIC, *COMPARE,
                       *SELECT, *CAST, *LIFT]
