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
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowc.backends import buffers
from flowc.backends.llvm import engine, pool
from flowc.backends.llvm.callpath_ir import (
    API,
    ARRAY,
    ARRAY_FLAGS,
    BIND_DIM,
    BOOL,
    CONSTANT_DIM,
    DATA,
    DESCR,
    DIMS,
    FLAGS,
    FLOAT32,
    FLOAT64,
    HEADER,
    INT_FLOAT32,
    INT_FLOAT64,
    INTEGER,
    ND,
    NUMPY_SLOTS,
    OB_TYPE,
    PACK,
    RECORD,
    SAME,
    SAME_DIM,
    SELF_DATA,
    SINGLE,
    TUPLE,
    call_ir,
)
from flowc.backends.llvm.entry import buffer_slots, hidden_symbols
from flowc.dims import Dim
from flowc.plan import Plan
from flowc.types import DType, Type


@dataclass(frozen=True)
class Same:
    """An argument that must be this very object and is not passed on: None, True, a string, a bound self."""

    value: Any


@dataclass(frozen=True)
class CallSpec:
    """How a callable is called.

    args: per positional argument ``array``, ``float``, ``int``, ``bool`` (a Python scalar of exactly that type for a
      rank-0 param) or :class:`Same`; all but ``Same`` stand for the params of the plan in order.
    result: ``array`` (the only output), ``tuple``, or a function of all outputs that makes the result.
    """

    args: tuple[str | Same, ...]
    result: str | Callable[..., Any] = "array"
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
            raw, self.fields[RECORD["arena"]] = self.fields[RECORD["arena"]], 0
            self.fields[RECORD["arena_size"]] = 0
            _raw_free(raw)

    def __del__(self) -> None:
        self.release()


def _raw_free(address: int, free: Any = ctypes.pythonapi.PyMem_RawFree) -> None:
    if address:
        free(ctypes.c_void_p(address))


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
    if (sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED")
            or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8
            or np.ndarray.__basicsize__ < FLAGS + 4 or float.__basicsize__ < HEADER + 8):
        return False

    def word(obj: Any, offset: int, ty: Any = ctypes.c_int64) -> Any:
        return ty.from_address(id(obj) + offset).value

    sample, number, text = np.zeros((3, 5), np.float32), 2.5, b"flowc reads this"
    turned = sample.T
    shape = (ctypes.c_int64 * 2).from_address(word(sample, DIMS))
    table = _numpy_table()
    return (word(sample, OB_TYPE) == id(np.ndarray) and word(sample, DATA) == sample.ctypes.data
            and word(sample, ND, ctypes.c_int32) == 2 and list(shape) == [3, 5]
            and word(sample, DESCR) == id(sample.dtype) and word(number, HEADER, ctypes.c_double) == number
            and word(sample, FLAGS, ctypes.c_int32) & ARRAY_FLAGS == ARRAY_FLAGS
            and word(turned, FLAGS, ctypes.c_int32) & ARRAY_FLAGS == 0x100
            and word(text, SELF_DATA) == int.from_bytes(text[:8], "little")
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
    return engine.begun(best)


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


def _input_rows(plan: Plan, spec: CallSpec, record: _Record) -> list[list[int]] | None:
    """One row per argument, None if an argument cannot be taken natively or a size stays unknown."""
    table = plan.table()
    hidden = hidden_symbols(plan)
    order = {s: i for i, s in enumerate([*plan.symbols, *hidden.values()])}
    bound: set[int] = set()
    rows: list[list[int]] = []
    params = iter(enumerate(table[p].type for p in plan.params))
    for arg in spec.args:
        if isinstance(arg, Same):
            record.keep.append(arg.value)
            rows.append([SAME, id(arg.value), 0, 0, 0])
            continue
        slot, type_ = next(params)
        if arg == "array":
            dims = [_dim_row(d, order, hidden, bound) for d in type_.shape]
            record.keep.append(type_.dtype.numpy)
            rows.append([ARRAY, id(type_.dtype.numpy), type_.rank, record.table(dims), slot])
            continue
        kind = _scalar_kind(arg, type_.dtype)
        if kind is None or type_.rank:
            return None
        limits = [0, 0]
        if kind == INTEGER:
            info = np.iinfo(type_.dtype.numpy)
            limits = [int(info.min), min(int(info.max), 2**63 - 1)]
        rows.append([kind, 0, 0, record.table([limits]), slot])
    return rows if next(params, None) is None and len(bound) == len(order) else None


def _dim_row(d: Any, order: Mapping[str, int], hidden: Mapping[Any, str], bound: set[int]) -> tuple[int, int]:
    if not isinstance(d, Dim):
        return CONSTANT_DIM, d
    i = order[hidden[d]] if d in hidden else order[str(d.atom())]
    if i in bound:
        return SAME_DIM, i
    bound.add(i)
    return BIND_DIM, i


def _output_rows(plan: Plan, constants: Iterable[str], record: _Record) -> list[list[int]] | None:
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
        record.keep.append(type_.dtype.numpy)
        rows.append([id(type_.dtype.numpy), type_.rank, at, type_.dtype.bytes, -1 if own else source])
        at += type_.rank
    return rows


def _allocator(types: Sequence[Type]) -> Callable[[int, int], np.ndarray]:
    """``alloc(k, address of its shape)`` for outputs that are large."""
    def alloc(k: int, address: int) -> np.ndarray:
        shape = (ctypes.c_int64 * types[k].rank).from_address(address)
        return buffers.empty(tuple(shape), types[k].dtype.numpy)
    return alloc


_RESULTS = {"array": SINGLE, "tuple": TUPLE}


def make_callable(plan: Plan, spec: CallSpec, entry: engine.Code, fallback: Callable[..., Any],
                  constants: Mapping[str, np.ndarray], store: engine.Store | None = None) -> Callable[..., Any]:
    """A builtin that runs the compiled ``entry`` (its ``@run`` and ``@sizes``) for arguments that fit ``spec`` and
    calls ``fallback(*args, **kwargs)`` for all others.

    It keeps everything it needs alive and frees it with itself.  Returns ``fallback`` itself where a native call is
    not possible: another Python than CPython with the GIL, a size that no argument tells, a 16-bit float scalar.
    """
    native = _native(store)
    table = plan.table()
    if native is None or spec.result == "array" and len(plan.outputs) != 1:
        return fallback
    types = [table[o].type for o in plan.outputs]
    alloc = _allocator(types)
    held = list(constants.values())
    record = _Record([native, entry, fallback, spec, alloc, held])
    inputs, outputs = _input_rows(plan, spec, record), _output_rows(plan, constants, record)
    if inputs is None or outputs is None:
        return fallback
    nparams, nout, nconst = len(plan.params), len(outputs), len(held)
    buffers_, nflat = nparams + nout + nconst, sum(t.rank for t in types)
    dims = len(plan.symbols) + len(hidden_symbols(plan))
    record.set(
        fallback=id(fallback), nargs=len(inputs), nparams=nparams, noutputs=nout, nconstants=nconst, nflat=nflat,
        run=entry.address("run"), sizes=entry.address("sizes"), alloc=id(alloc),
        result=_RESULTS[spec.result] if isinstance(spec.result, str) else PACK,
        pack=0 if isinstance(spec.result, str) else id(spec.result), inputs=record.table(inputs),
        outputs=record.table(outputs), constants=record.table([[a.ctypes.data for a in held]]),
        at_scalars=buffers_, at_results=buffers_ + nparams, at_dims=buffers_ + nparams + nout,
        at_flat=buffers_ + nparams + nout + dims, frame=buffers_ + nparams + nout + dims + nflat + 2)
    name, doc = spec.name.encode(), spec.doc.encode()
    record.keep += [name, doc]
    record.method = _MethodDef(name, native.address, METH_FASTCALL_KEYWORDS, doc)
    owner = _Self(ctypes.addressof(record.fields).to_bytes(8, "little"))
    owner.record = record
    _records.add(record)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    return new(ctypes.addressof(record.method), owner, "flowc.compiled")
