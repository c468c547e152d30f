"""Results that go past the caches.

Here: which stores do, and their code.  Not here: other stores (emit.py).  Read next: emit.py.

An ordinary store of a line that is in no cache reads it first; a streaming one does not, which saves a third of the
traffic of a copy.  But what it writes is in no cache afterwards, so only results larger than the caches are written so.
It takes whole vectors at aligned addresses: the index must be a multiple of the vector, and the buffer aligned, which
is asked when the kernel runs, like the size where it is symbolic; otherwise the store is an ordinary one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_code import Mem, memory_type
from flowc.dims import Dim, DimLike, prod
from flowc.kernel import Kernel, Store, expressions, parts, walk

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

STREAM = 32 << 20   # bytes of a result that is not kept in caches
LINE = 64
LEAST = 32          # bytes of a streaming store: smaller ones are slow


class Streams:
    """The buffers of one kernel that are large enough, and what was decided for them."""

    def __init__(self, kernel: Kernel, e: Emitter):
        self.sizes: dict[str, DimLike] = {}
        self.used: dict[str, None] = {}  # flags
        if not (e.target.vectors and e.target.triple.startswith("x86_64") and e.target.grid is None):
            return
        read = {x.attr[0] for s in walk(kernel.body) for x in parts(expressions(s)) if x.op == "load"}
        stored = {s.buffer for s in walk(kernel.body) if isinstance(s, Store)}
        for p in kernel.params:
            size = prod(p.shape) * p.dtype.bytes
            if p.role == "out" and p.name in stored - read and not (isinstance(size, int) and size < STREAM):
                self.sizes[e.mems[p.name].pointer] = size

    def store(self, e: Emitter, mem: Mem, index: DimLike, pointer: str, text: str) -> bool:
        """Write a vector to contiguous places, streaming if that is possible; False if it is not."""
        size = self.sizes.get(mem.pointer)
        align = min(LINE, e.lanes * mem.dtype.bytes)
        if size is None or align < LEAST or not _multiple(e, index, align, mem.dtype.bytes):
            return False
        flag = self._flag(e, mem, size)
        self.used[flag] = None
        full = e.vec(memory_type(mem.dtype))
        with e.branch(flag):
            e.raw(f"store {full} {text}, {mem.type} {pointer}, align {align}, !nontemporal !{{i32 1}}")
        with e.branch(e.op(f"xor i1 {flag}, true")):
            e.raw(f"store {full} {text}, {mem.type} {pointer}, align {mem.align}")
        return True

    def _flag(self, e: Emitter, mem: Mem, size: DimLike) -> str:
        """Is the buffer aligned and large?"""
        with e.index_arithmetic():
            low = e.op(f"and i64 {e.op(f'ptrtoint ptr {mem.pointer} to i64')}, {LINE - 1}")
            flag = e.op(f"icmp eq i64 {low}, 0")
            if isinstance(size, int):
                return flag
            large = e.op(f"icmp sge i64 {e.size(size)}, {STREAM}")
            return e.op(f"and i1 {flag}, {large}")

    def finish(self, e: Emitter) -> None:
        """Streamed data is seen by others after a fence only."""
        for flag in self.used:
            with e.branch(flag):
                e.raw(f"call void {e.module.declare('llvm.x86.sse.sfence', 'void ()')}()")


def _multiple(e: Emitter, index: DimLike, align: int, size: int) -> bool:
    """Is the index of lane 0 a multiple of ``align`` bytes?  The variable of the lanes counts whole vectors."""
    if isinstance(index, int):
        return False
    for mono, c in index.terms if isinstance(index, Dim) else ():
        atom, power = mono[0] if len(mono) == 1 else ("", 0)
        if power == 1 and isinstance(atom, str) and atom in e.lane_base:
            base = e.lane_base[atom]
            if isinstance(base, int) and base % e.lanes:
                return False
        elif c * size % align:
            return False
    return True
