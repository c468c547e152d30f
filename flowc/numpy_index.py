"""Indexing: ``x[...]`` and ``x[...] = v`` by NumPy's rules, as slices, gathers, scatters and selects.

Here: index expressions taken apart (``Index``), reading, writing, views of basic indices, masks, take and its kin,
``np.add.at``.  Not here: how views hang together (tensor.py).  Read next: numpy_shape.py.

An index has two stages.  The basic stage cuts every axis by a slice (integers are slices of one), flips negative steps
and gives the axes of the middle shape: kept, new (size 1) or dropped.  The advanced stage moves the axes indexed by
arrays together, merges them into one and gathers along it.

A bound on a symbolic size n: ``x[k]``, ``x[k:]`` and ``x[:-k]`` need n >= k, which becomes part of the graph's ranges
(a stencil has sizes n - 2, not a minimum); ``x[:k]`` and ``x[-k:]`` take at most k elements for any n.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowc.dataclass import dataclass
from flowc.diag import FlowcIndexError, FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import Dim, DimLike, ceildiv, dmax, dmin, floordiv, prod
from flowc.graph import Node, constant
from flowc.numpy_core import (
    api,
    argument_error,
    axis_of,
    broadcast_shape,
    cast,
    common_dtype,
    counts_to,
    dtype_error,
    emit,
    node_of,
    operand,
    reshape,
    same_size,
    shape_error,
    size_node,
    spread,
    tensor,
    transpose,
)
from flowc.numpy_elementwise import METHODS, Selection
from flowc.proofs import known_le
from flowc.size import SizeUnknownError, plain, ranges_now, rooms, stack
from flowc.tensor import Tensor, View, active_trace, describe, outside, read, value_needed, wrap
from flowc.types import bool_, i64

FULL = slice(None)


def index_error(text: str, x: Tensor | None = None, cure: str = "use an index inside the axis") -> FlowcIndexError:
    return FlowcIndexError("T008", text, loc=caller_loc(), notes=[describe(x)] if x is not None else [], cure=cure)


# ---- the basic stage ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Basic:
    """start, stop, step per axis of x (step positive), axes to flip afterwards, and the middle shape."""

    start: tuple[DimLike, ...]
    stop: tuple[DimLike, ...]
    step: tuple[int, ...]
    flip: tuple[int, ...]
    cut: tuple[DimLike, ...]  # shape after slicing
    middle: tuple[DimLike, ...]
    whole: bool  # every axis in full and in order

    def get(self, x: Node) -> Node:
        if not self.whole:
            x = emit("slice", x, start=self.start, stop=self.stop, step=self.step)
            x = emit("flip", x, axes=self.flip) if self.flip else x
        return reshape(x, self.middle)

    def put(self, x: Node, v: Node) -> Node:
        v = reshape(v, self.cut)
        v = emit("flip", v, axes=self.flip) if self.flip else v
        return v if self.whole else emit("update_slice", x, v, start=self.start, step=self.step)


def clamp(d: DimLike, n: DimLike) -> DimLike:
    """``min(max(d, 0), n)`` without what the ranges decide."""
    ranges = ranges_now()
    low = d if known_le(0, d, ranges) else 0 if known_le(d, 0, ranges) else dmax(d, 0)
    return low if known_le(low, n, ranges) else n if known_le(n, low, ranges) else dmin(low, n)


def _given(value: Any, what: str) -> DimLike:
    if isinstance(value, Tensor):
        raise value_needed(f"the {what} of a slice must be known while the function is traced", value,
                           "gather instead: x[i + np.arange(length)]")
    return plain(value) if isinstance(value, Dim) else operator.index(value)


def _bound(value: Any, n: DimLike, last: bool, turned: bool) -> DimLike:
    """One bound of a slice as a position, 0..n for positive and -1..n-1 for negative steps.  ``last``: the stop.

    On a symbolic ``n`` a bound that drops elements (``[k:]``, ``[:-k]``) needs them to be there; one that keeps at
    most so many (``[:k]``, ``[-k:]``) is cut off.
    """
    d = _given(value, "stop" if last else "start")
    drops = last != (isinstance(d, int) and d >= 0) if not turned else last == (isinstance(d, int) and d >= 0)
    if isinstance(d, int) and not isinstance(n, int) and drops:
        need = -d if d < 0 else d + 1 if turned else d
        active_trace().require(need, n, f"a slice bound {d} on an axis of size {n}", "pass a larger array")
        return n + d if d < 0 else d
    if isinstance(d, Dim):
        sign = known_le(0, d, ranges_now())
        if sign is None:
            active_trace().require(0, d, f"a slice bound {d}", "pass a size that cannot be negative")
        d = n + d if sign is False else d
    elif d < 0:
        d = n + d
    return clamp(d + 1, n) - 1 if turned else clamp(d, n)


def _slice(s: slice, n: DimLike) -> tuple[DimLike, DimLike, int, bool]:
    """start, stop, positive step and whether the result is flipped."""
    for part in (s.start, s.stop, s.step):
        if isinstance(part, (float, str, np.floating)):
            raise index_error(f"slice bounds must be integers, not {part!r}", cure="convert with int()")
    step = 1 if s.step is None else s.step
    if isinstance(step, (Tensor, Dim)):
        raise argument_error(f"the step of a slice must be a number, not {step!r}", "pass an integer", FlowcTypeError)
    step = operator.index(step)
    if step == 0:
        raise argument_error("the step of a slice must not be zero", "use a positive or negative step")
    turned = step < 0
    first: DimLike = (n - 1 if turned else 0) if s.start is None else _bound(s.start, n, False, turned)
    end: DimLike = (-1 if turned else n) if s.stop is None else _bound(s.stop, n, True, turned)
    if not turned:
        ordered = known_le(first, end, ranges_now())
        if ordered is None and isinstance(s.start, int) and isinstance(s.stop, int) and s.start >= 0 > s.stop:
            active_trace().require(first, end, f"the slice [{s.start}:{s.stop}] of an axis of size {n}",
                                   "pass a larger array")
            ordered = True
        return first, first if ordered is False else dmax(first, end) if ordered is None else end, step, False
    count = ceildiv(first - end, -step)
    if known_le(0, count, ranges_now()) is not True:
        count = dmax(count, 0)
    if isinstance(count, int) and count == 0:
        return 0, 0, 1, False
    return first + (count - 1) * step, first + 1, -step, True


# ---- taking an index apart ------------------------------------------------------------------------------------------

class Index:
    """An index expression of one tensor.

    shape: of the result.  scalar: integers for every axis, so the result is a number and no view.  copies: indexed by
    arrays, so the result is a copy.
    """

    def __init__(self, x: Tensor, key: Any):
        self.x, shape = x, x.type.shape
        items, self.mask_sizes = _items(key)
        arrays = [k for k in items if isinstance(k, (np.ndarray, Tensor))]
        used = sum(1 for k in items if k is not None and k is not Ellipsis and not _is_bool0(k))
        if used > len(shape):
            raise index_error(f"too many indices: {x.type} has {len(shape)} axes, the index names {used}", x,
                              "drop the indices that have no axis")
        if Ellipsis not in [k for k in items if k is Ellipsis]:
            items = [*items, Ellipsis]
            self.scalar = not arrays and len(items) - 1 == len(shape) == sum(1 for k in items if type(k) is int)
        else:
            self.scalar = False
        self.copies = any(a.ndim for a in arrays) or any(map(_is_bool0, items))
        self._split(items, shape, len(shape) - used)
        self._advanced(shape)

    def _split(self, items: list[Any], shape: tuple[DimLike, ...], missing: int) -> None:
        start: list[Any] = []
        stop: list[Any] = []
        step: list[Any] = []
        cut: list[Any] = []
        flip: list[int] = []
        middle: list[DimLike] = []
        self.indexed: list[tuple[int, Any]] = []  # (middle axis, index array)
        places: list[int] = []  # positions in the expression, to see whether arrays stand side by side
        axis = 0
        for place, k in enumerate(items):
            if k is None:
                middle.append(1)
                continue
            for part in [FULL] * missing if k is Ellipsis else [k]:
                if _is_bool0(part):  # an axis of its own, of size 1 or 0
                    self.indexed.append((len(middle), np.zeros(int(bool(part)), np.int64)))
                    middle.append(1)
                    places.append(place)
                    continue
                n = shape[axis]
                self._check_mask(place, n)
                if isinstance(part, slice):
                    lo, hi, by, turned = _slice(part, n)
                    size = ceildiv(hi - lo, by)
                    middle.append(size)
                    if turned:
                        flip.append(axis)
                elif type(part) is int and not self.copies:
                    lo = self._position(part, n)
                    hi, by, size = lo + 1, 1, 1
                else:
                    lo, hi, by, size = 0, n, 1, n
                    self.indexed.append((len(middle), np.asarray(part) if type(part) is int else part))
                    middle.append(n)
                    places.append(place)
                axis += 1
                for row, v in zip((start, stop, step, cut), (lo, hi, by, size)):
                    row.append(v)
        whole = not flip and tuple(cut) == tuple(shape) and all(isinstance(v, int) and v == 0 for v in start)
        self.basic = Basic(tuple(start), tuple(stop), tuple(step), tuple(flip), tuple(cut), tuple(middle), whole)
        self.together = not places or places[-1] - places[0] == len(places) - 1

    def _check_mask(self, place: int, n: DimLike) -> None:
        """A constant mask must have the size of the axis it is applied to."""
        want = self.mask_sizes.get(place, n)
        if same_size(want, n):
            return
        if isinstance(n, Dim):
            raise SizeUnknownError(f"a mask of size {want} on an axis of size {n}", [n],
                                   "use a mask of the axis's size", code="T003", notes=[describe(self.x)])
        raise index_error(f"a mask of size {want} does not fit an axis of size {n}", self.x,
                          "use a mask of the axis's size")

    def _position(self, k: int, n: DimLike) -> DimLike:
        if isinstance(n, int):
            if not -n <= k < n:
                raise index_error(f"index {k} is out of bounds for an axis of size {n}", self.x)
            return k % n
        active_trace().require(k + 1 if k >= 0 else -k, n, f"index {k} of an axis of size {n}", "pass a larger array")
        return k if k >= 0 else n + k

    def _advanced(self, shape: tuple[DimLike, ...]) -> None:
        middle = self.basic.middle
        if not self.indexed:
            self.shape, self.flat = middle, None
            return
        axes = [a for a, _ in self.indexed]
        rest = [a for a in range(len(middle)) if a not in axes]
        self.at = sum(1 for a in rest if a < axes[0]) if self.together else 0
        self.perm = (*rest[:self.at], *axes, *rest[self.at:])
        lead, tail = [middle[a] for a in rest[:self.at]], [middle[a] for a in rest[self.at:]]
        nodes = [_index_node(k, middle[a], len(axes) > 1, self.x) for a, k in self.indexed]
        given = [k for _, k in self.indexed]
        common = broadcast_shape([v.type.shape for v in nodes], "index with", given)
        self.flat = spread(nodes[0], common)
        for a, v in zip(axes[1:], nodes[1:]):
            scale = spread(size_node(middle[a]), common)
            self.flat = emit("add", emit("mul", self.flat, scale), spread(v, common))
        self.merged = (*lead, prod(middle[a] for a in axes), *tail)
        self.apart = (*lead, *[middle[a] for a in axes], *tail)
        self.shape = (*lead, *common, *tail)

    # ---- reading and writing

    def get(self, x: Node) -> Node:
        x = self.basic.get(x)
        if self.flat is None:
            return x
        return emit("gather", reshape(transpose(x, self.perm), self.merged), self.flat, axis=self.at)

    def put(self, x: Node, v: Node, op: str = "scatter") -> Node:
        if self.flat is None:
            return self.basic.put(x, v)
        inner = reshape(transpose(self.basic.get(x), self.perm), self.merged)
        inner = emit(op, inner, self.flat, v, axis=self.at)
        back = [0] * len(self.perm)
        for i, p in enumerate(self.perm):
            back[p] = i
        return self.basic.put(x, transpose(reshape(inner, self.apart), back))

    def corder(self) -> bool:
        """Is the result of a C-ordered base one piece of memory in C order."""
        first = next((a for a, n in enumerate(self.basic.cut) if not (isinstance(n, int) and n == 1)), 0)
        shape = self.x.type.shape
        return (not self.indexed and not self.basic.flip and all(s == 1 for s in self.basic.step)
                and self.basic.cut[first + 1:] == shape[first + 1:])


def _is_bool0(k: Any) -> bool:
    return isinstance(k, (bool, np.bool_)) or isinstance(k, np.ndarray) and k.dtype == bool and k.ndim == 0


def _items(key: Any) -> tuple[list[Any], dict[int, int]]:
    """An index expression as a list of int, slice, None, Ellipsis, bool, integer arrays and integer tensors; and for
    the places that come from masks the sizes these had."""
    out: list[Any] = []
    sizes: dict[int, int] = {}
    for k in key if isinstance(key, tuple) else (key,):
        if k is None or k is Ellipsis or isinstance(k, (slice, bool, np.bool_)) or type(k) is int:
            out.append(k)
        elif isinstance(k, Dim):
            out.append(tensor(k))
        elif isinstance(k, Tensor):
            out.append(_index_tensor(k))
        elif isinstance(k, (np.ndarray, np.generic, list, tuple)) or hasattr(k, "__array__"):
            a = operand(k)
            if isinstance(a, Tensor):
                out.append(_index_tensor(a))
            elif a.dtype == bool:
                sizes.update(enumerate(a.shape, len(out)))
                out += list(np.nonzero(a)) if a.ndim else [bool(a)]
            elif a.dtype.kind in "iu" or not a.size:
                out.append(int(a) if not a.ndim else a.astype(np.int64))
            else:
                raise index_error(f"arrays of {a.dtype} are no indices", cure="index with integers or booleans")
        elif hasattr(k, "__index__"):
            out.append(operator.index(k))
        else:
            raise index_error(f"{k!r} is no index", cure="index with integers, slices, None, ..., or integer arrays")
    if sum(1 for k in out if k is Ellipsis) > 1:
        raise index_error("an index may have only one ellipsis", cure="write the other axes as :")
    return out, sizes


def _index_tensor(k: Tensor) -> Tensor:
    if k.type.dtype.kind not in "iu":
        raise index_error(f"tensors of {k.dtype} are no indices", k, "cast the index to an integer dtype")
    return k


def _index_node(k: Any, n: DimLike, several: bool, x: Tensor) -> Node:
    """An index array as positions 0..n-1 in i64."""
    if isinstance(k, np.ndarray):
        return _constant_index(k, n, x)
    node = read(k)
    if counts_to(node, n):
        return cast(node, i64)
    if node.type.dtype.kind == "i" and node.op.name not in ("iota", "argmax", "argmin", "argsort", "size"):
        node = cast(node, i64)
        zero, whole = [spread(size_node(d), node.type.shape) for d in (0, n)]
        node = emit("select", emit("lt", node, zero), emit("add", node, whole), node)
    node = cast(node, i64)
    if several:  # each must stay on its own axis; gather clamps only the merged one
        zero, last = [spread(size_node(d), node.type.shape) for d in (0, n - 1)]
        node = emit("max", emit("min", node, last), zero)
    return node


def _constant_index(k: np.ndarray, n: DimLike, x: Tensor) -> Node:
    low, high = (int(k.min()), int(k.max())) if k.size else (0, -1)
    if isinstance(n, int):
        if k.size and not (-n <= low and high < n):
            bad = low if low < -n else high
            raise index_error(f"index {bad} is out of bounds for an axis of size {n}", x)
        return constant(np.where(k < 0, k + n, k), i64, caller_loc())
    trace = active_trace()
    if high >= 0:
        trace.require(high + 1, n, f"index {high} of an axis of size {n}", "pass a larger array")
    node = constant(k, i64, caller_loc())
    if low >= 0:
        return node
    trace.require(-low, n, f"index {low} of an axis of size {n}", "pass a larger array")
    whole = emit("add", node, spread(size_node(n), node.type.shape))
    return emit("select", constant(k < 0, bool_, caller_loc()), whole, node)


# ---- masks ----------------------------------------------------------------------------------------------------------

def _traced_mask(key: Any) -> tuple[Tensor, int, bool] | None:
    """(mask, full slices in front of it, is there an ellipsis in front); None without a traced mask.  Masks stand
    alone or beside full slices."""
    keys = key if isinstance(key, tuple) else (key,)
    masks = [k for k in keys if isinstance(k, Tensor) and k.type.dtype is bool_]
    if not masks:
        return None
    place = next(i for i, k in enumerate(keys) if k is masks[0])
    if len(masks) > 1 or any(k is not Ellipsis and not (isinstance(k, slice) and k == FULL)
                             for i, k in enumerate(keys) if i != place):
        raise value_needed("a traced mask beside other indices: how many elements it selects is not known while the "
                           "function is traced", masks[0], "index first, then use flowc.numpy.where(mask, a, b)")
    dots = any(k is Ellipsis for k in keys[:place])
    return masks[0], len(keys) - place - 1 if dots else place, dots


def _mask_axes(x: Tensor, found: tuple[Tensor, int, bool]) -> tuple[int, Node]:
    """The first axis a mask covers, and the mask spread over all of ``x``."""
    mask, beside, dots = found
    first = x.ndim - beside - mask.ndim if dots else beside
    node, shape = read(mask), x.type.shape
    if first < 0 or first + mask.ndim > x.ndim:
        raise index_error(f"a mask of {mask.ndim} axes does not fit {x.type}", x, "use a mask of the array's shape")
    axes = tuple(range(first, first + mask.ndim))
    for a, n in zip(axes, mask.type.shape):
        if n != shape[a]:
            raise shape_error("index with a mask:", [x, mask], shape[a], n)
    return first, emit("broadcast", node, shape=shape, axes=axes) if mask.ndim < x.ndim else node


def _put_mask(x: Tensor, found: tuple[Tensor, int, bool], value: Any) -> Node:
    first, mask = _mask_axes(x, found)
    old = read(x)
    if type(value) is Selection:
        if value.mask != (read(found[0]), first) or value.whole.type.shape != x.type.shape:
            raise value._refuse("assignment from another mask's")
        return emit("select", mask, cast(read(value.whole), old.type.dtype), old)
    v = node_of(operand(value), old.type.dtype)
    tail = x.ndim - first - found[0].ndim
    if v.rank > tail:
        count = v.type.shape[v.rank - tail - 1]
        if count != 1:
            raise value_needed(f"x[mask] = v with {count} values: which element gets which is not known while the "
                               "function is traced", found[0], "give one value, or use "
                               "flowc.numpy.where(mask, values of the full shape, x)")
        lead = v.type.shape[:v.rank - tail - 1]
        v = reshape(v, (*lead, *[1] * found[0].ndim, *v.type.shape[v.rank - tail:]))
    broadcast_shape([old.type.shape, v.type.shape], "assign", [x, wrap(v)])
    return emit("select", mask, spread(v, old.type.shape), old)


# ---- x[key], x[key] = v ---------------------------------------------------------------------------------------------

def getitem(x: Tensor, key: Any) -> Any:
    if not stack.get():
        return outside(lambda: getitem(x, key), x)
    found = _traced_mask(key)
    if found is not None:
        first, _ = _mask_axes(x, found)
        return Selection(wrap(read(x)), (read(found[0]), first))
    index = Index(x, key)
    if index.copies or index.scalar:
        return wrap(index.get(read(x)))
    return x.alias(View(index.get, index.put), corder=x._corder and index.corder())


def setitem(x: Tensor, key: Any, value: Any) -> None:
    if not stack.get():
        outside(lambda: setitem(x, key, value), x)
        return
    found = _traced_mask(key)
    if found is not None:
        x.write(_put_mask(x, found, value))
        return
    if type(value) is Selection:
        raise value._refuse("assignment of")
    if isinstance(key, np.ndarray) and key.dtype == bool and key.ndim and key.shape == x.type.shape[:key.ndim] and (
            getattr(operand(value), "ndim", 0) == 0):
        mask = wrap(constant(key, bool_, caller_loc()))  # one value: no need to scatter
        x.write(_put_mask(x, (mask, 0, False), value))
        return
    index = Index(x, key)
    old = read(x)
    x.write(index.put(old, fitted(value, index, old, x)))


def fitted(value: Any, index: Index, old: Node, x: Tensor) -> Node:
    """A value cast and broadcast to the place an index names; leading axes of size 1 too many are dropped."""
    given = operand(value)
    if type(given) is complex and old.type.dtype.kind != "c":
        raise dtype_error("assign", [x, given], "a complex number has no value in a real dtype")
    v = node_of(given, old.type.dtype)
    extra = v.rank - len(index.shape)
    if extra > 0 and all(isinstance(n, int) and n == 1 for n in v.type.shape[:extra]):
        v = reshape(v, v.type.shape[extra:])
    if v.type.shape != index.shape:
        shape = broadcast_shape([index.shape, v.type.shape], "assign", [x, given])
        if shape != index.shape:
            a, b = next(((a, b) for a, b in zip(reversed(index.shape), reversed(shape)) if a != b),
                        (len(index.shape), len(shape)))
            raise shape_error("assign", [x, given], a, b)
        v = spread(v, shape)
    return v


rooms.getitem, rooms.setitem = getitem, setitem


# ---- functions ------------------------------------------------------------------------------------------------------

def _at(sign: int) -> Any:
    def add_at(x: Any, key: Any, value: Any) -> None:
        if not isinstance(x, Tensor):
            raise FlowcTypeError("T005", "a traced value cannot be added into a NumPy array", loc=caller_loc(),
                                 cure="make the array with flowc.numpy.zeros")
        if _traced_mask(key) is not None:
            setitem(x, key, rooms.operator(np.add if sign > 0 else np.subtract, getitem(x, key), value))
            return
        index, old = Index(x, key), read(x)
        v = fitted(value, index, old, x)
        v = v if sign > 0 else emit("neg", v)
        if index.flat is None:
            x.write(index.put(old, emit("add", index.get(old), v)))
        else:
            x.write(index.put(old, v, "scatter_add"))
    return add_at


METHODS[(np.add, "at")], METHODS[(np.subtract, "at")] = _at(1), _at(-1)


def gather_along(x: Tensor, indices: Any, axis: int) -> Node:
    """Elements ``indices`` (any shape, in range) of one axis."""
    node = _index_node(operand(indices), x.type.shape[axis], False, x)
    return emit("gather", read(x), node, axis=axis)


@api(np.take, method="take")
def take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    """Elements along an axis; without one, of the flattened array.  mode: raise (tracing: traced indices clamp),
    wrap, clip."""
    x = tensor(a)
    if axis is None:
        x, axis = wrap(reshape(read(x), (x.type.size,))), 0
    axis = axis_of(axis, x.ndim)
    n = x.type.shape[axis]
    k = operand(indices)
    k = np.asarray(k) if not isinstance(k, (Tensor, np.ndarray)) else k
    if mode != "raise":
        if mode not in ("wrap", "clip"):
            raise argument_error(f"take has no mode {mode!r}", "use raise, wrap or clip")
        node = node_of(k, i64)
        whole, zero, last = [spread(size_node(d), node.type.shape) for d in (n, 0, n - 1)]
        node = emit("mod", node, whole) if mode == "wrap" else emit("max", emit("min", node, last), zero)
        result = wrap(emit("gather", read(x), node, axis=axis))
    else:
        if (k.type.dtype.kind if isinstance(k, Tensor) else k.dtype.kind) not in "iu" and k.size:
            raise index_error("take needs integer indices", cure="cast the indices to an integer dtype")
        result = wrap(gather_along(x, k.astype(np.int64) if isinstance(k, np.ndarray) else k, axis))
    if out is not None:
        setitem(out, Ellipsis, result)
    return result if out is None else out


def _along(x: Tensor, indices: Any, axis: int) -> tuple[Any, ...]:
    k = tensor(indices)
    if k.ndim != x.ndim:
        raise index_error(f"the indices have {k.ndim} axes, the array {x.ndim}", x, "give both the same axes")
    keys: list[Any] = []
    for a in range(x.ndim):
        if a == axis:
            keys.append(indices if isinstance(indices, Tensor) else np.asarray(indices))
            continue
        size = k.type.shape[a] if k.type.shape[a] != 1 else x.type.shape[a]
        row = emit("iota", shape=(size,), axis=0, dtype=i64)
        keys.append(wrap(reshape(row, [size if b == a else 1 for b in range(x.ndim)])))
    return tuple(keys)


@api(np.take_along_axis)
def take_along_axis(arr: Any, indices: Any, axis: Any = -1) -> Tensor:
    """Elements matching 1-D index and data slices along ``axis``."""
    x = tensor(arr)
    if axis is None:
        x, axis = wrap(reshape(read(x), (x.type.size,))), 0
    return getitem(x, _along(x, indices, axis_of(axis, x.ndim)))


@api(np.put_along_axis)
def put_along_axis(arr: Any, indices: Any, values: Any, axis: Any) -> None:
    """Write ``values`` where take_along_axis reads."""
    setitem(arr, _along(arr, indices, axis_of(axis, arr.ndim)), values)


@api(np.putmask)
def putmask(a: Any, mask: Any, values: Any) -> None:
    """``a[mask] = values`` for values that broadcast against ``a``."""
    m = node_of(operand(mask), bool_)
    v = node_of(operand(values), a.type.dtype)
    a.write(emit("select", spread(m, a.type.shape), spread(v, a.type.shape), read(a)))


@api(np.copyto)
def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    """``dst[where] = src``."""
    if where is True:
        setitem(dst, Ellipsis, src)
        return
    putmask(dst, where, src)


def parts_of(n: DimLike, sections: int) -> DimLike:
    """The size of one of ``sections`` equal parts.  T003 if they are not known to be equal."""
    left = n % sections
    if not (isinstance(left, int) and left == 0):
        if isinstance(n, Dim):
            raise SizeUnknownError(f"{n} is not known to be a multiple of {sections}", [n], "use array_split")
        raise FlowcValueError("T003", f"an axis of size {n} has no {sections} equal parts", loc=caller_loc(),
                              cure="use array_split")
    return floordiv(n, sections)


@api(np.choose, method="choose")
def choose(a: Any, choices: Sequence[Any], out: Any = None, mode: str = "raise") -> Tensor:
    """Element by element the choice that ``a`` names."""
    xs = [operand(c) for c in choices]
    d = common_dtype(*xs)
    k = operand(a)
    shape = broadcast_shape([node_of(k).type.shape, *[node_of(x).type.shape for x in xs]], "choose from", xs)
    which = spread(node_of(k, i64), shape)
    result = spread(node_of(xs[-1], d), shape)
    for i in range(len(xs) - 2, -1, -1):
        here = emit("le" if i == 0 else "eq", which, spread(size_node(i), shape))
        result = emit("select", here, spread(node_of(xs[i], d), shape), result)
    return wrap(result)
