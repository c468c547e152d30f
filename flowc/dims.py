"""Integer size expressions: shapes, loop bounds, addresses, buffer sizes and launch sizes.

Here: the normal form of integer polynomials over named symbols, and what can be proved about them.
Not here: types of tensors (types.py), text to expression (parse.py).  Read next: types.py.

A size is a plain ``int`` or a :class:`Dim`; constructors return ``int`` whenever the value is constant, so code
writes ``a * b + 1`` and never asks which it holds.  The normal form is a sum of integer multiples of products of
atoms; an atom is a symbol name or a call (floordiv, mod, min, max) of normal forms.  Two expressions with the same
normal form are equal objects by ``==`` and hash.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Union

Range = tuple["int | Dim", "int | Dim | None"]  # inclusive lower and upper bound; None: no upper bound
Ranges = Mapping[str, Range]
SIZE_RANGE: Range = (0, None)  # what is assumed of a symbol without an entry: sizes are not negative

# Expressions never change and compiling forms the same ones over and over: results are remembered
_remembered = functools.lru_cache(1 << 15)


class Call:
    """An atom that is no symbol: ``floordiv(a, b)``, ``mod(a, b)``, ``min(a, ...)``, ``max(a, ...)``."""

    __slots__ = ("_hash", "args", "fn", "text")

    def __init__(self, fn: str, args: tuple[DimLike, ...]):
        self.fn, self.args = fn, args
        if fn in ("floordiv", "mod"):
            sign = "//" if fn == "floordiv" else "%"
            self.text = f"({_operand(args[0])} {sign} {_operand(args[1])})"
        else:
            self.text = f"{fn}({', '.join(map(str, args))})"
        self._hash = hash((fn, args))

    def __reduce__(self) -> tuple:
        return Call, (self.fn, self.args)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Call) and self.fn == other.fn and self.args == other.args)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return self.text


Atom = Union[str, Call]
Monomial = tuple[tuple[Atom, int], ...]  # sorted (atom, power); () is the constant term
DimLike = Union[int, "Dim"]


def _operand(d: DimLike) -> str:
    text = str(d)
    simple = isinstance(d, int) and d >= 0 or isinstance(d, Dim) and d.atom() is not None
    return text if simple else f"({text})"


@_remembered
def _mono_key(m: Monomial) -> tuple[int, str]:
    return (-sum(p for _, p in m), "*".join(f"{a}^{p}" for a, p in m))


@_remembered
def _mono_mul(a: Monomial, b: Monomial) -> Monomial:
    if not a:
        return b
    if not b:
        return a
    powers = dict(a)
    for atom, p in b:
        powers[atom] = powers.get(atom, 0) + p
    return tuple(sorted(powers.items(), key=lambda t: str(t[0])))


@_remembered
def _mono_div(a: Monomial, b: Monomial) -> Monomial | None:
    powers = dict(a)
    for atom, p in b:
        left = powers.get(atom, 0) - p
        if left < 0:
            return None
        if left:
            powers[atom] = left
        else:
            del powers[atom]
    return tuple(sorted(powers.items(), key=lambda t: str(t[0])))


class Dim:
    """A non-constant integer expression in normal form.  Build with :func:`sym` and operators, never directly."""

    __slots__ = ("_hash", "_symbols", "_text", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]):
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None
        self._symbols: frozenset[str] | None = None

    def __reduce__(self) -> tuple:
        return Dim, (self.terms,)  # hashes are those of one process

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms)

    def __hash__(self) -> int:
        return self._hash

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of the symbolic size {self} is not known; ask known_eq or known_le")

    def atom(self) -> Atom | None:
        """The single atom this expression consists of, or None."""
        if len(self.terms) == 1:
            mono, c = self.terms[0]
            if c == 1 and len(mono) == 1 and mono[0][1] == 1:
                return mono[0][0]
        return None

    def __str__(self) -> str:
        if self._text is None:
            out = []
            for mono, c in self.terms:
                factors = [a if isinstance(a, str) else a.text for a, p in mono for _ in range(p)]
                if abs(c) != 1 or not factors:
                    factors.insert(0, str(abs(c)))
                out.append(("- " if c < 0 else "+ ") + "*".join(factors))
            text = " ".join(out)
            self._text = text[2:] if text.startswith("+ ") else "-" + text[2:]
        return self._text

    __repr__ = __str__

    def __add__(self, o: DimLike) -> DimLike:
        return _sum(self, o, 1)

    __radd__ = __add__

    def __sub__(self, o: DimLike) -> DimLike:
        return _sum(self, o, -1)

    def __rsub__(self, o: DimLike) -> DimLike:
        return _sum(o, self, -1)

    def __neg__(self) -> DimLike:
        return Dim(tuple((m, -c) for m, c in self.terms))

    def __mul__(self, o: DimLike) -> DimLike:
        if isinstance(o, int):
            if o in (0, 1):
                return self if o else 0
            return Dim(tuple((m, c * o) for m, c in self.terms))
        return _product(self, o) if isinstance(o, Dim) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, o: DimLike) -> DimLike:
        return floordiv(self, o)

    def __rfloordiv__(self, o: DimLike) -> DimLike:
        return floordiv(o, self)

    def __mod__(self, o: DimLike) -> DimLike:
        return mod(self, o)

    def __rmod__(self, o: DimLike) -> DimLike:
        return mod(o, self)


def sym(name: str) -> Dim:
    """The symbol ``name``: a size, a loop variable or an integer that a kernel computes."""
    return Dim(((((name, 1),), 1),))


def _terms(d: DimLike) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(d, Dim):
        return d.terms
    return (((), int(d)),) if d else ()


def _make(acc: dict[Monomial, int]) -> DimLike:
    terms = [(m, c) for m, c in acc.items() if c]
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    if len(terms) > 1:
        terms = _join_div_mod(terms)
        if not terms:
            return 0
        if len(terms) == 1 and not terms[0][0]:
            return terms[0][1]
        terms.sort(key=lambda t: _mono_key(t[0]))
    return Dim(tuple(terms))


def _join_div_mod(terms: list[tuple[Monomial, int]]) -> list[tuple[Monomial, int]]:
    """``b*(a // b) + a % b`` is ``a``: the one identity that links two atoms."""
    for mono, c in terms:
        if len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], Call) and mono[0][0].fn == "mod":
            a, b = mono[0][0].args
            whole = floordiv(a, b) * b * c
            have = dict(terms)
            if all(have.get(m) == k for m, k in _terms(whole)):
                rest = {m: k for m, k in terms if m != mono}
                for m, _ in _terms(whole):
                    del rest[m]
                for m, k in _terms(a * c):
                    rest[m] = rest.get(m, 0) + k
                return _join_div_mod([(m, k) for m, k in rest.items() if k])
    return terms


def _atom_dim(atom: Atom) -> Dim:
    return Dim(((((atom, 1),), 1),))


def _sum(a: DimLike, b: DimLike, sign: int) -> DimLike:
    if not isinstance(a, (int, Dim)) or not isinstance(b, (int, Dim)):
        return NotImplemented
    return _sum_of(a, b, sign)


@_remembered
def _sum_of(a: DimLike, b: DimLike, sign: int) -> DimLike:
    acc = dict(_terms(a))
    for m, c in _terms(b):
        acc[m] = acc.get(m, 0) + sign * c
    return _make(acc)


@_remembered
def _product(a: Dim, b: Dim) -> DimLike:
    acc: dict[Monomial, int] = {}
    for ma, ca in a.terms:
        for mb, cb in b.terms:
            m = _mono_mul(ma, mb)
            acc[m] = acc.get(m, 0) + ca * cb
    return _make(acc)


@_remembered
def _split(a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
    """q and r with ``a == b*q + r`` where q takes every term of ``a`` that ``b`` divides exactly."""
    bt = _terms(b)
    if len(bt) != 1:
        return (1, 0) if a == b else (0, a)
    bm, bc = bt[0]
    quot: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for m, c in _terms(a):
        d = _mono_div(m, bm)
        if d is None:
            rest[m] = c
            continue
        k = c // bc  # floor, also for a constant: 7 = 4*1 + 3 keeps the remainder small
        if k * bc != c and m:
            k = 0
        if k:
            quot[d] = quot.get(d, 0) + k
        if c - k * bc:
            rest[m] = c - k * bc
    return _make(quot), _make(rest)


@_remembered
def floordiv(a: DimLike, b: DimLike) -> DimLike:
    """Floor of ``a / b``.  ``b`` must not be zero; a symbolic ``b`` is taken to be positive."""
    if isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError("size expression divided by zero")
        if isinstance(a, int):
            return a // b
        if b < 0:
            return floordiv(-a, -b)
        if b == 1:
            return a
    q, r = _split(a, b)
    if isinstance(r, int) and r == 0:
        return q
    if isinstance(r, int) and isinstance(b, int):
        return q + r // b
    if isinstance(r, Dim) and isinstance(b, int):
        inner = r.atom()
        if isinstance(inner, Call) and inner.fn == "floordiv" and isinstance(inner.args[1], int):
            return q + floordiv(inner.args[0], inner.args[1] * b)
        if isinstance(inner, Call) and inner.fn == "mod" and isinstance(inner.args[1], int) and inner.args[1] <= b:
            return q
    return q + _atom_dim(Call("floordiv", (r, b)))


@_remembered
def mod(a: DimLike, b: DimLike) -> DimLike:
    """``a - b * (a // b)``, with the sign of ``b`` as in Python."""
    if isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError("size expression modulo zero")
        if isinstance(a, int):
            return a % b
        if b < 0:
            return -mod(-a, -b)
        if b == 1:
            return 0
    _, r = _split(a, b)
    if isinstance(r, int) and (r == 0 or isinstance(b, int)):
        return r if r == 0 else r % b
    if isinstance(r, Dim) and isinstance(b, int):
        inner = r.atom()
        if isinstance(inner, Call) and inner.fn == "mod" and isinstance(inner.args[1], int):
            if inner.args[1] <= b:
                return r
            if inner.args[1] % b == 0:
                return mod(inner.args[0], b)
    return _atom_dim(Call("mod", (r, b)))


def ceildiv(a: DimLike, b: DimLike) -> DimLike:
    """Ceiling of ``a / b`` for positive ``b``."""
    return floordiv(a + b - 1, b)


def _extreme(fn: str, args: Iterable[DimLike]) -> DimLike:
    pick = min if fn == "min" else max
    flat: dict[DimLike, None] = {}
    for a in args:
        inner = a.atom() if isinstance(a, Dim) else None
        for x in inner.args if isinstance(inner, Call) and inner.fn == fn else (a,):
            flat[x] = None
    kept: list[DimLike] = []
    for x in flat:
        for i, y in enumerate(kept):
            gap = x - y
            if isinstance(gap, int):  # they differ by a constant: one of the two wins everywhere
                kept[i] = x if pick(gap, 0) == gap else y
                break
        else:
            kept.append(x)
    if len(kept) == 1:
        return kept[0]
    return _atom_dim(Call(fn, tuple(sorted(kept, key=lambda d: (isinstance(d, int), str(d))))))


def dmin(*args: DimLike) -> DimLike:
    return _extreme("min", args)


def dmax(*args: DimLike) -> DimLike:
    return _extreme("max", args)


def prod(dims: Iterable[DimLike]) -> DimLike:
    out: DimLike = 1
    for d in dims:
        out = out * d
    return out


def apply(fn: str, args: Iterable[DimLike]) -> DimLike:
    """The normal form of an atom's function over new arguments."""
    return _APPLY[fn](*args)


_APPLY: dict[str, Callable[..., DimLike]] = {"floordiv": floordiv, "mod": mod, "min": dmin, "max": dmax}


def symbols(d: DimLike) -> frozenset[str]:
    """Names of all symbols in ``d``, also those inside calls."""
    if isinstance(d, int):
        return frozenset()
    if d._symbols is None:
        out: set[str] = set()
        for mono, _ in d.terms:
            for atom, _ in mono:
                if isinstance(atom, str):
                    out.add(atom)
                else:
                    for a in atom.args:
                        out |= symbols(a)
        d._symbols = frozenset(out)
    return d._symbols


def _rebuild(d: DimLike, leaf) -> DimLike:
    if isinstance(d, int):
        return d
    total: DimLike = 0
    for mono, c in d.terms:
        term: DimLike = c
        for atom, p in mono:
            v = leaf(atom) if isinstance(atom, str) else apply(atom.fn, [_rebuild(a, leaf) for a in atom.args])
            for _ in range(p):
                term = term * v
        total = total + term
    return total


def substitute(d: DimLike, env: Mapping[str, DimLike]) -> DimLike:
    """``d`` with symbols replaced; names without an entry stay."""
    if isinstance(d, int) or env.keys().isdisjoint(symbols(d)):
        return d
    return _rebuild(d, lambda name: env[name] if name in env else sym(name))


def evaluate(d: DimLike, env: Mapping[str, int]) -> int:
    """The value of ``d`` under ``env``; KeyError names a symbol without a value.  NumPy integer arrays also work."""
    if isinstance(d, int):
        return d
    total = 0
    for mono, c in d.terms:
        term = c
        for atom, p in mono:
            if isinstance(atom, str):
                v = env[atom]
            else:
                v = _EVAL[atom.fn](*[evaluate(a, env) for a in atom.args])
            for _ in range(p):
                term = term * v
        total = total + term
    return total


def _pairwise(pick_int, pick_array):
    def fold(*args):
        out = args[0]
        for a in args[1:]:
            out = pick_int(out, a) if isinstance(out, int) and isinstance(a, int) else pick_array(out, a)
        return out
    return fold


def _np_min(a, b):
    import numpy as np
    return np.minimum(a, b)


def _np_max(a, b):
    import numpy as np
    return np.maximum(a, b)


_EVAL = {"floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b,
         "min": _pairwise(min, _np_min), "max": _pairwise(max, _np_max)}


@_remembered
def linear(d: DimLike, name: str) -> tuple[DimLike, DimLike] | None:
    """(c, rest) with ``d == c*name + rest`` and ``name`` in neither; None if ``d`` is not linear in ``name``."""
    if isinstance(d, int):
        return 0, d
    coef: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for mono, c in d.terms:
        power = 0
        for atom, p in mono:
            if atom == name:
                power = p
            elif isinstance(atom, Call) and any(name in symbols(a) for a in atom.args):
                return None
        if power > 1:
            return None
        if power:
            coef[tuple(t for t in mono if t[0] != name)] = c
        else:
            rest[mono] = c
    return _make(coef), _make(rest)


# ---- what can be proved ---------------------------------------------------------------------------------------------

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
    limit = STEPS if _STEPS.shared is None else max(0, min(STEPS, _STEPS.shared))
    _STEPS.left = limit
    _STEPS.found.clear()
    low = _lower(d, ranges, 8)
    if _STEPS.shared is not None:
        _STEPS.shared -= limit - _STEPS.left
    return low


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
            factor = _make({tuple(t for t in mono if t[0] is not call): 1})
            if not _sign_known(factor, ranges, depth, positive=True):
                continue
            rest = d - _atom_dim(call) * factor * c
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
                yield _atom_dim(other), b // inner


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
    parts = [(_lower(a, ranges, depth - 1), _negate(_lower(-a, ranges, depth - 1))) for a in atom.args]
    if atom.fn in ("min", "max"):
        los, his = [p[0] for p in parts if p[0] is not None], [p[1] for p in parts if p[1] is not None]
        if atom.fn == "min":
            return (min(los) if len(los) == len(parts) else None), min(his, default=None)
        return max(los, default=None), (max(his) if len(his) == len(parts) else None)
    (alo, ahi), (blo, bhi) = parts
    if atom.fn == "mod":  # a symbolic divisor is taken to be positive
        top = bhi - 1 if bhi is not None else None
        if alo is not None and alo >= 0 and ahi is not None:
            top = ahi if top is None else min(top, ahi)
        return 0, top
    if blo is None or blo < 1:
        blo = 1
    least = None if alo is None else alo // blo if alo < 0 else (alo // bhi if bhi is not None else 0)
    most = None if ahi is None else ahi // blo if ahi >= 0 else (ahi // bhi if bhi is not None else -1)
    return least, most


def proved_le(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> bool:
    """Is ``a <= b`` proved for all values in range?  Half the work of asking whether it may also be refuted."""
    low = _prove(b - a, ranges or {})
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
    """``d`` with calls resolved that the ranges decide: ``(4*i + j) // 4`` is ``i`` for ``0 <= j < 4``."""
    if isinstance(d, int):
        return d
    total: DimLike = 0
    for mono, c in d.terms:
        term: DimLike = c
        for atom, p in mono:
            v: DimLike = _atom_dim(atom) if isinstance(atom, str) else _simplify_call(atom, ranges)
            for _ in range(p):
                term = term * v
        total = total + term
    return total


def _simplify_call(call: Call, ranges: Ranges) -> DimLike:
    args = [simplify(a, ranges) for a in call.args]
    if call.fn in ("floordiv", "mod"):
        a, b = args
        q, r = _split(a, b)
        if proved_le(0, r, ranges) and proved_le(r + 1, b, ranges):
            return q if call.fn == "floordiv" else r
        return apply(call.fn, args)
    kept: list[DimLike] = []
    for x in args:
        better = proved_le if call.fn == "max" else lambda p, q, r: proved_le(q, p, r)
        if any(better(x, y, ranges) for y in kept):
            continue
        kept = [y for y in kept if not better(y, x, ranges)] + [x]
    return _extreme(call.fn, kept)
