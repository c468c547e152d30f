"""Common subexpressions: one node for each (op, operands, attributes).

Here: value numbering.  Not here: laws of algebra (simplify.py).  Read next: dce.py.
"""

from __future__ import annotations

from flowc.graph import PARAM, Graph, Node
from flowc.passes.manager import PassContext, graph_pass
from flowc.rewrite import rebuilt, rewired


@graph_pass("cse", after=["simplify"])
def cse(graph: Graph, ctx: PassContext) -> Graph:
    """Keep one node of each (op, operands, attributes); the first location wins."""
    seen: dict[tuple, Node] = {}
    done: dict[Node, Node] = {}
    for n in graph.nodes:
        ctx.visits += 1
        node = rebuilt(n, done)
        done[n] = node
        if n.op is PARAM or not n.op.pure:
            continue
        first = seen.setdefault((node.op, node.inputs, node.attrs or None), node)  # most have none: nothing to hash
        if first is not node and ctx.allow("cse", node.op.name, n):
            ctx.hits["cse"] += 1
            done[n] = first
    return rewired(graph, done)
