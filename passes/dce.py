"""Dead values: work for results that have no elements.

Here: cutting graphs at tensors of size 0.  Not here: nodes that no output needs; a graph lists only what its outputs
reach, so they vanish as soon as nothing points at them.  Read next: autodiff.py.
"""

from __future__ import annotations

from flowc.graph import CONSTANT, PARAM, Graph, Node
from flowc.passes.manager import PassContext, graph_pass
from flowc.rewrite import rebuilt, rewired, splat

_LEAVES = ("broadcast", "iota")


def is_empty(n: Node) -> bool:
    return 0 in n.shape


@graph_pass("dce", after=["simplify"])
def dce(graph: Graph, ctx: PassContext) -> Graph:
    """Cut off what only tensors without elements need.  Parameters stay, used or not."""
    done: dict[Node, Node] = {}
    for n in graph.nodes:
        ctx.visits += 1
        node = rebuilt(n, done)
        cut = node.op is not PARAM and node.op is not CONSTANT and node.op.pure and is_empty(node)
        if cut and not _is_cut(node) and ctx.allow("dce", node.op.name, n):
            ctx.hits["dce"] += 1
            node = splat(0, node.type, node.loc)
        done[n] = node
    return rewired(graph, done)


def _is_cut(n: Node) -> bool:
    """Nothing but constants stands behind this empty tensor already."""
    return n.op.name in _LEAVES and all(x.op is CONSTANT for x in n.inputs)
