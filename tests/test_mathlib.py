"""The functions of mathlib as compiled: error in ulp, special values, equal bits at every number of lanes.

References are NumPy's functions two steps wider: f64 for f32, the C long double for f64; where that is no wider than
f64 the f64 tests are left out.  erf and erfc in long double come from a series and a continued fraction written here.
"""

from __future__ import annotations

import ctypes
import math
import re
from functools import cache

import numpy as np
import pytest

from flowc.backends.llvm import engine, mathlib, mathlib_parts
from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.target import cpu_target, nvptx_target
from flowc.dims import sym
from flowc.kernel import INSTRS, Buffer, Builder, Kernel, Loop, Store
from flowc.types import DType, bf16, f16, f32, f64, i32, i64

WIDER = np.finfo(np.longdouble).nmant > 60
NAMES = sorted(mathlib.MAX_ULP)
UNARY = [name for name in NAMES if INSTRS[name].arity == 1]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 1.5, -1.5, 10.0, 1e-30,
           -1e-30, 1e30, -1e30, 4.0, 100.0, -100.0, 89.0, -104.0]
EDGES = {f32: [1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 16777215.0, 16777216.0, 88.72284, -103.97208],
         f64: [5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -1.7976931348623157e308, 2.0**53 - 1,
               2.0**53, 709.782712893384, -745.1332191019411, 6381956970095103 * 2.0**797, 1e22]}
NUMPY = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh",
         "atanh": "arctanh", "atan2": "arctan2", "pow": "power"}
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
TARGET = cpu_target(*engine.host())
OLDER = cpu_target(*engine.host()[:4], 20)  # AVX-512 scales by an intrinsic of its own
PLAIN = cpu_target(engine.host()[0], "x86-64-v3", "", 256)  # without AVX-512: scaling by two products
HALVES = cpu_target(engine.host()[0], "x86-64-v3", "+avx2", 256)  # tables by two permutations

b = Builder()


@cache
def compiled(name: str, d: DType, width: int, target=TARGET) -> engine.Code:
    """z[i] = name(x0[i], ...), in vectors of ``width``."""
    n, i = sym("n"), sym("i")
    arity = INSTRS[name].arity
    xs = [b.load(f"x{k}", i, i32 if name == "ldexp" and k else d) for k in range(arity)]
    value = b.ldexp(*xs) if name == "ldexp" else b.emit(name, *xs)
    kernel = Kernel("k", (*[Buffer(f"x{k}", x.dtype, (n,)) for k, x in enumerate(xs)], Buffer("z", d, (n,), "out")),
                    ("n",), (Loop("i", n, "vector" if width > 1 else "seq", (Store("z", i, value),), width),))
    module = Module()
    emit_kernel(kernel, module, target, "k")
    return engine.compile_module(module.text())


def evaluate(name: str, d: DType, *xs: np.ndarray, width: int = 16, target=TARGET) -> np.ndarray:
    xs = tuple(map(np.ascontiguousarray, xs))
    z = np.empty_like(xs[0])
    slots = np.array([a.ctypes.data for a in (*xs, z)] + [z.size], np.int64)
    CALL(compiled(name, d, width, target).address("k"))(slots.ctypes.data, 0, 1)
    return z


def samples(d: DType, seed: int, count: int) -> np.ndarray:
    """Special values, random bits, and random numbers where functions bend."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << d.bits, count, np.uint64).astype(f"u{d.bytes}").view(d.numpy)
    parts = [SPECIAL, EDGES[d], rng.uniform(-1, 1, count), rng.uniform(-4, 4, count), rng.uniform(0.4, 2.5, count),
             rng.uniform(-120, 120, count), rng.uniform(-750, 750, count // 2), rng.uniform(-1e5, 1e5, count // 2),
             rng.uniform(-1, 1, count // 2) * 2.0 ** rng.uniform(-40, 0, count // 2),
             np.arange(-500, 500) * (math.pi / 4)]
    with np.errstate(over="ignore"):
        return np.concatenate([np.concatenate(parts).astype(d.numpy), bits])


def pairs(d: DType, name: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of special values, then random ones."""
    grid = np.array(SPECIAL + EDGES[d])
    rng = np.random.default_rng(seed)
    x = np.concatenate([np.repeat(grid, grid.size), rng.uniform(0, 10, count), rng.uniform(0.9, 1.1, count),
                        rng.normal(0, 3, count)])
    y = np.concatenate([np.tile(grid, grid.size), rng.uniform(-20, 20, count), rng.uniform(-700, 700, count),
                        np.round(rng.normal(0, 5, count))])
    random = samples(d, seed + 1, count // 2)
    with np.errstate(over="ignore"):
        return (np.concatenate([x.astype(d.numpy), random]),
                np.concatenate([y.astype(d.numpy), rng.permutation(random)]))


def erfc_long(x: np.ndarray, by: int = 1) -> np.ndarray:
    """erfc(x / sqrt(by)) for x >= 1 by the continued fraction of Laplace, with exp(-x*x / by) taken in two parts."""
    x = x.astype(np.longdouble)
    high = x.astype(np.float32).astype(np.longdouble)
    bell = np.exp(-high * high / by) * np.exp(-(x - high) * (x + high) / by)
    x = x / np.sqrt(np.longdouble(by))
    t = np.zeros_like(x)
    for k in range(400, 0, -1):
        t = np.longdouble(k) / 2 / (x + t)
    return bell / np.sqrt(np.arctan(np.longdouble(1)) * 4) / (x + t)


def erf_long(x: np.ndarray) -> np.ndarray:
    """erf for |x| <= 2 by its series of positive terms."""
    x = x.astype(np.longdouble)
    term = total = x
    for k in range(1, 90):
        term = term * (2 * x * x) / (2 * k + 1)
        total = total + term
    return total * np.exp(-x * x) * 2 / np.sqrt(np.arctan(np.longdouble(1)) * 4)


def reference(name: str, d: DType, *xs: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64 if d is f32 else np.longdouble) for x in xs]
        if name not in ("erf", "erfc", "ndtr"):
            return getattr(np, NUMPY.get(name, name))(*wide)
        by = 2 if name == "ndtr" else 1
        x = wide[0].astype(np.longdouble)
        a = np.minimum(np.abs(x), 110)
        tail = erfc_long(np.maximum(a, 1), by)
        a = a / np.sqrt(np.longdouble(by))
        small = erf_long(np.minimum(a, 2))
        if name == "ndtr":
            out = np.where(x > 0, np.where(a < 1, 1 + small, 2 - tail), np.where(a < 1, 1 - small, tail)) / 2
        elif name == "erf":
            out = np.copysign(np.where(a < 1, small, 1 - tail), x)
        else:
            out = np.where(x < 0, np.where(a < 1, 1 + small, 2 - tail), np.where(a < 1, 1 - small, tail))
        return np.where(np.isnan(x), np.nan, out)


def errors(z: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Error in ulp; infinite where NaN, infinity or sign differ."""
    with np.errstate(all="ignore"):
        near = want.astype(z.dtype)
        out = (np.abs(z.astype(want.dtype) - want) / np.spacing(np.abs(near)).astype(want.dtype)).astype(np.float64)
        wrong = (np.isnan(z) != np.isnan(near)) | (np.isinf(z) != np.isinf(near)) & (out > 1)
        wrong |= (np.signbit(z) != np.signbit(near)) & ~np.isnan(near)
    out[~np.isfinite(out)] = 0
    # the largest float against infinity is an error like any other
    over = np.isinf(z) != np.isinf(near)
    out[over & ~wrong] = 0.5
    out[wrong] = np.inf
    return out


def arguments(name: str, d: DType, count: int) -> tuple[np.ndarray, ...]:
    return pairs(d, name, 1, count) if INSTRS[name].arity == 2 else (samples(d, 1, count),)


@pytest.mark.parametrize("name", NAMES)
def test_error_of_f32(name):
    xs = arguments(name, f32, 40000)
    e = errors(evaluate(name, f32, *xs), reference(name, f32, *xs))
    worst = int(np.argmax(e))
    assert e[worst] <= mathlib.MAX_ULP[name][0], (e[worst], [x[worst] for x in xs])


@pytest.mark.skipif(not WIDER, reason="long double is no wider than f64 here")
@pytest.mark.parametrize("name", NAMES)
def test_error_of_f64(name):
    xs = arguments(name, f64, 4000 if name in ("erf", "erfc", "ndtr") else 20000)
    e = errors(evaluate(name, f64, *xs, width=8), reference(name, f64, *xs))
    worst = int(np.argmax(e))
    assert e[worst] <= mathlib.MAX_ULP[name][1], (e[worst], [x[worst] for x in xs])


@pytest.mark.parametrize("d", [f32, f64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_lanes_and_machines_agree(name, d):
    """One text, one result: scalar, any width, with and without an instruction that scales."""
    xs = arguments(name, d, 300)
    want = evaluate(name, d, *xs, width=1)
    nan = np.isnan(want)
    for width, target in ((4, TARGET), (16, TARGET), (32, TARGET), (8, PLAIN), (1, PLAIN), (32, OLDER), (16, HALVES)):
        got = evaluate(name, d, *xs, width=width, target=target)
        assert ((got.view(f"u{d.bytes}") == want.view(f"u{d.bytes}")) | nan & np.isnan(got)).all(), (width, target.cpu)


@pytest.mark.parametrize("d", [f16, bf16], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_small_floats_round_the_f32_result(name, d):
    x = np.arange(1 << 16, dtype=np.uint16).view(d.numpy)
    with np.errstate(all="ignore"):
        want = evaluate(name, f32, x.astype(np.float32)).astype(d.numpy)
    got = evaluate(name, d, x)
    assert ((got.view(np.uint16) == want.view(np.uint16)) | (np.isnan(got) & np.isnan(want))).all()


# ---- exact results --------------------------------------------------------------------------------------------------

EXACT = [
    ("exp", 0.0, 1.0), ("exp", -np.inf, 0.0), ("exp", np.inf, np.inf), ("exp", 1000.0, np.inf), ("exp", -1000.0, 0.0),
    ("exp2", 10.0, 1024.0), ("exp2", -3.0, 0.125), ("expm1", -np.inf, -1.0), ("expm1", -0.0, -0.0),
    ("log", 0.0, -np.inf), ("log", -0.0, -np.inf), ("log", 1.0, 0.0), ("log", -1.0, np.nan), ("log", np.inf, np.inf),
    ("log2", 8.0, 3.0), ("log2", 0.25, -2.0), ("log10", 1.0, 0.0), ("log1p", -1.0, -np.inf), ("log1p", -0.0, -0.0),
    ("log1p", -1.5, np.nan), ("sin", -0.0, -0.0), ("sin", np.inf, np.nan), ("cos", 0.0, 1.0), ("cos", -np.inf, np.nan),
    ("tan", -0.0, -0.0), ("tan", np.inf, np.nan), ("asin", 2.0, np.nan), ("asin", -0.0, -0.0), ("acos", 1.0, 0.0),
    ("acos", -2.0, np.nan), ("atan", -0.0, -0.0), ("sinh", -0.0, -0.0), ("sinh", -np.inf, -np.inf),
    ("cosh", -np.inf, np.inf), ("tanh", -0.0, -0.0), ("tanh", np.inf, 1.0), ("tanh", -np.inf, -1.0),
    ("asinh", -0.0, -0.0), ("asinh", -np.inf, -np.inf), ("acosh", 1.0, 0.0), ("acosh", 0.5, np.nan),
    ("acosh", -3.0, np.nan), ("acosh", np.inf, np.inf), ("atanh", 1.0, np.inf), ("atanh", -1.0, -np.inf),
    ("atanh", 1.5, np.nan), ("erf", -0.0, -0.0), ("erf", np.inf, 1.0), ("erf", -np.inf, -1.0), ("erfc", np.inf, 0.0),
    ("erfc", -np.inf, 2.0), ("erfc", 0.0, 1.0), ("ndtr", np.inf, 1.0), ("ndtr", -np.inf, 0.0),
    ("ndtr", 0.0, 0.5), ("ndtr", -0.0, 0.5), ("cbrt", -27.0, -3.0), ("cbrt", -0.0, -0.0), ("cbrt", np.inf, np.inf),
]


@pytest.mark.parametrize("d", [f32, f64], ids=str)
@pytest.mark.parametrize(("name", "x", "want"), EXACT)
def test_exact_values(name, x, want, d):
    got = evaluate(name, d, np.array([x, x, x], d.numpy))[0]
    assert np.isnan(got) if np.isnan(want) else (got == want and np.signbit(got) == np.signbit(want))


@pytest.mark.parametrize("d", [f32, f64], ids=str)
@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_special_pairs_are_those_of_c(name, d):
    """Every pair of special values against the C library's function; values within the bound, the rest exactly."""
    grid = np.array(SPECIAL + EDGES[d], d.numpy)
    x, y = np.repeat(grid, grid.size), np.tile(grid, grid.size)
    fn = {"pow": np.power, "atan2": np.arctan2}[name]
    with np.errstate(all="ignore"):
        want = fn(x.astype(np.float64), y.astype(np.float64)).astype(d.numpy)
        got = evaluate(name, d, x, y)
        near = np.abs(got - want) <= 3 * np.spacing(np.abs(want))
    same = (got == want) & (np.signbit(got) == np.signbit(want)) | np.isnan(got) & np.isnan(want) | near
    assert same.all(), [(x[k], y[k], got[k], want[k]) for k in np.flatnonzero(~same)]


def test_every_nan_stays_nan():
    for d in (f32, f64):
        for name in UNARY:
            assert np.isnan(evaluate(name, d, np.full(5, np.nan, d.numpy))).all(), name


def test_ldexp_rounds_once():
    """Against Python's own, also for subnormal arguments and results, on both ways to scale."""
    rng = np.random.default_rng(0)
    for d, most in ((f32, 330), (f64, 2300)):
        x = samples(d, 5, 2000)
        n = rng.integers(-most, most, x.size).astype(np.int32)
        with np.errstate(all="ignore"):
            want = np.ldexp(x, n)
        for target, width in ((TARGET, 16), (PLAIN, 16), *((OLDER, w) for w in (1, 2, 4, 8, 16, 32, 64))):
            got = evaluate("ldexp", d, x, n, target=target, width=width)
            same = (got.view(f"u{d.bytes}") == want.view(f"u{d.bytes}")) | np.isnan(got) & np.isnan(want)
            assert same.all(), (d, target.cpu, x[~same][:3], n[~same][:3], got[~same][:3], want[~same][:3])


@pytest.mark.parametrize("length", [8, 16])
@pytest.mark.parametrize("d", [f32, f64], ids=str)
def test_lookup_takes_the_low_bits_of_the_index(d, length):
    """On every machine and at every width the element of the table."""
    n, i = sym("n"), sym("i")
    index = {f32: i32, f64: i64}[d]
    table = tuple(np.random.default_rng(3).normal(size=length).astype(d.numpy).tolist())
    x = np.random.default_rng(4).integers(-1000, 1000, 83).astype(index.numpy)
    for target in (TARGET, OLDER, HALVES, PLAIN):
        for width in (1, 2, 4, 16, 64):
            value = mathlib_parts.lookup(b, b.load("x", i, index), table, d)
            kernel = Kernel("k", (Buffer("x", index, (n,)), Buffer("z", d, (n,), "out")), ("n",),
                            (Loop("i", n, "vector" if width > 1 else "seq", (Store("z", i, value),), width),))
            module = Module()
            emit_kernel(kernel, module, target, "k")
            z = np.empty(x.size, d.numpy)
            slots = np.array([x.ctypes.data, z.ctypes.data, x.size], np.int64)
            code = engine.compile_module(module.text())
            CALL(code.address("k"))(slots.ctypes.data, 0, 1)
            np.testing.assert_array_equal(z, np.array(table, d.numpy)[x % length])


def test_every_function_has_a_bound_and_both_precisions():
    assert set(mathlib.MAX_ULP) == {name for name, row in INSTRS.items() if "mathlib" in row.doc} | {"pow", "atan2"}
    assert all((name, d) in mathlib.EXPAND for name in NAMES for d in ("f32", "f64"))


def test_gpu_text_is_the_same_arithmetic():
    """The GPU runs the same constants and operations, one lane at a time."""
    n, i = sym("n"), sym("i")
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("i", n, "seq", (Store("z", i, b.log(b.load("x", i, f32))),)),))
    texts = []
    for target in (nvptx_target(), PLAIN):
        module = Module()
        emit_kernel(kernel, module, target, "k")
        lines = [line.split(" = ", 1)[1] for line in module.text().splitlines() if " = " in line]
        texts.append([re.sub(r"%\w+", "%", line) for line in lines if re.match(r"(call float|f\w+) ", line)])
    assert texts[0] == texts[1] and len(texts[0]) > 10
