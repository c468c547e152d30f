"""Sums of squares about a mean, from one trip through memory.

Here: finding ``sum((x - m)**2)`` next to ``sum(x)``, and taking both from pieces of ``x``.  Not here: the pass that
asks (legalize.py), kernels with several reductions (reductions.py, columns.py).  Read next: legalize.py.

A mean is known when all of ``x`` has been read, and what is larger than the caches is then read again.  Of a piece that
fits into a cache the sum, the differences d from the piece's own mean p, and their sums come from one trip; for any m

    sum((x - m)**2) = sum(d**2) + (p - m) * (2*sum(d) + count*(p - m))

with sums over the piece (Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983).  sum(d) is what
rounding p leaves; with it the identity holds for the rounded p as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowc.dataclass import dataclass
from flowc.dims import prod
from flowc.graph import Graph, Node, make
from flowc.rewrite import splat

LARGE = 1 << 20            # bytes of what is reduced to one value that are worth one trip less
PIECE = (1 << 11, 1 << 12)  # bytes of a piece of a row: least, most
ROWS = (32, 64)             # rows of a piece of columns: least, most
MANY = 20 << 20            # bytes of columns that are worth it: more than stays in the largest cache


@dataclass(frozen=True)
class Part:
    """A part of ``x`` as pieces: kept axes, and one axis ``count`` long reduced by ``inner``, then one by ``outer``."""

    sums: Node
    mean: Node
    squares: Node
    left: Node
    count: int
    outer: int


def squares_of(graph: Graph) -> dict[Node, Node]:
    """Sums of squares about something, each with the sum of the same elements."""
    sums: dict[tuple, Node] = {}
    out: dict[Node, Node] = {}
    for n in graph.nodes:
        if n.op.name != "reduce_sum" or n.dtype.name not in ("f32", "f64"):
            continue
        d = _centred(n)
        if d is not None and (d.inputs[0], n.attrs["axes"]) in sums and _pieces(d.inputs[0], n.attrs["axes"]):
            out[n] = sums[d.inputs[0], n.attrs["axes"]]
        sums[n.inputs[0], n.attrs["axes"]] = n
    return out


def _centred(n: Node) -> Node | None:
    """``x - m`` if ``n`` is its sum of squares, with m one value for each sum."""
    square = n.inputs[0]
    if square.op.name != "mul" or square.inputs[0] is not square.inputs[1] or square.inputs[0].op.name != "sub":
        return None
    d = square.inputs[0]
    m = d.inputs[1]
    kept = tuple(a for a in range(d.rank) if a not in n.attrs["axes"])
    return d if m.op.name == "broadcast" and m.attrs["axes"] == kept else None


def _pieces(x: Node, axes: tuple[int, ...]) -> int:
    """Elements of a piece along the reduced axes; 0 if pieces are not worth it."""
    sizes = [x.shape[a] for a in axes]
    total = prod(sizes)
    if not isinstance(total, int) or not axes:
        return 0
    if axes == tuple(range(x.rank - len(axes), x.rank)):
        low, high = (size // x.dtype.bytes for size in PIECE)
        return _divisor(total, low, high) if total * x.dtype.bytes >= LARGE else 0
    everything = x.type.size
    if axes == tuple(range(len(axes))) and isinstance(everything, int) and everything * x.dtype.bytes >= MANY:
        return _divisor(total, *ROWS) if total >= 4 * ROWS[1] else 0
    return 0


def _divisor(total: int, low: int, high: int) -> int:
    """The largest divisor in a range, else the range's end."""
    return next((k for k in range(high, low - 1, -1) if total % k == 0), high)


def in_pieces(n: Node) -> tuple[Node, list[Part]]:
    """The sum ``n`` made of the sums of pieces, and these."""
    x, axes = n.inputs[0], n.attrs["axes"]
    count, loc = _pieces(x, axes), n.loc
    total = prod(x.shape[a] for a in axes)
    assert isinstance(total, int)
    leading = axes[0] == 0 and len(axes) < x.rank
    outer = 0 if leading else n.rank
    flat = _reshaped(x, _put(n.shape, outer, total), n)
    parts = []
    for start, size in ((0, count), (total // count * count, total % count)):
        if size == 0:
            continue
        stop = start + size if start else total // count * count
        block = flat
        if total % count:
            at = {"start": _put((0,) * n.rank, outer, start), "stop": _put(n.shape, outer, stop),
                  "step": (1,) * flat.rank}
            block = make("slice", (flat,), at, loc)
        block = _reshaped(block, _put(_put(n.shape, outer, size), outer, (stop - start) // size), n)
        parts.append(_part(block, outer, size, n))
    values = [make("reduce_sum", (p.sums,), {"axes": (outer,)}, loc) for p in parts]
    return _total(values, n), parts


def _part(block: Node, outer: int, count: int, n: Node) -> Part:
    inner = {"axes": (outer + 1,)}
    sums = make("reduce_sum", (block,), inner, n.loc)
    mean = make("mul", (sums, splat(1.0 / count, sums.type, n.loc)), {}, n.loc)
    axes = tuple(a for a in range(block.rank) if a != outer + 1)
    d = make("sub", (block, make("broadcast", (mean,), {"shape": block.shape, "axes": axes}, n.loc)), {}, n.loc)
    squares = make("reduce_sum", (make("mul", (d, d), {}, n.loc),), inner, n.loc)
    return Part(sums, mean, squares, make("reduce_sum", (d,), inner, n.loc), count, outer)


def about(n: Node, parts: list[Part]) -> Node:
    """The sum of squares ``n`` from those of the pieces."""
    d = _centred(n)
    assert d is not None
    m, values = d.inputs[1].inputs[0], []
    for p in parts:
        t = p.mean.type
        axes = tuple(a for a in range(t.rank) if a != p.outer)
        away = make("sub", (p.mean, make("broadcast", (m,), {"shape": t.shape, "axes": axes}, n.loc)), {}, n.loc)
        twice = make("add", (p.left, p.left), {}, n.loc)
        slope = make("add", (twice, make("mul", (away, splat(float(p.count), t, n.loc)), {}, n.loc)), {}, n.loc)
        whole = make("add", (p.squares, make("mul", (away, slope), {}, n.loc)), {}, n.loc)
        values.append(make("reduce_sum", (whole,), {"axes": (p.outer,)}, n.loc))
    return _total(values, n)


def _total(values: list[Node], n: Node) -> Node:
    return values[0] if len(values) == 1 else make("add", tuple(values), {}, n.loc)


def _put(shape: tuple, at: int, size) -> tuple:
    return (*shape[:at], size, *shape[at:])


def _reshaped(x: Node, shape: tuple, n: Node) -> Node:
    return x if x.shape == shape else make("reshape", (x,), {"shape": shape}, n.loc)


class Moments:
    """What is rewritten in one graph.  ``sums``: pieces of the sums that squares go with, as they are found."""

    def __init__(self, graph: Graph):
        self.squares: Mapping[Node, Node] = squares_of(graph)
        self.wanted = set(self.squares.values())
        self.parts: dict[Node, list[Part]] = {}

    def concerns(self, original: Node) -> bool:
        return original in self.wanted or self.squares.get(original) in self.parts

    def rewritten(self, original: Node, n: Node) -> Node:
        if original in self.wanted:
            n, self.parts[original] = in_pieces(n)
            return n
        return about(n, self.parts[self.squares[original]])
