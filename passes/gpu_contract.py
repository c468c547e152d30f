"""Contractions on the GPU: tiles of the result per block, staged through shared memory.

Here: ``tiled_product``, the loop nest over any two sources of elements, and the kernel of a contraction group.
Not here: the CPU form (contract.py), which kernels are bound how (gpu.py).  Read next: gpu_space.py.

A block of 16 x 16 threads computes 64 x 64 results, each thread 4 x 4 of them at distances of 16, so that neighbouring
threads read and write neighbouring places.  Sixteen summed indices are staged at a time.  Every result is one chain of
fused multiply-adds over k = 0, 1, 2, ... in order, as on the CPU: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv, linear, prod, sym
from flowc.graph import Node
from flowc.kernel import Barrier, Expr, Loop
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner
from flowc.passes.problem import accumulator, assign_roles, exists, order_of
from flowc.passes.turned import access_of, own_index, turned
from flowc.types import DType


@dataclass(frozen=True)
class Tile:
    """``side`` x ``side`` threads, each with ``per`` x ``per`` results; ``depth`` summed indices per stage, ``unroll``
    of them written one after the other."""

    side: int = 16
    per: int = 4
    depth: int = 16
    unroll: int = 16

    @property
    def width(self) -> int:
        return self.side * self.per

    def __str__(self) -> str:
        return f"gpu contraction: tile {self.width}x{self.width}, {self.side * self.side} threads, k by {self.depth}"


Load = Callable[[Idx, DimLike, DimLike, "Expr | None"], Expr]
Put = Callable[[Idx, DimLike, DimLike, Expr], None]


@dataclass
class Product:
    """``out[outer, row, col] = sum over k of lhs(outer, row, k) * rhs(outer, col, k)``.

    outer: extents of what is walked outside; m, n, depth: numbers of rows, columns and summed indices.
    lhs, rhs: ``(outer index, row or column, k, where) -> Expr`` of dtype ``acc``, zero where ``where`` is false; they
    are called inside the kernel under construction and may append bindings.  ``along``: does the operand lie in
    memory along k (True) or along its rows or columns?
    put: ``(outer index, row, col, sum)`` appends the statements that use a result.
    """

    outer: Sequence[DimLike]
    m: DimLike
    n: DimLike
    depth: DimLike
    acc: DType
    lhs: Load
    rhs: Load
    along: tuple[bool, bool]
    put: Put


def tiled_product(k: KernelBuilder, p: Product, tile: Tile) -> None:
    """Append the block and thread loops of a product to ``k``."""
    rows, cols = ceildiv(p.m, tile.width), ceildiv(p.n, tile.width)
    with _blocks(k, prod(p.outer) * rows * cols) as at:
        *outer, mb, nb = (_named(k, d, n - 1) for d, n in zip(unravel(at, (*p.outer, rows, cols)),
                                                              (*p.outer, rows, cols), strict=True))
        # one place more per line where threads write across lines: they hit different banks
        strides = tuple(tile.width + along for along in p.along)
        shared = [k.alloc(p.acc, tile.depth * s, "shared") for s in strides]
        with k.loop(tile.side * tile.side, "thread", "t") as t:
            y, x = _named(k, t // tile.side, tile.side - 1), _named(k, t % tile.side, tile.side - 1)
            _Stages(k, p, tile, tuple(outer), tile.width * mb, tile.width * nb, y, x, shared, strides).run()


@contextmanager
def _blocks(k: KernelBuilder, count: DimLike) -> Iterator[DimLike]:
    """The loop over blocks, also if there is only one: shared memory belongs to a block."""
    if count != 1:
        with k.loop(count, "block", "b") as at:
            yield at
        return
    first = len(k.scopes[-1].stmts)
    with k.region():
        yield 0
    body = tuple(k.scopes[-1].stmts[first:])
    del k.scopes[-1].stmts[first:]
    k.add(Loop(k.fresh("b"), 1, "block", body))


def _named(k: KernelBuilder, d: DimLike, top: DimLike) -> DimLike:
    """A size computed once, as a symbol of 0 .. top."""
    d = k.tidy(d)
    if isinstance(d, int) or d.atom() is not None and isinstance(d.atom(), str):
        return d
    name = k.fresh("n")
    k.let(k.b.index(d), name, (0, top))
    k.ranges[name] = (0, top)
    return sym(name)


@dataclass
class _Stages:
    """The code of one thread: ``y``, ``x`` is its place in the block, ``row``, ``col`` the block's first result."""

    k: KernelBuilder
    p: Product
    tile: Tile
    outer: Idx
    row: DimLike
    col: DimLike
    y: DimLike
    x: DimLike
    shared: Sequence[str]
    strides: tuple[int, ...]

    def run(self) -> None:
        k, p, tile = self.k, self.p, self.tile
        acc = k.acc(p.acc, k.b.const(0, p.acc), (tile.per, tile.per))
        with k.loop(p.depth // tile.depth, "seq", "s") as stage:
            self.stage(acc, tile.depth * stage, tile.depth, tile.unroll, None)
            k.add(Barrier())  # before the next stage takes the place of this one
        left = k.tidy(p.depth % tile.depth)
        if left != 0:
            self.stage(acc, p.depth - left, left, 1, p.depth)
        with k.loop(tile.per, "unroll", "i") as i, k.loop(tile.per, "unroll", "j") as j:
            row, col = self.row + self.y + tile.side * i, self.col + self.x + tile.side * j
            inside = self.both(self.within(row, p.m), self.within(col, p.n))
            value = k.let(k.get(acc, i, j))
            if inside is None:
                p.put(self.outer, row, col, value)
            else:
                with k.if_(inside):
                    p.put(self.outer, row, col, value)

    def stage(self, acc: str, first: DimLike, count: DimLike, unroll: int, end: DimLike | None) -> None:
        """Bring ``count`` summed indices from ``first`` on into shared memory and add their products."""
        k, p, tile, b = self.k, self.p, self.tile, self.k.b
        for side in (0, 1):
            self.fill(side, first, end)
        k.add(Barrier())
        with k.loop(count // unroll, "seq", "k") as k0, k.loop(unroll, "unroll", "k") as k1:
            kk = k0 * unroll + k1
            lines = [[k.let(b.load(m, kk * s + at + tile.side * i, p.acc)) for i in range(tile.per)]
                     for m, s, at in zip(self.shared, self.strides, (self.y, self.x), strict=True)]
            for i, u in enumerate(lines[0]):
                for j, v in enumerate(lines[1]):
                    old = k.get(acc, i, j)
                    k.set(acc, b.fma(u, v, old) if p.acc.floating else b.add(b.mul(u, v), old), i, j)

    def fill(self, side: int, first: DimLike, end: DimLike | None) -> None:
        """All threads together copy one operand's part of a stage; each ``per`` elements, neighbours side by side."""
        k, p, tile = self.k, self.p, self.tile
        start, extent, load = (self.row, p.m, p.lhs) if side == 0 else (self.col, p.n, p.rhs)
        groups = tile.width // tile.side  # threads of that many values of y cover one line across
        with k.loop(tile.per, "unroll", "i") as i:
            if p.along[side]:
                at, depth = self.y + tile.side * i, self.x
            else:
                at = k.tidy(self.y % groups) * tile.side + self.x
                depth = k.tidy(self.y // groups) + (tile.side // groups) * i
            where = self.within(start + at, extent)
            if end is not None:
                where = self.both(where, self.within(first + depth, end))
            k.write(self.shared[side], depth * self.strides[side] + at,
                    load(self.outer, start + at, first + depth, where))

    def within(self, at: DimLike, extent: DimLike) -> Expr | None:
        """The test at < extent; None if tiles come out even."""
        if isinstance(extent, int) and extent % self.tile.width == 0:
            return None
        return self.k.b.lt(self.k.b.index(at), self.k.b.index(extent))

    def both(self, a: Expr | None, c: Expr | None) -> Expr | None:
        return c if a is None else a if c is None else self.k.b.and_(a, c)


# ---- contraction groups ---------------------------------------------------------------------------------------------

class _Sides:
    """The two operands of a contraction node by rows, columns and summed index."""

    def __init__(self, g: Group, ctx: Context, k: KernelBuilder, inl: Inliner):
        node = g.contraction
        assert node is not None
        self.node, self.k, self.inl = node, k, inl
        self.order = order_of(g)
        self.access = turned(access_of(node), self.order)
        self.roles = assign_roles(self.access, node.inputs)
        self.rows, self.cols, self.outer = ([self.access.out[i] for i in part] for part in (
            self.roles.rows, self.roles.cols, self.roles.outer))
        self.acc = accumulator(node.dtype)

    def out_index(self, outer: Idx, row: DimLike, col: DimLike) -> Idx:
        o: list[DimLike] = [0] * len(self.access.out)
        r = self.roles
        for places, values in ((r.outer, outer), (r.rows, unravel(row, self.rows)), (r.cols, unravel(col, self.cols))):
            for at, v in zip(places, values, strict=True):
                o[at] = v
        return tuple(o)

    def source(self, operand: int, o: Idx, kk: DimLike) -> tuple[Idx, Sequence[tuple]]:
        tidy = self.k.tidy
        r = unravel(kk, self.access.reduce)
        idx, conditions = (self.access.lhs, self.access.rhs)[operand](tuple(map(tidy, o)), tuple(map(tidy, r)))
        return tuple(idx), conditions

    def element(self, operand: int, o: Idx, kk: DimLike, where: Expr | None) -> Expr:
        """An element in accumulator precision; zero where it does not exist."""
        k = self.k
        idx, conditions = self.source(operand, o, kk)
        where = exists(k, conditions, where)
        v = k.b.cast(self.inl.value(self.node.inputs[operand], idx, where), self.acc)
        if where is not None and not (v.op == "load" and v.args):
            v = k.b.select(where, v, k.b.const(0, self.acc))
        return v

    def along(self, operand: int) -> bool:
        """Do neighbouring summed indices lie side by side in memory?"""
        o = tuple(sym(f"o{i}") for i in range(len(self.access.out)))
        idx, _ = self.source(operand, o, sym("kk"))
        split = linear(linear_index(idx, self.node.inputs[operand].shape), "kk")
        return split is not None and split[0] == 1


def choose_tile(m: DimLike, n: DimLike, acc: DType) -> Tile:
    """Large tiles reuse what is staged; a small result gives more blocks with small ones, and wastes less at its
    edges.  Wide values leave fewer registers for what is in flight."""
    narrow = min((d for d in (m, n) if isinstance(d, int)), default=64)
    return Tile(per=1 if narrow <= 16 else 2 if narrow <= 32 else 4, unroll=16 if acc.bits <= 32 else 4)


def lower_contraction(g: Group, ctx: Context) -> Lowered:
    """One kernel: producers are read while staging, consumers run on the sums."""
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    s = _Sides(g, ctx, k, inl)
    row_side = s.roles.row_operand
    col_side = 1 - row_side

    def lhs(outer: Idx, row: DimLike, kk: DimLike, where: Expr | None) -> Expr:
        return s.element(row_side, s.out_index(outer, row, 0), kk, where)

    def rhs(outer: Idx, col: DimLike, kk: DimLike, where: Expr | None) -> Expr:
        return s.element(col_side, s.out_index(outer, 0, col), kk, where)

    def put(outer: Idx, row: DimLike, col: DimLike, value: Expr) -> None:
        o = tuple(map(k.tidy, s.access.place(s.out_index(outer, row, col))))
        v = k.let(k.b.cast(value, s.node.dtype))
        inl.bound[s.node] = _only(own_index(o, s.order), v)
        for n in g.outputs:
            k.write(ctx.name_of(n), linear_index(o, n.shape), inl.value(n, o))
        del inl.bound[s.node]

    product = Product(s.outer, prod(s.rows), prod(s.cols), prod(s.access.reduce), s.acc, lhs, rhs,
                      (s.along(row_side), s.along(col_side)), put)
    tile = choose_tile(product.m, product.n, s.acc)
    tiled_product(k, product, tile)
    declare_outputs(k, g, ctx)
    kernel = k.finish(ctx.dims, [*describe(g), str(tile)])
    points = prod(s.outer) * product.m * product.n
    return Lowered([kernel], {}, [points * (2 * product.depth + cost(g))])


def _only(o: Idx, v: Expr) -> Callable[[Idx, Expr | None], Expr | None]:
    """The value of a node known at one index."""
    return lambda idx, where: v if idx == o else None


__all__ = ["Node", "Product", "Tile", "lower_contraction", "tiled_product"]
