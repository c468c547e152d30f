"""Contractions on the CPU: register-tiled, with producers in the packing and consumers in the epilogue.

Here: the choice of form, the packed form, what the forms share.  Not here: operands read in place (contract_direct.py),
the GPU form (gpu_contract.py), roles and addresses (problem.py), tiles (tiles.py).  Read next: contract_direct.py.

One register tile holds mr rows times nr columns and adds rank-1 updates for k = 0, 1, 2, ... in order: every result
element is one chain of fused multiply-adds over k, whatever the form and the blocking, so the bits do not depend on
them; very long sums (contract_deep.py) are a few such chains, by the sizes alone.  The packed form:

    for outer, column block (nc), row block (mc) in parallel:
        pack the rows of the block, unless they lie well:  A[panel][k][mr]
        for column panel (nr), k block (kc), row panel:    tile in registers, kept in C[mc][nr] between k blocks
        for rows, columns of the panel:                    epilogue, store

The columns are packed before, or, where one block has all rows, by the task itself, block by block of k.  Where sizes
are unknown, one kernel holds every form that they may want, and a test of the sizes around each.

Layout and loop order follow Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with
the roles of the two operands exchanged for results in row-major order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.kernel import Expr, Kernel
from flowc.passes.contract_deep import lower_deep
from flowc.passes.contract_direct import direct_task, direct_tasks, thin_task, thin_tasks
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, named, nest
from flowc.passes.problem import Problem
from flowc.passes.register_tile import add_products, copy_panel, finish, light, store
from flowc.passes.schedule import ContractSchedule
from flowc.passes.tiles import Form, choose_forms, none_of
from flowc.passes.words import Moved, beside, words
from flowc.types import Type

LINES = 8  # indices of the sum, whose rows lie apart, that are copied at a time: the ways of the nearest cache


def lower_contraction(g: Group, ctx: Context) -> Lowered:
    p = Problem(g, ctx)
    forms = choose_forms(ctx.machine, p)
    last = forms[-1].schedule
    if last.form == "deep":
        return lower_deep(g, ctx, p, forms)
    packed = None
    if last.form == "packed":
        packed = Packed(words(ctx.machine, p, last.on_way) or p, last, f"{ctx.name}.packed")
    k = ctx.builder("m")
    _tasks(k, p, forms, packed)
    declare_outputs(k, g, ctx)
    kernel = k.finish(ctx.dims, [*describe(g), *(str(f.schedule) for f in forms)])
    outside = prod(p.outer_extents)
    work = p.work // (8 if p.acc.bits <= 32 else 4) + outside * p.m * p.n * cost(g) // 8
    if any(f.schedule.form == "thin" for f in forms):
        work = work + outside * p.n * p.k
    if packed is None or last.on_way:
        return Lowered([kernel], {}, [work])
    return Lowered([packed.pack_columns(none_of(f.excess for f in forms[:-1])), kernel], packed.temps,
                   [outside * p.n * p.k * 2, work])


def _tasks(k: KernelBuilder, p: Problem, forms: Sequence[Form], packed: Packed | None) -> None:
    """The tasks of the first form that fits the sizes, all forms sharing one loop."""
    def extents(s: ContractSchedule) -> Idx:
        return packed.tasks() if s.form == "packed" and packed else _IN_PLACE[s.form][0](p, s)

    def task(s: ContractSchedule, outer: Idx, at: Idx) -> None:
        inl = inliner(k, p.group, p.ctx)
        if s.form == "packed" and packed:
            packed.task(k, inl, outer, at)
        else:
            _IN_PLACE[s.form][1](k, inl, p, s, outer, at)

    if len(forms) == 1:
        with (nest(k, p.outer_extents, "parallel", "o") as outer,
              nest(k, extents(forms[0].schedule), "parallel", "t") as at):
            task(forms[0].schedule, outer, at)
        return
    fits = [k.let(k.b.eq(k.b.index(f.excess), 0)) for f in forms[:-1]]
    counts: list[DimLike] = []
    for many in zip(*(extents(f.schedule) for f in forms), strict=True):
        n = k.b.index(many[-1])
        for yes, other in reversed(list(zip(fits, many[:-1], strict=True))):
            n = k.b.select(yes, k.b.index(other), n)
        counts.append(k.as_index(n, 0, None))
    with nest(k, p.outer_extents, "parallel", "o") as outer, nest(k, counts, "parallel", "t") as at:
        for i, f in enumerate(forms):
            with k.if_(functools.reduce(k.b.and_, [*map(k.b.not_, fits[:i]), *fits[i:i + 1]])):
                task(f.schedule, outer, tuple(named(k, d, n - 1) for d, n in zip(at, extents(f.schedule), strict=True)))


_IN_PLACE = {"direct": (direct_tasks, direct_task), "thin": (thin_tasks, thin_task)}


class Packed:
    """The packed form; ``temp`` names the buffer of the packed columns."""

    beyond = 0  # elements behind a block of columns that bringing them may write

    def __init__(self, p: Problem, s: ContractSchedule, temp: str):
        self.p, self.s, self.temp = p, s, temp
        self.panels = ceildiv(p.n, s.nr)
        self.packed = Type(p.word, (*p.outer_extents, self.panels, p.k, s.nr))
        self.beside = beside(p, s, temp, self.packed)
        self.one_block = isinstance(p.k, int) and p.k <= s.kc

    @property
    def temps(self) -> dict[str, Type]:
        return {self.temp: self.packed, **({self.beside.name: self.beside.type} if self.beside else {})}

    def pack_columns(self, wanted: DimLike = 1) -> Kernel:
        """``wanted``: 0 where the sizes want no packed columns."""
        p, s = self.p, self.s
        k = p.ctx.builder("p")
        inl, wanted = inliner(k, p.group, p.ctx), named(k, wanted, 1)
        with nest(k, p.outer_extents, "parallel", "o") as outer:
            if p.col_reach.own == 1 and not self.beside:
                self.copy_rows_of_columns(k, inl, outer, wanted)
            else:
                self.copy_panels(k, inl, outer, wanted)
        for name, t in self.temps.items():
            k.buffer(name, t.dtype, t.shape, "out")
        return k.finish(p.ctx.dims, [f"pack the columns of {p.node.op.name}", str(s)])

    def copy_rows_of_columns(self, k: KernelBuilder, inl: Inliner, outer: Idx, wanted: DimLike) -> None:
        """Where columns lie side by side: index by index of the sum, so that memory is read in one stream."""
        p, s, b = self.p, self.s, k.b
        whole = p.n // s.nr

        def copy(panel: DimLike, kk: DimLike, exists: Callable[[DimLike], Expr | None]) -> None:
            with k.loop(s.nr, "vector", "j", s.width) as j:
                v = p.col_element(k, inl, outer, s.nr * panel + j, kk, exists(j))
                k.write(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), v)
        with k.loop(wanted * p.k, "parallel", "k") as kk:
            if whole != 0:
                with k.loop(whole, "seq", "p") as panel:
                    copy(panel, kk, lambda j: None)
            if self.panels != whole:
                with k.loop(self.panels - whole, "seq", "p") as panel:
                    copy(whole + panel, kk, lambda j: b.lt(b.index(j), b.index(p.n - s.nr * whole)))

    def copy_panels(self, k: KernelBuilder, inl: Inliner, outer: Idx, wanted: DimLike) -> None:
        p, s = self.p, self.s
        with k.loop(wanted * self.panels, "parallel", "p") as panel:
            copy_panel(k, p, s, s.nr * panel, p.k, lambda col, kk, where: p.col_element(k, inl, outer, col, kk, where),
                       lambda kk, j, v: k.write(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), v))
            if self.beside:
                self.beside.panel_packed(k, outer, panel)

    def tasks(self) -> Idx:
        return ceildiv(self.p.n, self.s.nc), ceildiv(self.p.m, self.s.mc)

    def task(self, k: KernelBuilder, inl: Inliner, outer: Idx, at: Idx) -> None:
        """A block of rows times a block of columns."""
        p, s, (nb, mb) = self.p, self.s, at
        rows = dmin(s.mc, p.m - s.mc * mb)
        element = self.rows(k, inl, outer, s.mc * mb, rows)
        direct = self.one_block and light(p)
        tile = "" if direct else k.alloc(p.acc, s.mc * s.nr)
        first = s.nc // s.nr * nb
        with k.loop(dmin(s.nc // s.nr, self.panels - first), "seq", "jp") as jp:
            panel = first + jp
            self.panel(k, inl, element, tile, outer, panel, s.mc * mb, rows)
            if not direct:
                self.epilogue(k, inl, tile, outer, s.mc * mb, rows, panel)

    def rows(self, k: KernelBuilder, inl: Inliner, outer: Idx, first: DimLike, rows: DimLike
             ) -> Callable[[DimLike, DimLike, DimLike], Expr]:
        """The element (row panel, row in it, k) of the row operand: of the packed copy, which is written here, or of
        the operand itself.  Rows beyond the last repeat it: their results are never stored, or stored twice."""
        p, s = self.p, self.s

        def row(ip: DimLike, i: DimLike) -> DimLike:
            return dmin(first + s.mr * ip + i, p.m - 1)
        if not s.copy_rows and p.word is p.acc:
            return lambda ip, i, kk: p.row_element(k, inl, outer, row(ip, i), kk)
        packed = k.alloc(p.word, s.mc * p.k)
        along_rows = p.row_reach.own == 1 and p.row_reach.summed != 1

        def copy(ip: DimLike, i: DimLike, kk: DimLike) -> None:
            v = p.row_element(k, inl, outer, row(ip, i), kk)
            k.write(packed, (ip * p.k + kk) * s.mr + i, v)
        panels = ceildiv(rows, s.mr)
        if along_rows:  # lines of a few indices of the sum at a time: panels share them
            with k.loop(ceildiv(p.k, LINES), "seq", "kb") as kb, k.loop(panels, "seq", "ip") as ip, k.loop(
                    dmin(LINES, p.k - LINES * kb), "seq", "k") as kk, k.loop(s.mr, "vector", "i", s.mr) as i:
                copy(ip, i, LINES * kb + kk)
        else:
            with (k.loop(panels, "seq", "ip") as ip, k.loop(s.mr, "seq", "i") as i,
                  k.loop(p.k, "vector", "k", s.width) as kk):
                copy(ip, i, kk)
        if self.beside:
            self.beside.rows_packed(k, packed, ceildiv(rows, s.mr) * s.mr * p.k)
        return lambda ip, i, kk: k.b.load(packed, (ip * p.k + kk) * s.mr + i, p.word)

    def panel(self, k: KernelBuilder, inl: Inliner, element: Callable[[DimLike, DimLike, DimLike], Expr], tile: str,
              outer: Idx, panel: DimLike, first: DimLike, rows: DimLike) -> None:
        p, s, b = self.p, self.s, k.b
        blocks: DimLike = 1 if self.one_block else dmax(1, ceildiv(p.k, s.kc))  # a sum of nothing is written, too

        def keep(ip: DimLike, load: bool, acc: str) -> None:
            with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
                at = (s.mr * ip + i) * s.nr + j
                if load:
                    k.set(acc, b.load(tile, at, p.acc), i, j)
                else:
                    k.write(tile, at, k.get(acc, i, j))

        here = k.alloc(p.word, (p.k if self.one_block else s.kc) * s.nr + self.beyond) if s.on_way else ""
        with k.loop(blocks, "seq", "kb") as kb:
            start, count = (0, p.k) if self.one_block else (s.kc * kb, dmin(s.kc, p.k - s.kc * kb))
            if here:
                self.copy_columns(k, inl, outer, panel, here, start, count)
            ways = self.beside.ways(k, outer, panel, here, count) if self.beside else [(None, p.product)]
            with k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip:
                acc = k.acc(p.acc, b.const(0, p.acc), (s.mr, s.nr))
                if isinstance(self.beside, Moved):
                    with k.if_(b.eq(b.index(kb), 0)):
                        self.beside.begin(k, acc, outer, panel)
                if not self.one_block:
                    with k.if_(b.gt(b.index(kb), 0)):
                        keep(ip, True, acc)
                for cond, product in ways:
                    with nullcontext() if cond is None else k.if_(cond), self.walk(k, count) as kk:
                        add_products(k, p, s, acc, lambda i: element(ip, i, start + kk), lambda j: b.load(
                            here, s.nr * kk + j, p.word) if here else self.column(k, outer, panel, start + kk, j),
                            product)
                if tile:
                    keep(ip, False, acc)
                else:
                    finish(k, inl, p, s, acc, outer, lambda i: dmin(first + s.mr * ip + i, p.m - 1), s.nr * panel)

    def walk(self, k: KernelBuilder, count: DimLike) -> AbstractContextManager[DimLike]:
        """The summed indices of a block, in order."""
        return k.loop(count, "seq", "k")

    def copy_columns(self, k: KernelBuilder, inl: Inliner, outer: Idx, panel: DimLike, here: str, start: DimLike,
                     count: DimLike) -> None:
        """Bring a block of a panel of columns to ``here``."""
        p, s = self.p, self.s
        copy_panel(k, p, s, s.nr * panel, count,
                   lambda col, kk, where: p.col_element(k, inl, outer, col, start + kk, where),
                   lambda kk, j, v: k.write(here, s.nr * kk + j, v))

    def column(self, k: KernelBuilder, outer: Idx, panel: DimLike, kk: DimLike, j: DimLike) -> Expr:
        """An element of the packed columns."""
        k.buffer(self.temp, self.p.word, self.packed.shape)
        return k.b.load(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), self.p.word)

    def epilogue(self, k: KernelBuilder, inl: Inliner, tile: str, outer: Idx, first: DimLike, rows: DimLike,
                 panel: DimLike) -> None:
        p, s = self.p, self.s
        with k.loop(rows, "seq", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
            store(k, inl, p, s, k.b.load(tile, s.nr * i + j, p.acc), outer, first + i, s.nr * panel + j)
