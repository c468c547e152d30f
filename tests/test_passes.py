"""The pass machinery and the passes besides simplification: order, fuel, checks, dumps, folding, sharing, growth.

Laws of rules are in test_rules.py, derivatives in test_autodiff.py, bisection in test_bisect.py.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from graphs import programs
from hypothesis import given
from hypothesis import strategies as st

from flowc import config
from flowc.diag import FlowcError, FlowcValueError, Loc, VerifyError
from flowc.dims import sym
from flowc.graph import CONSTANT, Graph, Node, constant, make, param, topological
from flowc.passes import fold as folding
from flowc.passes.manager import PASSES, PassContext, check_order, graph_pass, help_text, run_passes
from flowc.passes.pipeline import GRAPH_PASSES, optimise
from flowc.rewrite import (
    Always,
    P,
    RuleSet,
    any_op,
    attr,
    const,
    coverage,
    elementwise,
    rest,
    rewrite,
    rule,
    splat,
    var,
)
from flowc.types import ALL, FLOATS, Type, f32, f64, i8, i32, i64

N = sym("n")
VEC = Type(f64, (3,))
x, y = var("x"), var("y")


def vec(name: str = "x", type: Type = VEC) -> Node:
    return param(name, type)


def graph(*outputs: Node, **kw) -> Graph:
    return Graph("g", [n for n in topological(outputs) if n.op.name == "param"], outputs, **kw)


def names(g: Graph) -> list[str]:
    return [n.op.name for n in g.nodes]


def quiet(**kw) -> PassContext:
    return PassContext(**kw)


@pytest.fixture
def registry():
    """Passes registered by a test are gone after it."""
    before = dict(PASSES)
    yield PASSES
    PASSES.clear()
    PASSES.update(before)


# ---- the rewriting engine -------------------------------------------------------------------------------------------

def test_patterns_bind_match_and_rebuild():
    rules = RuleSet([rule("f", P.sub(x, x), 0), rule("g", P.add(x, P.mul(y, 2)), P.add(y, P.mul(x, 3)))])
    a, b = vec("a"), vec("b")
    assert names(rewrite(graph(make("sub", (a, a))), rules))[-1] == "broadcast"
    assert rewrite(graph(make("sub", (a, b))), rules).outputs[0].op.name == "sub"
    got = rewrite(graph(make("add", (a, make("mul", (b, splat(2.0, VEC)))))), rules).outputs[0]
    assert got.inputs[0] is b and got.inputs[1].inputs[0] is a


def test_commutative_operands_match_in_both_orders():
    rules = RuleSet([rule("absorb", P["and"](x, P["or"](x, y)), x)])
    a, b = vec("a", Type(i8, (2,))), vec("b", Type(i8, (2,)))
    for inner in ((a, b), (b, a)):
        for outer in ((a, make("or", inner)), (make("or", inner), a)):
            assert rewrite(graph(make("and", outer)), rules).outputs[0] is a


def test_attributes_are_captured_and_compared():
    twice = RuleSet([rule("t", P.transpose(P.transpose(x, perm=attr("p")), perm=attr("p")), x)])
    a = vec("a", Type(f32, (2, 2, 2)))
    for p, q, gone in (((1, 0, 2), (1, 0, 2), True), ((1, 2, 0), (2, 0, 1), False)):
        node = make("transpose", (make("transpose", (a,), {"perm": p}),), {"perm": q})
        assert (rewrite(graph(node), twice).outputs[0] is a) == gone


def test_scalar_constants_keep_the_sign_of_zero_and_the_kind():
    rules = RuleSet([rule("plus-zero", x + 0.0, x), rule("true", P.eq(x, True), x)])
    a = vec("a")
    assert rewrite(graph(make("add", (a, splat(0.0, VEC)))), rules).outputs[0] is a
    assert rewrite(graph(make("add", (a, splat(-0.0, VEC)))), rules).outputs[0] is not a
    ints = vec("i", Type(i8, ()))
    assert rewrite(graph(make("eq", (ints, splat(1, ints.type)))), rules).outputs[0].op.name == "eq"


def test_constants_of_16_bit_floats_are_seen():
    rules = RuleSet([rule("one", x * 1, x)])
    for d in FLOATS:
        a = vec("a", Type(d, (2,)))
        assert rewrite(graph(make("mul", (a, splat(1.0, a.type)))), rules).outputs[0] is a


def test_location_of_the_matched_node_goes_to_its_replacement():
    here, there = Loc("user.py", 3), Loc("user.py", 4)
    a = vec("a")
    inner = make("neg", (a,), loc=there)
    rules = RuleSet([rule("s", P.sub(x, P.neg(y)), P.add(x, P.mul(y, 1)))])
    got = rewrite(graph(make("sub", (a, inner), loc=here)), rules).outputs[0]
    assert [n.loc for n in (got, got.inputs[1])] == [here, here]
    assert rewrite(graph(make("sub", (a, inner))), rules).outputs[0].loc is there


def test_a_rule_must_keep_the_type():
    bad = RuleSet([rule("bad", P.neg(x), lambda m: m.make("reduce_sum", m.x, axes=(0,)))])
    with pytest.raises(VerifyError, match=r"R001.*rule bad turned neg"):
        rewrite(graph(make("neg", (vec(),))), bad)


def test_a_rule_must_not_keep_what_it_replaces():
    bad = RuleSet([rule("bad", P.neg(x), lambda m: m.make("neg", m.root))])
    with pytest.raises(VerifyError, match="R002"):
        rewrite(graph(make("neg", (vec(),))), bad)


def test_rules_that_feed_each_other_stop():
    ring = RuleSet([rule("there", P.sin(x), P.cos(x)), rule("back", P.cos(x), P.sin(x))])
    ctx = Always()
    rewrite(graph(make("sin", (vec(),))), ring, ctx)
    assert sum(ctx.hits.values()) == 100


def test_names_of_rules_and_captures_are_checked():
    with pytest.raises(ValueError, match="two rules are called r"):
        RuleSet([rule("r", -x, x), rule("r", -x, x)])
    with pytest.raises(ValueError, match="value means something else"):
        rule("r", P.pad(x, var("value")), x)
    with pytest.raises(TypeError, match="must apply an op"):
        rule("r", x, x)


def test_variadic_and_generic_patterns():
    swap = RuleSet([rule("first", P.concatenate(x, rest("more")), lambda m: m.again("concatenate", *m.more, m.x),
                         when=lambda m: len(m.more) == 1 and m.x.inputs != ())])
    a, b = make("neg", (vec("a"),)), vec("b")
    got = rewrite(graph(make("concatenate", (a, b), {"axis": 0})), swap).outputs[0]
    assert got.inputs == (b, a)
    generic = RuleSet([rule("unary-of-c", any_op(elementwise, const("c")), lambda m: m.splat(7))])
    assert names(rewrite(graph(make("exp", (constant(1.0),))), generic)) == ["constant"]


def test_nothing_to_do_gives_the_very_same_graph():
    g = graph(make("exp", (vec(),)))
    for name in GRAPH_PASSES:
        assert PASSES[name](g, quiet()) is g


def test_rule_coverage_counts_named_sets():
    before = coverage()["neg-neg"]
    optimise(graph(make("neg", (make("neg", (vec(),)),))), quiet())
    assert coverage()["neg-neg"] == before + 1


# ---- sample programs, optimised as a whole --------------------------------------------------------------------------

def run(g: Graph, *arrays: np.ndarray) -> list[np.ndarray]:
    done = dict(zip(g.params, arrays, strict=True))
    for n in g.nodes:
        if n not in done:
            done[n] = folding.meaning(n, [done[i] for i in n.inputs])
    return [done[o] for o in g.outputs]


def test_transposed_operands_disappear_into_dot():
    a, b = vec("a", Type(f32, (4, 3))), vec("b", Type(f32, (5, 4)))
    at, bt = (make("transpose", (p,), {"perm": (1, 0)}) for p in (a, b))
    node = make("dot", (at, bt), {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (0,)})
    got = optimise(graph(node), quiet()).outputs[0]
    assert got.inputs == (a, b) and (got.attrs["lhs_contract"], got.attrs["rhs_contract"]) == ((0,), (1,))


def test_work_moves_before_the_broadcast():
    a = vec("a", Type(f32, (N,)))
    wide = make("broadcast", (a,), {"shape": (8, N), "axes": (1,)})
    got = optimise(graph(make("exp", (make("mul", (wide, splat(3.0, wide.type))),))), quiet()).outputs[0]
    assert got.op.name == "broadcast" and got.inputs[0].op.name == "exp" and got.inputs[0].shape == (N,)


def test_stop_gradient_is_stripped_but_not_simplified():
    a = vec("a")
    g = graph(make("stop_gradient", (a,)))
    assert names(PASSES["simplify"](g, quiet()))[-1] == "stop_gradient"
    assert optimise(g, quiet()).outputs[0] is a


def test_unused_and_repeated_parameters_and_outputs_stay():
    a, b = vec("a"), vec("b")
    g = Graph("g", [a, b], [b, b, make("mul", (b, splat(1.0, VEC)))])
    got = optimise(g, quiet())
    assert got.params == (a, b) and got.outputs == (b, b, b)


def test_optimising_twice_changes_nothing():
    a = vec("a", Type(f32, (2, 3)))
    t = make("transpose", (a,), {"perm": (1, 0)})
    g = graph(make("add", (make("neg", (make("neg", (t,)),)), make("mul", (t, splat(1.0, t.type))))))
    once = optimise(g, quiet())
    assert optimise(once, quiet()) is once


# ---- folding --------------------------------------------------------------------------------------------------------

def test_constants_fold_by_the_meaning_of_their_op():
    c = constant(np.arange(4.0))
    g = graph(make("add", (make("exp", (c,)), vec("x", c.type))))
    got = PASSES["fold"](g, quiet())
    (dense,) = [n for n in got.nodes if n.op is CONSTANT]
    assert dense.attrs["value"].array.tobytes() == np.exp(np.arange(4.0)).tobytes()


def test_uniform_results_stay_scalars_under_a_broadcast():
    for value in (np.full((2, 3), 0.5), np.full((4,), np.nan), np.zeros((5,))):
        (out,) = PASSES["fold"](graph(constant(value)), quiet()).outputs
        assert out.op.name == "broadcast" and out.inputs[0].rank == 0
    mixed = constant(np.array([0.0, -0.0]))
    assert PASSES["fold"](graph(mixed), quiet()).outputs[0] is mixed


def test_folding_never_materialises_much():
    big = make("broadcast", (constant(np.arange(3.0)),), {"shape": (1000, 3, 1000), "axes": (1,)})
    g = graph(make("exp", (big,)))
    assert PASSES["fold"](g, quiet()) is g
    outer = make("dot", (constant(np.arange(100.0)), constant(np.arange(100.0))),
                 {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (), "rhs_contract": ()})
    g = graph(outer)
    assert PASSES["fold"](g, quiet()) is g
    dense = make("sqrt", (constant(np.arange(10_000.0)),))
    assert PASSES["fold"](graph(dense), quiet()).outputs[0].op is CONSTANT  # as large as what it replaces


def test_symbolic_sizes_are_not_folded():
    g = graph(make("size", (), {"value": N}), make("size", (), {"value": 7}))
    out = PASSES["fold"](g, quiet()).outputs
    assert [o.op.name for o in out] == ["size", "constant"]
    assert int(out[1].attrs["value"].array) == 7


def test_folding_is_quiet_and_leaves_errors_to_the_run(recwarn):
    zero = constant(np.float64(0.0))
    (out,) = PASSES["fold"](graph(make("div", (zero, zero))), quiet()).outputs
    assert np.isnan(out.attrs["value"].array)
    huge = constant(np.array([1e300, -1e300]))
    PASSES["fold"](graph(make("cast", (make("mul", (huge, huge)),), {"dtype": i8})), quiet())
    assert not recwarn.list


def test_folding_does_not_swallow_a_wrong_type(monkeypatch):
    """A meaning that raises or answers in another dtype leaves the node alone."""
    node = make("neg", (constant(np.float32(2)),))
    monkeypatch.setattr(folding, "meaning", lambda *a: np.float64(1))
    assert PASSES["fold"](graph(node), quiet()).outputs[0] is node

    def refuses(*a):
        raise ZeroDivisionError
    monkeypatch.setattr(folding, "meaning", refuses)
    assert PASSES["fold"](graph(node), quiet()).outputs[0] is node


# ---- sharing and dead values ----------------------------------------------------------------------------------------

def test_equal_nodes_become_one_and_the_first_location_wins():
    a = vec()
    one, two = (make("exp", (a,), loc=Loc("m.py", line)) for line in (1, 2))
    got = PASSES["cse"](graph(make("add", (one, two))), quiet())
    assert got.outputs[0].inputs == (one, one)


def test_attributes_that_only_look_equal_are_not_shared():
    assert 0.0 == -0.0
    g = graph(make("add", (make("mul", (vec(), splat(0.0, VEC))), make("mul", (vec("y"), splat(-0.0, VEC))))))
    assert names(PASSES["cse"](g, quiet())).count("constant") == 2
    ones = [constant(np.array([1], d.numpy)) for d in ALL]
    g = graph(*ones)
    assert len({*PASSES["cse"](g, quiet()).outputs}) == len(ALL)


def test_work_for_tensors_without_elements_is_cut():
    a = vec("a", Type(f32, (100,)))
    nothing = make("slice", (make("exp", (a,)),), {"start": (5,), "stop": (5,), "step": (1,)})
    g = Graph("g", [a], [make("neg", (nothing,))])
    got = PASSES["dce"](g, quiet())
    assert names(got) == ["param", "constant", "broadcast"] and got.params == (a,)
    assert PASSES["dce"](got, quiet()) is got


# ---- the manager ----------------------------------------------------------------------------------------------------

def test_fuel_stops_after_so_many_steps():
    node = vec()
    for _ in range(6):
        node = make("neg", (node,))
    g = graph(node)
    assert len(optimise(g, quiet())) == 1
    for fuel, left in ((0, 7), (1, 5), (2, 3), (3, 1)):
        ctx = quiet(fuel=fuel)
        assert len(optimise(g, ctx)) == left
        assert ctx.decisions == fuel
    assert ctx.last.stage == "simplify" and ctx.last.name == "neg-neg"


def test_settings_reach_the_context():
    with config.options(fuel=3, check=False, fast_math=True, log=("passes",)):
        ctx = PassContext.from_config()
    assert (ctx.fuel, ctx.check, ctx.fast, ctx.log) == (3, False, True, {"passes"})


def test_fast_laws_run_only_where_allowed():
    a = vec()
    g = graph(make("sub", (a, a)))
    assert optimise(g, quiet()) is g
    assert "sub" not in names(optimise(g, quiet(fast=True)))


def test_passes_are_documented_and_ordered(registry):
    assert all(name in help_text() for name in GRAPH_PASSES)
    check_order(GRAPH_PASSES)
    with pytest.raises(ValueError, match="cse must come after simplify"):
        check_order(("cse", "simplify"))
    with pytest.raises(FlowcValueError, match="no pass 'nosuch'"):
        run_passes(graph(vec()), ["nosuch"], quiet())
    with pytest.raises(ValueError, match="two passes"):
        graph_pass("cse")(lambda g, ctx: g)
    with pytest.raises(ValueError, match="no docstring"):
        graph_pass("silent")(lambda g, ctx: g)


def test_a_pass_is_skipped_on_its_own_result(registry):
    seen = []

    @graph_pass("watch")
    def watch(g, ctx):
        """Counts its runs."""
        seen.append(g)
        return g
    run_passes(graph(vec()), ["watch", "watch", "simplify", "watch"], quiet())
    assert len(seen) == 1


def test_an_error_names_the_pass(registry):
    @graph_pass("broken")
    def broken(g, ctx):
        """Fails."""
        raise VerifyError("V000", "no")
    with pytest.raises(FlowcError) as e:
        run_passes(graph(vec()), ["broken"], quiet())
    assert "in pass broken" in e.value.__notes__


def test_log_counts_nodes_and_rules(capsys):
    optimise(graph(make("neg", (make("neg", (vec(),)),))), quiet(log=frozenset(("passes", "rules"))))
    err = capsys.readouterr().err
    assert re.search(r"simplify +[\d.]+ ms  3 -> 1 nodes, 1 steps", err) and "neg-neg 1" in err


def test_timings_are_recorded():
    ctx = quiet()
    optimise(graph(make("neg", (make("neg", (vec(),)),))), ctx)
    assert [t.name for t in ctx.timings[:2]] == ["strip", "simplify"] and ctx.timings[1].after == 1


# ---- growth ---------------------------------------------------------------------------------------------------------

def chain(length: int) -> Graph:
    """A long chain in which rules fire, constants fold and expressions repeat."""
    node = start = vec()
    two = splat(2.0, VEC)
    for i in range(length // 5):
        node = make("mul", (make("neg", (make("neg", (node,)),)), two)) if i % 2 else make("add", (node, start))
    return graph(node)


def test_visits_grow_linearly():
    per_node = []
    for length in (100, 1_000, 10_000):
        g = chain(length)
        ctx = quiet()
        optimise(g, ctx)
        per_node.append(ctx.visits / len(g))
    assert max(per_node) < 12 and per_node[2] < per_node[1] * 1.1


def test_visits_of_a_wide_fan_grow_linearly():
    for width in (100, 10_000):
        a = vec()
        parts = [make("neg", (make("mul", (a, splat(float(i), VEC))),)) for i in range(width)]
        g = graph(make("concatenate", parts, {"axis": 0}))
        ctx = quiet()
        optimise(g, ctx)
        assert ctx.visits < 16 * len(g)


def test_a_very_long_chain_passes():
    node = vec("x", Type(i64, ()))
    for i in range(100_000):
        node = make("add", (node, node)) if i % 2 else make("neg", (node,))
    g = graph(node)
    assert len(optimise(g, quiet())) > 50_000


def test_a_long_chain_of_hits_collapses():
    node = start = vec("x", Type(i32, (2,)))
    for _ in range(20_000):
        node = make("add", (node, splat(1, start.type)))
    got = optimise(graph(node), quiet())
    assert len(got) == 4 and int(got.outputs[0].inputs[1].inputs[0].attrs["value"].array) == 20_000


# ---- dumps and replay -----------------------------------------------------------------------------------------------

def double_negation() -> Graph:
    a = param("a", VEC)
    return Graph("g", [a], [make("exp", (make("neg", (make("neg", (a,)),)),))])


def test_stages_are_dumped_in_order(tmp_path):
    optimise(double_negation(), quiet(dump_dir=str(tmp_path)))
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files[:4] == ["00-trace.flow", "01-strip.flow", "02-simplify.flow", "03-fold.flow"]
    assert (tmp_path / "00-trace.flow").read_text().count("neg") == 2
    assert "neg" not in (tmp_path / "02-simplify.flow").read_text()


def test_a_dumped_stage_can_be_edited_and_replayed(tmp_path):
    g = double_negation()
    optimise(g, quiet(dump_dir=str(tmp_path / "dump")))
    text = (tmp_path / "dump" / "02-simplify.flow").read_text()
    edited = tmp_path / "replay"
    edited.mkdir()
    (edited / "02-simplify.flow").write_text(text.replace("exp", "tanh"))
    assert names(optimise(g, quiet(replay_dir=str(edited)))) == ["param", "tanh"]
    (edited / "02-simplify.flow").write_text(text.replace("f64[3]", "f64[4]"))
    with pytest.raises(FlowcValueError, match=r"C010.*other parameters or results"):
        optimise(g, quiet(replay_dir=str(edited)))


def test_each_pass_is_verified_on_demand(registry, monkeypatch):
    @graph_pass("lies")
    def lies(g, ctx):
        """Gives a node a wrong type."""
        (out,) = g.outputs
        return g.with_outputs([Node(out.op, out.inputs, out.attrs, Type(f32, (3,)), None)])
    g = double_negation()
    run_passes(g, ["lies"], quiet())
    with pytest.raises(VerifyError) as e:
        run_passes(g, ["lies"], quiet(check=True))
    assert "after pass lies" in e.value.__notes__


# ---- random programs ------------------------------------------------------------------------------------------------

ROUNDS = {"pow-two", "pow-minus-one"}  # rules after which a result may be rounded better


def values_of(g: Graph, drawn) -> list[np.ndarray]:
    done = dict(zip(g.params, drawn.arrays, strict=True))
    for n in g.nodes:
        if n not in done:
            done[n] = folding.meaning(n, [done[i] for i in n.inputs], drawn.sizes)
    return [done[o] for o in g.outputs]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, NaN for NaN; which zero a maximum of zeros is stays open."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@given(programs(), st.lists(st.sampled_from(sorted({*GRAPH_PASSES})), max_size=5))
def test_random_programs_keep_their_meaning(drawn, names):
    """The pipeline, and any list of passes, leave every result as it is.  Passes run twice change nothing more."""
    want = values_of(drawn.graph, drawn)
    sums = any(n.op.name == "dot" and n.dtype.floating for n in drawn.graph.nodes)  # may add up in another order
    for order in (GRAPH_PASSES, [n for n in names for _ in (0, 1)]):
        ctx = quiet()
        new = run_passes(drawn.graph, order, ctx)
        assert new.params == drawn.graph.params
        assert [o.type for o in new.outputs] == [o.type for o in drawn.graph.outputs]
        if not sums and not ROUNDS & set(ctx.hits):
            assert all(same(a, b) for a, b in zip(values_of(new, drawn), want, strict=True)), ctx.hits
    for name in set(names):
        once = PASSES[name](drawn.graph, quiet())
        assert PASSES[name](once, quiet()) is once
