"""Sliding windows and their adjoint.

Here: windows, windows_sum and the arithmetic of window positions.  Not here: convolution, which reads its windows
itself (contract.py).  Read next: reduce.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import numpy as np

from flowc.dims import DimLike, ceildiv, floordiv
from flowc.graph import Node
from flowc.kernel import Builder, Expr
from flowc.op import Pointwise
from flowc.ops.movement import all_of, movement
from flowc.ops.rules import (
    declare,
    in_f32,
    linear_jvp,
    n,
    need_rank,
    need_sizes,
    need_static,
    nonnegative,
    same_size,
)
from flowc.ops.samples import calls
from flowc.proofs import known_le, known_lt
from flowc.types import FLOATS, NUMBERS, Type, f32, i8

MAX_TAPS = 1 << 12  # of an unrolled sum


def window_count(size: DimLike, window: DimLike, stride: int, dilation: int) -> DimLike:
    """How many windows fit; 0 where not even one does."""
    return nonnegative(floordiv(size - (window - 1) * dilation - 1, stride) + 1)


def _check(window: tuple, strides: tuple, dilation: tuple) -> int:
    axes = len(window) if isinstance(window, tuple) else 0
    need_static(window, axes or 1, "window", 1)
    need_static(strides, axes, "strides", 1)
    need_static(dilation, axes, "dilation", 1)
    return axes


def _windows_type(x: Type, window: tuple, strides: tuple, dilation: tuple) -> Type:
    axes = _check(window, strides, dilation)
    if axes > x.rank:
        raise ValueError(f"{axes} window sizes for the {x.rank} axes of {x}")
    lead = x.rank - axes
    outs = (window_count(*row) for row in zip(x.shape[lead:], window, strides, dilation, strict=True))
    return x.with_shape((*x.shape[:lead], *outs, *window))


def _windows_value(x: np.ndarray, window: tuple, strides: tuple, dilation: tuple) -> np.ndarray:
    lead = x.ndim - len(window)
    out = x
    for k, (w, s, d) in enumerate(zip(window, strides, dilation, strict=True)):
        count = max(0, (x.shape[lead + k] - (w - 1) * d - 1) // s + 1)
        at = np.arange(count)[:, None] * s + np.arange(w) * d
        out = np.moveaxis(np.take(out, at, axis=lead + k), lead + k + 1, -1)
    return out


def _windows_source(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple, window: tuple, strides: tuple,
                    dilation: tuple) -> Expr:
    k = len(window)
    lead, outs, taps = idx[:len(idx) - 2 * k], idx[len(idx) - 2 * k:len(idx) - k], idx[len(idx) - k:]
    return load(0, (*lead, *(o * s + w * d for o, s, w, d in zip(outs, strides, taps, dilation, strict=True))))


def _windows_vjp(g: Node, y: Node, x: Node, **attrs: Any) -> tuple:
    return (n.windows_sum(g, **attrs, shape=x.shape[x.rank - len(attrs["window"]):]),)


movement("windows", "Every window over the last axes: x[.., o * stride + w * dilation] at [.., o, w].",
         attrs=("window", "strides", "dilation"), numpy=_windows_value, infer=_windows_type, source=_windows_source,
         vjp=_windows_vjp,
         samples=calls((f32, i8), (((7,),), {"window": (3,), "strides": (1,), "dilation": (1,)}),
                       (((2, 6, 7),), {"window": (2, 3), "strides": (2, 1), "dilation": (1, 2)}),
                       (((2, 4, 4),), {"window": (2, 2), "strides": (2, 2), "dilation": (1, 1)}),
                       (((2,),), {"window": (3,), "strides": (1,), "dilation": (1,)})))


# ---- the adjoint ----------------------------------------------------------------------------------------------------

def _sum_type(g: Type, window: tuple, strides: tuple, dilation: tuple, shape: tuple) -> Type:
    axes = _check(window, strides, dilation)
    need_sizes(shape, axes, "shape")
    lead = g.rank - 2 * axes
    if lead < 0:
        need_rank(g, 2 * axes, "the operand")
    for k, row in enumerate(zip(shape, window, strides, dilation, strict=True)):
        same_size(g.shape[lead + k], window_count(*row), f"axis {lead + k} of {g} must count the windows in {row[0]}")
        same_size(g.shape[lead + axes + k], window[k], f"axis {lead + axes + k} of {g} must be the window")
    taps = prod(w if d > 1 else -(-w // s) for w, s, d in zip(window, strides, dilation, strict=True))
    if taps > MAX_TAPS:
        raise ValueError(f"{taps} windows overlap at one element; at most {MAX_TAPS} can be summed")
    return g.with_shape((*g.shape[:lead], *shape))


def _sum_value(g: np.ndarray, window: tuple, strides: tuple, dilation: tuple, shape: tuple) -> np.ndarray:
    k = len(window)
    lead = g.ndim - 2 * k
    out = np.zeros((*g.shape[:lead], *shape), g.dtype)
    for tap in product(*map(range, window)):
        at: tuple = (..., *(slice(w * d, w * d + c * s, s) for w, d, c, s in
                            zip(tap, dilation, g.shape[lead:lead + k], strides, strict=True)))
        here: tuple = (..., *tap)
        if out[at].size:
            out[at] += g[here]
    return out


def _taps(p: DimLike, window: int, stride: int, dilation: int) -> list[tuple[DimLike, DimLike, bool]]:
    """The (window number, tap, may the tap be out of reach) that can cover position ``p`` of one axis.  Without
    dilation only every stride-th tap can, which leaves no divisibility to ask for."""
    if dilation == 1:
        return [(p // stride - j, p % stride + j * stride, (j + 1) * stride > window)
                for j in range(ceildiv(window, stride))]  # type: ignore[arg-type]
    return [((p - w * dilation) // stride, w, False) for w in range(window)]


def _sum_expr(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple[Type, ...], attrs: dict) -> Expr:
    window, strides, dilation = attrs["window"], attrs["strides"], attrs["dilation"]
    g, out = types
    k = len(window)
    lead, wide = idx[:len(idx) - k], f32 if out.dtype.floating and out.dtype.bits == 16 else out.dtype
    counts = g.shape[g.rank - 2 * k:g.rank - k]
    rows = [_taps(*row) for row in zip(idx[len(idx) - k:], window, strides, dilation, strict=True)]
    total, ranges = None, getattr(b, "ranges", None)  # of the loops around, where there are any
    for choice in product(*rows):
        inside = []
        for p, (o, w, unsure), c, size, s, d in zip(idx[len(idx) - k:], choice, counts, window, strides, dilation,
                                                    strict=True):
            inside += [] if known_le(0, o, ranges) else [b.ge(b.index(o), 0)]
            inside += [] if known_lt(o, c, ranges) else [b.lt(b.index(o), b.index(c))]
            if d > 1 and s > 1:
                inside.append(b.eq(b.index((p - w * d) % s), 0))
            if unsure and not known_lt(w, size, ranges):
                inside.append(b.lt(b.index(w), size))
        at = (*lead, *(o for o, _, _ in choice), *(w for _, w, _ in choice))
        part = b.cast(load(0, at, all_of(b, inside)), wide)
        total = part if total is None else b.add(total, part)
    assert total is not None
    return b.cast(total, out.dtype)


def _sum_vjp(g: Node, y: Node, x: Node, window: tuple, strides: tuple, dilation: tuple, shape: tuple) -> tuple:
    return (n.windows(g, window=window, strides=strides, dilation=dilation),)


declare("windows_sum", "Sum of overlapping windows into a tensor with trailing sizes shape; the adjoint of windows.",
        numpy=in_f32(_sum_value), infer=_sum_type, lower=Pointwise(_sum_expr),
        attrs=("window", "strides", "dilation", "shape"), dtypes=NUMBERS,
        ulp={d.name: 0 for d in NUMBERS if d not in FLOATS}, vjp=_sum_vjp, jvp=linear_jvp("windows_sum"),
        samples=calls((*FLOATS, i8), (((5, 3),), {"window": (3,), "strides": (1,), "dilation": (1,), "shape": (7,)}),
                      (((2, 3, 3, 2, 3),), {"window": (2, 3), "strides": (2, 1), "dilation": (1, 2), "shape": (6, 7)}),
                      (((2, 2, 2, 2),), {"window": (2, 2), "strides": (2, 2), "dilation": (1, 1), "shape": (4, 5)}),
                      (((3, 2),), {"window": (2,), "strides": (3,), "dilation": (1,), "shape": (9,)}),
                      (((2, 3),), {"window": (3,), "strides": (2,), "dilation": (3,), "shape": (9,)})))
