"""Scaling by powers of two where the machine has an instruction for it.

Here: the instructions ``ldexp`` and ``scale`` of such targets.  Not here: what they become elsewhere
(mathlib_parts.py), which targets have them (target.py).

AVX-512 has one instruction, named by its intrinsic, which takes registers of 128, 256 or 512 bits and the power as
a float.  From version 22 on LLVM makes it of llvm.ldexp too, which before calls a function for each lane.
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
    return _by_power(c, x, wide, a, c.op(f"sitofp {it} {n} to {ty}"))


def scale(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """``p * 2**floor(j)``: the power is a float already."""
    wide, (p, j) = c.together(args[:2], [x.dtype, x.dtype])
    return _by_power(c, x, wide, p, j)


def _by_power(c: Values, x: Expr, wide: bool, a: str, power: str) -> Val:
    return by_registers(c, [x.dtype, x.dtype], wide, [a, power], lambda a, power, bits: _scalef(c, x, a, power, bits))


def _scalef(c: Values, x: Expr, a: str, power: str, bits: int) -> str:
    ty = f"<{bits // x.dtype.bits} x {register_type(x.dtype)}>"
    mask = "i16" if bits == 512 and x.dtype.bits == 32 else "i8"
    rounding = ["i32 4"] if bits == 512 else []  # as the machine is set
    return c.intrinsic(f"x86.avx512.mask.scalef.p{'s' if x.dtype.bits == 32 else 'd'}.{bits}", ty, f"{ty} {a}",
                       f"{ty} {power}", f"{ty} zeroinitializer", f"{mask} -1", *rounding, overloads=())
