"""Edges: where along an axis the conditions of a map change, and maps that take an axis for a ring.

Here: the positions at which padding, joined parts, replaced windows and comparisons with an index begin and end;
periodic neighbours written as joined slices or as positions modulo a size.
Not here: which maps form a stencil (chains.py), its loops (stencil_loops.py).  Read next: chains.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowc.dataclass import dataclass
from flowc.dims import DimLike
from flowc.graph import CONSTANT, Node
from flowc.op import Pointwise
from flowc.passes.places import Place, Places, part_start
from flowc.proofs import known_eq

NEAR = 64   # an edge this close to an end of the axis is cut off
COMPARES = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
DEPTH = 16  # operations between an index and its comparison


@dataclass(frozen=True)
class Edges:
    """Between positions ``low`` and size - ``high`` no condition near an end changes.  ``inside``: some condition does
    change somewhere along the axis."""

    low: int = 0
    high: int = 0
    inside: bool = False


def edges_of(places: Mapping[Node, Iterable[Place]], shape: Sequence[DimLike], skip: Collection[Node]
             ) -> tuple[Edges, ...]:
    """The edges of a map over ``shape`` along each axis."""
    rank = len(shape)
    low, high, inside = [0] * rank, [0] * rank, [False] * rank
    table = Places()
    for n in places:
        if n in skip:
            continue
        for axis, at in _changes(n, places[n], table):
            behind = shape[axis] - at
            if isinstance(at, int) and at <= 0 or isinstance(behind, int) and behind <= 0:
                continue
            inside[axis] = True
            before, after = (d if isinstance(d, int) else NEAR + 1 for d in (at, behind))
            if before <= min(after, NEAR):
                low[axis] = max(low[axis], before)
            elif after <= NEAR:
                high[axis] = max(high[axis], after)
    return tuple(map(Edges, low, high, inside))


def _changes(n: Node, places: Iterable[Place], table: Places) -> Iterator[tuple[int, DimLike]]:
    """(axis of the space, position) where a condition of ``n`` changes."""
    name = n.op.name
    if name in COMPARES:
        for p in places:
            yield from _compared(n, p, table)
        return
    for axis, start, size in _windows(n):
        for p in places:
            along, off = p.index[axis]
            if isinstance(along, int) and along >= 0 and p.origin is None:
                yield along, start - off
                yield along, start + size - off


def _windows(n: Node) -> Iterator[tuple[int, DimLike, DimLike]]:
    """(axis, start, size) of the windows that a node chooses between."""
    if n.op.name == "pad":
        yield from zip(range(n.rank), n.attrs["low"], n.inputs[0].shape, strict=True)
    elif n.op.name == "update_slice" and all(s == 1 for s in n.attrs["step"]):
        yield from zip(range(n.rank), n.attrs["start"], n.inputs[1].shape, strict=True)
    elif n.op.name == "concatenate":
        axis = n.attrs["axis"]
        yield from ((axis, part_start(n, k), x.shape[axis]) for k, x in enumerate(n.inputs))


def _compared(n: Node, p: Place, table: Places) -> Iterator[tuple[int, DimLike]]:
    a, b = (_size_at(x, table.pass_on(n, k, p), table, DEPTH) for k, x in enumerate(n.inputs))
    if a is None or b is None or (a[0] is None) == (b[0] is None):
        return
    axis = b[0] if a[0] is None else a[0]
    at = a[1] - b[1] if a[0] is None else b[1] - a[1]
    if axis is not None:
        yield axis, at
        yield axis, at + 1


def _size_at(x: Node, p: Place, table: Places, depth: int) -> tuple[int | None, DimLike] | None:
    """The value as (axis, offset), the index along an axis of the space plus an offset; (None, value) if it is a
    size; None if it is neither."""
    name, lower = x.op.name, x.op.lower
    if not depth or not x.dtype.integer:
        return None
    if name == "iota":
        axis, off = p.index[x.attrs["axis"]]
        return (axis, off) if isinstance(axis, int) and axis >= 0 and p.origin is None else None
    if name == "size":
        return None, x.attrs["value"]
    if x.op is CONSTANT:
        return (None, int(x.attrs["value"].array)) if x.rank == 0 else None
    if not isinstance(lower, Pointwise) or len(x.inputs) not in (1, 2):
        return None
    parts = [_size_at(y, table.pass_on(x, k, p), table, depth - 1) for k, y in enumerate(x.inputs)]
    if len(parts) == 1:
        return parts[0] if lower.movement or name == "cast" else None
    a, b = parts
    if name not in ("add", "sub") or a is None or b is None or b[0] is not None and (
            a[0] is not None or name == "sub"):
        return None
    return (b[0] if a[0] is None else a[0]), (a[1] + b[1] if name == "add" else a[1] - b[1])


# ---- rings ----------------------------------------------------------------------------------------------------------

class Wrap(NamedTuple):
    """A node whose element i is ``source[i + by]``, along ``axis`` modulo the source's size."""

    source: Node
    axis: int
    by: tuple[int, ...]


def wrap_of(n: Node) -> Wrap | None:
    """How ``n`` takes an axis of another node for a ring; None if it does not."""
    return _joined(n) if n.op.name == "concatenate" else _gathered(n) if n.op.name == "gather" else None


def _joined(n: Node) -> Wrap | None:
    """Slices of one tensor, each beginning where the one before ends."""
    axis = n.attrs["axis"]
    parts = [(x.inputs[0], x.attrs["start"]) if x.op.name == "slice" and all(s == 1 for s in x.attrs["step"]) else
             (x, (0,) * x.rank) for x in n.inputs]
    source, start = parts[0]
    if len(parts) < 2 or any(x is not source or at[:axis] != start[:axis] or at[axis + 1:] != start[axis + 1:]
                             for x, at in parts):
        return None
    size = source.shape[axis]
    end = start[axis]
    for (_, at), x in zip(parts, n.inputs, strict=True):
        if _modulo(at[axis] - end, size) != 0:
            return None
        end = at[axis] + x.shape[axis]
    return _wrap(source, axis, start, size)


def _gathered(n: Node) -> Wrap | None:
    """The positions (i + c) mod size; for a power of two, (i + c) and size - 1."""
    source, at, axis = n.inputs[0], n.inputs[1], n.attrs["axis"]
    size = source.shape[axis]
    if at.op is CONSTANT and at.rank == 1 and isinstance(size, int) and size and at.type.size:
        known = at.attrs["value"].array
        if np.array_equal(known, (known[0] + np.arange(len(known))) % size):
            return _wrap(source, axis, [int(known[0]) if a == axis else 0 for a in range(source.rank)], size)
    if at.rank != 1 or at.op.name not in ("mod", "and") or not at.dtype.integer:
        return None
    table, place = Places(), Place(((0, 0),))
    i, by = (_size_at(x, table.pass_on(at, k, place), table, DEPTH) for k, x in enumerate(at.inputs))
    if i is None or by is None or i[0] != 0 or by[0] is not None or not known_eq(by[1] + (at.op.name == "and"), size):
        return None
    if at.op.name == "and" and (not isinstance(size, int) or size & (size - 1)):
        return None
    start: list[DimLike] = [0] * source.rank
    start[axis] = i[1]
    return _wrap(source, axis, start, size)


def _wrap(source: Node, axis: int, start: Sequence[DimLike], size: DimLike) -> Wrap | None:
    by = [_modulo(s, size) if a == axis else s for a, s in enumerate(start)]
    return Wrap(source, axis, tuple(by)) if all(isinstance(b, int) for b in by) else None  # type: ignore[arg-type]


def _modulo(d: DimLike, size: DimLike) -> int | None:
    """The number nearest to 0 that differs from ``d`` by a multiple of ``size``, if it is a number."""
    if isinstance(d, int) and isinstance(size, int):
        d = d % size if size else d
    near = [x for x in (d, d - size, d + size) if isinstance(x, int)]
    return min(near, key=abs, default=None)
