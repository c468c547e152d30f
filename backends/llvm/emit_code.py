"""Code under construction: scopes, sharing of equal instructions, hoisting.

Here: ``Code``, the layer between LLVM text (builder.py) and expressions.  Not here: sizes and addresses
(emit_address.py), what instructions mean (emit_expr.py), statements and loops (emit_loops.py, emit.py).
Read next: emit_address.py.

An instruction without effects is written once per scope and at the outermost place where its operands exist: the
lines before the loop that follows the innermost loop it depends on.  Equal text is equal value.  Loads stay where
they stand and are shared until their buffer is written.  Inside a condition only address arithmetic moves out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flowc.backends.llvm.builder import Function, Module, float_literal
from flowc.backends.llvm.target import Target
from flowc.dataclass import dataclass, field
from flowc.dims import DimLike, Range
from flowc.types import DTYPES, DType, bool_

_NAMES = re.compile(r"%[\w.]+", re.ASCII)


class Val:
    """A value: LLVM text, and whether it has one element per lane or is the same for all lanes.  ``number``: the
    integer that a loop variable stands for in a copy of its body."""

    __slots__ = ("number", "text", "wide")

    def __init__(self, text: str, wide: bool = False, number: int | None = None):
        self.text, self.wide, self.number = text, wide, number

    @property
    def constant(self) -> bool:
        return not self.text.startswith("%")


@dataclass
class Scope:
    """A region that dominates what is emitted inside it.  ``pre``: the lines right before it, in its parent.
    ``shared``: what is known until its end.  ``branch``: runs under a condition.
    ``floor``: number of the innermost scope up to this one that does: work does not leave it.
    ``sums``: parts of addresses that were computed in it: copies of an unrolled loop ask again."""

    pre: list[str]
    branch: bool
    floor: int = 0
    shared: list[Hashable] = field(default_factory=list)
    sums: dict[tuple, Any] = field(default_factory=dict)


@dataclass
class Mem:
    """A buffer or registers: pointer, its type, element type, alignment in bytes.

    ``lanes``: elements per place where each lane has a copy of its own (0: shared by the lanes).
    ``registers``: private memory that becomes registers; ``group``: elements that are one vector register there.
    ``epoch`` counts writes.  ``size``: elements of a parameter, 0 for other memory.  ``whole``: aligned, and as long
    as whole registers."""

    pointer: str
    type: str
    dtype: DType
    align: int
    registers: bool = False
    lanes: int = 0
    strides: tuple[int, ...] = ()
    group: int = 1
    epoch: int = 0
    size: DimLike = 0
    whole: bool = False


@dataclass
class Place:
    """An index, taken apart: scalar terms that are the same for all lanes, a constant, the distance between
    neighbouring lanes, and a vector of offsets for what is not linear in the lane.  ``pattern``: distance of every lane
    from the scalar part, where all are known and differ from step to step."""

    terms: list[str]
    const: int
    stride: int | str
    offsets: str | None
    pattern: tuple[int, ...] | None = None


def place_at(index: str | int) -> Place:
    """One element, the same for all lanes."""
    return Place([], index, 0, None) if isinstance(index, int) else Place([index], 0, 0, None)


# LLVM types of one value, in a register and in memory; 16-bit floats are kept as their bits
REGISTER: dict[DType, str] = {d: {"bool": "i1", "f32": "float", "f64": "double"}.get(d.name) or f"i{d.bits}"
                              for d in DTYPES.values()}
MEMORY: dict[DType, str] = {**REGISTER, bool_: "i8"}
register_type: Callable[[DType], str] = REGISTER.__getitem__
memory_type: Callable[[DType], str] = MEMORY.__getitem__


def literal(value: Any, d: DType) -> str:
    """A scalar constant of ``d`` in its register type."""
    if d.name == "bool":
        return "true" if value else "false"
    if d.name in ("f16", "bf16"):
        text = float_literal(float(value), "half" if d.name == "f16" else "bfloat")
        return str(int(text[3:], 16))
    if d.floating:
        return float_literal(float(value), register_type(d))
    return str(int(value) & ((1 << d.bits) - 1)) if d.kind == "u" else str(int(value))


@functools.cache
def mangled(ty: str) -> str:
    """The suffix of an intrinsic for a type: ``<16 x float>`` is ``v16f32``."""
    if ty.startswith("<"):
        n, _, inner = ty[1:-1].partition(" x ")
        return f"v{n}{mangled(inner)}"
    if ty.startswith("ptr"):
        space = re.search(r"\d+", ty)
        return f"p{space[0] if space else 0}"
    return {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}.get(ty, ty)


def intrinsic_name(name: str, overloads: Sequence[str]) -> str:
    return ".".join((f"llvm.{name}", *map(mangled, overloads)))


class Code(Function):
    """One function: instructions, scopes and addresses.  ``lanes`` is the number of lanes of a wide value, 1 outside
    vector loops; ``lane_base`` gives the value of a vector loop's variable in lane 0."""

    # attributes beyond some thirty in all are slow to look up, unless they have slots
    __slots__ = ("_in_index", "_indexing", "beside", "callees", "ends", "entry", "env", "known", "lane_base", "lanes",
                 "late", "level", "mems", "ranges", "roomy", "scopes", "target")

    def __init__(self, module: Module, target: Target, name: str, args: str, attrs: str):
        super().__init__(module, name, args, attrs=attrs)
        self.target = target
        self.late: list[tuple[int, list[str]]] = []  # lines to be put in, and the number of the one they come before
        self.entry = self.put_in()
        self.scopes = [Scope([], False)]
        self.ends = [self.lines]  # of what each scope holds so far: in all but the innermost what precedes the next
        self.known: dict[Hashable, str] = {}  # instruction text, or what else tells a value -> name, in all open scopes
        self.level: dict[str, int] = dict.fromkeys(_NAMES.findall(args), 0)
        self.callees: dict[tuple, str] = {}
        self.lanes = 1
        self.lane_base: dict[str, str | int] = {}
        self.beside: frozenset[str] = frozenset()
        self.roomy = False  # is there working memory that is as long as whole registers
        self.env: dict[str, Val] = {}
        self.ranges: dict[str, Range] = {}
        self.mems: dict[str, Mem] = {}
        self._indexing, self._in_index = _Indexing(self), 0

    # -- instructions

    def op(self, text: str) -> str:
        """A value without effects: shared, and emitted as far out as its operands allow."""
        return self.known.get(text) or self._new(text, 0 if self._in_index else self.scopes[-1].floor)

    def index_op(self, text: str) -> str:
        """The same for a part of an address: it may leave conditions."""
        return self.known.get(text) or self._new(text, 0)

    def _new(self, text: str, at: int) -> str:
        """An instruction in scope ``at`` or as far in as its operands are."""
        at = max(at, 0, *map(self.level.__getitem__, _NAMES.findall(text)))
        self._n += 1
        self.known[text] = name = f"%t{self._n}"
        self.level[name] = at
        self.ends[at].append(f"  {name} = {text}")
        self.scopes[at].shared.append(text)
        return name

    def here(self, text: str, key: Hashable = None) -> str:
        """A value that must be computed at this place, such as a load.  Calls with one ``key`` share it."""
        return self.known.get(key) or self.new_here(text, key)

    def new_here(self, text: str, key: Hashable = None) -> str:
        self._n += 1
        name = f"%t{self._n}"
        self.lines.append(f"  {name} = {text}")
        self.level[name] = len(self.scopes) - 1
        if key is not None:
            self.known[key] = name
            self.scopes[-1].shared.append(key)
        return name

    def index_arithmetic(self) -> _Indexing:
        """Arithmetic on sizes is cheap and safe anywhere: it may leave conditions."""
        return self._indexing

    def intrinsic(self, name: str, ret: str, *args: str, overloads: Sequence[str] | None = None, effect: bool = False
                  ) -> str:
        """Call ``llvm.name`` with typed ``args`` (``"float %x"``); overloads: the types in its name, by default the
        result type."""
        key = (name, ret, None if overloads is None else tuple(overloads))
        callee = self.callees.get(key)
        if callee is None:
            self.target.allow(name)
            callee = self.callees[key] = self.module.declare(
                intrinsic_name(name, (ret,) if overloads is None else overloads),
                f"{ret} ({', '.join(map(_type_of, args))})")
        text = f"call {ret} {callee}({', '.join(args)})"
        if ret == "void":
            self.raw(text)
            return ""
        return self.here(text) if effect else self.op(text)

    def begin_scope(self, branch: bool) -> Scope:
        """A region that begins a little further down: what is computed before it is put here."""
        return Scope(self.put_in(), branch)

    def put_in(self) -> list[str]:
        """Lines that stand here and are not known yet."""
        lines: list[str] = []
        self.late.append((len(self.lines), lines))
        return lines

    def enter_scope(self, scope: Scope, *names: str) -> None:
        """What follows is inside, where ``names`` are defined."""
        at = len(self.scopes)
        scope.floor = at if scope.branch else self.scopes[-1].floor
        self.scopes.append(scope)
        self.ends[-1] = scope.pre
        self.ends.append(self.lines)
        for name in names:
            self.level[name] = at

    def end_scope(self) -> None:
        """Leave the innermost scope: what was computed in it is gone."""
        for text in self.scopes.pop().shared:
            del self.known[text]
        self.ends.pop()
        self.ends[-1] = self.lines

    @contextmanager
    def loop(self, lo: str | int, hi: str | int, step: str | int = 1, stem: str = "i", sure: bool = False
             ) -> Iterator[str]:
        """``for (i = lo; i < hi; i += step)``, tested at the end; yields i.  ``sure``: it runs at least once."""
        scope = self.begin_scope(False)
        body, done = self.label("body"), self.label("done")
        i, following = self.fresh(stem), self.fresh("next")
        if not (sure or isinstance(lo, int) and isinstance(hi, int) and lo < hi):
            self.cond_br(self.op(f"icmp slt i64 {lo}, {hi}"), body, done)
        else:
            self.br(body)
        before = self.block
        self.begin(body)
        at, lines = len(self.lines), self.lines
        self.raw("")
        self.enter_scope(scope, i)
        yield i
        self.raw(f"{following} = add nsw i64 {i}, {step}")
        again = self.fresh("c")
        self.raw(f"{again} = icmp slt i64 {following}, {hi}")
        lines[at] = f"  {i} = phi i64 [ {lo}, %{before} ], [ {following}, %{self.block} ]"
        self.cond_br(again, body, done)
        self.end_scope()
        self.begin(done)

    @contextmanager
    def branch(self, cond: str) -> Iterator[None]:
        """What is emitted inside runs only where the i1 ``cond`` holds."""
        scope = self.begin_scope(True)
        then, done = self.label("then"), self.label("join")
        self.cond_br(cond, then, done)
        self.begin(then)
        self.enter_scope(scope)
        yield
        self.end_scope()
        self.br(done)
        self.begin(done)

    def choose(self, cond: str, ty: str, then: Any, other: str) -> str:
        """``then()`` computed only where ``cond`` holds, else ``other``."""
        before = self.block
        with self.branch(cond):
            value, block = then(), self.block
        return self.here(f"phi {ty} [ {value}, %{block} ], [ {other}, %{before} ]")

    def finish(self, value: str | None = None) -> None:
        lines, done = [], 0
        for at, late in self.late:
            lines += self.lines[done:at]
            lines += late
            done = at
        self.lines = lines + self.lines[done:]
        super().finish(value)
        self.forget()

    def forget(self) -> None:
        """Give back what only the writing needed, at once: garbage may not be collected while programs compile."""
        for table in (self.lines, self.late, self.ends, self.scopes, self.known, self.level, self.env, self.mems):
            table.clear()  # type: ignore[attr-defined]

    # -- lanes

    def vec(self, ty: str, wide: bool = True) -> str:
        return f"<{self.lanes} x {ty}>" if wide else ty

    def splat(self, v: Val, ty: str) -> str:
        """The value in every lane."""
        if v.wide:
            return v.text
        if v.constant:
            return f"splat ({ty} {v.text})"
        full = self.vec(ty)
        one = self.op(f"insertelement {full} poison, {ty} {v.text}, i64 0")
        return self.op(f"shufflevector {full} {one}, {full} poison, <{self.lanes} x i32> zeroinitializer")

    def iota(self, ty: str = "i64", scale: int = 1) -> str:
        """0, scale, 2*scale, ... as a constant vector."""
        return f"<{', '.join(f'{ty} {k * scale}' for k in range(self.lanes))}>"


class _Indexing:
    """The context of arithmetic on sizes, which nests."""

    def __init__(self, code: Code):
        self._code = code

    def __enter__(self) -> None:
        self._code._in_index += 1

    def __exit__(self, *_: object) -> None:
        self._code._in_index -= 1


def _type_of(arg: str) -> str:
    """The type of a typed operand: ``<4 x i32> %x`` gives ``<4 x i32>``; attributes after ``ptr`` are dropped."""
    if arg.startswith("<"):
        return arg[:arg.index(">") + 1]
    if arg.startswith("ptr addrspace"):
        return arg[:arg.index(")") + 1]
    return arg.split(" ", 1)[0]
