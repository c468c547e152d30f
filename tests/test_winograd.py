"""Convolutions by minimal filtering: both sizes of tiles against the interpreter, rounding, what is not finite.

The form is forced on sizes too small for it, so that every edge of a tile, a block and an image is met.
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc import nn
from flowc.backends.runtime import InterpreterExecutable
from flowc.passes import minimal_filters
from flowc.passes.build import BuildOptions, build
from flowc.passes.manager import PassContext
from flowc.passes.minimal_filters import FILTERS, possible, summable
from flowc.passes.pipeline import optimise
from flowc.passes.schedule import Machine
from flowc.types import bf16

SIZES = [f.out for f in FILTERS]


@contextmanager
def tiles_of(size):
    """Convolutions in tiles of ``size`` results wherever that can be; 0: as their sums are written."""
    chosen = next((f for f in FILTERS if f.out == size), None)
    with (mock.patch.dict("os.environ", FLOWC_CACHE="0"),
          mock.patch.object(minimal_filters, "best_filter", lambda n: chosen if chosen and possible(n) else None),
          mock.patch.object(minimal_filters, "best_sums", lambda n: chosen if chosen and summable(n) else None)):
        yield


def array(shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


WIDE = [np.float32, np.float32, np.float64]


@st.composite
def convolutions(draw, dtypes=(*WIDE, np.float16, bf16.numpy)):
    """(x, w, attributes): three taps along the last axis and one before it, anything along a third."""
    other, groups = draw(st.booleans()), draw(st.sampled_from([1, 1, 2]))
    at = draw(st.integers(0, 1)) if other else 0
    lone = draw(st.integers(1, 3)) if other else 1
    taps = [lone, 3, 3] if at == 0 else [3, lone, 3]
    free = [i == at and other for i in range(3)]
    dilation = [draw(st.integers(1, 2)) if f else 1 for f in free]
    stride = [draw(st.integers(1, 2)) if f else 1 for f in free]
    padding = [(draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in taps]
    least = [max(1, (t - 1) * d + 1 - sum(p)) + 2 for t, d, p in zip(taps, dilation, padding)]
    size = [draw(st.integers(n, n + (6 if other else 20))) for n in least]
    first = 0 if other else 1
    channels, rows, images = draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(st.sampled_from([1, 2, 5]))
    dtype = draw(st.sampled_from(dtypes))
    attrs = {"stride": tuple(stride[first:]), "padding": tuple(padding[first:]), "dilation": tuple(dilation[first:]),
             "groups": groups}
    return (array((images, channels * groups, *size[first:]), dtype),
            array((rows * groups, channels, *taps[first:]), dtype, 1), attrs)


@settings(max_examples=6)
@given(convolutions(), st.sampled_from(SIZES))
def test_tiles(case, size):
    x, w, attrs = case

    def f(x, w):
        y = nn.conv(fnp.abs(x), w, **attrs)
        return nn.relu(y) + 1, fnp.sum(y, axis=1)
    with tiles_of(size):
        report = flowc.verify(f, x, w)
        assert report, report
        report = flowc.verify(flowc.grad(lambda x: fnp.sum(nn.conv(x, w, **attrs) ** 2)), x)
        assert report, report


@st.composite
def gradients(draw):
    """(x, w, padding, groups): three taps along two axes, whose gradient has three results along each."""
    groups = draw(st.sampled_from([1, 1, 2]))
    padding = [(draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in "yx"]
    size = [draw(st.integers(max(1, 4 - sum(p)), 20)) for p in padding]
    channels, rows, images = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([*WIDE, bf16.numpy]))
    return (array((images, channels * groups, *size), dtype), array((rows * groups, channels, 3, 3), dtype, 1),
            tuple(padding), groups)


@settings(max_examples=6)
@given(gradients(), st.sampled_from(SIZES))
def test_gradients_of_kernels(case, size):
    x, w, padding, groups = case

    def f(w, x):
        return fnp.sum(nn.conv(fnp.abs(x), w, padding=padding, groups=groups) ** 2)
    with tiles_of(size):
        exe = flowc.jit(flowc.grad(f)).lower(w, x)
        assert "sums over tiles" in exe.as_text("kernel")
        report = flowc.verify(flowc.grad(f), w, x)
        assert report, report


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_any_number_of_images(size):
    x, w = array((40, 3, 9, 10)), array((5, 3, 3, 3), seed=1)

    def gradient(w, x):
        return flowc.grad(lambda w: fnp.sum(nn.conv(x, w, padding=1) ** 2))(w)
    with tiles_of(size):
        exe = flowc.jit(gradient).lower(w, flowc.spec("f32[n, 3, 9, 10]")).compile()
        assert "16 parts" in exe.as_text("kernel")
        for n in (40, 3, 0):
            np.testing.assert_allclose(exe(w, x[:n]), flowc.interpret(gradient, w, x[:n]), rtol=1e-4, atol=0.02)


@settings(max_examples=2)
@given(convolutions(WIDE), st.sampled_from(SIZES), st.data())
def test_unknown_sizes(case, size, data):
    x, w, attrs = case
    names = ("n", None, *"hkl"[:x.ndim - 2])
    spec = flowc.spec(f"{flowc.types.dtype(x.dtype)}[{', '.join(n or str(s) for n, s in zip(names, x.shape))}]")

    def f(x, w):
        return nn.relu(nn.conv(x, w, **attrs))
    with tiles_of(size):
        exe = flowc.jit(f).lower(spec, w).compile()
        assert "minimal filtering" in exe.as_text("kernel")
        for _ in range(3):
            got, want = exe(x, w), flowc.interpret(f, x, w)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max(initial=1))
            x = array((data.draw(st.integers(0, 4)), x.shape[1],
                       *(data.draw(st.integers(3, 30)) for _ in x.shape[2:])), x.dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("of", ["results", "kernels"])
def test_same_bits_for_any_width_of_vectors(size, of):
    """Kernels scheduled for other machines, run by the interpreter of kernels; some results are not finite."""
    x, w = array((2, 2, 6, 7)), array((5, 2, 3, 3), seed=1)
    x[0, 1, 4, 4] = np.inf
    if of == "results":
        x[1, 0, 0, 0], x[1, 1, 5, 6] = np.nan, 3e38

    def f(x, w):
        y = nn.conv(x, w, padding=1)
        return y if of == "results" else fnp.sum(y * np.arange(y.shape[-1], dtype=np.float32))
    f = f if of == "results" else flowc.grad(f, argnums=1)
    graph = optimise(flowc.jit(f).lower(x, w).graph, PassContext())
    with tiles_of(size):
        results = [InterpreterExecutable(build(graph, BuildOptions(Machine(vector_bits=bits)))).run([x, w], {})[0]
                   for bits in (128, 256, 512)]
        results.append(flowc.jit(f)(x, w))
    for r in results[1:]:
        np.testing.assert_array_equal(r, results[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("of", ["results", "kernels"])
def test_what_is_not_finite_stays_where_it_is(size, of):
    def f(x, w):
        y = nn.conv(x, w, padding=1)
        return y if of == "results" else fnp.sum(y * np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape))
    f = f if of == "results" else flowc.grad(f, argnums=1)
    with tiles_of(size), np.errstate(all="ignore"):
        tiled = flowc.jit(f)
        for seed, value in enumerate([None, np.inf, -np.inf, np.nan, 3.4e38] * 2):
            rng = np.random.default_rng(seed)
            x, w = rng.standard_normal((2, 3, 13, 14), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
            a = w if seed >= 5 else x
            a[tuple(rng.integers(0, n) for n in a.shape)] = value if value is not None else 0
            got, want = tiled(x, w), flowc.interpret(f, x, w)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            np.testing.assert_array_equal(np.where(np.isinf(got), got, 0), np.where(np.isinf(want), want, 0))


@pytest.mark.parametrize(("channels", "size", "most"), [(32, 2, 1.0), (250, 2, 1.0), (64, 4, 2.7), (250, 4, 2.5)])
@pytest.mark.parametrize("data", ["normal", "after relu"])
def test_rounding_is_that_of_sums_as_written(channels, size, most, data):
    """The root of the mean square of errors, against float64, over that of the sums as written; and the largest."""
    x, w = array((1, channels, 20, 20)), array((72, channels, 3, 3), seed=1)
    x = np.maximum(x, 0) if data == "after relu" else x
    errors = []
    for how, dtype in ((0, np.float64), (0, np.float32), (size, np.float32)):
        with tiles_of(how):
            errors.append(flowc.jit(lambda x, w: nn.conv(x, w, padding=1))(x.astype(dtype), w.astype(dtype)))
    exact = errors.pop(0)
    plain, tiled = (np.abs(e - exact) for e in errors)
    assert np.sqrt(np.mean(tiled ** 2)) <= most * np.sqrt(np.mean(plain ** 2))
    assert tiled.max() <= 4 * plain.max()


@pytest.mark.parametrize(("images", "size", "most"), [(2, 2, 1.7), (2, 4, 4.5), (8, 4, 2.5)])
def test_rounding_of_sums(images, size, most):
    """The same for gradients of kernels, whose sums as written are sixteen chains side by side."""
    x, w, g = array((images, 24, 28, 28)), array((20, 24, 3, 3), seed=1), array((images, 20, 28, 28), seed=2)

    def gradient(x, w, g):
        return flowc.grad(lambda w: fnp.sum(nn.conv(x, w, padding=1) * g))(w)
    errors = []
    for how, dtype in ((0, np.float64), (0, np.float32), (size, np.float32)):
        with tiles_of(how):
            errors.append(flowc.jit(gradient)(x.astype(dtype), w.astype(dtype), g.astype(dtype)))
    exact = errors.pop(0)
    plain, tiled = (np.abs(e - exact) for e in errors)
    assert np.sqrt(np.mean(tiled ** 2)) <= most * np.sqrt(np.mean(plain ** 2))


@pytest.mark.parametrize(("x", "rows", "tiles"), [
    ((1, 64, 56, 56), 64, 4), ((8, 512, 7, 7), 512, 4), ((1, 256, 14, 14), 256, 4), ((1, 32, 56, 56), 32, 2),
    ((1, 512, 7, 7), 512, 2), ((1, 512, 4, 4), 512, 0),  # the kernel's transform would take longer than what is saved
    ((8, 3, 56, 56), 64, 0), ((64, 6, 14, 14), 16, 0),
])
def test_choice(x, rows, tiles):
    exe = flowc.jit(lambda x, w: nn.conv(x, w, padding=1)).lower(
        flowc.spec(f"f32[{', '.join(map(str, x))}]"), flowc.spec(f"f32[{rows}, {x[1]}, 3, 3]"))
    text = exe.as_text("kernel")
    assert ("minimal filtering" in text) == (tiles > 0)
    assert tiles == 0 or f"of {tiles} x {tiles}" in text


def test_it_can_be_turned_off():
    x, w = array((8, 64, 28, 28)), array((64, 64, 3, 3))

    def plan():
        return flowc.jit(lambda x, w: nn.conv(x, w, padding=1)).lower(x, w).as_text("plan")
    assert "minimal filtering" in plan()
    with flowc.options(minimal_filtering=False):
        assert "minimal filtering" not in plan()
