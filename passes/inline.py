"""Building one kernel: statements under construction, and values of graph nodes as scalar expressions.

Here: ``KernelBuilder`` (loops, bindings, scopes; also what an op's ``General`` body is written with) and ``Inliner``
(the expression of a node at an index, producers inlined, invariants bound outside the loops they do not depend on).
Not here: which nodes share a kernel (fuse.py), the shapes of loop nests (lower.py, contract.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from flowc.dataclass import dataclass, field
from flowc.dims import Dim, DimLike, Range, sym, symbols
from flowc.graph import CONSTANT, Node
from flowc.kernel import (
    Acc,
    Alloc,
    Buffer,
    Builder,
    Expr,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Stmt,
    Store,
    expressions,
    mentions,
    walk,
)
from flowc.op import Pointwise
from flowc.proofs import known_eq, known_le, known_lt, proved_le, simplify
from flowc.types import DType, bool_, i64

Idx = tuple[DimLike, ...]


def linear_index(idx: Sequence[DimLike], shape: Sequence[DimLike]) -> DimLike:
    """Position in C order."""
    at: DimLike = 0
    for i, n in zip(idx, shape, strict=True):
        at = at * n + i
    return at


def unravel(at: DimLike, shape: Sequence[DimLike]) -> Idx:
    """Index tuple of C-order position ``at``."""
    out: list[DimLike] = []
    for n in reversed(shape[1:]):
        out.append(at % n)
        at = at // n
    if shape:
        out.append(at)
    return tuple(reversed(out))


@dataclass
class Scope:
    """One statement list under construction, with what is known inside it."""

    stmts: list[Stmt] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # symbols defined here
    guarded: bool = False  # inside a condition: what is read here may not be readable outside
    open: bool = True      # what was bound here is in sight


class KernelBuilder:
    """Statements of one kernel under construction.  ``b`` builds expressions; loops, conditions and bindings append
    statements; buffers are declared when first asked for."""

    def __init__(self, name: str, ranges: Mapping[str, Range], symbols: Iterable[str] = ()):
        self.name, self.b = name, Builder()
        self.reserved = set(symbols) | set(ranges)  # sizes of the graph: no name of a kernel may hide one
        self.ranges: dict[str, Range] = dict(ranges)
        self.params: dict[str, Buffer] = {}
        self.scopes = [Scope()]
        self.known: dict[tuple, tuple[Scope, Expr]] = {}  # values, each with the scope that it is bound in
        self.acc_dtypes: dict[str, DType] = {}
        self._n = 0

    # -- names and statements

    def fresh(self, stem: str) -> str:
        while True:
            self._n += 1
            name = f"{stem}{self._n}"
            if name not in self.reserved:
                return name

    def add(self, s: Stmt) -> None:
        self.scopes[-1].stmts.append(s)

    def buffer(self, name: str, dtype: DType, shape: Sequence[DimLike], role: str = "in") -> str:
        self.params.setdefault(name, Buffer(name, dtype, tuple(shape), role))
        return name

    def loop(self, extent: DimLike, kind: str = "seq", stem: str = "i", width: int = 1) -> AbstractContextManager[
            DimLike]:
        """``for var in extent``; gives the variable as a size.  A loop of one iteration is no loop."""
        return _LoopBlock(self, extent, kind, stem, width)

    def if_(self, cond: Expr) -> AbstractContextManager[None]:
        return _IfBlock(self, cond)

    @contextmanager
    def region(self) -> Iterator[None]:
        """A scope for what is remembered, without statements of its own: bindings made inside are forgotten."""
        scope = Scope(stmts=self.scopes[-1].stmts)
        self.scopes.append(scope)
        yield
        self.leave()

    def leave(self) -> Scope:
        """The innermost scope is complete."""
        scope = self.scopes.pop()
        scope.open = False
        return scope

    def recall(self, key: tuple) -> Expr | None:
        """The value that is bound under ``key`` in a scope around this place."""
        found = self.known.get(key)
        return found[1] if found is not None and found[0].open else None

    def remember(self, key: tuple, value: Expr, depth: int) -> None:
        self.known[key] = self.scopes[depth], value

    def let(self, value: Expr, name: str | None = None, range: Range | None = None, depth: int = -1) -> Expr:
        """Bind ``value`` in the scope at ``depth`` (default: here) and return the reference."""
        if value.op in ("const", "ref"):
            return value
        name = name or self.fresh("v")
        self.scopes[depth].stmts.append(Let(name, value, range))
        self.scopes[depth].names.add(name)
        return self.b.ref(name, value.dtype)

    def as_index(self, value: Expr, lo: DimLike, hi: DimLike | None) -> DimLike:
        """An i64 value that is known to lie in lo..hi, as a size usable in indices."""
        if value.op == "const":
            return int(value.attr)
        if value.op == "index":
            return value.attr
        ref = self.let(self.b.cast(value, i64), range=(lo, hi))
        name = ref.attr[0]
        self.ranges[name] = (lo, hi)
        return sym(name)

    # -- registers

    def acc(self, dtype: DType, init: Expr, shape: tuple[int, ...] = ()) -> str:
        name = self.fresh("a")
        self.add(Acc(name, dtype, shape, init))
        self.acc_dtypes[name] = dtype
        return name

    def get(self, name: str, *idx: DimLike) -> Expr:
        return self.b.ref(name, self.acc_dtypes[name], *idx)

    def set(self, name: str, value: Expr, *idx: DimLike) -> None:
        self.add(Set(name, tuple(idx), value))

    def alloc(self, dtype: DType, size: DimLike, space: str = "local") -> str:
        name = self.fresh("t")
        self.add(Alloc(name, dtype, size, space))
        return name

    def write(self, buffer: str, index: DimLike, value: Expr, where: Expr | None = None) -> None:
        self.add(Store(buffer, self.tidy(index), value, where))

    def tidy(self, d: DimLike) -> DimLike:
        """``d`` with the divisions resolved that loop ranges decide."""
        if isinstance(d, int) or not d.has_calls():
            return d
        return simplify(d, self.ranges)

    def depth_of(self, names: frozenset[str]) -> int:
        """Position of the innermost scope that defines one of ``names`` or is guarded; 0 if there is none."""
        for k in range(len(self.scopes) - 1, 0, -1):
            scope = self.scopes[k]
            if scope.guarded or not names.isdisjoint(scope.names):
                return k
        return 0

    def finish(self, dims: Sequence[str], notes: Sequence[str] = ()) -> Kernel:
        (scope,) = self.scopes
        if not dims:
            return Kernel(self.name, tuple(self.params.values()), (), tuple(scope.stmts), (), tuple(notes))
        used = _used_symbols(scope.stmts) | {s for p in self.params.values() for n in p.shape for s in symbols(n)}
        names = tuple(d for d in dims if d in used)
        ranges = tuple((n, self.ranges[n]) for n in names if n in self.ranges)
        return Kernel(self.name, tuple(self.params.values()), names, tuple(scope.stmts), ranges, tuple(notes))


class _LoopBlock(AbstractContextManager[DimLike]):
    """What stands in a loop.  These blocks are entered so often that generators would be slow."""

    __slots__ = ("extent", "k", "kind", "stem", "var", "width")

    def __init__(self, k: KernelBuilder, extent: DimLike, kind: str, stem: str, width: int):
        self.k, self.extent, self.kind, self.stem, self.width = k, extent, kind, stem, width
        self.var = ""

    def __enter__(self) -> DimLike:
        if isinstance(self.extent, int) and self.extent == 1:
            return 0
        k, self.var = self.k, self.k.fresh(self.stem)
        k.ranges[self.var] = (0, self.extent - 1)
        k.scopes.append(Scope(names={self.var}))
        return sym(self.var)

    def __exit__(self, failed: object, *rest: object) -> None:
        if self.var and failed is None:
            k, stmts = self.k, self.k.leave().stmts
            del k.ranges[self.var]
            if stmts:
                k.add(Loop(self.var, self.extent, self.kind, tuple(stmts), self.width))


class _IfBlock(AbstractContextManager[None]):
    """What stands under a condition."""

    __slots__ = ("cond", "k")

    def __init__(self, k: KernelBuilder, cond: Expr):
        self.k, self.cond = k, cond

    def __enter__(self) -> None:
        self.k.scopes.append(Scope(guarded=True))

    def __exit__(self, failed: object, *rest: object) -> None:
        if failed is None:
            stmts = self.k.leave().stmts
            if stmts:
                self.k.add(If(self.cond, tuple(stmts)))


def _used_symbols(stmts: Sequence[Stmt]) -> set[str]:
    """The sizes that stand in the statements, and names that are none."""
    out: set[str] = set()
    for s in walk(stmts):
        for e in expressions(s):
            out |= mentions(e)
        if isinstance(s, Loop):
            out.update(symbols(s.extent))
        elif isinstance(s, Store):
            out.update(symbols(s.index))
        elif isinstance(s, Alloc):
            out.update(symbols(s.size))
        elif isinstance(s, Set):
            for d in s.index:
                out.update(symbols(d))
    return out


class Inliner:
    """Expressions of graph nodes at an index inside a kernel.

    members: nodes computed by this kernel.  name_of: buffer name of a node that lives in memory.
    ``bound``: values the nest has computed already, by node: a function from (index, where) to an expression, or None
    where it does not hold that element (row results, row caches, the accumulator of a contraction).
    """

    def __init__(self, k: KernelBuilder, members: set[Node], name_of: Callable[[Node], str],
                 uses: Mapping[Node, int]):
        self.k, self.members, self.name_of, self.uses = k, members, name_of, uses
        self.bound: dict[Node, Callable[[Idx, Expr | None], Expr | None]] = {}
        self.ops = Ops(k)

    def value(self, node: Node, idx: Idx, where: Expr | None = None) -> Expr:
        """The scalar ``node[idx]``; with ``where``, memory is touched only where it is true."""
        k = self.k
        if node.op is CONSTANT and node.type.rank == 0:
            return k.b.const(node.attrs["value"].array[()].item() if node.dtype.name != "bf16"
                             else float(node.attrs["value"].array), node.dtype)
        idx = tuple([k.tidy(d) if isinstance(d, Dim) and d.has_calls() else d for d in idx])
        if node in self.bound:
            known = self.bound[node](idx, where)
            if known is not None:
                return known
        if node not in self.members:
            return self._load(node, idx, where)
        key = (node, idx, where)
        e = k.recall(key)
        return self._remember(key, node, self._compute(node, idx, where)) if e is None else e

    def _remember(self, key, node: Node, e: Expr) -> Expr:
        """Bind a value used more than once, or one that belongs outside the current loop, at the outermost scope
        that defines everything it needs."""
        k = self.k
        if e.op in ("const", "ref", "index"):
            return e
        names = mentions(e)
        if not names.isdisjoint(k.acc_dtypes):
            return e  # registers change: never remembered
        depth = k.depth_of(names)
        hoisted = depth < len(k.scopes) - 1
        if e.op == "load" and not hoisted and isinstance(node.op.lower, Pointwise) and node.op.lower.movement:
            return e
        if self.uses.get(node, 2) > 1 or hoisted:
            e = k.let(e, depth=depth)
        k.remember(key, e, depth)
        return e

    def _load(self, node: Node, idx: Idx, where: Expr | None) -> Expr:
        k = self.k
        name = k.buffer(self.name_of(node), node.dtype, node.shape)
        at = k.tidy(linear_index(idx, node.shape))
        key = ("load", name, at, where)
        found = k.recall(key)
        if found is not None:
            return found
        e = k.b.load(name, at, node.dtype, where)
        names = symbols(at) if where is None else symbols(at) | mentions(where)
        depth = k.depth_of(names)
        if depth < len(k.scopes) - 1 and where is None and not self._exists(at, node):
            depth = len(k.scopes) - 1  # a loop in between may run zero times because there is nothing to read
        if depth < len(k.scopes) - 1:
            e = k.let(e, depth=depth)
        k.remember(key, e, depth)
        return e

    def _exists(self, at: DimLike, node: Node) -> bool:
        """Is the element at C-order position ``at`` proved to exist?"""
        ranges = self.k.ranges
        return proved_le(0, at, ranges) and proved_le(at + 1, node.type.size, ranges)

    def _compute(self, node: Node, idx: Idx, where: Expr | None) -> Expr:
        k = self.k
        lower = node.op.lower
        assert isinstance(lower, Pointwise), node

        def load(operand: int, at: Idx, cond: Expr | None = None, other=None) -> Expr:
            x = node.inputs[operand]
            if cond is None or cond.op == "const" and cond.attr:
                return self.value(x, tuple(at), where)
            if cond.op == "const":
                return k.b.const(0, x.dtype) if other is None else other
            both = cond if where is None else k.b.and_(where, cond)
            v = self.value(x, tuple(at), both)
            if v.op == "load" and v.args and other in (None, 0):
                return v
            return k.b.select(cond, v, k.b.const(0, x.dtype) if other is None else other)

        types = (*[x.type for x in node.inputs], node.type)
        return lower.expr(self.ops, idx, load, types, node.attrs)


class Ops:
    """What an op's expression is built with: the expression builder, and indices from data."""

    def __init__(self, k: KernelBuilder):
        self._k = k
        self.as_index = k.as_index
        self.ranges = k.ranges

    def __getattr__(self, name: str):
        method = self.__dict__[name] = getattr(self._k.b, name)
        return method


class DecidedOps(Ops):
    """Comparisons of sizes are decided where the ranges of the loops around them do so, and so is what follows from
    them: inside of loops cut at their edges nothing is left of padding."""

    def __init__(self, k: KernelBuilder):
        super().__init__(k)
        self.known: dict[tuple[str, DimLike], bool | None] = {}

    def __getattr__(self, name: str):
        op = name.rstrip("_")
        if op in _DECIDE or op in ("and", "or", "not"):
            return partial(self.emit, op)
        return super().__getattr__(name)

    def emit(self, op: str, *args) -> Expr:
        b = self._k.b
        if op in _DECIDE:
            x, y = map(as_size, args)
            if x is not None and y is not None:
                gap = x - y
                if (op, gap) not in self.known:
                    self.known[op, gap] = _DECIDE[op](gap, self.ranges)
                held = self.known[op, gap]
                if held is not None:
                    return b.const(held, bool_)
        elif op in ("and", "or") and args[0].dtype is bool_:
            for one, other in (args, args[::-1]):
                if one.op == "const":
                    return other if one.attr == (op == "and") else one
        elif op == "not" and args[0].op == "const" and args[0].dtype is bool_:
            return b.const(not args[0].attr, bool_)
        return b.emit(op, *args)

    def select(self, cond: Expr, x, y) -> Expr:
        whole = self._k.b.select(cond, x, y)
        return whole if cond.op != "const" else whole.args[1 if cond.attr else 2]


_DECIDE: dict[str, Callable[[DimLike, Mapping[str, Range]], bool | None]] = {
    "lt": lambda gap, ranges: known_lt(gap, 0, ranges), "le": lambda gap, ranges: known_le(gap, 0, ranges),
    "gt": lambda gap, ranges: known_lt(0, gap, ranges), "ge": lambda gap, ranges: known_le(0, gap, ranges),
    "eq": lambda gap, ranges: known_eq(gap, 0, ranges),
    "ne": lambda gap, ranges: None if (same := known_eq(gap, 0, ranges)) is None else not same}


def as_size(x) -> DimLike | None:
    if not isinstance(x, Expr):
        return x if type(x) is int else None
    return x.attr if x.dtype is i64 and x.op in ("index", "const") else None
