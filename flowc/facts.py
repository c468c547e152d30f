"""What is known about sizes at one place of a kernel: ranges of symbols, conditions that hold, and what follows.

Here: ``Facts`` (proofs of inequalities under conditions), counterexamples by trying values, and the proof that two
iterations of a loop never touch the same place.  Not here: ranges alone (dims.py), which statements exist
(verify_kernel.py).  Read next: verify_kernel.py.

Proofs are sound and not complete: what is not proved may still be true.  A counterexample is an assignment of values
that breaks the claim for every choice of sizes that was tried, and so is no matter of unusual sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flowc.dataclass import dataclass, field
from flowc.dims import (
    Call,
    Dim,
    DimLike,
    Range,
    ceildiv,
    dim_of,
    dmax,
    dmin,
    evaluate,
    floordiv,
    linear,
    map_atoms,
    substitute,
    sym,
    symbols,
)
from flowc.kernel import Expr
from flowc.proofs import proved_le, question

STEPS = 300   # expressions looked at for one answer, with all its conditions: most proofs that exist are short
TRIED = 6      # conditions that a proof may use one at a time, latest first
POINTS = 192   # iterations tried per choice of sizes
SIZES = ((1, 2, 3, 5), (2, 1, 1, 4), (7, 5, 64, 3), (64, 65, 16, 100), (3, 100, 8, 1), (5000, 37, 130, 9000))
I64: Range = (-(1 << 63), (1 << 63) - 1)

_FLIPPED = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


@dataclass
class Facts:
    """ranges: of every symbol in sight, in the order of definition.  known: sizes that are >= 0 by conditions.
    alias: bindings that are a size of other names.  opaque: some condition depends on data, so the place may never be
    reached.  steps: expressions looked at for one answer."""

    ranges: dict[str, Range] = field(default_factory=dict)
    known: list[DimLike] = field(default_factory=list)
    opaque: bool = False
    alias: dict[str, DimLike] = field(default_factory=dict)
    asked: dict[DimLike, bool] = field(default_factory=dict, compare=False)  # answers, as long as nothing is added
    steps: int = STEPS

    def copy(self) -> Facts:
        return Facts(dict(self.ranges), list(self.known), self.opaque, dict(self.alias), steps=self.steps)

    def resolve(self, d: DimLike) -> DimLike:
        """``d`` with bindings replaced by what they are."""
        return substitute(d, self.alias) if self.alias else d

    def define(self, name: str, range_: Range) -> None:
        self.asked.clear()
        self.ranges.pop(name, None)  # defined last, also if the name was used before
        self.ranges[name] = range_

    # -- conditions

    def assume(self, cond: Expr, holds: bool = True) -> None:
        """Take in what a bool expression says about sizes."""
        stack = [(cond, holds)]
        while stack:
            e, yes = stack.pop()
            if e.op == "not":
                stack.append((e.args[0], not yes))
            elif e.op == ("and" if yes else "or"):
                stack += [(a, yes) for a in e.args]
            elif e.op in _FLIPPED and all(_size(a) is not None for a in e.args):
                a, b = (_size(x) for x in e.args)
                assert a is not None and b is not None
                self._compare(e.op if yes else _FLIPPED[e.op], self.resolve(a), self.resolve(b))
            elif not (e.op == "const" and bool(e.attr) == yes):
                self.opaque = True

    def _compare(self, op: str, a: Any, b: Any) -> None:
        if op in ("lt", "le", "eq"):
            self.add(b - a - (op == "lt"))
        if op in ("gt", "ge", "eq"):
            self.add(a - b - (op == "gt"))
        self.opaque |= op == "ne"  # says too little to hold on to

    def add(self, fact: DimLike) -> None:
        """``fact >= 0`` holds.  Also narrows the range of the symbol in it that is defined last."""
        self.asked.clear()
        if isinstance(fact, int):
            self.known += [fact] if fact < 0 else []  # nothing gets here
            return
        for mono, k in fact.terms:
            call = mono[0][0] if len(mono) == 1 and mono[0][1] == 1 else None
            if isinstance(call, Call) and call.fn == ("min" if k > 0 else "max"):  # it holds for every argument
                for a in call.args:
                    self.add(fact + (a - dim_of(call)) * k)
                return
        self._factors(fact)
        self.known.append(fact)
        inside = symbols(fact)
        last = next((n for n in reversed(self.ranges) if n in inside), None)
        split = linear(fact, last) if last is not None else None
        if last is None or split is None or inside - self.ranges.keys():
            return
        c, rest = split
        if not isinstance(c, int):
            return
        lo, hi = self.ranges[last]
        if c > 0:
            self.ranges[last] = (dmax(lo, ceildiv(-rest, c)), hi)
        else:
            top = floordiv(rest, -c)
            self.ranges[last] = (lo, top if hi is None else dmin(hi, top))

    def _factors(self, fact: Dim) -> None:
        """From ``c*x*y >= k > 0`` with sizes x, y that are not negative: both are positive.  From ``c*(a // b) >= k``:
        ``a >= b * ceil(k / c)``."""
        (mono, c), *rest = fact.terms
        if c <= 0 or not mono or len(rest) > 1 or rest and (rest[0][0] or rest[0][1] >= 0) or not rest:
            return
        k = -rest[0][1]
        if len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], Call):
            a, b = mono[0][0].args[:2]
            if mono[0][0].fn == "floordiv" and isinstance(b, int):
                self.add(a - b * -(-k // c))
        elif len(mono) > 1 or mono[0][1] > 1:
            atoms = [dim_of(x) for x, _ in mono]
            if all(proved_le(0, x, self.ranges) for x in atoms):
                for x in atoms:
                    self.add(x - 1)

    # -- proofs

    def le(self, a: DimLike, b: DimLike) -> bool:
        """Is ``a <= b`` proved?"""
        return self.nonnegative(b - a)

    def nonnegative(self, d: DimLike) -> bool:
        known = self.asked.get(d)
        if known is None:
            with question(self.steps):
                known = self.asked[d] = self._nonnegative(d)
        return known

    def _nonnegative(self, d: DimLike) -> bool:
        if self._by_ranges(d):
            return True
        parts = {} if isinstance(d, int) else {f"{x}": x for x in _divisions(d)}
        ranges = {name: self.division_range(x) for name, x in parts.items()}
        for name, r in ranges.items():
            if r is not None:
                d = _replace(d, parts[name], sym(name))
        if not any(ranges.values()):
            return False
        wider = Facts({**self.ranges, **{n: r for n, r in ranges.items() if r is not None}}, self.known)
        return wider._by_ranges(d)

    def division_range(self, x: Call) -> Range | None:
        """Bounds of a quotient or remainder that may be symbolic, where the divisor is known to be positive."""
        a, m = x.args
        if not self.positive(m):
            return None
        bounded = [n for n, (_, hi) in self.ranges.items() if hi is not None]
        if symbols(a).isdisjoint(bounded):
            return None  # a size like any other
        if x.fn == "mod":
            return 0, m - 1
        top = self.greatest(a, bounded)
        return None if top is None or not self._by_ranges(a) else (0, floordiv(top, m))

    def _by_ranges(self, d: DimLike) -> bool:
        if proved_le(0, d, self.ranges):
            return True
        if isinstance(d, int):
            return False
        for f in self.known[:-TRIED - 1:-1]:
            if any(proved_le(0, k, self.ranges) and proved_le(0, d - f * k, self.ranges) for k in _multiples(d, f)):
                return True
        return False

    def positive(self, d: DimLike) -> bool:
        return self.nonnegative(d - 1)

    def greatest(self, d: DimLike, inner: Iterable[str]) -> DimLike | None:
        """An upper bound of ``d`` without the symbols ``inner`` (defined last, in order), or None."""
        for name in reversed(list(inner)):
            if name not in symbols(d):
                continue
            split = linear(d, name)
            if split is None:
                return None
            lo, hi = self.ranges[name]
            if self.nonnegative(split[0]):
                if hi is None:
                    return None
                d = split[0] * hi + split[1]
            elif self.nonnegative(-split[0]):
                d = split[0] * lo + split[1]
            else:
                return None
        return d

    # -- counterexamples

    def refuted(self, claims: Sequence[DimLike], inside: frozenset[str] = frozenset(),
                always: bool = True) -> dict[str, int] | None:
        """Values under which some claim ``>= 0`` is false, if that happens for every choice of sizes tried that reaches
        this place at all (without ``always``: for any choice); None otherwise.  ``inside``: symbols of loops and
        bindings, the others are sizes."""
        free = frozenset().union(*(symbols(d) for d in claims))
        if self.opaque or any(self.ranges.get(n) == I64 for n in free):
            return None
        example: dict[str, int] | None = None
        for row, choice in enumerate(SIZES):
            with np.errstate(all="ignore"):
                try:
                    env, reached = self._points(row, choice, inside)
                    broken = reached & np.any([np.broadcast_to(evaluate(d, env), (POINTS,)) < 0 for d in claims], 0)
                except (KeyError, ZeroDivisionError, OverflowError):
                    return None
            if not reached.any():
                continue
            if broken.any():
                at = int(np.argmax(broken))
                example = {n: int(v[at]) for n, v in env.items()}
            elif always:
                return None
            if example is not None and not always:
                break
        return example

    def _points(self, row: int, choice: Sequence[int],
                inside: frozenset[str]) -> tuple[dict[str, Any], np.ndarray]:
        """POINTS assignments for one choice of sizes, and which of them get to this place."""
        env: dict[str, Any] = {}
        reached = np.ones(POINTS, bool)
        rng = np.random.default_rng(row)
        for i, (name, (lo, hi)) in enumerate(self.ranges.items()):
            if name in self.alias:  # another name for a size: no choice
                env[name] = np.broadcast_to(np.asarray(evaluate(self.alias[name], env)), (POINTS,))
                continue
            low = np.broadcast_to(np.asarray(evaluate(lo, env)), (POINTS,))
            if name not in inside:
                value = np.maximum(low, choice[i % len(choice)])
                env[name] = value if hi is None else np.minimum(value, evaluate(hi, env))
                reached &= env[name] >= low
                continue
            low = np.maximum(low, -(1 << 31))
            high = low + 3 if hi is None else np.minimum(np.broadcast_to(evaluate(hi, env), (POINTS,)), 1 << 31)
            reached &= low <= high
            span = np.maximum(high - low, 0)
            pick = rng.integers(0, 4, POINTS)  # an end of the range, or something between
            between = (rng.random(POINTS) * (span + 1)).astype(np.int64)
            env[name] = low + np.where(pick == 0, 0, np.where(pick == 1, span, np.minimum(between, span)))
        for f in self.known:
            reached &= np.asarray(evaluate(f, env)) >= 0
        return env, reached


def _size(e: Expr) -> DimLike | None:
    return e.attr if e.op in ("index", "const") and e.dtype.kind in "iu" and not isinstance(e.attr, bool) else None


def _multiples(d: Dim, f: DimLike) -> list[DimLike]:
    """Factors k for which ``d - k*f`` loses a term: quotients of coefficients, and of whole terms."""
    out: dict[DimLike, None] = {1: None}
    if isinstance(f, Dim):
        have = dict(d.terms)
        for mono, c in f.terms:
            k = have.get(mono, 0)
            if mono and k and k % c == 0 and k // c > 0:
                out[k // c] = None
        for name in symbols(f):
            a, b = linear(f, name), linear(d, name)
            if a and b and isinstance(a[0], int) and abs(a[0]) == 1 and isinstance(b[0], Dim):
                out[b[0] * a[0]] = None  # a symbolic stride
    return list(out)


# ---- two iterations, one place --------------------------------------------------------------------------------------

@dataclass
class Access:
    """One read or write: the index (one size per axis), and the facts where it stands.  ``names``: loop variables and
    bindings that are defined inside the loop in question, the loop's own variable first."""

    index: tuple[DimLike, ...]
    facts: Facts
    names: tuple[str, ...]


def separate(a: Access, b: Access, shared: Sequence[str]) -> bool:
    """Is it proved that iterations with different values of the loop variable ``shared[0]`` never give ``a`` and ``b``
    the same index?  ``shared``: names that both have from the same statement, that variable first.

    Both are taken at independent values of everything inside the loop.  From ``c*v + r == c*v' + r'`` with
    ``|r - r'| < c`` follows ``v == v'`` and ``r == r'``: what holds for the digits of a number, largest first.
    """
    v = shared[0]
    for x, y in zip(a.index, b.index, strict=True):  # most indices are the variable itself and what stands outside
        one, two = linear(x, v), linear(y, v)
        if one is not None and one == two and isinstance(one[0], int) and one[0]:
            if not symbols(one[1]) & {*a.names, *b.names}:
                return True
    prime = {n: sym(n + "'") for n in b.names}
    both = Facts(dict(a.facts.ranges), list(a.facts.known))
    for n in b.names:
        lo, hi = b.facts.ranges[n]
        both.define(n + "'", (substitute(lo, prime), None if hi is None else substitute(hi, prime)))
    both.known += [substitute(f, prime) for f in b.facts.known]
    pairs = [(x, substitute(y, prime)) for x, y in zip(a.index, b.index, strict=True)]
    with question(2 * a.facts.steps):
        return _Digits(both, pairs, list(shared), a.names, b.names).run()


class _Digits:
    def __init__(self, facts: Facts, pairs: list[tuple[DimLike, DimLike]], shared: list[str], ours: Sequence[str],
                 theirs: Sequence[str]):
        self.facts, self.pairs, self.shared, self.inner = facts, pairs, shared, frozenset(ours)
        self.wanted = shared[0]
        # names of two statements that play the same part: their digits are compared too
        self.others = [(v, w) for v in ours for w in theirs if v != w or v not in shared]
        self.parts: dict[str, tuple[Call, Call]] = {}  # digit -> the quotient or remainder it stands for, its copy
        self.agree: list[Call] = []  # those that are the same in both iterations
        self.same: dict[str, DimLike] = {}  # copies of names that are proved equal to their originals

    def run(self) -> bool:
        self._split_divisions()
        for v in list(self.shared):  # a condition may leave it one value
            (lo, hi), (lo2, hi2) = self.facts.ranges[v], self.facts.ranges[v + "'"]
            if lo == lo2 and hi is not None and hi == hi2 and proved_le(hi, lo, self.facts.ranges):
                self._equal(v)
        while self.wanted in self.shared:
            if not any(self._peel(i, v, w, hard) for hard in (False, True) for i in range(len(self.pairs))
                       for v, w in [*((v, v) for v in self.shared), *self.others]):
                return False
        return True

    def _peel(self, i: int, v: str, w: str, hard: bool) -> bool:
        """Show ``v == w'`` from pair ``i`` and take them out; ``hard``: with conditions too."""
        x, y = self.pairs[i]
        a, b = linear(x, v), linear(y, w + "'")
        if a is None or b is None or a[0] != b[0] or isinstance(a[0], int) and a[0] == 0:
            return False
        c, gap, facts = a[0], a[1] - b[1], self.facts
        if symbols(c) & self.inner:
            return False
        if not facts.positive(c):
            c, gap = -c, -gap
            if not facts.positive(c):
                return False
        if hard:
            if not (facts.le(gap, c - 1) and facts.le(-gap, c - 1)):
                return False
        elif not (proved_le(gap, c - 1, facts.ranges) and proved_le(-gap, c - 1, facts.ranges)):
            return False
        self.pairs[i] = a[1], b[1]
        if v == w and v in self.shared:
            self._equal(v)
        return True

    def _equal(self, v: str) -> None:
        self.shared.remove(v)
        self.inner -= {v}
        same = self.same
        same[v + "'"] = sym(v)
        self.pairs = [(x, substitute(y, same)) for x, y in self.pairs]
        facts = self.facts
        facts.asked.clear()
        facts.known = [substitute(f, same) for f in facts.known]
        facts.ranges = {n: (substitute(lo, same), None if hi is None else substitute(hi, same))
                        for n, (lo, hi) in facts.ranges.items() if n != v + "'"}
        part = self.parts.pop(v, None)
        if part is None:
            return
        atom, other = part
        self.agree.append(atom)
        twin = Call("mod" if atom.fn == "floordiv" else "floordiv", atom.args)
        if twin in self.agree:  # quotient and remainder agree: so does the whole
            self.pairs.append((atom.args[0], substitute(other.args[0], same)))

    def _split_divisions(self) -> None:
        """Quotients and remainders of one dividend become digits of their own."""
        for i, (x, y) in enumerate(self.pairs):
            for atom in _divisions(x):
                if not symbols(atom.args[0]) & self.inner or symbols(atom.args[1]) & self.inner:
                    continue
                prime = {n: sym(n + "'") for n in self.inner}
                other = Call(atom.fn, tuple(substitute(t, prime) for t in atom.args))
                name = f"{atom}"
                if name not in self.parts and not self._digit(name, atom, other):
                    continue
                x, y = _replace(x, atom, sym(name)), _replace(y, other, sym(name + "'"))
            self.pairs[i] = x, y

    def _digit(self, name: str, atom: Call, other: Call) -> bool:
        ranges = self.facts.division_range(atom), self.facts.division_range(other)
        copies = {n + "'" for n in self.inner}
        for r in ranges:
            if r is None or any(symbols(x) & (self.inner | copies) for x in r if x is not None):
                return False
        for n, r in zip((name, name + "'"), ranges):
            assert r is not None
            self.facts.define(n, r)
        self.shared.append(name)
        self.inner |= {name}
        self.parts[name] = atom, other
        return True


def _divisions(d: DimLike) -> list[Call]:
    if isinstance(d, int):
        return []
    return [x for mono, _ in d.terms for x, _ in mono if isinstance(x, Call) and x.fn in ("floordiv", "mod")]


def _replace(d: DimLike, old: Call, new: DimLike) -> DimLike:
    """``d`` with an atom of its terms replaced."""
    return map_atoms(d, lambda atom: new if atom == old else dim_of(atom))
