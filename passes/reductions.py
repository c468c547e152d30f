"""Lowering of reductions: lanes, and rows.

Here: lanes and their folding, one kernel per group of rows.  Not here: columns (columns.py), reductions too large for
one thread (split.py), which reductions share a kernel (fuse.py), what a reduction computes (op.Reduction).
Read next: columns.py.

The reduced elements of one result are dealt to LANES accumulators (element j goes to lane j mod LANES); floating sums
are collected in chunks of CHUNK elements first, so that the error grows like that of pairwise summation; a fixed tree
folds the lanes.  A reduction without enough rows to share is split: fixed pieces of SPLIT elements give partial
states, a second kernel combines them.  All of this is part of the meaning of the kernel, so the bits do not depend on
the machine or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowc.dataclass import replace
from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.graph import Node
from flowc.kernel import CHUNK, LANES, Expr, Fold
from flowc.op import Pointwise, Reduction
from flowc.passes.fuse import EXPENSIVE, Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.schedule import FEW, FUNCTIONS, TURNS, Machine, collapse
from flowc.types import DType, i32, i64

if TYPE_CHECKING:
    from flowc.passes.margins import RowMargins

SIDE_BY_SIDE = (8, 4)  # rows walked together
LARGE = 8 << 20        # bytes of an operand that lies in memory
LONG = 4 << 10         # bytes of a row that memory delivers at its best
REGISTERS = 2 << 10    # bytes of sums that stay in registers
LAST_SHORT = (1 << 31) - 1  # no position
TWINS = {"reduce_min": "argmin", "reduce_max": "argmax"}  # of the same elements, the second knows the first
EXACT = frozenset({"reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin"})


class Accumulators:
    """The lanes of one reduction: declaring, feeding, folding.

    lanes: 0 for one state, of whoever feeds it.  states: it is fed states of many elements, not elements in order.
    count: elements of a result, if they are to be entered by ``enter``: positions among few are kept as i32, which
    takes half the registers.
    """

    def __init__(self, k: KernelBuilder, node: Node, lanes: int, states: bool = False, count: DimLike | None = None):
        self.k, self.node, self.lanes = k, node, lanes
        self.lower: Reduction = node.op.lower  # type: ignore[assignment]
        self.add = self.lower.later if self.lower.later and not states else self.lower.combine
        dt = node.inputs[0].dtype
        self.dtypes: tuple[DType, ...] = self.lower.state(dt)
        self.units = self.lower.unit(dt)
        self.short = self.lower.position if isinstance(count, int) and count < LAST_SHORT else None
        if self.short is not None:
            self.dtypes = tuple(i32 if i == self.short else d for i, d in enumerate(self.dtypes))
            self.units = tuple(LAST_SHORT if i == self.short else u for i, u in enumerate(self.units))
        self.names = self.fresh()

    def fresh(self) -> list[str]:
        k = self.k
        shape = (self.lanes,) if self.lanes else ()
        return [k.acc(d, k.b.const(u, d), shape) for d, u in zip(self.dtypes, self.units, strict=True)]

    def enter(self, x: Expr, at: DimLike) -> tuple[Expr, ...]:
        """The state of one element."""
        b = self.k.b
        state = self.lower.enter(b, x, b.index(at))
        return tuple(b.cast(v, i32) if i == self.short else v for i, v in enumerate(state))

    def _long(self, p: Expr) -> Expr:
        b = self.k.b
        return b.select(b.eq(p, LAST_SHORT), (1 << 63) - 1, b.cast(p, i64))

    def feed(self, names: Sequence[str], lane: DimLike | None, state: Sequence[Expr], where: Expr | None,
             states: bool = False) -> None:
        k, at = self.k, () if lane is None else (lane,)
        old = [k.get(n, *at) for n in names]
        new = (self.lower.combine if states else self.add)(k.b, tuple(old), tuple(state))
        if len(new) > 1:  # all of the new state is computed from all of the old
            new = tuple(k.let(v) for v in new)
        for n, v, o in zip(names, new, old, strict=True):
            k.set(n, v if where is None else k.b.select(where, v, o), *at)

    def fold(self) -> tuple[Expr, ...]:
        """Bind and return the folded state."""
        k = self.k
        left = tuple(k.fresh("x") for _ in self.names)
        right = tuple(k.fresh("y") for _ in self.names)
        a = tuple(k.b.ref(n, d) for n, d in zip(left, self.dtypes, strict=True))
        b = tuple(k.b.ref(n, d) for n, d in zip(right, self.dtypes, strict=True))
        out = tuple(k.fresh("r") for _ in self.names)
        k.add(Fold(out, tuple(self.names), self.lanes, left, right, tuple(self.lower.combine(k.b, a, b))))
        for n in out:
            k.scopes[-1].names.add(n)
        state = tuple(k.b.ref(n, d) for n, d in zip(out, self.dtypes, strict=True))
        return tuple(self._long(v) if i == self.short else v for i, v in enumerate(state))


def result(k: KernelBuilder, node: Node, state: tuple[Expr, ...]) -> Expr:
    """The value of a reduction from its folded state; small floats were summed in f32."""
    lower: Reduction = node.op.lower  # type: ignore[assignment]
    return k.b.cast(lower.leave(k.b, state), node.dtype)


def pow2(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


def lane_count(extent: DimLike) -> int:
    return min(LANES, max(1, pow2(extent))) if isinstance(extent, int) else LANES


def lane_width(machine: Machine, accs: Sequence[Accumulators], lanes: int) -> int:
    widest = max((d.bits for a in accs for d in a.dtypes), default=32)
    return min(lanes, max(1, machine.vector_bits // max(32, widest)))


def accumulate(k: KernelBuilder, accs: Sequence[Accumulators], extent: DimLike, width: int,
               element: Callable[[DimLike, Expr | None], Sequence[Sequence[Expr]]], blocked: bool,
               among: tuple[DimLike, DimLike] | None = None) -> None:
    """Deal elements 0 .. extent-1 to the lanes: ``element(j, where)`` gives the states of element j.  ``among``: the
    first and the end of the blocks of one element per lane that are dealt, if not all of them have something to add."""
    lanes = accs[0].lanes

    def lanes_at(base: DimLike, left: DimLike | None, names: Sequence[Sequence[str]]) -> None:
        with k.loop(lanes, "vector", "l", width) as lane:
            where = None if left is None else k.b.lt(k.b.index(lane), k.b.index(left))
            for a, n, s in zip(accs, names, element(base + lane, where), strict=True):
                a.feed(n, lane, s, where)

    totals = [a.names for a in accs]
    blocks, left = extent // lanes, extent % lanes
    start, end = among or (0, blocks)
    if isinstance(blocks, int) and blocks == 0:
        pass
    elif not blocked or (isinstance(extent, int) and extent <= CHUNK):
        with k.loop(end - start, "seq", "j") as j:
            lanes_at(lanes * (start + j), None, totals)
    else:
        per = CHUNK // lanes
        with k.loop(ceildiv(end, per) - start // per, "seq", "c") as i:
            c = start // per + i
            here = per * c if among is None else dmax(start, per * c)
            part = [a.fresh() for a in accs]
            with k.loop(dmin(end - here, per * (c + 1) - here), "seq", "j") as j:
                lanes_at(lanes * (here + j), None, part)
            with k.loop(lanes, "vector", "l", width) as lane:
                for a, p in zip(accs, part, strict=True):
                    a.feed(a.names, lane, [k.get(n, lane) for n in p], None, states=True)
    if not (isinstance(left, int) and left == 0):
        lanes_at(extent - left if isinstance(extent, int) else lanes * blocks, left, totals)


def reduced_index(node: Node, o: Idx, r: Idx) -> Idx:
    """Index into the operand of a reduction from kept and reduced indices."""
    kept, gone = iter(o), iter(r)
    axes = node.attrs["axes"]
    return tuple(next(gone) if a in axes else next(kept) for a in range(node.inputs[0].rank))


def reduced_extents(node: Node) -> tuple[DimLike, ...]:
    return tuple(node.inputs[0].shape[a] for a in node.attrs["axes"])


def flat_ok(g: Group) -> bool:
    """May the reduced axes be walked as one?  Only if nothing in between looks at a single axis of them."""
    return all(not n.op.lower.movement or all(x.rank == 0 for x in n.inputs)
               for n in g.members if isinstance(n.op.lower, Pointwise))


def single(extents: Sequence[DimLike]) -> bool:
    """Is there at most one axis with more than one place?"""
    return sum(not (isinstance(e, int) and e == 1) for e in extents) <= 1


def reduce_batch(k: KernelBuilder, inl: Inliner, nodes: Sequence[Node], rows: Sequence[Idx], machine: Machine,
                 flat: bool, also: Callable[[Idx, Expr | None], None] = lambda idx, where: None,
                 margins: RowMargins | None = None) -> list[list[tuple[Expr, ...]]]:
    """Reduce over the same axes for every node, in one walk over some rows; returns the folded states of every row.
    ``also(r, where)`` runs per element.  margins: of the row, if it is one."""
    extents = reduced_extents(nodes[0])
    flat = flat or single(extents)
    walked: tuple[DimLike, ...] = (prod(extents),) if flat else extents
    lanes = lane_count(walked[-1])
    twin = {n: m for n in nodes for m in nodes if TWINS.get(n.op.name) == m.op.name and n.inputs == m.inputs}
    own = [n for n in nodes if n not in twin]
    places = [(n, o) for o in rows for n in own]
    accs = [Accumulators(k, n, lanes, count=prod(extents)) for n, _ in places]
    width = lane_width(machine, accs, lanes)
    with nest(k, walked[:-1], "seq", "q") as outer:
        def element(j: DimLike, where: Expr | None):
            r = unravel(j, extents) if flat else (*outer, j)
            at = linear_index((*outer, j), walked)
            out = [a.enter(inl.value(n.inputs[0], reduced_index(n, o, r), where), at)
                   for a, (n, o) in zip(accs, places, strict=True)]
            also(r, where)
            return out
        accumulate(k, accs, walked[-1], width, element, any(n.op.name not in EXACT for n in nodes),
                   None if margins is None else margins.walked(nodes, lanes))
    folded = iter([a.fold() for a in accs])
    out = []
    for _ in rows:
        found = {n: next(folded) for n in own}
        states = [found[n] if n in found else found[twin[n]][:1] for n in nodes]
        out.append(states if margins is None else [margins.complete(n, s) for n, s in zip(nodes, states, strict=True)])
    return out


def lower_rows(g: Group, ctx: Context) -> Lowered:
    """Rows in parallel; per row, reductions level by level, then what needs all of the row."""
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    together = rows_together(g) if ctx.machine.name == "cpu" else 1
    if together > 1:
        walk_rows(k, inl, g, ctx, together)
    else:
        with nest(k, g.space[:g.outer], "parallel") as o:
            walk_row(k, inl, g, o, ctx, lambda n, idx, v: k.write(ctx.name_of(n), linear_index(idx, n.shape), v))
    declare_outputs(k, g, ctx)
    kernel = k.finish(ctx.dims, describe(g))
    kernel = replace(kernel, body=collapse(kernel.body, ("parallel", "seq")))
    work = max((n.inputs[0].type.size for n in g.reductions), key=lambda d: (not isinstance(d, int), str(d)))
    return Lowered([kernel], {}, [work * cost(g)])


def rows_together(g: Group) -> int:
    """How many rows are walked at a time.  Memory is faster where it is read in several places, so long rows of large
    operands of which only the results are wanted come SIDE_BY_SIDE, as many as have room for their lanes in
    registers."""
    batches = phases(g)
    x = batches[0][0].inputs[0]
    if g.outer == 0 or len(batches) > 1 or any(n.rank > g.outer for n in g.outputs) or not single(
            reduced_extents(batches[0][0])) or any(n.op.name in EXPENSIVE for n in g.members):
        return 1
    size, row = x.type.size, prod(reduced_extents(batches[0][0]))
    if not (isinstance(size, int) and isinstance(row, int)) or size * x.dtype.bytes < LARGE or (
            row * x.dtype.bytes < LONG):
        return 1
    state = sum(d.bytes for n in batches[0] for d in n.op.lower.state(x.dtype))  # type: ignore[union-attr]
    fit = (n for n in SIDE_BY_SIDE if g.space[g.outer - 1] % n == 0 and n * state * LANES <= REGISTERS)
    return next(fit, 1)


def walk_rows(k: KernelBuilder, inl: Inliner, g: Group, ctx: Context, together: int) -> None:
    """Some rows at a time, of each of which the reductions are all that is wanted."""
    (batch,) = phases(g)
    *others, rows = g.space[:g.outer]
    with nest(k, others, "parallel") as before, k.loop(rows // together, "parallel", "i") as i:
        group = [(*before, together * i + r) for r in range(together)]
        for o, states in zip(group, reduce_batch(k, inl, batch, group, ctx.machine, flat_ok(g)), strict=True):
            for n, s in zip(batch, states, strict=True):
                inl.bound[n] = _row_value(n, o, k.let(result(k, n, s)))
            for n in g.outputs:
                k.write(ctx.name_of(n), linear_index(o, n.shape), inl.value(n, o))


def walk_row(k: KernelBuilder, inl: Inliner, g: Group, o: Idx, ctx: Context,
             write: Callable[[Node, Idx, Expr], None], margins: RowMargins | None = None) -> None:
    """One row of a row kernel; ``write(node, idx, value)`` takes the elements of the group's outputs."""
    inside = g.space[g.outer:]
    flat = flat_ok(g)
    caches = row_caches(g)
    where_cached = {n: k.alloc(n.dtype, prod(n.shape[g.outer:])) for n in caches}
    filled: set[Node] = set()
    for batch in phases(g):
        now = [n for n in caches if n not in filled and any(feeds(n, r, g) for r in batch)]

        def also(r: Idx, where: Expr | None, now=now) -> None:
            for n in now:
                at = linear_index(r, n.shape[g.outer:])
                k.write(where_cached[n], at, inl.value(n, (*o, *r), where), where)
        (states,) = reduce_batch(k, inl, batch, [o], ctx.machine, flat, also, margins)
        for n, s in zip(batch, states, strict=True):
            v = k.let(result(k, n, s))
            inl.bound[n] = _row_value(n, o, v)
            if margins is not None:
                margins.bind(n, v)
        for n in now:
            filled.add(n)
            inl.bound[n] = _cached(k, n, where_cached[n], o, g.outer)
    for n in g.outputs:
        if n.rank == g.outer:
            write(n, o, inl.value(n, o))
    full = [n for n in g.outputs if n.rank > g.outer]
    if not full:
        return
    lanes = written_lanes(g, full, caches, ctx.machine)
    start, end = (0, inside[-1]) if margins is None else margins.written(lane_count(inside[-1]))
    with nest(k, inside[:-1], "seq", "q") as q, k.loop(end - start, "vector", "j", lanes) as j:
        for n in full:
            write(n, (*o, *q, start + j), inl.value(n, (*o, *q, start + j)))
    if margins is not None:
        for n in full:
            margins.fill(n, lanes, start, end, write)


def written_lanes(g: Group, full: Sequence[Node], cached: Sequence[Node], machine: Machine) -> int:
    """Lanes of the loop that writes a row: registers enough that some compute while functions wait for each other."""
    last = g.space[-1]
    chains: dict[Node, int] = {}  # of what is computed for every element
    for n in g.members:
        if n not in cached and n.rank > g.outer and n.shape[-1] == last and not isinstance(
                n.op.lower, Reduction):
            chains[n] = FUNCTIONS.get(n.op.name, 0) + max((chains.get(x, 0) for x in n.inputs), default=0)
    chain = max((chains.get(n, 0) for n in full), default=0)
    count = prod(g.space)
    few = isinstance(count, int) and count <= FEW or any(n.op.name in TURNS for n in chains)
    one = machine.lanes(full[0].dtype)
    most = one * (1 if chain == 0 or few else 2 if chain == 1 or machine.vector_bits < 512 else 4)
    return min(most, max(one, pow2(last))) if isinstance(last, int) else most


def _row_value(node: Node, o: Idx, v: Expr):
    def at(idx: Idx, where: Expr | None) -> Expr:
        assert idx == o, f"{node} asked for at {idx} in a row {o}"
        return v
    return at


def _cached(k: KernelBuilder, node: Node, buffer: str, o: Idx, outer: int):
    def at(idx: Idx, where: Expr | None) -> Expr | None:
        if idx[:outer] != o:
            return None
        return k.b.load(buffer, k.tidy(linear_index(idx[outer:], node.shape[outer:])), node.dtype, where)
    return at


def phases(g: Group) -> list[list[Node]]:
    """Reductions in batches that share one walk over the row: same level, same axes, same extents."""
    level: dict[Node, int] = {}
    batches: dict[tuple, list[Node]] = {}
    for n in g.members:
        level[n] = max((level.get(x, 0) for x in n.inputs), default=0)
        if isinstance(n.op.lower, Reduction):
            level[n] += 1
            batches.setdefault((level[n], n.attrs["axes"], reduced_extents(n)), []).append(n)
    return [batches[key] for key in sorted(batches, key=lambda t: t[0])]


def feeds(node: Node, root: Node, g: Group) -> bool:
    """Is ``node`` evaluated for every element while ``root`` is reduced?"""
    members = set(g.members)
    stack, seen = list(root.inputs), set()
    while stack:
        n = stack.pop()
        if n is node:
            return True
        if n in seen or n not in members or isinstance(n.op.lower, Reduction):
            continue
        seen.add(n)
        stack.extend(n.inputs)
    return False


def row_caches(g: Group) -> list[Node]:
    """Costly values of the whole row that several walks need: computed once, kept beside the row."""
    full = [n for n in g.outputs if n.rank > g.outer]
    batches = phases(g)
    prefix = tuple(range(g.outer))
    out = []
    for n in g.members:
        if n.op.name not in EXPENSIVE or n.rank <= g.outer:
            continue
        if not all(d is not None and d[:g.outer] == prefix for d in g.demands[n]):
            continue
        walks = sum(any(feeds(n, r, g) for r in b) for b in batches)
        last = any(n is f or feeds(n, f, g) for f in full)
        if walks and walks + last > 1:
            out.append(n)
    return out
