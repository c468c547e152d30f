"""Products of narrow numbers, two at a time: operands packed in words, where the machine multiplies and adds words.

Here: the contraction as one over words, when it may be one, what is to be known of packed words.
Not here: the packed form (contract.py), what the instructions do (kernel.py: dot_bf16, dot_i16).

A word holds the elements 2*k and 2*k + 1 of a sum, the first in its upper half.  Integers of 8 and 16 bits, whether
they are multiplied as such or widened before, are summed in i32; what is wanted are the lower bits of that.

bf16 are summed in f32.  The instruction adds the product of the upper halves first, so every sum is the chain of fused
multiply-adds that it is without words, in the same order, with the same bits.  But it takes subnormal numbers for zero.
Therefore, while they are packed, rows and columns are searched for the least exponent of anything but zero.  Every sum
is a multiple of the product of the last places of the least row and the least column element.  If that is no subnormal
number, no sum is, and nothing is lost; otherwise the words are taken apart and multiplied in f32, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowc.dims import DimLike, ceildiv, prod
from flowc.kernel import Expr, Fold
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.problem import Problem, Reach
from flowc.passes.register_tile import Product
from flowc.passes.schedule import ContractSchedule, Machine
from flowc.types import DType, Type, bf16, f32, i8, i16, i32, u8, u16, u32

ALL_ZERO = 0xFFFFFFFF       # "the least" of zeros
MAGNITUDE = 0x7FFF          # the bits of a bf16 but for its sign
FRACTION = 7                # of them, behind the point
# biased exponents of two elements whose last places multiply to at least 2**-126: 2 * 127 - 126 + 2 * FRACTION
SAFE = 142


class Kind(NamedTuple):
    """An instruction, the dtype of its halves and of its sums, and dtypes that are such halves."""

    instr: str
    half: DType
    acc: DType
    dtypes: tuple[DType, ...]


KINDS = (Kind("dot_bf16", bf16, f32, (bf16,)), Kind("dot_i16", i16, i32, (i8, u8, i16)))


class Words(Problem):
    """The contraction ``p`` with two summed indices to a word."""

    def __init__(self, p: Problem, kind: Kind):
        self.__dict__.update(vars(p))
        self.kind, self.elements, self.split = kind, p.k, False
        found = [self.probe(operand, operand == p.roles.row_operand) for operand in (0, 1)]
        self.fits = all(v.dtype in kind.dtypes for v, _ in found)
        self.row_reach, self.col_reach = Reach(own=found[p.roles.row_operand][1].own), Reach()
        self.word, self.acc, self.k, self.split = u32, kind.acc, ceildiv(p.k, 2), True

    def convert(self, k: KernelBuilder, v: Expr) -> Expr:
        """As a half, if that is what was widened."""
        if v.op == "cast" and v.args[0].dtype in self.kind.dtypes:
            v = v.args[0]
        return k.b.cast(v, self.kind.half) if self.split else v

    def element(self, k: KernelBuilder, inl: Inliner, operand: int, o: Idx, kk: DimLike, where: Expr | None) -> Expr:
        if not self.split:
            return super().element(k, inl, operand, o, kk, where)
        b, halves = k.b, []
        for i in range(2):
            at, there = 2 * kk + i, where
            if i and not (isinstance(self.elements, int) and self.elements % 2 == 0):
                there = b.lt(b.index(at), b.index(self.elements))
                there = there if where is None else b.and_(where, there)
            halves.append(b.cast(b.bitcast(super().element(k, inl, operand, o, at, there), u16), u32))
        return b.or_(b.shl(halves[0], 16), halves[1])

    def product(self, k: KernelBuilder, x: Expr, y: Expr, total: Expr) -> Expr:
        return k.b.mixed(self.kind.instr, total, x, y)

    def slow_product(self, k: KernelBuilder, x: Expr, y: Expr, total: Expr) -> Expr:
        b = k.b
        for u, v in ((b.and_(x, 0xFFFF0000), b.and_(y, 0xFFFF0000)), (b.shl(x, 16), b.shl(y, 16))):
            total = b.fma(b.bitcast(u, f32), b.bitcast(v, f32), total)
        return total


def words(machine: Machine, p: Problem) -> Words | None:
    """``p`` over words, where operands and machine allow it."""
    for kind in KINDS:
        # narrower sums are the lower bits of wider ones
        if kind.instr in machine.dots and (p.acc is f32 if kind.acc is f32 else p.acc.integer and p.acc.bits <= 32):
            w = Words(p, kind)
            return w if w.fits else None
    return None


class Leasts:
    """The least elements of packed words, see ``_least``: ``rows`` of the rows of the task that is being written,
    those of the panels of columns in a buffer beside ``temp``, which holds the columns as ``packed``."""

    rows: Expr

    def __init__(self, p: Words, s: ContractSchedule, temp: str, packed: Type):
        self.p, self.s, self.temp, self.packed = p, s, temp, packed
        self.name, self.type = f"{temp}.least", Type(u32, packed.shape[:-2])

    def panel_packed(self, k: KernelBuilder, outer: Idx, panel: DimLike) -> None:
        at, size = linear_index((*outer, panel), self.type.shape), prod(self.packed.shape[-2:])
        k.write(self.name, at, _least(k, self.temp, at * size, size, self.s.width, True))

    def rows_packed(self, k: KernelBuilder, packed: str, count: DimLike) -> None:
        self.rows = _least(k, packed, 0, count, self.s.width, False)

    def ways(self, k: KernelBuilder, outer: Idx, panel: DimLike, here: str, count: DimLike
             ) -> Sequence[tuple[Expr, Product]]:
        """Conditions and ways to multiply a panel of columns, or the ``count`` words to a column that are ``here``."""
        b, s = k.b, self.s
        if here:
            least = _least(k, here, 0, count * s.nr, s.width, True)
        else:
            k.buffer(self.name, u32, self.type.shape)
            least = k.let(b.load(self.name, linear_index((*outer, panel), self.type.shape), u32))
        row, col = (b.shr(v, FRACTION) for v in (self.rows, least))
        normal = k.let(b.and_(b.ge(b.min(row, col), 1), b.ge(b.add(row, col), SAFE)))
        return [(normal, self.p.product), (b.not_(normal), self.p.slow_product)]


def _least(k: KernelBuilder, buffer: str, start: DimLike, count: DimLike, width: int, whole: bool) -> Expr:
    """The least magnitude of a bf16 other than zero in ``count`` words from ``start`` on, as bits, less one; whole: a
    multiple of ``width`` words."""
    b = k.b
    lanes = k.acc(u32, b.const(ALL_ZERO, u32), (width,))
    with k.loop(ceildiv(count, width), "seq", "c") as c, k.loop(width, "vector", "l", width) as lane:
        at = width * c + lane
        w = b.load(buffer, start + at, u32, None if whole else b.lt(b.index(at), b.index(count)))
        for half in (w, b.shr(w, 16)):
            w = b.sub(b.and_(half, MAGNITUDE), 1)  # of zero it is the largest
            k.set(lanes, b.min(k.get(lanes, lane), w), lane)
    left, right, out = k.fresh("x"), k.fresh("y"), k.fresh("r")
    k.add(Fold((out,), (lanes,), width, (left,), (right,), (b.min(b.ref(left, u32), b.ref(right, u32)),)))
    k.scopes[-1].names.add(out)
    return b.ref(out, u32)
