"""Tensors: what stands for arrays while a function is traced.

Here: ``Trace`` (one function being traced), ``Tensor``, views and in-place writes, what cannot be asked of a traced
value.  Not here: what operators, indices and functions do (numpy_core.py and the numpy_* rooms above it, which hand
their functions down in ``rooms``), tracing a function (trace.py).  Read next: trace.py.

NumPy's views alias their base.  A view here is a link (base, get, put): a write to a view puts the new value into its
base, and whoever shares the base rebuilds its own value at the next use.  Where NumPy makes a view or a copy depending
on the memory layout (reshape), a write cuts the link and the old base may not be read again.
"""

from __future__ import annotations

import importlib
import linecache
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from flowc.diag import FlowcTypeError, FlowcValueError, Loc, UnsupportedError, caller_loc
from flowc.dims import DimLike, Range, symbols
from flowc.graph import CONSTANT, Node, param
from flowc.proofs import known_le
from flowc.size import SizeUnknownError, as_size, rooms, stack
from flowc.types import Type


def current_trace() -> Trace | None:
    """The innermost trace of this thread or task, or None."""
    traces = stack.get()
    return traces[-1] if traces else None


class Trace:
    """One function being traced.

    ranges: bounds of symbolic sizes, tightened by what the function needs (``x[0]`` needs a size of at least 1).
    captures: values of the enclosing trace used here, each with the parameter that stands for it.
    persistent: tensors may also be used while no trace is active (graph layer, lazy arrays).
    """

    def __init__(self, name: str, ranges: Mapping[str, Range] | None = None, *, persistent: bool = False,
                 tensor_class: type[Tensor] | None = None):
        outer = current_trace()
        self.name, self.persistent, self.closed = name, persistent, False
        self.tensor_class = tensor_class or Tensor
        self.ranges: dict[str, Range] = dict(ranges) if ranges is not None else outer.ranges if outer else {}
        self.params: list[Node] = []
        self.names: dict[Node, str] = {}
        self.captures: dict[Node, Node] = {}
        self.scalars: dict[Any, Node] = {}  # constants by value, and broadcast to a shape: made once
        self.writes = 0  # counts in-place writes: a view is fresh while it has not moved

    @contextmanager
    def active(self) -> Iterator[Trace]:
        """Make this the current trace."""
        token = stack.set((*stack.get(), self))
        try:
            yield self
        finally:
            stack.reset(token)

    def close(self) -> None:
        """From now on every use of this trace's tensors is an error."""
        self.closed = True

    def _param(self, name: str, type: Type) -> Node:
        plain_name = re.sub(r"\W+", "_", name).strip("_") or "arg"
        if plain_name[0].isdigit():
            plain_name = f"arg{plain_name}"
        taken = {p.attrs["name"] for p in self.params} if len(self.params) < 64 else self._taken()
        unique, k = plain_name, 1
        while unique in taken:
            k += 1
            unique = f"{plain_name}_{k}"
        node = param(unique, type)
        self.params.append(node)
        self.names[node] = name
        return node

    def _taken(self) -> set[str]:
        return {p.attrs["name"] for p in self.params}

    def add_param(self, type: Type, name: str, weak: bool = False) -> Tensor:
        """A new parameter of the graph."""
        return self.wrap(self._param(name, type), weak=weak)

    def wrap(self, node: Node, weak: bool = False, corder: bool = False, cell: bool = False) -> Tensor:
        return self.tensor_class(self, node, weak, corder, cell)

    def read(self, x: Tensor) -> Node:
        """The node of ``x`` for use in this trace: values of enclosing traces are captured as parameters."""
        if x._trace is self:
            if not self.closed:
                return x.node
            raise leaked(x)
        traces = stack.get()
        if x._trace.closed or x._trace not in traces:
            raise leaked(x)
        node = x.node
        for t in traces[traces.index(x._trace) + 1:]:
            node = t.capture(node, x)
        return node

    def capture(self, node: Node, x: Tensor) -> Node:
        if node.op is CONSTANT:
            return node
        if node not in self.captures:
            name = x._trace.names.get(node, "outer")
            self.captures[node] = self._param(name, node.type)
        return self.captures[node]

    def require(self, low: DimLike, high: DimLike, what: str, cure: str) -> None:
        """``low <= high`` from here on: proved, or made true by a tighter range of a symbol, which callers check.
        FlowcValueError (T009) if it is false for all sizes, SizeUnknownError if no single range says it."""
        known = known_le(low, high, self.ranges)
        if known:
            return
        gap = high - low
        if known is False or isinstance(gap, int):
            raise FlowcValueError("T009", f"{what}: needs {low} <= {high}", loc=caller_loc(), cure=cure)
        names, constant_term, slope = list(symbols(gap)), 0, 0
        for mono, c in gap.terms:
            if not mono:
                constant_term = c
            elif len(mono) == 1 and isinstance(mono[0][0], str) and mono[0][1] == 1:
                slope = c
            else:
                names = []
        if len(names) != 1:
            raise SizeUnknownError(f"{what}: needs {low} <= {high}", [gap], cure)
        lo, hi = self.ranges.get(names[0], (0, None))
        if slope > 0:
            lo = max(lo, -(constant_term // slope)) if isinstance(lo, int) else lo
        else:
            top = constant_term // -slope
            hi = top if not isinstance(hi, int) else min(hi, top)
        if isinstance(lo, int) and isinstance(hi, int) and lo > hi:
            raise FlowcValueError("T009", f"{what}: no size {names[0]} does for this and for what came before",
                                  loc=caller_loc(), cure=cure)
        self.ranges[names[0]] = (lo, hi)


class View(NamedTuple):
    """How a view hangs on its base.  get(base) and put(base, new value of the view) are nodes.

    put is None where NumPy refuses writes, ``why`` says so.  certain: False where NumPy may make a copy instead.
    """

    get: Callable[[Node], Node]
    put: Callable[[Node, Node], Node] | None
    why: str = ""
    certain: bool = True


class _AttributeMissing(UnsupportedError, AttributeError):
    """An attribute of NumPy arrays that traced values lack."""


def _operator(ufunc: np.ufunc, swapped: bool = False) -> Any:
    if swapped:
        return lambda self, other: rooms.operator(ufunc, other, self)
    return lambda self, other: rooms.operator(ufunc, self, other)


def _inplace(ufunc: np.ufunc) -> Any:
    return lambda self, other: rooms.inplace(ufunc, self, other)


class Tensor:
    """An array of a function being traced: dtype and shape are known, values are not.

    weak: stands for a Python number, which takes the dtype of what it meets.  A tensor without axes is a scalar as in
    NumPy (``s += 1`` rebinds the name) unless it is an array by making (``zeros(())``, ``x[..., 0]``).
    """

    __slots__ = ("__weakref__", "_base", "_cell", "_corder", "_lost", "_node", "_source", "_stamp", "_trace", "_view",
                 "weak")
    __array_priority__ = 1000
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, trace: Trace, node: Node, weak: bool = False, corder: bool = False, cell: bool = False):
        self._trace, self._node, self.weak, self._corder, self._cell = trace, node, weak, corder, cell
        self._base: Tensor | None = None
        self._view: View | None = None
        self._lost: Loc | None = None  # where an ambiguous view of this base was written
        self._source: Node | None = None  # the base's node that this view's node was built from
        self._stamp = 0

    # ---- value, base and views

    @property
    def node(self) -> Node:
        """The graph node of the current value."""
        if self._base is not None and self._stamp != self._trace.writes:
            self._refresh()
        if self._lost is not None:
            raise self._ambiguous(self._lost)
        return self._node

    def _refresh(self) -> None:
        chain, t = [], self
        while t._base is not None:
            chain.append(t)
            t = t._base
        if t._lost is not None:
            raise self._ambiguous(t._lost)
        for v in reversed(chain):
            assert v._base is not None and v._view is not None
            if v._source is not v._base._node:
                if not v._view.certain:
                    raise self._ambiguous(caller_loc())
                v._source = v._base._node
                v._node = v._view.get(v._source)
            v._stamp = self._trace.writes

    def alias(self, link: View, corder: bool = False) -> Tensor:
        """A new tensor that is a view of this one."""
        node = read(self)
        if self._trace is not current_trace() and current_trace() is not None:
            return wrap(link.get(node))  # of an enclosing trace: cannot be written, so it needs no link
        out = self._trace.wrap(link.get(node), corder=corder, cell=True)
        out._base, out._view, out._source, out._stamp = self, link, self._node, self._trace.writes
        return out

    def write(self, new: Node) -> None:
        """Give this tensor, and all that share its memory, the value ``new`` (same type)."""
        top = current_trace()
        if top is not self._trace and (top is not None or not self._trace.persistent or self._trace.closed):
            if self._trace.closed or self._trace not in stack.get():
                raise leaked(self)
            raise FlowcTypeError("T005", f"a function traced inside {self._trace.name!r} writes into a value of it",
                                 loc=caller_loc(), notes=[describe(self)],
                                 cure="return the new value from the inner function and write it outside")
        _ = self.node  # brings all bases up to date
        t: Tensor | None = self
        while t is not None:
            if t._view is not None and t._view.certain and t._view.put is None:
                raise FlowcValueError("T007", t._view.why, loc=caller_loc(), notes=[describe(self)],
                                      cure="write into a copy: x = x.copy()")
            t = t._base if t._view is None or t._view.certain else None
        self._trace.writes += 1
        t, value = self, new
        while True:
            t._node, t._stamp = value, self._trace.writes
            if t._base is None or t._view is None:
                return
            if not t._view.certain:
                root = t._base
                while root._base is not None:
                    root = root._base
                root._lost = caller_loc() or Loc("?", 0)
                t._base = t._view = None
                return
            assert t._view.put is not None
            t._source = value = t._view.put(t._base._node, value)
            t = t._base

    def _ambiguous(self, loc: Loc | None) -> FlowcValueError:
        return FlowcValueError(
            "T007", "whether this value changed depends on memory layout: a reshaped array shares memory with its "
            "base or does not, and one of the two was written", loc=caller_loc(),
            notes=[describe(self)] + ([f"written at {loc}"] if loc else []),
            cure="copy before writing: y = x.reshape(...).copy()")

    # ---- what is known

    @property
    def type(self) -> Type:
        return self._node.type

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(d if type(d) is int else as_size(d) for d in self._node.type.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._node.type.dtype.numpy

    @property
    def ndim(self) -> int:
        return len(self._node.type.shape)

    @property
    def size(self) -> Any:
        return as_size(self._node.type.size)

    @property
    def itemsize(self) -> int:
        return self._node.type.dtype.bytes

    @property
    def nbytes(self) -> Any:
        return as_size(self._node.type.nbytes)

    @property
    def device(self) -> str:
        return "cpu"

    def __repr__(self) -> str:
        return f"Tensor({self._node.type}{', weak' if self.weak else ''}) traced in {self._trace.name}"

    def __format__(self, spec: str) -> str:
        return repr(self)

    # ---- what is not known

    def __bool__(self) -> bool:
        raise value_needed("the truth of a traced value is not known while the function is traced", self,
                           "choose element by element with flowc.numpy.where(condition, a, b)")

    def _number(self) -> Any:
        raise value_needed("a traced value is no Python number", self,
                           "use np.* or flowc.numpy functions, which take traced values; math functions, range() and "
                           "indices of lists or NumPy arrays need numbers (flowc.numpy.asarray(a)[i] is fine); make "
                           "arrays that are written to with flowc.numpy.zeros")

    __int__ = __float__ = __complex__ = __index__ = _number

    def item(self, *args: Any) -> Any:
        raise value_needed("item() needs a value that is not there while the function is traced", self,
                           "keep the tensor: one without axes works as a number")

    def tolist(self) -> Any:
        raise value_needed("tolist() needs values that are not there while the function is traced", self,
                           "return the tensor and call tolist() on the result")

    def __len__(self) -> int:
        n = self._first_axis("len() of")
        if isinstance(n, int):
            return n
        raise SizeUnknownError(f"len() needs a number, but the first axis has the symbolic size {n}", [n],
                               "use x.shape[0], which may be symbolic")

    def __iter__(self) -> Iterator[Tensor]:
        n = self._first_axis("iteration over")
        if not isinstance(n, int):
            raise SizeUnknownError(f"iteration over an axis of the symbolic size {n}", [n],
                                   "work on the whole axis with NumPy functions")
        return (self[i] for i in range(n))

    def _first_axis(self, what: str) -> Any:
        if not self.ndim:
            raise FlowcTypeError("T003", f"{what} a tensor without axes", loc=caller_loc(), notes=[describe(self)],
                                 cure="use the tensor as a number, or give it an axis: x[None]")
        return self._node.type.shape[0]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise FlowcTypeError("T005", "a traced value cannot become a NumPy array", loc=caller_loc(),
                             notes=[describe(self)],
                             cure="use flowc.numpy.asarray or stack instead of np.array, and make arrays that are "
                                  "written to with flowc.numpy.zeros")

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.__array__()

    def __reduce__(self) -> Any:
        raise FlowcTypeError("T005", "a traced value cannot be pickled", loc=caller_loc(), notes=[describe(self)],
                             cure="return it from the traced function and pickle the result")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        raise _AttributeMissing("T006", f"x.{name} of a traced value is not supported", loc=caller_loc(),
                                notes=[describe(self)], cure="use functions of flowc.numpy")

    # ---- operators, indices, protocols

    __add__, __radd__, __iadd__ = _operator(np.add), _operator(np.add, True), _inplace(np.add)
    __sub__, __rsub__, __isub__ = _operator(np.subtract), _operator(np.subtract, True), _inplace(np.subtract)
    __mul__, __rmul__, __imul__ = _operator(np.multiply), _operator(np.multiply, True), _inplace(np.multiply)
    __truediv__, __rtruediv__ = _operator(np.true_divide), _operator(np.true_divide, True)
    __itruediv__, __ifloordiv__ = _inplace(np.true_divide), _inplace(np.floor_divide)
    __floordiv__, __rfloordiv__ = _operator(np.floor_divide), _operator(np.floor_divide, True)
    __mod__, __rmod__, __imod__ = _operator(np.remainder), _operator(np.remainder, True), _inplace(np.remainder)
    __pow__, __rpow__, __ipow__ = _operator(np.power), _operator(np.power, True), _inplace(np.power)
    __matmul__, __rmatmul__ = _operator(np.matmul), _operator(np.matmul, True)
    __imatmul__ = _inplace(np.matmul)
    __divmod__, __rdivmod__ = _operator(np.divmod), _operator(np.divmod, True)
    __and__, __rand__, __iand__ = _operator(np.bitwise_and), _operator(np.bitwise_and, True), _inplace(np.bitwise_and)
    __or__, __ror__, __ior__ = _operator(np.bitwise_or), _operator(np.bitwise_or, True), _inplace(np.bitwise_or)
    __xor__, __rxor__, __ixor__ = _operator(np.bitwise_xor), _operator(np.bitwise_xor, True), _inplace(np.bitwise_xor)
    __lshift__, __rlshift__ = _operator(np.left_shift), _operator(np.left_shift, True)
    __rshift__, __rrshift__ = _operator(np.right_shift), _operator(np.right_shift, True)
    __ilshift__, __irshift__ = _inplace(np.left_shift), _inplace(np.right_shift)
    __lt__, __le__, __gt__, __ge__ = map(_operator, (np.less, np.less_equal, np.greater, np.greater_equal))
    __eq__, __ne__ = _operator(np.equal), _operator(np.not_equal)

    def __neg__(self) -> Tensor:
        return rooms.operator(np.negative, self)

    def __pos__(self) -> Tensor:
        return rooms.operator(np.positive, self)

    def __abs__(self) -> Tensor:
        return rooms.operator(np.absolute, self)

    def __invert__(self) -> Tensor:
        return rooms.operator(np.invert, self)

    def __getitem__(self, key: Any) -> Any:
        return rooms.getitem(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        rooms.setitem(self, key, value)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return rooms.array_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        builder = rooms.functions.get(func)
        if builder is None:
            raise rooms.unsupported(f"{func.__module__}.{func.__name__}".replace("numpy.", "np."))
        return builder(*args, **kwargs)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return importlib.import_module("flowc.numpy")


def read(x: Tensor) -> Node:
    """The node of ``x`` for use now, in the current trace."""
    traces = stack.get()
    if traces:
        return x.node if x._trace is traces[-1] else traces[-1].read(x)
    if x._trace.persistent and not x._trace.closed:
        return x.node
    raise leaked(x)


def active_trace(*xs: Any) -> Trace:
    """The trace in which an operation on ``xs`` happens.  T005 if there is none."""
    top = current_trace()
    if top is not None:
        return top
    for x in xs:
        if isinstance(x, Tensor):
            if x._trace.closed or not x._trace.persistent:
                raise leaked(x)
            return x._trace
    raise FlowcTypeError("T005", "no function is being traced", loc=caller_loc(),
                         cure="call this inside a function under flowc.jit")


def wrap(node: Node, weak: bool = False, corder: bool = False, cell: bool = False) -> Tensor:
    """A tensor of the current trace with the value ``node``."""
    return active_trace().wrap(node, weak, corder, cell)


def outside(fn: Callable[..., Any], *xs: Any) -> Any:
    """``fn()`` inside the persistent trace that the tensors among ``xs`` belong to, for uses while none is active."""
    with active_trace(*xs).active():
        return fn()


# ---- what errors say ------------------------------------------------------------------------------------------------

def source_text(loc: Loc | None) -> str:
    """The expression a node came from, if it is short and stands on one line."""
    if loc is None:
        return ""
    first, last = loc.columns()
    text = linecache.getline(loc.file, loc.line)[first - 1:last - 1].strip() if first else ""
    return text if len(text) <= 40 else ""


def describe(x: Any) -> str:
    """``h @ w : f32[n, 10] (model.py:12)`` for a tensor, ``bias : f32[m] (argument)`` for a parameter."""
    if isinstance(x, np.ndarray) and x.ndim:
        return f"NumPy array : {x.dtype}{list(x.shape)}"
    if not isinstance(x, Tensor):
        return f"{x!r} : {type(x).__name__}"
    node = x._node
    name = x._trace.names.get(node)
    if name is not None:
        return f"{name} : {node.type} (argument)"
    text = source_text(node.loc) or node.op.name
    return f"{text} : {node.type}" + (f" ({str(node.loc).rsplit(':', 1)[0]})" if node.loc else "")


def leaked(x: Tensor) -> FlowcTypeError:
    trace = x._trace
    how = "after its trace has ended" if trace.closed else "outside of its trace"
    return FlowcTypeError("T005", f"a value traced in {trace.name!r} is used {how}", loc=caller_loc(),
                          notes=[describe(x)], cure="pass it as an argument and return it as a result; do not keep "
                          "traced values in globals, attributes or closures that outlive the call")


def value_needed(text: str, x: Tensor, cure: str) -> FlowcTypeError:
    return FlowcTypeError("T002", text, loc=caller_loc(), notes=[describe(x)], cure=cure)
