"""Contractions on the CPU: register-tiled, with producers in the packing and consumers in the epilogue.

Here: the choice of form, the packed form, what the forms share.  Not here: operands read in place (contract_direct.py),
the GPU form (gpu_contract.py), roles and addresses (problem.py), tiles (tiles.py).  Read next: contract_direct.py.

One register tile holds mr rows times nr columns and adds rank-1 updates for k = 0, 1, 2, ... in order: every result
element is one chain of fused multiply-adds over k, whatever the form and the blocking, so the bits do not depend on
them.  The packed form:

    for outer, row block (mc), column block (nc) in parallel:
        pack the rows of the block, unless they lie well:  A[panel][k][mr]
        for column panel (nr), k block (kc), row panel:    tile in registers, kept in C[mc][nr] between k blocks
        for rows, columns of the panel:                    epilogue, store

Layout and loop order follow Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with
the roles of the two operands exchanged for results in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.kernel import Expr, Kernel
from flowc.passes.contract_direct import lower_direct, lower_thin
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.problem import Problem
from flowc.passes.register_tile import add_products, finish, lanes_exist, light, store
from flowc.passes.schedule import ContractSchedule
from flowc.passes.tiles import choose_schedule
from flowc.types import Type


def lower_contraction(g: Group, ctx: Context) -> Lowered:
    p = Problem(g, ctx)
    s = ctx.machine.chosen((p.node.op.name, p.acc, *p.outer_extents, p.m, p.n, p.k), choose_schedule(ctx.machine, p))
    work = p.work // (8 if p.acc.bits <= 32 else 4) + prod(p.outer_extents) * p.m * p.n * cost(g) // 8
    if s.form == "direct":
        return Lowered([lower_direct(p, s)], {}, [work])
    if s.form == "thin":
        return Lowered([lower_thin(p, s)], {}, [work + prod(p.outer_extents) * p.n * p.k])
    return Packed(p, s, f"{ctx.name}.packed").lower(work)


class Packed:
    """The packed form; ``temp`` names the buffer of the packed columns."""

    def __init__(self, p: Problem, s: ContractSchedule, temp: str):
        self.p, self.s, self.temp = p, s, temp
        self.panels = ceildiv(p.n, s.nr)
        self.packed = Type(p.acc, (*p.outer_extents, self.panels, p.k, s.nr))
        self.one_block = isinstance(p.k, int) and p.k <= s.kc

    def lower(self, work: DimLike) -> Lowered:
        elements = prod(self.p.outer_extents) * self.p.n * self.p.k
        return Lowered([self.pack_columns(), self.multiply()], {self.temp: self.packed}, [elements * 2, work])

    def pack_columns(self) -> Kernel:
        p, s = self.p, self.s
        k = p.ctx.builder("p")
        inl = inliner(k, p.group, p.ctx)
        with (nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(self.panels, "parallel", "p") as panel,
              k.loop(p.k, "seq", "k") as kk, k.loop(s.nr, "vector", "j", s.width) as j):
            col = s.nr * panel + j
            v = p.col_element(k, inl, outer, col, kk, lanes_exist(k, p, s, col))
            k.write(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), v)
        k.buffer(self.temp, p.acc, self.packed.shape, "out")
        return k.finish(p.ctx.dims, [f"pack the columns of {p.node.op.name}", str(s)])

    def multiply(self) -> Kernel:
        p, s = self.p, self.s
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        with (nest(k, p.outer_extents, "parallel", "o") as outer,
              k.loop(ceildiv(p.m, s.mc), "parallel", "mb") as mb,
              k.loop(ceildiv(p.n, s.nc), "parallel", "nb") as nb):
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
        declare_outputs(k, p.group, p.ctx)
        return k.finish(p.ctx.dims, [*describe(p.group), str(s)])

    def rows(self, k: KernelBuilder, inl: Inliner, outer: Idx, first: DimLike, rows: DimLike
             ) -> Callable[[DimLike, DimLike, DimLike], Expr]:
        """The element (row panel, row in it, k) of the row operand: of the packed copy, which is written here, or of
        the operand itself.  Rows beyond the last repeat it: their results are never stored, or stored twice."""
        p, s = self.p, self.s

        def row(ip: DimLike, i: DimLike) -> DimLike:
            return dmin(first + s.mr * ip + i, p.m - 1)
        if not s.copy_rows:
            return lambda ip, i, kk: p.row_element(k, inl, outer, row(ip, i), kk)
        packed = k.alloc(p.acc, s.mc * p.k)
        along_rows = p.row_reach.own == 1 and p.row_reach.summed != 1
        with k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip:
            def copy(i: DimLike, kk: DimLike) -> None:
                v = p.row_element(k, inl, outer, row(ip, i), kk)
                k.write(packed, (ip * p.k + kk) * s.mr + i, v)
            if along_rows:
                with k.loop(p.k, "seq", "k") as kk, k.loop(s.mr, "vector", "i", s.mr) as i:
                    copy(i, kk)
            else:
                with k.loop(s.mr, "seq", "i") as i, k.loop(p.k, "vector", "k", s.width) as kk:
                    copy(i, kk)
        return lambda ip, i, kk: k.b.load(packed, (ip * p.k + kk) * s.mr + i, p.acc)

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

        with k.loop(blocks, "seq", "kb") as kb, k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip:
            acc = k.acc(p.acc, b.const(0, p.acc), (s.mr, s.nr))
            if not self.one_block:
                with k.if_(b.gt(b.index(kb), 0)):
                    keep(ip, True, acc)
            with k.loop(p.k if self.one_block else dmin(s.kc, p.k - s.kc * kb), "seq", "k") as kk:
                at = kk if self.one_block else s.kc * kb + kk
                add_products(k, p, s, acc, lambda i: element(ip, i, at),
                             lambda j: self.column(k, outer, panel, at, j))
            if tile:
                keep(ip, False, acc)
            else:
                finish(k, inl, p, s, acc, outer, lambda i: dmin(first + s.mr * ip + i, p.m - 1), s.nr * panel)

    def column(self, k: KernelBuilder, outer: Idx, panel: DimLike, kk: DimLike, j: DimLike) -> Expr:
        """An element of the packed columns."""
        k.buffer(self.temp, self.p.acc, self.packed.shape)
        return k.b.load(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), self.p.acc)

    def epilogue(self, k: KernelBuilder, inl: Inliner, tile: str, outer: Idx, first: DimLike, rows: DimLike,
                 panel: DimLike) -> None:
        p, s = self.p, self.s
        with k.loop(rows, "seq", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
            store(k, inl, p, s, k.b.load(tile, s.nr * i + j, p.acc), outer, first + i, s.nr * panel + j)
