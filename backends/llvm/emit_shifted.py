"""Neighbours in working memory: registers' worth of elements that lie some places beside whole registers.

Here: loads at several such places as loads of whole aligned registers, which they share, and shuffles of two of them.
Not here: elements at other distances from each other (emit_interleave.py).  Read next: emit_expr.py.

A load that is not aligned takes twice as long where registers are as long as cache lines, and the elements beside an
element are loaded again for each place.  Whole aligned registers that hold an element that is read lie within memory
that is aligned and as long as whole registers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Mem, Place, memory_type
from flowc.dims import Dim, DimLike
from flowc.kernel import Loop

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values

REGISTER = 64      # bytes of a register of which shuffles of two take one instruction, and of a cache line
SIZES = (4, 8)     # bytes of elements of which they do


def beside(e: Values, s: Loop, width: int, mask: str | None) -> frozenset[str]:
    """The working memory that the body of a vector loop reads at several places beside each other."""
    if mask is not None or e.target.vector_bits != 8 * REGISTER or e.target.grid is not None:
        return frozenset()
    places: dict[str, set[int]] = {}
    for name, index in e.survey.loads(s):
        mem = e.mems.get(name)
        if mem is not None and mem.whole and mem.dtype.bytes in SIZES and width * mem.dtype.bytes % REGISTER == 0:
            at = _beside(index, s.var, REGISTER // mem.dtype.bytes)
            if at is not None:
                places.setdefault(name, set()).add(at)
    return frozenset(name for name, at in places.items() if len(at) > 1)


def _beside(index: DimLike, lane: str, count: int) -> int | None:
    """How many elements lane 0 lies behind a multiple of ``count``."""
    at = 0
    for mono, c in index.terms if isinstance(index, Dim) else [((), index)]:
        if not mono:
            at += c
        elif c % count and not (mono == ((lane, 1),) and c == 1):
            return None
    return at % count


def load_beside(e: Values, mem: Mem, index: DimLike, p: Place) -> str | None:
    """Neighbouring elements as lanes; None if they do not lie beside whole registers."""
    count, ty = REGISTER // mem.dtype.bytes, f"i{mem.dtype.bits}"  # the shuffles of integers alone cost one cycle
    (lane,) = e.lane_base
    at = _beside(index, lane, count)
    if at is None or p.stride != 1:
        return None
    full = e.lanes // count
    words = [e.fetch(mem, f"<{count} x {ty}>", e.address(mem, p, count * k - at), REGISTER)
             for k in range(full + bool(at))]
    if at:
        words = [_joined(e, ty, count, a, b, range(at, at + count)) for a, b in pairwise(words)]
    while len(words) > 1:
        words = [_joined(e, ty, count, a, b, range(2 * count)) for a, b in zip(words[::2], words[1::2], strict=True)]
        count *= 2
    real = memory_type(mem.dtype)
    return words[0] if real == ty else e.op(f"bitcast <{count} x {ty}> {words[0]} to <{count} x {real}>")


def _joined(e: Values, ty: str, count: int, a: str, b: str, lanes: range) -> str:
    return e.op(f"shufflevector <{count} x {ty}> {a}, <{count} x {ty}> {b}, "
                f"<{len(lanes)} x i32> <{', '.join(f'i32 {k}' for k in lanes)}>")
