"""The register tile of a contraction: adding products to it, and what is done with the sums.

Here: statements that every form of contraction shares.  Not here: the nests around them (contract.py,
contract_direct.py).
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import Expr
from flowc.passes.fuse import EXPENSIVE
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.problem import Problem, either
from flowc.passes.schedule import ContractSchedule
from flowc.passes.turned import own_index

Product = Callable[[KernelBuilder, Expr, Expr, Expr], Expr]  # (row element, column element, sum)

LIGHT = 2  # operations of an epilogue that may be written once per register of the tile
BRIEF = 6  # the same where the sums are short and many: putting the tile down counts there
SHORT = 64  # products of such a sum, at most
FEW = 1 << 18    # sums that are not many
ROW = 32         # bytes of rows of a table that is turned
STRIP = 64       # indices of the sum for which a panel is turned at a time: what is written stays in the nearest cache
LEAST = 8        # columns that are turned together, at least: with fewer more is moved about than is gained
LITTLE = 1 << 14  # elements of an operand that is not worth code to copy it quickly


def lanes_exist(k: KernelBuilder, p: Problem, s: ContractSchedule, col: DimLike) -> Expr | None:
    """Is there a column ``col``; None if there always is."""
    if isinstance(p.n, int) and p.n % s.nr == 0:
        return None
    return k.b.lt(k.b.index(col), k.b.index(p.n))


def copy_panel(k: KernelBuilder, p: Problem, s: ContractSchedule, start: DimLike, count: DimLike,
               read: Callable[[DimLike, DimLike, Expr | None], Expr], write: Callable[[DimLike, DimLike, Expr], None]
               ) -> None:
    """Bring ``count`` indices of the sum of the panel of columns from ``start`` on: ``read(column, index, exists)`` and
    ``write(index, place in the panel, value)``.  Where the columns lie across memory, blocks of some that lie side by
    side are turned; the last column stands for those that do not exist, whose sums are never stored."""
    elements, group = prod(p.outer_extents) * p.n * p.k, ROW // p.word.bytes
    across = p.col_reach.summed == 1 and p.col_reach.own != 1 and not (isinstance(elements, int) and elements <= LITTLE)

    def straight(exists: Callable[[DimLike], Expr | None]) -> None:
        with k.loop(count, "seq", "k") as kk, k.loop(s.nr, "vector", "j", s.width) as j:
            write(kk, j, read(start + j, kk, exists(start + j)))

    if across and group >= LEAST and s.nr % group == 0:
        with (k.loop(ceildiv(count, STRIP), "seq", "s") as strip, k.loop(s.nr // group, "seq", "g") as g,
              k.loop(group, "seq", "i") as i, k.loop(dmin(STRIP, count - STRIP * strip), "vector", "k", s.width) as kk):
            at = STRIP * strip + kk
            write(at, group * g + i, read(dmin(start + group * g + i, p.n - 1), at, None))
    elif across and lanes_exist(k, p, s, start) is not None:  # the blocks that the backend turns take whole panels
        either(k, k.let(k.b.le(k.b.index(start + s.nr), k.b.index(p.n))), lambda: straight(lambda col: None),
               lambda: straight(lambda col: lanes_exist(k, p, s, col)))
    else:
        straight(lambda col: lanes_exist(k, p, s, col))


def add_products(k: KernelBuilder, p: Problem, s: ContractSchedule, acc: str, row: Callable[[DimLike], Expr],
                 col: Callable[[DimLike], Expr], product: Product | None = None) -> None:
    """acc[i, j] += row(i) * col(j), in one rounding or as ``product`` says.  The operand with fewer registers stays in
    registers."""
    def one(i: DimLike, j: DimLike) -> None:
        k.set(acc, (product or p.product)(k, row(i), col(j), k.get(acc, i, j)), i, j)
    if s.mr * s.width < s.nr:
        with k.loop(s.nr, "vector", "j", s.width) as j, k.loop(s.mr, "unroll", "i") as i:
            one(i, j)
    else:
        with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
            one(i, j)


def light(p: Problem) -> bool:
    """Is what follows the sums so little that it may stand in the code once per register?"""
    after = [n for n in p.group.members if n is not p.node and not p.before(n)]
    sums = prod(p.outer_extents) * p.m * p.n
    short = isinstance(p.k, int) and p.k <= SHORT and not (isinstance(sums, int) and sums <= FEW)
    most = BRIEF if short else LIGHT
    return len(after) <= most and not any(n.op.name in EXPENSIVE for n in after)


def finish(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, acc: str, outer: Idx,
           row: Callable[[DimLike], DimLike], start: DimLike, first: DimLike | None = None) -> None:
    """Epilogue and store of a tile in registers; rows that repeat the last are stored twice, with the same bits."""
    with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", s.width) as j:
        store(k, inl, p, s, k.get(acc, i, j), outer, row(i), start + j, first)


def store(k: KernelBuilder, inl: Inliner, p: Problem, s: ContractSchedule, total: Expr, outer: Idx, row: DimLike,
          col: DimLike, first: DimLike | None = None,
          put: Callable[[Node, Idx, Expr, Expr | None], None] | None = None) -> None:
    """What the group makes of one sum, written where its column exists; with ``first``, all columns exist, and those
    from that one on are written.  ``put(node, index, value, where)`` writes elsewhere than to the node's buffer."""
    o = tuple(map(k.tidy, p.access.place(p.out_index(outer, row, col))))
    own = own_index(o, p.order)
    where = lanes_exist(k, p, s, col) if first is None else k.b.ge(k.b.index(col), k.b.index(first))
    v = k.let(k.b.cast(total, p.node.dtype))
    inl.bound[p.node] = lambda idx, _: v if idx == own else None
    for n in p.group.outputs:
        value = inl.value(n, o, where)
        if put is None:
            k.write(p.ctx.name_of(n), linear_index(o, n.shape), value, where)
        else:
            put(n, o, value, where)
    del inl.bound[p.node]
