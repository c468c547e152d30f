"""The native call: right results for what it takes, the fallback for everything else, no leaks, no lifetime errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from flowc.backends import buffers, runtime
from flowc.backends.llvm import callpath, cpu, engine, pool
from flowc.backends.llvm.callpath import CallSpec, Container, Same
from flowc.dims import ceildiv, sym
from flowc.graph import Literal
from flowc.kernel import Buffer, Builder, Kernel, Loop, Store
from flowc.plan import Place, Plan, PlanBuffer, Program, Step
from flowc.types import DTYPES, Type, f32, f64, i32, i64

pytestmark = pytest.mark.skipif(not callpath._layout_holds(), reason="no native calls on this Python")

N, M = sym("n"), sym("m")


def kernel(name, dtype, extent, expr, inputs=2):
    """out[i] = expr(b, x0[i], x1[i] ...) over ``extent``; rank-0 inputs are read at 0."""
    b, i = Builder(), sym("i")
    names = [f"x{k}" for k in range(inputs)]
    loads = [b.load(n, i, dtype) for n in names]
    body = Store("y", i, expr(b, *loads))
    return Kernel(name, (*(Buffer(n, dtype, (extent,)) for n in names), Buffer("y", dtype, (extent,), "out")),
                  ("n",), (Loop("i", extent, "parallel", (body,)),))


def plan(params, outputs, buffer_list, steps=(), kernels=(), arena=0, symbols=("n",), constants=None, **kw):
    p = Plan("p", "cpu", tuple(params), tuple(outputs), tuple(buffer_list), tuple(steps), arena, symbols, **kw)
    return Program(p, {k.name: k for k in kernels}, constants or {})


def add_program(dtype=f32, n=N, work=1000, expr=lambda b, x, y: b.add(x, y)):
    """e = x0 + x1 for vectors of one length."""
    t = Type(dtype, (n,))
    bufs = [PlanBuffer("a", t, Place("param", 0)), PlanBuffer("b", t, Place("param", 1)),
            PlanBuffer("e", t, Place("output", 0))]
    return plan(("a", "b"), ("e",), bufs, [Step("s", "k", ("a", "b", "e"), (n,), 1, 0, work)],
                [kernel("k", dtype, N, expr)], symbols=("n",) if n is N else ())


def slow(*args, **kwargs):
    return "slow", args, kwargs


def is_slow(r):
    return isinstance(r, tuple) and len(r) == 3 and r[0] == "slow"


def native(program, args=("array", "array"), result=0, fallback=slow):
    spec = CallSpec(tuple(args), result, (), "e", "what it does")
    f = runtime.compile_program(program).native_callable(spec, fallback)
    assert type(f).__name__ == "builtin_function_or_method"
    return f


@pytest.fixture(scope="module")
def add():
    return native(add_program())


def vec(n, dtype=np.float32):
    return np.arange(n, dtype=dtype)


def test_results(add):
    for n in (0, 1, 3, 10, 1000):
        r = add(vec(n), vec(n))
        assert type(r) is np.ndarray
        assert np.array_equal(r, 2 * vec(n))
        assert r.flags.owndata and r.flags.writeable
    assert (add.__name__, add.__doc__, add.__module__) == ("e", "what it does", "flowc.compiled")


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize("args", [
    (), (vec(3),), (vec(3),) * 3, (vec(3), vec(4)), (vec(3), [1, 2, 3]), (vec(3), None), (vec(3), 3.0),
    (vec(3), vec(3, np.float64)), (vec(3), vec(3, np.int32)), (vec(3), vec(3, ">f4")), (vec(3), vec(3).view(Sub)),
    (vec(3), vec(6)[::2]), (vec(3), vec(3)[::-1]), (vec(3), np.float32(3)), (vec(3), vec(3).reshape(3, 1)),
    (vec(3), np.array(3, np.float32)), (vec(3), np.ma.array(vec(3))),
    (vec(3), np.frombuffer(b"\0" + vec(3).tobytes(), np.float32, 3, 1)), (np.broadcast_to(np.float32(1), 3), vec(3)),
], ids=range(19))
def test_anything_unusual_goes_to_the_fallback(add, args):
    r = add(*args)
    assert is_slow(r)
    assert len(r[1]) == len(args)
    assert all(a is b for a, b in zip(r[1], args, strict=True))


def test_keywords_go_to_the_fallback(add):
    a, b = vec(3), vec(3)
    assert add(a, b=b) == ("slow", (a,), {"b": b})
    r = add(b=b, a=a)
    assert r[1] == () and set(r[2]) == {"a", "b"}


def test_fallback_errors_arrive(add):
    def broken(*args):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        native(add_program(), fallback=broken)(1)


def test_read_only_and_fortran_vectors_are_fine(add):
    a = vec(5)
    a.flags.writeable = False
    assert np.array_equal(add(a, np.asfortranarray(vec(5))), 2 * vec(5))
    assert np.array_equal(add(a, a), 2 * vec(5))


def test_static_sizes():
    f = native(add_program(n=10))
    assert np.array_equal(f(vec(10), vec(10)), 2 * vec(10))
    assert is_slow(f(vec(9), vec(9)))


@pytest.mark.parametrize("name", ["f32", "f64", "i32", "i64", "u8", "i16", "u64"])
def test_dtypes(name):
    t = DTYPES[name]
    f = native(add_program(t))
    a = np.arange(7).astype(t.numpy)
    assert f(a, a).dtype == t.numpy
    assert np.array_equal(f(a, a), a + a)


def test_bfloat16():
    t = DTYPES["bf16"]
    f = native(add_program(t))
    a = np.arange(7).astype(t.numpy)
    assert f(a, a).dtype == t.numpy
    assert np.array_equal(f(a, a), a + a)


def test_patterns_of_sizes():
    """x: [n, m, 2*n], y: [m, 4], out: [n + m]: equal symbols, constants, a size computed from symbols."""
    bufs = [PlanBuffer("x", Type(f32, (N, M, 2 * N)), Place("param", 0)),
            PlanBuffer("y", Type(f64, (M, 4)), Place("param", 1)),
            PlanBuffer("o", Type(f32, (N + M, 3)), Place("output", 0))]
    p = plan(("x", "y"), ("o",), bufs, symbols=("n", "m"), ranges=(("n", (1, 5)),),
             constraints=((M, 2 * ceildiv(M, 2)),))
    f = native(p)
    x = lambda *s: np.zeros(s, np.float32)  # noqa: E731
    y = lambda *s: np.zeros(s)  # noqa: E731
    assert f(x(3, 2, 6), y(2, 4)).shape == (5, 3)
    assert f(x(1, 0, 2), y(0, 4)).shape == (1, 3)
    for a, b in [((3, 2, 5), (2, 4)), ((3, 2, 6), (3, 4)), ((3, 2, 6), (2, 5)), ((6, 2, 12), (2, 4)),
                 ((0, 2, 0), (2, 4)), ((3, 3, 6), (3, 4))]:
        assert is_slow(f(x(*a), y(*b))), (a, b)


def test_size_that_no_argument_tells():
    p = plan((), ("o",), [PlanBuffer("o", Type(f32, (N,)), Place("output", 0))])
    assert runtime.compile_program(p).native_callable(CallSpec(()), slow) is slow


class TestScalars:
    def program(self, dtype):
        """y = x[0] + s, both of rank 0."""
        t = Type(dtype)
        k = kernel("k", dtype, 1, lambda b, x, s: b.add(x, s))
        bufs = [PlanBuffer("x", t, Place("param", 0)), PlanBuffer("s", t, Place("param", 1)),
                PlanBuffer("y", t, Place("output", 0))]
        return plan(("x", "s"), ("y",), bufs, [Step("s", "k", ("x", "s", "y"), (1,), 1, 0, 1)], [k], symbols=())

    @pytest.mark.parametrize(("name", "kind", "good", "bad"), [
        ("f64", "float", [0.0, -1.5, 1e300], [1, True, np.float64(1), None, "1"]),
        ("f32", "float", [0.1, -1.5, 1e-30], [1, True, np.float32(1)]),
        ("i64", "int", [0, 5, -1, 2**62, -2**63], [True, 1.0, 2**63, -2**63 - 1, 10**40, np.int64(3)]),
        ("i32", "int", [0, 2**31 - 1, -2**31], [2**31, -2**31 - 1, False]),
        ("u8", "int", [0, 255], [-1, 256]),
        ("u64", "int", [0, 2**63 - 1], [-1, 2**63]),
        ("f64", "int", [0, 7, -2**53 - 1, 2**62 + 1], [True, 1.5, 10**30]),
        ("f32", "int", [0, 7, 2**24 + 1, 2**60 + 1], [True, 1.5]),
    ])
    def test_values(self, name, kind, good, bad):
        t = DTYPES[name]
        f = native(self.program(t), ("array", kind))
        zero = np.zeros((), t.numpy)
        for v in good:
            r = f(zero, v)
            assert r.shape == () and r.dtype == t.numpy
            assert r == np.array(v).astype(t.numpy), v
        for v in bad:
            assert is_slow(f(zero, v)), v

    def test_bool(self):
        t = Type(DTYPES["bool"])
        p = plan(("x",), ("x",), [PlanBuffer("x", t, Place("param", 0))], symbols=())
        f = native(p, ("bool",))
        assert f(True) is not True and f(True).dtype == bool
        assert (bool(f(True)), bool(f(False))) == (True, False)
        for v in (1, 0, None, np.True_, 1.0):
            assert is_slow(f(v))

    def test_half_precision_scalars_are_left_to_python(self):
        exe = runtime.compile_program(self.program(DTYPES["f16"]))
        assert exe.native_callable(CallSpec(("array", "float")), slow) is slow


def test_objects_that_must_be_the_same():
    class Thing:
        pass

    me = Thing()
    f = native(add_program(), (Same(me), "array", Same(None), "array", Same("mode")))
    assert np.array_equal(f(me, vec(3), None, vec(3), "mode"), 2 * vec(3))
    assert is_slow(f(Thing(), vec(3), None, vec(3), "mode"))
    assert is_slow(f(me, vec(3), 0, vec(3), "mode"))
    gone = weakref.ref(me)
    del me
    gc.collect()
    assert gone() is not None, "the callable keeps it"
    del f
    gc.collect()
    assert gone() is None


class TestResults:
    def several(self):
        """x + x, x itself, a constant, x + x again."""
        t = Type(f32, (N,))
        bufs = [PlanBuffer("a", t, Place("param", 0)), PlanBuffer("e", t, Place("output", 0)),
                PlanBuffer("c", Type(i64, (2,)), Place("constant"))]
        return plan(("a",), ("e", "a", "c", "e"), bufs, [Step("s", "k", ("a", "a", "e"), (N,), 1, 0, N)],
                    [kernel("k", f32, N, lambda b, x, y: b.add(x, y))],
                    constants={"c": Literal(np.array([3, 4]))})

    @pytest.mark.parametrize("n", [0, 4, 1 << 19])
    def test_tuple_of_fresh_arrays(self, n):
        f = native(self.several(), ("array",), Container("tuple", (0, 1, 2, 3)))
        a = vec(n)
        for _ in range(3):
            r = f(a)
            assert type(r) is tuple
            for got, want in zip(r, (a + a, a, [3, 4], a + a), strict=True):
                assert np.array_equal(got, want)
            for i, x in enumerate(r):
                assert not any(np.shares_memory(x, y) for y in (a, *r[i + 1:]))
                x[...] = 9
        assert np.array_equal(a, vec(n))

    def test_packed(self):
        f = native(self.several(), ("array",), Container("call", (0, 1, 2, 3), cls=lambda *arrays: {"all": arrays}))
        r = f(vec(3))
        assert [list(x) for x in r["all"]] == [[0, 2, 4], [0, 1, 2], [3, 4], [0, 2, 4]]
        first = r.pop("all")[0]
        count = sys.getrefcount(first)
        assert count == 2, "the name above and the argument"

        def broken(*arrays):
            raise RuntimeError("pack")

        f = native(self.several(), ("array",), Container("call", (0, 1, 2, 3), cls=broken))
        with pytest.raises(RuntimeError, match="pack"):
            f(vec(3))

    def test_one_array_needs_one_output(self):
        exe = runtime.compile_program(self.several())
        assert exe.native_callable(CallSpec(("array",), 0), slow) is slow

    def test_large_results_come_from_warm_memory(self, add):
        n = 1 << 19
        r = add(vec(n), vec(n))
        assert np.array_equal(r, 2 * vec(n))
        address = r.ctypes.data
        assert address % buffers.HUGE_PAGE == 0
        buffers.release()
        del r
        gc.collect()
        assert add(vec(n), vec(n)).ctypes.data == address

    def test_no_memory(self, monkeypatch):
        """The n-th allocation of large results fails, for every n."""
        t = Type(f32, (N,))
        outs = [f"o{i}" for i in range(3)]
        bufs = [PlanBuffer("a", t, Place("param", 0)), *(PlanBuffer(o, t, Place("output", i)) for i, o in
                                                         enumerate(outs))]
        f = native(plan(("a",), outs, bufs), ("array",), Container("tuple", (0, 1, 2)))
        real = buffers.empty
        a = vec(1 << 19)
        for fail_at in range(3):
            made = []

            def failing(shape, dtype, made=made, fail_at=fail_at):
                if len(made) == fail_at:
                    raise MemoryError("enough")
                made.append(weakref.ref(out := real(shape, dtype)))
                return out

            with monkeypatch.context() as m:
                m.setattr(buffers, "empty", failing)
                with pytest.raises(MemoryError, match="enough"):
                    f(a)
            gc.collect()
            assert [w() for w in made] == [None] * fail_at
        assert len(f(a)) == 3

    def test_impossible_sizes_are_left_to_python(self):
        big = plan(("a",), ("o",), [PlanBuffer("a", Type(f32, (N, 0)), Place("param", 0)),
                                    PlanBuffer("o", Type(f32, (N, N, 8)), Place("output", 0))])
        f = native(big, ("array",))
        assert is_slow(f(np.zeros((1 << 31, 0), np.float32)))
        assert is_slow(f(np.zeros((1 << 40, 0), np.float32)))
        assert f(np.zeros((3, 0), np.float32)).shape == (3, 3, 8)


def arena_program(extra=0):
    """((x + x) + x) through a temporary of 4n + extra bytes."""
    t = Type(f32, (N,))
    bufs = [PlanBuffer("a", t, Place("param", 0)), PlanBuffer("t", t, Place("arena", 0, 0)),
            PlanBuffer("e", t, Place("output", 0))]
    steps = [Step("s0", "k", ("a", "a", "t"), (N,), 1, 0, 8 * N), Step("s1", "k", ("t", "a", "e"), (N,), 1, 1, 8 * N)]
    return plan(("a",), ("e",), bufs, steps, [kernel("k", f32, N, lambda b, x, y: b.add(x, y))],
                ceildiv(4 * N, 64) * 64 + extra)


class TestArena:
    def test_on_the_stack_and_on_the_heap(self):
        f = native(arena_program(), ("array",))
        for n in (0, 1, 100, callpath.buffers.LARGE // 64, 40_000, 7, 500_000, 30_000):
            assert np.array_equal(f(vec(n)), 3 * vec(n)), n

    def test_kept_between_calls_and_released(self):
        f = native(arena_program(), ("array",))
        f(vec(100_000))
        record = f.__self__.record
        assert record.fields[callpath.RECORD["arena_size"]] >= 400_000
        callpath.release()
        assert record.fields[callpath.RECORD["arena"]] == 0
        assert np.array_equal(f(vec(100_000)), 3 * vec(100_000))

    def test_no_memory(self):
        f = native(arena_program(1 << 55), ("array",))
        for _ in range(3):
            with pytest.raises(MemoryError):
                f(vec(10))

    def test_several_threads_at_once(self):
        f = native(arena_program(), ("array",))
        wrong = []

        def work(k):
            for i in range(60):
                n = 20_000 + 1000 * k + i
                if not np.array_equal(f(vec(n)), 3 * vec(n)):
                    wrong.append((k, i))

        runners = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for t in runners:
            t.start()
        for t in runners:
            t.join()
        assert not wrong


class TestLifetime:
    def test_reference_counts_stay(self, add):
        a, b = vec(4), vec(4)
        d = np.dtype(np.float32)
        for f in (add, native(add_program(), result=Container("tuple", (0,))),
                  native(add_program(), result=Container("call", (0,), cls=lambda x: x))):
            f(a, b)
            before = [sys.getrefcount(x) for x in (a, b, d, None, slow, f)]
            for _ in range(1000):
                f(a, b)
                f(a, None)
            assert [sys.getrefcount(x) for x in (a, b, d, None, slow, f)] == before
        r = add(a, b)
        assert sys.getrefcount(r) == 2

    def test_everything_goes_with_the_callable(self):
        def fallback(*args):
            return "mine"

        f = native(add_program(expr=lambda b, x, y: b.sub(x, y)), fallback=fallback)
        record, code = weakref.ref(f.__self__.record), weakref.ref(f.__self__.record.keep[1])
        kept = weakref.ref(fallback)
        del fallback
        gc.collect()
        assert f(1) == "mine"
        assert np.array_equal(f(vec(3), vec(3)), np.zeros(3))
        del f
        gc.collect()
        assert record() is None and kept() is None and code() is None

    def test_part_of_a_cycle(self):
        class Owner:
            def slow(self, *args):
                return self

        owner = Owner()
        owner.call = native(add_program(), fallback=owner.slow)
        assert owner.call(1) is owner
        gone = weakref.ref(owner)
        del owner
        gc.collect()
        assert gone() is None

    def test_memory_is_flat(self):
        def resident():
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * 4096

        f = native(arena_program(), ("array",))
        a = vec(40_000)

        def cycle():
            for _ in range(300):
                f(a)
                native(arena_program(), ("array",))(a)

        cycle()
        before = resident()
        cycle()
        assert resident() - before < 16 << 20


@pytest.mark.parametrize("count", [1, 3])
def test_large_work_is_split(count):
    try:
        pool.set_num_threads(count)
        f = native(add_program(work=10**7))
        for n in (1, 3, 1000, 100_000):
            assert np.array_equal(f(vec(n), vec(n)), 2 * vec(n))
    finally:
        pool.set_num_threads(0)


def test_long_work_is_left_to_python():
    assert is_slow(native(add_program(work=callpath_slow_work()))(vec(3), vec(3)))


def callpath_slow_work():
    from flowc.backends.llvm.callpath_ir import SLOW_WORK
    assert SLOW_WORK == cpu.PATIENCE
    return SLOW_WORK


def test_other_threads_run_meanwhile():
    """The GIL is released while enough work is done."""
    f = native(add_program(work=10**6))
    done = []
    runner = threading.Thread(target=lambda: [f(vec(1000), vec(1000)) for _ in range(200)] and done.append(1))
    runner.start()
    for _ in range(200):
        f(vec(1000), vec(1000))
    runner.join()
    assert done


def test_layout_check_switches_the_native_call_off(monkeypatch):
    monkeypatch.setattr(callpath, "ND", callpath.ND + 4)
    callpath._usable.cache_clear()
    try:
        exe = runtime.compile_program(add_program())
        assert exe.native_callable(CallSpec(("array", "array")), slow) is slow
    finally:
        monkeypatch.undo()
        callpath._usable.cache_clear()
    assert exe.native_callable(CallSpec(("array", "array")), slow) is not slow


def test_first_callables_are_compiled_quickly(monkeypatch):
    class Memory(dict):
        def put(self, key, data):
            self[key] = data

    best = engine.Source(callpath.call_ir())
    for stored in (False, True):
        store = Memory({engine.object_key(best.text): b"any: it is loaded already, or refused and compiled"}
                       if stored else {})
        monkeypatch.setattr(callpath, "_made", {})
        monkeypatch.setattr(callpath, "_asked", 0)
        first = [callpath._native(store) for _ in range(callpath.WARM_UP)]
        level = engine.OPT_LEVEL if stored else engine.QUICK
        assert first == [callpath._made[level]] * callpath.WARM_UP
        while callpath._native(store) is not callpath._made.get(engine.OPT_LEVEL):
            assert not stored
            engine._AHEAD.wait()
        f = native(add_program())
        assert np.array_equal(f(vec(3), vec(3)), 2 * vec(3))


def test_object_code_is_the_same_in_every_process():
    """Nothing of a process is in the text, so that its object is found on disk again."""
    code = """
import hashlib, sys
sys.path.insert(0, {!r})
from flowc.backends.llvm import callpath_ir, pool_ir, share
text = callpath_ir.call_ir() + pool_ir.pool_ir(pool_ir.native_kind()) + share.share_ir()
print(hashlib.sha256(text.encode()).hexdigest())
"""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    runs = {subprocess.run([sys.executable, "-c", code.format(root)], capture_output=True, text=True, check=True).stdout
            for _ in range(2)}
    assert len(runs) == 1 and runs != {""}


def test_int32_of_the_same_width_is_not_confused():
    """Two dtypes of one name may be two objects in NumPy: the second is taken by the fallback."""
    f = native(add_program(i32))
    other = np.dtype("l") if np.dtype("l").itemsize == 4 else np.dtype("i")
    a = np.arange(3, dtype=other)
    r = f(a, a)
    assert is_slow(r) or np.array_equal(r, 2 * a)
