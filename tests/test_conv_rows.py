"""Convolutions of one output channel per group: rows as lanes, and their gradients, against the interpreter.

Sizes are drawn so that rows are shorter and longer than vectors, blocks of rows end early, and taps reach beyond.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc import nn
from flowc.backends.runtime import InterpreterExecutable
from flowc.passes.build import BuildOptions, build
from flowc.passes.convolve_rows import FEW, TOGETHER, met
from flowc.passes.manager import PassContext
from flowc.passes.pipeline import optimise
from flowc.passes.schedule import Machine

IN_PLACE = "input in place"


def array(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng([seed, *shape])
    if np.dtype(dtype).kind == "i":
        return rng.integers(-9, 9, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


@st.composite
def cases(draw, dtypes=(np.float32, np.float64, np.int32)):
    """(x, w, attributes) of convolutions with one output channel per group."""
    rank, groups = draw(st.sampled_from([2, 2, 3])), draw(st.integers(1, 18))
    taps = [draw(st.integers(1, 2)) for _ in range(rank - 2)] + [draw(st.integers(1, 5)) for _ in range(2)]
    dilation = tuple(draw(st.sampled_from([1, 1, 2])) for _ in taps)
    stride = (*(draw(st.integers(1, 2)) for _ in taps[1:]), 1)
    padding = tuple((draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in taps)
    least = [max(1, (t - 1) * d + 1 - sum(p)) + 2 for t, d, p in zip(taps, dilation, padding)]
    size = [draw(st.integers(n, n + most)) for n, most in zip(least, (2, 16, 40)[-rank:])]
    dtype, images = draw(st.sampled_from(dtypes)), draw(st.integers(1, 3))
    channels = draw(st.integers(1, 2))
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return array((images, channels * groups, *size), dtype), array((groups, channels, *taps), dtype, 1), attrs


@settings(max_examples=15, deadline=None)
@given(cases())
def test_rows_as_lanes(case):
    x, w, attrs = case
    report = flowc.verify(lambda x, w: fnp.maximum(nn.conv(x, w, **attrs), 0), x, w)
    assert report, report


@settings(max_examples=15, deadline=None)
@given(cases((np.float32, np.float64)))
def test_gradients(case):
    x, w, attrs = case
    report = flowc.verify(flowc.grad(lambda x, w: fnp.sum(nn.conv(x, w, **attrs) ** 2), argnums=(0, 1)), x, w)
    assert report, report


def notes(fn, *args):
    return [s.note for s in flowc.jit(fn).lower(*args).compile().compiled.program.plan.steps]


@pytest.mark.parametrize(("size", "taps", "images"), [(7, 3, 2), (14, 5, 1), (30, 3, 1), (9, 7, 2)])
def test_small_maps_are_not_copied(size, taps, images):
    x, w = array((images, 20, size, size)), array((20, 1, taps, taps))

    def conv(x, w):
        return nn.conv(x, w, padding=taps // 2, groups=20)
    backward = flowc.grad(lambda x, w: fnp.sum(conv(x, w) ** 2), argnums=(0, 1))
    for fn, count in ((conv, 1), (backward, 3)):
        found = notes(fn, x, w)
        assert sum(IN_PLACE in n for n in found) == count and not any("padding" in n for n in found), found
        assert flowc.verify(fn, x, w)


def test_few_rows_at_once_where_the_input_comes_from_memory():
    def rows(images):
        x, w = flowc.spec(f"f32[{images}, 64, 40, 40]"), flowc.spec("f32[64, 1, 3, 3]")
        (note,) = notes(lambda x, w: nn.conv(x, w, padding=1, groups=64), x, w)
        return note
    assert f"{TOGETHER} rows" in rows(1) and f"{FEW} rows" in rows(32)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 3), st.integers(0, 20), st.integers(0, 40), st.integers(1, 4))
def test_unknown_sizes(images, height, width, taps):
    def conv(x, w):
        return nn.relu(nn.conv(x, w, padding=2, groups=5))
    x, w = array((images, 5, height, width)), array((5, 1, taps, 3))
    exe = flowc.jit(conv).lower(flowc.spec("f32[n, 5, h, k]"), w).compile()
    np.testing.assert_allclose(exe(x, w), flowc.interpret(conv, x, w), rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_goes_where_it_is_read():
    x, w, g = array((2, 17, 9, 21)), array((17, 1, 3, 3)), array((2, 17, 9, 21), seed=1)
    x[0, 3, 4, 20], x[1, 5, 0, 0], w[7, 0, 1, 1], g[0, 9, 8, 20] = np.nan, np.inf, -np.inf, np.nan

    def f(x, w):
        return nn.conv(x, w, padding=1, groups=17)
    both = flowc.grad(lambda x, w: fnp.sum(f(x, w) * g), argnums=(0, 1))
    for fn in (f, both):
        for got, want in zip(flowc.jit(fn)(x, w), flowc.interpret(fn, x, w)):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [128, 256, 512])
def test_same_bits_for_any_width_of_vectors(bits):
    x, w = array((2, 16, 6, 19)), array((16, 1, 3, 3))

    def f(x, w):
        return flowc.grad(lambda x, w: fnp.sum(nn.conv(x, w, padding=1, groups=16) ** 2), argnums=(0, 1))(x, w)
    low = flowc.jit(f).lower(x, w)
    program = build(optimise(low.graph, PassContext()), BuildOptions(Machine(vector_bits=bits)))
    got = InterpreterExecutable(program).run([x, w], {})
    for a, b in zip(got, low.compile()(x, w)):
        np.testing.assert_array_equal(a, b)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))
def test_rows_meet_taps_in_order(rows, stride, taps, step):
    """Every row of results meets its taps in order: what is added up is the chain of the sum as written."""
    seen = {row: [tap for _, pairs in met(rows, stride, taps, step) for r, tap in pairs if r == row]
            for row in range(rows)}
    assert seen == {row: list(range(taps)) for row in range(rows)}
