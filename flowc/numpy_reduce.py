"""Reductions and running sums: sum, mean, var, max, argmax, all, cumsum, median, their nan-variants.

Not here: products of matrices (numpy_linalg.py), the reductions' own arithmetic (ops/reduce.py).
Read next: numpy_linalg.py.

Result dtypes are NumPy's: sums of small integers are 64 bits wide, means of integers float64.  float16 and bfloat16 are
summed in float32.  A mean over a symbolic axis divides by the size as a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError
from flowc.dims import DimLike, prod
from flowc.graph import Node
from flowc.numpy_core import (
    api,
    argument_error,
    axes_of,
    axis_of,
    broadcast_shape,
    cast,
    dtype_error,
    emit,
    fill,
    into,
    node_of,
    operand,
    reshape,
    size_node,
    spec,
    spread,
    tensor,
    to_dtype,
)
from flowc.numpy_elementwise import METHODS, ufunc_call
from flowc.numpy_index import getitem
from flowc.numpy_join import concatenate
from flowc.size import as_size
from flowc.tensor import Tensor, active_trace, read, wrap
from flowc.types import DType, bf16, bool_, f16, f32, f64, i64, u64

NOTHING: Any = getattr(np, "_NoValue", None)  # how NumPy marks arguments that were not given


def given(x: Any) -> bool:
    return x is not None and x is not NOTHING


def _eager_wide(name: str) -> Callable[..., Any]:
    """NumPy's function, with bfloat16 computed in float32: its own loops add in bfloat16."""
    fn = getattr(np, name)

    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(a, "dtype", None) is not None and a.dtype.name == "bfloat16" and kwargs.get("dtype") is None:
            return np.asarray(fn(np.asarray(a, np.float32), *args, **kwargs)).astype(a.dtype)
        return fn(a, *args, **kwargs)
    return call


def sum_dtype(d: DType) -> DType:
    """The dtype NumPy sums in: 64 bits for integers and booleans."""
    return i64 if d.kind in "bi" else u64 if d.kind == "u" else d


def reduce_node(op: str, node: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    shape = node.type.shape
    out = emit(op, node, axes=axes) if axes else node
    return reshape(out, [1 if a in axes else n for a, n in enumerate(shape)]) if keepdims else out


def masked(node: Node, where: Any, unit: Any) -> Node:
    """``node`` with the elements outside ``where`` replaced by a unit."""
    if where is True or where is NOTHING or where is None:
        return node
    mask = spread(node_of(operand(where), bool_), node.type.shape)
    return emit("select", mask, node, fill(unit, node.type.dtype, node.type.shape))


def _fold(op: str, merge: np.ufunc, unit: Any) -> Callable[..., Tensor]:
    def build(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, initial: Any = None,
              where: Any = True) -> Tensor:
        x = tensor(a)
        d = to_dtype(dtype) if dtype is not None else sum_dtype(x.type.dtype)
        node = masked(node_of(x, d), where, unit)
        result = wrap(reduce_node(op, node, axes_of(axis, x.ndim), keepdims is True))
        if given(initial):
            result = wrap(cast(read(ufunc_call(merge, result, initial)), d))
        return into(out, result)
    return build


sum_ = api(np.sum, method="sum", eager=_eager_wide("sum"))(_fold("reduce_sum", np.add, 0))
prod_ = api(np.prod, method="prod", eager=_eager_wide("prod"))(_fold("reduce_prod", np.multiply, 1))


def _not_empty(x: Tensor, axes: tuple[int, ...], what: str) -> None:
    n = prod(x.type.shape[a] for a in axes)
    if isinstance(n, int) and n == 0:
        raise argument_error(f"{what} of an empty axis: {x.type} has no largest or smallest element there",
                             "give initial=, or pass an array with elements")
    for a in axes:
        if not isinstance(x.type.shape[a], int):
            active_trace().require(1, x.type.shape[a], f"{what} along axis {a} of {x.type}",
                                   "pass an array with elements")


def _extreme(op: str, merge: np.ufunc, largest: bool) -> Callable[..., Tensor]:
    def build(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, initial: Any = None,
              where: Any = True) -> Tensor:
        x = tensor(a)
        axes = axes_of(axis, x.ndim)
        if not given(initial):
            _not_empty(x, axes, merge.__name__)
            if given(where) and where is not True:
                raise argument_error(f"np.{merge.__name__} with where= needs initial=", "give the value of no elements")
        elif any(isinstance(x.type.shape[k], int) and x.type.shape[k] == 0 for k in axes):
            kept = [n for k, n in enumerate(x.type.shape) if k not in axes]
            return into(out, wrap(spread(node_of(operand(initial), x.type.dtype), tuple(kept))))
        node = read(x)
        if given(initial) and where is not True and where is not NOTHING:
            mask = spread(node_of(operand(where), bool_), node.type.shape)
            node = emit("select", mask, node, spread(node_of(operand(initial), node.type.dtype), node.type.shape))
        small = node.type.dtype is bool_
        result = wrap(reduce_node(("reduce_or" if largest else "reduce_and") if small else op, node, axes,
                                  keepdims is True))
        if given(initial):
            result = wrap(cast(read(ufunc_call(merge, result, initial)), node.type.dtype))
        return into(out, result)
    return build


max_ = api(np.max, np.amax, method="max")(_extreme("reduce_max", np.maximum, True))
min_ = api(np.min, np.amin, method="min")(_extreme("reduce_min", np.minimum, False))


def _logical(op: str, unit: bool) -> Callable[..., Tensor]:
    def build(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True) -> Tensor:
        x = tensor(a)
        node = masked(node_of(x, bool_), where, unit)
        return into(out, wrap(reduce_node(op, node, axes_of(axis, x.ndim), keepdims is True)))
    return build


all_ = api(np.all, method="all")(_logical("reduce_and", True))
any_ = api(np.any, method="any")(_logical("reduce_or", False))


def _position(op: str) -> Callable[..., Tensor]:
    def build(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Tensor:
        x = tensor(a)
        node = read(x)
        if axis is None:
            flat, axes = reshape(node, (x.type.size,)), (0,)
        else:
            flat, axes = node, (axis_of(axis, x.ndim),)
        _not_empty(wrap(flat), axes, op)
        found = emit(op, flat, axes=axes)
        if keepdims is True:
            found = reshape(found, [1 if axis is None or k in axes else n for k, n in enumerate(x.type.shape)])
        return into(out, wrap(found))
    return build


argmax = api(np.argmax, method="argmax")(_position("argmax"))
argmin = api(np.argmin, method="argmin")(_position("argmin"))


@api(np.count_nonzero)
def count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Tensor:
    """How many elements are not zero."""
    x = tensor(a)
    ones = cast(node_of(x, bool_), i64)
    return wrap(reduce_node("reduce_sum", ones, axes_of(axis, x.ndim), keepdims is True))


# ---- means ----------------------------------------------------------------------------------------------------------

def _count(shape: tuple[DimLike, ...], axes: tuple[int, ...], d: DType, where: Any, ddof: Any = 0) -> Node:
    """How many elements a mean divides by, less ``ddof``, not below 0."""
    if given(where) and where is not True:
        mask = cast(spread(node_of(operand(where), bool_), shape), i64)
        count = reduce_node("reduce_sum", mask, axes, True)
    else:
        total = prod(shape[a] for a in axes)
        if isinstance(total, int) and isinstance(ddof, (int, float)):
            value = total - ddof
            return node_of(float(value) if value > 0 else 0.0, d)
        count = size_node(total)
    number = cast(count, d)
    if not (isinstance(ddof, (int, float)) and ddof == 0):
        number = emit("sub", number, spread(node_of(operand(ddof), d), number.type.shape))
        number = emit("max", number, fill(0, d, number.type.shape))
    return number


def _divide(total: Node, count: Node) -> Node:
    return emit("div", total, spread(count, total.type.shape))


def mean_dtype(d: DType) -> DType:
    return f64 if d.kind in "biu" else d


def _mean_node(node: Node, axes: tuple[int, ...], where: Any) -> Node:
    """Mean with the reduced axes kept as 1, in the dtype of ``node``."""
    total = reduce_node("reduce_sum", masked(node, where, 0), axes, True)
    return _divide(total, _count(node.type.shape, axes, node.type.dtype, where))


def _wide(d: DType) -> DType:
    return f32 if d in (f16, bf16) else d


def _squeezed(node: Node, axes: tuple[int, ...], keepdims: Any) -> Node:
    return node if keepdims is True else reshape(node, [n for a, n in enumerate(node.type.shape) if a not in axes])


@api(np.mean, method="mean", eager=_eager_wide("mean"))
def mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, *,
         where: Any = True) -> Tensor:
    """Arithmetic mean along axes."""
    x = tensor(a)
    d = to_dtype(dtype) if dtype is not None else mean_dtype(x.type.dtype)
    axes = axes_of(axis, x.ndim)
    node = _squeezed(_mean_node(node_of(x, _wide(d)), axes, where), axes, keepdims)
    return into(out, wrap(cast(node, d)))


def _variance(a: Any, axis: Any, dtype: Any, ddof: Any, keepdims: Any, where: Any, mean: Any, root: bool) -> Tensor:
    x = tensor(a)
    d = to_dtype(dtype) if dtype is not None else mean_dtype(x.type.dtype)
    axes = axes_of(axis, x.ndim)
    node = node_of(x, _wide(d))
    middle = _mean_node(node, axes, where) if not given(mean) else node_of(operand(mean), node.type.dtype)
    gap = emit("sub", node, spread(middle, node.type.shape))
    if d.kind == "c":
        square = emit("real", emit("mul", gap, emit("conj", gap)))
    else:
        square = emit("mul", gap, gap)
    total = reduce_node("reduce_sum", masked(square, where, 0), axes, True)
    result = _divide(total, _count(node.type.shape, axes, total.type.dtype, where, ddof))
    result = emit("sqrt", result) if root else result
    return wrap(cast(_squeezed(result, axes, keepdims), d.real))


def _spread_function(root: bool) -> Callable[..., Tensor]:
    def build(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False, *,
              where: Any = True, mean: Any = None, correction: Any = None) -> Tensor:
        ddof = correction if given(correction) else ddof
        return into(out, _variance(a, axis, dtype, ddof, keepdims, where, mean, root))
    return build


var = api(np.var, method="var", eager=_eager_wide("var"))(_spread_function(False))
std = api(np.std, method="std", eager=_eager_wide("std"))(_spread_function(True))


@api(np.average)
def average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    """Mean with weights of the array's shape or of one axis."""
    x = tensor(a)
    if weights is None:
        result = mean(x, axis, keepdims=keepdims)
        if not returned:
            return result
        count = _count(x.type.shape, axes_of(axis, x.ndim), result.type.dtype, True)
        return result, wrap(spread(count, result.type.shape))
    w = tensor(weights)
    if w.type.shape != x.type.shape:
        k = axis_of(axis, x.ndim) if axis is not None and not isinstance(axis, tuple) else None
        if k is None or w.ndim != 1:
            raise argument_error("weights must have the array's shape, or one axis with axis= given",
                                 "pass such weights", FlowcTypeError)
        column = reshape(read(w), [w.type.size if i == k else 1 for i in range(x.ndim)])
        w = wrap(spread(column, broadcast_shape([x.type.shape, column.type.shape], "weigh", [x, w])))
    floats = ufunc_call(np.true_divide, ufunc_call(np.multiply, x, w), 1)  # integers weigh in float64
    total = sum_(ufunc_call(np.multiply, w, 1.0), axis, keepdims=keepdims, dtype=floats.dtype)
    result = ufunc_call(np.true_divide, sum_(floats, axis, keepdims=keepdims), total)
    return (result, total) if returned else result


@api(np.ptp)
def ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Tensor:
    """Largest minus smallest."""
    return into(out, ufunc_call(np.subtract, max_(a, axis, keepdims=keepdims), min_(a, axis, keepdims=keepdims)))


# ---- running sums ---------------------------------------------------------------------------------------------------

def _running(op: str) -> Callable[..., Tensor]:
    def build(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Tensor:
        x = tensor(a)
        d = to_dtype(dtype) if dtype is not None else sum_dtype(x.type.dtype)
        node = node_of(x, d)
        if axis is None or x.ndim == 0:
            node, k = reshape(node, (x.type.size,)), 0
        else:
            k = axis_of(axis, x.ndim)
        return into(out, wrap(emit(op, node, axis=k), corder=x._corder))
    return build


cumsum = api(np.cumsum, method="cumsum")(_running("cumsum"))
cumprod = api(np.cumprod, method="cumprod")(_running("cumprod"))


def _cumulative(running: Callable[..., Tensor], unit: int) -> Callable[..., Tensor]:
    def build(x: Any, /, *, axis: Any = None, dtype: Any = None, out: Any = None,
              include_initial: bool = False) -> Tensor:
        t = tensor(x)
        if axis is None and t.ndim > 1:
            raise argument_error("axis= is needed for arrays of more than one axis", "name the axis")
        k = axis_of(0 if axis is None else axis, t.ndim)
        result = running(t, k, dtype)
        if include_initial:
            shape = [1 if i == k else n for i, n in enumerate(t.type.shape)]
            result = concatenate([wrap(fill(unit, result.type.dtype, shape)), result], k)
        return into(out, result)
    return build


api(getattr(np, "cumulative_sum", None))(_cumulative(cumsum, 0))
api(getattr(np, "cumulative_prod", None))(_cumulative(cumprod, 1))

# ---- order statistics -----------------------------------------------------------------------------------------------


def _sorted_last(a: Any, axis: Any) -> tuple[Tensor, tuple[DimLike, ...]]:
    """Elements in order along one last axis that joins ``axis``, and the shape with those axes as 1."""
    x = tensor(a)
    axes = axes_of(axis, x.ndim)
    _not_empty(x, axes, "an order statistic")
    rest = [k for k in range(x.ndim) if k not in axes]
    node = cast(read(x), mean_dtype(x.type.dtype))
    node = emit("transpose", node, perm=(*rest, *axes)) if axes else node
    shape = node.type.shape
    node = reshape(node, (*shape[:len(rest)], prod(shape[len(rest):])))
    kept = tuple(1 if k in axes else n for k, n in enumerate(x.type.shape))
    return wrap(emit("sort", node, axis=len(rest))), kept


@api(np.quantile)
def quantile(a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, method: str = "linear",
             keepdims: Any = False) -> Tensor:
    """Values below which a share ``q`` of the elements lies; method: linear, lower, higher, midpoint, nearest."""
    if spec(operand(a)) is bool_:
        raise dtype_error("interpolate between", [operand(a)], "booleans have no differences")
    row, kept = _sorted_last(a, axis)
    n = row.shape[-1]
    share = ufunc_call(np.multiply, ufunc_call(np.multiply, tensor(q), 1.0), n - 1)
    low, high = ufunc_call(np.floor, share), ufunc_call(np.ceil, share)
    picks = {"linear": (low, high), "midpoint": (low, high), "lower": (low, low), "higher": (high, high),
             "nearest": (ufunc_call(np.rint, share),) * 2}
    if method not in picks:
        raise argument_error(f"quantile has no method {method!r} on traced values", f"use one of {', '.join(picks)}")
    first, second = [getitem(row, (Ellipsis, wrap(cast(read(p), i64)))) for p in picks[method]]
    part = ufunc_call(np.subtract, share, low) if method == "linear" else tensor(0.5)
    part = wrap(cast(read(part), row.type.dtype))
    gap = second - first
    result = ufunc_call(np.add, first, gap * part)
    late = wrap(emit("ge", read(part), fill(0.5, part.type.dtype, part.type.shape)))
    result = _choose(late, second - gap * (1 - part), result)  # as NumPy: exact at both ends
    last = getitem(row, (Ellipsis, slice(-1, None)))
    if tensor(q).ndim == 0:
        last = getitem(last, (Ellipsis, 0))
    result = _choose(ufunc_call(np.isnan, last), last, result)
    count = tensor(q).ndim
    if count:
        order = (*range(result.ndim - count, result.ndim), *range(result.ndim - count))
        result = wrap(emit("transpose", read(result), perm=order))
    if keepdims is True:
        result = wrap(reshape(read(result), (*result.type.shape[:count], *kept)))
    return into(out, result)


def _choose(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    shape = b.type.shape
    return wrap(emit("select", spread(read(mask), shape), spread(read(a), shape), read(b)))


@api(np.percentile)
def percentile(a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False,
               method: str = "linear", keepdims: Any = False) -> Tensor:
    """quantile with ``q`` in percent."""
    return quantile(a, ufunc_call(np.true_divide, tensor(q), 100), axis, out, method=method, keepdims=keepdims)


@api(np.median)
def median(a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: Any = False) -> Tensor:
    """The middle element, or the mean of the two middle ones; NaN where there is a NaN."""
    row, kept = _sorted_last(a, axis)
    n = row.type.shape[-1]
    low, high = [getitem(row, (Ellipsis, as_size(k))) for k in ((n - 1) // 2, n // 2)]
    last = getitem(row, (Ellipsis, -1))
    middle = ufunc_call(np.true_divide, low + high, 2)
    middle = _choose(wrap(emit("eq", read(low), read(high))), low, middle)  # also two equal infinities
    result = _choose(ufunc_call(np.isnan, last), last, middle)
    return into(out, wrap(reshape(read(result), kept)) if keepdims is True else result)


# ---- without NaN ----------------------------------------------------------------------------------------------------

def _without_nan(reduce: Callable[..., Tensor], replacement: Any) -> Callable[..., Tensor]:
    """The reduction with NaN replaced, or left out of the count (replacement None)."""
    def build(a: Any, axis: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        x = tensor(a)
        if x.type.dtype.kind not in "fc":
            return reduce(x, axis, *args, **kwargs)
        valid = ufunc_call(np.logical_not, ufunc_call(np.isnan, x))
        if replacement is None:
            return reduce(x, axis, *args, where=valid, **kwargs)
        filled = emit("select", read(valid), read(x), fill(replacement, x.type.dtype, x.type.shape))
        result = reduce(wrap(filled), axis, *args, **kwargs)
        if replacement in (0, 1):
            return result
        some = any_(valid, axis, keepdims=kwargs.get("keepdims", False))
        return _choose(some, result, wrap(fill(np.nan, result.type.dtype, result.type.shape)))
    return build


for _name, _reduce, _replacement in (
        ("nansum", sum_, 0), ("nanprod", prod_, 1), ("nanmax", max_, -np.inf), ("nanmin", min_, np.inf),
        ("nanmean", mean, None), ("nanvar", var, None), ("nanstd", std, None),
        ("nancumsum", cumsum, 0), ("nancumprod", cumprod, 1)):
    api(getattr(np, _name))(_without_nan(_reduce, _replacement))


# ---- ufunc.reduce and ufunc.accumulate ------------------------------------------------------------------------------

def _ufunc_method(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(array: Any, axis: Any = 0, *args: Any, **kwargs: Any) -> Tensor:
        return build(array, axis, *args, **kwargs)
    return call


METHODS.update({(u, "reduce"): _ufunc_method(f) for u, f in (
    (np.add, sum_), (np.multiply, prod_), (np.maximum, max_), (np.minimum, min_), (np.logical_and, all_),
    (np.logical_or, any_))})
METHODS.update({(np.add, "accumulate"): _ufunc_method(cumsum), (np.multiply, "accumulate"): _ufunc_method(cumprod)})
