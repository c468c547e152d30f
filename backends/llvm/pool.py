"""The thread pool of the process: how many threads, starting, stopping, forking.

Here: the count that affinity, container and settings allow; pools; the one pool of this process.
Not here: the native code (pool_ir.py), what runs on it (share.py, entry.py).  Read next: pool_ir.py.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
import os
import threading
from typing import Any

from flowc import config
from flowc.backends.llvm import engine, share
from flowc.backends.llvm.pool_ir import (
    ATTR,
    CALLER,
    CONDITIONS,
    IDS,
    MASK,
    MAX_THREADS,
    MUTEX,
    PARALLEL_FOR,
    RUN_MANY,
    RUN_ONE,
    SIZE,
    STARTED,
    THREADS,
    WORKERS,
    native_kind,
    pool_ir,
)
from flowc.diag import FlowcValueError

STACK = 8 << 20  # bytes of a worker's stack, also on systems whose default is smaller


# ---- counting threads -----------------------------------------------------------------------------------------------

def cgroup_cpus(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """Processors that the container may use at a time: the least quota on the way up; infinite without one."""
    def read(path: str) -> list[str]:
        try:
            with open(path) as f:
                return f.read().split()
        except OSError:
            return []

    def quota(folder: str) -> float:
        words = read(os.path.join(folder, "cpu.max")) or (
            read(os.path.join(folder, "cpu.cfs_quota_us")) + read(os.path.join(folder, "cpu.cfs_period_us")))
        try:
            limit, period = float(words[0]), float(words[1])
        except (IndexError, ValueError):  # no such file, or "max"
            return math.inf
        return limit / period if limit > 0 and period > 0 else math.inf

    least = math.inf
    for line in read(own):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root if not controllers else os.path.join(root, controllers)
        if controllers and "cpu" not in controllers.split(","):
            continue
        path = path.strip("/")
        while True:
            least = min(least, quota(os.path.join(base, path)))
            if not path:
                break
            path = os.path.dirname(path)
    return least


@functools.cache
def machine_threads() -> int:
    """Threads that affinity and the container's quota allow.  Looked up once: it takes several files."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    return max(1, min(count, math.ceil(min(cgroup_cpus(), MAX_THREADS))))


def available_threads() -> int:
    """Threads this process should use: affinity, container quota, OMP_NUM_THREADS and flowc's own setting, whichever
    is least; at least 1."""
    count = machine_threads()
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdigit() and int(first) > 0:
        count = min(count, int(first))
    wanted = config.get("num_threads")
    return min(count, wanted) if wanted > 0 else count


# ---- pools ----------------------------------------------------------------------------------------------------------

def _source(kind: str) -> engine.Source:
    return engine.Source(pool_ir(kind) + share.share_ir(), engine.QUICK)


class Pool:
    """Memory and code of one pool.  Workers start at the first region that wants them.  The memory is never freed
    while the process lives: native code holds its address."""

    def __init__(self, threads: int, kind: str | None = None, store: engine.Store | None = None):
        self.kind = native_kind() if kind is None else kind
        if self.kind == "none":
            raise OSError("this system has no thread pool")
        source = _source(self.kind)
        self._code = engine.compile_module(source.text, store=store, level=source.level)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._raw = ctypes.create_string_buffer(SIZE + 64)
        self.address = -(-ctypes.addressof(self._raw) // 64) * 64
        self._mask = ctypes.create_string_buffer(b"\xff" * 128, 128)
        self._attr = ctypes.create_string_buffer(128)
        self._libc.pthread_attr_init(self._attr)
        self._libc.pthread_attr_setstacksize(self._attr, ctypes.c_size_t(STACK))
        three = [ctypes.c_void_p] * 3
        self._parallel_for = ctypes.CFUNCTYPE(None, *three, ctypes.c_int64)(self._code.address("parallel_for"))
        self._span = ctypes.CFUNCTYPE(None, *three, *[ctypes.c_int64] * 3)(self._code.address("run_span"))
        self._reset(threads)

    def _word(self, offset: int) -> Any:
        return ctypes.c_int64.from_address(self.address + offset)

    def _reset(self, threads: int) -> None:
        ctypes.memset(self.address, 0, SIZE)
        self._libc.pthread_mutex_init(ctypes.c_void_p(self.address + MUTEX), None)
        for channel in (WORKERS, CALLER):
            self._libc.pthread_cond_init(ctypes.c_void_p(self.address + CONDITIONS + 64 * channel), None)
        self._word(ATTR).value = ctypes.addressof(self._attr)
        self._word(MASK).value = ctypes.addressof(self._mask)
        for offset, name in ((PARALLEL_FOR, "parallel_for"), (RUN_ONE, "run_one"), (RUN_MANY, "run_many")):
            self._word(offset).value = self._code.address(name)
        self._word(THREADS).value = threads

    @property
    def threads(self) -> int:
        return int(self._word(THREADS).value)

    @threads.setter
    def threads(self, count: int) -> None:
        if not 1 <= count <= MAX_THREADS:
            raise FlowcValueError("C201", f"{count} is not a possible number of threads",
                                  cure=f"use 1 to {MAX_THREADS}")
        self._word(THREADS).value = count

    @property
    def started(self) -> int:
        """Workers that exist now."""
        return int(self._word(STARTED).value)

    def parallel_for(self, fn: int, arg: int, count: int) -> None:
        """Call the native ``fn(arg, chunk, count)`` for every chunk; the GIL is not held meanwhile."""
        self._parallel_for(self.address, fn, arg, count)

    def span(self, kernel: int, slots: int, first: int, count: int, total: int) -> None:
        """Chunks first .. first + count - 1 of ``total`` of a kernel, in one region."""
        self._span(self.address, kernel, slots, first, count, total)

    def forget(self) -> None:
        """In a forked child: the workers stayed in the parent, new ones start when they are wanted."""
        self._reset(self.threads)

    def stop(self, restart: bool = True) -> None:
        """End and join the workers.  No region may be running.  With ``restart`` later regions start new ones."""
        threads, workers = self.threads, self.started
        if not restart:
            self._word(THREADS).value = threads = 1
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.address("stop_workers"))(self.address)
        for i in range(workers):
            self._libc.pthread_join(ctypes.c_void_p(self._word(IDS + 8 * i).value), None)
        if restart:
            self._reset(threads)


_default: Pool | None = None
_asked = 0  # what set_num_threads wants; 0: whatever the surroundings allow
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()
    if _default is not None:
        _default.forget()


def _at_exit() -> None:
    if _default is not None:
        _default.stop(restart=False)


def wanted() -> list[engine.Source]:
    """The module of the pool that this process will ask for."""
    return [_source(native_kind())] if _default is None else []


def default(store: engine.Store | None = None) -> Pool | None:
    """The pool of this process, made when first asked for; None where there can be none."""
    global _default
    if _default is None and native_kind() != "none":
        with _lock:
            if _default is None:
                made = Pool(num_threads(), store=store)
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=_renew_lock)
                atexit.register(_at_exit)
                _default = made
    return _default


def num_threads() -> int:
    """Threads that the next parallel region may use."""
    if native_kind() == "none":
        return 1
    return _asked or available_threads()


def set_num_threads(count: int) -> None:
    """Use exactly ``count`` threads from now on; 0 goes back to what the surroundings allow.  Results never depend on
    it.  Raises FlowcValueError C201 outside 0..256."""
    global _asked
    if not 0 <= count <= MAX_THREADS:
        raise FlowcValueError("C201", f"{count} is not a possible number of threads", cure=f"use 0 to {MAX_THREADS}")
    _asked = count
    if _default is not None:
        _default.threads = num_threads()


def handle(store: engine.Store | None = None) -> int:
    """Address of the pool for compiled code, 0 for "run in the caller".  Reads the settings."""
    count = num_threads()
    if count < 2:
        return 0
    pool = default(store)
    if pool is None:
        return 0
    if pool.threads != count:
        pool.threads = count
    return pool.address

