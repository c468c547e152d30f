"""Symbolic sizes as users meet them in ``x.shape``, and what all of the tracing rooms share.

Here: ``Size``, ``SizeUnknownError``, the stack of active traces, ``rooms`` (operators handed down by the rooms above).
Not here: size algebra (dims.py), tensors (tensor.py).  Read next: tensor.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, UnsupportedError, caller_loc
from flowc.dims import Dim, DimLike, Range, symbols
from flowc.proofs import known_eq, known_le

stack: ContextVar[tuple[Any, ...]] = ContextVar("flowc_traces", default=())  # active traces, innermost last


def ranges_now() -> dict[str, Range]:
    """The ranges of the current trace's symbols."""
    traces = stack.get()
    return traces[-1].ranges if traces else {}


class Rooms:
    """What the numpy rooms hand down so that tensors have operators without an import upward."""

    ufunc: Callable[..., Any]  # (ufunc, *operands) -> Tensor
    array_ufunc: Callable[..., Any]  # (ufunc, method, inputs, kwargs): the protocol
    operator: Callable[..., Any]  # (ufunc, *operands): Python's operator, weak operands stay weak
    inplace: Callable[..., Any]  # (ufunc, target, value) -> what the name is bound to
    getitem: Callable[..., Any]
    setitem: Callable[..., None]
    functions: dict[Callable[..., Any], Callable[..., Any]] = {}  # NumPy function -> builder
    unsupported: Callable[..., UnsupportedError]  # (name of a function) -> T006


rooms = Rooms()


class SizeUnknownError(FlowcTypeError):
    """The program asks for the number behind a symbolic size (T010).  ``symbols``: the names it depends on; tracing
    again with these sizes as integers gets past this point."""

    def __init__(self, text: str, sizes: Sequence[DimLike], cure: str, code: str = "T010", notes: Sequence[str] = ()):
        self.symbols: frozenset[str] = frozenset().union(*(symbols(plain(d)) for d in sizes))
        super().__init__(code, text, loc=caller_loc(), notes=notes, cure=cure)


class Size(Dim):
    """A symbolic size in ``x.shape``: integer arithmetic gives sizes, anything else tensors.

    A comparison that the ranges do not decide raises SizeUnknownError instead of a guess.
    """

    __slots__ = ()
    __array_priority__ = 1000

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, (int, Dim)):
            return rooms.ufunc(np.equal, self, other) if hasattr(other, "__array_ufunc__") else False
        return self._ask("==", other, known_eq(plain(self), plain(other), ranges_now()))

    def __ne__(self, other: object) -> Any:
        equal = self == other
        return not equal if isinstance(equal, bool) else rooms.ufunc(np.logical_not, equal)

    def _ask(self, sign: str, other: Any, answer: bool | None) -> bool:
        if answer is None:
            raise SizeUnknownError(f"whether {self} {sign} {other} depends on sizes that are symbols in this trace",
                                   [self, other] if isinstance(other, Dim) else [self],
                                   f"declare the range of {self}, or trace with this size as an integer")
        return answer

    def _ordered(self, ufunc: np.ufunc, sign: str, other: Any, low: Any, high: Any) -> Any:
        if not isinstance(other, (int, Dim)):
            return rooms.ufunc(ufunc, self, other)
        return self._ask(sign, other, known_le(plain(low), plain(high), ranges_now()))

    def __le__(self, other: Any) -> Any:
        return self._ordered(np.less_equal, "<=", other, self, other)

    def __lt__(self, other: Any) -> Any:
        return self._ordered(np.less, "<", other, plain(self) + 1, other)

    def __ge__(self, other: Any) -> Any:
        return self._ordered(np.greater_equal, ">=", other, other, self)

    def __gt__(self, other: Any) -> Any:
        low = plain(other) + 1 if isinstance(other, (int, Dim)) else other
        return self._ordered(np.greater, ">", other, low, self)

    def __bool__(self) -> bool:
        return self._ask(">", 0, known_le(1, plain(self), ranges_now()))

    def _no_number(self) -> Any:
        raise SizeUnknownError(f"the size {self} has no number while the function is traced", [self],
                               "use it in shapes, in arithmetic with tensors, or in flowc.numpy functions such as "
                               "arange and sqrt; math functions and range() need a number")

    __index__ = __int__ = __float__ = _no_number

    def __truediv__(self, other: Any) -> Any:
        return rooms.ufunc(np.true_divide, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return rooms.ufunc(np.true_divide, other, self)

    def __pow__(self, other: Any) -> Any:
        if type(other) is int and 0 <= other <= 8:
            out: Any = 1
            for _ in range(other):
                out = plain(self) * out
            return as_size(out)
        return rooms.ufunc(np.power, self, other)

    def __rpow__(self, other: Any) -> Any:
        return rooms.ufunc(np.power, other, self)

    def __neg__(self) -> Any:
        return as_size(-plain(self))

    def __pos__(self) -> Any:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return rooms.array_ufunc(ufunc, method, inputs, kwargs)


def _size_operator(name: str, ufunc: np.ufunc, swapped: bool) -> Callable[[Any, Any], Any]:
    exact = getattr(Dim, name)

    def operate(self: Size, other: Any) -> Any:
        if isinstance(other, np.integer):
            other = int(other)
        if isinstance(other, (int, Dim)) and not isinstance(other, bool):
            return as_size(exact(self, plain(other)))
        return rooms.ufunc(ufunc, other, self) if swapped else rooms.ufunc(ufunc, self, other)
    operate.__name__ = name
    return operate


for _name, _ufunc in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("floordiv", np.floor_divide),
                      ("mod", np.remainder)):
    setattr(Size, f"__{_name}__", _size_operator(f"__{_name}__", _ufunc, False))
    setattr(Size, f"__r{_name}__", _size_operator(f"__r{_name}__", _ufunc, True))


def as_size(d: DimLike) -> Any:
    """A size as users get it: an int or a Size."""
    return Size(d.terms) if isinstance(d, Dim) else d


def plain(d: Any) -> Any:
    """A size as graphs hold it: an int or a plain Dim."""
    return Dim(d.terms) if type(d) is Size else d
