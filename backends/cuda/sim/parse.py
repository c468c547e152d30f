"""PTX text to objects: modules, entries, instructions.

Here: the tokens and the grammar of what LLVM's NVPTX back end prints and of inline assembly in it.
Not here: what instructions mean (instructions.py), how they are run (machine.py).  Read next: flow.py.

Source of the grammar: the PTX ISA reference, version 9.0, chapters 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowc.backends.cuda.sim.errors import PtxError
from flowc.dataclass import dataclass, field

_TOKEN = re.compile(r"""
    (?P<float>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16})
  | (?P<version>\d+\.\d+)
  | (?P<int>-?(?:0[xX][0-9a-fA-F]+|\d+)U?)(?![\w.])
  | (?P<name>[%$._A-Za-z](?:::|[\w$.%])*)
  | (?P<string>"[^"]*")
  | (?P<mark>[{}\[\](),;:@!+|<>=-])
  | (?P<space>\s+|//[^\n]*|/\*.*?\*/)
""", re.X | re.S)


class Type(NamedTuple):
    """A PTX type: ``kind`` is one of u, s, b, f (IEEE), bf (bfloat16), pred; ``lanes`` 2 for packed halves.
    ``numpy``: dtype of one lane as it is stored."""

    name: str
    kind: str
    bits: int
    numpy: str
    lanes: int = 1

    @property
    def floating(self) -> bool:
        return self.kind in ("f", "bf")


def _types() -> dict[str, Type]:
    out = {"pred": Type("pred", "pred", 1, "?")}
    for bits in (8, 16, 32, 64):
        for kind, code in (("u", "u"), ("s", "i"), ("b", "u")):
            out[f"{kind}{bits}"] = Type(f"{kind}{bits}", kind, bits, f"{code}{bits // 8}")
    out |= {f"f{b}": Type(f"f{b}", "f", b, f"f{b // 8}") for b in (16, 32, 64)}
    out["bf16"] = Type("bf16", "bf", 16, "u2")
    out |= {n + "x2": Type(n + "x2", out[n].kind, 32, out[n].numpy, 2) for n in ("f16", "bf16", "u16", "s16")}
    return out


TYPES = _types()


# ---- operands -------------------------------------------------------------------------------------------------------

class Reg(NamedTuple):
    """A declared register by number."""

    number: int


class Special(NamedTuple):
    """A register of the machine such as %tid.x."""

    name: str


class Int(NamedTuple):
    value: int


class Float(NamedTuple):
    """A float constant by its bits; ``size`` 32 or 64."""

    bits: int
    size: int


class Sym(NamedTuple):
    """A name of memory or a parameter."""

    name: str


class Addr(NamedTuple):
    base: Reg | Sym | Int
    offset: int


class Vec(NamedTuple):
    items: tuple[Operand, ...]


class Both(NamedTuple):
    """``a|b``: two results."""

    first: Operand
    second: Operand


class Sink(NamedTuple):
    """``_``: a result nobody wants."""


class Not(NamedTuple):
    """``!p``."""

    value: Reg


Operand = Reg | Special | Int | Float | Sym | Addr | Vec | Both | Sink | Not


@dataclass(frozen=True)
class Instruction:
    """``guard``: (predicate, negated) or None.  ``parts``: the opcode cut at its dots.  ``text`` is for messages."""

    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None
    text: str

    @property
    def base(self) -> str:
        return self.parts[0]

    @property
    def type(self) -> Type:
        """The type that ends the opcode."""
        found = TYPES.get(self.parts[-1])
        if found is None:
            raise PtxError(f"the instruction {self.text!r} does not end in a known type")
        return found

    def has(self, *parts: str) -> bool:
        return any(p in self.parts for p in parts)


@dataclass(frozen=True)
class Param:
    """A kernel parameter: bytes ``offset`` .. ``offset + size`` of the parameter block."""

    name: str
    type: Type
    offset: int
    size: int


@dataclass(frozen=True)
class Variable:
    """Memory with a name.  ``size`` 0: dynamic, given at launch.  ``data``: first contents, None for none."""

    name: str
    space: str
    align: int
    size: int
    data: bytes | None = None


@dataclass
class Entry:
    """One kernel.  ``labels`` name positions in ``code``; ``widths`` are bits per register."""

    name: str
    params: list[Param] = field(default_factory=list)
    reqntid: tuple[int, int, int] | None = None
    maxntid: tuple[int, int, int] | None = None
    variables: list[Variable] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class ModuleText:
    version: str = ""
    target: str = ""
    variables: list[Variable] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)


def parse(text: str) -> ModuleText:
    """The module in ``text``.  PtxError for anything outside the grammar."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str):
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            m = _TOKEN.match(text, at)
            if m is None:
                raise PtxError(f"line {text.count(chr(10), 0, at) + 1}: cannot read {text[at:at + 20]!r}")
            if m.lastgroup != "space":
                self.tokens.append((m.lastgroup or "", m.group(), at))
            at = m.end()
        self.tokens.append(("end", "", len(text)))
        self.text, self.i = text, 0

    # -- tokens

    @property
    def word(self) -> str:
        return self.tokens[self.i][1]

    def take(self, want: str | None = None) -> str:
        _, word, at = self.tokens[self.i]
        if want is not None and word != want:
            line = self.text.count("\n", 0, at) + 1
            raise PtxError(f"line {line}: expected {want!r}, found {word or 'the end'!r}")
        self.i += 1
        return word

    def accept(self, word: str) -> bool:
        if self.word == word:
            self.i += 1
            return True
        return False

    def integer(self) -> int:
        word = self.take()
        try:
            return int(word.rstrip("U"), 0)
        except ValueError:
            raise PtxError(f"expected a number, found {word!r}") from None

    # -- modules

    def module(self) -> ModuleText:
        out = ModuleText()
        while self.tokens[self.i][0] != "end":
            word = self.take()
            if word == ".version":
                out.version = self.take()
            elif word == ".target":
                out.target = self.take()
                while self.accept(","):
                    self.take()
            elif word == ".address_size":
                if self.integer() != 64:
                    raise PtxError("only 64-bit addresses are supported")
            elif word in (".visible", ".extern", ".weak", ".common"):
                continue
            elif word in (".global", ".shared", ".const"):
                out.variables.append(self.variable(word[1:]))
                self.take(";")
            elif word == ".entry":
                entry = self.entry()
                out.entries[entry.name] = entry
            else:
                raise PtxError(f"unknown directive {word!r}: functions and debugging sections are not supported")
        return out

    def variable(self, space: str) -> Variable:
        """After the state space: alignment, type, name, extent, contents."""
        align, element = 0, None
        while self.word.startswith("."):
            word = self.take()
            if word == ".align":
                align = self.integer()
            elif word == ".attribute":
                raise PtxError("variable attributes are not supported")
            else:
                element = TYPES.get(word[1:])
        if element is None:
            raise PtxError(f"a variable in {space} without a type")
        name, count = self.take(), 1
        while self.accept("["):
            count *= 0 if self.word == "]" else self.integer()
            self.take("]")
        size = count * max(element.bits, 8) // 8
        data = self.contents(element, size) if self.accept("=") else None
        return Variable(name, space, align or max(element.bits, 8) // 8, size, data)

    def contents(self, element: Type, size: int) -> bytes:
        values: list[int] = []
        depth = 0
        while True:
            if self.accept("{"):
                depth += 1
            elif self.accept("}"):
                depth -= 1
            elif not self.accept(","):
                operand = self.number()
                values.append(operand.bits if isinstance(operand, Float) else operand.value)
            if depth == 0:
                break
        width = element.bits // 8
        raw = b"".join((v & ((1 << element.bits) - 1)).to_bytes(width, "little") for v in values)
        return raw + bytes(size - len(raw))

    def entry(self) -> Entry:
        entry = Entry(self.take())
        if self.accept("("):
            at = 0
            while not self.accept(")"):
                p = self.param(at)
                entry.params.append(p)
                at = p.offset + p.size
                self.accept(",")
        while not self.accept("{"):
            word = self.take()
            if word in (".reqntid", ".maxntid"):
                dims = [self.integer()]
                while self.accept(","):
                    dims.append(self.integer())
                setattr(entry, word[1:], tuple(dims + [1] * (3 - len(dims))))
            elif word in (".minnctapersm", ".maxnreg"):
                self.integer()
            elif word != ".noreturn":
                raise PtxError(f"unknown property {word!r} of entry {entry.name}")
        _Body(self, entry).run()
        return entry

    def param(self, at: int) -> Param:
        self.take(".param")
        align, element = 0, None
        while self.word.startswith("."):
            word = self.take()
            if word == ".align":
                n = self.integer()
                align = align or (n if element is None else 0)  # after .ptr it speaks of what is pointed at
            elif element is None and word[1:] in TYPES:
                element = TYPES[word[1:]]
        name, count = self.take(), 1
        if self.accept("["):
            count = self.integer()
            self.take("]")
        assert element is not None
        width = max(element.bits, 8) // 8
        start = -(-at // (align or width)) * (align or width)
        return Param(name, element, start, count * width)

    def number(self) -> Int | Float:
        kind, word, _ = self.tokens[self.i]
        if kind == "float":
            self.i += 1
            return Float(int(word[2:], 16), 32 if word[1] in "fF" else 64)
        return Int(self.integer())


class _Body:
    """The statements between the braces of an entry.  Blocks of inline assembly have registers of their own."""

    def __init__(self, p: _Parser, entry: Entry):
        self.p, self.entry = p, entry
        self.scopes: list[dict[str, int]] = [{}]

    def run(self) -> None:
        p = self.p
        while True:
            if p.accept("}"):
                self.scopes.pop()
                if not self.scopes:
                    return
            elif p.accept("{"):
                self.scopes.append({})
            elif p.word in (".reg", ".local", ".shared", ".param", ".pragma", ".loc"):
                self.declaration(p.take())
            elif p.tokens[p.i + 1][1] == ":":
                self.entry.labels[p.take()] = len(self.entry.code)
                p.take(":")
            elif not p.accept(";"):
                self.instruction()

    def declaration(self, word: str) -> None:
        p = self.p
        if word == ".reg":
            kind = TYPES.get(p.take()[1:])
            if kind is None:
                raise PtxError("a register of an unknown type")
            while True:
                name = p.take()
                if p.accept("<"):
                    for k in range(p.integer()):
                        self.register(f"{name}{k}", kind.bits)
                    p.take(">")
                else:
                    self.register(name, kind.bits)
                if not p.accept(","):
                    break
        elif word in (".local", ".shared"):
            self.entry.variables.append(p.variable(word[1:]))
        else:  # .pragma, .loc: no part of the meaning
            while p.word != ";":
                p.take()
        p.take(";")

    def register(self, name: str, bits: int) -> None:
        self.scopes[-1][name] = len(self.entry.widths)
        self.entry.widths.append(bits)

    def instruction(self) -> None:
        p = self.p
        start = p.tokens[p.i][2]
        guard = None
        if p.accept("@"):
            negated = p.accept("!")
            reg = self.name(p.take())
            assert isinstance(reg, Reg)
            guard = (reg, negated)
        opcode = p.take()
        operands: list[Operand] = []
        while p.word != ";":
            operands.append(self.operand())
            if not p.accept(","):
                break
        text = " ".join(p.text[start:p.tokens[p.i][2]].split())
        p.take(";")
        self.entry.code.append(Instruction(tuple(opcode.split(".")), tuple(operands), guard, text))

    def operand(self) -> Operand:
        p = self.p
        if p.accept("["):
            base = self.simple()
            offset = 0
            if p.accept("+") or p.tokens[p.i][0] == "int":
                offset = p.integer()
            p.take("]")
            if not isinstance(base, (Reg, Sym, Int)):
                raise PtxError(f"not an address: {base}")
            return Addr(base, offset)
        if p.accept("{"):
            items = [self.operand()]
            while p.accept(","):
                items.append(self.operand())
            p.take("}")
            return Vec(tuple(items))
        if p.accept("!"):
            value = self.simple()
            assert isinstance(value, Reg)
            return Not(value)
        first = self.simple()
        return Both(first, self.simple()) if p.accept("|") else first

    def simple(self) -> Operand:
        kind, word, _ = self.p.tokens[self.p.i]
        if kind in ("float", "int"):
            return self.p.number()
        self.p.take()
        return self.name(word)

    def name(self, word: str) -> Operand:
        for scope in reversed(self.scopes):
            if word in scope:
                return Reg(scope[word])
        if word == "_":
            return Sink()
        if word == "WARP_SZ":
            return Int(32)
        return Special(word) if word.startswith("%") else Sym(word)


def param_block(params: Sequence[Param], args: Sequence[object]) -> bytes:
    """The arguments as the bytes that ld.param reads.  Arguments: Python numbers, NumPy scalars or bytes."""
    if len(params) != len(args):
        raise PtxError(f"{len(args)} arguments for {len(params)} parameters")
    block = bytearray(max((p.offset + p.size for p in params), default=0))
    for p, a in zip(params, args, strict=True):
        if isinstance(a, (bytes, bytearray)):
            raw = bytes(a)
        elif isinstance(a, (int, np.integer)) and not p.type.floating:
            raw = (int(a) & ((1 << 8 * p.size) - 1)).to_bytes(p.size, "little")
        else:
            raw = np.asarray(a, f"f{p.size}").tobytes()
        if len(raw) != p.size:
            raise PtxError(f"parameter {p.name} has {p.size} bytes, its argument {len(raw)}")
        block[p.offset:p.offset + p.size] = raw
    return bytes(block)
