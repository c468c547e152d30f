"""Compiled functions: signatures, variants, containers, gradients, stages, checking."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import NamedTuple

import numpy as np
import pytest

import flowc
from flowc.diag import FlowcTypeError, FlowcValueError
from flowc.function import Function


def variants(f: Function) -> int:
    return sum(len(x.variants) for x in f.families.values())


def rand(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def test_result_equals_numpy():
    f = flowc.jit(lambda a, b: (a + b) * (b + 1))
    a, b = rand(10), rand(10)
    assert np.array_equal(f(a, b), (a + b) * (b + 1))
    assert f(a, b).dtype == np.float32


def test_second_size_makes_symbols_and_no_third_compile():
    f = flowc.jit(lambda a, b: np.tanh(a) @ b)
    w = rand(4, 3)
    for n in (5, 7, 11, 2, 100, 0):
        x = rand(n, 4)
        assert f(x, w).shape == (n, 3)
        np.testing.assert_allclose(f(x, w), np.tanh(x) @ w, rtol=1e-5, atol=1e-5)
    assert variants(f) == 2


def test_sizes_of_one_are_part_of_the_signature():
    f = flowc.jit(lambda a, b: a + b)
    for shape in ((3,), (1,), (4,), (1,), (9,)):
        assert np.array_equal(f(rand(*shape), rand(3)[:1]), rand(*shape) + rand(3)[:1])
    assert variants(f) == 3  # static 3, static 1, symbolic


def test_equal_sizes_that_part_compile_again():
    f = flowc.jit(lambda a, b: np.sum(a) + np.sum(b))
    for n, m in ((3, 3), (4, 4), (5, 6), (8, 9), (7, 7)):
        np.testing.assert_allclose(f(rand(n), rand(m)), rand(n).sum() + rand(m).sum(), rtol=1e-5)
    assert variants(f) == 3


def test_dynamic_compiles_once():
    f = flowc.jit(lambda a: a * 2, dynamic=True)
    for n in (3, 8, 0, 17):
        assert np.array_equal(f(rand(n)), rand(n) * 2)
    assert variants(f) == 1


def test_function_that_needs_a_number_is_compiled_per_value():
    @flowc.jit
    def f(x):
        out = x[:0]
        for i in range(x.shape[0]):
            out = np.concatenate([out, x[i:i + 1] * i])
        return out
    for n in (3, 4, 5):
        assert np.array_equal(f(rand(n)), rand(n) * np.arange(n, dtype=np.float32))


def test_static_arguments():
    f = flowc.jit(lambda x, axis, scale=1: np.sum(x, axis=axis) * scale, static_argnames=("axis", "scale"))
    x = rand(3, 4)
    np.testing.assert_allclose(f(x, 0), x.sum(0), rtol=1e-5)
    np.testing.assert_allclose(f(x, axis=1, scale=3), x.sum(1) * 3, rtol=1e-5)
    np.testing.assert_allclose(f(x, 0), x.sum(0), rtol=1e-5)
    with pytest.raises(FlowcTypeError, match="hash"):
        f(x, [0])


class Pair(NamedTuple):
    first: object
    second: object


def test_containers_in_and_out():
    @flowc.jit
    def f(params, *, extra):
        return {"sum": params["w"] + params["b"][0], "pair": Pair(extra, (params["w"] * 2, None, "text", 3))}
    w, b, e = rand(3), rand(3), rand(2)
    out = f({"w": w, "b": [b]}, extra=e)
    assert np.array_equal(out["sum"], w + b)
    assert np.array_equal(out["pair"].first, e)
    assert np.array_equal(out["pair"].second[0], w * 2)
    assert out["pair"].second[1:] == (None, "text", 3)


def test_python_numbers_are_weak():
    f = flowc.jit(lambda x, s: x * s)
    assert f(rand(3), 2).dtype == np.float32
    assert f(rand(3), 2.5).dtype == np.float32
    assert f(np.arange(3), 2.5).dtype == np.float64
    assert f(rand(3), np.float64(2)).dtype == np.float64


@pytest.mark.parametrize("make", [
    lambda a: a[::-1], lambda a: np.asfortranarray(a), lambda a: a[::2], lambda a: np.broadcast_to(a[:1], a.shape),
    lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    lambda a: a.astype(a.dtype.newbyteorder()), lambda a: a[..., None, :]], ids=range(7))
def test_any_layout(make):
    x = make(rand(6, 5))
    x.setflags(write=False)
    before = x.copy()
    got = flowc.jit(lambda a: a * 2 + 1)(x)
    assert np.array_equal(got, x * 2 + 1) and got.flags.writeable and got.flags.c_contiguous
    assert np.array_equal(x, before)


def test_outputs_are_fresh():
    x = rand(4)
    f = flowc.jit(lambda a: (a, a, np.float32(3) + np.zeros(4, np.float32), a + 1))
    first = f(x)
    for o in first:
        o[...] = -1
    assert np.array_equal(x, rand(4))
    second = f(x)
    assert np.array_equal(second[0], x) and np.array_equal(second[2], np.full(4, 3, np.float32))


def test_wrong_arguments():
    f = flowc.jit(lambda a, b: a + b)
    with pytest.raises(FlowcTypeError, match="static_argnames"):
        f("text", rand(3))
    with pytest.raises(TypeError):
        f(rand(3))
    with pytest.raises(FlowcTypeError, match="T003"):
        f(rand(3), rand(4))
    with pytest.raises(FlowcTypeError):
        f(np.array(["a"]), rand(3))
    with pytest.raises(FlowcValueError, match="device"):
        flowc.jit(lambda a: a, device="abacus")


def test_gradients_match_differences():
    def loss(w, b, x):
        return np.mean(np.tanh(x @ w + b) ** 2)
    w, b, x = rand(4, 3, dtype=np.float64), rand(3, dtype=np.float64), rand(5, 4, dtype=np.float64)
    value, (gw, gb) = flowc.value_and_grad(loss, argnums=(0, 1))(w, b, x)
    np.testing.assert_allclose(value, loss(w, b, x), rtol=1e-12)
    for g, a in ((gw, w), (gb, b)):
        for i in np.ndindex(a.shape):
            e = np.zeros_like(a)
            e[i] = 1e-6
            lo, hi = (loss(w - e, b, x), loss(w + e, b, x)) if a is w else (loss(w, b - e, x), loss(w, b + e, x))
            np.testing.assert_allclose(g[i], (hi - lo) / 2e-6, rtol=1e-6, atol=1e-8)


def test_gradient_of_containers_and_second_derivative():
    g = flowc.grad(lambda p, x: np.sum(p["w"] * x) + np.sum(p["b"] ** 2))
    p, x = {"w": rand(3), "b": rand(2)}, rand(3)
    out = g(p, x)
    assert np.array_equal(out["w"], x)
    np.testing.assert_allclose(out["b"], 2 * p["b"], rtol=1e-6)
    cube = flowc.grad(flowc.grad(lambda x: x ** 3))
    np.testing.assert_allclose(cube(2.0), 12.0, rtol=1e-12)


def test_jit_inside_jit_and_gradient_inside_jit():
    inner = flowc.jit(lambda x: np.sin(x) * 2)
    outer = flowc.jit(lambda x: inner(x) + flowc.grad(lambda y: np.sum(y * y))(x))
    np.testing.assert_allclose(outer(rand(5)), np.sin(rand(5)) * 2 + 2 * rand(5), rtol=1e-5)


def test_lower_with_specs_serves_all_sizes():
    low = flowc.jit(lambda x, w: np.maximum(x @ w, 0)).lower(flowc.spec("f32[n, 784]"), flowc.spec("f32[784, 10]"))
    assert "f32[n, 784]" in low.as_text("graph")
    exe = low.compile()
    w = rand(784, 10)
    for n in (1, 2, 50):
        np.testing.assert_allclose(exe(rand(n, 784), w), np.maximum(rand(n, 784) @ w, 0), rtol=1e-3, atol=1e-3)
    for stage in ("trace", "graph", "plan", "kernel", "llvm", "asm"):
        assert exe.as_text(stage).strip()
    with pytest.raises(FlowcValueError, match="no stage"):
        exe.as_text("ptx")
    with pytest.raises(FlowcTypeError):
        exe(rand(3, 783), w)


def test_verify_and_interpret():
    def f(x, w):
        h = np.exp(x @ w)
        return h / np.sum(h, axis=1, keepdims=True)
    x, w = rand(9, 20), rand(20, 30)
    report = flowc.verify(f, x, w)
    assert report and report.checks and "ok" in str(report)
    np.testing.assert_allclose(flowc.interpret(f, x, w), f(x, w), rtol=1e-4)


def test_verify_finds_a_wrong_kernel(monkeypatch):
    from flowc.backends.llvm import cpu
    original = cpu.CpuExecutable.run_step

    def broken(self, step, views, sizes):
        original(self, step, views, sizes)
        out = views[step.buffers[-1]]
        if out.size:
            out.reshape(-1)[-1] += out.dtype.type(0.01)
    monkeypatch.setattr(cpu.CpuExecutable, "run_step", broken)
    report = flowc.verify(lambda a: a * 2 + 1, rand(50))
    assert not report and "WRONG" in str(report)


def test_devices_agree():
    def f(x, w):
        return np.tanh(x @ w).sum(axis=1)
    x, w = rand(7, 8), rand(8, 5)
    want = flowc.jit(f, device="interpreter")(x, w)
    np.testing.assert_allclose(flowc.jit(f, device="cpu")(x, w), want, rtol=1e-5)
    with flowc.options(gpu="sim"):
        np.testing.assert_allclose(flowc.jit(f, device="cuda")(x, w), want, rtol=1e-5)


def test_log_says_why_it_compiled_again(capfd):
    f = flowc.jit(lambda a: a + 1)
    with flowc.options(log=("recompiles",)):
        f(rand(3))
        f(rand(4))
    text = capfd.readouterr().err
    assert "compiled again" in text and "axis 0 of a was 3, is 4" in text


def test_threads_share_one_compile():
    f = flowc.jit(lambda a: np.tanh(a) * 2)
    out, wrong = [], []

    def work(i):
        x = np.full(100, i, np.float32)
        for _ in range(20):
            got = f(x)
            if not np.array_equal(got, got[:1].repeat(100)) or not np.allclose(got, np.tanh(x) * 2, rtol=1e-5):
                wrong.append(i)
        out.append(i)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(out) == 16 and not wrong and variants(f) == 1


_BITS = """
import hashlib, numpy as np, flowc
rng = np.random.default_rng(0)
x, w, b = (rng.standard_normal(s, np.float32) for s in ((700, 900), (900, 333), (333,)))
f = flowc.jit(lambda x, w, b: (np.tanh(x @ w + b), np.sum(x), np.sum(x, axis=0), np.mean(np.exp(x), axis=1),
                               np.var(x), np.argmax(x, axis=1), x.T * 2))
print(hashlib.sha256(b"".join(o.tobytes() for o in f(x, w, b))).hexdigest())
"""


def test_same_bits_with_one_and_two_threads_and_every_run():
    digests = set()
    for threads in ("1", "2", "2"):
        env = {**os.environ, "FLOWC_NUM_THREADS": threads}
        digests.add(subprocess.run([sys.executable, "-c", _BITS], env=env, capture_output=True, text=True,
                                   check=True).stdout)
    assert len(digests) == 1


def test_chain_of_hundred_thousand_operations():
    """Compiles or refuses by name: here the graph passes run and the interpreter gives the value."""
    def f(x):
        for _ in range(100_000):
            x = x + 1.0
        return x
    got = flowc.jit(f, device="interpreter")(np.zeros(2))
    assert np.array_equal(got, np.full(2, 100_000.0))
