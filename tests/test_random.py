"""Whole random graphs: every kernel against the interpreter, whole runs against step-wise runs, thread counts."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import DRAWN, programs
from hypothesis import given

from flowc import config
from flowc.backends.interp import run_graph, run_program
from flowc.compiled import compile_graph
from flowc.graph import Graph


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(
        b).tobytes()


def by_steps(c, arrays):
    """Results of a run step by step in Python: another road through the runtime."""
    sizes = c.sizes(arrays)
    out = c.executable.new_outputs(arrays, sizes)
    from flowc.dims import evaluate
    arena = np.full(evaluate(c.program.plan.arena, sizes) + 64, 0xA5, np.uint8)
    views = c.executable.views(arrays, out, arena, sizes)
    for wave in c.program.plan.waves():
        for step in reversed(wave):
            c.executable.run_step(step, views, sizes)
    return c.executable.finish(arrays, out)


@given(programs())
def test_every_kernel_agrees_with_the_interpreter(drawn):
    c = compile_graph(drawn.graph, device="cpu")
    report = c.verify(drawn.arrays)
    assert report, f"{report}\n{c.as_text('graph')}\n{c.as_text('kernel')}"


@given(programs(large=True, max_ops=8))
def test_every_kernel_agrees_with_the_interpreter_where_a_size_is_large(drawn):
    c = compile_graph(drawn.graph, device="cpu")
    report = c.verify(drawn.arrays)
    assert report, f"{report}\n{c.as_text('graph')}\n{c.as_text('kernel')}"


@given(programs())
def test_whole_run_equals_step_by_step_run(drawn):
    c = compile_graph(drawn.graph, device="cpu")
    for a, b in zip(c(drawn.arrays), by_steps(c, drawn.arrays), strict=True):
        assert same_bits(a, b)


@given(programs(special=False))
def test_kernel_interpreter_agrees_with_graph_interpreter(drawn):
    c = compile_graph(drawn.graph, device="cpu")
    got = run_program(c.program, drawn.arrays, drawn.sizes, shuffle=1)
    want = run_graph(drawn.graph, drawn.arrays)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.dtype.kind in "biu":
            continue  # compared kernel by kernel above, where operands are equal
        with np.errstate(all="ignore"):
            close = np.isclose(a.astype(np.float64), b.astype(np.float64), rtol=0.05, atol=0.05, equal_nan=True)
        assert close.size == 0 or close.mean(dtype=np.float64) > 0.9


@given(programs())
def test_fused_equals_unfused_where_exact(drawn):
    with config.options(fuse=False):
        plain = compile_graph(drawn.graph, device="cpu")(drawn.arrays)
    fused = compile_graph(drawn.graph, device="cpu")(drawn.arrays)
    for a, b in zip(fused, plain, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.dtype.kind in "biu":
            assert same_bits(a, b)


@given(programs(symbolic=True, special=False))
def test_static_and_symbolic_sizes_give_the_same_bits(drawn):
    from flowc.dims import substitute
    from flowc.graph import Attrs, make, param
    from flowc.types import Type

    def size(d):
        return substitute(d, drawn.sizes)

    def fixed(v):
        if isinstance(v, tuple):
            return tuple(fixed(x) for x in v)
        return size(v) if type(v).__name__ == "Dim" else v
    done = {}
    for n in drawn.graph.nodes:
        if n.op.name == "param":
            done[n] = param(n.attrs["name"], Type(n.dtype, tuple(map(size, n.shape))))
        else:
            done[n] = make(n.op, [done[x] for x in n.inputs], Attrs({k: fixed(v) for k, v in n.attrs.items()}))
    static = Graph("static", [done[p] for p in drawn.graph.params], [done[o] for o in drawn.graph.outputs])
    symbolic = compile_graph(drawn.graph, device="cpu")(drawn.arrays)
    for a, b in zip(symbolic, compile_graph(static, device="cpu")(drawn.arrays), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.dtype.kind in "biu":
            assert same_bits(a, b)


def test_the_generator_reaches_its_operators():
    """A generator that stopped drawing an operator is a broken generator."""
    if sum(DRAWN.values()) < 2000:
        pytest.skip("too few graphs were drawn in this process to judge the generator")
    missing = [n for n in ("dot", "reduce_sum", "select", "cast", "transpose", "slice", "pad", "gather", "concatenate",
                           "broadcast", "exp", "argmax", "conv", "windows", "scatter_add", "cumsum", "update_slice",
                           "random_bits") if not DRAWN[n]]
    assert not missing, missing
