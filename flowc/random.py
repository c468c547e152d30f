"""Random numbers from explicit keys: equal on every device, machine and thread count.

Here: keys and distributions, on plain arrays and on traced values.  Not here: the bits themselves (ops/random.py).
Read next: ops/random.py.

A key is u32[2].  A draw depends on its key, shape and dtype only; draw twice from one key and the numbers repeat, so
``split`` keys or ``fold_in`` a counter.  Keys made by ``split`` and ``fold_in`` come from key spaces of their own
(the parent's words xored with a constant), so a draw from a parent never repeats its children.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowc.dims import Dim
from flowc.numpy_api import functions as fnp
from flowc.numpy_core import argument_error, as_dim, as_shape, op_call, to_dtype
from flowc.types import f32, f64, u32, u64

Array = Any
_SPLIT = np.array([0x243F6A88, 0x85A308D3], np.uint32)  # digits of pi
_FOLD = np.array([0x13198A2E, 0x03707344], np.uint32)


# ---- keys -----------------------------------------------------------------------------------------------------------

def key(seed: Any) -> Array:
    """A key from an integer: its low and high 32 bits.  The seed may be traced."""
    if isinstance(seed, (bool, float, complex, str)) or getattr(seed, "ndim", 0) != 0:
        raise argument_error(f"a seed is an integer, not {seed!r}", "pass an int")
    if hasattr(seed, "node"):
        if to_dtype(seed.dtype).kind not in "iu":
            raise argument_error(f"a seed is an integer, not {seed.dtype}", "cast it to int64")
        wide = fnp.astype(seed, np.uint64)
        return fnp.astype(fnp.stack([wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32)]), np.uint32)
    value = int(seed) & (2 ** 64 - 1)
    return np.array([value & 0xFFFFFFFF, value >> 32], np.uint32)


def _checked(k: Array) -> Array:
    if getattr(k, "dtype", None) != np.uint32 or k.shape != (2,):
        raise argument_error(f"a key is u32[2], not {k!r}", "make keys with flowc.random.key and split")
    return k


def bits(k: Array, shape: Any = (), dtype: Any = np.uint32) -> Array:
    """Uniform random words, uint32 or uint64."""
    d = to_dtype(dtype)
    if d not in (u32, u64):
        raise argument_error(f"random bits are uint32 or uint64, not {d.numpy}", "cast the result")
    return op_call("random_bits", _checked(k), shape=as_shape(shape), dtype=d)


def split(k: Array, num: Any = 2) -> Array:
    """``num`` independent keys: u32[num, 2]."""
    return bits(fnp.bitwise_xor(_checked(k), _SPLIT), (as_dim(num), 2))


def fold_in(k: Array, data: Any) -> Array:
    """A key from a key and an integer, which may be traced: one key per step or per layer."""
    return bits(fnp.bitwise_xor(bits(fnp.bitwise_xor(_checked(k), _FOLD), (2,)), key(data)), (2,))


# ---- distributions --------------------------------------------------------------------------------------------------

def _float(dtype: Any) -> Any:
    d = to_dtype(dtype)
    if not d.floating:
        raise argument_error(f"this distribution has float dtypes, not {d.numpy}", "cast the result")
    return d


def _unit(k: Array, shape: Any, d: Any) -> Array:
    """[0, 1) in steps of 2**-p, p the precision of the dtype: every value is exact."""
    precision = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}[d.name]
    words = bits(k, shape, np.uint64 if d is f64 else np.uint32)
    width = 64 if d is f64 else 32
    kept = fnp.right_shift(words, np.asarray(width - precision, words.dtype))
    work = f64 if d is f64 else f32
    return fnp.astype(fnp.astype(kept, work.numpy) * np.asarray(2.0 ** -precision, work.numpy), d.numpy)


def uniform(k: Array, shape: Any = (), low: Any = 0.0, high: Any = 1.0, dtype: Any = np.float32) -> Array:
    """Uniform on [low, high).  The bounds may be traced and broadcast against ``shape``."""
    d = _float(dtype)
    u = _unit(k, shape, d)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and (low, high) == (0, 1):
        return u
    span = fnp.subtract(fnp.asarray(high, dtype=d.numpy), fnp.asarray(low, dtype=d.numpy))
    return fnp.astype(u * span + fnp.asarray(low, dtype=d.numpy), d.numpy)


def normal(k: Array, shape: Any = (), mean: Any = 0.0, std: Any = 1.0, dtype: Any = np.float32) -> Array:
    """Normal with a mean and a standard deviation, by the method of Box and Muller (1958)."""
    d = _float(dtype)
    work = d if d is f64 else f32
    sizes = as_shape(shape)
    pair = _unit(k, (2, *sizes), work)
    radius = fnp.sqrt(-2.0 * fnp.log1p(-pair[0]))  # 1 - u is never 0
    z = fnp.astype(radius * fnp.cos((2 * math.pi) * pair[1]), d.numpy)
    plain = isinstance(mean, (int, float)) and isinstance(std, (int, float)) and (mean, std) == (0, 1)
    return z if plain else fnp.astype(z * std + mean, d.numpy)


def truncated_normal(k: Array, low: float, high: float, shape: Any = (), dtype: Any = np.float32) -> Array:
    """Normal within [low, high], by the inverse of the distribution function (Giles 2010's erfinv, in float64)."""
    d = _float(dtype)
    a, b = (math.erf(v / math.sqrt(2)) for v in (low, high))
    u = uniform(k, shape, a, b, np.float64)
    z = fnp.clip(_erfinv(u) * math.sqrt(2), low, high)
    return fnp.astype(z, d.numpy)


# Giles, "Approximating the erfinv function" (2010): polynomials in w = -log(1 - x*x), below 5 and above.
_CENTRAL = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
            -0.00417768164, 0.246640727, 1.50140941)
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
         0.00943887047, 1.00167406, 2.83297682)


def _erfinv(x: Array) -> Array:
    w = -fnp.log1p(-x * x)

    def polynomial(coefficients: tuple[float, ...], t: Array) -> Array:
        out = coefficients[0] * fnp.ones_like(t)
        for c in coefficients[1:]:
            out = out * t + c
        return out
    central = polynomial(_CENTRAL, w - 2.5)
    tail = polynomial(_TAIL, fnp.sqrt(fnp.maximum(w, 5.0)) - 3.0)
    return fnp.where(w < 5.0, central, tail) * x


def randint(k: Array, shape: Any, low: Any, high: Any, dtype: Any = np.int64) -> Array:
    """Integers from low to below high.  The bias is below (high - low) * 2**-64."""
    d = to_dtype(dtype)
    if not d.integer:
        raise argument_error(f"randint has integer dtypes, not {d.numpy}", "cast the result")
    if isinstance(low, int) and isinstance(high, int) and low >= high:
        raise argument_error(f"randint from {low} to {high}: there is no such integer", "give low < high")
    start = fnp.astype(fnp.asarray(low if not isinstance(low, Dim) else low * 1, dtype=np.int64), np.uint64)
    stop = fnp.astype(fnp.asarray(high if not isinstance(high, Dim) else high * 1, dtype=np.int64), np.uint64)
    words = bits(k, shape, np.uint64)
    return fnp.astype(fnp.add(fnp.remainder(words, fnp.subtract(stop, start)), start), d.numpy)


def bernoulli(k: Array, p: Any = 0.5, shape: Any = None) -> Array:
    """True with probability p; the shape is that of p by default."""
    chance = fnp.asarray(p)
    d = to_dtype(chance.dtype)
    d = d if d.floating and not isinstance(p, float) else f32
    return fnp.less(_unit(k, chance.shape if shape is None else shape, d), fnp.astype(chance, d.numpy))


def exponential(k: Array, shape: Any = (), dtype: Any = np.float32) -> Array:
    """Exponential with rate 1."""
    return -fnp.log1p(-_unit(k, shape, _float(dtype)))


def gumbel(k: Array, shape: Any = (), dtype: Any = np.float32) -> Array:
    """Standard Gumbel."""
    d = _float(dtype)
    u = fnp.maximum(_unit(k, shape, d), np.asarray(1e-7 if d is not f64 else 1e-300, d.numpy))
    return -fnp.log(-fnp.log(u))


def categorical(k: Array, logits: Array, shape: Any = None, axis: int = -1) -> Array:
    """Positions along ``axis`` with probabilities softmax(logits).  ``shape``: of the result, broadcasting the logits'
    other axes (its default)."""
    rows = fnp.moveaxis(fnp.asarray(logits), axis, -1)
    rows = rows if to_dtype(rows.dtype).floating else fnp.astype(rows, np.float32)
    lead = as_shape(rows.shape[:-1] if shape is None else shape)
    noise = gumbel(k, (*lead, as_dim(rows.shape[-1])), rows.dtype)
    return fnp.argmax(noise + rows, axis=-1)


def permutation(k: Array, x: Any, axis: int = 0) -> Array:
    """The integers below ``x`` in random order, or an array with the entries of one axis in random order."""
    if isinstance(x, (int, np.integer, Dim)):
        return fnp.argsort(bits(k, (as_dim(x),), np.uint64))
    order = fnp.argsort(bits(k, (as_dim(x.shape[axis]),), np.uint64))
    return fnp.take(x, order, axis=axis)


def choice(k: Array, a: Any, shape: Any = (), replace: bool = True, p: Array = None) -> Array:
    """Random entries of a vector (or of 0..a-1), with probabilities ``p``; without replacement by random order."""
    count = as_dim(a) if isinstance(a, (int, np.integer, Dim)) else as_dim(a.shape[0])
    if p is not None:
        if not replace:
            raise argument_error("choice with probabilities is with replacement", "drop p or replace=False")
        at = categorical(k, fnp.log(fnp.asarray(p)), shape)
    elif replace:
        at = randint(k, shape, 0, count)
    else:
        sizes = as_shape(shape)
        wanted: Any = 1
        for n in sizes:
            wanted = wanted * n
        if isinstance(wanted, int) and isinstance(count, int) and wanted > count:
            raise argument_error(f"{wanted} of {count} entries without replacement", "draw fewer, or with replacement")
        at = fnp.reshape(permutation(k, count)[:wanted], sizes)
    return at if isinstance(a, (int, np.integer, Dim)) else fnp.take(a, at, axis=0)
