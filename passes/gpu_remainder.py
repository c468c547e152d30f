"""The exact remainder of floats for machines without a library: ``fmod`` as a loop of exact subtractions.

Here: ``expand_remainders``.  Not here: the other functions, which are expressions (backends/llvm/mathlib.py).

With r = |a| and y = |b|, the multiples y * 2**k, k falling from the difference of the exponents to 0, are subtracted
wherever they fit.  Then y * 2**k <= r < y * 2**(k+1) holds at every subtraction, so it is exact (Sterbenz), and what is
left is the remainder.  A quotient below 2**n takes n + 1 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dataclass import replace
from flowc.dims import sym
from flowc.kernel import Acc, Builder, Expr, If, Kernel, Let, Loop, Set, Stmt, expressions, parts, walk
from flowc.passes.gpu_space import Names
from flowc.passes.rewriting import map_exprs
from flowc.types import DType, f32, i64, u32, u64

FORMATS = {"f32": (23, 0xFF, 127, u32), "f64": (52, 0x7FF, 1023, u64)}  # fraction bits, exponent mask, bias, integer


def expand_remainders(kernel: Kernel) -> Kernel:
    """The kernel without ``fmod``; itself if there is none."""
    if not any(e.op == "fmod" for s in walk(kernel.body) for e in parts(expressions(s))):
        return kernel
    return replace(kernel, body=tuple(_Expander(Names.of(kernel)).block(kernel.body)))


class _Expander:
    def __init__(self, names: Names):
        self.names, self.b = names, Builder()

    def block(self, stmts: Sequence[Stmt]) -> list[Stmt]:
        out: list[Stmt] = []
        for s in stmts:
            out.extend(self.statement(s))
        return out

    def statement(self, s: Stmt) -> list[Stmt]:
        if isinstance(s, Loop):
            return [replace(s, body=tuple(self.block(s.body)))]
        before: list[Stmt] = []

        def expr(e: Expr, args: tuple[Expr, ...]) -> Expr | None:
            return self.remainder(args[0], args[1], before) if e.op == "fmod" else None
        if isinstance(s, If):
            (head,) = map_exprs((If(s.cond, ()),), expr)
            assert isinstance(head, If)
            return [*before, If(head.cond, tuple(self.block(s.then)), tuple(self.block(s.other)))]
        out = map_exprs((s,), expr)
        return [*before, *out]

    def named(self, value: Expr, before: list[Stmt]) -> Expr:
        name = self.names.fresh("m")
        before.append(Let(name, value))
        return self.b.ref(name, value.dtype)

    def remainder(self, x: Expr, y: Expr, before: list[Stmt]) -> Expr:
        """Appends what computes fmod(x, y) and returns the value."""
        b, d = self.b, x.dtype
        if d.bits == 16:
            return b.cast(self.remainder(b.cast(x, f32), b.cast(y, f32), before), d)
        x, y = self.named(x, before), self.named(y, before)
        r, by = self.named(b.abs(x), before), self.named(b.abs(y), before)
        fine = b.and_(b.and_(b.lt(r, float("inf")), b.gt(by, 0.0)), b.eq(by, by))
        rounds, first = self.start(d, r, by, b.and_(fine, b.ge(r, by)), before)
        left, step = self.names.fresh("m"), self.names.fresh("m")
        before += [Acc(left, d, (), r), Acc(step, d, (), first)]
        old, part = b.ref(left, d), b.ref(step, d)
        body = (Set(left, (), b.select(b.ge(old, part), b.sub(old, part), old)), Set(step, (), b.mul(part, 0.5)))
        before.append(Loop(self.names.fresh("i"), sym(rounds), "seq", body))
        return b.select(fine, b.copysign(old, x), b.const(float("nan"), d))

    def start(self, d: DType, r: Expr, y: Expr, some: Expr, before: list[Stmt]) -> tuple[str, Expr]:
        """The number of rounds (the name of an i64), and the first multiple to try."""
        b = self.b
        fraction, mask, bias, bits = FORMATS[d.name]

        def exponent(v: Expr) -> Expr:
            """At least the exponent of v; exactly it for normal numbers."""
            field = b.and_(b.shr(b.bitcast(v, bits), b.const(fraction, bits)), b.const(mask, bits))
            return b.sub(b.cast(b.max(field, b.const(1, bits)), i64), bias)
        scaled = self.named(b.mul(y, 2.0 ** (fraction + 1)), before)  # subnormal divisors become normal
        tiny = self.named(b.lt(y, 2.0 ** (1 - bias)), before)
        low = b.select(tiny, b.sub(exponent(scaled), fraction + 1), exponent(y))
        gap = self.named(b.select(some, b.max(b.sub(exponent(r), low), b.const(0, i64)), b.const(0, i64)), before)
        rounds = self.names.fresh("m")
        count = b.select(some, b.add(gap, 1), b.const(0, i64))
        before.append(Let(rounds, count, (0, 2 * bias + fraction + 2)))
        first, left = y, b.cast(gap, bits)
        for _ in range(3):  # powers of two that are normal numbers; every product is exact
            part = b.min(left, b.const(bias, bits))
            first = b.mul(first, b.bitcast(b.shl(b.add(part, bias), b.const(fraction, bits)), d))
            left = b.sub(left, part)
        return rounds, first
