"""Scatters that write one place of every row, as a comparison with every place.

Here: recognising a scatter_add whose positions differ in all axes but one, which data gives: the gradient of an
element picked from each row.  Not here: other scatters (ops/indexing.py), counts (tally.py).  Read next: legalize.py.

The scatter fills its result with one value and then goes through the positions one by one; the comparison gives every
element from its own place alone, so threads share it and it is fused with what reads it.  No two positions are the
same, so nothing is added twice.
"""

from __future__ import annotations

import numpy as np

from flowc.dims import DimLike, prod
from flowc.graph import CONSTANT, Node, make
from flowc.proofs import known_eq
from flowc.rewrite import splat_value
from flowc.types import i64

DEPTH = 10   # operations between a position and the indices it is made from, at most

Terms = tuple[dict[int, DimLike], list[tuple[DimLike, Node]]]  # strides of axes, and of values that depend on data


def one_each(n: Node) -> Node:
    """``n``, or a scatter_add into equal values, at most one place per row, as a select."""
    if n.op.name != "scatter_add" or n.inputs[0].rank != 1 or n.dtype.kind == "c":
        return n
    filled, at, values = n.inputs
    if filled.op.name != "broadcast" or filled.inputs[0].rank or at.dtype is not i64:
        return n
    strides, data = _terms(at)
    count = _clamped(data[0][1]) if len(data) == 1 else None
    if count is None:
        return n
    axes = [a for a, d in enumerate(at.shape) if not (isinstance(d, int) and d == 1)]
    sizes = tuple(at.shape[a] for a in axes)
    for q in range(len(axes) + 1):
        shape = (*sizes[:q], count, *sizes[q:])
        steps = [prod(shape[k + 1:]) for k in range(len(shape))]
        wanted = {a: steps[k if k < q else k + 1] for k, a in enumerate(axes)}
        if data[0][0] == steps[q] and wanted == {a: strides.get(a, 0) for a in axes} and known_eq(
                prod(shape), filled.shape[0]):
            return _selected(n, data[0][1], values, shape, q)
    return n


def _selected(n: Node, at: Node, values: Node, shape: tuple[DimLike, ...], q: int) -> Node:
    """At place ``at`` along axis ``q`` the value is added, elsewhere it is not."""
    loc, start = n.loc, n.inputs[0].inputs[0]
    others = tuple(k for k in range(len(shape)) if k != q)
    rows = tuple(shape[k] for k in others)

    def spread(x: Node) -> Node:
        return make("broadcast", (make("reshape", (x,), {"shape": rows}, loc),), {"shape": shape, "axes": others}, loc)
    place = make("iota", (), {"shape": shape, "axis": q, "dtype": i64}, loc)
    filled = make("broadcast", (start,), {"shape": values.shape, "axes": ()}, loc) if values.rank else start
    added = make("add", (filled, values), {}, loc)
    rest = make("broadcast", (start,), {"shape": shape, "axes": ()}, loc)
    out = make("select", (make("eq", (place, spread(at)), {}, loc), spread(added), rest), {}, loc)
    return make("reshape", (out,), {"shape": n.shape}, loc)


def _terms(n: Node, depth: int = DEPTH) -> Terms:
    """``n`` as a sum of multiples of its indices and of other nodes of its shape."""
    if depth and n.op.name in ("add", "broadcast", "reshape", "mul"):
        inputs = [_terms(x, depth - 1) for x in n.inputs]
    else:
        inputs = []
    alone = all(not data for _, data in inputs)
    if n.op.name == "iota":
        return {n.attrs["axis"]: 1}, []
    if n.op is CONSTANT:
        return _counted(n)
    if not inputs:
        return {}, [(1, n)]
    if n.op.name == "add":
        (a, one), (b, two) = inputs
        return {k: a.get(k, 0) + b.get(k, 0) for k in {*a, *b}}, [*one, *two]
    if n.op.name == "mul":
        for side in (0, 1):
            by = _whole(n.inputs[1 - side])
            if by is not None:
                strides, data = inputs[side]
                return {k: v * by for k, v in strides.items()}, [(c * by, x) for c, x in data]
    if n.op.name == "broadcast" and n.inputs[0].rank and alone:
        return {n.attrs["axes"][k]: v for k, v in inputs[0][0].items()}, []
    if n.op.name == "reshape" and alone:
        before, after = ([k for k, d in enumerate(s) if not (isinstance(d, int) and d == 1)]
                         for s in (n.inputs[0].shape, n.shape))
        if [n.inputs[0].shape[k] for k in before] == [n.shape[k] for k in after]:
            new = dict(zip(before, after, strict=True))
            return {new[k]: v for k, v in inputs[0][0].items() if k in new}, []
    return {}, [(1, n)]


def _counted(n: Node) -> Terms:
    """The same of a constant: short ranges are folded."""
    a = n.attrs["value"].array
    steps = {k: int(np.take(a, 1, axis=k).flat[0]) for k, d in enumerate(a.shape) if d > 1 and a.size}
    counts = sum((np.arange(a.shape[k]).reshape([-1 if j == k else 1 for j in range(a.ndim)]) * c
                  for k, c in steps.items()), np.int64(0))
    if a.ndim and a.dtype.kind in "iu" and np.array_equal(np.broadcast_to(counts, a.shape), a):
        return dict(steps), []
    return {}, [(1, n)]


def _whole(n: Node) -> DimLike | None:
    """The size that every element of ``n`` is."""
    value = splat_value(n)
    if value is not None:
        return int(value)
    scalar = n.inputs[0] if n.op.name == "broadcast" else n
    return scalar.attrs["value"] if scalar.op.name == "size" and not scalar.rank else None


def _clamped(n: Node) -> DimLike | None:
    """c where ``n`` is clamped to 0 .. c - 1."""
    if n.op.name != "max":
        return None
    for x, low in (n.inputs, n.inputs[::-1]):
        if x.op.name == "min" and _whole(low) == 0:
            return next((last + 1 for last in map(_whole, x.inputs) if last is not None), None)
    return None
