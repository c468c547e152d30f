"""Columns of a row that a condition on positions leaves out: what a causal or a banded mask hides is not computed.

Here: where such conditions change (``find_cuts``), what a block of rows and a row of it skip (``Margins``).
Not here: the loops that skip (rowblocks.py, reductions.py).

A comparison of positions that is linear in row and column has one value from some column on, the *cut*, and the other
before it.  If all that a row kernel makes of a row is the same for every column beyond the cut (the product that the
row comes from does not occur in it), these columns are a *margin*: their products are not computed, a maximum takes
their one value once, and a sum takes them only if that value is not zero, which is tested for every row.  So a row with
no column left, and a mask that is a large finite number, give what they give without margins.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence

from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv, dmax, dmin, linear, substitute, sym, symbols
from flowc.graph import Node
from flowc.kernel import Expr, mentions
from flowc.op import Reduction
from flowc.passes.fuse import Group
from flowc.passes.inline import DecidedOps, Idx, Inliner, KernelBuilder, Scope, as_size
from flowc.passes.lowering import Context, named, nest
from flowc.passes.problem import Problem
from flowc.proofs import bounds
from flowc.types import DType, bool_, i64

ONCE = frozenset({"reduce_max", "reduce_min", "reduce_and", "reduce_or"})  # taking a value twice changes nothing
BEYOND = "beyond."  # a column of a margin
FAR = 1 << 40       # numbers beyond it are not taken for positions: arithmetic could wrap
_POSITIONS: dict[str, Callable[..., DimLike]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg}
_HOLDS = {"i32": (1 << 31) - 1, "f32": 1 << 24, "f64": 1 << 53}  # positions up to here are exact in a dtype
_TURNED = {"le": "ge", "lt": "gt", "ge": "le", "gt": "lt"}


@dataclass(frozen=True)
class Cut:
    """``at``: the first column of the later part, a size over ``Cuts.names``; ``grows``: with the row, or it falls;
    ``later``: is the margin the part from there on, or the one before?"""

    at: DimLike
    grows: bool
    later: bool


@dataclass(frozen=True)
class Cuts:
    """At most one cut on either side.  ``names``: the indices of a row, over which they are written."""

    names: Idx
    low: Cut | None
    high: Cut | None


def _change(op: str, gap: DimLike, column: str) -> tuple[DimLike, bool, DimLike] | None:
    """The column from which on ``gap op 0`` has one value, that value, and what the column grows with."""
    parts = linear(gap, column)
    c, rest = parts or (0, 0)
    if not isinstance(c, int) or c == 0:
        return None
    if c < 0:
        op, c, rest = _TURNED[op], -c, -rest
    return (-rest) // c + 1 if op in ("le", "gt") else ceildiv(-rest, c), op in ("gt", "ge"), -rest


class _Beyond(DecidedOps):
    """Operations at the column BEYOND: comparisons that change at ``at`` are decided; ``changes``: where others do,
    and what that grows with."""

    def __init__(self, k: KernelBuilder, at: DimLike | None = None, later: bool = True):
        super().__init__(k)
        self.at, self.later = at, later
        self.changes: dict[DimLike, DimLike] = {}

    def emit(self, op: str, *args) -> Expr:
        b = self._k.b
        if op in _POSITIONS:
            sizes = [as_size(a) for a in args]
            far = any(x is None or isinstance(x, int) and abs(x) > FAR for x in sizes)
            return b.emit(op, *args) if far else b.index(_POSITIONS[op](*sizes))
        if op in _TURNED:
            x, y = map(self.size, args)
            change = None if x is None or y is None else _change(op, x - y, BEYOND)
            if change is not None and change[0] == self.at:
                return b.const(change[1] is self.later, bool_)
            if change is not None:
                self.changes[change[0]] = change[2]
        elif op in ("eq", "ne"):  # a triangle of numbers as a mask
            x, y = (a.attr if isinstance(a, Expr) and a.op == "const" else a for a in args)
            if not isinstance(x, Expr) and not isinstance(y, Expr):
                return b.const((x == y) is (op == "eq"), bool_)
        return super().emit(op, *args)

    def __getattr__(self, name: str):
        return functools.partial(self.emit, name) if name in _POSITIONS else super().__getattr__(name)

    def cast(self, x: Expr, dtype: DType) -> Expr:
        b = self._k.b
        if x.op != "const" or x.dtype is not bool_:
            return b.cast(x, dtype)
        return b.const(x.attr, dtype)

    def size(self, x: Expr | int) -> DimLike | None:
        """The position that an operand is, also one that is written in another dtype, which can hold it."""
        if isinstance(x, Expr) and x.op == "cast" and x.dtype.name in _HOLDS and (d := as_size(x.args[0])) is not None:
            low, high = bounds(d, self.ranges)
            return d if low is not None and high is not None and max(-low, high) <= _HOLDS[x.dtype.name] else None
        return as_size(x)


class _Inside:
    """Values of a row kernel's nodes at any column of a margin.  ``a``: what the row is made from; it varies."""

    def __init__(self, k: KernelBuilder, row: Group, a: Node, ctx: Context, ops: _Beyond):
        self.k = k
        self.inl = Inliner(k, set(row.members), ctx.name_of, {x: 1 for n in row.members for x in (n, *n.inputs)})
        self.inl.ops = ops
        self.inl.bound[a] = lambda idx, where: k.b.load("product", idx[-1], a.dtype)

    def bind(self, node: Node, v: Expr) -> None:
        self.inl.bound[node] = lambda idx, where: v

    def value(self, node: Node, o: Idx) -> Expr | None:
        """None if it is not one value."""
        k, scope = self.k, Scope(names={BEYOND})
        outside, known = k.scopes, k.known
        k.scopes, k.known = [scope], {}  # nothing is bound outside, nor known from there: positions remain visible
        v = self.inl.value(node, (*o, sym(BEYOND)))
        k.scopes, k.known = outside, known
        return None if scope.stmts or BEYOND in mentions(v) else v


def find_cuts(row: Group, a: Node, p: Problem, ctx: Context) -> Cuts | None:
    """The cuts of the rows of ``a``, which the product ``p`` makes and the group ``row`` reduces."""
    inside = row.space[row.outer:]
    if (len(p.row_extents) != 1 or len(inside) != 1
            or any(n.op.name not in (*ONCE, "reduce_sum") for n in row.reductions)):
        return None

    def probe(at: DimLike | None, later: bool) -> tuple[Idx, _Beyond, list[Expr | None]]:
        """What the values of a row are beyond a cut.  Each time from scratch: builders remember values."""
        k = ctx.builder("probe")
        k.ranges[BEYOND] = (0, inside[0] - 1)
        with nest(k, p.outer_extents, "seq", "o") as outer, k.loop(p.m, "seq", "r") as r:
            o, ops = p.out_index(outer, r, 0)[:-1], _Beyond(k, at, later)
            beyond = _Inside(k, row, a, ctx, ops)
            for i, n in enumerate(row.reductions):
                beyond.bind(n, k.b.ref(f"reduced.{i}", n.dtype))
            return o, ops, [beyond.value(n, o) for n in (*(n.inputs[0] for n in row.reductions), *_full(row))]

    o, seen, _ = probe(None, True)
    high, low = (_first(seen.changes, o[-1], later, lambda at, later: probe(at, later)[2]) for later in (True, False))
    if high and low and high[1] != low[1]:
        low = None
    return Cuts(o, low and low[0], high and high[0]) if high or low else None


def _first(changes: Mapping[DimLike, DimLike], row: DimLike, later: bool,
           values: Callable[[DimLike, bool], list[Expr | None]]) -> tuple[Cut, list[Expr | None]] | None:
    """The first cut with a margin on one side, and the values there."""
    for at, grows in changes.items():
        parts = linear(grows, next(iter(symbols(row)), ""))
        if parts is not None and isinstance(parts[0], int):
            got = values(at, later)
            if None not in got:
                return Cut(at, parts[0] >= 0, later), got
    return None


def _full(row: Group) -> list[Node]:
    return [n for n in row.outputs if n.rank > row.outer]


class Margins:
    """The margins of a block of rows: all of the ``n`` columns but ``low`` .. ``high`` - 1.  ``first``, ``last``: the
    indices of its first row and of its last."""

    def __init__(self, k: KernelBuilder, cuts: Cuts, n: int, first: Idx, last: Idx):
        self.k, self.cuts, self.n = k, cuts, n
        k.ranges[BEYOND] = (0, n - 1)

        def column(cut: Cut, widest: bool) -> DimLike:
            return dmin(dmax(self.at(cut, last if cut.grows is widest else first), 0), n)
        self.high: DimLike = n if cuts.high is None else named(k, column(cuts.high, True), n)
        self.low: DimLike = 0 if cuts.low is None else named(k, dmin(column(cuts.low, False), self.high), n)
        self.idle = k.acc(i64, k.b.const(1, i64))  # 1 while all rows are zero in the margins

    def at(self, cut: Cut, o: Idx) -> DimLike:
        return substitute(cut.at, {next(iter(symbols(name))): i for name, i in zip(self.cuts.names, o, strict=True)
                                   if symbols(name)})

    def row(self, group: Group, a: Node, o: Idx, ctx: Context) -> RowMargins:
        cut = self.cuts.high or self.cuts.low
        assert cut is not None
        return RowMargins(self, _Inside(self.k, group, a, ctx, _Beyond(self.k, self.at(cut, o), cut.later)), o)


class RowMargins:
    """The margins of one row, while it is walked."""

    def __init__(self, of: Margins, inside: _Inside, o: Idx):
        self.of, self.k, self.inside, self.o = of, of.k, inside, o
        self.lets: dict[Node, Expr] = {}

    def value(self, node: Node) -> Expr:
        if node not in self.lets:
            v = self.inside.value(node, self.o)
            assert v is not None, f"{node} varies in a margin"
            self.lets[node] = self.k.let(v)
        return self.lets[node]

    def blocks(self, lanes: int) -> tuple[DimLike, DimLike]:
        """The blocks of columns, of ``lanes`` each, that have something outside of the margins."""
        return self.of.low // lanes, dmin(ceildiv(self.of.high, lanes), self.of.n // lanes)

    def walked(self, batch: Sequence[Node], lanes: int) -> tuple[DimLike, DimLike]:
        """The blocks that a batch of reductions walks: all of them, if a sum is not zero in the margins."""
        b, whole = self.k.b, self.of.n // lanes
        first, last = self.blocks(lanes)
        zero = [b.eq(b.cast(self.value(n.inputs[0]), n.dtype), b.const(0, n.dtype))
                for n in batch if n.op.name not in ONCE]
        if not zero:
            return first, last
        all_zero = self.k.let(functools.reduce(b.and_, zero))
        start = 0 if self.of.cuts.low is None else self.k.as_index(
            b.select(all_zero, b.index(first), b.const(0, i64)), 0, whole)
        return start, self.k.as_index(b.select(all_zero, b.index(last), b.const(whole, i64)), 0, whole)

    def complete(self, node: Node, state: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The state of a reduction with what the margins add to it."""
        if node.op.name not in ONCE:
            return state
        lower, b = node.op.lower, self.k.b
        assert isinstance(lower, Reduction)
        more = lower.combine(b, state, lower.enter(b, self.value(node.inputs[0]), b.const(0, i64)))
        some = b.lt(b.index(self.of.high - self.of.low), b.const(self.of.n, i64))
        return tuple(b.select(some, x, y) for x, y in zip(more, state, strict=True))

    def bind(self, node: Node, v: Expr) -> None:
        self.inside.bind(node, v)

    def written(self, lanes: int) -> tuple[DimLike, DimLike]:
        """The columns that are computed one by one."""
        low, high = self.of.low // lanes * lanes, dmin(ceildiv(self.of.high, lanes) * lanes, self.of.n)
        return named(self.k, low, self.of.n), named(self.k, high, self.of.n)

    def fill(self, node: Node, lanes: int, start: DimLike, end: DimLike, write: Callable[[Node, Idx, Expr], None]
             ) -> None:
        """Write the columns before ``start`` and from ``end`` on."""
        k, b = self.k, self.k.b
        v = k.let(self.value(node))
        for first, count in ((0, start), (end, self.of.n - end)):
            if isinstance(count, int) and count == 0:
                continue
            with k.loop(count, "vector", "f", lanes) as j:
                write(node, (*self.o, first + j), v)
        k.set(self.of.idle, b.select(b.eq(v, b.const(0, v.dtype)), k.get(self.of.idle), b.const(0, i64)))
