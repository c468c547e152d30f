"""Tallies: many integers added into few places.

Here: counts written as comparisons with every possible value, as one scatter_add; and the kernels of a scatter_add of
integers into few places: pieces with sums of their own, added up at the end.  Sums of integers wrap, so their order
changes no bit.
Not here: other scatters (ops/indexing.py).  Read next: lower.py.

Within a piece positions are computed for BLOCK elements as lanes, then added one by one into COPIES tables in turn, so
that equal neighbours do not wait for each other.
"""

from __future__ import annotations

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import CONSTANT, Node, make
from flowc.kernel import Expr
from flowc.op import General
from flowc.passes.fuse import Group
from flowc.passes.inline import unravel
from flowc.passes.lowering import Context, Lowered, cost, describe, inliner
from flowc.proofs import known_le
from flowc.rewrite import splat
from flowc.types import Type, i64

PLACES = 1 << 12   # of the table, at most
PIECE = 1 << 15    # elements of one piece
BLOCK = 256        # elements whose positions are computed together
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
    return (ctx.machine.name == "cpu" and isinstance(n.op.lower, General) and n.op.name == "scatter_add"
            and n.dtype.integer and n.rank == 1 and isinstance(n.shape[0], int) and 0 < n.shape[0] <= PLACES)


def lower_tally(g: Group, ctx: Context) -> Lowered:
    """Two kernels: tables of fixed pieces, then their sum."""
    node = g.root
    _, indices, updates = node.inputs
    size, total = node.shape[0], prod(indices.shape)
    assert isinstance(size, int)
    piece = max(PIECE, 8 * size)
    pieces = ceildiv(total, piece)
    temp = f"{ctx.name}.part"
    kind = Type(node.dtype, (pieces, size))
    k = ctx.builder("a")
    inl = inliner(k, g, ctx)
    b = k.b
    constant = inl.value(updates, unravel(0, updates.shape)) if _same_everywhere(updates) else None

    def one(q: DimLike) -> tuple[Expr, Expr | None]:
        """Position and value of element q."""
        idx = unravel(q, indices.shape)
        at = b.min(b.max(inl.value(indices, idx), 0), b.index(size - 1))
        return at, None if constant is not None else inl.value(updates, idx)

    with k.loop(pieces, "parallel", "p") as p:
        tables = [k.alloc(node.dtype, size) for _ in range(COPIES)]
        positions = k.alloc(i64, BLOCK)
        values = k.alloc(node.dtype, BLOCK) if constant is None else ""
        with k.loop(size, "vector", "c", ctx.machine.lanes(node.dtype)) as c:
            for t in tables:
                k.write(t, c, b.const(0, node.dtype))
        count = dmin(piece, total - piece * p)
        with k.loop(ceildiv(count, BLOCK), "seq", "j") as j:
            here = dmin(BLOCK, count - BLOCK * j)
            with k.loop(here, "vector", "l", 2 * ctx.machine.lanes(i64)) as lane:
                at, value = one(piece * p + BLOCK * j + lane)
                k.write(positions, lane, at)
                if value is not None:
                    k.write(values, lane, value)

            def put(table: str, q: DimLike) -> None:
                at = k.as_index(b.load(positions, q, i64), 0, size - 1)
                v = constant if constant is not None else b.load(values, q, node.dtype)
                k.write(table, at, b.add(b.load(table, at, node.dtype), v))
            with k.loop(here // COPIES, "seq", "q") as q:
                for u, t in enumerate(tables):
                    put(t, COPIES * q + u)
            with k.loop(here % COPIES, "seq", "q") as q:
                put(tables[0], here // COPIES * COPIES + q)
        with k.loop(size, "vector", "c", ctx.machine.lanes(node.dtype)) as c:
            total_here = b.load(tables[0], c, node.dtype)
            for t in tables[1:]:
                total_here = b.add(total_here, b.load(t, c, node.dtype))
            k.write(temp, size * p + c, total_here)
    k.buffer(temp, kind.dtype, kind.shape, "out")
    first = k.finish(ctx.dims, [*describe(g), f"tally: pieces of {piece}"])
    return Lowered([first, _sum_of_pieces(g, ctx, temp, kind)], {temp: kind},
                   [total * (cost(g) + 8), pieces * size])


def _same_everywhere(x: Node) -> bool:
    return x.op.name == "broadcast" and x.inputs[0].rank == 0 and x.inputs[0].op is CONSTANT


def _sum_of_pieces(g: Group, ctx: Context, temp: str, kind: Type):
    node = g.root
    k = ctx.builder("b")
    inl = inliner(k, g, ctx)
    k.buffer(temp, kind.dtype, kind.shape)
    width = ctx.machine.lanes(node.dtype)
    pieces, size = kind.shape
    with k.loop(size, "vector", "c", width) as c:
        acc = k.acc(node.dtype, inl.value(node.inputs[0], (c,)))
        with k.loop(pieces, "seq", "p") as p:
            k.set(acc, k.b.add(k.get(acc), k.b.load(temp, size * p + c, node.dtype)))
        k.write(ctx.name_of(node), c, k.get(acc))
    k.buffer(ctx.name_of(node), node.dtype, node.shape, "out")
    return k.finish(ctx.dims, ["add up the pieces of a tally"])
