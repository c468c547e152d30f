"""Lines that are fetched before they are asked for.

Here: which loops fetch which lines, and the code.  Not here: loads (emit_expr.py), results that go past the caches
(emit_stream.py).  Read next: emit_loops.py.

Processors fetch ahead along a run of lines that they have seen the beginning of.  Three kinds of walks leave memory
idle all the same:

* A strip of columns: where a row of the strip ends, the next begins elsewhere.  The walk over some rows of the strip
  fetches those of the next iteration.
* A block of rows that is walked over twice: the second time it is in the second-level cache, and nothing is asked of
  memory.  The last walk over a block fetches the next one.
* Short rows that are added to places which the data tells: what goes on around these hides the run of the rows.  They
  are fetched a block of updates ahead, unless the places are few: then these wait for each other, and nothing is idle.

That is done for operands of which every iteration reads its own part, and which are too large for the caches: the
others cost nothing to read, and fetching takes the place of loads.  Lines go to the second-level cache: what is
fetched may be as large as the first.  No result depends on it, and addresses past the end of an operand are harmless:
so it is nothing that kernels say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowc.dataclass import dataclass, field
from flowc.dims import Call, Dim, DimLike, linear, prod, substitute, sym, symbols
from flowc.kernel import Alloc, Kernel, Loop, Stmt, Store, children, expressions, parts, walk

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values

LINE = 64
LARGE = 4 << 20   # bytes of an operand that is worth it
BLOCK = 1 << 18   # bytes of one operand that are kept until they are asked for
TABLE = 2 << 10   # bytes of a table whose places wait for each other, not for memory
SHORT = 1 << 10   # bytes of a row that is over before anything could be fetched


@dataclass
class Ahead:
    """What is fetched by which vector loop: buffer and index of lane 0."""

    loops: dict[int, list[tuple[str, DimLike]]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()   # what indices are made of that is no data
    small: frozenset[str] = frozenset()   # tables

    def fetch(self, e: Values, loop: Loop) -> None:
        for name, index in self.loops.get(id(loop), ()):
            mem = e.mems[name]
            p = e.place(index)
            for at in range(0, e.lanes * mem.dtype.bytes, LINE):
                pointer = e.address(mem, p, at // mem.dtype.bytes)
                e.raw(f"call void {e.module.declare('llvm.prefetch.p0', 'void (ptr, i32, i32, i32)')}"
                      f"(ptr {pointer}, i32 0, i32 2, i32 1)")


@dataclass(frozen=True)
class Read:
    """A load of neighbouring elements by the lanes of ``lanes``, directly in the loop ``inside``."""

    buffer: str
    index: DimLike
    lanes: Loop
    inside: Loop


def ahead(kernel: Kernel) -> Ahead:
    sizes = {p.name: prod(p.shape) * p.dtype.bytes for p in kernel.params}
    sizes |= {s.name: s.size * s.dtype.bytes for s in walk(kernel.body) if isinstance(s, Alloc)}
    out = Ahead(known=frozenset(kernel.dims) | {s.var for s in walk(kernel.body) if isinstance(s, Loop)},
                small=frozenset(name for name, n in sizes.items() if isinstance(n, int) and n < TABLE))
    large = {p.name: p.dtype.bytes for p in kernel.params if p.role == "in" and not (
        isinstance(n := prod(p.shape), int) and n * p.dtype.bytes < LARGE)}
    if large:
        _visit(kernel.body, (), large, out)
    return out


def _visit(stmts: Sequence[Stmt], around: tuple[Loop, ...], large: dict[str, int], out: Ahead) -> None:
    for s in stmts:
        inner = around
        if isinstance(s, Loop):
            if s.kind not in ("seq", "parallel"):
                continue
            inner = (*around, s)
            _blocks(inner, large, out)
            _strips(inner, large, out)
            _scattered(inner, large, out)
        for body in children(s):
            _visit(body, inner, large, out)


def _reads(s: Stmt, around: tuple[Loop, ...], large: dict[str, int], lanes: Loop | None = None) -> list[Read]:
    """Loads of large operands by the lanes of vector loops in ``s`` that read elements of their own."""
    if not isinstance(s, Loop) or s.kind not in ("seq", "parallel", "vector"):
        return []
    if s.kind == "vector":
        lanes = s
    inner = (*around, s)
    out = [r for x in s.body for r in _reads(x, inner, large, lanes)]
    if lanes is None:
        return out
    for x in parts([e for b in s.body for e in expressions(b)]):
        if x.op == "load" and not x.args and x.attr[0] in large and {v.var for v in inner} <= symbols(x.attr[1]) and (
                (along := linear(x.attr[1], lanes.var)) is not None and along[0] == 1):
            out.append(Read(x.attr[0], x.attr[1], lanes, s))
    return out


def _step(r: Read, loop: Loop) -> DimLike:
    """How far the next iteration of ``loop`` reads; 0 if that is not known."""
    along = linear(r.index, loop.var)
    return 0 if along is None else along[0]


def _note(out: Ahead, r: Read, loop: Loop) -> None:
    found = out.loops.setdefault(id(r.inside), [])
    what = (r.buffer, substitute(r.index, {loop.var: sym(loop.var) + 1}))
    if what not in found:
        found.append(what)


def _blocks(around: tuple[Loop, ...], large: dict[str, int], out: Ahead) -> None:
    """The last walk over rows that the iteration of the innermost loop around has read before."""
    loop = around[-1]
    seen: set[str] = set()
    last: dict[str, list[Read]] = {}
    for s in loop.body:
        reads = _reads(s, around, large)
        for name in {r.buffer for r in reads}:
            if name in seen and isinstance(s, Loop) and s.kind == "seq":
                last[name] = [r for r in reads if r.buffer == name]
            seen.add(name)
    for name, reads in last.items():
        for r in reads:
            step = _step(r, loop)
            if isinstance(step, int) and 0 < step * large[name] <= BLOCK and _long(r, large):
                _note(out, r, loop)


def _strips(around: tuple[Loop, ...], large: dict[str, int], out: Ahead) -> None:
    """Rows of a strip, read once, that do not follow each other."""
    loop = around[-1]
    if loop.kind != "seq":
        return
    fetching = set(out.loops)
    for s in loop.body:
        if isinstance(s, Loop) and s.kind == "vector":
            for r in _reads(s, around, large):
                if id(r.inside) not in fetching and _step(r, loop) not in (0, *_most(s.extent)) and _long(r, large):
                    _note(out, r, loop)


def _scattered(around: tuple[Loop, ...], large: dict[str, int], out: Ahead) -> None:
    """Short rows that are added to places which the data tells, a block at a time."""
    loop = around[-1]
    if loop.kind != "seq":
        return
    for s in loop.body:
        if not isinstance(s, Loop) or s.kind != "seq":
            continue
        for r in _reads(s, around, large):
            n, step = r.lanes.extent, _step(r, loop)
            if isinstance(n, int) and isinstance(step, int) and 0 < step * large[r.buffer] <= BLOCK and any(
                    isinstance(x, Store) and x.buffer not in out.small and not symbols(x.index) <= out.known
                    for x in r.lanes.body):
                _note(out, r, loop)


def _most(extent: DimLike) -> tuple[DimLike, ...]:
    """The sizes that an extent may have: several, of which it is the least, at the end of an axis."""
    if isinstance(extent, Dim) and len(extent.terms) == 1:
        (((mono, c),),) = (extent.terms,)
        if c == 1 and len(mono) == 1 and isinstance(mono[0][0], Call) and mono[0][0].fn == "min":
            return (extent, *mono[0][0].args)
    return (extent,)


def _long(r: Read, large: dict[str, int]) -> bool:
    n = r.lanes.extent
    return not (isinstance(n, int) and n * large[r.buffer] < SHORT)
