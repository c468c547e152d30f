"""The instruction table: what each PTX instruction does, as NumPy source.

Here: one function per family of instructions, registered by the first part of the opcode; each writes source through
the ``Writer`` of a block.  Not here: memory and threads that work together (instructions_memory.py), registers and
masks (translate.py), the arithmetic itself (numeric.py), launches (machine.py).  Read next: instructions_memory.py.

An instruction that no row accepts is an error that names it: nothing is ever skipped or guessed.  Approximations
(ex2.approx and its kind) are evaluated in f64 and rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flowc.backends.cuda.sim.errors import PtxError
from flowc.backends.cuda.sim.parse import (
    TYPES,
    Both,
    Instruction,
    Int,
    Operand,
    Param,
    Reg,
    Sink,
    Type,
    Vec,
)


class Writer(Protocol):
    """What a row writes with.  Expressions are strings of NumPy source."""

    params: dict[str, Param]
    mask: str

    def read(self, operand: Operand, type: Type) -> str:
        """The operand as an array of the type's NumPy dtype."""

    def write(self, operand: Operand, expr: str, type: Type) -> None:
        """Set a register to ``expr``, which has the type's NumPy dtype; narrower values are extended."""

    def line(self, text: str) -> None:
        """A statement."""

    def name(self, expr: str) -> str:
        """A new variable holding ``expr``."""

    def address(self, operand: Operand) -> str:
        """The uint64 address of a memory operand."""

    def constant(self, value: object) -> str:
        """A variable holding a Python object."""


Row = Callable[[Writer, Instruction], None]
ROWS: dict[str, Row] = {}
U32, U64, PRED = TYPES["u32"], TYPES["u64"], TYPES["pred"]


def row(*names: str) -> Callable[[Row], Row]:
    def register(fn: Row) -> Row:
        for n in names:
            ROWS[n] = fn
        return fn
    return register


def unknown(i: Instruction, why: str = "") -> PtxError:
    return PtxError(f"unknown instruction {i.text!r}" + (f": {why}" if why else ""))


def allow(i: Instruction, *parts: str) -> None:
    """Every part between the opcode and the type must be one of ``parts``."""
    for p in i.parts[1:-1]:
        if p not in parts:
            raise unknown(i, f"{p} is not known here")


def widened(e: str, t: Type) -> str:
    return f"widen({e})" if t.kind == "bf" else e


def narrowed(e: str, t: Type) -> str:
    """The result of arithmetic back in the type's storage: f16 and bf16 round here."""
    if t.kind == "bf":
        return f"narrow({e})"
    return f"({e}).astype(np.float16)" if t.kind == "f" and t.bits == 16 else e


def elementwise(w: Writer, i: Instruction, t: Type, fn: Callable[..., str], *sources: Operand,
                result: Type | None = None) -> None:
    """Write ``fn`` of the sources; for packed types, of each half."""
    if t.lanes == 1:
        w.write(i.operands[0], fn(*[w.read(s, t) for s in sources]), result or t)
        return
    half = Type(t.name[:-2], t.kind, 16, t.numpy)
    words = [w.name(w.read(s, TYPES["b32"])) for s in sources]
    parts = []
    for shift in (0, 16):
        cut = [f"({x} >> np.uint32({shift})).astype(np.uint16).view('{half.numpy}')" for x in words]
        parts.append(w.name(f"np.asarray({fn(*cut)}).view(np.uint16).astype(np.uint32)"))
    w.write(i.operands[0], f"({parts[0]} | ({parts[1]} << np.uint32(16)))", TYPES["b32"])


# ---- arithmetic -----------------------------------------------------------------------------------------------------

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def _finish(i: Instruction, e: str) -> str:
    """The modifiers .ftz and .sat of a float result."""
    if i.has("sat"):
        e = f"sat01({e})"
    return f"ftz({e})" if i.has("ftz") else e


def _flushed(i: Instruction, e: str) -> str:
    return f"ftz({e})" if i.has("ftz") else e


def _float_binary(w: Writer, i: Instruction, t: Type) -> None:
    allow(i, "rn", "rz", "rm", "rp", "ftz", "sat", "full", "approx")
    mode = next((p for p in ("rz", "rm", "rp") if i.has(p)), "rn")
    if mode != "rn" and (t.bits < 32 or i.base == "div"):
        raise unknown(i)
    small = t.kind == "bf" or t.bits == 16

    def fn(a: str, b: str) -> str:
        if small:
            a, b = (f"np.asarray({widened(x, t)}).astype(np.float32)" for x in (a, b))
        a, b = _flushed(i, a), _flushed(i, b)
        if mode != "rn":
            return _finish(i, f"directed('{i.base}', {a}, {b}, None, '{mode}')")
        return narrowed(_finish(i, f"({a} {_SIGNS[i.base]} {b})"), t)
    elementwise(w, i, t, fn, *i.operands[1:3])


@row("add", "sub")
def _add(w: Writer, i: Instruction) -> None:
    t = i.type
    if t.floating:
        _float_binary(w, i, t)
    elif i.has("cc"):
        _carry(w, i, t, first=True)
    elif i.has("sat"):
        a, b = (w.read(x, t) for x in i.operands[1:3])
        w.write(i.operands[0], f"add_sat({a}, {b}, {i.base == 'sub'})", t)
    else:
        allow(i)
        elementwise(w, i, t, lambda a, b: f"({a} {_SIGNS[i.base]} {b})", *i.operands[1:3])


@row("addc", "subc")
def _addc(w: Writer, i: Instruction) -> None:
    _carry(w, i, i.type, first=False)


def _carry(w: Writer, i: Instruction, t: Type, first: bool) -> None:
    """The carry lives in a variable of the block: LLVM never carries across blocks."""
    allow(i, "cc")
    u = TYPES[f"u{t.bits}"]
    fn = "add_carry" if i.base.startswith("add") else "sub_borrow"
    a, b = (w.read(x, u) for x in i.operands[1:3])
    x = w.name(f"{fn}({a}, {b}, {'np.uint32(0)' if first else 'CC'})")
    if i.has("cc"):
        w.line(f"CC = {x}[1]")
    w.write(i.operands[0], f"{x}[0]", u)


@row("mul")
def _mul(w: Writer, i: Instruction) -> None:
    t = i.type
    if t.floating:
        _float_binary(w, i, t)
        return
    a, b = (w.read(x, t) for x in i.operands[1:3])
    _product(w, i, t, a, b)


def _product(w: Writer, i: Instruction, t: Type, a: str, b: str, plus: str | None = None) -> None:
    """mul and mad: .lo, .hi or .wide."""
    kind = next((k for k in ("lo", "hi", "wide") if i.has(k)), None)
    if kind is None:
        raise unknown(i)
    out = TYPES[f"{t.kind}{2 * t.bits}"] if kind == "wide" else t
    e = {"lo": f"({a} * {b})", "hi": f"mul_hi({a}, {b})", "wide": f"mul_wide({a}, {b})"}[kind]
    if plus is not None:
        e = f"({e} + {w.read(i.operands[3], out)})"
    w.write(i.operands[0], e, out)


@row("mad")
def _mad(w: Writer, i: Instruction) -> None:
    t = i.type
    if t.floating:
        _fma(w, i)
    else:
        _product(w, i, t, w.read(i.operands[1], t), w.read(i.operands[2], t), "plus")


@row("mul24", "mad24")
def _mul24(w: Writer, i: Instruction) -> None:
    allow(i, "lo")
    t = i.type
    e = f"mul24({w.read(i.operands[1], t)}, {w.read(i.operands[2], t)})"
    w.write(i.operands[0], f"({e} + {w.read(i.operands[3], t)})" if i.base == "mad24" else e, t)


@row("fma")
def _fma(w: Writer, i: Instruction) -> None:
    t = i.type
    allow(i, "rn", "rz", "rm", "rp", "ftz", "sat", "relu")
    mode = next((p for p in ("rz", "rm", "rp") if i.has(p)), "rn")
    if i.has("relu") or (mode != "rn" and t.bits < 32):
        raise unknown(i)
    name = "fma_bf16" if t.kind == "bf" else f"fma{t.bits // t.lanes}"

    def fn(a: str, b: str, c: str) -> str:
        a, b, c = (_flushed(i, x) for x in (a, b, c))
        e = f"{name}({a}, {b}, {c})" if mode == "rn" else f"directed('fma', {a}, {b}, {c}, '{mode}')"
        return _finish(i, e)
    elementwise(w, i, t, fn, *i.operands[1:4])


@row("div")
def _div(w: Writer, i: Instruction) -> None:
    t = i.type
    if t.floating:
        _float_binary(w, i, t)
    else:
        allow(i)
        elementwise(w, i, t, lambda a, b: f"idiv({a}, {b})", *i.operands[1:3])


@row("rem")
def _rem(w: Writer, i: Instruction) -> None:
    allow(i)
    elementwise(w, i, i.type, lambda a, b: f"irem({a}, {b})", *i.operands[1:3])


@row("min", "max")
def _minmax(w: Writer, i: Instruction) -> None:
    t = i.type
    if not t.floating:
        allow(i)
        elementwise(w, i, t, lambda a, b: f"np.{i.base}imum({a}, {b})", *i.operands[1:3])
        return
    allow(i, "NaN", "ftz")

    def fn(a: str, b: str) -> str:
        e = f"f{i.base}({_flushed(i, widened(a, t))}, {_flushed(i, widened(b, t))}, {i.has('NaN')})"
        return f"narrow({e})" if t.kind == "bf" else e
    elementwise(w, i, t, fn, *i.operands[1:3])


@row("abs", "neg")
def _sign(w: Writer, i: Instruction) -> None:
    t = i.type
    allow(i, "ftz")
    if t.kind == "bf":
        op = "& np.uint16(0x7FFF)" if i.base == "abs" else "^ np.uint16(0x8000)"
        elementwise(w, i, t, lambda a: f"({a} {op})", i.operands[1])
    elif t.floating:
        elementwise(w, i, t, lambda a: _finish(i, f"f{i.base}({a})"), i.operands[1])
    else:
        elementwise(w, i, t, lambda a: f"np.abs({a})" if i.base == "abs" else f"(-{a})", i.operands[1])


@row("copysign")
def _copysign(w: Writer, i: Instruction) -> None:
    allow(i)
    elementwise(w, i, i.type, lambda a, b: f"copysign({a}, {b})", *i.operands[1:3])


@row("testp")
def _testp(w: Writer, i: Instruction) -> None:
    w.write(i.operands[0], f"testp('{i.parts[1]}', {w.read(i.operands[1], i.type)})", PRED)


_UNARY = {"ex2": "np.exp2", "lg2": "np.log2", "sin": "np.sin", "cos": "np.cos", "tanh": "np.tanh", "sqrt": "np.sqrt",
          "rcp": "(lambda v: 1.0 / v)", "rsqrt": "(lambda v: 1.0 / np.sqrt(v))"}


@row(*_UNARY)
def _unary(w: Writer, i: Instruction) -> None:
    """Square root and reciprocal are correctly rounded in every mode: f64 passes them on without a second rounding."""
    t = i.type
    allow(i, "approx", "rn", "ftz")

    def fn(a: str) -> str:
        if t.bits == 64:
            return f"np.asarray({_UNARY[i.base]}({a}))"
        e = f"through64({_UNARY[i.base]}, {_flushed(i, widened(a, t))})"
        return narrowed(_flushed(i, e), t)
    elementwise(w, i, t, fn, i.operands[1])


# ---- bits -----------------------------------------------------------------------------------------------------------

@row("and", "or", "xor")
def _logic(w: Writer, i: Instruction) -> None:
    allow(i)
    sign = {"and": "&", "or": "|", "xor": "^"}[i.base]
    elementwise(w, i, i.type, lambda a, b: f"({a} {sign} {b})", *i.operands[1:3])


@row("not")
def _not(w: Writer, i: Instruction) -> None:
    allow(i)
    elementwise(w, i, i.type, lambda a: f"(~{a})", i.operands[1])


@row("cnot")
def _cnot(w: Writer, i: Instruction) -> None:
    t = i.type
    w.write(i.operands[0], f"(np.asarray({w.read(i.operands[1], t)}) == 0).astype('{t.numpy}')", t)


@row("shl", "shr")
def _shift(w: Writer, i: Instruction) -> None:
    allow(i)
    t = i.type
    w.write(i.operands[0], f"{i.base}({w.read(i.operands[1], t)}, {w.read(i.operands[2], U32)})", t)


@row("shf")
def _funnel(w: Writer, i: Instruction) -> None:
    allow(i, "l", "r", "wrap", "clamp")
    lo, hi, n = (w.read(x, U32) for x in i.operands[1:4])
    w.write(i.operands[0], f"funnel({lo}, {hi}, {n}, {i.parts[1] == 'l'}, {i.has('clamp')})", U32)


@row("popc", "clz", "brev", "bfind")
def _count(w: Writer, i: Instruction) -> None:
    allow(i)
    out = i.type if i.base == "brev" else U32
    w.write(i.operands[0], f"{i.base}({w.read(i.operands[1], i.type)})", out)


@row("bfe")
def _bfe(w: Writer, i: Instruction) -> None:
    x, pos, count = w.read(i.operands[1], i.type), w.read(i.operands[2], U32), w.read(i.operands[3], U32)
    w.write(i.operands[0], f"bfe({x}, {pos}, {count})", i.type)


@row("bfi")
def _bfi(w: Writer, i: Instruction) -> None:
    field, into = (w.read(x, i.type) for x in i.operands[1:3])
    pos, count = (w.read(x, U32) for x in i.operands[3:5])
    w.write(i.operands[0], f"bfi({field}, {into}, {pos}, {count})", i.type)


@row("prmt")
def _prmt(w: Writer, i: Instruction) -> None:
    allow(i)
    a, b, c = (w.read(x, U32) for x in i.operands[1:4])
    w.write(i.operands[0], f"prmt({a}, {b}, {c})", U32)


@row("lop3")
def _lop3(w: Writer, i: Instruction) -> None:
    allow(i)
    table = i.operands[4]
    if not isinstance(table, Int):
        raise unknown(i)
    a, b, c = (w.read(x, i.type) for x in i.operands[1:4])
    w.write(i.operands[0], f"lop3({a}, {b}, {c}, {table.value})", i.type)


# ---- moving, comparing, choosing ------------------------------------------------------------------------------------

@row("mov")
def _mov(w: Writer, i: Instruction) -> None:
    allow(i)
    t, (to, source) = i.type, i.operands
    if isinstance(source, Vec):
        _pack(w, to, source, t)
    elif isinstance(to, Vec):
        part = TYPES[f"b{t.bits // len(to.items)}"]
        x = w.name(w.read(source, TYPES[f"b{t.bits}"]))
        for k, item in enumerate(to.items):
            w.write(item, f"({x} >> np.uint{t.bits}({k * part.bits})).astype(np.uint{part.bits})", part)
    else:
        t = t if t.kind == "pred" else TYPES[f"b{t.bits}"]
        w.write(to, w.read(source, t), t)


def _pack(w: Writer, to: Operand, source: Vec, t: Type) -> None:
    part = TYPES[f"b{t.bits // len(source.items)}"]
    terms = [f"(np.asarray({w.read(x, part)}).astype(np.uint{t.bits}) << np.uint{t.bits}({k * part.bits}))"
             for k, x in enumerate(source.items)]
    w.write(to, " | ".join(terms), TYPES[f"b{t.bits}"])


_ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">",
            "hs": ">="}


def _compare(i: Instruction, kind: str, a: str, b: str, t: Type) -> str:
    a, b = _flushed(i, widened(a, t)), _flushed(i, widened(b, t))
    if not t.floating:
        return f"({a} {_ORDERED[kind]} {b})"
    nan = f"(np.isnan({a}) | np.isnan({b}))"
    if kind in ("num", "nan"):
        return nan if kind == "nan" else f"(~{nan})"
    if kind.endswith("u"):
        return f"(({a} {_ORDERED[kind[:-1]]} {b}) | {nan})"
    e = f"({a} {_ORDERED[kind]} {b})"
    return f"({e} & ~{nan})" if kind == "ne" else e


@row("setp")
def _setp(w: Writer, i: Instruction) -> None:
    t, kind = i.type, i.parts[1]
    parts = [p for p in i.parts[2:-1] if p != "ftz"]
    if parts and parts[0] not in ("and", "or", "xor"):
        raise unknown(i)
    x = w.name(_compare(i, kind, w.read(i.operands[1], t), w.read(i.operands[2], t), t))
    to = i.operands[0]
    first, second = (to.first, to.second) if isinstance(to, Both) else (to, Sink())
    yes, no = x, f"(~{x})"
    if parts:
        sign = {"and": "&", "or": "|", "xor": "^"}[parts[0]]
        c = w.read(i.operands[3], PRED)
        yes, no = f"({yes} {sign} {c})", f"({no} {sign} {c})"
    w.write(first, yes, PRED)
    w.write(second, no, PRED)


@row("set")
def _set(w: Writer, i: Instruction) -> None:
    t, out = i.type, TYPES[i.parts[-2]]
    x = _compare(i, i.parts[1], w.read(i.operands[1], t), w.read(i.operands[2], t), t)
    one = "1.0" if out.floating else "-1" if out.bits == 32 and out.kind == "s" else "0xFFFFFFFF"
    w.write(i.operands[0], f"np.where({x}, {one}, 0).astype('{out.numpy}')", out)


@row("selp")
def _selp(w: Writer, i: Instruction) -> None:
    t = TYPES[f"b{i.type.bits}"]
    a, b, c = w.read(i.operands[1], t), w.read(i.operands[2], t), w.read(i.operands[3], PRED)
    w.write(i.operands[0], f"np.where({c}, {a}, {b})", t)


@row("slct")
def _slct(w: Writer, i: Instruction) -> None:
    t, kind = TYPES[f"b{TYPES[i.parts[-2]].bits}"], i.type
    a, b, c = w.read(i.operands[1], t), w.read(i.operands[2], t), w.read(i.operands[3], kind)
    w.write(i.operands[0], f"np.where({c} >= 0, {a}, {b})", t)


# ---- conversions ----------------------------------------------------------------------------------------------------

@row("cvt")
def _cvt(w: Writer, i: Instruction) -> None:
    to, source = TYPES.get(i.parts[-2]), i.type
    modes = [p for p in i.parts[1:-2] if p not in ("sat", "ftz", "relu", "satfinite")]
    if to is None or i.has("relu", "satfinite") or any(m[:2] not in ("rn", "rz", "rm", "rp") for m in modes):
        raise unknown(i)
    if to.lanes == 2:
        _cvt_pair(w, i, to)
        return
    w.write(i.operands[0], _converted(i, w.read(i.operands[1], source), source, to, modes[0] if modes else ""), to)


def _converted(i: Instruction, x: str, source: Type, to: Type, mode: str) -> str:
    if not source.floating:
        if to.floating:
            code = "f4" if to.kind == "bf" else to.numpy
            e = f"int_to_float({x}, '{code}', '{mode or 'rn'}')"
            if to.kind == "bf":
                raise unknown(i)
            return f"sat01({e})" if i.has("sat") else e
        return f"int_to_int({x}, '{to.numpy}', {i.has('sat')})"
    x = _flushed(i, widened(x, source)) if source.bits == 32 else widened(x, source)
    if not to.floating:
        if len(mode) != 3:
            raise unknown(i, "a conversion to an integer needs a rounding mode")
        return f"float_to_int({x}, '{mode}', '{to.numpy}')"
    if len(mode) == 3:
        x = f"integral({x}, '{mode}')"
    if i.has("sat"):
        x = f"sat01({x})"
    e = f"to_float({x}, '{'bf' if to.kind == 'bf' else to.numpy}', '{mode if len(mode) == 2 else 'rn'}')"
    return _flushed(i, e) if to.bits == 32 else e


def _cvt_pair(w: Writer, i: Instruction, to: Type) -> None:
    """cvt.rn.f16x2.f32 d, a, b: a to the upper half, b to the lower."""
    source = i.type
    code = "bf" if to.kind == "bf" else "f2"
    hi, lo = (f"to_float({w.read(x, source)}, '{code}', '{'rz' if i.has('rz') else 'rn'}')" for x in i.operands[1:3])
    def word(e: str) -> str:
        return f"np.asarray({e}).view(np.uint16).astype(np.uint32)"
    w.write(i.operands[0], f"({word(hi)} << np.uint32(16)) | {word(lo)}", TYPES["b32"])


def write_instruction(w: Writer, i: Instruction) -> None:
    """The source of one instruction; PtxError if the table has no row for it."""
    fn = ROWS.get(i.base)
    if fn is None:
        raise unknown(i)
    try:
        fn(w, i)
    except (IndexError, ValueError, KeyError, AssertionError) as e:
        raise unknown(i, str(e)) from e


__all__ = ["ROWS", "Reg", "Writer", "write_instruction"]
