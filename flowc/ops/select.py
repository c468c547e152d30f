"""The first elements in sorted order, without sorting the others.

Here: argselect.  Not here: sorting (order.py).  Read next: order.py.

One walk over a row notes the least key of every block.  Of the least keys of a few groups of blocks, the last one that
is wanted bounds what can be among the first elements; a second walk collects those up to the bound from the blocks
that have any, in order, and only they are sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowc.dims import DimLike, ceildiv, dmin
from flowc.kernel import Expr, Fold
from flowc.op import General
from flowc.ops.order import by_digits, by_rank, column, key_type, sort_key, within
from flowc.ops.rules import EXACT, declare, in_f32, need_axis
from flowc.ops.samples import calls
from flowc.ops.scan import WIDTH, nest
from flowc.proofs import known_le
from flowc.types import BOOLS, REALS, DType, Type, i64

BLOCK = 2 * WIDTH  # elements of which the least key is noted
GROUPS = 4         # groups of blocks per element that is wanted, and no fewer than
LEAST_GROUPS = 64
RANKED = 256       # candidates that are put in order by counting, at most


class _Select:
    """The first ``count`` of a row of ``size`` elements with keys ``key(i)``."""

    def __init__(self, k: Any, kind: DType, size: DimLike, count: int, key: Callable[[DimLike], Expr]):
        self.k, self.b, self.kind, self.size, self.count, self.key = k, k.b, kind, size, count, key
        self.last = k.b.const((1 << kind.bits) - 1, kind)  # no key is larger

    def run(self, put: Callable[[DimLike, Expr], None]) -> None:
        """``put(rank, position)`` for the first elements."""
        k, b = self.k, self.b
        blocks = ceildiv(self.size, BLOCK)
        least = k.alloc(self.kind, blocks)
        self.note_blocks(least)
        bound = self.bound(least, blocks)
        keys, places = (column(k, k.alloc(d, self.size), d) for d in (self.kind, i64))
        found = within(k, self.collect(least, blocks, bound, keys, places), 0, self.size)
        with k.if_(b.le(b.index(found), RANKED)):
            def leave(rank: DimLike, i: DimLike) -> None:
                with k.if_(b.lt(b.index(rank), self.count)):
                    put(rank, places[0](i))
            by_rank(k, dmin(found, RANKED), RANKED, self.kind, keys[0], leave)
        with k.if_(b.gt(b.index(found), RANKED)):
            away = [column(k, k.alloc(d, self.size), d) for d in (self.kind, i64)]
            done = by_digits(k, found, self.kind, lambda i: [k.let(keys[0](i)), places[0](i)], [keys, places], away)
            with k.loop(self.count) as i:
                put(i, done[1][0](i))

    def note_blocks(self, least: str) -> None:
        k, b, whole = self.k, self.b, self.size // BLOCK
        with k.loop(whole) as g:
            acc = k.acc(self.kind, self.last, (WIDTH,))
            for r in range(0, BLOCK, WIDTH):
                with k.loop(WIDTH, "vector", width=WIDTH) as lane:
                    k.set(acc, b.min(k.get(acc, lane), self.key(BLOCK * g + r + lane)), lane)
            left, right, out = k.fresh("x"), k.fresh("y"), k.fresh("r")
            k.add(Fold((out,), (acc,), WIDTH, (left,), (right,),
                       (b.min(b.ref(left, self.kind), b.ref(right, self.kind)),)))
            k.write(least, g, b.ref(out, self.kind))
        with k.loop(ceildiv(self.size, BLOCK) - whole) as g:
            one = k.acc(self.kind, self.last)
            with k.loop(self.size - BLOCK * whole) as i:
                k.set(one, b.min(k.get(one), self.key(BLOCK * whole + i)))
            k.write(least, whole + g, k.get(one))

    def bound(self, least: str, blocks: DimLike) -> Expr:
        """A key up to which there are at least ``count`` elements, if the row has as many."""
        k, b = self.k, self.b
        groups = max(LEAST_GROUPS, 1 << (GROUPS * self.count - 1).bit_length())
        mins, order = k.alloc(self.kind, groups), k.alloc(self.kind, groups)
        with k.loop(groups) as q:
            acc = k.acc(self.kind, self.last)
            first = blocks * q // groups
            with k.loop(blocks * (q + 1) // groups - first) as g:
                k.set(acc, b.min(k.get(acc), b.load(least, first + g, self.kind)))
            k.write(mins, q, k.get(acc))
        by_rank(k, groups, groups, self.kind, lambda q: b.load(mins, q, self.kind),
                lambda rank, q: k.write(order, rank, b.load(mins, q, self.kind)))
        return k.let(b.load(order, self.count - 1, self.kind))

    def collect(self, least: str, blocks: DimLike, bound: Expr, keys: Any, places: Any) -> Expr:
        """Elements below the bound, and the first ``count`` that reach it; returns how many."""
        k, b = self.k, self.b
        found, equal = k.acc(i64, b.const(0, i64)), k.acc(i64, b.const(0, i64))
        with k.loop(blocks) as g, k.if_(b.le(b.load(least, g, self.kind), bound)), \
                k.loop(dmin(BLOCK, self.size - BLOCK * g)) as r:
            i = BLOCK * g + r
            key = k.let(self.key(i))
            same = k.let(b.eq(key, bound))
            with k.if_(b.or_(b.lt(key, bound), b.and_(same, b.lt(k.get(equal), self.count)))):
                at = within(k, k.get(found), 0, self.size - 1)
                keys[1](at, key)
                places[1](at, b.index(i))
                k.set(found, b.add(k.get(found), b.const(1, i64)))
                k.set(equal, b.add(k.get(equal), b.select(same, b.const(1, i64), b.const(0, i64))))
        return k.get(found)


def _body(k: Any, ins: Sequence[str], out: str, types: tuple[Type, ...], attrs: dict) -> None:
    x, axis, count = types[0], attrs["axis"], attrs["count"]
    if not count:
        return
    with nest(k, (*x.shape[:axis], *x.shape[axis + 1:]), "parallel") as o:
        def place(i: DimLike) -> tuple:
            return (*o[:axis], i, *o[axis:])

        def put(rank: DimLike, position: Expr) -> None:
            k.store(place(within(k, k.b.index(rank), 0, count - 1)), position)
        _Select(k, key_type(x.dtype), x.shape[axis], count,
                lambda i: k.let(sort_key(k.b, k.load(0, place(i)), True))).run(put)


def _infer(x: Type, axis: int, count: int) -> Type:
    size = x.shape[need_axis(axis, x.rank)]
    if not isinstance(count, int) or count < 0 or known_le(count, size) is False:
        raise ValueError(f"count {count!r} is not a number from 0 to the {size} elements of axis {axis}")
    return Type(i64, (*x.shape[:axis], count, *x.shape[axis + 1:]))


def _value(x: np.ndarray, axis: int, count: int) -> np.ndarray:
    order = np.argsort(x, axis, kind="stable").astype(np.int64)
    return order[(slice(None),) * axis + (slice(count),)]


declare("argselect", "Positions of the first elements of a sorted axis; equal elements keep their order, NaN last.",
        numpy=in_f32(_value), infer=_infer, lower=General(_body, True, "cpu"), attrs=("axis", "count"),
        dtypes=BOOLS + REALS, ulp=EXACT, samples=calls(
            BOOLS + REALS, (((7,),), {"axis": 0, "count": 2}), (((3, 40),), {"axis": 1, "count": 3}),
            (((70, 2),), {"axis": 0, "count": 70}), (((4,),), {"axis": 0, "count": 0})))
