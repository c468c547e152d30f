"""Programs that once gave wrong results or broke the compiler, each shrunk to a few lines.

Every test names what went wrong; the general laws are tested elsewhere, with random programs.
"""

from __future__ import annotations

import numpy as np
import pytest

import flowc
from flowc.backends.interp import run_graph
from flowc.compiled import compile_graph
from flowc.diag import FlowcIndexError, FlowcTypeError, FlowcValueError
from flowc.dims import sym
from flowc.graph import Graph, constant, make, param
from flowc.passes.inline import KernelBuilder
from flowc.passes.rewriting import canonical
from flowc.types import Type, f32
from flowc.verify_kernel import check_kernel


def rand(*shape, dtype=np.float64):
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


# ---- lowering -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64, np.float16])
def test_product_over_a_symbolic_axis_that_becomes_empty(dtype):
    """The blocks of the summed axis were none, so the result was whatever lay in memory."""
    f = flowc.jit(lambda x, y: x @ y + 1, dynamic=True)
    for k in (300, 5, 0):
        x, y = np.ones((5, k), dtype), np.ones((k, 3), dtype)
        assert np.array_equal(f(x, y), np.full((5, 3), k + 1, dtype))


def test_column_kernel_writes_all_that_it_is_asked_for():
    """A value that a column reduction reads, and another kernel too, was computed there but never stored."""
    def loss(x):
        return np.sum(np.max((x * x + 1) * np.ones((3, 1)), axis=0))
    x = rand(70)
    assert flowc.verify(flowc.grad(loss), x)
    np.testing.assert_allclose(flowc.grad(loss)(x), 2 * x, rtol=1e-12)

    def several(x):
        y = x * 2 + 1
        return np.sum(np.broadcast_to(y, (5, *y.shape)), axis=0), y, np.max(np.broadcast_to(y, (5, *y.shape)), axis=0)
    for got, want in zip(flowc.jit(several, dynamic=True)(x), several(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_sizes_of_a_shared_kernel_are_not_named_like_what_stands_inside():
    """A binding inside was called d1, and so was the second size from then on: one of them stood for both."""
    k = KernelBuilder("k", {}, ("n", "m"))
    k.buffer("x", f32, (sym("n"), sym("m")), "out")
    k.let(k.b.index(sym("n") + 3), "d1", (0, None))
    with k.loop(sym("n"), "parallel") as i, k.loop(sym("m"), "seq") as j:
        k.write("x", i * sym("m") + j, k.b.cast(k.b.index(sym("d1")), f32))
    formal, actual = canonical(k.finish(("n", "m")))
    check_kernel(formal, strict=True)
    assert formal.dims == ("d0", "d2") and actual == (sym("n"), sym("m"))
    assert formal.params[0].shape == (sym("d0"), sym("d2"))


def test_bounds_of_loops_are_known_through_bindings():
    """A loop up to a binding was not known to end where the size ends that is bound."""
    k = KernelBuilder("k", {}, ("n", "m"))
    k.buffer("x", f32, (sym("n"), sym("m")), "out")
    with k.loop(sym("n"), "parallel") as i:
        end = k.let(k.b.index(sym("m") + 1), range=(0, None)).attr[0]
        with k.loop(sym(end) - 1, "vector", width=16) as j:
            k.write("x", i * sym("m") + j, k.b.const(0, f32))
    check_kernel(k.finish(("n", "m")), strict=True)


@pytest.mark.parametrize("op", ["scatter", "scatter_add"])
@pytest.mark.parametrize("axis", [0, 1])
def test_writes_at_positions_of_an_axis_that_becomes_empty(op, axis):
    """The clamped position in an empty axis was -1, and the update was written there: before the array."""
    n = sym("n")
    x = param("x", Type(f32, (n, 5) if axis == 0 else (5, n)))
    updates = param("u", Type(f32, (3, 5) if axis == 0 else (5, 3)))
    out = make(op, (x, constant(np.array([0, 1, -4])), updates), {"axis": axis})
    c = compile_graph(Graph("write", [x, updates], [out], {"n": (0, None)}), device="cpu")
    for k in c.program.kernels.values():
        check_kernel(k, strict=True)  # every position is proved to exist
    for size in (2, 0, 1):
        arrays = [np.zeros([size if d is n else d for d in t.shape], np.float32) for t in (x, updates)]
        arrays[1][...] = 1
        assert np.array_equal(c(arrays)[0], run_graph(c.source, arrays)[0])


@pytest.mark.parametrize("options", [{"fuse": False}, {"fuel": 0}, {"fuel": 1}, {"fuel": 5}, {"num_threads": 1}])
def test_options_change_no_result(options):
    def f(x, w):
        h = np.maximum(x @ w, 0)
        return np.sum(h, axis=0), np.argmax(h, axis=1), np.cumsum(h, axis=0), h.T * 2
    x, w = np.round(rand(40, 7) * 4), np.round(rand(7, 33) * 4)
    want = f(x, w)
    with flowc.options(**options):
        for a, b in zip(flowc.jit(f)(x, w), want, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("fn", [lambda x: np.sum(x, axis=0), lambda x: np.sum(x), lambda x: x @ x.T],
                         ids=["columns", "all", "product"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_verify_knows_the_rounding_of_long_sums_of_equal_numbers(fn, dtype):
    """Equal addends are all rounded the same way; correct kernels were called wrong."""
    for shape in ((64, 4096), (1000, 3)):
        report = flowc.verify(fn, np.full(shape, 0.1, dtype))
        assert report, report


# ---- sizes of later calls -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fn", [lambda x: np.diff(x), lambda x: np.sum(x[1:] - x[:-1])], ids=["diff", "slices"])
def test_a_later_size_outside_the_range_of_the_symbolic_variant(fn):
    """The symbolic variant needs n >= 1; n = 0 was refused although it has a result of its own."""
    f = flowc.jit(fn)
    for n in (5, 7, 1, 4, 9, 2):
        np.testing.assert_allclose(f(rand(n)), fn(rand(n)), atol=1e-12)
    assert np.array_equal(flowc.jit(np.diff)(rand(0)), np.diff(rand(0)))
    g = flowc.jit(lambda x: np.diff(x))
    for n in (5, 7, 0, 6, 0):
        assert g(rand(n)).shape == (max(0, n - 1),)
    assert sum(len(x.variants) for x in g.families.values()) == 3


@pytest.mark.parametrize("fn", [np.max, np.min, np.argmax, np.argmin])
def test_no_largest_of_nothing_at_a_later_call(fn):
    f = flowc.jit(lambda x: fn(x, axis=0))
    for n in (5, 7, 3):
        assert np.array_equal(f(rand(n, 2)), fn(rand(n, 2), axis=0))
    with pytest.raises(FlowcValueError, match="empty"):
        f(rand(0, 2))
    assert f(rand(4, 0)).shape == (0,)
    assert np.array_equal(f(rand(6, 2)), fn(rand(6, 2), axis=0))


def test_index_beyond_a_later_size():
    f = flowc.jit(lambda x: x[2])
    assert f(rand(5)) == rand(5)[2] and f(rand(6)) == rand(6)[2]
    for n in (2, 1, 0):
        with pytest.raises(FlowcIndexError, match="out of bounds"):
            f(rand(n))
    assert f(rand(3)) == rand(3)[2]


# ---- what belongs to a signature ------------------------------------------------------------------------------------

def test_static_values_that_python_calls_equal():
    """1, 1.0 and True are equal to Python, and so are 0.0 and -0.0; programs can tell them apart."""
    f = flowc.jit(lambda x, k: x * k[0], static_argnums=1)
    x = np.full(3, 5)
    assert f(x, (1,)).dtype == np.int64
    assert f(x, (1.0,)).dtype == np.float64
    g = flowc.jit(lambda x, k: np.copysign(x, k), static_argnums=1)
    for k in (0.0, -0.0, np.float32(0.0), np.float32(-0.0), 0.0):
        assert np.array_equal(g(np.ones(2, np.float32), k), np.copysign(np.ones(2, np.float32), k))


def test_static_nan_compiles_once():
    f = flowc.jit(lambda x, k: x + k, static_argnums=1)
    for _ in range(3):
        assert np.isnan(f(np.ones(2), float("nan"))).all()
    assert sum(len(x.variants) for x in f.families.values()) == 1


@pytest.mark.parametrize("fill", [lambda c, y: c.append(y), lambda c, y: c.update(a=y)], ids=["list", "dict"])
def test_empty_container_that_is_filled_later(fill):
    """The native call path took the same container object for the same argument."""
    f = flowc.jit(lambda x, c: x + sum(c.values() if isinstance(c, dict) else c, 0.0))
    c = [] if fill.__code__.co_names == ("append",) else {}
    x = np.ones(3)
    assert np.array_equal(f(x, c), x) and np.array_equal(f(x, c), x)
    fill(c, x * 5)
    assert np.array_equal(f(x, c), x * 6)


@pytest.mark.parametrize("x", [np.ma.array([1.0, 2.0], mask=[0, 1]), np.ones((2, 2)).view(np.matrix)],
                         ids=["masked", "matrix"])
def test_arrays_with_arithmetic_of_their_own(x):
    """Masks were dropped, and products of matrices taken element by element."""
    with pytest.raises(FlowcTypeError, match="arithmetic"):
        flowc.jit(lambda a: a * a)(x)


# ---- calls of all kinds ---------------------------------------------------------------------------------------------

def test_good_calls_after_an_exception_in_the_function():
    fail = [True]

    @flowc.jit
    def f(x):
        if fail[0]:
            raise KeyError("first")
        return x * 2
    with pytest.raises(KeyError):
        f(np.ones(3))
    fail[0] = False
    assert np.array_equal(f(np.ones(3)), np.full(3, 2.0))


def test_method_with_static_self():
    class Scale:
        def __init__(self, k):
            self.k = k

        @flowc.jit(static_argnums=0)
        def run(self, x, offset=2):
            return x * self.k + offset
    a, b = Scale(3), Scale(4)
    for n in (3, 3, 5):
        assert np.array_equal(a.run(np.ones(n)), np.full(n, 5.0))
        assert np.array_equal(b.run(np.ones(n), 1), np.full(n, 5.0))
        assert np.array_equal(b.run(np.ones(n), offset=0), np.full(n, 4.0))


def test_functions_that_call_themselves_through_another():
    @flowc.jit
    def down(x, n):
        return x if n == 0 else other(x, n - 1) + 1
    down = flowc.jit(down.fn, static_argnames="n")

    @flowc.jit
    def other(x, n):
        return down(x, n) * 2
    other = flowc.jit(other.fn, static_argnames="n")
    assert np.array_equal(down(np.ones(2), 3), np.full(2, 15.0))


def test_settings_toggled_inside_a_block():
    f = flowc.jit(lambda x: np.exp(x) * 2)
    x = np.linspace(0, 1, 9)
    want = f(x)
    with flowc.options(disable_jit=True):
        np.testing.assert_allclose(f(x), want, rtol=1e-15)
        with flowc.options(disable_jit=False):
            assert np.array_equal(f(x), want)
        np.testing.assert_allclose(f(x[:3]), want[:3], rtol=1e-15)
    assert np.array_equal(f(x), want)


def test_views_of_all_kinds_in_a_row():
    f = flowc.jit(lambda x: np.sum(x * 2, axis=-1) + np.max(x, axis=-1))
    base = rand(60, 70)
    fixed = base.copy()
    fixed.setflags(write=False)
    views = [base, base.T, base[::2, ::3], base[::-1], np.broadcast_to(base[0], (1000, 70)), np.asfortranarray(base),
             np.broadcast_to(np.float64(3), (50, 60)), base[:, :1], base.astype(">f8"), base[5:6], fixed]
    for v in (*views, *views):
        np.testing.assert_allclose(f(v), f.fn(v), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_hundred_thousand_operations_on_the_cpu():
    def f(x):
        for i in range(100_000):
            x = x + 1.0 if i % 2 else x * 0.5
        return x
    want = f(np.zeros(3))
    np.testing.assert_allclose(flowc.jit(f, device="cpu")(np.zeros(3)), want, rtol=1e-9)
