"""Every law of every rule set, held to account: both sides evaluated by the ops' NumPy meaning.

For each rule, left sides are drawn from its own pattern: dtypes, shapes with symbolic sizes, attributes, values with
NaN, infinities, both zeros and extremes.  Where the rule fires, type and bits must stay (within its stated bound if it
rounds better), the cost must not grow, and a second run must find nothing.  Integer laws of the elementwise ops are
also checked for all 65,536 pairs of 8-bit numbers.  A rule that no draw makes fire fails.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LAWS, Chooser, Draw, N, Refused, array, left_side

import flowc.ops
from flowc.diag import FlowcTypeError
from flowc.dims import evaluate
from flowc.graph import CONSTANT, Graph, Node, make, param, topological
from flowc.op import REGISTRY, Contraction
from flowc.passes.fold import concrete, meaning
from flowc.passes.manager import PassContext, run_passes
from flowc.passes.pipeline import ROUND
from flowc.passes.simplify import RULES
from flowc.rewrite import (
    Always,
    Apply,
    Const,
    Pattern,
    Rule,
    RuleSet,
    Var,
    rewrite,
    splat,
)
from flowc.types import ALL, DType, Type, bf16, f64, i8, u8

assert flowc.ops


# ---- judging --------------------------------------------------------------------------------------------------------

def evaluate_node(root: Node, values: dict[Node, np.ndarray], sizes: dict[str, int]) -> np.ndarray:
    done = dict(values)
    for n in topological([root]):
        if n not in done:
            done[n] = meaning(n, [done[x] for x in n.inputs], sizes)
    return done[root]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "c":
        return same_bits(a.real, b.real) and same_bits(a.imag, b.imag)
    if a.dtype.kind in "biu":
        return bool((a == b).all())
    nan = np.isnan(a) & np.isnan(b)
    raw = f"u{a.dtype.itemsize}"
    return bool((nan | (np.ascontiguousarray(a).view(raw) == np.ascontiguousarray(b).view(raw))).all())


def settled(a: np.ndarray, nodes: list[Node]) -> np.ndarray:
    """``a`` without signs of zeros if a maximum or minimum took part: which zero wins there is open."""
    if a.dtype.kind in "biu" or not any(n.op.name in ("max", "min", "reduce_max", "reduce_min") for n in nodes):
        return a
    return np.asarray(a + np.zeros((), a.dtype))


def within(a: np.ndarray, b: np.ndarray, ulp: float) -> bool:
    """At most ``ulp`` apart; NaN and infinities in the same places."""
    wide = np.float64
    with np.errstate(all="ignore"):
        step = np.spacing(np.maximum(np.abs(a), np.abs(b))).astype(wide)
        near = np.abs(a.astype(wide) - b.astype(wide)) <= ulp * step
        return bool((near | (a == b) | (np.isnan(a) & np.isnan(b))).all())


WEIGHT = {"div": 4, "floor_divide": 8, "mod": 8, "fmod": 8, "pow": 20, "sqrt": 6}
FREE = ("broadcast", "constant", "param", "iota", "stop_gradient")


def cost(root: Node, sizes: dict[str, int]) -> float:
    """Estimated work: what each kind of node does per element it writes, or reads if it reduces."""
    total = 0.0
    for n in topological([root]):
        written = int(np.prod(concrete(n.shape, sizes), dtype=int))
        read = max((int(np.prod(concrete(x.shape, sizes), dtype=int)) for x in n.inputs), default=0)
        if n.op.name in FREE:
            continue
        if n.op.family == "movement":
            total += 0.25 * written
        elif n.op.family in ("reduction", "contraction"):
            total += 2 + 1.5 * read
        else:
            total += WEIGHT.get(n.op.name, 1) * written
    return total


def only(rule: Rule) -> RuleSet:
    return RuleSet([rule])


def check_law(rule: Rule, choose: Chooser, dtype: DType) -> bool:
    """Draw one left side; True if the rule fired (and held)."""
    try:
        root, params = left_side(rule, choose, dtype)
    except Refused:
        return False
    lowest = choose.pick((0, 1))
    sizes = {"n": choose.pick([k for k in (0, 1, 2, 5) if k >= lowest])}
    graph = Graph("law", params, [root], {"n": (lowest, None)})
    ctx = Always(fast=rule.fast)
    rules = only(rule)
    new = rewrite(graph, rules, ctx)
    if not ctx.hits:
        return False
    (after,) = new.outputs
    assert after.type == root.type
    assert ctx.hits[rule.name] <= 4, "the rule feeds itself"
    again = Always(fast=rule.fast)
    assert rewrite(new, rules, again) is new and not again.hits, "not idempotent"
    if 0 not in concrete(root.shape, sizes):  # tensors without elements are cut off elsewhere
        assert cost(after, sizes) <= cost(root, sizes), "worse than before"

    rng = np.random.default_rng(choose.pick(range(1000)))
    tame = any(isinstance(n.op.lower, Contraction) for n in topological([root]))
    values = {p: array(rng, p.dtype, concrete(p.shape, sizes), tame or rule.fast) for p in params}
    if rule.fast:
        values = {p: np.abs(v) + np.asarray(1, v.dtype) for p, v in values.items()}
    nodes = topological([root])
    try:
        old = settled(evaluate_node(root, values, sizes), nodes)
    except ValueError:  # the maximum of nothing
        return False
    got = settled(evaluate_node(after, values, sizes), nodes)
    if rule.fast:
        assert np.allclose(old.astype(np.float64), got.astype(np.float64), rtol=0.05 if dtype.bits == 16 else 1e-4)
    elif rule.ulp and dtype.floating:
        assert within(old, got, rule.ulp), (root, values, old, got)
    else:
        assert same_bits(old, got), (root, values, old, got)
    return True


def suitable(rule: Rule) -> list[DType]:
    """Dtypes for which some left side exists and the rule fires."""
    return [d for d in ALL if any(check_law(rule, Chooser(seed=s), d) for s in range(25))]


@pytest.mark.parametrize("name", LAWS)
def test_law(name: str):
    rule = LAWS[name]
    dtypes = suitable(rule)
    assert dtypes, f"rule {name} is never drawn so that it fires"
    fired = 0

    @given(st.data())
    def check(data: Any) -> None:
        nonlocal fired
        choose = Chooser(data)
        fired += check_law(rule, choose, choose.pick(dtypes))
    check()
    assert fired, f"rule {name} fired while looking for dtypes, but never here"


# ---- all laws together ----------------------------------------------------------------------------------------------

def check_together(rule: Rule, seed: int, dtype: DType) -> bool:
    """A left side of one law through all rounds: no two laws fight, and the numbers stay."""
    choose = Chooser(seed=seed)
    try:
        root, params = left_side(rule, choose, dtype)
    except Refused:
        return False
    graph = Graph("law", params, [root])
    ctx = PassContext()
    core = ("strip", *ROUND, *ROUND)
    (after,) = run_passes(graph, core, ctx).outputs
    assert ctx.decisions < 40, ("laws feed each other", ctx.hits)
    again = PassContext()
    run_passes(graph.with_outputs([after]), core, again)
    assert not again.decisions, ("more to do", again.hits)
    sizes = {"n": choose.pick((0, 1, 2, 5))}
    rng = np.random.default_rng(seed)
    nodes = topological([root])
    tame = any(isinstance(n.op.lower, Contraction) for n in nodes)
    values = {p: array(rng, p.dtype, concrete(p.shape, sizes), tame) for p in params}
    try:
        old = settled(evaluate_node(root, values, sizes), nodes)
    except ValueError:
        return False
    got = settled(evaluate_node(after, values, sizes), nodes)
    rounded = max((r.ulp for name, r in LAWS.items() if ctx.hits[name]), default=0)
    if rounded and old.dtype.kind not in "biuc":
        assert within(old, got, rounded), (root, old, got)
    elif not rounded:
        assert same_bits(old, got), (root, values, old, got, ctx.hits)
    return bool(ctx.decisions)


def test_all_laws_together():
    done = sum(check_together(rule, seed, ALL[(seed + i) % len(ALL)])
               for i, rule in enumerate(LAWS.values()) for seed in range(25))
    assert done > 800


# ---- all pairs of 8-bit numbers -------------------------------------------------------------------------------------

BYTE_CONSTANTS = (-128, -127, -64, -3, -2, -1, 0, 1, 2, 3, 4, 8, 16, 64, 127, 128, 254, 255)


def parts(p: Pattern) -> list[Pattern]:
    return [p, *(q for a in p.args for q in parts(a))] if isinstance(p, Apply) else [p]


def is_binary_integer_law(rule: Rule) -> bool:
    ps = parts(rule.lhs)
    ops = [REGISTRY[p.op] for p in ps if isinstance(p, Apply) and isinstance(p.op, str)]
    wanted = [p for p in ps if isinstance(p, Apply)]
    return (len(ops) == len(wanted) and all(o.family == "elementwise" and not o.attrs for o in ops) and not rule.fast
            and any(i8 in o.dtypes or u8 in o.dtypes for o in ops) and not any(o.name == "select" for o in ops))


def byte_instances(rule: Rule, d: DType):
    """Left sides over all values of the variables, for a list of constants."""
    names = sorted({p.name for p in parts(rule.lhs) if isinstance(p, Var)})
    consts = {p.name: p for p in parts(rule.lhs) if isinstance(p, Const)}
    info = np.iinfo(d.numpy)
    every = np.arange(info.min, info.max + 1).astype(d.numpy)
    grids = [g.reshape(-1) for g in np.meshgrid(*[every] * len(names), indexing="ij")]
    pool = [np.asarray(c).astype(d.numpy)[()] for c in BYTE_CONSTANTS if info.min <= c <= info.max]
    for chosen in itertools.product(*[[v for v in pool if c.where is None or c.where(v)] for c in consts.values()]):
        draw = Draw(Chooser(), d)
        shape = (len(every) ** len(names),)
        draw.nodes = {n: draw.leaf(d, shape) for n in names}
        draw.nodes |= {n: splat(v, Type(d, shape)) for n, v in zip(consts, chosen, strict=True)}
        values = dict(zip(draw.params, grids, strict=True))
        yield draw.build(rule.lhs, d, shape), draw.params, values


def test_all_pairs_of_bytes():
    fired: set[str] = set()
    laws = [r for r in LAWS.values() if is_binary_integer_law(r)]
    for rule, d in itertools.product(laws, (i8, u8)):
        try:
            for root, params, values in byte_instances(rule, d):
                ctx = Always()
                (new,) = rewrite(Graph("law", params, [root]), only(rule), ctx).outputs
                if ctx.hits:
                    fired.add(rule.name)
                    assert same_bits(evaluate_node(root, values, {}), evaluate_node(new, values, {})), (rule.name, d)
        except FlowcTypeError:
            continue  # the op has no such dtype
    assert len(fired) > 50


# ---- the sets as a whole --------------------------------------------------------------------------------------------

def test_rules_name_ops_that_exist():
    for rule in LAWS.values():
        for side in (rule.lhs, rule.rhs):
            for p in parts(side) if isinstance(side, Pattern) else ():
                assert not isinstance(p, Apply) or not isinstance(p.op, str) or p.op in REGISTRY, (rule.name, p.op)


def test_no_law_of_floats_is_wrong_in_the_known_ways():
    """The traps by name: each of these must survive simplification of floats."""
    x = param("x", Type(f64, (3,)))
    zero, one = splat(0.0, x.type), splat(1.0, x.type)
    for keep in (make("add", (x, zero)), make("mul", (x, zero)), make("sub", (x, x)), make("div", (x, x)),
                 make("eq", (x, x)), make("sub", (zero, x)), make("neg", (make("sub", (x, one)),)),
                 make("div", (x, splat(3.0, x.type))), make("exp", (make("log", (x,)),))):
        graph = Graph("keep", [x], [keep])
        assert rewrite(graph, RULES).outputs[0].op is keep.op


def test_constants_of_any_rank_are_seen_through_broadcast():
    for shape in ((), (4,), (2, 3), (N, 2)):
        x = param("x", Type(bf16, shape))
        graph = Graph("one", [x], [make("mul", (x, splat(1.0, x.type)))])
        assert rewrite(graph, RULES).outputs[0] is x
    assert CONSTANT.arity == 0
    assert evaluate(N, {"n": 3}) == 3
