"""Ops that move elements without arithmetic, and generated tensors.

Here: broadcast, reshape, transpose, slice, pad, flip, concatenate, update_slice, iota, size.  Not here: movement by
data (indexing.py), sliding windows (windows.py).  Read next: windows.py.

Every lowering maps an output index to operand indices, so after fusion a movement costs address arithmetic at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from flowc.dims import DimLike, ceildiv, prod
from flowc.graph import Node
from flowc.kernel import Builder, Expr
from flowc.op import Op, Pointwise
from flowc.ops.rules import (
    EXACT,
    collapse,
    convert,
    declare,
    kept_axes,
    linear_jvp,
    n,
    need_axes,
    need_axis,
    need_inside,
    need_rank,
    need_sizes,
    need_static,
    same_dtype,
    same_size,
    shown,
    zeros,
)
from flowc.ops.samples import Samples, calls
from flowc.proofs import known_eq, known_le, known_lt
from flowc.types import ALL, REALS, DType, Type, f32, i8, i64

Load = Callable[..., Expr]
LIGHT = (f32, i8)  # movement does not look at elements: two widths stand for all in generated calls


def movement(name: str, doc: str, *, numpy: Callable[..., Any], infer: Callable[..., Type],
             source: Callable[..., Any], attrs: tuple[str, ...], vjp: Callable[..., tuple] | None,
             samples: Samples, arity: int | None = 1, jvp: Callable[..., Any] | None = None,
             dtypes: tuple[DType, ...] = ALL) -> Op:
    """An op without arithmetic.  ``source(b, idx, load, types, **attrs)`` reads the element of an output index."""
    def expr(b: Builder, idx: tuple, load: Load, types: tuple[Type, ...], given: dict) -> Expr:
        return source(b, idx, load, types, **given)

    return declare(name, doc, numpy=numpy, infer=infer, lower=Pointwise(expr, movement=True), arity=arity,
                   attrs=attrs, dtypes=dtypes, vjp=vjp, jvp=jvp or (linear_jvp(name) if vjp else None), ulp=EXACT,
                   samples=samples)


def all_of(b: Builder, conditions: Iterable[Expr]) -> Expr | None:
    """Conjunction; None where there is nothing to ask."""
    some = list(conditions)
    return reduce(b.and_, some) if some else None


# ---- broadcast ------------------------------------------------------------------------------------------------------

def _broadcast_type(x: Type, shape: tuple, axes: tuple) -> Type:
    need_sizes(shape, None, "shape")
    need_axes(axes, len(shape))
    if len(axes) != x.rank:
        raise ValueError(f"axes {axes} must name one output axis for each of the {x.rank} axes of {x}")
    for i, a in enumerate(axes):
        same_size(x.shape[i], shape[a], f"axis {i} of {x} cannot become axis {a} of {shown(shape)}")
    return x.with_shape(shape)


def _broadcast_value(x: np.ndarray, shape: tuple, axes: tuple) -> np.ndarray:
    lifted = [1] * len(shape)
    for size, a in zip(x.shape, axes, strict=True):
        lifted[a] = size
    return np.broadcast_to(x.reshape(lifted), shape)


movement("broadcast", "x repeated along new axes: its axis i becomes output axis axes[i].", attrs=("shape", "axes"),
         numpy=_broadcast_value, infer=_broadcast_type,
         source=lambda b, idx, load, types, shape, axes: load(0, tuple(idx[a] for a in axes)),
         vjp=lambda g, y, x, shape, axes: (collapse(g, kept_axes(len(shape), axes)),),
         samples=calls(ALL, (((3,),), {"shape": (2, 3, 4), "axes": (1,)}), (((),), {"shape": (5,), "axes": ()}),
                       (((2, 3),), {"shape": (2, 3), "axes": (0, 1)}), (((0,),), {"shape": (0, 2), "axes": (0,)})))

# ---- reshape --------------------------------------------------------------------------------------------------------


def _reshape_type(x: Type, shape: tuple) -> Type:
    need_sizes(shape, None, "shape")
    if not known_eq(x.size, prod(shape)):
        raise ValueError(f"{x} has {x.size} elements, shape {shown(shape)} has {prod(shape)}")
    return x.with_shape(shape)


def matched_groups(a: Sequence[DimLike], b: Sequence[DimLike]) -> list[tuple[range, range]]:
    """Cut two shapes of equal size into runs of axes with equal products, as short as a walk from the left finds:
    only inside such a run does a reshape need division."""
    out: list[tuple[range, range]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        i0, j0, grow_left = i, j, False
        lone_a, lone_b = i < len(a) and a[i] == 1, j < len(b) and b[j] == 1
        if lone_a == lone_b:
            i, j = min(i + 1, len(a)), min(j + 1, len(b))
        else:  # an axis of size 1 on one side only is a run by itself
            i, j = i + lone_a, j + lone_b
        left, right = prod(a[i0:i]), prod(b[j0:j])
        while not known_eq(left, right) and (i < len(a) or j < len(b)):
            less, more = known_le(left, right), known_le(right, left)
            grow_left = not grow_left if bool(less) == bool(more) else bool(less)  # undecided: take turns
            if (grow_left or j == len(b)) and i < len(a):
                left, i = left * a[i], i + 1
            else:
                right, j = right * b[j], j + 1
        out.append((range(i0, i), range(j0, j)))
    return out


def reshaped_index(idx: Sequence[DimLike], new: Sequence[DimLike], old: Sequence[DimLike]) -> tuple[DimLike, ...]:
    """Where the element at ``idx`` of shape ``new`` stands in shape ``old``, which has no size known to be 0."""
    out: list[DimLike] = []
    for theirs, ours in matched_groups(old, new):
        if len(ours) == 1 == len(theirs):
            out.append(idx[ours[0]])
            continue
        at: DimLike = 0
        for k in ours:
            at = at * new[k] + idx[k]
        found: list[DimLike] = []
        for k in reversed(theirs):
            outermost = k == theirs[0]
            found.append(at if outermost else at % old[k])
            at = at if outermost else at // old[k]
        out += reversed(found)
    return tuple(out)


def _reshape_source(b: Builder, idx: tuple, load: Load, types: tuple, shape: tuple) -> Expr:
    if known_eq(types[0].size, 0):
        return b.const(0, types[0].dtype)  # there is nothing to read, and no element to compute
    return load(0, reshaped_index(idx, shape, types[0].shape))


movement("reshape", "The same elements in C order under another shape of equal size.", attrs=("shape",),
         numpy=lambda x, shape: np.reshape(x, shape), infer=_reshape_type, source=_reshape_source,
         vjp=lambda g, y, x, shape: (n.reshape(g, shape=x.shape),),
         samples=calls(ALL, (((6,),), {"shape": (2, 3)}), (((2, 3, 4),), {"shape": (2, 12)}),
                       (((2, 3, 4),), {"shape": (4, 3, 2)}), (((),), {"shape": (1, 1)}), (((1, 1),), {"shape": ()}),
                       (((0, 3),), {"shape": (5, 0, 2)}), (((4, 1, 6),), {"shape": (1, 8, 3, 1)})))

# ---- transpose, flip ------------------------------------------------------------------------------------------------


def _transpose_type(x: Type, perm: tuple) -> Type:
    if len(need_axes(perm, x.rank, increasing=False)) != x.rank:
        raise ValueError(f"perm {perm} must name each of the {x.rank} axes of {x} once")
    return x.with_shape(x.shape[p] for p in perm)


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``perm``."""
    out = [0] * len(perm)
    for i, p in enumerate(perm):
        out[p] = i
    return tuple(out)


movement("transpose", "Axes in another order: output axis i is axis perm[i] of x.", attrs=("perm",),
         numpy=lambda x, perm: np.transpose(x, perm), infer=_transpose_type,
         source=lambda b, idx, load, types, perm: load(0, tuple(idx[p] for p in inverse(perm))),
         vjp=lambda g, y, x, perm: (n.transpose(g, perm=inverse(perm)),),
         samples=calls(ALL, (((2, 3, 4),), {"perm": (2, 0, 1)}), (((3, 5),), {"perm": (1, 0)}),
                       (((),), {"perm": ()}), (((0, 3),), {"perm": (1, 0)})))


def _flip_type(x: Type, axes: tuple) -> Type:
    need_axes(axes, x.rank)
    return x


movement("flip", "Order of the elements reversed along axes.", attrs=("axes",),
         numpy=lambda x, axes: np.flip(x, axes) if axes else x, infer=_flip_type,
         source=lambda b, idx, load, types, axes: load(0, tuple(
             s - 1 - i if k in axes else i for k, (i, s) in enumerate(zip(idx, types[0].shape, strict=True)))),
         vjp=lambda g, y, x, axes: (n.flip(g, axes=axes),),
         samples=calls(LIGHT, (((3, 5),), {"axes": (1,)}), (((3, 5),), {"axes": (0, 1)}), (((0,),), {"axes": (0,)}),
                       (((),), {"axes": ()})))

# ---- slice, update_slice --------------------------------------------------------------------------------------------


def _slice_type(x: Type, start: tuple, stop: tuple, step: tuple) -> Type:
    need_sizes(start, x.rank, "start")
    need_static(step, x.rank, "step", 1)
    need_sizes(stop, x.rank, "stop", least=-2 ** 63)
    sizes = []
    for axis, (lo, hi, by) in enumerate(zip(start, stop, step, strict=True)):
        need_inside(lo, hi, x.shape[axis], f"axis {axis}: slice")
        size = ceildiv(hi - lo, by)
        if known_lt(size, 0):
            raise ValueError(f"axis {axis}: slice starts at {lo}, after its stop {hi}")
        sizes.append(size)
    return x.with_shape(sizes)


def _slice_value(x: np.ndarray, start: tuple, stop: tuple, step: tuple) -> np.ndarray:
    return x[tuple(slice(lo, max(lo, hi), by) for lo, hi, by in zip(start, stop, step, strict=True))]


movement("slice", "Elements start, start + step, ... below stop of every axis; step is positive.",
         attrs=("start", "stop", "step"), numpy=_slice_value, infer=_slice_type,
         source=lambda b, idx, load, types, start, stop, step: load(0, tuple(
             lo + i * by for i, lo, by in zip(idx, start, step, strict=True))),
         vjp=lambda g, y, x, start, stop, step: (n.update_slice(zeros(x.type), g, start=start, step=step),),
         samples=calls(LIGHT, (((7,),), {"start": (2,), "stop": (7,), "step": (2,)}),
                       (((5, 6),), {"start": (0, 1), "stop": (5, 5), "step": (1, 3)}),
                       (((5,),), {"start": (3,), "stop": (3,), "step": (1,)}),
                       (((),), {"start": (), "stop": (), "step": ()})))


def _update_type(x: Type, v: Type, start: tuple, step: tuple) -> Type:
    same_dtype(x, v)
    need_rank(v, x.rank, "the update")
    need_sizes(start, x.rank, "start")
    need_static(step, x.rank, "step", 1)
    for axis, (lo, by, size) in enumerate(zip(start, step, v.shape, strict=True)):
        if not known_eq(size, 0):
            need_inside(lo, lo + (size - 1) * by + 1, x.shape[axis], f"axis {axis}: update")
    return x


def _update_value(x: np.ndarray, v: np.ndarray, start: tuple, step: tuple) -> np.ndarray:
    out = np.array(x)
    if v.size:
        out[tuple(slice(lo, lo + (k - 1) * by + 1, by) for lo, by, k in zip(start, step, v.shape, strict=True))] = v
    return out


def _update_source(b: Builder, idx: tuple, load: Load, types: tuple, start: tuple, step: tuple) -> Expr:
    x, v, _ = types
    inside, at = [], []
    for i, lo, by, size, whole in zip(idx, start, step, v.shape, x.shape, strict=True):
        offset = i - lo
        at.append(offset // by)
        if known_eq(lo, 0) and by == 1 and known_eq(size, whole):
            continue
        if not known_eq(lo, 0):
            inside.append(b.ge(b.index(offset), 0))
        inside.append(b.lt(b.index(offset), b.index(size * by)))
        if by > 1:
            inside.append(b.eq(b.index(offset % by), 0))
    where = all_of(b, inside)
    if where is None:
        return load(1, tuple(at))
    return b.select(where, load(1, tuple(at), where), load(0, idx))


def _update_vjp(g: Node, y: Node, x: Node, v: Node, start: tuple, step: tuple) -> tuple:
    stop = tuple(lo + (size - 1) * by + 1 for lo, by, size in zip(start, step, v.shape, strict=True))
    return (n.update_slice(g, zeros(v.type), start=start, step=step),
            n.slice(g, start=start, stop=stop, step=step))


movement("update_slice", "x with the elements start, start + step, ... of every axis replaced by those of v.",
         attrs=("start", "step"), arity=2, numpy=_update_value, infer=_update_type, source=_update_source,
         vjp=_update_vjp,
         samples=calls(LIGHT, (((7,), (3,)), {"start": (1,), "step": (2,)}),
                       (((4, 5), (2, 5)), {"start": (1, 0), "step": (1, 1)}),
                       (((4, 5), (4, 5)), {"start": (0, 0), "step": (1, 1)}),
                       (((4,), (0,)), {"start": (2,), "step": (1,)}), (((), ()), {"start": (), "step": ()})))

# ---- pad, concatenate -----------------------------------------------------------------------------------------------


def _pad_type(x: Type, value: Type, low: tuple, high: tuple) -> Type:
    same_dtype(x, value)
    need_rank(value, 0, "the padding value")
    need_sizes(low, x.rank, "low")
    need_sizes(high, x.rank, "high")
    return x.with_shape(lo + s + hi for lo, s, hi in zip(low, x.shape, high, strict=True))


def _pad_value(x: np.ndarray, value: np.ndarray, low: tuple, high: tuple) -> np.ndarray:
    out = np.full([lo + s + hi for lo, s, hi in zip(low, x.shape, high, strict=True)], value, x.dtype)
    out[tuple(slice(lo, lo + s) for lo, s in zip(low, x.shape, strict=True))] = x
    return out


def _pad_source(b: Builder, idx: tuple, load: Load, types: tuple, low: tuple, high: tuple) -> Expr:
    at = tuple(i - lo for i, lo in zip(idx, low, strict=True))
    inside = []
    for i, lo, hi, size in zip(at, low, high, types[0].shape, strict=True):
        if not known_eq(lo, 0):
            inside.append(b.ge(b.index(i), 0))
        if not known_eq(hi, 0):
            inside.append(b.lt(b.index(i), b.index(size)))
    where = all_of(b, inside)
    return load(0, at) if where is None else load(0, at, where, load(1, ()))


def _pad_vjp(g: Node, y: Node, x: Node, value: Node, low: tuple, high: tuple) -> tuple:
    ones = (1,) * x.rank
    stop = tuple(lo + s for lo, s in zip(low, x.shape, strict=True))
    border = n.update_slice(g, zeros(x.type), start=low, step=ones)  # no difference of sums: it would cancel
    return n.slice(g, start=low, stop=stop, step=ones), collapse(border, range(x.rank))


movement("pad", "x with low elements of value before and high after it along every axis.", attrs=("low", "high"),
         arity=2, numpy=_pad_value, infer=_pad_type, source=_pad_source, vjp=_pad_vjp,
         samples=calls(LIGHT, (((5,), ()), {"low": (2,), "high": (1,)}),
                       (((2, 3), ()), {"low": (0, 1), "high": (0, 0)}), (((0,), ()), {"low": (1,), "high": (2,)}),
                       (((), ()), {"low": (), "high": ()})))


def _concatenate_type(*xs: Type, axis: int) -> Type:
    if not xs:
        raise ValueError("needs at least one operand")
    same_dtype(*xs)
    need_axis(axis, xs[0].rank)
    total: DimLike = 0
    for k, x in enumerate(xs):
        need_rank(x, xs[0].rank, f"operand {k}")
        for a in range(x.rank):
            if a != axis:
                same_size(xs[0].shape[a], x.shape[a], f"operands 0 and {k} differ along axis {a}")
        total = total + x.shape[axis]
    return xs[0].with_shape((*xs[0].shape[:axis], total, *xs[0].shape[axis + 1:]))


def _offsets(sizes: Iterable[DimLike]) -> list[DimLike]:
    out: list[DimLike] = [0]
    for s in sizes:
        out.append(out[-1] + s)
    return out


def _concatenate_source(b: Builder, idx: tuple, load: Load, types: tuple, axis: int) -> Expr:
    ends = _offsets(t.shape[axis] for t in types[:-1])
    i, last = b.index(idx[axis]), len(types) - 2
    out: Expr | None = None
    for k in range(last, -1, -1):
        at = (*idx[:axis], idx[axis] - ends[k], *idx[axis + 1:])
        inside = [b.ge(i, b.index(ends[k]))] if k else []
        inside += [b.lt(i, b.index(ends[k + 1]))] if k < last else []
        part = load(k, at, all_of(b, inside)) if inside else load(k, at)
        out = part if out is None else b.select(b.lt(i, b.index(ends[k + 1])), part, out)
    assert out is not None
    return out


def _concatenate_vjp(g: Node, y: Node, *xs: Node, axis: int) -> tuple:
    ends = _offsets(x.shape[axis] for x in xs)
    out = []
    for k, x in enumerate(xs):
        start = tuple(ends[k] if a == axis else 0 for a in range(x.rank))
        stop = tuple(ends[k + 1] if a == axis else s for a, s in enumerate(x.shape))
        out.append(n.slice(g, start=start, stop=stop, step=(1,) * x.rank))
    return tuple(out)


movement("concatenate", "Operands one after the other along an axis.", attrs=("axis",), arity=None,
         numpy=lambda *xs, axis: np.concatenate(xs, axis), infer=_concatenate_type, source=_concatenate_source,
         vjp=_concatenate_vjp,
         samples=calls(LIGHT, (((2,), (3,)), {"axis": 0}), (((2, 3), (2, 0), (2, 1)), {"axis": 1}),
                       (((4,),), {"axis": 0})))

# ---- generated tensors ----------------------------------------------------------------------------------------------


def _iota_type(*, shape: tuple, axis: int, dtype: DType) -> Type:
    need_sizes(shape, None, "shape")
    need_axis(axis, len(shape))
    if dtype not in REALS:
        raise TypeError(f"dtype must be a real number type, not {dtype}")
    return Type(dtype, shape)


def _iota_value(shape: tuple, axis: int, dtype: DType) -> np.ndarray:
    line = np.arange(shape[axis], dtype=np.int64)
    if dtype.name == "bf16":
        line = line.astype(np.float32)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return np.broadcast_to(line.astype(dtype.numpy).reshape(along), shape)


movement("iota", "The index along an axis as a number; integers too narrow for it wrap.",
         attrs=("shape", "axis", "dtype"), arity=0, numpy=_iota_value, infer=_iota_type, vjp=None,
         source=lambda b, idx, load, types, shape, axis, dtype: convert(b, b.index(idx[axis]), dtype),
         samples=lambda rng: [((), {"shape": s, "axis": a, "dtype": d}) for d in REALS
                              for s, a in (((300,), 0), ((2, 3), 1), ((2, 3), 0), ((0,), 0))])


def _size_type(*, value: DimLike) -> Type:
    need_sizes((value,), 1, "value", least=-2 ** 63)
    return Type(i64)


movement("size", "A size as an integer scalar.", attrs=("value",), arity=0,
         numpy=lambda value: np.asarray(value, np.int64),
         infer=_size_type, vjp=None,
         source=lambda b, idx, load, types, value: b.index(value),
         samples=lambda rng: [((), {"value": v}) for v in (0, 7, 2 ** 40)])
