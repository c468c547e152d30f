"""The native call with containers: arguments taken apart and results built without a Python frame."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowc
from flowc.function import Function
from flowc.tree import flatten, tree_map

Pair = namedtuple("Pair", "left right")


@dataclass
class Layer:
    w: np.ndarray
    b: np.ndarray


@dataclass(frozen=True, slots=True)
class Slots:
    w: np.ndarray
    power: int = field(default=2, metadata={"static": True})


def vec(n=3, value=1.0):
    return np.full(n, value, np.float32)


@pytest.fixture
def general(monkeypatch):
    """Number of calls that took the general path."""
    calls = []
    real = Function.call

    def counted(self, args, kwargs):
        calls.append(args)
        return real(self, args, kwargs)
    monkeypatch.setattr(Function, "call", counted)
    return calls


leaves = st.sampled_from([(2,), (3, 2), ()]).map(lambda s: np.arange(np.prod(s), dtype=np.float32).reshape(s))
trees = st.recursive(
    leaves | st.none() | st.floats(-4, 4) | st.integers(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.builds(Pair, inner, inner)
    | st.builds(Layer, inner, inner), max_leaves=6)


@given(trees)
def test_any_nesting(tree):
    """What comes out is what goes in, leaf by leaf, on the native path as on the general one."""
    f = flowc.jit(lambda t, x: (tree_map(lambda leaf: leaf * 2, t), [x + 1, "static", None]))
    x = vec()
    first = f(tree, x)
    for _ in range(2):
        again = f(tree, x)
        assert flatten(again)[1] == flatten(first)[1]
        for a, b, want in zip(flatten(again)[0], flatten(first)[0], [*flatten(tree)[0], None, None], strict=True):
            assert type(a) is type(b)
            assert np.array_equal(a, b)
            if want is not None:
                assert np.array_equal(a, np.asarray(want) * 2)
    if any(isinstance(leaf, np.ndarray) for leaf in flatten(tree)[0]):
        changed = tree_map(lambda leaf: leaf + 1, tree)
        for a, b in zip(flatten(f(changed, x))[0], flatten(changed)[0], strict=False):
            assert np.array_equal(a, np.asarray(b) * 2)


@pytest.mark.parametrize("tree", [
    {"w": vec(), "b": vec()}, [vec(), vec()], (vec(), {"k": [vec()]}), Pair(vec(), vec()), [], {}, {"a": None},
    [2.5, vec(), 3], Layer(vec(), vec()), [Slots(vec(), 4), Slots(vec(), 4)]], ids=range(10))
def test_calls_are_native(tree, general):
    f = flowc.jit(lambda t, x: tree_map(lambda leaf: leaf + x, t) if flatten(t)[0] else x)
    f(tree, vec())
    count = len(general)
    assert count == 1
    f(tree, vec())
    assert len(general) == count


@pytest.mark.parametrize("other", [
    {"w": vec(), "b": vec(), "c": vec()}, {"w": vec()}, {"w": vec(), "x": vec()}, OrderedDict(w=vec(), b=vec()),
    {"w": vec(4), "b": vec()}, {"w": vec(), "b": [vec()]}, {"w": vec(), "b": 1.0}, [vec(), vec()], None, vec()],
    ids=range(10))
def test_other_containers_are_seen(other):
    def total(t, x):
        return sum(flatten(t)[0], x)
    f = flowc.jit(total)
    f({"w": vec(), "b": vec()}, vec())
    f({"w": vec(), "b": vec()}, vec())
    if isinstance(other, dict) and other.get("w", vec()).shape == (4,):
        with pytest.raises(flowc.FlowcError):
            f(other, vec())
    else:
        assert np.array_equal(f(other, vec()), total(other, vec()))


def test_filled_later():
    f = flowc.jit(lambda t, x: sum(t, x))
    t = []
    assert list(f(t, vec())) == [1, 1, 1]
    t.append(vec())
    assert list(f(t, vec())) == [2, 2, 2]
    t[0] = vec(3, 5)
    assert list(f(t, vec())) == [6, 6, 6]
    t.clear()
    assert list(f(t, vec())) == [1, 1, 1]


def test_order_of_keys_does_not_matter(general):
    f = flowc.jit(lambda t: {"d": t["a"] - t["b"], "c": t["b"]})
    f({"a": vec(), "b": vec()})
    r = f({"b": vec(3, 2), "a": vec(3, 5)})
    assert list(r["d"]) == [3, 3, 3] and list(r["c"]) == [2, 2, 2]
    assert list(r) == ["c", "d"] and len(general) == 1


def test_classes_of_results():
    f = flowc.jit(lambda x: Pair(Layer(x, x + 1), OrderedDict(b=x, a=x * 2)))
    for _ in range(3):
        r = f(vec())
        assert type(r) is Pair and type(r.left) is Layer and list(r.right) == ["b", "a"]
        assert list(r.left.b) == [2, 2, 2] and list(r.right["a"]) == [2, 2, 2]


def test_reference_counts_stay():
    f = flowc.jit(lambda t, x: {"s": t["a"] + x, "l": [t["b"][0] - x, (x * 2,)], "n": None, "t": "text"})
    t, x = {"a": vec(), "b": [vec()]}, vec()
    f(t, x)
    f(t, x)
    watched = (t, t["a"], t["b"], t["b"][0], x, None, "s", "text", f)
    before = [sys.getrefcount(o) for o in watched]
    for _ in range(1000):
        f(t, x)
    assert [sys.getrefcount(o) for o in watched] == before
    r = f(t, x)
    assert gc.is_tracked(r) and gc.is_tracked(r["l"])
    arrays = [weakref.ref(a) for a in flatten(r)[0] if isinstance(a, np.ndarray)]
    del r
    assert [a() for a in arrays] == [None] * 3


def test_a_class_that_does_not_want_to_be_built():
    class Shy(tuple):
        _fields = ("a", "b")

        def __new__(cls, a, b):
            if isinstance(a, np.ndarray) and a[0] > 2:
                raise RuntimeError("not today")
            return tuple.__new__(cls, (a, b))

    f = flowc.jit(lambda x: [x, Shy(x, x + 1), x])
    assert len(f(vec())) == 3 and len(f(vec())) == 3
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not today"):
            f(vec(3, 7))


def test_items_replaced_while_they_are_read():
    """A thread replaces the arrays of a list that others compute with: they live on until the call is over."""
    n = 1 << 20
    f = flowc.jit(lambda t: [np.exp(x) * 0 + x for x in t])
    t = [np.full(n, float(i), np.float32) for i in range(3)]
    f(t)
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            for i in range(3):
                t[i] = np.full(n, float(i), np.float32)
    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(30):
            for i, x in enumerate(f(t)):
                assert x[0] == i and x[-1] == i
    finally:
        stop.set()
        thread.join()


class TestKeywords:
    def test_any_order(self, general):
        f = flowc.jit(lambda x, *, scale, shift, mode="up": x * scale + shift if mode == "up" else x - shift,
                      static_argnames="mode")
        x = vec()
        calls = [lambda: f(x, scale=vec(3, 2), shift=vec(3, 5)), lambda: f(x, shift=vec(3, 5), scale=vec(3, 2)),
                 lambda: f(x, scale=vec(3, 2), shift=vec(3, 5), mode="up"),
                 lambda: f(x, shift=vec(3, 6), mode="down", scale=vec(3, 2)), lambda: f(shift=vec(), x=x, scale=x)]
        want = [7, 7, 7, -5, 2]
        for call, w in zip(calls, want, strict=True):
            assert list(call()) == [w] * 3
        count = len(general)
        for call, w in zip(calls, want, strict=True):
            assert list(call()) == [w] * 3
        assert len(general) == count

    def test_other_keywords(self):
        f = flowc.jit(lambda x, y=None, z=None: x + (0 if y is None else y) + (0 if z is None else 2 * z))
        for _ in range(3):
            assert list(f(vec(), y=vec())) == [2] * 3
            assert list(f(vec(), z=vec())) == [3] * 3
            assert list(f(vec(), vec())) == [2] * 3
            assert list(f(vec(), z=vec(), y=vec())) == [4] * 3
            assert list(f(vec())) == [1] * 3
            with pytest.raises(TypeError):
                f(vec(), w=vec())

    def test_containers_and_numbers(self, general):
        f = flowc.jit(lambda params, *, rate: {k: v * rate for k, v in params.items()})
        for i in range(3):
            r = f({"a": vec(), "b": vec(3, 2)}, rate=0.5 * i)
            assert list(r["a"]) == [0.5 * i] * 3 and list(r["b"]) == [1.0 * i] * 3
        assert len(general) == 1


class TestObjects:
    """Dataclasses: attributes that the object holds itself are read without Python."""

    def test_static_fields_choose_the_program(self, general):
        f = flowc.jit(lambda s: s.w * s.power)
        for power in (2, 5, 2, 5):
            for _ in range(2):
                assert np.array_equal(f(Slots(vec(), power)), vec(value=power))
        assert len(general) <= 4

    def test_fields_that_are_missing(self):
        f = flowc.jit(lambda layer: layer.w + layer.b)
        layer = Layer(vec(), vec())
        for _ in range(3):
            f(layer)
        del layer.b
        with pytest.raises(AttributeError):
            f(layer)
        layer.b = vec(value=2.0)
        assert np.array_equal(f(layer), vec(value=3.0))

    def test_computed_fields_are_computed(self, general):
        @dataclass
        class Counted:
            w: np.ndarray
            reads: int = field(default=0, metadata={"static": True})

            def __getattribute__(self, name):
                if name == "w":
                    object.__setattr__(self, "seen", object.__getattribute__(self, "__dict__").get("seen", 0) + 1)
                return object.__getattribute__(self, name)
        f, c = flowc.jit(lambda c: c.w + 1), Counted(vec())
        for _ in range(3):
            assert np.array_equal(f(c), vec(value=2.0))
        assert len(general) == 3 and c.seen >= 3

    def test_references_stay(self):
        f, layer = flowc.jit(lambda layer: layer.w + layer.b), Layer(vec(), vec())
        for _ in range(5):
            f(layer)
        before = [sys.getrefcount(x) for x in (layer, layer.w, layer.b)]
        for _ in range(100):
            f(layer)
        assert [sys.getrefcount(x) for x in (layer, layer.w, layer.b)] == before
