"""The graph layer: feeding, fetching, variables, updates and their order, gradients, optimizers, refusals."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pytest

import flowc
from flowc.diag import FlowcError
from flowc.session import Session

DEVICES = ("interpreter", "cpu")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def graph():
    g = flowc.Graph()
    with g.as_default():
        yield g


def f32(*values):
    return np.array(values, np.float32)


def refused(code: str, *words: str):
    """An error of the graph layer with its code and cure, naming what matters and this file's line."""
    class Check:
        def __enter__(self):
            self.inner = pytest.raises(FlowcError)
            self.info = self.inner.__enter__()

        def __exit__(self, *error):
            done = self.inner.__exit__(*error)
            if not done:
                return done
            e = self.info.value
            assert e.code == code, str(e)
            assert e.cure
            for w in (*words, "test_session.py"):
                assert w in str(e), (w, str(e))
            return done
    return Check()


def seed_graph():
    """e = (a + b) * (b + 1)"""
    a = flowc.placeholder("float32", [None], name="a")
    b = flowc.placeholder("float32", [None], name="b")
    c = a + b
    d = b + 1
    return a, b, c, d, c * d


# ---- running --------------------------------------------------------------------------------------------------------

def test_feed_and_fetch_any_node(graph, device):
    a, b, c, d, e = seed_graph()
    with Session(graph, device=device) as s:
        x, y = f32(2, 4), f32(1, 3)
        np.testing.assert_array_equal(s.run(e, {a: x, b: y}), (x + y) * (y + 1))
        np.testing.assert_array_equal(s.run(c, {a: x, b: y}), x + y)
        np.testing.assert_array_equal(s.run(d, {b: y}), y + 1)                      # a is not needed
        np.testing.assert_array_equal(s.run(e, {c: x, b: y}), x * (y + 1))          # nor here
        np.testing.assert_array_equal(s.run(e, {c: x, d: y}), x * y)
        np.testing.assert_array_equal(s.run(e, {e: x}), x)                          # nothing is computed
        np.testing.assert_array_equal(s.run(a, {a: x}), x)
        np.testing.assert_array_equal(s.run(e, {a: x, b: y, c: f32(0, 0)}), f32(0, 0))


def test_nested_fetches(graph, device):
    class Pair(NamedTuple):
        first: object
        second: object

    a, b, c, _, e = seed_graph()
    with Session(graph, device=device) as s:
        got = s.run({"p": Pair(c, [e, c]), "none": None, "t": (a,)}, {a: f32(1), b: f32(2)})
        assert isinstance(got["p"], Pair) and got["none"] is None
        assert got["p"].first == 3 and got["p"].second[0] == 9 and got["p"].second[1] == 3 and got["t"][0] == 1
        assert s.run([], {}) == [] and s.run(None) is None


def test_results_belong_to_the_caller(graph, device):
    a, b, c, *_ = seed_graph()
    v = flowc.Variable(f32(1, 2), name="v")
    with Session(graph, device=device) as s:
        x = f32(5, 5)
        s.run(v.initializer)
        one, two, back = s.run([v, c, a], {a: x, b: x})
        again = s.run(v)
        new = s.run(v.assign(f32(7, 8)))
        for r in (one, two, back, again, new):
            r[...] = -1
        np.testing.assert_array_equal(x, f32(5, 5))
        np.testing.assert_array_equal(s.run(v), f32(7, 8))
        np.testing.assert_array_equal(s.run(c, {a: x, b: x}), f32(10, 10))


def test_every_size_runs_through_one_compile(graph):
    a, b, _, _, e = seed_graph()
    with Session(graph) as s:
        for n in (3, 0, 1, 17, 1000):
            x = np.arange(n, dtype=np.float32)
            np.testing.assert_array_equal(s.run(e, {a: x, b: x}), (x + x) * (x + 1))
        assert len(s._pieces) == 1


def test_sizes_of_a_fed_inner_node_are_solved(graph, device):
    x = flowc.placeholder("float32", ["n"], name="x")
    double = np.concatenate([x, x])
    y = double * 2
    with Session(graph, device=device) as s:
        np.testing.assert_array_equal(s.run(y, {double: f32(1, 2, 3, 4)}), f32(2, 4, 6, 8))
        with refused("G005", "2*n"):
            s.run(y, {double: f32(1, 2, 3)})


def test_layouts_of_fed_arrays(graph, device):
    x = flowc.placeholder("float32", [None, 3], name="x")
    y = x + 1
    base = np.arange(24, dtype=np.float32).reshape(3, 8)
    with Session(graph, device=device) as s:
        for a in (base[:, ::-2].T[::-1], np.asfortranarray(base[:, :3]), base[::-1, 1:4], base[:0, :3]):
            np.testing.assert_array_equal(s.run(y, {x: a}), a + 1)
        swapped = base[:, :3].astype(">f4")
        np.testing.assert_array_equal(s.run(y, {x: swapped}), base[:, :3] + 1)
        np.testing.assert_array_equal(s.run(y, {x: [[1, 2, 3]]}), f32([2, 3, 4]))  # lists are converted


def test_numpy_functions_on_session_tensors(graph, device):
    x = flowc.placeholder("float32", [None, 4], name="x")
    y = np.tanh(x @ np.eye(4, dtype=np.float32)).sum(axis=1)
    with Session(graph, device=device) as s:
        v = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        np.testing.assert_allclose(s.run(y, {x: v}), np.tanh(v).sum(axis=1), rtol=1e-5)


def test_tensors_work_outside_the_block():
    g = flowc.Graph()
    with g.as_default():
        x = flowc.placeholder("float32", [None], name="x")
    y = np.exp(x * 2)
    with Session(g) as s:
        np.testing.assert_allclose(s.run(y, {x: f32(0, 1)}), np.exp(f32(0, 2)), rtol=1e-6)


def test_the_default_graph_of_the_process():
    flowc.reset_default_graph()
    try:
        x = flowc.placeholder("float32", name="x")
        assert x.graph is flowc.get_default_graph()
        assert Session().run(x + 1, {x: 2.0}) == 3
    finally:
        flowc.reset_default_graph()


def test_a_chain_of_many_nodes(graph):
    x = flowc.placeholder("float32", (), name="x")
    y = x
    for _ in range(20_000):
        y = -y
    with Session(graph, device="interpreter") as s:
        assert s.run(y, {x: 3.0}) == 3


def test_independent_steps_stand_in_one_wave(graph):
    a, b, _, _, e = seed_graph()
    with Session(graph) as s, flowc.options(fuse=False):
        waves = s.compile(e, [a, b]).program.plan.waves()
    assert [len(w) for w in waves] == [2, 1]


def test_on_the_gpu_simulator(graph):
    a, b = (flowc.placeholder("float32", [3], name=name) for name in "ab")
    v = flowc.Variable(f32(1, 1, 1), name="v")
    up = v.assign_add((a + b) * (b + 1) * 2)
    with flowc.options(gpu="sim"), Session(graph, device="cuda") as s:
        s.run(v.initializer)
        for _ in range(2):
            s.run(up, {a: f32(1, 2, 3), b: f32(4, 5, 6)})
        np.testing.assert_array_equal(s.run(v), 1 + 4 * f32(25, 42, 63))


# ---- variables and updates ------------------------------------------------------------------------------------------

def test_variables_and_updates(graph, device):
    v = flowc.Variable(f32(1, 2), name="v")
    more, less, put = v.assign_add(f32(10, 10)), v.assign_sub(f32(1, 1)), v.assign(v * 2)
    with Session(graph, device=device) as s:
        s.run(flowc.global_variables_initializer())
        np.testing.assert_array_equal(s.run(v), f32(1, 2))
        np.testing.assert_array_equal(s.run(more), f32(11, 12))
        assert s.run(flowc.group(less)) is None
        np.testing.assert_array_equal(s.run(v), f32(10, 11))
        np.testing.assert_array_equal(s.run([v, put])[0], f32(10, 11))  # reads come before writes
        np.testing.assert_array_equal(s.run(v), f32(20, 22))
        np.testing.assert_array_equal(s.run(put, {v: f32(1, 1)}), f32(2, 2))  # a variable may be fed too
        s.run(v.assign_add(1))
        np.testing.assert_array_equal(s.run(v), f32(3, 3))
        v.load(f32(9, 9), s)
        np.testing.assert_array_equal(s.run(v + 1), f32(10, 10))


def test_swap_reads_before_it_writes(graph, device):
    a, b = flowc.Variable(1.0, name="a"), flowc.Variable(2.0, name="b")
    swap = flowc.group(a.assign(b), b.assign(a))
    with Session(graph, device=device) as s:
        s.run(flowc.global_variables_initializer())
        s.run(swap)
        assert s.run([a, b]) == [2.0, 1.0]


def test_sessions_hold_their_own_values(graph):
    v = flowc.Variable(f32(0), name="v")
    up = v.assign_add(1)
    one, two = Session(graph), Session(graph)
    for s in (one, two):
        s.run(v.initializer)
    one.run(up)
    assert one.run(v) == 1 and two.run(v) == 0


def test_initial_values_from_tensors_and_functions(graph, device):
    a = flowc.Variable(lambda: f32(1, 2, 3), name="a")
    b = flowc.Variable(flowc.constant(f32(4, 5)) * 2, name="b", trainable=False)
    c = flowc.Variable([1, 2], dtype="float64", name="c")
    with Session(graph, device=device) as s:
        s.run(flowc.global_variables_initializer())
        np.testing.assert_array_equal(s.run(a), f32(1, 2, 3))
        np.testing.assert_array_equal(s.run(b), f32(8, 10))
        assert s.run(c).dtype == np.float64
    assert flowc.trainable_variables() == [a, c] or [v.name for v in flowc.trainable_variables()] == ["a", "c"]
    assert [v.name for v in flowc.global_variables()] == ["a", "b", "c"]


def test_updates_ordered_by_control_dependencies(graph, device):
    v = flowc.Variable(1.0, name="v")
    double = v.assign(v * 2)
    with graph.control_dependencies([double]):
        then_add = v.assign_add(10.0)
        seen = flowc.identity(v.read_value())
        before = flowc.identity(v)
    with Session(graph, device=device) as s:
        s.run(v.initializer)
        assert s.run(then_add) == 12 and s.run(v) == 12
        assert s.run([double, then_add]) == [24, 34] and s.run(v) == 34
        assert s.run(seen) == 68 and s.run(v) == 68          # fetching the tensor runs the operation
        assert s.run(before) == 68 and s.run(v) == 136
        assert s.run(seen + 0.0) == 272 and s.run(v) == 272  # also behind other nodes
        assert s.run(seen * 1, {seen: 5.0}) == 5 and s.run(v) == 272  # not behind what is fed


def test_two_updates_without_an_order_are_refused(graph, device):
    v = flowc.Variable(1.0, name="v")
    one, two = v.assign(2.0), v.assign(3.0)
    with Session(graph, device=device) as s:
        s.run(v.initializer)
        with refused("G007", "variable v", "control_dependencies"):
            s.run([one, two])
        assert s.run(v) == 1
        assert s.run([one, one]) == [2, 2]


def test_a_failing_run_changes_no_variable(graph, device):
    v = flowc.Variable(1.0, name="v")
    x = flowc.placeholder("float64", name="x")
    up = v.assign_add(x)
    with Session(graph, device=device) as s:
        s.run(v.initializer)
        with pytest.raises(FlowcError):
            s.run(up)
        assert s.run(v) == 1


def test_threads_lose_no_update(graph):
    v = flowc.Variable(0.0, name="v")
    up = v.assign_add(1.0)
    s = Session(graph)
    s.run(v.initializer)
    s.run(up)
    threads = [threading.Thread(target=lambda: [s.run(up) for _ in range(50)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert s.run(v) == 201


# ---- gradients and optimizers ---------------------------------------------------------------------------------------

def test_gradients_of_any_node(graph, device):
    a, b, c, _, e = seed_graph()
    unrelated = flowc.placeholder("float32", [None], name="unrelated")
    da, db, dc, none = flowc.gradients(e, [a, b, c, unrelated])
    assert none is None
    x, y = f32(2, 4), f32(1, 3)
    with Session(graph, device=device) as s:
        got = s.run([da, db, dc], {a: x, b: y})
        for g, w in zip(got, (y + 1, (y + 1) + (x + y), y + 1), strict=True):
            np.testing.assert_allclose(g, w)
        (weighted,) = flowc.gradients(e, a, grad_ys=[c])
        np.testing.assert_allclose(s.run(weighted, {a: x, b: y}), (y + 1) * (x + y))
        (second,) = flowc.gradients(db, b)
        np.testing.assert_allclose(s.run(second, {b: y}), f32(2, 2))  # needs nothing of b but its size
        with refused("G003", "size n", "placeholder a"):
            s.run(second)


def quadratic(graph):
    x = flowc.Variable(f32(5, -3), name="x")
    target = flowc.placeholder("float32", [2], name="target")
    loss = ((x - target) * (x - target)).sum()
    return x, target, loss


def reference_descent(kind: str, steps: int) -> np.ndarray:
    """The same optimizers written with NumPy in float64."""
    x, t = np.array([5.0, -3.0]), np.array([1.0, 2.0])
    a = m = s = np.zeros(2)
    for k in range(1, steps + 1):
        g = 2 * (x - t)
        if kind == "descent":
            x = x - 0.1 * g
        elif kind in ("momentum", "nesterov"):
            a = 0.9 * a + g
            x = x - 0.02 * (g + 0.9 * a if kind == "nesterov" else a)
        else:
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
            x = x - 0.1 * np.sqrt(1 - 0.999 ** k) / (1 - 0.9 ** k) * m / (np.sqrt(s) + 1e-8)
    return x


@pytest.mark.parametrize("kind", ["descent", "momentum", "nesterov", "adam"])
def test_optimizers_follow_their_formulas(graph, device, kind):
    x, target, loss = quadratic(graph)
    make = {"descent": lambda: flowc.train.GradientDescentOptimizer(0.1),
            "momentum": lambda: flowc.train.MomentumOptimizer(0.02, 0.9),
            "nesterov": lambda: flowc.train.MomentumOptimizer(0.02, 0.9, use_nesterov=True),
            "adam": lambda: flowc.train.AdamOptimizer(0.1)}[kind]
    step = make().minimize(loss)
    with Session(graph, device=device) as s:
        s.run(flowc.global_variables_initializer())
        for _ in range(12):
            s.run(step, {target: f32(1, 2)})
        np.testing.assert_allclose(s.run(x), reference_descent(kind, 12), rtol=2e-5)


def test_step_and_loss_in_one_run(graph, device):
    _, target, loss = quadratic(graph)
    rate = flowc.placeholder("float32", name="rate")
    step = flowc.train.GradientDescentOptimizer(rate).minimize(loss)
    with Session(graph, device=device) as s:
        s.run(flowc.global_variables_initializer())
        _, value = s.run([step, loss], {target: f32(1, 2), rate: 0.5})
        assert value == 41  # of the values before the step
        assert s.run(loss, {target: f32(1, 2)}) == 0


def test_only_chosen_variables_move(graph, device):
    a, b = flowc.Variable(1.0, name="a"), flowc.Variable(1.0, name="b")
    fixed = flowc.Variable(1.0, name="fixed", trainable=False)
    loss = a * a + b * b + fixed * fixed
    all_, one = (flowc.train.GradientDescentOptimizer(0.5).minimize(loss, v) for v in (None, [b]))
    with Session(graph, device=device) as s:
        s.run(flowc.global_variables_initializer())
        s.run(one)
        assert s.run([a, b, fixed]) == [1, 0, 1]
        s.run(all_)
        assert s.run([a, b, fixed]) == [0, 0, 1]


# ---- what is refused ------------------------------------------------------------------------------------------------

def test_missing_feed(graph, device):
    a, *_, e = seed_graph()
    with Session(graph, device=device) as s:
        with refused("G003", "placeholder b : f32[n]", "feed_dict"):
            s.run(e, {a: f32(1)})
        with refused("G003", "placeholder a"):
            s.run(a)


@pytest.mark.parametrize("value, code, words", [
    (np.float64([1, 2]), "G004", ["f64[2]", "astype('float32')"]),
    (np.int32([1, 2]), "G004", ["i32[2]"]),
    ([1j], "G004", ["c128[1]"]),
    ("text", "G004", ["str"]),
    (object(), "G004", ["object"]),
    ([[1.0], [1.0, 2.0]], "G004", ["list"]),
    (f32([1, 2]), "G005", ["f32[1, 2]", "shape (n)"]),
    (1.0, "G005", ["f32[]"]),
], ids=["float64", "int32", "complex", "text", "object", "ragged", "rank", "scalar"])
def test_wrong_feeds(graph, value, code, words):
    a, b, *_, e = seed_graph()
    with Session(graph) as s, refused(code, "placeholder a : f32[n]", *words):
        s.run(e, {a: value, b: f32(1, 2)})


def test_sizes_that_disagree(graph, device):
    a, b, _, _, e = seed_graph()
    with Session(graph, device=device) as s, refused("G005", "placeholder a has 3", "placeholder b has 2"):
        s.run(e, {a: f32(1, 2, 3), b: f32(1, 2)})


def test_named_sizes_are_their_own(graph, device):
    a = flowc.placeholder("float32", ["rows"], name="a")
    b = flowc.placeholder("float32", ["columns"], name="b")
    outer = a[:, None] * b
    with Session(graph, device=device) as s:
        assert s.run(outer, {a: f32(1, 2, 3), b: f32(1, 2)}).shape == (3, 2)
    with pytest.raises(FlowcError, match=r"rows and columns|columns and rows"):
        _ = a + b


def test_static_sizes_are_checked(graph):
    x = flowc.placeholder("float32", [None, 3], name="x")
    with Session(graph) as s, refused("G005", "f32[n, 3]", "f32[2, 4]"):
        s.run(x + 1, {x: np.zeros((2, 4), np.float32)})


def test_uninitialised_variable(graph, device):
    v = flowc.Variable(1.0, name="weights")
    with Session(graph, device=device) as s:
        for fetch in (v, v + 1, v.assign_add(1.0)):
            with refused("G006", "variable weights", "global_variables_initializer"):
                s.run(fetch)


def test_other_graphs_are_refused(graph):
    a, b, _, _, e = seed_graph()
    with flowc.Graph().as_default() as other:
        foreign = flowc.placeholder("float32", [None], name="foreign")
        w = flowc.Variable(1.0, name="w")
        more = foreign + 1
    with Session(graph) as s:
        for fetch in (foreign, more, w, w.initializer):
            with refused("G002", "graph"):
                s.run(fetch)
        with refused("G002", "foreign"):
            s.run(e, {foreign: f32(1), a: f32(1), b: f32(1)})
    with refused("G002", "foreign"):
        _ = a + foreign
    with refused("G002", "graph"):
        flowc.gradients(e, [foreign])
    with refused("G002", "graph"), graph.control_dependencies([w.initializer]):
        pass
    assert other is not graph


@pytest.mark.parametrize("fetch", [3, "e", np.zeros(2), [flowc]], ids=["int", "str", "array", "module"])
def test_what_cannot_be_fetched(graph, fetch):
    with Session(graph) as s, refused("G001", "fetches"):
        s.run(fetch)


def test_what_cannot_be_fed(graph):
    a, *_, e = seed_graph()
    with Session(graph) as s:
        with refused("G001", "str"):
            s.run(e, {"a": f32(1)})
        with refused("G001", "feed_dict"):
            s.run(e, [(a, f32(1))])
        with refused("G004", "tensor"):
            s.run(e, {a: e})


@pytest.mark.parametrize("dtype, shape, words", [
    ("float31", [2], ["float31", "float32"]), (object, [2], ["object"]), ("float32", [-1], ["-1"]),
    ("float32", ["a b"], ["a b"]), ("float32", [2.5], ["2.5"]), ("float32", 3, ["shape"]), ("float32", None, ["shape"]),
])
def test_wrong_placeholders(graph, dtype, shape, words):
    with refused("G008", "placeholder x", *words):
        flowc.placeholder(dtype, shape, name="x")


def test_wrong_assignments(graph):
    v = flowc.Variable(f32(1, 2), name="v")
    for value in (f32(1, 2, 3), np.float64([1, 2]), v[:1]):
        with refused("G010", "variable v is f32[2]"):
            v.assign(value)
    with refused("G009", "assign"):
        v[0] = 1
    with refused("G008", "variable w"):
        flowc.Variable(flowc.placeholder("float32", [None]) + 1, name="w")


def test_wrong_losses(graph):
    v = flowc.Variable(f32(1, 2), name="v")
    step = flowc.train.GradientDescentOptimizer(0.1)
    with refused("G013", "f32[2]"):
        step.minimize(v * v)
    with refused("G013", "no gradient"):
        step.minimize(flowc.placeholder("float32") * 1)


def test_finalized_graph_takes_no_nodes(graph):
    a, b, _, _, e = seed_graph()
    graph.finalize()
    with Session(graph) as s:
        assert s.run(e, {a: f32(1), b: f32(1)}) == 4
        with refused("G012", "mul"):
            s.run(e * 2, {a: f32(1), b: f32(1)})


def test_closed_session(graph):
    *_, e = seed_graph()
    s = Session(graph)
    s.close()
    with refused("G011"):
        s.run(e)


def test_names_are_unique_and_told(graph):
    a, b = flowc.placeholder("float32", name="x"), flowc.placeholder("float32", name="x")
    v = flowc.Variable(1.0, name="x")
    assert len({t.node.attrs["name"] for t in (a, b)} | {v.name}) == 3
    assert "x_2" in repr(b) and "Variable" in repr(v) and "Graph" in repr(graph)
