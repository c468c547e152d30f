"""Running programs: entry code, plans of every form, arguments, results, memory."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest

import flowc
from flowc import op as ops
from flowc.backends import buffers, runtime
from flowc.backends.llvm import cpu, engine, entry, pool
from flowc.backends.llvm.builder import Module
from flowc.diag import FlowcError, FlowcTypeError, FlowcValueError
from flowc.dims import ceildiv, dmax, evaluate, floordiv, mod, sym
from flowc.graph import Attrs, Literal
from flowc.kernel import Buffer, Builder, Kernel, Loop, Store
from flowc.plan import Place, Plan, PlanBuffer, Program, Step
from flowc.types import Type, bool_, f32, f64, i64

N = sym("n")
ARENA = ceildiv(4 * N, 64) * 64


def add_kernel(name, c, extent=N, dims=("n",)):
    """y[i] = x[i] + c, split over the threads."""
    b, i = Builder(), sym("i")
    return Kernel(name, (Buffer("x", f32, (extent,)), Buffer("y", f32, (extent,), "out")), dims,
                  (Loop("i", extent, "parallel", (Store("y", i, b.add(b.load("x", i, f32), float(c))),)),))


def serial_kernel(name, c):
    """The same without a parallel loop."""
    k = add_kernel(name, c)
    (loop,) = k.body
    return Kernel(name, k.params, k.dims, (Loop("i", N, "seq", loop.body),))


def pair_kernel(name):
    """y[i, j] = x[i, j] + 1 over two nested parallel loops, n by m."""
    b, i, j, m = Builder(), sym("i"), sym("j"), sym("m")
    at = i * m + j
    inner = Loop("j", m, "parallel", (Store("y", at, b.add(b.load("x", at, f32), 1.0)),))
    return Kernel(name, (Buffer("x", f32, (N, m)), Buffer("y", f32, (N, m), "out")), ("n", "m"),
                  (Loop("i", N, "parallel", (inner,)),))


def program(steps, kernels, outputs, buffer_list, arena=0, params=("x",), symbols=("n",), constants=None, **kw):
    plan = Plan("p", "cpu", tuple(params), tuple(outputs), tuple(buffer_list), tuple(steps), arena, tuple(symbols),
                **kw)
    return Program(plan, {k.name: k for k in kernels}, constants or {})


VEC = Type(f32, (N,))


def chain(length, work=8 * N, kernel=add_kernel, constant=None):
    """x -> +0 -> +1 -> ...: one step per wave, two places of the arena in turn."""
    bufs = [PlanBuffer("x", VEC, Place("param", 0))]
    steps, kernels, last = [], [], "x"
    for i in range(length):
        place = Place("output", 0) if i == length - 1 else Place("arena", 0, i % 2 * ARENA)
        bufs.append(PlanBuffer(f"b{i}", VEC, place))
        steps.append(Step(f"s{i}", f"k{i}", (last, f"b{i}"), (N,), 1, i, work))
        kernels.append(kernel(f"k{i}", i if constant is None else constant))
        last = f"b{i}"
    return program(steps, kernels, [last], bufs, 2 * ARENA)


def fan(width, work=8 * N, kernel=add_kernel):
    """x + 0, x + 1, ... side by side in one wave."""
    bufs = [PlanBuffer("x", VEC, Place("param", 0))]
    bufs += [PlanBuffer(f"b{i}", VEC, Place("output", i)) for i in range(width)]
    steps = [Step(f"s{i}", f"k{i}", ("x", f"b{i}"), (N,), 1, 0, work) for i in range(width)]
    return program(steps, [kernel(f"k{i}", i) for i in range(width)], [f"b{i}" for i in range(width)], bufs)


def vector(n):
    return np.arange(n, dtype=np.float32)


@pytest.fixture
def threads():
    yield pool.set_num_threads
    pool.set_num_threads(0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("work", [8 * N, 10**8])
@pytest.mark.parametrize("kernel", [add_kernel, serial_kernel])
@pytest.mark.parametrize("length", [1, 2, 9, 60])
def test_plans_of_every_form(threads, count, work, kernel, length):
    """Few and many kernels, one and several per wave, worth splitting or not, entries cut into parts."""
    threads(count)
    line = runtime.compile_program(chain(length, work, kernel))
    side = runtime.compile_program(fan(length, work, kernel))
    for n in (0, 1, 5, 1000):
        x = vector(n)
        (y,) = line.run([x], {"n": n})
        assert np.array_equal(y, x + sum(range(length)))
        for c, y in enumerate(side.run([x], {"n": n})):
            assert np.array_equal(y, x + c)


def test_sizes_large_enough_to_be_split(threads):
    results = []
    exe = runtime.compile_program(fan(3))
    for count in (1, 2, 5):
        threads(count)
        results.append(exe.run([vector(300_000)], {"n": 300_000}))
    for r in results[1:]:
        for a, b in zip(r, results[0], strict=True):
            assert np.array_equal(a, b)
    assert np.array_equal(results[0][2], vector(300_000) + 2)


def test_nested_parallel_loops(threads):
    threads(3)
    m = sym("m")
    t = Type(f32, (N, m))
    p = program([Step("s", "k", ("x", "y"), (N, m), 1, 0, 10**8)], [pair_kernel("k")], ["y"],
                [PlanBuffer("x", t, Place("param", 0)), PlanBuffer("y", t, Place("output", 0))], symbols=("n", "m"))
    assert entry.parallel_extent(p.kernels["k"]) == N * m
    exe = runtime.compile_program(p)
    for shape in ((3, 5), (1, 1000), (0, 4), (257, 3)):
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        (y,) = exe.run([x], dict(zip("nm", shape, strict=True)))
        assert np.array_equal(y, x + 1)


def test_parallel_extent():
    assert entry.parallel_extent(add_kernel("k", 1)) == N
    assert entry.parallel_extent(serial_kernel("k", 1)) is None
    assert entry.parallel_extent(add_kernel("k", 1, extent=sym("computed"))) == 1 << 40


def test_equal_kernels_compile_once():
    p = chain(20, constant=1)
    assert len(set(entry.kernel_symbols(p).values())) == 1
    exe = runtime.compile_program(p)
    assert len(exe.codes()) == 1
    (y,) = exe.run([vector(7)], {"n": 7})
    assert np.array_equal(y, vector(7) + 20)


def test_programs_share_kernels_by_content(monkeypatch):
    """A large kernel is a module named by its content, also where names and programs differ."""
    monkeypatch.setattr("flowc.backends.llvm.compile.MODULE", 1)
    first, second = runtime.compile_program(fan(10)), runtime.compile_program(chain(10))
    assert isinstance(first, cpu.CpuExecutable) and isinstance(second, cpu.CpuExecutable)
    assert [id(c) for c in second.codes()[:-1]] == [id(c) for c in first.codes()]


def test_store_is_used():
    class Memory(dict):
        def put(self, key, data):
            self[key] = data

    store = Memory()
    want = runtime.compile_program(chain(3), store=store).run([vector(5)], {"n": 5})
    kept = dict(store)
    assert 1 <= len(kept) <= 2  # the kernels, and the code between them if it is on its own
    gc.collect()
    again = runtime.compile_program(chain(3), store=store).run([vector(5)], {"n": 5})
    assert store == kept
    assert np.array_equal(want[0], again[0])


class TestResults:
    def alias(self):
        """Outputs: own, a param, a constant, the first again."""
        bufs = [PlanBuffer("x", VEC, Place("param", 0)), PlanBuffer("y", VEC, Place("output", 0)),
                PlanBuffer("c", Type(f32, (3,)), Place("constant")), PlanBuffer("t", VEC, Place("arena", 0, 64))]
        steps = [Step("s0", "k0", ("x", "y"), (N,)), Step("s1", "k1", ("y", "t"), (N,), wave=1)]
        return program(steps, [add_kernel("k0", 1), add_kernel("k1", 2)], ["y", "x", "c", "y"], bufs, ARENA + 64,
                       constants={"c": Literal(np.array([7, 8, 9], np.float32))})

    @pytest.mark.parametrize("device", ["cpu", "interpreter"])
    def test_are_fresh(self, device):
        exe = runtime.compile_program(self.alias(), device)
        x = vector(4)
        for _ in range(2):
            out = exe.run([x], {"n": 4})
            for got, want in zip(out, (x + 1, x, [7, 8, 9], x + 1), strict=True):
                assert np.array_equal(got, want)
                assert got.flags.writeable
            for i, a in enumerate(out):
                assert not np.shares_memory(a, x)
                assert not any(np.shares_memory(a, b) for b in out[i + 1:])
                a[...] = -1
        assert np.array_equal(x, vector(4))

    def test_large_results_come_from_warm_memory(self):
        buffers.release()
        exe = runtime.compile_program(chain(2))
        n = 1 << 19
        (y,) = exe.run([vector(n)], {"n": n})
        address = y.ctypes.data
        assert address % buffers.HUGE_PAGE == 0
        del y
        gc.collect()
        (y,) = exe.run([vector(n)], {"n": n})
        assert np.array_equal(y, vector(n) + 1)
        assert buffers.kept() > 0

    def test_no_steps(self):
        p = program([], [], ["x"], [PlanBuffer("x", VEC, Place("param", 0))])
        (y,) = runtime.compile_program(p).run([vector(3)], {"n": 3})
        assert np.array_equal(y, vector(3))

    def test_sizes_that_cannot_exist(self):
        wide = Type(f32, (N, N, N, 1 << 20))
        p = program([], [], ["x"], [PlanBuffer("x", wide, Place("output", 0))], params=())
        exe = runtime.compile_program(p)
        with pytest.raises(ValueError, match="C202"):
            exe.run([], {"n": 1 << 20})
        with pytest.raises(MemoryError):
            exe.run([], {"n": 1 << 11})
        arena = program([], [], [], [], N * (1 << 40), params=())
        with pytest.raises(MemoryError):
            runtime.compile_program(arena).run([], {"n": 1 << 20})
        with pytest.raises(ValueError, match="C202"):
            runtime.compile_program(arena).run([], {"n": 1 << 30})


class TestSteps:
    def test_run_step(self):
        p = chain(2)
        exe = runtime.compile_program(p)
        x, y = vector(6), np.zeros(6, np.float32)
        exe.run_step(p.plan.steps[1], {"b0": x, "b1": y}, {"n": 6})
        assert np.array_equal(y, x + 1)

    def test_interpreter(self):
        p = chain(3)
        exe = runtime.compile_program(p, "interpreter")
        (y,) = exe.run([vector(5)], {"n": 5})
        assert np.array_equal(y, vector(5) + 3)
        out = np.zeros(5, np.float32)
        exe.run_step(p.plan.steps[2], {"b1": vector(5), "b2": out}, {"n": 5})
        assert np.array_equal(out, vector(5) + 2)

    def test_any_layout_is_taken(self):
        exe = runtime.compile_program(chain(2))
        for a in (vector(10)[::2], vector(5)[::-1], vector(5).astype(">f4")):
            assert np.array_equal(exe.run([a], {"n": 5})[0], a + 1)
        with pytest.raises(FlowcTypeError, match="C211"):
            exe.run([np.zeros(5)], {"n": 5})

    @pytest.mark.parametrize("count", [1, 3])
    def test_long_runs_go_step_by_step(self, threads, monkeypatch, count):
        threads(count)
        monkeypatch.setattr(cpu, "PATIENCE", 100_000)
        calls = []
        real = cpu.CpuExecutable._run_split
        monkeypatch.setattr(cpu.CpuExecutable, "_run_split", lambda *a: (calls.append(a), real(*a)))
        exe = runtime.compile_program(chain(3, work=10**6))
        for n in (1, 3, 10_000):
            (y,) = exe.run([vector(n)], {"n": n})
            assert np.array_equal(y, vector(n) + 3)
        assert len(calls) == 9

    def test_host_steps(self, monkeypatch):
        seen = []

        def meaning(x, *, shape, out_type):
            seen.append((shape, out_type))
            return np.sort(x)[::-1]

        monkeypatch.setitem(ops.REGISTRY, "test_down", ops.Op("test_down", "Sorts down.", meaning, lambda *a: a[0],
                                                              ops.HostCall()))
        bufs = [PlanBuffer("x", VEC, Place("param", 0)), PlanBuffer("t", VEC, Place("arena", 0, 0)),
                PlanBuffer("y", VEC, Place("output", 0))]
        steps = [Step("s0", "k", ("x", "t"), (N,)),
                 Step("s1", "", ("t", "y"), op="test_down", attrs=Attrs(shape=(N, 2)), wave=1)]
        exe = runtime.compile_program(program(steps, [add_kernel("k", 1)], ["y"], bufs, ARENA))
        (y,) = exe.run([vector(4)], {"n": 4})
        assert list(y) == [4, 3, 2, 1]
        assert seen == [((4, 2), Type(f32, (4,)))]
        assert exe.native_callable(None, print) is print

    def test_wrong_host_result_is_an_error(self, monkeypatch):
        monkeypatch.setitem(ops.REGISTRY, "test_cut", ops.Op("test_cut", "Wrong.", lambda x: x[:1], lambda *a: a[0],
                                                             ops.HostCall()))
        bufs = [PlanBuffer("x", VEC, Place("param", 0)), PlanBuffer("y", VEC, Place("output", 0))]
        exe = runtime.compile_program(program([Step("s", "", ("x", "y"), op="test_cut")], [], ["y"], bufs))
        with pytest.raises(FlowcError, match="C215"):
            exe.run([vector(3)], {"n": 3})


class TestArguments:
    @pytest.mark.parametrize("make", [
        lambda: np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        lambda: np.arange(24, dtype=np.float32).reshape(4, 3, 2).T,
        lambda: np.arange(48, dtype=np.float32).reshape(2, 3, 8)[:, :, ::2],
        lambda: np.arange(24, dtype=np.float32).reshape(2, 3, 4)[::-1, :, ::-1],
        lambda: np.broadcast_to(np.float32(3), (2, 3, 4)),
        lambda: np.arange(24, dtype=">f4").reshape(2, 3, 4),
        lambda: np.frombuffer(b"\0" + np.arange(24, dtype=np.float32).tobytes(), np.float32, 24, 1).reshape(2, 3, 4),
        lambda: np.zeros((2, 0, 4), np.float32)[::-1],
    ])
    def test_normalise(self, make):
        a = make()
        a.flags.writeable = False
        r = runtime.normalise(a, Type(f32, (2, N, 4)))
        assert r.flags.c_contiguous and r.flags.aligned and r.dtype == np.float32 and r.dtype.isnative
        assert np.array_equal(r, a)

    def test_normalise_copies_only_where_needed(self):
        a = vector(5)
        assert runtime.normalise(a, VEC) is a
        assert runtime.normalise(3.0, Type(f64)).shape == ()

    @pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((3, 1), np.float32), np.zeros(3, bool), [1, 2], None])
    def test_normalise_refuses(self, bad):
        with pytest.raises(FlowcTypeError, match="C211"):
            runtime.normalise(bad, VEC)

    def test_unknown_device(self):
        with pytest.raises(FlowcValueError, match="C214"):
            runtime.compile_program(chain(1), "abacus")


class TestSizes:
    """``@sizes``, against the same computed in Python."""

    def run(self, p, values):
        module = Module()
        entry.emit_sizes(p, module)
        code = engine.compile_module(module.text())
        call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(code.address("sizes"))
        dims = (ctypes.c_int64 * max(1, len(values)))(*values)
        count = sum(len(p.plan.buffer(o).type.shape) for o in p.plan.outputs) + 2
        out = (ctypes.c_int64 * count)()
        fine = call(ctypes.addressof(dims), ctypes.addressof(out))
        return fine, list(out)

    def test_values(self):
        m = sym("m")
        shape = (N + 1, floordiv(N * m, 3), mod(N, 4) + 2, dmax(N, m), 5)
        p = program([Step("s", "k", (), (), 0, 0, N * 7), Step("t", "k", (), (), 0, 0, N * 7 + 4)], [], ["y"],
                    [PlanBuffer("y", Type(f32, shape), Place("output", 0))], N * 64, params=(), symbols=("n", "m"))
        for n in (0, 1, 5, 1000):
            for k in (0, 2, 77):
                fine, out = self.run(p, [n, k])
                env = {"n": n, "m": k}
                assert fine == 1
                assert out == [*(evaluate(d, env) for d in shape), n * 64, n * 14 + 4]

    def test_checks(self):
        m = sym("m")
        p = program([], [], [], [PlanBuffer("x", Type(f32, (N, 2 * N, m)), Place("param", 0))], params=("x",),
                    symbols=("n", "m"), ranges=(("n", (2, 9)),), constraints=((m, N + 1),))
        assert entry.hidden_symbols(p.plan) == {2 * N: ".0"}
        assert self.run(p, [2, 3, 4])[0] == 1
        for bad in ([1, 2, 2], [10, 11, 20], [2, 4, 4], [2, 3, 5], [-2, -1, -4]):
            assert self.run(p, bad)[0] == 0, bad

    def test_sizes_that_would_wrap_are_left_to_python(self):
        cube = program([], [], ["y"], [PlanBuffer("y", Type(f32, (N * N * N,)), Place("output", 0))], params=())
        limit = entry.safe_size([N * N * N])
        assert limit**3 <= 1 << 62 < (2 * limit) ** 3 * 2
        assert self.run(cube, [limit])[0] == 1
        assert self.run(cube, [limit + 1])[0] == 0


class TestLooking:
    def test_texts(self):
        small, large = runtime.compile_program(chain(2)), runtime.compile_program(fan(10))
        for exe in (small, large):
            asm = exe.kernel_asm("k1")
            assert asm.splitlines()[0].endswith(":")
            assert "ret" in asm
            assert "@run(" in exe.llvm_ir()

    def test_stages(self):
        exe = runtime.compile_program(chain(2))
        assert exe.as_text("llvm") == exe.llvm_ir()
        assert exe.kernel_asm("k0") in exe.as_text("asm")
        with pytest.raises(FlowcError, match="C213"):
            exe.as_text("ptx")

    def test_interpreter_has_no_machine_code(self):
        exe = runtime.InterpreterExecutable(chain(1))
        for ask in (exe.llvm_ir, lambda: exe.kernel_asm("k0")):
            with pytest.raises(FlowcError, match="C213"):
                ask()


def test_threads_share_an_executable():
    exe = runtime.compile_program(chain(4))
    wrong = []

    def work(k):
        for i in range(100):
            n = 1 + (k * 37 + i) % 500
            x = vector(n) * k
            (y,) = exe.run([x], {"n": n})
            if not np.array_equal(y, x + 6):
                wrong.append((k, i))

    runners = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in runners:
        t.start()
    for t in runners:
        t.join()
    assert not wrong


def test_wide_plans_stay_linear():
    """A wave of thousands of steps is cut into functions of bounded length."""
    p = chain(1)
    k = p.kernels["k0"]
    names = [f"b{i}" for i in range(500)]
    bufs = [PlanBuffer(name, VEC, Place("output", i)) for i, name in enumerate(names)]
    wide = program([Step(name, "k0", ("x", name), (N,)) for name in names], [k], names,
                   [PlanBuffer("x", VEC, Place("param", 0)), *bufs])
    module = Module()
    entry.emit_entry(wide, module)
    longest = max(f.count("\n") for f in module.functions)
    assert longest < 40 * entry.PART
    out = runtime.compile_program(wide).run([vector(3)], {"n": 3})
    assert all(np.array_equal(y, vector(3)) for y in out)


class TestBuffers:
    @pytest.fixture(autouse=True)
    def clean(self):
        buffers.release()
        yield
        buffers.release()

    def test_block_comes_back_with_the_last_view(self):
        a = buffers.empty((1000, 1000), np.dtype(np.float32))
        address = a.ctypes.data
        view = a[10:20].T
        flat = view.base.reshape(-1)
        del a, view
        gc.collect()
        assert buffers.kept() == 0
        del flat
        gc.collect()
        assert buffers.kept() >= 4_000_000
        assert buffers.empty((1000, 1000), np.dtype(np.float32)).ctypes.data == address

    def test_arrays_are_ordinary(self):
        a = buffers.empty((300, 1000), np.dtype(np.float64))
        assert type(a) is np.ndarray
        assert a.flags.writeable and a.flags.c_contiguous and a.flags.aligned
        a[...] = 1
        b = a.copy()
        assert type(b) is np.ndarray and b.sum() == 300_000

    def test_limit(self):
        def drop_five():
            held = [buffers.empty((1 << 20,), np.dtype(np.uint8)) for _ in range(5)]
            del held
            gc.collect()
            return buffers.kept()
        with flowc.options(warm_memory=buffers.HUGE_PAGE):
            assert drop_five() == buffers.HUGE_PAGE
        with flowc.options(warm_memory=0):
            assert drop_five() == 0
        # arrays of earlier tests may come back at any time, also between two of these lines
        assert drop_five() >= 5 * buffers.HUGE_PAGE
        assert flowc.release_memory() >= 5 * buffers.HUGE_PAGE > buffers.kept()

    def test_store_keeps_what_comes_back(self):
        store = buffers.BlockStore(lambda: 4 * buffers.HUGE_PAGE)
        blocks = [store.take(1 << 20) for _ in range(5)]
        for block in blocks[:3]:
            store.give(block)
        assert store.bytes == 3 * buffers.HUGE_PAGE and store.take(1 << 20) is blocks[2]
        for block in blocks[2:]:
            store.give(block)
        assert store.bytes == 4 * buffers.HUGE_PAGE  # the oldest was dropped
        assert store.release() == 4 * buffers.HUGE_PAGE and store.bytes == 0

    def test_pages_are_made_ahead(self):
        def wait():
            for thread in threading.enumerate():
                if thread.name == "flowc-touch":
                    thread.join()
        buffers.touch_ahead([1000, 3 << 20, 3 << 20])
        wait()
        assert buffers.kept() == 4 * buffers.HUGE_PAGE
        a = buffers.empty((3 << 20,), np.dtype(np.uint8))
        a[...] = 7
        buffers.touch_ahead([3 << 20, 3 << 20])  # one block is in use, one is there
        wait()
        assert buffers.kept() == 4 * buffers.HUGE_PAGE and (a == 7).all()
        buffers.touch_ahead([buffers.limit(), 1 << 20])  # more than may be kept
        wait()
        assert buffers.kept() == 4 * buffers.HUGE_PAGE

    def test_working_memory_is_released(self):
        f = flowc.jit(lambda a, b: a @ b)
        a, b = np.ones((900, 900), np.float32), np.ones((900, 900), np.float32)
        want = a @ b
        for _ in range(3):
            assert np.array_equal(f(a, b), want)
        assert flowc.release_memory() > 0
        assert flowc.release_memory() == 0
        assert np.array_equal(f(a, b), want)

    def test_block_sizes(self):
        page = buffers.HUGE_PAGE
        assert [buffers.block_size(n) // page for n in (0, 1, page, page + 1)] == [1, 1, 1, 2]
        for n in range(1, 2000):
            size = buffers.block_size(n * page) // page
            assert n <= size <= n + n // 8 + 1
        assert len({buffers.block_size(n * page) for n in range(1, 2000)}) < 80

    @pytest.mark.parametrize("shape", [(1 << 62, 4), (-1,), (1 << 40, 1 << 40)])
    def test_impossible(self, shape):
        with pytest.raises(ValueError, match="C202"):
            buffers.empty(shape, np.dtype(np.float32))

    def test_no_memory(self):
        with pytest.raises(MemoryError):
            buffers.empty((1 << 50,), np.dtype(np.float32))
        assert buffers.empty((0, 1 << 60), np.dtype(np.float32)).shape == (0, 1 << 60)

    def test_threads(self):
        wrong = []

        def work(k):
            for i in range(200):
                a = buffers.empty((1 << 20,), np.dtype(np.uint8))
                a[::4096] = k
                if i % 3 == 0:
                    keep = a[5:]
                if not (a[::4096] == k).all():
                    wrong.append(k)
            del keep

        runners = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for t in runners:
            t.start()
        for t in runners:
            t.join()
        assert not wrong

    def test_scratch(self):
        for n in (0, 1, 100, 5 << 20):
            s = buffers.Scratch(n)
            assert s.address % 64 == 0
            assert s.array.nbytes == n
            s.close()


def test_bool_and_ints_round_trip():
    b, i = Builder(), sym("i")
    k = Kernel("k", (Buffer("x", i64, (N,)), Buffer("y", bool_, (N,), "out")), ("n",),
               (Loop("i", N, "parallel", (Store("y", i, b.gt(b.load("x", i, i64), 2)),)),))
    bufs = [PlanBuffer("x", Type(i64, (N,)), Place("param", 0)), PlanBuffer("y", Type(bool_, (N,)), Place("output", 0))]
    exe = runtime.compile_program(program([Step("s", "k", ("x", "y"), (N,))], [k], ["y"], bufs))
    (y,) = exe.run([np.arange(5)], {"n": 5})
    assert y.dtype == bool and list(y) == [False, False, False, True, True]
