"""Integer size expressions: shapes, loop bounds, addresses, buffer sizes and launch sizes.

Here: the normal form of integer polynomials over named symbols, arithmetic and evaluation.
Not here: what can be proved about them (proofs.py), types of tensors (types.py), text to expression (parse.py).
Read next: proofs.py.

A size is a plain ``int`` or a :class:`Dim`; constructors return ``int`` whenever the value is constant, so code
writes ``a * b + 1`` and never asks which it holds.  The normal form is a sum of integer multiples of products of
atoms; an atom is a symbol name or a call (floordiv, mod, min, max) of normal forms.  Two expressions with the same
normal form are equal objects by ``==`` and hash.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
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

    __slots__ = ("_affine", "_calls", "_hash", "_symbols", "_text", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]):
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None
        self._symbols: frozenset[str] | None = None
        self._calls: bool | None = None
        self._affine: tuple[int, tuple[tuple[str, int], ...]] | bool | None = None

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

    def has_calls(self) -> bool:
        """Does an atom that is no symbol stand in it?"""
        if self._calls is None:
            self._calls = any(isinstance(a, Call) for mono, _ in self.terms for a, _ in mono)
        return self._calls

    def affine(self) -> tuple[int, tuple[tuple[str, int], ...]] | None:
        """(constant, (symbol, factor)...) of a sum of symbols times numbers, as nearly all indices are; None for any
        other."""
        if self._affine is None:
            *terms, last = self.terms  # which is the constant, if there is one
            const = 0 if last[0] else last[1]
            terms += [last] if last[0] else []
            plain = all(len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], str) for mono, _ in terms)
            self._affine = plain and (const, tuple([(str(mono[0][0]), c) for mono, c in terms]))
        return self._affine or None  # type: ignore[return-value]

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
            return _times(self, o)
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


def polynomial(acc: dict[Monomial, int]) -> DimLike:
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


def dim_of(atom: Atom) -> Dim:
    return Dim(((((atom, 1),), 1),))


def _sum(a: DimLike, b: DimLike, sign: int) -> DimLike:
    if isinstance(b, Dim):
        return _sum_of(a, b, sign) if isinstance(a, (int, Dim)) else NotImplemented
    if not isinstance(b, int):
        return NotImplemented
    return _moved(a, sign * b) if isinstance(a, Dim) else a + sign * b


@_remembered
def _times(a: Dim, factor: int) -> Dim:
    return Dim(tuple([(m, c * factor) for m, c in a.terms]))


@_remembered
def _moved(a: Dim, by: int) -> DimLike:
    """``a + by``.  The constant is the last term."""
    if not by:
        return a
    *rest, (mono, c) = a.terms
    if mono:
        return Dim((*a.terms, ((), int(by))))
    return Dim((*rest, ((), c + by))) if c + by else Dim(tuple(rest))


@_remembered
def _sum_of(a: DimLike, b: DimLike, sign: int) -> DimLike:
    acc = dict(_terms(a))
    for m, c in _terms(b):
        acc[m] = acc.get(m, 0) + sign * c
    return polynomial(acc)


@_remembered
def _product(a: Dim, b: Dim) -> DimLike:
    acc: dict[Monomial, int] = {}
    for ma, ca in a.terms:
        for mb, cb in b.terms:
            m = _mono_mul(ma, mb)
            acc[m] = acc.get(m, 0) + ca * cb
    return polynomial(acc)


@_remembered
def quotient_and_rest(a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
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
    return polynomial(quot), polynomial(rest)


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
    q, r = quotient_and_rest(a, b)
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
    return q + dim_of(Call("floordiv", (r, b)))


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
    _, r = quotient_and_rest(a, b)
    if isinstance(r, int) and (r == 0 or isinstance(b, int)):
        return r if r == 0 else r % b
    if isinstance(r, Dim) and isinstance(b, int):
        inner = r.atom()
        if isinstance(inner, Call) and inner.fn == "mod" and isinstance(inner.args[1], int):
            if inner.args[1] <= b:
                return r
            if inner.args[1] % b == 0:
                return mod(inner.args[0], b)
    return dim_of(Call("mod", (r, b)))


def ceildiv(a: DimLike, b: DimLike) -> DimLike:
    """Ceiling of ``a / b`` for positive ``b``."""
    return floordiv(a + b - 1, b)


def extreme(fn: str, args: Iterable[DimLike]) -> DimLike:
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
    return dim_of(Call(fn, tuple(sorted(kept, key=lambda d: (isinstance(d, int), str(d))))))


def dmin(*args: DimLike) -> DimLike:
    return extreme("min", args)


def dmax(*args: DimLike) -> DimLike:
    return extreme("max", args)


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


def map_atoms(d: DimLike, fn: Callable[[Atom], DimLike]) -> DimLike:
    """``d`` with ``fn(atom)`` in place of the atoms of its terms."""
    if isinstance(d, int):
        return d
    total: DimLike = 0
    for mono, c in d.terms:
        term: DimLike = c
        for atom, p in mono:
            v = fn(atom)
            for _ in range(p):
                term = term * v
        total = total + term
    return total


def _rebuild(d: DimLike, leaf: Callable[[str], DimLike]) -> DimLike:
    def at(atom: Atom) -> DimLike:
        return leaf(atom) if isinstance(atom, str) else apply(atom.fn, [map_atoms(a, at) for a in atom.args])
    return map_atoms(d, at)


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
    return polynomial(coef), polynomial(rest)
