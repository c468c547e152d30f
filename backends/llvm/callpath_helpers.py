"""Helpers of the native call, in plain LLVM text since nothing of them depends on a program.

Here: sizes and memory of results, working memory, the thread pool, containers taken apart and built.
Not here: the native call itself (callpath_ir.py), the layout of its tables (callpath_tables.py).
"""

from __future__ import annotations

from flowc.backends.llvm.callpath_tables import (
    API,
    ARRAY,
    DATA,
    DIMS,
    FLAGS,
    IN_DICT,
    IN_FIELD,
    IN_LIST,
    IN_TUPLE,
    INPUT,
    LIST_ITEMS,
    MAKE_CALL,
    MAKE_DICT,
    MAKE_LIST,
    MAKE_OUTPUT,
    MAKE_SAME,
    MAKE_TUPLE,
    ND,
    OUTPUT,
    RECORD,
    RESULT,
    SIZE,
    TUPLE_ITEMS,
    WORKING,
    WRITEABLE,
)
from flowc.backends.llvm.share import costs


def _api(name: str) -> str:
    """Text that loads the run-time address ``%name``."""
    return (f"  %a.{name} = getelementptr i8, ptr @api, i64 {8 * API[name]}\n"
            f"  %{name} = load ptr, ptr %a.{name}")


def _at(name: str, base: str, offset: int) -> str:
    """Text that makes the address ``%p.name``."""
    return f"  %p.{name} = getelementptr i8, ptr {base}, i64 {offset}"


def _load(name: str, base: str, offset: int, ty: str = "i64") -> str:
    """Text that loads ``%name``."""
    return f"{_at(name, base, offset)}\n  %{name} = load {ty}, ptr %p.{name}"


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
    """``allocate(alloc, k, sizes)``: what Python's ``alloc(k, address of the sizes)`` gives."""
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


def _references_ir(name: str, change: str) -> str:
    """``name(objects, count)``: take (``hold``) or give back (``drop``) a reference to each; null is fine."""
    return f"""
define internal void @{name}(ptr %objects, i64 %count) nounwind {{
entry:
{_api(change)}
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %one ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %one, label %end
one:
  %p = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %p
  call void %{change}(ptr %object)
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
    """``arena_take(record, need)``: an array of need + 64 bytes, that of the record if nobody has it, else a fresh
    one; null, with an error set, if there is no memory."""
    return f"""
define internal ptr @arena_take(ptr %record, i64 %need) nounwind {{
entry:
{_api("Py_DecRef")}
{_at("lock", "%record", 8 * RECORD["arena_lock"])}
{_at("arena", "%record", 8 * RECORD["arena"])}
{_at("size", "%record", 8 * RECORD["arena_size"])}
{_load("alloc", "%record", 8 * RECORD["alloc"], "ptr")}
  %wanted = alloca i64, align 8
  store i64 %need, ptr %wanted
  %swap = cmpxchg ptr %p.lock, i64 0, i64 1 acquire monotonic
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %own, label %fresh
fresh:
  %other = call ptr @allocate(ptr %alloc, i64 {WORKING}, ptr %wanted)
  ret ptr %other
own:
  %have = load ptr, ptr %p.arena
  %size = load i64, ptr %p.size
  %enough = icmp sge i64 %size, %need
  br i1 %enough, label %good, label %grow
good:
  ret ptr %have
grow:
  store ptr null, ptr %p.arena
  store i64 0, ptr %p.size
  call void %Py_DecRef(ptr %have)
  %larger = call ptr @allocate(ptr %alloc, i64 {WORKING}, ptr %wanted)
  %none = icmp eq ptr %larger, null
  br i1 %none, label %fail, label %grown
fail:
  store atomic i64 0, ptr %p.lock release, align 8
  ret ptr null
grown:
  store ptr %larger, ptr %p.arena
  store i64 %need, ptr %p.size
  ret ptr %larger
}}
"""


def _arena_give_ir() -> str:
    """``arena_give(record, array)``: the way back for what ``arena_take`` gave; null is fine."""
    return f"""
define internal void @arena_give(ptr %record, ptr %array) nounwind {{
entry:
{_api("Py_DecRef")}
{_at("lock", "%record", 8 * RECORD["arena_lock"])}
{_at("arena", "%record", 8 * RECORD["arena"])}
  %nothing = icmp eq ptr %array, null
  br i1 %nothing, label %end, label %some
some:
  %owned = load ptr, ptr %p.arena
  %is = icmp eq ptr %owned, %array
  br i1 %is, label %unlock, label %free
unlock:
  store atomic i64 0, ptr %p.lock release, align 8
  br label %end
free:
  call void %Py_DecRef(ptr %array)
  br label %end
end:
  ret void
}}
"""


def _named_ir() -> str:
    """``named(record, names)``: are the keywords of a call those of the record, in its order?"""
    return f"""
define internal i1 @named(ptr %record, ptr %names) nounwind {{
entry:
{_load("nkeywords", "%record", 8 * RECORD["nkeywords"])}
{_load("keywords", "%record", 8 * RECORD["keywords"], "ptr")}
  %none = icmp eq ptr %names, null
  br i1 %none, label %end, label %count
count:
{_load("size", "%names", SIZE)}
  %begin = getelementptr i8, ptr %names, i64 {TUPLE_ITEMS}
  %as.many = icmp eq i64 %size, %nkeywords
  br i1 %as.many, label %head, label %end
head:
  %i = phi i64 [ 0, %count ], [ %next, %one ]
  %more = icmp slt i64 %i, %nkeywords
  br i1 %more, label %one, label %end
one:
  %p = getelementptr ptr, ptr %begin, i64 %i
  %q = getelementptr ptr, ptr %keywords, i64 %i
  %name = load ptr, ptr %p
  %wanted = load ptr, ptr %q
  %next = add i64 %i, 1
  %same = icmp eq ptr %name, %wanted
  br i1 %same, label %head, label %end
end:
  %fine = phi i1 [ false, %entry ], [ false, %count ], [ true, %head ], [ false, %one ]
  ret i1 %fine
}}
"""


def _extent_ir() -> str:
    """``extent(array, itemsize)``: bytes of an array."""
    return f"""
define internal i64 @extent(ptr %array, i64 %itemsize) nounwind {{
entry:
{_load("rank", "%array", ND, "i32")}
{_load("dims", "%array", DIMS, "ptr")}
  br label %head
head:
  %i = phi i32 [ 0, %entry ], [ %next, %one ]
  %bytes = phi i64 [ %itemsize, %entry ], [ %more.bytes, %one ]
  %more = icmp slt i32 %i, %rank
  br i1 %more, label %one, label %end
one:
  %p = getelementptr i64, ptr %dims, i32 %i
  %n = load i64, ptr %p
  %more.bytes = mul i64 %bytes, %n
  %next = add i32 %i, 1
  br label %head
end:
  ret i64 %bytes
}}
"""


def _apart_ir() -> str:
    """``apart(inputs, ninputs, objects, array, itemsize)``: may the array be written to, and does no other argument
    overlap it?"""
    return f"""
define internal i1 @apart(ptr %inputs, i64 %ninputs, ptr %objects, ptr %array, i64 %itemsize) nounwind {{
entry:
{_load("flags", "%array", FLAGS, "i32")}
{_load("start", "%array", DATA)}
  %bytes = call i64 @extent(ptr %array, i64 %itemsize)
  %stop = add i64 %start, %bytes
  %bit = and i32 %flags, {WRITEABLE}
  %writeable = icmp ne i32 %bit, 0
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %step ]
  %met = phi i64 [ 0, %entry ], [ %meets, %step ]
  %more = icmp slt i64 %i, %ninputs
  br i1 %more, label %one, label %end
one:
  %at = mul i64 %i, {8 * len(INPUT)}
  %row = getelementptr i8, ptr %inputs, i64 %at
{_load("kind", "%row", 8 * INPUT["kind"])}
{_load("note", "%row", 8 * INPUT["note"])}
{_load("item", "%row", 8 * INPUT["itemsize"])}
  %is = icmp eq i64 %kind, {ARRAY}
  br i1 %is, label %compare, label %step
compare:
  %q = getelementptr ptr, ptr %objects, i64 %note
  %other = load ptr, ptr %q
{_load("from", "%other", DATA)}
  %size = call i64 @extent(ptr %other, i64 %item)
  %to = add i64 %from, %size
  %before = icmp slt i64 %start, %to
  %after = icmp slt i64 %from, %stop
  %both = and i1 %before, %after
  %one.more = zext i1 %both to i64
  %sum = add i64 %met, %one.more
  br label %step
step:
  %meets = phi i64 [ %met, %one ], [ %sum, %compare ]
  %next = add i64 %i, 1
  br label %head
end:
  %alone = icmp sle i64 %met, 1
  %fine = and i1 %alone, %writeable
  ret i1 %fine
}}
"""


def _fetch_ir() -> str:
    """``fetch(row, objects)``: the item of a container that an input row asks for, which stays the container's; null if
    it has none."""
    return f"""
define internal ptr @fetch(ptr %row, ptr %objects) nounwind {{
entry:
{_load("whence", "%row", 8 * INPUT["whence"])}
{_load("holder", "%row", 8 * INPUT["holder"])}
{_load("index", "%row", 8 * INPUT["index"])}
  %p = getelementptr ptr, ptr %objects, i64 %holder
  %in = load ptr, ptr %p
  switch i64 %whence, label %none [ i64 {IN_TUPLE}, label %tuple i64 {IN_LIST}, label %list
    i64 {IN_DICT}, label %dict i64 {IN_FIELD}, label %field ]
tuple:
  %begin = getelementptr i8, ptr %in, i64 {TUPLE_ITEMS}
  br label %item
list:
  %q = getelementptr i8, ptr %in, i64 {LIST_ITEMS}
  %items = load ptr, ptr %q
  br label %item
item:
  %from = phi ptr [ %begin, %tuple ], [ %items, %list ]
  %r = getelementptr ptr, ptr %from, i64 %index
  %object = load ptr, ptr %r
  ret ptr %object
dict:
{_api("PyDict_GetItem")}
  %key = inttoptr i64 %index to ptr
  %value = call ptr %PyDict_GetItem(ptr %in, ptr %key)
  ret ptr %value
field:
{_api("PyObject_GetAttr")}
{_api("PyErr_Clear")}
{_api("Py_DecRef")}
  %name = inttoptr i64 %index to ptr
  %held = call ptr %PyObject_GetAttr(ptr %in, ptr %name)
  %missing = icmp eq ptr %held, null
  br i1 %missing, label %unset, label %set
unset:
  call void %PyErr_Clear()
  ret ptr null
set:
  call void %Py_DecRef(ptr %held)
  ret ptr %held
none:
  ret ptr null
}}
"""


def _sequence_ir(name: str, new: str, put: str) -> str:
    """``name(items, count)``: a container that takes over the references to its items; null if there is no memory."""
    return f"""
define internal ptr @{name}(ptr %items, i64 %count) nounwind {{
entry:
{_api(new)}
{_api(put)}
  %new = call ptr %{new}(i64 %count)
  %none = icmp eq ptr %new, null
  br i1 %none, label %end, label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %one ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %one, label %end
one:
  %p = getelementptr ptr, ptr %items, i64 %i
  %item = load ptr, ptr %p
  %ok = call i32 %{put}(ptr %new, i64 %i, ptr %item)
  %next = add i64 %i, 1
  br label %head
end:
  ret ptr %new
}}
"""


def _dict_ir() -> str:
    """``dict(items, count, keys)``: the same for a dict."""
    return f"""
define internal ptr @dict(ptr %items, i64 %count, ptr %keys) nounwind {{
entry:
{_api("PyDict_New")}
{_api("PyDict_SetItem")}
{_api("Py_DecRef")}
  %new = call ptr %PyDict_New()
  %none = icmp eq ptr %new, null
  br i1 %none, label %failed, label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %one ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %one, label %end
one:
  %k = getelementptr ptr, ptr %keys, i64 %i
  %key = load ptr, ptr %k
  %v = getelementptr ptr, ptr %items, i64 %i
  %item = load ptr, ptr %v
  %error = call i32 %PyDict_SetItem(ptr %new, ptr %key, ptr %item)
  %next = add i64 %i, 1
  %bad = icmp ne i32 %error, 0
  br i1 %bad, label %failed, label %head
failed:
  call void %Py_DecRef(ptr %new)
  ret ptr null
end:
  call void @drop(ptr %items, i64 %count)
  ret ptr %new
}}
"""


def _apply_ir() -> str:
    """``apply(items, count, function)``: the same for what a Python function gives."""
    return f"""
define internal ptr @apply(ptr %items, i64 %count, ptr %function) nounwind {{
entry:
{_api("PyObject_Vectorcall")}
  %made = call ptr %PyObject_Vectorcall(ptr %function, ptr %items, i64 %count, ptr null)
  %none = icmp eq ptr %made, null
  br i1 %none, label %end, label %take
take:
  call void @drop(ptr %items, i64 %count)
  br label %end
end:
  ret ptr %made
}}
"""


def _build_ir() -> str:
    """``build(record, results, stack)``: the result of a call; takes over the references in ``results``.  Null, and all
    references given back, if Python raised."""
    return f"""
define internal ptr @build(ptr %record, ptr %results, ptr %stack) nounwind {{
entry:
{_api("Py_IncRef")}
{_load("rows", "%record", 8 * RECORD["result"], "ptr")}
{_load("nrows", "%record", 8 * RECORD["nresult"])}
{_load("noutputs", "%record", 8 * RECORD["noutputs"])}
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %push ]
  %top = phi i64 [ 0, %entry ], [ %above, %push ]
  %more = icmp slt i64 %i, %nrows
  br i1 %more, label %one, label %end
one:
  %at = mul i64 %i, {8 * len(RESULT)}
  %row = getelementptr i8, ptr %rows, i64 %at
{_load("make", "%row", 8 * RESULT["make"])}
{_load("number", "%row", 8 * RESULT["object"])}
{_load("count", "%row", 8 * RESULT["count"])}
{_load("keys", "%row", 8 * RESULT["keys"], "ptr")}
  %object = inttoptr i64 %number to ptr
  %base = sub i64 %top, %count
  %items = getelementptr ptr, ptr %stack, i64 %base
  switch i64 %make, label %fail [ i64 {MAKE_OUTPUT}, label %output i64 {MAKE_SAME}, label %same
    i64 {MAKE_TUPLE}, label %tuple i64 {MAKE_LIST}, label %list i64 {MAKE_DICT}, label %dict
    i64 {MAKE_CALL}, label %apply ]
output:
  %p = getelementptr ptr, ptr %results, i64 %number
  %result = load ptr, ptr %p
  store ptr null, ptr %p
  br label %check
same:
  call void %Py_IncRef(ptr %object)
  br label %check
{_cases("tuple", "list", dict="ptr %keys", apply="ptr %object")}
check:
  %v = phi ptr [ %result, %output ], [ %object, %same ], [ %made.tuple, %tuple ], [ %made.list, %list ],
    [ %made.dict, %dict ], [ %made.apply, %apply ]
  %none = icmp eq ptr %v, null
  br i1 %none, label %fail, label %push
push:
  store ptr %v, ptr %items
  %above = add i64 %base, 1
  %next = add i64 %i, 1
  br label %head
end:
  %whole = load ptr, ptr %stack
  ret ptr %whole
fail:
  call void @drop(ptr %stack, i64 %top)
  call void @drop(ptr %results, i64 %noutputs)
  ret ptr null
}}
"""


def _cases(*plain: str, **more: str) -> str:
    """Blocks that call the function of their name with the items, and what it takes besides."""
    return "\n".join(f"{name}:\n  %made.{name} = call ptr @{name}(ptr %items, i64 %count{extra})\n  br label %check"
                     for name, extra in (*((n, "") for n in plain), *((n, f", {x}") for n, x in more.items())))


def helpers() -> list[str]:
    return [_nbytes_ir(), _allocate_ir(), _references_ir("drop", "Py_DecRef"), _references_ir("hold", "Py_IncRef"),
            _find_pool_ir(), _arena_take_ir(), _arena_give_ir(),
            _named_ir(), _extent_ir(), _apart_ir(), _fetch_ir(),
            _sequence_ir("tuple", "PyTuple_New", "PyTuple_SetItem"),
            _sequence_ir("list", "PyList_New", "PyList_SetItem"), _dict_ir(), _apply_ir(), _build_ir()]
