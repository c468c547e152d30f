"""What keeps compiling short: threads, shared modules, functions out of line, remembered sizes; and its manners."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import sys
import threading

import numpy as np
import pytest

import flowc
import flowc.numpy as fnp
from flowc import dims, progress
from flowc.backends import runtime
from flowc.backends.llvm import engine, translate
from flowc.compiled import compile_graph, machine
from flowc.diag import FlowcError
from flowc.passes import build
from flowc.passes.pipeline import optimise
from flowc.plan import Unfinished


class Memory(dict):
    def put(self, key, data):
        self[key] = data


def many(x, w):
    """A program of several kernels."""
    for k in range(6):
        x = fnp.tanh(fnp.matmul(x, w)) * (k + 1)
    return fnp.sum(x, axis=0), fnp.max(x, axis=1)


def functions(x):
    for k in range(8):
        x = fnp.tanh(x + k) - fnp.exp(-x * x)
    return x


def source(n):
    return engine.Source(f"define i64 @speed_{n}(i64 %x) nounwind {{\n  %y = add i64 %x, {n}\n  ret i64 %y\n}}\n")


BAD = engine.Source("define @")


def lowered(fn, *args):
    return flowc.jit(fn).lower(*args)


# -- threads

def test_threads_change_no_byte(monkeypatch):
    """Objects, and the keys under which they are kept, are those that one thread makes."""
    rng = np.random.default_rng(0)
    graph = lowered(many, rng.random((37, 48), np.float32), rng.random((48, 48), np.float32)).graph
    stores = []
    for count in (1, 4):
        store = Memory()
        monkeypatch.setattr("flowc.compiled.default_store", lambda kept=store: kept)
        monkeypatch.setattr(engine, "_LIVE", {})
        with flowc.options(num_threads=count):
            compile_graph(graph)
        stores.append(dict(store))
    assert stores[0] == stores[1]
    assert stores[0]


def test_team_reports_the_first_error_and_cleans_up():
    interval = sys.getswitchinterval()
    for _ in range(3):
        with pytest.raises(FlowcError) as e:
            engine.compile_modules([source(1), BAD, source(2)], helpers=3)
        assert e.value.code == "C101"
    assert sys.getswitchinterval() == interval
    (one, two) = engine.compile_modules([source(3), source(4)], helpers=3)
    assert one is two
    assert one.address("speed_3") != two.address("speed_4")


def test_modules_that_were_begun_are_taken_over():
    interval = sys.getswitchinterval()
    store = Memory()
    ahead = [source(20), source(21)]
    engine.begin(ahead, store)
    engine.begin(ahead, store)  # under way
    code = engine.compile_module(ahead[0].text, store=store)
    assert code.address("speed_20") and len(store) == 1
    engine._AHEAD.wait()
    assert engine.begun(ahead[1]) and not engine.begun(ahead[0])
    engine.compile_module(ahead[1].text, store=store)
    engine.begin(ahead, store)
    assert len(store) == 2 and not engine.begun(ahead[1]), "what is stored is not begun"
    for thread in threading.enumerate():
        if thread.name == "flowc-compile":
            thread.join()
    assert sys.getswitchinterval() == interval


def test_a_bad_module_that_was_begun_fails_when_it_is_asked_for():
    engine.begin([BAD], None)
    for _ in range(2):
        with pytest.raises(FlowcError) as e:
            engine.compile_module(BAD.text)
        assert e.value.code == "C101"


def test_a_child_waits_for_no_thread_of_its_parent():
    sources = [source(n) for n in range(30, 36)]
    engine.begin(sources, None)
    child = os.fork()
    if not child:
        try:
            engine.compile_modules(sources)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.compile_modules(sources)


@pytest.mark.parametrize("where", ["source", "translation"])
def test_interrupt_leaves_everything_usable(monkeypatch, where):
    interval = sys.getswitchinterval()

    def sources():
        yield source(10)
        if where == "source":
            raise KeyboardInterrupt
        yield source(11)

    def interrupted(text, level):
        raise KeyboardInterrupt

    store = Memory()
    with monkeypatch.context() as m:
        if where == "translation":
            m.setattr(engine, "_object", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.compile_modules(sources(), store=store, helpers=2)
    assert not store, "what was not finished is not kept"
    assert sys.getswitchinterval() == interval
    engine.compile_modules([source(10), source(11)], store=store, helpers=2)
    assert len(store) == 2


def test_interrupted_function_compiles_at_the_next_call(monkeypatch):
    f = flowc.jit(lambda x: x * 2 + 1)
    x = np.arange(5.0)
    with monkeypatch.context() as m:
        def interrupted(*args, **kwargs):
            raise KeyboardInterrupt
        m.setattr("flowc.backends.llvm.compile.compile_modules", interrupted)
        with pytest.raises(KeyboardInterrupt):
            f(x)
    assert np.array_equal(f(x), x * 2 + 1)


def test_binding_without_lock_free_functions_serves(monkeypatch):
    """Where a wrapped function does not show what it wraps, the locked one is called."""
    from llvmlite.binding import ffi
    library = ffi.lib

    class Opaque:
        def __init__(self, name):
            self.call = getattr(library, name)
            self.argtypes, self.restype = self.call.argtypes, self.call.restype

        def __call__(self, *args):
            return self.call(*args)

    class Library:
        def __getattr__(self, name):
            if name in ("_name", "_handle"):
                raise AttributeError(name)
            return Opaque(name)

    monkeypatch.setattr(ffi, "lib", Library())
    translate._functions.cache_clear()
    try:
        assert translate._functions()["ParseAssembly"].__class__ is Opaque
        assert engine._object(source(20).text, 2)[:4] == b"\x7fELF" or sys.platform != "linux"
    finally:
        monkeypatch.undo()
        translate._functions.cache_clear()


# -- modules

def test_small_kernels_share_modules():
    x, w = np.ones((37, 48), np.float32), np.ones((48, 48), np.float32)
    compiled = lowered(many, x, w).compile().compiled
    exe = compiled.executable
    assert len(compiled.program.kernels) > 1
    texts = {text for code in exe.codes() for text in code.texts if "ptr %args" in text or "@run(" in text}
    assert len(texts) <= 2 + sum(text.count("\n") for text in texts) // 300  # those of shared functions are more


def test_own_definitions_come_before_those_of_loaded_modules():
    """A loaded Code that is used again may also define what the new modules bring along."""
    caller = engine.Source("declare i64 @speed_31(i64)\ndefine i64 @speed_caller(i64 %x) nounwind {\n"
                           "  %y = call i64 @speed_31(i64 %x)\n  ret i64 %y\n}\n")
    first = engine.compile_modules([source(30), source(31)])
    apart = engine.Source(source(31).text + source(32).text)
    second = engine.compile_modules([source(30), apart, caller])
    assert second[0] is first[0]
    assert second[1] is second[2] is not first[0]
    run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(second[2].address("speed_caller"))
    assert run(11) == 42


def steps(x, w):
    """Kernels of which some become one, and some do not."""
    h = x[0] * 0
    for k in range(5):
        h = fnp.tanh(fnp.matmul(h, w) + x[k]) + fnp.roll(h, k)
    return h, fnp.sum(h, axis=0)


def test_kernels_are_translated_while_others_are_lowered():
    args = np.ones((5, 4, 40), np.float32), np.eye(40, dtype=np.float32)
    graph = lowered(steps, *args).graph
    builder = build.Builder(optimise(graph), build.BuildOptions(machine("cpu")))
    ahead = list(builder.kernels_ahead())
    there = list(builder.program.kernels.values())
    assert sum(k in there for k in ahead) >= 2
    assert all(a is b for a in ahead for b in there if a == b)
    want = runtime.compile_program(builder.program).run(args, {})
    given = Unfinished(lambda: iter(ahead), lambda: builder.program)
    for got in (runtime.compile_program(given), runtime.compile_program(given, "interpreter")):
        for a, b in zip(got.run(args, {}), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_nothing_is_translated_ahead_of_a_donation():
    """Who takes over an argument's memory is known in the end."""
    graph = lowered(lambda x: fnp.exp(x) * 2, np.ones(1000, np.float32)).graph
    builder = build.Builder(optimise(graph), build.BuildOptions(machine("cpu"), donated=frozenset([0])))
    assert not list(builder.kernels_ahead()) and builder.program.kernels


# -- functions out of line

def test_functions_of_small_kernels_are_written_once():
    text = lowered(functions, np.ones((32, 32), np.float32)).compile().as_text("llvm")
    assert text.count("define internal") == 2
    assert text.count("call") > 16
    assert text.count("\n") < 450


def test_functions_of_long_loops_are_written_out():
    text = lowered(lambda x: fnp.exp(fnp.tanh(x)), np.ones(1 << 20, np.float32)).compile().as_text("llvm")
    assert "define internal" not in text


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_calls_change_no_bit(monkeypatch, dtype):
    x = np.random.default_rng(1).normal(size=(31, 33)).astype(dtype)
    results = []
    for few in (0, 1, 1000):
        monkeypatch.setattr("flowc.backends.llvm.emit_outline.FEW", few)
        results.append(flowc.jit(lambda x: functions(fnp.sin(x)))(x))
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


# -- sizes

def test_sizes_survive_pickling():
    n, m = dims.sym("n"), dims.sym("m")
    d = (n * 3 + m) // 4 + dims.dmin(n, m) % 5
    again = pickle.loads(pickle.dumps(d))
    assert again == d
    assert hash(again) == hash(d)
    assert dims.symbols(again) == {"n", "m"}


# -- the line on the terminal

class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("terminal", "wanted", "shown"), [(True, True, True), (True, False, False),
                                                           (False, True, False)])
def test_progress_line(monkeypatch, terminal, wanted, shown):
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with flowc.options(progress=wanted):
        flowc.jit(many)(np.ones((5, 7), np.float32), np.ones((7, 7), np.float32))
    assert ("compiling many" in out.getvalue()) is shown
    if shown:
        assert out.getvalue().endswith("\r\x1b[K"), "the line is removed"
    assert progress._state.line is None if shown else True


# -- garbage

def test_collection_is_as_before_after_a_compile(monkeypatch):
    """Nothing looks for garbage during a compile, also if that fails, and whoever had it off keeps it off."""
    seen = []
    prepare = runtime.prepare
    monkeypatch.setattr(runtime, "prepare", lambda *args: seen.append(gc.isenabled()) or prepare(*args))
    graph = lowered(lambda x: fnp.sin(x) * 7.25, np.ones(5, np.float32)).graph
    compile_graph(graph)
    assert seen == [False] and gc.isenabled()
    gc.disable()
    try:
        compile_graph(graph)
        assert not gc.isenabled()
    finally:
        gc.enable()
    monkeypatch.setattr(runtime, "prepare", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError), flowc.options(fuse=False):
        compile_graph(graph)
    assert gc.isenabled()
