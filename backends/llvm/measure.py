"""What this machine can do at this moment: multiply-adds, bytes moved, latency, waking threads.

Here: the native kernels that do nothing but one of these, run on flowc's threads, and rates made from their times.
Not here: what the figures are used for (flowc/tune.py, flowc/bench.py).

The kernels are what no program can beat: chains of independent fused multiply-adds in registers; streams of vectors
that are read, written or copied, with plain stores or such that bypass the caches; a walk through memory in which each
address is known only when the load before it has arrived.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from flowc.backends import buffers
from flowc.backends.llvm import engine, pool
from flowc.backends.llvm.builder import Function, Module
from flowc.dataclass import dataclass

CHAINS = 12          # accumulators: latency 4, two units, and some to spare; fits 16 registers with two operands
LINE = 64            # bytes of a stream's unit
UNROLL = 8           # lines per round of a stream
ROUND = LINE * UNROLL
ELEMENT = {"f32": ("float", 32), "f64": ("double", 64)}
CHUNKS = 8           # per thread: a thread that is held up leaves its share to the others
MOVES = ("read", "write", "copy", "write_past", "copy_past")  # past: stores that bypass the caches

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def _share(f: Function, total: str) -> tuple[str, str]:
    """First and last item of this chunk."""
    first = f.op(f"sdiv i64 {f.op(f'mul i64 {total}, %chunk')}, %count")
    after = f.op("add i64 %chunk, 1")
    return first, f.op(f"sdiv i64 {f.op(f'mul i64 {total}, {after}')}, %count")


def _word(f: Function, i: int, ty: str = "i64") -> str:
    at = f.op(f"getelementptr i64, ptr %arg, i64 {i}")
    return f.op(f"load {ty}, ptr {at}")


def _rounds(f: Function, first: str, last: str, start: list[tuple[str, str]],
            body: Callable[[str, list[str]], list[str]]) -> list[str]:
    """A loop that carries values (type, start) in registers; returns them after it."""
    names = [f.fresh("c") for _ in start]
    f.br("head")
    f.begin("head")
    f.raw(f"%i = phi i64 [ {first}, %entry ], [ %next, %body ]")
    at = len(f.lines)
    f.cond_br(f.op(f"icmp slt i64 %i, {last}"), "body", "done")
    f.begin("body")
    results = body("%i", names)
    f.raw("%next = add i64 %i, 1")
    f.br("head")
    f.lines[at:at] = [f"  {n} = phi {ty} [ {v}, %entry ], [ {r}, %body ]"
                      for n, (ty, v), r in zip(names, start, results, strict=True)]
    f.begin("done")
    return names


def _fma(module: Module, name: str, bits: int) -> None:
    """{rounds, ptr sink, ptr starts}: CHAINS multiply-adds of whole vectors per round."""
    element, size = ELEMENT[name]
    vector, suffix = f"<{bits // size} x {element}>", f"v{bits // size}f{size}"
    f = Function(module, f"fma_{name}", "ptr %arg, i64 %chunk, i64 %count")
    first, last = _share(f, _word(f, 0))
    starts = _word(f, 2, "ptr")  # values from memory are unknown to the optimiser
    values = [f.op(f"load {vector}, ptr {f.op(f'getelementptr i8, ptr {starts}, i64 {256 * k}')}, align 8")
              for k in range(CHAINS + 2)]
    x, y = values[CHAINS:]

    def body(i: str, old: list[str]) -> list[str]:
        return [f.call(f"llvm.fma.{suffix}", f"{vector} ({vector}, {vector}, {vector})", f"{vector} {c}",
                       f"{vector} {x}", f"{vector} {y}") for c in old]
    done = _rounds(f, first, last, [(vector, v) for v in values[:CHAINS]], body)
    total = done[0]
    for c in done[1:]:
        total = f.op(f"fadd {vector} {total}, {c}")
    spot = f.op(f"getelementptr i8, ptr {_word(f, 1, 'ptr')}, i64 " + f.op("mul i64 256, " + f.op("add i64 %chunk, 1")))
    f.raw(f"store {vector} {total}, ptr {spot}, align 8")
    f.finish()


def _stream(module: Module, name: str) -> None:
    """{rounds, from, to, mask}: ROUND bytes per round.  A mask other than -1 makes each chunk go round in so many plus
    one rounds of its own.  Reading ends in ``to``, 256 bytes per chunk."""
    vector = "<16 x i32>"
    f = Function(module, name, "ptr %arg, i64 %chunk, i64 %count")
    first, last = _share(f, _word(f, 0))
    source, target = _word(f, 1, "ptr"), _word(f, 2, "ptr")
    past = ", !nontemporal !0" if name.endswith("_past") else ""
    reading = name == "read"
    mask = _word(f, 3)
    base = f.op("mul i64 %chunk, " + f.op(f"add i64 {mask}, 1"))

    def body(i: str, old: list[str]) -> list[str]:
        out = []
        here = f.op(f"add i64 {base}, " + f.op(f"and i64 {i}, {mask}"))
        at = f.op(f"mul i64 {here}, {ROUND}")
        for k in range(UNROLL):
            place = f.op(f"add i64 {at}, {k * LINE}")
            value = "splat (i32 1065353216)"
            if not name.startswith("write"):
                p = f.op(f"getelementptr i8, ptr {source}, i64 {place}")
                value = f.op(f"load {vector}, ptr {p}, align {LINE}")
            if reading:
                out.append(f.op(f"xor {vector} {old[k]}, {value}"))
            else:
                p = f.op(f"getelementptr i8, ptr {target}, i64 {place}")
                f.raw(f"store {vector} {value}, ptr {p}, align {LINE}{past}")
        return out
    done = _rounds(f, first, last, [(vector, "zeroinitializer")] * (UNROLL if reading else 0), body)
    if reading:
        total = done[0]
        for c in done[1:]:
            total = f.op(f"xor {vector} {total}, {c}")
        spot = f.op(f"getelementptr i8, ptr {target}, i64 " + f.op("mul i64 256, %chunk"))
        f.raw(f"store {vector} {total}, ptr {spot}, align 8")
    f.finish()


def _chase(module: Module) -> None:
    """{steps, ptr first, ptr sink}: follow pointers."""
    f = Function(module, "chase", "ptr %arg, i64 %chunk, i64 %count")
    done = _rounds(f, "0", _word(f, 0), [("ptr", _word(f, 1, "ptr"))], lambda i, old: [f.op(f"load ptr, ptr {old[0]}")])
    f.raw(f"store ptr {done[0]}, ptr {_word(f, 2, 'ptr')}")
    f.finish()


def measure_ir(bits: int) -> str:
    module = Module()
    for name in ELEMENT:
        _fma(module, name, bits)
    for name in MOVES:
        _stream(module, name)
    _chase(module)
    Function(module, "nothing", "ptr %arg, i64 %chunk, i64 %count").finish()
    return module.text() + "!0 = !{i32 1}\n"


@dataclass(frozen=True)
class Limits:
    """Rates of this machine with a number of threads.  flops: per second by dtype.  stream: bytes per second for sets
    of up to so many bytes, by (bytes, kind of move), best of plain and bypassing stores."""

    threads: int
    flops: dict[str, float]
    stream: dict[tuple[int, str], float]

    def seconds(self, flops: float, read: float, written: float, dtype: str = "f32") -> tuple[float, str]:
        """The least time for the work, and what bounds it: ``flops`` or ``bytes``."""
        size = min((s for s, _ in self.stream if s >= read + written), default=max(s for s, _ in self.stream))
        both = min(read, written)
        move = 2 * both / self.stream[size, "copy"] + (read - both) / self.stream[size, "read"] + (
            written - both) / self.stream[size, "write"]
        compute = flops / self.flops.get(dtype, self.flops["f32"])
        return (compute, "flops") if compute >= move else (move, "bytes")


class Meter:
    """The kernels, their memory, and the threads they run on: as many as the pool of this process has."""

    def __init__(self, bits: int = 0):
        self.bits = bits or engine.host().vector_bits
        self._code = engine.compile_module(measure_ir(self.bits))
        self._size = 0
        self.threads = pool.num_threads()
        self._pool = pool.default() if pool.handle() else None
        self._sink = np.zeros(256 * (2 + CHUNKS * self.threads), np.uint8)
        self._starts = np.linspace(0.5, 1.0, 32 * (CHAINS + 2))  # plain numbers, read as f32 as well

    def _run(self, name: str, words: list[int], split: bool = True, chunks: int = 0) -> None:
        arg = (ctypes.c_int64 * len(words))(*words)
        address = self._code.address(name)
        if self._pool is not None and split:
            self._pool.parallel_for(address, ctypes.addressof(arg), chunks or CHUNKS * self.threads)
        else:
            _TASK(address)(ctypes.addressof(arg), 0, 1)

    def flops(self, count: float, dtype: str = "f32") -> None:
        """Do ``count`` floating point operations as multiply-adds."""
        per_round = 2 * CHAINS * (self.bits // ELEMENT[dtype][1])
        self._run(f"fma_{dtype}", [max(1, int(count / per_round)), self._sink.ctypes.data,
                                self._starts.ctypes.data])

    def move(self, kind: str, nbytes: float, around: int = 0) -> None:
        """One of MOVES over ``nbytes`` bytes; a copy reads and writes that many each.  around: every thread goes round
        in so many bytes, a power of two."""
        rounds = max(1, int(nbytes) // ROUND)
        self._grow(self.threads * around if around else rounds * ROUND)
        target = self._sink.ctypes.data if kind == "read" else self._to.ctypes.data
        self._run(kind, [rounds, self._from.ctypes.data, target, around // ROUND - 1],
                  chunks=self.threads if around else 0)

    def _grow(self, size: int) -> None:
        size = max(size, buffers.LARGE)  # such blocks are aligned to a line and more
        if size > self._size:
            self._from, self._to = (buffers.empty((size,), np.dtype(np.uint8)) for _ in range(2))
            self._from[:], self._to[:] = 1, 1
            self._size = size

    def nothing(self, chunks: int = 0) -> None:
        """Wake the threads and wait for them; chunks: empty ones to hand out, by default one per thread."""
        self._run("nothing", [0], chunks=chunks or self.threads)

    def latency(self, nbytes: int, steps: int = 200_000) -> float:
        """Seconds of a load whose address depends on the one before, within ``nbytes`` bytes in random order."""
        count = max(4, nbytes // LINE)
        order = np.random.default_rng(0).permutation(count)
        block = buffers.empty((max(count * LINE, buffers.LARGE),), np.dtype(np.uint8))[:count * LINE]
        start = block.ctypes.data
        links = block.view(np.int64).reshape(count, LINE // 8)
        links[order, 0] = start + LINE * np.roll(order, -1)
        sink = (ctypes.c_int64 * 1)()
        words = [steps, start, ctypes.addressof(sink)]
        self._run("chase", [2 * count, *words[1:]], split=False)
        return best(lambda: self._run("chase", words, split=False), 5) / steps

    def limits(self, sizes: tuple[int, ...] = (1 << 14, 1 << 19, 1 << 22, 1 << 27), effort: float = 1.0) -> Limits:
        """Rates for working sets of ``sizes`` bytes (powers of two) per thread; about a second times ``effort``."""
        count = 4e8 * self.threads * effort
        flops = {d: count / best(partial(self.flops, count, d), 5) for d in ELEMENT}
        stream: dict[tuple[int, str], float] = {}
        for size in sizes:
            total = size * self.threads
            work = max(total, int((1 << 27) * effort) // total * total)
            for kind, moved in (("read", 1), ("write", 1), ("copy", 2)):
                ways = [kind] if kind == "read" else [kind, f"{kind}_past"]
                stream[total, kind] = work / min(best(partial(self.move, way, work / moved, size // moved), 4)
                                                 for way in ways)
        return Limits(self.threads, flops, stream)


def best(fn: Callable[[], object], rounds: int) -> float:
    """Least seconds of a few calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one of each in turn, so that all see the same machine."""
    out: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for r in range(rounds):
        for i in range(len(names)):
            name = names[(i + r) % len(names)]  # nobody always comes after the same one
            start = time.perf_counter()
            calls[name]()
            out[name].append(time.perf_counter() - start)
    return out


def median(samples: list[float]) -> float:
    return statistics.median(samples)
