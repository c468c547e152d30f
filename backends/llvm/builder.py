"""A small builder of LLVM IR text: functions, blocks, values, loops.

Here: text assembly only.  Not here: what is emitted (emit.py, entry.py), llvmlite (engine.py).

Text is some ninety times faster to build than llvmlite's IR objects.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from flowc.dims import Call, DimLike

_DEFINES = re.compile(r"^define [^@\n]*@\"?([^\"(]+)\"?\(", re.M)


def float_literal(x: float, ty: str) -> str:
    """A constant LLVM reads back exactly.  ty: half, bfloat, float, double."""
    if ty == "half":
        import numpy as np
        return f"0xH{int(np.float16(x).view(np.uint16)):04X}"
    if ty == "bfloat":
        bits = struct.unpack("<I", struct.pack("<f", x))[0]
        if x != x:
            return "0xR7FC0"
        return f"0xR{((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF:04X}"
    if ty == "float":
        try:
            (x,) = struct.unpack("<f", struct.pack("<f", x))
        except OverflowError:
            x = math.copysign(math.inf, x)
    return f"0x{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}"


class Module:
    """Functions, globals and the declarations they need, each declared once.  ``helpers``: functions that only this
    module sees, by name.  ``tiles``: other modules, by the name of the one function that each defines.  ``brief``:
    its functions do little but to call those."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.functions: list[str] = []
        self.declared: dict[str, str] = {}
        self.helpers: dict[str, str] = {}
        self.tiles: dict[str, Module] = {}
        self.brief = False

    def declare(self, name: str, signature: str) -> str:
        """``declare("llvm.fma.f32", "float (float, float, float)")``; returns ``@name``."""
        ret, args = signature.split(" (", 1)
        self.declared.setdefault(name, f"declare {ret} @{name}({args}")
        return f"@{name}"

    def take(self, other: Module, old: str = "", new: str = "") -> None:
        """Add what another module holds, its symbol ``old`` renamed."""
        self.head += other.head
        self.functions += [f.replace(old, new) if old else f for f in other.functions]
        self.declared = {**self.declared, **other.declared}
        self.helpers = {**self.helpers, **other.helpers}

    def define(self, other: Module) -> None:
        """Put another module first; what it defines is no longer only declared."""
        self.head = other.head + self.head
        self.functions = other.functions + self.functions
        self.helpers = {**other.helpers, **self.helpers}
        names = {name for f in other.functions for name in _DEFINES.findall(f)}
        self.declared = {n: text for n, text in {**other.declared, **self.declared}.items() if n not in names}

    def lines(self) -> int:
        return sum(f.count("\n") + 1 for f in (*self.functions, *self.helpers.values()))

    def text(self) -> str:
        return "\n".join([*self.head, *self.functions, *self.helpers.values(), *self.declared.values()]) + "\n"


class Function:
    """One function under construction.  Values are strings: ``%t5`` or constants."""

    __slots__ = ("_n", "block", "lines", "module", "ret")

    def __init__(self, module: Module, name: str, args: str, ret: str = "void", attrs: str = "nounwind",
                 linkage: str = ""):
        self.module, self.ret = module, ret
        self.lines: list[str] = [f"define {linkage + ' ' if linkage else ''}{ret} @{name}({args}) {attrs} {{", "entry:"]
        self.block = "entry"
        self._n = 0

    def fresh(self, stem: str = "t") -> str:
        self._n += 1
        return f"%{stem}{self._n}"

    def label(self, stem: str = "b") -> str:
        self._n += 1
        return f"{stem}{self._n}"

    def raw(self, text: str) -> None:
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        r = self.fresh()
        self.lines.append(f"  {r} = {text}")
        return r

    def begin(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def br(self, label: str) -> None:
        self.raw(f"br label %{label}")

    def cond_br(self, cond: str, yes: str, no: str, unlikely_no: bool = False) -> None:
        self.raw(f"br i1 {cond}, label %{yes}, label %{no}" + (", !prof !0" if unlikely_no else ""))

    def call(self, name: str, signature: str, *args: str) -> str:
        """Call a declared function; ``args`` carry their types: ``"float %x"``.  Returns the value ("" for void)."""
        target = self.module.declare(name, signature)
        ret = signature.split(" (", 1)[0]
        text = f"call {ret} {target}({', '.join(args)})"
        if ret == "void":
            self.raw(text)
            return ""
        return self.op(text)

    # -- i64 arithmetic that folds Python ints

    def add(self, a: str | int, b: str | int) -> str | int:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return b if a == 0 else a if b == 0 else self.op(f"add i64 {a}, {b}")

    def sub(self, a: str | int, b: str | int) -> str | int:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.op(f"sub i64 {a}, {b}")

    def mul(self, a: str | int, b: str | int) -> str | int:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        return b if a == 1 else a if b == 1 else self.op(f"mul i64 {a}, {b}")

    def dim(self, d: DimLike, env: dict[str, str | int]) -> str | int:
        """Code for a size expression; ``env`` gives the i64 value of each symbol.  Division is floor division by a
        divisor taken to be positive; a zero divisor gives 0."""
        if isinstance(d, int):
            return d
        total: str | int = 0
        for mono, c in d.terms:
            term: str | int = c if not mono else 1
            for atom, p in mono:
                v = env[atom] if isinstance(atom, str) else self._dim_call(atom, env)
                for _ in range(p):
                    term = self.mul(term, v)
            total = self.add(total, term if not mono else self.mul(term, c))
        return total

    def _dim_call(self, atom: Call, env: dict[str, str | int]) -> str | int:
        args = [self.dim(a, env) for a in atom.args]
        if atom.fn in ("min", "max"):
            out = args[0]
            for a in args[1:]:
                out = self.call(f"llvm.s{atom.fn}.i64", "i64 (i64, i64)", f"i64 {out}", f"i64 {a}")
            return out
        a, b = args
        if isinstance(b, int) and b > 0:
            if b & (b - 1) == 0:
                return self.op(f"ashr i64 {a}, {b.bit_length() - 1}" if atom.fn == "floordiv"
                               else f"and i64 {a}, {b - 1}")
        else:
            positive = self.op(f"icmp sgt i64 {b}, 0")
            b = self.op(f"select i1 {positive}, i64 {b}, i64 1")
        q, r = self.op(f"sdiv i64 {a}, {b}"), self.op(f"srem i64 {a}, {b}")
        neg = self.op(f"icmp slt i64 {r}, 0")
        if atom.fn == "mod":
            return self.add(r, self.op(f"select i1 {neg}, i64 {b}, i64 0"))
        return self.sub(q, self.op(f"zext i1 {neg} to i64"))

    @contextmanager
    def loop(self, lo: str | int, hi: str | int, step: str | int = 1, stem: str = "i") -> Iterator[str]:
        """``for (i = lo; i < hi; i += step)``; yields i; the body may open blocks."""
        before, head, body, done = self.block, self.label("head"), self.label("body"), self.label("done")
        i, nxt = self.fresh(stem), self.fresh("next")
        self.br(head)
        self.begin(head)
        at = len(self.lines)
        self.raw("")
        c = self.op(f"icmp slt i64 {i}, {hi}")
        self.cond_br(c, body, done)
        self.begin(body)
        yield i
        self.raw(f"{nxt} = add i64 {i}, {step}")
        self.lines[at] = f"  {i} = phi i64 [ {lo}, %{before} ], [ {nxt}, %{self.block} ]"
        self.br(head)
        self.begin(done)

    def finish(self, value: str | None = None) -> None:
        """End with a return and add the function to its module."""
        if self.ret == "void":
            self.raw("ret void")
        elif value is not None:
            self.raw(f"ret {self.ret} {value}")
        self.lines.append("}")
        self.module.functions.append("\n".join(self.lines))



