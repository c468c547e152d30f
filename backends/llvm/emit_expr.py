"""Expressions to values: one function per instruction of the Kernel IR.

Here: arithmetic, conversions, loads.  Not here: in which order the parts of an expression come (emit_order.py),
addresses (emit_address.py), sharing (emit_code.py), statements (emit.py).  Read next: emit_order.py.

A value is scalar where all lanes agree and is spread over lanes when it meets one that does not.  16-bit floats are
bits in registers; each instruction computes in f32 and rounds its result.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from flowc.backends.llvm.emit_address import Addresses
from flowc.backends.llvm.emit_code import MEMORY, REGISTER, Mem, Place, Val, intrinsic_name, literal
from flowc.backends.llvm.emit_convert import cast, divide, fmod
from flowc.backends.llvm.emit_interleave import BLOCK, COLUMNS, constant_mask, load_columns, load_pattern, remainder
from flowc.backends.llvm.emit_lookup import lookup
from flowc.backends.llvm.emit_order import HALVES, Do, Steps, half, steps
from flowc.backends.llvm.emit_registers import dot_bf16, dot_i8, dot_i16
from flowc.backends.llvm.emit_scale import ldexp, scale
from flowc.backends.llvm.emit_shifted import load_beside
from flowc.backends.llvm.emit_survey import Survey
from flowc.diag import UnsupportedError
from flowc.dims import DimLike, linear
from flowc.kernel import Builder, Expr, Loop
from flowc.proofs import bounds
from flowc.types import DType, bool_, f32, i64

COMPARE = {"eq": ("eq", "eq", "oeq"), "ne": ("ne", "ne", "une"), "lt": ("slt", "ult", "olt"),
           "le": ("sle", "ule", "ole"), "gt": ("sgt", "ugt", "ogt"), "ge": ("sge", "uge", "oge")}
UNLESS = {"eq": "une", "ne": "oeq", "lt": "uge", "le": "ugt", "gt": "ule", "ge": "ult"}
ARITHMETIC = {"add": ("add", "fadd"), "sub": ("sub", "fsub"), "mul": ("mul", "fmul"), "div": ("", "fdiv")}
ROUNDING = ("sqrt", "floor", "ceil", "trunc", "rint")
RELATION = {name: getattr(operator, name) for name in COMPARE}
FAR = 1 << 29  # lanes of a comparison that are counted from the first one of their vector, at most
MIRROR = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


class Gap(NamedTuple):
    """A comparison of sizes as ``lane + ahead REL bound``, with a range of the bound."""

    relation: str
    ahead: int
    bound: DimLike
    range: tuple[int | None, int | None]


class Values(Addresses):
    """Evaluates expressions at the current place.  ``mask``: the lanes that are on, None for all of them; wherever
    there is a mask at least one lane is on."""

    __slots__ = ("builder", "expanded", "gaps", "inline", "mask", "memo", "orders", "positions", "row_cache", "rows",
                 "survey")

    def __init__(self, *args):
        super().__init__(*args)
        self.mask: str | None = None
        self.inline: int | None = None  # further uses of functions to be written out; None: all
        self.survey = Survey()          # of the function's statements
        self.rows: Loop | None = None   # an unrolled loop without branches: its neighbouring loads may be done together
        self.row_cache: dict[tuple, list[str]] = {}
        self.positions: dict[int, tuple[tuple[int, ...], tuple[DimLike, ...], DimLike]] = {}
        self.gaps: dict[tuple[int, str], tuple[Expr, Gap | None]] = {}
        self.builder = Builder()
        self.memo: dict[int, Val] = {}
        self.expanded: dict[int, tuple[Expr, Expr | None]] = {}  # functions written out
        self.orders: dict[tuple[int, int | None], Steps] = {}

    def forget(self) -> None:
        super().forget()
        for table in (self.row_cache, self.positions, self.gaps, self.memo, self.expanded, self.orders):
            table.clear()  # type: ignore[attr-defined]
        self.survey, self.builder = Survey(), Builder()

    # -- walking

    def value(self, e: Expr) -> Val:
        """The value of an expression."""
        key = id(e), self.inline
        known = self.orders.get(key)
        if known is None:
            known = self.orders[key] = steps(self, e)
        self.inline, memo = known.inline, self.memo
        if known.constants:
            memo.update(known.constants)
        get = memo.__getitem__
        for part, x, do, operands in known.rest:
            if part not in memo:
                memo[part] = do(self, x, [*map(get, operands)])
        return memo[id(e)]

    def _rarely(self, x: Expr, args: Sequence[Val]) -> Val:
        """``select(cond, rare, common)`` where ``rare`` is computed only if a lane needs it."""
        (cond, common), ty = args, REGISTER[x.dtype]
        if cond.constant and not cond.wide:
            return self.value(x.args[1]) if cond.text == "true" else common
        wide = cond.wide or common.wide
        flag = self.any_lane(cond)
        out = self.vec(ty, wide)
        usual = self.splat(common, ty) if wide else common.text

        def slow() -> str:
            saved, self.memo = self.memo, dict(self.memo)
            rare = self.value(x.args[1])
            self.memo = saved
            if not cond.wide:
                return self.splat(rare, ty) if wide else rare.text
            return self.op(f"select {self.vec('i1')} {cond.text}, {out} {self.splat(rare, ty)}, {out} {usual}")

        return Val(self.choose(flag, out, slow, usual), wide)

    def any_lane(self, cond: Val) -> str:
        if not cond.wide:
            return cond.text
        return self.intrinsic("vector.reduce.or", "i1", f"{self.vec('i1')} {cond.text}",
                              overloads=[self.vec("i1")])

    def instruction(self, x: Expr) -> Do:
        """What writes an instruction."""
        fn = _TABLE.get(x.op)
        if fn is None:
            raise UnsupportedError("C121", f"the instruction {x.op} on {x.dtype} has no code for {self.target.name}",
                                   cure="this is an error of flowc: add it to the emitter or to mathlib")
        halves = x.op not in _PLAIN and not HALVES.isdisjoint([a.dtype for a in x.args])
        return Values._through_float if halves else fn

    # -- operands

    def together(self, args: Sequence[Val], types: Sequence[DType]) -> tuple[bool, list[str]]:
        """The operands in one form: all scalar, or all spread over the lanes."""
        if any(a.wide for a in args):
            return True, [a.text if a.wide else self.splat(a, REGISTER[t]) for a, t in zip(args, types, strict=True)]
        return False, [a.text for a in args]

    def alike(self, args: Sequence[Val], d: DType) -> tuple[bool, str, list[str]]:
        """Operands of one dtype in one form, behind (are they spread over the lanes, their type)."""
        ty = REGISTER[d]
        for v in args:
            if v.wide:
                return True, f"<{self.lanes} x {ty}>", [v.text if v.wide else self.splat(v, ty) for v in args]
        return False, ty, [v.text for v in args]

    def widen(self, v: Val, d: DType) -> Val:
        """A 16-bit float in f32, exact."""
        ty, big = self.vec("i16", v.wide), self.vec("i32", v.wide)
        if v.constant and not v.wide:
            return Val(literal(_half_value(int(v.text), d), f32))
        if d.name == "f16":
            h = self.op(f"bitcast {ty} {v.text} to {self.vec('half', v.wide)}")
            return Val(self.op(f"fpext {self.vec('half', v.wide)} {h} to {self.vec('float', v.wide)}"), v.wide)
        bits = self.op(f"zext {ty} {v.text} to {big}")
        bits = self.op(f"shl {big} {bits}, {self._number(16, 'i32', v.wide)}")
        return Val(self.op(f"bitcast {big} {bits} to {self.vec('float', v.wide)}"), v.wide)

    def narrow(self, v: Val, d: DType) -> Val:
        """An f32 value rounded to a 16-bit float, ties to even."""
        wide = v.wide
        if v.constant and not wide:
            v = Val(self.op(f"bitcast i32 {_float_bits(v.text)} to float"))
        if d.name == "f16":
            h = self.op(f"fptrunc {self.vec('float', wide)} {v.text} to {self.vec('half', wide)}")
            return Val(self.op(f"bitcast {self.vec('half', wide)} {h} to {self.vec('i16', wide)}"), wide)
        # by hand: machine conversions may flush subnormal numbers
        big, small = self.vec("i32", wide), self.vec("i16", wide)

        def number(k: int) -> str:
            return self._number(k, "i32", wide)

        bits = self.op(f"bitcast {self.vec('float', wide)} {v.text} to {big}")
        top = self.op(f"lshr {big} {bits}, {number(16)}")
        odd = self.op(f"and {big} {top}, {number(1)}")
        bias = self.op(f"add {big} {odd}, {number(0x7FFF)}")
        up = self.op(f"add {big} {bits}, {bias}")
        rounded = self.op(f"lshr {big} {up}, {number(16)}")
        sign = self.op(f"and {big} {top}, {number(0x8000)}")
        quiet = self.op(f"or {big} {sign}, {number(0x7FC0)}")
        nan = self.op(f"fcmp uno {self.vec('float', wide)} {v.text}, {v.text}")
        out = self.op(f"select {self.vec('i1', wide)} {nan}, {big} {quiet}, {big} {rounded}")
        return Val(self.op(f"trunc {big} {out} to {small}"), wide)

    def _number(self, k: int, ty: str, wide: bool) -> str:
        return f"splat ({ty} {k})" if wide else str(k)

    def _through_float(self, x: Expr, args: Sequence[Val]) -> Val:
        """The instruction on 16-bit floats, computed in f32 and rounded once."""
        kinds = [a.dtype for a in x.args]
        big = [self.widen(v, d) if half(d) else v for v, d in zip(args, kinds, strict=True)]
        out = f32 if half(x.dtype) else x.dtype
        # leaves stand for the operands: their values are given
        leaves = tuple(Expr("ref", (), f32 if half(d) else d, (f"{i}", ())) for i, d in enumerate(kinds))
        r = _TABLE[x.op](self, Expr(x.op, leaves, out, x.attr), big)
        return self.narrow(r, x.dtype) if half(x.dtype) else r

    # -- instructions

    def _index(self, x: Expr, args: Sequence[Val]) -> Val:
        if not self.varying(x.attr):
            return Val(str(self.size(x.attr)))
        return Val(self.wide_size(x.attr), True)

    def _ref(self, x: Expr, args: Sequence[Val]) -> Val:
        name, index = x.attr
        mem = self.mems.get(name)
        if mem is None:
            return self.env[name]
        return self.read(mem, self._position(mem, index), x.dtype)

    def _position(self, mem: Mem, index: tuple[DimLike, ...]) -> DimLike:
        """The place of an element of registers in their memory."""
        known = self.positions.get(id(index))  # copies of an unrolled loop ask again
        if known is None or known[0] != mem.strides:
            place = sum((i * s for i, s in zip(index, mem.strides, strict=True)), 0)
            known = self.positions[id(index)] = (mem.strides, index, place)
        return known[2]

    def _load(self, x: Expr, args: Sequence[Val]) -> Val:
        buffer, index = x.attr
        mem = self.mems[buffer]
        if not args:
            near = load_beside(self, mem, index, self.place(index)) if buffer in self.beside else None
            return Val(near, True) if near is not None else self.read(mem, index, x.dtype)
        where, other = args
        if where.constant and not where.wide:
            return self.read(mem, index, x.dtype) if where.text == "true" else other
        if not where.wide and not self.varying(index):
            return Val(self.choose(where.text, REGISTER[x.dtype] if not other.wide else
                                   self.vec(REGISTER[x.dtype]),
                                   lambda: self._as(self.read(mem, index, x.dtype), x.dtype, other.wide),
                                   other.text), other.wide)
        return self.read(mem, index, x.dtype, Val(self.both_masks(where.text if where.wide else
                                                                   self.splat(where, "i1")), True), other)

    def _as(self, v: Val, d: DType, wide: bool) -> str:
        return self.splat(v, REGISTER[d]) if wide else v.text

    def both_masks(self, mask: str) -> str:
        if self.mask is None:
            return mask
        return self.op(f"and {self.vec('i1')} {self.mask}, {mask}")

    def read(self, mem: Mem, index: DimLike, d: DType, where: Val | None = None, other: Val | None = None) -> Val:
        """Elements of a buffer or of registers, one per lane, or one for all lanes."""
        p, ty = self.place(index), MEMORY[mem.dtype]
        mask = self.mask if where is None else where.text
        if where is None and p.offsets is None and not mem.lanes:
            if p.stride == 0:
                return self.loaded(self.fetch(mem, ty, self.address(mem, p)), False, d)
            if p.stride == 1 and (mask is None or mem.registers):
                return self.loaded(self.fetch(mem, self.vec(ty), self.address(mem, p)), True, d)
        return self.loaded(self._spread(mem, index, p, mask, where, other), True, d)

    def _spread(self, mem: Mem, index: DimLike, p: Place, mask: str | None, where: Val | None, other: Val | None
                ) -> str:
        """Elements that lie otherwise than one behind the other, or that only some lanes read."""
        ty = MEMORY[mem.dtype]
        filler = "zeroinitializer" if other is None else self.stored(other, mem.dtype, True)
        if mem.lanes:
            return self.fetch(mem, self.vec(ty), self.address(mem, p))
        if p.offsets is not None or p.stride not in (-1, 0, 1):
            column = (self._column(mem, index, p) or self._field(mem, index, p)) if mask is None else None
            off = None if where is None else filler
            return column or load_pattern(self, mem, p, mask, off) or self._gather(mem, ty, p, mask, filler)
        if p.stride != 0:
            return self._contiguous(mem, ty, p, None if mem.registers and where is None else mask, filler)
        on = constant_mask(mask, self.lanes)
        if on is None or not any(on):
            return self._gather(mem, ty, p, mask, filler)
        one = Val(self.fetch(mem, ty, self.address(mem, p)))
        return self.op(f"select {self.vec('i1')} {mask}, {self.vec(ty)} {self.splat(one, ty)}, {self.vec(ty)} {filler}")

    def _column(self, mem: Mem, index: DimLike, p: Place) -> str | None:
        """One of neighbouring columns, all of which are loaded together the first time."""
        count = BLOCK // mem.dtype.bytes
        if self.rows is None or p.offsets is not None or self.lanes < count:
            return None
        split = linear(index, self.rows.var)
        at = int(self.env[self.rows.var].text)
        first = at - at % count
        if split is None or split[0] != 1 or first + count > int(self.rows.extent):  # type: ignore[arg-type]
            return None
        start = Place(p.terms, p.const - at + first, p.stride, None)
        key = (mem.pointer, mem.epoch, tuple(start.terms), start.const, start.stride, self.lanes)
        if key not in self.row_cache:
            self.row_cache[key] = load_columns(self, mem, start, count)
        return self.row_cache[key][at - first]

    def _field(self, mem: Mem, index: DimLike, p: Place) -> str | None:
        """A field of records that lie one after the other: loaded with its neighbours in the record."""
        count, size = BLOCK // mem.dtype.bytes, p.stride
        if p.offsets is not None or not isinstance(size, int) or not count < size <= COLUMNS or self.lanes < count:
            return None
        at = remainder(self._resolve(index), size)
        if at is None or mem.size == 0 or remainder(mem.size, size) != 0:
            return None
        first = min(at - at % count, size - count)
        start = Place(p.terms, p.const - at + first, size, None)
        key = (mem.pointer, mem.epoch, tuple(start.terms), start.const, size, self.lanes)
        table = self.scopes[-1].sums
        if key not in table:
            table[key] = load_columns(self, mem, start, count)
        return table[key][at - first]

    def fetch(self, mem: Mem, ty: str, pointer: str, align: int = 0) -> str:
        key = (pointer, ty, mem.epoch, align)
        return self.known.get(key) or self.new_here(f"load {ty}, {mem.type} {pointer}, align {align or mem.align}", key)

    def _contiguous(self, mem: Mem, ty: str, p: Place, mask: str | None, filler: str) -> str:
        back = p.stride == -1
        pointer = self.address(mem, p, 1 - self.lanes if back else 0)
        full = self.vec(ty)
        if mask is None:
            out = self.fetch(mem, full, pointer)
        else:
            if back:
                mask, filler = self.reverse(mask, "i1"), self.reverse(filler, ty)
            out = self.masked_load(mem, pointer, mask, filler)
        return self.reverse(out, ty) if back else out

    def masked_load(self, mem: Mem, pointer: str, mask: str, filler: str) -> str:
        full = self.vec(MEMORY[mem.dtype])
        return self._masked("masked.load", mem, full, f"{mem.type} align {mem.align} {pointer}", mask, filler,
                            [full, mem.type])

    def _gather(self, mem: Mem, ty: str, p: Place, mask: str | None, filler: str) -> str:
        full, pointers = self.vec(ty), f"<{self.lanes} x {mem.type}>"
        if mask is None:
            mask, filler = "splat (i1 true)", "zeroinitializer"
        return self._masked("masked.gather", mem, full, f"{pointers} align {mem.align} {self.addresses(mem, p)}",
                            mask, filler, [full, pointers])

    def _masked(self, name: str, mem: Mem, full: str, source: str, mask: str, filler: str, overloads: list[str]) -> str:
        self.target.allow(name)
        callee = self.module.declare(intrinsic_name(name, overloads),
                                     f"{full} ({overloads[1]}, {self.vec('i1')}, {full})")
        text = f"call {full} {callee}({source}, {self.vec('i1')} {mask}, {full} {filler})"
        return self.here(text, (text, mem.epoch))

    def reverse(self, text: str, ty: str) -> str:
        if text.startswith("splat") or text == "zeroinitializer":
            return text
        order = ", ".join(f"i32 {k}" for k in reversed(range(self.lanes)))
        return self.op(f"shufflevector {self.vec(ty)} {text}, {self.vec(ty)} poison, <{self.lanes} x i32> <{order}>")

    def loaded(self, text: str, wide: bool, d: DType) -> Val:
        """The value of what memory holds."""
        if d is bool_:
            text = self.op(f"icmp ne {self.vec('i8', wide)} {text}, {'zeroinitializer' if wide else 0}")
        return Val(text, wide)

    def stored(self, v: Val, d: DType, wide: bool) -> str:
        """What memory is to hold, in every lane if it is ``wide``."""
        text = self.splat(v, REGISTER[d]) if wide else v.text
        if d is not bool_:
            return text
        if not wide:
            return str(int(text == "true")) if v.constant else self.op(f"zext i1 {text} to i8")
        if text in ("splat (i1 true)", "splat (i1 false)"):
            return f"splat (i8 {int('true' in text)})"
        return self.op(f"select {self.vec('i1')} {text}, {self.vec('i8')} splat (i8 1), "
                       f"{self.vec('i8')} zeroinitializer")

    def _arithmetic(self, x: Expr, args: Sequence[Val]) -> Val:
        wide, ty, (a, b) = self.alike(args, x.dtype)
        return Val(self.op(f"{ARITHMETIC[x.op][x.dtype.floating]} {ty} {a}, {b}"), wide)

    def _neg(self, x: Expr, args: Sequence[Val]) -> Val:
        (v,), ty = args, REGISTER[x.dtype]
        if x.dtype.floating:
            return Val(self.op(f"fneg {self.vec(ty, v.wide)} {v.text}"), v.wide)
        return Val(self.op(f"sub {self.vec(ty, v.wide)} {self._number(0, ty, v.wide)}, {v.text}"), v.wide)

    def _abs(self, x: Expr, args: Sequence[Val]) -> Val:
        (v,), d = args, x.dtype
        ty = self.vec(REGISTER[d], v.wide)
        if d.kind == "u":
            return v
        if d.floating:
            return Val(self.intrinsic("fabs", ty, f"{ty} {v.text}"), v.wide)
        low = self._neg(x, args)
        neg = self.op(f"icmp slt {ty} {v.text}, {self._number(0, REGISTER[d], v.wide)}")
        return Val(self.op(f"select {self.vec('i1', v.wide)} {neg}, {ty} {low.text}, {ty} {v.text}"), v.wide)

    def _extreme(self, x: Expr, args: Sequence[Val]) -> Val:
        d = x.dtype
        wide, ty, (a, b) = self.alike(args, d)
        if d is bool_:
            return Val(self.op(f"{'and' if x.op == 'min' else 'or'} {ty} {a}, {b}"), wide)
        if d.integer:
            name = ("s" if d.kind == "i" else "u") + x.op
            return Val(self.intrinsic(name, ty, f"{ty} {a}", f"{ty} {b}"), wide)
        if x.op in self.target.native:  # NaN from either side
            return Val(self.intrinsic({"min": "minimum", "max": "maximum"}[x.op], ty, f"{ty} {a}", f"{ty} {b}"), wide)
        numbers = [e.op == "const" and e.attr == e.attr for e in x.args]
        if numbers[1]:
            a, b = b, a
        first = self.op(f"fcmp {'olt' if x.op == 'min' else 'ogt'} {ty} {a}, {b}")
        flags = self.vec("i1", wide)
        best = self.op(f"select {flags} {first}, {ty} {a}, {ty} {b}")  # b where b is NaN, as the machine's min and max
        if any(numbers):  # a is one
            return Val(best, wide)
        nan = self.op(f"fcmp uno {ty} {a}, {a}")
        return Val(self.op(f"select {flags} {nan}, {ty} {a}, {ty} {best}"), wide)

    def _rounding(self, x: Expr, args: Sequence[Val]) -> Val:
        (v,), ty = args, self.vec(REGISTER[x.dtype], args[0].wide)
        return Val(self.intrinsic(x.op, ty, f"{ty} {v.text}"), v.wide)

    def _copysign(self, x: Expr, args: Sequence[Val]) -> Val:
        wide, ty, texts = self.alike(args, x.dtype)
        return Val(self.intrinsic(x.op, ty, *[f"{ty} {t}" for t in texts]), wide)

    def _bits(self, x: Expr, args: Sequence[Val]) -> Val:
        wide, ty, (a, b) = self.alike(args, x.dtype)
        return Val(self.op(f"{x.op} {ty} {a}, {b}"), wide)

    def _not(self, x: Expr, args: Sequence[Val]) -> Val:
        if len(args) == 2:  # a comparison, which is asked the other way round
            (compared,) = x.args
            wide, ty, (a, b) = self.alike(args, compared.args[0].dtype)
            return Val(self.op(f"fcmp {UNLESS[compared.op]} {ty} {a}, {b}"), wide)
        (v,), ty = args, REGISTER[x.dtype]
        ones = "true" if x.dtype is bool_ else "-1"
        return Val(self.op(f"xor {self.vec(ty, v.wide)} {v.text}, {f'splat ({ty} {ones})' if v.wide else ones}"),
                   v.wide)

    def _shift(self, x: Expr, args: Sequence[Val]) -> Val:
        d = x.dtype
        wide, ty, (a, n) = self.alike(args, d)
        flags = self.vec("i1", wide)
        op = "shl" if x.op == "shl" else "ashr" if d.kind == "i" else "lshr"
        amount = x.args[1]
        if amount.op == "const" and 0 <= amount.attr < d.bits:
            return Val(self.op(f"{op} {ty} {a}, {n}"), wide)
        width = self._number(d.bits, REGISTER[d], wide)
        inside = self.op(f"icmp ult {ty} {n}, {width}")
        last = self._number(d.bits - 1 if op == "ashr" else 0, REGISTER[d], wide)
        safe = self.op(f"select {flags} {inside}, {ty} {n}, {ty} {last}")
        out = self.op(f"{op} {ty} {a}, {safe}")
        if op == "ashr":
            return Val(out, wide)
        return Val(self.op(f"select {flags} {inside}, {ty} {out}, {ty} {self._number(0, REGISTER[d], wide)}"),
                   wide)

    def _compare(self, x: Expr, args: Sequence[Val]) -> Val:
        short = self._compare_lanes(x)
        if short is not None:
            return short
        d = x.args[0].dtype
        wide, ty, (a, b) = self.alike(args or [self.value(a) for a in x.args], d)
        column = 2 if d.floating else 0 if d.kind == "i" else 1
        kind = "fcmp" if d.floating else "icmp"
        return Val(self.op(f"{kind} {COMPARE[x.op][column]} {ty} {a}, {b}"), wide)

    def _compare_lanes(self, x: Expr) -> Val | None:
        """Two indices that differ by the lane number compare as small integers: lane against a clamped bound."""
        if not self.lane_base or self.lanes == 1 or x.args[0].dtype is not i64:
            return None
        name, base = next(iter(self.lane_base.items()))
        key = (id(x), name)
        if key not in self.gaps:
            self.gaps[key] = (x, self._gap(x, name))
        gap = self.gaps[key][1]
        if gap is None or self.varying(gap.bound):
            return None
        # lane + ahead  REL  bound, where what neighbouring vectors differ by is in ``ahead``: they share the bound
        relation, rest, (low, high) = gap.relation, gap.bound, gap.range
        ahead = gap.ahead + base if isinstance(base, int) else gap.ahead
        if abs(ahead) > FAR:
            return None
        lanes = range(ahead, ahead + self.lanes)
        if isinstance(rest, int) and isinstance(base, int):
            ends = [RELATION[relation](k, rest) for k in (lanes[0], lanes[-1])]
            if relation in ("eq", "ne") or ends[0] != ends[1]:
                ends = [RELATION[relation](k, rest) for k in lanes]
            return self._flags(ends)
        if not isinstance(base, int):
            low = high = None
        if low is not None and high is not None and len(held := {
                RELATION[relation](k, at) for k in (lanes[0], lanes[-1]) for at in (low, high)}) == 1:
            if relation not in ("eq", "ne"):
                return self._flags([held.pop()])
        with self.index_arithmetic():
            bound = self.size(rest)
            if not isinstance(base, int):
                bound = self.sub(bound, base)
            if low is None or low < -2 * FAR:
                bound = self.intrinsic("smax", "i64", f"i64 {bound}", f"i64 {-2 * FAR}")
            if high is None or high > 2 * FAR:
                bound = self.intrinsic("smin", "i64", f"i64 {bound}", f"i64 {2 * FAR}")
            small = self.splat(Val(self.op(f"trunc i64 {bound} to i32")), "i32")
            first = ", ".join([f"i32 {k}" for k in lanes])
            return Val(self.op(f"icmp {COMPARE[relation][0]} {self.vec('i32')} <{first}>, {small}"), True)

    def _gap(self, x: Expr, lane: str) -> Gap | None:
        if any(a.op not in ("index", "const") for a in x.args):
            return None
        split = linear(x.args[0].attr - x.args[1].attr, lane)
        if split is None or split[0] not in (1, -1):
            return None
        rest = -split[0] * split[1]
        ahead = -rest if isinstance(rest, int) else -sum(c for mono, c in rest.terms if not mono)
        return Gap(x.op if split[0] == 1 else MIRROR[x.op], ahead, rest + ahead, bounds(rest + ahead, self.ranges))

    def _flags(self, on: Sequence[bool]) -> Val:
        """Known answers, one per lane; a single value where all agree."""
        if len(set(on)) == 1:
            return Val("true" if on[0] else "false")
        return Val(f"<{', '.join([f'i1 {int(f)}' for f in on])}>", True)

    def _select(self, x: Expr, args: Sequence[Val]) -> Val:
        cond, ty = args[0], REGISTER[x.dtype]
        if cond.constant and not cond.wide:
            return args[1] if cond.text == "true" else args[2]
        wide, (c, a, b) = self.together(args, [bool_, x.dtype, x.dtype])
        if wide and not cond.wide:
            c, flags = cond.text, "i1"
        else:
            flags = self.vec("i1", wide)
        full = self.vec(ty, wide)
        return Val(self.op(f"select {flags} {c}, {full} {a}, {full} {b}"), wide)

    def _bitcast(self, x: Expr, args: Sequence[Val]) -> Val:
        (v,) = args
        a, b = REGISTER[x.args[0].dtype], REGISTER[x.dtype]
        return v if a == b else Val(self.op(f"bitcast {self.vec(a, v.wide)} {v.text} to {self.vec(b, v.wide)}"), v.wide)


def _half_value(bits: int, d: DType) -> float:
    import numpy as np
    if d.name == "f16":
        return float(np.uint16(bits).view(np.float16))
    return float(np.uint32(bits << 16).view(np.float32))


def _float_bits(text: str) -> int:
    """The f32 bits of a constant written as the hexadecimal double that LLVM wants."""
    import numpy as np
    return int(np.float32(np.uint64(int(text, 16)).view(np.float64)).view(np.uint32))


_V = Values
_TABLE: dict[str, Do] = {
    "index": _V._index, "ref": _V._ref, "load": _V._load,
    **dict.fromkeys(ARITHMETIC, _V._arithmetic), **dict.fromkeys(COMPARE, _V._compare),
    "neg": _V._neg, "abs": _V._abs, "min": _V._extreme, "max": _V._extreme,
    **dict.fromkeys(ROUNDING, _V._rounding), "copysign": _V._copysign, "fma": _V._copysign,
    "ldexp": ldexp, "scale": scale, "lookup": lookup, "fmod": fmod, "idiv": divide, "imod": divide,
    "dot_bf16": dot_bf16, "dot_i16": dot_i16, "dot_i8": dot_i8,
    **dict.fromkeys(("and", "or", "xor"), _V._bits), "not": _V._not, "shl": _V._shift, "shr": _V._shift,
    "select": _V._select, "rarely": _V._rarely, "cast": cast, "bitcast": _V._bitcast,
}
_PLAIN = frozenset(("index", "ref", "load", "select", "rarely", "cast", "bitcast"))  # 16-bit floats as they are
