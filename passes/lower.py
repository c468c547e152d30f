"""Lowering: one fused group becomes one kernel, or a few.

Here: the choice by kind of group, maps, ops with loops of their own.  Not here: which nodes form a group (fuse.py),
reductions (reductions.py), contractions (contract.py, convolve.py), cutting maps for a machine (schedule.py).
Read next: reductions.py.
"""

from __future__ import annotations

from flowc.dims import DimLike, prod
from flowc.kernel import Expr
from flowc.passes.choices import map_problem
from flowc.passes.columns import lower_columns
from flowc.passes.convolve import lower_convolution
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, KernelBuilder, linear_index
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, emit_outputs, inliner, nest
from flowc.passes.reductions import lower_rows
from flowc.passes.rowblocks import lower_row_block
from flowc.passes.schedule import choose_map
from flowc.passes.small_rows import lower_small_rows, small_rows
from flowc.passes.split import lower_split, splits
from flowc.passes.stencil_loops import lower_stencil
from flowc.passes.tally import lower_tally, tallies
from flowc.passes.turn import turned_map
from flowc.types import DType, Type


def lower_group(g: Group, ctx: Context) -> Lowered:
    """Kernels that compute ``g.outputs`` from the memory the group reads."""
    if all(isinstance(n.type.size, int) and n.type.size == 0 for n in g.outputs):
        k = ctx.builder()
        for n in g.outputs:
            k.buffer(ctx.name_of(n), n.dtype, n.shape, "out")
        return Lowered([k.finish(ctx.dims, ["nothing to compute"])], {}, [0])
    if g.kind == "contraction":
        if ctx.machine.name == "cpu" and g.contraction is not None and g.contraction.op.name == "conv":
            return lower_convolution(g, ctx)
        return ctx.contraction(g, ctx)
    if g.kind == "row block":
        return lower_row_block(g, ctx)
    if g.kind == "general":
        return lower_tally(g, ctx) if tallies(g.root, ctx.machine) else lower_general(g, ctx)
    if g.kind == "map":
        return lower_map(g, ctx)
    if g.kind == "stencil":
        return lower_stencil(g, ctx)
    if splits(g):
        return lower_split(g, ctx)
    if small_rows(g, ctx):
        return lower_small_rows(g, ctx)
    return lower_rows(g, ctx) if g.kind == "row" else lower_columns(g, ctx)


def lower_map(g: Group, ctx: Context) -> Lowered:
    k = ctx.builder()
    inl = inliner(k, g, ctx)
    with nest(k, g.root.shape, "parallel") as idx:
        emit_outputs(k, inl, g.outputs, idx, ctx)
    declare_outputs(k, g, ctx)
    kernel = k.finish(ctx.dims, describe(g))
    if ctx.machine.name == "cpu":
        schedule = ctx.machine.chosen(map_problem(g), choose_map(ctx.machine, kernel))
        kernel = turned_map(kernel, schedule, ctx.machine)
    return Lowered([kernel], {}, [prod(g.root.shape) * cost(g)])


def lower_general(g: Group, ctx: Context) -> Lowered:
    node = g.root
    k = _GeneralBuilder(ctx.builder(), g, ctx)
    out = k.k.buffer(ctx.name_of(node), node.dtype, node.shape, "out")
    ins = ["" if x in g.members else ctx.name_of(x) for x in node.inputs]
    node.op.lower.body(k, ins, out, (*[x.type for x in node.inputs], node.type), node.attrs)  # type: ignore[union-attr]
    kernel = k.k.finish(ctx.dims, describe(g))
    return Lowered([kernel], k.temps, [prod(node.shape) * 4 + sum((x.type.size for x in node.inputs), 0)])


class _GeneralBuilder:
    """What the body of a ``General`` op is written with: the kernel builder, and its operands by number."""

    def __init__(self, k: KernelBuilder, g: Group, ctx: Context):
        self.k, self.node, self.ctx = k, g.root, ctx
        self.b = k.b
        self.inl = inliner(k, g, ctx)
        self.temps: dict[str, Type] = {}

    def scratch(self, dtype: DType, shape: tuple[DimLike, ...]) -> str:
        """Working memory of the whole kernel, where the plan has room for it."""
        name = f"{self.ctx.name}.temp{len(self.temps)}"
        self.temps[name] = Type(dtype, shape)
        return self.k.buffer(name, dtype, shape, "out")

    def __getattr__(self, name: str):
        return getattr(self.k, name)

    def load(self, operand: int, idx: Idx) -> Expr:
        return self.inl.value(self.node.inputs[operand], idx)

    def load_out(self, idx: Idx) -> Expr:
        n = self.node
        return self.b.load(self.ctx.name_of(n), self.k.tidy(linear_index(idx, n.shape)), n.dtype)

    def store(self, idx: Idx, value: Expr) -> None:
        self.k.write(self.ctx.name_of(self.node), linear_index(idx, self.node.shape), value)
