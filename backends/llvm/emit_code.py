"""Code under construction: scopes, sharing of equal instructions, hoisting, addresses.

Here: ``Code``, the layer between LLVM text (builder.py) and expressions.  Not here: what instructions mean
(emit_expr.py), statements and loops (emit_loops.py, emit.py).  Read next: emit_expr.py.

An instruction without effects is written once per scope and at the outermost place where its operands exist: the
lines before the loop that follows the innermost loop it depends on.  Equal text is equal value.  Loads stay where
they stand and are shared until their buffer is written.  Inside a condition only address arithmetic moves out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flowc.backends.llvm.builder import Function, Module, float_literal
from flowc.backends.llvm.target import Target
from flowc.dims import Call, Dim, DimLike, Range, apply, evaluate, floordiv, substitute, sym, symbols
from flowc.proofs import bounds, simplify
from flowc.types import DType

_NAMES = re.compile(r"%[\w.]+")


class Val(NamedTuple):
    """A value: LLVM text, and whether it has one element per lane or is the same for all lanes."""

    text: str
    wide: bool = False

    @property
    def constant(self) -> bool:
        return not self.text.startswith("%")


@dataclass
class Scope:
    """A region that dominates what is emitted inside it.  ``pre``: the lines right before it, in its parent.
    ``shared``: texts of the instructions that live until its end.  ``branch``: runs under a condition.
    ``sums``: parts of addresses that were computed in it: copies of an unrolled loop ask again."""

    pre: list[Any]
    branch: bool
    shared: list[str] = field(default_factory=list)
    sums: dict[tuple, Any] = field(default_factory=dict)


@dataclass
class Mem:
    """A buffer or registers: pointer, its type, element type, alignment in bytes.

    ``lanes``: elements per place where each lane has a copy of its own (0: shared by the lanes).
    ``registers``: private memory that becomes registers; ``group``: elements that are one vector register there.
    ``epoch`` counts writes."""

    pointer: str
    type: str
    dtype: DType
    align: int
    registers: bool = False
    lanes: int = 0
    strides: tuple[int, ...] = ()
    group: int = 1
    epoch: int = 0


@dataclass
class Place:
    """An index, taken apart: scalar terms that are the same for all lanes, a constant, the distance between
    neighbouring lanes, and a vector of offsets for what is not linear in the lane.  ``pattern``: distance of every lane
    from the scalar part, where all are known."""

    terms: list[str]
    const: int
    stride: int | str
    offsets: str | None
    pattern: tuple[int, ...] | None = None


def place_at(index: str | int) -> Place:
    """One element, the same for all lanes."""
    return Place([], index, 0, None) if isinstance(index, int) else Place([index], 0, 0, None)


REGISTER = {"bool": "i1", "f16": "i16", "bf16": "i16", "f32": "float", "f64": "double"}
MEMORY = {**REGISTER, "bool": "i8"}


def register_type(d: DType) -> str:
    """LLVM type of one value in a register; 16-bit floats are kept as their bits."""
    return REGISTER.get(d.name) or f"i{d.bits}"


def memory_type(d: DType) -> str:
    return MEMORY.get(d.name) or f"i{d.bits}"


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

    def __init__(self, module: Module, target: Target, name: str, args: str, attrs: str):
        super().__init__(module, name, args, attrs=attrs)
        self.target = target
        self.entry: list[Any] = []
        self.lines.append(self.entry)  # type: ignore[arg-type]
        self.scopes = [Scope([], False)]
        self.known: dict[str, str] = {}  # instruction text -> name, in all open scopes
        self.level: dict[str, int] = dict.fromkeys(_NAMES.findall(args), 0)
        self.lanes = 1
        self.lane_base: dict[str, str | int] = {}
        self.env: dict[str, Val] = {}
        self.ranges: dict[str, Range] = {}
        self.mems: dict[str, Mem] = {}
        self._sizes, self._indexing = _Symbols(self), _Indexing(self)

    # -- instructions

    def op(self, text: str) -> str:
        """A value without effects: shared, and emitted as far out as its operands allow."""
        known = self.known.get(text)
        if known is not None:
            return known
        at = max(self._level(text), self._floor())
        name = self.fresh()
        line = f"  {name} = {text}"
        if at == len(self.scopes) - 1:
            self.lines.append(line)
        else:
            self.scopes[at + 1].pre.append(line)
        self._share(text, name, at)
        self.level[name] = at
        return name

    def _share(self, text: str, name: str, at: int) -> None:
        self.known[text] = name
        self.scopes[at].shared.append(text)

    def here(self, text: str, key: str = "") -> str:
        """A value that must be computed at this place, such as a load.  Calls with one ``key`` share it."""
        known = self.known.get(key) if key else None
        if known is not None:
            return known
        name = self.fresh()
        self.raw(f"{name} = {text}")
        self.level[name] = len(self.scopes) - 1
        if key:
            self._share(key, name, len(self.scopes) - 1)
        return name

    def _level(self, text: str) -> int:
        level = self.level
        return max([level[n] for n in _NAMES.findall(text)], default=0)

    def _floor(self) -> int:
        """The innermost scope that runs under a condition: work does not leave it."""
        if not self._in_index:
            for i in range(len(self.scopes) - 1, 0, -1):
                if self.scopes[i].branch:
                    return i
        return 0

    _in_index = 0

    def index_arithmetic(self) -> _Indexing:
        """Arithmetic on sizes is cheap and safe anywhere: it may leave conditions."""
        return self._indexing

    def intrinsic(self, name: str, ret: str, *args: str, overloads: Sequence[str] | None = None, effect: bool = False
                  ) -> str:
        """Call ``llvm.name`` with typed ``args`` (``"float %x"``); overloads: the types in its name, by default the
        result type."""
        self.target.allow(name)
        callee = self.module.declare(intrinsic_name(name, (ret,) if overloads is None else overloads),
                                     f"{ret} ({', '.join(map(_type_of, args))})")
        text = f"call {ret} {callee}({', '.join(args)})"
        if ret == "void":
            self.raw(text)
            return ""
        return self.here(text) if effect else self.op(text)

    def begin_scope(self, branch: bool) -> Scope:
        scope = Scope([], branch)
        self.lines.append(scope.pre)  # type: ignore[arg-type]
        return scope

    def end_scope(self) -> None:
        """Leave the innermost scope: what was computed in it is gone."""
        for text in self.scopes.pop().shared:
            del self.known[text]

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
        self.scopes.append(scope)
        self.level[i] = len(self.scopes) - 1
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
        self.scopes.append(scope)
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
        self.lines = list(_flat(self.lines))
        super().finish(value)

    # -- lanes

    def vec(self, ty: str, wide: bool = True) -> str:
        return f"<{self.lanes} x {ty}>" if wide else ty

    def splat(self, v: Val, ty: str) -> str:
        """The value in every lane."""
        if v.wide:
            return v.text
        if v.constant:
            return f"splat ({ty} {v.text})"
        one = self.op(f"insertelement {self.vec(ty)} poison, {ty} {v.text}, i64 0")
        return self.op(f"shufflevector {self.vec(ty)} {one}, {self.vec(ty)} poison, "
                       f"<{self.lanes} x i32> zeroinitializer")

    def iota(self, ty: str = "i64", scale: int = 1) -> str:
        """0, scale, 2*scale, ... as a constant vector."""
        return f"<{', '.join(f'{ty} {k * scale}' for k in range(self.lanes))}>"

    # -- sizes

    def int_of(self, name: str) -> str | int:
        """The scalar i64 value of a symbol."""
        text = self.env[name].text
        return text if text.startswith("%") else int(text)

    def varying(self, d: DimLike) -> bool:
        """Does the size depend on the lane?"""
        if isinstance(d, int):
            return False
        return any(s in self.lane_base or self.env[s].wide for s in symbols(d))

    def size(self, d: DimLike) -> str | int:
        """A size that is the same for all lanes."""
        with self.index_arithmetic():
            return self.dim(d, self._sizes)  # type: ignore[arg-type]

    def place(self, d: DimLike) -> Place:
        """Take an index apart; see Place."""
        plain = self._plain_place(d)
        if plain is not None:
            return plain
        with self.index_arithmetic():
            d = self._resolve(d)
            const, wide = 0, []
            terms, strides = list[str | int](), list[str | int]()
            known: list[tuple[int, ...]] = []
            for mono, c in d.terms if isinstance(d, Dim) else (((), d),):
                if not mono:
                    const += c
                    continue
                simple = self._simple_term(mono, c, strides)
                if simple is not None:
                    terms.append(simple)
                    continue
                one = Dim(((mono, c),))
                if not self.varying(one):
                    terms.append(self.size(one))
                    continue
                split = self._lane_coefficient(mono, c)
                if split is None:
                    values = self._lane_values(one)
                    if values is None:
                        wide.append(self._wide_term(mono, c))
                    else:
                        known.append(values)
                    continue
                factor, base = split
                strides.append(factor)
                terms.append(self.mul(factor, base))
            const += sum(t for t in terms if isinstance(t, int))
            stride: str | int = 0
            for f in strides:
                stride = self.add(stride, f)
            pattern = None
            if isinstance(stride, int) and not wide and self.lanes > 1 and (known or stride):
                lane = [stride * k for k in range(self.lanes)]
                pattern = tuple(map(sum, zip(lane, *known, strict=True))) if known else tuple(lane)
            if known:
                wide.append(f"<{', '.join(f'i64 {sum(column)}' for column in zip(*known, strict=True))}>")
            offsets = wide[0] if wide else None
            for w in wide[1:]:
                offsets = self.op(f"add {self.vec('i64')} {offsets}, {w}")
            return Place([t for t in terms if isinstance(t, str)], const, stride, offsets, pattern)

    def _plain_place(self, d: DimLike) -> Place | None:
        """The place of a sum of symbols times numbers, as nearly all indices are; None for any other."""
        if isinstance(d, int):
            return Place([], d, 0, None)
        const, stride = 0, 0
        rest: list[tuple[str, int]] = []
        for mono, c in d.terms:
            if not mono:
                const += c
                continue
            name, power = mono[0]
            if len(mono) > 1 or power != 1 or not isinstance(name, str):
                return None
            base = self.lane_base.get(name)
            if base is not None:
                if not isinstance(base, int):
                    return None
                stride += c
                const += c * base
                continue
            v = self.env[name]
            if v.wide:
                return None
            if v.text[0] == "%":
                rest.append((v.text, c))
            else:
                const += int(v.text) * c
        sums, key = self.scopes[-1].sums, tuple(rest)
        terms = sums.get(key)
        if terms is None:
            with self.index_arithmetic():
                terms = sums[key] = [self.mul(text, c) for text, c in rest]  # type: ignore[misc]
        pattern = tuple([stride * k for k in range(self.lanes)]) if stride and self.lanes > 1 else None
        return Place(terms, const, stride, None, pattern)

    def _simple_term(self, mono, c: int, strides: list) -> str | int | None:
        """The scalar part of a symbol times a number, as nearly all terms are; None for other terms."""
        (name, power) = mono[0]
        if len(mono) > 1 or power != 1 or not isinstance(name, str):
            return None
        base = self.lane_base.get(name)
        if base is not None:
            strides.append(c)
            return self.mul(c, base)
        v = self.env[name]
        if v.wide:
            return None
        return self.mul(v.text, c) if v.text[0] == "%" else int(v.text) * c

    def _lane_values(self, d: Dim) -> tuple[int, ...] | None:
        """The size in every lane, if the lane alone decides it."""
        names = symbols(d)
        if len(names) != 1:
            return None
        (name,) = names
        base = self.lane_base.get(name)
        return tuple(evaluate(d, {name: base + k}) for k in range(self.lanes)) if isinstance(base, int) else None

    def _lane_coefficient(self, mono, c: int) -> tuple[str | int, str | int] | None:
        """(factor, value in lane 0) of a term that is the loop variable of the lanes times a uniform factor."""
        lane = [a for a, p in mono if a in self.lane_base and p == 1]
        rest = tuple((a, p) for a, p in mono if a not in lane)
        if len(lane) != 1 or rest and self.varying(Dim(((rest, 1),))):
            return None
        return self.size(Dim(((rest, c),)) if rest else c), self.lane_base[lane[0]]

    def _resolve(self, d: DimLike) -> DimLike:
        """Divisions of a lane index resolved where whole vectors lie inside one quotient.

        The variable is written as lanes*t + lane; ``(lanes*t + lane) // (m*lanes)`` is ``t // m``."""
        if isinstance(d, int):
            return d
        calls = [a for m, _ in d.terms for a, _ in m if not isinstance(a, str)]
        if not calls or not any(symbols(Dim(((((a, 1),), 1),))) & self.lane_base.keys() for a in calls):
            return d
        name, base = next(iter(self.lane_base.items()))
        lane, step = f"{name}.lane", f"{name}.step"
        first: DimLike
        if isinstance(base, int):
            first = base
        elif step in self.ranges:
            first = sym(step) * self.lanes
            if step not in self.env:
                self.env[step] = Val(self.op(f"ashr i64 {base}, {self.lanes.bit_length() - 1}"))
        else:
            return d
        self.lane_base[lane] = 0
        ranges = {**self.ranges, lane: (0, self.lanes - 1)}
        return _by_lanes(simplify(substitute(d, {name: first + sym(lane)}), ranges), self.lanes, lane, ranges)

    def _wide_term(self, mono, c: int) -> str:
        ty = self.vec("i64")
        total = f"splat (i64 {c})"
        for atom, p in mono:
            v = self.wide_symbol(atom) if isinstance(atom, str) else self._wide_call(atom)
            for _ in range(p):
                total = v if total == "splat (i64 1)" else self.op(f"mul {ty} {v}, {total}")
        return total

    def wide_symbol(self, name: str) -> str:
        """A symbol as a vector of i64."""
        base = self.lane_base.get(name)
        if base is None:
            return self.splat(self.env[name], "i64")
        if isinstance(base, int):
            return f"<{', '.join(f'i64 {base + k}' for k in range(self.lanes))}>"
        return self.op(f"add {self.vec('i64')} {self.splat(Val(base), 'i64')}, {self.iota()}")

    def wide_size(self, d: DimLike) -> str:
        """Any size as a vector of i64."""
        p = self.place(d)
        with self.index_arithmetic():
            ty, out = self.vec("i64"), p.offsets
            if not (isinstance(p.stride, int) and p.stride == 0):
                step = (self.iota("i64", p.stride) if isinstance(p.stride, int) else
                        self.op(f"mul {ty} {self.splat(Val(p.stride), 'i64')}, {self.iota()}"))
                out = step if out is None else self.op(f"add {ty} {out}, {step}")
            base = self._sum(p)
            if base == 0 and out is not None:
                return out
            first = self.splat(Val(str(base)), "i64")
            return first if out is None else self.op(f"add {ty} {out}, {first}")

    def _sum(self, p: Place) -> str | int:
        total: str | int = 0
        for t in sorted(p.terms, key=self.level.__getitem__):
            total = self.add(total, t)
        return self.add(total, p.const)

    def _wide_call(self, call: Call) -> str:
        ty = self.vec("i64")
        args = [self.wide_size(a) for a in call.args]
        if call.fn in ("min", "max"):
            out = args[0]
            for a in args[1:]:
                out = self.intrinsic(f"s{call.fn}", ty, f"{ty} {out}", f"{ty} {a}")
            return out
        a, b = args
        divisor = call.args[1]
        if isinstance(divisor, int) and divisor & (divisor - 1) == 0:
            return self.op(f"ashr {ty} {a}, splat (i64 {divisor.bit_length() - 1})" if call.fn == "floordiv"
                           else f"and {ty} {a}, splat (i64 {divisor - 1})")
        if not isinstance(divisor, int):
            positive = self.op(f"icmp sgt {ty} {b}, zeroinitializer")
            b = self.op(f"select {self.vec('i1')} {positive}, {ty} {b}, {ty} splat (i64 1)")
        lo = bounds(call.args[0], self.ranges)[0]
        q = self.op(f"sdiv {ty} {a}, {b}")
        whole = self.op(f"mul {ty} {q}, {b}")
        r = self.op(f"sub {ty} {a}, {whole}")
        if lo is not None and lo >= 0:
            return q if call.fn == "floordiv" else r
        neg = self.op(f"icmp slt {ty} {r}, zeroinitializer")
        if call.fn == "mod":
            back = self.op(f"select {self.vec('i1')} {neg}, {ty} {b}, {ty} zeroinitializer")
            return self.op(f"add {ty} {r}, {back}")
        borrow = self.op(f"zext {self.vec('i1')} {neg} to {ty}")
        return self.op(f"sub {ty} {q}, {borrow}")

    # -- addresses

    def address(self, mem: Mem, p: Place, extra: int = 0) -> str:
        """Pointer to the element of lane 0, ``extra`` elements further: outer terms first, the constant last."""
        with self.index_arithmetic():
            ty, scale = memory_type(mem.dtype), max(mem.lanes, 1)
            sums, key = self.scopes[-1].sums, (mem.pointer, *p.terms)
            out = sums.get(key)
            if out is None:
                out = sums[key] = self._base(mem, p.terms, ty, scale)
            const = (p.const + extra) * scale
            return self.op(f"getelementptr {ty}, {mem.type} {out}, i64 {const}") if const else out

    def _base(self, mem: Mem, terms: Sequence[str], ty: str, scale: int) -> str:
        """``mem.pointer`` and the terms of an address."""
        out = mem.pointer
        by_level: dict[int, str | int] = {}
        for t in terms:
            at = self.level[t]
            by_level[at] = self.add(by_level.get(at, 0), t)
        for at in sorted(by_level):
            out = self.op(f"getelementptr {ty}, {mem.type} {out}, i64 {self.mul(by_level[at], scale)}")
        return out

    def addresses(self, mem: Mem, p: Place) -> str:
        """A vector of pointers, one per lane."""
        base = self.address(mem, p)
        with self.index_arithmetic():
            ty, vector = memory_type(mem.dtype), f"<{self.lanes} x {mem.type}>"
            if p.offsets is None and isinstance(p.stride, int) and abs(p.stride) < 1 << 24:
                return self.op(f"getelementptr {ty}, {mem.type} {base}, {self.vec('i32')} {self.iota('i32', p.stride)}")
            steps = None
            if not (isinstance(p.stride, int) and p.stride == 0):
                steps = (self.iota("i64", p.stride) if isinstance(p.stride, int) else
                         self.op(f"mul {self.vec('i64')} {self.splat(Val(p.stride), 'i64')}, {self.iota()}"))
            if p.offsets is not None:
                steps = p.offsets if steps is None else self.op(f"add {self.vec('i64')} {steps}, {p.offsets}")
            if steps is None:
                one = self.op(f"insertelement {vector} poison, {mem.type} {base}, i64 0")
                return self.op(f"shufflevector {vector} {one}, {vector} poison, <{self.lanes} x i32> zeroinitializer")
            return self.op(f"getelementptr {ty}, {mem.type} {base}, {self.vec('i64')} {steps}")


class _Indexing:
    """The context of arithmetic on sizes, which nests."""

    def __init__(self, code: Code):
        self._code = code

    def __enter__(self) -> None:
        self._code._in_index += 1

    def __exit__(self, *_: object) -> None:
        self._code._in_index -= 1


class _Symbols(Mapping[str, "str | int"]):
    """The environment as Function.dim wants it."""

    def __init__(self, code: Code):
        self._code = code

    def __getitem__(self, name: str) -> str | int:
        return self._code.int_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._code.env)

    def __len__(self) -> int:
        return len(self._code.env)


def _by_lanes(d: DimLike, lanes: int, lane: str, ranges: Mapping[str, Range]) -> DimLike:
    """Quotients by a multiple of ``lanes`` taken in two steps, the first of which removes the lane."""
    if isinstance(d, int):
        return d
    total: DimLike = 0
    for mono, c in d.terms:
        term: DimLike = c
        for atom, p in mono:
            v: DimLike = sym(atom) if isinstance(atom, str) else _call_by_lanes(atom, lanes, lane, ranges)
            for _ in range(p):
                term = term * v
        total = total + term
    return total


def _call_by_lanes(call: Call, lanes: int, lane: str, ranges: Mapping[str, Range]) -> DimLike:
    args = [_by_lanes(a, lanes, lane, ranges) for a in call.args]
    a, b = args[0], args[-1]
    if call.fn in ("floordiv", "mod") and isinstance(b, int) and b % lanes == 0 and lane in symbols(a):
        whole = simplify(floordiv(a, lanes), ranges)
        if lane not in symbols(whole):
            q = floordiv(whole, b // lanes)
            return q if call.fn == "floordiv" else a - q * b
    return apply(call.fn, args)


def _type_of(arg: str) -> str:
    """The type of a typed operand: ``<4 x i32> %x`` gives ``<4 x i32>``; attributes after ``ptr`` are dropped."""
    if arg.startswith("<"):
        return arg[:arg.index(">") + 1]
    if arg.startswith("ptr addrspace"):
        return arg[:arg.index(")") + 1]
    return arg.split(" ", 1)[0]


def _flat(lines: Iterable[Any]) -> Iterator[str]:
    for x in lines:
        if isinstance(x, str):
            yield x
        else:
            yield from _flat(x)
