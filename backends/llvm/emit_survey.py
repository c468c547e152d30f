"""What statements are known to do before they are written out.

Here: which names they write and read, how much code a body is, what a vector loop may become.  Not here: the loops
themselves (emit_loops.py).  Read next: emit_loops.py.

Copies of an unrolled loop ask the same again, so answers are kept by the identity of statements, which never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from flowc.dims import DimLike, linear, symbols
from flowc.kernel import (
    Acc,
    Alloc,
    Barrier,
    Expr,
    Fold,
    Let,
    Loop,
    Set,
    Stmt,
    Store,
    children,
    expressions,
    mentions,
    parts,
)

T = TypeVar("T")

# instructions that a function becomes, roughly
_WEIGHTS = {**dict.fromkeys("exp exp2 expm1 log log2 log10 log1p atan asin acos cbrt cosh".split(), 25),
            **dict.fromkeys("sinh tanh asinh acosh atanh erf atan2".split(), 35),
            **dict.fromkeys("sin cos tan pow erfc fmod".split(), 100)}


class Known(NamedTuple):
    """A statement, and the statements in it with their expressions, itself first; outer before inner."""

    stmt: Stmt
    inside: list[tuple[Stmt, list[Expr]]]


class Traits(NamedTuple):
    """A loop, and what is known of its body: can it run as lanes, its instructions, which registers does the loop's
    variable index, is every index linear in the variable."""

    loop: Loop
    lanes: bool
    size: int
    registers: frozenset[str]
    plain: bool

    @property
    def sets(self) -> bool:
        """Does the loop's variable index registers?"""
        return bool(self.registers)


class Survey:
    """Answers about the statements of one function."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}
        self._written: dict[int, tuple[Sequence[Stmt], frozenset[str]]] = {}
        self._traits: dict[int, Traits] = {}
        self._turned: dict[int, tuple[Loop, object]] = {}
        self._loads: dict[int, tuple[Loop, list[tuple[str, DimLike]]]] = {}

    def inside(self, s: Stmt) -> list[tuple[Stmt, list[Expr]]]:
        """A statement and all in it, each with the expressions below those that stand in it."""
        known = self._known.get(id(s))
        if known is None:
            found = [(s, parts(expressions(s)))]
            for stmts in children(s):
                for inner in stmts:
                    found += self.inside(inner)
            known = self._known[id(s)] = Known(s, found)
        return known.inside

    def all(self, stmts: Iterable[Stmt]) -> Iterator[tuple[Stmt, list[Expr]]]:
        return chain.from_iterable(map(self.inside, stmts))

    def written(self, stmts: Sequence[Stmt]) -> frozenset[str]:
        """Buffers and registers that the statements change."""
        known = self._written.get(id(stmts))
        if known is None:
            names: set[str] = set()
            for s in stmts:
                if isinstance(s, Store):
                    names.add(s.buffer)
                elif isinstance(s, (Set, Acc)):
                    names.add(s.name)
                for inner in children(s):
                    names |= self.written(inner)
            known = self._written[id(stmts)] = (stmts, frozenset(names))
        return known[1]

    def used(self, stmts: Sequence[Stmt]) -> set[str]:
        """The registers and values that the statements mention, and the buffers that they change."""
        out = set(self.written(stmts))
        for s, found in self.all(stmts):
            out.update(s.accs if isinstance(s, Fold) else ())
            out.update([x.attr[0] for x in found if x.op == "ref"])
        return out

    def loads(self, s: Loop) -> list[tuple[str, DimLike]]:
        """Buffers with the indices at which the body reads them without a condition."""
        known = self._loads.get(id(s))
        if known is None:
            known = self._loads[id(s)] = (s, [x.attr for _, found in self.all(s.body) for x in found
                                              if x.op == "load" and not x.args])
        return known[1]

    def form(self, s: Loop, find: Callable[[Loop], T]) -> T:
        """``find(s)``, found once."""
        known = self._turned.get(id(s))
        if known is None:
            known = self._turned[id(s)] = (s, find(s))
        return known[1]  # type: ignore[return-value]

    # -- vector loops

    def traits(self, s: Loop) -> Traits:
        known = self._traits.get(id(s))
        if known is None:
            registers, memory = self._indices(s.body)
            known = self._traits[id(s)] = Traits(
                s, self._as_lanes(s), self.size(s.body),
                frozenset(name for name, index in registers if any(s.var in symbols(d) for d in index)),
                all(linear(d, s.var) is not None for d in memory.union(*[index for _, index in registers])))
        return known

    def size(self, stmts: Iterable[Stmt]) -> int:
        """Instructions of a body as written once, functions counted by what they become."""
        seen = {id(x): x for _, found in self.all(stmts) for x in found}
        return len(seen) + sum([_WEIGHTS[x.op] * (1 + (x.dtype.bits == 64)) - 1 for x in seen.values()
                                if x.op in _WEIGHTS])

    def _indices(self, stmts: Iterable[Stmt]) -> tuple[set[tuple[str, tuple[DimLike, ...]]], set[DimLike]]:
        """Registers with their indices, and all other sizes."""
        registers: set[tuple[str, tuple[DimLike, ...]]] = set()
        others: set[DimLike] = set()
        for s, found in self.all(stmts):
            if isinstance(s, Set):
                registers.add((s.name, tuple(s.index)))
            elif isinstance(s, Store):
                others.add(s.index)
            for x in found:
                if x.op == "ref":
                    registers.add((x.attr[0], tuple(x.attr[1])))
                elif x.op == "load":
                    others.add(x.attr[1])
                elif x.op == "index":
                    others.add(x.attr)
        return registers, others

    def _as_lanes(self, s: Loop) -> bool:
        """Can the body run as lanes?  No loop in it may run differently in two lanes, and what is private to a lane
        must lie at the same place in every lane."""
        varying: set[str] = {s.var}
        private: set[str] = set()
        for x, _ in self.all(s.body):
            if isinstance(x, (Fold, Alloc, Barrier)):
                return False
            if isinstance(x, Let):
                if mentions(x.value) & (varying | private):
                    varying.add(x.name)
            elif isinstance(x, Acc):
                private.add(x.name)
            elif isinstance(x, Loop):
                if symbols(x.extent) & varying:
                    return False
        return not any(isinstance(x, Set) and _sets_apart(s, x, private, varying)
                       or private and _reads_apart(found, private, varying) for x, found in self.all(s.body))


def _sets_apart(loop: Loop, s: Set, private: set[str], varying: set[str]) -> bool:
    """Private registers must be written at one place, shared ones at a place of the lane's own."""
    names = {n for d in s.index for n in symbols(d)}
    return bool(names & varying) if s.name in private else loop.var not in names


def _reads_apart(found: Iterable[Expr], private: set[str], varying: set[str]) -> bool:
    return any(e.op == "ref" and e.attr[0] in private and any(symbols(d) & varying for d in e.attr[1])
               for e in found)
