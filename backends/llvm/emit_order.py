"""In which order an expression is computed.

Here: what an instruction needs first, which functions are written out and which are called, the steps that follow.
Not here: what a step does (emit_expr.py), functions as expressions (mathlib.py).  Read next: emit_loops.py.

Copies of an unrolled loop and of a vector loop compute the same expressions over and over, so the order is found
once: operands first, each part once, without recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from flowc.backends.llvm.emit_code import Val, literal
from flowc.backends.llvm.emit_outline import call, outlined
from flowc.backends.llvm.mathlib import EXPAND
from flowc.kernel import Expr
from flowc.types import DType, bf16, f16, f32, i64

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values

Do = Callable[["Values", Expr, Sequence[Val]], Val]

COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
HALVES = frozenset((f16, bf16))
FUNCTIONS = frozenset(name for name, _ in EXPAND)


class Steps(NamedTuple):
    """How the value of ``root`` comes about.  constants: what needs no code, by identity of the expression.
    rest: (identity, expression, what it does, identities of the operands), operands first.
    inline: further uses of functions that may be written out after this."""

    root: Expr
    constants: dict[int, Val]
    rest: list[tuple[int, Expr, Do, tuple[int, ...]]]
    inline: int | None


def half(d: DType) -> bool:
    """A 16-bit float: stored as bits, computed in f32."""
    return d in HALVES


def steps(c: Values, root: Expr) -> Steps:
    constants: dict[int, Val] = {}
    rest: list[tuple[int, Expr, Do, tuple[int, ...]]] = []
    done: set[int] = set()
    stack: list[tuple[Expr, Do | None, Sequence[Expr]]] = [(root, None, ())]
    while stack:
        x, do, operands = stack.pop()
        key = id(x)
        if key in done:
            continue
        if do is None:
            if x.op == "const":
                constants[key] = Val(literal(x.attr, x.dtype))
                done.add(key)
                continue
            do, operands = _step(c, x)
            if operands:
                missing = [(a, None, ()) for a in reversed(operands) if id(a) not in done]
                if missing:
                    stack.append((x, do, operands))
                    stack += missing
                    continue
        done.add(key)
        rest.append((key, x, do, tuple(map(id, operands))))
    if c.inline is not None:
        c.inline = max(c.inline, 0)  # one that is asked for and not written out counts for nothing
    return Steps(root, constants, rest, c.inline)


def _step(c: Values, x: Expr) -> tuple[Do, Sequence[Expr]]:
    """What is done for an expression, and what must be known before."""
    if x.op == "rarely":  # the rare value is computed under a condition
        return c.instruction(x), (x.args[0], x.args[2])
    if x.op not in FUNCTIONS:
        if x.op in COMPARISONS and compares_sizes(x) or narrows_size(x):
            return c.instruction(x), ()
        return c.instruction(x), x.args[0].args if x.op == "not" and _negates_floats(x) else x.args
    if x.op in c.target.native:
        return c.instruction(x), x.args[:2] if x.op == "scale" else x.args  # its power as an integer is for the others
    if outlined(c, x):
        return call, x.args
    whole = _expansion(c, x)
    return (c.instruction(x), x.args) if whole is None else (_same, (whole,))


def _same(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    return args[0]


def _expansion(c: Values, x: Expr) -> Expr | None:
    """The primitive form of a function that is no instruction of the target; found once."""
    if id(x) not in c.expanded:
        c.expanded[id(x)] = (x, _expanded(c, x))
    return c.expanded[id(x)][1]


def _expanded(c: Values, x: Expr) -> Expr | None:
    fn = EXPAND.get((x.op, x.dtype.name))
    if fn is not None:
        return fn(c.builder, *x.args)
    if not half(x.dtype) or (x.op, "f32") not in EXPAND:
        return None
    b = c.builder
    args = [b.cast(a, f32) if a.dtype is x.dtype else a for a in x.args]
    return b.cast(b.make(x.op, tuple(args), f32), x.dtype)


def _negates_floats(x: Expr) -> bool:
    """``not`` of a comparison of floats: one comparison, true where an operand is no number."""
    (compared,) = x.args
    return compared.op in COMPARISONS and compared.args[0].dtype.floating and not half(compared.args[0].dtype)


def compares_sizes(x: Expr) -> bool:
    """A comparison whose operands are sizes: they need not be computed one by one."""
    return all(a.op == "index" or a.op == "const" and a.dtype is i64 for a in x.args)


def narrows_size(x: Expr) -> bool:
    """A size as a shorter integer: it need not be computed in full."""
    return x.op == "cast" and x.args[0].op == "index" and x.dtype.integer and x.dtype.bits < i64.bits
