"""Which schedule a kernel gets: the one handed in, the one tuned for this processor, or the one chosen by rule.

Here: problems and schedules as text, rules that map one to the other, checking that a schedule is a sound one.
Not here: how schedules are chosen by rule (schedule.py, contract.py), how they are tuned (flowc/tune.py).

A *problem* is what a schedule depends on: ``dot f32 1024x1024x1024`` (batches, rows, columns, length of the sums),
``map f32 4096x1024 mul.add.tanh``; a size that is a symbol is written ``?``.  A *rule* is a pattern for problems, as
for file names, and some fields of a schedule: ``dot f32 *: mr=8 nr=48``.  The first rule that fits a problem wins;
fields that it does not name stay as chosen.
Schedules change no result (schedule.py), so neither do rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from flowc.diag import FlowcValueError
from flowc.digest import digest
from flowc.dims import Dim
from flowc.types import DType

if TYPE_CHECKING:
    from flowc.passes.fuse import Group

S = TypeVar("S")
Problem = Sequence[Any]  # words, dtypes and sizes
Rule = tuple[str, str]   # pattern, fields

SHOWN = 6                # ops of a map that its problem spells out; the rest is a digest
# field -> least and largest value that a rule may give
_BOUNDS: dict[str, tuple[int, int]] = {"mr": (1, 30), "nr": (1, 512), "kc": (8, 1 << 16), "mc": (1, 1 << 16),
                                       "nc": (1, 1 << 20), "tile": (64, 1 << 24), "width": (1, 256)}
_THIN: dict[str, tuple[int, int]] = {"nr": (1, 1 << 14), "kc": (1, 16)}  # kc is unrolled there
_OTHERS = (1, 1 << 24)
_MULTIPLES = {"nr": "width", "mc": "mr", "nc": "nr"}  # whole vectors, whole tiles
_FORMS = ("packed", "direct")  # either can stand for the other; thin and deep are a matter of the sizes
REGISTERS = 64           # of one tile, at most: more only spill


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
        text += f"+{len(names) - SHOWN}.{digest('.'.join(names).encode()).hexdigest()[:8]}"
    return ("map", g.root.dtype, *g.root.shape, text)


def fields_text(schedule: Any) -> str:
    """``form=direct mr=8 nr=48 ...``: a schedule as rules spell it."""
    return " ".join(f"{f.name}={int(v) if isinstance(v, bool) else v}" for f in fields(schedule)
                    for v in (getattr(schedule, f.name),))


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Rules separated by ``;`` or lines.  FlowcValueError C005 for anything else."""
    out = []
    for part in text.replace("\n", ";").split(";"):
        if not part.strip():
            continue
        pattern, colon, words = part.rpartition(":")
        if not colon or not pattern.strip() or not words.strip() or not all(
                re.fullmatch(r"[a-z_]\w*=(\d+|[a-z_]\w*)", w) for w in words.split()):
            raise FlowcValueError("C005", f"{part.strip()!r} is no rule for schedules",
                                  cure="write PROBLEM: FIELD=VALUE ..., such as `dot f32 *: mr=8 nr=48`")
        out.append((" ".join(pattern.split()), " ".join(words.split())))
    return tuple(out)


def revised(schedule: S, words: str) -> S:
    """``schedule`` with the fields of a rule, made sound: values within bounds, vectors powers of two, blocks whole
    numbers of tiles, tiles that fit registers.  ValueError for a field or value that the schedule cannot have."""
    assert is_dataclass(schedule) and not isinstance(schedule, type)
    values: dict[str, Any] = {f.name: getattr(schedule, f.name) for f in fields(schedule)}
    thin = values.get("form") == "thin"
    for name, _, word in (w.partition("=") for w in words.split()):
        if name not in values:
            raise ValueError(f"{type(schedule).__name__} has no field {name}, but {', '.join(values)}")
        if type(values[name]) is str:
            if word not in (*_FORMS, "thin", "deep"):
                raise ValueError(f"{name} is one of {', '.join(_FORMS)}")
            if values[name] in _FORMS and word in _FORMS:
                values[name] = word
        elif not word.isdigit():
            raise ValueError(f"{name} is a number")
        elif type(values[name]) is bool:
            values[name] = word != "0"
        elif not (thin and name == "mr"):  # there it is the number of rows
            low, high = (_THIN if thin else {}).get(name) or _BOUNDS.get(name, _OTHERS)
            values[name] = min(max(int(word), low), high)
    if "width" in values:
        values["width"] = 1 << (values["width"].bit_length() - 1)
    if "nr" in values and not thin:
        values["nr"] = min(values["nr"], max(1, REGISTERS // values["mr"]) * values["width"])
    for name, of in _MULTIPLES.items():  # in this order: a tile first, then the blocks made of it
        if name in values and not (thin and name != "nr"):
            unit = values[of]
            values[name] = max(unit, values[name] // unit * unit)
    return replace(schedule, **values)


class Choices:
    """Rules in order of precedence.  ``seen``: every problem that was asked for, with the schedule it got."""

    def __init__(self, given: Iterable[Rule] = (), tuned: Iterable[Rule] = ()):
        self.given, self.tuned = tuple(given), dict(tuned)
        self.seen: dict[str, Any] = {}

    def choose(self, problem: Problem, default: S) -> S:
        """The schedule for a problem.  FlowcValueError C006 for a given rule with fields that the schedule does not
        have; a tuned one is then passed over: another version of flowc made it."""
        text = problem_text(problem)
        out = default
        rule = next(((p, w) for p, w in self.given if fnmatchcase(text, p)), None)
        try:
            if rule is not None:
                out = revised(default, rule[1])
            elif text in self.tuned:
                out = revised(default, self.tuned[text])
        except ValueError as e:
            if rule is not None:
                raise FlowcValueError("C006", f"the rule {rule[0]}: {rule[1]} does not fit {text}: {e}",
                                      cure="`flowc tune --list` shows problems and their schedules") from None
        self.seen[text] = out
        return out


def choices(given: str, tuned: Sequence[Rule]) -> Choices | None:
    """The choices that a setting and a record ask for; None if neither says anything."""
    return Choices(parse_rules(given), tuned) if given or tuned else None
