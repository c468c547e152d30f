"""From basic blocks to Python functions over all lanes.

Here: registers, views of their bits, masks, the layout of shared and local memory, compiling the source.
Not here: what instructions do (instructions.py), running the functions (machine.py).  Read next: memory.py.

A block becomes ``def block(M, R, S, m)``: M the launch, R the registers that live across blocks, S the special
registers, m the mask of lanes that run (None: all).  A register used in one block only is a plain variable: what idle
lanes leave in it is never seen.  Others are merged under the mask at the end of the block.  Values that are the same
in all lanes stay NumPy scalars until something lane-dependent meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flowc.backends.cuda.sim import (
    instructions_memory,  # noqa: F401  (registers its rows)
    numeric,
)
from flowc.backends.cuda.sim.errors import PtxError
from flowc.backends.cuda.sim.flow import Block, cut
from flowc.backends.cuda.sim.instructions import write_instruction
from flowc.backends.cuda.sim.memory import WINDOWS, space_of
from flowc.backends.cuda.sim.parse import (
    TYPES,
    Addr,
    Both,
    Entry,
    Float,
    Instruction,
    Int,
    ModuleText,
    Not,
    Operand,
    Param,
    Reg,
    Sink,
    Special,
    Sym,
    Type,
    Vec,
)
from flowc.dataclass import dataclass, field

NO_RESULT = frozenset({"st", "red", "bra", "bar", "barrier", "membar", "fence", "prefetch", "prefetchu", "nanosleep",
                       "trap", "discard", "applypriority"})
WARP_WIDE = frozenset({"shfl", "vote", "redux", "activemask", "match", "elect"})


@dataclass
class Compiled:
    """One entry ready to run.  ``shared`` and ``local``: offsets of variables; ``granule``: bytes of the smallest
    access to shared memory; ``warps``: does it use instructions of whole warps; ``rereads``: does it write global
    memory and read some that may change."""

    entry: Entry
    blocks: list[Block]
    functions: list[Callable[..., Any]]
    shared: dict[str, int]
    shared_size: int
    local_size: int
    granule: int
    warps: bool
    rereads: bool
    zeros: list[Any] = field(default_factory=list)
    source: str = ""


def compile_entry(module: ModuleText, entry: Entry) -> Compiled:
    """PtxError for instructions outside the table."""
    blocks = cut(entry)
    shared, size = _layout([v for v in (*module.variables, *entry.variables) if v.space == "shared"])
    local, depot = _layout([v for v in entry.variables if v.space == "local"])
    local_names = _private(entry, blocks)
    pool = _Pool()
    symbols = {**shared, **local}
    outside = {v.name for v in module.variables if v.space in ("global", "const")}
    sources = [_BlockWriter(entry, b, k, local_names[k], symbols, outside, pool).source()
               for k, b in enumerate(blocks)]
    source = "\n".join(sources)
    names: dict[str, Any] = {**vars(numeric), "WINDOWS": WINDOWS, "space_of": space_of, **pool.values}
    exec(compile(source, f"<ptx {entry.name}>", "exec"), names)
    zeros = [np.False_ if w == 1 else numeric.U[w](0) for w in entry.widths]
    bases = {i.base for i in entry.code}
    return Compiled(entry, blocks, [names[f"block{k}"] for k in range(len(blocks))], shared, size, depot,
                    _granule(entry), bool(bases & WARP_WIDE) or any(i.parts[:2] == ("bar", "warp") for i in entry.code),
                    _rereads(entry), zeros, source)


def _layout(variables: list[Any]) -> tuple[dict[str, int], int]:
    """Offsets of variables, dynamic ones behind all others, and the bytes of the static part."""
    out: dict[str, int] = {}
    at = 0
    for v in [*(v for v in variables if v.size), *(v for v in variables if not v.size)]:
        at = -(-at // v.align) * v.align
        out[v.name] = at
        at += v.size
    return out, at


def _rereads(entry: Entry) -> bool:
    return (any(i.base == "ld" and i.has("global") and not i.has("nc") for i in entry.code)
            and any(i.base == "st" and i.has("global") for i in entry.code))


def _granule(entry: Entry) -> int:
    sizes = [8]
    for i in entry.code:
        if i.base in ("ld", "st", "atom", "red") and not i.has("global", "param", "local", "const"):
            sizes.append(i.type.bits // 8)
    return min(sizes)


def registers(operand: Operand) -> Iterator[int]:
    if isinstance(operand, Reg):
        yield operand.number
    elif isinstance(operand, Addr):
        yield from registers(operand.base)
    elif isinstance(operand, Not):
        yield operand.value.number
    elif isinstance(operand, (Vec, Both)):
        for x in (operand.items if isinstance(operand, Vec) else (operand.first, operand.second)):
            yield from registers(x)


def _private(entry: Entry, blocks: list[Block]) -> list[set[int]]:
    """Per block, the registers that are written there before they are read and occur nowhere else."""
    home: dict[int, int] = {}
    ready: list[set[int]] = [set() for _ in blocks]
    elsewhere: set[int] = set()

    def seen(r: int, k: int, written: bool) -> None:
        first = r not in home
        if home.setdefault(r, k) != k or (first and not written):
            elsewhere.add(r)
        if first and written:
            ready[k].add(r)
    for k, b in enumerate(blocks):
        for i in b.code:
            has_result = i.base not in NO_RESULT
            for o in i.operands[1:] if has_result else i.operands:
                for r in registers(o):
                    seen(r, k, False)
            if i.guard is not None:
                seen(i.guard[0].number, k, False)
            if has_result and i.operands:
                for r in registers(i.operands[0]):
                    seen(r, k, i.guard is None)
        for o in (*((b.cond,) if b.cond is not None else ()), *b.operands):
            for r in registers(o):
                seen(r, k, False)
    return [s - elsewhere for s in ready]


class _Pool:
    """Constants shared by the blocks of an entry."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def name(self, value: Any) -> str:
        key = (type(value).__name__, value.tobytes() if isinstance(value, np.generic) else value)
        if key not in self._names:
            self._names[key] = f"K{len(self._names)}"
            self.values[self._names[key]] = value
        return self._names[key]


class _BlockWriter:
    """Implements instructions.Writer for one block."""

    def __init__(self, entry: Entry, block: Block, number: int, private: set[int], symbols: dict[str, int],
                 outside: set[str], pool: _Pool):
        self.entry, self.block, self.number, self.private = entry, block, number, private
        self.symbols, self.outside, self.pool = symbols, outside, pool
        self.params: dict[str, Param] = {p.name: p for p in entry.params}
        self.lines: list[str] = []
        self.values: dict[tuple[int, str], str] = {}  # variables that hold a register's bits, by dtype
        self.dirty: dict[int, None] = {}
        self.mask = "m"
        self.guard = ""
        self._n = 0

    def source(self) -> str:
        for i in self.block.code:
            self._instruction(i)
        result = ""
        if self.block.cond is not None:
            result = self.read(self.block.cond, TYPES["pred"])
        elif self.block.operands:
            result = ", ".join(self.read(o, TYPES["u32"]) for o in self.block.operands) + ","
        for r in self.dirty:
            v = self.read(Reg(r), self._canonical(r))
            self.line(f"R[{r}] = {v} if m is None else np.where(m, {v}, R[{r}])")
        self.line(f"return {result}")
        return f"def block{self.number}(M, R, S, m):\n " + "\n ".join(self.lines)

    def _instruction(self, i: Instruction) -> None:
        if i.guard is None:
            write_instruction(self, i)
            return
        reg, negated = i.guard
        p = self.read(reg, TYPES["pred"])
        p = f"~{p}" if negated else p
        self.mask = self.guard = self.name(f"{p} if m is None else m & {p}")
        write_instruction(self, i)
        self.mask, self.guard = "m", ""

    # -- the protocol

    def line(self, text: str) -> None:
        self.lines.append(text)

    def name(self, expr: str) -> str:
        self._n += 1
        self.line(f"x{self._n} = {expr}")
        return f"x{self._n}"

    def constant(self, value: Any) -> str:
        return self.pool.name(value)

    def _canonical(self, r: int) -> Type:
        width = self.entry.widths[r]
        return TYPES["pred"] if width == 1 else TYPES[f"b{width}"]

    def read(self, operand: Operand, type: Type) -> str:
        if isinstance(operand, Reg):
            return self._read_register(operand.number, type)
        if isinstance(operand, Special):
            e = f"S[{operand.name!r}]"
            return e if type.numpy == "u4" else f"{e}.astype(np.uint{type.bits}).view('{type.numpy}')"
        if isinstance(operand, (Int, Float)):
            return self._immediate(operand, type)
        if isinstance(operand, Sym):
            if operand.name in self.symbols:
                return self.constant(numeric.U[type.bits](self.symbols[operand.name]))
            if operand.name in self.outside:
                return f"M.symbol({operand.name!r})"
            raise PtxError(f"unknown name {operand.name!r}")
        raise PtxError(f"{operand} is no value")

    def _immediate(self, operand: Int | Float, type: Type) -> str:
        raw: Any
        if type.kind == "pred":
            return self.constant(np.bool_(operand.value if isinstance(operand, Int) else 1))
        if isinstance(operand, Float):
            raw = numeric.U[operand.size](operand.bits)
            if operand.size != type.bits:
                raise PtxError(f"a constant of {operand.size} bits where {type.name} is wanted")
        elif type.floating and type.kind == "f" and type.lanes == 1 and type.bits > 16:
            raw = np.float32(operand.value) if type.bits == 32 else np.float64(operand.value)
        else:
            raw = numeric.U[type.bits](operand.value & ((1 << type.bits) - 1))
        return self.constant(raw.view(type.numpy) if type.lanes == 1 else raw)

    def _read_register(self, r: int, type: Type) -> str:
        if type.lanes == 2:
            type = TYPES["b32"]
        whole = self._canonical(r)
        if (type.kind == "pred") != (whole.kind == "pred"):
            raise PtxError(f"a register of {whole.bits} bits used as {type.name}")
        known = self.values.get((r, type.numpy))
        if known is not None:
            return known
        same_width = [v for (q, d), v in self.values.items() if q == r and np.dtype(d).itemsize * 8 == whole.bits]
        if same_width:
            base = self.values.get((r, whole.numpy)) or self.name(f"{same_width[0]}.view('{whole.numpy}')")
        else:
            base = self.name(f"R[{r}]")
        self.values[r, whole.numpy] = base
        if type.numpy == whole.numpy:
            return base
        if type.bits != whole.bits:
            e = f"{base}.astype(np.uint{type.bits})"
            e = e if type.numpy[0] == "u" else f"{e}.view('{type.numpy}')"
        else:
            e = f"{base}.view('{type.numpy}')"
        self.values[r, type.numpy] = x = self.name(e)
        return x

    def write(self, operand: Operand, expr: str, type: Type) -> None:
        if isinstance(operand, Sink):
            return
        if not isinstance(operand, Reg):
            raise PtxError(f"{operand} cannot hold a result")
        r, whole = operand.number, self._canonical(operand.number)
        if (type.kind == "pred") != (whole.kind == "pred"):
            raise PtxError(f"a result of type {type.name} in a register of {whole.bits} bits")
        if type.kind != "pred" and type.bits != whole.bits:
            expr = _extended(f"np.asarray({expr})", type, whole)
            type = whole
        x = self.name(expr)
        if self.guard:
            old = self._read_register(r, whole)
            if type.numpy != whole.numpy:
                x = self.name(f"{x}.view('{whole.numpy}')")
            x, type = self.name(f"np.where({self.guard}, {x}, {old})"), whole
        for key in [k for k in self.values if k[0] == r]:
            del self.values[key]
        self.values[r, type.numpy] = x
        if r not in self.private:
            self.dirty[r] = None

    def address(self, operand: Operand) -> str:
        if not isinstance(operand, Addr):
            raise PtxError(f"{operand} is no address")
        base = self.read(operand.base, TYPES["u64"])
        if operand.offset == 0:
            return base
        return f"({base} + {self.constant(np.uint64(operand.offset & ((1 << 64) - 1)))})"


def _extended(expr: str, type: Type, whole: Type) -> str:
    """A value in a register of another width: sign extended for signed types, else with zeros; or cut."""
    if type.kind == "s" and type.bits < whole.bits:
        return f"{expr}.astype(np.int{whole.bits}).view(np.uint{whole.bits})"
    return f"{expr}.view(np.uint{type.bits}).astype(np.uint{whole.bits})"
