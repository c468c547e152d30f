"""Products whose rows are reduced, and perhaps multiplied again, by blocks of rows: attention without the matrix of
scores, nearest neighbours without the matrix of distances.

Here: recognising a contraction and a row kernel, or these and one more contraction, that hand each other whole rows;
the one kernel that does it all for a block of rows whose values in between stay in the second-level cache.
Not here: the kernels on their own (contract.py, reductions.py), what a mask leaves out (margins.py).

    for outer, row block in parallel:
        S[block][N] = rows of the first product, its epilogue applied
        for each row of S: the row kernel, in place if a product follows
        rows of the second product, read from S, epilogue, store

Every number is computed as by the separate kernels, in the same order: the bits are theirs, but for the sign of a zero
that is the sum of products too small for a float, where products with the zeros of a mask were left out.  (The tiling
is that of Dao et al., "FlashAttention", 2022; without its running rescaling, as a block of whole rows fits the cache.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flowc.dataclass import replace
from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import Expr, Fold
from flowc.passes.contract import Packed
from flowc.passes.contract_direct import finish_tile
from flowc.passes.fuse import Group, readers_of
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, named, nest
from flowc.passes.margins import Margins, find_cuts
from flowc.passes.problem import Problem
from flowc.passes.reductions import walk_row
from flowc.passes.register_tile import add_products, lanes_exist, store
from flowc.passes.schedule import ContractSchedule, Machine
from flowc.passes.tiles import BRING, CREWS, MANY, ceil_div, register_tile
from flowc.proofs import known_eq
from flowc.types import DType, i64

BLOCKS = (48, 32, 24, 16, 8)  # rows of a block, the first that fits


def rows_of(machine: Machine, columns: int, size: int) -> int | None:
    """Rows of a block that fit a quarter of the second-level cache."""
    return next((r for r in BLOCKS if 4 * r * columns * size <= machine.l2), None)


def even_rows(machine: Machine, p: Problem, most: int) -> int:
    """Rows of a block, at most ``most``, that keep all threads busy to the end and compute the fewest rows that do not
    exist."""
    if not isinstance(p.m, int) or p.m == 0:
        return most
    outer = prod(p.outer_extents)
    many = min(outer, MANY) if isinstance(outer, int) and outer else 1
    fewest = ceil_div(p.m, most)
    best: tuple[float, int] | None = None
    for blocks in range(fewest, fewest + max(CREWS)):
        rows = ceil_div(p.m, blocks)
        mr = register_tile(machine, p.acc, rows, p.n)[0]
        one = ceil_div(rows, mr) * mr + BRING
        tasks = many * ceil_div(p.m, rows)
        time = sum(ceil_div(tasks, t) * t * one for t in CREWS)
        if best is None or time < best[0]:
            best = time, rows
    assert best is not None
    return best[1]


def join_row_blocks(groups: Sequence[Group], ctx: Context, graph_outputs: set[Node],
                    allow: Callable[[str, Node], bool]) -> list[Group]:
    """The groups with every such triple, then every such pair, made one."""
    writer = {n: g for g in groups for n in g.outputs}
    readers = readers_of(groups)
    gone: set[Group] = set()
    for last in groups:
        first_two = _before(last, writer, readers, graph_outputs, gone)
        if first_two is None or not _agree((*first_two, last), ctx) or not allow("row-block", last.root):
            continue
        gone.update(first_two)
        _absorb(last, first_two)
    for row in groups:
        first = None if row in gone else _product_of(row, writer, readers, graph_outputs, gone)
        if first is not None and _pair(first, row, ctx) and allow("row-block", row.root):
            gone.add(first)
            _absorb(row, (first,))
    return [g for g in groups if g not in gone]


def _sole(node: Node, reader: Group, writer: dict[Node, Group], readers: dict[Node, set[Group]], kept: set[Node],
          gone: set[Group]) -> Group | None:
    """The group whose only result is ``node``, if nothing but ``reader`` wants it."""
    g = writer.get(node)
    alone = g is not None and g not in gone and g.outputs == [node] and readers.get(node) == {reader}
    return g if alone and node not in kept else None


def _product_of(row: Group, *where) -> Group | None:
    """The contraction that all rows of a row kernel come from."""
    if row.kind != "row" or not row.reductions:
        return None
    for a in row.demands:
        first = _sole(a, row, *where)
        if first is not None and first.kind == "contraction" and row.outer == a.rank - 1 and _in_place(row, a):
            return first
    return None


def _before(last: Group, *where) -> tuple[Group, Group] | None:
    """The row kernel whose only result ``last`` multiplies, and the product that is all it is made from."""
    if last.kind != "contraction" or last.contraction is None:
        return None
    for b in last.contraction.inputs:
        row = _sole(b, last, *where)
        first = None if row is None else _product_of(row, *where)
        if row is not None and first is not None and first.outputs[0].shape == b.shape:
            return first, row
    return None


def _in_place(row: Group, a: Node) -> bool:
    """Is ``a`` read only at the element that is written, or while a row is reduced?"""
    lead = tuple(range(row.outer))
    return all(d is not None and d[:-1] == lead and (d[-1] == row.outer or isinstance(d[-1], tuple))
               for d in row.demands[a])


def _rows_fit(first: Group, ctx: Context) -> Problem | None:
    """The first product, if its rows are of a known length that fits and lie as its result's."""
    a = first.outputs[0]
    n = a.shape[-1]
    if not isinstance(n, int) or not 1 < n or rows_of(ctx.machine, n, 4) is None:
        return None
    p = Problem(first, _with_names(ctx, (a,)))
    in_order = p.roles.outer + p.roles.rows == tuple(range(a.rank - 1))
    return p if a.dtype is p.acc and len(p.roles.cols) == 1 and in_order else None


def _pair(first: Group, row: Group, ctx: Context) -> bool:
    """Is the column operand of the product small enough to be read for every block of rows?"""
    p = _rows_fit(first, ctx)
    if p is None or not isinstance(p.k, int) or not isinstance(p.n, int):
        return False
    return 2 * p.k * p.n * p.acc.bytes <= ctx.machine.l2 and row.space[:row.outer] == first.outputs[0].shape[:-1]


def _agree(stages: tuple[Group, Group, Group], ctx: Context) -> bool:
    """Do the three walk the same rows?"""
    first, row, last = stages
    b = row.outputs[0]
    pa, pc = _rows_fit(first, ctx), Problem(last, _with_names(ctx, (b,)))
    if pa is None or b.dtype is not pc.acc:
        return False
    side = pc.roles.row_operand
    if pc.node.inputs[side] is not b or not pc.col_reach.plain or pc.col_reach.own != 1:
        return False
    same = len(pa.outer_extents) == len(pc.outer_extents) and len(pa.row_extents) == len(pc.row_extents) and all(
        known_eq(x, y, ctx.ranges) for x, y in zip((*pa.outer_extents, *pa.row_extents),
                                                   (*pc.outer_extents, *pc.row_extents), strict=True))
    return same and pc.access.reduce == (pa.n,) and _reads_rows(pc, side)


def _reads_rows(p: Problem, side: int) -> bool:
    """Is the row operand read at (outer, row, summed index)?"""
    lead = tuple(range(100, 100 + len(p.roles.outer) + len(p.roles.rows)))
    o: list[DimLike] = [0] * len(p.access.out)
    for at, v in zip((*p.roles.outer, *p.roles.rows), lead, strict=True):
        o[at] = v
    idx, conditions = (p.access.lhs, p.access.rhs)[side](tuple(o), (7,))
    return tuple(idx) == (*lead, 7) and not conditions


def _absorb(last: Group, before: tuple[Group, ...]) -> None:
    """``last`` does the work of all; what reads its results finds them where they were."""
    stages = (*before, replace(last, stages=()))
    last.stages, last.kind = stages, "row block"
    last.members = list(dict.fromkeys(n for g in stages for n in g.members))
    last.demands = {n: set().union(*(g.demands.get(n, ()) for g in stages)) for g in stages for n in g.demands}
    last.reads = set().union(*(g.reads for g in stages)) - set(before)
    last.refused = []


def _with_names(ctx: Context, inner: Sequence[Node]) -> Context:
    """``ctx`` in which values that never reach memory have names, so that accesses to them can be written down."""
    names = {n: f"{ctx.name}.inner{i}" for i, n in enumerate(inner)}
    return replace(ctx, name_of=lambda n: names.get(n) or ctx.name_of(n))


def lower_row_block(g: Group, ctx: Context) -> Lowered:
    return _RowBlock(g, ctx).lower()


class _RowBlock:
    def __init__(self, g: Group, ctx: Context):
        self.g, self.ctx = g, ctx
        self.first, self.row, *self.last = g.stages
        self.a = self.first.outputs[0]
        named = _with_names(ctx, (self.a, *self.row.outputs))
        self.pa = Problem(self.first, named)
        self.pc = [Problem(x, named) for x in self.last]
        self.n = int(self.a.shape[-1])  # type: ignore[arg-type]
        rows = rows_of(ctx.machine, self.n, 4)
        assert rows is not None
        self.rows = even_rows(ctx.machine, self.pa, rows)
        self.sa, self.sc = self._tile(self.pa), [self._tile(p) for p in self.pc]
        self.packed = None if self.pa.col_reach.plain and self.pa.col_reach.own == 1 else Packed(
            self.pa, self.sa, f"{ctx.name}.packed")
        self.cuts = find_cuts(self.row, self.a, self.pa, named)
        self.margins: Margins | None = None

    def _tile(self, p: Problem) -> ContractSchedule:
        mr, nr, width = register_tile(self.ctx.machine, p.acc, self.rows, p.n)
        return ContractSchedule("direct", mr=mr, nr=nr, width=width)

    def lower(self) -> Lowered:
        k = self.ctx.builder("b")
        blocks = ceildiv(self.pa.m, self.rows)
        with nest(k, self.pa.outer_extents, "parallel", "o") as outer, k.loop(blocks, "parallel", "rb") as block:
            if self.cuts is not None and self.cuts.high is not None and self.cuts.high.grows:
                block = blocks - 1 - block  # those with most to do come first, so that all threads end together
            self.margins = self._margins(k, outer, block)
            table = k.alloc(self.pa.acc, self.rows * self.n)
            count = self.count(block)
            self.scores(k, table, outer, block, count)
            self.normalise(k, table, outer, block, count)
            for p, s in zip(self.pc, self.sc, strict=True):
                self.product(k, p, s, table, outer, block, count)
        declare_outputs(k, self.g, self.ctx)
        notes = [*(line for s in self.g.stages for line in describe(s)), f"row blocks of {self.rows}"]
        kernel = k.finish(self.ctx.dims, notes)
        work = sum((p.work for p in (self.pa, *self.pc)), 0) // 8 + self.a.type.size * cost(self.row)
        if self.packed is None:
            return Lowered([kernel], {}, [work])
        return Lowered([self.packed.pack_columns(), kernel], {self.packed.temp: self.packed.packed},
                       [prod(self.packed.packed.shape) * 2, work])

    def _margins(self, k: KernelBuilder, outer: Idx, block: DimLike) -> Margins | None:
        if self.cuts is None:
            return None
        first, last = self.rows * block, dmin(self.rows * block + self.rows, self.pa.m) - 1
        return Margins(k, self.cuts, self.n, *(self.pa.out_index(outer, i, 0)[:-1] for i in (first, last)))

    @property
    def even(self) -> bool:
        """Do all blocks have as many rows?"""
        return isinstance(self.pa.m, int) and self.pa.m % self.rows == 0

    def count(self, block: DimLike) -> DimLike:
        """Rows of a block that are computed: whole tiles of every product, so that all repeat the same rows."""
        if self.even:
            return self.rows
        unit = math.lcm(self.sa.mr, *(s.mr for s in self.sc))
        return dmin(self.rows, ceildiv(self.pa.m - self.rows * block, unit) * unit)

    def local(self, s: ContractSchedule, ip: DimLike, i: DimLike) -> DimLike:
        """Row of the block.  The last tile begins early rather than end beyond the block: its rows lie at fixed
        distances, and those that it shares with the one before get the same bits."""
        return (s.mr * ip if self.rows % s.mr == 0 else dmin(s.mr * ip, self.rows - s.mr)) + i

    def whole(self, block: DimLike, i: DimLike) -> DimLike:
        """Row of the tensor at row ``i`` of the block."""
        return self.rows * block + i if self.even else dmin(self.rows * block + i, self.pa.m - 1)

    def scores(self, k: KernelBuilder, table: str, outer: Idx, block: DimLike, count: DimLike) -> None:
        p, s = self.pa, self.sa
        inl = inliner(k, self.first, self.ctx)
        low, high = (0, p.n) if self.margins is None else (self.margins.low, self.margins.high)
        start, panels = low // s.nr, ceildiv(high, s.nr) - low // s.nr
        with k.loop(panels, "seq", "jp") as jp, k.loop(ceildiv(count, s.mr), "seq", "ip") as ip:
            jp = start + jp

            def col(kk: DimLike, j: DimLike) -> Expr:
                if self.packed is not None:
                    return self.packed.column(k, outer, jp, kk, j)
                return p.col_element(k, inl, outer, s.nr * jp + j, kk, lanes_exist(k, p, s, s.nr * jp + j))
            acc = k.acc(p.acc, k.b.const(0, p.acc), (s.mr, s.nr))
            with k.loop(p.k, "seq", "k") as kk:
                add_products(k, p, s, acc, lambda i: p.row_element(
                    k, inl, outer, self.whole(block, self.local(s, ip, i)), kk), lambda j: col(kk, j))
            with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
                at = self.local(s, ip, i)
                store(k, inl, p, s, k.get(acc, i, j), outer, self.whole(block, at), s.nr * jp + j,
                      put=lambda _, o, v, where: k.write(table, self.n * at + o[-1], v, where))

    def normalise(self, k: KernelBuilder, table: str, outer: Idx, block: DimLike, count: DimLike) -> None:
        inl = inliner(k, self.row, self.ctx)
        with k.loop(count, "seq", "r") as i:
            at = self.whole(block, i)
            if self.margins is not None:  # the cuts are linear in an index of the row
                at = 0 if isinstance(self.pa.m, int) and self.pa.m == 1 else named(k, at, self.pa.m - 1)
            o = tuple(map(k.tidy, self.pa.out_index(outer, at, 0)[:-1]))
            self._walk(k, inl, table, o, i)

    def _walk(self, k: KernelBuilder, inl: Inliner, table: str, o: Idx, i: DimLike) -> None:
        def score(idx: Idx, where: Expr | None) -> Expr:
            assert idx[:-1] == o, f"{self.a} asked for at {idx} in a row {o}"
            return k.b.load(table, k.tidy(self.n * i + idx[-1]), self.a.dtype, where)
        inl.bound[self.a] = score

        def write(n: Node, idx: Idx, v: Expr) -> None:
            if self.pc:
                k.write(table, self.n * i + idx[-1], v)
            else:
                k.write(self.ctx.name_of(n), linear_index(idx, n.shape), v)
        walk_row(k, inl, self.row, o, self.ctx, write,
                 None if self.margins is None else self.margins.row(self.row, self.a, o, self.ctx))

    def product(self, k: KernelBuilder, p: Problem, s: ContractSchedule, table: str, outer: Idx, block: DimLike,
                rows: DimLike) -> None:
        inl = inliner(k, p.group, self.ctx)
        with k.loop(ceildiv(p.n, s.nr), "seq", "jq") as jp:
            def col(kk: DimLike, j: DimLike) -> Expr:
                return p.col_element(k, inl, outer, s.nr * jp + j, kk, lanes_exist(k, p, s, s.nr * jp + j))
            start, count = (0, p.k) if self.margins is None else self._needed(k, p, s, col)
            with k.loop(ceildiv(rows, s.mr), "seq", "iq") as ip:
                acc = k.acc(p.acc, k.b.const(0, p.acc), (s.mr, s.nr))
                with k.loop(count, "seq", "k") as kk:
                    add_products(k, p, s, acc, lambda i: k.b.load(
                        table, self.n * self.local(s, ip, i) + start + kk, p.acc), lambda j: col(start + kk, j))
                finish_tile(k, inl, p, s, acc, outer, lambda i: self.whole(block, self.local(s, ip, i)), s.nr * jp)

    def _needed(self, k: KernelBuilder, p: Problem, s: ContractSchedule, col: Callable[[DimLike, DimLike], Expr]
                ) -> tuple[DimLike, DimLike]:
        """First and number of the summed indices that make a difference: all but the margins, if these are zero in the
        block, and in this panel of the column operand hold nothing that zero times it would not be zero."""
        m, b = self.margins, k.b
        assert m is not None
        idle = b.eq(k.get(m.idle), b.const(1, i64))
        if p.acc.floating:
            acc, lanes = k.acc(p.acc, b.const(0, p.acc), (s.nr,)), k.acc(p.acc, b.const(0, p.acc), (s.width,))
            for first, count in ((0, m.low), (m.high, self.n - m.high)):
                if isinstance(count, int) and count == 0:
                    continue
                with k.loop(count, "seq", "k") as kk, k.loop(s.nr, "vector", "j", s.width) as j:
                    k.set(acc, b.add(k.get(acc, j), b.mul(col(first + kk, j), b.const(0, p.acc))), j)
            with k.loop(s.nr // s.width, "unroll", "i") as i, k.loop(s.width, "vector", "j", s.width) as j:
                k.set(lanes, b.add(k.get(lanes, j), k.get(acc, s.width * i + j)), j)
            idle = b.and_(idle, b.eq(_sum(k, lanes, s.width, p.acc), b.const(0, p.acc)))
        idle = k.let(idle)
        start = 0 if m.cuts.low is None else k.as_index(
            b.select(idle, b.index(m.low), b.const(0, i64)), 0, self.n)
        end = self.n if m.cuts.high is None else k.as_index(
            b.select(idle, b.index(m.high), b.const(self.n, i64)), start, self.n)
        return start, end - start


def _sum(k: KernelBuilder, acc: str, lanes: int, dtype: DType) -> Expr:
    """The lanes of an accumulator, added."""
    name, x, y = k.fresh("r"), k.fresh("x"), k.fresh("y")
    k.add(Fold((name,), (acc,), lanes, (x,), (y,), (k.b.add(k.b.ref(x, dtype), k.b.ref(y, dtype)),)))
    k.scopes[-1].names.add(name)
    return k.b.ref(name, dtype)
