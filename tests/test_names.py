"""Names of users' sizes and names that kernels make never meet."""

from __future__ import annotations

import numpy as np
import pytest

import flowc
from flowc.compiled import compile_graph
from flowc.dims import sym
from flowc.graph import Attrs, Graph, make, param
from flowc.types import Type, f32

NAMES = [("i1", "i2"), ("i1b", "i2b"), ("d1", "d0"), ("a1", "l2"), ("p0", "v1"), ("t1", "k2"), ("n2", "n1")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_symbols_named_like_loop_variables(names, device):
    n, m = map(sym, names)
    x = param("x", Type(f32, (n, m)))
    y = make("neg", (make("transpose", (x,), {"perm": (1, 0)}),))
    total = make("reduce_sum", (x,), {"axes": (1,)})
    down = make("reduce_max", (x,), {"axes": (0,)})
    product = make("dot", (x, x), {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (1,)})
    a = np.arange(6 * 35, dtype=np.float32).reshape(6, 35)
    with flowc.options(gpu="sim"):
        got = compile_graph(Graph("g", [x], [y, total, down, product]), device=device)([a])
    for g, want in zip(got, (-a.T, a.sum(1), a.max(0), a @ a.T), strict=True):
        assert np.array_equal(g, want)


EMPTY = [((0, 3), (0,)), ((3, 0), (0,)), ((3, 0), (1,)), ((0, 0), (0, 1)), ((0,), (0,))]


@pytest.mark.parametrize("shape, axes", EMPTY)
def test_static_sizes_of_zero(shape, axes):
    x = param("x", Type(f32, shape))
    total = make("reduce_sum", (x,), {"axes": axes})
    twice = make("add", (x, x))
    got = compile_graph(Graph("g", [x], [total, twice]), device="cpu")([np.zeros(shape, np.float32)])
    assert np.array_equal(got[0], np.zeros(shape).sum(axes)) and got[1].shape == shape


def test_attributes_compare_by_value_and_kind():
    nan = float("nan")
    assert Attrs(a=nan) == Attrs(a=float("nan")) and hash(Attrs(a=nan)) == hash(Attrs(a=nan))
    assert Attrs(a=0.0) != Attrs(a=-0.0) and Attrs(a=1) != Attrs(a=True) and Attrs(a=1) != Attrs(a=1, b=2)
