"""Sorting along an axis.

Here: sort, argsort.  Not here: searching (numpy_more.py).  Read next: scan.py.

Elements are compared by an unsigned key.  ``sort`` orders all bit patterns, -0 before +0 and NaN last: its keys are the
elements in another form, so that equal ones need no order.  ``argsort`` is stable: both zeros have one key, and so have
all NaN.

Many short rows are sorted side by side as lanes, by a network that exchanges the same places in all of them; positions
are the low bits of what is exchanged.  A long row is sorted by the digits of its keys, the lowest first: counted, then
moved to where its digit begins; a digit that is the same everywhere moves nothing.  In a lone short row every element
counts those that come before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import Expr
from flowc.op import General
from flowc.ops.rules import EXACT, add_up, declare, in_f32, n, need_axis
from flowc.ops.samples import calls
from flowc.ops.scan import WIDTH, nest, unravelled
from flowc.types import BOOLS, DTYPES, REALS, DType, Type, dtype, i64

DIGIT = 8              # bits of a key that one pass sorts by
BINS = 1 << DIGIT
SHORT = 64             # elements of a lone row where each counts those before it
ROWS = 16              # that are sorted side by side
FEW_ROWS = 6           # too few to be sorted side by side
NETWORK = 2048         # elements of rows that are sorted side by side, at most
_INFINITY = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F80_0000, "f64": 0x7FF0_0000_0000_0000}

# ---- keys -----------------------------------------------------------------------------------------------------------


def key_type(d: DType) -> DType:
    return DTYPES[f"u{d.bits}"]


def sort_key(b: Any, x: Expr, stable: bool) -> Expr:
    """An unsigned integer that increases with ``x``; ``stable``: the same for both zeros and for every NaN, else
    different for different bits."""
    d, kind = x.dtype, key_type(x.dtype)
    sign = 1 << (d.bits - 1)
    if d.kind == "b":
        return b.cast(x, kind)
    if d.kind == "u":
        return x
    bits = b.bitcast(x, kind)
    if d.kind == "i":
        return b.xor(bits, sign)
    if stable:
        bits = b.select(b.eq(bits, sign), 0, bits)
    ordered = b.xor(bits, b.or_(_all_if_negative(b, bits), sign))
    if not stable:  # NaN of negative sign turn from the least keys into the largest
        return b.sub(ordered, sign - 1 - _INFINITY[d.name])
    nan = b.gt(b.and_(bits, sign - 1), _INFINITY[d.name])
    return b.select(nan, b.const(2 * sign - 1, kind), ordered)


def _element(b: Any, key: Expr, d: DType) -> Expr:
    """The element of a key that is not ``stable``."""
    sign = 1 << (d.bits - 1)
    if d.kind == "b":
        return b.cast(key, d)
    if d.kind == "u":
        return key
    if d.kind == "i":
        return b.bitcast(b.xor(key, sign), d)
    ordered = b.add(key, sign - 1 - _INFINITY[d.name])
    return b.bitcast(b.xor(ordered, b.or_(_all_if_negative(b, b.not_(ordered)), sign)), d)


def _all_if_negative(b: Any, bits: Expr) -> Expr:
    """All ones where the highest bit is set, else zero."""
    width = bits.dtype.bits
    return b.bitcast(b.shr(b.bitcast(bits, DTYPES[f"i{width}"]), width - 1), bits.dtype)


def _total_order(x: np.ndarray, axis: int) -> np.ndarray:
    """``x`` sorted by all of its bits, as sort_key orders them."""
    name = dtype(x.dtype).name
    if name not in _INFINITY:
        return np.sort(x, axis)
    bits = x.view(f"u{x.dtype.itemsize}")
    kind, sign = bits.dtype.type, 1 << (8 * bits.dtype.itemsize - 1)
    ends, negative = kind(sign - 1 - _INFINITY[name]), kind(sign)
    keys = np.sort(np.where(bits & negative, ~bits, bits | negative) - ends, axis) + ends
    return np.where(keys & negative, keys ^ negative, ~keys).view(x.dtype)


def within(k: Any, value: Expr, low: DimLike, high: DimLike) -> DimLike:
    """A number that lies between ``low`` and ``high``, as an index that provably does."""
    b = k.b
    return k.as_index(b.min(b.max(value, b.index(low)), b.index(high)), low, high)


# ---- loops ----------------------------------------------------------------------------------------------------------

Column = tuple[Callable[[DimLike], Expr], Callable[[DimLike, Expr], None]]  # reading and writing an array by place


def column(k: Any, name: str, dtype: DType) -> Column:
    return lambda i: k.b.load(name, i, dtype), lambda i, v: k.write(name, i, v)


def by_rank(k: Any, size: DimLike, room: int, kind: DType, key: Callable[[DimLike], Expr],
            put: Callable[[DimLike, DimLike], None]) -> None:
    """Every one of at most ``room`` elements counts those before it: ``put(rank, i)`` for element i.  ``kind``: of the
    keys."""
    b = k.b
    wide = DTYPES[f"u{max(32, kind.bits)}"]
    count = DTYPES[f"i{wide.bits}"]
    keys, ids, ranks = k.alloc(wide, room), k.alloc(count, room), k.alloc(count, room)
    with k.loop(size, "vector", width=WIDTH) as i:
        k.write(keys, i, b.cast(key(i), wide))
        k.write(ids, i, b.cast(b.index(i), count))
    with k.loop(size, "vector", width=WIDTH) as i:
        rank = k.acc(count, b.const(0, count))
        mine, me = k.let(b.load(keys, i, wide)), k.let(b.load(ids, i, count))
        with k.loop(size) as j:
            other = k.let(b.load(keys, j, wide))
            earlier = b.lt(b.cast(b.index(j), count), me)
            before = b.or_(b.lt(other, mine), b.and_(b.eq(other, mine), earlier))
            k.set(rank, b.add(k.get(rank), b.select(before, b.const(1, count), b.const(0, count))))
        k.write(ranks, i, k.get(rank))
    with k.loop(size) as i:
        put(within(k, b.cast(b.load(ranks, i, count), i64), 0, size - 1), i)


def by_digits(k: Any, size: DimLike, kind: DType, parts: Callable[[DimLike], Sequence[Expr]],
              home: Sequence[Column], away: Sequence[Column]) -> Sequence[Column]:
    """Sort elements, a key of type ``kind`` and what goes with it: ``parts(i)``.  ``home``, ``away``: room for all of
    them; returns the one where they are in order at the end."""
    b, passes = k.b, kind.bits // DIGIT
    counts = k.alloc(i64, passes * (BINS + 1))
    with k.loop(passes * (BINS + 1), "vector", width=WIDTH) as c:
        k.write(counts, c, b.const(0, i64))
    with k.loop(size) as i:
        element = parts(i)
        for (_, put), v in zip(home, element, strict=True):
            put(i, v)
        for d in range(passes):
            _bump(k, counts, (BINS + 1) * d + _digit(k, element[0], DIGIT * d))
    with k.loop(passes) as d:
        total = k.acc(i64, b.const(0, i64))
        with k.loop(BINS + 1) as c:
            here = k.let(b.load(counts, (BINS + 1) * d + c, i64))
            k.write(counts, (BINS + 1) * d + c, k.get(total))
            k.set(total, b.add(k.get(total), here))
    if passes == 1:
        _move(k, size, counts, 0, home, away)
        return away
    with k.loop(passes // 2) as d:
        _move(k, size, counts, 2 * d, home, away)
        _move(k, size, counts, 2 * d + 1, away, home)
    return home


def _digit(k: Any, key: Expr, shift: DimLike) -> DimLike:
    b = k.b
    moved = b.shr(key, b.cast(b.index(shift), key.dtype)) if shift != 0 else key
    return k.as_index(b.cast(b.and_(moved, BINS - 1), i64), 0, BINS - 1)


def _bump(k: Any, counts: str, at: DimLike) -> Expr:
    """The count at a place, which goes up."""
    old = k.let(k.b.load(counts, at, i64))
    k.write(counts, at, k.b.add(old, k.b.const(1, i64)))
    return old


def _move(k: Any, size: DimLike, counts: str, d: DimLike, source: Sequence[Column], target: Sequence[Column]) -> None:
    """One pass: elements to where their digit ``d`` begins, in order."""
    b, base = k.b, (BINS + 1) * d

    def write(at: DimLike, parts: Sequence[Expr]) -> None:
        for (_, put), v in zip(target, parts, strict=True):
            put(at, v)
    first = _digit(k, source[0][0](0), DIGIT * d)
    begin, end = b.load(counts, base + first, i64), b.load(counts, base + first + 1, i64)
    whole = k.let(b.and_(b.eq(begin, 0), b.eq(end, b.index(size))))
    with k.if_(whole), k.loop(size, "vector", width=WIDTH) as i:
        write(i, [get(i) for get, _ in source])
    with k.if_(b.not_(whole)), k.loop(size) as i:
        parts = [k.let(get(i)) for get, _ in source]
        at = _bump(k, counts, base + _digit(k, parts[0], DIGIT * d))
        write(within(k, at, 0, size - 1), parts)


# ---- rows -----------------------------------------------------------------------------------------------------------

@dataclass
class _Sort:
    """What is sorted: operand 0 of a body, along ``axis``.  ``positions``: where elements stand, not elements."""

    k: Any
    type: Type
    axis: int
    positions: bool

    @property
    def size(self) -> DimLike:
        return self.type.shape[self.axis]

    @property
    def rows(self) -> DimLike:
        return prod((*self.type.shape[:self.axis], *self.type.shape[self.axis + 1:]))

    def key(self, at: tuple) -> Expr:
        return self.k.let(sort_key(self.k.b, self.k.load(0, at), self.positions))

    def leave(self, key: Expr) -> Expr:
        return _element(self.k.b, key, self.type.dtype)


class _Row:
    """One row, at ``place(i)``."""

    def __init__(self, s: _Sort, place: Callable[[DimLike], tuple]):
        self.s, self.k, self.b, self.size, self.place = s, s.k, s.k.b, s.size, place

    def memory(self, dtype: DType) -> Column:
        """An array as long as the row: part of the plan where no other row is sorted at the time."""
        k = self.k
        return column(k, k.scratch(dtype, (self.size,)) if self.s.rows == 1 else k.alloc(dtype, self.size), dtype)

    def by_rank(self) -> None:
        def put(rank: DimLike, i: DimLike) -> None:
            self.k.store(self.place(rank), self.b.index(i) if self.s.positions else self.k.load(0, self.place(i)))
        by_rank(self.k, self.size, SHORT, key_type(self.s.type.dtype), lambda i: self.s.key(self.place(i)), put)

    def by_digits(self) -> None:
        k, b, s, kind = self.k, self.b, self.s, key_type(self.s.type.dtype)
        home, away = [self.memory(kind)], [self.memory(kind)]
        if s.positions:
            home.append((lambda i: k.load_out(self.place(i)), lambda i, v: k.store(self.place(i), v)))
            away.append(self.memory(i64))

        def parts(i: DimLike) -> list[Expr]:
            return [s.key(self.place(i)), b.index(i)][:len(home)]
        done = by_digits(k, self.size, kind, parts, home, away)
        if done is home and s.positions:
            return
        read = done[-1][0]
        with k.loop(self.size, "vector", width=WIDTH) as i:
            k.store(self.place(i), read(i) if s.positions else s.leave(read(i)))


class _Rows:
    """ROWS rows side by side: ``place(lane, i)``, of which the first ``count`` exist."""

    def __init__(self, s: _Sort, place: Callable[[DimLike, DimLike], tuple], count: DimLike):
        self.s, self.k, self.b, self.place, self.count = s, s.k, s.k.b, place, count
        bits = s.type.dtype.bits
        self.kind = DTYPES[f"u{max(32, 2 * bits)}"] if s.positions else key_type(s.type.dtype)
        self.half = self.kind.bits // 2

    def sort(self) -> None:
        k, b, s, size = self.k, self.b, self.s, self.s.size
        room = size if isinstance(size, int) else NETWORK
        tile = k.alloc(self.kind, room * ROWS)
        with k.loop(size) as i, k.loop(self.count, "vector", width=ROWS) as lane:
            key = s.key(self.place(lane, i))
            if s.positions:
                key = b.or_(b.shl(b.cast(key, self.kind), self.half), b.cast(b.index(i), self.kind))
            k.write(tile, ROWS * i + lane, key)
        self.network(tile, room)
        with k.loop(size) as i, k.loop(self.count, "vector", width=ROWS) as lane:
            key = b.load(tile, ROWS * i + lane, self.kind)
            k.store(self.place(lane, i), b.cast(b.and_(key, (1 << self.half) - 1), i64) if s.positions
                    else s.leave(k.let(key)))

    def network(self, tile: str, room: int) -> None:
        """Merge exchange for any size (Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M).  Places
        from ``size`` on would hold what is larger than everything: exchanges with them are left out."""
        k, b = self.k, self.b
        steps = max(1, (room - 1).bit_length())
        one = b.const(1, i64)
        with k.loop(steps) as s:
            p = within(k, b.shl(one, b.index(steps - 1 - s)), 1, 1 << (steps - 1))
            self.exchange(tile, p, 0, p)
            with k.loop(s) as u:
                q = within(k, b.shl(one, b.index(steps - 1 - u)), 2 * p, 1 << (steps - 1))
                self.exchange(tile, p, p, q - p)

    def exchange(self, tile: str, p: DimLike, first: DimLike, gap: DimLike) -> None:
        """Put in order the places i and i + gap for all i of which ``i & p`` is ``first``."""
        k, b = self.k, self.b
        left = k.let(b.max(b.index(self.s.size - gap - first), 0))
        low = b.sub(b.index(p), 1)
        whole = b.shr(b.and_(left, b.not_(b.index(2 * p - 1))), 1)
        count = within(k, b.add(whole, b.min(b.and_(left, b.index(2 * p - 1)), b.index(p))), 0, NETWORK)
        high = k.let(b.not_(low))
        with k.loop(count) as m:
            at = within(k, b.add(b.add(b.index(m), b.and_(b.index(m), high)), b.index(first)), 0,
                            self.s.size - 1 - gap)
            with k.loop(ROWS, "vector", width=ROWS) as lane:
                x = k.let(b.load(tile, ROWS * at + lane, self.kind))
                y = k.let(b.load(tile, ROWS * (at + gap) + lane, self.kind))
                k.write(tile, ROWS * at + lane, b.min(x, y))
                k.write(tile, ROWS * (at + gap) + lane, b.max(x, y))


def _body(positions: bool) -> Callable[..., None]:
    def body(k: Any, ins: Sequence[str], out: str, types: tuple[Type, ...], attrs: dict) -> None:
        s = _Sort(k, types[0], attrs["axis"], positions)
        few = isinstance(s.rows, int) and s.rows < FEW_ROWS
        long = isinstance(s.size, int) and s.size > NETWORK
        alone = few or long or positions and s.type.dtype.bits == 64
        (_each_row if alone else _groups)(s)
    return body


def _each_row(s: _Sort) -> None:
    """Rows one by one, in parallel."""
    k, size, shape = s.k, s.size, s.type.shape
    with nest(k, (*shape[:s.axis], *shape[s.axis + 1:]), "parallel") as o:
        row = _Row(s, lambda i: (*o[:s.axis], i, *o[s.axis:]))
        if isinstance(size, int):
            (row.by_rank if size <= SHORT else row.by_digits)()
            return
        with k.if_(k.b.le(k.b.index(size), SHORT)):
            row.by_rank()
        with k.if_(k.b.gt(k.b.index(size), SHORT)):
            row.by_digits()


def _groups(s: _Sort) -> None:
    """Groups of rows in parallel; side by side where they are short.  Neighbours are lanes: along the last axis, or
    rows of the last axis in the order of memory."""
    k, shape, last = s.k, s.type.shape, s.axis == s.type.rank - 1
    lead = () if last else (*shape[:s.axis], *shape[s.axis + 1:-1])
    across = s.rows if last else shape[-1]
    with nest(k, (*lead, ceildiv(across, ROWS)), "parallel") as o:
        def place(lane: DimLike, i: DimLike) -> tuple:
            at = ROWS * o[-1] + lane
            return (*unravelled(at, shape[:-1]), i) if last else (*o[:s.axis], i, *o[s.axis:-1], at)
        count = dmin(ROWS, across - ROWS * o[-1])
        rows = _Rows(s, place, count)
        if isinstance(s.size, int):
            rows.sort()
            return
        with k.if_(k.b.le(k.b.index(s.size), NETWORK)):
            rows.sort()
        with k.if_(k.b.gt(k.b.index(s.size), NETWORK)), k.loop(count) as lane:
            _Row(s, lambda i: place(lane, i)).by_digits()


# ---- the ops --------------------------------------------------------------------------------------------------------

def _sort_type(x: Type, axis: int) -> Type:
    need_axis(axis, x.rank)
    return x


def take_along(x: Node, where: Node, axis: int) -> Node:
    """``x`` read along ``axis`` at the positions of an i64 tensor of the same shape."""
    at: Node | None = None
    for d in range(x.rank):
        place = where if d == axis else n.iota(shape=x.shape, axis=d, dtype=i64)
        stride = n.broadcast(n.size(value=prod(x.shape[d + 1:])), shape=x.shape, axes=())
        at = add_up((at, n.mul(place, stride)))
    assert at is not None
    return n.gather(n.reshape(x, shape=(x.type.size,)), at, axis=0)


def _sort_vjp(g: Node, y: Node, x: Node, axis: int) -> tuple:
    origin = n.argsort(x, axis=axis)
    return (take_along(g, n.argsort(origin, axis=axis), axis),)  # the inverse of a permutation is its argsort


def _sort_jvp(ts: tuple, y: Node, x: Node, axis: int) -> Node | None:
    (t,) = ts
    return None if t is None else take_along(t, n.argsort(x, axis=axis), axis)


_SORT_ROWS = ((((7,),), {"axis": 0}), (((3, 4),), {"axis": 0}), (((3, 4),), {"axis": 1}), (((0,),), {"axis": 0}))
declare("sort", "Elements in increasing order along an axis, -0 before +0, NaN last.",
        numpy=_total_order, infer=_sort_type,
        lower=General(_body(False), True, "cpu"), attrs=("axis",), dtypes=BOOLS + REALS, ulp=EXACT,
        vjp=_sort_vjp, jvp=_sort_jvp, samples=calls(BOOLS + REALS, *_SORT_ROWS))
declare("argsort", "Positions that sort an axis; equal elements keep their order, NaN last.",
        numpy=in_f32(lambda x, axis: np.argsort(x, axis, kind="stable").astype(np.int64)),
        infer=lambda x, axis: _sort_type(x, axis).with_dtype(i64),
        lower=General(_body(True), True, "cpu"), attrs=("axis",), dtypes=BOOLS + REALS, ulp=EXACT,
        samples=calls(BOOLS + REALS, *_SORT_ROWS))
