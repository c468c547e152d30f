"""Stores of neighbouring columns as small transposes instead of scatters.

Here: which loops are turned inside out for that, and the shuffles.  Not here: other stores (emit.py).

Packing writes ``t[c*k + i]`` for every k in lanes and i < c in turn: each i alone is a scatter, the slowest store there
is.  With i innermost, the vectors of four neighbouring i are four columns of a table whose rows are stored whole: two
rounds of merging inside 128-bit blocks, then one 128-bit store per lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Mem, Place, memory_type
from flowc.dims import linear, symbols
from flowc.kernel import Expr, Let, Loop, Stmt, Store, expressions, walk

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

BLOCK = 16     # bytes within which merging is one cheap instruction
COLUMNS = 32   # neighbouring columns of one table, at most


@dataclass
class Column:
    """A vector to be stored with distance ``stride`` between its lanes."""

    mem: Mem
    terms: tuple[str, ...]
    const: int
    stride: int
    text: str

    @property
    def table(self) -> tuple:
        return (self.mem.pointer, self.terms, self.stride)


def turned(s: Loop) -> Loop | None:
    """``for i { for k vector { t[c*k + i] = ... } }`` with k outside, if that is what ``s`` is and no order is lost."""
    if s.kind not in ("seq", "unroll") or not isinstance(s.extent, int) or not 2 <= s.extent <= COLUMNS:
        return None
    if len(s.body) != 1 or not isinstance(s.body[0], Loop) or s.body[0].kind != "vector":
        return None
    inner = s.body[0]
    if not straight(inner.body) or s.var in symbols(inner.extent):
        return None
    for x in inner.body:
        if isinstance(x, Store):
            by_lane, by_column = linear(x.index, inner.var), linear(x.index, s.var)
            if x.where is not None or by_lane is None or by_column is None or by_column[0] != 1:
                return None
            if not isinstance(by_lane[0], int) or not s.extent <= by_lane[0] <= COLUMNS:
                return None
    return replace(inner, body=(replace(s, kind="unroll", body=inner.body),))


def straight(stmts: Sequence[Stmt]) -> bool:
    """Only bindings and stores, and nothing read that is stored."""
    stored = {s.buffer for s in stmts if isinstance(s, Store)}
    if not stored or not all(isinstance(s, (Let, Store)) for s in stmts):
        return False
    return not any(e.op == "load" and e.attr[0] in stored for s in walk(stmts) for e in _all(expressions(s)))


def _all(roots: Sequence[Expr]) -> Iterator[Expr]:
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        x = stack.pop()
        if id(x) not in seen:
            seen.add(id(x))
            yield x
            stack.extend(x.args)


def store_columns(e: Emitter, columns: Sequence[Column]) -> None:
    """Store columns that were put aside, neighbours together."""
    tables: dict[tuple, dict[int, Column]] = {}
    for c in columns:
        tables.setdefault(c.table, {})[c.const] = c
    for table in tables.values():
        for run in _runs(sorted(table)):
            most = BLOCK // table[run[0]].mem.dtype.bytes
            while run:
                g = min(most, 1 << (len(run).bit_length() - 1))
                _store_group(e, [table[k] for k in run[:g]])
                run = run[g:]


def _runs(places: Sequence[int]) -> Iterator[list[int]]:
    run = [places[0]]
    for k in places[1:]:
        if k != run[-1] + 1:
            yield run
            run = []
        run.append(k)
    yield run


def _store_group(e: Emitter, columns: Sequence[Column]) -> None:
    first, g = columns[0], len(columns)
    ty, per = memory_type(first.mem.dtype), BLOCK // first.mem.dtype.bytes
    if g == 1 or e.lanes < per:
        for c in columns:
            e.scatter(c)
        return
    # each vector with what its elements are: (column, lane)
    vectors = [(c.text, [(k, lane) for lane in range(e.lanes)]) for k, c in enumerate(columns)]
    unit = 1
    while unit < g:
        vectors = [v for x, y in _partners(vectors, unit) for v in _merge(e, ty, x, y, unit, per)]
        unit *= 2
    for text, source in vectors:
        for at in range(0, e.lanes, g):
            row = e.part(text, ty, e.lanes, at, g)
            lane = source[at][1]
            pointer = e.address(first.mem, Place(list(first.terms), first.const + lane * first.stride, 0, None))
            e.raw(f"store <{g} x {ty}> {row}, {first.mem.type} {pointer}, align {first.mem.align}")


Vector = tuple[str, list[tuple[int, int]]]


def _partners(vectors: list[Vector], unit: int) -> Iterator[tuple[Vector, Vector]]:
    """Vectors of the same lanes whose columns are neighbours."""
    waiting: dict[tuple, Vector] = {}
    for v in vectors:
        column, lane = v[1][0]
        key = (column // (2 * unit), lane)
        if key in waiting:
            yield waiting.pop(key), v
        else:
            waiting[key] = v


def _merge(e: Emitter, ty: str, x: Vector, y: Vector, unit: int, per: int) -> list[Vector]:
    """Units of ``unit`` elements of x and y in turn, inside each block of ``per`` elements: the lower halves of all
    blocks, then the upper halves."""
    out = []
    for half in (0, per // 2):
        order: list[int] = []
        for block in range(0, e.lanes, per):
            for at in range(block + half, block + half + per // 2, unit):
                order += range(at, at + unit)
                order += range(e.lanes + at, e.lanes + at + unit)
        text = e.op(f"shufflevector {e.vec(ty)} {x[0]}, {e.vec(ty)} {y[0]}, "
                    f"<{e.lanes} x i32> <{', '.join(f'i32 {k}' for k in order)}>")
        both = x[1] + y[1]
        out.append((text, [both[k] for k in order]))
    return out
