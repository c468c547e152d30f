"""One NumPy-like namespace per library, so that each workload is written once.

Here: what a library calls otherwise than NumPy, and its own fused form of what NumPy does not have.
Not here: how its functions are compiled and called (peers.py).

Beyond NumPy's names a namespace has: erf, softmax, layer_norm, gelu, attention (COMMON gives general definitions),
conv2d, maxpool2, segment_sum, pick (one element per row) and top (the largest elements of each row).
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as onp


class Missing(Exception):
    """A library does not have what a workload needs."""


class Space:
    """Names of a library: what ``names`` says, else the library's own, else the general definition."""

    def __init__(self, library: Any, **names: Any):
        self._library = library
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._library, name, None)
        if found is None and name in COMMON:
            found = functools.partial(COMMON[name], self)
        if found is None:
            raise Missing(f"no {name}")
        self.__dict__[name] = found
        return found


# ---- general definitions --------------------------------------------------------------------------------------------

def _softmax(np: Any, x: Any) -> Any:
    e = np.exp(x - np.amax(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def _layer_norm(np: Any, x: Any, scale: Any, shift: Any) -> Any:
    d = x - np.mean(x, axis=-1, keepdims=True)
    return d / np.sqrt(np.mean(d * d, axis=-1, keepdims=True) + 1e-5) * scale + shift


def _gelu(np: Any, x: Any) -> Any:
    return 0.5 * x * (1.0 + np.erf(x * math.sqrt(0.5)))


def _attention(np: Any, q: Any, k: Any, v: Any, causal: bool = False) -> Any:
    scores = np.matmul(q, np.swapaxes(k, -1, -2)) * q.shape[-1] ** -0.5
    if causal:
        n = scores.shape[-1]
        scores = np.where(np.arange(n)[:, None] >= np.arange(n)[None, :], scores, -1e30)
    return np.matmul(np.softmax(scores), v)


def _pick(np: Any, x: Any, at: Any) -> Any:
    return np.take_along_axis(x, at[:, None], axis=1)[:, 0]


def _top(np: Any, x: Any, k: int) -> Any:
    return -np.sort(-x, axis=-1)[..., :k]


COMMON: dict[str, Callable[..., Any]] = {"softmax": _softmax, "layer_norm": _layer_norm, "gelu": _gelu,
                                         "attention": _attention, "pick": _pick, "top": _top}


# ---- NumPy ----------------------------------------------------------------------------------------------------------

def convolve(x: onp.ndarray, w: onp.ndarray, padding: int = 0, stride: int = 1, groups: int = 1) -> onp.ndarray:
    """Cross-correlation as a matrix product over windows, per group."""
    x = onp.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    tiles = onp.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    n, channels, h, wide = tiles.shape[:4]
    if groups == channels == len(w):
        return onp.einsum("nchwij,cij->nchw", tiles, w[:, 0], optimize=True)
    out = []
    for g in range(groups):
        part = tiles[:, g * channels // groups:(g + 1) * channels // groups].transpose(0, 2, 3, 1, 4, 5)
        mine = w[g * len(w) // groups:(g + 1) * len(w) // groups]
        out.append(part.reshape(n * h * wide, -1) @ mine.reshape(len(mine), -1).T)
    return onp.concatenate(out, -1).reshape(n, h, wide, len(w)).transpose(0, 3, 1, 2)


def _numpy_segments(x: onp.ndarray, which: onp.ndarray, count: int) -> onp.ndarray:
    out = onp.zeros((count, *x.shape[1:]), x.dtype)
    onp.add.at(out, which, x)
    return out


def _numpy_erf() -> Any:
    try:
        return importlib.import_module("scipy.special").erf
    except ImportError:
        slow = onp.frompyfunc(math.erf, 1, 1)
        return lambda x: slow(x).astype(x.dtype)


def _numpy_top(x: onp.ndarray, k: int) -> onp.ndarray:
    return -onp.sort(onp.partition(-x, k - 1, -1)[..., :k], -1)


@functools.cache
def numpy_space() -> Space:
    return Space(onp, erf=_numpy_erf(), conv2d=convolve, segment_sum=_numpy_segments, top=_numpy_top,
                 maxpool2=lambda x: x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5)),
                 einsum=functools.partial(onp.einsum, optimize=True))


# ---- flowc, jax, torch ----------------------------------------------------------------------------------------------

@functools.cache
def flowc_space() -> Space:
    np, nn = importlib.import_module("flowc.numpy"), importlib.import_module("flowc.nn")

    def conv2d(x: Any, w: Any, padding: int = 0, stride: int = 1, groups: int = 1) -> Any:
        return nn.conv(x, w, padding=padding, stride=stride, groups=groups)
    return Space(np, erf=nn.erf, softmax=nn.softmax, layer_norm=nn.layer_norm, gelu=nn.gelu, attention=nn.attention,
                 conv2d=conv2d, maxpool2=lambda x: nn.max_pool(x, 2), segment_sum=nn.segment_sum,
                 top=lambda x, k: nn.top_k(x, k)[0])


@functools.cache
def jax_space() -> Space:
    jax = importlib.import_module("jax")
    np, lax = importlib.import_module("jax.numpy"), jax.lax

    def conv2d(x: Any, w: Any, padding: int = 0, stride: int = 1, groups: int = 1) -> Any:
        return lax.conv_general_dilated(x, w, (stride, stride), ((padding,) * 2,) * 2, feature_group_count=groups,
                                        dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def attention(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
        t = functools.partial(np.swapaxes, axis1=1, axis2=2)  # its layout is batch, length, heads, width
        return t(jax.nn.dot_product_attention(t(q), t(k), t(v), is_causal=causal))
    return Space(np, erf=jax.scipy.special.erf, softmax=jax.nn.softmax, conv2d=conv2d, attention=attention,
                 gelu=lambda x: jax.nn.gelu(x, approximate=False), segment_sum=jax.ops.segment_sum,
                 maxpool2=lambda x: lax.reduce_window(x, -onp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"),
                 top=lambda x, k: lax.top_k(x, k)[0])


@functools.cache
def torch_space() -> Space:
    torch = importlib.import_module("torch")
    f = importlib.import_module("torch.nn.functional")

    def maximum(a: Any, b: Any) -> Any:
        return torch.maximum(a, b) if isinstance(b, torch.Tensor) else torch.clamp(a, min=b)

    def segments(x: Any, which: Any, count: int) -> Any:
        return torch.zeros((count, *x.shape[1:]), dtype=x.dtype).index_add(0, which, x)
    return Space(torch, astype=lambda x, dtype: x.to(dtype), pad=lambda x, n: f.pad(x, (n,) * 2 * x.ndim),
                 amin=torch.amin, equal=torch.eq, maximum=maximum, clip=torch.clamp,
                 var=lambda x, axis=None: torch.var(x, axis, correction=0),
                 transpose=lambda x, axes: x.permute(axes), take=lambda x, i, axis: torch.index_select(x, axis, i),
                 sort=lambda x, axis=-1: torch.sort(x, axis)[0], top=lambda x, k: torch.topk(x, k)[0],
                 pick=lambda x, at: torch.gather(x, 1, at[:, None])[:, 0], segment_sum=segments,
                 conv2d=lambda x, w, padding=0, stride=1, groups=1: f.conv2d(x, w, None, stride, padding, 1, groups),
                 maxpool2=lambda x: f.max_pool2d(x, 2), softmax=lambda x: torch.softmax(x, -1), gelu=f.gelu,
                 layer_norm=lambda x, scale, shift: f.layer_norm(x, x.shape[-1:], scale, shift),
                 attention=lambda q, k, v, causal=False: f.scaled_dot_product_attention(q, k, v, is_causal=causal))


# ---- numexpr: a namespace that writes the formula down ---------------------------------------------------------------

class Formula:
    """A value as the text of an expression; numbers become variables of the arguments' dtype."""

    def __init__(self, text: str, numbers: dict[str, Any]):
        self.text, self.numbers = text, numbers

    def _operand(self, x: Any) -> str:
        if isinstance(x, Formula):
            return x.text
        if not isinstance(x, (int, float)):
            raise Missing(f"no {type(x).__name__} in formulas")
        return self.numbers.setdefault(x, f"c{len(self.numbers)}")

    def _make(self, text: str) -> Formula:
        return Formula(text, self.numbers)

    def __neg__(self) -> Formula:
        return self._make(f"(-{self.text})")

    def __getitem__(self, at: Any) -> Formula:
        raise Missing("no indexing in formulas")


def _operator(sign: str, swapped: bool) -> Callable[[Formula, Any], Formula]:
    def apply(self: Formula, other: Any) -> Formula:
        a, b = self.text, self._operand(other)
        return self._make(f"({b} {sign} {a})" if swapped else f"({a} {sign} {b})")
    return apply


SIGNS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "gt": ">", "lt": "<", "and": "&"}
for _name, _sign in SIGNS.items():
    setattr(Formula, f"__{_name}__", _operator(_sign, False))
    if _name in ("add", "sub", "mul", "truediv"):
        setattr(Formula, f"__r{_name}__", _operator(_sign, True))


def formula_space() -> Space:
    def call(name: str) -> Callable[..., Formula]:
        def apply(*args: Any) -> Formula:
            first = next((a for a in args if isinstance(a, Formula)), None)
            if first is None:
                raise Missing("no formula without a variable")
            return first._make(f"{name}({', '.join(first._operand(a) for a in args)})")
        return apply
    return Space(object(), **{n: call(n) for n in ("sqrt", "exp", "log", "log1p", "tanh", "sin", "cos", "where", "abs",
                                                   "floor")})
