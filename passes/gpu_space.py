"""What the GPU strategies share: the parallel space of a kernel, fresh names, moving working memory, rewriting.

Here: ``Space``, ``Bound``, ``Names`` and helpers.  Not here: the strategies (gpu.py, gpu_rows.py).  Read next: gpu.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flowc.dataclass import dataclass, field, replace
from flowc.dims import DimLike, Range, prod, symbols
from flowc.kernel import (
    Alloc,
    Buffer,
    Builder,
    Expr,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Stmt,
    Store,
    expressions,
    walk,
)
from flowc.passes.rewriting import map_exprs
from flowc.passes.schedule import collapse
from flowc.proofs import bounds, simplify

STACK_BYTES = 1 << 10    # working memory a thread may keep for itself
SHARED_BYTES = 16 << 10  # working memory a block may keep in shared memory
SCRATCH_BLOCKS = 128     # blocks that have a scratch area


@dataclass(frozen=True)
class Bound:
    """A kernel with block and thread loops.  ``scratch``: its last parameters, working memory of any content that the
    launcher provides."""

    kernel: Kernel
    scratch: tuple[Buffer, ...] = ()


class Unsuitable(Exception):
    """A strategy does not fit a kernel; the text says why."""


@dataclass
class Space:
    """The parallel space of a kernel: its loops, outermost first, and what each point runs.

    Bindings and allocations between the loops are moved inside: they cost little and concern one point.
    """

    loops: list[Loop]
    body: tuple[Stmt, ...]
    ranges: dict[str, Range]

    @classmethod
    def of(cls, kernel: Kernel) -> Space:
        loops: list[Loop] = []
        before: list[Stmt] = []
        body: Sequence[Stmt] = collapse(kernel.body)
        while (body and isinstance(body[-1], Loop) and body[-1].kind == "parallel"
               and all(isinstance(s, (Let, Alloc)) for s in body[:-1])
               and not symbols(body[-1].extent) - set(kernel.dims)):
            before.extend(body[:-1])
            loops.append(body[-1])
            body = body[-1].body
        ranges = dict(kernel.ranges)
        ranges.update({v.var: (0, v.extent - 1) for v in loops})
        return cls(loops, (*before, *body), ranges)

    @property
    def points(self) -> DimLike:
        return prod(v.extent for v in self.loops)


@dataclass
class Names:
    """Fresh names for a kernel."""

    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, kernel: Kernel) -> Names:
        taken = {p.name for p in kernel.params} | set(kernel.dims)
        for s in walk(kernel.body):
            for name in (getattr(s, "name", None), getattr(s, "var", None), *getattr(s, "names", ())):
                if name:
                    taken.add(name)
            if isinstance(s, Fold):
                taken.update(s.left, s.right)
        return cls(taken)

    def fresh(self, stem: str) -> str:
        n = 0
        while f"{stem}{n}" in self.taken:
            n += 1
        self.taken.add(f"{stem}{n}")
        return f"{stem}{n}"


def decode(loops: Sequence[Loop], at: DimLike, ranges: dict[str, Range]) -> list[Stmt]:
    """Bindings of the loops' variables at position ``at`` of their space."""
    b = Builder()
    out: list[Stmt] = []
    for k in range(len(loops) - 1, -1, -1):
        v = loops[k]
        value = simplify(at % v.extent, ranges) if k else at
        at = simplify(at // v.extent, ranges) if k else at
        out.append(Let(v.var, b.index(value), (0, v.extent - 1)))
        ranges[v.var] = (0, v.extent - 1)
    return out[::-1]


def guarded(at: DimLike, extent: DimLike, stmts: Sequence[Stmt], ranges: Mapping[str, Range]) -> tuple[Stmt, ...]:
    """The statements where ``at < extent``; without a test where that is always so."""
    low = bounds(extent - at - 1, ranges)[0]
    if low is not None and low >= 0:
        return tuple(stmts)
    b = Builder()
    return (If(b.lt(b.index(at), b.index(extent)), tuple(stmts)),)


def small(nbytes: DimLike, limit: int) -> bool:
    return isinstance(nbytes, int) and nbytes <= limit


def move_out(kernel: Kernel, body: Sequence[Stmt], large: Iterable[Alloc], area: DimLike, areas: DimLike, names: Names
             ) -> tuple[tuple[Stmt, ...], list[Buffer]]:
    """Working memory as parts of scratch parameters: area number ``area`` of ``areas``."""
    buffers: list[Buffer] = []
    moved: dict[str, tuple[str, DimLike]] = {}
    for s in large:
        loose = symbols(s.size) - set(kernel.dims)
        if loose:
            raise Unsuitable(f"the size of {s.name} depends on {', '.join(sorted(loose))}")
        name = names.fresh("scratch")
        buffers.append(Buffer(name, s.dtype, (areas, s.size), "inout"))
        moved[s.name] = (name, area * s.size)
    return relocate(body, moved), buffers


# ---- rewriting ------------------------------------------------------------------------------------------------------

def relocate(stmts: Iterable[Stmt], moved: Mapping[str, tuple[str, DimLike]]) -> tuple[Stmt, ...]:
    """Buffers replaced by parts of others: name -> (new name, offset).  Their Allocs disappear."""
    def expr(e: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if e.op == "load" and e.attr[0] in moved:
            name, offset = moved[e.attr[0]]
            return Expr("load", args, e.dtype, (name, e.attr[1] + offset))
        return None

    def stmt(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Alloc) and s.name in moved:
            return ()
        if isinstance(s, Store) and s.buffer in moved:
            name, offset = moved[s.buffer]
            return (replace(s, buffer=name, index=s.index + offset),)
        if isinstance(s, Loop):
            return (replace(s, body=tuple(x for y in s.body for x in stmt(y))),)
        if isinstance(s, If):
            return (replace(s, then=tuple(x for y in s.then for x in stmt(y)),
                            other=tuple(x for y in s.other for x in stmt(y))),)
        return (s,)

    return tuple(x for y in map_exprs(stmts, expr) for x in stmt(y))


def accesses(stmts: Iterable[Stmt]) -> Iterator[tuple[str, DimLike, bool]]:
    """(buffer, index, is it written) of every load and store."""
    for s in walk(stmts):
        if isinstance(s, Store):
            yield s.buffer, s.index, True
        seen: set[int] = set()
        stack = list(expressions(s))
        while stack:
            x = stack.pop()
            if id(x) not in seen:
                seen.add(id(x))
                if x.op == "load":
                    yield x.attr[0], x.attr[1], False
                stack.extend(x.args)
