"""Schedules: how the loops of a kernel are cut for a machine.

Here: the machine description, schedules as data and how they are chosen, and the loop transformations that need no
knowledge of ops.  Not here: what is computed (lower.py, contract.py), how maps are tiled (segments.py).

A schedule never changes a result: reductions have their tree fixed by lowering (kernel.py: LANES, CHUNK).
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dataclass import dataclass, field, replace
from flowc.dims import linear, prod, substitute, symbols
from flowc.kernel import Expr, Kernel, Let, Loop, Stmt, expressions, walk
from flowc.passes.choices import Choices, Problem, S
from flowc.passes.rewriting import map_dims, sizes_in
from flowc.types import DType

LONG = 64          # instructions of a body that leave no registers for a second round
FEW = 1 << 12      # elements that are computed sooner than better code is made
# instructions expanded into many, and how many chains in a row each of them is
FUNCTIONS = {"pow": 2, **dict.fromkeys((
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh",
    "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf", "erfc", "ndtr", "cbrt", "atan2"), 1)}
TURNS = frozenset(("sin", "cos", "tan"))


@dataclass(frozen=True)
class Machine:
    """What scheduling needs to know of a target.  Sizes in bytes; ``vector_bits`` of one register; ``dots``: the
    instructions on words (kernel.py) that it has."""

    name: str = "cpu"
    vector_bits: int = 512
    l1: int = 32 << 10
    l2: int = 1 << 20
    choices: Choices | None = field(default=None, compare=False)
    dots: tuple[str, ...] = ()

    def chosen(self, problem: Problem, default: S) -> S:
        """The schedule that was tuned or handed in for ``problem`` (op, dtype, sizes, ...); else ``default``."""
        return default if self.choices is None else self.choices.choose(problem, default)

    def lanes(self, dtype: DType) -> int:
        """Elements of ``dtype`` in one vector register; at least one."""
        return max(1, self.vector_bits // max(dtype.bits, 32))


@dataclass(frozen=True)
class MapSchedule:
    """tile: iterations of one parallel piece.  width: lanes of the innermost loop."""

    tile: int = 4096
    width: int = 32

    def __str__(self) -> str:
        return f"map: tile {self.tile}, width {self.width}"


@dataclass(frozen=True)
class ContractSchedule:
    """``form``: packed, direct or thin (tiles.py).  Register tile ``mr`` x ``nr`` of ``width`` lanes, ``kc`` summed
    indices per block, ``mc`` rows and ``nc`` columns per task; ``copy_rows``: the rows are packed as well; ``on_way``:
    the columns are packed by the task that needs them, not before."""

    form: str = "packed"
    mr: int = 8
    nr: int = 48
    width: int = 16
    kc: int = 256
    mc: int = 96
    nc: int = 960
    copy_rows: bool = True
    on_way: bool = False

    def __str__(self) -> str:
        tile = f"contraction: {self.form}, tile {self.mr}x{self.nr}"
        if self.form not in ("packed", "deep"):
            return tile
        return f"{tile}, block {self.mc}x{self.nc}, k {self.kc}, rows {'copied' if self.copy_rows else 'in place'}" + (
            ", columns copied on the way" if self.on_way else "")


def choose_map(machine: Machine, kernel: Kernel) -> MapSchedule:
    """Two registers of the widest type at once, so that one computes while the other waits for a result; very long
    bodies one, to spill less.  Functions that wait for each other are chains so long that four registers are worth
    their code; several that do not wait overlap by themselves, and so does the next round of one register.  Neither
    is worth code where there is little to compute, nor are the rare ways of angles."""
    widest = max((p.dtype.bits for p in kernel.params), default=32)
    one = max(1, machine.vector_bits // max(widest, 32))
    body = _look(kernel)
    registers = 2
    if body.count > LONG or (body.functions and (body.turns or all(
            isinstance(size := prod(p.shape), int) and size <= FEW for p in kernel.params))):
        registers = 1
    elif body.chain > 1:
        registers = 4 if machine.vector_bits >= 512 else 2
    elif body.functions > 1 and widest <= 32:  # those of f64 are longer chains
        registers = 1
    return MapSchedule(width=one * registers)


@dataclass(frozen=True)
class _Body:
    """count: instructions.  functions: those expanded into many.  chain: how many of them wait for each other.  turns:
    one reduces angles."""

    count: int
    functions: int
    chain: int
    turns: bool


def _look(kernel: Kernel) -> _Body:
    count = functions = 0
    turns = False
    chains: dict[Expr | str, int] = {}  # also by name of what is bound
    for s in walk(kernel.body):
        for e in expressions(s):
            stack = [e]
            while stack:
                x = stack[-1]
                if x in chains:
                    stack.pop()
                    continue
                waits = [a for a in x.args if a not in chains]
                if waits:
                    stack += waits
                    continue
                stack.pop()
                own = FUNCTIONS.get(x.op, 0)
                count += x.op not in ("const", "ref", "index")
                functions += own > 0
                turns = turns or x.op in TURNS
                chains[x] = own + max([chains[a] for a in x.args] + (
                    [chains.get(x.attr[0], 0)] if x.op == "ref" else []), default=0)
        if isinstance(s, Let):
            chains[s.name] = chains[s.value]
    return _Body(count, functions, max(chains.values(), default=0), turns)


# ---- loop transformations -------------------------------------------------------------------------------------------

def collapse(stmts: Sequence[Stmt], outer_kinds: tuple[str, ...] = ("parallel",)) -> tuple[Stmt, ...]:
    """Merge directly nested loops wherever every index only sees them as one: ``m*i + j`` with ``j < m``."""
    out: list[Stmt] = []
    for s in stmts:
        if isinstance(s, Loop):
            s = replace(s, body=collapse(s.body, outer_kinds))
            while True:
                merged = _merge(s, outer_kinds)
                if merged is None:
                    break
                s = merged
        out.append(s)
    return tuple(out)


def _merge(outer: Loop, kinds: tuple[str, ...]) -> Loop | None:
    if len(outer.body) != 1 or not isinstance(outer.body[0], Loop):
        return None
    inner = outer.body[0]
    same = outer.kind == inner.kind == "parallel"
    if not (same or (outer.kind == "seq" and inner.kind == "vector" and "seq" in kinds)):
        return None
    if outer.var in symbols(inner.extent):
        return None
    for d in sizes_in(inner.body):
        a, b = linear(d, outer.var), linear(d, inner.var)
        if a is None or b is None or a[0] != b[0] * inner.extent:
            return None
    body = map_dims(inner.body, lambda d: substitute(d, {outer.var: 0}))
    return Loop(inner.var, outer.extent * inner.extent, inner.kind, body, inner.width)
