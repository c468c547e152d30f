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
from flowc.backends.llvm.emit_registers import by_registers
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
    return by_registers(c, [x.dtype, x.dtype], wide, [a, power], lambda a, power, bits: _scalef(c, x, a, power, bits))


def _scalef(c: Values, x: Expr, a: str, power: str, bits: int) -> str:
    ty = f"<{bits // x.dtype.bits} x {register_type(x.dtype)}>"
    mask = "i16" if bits == 512 and x.dtype.bits == 32 else "i8"
    rounding = ["i32 4"] if bits == 512 else []  # as the machine is set
    return c.intrinsic(f"x86.avx512.mask.scalef.p{'s' if x.dtype.bits == 32 else 'd'}.{bits}", ty, f"{ty} {a}",
                       f"{ty} {power}", f"{ty} zeroinitializer", f"{mask} -1", *rounding, overloads=())
