"""Every op, on the samples of its record, compiled for the CPU: equal to NumPy within the record's bound."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import flowc.ops  # noqa: F401
from flowc.check import ulp_distance
from flowc.compiled import compile_graph
from flowc.graph import Graph, make, param
from flowc.op import REGISTRY
from flowc.types import array_type

SAMPLED = sorted(name for name, op in REGISTRY.items() if op.samples is not None)
TREE = 64.0  # sums and products may differ by this many roundings of the largest partial result
EPS = {"f16": 2.0 ** -10, "bf16": 2.0 ** -7, "f32": 2.0 ** -23, "f64": 2.0 ** -52, "c64": 2.0 ** -23,
       "c128": 2.0 ** -52}


def meaning(op, arrays, attrs, out_type):
    extra = {"out_type": out_type} if "out_type" in inspect.signature(op.numpy).parameters else {}
    with np.errstate(all="ignore"):
        return np.asarray(op.numpy(*arrays, **attrs, **extra))


@pytest.mark.parametrize("name", SAMPLED)
def test_native_equals_numpy(name):
    op = REGISTRY[name]
    params, outputs, arguments, wants, sizes = [], [], [], [], []
    for arrays, attrs in op.samples(np.random.default_rng(0)):
        arrays = [np.asarray(a, order="C") for a in arrays]
        mine = [param(f"x{len(params) + i}", array_type(a)) for i, a in enumerate(arrays)]
        node = make(op, mine, attrs)
        params += mine
        arguments += arrays
        outputs.append(node)
        wants.append(meaning(op, arrays, attrs, node.type))
        sizes.append(arrays if node.dtype.kind not in "fc" else meaning(
            op, [np.abs(a) if a.dtype.kind not in "biu" else a for a in arrays], attrs, node.type))
    got = compile_graph(Graph(name, params, outputs), device="cpu")(arguments)
    for node, g, w, size in zip(outputs, got, wants, sizes, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape, (node, g.dtype, g.shape)
        bound = 2 * op.ulp.get(node.dtype.name, 0.0)
        bad = ulp_distance(g, w) > bound
        if node.dtype.name not in op.ulp and node.dtype.kind in "fc":  # a sum of terms: no bound per element
            with np.errstate(all="ignore"):
                bad &= ~(np.abs(g.astype(np.complex128) - w) <= TREE * EPS[node.dtype.name] * np.abs(
                    size.astype(np.complex128)))
        assert not bad.any(), (node, node.attrs, float(ulp_distance(g, w).max(initial=0.0)), g[bad], w[bad])
