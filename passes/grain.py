"""Reductions that read their operands as these lie in memory.

Here: reductions of transposed operands, done in the operands' own order; reductions of axes that do not lie side by
side, done in two stages.  Not here: the pass that asks (legalize.py), transposes that stay (turn.py).
Read next: legalize.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dims import DimLike
from flowc.graph import Node, make
from flowc.op import Reduction
from flowc.types import f32

CHAIN = 24  # operations between a transpose and the reduction of what is computed from it


def along_the_grain(n: Node) -> Node:
    """``n``; for a reduction of what is computed from transposed operands, its twin that reads memory as it lies."""
    if not isinstance(n.op.lower, Reduction):
        return n
    x, axes = n.inputs[0], n.attrs["axes"]
    perm = _grain(x)
    if perm is None or perm[-1] == len(perm) - 1:
        return n
    own = tuple(sorted(perm[a] for a in axes))
    out = make(n.op, (_twin(x, perm),), {"axes": own}, n.loc)
    left = [a for a in range(x.rank) if a not in own]
    order = tuple(left.index(perm[a]) for a in range(x.rank) if a not in axes)
    return out if order == tuple(range(len(order))) else make("transpose", (out,), {"perm": order}, n.loc)


def apart(shape: Sequence[DimLike], axes: Sequence[int]) -> tuple[int, ...]:
    """The innermost of ``axes`` that lie side by side, if the innermost axis is one and others lie apart from them; ()
    if not.  Axes of size 1 are nowhere."""
    last = [a for a in range(len(shape)) if shape[a] != 1]
    inner: list[int] = []
    while last and last[-1] in axes:
        inner.append(last.pop())
    return tuple(reversed(inner)) if any(a in axes for a in last) else ()


def in_stages(n: Node) -> Node:
    """``n``; for a reduction of innermost and of other axes that lie apart from them, such as all but the channels of
    images, one along contiguous memory and one of its few results.  As one its rows would be scattered pieces."""
    x, axes = n.inputs[0], n.attrs["axes"]
    inner = apart(x.shape, axes)
    if not inner or len(n.op.lower.state(x.dtype)) > 1 or x.dtype.kind == "c":  # type: ignore[union-attr]
        return n
    if x.dtype.floating and x.dtype.bits < 32:
        x = make("cast", (x,), {"dtype": f32}, n.loc)  # rounded once
    first = make(n.op, (x,), {"axes": inner}, n.loc)
    left = [a for a in range(x.rank) if a not in inner]
    out = make(n.op, (first,), {"axes": tuple(i for i, a in enumerate(left) if a in axes)}, n.loc)
    return out if out.dtype is n.dtype else make("cast", (out,), {"dtype": n.dtype}, n.loc)


def _grain(root: Node) -> tuple[int, ...] | None:
    """The permutation of the transposes that ``root`` is computed from element by element, if they all share one and
    the other operands are repeated smaller ones."""
    perm: tuple[int, ...] | None = None
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        if node.op.name == "transpose":
            if perm not in (None, node.attrs["perm"]):
                return None
            perm = node.attrs["perm"]
        elif node.op.family == "elementwise" and node.inputs and len(seen) < CHAIN:
            stack += [x for x in node.inputs if x not in seen]
            seen.update(node.inputs)
        elif node.op.name != "broadcast":
            return None
    return perm


def _twin(root: Node, perm: tuple[int, ...]) -> Node:
    """``root`` in the order of the transposed operands: its axis i becomes axis perm[i]."""
    shape: list[DimLike] = [0] * len(perm)
    for i, p in enumerate(perm):
        shape[p] = root.shape[i]
    done: dict[Node, Node] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        missing = [x for x in node.inputs if x not in done] if node.op.family == "elementwise" else []
        if missing and node not in done:
            stack += missing
            continue
        stack.pop()
        if node in done:
            continue
        if node.op.name == "transpose":
            done[node] = node.inputs[0]
        elif node.op.name == "broadcast":
            done[node] = _spread(node, perm, tuple(shape))
        else:
            done[node] = make(node.op, tuple(done[x] for x in node.inputs), dict(node.attrs), node.loc)
    return done[root]


def _spread(node: Node, perm: tuple[int, ...], shape: tuple[DimLike, ...]) -> Node:
    """A broadcast with its axes elsewhere; if their order changes the small operand is transposed."""
    small, to = node.inputs[0], [perm[a] for a in node.attrs["axes"]]
    order = tuple(sorted(range(len(to)), key=to.__getitem__))
    if order != tuple(range(len(order))):
        small = make("transpose", (small,), {"perm": order}, node.loc)
    return make("broadcast", (small,), {"shape": shape, "axes": tuple(sorted(to))}, node.loc)
