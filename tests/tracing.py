"""Helpers of the tracing tests: trace a function on arrays and run what was recorded on the interpreter.

``run(fn, *args)`` compares nothing; ``check(fn, *args)`` compares with plain NumPy, also dtype and shape.  ``dynamic``
traces with every axis of more than one element as a symbol; axes of equal size share it.
"""

from __future__ import annotations

import copy

import numpy as np

import flowc.numpy_api
import flowc.ops  # noqa: F401
from flowc.backends import interp
from flowc.backends.interp import bind_sizes
from flowc.dims import sym
from flowc.graph import Graph
from flowc.trace import Leaf, Traced, trace
from flowc.tree import flatten
from flowc.types import Type, array_type, dtype


def leaf(x, name: str, dynamic: bool = False) -> Leaf:
    if isinstance(x, np.ndarray | np.generic):
        t = array_type(np.asarray(x))
        if dynamic:
            t = t.with_shape(sym(f"n{d}") if d > 1 else d for d in t.shape)
        return Leaf(t, False, name)
    kinds = {bool: "bool", int: "i64", float: "f64", complex: "c128"}
    return Leaf(Type(dtype(kinds[type(x)])), True, name)


def record(fn, *args, dynamic: bool = False, **kwargs) -> Traced:
    leaves, tree = flatten((args, kwargs))
    names = [p.removeprefix("[0]") if p.count("[") > 1 else p for p in tree.paths()]
    return trace(fn, [leaf(x, name, dynamic) for x, name in zip(leaves, names)], tree)


class OutOfRange(AssertionError):
    """The sizes are outside the ranges the traced function needs."""


def run_graph(graph: Graph, arrays) -> list[np.ndarray]:
    """By the reference interpreter; OutOfRange where the sizes are none the graph is for."""
    given = [np.asarray(a, p.dtype.numpy) for a, p in zip(arrays, graph.params)]
    sizes = bind_sizes([p.type for p in graph.params], given)
    for name, (lo, hi) in graph.ranges.items():
        if not (lo <= sizes[name] and (hi is None or sizes[name] <= hi)):
            raise OutOfRange(name, lo, hi, sizes)
    return interp.run_graph(graph, given)


def run(fn, *args, dynamic: bool = False, **kwargs):
    traced = record(fn, *copy.deepcopy(args), dynamic=dynamic, **kwargs)
    leaves, _ = flatten((args, kwargs))
    return traced.assemble(run_graph(traced.graph, leaves))


def same(got, want, rtol: float = 0, what="") -> None:
    a, tree_a = flatten(got)
    b, tree_b = flatten(want)
    assert str(tree_a) == str(tree_b), (what, tree_a, tree_b)
    for x, y in zip(a, b):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, (what, x.shape, y.shape)
        assert x.dtype == y.dtype, (what, x.dtype, y.dtype)
        if rtol and x.dtype.kind in "fcV":
            np.testing.assert_allclose(x.astype(complex), y.astype(complex), rtol=rtol, atol=rtol, err_msg=str(what))
        else:
            np.testing.assert_array_equal(x, y, err_msg=str(what))


def check(fn, *args, rtol: float = 0, dynamic: bool | None = None, **kwargs) -> None:
    """The traced function equals NumPy; with sizes known and with sizes symbolic unless ``dynamic`` says which."""
    with np.errstate(all="ignore"):
        want = fn(*copy.deepcopy(args), **kwargs)
    for symbolic in (False, True) if dynamic is None else (dynamic,):
        same(run(fn, *args, dynamic=symbolic, **kwargs), want, rtol, f"dynamic={symbolic}")
