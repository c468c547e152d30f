"""Reading and writing at positions that data decides.

Here: gather, scatter_add, scatter.  Not here: slices at known places (movement.py).  Read next: random.py.

An index outside 0..size-1 is clamped to the nearest position; negative indices are the front end's to normalise.
Along an empty axis a gather gives zeros and a scatter writes nothing.  Positions are i64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import Builder, Expr
from flowc.op import General, Op
from flowc.ops.movement import movement
from flowc.ops.rules import EXACT, declare, n, need_axis, need_dtype, same_dtype, same_shape, zeros
from flowc.ops.samples import Call, draw
from flowc.ops.scan import WIDTH, nest, strips, unravelled
from flowc.proofs import known_eq, known_le
from flowc.types import ALL, NUMBERS, DType, Type, i64

BLOCK = 256  # single elements to write whose places are computed together


def _read_shape(x: Type, indices: Type, axis: int) -> tuple[DimLike, ...]:
    need_dtype(indices, i64, "the indices")
    need_axis(axis, x.rank)
    return (*x.shape[:axis], *indices.shape, *x.shape[axis + 1:])


def _clamped(b: Any, at: Expr, size: DimLike) -> DimLike:
    """A position from data, as an index inside an axis of ``size``."""
    return b.as_index(b.min(b.max(at, 0), b.index(size - 1)), 0, size - 1)


def _may_be_empty(b: Any, size: DimLike) -> bool:
    return known_le(1, size, getattr(b, "ranges", None)) is not True


# ---- gather ---------------------------------------------------------------------------------------------------------

def _gather_value(x: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    if x.shape[axis] == 0:
        return np.zeros((*x.shape[:axis], *indices.shape, *x.shape[axis + 1:]), x.dtype)
    return np.take(x, np.clip(indices, 0, x.shape[axis] - 1), axis)


def _gather_source(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple, axis: int) -> Expr:
    x, indices, _ = types
    size, end = x.shape[axis], axis + indices.rank
    if known_eq(size, 0):
        return b.const(0, x.dtype)
    at = (*idx[:axis], _clamped(b, load(1, idx[axis:end]), size), *idx[end:])
    if _may_be_empty(b, size):
        return load(0, at, b.gt(b.index(size), 0))
    return load(0, at)


def _gather_vjp(g: Node, y: Node, x: Node, indices: Node, axis: int) -> tuple:
    return n.scatter_add(zeros(x.type), indices, g, axis=axis), None


def _gather_jvp(ts: tuple, y: Node, x: Node, indices: Node, axis: int) -> Node | None:
    return None if ts[0] is None else n.gather(ts[0], indices, axis=axis)


def _positions(rng: np.random.Generator, shape: Sequence[int], size: int) -> np.ndarray:
    return np.asarray(rng.integers(-2, size + 2, shape, dtype=np.int64))


_ROWS = (((6,), (4,), 0), ((5, 3), (2, 2), 0), ((2, 4, 3), (5,), 1), ((3, 4), (), 1), ((4, 70), (9,), 0),
         ((4,), (0,), 0), ((0, 2), (3,), 0))


def _gather_samples(rng: np.random.Generator) -> list[Call]:
    return [((draw(rng, d, x), _positions(rng, i, x[axis])), {"axis": axis}) for d in ALL for x, i, axis in _ROWS]


movement("gather", "Slices of x along an axis at given positions.", attrs=("axis",), arity=2, numpy=_gather_value,
         infer=lambda x, indices, axis: x.with_shape(_read_shape(x, indices, axis)), source=_gather_source,
         vjp=_gather_vjp, jvp=_gather_jvp, samples=_gather_samples)

# ---- scatter --------------------------------------------------------------------------------------------------------


def _write_type(x: Type, indices: Type, updates: Type, axis: int) -> Type:
    same_dtype(x, updates)
    same_shape(_read_shape(x, indices, axis), updates.shape, "indexed operand and updates")
    return x


def _write_value(put: Callable[[np.ndarray, tuple, np.ndarray], None]) -> Callable[..., np.ndarray]:
    def value(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int) -> np.ndarray:
        out = np.array(x)
        if x.shape[axis]:
            put(out, (*(slice(None),) * axis, np.clip(indices, 0, x.shape[axis] - 1)), updates)
        return out
    return value


def _write_body(combine: Callable[..., Expr]) -> Callable[..., None]:
    """Copy x, then write the updates one after the other.  Parallel over what no two updates share: the axes before
    the written one, and strips of the last axis after it."""
    def body(k: Any, ins: Sequence[str], out: str, types: tuple[Type, ...], attrs: dict) -> None:
        x, indices, *_ = types
        axis = attrs["axis"]
        size, mid = x.shape[axis], x.shape[axis + 1:-1]
        if known_eq(size, 0):
            return

        def write(lead: tuple, start: DimLike, count: DimLike | None) -> None:
            def rows(visit: Callable[[tuple], None]) -> None:
                """Visit every place behind the written axis; without one, there is a single place."""
                if count is None:
                    visit(())
                    return
                with nest(k, mid) as m, k.loop(count, "vector", width=WIDTH) as lane:
                    visit((*m, start + lane))

            with k.loop(size, "seq" if count is not None else "vector", width=WIDTH) as i:
                rows(lambda tail: k.store((*lead, i, *tail), k.load(0, (*lead, i, *tail))))
            exists = k.if_(k.b.gt(k.b.index(size), 0)) if _may_be_empty(k, size) else nullcontext()
            if count is None and known_le(BLOCK, prod(indices.shape)) is not False:
                with exists:
                    _write_blocks(k, combine, lead, x, size, indices.shape)
                return
            with exists, nest(k, indices.shape) as j:
                at = _clamped(_With(k), k.load(1, j), size)
                rows(lambda tail: k.store((*lead, at, *tail), combine(
                    k.b, lambda: k.load_out((*lead, at, *tail)), k.load(2, (*lead, *j, *tail)))))

        with nest(k, x.shape[:axis], "parallel") as lead:
            if axis == x.rank - 1:
                write(lead, 0, None)
            else:
                with strips(k, x.shape[-1]) as (start, count, _):
                    write(lead, start, count)
    return body


def _write_blocks(k: Any, combine: Callable[..., Expr], lead: tuple, x: Type, size: DimLike, shape: Sequence[DimLike]
                  ) -> None:
    """Single elements, in order: where and what to write is computed for a block of them as lanes; where
    neighbours are seen to share a place, what stands there stays in a register."""
    b, total = k.b, prod(shape)
    places, values = k.alloc(i64, BLOCK), k.alloc(x.dtype, BLOCK)
    with k.loop(ceildiv(total, BLOCK)) as j:
        count = dmin(BLOCK, total - BLOCK * j)
        with k.loop(count, "vector", width=WIDTH) as lane:
            at = unravelled(BLOCK * j + lane, shape)
            k.write(places, lane, b.min(b.max(k.load(1, at), 0), b.index(size - 1)))
            k.write(values, lane, k.load(2, (*lead, *at)))

        def place(at: Expr) -> tuple:
            return (*lead, _clamped(_With(k), at, size))

        def equal(q: int) -> Expr:
            return b.eq(b.load(places, q, i64), b.load(places, q + 1, i64))
        runs = k.let(b.and_(b.ge(b.index(count), BLOCK), b.and_(equal(0), equal(BLOCK // 2))))
        with k.if_(runs):
            here = k.acc(i64, b.load(places, 0, i64))
            value = k.acc(x.dtype, k.load_out(place(b.load(places, 0, i64))))
            with k.loop(BLOCK) as q:
                at = k.let(b.load(places, q, i64))
                with k.if_(b.ne(at, k.get(here))):
                    k.store(place(k.get(here)), k.get(value))
                    k.set(here, at)
                    k.set(value, k.load_out(place(at)))
                k.set(value, combine(b, lambda: k.get(value), b.load(values, q, x.dtype)))
            k.store(place(k.get(here)), k.get(value))
        with k.if_(b.not_(runs)), k.loop(count) as q:
            to = place(b.load(places, q, i64))
            k.store(to, combine(b, lambda: k.load_out(to), b.load(values, q, x.dtype)))


class _With:
    """The expression builder of a kernel builder, with its indices from data."""

    def __init__(self, k: Any):
        self._b, self.as_index = k.b, k.as_index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._b, name)


def _write_samples(dtypes: tuple[DType, ...]) -> Callable[[np.random.Generator], list[Call]]:
    def samples(rng: np.random.Generator) -> list[Call]:
        return [((draw(rng, d, x), _positions(rng, i, x[axis]),
                  draw(rng, d, (*x[:axis], *i, *x[axis + 1:]))), {"axis": axis})
                for d in dtypes for x, i, axis in _ROWS]
    return samples


def scatter_op(name: str, doc: str, *, put: Callable[..., None], combine: Callable[..., Expr],
               vjp: Callable[..., tuple], dtypes: tuple[DType, ...], jvp: Callable[..., Any] | None = None,
               ulp: dict[str, float] = EXACT) -> Op:
    return declare(name, doc, numpy=_write_value(put), infer=_write_type, lower=General(_write_body(combine), True),
                   attrs=("axis",), arity=3, dtypes=dtypes, ulp=ulp, vjp=vjp, jvp=jvp,
                   samples=_write_samples(dtypes))


def _set(out: np.ndarray, at: tuple, updates: np.ndarray) -> None:
    out[at] = updates


def _add_vjp(g: Node, y: Node, x: Node, indices: Node, updates: Node, axis: int) -> tuple:
    return g, None, n.gather(g, indices, axis=axis)


def _add_jvp(ts: tuple, y: Node, x: Node, indices: Node, updates: Node, axis: int) -> Node | None:
    t, _, u = ts
    if u is None:
        return t
    return n.scatter_add(zeros(x.type) if t is None else t, indices, u, axis=axis)


def _winners(x: Node, indices: Node, updates: Node, axis: int) -> Node:
    """Which updates are still there at the end: those that are the last for their position."""
    size = x.shape[axis]
    order = n.reshape(n.iota(shape=(indices.type.size,), axis=0, dtype=i64), shape=indices.shape)
    last = n.scatter(zeros(Type(i64, (size,))), indices, order, axis=0)
    wins = n.eq(n.gather(last, indices, axis=0), order)
    return n.broadcast(wins, shape=updates.shape, axes=tuple(range(axis, axis + indices.rank)))


def _set_vjp(g: Node, y: Node, x: Node, indices: Node, updates: Node, axis: int) -> tuple:
    read = n.gather(g, indices, axis=axis)
    return (n.scatter(g, indices, zeros(updates.type), axis=axis), None,
            n.select(_winners(x, indices, updates, axis), read, zeros(updates.type)))


def _set_jvp(ts: tuple, y: Node, x: Node, indices: Node, updates: Node, axis: int) -> Node | None:
    t, _, u = ts
    if t is None and u is None:
        return None
    return n.scatter(zeros(x.type) if t is None else t, indices, zeros(updates.type) if u is None else u, axis=axis)


# many 32- and 64-bit floats are added in pieces whose sums are added at the end: there is no bound per element
scatter_op("scatter_add", "x plus updates at positions along an axis, in an order that sizes fix; sums are rounded.",
           dtypes=NUMBERS, put=np.add.at, combine=lambda b, old, new: b.add(old(), new), vjp=_add_vjp, jvp=_add_jvp,
           ulp={name: 0 for name in EXACT if name not in ("f32", "f64")})
scatter_op("scatter", "x with updates at positions along an axis; the last update of a position wins.",
           dtypes=ALL, put=_set, combine=lambda b, old, new: new, vjp=_set_vjp, jvp=_set_jvp)
