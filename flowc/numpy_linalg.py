"""Sums of products: matmul, dot, einsum and their kin, norms, traces.

Here: everything that lowers to the op ``dot`` by naming axes.  Not here: the op itself (ops/contract.py),
factorisations (not supported on traced values).  Read next: numpy_more.py.

Every product goes through ``contract``: axes carry labels, a label of both operands that the result lacks is summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, caller_loc
from flowc.dims import DimLike
from flowc.graph import Node
from flowc.numpy_core import (
    api,
    argument_error,
    axes_of,
    axis_of,
    broadcast_shape,
    cast,
    common_dtype,
    emit,
    into,
    node_of,
    operand,
    reshape,
    same_size,
    shape_error,
    spread,
    static_int,
    tensor,
    to_dtype,
    transpose,
)
from flowc.numpy_elementwise import array_ufunc, ufunc_call
from flowc.numpy_join import band, diagonal, stack
from flowc.numpy_reduce import max_, min_, reduce_node, sum_, sum_dtype
from flowc.numpy_shape import matrix_transpose, moveaxis
from flowc.tensor import Tensor, describe, read, wrap
from flowc.types import DType, bool_, i32

Labels = tuple[Any, ...]

# ---- the one product ------------------------------------------------------------------------------------------------


def contract(a: Node, la: Labels, b: Node, lb: Labels, out: Labels) -> Node:
    """Sum of products; ``out`` lists the labels that stay, each of them in one operand or in both."""
    batch = [v for v in la if v in lb and v in out]
    summed = [v for v in la if v in lb and v not in out]
    free_a, free_b = [v for v in la if v not in lb], [v for v in lb if v not in la]
    if not summed:
        return _product(a, la, b, lb, out)
    boolean = a.type.dtype is bool_
    if boolean:
        a, b = cast(a, i32), cast(b, i32)
    node = emit("dot", a, b, lhs_batch=tuple(la.index(v) for v in batch), rhs_batch=tuple(lb.index(v) for v in batch),
                lhs_contract=tuple(la.index(v) for v in summed), rhs_contract=tuple(lb.index(v) for v in summed))
    have = [*batch, *free_a, *free_b]
    node = transpose(node, [have.index(v) for v in out])
    return cast(node, bool_) if boolean else node


def _product(a: Node, la: Labels, b: Node, lb: Labels, out: Labels) -> Node:
    """No label is summed: an elementwise product."""
    sizes = {**dict(zip(la, a.type.shape)), **dict(zip(lb, b.type.shape))}
    shape = tuple(sizes[v] for v in out)

    def placed(x: Node, labels: Labels) -> Node:
        order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
        x = transpose(x, order)
        axes = tuple(out.index(labels[i]) for i in order)
        return x if len(axes) == len(out) else emit("broadcast", x, shape=shape, axes=axes)
    return emit("and" if a.type.dtype is bool_ else "mul", placed(a, la), placed(b, lb))


def _drop_ones(x: Node, labels: Labels, sizes: dict[Any, DimLike]) -> tuple[Node, Labels]:
    """Axes of size 1 whose label is larger elsewhere: they broadcast, so the label leaves this operand."""
    keep = [i for i, v in enumerate(labels) if not (x.type.shape[i] == 1 and sizes[v] != 1)]
    return reshape(x, [x.type.shape[i] for i in keep]), tuple(labels[i] for i in keep)


# ---- matmul and its kin ---------------------------------------------------------------------------------------------

def _no_scalars(what: str, *xs: Tensor) -> None:
    if any(x.ndim == 0 for x in xs):
        raise FlowcTypeError("T003", f"{what} needs arrays with axes", loc=caller_loc(),
                             notes=[describe(x) for x in xs], cure="multiply by a number with *")


@api(np.matmul)
def matmul(x1: Any, x2: Any, /, out: Any = None, *, dtype: Any = None, axes: Any = None, **_: Any) -> Tensor:
    """Products of matrices in the last two axes; axes in front broadcast, vectors lose their extra axis."""
    a, b = tensor(x1), tensor(x2)
    _no_scalars("matmul", a, b)
    if axes is not None:
        raise argument_error("matmul with axes= is not supported on traced values", "use moveaxis or einsum")
    d = to_dtype(dtype) if dtype is not None else common_dtype(a, b)
    inner = a.type.shape[-1], b.type.shape[-2] if b.ndim > 1 else b.type.shape[0]
    if not same_size(*inner):
        raise shape_error("matmul", [a, b], *inner, ones=False)
    lead = broadcast_shape([a.type.shape[:-2], b.type.shape[:-2]], "matmul", [a, b])
    batch = tuple(range(len(lead)))
    la: Labels = (*batch[len(lead) - max(a.ndim - 2, 0):], *("m",) * (a.ndim > 1), "k")
    lb: Labels = (*batch[len(lead) - max(b.ndim - 2, 0):], "k", *("n",) * (b.ndim > 1))
    sizes: dict[Any, DimLike] = {"m": 1, "k": 1, "n": 1}
    sizes.update(zip(batch, lead))
    x, la = _drop_ones(node_of(a, d), la, sizes)
    y, lb = _drop_ones(node_of(b, d), lb, sizes)
    target = (*batch, *[v for v in ("m",) if v in la], *[v for v in ("n",) if v in lb])
    return into(out, wrap(contract(x, la, y, lb, target), corder=True))


@api(np.vecdot)
def vecdot(x1: Any, x2: Any, /, out: Any = None, *, axis: int = -1, **_: Any) -> Tensor:
    """Sum of ``conj(x1) * x2`` along one axis; the others broadcast."""
    a, b = tensor(x1), tensor(x2)
    _no_scalars("vecdot", a, b)
    a, b = moveaxis(a, axis, -1), moveaxis(b, axis, -1)
    left = expand(a if a.type.dtype.kind != "c" else ufunc_call(np.conjugate, a), -2)
    result = matmul(left, expand(b, -1))
    return into(out, wrap(reshape(read(result), result.type.shape[:-2])))


def expand(x: Tensor, axis: int) -> Tensor:
    shape = list(x.type.shape)
    shape.insert(len(shape) + 1 + axis, 1)
    return wrap(reshape(read(x), shape))


for _name in ("matvec", "vecmat"):
    if hasattr(np, _name):
        def _with_vector(x1: Any, x2: Any, /, out: Any = None, *, _first: bool = _name == "matvec", **_: Any) -> Tensor:
            a, b = tensor(x1), tensor(x2)
            if _first:
                result = matmul(a, expand(b, -1))
                return into(out, wrap(reshape(read(result), result.type.shape[:-1])))
            a = a if a.type.dtype.kind != "c" else ufunc_call(np.conjugate, a)
            result = matmul(expand(a, -2), b)
            return into(out, wrap(reshape(read(result), (*result.type.shape[:-2], result.type.shape[-1]))))
        api(getattr(np, _name))(_with_vector)


@api(np.dot, method="dot")
def dot(a: Any, b: Any, out: Any = None) -> Tensor:
    """NumPy's dot: the last axis of ``a`` with the last but one of ``b``; products of numbers."""
    x, y = tensor(a), tensor(b)
    if x.ndim == 0 or y.ndim == 0:
        return into(out, ufunc_call(np.multiply, x, y))
    return into(out, tensordot(x, y, ([x.ndim - 1], [max(y.ndim - 2, 0)])))


@api(np.inner)
def inner(a: Any, b: Any) -> Tensor:
    """Sum of products over the last axes."""
    x, y = tensor(a), tensor(b)
    if x.ndim == 0 or y.ndim == 0:
        return ufunc_call(np.multiply, x, y)
    return tensordot(x, y, ([x.ndim - 1], [y.ndim - 1]))


@api(np.vdot)
def vdot(a: Any, b: Any) -> Tensor:
    """Sum of ``conj(a) * b`` over all elements."""
    x, y = tensor(a), tensor(b)
    x = ufunc_call(np.conjugate, x) if x.type.dtype.kind == "c" else x
    flat = [wrap(reshape(read(v), (v.type.size,))) for v in (x, y)]
    return tensordot(*flat, ([0], [0]))


@api(np.tensordot)
def tensordot(a: Any, b: Any, axes: Any = 2) -> Tensor:
    """Sum of products over pairs of axes."""
    x, y = tensor(a), tensor(b)
    if isinstance(axes, (int, np.integer)):
        left, right = list(range(x.ndim - int(axes), x.ndim)), list(range(int(axes)))
    else:
        left, right = [list(v) if isinstance(v, (tuple, list)) else [v] for v in axes]
    left, right = [axis_of(i, x.ndim) for i in left], [axis_of(i, y.ndim) for i in right]
    if len(left) != len(right):
        raise argument_error("tensordot needs as many axes of both operands", "name them in pairs")
    for i, j in zip(left, right):
        if not same_size(x.type.shape[i], y.type.shape[j]):
            raise shape_error("sum products of", [x, y], x.type.shape[i], y.type.shape[j], ones=False)
    d = common_dtype(x, y)
    la: list[Any] = [("a", i) for i in range(x.ndim)]
    lb: list[Any] = [("b", i) for i in range(y.ndim)]
    for i, j in zip(left, right):
        lb[j] = la[i]
    target = tuple(v for i, v in enumerate(la) if i not in left) + tuple(v for j, v in enumerate(lb) if j not in right)
    return wrap(contract(node_of(x, d), tuple(la), node_of(y, d), tuple(lb), target), corder=True)


@api(np.outer)
def outer(a: Any, b: Any, out: Any = None) -> Tensor:
    """Products of all pairs of elements."""
    x, y = [wrap(reshape(read(v), (v.type.size,))) for v in (tensor(a), tensor(b))]
    return into(out, array_ufunc(np.multiply, "outer", (x, y), {}))


@api(np.kron)
def kron(a: Any, b: Any) -> Tensor:
    """Kronecker product."""
    x, y = tensor(a), tensor(b)
    rank = max(x.ndim, y.ndim)
    sa = [1] * (rank - x.ndim) + list(x.type.shape)
    sb = [1] * (rank - y.ndim) + list(y.type.shape)
    left = wrap(reshape(read(x), [v for n in sa for v in (n, 1)]))
    right = wrap(reshape(read(y), [v for n in sb for v in (1, n)]))
    product = ufunc_call(np.multiply, left, right)
    return wrap(reshape(read(product), [m * n for m, n in zip(sa, sb)]))


@api(np.cross)
def cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Tensor:
    """Cross product of vectors of three elements."""
    if axis is not None:
        axisa = axisb = axisc = axis
    x, y = moveaxis(tensor(a), axisa, -1), moveaxis(tensor(b), axisb, -1)
    if x.type.shape[-1] != 3 or y.type.shape[-1] != 3:
        raise shape_error("cross", [x, y], x.type.shape[-1], 3, ones=False)
    (x0, x1, x2), (y0, y1, y2) = [[v[..., i] for i in range(3)] for v in (x, y)]
    rows = [x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0]
    return moveaxis(stack(rows, -1), -1, axisc)


@api(np.linalg.matrix_power)
def matrix_power(a: Any, n: Any) -> Tensor:
    """A square matrix multiplied with itself ``n`` >= 0 times, by squaring."""
    x, power = tensor(a), static_int(n, "the power")
    if power < 0:
        raise argument_error("negative powers need an inverse, which is not supported on traced values",
                             "invert outside the traced function")
    size = x.type.shape[-1]
    eye = cast(band(size, size, "eq", 0), x.type.dtype)
    result = None if power else wrap(spread(eye, x.type.shape))
    while power:
        if power & 1:
            result = x if result is None else matmul(result, x)
        power >>= 1
        x = matmul(x, x) if power else x
    assert result is not None
    return result


@api(np.linalg.multi_dot)
def multi_dot(arrays: Sequence[Any], *, out: Any = None) -> Tensor:
    """A chain of products from left to right."""
    result = tensor(arrays[0])
    for other in arrays[1:]:
        result = dot(result, other)
    return into(out, result)


@api(np.trace, method="trace")
def trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> Tensor:
    """Sum of a diagonal."""
    x = diagonal(a, offset, axis1, axis2)
    d = to_dtype(dtype) if dtype is not None else sum_dtype(x.type.dtype)
    return into(out, wrap(reduce_node("reduce_sum", node_of(x, d), (x.ndim - 1,), False)))


for _np, _fn in ((np.linalg.matmul, matmul), (np.linalg.vecdot, vecdot), (np.linalg.tensordot, tensordot),
                 (np.linalg.outer, outer), (np.linalg.matrix_transpose, matrix_transpose)):
    api(_np)(_fn)
api(np.linalg.cross)(lambda x1, x2, /, *, axis=-1: cross(x1, x2, axis=axis))
api(np.linalg.trace)(lambda x, /, *, offset=0, dtype=None: trace(x, offset, -2, -1, dtype))
api(np.linalg.diagonal)(lambda x, /, *, offset=0: diagonal(x, offset, -2, -1))

# ---- norms ----------------------------------------------------------------------------------------------------------


def _vector_norm(x: Tensor, order: Any, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    size = ufunc_call(np.absolute, x)
    size = size if size.type.dtype.kind == "f" else ufunc_call(np.multiply, size, 1.0)
    if order in (None, 2):
        real = size if x.type.dtype.kind == "c" else ufunc_call(np.multiply, x, 1.0) if x.type.dtype.kind != "f" else x
        return ufunc_call(np.sqrt, sum_(ufunc_call(np.multiply, real, real), axes, keepdims=keepdims))
    if order == math.inf:
        return max_(size, axes, keepdims=keepdims)
    if order == -math.inf:
        return min_(size, axes, keepdims=keepdims)
    if order == 0:
        return sum_(ufunc_call(np.not_equal, x, 0), axes, keepdims=keepdims, dtype=size.dtype)
    if order == 1:
        return sum_(size, axes, keepdims=keepdims)
    return ufunc_call(np.power, sum_(ufunc_call(np.power, size, order), axes, keepdims=keepdims), 1 / order)


def _matrix_norm(x: Tensor, order: Any, axes: tuple[int, int], keepdims: bool) -> Tensor:
    if order in (None, "fro"):
        return _vector_norm(x, 2, axes, keepdims)
    if order not in (1, -1, math.inf, -math.inf):
        raise argument_error(f"the matrix norm of order {order!r} needs singular values, which are not supported on "
                             "traced values", "use 'fro', 1, -1, inf or -inf")
    row, col = axes
    inside, outside_ = (row, col) if abs(order) == 1 else (col, row)
    sums = sum_(ufunc_call(np.absolute, x), inside, keepdims=True)
    result = (max_ if order > 0 else min_)(sums, outside_, keepdims=True)
    if keepdims:
        return result
    return wrap(reshape(read(result), [n for i, n in enumerate(result.type.shape) if i not in axes]))


@api(np.linalg.norm)
def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Norm of vectors (one axis) or matrices (two axes); of all elements by default."""
    t = tensor(x)
    if axis is None:
        if ord is None or t.ndim == 1:
            return _vector_norm(t, ord, tuple(range(t.ndim)), keepdims)
        axis = tuple(range(t.ndim))
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = [axis_of(a, t.ndim) for a in given]
    if len(axes) == 1:
        return _vector_norm(t, ord, tuple(axes), keepdims)
    if len(axes) != 2:
        raise argument_error("a norm is over one or two axes", "name one axis for vectors, two for matrices")
    return _matrix_norm(t, ord, (axes[0], axes[1]), keepdims)


@api(np.linalg.vector_norm)
def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Tensor:
    """Norm over all of ``axis`` together."""
    t = tensor(x)
    return _vector_norm(t, ord, axes_of(axis, t.ndim), keepdims)


@api(np.linalg.matrix_norm)
def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Tensor:
    """Norm over the last two axes."""
    t = tensor(x)
    return _matrix_norm(t, ord, (t.ndim - 2, t.ndim - 1), keepdims)


# ---- einsum ---------------------------------------------------------------------------------------------------------

def _parse(subscripts: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """Labels per operand and of the result; axes of an ellipsis are numbered from the right."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise argument_error(f"einsum {subscripts!r} has {len(terms)} operands, got {len(ranks)}", "pass one per term")
    hidden = 0
    labels: list[Labels] = []
    for term, rank in zip(terms, ranks):
        before, dots, after = term.partition("...")
        count = rank - len(before) - len(after)
        if not (before + after).isalpha() and before + after or count < 0 or count and not dots:
            raise argument_error(f"the term {term!r} of einsum {subscripts!r} does not fit an operand of {rank} axes",
                                 "write one letter per axis, or ... for several")
        hidden = max(hidden, count)
        labels.append((*before, *[-k for k in range(count, 0, -1)], *after))
    dots_out = [-k for k in range(hidden, 0, -1)]
    if arrow:
        before, dots, after = right.partition("...")
        out: Labels = (*before, *(dots_out if dots else ()), *after)
        known = {v for row in labels for v in row}
        if len(set(out)) < len(out) or any(v not in known for v in out):
            raise argument_error(f"the result {right!r} of einsum names an axis twice or one that no operand has",
                                 "name each axis of the result once")
        return labels, out
    letters = [v for row in labels for v in row if isinstance(v, str)]
    return labels, (*dots_out, *sorted(v for v in set(letters) if letters.count(v) == 1))


def _interleaved(operands: Sequence[Any]) -> tuple[str, list[Any]]:
    """einsum(a, [0, 1], b, [1, 2], [0, 2]) as a string and operands."""
    def term(row: Sequence[Any]) -> str:
        return "".join("..." if v is Ellipsis else chr(ord("a") + v) if v < 26 else chr(ord("A") + v - 26) for v in row)
    pairs = len(operands) // 2
    text = ",".join(term(operands[2 * i + 1]) for i in range(pairs))
    return text + (f"->{term(operands[-1])}" if len(operands) % 2 else ""), list(operands[:2 * pairs:2])


def _diagonals(x: Node, labels: Labels) -> tuple[Node, Labels]:
    """Repeated labels of one operand become one axis: its diagonal."""
    for v in dict.fromkeys(labels):
        while labels.count(v) > 1:
            i = labels.index(v)
            j = labels.index(v, i + 1)
            x = read(diagonal(wrap(x), 0, i, j))
            labels = (*[w for k, w in enumerate(labels) if k not in (i, j)], v)
    return x, labels


def _sum_out(x: Node, labels: Labels, keep: set[Any]) -> tuple[Node, Labels]:
    gone = tuple(i for i, v in enumerate(labels) if v not in keep)
    if not gone:
        return x, labels
    op = "reduce_or" if x.type.dtype is bool_ else "reduce_sum"
    return emit(op, x, axes=gone), tuple(v for v in labels if v in keep)


def _order(rows: Sequence[Labels], out: Labels, nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Which two operands to contract next; results go to the end.  Greedy by NumPy's path where sizes are known."""
    if len(rows) > 2 and all(isinstance(n, int) for x in nodes for n in x.type.shape):
        names = {v: chr(ord("a") + i) for i, v in enumerate(dict.fromkeys(v for r in rows for v in r))}
        if len(names) <= 26:
            text = ",".join("".join(names[v] for v in r) for r in rows) + "->" + "".join(names[v] for v in out)
            dummies = [np.broadcast_to(np.float32(0), x.type.shape) for x in nodes]  # type: ignore[arg-type]
            path = np.einsum_path(text, *dummies, optimize="greedy")[0][1:]
            if all(len(p) == 2 for p in path):
                return [(min(p), max(p)) for p in path]
    return [(0, 1)] + [(0, k) for k in range(len(rows) - 2, 0, -1)]


@api(np.einsum)
def einsum(*operands: Any, out: Any = None, dtype: Any = None, optimize: Any = True, **_: Any) -> Tensor:
    """Sums of products by subscripts: any number of operands, repeated letters, ellipses."""
    if isinstance(operands[0], str):
        subscripts, given = operands[0], list(operands[1:])
    else:
        subscripts, given = _interleaved(operands)
    xs = [tensor(operand(x)) for x in given]
    d: DType = to_dtype(dtype) if dtype is not None else common_dtype(*xs)
    rows, target = _parse(subscripts, [x.ndim for x in xs])
    sizes: dict[Any, DimLike] = {}
    for x, row in zip(xs, rows):
        for n, v in zip(x.type.shape, row):
            if sizes.get(v, 1) != 1 and n != 1 and not same_size(n, sizes[v]):
                raise shape_error(f"compute einsum {subscripts!r} of", xs, sizes[v], n)
            sizes[v] = n if sizes.get(v, 1) == 1 else sizes[v]
    work = [_drop_ones(*_diagonals(node_of(x, d), row), sizes) for x, row in zip(xs, rows)]
    for i, j in _order([r for _, r in work], target, [x for x, _ in work]) if len(work) > 1 else []:
        (b, lb), (a, la) = work.pop(j), work.pop(i)
        later = {v for _, r in work for v in r} | set(target)
        a, la = _sum_out(a, la, later | set(lb))
        b, lb = _sum_out(b, lb, later | set(la))
        both = tuple(dict.fromkeys(v for v in (*la, *lb) if v in later))
        if not work:
            both = tuple(v for v in target if v in both)
        work.append((contract(a, la, b, lb, both), both))
    node, labels = _sum_out(*work[0], set(target))
    node = transpose(node, [labels.index(v) for v in target if v in labels])
    have = tuple(v for v in target if v in labels)
    if have != target:  # a label of size 1 everywhere it was left
        node = emit("broadcast", node, shape=tuple(sizes[v] for v in target), axes=tuple(target.index(v) for v in have))
    return into(out, wrap(node, corder=True))


