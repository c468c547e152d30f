"""Elements of small constant tables, one per lane.

Here: the instruction ``lookup``: a permutation of registers where the machine has one, a load elsewhere.
Not here: the tables and what they mean (mathlib_pieces.py), which targets permute (target.py).
Read next: mathlib_pieces.py.

A table has 8 or 16 numbers; the low bits of the index choose.  One such permutation takes as long as an addition and
keeps no multiplier busy.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Val, literal, register_type
from flowc.backends.llvm.emit_registers import registers_of
from flowc.kernel import Expr

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values

PERMUTE = {  # (bits of an element, length of the table) -> intrinsics of registers of 512 bits
    (32, 16): "x86.avx512.permvar.sf.512", (64, 8): "x86.avx512.permvar.df.512",
    (64, 16): "x86.avx512.vpermi2var.pd.512",
}
HALVES = "x86.avx2.permps"  # of 8 f32


def lookup(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """Element ``index`` modulo the length of the table ``x.attr``."""
    (index,), size = args, x.dtype.bits
    if not index.wide:
        return Val(_loaded(c, x, index))
    name = PERMUTE.get((size, len(x.attr)), "")
    if name in c.target.intrinsics:
        return registers_of(c, 512, [x.args[0].dtype], x.dtype, [index.text], lambda i: _permuted(c, x, name, i))
    if size == 32 and len(x.attr) == 16 and HALVES in c.target.intrinsics:
        return registers_of(c, 256, [x.args[0].dtype], x.dtype, [index.text], lambda i: _halves(c, x, i))
    return Val(_loaded(c, x, index), True)


def _permuted(c: Values, x: Expr, name: str, index: str) -> str:
    width = 512 // x.dtype.bits
    ty, it = f"<{width} x {register_type(x.dtype)}>", f"<{width} x {register_type(x.args[0].dtype)}>"
    parts = [_row(x, first, width) for first in range(0, len(x.attr), width)]
    if len(parts) == 1:
        return c.intrinsic(name, ty, f"{ty} {parts[0]}", f"{it} {index}", overloads=())
    return c.intrinsic(name, ty, f"{ty} {parts[0]}", f"{it} {index}", f"{ty} {parts[1]}", overloads=())


def _halves(c: Values, x: Expr, index: str) -> str:
    """Both halves of the table, and one of them by the fourth bit, made the sign."""
    low, high = (c.intrinsic(HALVES, "<8 x float>", f"<8 x float> {_row(x, first, 8)}", f"<8 x i32> {index}",
                             overloads=()) for first in (0, 8))
    sign = c.op(f"shl <8 x i32> {index}, splat (i32 28)")
    above = c.op(f"icmp slt <8 x i32> {sign}, zeroinitializer")
    return c.op(f"select <8 x i1> {above}, <8 x float> {high}, <8 x float> {low}")


def _row(x: Expr, first: int, width: int) -> str:
    """Part of the table as a constant."""
    ty = register_type(x.dtype)
    return f"<{', '.join(f'{ty} {literal(v, x.dtype)}' for v in x.attr[first:first + width])}>"


def _loaded(c: Values, x: Expr, index: Val) -> str:
    """From memory that the module holds."""
    ty, it, n = register_type(x.dtype), register_type(x.args[0].dtype), len(x.attr)
    space = c.target.pointers["param"]
    text = f"[{n} x {ty}] [{', '.join(f'{ty} {literal(v, x.dtype)}' for v in x.attr)}]"
    name = f"flowc_table_{zlib.crc32(text.encode()):08x}_{n}"
    mark = space.removeprefix("ptr").strip()
    c.module.helpers.setdefault(name, f"@{name} = internal {mark + ' ' if mark else ''}constant {text}, "
                                      f"align {n * x.dtype.bytes}")
    low = c.op(f"and {c.vec(it, index.wide)} {index.text}, {c._number(n - 1, it, index.wide)}")
    at = c.op(f"getelementptr {ty}, {space} @{name}, {c.vec(it, index.wide)} {low}")
    if not index.wide:
        return c.op(f"load {ty}, {space} {at}, align {x.dtype.bytes}")
    full, pointers = c.vec(ty), c.vec(space)
    return c.intrinsic("masked.gather", full, f"{pointers} align {x.dtype.bytes} {at}",
                       f"{c.vec('i1')} splat (i1 true)", f"{full} zeroinitializer", overloads=[full, pointers])
