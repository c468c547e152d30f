"""Workloads as loops for numba, as its users write them: explicit, parallel over the outermost.  Read next: worker.py.

Only loaded where numba is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np

f4 = np.float32
HALF, ROOT = f4(0.5), f4(math.sqrt(0.5))
loop = nb.njit(parallel=True, cache=True)
LOOPS: dict[str, Callable[..., Any]] = {}


def of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        LOOPS[name] = fn
        return fn
    return add


@of("tiny")
@nb.njit(cache=True)
def tiny(a, b):
    return (a + b) * (b + f4(1))


@of("axpy_1k")
@nb.njit(cache=True)
def axpy(a, b):
    return HALF * a + b


@of("chain_10m")
@loop
def chain(x):
    out = np.empty_like(x)
    for i in nb.prange(x.size):
        v = x[i]
        p = ((f4(0.1) * v + f4(0.3)) * v - HALF) * v + f4(1)
        out[i] = np.tanh(p) * np.exp(-HALF * v * v) + p * f4(0.01)
    return out


@of("black_scholes_2m")
@loop
def black_scholes(spot, strike, years):
    call, put = np.empty_like(spot), np.empty_like(spot)
    rate, vol = f4(0.02), f4(0.3)
    for i in nb.prange(spot.size):
        s, k, t = spot[i], strike[i], years[i]
        spread = vol * np.sqrt(t)
        up = (np.log(s / k) + (rate + HALF * vol * vol) * t) / spread
        a = HALF * (f4(1) + f4(math.erf(up * ROOT)))
        b = HALF * (f4(1) + f4(math.erf((up - spread) * ROOT)))
        later = k * np.exp(-rate * t)
        call[i] = s * a - later * b
        put[i] = call[i] - s + later
    return call, put


@of("adam_4m")
@loop
def adam(p, g, m, v):
    q, m2, v2 = np.empty_like(p), np.empty_like(p), np.empty_like(p)
    for i in nb.prange(p.size):
        m2[i] = f4(0.9) * m[i] + f4(0.1) * g[i]
        v2[i] = f4(0.999) * v[i] + f4(0.001) * (g[i] * g[i])
        q[i] = p[i] - f4(0.001) * (m2[i] / f4(0.1)) / (np.sqrt(v2[i] / f4(0.001)) + f4(1e-8))
    return q, m2, v2


@of("mixed_mask_4m")
@loop
def mixed(x):
    y = np.empty_like(x)
    parts = nb.get_num_threads()
    counts = np.zeros((parts, 32), np.int32)
    for t in nb.prange(parts):
        mine = np.zeros(24, np.int32)
        for i in range(x.size * t // parts, x.size * (t + 1) // parts):
            v = x[i]
            r = v * f4(2) if f4(0.3) < v and v < f4(0.9) else min(max(v, -HALF), HALF)
            y[i] = r
            mine[int((r + f4(1)) * f4(8))] += 1  # not negative
        counts[t, :24] = mine
    return y, counts[:, :24].sum(0)


@of("moments_rows_4096")
@loop
def moments_rows(x):
    n = x.shape[1]
    total, mean, var = np.empty(len(x), f4), np.empty(len(x), f4), np.empty(len(x), f4)
    for i in nb.prange(len(x)):
        s = f4(0)
        for j in range(n):
            s += x[i, j]
        m, q = s / f4(n), f4(0)
        for j in range(n):
            q += (x[i, j] - m) ** 2
        total[i], mean[i], var[i] = s, m, q / f4(n)
    return total, mean, var


def _softmax(x):
    out = np.empty_like(x)
    for i in nb.prange(len(x)):
        top = x[i, 0]
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        s = f4(0)
        for j in range(x.shape[1]):
            out[i, j] = np.exp(x[i, j] - top)
            s += out[i, j]
        for j in range(x.shape[1]):
            out[i, j] /= s
    return out


LOOPS["softmax_8192x1024"] = LOOPS["softmax_wide_64x131072"] = loop(_softmax)


@of("layer_norm_gelu_8192x1024")
@loop
def layer_norm_gelu(x, scale, shift):
    out = np.empty_like(x)
    n = x.shape[1]
    for i in nb.prange(len(x)):
        s, q = f4(0), f4(0)
        for j in range(n):
            s += x[i, j]
        m = s / f4(n)
        for j in range(n):
            q += (x[i, j] - m) ** 2
        by = f4(1) / np.sqrt(q / f4(n) + f4(1e-5))
        for j in range(n):
            v = (x[i, j] - m) * by * scale[j] + shift[j]
            out[i, j] = HALF * v * (f4(1) + f4(math.erf(v * ROOT)))
    return out


@of("transpose_4096")
@loop
def transpose(x):
    n, m = x.shape
    out = np.empty((m, n), x.dtype)
    step = 32
    for a in nb.prange((n + step - 1) // step):
        for b in range((m + step - 1) // step):
            for i in range(a * step, min(n, a * step + step)):
                for j in range(b * step, min(m, b * step + step)):
                    out[j, i] = x[i, j]
    return out


@of("jacobi_2048x10")
@loop
def jacobi(u):
    a, b = u.copy(), np.zeros_like(u)
    n, m = u.shape
    for _ in range(10):
        for i in nb.prange(1, n - 1):
            for j in range(1, m - 1):
                b[i, j] = f4(0.25) * (a[i - 1, j] + a[i + 1, j] + a[i, j - 1] + a[i, j + 1])
        a[0, :], a[n - 1, :], a[:, 0], a[:, m - 1] = 0, 0, 0, 0
        a, b = b, a
    return a


@of("heat_3d_192")
@loop
def heat(u):
    n, m, k = u.shape
    out = np.empty((n - 2, m - 2, k - 2), u.dtype)
    for x in nb.prange(1, n - 1):
        for y in range(1, m - 1):
            for z in range(1, k - 1):
                around = (u[x - 1, y, z] + u[x + 1, y, z] + u[x, y - 1, z] + u[x, y + 1, z] + u[x, y, z - 1]
                          + u[x, y, z + 1])
                out[x - 1, y - 1, z - 1] = u[x, y, z] + f4(0.1) * (around - f4(6) * u[x, y, z])
    return out


@of("quaternions_500k")
@loop
def quaternions(p, q):
    out = np.empty_like(p)
    for i in nb.prange(len(p)):
        a, b, c, d = p[i, 0], p[i, 1], p[i, 2], p[i, 3]
        e, f, g, h = q[i, 0], q[i, 1], q[i, 2], q[i, 3]
        out[i, 0] = a * e - b * f - c * g - d * h
        out[i, 1] = a * f + b * e + c * h - d * g
        out[i, 2] = a * g - b * h + c * e + d * f
        out[i, 3] = a * h + b * g - c * f + d * e
    return out


@of("luminance_1024")
@loop
def luminance(image):
    out = np.empty_like(image)
    for i in nb.prange(image.shape[0]):
        for j in range(image.shape[1]):
            red, green, blue = image[i, j, 0], image[i, j, 1], image[i, j, 2]
            y = f4(0.299) * red + f4(0.587) * green + f4(0.114) * blue
            out[i, j, 0], out[i, j, 1], out[i, j, 2] = y, f4(0.492) * (blue - y), f4(0.877) * (red - y)
    return out


@of("overlaps_2000x1000")
@loop
def overlaps(a, b):
    out = np.empty((len(a), len(b)), a.dtype)
    for i in nb.prange(len(a)):
        for j in range(len(b)):
            wide = min(a[i, 0] + a[i, 2], b[j, 0] + b[j, 2]) - max(a[i, 0], b[j, 0])
            high = min(a[i, 1] + a[i, 3], b[j, 1] + b[j, 3]) - max(a[i, 1], b[j, 1])
            both = max(wide, f4(0)) * max(high, f4(0))
            out[i, j] = both / (a[i, 2] * a[i, 3] + b[j, 2] * b[j, 3] - both + f4(1e-6))
    return out


@of("bodies_2048")
@loop
def bodies(x, y, z, mass):
    ax, ay, az = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    for i in nb.prange(x.size):
        sx, sy, sz = f4(0), f4(0), f4(0)
        for j in range(x.size):
            dx, dy, dz = x[j] - x[i], y[j] - y[i], z[j] - z[i]
            square = dx * dx + dy * dy + dz * dz + f4(0.01)
            pull = mass[j] / (square * np.sqrt(square))
            sx += pull * dx
            sy += pull * dy
            sz += pull * dz
        ax[i], ay[i], az[i] = sx, sy, sz
    return ax, ay, az


@of("cumsum_rows_4096x4096")
@loop
def cumsum(x):
    out = np.empty_like(x)
    for i in nb.prange(len(x)):
        s = f4(0)
        for j in range(x.shape[1]):
            s += x[i, j]
            out[i, j] = s
    return out


@of("segment_sum_1m_to_1000x16")
@nb.njit(cache=True)
def segment_sum(x, which):
    out = np.zeros((1000, x.shape[1]), x.dtype)
    for i in range(len(x)):
        for j in range(x.shape[1]):
            out[which[i], j] += x[i, j]
    return out


@of("gather_rows_1m_of_100000x32")
@loop
def gather(x, at):
    out = np.empty((len(at), x.shape[1]), x.dtype)
    for i in nb.prange(len(at)):
        for j in range(x.shape[1]):
            out[i, j] = x[at[i], j]
    return out


@of("histogram_4m")
@loop
def histogram(x):
    parts = nb.get_num_threads()
    counts = np.zeros((parts, 256), x.dtype)
    for t in nb.prange(parts):
        mine = np.zeros(256, x.dtype)
        for i in range(x.size * t // parts, x.size * (t + 1) // parts):
            mine[int(x[i] * f4(256))] += f4(1)
        counts[t] = mine
    return counts.sum(0)


@of("sort_rows_4096x1024")
@loop
def sort_rows(x):
    out = x.copy()
    for i in nb.prange(len(x)):
        out[i].sort()
    return out
