"""Maps in tiles, their loops cut where conditions on places change: every piece reads what it needs, without masks.

Here: tiling and vectorising nests of parallel loops; the conditions under which a loop reads, which of them the place
alone decides, and the pieces between them.  Not here: where such conditions come from (ops/movement.py: joining,
padding), maps across the grain (turn.py).  Read next: schedule.py.

Joined and padded operands are read under conditions such as ``i < n``.  A vector that reads under a mask costs more
than one that does not, and very much more where the memory behind the mask is not there.  A condition that does not
depend on the loop is asked once, before it; one that changes at a single place cuts the loop in two.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence

from flowc.dataclass import dataclass, replace
from flowc.dims import Call, DimLike, Range, ceildiv, dim_of, dmax, dmin, linear, substitute, sym, symbols
from flowc.kernel import Expr, If, Kernel, Let, Loop, Stmt, Store, expressions
from flowc.passes.rewriting import map_dims, sizes_in
from flowc.passes.schedule import MapSchedule, collapse
from flowc.proofs import simplify
from flowc.types import bool_, i64

PIECES = 12        # that a loop is cut into, at most
STRANDS = 8        # of a loop that is cut into them
LEAST = 4          # lanes that are worth it
LONG = 256         # places of a loop that is worth cutting
# comparison -> its meaning as ``gap < 0`` for gap = a - b + shift, and whether that is the opposite
_ORDERS = {"lt": (0, False), "ge": (0, True), "le": (-1, False), "gt": (-1, True)}
Truths = Mapping[DimLike, bool]    # gap -> is it negative


def tile_map(kernel: Kernel, sched: MapSchedule) -> Kernel:
    """Cut the innermost loop of a nest of parallel loops into tiles and vectorise inside a tile."""
    out: list[Stmt] = []
    for s in collapse(kernel.body):
        out += _tile(s, (), sched, dict(kernel.ranges), set(kernel.dims)) if isinstance(s, Loop) else [s]
    return replace(kernel, body=tuple(out), notes=(*kernel.notes, str(sched)))


def _tile(loop: Loop, bound: tuple[Let, ...], sched: MapSchedule, ranges: dict, dims: set[str]) -> list[Stmt]:
    """``bound``: what the loops around this one bind before it.  It moves to where the lanes begin, so that the loops
    are one space to share."""
    ranges[loop.var] = (0, loop.extent - 1)
    *lets, last = loop.body
    if isinstance(last, Loop) and last.kind == "parallel" and all(isinstance(s, Let) for s in lets) and not (
            symbols(last.extent) & {s.name for s in lets if isinstance(s, Let)}):
        return [replace(loop, body=tuple(_tile(last, (*bound, *lets), sched, ranges, dims)))]  # type: ignore[arg-type]
    if any(isinstance(s, Loop) for s in loop.body):
        return [*bound, loop]  # an op with loops of its own
    n, tile, width = loop.extent, sched.tile, sched.width
    known = conditions(bound, {})
    if isinstance(n, int) and n <= tile:
        strands = woven(replace(loop, kind="vector", width=min(width, pow2(n))), ranges, dims)
        if strands is not None:
            return [*bound, strands]
        return [*bound, *cut(replace(loop, kind="vector", width=min(width, pow2(n))), known, ranges, dims)]
    var, outer = loop.var, loop.var + "b"
    while outer in dims:
        outer += "b"
    block = sym(outer)
    inner = dmin(tile, n - tile * block)
    del ranges[var]
    ranges[outer] = (0, ceildiv(n, tile) - 1)
    ranges[var] = (0, inner - 1)
    body = map_dims(loop.body, lambda d: simplify(substitute(d, {var: tile * block + sym(var)}), ranges))
    pieces = cut(Loop(var, inner, "vector", body, width), known, ranges, dims)
    return [Loop(outer, ceildiv(n, tile), "parallel", (*bound, *pieces))]


def pow2(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


# ---- strands --------------------------------------------------------------------------------------------------------

def woven(loop: Loop, ranges: Mapping[str, Range], dims: set[str]) -> Loop | None:
    """A loop whose variable is read as ``i // c`` and ``i % c``, turned into one over the quotients with one over the
    remainders inside: lanes that were gathered from c places are vectors of neighbours, stored side by side."""
    n, var = loop.extent, loop.var
    assert isinstance(n, int)
    seen: set[DimLike] = set()

    def look(d: DimLike) -> DimLike:
        seen.update(_divisors(d, var))
        return d
    map_dims(loop.body, look)
    if len(seen) != 1 or not _plain(loop.body):
        return None
    (c,) = seen
    if not isinstance(c, int) or not 2 <= c <= STRANDS or n % c:
        return None
    even = n // c & -(n // c)  # lanes that leave no rest: a rest is scattered
    if even < LEAST and n // c < LONG:
        return None
    at, strand = var + "q", var + "r"
    while {at, strand} & dims:
        at, strand = at + "q", strand + "r"
    inside = {**ranges, at: (0, n // c - 1), strand: (0, c - 1)}
    body = map_dims(loop.body, lambda d: simplify(substitute(d, {var: c * sym(at) + sym(strand)}), inside))
    return replace(loop, var=at, extent=n // c, width=min(loop.width, even) if even >= LEAST else loop.width,
                   body=(Loop(strand, c, "unroll", body),))


def _divisors(d: DimLike, var: str) -> Iterator[DimLike]:
    """What a variable is divided by in a size; itself where that is something else."""
    if isinstance(d, int):
        return
    for mono, _ in d.terms:
        for atom, _ in mono:
            if isinstance(atom, Call) and var in symbols(dim_of(atom)):
                whole = atom.fn in ("floordiv", "mod") and atom.args[0] == sym(var)
                yield atom.args[1] if whole else sym(var)


# ---- pieces ---------------------------------------------------------------------------------------------------------

def cut(loop: Loop, outer: Mapping[str, Expr], ranges: dict, dims: set[str]) -> list[Stmt]:
    """The statements that take the place of a vector loop.  ``outer``: conditions bound around it."""
    if isinstance(loop.extent, int) and loop.extent < LONG or not _plain(loop.body):
        return [loop]
    body = _inlined(loop.body, outer)
    pieces = _Pieces(loop, ranges, frozenset(s.name for s in body if isinstance(s, Let)), dims)
    if not 0 < len(set(pieces.gaps(body))) < PIECES:
        return [loop]
    try:
        return pieces.between(0, loop.extent, body)
    except _TooMany:
        return [loop]


class _TooMany(Exception):
    pass


@dataclass
class _Pieces:
    loop: Loop
    ranges: dict
    inside: frozenset[str]  # what the body binds
    taken: set[str]         # names of sizes
    count: int = 0
    cuts: int = 0

    def gaps(self, body: tuple[Stmt, ...]) -> Iterator[DimLike]:
        """Those that can be decided: once for the loop, or before a place and behind it."""
        return (g for g in _gaps(body) if not symbols(g) & self.inside
                and (self.place(g) is not None or self.loop.var not in symbols(g)))

    def between(self, lo: DimLike, hi: DimLike, body: tuple[Stmt, ...]) -> list[Stmt]:
        """The loop over the places lo .. hi - 1."""
        gap = next(self.gaps(body), None)
        if gap is None:
            self.count += 1
            if self.count > PIECES:
                raise _TooMany
            var = self.loop.var
            moved = body if lo == 0 else map_dims(body, lambda d: substitute(d, {var: lo + sym(var)}))
            return [replace(self.loop, extent=simplify(hi - lo, self.ranges), body=moved)]
        yes, no = _known(body, {gap: True}), _known(body, {gap: False})
        at = self.place(gap)
        if at is None:
            cond = Expr("lt", (Expr("index", (), i64, gap), Expr("const", (), i64, 0)), bool_)
            return [If(cond, tuple(self.between(lo, hi, yes)), tuple(self.between(lo, hi, no)))]
        where, rising = at
        first, second = (yes, no) if rising else (no, yes)
        middle, bound = self.named(simplify(dmax(lo, dmin(hi, where)), self.ranges), lo, hi)
        return [*bound, *self.between(lo, middle, first), *self.between(middle, hi, second)]

    def named(self, place: DimLike, lo: DimLike, hi: DimLike) -> tuple[DimLike, list[Stmt]]:
        """A place between ``lo`` and ``hi`` as a number or a name."""
        if isinstance(place, int):
            return place, []
        name = f"{self.loop.var}c{self.cuts}"
        while name in self.taken:
            name += "c"
        self.cuts += 1
        self.ranges[name] = (lo, hi)
        return sym(name), [Let(name, Expr("index", (), i64, place), (lo, hi))]

    def place(self, gap: DimLike) -> tuple[DimLike, bool] | None:
        """The first place behind the change of ``gap < 0``, and whether it holds before it."""
        split = linear(gap, self.loop.var)
        if split is None or not isinstance(split[0], int) or split[0] == 0:
            return None
        step, rest = split
        assert isinstance(step, int)
        if step > 0:
            return ceildiv(-rest, step), True
        return rest // -step + 1, False


def conditions(stmts: Sequence[Stmt], known: Mapping[str, Expr]) -> dict[str, Expr]:
    """``known`` and the conditions on places that ``stmts`` bind."""
    out = dict(known)
    for s in stmts:
        if isinstance(s, Let) and s.value.dtype is bool_:
            value = _swap(s.value, out)
            if _only_places(value):
                out[s.name] = value
    return out


def _only_places(e: Expr) -> bool:
    """Is it made of comparisons of places?"""
    if e.op in ("and", "or", "not"):
        return all(map(_only_places, e.args))
    return gap_of(e) is not None


def gap_of(e: Expr) -> tuple[DimLike, bool] | None:
    """(gap, opposite): the condition holds where ``gap < 0``, or where it does not."""
    if e.op not in _ORDERS or any(a.op not in ("index", "const") for a in e.args):
        return None
    a, b = (x.attr for x in e.args)
    if isinstance(a, float) or isinstance(b, float):
        return None
    shift, opposite = _ORDERS[e.op]
    gap = a - b + shift
    return None if isinstance(gap, int) else (gap, opposite)


def _plain(body: Sequence[Stmt]) -> bool:
    return all(isinstance(s, (Let, Store)) and not (isinstance(s, Store) and s.where is not None) for s in body)


def _gaps(body: Sequence[Stmt]) -> Iterator[DimLike]:
    """What the conditions compare under which the body reads; nearest to its results first."""
    seen: set[int] = set()
    stack = [e for s in body for e in expressions(s)]
    while stack:
        e = stack.pop(0)
        if id(e) in seen:
            continue
        seen.add(id(e))
        if e.op == "load" and e.args:
            yield from _compared(e.args[0])
        stack.extend(e.args)


def _compared(cond: Expr) -> Iterator[DimLike]:
    if cond.op in ("and", "or", "not"):
        for a in cond.args:
            yield from _compared(a)
    found = gap_of(cond)
    if found is not None:
        yield found[0]


# ---- rewriting ------------------------------------------------------------------------------------------------------

def _mapped(body: Sequence[Stmt], fn) -> tuple[Stmt, ...]:
    return tuple(replace(s, value=fn(s.value)) for s in body)  # type: ignore[call-arg,union-attr]


def _inlined(body: Sequence[Stmt], outer: Mapping[str, Expr]) -> tuple[Stmt, ...]:
    """The body with the conditions on places written out where they are used."""
    env = conditions(body, outer)
    kept = [s for s in body if not (isinstance(s, Let) and s.name in env)]
    return _mapped(kept, lambda e: _swap(e, env)) if env else tuple(kept)


def _rebuilt(root: Expr, leaf, memo: dict[int, Expr]) -> Expr:
    got = memo.get(id(root))
    if got is None:
        args = tuple(_rebuilt(a, leaf, memo) for a in root.args)
        same = all(a is b for a, b in zip(args, root.args, strict=True))
        got = memo[id(root)] = leaf(root if same else Expr(root.op, args, root.dtype, root.attr))
    return got


def inlined(body: Sequence[Stmt]) -> tuple[Stmt, ...] | None:
    """The stores of a body with everything written out that it binds; None if there is more, or sizes are bound."""
    if not _plain(body):
        return None
    env: dict[str, Expr] = {}
    for s in body:
        if isinstance(s, Let):
            env[s.name] = _swap(s.value, env)
    stores = _mapped([s for s in body if isinstance(s, Store)], lambda e: _swap(e, env))
    return None if any(symbols(d) & set(env) for d in sizes_in(stores)) else stores


def decided(stores: Sequence[Stmt]) -> tuple[Stmt, ...]:
    """Stores in which comparisons of numbers have been made."""
    memo: dict[int, Expr] = {}

    def leaf(e: Expr) -> Expr:
        if e.op in _COMPARE and all(a.op == "const" and isinstance(a.attr, int) for a in e.args):
            return _bool(_COMPARE[e.op](*(a.attr for a in e.args)))
        return _FOLDS[e.op](e) if e.op in _FOLDS else e
    return _mapped(stores, lambda e: _rebuilt(e, leaf, memo))


def _swap(e: Expr, env: Mapping[str, Expr]) -> Expr:
    return _rebuilt(e, lambda x: env.get(x.attr[0], x) if x.op == "ref" and not x.attr[1] else x, {})


def _known(body: Sequence[Stmt], truths: Truths) -> tuple[Stmt, ...]:
    """The body where some conditions are decided."""
    memo: dict[int, Expr] = {}

    def leaf(e: Expr) -> Expr:
        found = gap_of(e)
        if found is not None and found[0] in truths:
            return _bool(truths[found[0]] != found[1])
        return _FOLDS[e.op](e) if e.op in _FOLDS else e
    return _mapped(body, lambda e: _rebuilt(e, leaf, memo))


_COMPARE = {name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")}


def _bool(value: bool) -> Expr:
    return Expr("const", (), bool_, value)


def _fold_logic(e: Expr) -> Expr:
    absorbing = e.op == "or"
    if e.dtype is not bool_:
        return e
    left = [a for a in e.args if a.op != "const" or bool(a.attr) == absorbing]
    if any(a.op == "const" for a in left):
        return _bool(absorbing)
    return e if len(left) == 2 else left[0] if left else _bool(not absorbing)


def _fold_not(e: Expr) -> Expr:
    return _bool(not e.args[0].attr) if e.dtype is bool_ and e.args[0].op == "const" else e


def _fold_select(e: Expr) -> Expr:
    return e.args[1 if e.args[0].attr else 2] if e.args[0].op == "const" else e


def _fold_load(e: Expr) -> Expr:
    if not e.args or e.args[0].op != "const":
        return e
    return Expr("load", (), e.dtype, e.attr) if e.args[0].attr else e.args[1]


_FOLDS = {"and": _fold_logic, "or": _fold_logic, "not": _fold_not, "select": _fold_select, "load": _fold_load}
