"""Lowering of reductions: rows, columns, and those too large for one thread.

Here: lanes and their folding, one kernel per group of rows or columns, splitting.  Not here: which reductions share a
kernel (fuse.py), what a reduction computes (op.Reduction).  Read next: contract.py.

The reduced elements of one result are dealt to LANES accumulators (element j goes to lane j mod LANES); floating sums
are collected in chunks of CHUNK elements first, so that the error grows like that of pairwise summation; a fixed tree
folds the lanes.  A reduction without enough rows to share is split: fixed pieces of SPLIT elements give partial
states, a second kernel combines them.  All of this is part of the meaning of the kernel, so the bits do not depend on
the machine or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import CHUNK, LANES, Expr, Fold, Kernel
from flowc.op import Pointwise, Reduction
from flowc.passes.fuse import EXPENSIVE, Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.schedule import Machine, collapse
from flowc.types import DType, Type

SPLIT = 1 << 16        # elements of one piece of a split reduction
SPLIT_ROWS = 1 << 10   # rows of one piece of a split column reduction
STRIP = 1 << 10        # columns that are walked together where there are more than a few
TURN = 8              # rows added in registers before they join the sums of a strip
EXACT = frozenset({"reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin"})


class Accumulators:
    """The lanes of one reduction: declaring, feeding, folding.

    lanes: 0 for one state, of whoever feeds it.  states: it is fed states of many elements, not elements in order.
    """

    def __init__(self, k: KernelBuilder, node: Node, lanes: int, states: bool = False):
        self.k, self.node, self.lanes = k, node, lanes
        self.lower: Reduction = node.op.lower  # type: ignore[assignment]
        self.add = self.lower.later if self.lower.later and not states else self.lower.combine
        dt = node.inputs[0].dtype
        self.dtypes: tuple[DType, ...] = self.lower.state(dt)
        self.units = self.lower.unit(dt)
        self.names = self.fresh()

    def fresh(self) -> list[str]:
        k = self.k
        shape = (self.lanes,) if self.lanes else ()
        return [k.acc(d, k.b.const(u, d), shape) for d, u in zip(self.dtypes, self.units, strict=True)]

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
        return tuple(k.b.ref(n, d) for n, d in zip(out, self.dtypes, strict=True))


def _monoid(n: Node) -> Reduction:
    lower = n.op.lower
    assert isinstance(lower, Reduction)
    return lower


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
               element: Callable[[DimLike, Expr | None], Sequence[Sequence[Expr]]], blocked: bool) -> None:
    """Deal elements 0 .. extent-1 to the lanes: ``element(j, where)`` gives the states of element j."""
    lanes = accs[0].lanes

    def lanes_at(base: DimLike, left: DimLike | None, names: Sequence[Sequence[str]]) -> None:
        with k.loop(lanes, "vector", "l", width) as lane:
            where = None if left is None else k.b.lt(k.b.index(lane), k.b.index(left))
            for a, n, s in zip(accs, names, element(base + lane, where), strict=True):
                a.feed(n, lane, s, where)

    totals = [a.names for a in accs]
    blocks, left = extent // lanes, extent % lanes
    if isinstance(blocks, int) and blocks == 0:
        pass
    elif not blocked or (isinstance(extent, int) and extent <= CHUNK):
        with k.loop(blocks, "seq", "j") as j:
            lanes_at(lanes * j, None, totals)
    else:
        per = CHUNK // lanes
        with k.loop(ceildiv(blocks, per), "seq", "c") as c:
            part = [a.fresh() for a in accs]
            with k.loop(dmin(per, blocks - per * c), "seq", "j") as j:
                lanes_at(lanes * (per * c + j), None, part)
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


def reduce_batch(k: KernelBuilder, inl: Inliner, nodes: Sequence[Node], o: Idx, machine: Machine, flat: bool,
                 also: Callable[[Idx, Expr | None], None] = lambda idx, where: None) -> list[tuple[Expr, ...]]:
    """Reduce over the same axes for every node; returns folded states.  ``also(r, where)`` runs per element."""
    extents = reduced_extents(nodes[0])
    flat = flat or single(extents)
    walked: tuple[DimLike, ...] = (prod(extents),) if flat else extents
    lanes = lane_count(walked[-1])
    accs = [Accumulators(k, n, lanes) for n in nodes]
    width = lane_width(machine, accs, lanes)
    with nest(k, walked[:-1], "seq", "q") as outer:
        def element(j: DimLike, where: Expr | None):
            r = unravel(j, extents) if flat else (*outer, j)
            pos = k.b.index(linear_index((*outer, j), walked))
            out = [a.lower.enter(k.b, inl.value(n.inputs[0], reduced_index(n, o, r), where), pos)
                   for a, n in zip(accs, nodes, strict=True)]
            also(r, where)
            return out
        accumulate(k, accs, walked[-1], width, element, blocked=any(n.op.name not in EXACT for n in nodes))
    return [a.fold() for a in accs]


def lower_rows(g: Group, ctx: Context) -> Lowered:
    """Rows in parallel; per row, reductions level by level, then what needs all of the row."""
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    with nest(k, g.space[:g.outer], "parallel") as o:
        walk_row(k, inl, g, o, ctx, lambda n, idx, v: k.write(ctx.name_of(n), linear_index(idx, n.shape), v))
    declare_outputs(k, g, ctx)
    kernel = k.finish(ctx.dims, describe(g))
    kernel = replace(kernel, body=collapse(kernel.body, ("parallel", "seq")))
    work = max((n.inputs[0].type.size for n in g.reductions), key=lambda d: (not isinstance(d, int), str(d)))
    return Lowered([kernel], {}, [work * cost(g)])


def walk_row(k: KernelBuilder, inl: Inliner, g: Group, o: Idx, ctx: Context,
             write: Callable[[Node, Idx, Expr], None]) -> None:
    """One row of a row kernel; ``write(node, idx, value)`` takes the elements of the group's outputs."""
    inside = g.space[g.outer:]
    flat = flat_ok(g)
    caches = row_caches(g)
    where_cached = {n: k.alloc(n.dtype, prod(n.shape[g.outer:])) for n in caches}
    filled: set[Node] = set()
    for batch in phases(g):
        now = [n for n in caches if n not in filled and any(_feeds(n, r, g) for r in batch)]

        def also(r: Idx, where: Expr | None, now=now) -> None:
            for n in now:
                at = linear_index(r, n.shape[g.outer:])
                k.write(where_cached[n], at, inl.value(n, (*o, *r), where), where)
        states = reduce_batch(k, inl, batch, o, ctx.machine, flat, also)
        for n, s in zip(batch, states, strict=True):
            v = k.let(result(k, n, s))
            inl.bound[n] = _row_value(n, o, v)
        for n in now:
            filled.add(n)
            inl.bound[n] = _cached(k, n, where_cached[n], o, g.outer)
    for n in g.outputs:
        if n.rank == g.outer:
            write(n, o, inl.value(n, o))
    full = [n for n in g.outputs if n.rank > g.outer]
    if full:
        with (nest(k, inside[:-1], "seq", "q") as q,
              k.loop(inside[-1], "vector", "j", ctx.machine.lanes(full[0].dtype)) as j):
            for n in full:
                write(n, (*o, *q, j), inl.value(n, (*o, *q, j)))


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


def _feeds(node: Node, root: Node, g: Group) -> bool:
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
        walks = sum(any(_feeds(n, r, g) for r in b) for b in batches)
        last = any(n is f or _feeds(n, f, g) for f in full)
        if walks and walks + last > 1:
            out.append(n)
    return out


class Columns:
    """Neighbouring columns as lanes.

    Few columns (LANES at most) are kept in registers while the rows go by.  More of them are cut into strips: TURN
    rows are added in registers, strip after strip of lanes, and join the sums of the strip, which stay in the nearest
    cache; so memory is read along whole rows.  Floating sums of SPLIT_ROWS rows are collected before they join the
    totals.

    o: indices of the kept axes before the columns.  piece: (first, count) along the first reduced axis; the whole of
    it by default.
    """

    def __init__(self, k: KernelBuilder, inl: Inliner, nodes: Sequence[Node], o: Idx, ctx: Context,
                 piece: tuple[DimLike, DimLike] | None = None):
        self.k, self.inl, self.nodes, self.o = k, inl, nodes, o
        self.columns = nodes[0].shape[-1]
        self.extents = reduced_extents(nodes[0])
        self.start, count = piece or (0, self.extents[0])
        self.walked = (count, *self.extents[1:])
        self.few = isinstance(self.columns, int) and self.columns <= LANES
        self.strips = ctx.machine.name == "cpu"  # elsewhere there is no near cache to keep the sums of a strip
        self.lanes = LANES
        if isinstance(self.columns, int):
            self.lanes = min(LANES, pow2(self.columns) if self.columns <= 8 else -(-self.columns // 16) * 16)
        self.width = min(self.lanes, ctx.machine.lanes(nodes[0].dtype))
        while self.lanes % self.width:
            self.width //= 2
        self.exact = all(n.op.name in EXACT for n in nodes)

    def emit(self, leave: Callable[[Node, tuple[Expr, ...], DimLike, Expr | None], None]) -> None:
        """The loops over strips; ``leave(node, state, column, where)`` takes each result."""
        k, columns = self.k, self.columns
        if self.few:
            with k.region():
                self._block(0, None if columns == self.lanes else columns, leave)
        elif not self.strips:
            self._blocks(leave)
        elif isinstance(columns, int) and columns <= STRIP:
            with k.region():
                self._strip(0, columns, leave)
        else:
            even = isinstance(columns, int) and columns % STRIP == 0
            with k.loop(ceildiv(columns, STRIP), "parallel", "b") as c:
                self._strip(STRIP * c, STRIP if even else dmin(STRIP, columns - STRIP * c), leave)

    def _states(self, r: Idx, column: DimLike, where: Expr | None) -> Iterator[tuple[Expr, ...]]:
        """The element of every reduction at a place, as a state."""
        full = (r[0] + self.start, *r[1:])
        pos = self.k.b.index(linear_index(full, self.extents))
        for n in self.nodes:
            x = self.inl.value(n.inputs[0], reduced_index(n, (*self.o, column), full), where)
            yield _monoid(n).enter(self.k.b, x, pos)

    # -- few columns

    @contextmanager
    def _lane(self, left: DimLike | None) -> Iterator[tuple[DimLike, Expr | None]]:
        """A loop over the lanes, and which of them exist."""
        k = self.k
        with k.loop(self.lanes, "vector", "l", self.width) as lane:
            yield lane, None if left is None else k.b.lt(k.b.index(lane), k.b.index(left))

    def _row(self, accs: Sequence[Accumulators], names: Sequence[Sequence[str]], r: Idx, first: DimLike,
             left: DimLike | None) -> None:
        """Feed the elements of one row of a block."""
        with self._lane(left) as (lane, where):
            for a, own, state in zip(accs, names, self._states(r, first + lane, where), strict=True):
                a.feed(own, lane, state, where)

    def _blocks(self, leave: Callable[..., None]) -> None:
        """Blocks of LANES columns; the last is a second copy of the code, with a mask, unless they come out even."""
        k, columns, lanes = self.k, self.columns, self.lanes
        with k.loop(ceildiv(columns, lanes), "parallel", "b") as c:
            first = lanes * c
            if isinstance(columns, int) and columns % lanes == 0:
                self._block(first, None, leave)
                return
            full = k.b.le(k.b.index(first + lanes), k.b.index(columns))
            with k.if_(full):
                self._block(first, None, leave)
            with k.if_(k.b.not_(full)):
                self._block(first, columns - first, leave)

    def _block(self, first: DimLike, left: DimLike | None, leave: Callable[..., None]) -> None:
        k, walked = self.k, self.walked
        accs = [Accumulators(k, n, self.lanes) for n in self.nodes]
        totals = [a.names for a in accs]
        rows = walked[-1]
        # what is collected before it joins: the levels of a block, or those of a strip, whose bits they must give
        levels: tuple[int, ...] = (LANES,) if self.few else (SPLIT_ROWS, TURN)
        if self.exact:
            levels = ()
        elif isinstance(rows, int) and rows <= levels[0]:
            levels = levels[1:]
        with nest(k, walked[:-1], "seq", "r") as r0:
            self._collect(accs, totals, r0, 0, rows, levels, first, left)
        with self._lane(left) as (lane, where):
            for a, n in zip(accs, self.nodes, strict=True):
                leave(n, tuple(k.get(name, lane) for name in a.names), first + lane, where)

    def _collect(self, accs: Sequence[Accumulators], sums: Sequence[Sequence[str]], r0: Idx, start: DimLike,
                 rows: DimLike, levels: Sequence[int], first: DimLike, left: DimLike | None) -> None:
        """Add rows start .. start + rows - 1 to ``sums``, by groups of ``levels[0]`` rows, these by groups of ..."""
        k = self.k
        if not levels:
            with k.loop(rows, "seq", "r") as r:
                self._row(accs, sums, (*r0, start + r), first, left)
            return
        size = levels[0]
        with k.loop(ceildiv(rows, size), "seq", "c") as c:
            part = [a.fresh() for a in accs]
            self._collect(accs, part, r0, start + size * c, dmin(size, rows - size * c), levels[1:], first, left)
            with self._lane(None) as (lane, _):
                for a, names, p in zip(accs, sums, part, strict=True):
                    a.feed(names, lane, [k.get(n, lane) for n in p], None, states=True)

    # -- strips

    def _strip(self, first: DimLike, count: DimLike, leave: Callable[..., None]) -> None:
        k, walked = self.k, self.walked
        room = count if isinstance(count, int) else STRIP
        totals = self._sums(room, count)
        rows = walked[-1]
        with nest(k, walked[:-1], "seq", "r") as r0:
            if self.exact or (isinstance(rows, int) and rows <= SPLIT_ROWS):
                self._turns(r0, 0, rows, first, count, totals)
            else:
                with k.loop(ceildiv(rows, SPLIT_ROWS), "seq", "c") as c:
                    part = self._sums(room, count)
                    self._turns(r0, SPLIT_ROWS * c, dmin(SPLIT_ROWS, rows - SPLIT_ROWS * c), first, count, part)
                    with k.loop(count, "vector", "l", 2 * self.width) as lane:
                        for n, total, p in zip(self.nodes, totals, part, strict=True):
                            self._join(n, total, lane, self._read(n, p, lane))
        with k.loop(count, "vector", "l", self.width) as lane:
            for n, total in zip(self.nodes, totals, strict=True):
                leave(n, self._read(n, total, lane), first + lane, None)

    def _sums(self, room: int, count: DimLike) -> list[list[str]]:
        """Memory for the states of a strip, filled with the unit."""
        k = self.k
        out = [[k.alloc(d, room) for d in self._dtypes(n)] for n in self.nodes]
        with k.loop(count, "vector", "l", 2 * self.width) as lane:
            for n, names in zip(self.nodes, out, strict=True):
                dt = n.inputs[0].dtype
                for name, d, u in zip(names, self._dtypes(n), _monoid(n).unit(dt), strict=True):
                    k.write(name, lane, k.b.const(u, d))
        return out

    def _dtypes(self, n: Node) -> tuple[DType, ...]:
        return _monoid(n).state(n.inputs[0].dtype)

    def _read(self, n: Node, names: Sequence[str], lane: DimLike) -> tuple[Expr, ...]:
        return tuple(self.k.b.load(name, lane, d) for name, d in zip(names, self._dtypes(n), strict=True))

    def _join(self, n: Node, names: Sequence[str], lane: DimLike, state: Sequence[Expr]) -> None:
        k = self.k
        new = _monoid(n).combine(k.b, self._read(n, names, lane), tuple(state))
        for name, v in zip(names, [k.let(v) for v in new] if len(new) > 1 else new, strict=True):
            k.write(name, lane, v)

    def _turns(self, r0: Idx, start: DimLike, rows: DimLike, first: DimLike, count: DimLike,
               sums: Sequence[Sequence[str]]) -> None:
        """Rows start .. start + rows - 1, TURN at a time."""
        k = self.k
        turns = isinstance(rows, int) and rows <= TURN
        with (k.loop(1 if turns else ceildiv(rows, TURN), "seq", "t") as t,
              k.loop(count, "vector", "l", 2 * self.width) as lane):
            accs = [Accumulators(k, n, 0) for n in self.nodes]
            with k.loop(rows if turns else dmin(TURN, rows - TURN * t), "seq", "r") as r:
                for a, state in zip(accs, self._states((*r0, start + TURN * t + r), first + lane, None),
                                         strict=True):
                    a.feed(a.names, None, state, None)
            for n, a, names in zip(self.nodes, accs, sums, strict=True):
                self._join(n, names, lane, [k.get(name) for name in a.names])


def lower_columns(g: Group, ctx: Context) -> Lowered:
    """Reductions that keep the innermost axis: neighbouring columns are the lanes, rows are walked in order."""
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    with nest(k, g.root.shape[:-1], "parallel") as o:
        def leave(n: Node, state: tuple[Expr, ...], column: DimLike, where: Expr | None) -> None:
            at = (*o, column)
            k.write(ctx.name_of(n), linear_index(at, n.shape), result(k, n, state), where)
            if n is g.reductions[-1]:  # what the elements were computed from and others read, too
                for m in g.outputs:
                    if m not in g.reductions:
                        k.write(ctx.name_of(m), linear_index(at, m.shape), inl.value(m, at, where), where)
        Columns(k, inl, g.reductions, o, ctx).emit(leave)
    declare_outputs(k, g, ctx)
    return Lowered([k.finish(ctx.dims, describe(g))], {}, [g.root.inputs[0].type.size * cost(g)])


# ---- split reductions -----------------------------------------------------------------------------------------------

def splits(g: Group) -> bool:
    """Too few results to share between threads, and too many elements for one."""
    root = g.root
    if len(g.reductions) != 1 or not isinstance(root.op.lower, Reduction) or g.outputs != [root]:
        return False
    rows, extents = prod(root.shape), reduced_extents(root)
    elements = prod(extents)
    if g.kind == "column":
        blocks = rows if not isinstance(rows, int) else rows // STRIP
        return isinstance(blocks, int) and blocks < 4 and not (isinstance(elements, int) and elements <= SPLIT_ROWS)
    return isinstance(rows, int) and rows < 16 and not (isinstance(elements, int) and elements <= SPLIT)


def lower_split(g: Group, ctx: Context) -> Lowered:
    """Two kernels: partial states of fixed pieces, then their combination."""
    node = g.root
    lower: Reduction = node.op.lower  # type: ignore[assignment]
    dtypes = lower.state(node.inputs[0].dtype)
    extents = reduced_extents(node)
    flat = g.kind == "row" and (flat_ok(g) or single(extents))
    size, total = (SPLIT, prod(extents)) if flat else (SPLIT_ROWS if g.kind == "column" else 1, extents[0])
    pieces = ceildiv(total, size)
    temps = {f"{ctx.name}.part{i}": Type(d, (*node.shape, pieces) if g.kind == "row" else
                                              (*node.shape[:-1], pieces, node.shape[-1]))
             for i, d in enumerate(dtypes)}
    names = list(temps)
    k = ctx.builder("a")
    inl = inliner(k, g, ctx)

    def put(at: Idx, state: Sequence[Expr], where: Expr | None = None) -> None:
        for n, s in zip(names, state, strict=True):
            k.write(n, linear_index(at, temps[n].shape), s, where)

    if g.kind == "column":
        with nest(k, node.shape[:-1], "parallel") as o, k.loop(pieces, "parallel", "p") as p:
            Columns(k, inl, [node], o, ctx, (size * p, dmin(size, total - size * p))).emit(
                lambda n, state, column, where: put((*o, p, column), state, where))
    else:
        with nest(k, node.shape, "parallel") as o, k.loop(pieces, "parallel", "p") as p:
            put((*o, p), _piece(k, inl, node, o, p, size, total, flat, ctx))
    for n, t in temps.items():
        k.buffer(n, t.dtype, t.shape, "out")
    first = k.finish(ctx.dims, describe(g))
    second = _combine_pieces(node, temps, g.kind, pieces, ctx)
    work = node.inputs[0].type.size * cost(g)
    return Lowered([first, second], temps, [work, pieces * 4])


def _piece(k: KernelBuilder, inl: Inliner, node: Node, o: Idx, p: DimLike, size: int, total: DimLike, flat: bool,
           ctx: Context) -> tuple[Expr, ...]:
    extents = reduced_extents(node)
    inner: DimLike = dmin(size, total - size * p) if flat else extents[-1] if len(extents) > 1 else 1
    walked = () if flat else extents[1:-1]
    lanes = LANES if flat else lane_count(inner)
    acc = Accumulators(k, node, lanes)
    with nest(k, walked, "seq", "q") as q:
        def element(j: DimLike, where: Expr | None):
            if flat:
                r, pos = unravel(size * p + j, extents), size * p + j
            else:
                r = (p, *q, j) if len(extents) > 1 else (p,)
                pos = linear_index(r, extents)
            return [acc.lower.enter(k.b, inl.value(node.inputs[0], reduced_index(node, o, r), where), k.b.index(pos))]
        accumulate(k, [acc], inner, lane_width(ctx.machine, [acc], lanes), element,
                   blocked=node.op.name not in EXACT)
    return acc.fold()


def _combine_pieces(node: Node, temps: dict[str, Type], kind: str, pieces: DimLike, ctx: Context) -> Kernel:
    k = ctx.builder("b")
    for n, t in temps.items():
        k.buffer(n, t.dtype, t.shape)
    with nest(k, node.shape, "parallel") as o:
        lanes = lane_count(pieces)
        acc = Accumulators(k, node, lanes, states=True)

        def element(j: DimLike, where: Expr | None):
            at = (*o, j) if kind == "row" else (*o[:-1], j, o[-1])
            return [tuple(k.b.load(n, linear_index(at, t.shape), t.dtype, where) for n, t in temps.items())]
        accumulate(k, [acc], pieces, lane_width(ctx.machine, [acc], lanes), element,
                   blocked=node.op.name not in EXACT)
        k.write(ctx.name_of(node), linear_index(o, node.shape), result(k, node, acc.fold()))
    k.buffer(ctx.name_of(node), node.dtype, node.shape, "out")
    return k.finish(ctx.dims, [f"combine the pieces of {node.op.name}"])
