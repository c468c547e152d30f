"""Which schedule a kernel gets: the one handed in, the one tuned for this processor, or the one chosen by rule.

Here: problems and schedules as text, rules that map one to the other, checking that a schedule is a sound one.
Not here: how schedules are chosen by rule (schedule.py, contract.py), how they are tuned (flowc/tune.py).

A *problem* is what a schedule depends on: ``dot f32 1024x1024x1024`` (batches, rows, columns, sum), ``map f32
4096x1024 mul.add.tanh``; a size that is a symbol is written ``?``.  A *rule* is a pattern for problems, as in file
names, and some fields of a schedule: ``dot f32 *: mr=8 nr=48``.  The first rule that fits a problem wins; fields it does not name stay as chosen.
Schedules change no result (schedule.py), so neither do rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from flowc.diag import FlowcValueError
from flowc.dims import Dim
from flowc.passes.fuse import Group
from flowc.types import DType

S = TypeVar("S")
Problem = Sequence[Any]  # words, dtypes and sizes
Rule = tuple[str, str]   # pattern, fields

SHOWN = 6                # ops of a map that its problem spells out; the rest is a digest
# field -> least and largest value; "lanes" and names of fields: what it must be a multiple of
_BOUNDS: dict[str, tuple[int, int]] = {"mr": (1, 48), "nr": (1, 512), "kc": (8, 1 << 16), "mc": (1, 1 << 16),
                                       "nc": (1, 1 << 20), "tile": (64, 1 << 24), "width": (1, 256)}
_MULTIPLES = {"nr": "lanes", "mc": "mr", "nc": "nr"}
_OTHERS = (1, 1 << 24)


def problem_text(problem: Problem) -> str:
    """The text of a problem: words as they are, sizes joined by ``x``."""
    out: list[str] = []
    sizes: list[str] = []
    for part in (*problem, ""):
        if isinstance(part, (int, Dim)):
            sizes.append(str(part) if isinstance(part, int) else "?")
            continue
        if sizes:
            out.append("x".join(sizes))
            sizes = []
        if part:
            out.append(part.name if isinstance(part, DType) else str(part))
    return " ".join(out)


def map_problem(g: Group) -> Problem:
    """What the schedule of an elementwise kernel depends on: dtype, shape, operations."""
    names = [n.op.name for n in g.members]
    text = ".".join(names[:SHOWN])
    if len(names) > SHOWN:
        text += f"+{len(names) - SHOWN}.{hashlib.sha256('.'.join(names).encode()).hexdigest()[:8]}"
    return ("map", g.root.dtype, *g.root.shape, text)


def fields_text(schedule: Any) -> str:
    """``mr=8 nr=48 ...``: a schedule as rules spell it."""
    return " ".join(f"{f.name}={getattr(schedule, f.name)}" for f in fields(schedule)
                    if type(getattr(schedule, f.name)) is int)


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Rules separated by ``;`` or lines.  FlowcValueError C005 for anything else."""
    out = []
    for part in text.replace("\n", ";").split(";"):
        if not part.strip():
            continue
        pattern, colon, words = part.rpartition(":")
        values = [w.partition("=") for w in words.split()]
        if not colon or not pattern.strip() or not values or not all(v.isdigit() and 0 < int(v) for _, _, v in values):
            raise FlowcValueError("C005", f"{part.strip()!r} is no rule for schedules",
                                  cure="write PROBLEM: FIELD=NUMBER ..., such as `dot f32 *: mr=8 nr=48`")
        out.append((" ".join(pattern.split()), " ".join(words.split())))
    return tuple(out)


def revised(schedule: S, words: str, lanes: Callable[[DType], int] | None = None, dtype: DType | None = None) -> S:
    """``schedule`` with the fields of a rule, made sound: within bounds, blocks whole numbers of tiles.  ValueError for
    a field that the schedule does not have."""
    given = {name: int(v) for name, _, v in (w.partition("=") for w in words.split())}
    assert is_dataclass(schedule) and not isinstance(schedule, type)
    known = {f.name for f in fields(schedule) if type(getattr(schedule, f.name)) is int}
    strange = set(given) - known
    if strange:
        raise ValueError(f"{type(schedule).__name__} has no field {', '.join(sorted(strange))}, but "
                         + ", ".join(sorted(known)))
    values = {name: given.get(name, getattr(schedule, name)) for name in known}
    for name in values:
        low, high = _BOUNDS.get(name, _OTHERS)
        values[name] = min(max(values[name], low), high)
    if "width" in values:
        values["width"] = 1 << (values["width"].bit_length() - 1)
    for name, of in _MULTIPLES.items():  # in this order: a tile first, then the blocks made of it
        unit = lanes(dtype) if of == "lanes" and lanes and dtype is not None else values.get(of, 1)
        if name in values:
            values[name] = max(unit, values[name] // unit * unit)
    return replace(schedule, **values)


class Choices:
    """Rules in order of precedence.  ``seen``: every problem that was asked for, with the schedule it got."""

    def __init__(self, given: Iterable[Rule] = (), tuned: Iterable[Rule] = ()):
        self.given, self.tuned = tuple(given), dict(tuned)
        self.seen: dict[str, Any] = {}

    def choose(self, problem: Problem, default: S, lanes: Callable[[DType], int] | None = None) -> S:
        """The schedule for a problem.  FlowcValueError C006 for a given rule with fields that the schedule does not
        have; a tuned one is then passed over: another version of flowc made it."""
        text = problem_text(problem)
        dtype = next((p for p in problem if isinstance(p, DType)), None)
        out = default
        rule = next(((p, w) for p, w in self.given if fnmatchcase(text, p)), None)
        try:
            if rule is not None:
                out = revised(default, rule[1], lanes, dtype)
            elif text in self.tuned:
                out = revised(default, self.tuned[text], lanes, dtype)
        except ValueError as e:
            if rule is not None:
                raise FlowcValueError("C006", f"the rule {rule[0]}: {rule[1]} does not fit {text}: {e}",
                                      cure="`flowc tune --list` shows problems and their schedules") from None
        self.seen[text] = out
        return out


def choices(given: str, tuned: Sequence[Rule]) -> Choices | None:
    """The choices that a setting and a record ask for; None if neither says anything."""
    return Choices(parse_rules(given), tuned) if given or tuned else None
