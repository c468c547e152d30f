"""A smaller graph that still shows what a predicate looks for.

Here: ``reduce`` and the shrinking steps, each a function that lists candidates.  Not here: which pass is guilty
(bisect.py).  Read next: fuse.py.

Steps are tried in turn until none helps: fewer outputs, an inner value as the only output, values replaced by
parameters, constants or operands of the same type, unused parameters dropped, symbols replaced by numbers, sizes
shrunk.  Every candidate is rebuilt by ``make``, so it is well typed or it is not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flowc.diag import FlowcError
from flowc.dims import Dim, DimLike, substitute, symbols
from flowc.graph import CONSTANT, PARAM, Graph, Literal, Node, make, param, topological
from flowc.rewrite import rebuilt, splat, splat_value
from flowc.types import Type

Keep = Callable[[Graph], bool]
_TRIED_SIZES = (1, 2, 3, 5)


def reduce(graph: Graph, keep: Keep, budget: int = 2000) -> Graph:
    """The smallest graph found for which ``keep`` holds; ``graph`` itself must satisfy it, else ValueError.

    ``keep`` is asked at most ``budget`` times; where it raises a FlowcError the candidate counts as refused.  The
    result has parameters and outputs of its own, in the order of the original.
    """
    if not keep(graph):
        raise ValueError("the predicate does not hold for the graph itself")
    search = _Search(keep, budget - 1)
    while True:
        before = search.asked
        best = graph
        for step in STEPS:
            best = search.descend(best, step)
        if best is graph or search.asked >= budget or search.asked == before:
            return best
        graph = best


class _Search:
    def __init__(self, keep: Keep, budget: int):
        self.keep, self.budget, self.asked = keep, budget, 0

    def holds(self, graph: Graph) -> bool:
        self.asked += 1
        try:
            return self.keep(graph)
        except FlowcError:
            return False

    def descend(self, graph: Graph, step: Callable[[Graph], Iterator[Graph]]) -> Graph:
        """Take the first candidate that is smaller and keeps the property, again and again."""
        while True:
            for candidate in step(graph):
                if self.asked >= self.budget:
                    return graph
                if weight(candidate) < weight(graph) and self.holds(candidate):
                    graph = candidate
                    break
            else:
                return graph


def weight(graph: Graph) -> tuple[int, ...]:
    """What shrinks, compared from left to right: nodes that compute, outputs, parameters, elements of dense constants,
    symbols, sum of sizes, nodes."""
    nodes = graph.nodes
    names: set[str] = set()
    computing = dense = total = 0
    for n in nodes:
        computing += n.op is not PARAM and splat_value(n) is None and n.op is not CONSTANT
        dense += n.attrs["value"].array.size if n.op is CONSTANT and n.rank else 0
        for s in n.shape:
            names |= symbols(s)
            total += s if isinstance(s, int) else 0
    return computing, len(graph.outputs), len(graph.params), dense, len(names), total, len(nodes)


# ---- rebuilding -----------------------------------------------------------------------------------------------------

def rebuild(graph: Graph, replace: Mapping[Node, Node], outputs: tuple[Node, ...] | None = None) -> Graph:
    """``graph`` with nodes replaced; parameters that nothing needs any more are dropped, new ones come last."""
    wanted = graph.outputs if outputs is None else outputs
    done: dict[Node, Node] = {}
    for n in topological(wanted):
        if n in replace:
            done[n] = replace[n]
            continue
        done[n] = rebuilt(n, done)
    new = [done[o] for o in wanted]
    return _with_params(graph, new)


def _with_params(graph: Graph, outputs: list[Node]) -> Graph:
    used = [n for n in topological(outputs) if n.op is PARAM]
    kept = [p for p in graph.params if p in used]
    kept += [p for p in used if p not in kept]
    return Graph(graph.name, kept, outputs, graph.ranges, graph.constraints)


# ---- steps ----------------------------------------------------------------------------------------------------------

def _fewer_outputs(graph: Graph) -> Iterator[Graph]:
    """One output alone, then halves, then all but one."""
    outs = graph.outputs
    if len(outs) < 2:
        return
    half = len(outs) // 2
    choices = [(o,) for o in outs] + [outs[:half], outs[half:]]
    choices += [outs[:i] + outs[i + 1:] for i in range(len(outs))]
    for chosen in choices:
        yield rebuild(graph, {}, tuple(chosen))


def _inner_output(graph: Graph) -> Iterator[Graph]:
    """An inner value as the only output: spread over the graph first, then one by one from the inputs on."""
    inner = [n for n in graph.nodes if n.op is not PARAM and n.op is not CONSTANT]
    for n in _spread(inner):
        yield rebuild(graph, {}, (n,))


def _cut(graph: Graph) -> Iterator[Graph]:
    """A parameter in place of a value, so that all before it goes."""
    names = {p.attrs["name"] for p in graph.params}
    for n in _spread([n for n in graph.nodes if n.op is not PARAM and n.op is not CONSTANT]):
        fresh = next(name for i in range(len(names) + 1) if (name := f"x{i}") not in names)
        yield rebuild(graph, {n: param(fresh, n.type, n.loc)})


def _skip(graph: Graph) -> Iterator[Graph]:
    """An operand of the same type, or a constant, in place of a value."""
    for n in reversed(graph.nodes):
        if n.op is PARAM or n.op is CONSTANT or splat_value(n) is not None:
            continue
        for x in dict.fromkeys(n.inputs):
            if x.type == n.type:
                yield rebuild(graph, {n: x})
        yield rebuild(graph, {n: splat(1, n.type, n.loc)})


def _plain_operands(graph: Graph) -> Iterator[Graph]:
    """A constant in place of a parameter or of a dense constant."""
    for n in graph.nodes:
        if n.op is PARAM or n.op is CONSTANT and n.type.rank:
            yield rebuild(graph, {n: splat(1, n.type, n.loc)})


def _no_unused(graph: Graph) -> Iterator[Graph]:
    yield rebuild(graph, {})


def _spread(nodes: list[Node]) -> list[Node]:
    """``nodes`` in an order that tries the middle, then the quarters, and so on: large cuts are found early."""
    order: list[Node] = []
    ranges = [(0, len(nodes))]
    for lo, hi in ranges:  # grows while it is read: breadth first
        if lo < hi:
            mid = (lo + hi) // 2
            order.append(nodes[mid])
            ranges += [(lo, mid), (mid + 1, hi)]
    return order


# ---- sizes ----------------------------------------------------------------------------------------------------------

def _fixed_symbols(graph: Graph) -> Iterator[Graph]:
    """A small number in place of a symbol, inside its range."""
    names: set[str] = set().union(*(symbols(s) for n in graph.nodes for s in n.shape))
    for name in sorted(names):
        low = graph.ranges.get(name, (0, None))[0]
        base = low if isinstance(low, int) else 0
        for value in (3, 2, 5, 1):
            yield from _resized(graph, _Resize(symbols={name: max(value, base)}))


def _smaller_sizes(graph: Graph) -> Iterator[Graph]:
    """Every size of one value replaced by a smaller one, first exactly, then also in its multiples."""
    sizes = {s for n in graph.nodes for s in n.shape if isinstance(s, int) and s > 1}
    for size in sorted(sizes, reverse=True):
        for new in sorted({n for n in (*_TRIED_SIZES, size // 2, size - 1) if 0 < n < size}):
            for multiples in (False, True):
                yield from _resized(graph, _Resize(pair=(size, new), multiples=multiples))


class _Resize:
    """A change of sizes that is applied to types, attributes and constants alike."""

    def __init__(self, symbols: Mapping[str, int] | None = None, pair: tuple[int, int] = (-1, -1),
                 multiples: bool = False):
        self.symbols, self.pair, self.multiples = symbols or {}, pair, multiples

    def size(self, d: DimLike) -> DimLike:
        if isinstance(d, Dim):
            return substitute(d, self.symbols)
        old, new = self.pair
        if d == old:
            return new
        return d // old * new if self.multiples and d > old > 0 and d % old == 0 else d

    def shape(self, shape: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
        return tuple(self.size(s) for s in shape)

    def attr(self, key: str, value: Any) -> Any:
        """Attributes that count elements; axes and strides are left alone."""
        if isinstance(value, Type):
            return value.with_shape(self.shape(value.shape))
        if isinstance(value, Literal):
            return Literal(_cropped(value.array, self.shape(tuple(value.array.shape))))
        if isinstance(value, Dim):
            return self.size(value)
        if isinstance(value, tuple):
            counts = key in ("shape", "stop", "window") or any(isinstance(v, Dim) for v in value)
            return tuple(self.size(v) if counts and isinstance(v, (int, Dim)) else v for v in value)
        return value


def _cropped(a: np.ndarray, shape: tuple[Any, ...]) -> np.ndarray:
    return a[tuple(slice(0, s) for s in shape)]


def _resized(graph: Graph, change: _Resize) -> Iterator[Graph]:
    """The graph with ``change`` applied everywhere, if it is well typed still."""
    done: dict[Node, Node] = {}
    try:
        for n in graph.nodes:
            attrs = {k: change.attr(k, v) for k, v in n.attrs.items()}
            done[n] = make(n.op, [done[x] for x in n.inputs], attrs, n.loc)
    except FlowcError:
        return
    yield Graph(graph.name, [done[p] for p in graph.params], [done[o] for o in graph.outputs],
                {k: v for k, v in graph.ranges.items() if k not in change.symbols},
                [(a, b) for x, y in graph.constraints for a, b in [(change.size(x), change.size(y))] if a != b])


STEPS = (_fewer_outputs, _inner_output, _cut, _skip, _plain_operands, _no_unused, _fixed_symbols, _smaller_sizes)
