"""Workloads on dense arrays: elementwise, reductions, data movement, linear algebra, stencils.

Read next: networks.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as onp

from benchmarks.cases import Draw, elements, product, workload

# ---- elementwise ----------------------------------------------------------------------------------------------------


@workload("chain_10m", "elementwise", lambda d: [d.normal(d.n(10_000_000))], elements(45))
def chain(np: Any, x: Any) -> Any:
    p = ((0.1 * x + 0.3) * x - 0.5) * x + 1.0
    return np.tanh(p) * np.exp(-0.5 * x * x) + p * 0.01


def _options(dtype: str):
    def make(d: Draw) -> list[onp.ndarray]:
        n = d.n(2_000_000)
        return [d.uniform(50, 150, n, dtype=dtype), d.uniform(50, 150, n, dtype=dtype),
                d.uniform(0.1, 2, n, dtype=dtype)]
    return make


@workload("black_scholes_2m_f64", "elementwise", _options("float64"), elements(110), tol=1e-10, dtype="float64")
@workload("black_scholes_2m", "elementwise", _options("float32"), elements(110))
def black_scholes(np: Any, spot: Any, strike: Any, years: Any) -> Any:
    rate, vol = 0.02, 0.3
    spread = vol * np.sqrt(years)
    up = (np.log(spot / strike) + (rate + 0.5 * vol * vol) * years) / spread
    down = up - spread
    chance_up = 0.5 * (1.0 + np.erf(up * math.sqrt(0.5)))
    chance_down = 0.5 * (1.0 + np.erf(down * math.sqrt(0.5)))
    later = strike * np.exp(-rate * years)
    call = spot * chance_up - later * chance_down
    return call, call - spot + later


@workload("adam_4m", "elementwise", lambda d: [d.normal(d.n(4_000_000)) for _ in range(3)]
          + [d.uniform(0, 1, d.n(4_000_000))], elements(14))
def adam(np: Any, p: Any, g: Any, m: Any, v: Any) -> Any:
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * (g * g)
    return p - 0.001 * (m / 0.1) / (np.sqrt(v / 0.001) + 1e-8), m, v


@workload("mixed_mask_4m", "elementwise", lambda d: [d.normal(d.n(4_000_000))], elements(26), tol=1e-3)
def mixed(np: Any, x: Any) -> Any:
    y = np.where((x > 0.3) & (x < 0.9), x * 2.0, np.clip(x, -0.5, 0.5))
    bins = np.astype(np.floor((y + 1.0) * 8.0), np.int32)
    return y, np.sum(np.astype(np.equal(bins[:, None], np.arange(24)), np.int32), axis=0)


workload("tiny", "overhead", lambda d: [d.normal(10), d.normal(10)], elements(3))(
    lambda np, a, b: (a + b) * (b + 1.0))
workload("axpy_1k", "overhead", lambda d: [d.normal(1000), d.normal(1000)], elements(2))(
    lambda np, a, b: 0.5 * a + b)


# ---- reductions -----------------------------------------------------------------------------------------------------

def _moments(axis: int | None):
    return lambda np, x: (np.sum(x, axis=axis), np.mean(x, axis=axis), np.var(x, axis=axis))


def _field(rows: int, cols: int):
    return lambda d: [d.normal(d.n(rows), d.n(cols)) + onp.float32(0.5)]


workload("moments_rows_4096", "reduction", _field(4096, 4096), elements(5))(_moments(1))
workload("moments_columns_4096", "reduction", _field(4096, 4096), elements(5))(_moments(0))
workload("moments_all_4096", "reduction", _field(4096, 4096), elements(5))(
    lambda np, x: (np.sum(x), np.mean(x), np.var(x)))
workload("softmax_8192x1024", "reduction", _field(8192, 1024), elements(20))(lambda np, x: np.softmax(x))
workload("softmax_wide_64x131072", "reduction", _field(64, 131072), elements(20))(lambda np, x: np.softmax(x))
workload("norms_columns_20000x300", "reduction", _field(20000, 300), elements(2))(
    lambda np, x: np.sqrt(np.sum(x * x, axis=0)))


@workload("layer_norm_gelu_8192x1024", "reduction",
          lambda d: [d.normal(d.n(8192), d.n(1024)), d.normal(d.n(1024)), d.normal(d.n(1024))], elements(40))
def layer_norm_gelu(np: Any, x: Any, scale: Any, shift: Any) -> Any:
    return np.gelu(np.layer_norm(x, scale, shift))


@workload("cross_entropy_4096x4096", "reduction",
          lambda d: [d.normal(d.n(4096), d.n(4096)), d.integers(d.n(4096), d.n(4096))], elements(18))
def cross_entropy(np: Any, scores: Any, labels: Any) -> Any:
    top = np.amax(scores, axis=1, keepdims=True)
    total = np.log(np.sum(np.exp(scores - top), axis=1)) + top[:, 0]
    return np.mean(total - np.pick(scores, labels))


# ---- data movement --------------------------------------------------------------------------------------------------

workload("transpose_4096", "movement", _field(4096, 4096), lambda x: 0)(lambda np, x: np.swapaxes(x, 0, 1) + 0.0)
workload("channels_last_32x64x56x56", "movement", lambda d: [d.normal(d.n(32), d.n(64), d.n(56), d.n(56))],
         lambda x: 0)(lambda np, x: np.transpose(x, (0, 2, 3, 1)) * 2.0)
workload("concatenate_8x1m", "movement", lambda d: [d.normal(d.n(1_000_000)) for _ in range(8)], lambda *x: 0)(
    lambda np, *xs: np.concatenate(xs, axis=0) * 2.0)


@workload("quaternions_500k", "movement", lambda d: [d.normal(d.n(500_000), 4), d.normal(d.n(500_000), 4)], elements(7))
def quaternions(np: Any, p: Any, q: Any) -> Any:
    a, b, c, d = (p[:, i:i + 1] for i in range(4))
    e, f, g, h = (q[:, i:i + 1] for i in range(4))
    return np.concatenate([a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g,
                           a * g - b * h + c * e + d * f, a * h + b * g - c * f + d * e], axis=1)


@workload("luminance_1024", "movement", lambda d: [d.uniform(0, 1, d.n(1024), d.n(1024), 3)], elements(3))
def luminance(np: Any, image: Any) -> Any:
    red, green, blue = (image[..., i:i + 1] for i in range(3))
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.concatenate([y, 0.492 * (blue - y), 0.877 * (red - y)], axis=2)


# ---- linear algebra -------------------------------------------------------------------------------------------------

TOLERANCE = {"float64": 1e-10, "float32": 2e-4, "float16": 4e-3, "bfloat16": 2e-2}


def _matmul(name: str, left: tuple[int, ...], right: tuple[int, ...], dtype: str = "float32",
            fn=lambda np, a, b: np.matmul(a, b), flops=product) -> None:
    def make(d: Draw) -> list[onp.ndarray]:
        plain = dtype if dtype != "bfloat16" else "float32"
        return [d.normal(*map(d.n, left), dtype=plain), d.normal(*map(d.n, right), dtype=plain)]
    workload(name, "linear algebra", make, flops, dtype=dtype, tol=TOLERANCE[dtype])(fn)


for _dtype, _short in (("float32", "f32"), ("float64", "f64"), ("float16", "f16"), ("bfloat16", "bf16")):
    _matmul(f"matmul_1024_{_short}", (1024, 1024), (1024, 1024), _dtype)
_matmul("matmul_2048_f32", (2048, 2048), (2048, 2048))
_matmul("matmul_odd_1000x1003x997", (1000, 1003), (1003, 997))
_matmul("matmul_skinny_4096x4096x16", (4096, 4096), (4096, 16))
_matmul("matmul_tall_200000x32x32", (200_000, 32), (32, 32))
_matmul("matmul_deep_64x65536x64", (64, 65536), (65536, 64))
_matmul("matmul_left_transposed_1024", (1024, 1024), (1024, 1024), fn=lambda np, a, b: np.matmul(np.swapaxes(a, 0, 1),
                                                                                              b))
_matmul("matmul_right_transposed_1024", (1024, 1024), (1024, 1024), fn=lambda np, a, b: np.matmul(
    a, np.swapaxes(b, 0, 1)))
_matmul("matvec_4096", (4096, 4096), (4096,))
_matmul("vecmat_4096", (4096,), (4096, 4096), flops=lambda a, b: 2.0 * b.size)
_matmul("batch_64x128", (64, 128, 128), (64, 128, 128))
_matmul("batch_small_4096x16", (4096, 16, 16), (4096, 16, 16))
_matmul("matmul_stack_32x256x256x196", (256, 256), (32, 256, 196), flops=lambda a, b: 2.0 * len(a) * b.size)
_matmul("einsum_heads_8x256x64", (8, 256, 8, 64), (8, 256, 8, 64),
        fn=lambda np, a, b: np.einsum("bihd,bjhd->bhij", a, b),
        flops=lambda a, b: 2.0 * a.size * b.shape[1])


@workload("bilinear_einsum_128", "linear algebra",
          lambda d: [d.normal(d.n(256), d.n(128)), d.normal(d.n(128), d.n(64), d.n(128)), d.normal(d.n(256), d.n(128))],
          lambda x, w, y: 2.0 * len(x) * w.size + 2.0 * len(x) * w.shape[1] * w.shape[2])
def bilinear(np: Any, x: Any, w: Any, y: Any) -> Any:
    half = np.einsum("bi,ioj->boj", x, w)
    return np.einsum("boj,bj->bo", half, y)


# ---- stencils and pairs ---------------------------------------------------------------------------------------------

SWEEPS = 10


@workload("jacobi_2048x10", "stencil", lambda d: [d.normal(d.n(2048, least=8), d.n(2048, least=8))],
          elements(4 * SWEEPS), traffic=lambda args, results: SWEEPS * 2 * args[0].nbytes)
def jacobi(np: Any, u: Any) -> Any:
    for _ in range(SWEEPS):
        u = np.pad(0.25 * (u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]), 1)
    return u


@workload("heat_3d_192", "stencil", lambda d: [d.normal(*[d.n(192, least=4)] * 3)], elements(9))
def heat(np: Any, u: Any) -> Any:
    c = u[1:-1, 1:-1, 1:-1]
    around = (u[:-2, 1:-1, 1:-1] + u[2:, 1:-1, 1:-1] + u[1:-1, :-2, 1:-1] + u[1:-1, 2:, 1:-1] + u[1:-1, 1:-1, :-2]
              + u[1:-1, 1:-1, 2:])
    return c + 0.1 * (around - 6.0 * c)


@workload("bodies_2048", "pairs", lambda d: [d.normal(d.n(2048)) for _ in range(3)] + [d.uniform(0.1, 1, d.n(2048))],
          lambda x, *rest: 22.0 * x.size ** 2)
def bodies(np: Any, x: Any, y: Any, z: Any, mass: Any) -> Any:
    dx, dy, dz = x[None, :] - x[:, None], y[None, :] - y[:, None], z[None, :] - z[:, None]
    square = dx * dx + dy * dy + dz * dz + 0.01
    pull = mass[None, :] / (square * np.sqrt(square))
    return np.sum(pull * dx, axis=1), np.sum(pull * dy, axis=1), np.sum(pull * dz, axis=1)


@workload("overlaps_2000x1000", "pairs", lambda d: [d.uniform(0, 1, d.n(2000), 4), d.uniform(0, 1, d.n(1000), 4)],
          lambda a, b: 15.0 * len(a) * len(b), tol=1e-3)
def overlaps(np: Any, a: Any, b: Any) -> Any:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    size = np.maximum(high - low, low * 0.0)
    both = size[..., 0] * size[..., 1]
    return both / ((a[:, 2] * a[:, 3])[:, None] + (b[:, 2] * b[:, 3])[None, :] - both + 1e-6)


@workload("kmeans_20000x64x256", "pairs", lambda d: [d.normal(d.n(20000), 64), d.normal(d.n(256), 64)],
          lambda x, c: 2.0 * x.size * len(c) + 3.0 * len(x) * len(c), tol=1e-3)
def kmeans(np: Any, x: Any, centers: Any) -> Any:
    apart = np.sum(x * x, axis=1)[:, None] - 2.0 * np.matmul(x, np.swapaxes(centers, 0, 1)) + np.sum(
        centers * centers, axis=1)
    return np.argmin(apart, axis=1), np.amin(apart, axis=1)
