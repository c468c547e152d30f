"""Minimal filtering: the transforms of tiles, kernels and results, when they pay, what they do to rounding.

Here: those, as matters of the sizes alone.  Not here: the convolution made of them (convolve_winograd.py).

F(m, 3) of Winograd, "Arithmetic complexity of computations" (1980): m results of a filter of three taps from m + 2
products, as At ((G g) * (Bt d)); polynomials are multiplied at m + 1 points and infinity.  Along two axes as
F(m x m, 3 x 3) of Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016).

Rounding.  With u the unit roundoff and K channels (and taps along other axes), the error of a result is at most
(K + DEPTH) u times |At| ((|G| |g| |Gt|) * (|Bt| |d| |B|)) |A|, summed over channels (``magnitudes``), to first order in
u: K roundings on the way through the chain of fused multiply-adds, and at most DEPTH on the way through the transforms,
which are at most 2, 4 and 4 for each pass of Bt, G and At (constants count), of two passes each.  The sums as they are
written have 9 K u times |g| |d|.  The sums of magnitudes of |Bt|, |G| and |At| are small for points near 1: for data of
one scale the small tiles err less than the sums as written, whose chains are nine times as long; large ones, whose
points are those that err least, about twice as much from LONG channels on (root mean square).  Where the scale of the
data jumps between neighbours, a result knows the largest element of its tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import prod as int_prod
from typing import Any, Protocol

import numpy as np

from flowc import config
from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv
from flowc.graph import PARAM, Node
from flowc.passes.convolve_copy import guess
from flowc.passes.tiles import ceil_div

TAPS = 3
DEPTH = 20       # roundings of the transforms
LANES = 16       # lanes in comparisons of forms: part of the meaning, not of the machine
# steps of a sum that these are worth, for one vector of tiles and one place: bringing a channel, finishing an output
# channel; for one window of the kernel: transforming it
BRING, FINISH, KERNEL = 4, 6, 0.7
KNOWN = 0.3      # and for one that was transformed before, as it is constant: reading it
LINE = 40        # the same for copying one line of the input
LONG = 64        # channels whose sums as written err as much as large tiles do
COPY = 12        # and for copying one vector of neighbours that lie apart
SIDE = 64        # rows and columns of results that one task adds up
TASKS, PART = 16, 32  # tasks wanted before sums are cut into parts, and tiles of one part, at least
STEPS = 32       # nodes between a kernel and the constants that it is made of, at most
GAIN = 1.15      # how much faster it must be, by these figures

Rule = Callable[[Any, Sequence[Any]], list[Any]]  # with an Arithmetic


class Arithmetic(Protocol):
    """What transforms are written with: expressions of a kernel, or arrays of magnitudes."""

    def add(self, x: Any, y: Any) -> Any: ...
    def sub(self, x: Any, y: Any) -> Any: ...
    def mul(self, x: Any, y: Any) -> Any: ...
    def fma(self, x: Any, y: Any, z: Any) -> Any: ...
    def const(self, value: float, dtype: Any) -> Any: ...


@dataclass(frozen=True)
class Filter:
    """F(out, 3): the three transforms of one axis."""

    out: int
    input: Rule
    kernel: Rule
    output: Rule
    spread: Rule   # the transpose of ``output``
    gather: Rule   # and that of ``kernel``

    @property
    def size(self) -> int:
        """Elements of a tile along one axis."""
        return self.out + TAPS - 1

    @property
    def places(self) -> int:
        return self.size ** 2


def _input2(b: Arithmetic, d: Sequence[Any]) -> list[Any]:
    return [b.sub(d[0], d[2]), b.add(d[1], d[2]), b.sub(d[2], d[1]), b.sub(d[1], d[3])]


def _kernel2(b: Arithmetic, g: Sequence[Any]) -> list[Any]:
    ends = b.add(g[0], g[2])
    return [g[0], b.mul(b.add(ends, g[1]), 0.5), b.mul(b.sub(ends, g[1]), 0.5), g[2]]


def _output2(b: Arithmetic, m: Sequence[Any]) -> list[Any]:
    return [b.add(b.add(m[0], m[1]), m[2]), b.sub(b.sub(m[1], m[2]), m[3])]


def _spread2(b: Arithmetic, y: Sequence[Any]) -> list[Any]:
    return [y[0], b.add(y[0], y[1]), b.sub(y[0], y[1]), b.sub(b.const(0, y[1].dtype), y[1])]


def _gather2(b: Arithmetic, m: Sequence[Any]) -> list[Any]:
    even, odd = (b.mul(op(m[1], m[2]), 0.5) for op in (b.add, b.sub))
    return [b.add(m[0], even), odd, b.add(even, m[3])]


P, Q = 0.75, 1.5  # the points of the larger tile are 0, P, -P, Q, -Q and infinity; their powers are exact


def _input4(b: Arithmetic, d: Sequence[Any]) -> list[Any]:
    def ends(x: Any, y: Any, z: Any) -> Any:
        return b.fma(b.const(P * P * Q * Q, x.dtype), x, b.fma(b.const(-P * P - Q * Q, x.dtype), y, z))

    def pair(p: float, q: float) -> list[Any]:
        even, odd = (b.fma(b.const(-q * q, d[0].dtype), x, y) for x, y in ((d[2], d[4]), (d[1], d[3])))
        return [b.fma(b.const(s * p, d[0].dtype), odd, even) for s in (1, -1)]
    return [ends(d[0], d[2], d[4]), *pair(P, Q), *pair(Q, P), ends(d[1], d[3], d[5])]


def _kernel4(b: Arithmetic, g: Sequence[Any]) -> list[Any]:
    def pair(p: float, q: float) -> list[Any]:
        even, scale = b.fma(b.const(p * p, g[0].dtype), g[2], g[0]), 1 / (2 * p * p * (p * p - q * q))
        return [b.mul(b.fma(b.const(s * p, g[0].dtype), g[1], even), scale) for s in (1, -1)]
    return [b.mul(g[0], 1 / (P * P * Q * Q)), *pair(P, Q), *pair(Q, P), g[2]]


def _output4(b: Arithmetic, m: Sequence[Any]) -> list[Any]:
    even, odd = ([op(m[i], m[i + 1]) for i in (1, 3)] for op in (b.add, b.sub))

    def power(n: int, x: Sequence[Any]) -> Any:
        return b.fma(b.const(Q ** n, m[0].dtype), x[1], b.mul(x[0], P ** n))
    return [b.add(b.add(even[0], even[1]), m[0]), power(1, odd), power(2, even), b.add(power(3, odd), m[5])]


def _spread4(b: Arithmetic, y: Sequence[Any]) -> list[Any]:
    def pair(p: float) -> list[Any]:
        even, odd = (b.fma(b.const(p * p, y[0].dtype), y[i + 2], y[i]) for i in (0, 1))
        return [b.fma(b.const(s * p, y[0].dtype), odd, even) for s in (1, -1)]
    return [y[0], *pair(P), *pair(Q), y[3]]


def _gather4(b: Arithmetic, m: Sequence[Any]) -> list[Any]:
    even, odd = ([op(m[i], m[i + 1]) for i in (1, 3)] for op in (b.add, b.sub))

    def power(n: int, x: Sequence[Any], start: Any = None) -> Any:
        for v, p, q in zip(x, (P, Q), (Q, P), strict=True):
            scale = p ** n / (2 * p * p * (p * p - q * q))
            start = b.mul(v, scale) if start is None else b.fma(b.const(scale, v.dtype), v, start)
        return start
    return [power(0, even, b.mul(m[0], 1 / (P * P * Q * Q))), power(1, odd), power(2, even, m[5])]


SMALL = Filter(2, _input2, _kernel2, _output2, _spread2, _gather2)
FILTERS = (SMALL, Filter(4, _input4, _kernel4, _output4, _spread4, _gather4))


def both_ways(rule: Rule, b: Any, x: Sequence[Sequence[Any]], keep: Callable[[Any], Any] = lambda v: v
              ) -> list[list[Any]]:
    """A table of values transformed along its columns, then along its rows; ``keep`` names every value."""
    columns = [[keep(v) for v in rule(b, c)] for c in zip(*x, strict=True)]
    return [[keep(v) for v in rule(b, r)] for r in zip(*columns, strict=True)]


# ---- when -----------------------------------------------------------------------------------------------------------

def small_axes(conv: Node) -> tuple[int, int] | None:
    """The two axes of three taps that are cut into tiles, the second of them the innermost; None if there are none."""
    a, taps = conv.attrs, conv.inputs[1].shape[2:]
    fit = [i for i, t in enumerate(taps) if isinstance(t, int) and t == TAPS
           and a["strides"][i] == a["rhs_dilation"][i] == a["lhs_dilation"][i] == 1]
    return (fit[-2], fit[-1]) if len(fit) >= 2 and fit[-1] == len(taps) - 1 else None


def tiled(conv: Node, small: Sequence[int], f: Filter) -> list[DimLike]:
    """Tiles along each axis."""
    return [ceildiv(o, f.out) if i in small else o for i, o in enumerate(conv.shape[2:])]


def possible(conv: Node) -> bool:
    known = all(isinstance(d, int) and d > 0 for d in conv.inputs[1].shape)
    return small_axes(conv) is not None and known and conv.dtype.floating


def constant(node: Node) -> bool:
    """Does the node depend on constants alone, by few steps?"""
    seen, stack = {node}, [node]
    while stack and len(seen) <= STEPS:
        n = stack.pop()
        if n.op is PARAM:
            return False
        stack += {x for x in n.inputs if x not in seen}
        seen.update(n.inputs)
    return not stack


def best_filter(conv: Node) -> Filter | None:
    """The fastest form on a CPU; None: sums as they are written."""
    small = small_axes(conv)
    if small is None or not possible(conv) or not config.get("minimal_filtering"):
        return None
    w = list(map(guess, conv.inputs[1].shape))
    depth, rows = int_prod(w[1:]) // TAPS ** 2, w[0] // conv.attrs["groups"]
    images = guess(conv.shape[0])
    best, least = None, images * int_prod(map(guess, conv.shape[2:])) / LANES * rows * depth * TAPS ** 2 / GAIN
    for f in FILTERS if depth >= LONG else (SMALL,):
        tiles = list(map(guess, tiled(conv, small, f)))
        waste = ceil_div(tiles[-1], LANES) * LANES / max(1, tiles[-1])  # rows of tiles come in whole vectors
        vectors = ceil_div(images * int_prod(tiles), LANES)
        steps = rows * depth + BRING * depth * waste + FINISH * rows
        # one that is not constant stays in the cache of the task that makes it
        kernel = KNOWN if constant(conv.inputs[1]) else KERNEL if vectors > 1 else KERNEL / 2
        time = f.places * (vectors * steps + kernel * rows * depth)
        time += LINE * depth * images * int_prod(map(guess, conv.shape[2:-1]))
        if time < least:
            best, least = f, time
    return best


# ---- the same for sums over tiles of a large kernel ------------------------------------------------------------------

def summable(conv: Node) -> bool:
    """Is the kernel an image, and are there three results along both axes?"""
    a, w = conv.attrs, conv.inputs[1]
    known = (conv.inputs[0].shape[0], *conv.inputs[0].shape[2:], w.shape[0], *w.shape[2:])
    return (conv.shape[2:] == (TAPS, TAPS) and conv.dtype.floating
            and all(n == 1 for key in ("strides", "lhs_dilation", "rhs_dilation") for n in a[key])
            and all(isinstance(d, int) and d > 0 for d in known))


def summed_tiles(w: Sequence[DimLike], f: Filter) -> int:
    return guess(w[1]) * int_prod(ceil_div(guess(n), f.out) for n in w[2:])


def parts_of(conv: Node, f: Filter) -> int:
    """Into how many parts the tiles are cut, by the sizes alone: enough for all threads."""
    w, tiles = conv.inputs[1].shape, summed_tiles(conv.inputs[1].shape, f)
    groups, images = conv.attrs["groups"], guess(conv.shape[0])
    tasks = groups * ceil_div(images, SIDE) * ceil_div(guess(w[0]) // groups, SIDE)
    length = ceil_div(tiles, max(1, min(ceil_div(TASKS, tasks), tiles // PART)))
    return max(1, ceil_div(tiles, length))


def best_sums(conv: Node) -> Filter | None:
    """The fastest form on a CPU for such a convolution; None: sums as they are written."""
    if not summable(conv) or not config.get("minimal_filtering"):
        return None
    w, groups, images = list(map(guess, conv.inputs[1].shape)), conv.attrs["groups"], guess(conv.shape[0])
    rows = w[0] // groups
    products, pixels = rows * images / LANES, w[1] * int_prod(w[2:])
    best, least = None, pixels * TAPS ** 2 * products / GAIN
    for f in FILTERS:
        bring = (ceil_div(images, LANES) * ceil_div(rows, SIDE) + ceil_div(rows, LANES) * ceil_div(images, SIDE))
        time = f.places * (summed_tiles(w, f) * (products + BRING * bring) + FINISH * products * parts_of(conv, f))
        time += COPY * pixels * (ceil_div(images, LANES) + ceil_div(rows, LANES))
        if time < least:
            best, least = f, time
    return best


# ---- rounding -------------------------------------------------------------------------------------------------------

class Magnitudes:
    """Arithmetic that bounds magnitudes: nothing cancels."""

    add = sub = staticmethod(np.add)

    def mul(self, x: Any, y: Any) -> Any:
        return np.abs(x) * np.abs(y)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return np.abs(x) * np.abs(y) + np.abs(z)

    def const(self, value: float, dtype: Any) -> Any:
        return abs(value)


def magnitudes(conv: Node, f: Filter, x: np.ndarray, w: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """|At| ((|G| |g| |Gt|) * (|Bt| |d| |B|)) |A| for every result, from magnitudes; ``attrs`` with sizes filled in."""
    small = small_axes(conv)
    assert small is not None
    padding, b = list(attrs["padding"]), Magnitudes()
    outs = [max(0, x.shape[2 + i] + sum(padding[i]) - TAPS + 1) for i in small]
    tiles = [ceil_div(o, f.out) for o in outs]
    for i, count in zip(small, tiles, strict=True):
        x = _reached(x, 2 + i, np.arange(count * f.out + TAPS - 1) - padding[i][0])
        padding[i] = (0, 0)

    def pick(a: np.ndarray, first: Sequence[int], step: int, counts: Sequence[int]) -> np.ndarray:
        for i, at, n in zip(small, first, counts, strict=True):
            a = np.take(a, at + step * np.arange(n), 2 + i)
        return a

    def places(a: np.ndarray, size: int, step: int, counts: Sequence[int], rule: Rule, axis: int) -> np.ndarray:
        table = [[pick(a, (i, j), step, counts) for j in range(size)] for i in range(size)]
        return np.concatenate(list(chain(*both_ways(rule, b, table))), axis)
    v = places(x, f.size, f.out, tiles, f.input, 1)
    u = places(w, TAPS, 1, (1, 1), f.kernel, 0)
    m = conv.op.numpy(v, u, **{**attrs, "padding": tuple(padding), "groups": attrs["groups"] * f.places})
    parts = np.split(m, f.places, 1)
    y = both_ways(f.output, b, [parts[f.size * i:f.size * (i + 1)] for i in range(f.size)])
    lines = [np.stack(line, -1).reshape(*line[0].shape[:-1], -1) for line in y]
    axis = 3 + small[0]
    full = np.stack(lines, axis)
    full = full.reshape(*full.shape[:axis - 1], full.shape[axis - 1] * f.out, *full.shape[axis + 1:])
    return pick(full, (0, 0), 1, outs)


def sum_magnitudes(conv: Node, f: Filter, x: np.ndarray, w: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """|Gt| sum((|A| |y| |At|) * (|Bt| |d| |B|)) |G| for every result, from magnitudes."""
    b, groups = Magnitudes(), attrs["groups"]
    tiles = [ceil_div(n, f.out) for n in w.shape[2:]]
    for axis, (count, (low, _)) in enumerate(zip(tiles, attrs["padding"], strict=True), start=2):
        x, w = (_reached(a, axis, np.arange(count * f.out + more) - skip)
                for a, more, skip in ((x, TAPS - 1, low), (w, 0, 0)))

    def table(a: np.ndarray, size: int) -> list[list[np.ndarray]]:
        ends = [(n - 1) * f.out + 1 for n in tiles]
        return [[a[:, :, i:i + ends[0]:f.out, j:j + ends[1]:f.out] for j in range(size)] for i in range(size)]
    u, v = both_ways(f.input, b, table(x, f.size)), both_ways(f.spread, b, table(w, f.out))
    sums = [[np.einsum("cgnyx,gonyx->cgo", d.reshape(len(d), groups, -1, *tiles), y.reshape(groups, -1, *y.shape[1:])
                       ).reshape(len(d), -1) for d, y in zip(*row, strict=True)] for row in zip(u, v, strict=True)]
    return np.stack([np.stack(row, -1) for row in both_ways(f.gather, b, sums)], -2)


def _reached(a: np.ndarray, axis: int, at: np.ndarray) -> np.ndarray:
    """The elements at these positions of an axis; zero where there is none."""
    if not a.shape[axis]:
        return np.zeros((*a.shape[:axis], len(at), *a.shape[axis + 1:]), a.dtype)
    known = (at >= 0) & (at < a.shape[axis])
    known = known.reshape([-1 if k == axis else 1 for k in range(a.ndim)])
    return np.where(known, np.take(a, at, axis, mode="wrap"), 0)
