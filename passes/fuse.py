"""Fusion: which nodes are computed by one kernel.

Here: ``partition`` (graph -> groups in running order) and the reasons for every refusal.
Not here: the loops of a group (lower.py, contract.py).  Read next: lower.py.

Nodes are visited consumers first.  A node whose consumers all lie in one group is inlined there if that group can
compute it where it is asked for; a node needed elsewhere too becomes one more output of such a group, is recomputed
where that is cheaper than memory, or starts a group of its own.

A group computes over a *space*: ``outer`` leading axes, one iteration each, and the axes inside.  For every node it
records *demands*: at which axes of the space the node is asked for, position by position (None: at other places than
plain axes).  A reduction can be computed inside a group exactly if it is asked for at the outer axes in order.
Scatters into few places (tally.py) have their updates for a space: what they are computed from, and maps and scatters
over the same elements, may be outputs of their group.
*Places* (places.py) tell shifted demands apart: they bound how often a node is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowc.dataclass import dataclass, field
from flowc.dims import DimLike, prod
from flowc.graph import CONSTANT, PARAM, Graph, Node
from flowc.op import Contraction, General, HostCall, Pointwise, Reduction
from flowc.passes.places import FIELDS, Place, Places, at_origin, evaluations, may_be_records
from flowc.passes.turned import after_product, may_turn
from flowc.proofs import known_eq

if TYPE_CHECKING:
    from flowc.passes.stencil import Stencil

MAX_NODES = 160       # members of one group: bounds code size and compile time
CHEAP = 4             # operations worth repeating instead of a trip through memory
REPEATED = 32         # times that an element of an operand is used for its own cost not to count
MAX_BUFFERS = 28      # memory operands of one group
WIDE = 256            # places of an innermost axis for all of which a costly value may be computed once more
APART = 2048          # work that may stand in one kernel several times, once for each field of a record
RECOMPUTE = 32        # work worth repeating instead of a trip through memory: 8 per instruction, 1 per condition
MUCH = 1 << 12        # work beyond which it is no longer counted
FEW_ROWS = 16         # fewer rows than this do not occupy a machine: their reductions are split instead
NEAR_ROWS = 64        # rows of a strip of columns that stay in a near cache
SOURCES = 12          # values looked at when searching for a reduction of the same ones
SEARCH = 256          # groups looked at when searching for a cycle

EXPENSIVE = frozenset("exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
                      "erf erfc ndtr cbrt pow atan2 logistic fmod mod random_bits".split())

CONDITIONAL = frozenset(("pad", "concatenate", "update_slice", "gather"))  # movement that decides, not only renames

Demand = tuple  # of axis ids: ints are axes of the space, (node, axis) are axes a reduction runs over


@dataclass(eq=False)
class Group:
    """Nodes of one kernel.  kind: map, stencil, row, column, contraction, general, host; or row block, which does
    the work of three ``stages`` (rowblocks.py)."""

    kind: str
    root: Node
    space: tuple[DimLike, ...]
    outer: int
    members: list[Node] = field(default_factory=list)   # consumers first; reversed at the end
    outputs: list[Node] = field(default_factory=list)
    demands: dict[Node, set[Demand | None]] = field(default_factory=dict)
    places: dict[Node, set[Place]] = field(default_factory=dict)
    reads: set[Group] = field(default_factory=set)
    contraction: Node | None = None
    refused: list[str] = field(default_factory=list)
    stages: tuple[Group, ...] = ()
    stencil: Stencil | None = None     # of kind stencil: how its maps follow each other

    @property
    def reductions(self) -> list[Node]:
        return [n for n in self.members if isinstance(n.op.lower, Reduction)]

    def __repr__(self) -> str:
        return f"<{self.kind} {self.root!r} +{len(self.members) - 1}>"


def partition(graph: Graph, enabled: bool = True, native: Callable[[Node], bool] = lambda node: True,
              allow: Callable[[str, Node], bool] = lambda name, node: True,
              tally: Callable[[Node], bool] = lambda node: False) -> list[Group]:
    """Groups that together compute the graph, each after the groups it reads.

    native(node): can the node be computed by a kernel at all (else it becomes a host call).
    allow(name, node): fuel; where it says no, a node gets a group of its own.
    tally(node): is it a scatter whose kernel walks over the updates.
    """
    return _Partitioner(graph, enabled, native, allow, tally).run()


class _Partitioner:
    def __init__(self, graph: Graph, enabled: bool, native, allow, tally):
        self.graph, self.enabled, self.native, self.allow, self.tally = graph, enabled, native, allow, tally
        self.users = graph.users()
        self.outputs = set(graph.outputs)
        self.homes: dict[Node, list[Group]] = {}      # groups that compute a node (several: recomputed)
        self.groups: list[Group] = []
        self.readers: dict[Node, list[Group]] = {}    # groups by a node they read, for merging siblings
        self.ranges = graph.ranges
        self.after_product = after_product(graph, self.users)
        self.work = _work(graph)
        self.table = Places()

    def run(self) -> list[Group]:
        for node in reversed(self.graph.nodes):
            if node.op is PARAM or node.op is CONSTANT:
                continue
            self.place(node)
        for g in self.groups:
            g.members.reverse()
            g.outputs.reverse()
        return in_order(self.groups)

    # -- placing one node

    def place(self, node: Node) -> None:
        wanted = list(dict.fromkeys(g for u in self.users[node] for g in self.homes.get(u, ())))
        needed = node in self.outputs
        lower = node.op.lower
        if isinstance(lower, (General, HostCall)) or not self.native(node):
            if not (self.enabled and self.native(node) and self.tally(node) and self.tally_beside(node, wanted)):
                self.start(node, wanted)
            return
        if not self.enabled:  # a broadcast scalar is an operand, no operation of its own
            if needed or not _trivial(node) or not self.repeat(node, wanted):
                self.start(node, wanted)
            return
        if not needed and len(wanted) == 1 and self.join(node, wanted[0]):
            return
        if not needed and len(wanted) > 1 and self.repeat(node, wanted):
            return
        for g in wanted:
            if self.join_as_output(node, g, wanted):
                return
        if not self.merge(node, wanted):
            self.start(node, wanted)

    def start(self, node: Node, wanted: Sequence[Group]) -> None:
        lower = node.op.lower
        g = Group("map", node, node.shape, node.rank)
        if not self.native(node) or isinstance(lower, HostCall):
            g.kind = "host"
        elif isinstance(lower, General):
            g.kind = "general"
            if self.tally(node):
                g.space, g.outer = _updates(node)
        elif isinstance(lower, Contraction):
            g.kind, g.contraction = "contraction", node
        elif isinstance(lower, Reduction):
            x = node.inputs[0]
            axes = node.attrs["axes"]
            g.kind = "row" if not axes or x.rank - 1 in axes else "column"
        self.groups.append(g)
        self.enter(node, g, {tuple(range(node.rank))})
        self.publish(node, g, wanted)

    def enter(self, node: Node, g: Group, demands: set) -> None:
        """Compute ``node`` in ``g``, asked for at ``demands``; hand the demands on to its inputs."""
        g.members.append(node)
        g.demands[node] = demands
        places = g.places.setdefault(node, {at_origin(node.rank)})
        self.homes.setdefault(node, []).append(g)
        lower, rank = node.op.lower, node.rank
        straight = isinstance(lower, Pointwise) and not lower.movement  # element by element
        general = isinstance(lower, General)
        for k, x in enumerate(node.inputs):
            self.readers.setdefault(x, []).append(g)
            into = g.demands.setdefault(x, set())
            if straight and x.rank == rank:
                into |= demands
                g.places.setdefault(x, set()).update(places)
                continue
            if k and general and self.tally(node):  # update by update, as the group walks
                into.add(tuple(range(x.rank)))
                g.places.setdefault(x, set()).add(at_origin(x.rank))
                continue
            for d in demands:
                into.add(_pass_on(node, k, d))
            g.places.setdefault(x, set()).update(self.table.pass_on(node, k, p) for p in places)

    def publish(self, node: Node, g: Group, wanted: Sequence[Group]) -> None:
        """``node`` is written to memory by ``g``; the other groups that want it read it."""
        g.outputs.append(node)
        for h in wanted:
            if h is not g:
                h.reads.add(g)

    def refuse(self, node: Node, g: Group, why: str) -> bool:
        reason = f"{node.op.name} {node.type} not fused: {why}"
        if len(g.refused) < 8 and reason not in g.refused:
            g.refused.append(reason)
        return False

    # -- can a group compute a node

    def fits(self, node: Node, g: Group) -> bool:
        """Can ``g`` compute ``node`` wherever its members ask for it?  Records the reason if not."""
        if g.kind == "host" or g.kind == "general" and not (
                g.root.op.lower.streams and isinstance(node.op.lower, Pointwise)):  # type: ignore[union-attr]
            return self.refuse(node, g, f"{g.root.op.name} reads its operands from memory")
        if len(g.members) >= MAX_NODES:
            return self.refuse(node, g, f"the kernel has {MAX_NODES} operations already")
        if len(g.demands) - len(g.members) + len(node.inputs) > MAX_BUFFERS:  # members are asked for, too
            return self.refuse(node, g, f"the kernel has {MAX_BUFFERS} operands already")
        demands = g.demands[node]
        lower = node.op.lower
        if isinstance(lower, Pointwise):
            if node in self.after_product and (g.kind == "contraction" or g.kind == "row" and lower.movement):
                return self.refuse(node, g, "it is computed where the product that it comes from is")
            if node.op.name in EXPENSIVE and any(self.repeats(d, g) for d in demands):
                return self.refuse(node, g, "it would be computed again for every element it is broadcast to")
            times = evaluations(g.places[node])
            if times > 1 and not _free(node) and (times - 1) * self.work[node] > RECOMPUTE and not (
                    self.taken_apart(node, g, times)):
                return self.refuse(node, g, f"it would be computed at {times} places for every element")
            return True
        if isinstance(lower, Reduction):
            return self.fits_reduction(node, g, demands)
        return self.fits_contraction(node, g, demands)

    def taken_apart(self, node: Node, g: Group, times: int) -> bool:
        """Does a map ask for ``node`` at several places because each of its elements wants its own few, as those that
        read ``x[..., 0]`` and ``x[..., 1]`` do, or because the fields of one record share it?  Then nothing is computed
        twice."""
        if g.kind != "map" or times * self.work[node] > APART:
            return False
        return (known_eq(times * prod(g.root.shape), node.type.size, self.ranges) is True
                or self.same_record(node, g))

    def same_record(self, node: Node, g: Group) -> bool:
        """Does a map whose parts are the fields of records (records.py: all of them in one iteration) ask for ``node``
        at the record itself, and at as many places as the node has there?"""
        shape = g.root.shape
        last = len(shape) - 1
        if node.rank not in (last, last + 1) or not may_be_records(shape) or not any(
                n.op.name == "concatenate" and n.rank == last + 1 and n.attrs["axis"] == last for n in g.members):
            return False
        here = tuple((a, 0) for a in range(last))
        if node.rank > last:
            own = node.shape[last]
            if not isinstance(own, int) or own > FIELDS:
                return False
        return self.same(node.shape[:last], shape[:last]) and all(
            p.origin is None and p.index[:last] == here for p in g.places[node])

    def repeats(self, d: Demand | None, g: Group) -> bool:
        """Is a value asked for at ``d`` computed more often than it has elements?"""
        if d is None:
            return False
        if g.kind == "column" and all(isinstance(a, int) for a in d):
            return True  # the columns are lanes: nothing is bound outside the walk over the rows
        if g.kind == "map" and d == tuple(range(len(d))) and len(d) < len(g.space) and not (
                isinstance(g.space[-1], int) and g.space[-1] < WIDE):
            return False  # bound outside the lanes
        rows = {a for a in range(g.outer) if not (isinstance(g.space[a], int) and g.space[a] == 1)}
        return not rows <= set(d)  # a value of the row alone is bound once per row

    def fits_reduction(self, node: Node, g: Group, demands: set) -> bool:
        x, axes = node.inputs[0], node.attrs["axes"]
        rank = node.rank
        if g.kind == "column" and self.again(node, g):
            return True
        if g.kind not in ("map", "row"):
            return self.refuse(node, g, f"a {g.kind} kernel has no rows to reduce")
        if demands != {tuple(range(rank))}:
            return self.refuse(node, g, "it is not asked for at the leading axes of the kernel's space")
        if tuple(axes) != tuple(range(rank, x.rank)):
            return self.refuse(node, g, "its axes are not the innermost ones")
        if not all(known_eq(a, b, self.ranges) for a, b in zip(node.shape, g.space[:rank], strict=False)):
            return self.refuse(node, g, "its rows are not the kernel's rows")
        if rank != g.outer and (g.kind == "row" or rank > g.outer):
            return self.refuse(node, g, f"the kernel's rows are the leading {g.outer} axes, not {rank}")
        rows = prod(node.shape)
        if isinstance(rows, int) and rows < FEW_ROWS:
            work = x.type.size
            if not isinstance(work, int) or work > 1 << 14:
                return self.refuse(node, g, f"{rows} rows are too few to share between threads")
        return True

    def again(self, node: Node, g: Group) -> bool:
        """Is ``node`` needed before the same few rows are walked over again, which then are in a near cache?"""
        rows = prod(node.inputs[0].shape[a] for a in node.attrs["axes"])
        return (isinstance(rows, int) and rows <= NEAR_ROWS and g.demands[node] == {tuple(range(node.rank))}
                and self.same(node.inputs[0].shape, g.root.inputs[0].shape)
                and node.attrs["axes"] == g.root.attrs["axes"])

    def fits_contraction(self, node: Node, g: Group, demands: set) -> bool:
        if g.kind != "map":
            return self.refuse(node, g, f"a {g.kind} kernel has no room for a contraction")
        order = next(iter(demands)) if len(demands) == 1 else None
        if order is None or len(g.space) != node.rank or set(order) != set(range(node.rank)):
            return self.refuse(node, g, "its consumers do not use it element by element")
        if not all(known_eq(n, g.space[a], self.ranges) for n, a in zip(node.shape, order, strict=True)):
            return self.refuse(node, g, "its consumers have another shape")
        if order != tuple(range(node.rank)) and not may_turn(node, order, self.ranges):
            return self.refuse(node, g, "its columns would be few if it were turned on the way")
        return True

    def absorb(self, node: Node, g: Group) -> None:
        lower = node.op.lower
        if isinstance(lower, Reduction) and g.kind != "column":
            g.kind, g.outer = "row", node.rank
        elif isinstance(lower, Contraction):
            g.kind, g.contraction = "contraction", node
        self.enter(node, g, g.demands[node])

    def join(self, node: Node, g: Group) -> bool:
        if not self.fits(node, g) or not self.allow("fuse", node):
            return False
        self.absorb(node, g)
        return True

    def repeat(self, node: Node, wanted: Sequence[Group]) -> bool:
        """Compute a node in every group that wants it, where that is cheaper than a trip through memory."""
        lower = node.op.lower
        if not isinstance(lower, Pointwise) or node.op.name in EXPENSIVE or (len(wanted) > 4 and not _trivial(node)):
            return False
        big = [x for x in node.inputs if not _trivial(x)]
        if not lower.movement and (len(big) > 1 or any(x.op is not PARAM for x in big)) and not self.at_hand(
                node, wanted):
            return False
        if not all(self.fits(node, g) for g in wanted) or not self.allow("repeat", node):
            return False
        for g in wanted:
            self.absorb(node, g)
        return True

    def at_hand(self, node: Node, wanted: Sequence[Group]) -> bool:
        """Is the node a comparison of what lies in memory anyway, nearly all of it read by every group that wants it,
        or a function of one such tensor and of smaller ones that are repeated?  Then computing it again costs less
        than writing and reading it."""
        leaves: dict[Node, None] = {}
        seen, stack, cost = {node}, [node], 0
        while stack:
            n = stack.pop()
            if not isinstance(n.op.lower, Pointwise) or n.op.name in EXPENSIVE:
                leaves[n] = None
                continue
            if _repeated(n) and node.dtype.kind != "b":
                continue
            cost += not n.op.lower.movement and not _trivial(n)
            for x in n.inputs:
                if x not in seen and not _trivial(x):
                    seen.add(x)
                    stack.append(x)
            if cost > CHEAP:
                return False
        one = len(leaves) == 1 and all(n.shape == node.shape and n.dtype is node.dtype for n in leaves)
        if not (node.dtype.kind == "b" or one) or any(g.kind == "contraction" for g in wanted) or any(
                n.op is not PARAM and all(g is wanted[0] for g in self.readers.get(n, ())) for n in leaves):
            return False
        return all(sum(n not in g.demands for n in leaves) <= 1 for g in wanted[1:])

    def join_as_output(self, node: Node, g: Group, wanted: Sequence[Group]) -> bool:
        """Let ``g``, which needs the node anyway, also write it to memory."""
        others = [h for h in wanted if h is not g]
        if not self.fits(node, g):
            return False
        lower = node.op.lower
        straight = g.demands[node] == {tuple(range(node.rank))}
        if not (self.writable(node, g) if isinstance(lower, Pointwise) else straight or isinstance(lower, Reduction)):
            return self.refuse(node, g, "its elements are not those of the kernel's space")
        if any(self.reaches(g, h) for h in others):
            return self.refuse(node, g, "the kernel needs a result that depends on it")
        if not self.allow("output", node):
            return False
        if isinstance(lower, Pointwise) and g.kind == "row" and node.rank > g.outer and len(g.space) == g.outer:
            g.space = node.shape
        self.absorb(node, g)
        self.publish(node, g, wanted)
        return True

    def writable(self, node: Node, g: Group) -> bool:
        demands = g.demands[node]
        prefix = tuple(range(g.outer))
        if g.kind == "general" and not self.tally(g.root):
            return False
        if not any(d is not None and d[:g.outer] == prefix for d in demands):
            return False
        if g.kind == "contraction":
            return demands == {prefix} and self.same(node.shape, g.space) and _depends(node, g.contraction)
        if g.kind == "column":
            return demands == {prefix} and self.same(node.shape, g.space)
        if node.rank == g.outer:
            return self.same(node.shape, g.space[:g.outer])
        if len(g.space) == g.outer:
            return self.same(node.shape[:g.outer], g.space) and g.kind == "row"
        return self.same(node.shape, g.space)

    def same(self, a: Sequence[DimLike], b: Sequence[DimLike]) -> bool:
        return len(a) == len(b) and all(known_eq(x, y, self.ranges) for x, y in zip(a, b, strict=True))

    def reaches(self, g: Group, target: Group) -> bool:
        """Does ``g`` read, directly or not, what ``target`` writes?  Says yes if the search grows too long."""
        seen, stack = {g}, [g]
        while stack:
            h = stack.pop()
            if h is target:
                return True
            for r in h.reads:
                if r not in seen:
                    if len(seen) > SEARCH:
                        return True
                    seen.add(r)
                    stack.append(r)
        return False

    def merge(self, node: Node, wanted: Sequence[Group]) -> bool:
        """Compute a node beside a group that reads the same memory over the same space."""
        lower = node.op.lower
        if not isinstance(lower, (Pointwise, Reduction)) or node.rank == 0:
            return False
        for x in self.sources(node):
            for g in dict.fromkeys(reversed(self.readers.get(x, [])[-6:])):
                if g in wanted or node in g.demands or not self.mergeable(node, g):
                    continue
                if any(self.reaches(g, h) for h in wanted) or not self.allow("merge", node):
                    continue
                self.enter(node, g, {tuple(range(node.rank))})
                self.publish(node, g, wanted)
                return True
        return False

    def tally_beside(self, node: Node, wanted: Sequence[Group]) -> bool:
        """Make a tally part of a group that walks over its updates anyway: another tally, or a map that reads memory
        where it lies."""
        space, outer = _updates(node)
        for x in self.sources(node):
            for g in dict.fromkeys(reversed(self.readers.get(x, [])[-6:])):
                if g in wanted or len(g.members) >= MAX_NODES or not self.same(space, g.space):
                    continue
                straight = all(d == tuple(range(y.rank)) for y, ds in g.demands.items() if y.rank for d in ds)
                if not (g.kind == "map" and len(space) == outer and straight or
                        g.kind == "general" and self.tally(g.root) and outer == g.outer):
                    continue
                if any(self.reaches(g, h) for h in wanted) or not self.allow("tally", node):
                    continue
                if g.kind == "map":
                    g.kind, g.root = "general", node
                self.enter(node, g, {None})
                self.publish(node, g, wanted)
                return True
        return False

    def sources(self, node: Node) -> list[Node]:
        """What a node is computed from: its operands, and for a reduction or a tally what these are computed from
        element by element, the nearest first."""
        out = [x for x in node.inputs if x.rank]
        if isinstance(node.op.lower, (Reduction, General)):
            for x in out:  # grows on the way
                if isinstance(x.op.lower, Pointwise) and len(out) < SOURCES:
                    out += [y for y in x.inputs if y.op.name != "broadcast" and self.same(y.shape, x.shape)
                            and not _trivial(y) and y not in out]
        return out

    def mergeable(self, node: Node, g: Group) -> bool:
        if len(g.members) >= MAX_NODES or len(g.demands) > MAX_BUFFERS or not self.same(node.shape, g.space[:g.outer]):
            return False
        if isinstance(node.op.lower, Pointwise):
            return g.kind == "map" and len(g.space) == g.outer or g.kind == "general" and self.tally(g.root)
        x, axes = node.inputs[0], node.attrs["axes"]
        if g.kind == "row" and g.reductions:
            return (isinstance(g.root.op.lower, Reduction) and self.same(x.shape, g.root.inputs[0].shape)
                    and axes == g.root.attrs["axes"])
        return (g.kind == "column" and self.same(x.shape, g.root.inputs[0].shape) and axes == g.root.attrs["axes"])


def _updates(node: Node) -> tuple[tuple[DimLike, ...], int]:
    """The space of the updates of a scatter, and how many of its axes the positions have."""
    _, indices, updates = node.inputs
    return updates.shape, indices.rank


ONE = -1  # the only index of an axis of size 1


def _pass_on(node: Node, k: int, d: Demand | None) -> Demand | None:
    """Where operand ``k`` is asked for if ``node`` is asked for at ``d``."""
    lower, x, name = node.op.lower, node.inputs[k], node.op.name
    if isinstance(lower, Reduction):
        if d is None:
            return None
        axes, kept = node.attrs["axes"], iter(d)
        return tuple((node, a) if a in axes else next(kept) for a in range(x.rank))
    if not isinstance(lower, Pointwise) or d is None:
        return None
    if not lower.movement:
        return d if x.rank == node.rank else None
    if name == "broadcast":
        return tuple(d[a] for a in node.attrs["axes"])
    if name == "gather":
        return d[node.attrs["axis"]:][:x.rank] if k else None
    if name == "transpose":
        out: list = [None] * x.rank
        for i, p in enumerate(node.attrs["perm"]):
            out[p] = d[i]
        return tuple(out)
    if name == "reshape":
        left = [(n, a) for n, a in zip(node.shape, d, strict=True) if not (isinstance(n, int) and n == 1)]
        into = [n for n in x.shape if not (isinstance(n, int) and n == 1)]
        if len(left) == len(into) and all(known_eq(n, m) for (n, _), m in zip(left, into, strict=True)):
            it = iter(left)
            return tuple(ONE if isinstance(n, int) and n == 1 else next(it)[1] for n in x.shape)
    return None


def _trivial(x: Node) -> bool:
    return x.rank == 0 or x.op is CONSTANT or (x.op.name in ("broadcast", "iota") and all(
        y.rank == 0 for y in x.inputs))


def _repeated(x: Node) -> bool:
    """Is each element of the operand used many times?"""
    if x.op.name != "broadcast":
        return False
    times = prod(n for a, n in enumerate(x.shape) if a not in x.attrs["axes"])
    return not isinstance(times, int) or times >= REPEATED


def _free(x: Node) -> bool:
    """Does the node only rename indices?  Then its operand is what has to be computed or read."""
    lower = x.op.lower
    return isinstance(lower, Pointwise) and lower.movement and x.op.name not in CONDITIONAL or _trivial(x)


def _work(graph: Graph) -> dict[Node, int]:
    """For every node the work of computing one element from what lies in memory anyway: instructions of the tree of
    operations above it, up to MUCH."""
    out: dict[Node, int] = {}
    for n in graph.nodes:
        lower = n.op.lower
        if _trivial(n) or not isinstance(lower, Pointwise) or n.op is PARAM:
            out[n] = 0
            continue
        own = 8 * (16 if n.op.name in EXPENSIVE else 1)
        if lower.movement:
            own = len(n.inputs) - 1 if n.op.name in CONDITIONAL else 0
        out[n] = min(MUCH, own + sum([out[x] for x in n.inputs]))
    return out


def _depends(node: Node, on: Node | None) -> bool:
    """Is ``on`` among the nodes that ``node`` is computed from?  The search is bounded by the size of a group."""
    seen, stack = {node}, [node]
    while stack:
        n = stack.pop()
        if n is on:
            return True
        for x in n.inputs:
            if x not in seen and len(seen) < 4 * MAX_NODES:
                seen.add(x)
                stack.append(x)
    return False


def readers_of(groups: Sequence[Group]) -> dict[Node, set[Group]]:
    """The groups that read each node that they do not compute."""
    readers: dict[Node, set[Group]] = {}
    for g in groups:
        members = set(g.members)
        for n in g.members:
            for x in n.inputs:
                if x not in members:
                    readers.setdefault(x, set()).add(g)
    return readers


def in_order(groups: list[Group]) -> list[Group]:
    """Groups so that each comes after those it reads, otherwise in program order."""
    order: list[Group] = []
    state: dict[Group, int] = {}
    position = {g: i for i, g in enumerate(groups)}
    for g in reversed(groups):
        stack = [g]
        while stack:
            h = stack[-1]
            if state.get(h) == 2:
                stack.pop()
                continue
            pending = [r for r in h.reads if state.get(r) != 2] if state.get(h) is None else []
            state[h] = 1 if state.get(h) is None else state[h]
            if pending:
                stack.extend(sorted(pending, key=position.__getitem__))
            else:
                state[h] = 2
                order.append(h)
                stack.pop()
    return order
