"""Derivatives: reverse against forward mode against central differences in float64, on whole programs.

Single ops are covered by test_op_slopes.py; here the walks over graphs, accumulation, errors, symbolic sizes, second
derivatives, and forward mode through ops without a tangent rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import flowc
import flowc.numpy as fnp
import flowc.ops
from flowc.diag import FlowcTypeError, Loc, UnsupportedError
from flowc.dims import sym
from flowc.graph import Graph, Node, make, param, topological
from flowc.op import REGISTRY, HostCall, Op
from flowc.ops.rules import n
from flowc.passes.autodiff import jvp, ones_like, value_and_grad, vjp, zeros_like
from flowc.passes.fold import meaning
from flowc.passes.manager import PassContext
from flowc.passes.pipeline import optimise
from flowc.rewrite import splat
from flowc.types import Type, array_type, bool_, c128, f32, f64, i64

assert flowc.ops
rng = np.random.default_rng(7)


def evaluate(outputs: Sequence[Node | None], values: dict[Node, np.ndarray], **sizes: int) -> list[np.ndarray]:
    done = dict(values)
    for node in topological([o for o in outputs if o is not None]):
        if node not in done:
            done[node] = meaning(node, [done[x] for x in node.inputs], sizes)
    return [np.zeros(()) if o is None else done[o] for o in outputs]


def drawn(*shape: int) -> np.ndarray:
    return rng.uniform(0.2, 1.5, shape)


def params_of(arrays: Sequence[np.ndarray]) -> list[Node]:
    return [param(f"p{i}", array_type(a)) for i, a in enumerate(arrays)]


def check(build: Callable[..., Node], *arrays: np.ndarray, tol: float = 2e-7) -> None:
    """Reverse and forward mode agree with each other to rounding, and with central differences."""
    ps = params_of(arrays)
    y = build(*ps)
    values = dict(zip(ps, arrays, strict=True))
    tangents = [rng.normal(size=a.shape) for a in arrays]
    (out,) = evaluate([y], values)
    weights = rng.normal(size=out.shape)

    ct = param("ct", y.type)
    grads = evaluate(vjp([y], [ct], ps), {**values, ct: weights})
    reverse = sum(float(np.sum(g * t)) for g, t in zip(grads, tangents, strict=True))

    ts = [param(f"t{i}", p.type) for i, p in enumerate(ps)]
    (moved,) = evaluate(jvp([y], ps, ts), {**values, **dict(zip(ts, tangents, strict=True))})
    forward = float(np.sum(moved * weights))

    def along(h: float) -> np.ndarray:
        return evaluate([y], {p: a + h * t for p, a, t in zip(ps, arrays, tangents, strict=True)})[0]
    h = 1e-5
    central = float(np.sum((along(h) - along(-h)) / (2 * h) * weights))
    scale = 1 + abs(central)
    assert abs(reverse - forward) < 1e-11 * scale, (reverse, forward)
    assert abs(reverse - central) < tol * scale, (reverse, central)


# ---- programs -------------------------------------------------------------------------------------------------------

def matmul(a: Node, b: Node) -> Node:
    return n.dot(a, b, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,))


def rows(x: Node, like: Node) -> Node:
    """A value per row, repeated along the columns."""
    return n.broadcast(x, shape=like.shape, axes=(0,))


def columns(x: Node, like: Node) -> Node:
    return n.broadcast(x, shape=like.shape, axes=(1,))


def mean(x: Node) -> Node:
    return n.div(n.reduce_sum(x, axes=tuple(range(x.rank))), float(np.prod(x.shape)))


def dense(x: Node, w: Node, b: Node) -> Node:
    y = matmul(x, w)
    return n.add(y, columns(b, y))


def mlp(x: Node, w0: Node, b0: Node, w1: Node, b1: Node) -> Node:
    return n.logistic(dense(n.tanh(dense(x, w0, b0)), w1, b1))


def logsumexp(x: Node) -> Node:
    top = n.stop_gradient(n.reduce_max(x, axes=(1,)))
    return n.add(n.log(n.reduce_sum(n.exp(n.sub(x, rows(top, x))), axes=(1,))), top)


def cross_entropy(x: Node, w: Node, b: Node, labels: Node) -> Node:
    logits = dense(x, w, b)
    at = n.eq(n.iota(shape=logits.shape, axis=1, dtype=i64), rows(labels, logits)) if labels.dtype is i64 else labels
    return mean(n.sub(logsumexp(logits), n.reduce_sum(n.select(at, logits, zeros_like(logits)), axes=(1,))))


def pooled(x: Node) -> Node:
    """2 by 2 maxima of an image."""
    return n.reduce_max(n.windows(x, window=(2, 2), strides=(2, 2), dilation=(1, 1)), axes=(4, 5))


def convnet(x: Node, w: Node) -> Node:
    y = n.conv(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1)
    return pooled(n.max(y, zeros_like(y)))


def layernorm(x: Node, g: Node) -> Node:
    width = float(x.shape[1])
    off = n.sub(x, rows(n.div(n.reduce_sum(x, axes=(1,)), width), x))
    spread = n.div(n.reduce_sum(n.mul(off, off), axes=(1,)), width)
    return n.mul(n.mul(off, rows(n.rsqrt(n.add(spread, 1e-5)), x)), columns(g, x))


def moved_about(x: Node) -> Node:
    """Movement of every kind between nonlinear steps."""
    y = n.sin(n.transpose(n.flip(x, axes=(0,)), perm=(1, 0)))
    y = n.concatenate(y, n.exp(n.slice(y, start=(0, 0), stop=(2, 4), step=(1, 1))), axis=0)
    y = n.pad(y, n.reduce_sum(y, axes=(0, 1)), low=(1, 0), high=(0, 2))
    y = n.update_slice(y, n.cos(n.slice(y, start=(0, 0), stop=(2, 2), step=(1, 1))), start=(1, 1), step=(1, 1))
    return n.cumsum(n.reshape(y, shape=(y.shape[0] * y.shape[1],)), axis=0)


def recurrence(x: Node, w: Node) -> Node:
    """The same weights at every step: contributions add up."""
    h = x
    for _ in range(5):
        h = n.tanh(n.add(matmul(h, w), x))
    return n.reduce_sum(n.mul(h, h), axes=(0, 1))


def test_mlp():
    check(mlp, drawn(4, 3), drawn(3, 5), drawn(5), drawn(5, 2), drawn(2))


def test_softmax_cross_entropy():
    labels = np.array([0, 2, 1, 2])
    check(lambda x, w, b: cross_entropy(x, w, b, flowc.graph.constant(labels)), drawn(4, 3), drawn(3, 3), drawn(3))


def test_convolution_and_pooling():
    check(convnet, rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(4, 3, 3, 3)))


def test_logsumexp_of_large_numbers():
    check(lambda x: logsumexp(n.mul(x, 100.0)), drawn(3, 4), tol=1e-5)


def test_layernorm():
    check(layernorm, rng.normal(size=(3, 8)), drawn(8), tol=1e-6)


def test_movement():
    check(moved_about, drawn(4, 3))


def test_weights_used_many_times():
    check(recurrence, drawn(3, 3), drawn(3, 3))


def test_through_the_optimiser():
    """Derivatives of the simplified program, and the simplified derivative, are the same numbers."""
    arrays = (drawn(4, 3), drawn(3, 5), drawn(5), drawn(5, 2), drawn(2))
    ps = params_of(arrays)
    graph = value_and_grad(Graph("loss", ps, [mean(mlp(*ps))]), wrt=(0, 1, 2, 3, 4))
    values = dict(zip(ps, arrays, strict=True))
    plain = evaluate(graph.outputs, values)
    for got, want in zip(evaluate(optimise(graph, PassContext()).outputs, values), plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


# ---- second derivatives ---------------------------------------------------------------------------------------------

def scalar(x: Node) -> Node:
    return n.reduce_sum(n.mul(n.sin(x), n.exp(n.mul(x, x))), axes=(0,))


def gradient(build: Callable[..., Node]) -> Callable[..., Node]:
    def grad(x: Node) -> Node:
        y = build(x)
        (g,) = vjp([y], [ones_like(y)], [x])
        assert g is not None
        return g
    return grad


def test_second_derivatives():
    check(gradient(scalar), drawn(5), tol=1e-6)
    check(gradient(lambda x: recurrence(x, x)), drawn(3, 3), tol=1e-6)


def test_third_derivative():
    check(lambda x: n.reduce_sum(gradient(lambda z: n.reduce_sum(gradient(scalar)(z), axes=(0,)))(x), axes=(0,)),
          drawn(3) * 0.5, tol=1e-5)


def test_forward_over_reverse_is_symmetric():
    """The Hessian by columns, forward over reverse, equals its transpose."""
    a = drawn(4)
    (p,) = params_of([a])
    (t,) = [param("t", p.type)]

    def mixed(x: Node) -> Node:
        square = n.broadcast(x, shape=(4, 4), axes=(0,))
        other = n.broadcast(n.sin(x), shape=(4, 4), axes=(1,))
        return n.reduce_sum(n.exp(n.mul(square, other)), axes=(0, 1))
    (moved,) = jvp([gradient(mixed)(p)], [p], [t])
    hessian = np.stack([evaluate([moved], {p: a, t: e})[0] for e in np.eye(4)])
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-12)


# ---- forward mode without tangent rules -----------------------------------------------------------------------------

def sampled() -> list[Op]:
    return [o for o in REGISTRY.values() if o.vjp and o.jvp and o.samples]


@pytest.mark.parametrize("op", sampled(), ids=lambda o: o.name)
def test_tangent_rule_is_the_transposed_cotangent_rule(op: Op):
    """Both ways to the forward derivative, for every op that has both, on its own sample calls in float64."""
    calls = [([a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays], attrs)
             for arrays, attrs in op.samples(np.random.default_rng(3))]
    compared = 0
    for arrays, attrs in [c for c in calls if any(a.dtype == np.float64 for a in c[0])]:
        ps = params_of(arrays)
        y = make(op, ps, attrs)
        wide = [p for p in ps if p.dtype is f64]
        if y.dtype is not f64:
            continue
        ts = [param(f"t{i}", p.type) for i, p in enumerate(wide)]
        values = dict(zip(ps, arrays, strict=True)) | {t: rng.normal(size=t.shape) for t in ts}
        (one,) = jvp([y], wide, ts)
        kept = op.jvp
        object.__setattr__(op, "jvp", None)
        try:
            (two,) = jvp([y], wide, ts)
        finally:
            object.__setattr__(op, "jvp", kept)
        a, b = (np.zeros(y.shape) if m is None else evaluate([m], values)[0] for m in (one, two))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        compared += 1
    assert compared or op.name in ("real", "imag", "conj")


# ---- what flows and what does not -----------------------------------------------------------------------------------

V = Type(f64, (3,))


def test_nothing_flows_through_integers_or_stops():
    x, k = param("x", V), param("k", Type(i64, (3,)))
    through = n.cast(n.cast(x, dtype=i64), dtype=f64)
    stopped = n.stop_gradient(x)
    y = n.add(n.cast(k, dtype=f64), n.add(through, stopped))
    assert vjp([y], [ones_like(y)], [x, k]) == [None, None]
    assert jvp([y], [x, k], [x, k]) == [None]


def test_unrelated_values_get_none():
    x, y = param("x", V), param("y", V)
    z = n.exp(x)
    got = vjp([z], [ones_like(z)], [x, y])
    assert got[0] is not None and got[1] is None
    assert jvp([z, y], [y], [y]) == [None, y]


def test_only_the_path_is_walked():
    """An op without a derivative beside the path does no harm; on it, the error names op, types and the user's line."""
    x = param("x", V)
    table = {k: getattr(REGISTRY["exp"], k) for k in ("doc", "numpy", "infer", "ulp", "dtypes")}
    rough = Op("rough", lower=HostCall(), arity=1, **table)
    y = n.add(n.exp(x), make(rough, (param("other", V),)))
    assert vjp([y], [ones_like(y)], [x])[0] is not None
    z = make(rough, (x,), loc=Loc("model.py", 12))
    for derive in (lambda: vjp([z], [ones_like(z)], [x]), lambda: jvp([z], [x], [x])):
        with pytest.raises(UnsupportedError) as e:
            derive()
        assert e.value.code == "A001" and "rough has no derivative" in str(e.value)
        assert "model.py:12" in str(e.value) and "stop_gradient" in str(e.value)


def test_inner_values_and_outputs_can_be_asked_for():
    x = param("x", Type(f64, ()))
    y = n.exp(x)
    z = n.mul(y, y)
    gz, gy, gx = vjp([z], [ones_like(z)], [z, y, x])
    got = evaluate([gz, gy, gx], {x: np.asarray(0.5)})
    np.testing.assert_allclose(got, [1.0, 2 * np.exp(0.5), 2 * np.exp(1.0)])
    (moved,) = jvp([z], [y], [y])
    np.testing.assert_allclose(evaluate([moved], {x: np.asarray(0.5)}), [2 * np.exp(1.0)])


def test_several_outputs_and_repeated_parameters():
    x = param("x", Type(f64, ()))
    outs = [n.mul(x, x), x, n.sin(x)]
    g0, g1 = vjp(outs, [ones_like(o) for o in outs], [x, x])
    assert g0 is g1
    np.testing.assert_allclose(evaluate([g0], {x: np.asarray(0.3)}), [2 * 0.3 + 1 + np.cos(0.3)])


def test_wrong_types_are_refused():
    x, wide = param("x", V), param("w", Type(f64, (4,)))
    with pytest.raises(FlowcTypeError, match="A002"):
        vjp([n.exp(x)], [wide], [x])
    with pytest.raises(FlowcTypeError, match="A002"):
        jvp([n.exp(x)], [x], [])
    with pytest.raises(FlowcTypeError, match="A004"):
        value_and_grad(Graph("g", [x], [n.exp(x)]))
    flag = param("flag", Type(bool_, ()))
    with pytest.raises(FlowcTypeError, match="A005"):
        value_and_grad(Graph("g", [flag], [splat(1.0, Type(f32, ()))]))


def test_gradient_of_an_unused_parameter_is_zero():
    x, y = param("x", V), param("y", V)
    g = value_and_grad(Graph("g", [x, y], [n.reduce_sum(x, axes=(0,))]), wrt=(0, 1))
    _, gx, gy = evaluate(g.outputs, {x: np.ones(3), y: np.ones(3)})
    assert gx.tolist() == [1, 1, 1] and gy.tolist() == [0, 0, 0]


# ---- symbols, places, depth -----------------------------------------------------------------------------------------

def test_sizes_may_be_symbols():
    x = param("x", Type(f64, (sym("n"), 3)))
    w = param("w", Type(f64, (3, sym("k"))))
    y = n.reduce_sum(n.tanh(matmul(x, w)), axes=(0, 1))
    gx, gw = vjp([y], [ones_like(y)], [x, w])
    assert (gx.type, gw.type) == (x.type, w.type)
    a, b = drawn(2, 3), drawn(3, 4)
    got = evaluate([gx, gw], {x: a, w: b}, n=2, k=4)
    slope = 1 - np.tanh(a @ b) ** 2
    np.testing.assert_allclose(got[0], slope @ b.T)
    np.testing.assert_allclose(got[1], a.T @ slope)
    assert zeros_like(x).type == x.type


def test_gradient_nodes_carry_the_line_of_their_op():
    x = param("x", V)
    here = Loc("model.py", 5)
    y = make("tanh", (x,), loc=here)
    (g,) = vjp([y], [param("ct", V)], [x])
    made = [m for m in topological([g]) if m.op.name not in ("param", "tanh")]
    assert made and all(m.loc is here for m in made)


def test_complex_values_pair_without_conjugation():
    """<ct, J t> is the same from both sides, under Re(a * b)."""
    x, t, ct = (param(name, Type(c128, (4,))) for name in ("x", "t", "ct"))
    y = n.mul(n.exp(x), n.conj(n.sin(x)))
    values = {p: rng.normal(size=4) + 1j * rng.normal(size=4) for p in (x, t, ct)}
    (moved,), (g,) = jvp([y], [x], [t]), vjp([y], [ct], [x])
    a, b = evaluate([moved, g], values)
    assert np.isclose(np.sum(values[ct] * a).real, np.sum(b * values[t]).real)


def test_a_very_long_chain_is_derived():
    x = param("x", Type(f64, ()))
    y = x
    for _ in range(50_000):
        y = n.neg(y)
    (g,) = vjp([y], [ones_like(y)], [x])
    (t,) = jvp([y], [x], [x])
    assert len(topological([g])) == 50_001 and len(topological([t])) == 50_001


def test_wide_sharing_stays_linear():
    """A ladder of shared values has exponentially many paths and linearly many nodes."""
    x = param("x", Type(f64, ()))
    y = x
    for _ in range(200):
        y = n.mul(y, y)
    (g,) = vjp([y], [ones_like(y)], [x])
    assert len(topological([g])) < 2_000


def test_what_is_written_twice_is_gone_back_through_once():
    def fn(x, w):
        return fnp.sum((x @ w) / (1 + fnp.exp(-(x @ w))))
    x, w = np.ones((4, 3), np.float32), np.full((3, 5), 0.1, np.float32)
    both = flowc.value_and_grad(fn, argnums=(0, 1))
    assert both.lower(x, w).as_text("graph").count(" dot ") == 2 + 2  # as traced; one for each gradient
    assert flowc.verify(both, x, w)

    def twice(x, y):
        return fnp.sum(fnp.sin(x) * fnp.sin(x) + fnp.sin(y) * fnp.sin(x))
    gx, gy = flowc.grad(twice, argnums=(0, 1))(x, x)
    assert np.allclose(gx, 2 * np.sin(x) * np.cos(x) + np.sin(x) * np.cos(x)) and np.allclose(gy, np.sin(x) * np.cos(x))
