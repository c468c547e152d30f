"""Instructions that exist for whole registers only, of 128, 256 or 512 bits.

Here: cutting vectors of any length into registers, and sums of products of narrow numbers.
Not here: which targets have such instructions (target.py), what they become elsewhere (mathlib_parts.py).
Read next: emit_scale.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Val, register_type
from flowc.kernel import Expr
from flowc.types import DType

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values

PAIRS = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}  # products of halves, added by twos


def by_registers(c: Values, dtypes: Sequence[DType], wide: bool, args: Sequence[str], one: Callable[..., str]) -> Val:
    """``one(*registers, bits)`` for operands of as many bits each, the first of the dtype of the result: register by
    register, a short vector or a scalar in the first lanes of one."""
    types = [register_type(d) for d in dtypes]
    size = dtypes[0].bits
    if not wide:
        n = 128 // size
        full = [c.op(f"insertelement <{n} x {t}> poison, {t} {v}, i64 0") for v, t in zip(args, types, strict=True)]
        return Val(c.op(f"extractelement <{n} x {types[0]}> {one(*full, 128)}, i64 0"))
    bits = min(max(128, c.target.vector_bits), max(128, c.lanes * size))
    return registers_of(c, bits, dtypes, dtypes[0], args, lambda *pieces: one(*pieces, bits))


def registers_of(c: Values, bits: int, dtypes: Sequence[DType], out: DType, args: Sequence[str],
                 one: Callable[..., str]) -> Val:
    """``one(*registers)`` of ``bits`` each for operands and a result with as many bits in every lane."""
    types, ty, lanes, width = [register_type(d) for d in dtypes], register_type(out), c.lanes, bits // out.bits
    parts = []
    for first in range(0, lanes, width):
        parts.append(one(*(_lanes(c, t, v, lanes, range(first, first + width))
                           for t, v in zip(types, args, strict=True))))
    while len(parts) > 1:  # neighbours together
        order = ", ".join(f"i32 {k}" for k in range(2 * width))
        full = f"<{width} x {ty}>"
        parts = [c.op(f"shufflevector {full} {p}, {full} {q}, <{2 * width} x i32> <{order}>")
                 for p, q in zip(parts[::2], parts[1::2], strict=True)]
        width *= 2
    return Val(parts[0] if width == lanes else _lanes(c, ty, parts[0], width, range(lanes)), True)


def _lanes(c: Values, ty: str, v: str, have: int, wanted: range) -> str:
    """Some lanes of a vector of ``have``; those beyond it are anything."""
    if list(wanted) == list(range(have)):
        return v
    order = ", ".join(f"i32 {k}" if k < have else "i32 poison" for k in wanted)
    return c.op(f"shufflevector <{have} x {ty}> {v}, <{have} x {ty}> poison, <{len(wanted)} x i32> <{order}>")


def dot_bf16(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """The machine adds the products of the high halves first."""
    dtypes = [a.dtype for a in x.args]
    wide, texts = c.together(args, dtypes)

    def one(total: str, a: str, b: str, bits: int) -> str:
        ty, words, halves = f"<{bits // 32} x float>", f"<{bits // 32} x i32>", f"<{bits // 16} x bfloat>"
        a, b = (c.op(f"bitcast {words} {v} to {halves}") for v in (a, b))
        return c.intrinsic(f"x86.avx512bf16.dpbf16ps.{bits}", ty, f"{ty} {total}", f"{halves} {a}", f"{halves} {b}",
                           overloads=())
    return by_registers(c, dtypes, wide, texts, one)


def dot_i16(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    """In one instruction, or as the products, added by twos, and an addition."""
    dtypes = [a.dtype for a in x.args]
    wide, texts = c.together(args, dtypes)

    def one(total: str, a: str, b: str, bits: int) -> str:
        words, halves = f"<{bits // 32} x i32>", f"<{bits // 16} x i16>"
        if f"x86.avx512.vpdpwssd.{bits}" in c.target.intrinsics:
            return c.intrinsic(f"x86.avx512.vpdpwssd.{bits}", words, *(f"{words} {v}" for v in (total, a, b)),
                               overloads=())
        a, b = (c.op(f"bitcast {words} {v} to {halves}") for v in (a, b))
        pairs = c.intrinsic(f"x86.{PAIRS[bits]}", words, f"{halves} {a}", f"{halves} {b}", overloads=())
        return c.op(f"add {words} {total}, {pairs}")
    return by_registers(c, dtypes, wide, texts, one)


def dot_i8(c: Values, x: Expr, args: Sequence[Val]) -> Val:
    dtypes = [a.dtype for a in x.args]
    wide, texts = c.together(args, dtypes)

    def one(total: str, a: str, b: str, bits: int) -> str:
        words = f"<{bits // 32} x i32>"
        return c.intrinsic(f"x86.avx512.vpdpbusd.{bits}", words, *(f"{words} {v}" for v in (total, a, b)),
                           overloads=())
    return by_registers(c, dtypes, wide, texts, one)
