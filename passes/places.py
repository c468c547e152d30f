"""Places: at which indices one output element of a kernel asks for every node that it inlines.

Here: ``Place``, how a node hands places on to its operands, how often a node is evaluated; which axes are
fields of records.  Not here: which nodes share a kernel (fuse.py), sliding windows over what was computed before
(stencil.py).  Read next: fuse.py.

A producer that is inlined is computed once for every place where it is asked for.  A stencil asks for its operand at
several places, and places multiply from step to step: counting them before inlining keeps kernels from growing
exponentially.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from flowc.dims import DimLike
from flowc.graph import Node
from flowc.op import General, Pointwise, Reduction
from flowc.proofs import known_eq

FIELDS = 8   # of a record, at most
RECORDS = 8  # that make it worth while to compute their fields together

Entry = tuple[Hashable, DimLike]   # (axis, offset); axis: an axis of the kernel's space, or what is opaque about it


class Place(NamedTuple):
    """index: one entry per axis of the node.  origin: the reduction whose loop asks, None for the kernel's own nest.
    condition: which chain of conditions decides that the element is needed; 0 if it always is."""

    index: tuple[Entry, ...]  # type: ignore[assignment]  # hides a method of tuple that nobody calls on a place
    origin: Node | None = None
    condition: int = 0

    def offsets(self) -> tuple[DimLike, ...] | None:
        """The offset along every axis if axis a of the node lies along axis a of the space, else None."""
        plain = all(axis == a for a, (axis, _) in enumerate(self.index))
        return tuple(off for _, off in self.index) if plain and self.origin is None else None


def at_origin(rank: int) -> Place:
    """Where the root of a kernel is asked for."""
    return Place(tuple((a, 0) for a in range(rank)))


def evaluations(places: Iterable[Place]) -> int:
    """How often a node asked for at ``places`` is computed per element, in the nest that does so most often."""
    per: dict[Node | None, int] = {}
    for p in places:
        per[p.origin] = per.get(p.origin, 0) + 1
    return max(per.values(), default=0)


class Places:
    """Hands places on from nodes to operands.  What is no plain offset, and every chain of conditions, is a number:
    equal numbers are equal things, so that places stay small however deep the graph is."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}

    def number(self, *key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers) + 1)

    def opaque(self, *key: Hashable) -> Entry:
        return ("?", self.number(*key)), 0

    def pass_on(self, node: Node, k: int, p: Place) -> Place:
        """Where operand ``k`` of ``node`` is asked for if ``node`` is asked for at ``p``."""
        lower, x = node.op.lower, node.inputs[k]
        if x.rank == 0:
            return Place((), p.origin, p.condition)
        if isinstance(lower, Reduction):
            axes, kept = node.attrs["axes"], iter(p.index)
            return Place(tuple(((node, a), 0) if a in axes else next(kept) for a in range(x.rank)), node)
        if isinstance(lower, General) and k and node.op.name in _UPDATES:
            return self.update(node, k)
        if isinstance(lower, Pointwise):
            rule = _RULES.get(node.op.name) if lower.movement else _same
            moved = None if rule is None else rule(self, node, k, p)
            if moved is not None:
                return moved
        whole = self.number(node, k, p.index)
        return p._replace(index=tuple((("?", whole, a), 0) for a in range(x.rank)))

    def update(self, node: Node, k: int) -> Place:
        """Positions and updates of a scatter are asked for update by update."""
        axis, rank = node.attrs["axis"], node.inputs[1].rank
        at: list[Entry] = [((node, "update", a), 0) for a in range(rank)]
        if k == 2:
            rest = [((node, "row", a), 0) for a in range(node.rank) if a != axis]
            at = [*rest[:axis], *at, *rest[axis:]]
        return Place(tuple(at), node)

    def guarded(self, node: Node, k: int, p: Place, index: tuple[Entry, ...]) -> Place:
        return Place(index, p.origin, self.number("if", p.condition, node, k, p.index))


_UPDATES = ("scatter", "scatter_add")
Rule = Callable[[Places, Node, int, Place], "Place | None"]


def _same(t: Places, node: Node, k: int, p: Place) -> Place | None:
    return p if node.inputs[k].rank == node.rank else None


def _slice(t: Places, node: Node, k: int, p: Place) -> Place:
    return p._replace(index=tuple((axis, off + lo) if by == 1 else t.opaque(node, axis, off) for (axis, off), lo, by in
                                  zip(p.index, node.attrs["start"], node.attrs["step"], strict=True)))


def _pad(t: Places, node: Node, k: int, p: Place) -> Place:
    return t.guarded(node, k, p, _moved(p.index, node.attrs["low"]))


def _concatenate(t: Places, node: Node, k: int, p: Place) -> Place:
    axis, start = node.attrs["axis"], part_start(node, k)
    return t.guarded(node, k, p, _moved(p.index, [start if a == axis else 0 for a in range(node.rank)]))


def _update_slice(t: Places, node: Node, k: int, p: Place) -> Place:
    if k == 0:
        return p
    index = tuple((axis, off - lo) if by == 1 else t.opaque(node, axis, off) for (axis, off), lo, by in
                  zip(p.index, node.attrs["start"], node.attrs["step"], strict=True))
    return t.guarded(node, k, p, index)


def _transpose(t: Places, node: Node, k: int, p: Place) -> Place:
    out: list = [None] * node.rank
    for i, to in enumerate(node.attrs["perm"]):
        out[to] = p.index[i]
    return p._replace(index=tuple(out))


def _broadcast(t: Places, node: Node, k: int, p: Place) -> Place:
    return p._replace(index=tuple(p.index[a] for a in node.attrs["axes"]))


def _flip(t: Places, node: Node, k: int, p: Place) -> Place:
    return p._replace(index=tuple(t.opaque(node, e) if a in node.attrs["axes"] else e for a, e in enumerate(p.index)))


def _reshape(t: Places, node: Node, k: int, p: Place) -> Place | None:
    """Axes of size 1 come and go; anything else is opaque."""
    x = node.inputs[k]
    left = [(n, e) for n, e in zip(node.shape, p.index, strict=True) if not (isinstance(n, int) and n == 1)]
    into = [n for n in x.shape if not (isinstance(n, int) and n == 1)]
    if len(left) != len(into) or not all(known_eq(n, m) for (n, _), m in zip(left, into, strict=True)):
        return None
    it = iter(left)
    return p._replace(index=tuple((-1, 0) if isinstance(n, int) and n == 1 else next(it)[1] for n in x.shape))


def _gather(t: Places, node: Node, k: int, p: Place) -> Place:
    """Positions are asked for where the result is, the operand at places that they tell."""
    axis, rank = node.attrs["axis"], node.inputs[1].rank
    at = p.index[axis:axis + rank]
    return p._replace(index=at if k else (*p.index[:axis], t.opaque(node, at), *p.index[axis + rank:]))


def _moved(index: tuple[Entry, ...], by: Sequence[DimLike]) -> tuple[Entry, ...]:
    return tuple((axis, off - lo) for (axis, off), lo in zip(index, by, strict=True))


def part_start(node: Node, k: int) -> DimLike:
    """Where operand ``k`` of a concatenation begins."""
    start: DimLike = 0
    for x in node.inputs[:k]:
        start = start + x.shape[node.attrs["axis"]]
    return start


_RULES: dict[str, Rule] = {"slice": _slice, "pad": _pad, "concatenate": _concatenate, "update_slice": _update_slice,
                           "transpose": _transpose, "broadcast": _broadcast, "flip": _flip, "reshape": _reshape,
                           "stop_gradient": _same, "gather": _gather}


def may_be_records(shape: Sequence[DimLike]) -> bool:
    """Is the last axis short enough, and the one before it long enough, to be fields of records (records.py)?"""
    if len(shape) < 2:
        return False
    records, fields = shape[-2:]
    return (isinstance(fields, int) and 2 <= fields <= FIELDS
            and not (isinstance(records, int) and records < RECORDS))
