"""One contraction and its surroundings: which index plays which role, how the operands lie in memory.

Here: roles of the indices, ``Problem``, what is known of an operand's address.
Not here: the loop nests (contract.py, contract_direct.py, gpu_contract.py), tiles (tiles.py), what a contraction is
(op.Access).  Read next: contract.py.

Roles.  The innermost output axis and the axes before it that come from the same operand are *columns*: they are
contiguous in the result and become vector lanes.  The axes of the other operand are *rows*.  What is left is walked
outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowc.dataclass import dataclass
from flowc.dims import DimLike, linear, prod, sym, symbols
from flowc.graph import Node
from flowc.kernel import Expr
from flowc.op import Access
from flowc.op import Contraction as ContractionRule
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, inliner, nest
from flowc.passes.turned import Order, access_of, turned
from flowc.proofs import proved_le
from flowc.types import DType, f32


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


@dataclass(frozen=True)
class Reach:
    """How an operand is read: ``own`` and ``summed`` are the distances in elements of neighbours along its own axes
    (rows or columns) and along the summed ones; None where they differ from place to place, or where the operand is
    no plain memory in the dtype of the sum but computed on the way."""

    own: DimLike | None = None
    summed: DimLike | None = None

    @property
    def plain(self) -> bool:
        return self.own is not None and self.summed is not None


def order_of(g: Group) -> Order:
    """In which order the group wants the axes of its contraction's result."""
    c = g.contraction
    assert c is not None
    (order,) = g.demands[c]
    assert order is not None
    return order


REMEMBERED = 1024  # ways of reading memory that are remembered
_REACHES: dict[tuple, Reach] = {}


class Problem:
    """The sizes and accesses of one contraction in its roles, or in roles that are given."""

    def __init__(self, g: Group, ctx: Context, roles: Roles | None = None):
        c = g.contraction
        assert c is not None and isinstance(c.op.lower, ContractionRule)
        self.node, self.group, self.ctx = c, g, ctx
        self.order: Order = order_of(g)
        self.access = turned(access_of(c), self.order)
        self.roles = roles or assign_roles(self.access, c.inputs)
        out = self.access.out
        self.row_extents = [out[i] for i in self.roles.rows]
        self.col_extents = [out[i] for i in self.roles.cols]
        self.outer_extents = [out[i] for i in self.roles.outer]
        self.m, self.n, self.k = prod(self.row_extents), prod(self.col_extents), prod(self.access.reduce)
        self.acc = accumulator(c.dtype)
        self.word = self.acc  # what operands are packed as
        self._before: set[Node] | None = None
        self.row_reach = self._reach(self.roles.row_operand, True)
        self.col_reach = self._reach(1 - self.roles.row_operand, False)

    @property
    def work(self) -> DimLike:
        """Multiply-adds."""
        return prod(self.outer_extents) * self.m * self.n * self.k

    def before(self, node: Node) -> bool:
        """Is the node computed on the way into the contraction, not from its result?"""
        if self._before is None:
            self._before, stack = set(), list(self.node.inputs)
            members = set(self.group.members)
            while stack:
                n = stack.pop()
                if n in members and n not in self._before:
                    self._before.add(n)
                    stack.extend(n.inputs)
        return node in self._before

    def out_index(self, outer: Idx, row: DimLike, col: DimLike) -> Idx:
        o: list[DimLike] = [0] * len(self.access.out)
        for at, v in zip(self.roles.outer, outer, strict=True):
            o[at] = v
        for at, v in zip(self.roles.rows, unravel(row, self.row_extents), strict=True):
            o[at] = v
        for at, v in zip(self.roles.cols, unravel(col, self.col_extents), strict=True):
            o[at] = v
        return tuple(o)

    def product(self, k: KernelBuilder, x: Expr, y: Expr, total: Expr) -> Expr:
        """``total`` and the product of two packed elements."""
        return k.b.fma(x, y, total) if self.acc.floating else k.b.add(k.b.mul(x, y), total)

    def convert(self, k: KernelBuilder, v: Expr) -> Expr:
        """The value of an operand in the dtype of its elements."""
        return k.b.cast(v, self.acc)

    def element(self, k: KernelBuilder, inl: Inliner, operand: int, o: Idx, kk: DimLike, where: Expr | None) -> Expr:
        """One element of an operand in the dtype of the sum; zero where it does not exist."""
        r = unravel(kk, self.access.reduce)
        idx, conditions = (self.access.lhs, self.access.rhs)[operand](tuple(map(k.tidy, o)), tuple(map(k.tidy, r)))
        where = exists(k, conditions, where)
        v = self.convert(k, inl.value(self.node.inputs[operand], tuple(idx), where))
        if where is not None and not (v.op == "load" and v.args):
            v = k.b.select(where, v, k.b.const(0, v.dtype))
        return v

    def row_element(self, k: KernelBuilder, inl: Inliner, outer: Idx, row: DimLike, kk: DimLike) -> Expr:
        return self.element(k, inl, self.roles.row_operand, self.out_index(outer, row, 0), kk, None)

    def col_element(self, k: KernelBuilder, inl: Inliner, outer: Idx, col: DimLike, kk: DimLike,
                    where: Expr | None) -> Expr:
        return self.element(k, inl, 1 - self.roles.row_operand, self.out_index(outer, 0, col), kk, where)

    def _reach(self, operand: int, rows: bool) -> Reach:
        """Found by writing the access down and looking at the address: once for all products that read memory alike."""
        c, ctx = self.node, self.ctx
        if c.inputs[operand] in self.group.members:
            return self.probe(operand, rows)[1]
        key = (type(self), c.op, c.attrs, c.type, *[x.type for x in c.inputs], self.order, self.roles, operand, rows,
               self.acc, *ctx.dims, *ctx.ranges.items())
        found = _REACHES.get(key)
        if found is None:
            if len(_REACHES) >= REMEMBERED:
                _REACHES.clear()
            found = _REACHES[key] = self.probe(operand, rows)[1]
        return found

    def probe(self, operand: int, rows: bool) -> tuple[Expr, Reach]:
        """What an element is somewhere, and how it is reached."""
        k = self.ctx.builder("probe")
        inl = inliner(k, self.group, self.ctx)
        extent = self.m if rows else self.n
        with (nest(k, self.outer_extents, "seq", "o") as outer, k.loop(extent, "seq", "f") as free,
              k.loop(self.k, "seq", "k") as kk):
            o = self.out_index(outer, free, 0) if rows else self.out_index(outer, 0, free)
            v = self.element(k, inl, operand, o, kk, None)
            if v.op != "load" or v.args:
                return v, Reach()
            at = v.attr[1]
            return v, Reach(_step(at, free, self.ctx.dims), _step(at, kk, self.ctx.dims))


def _step(at: DimLike, var: DimLike, sizes: Sequence[str]) -> DimLike | None:
    """By how much ``at`` grows with ``var``, if the sizes alone decide that; 1 for an index that is always 0."""
    names = symbols(var)
    if not names:
        return 1
    parts = linear(at, next(iter(names)))
    return parts[0] if parts is not None and symbols(parts[0]) <= set(sizes) else None


def either(k: KernelBuilder, where: Expr | None, there: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """What is done where a condition holds (None: always), and where it does not."""
    if where is None:
        there()
        return
    with k.if_(where):
        there()
    with k.if_(k.b.not_(where)):
        otherwise()


def exists(k: KernelBuilder, conditions: Sequence[tuple], where: Expr | None) -> Expr | None:
    """The conditions of an access that loop ranges do not decide, and ``where``, as one expression; None for none."""
    b = k.b
    for kind, d, n in conditions:
        if kind == "divisible":
            rest = k.tidy(d % n)
            tests = [] if rest == 0 else [b.eq(b.index(rest), 0)]
        else:
            tests = [] if proved_le(0, d, k.ranges) else [b.ge(b.index(d), 0)]
            tests += [] if proved_le(d + 1, n, k.ranges) else [b.lt(b.index(d), b.index(n))]
        for t in tests:
            where = t if where is None else b.and_(where, t)
    return where
