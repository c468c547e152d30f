"""A new rewrite rule is one line: a law with a name, its two sides as data.

    python examples/05_add_a_rule.py

log(exp(x)) is x for real numbers, but not for all floats (exp overflows, or rounds to 1), so the rule is marked fast:
it fires only where fast math is allowed.  Inside flowc it would stand in passes/rules_algebra.py, and the generated
tests would check both sides on special values.
"""

from __future__ import annotations

import numpy as np

import flowc
from flowc.passes.manager import PassContext, graph_pass, run_passes
from flowc.rewrite import P, RuleSet, rewrite, rule, var
from flowc.text import to_text

x = var("x")
LOG_EXP = rule("log-exp", P.log(P.exp(x)), x, fast=True)
RULES = RuleSet([LOG_EXP])


@graph_pass("log-exp")
def log_exp(graph, ctx):
    """Drop logarithms of exponentials, where fast math is allowed."""
    return rewrite(graph, RULES, ctx)


def f(a):
    return np.log(np.exp(a)) * 2


def main() -> None:
    graph = flowc.jit(f).lower(flowc.spec("f64[n]")).graph
    print("as traced:")
    print(to_text(graph))
    for fast in (False, True):
        ctx = PassContext(fast=fast, check=True)
        after = run_passes(graph, ["log-exp"], ctx)
        print(f"fast math {'on' if fast else 'off'}: log-exp fired {ctx.hits['log-exp']} times")
    print(to_text(after))
    np.testing.assert_allclose(flowc.interpret(f, np.arange(3.0)), 2 * np.arange(3.0))


if __name__ == "__main__":
    main()
