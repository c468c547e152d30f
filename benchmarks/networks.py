"""Workloads from neural networks: layers, inference, training steps, one function at many sizes.

The steps in NumPy are written by hand: they check the gradients of all others.  Read next: irregular.py.
"""

from __future__ import annotations

from typing import Any

import numpy as onp

from benchmarks.cases import Draw, workload
from benchmarks.spaces import convolve

# ---- dense ----------------------------------------------------------------------------------------------------------


def mlp(np: Any, *args: Any) -> Any:
    *p, x = args
    for i in range(0, len(p), 2):
        x = np.matmul(x, p[i]) + p[i + 1]
        if i + 2 < len(p):
            x = np.maximum(x, 0.0)
    return x


def entropy(np: Any, scores: Any, labels: Any) -> Any:
    z = scores - np.amax(scores, axis=-1, keepdims=True)
    logs = z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
    return -np.mean(np.sum(labels * logs, axis=-1))


def mlp_loss(np: Any, *args: Any) -> Any:
    *rest, labels = args
    return entropy(np, mlp(np, *rest), labels)


def _softmax(z: onp.ndarray) -> onp.ndarray:
    e = onp.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _mlp_backward(p: list, x: onp.ndarray, labels: onp.ndarray) -> tuple[Any, list, onp.ndarray]:
    """Loss, gradients of the parameters, gradient of the input."""
    inputs = [x]
    for i in range(0, len(p), 2):
        x = inputs[-1] @ p[i] + p[i + 1]
        inputs.append(onp.maximum(x, 0) if i + 2 < len(p) else x)
    chance = _softmax(inputs.pop())
    loss = -onp.mean(onp.sum(labels * onp.log(chance), -1))
    d = (chance - labels) / len(labels)
    grads: list = []
    for i in range(len(p) - 2, -1, -2):
        a = inputs[i // 2]
        grads = [a.T @ d, d.sum(0), *grads]
        d = d @ p[i].T
        if i:
            d = d * (a > 0)
    return loss, grads, d


def mlp_step(rate: float, *args: Any) -> tuple:
    *p, x, labels = args
    loss, grads, _ = _mlp_backward(p, x, labels)
    return (loss, *[w - rate * g for w, g in zip(p, grads)])


DIGITS = (784, 512, 512, 10)


def _weights(args: Any) -> int:
    return sum(a.size for a in args if a.ndim == 2)


def _forward(*args: Any) -> float:
    return 2.0 * _weights(args[:-1]) * len(args[-1])


def _training(*args: Any) -> float:
    weights = [a for a in args[:-2] if a.ndim == 2]
    return len(args[-1]) * (6.0 * _weights(args[:-2]) - 2.0 * weights[0].size)  # no gradient of the data


for _rows in (1, 32, 1024):
    workload(f"mlp_{_rows}", "network", lambda d, n=_rows: d.dense(*DIGITS) + [d.normal(d.n(n), 784)], _forward)(mlp)
workload("mlp_train_128", "training", lambda d: d.dense(*DIGITS) + [d.normal(d.n(128), 784), d.labels(d.n(128), 10)],
         _training, trained=6, step=mlp_step, tol=1e-3)(mlp_loss)
workload("softmax_regression_train_100", "training",
         lambda d: d.dense(784, 10) + [d.normal(d.n(100), 784), d.labels(d.n(100), 10)], _training, trained=2,
         step=mlp_step, tol=1e-3)(mlp_loss)
workload("mlp_sizes_unknown", "network", lambda d: d.dense(*DIGITS) + [d.normal(d.n(256, least=8), 784)],
         lambda *args: _forward(*args) * sum((1.0, 0.8, 0.61, 0.37)), lengths=(1.0, 0.8, 0.61, 0.37))(mlp)


# ---- convolutions ---------------------------------------------------------------------------------------------------

def _conv_flops(outputs: int, layers: int = 1):
    """From weights (second argument) and the places where they are applied."""
    return lambda x, w, *rest: 2.0 * layers * w.size * x.shape[0] * x.shape[2] * x.shape[3] / outputs


def _images(n: int, channels: int, size: int, *weights: tuple[int, ...], by: float = 0.05):
    def make(d: Draw) -> list[onp.ndarray]:
        s = d.n(size, multiple=8, least=8)
        return [d.normal(d.n(n), channels, s, s), *(d.normal(*w, by=by) for w in weights)]
    return make


workload("conv_3x3_8x64x56", "convolution", _images(8, 64, 56, (64, 64, 3, 3)), _conv_flops(1))(
    lambda np, x, w: np.conv2d(x, w, padding=1))
workload("conv_1x1_8x256x28", "convolution", _images(8, 256, 28, (128, 256, 1, 1)), _conv_flops(1))(
    lambda np, x, w: np.conv2d(x, w))
workload("conv_7x7_stride_2_4x3x224", "convolution", _images(4, 3, 224, (64, 3, 7, 7)), _conv_flops(4))(
    lambda np, x, w: np.conv2d(x, w, padding=3, stride=2))
workload("conv_depthwise_8x128x56", "convolution", _images(8, 128, 56, (128, 1, 3, 3)), _conv_flops(1))(
    lambda np, x, w: np.conv2d(x, w, padding=1, groups=x.shape[1]))


@workload("residual_block_1x64x56", "convolution", _images(1, 64, 56, (64, 64, 3, 3), (64, 64, 3, 3), (1, 64, 1, 1),
                                                           (1, 64, 1, 1)), _conv_flops(1, 2))
def residual(np: Any, x: Any, w1: Any, w2: Any, b1: Any, b2: Any) -> Any:
    h = np.maximum(np.conv2d(x, w1, padding=1) + b1, 0.0)
    return np.maximum(np.conv2d(h, w2, padding=1) + b2 + x, 0.0)


def lenet_loss(np: Any, c1: Any, c2: Any, *args: Any) -> Any:
    *p, x, labels = args
    x = np.maxpool2(np.maximum(np.conv2d(x, c1, padding=2), 0.0))
    x = np.maxpool2(np.maximum(np.conv2d(x, c2), 0.0))
    return mlp_loss(np, *p, np.reshape(x, (x.shape[0], 400)), labels)


def _pool(x: onp.ndarray) -> tuple[onp.ndarray, onp.ndarray]:
    """Largest of each 2 x 2 window, and where it is."""
    n, c, h, w = x.shape
    tiles = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
    at = tiles.argmax(-1)
    return onp.take_along_axis(tiles, at[..., None], -1)[..., 0], at


def _unpool(d: onp.ndarray, at: onp.ndarray) -> onp.ndarray:
    n, c, h, w = d.shape
    tiles = onp.zeros((n, c, h, w, 4), d.dtype)
    onp.put_along_axis(tiles, at[..., None], d[..., None], -1)
    return tiles.reshape(n, c, h, w, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, 2 * h, 2 * w)


def lenet_step(rate: float, c1: Any, c2: Any, *args: Any) -> tuple:
    *p, x, labels = args
    a1 = convolve(x, c1, padding=2)
    h1, at1 = _pool(onp.maximum(a1, 0))
    a2 = convolve(h1, c2)
    h2, at2 = _pool(onp.maximum(a2, 0))
    loss, grads, d = _mlp_backward(p, h2.reshape(len(x), 400), labels)
    d2 = _unpool(d.reshape(h2.shape), at2) * (a2 > 0)
    windows = onp.lib.stride_tricks.sliding_window_view
    g2 = onp.einsum("ncijhw,nohw->ocij", windows(h1, d2.shape[2:], (2, 3)), d2, optimize=True)
    k = c2.shape[2] - 1
    back = onp.pad(d2, ((0, 0), (0, 0), (k, k), (k, k)))
    d1 = convolve(back, c2.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])
    d1 = _unpool(d1, at1) * (a1 > 0)
    padded = onp.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    g1 = onp.einsum("ncijhw,nohw->ocij", windows(padded, d1.shape[2:], (2, 3)), d1, optimize=True)
    return (loss, *[w - rate * g for w, g in zip((c1, c2, *p), (g1, g2, *grads))])


workload("lenet_train_64", "training",
         lambda d: [d.normal(6, 1, 5, 5, by=0.2), d.normal(16, 6, 5, 5, by=0.1), *d.dense(400, 120, 84, 10),
                    d.normal(d.n(64), 1, 28, 28), d.labels(d.n(64), 10)],
         lambda *a: len(a[-1]) * (4.0 * a[0].size * 784 + 6.0 * a[1].size * 100 + 6.0 * _weights(a[2:-2])),
         trained=8, step=lenet_step, tol=5e-3)(lenet_loss)


# ---- attention ------------------------------------------------------------------------------------------------------

def _heads(batch: int, heads: int, length: int, width: int):
    return lambda d: [d.normal(d.n(batch), d.n(heads), d.n(length), width) for _ in range(3)]


def _attention_flops(share: float):
    return lambda q, k, v: share * (4.0 * q.size * k.shape[-2] + 18.0 * q.size // q.shape[-1] * k.shape[-2])


workload("attention_4x8x512x64", "network", _heads(4, 8, 512, 64), _attention_flops(1.0))(
    lambda np, q, k, v: np.attention(q, k, v))
workload("attention_causal_4x8x512x64", "network", _heads(4, 8, 512, 64), _attention_flops(0.5))(
    lambda np, q, k, v: np.attention(q, k, v, causal=True))

WIDTH, HEADS = 512, 8


@workload("encoder_512", "network",
          lambda d: [d.normal(d.n(512), WIDTH), d.normal(WIDTH, 3 * WIDTH, by=0.04), d.normal(WIDTH, WIDTH, by=0.04),
                     d.normal(WIDTH, 4 * WIDTH, by=0.04), d.normal(4 * WIDTH, WIDTH, by=0.02),
                     *(d.normal(WIDTH) for _ in range(4))],
          lambda x, *w: 2.0 * len(x) * _weights(w) + 4.0 * len(x) ** 2 * WIDTH)
def encoder(np: Any, x: Any, inwards: Any, outwards: Any, up: Any, down: Any, g1: Any, b1: Any, g2: Any,
            b2: Any) -> Any:
    n = x.shape[0]
    mixed = np.matmul(x, inwards)
    q, k, v = (np.swapaxes(np.reshape(mixed[:, i * WIDTH:(i + 1) * WIDTH], (1, n, HEADS, WIDTH // HEADS)), 1, 2)
               for i in range(3))
    seen = np.reshape(np.swapaxes(np.attention(q, k, v), 1, 2), (n, WIDTH))
    x = np.layer_norm(x + np.matmul(seen, outwards), g1, b1)
    return np.layer_norm(x + np.matmul(np.gelu(np.matmul(x, up)), down), g2, b2)


@workload("wide_32", "network", lambda d: [d.normal(128, 128), *(d.normal(128, 128, by=0.1) for _ in range(32))],
          lambda x, *ws: len(ws) * 2.0 * x.size * 128)
def wide(np: Any, x: Any, *ws: Any) -> Any:
    total = np.tanh(np.matmul(x, ws[0]))
    for w in ws[1:]:
        total = total + np.tanh(np.matmul(x, w))
    return total
