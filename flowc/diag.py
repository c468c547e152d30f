"""Where things come from and what to say when they go wrong.

Here: ``Loc`` (a place in the user's source), the error types, the caret printer.
Not here: which errors exist (the rooms that raise them).  Read next: config.py.

Every error has a stable code: T types and tracing, V verifier, P parser, G graph layer, C compiling and calling,
F files.  Its last line says what to do.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Sequence
from itertools import islice
from types import CodeType

_HOME = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_HOME)
# the folders are mapped into the package, so that frames may carry either path
_INSIDE = tuple(os.path.realpath(p) + os.sep for p in (
    _HOME, os.path.join(_HOME, "passes"), os.path.join(_HOME, "backends")))
_FOREIGN = ("numpy" + os.sep,)


class Loc:
    """A place in the user's source: file, line, columns, function.

    A traced location keeps the code object and instruction offset; columns are worked out only when printed.
    """

    __slots__ = ("_code", "_columns", "_lasti", "file", "function", "line")

    def __init__(self, file: str, line: int, col: int = 0, end_col: int = 0, function: str = ""):
        self.file, self.line, self.function = file, line, function
        self._columns: tuple[int, int] | None = (col, end_col)
        self._code: CodeType | None = None
        self._lasti = 0

    @classmethod
    def from_frame(cls, frame) -> Loc:
        self = cls.__new__(cls)
        self._code, self._lasti, self._columns = frame.f_code, frame.f_lasti, None
        self.file, self.line, self.function = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        return self

    def columns(self) -> tuple[int, int]:
        """1-based first column and one past the last; (0, 0) if unknown."""
        if self._columns is None:
            assert self._code is not None
            pos = next(islice(self._code.co_positions(), self._lasti // 2, None), (None,) * 4)
            start, end_line, c0, c1 = pos[0], pos[1], pos[2], pos[3]
            if c0 is None or c1 is None:
                self._columns = (0, 0)
            else:
                self._columns = (c0 + 1, c1 + 1 if start == end_line else c0 + 2)
        return self._columns

    @property
    def col(self) -> int:
        return self.columns()[0]

    def __str__(self) -> str:
        name = os.path.basename(self.file)
        return f"{name}:{self.line}:{self.col}" if self.col else f"{name}:{self.line}"

    __repr__ = __str__

    def key(self) -> tuple:
        return (os.path.basename(self.file), self.line, self.col)

    def caret(self) -> list[str]:
        """The source line with carets below it, or nothing if the source is not at hand."""
        text = linecache.getline(self.file, self.line).rstrip("\n")
        if not text:
            return []
        c0, c1 = self.columns()
        strip = len(text) - len(text.lstrip())
        lines = [f"   |     {text.strip()}"]
        if c0:
            lines.append("   |     " + " " * (c0 - 1 - strip) + "^" * max(1, min(c1 - c0, len(text) - c0 + 1)))
        return lines


_inside: dict[str, bool] = {}  # file name -> is it part of flowc or numpy


def _is_inside(filename: str) -> bool:
    real = os.path.realpath(filename)
    known = real.startswith(_INSIDE) or f"{os.sep}numpy{os.sep}" in real or filename.startswith("<__array")
    _inside[filename] = known
    return known


def caller_loc() -> Loc | None:
    """The innermost frame outside flowc and numpy: the user's line that asked for what happens now."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        known = _inside.get(name)
        if not (_is_inside(name) if known is None else known):
            return Loc.from_frame(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return None


class FlowcError(Exception):
    """Base of all flowc errors: ``code``, ``text``, ``loc``, ``notes`` and ``cure``; ``str()`` is the full report."""

    def __init__(self, code: str, text: str, *, loc: Loc | None = None, notes: Sequence[str] = (), cure: str = ""):
        self.code, self.text, self.loc, self.notes, self.cure = code, text, loc, list(notes), cure
        super().__init__(self.report())

    def report(self) -> str:
        lines = [f"error[{self.code}]: {self.text}"]
        if self.loc is not None:
            lines.append(f"  --> {self.loc}")
            lines += self.loc.caret()
        lines += [f"   = {n}" for n in self.notes]
        if self.cure:
            lines.append(f"   cure: {self.cure}")
        return "\n".join(lines)


class FlowcTypeError(FlowcError, TypeError):
    """Wrong dtype, shape or kind of argument."""


class FlowcValueError(FlowcError, ValueError):
    """Wrong value: a size that does not fit, a bad attribute, a broken constraint."""


class FlowcIndexError(FlowcError, IndexError):
    """An index outside its axis, known while tracing."""


class UnsupportedError(FlowcError, NotImplementedError):
    """flowc cannot do this and says so by name instead of guessing."""


class VerifyError(FlowcError, AssertionError):
    """An IR object breaks one of its laws; ``code`` names the law."""


class ParseError(FlowcError, ValueError):
    """Text that is no valid IR; ``loc`` is the place in that text."""


class FileFormatError(FlowcError, ValueError):
    """A data or model file that is missing, cut short or not what it says it is."""
