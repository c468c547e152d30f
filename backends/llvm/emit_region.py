"""Statements taken out of a kernel, to be a function that kernels share.

Here: how they are told from where they lie, the call and the function's text.  Not here: which statements are worth it
(emit_tile.py, emit_nest.py), which modules are compiled (compile.py).  Read next: emit_tile.py.

What kernels of one form have in common are loops, registers, operations and small numbers, such as the sides of a tile.
What differs becomes an argument: an index is taken apart into what the statements' own loops contribute and the rest,
whose address the caller computes; sizes and distances in memory that are not small, and conditions on them.  The text
that is left has no names of the kernel in it.  It is named by its content and is a module of its own, which all kernels
of a process share.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit_code import Mem, Val
from flowc.backends.llvm.emit_interleave import in_blocks, turned
from flowc.backends.llvm.engine import content_name
from flowc.backends.llvm.target import Target
from flowc.dims import Call, Dim, DimLike, Monomial, Range, apply, substitute, sym, symbols
from flowc.kernel import Acc, Alloc, Expr, If, Let, Loop, Set, Stmt, Store, parts
from flowc.proofs import bounds
from flowc.types import DType, i64

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

MOST = 14            # arguments
SMALL = 64           # numbers up to here are part of the form
UNITS = (16, 8, 4)   # what a size that is an argument may be known to be a multiple of
FAR = 1 << 28        # what is near is at most so far from 0
ANY: Range = (-(1 << 62), None)
# of the integers that a function takes: how often loops run, terms and factors of indices
RANGES: dict[str, Range] = {"extent": (0, None), "near": (-FAR, FAR), "any": ANY, "factor": ANY}
KEPT = 256           # texts that are remembered

_STAND_IN = "flowc_shared_symbol"


class OtherError(Exception):
    """The statements are no such function."""


class Taken(NamedTuple):
    """Statements without the kernel around them.  buffers: dtypes and alignments of ``p0``, ``p1``, ...; sizes: the
    integers ``n0``, ... that they take, what they are; flags: how many conditions ``c0``, ... they take."""

    body: tuple[Stmt, ...]
    buffers: tuple[tuple[DType, int], ...]
    sizes: tuple[str, ...]
    flags: int


class Region:
    """Takes statements from a kernel: names become numbers in the order in which they occur.

    memory: what is declared among the statements, which stays with the caller.  kinds: of the statements that may be
    taken.  ops: instructions that may be; None: any."""

    def __init__(self, e: Emitter, kinds: tuple[type, ...], ops: frozenset[str] | None = None,
                 memory: Sequence[Alloc] = ()):
        self.e, self.kinds, self.ops = e, kinds, ops
        self.memory = {s.name: s.dtype for s in memory}
        if not all(map(e.on_stack, memory)):
            raise OtherError
        self.turned = False                                   # is a table turned?
        self.names: dict[str, str] = {}                       # what the statements define
        self.inner: dict[str, DimLike] = {}                   # the integers among it
        self.lanes: set[str] = set()                          # indices of lanes
        self.buffers: dict[tuple[str, DimLike], str] = {}     # buffer and outer part of the index
        self.sizes: dict[tuple[tuple, DimLike], str] = {}     # what it is to the statements, and the size
        self.flags: dict[Expr, str] = {}

    def taken(self, body: Sequence[Stmt]) -> Taken:
        if len(self.buffers) + len(self.sizes) + len(self.flags) > MOST:
            raise OtherError
        return Taken(tuple(body), tuple([self.element(buffer) for buffer, _ in self.buffers]),
                     tuple([place[0] for place, _ in self.sizes]), len(self.flags))

    def call(self, taken: Taken) -> None:
        """Call the function of what was taken."""
        e = self.e
        emitter: Any = type(e)
        name, module = _function(emitter, taken, e.target)
        e.module.tiles[name] = module
        args = [f"ptr {e.address(e.mems[buffer], e.place(outer))}" for buffer, outer in self.buffers]
        args += [f"i64 {e.size(d)}" for _, d in self.sizes]
        args += [f"i1 {e.value(cond).text}" for cond in self.flags]
        e.module.declare(name, f"void ({', '.join([a.split(' ', 1)[0] for a in args])})")
        e.raw(f"call void @{name}({', '.join(args)})")
        e.calls += 1

    def state(self) -> tuple[dict, ...]:
        return tuple([x.copy() for x in (self.names, self.inner, self.buffers, self.sizes, self.flags)])

    def restore(self, before: tuple[Any, ...]) -> None:
        self.names, self.inner, self.buffers, self.sizes, self.flags = before

    # -- statements

    def block(self, stmts: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return tuple([self.statement(s) for s in stmts])

    def statement(self, s: Stmt) -> Stmt:
        if not isinstance(s, self.kinds):
            raise OtherError
        if isinstance(s, Loop) and s.kind in ("seq", "vector", "unroll"):
            extent = self.extent(s)
            if s.kind == "vector":
                self.lanes.add(s.var)
            return Loop(self.name(s.var, True), extent, s.kind, self.block(s.body), s.width)
        if isinstance(s, Acc):
            return Acc(self.name(s.name), s.dtype, s.shape, self.value(s.init))
        if isinstance(s, Let) and s.range is None:
            value = self.value(s.value)
            return Let(self.name(s.name), value)
        if isinstance(s, Set):
            return Set(self.known(s.name), self.places(s.index), self.value(s.value))
        if isinstance(s, Store):
            return self.store(s)
        if isinstance(s, If):
            return If(self.condition(s.cond), self.block(s.then), self.block(s.other))
        raise OtherError

    def store(self, s: Store) -> Stmt:
        if s.buffer not in self.memory and self.e.streams is not None and self.e.streams.may_store(
                self.e.mems[s.buffer], self.turned):
            raise OtherError  # how it is written is decided for the whole kernel
        if s.where is not None:
            self.masked()
        where = None if s.where is None else self.value(s.where)
        return Store(*self.access(s.buffer, s.index), self.value(s.value), where)

    def masked(self) -> None:
        """Conditions that are proved where the sizes are known are tested here, which some machines do slowly."""
        if not self.e.target.masks:
            raise OtherError

    def extent(self, s: Loop) -> DimLike:
        d = s.extent
        if isinstance(d, int) and (d <= SMALL if s.kind == "vector" else s.kind == "unroll" or turned(s) is not None):
            return d
        if isinstance(d, Dim) and symbols(d) & self.inner.keys():
            raise OtherError
        units = UNITS if s.kind == "vector" or in_blocks(s) is not None else ()
        unit = next((u for u in units if isinstance(d, int) and d % u == 0), 1)
        return unit * self.number(("extent", len(self.names)), d // unit)

    def condition(self, cond: Expr) -> Expr:
        """One on sizes outside of the statements is an argument."""
        if any(x.op in ("load", "ref") or x.op == "index" and symbols(x.attr) & self.inner.keys()
               for x in parts((cond,))):
            return self.value(cond)
        return Expr("ref", (), cond.dtype, (self.flags.setdefault(cond, f"c{len(self.flags)}"), ()))

    # -- names and sizes

    def name(self, old: str, integer: bool = False) -> str:
        new = self.names[old] = f"{'i' if integer else 'v'}{len(self.names)}"
        if integer:
            self.inner[old] = sym(new)
        return new

    def known(self, name: str) -> str:
        if name not in self.names:
            raise OtherError
        return self.names[name]

    def element(self, buffer: str) -> tuple[DType, int]:
        """Type and alignment of the elements of a buffer."""
        if buffer in self.memory:
            return self.memory[buffer], self.memory[buffer].bytes
        mem = self.e.mems.get(buffer)
        if mem is None or mem.registers or mem.type != "ptr":
            raise OtherError
        return mem.dtype, mem.align

    def number(self, place: tuple, value: DimLike) -> DimLike:
        """An argument: one for each place in the form, since equal ones may be so by chance."""
        return sym(self.sizes.setdefault((place, value), f"n{len(self.sizes)}"))

    def factor(self, mono: Monomial, value: DimLike) -> DimLike:
        return value if isinstance(value, int) and abs(value) <= SMALL else self.number(("factor", mono), value)

    def added(self, inner: DimLike, outer: DimLike) -> DimLike:
        """An argument that is added to an inner size."""
        if outer == 0:
            return 0
        low, high = bounds(outer, self.e.ranges)
        near = low is not None and high is not None and -FAR <= low and high <= FAR
        return self.number(("near" if near else "any", inner), outer)

    def apart(self, d: DimLike) -> tuple[DimLike, DimLike]:
        """The inner and the outer part of a sum."""
        inner: DimLike = 0
        outer: DimLike = 0
        for mono, c in d.terms if isinstance(d, Dim) else (((), d),):
            own = tuple([a for a in mono if symbols(Dim((((a,), 1),))) & self.inner.keys()])
            rest = tuple([a for a in mono if a not in own])
            times: DimLike = Dim(((rest, c),)) if rest else c
            if not own:
                outer = outer + times
                continue
            whole, before = self.atoms(own)
            inner = inner + whole * self.factor(own, times)
            outer = outer + before * times
        return inner, outer

    def atoms(self, own: Monomial) -> tuple[DimLike, DimLike]:
        """The inner and the outer part of a product of what varies inside.  ``min(i + a, b)`` is
        ``a + min(i, b - a)``."""
        atom, power = own[0]
        if len(own) == 1 and power == 1 and isinstance(atom, Call) and atom.fn in ("min", "max"):
            if any(symbols(a) & self.lanes for a in atom.args):
                raise OtherError  # lanes that are held back lie side by side only where the sizes are known
            sides = [self.apart(a) for a in atom.args]
            first = next(outer for inner, outer in sides if not isinstance(inner, int))
            return apply(atom.fn, [inner + self.added(inner, outer - first) for inner, outer in sides]), first
        whole = Dim(((own, 1),))
        if not symbols(whole) <= self.inner.keys():
            raise OtherError
        return substitute(whole, self.inner), 0

    def places(self, index: Sequence[DimLike]) -> tuple[DimLike, ...]:
        """Of registers: numbers and inner sizes."""
        sides = [self.apart(d) for d in index]
        if not all(isinstance(outer, int) for _, outer in sides):
            raise OtherError
        return tuple([inner + outer for inner, outer in sides])

    def access(self, buffer: str, index: DimLike) -> tuple[str, DimLike]:
        self.element(buffer)
        inner, outer = self.apart(index)
        return self.buffers.setdefault((buffer, outer), f"p{len(self.buffers)}"), inner

    # -- values

    def value(self, x: Expr) -> Expr:
        attr: Any = x.attr
        if self.ops is not None and x.op not in self.ops:
            raise OtherError
        if x.op in ("lt", "le", "gt", "ge", "eq", "ne") and x.args[0].dtype is i64 and all(
                a.op in ("index", "const") for a in x.args):
            return Expr(x.op, self.compared(x.args[0].attr, x.args[1].attr), x.dtype)
        if x.op == "ref":
            attr = (self.known(attr[0]), self.places(attr[1]))
        elif x.op == "load":
            if x.args:
                self.masked()
            attr = self.access(*attr)
        elif x.op == "index":
            return self.index(*self.apart(attr))
        return Expr(x.op, tuple([self.value(a) for a in x.args]), x.dtype, attr)

    def compared(self, left: DimLike, right: DimLike) -> tuple[Expr, Expr]:
        """Both sides of a comparison; what is not inside stands on the right."""
        (a, before), (b, after) = self.apart(left), self.apart(right)
        return self.index(a, 0), self.index(b, after - before)

    def index(self, inner: DimLike, outer: DimLike) -> Expr:
        inner = inner + self.added(inner, outer)
        return Expr("const", (), i64, inner) if isinstance(inner, int) else Expr("index", (), i64, inner)


@functools.lru_cache(KEPT)
def _function(emitter: Any, taken: Taken, target: Target) -> tuple[str, Module]:
    """Name and module of a function."""
    module = Module()
    params = [f"ptr %p{k}" for k in range(len(taken.buffers))]
    params += [f"i64 %n{k}" for k in range(len(taken.sizes))] + [f"i1 %c{k}" for k in range(taken.flags)]
    f = emitter(module, target, _STAND_IN, ", ".join(params), target.attributes)
    f.begin_body(taken.body)
    for k, (d, align) in enumerate(taken.buffers):
        f.mems[f"p{k}"] = Mem(f"%p{k}", "ptr", d, align)
    f.ranges.update({f"n{k}": RANGES[what] for k, what in enumerate(taken.sizes)})
    for stem, count in (("n", len(taken.sizes)), ("c", taken.flags)):
        f.env.update({f"{stem}{k}": Val(f"%{stem}{k}") for k in range(count)})
    f.run(taken.body)
    f.finish()
    name = content_name(module.text(), _STAND_IN)[1]
    named = Module()
    named.take(module, _STAND_IN, name)
    return name, named
