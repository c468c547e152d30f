"""Contractions that read their operands where they lie.

Here: the tasks of the direct and the thin form.  Not here: the packed one, the kernel around the tasks (contract.py),
when each is taken (tiles.py).

    direct: for outer, column panel (nr), row panel (mr) in parallel: tile in registers over all k, epilogue, store
    thin:   for outer, column block (nr) in parallel: for k in groups of kc: for rows: tile in memory += rows of the
            column operand, which come from memory once; epilogue, store
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.dims import DimLike, ceildiv, dmin
from flowc.passes.inline import Idx, Inliner, KernelBuilder
from flowc.passes.lowering import named
from flowc.passes.problem import Problem
from flowc.passes.register_tile import add_products, finish, lanes_exist, light, store
from flowc.passes.schedule import ContractSchedule


def direct_tasks(p: Problem, s: ContractSchedule) -> Idx:
    return ceildiv(p.n, s.nr), ceildiv(p.m, s.mr)


def direct_task(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, outer: Idx, at: Idx) -> None:
    """One tile in registers."""
    jp, ip = at
    row, (start, first) = _rows(p, s.mr, ip), _columns(k, p, s, jp)
    acc = k.acc(p.acc, k.b.const(0, p.acc), (s.mr, s.nr))
    with k.loop(p.k, "seq", "k") as kk:
        add_products(k, p, s, acc, lambda i: p.row_element(k, inl, outer, row(i), kk), lambda j: p.col_element(
            k, inl, outer, start + j, kk, None if first is not None else lanes_exist(k, p, s, start + j)))
    finish_tile(k, inl, p, s, acc, outer, row, start, first)


def _rows(p: Problem, mr: int, ip: DimLike) -> Callable[[DimLike], DimLike]:
    """The row of a panel; those beyond the last repeat it."""
    if isinstance(p.m, int) and p.m % mr == 0:
        return lambda i: mr * ip + i
    return lambda i: dmin(mr * ip + i, p.m - 1)


def _columns(k: KernelBuilder, p: Problem, s: ContractSchedule, jp: DimLike) -> tuple[DimLike, DimLike | None]:
    """Where a panel begins, and the first column that it stores (None: all that exist).  The last panel begins early
    rather than ask for every column whether it exists: loads that ask took a fifth of the time on Zen 4."""
    if isinstance(p.n, int) and p.n % s.nr and p.n > s.nr:
        return named(k, dmin(s.nr * jp, p.n - s.nr), p.n - s.nr), s.nr * jp
    return s.nr * jp, None


def finish_tile(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, acc: str, outer: Idx,
                row: Callable[[DimLike], DimLike], start: DimLike, first: DimLike | None = None) -> None:
    """Epilogue and store.  A long epilogue stands in the code once: the tile is put down and walked over."""
    if light(p):
        finish(k, inl, p, s, acc, outer, row, start, first)
        return
    tile = k.alloc(p.acc, s.mr * s.nr)
    with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
        k.write(tile, s.nr * i + j, k.get(acc, i, j))
    with k.loop(s.mr, "seq", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
        store(k, inl, p, s, k.b.load(tile, s.nr * i + j, p.acc), outer, row(i), start + j, first)


def thin_tasks(p: Problem, s: ContractSchedule) -> Idx:
    return ceildiv(p.n, s.nr), 1


def thin_task(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, outer: Idx, at: Idx) -> None:
    """All rows, at most ``s.mr``, times a block of columns."""
    start = s.nr * at[0]
    cols = dmin(s.nr, p.n - start)
    tile = k.alloc(p.acc, s.mr * s.nr)
    with k.loop(p.m, "seq", "i") as i, k.loop(cols, "vector", "j", s.width) as j:
        k.write(tile, s.nr * i + j, k.b.const(0, p.acc))
    with k.loop(p.k // s.kc, "seq", "kb") as kb:
        _stream(k, inl, p, s, tile, outer, start, cols, s.kc * kb, s.kc)
    with k.loop(p.k % s.kc, "seq", "kr") as kr:
        _stream(k, inl, p, s, tile, outer, start, cols, p.k // s.kc * s.kc + kr, 1)
    with k.loop(p.m, "seq", "i") as i, k.loop(cols, "vector", "j", s.width) as j:
        store(k, inl, p, s, k.b.load(tile, s.nr * i + j, p.acc), outer, i, start + j)


def _stream(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, tile: str, outer: Idx, start: DimLike,
            cols: DimLike, first: DimLike, count: int) -> None:
    """Add the products of ``count`` summed indices from ``first`` on, in order, to every row and column.  The first
    row fetches the columns, the others find them in the nearest cache."""
    with k.loop(p.m, "seq", "i") as i:
        x = [k.let(p.row_element(k, inl, outer, i, first + c)) for c in range(count)]
        with k.loop(cols, "vector", "j", s.width) as j:
            total = k.b.load(tile, s.nr * i + j, p.acc)
            for c in range(count):
                y = p.col_element(k, inl, outer, start + j, first + c, None)
                total = p.product(k, x[c], y, total)
            k.write(tile, s.nr * i + j, total)
