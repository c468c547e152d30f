"""The laws of the Kernel IR.

Here: ``check_kernel``.  Not here: the table of codes and the other IRs (verify.py), proofs about sizes (facts.py).
Read next: facts.py.

One walk over the statements with everything in scope at hand: dtypes by the rules of INSTRS, every index against its
buffer, every write of a loop whose iterations are independent against all accesses of that memory.  What is refuted is
an error; what is only not proved is one if ``strict``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flowc.dataclass import dataclass, field
from flowc.diag import VerifyError
from flowc.dims import SIZE_RANGE, Dim, DimLike, Range, prod, sym, symbols
from flowc.facts import I64, STEPS, Access, Facts, separate
from flowc.kernel import (
    INSTRS,
    KINDS,
    Acc,
    Alloc,
    Barrier,
    Expr,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Stmt,
    Store,
    expressions,
)
from flowc.proofs import known_le
from flowc.text import dim_text, result_dtype, statement_text
from flowc.types import DType, bool_, i64

INDEPENDENT = ("parallel", "vector", "block", "thread")
NESTS = ("parallel", "block", "thread")  # directly nested loops of one of these kinds form one space
ROLES = ("in", "out", "inout")
SPACES = ("local", "shared")
PATIENT = 5  # times as much is tried for a proof that must be found
# kinds of loops that a loop may stand in, beside its own kind
_ALLOWED_IN = {"parallel": (), "block": (), "thread": ("block", "seq", "unroll")}


@dataclass(frozen=True)
class _Loop:
    """A loop in scope, as the walk sees it: ``serial`` tells statements apart that are equal."""

    stmt: Loop
    serial: int


@dataclass
class _Memory:
    """A buffer, an Alloc or an Acc: its extents, and how many loops stand around it."""

    dtype: DType
    shape: tuple[DimLike, ...]
    role: str
    depth: int
    written: bool = False
    touched: list[_Touch] = field(default_factory=list)


@dataclass
class _Touch:
    """One access to a memory, with the loops around it."""

    write: bool
    index: tuple[DimLike, ...]
    facts: Facts
    loops: tuple[_Loop, ...]
    names: tuple[tuple[str, int], ...]  # loop variables and bindings in scope, and the number of loops around them
    stmt: Stmt
    guarded: bool


class _Checker:
    def __init__(self, kernel: Kernel, strict: bool):
        self.kernel, self.strict = kernel, strict
        self.facts = Facts(steps=PATIENT * STEPS if strict else STEPS)
        self.values: dict[str, DType] = {}       # bindings by name
        self.integers: set[str] = set()          # names that sizes may use
        self.memory: dict[str, _Memory] = {}     # buffers and Allocs by %name, Accs by name
        self.names: list[tuple[str, int]] = []
        self.loops: list[_Loop] = []
        self.varying: set[str] = set()           # names whose values differ between threads
        self.divergent = self.guards = self.serial = 0
        self.stmt: Stmt | None = None
        self.done: set[int] = set()

    # -- reporting

    def fail(self, code: str, text: str, notes: Sequence[str] = ()) -> VerifyError:
        where = [] if self.stmt is None else [f"in {statement_text(self.kernel, self.stmt)}"]
        return VerifyError(code, f"kernel {self.kernel.name}: {text}", notes=[*where, *notes],
                           cure="the pass that built the kernel is wrong; report it with the text of the kernel")

    def unproved(self, text: str, code: str = "V107") -> None:
        if self.strict:
            raise self.fail(code, text)

    def claim(self, claims: Sequence[DimLike], code: str, text: str, facts: Facts) -> None:
        """Every size of ``claims`` is >= 0: proved, refuted (an error), or unknown."""
        if all(facts.nonnegative(d) for d in claims):
            return  # by what is stated of names; otherwise by what they stand for
        claims = [facts.resolve(d) for d in claims]
        if all(facts.nonnegative(d) for d in claims):
            return
        example = facts.refuted(claims, frozenset(n for n, _ in self.names))
        if example is not None:
            used = frozenset().union(*(symbols(d) for d in claims))
            shown = ", ".join(f"{n} = {v}" for n, v in example.items() if n in used)
            raise self.fail(code, text, [f"for {shown}"] if shown else ())
        self.unproved(f"not proved: {text} does not happen")

    # -- the whole

    def run(self) -> None:
        k = self.kernel
        for n in k.dims:
            self.define(n)
            self.integers.add(n)
        ranges = dict(k.ranges)
        for n in k.dims:
            self.facts.define(n, ranges.get(n, SIZE_RANGE))
        for n, (lo, hi) in k.ranges:
            self.sizes((n_ for n_ in (lo, hi) if n_ is not None), f"the range of {n}")
            if n not in self.integers:
                raise self.fail("V102", f"a range is given for {n}, which is no dim")
        for p in k.params:
            if p.role not in ROLES:
                raise self.fail("V120", f"%{p.name} has the role {p.role}; there are {', '.join(ROLES)}")
            if f"%{p.name}" in self.memory:
                raise self.fail("V101", f"%{p.name} is defined twice")
            self.sizes(p.shape, f"the shape of %{p.name}")
            self.memory[f"%{p.name}"] = _Memory(p.dtype, (prod(p.shape),), p.role, 0, p.role != "out")
        nests = [s for s in k.body if isinstance(s, Loop) and s.kind in ("parallel", "block")]
        if len(nests) > 1:
            raise self.fail("V115", f"{len(nests)} nests of parallel loops; a kernel has at most one")
        self.block(k.body)
        self.stmt = None
        for name, m in self.memory.items():
            self.races(name, m)

    def block(self, stmts: Sequence[Stmt]) -> None:
        """Statements of one scope: what they define ends with it, what they write does not."""
        values, integers, names = dict(self.values), set(self.integers), list(self.names)
        memory, facts = dict(self.memory), self.facts
        self.facts = facts.copy()
        for s in stmts:
            self.stmt = s
            check = _CHECKS.get(type(s))
            if check is None:
                raise self.fail("V104", f"{type(s).__name__} is no statement")
            check(self, s)
        ended = [(n, m) for n, m in self.memory.items() if n not in memory]
        for name, m in ended:
            self.races(name, m)
        self.values, self.integers, self.names, self.memory, self.facts = values, integers, names, memory, facts

    def define(self, name: str) -> None:
        if name in self.values or name in self.integers or name in self.memory:
            raise self.fail("V101", f"{name} is defined twice")

    def sizes(self, ds: Iterable[DimLike], what: str) -> None:
        for d in ds:
            unknown = symbols(d) - self.integers
            if unknown:
                raise self.fail("V102", f"{what} uses {sorted(unknown)[0]}, which is no integer defined here")

    # -- expressions

    def exprs(self, roots: Iterable[Expr], facts: Facts) -> None:
        """Every expression below ``roots``: instruction, dtypes, names, bounds of loads."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            e = stack.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            row = INSTRS.get(e.op)
            if row is None or len(e.args) not in ((0, 2) if e.op == "load" else (row.arity,)):
                raise self.fail("V104", f"{e.op} with {len(e.args)} operands is no instruction")
            _RULES.get(e.op, _Checker.plain)(self, e, facts)
            stack += e.args

    def plain(self, e: Expr, facts: Facts) -> None:
        row, dtypes = INSTRS[e.op], [a.dtype for a in e.args]
        kinds = {d.kind for d in (dtypes[:1] if e.op in ("cast", "bitcast") or row.operands else dtypes)}
        good = all(k in row.kinds for k in kinds)
        if e.op in ("cast", "bitcast"):
            good = good and e.dtype.kind in row.kinds and (e.op == "cast" or dtypes[0].bits == e.dtype.bits)
        else:
            good = good and result_dtype(e.op, dtypes) is e.dtype
            of = dtypes[0] if row.result == "bool" else e.dtype
            good = good and tuple(dtypes) == row.dtypes(of)
        if not good:
            raise self.fail("V103", f"{e.op}({', '.join(map(str, dtypes))}) -> {e.dtype} breaks the rule of {e.op}: "
                            f"{row.doc}")

    def const(self, e: Expr, facts: Facts) -> None:
        v, d = e.attr, e.dtype
        want = {"b": (bool, np.bool_), "f": (float,)}.get(d.kind, (int,))
        fits = isinstance(v, want) and (d.kind == "b") == isinstance(v, (bool, np.bool_)) and d.kind in "biuf"
        if fits and d.integer:
            info = np.iinfo(d.numpy)
            fits = info.min <= v <= info.max
        if not fits:
            raise self.fail("V105", f"{v!r} is no constant of {d}")

    def index(self, e: Expr, facts: Facts) -> None:
        if not isinstance(e.attr, (int, Dim)) or isinstance(e.attr, bool):
            raise self.fail("V104", f"index of {e.attr!r}")
        if e.dtype is not i64:
            raise self.fail("V103", f"index({dim_text(e.attr)}) is i64, not {e.dtype}")
        self.sizes((e.attr,), "an index")

    def ref(self, e: Expr, facts: Facts) -> None:
        name, at = self.pair(e)
        if not isinstance(at, tuple):
            raise self.fail("V104", f"ref of {e.attr!r}")
        m = self.memory.get(name)
        dtype = m.dtype if m is not None else self.values.get(name)
        if dtype is None:
            raise self.fail("V102", f"{name} is not defined here")
        if dtype is not e.dtype:
            raise self.fail("V103", f"{name} is {dtype}, not {e.dtype}")
        if m is not None:
            self.element(name, m, at, facts, False)
        elif at:
            raise self.fail("V116", f"{name} is a scalar, and is indexed")

    def load(self, e: Expr, facts: Facts) -> None:
        name, at = self.pair(e)
        m = self.memory.get(f"%{name}")
        if m is None:
            raise self.fail("V102", f"%{name} is not defined here")
        if not isinstance(at, (int, Dim)):
            raise self.fail("V104", f"load of {e.attr!r}")
        if m.dtype is not e.dtype or e.args and (e.args[0].dtype is not bool_ or e.args[1].dtype is not e.dtype):
            raise self.fail("V103", f"a load of {e.dtype} from %{name}, which holds {m.dtype}")
        if not m.written:
            raise self.fail("V114", f"%{name} is read before anything is written to it")
        self.sizes((at,), f"the index of %{name}")
        if e.args:
            facts = facts.copy()
            facts.assume(e.args[0])
        self.inside(f"%{name}[{dim_text(at)}]", at, m.shape[0], "V106", facts)
        self.touch(m, False, (at,), facts, bool(e.args))

    def pair(self, e: Expr) -> tuple[str, Any]:
        if not (isinstance(e.attr, tuple) and len(e.attr) == 2 and isinstance(e.attr[0], str)):
            raise self.fail("V104", f"{e.op} of {e.attr!r}")
        return e.attr

    def inside(self, what: str, at: DimLike, size: DimLike, code: str, facts: Facts) -> None:
        self.claim((at, size - 1 - at), code, f"{what} outside 0..{dim_text(size - 1)}", facts)

    def element(self, name: str, m: _Memory, at: tuple[DimLike, ...], facts: Facts, write: bool) -> None:
        """An element of an Acc."""
        if len(at) != len(m.shape):
            raise self.fail("V116", f"{name} has {len(m.shape)} axes and is indexed by {len(at)}")
        self.sizes(at, f"an index of {name}")
        for d, n in zip(at, m.shape, strict=True):
            self.inside(f"{name}[{dim_text(d)}]", d, n, "V116", facts)
        self.touch(m, write, at, facts, False)

    def touch(self, m: _Memory, write: bool, index: tuple[DimLike, ...], facts: Facts, guarded: bool) -> None:
        if m.role != "in" and any(x.stmt.kind in INDEPENDENT for x in self.loops[m.depth:]):
            assert self.stmt is not None
            index = tuple(map(facts.resolve, index))
            m.touched.append(_Touch(write, index, facts, tuple(self.loops), tuple(self.names), self.stmt,
                                    guarded or self.guards > 0))

    # -- statements

    def let(self, s: Let) -> None:
        self.exprs((s.value,), self.facts)
        self.define(s.name)
        self.values[s.name] = s.value.dtype
        if self.differs(s.value):
            self.varying.add(s.name)
        if s.value.dtype is not i64:
            if s.range is not None:
                raise self.fail("V117", f"{s.name} is {s.value.dtype} and has a range; only i64 bindings have")
            return
        if s.range is not None:
            self.sizes((d for d in s.range if d is not None), f"the range of {s.name}")
            self.binding(s, s.range)
        self.integers.add(s.name)
        self.names.append((s.name, len(self.loops)))
        self.facts.define(s.name, I64 if s.range is None else (s.range[0], I64[1] if s.range[1] is None
                                                               else s.range[1]))
        if s.value.op == "index":
            self.facts.alias[s.name] = self.facts.resolve(s.value.attr)

    def binding(self, s: Let, range_: Range) -> None:
        lo, hi = range_
        low = self.bounded(s.value, lambda d: self.facts.le(lo, d), "max")
        high = hi is None or self.bounded(s.value, lambda d: self.facts.le(d, hi), "min")
        if low and high:
            return
        v = s.value.attr if s.value.op in ("const", "index") else None
        if v is not None and (known_le(lo, v, self.facts.ranges) is False
                              or hi is not None and known_le(v, hi, self.facts.ranges) is False):
            raise self.fail("V121", f"{s.name} is outside its range")
        self.unproved(f"not proved: {s.name} lies in its range", "V121")

    def bounded(self, e: Expr, holds: Callable[[DimLike], bool], one: str) -> bool:
        """Does ``holds`` follow for the value of ``e``, where one operand of ``one`` is enough for it?"""
        if e.op in ("const", "index") and not isinstance(e.attr, bool):
            return holds(e.attr)
        if e.op in ("min", "max", "select"):
            parts = [self.bounded(a, holds, one) for a in e.args[-2:]]
            return any(parts) if e.op == one else all(parts)
        if e.op == "cast" and e.args[0].op == "and":
            return self.bounded(e.args[0], holds, one)
        if e.op == "and" and e.args[1].op == "const" and 0 <= e.args[1].attr <= I64[1]:
            return holds(0 if one == "max" else e.args[1].attr)
        return False

    def acc(self, s: Acc) -> None:
        self.exprs((s.init,), self.facts)
        self.define(s.name)
        if s.init.dtype is not s.dtype:
            raise self.fail("V117", f"{s.name} is {s.dtype}, its first value {s.init.dtype}")
        if not all(isinstance(n, int) and n > 0 for n in s.shape):
            raise self.fail("V112", f"{s.name} has extents {s.shape}; registers have positive numbers")
        self.memory[s.name] = _Memory(s.dtype, s.shape, "acc", len(self.loops), True)
        if self.differs(s.init) or any(x.stmt.kind == "thread" for x in self.loops):
            self.varying.add(s.name)

    def set(self, s: Set) -> None:
        self.exprs((s.value,), self.facts)
        m = self.memory.get(s.name)
        if m is None or m.role != "acc":
            raise self.fail("V102", f"{s.name} is no register defined here")
        if m.dtype is not s.value.dtype:
            raise self.fail("V117", f"{s.name} is {m.dtype}, the value {s.value.dtype}")
        across = [x.stmt for x in self.loops[m.depth:] if x.stmt.kind in NESTS]
        if across:
            raise self.fail("V122", f"{s.name} stands outside of the {across[0].kind} loop over {across[0].var} "
                            "that sets it")
        for x in self.loops[m.depth:]:
            if x.stmt.kind == "vector" and not any(x.stmt.var in symbols(d) for d in s.index):
                raise self.fail("V111", f"all lanes of the vector loop over {x.stmt.var} set one element of {s.name}")
        self.element(s.name, m, s.index, self.facts, True)
        if self.divergent or self.differs(s.value):
            self.varying.add(s.name)

    def store(self, s: Store) -> None:
        self.exprs(expressions(s), self.facts)
        m = self.memory.get(f"%{s.buffer}")
        if m is None:
            raise self.fail("V102", f"%{s.buffer} is not defined here")
        if m.role == "in":
            raise self.fail("V113", f"%{s.buffer} is only read")
        if m.dtype is not s.value.dtype or s.where is not None and s.where.dtype is not bool_:
            raise self.fail("V117", f"%{s.buffer} holds {m.dtype}, the value is {s.value.dtype}")
        self.sizes((s.index,), f"the index of %{s.buffer}")
        facts = self.facts
        if s.where is not None:
            facts = facts.copy()
            facts.assume(s.where)
        self.inside(f"%{s.buffer}[{dim_text(s.index)}]", s.index, m.shape[0], "V106", facts)
        m.written = True
        self.touch(m, True, (s.index,), facts, s.where is not None)

    def fold(self, s: Fold) -> None:
        n = s.extent
        accs = [self.memory.get(a) for a in s.accs]
        count = len(s.accs)
        lengths = {len(x) for x in (s.names, s.accs, s.left, s.right, s.values)}
        if n < 1 or n & (n - 1) or lengths != {count} or not all(
                m is not None and m.role == "acc" and m.shape == (n,) for m in accs):
            raise self.fail("V118", f"a fold over {n} lanes of {', '.join(s.accs)}; each must be a register array of "
                            "that extent, a power of two, with a name, two operands and a value")
        values = dict(self.values)
        for name, m in zip((*s.left, *s.right), accs * 2):
            assert m is not None
            self.define(name)
            self.values[name] = m.dtype
        self.exprs(s.values, self.facts)
        self.values = values
        for name, m, v in zip(s.names, accs, s.values, strict=True):
            assert m is not None
            if v.dtype is not m.dtype:
                raise self.fail("V118", f"the lanes are {m.dtype}, combined they are {v.dtype}")
            self.define(name)
            self.values[name] = v.dtype
            if s.accs[s.names.index(name)] in self.varying:
                self.varying.add(name)

    def alloc(self, s: Alloc) -> None:
        if s.space not in SPACES:
            raise self.fail("V119", f"%{s.name} is in the space {s.space}; there are {', '.join(SPACES)}")
        kinds = [x.stmt.kind for x in self.loops]
        if s.space == "shared" and ("block" not in kinds or "thread" in kinds or not isinstance(s.size, int)):
            raise self.fail("V119", f"%{s.name} is shared: it has a known size and stands in a block loop, outside of "
                            "thread loops")
        if f"%{s.name}" in self.memory:
            raise self.fail("V101", f"%{s.name} is defined twice")
        self.sizes((s.size,), f"the size of %{s.name}")
        self.memory[f"%{s.name}"] = _Memory(s.dtype, (s.size,), s.space, len(self.loops), True)

    def if_(self, s: If) -> None:
        self.exprs((s.cond,), self.facts)
        if s.cond.dtype is not bool_:
            raise self.fail("V117", f"a condition of {s.cond.dtype}")
        splits = self.differs(s.cond)
        before = self.facts
        self.divergent += splits
        self.guards += 1
        for body, holds in ((s.then, True), (s.other, False)):
            self.facts = before.copy()
            self.facts.assume(s.cond, holds)
            self.block(body)
        self.facts = before
        self.guards -= 1
        self.divergent -= splits

    def barrier(self, s: Barrier) -> None:
        if not any(x.stmt.kind == "thread" for x in self.loops):
            raise self.fail("V110", "a barrier outside of thread loops")
        if self.divergent:
            raise self.fail("V110", "a barrier that not all threads reach together")

    def loop(self, s: Loop) -> None:
        self.loop_kind(s)
        self.sizes((s.extent,), f"the extent of {s.var}")
        self.define(s.var)
        extent = self.facts.resolve(s.extent)
        if known_le(extent, 0, self.facts.ranges):
            return  # no iteration: whatever stands inside is never run
        differs = s.kind in ("seq", "unroll") and bool(symbols(s.extent) & self.varying)
        serial, self.serial = self.serial, self.serial + 1
        integers, names, facts = set(self.integers), list(self.names), self.facts
        self.facts = facts.copy()
        self.integers.add(s.var)
        self.facts.add(extent - 1)  # inside, there is an iteration
        self.facts.define(s.var, (0, s.extent - 1))
        if extent != s.extent:
            self.facts.add(extent - 1 - sym(s.var))
        self.loops.append(_Loop(s, serial))
        self.names.append((s.var, len(self.loops)))
        if s.kind in ("thread", "vector"):
            self.varying.add(s.var)
        self.divergent += differs
        self.block(s.body)
        self.divergent -= differs
        self.loops.pop()
        self.integers, self.names, self.facts = integers, names, facts
        self.varying.discard(s.var)

    def loop_kind(self, s: Loop) -> None:
        if s.kind not in KINDS or not isinstance(s.width, int) or s.width < 1:
            raise self.fail("V115", f"a loop of kind {s.kind}, width {s.width}; there are {', '.join(KINDS)}")
        if s.kind in ("unroll", "thread") and not isinstance(s.extent, int):
            raise self.fail("V112", f"the {s.kind} loop over {s.var} has the extent {dim_text(s.extent)}, not a number")
        if s.kind in _ALLOWED_IN:
            outer = [x.stmt.kind for x in self.loops]
            allowed = (s.kind, *_ALLOWED_IN[s.kind])
            if any(k not in allowed for k in outer) or s.kind != "thread" and self.guards:
                raise self.fail("V115", f"a {s.kind} loop inside of {', '.join(outer) or 'a condition'}")
        elif s.kind == "vector" and any(x.stmt.kind == "vector" for x in self.loops):
            raise self.fail("V115", "a vector loop inside a vector loop")

    def differs(self, e: Expr) -> bool:
        """May the value of ``e`` differ between threads of a block?"""
        stack, seen = [e], set()
        while stack:
            x = stack.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if set(_names(x)) & self.varying or x.op == "load" and any(y.stmt.kind == "thread" for y in self.loops):
                return True
            stack += x.args
        return False

    # -- independent iterations

    def races(self, name: str, m: _Memory) -> None:
        """No two iterations of a loop whose iterations are independent touch one place of ``m``, if one writes it."""
        kinds: dict[tuple, _Touch] = {}
        for t in m.touched:
            kinds.setdefault((t.write, t.index, tuple(x.serial for x in t.loops), tuple(t.facts.known), t.guarded), t)
        touched, m.touched = list(kinds.values()), []
        for i, w in enumerate(touched):
            if not w.write:
                continue
            for j, other in enumerate(touched):
                if other.write and j < i:
                    continue
                for depth in range(m.depth, _common(w.loops, other.loops)):
                    loop = w.loops[depth].stmt
                    if loop.kind not in INDEPENDENT or loop.kind == "thread" and w is not other:
                        continue  # threads may touch one place on two sides of a barrier
                    if m.role == "acc" and loop.kind in NESTS or known_le(loop.extent, 1, w.facts.ranges):
                        continue  # registers there are reported as V122; one iteration is alone
                    self.stmt = w.stmt
                    self.race(name, w, other, depth)

    def race(self, name: str, a: _Touch, b: _Touch, depth: int) -> None:
        if not self.strict and not (a is b and self.surely(a, depth)):
            return  # whatever is proved, there is nothing to report
        loop = a.loops[depth].stmt
        common = {x.stmt.var for x in a.loops[:_common(a.loops, b.loops)]}

        def access(t: _Touch) -> Access:
            return Access(t.index, t.facts, tuple(n for n, d in t.names if d > depth))
        one, two = access(a), access(b)
        if separate(one, two, [n for n in one.names if n in two.names and n in common]):
            return
        if a is b and self.surely(a, depth):
            raise self.fail("V108", f"all iterations of the {loop.kind} loop over {loop.var} write {name}"
                            f"[{', '.join(map(dim_text, a.index))}]")
        verb = "write" if b.write else "write and read"
        self.unproved(f"not proved: no two iterations of the {loop.kind} loop over {loop.var} {verb} one place of "
                      f"{name}", "V109")

    def surely(self, t: _Touch, depth: int) -> bool:
        """Is one place certainly written by two iterations of the loop at ``depth``?"""
        inner = {n for n, d in t.names if d > depth}
        if t.guarded or any(symbols(d) & inner for d in t.index) or t.facts.opaque:
            return False
        return known_le(2, t.loops[depth].stmt.extent, t.facts.ranges) is True and all(
            known_le(1, x.stmt.extent, t.facts.ranges) is True for x in t.loops[depth + 1:])


def _common(a: Sequence[_Loop], b: Sequence[_Loop]) -> int:
    """How many loops stand around both."""
    n = 0
    while n < min(len(a), len(b)) and a[n].serial == b[n].serial:
        n += 1
    return n


def _names(e: Expr) -> Iterator[str]:
    if e.op == "ref":
        yield e.attr[0]
        for d in e.attr[1]:
            yield from symbols(d)
    elif e.op == "index":
        yield from symbols(e.attr)
    elif e.op == "load":
        yield from symbols(e.attr[1])


_RULES: dict[str, Callable[[_Checker, Expr, Facts], None]] = {
    "const": _Checker.const, "index": _Checker.index, "ref": _Checker.ref, "load": _Checker.load}
_CHECKS: dict[type, Callable[[_Checker, Any], None]] = {
    Let: _Checker.let, Acc: _Checker.acc, Set: _Checker.set, Store: _Checker.store, Fold: _Checker.fold,
    Alloc: _Checker.alloc, If: _Checker.if_, Barrier: _Checker.barrier, Loop: _Checker.loop}


def check_kernel(kernel: Kernel, strict: bool = False) -> None:
    """Raise VerifyError (V101 .. V122) for the first broken law of ``kernel``."""
    _Checker(kernel, strict).run()
