"""Tokens, and the grammar that all texts share: names, numbers, sizes, types, attributes, constants.

Here: ``Parser``, the base of the parsers.  Not here: graphs, kernels and plans (parse.py).  Read next: parse.py.

Every error is a ParseError with line, column and a caret; depth of nesting, numbers and sizes of constants are limited.
"""

from __future__ import annotations

import base64
import json
import linecache
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from flowc.diag import Loc, ParseError
from flowc.dims import Dim, DimLike, Range, dmax, dmin, floordiv, mod, sym
from flowc.graph import Attrs, Graph, Literal
from flowc.text import NESTING, VALUES, content_hash
from flowc.types import DTYPES, DType, Type

T = TypeVar("T")
Constants = Mapping[str, np.ndarray]

TERMS = 4096          # terms of a product of two sizes
ELEMENTS = 1 << 24    # elements that one repeated value may stand for
_NUMPY_NAMES = {d.numpy_name: d for d in DTYPES.values()}

_QUOTED = r"`(?:[^`\\\n]|\\.)*`"
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_TOKEN = re.compile("|".join(f"(?P<{k}>{v})" for k, v in (
    ("SKIP", r"(?:\s+|\#[^\n]*)+"),
    ("LOC", rf"@[ ]+(?:{_STRING}|[\w.<>/+-]+):\d+(?::\d+)?"),
    ("AT", rf"@(?:\w+(?:\.\w+)*|{_QUOTED})"),
    ("VALUE", rf"%(?:\w+(?:\.\w+)*|{_QUOTED})"),
    ("SHORT", r"\$\d+"),
    ("HEX", r"0x[0-9a-fA-F]+"),
    ("FLOAT", r"\d+\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+"),
    ("INT", r"\d+"),
    ("NAME", r"[^\W\d]\w*(?:\.\w+)*"),
    ("QUOTED", _QUOTED),
    ("STR", _STRING),
    ("OP", r"->|\.\.|==|!=|<=|>=|<<|>>|//|[-+*/%&|^~<>=(){}\[\],:]"))))
_LOC = re.compile(rf"@[ ]+({_STRING}|[\w.<>/+-]+?):(\d+)(?::(\d+))?")


class Parser:
    """One text, its tokens, and the place reached.  A rule takes what it reads and leaves ``i`` behind it."""

    def __init__(self, text: str, filename: str, constants: Constants | None):
        self.source, self.filename, self.constants = text, filename, constants or {}
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.starts: list[int] = []
        self.i = self.depth = 0
        self._lex()

    def _lex(self) -> None:
        at, end = 0, len(self.source)
        match = _TOKEN.match
        while at < end:
            m = match(self.source, at)
            if m is None:
                self.kinds.append("BAD")
                self.texts.append(self.source[at])
                self.starts.append(at)
                self.i = len(self.kinds) - 1
                raise self.error("P001", f"unexpected character {self.source[at]!r}", "remove it, or quote the name")
            kind = m.lastgroup or ""
            if kind != "SKIP":
                self.kinds.append(kind)
                self.texts.append(m.group())
                self.starts.append(at)
            at = m.end()
        self.kinds.append("EOF")
        self.texts.append("")
        self.starts.append(end)

    def error(self, code: str, text: str, cure: str, at: int | None = None) -> ParseError:
        """The error at token ``at`` (default: the next one)."""
        i = self.i if at is None else at
        start = self.starts[i]
        line = self.source.count("\n", 0, start) + 1
        col = start - (self.source.rfind("\n", 0, start) + 1) + 1
        if not os.path.exists(self.filename):  # the caret printer finds the lines here
            lines = [x + "\n" for x in self.source.split("\n")]
            linecache.cache[self.filename] = (len(self.source), None, lines, self.filename)
        return ParseError(code, text, loc=Loc(self.filename, line, col, col + max(1, len(self.texts[i]))), cure=cure)

    # -- tokens

    def at(self, text: str) -> bool:
        return self.texts[self.i] == text and self.kinds[self.i] in ("OP", "NAME")

    def accept(self, text: str) -> bool:
        if self.at(text):
            self.i += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.unexpected(repr(text))

    def unexpected(self, want: str) -> ParseError:
        found = self.texts[self.i] or "the end of the text"
        return self.error("P002", f"expected {want}, found {found!r}", f"write {want} here")

    def take(self, kind: str, want: str) -> str:
        if self.kinds[self.i] != kind:
            raise self.unexpected(want)
        self.i += 1
        return self.texts[self.i - 1]

    def unquote(self, text: str) -> str:
        if not text.startswith(("`", '"')):
            return text
        try:
            return json.loads(f'"{text[1:-1]}"')
        except ValueError as e:
            raise self.error("P001", f"a bad escape in {text}: {e}", "escape as in JSON", self.i - 1) from None

    def word(self, want: str = "a name") -> str:
        """A name where no keyword can be meant."""
        if self.kinds[self.i] not in ("NAME", "QUOTED"):
            raise self.unexpected(want)
        self.i += 1
        return self.unquote(self.texts[self.i - 1])

    def value_name(self) -> str:
        return self.unquote(self.take("VALUE", "a value such as %x")[1:])

    def at_name(self) -> str:
        return self.unquote(self.take("AT", "a name such as @f")[1:])

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > NESTING:
            raise self.error("P007", f"nested more than {NESTING} deep", "nest less")

    def comma_list(self, close: str, item: Callable[[], T]) -> list[T]:
        """Items up to ``close``, which is taken too; a comma may stand at the end."""
        out: list[T] = []
        while not self.accept(close):
            out.append(item())
            if not self.accept(","):
                self.expect(close)
                break
        return out

    def integer(self, want: str = "a number") -> int:
        sign = -1 if self.accept("-") else 1
        return sign * self._int(self.take("INT", want))

    def _int(self, text: str) -> int:
        if len(text) > 4000:
            raise self.error("P006", "a number of more than 4000 digits", "use a smaller number", self.i - 1)
        return int(text)

    # -- sizes

    def dim(self) -> DimLike:
        d = self._dim_term()
        while self.at("+") or self.at("-"):
            minus = self.texts[self.i] == "-"
            self.i += 1
            t = self._dim_term()
            d = d - t if minus else d + t
        return d

    def _dim_term(self) -> DimLike:
        d = self._dim_unary()
        while self.kinds[self.i] == "OP" and self.texts[self.i] in ("*", "//", "%"):
            at, sign = self.i, self.texts[self.i]
            self.i += 1
            r = self._dim_unary()
            if sign != "*" and isinstance(r, int) and r == 0:
                raise self.error("P006", "a size divided by zero", "divide by something else", at)
            if isinstance(d, Dim) and isinstance(r, Dim) and len(d.terms) * len(r.terms) > TERMS:
                raise self.error("P010", f"a product of more than {TERMS} terms", "use a simpler size", at)
            d = d * r if sign == "*" else floordiv(d, r) if sign == "//" else mod(d, r)
        return d

    def _dim_unary(self) -> DimLike:
        self.deeper()
        kind, text = self.kinds[self.i], self.texts[self.i]
        d: DimLike
        if kind == "OP" and text == "-":
            self.i += 1
            d = -self._dim_unary()
        elif kind == "OP" and text == "(":
            self.i += 1
            d = self.dim()
            self.expect(")")
        elif kind == "INT":
            self.i += 1
            d = self._int(text)
        elif text in ("min", "max") and kind == "NAME" and self.texts[self.i + 1] == "(":
            self.i += 2
            args = self.comma_list(")", self.dim)
            if not args:
                raise self.error("P002", f"{text} of nothing", "give it arguments", self.i - 1)
            d = (dmin if text == "min" else dmax)(*args)
        elif kind in ("NAME", "QUOTED"):
            self.i += 1
            d = sym(self.unquote(text))
        else:
            raise self.unexpected("a size")
        self.depth -= 1
        return d

    def dims(self, close: str) -> tuple[DimLike, ...]:
        return tuple(self.comma_list(close, self.dim))

    def where(self) -> tuple[list[tuple[str, Range]], list[tuple[DimLike, DimLike]]]:
        """``where n >= 1, m in 1..9, a == b``; nothing if there is no ``where``."""
        ranges: list[tuple[str, Range]] = []
        constraints: list[tuple[DimLike, DimLike]] = []
        if not self.accept("where"):
            return ranges, constraints
        while True:
            at, d = self.i, self.dim()
            if self.accept("=="):
                constraints.append((d, self.dim()))
            else:
                name = d.atom() if isinstance(d, Dim) else None
                if not isinstance(name, str):
                    raise self.error("P002", f"expected a symbol to bound, found {d}", "bound one symbol", at)
                ranges.append((name, self.range()))
            if not self.accept(","):
                return ranges, constraints

    def range(self) -> Range:
        """``>= lo`` or ``in lo..`` or ``in lo..hi``."""
        if self.accept(">="):
            return self.dim(), None
        self.expect("in")
        lo = self.dim()
        self.expect("..")
        return lo, None if self.at("=") else self.dim()

    # -- types and attributes

    def dtype(self) -> DType:
        name = self.word("a dtype")
        found = DTYPES.get(name) or _NUMPY_NAMES.get(name)
        if found is None:
            raise self.error("P004", f"there is no dtype {name}", f"use one of {', '.join(DTYPES)}", self.i - 1)
        return found

    def type(self) -> Type:
        d = self.dtype()
        self.expect("[")
        return Type(d, self.dims("]"))

    def types(self) -> list[Type]:
        return self.comma_list(")", self.type) if self.accept("(") else [self.type()]

    def loc(self) -> Loc | None:
        if self.kinds[self.i] != "LOC":
            return None
        m = _LOC.fullmatch(self.texts[self.i])
        assert m is not None
        self.i += 1
        return Loc(self.unquote(m[1]), self._int(m[2]), self._int(m[3] or "0"))

    def attrs(self) -> Attrs:
        """``{name = value, ...}``, or nothing."""
        out = Attrs()
        if not self.accept("{"):
            return out

        def one() -> None:
            at, name = self.i, self.word("an attribute")
            if name in out:
                raise self.error("P009", f"attribute {name} is given twice", "remove one", at)
            self.expect("=")
            dict.__setitem__(out, name, self.attr())
        self.comma_list("}", one)
        return out

    def attr(self) -> Any:
        kind, text = self.kinds[self.i], self.texts[self.i]
        if kind == "STR":
            self.i += 1
            return self.unquote(text)
        if kind == "NAME" and text in VALUES:
            return self._attr_word(text)
        number = self.number() if kind in ("FLOAT", "OP") else None
        if isinstance(number, float):
            return number
        if kind == "OP" and text == "(":
            self.deeper()
            start, self.i = self.i, self.i + 1
            items = self.comma_list(")", self.attr)
            self.depth -= 1
            if len(items) == 1 and self.texts[self.i - 2] != ",":
                self.i = start  # brackets around a size
                return self.dim()
            return tuple(items)
        if number is not None:
            self.i -= 2  # a sign and an integer: the beginning of a size
        return self.dim()

    def _attr_word(self, text: str) -> Any:
        if text in ("true", "false", "none"):
            self.i += 1
            return {"true": True, "false": False, "none": None}[text]
        if text in ("nan", "inf"):
            return self.number()
        if text in DTYPES:
            return self.type() if self.texts[self.i + 1] == "[" else self.dtype()
        if text == "graph":
            self.deeper()
            graph = self.graph()
            self.depth -= 1
            return graph
        if text in ("dense", "splat", "blob", "bytes"):
            return self.literal()
        raise self.error("P002", f"expected a value, found {text!r}", f"write `{text}` for a symbol of that name")

    def number(self) -> float | int | bool | None:
        """A number with its sign, or None (and nothing is taken) if there is none."""
        start = self.i
        sign = -1.0 if self.accept("-") else 1.0
        kind, text = self.kinds[self.i], self.texts[self.i]
        self.i += 1
        if kind == "FLOAT" or kind == "NAME" and text == "inf":
            return sign * float(text)
        if kind == "NAME" and text == "nan":
            bits = 0x7FF8 << 48
            if self.accept("("):
                bits = int(self.take("HEX", "the bits of a NaN"), 16)
                self.expect(")")
            value = struct.unpack("<d", struct.pack("<Q", bits & (1 << 64) - 1))[0]
            if value == value:
                raise self.error("P006", f"{bits:#x} is no NaN", "write the number itself", self.i - 2)
            return -value if sign < 0 else value
        if kind == "INT":
            return int(sign) * self._int(text)
        if kind == "NAME" and text in ("true", "false") and sign > 0:
            return text == "true"
        self.i = start
        return None

    # -- constants

    def literal(self) -> Literal:
        form = self.word()
        self.expect("(")
        at, t = self.i, self.type()
        self.expect(",")
        shape = tuple(d for d in t.shape if isinstance(d, int) and d >= 0)
        if len(shape) != t.rank:
            raise self.error("P008", f"a constant of type {t}", "constants have known sizes", at)
        size = math.prod(shape)
        if form == "bytes":
            return self._bytes(self.take("STR", "base64")[1:-1], t, shape, size)
        if form == "blob":
            return self._blob(self.take("STR", "a hash")[1:-1], t, shape)
        if form == "dense":
            self.expect("[")
            words = self.comma_list("]", lambda: self._element(t.dtype))
            if len(words) != size:
                raise self.error("P008", f"{len(words)} elements for the type {t}", f"give {size}", at)
        else:
            if size > ELEMENTS:
                raise self.error("P008", f"{size} elements of one value", "broadcast a scalar instead", at)
            words = [self._element(t.dtype)] * 1
        self.expect(")")
        a = np.frombuffer(b"".join(words), t.dtype.numpy)
        return Literal(a.reshape(shape) if form == "dense" else np.broadcast_to(a[0], shape))

    def _element(self, d: DType) -> bytes:
        """One element of ``d``, every bit as written."""
        at = self.i
        if d.kind == "c":
            self.expect("(")
            real = self._element(d.real)
            self.expect(",")
            imag = self._element(d.real)
            self.expect(")")
            return real + imag
        if d.floating and self.kinds[self.i] == "HEX":
            bits = int(self.take("HEX", "bits"), 16) & (1 << d.bits) - 1
            return bits.to_bytes(d.bytes, sys.byteorder)
        v = self.number()
        if v is None or isinstance(v, bool) != (d.kind == "b") or isinstance(v, float) and not d.floating:
            raise self.error("P006", f"no value of {d}", f"write a constant of {d}", at)
        if d.integer:
            info = np.iinfo(d.numpy)
            if not info.min <= v <= info.max:
                raise self.error("P006", f"{v} does not fit {d}", f"{d} holds {info.min}..{info.max}", at)
            return np.array(v, d.numpy).tobytes()
        try:
            with np.errstate(all="ignore"):
                x = np.array(float(v)).astype(d.numpy)
        except OverflowError:
            x = np.array(np.inf)
        if not np.isfinite(float(x)) and v == v and abs(v) != math.inf:
            raise self.error("P006", f"{v} is too large for {d}", "write inf if that is meant", at)
        return x.tobytes()

    def _bytes(self, text: str, t: Type, shape: tuple[int, ...], size: int) -> Literal:
        at = self.i - 1
        self.expect(")")
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raw = b""
        if len(raw) != size * t.dtype.bytes:
            raise self.error("P008", f"no base64 of {size * t.dtype.bytes} bytes", "copy the text whole", at)
        a = np.frombuffer(raw, np.uint8) != 0 if t.dtype.kind == "b" else np.frombuffer(raw, t.dtype.numpy)
        return Literal(a.reshape(shape))

    def _blob(self, key: str, t: Type, shape: tuple[int, ...]) -> Literal:
        at = self.i - 1
        self.expect(")")
        a = self.constants.get(key)
        if a is None:
            raise self.error("P008", f"the constant {key} is not at hand", "pass constants=, which the printer filled "
                             "beside the text", at)
        if a.dtype.kind == "V" and a.dtype.itemsize == t.dtype.bytes:  # what .npz makes of bfloat16
            a = a.view(t.dtype.numpy)
        if a.dtype != t.dtype.numpy or a.shape != shape or content_hash(a) != key:
            raise self.error("P008", f"the constant at hand is {a.dtype}{list(a.shape)}, not the one of type {t} that "
                             "was printed", "pass the constants that belong to this text", at)
        return Literal(a)

    def graph(self, check: bool = True) -> Graph:
        """A graph as an attribute."""
        raise self.unexpected("a value that is no graph")
