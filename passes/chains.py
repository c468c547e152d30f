"""Chains: steps that repeat, each reading the results of the ones before at constant offsets.

Here: what a map reads and where (``Stage``), which runs of maps are one step written several times (``Chain``).
Not here: whether a chain is worth one kernel, and its tiles (stencil.py).  Read next: stencil.py.

A time step written ten times in Python is ten copies of one or a few maps.  They are told from other maps by their
bodies: equal operations on operands that are either the same memory in every step, or the result that one stage had a
fixed number of steps ago.  What stands for results from before the first step is the chain's initial state.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from flowc.dataclass import dataclass, field
from flowc.dims import DimLike
from flowc.graph import Attrs, Node
from flowc.passes.edges import Edges, Wrap, edges_of, wrap_of
from flowc.passes.fuse import EXPENSIVE, Group
from flowc.passes.places import Place, Places, at_origin

PERIODS = (1, 2, 3, 4)   # maps of one step, at most
MAX_STEPS = 1 << 12      # steps looked at together
MAX_PLACES = 256         # places at which a map may ask for one operand
CONDITION = 3            # instructions of choosing between two neighbours in a ring
EXPENSIVE_COST = 32      # instructions of a function of the math library


@dataclass(frozen=True)
class Read:
    """How a map reads an operand.  axes: the axis of the space that each axis of the operand lies along, None for an
    axis of one element.  low, high: the least and the greatest offset along the axes of the operand."""

    axes: tuple[int | None, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    places: int = 1

    @property
    def plain(self) -> bool:
        return self.axes == tuple(range(len(self.axes)))


class Inner(NamedTuple):
    """What a tensor is that only its padded form is kept of: ``padded`` from ``low`` on."""

    padded: Node
    low: tuple[int, ...]


@dataclass(eq=False)
class Stage:
    """A map that reads its operands at constant offsets.  operands: tensors as its body asks for them, some several
    times.  rings: axes that it takes for rings; wraps: the nodes that do so.  inner: operands that are read as part of
    others."""

    group: Group
    body: Hashable
    operands: list[Node]
    reads: dict[Node, Read]
    edges: tuple[Edges, ...]
    rings: frozenset[int]
    wraps: dict[Node, Wrap]
    conditions: int  # instructions per element that are left out where rings go on beyond their ends
    inner: dict[Node, Inner]
    between: int = 0  # bytes per element that lie in memory between its parts where they are kernels of their own

    @property
    def shape(self) -> tuple[DimLike, ...]:
        return self.group.root.shape

    @property
    def outputs(self) -> list[Node]:
        return self.group.outputs

    @cached_property
    def lines(self) -> list[int]:
        """Offsets along the first axis at which operands are read, and that of the result."""
        far = {f for r in self.reads.values() for b, a in enumerate(r.axes) if a == 0
               for f in range(r.low[b], r.high[b] + 1)}
        return sorted(far | {0})

    @cached_property
    def cost(self) -> int:
        """Instructions per element."""
        computed = [n for n in self.group.members if n.rank and not n.op.lower.movement]  # type: ignore[union-attr]
        return sum(EXPENSIVE_COST if n.op.name in EXPENSIVE else 1 for n in computed) + sum(
            r.places for r in self.reads.values())


def stage_of(g: Group, inner: Mapping[Node, Inner]) -> Stage | None:
    """The stage that a group is; None if it is none."""
    if g.kind != "map" or not g.root.rank or any(n.shape != g.root.shape for n in g.outputs):
        return None
    members = set(g.members)
    inner = {x: inner[x] for n in g.members for x in n.inputs if x in inner and x not in members}
    places, wraps, rings = _places(g)
    for x, (padded, low) in inner.items():
        places.setdefault(padded, set()).update(_moved(p, low) for p in places.pop(x, ()))
    reads: dict[Node, Read] = {}
    for x, at in places.items():
        if x.rank and x not in members:
            read = _read(x, at)
            if read is None:
                return None
            reads[x] = read
    edges = edges_of({n: at for n, at in places.items() if n in members}, g.root.shape, wraps)
    if any(edges[a].inside or not _around(a, g, places, reads, wraps) for a in rings):
        return None
    body, operands = _body(g, members, wraps, inner)
    return Stage(g, (body, g.root.shape, edges, frozenset(rings)), operands, reads, edges, frozenset(rings), wraps,
                 sum(CONDITION * len(places[n]) for n in wraps), inner)


def _places(g: Group) -> tuple[dict[Node, set[Place]], dict[Node, Wrap], set[int]]:
    """Where one element of the result asks for every node; places beyond the end of a ring are those from there on."""
    table, wraps, rings = Places(), {}, set()
    places: dict[Node, set[Place]] = {n: {at_origin(n.rank)} for n in g.outputs}
    for n in reversed(g.members):
        if n not in places or len(places[n]) > MAX_PLACES:
            continue
        w = wrap_of(n)
        if w is None or not all(p.index[w.axis][0] in range(g.root.rank) for p in places[n]):
            for k, x in enumerate(n.inputs):
                places.setdefault(x, set()).update(table.pass_on(n, k, p) for p in places[n])
            continue
        wraps[n] = w
        rings |= {p.index[w.axis][0] for p in places[n]}
        places.setdefault(w.source, set()).update(_moved(p, w.by) for p in places[n])
    return places, wraps, rings  # type: ignore[return-value]


def _moved(p: Place, by: Sequence[int]) -> Place:
    return p._replace(index=tuple((axis, off + d) for (axis, off), d in zip(p.index, by, strict=True)))


def _read(x: Node, places: set[Place]) -> Read | None:
    if len(places) > MAX_PLACES:
        return None
    axes: set[tuple] = set()
    offsets = []
    for p in places:
        if p.origin is not None or not all(isinstance(axis, int) and isinstance(off, int) for axis, off in p.index):
            return None
        axes.add(tuple(None if axis < 0 else axis for axis, _ in p.index))  # type: ignore[operator]
        offsets.append([off for _, off in p.index])
    (one, *others) = axes
    if others or len({a for a in one if a is not None}) != sum(a is not None for a in one):
        return None
    by_axis = list(zip(*offsets, strict=True))
    return Read(one, tuple(map(min, by_axis)), tuple(map(max, by_axis)), len({tuple(o) for o in offsets}))


def _around(axis: int, g: Group, places: Mapping[Node, set[Place]], reads: Mapping[Node, Read],
            wraps: Mapping[Node, Wrap]) -> bool:
    """Has everything along a ring its size, and does nothing depend on the position in it?"""
    size = g.root.shape[axis]
    if any(n.op.name == "iota" and any(axis == p.index[n.attrs["axis"]][0] for p in at) for n, at in places.items()):
        return False
    if any(w.source.shape[w.axis] != size and any(axis == p.index[w.axis][0] for p in places[n])
           for n, w in wraps.items()):
        return False
    return all(x.shape[b] == size for x, r in reads.items() for b, a in enumerate(r.axes) if a == axis)


def _body(g: Group, members: set[Node], wraps: Mapping[Node, Wrap], inner: Mapping[Node, Inner]
          ) -> tuple[Hashable, list[Node]]:
    """The operations of a group in an order that only depends on what they are, and its operands as they occur in
    them: two that are one tensor in this step may be two in the next."""
    number: dict[Node, int] = {}
    operands: list[Node] = []

    def name(x: Node) -> Hashable:
        if x in number:
            return number[x]
        if x.rank == 0:
            return x
        operands.append(x)
        return "operand", x.type
    lines: list[Hashable] = []
    stack = list(reversed(g.outputs))
    while stack:
        n = stack[-1]
        w, part = wraps.get(n), inner.get(n)
        inputs = (w.source,) if w is not None else (part.padded,) if part is not None else n.inputs
        missing = [] if n in number else [x for x in inputs if (x in members or x in inner) and x not in number]
        stack += reversed(missing)
        if missing:
            continue
        stack.pop()
        if n not in number:
            of = tuple(map(name, inputs))
            if part is not None:
                stop = tuple(lo + size for lo, size in zip(part.low, n.shape, strict=True))
                lines.append(("slice", Attrs(start=part.low, stop=stop, step=(1,) * n.rank), n.type, of))
            else:
                lines.append((n.op.name, n.attrs, n.type, of) if w is None else ("wrap", w.axis, w.by, n.type, of))
            number[n] = len(number)
    return (tuple(lines), tuple(number[n] for n in g.outputs)), operands


# ---- steps that repeat ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Source:
    """The result ``output`` that stage ``stage`` had ``back`` steps ago."""

    stage: int
    output: int
    back: int


@dataclass(eq=False)
class Chain:
    """steps: the stages of every step.  sources: where the operands of a stage of the last step come from; those that
    are missing are the same memory in every step.  depth: how many steps results are looked back at, by (stage,
    output).  initial: what stands for a result (stage, output, -steps) from before the first step.  outside: results
    (stage, output, step) that others read."""

    steps: list[list[Stage]]
    sources: list[dict[Node, Source]]
    depth: dict[tuple[int, int], int] = field(default_factory=dict)
    initial: dict[tuple[int, int, int], Node] = field(default_factory=dict)
    outside: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        return [s.group for step in self.steps for s in step]

    @property
    def stages(self) -> list[Stage]:
        """Of one step: the last, whose operands all have their own names."""
        return self.steps[-1]

    def fixed(self, q: int) -> list[Node]:
        """What stage ``q`` reads from memory in every step."""
        return [x for x in self.stages[q].reads if x not in self.sources[q]]

    def result(self, key: tuple[int, int, int]) -> Node:
        stage, output, step = key
        return self.steps[step][stage].outputs[output]


def find_chains(stages: Sequence[Stage]) -> Iterator[list[list[Stage]]]:
    """Runs of stages whose bodies repeat, cut into steps: those that cover most, and of these the shortest."""
    numbers: dict[object, int] = {}
    bodies = [numbers.setdefault(s.body, len(numbers)) for s in stages]
    first = 0
    while first < len(stages) - 1:
        best: list[list[Stage]] = []
        for period in PERIODS:
            count = 1
            while count < MAX_STEPS and _repeats(bodies, first, period, count):
                count += 1
            if count * period > len(best) * (len(best[0]) if best else 0) and count > 1:
                best = [list(stages[first + i * period:first + (i + 1) * period]) for i in range(count)]
        if best:
            yield best
            first += len(best) * len(best[0])
        else:
            first += 1


def _repeats(bodies: Sequence[int], first: int, period: int, count: int) -> bool:
    at = first + count * period
    return at + period <= len(bodies) and bodies[first:first + period] == bodies[at:at + period]


def chain_of(steps: list[list[Stage]], uses: Uses) -> Chain | None:
    """The chain that steps with equal bodies form; None if they do not read each other in equal ways, or others read
    results that are gone at the end."""
    made = {n: (q, o, k) for k, step in enumerate(steps) for q, s in enumerate(step) for o, n in enumerate(s.outputs)}
    chain = Chain(steps, [{} for _ in steps[0]])
    for q in range(len(steps[0])):
        for j in range(len(steps[0][q].operands)):
            if not _slot(chain, q, j, made):
                return None
    inside = uses.of(steps)
    for n, (q, o, k) in made.items():
        readers = uses.reading(n)
        if not readers <= inside or not readers:
            if k < len(steps) - 1 - chain.depth.get((q, o), 0):
                return None
            chain.outside.append((q, o, k))
    return chain


def _slot(chain: Chain, q: int, j: int, made: Mapping[Node, tuple[int, int, int]]) -> bool:
    """Operand ``j`` of stage ``q``: where it comes from in all steps."""
    nodes = [step[q].operands[j] for step in chain.steps]
    x = nodes[-1]
    if all(y is x for y in nodes):
        return x not in made and x not in chain.sources[q]
    last, read = made.get(x), chain.stages[q].reads[x]
    if last is None or not read.plain:
        return False
    stage, output, step = last
    back = len(nodes) - 1 - step
    if back == 0 and stage >= q or any(y.type != chain.result(last).type for y in nodes):
        return False
    for k, y in enumerate(nodes):
        if k >= back:
            if made.get(y) != (stage, output, k - back):
                return False
        elif y in made or chain.initial.setdefault((stage, output, k - back), y) is not y:
            return False
    source = Source(stage, output, back)
    key = stage, output
    chain.depth[key] = max(chain.depth.get(key, 0), back)
    return chain.sources[q].setdefault(x, source) == source


# ---- who reads what -------------------------------------------------------------------------------------------------

@dataclass(eq=False)
class Uses:
    """readers: for every result the groups that read it; None stands for the caller.  inner: tensors that are padded
    by a group of its own; plain: the other way round.  rings: tensors that are taken for rings by the group that
    computes them.  parts: groups made of parts of others, and which."""

    readers: dict[Node, set[Group | None]]
    inner: dict[Node, Inner] = field(default_factory=dict)
    plain: dict[Node, Node] = field(default_factory=dict)
    rings: dict[Node, Group] = field(default_factory=dict)
    parts: dict[Group, tuple[Group, ...]] = field(default_factory=dict)

    def reading(self, n: Node) -> set[Group | None]:
        """The groups that read a tensor, or what is padded in it."""
        return self.readers[n] | self.readers[self.plain[n]] if n in self.plain else self.readers[n]

    def of(self, steps: Sequence[Sequence[Stage]]) -> set[Group]:
        """The groups that steps are made of."""
        return {g for step in steps for s in step for g in self.parts.get(s.group, (s.group,))}


def uses_of(groups: Sequence[Group], outputs: Sequence[Node]) -> Uses:
    readers: dict[Node, set[Group | None]] = {n: set() for g in groups for n in g.outputs}
    for g in groups:
        members = set(g.members)
        for n in g.members:
            for x in n.inputs:
                if x in readers and x not in members:
                    readers[x].add(g)
    for n in outputs:
        if n in readers:
            readers[n].add(None)
    return Uses(readers)


def join_padding(groups: Sequence[Group], uses: Uses) -> list[Group]:
    """The groups, with those joined that compute a tensor and only pad it: a step that ends with padding and begins by
    taking some of it off again, which then is no operation."""
    makers = {n: g for g in groups for n in g.outputs}
    joined: dict[Group, Group | None] = {}
    for p in groups:
        n = p.root
        if p.kind != "map" or n.op.name != "pad" or p.outputs != [n] or any(m.rank and m is not n for m in p.members):
            continue
        x = n.inputs[0]
        a = makers.get(x)
        low = n.attrs["low"]
        if a is None or a.kind != "map" or a.outputs != [x] or None in uses.readers[x] or a in joined or not all(
                isinstance(lo, int) for lo in low):
            continue
        both = Group("map", n, n.shape, n.rank, [*a.members, *p.members], [n])
        both.refused = [*a.refused, *p.refused]
        joined[a], joined[p] = None, both
        uses.inner[x], uses.parts[both] = Inner(n, tuple(low)), (a, p)
        uses.plain[n] = x
    return [h for g in groups if (h := joined.get(g, g)) is not None]


def move_wraps(groups: Sequence[Group], uses: Uses) -> list[Group]:
    """The groups, with those that end by taking their result for a ring ending before that: whoever reads it does so
    at the places of the ring."""
    ends: dict[Node, list[Node]] = {}
    maps = set(groups)
    for g in groups:
        out = g.root
        readers = uses.readers.get(out, set())
        wraps: list[Node] = []
        x = out
        while (w := wrap_of(x)) is not None and x in g.members:
            wraps.append(x)
            x = w.source
        if wraps and g.outputs == [out] and readers <= maps and g not in uses.parts:
            ends[out] = wraps[::-1]
    moved: list[Group] = []
    for g in groups:
        before = [n for x in dict.fromkeys(x for n in g.members for x in n.inputs) if x in ends for n in ends[x]]
        cut = ends.get(g.root, [])
        if not before and not cut:
            moved.append(g)
            continue
        root = g.root
        if cut:
            w = wrap_of(cut[0])
            assert w is not None
            root = w.source
            if root not in g.members:
                continue  # nothing is left of it
            uses.readers[root] = uses.readers[g.root]
            uses.rings[root] = g
        h = Group("map", root, root.shape, root.rank, [*before, *(n for n in g.members if n not in cut)],
                  [root] if cut else g.outputs)
        h.refused = g.refused
        uses.parts[h] = uses.parts.get(g, (g,))
        moved.append(h)
    return moved
