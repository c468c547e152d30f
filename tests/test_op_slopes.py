"""Operations against second sources of truth, and their derivatives against differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ops import DOT, OPS, m, n, named, pointwise, rng_for

from flowc import types as t
from flowc.dims import evaluate, sym
from flowc.graph import Node, constant, make, param, topological
from flowc.op import REGISTRY, HostCall, Op
from flowc.ops.contract import dilated
from flowc.ops.movement import matched_groups, reshaped_index
from flowc.ops.random import philox
from flowc.ops.rules import n as build
from flowc.types import Type, array_type, f32, i64

# ---- second sources -------------------------------------------------------------------------------------------------

def test_random_bits_known_answers():
    """Vectors published with Random123."""
    def words(text):
        return np.array([int(w, 16) for w in text.split()], np.uint32)

    for counter, key, want in (
            ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            ("ffffffff " * 4, "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1")):
        assert np.array_equal(philox(words(counter)[None], words(key))[0], words(want))
    bits, key = REGISTRY["random_bits"].numpy, np.zeros(2, np.uint32)
    assert [f"{v:08x}" for v in bits(key, shape=(5,), dtype=t.u32)[:4]] == "6627e8d5 e169c58d bc57ac4c 9b00dbd8".split()
    assert f"{bits(key, shape=(3,), dtype=t.u64)[1]:016x}" == "9b00dbd8bc57ac4c"
    assert np.array_equal(bits(key, shape=(4, 6), dtype=t.u32).ravel()[:7], bits(key, shape=(7,), dtype=t.u32))


def test_meanings_agree_with_other_libraries():
    special, signal = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.signal")
    x = np.linspace(-6, 6, 1001)
    for name in ("erf", "erfc", "ndtr"):
        assert np.allclose(REGISTRY[name].numpy(x), getattr(special, name)(x), rtol=1e-13, atol=0)
    assert np.allclose(REGISTRY["logistic"].numpy(x * 100), special.expit(x * 100), rtol=1e-13, atol=0)
    rng = rng_for("conv")
    a, w = rng.normal(size=(1, 1, 9, 8)), rng.normal(size=(1, 1, 3, 2))
    attrs = {"strides": (1, 1), "padding": ((0, 0),) * 2, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "groups": 1}
    assert np.allclose(REGISTRY["conv"].numpy(a, w, **attrs)[0, 0], signal.correlate(a[0, 0], w[0, 0], "valid"))
    full = REGISTRY["conv"].numpy(a, w[..., ::-1, ::-1], **attrs | {"padding": ((2, 2), (1, 1))})
    assert np.allclose(full[0, 0], signal.convolve(a[0, 0], w[0, 0], "full"))
    assert np.allclose(REGISTRY["linear_scan"].numpy(np.full(50, 0.9), a.ravel()[:50], axis=0),
                       signal.lfilter([1.0], [1.0, -0.9], a.ravel()[:50]))


def test_windows_sum_is_the_adjoint_of_windows():
    rng = rng_for("windows")
    for w, s, d, size in itertools.product((1, 2, 3), (1, 2, 4), (1, 2), (5, 6, 9)):
        attrs = {"window": (w,), "strides": (s,), "dilation": (d,)}
        x = rng.integers(-9, 9, size).astype(np.float64)
        y = REGISTRY["windows"].numpy(x, **attrs)
        g = rng.integers(-9, 9, y.shape).astype(np.float64)
        back = REGISTRY["windows_sum"].numpy(g, **attrs, shape=(size,))
        assert (g * y).sum() == (back * x).sum()
        assert np.array_equal(pointwise(REGISTRY["windows_sum"], (g,), attrs | {"shape": (size,)}), back)
        assert np.array_equal(pointwise(REGISTRY["windows"], (x,), attrs), y)


@given(st.lists(st.integers(1, 6), max_size=4), st.data())
def test_reshaped_index(sizes, data):
    """Also on symbolic sizes: cut at random into the factors of another shape."""
    total = int(np.prod(sizes))
    other, left = [], total
    while left > 1 and len(other) < 5:
        f = data.draw(st.sampled_from([k for k in range(1, left + 1) if left % k == 0]))
        other.append(f)
        left //= f
    other = data.draw(st.permutations([*other, left]))
    for at, idx in enumerate(np.ndindex(*other)):
        assert reshaped_index(idx, other, sizes) == (np.unravel_index(at, sizes) if sizes else ())
    old, new = (sym("n"), 4, sym("m")), (2, sym("n"), 2 * sym("m"))
    idx = tuple(sym(f"i{k}") for k in range(3))
    env = {"n": data.draw(st.integers(1, 5)), "m": data.draw(st.integers(1, 5))}
    found = reshaped_index(idx, new, old)
    shape = [evaluate(s, env) for s in new]
    for at, place in enumerate(np.ndindex(*shape)):
        here = tuple(evaluate(f, env | {f"i{k}": v for k, v in enumerate(place)}) for f in found)
        assert here == np.unravel_index(at, [evaluate(s, env) for s in old])


def test_reshape_divides_only_where_axes_mix():
    a, b, c = sym("a"), sym("b"), sym("c")
    assert len(matched_groups((a, b, c), (a, b * c))) == 2
    idx = tuple(sym(f"i{k}") for k in range(4))
    assert reshaped_index(idx, (1, a, 1, b), (a, b)) == (idx[1], idx[3])
    assert reshaped_index(idx[:2], (a, b), (1, a, b, 1)) == (0, idx[0], idx[1], 0)
    assert reshaped_index(idx[:3], (a, b, c), (a, b * c)) == (idx[0], c * idx[1] + idx[2])


# ---- derivatives ----------------------------------------------------------------------------------------------------

def run_graph(outputs: list[Node], feed: dict[Node, np.ndarray]) -> list[np.ndarray]:
    """Values of nodes, by the meanings of their ops."""
    value = dict(feed)
    for x in topological(outputs):
        if x not in value:
            value[x] = x.op.numpy(*[value[i] for i in x.inputs], **x.attrs)
            assert value[x].dtype == x.dtype.numpy and value[x].shape == x.shape, x
    return [value[x] for x in outputs]


def doubled(a: np.ndarray) -> np.ndarray:
    wide = {"float32": np.float64, "complex64": np.complex128}.get(a.dtype.name)
    return a if wide is None else a.astype(wide)


def smooth(a: np.ndarray) -> bool:
    return a.dtype in (np.float64, np.complex128)


def differentiable_samples(op: Op):
    """Sample calls in double precision, each shape once."""
    seen = set()
    for arrays, attrs in op.samples(rng_for(op.name)):
        arrays = tuple(map(doubled, arrays))
        key = (tuple(a.shape for a in arrays), tuple(a.dtype.name for a in arrays), str(attrs))
        if any(map(smooth, arrays)) and key not in seen and not any(a.dtype.itemsize == 2 for a in arrays):
            seen.add(key)
            out = op.infer(*map(array_type, arrays), **attrs)
            if out.dtype in (t.f64, t.c128):
                yield arrays, attrs


def slope(op: Op, arrays, attrs, tangents) -> np.ndarray:
    """Central difference along the tangents."""
    h = 1e-6
    up, down = ([a if v is None else a + s * h * v for a, v in zip(arrays, tangents, strict=True)] for s in (1, -1))
    return (op.numpy(*up, **attrs) - op.numpy(*down, **attrs)) / (2 * h)


def tangent_like(a: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    if not smooth(a):
        return None
    v = rng.normal(size=a.shape)
    return np.asarray(v + 1j * rng.normal(size=a.shape) if a.dtype.kind == "c" else v)


def cotangents(op: Op, arrays, attrs, g: np.ndarray) -> list[np.ndarray | None]:
    xs = [param(f"x{k}", array_type(a)) for k, a in enumerate(arrays)]
    y, gn = make(op, xs, attrs), param("g", array_type(g))
    parts = op.vjp(gn, y, *xs, **attrs)
    assert len(parts) == len(xs)
    for p, x in zip(parts, xs, strict=True):
        assert p is None or p.type == x.type, (op, p.type, x.type)
    feed = {gn: g, **dict(zip(xs, arrays, strict=True))}
    found = iter(run_graph([p for p in parts if p is not None], feed))
    return [None if p is None else next(found) for p in parts]


@named([op for op in OPS if op.vjp is not None and op.name != "stop_gradient"])
def test_gradients_against_differences(op: Op):
    rng, tried = rng_for("vjp " + op.name), 0
    for arrays, attrs in differentiable_samples(op):
        out = op.infer(*map(array_type, arrays), **attrs)
        g = tangent_like(np.zeros(out.shape, out.dtype.numpy), rng)
        for k, part in enumerate(cotangents(op, arrays, attrs, g)):
            v = tangent_like(arrays[k], rng)
            if v is None:
                assert part is None or not part.any()
                continue
            rise = slope(op, arrays, attrs, [v if i == k else None for i in range(len(arrays))])
            want, got = np.sum(g * rise).real, 0.0 if part is None else np.sum(part * v).real
            scale = 1 + np.abs(g * rise).sum()
            assert abs(want - got) <= 2e-6 * scale, (op, k, attrs, [a.shape for a in arrays], want, got)
            tried += 1
    assert tried or op.name in ("cast",), "no sample is differentiable"


@named([op for op in OPS if op.jvp is not None and op.name != "stop_gradient"])
def test_tangents_against_differences(op: Op):
    rng = rng_for("jvp " + op.name)
    for arrays, attrs in differentiable_samples(op):
        directions = [tangent_like(a, rng) for a in arrays]
        xs = [param(f"x{k}", array_type(a)) for k, a in enumerate(arrays)]
        ts = [None if v is None else param(f"t{k}", array_type(v)) for k, v in enumerate(directions)]
        y = make(op, xs, attrs)
        tangent = op.jvp(tuple(ts), y, *xs, **attrs)
        want = slope(op, arrays, attrs, directions)
        feed = {**dict(zip(xs, arrays, strict=True)), **{p: v for p, v in zip(ts, directions, strict=True) if p}}
        got = np.zeros_like(want) if tangent is None else run_graph([tangent], feed)[0]
        assert np.allclose(got, want, rtol=1e-5, atol=2e-6 * (1 + np.abs(want).max(initial=0))), (op, attrs)


@named([op for op in OPS if op.vjp is not None and op.name != "stop_gradient"])
def test_second_derivatives_against_differences(op: Op):
    """The derivative of ``sum(cotangents * directions)``, which every rule must give because it is made of ops."""
    from flowc.passes.autodiff import vjp
    rng = rng_for("second " + op.name)
    sample = max(differentiable_samples(op), key=lambda c: sum(a.size for a in c[0]), default=None)
    if sample is None:
        pytest.skip("no sample in double precision")
    arrays, attrs = sample
    xs = [param(f"x{k}", array_type(a)) for k, a in enumerate(arrays)]
    y = make(op, xs, attrs)
    g = tangent_like(np.zeros(y.shape, y.dtype.numpy), rng)
    gn = param("g", y.type)
    parts = [(k, p) for k, p in enumerate(op.vjp(gn, y, *xs, **attrs)) if p is not None]
    directions = {k: tangent_like(arrays[k], rng) for k, _ in parts}
    moves = {k: tangent_like(a, rng) for k, a in enumerate(arrays)}

    def feed(step: float) -> dict[Node, np.ndarray]:
        at = [a if moves[k] is None else a + step * moves[k] for k, a in enumerate(arrays)]
        return {gn: g, **dict(zip(xs, at, strict=True))}

    def total(step: float) -> float:
        values = run_graph([p for _, p in parts], feed(step))
        return sum(np.sum(v * directions[k]).real for (k, _), v in zip(parts, values, strict=True))

    found = vjp([p for _, p in parts], [constant(directions[k]) for k, _ in parts], xs)
    slopes = run_graph([p for p in found if p is not None], feed(0.0))
    moved = [k for k, p in enumerate(found) if p is not None]
    got = sum(np.sum(v * moves[k]).real for k, v in zip(moved, slopes, strict=True))
    want = (total(1e-6) - total(-1e-6)) / 2e-6
    assert abs(want - got) <= 1e-5 * (1 + abs(want) + abs(total(0.0))), (op, attrs, want, got)


@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_gradient_of_products_with_zeros(zeros):
    x = np.array([[2.0, 3.0, -1.5, 0.5], [1.0, 2.0, 3.0, 4.0]])
    x[0, :zeros] = 0
    (got,) = cotangents(REGISTRY["reduce_prod"], (x,), {"axes": (1,)}, np.ones(2))
    want = [[np.prod(np.delete(row, k)) for k in range(4)] for row in x]
    assert np.array_equal(got, want)
    g = rng_for("cumprod").integers(1, 9, x.shape).astype(float)
    (got,) = cotangents(REGISTRY["cumprod"], (x,), {"axis": 1}, g)
    want = [[sum(g[r, i] * np.prod(np.delete(x[r, :i + 1], k)) for i in range(k, 4)) for k in range(4)] for r in (0, 1)]
    assert np.allclose(got, want)


def test_gradient_is_shared_by_equal_extremes():
    x = np.array([[3.0, 1.0, 3.0, 3.0], [1.0, 2.0, 0.0, -1.0]])
    (got,) = cotangents(REGISTRY["reduce_max"], (x,), {"axes": (1,)}, np.array([3.0, 5.0]))
    assert got.tolist() == [[1, 0, 1, 1], [0, 5, 0, 0]]
    a, b = cotangents(REGISTRY["max"], (np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])), {}, np.ones(3))
    assert a.tolist() == [0, 0.5, 1] and b.tolist() == [1, 0.5, 0]


def test_gradient_at_corners_is_finite():
    a, b = cotangents(REGISTRY["pow"], (np.array([0.0, 0.0, 2.0]), np.array([0.0, 2.0, 0.0])), {}, np.ones(3))
    assert a.tolist() == [0, 0, 0] and b.tolist() == [0, 0, np.log(2)]


def test_gradient_of_overwritten_updates():
    x, v, at = np.zeros(4), np.array([1.0, 2.0, 3.0]), np.array([1, 3, 1])
    dx, _, dv = cotangents(REGISTRY["scatter"], (x, at, v), {"axis": 0}, np.array([5.0, 6.0, 7.0, 8.0]))
    assert dx.tolist() == [5, 0, 7, 0] and dv.tolist() == [0, 8, 6]


@pytest.mark.parametrize("stride, low, high, left, right, groups", [*itertools.product(
    (1, 2, 3), (0, 2), (-1, 1), (1, 2), (1, 2), (1, 2))])
def test_symbolic_convolution_gradients_have_the_operands_types(stride, low, high, left, right, groups):
    """Also where sizes are unknown: the sizes of both gradients come back in normal form."""
    x = param("x", Type(f32, (sym("b"), 2 * groups, sym("h"))))
    w = param("w", Type(f32, (3 * groups, 2, sym("k"))))
    attrs = {"strides": (stride,), "padding": ((low, high),), "lhs_dilation": (left,), "rhs_dilation": (right,),
             "groups": groups}
    y = make("conv", (x, w), attrs)
    dx, dw = y.op.vjp(param("g", y.type), y, x, w, **attrs)
    assert dx.type == x.type and dw.type == w.type


@pytest.mark.parametrize("name, types, attrs", [
    ("dot", [Type(f32, (n, m)), Type(f32, (m, 5))], DOT),
    ("reshape", [Type(f32, (n, 6))], {"shape": (2, n, 3)}),
    ("slice", [Type(f32, (n,))], {"start": (1,), "stop": (n - 1,), "step": (2,)}),
    ("update_slice", [Type(f32, (n,)), Type(f32, (m,))], {"start": (1,), "step": (3,)}),
    ("pad", [Type(f32, (n, m)), Type(f32)], {"low": (2, 0), "high": (m, 1)}),
    ("concatenate", [Type(f32, (n, 2)), Type(f32, (m, 2))], {"axis": 0}),
    ("gather", [Type(f32, (n, 4)), Type(i64, (m, 2))], {"axis": 0}),
    ("scatter", [Type(f32, (n, 4)), Type(i64, (m, 2)), Type(f32, (m, 2, 4))], {"axis": 0}),
    ("windows", [Type(f32, (n, m))], {"window": (3, 2), "strides": (2, 1), "dilation": (1, 2)}),
    ("reduce_prod", [Type(f32, (n, 3, m))], {"axes": (0, 2)}),
    ("reduce_max", [Type(f32, (n, m))], {"axes": (0,)}),
    ("cumprod", [Type(f32, (n, m))], {"axis": 0}),
    ("sort", [Type(f32, (n, m))], {"axis": 0}),
    ("broadcast", [Type(f32, (n,))], {"shape": (m, n, 2), "axes": (1,)}),
])
def test_symbolic_gradients_have_the_operands_types(name, types, attrs):
    xs = [param(f"x{k}", x) for k, x in enumerate(types)]
    y = make(name, xs, attrs)
    for part, x in zip(y.op.vjp(param("g", y.type), y, *xs, **attrs), xs, strict=True):
        assert part is None or part.type == x.type


def test_host_calls_are_few():
    assert {op.name for op in OPS if isinstance(op.lower, HostCall)} == {"real", "imag", "conj"}


def test_helpers():
    assert dilated(5, 3) == 13 and dilated(sym("n"), 1) == sym("n")
    x = param("x", Type(t.bf16, (2,)))
    (value,) = run_graph([build.mul(2.0, x)], {x: np.array([1, 3]).astype(t.bf16.numpy)})
    assert value.astype(float).tolist() == [2, 6] and constant(1.0).dtype is t.f64
