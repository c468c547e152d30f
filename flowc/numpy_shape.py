"""Views under another shape or order of axes: reshape, transpose, flip, broadcast; conversions and copies.

Not here: indexing (numpy_index.py), joining, splitting and repeating (numpy_join.py).  Read next: numpy_join.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import DimLike
from flowc.graph import Node
from flowc.numpy_core import (
    api,
    argument_error,
    as_shape,
    axes_of,
    axis_of,
    broadcast_shape,
    cast,
    emit,
    fill,
    node_of,
    reshape,
    resolve_reshape,
    same_size,
    shape_error,
    spec,
    spread,
    tensor,
    to_dtype,
    transpose,
)
from flowc.numpy_index import setitem
from flowc.size import as_size
from flowc.tensor import Tensor, View, describe, read, wrap

# ---- views ----------------------------------------------------------------------------------------------------------


def reshaped(x: Tensor, shape: Sequence[DimLike]) -> Tensor:
    """A view under another shape.  NumPy copies where memory is not in C order; only adding or dropping axes of
    size 1 is a view for certain then."""
    shape = tuple(shape)
    old = x.type.shape
    certain = x._corder or [n for n in old if n != 1] == [n for n in shape if n != 1]
    if x.ndim == 0 and not x._cell:
        return wrap(reshape(read(x), shape), corder=True, cell=True)
    return x.alias(View(lambda n: reshape(n, shape), lambda n, v: reshape(v, old), certain=certain), corder=x._corder)


@api(np.reshape)
def reshape_fn(a: Any, /, shape: Any = None, order: str = "C", *, newshape: Any = None,
               copy: bool | None = None) -> Tensor:
    """The same elements under another shape; one size may be -1."""
    x = tensor(a)
    if order not in ("C", "A"):
        raise argument_error(f"reshape in order {order!r} is not supported", "transpose, reshape, transpose back")
    target = resolve_reshape(as_shape(newshape if shape is None else shape), x.type.size, x)
    return wrap(reshape(read(x), target), corder=True, cell=True) if copy else reshaped(x, target)


def _reshape_method(self: Tensor, *shape: Any, order: str = "C", copy: bool | None = None) -> Tensor:
    return reshape_fn(self, shape[0] if len(shape) == 1 else shape, order, copy=copy)


Tensor.reshape = _reshape_method  # type: ignore[attr-defined]


@api(np.ravel, method="ravel")
def ravel(a: Any, order: str = "C") -> Tensor:
    """One axis with all elements; a view where memory allows."""
    return reshape_fn(a, (-1,), order)


@api(method="flatten")
def flatten(a: Any, order: str = "C") -> Tensor:
    """A copy with one axis."""
    return reshape_fn(a, (-1,), order, copy=True)


def permuted(x: Tensor, perm: Sequence[int]) -> Tensor:
    perm = tuple(perm)
    back = [0] * len(perm)
    for i, p in enumerate(perm):
        back[p] = i
    same = [p for p in perm if x.type.shape[p] != 1] == sorted(p for p in perm if x.type.shape[p] != 1)
    return x.alias(View(lambda n: transpose(n, perm), lambda n, v: transpose(v, back)), corder=x._corder and same)


@api(np.transpose, names="permute_dims")
def transpose_fn(a: Any, axes: Any = None) -> Tensor:
    """Axes in another order; reversed by default."""
    x = tensor(a)
    if axes is None:
        return permuted(x, range(x.ndim)[::-1])
    perm = [axis_of(k, x.ndim) for k in axes]
    if sorted(perm) != list(range(x.ndim)):
        raise argument_error(f"axes {tuple(axes)} do not name each of the {x.ndim} axes once", "name every axis once")
    return permuted(x, perm)


def _transpose_method(self: Tensor, *axes: Any) -> Tensor:
    given = axes[0] if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))) else axes or None
    return transpose_fn(self, given)


Tensor.transpose = _transpose_method  # type: ignore[attr-defined]
Tensor.T = property(lambda self: permuted(self, range(self.ndim)[::-1]))  # type: ignore[attr-defined]


@api(np.matrix_transpose)
def matrix_transpose(x: Any) -> Tensor:
    """The last two axes exchanged."""
    x = tensor(x)
    if x.ndim < 2:
        raise FlowcTypeError("T003", f"a matrix transpose of {x.type}: needs two axes or more", loc=caller_loc(),
                             notes=[describe(x)], cure="add an axis: x[:, None]")
    return swapaxes(x, -1, -2)


Tensor.mT = property(matrix_transpose)  # type: ignore[attr-defined]


@api(np.swapaxes, method="swapaxes")
def swapaxes(a: Any, axis1: Any, axis2: Any) -> Tensor:
    """Two axes exchanged."""
    x = tensor(a)
    i, j = axis_of(axis1, x.ndim), axis_of(axis2, x.ndim)
    perm = list(range(x.ndim))
    perm[i], perm[j] = perm[j], perm[i]
    return permuted(x, perm)


@api(np.moveaxis)
def moveaxis(a: Any, source: Any, destination: Any) -> Tensor:
    """Axes moved to new places, the others in their order."""
    x = tensor(a)
    src = [axis_of(k, x.ndim) for k in (source if isinstance(source, (tuple, list)) else [source])]
    dst = [axis_of(k, x.ndim) for k in (destination if isinstance(destination, (tuple, list)) else [destination])]
    if len(src) != len(dst) or len(set(src)) < len(src) or len(set(dst)) < len(dst):
        raise argument_error("moveaxis needs as many destinations as sources, each axis once", "name each axis once")
    perm = [a for a in range(x.ndim) if a not in src]
    for d, s in sorted(zip(dst, src)):
        perm.insert(d, s)
    return permuted(x, perm)


@api(np.rollaxis)
def rollaxis(a: Any, axis: Any, start: int = 0) -> Tensor:
    """One axis moved in front of another."""
    x = tensor(a)
    k = axis_of(axis, x.ndim)
    start = start + x.ndim if start < 0 else start
    return moveaxis(x, k, start - 1 if k < start else start)


@api(np.expand_dims)
def expand_dims(a: Any, axis: Any) -> Tensor:
    """New axes of size 1 at places of the result."""
    x = tensor(a)
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    places = axes_of(given, x.ndim + len(given))
    shape = list(x.type.shape)
    for p in places:
        shape.insert(p, 1)
    return reshaped(x, shape)


@api(np.squeeze, method="squeeze")
def squeeze(a: Any, axis: Any = None) -> Tensor:
    """Axes of size 1 dropped."""
    x = tensor(a)
    shape = x.type.shape
    gone = axes_of(axis, x.ndim) if axis is not None else tuple(i for i, n in enumerate(shape) if n == 1)
    for i in gone:
        if shape[i] != 1:
            raise FlowcValueError("T003", f"axis {i} of {x.type} has the size {shape[i]}, not 1", loc=caller_loc(),
                                  notes=[describe(x)], cure="squeeze only axes of size 1")
    return reshaped(x, [n for i, n in enumerate(shape) if i not in gone])


@api(np.broadcast_to)
def broadcast_to(array: Any, shape: Any, subok: bool = False) -> Tensor:
    """A read-only view of a larger shape."""
    x, target = tensor(array), as_shape(shape)
    found = broadcast_shape([x.type.shape, target], "broadcast to a shape", [x, wrap(node_of(0))])
    if len(found) != len(target) or any(not same_size(a, b) for a, b in zip(found, target)):
        raise shape_error(f"broadcast to [{', '.join(map(str, target))}]:", [x], x.type.shape[0], target[0])
    return x.alias(View(lambda n: spread(n, target), None, "a broadcast array is read-only"))


@api(np.broadcast_arrays)
def broadcast_arrays(*args: Any, subok: bool = False) -> tuple[Tensor, ...]:
    """All arrays broadcast to one shape."""
    xs = [tensor(a) for a in args]
    shape = broadcast_shape([x.type.shape for x in xs], "broadcast", xs)
    return tuple(broadcast_to(x, shape) for x in xs)


@api(np.broadcast_shapes)
def broadcast_shapes(*shapes: Any) -> tuple[Any, ...]:
    """The shape that arrays of these shapes broadcast to."""
    return tuple(map(as_size, broadcast_shape([as_shape(s) for s in shapes], "broadcast shapes", [])))


@api(np.flip)
def flip(m: Any, axis: Any = None) -> Tensor:
    """Elements in reverse order along axes."""
    x = tensor(m)
    axes = axes_of(axis, x.ndim)

    def turn(n: Node) -> Node:
        return emit("flip", n, axes=axes) if axes else n
    return x.alias(View(turn, lambda n, v: turn(v)))


@api(np.fliplr)
def fliplr(m: Any) -> Tensor:
    """Columns in reverse order."""
    return flip(m, 1)


@api(np.flipud)
def flipud(m: Any) -> Tensor:
    """Rows in reverse order."""
    return flip(m, 0)


@api(np.rot90)
def rot90(m: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Tensor:
    """Turned by 90 degrees k times, from the first axis towards the second."""
    x = tensor(m)
    a, b = [axis_of(i, x.ndim) for i in axes]
    k %= 4
    if k == 2:
        return flip(x, (a, b))
    if k == 0:
        return x[...]
    return swapaxes(flip(x, b), a, b) if k == 1 else flip(swapaxes(x, a, b), b)


def _at_least(count: int) -> Callable[..., Any]:
    def build(*arys: Any) -> Any:
        out = []
        for a in arys:
            x = tensor(a)
            shape = list(x.type.shape)
            if count == 3 and 0 < len(shape) < 3:
                shape.append(1)
            out.append(reshaped(x, (*[1] * (count - len(shape)), *shape)))
        return out[0] if len(out) == 1 else tuple(out)
    build.__doc__ = f"Arrays with at least {count} axes."
    return build


atleast_1d, atleast_2d, atleast_3d = [
    api(f)(_at_least(k)) for k, f in enumerate((np.atleast_1d, np.atleast_2d, np.atleast_3d), 1)]

# ---- conversion -----------------------------------------------------------------------------------------------------

@api(getattr(np, "astype", None), names="astype", method="astype", eager=lambda x, dtype, /, *, copy=True, device=None:
     np.asarray(x).astype(dtype, copy=copy))
def astype(x: Any, dtype: Any, /, order: str = "K", casting: str = "unsafe", subok: bool = True, copy: bool = True, *,
           device: Any = None) -> Tensor:
    """A copy in another dtype (the tensor itself with copy=False where nothing changes)."""
    t, d = tensor(x), to_dtype(dtype)
    if not copy and t.type.dtype is d and not t.weak:
        return t
    if casting != "unsafe" and not isinstance(spec(t), type) and not np.can_cast(t.dtype, d.numpy, casting):  # type: ignore
        raise FlowcTypeError("T004", f"{t.dtype} does not convert to {d.numpy} by the rule {casting!r}",
                             loc=caller_loc(), notes=[describe(t)], cure="use casting='unsafe'")
    return wrap(cast(read(t), d), corder=t._corder, cell=t._cell)


@api(np.copy)
def copy(a: Any, order: str = "K", subok: bool = False) -> Tensor:
    """An array of its own: writes to it change no other."""
    x = tensor(a)
    return wrap(read(x), corder=order == "C" or x._corder, cell=True)


Tensor.copy = lambda self, order="C": copy(self, order)  # type: ignore[attr-defined]
Tensor.__copy__ = lambda self: copy(self)  # type: ignore[attr-defined]
Tensor.__deepcopy__ = lambda self, memo: copy(self)  # type: ignore[attr-defined]
Tensor.fill = lambda self, value: setitem(self, Ellipsis, value)  # type: ignore[attr-defined]
Tensor.to_device = lambda self, device, /, *, stream=None: self  # type: ignore[attr-defined]


def _component(name: str) -> property:
    def get(self: Tensor) -> Tensor:
        if self.type.dtype.kind != "c":
            if name == "real":
                return self
            return wrap(fill(0, self.type.dtype, self.type.shape))
        return self.alias(View(lambda n: emit(name, n), None, f"writing .{name} of a traced array is not supported"))
    return property(get)


Tensor.real, Tensor.imag = _component("real"), _component("imag")  # type: ignore[attr-defined]
for _part, _fn in (("real", np.real), ("imag", np.imag)):
    api(_fn)(lambda val, _part=_part: getattr(tensor(val), _part))
