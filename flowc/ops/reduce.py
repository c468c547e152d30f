"""Reductions: sums, products, extremes, all, any, positions of extremes.

Here: one record per reduction, through ``reduction``.  Not here: sums of products (contract.py), running sums
(scan.py).  Read next: contract.py.

The reduced axes disappear.  Sums and products of 16-bit floats are kept in f32 and rounded once.  A sum of nothing is
0, a product of nothing 1; an extreme of nothing is refused where the size is known to be 0, as NumPy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flowc.dims import prod
from flowc.graph import Node
from flowc.kernel import Builder
from flowc.op import Op, Reduction
from flowc.ops.movement import inverse
from flowc.ops.rules import (
    EXACT,
    declare,
    exact_but_floats,
    in_f32,
    kept_axes,
    linear_jvp,
    n,
    need_axes,
    spread,
    zeros,
)
from flowc.ops.samples import Samples, calls
from flowc.ops.scan import other_products
from flowc.proofs import known_eq
from flowc.types import ALL, BOOLS, NUMBERS, DType, Type, f32, i64

LAST = 2 ** 63 - 1  # a position after all positions
REAL = tuple(d for d in ALL if d.kind != "c")


def _in_order(fn: Callable[..., Any]) -> Callable[[np.ndarray, tuple[int, ...]], Any]:
    """A NumPy reduction over ``axes`` made the last, contiguous axis: there NumPy sums in pairs."""
    def value(x: np.ndarray, axes: tuple[int, ...]) -> Any:
        kept = kept_axes(x.ndim, axes)
        shape = (*(x.shape[a] for a in kept), math.prod(x.shape[a] for a in axes))
        rows = np.ascontiguousarray(x.transpose((*kept, *axes)).reshape(shape))
        return fn(rows, axis=-1, dtype=x.dtype)
    return value


def _wide(d: DType) -> tuple[DType, ...]:
    return (f32 if d.floating and d.bits == 16 else d,)


def _plain(d: DType) -> tuple[DType, ...]:
    return (d,)


def _samples(dtypes: tuple[DType, ...]) -> Samples:
    return calls(dtypes, (((5,),), {"axes": (0,)}), (((3, 4),), {"axes": (1,)}), (((2, 3, 4),), {"axes": (0, 2)}),
                 (((2, 3),), {"axes": (0, 1)}), (((),), {"axes": ()}), (((0, 3),), {"axes": (1,)}), domain=(0.5, 1.5))


def reduction(name: str, doc: str, *, numpy: Callable[..., Any], dtypes: tuple[DType, ...],
              unit: Callable[[DType], Any], combine: str, state: Callable[[DType], tuple[DType, ...]] = _plain,
              empty: bool = True, vjp: Callable[..., tuple] | None = None, jvp: Callable[..., Any] | None = None,
              ulp: dict[str, float] = EXACT, samples: Samples | None = None) -> Op:
    """A reduction whose state is one scalar, combined by one instruction.  ``empty``: it has a value of nothing."""
    def infer(x: Type, axes: tuple[int, ...]) -> Type:
        need_axes(axes, x.rank)
        if not empty and known_eq(prod(x.shape[a] for a in axes), 0):
            raise ValueError(f"{x} has no elements along axes {axes}, and {name} of nothing has no value")
        return x.with_shape(x.shape[a] for a in kept_axes(x.rank, axes))

    lower = Reduction(state=state, unit=lambda d: (unit(d),),
                      enter=lambda b, x, pos: (b.cast(x, state(x.dtype)[0]),),
                      combine=lambda b, s, t: (b.emit(combine, s[0], t[0]),), leave=lambda b, s: s[0])
    return declare(name, doc, numpy=in_f32(numpy), infer=infer, lower=lower, attrs=("axes",), dtypes=dtypes, vjp=vjp,
                   jvp=jvp, ulp=ulp, samples=samples or _samples(dtypes))


# ---- sums and products ----------------------------------------------------------------------------------------------

def _one_line(x: Node, axes: tuple[int, ...]) -> tuple[Node, tuple, tuple]:
    """``x`` with ``axes`` moved to the end and joined into one; the shape and permutation that lead back."""
    perm = (*kept_axes(x.rank, axes), *axes)
    moved = n.transpose(x, perm=perm)
    kept = moved.shape[:x.rank - len(axes)]
    return n.reshape(moved, shape=(*kept, prod(x.shape[a] for a in axes))), moved.shape, perm


def _product_slopes(x: Node, axes: tuple[int, ...]) -> Node:
    line, shape, perm = _one_line(x, axes)
    slopes = n.reshape(other_products(line, line.rank - 1), shape=shape)
    return n.transpose(slopes, perm=inverse(perm))


def _product_jvp(ts: tuple, y: Node, x: Node, axes: tuple[int, ...]) -> Node | None:
    (t,) = ts
    return None if t is None else n.reduce_sum(n.mul(t, _product_slopes(x, axes)), axes=axes)


reduction("reduce_sum", "Sum along axes; integers wrap.", numpy=_in_order(np.add.reduce), dtypes=NUMBERS,
          state=_wide, unit=lambda d: 0, combine="add", ulp=exact_but_floats(),
          vjp=lambda g, y, x, axes: (spread(g, x.shape, axes),), jvp=linear_jvp("reduce_sum"))
reduction("reduce_prod", "Product along axes; integers wrap.", numpy=_in_order(np.multiply.reduce), dtypes=NUMBERS,
          state=_wide, unit=lambda d: 1, combine="mul", ulp=exact_but_floats(),
          vjp=lambda g, y, x, axes: (n.mul(spread(g, x.shape, axes), _product_slopes(x, axes)),), jvp=_product_jvp)

# ---- extremes -------------------------------------------------------------------------------------------------------


def least(d: DType) -> Any:
    """The value of ``d`` that no other is below."""
    return False if d.kind == "b" else -math.inf if d.floating else int(np.iinfo(d.numpy).min)


def greatest(d: DType) -> Any:
    return True if d.kind == "b" else math.inf if d.floating else int(np.iinfo(d.numpy).max)


def _shares(y: Node, x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
    """Which elements are the extreme, and 1 / how many they are."""
    hit = n.eq(x, spread(y, x.shape, axes))
    return hit, n.div(1.0, n.reduce_sum(n.cast(hit, dtype=x.dtype), axes=axes))


def _extreme_vjp(g: Node, y: Node, x: Node, axes: tuple[int, ...]) -> tuple:
    hit, share = _shares(y, x, axes)
    return (n.select(hit, spread(n.mul(g, share), x.shape, axes), zeros(x.type)),)


def _extreme_jvp(ts: tuple, y: Node, x: Node, axes: tuple[int, ...]) -> Node | None:
    (t,) = ts
    if t is None:
        return None
    hit, share = _shares(y, x, axes)
    return n.mul(n.reduce_sum(n.select(hit, t, zeros(x.type)), axes=axes), share)


for _name, _doc, _fn, _unit, _combine in (
        ("reduce_max", "Largest element along axes; NaN if there is one.", np.maximum, least, "max"),
        ("reduce_min", "Smallest element along axes; NaN if there is one.", np.minimum, greatest, "min")):
    reduction(_name, _doc, numpy=_in_order(_fn.reduce), dtypes=REAL, state=_wide, unit=_unit, combine=_combine,
              empty=False, vjp=_extreme_vjp, jvp=_extreme_jvp, samples=_samples(REAL))

reduction("reduce_and", "Are all elements along axes true.", numpy=_in_order(np.logical_and.reduce), dtypes=BOOLS,
          unit=lambda d: True, combine="and")
reduction("reduce_or", "Is any element along axes true.", numpy=_in_order(np.logical_or.reduce), dtypes=BOOLS,
          unit=lambda d: False, combine="or")

# ---- positions ------------------------------------------------------------------------------------------------------


def _position(name: str, doc: str, fn: Callable[..., Any], unit: Callable[[DType], Any], beats: str) -> Op:
    """State: (value, position).  The first of the extremes wins, and the first NaN wins over everything; the rule
    asks the positions, so states may be combined in any order."""
    def infer(x: Type, axes: tuple[int, ...]) -> Type:
        need_axes(axes, x.rank)
        if len(axes) != 1:
            raise ValueError(f"takes exactly one axis, got axes {axes}")
        if known_eq(x.shape[axes[0]], 0):
            raise ValueError(f"{x} has no elements along axis {axes[0]}, and {name} of nothing has no value")
        return Type(i64, tuple(x.shape[a] for a in kept_axes(x.rank, axes)))

    def combine(b: Builder, s: tuple, t: tuple) -> tuple:
        (x, p), (y, q) = s, t
        wins, ties = b.emit(beats, x, y), b.eq(x, y)
        if x.dtype.floating:
            x_nan, y_nan = b.ne(x, x), b.ne(y, y)
            wins = b.or_(wins, b.and_(x_nan, b.not_(y_nan)))
            ties = b.or_(ties, b.and_(x_nan, y_nan))
        keep = b.or_(wins, b.and_(ties, b.le(p, q)))
        return b.select(keep, x, y), b.select(keep, p, q)

    def later(b: Builder, s: tuple, t: tuple) -> tuple:
        (x, p), (y, q) = s, t
        if x.dtype.floating:  # a NaN wins by not losing, unless there was one before
            wins = b.and_(b.not_(b.emit({"lt": "ge", "gt": "le"}[beats], y, x)), b.eq(x, x))
        else:
            wins = b.emit(beats, y, x)
        return b.select(wins, y, x), b.select(wins, q, p)

    # whoever beats nobody was never taken: then all elements are the least there is, and the first one wins
    lower = Reduction(state=lambda d: (*_wide(d), i64), unit=lambda d: (unit(d), LAST),
                      enter=lambda b, x, pos: (b.cast(x, _wide(x.dtype)[0]), pos), combine=combine,
                      leave=lambda b, s: b.select(b.eq(s[1], LAST), b.const(0, i64), s[1]), later=later, position=1)
    return declare(name, doc, numpy=in_f32(lambda x, axes: fn(x, axes[0])), infer=infer, lower=lower, attrs=("axes",),
                   dtypes=REAL, ulp=EXACT,
                   samples=calls(REAL, (((7,),), {"axes": (0,)}), (((3, 4),), {"axes": (1,)}),
                                 (((2, 3, 4),), {"axes": (1,)}), (((0, 3),), {"axes": (1,)})))


_position("argmax", "Position of the first largest element along one axis; the first NaN counts as largest.",
          np.argmax, least, "gt")
_position("argmin", "Position of the first smallest element along one axis; the first NaN counts as smallest.",
          np.argmin, greatest, "lt")
