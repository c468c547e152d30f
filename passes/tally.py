"""Tallies: many numbers, or rows of them, added into few places.

Here: counts written as comparisons with every possible value, as one scatter_add; and the kernels of a scatter_add into
few places: pieces with sums of their own, added up at the end.  Sums of integers wrap, so their order changes no bit;
for floats the sizes alone fix the pieces and with them the order.  Sums of 16-bit floats, which round much, and few
updates stay in the order of the updates.
Not here: other scatters (ops/indexing.py).  Read next: lower.py.

Within a piece positions are computed for a block of updates as lanes, in bytes where they fit, together with maps of
the same elements that are outputs.  Then the updates are added one by one into some tables in turn, so that equal
neighbours do not wait for each other; or, where equal integers are added into few places, all places are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import CONSTANT, Node, make
from flowc.kernel import Builder, Expr, Fold, Kernel
from flowc.op import General
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, describe, inliner, nest
from flowc.passes.schedule import Machine
from flowc.proofs import known_le
from flowc.rewrite import splat
from flowc.types import DType, Type, i32, i64, u8, u16, u32, u64

PLACES = 1 << 12   # that counts are made for, at most
TABLE = 128 << 10  # bytes of the tables of one piece, at most
PIECE = 1 << 15    # updates of one piece
PER_PLACE = 8      # a piece has so many times as many updates as the table has places, at least
COUNTED = 4096     # equal updates whose positions are computed together; a lane counts its part of them in a byte
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
        at = _position(keys.inputs[0], first, size)
        if at is None:
            continue
        table = Type(n.dtype, (size + 1,))
        ones = splat(1, Type(n.dtype, at.shape), loc)
        counts = make("scatter_add", (splat(0, table, loc), at, ones), {"axis": 0}, loc)
        return make("slice", (counts,), {"start": (0,), "stop": (size,), "step": (1,)}, loc)
    return n


def _position(keys: Node, first: int, size: int) -> Node | None:
    """Where ``keys`` lie in first .. first + size - 1, as i64; ``size`` for those that do not.  In the narrowest
    unsigned numbers, in which all that lie outside are too large."""
    while keys.op.name == "cast" and keys.inputs[0].dtype.integer and _holds_all(keys.dtype, keys.inputs[0].dtype):
        keys = keys.inputs[0]
    for signed, unsigned in ((i32, u32), (i64, u64)):
        for d in (signed, unsigned):
            if _holds_all(d, keys.dtype) and _holds(d, first, size):
                k = make("cast", (keys,), {"dtype": d}, keys.loc)
                if first:
                    k = make("sub", (k, splat(first, k.type, keys.loc)), {}, keys.loc)
                k = make("cast", (k,), {"dtype": unsigned}, keys.loc)
                k = make("min", (k, splat(size, k.type, keys.loc)), {}, keys.loc)
                return make("cast", (k,), {"dtype": i64}, keys.loc)
    return None


def _holds(d: DType, first: int, size: int) -> bool:
    return _least(d) <= first and first + size - 1 <= _greatest(d)


def _holds_all(d: DType, values: DType) -> bool:
    return _least(d) <= _least(values) and _greatest(values) <= _greatest(d)


def _least(d: DType) -> int:
    return -(1 << d.bits - 1) if d.kind == "i" else 0


def _greatest(d: DType) -> int:
    return (1 << d.bits - (d.kind == "i")) - 1


def _counts_up(values: Node, column: int) -> int | None:
    """The first of the integers that ``values`` counts up along ``column`` alone."""
    if values.op.name != "broadcast" or values.attrs["axes"] != (column,):
        return None
    x = values.inputs[0]
    size = x.shape[0]
    assert isinstance(size, int)
    while x.op.name == "cast" and x.dtype.integer and x.inputs[0].dtype.integer and _holds(x.dtype, 0, size):
        x = x.inputs[0]
    if x.op.name == "iota":
        return 0 if _holds(x.dtype, 0, size) else None
    if x.op is not CONSTANT or not x.dtype.integer:
        return None
    found = [int(v) for v in x.attrs["value"].array]
    return found[0] if found == list(range(found[0], found[0] + len(found))) else None


# ---- kernels --------------------------------------------------------------------------------------------------------

def tallies(n: Node, machine: Machine) -> bool:
    """Is ``n`` a scatter whose kernel walks over the updates piece by piece?"""
    if machine.name != "cpu" or not isinstance(n.op.lower, General) or n.op.name != "scatter_add":
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
    """A kernel for the tables of fixed pieces, and for each tally one for their sum."""
    k = ctx.builder("a")
    nodes = [n for n in g.members if isinstance(n.op.lower, General)]
    piece = max(map(_piece, nodes))
    total = prod(g.root.inputs[1].shape)
    walk = _Walk(k, inliner(k, g, ctx), ctx, nodes, [n for n in g.outputs if n not in nodes])
    temps = {f"{ctx.name}.part{i or ''}": Type(n.dtype, (ceildiv(total, piece), n.type.size))
             for i, n in enumerate(nodes)}
    walk.write(list(temps), piece)
    for n in walk.outputs:
        k.buffer(ctx.name_of(n), n.dtype, n.shape, "out")
    for temp, kind in temps.items():
        k.buffer(temp, kind.dtype, kind.shape, "out")
    first = k.finish(ctx.dims, [*describe(g), f"tally: pieces of {piece}"])
    last = [_sum_of_pieces(n, g, ctx, temp, kind) for n, (temp, kind) in zip(nodes, temps.items(), strict=True)]
    work = prod(g.space) * (cost(g) + 8 * len(nodes))
    return Lowered([first, *last], temps, [work, *[prod(kind.shape) for kind in temps.values()]])


class _Walk:
    """The loops over all updates: values of maps are written, then updates are added to the tables of their piece."""

    def __init__(self, k: KernelBuilder, inl: Inliner, ctx: Context, nodes: Sequence[Node], outputs: Sequence[Node]):
        self.k, self.inl, self.outputs, self.name_of = k, inl, outputs, ctx.name_of
        self.shape = nodes[0].inputs[1].shape
        self.total, self.outer = prod(self.shape), len(self.shape)
        self.lanes = 2 * ctx.machine.lanes(i64)
        self.tables = [(_Counts if _few(n, ctx.machine) else _Table)(self, n, ctx.machine) for n in nodes]
        self.block = min(t.block for t in self.tables)

    def write(self, temps: Sequence[str], piece: int) -> None:
        k = self.k
        with k.loop(ceildiv(self.total, piece), "parallel", "p") as p:
            for t in self.tables:
                t.begin(len(self.tables))
            first, count = piece * p, dmin(piece, self.total - piece * p)
            with k.loop(ceildiv(count, self.block), "seq", "j") as j:
                self.part(first + self.block * j, dmin(self.block, count - self.block * j))
            for t, temp in zip(self.tables, temps, strict=True):
                t.end(temp, p)

    def part(self, start: DimLike, here: DimLike) -> None:
        """``here`` updates from ``start`` on."""
        k = self.k
        with k.loop(here, "vector", "l", self.lanes) as lane:
            idx = unravel(start + lane, self.shape)
            for n in self.outputs:
                if n.rank == self.outer:
                    k.write(self.name_of(n), start + lane, self.inl.value(n, idx))
            for t in self.tables:
                t.prepare(lane, idx)
        self.whole_rows(start, here)
        for t in self.tables:
            t.add(start, here)

    def whole_rows(self, start: DimLike, here: DimLike) -> None:
        """Outputs that have a row for every update."""
        k = self.k
        wide = [n for n in self.outputs if n.rank > self.outer]
        if not wide:
            return
        tail = wide[0].shape[self.outer:]
        with k.loop(here, "seq", "q") as q, nest(k, tail[:-1], "seq", "m") as m, k.loop(
                tail[-1], "vector", "c", self.lanes) as c:
            idx = (*unravel(start + q, self.shape), *m, c)
            for n in wide:
                k.write(self.name_of(n), linear_index(idx, n.shape), self.inl.value(n, idx))


class _Table:
    """Updates added one by one into some tables in turn."""

    block = BLOCK

    def __init__(self, walk: _Walk, node: Node, machine: Machine):
        self.walk, self.k, self.inl, self.node, self.dtype = walk, walk.k, walk.inl, node, node.dtype
        _, self.indices, self.updates = node.inputs
        self.size, self.tail = node.shape[0], node.shape[1:]
        assert isinstance(node.type.size, int) and isinstance(self.size, int)
        self.places: int = node.type.size
        self.constant = self.inl.value(self.updates, unravel(0, self.updates.shape)) if _same_everywhere(
            self.updates) else None
        self.lanes = machine.lanes(node.dtype)
        self.last = self.size - 1
        self.narrow = next(d for d in (u8, u16, u32) if self.last < _greatest(d))
        self.tables: list[str] = []
        self.values = ""

    def begin(self, among: int) -> None:
        """Empty tables for a piece, with ``among`` - 1 others beside them."""
        k, b = self.k, self.k.b
        copies = max(1, min(COPIES, TABLE // (self.places * self.dtype.bytes * among)))
        self.tables = [k.alloc(self.dtype, self.places) for _ in range(copies)]
        with k.loop(self.places, "vector", "c", self.lanes) as c:
            for t in self.tables:
                k.write(t, c, b.const(0, self.dtype))
        self.positions = k.alloc(self.narrow, self.walk.block)
        if self.constant is None and not self.tail:
            self.values = k.alloc(self.dtype, self.walk.block)

    def prepare(self, lane: DimLike, idx: Idx) -> None:
        k, b = self.k, self.k.b
        at = _within(b, self.inl.value(self.indices, idx), self.last)
        k.write(self.positions, lane, b.cast(at, self.narrow))
        if self.values:
            k.write(self.values, lane, self.inl.value(self.updates, idx))

    def add(self, start: DimLike, here: DimLike) -> None:
        k, copies = self.k, len(self.tables)
        with k.loop(here // copies, "seq", "q") as q:
            for u, t in enumerate(self.tables):
                self.put(t, copies * q + u, start)
        if copies > 1:
            with k.loop(here % copies, "seq", "q") as q:
                self.put(self.tables[0], here // copies * copies + q, start)

    def put(self, table: str, q: DimLike, start: DimLike) -> None:
        k, b = self.k, self.k.b
        at = k.as_index(b.load(self.positions, q, self.narrow), 0, self.last)
        if self.tail:
            self.add_row(table, at, unravel(start + q, self.indices.shape))
            return
        v = self.constant if self.constant is not None else b.load(self.values, q, self.dtype)
        k.write(table, at, b.add(b.load(table, at, self.dtype), v))

    def add_row(self, table: str, at: DimLike, idx: Idx) -> None:
        k, b = self.k, self.k.b
        with nest(k, self.tail[:-1], "seq", "m") as m, k.loop(self.tail[-1], "vector", "c", self.lanes) as c:
            place = linear_index((at, *m, c), self.node.shape)
            v = self.constant if self.constant is not None else self.inl.value(self.updates, (*idx, *m, c))
            k.write(table, place, b.add(b.load(table, place, self.dtype), v))

    def end(self, temp: str, p: DimLike) -> None:
        """The sum of the tables is the table of piece ``p``."""
        k, b = self.k, self.k.b
        with k.loop(self.places, "vector", "c", self.lanes) as c:
            sums = b.load(self.tables[0], c, self.dtype)
            for t in self.tables[1:]:
                sums = b.add(sums, b.load(t, c, self.dtype))
            k.write(temp, self.places * p + c, sums)


class _Counts(_Table):
    """Equal updates for few places: each place is compared with a register full of positions at once, and counted in
    bytes, lane by lane.  That takes as long whatever the positions are."""

    def __init__(self, walk: _Walk, node: Node, machine: Machine):
        super().__init__(walk, node, machine)
        self.width, self.registers = _bytes_at_once(machine)
        self.block = min(COUNTED // self.width, _greatest(u8)) * self.width

    def begin(self, among: int) -> None:
        k, b = self.k, self.k.b
        self.tables = [k.alloc(u8, self.places * self.width), k.alloc(u32, self.places * self.width)]
        self.positions = k.alloc(u8, self.walk.block)
        with k.loop(self.places * self.width, "vector", "c", self.width // 4) as c:
            k.write(self.tables[1], c, b.const(0, u32))

    def add(self, start: DimLike, here: DimLike) -> None:
        k, b, w = self.k, self.k.b, self.width
        full = ceildiv(here, w)
        with k.loop(w * full - here, "seq", "q") as q:
            k.write(self.positions, here + q, b.const(_greatest(u8), u8))
        for first in range(0, self.places, self.registers):
            count = min(self.registers, self.places - first)
            with k.region():
                acc = k.acc(u8, b.const(0, u8), (count, w))
                with k.loop(full, "seq", "q") as q, k.loop(w, "vector", "l", w) as lane:
                    at = k.let(b.load(self.positions, w * q + lane, u8))
                    for j in range(count):
                        k.set(acc, b.add(k.get(acc, j, lane), b.cast(b.eq(at, first + j), u8)), j, lane)
                with k.loop(w, "vector", "l", w) as lane:
                    for j in range(count):
                        k.write(self.tables[0], w * (first + j) + lane, k.get(acc, j, lane))
        with k.loop(self.places * w, "vector", "c", w // 4) as c:
            wide = b.load(self.tables[1], c, u32)
            k.write(self.tables[1], c, b.add(wide, b.cast(b.load(self.tables[0], c, u8), u32)))

    def end(self, temp: str, p: DimLike) -> None:
        k, b, w = self.k, self.k.b, self.width
        assert self.constant is not None
        with k.loop(self.places, "seq", "c") as c:
            acc = k.acc(u32, b.const(0, u32), (w,))
            with k.loop(w, "vector", "l", w // 4) as lane:
                k.set(acc, b.load(self.tables[1], w * c + lane, u32), lane)
            left, right = k.fresh("x"), k.fresh("y")
            name = k.fresh("r")
            x, y = b.ref(left, u32), b.ref(right, u32)
            k.add(Fold((name,), (acc,), w, (left,), (right,), (b.add(x, y),)))
            k.write(temp, self.places * p + c, b.mul(b.cast(b.ref(name, u32), self.dtype), self.constant))


def _few(n: Node, machine: Machine) -> bool:
    """Are there so few places, and equal integers for them, that all are compared with?"""
    places = n.type.size
    return (isinstance(places, int) and n.dtype.integer and n.rank == 1 and machine.vector_bits >= 128
            and places <= 2 * _bytes_at_once(machine)[1] and _same_everywhere(n.inputs[2]))


def _bytes_at_once(machine: Machine) -> tuple[int, int]:
    """The bytes of a register whose comparison gives bytes again, and how many registers there are for counts."""
    return min(machine.vector_bits, 256) // 8, 26 if machine.vector_bits >= 512 else 12


def _within(b: Builder, at: Expr, last: int) -> Expr:
    """``at`` brought into 0 .. last, in the narrowest numbers it comes from."""
    while at.op == "cast" and at.args[0].dtype.integer and _holds_all(at.dtype, at.args[0].dtype):
        at = at.args[0]
    if at.op == "min" and any(a.op == "const" and a.attr <= last for a in at.args) and not _least(at.dtype):
        return at
    if _least(at.dtype):
        at = b.max(at, 0)
    return at if _greatest(at.dtype) <= last else b.min(at, last)


def _same_everywhere(x: Node) -> bool:
    return x.op.name == "broadcast" and x.inputs[0].rank == 0 and x.inputs[0].op is CONSTANT


def _sum_of_pieces(node: Node, g: Group, ctx: Context, temp: str, kind: Type) -> Kernel:
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
