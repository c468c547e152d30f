"""Loops: in order, unrolled, shared by threads, as lanes of vectors, over blocks and threads of a GPU.

Here: what each kind of loop becomes.  Not here: the other statements (emit.py), instructions (emit_expr.py).
Read next: emit.py.

A vector loop runs whole vectors, then one masked vector for what is left; where the body is large, every vector runs
under a mask so that the body is written once.  A body that cannot run as lanes runs element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from flowc.backends.llvm.emit_ahead import Ahead
from flowc.backends.llvm.emit_code import Val
from flowc.backends.llvm.emit_expr import Values
from flowc.backends.llvm.emit_interleave import in_blocks, remainder, straight, turned
from flowc.backends.llvm.emit_shifted import beside
from flowc.diag import UnsupportedError
from flowc.dims import DimLike, prod, symbols
from flowc.kernel import (
    Alloc,
    Barrier,
    If,
    Kernel,
    Loop,
    Stmt,
    walk,
)

UNROLL = 8          # whole vectors of a static extent written one after the other, at most
UNROLL_SETS = 64    # the same where the loop walks registers, which must have constant indices
LARGE = 100         # instructions of a body that is not written twice where masks are cheap
MASKED_COST = 6     # how many times larger it must be where they are not


def nest_of(loop: Loop, kind: str) -> tuple[list[Loop], tuple[Stmt, ...]]:
    """Directly nested loops of one kind that form one index space, outermost first, and the innermost body."""
    loops = [loop]
    while len(loops[-1].body) == 1:
        inner = loops[-1].body[0]
        if not isinstance(inner, Loop) or inner.kind != kind or symbols(inner.extent) & {v.var for v in loops}:
            break
        loops.append(inner)
    return loops, loops[-1].body


def threads_of(kernel: Kernel) -> int:
    """Threads per block of a kernel: the largest space of its thread loops; 1 without any."""
    best = 1
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.kind == "thread":
            best = max(best, thread_space(s))
    return best


def thread_space(loop: Loop) -> int:
    size = prod(v.extent for v in nest_of(loop, "thread")[0])
    if not isinstance(size, int):
        raise UnsupportedError("C122", f"a loop over threads needs a static extent, not {size}",
                               cure="cut the loop into blocks of a fixed size")
    return size


def blocks_of(kernel: Kernel) -> DimLike:
    """Iterations of the outermost block loops: how many blocks are worth launching.  Fewer also work."""
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.kind == "block":
            return prod(v.extent for v in nest_of(s, "block")[0])
    return 1


def _other_form(s: Loop) -> Loop | tuple[Loop, Loop] | None:
    return turned(s) or in_blocks(s)


class Loops(Values):
    """Emits loops; ``run(stmts)`` and the registers of the kernel come from the layer above."""

    chunked: Loop | None = None      # the parallel nest that the caller's chunk arguments share out
    threads: int = 1                 # threads per block
    ahead: Ahead | None = None       # what loops fetch before it is asked for
    calls = 0                        # of functions that kernels share
    busy = False                     # does it do more than to call them?

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.ways: dict[tuple[int, bool], Callable[[], None]] = {}  # of loops, inside of lanes and not

    def forget(self) -> None:
        super().forget()
        self.ways.clear()

    def run(self, stmts: Sequence[Stmt]) -> None:
        raise TypeError("abstract")

    def run_columns(self, s: Loop) -> None:
        raise TypeError("abstract")

    # -- dispatch

    def other_form(self, s: Loop) -> Loop | tuple[Loop, Loop] | None:
        """The loop, or two that run one after the other, which is better written out instead of ``s``."""
        return self.survey.form(s, _other_form)

    def run_loop(self, s: Loop) -> None:
        key = id(s), self.lanes > 1
        way = self.ways.get(key)
        if way is None:
            way = self.ways[key] = self._way(s)
        way()

    def _way(self, s: Loop) -> Callable[[], None]:
        """How a loop runs, inside or outside of lanes: found once, as copies of an unrolled loop ask again."""
        if s is self.chunked:
            return partial(self._parallel, s)
        if self.target.vectors and self.lanes == 1:  # another form may be better
            other = self.other_form(s)
            if isinstance(other, Loop):
                return self._vector_way(other)
            if other is not None:
                return partial(self._in_order, other)
        if s.kind == "vector":
            return self._vector_way(s)
        if s.kind == "unroll":
            return partial(self.run_columns if self.lanes > 1 and straight(s.body) else self.unrolled, s)
        on_grid = self.target.grid is not None and {"block": self._blocks, "thread": self._threads}.get(s.kind)
        return partial(on_grid or self._sequential, s)

    def _in_order(self, loops: Iterable[Loop]) -> None:
        for s in loops:
            self._sequential(s)

    def enter(self, stmts: Sequence[Stmt]) -> None:
        """Before a loop body: what it writes is no longer known from before."""
        for name in self.survey.written(stmts):
            if name in self.mems:
                self.mems[name].epoch += 1

    def bind(self, var: str, value: str | int, extent: DimLike) -> None:
        self.env[var] = Val(str(value), False, value if isinstance(value, int) else None)
        self.ranges[var] = (0, extent - 1)

    def _sequential(self, s: Loop) -> None:
        extent = self.size(s.extent)
        if isinstance(extent, int) and extent <= 0:
            return
        calls = self.calls
        self.enter(s.body)
        with self.loop(0, extent) as i:
            self.bind(s.var, i, s.extent)
            if self.ahead is not None and self.lanes > 1:
                self.ahead.fetch(self, s)
            self.run(s.body)
        self.enter(s.body)
        self.busy |= self.calls == calls

    def unrolled(self, s: Loop) -> None:
        if not isinstance(s.extent, int):
            raise UnsupportedError("C123", f"a loop of kind unroll needs a static extent, not {s.extent}",
                                   cure="use a loop of kind seq")
        for k in range(s.extent):
            self.bind(s.var, k, s.extent)
            self.run(s.body)

    # -- shared by threads of the CPU

    def _parallel(self, s: Loop) -> None:
        """Iterations total*chunk/nchunks .. total*(chunk+1)/nchunks of the nest's single space."""
        loops, body = nest_of(s, "parallel")
        extents = [self.size(v.extent) for v in loops]
        total: str | int = 1
        for e in extents:
            total = self.mul(total, e)
        lo = self.op(f"udiv i64 {self.op(f'mul i64 %chunk, {total}')}, %nchunks")
        last = self.op("add i64 %chunk, 1")
        hi = self.op(f"udiv i64 {self.op(f'mul i64 {last}, {total}')}, %nchunks")
        with self.branch(self.op(f"icmp slt i64 {lo}, {hi}")):
            self.enter(body)
            self._walk(loops, extents, body, lo, hi)

    def _walk(self, loops: Sequence[Loop], extents: Sequence[str | int], body: Sequence[Stmt], lo: str, hi: str
              ) -> None:
        """Iterations lo .. hi - 1 of a nest: the variables count like an odometer."""
        first = self._decode(lo, extents)
        scope = self.begin_scope(False)
        before, head, done = self.block, self.label("body"), self.label("done")
        self.br(head)
        self.begin(head)
        at, lines = len(self.lines), self.lines
        names = [self.fresh("i") for _ in loops]
        starts = list(first)
        if len(loops) > 1:  # the place in the whole space; that of a single loop is its variable
            names.insert(0, self.fresh("n"))
            starts.insert(0, lo)
        for _ in names:
            self.raw("")
        self.enter_scope(scope, *names)
        for v, name in zip(loops, names[-len(loops):], strict=True):
            self.bind(v.var, name, v.extent)
        self.run(body)
        following = self._count_up(names[-len(loops):], extents)
        if len(loops) > 1:
            following.insert(0, self.here(f"add nsw i64 {names[0]}, 1"))
        again = self.here(f"icmp slt i64 {following[0]}, {hi}")
        for k, (name, start, step) in enumerate(zip(names, starts, following, strict=True)):
            lines[at + k] = f"  {name} = phi i64 [ {start}, %{before} ], [ {step}, %{self.block} ]"
        self.cond_br(again, head, done)
        self.end_scope()
        self.begin(done)

    def _decode(self, at: str, extents: Sequence[str | int]) -> list[str]:
        """The variables of a nest at a position of its space; every extent is positive here."""
        out: list[str] = []
        for e in reversed(extents[1:]):
            if e == 1:
                out.append("0")
                continue
            out.append(self.here(f"urem i64 {at}, {e}"))
            at = self.here(f"udiv i64 {at}, {e}")
        return [at, *reversed(out)]

    def _count_up(self, names: Sequence[str], extents: Sequence[str | int]) -> list[str]:
        out: list[str] = []
        carry = "1"
        for k in range(len(names) - 1, -1, -1):
            step = self.here(f"add i64 {names[k]}, {carry}")
            if k:
                full = self.here(f"icmp eq i64 {step}, {extents[k]}")
                carry = self.here(f"zext i1 {full} to i64")
                step = self.here(f"select i1 {full}, i64 0, i64 {step}")
            out.append(step)
        return list(reversed(out))

    # -- lanes

    def _vector_way(self, s: Loop) -> Callable[[], None]:
        width, extent = 1 << max(0, s.width.bit_length() - 1), s.extent
        if isinstance(extent, int):
            while width > 1 and width // 2 >= extent:
                width //= 2
        if not self.target.vectors or width == 1 or self.lanes > 1 or not self.survey.traits(s).lanes:
            sets = isinstance(extent, int) and extent <= UNROLL_SETS and self.survey.traits(s).sets
            return partial(self.unrolled if sets else self._sequential, s)
        if not isinstance(extent, int):
            return partial(self._dynamic_vectors, s, width)
        traits, (full, rest) = self.survey.traits(s), divmod(extent, width)
        if traits.sets:  # worth it unless the work hides what memory costs
            most = UNROLL_SETS if traits.size <= 4 * LARGE else 1
        else:
            most = UNROLL if full * traits.size <= LARGE or traits.size <= LARGE and not traits.plain else 1
        mask = f"<{', '.join(f'i1 {int(k < rest)}' for k in range(width))}>" if rest else None
        return partial(self._static_vectors, s, width, full * width, full <= most, mask)

    def _static_vectors(self, s: Loop, width: int, end: int, unrolled: bool, mask: str | None) -> None:
        """Whole vectors up to ``end``, and those lanes of one more that ``mask`` has."""
        if unrolled:
            for base in range(0, end, width):
                self.as_vector(s, width, base, None)
        else:
            self._vector_loop(s, width, 0, end, sure=True)
        if mask is not None:
            self.as_vector(s, width, end, mask)

    def _vector_loop(self, s: Loop, width: int, lo: str | int, hi: str | int, sure: bool = False) -> None:
        self.enter(s.body)
        with self.loop(lo, hi, width, sure=sure) as base:
            self.as_vector(s, width, base, None)
        self.enter(s.body)

    def _dynamic_vectors(self, s: Loop, width: int) -> None:
        n = self.size(s.extent)
        if remainder(s.extent, width) == 0:
            self._vector_loop(s, width, 0, n)
            return
        if self.survey.traits(s).size > (LARGE if self.target.masks else LARGE * MASKED_COST):
            self.enter(s.body)
            with self.loop(0, n, width) as base:
                self.as_vector(s, width, base, self.left_mask(self.sub(n, base), width))
            self.enter(s.body)
            return
        with self.index_arithmetic():
            end = self.op(f"and i64 {n}, {-width}")
            left = self.sub(n, end)
        self._vector_loop(s, width, 0, end)
        with self.branch(self.op(f"icmp sgt i64 {left}, 0")):
            self.as_vector(s, width, end, self.left_mask(left, width))

    def left_mask(self, left: str | int, width: int) -> str:
        """The first ``left`` of ``width`` lanes, at least one; all of them if ``left`` is larger."""
        self.lanes = width
        low = self.intrinsic("smin", "i64", f"i64 {left}", f"i64 {width}")
        if self.target.masks and 8 <= width <= 64:  # lanes are bits there, and comparing them keeps a multiplier busy
            bits = self.op(f"lshr i64 -1, {self.op(f'sub i64 64, {low}')}")
            bits = bits if width == 64 else self.op(f"trunc i64 {bits} to i{width}")
            mask = self.op(f"bitcast i{width} {bits} to {self.vec('i1')}")
            self.lanes = 1
            return mask
        small = self.op(f"trunc i64 {low} to i32")
        mask = self.op(f"icmp slt {self.vec('i32')} {self.iota('i32')}, {self.splat(Val(small), 'i32')}")
        self.lanes = 1
        return mask

    def as_vector(self, s: Loop, width: int, base: str | int, mask: str | None) -> None:
        """The body for ``width`` neighbouring iterations from ``base``, a multiple of ``width``."""
        self.busy = True
        near, self.beside = self.beside, beside(self, s, width, mask) if self.roomy else frozenset()
        self.lanes, self.lane_base, self.mask = width, {s.var: base}, mask
        step, last = f"{s.var}.step", s.extent - 1
        self.ranges[s.var], self.ranges[step] = (0, last), (0, last // width)
        if self.ahead is not None:
            self.ahead.fetch(self, s)
        self.run(s.body)
        self.lanes, self.lane_base, self.mask = 1, {}, None
        self.env.pop(step, None)  # what else the body has bound it binds again
        self.beside = near

    # -- GPU

    def _special(self, name: str) -> str:
        """A special register as i64."""
        return self.op(f"zext i32 {self.intrinsic(name, 'i32', overloads=())} to i64")

    def _blocks(self, s: Loop) -> None:
        """Blocks take iterations in turn, so that any number of blocks does the work."""
        grid = self.target.grid
        assert grid is not None
        loops, body = nest_of(s, "block")
        extents = [self.size(v.extent) for v in loops]
        total: str | int = 1
        for e in extents:
            total = self.mul(total, e)
        self.enter(body)
        with self.loop(self._special(grid.block), total, self._special(grid.blocks)) as at:
            for v, x in zip(loops, self._decode(at, extents), strict=True):
                self.bind(v.var, x, v.extent)
            self.run(body)
            if any(isinstance(x, Alloc) and x.space == "shared" for x in walk(body)):
                self.barrier()  # nobody writes the next iteration's values while others still read these
        self.enter(body)

    def _threads(self, s: Loop) -> None:
        grid = self.target.grid
        assert grid is not None
        loops, body = nest_of(s, "thread")
        count = thread_space(s)
        tid = self._special(grid.thread)
        self.enter(body)

        def run() -> None:
            for v, x in zip(loops, self._decode(tid, [v.extent for v in loops]), strict=True):  # type: ignore[misc]
                self.bind(v.var, x, v.extent)
            self.run(body)

        if count == self.threads:
            run()
        else:
            if any(isinstance(x, Barrier) for x in walk(body)):
                raise UnsupportedError("C124", f"a barrier inside a loop over {count} of {self.threads} threads",
                                       cure="give every loop over threads the same extent")
            with self.branch(self.op(f"icmp ult i64 {tid}, {count}")):
                run()
        self.enter(body)

    def barrier(self) -> None:
        grid = self.target.grid
        if grid is None:
            raise UnsupportedError("C125", f"{self.target.name} has no barrier between threads of a block",
                                   cure="lower the graph for this target")
        self.intrinsic(grid.barrier, "void", *grid.barrier_args, overloads=(), effect=True)
        for mem in self.mems.values():
            mem.epoch += 1

    def branch_if(self, s: If) -> None:
        """A condition: a jump where it is the same for all lanes, else masks."""
        self.memo = {}
        cond = self.value(s.cond)
        if cond.constant and not cond.wide:
            self.run(s.then if cond.text == "true" else s.other)
            return
        if not cond.wide:
            self._guarded(cond.text, s.then, self.mask)
            if s.other:
                self._guarded(self.op(f"xor i1 {cond.text}, true"), s.other, self.mask)
            return
        self._masked_block(cond.text, s.then)
        if s.other:
            flipped = self.op(f"xor {self.vec('i1')} {cond.text}, splat (i1 true)")
            self._masked_block(flipped, s.other)

    def _masked_block(self, cond: str, stmts: Sequence[Stmt]) -> None:
        mask = self.both_masks(cond)
        self._guarded(self.any_lane(Val(mask, True)), stmts, mask)

    def _guarded(self, flag: str, stmts: Sequence[Stmt], mask: str | None) -> None:
        saved, env = self.mask, dict(self.env)
        with self.branch(flag):
            self.mask = mask
            self.run(stmts)
            self.mask = saved
        self.env = env
