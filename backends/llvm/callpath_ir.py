"""The native call in LLVM text: one function that serves every program, driven by a table.

Here: the function ``@call``.
Not here: the layout of its tables (callpath_tables.py), its helpers (callpath_helpers.py), who fills the tables and
checks the offsets (callpath.py), what is called (entry.py).  Read next: callpath.py.

``@call`` has the signature of a METH_FASTCALL|METH_KEYWORDS function. It reads ``PyArrayObject`` fields, which are a
public C struct, compares them with a table, and on the first surprise (other keywords, subclass, other dtype or shape,
strided or unaligned memory, a container with other keys, a broken constraint) hands the whole call to the fallback.
Tuples, lists and dicts are taken apart, and built for results, without a Python frame. Because it is driven by a table
it is compiled once, not once per program, and its object code is the same in every process: all run-time addresses are
in the record of the program or in the ``@api`` table, which is filled after loading.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from flowc.backends import buffers
from flowc.backends.llvm.builder import Function, Module
from flowc.backends.llvm.callpath_helpers import helpers
from flowc.backends.llvm.callpath_tables import (
    API,
    ARRAY,
    ARRAY_FLAGS,
    BIND_DIM,
    BOOL,
    CONSTANT_DIM,
    CONTAINER,
    DATA,
    DESCR,
    DIMS,
    FLAGS,
    FLOAT32,
    FLOAT64,
    HEADER,
    IN_ARGS,
    INPUT,
    INT_FLOAT32,
    INTEGER,
    KINDS,
    ND,
    OB_TYPE,
    OBJECT,
    OUTPUT,
    RECORD,
    SAME,
    SELF_DATA,
    SIZE,
)
from flowc.backends.llvm.share import WORK_PER_US

GIL_WORK = 10 * WORK_PER_US         # below this, letting other Python threads run costs more than it gives
SLOW_WORK = 500_000 * WORK_PER_US   # from here on the fallback runs it, which looks for Ctrl-C now and then
STACK_ARENA = 64 << 10              # bytes of working memory taken from the stack
WEIGHTS = '!0 = !{!"branch_weights", i32 1000, i32 1}'

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
        self._keywords()
        self.same("%nargs", self.field("nargs"))
        frame = f.op(f"alloca i64, i64 {self.field('frame')}, align 16")
        scalars, results = self.at(frame, self.field("at_scalars")), self.at(frame, self.field("at_results"))
        dims, flat = self.at(frame, self.field("at_dims")), self.at(frame, self.field("at_flat"))
        objects = self.at(frame, self.field("at_objects"))
        self._arguments(frame, scalars, dims, objects)
        fine = f.op(f"call i32 {self.field('sizes', 'ptr')}(ptr {dims}, ptr {flat})")
        self.same(fine, 1, "i32")
        nflat = self.field("nflat")
        need = self.load(self.at(flat, nflat), 0, "i64")
        work = self.load(self.at(flat, nflat), 8, "i64")
        self.need(f.op(f"icmp slt i64 {work}, {SLOW_WORK}"))
        self._outputs(frame, results, flat, objects)
        self._constants(frame)
        self._run(frame, dims, need, work, flat, objects)
        self._result(frame, results, objects)
        f.begin("slow")
        fallback = self.field("fallback", "ptr")
        r = f.op(f"call ptr {self.api('PyObject_Vectorcall')}(ptr {fallback}, ptr %args, i64 %nargs, ptr %kwnames)")
        f.raw(f"ret ptr {r}")
        f.finish()

    # -- arguments

    def _keywords(self) -> None:
        f = self.f
        none, some, joined = f.label("none"), f.label("some"), f.label("named")
        f.cond_br(f.op(f"icmp eq i64 {self.field('nkeywords')}, 0"), none, some)
        f.begin(none)
        self.same("%kwnames", "null", "ptr")
        f.br(joined)
        f.begin(some)
        self.need(f.op(f"call i1 @named(ptr {self.record}, ptr %kwnames)"))
        f.br(joined)
        f.begin(joined)

    def _arguments(self, frame: str, scalars: str, dims: str, objects: str) -> None:
        f = self.f
        inputs = self.field("inputs", "ptr")
        types = {n: self.api(n) for n in ("ndarray", "float", "int", "true", "false")}
        with f.loop(0, self.field("ninputs"), stem="arg") as i:
            row = self.at(inputs, i, 8 * len(INPUT))
            arg = self._find(row, objects)
            kind = self.load(row, 8 * INPUT["kind"], "i64")
            slot = self.load(row, 8 * INPUT["slot"], "i64")
            place, scalar = self.at(frame, slot), self.at(scalars, slot)
            cases = {k: f.label("kind") for k in KINDS}
            joined = f.label("joined")
            f.raw(f"switch i64 {kind}, label %slow [ "
                  + " ".join(f"i64 {k}, label %{b}" for k, b in cases.items()) + " ]")
            for k, label in cases.items():
                f.begin(label)
                if k == ARRAY:
                    self._array(arg, row, types["ndarray"], dims, place)
                elif k == SAME:
                    self.same(arg, self.load(row, 8 * INPUT["object"]), "ptr")
                elif k in (CONTAINER, OBJECT):
                    self.same(self.load(arg, OB_TYPE), self.load(row, 8 * INPUT["object"]), "ptr")
                    if k == CONTAINER:
                        self.same(self.load(arg, SIZE, "i64"), self.load(row, 8 * INPUT["rank"], "i64"))
                else:
                    self._scalar(k, arg, row, types, scalar)
                    f.raw(f"store ptr {scalar}, ptr {place}")
                f.br(joined)
            f.begin(joined)

    def _find(self, row: str, objects: str) -> str:
        """The object of an input row, noted under its number."""
        f = self.f
        outside, inside, there, joined = f.label("args"), f.label("item"), f.label("there"), f.label("found")
        index = self.load(row, 8 * INPUT["index"], "i64")
        f.cond_br(f.op(f"icmp eq i64 {self.load(row, 8 * INPUT['whence'], 'i64')}, {IN_ARGS}"), outside, inside)
        f.begin(outside)
        arg = self.load(self.at("%args", index), 0)
        f.br(joined)
        f.begin(inside)
        item = f.op(f"call ptr @fetch(ptr {row}, ptr {objects})")
        f.cond_br(f.op(f"icmp ne ptr {item}, null"), there, "slow", unlikely_no=True)
        f.begin(there)
        f.br(joined)
        f.begin(joined)
        found = f.op(f"phi ptr [ {arg}, %{outside} ], [ {item}, %{there} ]")
        f.raw(f"store ptr {found}, ptr {self.at(objects, self.load(row, 8 * INPUT['note'], 'i64'))}")
        return found

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

    def _let_go(self, objects: str) -> None:
        """Give back what ``_outputs`` holds."""
        self.f.raw(f"call void @drop(ptr {objects}, i64 {self.field('nheld')})")

    def _outputs(self, frame: str, results: str, flat: str, objects: str) -> None:
        """Allocate all outputs.  Nothing is owed to anyone if the sizes are impossible; a failed allocation gives back
        what was allocated before it.  From here on Python may run: items of containers, which anybody may replace, are
        held until the end."""
        f = self.f
        count, table = self.field("noutputs"), self.field("outputs", "ptr")
        with f.loop(0, count, stem="check") as k:
            nbytes = f.op(f"call i64 @nbytes(ptr {self.at(table, k, 8 * len(OUTPUT))}, ptr {flat})")
            self.need(f.op(f"icmp sge i64 {nbytes}, 0"))
        self._donated(count, table, objects)
        f.raw(f"call void @hold(ptr {objects}, i64 {self.field('nheld')})")
        nparams = self.field("nparams")
        with f.loop(0, count, stem="out") as k:
            row = self.at(table, k, 8 * len(OUTPUT))
            over = self.load(row, 8 * OUTPUT["over"], "i64")
            taken, own = f.label("taken"), f.label("own")
            joined = f.label("allocated")
            f.cond_br(f.op(f"icmp sge i64 {over}, 0"), taken, own)
            f.begin(taken)
            donated = self.load(self.at(objects, over), 0)
            f.raw(f"call void {self.api('Py_IncRef')}(ptr {donated})")
            f.br(joined)
            f.begin(own)
            nbytes = f.op(f"call i64 @nbytes(ptr {row}, ptr {flat})")
            shape = self.at(flat, self.load(row, 8 * OUTPUT["at"], "i64"))
            large, small = f.label("large"), f.label("small")
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
            result = f.op(f"phi ptr [ {warm}, %{large} ], [ {fresh}, %{small} ], [ {donated}, %{taken} ]")
            made, failed = f.label("made"), f.label("failed")
            f.cond_br(f.op(f"icmp ne ptr {result}, null"), made, failed, unlikely_no=True)
            f.begin(failed)
            self._let_go(objects)
            f.raw(f"call void @drop(ptr {results}, i64 {k})\n  ret ptr null")
            f.begin(made)
            f.raw(f"store ptr {result}, ptr {self.at(results, k)}")
            f.raw(f"store ptr {self.load(result, DATA)}, ptr {self.at(frame, f.add(nparams, k))}")

    def _donated(self, count: str, table: str, objects: str) -> None:
        """Leave it to the fallback to copy an argument whose memory cannot be taken over."""
        f = self.f
        some, none = f.label("donated"), f.label("fresh")
        f.cond_br(f.op(f"icmp eq i64 {self.field('ndonated')}, 0"), none, some)
        f.begin(some)
        inputs, number = self.field("inputs", "ptr"), self.field("ninputs")
        with f.loop(0, count, stem="over") as k:
            row = self.at(table, k, 8 * len(OUTPUT))
            over, size = (self.load(row, 8 * OUTPUT[n], "i64") for n in ("over", "itemsize"))
            ask, joined = f.label("ask"), f.label("next")
            f.cond_br(f.op(f"icmp sge i64 {over}, 0"), ask, joined)
            f.begin(ask)
            self.need(f.op(f"call i1 @apart(ptr {inputs}, i64 {number}, ptr {objects}, "
                           f"ptr {self.load(self.at(objects, over), 0)}, i64 {size})"))
            f.br(joined)
            f.begin(joined)
        f.br(none)
        f.begin(none)

    def _constants(self, frame: str) -> None:
        f = self.f
        table = self.field("constants", "ptr")
        first = f.add(self.field("nparams"), self.field("noutputs"))
        with f.loop(0, self.field("nconstants"), stem="constant") as k:
            f.raw(f"store ptr {self.load(self.at(table, k), 0)}, ptr {self.at(frame, f.add(first, k))}")

    def _run(self, frame: str, dims: str, need: str, work: str, flat: str, objects: str) -> None:
        f = self.f
        results = self.at(frame, self.field("at_results"))
        heap, stack, ready = f.label("heap"), f.label("stack"), f.label("ready")
        f.cond_br(f.op(f"icmp sgt i64 {need}, {STACK_ARENA}"), heap, stack)
        f.begin(heap)
        lent = f.op(f"call ptr @arena_take(ptr {self.record}, i64 {need})")
        have, none = f.label("have"), f.label("none")
        f.cond_br(f.op(f"icmp ne ptr {lent}, null"), have, none, unlikely_no=True)
        f.begin(none)
        self._let_go(objects)
        f.raw(f"call void @drop(ptr {results}, i64 {self.field('noutputs')})")
        f.raw("ret ptr null")
        f.begin(have)
        raw = self.load(lent, DATA)
        f.br(ready)
        f.begin(stack)
        local = f.op(f"alloca i8, i64 {need}, align 64")
        f.br(ready)
        f.begin(ready)
        from_heap = f.op(f"phi ptr [ {lent}, %{have} ], [ null, %{stack} ]")
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

    def _result(self, frame: str, results: str, objects: str) -> None:
        """One output is given as it is; everything else is built."""
        f = self.f
        self._let_go(objects)
        single, several = f.label("single"), f.label("several")
        f.cond_br(f.op(f"icmp eq i64 {self.field('nresult')}, 0"), single, several)
        f.begin(single)
        f.raw(f"ret ptr {self.load(results, 0)}")
        f.begin(several)
        stack = self.at(frame, self.field("at_stack"))
        f.raw("ret ptr " + f.op(f"call ptr @build(ptr {self.record}, ptr {results}, ptr {stack})"))


@functools.cache
def call_ir() -> str:
    """LLVM text of the native call, the same for every program."""
    module = Module()
    module.head += [f"@api = global [{len(API)} x ptr] zeroinitializer", WEIGHTS, *helpers()]
    _Call(module).emit()
    return module.text()
