"""Contractions of very long sums with few results.

Here: the deep form.  Not here: the other forms (contract.py, contract_direct.py), when it is taken (tiles.py).

The other forms keep whole rows of an operand, or whole columns, close by; a sum of many thousands of products does not
fit.  Here a task walks along the sum block by block, and its results stay near:

    for outer, part of the sum, column block (nc), row block (mc) in parallel:
        for k block (kc) of the part:
            copy the rows of the block, as they lie
            for column panel (nr): copy it;  for row panel (mr): tile in registers, kept in C[panel][mc][nr] between
        epilogue, store; or, where there are several parts, store the sums of this one
    for outer, row, columns in parallel: add the sums of the parts in order; epilogue, store

Where the length of the sums is not known, a short one is one part, and a tile that reads its operands in place adds it.
The number of parts is a matter of the sizes alone (``parts_of``): machines and threads change no bit.

Where all columns fit one tile, each row is read once: nothing is copied, and rows and columns come from memory while
others are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.kernel import Expr, Kernel
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, named, nest
from flowc.passes.problem import Problem
from flowc.passes.register_tile import add_products, copy_panel, lanes_exist, store
from flowc.passes.schedule import ContractSchedule
from flowc.passes.tiles import LONG, Form
from flowc.types import Type

FEW = 1 << 21       # results times parts, at most
GRAIN = 512         # parts begin at multiples of it
PAD = 16            # elements between copied rows beyond their length: rows at a power of two meet in few cache sets


def parts_of(p: Problem) -> tuple[DimLike, DimLike]:
    """Into how many parts the sums are cut, and how long these are: of the sizes of the problem alone."""
    results = prod((*p.outer_extents, p.m, p.n))
    assert isinstance(results, int), "only for results of known number"
    if not isinstance(p.k, int):
        return dmax(1, ceildiv(p.k, LONG)), LONG
    parts = max(1, min(p.k // LONG, FEW // max(results, 1)))
    length = -(-p.k // (parts * GRAIN)) * GRAIN
    return -(-p.k // length), length


def lower_deep(g: Group, ctx: Context, p: Problem, forms: Sequence[Form]) -> Lowered:
    """``forms``: the deep one and, where the length of the sums is not known, one before for short ones."""
    d = _Deep(p, forms, f"{ctx.name}.parts")
    work = p.work // (8 if p.acc.bits <= 32 else 4)
    if d.parts == 1:
        return Lowered([d.sums()], {}, [work])
    results = prod(p.outer_extents) * p.m * p.n
    return Lowered([d.sums(), d.total()], {d.temp: d.partial}, [work, results * (cost(g) // 8 + d.parts)])


class _Deep:
    """``temp`` names the buffer of the sums of the parts."""

    def __init__(self, p: Problem, forms: Sequence[Form], temp: str):
        self.p, self.s, self.short, self.temp = p, forms[-1].schedule, forms[:-1], temp
        self.parts, self.length = parts_of(p)
        self.partial = Type(p.acc, (*p.outer_extents, self.parts, p.m, p.n))
        # rows stay as they lie where sums run along them; else panels of neighbouring rows, index by index of the sum
        self.along_rows = p.row_reach.own == 1 and p.row_reach.summed != 1

    def sums(self) -> Kernel:
        p, s = self.p, self.s
        k = p.ctx.builder("m")
        blocks = self.parts, ceildiv(p.n, s.nc), ceildiv(p.m, s.mc)
        if self.short:
            (form,) = self.short
            panels = ceildiv(p.n, form.schedule.nr), ceildiv(p.m, form.schedule.mr)
            fits = k.let(k.b.eq(k.b.index(form.excess), 0))
            count = k.as_index(k.b.select(fits, k.b.index(prod(panels)), k.b.index(prod(blocks))), 0, None)
            with nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(count, "parallel", "t") as t:
                with k.if_(fits):
                    at = unravel(named(k, t, prod(panels) - 1), panels)
                    self.short_task(k, inliner(k, p.group, p.ctx), form.schedule, outer, at)
                with k.if_(k.b.not_(fits)):
                    at = unravel(named(k, t, prod(blocks) - 1), blocks)
                    self.task(k, inliner(k, p.group, p.ctx), outer, at)
        else:
            with nest(k, p.outer_extents, "parallel", "o") as outer, nest(k, blocks, "parallel", "t") as at:
                self.task(k, inliner(k, p.group, p.ctx), outer, at)
        if self.parts == 1:
            declare_outputs(k, p.group, p.ctx)
        else:
            k.buffer(self.temp, p.acc, self.partial.shape, "out")
        texts = [*(str(f.schedule) for f in self.short), f"{s}, {self.parts} parts of {self.length}"]
        return k.finish(p.ctx.dims, [*describe(p.group), *texts])

    def task(self, k: KernelBuilder, inl: Inliner, outer: Idx, at: Idx) -> None:
        p, s, (part, nb, mb) = self.p, self.s, at
        first, rows = s.mc * mb, dmin(s.mc, p.m - s.mc * mb)
        start = self.length * part
        count = dmin(self.length, p.k - start)
        panels = dmin(s.nc // s.nr, ceildiv(p.n, s.nr) - s.nc // s.nr * nb)
        tile = k.alloc(p.acc, s.mc * s.nc)
        here = k.alloc(p.acc, s.kc * s.nr) if s.copy_rows else ""
        copies = k.alloc(p.acc, s.mc * (s.kc + PAD)) if s.copy_rows else ""
        with k.loop(dmax(1, ceildiv(count, s.kc)), "seq", "kb") as kb:
            k0, kn = start + s.kc * kb, dmin(s.kc, count - s.kc * kb)
            element = self.rows(k, inl, outer, copies, first, rows, k0, kn)
            with k.loop(panels, "seq", "jp") as jp:
                column = s.nc * nb + s.nr * jp
                element_of = self.columns(k, inl, outer, here, column, k0, kn)
                with k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip:
                    self.add(k, tile, (s.mc * jp + s.mr * ip) * s.nr, kb, kn, lambda i, kk: element(ip, i, kk),
                             element_of)
        with (k.loop(panels, "seq", "jp") as jp, k.loop(rows, "seq", "i") as i,
              k.loop(s.nr, "vector", "j", s.width) as j):
            v, row, col = k.b.load(tile, (s.mc * jp + i) * s.nr + j, p.acc), first + i, s.nc * nb + s.nr * jp + j
            if self.parts == 1:
                store(k, inl, p, s, v, outer, row, col)
            else:
                k.write(self.temp, linear_index((*outer, part, row, col), self.partial.shape), v,
                        lanes_exist(k, p, s, col))

    def short_task(self, k: KernelBuilder, inl: Inliner, s: ContractSchedule, outer: Idx, at: Idx) -> None:
        """A tile of sums that have but one part, from operands in place (contract_direct.py)."""
        p, (jp, ip) = self.p, at
        acc = k.acc(p.acc, k.b.const(0, p.acc), (s.mr, s.nr))

        def row(i: DimLike) -> DimLike:
            return dmin(s.mr * ip + i, p.m - 1)
        with k.loop(p.k, "seq", "k") as kk:
            add_products(k, p, s, acc, lambda i: p.row_element(k, inl, outer, row(i), kk), lambda j: p.col_element(
                k, inl, outer, s.nr * jp + j, kk, lanes_exist(k, p, s, s.nr * jp + j)))
        with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
            to = linear_index((*outer, 0, row(i), s.nr * jp + j), self.partial.shape)
            k.write(self.temp, to, k.get(acc, i, j), lanes_exist(k, p, s, s.nr * jp + j))

    def rows(self, k: KernelBuilder, inl: Inliner, outer: Idx, to: str, first: DimLike, rows: DimLike,
             k0: DimLike, kn: DimLike) -> Callable[[DimLike, DimLike, DimLike], Expr]:
        """Bring a block of rows to ``to``, if that is a place; the element (row panel, row in it, k).  Rows beyond the
        last repeat it: their sums are never stored."""
        p, s = self.p, self.s
        pitch = s.kc + PAD
        if not to:
            return lambda ip, i, kk: p.row_element(k, inl, outer, dmin(first + s.mr * ip + i, p.m - 1), k0 + kk)

        def place(ip: DimLike, i: DimLike, kk: DimLike) -> DimLike:
            return (ip * s.kc + kk) * s.mr + i if self.along_rows else (s.mr * ip + i) * pitch + kk

        def copy(ip: DimLike, i: DimLike, kk: DimLike) -> None:
            row = dmin(first + s.mr * ip + i, p.m - 1)
            k.write(to, place(ip, i, kk), p.row_element(k, inl, outer, row, k0 + kk))
        with k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip:
            if self.along_rows:
                with k.loop(kn, "seq", "k") as kk, k.loop(s.mr, "vector", "i", s.mr) as i:
                    copy(ip, i, kk)
            else:
                with k.loop(s.mr, "seq", "i") as i, k.loop(kn, "vector", "k", s.width) as kk:
                    copy(ip, i, kk)
        return lambda ip, i, kk: k.b.load(to, place(ip, i, kk), p.acc)

    def columns(self, k: KernelBuilder, inl: Inliner, outer: Idx, to: str, column: DimLike, k0: DimLike, kn: DimLike
                ) -> Callable[[DimLike, DimLike], Expr]:
        """Bring a block of a panel of columns to ``to``, if that is a place; the element (k, column)."""
        p, s = self.p, self.s
        if not to:
            return lambda kk, j: p.col_element(k, inl, outer, column + j, k0 + kk, lanes_exist(k, p, s, column + j))
        copy_panel(k, p, s, column, kn, lambda col, kk, where: p.col_element(k, inl, outer, col, k0 + kk, where),
                   lambda kk, j, v: k.write(to, s.nr * kk + j, v))
        return lambda kk, j: k.b.load(to, s.nr * kk + j, p.acc)

    def add(self, k: KernelBuilder, tile: str, at: DimLike, kb: DimLike, kn: DimLike,
            row: Callable[[DimLike, DimLike], Expr], col: Callable[[DimLike, DimLike], Expr]) -> None:
        """Add the products of a block to a tile in memory, which the first block begins."""
        p, s, b = self.p, self.s, k.b
        acc = k.acc(p.acc, b.const(0, p.acc), (s.mr, s.nr))
        with k.if_(b.gt(b.index(kb), 0)), k.loop(s.mr, "unroll", "i") as i, k.loop(
                s.nr, "vector", "j", s.width) as j:
            k.set(acc, b.load(tile, at + s.nr * i + j, p.acc), i, j)
        with k.loop(kn, "seq", "k") as kk:
            add_products(k, p, s, acc, lambda i: row(i, kk), lambda j: col(kk, j))
        with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
            k.write(tile, at + s.nr * i + j, k.get(acc, i, j))

    def total(self) -> Kernel:
        """The sums of the parts, added in order, and what the group makes of them."""
        p = self.p
        k = p.ctx.builder("t")
        s = ContractSchedule("deep", mr=1, nr=self.s.width, width=self.s.width)
        inl = inliner(k, p.group, p.ctx)
        k.buffer(self.temp, p.acc, self.partial.shape)
        with (nest(k, p.outer_extents, "parallel", "o") as outer,
              nest(k, (p.m, ceildiv(p.n, s.nr)), "parallel", "t") as (row, panel)):
            acc = k.acc(p.acc, k.b.const(0, p.acc), (s.nr,))
            with k.loop(self.parts, "seq", "part") as part, k.loop(s.nr, "vector", "j", s.width) as j:
                col = s.nr * panel + j
                v = k.b.load(self.temp, linear_index((*outer, part, row, col), self.partial.shape), p.acc,
                             lanes_exist(k, p, s, col))
                k.set(acc, k.b.add(k.get(acc, j), v), j)
            with k.loop(s.nr, "vector", "j", s.width) as j:
                store(k, inl, p, s, k.get(acc, j), outer, row, s.nr * panel + j)
        declare_outputs(k, p.group, p.ctx)
        return k.finish(p.ctx.dims, [*describe(p.group), f"add the sums of {self.parts} parts"])
