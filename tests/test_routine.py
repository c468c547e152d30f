"""Runs of a session done again: what the short way gives and what it leaves to the session."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowc
from flowc.diag import FlowcError
from flowc.session import Session

AGAIN = 4  # runs after which a routine is there, if one is to be had


@pytest.fixture(autouse=True)
def native_call():
    """The native call of this process is there: it is made in the background."""
    f, x = flowc.jit(lambda x: x + 1), np.ones(2, np.float32)
    f(x)
    from flowc.backends.llvm import engine
    engine._AHEAD.wait()


@pytest.fixture
def looked(monkeypatch):
    """Runs that the session looked at."""
    runs = []
    real = Session._run

    def counted(self, fetches, feed_dict):
        runs.append(fetches)
        return real(self, fetches, feed_dict)
    monkeypatch.setattr(Session, "_run", counted)
    return runs


class Model:
    """A counter, a sum of squares scaled by a fed number, an update."""

    def __init__(self):
        self.graph = flowc.Graph()
        with self.graph.as_default():
            self.x = flowc.placeholder("float32", [None, 3])
            self.scale = flowc.placeholder("float32", [])
            self.v = flowc.Variable(np.zeros(3, np.float32), name="v")
            self.y = self.x * self.scale + self.v
            self.z = (self.y * self.y).sum()
            self.step = self.v.assign(self.v + self.x.sum(axis=0))
            self.init = flowc.global_variables_initializer()

    def session(self):
        s = flowc.Session(self.graph)
        s.run(self.init)
        return s


def rows(n, value=1.0):
    return np.full((n, 3), value, np.float32)


@given(st.lists(st.sampled_from(["y", "z", "step", "v", "x"]), min_size=1, max_size=4), st.sampled_from([list, tuple]),
       st.lists(st.tuples(st.integers(1, 4), st.sampled_from([2.0, np.float32(2), np.array(2, np.float32), 3])),
                min_size=4, max_size=6))
def test_the_same_as_a_session_that_looks(names, kind, feeds):
    """Any fetches, batch sizes and kinds of numbers: equal results, equal variables, arrays of the caller's own."""
    m = Model()
    short, long = m.session(), m.session()
    fetches = kind(getattr(m, n) for n in names)
    for n, scale in feeds:
        feed = {m.x: rows(n), m.scale: scale}
        got, want = short.run(fetches, feed), long._run(fetches, feed)
        assert type(got) is kind
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)
            a[...] = -7  # nobody else's
        assert np.array_equal(short.run(m.v), long._run(m.v, None))


@pytest.mark.parametrize("what", ["y", "z", "step"])
def test_runs_are_short(looked, what):
    m = Model()
    s = m.session()
    feed = {m.x: rows(2), m.scale: 2.0}
    for _ in range(AGAIN):
        s.run(getattr(m, what), feed) if what != "step" else s.run(m.step, {m.x: rows(2)})
    before = len(looked)
    for n in (2, 2, 2):
        s.run(getattr(m, what), {m.x: rows(n), m.scale: 2.5}) if what != "step" else s.run(m.step, {m.x: rows(n)})
    assert len(looked) == before


@pytest.mark.parametrize(("feed", "code"), [
    (np.ones((2, 3)), "G004"), (np.ones((2, 4), np.float32), "G005"), (np.ones(3, np.float32), "G005"),
    ("text", "G004"), (None, "G004")], ids=["dtype", "size", "rank", "text", "none"])
def test_what_does_not_fit_is_told(feed, code):
    m = Model()
    s = m.session()
    for _ in range(AGAIN):
        s.run(m.step, {m.x: rows(2)})
    with pytest.raises(FlowcError) as e:
        s.run(m.step, {m.x: feed})
    assert e.value.code == code
    assert np.array_equal(s.run(m.v), np.full(3, 2.0 * AGAIN))


def test_lists_and_slices_are_converted():
    m = Model()
    s = m.session()
    for _ in range(AGAIN):
        s.run(m.y, {m.x: rows(2), m.scale: 1.0})
    assert np.array_equal(s.run(m.y, {m.x: [[1, 2, 3]], m.scale: 2}), [[2, 4, 6]])
    assert np.array_equal(s.run(m.y, {m.x: rows(8)[::2], m.scale: 2.0}), rows(4, 2.0))


def test_a_graph_that_goes_on_growing():
    """What a tensor made later hangs on is run as well, though the style of the run was known before."""
    m = Model()
    s = m.session()
    for _ in range(AGAIN):
        s.run(m.z, {m.x: rows(1), m.scale: 1.0})
    with m.graph.as_default(), m.graph.control_dependencies([m.step]):
        later = m.z + 1
    for i in range(AGAIN):
        s.run(later, {m.x: rows(1), m.scale: 1.0})
        assert np.array_equal(s.run(m.v), np.full(3, i + 1.0))


def test_closed_and_overridden(looked):
    m = Model()
    s = m.session()
    for _ in range(AGAIN):
        s.run(m.step, {m.x: rows(1)})
    before = len(looked)
    with flowc.options(device="interpreter"):
        s.run(m.step, {m.x: rows(1)})
    assert len(looked) == before + 1
    s.close()
    with pytest.raises(FlowcError, match="closed"):
        s.run(m.step, {m.x: rows(1)})


def test_updates_of_several_threads_all_count():
    m = Model()
    s = m.session()
    for _ in range(AGAIN):
        s.run(m.step, {m.x: rows(1)})

    def work():
        for _ in range(200):
            s.run(m.step, {m.x: rows(1)})
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert np.array_equal(s.run(m.v), np.full(3, AGAIN + 800.0))
