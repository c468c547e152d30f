"""Fusion, lowering, waves and memory: what shares a kernel, why not, what runs side by side, where it lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
from flowc.dims import ceildiv, evaluate, prod, sym
from flowc.kernel import Loop, walk
from flowc.passes.build import BuildOptions, build, build_with_groups
from flowc.passes.manager import PassContext
from flowc.passes.memory import plan_arena
from flowc.passes.pipeline import optimise
from flowc.passes.place import assign_waves, critical_path, dependence_graph
from flowc.passes.schedule import Machine
from flowc.plan import Step
from flowc.types import Type, f32


def program(fn, *specs, fuse=True):
    graph = optimise(flowc.jit(fn).lower(*map(flowc.spec, specs)).graph, PassContext())
    return build(graph, BuildOptions(Machine(), fuse=fuse))


def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def layer_norm(x, g, b):
    m = np.mean(x, axis=-1, keepdims=True)
    v = np.mean((x - m) * (x - m), axis=-1, keepdims=True)
    return (x - m) / np.sqrt(v + 1e-5) * g + b


def black_scholes(s, k, t):
    sq = 0.3 * np.sqrt(t)
    d1 = (np.log(s / k) + 0.065 * t) / sq
    n1, n2 = np.tanh(d1), np.tanh(d1 - sq)
    kd = k * np.exp(-0.02 * t)
    call = s * n1 - kd * n2
    return call, call - s + kd


@pytest.mark.parametrize("fn, specs, kernels", [
    (lambda a, b: (a + b) * (b + 1), ("f32[n]", "f32[n]"), 1),
    (softmax, ("f32[n, m]",), 1),
    (softmax, ("f32[n, k, 64]",), 1),
    (layer_norm, ("f32[n, 1024]", "f32[1024]", "f32[1024]"), 1),
    (black_scholes, ("f32[n]", "f32[n]", "f32[n]"), 1),
    (lambda x: (np.sum(x, axis=1), np.mean(x, axis=1), np.var(x, axis=1)), ("f32[n, 4096]",), 1),
    (lambda x: np.sum(x, axis=0), ("f32[n, 4096]",), 2),
    (lambda x: np.sum(x), ("f32[n, m]",), 2),
    (lambda x: x.T + 1, ("f32[n, m]",), 1),
    (lambda x, w, b: np.maximum(x @ w + b, 0), ("f32[n, 784]", "f32[784, 512]", "f32[512]"), 2),
    (lambda x, w: np.tanh(x * 2) @ np.exp(w), ("f32[n, 64]", "f32[64, 512]"), 2),
    (lambda a, x: a @ x, ("f32[4096, 4096]", "f32[4096]"), 1),
])
def test_number_of_kernels(fn, specs, kernels):
    assert len(program(fn, *specs).plan.steps) == kernels


def test_refusals_carry_a_reason():
    graph = optimise(flowc.jit(lambda x: np.sum(np.exp(x), axis=0) + np.sum(x)).lower(flowc.spec("f32[n, 64]")).graph,
                     PassContext())
    _, parts = build_with_groups(graph, BuildOptions())
    reasons = [r for g in parts["steps"].values() for r in g.refused]
    assert any("not fused" in r for r in reasons)


def test_unfused_independent_steps_share_a_wave():
    plan = program(lambda a, b: (a + b) * (b + 1), "f32[n]", "f32[n]", fuse=False).plan
    waves = plan.waves()
    assert [len(w) for w in waves][-2:] == [2, 1]
    dag = dependence_graph(plan)
    assert dag.number_of_edges() >= 2 and len(critical_path(plan)) == len(waves)


def layers(x, *ws):
    for w in ws:
        x = layer_norm(x + np.tanh(x @ w) @ w.T, w[0], w[1]) * 0.5
    return softmax(x)


def test_equal_layers_are_lowered_once(monkeypatch):
    from flowc.passes import build as module
    lower, calls = module.lower_group, []
    monkeypatch.setattr(module, "lower_group", lambda g, ctx: calls.append(g) or lower(g, ctx))
    rng = np.random.default_rng(0)
    counts = []
    for n in (3, 6):
        calls.clear()
        x, *ws = (rng.standard_normal((32, 32), np.float32) for _ in range(n + 1))
        fn = flowc.jit(layers)
        assert np.allclose(fn(x, *ws), layers(x, *ws), atol=1e-4)
        assert flowc.verify(fn, x, *ws)
        counts.append(len(calls))
    assert counts[0] == counts[1]


def recurrence(x, w):
    h = x[0] * 0
    for t in range(6):
        h = np.tanh(x[t] @ w + h + x[5 - t, ::-1])
    return h


def test_steps_of_a_recurrence_share_their_kernels():
    fn = flowc.jit(recurrence)
    compiled = fn.lower(flowc.spec("f32[6, 8, 16]"), flowc.spec("f32[16, 16]")).compile().compiled
    assert len(compiled.program.kernels) <= 3 and len(compiled.program.plan.steps) >= 6
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 8, 16), np.float32), rng.standard_normal((16, 16), np.float32)
    assert np.allclose(fn(x, w), recurrence(x, w), atol=1e-5)
    assert flowc.verify(fn, x, w)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6),
       st.sampled_from(["float32", "int16"]))
def test_slices_at_any_offsets(places, dtype):
    """Offsets that move together, apart, or not at all."""
    def pieces(x):
        return tuple(x[i, j:j + 4] * 2 + x[i, k:k + 4] for i, j, k in places)
    x = np.arange(6 * 7 * 5).reshape(6, 7, 5).astype(dtype)
    with flowc.options(fuse=False):
        got = flowc.jit(pieces)(x)
    for a, b in zip((*got, *flowc.jit(pieces)(x)), 2 * pieces(x), strict=True):
        assert np.array_equal(a, b)


def test_equal_kernels_are_shared():
    p = program(lambda a, b, c: (np.tanh(np.sum(a, axis=1)), np.tanh(np.sum(b, axis=1)), np.sum(c)),
                "f32[n, 8]", "f32[m, 8]", "f32[k]")
    assert len(p.kernels) < len(p.plan.steps)


def test_reduction_tree_is_in_the_kernel():
    p = program(lambda x: np.sum(x, axis=1), "f32[n, m]")
    (kernel,) = p.kernels.values()
    assert any(isinstance(s, Loop) and s.kind == "vector" and s.extent == 64 for s in walk(kernel.body))
    other = build(optimise(flowc.jit(lambda x: np.sum(x, axis=1)).lower(flowc.spec("f32[n, m]")).graph, PassContext()),
                  BuildOptions(Machine(vector_bits=256)))
    (narrow,) = other.kernels.values()
    extents = [[s.extent for s in walk(k.body) if isinstance(s, Loop)] for k in (kernel, narrow)]
    assert extents[0] == extents[1], "the summation tree must not depend on the machine"


def test_long_chains_are_cut():
    def f(x):
        for _ in range(1000):
            x = np.maximum(x * 1.5, x)
        return x
    p = program(f, "f32[n]")
    assert 5 < len(p.plan.steps) < 100 and len(p.kernels) < len(p.plan.steps)


@given(st.data())
def test_arena_never_overlaps_live_buffers(data):
    n = sym("n")
    shapes = st.sampled_from([(10,), (n,), (n, 2), (2 * n + 1,), (100,), (0,), (n, n)])
    steps, temps = [], {}
    for i in range(data.draw(st.integers(1, 20))):
        reads = data.draw(st.lists(st.sampled_from(sorted(temps)), max_size=3)) if temps else []
        temps[f"t{i}"] = Type(f32, data.draw(shapes))
        steps.append(Step(f"s{i}", "k", (*reads, f"t{i}"), (), 1))
    placed = assign_waves(steps)
    buffers, size = plan_arena(temps, placed, {"n": (0, None)})
    for value in (0, 1, 7, 100):
        env = {"n": value}
        spans = {}
        for b in buffers:
            lo = evaluate(b.place.offset, env)
            hi = lo + evaluate(b.type.nbytes, env)
            assert lo % 64 == 0 and hi <= evaluate(size, env)
            uses = [s.wave for s in placed if b.name in s.buffers]
            spans[b.name] = (lo, hi, min(uses), max(uses))
        for x in spans:
            for y in spans:
                a, b = spans[x], spans[y]
                if x < y and a[2] <= b[3] and b[2] <= a[3] and a[0] < a[1] and b[0] < b[1]:
                    assert a[1] <= b[0] or b[1] <= a[0], (x, y, a, b)


def test_arena_is_reused():
    temps = {f"t{i}": Type(f32, (1000,)) for i in range(10)}
    steps = [Step("s0", "k", ("p", "t0"))] + [Step(f"s{i}", "k", (f"t{i - 1}", f"t{i}")) for i in range(1, 10)]
    _, size = plan_arena(temps, assign_waves(steps), {})
    assert size == 2 * 64 * ceildiv(4000, 64)


def test_sums_of_the_same_pairs_are_taken_in_one_walk():
    """Forces between bodies: nothing of the size of the pairs is written."""
    def forces(x, y, z):
        dx, dy, dz = (v[:, None] - v[None, :] for v in (x, y, z))
        s = dx * dx + dy * dy + dz * dz + np.float32(0.01)
        w = 1 / (s * np.sqrt(s))
        return np.sum(dx * w, axis=1), np.sum(dy * w, axis=1), np.sum(dz * w, axis=1)
    assert len(program(forces, *["f32[500]"] * 3).plan.steps) == 1
    assert len(program(forces, *["f32[n]"] * 3).plan.steps) == 1
    r = np.random.default_rng(1)
    assert flowc.verify(forces, *r.standard_normal((3, 70)).astype(np.float32))


@given(rows=st.integers(1, 40), columns=st.integers(1, 70), depth=st.integers(2, 5),
       dtype=st.sampled_from(["float32", "float64", "int32"]), which=st.sampled_from(["min", "sum", "max", "body"]),
       dynamic=st.booleans())
def test_pairs_of_short_vectors(rows, columns, depth, dtype, which, dynamic):
    r = np.random.default_rng(3)
    a, b = ((r.standard_normal((n, depth)) * 3).astype(dtype) for n in (rows, columns))

    def fn(a, b):
        d = a[:, None, :] - b[None, :, :]
        s = np.sum(d * d, axis=-1)
        if which == "body":
            return np.sum(d * (s + 1)[:, :, None], axis=1)
        if which == "max":
            return np.max(np.max(d, axis=2), axis=1), np.argmax(d, axis=1)
        return np.argmin(s, axis=1) if which == "min" else np.sum(s + 1, axis=1)
    report = flowc.verify(flowc.jit(fn, dynamic=dynamic), a, b)
    assert report, report


def test_pairs_of_short_vectors_are_not_written():
    def forces(p):
        d = p[:, None, :] - p[None, :, :]
        s = np.sum(d * d, axis=-1) + np.float32(0.01)
        return np.sum(d / (s * np.sqrt(s))[:, :, None], axis=1)

    def nearest(a, b):
        return np.argmin(np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1), axis=1)
    for p in (program(forces, "f32[500, 3]"), program(nearest, "f32[500, 3]", "f32[400, 3]")):
        assert not any(isinstance(b.type.size, int) and b.type.size > 1500 for b in p.plan.buffers), p.plan.buffers
    assert all(b.type.rank == 1 for b in program(forces, "f32[n, 3]").plan.buffers if b.place.kind == "arena")


def test_sums_that_only_share_short_values_stay_apart():
    def fn(a, x, y):
        return np.sum(a[:, None] * x, axis=1), np.sum(a[:, None] * y, axis=1)
    assert len(program(fn, "f32[500]", "f32[500, 400]", "f32[500, 400]").plan.steps) == 2


@pytest.mark.parametrize("count", [100, 1000, 10000])
def test_building_is_linear_in_nodes(count):
    """Kernels and steps grow with the graph, no faster."""
    def f(x, y):
        for i in range(count // 4):
            x = np.maximum(x * y + float(i), -x) - y
        return x
    p = program(f, "f32[n]", "f32[n]")
    assert len(p.plan.steps) <= count / 20 + 2
    assert prod((1,)) == 1


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), columns=st.sampled_from([1, 3, 16, 64, 65, 200]), seed=st.integers(0, 99),
       dtype=st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u8"]), low=st.booleans())
def test_positions_beside_values(rows, columns, seed, dtype, low):
    """Few different values, the least and the greatest among them, and NaN: the first one wins, and the value that is
    kept beside the position is the extreme one."""
    rng, d = np.random.default_rng(seed), np.dtype(dtype)
    some = [np.nan, np.inf, -np.inf, -0.0, 1, 2] if d.kind == "f" else [np.iinfo(d).min, np.iinfo(d).max, 1, 2]
    x = rng.choice(np.array(some, d), (rows, columns), p=None if seed % 2 else rng.dirichlet([.3] * len(some)))
    position, value = (np.argmin, np.min) if low else (np.argmax, np.max)
    got = flowc.jit(lambda x: (position(x, axis=1), value(x, axis=1)))(x)
    np.testing.assert_array_equal(got[0], position(x, axis=1))
    np.testing.assert_array_equal(got[1], value(x, axis=1))
    assert got[0].dtype == np.int64 and got[1].dtype == d


CHAINS = [  # function of x, registers at once of few elements, of f32 and of f64
    (lambda x: np.sqrt(x * x + 1) / x, 2, 2, 2), (np.tanh, 1, 2, 2), (lambda x: np.tanh(x) * np.exp(-x), 1, 1, 2),
    (lambda x: x * np.tanh(np.log1p(np.exp(x))), 1, 4, 4), (lambda x: x**2.7, 1, 4, 4),
    (lambda x: np.log(np.sin(x) + 2), 1, 1, 1)]


@pytest.mark.parametrize(("fn", "few", "single", "double"), CHAINS)
def test_registers_at_once(fn, few, single, double):
    """Long chains share their waiting among four, short ones and small work do without the code."""
    for spec, lanes in ((f"f32[{1 << 12}]", 16 * few), ("f32[n]", 16 * single), ("f64[n]", 8 * double)):
        (kernel,) = program(fn, spec).kernels.values()
        assert f"width {lanes}" in str(kernel.notes), (spec, kernel.notes)
    x = np.random.default_rng(1).uniform(0.1, 9, 4231)
    for d in ("float32", "float64", "float16"):
        assert flowc.verify(flowc.jit(fn, dynamic=True), x.astype(d))


def test_rows_that_wait_for_functions_are_written_by_several_registers():
    def mish(x):
        y = x - np.mean(x, axis=-1, keepdims=True)
        return y * np.tanh(np.log1p(np.exp(y)))
    for fn, lanes in ((mish, 64), (lambda x: np.tanh(x - np.mean(x, axis=-1, keepdims=True)), 32),
                      (lambda x: x - np.log(np.sum(x, axis=-1, keepdims=True)), 16)):
        for spec, most in (("f32[n, 1000]", 1000), ("f32[n, 20]", 20), ("f32[2, 9]", 0)):
            kernel = next(k for k in program(fn, spec).kernels.values() if "row: " in str(k.notes))
            *_, last = (s for s in walk(kernel.body) if isinstance(s, Loop))
            assert last.width == max(16, min(lanes, 1 << most.bit_length())), (spec, last.width)
    x = np.random.default_rng(0).normal(size=(3, 77))
    for d in ("float32", "float64", "float16"):
        for n in (77, 20, 5):
            assert flowc.verify(flowc.jit(mish), x[:, :n].astype(d))
