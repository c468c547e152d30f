"""Rows of a few elements: neighbouring results are the lanes.

Here: groups of reductions over windows, pixels, coordinates, where one row fills no vector.  Not here: longer rows
(reductions.py).

Elements are dealt to accumulators and folded as in reductions.py, written out for each lane, so the bits are those of
any other row.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dataclass import replace
from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import Expr
from flowc.op import Reduction
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, emit_outputs, inliner, nest
from flowc.passes.reductions import (
    EXACT,
    _row_value,
    flat_ok,
    lane_count,
    phases,
    pow2,
    reduced_extents,
    reduced_index,
    result,
)
from flowc.passes.schedule import collapse

ELEMENTS = 16    # of a row, at most
NEIGHBOURS = 4   # elements of a row side by side, at most: lanes further apart are gathered, which is slow
CODE = 256       # elements times operations, at most
TILE = 4096      # results of one task


def small_rows(g: Group, ctx: Context) -> bool:
    """Are the group's rows small, and its results enough for lanes?"""
    if ctx.machine.name != "cpu" or g.kind != "row" or not g.outer or not g.reductions:
        return False
    neighbours = g.space[g.outer - 1]
    if isinstance(neighbours, int) and neighbours < NEIGHBOURS:
        return False
    for n in g.reductions:
        extents = reduced_extents(n)
        size = prod(extents)
        if not extents or not isinstance(size, int) or not 0 < size <= ELEMENTS or size * len(g.members) > CODE:
            return False
        if extents[-1] > NEIGHBOURS:  # type: ignore[operator]
            return False
    inside = prod(g.space[g.outer:])
    return isinstance(inside, int) and inside <= ELEMENTS


def lower_small_rows(g: Group, ctx: Context) -> Lowered:
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    outer = g.space[:g.outer]
    last, width = outer[-1], ctx.machine.lanes(g.reductions[0].inputs[0].dtype)
    blocks: DimLike = 1 if isinstance(last, int) and last <= TILE else ceildiv(last, TILE)
    count = last if blocks == 1 else TILE
    if isinstance(last, int):
        width = min(width, pow2(last))
    with nest(k, outer[:-1], "parallel") as lead, k.loop(blocks, "parallel", "b") as block:
        left = count if blocks == 1 else dmin(count, last - count * block)
        with k.loop(left, "vector", "j", width) as j:
            o = (*lead, count * block + j)
            _row(k, inl, g, o, ctx)
    declare_outputs(k, g, ctx)
    kernel = k.finish(ctx.dims, [*describe(g), f"small rows: {width} at a time"])
    return Lowered([replace(kernel, body=collapse(kernel.body))], {},
                   [max((prod(n.inputs[0].shape) for n in g.reductions), key=str) * cost(g)])


def _row(k: KernelBuilder, inl: Inliner, g: Group, o: Idx, ctx: Context) -> None:
    flat = flat_ok(g)
    for batch in phases(g):
        for n in batch:
            inl.bound[n] = _row_value(n, tuple(map(k.tidy, o)), k.let(result(k, n, _reduced(k, inl, n, o, flat))))
    emit_outputs(k, inl, [n for n in g.outputs if n.rank == g.outer], o, ctx)
    full = [n for n in g.outputs if n.rank > g.outer]
    if full:
        with nest(k, g.space[g.outer:], "unroll", "q") as q:
            emit_outputs(k, inl, full, (*o, *q), ctx)


def _reduced(k: KernelBuilder, inl: Inliner, n: Node, o: Idx, flat: bool) -> tuple[Expr, ...]:
    """The state of one row."""
    lower: Reduction = n.op.lower  # type: ignore[assignment]
    dtype, b = n.inputs[0].dtype, k.b
    extents = reduced_extents(n)
    size = prod(extents)
    across = size if flat else extents[-1]
    assert isinstance(size, int) and isinstance(across, int)
    lanes = lane_count(across)
    unit = tuple(b.const(u, d) for u, d in zip(lower.unit(dtype), lower.state(dtype), strict=True))
    exact = n.op.name in EXACT  # then the neutral element changes nothing at all
    states: list[tuple[Expr, ...] | None] = [None if exact else unit] * lanes

    def join(s: tuple[Expr, ...] | None, t: tuple[Expr, ...] | None) -> tuple[Expr, ...] | None:
        if s is None or t is None:
            return t if s is None else s
        both: Sequence[Expr] = lower.combine(b, s, t)
        return tuple(map(k.let, both)) if len(both) > 1 else tuple(both)

    for at in range(size):
        x = inl.value(n.inputs[0], reduced_index(n, o, unravel(at, extents)))
        lane = at % across % lanes
        states[lane] = join(states[lane], lower.enter(b, x, b.index(at)))
    while lanes > 1:
        lanes //= 2
        for lane in range(lanes):
            states[lane] = join(states[lane], states[lane + lanes])
    assert states[0] is not None
    return states[0]
