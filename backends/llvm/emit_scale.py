"""Scaling by powers of two where the machine has an instruction for it.

Here: the instructions ``ldexp`` and ``scale`` of such targets.  Not here: what they become elsewhere
(mathlib_parts.py), which targets have them (target.py).

From version 22 on LLVM knows that AVX-512 does this in one instruction.  Before, llvm.ldexp calls a function for each
lane; there the instruction is named by its intrinsic, which takes registers of 128, 256 or 512 bits and the power as
a float.  The bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Val, register_type
from flowc.kernel import Expr
from flowc.types import i32

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values


def ldexp(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """``x * 2**n``, rounded once."""
    wide, (a, n) = c.together(args, [x.dtype, i32])
    ty, it = c.vec(register_type(x.dtype), wide), c.vec("i32", wide)
    if "ldexp" in c.target.intrinsics:
        return Val(c.intrinsic("ldexp", ty, f"{ty} {a}", f"{it} {n}", overloads=[ty, it]), wide)
    power = c.op(f"sitofp {it} {n} to {ty}")
    if not wide:
        a, power = (c.op(f"insertelement <{128 // x.dtype.bits} x {ty}> poison, {ty} {v}, i64 0") for v in (a, power))
        out = _register(c, x, a, power, 128)
        return Val(c.op(f"extractelement <{128 // x.dtype.bits} x {ty}> {out}, i64 0"))
    return Val(_vector(c, x, a, power), True)


def _vector(c: Values, x: Expr, a: str, power: str) -> str:
    """Register by register; a short vector in the first lanes of one."""
    lanes = c.lanes
    bits = min(512, max(128, lanes * x.dtype.bits))
    each = bits // x.dtype.bits
    parts = []
    for first in range(0, lanes, each):
        pieces = [_lanes(c, x, v, lanes, range(first, first + each)) for v in (a, power)]
        parts.append(_register(c, x, pieces[0], pieces[1], bits))
    width = each
    while len(parts) > 1:  # neighbours together
        ty = f"<{width} x {register_type(x.dtype)}>"
        order = ", ".join(f"i32 {k}" for k in range(2 * width))
        parts = [c.op(f"shufflevector {ty} {p}, {ty} {q}, <{2 * width} x i32> <{order}>")
                 for p, q in zip(parts[::2], parts[1::2], strict=True)]
        width *= 2
    return parts[0] if width == lanes else _lanes(c, x, parts[0], width, range(lanes))


def _lanes(c: Values, x: Expr, v: str, have: int, wanted: range) -> str:
    """Some lanes of a vector of ``have``; those beyond it are anything."""
    if list(wanted) == list(range(have)):
        return v
    ty = f"<{have} x {register_type(x.dtype)}>"
    order = ", ".join(f"i32 {k}" if k < have else "i32 poison" for k in wanted)
    return c.op(f"shufflevector {ty} {v}, {ty} poison, <{len(wanted)} x i32> <{order}>")


def _register(c: Values, x: Expr, a: str, power: str, bits: int) -> str:
    ty = f"<{bits // x.dtype.bits} x {register_type(x.dtype)}>"
    mask = "i16" if bits == 512 and x.dtype.bits == 32 else "i8"
    rounding = ["i32 4"] if bits == 512 else []  # as the machine is set
    return c.intrinsic(f"x86.avx512.mask.scalef.p{'s' if x.dtype.bits == 32 else 'd'}.{bits}", ty, f"{ty} {a}",
                       f"{ty} {power}", f"{ty} zeroinitializer", f"{mask} -1", *rounding, overloads=())
