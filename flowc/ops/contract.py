"""Contractions: sums of products of two operands.

Here: dot (every matrix product and einsum of two operands) and conv.  Not here: how they are tiled and packed
(passes/contract.py).  Read next: indexing.py.

Convolution sizes: an axis of size s dilated by d has (s - 1) * d + 1 positions; padding is added to that (negative
padding cuts); an output exists for every stride-th position where the dilated kernel fits, possibly none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod as int_prod
from typing import Any

import numpy as np

from flowc.dims import DimLike, ceildiv, floordiv
from flowc.graph import Node
from flowc.op import Access, Contraction
from flowc.ops.movement import inverse
from flowc.ops.rules import (
    add_up,
    declare,
    exact_but_floats,
    in_f32,
    kept_axes,
    n,
    need_axes,
    need_length,
    need_rank,
    need_sizes,
    need_static,
    nonnegative,
    same_dtype,
    same_size,
    zeros,
)
from flowc.ops.samples import calls
from flowc.types import FLOATS, NUMBERS, Type, i8, i32

# ---- dot ------------------------------------------------------------------------------------------------------------


def _free(rank: int, batch: tuple[int, ...], contract: tuple[int, ...]) -> tuple[int, ...]:
    return kept_axes(rank, (*batch, *contract))


def _dot_type(a: Type, b: Type, lhs_batch: tuple, rhs_batch: tuple, lhs_contract: tuple, rhs_contract: tuple) -> Type:
    same_dtype(a, b)
    for x, axes in ((a, (*lhs_batch, *lhs_contract)), (b, (*rhs_batch, *rhs_contract))):
        need_axes(axes, x.rank, increasing=False)
    for what, left, right in (("batch", lhs_batch, rhs_batch), ("contracted", lhs_contract, rhs_contract)):
        need_length(right, len(left), f"the {what} axes of the second operand")
        for i, j in zip(left, right, strict=True):
            same_size(a.shape[i], b.shape[j], f"{what} axes {i} of {a} and {j} of {b} differ")
    free_a = _free(a.rank, lhs_batch, lhs_contract)
    free_b = _free(b.rank, rhs_batch, rhs_contract)
    return a.with_shape((*(a.shape[i] for i in lhs_batch), *(a.shape[i] for i in free_a),
                         *(b.shape[i] for i in free_b)))


def _dot_value(a: np.ndarray, b: np.ndarray, lhs_batch: tuple, rhs_batch: tuple, lhs_contract: tuple,
               rhs_contract: tuple) -> np.ndarray:
    free_a = _free(a.ndim, lhs_batch, lhs_contract)
    free_b = _free(b.ndim, rhs_batch, rhs_contract)

    def sizes(x: np.ndarray, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(x.shape[i] for i in axes)

    k = int_prod(sizes(a, lhs_contract))
    left = a.transpose((*lhs_batch, *free_a, *lhs_contract)).reshape(
        (*sizes(a, lhs_batch), int_prod(sizes(a, free_a)), k))
    right = b.transpose((*rhs_batch, *rhs_contract, *free_b)).reshape(
        (*sizes(b, rhs_batch), k, int_prod(sizes(b, free_b))))
    return np.matmul(left, right).reshape(sizes(a, lhs_batch) + sizes(a, free_a) + sizes(b, free_b))


def _dot_access(types: tuple[Type, ...], attrs: dict) -> Access:
    a, b, out = types
    batch = len(attrs["lhs_batch"])
    free_a = _free(a.rank, attrs["lhs_batch"], attrs["lhs_contract"])
    free_b = _free(b.rank, attrs["rhs_batch"], attrs["rhs_contract"])

    def reader(order: tuple[int, ...], first: int, count: int) -> Any:
        """Operand axes in ``order`` are read at the batch indices, ``count`` output indices from ``first``, and the
        summed indices."""
        where = inverse(order)

        def read(o: tuple, r: tuple) -> tuple:
            at = (*o[:batch], *o[first:first + count], *r)
            return tuple(at[k] for k in where), ()
        return read

    return Access(
        out=out.shape, reduce=tuple(a.shape[i] for i in attrs["lhs_contract"]),
        lhs=reader((*attrs["lhs_batch"], *free_a, *attrs["lhs_contract"]), batch, len(free_a)),
        rhs=reader((*attrs["rhs_batch"], *free_b, *attrs["rhs_contract"]), batch + len(free_a), len(free_b)),
        out_kinds="b" * batch + "m" * len(free_a) + "n" * len(free_b))


def _one_side(g: Node, x: Node, other: Node, batch: tuple, contract: tuple, other_batch: tuple,
              other_contract: tuple, first: bool) -> Node:
    """Cotangent of operand ``x``: the cotangent of the result times the other operand over the other's free axes."""
    other_free = _free(other.rank, other_batch, other_contract)
    mine = _free(x.rank, batch, contract)
    start = len(batch) + (len(mine) if first else 0)
    out = n.dot(g, other, lhs_batch=tuple(range(len(batch))), rhs_batch=other_batch,
                lhs_contract=tuple(range(start, start + len(other_free))), rhs_contract=other_free)
    # result axes: batch, my free axes, then the other's contracted axes in increasing order
    partner = dict(zip(other_contract, contract, strict=True))
    order = (*batch, *mine, *(partner[c] for c in sorted(other_contract)))
    return n.transpose(out, perm=inverse(order)) if order != tuple(range(x.rank)) else out


def _dot_vjp(g: Node, y: Node, a: Node, b: Node, lhs_batch: tuple, rhs_batch: tuple, lhs_contract: tuple,
             rhs_contract: tuple) -> tuple:
    left, right = (lhs_batch, lhs_contract), (rhs_batch, rhs_contract)
    return _one_side(g, a, b, *left, *right, first=True), _one_side(g, b, a, *right, *left, first=False)


def _bilinear_jvp(name: str) -> Any:
    def jvp(ts: tuple, y: Node, a: Node, b: Node, **attrs: Any) -> Node | None:
        make = getattr(n, name)
        return add_up((None if ts[0] is None else make(ts[0], b, **attrs),
                       None if ts[1] is None else make(a, ts[1], **attrs)))
    return jvp


def _dot(lb: tuple, rb: tuple, lc: tuple, rc: tuple) -> dict[str, tuple]:
    return {"lhs_batch": lb, "rhs_batch": rb, "lhs_contract": lc, "rhs_contract": rc}


declare("dot", "Sum of products over contracted axes; result axes: batch, free of the first, free of the second.",
        numpy=in_f32(_dot_value), infer=_dot_type, lower=Contraction(_dot_access), arity=2,
        attrs=("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"), dtypes=NUMBERS, ulp=exact_but_floats(),
        vjp=_dot_vjp, jvp=_bilinear_jvp("dot"),
        samples=calls(NUMBERS, (((3, 4), (4, 5)), _dot((), (), (1,), (0,))),
                      (((2, 3, 4), (5, 2, 4)), _dot((0,), (1,), (2,), (2,))),
                      (((4,), (4,)), _dot((), (), (0,), (0,))), (((3,), (2,)), _dot((), (), (), ())),
                      (((4, 3, 2), (2, 4, 5)), _dot((), (), (0, 2), (1, 0))),
                      (((3, 2, 4), (4, 3)), _dot((0,), (1,), (2,), (0,))),
                      (((3, 0), (0, 2)), _dot((), (), (1,), (0,))), (((), ()), _dot((), (), (), ()))))

# ---- conv -----------------------------------------------------------------------------------------------------------

RESIDUES = 4  # convolutions that the gradient of one with strides may become


def dilated(size: DimLike, dilation: int) -> DimLike:
    """Positions of an axis with ``dilation - 1`` gaps between neighbours."""
    return (size - 1) * dilation + 1


def _conv_type(x: Type, w: Type, strides: tuple, padding: tuple, lhs_dilation: tuple, rhs_dilation: tuple,
               groups: int) -> Type:
    same_dtype(x, w)
    if x.rank < 2:
        raise ValueError(f"the input must have a batch, a channel and spatial axes, got {x}")
    need_rank(w, x.rank, "the kernel")
    axes = x.rank - 2
    for what, values in (("strides", strides), ("lhs_dilation", lhs_dilation), ("rhs_dilation", rhs_dilation)):
        need_static(values, axes, what, 1)
    need_length(padding, axes, "padding")
    (groups,) = need_static((groups,), 1, "groups", 1)
    same_size(x.shape[1], w.shape[1] * groups, f"channels of {x} and {groups} groups of the kernel {w} differ")
    if w.shape[0] % groups != 0:
        raise ValueError(f"{groups} groups must divide the {w.shape[0]} output channels of {w}")
    spatial = []
    for k in range(axes):
        low, high = need_sizes(padding[k], 2, "padding", least=-2 ** 62)
        room = dilated(x.shape[2 + k], lhs_dilation[k]) + low + high - dilated(w.shape[2 + k], rhs_dilation[k])
        spatial.append(nonnegative(floordiv(room, strides[k]) + 1))
    return x.with_shape((x.shape[0], w.shape[0], *spatial))


def _conv_value(x: np.ndarray, w: np.ndarray, strides: tuple, padding: tuple, lhs_dilation: tuple, rhs_dilation: tuple,
                groups: int) -> np.ndarray:
    batch, channels, *_ = x.shape
    full = x
    for axis, (size, d, (low, high)) in enumerate(zip(x.shape[2:], lhs_dilation, padding, strict=True), start=2):
        total = max(0, dilated(size, d) + low + high)
        at = np.arange(total) - low
        known = (at >= 0) & (at % d == 0) & (at // d < size)
        shape = [1] * full.ndim
        shape[axis] = total
        taken = np.take(full, np.where(known, at // d, 0), axis) if size else np.zeros(
            (*full.shape[:axis], total, *full.shape[axis + 1:]), full.dtype)
        full = np.where(known.reshape(shape), taken, np.zeros((), full.dtype))
    for k, (size, s, d) in enumerate(zip(w.shape[2:], strides, rhs_dilation, strict=True)):
        count = max(0, (full.shape[2 + k] - dilated(size, d)) // s + 1)
        at = np.arange(count)[:, None] * s + np.arange(size) * d
        full = np.moveaxis(np.take(full, at, axis=2 + k), 2 + k + 1, -1)
    outs, taps = full.shape[2:2 + len(strides)], w.shape[2:]
    inner = w.shape[1] * int_prod(taps)
    left = full.reshape(batch, groups, channels // groups, int_prod(outs), *taps)
    left = np.moveaxis(left, 3, 2).reshape(batch, groups, int_prod(outs), inner)
    right = w.reshape(groups, w.shape[0] // groups, inner)
    out = np.matmul(left, np.swapaxes(right, 1, 2))  # batch, group, position, channel of the group
    return np.swapaxes(out, 2, 3).reshape(batch, w.shape[0], *outs)


def _conv_access(types: tuple[Type, ...], attrs: dict) -> Access:
    """With groups, the channel axis of the output is two indices: the group, on which both operands depend, and the
    channel inside it."""
    x, w, out = types
    groups, inner = attrs["groups"], w.shape[1]
    per_group = out.shape[1] // groups
    first = 1 if groups == 1 else 2

    def lhs(o: tuple, r: tuple) -> tuple:
        at, conditions = [], []
        for k, (p, tap) in enumerate(zip(o[first + 1:], r[1:], strict=True)):
            (low, high), d = attrs["padding"][k], attrs["lhs_dilation"][k]
            here = p * attrs["strides"][k] + tap * attrs["rhs_dilation"][k] - low
            if d > 1:
                conditions.append(("divisible", here, d))
            if d > 1 or not (_at_most_zero(low) and _at_most_zero(high)):
                conditions.append(("range", here // d, x.shape[2 + k]))
            at.append(here // d)
        channel = r[0] if groups == 1 else o[1] * inner + r[0]
        return (o[0], channel, *at), tuple(conditions)

    def rhs(o: tuple, r: tuple) -> tuple:
        channel = o[1] if groups == 1 else o[1] * per_group + o[2]
        return (channel, *r), ()

    def place(o: tuple) -> tuple:
        return o if groups == 1 else (o[0], o[1] * per_group + o[2], *o[3:])

    spatial = out.shape[2:]
    channels = (out.shape[1],) if groups == 1 else (groups, per_group)
    return Access(out=(out.shape[0], *channels, *spatial), reduce=w.shape[1:], lhs=lhs, rhs=rhs,
                  out_kinds="m" + ("n" if groups == 1 else "bn") + "m" * len(spatial), place=place)


def _at_most_zero(d: DimLike) -> bool:
    return isinstance(d, int) and d <= 0


def _split_channels(x: Node, axis: int, groups: int) -> Node:
    s = x.shape
    return n.reshape(x, shape=(*s[:axis], groups, s[axis] // groups, *s[axis + 1:]))


def _join_channels(x: Node, axis: int) -> Node:
    s = x.shape
    return n.reshape(x, shape=(*s[:axis], s[axis] * s[axis + 1], *s[axis + 2:]))


def _swapped(w: Node, groups: int) -> Node:
    """The kernel with input and output channels exchanged inside each group: (groups * I, O / groups, ...)."""
    if groups == 1:
        return n.transpose(w, perm=(1, 0, *range(2, w.rank)))
    split = _split_channels(w, 0, groups)
    return _join_channels(n.transpose(split, perm=(0, 2, 1, *range(3, split.rank))), 0)


def _conv_dx(g: Node, x: Node, w: Node, strides: tuple, padding: tuple, lhs_dilation: tuple, rhs_dilation: tuple,
             groups: int) -> Node:
    """A convolution of the cotangent, dilated by the strides, with the reversed kernel; one for every residue of the
    positions modulo the strides where these are small."""
    spatial = range(2, x.rank)
    pads = []
    for k, (low, _) in enumerate(padding):
        taps = dilated(w.shape[2 + k], rhs_dilation[k])
        before = taps - 1 - low
        total = dilated(x.shape[2 + k], lhs_dilation[k]) + taps - 1
        pads.append((before, total - dilated(g.shape[2 + k], strides[k]) - before))
    kernel = n.flip(_swapped(w, groups), axes=tuple(spatial))
    apart = [k for k, s in enumerate(strides) if s > 1 and lhs_dilation[k] == rhs_dilation[k] == 1
             and isinstance(pads[k][0], int) and isinstance(kernel.shape[2 + k], int)]
    while int_prod(strides[k] for k in apart) > RESIDUES:
        apart.pop()
    attrs = {"strides": lhs_dilation, "lhs_dilation": strides, "rhs_dilation": rhs_dilation, "groups": groups}
    if not apart:
        return n.conv(g, kernel, padding=tuple(pads), **attrs)
    parts = [_residue(g, kernel, pads, dict(zip(apart, r, strict=True)), x.shape[2:], attrs)
             for r in product(*(range(strides[k]) for k in apart))]
    return _interleaved(parts, {2 + k: strides[k] for k in apart}, x.shape)


def _residue(g: Node, kernel: Node, pads: Sequence[tuple], residues: dict[int, int], sizes: Sequence[DimLike],
             attrs: dict[str, Any]) -> Node:
    """The part of a convolution of an input with gaps at positions with these residues (by spatial axis) modulo the
    gaps.  It meets every gap-th tap only, and these lie on elements: no zero of a gap is multiplied."""
    start, stop, step = [0] * kernel.rank, list(kernel.shape), [1] * kernel.rank
    padding, gaps, outs = list(pads), list(attrs["lhs_dilation"]), list(sizes)
    met = 1
    for k, r in residues.items():
        s, (low, _), taps = gaps[k], pads[k], kernel.shape[2 + k]
        first = (low - r) % s
        count, outs[k] = max(0, -(-(taps - first) // s)), ceildiv(sizes[k], s)
        start[2 + k], step[2 + k], gaps[k] = min(first, taps), s, 1
        before = (low - r - first) // s
        padding[k] = before, outs[k] - 1 + count - g.shape[2 + k] - before
        met *= count
    if not met:
        return zeros(g.type.with_shape((g.shape[0], kernel.shape[0], *outs)))
    taken = n.slice(kernel, start=tuple(start), stop=tuple(stop), step=tuple(step))
    return n.conv(g, taken, padding=tuple(padding), **{**attrs, "lhs_dilation": tuple(gaps)})


def _interleaved(parts: Sequence[Node], steps: dict[int, int], shape: tuple[DimLike, ...]) -> Node:
    """A tensor of ``shape`` from its parts by residues of positions along the axes of ``steps``, the last the fastest.
    The parts may have positions beyond the last."""
    split: list[DimLike] = []
    at: dict[int, int] = {}  # axis -> axis of its residue
    for axis, size in enumerate(parts[0].shape):
        split.append(size)
        if axis in steps:
            at[axis] = len(split)
            split.append(1)
    rows = [n.reshape(p, shape=tuple(split)) for p in parts]
    for axis, s in reversed(steps.items()):
        rows = [n.concatenate(*rows[i:i + s], axis=at[axis]) for i in range(0, len(rows), s)]
    whole = n.reshape(rows[0], shape=tuple(d * steps.get(axis, 1) for axis, d in enumerate(parts[0].shape)))
    if whole.shape == tuple(shape):
        return whole
    return n.slice(whole, start=(0,) * len(shape), stop=tuple(shape), step=(1,) * len(shape))


def _conv_dw(g: Node, x: Node, w: Node, strides: tuple, padding: tuple, lhs_dilation: tuple, rhs_dilation: tuple,
             groups: int) -> Node:
    """A convolution of the input with the cotangent as kernel: images are summed over, so they are the channels."""
    pads = []
    for k, (low, _) in enumerate(padding):
        reach = (w.shape[2 + k] - 1) * rhs_dilation[k] + dilated(g.shape[2 + k], strides[k])
        pads.append((low, reach - dilated(x.shape[2 + k], lhs_dilation[k]) - low))
    swap = (1, 0, *range(2, x.rank))
    one = all(d == 1 for d in (*w.shape[2:], *strides, *lhs_dilation)) and all(p == (0, 0) for p in pads)
    if one and groups == 1:
        # of each result there is one position: the operands may change places, and then it is in order
        return n.conv(n.transpose(g, perm=swap), n.transpose(x, perm=swap), strides=rhs_dilation, padding=tuple(pads),
                      lhs_dilation=lhs_dilation, rhs_dilation=strides, groups=1)
    if groups == 1:
        images = n.transpose(x, perm=swap)
    else:  # N, G*I -> I, G*N
        split = _split_channels(x, 1, groups)
        images = _join_channels(n.transpose(split, perm=(2, 1, 0, *range(3, split.rank))), 1)
    out = n.conv(images, n.transpose(g, perm=swap), strides=rhs_dilation, padding=tuple(pads),
                 lhs_dilation=lhs_dilation, rhs_dilation=strides, groups=groups)
    return n.transpose(out, perm=swap)


def _conv_vjp(g: Node, y: Node, x: Node, w: Node, **attrs: Any) -> tuple:
    return _conv_dx(g, x, w, **attrs), _conv_dw(g, x, w, **attrs)


def _conv(axes: int = 1, strides: Any = 1, padding: Any = (0, 0), lhs_dilation: int = 1, rhs_dilation: int = 1,
          groups: int = 1) -> dict[str, Any]:
    return {"strides": (strides,) * axes, "padding": (padding,) * axes, "lhs_dilation": (lhs_dilation,) * axes,
            "rhs_dilation": (rhs_dilation,) * axes, "groups": groups}


declare("conv", "Cross-correlation of x[N, C, ...] with w[O, C / groups, ...] over the trailing axes.",
        numpy=in_f32(_conv_value), infer=_conv_type, lower=Contraction(_conv_access), arity=2,
        attrs=("strides", "padding", "lhs_dilation", "rhs_dilation", "groups"), dtypes=NUMBERS,
        ulp=exact_but_floats(), vjp=_conv_vjp, jvp=_bilinear_jvp("conv"),
        samples=calls((*FLOATS, i8, i32), (((2, 3, 7), (4, 3, 3)), _conv()),
                      (((2, 2, 6, 5), (3, 2, 3, 2)), _conv(2, strides=2, padding=(1, 2))),
                      (((1, 2, 5), (2, 2, 2)), _conv(lhs_dilation=2, rhs_dilation=3, padding=(3, 1))),
                      (((2, 4, 6), (6, 2, 3)), _conv(strides=2, padding=(2, 0), groups=2)),
                      (((1, 4, 5, 5), (4, 1, 3, 3)), _conv(2, padding=(1, 1), groups=4)),
                      (((2, 4, 6), (2, 2, 2)), _conv(strides=3, padding=(-1, -1), rhs_dilation=2, groups=2)),
                      (((2, 3), (4, 3)), _conv(0)), (((1, 1, 2), (1, 1, 3)), _conv())))
