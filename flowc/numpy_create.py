"""Arrays from nothing: zeros, full, arange, linspace, eye, meshgrid; asarray.

Inside a trace these make tensors, also where NumPy would make a plain array: they may be written to with traced values.
Sizes may be symbolic.  Not here: random numbers (random.py).  Read next: numpy_api.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import Dim, DimLike, ceildiv, dmax
from flowc.graph import Node
from flowc.numpy_core import (
    api,
    argument_error,
    as_dim,
    as_shape,
    cast,
    emit,
    fill,
    node_of,
    operand,
    reshape,
    size_node,
    spread,
    static_int,
    tensor,
    to_dtype,
)
from flowc.numpy_elementwise import ufunc_call
from flowc.numpy_join import band
from flowc.numpy_shape import broadcast_to, moveaxis, reshaped
from flowc.proofs import known_le
from flowc.size import plain, ranges_now
from flowc.tensor import Tensor, describe, read, value_needed, wrap
from flowc.types import DType, f64, i64


def fresh(node: Node) -> Tensor:
    """A new array of its own: may be written, in C order."""
    return wrap(node, corder=True, cell=True)


def _dtype(dtype: Any, default: DType = f64) -> DType:
    return default if dtype is None else to_dtype(dtype)


# ---- conversion -----------------------------------------------------------------------------------------------------

def _converted(a: Any, dtype: Any, copy: bool | None) -> Tensor:
    x = tensor(a)
    d = x.type.dtype if dtype is None else to_dtype(dtype)
    array = x._cell or x.ndim > 0
    if x is a and array and d is x.type.dtype and not copy and not x.weak:
        return x
    if copy is False:
        raise FlowcValueError("T009", "asarray cannot avoid a copy here", loc=caller_loc(), notes=[describe(x)],
                              cure="leave out copy=False")
    return fresh(node_of(a if not isinstance(a, (Tensor, list, tuple)) else x, d))


@api(names="asarray ascontiguousarray", eager=np.asarray)
def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, device: Any = None,
            like: Any = None) -> Tensor:
    """A tensor of numbers, lists, arrays; tensors stay themselves."""
    return _converted(a, dtype, copy)


@api(names="array", eager=np.array)
def array(a: Any, dtype: Any = None, *, copy: bool | None = True, order: Any = None, ndmin: int = 0,
          subok: bool = False, like: Any = None) -> Tensor:
    """A new array of numbers, lists, arrays or tensors."""
    x = _converted(a, dtype, copy)
    return x if x.ndim >= ndmin else reshaped(x, (1,) * (ndmin - x.ndim) + x.type.shape)


# ---- constant values ------------------------------------------------------------------------------------------------

def _constant(value: int, fn: Any) -> None:
    def build(shape: Any, dtype: Any = None, order: str = "C", *, device: Any = None, like: Any = None) -> Tensor:
        return fresh(fill(value, _dtype(dtype), as_shape(shape)))

    def build_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, *,
                   device: Any = None) -> Tensor:
        x = tensor(a)
        return fresh(fill(value, _dtype(dtype, x.type.dtype), x.type.shape if shape is None else as_shape(shape)))
    build.__doc__ = f"A new array of {fn.__name__}."
    build_like.__doc__ = f"A new array of {fn.__name__} in the shape of another."
    api(fn)(build)
    api(getattr(np, f"{fn.__name__}_like"))(build_like)


for _value, _fn in ((0, np.zeros), (1, np.ones), (0, np.empty)):
    _constant(_value, _fn)


@api(np.full)
def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", *, device: Any = None,
         like: Any = None) -> Tensor:
    """A new array of one value (or of an array that broadcasts)."""
    node = node_of(operand(fill_value), None if dtype is None else to_dtype(dtype))
    return fresh(read(broadcast_to(wrap(node), as_shape(shape))))


@api(np.full_like)
def full_like(a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, *,
              device: Any = None) -> Tensor:
    """A new array of one value in the shape and dtype of another."""
    x = tensor(a)
    return full(x.type.shape if shape is None else shape, fill_value, dtype=_dtype(dtype, x.type.dtype))


# ---- ranges ---------------------------------------------------------------------------------------------------------

def _row(n: DimLike, start: Any, step: Any, d: DType) -> Node:
    """``start + step * (0 .. n-1)``; integers and sizes, computed in i64 for integer dtypes."""
    work = d if d.floating else i64
    node = emit("iota", shape=(n,), axis=0, dtype=work)
    for op, value, unit in (("mul", step, 1), ("add", start, 0)):
        if isinstance(value, Dim) or value != unit:
            number = size_node(plain(value), work) if isinstance(value, (int, Dim)) else node_of(value, work)
            node = emit(op, node, spread(number, (n,)))
    return cast(node, d)


@api(np.arange)
def arange(start: Any, /, stop: Any = None, step: Any = 1, dtype: Any = None, *, device: Any = None,
           like: Any = None) -> Tensor:
    """Numbers from start (0) to below stop in steps; integer bounds may be symbolic sizes."""
    lo, hi = (0, start) if stop is None else (start, stop)
    for v in (lo, hi, step):
        if isinstance(v, Tensor):
            raise value_needed("arange needs bounds that are known while the function is traced: they set a shape", v,
                               "use sizes from x.shape, or a range of the greatest length with flowc.numpy.where")
    lo, hi, step = [plain(v) if isinstance(v, Dim) else v.item() if isinstance(v, np.generic) else v
                    for v in (lo, hi, step)]
    if not any(isinstance(v, Dim) for v in (lo, hi, step)):
        if any(isinstance(v, float) for v in (lo, hi, step)):
            return fresh(node_of(np.arange(lo, hi, step, dtype=None if dtype is None else to_dtype(dtype).numpy)))
        return fresh(_row(len(range(lo, hi, step)), lo, step, _dtype(dtype, i64)))
    if isinstance(step, Dim) or any(isinstance(v, float) for v in (lo, hi, step)):
        raise argument_error("arange over symbolic sizes needs integer bounds and a known step", "multiply the range "
                             "by the step instead", FlowcTypeError)
    count = ceildiv(hi - lo, step) if step > 0 else ceildiv(lo - hi, -step)
    count = count if known_le(0, count, ranges_now()) else dmax(count, 0)
    return fresh(_row(count, lo, step, _dtype(dtype, i64)))


@api(np.linspace)
def linspace(start: Any, stop: Any, /, num: Any = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None,
             axis: int = 0, *, device: Any = None) -> Any:
    """Evenly spaced numbers; the ends may be traced, their number may be a symbolic size."""
    count = as_dim(num)
    a, b = ufunc_call(np.multiply, tensor(start), 1.0), ufunc_call(np.multiply, tensor(stop), 1.0)
    gap = ufunc_call(np.subtract, b, a)
    parts = count - 1 if endpoint else count
    some = not (isinstance(parts, int) and parts <= 0)
    step = ufunc_call(np.true_divide, gap, wrap(size_node(parts), weak=True)) if some else ufunc_call(
        np.multiply, gap, float("nan"))
    place = wrap(reshape(_row(count, 0, 1, gap.type.dtype), (count, *[1] * gap.ndim)))
    y = ufunc_call(np.add, ufunc_call(np.multiply, place, step if some else gap), a)
    if endpoint and some:  # the last one exactly
        last = ufunc_call(np.equal, place, wrap(size_node(parts), weak=True))
        y = wrap(emit("select", spread(read(last), y.type.shape), spread(node_of(b, y.type.dtype), y.type.shape),
                      read(y)))
    if dtype is not None:
        d = to_dtype(dtype)
        y = wrap(cast(read(ufunc_call(np.floor, y) if d.integer else y), d))
    result = fresh(read(moveaxis(y, 0, axis) if axis else y))
    return (result, step) if retstep else result


@api(np.logspace)
def logspace(start: Any, stop: Any, num: Any = 50, endpoint: bool = True, base: Any = 10.0, dtype: Any = None,
             axis: int = 0) -> Tensor:
    """Powers of ``base`` with evenly spaced exponents."""
    y = ufunc_call(np.power, base, linspace(start, stop, num, endpoint, axis=axis))
    return y if dtype is None else fresh(cast(read(y), to_dtype(dtype)))


# ---- matrices and grids ---------------------------------------------------------------------------------------------

@api(np.eye)
def eye(N: Any, M: Any = None, k: int = 0, dtype: Any = None, order: str = "C", *, device: Any = None,
        like: Any = None) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere."""
    rows = as_dim(N)
    cols = rows if M is None else as_dim(M)
    return fresh(cast(band(rows, cols, "eq", static_int(k, "the offset")), _dtype(dtype)))


@api(np.identity)
def identity(n: Any, dtype: Any = None, *, like: Any = None) -> Tensor:
    """The identity matrix."""
    return eye(n, dtype=dtype)


@api(np.tri)
def tri(N: Any, M: Any = None, k: int = 0, dtype: Any = None, *, like: Any = None) -> Tensor:
    """Ones on and below the k-th diagonal."""
    rows = as_dim(N)
    cols = rows if M is None else as_dim(M)
    return fresh(cast(band(rows, cols, "le", static_int(k, "the offset")), _dtype(dtype)))


@api(np.meshgrid)
def meshgrid(*xi: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> tuple[Tensor, ...]:
    """Coordinates of a grid from one vector per axis."""
    if indexing not in ("xy", "ij"):
        raise argument_error(f"meshgrid has no indexing {indexing!r}", "use xy or ij")
    xs = [wrap(reshape(read(x), (x.type.size,))) for x in map(tensor, xi)]
    axes = list(range(len(xs)))
    if indexing == "xy" and len(xs) > 1:
        axes[0], axes[1] = 1, 0
    sizes: list[DimLike] = [1] * len(xs)
    for x, k in zip(xs, axes):
        sizes[k] = x.type.shape[0]
    out = []
    for x, k in zip(xs, axes):
        if sparse:
            out.append(fresh(reshape(read(x), [n if i == k else 1 for i, n in enumerate(sizes)])))
        else:
            out.append(fresh(emit("broadcast", read(x), shape=tuple(sizes), axes=(k,))))
    return tuple(out)


@api(np.indices)
def indices(dimensions: Any, dtype: Any = int, sparse: bool = False) -> Any:
    """The index of every element, one row per axis."""
    shape = as_shape(dimensions)
    rows = [fresh(emit("iota", shape=shape, axis=k, dtype=to_dtype(dtype))) for k in range(len(shape))]
    if sparse:
        return tuple(wrap(reshape(_row(n, 0, 1, to_dtype(dtype)), [n if i == k else 1 for i in range(len(shape))]))
                     for k, n in enumerate(shape))
    whole = [emit("reshape", read(r), shape=(1, *shape)) for r in rows]
    return fresh(emit("concatenate", *whole, axis=0))


@api(np.vander)
def vander(x: Any, N: Any = None, increasing: bool = False) -> Tensor:
    """Powers of a vector as columns."""
    t = tensor(x)
    count = static_int(t.shape[0] if N is None else N, "the number of columns")
    powers = np.arange(count) if increasing else np.arange(count)[::-1]
    return ufunc_call(np.power, wrap(reshape(read(t), (*t.type.shape, 1))), powers)


