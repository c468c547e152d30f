"""The native call in LLVM text: one function that serves every program, driven by a table.

Here: the offsets it relies on, the layout of its tables, the function ``@call`` and its helpers.
Not here: who fills the tables and checks the offsets (callpath.py), what is called (entry.py).  Read next: callpath.py.

``@call`` has the signature of a METH_FASTCALL|METH_KEYWORDS function.  It reads ``PyArrayObject`` fields, which are a
public C struct, compares them with a table, and on the first surprise (keyword, subclass, list, other dtype or shape,
strided or unaligned memory, a broken constraint) hands the whole call to the fallback.  Because it is driven by a
table it is compiled once, not once per program, and its object code is the same in every process: all run-time
addresses are in the record of the program or in the ``@api`` table, which is filled after loading.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from flowc.backends import buffers
from flowc.backends.llvm.builder import Function, Module
from flowc.backends.llvm.share import WORK_PER_US, costs

GIL_WORK = 10 * WORK_PER_US         # below this, letting other Python threads run costs more than it gives
SLOW_WORK = 500_000 * WORK_PER_US   # from here on the fallback runs it, which looks for Ctrl-C now and then
STACK_ARENA = 64 << 10              # bytes of working memory taken from the stack
WEIGHTS = '!0 = !{!"branch_weights", i32 1000, i32 1}'

HEADER = object.__basicsize__       # of every Python object; its type stands in the last word
OB_TYPE = HEADER - 8
DATA, ND, DIMS, DESCR, FLAGS = HEADER, HEADER + 8, HEADER + 16, HEADER + 40, HEADER + 48
ARRAY_FLAGS = 0x1 | 0x100           # C order, aligned
SELF_DATA = bytes.__basicsize__ - 1  # where the contents of a bytes object begin

# Run-time addresses: name -> index in @api
API = {name: i for i, name in enumerate((
    "ndarray", "PyArray_Empty", "PyObject_Vectorcall", "Py_IncRef", "Py_DecRef", "PyEval_SaveThread",
    "PyEval_RestoreThread", "PyTuple_New", "PyTuple_SetItem", "PyErr_NoMemory", "PyMem_RawMalloc", "PyMem_RawFree",
    "PyLong_AsLongLongAndOverflow", "PyLong_FromLongLong", "float", "int", "true", "false", "find_pool", "pool",
    "pool_known"))}
NUMPY_SLOTS = {"ndarray": 2, "PyArray_Empty": 184}  # of NumPy's C table, the same in every version since 1.7

# The record of one program: name -> index of its 8-byte field
RECORD = {name: i for i, name in enumerate((
    "fallback", "nargs", "nparams", "noutputs", "nconstants", "nflat", "run", "sizes", "result", "pack", "alloc",
    "inputs", "outputs", "constants", "at_scalars", "at_results", "at_dims", "at_flat", "frame", "arena_lock",
    "arena", "arena_size"))}
INPUT = {name: i for i, name in enumerate(("kind", "object", "rank", "dims", "slot"))}
OUTPUT = {name: i for i, name in enumerate(("descr", "rank", "at", "itemsize", "source"))}
CONSTANT_DIM, BIND_DIM, SAME_DIM = 0, 1, 2
ARRAY, SAME, FLOAT64, FLOAT32, INTEGER, INT_FLOAT64, INT_FLOAT32, BOOL = range(8)
SINGLE, TUPLE, PACK = range(3)


# ---- the code -------------------------------------------------------------------------------------------------------

class _Call:
    """Emits ``@call``: one method per part, in running order."""

    def __init__(self, module: Module):
        self.f = Function(module, "call", "ptr %self, ptr %args, i64 %nargs, ptr %kwnames", ret="ptr")
        self.record = ""

    def at(self, base: str, i: int | str, scale: int = 8) -> str:
        f = self.f
        return f.op(f"getelementptr i8, ptr {base}, i64 {f.mul(i, scale)}")

    def load(self, base: str, offset: int, ty: str = "ptr") -> str:
        return self.f.op(f"load {ty}, ptr " + self.at(base, offset, 1))

    def api(self, name: str) -> str:
        return self.load("@api", 8 * API[name])

    def field(self, name: str, ty: str = "i64") -> str:
        return self.load(self.record, 8 * RECORD[name], ty)

    def need(self, condition: str) -> None:
        """Go on only if ``condition`` holds, else hand the call to the fallback."""
        go = self.f.label("ok")
        self.f.cond_br(condition, go, "slow", unlikely_no=True)
        self.f.begin(go)

    def same(self, a: str, b: str | int, ty: str = "i64") -> None:
        self.need(self.f.op(f"icmp eq {ty} {a}, {b}"))

    def emit(self) -> None:
        f = self.f
        self.record = self.load("%self", SELF_DATA)
        self.same("%kwnames", "null", "ptr")
        self.same("%nargs", self.field("nargs"))
        frame = f.op(f"alloca i64, i64 {self.field('frame')}, align 16")
        scalars, results = self.at(frame, self.field("at_scalars")), self.at(frame, self.field("at_results"))
        dims, flat = self.at(frame, self.field("at_dims")), self.at(frame, self.field("at_flat"))
        self._arguments(frame, scalars, dims)
        fine = f.op(f"call i32 {self.field('sizes', 'ptr')}(ptr {dims}, ptr {flat})")
        self.same(fine, 1, "i32")
        nflat = self.field("nflat")
        need = self.load(self.at(flat, nflat), 0, "i64")
        work = self.load(self.at(flat, nflat), 8, "i64")
        self.need(f.op(f"icmp slt i64 {work}, {SLOW_WORK}"))
        self._outputs(frame, results, flat)
        self._constants(frame)
        self._run(frame, dims, need, work, flat)
        self._result(results)
        f.begin("slow")
        fallback = self.field("fallback", "ptr")
        r = f.op(f"call ptr {self.api('PyObject_Vectorcall')}(ptr {fallback}, ptr %args, i64 %nargs, ptr %kwnames)")
        f.raw(f"ret ptr {r}")
        f.finish()

    # -- arguments

    def _arguments(self, frame: str, scalars: str, dims: str) -> None:
        f = self.f
        inputs = self.field("inputs", "ptr")
        types = {n: self.api(n) for n in ("ndarray", "float", "int", "true", "false")}
        with f.loop(0, "%nargs", stem="arg") as i:
            arg = self.load(self.at("%args", i), 0)
            row = self.at(inputs, i, 8 * len(INPUT))
            kind = self.load(row, 8 * INPUT["kind"], "i64")
            slot = self.load(row, 8 * INPUT["slot"], "i64")
            place, scalar = self.at(frame, slot), self.at(scalars, slot)
            cases = {k: f.label("kind") for k in range(8)}
            joined = f.label("joined")
            f.raw(f"switch i64 {kind}, label %slow [ "
                  + " ".join(f"i64 {k}, label %{b}" for k, b in cases.items()) + " ]")
            for k, label in cases.items():
                f.begin(label)
                if k == ARRAY:
                    self._array(arg, row, types["ndarray"], dims, place)
                elif k == SAME:
                    self.same(arg, self.load(row, 8 * INPUT["object"]), "ptr")
                else:
                    self._scalar(k, arg, row, types, scalar)
                    f.raw(f"store ptr {scalar}, ptr {place}")
                f.br(joined)
            f.begin(joined)

    def _array(self, arg: str, row: str, ndarray: str, dims: str, place: str) -> None:
        f = self.f
        self.same(self.load(arg, OB_TYPE), ndarray, "ptr")
        self.same(self.load(arg, DESCR), self.load(row, 8 * INPUT["object"]), "ptr")
        rank = self.load(row, 8 * INPUT["rank"], "i64")
        self.same(self.load(arg, ND, "i32"), f.op(f"trunc i64 {rank} to i32"), "i32")
        flags = f.op(f"and i32 {self.load(arg, FLAGS, 'i32')}, {ARRAY_FLAGS}")
        self.same(flags, ARRAY_FLAGS, "i32")
        have, want = self.load(arg, DIMS), self.load(row, 8 * INPUT["dims"])
        with f.loop(0, rank, stem="axis") as j:
            n = self.load(self.at(have, j), 0, "i64")
            pair = self.at(want, j, 16)
            mode, value = self.load(pair, 0, "i64"), self.load(pair, 8, "i64")
            const, bound, compare, joined = f.label("const"), f.label("symbol"), f.label("again"), f.label("next")
            bind = f.label("bind")
            f.cond_br(f.op(f"icmp eq i64 {mode}, {CONSTANT_DIM}"), const, bound)
            f.begin(const)
            self.same(n, value)
            f.br(joined)
            f.begin(bound)
            symbol = self.at(dims, value)
            f.cond_br(f.op(f"icmp eq i64 {mode}, {BIND_DIM}"), bind, compare)
            f.begin(bind)
            f.raw(f"store i64 {n}, ptr {symbol}")
            f.br(joined)
            f.begin(compare)
            self.same(n, self.load(symbol, 0, "i64"))
            f.br(joined)
            f.begin(joined)
        f.raw(f"store ptr {self.load(arg, DATA)}, ptr {place}")

    def _scalar(self, kind: int, arg: str, row: str, types: Mapping[str, str], scalar: str) -> None:
        f = self.f
        if kind == BOOL:
            yes = f.op(f"icmp eq ptr {arg}, {types['true']}")
            no = f.op(f"icmp eq ptr {arg}, {types['false']}")
            self.need(f.op(f"or i1 {yes}, {no}"))
            f.raw(f"store i8 {f.op(f'zext i1 {yes} to i8')}, ptr {scalar}")
            return
        if kind in (FLOAT64, FLOAT32):
            self.same(self.load(arg, OB_TYPE), types["float"], "ptr")
            value = self.load(arg, HEADER, "double")
        else:
            self.same(self.load(arg, OB_TYPE), types["int"], "ptr")
            f.raw(f"store i64 0, ptr {scalar}")
            whole = f.op(f"call i64 {self.api('PyLong_AsLongLongAndOverflow')}(ptr {arg}, ptr {scalar})")
            self.same(f.op(f"load i32, ptr {scalar}"), 0, "i32")
            if kind == INTEGER:  # within lo..hi, which stand where an array has its dims
                limits = self.load(row, 8 * INPUT["dims"])
                self.need(f.op(f"icmp sge i64 {whole}, {self.load(limits, 0, 'i64')}"))
                self.need(f.op(f"icmp sle i64 {whole}, {self.load(limits, 8, 'i64')}"))
                f.raw(f"store i64 {whole}, ptr {scalar}")
                return
            value = f.op(f"sitofp i64 {whole} to double")
        if kind in (FLOAT32, INT_FLOAT32):
            f.raw(f"store float {f.op(f'fptrunc double {value} to float')}, ptr {scalar}")
        else:
            f.raw(f"store double {value}, ptr {scalar}")

    # -- results

    def _outputs(self, frame: str, results: str, flat: str) -> None:
        """Allocate all outputs.  Nothing is owed to anyone if the sizes are impossible; a failed allocation gives back
        what was allocated before it."""
        f = self.f
        count, table = self.field("noutputs"), self.field("outputs", "ptr")
        with f.loop(0, count, stem="check") as k:
            nbytes = f.op(f"call i64 @nbytes(ptr {self.at(table, k, 8 * len(OUTPUT))}, ptr {flat})")
            self.need(f.op(f"icmp sge i64 {nbytes}, 0"))
        nparams = self.field("nparams")
        with f.loop(0, count, stem="out") as k:
            row = self.at(table, k, 8 * len(OUTPUT))
            nbytes = f.op(f"call i64 @nbytes(ptr {row}, ptr {flat})")
            shape = self.at(flat, self.load(row, 8 * OUTPUT["at"], "i64"))
            large, small, joined = f.label("large"), f.label("small"), f.label("allocated")
            f.cond_br(f.op(f"icmp sge i64 {nbytes}, {buffers.LARGE}"), large, small)
            f.begin(large)
            warm = f.op(f"call ptr @allocate(ptr {self.field('alloc', 'ptr')}, i64 {k}, ptr {shape})")
            f.br(joined)
            f.begin(small)
            descr = self.load(row, 8 * OUTPUT["descr"])
            f.raw(f"call void {self.api('Py_IncRef')}(ptr {descr})")  # the next call takes a reference away
            rank = f.op(f"trunc i64 {self.load(row, 8 * OUTPUT['rank'], 'i64')} to i32")
            fresh = f.op(f"call ptr {self.api('PyArray_Empty')}(i32 {rank}, ptr {shape}, ptr {descr}, i32 0)")
            f.br(joined)
            f.begin(joined)
            result = f.op(f"phi ptr [ {warm}, %{large} ], [ {fresh}, %{small} ]")
            made, failed = f.label("made"), f.label("failed")
            f.cond_br(f.op(f"icmp ne ptr {result}, null"), made, failed, unlikely_no=True)
            f.begin(failed)
            f.raw(f"call void @drop(ptr {results}, i64 {k})\n  ret ptr null")
            f.begin(made)
            f.raw(f"store ptr {result}, ptr {self.at(results, k)}")
            f.raw(f"store ptr {self.load(result, DATA)}, ptr {self.at(frame, f.add(nparams, k))}")

    def _constants(self, frame: str) -> None:
        f = self.f
        table = self.field("constants", "ptr")
        first = f.add(self.field("nparams"), self.field("noutputs"))
        with f.loop(0, self.field("nconstants"), stem="constant") as k:
            f.raw(f"store ptr {self.load(self.at(table, k), 0)}, ptr {self.at(frame, f.add(first, k))}")

    def _run(self, frame: str, dims: str, need: str, work: str, flat: str) -> None:
        f = self.f
        results = self.at(frame, self.field("at_results"))
        heap, stack, ready = f.label("heap"), f.label("stack"), f.label("ready")
        f.cond_br(f.op(f"icmp sgt i64 {need}, {STACK_ARENA}"), heap, stack)
        f.begin(heap)
        raw = f.op(f"call ptr @arena_take(ptr {self.record}, i64 {need})")
        have, none = f.label("have"), f.label("none")
        f.cond_br(f.op(f"icmp ne ptr {raw}, null"), have, none, unlikely_no=True)
        f.begin(none)
        f.raw(f"call void @drop(ptr {results}, i64 {self.field('noutputs')})")
        f.raw("ret ptr " + f.op(f"call ptr {self.api('PyErr_NoMemory')}()"))
        f.begin(have)
        f.br(ready)
        f.begin(stack)
        local = f.op(f"alloca i8, i64 {need}, align 64")
        f.br(ready)
        f.begin(ready)
        from_heap = f.op(f"phi ptr [ {raw}, %{have} ], [ null, %{stack} ]")
        base = f.op(f"phi ptr [ {raw}, %{have} ], [ {local}, %{stack} ]")
        arena = f.call("llvm.ptrmask.p0.i64", "ptr (ptr, i64)", f"ptr {self.at(base, 63, 1)}", "i64 -64")
        threads = f.op(f"call ptr @find_pool(i64 {work})")
        run, release, keep, done = self.field("run", "ptr"), f.label("release"), f.label("keep"), f.label("done")
        call = f"call void {run}(ptr {frame}, ptr {dims}, ptr {arena}, ptr {threads})"
        f.cond_br(f.op(f"icmp sge i64 {work}, {GIL_WORK}"), release, keep)
        f.begin(release)
        state = f.op(f"call ptr {self.api('PyEval_SaveThread')}()")
        f.raw(call)
        f.raw(f"call void {self.api('PyEval_RestoreThread')}(ptr {state})")
        f.br(done)
        f.begin(keep)
        f.raw(call)
        f.br(done)
        f.begin(done)
        f.raw(f"call void @arena_give(ptr {self.record}, ptr {from_heap})")
        self._copies(frame, flat)

    def _copies(self, frame: str, flat: str) -> None:
        """Outputs that are a param, a constant or another output are copies of it."""
        f = self.f
        table, nparams = self.field("outputs", "ptr"), self.field("nparams")
        with f.loop(0, self.field("noutputs"), stem="copy") as k:
            row = self.at(table, k, 8 * len(OUTPUT))
            source = self.load(row, 8 * OUTPUT["source"], "i64")
            copy, joined = f.label("copy"), f.label("next")
            f.cond_br(f.op(f"icmp sge i64 {source}, 0"), copy, joined)
            f.begin(copy)
            nbytes = f.op(f"call i64 @nbytes(ptr {row}, ptr {flat})")
            to, of = self.load(self.at(frame, f.add(nparams, k)), 0), self.load(self.at(frame, source), 0)
            f.call("llvm.memcpy.p0.p0.i64", "void (ptr, ptr, i64, i1)",
                   f"ptr {to}", f"ptr {of}", f"i64 {nbytes}", "i1 false")
            f.br(joined)
            f.begin(joined)

    def _result(self, results: str) -> None:
        f = self.f
        single, several, tuple_, pack = f.label("single"), f.label("several"), f.label("tuple"), f.label("pack")
        how, count = self.field("result"), self.field("noutputs")
        f.cond_br(f.op(f"icmp eq i64 {how}, {SINGLE}"), single, several)
        f.begin(single)
        f.raw(f"ret ptr {self.load(results, 0)}")
        f.begin(several)
        f.cond_br(f.op(f"icmp eq i64 {how}, {TUPLE}"), tuple_, pack)
        f.begin(pack)
        made = f.op(f"call ptr {self.api('PyObject_Vectorcall')}(ptr {self.field('pack', 'ptr')}, ptr {results}, "
                    f"i64 {count}, ptr null)")
        f.raw(f"call void @drop(ptr {results}, i64 {count})\n  ret ptr {made}")
        f.begin(tuple_)
        out = f.op(f"call ptr {self.api('PyTuple_New')}(i64 {count})")
        fill, failed = f.label("fill"), f.label("failed")
        f.cond_br(f.op(f"icmp ne ptr {out}, null"), fill, failed, unlikely_no=True)
        f.begin(failed)
        f.raw(f"call void @drop(ptr {results}, i64 {count})\n  ret ptr null")
        f.begin(fill)
        with f.loop(0, count, stem="item") as k:
            f.op(f"call i32 {self.api('PyTuple_SetItem')}(ptr {out}, i64 {k}, ptr {self.load(self.at(results, k), 0)})")
        f.raw(f"ret ptr {out}")


# helpers in plain text, since nothing of them depends on a program

def _api(name: str) -> str:
    """Text that loads the run-time address ``%name``."""
    return (f"  %a.{name} = getelementptr i8, ptr @api, i64 {8 * API[name]}\n"
            f"  %{name} = load ptr, ptr %a.{name}")


def _at(name: str, base: str, offset: int) -> str:
    """Text that makes the address ``%p.name``."""
    return f"  %p.{name} = getelementptr i8, ptr {base}, i64 {offset}"


def _nbytes_ir() -> str:
    """``nbytes(row, flat)``: bytes of an output, -1 if there are too many."""
    return f"""
define internal i64 @nbytes(ptr %row, ptr %flat) nounwind {{
entry:
{_at("rank", "%row", 8 * OUTPUT["rank"])}
{_at("at", "%row", 8 * OUTPUT["at"])}
{_at("item", "%row", 8 * OUTPUT["itemsize"])}
  %rank = load i64, ptr %p.rank
  %first = load i64, ptr %p.at
  %item = load i64, ptr %p.item
  %shape = getelementptr i64, ptr %flat, i64 %first
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %axis ]
  %total = phi i64 [ %item, %entry ], [ %product, %axis ]
  %bad = phi i1 [ false, %entry ], [ %worse, %axis ]
  %zero = phi i1 [ false, %entry ], [ %zeros, %axis ]
  %more = icmp slt i64 %i, %rank
  br i1 %more, label %axis, label %end
axis:
  %p = getelementptr i64, ptr %shape, i64 %i
  %n = load i64, ptr %p
  %pair = call {{ i64, i1 }} @llvm.smul.with.overflow.i64(i64 %total, i64 %n)
  %product = extractvalue {{ i64, i1 }} %pair, 0
  %over = extractvalue {{ i64, i1 }} %pair, 1
  %worse = or i1 %bad, %over
  %none = icmp eq i64 %n, 0
  %zeros = or i1 %zero, %none
  %next = add i64 %i, 1
  br label %head
end:
  %checked = select i1 %bad, i64 -1, i64 %total
  %result = select i1 %zero, i64 0, i64 %checked
  ret i64 %result
}}
declare {{ i64, i1 }} @llvm.smul.with.overflow.i64(i64, i64)
"""


def _allocate_ir() -> str:
    """``allocate(alloc, k, shape)``: what Python's ``alloc(k, address of the shape)`` gives."""
    return f"""
define internal ptr @allocate(ptr %alloc, i64 %k, ptr %shape) nounwind {{
entry:
{_api("PyLong_FromLongLong")}
{_api("PyObject_Vectorcall")}
  %pair = alloca [2 x ptr], align 8
  %second = getelementptr ptr, ptr %pair, i64 1
  %number = call ptr %PyLong_FromLongLong(i64 %k)
  store ptr %number, ptr %pair
  %bits = ptrtoint ptr %shape to i64
  %address = call ptr %PyLong_FromLongLong(i64 %bits)
  store ptr %address, ptr %second
  %n0 = icmp ne ptr %number, null
  %n1 = icmp ne ptr %address, null
  %both = and i1 %n0, %n1
  br i1 %both, label %call, label %end
call:
  %made = call ptr %PyObject_Vectorcall(ptr %alloc, ptr %pair, i64 2, ptr null)
  br label %end
end:
  %result = phi ptr [ %made, %call ], [ null, %entry ]
  call void @drop(ptr %pair, i64 2)
  ret ptr %result
}}
"""


def _drop_ir() -> str:
    """``drop(objects, count)``: give references back."""
    return f"""
define internal void @drop(ptr %objects, i64 %count) nounwind {{
entry:
{_api("Py_DecRef")}
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %one ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %one, label %end
one:
  %p = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %p
  call void %Py_DecRef(ptr %object)
  %next = add i64 %i, 1
  br label %head
end:
  ret void
}}
"""


def _find_pool_ir() -> str:
    """``find_pool(work)``: the thread pool for work that is worth it, else null."""
    return f"""
define internal ptr @find_pool(i64 %work) nounwind {{
entry:
{_at("pool", "@api", 8 * API["pool"])}
{_at("known", "@api", 8 * API["pool_known"])}
  %large = icmp sge i64 %work, {costs().serial_work}
  br i1 %large, label %ask, label %none
ask:
  %known = load i64, ptr %p.known
  %is = icmp ne i64 %known, 0
  br i1 %is, label %have, label %find
find:
{_api("find_pool")}
{_api("PyObject_Vectorcall")}
{_api("Py_DecRef")}
  %r = call ptr %PyObject_Vectorcall(ptr %find_pool, ptr null, i64 0, ptr null)
  call void %Py_DecRef(ptr %r)
  br label %have
have:
  %pool = load ptr, ptr %p.pool
  ret ptr %pool
none:
  ret ptr null
}}
"""


def _arena_take_ir() -> str:
    """``arena_take(record, need)``: memory of need + 64 bytes, that of the record if nobody has it, else fresh."""
    return f"""
define internal ptr @arena_take(ptr %record, i64 %need) nounwind {{
entry:
{_api("PyMem_RawMalloc")}
{_api("PyMem_RawFree")}
{_at("lock", "%record", 8 * RECORD["arena_lock"])}
{_at("arena", "%record", 8 * RECORD["arena"])}
{_at("size", "%record", 8 * RECORD["arena_size"])}
  %bytes = add i64 %need, 64
  %swap = cmpxchg ptr %p.lock, i64 0, i64 1 acquire monotonic
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %own, label %fresh
fresh:
  %other = call ptr %PyMem_RawMalloc(i64 %bytes)
  ret ptr %other
own:
  %have = load ptr, ptr %p.arena
  %size = load i64, ptr %p.size
  %enough = icmp sge i64 %size, %need
  br i1 %enough, label %good, label %grow
good:
  ret ptr %have
grow:
  call void %PyMem_RawFree(ptr %have)
  %larger = call ptr %PyMem_RawMalloc(i64 %bytes)
  store ptr %larger, ptr %p.arena
  %none = icmp eq ptr %larger, null
  %now = select i1 %none, i64 0, i64 %need
  store i64 %now, ptr %p.size
  br i1 %none, label %fail, label %grown
fail:
  store atomic i64 0, ptr %p.lock release, align 8
  ret ptr null
grown:
  ret ptr %larger
}}
"""


def _arena_give_ir() -> str:
    """``arena_give(record, memory)``: the way back for what ``arena_take`` gave; null is fine."""
    return f"""
define internal void @arena_give(ptr %record, ptr %memory) nounwind {{
entry:
{_api("PyMem_RawFree")}
{_at("lock", "%record", 8 * RECORD["arena_lock"])}
{_at("arena", "%record", 8 * RECORD["arena"])}
  %nothing = icmp eq ptr %memory, null
  br i1 %nothing, label %end, label %some
some:
  %owned = load ptr, ptr %p.arena
  %is = icmp eq ptr %owned, %memory
  br i1 %is, label %unlock, label %free
unlock:
  store atomic i64 0, ptr %p.lock release, align 8
  br label %end
free:
  call void %PyMem_RawFree(ptr %memory)
  br label %end
end:
  ret void
}}
"""


@functools.cache
def call_ir() -> str:
    """LLVM text of the native call, the same for every program."""
    module = Module()
    module.head += [f"@api = global [{len(API)} x ptr] zeroinitializer", WEIGHTS, _nbytes_ir(), _allocate_ir(),
                    _drop_ir(), _find_pool_ir(), _arena_take_ir(), _arena_give_ir()]
    _Call(module).emit()
    return module.text()
