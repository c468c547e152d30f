"""Maps that read across the grain: operands whose neighbours lie along another axis than the result's.

Here: finding them, and the tiles that read whole rows of such an operand and turn them in registers.
Not here: other maps (segments.py), the shuffles (backends/llvm/emit_interleave.py).  Read next: segments.py.

Let ``b`` be the innermost axis of the result and ``a`` the axis along which an operand is contiguous.  A piece of the
work is a tile of (a, b).  Inside it ``b`` runs as lanes and some neighbouring ``a`` are unrolled: their loads are
columns of a table whose rows the emitter loads whole.  A long body is not written once for every ``a``; there the
operand is first turned into a local tile, from which the body then reads along the grain.  Where the result has only
few places along ``b``, ``a`` runs as lanes instead and the stores are the columns.

Memory is fast in long runs: a tile is long along ``a`` and goes along it first, so that what fetches ahead sees a few
rows and stays with them; the other way round where all of ``a`` is short or other operands lie along ``b``.  The
result is then written a line here and a line there, which costs nothing where lines begin with a row and every store
fills one (emit_stream.py); pieces of ``b`` therefore begin with a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce

from flowc.dataclass import dataclass, replace
from flowc.dims import DimLike, ceildiv, dmin, linear, substitute, sym, symbols
from flowc.kernel import Alloc, Expr, If, Kernel, Let, Loop, Stmt, Store, expressions, parts
from flowc.passes.records import fields_apart
from flowc.passes.rewriting import map_dims
from flowc.passes.schedule import Machine, MapSchedule, collapse
from flowc.passes.segments import tile_map
from flowc.proofs import simplify
from flowc.types import bool_, i64

TILE = 64     # places of a tile that a long body reads, along either axis
LINE = 64     # bytes that memory moves at once
RUN = 4096    # bytes of an operand's row in one piece where every store fills a line
WIDE = 1024   # the same where it does not
TALL = 256    # bytes of the result's row in one piece, then
SHORT_ROW = 64  # places along ``a`` of tiles that go along ``b`` first
FEW = 16      # places along the innermost axis at which the stores are columns
SHORT = 6     # instructions of a body that is written once for every unrolled place


@dataclass(frozen=True)
class Turn:
    """Axis ``a`` (position in the nest) is the grain of ``loads``; ``columns``: neighbouring places turned at once."""

    a: int
    loads: tuple[Expr, ...]
    columns: int


def turned_map(kernel: Kernel, sched: MapSchedule, machine: Machine) -> Kernel:
    """``tile_map``, with nests that read across the grain cut into square tiles."""
    body = collapse(kernel.body)
    out: list[Stmt] = []
    note = ""
    for s in body:
        loops, inner = _nest(s)
        turn = _grain(loops, inner, kernel) if loops else None
        if turn is None:
            apart = fields_apart(kernel, loops, inner, sched, machine)
            note = note if apart is None else "records: fields apart"
            out.append(apart or s)
            continue
        cut = _Cut(kernel, loops, inner, turn, machine, sched)
        out.append(cut.tiles())
        note = f"turned: {turn.columns} columns of {', '.join(sorted({e.attr[0] for e in turn.loads}))}"
    if not note:
        return tile_map(kernel, sched)
    return replace(kernel, body=tuple(out), notes=(*kernel.notes, note))


def _nest(s: Stmt) -> tuple[list[Loop], tuple[Stmt, ...]]:
    """The loops of a rectangular parallel nest and its body; no loops if it is none, or its body has more."""
    loops: list[Loop] = []
    body: tuple[Stmt, ...] = (s,)
    while len(body) == 1 and isinstance(body[0], Loop):
        loop = body[0]
        if loop.kind != "parallel" or symbols(loop.extent) & {v.var for v in loops}:
            return [], ()
        loops.append(loop)
        body = loop.body
    return (loops, body) if all(isinstance(x, (Let, Store)) for x in body) else ([], ())


def _grain(loops: Sequence[Loop], body: Sequence[Stmt], kernel: Kernel) -> Turn | None:
    """The axis that most loads run along which are scattered along the innermost one."""
    if len(loops) < 2:
        return None
    b, known = loops[-1].var, {v.var for v in loops} | set(kernel.dims)
    found: dict[int, list[Expr]] = {}
    for e in _loads(body):
        at = linear(e.attr[1], b)
        if e.args or at is None or at[0] in (-1, 0, 1) or not symbols(e.attr[1]) <= known:
            continue
        for k, v in enumerate(loops[:-1]):
            along = linear(e.attr[1], v.var)
            if along is not None and along[0] == 1:
                found.setdefault(k, []).append(e)
    if not found:
        return None
    a = max(found, key=lambda k: len(found[k]))
    if len({e.dtype.bytes for e in found[a]}) != 1:
        return None
    size = found[a][0].dtype.bytes
    columns = max(min(LINE // size, 16), 16 // size)
    extent = loops[a].extent
    if isinstance(extent, int) and extent < columns:
        columns = 1 << (extent.bit_length() - 1)
        if columns < 16 // size:
            return None
    return Turn(a, tuple(dict.fromkeys(found[a])), columns)


def _loads(body: Sequence[Stmt]) -> list[Expr]:
    return [e for s in body for root in expressions(s) for e in parts([root]) if e.op == "load"]


class _Cut:
    """The tiles of one nest."""

    def __init__(self, kernel: Kernel, loops: Sequence[Loop], body: tuple[Stmt, ...], turn: Turn, machine: Machine,
                 sched: MapSchedule):
        self.kernel, self.loops, self.body, self.turn = kernel, loops, body, turn
        self.machine, self.sched = machine, sched
        self.a, self.b = loops[turn.a], loops[-1]
        self.ranges = {**dict(kernel.ranges), **{v.var: (0, v.extent - 1) for v in loops}}
        self.taken = set(kernel.dims) | {v.var for v in loops}
        written = {s.buffer for s in body if isinstance(s, Store)}
        self.stored = [p for p in kernel.params if p.name in written]

    def tiles(self) -> Stmt:
        others = [v for v in self.loops if v is not self.a and v is not self.b]
        few = isinstance(self.b.extent, int) and self.b.extent * self.turn.loads[0].dtype.bytes < LINE
        inside = self.few() if few else self.square()
        for v in reversed(others):
            inside = replace(v, body=(inside,))
        return inside

    def fresh(self, stem: str) -> str:
        while stem in self.taken:
            stem += "t"
        self.taken.add(stem)
        return stem

    def lanes(self, size: int) -> int:
        """Lanes of a body whose widest values have ``size`` bytes: a line of the result, unless it is too many."""
        register = max(self.machine.vector_bits // 8 // size, LINE // 4 // size)
        line = LINE // max(p.dtype.bytes for p in self.stored)
        return max(register, min(line, 2 * register))

    def fitting(self, width: int) -> int:
        return min(width, 1 << (self.b.extent.bit_length() - 1)) if isinstance(self.b.extent, int) else width

    def few(self) -> Stmt:
        """Few places along ``b``: ``a`` runs as lanes, the stores are columns."""
        size = max(p.dtype.bytes for p in self.kernel.params)
        first, count, at = self.pieces(self.a, TILE * TILE)
        body = self.moved({self.a.var: first + sym(self.a.var)}, self.body)
        inner = Loop(self.b.var, self.b.extent, "unroll", body)
        lanes = Loop(self.a.var, count, "vector", (inner,), self.lanes(size))
        return Loop(at.var, at.extent, "parallel", (lanes,))

    def pieces(self, v: Loop, tile: int, unit: int = 1) -> tuple[DimLike, DimLike, Loop]:
        """First place and number of places of the piece that a new parallel loop over ``v`` counts: pieces of about
        ``tile`` places that begin at multiples of ``unit``.  ``tile`` has several units or all units are whole, so
        that none but an only piece is shorter than a unit."""
        at, n = self.fresh(v.var + "t"), ceildiv(v.extent, tile)
        self.ranges[at] = (0, n - 1)
        if isinstance(v.extent, int) and v.extent <= tile:
            return 0, v.extent, Loop(at, 1, "parallel", ())
        if isinstance(v.extent, int) and v.extent % tile == 0:
            return tile * sym(at), tile, Loop(at, n, "parallel", ())
        units = ceildiv(v.extent, unit)
        first, end = (unit * (units * k // n) for k in (sym(at), sym(at) + 1))
        if not isinstance(v.extent, int) or v.extent % unit:
            end = dmin(v.extent, end)
        return first, end - first, Loop(at, n, "parallel", ())

    def moved(self, to: dict[str, DimLike], body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return map_dims(body, lambda d: simplify(substitute(d, to), self.ranges))

    def square(self) -> Stmt:
        count = len({id(x) for s in self.body for e in expressions(s) for x in parts([e]) if x.args})
        widest = max(p.dtype.bytes for p in self.kernel.params)
        width = self.fitting(self.lanes(widest))
        run, tall = self.tile(width) if count <= SHORT else (TILE, TILE)
        first_a, na, over_a = self.pieces(self.a, run, min(self.turn.columns, run // 2))
        first_b, nb, over_b = self.pieces(self.b, tall, min(width, tall))

        def place(a: DimLike, b: DimLike) -> dict[str, DimLike]:
            return {self.a.var: first_a + a, self.b.var: first_b + b}

        if count <= SHORT:
            body = self.turning(lambda a, b: self.moved(place(a, b), self.body), na, nb, width)
        else:
            body = self.through_tiles(place, na, nb)
        return replace(over_b, body=(replace(over_a, body=body),))

    @cached_property
    def along_b(self) -> bool:
        """Do tiles go along ``b`` first?  There the rows of other operands are long."""
        a, b = self.a.var, self.b.var
        others = any((linear(e.attr[1], b) or (0,))[0] == 1 and a in symbols(e.attr[1]) for e in _loads(self.body))
        return others or isinstance(self.a.extent, int) and self.a.extent <= SHORT_ROW

    def tile(self, width: int) -> tuple[int, int]:
        """Places of a piece along ``a`` and along ``b``."""
        read, written = self.turn.loads[0].dtype.bytes, max(p.dtype.bytes for p in self.stored)
        if self.along_b:
            return SHORT_ROW, max(4 * TALL // written, 2 * width)
        if isinstance(self.b.extent, int) and self.b.extent * written % LINE == 0 and self.b.extent % width == 0:
            return RUN // read, width
        return WIDE // read, max(TALL // written, 2 * width)

    def turning(self, make: Callable[[DimLike, DimLike], tuple[Stmt, ...]], na: DimLike, nb: DimLike, width: int
                ) -> tuple[Stmt, ...]:
        """``make(a, b)`` for all places of a piece: groups of columns unrolled inside full vectors.  The last group
        and the last vector begin early enough to be whole; what they do twice has the same result."""
        k, a, b = self.turn.columns, sym(self.a.var), sym(self.b.var)
        over_a, over_b = self.fresh(self.a.var + "g"), self.fresh(self.b.var + "g")
        groups = [Loop(over_b, ceildiv(nb, width), "seq", ()), Loop(over_a, ceildiv(na, k), "seq", ())]
        if self.along_b:
            groups.reverse()
        for g in groups:
            self.ranges[g.var] = (0, g.extent - 1)
        self.ranges[self.a.var], self.ranges[self.b.var] = (0, k - 1), (0, width - 1)
        body = make(_from(sym(over_a), k, na) + a, _from(sym(over_b), width, nb) + b)
        inner: Stmt = Loop(self.b.var, width, "vector", (Loop(self.a.var, k, "unroll", body),), width)
        for g in reversed(groups):
            inner = replace(g, body=(inner,))
        fits = [_at_least(n, least) for n, least, v in ((na, k, self.a), (nb, width, self.b))
                if not isinstance(v.extent, int)]
        if not fits:
            return (inner,)
        self.ranges[self.a.var], self.ranges[self.b.var] = (0, na - 1), (0, nb - 1)
        plain = Loop(self.a.var, na, "seq", (Loop(self.b.var, nb, "vector", make(a, b), width),))
        return (If(reduce(lambda p, q: Expr("and", (p, q), bool_), fits), (inner,), (plain,)),)

    def through_tiles(self, place: Callable[[DimLike, DimLike], dict[str, DimLike]], na: DimLike, nb: DimLike
                      ) -> tuple[Stmt, ...]:
        """Each operand is turned into a tile of its own; the body is written once and reads the tiles."""
        out: list[Stmt] = []
        table: dict[Expr, Expr] = {}
        a, b = sym(self.a.var), sym(self.b.var)
        for e in self.turn.loads:
            tile = self.fresh("turned")
            out.append(Alloc(tile, e.dtype, TILE * TILE))
            table[e] = Expr("load", (), e.dtype, (tile, TILE * a + b))

            def fill(a: DimLike, b: DimLike, e: Expr = e, tile: str = tile) -> tuple[Stmt, ...]:
                (moved,) = _loads(self.moved(place(a, b), (Store(tile, 0, e),)))
                return (Store(tile, TILE * a + b, moved),)
            out += self.turning(fill, na, nb, self.fitting(self.lanes(e.dtype.bytes)))
        # the tiles are indexed by the places inside the piece, everything else by the places of the nest
        inside = {self.a.var: sym(self.a.var + ".in"), self.b.var: sym(self.b.var + ".in")}
        body = self.moved(place(*inside.values()), _swapped(self.body, table, inside))
        back = {f"{v.var}.in": sym(v.var) for v in (self.a, self.b)}
        return (*out, Loop(self.a.var, na, "seq", (
            Loop(self.b.var, nb, "vector", map_dims(body, lambda d: substitute(d, back)), self.sched.width),)))


def _from(group: DimLike, size: int, count: DimLike) -> DimLike:
    """Where a group of ``size`` among ``count`` places begins."""
    even = count % size == 0
    return size * group if even else dmin(size * group, count - size)


def _at_least(n: DimLike, least: int) -> Expr:
    size = Expr("index", (), i64, n) if not isinstance(n, int) else Expr("const", (), i64, n)
    return Expr("ge", (size, Expr("const", (), i64, least)), bool_)


def _swapped(stmts: Sequence[Stmt], table: Mapping[Expr, Expr], inside: Mapping[str, DimLike]) -> tuple[Stmt, ...]:
    """The statements with the loads of ``table`` replaced, these at the places ``inside``."""
    done: dict[Expr, Expr] = {e: Expr("load", (), t.dtype, (t.attr[0], substitute(t.attr[1], inside)))
                              for e, t in table.items()}

    def expr(root: Expr) -> Expr:
        stack = [root]
        while stack:
            x = stack[-1]
            if x in done:
                stack.pop()
                continue
            missing = [y for y in x.args if y not in done]
            if missing:
                stack.extend(missing)
                continue
            args = tuple(done[y] for y in x.args)
            done[x] = x if all(p is q for p, q in zip(args, x.args, strict=True)) else Expr(x.op, args, x.dtype, x.attr)
            stack.pop()
        return done[root]

    def stmt(s: Stmt) -> Stmt:
        if isinstance(s, Store):
            return replace(s, value=expr(s.value), where=None if s.where is None else expr(s.where))
        return replace(s, value=expr(s.value)) if isinstance(s, Let) else s

    return tuple(map(stmt, stmts))
