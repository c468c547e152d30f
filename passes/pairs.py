"""Reductions of what is computed for pairs of short vectors, coordinate by coordinate.

Here: finding what is repeated from smaller operands along an innermost axis of a few elements, and taking its
reductions apart.  Not here: the pass that asks (legalize.py).  Read next: legalize.py.

Differences of positions ``p[:, None, :] - p[None, :, :]`` have a coordinate as their innermost axis.  Kernels would
reduce it alone and write what else is needed of the differences.  Coordinate by coordinate the distances, what is
computed from them and the sums over one of the bodies are rows over the other: one kernel, nothing written for pairs.
"""

from __future__ import annotations

from flowc.graph import Graph, Node, make
from flowc.op import Reduction

FEW = 4     # coordinates
CHAIN = 32  # operations between the repeated operands and a reduction of what is computed from them
# reductions of a coordinate axis -> the operation between two coordinates
_BETWEEN = {"reduce_sum": "add", "reduce_max": "max", "reduce_min": "min"}


def reduced_again(graph: Graph) -> set[Node]:
    """Nodes that flow, element by element, into a reduction or into something larger.  Others are written anyway."""
    out: set[Node] = set()
    for n in reversed(graph.nodes):
        if isinstance(n.op.lower, Reduction) or n.op.name == "broadcast" or n.op.family == "elementwise" and n in out:
            out.update(n.inputs)
    return out


def by_coordinate(n: Node, again: bool) -> Node:
    """``n``; for a reduction of something for pairs of short vectors, its twin made of coordinates.  ``again``: what
    is made of it is reduced again."""
    if not isinstance(n.op.lower, Reduction):
        return n
    x, axes = n.inputs[0], n.attrs["axes"]
    last = x.rank - 1
    if x.rank < 3 or not _few(x.shape[-1]) or not _repeated(x):
        return n
    if x.dtype.floating and x.dtype.bits < 32:
        return n  # summed in more digits than an addition has
    if last not in axes:
        parts = [make(n.op, (c,), dict(n.attrs), n.loc) for c in _coordinates(x)]
        column = [make("reshape", (p,), {"shape": (*p.shape, 1)}, n.loc) for p in parts]
        return make("concatenate", tuple(column), {"axis": n.rank - 1}, n.loc)
    if not again or axes != (last,) or n.op.name not in _BETWEEN or n.dtype is not x.dtype:
        return n
    return _folded(_coordinates(x), _BETWEEN[n.op.name], n)


def _few(size) -> bool:
    return isinstance(size, int) and 1 < size <= FEW


def _repeated(root: Node) -> bool:
    """Is it computed, element by element, from smaller operands that are repeated?"""
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        if node.op.family == "elementwise" and node.inputs and len(seen) < CHAIN:
            stack += [x for x in node.inputs if x not in seen]
            seen.update(node.inputs)
        elif node.op.name != "broadcast":
            return False
    return root.op.name != "broadcast"


def _coordinates(root: Node) -> list[Node]:
    """What ``root`` is for every index of its innermost axis."""
    count, out = int(root.shape[-1]), []  # type: ignore[arg-type]
    for c in range(count):
        done: dict[Node, Node] = {}
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [x for x in node.inputs if x not in done] if node.op.name != "broadcast" else []
            if missing:
                stack += missing
                continue
            stack.pop()
            if node.op.name == "broadcast":
                done[node] = _one(node, c)
            else:
                done[node] = make(node.op, tuple(done[x] for x in node.inputs), dict(node.attrs), node.loc)
        out.append(done[root])
    return out


def _one(node: Node, c: int) -> Node:
    """A broadcast at index ``c`` of its innermost axis."""
    small, axes, shape = node.inputs[0], node.attrs["axes"], node.shape[:-1]
    if len(shape) in axes:
        lead = small.shape[:-1]
        part = make("slice", (small,), {"start": (*(0 for _ in lead), c), "stop": (*lead, c + 1),
                                        "step": (1,) * small.rank}, node.loc)
        small, axes = make("reshape", (part,), {"shape": lead}, node.loc), axes[:-1]
    return make("broadcast", (small,), {"shape": shape, "axes": axes}, node.loc)


def _folded(parts: list[Node], op: str, n: Node) -> Node:
    """The coordinates joined by the tree of a row of so many elements."""
    size = 1 << (len(parts) - 1).bit_length()
    row: list[Node | None] = [*parts, *[None] * (size - len(parts))]
    while len(row) > 1:
        half = len(row) // 2
        row = [a if b is None else b if a is None else make(op, (a, b), {}, n.loc)
               for a, b in zip(row[:half], row[half:], strict=True)]
    assert row[0] is not None
    return row[0]
