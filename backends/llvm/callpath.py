"""The native call: a CPython builtin that checks arguments, allocates results and runs compiled code.

Here: how a callable is described, the tables that tell the native code about one program, the check that objects look
as it expects.  Not here: the native code itself (callpath_ir.py), what it calls (entry.py), anything unusual (the
Python fallback).  Read next: callpath_ir.py.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flowc.backends import buffers
from flowc.backends.llvm import engine, pool
from flowc.backends.llvm.callpath_ir import call_ir
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
    IN_DICT,
    IN_FIELD,
    IN_LIST,
    IN_TUPLE,
    INT_FLOAT32,
    INT_FLOAT64,
    INTEGER,
    LIST_ITEMS,
    MAKE_CALL,
    MAKE_DICT,
    MAKE_LIST,
    MAKE_OUTPUT,
    MAKE_SAME,
    MAKE_TUPLE,
    ND,
    NUMPY_SLOTS,
    OB_TYPE,
    OBJECT,
    RECORD,
    SAME,
    SAME_DIM,
    SELF_DATA,
    SIZE,
    TUPLE_ITEMS,
    WORKING,
)
from flowc.backends.llvm.entry import buffer_slots, hidden_symbols
from flowc.dataclass import dataclass
from flowc.dims import Dim
from flowc.plan import Plan
from flowc.types import DType, Type


@dataclass(frozen=True)
class Same:
    """An argument that must be this very object and is not passed on, or a part of the result: None, a string."""

    value: Any


@dataclass(frozen=True)
class Container:
    """An argument that is taken apart, or a part of the result that is built.

    layout: ``tuple``, ``list`` or ``dict``; also ``namedtuple`` and ``fields`` (attributes that the object holds
      itself) for arguments, ``call`` for results.  items: of an argument as in ``CallSpec.args``, of a result as in
      ``CallSpec.result``.  keys: of a dict and of fields, strings.
    cls: the class that an argument has, or what is called with the items to build the result.
    """

    layout: str
    items: tuple[Any, ...]
    keys: tuple[Any, ...] = ()
    cls: Callable[..., Any] | None = None


@dataclass(frozen=True)
class CallSpec:
    """How a callable is called.

    args: per positional argument ``array``, ``float``, ``int``, ``bool`` (a Python scalar of exactly that type for a
      rank-0 param), :class:`Same` or a :class:`Container` of these; all but ``Same`` stand for the params of the plan
      in order.
    keywords: names and the like of what follows in a call, in its order; their params are in the order of the names.
    result: the number of an output, :class:`Same` or a :class:`Container` of these, in which every output occurs once.
    """

    args: tuple[str | Same | Container, ...]
    result: int | Same | Container = 0
    keywords: tuple[tuple[str, str | Same | Container], ...] = ()
    name: str = "compiled"
    doc: str = ""


class _MethodDef(ctypes.Structure):
    _fields_ = [("ml_name", ctypes.c_char_p), ("ml_meth", ctypes.c_void_p), ("ml_flags", ctypes.c_int),
                ("ml_doc", ctypes.c_char_p)]


METH_FASTCALL_KEYWORDS = 0x80 | 0x2


class _Self(bytes):
    """``self`` of the builtin: its bytes are the address of the record, and it owns everything the record names."""

    record: _Record


class _Record:
    """The record of one program and what must live as long; frees the working memory kept between calls."""

    def __init__(self, keep: Sequence[Any]):
        self.fields = (ctypes.c_int64 * len(RECORD))()
        self.keep = list(keep)
        self.method = _MethodDef()

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.fields[RECORD[name]] = value

    def table(self, rows: Sequence[Sequence[int]]) -> int:
        """Address of a table of 8-byte numbers that lives with the record."""
        flat = [x for row in rows for x in row]
        memory = (ctypes.c_int64 * max(1, len(flat)))(*flat)
        self.keep.append(memory)
        return ctypes.addressof(memory)

    def release(self) -> None:
        """Free the working memory unless a call uses it now."""
        if not self.fields[RECORD["arena_lock"]]:  # calls take it only under the GIL
            array, self.fields[RECORD["arena"]] = self.fields[RECORD["arena"]], 0
            self.fields[RECORD["arena_size"]] = 0
            _drop(ctypes.c_void_p(array))

    def __del__(self) -> None:
        self.release()


_drop = ctypes.pythonapi.Py_DecRef  # null is fine


_records: weakref.WeakSet[_Record] = weakref.WeakSet()


def release() -> None:
    """Give the working memory that native calls keep back to the system."""
    for record in list(_records):
        record.release()


class _Native:
    """The loaded code of the native call with its ``@api`` table filled."""

    def __init__(self, store: engine.Store | None, level: int):
        self._store = store
        self.code = engine.compile_module(call_ir(), store=store, level=level)
        self.address = self.code.address("call")
        self.api = (ctypes.c_int64 * len(API)).from_address(self.code.address("api"))
        self.singletons = [np.ndarray, float, int, True, False, self._find_pool]
        names = ["ndarray", "float", "int", "true", "false", "find_pool"]
        for name, obj in zip(names, self.singletons, strict=True):
            self.api[API[name]] = id(obj)
        table = _numpy_table()
        for name, slot in NUMPY_SLOTS.items():
            self.api[API[name]] = table[slot]
        for name in API:
            if name.startswith("Py") and name not in NUMPY_SLOTS:
                self.api[API[name]] = _address(getattr(ctypes.pythonapi, name))

    def _find_pool(self) -> None:
        """Called once by native code, when the first work worth a thread arrives."""
        try:
            threads = pool.default(self._store)
            if threads is not None:
                threads.threads = pool.num_threads()
                self.api[API["pool"]] = threads.address
        except Exception:  # nothing may be raised in the middle of a native call; without a pool it runs serially
            pass
        self.api[API["pool_known"]] = 1


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _numpy_table() -> Any:
    """NumPy's table of C functions."""
    core = importlib.import_module("numpy._core._multiarray_umath")
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.cast(get(core._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))


def _layout_holds() -> bool:
    """Do Python's and NumPy's objects look as the native call reads them?"""
    if (sys.implementation.name != "cpython" or "t" in getattr(sys, "abiflags", "")
            or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8
            or np.ndarray.__basicsize__ < FLAGS + 4 or float.__basicsize__ < HEADER + 8):
        return False

    def word(obj: Any, offset: int, ty: Any = ctypes.c_int64) -> Any:
        return ty.from_address(id(obj) + offset).value

    sample, number, text = np.zeros((3, 5), np.float32), 2.5, b"flowc reads this"
    turned, pair = sample.T, (number, text)
    items, mapping = [number, text], {"a": number, "b": text}
    shape = (ctypes.c_int64 * 2).from_address(word(sample, DIMS))
    table = _numpy_table()
    return (word(sample, OB_TYPE) == id(np.ndarray) and word(sample, DATA) == sample.ctypes.data
            and word(sample, ND, ctypes.c_int32) == 2 and list(shape) == [3, 5]
            and word(sample, DESCR) == id(sample.dtype) and word(number, HEADER, ctypes.c_double) == number
            and word(sample, FLAGS, ctypes.c_int32) & ARRAY_FLAGS == ARRAY_FLAGS
            and word(turned, FLAGS, ctypes.c_int32) & ARRAY_FLAGS == 0x100
            and word(text, SELF_DATA) == int.from_bytes(text[:8], "little")
            and [word(c, SIZE) for c in (pair, items, mapping)] == [2, 2, 2]
            and word(pair, TUPLE_ITEMS + 8) == id(text)
            and ctypes.c_int64.from_address(word(items, LIST_ITEMS) + 8).value == id(text)
            and table[NUMPY_SLOTS["ndarray"]] == id(np.ndarray) and np.dtype(np.float32) is sample.dtype)


WARM_UP = 4  # callables that make do with a quickly compiled native call

_native_lock = threading.Lock()
_made: dict[int, _Native] = {}  # by level of the code generator
_asked = 0


@functools.cache
def _usable() -> bool:
    try:
        return _layout_holds()
    except (AttributeError, ImportError, ValueError):
        return False


def wanted() -> list[engine.Source]:
    """The module of the native call that this process will ask for."""
    return [engine.Source(call_ir(), engine.QUICK)] if not _made and _usable() else []


def on_its_way() -> bool:
    """Is the native call being translated in the background, so that asking for it now would mean to wait?"""
    return not _made and any(engine.begun(source) is False for source in wanted())


def _native(store: engine.Store | None) -> _Native | None:
    """The native call for one more callable; None where it cannot be used."""
    global _asked
    if not _usable():
        return None
    with _native_lock:
        _asked += 1
        level = engine.OPT_LEVEL if engine.OPT_LEVEL in _made or _best_is_there(store) else engine.QUICK
        if level not in _made:
            _made[level] = _Native(store, level)
        return _made[level]


def _best_is_there(store: engine.Store | None) -> bool:
    """Is the native call at hand as the code generator makes it best?  Where no store has it, the first callables of a
    process share a quickly compiled one, which takes most of the time out of the first compile and costs each of their
    calls some 25 ns; for later ones it is compiled in the background."""
    best = engine.Source(call_ir())
    if store is not None and store.get(engine.object_key(best.text)) is not None:
        return True
    if _asked > WARM_UP:
        if pool.num_threads() < 2:
            return True
        engine.begin([best], store)
    return bool(engine.begun(best))


_FLOATS = {"f64": FLOAT64, "f32": FLOAT32}
_INTS_TO_FLOAT = {"f64": INT_FLOAT64, "f32": INT_FLOAT32}


def _scalar_kind(arg: str, dtype: DType) -> int | None:
    """How a Python scalar becomes an element of ``dtype``; None if not here."""
    if arg == "bool":
        return BOOL if dtype.kind == "b" else None
    if arg == "float":
        return _FLOATS.get(dtype.name)
    if arg == "int":
        return INTEGER if dtype.integer else _INTS_TO_FLOAT.get(dtype.name)
    return None


class _Inputs:
    """The rows that say what arguments look like: containers before their items."""

    def __init__(self, plan: Plan, record: _Record):
        table = plan.table()
        self.record = record
        self.hidden = hidden_symbols(plan)
        self.order = {s: i for i, s in enumerate([*plan.symbols, *self.hidden.values()])}
        self.bound: set[int] = set()
        self.params = iter(enumerate(table[p].type for p in plan.params))
        self.rows: list[list[int]] = []
        self.held: list[int] = []  # rows of arrays that lie in containers
        self.note: dict[int, int] = {}  # param -> number under which its array is noted

    def table(self, spec: CallSpec) -> list[list[int]] | None:
        """One row per object, None if one cannot be taken natively or a size stays unknown."""
        named = sorted((name, len(spec.args) + i, arg) for i, (name, arg) in enumerate(spec.keywords))
        for i, arg in (*enumerate(spec.args), *((i, arg) for _, i, arg in named)):
            if not self.add(arg, IN_ARGS, 0, i):
                return None
        if next(self.params, None) is not None or len(self.bound) != len(self.order):
            return None
        rest = [i for i in range(len(self.rows)) if i not in set(self.held)]
        note = {row: n for n, row in enumerate([*self.held, *rest])}
        self.note = {row[4]: note[i] for i, row in enumerate(self.rows) if row[0] == ARRAY}
        return [[*found, whence, note[holder], index, note[i]]
                for i, (*found, whence, holder, index) in enumerate(self.rows)]

    def add(self, arg: str | Same | Container, whence: int, holder: int, index: int) -> bool:
        """The rows of an argument found in ``whence`` of row ``holder`` at ``index``."""
        here = [whence, holder, index]
        if isinstance(arg, Same):
            self.record.keep.append(arg.value)
            self.rows.append([SAME, id(arg.value), 0, 0, 0, 0, *here])
            return True
        if isinstance(arg, Container):
            at = len(self.rows)
            self.record.keep.append((arg.cls, arg.keys))
            looks = OBJECT if arg.layout == "fields" else CONTAINER
            self.rows.append([looks, id(arg.cls), len(arg.items), 0, 0, 0, *here])
            found = [id(k) for k in arg.keys] if arg.layout in ("dict", "fields") else range(len(arg.items))
            return all(self.add(x, _WHENCE[arg.layout], at, i) for x, i in zip(arg.items, found, strict=True))
        slot, type_ = next(self.params)
        if arg == "array":
            dims = [_dim_row(d, self.order, self.hidden, self.bound) for d in type_.shape]
            self.record.keep.append(type_.dtype.numpy)
            if whence != IN_ARGS:
                self.held.append(len(self.rows))
            self.rows.append([ARRAY, id(type_.dtype.numpy), type_.rank, self.record.table(dims), slot,
                              type_.dtype.bytes, *here])
            return True
        kind = _scalar_kind(arg, type_.dtype)
        if kind is None or type_.rank:
            return False
        limits = [0, 0]
        if kind == INTEGER:
            info = np.iinfo(type_.dtype.numpy)
            limits = [int(info.min), min(int(info.max), 2**63 - 1)]
        self.rows.append([kind, 0, 0, self.record.table([limits]), slot, 0, *here])
        return True


_WHENCE = {"tuple": IN_TUPLE, "namedtuple": IN_TUPLE, "list": IN_LIST, "dict": IN_DICT,
           "fields": IN_FIELD}
_MAKE = {"tuple": MAKE_TUPLE, "list": MAKE_LIST, "dict": MAKE_DICT, "call": MAKE_CALL}


def _result_rows(part: int | Same | Container, record: _Record) -> list[list[int]]:
    """How the result is built on a stack: items before what they are in."""
    if isinstance(part, Same):
        record.keep.append(part.value)
        return [[MAKE_SAME, id(part.value), 0, 0]]
    if not isinstance(part, Container):
        return [[MAKE_OUTPUT, part, 0, 0]]
    record.keep.append((part.cls, part.keys))
    keys = record.table([[id(k) for k in part.keys]])
    rows = [row for x in part.items for row in _result_rows(x, record)]
    return [*rows, [_MAKE[part.layout], id(part.cls), len(part.items), keys]]


def _outputs_of(part: int | Same | Container) -> list[int]:
    """The numbers of the outputs in a result, sorted."""
    if isinstance(part, Container):
        return sorted(i for x in part.items for i in _outputs_of(x))
    return [] if isinstance(part, Same) else [part]


def _depth(rows: Sequence[Sequence[int]]) -> int:
    """The most objects that lie on the stack at a time."""
    most = now = 0
    for _, _, count, _ in rows:
        now += 1 - count
        most = max(most, now)
    return most


def _dim_row(d: Any, order: Mapping[str, int], hidden: Mapping[Any, str], bound: set[int]) -> tuple[int, int]:
    if not isinstance(d, Dim):
        return CONSTANT_DIM, d
    i = order[hidden[d]] if d in hidden else order[str(d.atom())]
    if i in bound:
        return SAME_DIM, i
    bound.add(i)
    return BIND_DIM, i


def _output_rows(plan: Plan, constants: Iterable[str], note: Mapping[int, int], record: _Record
                 ) -> list[list[int]] | None:
    """One row per output; None if one cannot be made natively.  note: where the array of a param is noted."""
    table = plan.table()
    slots = buffer_slots(plan, constants)
    rows: list[list[int]] = []
    at = 0
    for i, name in enumerate(plan.outputs):
        type_, place = table[name].type, table[name].place
        if place.kind == "arena":
            return None
        source = slots[("constant", name) if place.kind == "constant" else (place.kind, place.index)]
        own = place.kind == "output" and place.index == i
        over = note.get(place.over) if own and place.over >= 0 else -1
        if over is None:
            return None  # a scalar, which has no memory to take over
        record.keep.append(type_.dtype.numpy)
        rows.append([id(type_.dtype.numpy), type_.rank, at, type_.dtype.bytes, -1 if own else source, over])
        at += type_.rank
    return rows


_BYTES = np.dtype(np.uint8)


def _allocator(types: Sequence[Type]) -> Callable[[int, int], np.ndarray]:
    """``alloc(k, address of its shape)`` for outputs that are large; ``alloc(WORKING, address of a number of bytes)``
    for working memory, which the native call aligns."""
    def alloc(k: int, address: int) -> np.ndarray:
        if k == WORKING:
            return buffers.empty((ctypes.c_int64.from_address(address).value + buffers.ALIGN,), _BYTES)
        shape = (ctypes.c_int64 * types[k].rank).from_address(address)
        return buffers.empty(tuple(shape), types[k].dtype.numpy)
    return alloc


def make_callable(plan: Plan, spec: CallSpec, entry: engine.Code, fallback: Callable[..., Any],
                  constants: Mapping[str, np.ndarray], store: engine.Store | None = None) -> Callable[..., Any]:
    """A builtin that runs the compiled ``entry`` (its ``@run`` and ``@sizes``) for arguments that fit ``spec`` and
    calls ``fallback(*args, **kwargs)`` for all others.

    It keeps everything it needs alive and frees it with itself.  Returns ``fallback`` itself where a native call is
    not possible: another Python than CPython with the GIL, a size that no argument tells, a 16-bit float scalar, a
    result in which not every output occurs once.
    """
    native = _native(store)
    table = plan.table()
    if native is None or _outputs_of(spec.result) != list(range(len(plan.outputs))):
        return fallback
    alloc = _allocator([table[o].type for o in plan.outputs])
    held = list(constants.values())
    record = _Record([native, entry, fallback, spec, alloc, held])
    taken = _Inputs(plan, record)
    inputs = taken.table(spec)
    outputs = _output_rows(plan, constants, taken.note, record)
    if inputs is None or outputs is None:
        return fallback
    result = [] if spec.result == 0 and len(outputs) == 1 else _result_rows(spec.result, record)
    nparams, nout = len(plan.params), len(outputs)
    frame: dict[str, int] = {}
    end, nflat = nparams + nout + len(held), sum(table[o].type.rank for o in plan.outputs)
    for region, size in (  # behind the pointers to all buffers
            ("scalars", nparams), ("results", nout), ("dims", len(taken.order)), ("flat", nflat + 2),
            ("objects", len(inputs)), ("stack", _depth(result))):
        frame[f"at_{region}"], end = end, end + size
    names = [sys.intern(name) for name, _ in spec.keywords]
    record.keep.append(names)
    record.set(
        fallback=id(fallback), nargs=len(spec.args), nkeywords=len(names),
        keywords=record.table([[id(n) for n in names]]), ninputs=len(inputs), nheld=len(taken.held),
        ndonated=sum(row[-1] >= 0 for row in outputs), nparams=nparams, noutputs=nout, nconstants=len(held),
        nflat=nflat, nresult=len(result), run=entry.address("run"), sizes=entry.address("sizes"), alloc=id(alloc),
        inputs=record.table(inputs), outputs=record.table(outputs), result=record.table(result),
        constants=record.table([[a.ctypes.data for a in held]]), **frame, frame=end)
    name, doc = spec.name.encode(), spec.doc.encode()
    record.keep += [name, doc]
    record.method = _MethodDef(name, native.address, METH_FASTCALL_KEYWORDS, doc)
    owner = _Self(ctypes.addressof(record.fields).to_bytes(8, "little"))
    owner.record = record
    _records.add(record)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    return new(ctypes.addressof(record.method), owner, "flowc.compiled")
