"""Products of narrow numbers, several at a time: operands packed in words, where the machine multiplies and adds words.

Here: the contraction as one over words, when it may be one, what is to be known of packed words.
Not here: the packed form (contract.py), what the instructions do (kernel.py).

A word holds elements that follow one another in a sum, the first uppermost.  Integers of 8 and 16 bits, whether they
are multiplied as such or widened before, are summed in i32; what is wanted are the lower bits of that.  Of two bytes
that are multiplied one must be signed and one not; where both are the same, those of the rows are moved by 128, and the
sums begin with what that takes away.

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
    """An instruction, how many elements it takes to a word, the dtype that these have there and that of its sums, and
    dtypes that are such elements."""

    instr: str
    per: int
    part: DType
    acc: DType
    dtypes: tuple[DType, ...]


KINDS = (Kind("dot_bf16", 2, bf16, f32, (bf16,)), Kind("dot_i8", 4, u8, i32, (i8, u8)),
         Kind("dot_i16", 2, i16, i32, (i8, u8, i16)))


class Words(Problem):
    """The contraction ``p`` with several summed indices to a word.  ``unsigned``: of bytes, rows and columns."""

    def __init__(self, p: Problem, kind: Kind):
        self.__dict__.update(vars(p))
        self.kind, self.elements, self.split = kind, p.k, False
        found = [self.probe(operand, operand == p.roles.row_operand) for operand in (0, 1)]
        self.fits = all(v.dtype in kind.dtypes for v, _ in found)
        row, col = (found[i][0].dtype for i in (p.roles.row_operand, 1 - p.roles.row_operand))
        self.unsigned = row is u8, col is u8
        self.row_reach, self.col_reach = Reach(own=found[p.roles.row_operand][1].own), Reach()
        self.word, self.acc, self.k, self.split = u32, kind.acc, ceildiv(p.k, kind.per), True

    @property
    def moved(self) -> bool:
        """Both operands are bytes of one sign: those of the rows are moved by 128 to have the other."""
        return self.kind.part is u8 and self.unsigned[0] == self.unsigned[1]

    def convert(self, k: KernelBuilder, v: Expr) -> Expr:
        """As part of a word, if that is what was widened."""
        if v.op == "cast" and v.args[0].dtype in self.kind.dtypes:
            v = v.args[0]
        return k.b.cast(v, self.kind.part) if self.split else v

    def element(self, k: KernelBuilder, inl: Inliner, operand: int, o: Idx, kk: DimLike, where: Expr | None) -> Expr:
        if not self.split:
            return super().element(k, inl, operand, o, kk, where)
        b, per, size = k.b, self.kind.per, self.kind.part.bits
        word = b.const(0x80808080 if self.moved and operand == self.roles.row_operand else 0, u32)
        whole = isinstance(self.elements, int) and self.elements % per == 0
        for i in range(per):
            at, there = per * kk + i, where
            if i and not whole:
                there = b.lt(b.index(at), b.index(self.elements))
                there = there if where is None else b.and_(where, there)
            v = super().element(k, inl, operand, o, at, there)
            v = b.shl(b.cast(b.bitcast(v, u8 if size == 8 else u16), u32), 32 - size * (i + 1))
            word = v if word.op == "const" and word.attr == 0 else b.xor(word, v)
        return word

    def product(self, k: KernelBuilder, x: Expr, y: Expr, total: Expr) -> Expr:
        if self.kind.part is u8 and self.unsigned[1]:
            x, y = y, x
        return k.b.mixed(self.kind.instr, total, x, y)

    def slow_product(self, k: KernelBuilder, x: Expr, y: Expr, total: Expr) -> Expr:
        """That of bf16 without the instruction."""
        b = k.b
        for u, v in ((b.and_(x, 0xFFFF0000), b.and_(y, 0xFFFF0000)), (b.shl(x, 16), b.shl(y, 16))):
            total = b.fma(b.bitcast(u, f32), b.bitcast(v, f32), total)
        return total


def words(machine: Machine, p: Problem, on_way: bool = False) -> Words | None:
    """``p`` over words, where operands and machine allow it.  ``on_way``: columns are not all packed before."""
    around = {x.dtype for n in p.group.members for x in n.inputs}
    for kind in KINDS:
        if around.isdisjoint(kind.dtypes):
            continue
        # narrower sums are the lower bits of wider ones
        if kind.instr in machine.dots and (p.acc is f32 if kind.acc is f32 else p.acc.integer and p.acc.bits <= 32):
            w = Words(p, kind)
            if w.fits and not (w.moved and on_way):
                return w
    return None


class Moved:
    """What the sums of bytes begin with where those of the rows were moved: the sum of a column times 128, that is,
    column by column, in a buffer beside ``temp``, which holds the columns as ``packed``."""

    def __init__(self, p: Words, s: ContractSchedule, temp: str, packed: Type):
        self.p, self.s, self.temp, self.packed = p, s, temp, packed
        self.name, self.type = f"{temp}.sums", Type(i32, (*packed.shape[:-2], s.nr))

    def panel_packed(self, k: KernelBuilder, outer: Idx, panel: DimLike) -> None:
        b, s, count = k.b, self.s, self.packed.shape[-2]
        total = k.acc(i32, b.const(0, i32), (s.nr,))
        with k.loop(count, "seq", "k") as kk, k.loop(s.nr, "vector", "j", s.width) as j:
            y = b.load(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), u32)
            k.set(total, self.p.product(k, b.const(0x01010101, u32), y, k.get(total, j)), j)
        with k.loop(s.nr, "vector", "j", s.width) as j:
            v = b.mul(k.get(total, j), 128 if self.p.unsigned[1] else -128)
            k.write(self.name, linear_index((*outer, panel, j), self.type.shape), v)

    def rows_packed(self, k: KernelBuilder, packed: str, count: DimLike) -> None:
        pass

    def ways(self, k: KernelBuilder, outer: Idx, panel: DimLike, here: str, count: DimLike
             ) -> Sequence[tuple[Expr | None, Product]]:
        return [(None, self.p.product)]

    def begin(self, k: KernelBuilder, acc: str, outer: Idx, panel: DimLike) -> None:
        """Set the accumulators of a tile."""
        k.buffer(self.name, i32, self.type.shape)
        with k.loop(self.s.mr, "unroll", "i") as i, k.loop(self.s.nr, "vector", "j", self.s.width) as j:
            k.set(acc, k.b.load(self.name, linear_index((*outer, panel, j), self.type.shape), i32), i, j)


def beside(p: Problem, s: ContractSchedule, temp: str, packed: Type) -> Leasts | Moved | None:
    """What is to be known of packed operands beside them."""
    if not isinstance(p, Words):
        return None
    return Leasts(p, s, temp, packed) if p.acc is f32 else Moved(p, s, temp, packed) if p.moved else None


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
             ) -> Sequence[tuple[Expr | None, Product]]:
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
