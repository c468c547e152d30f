"""Contractions on the CPU: packed, cache-blocked, register-tiled, with producers in the packing and consumers in the
epilogue.

Here: roles of the indices, the schedule's choice, the two kernels (pack the column operand, multiply).
Not here: the GPU form (gpu.py), what a contraction is (op.Access).

Roles.  The innermost output axis and the axes before it that come from the same operand are *columns*: they are
contiguous in the result and become vector lanes.  The axes of the other operand are *rows*.  What is left is walked
outside.  One register tile holds mr rows times nr columns and adds rank-1 updates for k = 0, 1, 2, ... in order: every
result element is one chain of fused multiply-adds over k, whatever the blocking, so the bits do not depend on it.

    for outer, row block (mc), column block (nc) in parallel:
        pack the rows of the block:                      A[panel][k][mr]
        for column panel (nr), k block (kc), row panel:  tile in registers, kept in C[mc][nr] between k blocks
        for rows, columns of the panel:                  epilogue, store

Layout and loop order follow Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), with
the roles of the two operands exchanged for results in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowc.dims import DimLike, ceildiv, dmax, dmin, linear, prod, sym
from flowc.graph import Node
from flowc.kernel import Expr, Kernel
from flowc.op import Access
from flowc.op import Contraction as ContractionRule
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.schedule import ContractSchedule, Machine
from flowc.types import DType, Type, f32


@dataclass(frozen=True)
class Roles:
    """Positions of the output axes by role; ``row_operand`` is 0 if the left operand supplies the rows."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    outer: tuple[int, ...]
    row_operand: int


def accumulator(dtype: DType) -> DType:
    """Small floats are summed in f32; every other dtype in itself."""
    return f32 if dtype.floating and dtype.bits < 32 else dtype


def assign_roles(access: Access, nodes: Sequence[Node]) -> Roles:
    kinds = access.out_kinds
    col_kind = kinds[-1] if kinds and kinds[-1] in "mn" else "n"
    row_kind = "m" if col_kind == "n" else "n"
    start = len(kinds)
    while start and kinds[start - 1] == col_kind:
        start -= 1
    cols = tuple(range(start, len(kinds)))
    if len(cols) > 1 and not _flat_columns(access, nodes, cols, col_kind):
        cols = cols[-1:]
    rows = tuple(i for i, c in enumerate(kinds) if c == row_kind)
    outer = tuple(i for i in range(len(kinds)) if i not in rows and i not in cols)
    return Roles(rows, cols, outer, 0 if row_kind == "m" else 1)


def _flat_columns(access: Access, nodes: Sequence[Node], cols: tuple[int, ...], kind: str) -> bool:
    """Is the column operand read at a place linear in the flattened column index?"""
    t = sym("column")
    extents = [access.out[i] for i in cols]
    o: list[DimLike] = [sym(f"o{i}") for i in range(len(access.out))]
    for i, v in zip(cols, unravel(t, extents), strict=True):
        o[i] = v
    r = tuple(sym(f"r{i}") for i in range(len(access.reduce)))
    which = 0 if kind == "m" else 1
    idx, conditions = (access.lhs, access.rhs)[which](tuple(o), r)
    return not conditions and linear(linear_index(idx, nodes[which].shape), "column") is not None


def choose_schedule(machine: Machine, dtype: DType, m: DimLike, n: DimLike, k: DimLike) -> ContractSchedule:
    """Tiles by vector width: 24 accumulators leave room for operands in 32 registers (AVX-512), 12 in 16 (AVX2)."""
    w = machine.lanes(dtype)
    wide = machine.vector_bits >= 512
    shapes = ((8, 3), (12, 2), (24, 1)) if wide else ((6, 2), (12, 1))
    if not isinstance(n, int):
        mr, nv = shapes[0]
    else:
        def padded(shape: tuple[int, int]) -> float:
            width = shape[1] * w
            return ceil_div(n, width) * width * {3: 1.0, 2: 1.03, 1: 1.2}[shape[1]]
        mr, nv = min(shapes, key=padded)
    if isinstance(m, int):
        mr = max(1, min(mr, m))
    mc = max(mr, 96 // mr * mr)
    if isinstance(m, int) and m > mc:  # even blocks, an even number of them where there are few
        blocks = ceil_div(m, mc)
        blocks += blocks % 2 if blocks < 16 else 0
        mc = ceil_div(ceil_div(m, blocks), mr) * mr
    elif isinstance(m, int) and m > 2 * mr:
        mc = ceil_div(ceil_div(m, 2), mr) * mr
    nr = nv * w
    return ContractSchedule(mr=mr, nr=nr, mc=mc, nc=max(1, 960 // nr) * nr, kc=256 if dtype.bits <= 32 else 192)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class _Problem:
    """The sizes and accesses of one contraction in its roles."""

    def __init__(self, g: Group, ctx: Context):
        c = g.contraction
        assert c is not None and isinstance(c.op.lower, ContractionRule)
        self.node, self.group, self.ctx = c, g, ctx
        types = (*[x.type for x in c.inputs], c.type)
        self.access: Access = c.op.lower.access(types, c.attrs)
        self.roles = assign_roles(self.access, c.inputs)
        out = self.access.out
        self.row_extents = [out[i] for i in self.roles.rows]
        self.col_extents = [out[i] for i in self.roles.cols]
        self.outer_extents = [out[i] for i in self.roles.outer]
        self.m, self.n, self.k = prod(self.row_extents), prod(self.col_extents), prod(self.access.reduce)
        self.acc = accumulator(c.dtype)
        self.sched = choose_schedule(ctx.machine, self.acc, self.m, self.n, self.k)
        self.panels = ceildiv(self.n, self.sched.nr)
        self.packed = Type(self.acc, (*self.outer_extents, self.panels, self.k, self.sched.nr))

    def out_index(self, outer: Idx, row: DimLike, col: DimLike) -> Idx:
        o: list[DimLike] = [0] * len(self.access.out)
        for at, v in zip(self.roles.outer, outer, strict=True):
            o[at] = v
        for at, v in zip(self.roles.rows, unravel(row, self.row_extents), strict=True):
            o[at] = v
        for at, v in zip(self.roles.cols, unravel(col, self.col_extents), strict=True):
            o[at] = v
        return tuple(o)

    def element(self, k: KernelBuilder, inl: Inliner, operand: int, o: Idx, kk: DimLike, where: Expr | None) -> Expr:
        """One element of an operand in accumulator precision; zero where it does not exist."""
        r = unravel(kk, self.access.reduce)
        idx, conditions = (self.access.lhs, self.access.rhs)[operand](tuple(map(k.tidy, o)), tuple(map(k.tidy, r)))
        where = exists(k, conditions, where)
        v = inl.value(self.node.inputs[operand], tuple(idx), where)
        v = k.b.cast(v, self.acc)
        if where is not None and not (v.op == "load" and v.args):
            v = k.b.select(where, v, k.b.const(0, self.acc))
        return v


def exists(k: KernelBuilder, conditions: Sequence[tuple], where: Expr | None) -> Expr | None:
    """The conditions of an access as one bool expression; None if there are none."""
    for kind, d, n in conditions:
        if kind == "range":
            tests = [k.b.ge(k.b.index(d), 0), k.b.lt(k.b.index(d), k.b.index(n))]
        else:
            tests = [k.b.eq(k.b.index(d % n), 0)]
        for t in tests:
            if t.op == "const" and t.attr:
                continue
            where = t if where is None else k.b.and_(where, t)
    return where


def lower_contraction(g: Group, ctx: Context) -> Lowered:
    p = _Problem(g, ctx)
    temp = f"{ctx.name}.packed"
    pack, main = _pack_columns(p, temp), _multiply(p, temp)
    elements = prod(p.outer_extents) * p.n * p.k
    return Lowered([pack, main], {temp: p.packed},
                   [elements * 2, prod(p.outer_extents) * p.m * p.n * (p.k + cost(g)) // 8])


def _pack_columns(p: _Problem, temp: str) -> Kernel:
    k = p.ctx.builder("p")
    inl = inliner(k, p.group, p.ctx)
    s, which = p.sched, 1 - p.roles.row_operand
    width = p.ctx.machine.lanes(p.acc)
    with (nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(p.panels, "parallel", "p") as panel,
          k.loop(p.k, "seq", "k") as kk, k.loop(s.nr, "vector", "j", width) as j):
        col = s.nr * panel + j
        where = None
        if not (isinstance(p.n, int) and p.n % s.nr == 0):
            where = k.b.lt(k.b.index(col), k.b.index(p.n))
        v = p.element(k, inl, which, p.out_index(outer, 0, col), kk, where)
        k.write(temp, linear_index((*outer, panel, kk, j), p.packed.shape), v)
    k.buffer(temp, p.acc, p.packed.shape, "out")
    return k.finish(p.ctx.dims, [f"pack the columns of {p.node.op.name}", str(s)])


def _multiply(p: _Problem, temp: str) -> Kernel:
    k = p.ctx.builder("m")
    inl = inliner(k, p.group, p.ctx)
    s = p.sched
    with (nest(k, p.outer_extents, "parallel", "o") as outer,
          k.loop(ceildiv(p.m, s.mc), "parallel", "mb") as mb,
          k.loop(ceildiv(p.n, s.nc), "parallel", "nb") as nb):
        rows = dmin(s.mc, p.m - s.mc * mb)
        packed = k.alloc(p.acc, s.mc * p.k)
        tile = k.alloc(p.acc, s.mc * s.nr)
        _pack_rows(k, inl, p, packed, outer, s.mc * mb, rows)
        first = s.nc // s.nr * nb
        with k.loop(dmin(s.nc // s.nr, p.panels - first), "seq", "jp") as jp:
            panel = first + jp
            _panel(k, p, temp, packed, tile, outer, panel, rows)
            _epilogue(k, inl, p, tile, outer, s.mc * mb, rows, panel)
    declare_outputs(k, p.group, p.ctx)
    return k.finish(p.ctx.dims, [*describe(p.group), str(s)])


def _pack_rows(k: KernelBuilder, inl: Inliner, p: _Problem, packed: str, outer: Idx, first: DimLike,
               rows: DimLike) -> None:
    """Rows beyond the last repeat it: their results are never stored."""
    s, which = p.sched, p.roles.row_operand
    width = p.ctx.machine.lanes(p.acc)
    with k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip, k.loop(s.mr, "seq", "i") as i:
        row = dmin(first + s.mr * ip + i, p.m - 1)
        with k.loop(p.k, "vector", "k", width) as kk:
            v = p.element(k, inl, which, p.out_index(outer, row, 0), kk, None)
            k.write(packed, (ip * p.k + kk) * s.mr + i, v)


def _panel(k: KernelBuilder, p: _Problem, temp: str, packed: str, tile: str, outer: Idx, panel: DimLike,
           rows: DimLike) -> None:
    s, b, width = p.sched, k.b, p.ctx.machine.lanes(p.acc)
    k.buffer(temp, p.acc, p.packed.shape)
    one_block = isinstance(p.k, int) and p.k <= s.kc
    blocks: DimLike = 1 if one_block else dmax(1, ceildiv(p.k, s.kc))  # a sum of nothing is written, too

    def keep(ip: DimLike, load: bool, acc: str) -> None:
        with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", width) as j:
            at = (s.mr * ip + i) * s.nr + j
            if load:
                k.set(acc, b.load(tile, at, p.acc), i, j)
            else:
                k.write(tile, at, k.get(acc, i, j))

    with k.loop(blocks, "seq", "kb") as kb, k.loop(ceildiv(rows, s.mr), "seq", "ip") as ip:
        acc = k.acc(p.acc, b.const(0, p.acc), (s.mr, s.nr))
        if not one_block:
            with k.if_(b.gt(b.index(kb), 0)):
                keep(ip, True, acc)
        with k.loop(p.k if one_block else dmin(s.kc, p.k - s.kc * kb), "seq", "k") as kk:
            at = kk if one_block else s.kc * kb + kk
            with k.loop(s.mr, "unroll", "i") as i, k.loop(s.nr, "vector", "j", width) as j:
                x = b.load(packed, (ip * p.k + at) * s.mr + i, p.acc)
                y = b.load(temp, linear_index((*outer, panel, at, j), p.packed.shape), p.acc)
                old = k.get(acc, i, j)
                k.set(acc, b.fma(x, y, old) if p.acc.floating else b.add(b.mul(x, y), old), i, j)
        keep(ip, False, acc)


def _epilogue(k: KernelBuilder, inl: Inliner, p: _Problem, tile: str, outer: Idx, first: DimLike, rows: DimLike,
              panel: DimLike) -> None:
    s, width = p.sched, p.ctx.machine.lanes(p.acc)
    start = s.nr * panel
    with k.loop(rows, "seq", "i") as i, k.loop(dmin(s.nr, p.n - start), "vector", "j", width) as j:
        o = tuple(map(k.tidy, p.access.place(p.out_index(outer, first + i, start + j))))
        v = k.let(k.b.cast(k.b.load(tile, s.nr * i + j, p.acc), p.node.dtype))
        inl.bound[p.node] = lambda idx, where: v if idx == o else None
        for n in p.group.outputs:
            k.write(p.ctx.name_of(n), linear_index(o, n.shape), inl.value(n, o))
        del inl.bound[p.node]
