"""What can be proved about sizes: bounds, comparisons, and simpler forms that follow from them.

Here: proofs from the ranges of symbols, each with a budget.  Not here: sizes themselves (dims.py), what conditions in a
kernel add (facts.py).  Read next: types.py.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flowc.dims import (
    SIZE_RANGE,
    Atom,
    Call,
    Dim,
    DimLike,
    Range,
    Ranges,
    apply,
    dim_of,
    extreme,
    linear,
    map_atoms,
    polynomial,
    quotient_and_rest,
    symbols,
)


def bounds(d: DimLike, ranges: Ranges | None = None) -> tuple[int | None, int | None]:
    """Inclusive integer bounds of ``d``; None where no constant bound is found.  Sound, not complete."""
    return _prove(d, ranges or {}), _negate(_prove(-d, ranges or {}))


def _negate(x: int | None) -> int | None:
    return None if x is None else -x


class _Steps(threading.local):
    """How much of a proof's budget is left: nested min, max and quotients branch at every level, and the branches meet
    again.  ``found``: bounds of this proof, and how deep they were looked for.  ``shared``: what is left of the budget
    of the question that this proof belongs to."""

    left = 0
    shared: int | None = None

    def __init__(self) -> None:
        self.found: dict[Dim, tuple[int, int | None]] = {}


STEPS = 400     # expressions looked at for one answer; what has not been proved by then is unknown
_STEPS = _Steps()


def _prove(d: DimLike, ranges: Ranges) -> int | None:
    """A lower bound of ``d`` within the budget of one proof."""
    if isinstance(d, int):
        return d
    exact, low = _least(d, ranges)
    if exact:
        return low
    facts = _concerned(d, ranges)
    low, steps = _proof(d, facts, STEPS)
    if _STEPS.shared is not None:
        limit = max(0, min(STEPS, _STEPS.shared))
        if steps >= limit:  # a proof that was not cut short is the same with any budget above its steps
            low, steps = _proof(d, facts, limit)
        _STEPS.shared -= steps
    return low


def _least(d: Dim, ranges: Ranges) -> tuple[bool, int | None]:
    """Is ``d`` a sum of symbols that vary between numbers, each on its own; then its least value."""
    total: int | None = 0
    for mono, c in d.terms:
        end: DimLike | None = 1
        if mono:
            (atom, power), *more = mono
            if more or power != 1 or not isinstance(atom, str):
                return False, None
            end = ranges.get(atom, SIZE_RANGE)[c < 0]
        if isinstance(end, Dim):
            return False, None
        total = None if total is None or end is None else total + c * end
    return True, total


def _concerned(d: Dim, ranges: Ranges) -> tuple[tuple[str, Range], ...]:
    """The ranges that bounds of ``d`` may depend on, in the order of definition."""
    names: set[str] = set()
    new = set(symbols(d))
    while new:
        names |= new
        new = {s for n in new if n in ranges for end in ranges[n] if isinstance(end, Dim) for s in symbols(end)} - names
    return tuple([r for r in ranges.items() if r[0] in names])


@functools.lru_cache(1 << 14)
def _proof(d: Dim, facts: tuple[tuple[str, Range], ...], limit: int) -> tuple[int | None, int]:
    """A lower bound of ``d``, and the steps that it took."""
    _STEPS.left = limit
    _STEPS.found.clear()
    low = _lower(d, dict(facts), 8)
    return low, limit - _STEPS.left


@contextmanager
def question(steps: int) -> Iterator[None]:
    """All proofs inside have ``steps`` together: what is looked for in many ways is found by the first few or by
    none."""
    before = _STEPS.shared
    mine = _STEPS.shared = steps if before is None else min(steps, before)
    try:
        yield
    finally:
        assert _STEPS.shared is not None
        _STEPS.shared = None if before is None else before - (mine - _STEPS.shared)


def _lower(d: DimLike, ranges: Ranges, depth: int) -> int | None:
    if isinstance(d, int):
        return d
    known = _STEPS.found.get(d)
    if known is None or known[0] < depth:
        known = _STEPS.found[d] = depth, _look(d, ranges, depth)
    return known[1]


def _look(d: Dim, ranges: Ranges, depth: int) -> int | None:
    _STEPS.left -= 1
    if depth and _STEPS.left > 0:
        for name in _eliminable(d, ranges):
            split = linear(d, name)
            if split is None:
                continue
            c, rest = split
            lo, hi = ranges[name]
            if _sign_known(c, ranges, depth, positive=True):
                return _lower(c * lo + rest, ranges, depth - 1)
            if hi is not None and _sign_known(c, ranges, depth, positive=False):
                return _lower(c * hi + rest, ranges, depth - 1)
        replaced = _lower_calls(d, ranges, depth)
        termwise = _lower_terms(d, ranges, depth)
        return termwise if replaced is None else replaced if termwise is None else max(replaced, termwise)
    return _lower_terms(d, ranges, depth)


def _lower_terms(d: Dim, ranges: Ranges, depth: int) -> int | None:
    """Lower bound from bounds of each term on its own."""
    total = 0
    for mono, c in d.terms:
        lo, hi = 1, 1
        for atom, p in mono:
            alo, ahi = _atom_bounds(atom, ranges, depth)
            for _ in range(p):
                lo, hi = _interval_mul((lo, hi), (alo, ahi))
        bound = lo if c > 0 else hi
        if bound is None:
            return None
        total += c * bound
    return total


def _sign_known(c: DimLike, ranges: Ranges, depth: int, positive: bool) -> bool:
    if isinstance(c, int):
        return c >= 0 if positive else c <= 0
    low = _lower(c if positive else -c, ranges, depth - 1)
    return low is not None and low >= 0


def _eliminable(d: Dim, ranges: Ranges) -> Iterator[str]:
    """Bounded symbols of ``d``, latest defined first: an inner loop's bounds may name outer symbols."""
    names = symbols(d)
    return (n for n in reversed(list(ranges)) if n in names)


def _lower_calls(d: Dim, ranges: Ranges, depth: int) -> int | None:
    """Lower bound through calls.  ``-k*min(...)`` and ``k*max(...)``: any argument bounds the call, so the best one
    counts; ``k*(a // b)`` with k a multiple of b: b*(a // b) lies in [a - b + 1, a]."""
    best: int | None = None
    for mono, c in d.terms:
        for call, power in mono:
            if power != 1 or isinstance(call, str):
                continue
            factor = polynomial({tuple(t for t in mono if t[0] is not call): 1})
            if not _sign_known(factor, ranges, depth, positive=True):
                continue
            rest = d - dim_of(call) * factor * c
            lows: list[int | None] = []
            if call.fn in ("min", "max"):
                lows = [_lower(rest + a * factor * c, ranges, depth - 1) for a in call.args]
                if call.fn == ("max" if c < 0 else "min"):  # the worst argument counts
                    lows = [None if None in lows else min(x for x in lows if x is not None)]
            elif call.fn == "floordiv" and isinstance(call.args[1], int):
                lows = [_lower(rest + (a if c < 0 else a - b + 1) * factor * (c // b), ranges, depth - 1)
                        for a, b in _quotients(call, d) if c % b == 0]
            best = max((x for x in (best, *lows) if x is not None), default=None)
    return best


def _quotients(call: Call, d: Dim) -> Iterator[tuple[DimLike, int]]:
    """Dividend and divisor of ``call``, also as the quotient of a quotient that stands in ``d``:
    ``a // 12`` is ``(a // 3) // 4``."""
    a, b = call.args
    assert isinstance(b, int)
    yield a, b
    for mono, _ in d.terms:
        other = mono[0][0] if mono else None
        if isinstance(other, Call) and other.fn == "floordiv" and other.args[0] == a:
            inner = other.args[1]
            if isinstance(inner, int) and 0 < inner < b and b % inner == 0:
                yield dim_of(other), b // inner


def _interval_mul(a, b):
    (alo, ahi), (blo, bhi) = a, b
    if None not in (alo, ahi, blo, bhi):
        ps = [alo * blo, alo * bhi, ahi * blo, ahi * bhi]
        return min(ps), max(ps)
    if alo is not None and blo is not None and alo >= 0 and blo >= 0:
        zero = ahi == 0 or bhi == 0
        return alo * blo, 0 if zero else None if ahi is None or bhi is None else ahi * bhi
    return None, None


def _atom_bounds(atom: Atom, ranges: Ranges, depth: int) -> tuple[int | None, int | None]:
    if isinstance(atom, str):
        lo, hi = ranges.get(atom, SIZE_RANGE)
        if not depth:
            return (lo if isinstance(lo, int) else None), (hi if isinstance(hi, int) else None)
        low = lo if isinstance(lo, int) else _lower(lo, ranges, depth - 1)
        high: int | None = hi if hi is None or isinstance(hi, int) else _negate(_lower(-hi, ranges, depth - 1))
        return low, high
    if not depth:
        return None, None
    return _call_bounds(atom.fn, [(_lower(a, ranges, depth - 1), _negate(_lower(-a, ranges, depth - 1)))
                                  for a in atom.args])


def _call_bounds(fn: str, parts: Sequence[tuple[int | None, int | None]]) -> tuple[int | None, int | None]:
    """Bounds of a call from those of its arguments."""
    if fn in ("min", "max"):
        los, his = [p[0] for p in parts if p[0] is not None], [p[1] for p in parts if p[1] is not None]
        if fn == "min":
            return (min(los) if len(los) == len(parts) else None), min(his, default=None)
        return max(los, default=None), (max(his) if len(his) == len(parts) else None)
    (alo, ahi), (blo, bhi) = parts
    if fn == "mod":  # a symbolic divisor is taken to be positive
        top = bhi - 1 if bhi is not None else None
        if alo is not None and alo >= 0 and ahi is not None:
            top = ahi if top is None else min(top, ahi)
        return 0, top
    if blo is None or blo < 1:
        blo = 1
    least = None if alo is None else alo // blo if alo < 0 else (alo // bhi if bhi is not None else 0)
    most = None if ahi is None else ahi // blo if ahi >= 0 else (ahi // bhi if bhi is not None else -1)
    return least, most


def _plainly_nonnegative(d: Dim, ranges: Ranges) -> bool:
    """Does it follow from the least value of each term?  Most of what is asked does, at no search."""
    low = _interval(d, ranges, 3)[0]
    return low is not None and low >= 0


def _interval(d: DimLike, ranges: Ranges, depth: int) -> tuple[int | None, int | None]:
    """Bounds of ``d`` from those of each term on its own, ``depth`` ranges and calls deep."""
    if isinstance(d, int):
        return d, d
    least: int | None = 0
    most: int | None = 0
    for mono, c in d.terms:
        lo: int | None = 1
        hi: int | None = 1
        for atom, power in mono:
            if isinstance(atom, str):
                first, last = ranges.get(atom, SIZE_RANGE)
                ends = (first if isinstance(first, int) else _interval(first, ranges, depth - 1)[0] if depth else None,
                        last if last is None or isinstance(last, int) else
                        _interval(last, ranges, depth - 1)[1] if depth else None)
            else:
                ends = _call_bounds(atom.fn, [_interval(a, ranges, depth - 1) for a in atom.args]) if depth else (
                    None, None)
            for _ in range(power):
                lo, hi = _interval_mul((lo, hi), ends)
        if c < 0:
            lo, hi = hi, lo
        least = None if least is None or lo is None else least + c * lo
        most = None if most is None or hi is None else most + c * hi
    return least, most


def proved_le(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> bool:
    """Is ``a <= b`` proved for all values in range?  Half the work of asking whether it may also be refuted."""
    gap, ranges = b - a, ranges or {}
    if isinstance(gap, int):
        return gap >= 0
    exact, low = _least(gap, ranges)
    if not exact:
        low = 0 if _plainly_nonnegative(gap, ranges) else _prove(gap, ranges)
    return low is not None and low >= 0


def known_le(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> bool | None:
    """True or False where ``a <= b`` is proved or refuted for all values in range; None if unknown."""
    if proved_le(a, b, ranges):
        return True
    high = _prove(a - b, ranges or {})
    return False if high is not None and high > 0 else None


def known_lt(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> bool | None:
    return known_le(a + 1, b, ranges)


def known_eq(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> bool | None:
    """True if both have one normal form; False if they are proved different; None if unknown."""
    gap = a - b
    if isinstance(gap, int):
        return gap == 0
    lo, hi = bounds(gap, ranges)
    return False if (lo is not None and lo > 0) or (hi is not None and hi < 0) else None


def simplify(d: DimLike, ranges: Ranges) -> DimLike:
    """``d`` with calls resolved that the ranges decide: with ``0 <= j < 4``, ``(4*i + j) // 4`` is ``i``, and
    ``(4*i + j) // 12`` is ``i // 3``."""
    if isinstance(d, int) or not d.has_calls():
        return d
    if _STEPS.shared is not None:
        return _simplified.__wrapped__(d, tuple(ranges.items()))  # what is proved depends on what is left of the budget
    return _simplified(d, _concerned(d, ranges))


@functools.lru_cache(1 << 14)
def _simplified(d: Dim, facts: tuple[tuple[str, Range], ...]) -> DimLike:
    ranges = dict(facts)
    return map_atoms(d, lambda atom: dim_of(atom) if isinstance(atom, str) else _simplify_call(atom, ranges))


def _in_units(r: DimLike, b: DimLike, ranges: Ranges) -> tuple[int, DimLike, DimLike] | None:
    """(unit, u, v) with ``r == unit*u + v``, v in 0 .. unit - 1 and a unit that divides ``b``; None if none is found.
    Then ``r // b == u // (b // unit)`` and ``r % b == unit * (u % (b // unit)) + v``."""
    if isinstance(b, int) and isinstance(r, Dim):
        for unit in sorted({abs(c) for m, c in r.terms if m}, reverse=True):
            if 1 < unit < b and b % unit == 0:
                u, v = quotient_and_rest(r, unit)
                if proved_le(0, v, ranges) and proved_le(v + 1, unit, ranges):
                    return unit, u, v
    return None


def _simplify_call(call: Call, ranges: Ranges) -> DimLike:
    args = [simplify(a, ranges) for a in call.args]
    if call.fn in ("floordiv", "mod"):
        a, b = args
        q, r = quotient_and_rest(a, b)
        if proved_le(0, r, ranges) and proved_le(r + 1, b, ranges):
            return q if call.fn == "floordiv" else r
        parts = _in_units(r, b, ranges)
        if parts is None:
            return apply(call.fn, args)
        unit, u, v = parts
        inner = apply(call.fn, (u, b // unit))
        return q + inner if call.fn == "floordiv" else unit * inner + v
    kept: list[DimLike] = []
    for x in args:
        better = proved_le if call.fn == "max" else lambda p, q, r: proved_le(q, p, r)
        if any(better(x, y, ranges) for y in kept):
            continue
        kept = [y for y in kept if not better(y, x, ranges)] + [x]
    return extreme(call.fn, kept)
