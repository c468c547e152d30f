"""The list of passes: a table of contents of the compiler.

Here: which passes run and in which order.  Not here: how they are run (manager.py), what they do (their own files).
Read next: simplify.py.
"""

from __future__ import annotations

from flowc.graph import Graph
from flowc.passes import cse, dce, fold, legalize, simplify  # noqa: F401  (they register themselves)
from flowc.passes.manager import PassContext, check_order, run_passes

# One round brings a graph into the form that lowering wants; the second works on what folding and sharing uncovered.
# A pass whose graph has not changed since it last ran is skipped.
ROUND = ("simplify", "fold", "cse", "dce")
GRAPH_PASSES = ("strip", *ROUND, "legalize", *ROUND)

check_order(GRAPH_PASSES)


def optimise(graph: Graph, ctx: PassContext | None = None) -> Graph:
    """``graph`` after all graph passes."""
    ctx = PassContext.from_config() if ctx is None else ctx
    out = run_passes(graph, GRAPH_PASSES, ctx)
    ctx.final.clear()  # the context outlives the passes, their nodes need not
    return out
