"""Joining, splitting, repeating, padding; diagonals and triangles.

Here: the functions that make copies from parts of arrays, and ``split``, whose parts are views.  Not here: views under
another shape (numpy_shape.py).  Read next: numpy_reduce.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, caller_loc
from flowc.dims import DimLike, dmax, dmin
from flowc.graph import Node
from flowc.numpy_core import (
    api,
    argument_error,
    as_dim,
    as_shape,
    axis_of,
    common_dtype,
    emit,
    fill,
    into,
    node_of,
    operand,
    rank_error,
    reshape,
    shape_error,
    size_node,
    spread,
    static_int,
    tensor,
    to_dtype,
    transpose,
)
from flowc.numpy_elementwise import unsupported
from flowc.numpy_index import FULL, getitem, parts_of, setitem
from flowc.numpy_shape import atleast_1d, atleast_2d, atleast_3d, broadcast_to, expand_dims, ravel
from flowc.proofs import known_le
from flowc.size import as_size, ranges_now, rooms
from flowc.tensor import Tensor, View, describe, read, wrap
from flowc.types import i64

# ---- joining and splitting ------------------------------------------------------------------------------------------


@api(np.concatenate, names="concat")
def concatenate(arrays: Any, /, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "") -> Tensor:
    """Arrays one behind the other along an existing axis."""
    xs = [tensor(a) for a in arrays]
    if not xs:
        raise argument_error("concatenate needs at least one array", "pass a sequence of arrays")
    if axis is None:
        xs, axis = [ravel(x) for x in xs], 0
    d = to_dtype(dtype) if dtype is not None else common_dtype(*xs)
    if any(x.ndim == 0 for x in xs):
        raise FlowcTypeError("T003", "arrays without axes cannot be concatenated", loc=caller_loc(),
                             notes=[describe(x) for x in xs], cure="use stack, or give them an axis: x[None]")
    k = axis_of(axis, xs[0].ndim)
    for x in xs[1:]:
        if x.ndim != xs[0].ndim:
            raise rank_error("concatenate", [xs[0], x])
        for i, (a, b) in enumerate(zip(xs[0].type.shape, x.type.shape)):
            if i != k and a != b:
                raise shape_error(f"concatenate along axis {k}:", [xs[0], x], a, b, ones=False)
    return into(out, wrap(emit("concatenate", *[node_of(x, d) for x in xs], axis=k), corder=True))


@api(np.stack)
def stack(arrays: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "") -> Tensor:
    """Arrays of one shape along a new axis."""
    xs = [tensor(a) for a in arrays]
    if not xs:
        raise argument_error("stack needs at least one array", "pass a sequence of arrays")
    for x in xs[1:]:
        if x.ndim != xs[0].ndim:
            raise rank_error("stack", [xs[0], x])
        for a, b in zip(xs[0].type.shape, x.type.shape):
            if a != b:
                raise shape_error("stack", [xs[0], x], a, b, ones=False)
    k = axis_of(axis, xs[0].ndim + 1)
    return concatenate([expand_dims(x, k) for x in xs], k, out, dtype=dtype)


@api(np.vstack, names="row_stack")
def vstack(tup: Any, *, dtype: Any = None, casting: str = "") -> Tensor:
    """Rows below each other."""
    return concatenate([atleast_2d(x) for x in tup], 0, dtype=dtype)


@api(np.hstack)
def hstack(tup: Any, *, dtype: Any = None, casting: str = "") -> Tensor:
    """Columns side by side."""
    xs = [atleast_1d(x) for x in tup]
    return concatenate(xs, 0 if xs[0].ndim == 1 else 1, dtype=dtype)


@api(np.dstack)
def dstack(tup: Any) -> Tensor:
    """Arrays along the third axis."""
    return concatenate([atleast_3d(x) for x in tup], 2)


@api(np.column_stack)
def column_stack(tup: Any) -> Tensor:
    """Vectors as columns of a matrix."""
    xs = [tensor(x) for x in tup]
    return concatenate([expand_dims(x, 1) if x.ndim == 1 else atleast_2d(x) for x in xs], 1)


@api(np.append)
def append(arr: Any, values: Any, axis: Any = None) -> Tensor:
    """Values behind an array."""
    return concatenate([arr, values], axis)


def _cuts(x: Tensor, cuts: Sequence[Any], k: int) -> list[Tensor]:
    edges = [0, *cuts, None]
    return [x[(*[FULL] * k, slice(a, b))] for a, b in pairwise(edges)]


@api(np.split)
def split(ary: Any, indices_or_sections: Any, axis: Any = 0) -> list[Tensor]:
    """Views of equal parts, or between given positions."""
    x = tensor(ary)
    k = axis_of(axis, x.ndim)
    if np.ndim(indices_or_sections) == 0:
        count = static_int(indices_or_sections, "the number of sections")
        part = parts_of(x.type.shape[k], count)
        return _cuts(x, [part * i for i in range(1, count)], k)
    return _cuts(x, [as_dim(i) for i in indices_or_sections], k)


@api(np.array_split)
def array_split(ary: Any, indices_or_sections: Any, axis: Any = 0) -> list[Tensor]:
    """Like split; the first parts are larger by one where the parts are not equal."""
    x = tensor(ary)
    k = axis_of(axis, x.ndim)
    if np.ndim(indices_or_sections):
        return split(x, indices_or_sections, k)
    count = static_int(indices_or_sections, "the number of sections")
    n = x.type.shape[k]
    each, more = n // count, n % count
    return _cuts(x, [each * i + dmin(more, i) for i in range(1, count)], k)


for _split, _axis in ((np.vsplit, 0), (np.hsplit, 1), (np.dsplit, 2)):
    api(_split)(lambda ary, indices_or_sections, _axis=_axis: split(
        ary, indices_or_sections, 0 if _axis == 1 and tensor(ary).ndim == 1 else _axis))


@api(getattr(np, "unstack", None))
def unstack(x: Any, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """All slices along one axis, which must have a known size."""
    x = tensor(x)
    k = axis_of(axis, x.ndim)
    return tuple(x[(*[FULL] * k, i)] for i in range(static_int(as_size(x.type.shape[k]), "the number of slices")))


# ---- repeating ------------------------------------------------------------------------------------------------------

@api(np.tile)
def tile(A: Any, reps: Any) -> Tensor:
    """An array laid side by side along each axis."""
    x = tensor(A)
    counts = as_shape(reps)
    shape = (*[1] * (len(counts) - x.ndim), *x.type.shape)
    counts = (*[1] * (len(shape) - len(counts)), *counts)
    node = reshape(read(x), shape)
    if all(isinstance(c, int) and c == 1 for c in counts):
        return wrap(node)
    wide: list[DimLike] = [v for pair in zip(counts, shape) for v in pair]
    node = emit("broadcast", node, shape=tuple(wide), axes=tuple(range(1, 2 * len(shape), 2)))
    return wrap(reshape(node, [c * n for c, n in zip(counts, shape)]), corder=True)


@api(np.repeat, method="repeat")
def repeat(a: Any, repeats: Any, axis: Any = None) -> Tensor:
    """Each element repeated; ``repeats`` is one count or known counts per element."""
    x = tensor(a)
    if axis is None:
        x, axis = ravel(x), 0
    k = axis_of(axis, x.ndim)
    shape = list(x.type.shape)
    if isinstance(repeats, Tensor):
        raise argument_error("repeat counts must be known while the function is traced", "pass integers",
                             FlowcTypeError)
    if np.ndim(repeats) and np.size(repeats) > 1:
        counts = np.asarray(repeats)
        if shape[k] != len(counts):
            raise argument_error(f"{len(counts)} repeat counts for an axis of size {shape[k]}", "one count per element")
        return getitem(x, (*[FULL] * k, np.repeat(np.arange(len(counts)), counts)))
    count = as_dim(np.asarray(repeats).reshape(-1)[0] if np.ndim(repeats) else repeats)
    axes = (*range(k + 1), *range(k + 2, len(shape) + 1))
    node = emit("broadcast", read(x), shape=(*shape[:k + 1], count, *shape[k + 1:]), axes=axes)
    shape[k] = shape[k] * count
    return wrap(reshape(node, shape), corder=True)


@api(np.roll)
def roll(a: Any, shift: Any, axis: Any = None) -> Tensor:
    """Elements moved along axes, those beyond the end come in at the start."""
    x = tensor(a)
    if axis is None:
        return wrap(reshape(read(roll(ravel(x), shift, 0)), x.type.shape))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    for s, k in zip(shifts, axes):
        k = axis_of(k, x.ndim)
        n = x.type.shape[k]
        if isinstance(n, int) and n == 0:
            continue
        if isinstance(s, Tensor) or not isinstance(n, int):
            step = node_of(operand(s), i64)
            row = emit("iota", shape=(n,), axis=0, dtype=i64)
            moved = emit("sub", row, spread(step, (n,)))
            moved = emit("mod", moved, spread(size_node(n), (n,)))
            x = wrap(emit("gather", read(x), moved, axis=k))
            continue
        cut = -static_int(s, "a shift") % n
        if cut:
            x = concatenate([x[(*[FULL] * k, slice(cut, None))], x[(*[FULL] * k, slice(None, cut))]], k)
    return wrap(read(x))


def _widths(pad_width: Any, rank: int) -> list[tuple[DimLike, DimLike]]:
    if isinstance(pad_width, dict):
        out: list[tuple[DimLike, DimLike]] = [(0, 0)] * rank
        for k, w in pad_width.items():
            out[axis_of(k, rank)] = tuple(as_dim(v) for v in (w if isinstance(w, (tuple, list)) else (w, w)))  # type: ignore
        return out
    if not isinstance(pad_width, (tuple, list, np.ndarray)):
        return [(as_dim(pad_width),) * 2] * rank  # type: ignore[list-item]
    rows = list(pad_width)
    if rows and not isinstance(rows[0], (tuple, list, np.ndarray)):
        rows = [rows * 2 if len(rows) == 1 else rows]
    pairs = [tuple(as_dim(v) for v in (list(r) * 2 if len(r) == 1 else r)) for r in rows]
    pairs = pairs * rank if len(pairs) == 1 else pairs
    if len(pairs) != rank or any(len(p) != 2 for p in pairs):
        raise argument_error(f"pad widths {pad_width!r} do not fit {rank} axes", "give ((before, after), ...)")
    return pairs  # type: ignore[return-value]


@api(np.pad)
def pad(array: Any, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0,
        reflect_type: str = "even") -> Tensor:
    """Elements added around an array.  mode: constant, edge, reflect, symmetric, wrap."""
    x = tensor(array)
    widths = _widths(pad_width, x.ndim)
    for lo, hi in widths:
        if known_le(0, lo) is False or known_le(0, hi) is False:
            raise argument_error("pad widths must not be negative", "slice to drop elements")
    if mode == "constant":
        if np.ndim(constant_values) if not isinstance(constant_values, Tensor) else constant_values.ndim:
            raise argument_error("one padding value for all sides is supported", "pad side by side")
        value = node_of(operand(constant_values), x.type.dtype)
        return wrap(emit("pad", read(x), value, low=tuple(w[0] for w in widths), high=tuple(w[1] for w in widths)),
                    corder=True)
    if mode not in ("edge", "reflect", "symmetric", "wrap") or reflect_type != "even":
        raise unsupported(f"np.pad with mode={mode!r}")
    node = read(x)
    for k, (lo, hi) in enumerate(widths):
        if not (isinstance(lo, int) and lo == 0 and isinstance(hi, int) and hi == 0):
            node = emit("gather", node, _border(mode, lo, hi, node.type.shape[k]), axis=k)
    return wrap(node, corder=True)


def _border(mode: str, low: DimLike, high: DimLike, n: DimLike) -> Node:
    """Which element of an axis of size ``n`` stands at each place of the padded axis."""
    total = low + n + high

    def full(d: DimLike) -> Node:
        return spread(size_node(d), (total,))
    at = emit("sub", emit("iota", shape=(total,), axis=0, dtype=i64), full(low))
    if mode == "edge":
        return emit("max", emit("min", at, full(n - 1)), full(0))
    if mode == "wrap":
        return emit("mod", at, full(n))
    period = 2 * n - 2 if mode == "reflect" else 2 * n
    period = dmax(period, 1) if known_le(1, period, ranges_now()) is not True else period
    at = emit("mod", at, full(period))
    return emit("min", at, emit("sub", full(period if mode == "reflect" else period - 1), at))


# ---- diagonals and triangles ----------------------------------------------------------------------------------------

@api(np.diagonal, method="diagonal")
def diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The diagonal of two axes as a last axis; a read-only view."""
    x = tensor(a)
    i, j = axis_of(axis1, x.ndim), axis_of(axis2, x.ndim)
    rest = [k for k in range(x.ndim) if k not in (i, j)]
    rows, cols = x.type.shape[i], x.type.shape[j]
    k = static_int(offset, "the offset")
    length = dmax(dmin(rows + min(k, 0), cols - max(k, 0)), 0)

    def get(n: Node) -> Node:
        n = transpose(n, (*rest, i, j))
        flat = reshape(n, (*n.type.shape[:-2], rows * cols))
        at = emit("iota", shape=(length,), axis=0, dtype=i64)
        at = emit("mul", at, spread(size_node(cols + 1), (length,)))
        first = size_node(k if k >= 0 else -k * cols)
        return emit("gather", flat, emit("add", at, spread(first, (length,))), axis=len(rest))
    return x.alias(View(get, None, "a diagonal is read-only"))


@api(np.diag)
def diag(v: Any, k: int = 0) -> Tensor:
    """The diagonal of a matrix, or a matrix with a diagonal."""
    x = tensor(v)
    if x.ndim == 2:
        return diagonal(x, k)
    if x.ndim != 1:
        raise argument_error("diag needs one or two axes", "use diagonal for more axes")
    n = x.type.shape[0]
    size = n + abs(k)
    wide = emit("broadcast", read(x), shape=(n, n), axes=(0,))
    square = emit("select", band(n, n, "eq", 0), wide, fill(0, x.type.dtype, (n, n)))
    zero = node_of(0, x.type.dtype)
    if k:
        low, high = ((0, k), (k, 0)) if k > 0 else ((-k, 0), (0, -k))
        square = emit("pad", square, zero, low=low, high=high)
    return wrap(reshape(square, (size, size)), corder=True)


def band(rows: DimLike, cols: DimLike, compare: str, k: int) -> Node:
    """bool[rows, cols]: is ``column COMPARE row + k``."""
    row = emit("iota", shape=(rows, cols), axis=0, dtype=i64)
    col = emit("iota", shape=(rows, cols), axis=1, dtype=i64)
    return emit(compare, col, emit("add", row, fill(k, i64, (rows, cols))) if k else row)


def _triangle(compare: str, keep_lower: bool) -> Callable[..., Tensor]:
    def build(m: Any, k: int = 0) -> Tensor:
        x = tensor(m)
        if x.ndim < 2:
            x = broadcast_to(x, (x.type.shape[0],) * 2)
        rows, cols = x.type.shape[-2:]
        mask = spread(band(rows, cols, compare, static_int(k, "the offset")), x.type.shape)
        return wrap(emit("select", mask, read(x), fill(0, x.type.dtype, x.type.shape)), corder=True)
    build.__doc__ = f"Elements {'on and below' if keep_lower else 'on and above'} the k-th diagonal, zeros elsewhere."
    return build


tril, triu = api(np.tril)(_triangle("le", True)), api(np.triu)(_triangle("ge", False))


@api(np.fill_diagonal)
def fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    """Write the main diagonal in place."""
    rows, cols = a.type.shape[-2:]
    n = dmin(rows, cols)
    at = rooms.functions[np.arange](n) if not isinstance(n, int) else np.arange(n)
    setitem(a, (at,) * a.ndim, val)
