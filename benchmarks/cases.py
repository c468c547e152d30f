"""What a workload is: a function of a NumPy-like namespace, its arguments, its compulsory work.

Here: the record, the table, drawing of arguments at any scale.  Not here: the workloads (dense.py, networks.py,
irregular.py), the namespaces of the libraries (spaces.py).  Read next: dense.py.

Sizes are drawn through ``Draw.n``, which scales them: one factor makes every workload small enough for a test.  Work is
computed from the arguments, so it is right at every scale.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

SEED = 20


class Draw:
    """Random arguments.  ``scale`` multiplies the sizes that a workload asks for."""

    def __init__(self, scale: float = 1.0, seed: int = SEED):
        self.rng, self.scale = np.random.default_rng(seed), scale

    def n(self, size: int, multiple: int = 1, least: int = 0) -> int:
        """A size, scaled: a multiple of ``multiple``, at least ``least``."""
        if self.scale == 1:
            return size
        return max(least, multiple, round(size * self.scale / multiple) * multiple)

    def normal(self, *shape: int, by: float = 1.0, dtype: str = "float32") -> np.ndarray:
        return (self.rng.standard_normal(shape) * by).astype(dtype)

    def uniform(self, low: float, high: float, *shape: int, dtype: str = "float32") -> np.ndarray:
        return self.rng.uniform(low, high, shape).astype(dtype)

    def integers(self, high: int, *shape: int) -> np.ndarray:
        return self.rng.integers(0, high, shape)

    def labels(self, count: int, classes: int) -> np.ndarray:
        """One-hot rows."""
        return np.eye(classes, dtype=np.float32)[self.integers(classes, count)]

    def dense(self, *sizes: int) -> list[np.ndarray]:
        """Weights and biases of dense layers between layers of these sizes."""
        out = []
        for a, b in pairwise(sizes):
            out += [self.normal(a, b, by=a ** -0.5), self.normal(b, by=0.1)]
        return out


@dataclass(frozen=True)
class Workload:
    """fn(np, *arrays): the computation.  make: its arguments.  flops(*arrays): operations that cannot be avoided, a
    multiply-add being two, exp and its like fifteen to twenty.
    traffic: bytes that cannot be avoided as a function of (arguments, bytes of results), where it is not each of them
    once.  trained: fn is a loss, and one step of gradient descent on its first arguments is made; step: the same by
    hand in NumPy.  dtype: what the arguments are rounded to: float16, bfloat16.  tol: allowed error relative to the
    largest magnitude.  lengths: the call runs over these parts of the last argument's rows in turn, sizes unknown."""

    name: str
    family: str
    fn: Callable[..., Any]
    make: Callable[[Draw], list[np.ndarray]]
    flops: Callable[..., float]
    traffic: Callable[[Sequence[np.ndarray], int], float] | None = None
    trained: int = 0
    step: Callable[..., Any] | None = None
    dtype: str = "float32"
    tol: float = 2e-4
    rate: float = 0.1
    lengths: tuple[float, ...] = ()

    def calls(self, args: Sequence[Any]) -> list[list[Any]]:
        """The arguments of each call: one, or one per length."""
        if not self.lengths:
            return [list(args)]
        *rest, x = args
        return [[*rest, x[:max(1, int(len(x) * part))]] for part in self.lengths]


WORKLOADS: dict[str, Workload] = {}


def workload(name: str, family: str, make: Callable[[Draw], list[np.ndarray]], flops: Callable[..., float],
             **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the function below as a workload."""
    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in WORKLOADS, name
        WORKLOADS[name] = Workload(name, family, fn, make, flops, **more)
        return fn
    return add


def elements(per_element: float, which: int = 0) -> Callable[..., float]:
    """Operations in proportion to the elements of an argument."""
    return lambda *args: per_element * args[which].size


def product(*args: np.ndarray) -> float:
    """Operations of a matrix product of the first two arguments, batches and all."""
    a, b = args[:2]
    if b.ndim == 1:
        return 2.0 * a.size
    return 2.0 * math.prod(a.shape[:-2]) * a.shape[-2] * a.shape[-1] * b.shape[-1]


def select(globs: str) -> list[Workload]:
    """Workloads by comma list of patterns, of names or families."""
    patterns = [g.strip() for g in globs.split(",") if g.strip()]
    return [w for w in everything().values()
            if any(fnmatch.fnmatch(w.name, g) or fnmatch.fnmatch(w.family, g) for g in patterns)]


def everything() -> dict[str, Workload]:
    from benchmarks import dense, irregular, networks  # noqa: F401  (fill the table)
    return WORKLOADS
