"""Operands that the op records offer to generated tests.

Here: drawing arrays and the usual lists of sample calls.  Not here: special values and layouts (tests/strategies.py).
Read next: elementwise.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flowc.types import DType

Call = tuple[tuple[np.ndarray, ...], dict[str, Any]]
Samples = Callable[["np.random.Generator"], list[Call]]  # by name: NumPy loads it on first use
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (7,), (3, 5))


def draw(rng: np.random.Generator, d: DType, shape: Sequence[int], domain: tuple[float, float] = (-8.0, 8.0),
         ) -> np.ndarray:
    """An array of ``d``: floats evenly in ``domain``, integers mostly small with some from the whole range."""
    size = tuple(shape)
    if d.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    if d.kind in "iu":
        info = np.iinfo(d.numpy)
        small = rng.integers(max(info.min, -9), 10, size)
        whole = rng.integers(info.min, info.max, size, dtype=d.numpy, endpoint=True)
        return np.asarray(np.where(rng.random(size) < 0.7, small.astype(d.numpy), whole))
    if d.kind == "c":
        return np.asarray(rng.uniform(*domain, size) + 1j * rng.uniform(*domain, size)).astype(d.numpy)
    return np.asarray(rng.uniform(*domain, size)).astype(d.numpy)


def elementwise(dtypes: Iterable[DType], arity: int, domain: tuple[float, float]) -> Samples:
    """``arity`` operands of one type, for every dtype and the usual shapes."""
    def samples(rng: np.random.Generator) -> list[Call]:
        return [(tuple(draw(rng, d, s, domain) for _ in range(arity)), {}) for d in dtypes for s in SHAPES]
    return samples


def calls(dtypes: Iterable[DType], *rows: tuple[tuple[tuple[int, ...], ...], dict[str, Any]],
          domain: tuple[float, float] = (-8.0, 8.0)) -> Samples:
    """Every row, given as operand shapes and attributes, in every dtype."""
    def samples(rng: np.random.Generator) -> list[Call]:
        return [(tuple(draw(rng, d, s, domain) for s in shapes), dict(attrs)) for d in dtypes for shapes, attrs in rows]
    return samples
