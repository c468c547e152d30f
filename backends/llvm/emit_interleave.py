"""Small transposes instead of scatters and gathers.

Here: which loops are turned for that, and the shuffles.  Not here: other loads and stores (emit_expr.py, emit.py).

Packing writes ``t[c*k + i]`` for every k in lanes and i < c in turn: each i alone is a scatter, the slowest store there
is.  With i innermost, the vectors of four neighbouring i are four columns of a table whose rows are stored whole: two
rounds of merging inside 128-bit blocks, then one 128-bit store per lane.  The other way round, ``x[m*j + k]`` for lanes
j is a gather for each k; four neighbouring k are four columns of a table whose rows are loaded whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Mem, Place, memory_type
from flowc.dataclass import dataclass, replace
from flowc.dims import DimLike, linear, substitute, sym, symbols
from flowc.kernel import Expr, Let, Loop, Stmt, Store, expressions, parts
from flowc.passes.rewriting import map_dims

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter
    from flowc.backends.llvm.emit_expr import Values

BLOCK = 16     # bytes within which merging is one cheap instruction
ROW = 32       # bytes of vectors that become rows of that length, in one more round
COLUMNS = 32   # neighbouring columns of one table, at most
APART = 64     # elements from row to row of what is written, at most
WOVEN = 4      # fields of a record whose vectors are woven into whole ones
SPREAD = 4     # vectors that may be loaded for one that is used


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
            if not isinstance(by_lane[0], int) or not s.extent <= by_lane[0] <= APART:
                return None
    return replace(inner, width=_square(s, inner), body=(replace(s, kind="unroll", body=inner.body),))


def _square(s: Loop, inner: Loop) -> int:
    """Lanes of a table that is turned: as many as its rows are stored at once, where it is only copied.  That takes
    half the stores and half the code of longer vectors, whose rows lie in pieces."""
    stores = [x for x in inner.body if isinstance(x, Store)]
    count = ROW // max(x.value.dtype.bytes for x in stores)
    copied = len(inner.body) == 1 and all(e.op in ("load", "const", "index") or e.dtype.name == "bool"
                                          for e in parts(expressions(stores[0])))
    wide = all(at is not None and isinstance(at[0], int) and at[0] > WOVEN
               for at in [linear(x.index, inner.var) for x in stores])
    whole = isinstance(s.extent, int) and s.extent % count == 0
    return min(inner.width, count) if copied and wide and whole else inner.width


def straight(stmts: Sequence[Stmt]) -> bool:
    """Only bindings and stores, and nothing read that is stored."""
    stored = {s.buffer for s in stmts if isinstance(s, Store)}
    if not stored or not all(isinstance(s, (Let, Store)) for s in stmts):
        return False
    return not any(e.op == "load" and e.attr[0] in stored for s in stmts for e in parts(expressions(s)))


def in_blocks(s: Loop) -> tuple[Loop, Loop] | None:
    """``for k { for j vector { ... x[m*j + k] ... } }`` as a loop over blocks of k inside the lanes and one over the
    rest, if ``s`` is such a loop."""
    if s.kind != "seq" or len(s.body) != 1 or not isinstance(s.body[0], Loop) or s.body[0].kind != "vector":
        return None
    inner = s.body[0]
    if not straight(inner.body) or s.var in symbols(inner.extent):
        return None
    sizes = {e.dtype.bytes for x in inner.body for e in parts(expressions(x))
             if e.op == "load" and not e.args and _is_column(e, s.var, inner.var)}
    if len(sizes) != 1 or not sizes <= {4, 8}:
        return None
    g = BLOCK // sizes.pop()
    block, row = f"{s.var}.block", f"{s.var}.row"
    whole = map_dims(inner.body, lambda d: substitute(d, {s.var: g * sym(block) + sym(row)}))
    rest = map_dims(s.body, lambda d: substitute(d, {s.var: s.extent // g * g + sym(s.var)}))
    return (Loop(block, s.extent // g, "seq", (replace(inner, body=(Loop(row, g, "unroll", whole),)),)),
            replace(s, extent=s.extent % g, body=rest))


def _is_column(load: Expr, row: str, lane: str) -> bool:
    by_row, by_lane = linear(load.attr[1], row), linear(load.attr[1], lane)
    return by_row is not None and by_row[0] == 1 and by_lane is not None and by_lane[0] not in (-1, 0, 1)


def remainder(d: DimLike, size: int) -> int | None:
    """``d % size`` where that is the same whatever the symbols stand for."""
    if isinstance(d, int):
        return d % size
    if any(mono and c % size for mono, c in d.terms):
        return None
    return sum(c for mono, c in d.terms if not mono) % size


def store_columns(e: Emitter, columns: Sequence[Column]) -> None:
    """Store columns that were put aside, neighbours together."""
    tables: dict[tuple, dict[int, Column]] = {}
    for c in columns:
        tables.setdefault(c.table, {})[c.const] = c
    for table in tables.values():
        for run in _runs(sorted(table)):
            if len(run) == table[run[0]].stride <= WOVEN:
                _store_records(e, [table[k] for k in run])
                continue
            size = table[run[0]].mem.dtype.bytes
            most = (ROW if e.lanes * size == ROW else BLOCK) // size
            while run:
                g = min(most, 1 << (len(run).bit_length() - 1))
                _store_group(e, [table[k] for k in run[:g]])
                run = run[g:]


def _store_records(e: Emitter, fields: Sequence[Column]) -> None:
    """All fields of records that lie one after the other: whole vectors, in which the fields take turns."""
    first, count = fields[0], len(fields)
    ty = memory_type(first.mem.dtype)
    for q in range(count):
        at = range(q * e.lanes, (q + 1) * e.lanes)
        text = _picked(e, ty, [c.text for c in fields], e.lanes, [(k % count, k // count) for k in at])
        pointer = e.address(first.mem, Place(list(first.terms), first.const + at[0], 0, None))
        e.raw(f"store {e.vec(ty)} {text}, {first.mem.type} {pointer}, align {first.mem.align}")


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
    vectors = _transposed(e, ty, vectors, per)
    for text, source in vectors:
        for at in range(0, e.lanes, g):
            row = text if g == e.lanes else e.part(text, ty, e.lanes, at, g)
            lane = source[at][1]
            pointer = e.address(first.mem, Place(list(first.terms), first.const + lane * first.stride, 0, None))
            e.raw(f"store <{g} x {ty}> {row}, {first.mem.type} {pointer}, align {first.mem.align}")


Vector = tuple[str, list[tuple[int, int]]]


def _transposed(e: Values, ty: str, vectors: list[Vector], per: int) -> list[Vector]:
    """Columns to rows inside each block of ``per`` elements: as many rounds as the number of columns has bits.  Of
    more columns than a block has elements blocks are merged whole."""
    unit, columns = 1, len(vectors)
    while unit < columns:
        vectors = [v for x, y in _partners(vectors, unit) for v in _merge(e, ty, x, y, unit, max(per, 2 * unit))]
        unit *= 2
    return vectors


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


def _merge(e: Values, ty: str, x: Vector, y: Vector, unit: int, per: int) -> list[Vector]:
    """Units of ``unit`` elements of x and y in turn, inside each block of ``per`` elements: the lower halves of all
    blocks, then the upper halves."""
    out, full, both = [], e.vec(ty), x[1] + y[1]
    for order, lanes in _in_turn(e.lanes, unit, per):
        text = e.op(f"shufflevector {full} {x[0]}, {full} {y[0]}, {lanes}")
        out.append((text, [both[k] for k in order]))
    return out


@functools.cache
def _in_turn(lanes: int, unit: int, per: int) -> list[tuple[list[int], str]]:
    """The elements of both halves of two merged vectors, and the same as an operand."""
    out = []
    for half in (0, per // 2):
        order: list[int] = []
        for block in range(0, lanes, per):
            for at in range(block + half, block + half + per // 2, unit):
                order += range(at, at + unit)
                order += range(lanes + at, lanes + at + unit)
        out.append((order, lanes_of(order)))
    return out


def lanes_of(order: Sequence[int]) -> str:
    """The operand of a shuffle that says which elements it takes."""
    return f"<{len(order)} x i32> <{', '.join([f'i32 {k}' for k in order])}>"


def load_columns(e: Values, mem: Mem, p: Place, count: int) -> list[str]:
    """``count`` neighbouring columns from ``p`` on, a register block's worth: rows loaded whole, then merged."""
    ty, blocks = memory_type(mem.dtype), e.lanes // count
    rows = []
    for lane in range(e.lanes):
        step = e.mul(p.stride, lane)
        at = (Place(p.terms, p.const + step, 0, None) if isinstance(step, int) else
              Place([*p.terms, step], p.const, 0, None))
        rows.append(e.fetch(mem, f"<{count} x {ty}>", e.address(mem, at)))
    vectors: list[Vector] = []
    for q in range(count):
        text = _joined(e, ty, [rows[count * m + q] for m in range(blocks)], count)
        vectors.append((text, [(q, k) for k in range(e.lanes)]))
    vectors = _transposed(e, ty, vectors, count)
    return [text for text, _ in sorted(vectors, key=lambda v: v[1][0][1])]


def _joined(e: Values, ty: str, parts: list[str], size: int) -> str:
    """Vectors one behind the other, joined by twos."""
    while len(parts) > 1:
        order = lanes_of(range(2 * size))
        parts = [e.op(f"shufflevector <{size} x {ty}> {x}, <{size} x {ty}> {y}, {order}")
                 for x, y in zip(parts[::2], parts[1::2], strict=True)]
        size *= 2
    return parts[0]


# ---- known patterns -------------------------------------------------------------------------------------------------

def load_pattern(e: Values, mem: Mem, p: Place, mask: str | None, filler: str | None) -> str | None:
    """Lanes at known distances from each other that lie close together, such as every second element, or each element
    twice: what lies between the first and the last is loaded as whole vectors, and shuffled.  None if they do not.

    filler: what lanes hold that the mask turns off; None: anything."""
    lanes, ty, pattern = e.lanes, memory_type(mem.dtype), p.pattern
    if pattern is None and p.offsets is None and isinstance(p.stride, int):
        pattern = tuple([p.stride * k for k in range(lanes)])
    if pattern is None or mem.registers or mem.lanes:
        return None
    on = constant_mask(mask, lanes)
    used = [d for k, d in enumerate(pattern) if on is None or on[k]]
    if not used or max(used) - min(used) >= SPREAD * lanes:
        return None
    low, count = min(used), max(used) - min(used) + 1
    width = min(lanes, 1 << (count - 1).bit_length())
    starts = [*range(0, count - width, width), max(0, count - width)]
    parts = []
    for s in starts:
        pointer = e.address(mem, Place(p.terms, p.const + low + s, 0, None))
        if on is None:
            needed = _needed(e, str(mask), [d - low - s for d in pattern], width)
        elif count < width:
            needed = f"<{', '.join(f'i1 {int(t < count)}' for t in range(width))}>"
        else:
            parts.append(e.fetch(mem, f"<{width} x {ty}>", pointer))
            continue
        e.lanes = width
        parts.append(e.masked_load(mem, pointer, needed, "zeroinitializer"))
        e.lanes = lanes
    part_of = {d: (i, d - s) for i, s in enumerate(starts) for d in range(s, s + width)}
    out = _picked(e, ty, parts, width, [part_of.get(d - low, (0, 0)) for d in pattern])
    if filler is None or on is not None and all(on):
        return out
    return e.op(f"select {e.vec('i1')} {mask}, {e.vec(ty)} {out}, {e.vec(ty)} {filler}")


def constant_mask(mask: str | None, lanes: int) -> list[bool] | None:
    """The lanes that are on; None if the code decides that as it runs."""
    if mask is None or mask == "splat (i1 true)":
        return [True] * lanes
    return [flag.split()[-1] in ("1", "true") for flag in mask[1:-1].split(",")] if mask.startswith("<") else None


def _needed(e: Values, mask: str, distance: Sequence[int], width: int) -> str:
    """Which of ``width`` elements a lane that is on reads at its distance."""
    flags, out = e.vec("i1"), ""
    readers = [[k for k, d in enumerate(distance) if d == t] for t in range(width)]
    for turn in range(max(map(len, readers), default=0)):
        order = ", ".join(f"i32 {r[turn] if turn < len(r) else e.lanes}" for r in readers)
        part = e.op(f"shufflevector {flags} {mask}, {flags} zeroinitializer, <{width} x i32> <{order}>")
        out = e.op(f"or <{width} x i1> {out}, {part}") if out else part
    return out or "zeroinitializer"


def _picked(e: Values, ty: str, parts: Sequence[str], width: int, picks: Sequence[tuple[int, int]]) -> str:
    """One element of one part for every lane."""
    def shuffled(x: str, y: str, order: Sequence[int], size: int) -> str:
        return e.op(f"shufflevector <{size} x {ty}> {x}, <{size} x {ty}> {y}, {lanes_of(order)}")

    pair = [at + width * i if i < 2 else 0 for i, at in picks]
    out = shuffled(parts[0], parts[1] if len(parts) > 1 else "poison", pair, width)
    for i, part in enumerate(parts[2:], 2):  # parts beyond the first are as wide as the lanes
        out = shuffled(out, part, [e.lanes + at if j == i else k for k, (j, at) in enumerate(picks)], e.lanes)
    return out
