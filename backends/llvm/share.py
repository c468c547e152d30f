"""How the kernels of a wave share the threads: what is worth splitting, into how many chunks.

Here: the figures of the cost model, the native functions that decide at run time.
Not here: the pool (pool_ir.py, pool.py), which kernels form a wave (passes/place.py).  Read next: entry.py.

``run_one(pool, kernel, frame, work, extent)``: one kernel with ``extent`` independent iterations.
``run_many(pool, table)``: the kernels of a table {count, (kernel, frame, work, extent)...}, in one region whose chunk
    numbers are dealt out to the kernels, so that they run side by side and each is split as well.
``run_span(pool, kernel, frame, first, count, total)``: chunks first .. first + count - 1 of ``total`` of one kernel.
They are part of the pool's code; its memory holds their addresses.
"""

from __future__ import annotations

from typing import NamedTuple

from flowc import tuned
from flowc.backends.llvm import engine
from flowc.backends.llvm.builder import Function, Module
from flowc.backends.llvm.pool_ir import THREADS

WORK_PER_US = 4000                  # work units (machine operations and bytes) that one core does in a microsecond
SERIAL_WORK = 20 * WORK_PER_US      # a wave below this is not worth waking a thread, unless `flowc tune` found another
CHUNK_WORK = 5 * WORK_PER_US        # no chunk is planned smaller than this, likewise
CHUNKS_PER_THREAD = 16              # more chunks than threads: an interrupted thread holds up less
ROW = 4                             # 8-byte fields of a row of ``run_many``'s table


class Costs(NamedTuple):
    """Work below which a wave runs in its caller, and below which no chunk is planned."""

    serial_work: int
    chunk_work: int


def costs() -> Costs:
    """What `flowc tune` measured on this processor, else the figures above.  They decide who computes what, so they
    change no result."""
    found = tuned.load(engine.processor())
    return Costs(found.serial_work or SERIAL_WORK, found.chunk_work or CHUNK_WORK)


def field_at(f: Function, base: str, offset: int, ty: str) -> str:
    """The value at a byte offset."""
    return f.op(f"load {ty}, ptr " + f.op(f"getelementptr i8, ptr {base}, i64 {offset}"))


def field(f: Function, base: str, i: int, ty: str) -> str:
    """The i-th of 8-byte fields."""
    return field_at(f, base, 8 * i, ty)


def put(f: Function, base: str, i: int, ty: str, value: str | int) -> None:
    """Store into the i-th of 8-byte fields."""
    at = f.op(f"getelementptr i64, ptr {base}, i64 {i}")
    f.raw(f"store {ty} {value}, ptr {at}")


def share_ir() -> str:
    """LLVM text of the three functions, to be compiled together with the pool's."""
    module = Module()
    _run_one(module)
    _run_many(module)
    _group(module)
    _run_span(module)
    return module.text()


def _extreme(f: Function, fn: str, a: str | int, b: str | int) -> str:
    return f.call(f"llvm.{fn}.i64", "i64 (i64, i64)", f"i64 {a}", f"i64 {b}")


def _worth(f: Function, total: str, alone: str) -> str:
    """Branch to ``alone`` unless ``total`` work is to be split; else the work of one chunk: CHUNKS_PER_THREAD chunks
    per thread over the whole wave, none below the least."""
    ask, several = f.label("ask"), f.label("several")
    cost = costs()
    f.cond_br(f.op(f"icmp sge i64 {total}, {cost.serial_work}"), ask, alone)
    f.begin(ask)
    threads = f.op(f"load atomic i64, ptr {f.op(f'getelementptr i8, ptr %pool, i64 {THREADS}')} monotonic, align 8")
    f.cond_br(f.op(f"icmp sgt i64 {threads}, 1"), several, alone)
    f.begin(several)
    return _extreme(f, "smax", f.op(f"sdiv i64 {total}, {f.mul(threads, CHUNKS_PER_THREAD)}"), cost.chunk_work)


def _chunks(f: Function, work: str, extent: str, share: str) -> str:
    return _extreme(f, "smax", _extreme(f, "smin", f.op(f"sdiv i64 {work}, {share}"), extent), 1)


def _region(f: Function, fn: str, arg: str, count: str) -> None:
    f.raw(f"call void @parallel_for(ptr %pool, ptr {fn}, ptr {arg}, i64 {count})")


def _row(f: Function, i: str) -> str:
    return f.op(f"getelementptr [{ROW} x i64], ptr %first, i64 {i}")


def _run_one(module: Module) -> None:
    f = Function(module, "run_one", "ptr %pool, ptr %kernel, ptr %frame, i64 %work, i64 %extent")
    alone, done = f.label("alone"), f.label("done")
    share = _worth(f, "%work", alone)
    _region(f, "%kernel", "%frame", _chunks(f, "%work", "%extent", share))
    f.br(done)
    f.begin(alone)
    f.raw("call void %kernel(ptr %frame, i64 0, i64 1)")
    f.br(done)
    f.begin(done)
    f.finish()


def _run_many(module: Module) -> None:
    """For a region the last two fields of a row become its number of chunks and the end of its chunk numbers."""
    f = Function(module, "run_many", "ptr %pool, ptr %table")
    f.raw("%sums = alloca [2 x i64], align 8")
    f.raw("%first = getelementptr i64, ptr %table, i64 1")
    rows = f.op("load i64, ptr %table")

    def sum_up(i: int, value: str) -> str:
        total = f.op(f"add i64 {field(f, '%sums', i, 'i64')}, {value}")
        put(f, "%sums", i, "i64", total)
        return total

    put(f, "%sums", 0, "i64", 0)
    put(f, "%sums", 1, "i64", 0)
    with f.loop(0, rows) as i:
        sum_up(0, field(f, _row(f, i), 2, "i64"))
    alone, done = f.label("alone"), f.label("done")
    share = _worth(f, field(f, "%sums", 0, "i64"), alone)
    with f.loop(0, rows) as i:
        row = _row(f, i)
        count = _chunks(f, field(f, row, 2, "i64"), field(f, row, 3, "i64"), share)
        put(f, row, 2, "i64", count)
        put(f, row, 3, "i64", sum_up(1, count))
    _region(f, "@group", "%table", field(f, "%sums", 1, "i64"))
    f.br(done)
    f.begin(alone)
    with f.loop(0, rows) as i:
        row = _row(f, i)
        f.raw(f"call void {field(f, row, 0, 'ptr')}(ptr {field(f, row, 1, 'ptr')}, i64 0, i64 1)")
    f.br(done)
    f.begin(done)
    f.finish()


def _group(module: Module) -> None:
    """The task of a shared region: finds the kernel whose chunk this is, by bisection over the ends."""
    f = Function(module, "group", "ptr %table, i64 %chunk, i64 %nchunks", linkage="internal")
    f.raw("%first = getelementptr i64, ptr %table, i64 1")
    rows = f.op("load i64, ptr %table")
    f.br("search")
    f.begin("search")
    f.raw("%lo = phi i64 [ 0, %entry ], [ %lower, %halve ]")
    f.raw(f"%hi = phi i64 [ {rows}, %entry ], [ %upper, %halve ]")
    f.cond_br(f.op("icmp slt i64 %lo, %hi"), "halve", "found")
    f.begin("halve")
    middle = f.op("lshr i64 " + f.op("add i64 %lo, %hi") + ", 1")
    after = f.op(f"add i64 {middle}, 1")
    past = f.op(f"icmp sge i64 %chunk, {field(f, _row(f, middle), 3, 'i64')}")
    f.raw(f"%lower = select i1 {past}, i64 {after}, i64 %lo")
    f.raw(f"%upper = select i1 {past}, i64 %hi, i64 {middle}")
    f.br("search")
    f.begin("found")
    row = _row(f, "%lo")
    kernel, frame = field(f, row, 0, "ptr"), field(f, row, 1, "ptr")
    count, end = field(f, row, 2, "i64"), field(f, row, 3, "i64")
    mine = f.op("sub i64 %chunk, " + f.op(f"sub i64 {end}, {count}"))
    f.raw(f"call void {kernel}(ptr {frame}, i64 {mine}, i64 {count})")
    f.finish()


def _run_span(module: Module) -> None:
    task = Function(module, "span", "ptr %span, i64 %chunk, i64 %nchunks", linkage="internal")
    kernel, frame = field(task, "%span", 0, "ptr"), field(task, "%span", 1, "ptr")
    chunk = task.add("%chunk", field(task, "%span", 2, "i64"))
    task.raw(f"call void {kernel}(ptr {frame}, i64 {chunk}, i64 {field(task, '%span', 3, 'i64')})")
    task.finish()
    f = Function(module, "run_span", "ptr %pool, ptr %kernel, ptr %frame, i64 %first, i64 %count, i64 %total")
    f.raw("%span = alloca [4 x i64], align 8")
    for i, (ty, value) in enumerate((("ptr", "%kernel"), ("ptr", "%frame"), ("i64", "%first"), ("i64", "%total"))):
        put(f, "%span", i, ty, value)
    _region(f, "@span", "%span", "%count")
    f.finish()
