"""Kernels to LLVM IR: one function per kernel, for CPU and GPU alike.

Here: the function's signature, statements other than loops, registers and working memory.
Not here: loops (emit_loops.py), expressions (emit_expr.py), compiling the text (engine.py).  Read next: target.py.

On the CPU a kernel is ``void @symbol(ptr args, i64 chunk, i64 nchunks)``: ``args`` points to one 8-byte slot per
parameter (a pointer) and per dim (an i64).  On a GPU it is a kernel with the same values as parameters.

Working memory: registers (Acc) are stack slots that the optimiser turns into registers.  An Alloc of static size up
to STACK bytes is on the stack; others are on the stack if they turn out that small when the kernel runs, and from
malloc otherwise, once per call where the size does not depend on a loop.  There is no answer to a failing malloc but
to stop the process; plans keep large temporaries in the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit_ahead import ahead
from flowc.backends.llvm.emit_code import MEMORY, REGISTER, Mem, Place, Val, intrinsic_name, place_at
from flowc.backends.llvm.emit_interleave import Column, store_columns
from flowc.backends.llvm.emit_loops import Loops, threads_of
from flowc.backends.llvm.emit_nest import nest_call, shares_nests
from flowc.backends.llvm.emit_outline import uses_inline
from flowc.backends.llvm.emit_stream import Streams
from flowc.backends.llvm.emit_survey import Survey
from flowc.backends.llvm.emit_tile import tile_call
from flowc.backends.llvm.target import Target
from flowc.diag import UnsupportedError
from flowc.dims import DimLike, prod, symbols
from flowc.kernel import Acc, Alloc, Barrier, Fold, If, Kernel, Let, Loop, Set, Stmt, Store
from flowc.types import DType

STACK = 256 << 10   # bytes of one Alloc on the stack, at most
ALIGN = 64          # of working memory: one cache line, one widest vector
FILLS = 128         # registers set one by one at most; more are set by a loop


def emit_kernel(kernel: Kernel, module: Module, target: Target, symbol: str, tiles: bool = False) -> None:
    """Add ``kernel`` to ``module`` as function ``symbol``.  ``tiles``: those that kernels share are calls of functions,
    which ``module.tiles`` then holds.

    Raises UnsupportedError for what the target cannot do."""
    gpu = target.grid is not None
    attrs = target.attributes
    if gpu:
        threads = threads_of(kernel)
        attrs += f' "nvvm.reqntid"="{threads}"'
        pointer = target.pointers["param"]
        args = ", ".join([f"{pointer} noalias{' readonly' if p.role == 'in' else ''} %p{i}"
                          for i, p in enumerate(kernel.params)] + [f"i64 %d{i}" for i in range(len(kernel.dims))])
    else:
        threads, args = 1, "ptr noalias readonly %args, i64 %chunk, i64 %nchunks"
    e = Emitter(module, target, symbol, args, attrs)
    e.threads, e.tiles, e.nests = threads, tiles, tiles and shares_nests(kernel)
    if gpu:
        e.lines[0] = e.lines[0].replace("define void", "define ptx_kernel void")
    e.run_kernel(kernel, gpu)
    module.brief = bool(e.calls) and not e.busy
    e.finish()


def parallel_nest(kernel: Kernel) -> Loop | None:
    """The loop whose iterations a call's chunk arguments share out: the only parallel loop at the top level.  Where
    there are several, the first call does everything."""
    tops = [s for s in kernel.body if isinstance(s, Loop) and s.kind == "parallel"]
    return tops[0] if len(tops) == 1 else None


class Emitter(Loops):
    """Statements of one kernel.  ``columns``: stores put aside to be done together, where that is allowed."""

    columns: list[Column] | None = None
    streams: Streams | None = None
    tiles = nests = False   # are these functions that kernels share?

    def on_stack(self, s: Alloc) -> bool:
        return static_stack(s)

    def begin_body(self, stmts: Sequence[Stmt]) -> None:
        """Before the statements of a function."""
        self.survey = Survey()
        self.widths = _register_widths(stmts, self.survey)
        self.inline = uses_inline(stmts)
        self.releases: list[tuple[str, str]] = []  # stacks and memory, to be given back when a body ends
        self.per_call: dict[str, str] = {}

    def run_columns(self, s: Loop) -> None:
        """An unrolled loop of loads and stores, those of neighbouring columns together."""
        self.columns, self.rows = [], s
        self.unrolled(s)
        if self.streams is not None:
            self.streams.flush(self)
        columns, self.columns, self.rows = self.columns, None, None
        self.row_cache.clear()
        if columns:
            store_columns(self, columns)

    def run_kernel(self, kernel: Kernel, gpu: bool) -> None:
        self.ranges.update(dict(kernel.ranges))
        self.begin_body(kernel.body)
        pointer = self.target.pointers["param"]
        for i, p in enumerate(kernel.params):
            text = f"%p{i}" if gpu else self._slot(i, "ptr")
            self.mems[p.name] = Mem(text, pointer, p.dtype, p.dtype.bytes, size=prod(p.shape))
        for i, d in enumerate(kernel.dims):
            self.env[d] = Val(f"%d{i}" if gpu else self._slot(len(kernel.params) + i, "i64"))
        self.chunked = None if gpu else parallel_nest(kernel)
        self.streams = Streams(kernel, self)
        # results that may go past the caches are written here: then the kernel is no brief one
        self.nests = self.nests and not any(
            self.streams.may_store(self.mems[p.name], turned) for p in kernel.params for turned in (False, True))
        found = None if gpu or not self.target.vectors else ahead(kernel)
        self.ahead = found if found and found.loops else None
        blocks = []
        for s, _ in self.survey.all(kernel.body):  # once per call where no loop decides the size
            if not gpu and isinstance(s, Alloc) and not static_stack(s) and symbols(s.size) <= set(kernel.dims):
                self.per_call[s.name], block = self._allocate(whole_lines(s) * s.dtype.bytes)
                blocks.append(block)
        if not gpu and self.chunked is None and any(isinstance(s, Loop) and s.kind == "parallel" for s in kernel.body):
            with self.branch(self.op("icmp eq i64 %chunk, 0")):  # several nests may depend on each other: one call
                self.run(kernel.body)
        else:
            self.run(kernel.body)
        self.streams.finish(self)
        self._release(blocks)

    def _slot(self, i: int, ty: str) -> str:
        at = self.op(f"getelementptr i64, ptr %args, i64 {i}") if i else "%args"
        return self.op(f"load {ty}, ptr {at}, align 8")

    # -- statements

    def run(self, stmts: Sequence[Stmt]) -> None:
        before = len(self.releases)
        at, end = 0, len(stmts)
        while at < end:
            kind, count = type(stmts[at]), 0
            self.memo = {}
            if kind in _TOGETHER:
                count = _TOGETHER[kind](self, stmts, at)
            if not count:
                _STATEMENTS[kind](self, stmts[at])
            at += count or 1
        self.memo = {}
        while len(self.releases) > before:
            saved, block = self.releases.pop()
            self._release([block])
            self.intrinsic("stackrestore", "void", f"ptr {saved}", overloads=("ptr",), effect=True)

    def _nest(self, stmts: Sequence[Stmt], at: int) -> int:
        """Call the function of the nests of loops that begin here; how many statements that were."""
        return nest_call(self, stmts, at) if self.nests else 0

    def _tile(self, stmts: Sequence[Stmt], at: int) -> int:
        """Call the function of the tile that begins here; how many statements that were."""
        return tile_call(self, stmts, at) if self.tiles else 0

    def _let(self, s: Let) -> None:
        self.env[s.name] = self.value(s.value)
        if s.range is not None:
            self.ranges[s.name] = s.range

    def _acc(self, s: Acc) -> None:
        strides: list[int] = []
        size = 1
        width = self.widths.get(s.name, 1)
        for n in reversed(s.shape):
            strides.append(size)
            size *= -(-n // width) * width if len(strides) == 1 else n
        per_lane = self.lanes if self.lanes > 1 else 0
        ty = MEMORY[s.dtype]
        slot = self.fresh("acc")
        self.entry.append(f"  {slot} = alloca [{size * max(per_lane, 1)} x {ty}], align {ALIGN}")
        self.level[slot] = 0
        align = min(ALIGN, s.dtype.bytes * max(per_lane, 1))
        mem = Mem(slot, "ptr", s.dtype, align & -align, True, per_lane, tuple(reversed(strides)), width)
        old = self.mems.get(s.name)
        if old is not None:
            mem.epoch = old.epoch + 1
        init = self.value(s.init)
        self.mems[s.name] = mem
        if per_lane:
            self._fill(mem, size, self.stored(init, s.dtype, True),
                       self.vec(ty), 1)
        elif width > 1 and size % width == 0:
            self.lanes = width
            text = self.stored(init, s.dtype, True)
            self._fill(mem, size, text, self.vec(ty), width)
            self.lanes = 1
        else:
            self._fill(mem, size, self.stored(init, s.dtype, False), ty, 1)

    def _fill(self, mem: Mem, size: int, text: str, ty: str, step: int) -> None:
        """Store ``text`` of type ``ty`` at every ``step``-th place."""
        if size // step > FILLS:
            with self.loop(0, size, step) as i:
                self.raw(f"store {ty} {text}, ptr {self.address(mem, place_at(i))}, align {mem.align}")
            return
        for k in range(0, size, step):
            self.raw(f"store {ty} {text}, ptr {self.address(mem, place_at(k))}, align {mem.align}")

    def _set(self, s: Set) -> None:
        mem = self.mems[s.name]
        v = self.value(s.value)
        self.write(mem, self._position(mem, s.index), v, None)

    def _store(self, s: Store) -> None:
        mem = self.mems[s.buffer]
        if s.where is None:
            self.write(mem, s.index, self.value(s.value), None)
            return
        where = self.value(s.where)
        if where.constant and not where.wide:
            if where.text == "true":
                self.write(mem, s.index, self.value(s.value), None)
            return
        if where.wide:
            self.write(mem, s.index, self.value(s.value), where)
            return
        value = self.value(s.value)
        with self.branch(where.text):
            self.write(mem, s.index, value, None)

    def write(self, mem: Mem, index: DimLike, v: Val, where: Val | None) -> None:
        """One element per lane, or one element."""
        p, ty = self.place(index), MEMORY[mem.dtype]
        mem.epoch += 1
        mask = self.mask if where is None else self.both_masks(where.text)
        if not v.wide and p.offsets is None and p.stride == 0 and where is None and not mem.lanes:
            text = self.stored(v, mem.dtype, False)
            self.raw(f"store {ty} {text}, {mem.type} {self.address(mem, p)}, align {mem.align}")
            return
        text, full = self.stored(v, mem.dtype, True), self.vec(ty)
        if mem.lanes or mem.registers and p.offsets is None and p.stride == 1:
            pointer = self.address(mem, p)
            if mask is not None:
                old = self.here(f"load {full}, ptr {pointer}, align {mem.align}")
                text = self.op(f"select {self.vec('i1')} {mask}, {full} {text}, {full} {old}")
            self.raw(f"store {full} {text}, ptr {pointer}, align {mem.align}")
        elif p.offsets is None and p.stride in (1, -1):
            if mask is None and p.stride == 1 and self.streams is not None and self.streams.store(
                    self, mem, index, self.address(mem, p), text):
                return
            self._write_contiguous(mem, p, full, ty, text, mask)
        elif (self.columns is not None and mask is None and p.offsets is None and isinstance(p.stride, int)
                and p.stride > 1):
            self.columns.append(Column(mem, tuple(p.terms), p.const, p.stride, text))
        else:
            self._scatter(mem, p, text, mask or "splat (i1 true)")

    def _scatter(self, mem: Mem, p: Place, text: str, mask: str) -> None:
        pointers = f"<{self.lanes} x {mem.type}>"
        self._masked_write("masked.scatter", self.vec(MEMORY[mem.dtype]), text,
                           f"{pointers} align {mem.align} {self.addresses(mem, p)}", pointers, mask)

    def scatter(self, c: Column) -> None:
        self._scatter(c.mem, Place(list(c.terms), c.const, c.stride, None), c.text, "splat (i1 true)")

    def _write_contiguous(self, mem: Mem, p: Place, full: str, ty: str, text: str, mask: str | None) -> None:
        back = p.stride == -1
        pointer = self.address(mem, p, 1 - self.lanes if back else 0)
        if back:
            text = self.reverse(text, ty)
            mask = None if mask is None else self.reverse(mask, "i1")
        if mask is None:
            self.raw(f"store {full} {text}, {mem.type} {pointer}, align {mem.align}")
        else:
            self._masked_write("masked.store", full, text, f"{mem.type} align {mem.align} {pointer}", mem.type, mask)

    def _masked_write(self, name: str, full: str, text: str, target: str, target_type: str, mask: str) -> None:
        self.target.allow(name)
        flags = self.vec("i1")
        callee = self.module.declare(intrinsic_name(name, (full, target_type)),
                                     f"void ({full}, {target_type}, {flags})")
        self.raw(f"call void {callee}({full} {text}, {target}, {flags} {mask})")

    def _barrier(self, s: Barrier) -> None:
        self.barrier()

    # -- folding

    def _fold(self, s: Fold) -> None:
        parts = [self._lanes_of(self.mems[name], s.extent) for name in s.accs]
        dtypes = [self.mems[name].dtype for name in s.accs]
        h = s.extent // 2
        while h:
            parts = self._fold_step(s, parts, dtypes, h)
            h //= 2
        for name, part, d in zip(s.names, parts, dtypes, strict=True):
            width, (text,) = part
            self.env[name] = Val(text if width == 1 else
                                 self.op(f"extractelement <{width} x {REGISTER[d]}> {text}, i64 0"))

    def _fold_together(self, stmts: Sequence[Stmt], at: int) -> int:
        """Fold the registers of several rows alike: what is left of two rows that fills half a vector each shares one.
        How many statements that were; 0 if there are no two such rows.  Each row is added up as it is alone."""
        first = stmts[at]
        assert isinstance(first, Fold)
        if self.lanes != 1 or _folded_by(first) is None:
            return 0
        mem = self.mems[first.accs[0]]
        group: list[Fold] = []
        for s in stmts[at:]:
            if not isinstance(s, Fold) or s.extent != first.extent or _folded_by(s) != _folded_by(first):
                break
            other = self.mems[s.accs[0]]
            if other.dtype is not mem.dtype or other.group != mem.group:
                break
            group.append(s)
        width = mem.group
        count = min(1 << (len(group).bit_length() - 1), width)
        if count < 2 or first.extent < width or first.extent & (first.extent - 1):
            return 0
        vectors = []
        for s in group[:count]:
            parts, h = [self._lanes_of(self.mems[s.accs[0]], s.extent)], s.extent // 2
            while h >= width:
                parts = self._fold_step(s, parts, [mem.dtype], h)
                h //= 2
            vectors += parts[0][1]
        results = self._fold_rows(first, vectors, width, mem.dtype)
        for s, text in zip(group, results, strict=False):
            self.env[s.names[0]] = Val(text)
        return count

    def _fold_rows(self, s: Fold, vectors: list[str], length: int, d: DType) -> list[str]:
        """The sums of rows of ``length`` lanes, one for each vector; two vectors become one while there are two."""
        ty, rows = REGISTER[d], 1  # of a vector
        while length > 1:
            lanes, half, paired = rows * length, length // 2, len(vectors) > 1
            starts = range(0, lanes * (1 + paired), length)
            low, high = ([at + k for at in starts for k in range(first, first + half)] for first in (0, half))
            merged = []
            for k in range(0, len(vectors), 2):
                x, y = vectors[k], vectors[k + 1] if paired else "poison"
                self.memo = {}
                for name, order in ((s.left[0], low), (s.right[0], high)):
                    text = self.op(f"shufflevector <{lanes} x {ty}> {x}, <{lanes} x {ty}> {y}, "
                                   f"<{len(order)} x i32> <{', '.join([f'i32 {t}' for t in order])}>")
                    self.env[name] = Val(text, True)
                self.lanes = len(low)
                merged.append(self.value(s.values[0]).text)
                self.lanes = 1
            vectors, rows, length = merged, rows * (1 + paired), half
        return [self.op(f"extractelement <{rows} x {ty}> {vectors[0]}, i64 {k}") for k in range(rows)]

    def _lanes_of(self, mem: Mem, extent: int) -> tuple[int, list[str]]:
        """All lanes of registers as vectors of one width."""
        d = mem.dtype
        width = self.lanes = mem.group
        ty = MEMORY[d]
        out = []
        for k in range(0, max(extent, 1), width):
            text = self.fetch(mem, self.vec(ty, width > 1), self.address(mem, place_at(k)))
            out.append(self.loaded(text, width > 1, d).text)
        if extent < width:
            out = [self.part(out[0], REGISTER[d], width, 0, extent)]
            width = extent
        self.lanes = 1
        return width, out

    def part(self, text: str, ty: str, width: int, first: int, count: int) -> str:
        """Lanes first .. first + count - 1 of a vector."""
        if count == 1:
            return self.op(f"extractelement <{width} x {ty}> {text}, i64 {first}")
        order = ", ".join(f"i32 {first + k}" for k in range(count))
        return self.op(f"shufflevector <{width} x {ty}> {text}, <{width} x {ty}> poison, <{count} x i32> <{order}>")

    def _fold_step(self, s: Fold, parts: list[tuple[int, list[str]]], dtypes: list[DType], h: int
                   ) -> list[tuple[int, list[str]]]:
        """Lanes 0 .. h - 1 from lanes 0 .. 2*h - 1."""
        widths = {w for w, _ in parts}
        if len(widths) > 1:  # registers used at different widths: meet at the least
            least = min(widths)
            parts = [self._narrower(p, REGISTER[d], least) for p, d in zip(parts, dtypes, strict=True)]
        width = parts[0][0]
        if h < width:
            halves = [tuple([self.part(t[0], REGISTER[d], width, first, h)] for first in (0, h))
                      for (_, t), d in zip(parts, dtypes, strict=True)]
            width = h
        else:
            n = h // width
            halves = [(t[:n], t[n:2 * n]) for _, t in parts]
        out: list[tuple[int, list[str]]] = [(width, []) for _ in parts]
        self.lanes = width
        for k in range(len(halves[0][0])):
            self.memo = {}
            for a, b, (x, y) in zip(s.left, s.right, halves, strict=True):
                self.env[a], self.env[b] = Val(x[k], width > 1), Val(y[k], width > 1)
            for (_, texts), e, d in zip(out, s.values, dtypes, strict=True):
                v = self.value(e)
                texts.append(self.splat(v, REGISTER[d]) if width > 1 else v.text)
        self.lanes = 1
        return out

    def _narrower(self, part: tuple[int, list[str]], ty: str, width: int) -> tuple[int, list[str]]:
        old, texts = part
        if old == width:
            return part
        return width, [self.part(t, ty, old, k, width) for t in texts for k in range(0, old, width)]

    # -- working memory

    def _alloc(self, s: Alloc) -> None:
        ty = MEMORY[s.dtype]
        if s.space == "shared" and self.target.grid is not None:
            self._shared(s, ty)
            return
        size = whole_lines(s)
        bytes_ = size * s.dtype.bytes
        if static_stack(s):
            pointer = self.fresh("mem")
            self.level[pointer] = 0
            self.entry.append(f"  {pointer} = alloca [{size} x {ty}], align {ALIGN}")
        elif self.target.grid is not None:
            raise UnsupportedError("C126", f"working memory of {s.size} elements per thread is too much for a GPU",
                                   cure="lower the graph for a GPU with the buffer in the arena")
        elif s.name in self.per_call:
            pointer = self.per_call[s.name]
        else:
            saved = self.intrinsic("stacksave", "ptr", overloads=("ptr",), effect=True)
            pointer, block = self._allocate(bytes_)
            self.releases.append((saved, block))
        self.mems[s.name] = Mem(pointer, "ptr", s.dtype, s.dtype.bytes, epoch=self._next_epoch(s.name), whole=True)
        self.roomy = True

    def _next_epoch(self, name: str) -> int:
        old = self.mems.get(name)
        return 0 if old is None else old.epoch + 1

    def _shared(self, s: Alloc, ty: str) -> None:
        if not isinstance(s.size, int):
            raise UnsupportedError("C127", f"shared memory of {s.size} elements has no static size",
                                   cure="use a fixed tile")
        name = f"@{self.lines[0].split('@', 1)[1].split('(', 1)[0]}.{s.name}"
        line = f"{name} = internal addrspace(3) global [{s.size} x {ty}] undef, align {ALIGN}"
        if line not in self.module.head:
            self.module.head.append(line)
        self.mems[s.name] = Mem(name, self.target.pointers["shared"], s.dtype, s.dtype.bytes,
                                epoch=self._next_epoch(s.name))

    def _allocate(self, bytes_: DimLike) -> tuple[str, str]:
        """Aligned memory of a size known when the kernel runs, and what to give to free (null for the stack)."""
        n = self.size(bytes_)

        def heap() -> str:
            padded = self.add(n, ALIGN)
            got = self.here(f"call ptr {self.module.declare('malloc', 'ptr (i64)')}(i64 {padded})")
            with self.branch(self.op(f"icmp eq ptr {got}, null")):
                self.intrinsic("trap", "void", overloads=(), effect=True)
            return got

        def aligned(block: str) -> str:
            address = self.op(f"ptrtoint ptr {block} to i64")
            skip = self.op(f"and i64 {self.op(f'sub i64 0, {address}')}, {ALIGN - 1}")
            return self.op(f"getelementptr i8, ptr {block}, i64 {skip}")

        if isinstance(n, int) and n > STACK:
            block = heap()
            return aligned(block), block
        small = self.op(f"icmp sle i64 {n}, {STACK}")
        room = self.op(f"select i1 {small}, i64 {n}, i64 0")
        stack = self.here(f"alloca i8, i64 {room}, align {ALIGN}")
        block = self.choose(self.op(f"xor i1 {small}, true"), "ptr", heap, "null")
        return self.op(f"select i1 {small}, ptr {stack}, ptr {aligned(block)}"), block

    def _release(self, blocks: Sequence[str]) -> None:
        for block in blocks:
            self.raw(f"call void {self.module.declare('free', 'void (ptr)')}(ptr {block})")


def _folded_by(s: Fold) -> str | None:
    """The instruction that joins the two halves of the registers that are folded, if that is all that is done."""
    if len(s.accs) != 1:
        return None
    value, names = s.values[0], (s.left[0], s.right[0])
    plain = len(value.args) == 2 and all(x.op == "ref" and x.attr == (n, ()) for x, n in
                                         zip(value.args, names, strict=True))
    return value.op if plain else None


def static_stack(s: Alloc) -> bool:
    """Is the memory one stack slot for the whole call?"""
    return isinstance(s.size, int) and s.size * s.dtype.bytes <= STACK


def whole_lines(s: Alloc) -> DimLike:
    """The elements of working memory that is as long as whole registers."""
    unit = ALIGN // s.dtype.bytes
    return -(-max(s.size, 1) // unit) * unit if isinstance(s.size, int) else s.size + unit


_STATEMENTS: dict[type, Callable[[Emitter, Any], None]] = {
    Let: Emitter._let, Acc: Emitter._acc, Set: Emitter._set, Store: Emitter._store, Fold: Emitter._fold,
    Alloc: Emitter._alloc, If: Emitter.branch_if, Barrier: Emitter._barrier, Loop: Emitter.run_loop}

# statements that may be done together with those that follow: how many were
_TOGETHER: dict[type, Callable[[Emitter, Sequence[Stmt], int], int]] = {
    Fold: Emitter._fold_together, Acc: Emitter._tile, Loop: Emitter._nest, If: Emitter._nest}


def _register_widths(body: Sequence[Stmt], survey: Survey) -> dict[str, int]:
    """For each Acc, the lanes of the vector loops that walk it: its elements are grouped so."""
    out: dict[str, int] = {}
    for s, _ in survey.all(body):
        if isinstance(s, Loop) and s.kind == "vector" and s.width > 1:
            for name in survey.traits(s).registers:
                out[name] = max(out.get(name, 1), _width(s))
    return out


def _width(s: Loop) -> int:
    width = 1 << max(0, s.width.bit_length() - 1)
    if isinstance(s.extent, int):
        while width > 1 and width // 2 >= s.extent:
            width //= 2
    return width
