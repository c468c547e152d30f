"""Lowering of reductions that keep the innermost axis: neighbouring columns are the lanes, rows are walked in order.

Here: columns in registers and in strips, several walks over rows that stay in a near cache.  Not here: rows, lanes and
their folding (reductions.py).  Read next: split.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import LANES, Expr
from flowc.op import Pointwise, Reduction
from flowc.passes.fuse import EXPENSIVE, FEW_ROWS, Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.reductions import EXACT, Accumulators, feeds, phases, pow2, reduced_extents, reduced_index, result
from flowc.passes.schedule import Machine
from flowc.types import DType

SPLIT_ROWS = 1 << 10   # rows of one piece of a split column reduction with few columns, and of what is collected
PIECE_ROWS = 1 << 8    # rows of one piece where there are more
STRIP = 1 << 10        # columns that are walked together where there are more than a few
WIDE_STRIP = 1 << 12   # the same where the rows are shared between threads: memory is fast in long runs
NEAR_STRIP = (1 << 8, 1 << 10)  # the same where strips are walked over again: least, most
MIN_STRIPS = 8         # strips that are enough to share between threads
TURN = 8               # rows added in registers before they join the sums of a strip


def _monoid(n: Node) -> Reduction:
    lower = n.op.lower
    assert isinstance(lower, Reduction)
    return lower


class After(NamedTuple):
    """Values of every element that are written after the reductions, the values of whole columns they need, by the
    batch after which these are known, and costly values of every element, by the batch that is fed them first."""

    outputs: Sequence[Node]
    write: Callable[[Node, Idx], None]
    columns: Sequence[Sequence[Node]]
    elements: Sequence[Sequence[Node]]


class Columns:
    """Neighbouring columns as lanes.

    Few columns (LANES at most) are kept in registers while the rows go by.  More of them are cut into strips: TURN
    rows are added in registers, strip after strip of lanes, and join the sums of the strip, which stay in the nearest
    cache; so memory is read along whole rows.  Where one strip is the whole row and the operand is too large for the
    second-level cache, its rows are read one after the other: eight short ones at once are no streams that machines
    recognise, and half as fast.  Floating sums of SPLIT_ROWS rows are collected before they join the totals.

    batches: reductions, each batch in a walk of its own that knows the results of the ones before.  o: indices of the
    kept axes before the columns.  wide: there is more to share between threads than strips.  piece: (first, count)
    along the first reduced axis; the whole of it by default.  after: values of every element, which are written when
    the reductions are known; what is computed from those column by column on the way there is kept beside them.
    """

    def __init__(self, k: KernelBuilder, inl: Inliner, batches: Sequence[Sequence[Node]], o: Idx, ctx: Context,
                 wide: bool, piece: tuple[DimLike, DimLike] | None = None, after: After | None = None):
        self.k, self.inl, self.batches, self.o = k, inl, batches, o
        self.after = after
        self.filling: dict[Node, str] = {}
        self.first: DimLike = 0
        self.nodes: Sequence[Node] = [n for batch in batches for n in batch]
        nodes = self.nodes
        self.columns = nodes[0].shape[-1]
        self.extents = reduced_extents(nodes[0])
        self.start, count = piece or (0, self.extents[0])
        self.walked = (count, *self.extents[1:])
        self.few = few_columns(nodes[0])
        self.strip = self._near_strip(after, ctx.machine) if after else self._strip_size(ctx.machine) if wide else STRIP
        self.strips = ctx.machine.name == "cpu"  # elsewhere there is no near cache to keep the sums of a strip
        self.lanes = LANES
        if isinstance(self.columns, int):
            self.lanes = min(LANES, pow2(self.columns) if self.columns <= 8 else -(-self.columns // 16) * 16)
        self.width = min(self.lanes, ctx.machine.lanes(nodes[0].dtype))
        while self.lanes % self.width:
            self.width //= 2
        self.exact = all(n.op.name in EXACT for n in nodes)
        size = prod(nodes[0].inputs[0].shape) * nodes[0].inputs[0].dtype.bytes
        self.in_order = (after is None and isinstance(self.columns, int) and self.columns <= STRIP
                         and not (isinstance(size, int) and size <= ctx.machine.l2))

    def _strip_size(self, machine: Machine) -> int:
        """Columns of a strip: what is walked over again stays in a near cache."""
        rows, size = prod(self.walked), self.nodes[0].inputs[0].dtype.bytes
        if len(self.batches) == 1 or not isinstance(rows, int):
            return WIDE_STRIP
        return max(STRIP, min(WIDE_STRIP, pow2(machine.l2 // (rows * size) + 1) // 2))

    def _near_strip(self, after: After, machine: Machine) -> int:
        """As many columns as memory delivers in long runs, whose rows stay in the second-level cache with what is kept
        of them, but enough strips to share."""
        rows, size = prod(self.walked), self.nodes[0].inputs[0].dtype.bytes * (1 + sum(map(len, after.elements)))
        assert isinstance(self.columns, int) and isinstance(rows, int)
        most = min(self.columns // MIN_STRIPS, machine.l2 // (rows * size))
        return max(NEAR_STRIP[0], min(pow2(most + 1) // 2, NEAR_STRIP[1]))

    def emit(self, leave: Callable[[Node, tuple[Expr, ...], DimLike, Expr | None], None]) -> None:
        """The loops over strips; ``leave(node, state, column, where)`` takes each result."""
        k, columns = self.k, self.columns
        if self.few:
            with k.region():
                self._block(0, None if columns == self.lanes else columns, leave)
        elif not self.strips:
            self._blocks(leave)
        elif isinstance(columns, int) and columns <= self.strip:
            with k.region():
                self._strip(0, columns, leave)
        else:
            size = self.strip
            even = isinstance(columns, int) and columns % size == 0
            with k.loop(ceildiv(columns, size), "parallel", "b") as c:
                self._strip(size * c, size if even else dmin(size, columns - size * c), leave)

    def _known(self, n: Node, first: DimLike, state: Callable[[DimLike], tuple[Expr, ...]]) -> None:
        """Later batches find the result of ``n`` in ``state(lane)``."""
        def at(idx: Idx, where: Expr | None) -> Expr:
            assert idx[:-1] == self.o, f"{n} asked for at {idx} in columns {self.o}"
            return result(self.k, n, state(idx[-1] - first))
        if n not in self.batches[-1] or self.after is not None:
            self.inl.bound[n] = at

    def _states(self, r: Idx, column: DimLike, where: Expr | None) -> Iterator[tuple[Expr, ...]]:
        """The element of every reduction at a place, as a state."""
        full = (r[0] + self.start, *r[1:])
        pos = self.k.b.index(linear_index(full, self.extents))
        for m, t in self.filling.items():
            at = reduced_index(self.nodes[0], (*self.o, column), full)
            self.k.write(t, self._element(at, self.first), self.inl.value(m, at))
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
        for batch in self.batches:
            self.nodes = batch
            self._block_walk(first, left, leave)

    def _block_walk(self, first: DimLike, left: DimLike | None, leave: Callable[..., None]) -> None:
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
                self._known(n, first, lambda at, a=a: tuple(k.get(name, at) for name in a.names))  # type: ignore[misc]
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
        for level, batch in enumerate(self.batches):
            self.nodes = batch
            if self.after is not None:
                room = prod(self.walked) * self.strip
                self.filling = {n: self.k.alloc(n.dtype, room) for n in self.after.elements[level]}
                self.first = first
            self._strip_walk(first, count, leave)
            if self.after is not None:
                for n, t in self.filling.items():
                    self.inl.bound[n] = self._kept(n, t, first)
                self._keep(self.after.columns[level], first, count)
        if self.after is not None:
            with (nest(self.k, self.walked, "seq", "r") as r,
                  self.k.loop(count, "vector", "l", self.width) as lane):
                for n in self.after.outputs:
                    self.after.write(n, reduced_index(self.nodes[0], (*self.o, first + lane), r))

    def _element(self, idx: Idx, first: DimLike) -> DimLike:
        """Where an element of the strip is kept."""
        axes = self.nodes[0].attrs["axes"]
        return linear_index(tuple(idx[a] for a in axes), self.walked) * self.strip + idx[-1] - first

    def _kept(self, n: Node, t: str, first: DimLike) -> Callable[[Idx, Expr | None], Expr]:
        return lambda idx, where: self.k.b.load(t, self.k.tidy(self._element(idx, first)), n.dtype)

    def _keep(self, values: Sequence[Node], first: DimLike, count: DimLike) -> None:
        """Compute values of every column of the strip and bind them."""
        k = self.k
        room = count if isinstance(count, int) else self.strip
        where = {n: k.alloc(n.dtype, room) for n in values}
        with k.loop(count, "vector", "l", self.width) as lane:
            for n, t in where.items():
                left = iter((*self.o, first + lane))
                at = tuple(0 if isinstance(d, int) and d == 1 else next(left) for d in n.shape)
                k.write(t, lane, self.inl.value(n, at))
        for n, t in where.items():
            self.inl.bound[n] = lambda idx, cond, n=n, t=t: k.b.load(t, idx[-1] - first, n.dtype)  # type: ignore[misc]

    def _strip_walk(self, first: DimLike, count: DimLike, leave: Callable[..., None]) -> None:
        k, walked = self.k, self.walked
        room = count if isinstance(count, int) else self.strip
        totals = self._sums(room, count)
        rows = walked[-1]
        with nest(k, walked[:-1], "seq", "r") as r0:
            if self.exact or (isinstance(rows, int) and rows <= SPLIT_ROWS):
                self._turns(r0, 0, rows, first, count, totals)
            else:
                with k.loop(ceildiv(rows, SPLIT_ROWS), "seq", "c") as c:
                    part = self._sums(room, count)
                    self._turns(r0, SPLIT_ROWS * c, dmin(SPLIT_ROWS, rows - SPLIT_ROWS * c), first, count, part)
                    self._join_all(totals, part, count)
        with k.loop(count, "vector", "l", self.width) as lane:
            for n, total in zip(self.nodes, totals, strict=True):
                self._known(n, first, lambda at, n=n, total=total: self._read(n, total, at))  # type: ignore[misc]
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
        if self.in_order and not (isinstance(rows, int) and rows <= TURN):
            self._row_by_row(r0, start, rows, first, count, sums)
            return
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

    def _row_by_row(self, r0: Idx, start: DimLike, rows: DimLike, first: DimLike, count: DimLike,
                    sums: Sequence[Sequence[str]]) -> None:
        """The same bits with the sums of a turn in the nearest cache, so that memory is read as it lies."""
        k = self.k
        with k.loop(ceildiv(rows, TURN), "seq", "t") as t:
            part = sums if self.exact else self._sums(count if isinstance(count, int) else STRIP, count)
            with (k.loop(dmin(TURN, rows - TURN * t), "seq", "r") as r,
                  k.loop(count, "vector", "l", 2 * self.width) as lane):
                for n, names, state in zip(self.nodes, part, self._states(
                        (*r0, start + TURN * t + r), first + lane, None), strict=True):
                    self._join(n, names, lane, state)
            if not self.exact:
                self._join_all(sums, part, count)

    def _join_all(self, totals: Sequence[Sequence[str]], parts: Sequence[Sequence[str]], count: DimLike) -> None:
        with self.k.loop(count, "vector", "l", 2 * self.width) as lane:
            for n, total, p in zip(self.nodes, totals, parts, strict=True):
                self._join(n, total, lane, self._read(n, p, lane))


def few_columns(n: Node) -> bool:
    return isinstance(n.shape[-1], int) and n.shape[-1] <= LANES


def near(n: Node, machine: Machine) -> bool:
    """Are the columns reduced by ``n`` so many and so short that strips of them stay in the second-level cache?"""
    rows, columns, size = prod(reduced_extents(n)), n.shape[-1], n.inputs[0].dtype.bytes
    return (isinstance(rows, int) and isinstance(columns, int) and 0 < rows * NEAR_STRIP[1] * size <= machine.l2
            and columns >= MIN_STRIPS * NEAR_STRIP[0])


def _occupies(extents: Sequence[DimLike]) -> bool:
    """Are these iterations alone enough for many threads?"""
    count = prod(extents)
    return isinstance(count, int) and count >= FEW_ROWS


def lower_columns(g: Group, ctx: Context) -> Lowered:
    """Reductions that keep the innermost axis: neighbouring columns are the lanes, rows are walked in order."""
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    batches = phases(g)
    full = [n for n in g.outputs if n.rank > g.root.rank]
    with nest(k, g.root.shape[:-1], "parallel") as o:
        def leave(n: Node, state: tuple[Expr, ...], column: DimLike, where: Expr | None) -> None:
            at = (*o, column)
            if n in g.outputs:
                k.write(ctx.name_of(n), linear_index(at, n.shape), result(k, n, state), where)
            if n is batches[-1][-1]:  # what the elements were computed from and others read, too
                for m in g.outputs:
                    if m not in g.reductions and m not in full:
                        k.write(ctx.name_of(m), linear_index(at, m.shape), inl.value(m, at, where), where)

        def write(n: Node, at: Idx) -> None:
            k.write(ctx.name_of(n), linear_index(at, n.shape), inl.value(n, at))

        after = After(full, write, column_values(g, batches), element_values(g, batches)) if full else None
        Columns(k, inl, batches, o, ctx, _occupies(g.root.shape[:-1]), after=after).emit(leave)
    declare_outputs(k, g, ctx)
    return Lowered([k.finish(ctx.dims, describe(g))], {}, [g.root.inputs[0].type.size * cost(g)])


def column_values(g: Group, batches: Sequence[Sequence[Node]]) -> list[list[Node]]:
    """Values of whole columns that are computed from reductions and spread over the rows, by the last batch among
    these."""
    level = {n: i for i, batch in enumerate(batches) for n in batch}
    one = [d for d in g.root.shape if d != 1]
    out: list[list[Node]] = [[] for _ in batches]
    spread = {x for n in g.members for x in n.inputs if n.type.size != x.type.size}
    for n in g.members:
        if n in level:
            continue
        level[n] = max((level.get(x, -1) for x in n.inputs), default=-1)
        if (level[n] >= 0 and n in spread and isinstance(n.op.lower, Pointwise) and not n.op.lower.movement
                and n.shape[-1] == g.root.shape[-1] and [d for d in n.shape if d != 1] == one):
            out[level[n]].append(n)
    return out


def element_values(g: Group, batches: Sequence[Sequence[Node]]) -> list[list[Node]]:
    """Costly values of every element that several walks need, by the batch of the first of them."""
    out: list[list[Node]] = [[] for _ in batches]
    full = [n for n in g.outputs if n.rank > g.root.rank]
    for n in g.members:
        if n.op.name not in EXPENSIVE or n.shape != g.root.inputs[0].shape:
            continue
        walks = [i for i, batch in enumerate(batches) if any(feeds(n, r, g) for r in batch)]
        if walks and (len(walks) > 1 or any(n is f or feeds(n, f, g) for f in full)):
            out[walks[0]].append(n)
    return out
