"""Forms that kernels are better at: products with a vector become reductions, reductions walk memory as it lies,
counts become tallies, scatters of one element per row comparisons, moments are taken from pieces.

Here: rewrites that are no simplification but a choice of kernel family.  Not here: laws (rules_*.py), fusion (fuse.py).

A contraction in which one operand has no axes of its own is one pass over the other operand: as a reduction it is
fused with its neighbours and reads memory once, without packing.  Where the summed axis is not the innermost one and
the rows are long, it stays a contraction, which streams whole rows (contract_direct.py, the thin form).
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.dataclass import dataclass
from flowc.dims import prod
from flowc.graph import Graph, Node, make
from flowc.op import Reduction
from flowc.passes.grain import along_the_grain, in_stages
from flowc.passes.manager import PassContext, graph_pass
from flowc.passes.moments import Moments
from flowc.passes.one_each import one_each
from flowc.passes.pairs import by_coordinate, reduced_again
from flowc.passes.tally import counted
from flowc.types import f32

LONG = 128  # elements of a row: enough to fill registers


@dataclass
class Facts:
    """What forms depend on besides the node: of the graph before the pass."""

    again: set[Node]
    moments: Moments


Form = Callable[[Node, Node, Facts], Node]  # (node, the node before its operands changed, facts) -> node or its twin

# by kind of node the forms to try, in this order; the first that differs is taken
REDUCTIONS: tuple[tuple[str, Form], ...] = (
    ("along-the-grain", lambda n, before, facts: along_the_grain(counted(n))),
    ("moments", lambda n, before, facts: facts.moments.rewritten(before, n) if facts.moments.concerns(before) else n),
    ("in-stages", lambda n, before, facts: in_stages(n)),
    ("by-coordinate", lambda n, before, facts: by_coordinate(n, before in facts.again)),
)
OTHERS: dict[str, tuple[tuple[str, Form], ...]] = {
    "scatter_add": (("one-of-each-row", lambda n, before, facts: one_each(n)),),
    "dot": (("dot-vector", lambda n, before, facts: without_free_axes(n)),),
}


@graph_pass("legalize")
def legalize(graph: Graph, ctx: PassContext) -> Graph:
    """Every node in the first form that is better, if there is one."""
    changed = False
    facts = Facts(reduced_again(graph), Moments(graph))
    originals = iter(graph.nodes)

    def visit(n: Node) -> Node:
        nonlocal changed
        ctx.visits += 1
        before = next(originals)
        for name, form in REDUCTIONS if isinstance(n.op.lower, Reduction) else OTHERS.get(n.op.name, ()):
            better = form(n, before, facts)
            if better is not n and ctx.allow("legalize", name, n):
                changed = True
                return better
        return n
    out = graph.map(visit)
    return out if changed else graph


def without_free_axes(n: Node) -> Node:
    """``dot``; as a reduction if an operand has no axes of its own and the other one's rows are not long."""
    if n.dtype.kind not in "bc":
        for vector in (1, 0):
            if _free_size(n, vector) == 1 and not _long_rows(n, 1 - vector):
                return dot_as_reduction(n, vector)
    return n


def _axes(n: Node, side: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Batch, contracted and free axes of an operand."""
    batch, contract = ((n.attrs["lhs_batch"], n.attrs["lhs_contract"]) if side == 0
                       else (n.attrs["rhs_batch"], n.attrs["rhs_contract"]))
    free = tuple(a for a in range(n.inputs[side].rank) if a not in batch and a not in contract)
    return batch, contract, free


def _free_size(n: Node, side: int):
    _, _, free = _axes(n, side)
    return prod(n.inputs[side].shape[a] for a in free)


def _long_rows(n: Node, side: int) -> bool:
    """Is the operand's innermost axis a long one that is not summed over?"""
    x, (_, _, free) = n.inputs[side], _axes(n, side)
    if x.rank - 1 not in free:
        return False
    size = x.shape[-1]
    return not isinstance(size, int) or size >= LONG


def dot_as_reduction(n: Node, vector: int) -> Node:
    """``dot`` whose operand ``vector`` has no free axes but ones: multiply by it along the other, then sum."""
    loc = n.loc
    v, m = n.inputs[vector], n.inputs[1 - vector]
    vb, vc, vf = _axes(n, vector)
    mb, mc, mf = _axes(n, 1 - vector)
    out = n.dtype
    if out.floating and out.bits < 32:  # summed in f32, as the contraction would
        v, m = (make("cast", (x,), {"dtype": f32}, loc) for x in (v, m))
    pairs = sorted(zip((*mb, *mc), (*vb, *vc), strict=True))
    order = tuple(a for _, a in pairs)
    v = make("transpose", (v,), {"perm": (*order, *vf)}, loc)
    if vf:
        v = make("reshape", (v,), {"shape": v.shape[:len(order)]}, loc)
    v = make("broadcast", (v,), {"shape": m.shape, "axes": tuple(a for a, _ in pairs)}, loc)
    product = make("mul", (m, v) if vector == 1 else (v, m), {}, loc)
    total = make("reduce_sum", (product,), {"axes": tuple(sorted(mc))}, loc) if mc else product
    kept = [a for a in range(m.rank) if a not in mc]
    perm = tuple(kept.index(a) for a in (*mb, *mf))
    if perm != tuple(range(len(perm))):
        total = make("transpose", (total,), {"perm": perm}, loc)
    if total.dtype is not out:
        total = make("cast", (total,), {"dtype": out}, loc)
    return total if total.shape == n.shape else make("reshape", (total,), {"shape": n.shape}, loc)
