"""Tracing: a Python function of arrays becomes a Graph.

Here: ``trace`` and what goes in and out (``Leaf``, ``Traced``), lifting of values to tensors.  Not here: tensors
(tensor.py), NumPy functions (numpy_api.py, which must be imported for them to work).  Read next: numpy_core.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowc.dataclass import dataclass, field
from flowc.diag import FlowcTypeError, Loc, caller_loc
from flowc.dims import Dim, Range
from flowc.graph import Graph, Node, constant, make
from flowc.size import plain
from flowc.tensor import Tensor, Trace, current_trace, read, wrap
from flowc.tree import Tree, flatten
from flowc.types import DType, Type
from flowc.types import dtype as to_dtype

__all__ = ["Leaf", "Tensor", "Trace", "Traced", "constant_node", "current_trace", "lift", "read", "trace", "wrap"]


@dataclass(frozen=True)
class Leaf:
    """One array argument.  weak: a Python number; name: as the user would write it, ``params['w'][0]``."""

    type: Type
    weak: bool = False
    name: str = "x"


@dataclass(frozen=True)
class Traced:
    """A traced function.

    graph: its params are one per leaf, in order, then one per entry of ``captured``; its outputs are the array
      results in order.  out_tree: the nesting of the result; its leaf i is ``static[i]`` if that is there (numbers,
      strings and other values that do not depend on arguments), else the next graph output.
    out_weak: per graph output, does it stand for a Python number.  names: user's names of the graph's params.
    captured: nodes of the enclosing trace that the function reads.  mutated: leaves the function wrote in place
      (the caller's array does not change; results show the new value).
    """

    graph: Graph
    out_tree: Tree
    out_weak: tuple[bool, ...]
    static: Mapping[int, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    captured: tuple[Node, ...] = ()
    mutated: tuple[int, ...] = ()

    def assemble(self, outputs: Sequence[Any]) -> Any:
        """The function's result from the values of the graph outputs."""
        rest = iter(outputs)
        return self.out_tree.unflatten([self.static[i] if i in self.static else next(rest)
                                        for i in range(self.out_tree.leaves)])


_STATIC = (str, bytes, bool, int, float, complex, np.dtype, type, DType)


def _result(trace: Trace, value: Any, where: str, fn: Callable[..., Any]) -> tuple[Node, bool] | None:
    """The node of one leaf of a result; None if it is a static value."""
    if isinstance(value, Tensor):
        return read(value), value.weak
    if isinstance(value, Dim):
        return make("size", (), {"value": plain(value)}, caller_loc()), True
    if isinstance(value, np.generic) and value.dtype.kind in "OSUVmM":
        return None
    if isinstance(value, (np.ndarray, np.generic)):
        return constant_node(value), False
    if isinstance(value, _STATIC):
        return None
    code = getattr(fn, "__code__", None)
    raise FlowcTypeError("T009", f"{trace.name!r} returns {where or 'a value'} of type {type(value).__name__}, which "
                         "is no array, number or container of them",
                         loc=Loc(code.co_filename, code.co_firstlineno) if code else None,
                         cure="return arrays, or make the class a container with register_pytree")


def constant_node(value: Any) -> Node:
    """A constant of a NumPy array or scalar in native byte order.  T004 for dtypes flowc does not have."""
    if isinstance(value, np.ma.MaskedArray):
        raise FlowcTypeError("T004", "masked arrays are not supported", loc=caller_loc(),
                             cure="pass data and mask apart and choose with flowc.numpy.where")
    try:
        d = to_dtype(value.dtype)
    except TypeError as e:
        raise FlowcTypeError("T004", str(e), loc=caller_loc(), cure="convert it with astype first") from None
    return constant(value, d, caller_loc())


def lift(value: Any) -> Tensor:
    """A tensor of the current trace: Python numbers and sizes become weak scalars, NumPy values constants."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Dim):
        return wrap(make("size", (), {"value": plain(value)}, caller_loc()), weak=True)
    if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
        return wrap(constant(value, loc=caller_loc()), weak=not isinstance(value, bool))
    if isinstance(value, (np.ndarray, np.generic)):
        return wrap(constant_node(value), corder=True)
    raise FlowcTypeError("T004", f"a {type(value).__name__} is no array", loc=caller_loc(),
                         cure="pass arrays and numbers")


def trace(fn: Callable[..., Any], leaves: Sequence[Leaf], in_tree: Tree, *, name: str | None = None,
          ranges: Mapping[str, Range] | None = None) -> Traced:
    """Run ``fn`` on tensors and keep what it does as a graph.

    ``in_tree`` is the tree of ``(args, kwargs)`` with one leaf per entry of ``leaves``.  ``ranges`` bounds the symbols
    in the leaves' shapes; inside another trace they are the enclosing trace's.  Errors point at the user's lines.
    """
    label = name or getattr(fn, "__name__", None) or type(fn).__name__
    tr = Trace(label, ranges)
    with tr.active():
        try:
            xs = [tr.add_param(leaf.type, leaf.name, leaf.weak) for leaf in leaves]
            params = tuple(tr.params)
            args, kwargs = in_tree.unflatten(xs)
            values, out_tree = flatten(fn(*args, **kwargs))
            outputs, weak, static = [], [], {}
            for i, value in enumerate(values):
                made = _result(tr, value, out_tree.paths("result")[i] if len(values) > 1 else "", fn)
                if made is None:
                    static[i] = value
                else:
                    outputs.append(made[0])
                    weak.append(made[1])
            mutated = tuple(i for i, (x, p) in enumerate(zip(xs, params)) if x._node is not p or x._lost)
        finally:
            tr.close()
    graph_name = re.sub(r"\W+", "_", label).strip("_") or "f"
    graph = Graph(graph_name, (*params, *tr.captures.values()), outputs, tr.ranges)
    return Traced(graph, out_tree, tuple(weak), static, tuple(tr.names[p] for p in graph.params),
                  tuple(tr.captures), mutated)
