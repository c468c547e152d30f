"""Finding a planted bug: the pass, the rule, the node; then the smallest graph that still shows it.

The bugs are rules and passes registered only here.  "Bad" is a difference between a graph and the original, judged by
the ops' own meaning.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import flowc.ops
from flowc.diag import FlowcTypeError, Loc, VerifyError
from flowc.dims import substitute, sym
from flowc.graph import Graph, Node, constant, make, param, topological
from flowc.passes import simplify as simplify_room
from flowc.passes.bisect import bisect, first_bad
from flowc.passes.fold import meaning
from flowc.passes.manager import PASSES, PassContext, graph_pass
from flowc.passes.pipeline import GRAPH_PASSES, optimise
from flowc.passes.reduce import reduce, weight
from flowc.rewrite import P, RuleSet, rewrite, rule, splat, var
from flowc.types import Type, f64

assert flowc.ops
VEC = Type(f64, (4,))
x, y = var("x"), var("y")
WRONG = rule("planted", P.sub(x, y), P.sub(y, x))


@pytest.fixture
def registry():
    before = dict(PASSES)
    yield
    PASSES.clear()
    PASSES.update(before)


@pytest.fixture
def planted(monkeypatch):
    """A wrong rule among the right ones.  It applies where the operands are exp and sin, once each."""
    bad = rule("planted", P.sub(P.exp(x), P.sin(y)), P.add(P.exp(x), P.sin(y)))
    monkeypatch.setattr(simplify_room, "RULES", RuleSet([*simplify_room.RULES, bad]))


def run(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    done: dict[Node, np.ndarray] = {}
    for p in graph.params:
        shape = tuple(substitute(s, {"n": 3}) for s in p.shape)
        done[p] = rng.uniform(0.1, 0.9, shape).astype(p.dtype.numpy)
    for n in graph.nodes:
        if n not in done:
            done[n] = meaning(n, [done[i] for i in n.inputs], {"n": 3})
    return [done[o] for o in graph.outputs]


def differs_from(original: Graph) -> Callable[[Graph], bool]:
    want = run(original)
    return lambda g: not all(np.allclose(a, b) for a, b in zip(run(g), want, strict=True))


def breaks_when_optimised(graph: Graph) -> bool:
    """What a user has at hand: the optimised graph answers otherwise than the graph."""
    return differs_from(graph)(optimise(graph, PassContext()))


def program(guilty: bool = True) -> Graph:
    """Plenty of innocent rewriting around one subtraction."""
    a, b = param("a", VEC), param("b", VEC)
    u = make("neg", (make("neg", (a,)),))
    for i in range(8):
        u = make("mul", (make("add", (u, splat(-0.0, VEC))), splat(float(i + 2), VEC)))
    e, s = make("exp", (make("mul", (a, splat(1.0, VEC))),)), make("sin", (b,))
    v = make("sub" if guilty else "add", (e, s), loc=Loc("model.py", 42))
    w = make("add", (make("div", (u, splat(2.0, VEC))), v))
    return Graph("program", [a, b], [make("neg", (make("neg", (w,)),)), make("tanh", (u,))])


def test_search_by_halves():
    for low, high in ((0, 1), (0, 10), (3, 100)):
        for edge in range(low + 1, high + 1):
            assert first_bad(low, high, lambda k, e=edge: k >= e) == edge


def test_a_wrong_rule_is_found(planted):
    g = program()
    asked = []

    def bad(candidate: Graph) -> bool:
        asked.append(candidate)
        return differs_from(g)(candidate)
    found = bisect(g, bad)
    assert found is not None
    assert (found.stage, found.kind, found.name) == ("simplify", "rule", "planted")
    assert found.node.op.name == "sub" and found.loc.line == 42
    assert not bad(found.before) and bad(found.after)
    assert len(asked) < 14, "the search goes by halves"
    assert "pass simplify (2 of the list), step" in str(found)
    assert "rule planted on <sub" in str(found) and "model.py:42" in str(found)


def test_a_good_pipeline_has_no_culprit():
    g = program()
    assert bisect(g, differs_from(g)) is None


def test_a_bad_input_is_said_to_be_bad():
    found = bisect(program(), lambda g: True)
    assert found.stage == "input" and "before any pass" in str(found)


def test_a_pass_that_is_wrong_without_optional_steps(registry):
    @graph_pass("clumsy")
    def clumsy(g: Graph, ctx: PassContext) -> Graph:
        """Negates the first output."""
        return g.with_outputs([make("neg", (g.outputs[0],)), *g.outputs[1:]])
    g = program()
    found = bisect(g, differs_from(g), ("simplify", "clumsy", "cse"))
    assert (found.stage, found.index, found.step) == ("clumsy", 1, 0)
    assert "its own work" in str(found)


def test_a_pass_that_fails_is_the_culprit(registry):
    @graph_pass("fragile")
    def fragile(g: Graph, ctx: PassContext) -> Graph:
        """Fails at the third node that it may look at."""
        seen = sum(ctx.allow("look", n.op.name, n) for n in g.nodes)
        if seen >= 3:
            raise VerifyError("V000", "no")
        return g
    g = program()
    found = bisect(g, differs_from(g), ("simplify", "fragile"))
    assert (found.stage, found.step, found.kind) == ("fragile", 3, "look")


def test_folding_and_sharing_are_searched_too(monkeypatch):
    g = Graph("g", [p := param("a", VEC)], [make("add", (p, make("exp", (constant(np.arange(4.0)),))))])
    from flowc.passes import fold
    real = fold.meaning
    monkeypatch.setattr(fold, "meaning", lambda n, *a: real(n, *a) + (n.op.name == "exp"))
    found = bisect(g, differs_from(g))
    assert (found.stage, found.kind, found.name) == ("fold", "fold", "exp")


# ---- smaller graphs -------------------------------------------------------------------------------------------------

def test_reduced_to_the_planted_bug(planted):
    g = program()
    assert breaks_when_optimised(g)
    small = reduce(g, breaks_when_optimised)
    assert breaks_when_optimised(small)
    assert sorted(n.op.name for n in small.nodes if n.op.name not in ("param", "constant", "broadcast")) == [
        "exp", "sin", "sub"]
    assert len(small.outputs) == 1 and small.outputs[0].shape == (1,)
    found = bisect(small, differs_from(small))
    assert found.name == "planted" and found.step == 1


def test_a_predicate_on_structure():
    g = program()
    small = reduce(g, lambda c: any(n.op.name == "tanh" for n in c.nodes))
    assert [n.op.name for n in small.nodes][-1] == "tanh" and len(small) <= 3


def test_parameters_no_longer_needed_go():
    g = program(guilty=False)
    small = reduce(g, lambda c: any(n.op.name == "sin" for n in c.nodes))
    assert len(small.params) <= 1 and small.nodes[-1].op.name == "sin"


def test_sizes_shrink_together():
    a, b = param("a", Type(f64, (6, 40))), param("b", Type(f64, (40, 5)))
    attrs = {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (0,)}
    d = make("dot", (a, b), attrs)
    flat = make("reshape", (d,), {"shape": (30,)})
    wide = make("broadcast", (flat,), {"shape": (7, 30), "axes": (1,)})
    g = Graph("g", [a, b], [make("exp", (wide,))])
    small = reduce(g, lambda c: {"dot", "broadcast"} <= {n.op.name for n in c.nodes})
    dot = next(n for n in small.nodes if n.op.name == "dot")
    assert dot.inputs[0].shape == (1, 1) and dot.inputs[1].shape == (1, 1)


def test_symbols_become_numbers_where_they_do_not_matter():
    n = sym("n")
    p = param("p", Type(f64, (n, 4)))
    q = make("slice", (p,), {"start": (0, 0), "stop": (n, 4), "step": (2, 1)})
    g = Graph("g", [p], [make("exp", (q,))], {"n": (2, 100)})
    small = reduce(g, lambda c: any(n.op.name == "slice" for n in c.nodes))
    assert all(isinstance(s, int) for node in small.nodes for s in node.shape) and not small.ranges
    kept = reduce(g, lambda c: bool(c.params) and not isinstance(c.params[0].shape[0], int))
    assert kept.ranges == {"n": (2, 100)}


def test_dense_constants_shrink():
    big = constant(np.arange(400.0).reshape(20, 20))
    g = Graph("g", [], [make("exp", (make("neg", (big,)),))])
    small = reduce(g, lambda c: any(n.op.name == "exp" for n in c.nodes))
    assert all(n.op.name != "constant" or n.rank == 0 or n.type.size < 4 for n in small.nodes)


def test_the_predicate_must_hold_and_may_fail():
    g = program()
    with pytest.raises(ValueError, match="does not hold"):
        reduce(g, lambda c: False)

    def picky(c: Graph) -> bool:
        if len(c.outputs) < 2:
            raise FlowcTypeError("T000", "no")
        return True
    assert len(reduce(g, picky).outputs) == 2


def test_the_budget_is_kept():
    asked = []

    def keep(c: Graph) -> bool:
        asked.append(c)
        return any(n.op.name == "sub" for n in c.nodes)
    reduce(program(), keep, budget=10)
    assert len(asked) <= 10


def test_every_step_makes_it_lighter():
    seen = []

    def keep(c: Graph) -> bool:
        good = any(n.op.name == "sub" for n in c.nodes)
        if good:
            seen.append(weight(c))
        return good
    reduce(program(), keep)
    assert seen == sorted(seen, reverse=True)


def test_a_wrong_rule_alone():
    """The planted rule of this file's head is wrong indeed: an oracle that never fails is not trusted."""
    a, b = param("a", VEC), param("b", VEC)
    g = Graph("g", [a, b], [make("exp", (make("sub", (a, b)),))])
    new = rewrite(g, RuleSet([rule("planted", WRONG.lhs, P.add(x, y))]))
    assert differs_from(g)(new) and GRAPH_PASSES and topological(new.outputs)
