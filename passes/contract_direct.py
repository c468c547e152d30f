"""Contractions that read their operands where they lie.

Here: the direct and the thin form.  Not here: the packed one (contract.py), when each is taken (tiles.py).

    direct: for outer, column panel (nr), row panel (mr) in parallel: tile in registers over all k, epilogue, store
    thin:   for outer, column block (nr) in parallel: for k in groups of kc: tile in memory += rows of the column
            operand, each read once from beginning to end; epilogue, store
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.dims import DimLike, ceildiv, dmin
from flowc.kernel import Expr, Kernel
from flowc.passes.inline import Idx, Inliner, KernelBuilder
from flowc.passes.lowering import declare_outputs, describe, inliner, nest
from flowc.passes.problem import Problem
from flowc.passes.register_tile import add_products, finish, lanes_exist, light, store
from flowc.passes.schedule import ContractSchedule


def lower_direct(p: Problem, s: ContractSchedule) -> Kernel:
    k = p.ctx.builder("d")
    inl = inliner(k, p.group, p.ctx)
    with (nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(ceildiv(p.n, s.nr), "parallel", "jp") as jp,
          k.loop(ceildiv(p.m, s.mr), "parallel", "ip") as ip):
        row = _rows(p, s.mr, ip)
        acc = k.acc(p.acc, k.b.const(0, p.acc), (s.mr, s.nr))
        with k.loop(p.k, "seq", "k") as kk:
            add_products(k, p, s, acc, lambda i: p.row_element(k, inl, outer, row(i), kk), lambda j: p.col_element(
                k, inl, outer, s.nr * jp + j, kk, lanes_exist(k, p, s, s.nr * jp + j)))
        finish_tile(k, inl, p, s, acc, outer, row, s.nr * jp)
    declare_outputs(k, p.group, p.ctx)
    return k.finish(p.ctx.dims, [*describe(p.group), str(s)])


def _rows(p: Problem, mr: int, ip: DimLike) -> Callable[[DimLike], DimLike]:
    """The row of a panel; those beyond the last repeat it."""
    if isinstance(p.m, int) and p.m % mr == 0:
        return lambda i: mr * ip + i
    return lambda i: dmin(mr * ip + i, p.m - 1)


def finish_tile(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, acc: str, outer: Idx,
                row: Callable[[DimLike], DimLike], start: DimLike) -> None:
    """Epilogue and store.  A long epilogue stands in the code once: the tile is put down and walked over."""
    if light(p):
        finish(k, inl, p, s, acc, outer, row, start)
        return
    tile = k.alloc(p.acc, s.mr * s.nr)
    with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
        k.write(tile, s.nr * i + j, k.get(acc, i, j))
    with k.loop(s.mr, "seq", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
        store(k, inl, p, s, k.b.load(tile, s.nr * i + j, p.acc), outer, row(i), start + j)


def lower_thin(p: Problem, s: ContractSchedule) -> Kernel:
    k = p.ctx.builder("t")
    inl = inliner(k, p.group, p.ctx)
    with nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(ceildiv(p.n, s.nr), "parallel", "jb") as jb:
        start = s.nr * jb
        cols = dmin(s.nr, p.n - start)
        tile = k.alloc(p.acc, s.mr * s.nr)
        with k.loop(s.mr * s.nr, "vector", "z", s.width) as z:
            k.write(tile, z, k.b.const(0, p.acc))
        with k.loop(p.k // s.kc, "seq", "kb") as kb:
            _stream(k, inl, p, s, tile, outer, start, cols, s.kc * kb, s.kc)
        with k.loop(p.k % s.kc, "seq", "kr") as kr:
            _stream(k, inl, p, s, tile, outer, start, cols, p.k // s.kc * s.kc + kr, 1)
        with k.loop(s.mr, "seq", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
            store(k, inl, p, s, k.b.load(tile, s.nr * i + j, p.acc), outer, i, start + j)
    declare_outputs(k, p.group, p.ctx)
    return k.finish(p.ctx.dims, [*describe(p.group), str(s)])


def _stream(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, tile: str, outer: Idx, start: DimLike,
            cols: DimLike, first: DimLike, count: int) -> None:
    """Add the products of ``count`` summed indices from ``first`` on, in order, to every row and column."""
    x: list[list[Expr]] = [[k.let(p.row_element(k, inl, outer, i, first + c)) for c in range(count)]
                           for i in range(s.mr)]
    with k.loop(cols, "vector", "j", s.width) as j:
        y = [p.col_element(k, inl, outer, start + j, first + c, None) for c in range(count)]
        for i in range(s.mr):
            total = k.b.load(tile, s.nr * i + j, p.acc)
            for c in range(count):
                total = k.b.fma(x[i][c], y[c], total) if p.acc.floating else k.b.add(k.b.mul(x[i][c], y[c]), total)
            k.write(tile, s.nr * i + j, total)
