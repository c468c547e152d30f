"""What generated tests draw: dtypes, shapes, values, memory layouts.

Here: special values per dtype, arrays of all kinds and layouts as hypothesis strategies.  Not here: whole programs
(test_random.py), operands of single ops (flowc/ops/samples.py).

Most arrays hold plain values: where NaN is everywhere, a comparison sees nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from flowc import types as t
from flowc.types import DType

LANES = (4, 8, 16, 32, 64)  # vector widths whose neighbours are drawn as sizes
SIZES = sorted({0, 1, 2, 3, 5, 7, 11, 13, 97, *LANES, *(w - 1 for w in LANES), *(w + 1 for w in LANES)})
LAYOUTS = ("c", "fortran", "negative", "strided", "zero", "unaligned", "readonly")


# ---- values ---------------------------------------------------------------------------------------------------------

def _float_limits(d: DType) -> tuple[float, float, float, float]:
    """Largest finite, smallest normal, smallest subnormal value, and the step above 1."""
    if d is t.bf16:
        return float.fromhex("0x1.fep127"), 2.0 ** -126, 2.0 ** -133, 2.0 ** -7
    info = np.finfo(d.numpy)
    return float(info.max), float(info.tiny), float(info.smallest_subnormal), float(info.eps)


def special_values(d: DType) -> np.ndarray:
    """About 40 values of ``d`` where arithmetic has its edges."""
    if d.kind == "b":
        return np.array([False, True])
    if d.kind in "iu":
        info = np.iinfo(d.numpy)
        near = [info.min, info.min + 1, info.max, info.max - 1, info.max // 2, info.max // 2 + 1]
        small = [v for v in (*range(-4, 10), -d.bits, d.bits - 1, d.bits, d.bits + 1, 16, 31, 63, 64, 100, 127)
                 if info.min <= v <= info.max]
        return np.array(sorted({*near, *small}), d.numpy)
    if d.kind == "c":
        parts = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan])
        grid = np.empty((len(parts), len(parts)), d.numpy)
        grid.real, grid.imag = parts[:, None], parts[None, :]
        return grid.ravel()
    largest, tiny, least, eps = _float_limits(d)
    sides = [0.0, least, 3 * least, tiny - least, tiny, eps / 2, eps, 1e-3, 0.25, 0.5 - eps / 4, 0.5, 1 - eps / 2, 1.0,
             1 + eps, 1.5, 2.0, 2.5, 3.0, np.pi, 10.0, 1 / eps, 2 / eps, largest / 2, largest, np.inf]
    return np.array([*sides, *(-x for x in sides), np.nan]).astype(d.numpy)


def plain_values(rng: np.random.Generator, d: DType, shape: Sequence[int]) -> np.ndarray:
    size = tuple(shape)
    if d.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    if d.kind in "iu":
        low = 0 if d.kind == "u" else -20
        return np.asarray(rng.integers(low, 20, size)).astype(d.numpy)
    if d.kind == "c":
        return np.asarray(rng.normal(size=size) + 1j * rng.normal(size=size)).astype(d.numpy)
    return np.asarray(rng.normal(size=size) * 2).astype(d.numpy)


def values(rng: np.random.Generator, d: DType, shape: Sequence[int], special: float = 0.0) -> np.ndarray:
    """Plain values, a share ``special`` of them replaced by special ones."""
    out = plain_values(rng, d, shape)
    if special and out.size:
        edge = rng.choice(special_values(d), out.shape)
        out = np.where(rng.random(out.shape) < special, edge, out).astype(d.numpy)
    return np.asarray(out)


# ---- layouts --------------------------------------------------------------------------------------------------------

def laid_out(a: np.ndarray, layout: str) -> np.ndarray:
    """An array equal to ``a`` in another memory layout; ``zero`` repeats the first element along every axis."""
    if layout == "fortran":
        return np.asfortranarray(a).reshape(a.shape, order="A")  # which makes vectors of scalars
    if layout == "negative":
        back = (slice(None, None, -1),) * a.ndim
        return np.ascontiguousarray(a[back])[back].reshape(a.shape)
    if layout == "strided":
        room = np.zeros([2 * s + 1 for s in a.shape], a.dtype)
        view = room[(..., *(slice(0, 2 * s, 2) for s in a.shape))]
        view[...] = a
        return view
    if layout == "zero":
        return a if a.size == 0 else np.broadcast_to(a[(slice(0, 1),) * a.ndim], a.shape)
    if layout == "unaligned":
        room = np.zeros(a.nbytes + 1, np.uint8)
        view = room[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view
    out = np.array(a, order="C")
    if layout == "readonly":
        out.setflags(write=False)
    return out


# ---- strategies -----------------------------------------------------------------------------------------------------

def dtypes(among: Sequence[DType] = t.ALL) -> st.SearchStrategy[DType]:
    return st.sampled_from(list(among))


@st.composite
def shapes(draw: st.DrawFn, min_rank: int = 0, max_rank: int = 4, max_elements: int = 4000) -> tuple[int, ...]:
    """0-d, empty, single, prime and near vector widths; at most ``max_elements`` elements."""
    rank = draw(st.integers(min_rank, max_rank))
    out: list[int] = []
    left = max_elements
    for _ in range(rank):
        size = draw(st.sampled_from([s for s in SIZES if s <= max(left, 1)]))
        out.append(size)
        left //= max(size, 1)
    return tuple(draw(st.permutations(out)))


@st.composite
def arrays(draw: st.DrawFn, d: DType | None = None, shape: Sequence[int] | None = None, layout: str | None = None,
           ) -> np.ndarray:
    """An array of any dtype, shape and layout not given; one in four holds special values."""
    d = d or draw(dtypes())
    shape = draw(shapes()) if shape is None else shape
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    special = draw(st.sampled_from([0.0, 0.0, 0.0, 0.3]))
    layout = layout or draw(st.sampled_from(LAYOUTS))
    return laid_out(values(rng, d, shape, special), layout)


@st.composite
def broadcastable(draw: st.DrawFn, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape``: leading axes left out, others replaced by 1."""
    kept = list(shape[draw(st.integers(0, len(shape))):])
    return tuple(draw(st.sampled_from([s, s, 1])) for s in kept)


@st.composite
def axis_sets(draw: st.DrawFn, rank: int) -> tuple[int, ...]:
    """Axes to reduce over, in increasing order; possibly none."""
    return tuple(a for a in range(rank) if draw(st.booleans()))
