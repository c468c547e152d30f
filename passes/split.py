"""Lowering of reductions with too few results to share between threads: pieces, then their combination.

Here: which reductions are split, and the two kernels.  Not here: what a piece does (reductions.py, columns.py).
Read next: contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dims import DimLike, ceildiv, dmin, prod
from flowc.graph import Node
from flowc.kernel import LANES, Expr, Kernel
from flowc.op import Reduction
from flowc.passes.columns import PIECE_ROWS, SPLIT_ROWS, STRIP, Columns, few_columns
from flowc.passes.fuse import FEW_ROWS, Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, describe, inliner, nest
from flowc.passes.reductions import (
    EXACT,
    Accumulators,
    accumulate,
    flat_ok,
    lane_count,
    lane_width,
    reduced_extents,
    reduced_index,
    result,
    single,
)
from flowc.types import Type

SPLIT = 1 << 16        # elements of one piece of a split reduction
BLOCK = 256            # columns that one task combines
TOGETHER = 32          # pieces


def splits(g: Group) -> bool:
    """Too few results to share between threads, and too many elements for one."""
    root = g.root
    if len(g.reductions) != 1 or not isinstance(root.op.lower, Reduction) or g.outputs != [root]:
        return False
    rows, extents = prod(root.shape), reduced_extents(root)
    elements = prod(extents)
    if g.kind == "column":
        blocks = rows if not isinstance(rows, int) else rows // STRIP
        return isinstance(blocks, int) and blocks < FEW_ROWS and not (
            isinstance(elements, int) and elements <= _piece_rows(root))
    return isinstance(rows, int) and rows < 16 and not (isinstance(elements, int) and elements <= SPLIT)


def _piece_rows(n: Node) -> int:
    return SPLIT_ROWS if few_columns(n) else PIECE_ROWS


def lower_split(g: Group, ctx: Context) -> Lowered:
    """Two kernels: partial states of fixed pieces, then their combination."""
    node = g.root
    lower: Reduction = node.op.lower  # type: ignore[assignment]
    dtypes = lower.state(node.inputs[0].dtype)
    extents = reduced_extents(node)
    flat = g.kind == "row" and (flat_ok(g) or single(extents))
    size, total = (SPLIT, prod(extents)) if flat else (_piece_rows(node) if g.kind == "column" else 1, extents[0])
    pieces = ceildiv(total, size)
    temps = {f"{ctx.name}.part{i}": Type(d, (*node.shape, pieces) if g.kind == "row" else
                                              (*node.shape[:-1], pieces, node.shape[-1]))
             for i, d in enumerate(dtypes)}
    names = list(temps)
    k = ctx.builder("a")
    inl = inliner(k, g, ctx)

    def put(at: Idx, state: Sequence[Expr], where: Expr | None = None) -> None:
        for n, s in zip(names, state, strict=True):
            k.write(n, linear_index(at, temps[n].shape), s, where)

    if g.kind == "column":
        with nest(k, node.shape[:-1], "parallel") as o, k.loop(pieces, "parallel", "p") as p:
            Columns(k, inl, [[node]], o, ctx, True, (size * p, dmin(size, total - size * p))).emit(
                lambda n, state, column, where: put((*o, p, column), state, where))
    else:
        with nest(k, node.shape, "parallel") as o, k.loop(pieces, "parallel", "p") as p:
            put((*o, p), _piece(k, inl, node, o, p, size, total, flat, ctx))
    for n, t in temps.items():
        k.buffer(n, t.dtype, t.shape, "out")
    first = k.finish(ctx.dims, describe(g))
    second = _combine_pieces(node, temps, g.kind, pieces, ctx)
    work = node.inputs[0].type.size * cost(g)
    return Lowered([first, second], temps, [work, pieces * 4])


def _piece(k: KernelBuilder, inl: Inliner, node: Node, o: Idx, p: DimLike, size: int, total: DimLike, flat: bool,
           ctx: Context) -> tuple[Expr, ...]:
    extents = reduced_extents(node)
    inner: DimLike = dmin(size, total - size * p) if flat else extents[-1] if len(extents) > 1 else 1
    walked = () if flat else extents[1:-1]
    lanes = LANES if flat else lane_count(inner)
    acc = Accumulators(k, node, lanes)
    with nest(k, walked, "seq", "q") as q:
        def element(j: DimLike, where: Expr | None):
            if flat:
                r, pos = unravel(size * p + j, extents), size * p + j
            else:
                r = (p, *q, j) if len(extents) > 1 else (p,)
                pos = linear_index(r, extents)
            return [acc.lower.enter(k.b, inl.value(node.inputs[0], reduced_index(node, o, r), where), k.b.index(pos))]
        accumulate(k, [acc], inner, lane_width(ctx.machine, [acc], lanes), element,
                   blocked=node.op.name not in EXACT)
    return acc.fold()


def _combine_pieces(node: Node, temps: dict[str, Type], kind: str, pieces: DimLike, ctx: Context) -> Kernel:
    k = ctx.builder("b")
    for n, t in temps.items():
        k.buffer(n, t.dtype, t.shape)
    if kind == "column":
        _combine_columns(k, node, temps, pieces, ctx)
        k.buffer(ctx.name_of(node), node.dtype, node.shape, "out")
        return k.finish(ctx.dims, [f"combine the pieces of {node.op.name}"])
    with nest(k, node.shape, "parallel") as o:
        lanes = lane_count(pieces)
        acc = Accumulators(k, node, lanes, states=True)

        def element(j: DimLike, where: Expr | None):
            return [tuple(k.b.load(n, linear_index((*o, j), t.shape), t.dtype, where) for n, t in temps.items())]
        accumulate(k, [acc], pieces, lane_width(ctx.machine, [acc], lanes), element,
                   blocked=node.op.name not in EXACT)
        k.write(ctx.name_of(node), linear_index(o, node.shape), result(k, node, acc.fold()))
    k.buffer(ctx.name_of(node), node.dtype, node.shape, "out")
    return k.finish(ctx.dims, [f"combine the pieces of {node.op.name}"])


def _combine_columns(k: KernelBuilder, node: Node, temps: dict[str, Type], pieces: DimLike, ctx: Context) -> None:
    """Neighbouring columns as lanes; TOGETHER pieces are collected before they join the rest."""
    columns = node.shape[-1]
    with (nest(k, node.shape[:-1], "parallel") as o, k.loop(ceildiv(columns, BLOCK), "parallel", "b") as b,
          k.loop(dmin(BLOCK, columns - BLOCK * b), "vector", "l", ctx.machine.lanes(node.dtype)) as lane):
        column = BLOCK * b + lane
        total = Accumulators(k, node, 0, states=True)
        with k.loop(ceildiv(pieces, TOGETHER), "seq", "c") as c:
            part = Accumulators(k, node, 0, states=True)
            with k.loop(dmin(TOGETHER, pieces - TOGETHER * c), "seq", "p") as p:
                at = (*o, TOGETHER * c + p, column)
                part.feed(part.names, None, [k.b.load(n, linear_index(at, t.shape), t.dtype)
                                             for n, t in temps.items()], None)
            total.feed(total.names, None, [k.get(n) for n in part.names], None)
        k.write(ctx.name_of(node), linear_index((*o, column), node.shape),
                result(k, node, tuple(k.get(n) for n in total.names)))
