"""Maps of columns that were reduced, with the reductions: softmax or normalisation over rows, one kernel for all of it.

Here: recognising column kernels and maps over the same elements that hand each other whole columns, and making them
one group.  Not here: its loops (columns.py), the same for rows, which are fused from the start (fuse.py).

A strip of columns is walked over several times while it lies in a cache: once for every reduction that needs another,
once for what is written.  Values of every element that lay in memory in between are computed again, or kept beside the
strip where that is costly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowc.dataclass import replace
from flowc.dims import DimLike, Ranges
from flowc.graph import Graph, Node
from flowc.passes.columns import near
from flowc.passes.fuse import MAX_NODES, Demand, Group, readers_of
from flowc.passes.schedule import Machine
from flowc.proofs import known_eq


def join_column_blocks(groups: Sequence[Group], graph: Graph, machine: Machine, allow: Callable[[str, Node], bool]
                       ) -> list[Group]:
    """The groups with every such family made one."""
    kept = set(graph.outputs)
    readers = readers_of(groups)
    gone: dict[Group, Group | None] = {}
    for i in reversed(range(len(groups))):
        last = groups[i]
        if last in gone or last.kind != "map" or last.root.rank < 2:
            continue
        family = _Family(last, readers, graph.ranges, machine, gone)
        for g in reversed(groups[:i]):
            family.take(g)
        whole = family.joined(kept)
        if whole is not None and allow("column-block", last.root):
            gone |= dict.fromkeys(family.groups)
            gone[last] = whole
    out = [h for h in ((gone[g] if g in gone else g) for g in groups) if h is not None]
    for g in out:
        g.reads = {gone.get(r) or r for r in g.reads}
    return out


class _Family:
    """A map and what it is made from, the last in running order first."""

    def __init__(self, last: Group, readers: dict[Node, set[Group]], ranges: Ranges, machine: Machine,
                 gone: dict[Group, Group | None]):
        self.groups, self.readers, self.ranges, self.machine, self.gone = [last], readers, ranges, machine, gone
        self.shape = last.root.shape
        self.axes: tuple[int, ...] | None = None

    def take(self, g: Group) -> None:
        """Add a group that only this family reads, element by element and column by column."""
        users = set().union(*(self.readers.get(n, set()) for n in g.outputs))
        if g in self.gone or not users or not users <= set(self.groups):
            return
        axes = self._reduced(g, users)
        if axes is not None and self._alike(g, axes) and all(
                self._in_place(n, h, axes) for n in g.outputs for h in self.readers.get(n, ())):
            self.groups.append(g)
            self.axes = axes or self.axes

    def _reduced(self, g: Group, users: set[Group]) -> tuple[int, ...] | None:
        """The axes that a group's results have not; None if they are not those of the family."""
        if g.kind == "map" and self._full(g.root):
            return ()
        axes = g.root.attrs["axes"] if g.kind == "column" else None
        for h in users if axes is None else ():  # a map of columns: spread over what?
            asked = [d for n in g.outputs for d in h.demands.get(n, ()) if d is not None]
            if self._full(h.root) and asked:
                axes = tuple(a for a in range(len(self.shape)) if a not in asked[0])
            elif h.root.rank < len(self.shape):
                axes = self.axes
        return axes if self.axes in (None, axes) else None

    def _alike(self, g: Group, axes: tuple[int, ...]) -> bool:
        if g.kind not in ("map", "column") or not all(n.shape == g.root.shape for n in (*g.outputs, *g.reductions)):
            return False
        kept = tuple(n for a, n in enumerate(self.shape) if a not in axes)
        return len(kept) == g.root.rank and all(map(self._equal, kept, g.root.shape)) and all(
            n.attrs["axes"] == axes and self._full(n.inputs[0]) for n in g.reductions)

    def _equal(self, a: DimLike, b: DimLike) -> bool:
        return bool(known_eq(a, b, self.ranges))

    def _full(self, n: Node) -> bool:
        return n.rank == len(self.shape) and all(map(self._equal, n.shape, self.shape))

    def _in_place(self, n: Node, h: Group, axes: tuple[int, ...]) -> bool:
        """Does ``h`` ask for ``n`` at its own element, or, of a result without ``axes``, at its own column?"""
        full = tuple(range(len(self.shape)))
        walks: set[Demand | None] = {full}
        if h.kind == "column":
            walks = set()
            for r in h.reductions:
                place = iter(range(r.rank))
                walks.add(tuple((r, a) if a in r.attrs["axes"] else next(place) for a in full))
        if axes and h.kind == "map" and not self._full(h.root):
            walks = {tuple(range(n.rank))}
        elif axes:
            walks = {tuple(d for a, d in enumerate(w) if a not in axes) for w in walks if w is not None}
        return h.demands[n] <= walks

    def joined(self, kept: set[Node]) -> Group | None:
        """All of it as one column group, if there is a column to reduce."""
        columns = [g for g in self.groups if g.kind == "column"]
        members = list(dict.fromkeys(n for g in reversed(self.groups) for n in g.members))
        if not columns or len(members) > MAX_NODES or not near(columns[0].root, self.machine):
            return None
        outputs = [n for g in reversed(self.groups) for n in g.outputs if g is self.groups[0] or n in kept]
        if any(n.rank < len(self.shape) and n.shape != columns[0].root.shape for n in outputs):
            return None
        reads = set().union(*(g.reads for g in self.groups)) - set(self.groups)
        demands = {n: set().union(*(g.demands.get(n, ()) for g in self.groups)) for g in self.groups for n in g.demands}
        return replace(columns[0], members=members, outputs=outputs, reads=reads, demands=demands, refused=[])
