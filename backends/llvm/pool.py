"""The thread pool: fork-join over numbered chunks, scheduled by native code.

Here: the LLVM text of the pool, its memory layout, the count of threads, start, stop and fork.
Not here: what runs on it (entry.py), when it pays (entry.py).  Read next: entry.py.

One word tells the whole state: workers inside the open region (10 bits), whether a region is open (1 bit), how many
regions there were (21 bits).  A worker may join only while the region is open; the caller takes chunks itself, closes
the region when none is left, and waits for those inside.  A worker that wakes late finds the region closed, so nobody
ever waits for a sleeper.  Only one region exists at a time: whoever finds the pool taken, be it another Python thread
or a kernel inside a region, runs its chunks itself.

Waiting is a spin of bounded length, then sleep.  Sleeping is a futex on Linux, a condition variable on other POSIX
systems; elsewhere no worker is ever started and every region runs in its caller.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import platform
import sys
import threading
from typing import Any

from flowc import config
from flowc.backends.llvm import engine
from flowc.diag import FlowcValueError

MAX_THREADS = 256
SPINS = 2000          # pauses before sleeping: about the time of one short region
STACK = 8 << 20       # bytes of a worker's stack, on systems whose default is smaller too

# byte offsets in the pool's memory; words that different threads write have cache lines of their own
STATE, LOCK, SLEEPERS, NEXT, WAITING = 0, 64, 128, 192, 256
FN, ARG, COUNT = 320, 328, 336
THREADS, STARTED, INDEX, STOP, ATTR, MASK, PARALLEL_FOR = 384, 392, 400, 408, 416, 424, 432
MUTEX, CONDITIONS = 448, 576              # one mutex, two condition variables of 64 bytes
IDS = 704
SIZE = IDS + 8 * MAX_THREADS

_OPEN, _INSIDE, _STEP = 1024, 1023, 2048  # of the state word
_WORKERS, _CALLER = 0, 1                  # channels to sleep on
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_PAUSE = {"x86_64": ("llvm.x86.sse2.pause", ""), "AMD64": ("llvm.x86.sse2.pause", ""),
          "aarch64": ("llvm.aarch64.hint", "i32 1"), "arm64": ("llvm.aarch64.hint", "i32 1")}


def native_kind() -> str:
    """How threads sleep on this system: ``futex``, ``posix``, or ``none`` where there is no pool."""
    if sys.platform.startswith("linux") and platform.machine() in _FUTEX:
        return "futex"
    return "posix" if os.name == "posix" and sys.platform != "emscripten" else "none"


def _sleep_ir(kind: str) -> str:
    """``park``: sleep while a word has a value, perhaps less long.  ``unpark``: wake all sleepers of a channel."""
    if kind == "futex":
        number = _FUTEX[platform.machine()]
        return f"""
declare i64 @syscall(i64, ...)
define internal void @park(ptr %p, ptr %word, i32 %seen, i32 %channel) nounwind {{
  %bits = shl i32 1, %channel
  %r = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i32 137, i32 %seen, ptr null, ptr null, i32 %bits)
  ret void
}}
define void @unpark(ptr %p, ptr %word, i32 %channel) nounwind {{
  %bits = shl i32 1, %channel
  %r = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i32 138, i32 {2**31 - 1}, ptr null, ptr null, i32 %bits)
  ret void
}}
"""
    return f"""
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
define internal ptr @condition(ptr %p, i32 %channel) nounwind {{
  %offset = mul i32 %channel, 64
  %all = getelementptr i8, ptr %p, i64 {CONDITIONS}
  %one = getelementptr i8, ptr %all, i32 %offset
  ret ptr %one
}}
define internal void @park(ptr %p, ptr %word, i32 %seen, i32 %channel) nounwind {{
  %mutex = getelementptr i8, ptr %p, i64 {MUTEX}
  %condition = call ptr @condition(ptr %p, i32 %channel)
  %r0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %now = load atomic i32, ptr %word seq_cst, align 4
  %same = icmp eq i32 %now, %seen
  br i1 %same, label %wait, label %leave
wait:
  %r1 = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %leave
leave:
  %r2 = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}}
define void @unpark(ptr %p, ptr %word, i32 %channel) nounwind {{
  %mutex = getelementptr i8, ptr %p, i64 {MUTEX}
  %condition = call ptr @condition(ptr %p, i32 %channel)
  %r0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %r1 = call i32 @pthread_cond_broadcast(ptr %condition)
  %r2 = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}}
"""


def _fields(*names: str) -> str:
    """Address computations of fields: ``%LOCK`` points at offset LOCK of ``%p``."""
    table = globals()
    return "\n".join(f"  %{n} = getelementptr i8, ptr %p, i64 {table[n]}" for n in names)


def _pause_ir() -> tuple[str, str]:
    """(declaration, instruction) that tells the core it is spinning."""
    name, arg = _PAUSE.get(platform.machine(), ("", ""))
    if not name:
        return "", "fence acquire"
    return f"declare void @{name}({arg.split(' ')[0]})", f"call void @{name}({arg})"


def _drain_ir() -> str:
    return f"""
define internal void @drain(ptr %p) nounwind {{
entry:
{_fields("NEXT", "FN", "ARG", "COUNT")}
  %fn = load ptr, ptr %FN
  %arg = load ptr, ptr %ARG
  %count = load i64, ptr %COUNT
  br label %take
take:
  %chunk = atomicrmw add ptr %NEXT, i64 1 monotonic
  %some = icmp ult i64 %chunk, %count
  br i1 %some, label %run, label %empty
run:
  call void %fn(ptr %arg, i64 %chunk, i64 %count)
  br label %take
empty:
  ret void
}}
"""


def _rest_ir() -> str:
    """``rest``: announce that one is going to sleep, look again, sleep.  The announcement and the change of the state
    word are ordered, so either the sleeper sees the change or whoever made it sees the sleeper."""
    return f"""
define internal void @rest(ptr %p, i32 %state) nounwind {{
entry:
{_fields("SLEEPERS", "STOP")}
  %s0 = atomicrmw add ptr %SLEEPERS, i32 1 seq_cst
  %now = load atomic i32, ptr %p seq_cst, align 4
  %unchanged = icmp eq i32 %now, %state
  %stop = load atomic i32, ptr %STOP seq_cst, align 4
  %running = icmp eq i32 %stop, 0
  %sleep = and i1 %unchanged, %running
  br i1 %sleep, label %doze, label %up
doze:
  call void @park(ptr %p, ptr %p, i32 %state, i32 {_WORKERS})
  br label %up
up:
  %s1 = atomicrmw sub ptr %SLEEPERS, i32 1 seq_cst
  ret void
}}
"""


def _part_ir() -> str:
    """``part``: the work of one helper inside a region, which it has joined."""
    return f"""
define internal void @part(ptr %p) nounwind {{
entry:
{_fields("WAITING")}
  call void @drain(ptr %p)
  %before = atomicrmw sub ptr %p, i32 1 seq_cst
  %low = and i32 %before, {_OPEN | _INSIDE}
  %last = icmp eq i32 %low, 1
  %waiting = load atomic i32, ptr %WAITING seq_cst, align 4
  %sleeps = icmp ne i32 %waiting, 0
  %call = and i1 %last, %sleeps
  br i1 %call, label %tell, label %end
tell:
  call void @unpark(ptr %p, ptr %p, i32 {_CALLER})
  br label %end
end:
  ret void
}}
"""


def _worker_ir() -> str:
    """The life of one worker.  ``served``: number of the last region it worked in.  A worker beyond the present
    count of threads stays asleep."""
    _, pause = _pause_ir()
    return f"""
define internal ptr @worker(ptr %p) nounwind {{
entry:
{_fields("STOP", "INDEX", "THREADS")}
  %index = atomicrmw add ptr %INDEX, i64 1 seq_cst
  br label %look
look:
  %served = phi i32 [ 0, %entry ], [ %served, %tired ], [ %served, %enter ], [ %region, %inside ]
  br label %spin
spin:
  %tries = phi i32 [ 0, %look ], [ %tried, %again ]
  %state = load atomic i32, ptr %p acquire, align 4
  %stop = load atomic i32, ptr %STOP acquire, align 4
  %stopping = icmp ne i32 %stop, 0
  br i1 %stopping, label %end, label %alive
alive:
  %threads = load atomic i64, ptr %THREADS monotonic, align 8
  %helpers = sub i64 %threads, 1
  %wanted = icmp slt i64 %index, %helpers
  %openbit = and i32 %state, {_OPEN}
  %open = icmp ne i32 %openbit, 0
  %region = lshr i32 %state, 11
  %new = icmp ne i32 %region, %served
  %work = and i1 %open, %new
  %join = and i1 %work, %wanted
  br i1 %join, label %enter, label %idle
idle:
  %limit = select i1 %wanted, i32 {SPINS}, i32 0
  %tried = add i32 %tries, 1
  %patient = icmp slt i32 %tried, %limit
  br i1 %patient, label %again, label %tired
again:
  {pause}
  br label %spin
tired:
  call void @rest(ptr %p, i32 %state)
  br label %look
enter:
  %joined = add i32 %state, 1
  %swap = cmpxchg ptr %p, i32 %state, i32 %joined seq_cst seq_cst
  %won = extractvalue {{ i32, i1 }} %swap, 1
  br i1 %won, label %inside, label %look
inside:
  call void @part(ptr %p)
  br label %look
end:
  ret ptr null
}}
"""


def _start_ir() -> str:
    """Create the missing workers, with every signal blocked so that Python's main thread gets them.  If the system
    gives no more threads, the count is lowered to what there is."""
    block, restore = (0, 2) if sys.platform.startswith("linux") else (1, 3)
    return f"""
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
define internal void @start(ptr %p) nounwind {{
entry:
{_fields("STARTED", "THREADS", "ATTR", "MASK", "IDS")}
  %old = alloca [128 x i8], align 8
  %attr = load ptr, ptr %ATTR
  %mask = load ptr, ptr %MASK
  %b = call i32 @pthread_sigmask(i32 {block}, ptr %mask, ptr %old)
  br label %next
next:
  %started = load i64, ptr %STARTED
  %threads = load atomic i64, ptr %THREADS monotonic, align 8
  %helpers = sub i64 %threads, 1
  %missing = icmp slt i64 %started, %helpers
  br i1 %missing, label %create, label %done
create:
  %id = getelementptr i64, ptr %IDS, i64 %started
  %rc = call i32 @pthread_create(ptr %id, ptr %attr, ptr @worker, ptr %p)
  %fine = icmp eq i32 %rc, 0
  br i1 %fine, label %count, label %enough
count:
  %more = add i64 %started, 1
  store i64 %more, ptr %STARTED
  br label %next
enough:
  %have = add i64 %started, 1
  store atomic i64 %have, ptr %THREADS monotonic, align 8
  br label %done
done:
  %r = call i32 @pthread_sigmask(i32 {restore}, ptr %old, ptr null)
  ret void
}}
"""


def _await_ir() -> str:
    """``await``: wait until nobody is inside the closed region."""
    _, pause = _pause_ir()
    return f"""
define internal void @await(ptr %p) nounwind {{
entry:
{_fields("WAITING")}
  br label %spin
spin:
  %tries = phi i32 [ 0, %entry ], [ %tried, %again ], [ 0, %woken ]
  %state = load atomic i32, ptr %p acquire, align 4
  %inside = and i32 %state, {_INSIDE}
  %none = icmp eq i32 %inside, 0
  br i1 %none, label %end, label %more
more:
  %tried = add i32 %tries, 1
  %patient = icmp slt i32 %tried, {SPINS}
  br i1 %patient, label %again, label %sleep
again:
  {pause}
  br label %spin
sleep:
  store atomic i32 1, ptr %WAITING seq_cst, align 4
  %now = load atomic i32, ptr %p seq_cst, align 4
  %left = and i32 %now, {_INSIDE}
  %gone = icmp eq i32 %left, 0
  br i1 %gone, label %woken, label %doze
doze:
  call void @park(ptr %p, ptr %p, i32 %now, i32 {_CALLER})
  br label %woken
woken:
  store atomic i32 0, ptr %WAITING seq_cst, align 4
  br label %spin
end:
  ret void
}}
"""


def _region_ir() -> str:
    """``parallel_for(pool, fn, arg, count)``: fn(arg, chunk, count) for every chunk; returns when all are done."""
    return f"""
define void @parallel_for(ptr %p, ptr %fn, ptr %arg, i64 %count) nounwind {{
entry:
{_fields("LOCK", "SLEEPERS", "NEXT", "FN", "ARG", "COUNT", "THREADS", "STARTED")}
  %threads = load atomic i64, ptr %THREADS monotonic, align 8
  %alone = icmp slt i64 %threads, 2
  %small = icmp slt i64 %count, 2
  %serial = or i1 %alone, %small
  br i1 %serial, label %inline, label %try
try:
  %swap = cmpxchg ptr %LOCK, i32 0, i32 1 acquire monotonic
  %mine = extractvalue {{ i32, i1 }} %swap, 1
  br i1 %mine, label %owner, label %inline
inline:
  %chunk = phi i64 [ 0, %entry ], [ 0, %try ], [ %following, %each ]
  %some = icmp slt i64 %chunk, %count
  br i1 %some, label %each, label %return
each:
  call void %fn(ptr %arg, i64 %chunk, i64 %count)
  %following = add i64 %chunk, 1
  br label %inline
owner:
  %started = load i64, ptr %STARTED
  %helpers = sub i64 %threads, 1
  %missing = icmp slt i64 %started, %helpers
  br i1 %missing, label %grow, label %open
grow:
  call void @start(ptr %p)
  br label %open
open:
  store ptr %fn, ptr %FN
  store ptr %arg, ptr %ARG
  store i64 %count, ptr %COUNT
  store atomic i64 0, ptr %NEXT monotonic, align 8
  %closed = load atomic i32, ptr %p monotonic, align 4
  %opened = add i32 %closed, {_STEP + _OPEN}
  store atomic i32 %opened, ptr %p seq_cst, align 4
  %sleepers = load atomic i32, ptr %SLEEPERS seq_cst, align 4
  %any = icmp ne i32 %sleepers, 0
  br i1 %any, label %wake, label %work
wake:
  call void @unpark(ptr %p, ptr %p, i32 {_WORKERS})
  br label %work
work:
  call void @drain(ptr %p)
  %o = atomicrmw and ptr %p, i32 {-1 - _OPEN} seq_cst
  call void @await(ptr %p)
  store atomic i32 0, ptr %LOCK release, align 4
  br label %return
return:
  ret void
}}
"""


def pool_ir(kind: str) -> str:
    """LLVM text of the pool for a way to sleep, ``futex`` or ``posix``."""
    return "".join((_pause_ir()[0], _sleep_ir(kind), _drain_ir(), _rest_ir(), _part_ir(), _worker_ir(), _start_ir(),
                    _await_ir(), _region_ir()))


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


def available_threads() -> int:
    """Threads this process should use: affinity, container quota, OMP_NUM_THREADS and flowc's own setting, whichever
    is least; at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    count = min(count, math.ceil(min(cgroup_cpus(), MAX_THREADS)))
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdigit() and int(first) > 0:
        count = min(count, int(first))
    wanted = config.get("num_threads")
    return max(1, min(count, wanted) if wanted > 0 else count)


# ---- pools ----------------------------------------------------------------------------------------------------------

class Pool:
    """Memory and code of one pool.  Workers start at the first region that wants them.  The memory is never freed
    while the process lives: native code holds its address."""

    def __init__(self, threads: int, kind: str | None = None, store: engine.Store | None = None):
        self.kind = native_kind() if kind is None else kind
        if self.kind == "none":
            raise OSError("this system has no thread pool")
        self._code = engine.compile_module(pool_ir(self.kind), store=store, level=engine.QUICK)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._raw = ctypes.create_string_buffer(SIZE + 64)
        self.address = -(-ctypes.addressof(self._raw) // 64) * 64
        self._mask = ctypes.create_string_buffer(b"\xff" * 128, 128)
        self._attr = ctypes.create_string_buffer(128)
        self._libc.pthread_attr_init(self._attr)
        self._libc.pthread_attr_setstacksize(self._attr, ctypes.c_size_t(STACK))
        entry = self._code.address("parallel_for")
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self._parallel_for = prototype(entry)
        self._reset(threads)

    def _word(self, offset: int) -> Any:
        return ctypes.c_int64.from_address(self.address + offset)

    def _reset(self, threads: int) -> None:
        ctypes.memset(self.address, 0, SIZE)
        self._libc.pthread_mutex_init(ctypes.c_void_p(self.address + MUTEX), None)
        for channel in (_WORKERS, _CALLER):
            self._libc.pthread_cond_init(ctypes.c_void_p(self.address + CONDITIONS + 64 * channel), None)
        self._word(ATTR).value = ctypes.addressof(self._attr)
        self._word(MASK).value = ctypes.addressof(self._mask)
        self._word(PARALLEL_FOR).value = self._code.address("parallel_for")
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

    def forget(self) -> None:
        """In a forked child: the workers stayed in the parent, new ones start when they are wanted."""
        self._reset(self.threads)

    def stop(self, restart: bool = True) -> None:
        """End and join the workers.  No region may be running.  With ``restart`` later regions start new ones."""
        threads, workers = self.threads, self.started
        if not restart:
            self._word(THREADS).value = threads = 1
        ctypes.c_int32.from_address(self.address + STOP).value = 1
        self._wake()
        for i in range(workers):
            self._libc.pthread_join(ctypes.c_void_p(self._word(IDS + 8 * i).value), None)
        if restart:
            self._reset(threads)

    def _wake(self) -> None:
        # the state word changes so that a worker on its way to sleep does not miss this
        state = ctypes.c_uint32.from_address(self.address + STATE)
        state.value = (state.value + _STEP) & 0xFFFFFFFF
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        prototype(self._code.address("unpark"))(self.address, self.address, _WORKERS)


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

