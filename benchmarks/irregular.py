"""Workloads whose addresses or order depend on data: gathers, scatters, sums of segments, prefix sums, sorting.

Also the random graph of operations that compile times are compared on.  Read next: spaces.py.
"""

from __future__ import annotations

import math
import random
from typing import Any

from benchmarks.cases import elements, workload

workload("gather_rows_1m_of_100000x32", "indexing",
         lambda d: [d.normal(d.n(100_000), 32), d.integers(d.n(100_000), d.n(1_000_000))],
         lambda x, i: 0, traffic=lambda args, results: args[1].nbytes + 2 * results)(
    lambda np, x, i: np.take(x, i, axis=0))


@workload("segment_sum_1m_to_1000x16", "indexing",
          lambda d: [d.normal(d.n(1_000_000), 16), d.integers(1000, d.n(1_000_000))], elements(1), tol=1e-3)
def segments(np: Any, x: Any, which: Any) -> Any:
    return np.segment_sum(x, which, 1000)


@workload("histogram_4m", "indexing", lambda d: [d.uniform(0, 1, d.n(4_000_000))], elements(3), tol=1e-3)
def histogram(np: Any, x: Any) -> Any:
    return np.segment_sum(np.ones_like(x), np.astype(np.floor(x * 256.0), np.int64), 256)


workload("cumsum_rows_4096x4096", "scan", lambda d: [d.normal(d.n(4096), d.n(4096))], elements(1), tol=1e-3)(
    lambda np, x: np.cumsum(x, axis=1))
workload("cumsum_4m_f64", "scan", lambda d: [d.normal(d.n(4_000_000), dtype="float64")], elements(1), tol=1e-10,
         dtype="float64")(lambda np, x: np.cumsum(x, axis=0))
workload("sort_rows_4096x1024", "order", lambda d: [d.normal(d.n(4096), d.n(1024))],
         lambda x: x.size * math.log2(max(2, x.shape[1])))(lambda np, x: np.sort(x, axis=1))
workload("top_10_of_4096x4096", "order", lambda d: [d.normal(d.n(4096), d.n(4096, least=16))], elements(1))(
    lambda np, x: np.top(x, 10))


# ---- random graphs --------------------------------------------------------------------------------------------------

_KINDS = ("matmul",) * 2 + ("tanh",) * 6 + ("max",) * 3 + ("minus",) * 4 + ("times",) * 3 + ("bell",) * 2
NEAR = 8  # operands are among the last so many values


def random_plan(count: int) -> list[tuple[str, int, int]]:
    """``count`` operations: kind and two operands by number; 0 and 1 are the arguments."""
    r = random.Random(count)
    return [(r.choice(_KINDS), *(r.randrange(max(0, i + 2 - NEAR), i + 2) for _ in range(2))) for i in range(count)]


def random_graph(np: Any, plan: list[tuple[str, int, int]], a: Any, w: Any) -> Any:
    values = [a, w]
    for kind, i, j in plan:
        x, y = values[i], values[j]
        if kind == "matmul":
            z = np.matmul(x, w) * 0.1
        elif kind == "tanh":
            z = np.tanh(x + y)
        elif kind == "max":
            z = np.maximum(x, y)
        elif kind == "minus":
            z = x - 0.5 * y
        elif kind == "times":
            z = 0.5 * x * y
        else:
            z = np.exp(-x * x)
        values.append(z)
    total = values[-NEAR]
    for v in values[1 - NEAR:]:
        total = total + v
    return total
