"""The thread pool in LLVM text: its memory layout, how threads sleep, join a region and share its chunks.

Here: text and offsets.  Not here: who starts and stops it (pool.py), how a wave of kernels becomes a region (share.py).
Read next: pool.py.

One word tells the whole state: workers inside the open region (10 bits), whether a region is open (1 bit), how many
regions there were (21 bits).  A worker may join only while the region is open; the caller takes chunks itself, closes
the region when none is left, and waits for those inside.  A worker that wakes late finds the region closed, so nobody
ever waits for a sleeper.  Only one region exists at a time: whoever finds the pool taken, be it another Python thread
or a kernel inside a region, runs its chunks itself.

Waiting is a spin of bounded length, then sleep.  Sleeping is a futex on Linux, a condition variable on other POSIX
systems; elsewhere no worker is ever started and every region runs in its caller.

A worker that is woken while another program keeps the other cores busy may be put on the core of its caller, where it
takes from the caller what it does, and Linux may leave it there for a long time.  So a worker that finds itself on its
caller's core asks for the others.
"""

from __future__ import annotations

import os
import platform
import sys

MAX_THREADS = 256
CORES = 1024          # numbers of cores that are told apart
SPINS = 2000          # pauses before sleeping: about the time of one short region

# byte offsets in the pool's memory; words that different threads write have cache lines of their own
STATE, LOCK, SLEEPERS, NEXT, WAITING = 0, 64, 128, 192, 256
FN, ARG, COUNT, CORE = 320, 328, 336, 344
THREADS, STARTED, INDEX, STOP, ATTR, MASK = 384, 392, 400, 408, 416, 424
PARALLEL_FOR, RUN_ONE, RUN_MANY = 448, 456, 464  # addresses of functions, for code that has only the pool
MUTEX, CONDITIONS = 512, 640              # one mutex, two condition variables of 64 bytes
IDS = 768
SIZE = IDS + 8 * MAX_THREADS

OPEN, INSIDE, STEP = 1024, 1023, 2048  # of the state word
WORKERS, CALLER = 0, 1                  # channels to sleep on
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
define internal void @unpark(ptr %p, ptr %word, i32 %channel) nounwind {{
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
define internal void @unpark(ptr %p, ptr %word, i32 %channel) nounwind {{
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
    """``drain``: take chunks until none is left.  The caller takes from the front and helpers from the back, so that
    with two threads a part of the data meets the same core, and its cache, in every region.  NEXT counts what is
    taken at the front in its low half and at the back in its high half."""
    return f"""
define internal void @drain(ptr %p, i1 %front) nounwind {{
entry:
{_fields("NEXT", "FN", "ARG", "COUNT")}
  %fn = load ptr, ptr %FN
  %arg = load ptr, ptr %ARG
  %count = load i64, ptr %COUNT
  %last = sub i64 %count, 1
  %step = select i1 %front, i64 1, i64 {1 << 32}
  br label %take
take:
  %taken = atomicrmw add ptr %NEXT, i64 %step monotonic
  %ahead = and i64 %taken, {(1 << 32) - 1}
  %behind = lshr i64 %taken, 32
  %all = add i64 %ahead, %behind
  %some = icmp ult i64 %all, %count
  br i1 %some, label %run, label %empty
run:
  %mirrored = sub i64 %last, %behind
  %chunk = select i1 %front, i64 %ahead, i64 %mirrored
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
  call void @park(ptr %p, ptr %p, i32 %state, i32 {WORKERS})
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
  call void @drain(ptr %p, i1 false)
  %before = atomicrmw sub ptr %p, i32 1 seq_cst
  %low = and i32 %before, {OPEN | INSIDE}
  %last = icmp eq i32 %low, 1
  %waiting = load atomic i32, ptr %WAITING seq_cst, align 4
  %sleeps = icmp ne i32 %waiting, 0
  %call = and i1 %last, %sleeps
  br i1 %call, label %tell, label %end
tell:
  call void @unpark(ptr %p, ptr %p, i32 {CALLER})
  br label %end
end:
  ret void
}}
"""


def _core_ir(kind: str) -> str:
    """``core``: the number of the core this runs on, -1 if unknown.  ``cores``: what the thread may run on, and how
    many they are.  ``moved``: leave the caller's core if this is it; was that possible?"""
    if kind != "futex":
        return """
define internal i32 @core() nounwind {
  ret i32 -1
}
define internal i64 @cores(ptr %allowed) nounwind {
  ret i64 0
}
define internal i1 @moved(ptr %p, ptr %allowed, i64 %cores) nounwind {
  ret i1 false
}
"""
    return f"""
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare i64 @llvm.ctpop.i64(i64)
define internal i32 @core() nounwind {{
  %core = call i32 @sched_getcpu()
  ret i32 %core
}}
define internal i64 @cores(ptr %allowed) nounwind {{
entry:
  %rc = call i32 @sched_getaffinity(i32 0, i64 {CORES // 8}, ptr %allowed)
  %fine = icmp sge i32 %rc, 0
  br i1 %fine, label %count, label %unknown
count:
  %k = phi i64 [ 0, %entry ], [ %next, %count ]
  %sum = phi i64 [ 0, %entry ], [ %more, %count ]
  %at = getelementptr i64, ptr %allowed, i64 %k
  %word = load i64, ptr %at
  %bits = call i64 @llvm.ctpop.i64(i64 %word)
  %more = add i64 %sum, %bits
  %next = add i64 %k, 1
  %again = icmp ult i64 %next, {CORES // 64}
  br i1 %again, label %count, label %done
done:
  ret i64 %more
unknown:
  ret i64 0
}}
{_apart_ir()}"""


def _apart_ir() -> str:
    """``apart``: run on any of the allowed cores but one, if there is another.  Only where there is a core for each
    thread: two helpers on one core would be no better."""
    return f"""
define internal i1 @apart(ptr %allowed, i32 %core) nounwind {{
entry:
  %mask = alloca [{CORES // 64} x i64], align 8
  %wide = zext i32 %core to i64
  %home = lshr i64 %wide, 6
  %place = and i64 %wide, 63
  %bit = shl i64 1, %place
  br label %copy
copy:
  %k = phi i64 [ 0, %entry ], [ %next, %copy ]
  %any = phi i64 [ 0, %entry ], [ %some, %copy ]
  %from = getelementptr i64, ptr %allowed, i64 %k
  %word = load i64, ptr %from
  %here = icmp eq i64 %k, %home
  %off = select i1 %here, i64 %bit, i64 0
  %keep = xor i64 %off, -1
  %left = and i64 %word, %keep
  %to = getelementptr i64, ptr %mask, i64 %k
  store i64 %left, ptr %to
  %some = or i64 %any, %left
  %next = add i64 %k, 1
  %again = icmp ult i64 %next, {CORES // 64}
  br i1 %again, label %copy, label %check
check:
  %nowhere = icmp eq i64 %some, 0
  br i1 %nowhere, label %end, label %move
move:
  %rc = call i32 @sched_setaffinity(i32 0, i64 {CORES // 8}, ptr %mask)
  %fine = icmp eq i32 %rc, 0
  ret i1 %fine
end:
  ret i1 false
}}
define internal i1 @moved(ptr %p, ptr %allowed, i64 %cores) nounwind {{
entry:
{_fields("THREADS", "CORE")}
  %threads = load atomic i64, ptr %THREADS monotonic, align 8
  %mine = call i32 @core()
  %callers = load atomic i32, ptr %CORE monotonic, align 4
  %together = icmp eq i32 %mine, %callers
  %room = icmp sle i64 %threads, %cores
  %known = icmp ult i32 %mine, {CORES}
  %both = and i1 %together, %room
  %go = and i1 %both, %known
  br i1 %go, label %leave, label %stay
leave:
  %away = call i1 @apart(ptr %allowed, i32 %mine)
  ret i1 %away
stay:
  ret i1 false
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
  %allowed = alloca [{CORES // 64} x i64], align 8
  %cores = call i64 @cores(ptr %allowed)
  %index = atomicrmw add ptr %INDEX, i64 1 seq_cst
  br label %look
look:
  %served = phi i32 [ 0, %entry ], [ %served, %tired ], [ %served, %enter ], [ %served, %place ], [ %region, %inside ]
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
  %openbit = and i32 %state, {OPEN}
  %open = icmp ne i32 %openbit, 0
  %region = lshr i32 %state, 11
  %new = icmp ne i32 %region, %served
  %work = and i1 %open, %new
  %join = and i1 %work, %wanted
  br i1 %join, label %place, label %idle
place:
  %gone = call i1 @moved(ptr %p, ptr %allowed, i64 %cores)
  br i1 %gone, label %look, label %enter
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


def _stop_ir() -> str:
    """``stop_workers(pool)``: all workers end as soon as they are idle."""
    return f"""
define void @stop_workers(ptr %p) nounwind {{
entry:
{_fields("STOP")}
  store atomic i32 1, ptr %STOP seq_cst, align 4
  ; the state word changes so that a worker on its way to sleep does not miss this
  %s = atomicrmw add ptr %p, i32 {STEP} seq_cst
  call void @unpark(ptr %p, ptr %p, i32 {WORKERS})
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
  %inside = and i32 %state, {INSIDE}
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
  %left = and i32 %now, {INSIDE}
  %gone = icmp eq i32 %left, 0
  br i1 %gone, label %woken, label %doze
doze:
  call void @park(ptr %p, ptr %p, i32 %now, i32 {CALLER})
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
{_fields("LOCK", "SLEEPERS", "NEXT", "FN", "ARG", "COUNT", "CORE", "THREADS", "STARTED")}
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
  %core = call i32 @core()
  store atomic i32 %core, ptr %CORE monotonic, align 4
  store atomic i64 0, ptr %NEXT monotonic, align 8
  %closed = load atomic i32, ptr %p monotonic, align 4
  %opened = add i32 %closed, {STEP + OPEN}
  store atomic i32 %opened, ptr %p seq_cst, align 4
  %sleepers = load atomic i32, ptr %SLEEPERS seq_cst, align 4
  %any = icmp ne i32 %sleepers, 0
  br i1 %any, label %wake, label %work
wake:
  call void @unpark(ptr %p, ptr %p, i32 {WORKERS})
  br label %work
work:
  call void @drain(ptr %p, i1 true)
  %o = atomicrmw and ptr %p, i32 {-1 - OPEN} seq_cst
  call void @await(ptr %p)
  store atomic i32 0, ptr %LOCK release, align 4
  br label %return
return:
  ret void
}}
"""


def pool_ir(kind: str) -> str:
    """LLVM text of the pool for a way to sleep, ``futex`` or ``posix``."""
    return "".join((_pause_ir()[0], _sleep_ir(kind), _drain_ir(), _rest_ir(), _part_ir(), _core_ir(kind),
                    _worker_ir(), _start_ir(), _stop_ir(), _await_ir(), _region_ir()))
