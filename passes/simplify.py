"""Simplification: the laws of rules_algebra.py and rules_movement.py, applied until none fires.

Here: the rule sets and the two passes that run them.  Not here: the laws, the engine (flowc/rewrite.py).
Read next: fold.py.
"""

from __future__ import annotations

import flowc.ops  # noqa: F401  (laws name ops of the registry)
from flowc.graph import Graph
from flowc.passes.manager import PassContext, graph_pass
from flowc.passes.rules_algebra import ALGEBRA
from flowc.passes.rules_movement import MOVEMENT
from flowc.rewrite import P, RuleSet, rewrite, rule, var

RULES = RuleSet([*MOVEMENT, *ALGEBRA], "simplify")
LATE = RuleSet([rule("stop-gradient", P.stop_gradient(var("x")), var("x"))], "strip")


@graph_pass("strip")
def strip(graph: Graph, ctx: PassContext) -> Graph:
    """Remove what only derivatives look at: they have been taken before this."""
    return rewrite(graph, LATE, ctx)


@graph_pass("simplify")
def simplify(graph: Graph, ctx: PassContext) -> Graph:
    """Apply the laws of algebra and movement until none fires."""
    return rewrite(graph, RULES, ctx)
