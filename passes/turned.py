"""Products whose result is wanted with its axes in another order.

Here: when a contraction may write its result turned, the access that does so, what else its kernel computes last.
Not here: roles of the axes, which
follow from the access (problem.py), transposes of everything else (turn.py).

``matmul(w, x)`` of a matrix and a stack, and most results of einsum, are products whose axes come out in an order that
no product has.  The kernel walks the axes of the result as it is wanted: those that are not the innermost ones of
their operand become loops outside, and nothing is turned in memory.  That is worth it while the columns, the innermost
axes of one operand, still fill registers, and are not few beside the sums: the other operand is read again for every
step of the loops outside, which may cost no more than the pass over memory that turns a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowc.dataclass import replace
from flowc.dims import Ranges, prod
from flowc.graph import Graph, Node
from flowc.op import Access, Contraction, Pointwise
from flowc.proofs import known_le

WIDE = 64  # columns from which on they fill registers

Order = tuple[int, ...]  # by axis of the product's own result: the axis of the result as it is wanted


def access_of(node: Node) -> Access:
    lower = node.op.lower
    assert isinstance(lower, Contraction)
    return lower.access((*[x.type for x in node.inputs], node.type), node.attrs)


def turned(access: Access, order: Order) -> Access:
    """The access of the result whose axes are wanted in ``order``."""
    if order == tuple(range(len(order))):
        return access
    own = tuple(order.index(a) for a in range(len(order)))

    def reader(read: Callable[..., Any]) -> Callable[..., Any]:
        return lambda o, r: read(own_index(o, order), r)
    return replace(access, out=tuple(access.out[i] for i in own), lhs=reader(access.lhs), rhs=reader(access.rhs),
                   out_kinds="".join(access.out_kinds[i] for i in own))


def own_index(o: tuple, order: Order) -> tuple:
    """The index of the product's own result at an index of the result as it is wanted."""
    return tuple(o[a] for a in order)


def may_turn(node: Node, order: Order, ranges: Ranges) -> bool:
    """Is the kernel that writes the result in ``order`` as good as the one that does not?"""
    if node.op.name != "dot":  # convolutions have forms of their own
        return False
    access = access_of(node)
    columns, own_columns = _columns(turned(access, order)), _columns(access)
    if not columns:
        return False
    wanted = [order.index(a) for a in columns]
    if wanted == own_columns:
        return True
    last = wanted[-1:] if wanted != list(range(wanted[0], wanted[-1] + 1)) else wanted
    n = prod(access.out[i] for i in last)
    return known_le(WIDE, n, ranges) is True and known_le(prod(access.reduce), 2 * n, ranges) is True


def after_product(graph: Graph, users: Mapping[Node, Sequence[Node]]) -> set[Node]:
    """What a contraction of its shape, or one that may write its result turned, flows into: its kernel computes that
    last, in registers.  As a producer of another contraction it would be computed again for each of its tiles."""
    out: set[Node] = set()
    for n in graph.nodes:
        if not isinstance(n.op.lower, Pointwise):
            continue
        if n.op.name == "transpose":
            (x,), perm = n.inputs, n.attrs["perm"]
            if isinstance(x.op.lower, Contraction) and set(users[x]) == {n} and x not in graph.outputs and may_turn(
                    x, tuple(perm.index(a) for a in range(len(perm))), graph.ranges):
                out.add(n)
        elif not n.op.lower.movement and any(
                x.shape == n.shape and (x in out or isinstance(x.op.lower, Contraction)) for x in n.inputs):
            out.add(n)
    return out


def _columns(access: Access) -> list[int]:
    """The innermost axes that come from one operand."""
    kinds = access.out_kinds
    rest = kinds.rstrip(kinds[-1:])
    return list(range(len(rest), len(kinds))) if kinds[-1:] in ("m", "n") else []
