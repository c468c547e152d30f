"""Register tiles as functions that kernels share.

Here: which statements are a tile, how it is told from where it lies, the call and the function's text.  Not here: what
a tile computes (passes/contract.py), loops around tiles (emit_nest.py), which modules are compiled (compile.py).
Read next: emit_nest.py.

The tile of a contraction is half of what its kernel takes to compile, and the same in all contractions of one form:
only memory, trip counts and conditions differ.  Those become arguments: an index is taken apart into what the tile's
own loops contribute and the rest, whose address the caller computes.  The text that is left has no names of the
kernel in it.  It is named by its content and is a module of its own, which all kernels of a process share.
A tile runs for thousands of instructions, its call takes ten; the arithmetic is the same as in line.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit_code import Mem, Val
from flowc.backends.llvm.engine import content_name
from flowc.backends.llvm.target import Target
from flowc.dims import Dim, DimLike, Range, substitute, sym, symbols
from flowc.kernel import Acc, Alloc, Expr, If, Let, Loop, Set, Stmt, Store
from flowc.types import DType

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

LEAST = 12      # vector registers of a tile that is worth a function
LONG = 400      # vector operations of its longest loop, at least, where they are known
MOST = 8        # arguments
KEPT = 256      # texts that are remembered
FAR = 1 << 28   # what is near is at most so far from 0
# of the integers that a function takes: loops run so often, factors and terms of indices
RANGES: dict[str, Range] = {"extent": (0, None), "near": (-FAR, FAR), "any": (-(1 << 62), None),
                            "factor": (-(1 << 62), None)}

_SIMPLE = frozenset("const index ref load add sub mul fma min max and or shl shr cast bitcast select eq ne lt le gt ge "
                    "dot_bf16 dot_i16 dot_i8".split())
_STAND_IN = "flowc_tile_symbol"


class OtherError(Exception):
    """The statements are no tile."""


class Tile(NamedTuple):
    """A tile without the kernel around it.  buffers: dtypes and alignments of ``p0``, ``p1``, ...; sizes: the
    integers ``n0``, ... that it takes, what they are; flags: how many conditions ``c0``, ... it takes."""

    body: tuple[Stmt, ...]
    buffers: tuple[tuple[DType, int], ...]
    sizes: tuple[str, ...]
    flags: int


def tile_call(e: Emitter, stmts: Sequence[Stmt], at: int) -> int:
    """Call the function of the tile that begins at ``stmts[at]``.  How many statements that were; 0 if they are no
    tile, or not worth a function."""
    first = stmts[at]
    if e.target.grid is not None or e.lanes > 1 or e.mask is not None or not isinstance(first, Acc):
        return 0
    count = 1 + max((k for k, s in enumerate(stmts[at:]) if first.name in e.survey.used((s,))), default=0)
    found = stmts[at:at + count]
    own = {s.name for s in found if isinstance(s, (Acc, Let))}
    if not _worth(e, first, found) or not own.isdisjoint(e.survey.used(stmts[at + count:])):
        return 0
    memory = [s for s in found if isinstance(s, Alloc)]
    try:
        region = Region(e, memory)
        tile = region.tile([s for s in found if not isinstance(s, Alloc)])
    except OtherError:
        return 0
    e.run(memory)
    call_region(e, region, tile)
    e.enter(found)
    return count


def call_region(e: Emitter, region: Region, tile: Tile) -> None:
    """Call the function of statements that were taken from the kernel."""
    emitter: Any = type(e)
    name, text = _function(emitter, tile, e.target)
    e.module.tiles[name] = text
    args = [f"ptr {e.address(e.mems[buffer], e.place(outer))}" for buffer, outer in region.buffers]
    args += [f"i64 {e.size(d)}" for _, d in region.sizes]
    args += [f"i1 {e.value(cond).text}" for cond in region.flags]
    e.module.declare(name, f"void ({', '.join(a.split(' ', 1)[0] for a in args)})")
    e.raw(f"call void @{name}({', '.join(args)})")
    e.calls += 1


def _worth(e: Emitter, first: Acc, stmts: Sequence[Stmt]) -> bool:
    width = e.widths.get(first.name, 1)
    registers = math.prod(first.shape) // width
    return width > 1 and registers >= LEAST and any(
        isinstance(s, Loop) and s.kind == "seq" and not (isinstance(s.extent, int) and s.extent * registers < LONG)
        for s in stmts)


class Region:
    """Takes statements from a kernel: names become numbers in the order in which they occur."""

    turned = False  # is a table turned?

    def __init__(self, e: Emitter, memory: Sequence[Alloc] = ()):
        self.e = e
        self.memory = {s.name: s.dtype for s in memory}
        if not all(map(e.on_stack, memory)):
            raise OtherError
        self.names: dict[str, str] = {}                       # what the statements define
        self.inner: dict[str, DimLike] = {}                   # the integers among it
        self.buffers: dict[tuple[str, DimLike], str] = {}     # buffer and outer part of the index
        self.sizes: dict[tuple[tuple, DimLike], str] = {}     # what it is to the tile, and the size
        self.flags: dict[Expr, str] = {}

    def tile(self, stmts: Sequence[Stmt], most: int = MOST) -> Tile:
        return self.made(self.block(stmts), most)

    def made(self, body: Sequence[Stmt], most: int) -> Tile:
        if len(self.buffers) + len(self.sizes) + len(self.flags) > most:
            raise OtherError
        return Tile(tuple(body), tuple([self.element(buffer) for buffer, _ in self.buffers]),
                    tuple([place[0] for place, _ in self.sizes]), len(self.flags))

    def element(self, buffer: str) -> tuple[DType, int]:
        """Type and alignment of the elements of a buffer."""
        if buffer in self.memory:
            return self.memory[buffer], self.memory[buffer].bytes
        mem = self.e.mems.get(buffer)
        if mem is None or mem.registers or mem.type != "ptr":
            raise OtherError
        return mem.dtype, mem.align

    def block(self, stmts: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return tuple([self.statement(s) for s in stmts])

    def statement(self, s: Stmt) -> Stmt:
        if isinstance(s, Loop):
            extent = self.extent(s)
            var = self.name(s.var, True)
            return Loop(var, extent, s.kind, self.block(s.body), s.width)
        if isinstance(s, Acc):
            return Acc(self.name(s.name), s.dtype, s.shape, self.value(s.init))
        if isinstance(s, Let) and s.range is None:
            value = self.value(s.value)
            return Let(self.name(s.name), value)
        if isinstance(s, Set):
            return Set(self.known(s.name), self.places(s.index), self.value(s.value))
        if isinstance(s, Store) and s.where is None:
            self.stays(s.buffer)
            return Store(*self.access(s.buffer, s.index), self.value(s.value))
        if isinstance(s, If):
            return If(self.flag(s.cond), self.block(s.then), self.block(s.other))
        raise OtherError

    def extent(self, s: Loop) -> DimLike:
        return s.extent if isinstance(s.extent, int) else self.size(s.extent)

    def stays(self, buffer: str) -> None:
        """Raises an error where what is written may have to go past the caches: that is decided for whole kernels."""
        if buffer not in self.memory and self.e.streams is not None and self.e.streams.may_store(
                self.e.mems[buffer], self.turned):
            raise OtherError

    def simple(self, x: Expr) -> bool:
        return x.op in _SIMPLE

    def name(self, old: str, integer: bool = False) -> str:
        new = self.names[old] = f"{'i' if integer else 'v'}{len(self.names)}"
        if integer:
            self.inner[old] = sym(new)
        return new

    def known(self, name: str) -> str:
        if name not in self.names:
            raise OtherError
        return self.names[name]

    def apart(self, d: DimLike) -> tuple[DimLike, DimLike]:
        """The inner and the outer part of a sum."""
        inner: DimLike = 0
        outer: DimLike = 0
        for mono, c in d.terms if isinstance(d, Dim) else (((), d),):
            one = Dim(((mono, c),)) if mono else c
            own = symbols(one) & self.inner.keys()
            if not own:
                outer = outer + one
            elif own == symbols(one):
                inner = inner + substitute(one, self.inner)
            else:
                raise OtherError
        return inner, outer

    def places(self, index: Sequence[DimLike]) -> tuple[DimLike, ...]:
        parts = [self.apart(d) for d in index]
        if not all(isinstance(outer, int) for _, outer in parts):
            raise OtherError
        return tuple([inner + outer for inner, outer in parts])

    def access(self, buffer: str, index: DimLike) -> tuple[str, DimLike]:
        self.element(buffer)
        inner, outer = self.apart(index)
        return self.buffers.setdefault((buffer, outer), f"p{len(self.buffers)}"), inner

    def size(self, d: DimLike) -> DimLike:
        inner, outer = self.apart(d)
        if inner != 0:
            raise OtherError
        return sym(self.sizes.setdefault((("extent",), outer), f"n{len(self.sizes)}"))

    def flag(self, cond: Expr) -> Expr:
        """A condition on sizes outside of the tile."""
        stack = [cond]
        while stack:
            x = stack.pop()
            if x.op in ("load", "ref") or x.op == "index" and symbols(x.attr) & self.inner.keys():
                raise OtherError
            stack.extend(x.args)
        return Expr("ref", (), cond.dtype, (self.flags.setdefault(cond, f"c{len(self.flags)}"), ()))

    def value(self, x: Expr) -> Expr:
        attr: Any = x.attr
        if not self.simple(x):
            raise OtherError
        if x.op == "ref":
            attr = (self.known(attr[0]), self.places(attr[1]))
        elif x.op == "load":
            attr = self.access(*attr)
        elif x.op == "index":
            attr = self.places((attr,))[0]
        return Expr(x.op, tuple([self.value(a) for a in x.args]), x.dtype, attr)


@functools.lru_cache(KEPT)
def _function(emitter: Any, tile: Tile, target: Target) -> tuple[str, str]:
    """Name and module of the function of a tile."""
    module = Module()
    params = [f"ptr %p{k}" for k in range(len(tile.buffers))]
    params += [f"i64 %n{k}" for k in range(len(tile.sizes))] + [f"i1 %c{k}" for k in range(tile.flags)]
    f = emitter(module, target, _STAND_IN, ", ".join(params), target.attributes)
    f.begin_body(tile.body)
    for k, (d, align) in enumerate(tile.buffers):
        f.mems[f"p{k}"] = Mem(f"%p{k}", "ptr", d, align)
    f.ranges.update({f"n{k}": RANGES[what] for k, what in enumerate(tile.sizes)})
    for stem, count in (("n", len(tile.sizes)), ("c", tile.flags)):
        f.env.update({f"{stem}{k}": Val(f"%{stem}{k}") for k in range(count)})
    f.run(tile.body)
    f.finish()
    text, name = content_name(module.text(), _STAND_IN)
    return name, text
