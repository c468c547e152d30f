"""The Kernel IR: loops, loads and stores of one fused group, for CPU and GPU alike.

Here: scalar expressions and their closed instruction table, statements, the ``Kernel``, the expression builder.
Not here: how groups become kernels (passes/lower.py), machine code (backends/llvm/emit.py), text (text.py).
Read next: plan.py.

Expressions are scalar; a loop of kind ``vector`` says how many iterations a machine may run as lanes of one
instruction, and never changes a result.  All indices are sizes (dims.py) over loop variables, kernel dims and bound
i64 values, linear in units of elements.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flowc.dataclass import dataclass, field
from flowc.dims import DimLike, Range, symbols
from flowc.types import DType, bool_, f32, i32, i64, u32

LANES = 64   # accumulators of one reduction: part of the meaning (the summation tree), not of the machine
CHUNK = 4096  # elements summed into one set of lanes before they are added to the totals of the next level


@dataclass(frozen=True)
class Instr:
    """One scalar instruction: number of operands, kinds of operands accepted, rule of the result.

    result: ``same`` (dtype of the first operand), ``bool``, or ``attr`` (dtype stored in the expression's attr).
    operands: the dtypes of operands that do not share one, None for the dtype of the result.
    """

    name: str
    arity: int
    kinds: str
    result: str
    doc: str
    operands: tuple[DType | None, ...] = ()

    def dtypes(self, d: DType) -> tuple[DType, ...] | None:
        """The dtypes of the operands for a result (of a comparison: an operand) of dtype ``d``; None if there is no
        such instruction."""
        if d.kind not in self.kinds or self.operands and self.operands[0] not in (None, d):
            return None
        return tuple(x or d for x in self.operands) or ((bool_, d, d) if self.name == "select" else (d,) * self.arity)


def _instrs(*rows: tuple[Any, ...]) -> dict[str, Instr]:
    return {r[0]: Instr(*r) for r in rows}


INSTRS = _instrs(
    ("const", 0, "biuf", "attr", "attr: the value, a Python bool, int or float"),
    ("index", 0, "i", "attr", "attr: a size; its value as i64"),
    ("ref", 0, "biuf", "attr", "attr: (name, indices): a Let, or an element of an Acc"),
    ("load", 0, "biuf", "attr", "attr: (buffer, index); with operands (where, other) read only where true"),
    ("add", 2, "iuf", "same", "a + b; integers wrap"),
    ("sub", 2, "iuf", "same", "a - b; integers wrap"),
    ("mul", 2, "iuf", "same", "a * b; integers wrap"),
    ("div", 2, "f", "same", "a / b, correctly rounded"),
    ("idiv", 2, "iu", "same", "floor of a / b; 0 where b is 0; wraps for the least value by -1"),
    ("imod", 2, "iu", "same", "a - b * idiv(a, b), sign of b; 0 where b is 0"),
    ("fmod", 2, "f", "same", "remainder of truncated division, sign of a, exact"),
    ("neg", 1, "iuf", "same", "-a"),
    ("abs", 1, "iuf", "same", "|a|; wraps for the least value"),
    ("min", 2, "biuf", "same", "the smaller; NaN if either is; -0 before +0 is not promised"),
    ("max", 2, "biuf", "same", "the larger; NaN if either is"),
    ("sqrt", 1, "f", "same", "square root, correctly rounded"),
    ("fma", 3, "f", "same", "a * b + c with one rounding"),
    ("floor", 1, "f", "same", "round down"),
    ("ceil", 1, "f", "same", "round up"),
    ("trunc", 1, "f", "same", "round towards zero"),
    ("rint", 1, "f", "same", "round to nearest, ties to even"),
    ("copysign", 2, "f", "same", "magnitude of a, sign of b"),
    ("ldexp", 2, "f", "same", "a * 2**b for i32 b, one rounding, also for subnormal results", (None, i32)),
    ("and", 2, "biu", "same", "bitwise and; logical for bool"),
    ("or", 2, "biu", "same", "bitwise or"),
    ("xor", 2, "biu", "same", "bitwise exclusive or"),
    ("not", 1, "biu", "same", "bitwise complement; logical for bool"),
    ("shl", 2, "iu", "same", "a << b; 0 where b is negative or at least the width"),
    ("shr", 2, "iu", "same", "a >> b; 0 (or -1 for negative a) where b is negative or at least the width"),
    ("eq", 2, "biuf", "bool", "a == b"),
    ("ne", 2, "biuf", "bool", "a != b"),
    ("lt", 2, "biuf", "bool", "a < b"),
    ("le", 2, "biuf", "bool", "a <= b"),
    ("gt", 2, "biuf", "bool", "a > b"),
    ("ge", 2, "biuf", "bool", "a >= b"),
    ("select", 3, "biuf", "same", "b where a, else c; a is bool"),
    ("cast", 1, "biuf", "attr", "value in another dtype; float to integer truncates, saturates, NaN gives 0"),
    ("bitcast", 1, "iuf", "attr", "same bits as another dtype of the same width"),
    *((n, 1, "f", "same", f"{n}(a); expanded by the mathlib of the backend") for n in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh",
        "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf", "erfc", "ndtr", "cbrt")),
    ("pow", 2, "f", "same", "a ** b"),
    ("atan2", 2, "f", "same", "angle of (b, a)"),
    # sums of products of narrow numbers, packed in words, the first the uppermost
    ("dot_bf16", 3, "f", "same", "a + b0 * c0 + b1 * c1 of bf16, in order, one rounding each; only without subnormals",
     (f32, u32, u32)),
    ("dot_i16", 3, "i", "same", "a + b0 * c0 + b1 * c1 of i16; wraps", (i32, u32, u32)),
    ("dot_i8", 3, "i", "same", "a + b0 * c0 + ... + b3 * c3 of u8 in b and i8 in c; wraps", (i32, u32, u32)),
)


class Expr:
    """A scalar value: instruction, operands, dtype, attr.  Immutable; equal by structure."""

    __slots__ = ("_hash", "_mentions", "args", "attr", "dtype", "op")

    def __init__(self, op: str, args: tuple[Expr, ...], dtype: DType, attr: Any = None):
        self.op, self.args, self.dtype, self.attr = op, args, dtype, attr
        self._mentions: frozenset[str] | None = None
        key = (type(attr).__name__, repr(attr)) if isinstance(attr, float) else attr
        self._hash = hash((op, args, dtype.name, key))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, o: object) -> bool:
        if self is o:
            return True
        if not isinstance(o, Expr) or self._hash != o._hash:
            return False
        if len(self.args) == len(o.args) and all(map(operator.is_, self.args, o.args)):  # as a builder shares them
            return self.op == o.op and self.dtype is o.dtype and _attr_eq(self.attr, o.attr)
        seen: set[tuple[int, int]] = set()  # expressions share parts: each pair is compared once
        stack = [(self, o)]
        while stack:
            a, b = stack.pop()
            if a is b or (id(a), id(b)) in seen:
                continue
            if not (a._hash == b._hash and a.op == b.op and a.dtype is b.dtype and len(a.args) == len(b.args)
                    and _attr_eq(a.attr, b.attr)):
                return False
            seen.add((id(a), id(b)))
            stack += zip(a.args, b.args)
        return True

    def __repr__(self) -> str:
        attr = "" if self.attr is None else f" {self.attr}"
        return f"{self.op}:{self.dtype}({', '.join(map(repr, self.args))}{attr})"


def _attr_eq(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)
    return type(a) is type(b) and a == b


class Builder:
    """Builds expressions with checks; one builder shares equal expressions.  Numbers become constants of the dtype of
    the other operand.  Every instruction of the table is a method: ``b.add(x, y)``, ``b.select(c, x, y)``,
    ``b.cast(x, f32)``; ``b.const(1.5, f32)``, ``b.index(size)``, ``b.ref(name, dtype, *indices)``,
    ``b.load(buffer, index, dtype, where=None, other=None)`` are the leaves."""

    def __init__(self) -> None:
        self._shared: dict[Expr, Expr] = {}

    def make(self, op: str, args: tuple[Expr, ...], dtype: DType, attr: Any = None) -> Expr:
        e = Expr(op, args, dtype, attr)
        return self._shared.setdefault(e, e)

    def const(self, value: Any, dtype: DType) -> Expr:
        kind = {"b": bool, "f": float}.get(dtype.kind, int)
        return self.make("const", (), dtype, kind(value))

    def index(self, d: DimLike) -> Expr:
        return self.const(d, i64) if isinstance(d, int) else self.make("index", (), i64, d)

    def ref(self, name: str, dtype: DType, *indices: DimLike) -> Expr:
        return self.make("ref", (), dtype, (name, tuple(indices)))

    def load(self, buffer: str, index: DimLike, dtype: DType, where: Expr | None = None, other: Any = None) -> Expr:
        if where is None:
            return self.make("load", (), dtype, (buffer, index))
        return self.make("load", (where, self._lift(0 if other is None else other, dtype)), dtype, (buffer, index))

    def cast(self, x: Expr, dtype: DType) -> Expr:
        return x if x.dtype is dtype else self.make("cast", (x,), dtype)

    def bitcast(self, x: Expr, dtype: DType) -> Expr:
        if x.dtype.bits != dtype.bits:
            raise TypeError(f"bitcast from {x.dtype} to {dtype}: different widths")
        return x if x.dtype is dtype else self.make("bitcast", (x,), dtype)

    def select(self, cond: Expr, x: Any, y: Any) -> Expr:
        like = x if isinstance(x, Expr) else y
        x, y = self._lift(x, like.dtype), self._lift(y, like.dtype)
        if cond.dtype is not bool_ or x.dtype is not y.dtype:
            raise TypeError(f"select({cond.dtype}, {x.dtype}, {y.dtype})")
        return self.make("select", (cond, x, y), x.dtype)

    def mixed(self, op: str, *args: Expr) -> Expr:
        """An instruction whose operands do not share a dtype; the first has that of the result."""
        if tuple(a.dtype for a in args) != INSTRS[op].dtypes(args[0].dtype):
            raise TypeError(f"{op}({', '.join(a.dtype.name for a in args)})")
        return self.make(op, args, args[0].dtype)

    def ldexp(self, x: Expr, n: Expr) -> Expr:
        return self.mixed("ldexp", x, n)

    def _lift(self, x: Any, dtype: DType) -> Expr:
        return x if isinstance(x, Expr) else self.const(x, dtype)

    def emit(self, op: str, *args: Any) -> Expr:
        """Any instruction whose operands share one dtype."""
        row = INSTRS[op]
        dtype = next((a.dtype for a in args if isinstance(a, Expr)), None)
        if dtype is None or len(args) != row.arity:
            raise TypeError(f"{op} takes {row.arity} operands, at least one an expression; got {args!r}")
        full = tuple([a if isinstance(a, Expr) else self.const(a, dtype) for a in args])
        if dtype.kind not in row.kinds or [a for a in full if a.dtype is not dtype]:
            raise TypeError(f"{op}({', '.join(a.dtype.name for a in full)}): operands must share one dtype of kind "
                            f"{'/'.join(row.kinds)}")
        return self.make(op, full, bool_ if row.result == "bool" else dtype)

    def __getattr__(self, name: str) -> Callable[..., Expr]:
        op = name.rstrip("_")  # and_, or_, not_
        if op not in INSTRS:
            raise AttributeError(name)
        method = self.__dict__[name] = functools.partial(self.emit, op)
        return method


# ---- statements -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Let:
    """Bind a scalar.  An i64 Let may be used as a symbol in later indices; ``range`` then bounds it."""

    name: str
    value: Expr
    range: Range | None = None


@dataclass(frozen=True)
class Acc:
    """Registers that statements may change: a scalar (shape ()) or a small array with static extents."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    init: Expr


@dataclass(frozen=True)
class Set:
    """Write an element of an Acc."""

    name: str
    index: tuple[DimLike, ...]
    value: Expr


@dataclass(frozen=True)
class Store:
    """Write one element of a buffer, only where ``where`` holds if given."""

    buffer: str
    index: DimLike
    value: Expr
    where: Expr | None = None


@dataclass(frozen=True)
class Fold:
    """Combine the lanes of accumulators by a fixed tree and bind the results.

    ``accs`` are Acc arrays of one extent L, a power of two.  Step h = L/2, L/4, ..., 1: lane l takes
    ``values`` with ``left`` bound to lane l and ``right`` to lane l + h, for every l < h.  ``names`` are bound to
    lane 0.  The tree is part of the meaning, so every machine gives the same bits.
    """

    names: tuple[str, ...]
    accs: tuple[str, ...]
    extent: int
    left: tuple[str, ...]
    right: tuple[str, ...]
    values: tuple[Expr, ...]


@dataclass(frozen=True)
class Alloc:
    """Working memory of one parallel iteration (``local``) or one block of threads (``shared``).
    Holds anything at first.  ``size`` in elements."""

    name: str
    dtype: DType
    size: DimLike
    space: str = "local"


@dataclass(frozen=True)
class If:
    cond: Expr
    then: tuple[Stmt, ...]
    other: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class Barrier:
    """All threads of the block arrive before any goes on; shared writes before it are seen after it."""


KINDS = ("seq", "parallel", "vector", "unroll", "block", "thread")


@dataclass(frozen=True)
class Loop:
    """``for var in extent``: var runs over 0 .. extent - 1.

    kind: ``seq`` in order; ``parallel``: iterations independent, split over CPU threads; ``vector``: independent
    (but for lane accumulators indexed by var), run as ``width`` lanes; ``unroll``: static extent, expanded;
    ``block``: GPU blocks; ``thread``: GPU threads of one block, static extent.
    Directly nested loops of one kind parallel, block or thread form one index space, outermost slowest.
    """

    var: str
    extent: DimLike
    kind: str
    body: tuple[Stmt, ...]
    width: int = 1


Stmt = Let | Acc | Set | Store | Fold | Alloc | If | Barrier | Loop


@dataclass(frozen=True)
class Buffer:
    """A kernel parameter: contiguous memory in C order.  role: in, out, or inout."""

    name: str
    dtype: DType
    shape: tuple[DimLike, ...]
    role: str = "in"


@dataclass(frozen=True)
class Kernel:
    """One compiled unit: parameters, integer dims it is called with, statements.

    notes: free text for people (what was fused, how it is scheduled); no part of the meaning.
    """

    name: str
    params: tuple[Buffer, ...]
    dims: tuple[str, ...]
    body: tuple[Stmt, ...]
    ranges: tuple[tuple[str, Range], ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)


def children(s: Stmt) -> tuple[tuple[Stmt, ...], ...]:
    """The statement lists inside a statement."""
    kind = type(s)
    return (s.body,) if kind is Loop else (s.then, s.other) if kind is If else ()  # type: ignore[union-attr]


def walk(stmts: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, outer before inner."""
    stack = [iter(stmts)]
    while stack:
        for s in stack[-1]:
            yield s
            inner = children(s)
            if inner:
                stack += map(iter, reversed(inner))
                break
        else:
            stack.pop()


def defined(s: Stmt) -> tuple[str, ...]:
    """The names that a statement gives to integers, values and registers."""
    if isinstance(s, Loop):
        return (s.var,)
    if isinstance(s, (Let, Acc)):
        return (s.name,)
    return (*s.names, *s.left, *s.right) if isinstance(s, Fold) else ()


_EXPRESSIONS: dict[type, Callable[[Any], tuple[Expr, ...]]] = {
    Let: lambda s: (s.value,), Set: lambda s: (s.value,), Acc: lambda s: (s.init,), If: lambda s: (s.cond,),
    Store: lambda s: (s.value,) if s.where is None else (s.value, s.where), Fold: lambda s: s.values,
    Alloc: lambda s: (), Barrier: lambda s: (), Loop: lambda s: ()}


def expressions(s: Stmt) -> tuple[Expr, ...]:
    """The expressions that stand directly in a statement."""
    return _EXPRESSIONS[type(s)](s)


def parts(roots: Iterable[Expr]) -> list[Expr]:
    """Every expression below, the roots among them, each object once."""
    found: dict[int, Expr] = {}
    stack = list(roots)
    while stack:
        x = stack.pop()
        if id(x) not in found:
            found[id(x)] = x
            stack += x.args
    return list(found.values())


def mentions(e: Expr) -> frozenset[str]:
    """Sizes and bindings that an expression refers to."""
    stack = [e]
    while stack:
        x = stack[-1]
        waiting = [a for a in x.args if a._mentions is None]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if x._mentions is None:
            own = _own_mentions(x)
            x._mentions = own.union(*[a._mentions for a in x.args if a._mentions]) if x.args else own
    assert e._mentions is not None
    return e._mentions


def _own_mentions(x: Expr) -> frozenset[str]:
    if x.op == "index":
        return symbols(x.attr)
    if x.op == "load":
        return symbols(x.attr[1])
    return frozenset((x.attr[0],)).union(*map(symbols, x.attr[1])) if x.op == "ref" else frozenset()
