"""Results that go past the caches.

Here: which stores do, and their code.  Not here: other stores (emit.py).  Read next: emit.py.

An ordinary store of a line that is in no cache reads it first; a streaming one does not, which saves a third of the
traffic of a copy.  But what it writes is in no cache afterwards, so only results that are larger than the caches
together are written so.  It takes whole vectors at aligned addresses: the index must be a multiple of the vector, and
the buffer aligned, which is asked when the kernel runs, like sizes that are symbolic; otherwise the store is an
ordinary one.

The rows of a table that is turned (emit_interleave.py) go to as many places: lines that are read first are then read
one by one, with nothing fetched ahead, so these are streamed earlier, but whole lines only.  Such stores are put aside
until some can be written under one question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from flowc.backends.llvm.emit_code import Mem, memory_type
from flowc.dataclass import dataclass, field
from flowc.dims import Call, Dim, DimLike, dim_of, prod, symbols
from flowc.kernel import Kernel, Store

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

STREAM = 32 << 20   # bytes of results that are not kept in caches
LITTLE = 1 << 20    # bytes of one among them that is kept all the same
TURNED = 12 << 20   # bytes of a result whose lines are written here and there and that is not kept
LINE = 64
TOGETHER = 1024     # bytes that are put aside, at most
LEAST = 32          # bytes of a streaming store: smaller ones are slow


class Line(NamedTuple):
    """A store without its alignment, which is that of a streaming store or the usual one."""

    text: str
    aligned: int
    usual: int


@dataclass
class Aside:
    """Lines that wait to be written."""

    flag: str
    lines: list[Line] = field(default_factory=list)
    bytes: int = 0


class Streams:
    """The buffers of one kernel that are large enough, and what was decided for them."""

    def __init__(self, kernel: Kernel, e: Emitter):
        self.sizes: dict[str, DimLike] = {}  # bytes of results, by pointer
        self.bytes: DimLike = 0              # of all of them
        self.questions: dict[str, tuple[Mem, DimLike, int, tuple[DimLike, ...], int]] = {}  # by flag
        self.dims = frozenset(kernel.dims)
        self.aside: dict[str, Aside] = {}
        if not (e.target.vectors and e.target.triple.startswith("x86_64") and e.target.grid is None):
            return
        inside = list(e.survey.all(kernel.body))
        read = {x.attr[0] for _, found in inside for x in found if x.op == "load"}
        stored = {s.buffer for s, _ in inside if isinstance(s, Store)}
        self.sizes = {e.mems[p.name].pointer: prod(p.shape) * p.dtype.bytes for p in kernel.params
                      if p.role == "out" and p.name in stored - read}
        self.bytes = sum(self.sizes.values(), 0)

    def may_store(self, mem: Mem, turned: bool) -> bool:
        """May what is written to ``mem``, by a table that is turned or not, go past the caches?"""
        size = self.sizes.get(mem.pointer)
        if size is None or not turned and isinstance(size, int) and size < LITTLE:
            return False
        total, least = (size, TURNED) if turned else (self.bytes, STREAM)
        return not isinstance(total, int) or total >= least

    def store(self, e: Emitter, mem: Mem, index: DimLike, pointer: str, text: str) -> bool:
        """Write a vector to contiguous places, streaming if that is possible; False if it is not."""
        size, turned = self.sizes.get(mem.pointer), e.columns is not None
        if size is not None and not turned:
            size = 0 if isinstance(size, int) and size < LITTLE else self.bytes
        align, least = min(LINE, e.lanes * mem.dtype.bytes), TURNED if turned else STREAM
        if size is None or isinstance(size, int) and size < least or align < (LINE if turned else LEAST):
            return False
        asked: dict[DimLike, None] = {}
        if not self._multiple(e, index, mem.dtype.bytes, align, asked):
            return False
        question = (mem, size, least, tuple(asked), align)
        flag = self._flag(e, *question)
        self.questions[flag] = question
        aside = self.aside.setdefault(flag, Aside(flag)) if turned else Aside(flag)
        what = f"store {e.vec(memory_type(mem.dtype))} {text}, {mem.type} {pointer}"
        aside.lines.append(Line(what, align, mem.align))
        aside.bytes += e.lanes * mem.dtype.bytes
        if not turned or aside.bytes >= TOGETHER:
            self._write(e, aside)
        return True

    def flush(self, e: Emitter) -> None:
        """Write what was put aside."""
        for aside in list(self.aside.values()):
            self._write(e, aside)

    def _write(self, e: Emitter, aside: Aside) -> None:
        self.aside.pop(aside.flag, None)
        past, usual, done = e.label("past"), e.label("usual"), e.label("join")
        e.cond_br(aside.flag, past, usual)  # two ifs without else would be merged into one ordinary store
        e.begin(past)
        for line in aside.lines:
            e.raw(f"{line.text}, align {line.aligned}, !nontemporal !{{i32 1}}")
        e.br(done)
        e.begin(usual)
        for line in aside.lines:
            e.raw(f"{line.text}, align {line.usual}")
        e.br(done)
        e.begin(done)

    def _flag(self, e: Emitter, mem: Mem, size: DimLike, least: int, asked: Iterable[DimLike], align: int) -> str:
        """Is the buffer aligned and large, and are the sizes that were asked for multiples of ``align``?"""
        with e.index_arithmetic():
            low = e.op(f"and i64 {e.op(f'ptrtoint ptr {mem.pointer} to i64')}, {LINE - 1}")
            for d in asked:
                low = e.op(f"or i64 {low}, {e.op(f'and i64 {e.size(d)}, {align - 1}')}")
            flag = e.op(f"icmp eq i64 {low}, 0")
            if isinstance(size, int):
                return flag
            large = e.op(f"icmp sge i64 {e.size(size)}, {least}")
            return e.op(f"and i1 {flag}, {large}")

    def finish(self, e: Emitter) -> None:
        """Streamed data is seen by others after a fence only.  The questions are asked again: their answers may have
        been found under a condition."""
        for flag in dict.fromkeys(self._flag(e, *question) for question in self.questions.values()):
            with e.branch(flag):
                e.raw(f"call void {e.module.declare('llvm.x86.sse.sfence', 'void ()')}()")

    def _multiple(self, e: Emitter, index: DimLike, size: int, align: int, asked: dict[DimLike, None]) -> bool:
        """Is the index of lane 0, times ``size``, a multiple of ``align``?  The variable of the lanes counts whole
        vectors.  What depends on the sizes of the call alone is ``asked`` when the kernel runs."""
        for mono, c in index.terms if isinstance(index, Dim) else [((), index)]:
            if c * size % align == 0:
                continue
            atom, power = mono[0] if len(mono) == 1 else ("", 0)
            fixed = prod(dim_of(x) for x, p in mono for _ in range(p) if symbols(dim_of(x)) <= self.dims)
            if power == 1 and isinstance(atom, str) and atom in e.lane_base:
                base = e.lane_base[atom]
                if isinstance(base, int) and base % e.lanes or c * size * e.lanes % align:
                    return False
            elif not isinstance(fixed, int):
                asked[c * size * fixed] = None
            elif power != 1 or not isinstance(atom, Call) or atom.fn not in ("min", "max") or not all(
                    self._multiple(e, d, c * size, align, asked) for d in atom.args):
                return False
        return True
