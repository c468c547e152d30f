"""Donated arguments: results in their memory, the same bits, and nothing overwritten that is not given away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc import parse, text
from flowc.dims import dmin, sym
from flowc.kernel import Buffer, Builder, Kernel, Loop, Store
from flowc.passes.donate import overwrites
from flowc.types import f32


def adam(state, g):
    p, m, v = state
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return p - 0.1 * m / (fnp.sqrt(v) + 1e-8), m, v


def descend(w, x, y):
    loss, dw = flowc.value_and_grad(lambda w: fnp.mean((x @ w - y) ** 2))(w)
    return loss, w - 0.1 * dw


def normal(seed, *shape, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def state(n=1000):
    return [normal(i, n) ** 2 for i in range(3)]


def places(fn, *args):
    plan = fn.lower(*args).compile().compiled.program.plan
    return {b.place.index: b.place.over for b in plan.buffers if b.place.kind == "output"}


def test_updates_in_place():
    step, plain = flowc.jit(adam, donate_argnums=0), flowc.jit(adam)
    s, g = state(), normal(9, 1000)
    for _ in range(4):  # the general path, then the native one
        want = plain(s, g)
        got = step(s, g)
        assert all(a is b for a, b in zip(got, s, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        s = list(got)
    assert np.array_equal(g, normal(9, 1000))
    low = step.lower(s, g).compile()
    assert "inout" in low.as_text("kernel") and "output 0 over 0" in low.as_text("plan")
    assert low.compiled.verify([*s, g])


@pytest.mark.parametrize("shape", [(8, 6, 4), (100, 784, 10), (130, 70, 97), (33, 300, 200)])
def test_a_step_of_descent(shape):
    rows, inner, out = shape
    step, plain = flowc.jit(descend, donate_argnames="w"), flowc.jit(descend)
    w, x, y = normal(0, inner, out), normal(1, rows, inner), normal(2, rows, out)
    for _ in range(3):
        before = w.copy()
        loss, new = step(w, x, y)
        want = plain(before, x, y)
        assert np.array_equal(loss, want[0]) and np.array_equal(new, want[1])
        assert new is w or np.array_equal(w, before)
        w = new
    report = flowc.verify(step, w, x, y)
    assert report, report


@settings(max_examples=40)
@given(shape=st.sampled_from([(), (5,), (0,), (3, 4), (40, 50), (4000,)]), data=st.data(), dynamic=st.booleans(),
       dtype=st.sampled_from(["float32", "float64", "int32", "bool", "float16"]))
def test_any_function(shape, data, dynamic, dtype):
    """Elementwise, transposed, reversed, reduced and exchanged reads of donated arguments: never a wrong result."""
    rules = {
        "same": lambda x, y: x + y, "swap": lambda x, y: y, "flip": lambda x, y: x[..., ::-1] if x.ndim else x,
        "turn": lambda x, y: x.T + 0 * y if x.ndim == 2 and x.shape[0] == x.shape[1] else x * y,
        "sum": lambda x, y: x + fnp.sum(y).astype(x.dtype), "roll": lambda x, y: fnp.roll(x, 1),
        "cum": lambda x, y: fnp.cumsum(x, axis=0).astype(x.dtype) if x.ndim else x,
        "sort": lambda x, y: fnp.sort(x) if x.ndim else x,
        "max": lambda x, y: fnp.maximum(x, fnp.max(y)) if 0 not in x.shape else y,
    }
    if dtype == "bool":
        rules = {"same": lambda x, y: x | y, "swap": rules["swap"], "flip": rules["flip"], "roll": rules["roll"]}
    chosen = [rules[data.draw(st.sampled_from(sorted(rules)))] for _ in range(data.draw(st.integers(1, 3)))]

    def fn(x, y, z):
        return tuple(r(*pair) for r, pair in zip(chosen, [(x, y), (y, x), (x, z)], strict=False))
    args = [(normal(i, *shape) * 3).astype(dtype) for i in range(3)]
    args = [a.reshape(shape) for a in args]
    want = flowc.jit(fn, dynamic=dynamic)(*[a.copy() for a in args])
    step = flowc.jit(fn, donate_argnums=(0, 1), dynamic=dynamic)
    for _ in range(2):
        given_ = [a.copy() for a in args]
        got = step(*given_)
        for a, b in zip(got, want, strict=True):
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        assert np.array_equal(given_[2], args[2])
        assert not any(np.shares_memory(a, b) for i, a in enumerate(got) for b in got[:i])


class TestArraysThatCannotBeUsed:
    @pytest.fixture
    def step(self):
        f = flowc.jit(lambda x, y: x * 2 + y, donate_argnums=0)
        for _ in range(2):
            f(normal(0, 64), normal(1, 64))
        return f

    def check(self, step, x, y, kept):
        before, want = x.copy(), x * 2 + y
        r = step(x, y)
        assert np.array_equal(r, want)
        assert np.array_equal(x, before) == kept and (r is x) != kept

    def test_usable(self, step):
        self.check(step, normal(0, 64), normal(1, 64), False)

    def test_read_only(self, step):
        x = normal(0, 64)
        x.flags.writeable = False
        self.check(step, x, normal(1, 64), True)

    def test_the_same_twice(self, step):
        x = normal(0, 64)
        self.check(step, x, x, True)

    def test_overlapping(self, step):
        base = normal(0, 100)
        self.check(step, base[:64], base[36:], True)
        self.check(step, base[36:], base[:64], True)

    def test_side_by_side(self, step):
        base = normal(0, 128)
        self.check(step, base[:64], base[64:], False)

    def test_strided(self, step):
        self.check(step, normal(0, 128)[::2], normal(1, 64), True)

    def test_other_sizes(self, step):
        for n in (10, 0, 1, 5000):
            x = normal(0, n)
            want = x * 2 + 1
            assert np.array_equal(step(x, np.ones(n, np.float32)), want)


def test_an_argument_that_is_a_result_is_kept():
    f = flowc.jit(lambda x: (x, x + 1), donate_argnums=0)
    for _ in range(2):
        x = normal(0, 50)
        a, b = f(x)
        assert np.array_equal(a, normal(0, 50)) and np.array_equal(b, normal(0, 50) + 1) and b is not x


def test_later_readers_keep_it():
    """The product needs all of x after the first result has been written, or beside it."""
    def fn(x):
        y = x + 1
        return y, (y @ x).sum() * x
    f = flowc.jit(fn, donate_argnums=0)
    x = normal(0, 40, 40)
    for got, want in zip(f(x.copy()), flowc.jit(fn)(x), strict=True):
        assert np.array_equal(got, want)


def test_other_devices_leave_arguments_alone():
    f = flowc.jit(lambda x: x + 1, donate_argnums=0, device="interpreter")
    x = normal(0, 9)
    assert np.array_equal(f(x), normal(0, 9) + 1) and np.array_equal(x, normal(0, 9))


def test_plans_print_and_read_back():
    f = flowc.jit(adam, donate_argnums=0)
    plan = f.lower(state(), normal(9, 1000)).compile().compiled.program.plan
    assert parse.parse_plan(text.plan_text(plan)) == plan


def test_with_and_without_are_kept_apart(tmp_path):
    with flowc.options(cache_dir=str(tmp_path)):
        x = normal(0, 30)
        assert flowc.jit(lambda x: x + 1)(x) is not x
        assert flowc.jit(lambda x: x + 1, donate_argnums=0)(x) is x


def test_what_is_read_in_place():
    i, j, b = sym("i"), sym("j"), Builder()

    def kernel(store, load, extra=(), extents=(8, 8)):
        s = Store("y", store, b.load("x", load, f32))
        return Kernel("k", (Buffer("x", f32, (64,)), Buffer("y", f32, (64,), "out")), (), (
            *extra, Loop("i", extents[0], "parallel", (Loop("j", extents[1], "seq", (s,)),))))
    assert overwrites(kernel(8 * i + j, 8 * i + j), "x", "y")
    assert not overwrites(kernel(8 * i + j, 8 * i + 7 - j), "x", "y")
    assert not overwrites(kernel(dmin(8 * i + j, 60), dmin(8 * i + j, 60)), "x", "y")
    assert not overwrites(kernel(i, i), "x", "y")  # eight times the same
    earlier = (Loop("j", 64, "seq", (Store("y", j, b.load("x", j, f32)),)),)
    assert not overwrites(kernel(8 * i + j, 8 * i + j, earlier), "x", "y")


def test_names_must_exist():
    with pytest.raises(flowc.FlowcError, match="no argument 'q'"):
        flowc.jit(lambda x: x, donate_argnames="q")
