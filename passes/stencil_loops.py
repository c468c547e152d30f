"""The loops of a stencil: tiles shared between threads, inside a tile one step after the other.

Here: the kernel of a plan.  Not here: which maps form it, reach and tile (stencil.py), where conditions change along
an axis (edges.py).  Read next: inline.py.

All buffers of a tile have one shape and one place: element ``r`` along axis ``a`` is element ``tile * t + r - low`` of
the tensor.  Along the first axis they are windows that move with the sweep: ``r`` lies at ``r`` modulo the window.  A
task copies its inputs there, with a ring's neighbours behind its ends.  A step computes whole vectors of whole rows as
if no element were near an edge; what it computes beyond the tensor or its own part is never read.  Elements near an
edge are computed once more, with all conditions, in one loop nest over the pieces along all axes.  Results lie in as
many buffers as steps look back at, plus one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv, dmax, dmin, prod, substitute, sym
from flowc.graph import Node
from flowc.kernel import Expr
from flowc.passes.chains import Stage
from flowc.passes.edges import Wrap
from flowc.passes.fuse import Group
from flowc.passes.inline import DecidedOps, Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.lowering import Context, Lowered, declare_outputs, describe, inliner, nest
from flowc.passes.rewriting import map_dims
from flowc.passes.stencil import Stencil, Sweep

SHORT = 4     # elements near the ends of rows that are computed one by one, at most
ALIAS = 1024  # rows a multiple of this many bytes long compete for the same places of a cache


@dataclass(frozen=True)
class Part:
    """What a stage computes along one axis: start .. end, of which first .. last is away from edges.  most: the least
    start and the greatest end."""

    start: DimLike
    first: DimLike
    last: DimLike
    end: DimLike
    most: tuple[int, int]


def lower_stencil(g: Group, ctx: Context) -> Lowered:
    plan = g.stencil
    assert plan is not None
    tiles = _Tiles(g, plan, ctx)
    with nest(tiles.k, [ceildiv(n, t) for n, t in zip(plan.extent, plan.tile, strict=True)], "parallel", "t") as number:
        tiles.task(number)
    declare_outputs(tiles.k, g, ctx)
    kernel = tiles.k.finish(ctx.dims, [*describe(g), str(plan)])
    steps = plan.chain.steps
    return Lowered([kernel], {}, [prod(plan.extent) * sum(s.cost for s in plan.chain.stages) * len(steps)])


class _Tiles:
    def __init__(self, g: Group, plan: Stencil, ctx: Context):
        self.g, self.plan, self.ctx, self.chain = g, plan, ctx, plan.chain
        self.k = ctx.builder()
        self.rank, unit = len(plan.tile), plan.unit
        self.low = [r.low for r in plan.reach]
        self.low[-1] = -(-self.low[-1] // unit) * unit  # rows begin where those of memory begin
        self.sizes = [lo + t + r.high for lo, t, r in zip(self.low, plan.tile, plan.reach, strict=True)]
        self.length = self.sizes[0]
        row = -(-self.sizes[-1] // unit) * unit
        wide = max(n.dtype.bytes for s in self.chain.stages for n in s.outputs)
        self.sizes[-1] = row + unit * (row * wide % ALIAS == 0)
        if plan.sweep is not None:
            self.sizes[0] = plan.sweep.window
        self.slack = -(-plan.reach[-1].high // unit) * unit + unit  # neighbours of the first and the last row
        self.rings: dict[tuple[int, int], str] = {}
        self.fixed: dict[Node, str] = {}
        self.origin: list[DimLike] = []  # of the buffers, in the tensor
        self.step: DimLike = 0
        self.band: DimLike | None = None  # where it begins along the first axis
        self.near: Expr | None = None
        self.lines: dict[DimLike, DimLike] = {}  # where elements of the first axis lie in the window of the buffers

    # -- buffers

    def windowed(self, axes: Sequence[int | None]) -> bool:
        """Is a buffer along the given axes as long as the window along the first?  Where that is the axis that lies
        innermost in memory, all of it is copied at once."""
        return self.plan.sweep is not None and 0 in axes[:-1]

    def extents(self, axes: Sequence[int | None]) -> list[int]:
        return [1 if a is None else self.length if a == 0 and not self.windowed(axes) else self.sizes[a] for a in axes]

    def room(self, axes: Sequence[int | None]) -> int:
        return prod(self.extents(axes)) + 2 * self.slack  # type: ignore[return-value]

    def at(self, axes: Sequence[int | None], rows: Sequence[DimLike]) -> DimLike:
        """Where the element ``rows`` lies in a buffer that has the given axes of the space."""
        if self.windowed(axes):
            rows = [self.lines[r] if a == 0 else r for a, r in zip(axes, rows, strict=True)]
        return linear_index(rows, self.extents(axes)) + self.slack

    @property
    def all(self) -> list[int]:
        return list(range(self.rank))

    def depth(self, key: tuple[int, int]) -> int:
        return self.chain.depth.get(key, 0) + 1

    def slot(self, key: tuple[int, int], step: DimLike) -> DimLike:
        """Where in its ring the result of a step begins."""
        n = self.depth(key)
        number = self.bind((step + n - 1) % n, 0, n - 1) if n > 1 else 0
        return number * self.room(self.all)

    def bind(self, d: DimLike, lo: DimLike, hi: DimLike) -> DimLike:
        """``d``, computed once if it has to be computed."""
        if isinstance(d, int) or isinstance(d.atom(), str):
            return d
        name = self.k.let(self.k.b.index(d), range=(lo, hi)).attr[0]
        self.k.ranges[name] = (lo, hi)
        return sym(name)

    # -- one tile

    def task(self, number: Idx) -> None:
        k, chain = self.k, self.chain
        self.origin = [t * i - lo for t, i, lo in zip(self.plan.tile, number, self.low, strict=True)]
        for q, s in enumerate(chain.stages):
            for o, n in enumerate(s.outputs):
                self.rings[q, o] = k.alloc(n.dtype, self.depth((q, o)) * self.room(self.all))
        for q, s in enumerate(chain.stages):
            for x in chain.fixed(q):
                if x not in self.fixed:
                    self.fixed[x] = k.alloc(x.dtype, self.room(s.reads[x].axes))
        self.near = self.near_edges()
        if self.plan.sweep is None:
            self.copies_in(lambda axes: True)
            with k.loop(len(chain.steps), "seq", "s") as self.step:
                for q, s in enumerate(chain.stages):
                    self.stage(q, s)
            for key, n, low in self.plan.written:
                self.copy_out(key, n, low)
        else:
            self.sweep(self.plan.sweep)

    def sweep(self, sweep: Sweep) -> None:
        """All steps in one sweep over the bands of the tile: what a step reads is still in a near cache."""
        k, chain, last = self.k, self.chain, len(self.chain.steps) - 1
        self.copies_in(lambda axes: not self.windowed(axes))
        behind = sweep.slope * last + max(sweep.behind)
        with k.loop(ceildiv(self.length + behind, sweep.band), "seq", "b") as band, k.region():
            k.scopes[-1].guarded = True
            self.band = sweep.band * band
            self.copies_in(self.windowed)
            with k.loop(last + 1, "seq", "s") as self.step:
                for q, stage in enumerate(chain.stages):
                    self.band = sweep.band * band - sweep.slope * self.step - sweep.behind[q]
                    self.stage(q, stage)
            for key, n, low in self.plan.written:
                self.band = sweep.band * band - sweep.slope * key[2] - sweep.behind[key[0]]
                self.copy_out(key, n, low)

    def copies_in(self, wanted: Callable[[Sequence[int | None]], bool]) -> None:
        """Copies of the tensors along ``wanted`` axes that the tile depends on."""
        if wanted(self.all):
            for (q, o, step), x in self.chain.initial.items():
                self.copy_in(x, self.all, self.rings[q, o], self.slot((q, o), step))
        axes = {x: s.reads[x].axes for s in self.chain.stages for x in s.reads}
        for x, buffer in self.fixed.items():
            if wanted(axes[x]):
                self.copy_in(x, axes[x], buffer, 0)

    def in_window(self, a: int | None, rows: Iterable[DimLike]) -> None:
        """Before anything is read or written there: where the elements of the first axis lie."""
        if a == 0 and self.plan.sweep is not None:
            n = self.plan.sweep.window
            self.lines = {r: self.bind(r % n, 0, n - 1) for r in dict.fromkeys(rows)}

    def near_edges(self) -> Expr | None:
        """Is the tile so near to an edge that there is more to do than its middle?"""
        b = self.k.b
        out = None
        for a in self.all:
            if a in self.plan.rings or all(not s.edges[a].low and not s.edges[a].high for s in self.chain.stages):
                continue
            for low, behind in {(s.edges[a].low, s.edges[a].high - s.shape[a]) for s in self.chain.stages}:
                end = b.index(self.origin[a] + self.extent(a) + behind)
                one = b.or_(b.lt(b.index(self.origin[a]), low), b.gt(end, 0))
                out = one if out is None else b.or_(out, one)
        return None if out is None else self.k.let(out)

    def copy_in(self, x: Node, axes: Sequence[int | None], buffer: str, slot: DimLike) -> None:
        """What the tile depends on of a tensor in memory; a ring goes on beyond its ends."""
        k, name = self.k, self.k.buffer(self.ctx.name_of(x), x.dtype, x.shape)
        with k.region(), ExitStack() as stack:
            k.scopes[-1].guarded = True
            idx: list[DimLike] = []
            rows: list[DimLike] = []
            for n, a in zip(x.shape[:-1], axes[:-1], strict=True):
                i, r = self.along(stack, n, a)
                idx.append(i)
                rows.append(r)
            n, a = x.shape[-1], axes[-1]

            def move(i: DimLike, r: DimLike) -> None:
                v = k.b.load(name, k.tidy(linear_index((*idx, i), x.shape)), x.dtype)
                k.write(buffer, slot + self.at(axes, (*rows, r)), v)
            if a is None:
                move(0, 0)
                return
            start, first, count = self.inside(n, a)
            with k.loop(count, "vector", "l", self.plan.unit) as lane:
                move(start + lane, first + lane)
            if a in self.plan.rings:
                self.ghosts(n, a, move)

    def ghosts(self, n: DimLike, a: int, move: Callable[[DimLike, DimLike], None]) -> None:
        """What a ring's row has before its first element and behind its last, one by one."""
        k, b, high = self.k, self.k.b, self.plan.reach[a].high
        before = self.bind(dmax(-self.origin[a], 0), 0, self.low[a])
        behind = self.bind(dmin(dmax(self.origin[a] + self.sizes[a] - n, 0), high), 0, high)
        with k.loop(before + behind, "seq", "e") as e:
            past = b.max(b.min(b.index(n - self.origin[a] + e - before), self.sizes[a] - 1), 0)
            r = k.as_index(b.select(b.lt(b.index(e), b.index(before)), b.index(e), past), 0, self.sizes[a] - 1)
            move(self.bind((self.origin[a] + r) % n, 0, n - 1), r)

    def along(self, stack: ExitStack, n: DimLike, a: int | None) -> tuple[DimLike, DimLike]:
        """A loop over an outer axis of a tensor: the index in the tensor and in the buffer."""
        if a is None:
            return 0, 0
        if a not in self.plan.rings:
            start, first, count = self.inside(n, a)
            start, first, count = self.of_band(a, start, first, count, n)
            i = stack.enter_context(self.k.loop(count, "seq"))
            self.in_window(a, [first + i])
            return start + i, first + i
        end = self.bind(dmin(self.sizes[a], n - self.origin[a] + self.plan.reach[a].high), 0, self.sizes[a])
        r = stack.enter_context(self.k.loop(end, "seq"))
        return self.bind((self.origin[a] + r) % n, 0, n - 1), r

    def extent(self, a: int) -> int:
        """How far the tile and what it depends on reach along an axis."""
        return self.length if a == 0 else self.sizes[a]

    def of_band(self, a: int, start: DimLike, first: DimLike, count: DimLike, n: DimLike
                ) -> tuple[DimLike, DimLike, DimLike]:
        """What lies in the band of ``count`` elements, which begin at ``start`` in a tensor of size ``n`` and at
        ``first`` in the tile: where it begins in both, and how long it is."""
        if a or self.band is None or self.plan.sweep is None:
            return start, first, count
        ahead = start - first + self.band
        begin = self.bind(dmin(dmax(ahead, start), start + count, n), 0, n)
        end = self.bind(dmin(dmax(ahead + self.plan.sweep.band, begin), dmax(start + count, begin), n), begin, n)
        return begin, begin - start + first, end - begin

    def inside(self, n: DimLike, a: int) -> tuple[DimLike, DimLike, DimLike]:
        """The part of a tensor of size ``n`` that lies under the buffers: where it begins in the tensor and in the
        buffers, and how long it is."""
        start = self.bind(dmin(dmax(self.origin[a], 0), n), 0, n)
        first = self.bind(dmax(-self.origin[a], 0), 0, self.low[a])
        count = dmin(self.extent(a) - first, n - start)
        return start, first, self.bind(count, 0, count)

    def copy_out(self, key: tuple[int, int, int], n: Node, low: Sequence[int]) -> None:
        """What the tile owns of a result, or of ``n``, which begins at ``low`` in it."""
        k = self.k
        slot = self.slot(key[:2], key[2])
        with k.region(), ExitStack() as stack:
            k.scopes[-1].guarded = True
            idx: list[DimLike] = []
            rows: list[DimLike] = []
            for a, (size, tile) in enumerate(zip(n.shape, self.plan.tile, strict=True)):
                before: DimLike = 0
                start = self.origin[a] + self.low[a] - low[a]
                if low[a] or size != self.plan.extent[a]:
                    before = self.bind(dmax(-start, 0), 0, low[a])
                    start = self.bind(dmin(dmax(start, 0), size), 0, size)
                count = self.bind(dmax(dmin(tile - before, size - start), 0), 0, tile)
                start, first, count = self.of_band(a, start, self.low[a] + before, count, size)
                kind = ("vector", "l", self.plan.unit) if a == self.rank - 1 else ("seq", "i", 1)
                i = stack.enter_context(k.loop(count, *kind))
                idx.append(start + i)
                rows.append(first + i)
                self.in_window(a, rows)
            v = k.b.load(self.rings[key[:2]], slot + self.at(self.all, rows), n.dtype)
            k.write(self.ctx.name_of(n), linear_index(idx, n.shape), v)

    # -- one stage

    def stage(self, q: int, s: Stage) -> None:
        k = self.k
        with k.region():
            k.scopes[-1].guarded = True  # what a stage computes stays in its place
            body = _Body(self, q, s)
            parts = [self.part(q, s, a) for a in self.all]
            self.middle(s, parts, body)
            if self.near is None:
                self.around(s, parts, body)
            else:
                with k.if_(self.near):
                    self.around(s, parts, body)

    def part(self, q: int, s: Stage, a: int) -> Part:
        n, edges, reach, last = s.shape[a], s.edges[a], self.plan.reach[a], len(self.chain.steps) - 1
        lo = self.low[a] - reach.before[q] - reach.grow * (last - self.step)
        hi = self.low[a] + self.plan.tile[a] + reach.behind[q] + reach.grown * (last - self.step)
        most = (self.low[a] - reach.before[q] - reach.grow * last,
                self.low[a] + self.plan.tile[a] + reach.behind[q] + reach.grown * last)
        if a in self.plan.rings:
            start: DimLike = self.bind(lo, *most)
            end = self.bind(dmin(hi, n - self.origin[a] + hi - self.low[a] - self.plan.tile[a]), *most)
            return self.in_band(a, Part(start, start, end, end, most))
        start = self.bind(dmax(lo, -self.origin[a]), *most)
        end = self.bind(dmax(dmin(hi, n - self.origin[a]), start), *most)
        first = self.bind(dmax(dmin(edges.low - self.origin[a], end), start), *most) if edges.low else start
        behind = self.bind(dmax(dmin(n - edges.high - self.origin[a], end), first), *most) if edges.high else end
        return self.in_band(a, Part(start, first, behind, end, most))

    def in_band(self, a: int, p: Part) -> Part:
        """What of a part lies in the band."""
        if a or self.band is None or self.plan.sweep is None:
            return p
        lo = self.bind(dmin(dmax(self.band, p.most[0]), p.most[1]), *p.most)
        hi = self.bind(dmin(dmax(self.band + self.plan.sweep.band, p.most[0]), p.most[1]), *p.most)
        cut = {d: self.bind(dmin(dmax(d, lo), hi), *p.most) for d in dict.fromkeys((p.start, p.first, p.last, p.end))}
        return Part(cut[p.start], cut[p.first], cut[p.last], cut[p.end], p.most)

    def middle(self, s: Stage, parts: Sequence[Part], body: _Body) -> None:
        """Whole rows in whole vectors, as if nothing were near an edge."""
        k, unit, row = self.k, self.plan.unit, parts[-1]
        first = self.bind(row.start // unit, 0, row.most[1] // unit)
        last = self.bind(ceildiv(row.end, unit), 0, ceildiv(row.most[1], unit))
        with ExitStack() as stack:
            rows: list[DimLike] = []
            for a, p in enumerate(parts[:-1]):
                rows.append(p.start + stack.enter_context(body.loop(a, p.end - p.start, "seq")))
                self.in_window(a, [rows[0] + far for far in s.lines])
            block = stack.enter_context(k.loop(last - first, "seq", "j"))
            lane = stack.enter_context(body.loop(self.rank - 1, unit, "vector", unit))
            body.emit([*rows, unit * (first + block) + lane], None,
                      [(e.low, n - e.high - 1) for e, n in zip(s.edges, s.shape, strict=True)])

    def around(self, s: Stage, parts: Sequence[Part], body: _Body) -> None:
        """What lies near the edges, one piece after the other in the same loops: all of it before the middle along the
        first axis, then behind it, then what is left along the next.  The ends of rows are short: one by one."""
        pieces = [(a, side) for a, e in enumerate(s.edges) for side in (0, 1)
                  if (e.low, e.high)[side] and a not in self.plan.rings]
        end = self.rank - 1
        short = [(a, side) for a, side in pieces if a == end and max(s.edges[a].low, s.edges[a].high) <= SHORT]
        everywhere = [(0, n - 1) for n in s.shape]
        within = [(e.low, n - e.high - 1) for e, n in zip(s.edges[:-1], s.shape, strict=False)]
        self.pieces([p for p in pieces if p not in short], s, parts, body, everywhere, self.plan.unit // 2)
        self.pieces(short, s, parts, body, [*within, everywhere[-1]], 1)

    def pieces(self, pieces: Sequence[tuple[int, int]], s: Stage, parts: Sequence[Part], body: _Body,
               known: Sequence[tuple], unit: int) -> None:
        """Elements near an edge, ``unit`` of a row at once."""
        k = self.k
        if not pieces:
            return
        with k.loop(len(pieces), "seq", "e") as number, ExitStack() as stack:
            rows: list[DimLike] = []
            for a, p in enumerate(parts):
                lows = [p.first if a < b else p.start if a > b or not side else p.last for b, side in pieces]
                highs = [p.last if a < b else p.end if a > b or side else p.first for b, side in pieces]
                lo, hi = self.choose(number, lows, p), self.choose(number, highs, p)
                if a < self.rank - 1:
                    rows.append(lo + stack.enter_context(body.loop(a, hi - lo, "seq")))
                    self.in_window(a, [rows[0] + far for far in s.lines])
            if unit == 1:
                i = stack.enter_context(body.loop(self.rank - 1, hi - lo, "seq"))
                body.emit([*rows, lo + i], None, known)
                return
            block = stack.enter_context(k.loop(ceildiv(hi - lo, unit), "seq", "j"))
            lane = stack.enter_context(body.loop(self.rank - 1, unit, "vector", unit))
            where = k.b.lt(k.b.index(lane), k.b.index(hi - lo - unit * block))
            body.emit([*rows, lo + unit * block + lane], where, known)

    def choose(self, number: DimLike, values: Sequence[DimLike], p: Part) -> DimLike:
        """The value of that number."""
        k, b = self.k, self.k.b
        if isinstance(number, int) or all(v == values[0] for v in values):
            return values[0]
        out = b.index(values[-1])
        for i in range(len(values) - 2, -1, -1):
            if values[i] != values[i + 1]:
                out = b.select(b.lt(b.index(number), i + 1), b.index(values[i]), out)
        return k.as_index(out, *p.most)


class _Body:
    """The elements of a stage.  Expressions are built at indices that are names, of which is known what holds away
    from edges or near them; then the names are replaced by the positions they stand for."""

    def __init__(self, tiles: _Tiles, q: int, s: Stage):
        self.tiles, self.k, self.q, self.s = tiles, tiles.k, q, s
        self.names = [self.k.fresh("x") for _ in s.shape]
        self.depth, self.begin = len(self.k.scopes) - 1, len(self.k.scopes[-1].stmts)
        self.from_ring = {}
        for x, source in tiles.chain.sources[q].items():
            key = source.stage, source.output
            self.from_ring[x] = tiles.rings[key], tiles.slot(key, tiles.step - source.back)
        self.into = [(tiles.rings[q, o], tiles.slot((q, o), tiles.step)) for o in range(len(s.outputs))]

    @contextmanager
    def loop(self, a: int, extent: DimLike, kind: str, width: int = 1) -> Iterator[DimLike]:
        """A loop along an axis: what depends on the axis's name belongs inside of it."""
        with self.k.loop(extent, kind, "l" if width > 1 else "i", width) as i:
            self.k.scopes[-1].names.add(self.names[a])
            yield i

    def emit(self, rows: Sequence[DimLike], where: Expr | None, known: Sequence[tuple]) -> None:
        tiles, k = self.tiles, self.k
        k.ranges.update(zip(self.names, known, strict=True))
        inl = _inliner(k, self.s, tiles.ctx)
        for x in self.s.reads:
            inl.bound[x] = self.reader(x, rows)
        for x, (padded, low) in self.s.inner.items():
            inl.bound[x] = self.reader(padded, rows, low)
        values = [inl.value(n, tuple(map(sym, self.names))) for n in self.s.outputs]
        for v, (name, slot) in zip(values, self.into, strict=True):
            k.write(name, slot + tiles.at(tiles.all, rows), v, where)
        place = {n: at + r for n, at, r in zip(self.names, tiles.origin, rows, strict=True)}
        for i, scope in enumerate(k.scopes[self.depth:]):
            start = 0 if i else self.begin
            scope.stmts[start:] = map_dims(scope.stmts[start:], lambda d: substitute(d, place))
        for n in self.names:
            del k.ranges[n]
        self.names = [k.fresh("x") for _ in self.names]

    def reader(self, x: Node, rows: Sequence[DimLike], low: Sequence[int] = ()) -> Callable[[Idx, Expr | None], Expr]:
        """Loads of ``x``, or of what lies in it from ``low`` on."""
        tiles, b, axes = self.tiles, self.k.b, self.s.reads[x].axes
        name, slot = self.from_ring[x] if x in self.from_ring else (tiles.fixed[x], 0)

        def read(idx: Idx, where: Expr | None) -> Expr:
            idx = tuple(i + lo for i, lo in zip(idx, low, strict=True)) if low else idx
            at = [0 if a is None else rows[a] + (i - sym(self.names[a])) for i, a in zip(idx, axes, strict=True)]
            return b.load(name, slot + tiles.at(axes, at), x.dtype)
        return read


class _Rings(Inliner):
    """Values of nodes where some take an axis for a ring: no condition is left of it."""

    wraps: dict[Node, Wrap]

    def _compute(self, node: Node, idx: Idx, where: Expr | None) -> Expr:
        w = self.wraps.get(node)
        if w is None:
            return super()._compute(node, idx, where)
        return self.value(w.source, tuple(i + by for i, by in zip(idx, w.by, strict=True)), where)


def _inliner(k: KernelBuilder, s: Stage, ctx: Context) -> _Rings:
    plain = inliner(k, s.group, ctx)
    out = _Rings(k, plain.members, plain.name_of, plain.uses)
    out.wraps, out.ops = s.wraps, DecidedOps(k)
    return out
