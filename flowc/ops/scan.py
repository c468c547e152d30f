"""Running sums, products and linear recurrences along an axis.

Here: cumsum, cumprod, linear_scan.  Not here: reductions (reduce.py).  Read next: reduce.py.

Running values are computed in order, so every element is the sum NumPy gives; 16-bit floats carry an f32 value and
round each element once.  Work is split over the other axes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from flowc.dims import DimLike, ceildiv, dmin
from flowc.graph import Node
from flowc.kernel import LANES, Expr
from flowc.op import General, Op
from flowc.ops.rules import (
    EXACT,
    add_up,
    declare,
    full,
    in_f32,
    linear_jvp,
    n,
    need_axis,
    same,
)
from flowc.ops.samples import calls
from flowc.types import NUMBERS, DType, Type, f32

WIDTH = 16    # lanes of the vector loops of this room and of indexing.py
STRIP = 1024  # neighbours that are walked together: memory is fast in long runs
LEAST = 256   # the same where there would be too few strips to share
SHARES = 4    # strips that are enough
ROWS = 16     # rows of a last axis that are walked side by side
DEPTH = 64    # steps of theirs that are turned at a time
TURN = 4      # steps done in registers before the running values of a strip go back to its memory

# ---- loops of General bodies ----------------------------------------------------------------------------------------


@contextmanager
def nest(k: Any, extents: Sequence[DimLike], kind: str = "seq") -> Iterator[tuple[DimLike, ...]]:
    """Loops inside each other; yields their variables, outermost first."""
    with ExitStack() as stack:
        yield tuple([stack.enter_context(k.loop(e, kind)) for e in extents])


@contextmanager
def strips(k: Any, extent: DimLike, size: int = LANES) -> Iterator[tuple[DimLike, DimLike, int]]:
    """A contiguous axis in parallel strips: yields first position, number of positions, and their static bound.
    A short axis is one strip without a loop."""
    if isinstance(extent, int) and extent <= size:
        yield 0, extent, max(extent, 1)
        return
    even = isinstance(extent, int) and extent % size == 0
    with k.loop(ceildiv(extent, size), "parallel") as s:
        yield s * size, size if even else dmin(size, extent - s * size), size


def unravelled(at: DimLike, shape: Sequence[DimLike]) -> tuple:
    """The index of a position in C order."""
    out: list[DimLike] = []
    for size in reversed(shape[1:]):
        out.append(at % size)
        at = at // size
    return (at, *reversed(out))


# ---- running values -------------------------------------------------------------------------------------------------

Step = Callable[..., Expr]


def _wide(d: DType) -> DType:
    return f32 if d.floating and d.bits == 16 else d


def _strip(extent: DimLike) -> int:
    if not isinstance(extent, int):
        return STRIP
    return max(LEAST, min(STRIP, extent // SHARES // LANES * LANES))


def _side_by_side(k: Any, t: Type, operands: Sequence[int], init: Expr, step: Step) -> None:
    """Rows of a last axis ROWS at a time, as lanes: one after the other, each element would wait for the one before.
    DEPTH steps are turned into a tile, walked there, and turned back.  The last block begins early enough to be whole;
    what it does twice has the same result."""
    b, rows, length = k.b, t.shape[-2], t.shape[-1]
    with nest(k, t.shape[:-2], "parallel") as lead, k.loop(ceildiv(rows, ROWS), "parallel") as block:
        first = ROWS * block if rows % ROWS == 0 else dmin(ROWS * block, rows - ROWS)
        tiles = [k.alloc(t.dtype, ROWS * DEPTH) for _ in operands]
        acc = k.acc(t.dtype, init, (ROWS,))
        with k.loop(ceildiv(length, DEPTH)) as c:
            steps = DEPTH if isinstance(length, int) and length % DEPTH == 0 else dmin(DEPTH, length - DEPTH * c)
            for p, tile in zip(operands, tiles, strict=True):
                with k.loop(steps) as s, k.loop(ROWS, "vector", width=ROWS) as lane:
                    k.write(tile, ROWS * s + lane, k.load(p, (*lead, first + lane, DEPTH * c + s)))
            with k.loop(steps) as s, k.loop(ROWS, "vector", width=ROWS) as lane:
                xs = [b.load(tile, ROWS * s + lane, t.dtype) for tile in tiles]
                k.set(acc, step(k.get(acc, lane), DEPTH * c + s, *xs), lane)
                k.write(tiles[0], ROWS * s + lane, k.get(acc, lane))
            with k.loop(ROWS) as row, k.loop(steps, "vector", width=WIDTH) as lane:
                k.store((*lead, first + row, DEPTH * c + lane), b.load(tiles[0], ROWS * lane + row, t.dtype))


def _body(first: Callable[[DType], Any], step: Step) -> Callable[..., None]:
    """Loops of a running value: ``step(b, value, at_start, *elements)`` from ``first``.  Where the axis is not the
    last, neighbours along the last axis run as lanes, TURN steps in registers at a time."""
    def body(k: Any, ins: Sequence[str], out: str, types: tuple[Type, ...], attrs: dict) -> None:
        t, b, axis = types[-1], k.b, attrs["axis"]
        wide, operands = _wide(t.dtype), range(len(types) - 1)

        def advanced(value: Expr, at: tuple, i: DimLike) -> Expr:
            return k.let(step(b, value, b.eq(b.index(i), 0), *[b.cast(k.load(p, at), wide) for p in operands]))

        init = b.const(first(t.dtype), wide)
        rows = t.shape[axis - 1] if axis and axis == t.rank - 1 else 1
        if isinstance(rows, int) and rows >= ROWS and t.dtype.bytes in (4, 8) and k.ctx.machine.name == "cpu":
            _side_by_side(k, t, operands, init, lambda value, i, *xs: step(b, value, b.eq(b.index(i), 0), *xs))
            return
        inner = axis < t.rank - 1
        between = t.shape[axis + 1:-1] if inner else ()
        with nest(k, (*t.shape[:axis], *between), "parallel") as outer:
            lead, mid = outer[:axis], outer[axis:]
            if not inner:
                acc = k.acc(wide, init)
                with k.loop(t.shape[axis]) as i:
                    k.set(acc, advanced(k.get(acc), (*lead, i), i))
                    k.store((*lead, i), b.cast(k.get(acc), t.dtype))
                return
            with strips(k, t.shape[-1], _strip(t.shape[-1])) as (start, count, room):
                acc = k.alloc(wide, room)
                with k.loop(count, "vector", width=WIDTH) as lane:
                    k.write(acc, lane, init)
                rows = t.shape[axis]
                with k.loop(ceildiv(rows, TURN)) as turn, k.loop(count, "vector", width=WIDTH) as lane:
                    value = k.acc(wide, b.load(acc, lane, wide))
                    with k.loop(dmin(TURN, rows - TURN * turn)) as r:
                        i = TURN * turn + r
                        at = (*lead, i, *mid, start + lane)
                        k.set(value, advanced(k.get(value), at, i))
                        k.store(at, b.cast(k.get(value), t.dtype))
                    k.write(acc, lane, k.get(value))
    return body


def running(name: str, doc: str, *, numpy: Callable[..., Any], first: Callable[[DType], Any], step: Step,
            vjp: Callable[..., tuple], jvp: Callable[..., Any], arity: int = 1) -> Op:
    """An op along one axis whose element i comes from element i - 1 and the operands at i."""
    def infer(*xs: Type, axis: int) -> Type:
        t = same(*xs)
        need_axis(axis, t.rank)
        return t

    shapes = ((5,), {"axis": 0}), ((3, 4), {"axis": 0}), ((3, 4), {"axis": 1}), ((2, 3, 4), {"axis": 0}), (
        (3, 70), {"axis": 0}), ((0,), {"axis": 0}), ((2, 0), {"axis": 0})
    return declare(name, doc, numpy=in_f32(numpy), infer=infer, lower=General(_body(first, step), True),
                   attrs=("axis",), arity=arity, dtypes=NUMBERS, ulp=EXACT, vjp=vjp, jvp=jvp,
                   samples=calls(NUMBERS, *(((s,) * arity, a) for s, a in shapes), domain=(-2.0, 2.0)))


def shifted(x: Node, axis: int, fill: float) -> Node:
    """``x`` one step later along ``axis``: its first element is ``fill``, its last has left."""
    low, stop = [0] * x.rank, tuple(x.shape)
    low[axis] = 1
    padded = n.pad(x, full(fill, x.dtype, ()), low=tuple(low), high=(0,) * x.rank)
    return n.slice(padded, start=(0,) * x.rank, stop=stop, step=(1,) * x.rank)


def other_products(x: Node, axis: int) -> Node:
    """For every element the product of all others along ``axis``, without division: zeros are no special case."""
    left = n.cumprod(shifted(x, axis, 1), axis=axis)
    right = n.flip(n.cumprod(shifted(n.flip(x, axes=(axis,)), axis, 1), axis=axis), axes=(axis,))
    return n.mul(left, right)


def _backwards(a: Node, g: Node, axis: int) -> Node:
    """The recurrence run from the end, ``h[i] = g[i] + a[i + 1] * h[i + 1]``: adjoint of the forward one."""
    last_first = n.linear_scan(shifted(n.flip(a, axes=(axis,)), axis, 1), n.flip(g, axes=(axis,)), axis=axis)
    return n.flip(last_first, axes=(axis,))


def _cumsum_vjp(g: Node, y: Node, x: Node, axis: int) -> tuple:
    return (n.flip(n.cumsum(n.flip(g, axes=(axis,)), axis=axis), axes=(axis,)),)


def _cumprod_vjp(g: Node, y: Node, x: Node, axis: int) -> tuple:
    return (n.mul(n.cumprod(shifted(x, axis, 1), axis=axis), _backwards(x, g, axis)),)


def _cumprod_jvp(ts: tuple, y: Node, x: Node, axis: int) -> Node | None:
    (t,) = ts
    return None if t is None else n.linear_scan(x, n.mul(t, shifted(y, axis, 1)), axis=axis)


def _recurrence_vjp(g: Node, y: Node, a: Node, x: Node, axis: int) -> tuple:
    back = _backwards(a, g, axis)
    return n.mul(back, shifted(y, axis, 0)), back


def _recurrence_jvp(ts: tuple, y: Node, a: Node, x: Node, axis: int) -> Node | None:
    t = add_up((None if ts[0] is None else n.mul(ts[0], shifted(y, axis, 0)), ts[1]))
    return None if t is None else n.linear_scan(a, t, axis=axis)


def _recurrence_value(a: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    out = np.array(x)
    a, rows = np.moveaxis(a, axis, 0), np.moveaxis(out, axis, 0)
    for i in range(1, len(rows)):
        rows[i] = a[i] * rows[i - 1] + rows[i]
    return out


running("cumsum", "Running sum along an axis; integers wrap.",
        numpy=lambda x, axis: np.add.accumulate(x, axis, dtype=x.dtype),
        first=lambda d: -0.0 if d.floating else 0,  # -0 + x is x, also for -0
        step=lambda b, value, start, x: b.add(value, x), vjp=_cumsum_vjp, jvp=linear_jvp("cumsum"))
running("cumprod", "Running product along an axis; integers wrap.",
        numpy=lambda x, axis: np.multiply.accumulate(x, axis, dtype=x.dtype), first=lambda d: 1,
        step=lambda b, value, start, x: b.mul(value, x), vjp=_cumprod_vjp, jvp=_cumprod_jvp)
running("linear_scan", "h[0] = x[0], h[i] = a[i] * h[i - 1] + x[i] along an axis; operands a, x.", arity=2,
        numpy=_recurrence_value, first=lambda d: 0,
        step=lambda b, value, start, a, x: b.select(start, x, b.add(b.mul(a, value), x)),
        vjp=_recurrence_vjp, jvp=_recurrence_jvp)
