"""Convolution and pooling: every form against the interpreter, gradients, unknown sizes, the same bits for any tile.

Sizes are drawn small and odd, so that every edge of a tile, a row and an image is met.
"""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc import nn
from flowc.backends.runtime import InterpreterExecutable
from flowc.passes import convolve
from flowc.passes.build import BuildOptions, build
from flowc.passes.manager import PassContext
from flowc.passes.pipeline import optimise
from flowc.passes.schedule import Machine

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32]


def array(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng([seed, *shape])
    if np.dtype(dtype).kind == "i":
        return rng.integers(-9, 9, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


@st.composite
def convolutions(draw, dtypes=DTYPES, axes=(1, 2, 3)):
    """(x, w, attributes): anything that gives at least one result per image."""
    rank, groups = draw(st.sampled_from(axes)), draw(st.sampled_from([1, 1, 1, 2, 3]))
    most = {1: 70, 2: 20, 3: 7}[rank]
    taps = [draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)]
    dilation = tuple(draw(st.integers(1, 3)) for _ in taps)
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in taps)
    least = [max(1, (t - 1) * d + 1 - sum(p)) for t, d, p in zip(taps, dilation, padding)]
    size = [draw(st.integers(n, max(n, most))) for n in least]
    channels, rows = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    x = (draw(st.sampled_from([1, 2, 3, 17])), channels * groups, *size)
    attrs = {"stride": tuple(draw(st.integers(1, 3)) for _ in taps), "padding": padding, "dilation": dilation,
                "groups": groups}
    dtype = draw(st.sampled_from(dtypes))
    return array(x, dtype), array((rows * groups, channels, *taps), dtype), attrs


@settings(max_examples=25)
@given(convolutions())
def test_convolution(case):
    x, w, attrs = case
    report = flowc.verify(lambda x, w: nn.conv(x, w, **attrs), x, w)
    assert report, report


@settings(max_examples=25)
@given(convolutions([np.float32]))
def test_what_is_around_a_convolution(case):
    """Producers of both operands, a bias, a residual and two results."""
    x, w, attrs = case

    def f(x, w, b):
        y = nn.conv(fnp.maximum(x, 0.25), w * 2, b, **attrs)
        return nn.relu(y + 1), fnp.sum(y, axis=1)
    report = flowc.verify(f, x, w, array((w.shape[0],)))
    assert report, report


@settings(max_examples=25)
@given(convolutions([np.float64]))
def test_gradients(case):
    x, w, attrs = case
    shape = flowc.jit(lambda x, w: nn.conv(x, w, **attrs))(x, w).shape
    g = array(shape, np.float64, 1)
    report = flowc.verify(flowc.grad(lambda x, w: fnp.sum(nn.conv(x, w, **attrs) * g), argnums=(0, 1)), x, w)
    assert report, report


def test_gradients_are_derivatives():
    x, w = array((2, 3, 7, 6), np.float64), array((4, 3, 3, 2), np.float64)

    def f(x, w):
        return fnp.sum(nn.conv(x, w, stride=(2, 1), padding=1) ** 2)
    for k, g in enumerate(flowc.grad(f, argnums=(0, 1))(x, w)):
        step = array(g.shape, np.float64, 2) * 1e-6
        plus = [a + step if i == k else a for i, a in enumerate((x, w))]
        minus = [a - step if i == k else a for i, a in enumerate((x, w))]
        assert np.sum(g * step) == pytest.approx((f(*plus) - f(*minus)) / 2, rel=1e-6)


@settings(max_examples=40)
@given(convolutions([np.float64]))
def test_gradients_are_adjoint(case):
    """<g, conv(d)> is <grad, d> and <g, conv with d as kernel> too, exactly: for any stride, also where it is split."""
    x, w, attrs = case
    x, w = np.rint(x * 2), np.rint(w * 2)

    def conv(x, w):
        return nn.conv(x, w, **attrs)
    g = np.rint(array(flowc.interpret(conv, x, w).shape, np.float64, 1) * 2)
    dx, dw = np.rint(array(x.shape, np.float64, 2) * 2), np.rint(array(w.shape, np.float64, 2) * 2)
    gx, gw = flowc.interpret(flowc.grad(lambda x, w: fnp.sum(conv(x, w) * g), argnums=(0, 1)), x, w)
    assert np.sum(gx * dx) == np.sum(flowc.interpret(conv, dx, w) * g)
    assert np.sum(gw * dw) == np.sum(flowc.interpret(conv, x, dw) * g)


UNKNOWN = {"images": ("n",), "positions": (None, None, "h", "k"), "all": ("n", None, "h", "k")}


def compiled(f, x, w, unknown):
    """``f`` for x and w of which some sizes are names."""
    names = UNKNOWN[unknown]
    shape = [names[i] if i < len(names) and names[i] else n for i, n in enumerate(x.shape)]
    spec = flowc.spec(f"{flowc.types.dtype(x.dtype)}[{', '.join(map(str, shape))}]")
    return flowc.jit(f).lower(spec, w).compile()


@settings(max_examples=6)
@given(convolutions([np.float32], (1, 2)), st.sampled_from([*UNKNOWN]), st.data())
def test_unknown_sizes(case, unknown, data):
    """One compile for sizes of every kind: also smaller than the kernel, and none."""
    x, w, attrs = case

    def f(x, w):
        y = nn.conv(x, w, **attrs)
        return y, *flowc.grad(lambda x, w: fnp.sum(nn.conv(x, w, **attrs) ** 2), argnums=(0, 1))(x, w)
    exe = compiled(f, x, w, unknown)
    for most in (None, 4, 40):
        if most is not None and unknown != "images":
            x = array((*x.shape[:2], *[data.draw(st.integers(0, most)) for _ in x.shape[2:]]), seed=most)
        if most is not None and unknown != "positions":
            x = array((data.draw(st.integers(0, most)), *x.shape[1:]), seed=most)
        for got, want in zip(exe(x, w), flowc.interpret(f, x, w)):
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max(initial=1))


@pytest.mark.parametrize(("sizes", "w", "attrs"), [
    ([(1, 8, 10, 2), (3, 8, 21, 40)], (10, 4, 5, 1),                      # bindings of sizes beside the sizes
     {"stride": (2, 1), "padding": ((0, 1), (0, 2)), "dilation": (2, 1), "groups": 2}),
    ([(1, 9, 65), (2, 9, 300)], (18, 3, 1), {"padding": ((1, 3),), "groups": 3}),  # one row, several tiles
])
def test_results_of_unknown_sizes_stay_in_their_place(sizes, w, attrs):
    w = array(w)
    exe = compiled(lambda x, w: nn.conv(x, w, **attrs), array(sizes[0]), w, "all")
    assert "positions" in exe.as_text("kernel")  # the form with positions as lanes
    for x in map(array, sizes):
        np.testing.assert_allclose(exe(x, w), flowc.interpret(lambda x, w: nn.conv(x, w, **attrs), x, w), rtol=1e-4,
                                   atol=1e-4)


@pytest.mark.parametrize(("x", "w", "attrs"), [
    ((1, 64, 9, 10), (64, 64, 3, 3), {"padding": 1}),                     # several panels of channels
    ((20, 6, 14, 14), (16, 6, 5, 5), {}),                                 # in place, last tile beyond the image
    ((20, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),                      # copied by its task
    ((20, 3, 9, 9), (16, 3, 5, 5), {"stride": (2, 1), "dilation": (1, 2)}),  # a plane for each tap along the rows
    ((40, 5, 3, 3), (4, 5, 3, 3), {"padding": 1}),                        # images joined
    ((3, 4, 1, 1), (5, 4, 1, 1), {}),                                     # one position
    ((2, 3, 30, 31), (16, 3, 7, 7), {"stride": 2, "padding": 3}),         # phases
    ((2, 8, 30, 31), (8, 1, 3, 3), {"groups": 8, "padding": 1}),          # one channel per group
    ((1, 2, 40, 45), (3, 2, 33, 37), {}),                                 # a large kernel: taps are lanes
    ((2, 3, 5), (4, 3, 3), {"padding": 9}),                               # more padding than kernel
    ((2, 3, 4), (4, 3, 9), {"padding": ((7, 0),)}),
    ((2, 3, 5, 6), (4, 3, 1, 1), {"padding": ((-1, 0), (0, -2))}),        # padding that cuts
    ((1, 1, 3, 2), (1, 1, 1, 1), {"stride": 3}),
    ((48, 30, 3, 4), (96, 30, 3, 3), {"padding": 1}),                     # positions of all images in panels
    ((30, 4, 5, 7), (200, 2, 3, 2), {"groups": 2, "padding": 1, "stride": 2}),
    ((3, 90, 5, 7), (50, 90, 1, 1), {}),                                  # the same in place; gradient of one position
    ((2, 130, 4, 5), (129, 130, 1, 1), {}),
    ((2, 130, 5, 7), (129, 130, 1, 1), {"stride": 2}),
])
def test_every_form(x, w, attrs):
    x, w = array(x), array(w)
    report = flowc.verify(lambda x, w: nn.conv(x, w, **attrs), x, w)
    assert report, report
    report = flowc.verify(flowc.grad(lambda x, w: fnp.sum(nn.conv(x, w, **attrs) ** 2), argnums=(0, 1)), x, w)
    assert report, report


@settings(max_examples=20)
@given(convolutions([np.float32, np.int32]), st.booleans())
def test_positions_of_all_images_in_panels(case, named):
    """The form for small images with many channels, for images of any size; run by the interpreter of kernels."""
    x, w, attrs = case
    x, w = np.rint(x * 3), np.rint(w * 3)  # sums are exact

    def f(x, w):
        y = nn.conv(fnp.maximum(x, 0), w, **attrs)
        return nn.relu(y) + 1, fnp.sum(y, axis=1)
    spec = flowc.spec(f"{x.dtype}[{', '.join(map(str, ('n' if named else x.shape[0], *x.shape[1:])))}]")
    graph = optimise(flowc.jit(f).lower(spec, w).graph, PassContext())
    with mock.patch.object(convolve, "packs", lambda p, axes: convolve.gatherable(p)):
        program = build(graph, BuildOptions(Machine(vector_bits=256)))
    assert any("gathered positions" in n for k in program.kernels.values() for n in k.notes) or 0 in f(x, w)[0].shape
    for a, b in zip(InterpreterExecutable(program).run([x, w], {"n": x.shape[0]}), flowc.interpret(f, x, w)):
        np.testing.assert_array_equal(a, b)


def test_gathered_positions_have_the_bits_of_rows():
    x, w = array((5, 30, 4, 5)), array((20, 30, 3, 3))
    results = []
    for packs in (True, False):
        graph = optimise(flowc.jit(lambda x, w: nn.conv(x, w, padding=1)).lower(x, w).graph, PassContext())
        with mock.patch.object(convolve, "packs", lambda p, axes, packs=packs: packs):
            results += InterpreterExecutable(build(graph, BuildOptions(Machine()))).run([x, w], {})
    np.testing.assert_array_equal(*results)
    deep = flowc.jit(lambda x, w: nn.conv(x, w, padding=1)).lower(array((48, 30, 3, 4)), array((96, 30, 3, 3)))
    assert "gathered positions" in deep.compile().as_text("kernel")


def test_what_is_not_finite_stays_where_it_is():
    x, w = array((1, 2, 12, 13)), array((3, 2, 3, 3))
    x[0, 0, 0, 12] = x[0, 1, 5, 0] = np.inf
    for padding in (0, 1):
        report = flowc.verify(lambda x, w, p=padding: nn.conv(x, w, padding=p), x, w)
        assert report, report
    g = flowc.grad(lambda w: fnp.sum(nn.conv(x, w)))
    assert flowc.verify(g, w)


def test_no_result_and_no_channel():
    assert flowc.jit(lambda x, w: nn.conv(x, w))(array((2, 3, 2)), array((4, 3, 5))).shape == (2, 4, 0)
    empty = flowc.jit(lambda x, w: nn.conv(x, w, padding=1))(array((2, 0, 5)), array((4, 0, 3)))
    np.testing.assert_array_equal(empty, np.zeros((2, 4, 5), np.float32))


BITS = """
import sys, zlib, numpy as np, flowc, flowc.numpy as fnp
from flowc import nn
rng = np.random.default_rng(0)
def f(x, w):
    y = nn.max_pool(nn.relu(nn.conv(x, w, padding=1, stride=s)), 2)
    return fnp.sum(y ** 2)
out = 0
for s, (n, c, o, h) in ((1, (33, 3, 6, 20)), (2, (2, 16, 33, 31)), (1, (1, 64, 64, 40))):
    x, w = rng.standard_normal((n, c, h, h), np.float32), rng.standard_normal((o, c, 3, 3), np.float32)
    for r in flowc.jit(flowc.value_and_grad(f, argnums=(0, 1)))(x, w)[1]:
        out = zlib.crc32(r.tobytes(), out)
print(out)
"""


def test_same_bits_with_one_thread_and_two():
    sums = set()
    for threads in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", BITS], capture_output=True, text=True, timeout=300,
                             env={**os.environ, "FLOWC_NUM_THREADS": threads})
        assert run.returncode == 0, run.stderr
        sums.add(run.stdout)
    assert len(sums) == 1


@pytest.mark.parametrize("bits", [128, 256, 512])
def test_same_bits_for_any_width_of_vectors(bits):
    """Kernels scheduled for other machines, run by the interpreter of kernels."""
    x, w = array((2, 3, 6, 7)), array((4, 3, 3, 3))

    def f(x, w):
        return nn.conv(x, w, padding=1), flowc.grad(lambda w: fnp.sum(nn.conv(x, w) ** 2))(w)
    low = flowc.jit(f).lower(x, w)
    graph = optimise(low.graph, PassContext())
    program = build(graph, BuildOptions(Machine(vector_bits=bits)))
    got = InterpreterExecutable(program).run([x, w], {})
    for a, b in zip(got, low.compile()(x, w)):
        np.testing.assert_array_equal(a, b)


# ---- pooling --------------------------------------------------------------------------------------------------------

@settings(max_examples=25)
@given(st.data())
def test_pooling(data):
    window = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    size = [data.draw(st.integers(w, 40)) for w in window]
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16, np.int8]))
    x = array((data.draw(st.integers(1, 3)), 2, *size), np.float32)
    x = np.rint(x * 3).astype(dtype)  # with ties
    report = flowc.verify(lambda x: nn.max_pool(x, window, stride), x)
    assert report, report
    report = flowc.verify(lambda x: nn.avg_pool(x, window, stride), x.astype(np.float32))
    assert report, report
    g = flowc.grad(lambda x: fnp.sum(nn.max_pool(nn.relu(x), window, stride) ** 2))
    report = flowc.verify(g, x.astype(np.float32))
    assert report, report


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, np.bool_])
@pytest.mark.parametrize("n", [5, 16, 33, 100])
def test_lanes_at_known_distances(dtype, n):
    """Every s-th element, and every element s times."""
    x = array((3, n)) > 0 if dtype is np.bool_ else (array((3, n)) * 5).astype(dtype)
    for s in (2, 3, 4, 5):
        for f in (lambda x, s=s: x[:, ::s] == x[:, :1], lambda x, s=s: fnp.repeat(x, s, axis=1) == x[:, :1],
                  lambda x, s=s: fnp.where(x[:, ::s] == 0, x[:, ::s], x[:, :1])):
            report = flowc.verify(f, x)
            assert report, report


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4),
       st.sampled_from(["sum", "max", "mean", "argmax", "any"]))
def test_small_rows(rows, a, b, what):
    x = np.rint(array((3, rows, a, b)) * 2)

    def f(x):
        if what == "argmax":
            return fnp.argmax(x, axis=3)
        y = getattr(fnp, what)(x > 1 if what == "any" else x, axis=(2, 3))
        return y, (x == y[:, :, None, None])
    report = flowc.verify(f, x)
    assert report, report


def test_small_rows_have_the_bits_of_any_row():
    x = array((50, 3, 4)).astype(np.float32)
    few = flowc.jit(lambda x: fnp.sum(x, axis=(1, 2)))(x)
    one = np.array([flowc.jit(lambda x: fnp.sum(x, axis=(0, 1)))(r) for r in x])
    np.testing.assert_array_equal(few, one)


# ---- small images with many channels ---------------------------------------------------------------------------------

@st.composite
def small_images(draw):
    """(x, w, attributes) of convolutions for which positions are gathered, most of them."""
    rank, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.sampled_from([1, 1, 2]))
    taps = [draw(st.integers(1, 3)) for _ in range(rank)]
    attrs = {"stride": tuple(draw(st.integers(1, 2)) for _ in taps), "groups": groups,
             "padding": tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in taps)}
    size = [draw(st.integers(t, 18 if rank == 1 else 6)) for t in taps]
    x = (draw(st.integers(3, 30)), groups * draw(st.integers(1, 3)), *size)
    return array(x, np.float32), array((groups * draw(st.integers(40, 150)), x[1] // groups, *taps), np.float32), attrs


@settings(max_examples=12)
@given(small_images())
def test_positions_of_small_images(case):
    x, w, attrs = case

    def f(x, w):
        return nn.relu(nn.conv(x, w, **attrs))
    report = flowc.verify(f, x, w)
    assert report, report
    g = array(flowc.interpret(f, x, w).shape, np.float32, 1)
    report = flowc.verify(flowc.grad(lambda x, w: fnp.sum(nn.conv(x, w, **attrs) * g), argnums=(0, 1)), x, w)
    assert report, report


@pytest.mark.parametrize("moved", ["as it is", "input gradient", "turned", "rows in one set"])
def test_kernels_that_are_read_where_they_lie(moved):
    """And those that cannot be: taps in another order, rows that would push each other out of the cache."""
    channels = {"rows in one set": 1024}.get(moved, 24)
    x = array((2 if moved == "input gradient" else 8, channels, 4, 4), np.float32)
    w = array((32, channels, 1, 1) if channels == 1024 else (32, channels, 3, 3), np.float32)
    pads = 0 if channels == 1024 else 1

    def f(x, w):
        w = np.swapaxes(w, 2, 3) if moved == "turned" else w
        return nn.conv(x, w, padding=pads)

    def gradient(x, w):
        return flowc.grad(lambda x: fnp.sum(f(x, w) ** 2))(x)
    fn = gradient if moved == "input gradient" else f
    plan = flowc.jit(fn).lower(x, w).as_text("plan")
    assert ("pack the kernel" in plan) == (moved in ("turned", "rows in one set")), plan
    report = flowc.verify(fn, x, w)
    assert report, report


@pytest.mark.parametrize("case", ["positions", "images", "channels"])
def test_long_sums(case):
    """In blocks, of kernels that are moved."""
    if case == "channels":
        x, w = array((9, 160, 3, 3), np.float32), array((320, 48, 3, 3), np.float32)
        x = np.tile(x, (1, 2, 1, 1))
        report = flowc.verify(lambda x, w: nn.conv(x, np.swapaxes(w, 0, 1)[:, :, ::-1, ::-1], padding=1), x, w)
    else:
        images, size = (2, 40) if case == "positions" else (12, 14)
        x, g = array((images, 4, size, size), np.float32), array((images, 70, size, size), np.float32, 1)
        w = array((70, 4, 3, 3), np.float32)
        report = flowc.verify(flowc.grad(lambda w: fnp.sum(nn.conv(x, w, padding=1) * g)), w)
    assert report, report


@pytest.mark.parametrize(("shape", "size", "image"), [((2, 50, 61), 1, (260, 17)), ((1, 23, 29), 2, (200, 34))])
def test_tiles_that_take_turns(shape, size, image):
    """The gradient of a small kernel by large images."""
    images, inputs, outputs = shape
    x, w = array((images, inputs, *image), np.float32), array((outputs, inputs, size, size), np.float32)
    g = array((images, outputs, *(n - size + 1 for n in image)), np.float32, 1)

    def fn(x, w, g):
        return flowc.grad(lambda w: fnp.sum(nn.conv(x, w) * g))(w)
    assert "take turns" in flowc.jit(fn).lower(x, w, g).as_text("kernel")
    report = flowc.verify(fn, x, w, g)
    assert report, report
