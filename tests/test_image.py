"""Compiled graphs on disk: found again by another process, never found for anything else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import flowc
import flowc.numpy as fnp
from flowc import cache, image
from flowc.compiled import compile_graph, machine
from flowc.graph import Graph, constant, make, param
from flowc.parse import parse_graph, parse_type
from flowc.passes.manager import PassContext
from flowc.types import Type, f32

TEXT = """graph @g(%x: f32[n, 8], %y: f32[8]) -> f32[n, 8] {
  %0 = broadcast %y {shape = (n, 8), axes = (1,)} : f32[n, 8]
  %1 = mul %x, %0 : f32[n, 8]
  return %1
}
"""


def key(graph: Graph, **settings) -> str | None:
    with flowc.options(check=False, **settings):
        return image.key(graph, machine("cpu"), PassContext.from_config())


@pytest.fixture
def folder(tmp_path):
    os.chmod(tmp_path, 0o700)
    with flowc.options(check=False, cache_dir=str(tmp_path)):
        yield tmp_path


@pytest.fixture
def built(monkeypatch):
    """Names of the graphs that are lowered."""
    import flowc.passes.build as build
    names, real = [], build.Builder

    def watched(graph, *rest):
        names.append(graph.name)
        return real(graph, *rest)
    monkeypatch.setattr(build, "Builder", watched)
    return names


def predict(x, w, b):
    h = fnp.tanh(x @ w + b)
    return h / fnp.sum(h * h, axis=1, keepdims=True), fnp.asarray(np.arange(3.0)) * 2


ARGS = (np.linspace(-1, 1, 60, dtype=np.float32).reshape(12, 5), np.ones((5, 4), np.float32), np.ones(4, np.float32))


def test_second_compile_lowers_nothing(folder, built):
    first = flowc.jit(predict)(*ARGS)
    assert built == ["predict"]
    again = flowc.jit(predict)
    for want, got in zip(first, again(*ARGS), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    again(*ARGS)  # the native call
    assert built == ["predict"]


def test_stages_are_made_when_asked_for(folder, built):
    flowc.jit(predict)(*ARGS)
    low = flowc.jit(predict).lower(*ARGS)
    exe = low.compile()
    assert built == ["predict"]
    for stage in ("graph", "plan", "kernel", "llvm", "asm"):
        assert "" != exe.as_text(stage)
    assert "define" in exe.as_text("llvm")
    assert built == ["predict"] * 2
    assert flowc.verify(flowc.jit(predict), *ARGS)
    assert exe.compiled.executable.kernel_asm("k0")


def test_symbolic_sizes_and_steps(folder):
    """What comes from the disk also runs step by step, for other sizes."""
    g = parse_graph(TEXT)
    y = np.arange(8, dtype=np.float32)
    for _ in range(2):
        c = compile_graph(g)
        for rows in (0, 1, 3, 70_000):
            x = np.full((rows, 8), 2, np.float32)
            np.testing.assert_array_equal(c([x, y])[0], x * y)
        assert c.verify([np.ones((5, 8), np.float32), y])
        assert c.as_text("plan")


def test_host_steps(folder):
    def f(x):
        return fnp.abs(x * x) + 1
    x = np.array([[2 + 1j, 1], [1, 3j]])
    want = flowc.jit(f)(x)
    np.testing.assert_array_equal(flowc.jit(f)(x), want)


def test_another_process_finds_it(tmp_path):
    os.chmod(tmp_path, 0o700)
    program = tmp_path / "p.py"
    program.write_text(textwrap.dedent("""
        import sys, numpy as np, flowc, flowc.numpy as fnp
        w = np.arange(12, dtype=np.float32).reshape(3, 4)
        f = flowc.jit(lambda x: fnp.exp(x @ w) / 3)
        print(f(np.full((2, 3), 0.01, np.float32)).tobytes().hex())
        print("flowc.passes.build" in sys.modules or "flowc.backends.llvm.emit" in sys.modules)
    """))
    env = {**os.environ, "FLOWC_CACHE_DIR": str(tmp_path / "c"), "FLOWC_CHECK": "0"}
    first, second = [subprocess.run([sys.executable, str(program)], env=env, capture_output=True, text=True,
                                    check=True).stdout.split() for _ in range(2)]
    assert first[0] == second[0]
    assert (first[1], second[1]) == ("True", "False")  # the second one needs no passes at all


def test_key_depends_on_what_is_computed():
    def graph(value=1.0, name="g", op="add", dtype=f32, axis=0):
        x = param("x", Type(dtype, (4, 4)))
        c = make("broadcast", (constant(np.asarray(value, dtype.numpy)),), {"shape": (4, 4), "axes": ()})
        return Graph(name, [x], [make("reduce_sum", (make(op, (x, c)),), {"axes": (axis,)})])
    keys = [key(g) for g in (graph(), graph(2.0), graph(-0.0), graph(0.0), graph(op="mul"), graph(axis=1),
                             graph(name="h"), graph(dtype=parse_type("f64[]").dtype))]
    assert None not in keys and len(set(keys)) == len(keys)
    assert key(graph()) == keys[0]
    assert key(graph(), fuse=False) not in keys
    assert key(graph(), schedules="map *: width=16") not in keys
    x = param("x", Type(f32, (4, 4)))
    assert key(Graph("g", [x], [x, x])) != key(Graph("g", [x], [x]))


def test_key_knows_flowc_itself(monkeypatch):
    g = parse_graph(TEXT)
    before = key(g)
    monkeypatch.setattr(image, "fingerprint", lambda: "edited")
    assert key(g) not in (None, before)
    monkeypatch.setattr(image, "fingerprint", lambda: "")  # no files to look at, as in a zip
    assert key(g) is None


def test_not_kept(monkeypatch):
    g = parse_graph(TEXT)
    assert key(g) is not None
    for setting in ({"dump_dir": "/nowhere"}, {"log": ("passes",)}, {"fuel": 3}, {"replay_dir": "/nowhere"}):
        assert key(g, **setting) is None
    with flowc.options(check=True):
        assert image.key(g, machine("cpu"), PassContext.from_config()) is None
    monkeypatch.setattr(image, "BUILTIN", image.BUILTIN - {"mul"})  # an op of somebody else
    assert key(g) is None


def test_large_constants_are_not_kept(folder, built, monkeypatch):
    monkeypatch.setattr(image, "LARGEST", 1000)
    for _ in range(2):
        flowc.jit(lambda x: x + np.ones(500))(np.zeros(500))
    assert len(built) == 2


def test_code_that_does_not_load_is_compiled_anew(folder, built, monkeypatch):
    from flowc.diag import FlowcError
    f = flowc.jit(predict)
    want = f(*ARGS)

    def broken(data):
        raise FlowcError("C103", "no")
    with monkeypatch.context() as m:
        m.setattr("flowc.backends.llvm.binary.unpack", broken)
        for a, b in zip(flowc.jit(predict)(*ARGS), want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(built) == 2
    cache.settle()
    for entry in folder.glob("*" + cache.SUFFIX):  # and damaged files are misses
        entry.write_bytes(entry.read_bytes()[:-7])
    for a, b in zip(flowc.jit(predict)(*ARGS), want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(built) == 3
