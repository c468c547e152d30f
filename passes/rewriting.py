"""Rewriting the statements of a kernel: expressions, sizes, addresses.

Here: statements with something else in place of each of them; kernels with other names.
Not here: what is rewritten and why (schedule.py, alike.py, the GPU's strategies), rules over graphs (flowc/rewrite.py).
Read next: schedule.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import count

from flowc.dataclass import replace
from flowc.dims import DimLike, substitute, sym
from flowc.kernel import (
    Acc,
    Alloc,
    Buffer,
    Expr,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Stmt,
    Store,
    defined,
    expressions,
    parts,
    walk,
)

Size = Callable[[DimLike], DimLike]
Address = Callable[[str, DimLike], tuple[str, DimLike]]


def map_exprs(stmts: Iterable[Stmt], fn: Callable[[Expr, tuple[Expr, ...]], Expr | None], size: Size | None = None,
              address: Address | None = None, ops: Collection[str] | None = None) -> tuple[Stmt, ...]:
    """The statements with every expression rebuilt bottom-up: ``fn(e, new_args)`` gives a replacement, or None for the
    same with new operands.  size: for the sizes that stand in statements.  address: for what stores write to.
    ops: instructions that ``fn`` is asked about, None for all."""
    memo: dict[int, Expr] = {}
    keep: list[Expr] = []  # ids stay valid while the expressions live

    def expr(e: Expr) -> Expr:
        stack = [] if id(e) in memo else [e]
        while stack:
            x = stack[-1]
            args = x.args
            if args:
                missing = [a for a in args if id(a) not in memo]
                if missing:
                    stack += missing
                    continue
                args = tuple([memo[id(a)] for a in args])
            stack.pop()
            if id(x) in memo:
                continue
            new = fn(x, args) if ops is None or x.op in ops else None
            if new is None:
                new = x if all(map(operator.is_, args, x.args)) else Expr(x.op, args, x.dtype, x.attr)
            keep.append(x)
            memo[id(x)] = new
        return memo[id(e)]

    def sized(d: DimLike) -> DimLike:
        return d if size is None else size(d)

    def stmt(s: Stmt) -> Stmt:
        if isinstance(s, Let):
            span = s.range and (sized(s.range[0]), None if s.range[1] is None else sized(s.range[1]))
            return Let(s.name, expr(s.value), span)
        if isinstance(s, Loop):
            return Loop(s.var, sized(s.extent), s.kind, tuple([stmt(x) for x in s.body]), s.width)
        if isinstance(s, Store):
            to = (s.buffer, s.index) if address is None else address(s.buffer, s.index)
            return Store(*to, expr(s.value), None if s.where is None else expr(s.where))
        if isinstance(s, Set):
            return Set(s.name, tuple(map(sized, s.index)), expr(s.value))
        if isinstance(s, Acc):
            return Acc(s.name, s.dtype, s.shape, expr(s.init))
        if isinstance(s, Fold):
            return replace(s, values=tuple(map(expr, s.values)))
        if isinstance(s, If):
            return If(expr(s.cond), tuple(map(stmt, s.then)), tuple(map(stmt, s.other)))
        return Alloc(s.name, s.dtype, sized(s.size), s.space) if isinstance(s, Alloc) else s

    return tuple(map(stmt, stmts))


def map_dims(stmts: Iterable[Stmt], fn: Size) -> tuple[Stmt, ...]:
    """The statements with ``fn`` applied to every size in them."""
    def expr(e: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if e.op == "index":
            d = fn(e.attr)
            return Expr("const", (), e.dtype, d) if isinstance(d, int) else Expr("index", (), e.dtype, d)
        if e.op == "load":
            return Expr("load", args, e.dtype, (e.attr[0], fn(e.attr[1])))
        return Expr("ref", (), e.dtype, (e.attr[0], tuple(map(fn, e.attr[1])))) if e.op == "ref" and e.attr[1] else None
    return map_exprs(stmts, expr, fn, lambda buffer, index: (buffer, fn(index)), ("index", "load", "ref"))


def map_addresses(stmts: Iterable[Stmt], fn: Address) -> tuple[Stmt, ...]:
    """The statements with ``fn(buffer, index)`` in place of every address that is read or written."""
    def expr(e: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return Expr("load", args, e.dtype, fn(*e.attr))
    return map_exprs(stmts, expr, address=fn, ops=("load",))


def sizes_in(stmts: Iterable[Stmt]) -> set[DimLike]:
    """Every size that stands in the statements."""
    out: set[DimLike] = set()
    roots: list[Expr] = []
    for s in walk(stmts):
        roots += expressions(s)
        if isinstance(s, Loop):
            out.add(s.extent)
        elif isinstance(s, Store):
            out.add(s.index)
        elif isinstance(s, Let) and s.range:
            out.update(end for end in s.range if end is not None)
        elif isinstance(s, Set):
            out.update(s.index)
        elif isinstance(s, Alloc):
            out.add(s.size)
    for e in parts(roots):
        if e.op == "index":
            out.add(e.attr)
        elif e.op == "load":
            out.add(e.attr[1])
        elif e.op == "ref":
            out.update(e.attr[1])
    return out


def canonical(kernel: Kernel) -> tuple[Kernel, tuple[DimLike, ...]]:
    """The kernel with parameters p0, p1, ... and dims d0, d1, ... but for names that stand inside it already, and the
    actual values of the dims."""
    buffers = {p.name: f"p{i}" for i, p in enumerate(kernel.params)}
    taken = {name for s in walk(kernel.body) for name in defined(s)} if kernel.dims else set()
    free = (name for name in map("d{}".format, count()) if name not in taken)
    names = dict(zip(kernel.dims, free, strict=False))
    dims: Mapping[str, DimLike] = {d: sym(name) for d, name in names.items()}

    def size(d: DimLike) -> DimLike:
        return substitute(d, dims)

    body = map_addresses(map_dims(kernel.body, size) if dims else kernel.body, lambda b, i: (buffers.get(b, b), i))
    params = tuple(Buffer(buffers[p.name], p.dtype, tuple(map(size, p.shape)), p.role) for p in kernel.params)
    ranges = tuple((names[n], (size(lo), None if hi is None else size(hi))) for n, (lo, hi) in kernel.ranges)
    formal = Kernel(kernel.name, params, tuple(names.values()), body, ranges, kernel.notes)
    return formal, tuple(sym(d) for d in kernel.dims)
