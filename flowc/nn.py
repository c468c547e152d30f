"""Building blocks of neural networks, as compositions of array functions.

Here: activations, softmax and losses, normalisation, convolution and pooling, attention.  They work on plain arrays
too.  Not here: optimizers (optim.py), layers with state.  Read next: random.py.

Results have the dtype of the first argument.  Images are channels-first: (batch, channels, spatial axes...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowc.dims import ceildiv, dmax
from flowc.numpy_api import functions as fnp
from flowc.numpy_core import argument_error, as_dim, op_call, to_dtype
from flowc.size import plain

Array = Any  # a NumPy array or a traced value


def _same(x: Array, y: Array) -> Array:
    """``y`` in the dtype of ``x`` (plain bfloat16 arrays widen in NumPy's arithmetic)."""
    return y if y.dtype == x.dtype else fnp.astype(y, x.dtype)


def _floating(x: Array) -> Array:
    """An array of floats: integers and booleans become float32."""
    x = fnp.asarray(x)
    return x if to_dtype(x.dtype).kind in "fc" else fnp.astype(x, np.float32)


def _shared_division(x: Array, y: Array) -> Array:
    """x / y for a y that many elements share: one division for all of them and a product each, at most one unit in the
    last place from the quotient.  16-bit floats, where a unit is much, are divided."""
    return x / y if to_dtype(y.dtype).bits == 16 else x * (1 / y)


def stop_gradient(x: Array) -> Array:
    """The same value, through which no derivative flows."""
    return op_call("stop_gradient", x)


# ---- activations ----------------------------------------------------------------------------------------------------

def relu(x: Array) -> Array:
    """x where it is positive, else 0."""
    return fnp.maximum(x, 0)


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """x where it is positive, else slope * x."""
    return _same(x, fnp.where(x >= 0, x, slope * x))


def elu(x: Array, alpha: float = 1.0) -> Array:
    """x where it is positive, else alpha * (exp(x) - 1)."""
    return _same(x, fnp.where(x > 0, x, alpha * fnp.expm1(fnp.minimum(x, 0))))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return op_call("logistic", _floating(x))


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return _same(x, fnp.maximum(x, 0) + fnp.log1p(fnp.exp(-fnp.abs(x))))


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return fnp.tanh(x)


def erf(x: Array) -> Array:
    """Error function."""
    return op_call("erf", _floating(x))


def erfc(x: Array) -> Array:
    """1 - erf(x) without cancellation."""
    return op_call("erfc", _floating(x))


def ndtr(x: Array) -> Array:
    """The normal distribution: the probability of a value below x."""
    return op_call("ndtr", _floating(x))


def gelu(x: Array, approximate: bool = False) -> Array:
    """x times the normal distribution function; ``approximate``: by tanh (Hendrycks and Gimpel, 2016)."""
    x = _floating(x)
    if approximate:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return _same(x, 0.5 * x * (1 + fnp.tanh(inner)))
    return _same(x, x * ndtr(x))


# ---- softmax and losses ---------------------------------------------------------------------------------------------

def _shift(x: Array, axis: Any) -> Array:
    """The largest element, by which exponents are shifted; 0 where it is infinite."""
    top = stop_gradient(fnp.max(x, axis=axis, keepdims=True))
    return fnp.where(fnp.isfinite(top), top, fnp.zeros_like(top))


def softmax(x: Array, axis: Any = -1) -> Array:
    """exp(x) divided by its sum along ``axis``."""
    x = _floating(x)
    e = fnp.exp(x - stop_gradient(fnp.max(x, axis=axis, keepdims=True)))
    return _same(x, _shared_division(e, fnp.sum(e, axis=axis, keepdims=True)))


def log_softmax(x: Array, axis: Any = -1) -> Array:
    """The logarithm of softmax."""
    x = _floating(x)
    gap = x - stop_gradient(fnp.max(x, axis=axis, keepdims=True))
    return _same(x, gap - fnp.log(fnp.sum(fnp.exp(gap), axis=axis, keepdims=True)))


def logsumexp(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """log(sum(exp(x))) without overflow."""
    x = _floating(x)
    top = _shift(x, axis)
    out = fnp.log(fnp.sum(fnp.exp(x - top), axis=axis, keepdims=True)) + top
    return _same(x, out if keepdims else fnp.squeeze(out, axis=axis))


def one_hot(labels: Array, num_classes: Any, dtype: Any = np.float32) -> Array:
    """1 at the label along a new last axis, else 0; a label outside gives zeros."""
    labels = fnp.asarray(labels)
    return fnp.astype(fnp.expand_dims(labels, -1) == fnp.arange(num_classes), dtype)


def _reduced(loss: Array, reduction: str) -> Array:
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise argument_error(f"there is no reduction {reduction!r}", "use mean, sum or none")
    return fnp.mean(loss) if reduction == "mean" else fnp.sum(loss)


def cross_entropy(logits: Array, labels: Array, axis: int = -1, reduction: str = "mean") -> Array:
    """Cross entropy of softmax(logits) with integer labels or with distributions of the logits' shape."""
    logp = log_softmax(logits, axis)
    labels = fnp.asarray(labels)
    if to_dtype(labels.dtype).kind in "iu":
        picked = fnp.take_along_axis(logp, fnp.expand_dims(labels, axis), axis)
        return _reduced(-fnp.squeeze(picked, axis=axis), reduction)
    return _reduced(-fnp.sum(labels * logp, axis=axis), reduction)


def binary_cross_entropy(logits: Array, labels: Array, reduction: str = "mean") -> Array:
    """Cross entropy of sigmoid(logits) with labels from 0 to 1."""
    return _reduced(_same(logits, softplus(logits) - logits * labels), reduction)


def mse_loss(x: Array, target: Array, reduction: str = "mean") -> Array:
    """Squared differences."""
    return _reduced(fnp.square(x - target), reduction)


# ---- normalisation --------------------------------------------------------------------------------------------------

def standardize(x: Array, axis: Any = -1, eps: float = 1e-5) -> Array:
    """Mean 0 and variance 1 along ``axis``."""
    x = _floating(x)
    gap = x - fnp.mean(x, axis=axis, keepdims=True)
    variance = fnp.mean(gap * gap, axis=axis, keepdims=True)
    return _same(x, _shared_division(gap, fnp.sqrt(variance + eps)))


def layer_norm(x: Array, scale: Array = None, bias: Array = None, axis: Any = -1, eps: float = 1e-5) -> Array:
    """standardize, then scale and bias."""
    y = standardize(x, axis, eps)
    y = y if scale is None else y * scale
    return _same(y, y if bias is None else y + bias)


def rms_norm(x: Array, scale: Array = None, axis: Any = -1, eps: float = 1e-6) -> Array:
    """x divided by its root mean square, times scale."""
    x = _floating(x)
    y = _same(x, _shared_division(x, fnp.sqrt(fnp.mean(x * x, axis=axis, keepdims=True) + eps)))
    return y if scale is None else _same(x, y * scale)


def batch_norm(x: Array, mean: Array, variance: Array, scale: Array = None, bias: Array = None, axis: int = 1,
               eps: float = 1e-5) -> Array:
    """Channels normalised by given statistics."""
    shape = [1] * x.ndim
    shape[axis] = -1

    def channel(v: Array) -> Array:
        return fnp.reshape(v, shape)
    factor = 1 / fnp.sqrt(variance + eps)
    factor = factor if scale is None else factor * scale
    y = (x - channel(mean)) * channel(factor)
    return _same(x, y if bias is None else y + channel(bias))


def dropout(key: Array, x: Array, rate: float) -> Array:
    """Elements set to 0 with probability ``rate``, the others divided by 1 - rate."""
    from flowc.random import bernoulli
    if rate == 0:
        return x
    keep = bernoulli(key, 1 - rate, x.shape)
    return _same(x, fnp.where(keep, x / (1 - rate), fnp.zeros_like(x)))


# ---- linear maps ----------------------------------------------------------------------------------------------------

def linear(x: Array, w: Array, b: Array = None) -> Array:
    """x @ w + b."""
    y = fnp.matmul(x, w)
    return y if b is None else y + b


def embedding(table: Array, index: Array) -> Array:
    """Rows of a table."""
    return fnp.take(table, index, axis=0)


def attention(q: Array, k: Array, v: Array, mask: Array = None, *, causal: bool = False, scale: Any = None) -> Array:
    """softmax(q k^T * scale) v over the last two axes (positions, features); ``mask`` is true where to look."""
    scale = 1 / np.sqrt(as_float(q.shape[-1])) if scale is None else scale
    scores = fnp.matmul(q, fnp.swapaxes(k, -1, -2)) * _scalar(scale)
    if causal:
        rows, cols = scores.shape[-2:]
        seen = fnp.tri(rows, cols, dtype=np.bool_)
        mask = seen if mask is None else fnp.logical_and(mask, seen)
    if mask is not None:
        scores = fnp.where(mask, scores, fnp.asarray(-np.inf, dtype=scores.dtype))
    return fnp.matmul(softmax(_same(q, scores)), v)


def as_float(n: Any) -> Any:
    """A size as a float: a number, or a traced value for a symbolic size."""
    return float(n) if isinstance(n, int) else n * 1.0


def _scalar(x: Any) -> Any:
    """NumPy's float64 scalars would widen float32 arrays; Python's floats do not."""
    return float(x) if isinstance(x, np.floating) else x


# ---- convolution and pooling ----------------------------------------------------------------------------------------

def _per_axis(value: Any, axes: int, what: str) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        raise argument_error(f"{what} has {len(values)} entries for {axes} spatial axes", "give one, or one per axis")
    return values


def _padding(padding: Any, sizes: Sequence[Any], window: Sequence[Any], stride: Sequence[int],
             dilation: Sequence[int]) -> tuple[tuple[Any, Any], ...]:
    """(before, after) per spatial axis.  same: as many outputs as ceil(size / stride)."""
    if padding == "valid":
        return ((0, 0),) * len(sizes)
    if padding == "same":
        pairs = []
        for n, k, s, d in zip(sizes, window, stride, dilation):
            reach = (k - 1) * d
            total = reach if s == 1 else dmax((ceildiv(n, s) - 1) * s + reach + 1 - n, 0)
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)
    if isinstance(padding, str):
        raise argument_error(f"there is no padding {padding!r}", "use same, valid or numbers")
    return tuple((as_dim(p[0]), as_dim(p[1])) if isinstance(p, (tuple, list)) else (as_dim(p),) * 2
                 for p in _per_axis(padding, len(sizes), "padding"))  # type: ignore[misc]


def conv(x: Array, w: Array, b: Array = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
         groups: int = 1) -> Array:
    """Cross-correlation of x (N, C, ...) with w (O, C / groups, ...), plus a bias per output channel.

    padding: a number, one per axis, (before, after) per axis, ``"same"`` or ``"valid"``.
    """
    axes = x.ndim - 2
    if axes < 0 or w.ndim != x.ndim:
        raise argument_error(f"conv needs operands of the same number of axes, got {x.ndim} and {w.ndim}",
                             "shape them (N, C, spatial...) and (O, C, spatial...)")
    d = fnp.result_type(x, w)
    stride, dilation = _per_axis(stride, axes, "stride"), _per_axis(dilation, axes, "dilation")
    pads = _padding(padding, [plain(n) for n in x.shape[2:]], [plain(n) for n in w.shape[2:]], stride, dilation)
    y = op_call("conv", fnp.astype(x, d, copy=False), fnp.astype(w, d, copy=False), strides=stride, padding=pads,
                lhs_dilation=(1,) * axes, rhs_dilation=dilation, groups=groups)
    return y if b is None else y + fnp.reshape(b, (1, -1, *[1] * axes))


def _windows(x: Array, window: Any, stride: Any, padding: Any, value: Any) -> tuple[Array, tuple[int, ...]]:
    axes = x.ndim - 2
    window = _per_axis(window, axes, "window")
    stride = window if stride is None else _per_axis(stride, axes, "stride")
    ones = (1,) * axes
    pads = _padding(padding, [plain(n) for n in x.shape[2:]], window, stride, ones)
    if any(not (isinstance(p, int) and p == 0) for pair in pads for p in pair):
        x = fnp.pad(x, ((0, 0), (0, 0), *pads), constant_values=value)
    return op_call("windows", x, window=window, strides=stride, dilation=ones), tuple(range(2 + axes, 2 + 2 * axes))


def max_pool(x: Array, window: Any, stride: Any = None, padding: Any = 0) -> Array:
    """The largest element of each window; windows stand side by side by default."""
    d = to_dtype(x.dtype)
    lowest = -math.inf if d.floating else False if d.kind == "b" else int(np.iinfo(d.numpy).min)
    tiles, axes = _windows(x, window, stride, padding, lowest)
    return fnp.max(tiles, axis=axes)


def avg_pool(x: Array, window: Any, stride: Any = None, padding: Any = 0, *, count_padding: bool = True) -> Array:
    """The mean of each window; padding counts as zeros, or not at all."""
    tiles, axes = _windows(x, window, stride, padding, 0)
    if count_padding or padding in (0, "valid"):
        return fnp.mean(tiles, axis=axes)
    inside, _ = _windows(fnp.ones_like(x), window, stride, padding, 0)
    return _same(x, fnp.sum(tiles, axis=axes) / fnp.sum(inside, axis=axes))


def global_avg_pool(x: Array) -> Array:
    """Mean over all spatial axes: (N, C)."""
    return fnp.mean(x, axis=tuple(range(2, x.ndim)))


# ---- order ----------------------------------------------------------------------------------------------------------

def top_k(x: Array, k: int, axis: int = -1) -> tuple[Array, Array]:
    """The k largest elements along an axis in decreasing order, and their positions; equal ones keep their order."""
    turned = fnp.negative(x) if to_dtype(x.dtype).kind == "f" else fnp.invert(x)
    order = fnp.argsort(turned, axis=axis)
    order = order[(slice(None),) * (axis % x.ndim) + (slice(k),)]
    return fnp.take_along_axis(x, order, axis), order


def segment_sum(data: Array, segments: Array, count: Any) -> Array:
    """Sums of the rows of ``data`` by segment: row i goes to segment ``segments[i]`` of ``count`` ones.

    data: (n, ...); segments: (n,) integers; result: (count, ...).  Rows of a segment that does not exist are dropped.
    """
    data, segments = fnp.asarray(data), fnp.astype(fnp.asarray(segments), np.int64)
    inside = fnp.logical_and(segments >= 0, segments < count)
    kept = fnp.where(fnp.reshape(inside, (-1, *[1] * (data.ndim - 1))), data, fnp.zeros_like(data))
    empty = fnp.zeros((count, *data.shape[1:]), dtype=data.dtype)
    return op_call("scatter_add", empty, fnp.where(inside, segments, 0), kept, axis=0)


# ---- short names, in the signatures that libraries of kernels share ------------------------------------------------

def conv2d(x: Array, w: Array, padding: Any = 0) -> Array:
    """Cross-correlation of x (N, C, H, W) with w (O, C, h, w), stride 1."""
    return conv(x, w, padding=padding)


def maxpool2(x: Array) -> Array:
    """The largest element of each 2 x 2 window of x (N, C, H, W)."""
    return max_pool(x, 2)


def sdpa(q: Array, k: Array, v: Array) -> Array:
    """Scaled dot-product attention: ``attention`` without a mask."""
    return attention(q, k, v)
