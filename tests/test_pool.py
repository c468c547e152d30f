"""The thread pool: every chunk runs once, in every order of waking, forking, nesting and stopping."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from flowc import config
from flowc.backends.llvm import engine, pool, pool_ir
from flowc.diag import FlowcValueError

pytestmark = pytest.mark.skipif(pool.native_kind() == "none", reason="no native threads here")

TASKS = """
; out[chunk] = 3 * in[chunk]; in = arg, out = arg + 8 * count
define void @triple(ptr %arg, i64 %chunk, i64 %count) nounwind {
  %p = getelementptr i64, ptr %arg, i64 %chunk
  %x = load i64, ptr %p
  %y = mul i64 %x, 3
  %out = getelementptr i64, ptr %arg, i64 %count
  %q = getelementptr i64, ptr %out, i64 %chunk
  store i64 %y, ptr %q
  ret void
}
; counts itself in, then waits until all chunks have begun: needs as many threads as chunks
define void @meet(ptr %arg, i64 %chunk, i64 %count) nounwind {
entry:
  %x = atomicrmw add ptr %arg, i64 1 seq_cst
  br label %again
again:
  %v = load atomic i64, ptr %arg acquire, align 8
  %all = icmp sge i64 %v, %count
  br i1 %all, label %done, label %again
done:
  ret void
}
; arg: {pool, parallel_for, inner arg}: a region inside a region
define void @nest(ptr %arg, i64 %chunk, i64 %count) nounwind {
  %pool = load ptr, ptr %arg
  %p1 = getelementptr ptr, ptr %arg, i64 1
  %fork = load ptr, ptr %p1
  %p2 = getelementptr ptr, ptr %arg, i64 2
  %inner = load ptr, ptr %p2
  call void %fork(ptr %pool, ptr @count, ptr %inner, i64 7)
  ret void
}
define void @count(ptr %arg, i64 %chunk, i64 %count) nounwind {
  %x = atomicrmw add ptr %arg, i64 1 seq_cst
  ret void
}
"""


@pytest.fixture(scope="module")
def tasks():
    return engine.compile_module(TASKS)


@pytest.fixture(params=["futex", "posix"])
def three(request):
    if request.param == "futex" and pool.native_kind() != "futex":
        pytest.skip("not this system")
    made = pool.Pool(3, request.param)
    yield made
    made.stop()


def run_triple(tasks, threads, count, seed=0):
    data = np.arange(2 * count, dtype=np.int64) + seed
    data[count:] = -1
    threads.parallel_for(tasks.address("triple"), data.ctypes.data, count)
    return bool((data[count:] == 3 * (np.arange(count) + seed)).all())


def meet(tasks, threads, count):
    word = np.zeros(1, np.int64)
    threads.parallel_for(tasks.address("meet"), word.ctypes.data, count)
    return int(word[0])


def test_every_chunk_runs_once(tasks, three):
    for count in (0, 1, 2, 3, 17, 1000):
        for _ in range(50):
            assert run_triple(tasks, three, count)


def test_wakes_sleepers(tasks, three):
    assert meet(tasks, three, 3) == 3
    for pause in (0, 0.001, 0.02, 0.05):
        time.sleep(pause)
        assert meet(tasks, three, 3) == 3
    assert three.started == 2


def test_starts_nothing_before_it_is_needed(tasks, three):
    assert three.started == 0
    run_triple(tasks, three, 1)
    assert three.started == 0, "one chunk needs no helper"
    run_triple(tasks, three, 2)
    assert three.started == 2


def test_count_changes(tasks, three):
    assert meet(tasks, three, 3) == 3
    three.threads = 5
    assert meet(tasks, three, 5) == 5
    three.threads = 2
    assert meet(tasks, three, 2) == 2
    assert run_triple(tasks, three, 100)
    three.threads = 1
    assert run_triple(tasks, three, 100)
    assert three.started == 4
    three.stop()
    assert three.started == 0
    three.threads = 4
    assert meet(tasks, three, 4) == 4
    for bad in (0, -1, pool.MAX_THREADS + 1):
        with pytest.raises(FlowcValueError):
            three.threads = bad


def test_nested_regions_run_inline(tasks, three):
    word = np.zeros(1, np.int64)
    fork = ctypes.c_int64.from_address(three.address + pool_ir.PARALLEL_FOR).value
    arg = (ctypes.c_int64 * 3)(three.address, fork, word.ctypes.data)
    for _ in range(20):
        word[0] = 0
        three.parallel_for(tasks.address("nest"), ctypes.addressof(arg), 11)
        assert word[0] == 77


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.skipif(pool.native_kind() != "futex", reason="not this system")
def test_worker_leaves_its_callers_core(tasks):
    """Where the system puts both on one core, the worker asks for the others."""
    made = pool.Pool(2, "futex")
    threads = set(os.listdir("/proc/self/task"))

    def meet():
        begun = ctypes.c_int64(0)
        made.parallel_for(tasks.address("meet"), ctypes.addressof(begun), 2)
    meet()
    (worker,) = map(int, set(os.listdir("/proc/self/task")) - threads)
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    try:
        os.sched_setaffinity(0, {core})
        os.sched_setaffinity(worker, {core})
        end = time.monotonic() + 20
        while core in os.sched_getaffinity(worker) and time.monotonic() < end:
            meet()
        assert os.sched_getaffinity(worker) == allowed - {core}
    finally:
        os.sched_setaffinity(0, allowed)
        made.stop()


def test_many_python_threads(tasks, three):
    wrong = []

    def work(k):
        for i in range(200):
            if not run_triple(tasks, three, 5 + i % 13, seed=k * 1000 + i):
                wrong.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_signals_reach_the_main_thread(tasks, three):
    """Workers block every signal, so Python's handler is woken at once."""
    assert meet(tasks, three, 3) == 3
    seen = []
    old = signal.signal(signal.SIGUSR1, lambda *a: seen.append(threading.get_ident()))
    try:
        for i in range(20):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert len(seen) == i + 1
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert set(seen) == {threading.main_thread().ident}


SCRIPT = """
import ctypes, os, sys, threading
sys.path.insert(0, {root!r})
import numpy as np
from flowc.backends.llvm import engine, pool, pool_ir
tasks = engine.compile_module({tasks!r})
def run(p):
    data = np.arange(34); data[17:] = 0
    p.parallel_for(tasks.address("triple"), data.ctypes.data, 17)
    return (data[17:] == 3 * np.arange(17)).all()
def meet(p, n):
    word = np.zeros(1, np.int64)
    p.parallel_for(tasks.address("meet"), word.ctypes.data, n)
    return word[0] == n
def in_child(_):
    return bool(run(p) and meet(p, 3))
pool.set_num_threads(3)
p = pool.default()
"""


def run_script(body, timeout=30):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return subprocess.run([sys.executable, "-c", SCRIPT.format(root=root, tasks=TASKS) + body], timeout=timeout,
                          capture_output=True, text=True)


def test_fork():
    out = run_script("""
assert run(p) and meet(p, 3) and p.started == 2
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        ok = p.started == 0 and run(p) and meet(p, 3) and p.started == 2
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(p) and meet(p, 3)
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as workers:
    assert all(workers.map(in_child, range(4)))
print("done")
""")
    assert (out.returncode, out.stdout) == (0, "done\n"), out.stderr


def test_fork_while_a_region_runs():
    """The child neither waits for the lock of a thread it does not have nor for its workers."""
    out = run_script("""
stop = False
def busy():
    while not stop:
        run(p)
threads = [threading.Thread(target=busy) for _ in range(3)]
[t.start() for t in threads]
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run(p) and meet(p, 3) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop = True
[t.join() for t in threads]
print("done")
""")
    assert (out.returncode, out.stdout) == (0, "done\n"), out.stderr


def test_interpreter_exit():
    for body in ("meet(p, 3)", "run(p); raise SystemExit(3)",
                 "threading.Thread(target=lambda: [run(p) for _ in range(10**9)], daemon=True).start(); meet(p, 1)"):
        for _ in range(3):
            out = run_script(body)
            assert out.returncode == (3 if "SystemExit" in body else 0), out.stderr
            assert out.stderr == ""


class TestCount:
    def test_available(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        base = pool.available_threads()
        assert base >= 1
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert pool.available_threads() == 1
        for odd in ("1,2", "junk", "", "0", "-3"):
            monkeypatch.setenv("OMP_NUM_THREADS", odd)
            assert pool.available_threads() == (1 if odd == "1,2" else base)
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("FLOWC_NUM_THREADS", "1")
        assert pool.available_threads() == 1
        with config.options(num_threads=1000):
            assert pool.available_threads() == base
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
        monkeypatch.setattr(pool, "cgroup_cpus", lambda: 2.5)
        monkeypatch.setenv("FLOWC_NUM_THREADS", "0")
        assert pool.available_threads() == base, "looked up once"
        pool.machine_threads.cache_clear()
        try:
            assert pool.available_threads() == 3
        finally:
            monkeypatch.undo()
            pool.machine_threads.cache_clear()

    @pytest.mark.parametrize(("files", "own", "want"), [
        ({}, "0::/\n", math.inf),
        ({"cpu.max": "max 100000"}, "0::/\n", math.inf),
        ({"cpu.max": "150000 100000"}, "0::/\n", 1.5),
        ({"cpu.max": "400000 100000", "a/cpu.max": "max 100000", "a/b/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 2.0),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
         "4:memory:/\n2:cpu,cpuacct:/\n", math.inf),
        ({"cpu,cpuacct/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         "4:memory:/x\n2:cpu,cpuacct:/x\n", 3.0),
        ({"cpu.max": "junk"}, "0::/\n", math.inf),
        ({"cpu.max": ""}, "0::/../outside\n", math.inf),
    ])
    def test_container_quota(self, tmp_path, files, own, want):
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        assert pool.cgroup_cpus(str(tmp_path / "sys"), str(tmp_path / "own")) == want

    def test_set_num_threads(self):
        try:
            pool.set_num_threads(3)
            assert pool.num_threads() == 3
            address = pool.handle()
            assert address == pool.default().address
            assert pool.default().threads == 3
            pool.set_num_threads(1)
            assert pool.handle() == 0
            assert pool.default().threads == 1
            for bad in (-1, pool.MAX_THREADS + 1):
                with pytest.raises(FlowcValueError) as e:
                    pool.set_num_threads(bad)
                assert e.value.code == "C201"
        finally:
            pool.set_num_threads(0)
        assert pool.num_threads() == pool.available_threads()
