"""Tracing: indexing, in-place writes, views, masks, nesting, what goes in and comes out.  Oracle: NumPy itself."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
from tracing import check, record, run, run_graph, same

import flowc.numpy as fnp
from flowc.diag import FlowcError
from flowc.dims import sym
from flowc.size import SizeUnknownError
from flowc.trace import Leaf, Trace, current_trace, lift, trace
from flowc.tree import Tree, flatten, leaf_class, register_pytree, tree_map
from flowc.types import Type, f32, f64, i64

# ---- trees ----------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Layer:
    w: object
    b: object
    name: str = field(default="", metadata={"static": True})


def test_tree_round_trip():
    obj = {"b": [1, (2, None)], "a": Pair(3, {"z": 4}), "l": Layer(5, [6], "dense"), "o": OrderedDict(y=7, x=8)}
    leaves, tree = flatten(obj)
    assert leaves == [3, 4, 1, 2, 5, 6, 7, 8]
    assert tree.unflatten(leaves) == obj
    assert hash(tree) == hash(flatten(copy.deepcopy(obj))[1]) and tree == flatten(obj)[1]
    assert tree != flatten({**obj, "l": Layer(5, [6], "other")})[1]
    assert tree.paths("p") == ["p['a'].left", "p['a'].right['z']", "p['b'][0]", "p['b'][1][0]", "p['l'].w",
                               "p['l'].b[0]", "p['o']['y']", "p['o']['x']"]
    assert "Pair" in str(tree) and tree.leaves == 8


def test_tree_leaves_only():
    assert flatten(3)[0] == [3] and flatten(3)[1].paths("x") == ["x"]
    assert flatten(None)[0] == [] and flatten(None)[1].unflatten([]) is None
    assert tree_map(lambda a, b: a + b, {"x": 1}, {"x": 2}) == {"x": 3}
    with pytest.raises(FlowcError, match="containers differ"):
        tree_map(lambda a, b: a, [1], [1, 2])
    with pytest.raises(FlowcError, match="has 1 leaves, got 2"):
        flatten([1])[1].unflatten([1, 2])
    assert isinstance(flatten({1: 0, "a": 0})[1], Tree)  # keys that do not compare


def test_registered_class():
    class Box:
        def __init__(self, inner, tag):
            self.inner, self.tag = inner, tag

    register_pytree(Box, lambda b: ((b.inner,), b.tag), lambda tag, xs: Box(xs[0], tag))
    leaves, tree = flatten(Box([1, 2], "t"))
    assert leaves == [1, 2] and tree.unflatten([3, 4]).inner == [3, 4] and tree.paths("b") == ["b[0][0]", "b[0][1]"]
    with pytest.raises(FlowcError, match="already"):
        register_pytree(Box, lambda b: ((), None), lambda m, xs: None)
    with pytest.raises(FlowcError, match="not hashable"):
        flatten(Box(1, []))

    @leaf_class
    @dataclass
    class Whole:
        x: int
    assert len(flatten(Whole(1))[0]) == 1


# ---- arguments and results ------------------------------------------------------------------------------------------

def test_pytrees_in_and_out():
    def fn(params, scale=1.0):
        return {"y": params["w"] @ params["b"][0], "p": Pair(params["b"], None), "n": 3, "s": "text"}
    args = ({"w": np.eye(3), "b": [np.arange(3.0)]},)
    check(fn, *args)
    traced = record(fn, *args, scale=2.0)
    assert traced.names == ("[0]['b'][0]", "[0]['w']", "[1]['scale']")
    assert traced.static == {0: 3, 2: "text"} and traced.out_weak == (False, False)


def test_static_and_weak_results():
    traced = record(lambda x, k: (x * k, k + 1, None, 2.5, True, x.shape[0], np.float32(3), np.arange(2)), np.ones(3),
        4,
                    dynamic=True)
    assert traced.out_weak == (False, True, True, False, False)
    assert traced.static == {2: 2.5, 3: True}
    out = traced.assemble(run_graph(traced.graph, [np.ones(3), 4]))
    assert out[4] is True and int(out[5]) == 3 and out[6].dtype == np.float32 and out[7].tolist() == [0, 1]


def test_unused_parameters_are_kept():
    traced = record(lambda x, y: y, np.ones(3), np.ones(2))
    assert len(traced.graph.params) == 2


def test_parameter_names_are_identifiers():
    leaves = [Leaf(Type(f32, (2,)), name=n) for n in ("params['w'][0]", "params['w'][1]", "params.w_0", "0", "")]
    _, tree = flatten((tuple(range(5)), {}))
    traced = trace(lambda *xs: xs, leaves, tree)
    names = [p.attrs["name"] for p in traced.graph.params]
    assert len(set(names)) == 5 and all(n.isidentifier() for n in names)
    assert traced.names[0] == "params['w'][0]"


def test_nodes_carry_the_users_line():
    traced = record(lambda x: np.mean(x) + 1, np.ones(3))
    assert all(n.loc is not None and n.loc.file == __file__ for n in traced.graph.nodes if n.inputs)


# ---- nested traces --------------------------------------------------------------------------------------------------

def test_captured_values_become_parameters():
    inner_traced = []

    def fn(x, k):
        y = x * 2
        _, tree = flatten(((0,), {}))
        inner = trace(lambda w: (w * y).sum() + k + y[0], [Leaf(Type(f64, (3,)), name="w")], tree)
        inner_traced.append(inner)
        return y
    record(fn, np.ones(3), 2.0)
    inner = inner_traced[0]
    assert [str(p.type) for p in inner.graph.params] == ["f64[3]", "f64[3]", "f64[]"]
    assert [str(c.type) for c in inner.captured] == ["f64[3]", "f64[]"]
    (value,) = run_graph(inner.graph, [np.arange(3.0), np.full(3, 2.0), 5.0])
    assert value == 6 + 5 + 2


def test_captures_cross_two_levels():
    seen = []

    def level(fn, name):
        _, tree = flatten(((0,), {}))
        traced = trace(fn, [Leaf(Type(f64, ()), name=name)], tree)
        seen.append(traced)
        return traced

    def fn(x):
        level(lambda a: level(lambda b: b * x, "b").captured and a, "a")
        return x
    record(fn, np.ones(2))
    innermost, middle = seen
    assert len(innermost.captured) == 1 and innermost.captured[0] is middle.graph.params[1]


def test_inner_ranges_are_the_outer_ones():
    def fn(x):
        _, tree = flatten(((0,), {}))
        trace(lambda y: y[3], [Leaf(x.type, name="y")], tree)
        return x
    assert record(fn, np.ones(9), dynamic=True).graph.ranges == {"n9": (4, None)}


def test_persistent_trace_outside_of_any_trace():
    tr = Trace("graph", {}, persistent=True)
    with tr.active():
        x = tr.add_param(Type(f32, (sym("n"),)), "x")
    y = np.exp(x + 1).sum()
    x[0] = 3.0
    assert str(y.type) == "f32[]" and fnp.concatenate([x, x]).ndim == 1 and (y * 2).dtype == np.float32
    tr.close()
    with pytest.raises(FlowcError, match="T005"):
        x + 1


def test_threads_have_their_own_traces():
    errors = []

    def work(k):
        try:
            check(lambda x: np.cumsum(x * k)[::-1], np.arange(5.0))
            assert current_trace() is None
        except Exception as e:  # reported below
            errors.append(e)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


# ---- symbolic sizes -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fn", [
    lambda x: x / x.shape[0], lambda x: x.shape[0] * x, lambda x: x - 0.5 * x.shape[0], lambda x: x + len(x.shape),
    lambda x: x.reshape(x.shape[0] * x.shape[1], -1), lambda x: fnp.zeros(x.shape) + x.shape[1] ** 2,
    lambda x: x.sum() / (x.shape[0] * x.shape[1]), lambda x: x / np.sqrt(x.shape[1]), lambda x: x[:x.shape[0] // 2],
    lambda x: x.shape[0] - x, lambda x: x.shape[0] // 2 + x, lambda x: x % x.shape[0], lambda x: x.size * x,
    lambda x: x.shape[0] / 2 * x, lambda x: 1 / x.shape[0] + x,
])
def test_sizes_in_arithmetic(fn):
    x = np.arange(15.0).reshape(5, 3)
    if "fnp" in fn.__code__.co_names:
        same(run(fn, x, dynamic=True), run(fn, x))
    else:
        check(fn, x, rtol=1e-15)


def test_size_comparisons_answer_or_refuse():
    def decided(x):
        n = x.shape[0]
        assert n == x.shape[0] and n >= 0 and n < n + 1 and not n > n + 2 and n != n + 1
        assert x.shape == x.shape and x.shape[1:] == (1,)
        return x
    record(decided, np.ones((4, 1)), dynamic=True)
    for ask in (lambda n: n == 5, lambda n: n < 3, lambda n: n > 7, lambda n: bool(n), int, float, range,
                lambda n: n != 4, lambda n: n <= 2):
        with pytest.raises(SizeUnknownError) as e:
            record(lambda x, ask=ask: ask(x.shape[0]) and x, np.ones(4), dynamic=True)
        assert e.value.code == "T010" and e.value.symbols == {"n4"}


def test_ranges_decide_comparisons():
    def fn(x):
        x[4]
        return x * 2 if x.shape[0] > 4 else x
    traced = record(fn, np.ones(9), dynamic=True)
    assert traced.graph.outputs[0].op.name == "mul"


def test_reshape_with_symbolic_rest():
    check(lambda x: x.reshape(x.shape[0], -1), np.zeros((3, 4, 5)))
    check(lambda x: x.reshape(-1, 5), np.zeros((3, 4, 5)), dynamic=False)
    check(lambda x: x.reshape(-1, x.shape[-1]) + 0, np.zeros((3, 4, 5)))
    check(lambda x: np.broadcast_to(x, (2, *x.shape)) + 0, np.arange(3.0))


# ---- lifting, size, speed -------------------------------------------------------------------------------------------

def test_lift():
    with Trace("t").active():
        assert lift(3).weak and str(lift(3).type) == "i64[]" and not lift(np.float32(3)).weak
        assert str(lift(np.zeros((2, 3), np.float32)).type) == "f32[2, 3]"
        assert lift(sym("n")).node.op.name == "size"
        with pytest.raises(FlowcError, match="T004"):
            lift("text")


def test_big_endian_and_odd_layouts_become_native_constants():
    a = np.arange(6.0).astype(">f8").reshape(2, 3)[::-1, ::2]
    check(lambda x: x + a, np.ones((2, 2)), dynamic=False)


def test_long_chains_do_not_recurse():
    def fn(x):
        for _ in range(3000):
            x = x + 1
        y = x
        for _ in range(1500):
            y = y[...]
        y[0] = 5
        return x, y
    x = np.zeros(2)
    check(fn, x, dynamic=False)


def test_many_nodes():
    def fn(x):
        for _ in range(20_000):
            x = x * 1.5
        return x
    traced = record(fn, np.ones(3))
    assert len(traced.graph) == 20_003  # the constant and its broadcast are made once


def test_i64_type_of_python_ints():
    traced = record(lambda k: k + 1, 3)
    assert traced.graph.outputs[0].type == Type(i64) and traced.out_weak == (True,)
