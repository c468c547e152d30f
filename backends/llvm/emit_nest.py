"""Loops around the tiles of contractions as functions that kernels share: packing, unpacking, epilogues.

Here: which loops are such a nest, what of them becomes an argument.  Not here: tiles, what both have in common
(emit_tile.py).  Read next: emit_loops.py.

What brings the operands of a product and takes its results away are a few forms, whatever the sizes: a form keeps its
small numbers, the sides of a tile; sizes, distances in memory and conditions become arguments.  So a second product
pays for none of it.  What is left of its kernel calls functions and does little else: such code runs rarely, and is
compiled quickly (compile.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_interleave import in_blocks, turned
from flowc.backends.llvm.emit_tile import FAR, OtherError, Region, call_region
from flowc.dims import Call, Dim, DimLike, Monomial, apply, substitute, sym, symbols
from flowc.kernel import Acc, Expr, If, Kernel, Let, Loop, Stmt, Store, children, expressions, parts, walk
from flowc.proofs import bounds
from flowc.types import i64

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

SMALL = 64           # numbers up to here are part of the form
UNITS = (16, 8, 4)   # what a size that is an argument may be known to be a multiple of
LEAST = 256          # iterations of a nest, at least, where they are known
PRODUCT = 1 << 18    # iterations of a product that is worth functions of its own
COPY = 1 << 14       # the same of a kernel that only moves elements
MANY = 1 << 10       # iterations of a loop whose number is not known
MOST = 12            # arguments

_MOVES = frozenset("load cast bitcast select const index and or lt le gt ge eq ne".split())


def shares_nests(kernel: Kernel) -> bool:
    """Is the kernel a product, or does it only move elements; and is it so large that it is worth more modules?"""
    stmts, work = list(walk(kernel.body)), _iterations(kernel.body)
    if any(isinstance(s, Acc) for s in stmts):
        return work >= PRODUCT and any(isinstance(s, Acc) and len(s.shape) == 2 for s in stmts)
    return work >= COPY and all(x.op in _MOVES for s in stmts if isinstance(s, Store) for x in parts(expressions(s)))


def nest_call(e: Emitter, stmts: Sequence[Stmt], at: int) -> int:
    """Call the function of the nests of loops that begin at ``stmts[at]``.  How many statements that were; 0 if they
    are none, or not worth it."""
    if e.lanes > 1 or e.mask is not None or not isinstance(stmts[at], (Loop, If)):
        return 0
    nest, body = _Nest(e), list[Stmt]()
    for s in stmts[at:]:
        if not isinstance(s, (Loop, If)) or e.ahead is not None and any(id(x) in e.ahead.loops for x in walk((s,))):
            break
        before, nest.turned = nest.state(), any(isinstance(x, Loop) and e.other_form(x) is not None for x in walk((s,)))
        try:
            body.append(nest.statement(s))
        except OtherError:
            nest.restore(before)
            break
    found = stmts[at:at + len(body)]
    if not _long(found):
        return 0
    try:
        tile = nest.made(body, MOST)
    except OtherError:
        return 0
    call_region(e, nest, tile)
    e.enter(found)
    return len(found)


def _long(stmts: Sequence[Stmt]) -> bool:
    """Do vector loops stand in them, and do these loops run long?"""
    return any(isinstance(x, Loop) and x.kind == "vector" for x in walk(stmts)) and _iterations(stmts) >= LEAST


def _iterations(stmts: Iterable[Stmt]) -> int:
    n = 0
    for s in stmts:
        inside = sum([_iterations(body) for body in children(s)]) or 1
        n += (s.extent if isinstance(s.extent, int) else MANY) * inside if isinstance(s, Loop) else inside
    return n


class _Nest(Region):
    """Numbers that are not small become arguments: one for each place in the form, since equal ones may be so by
    chance."""

    def statement(self, s: Stmt) -> Stmt:
        if isinstance(s, Store) and s.where is not None:
            if not self.e.target.masks:
                raise OtherError
            self.stays(s.buffer)
            where = self.value(s.where)
            return Store(*self.access(s.buffer, s.index), self.value(s.value), where)
        if isinstance(s, If):
            return If(self.value(s.cond), self.block(s.then), self.block(s.other))
        if isinstance(s, (Let, Store)) or isinstance(s, Loop) and s.kind in ("seq", "vector", "unroll"):
            return super().statement(s)
        raise OtherError

    def state(self) -> tuple[dict, ...]:
        return tuple([x.copy() for x in (self.names, self.inner, self.buffers, self.sizes)])

    def restore(self, before: tuple[dict, ...]) -> None:
        self.names, self.inner, self.buffers, self.sizes = before

    def extent(self, s: Loop) -> DimLike:
        d = s.extent
        if isinstance(d, int) and (d <= SMALL if s.kind == "vector" else s.kind == "unroll" or turned(s) is not None):
            return d
        if isinstance(d, Dim) and symbols(d) & self.inner.keys():
            raise OtherError
        units = UNITS if s.kind == "vector" or in_blocks(s) is not None else ()
        unit = next((u for u in units if isinstance(d, int) and d % u == 0), 1)
        return unit * self.number(("extent", len(self.names)), d // unit)

    def number(self, place: tuple, value: DimLike) -> DimLike:
        """An argument."""
        return sym(self.sizes.setdefault((place, value), f"n{len(self.sizes)}"))

    def factor(self, mono: Monomial, value: DimLike) -> DimLike:
        return value if isinstance(value, int) and abs(value) <= SMALL else self.number(("factor", mono), value)

    def apart(self, d: DimLike) -> tuple[DimLike, DimLike]:
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
        """The inner and the outer part of a product of what varies in the nest.  ``min(i + a, b)`` is
        ``a + min(i, b - a)``."""
        atom, power = own[0]
        if len(own) == 1 and power == 1 and isinstance(atom, Call) and atom.fn in ("min", "max"):
            parts = [self.apart(a) for a in atom.args]
            first = next(outer for inner, outer in parts if not isinstance(inner, int))
            return apply(atom.fn, [inner + self.added(inner, outer - first) for inner, outer in parts]), first
        whole = Dim(((own, 1),))
        if not symbols(whole) <= self.inner.keys():
            raise OtherError
        return substitute(whole, self.inner), 0

    def value(self, x: Expr) -> Expr:
        if x.op in ("lt", "le", "gt", "ge", "eq", "ne") and x.args[0].dtype is i64 and all(
                a.op in ("index", "const") for a in x.args):
            return Expr(x.op, self.compared(*[a.attr for a in x.args]), x.dtype)
        if x.op == "index":
            return self.sizes_of(*self.apart(x.attr))
        return super().value(x)

    def compared(self, left: DimLike, right: DimLike) -> tuple[Expr, ...]:
        """Both sides of a comparison; what is not of the nest stands on the right."""
        (a, before), (b, after) = self.apart(left), self.apart(right)
        return self.sizes_of(a, 0), self.sizes_of(b, after - before)

    def added(self, inner: DimLike, outer: DimLike) -> DimLike:
        """An argument that is added to an inner size."""
        if outer == 0:
            return 0
        low, high = bounds(outer, self.e.ranges)
        near = low is not None and high is not None and -FAR <= low and high <= FAR
        return self.number(("near" if near else "any", inner), outer)

    def sizes_of(self, inner: DimLike, outer: DimLike) -> Expr:
        inner = inner + self.added(inner, outer)
        return Expr("const", (), i64, inner) if isinstance(inner, int) else Expr("index", (), i64, inner)

    def simple(self, x: Expr) -> bool:
        return True
