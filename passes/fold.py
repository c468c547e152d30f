"""Constant folding by the ops' own NumPy meaning.

Here: ``meaning`` (one node's value from its operands' values) and the pass.  Not here: laws with constants
(rules_algebra.py).  Read next: cse.py.

Folding never makes a program bigger than a fixed bound: a result has at most ``LIMIT`` elements, or fewer than the
constants it replaces.  A value that is the same everywhere stays a scalar under a broadcast, which costs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from flowc.dims import Dim, evaluate
from flowc.graph import CONSTANT, PARAM, Graph, Literal, Node, make
from flowc.op import Op
from flowc.passes.manager import PassContext, graph_pass
from flowc.rewrite import rebuilt, rewired, splat
from flowc.types import bool_, i64

LIMIT = 4096   # elements that folding may materialise
SMALL = 16     # results of generated tensors up to this size fold too
WORK = 1 << 20  # elements of all operands together that folding may look at
_GENERATED = ("broadcast", "iota")  # cheaper to compute where needed than to load


@cache
def _wants_type(op: Op) -> bool:
    """Does the op's meaning ask for its result type?"""
    try:
        return "out_type" in inspect.signature(op.numpy).parameters
    except (TypeError, ValueError):
        return False


def concrete(value: Any, sizes: Mapping[str, int]) -> Any:
    """An attribute with its symbolic sizes replaced by numbers.  KeyError names a symbol without a value."""
    if isinstance(value, Dim):
        return evaluate(value, sizes)
    if isinstance(value, tuple):
        return tuple(concrete(v, sizes) for v in value)
    return value


def meaning(node: Node, operands: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None) -> np.ndarray:
    """The value of ``node`` by its op's NumPy meaning, without floating-point warnings.  ``sizes``: values of symbols
    in its attributes."""
    attrs = {k: concrete(v, sizes or {}) for k, v in node.attrs.items()}
    if _wants_type(node.op):
        attrs["out_type"] = node.type.with_shape(concrete(node.shape, sizes or {}))
    with np.errstate(all="ignore"):
        return np.asarray(node.op.numpy(*operands, **attrs))


def _static_size(n: Node) -> int | None:
    size = n.type.size
    return size if isinstance(size, int) else None


class _Folder:
    """``known``: values of nodes that are constant, also of generated ones, which stay in the graph as they are."""

    def __init__(self, ctx: PassContext):
        self.ctx = ctx
        self.known: dict[Node, np.ndarray] = {}

    def visit(self, node: Node) -> Node:
        """``node``, or the constant it is."""
        if node.op is CONSTANT:
            return self.constant(node)
        if node.op is PARAM or not node.op.pure or not all(x in self.known for x in node.inputs):
            return node
        size = _static_size(node)
        if size is None or size > self.bound(node) or sum(self.known[x].size for x in node.inputs) > WORK:
            return node
        if node.op.name in _GENERATED:
            value = self.value(node)
            if value is not None:
                self.known[node] = value
            return node
        if all(x.op.name in _GENERATED for x in node.inputs) and node.inputs and size > SMALL:
            return node
        return self.fold(node)

    def bound(self, node: Node) -> int:
        return max(LIMIT, sum(self.known[x].size for x in node.inputs if x.op is CONSTANT))

    def fold(self, node: Node) -> Node:
        value = self.value(node)
        if value is None or not self.ctx.allow("fold", node.op.name, node):
            return node
        self.ctx.hits["fold"] += 1
        return self.made(value, node)

    def value(self, node: Node) -> np.ndarray | None:
        """None if the meaning refuses these operands: the error belongs to the run, not to the compile."""
        try:
            value = meaning(node, [self.known[x] for x in node.inputs])
        except Exception:
            return None
        return value if value.dtype == node.dtype.numpy and value.shape == node.shape else None

    def constant(self, node: Node) -> Node:
        """A dense constant of one value becomes a broadcast scalar, a large triangle a comparison of positions."""
        value = node.attrs["value"].array
        if value.ndim and _uniform(value) and self.ctx.allow("fold", "constant", node):
            self.ctx.hits["fold"] += 1
            return self.made(value, node)
        diagonal = _triangle(value) if value.ndim >= 2 and value.size > LIMIT else None
        if diagonal is not None and self.ctx.allow("fold", "triangle", node):
            self.ctx.hits["fold"] += 1
            return _compared(node, value, diagonal)
        self.known[node] = value
        return node

    def made(self, value: np.ndarray, node: Node) -> Node:
        if value.ndim and _uniform(value):
            new = splat(value.flat[0], node.type, node.loc)
            self.known[new.inputs[0]] = new.inputs[0].attrs["value"].array
        else:
            new = make(CONSTANT, (), {"value": Literal(value)}, node.loc)
        self.known[new] = value
        return new


def _uniform(a: np.ndarray) -> bool:
    """Are all elements the same bits?  Decided by bytes, so NaN counts as itself and zeros by their sign."""
    if a.size == 0:
        return False
    flat = np.ascontiguousarray(a).reshape(-1)
    raw = flat.view(np.uint8).reshape(flat.size, a.dtype.itemsize)
    return bool((raw[-1] == raw[0]).all() and (raw == raw[0]).all())


def _triangle(a: np.ndarray) -> int | None:
    """k, if the matrix ``a`` holds one value where column - row <= k and another one elsewhere, as masks do."""
    *lead, m, n = a.shape
    if any(x != 1 for x in lead) or a.dtype.kind == "c":
        return None
    bits = np.ascontiguousarray(a).reshape(m, n).view(f"u{a.dtype.itemsize}")
    edge = np.concatenate([bits[0], bits[:, 0]])  # soon told from what is no mask
    if not ((edge == bits[-1, 0]) | (edge == bits[0, -1])).all():
        return None
    lower = bits == bits[-1, 0]
    k = int(np.count_nonzero(lower[0])) - 1
    if k < 0:
        k = -int(np.argmax(lower[:, 0]))
    two = np.array_equal(lower, np.tri(m, n, k, dtype=np.bool_)) and (bits[~lower] == bits[0, -1]).all()
    return k if two else None


def _compared(node: Node, value: np.ndarray, diagonal: int) -> Node:
    """The triangle as a comparison: nothing to read, and what it leaves out can be told from it."""
    t, loc, rank = node.type, node.loc, value.ndim
    row, column = (make("iota", (), {"shape": t.shape, "axis": axis, "dtype": i64}, loc)
                   for axis in (rank - 2, rank - 1))
    last = row if not diagonal else make("add", (row, splat(diagonal, row.type, loc)), {}, loc)
    inside = make("le", (column, last), {}, loc)
    low, high = value.reshape(-1, value.shape[-1])[[-1, 0], [0, -1]]
    if t.dtype is bool_:
        return inside if low else make("not", (inside,), {}, loc)
    return make("select", (inside, splat(low, t, loc), splat(high, t, loc)), {}, loc)


@graph_pass("fold")
def fold(graph: Graph, ctx: PassContext) -> Graph:
    """Compute what depends on constants alone, by the ops' own NumPy meaning."""
    folder = _Folder(ctx)
    done: dict[Node, Node] = {}
    for n in graph.nodes:
        ctx.visits += 1
        done[n] = folder.visit(rebuilt(n, done))
    return rewired(graph, done)
