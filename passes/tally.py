"""Tallies: many numbers, or rows of them, added into few places.

Here: counts written as comparisons with every possible value, as one scatter_add; and the kernels of a scatter_add into
few places: pieces with sums of their own, added up at the end.  Sums of integers wrap, so their order changes no bit;
for floats the sizes alone fix the pieces and with them the order.  Sums of 16-bit floats, which round much, and few
updates stay in the order of the updates.
Not here: other scatters (ops/indexing.py).  Read next: lower.py.

Within a piece positions are computed for BLOCK updates as lanes, then added one by one into some tables in turn, so
that equal neighbours do not wait for each other.
"""

from __future__ import annotations

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import CONSTANT, Node, make
from flowc.op import General
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, describe, inliner, nest
from flowc.passes.schedule import Machine
from flowc.proofs import known_le
from flowc.rewrite import splat
from flowc.types import Type, i64

PLACES = 1 << 12   # that counts are made for, at most
TABLE = 128 << 10  # bytes of the tables of one piece, at most
PIECE = 1 << 15    # updates of one piece
PER_PLACE = 8      # a piece has so many times as many updates as the table has places, at least
BLOCK = 256        # updates whose positions are computed together
COPIES = 4
WORTH = 1 << 14    # comparisons that are worth replacing


# ---- counts ---------------------------------------------------------------------------------------------------------

def counted(n: Node) -> Node:
    """``n``, or ``sum(k[:, None] == arange(c), axis=0)`` as a scatter_add of ones at the positions k."""
    if n.op.name != "reduce_sum" or not n.dtype.integer or n.rank != 1 or len(n.attrs["axes"]) != n.inputs[0].rank - 1:
        return n
    x = n.inputs[0]
    size, loc = n.shape[0], n.loc
    if x.op.name != "cast" or x.inputs[0].op.name != "eq" or not isinstance(size, int) or not 0 < size < PLACES:
        return n
    if known_le(WORTH, x.type.size) is not True and isinstance(x.type.size, int):
        return n
    (column,) = set(range(x.rank)) - set(n.attrs["axes"])
    for keys, values in (x.inputs[0].inputs, x.inputs[0].inputs[::-1]):
        first = _counts_up(values, column)
        if first is None or keys.op.name != "broadcast" or column in keys.attrs["axes"]:
            continue
        if len(keys.attrs["axes"]) != x.rank - 1 or not keys.dtype.integer:
            continue
        k = make("cast", (keys.inputs[0],), {"dtype": i64}, loc)
        if first:
            k = make("sub", (k, splat(first, k.type, loc)), {}, loc)
        inside = make("and", (make("ge", (k, splat(0, k.type, loc)), {}, loc),
                              make("lt", (k, splat(size, k.type, loc)), {}, loc)), {}, loc)
        at = make("select", (inside, k, splat(size, k.type, loc)), {}, loc)
        table = Type(n.dtype, (size + 1,))
        ones = splat(1, Type(n.dtype, k.shape), loc)
        counts = make("scatter_add", (splat(0, table, loc), at, ones), {"axis": 0}, loc)
        return make("slice", (counts,), {"start": (0,), "stop": (size,), "step": (1,)}, loc)
    return n


def _counts_up(values: Node, column: int) -> int | None:
    """The first of the integers that ``values`` counts up along ``column`` alone."""
    if values.op.name != "broadcast" or values.attrs["axes"] != (column,):
        return None
    x = values.inputs[0]
    while x.op.name == "cast" and x.dtype.integer and x.inputs[0].dtype.integer:
        x = x.inputs[0]
    if x.op.name == "iota":
        return 0
    if x.op is not CONSTANT or not x.dtype.integer:
        return None
    found = [int(v) for v in x.attrs["value"].array]
    return found[0] if found == list(range(found[0], found[0] + len(found))) else None


# ---- kernels --------------------------------------------------------------------------------------------------------

def tallies(g: Group, ctx: Context) -> bool:
    n = g.root
    if ctx.machine.name != "cpu" or not isinstance(n.op.lower, General) or n.op.name != "scatter_add":
        return False
    places = n.type.size
    if n.attrs["axis"] != 0 or not isinstance(places, int) or not 0 < places * n.dtype.bytes <= TABLE:
        return False
    total = prod(n.inputs[1].shape)
    few = isinstance(total, int) and total < 2 * _piece(n)
    return n.dtype.integer and not (few and n.rank > 1) or n.dtype.kind == "f" and n.dtype.bytes >= 4 and not few


def _piece(n: Node) -> int:
    assert isinstance(n.shape[0], int)
    return max(PIECE, PER_PLACE * n.shape[0])


def lower_tally(g: Group, ctx: Context) -> Lowered:
    """Two kernels: tables of fixed pieces, then their sum."""
    node = g.root
    total, places, piece = prod(node.inputs[1].shape), node.type.size, _piece(node)
    assert isinstance(places, int)
    temp = f"{ctx.name}.part"
    kind = Type(node.dtype, (ceildiv(total, piece), places))
    k = ctx.builder("a")
    _Pieces(k, inliner(k, g, ctx), node, ctx.machine).write(temp, piece)
    k.buffer(temp, kind.dtype, kind.shape, "out")
    first = k.finish(ctx.dims, [*describe(g), f"tally: pieces of {piece}"])
    return Lowered([first, _sum_of_pieces(g, ctx, temp, kind)], {temp: kind},
                   [prod(node.inputs[2].shape) * (cost(g) + 8), prod(kind.shape)])


class _Pieces:
    """The loops that fill the tables of all pieces."""

    def __init__(self, k: KernelBuilder, inl: Inliner, node: Node, machine: Machine):
        self.k, self.inl, self.node, self.dtype = k, inl, node, node.dtype
        _, self.indices, self.updates = node.inputs
        self.total, self.size, self.tail = prod(self.indices.shape), node.shape[0], node.shape[1:]
        assert isinstance(node.type.size, int)
        self.places: int = node.type.size
        self.constant = inl.value(self.updates, unravel(0, self.updates.shape)) if _same_everywhere(self.updates) \
            else None
        self.lanes, self.index_lanes = machine.lanes(node.dtype), 2 * machine.lanes(i64)

    def write(self, temp: str, piece: int) -> None:
        k, b = self.k, self.k.b
        copies = max(1, min(COPIES, TABLE // (self.places * self.dtype.bytes)))
        with k.loop(ceildiv(self.total, piece), "parallel", "p") as p:
            tables = [k.alloc(self.dtype, self.places) for _ in range(copies)]
            with k.loop(self.places, "vector", "c", self.lanes) as c:
                for t in tables:
                    k.write(t, c, b.const(0, self.dtype))
            self.add(tables, piece * p, dmin(piece, self.total - piece * p))
            with k.loop(self.places, "vector", "c", self.lanes) as c:
                sums = b.load(tables[0], c, self.dtype)
                for t in tables[1:]:
                    sums = b.add(sums, b.load(t, c, self.dtype))
                k.write(temp, self.places * p + c, sums)

    def add(self, tables: list[str], first: DimLike, count: DimLike) -> None:
        """Add ``count`` updates from ``first`` on to the tables."""
        k, b, copies = self.k, self.k.b, len(tables)
        positions = k.alloc(i64, BLOCK)
        values = k.alloc(self.dtype, BLOCK) if self.constant is None and not self.tail else ""
        with k.loop(ceildiv(count, BLOCK), "seq", "j") as j:
            start, here = first + BLOCK * j, dmin(BLOCK, count - BLOCK * j)
            with k.loop(here, "vector", "l", self.index_lanes) as lane:
                idx = unravel(start + lane, self.indices.shape)
                at = b.min(b.max(self.inl.value(self.indices, idx), 0), b.index(self.size - 1))
                k.write(positions, lane, at)
                if values:
                    k.write(values, lane, self.inl.value(self.updates, idx))

            def put(table: str, q: DimLike) -> None:
                at = k.as_index(b.load(positions, q, i64), 0, self.size - 1)
                if self.tail:
                    self.add_row(table, at, unravel(start + q, self.indices.shape))
                    return
                v = self.constant if self.constant is not None else b.load(values, q, self.dtype)
                k.write(table, at, b.add(b.load(table, at, self.dtype), v))
            with k.loop(here // copies, "seq", "q") as q:
                for u, t in enumerate(tables):
                    put(t, copies * q + u)
            if copies > 1:
                with k.loop(here % copies, "seq", "q") as q:
                    put(tables[0], here // copies * copies + q)

    def add_row(self, table: str, at: DimLike, idx: Idx) -> None:
        k, b = self.k, self.k.b
        with nest(k, self.tail[:-1], "seq", "m") as m, k.loop(self.tail[-1], "vector", "c", self.lanes) as c:
            place = linear_index((at, *m, c), self.node.shape)
            v = self.constant if self.constant is not None else self.inl.value(self.updates, (*idx, *m, c))
            k.write(table, place, b.add(b.load(table, place, self.dtype), v))


def _same_everywhere(x: Node) -> bool:
    return x.op.name == "broadcast" and x.inputs[0].rank == 0 and x.inputs[0].op is CONSTANT


def _sum_of_pieces(g: Group, ctx: Context, temp: str, kind: Type):
    node = g.root
    k = ctx.builder("b")
    inl = inliner(k, g, ctx)
    k.buffer(temp, kind.dtype, kind.shape)
    width = ctx.machine.lanes(node.dtype)
    pieces, places = kind.shape
    with k.loop(ceildiv(places, BLOCK), "parallel", "j") as j, k.loop(
            dmin(BLOCK, places - BLOCK * j), "vector", "c", width) as lane:
        c = BLOCK * j + lane
        acc = k.acc(node.dtype, inl.value(node.inputs[0], unravel(c, node.shape)))
        with k.loop(pieces, "seq", "p") as p:
            k.set(acc, k.b.add(k.get(acc), k.b.load(temp, places * p + c, node.dtype)))
        k.write(ctx.name_of(node), c, k.get(acc))
    k.buffer(ctx.name_of(node), node.dtype, node.shape, "out")
    return k.finish(ctx.dims, ["add up the pieces of a tally"])
