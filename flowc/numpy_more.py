"""Choosing, rounding, comparing, sorting, searching, differences, counting: functions made of several ufuncs.

Not here: ufuncs (numpy_elementwise.py), reductions (numpy_reduce.py).  Read next: numpy_create.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, UnsupportedError, caller_loc
from flowc.dims import DimLike
from flowc.graph import Node
from flowc.numpy_core import (
    api,
    argument_error,
    as_dim,
    axis_of,
    broadcast_shape,
    cast,
    common_dtype,
    emit,
    fill,
    into,
    node_of,
    operand,
    reshape,
    shape_error,
    size_node,
    spec,
    spread,
    static_int,
    tensor,
    to_dtype,
)
from flowc.numpy_elementwise import join_complex, ufunc_call, unsupported
from flowc.numpy_index import FULL, getitem, setitem
from flowc.numpy_join import concatenate
from flowc.numpy_reduce import all_, any_, given, mean, sum_
from flowc.numpy_shape import astype, broadcast_to, flip, moveaxis
from flowc.proofs import known_le
from flowc.size import SizeUnknownError, ranges_now, rooms
from flowc.tensor import Tensor, read, wrap
from flowc.types import DType, bool_, i32, i64, u64

# ---- choosing -------------------------------------------------------------------------------------------------------


@api(np.where)
def where(condition: Any, x: Any = None, y: Any = None, /) -> Tensor:
    """Elements of x where the condition holds, of y elsewhere."""
    if x is None or y is None:
        raise unsupported("np.where with one argument") if x is None and y is None else argument_error(
            "where needs both values or none", "pass x and y")
    xs = [operand(condition), operand(x), operand(y)]
    d = common_dtype(*xs[1:])
    nodes = [node_of(xs[0], bool_), node_of(xs[1], d), node_of(xs[2], d)]
    shape = broadcast_shape([n.type.shape for n in nodes], "choose from", xs)
    weak = all(isinstance(spec(v), type) for v in xs[1:])
    return wrap(emit("select", *[spread(n, shape) for n in nodes]), weak=weak and d.kind in "fc" and not shape)


@api(np.select)
def select(condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> Tensor:
    """The first choice whose condition holds."""
    if len(condlist) != len(choicelist):
        raise argument_error("select needs one choice per condition", "pass lists of one length")
    xs = [operand(c) for c in (*choicelist, default)]
    d = common_dtype(*xs)
    result = wrap(node_of(xs[-1], d))
    for cond, choice in zip(reversed(condlist), reversed(xs[:-1])):
        result = where(cond, wrap(node_of(choice, d)), result)
    return result


@api(np.clip, method="clip")
def clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, *, min: Any = None, max: Any = None,
         dtype: Any = None) -> Tensor:
    """Values below the least raised to it, above the greatest lowered to it."""
    low, high = a_min if given(a_min) else min, a_max if given(a_max) else max
    result = tensor(a)
    d = result.type.dtype
    for ufunc, bound in ((np.maximum, low), (np.minimum, high)):
        if given(bound) and not _beyond(ufunc, bound, d):
            result = ufunc_call(ufunc, result, bound)
    return into(out, result)


def _beyond(ufunc: np.ufunc, bound: Any, d: DType) -> bool:
    """Is a bound outside an integer dtype on the side where it changes nothing."""
    if type(bound) is not int or not d.integer:
        return False
    info = np.iinfo(d.numpy)
    return bound < info.min if ufunc is np.maximum else bound > info.max


@api(np.round, np.around, method="round __round__")
def round_(a: Any, decimals: Any = 0, out: Any = None) -> Tensor:
    """To a number of decimals, ties to even."""
    x, places = tensor(a), static_int(decimals or 0, "the number of decimals")
    d = x.type.dtype
    if d.kind in "biu":
        if places >= 0:
            return into(out, wrap(read(x)))
        scaled = ufunc_call(np.rint, ufunc_call(np.true_divide, x, 10 ** -places))
        return into(out, wrap(cast(read(ufunc_call(np.multiply, scaled, 10 ** -places)), d)))
    if not places:
        return into(out, ufunc_call(np.rint, x))
    before, after = (np.multiply, np.true_divide) if places > 0 else (np.true_divide, np.multiply)
    scaled = ufunc_call(np.rint, ufunc_call(before, x, 10.0 ** abs(places)))
    return into(out, ufunc_call(after, scaled, 10.0 ** abs(places)))


@api(np.fix)
def fix(x: Any, out: Any = None) -> Tensor:
    """Towards zero."""
    return into(out, ufunc_call(np.trunc, x))


@api(np.nan_to_num)
def nan_to_num(x: Any, copy: bool = True, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Tensor:
    """NaN and infinities replaced by numbers."""
    t = tensor(x)
    d = t.type.dtype
    if d.kind == "c":
        re, im = [nan_to_num(wrap(emit(part, read(t))), True, nan, posinf, neginf) for part in ("real", "imag")]
        result = wrap(join_complex(read(re), read(im), d))
    elif d.kind != "f":
        result = wrap(read(t))
    else:
        info = np.finfo(d.numpy) if d.name != "bf16" else np.finfo(np.float32)
        top = 3.3895313892515355e38 if d.name == "bf16" else float(info.max)
        result = where(ufunc_call(np.isnan, t), wrap(node_of(operand(nan), d)), t)
        for sign, value in ((1, posinf), (-1, neginf)):
            hit = wrap(emit("eq", read(t), fill(sign * math.inf, d, t.type.shape)))
            result = where(hit, wrap(node_of(operand(sign * top if value is None else value), d)), result)
    if not copy and isinstance(x, Tensor):
        setitem(x, Ellipsis, result)
        return x
    return result


# ---- comparing ------------------------------------------------------------------------------------------------------

@api(np.isclose)
def isclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> Tensor:
    """|a - b| <= atol + rtol * |b|, element by element; equal infinities are close."""
    x, y = tensor(a), tensor(b)
    if y.type.dtype.kind in "biu":
        y = ufunc_call(np.multiply, y, 1.0)
    bound = atol + rtol * ufunc_call(np.absolute, y)
    near = ufunc_call(np.less_equal, ufunc_call(np.absolute, ufunc_call(np.subtract, x, y)), bound)
    result = (near & ufunc_call(np.isfinite, y)) | ufunc_call(np.equal, x, y)
    if equal_nan:
        result = result | (ufunc_call(np.isnan, x) & ufunc_call(np.isnan, y))
    return result


@api(np.allclose)
def allclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> Tensor:
    """Are all elements close."""
    return all_(isclose(a, b, rtol, atol, equal_nan))


@api(np.array_equal)
def array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> Tensor:
    """Same shape and elements."""
    x, y = tensor(a1), tensor(a2)
    if x.ndim != y.ndim or any(isinstance(m, int) and isinstance(n, int) and m != n
                               for m, n in zip(x.type.shape, y.type.shape)):
        return tensor(np.False_)
    same = ufunc_call(np.equal, x, y)
    if equal_nan:
        same = same | (ufunc_call(np.isnan, x) & ufunc_call(np.isnan, y))
    return all_(same)


def _infinite(sign: float) -> Any:
    def build(x: Any, out: Any = None) -> Tensor:
        t = tensor(x)
        if t.type.dtype.kind != "f":
            return into(out, wrap(fill(False, bool_, t.type.shape)))
        return into(out, wrap(emit("eq", read(t), fill(sign * math.inf, t.type.dtype, t.type.shape))))
    return build


api(np.isposinf)(_infinite(1))
api(np.isneginf)(_infinite(-1))
api(np.iscomplexobj)(lambda x: tensor(x).type.dtype.kind == "c")
api(np.isrealobj)(lambda x: tensor(x).type.dtype.kind != "c")
api(np.iscomplex)(lambda x: ufunc_call(np.not_equal, tensor(x).imag, 0))  # type: ignore[attr-defined]
api(np.isreal)(lambda x: ufunc_call(np.equal, tensor(x).imag, 0))  # type: ignore[attr-defined]


@api(np.isin)
def isin(element: Any, test_elements: Any, assume_unique: bool = False, invert: bool = False, *,
         kind: Any = None) -> Tensor:
    """Is each element among the others (all pairs are compared)."""
    x, y = tensor(element), tensor(test_elements)
    row = wrap(reshape(read(y), (y.type.size,)))
    hit = any_(ufunc_call(np.equal, wrap(reshape(read(x), (*x.type.shape, 1))), row), -1)
    return ufunc_call(np.logical_not, hit) if invert else hit


# ---- complex --------------------------------------------------------------------------------------------------------

@api(np.angle)
def angle(z: Any, deg: bool = False) -> Tensor:
    """The argument of complex numbers."""
    x = tensor(z)
    parts = [wrap(emit(p, read(x))) for p in ("imag", "real")] if x.type.dtype.kind == "c" else [0, x]
    result = ufunc_call(np.arctan2, *parts)
    return ufunc_call(np.degrees, result) if deg else result


@api(np.sinc)
def sinc(x: Any) -> Tensor:
    """sin(pi x) / (pi x), 1 at 0."""
    t = ufunc_call(np.multiply, tensor(x), np.pi)
    t = where(ufunc_call(np.equal, t, 0), wrap(node_of(1e-20, t.type.dtype)), t)
    return ufunc_call(np.true_divide, ufunc_call(np.sin, t), t)


# ---- sorting and searching ------------------------------------------------------------------------------------------

def _ordered(op: str) -> Any:
    def build(a: Any, /, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None,
              descending: bool = False) -> Tensor:
        x = tensor(a)
        if axis is None:
            x, axis = wrap(reshape(read(x), (x.type.size,))), 0
        k = axis_of(axis, x.ndim)
        if not descending:
            return wrap(emit(op, read(x), axis=k))
        turned = emit(op, read(flip(x, k)), axis=k)  # stable from the other end
        if op == "argsort":
            last = spread(size_node(x.type.shape[k] - 1), turned.type.shape)
            turned = emit("sub", last, turned)
        return wrap(emit("flip", turned, axes=(k,)))
    return build


def _eager_ordered(name: str) -> Any:
    """NumPy's function, with the standard's ``descending``."""
    fn = getattr(np, name)

    def call(a: Any, /, axis: Any = -1, *args: Any, descending: bool = False, **kwargs: Any) -> Any:
        if not descending:
            return fn(a, axis, *args, **kwargs)
        turned = np.flip(fn(np.flip(a, axis), axis, stable=True), axis)
        return turned if name == "sort" else np.shape(a)[axis] - 1 - turned
    return call


sort = api(np.sort, eager=_eager_ordered("sort"))(_ordered("sort"))
argsort = api(np.argsort, method="argsort", eager=_eager_ordered("argsort"))(_ordered("argsort"))
api(np.partition)(lambda a, kth, axis=-1, kind=None, order=None: sort(a, axis))
api(np.argpartition, method="argpartition")(lambda a, kth, axis=-1, kind=None, order=None: argsort(a, axis))
Tensor.sort = lambda self, axis=-1, **_: setitem(self, Ellipsis, sort(self, axis))  # type: ignore[attr-defined]


def _before(x: Node, v: Node, strict: bool) -> Node:
    """Does ``x`` stand before ``v`` (or beside it) in sorted order, where NaN is last."""
    before = emit("lt" if strict else "le", x, v)
    if x.type.dtype.kind == "f":
        last = emit("isnan", v)
        if strict:
            last = emit("and", last, emit("not", emit("isnan", x)))
        before = emit("or", before, last)
    return before


@api(np.searchsorted, method="searchsorted")
def searchsorted(a: Any, v: Any, side: str = "left", sorter: Any = None) -> Tensor:
    """Where values would be inserted into a sorted vector: binary search, or a count where its size is symbolic."""
    if side not in ("left", "right"):
        raise argument_error(f"searchsorted has no side {side!r}", "use left or right")
    row, value = tensor(a), tensor(v)
    if sorter is not None:
        row = getitem(row, tensor(sorter))
    if row.ndim != 1:
        raise argument_error(f"searchsorted needs a vector, got {row.type}", "search row by row")
    d = common_dtype(operand(a), operand(v))
    keys, wanted = node_of(row, d), node_of(value, d)
    n, shape = row.type.shape[0], wanted.type.shape
    strict = side == "left"
    if not isinstance(n, int):
        wide = (*shape, n)
        pair = emit("broadcast", keys, shape=wide, axes=(len(shape),)), emit(
            "broadcast", wanted, shape=wide, axes=tuple(range(len(shape))))
        return wrap(emit("reduce_sum", cast(_before(*pair, strict), i64), axes=(len(shape),)))
    low, high = fill(0, i64, shape), fill(n, i64, shape)
    for _ in range(n.bit_length()):
        open_ = emit("lt", low, high)
        middle = emit("shr", emit("add", low, high), fill(1, i64, shape))
        inside = _before(emit("gather", keys, middle, axis=0), wanted, strict)
        go = emit("and", open_, inside)
        stay = emit("and", open_, emit("not", inside))
        low = emit("select", go, emit("add", middle, fill(1, i64, shape)), low)
        high = emit("select", stay, middle, high)
    return wrap(low)


@api(np.digitize)
def digitize(x: Any, bins: Any, right: bool = False) -> Tensor:
    """The bin of each value, for increasing bin edges."""
    return searchsorted(bins, x, "left" if right else "right")


@api(np.interp)
def interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Tensor:
    """Piecewise linear interpolation between increasing points."""
    if period is not None:
        raise unsupported("np.interp with period=")
    at, px, py = [ufunc_call(np.multiply, tensor(v), np.float64(1)) for v in (x, xp, fp)]
    n = px.type.shape[0]
    low = ufunc_call(np.maximum, searchsorted(px, at, "right") - 1, 0)
    low = ufunc_call(np.minimum, low, ufunc_call(np.maximum, wrap(size_node(n - 2)), 0))
    high = ufunc_call(np.minimum, low + 1, wrap(size_node(n - 1)))
    x0, x1, y0, y1 = px[low], px[high], py[low], py[high]
    slope = (y1 - y0) / (x1 - x0)
    result = where(ufunc_call(np.equal, at, x1), y1, slope * (at - x0) + y0)
    result = where(ufunc_call(np.less, at, px[0]), py[0] if left is None else left, result)
    result = where(ufunc_call(np.greater_equal, at, px[-1]), py[-1], result)
    if right is not None:
        result = where(ufunc_call(np.greater, at, px[-1]), right, result)
    return where(ufunc_call(np.isnan, at), at, result)


# ---- differences and sums of products along an axis -----------------------------------------------------------------

@api(np.diff)
def diff(a: Any, n: Any = 1, axis: Any = -1, prepend: Any = None, append: Any = None) -> Tensor:
    """Differences of neighbours, n times."""
    x = tensor(a)
    k = axis_of(axis, x.ndim)
    ends = []
    for end in (prepend, append):
        if given(end):
            t = tensor(end)
            shape = [1 if i == k else m for i, m in enumerate(x.type.shape)]
            ends.append(broadcast_to(t, shape) if t.ndim == 0 else t)
        else:
            ends.append(None)
    if any(e is not None for e in ends):
        x = concatenate([v for v in (ends[0], x, ends[1]) if v is not None], k)
    for _ in range(static_int(n, "the order")):
        high, low = x[(*[FULL] * k, slice(1, None))], x[(*[FULL] * k, slice(None, -1))]
        x = ufunc_call(np.not_equal if x.type.dtype is bool_ else np.subtract, high, low)
    return x


@api(np.gradient)
def gradient(f: Any, *varargs: Any, axis: Any = None, edge_order: int = 1) -> Any:
    """Central differences, one-sided at the ends; one step width per axis."""
    x = tensor(f)
    x = astype(x, np.float64) if x.type.dtype.integer else x
    if edge_order != 1:
        raise unsupported("np.gradient with edge_order=2")
    axes = [axis_of(k, x.ndim) for k in (range(x.ndim) if axis is None else np.atleast_1d(axis))]
    steps = list(varargs) * (len(axes) if len(varargs) == 1 else 1) or [1.0] * len(axes)
    out = []
    for k, h in zip(axes, steps):
        if np.ndim(h) if not isinstance(h, Tensor) else h.ndim:
            raise unsupported("np.gradient with coordinate arrays")

        def part(lo: Any, hi: Any, k: int = k) -> Tensor:
            return x[(*[FULL] * k, slice(lo, hi))]
        inner = (part(2, None) - part(None, -2)) / (2.0 * h)
        first = (part(1, 2) - part(0, 1)) / h
        last = (part(-1, None) - part(-2, -1)) / h
        out.append(concatenate([first, inner, last], k))
    return out[0] if len(out) == 1 else tuple(out)


def _sliding(a: Any, v: Any, mode: str, turn: bool) -> Tensor:
    x, w = tensor(a), tensor(v)
    if x.ndim != 1 or w.ndim != 1:
        raise shape_error("convolve", [x, w], x.ndim, w.ndim)
    m, n = x.type.shape[0], w.type.shape[0]
    ordered = known_le(n, m, ranges_now())
    if ordered is None and mode != "full":
        raise SizeUnknownError(f"which of {m} and {n} is larger", [m, n], "use mode='full' and slice")
    swapped = ordered is False
    if swapped:
        x, w, m, n = w, x, n, m
    given_dtype = common_dtype(x, w)
    d = i32 if given_dtype is bool_ else given_dtype
    kernel = node_of(w, d)
    if turn:
        kernel = emit("flip", kernel, axes=(0,))
    elif d.kind == "c":
        kernel = emit("conj", kernel)
    same = (n - 1) - (n - 1) // 2  # NumPy centres on the full result
    pads: dict[str, tuple[DimLike, DimLike]] = {
        "full": (n - 1, n - 1), "valid": (0, 0), "same": (same, n - 1 - same)}
    if mode not in pads:
        raise argument_error(f"convolve has no mode {mode!r}", "use full, same or valid")
    node = emit("conv", reshape(node_of(x, d), (1, 1, m)), reshape(kernel, (1, 1, n)), strides=(1,),
                padding=(pads[mode],), lhs_dilation=(1,), rhs_dilation=(1,), groups=1)
    result = wrap(cast(reshape(node, (node.type.shape[2],)), given_dtype))
    return flip(result, 0) if swapped and not turn else result


@api(np.convolve)
def convolve(a: Any, v: Any, mode: str = "full") -> Tensor:
    """Discrete convolution of two vectors."""
    return _sliding(a, v, mode, True)


@api(np.correlate)
def correlate(a: Any, v: Any, mode: str = "valid") -> Tensor:
    """Cross-correlation of two vectors."""
    return _sliding(a, v, mode, False)


@api(np.polyval)
def polyval(p: Any, x: Any) -> Tensor:
    """A polynomial with the highest power first, by Horner's rule."""
    coefficients, t = tensor(p), tensor(x)
    result = ufunc_call(np.multiply, t, 0)
    for c in coefficients:
        result = result * t + c
    return result


@api(getattr(np, "trapezoid", None))
def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Tensor:
    """Integral by the trapezoidal rule."""
    t = moveaxis(tensor(y), axis, -1)
    width = dx
    if x is not None:
        p = tensor(x)
        width = diff(p if p.ndim == 1 else moveaxis(p, axis, -1))
    return sum_(width * (t[..., 1:] + t[..., :-1]) / 2.0, -1)


@api(np.cov)
def cov(m: Any, y: Any = None, rowvar: bool = True, bias: bool = False, ddof: Any = None) -> Tensor:
    """Covariance of rows."""
    x = ufunc_call(np.multiply, tensor(m), np.float64(1) if tensor(m).type.dtype.kind in "biu" else 1.0)
    x = wrap(reshape(read(x), (1, x.type.shape[0]))) if x.ndim == 1 else x
    x = x if rowvar or x.type.shape[0] == 1 else x.T  # type: ignore[attr-defined]
    if y is not None:
        other = tensor(y)
        x = concatenate([x, wrap(reshape(read(other), (1, *other.type.shape))) if other.ndim == 1 else other], 0)
    gap = x - mean(x, 1, keepdims=True)
    turned = gap.T  # type: ignore[attr-defined]
    product = rooms.functions[np.matmul](gap, ufunc_call(np.conjugate, turned))
    count = x.shape[1] - (ddof if ddof is not None else 0 if bias else 1)
    result = product / count
    return wrap(reshape(read(result), ())) if result.type.shape == (1, 1) else result


# ---- counting -------------------------------------------------------------------------------------------------------

@api(names="bincount", eager=lambda x, weights=None, minlength=0, length=None: np.bincount(
    x, weights, minlength if length is None else length)[:length])
def bincount(x: Any, weights: Any = None, minlength: Any = 0, *, length: Any = None) -> Tensor:
    """How often each of 0..length-1 occurs (values outside are not counted), or the sum of their weights."""
    if length is None:
        raise UnsupportedError("T006", "np.bincount on traced values is not supported: the length of its result "
                               "depends on data", loc=caller_loc(),
                               cure="call flowc.numpy.bincount(x, length=k) with the number of bins")
    t, n = tensor(x), as_dim(length)
    if t.ndim != 1 or t.type.dtype.kind not in "iu":
        raise argument_error(f"bincount needs a vector of integers, got {t.type}", "ravel it, cast it", FlowcTypeError)
    at = node_of(t, i64)
    if weights is None:  # equal amounts for every position, one place for those outside
        bits = emit("cast", at, dtype=u64)
        at = emit("cast", emit("min", bits, emit("cast", spread(size_node(n), at.type.shape), dtype=u64)), dtype=i64)
        counts = emit("scatter_add", fill(0, i64, (n + 1,)), at, fill(1, i64, at.type.shape), axis=0)
        return wrap(emit("slice", counts, start=(0,), stop=(n,), step=(1,)), corder=True)
    d = to_dtype(np.float64)
    amount = node_of(operand(weights), d)
    inside = emit("and", emit("ge", at, fill(0, i64, at.type.shape)),
                  emit("lt", at, spread(size_node(n), at.type.shape)))
    amount = emit("select", inside, spread(amount, at.type.shape), fill(0, d, at.type.shape))
    return wrap(emit("scatter_add", fill(0, d, (n,)), at, amount, axis=0), corder=True)


rooms.functions[np.bincount] = bincount

# ---- what is known without values -----------------------------------------------------------------------------------

api(np.shape)(lambda a: tensor(a).shape)
api(np.ndim)(lambda a: tensor(a).ndim)
api(np.size)(lambda a, axis=None: tensor(a).size if axis is None else tensor(a).shape[axis_of(axis, tensor(a).ndim)])


@api(np.result_type)
def result_type(*arrays_and_dtypes: Any) -> np.dtype:
    """The dtype of a result of these operands by NumPy's rules."""
    xs = [operand(x) if isinstance(x, (Tensor, np.ndarray, np.generic, int, float, complex)) else np.empty(0, x)
          for x in arrays_and_dtypes]
    return common_dtype(*xs).numpy


@api(np.can_cast)
def can_cast(from_: Any, to: Any, casting: Any = "safe") -> bool:
    """May values of a dtype be converted by a rule."""
    return np.can_cast(from_.dtype if isinstance(from_, Tensor) else from_, to, casting)




# ---- parts put together ---------------------------------------------------------------------------------------------

@api(np.block)
def block(arrays: Any) -> Tensor:
    """Nested lists of blocks: the innermost side by side, the next ones below each other."""
    def depth(v: Any) -> int:
        return 1 + max(map(depth, v)) if isinstance(v, list) and v else 0
    levels = depth(arrays)

    def rank(v: Any) -> int:
        return max(map(rank, v)) if isinstance(v, list) else tensor(v).ndim
    axes = max(rank(arrays), levels)

    def build(v: Any, level: int) -> Tensor:
        if isinstance(v, list):
            return concatenate([build(w, level + 1) for w in v], level - levels)
        t = tensor(v)
        return wrap(reshape(read(t), (*[1] * (axes - t.ndim), *t.type.shape)))
    return build(arrays, 0)


@api(np.delete)
def delete(arr: Any, obj: Any, axis: Any = None) -> Tensor:
    """An array without the entries at known positions of one axis."""
    x = tensor(arr)
    if axis is None:
        x, axis = wrap(reshape(read(x), (x.type.size,))), 0
    k = axis_of(axis, x.ndim)
    n = static_int(x.shape[k], "the size of the axis")
    if isinstance(obj, Tensor):
        raise argument_error("positions to delete must be known while the function is traced", "pass integers",
                             FlowcTypeError)
    return getitem(x, (*[FULL] * k, np.delete(np.arange(n), obj)))


@api(np.ediff1d)
def ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Tensor:
    """Differences of neighbours of the flattened array."""
    x = tensor(ary)
    parts = [diff(wrap(reshape(read(x), (x.type.size,))))]
    for place, extra in ((len(parts), to_end), (0, to_begin)):
        if extra is not None:
            t = tensor(extra)
            parts.insert(place, wrap(reshape(node_of(t, x.type.dtype), (t.type.size,))))
    return concatenate(parts)


@api(np.corrcoef)
def corrcoef(x: Any, y: Any = None, rowvar: bool = True) -> Tensor:
    """Correlation coefficients of rows."""
    c = cov(x, y, rowvar)
    if c.ndim == 0:
        return ufunc_call(np.true_divide, c, c)
    spread_ = ufunc_call(np.sqrt, rooms.functions[np.diagonal](c).real)
    scaled = c / spread_[:, None] / spread_[None, :]
    return scaled if scaled.type.dtype.kind == "c" else clip(scaled, -1, 1)
