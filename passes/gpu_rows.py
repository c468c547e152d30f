"""Rows on a GPU: a point of the parallel space is a block whose threads share the vector loops.

Here: turning the body of one point into code for all threads of a block.  Not here: what strategies share
(gpu_space.py), the others (gpu.py).  Read next: gpu_contract.py.

Every thread runs the scalar statements; all threads come to the same values, and only thread 0 stores.  The iterations
of a vector loop are dealt to the threads: iteration i belongs to thread i mod T.  Registers indexed by such a loop are
then one register per thread.  Memory that one thread writes and another reads - working memory, which becomes shared
memory, and results that are read again - is put in order by barriers: one stands before every statement that touches
what another thread may have touched since the last one.  Places whose position tells the thread (its remainder by the
number of threads, up to an offset of the block) are not another thread's, and need none.

A Fold goes through shared memory in steps of eight: a thread combines the eight values l, l + q, ..., l + 7*q, which
are three levels of the tree; at eight or fewer values every thread finishes the tree for itself, so that no broadcast
is needed.  The pairs are those of the Fold, hence the bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flowc.dataclass import replace
from flowc.dims import Dim, DimLike, ceildiv, dmin, linear, sym, symbols
from flowc.kernel import (
    LANES,
    Acc,
    Alloc,
    Barrier,
    Buffer,
    Builder,
    Expr,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Stmt,
    Store,
    expressions,
    walk,
)
from flowc.passes.gpu_space import (
    SCRATCH_BLOCKS,
    SHARED_BYTES,
    Bound,
    Names,
    Space,
    Unsuitable,
    accesses,
    decode,
    guarded,
    move_out,
    small,
)
from flowc.passes.rewriting import map_exprs
from flowc.proofs import bounds
from flowc.types import DType

RADIX = 8        # values one thread combines in one step of a Fold
FEW = 8          # iterations of vector loops that are not worth a block
SHARED = ("vector", "parallel")  # kinds of loops whose iterations the threads share


def bind_rows(kernel: Kernel, space: Space) -> Bound:
    """One block per point.  Unsuitable where no vector loop is worth sharing or a register cannot be dealt out."""
    names = Names.of(kernel)
    threads = _threads(space)
    local = [s for s in walk(space.body) if isinstance(s, Alloc)]
    sizes = [s.size * s.dtype.bytes for s in local]
    total = sum(n for n in sizes if isinstance(n, int))
    large = [s for s, n in zip(local, sizes, strict=True) if not small(n, SHARED_BYTES) or total > SHARED_BYTES]
    body: Sequence[Stmt] = space.body
    scratch: list[Buffer] = []
    loops: list[Loop] = [replace(v, kind="block") for v in space.loops]
    thread = names.fresh("t")
    if not large:
        fixed = {*kernel.dims, *(v.var for v in loops)}
        code = _Rows(names, thread, threads, space, {s.name for s in local}, fixed)
        inner: tuple[Stmt, ...] = tuple(code.run(body))
    else:  # several points share a scratch area: blocks walk points
        block, turn, points = names.fresh("b"), names.fresh("s"), space.points
        blocks = dmin(points, SCRATCH_BLOCKS)
        body, scratch = move_out(kernel, body, large, sym(block), blocks, names)
        at = blocks * sym(turn) + sym(block)
        ranges = {**space.ranges, block: (0, blocks - 1), turn: (0, ceildiv(points, blocks) - 1)}
        steps = guarded(at, points, (*decode(space.loops, at, ranges), *body), ranges)
        code = _Rows(names, thread, threads, space, {s.name for s in local if s not in large}, {*kernel.dims, block})
        inner = tuple(code.run((Loop(turn, ceildiv(points, blocks), "seq", steps),)))
        loops = [Loop(block, blocks, "block", ())]
    loops = loops or [Loop(names.fresh("b"), 1, "block", ())]
    out: tuple[Stmt, ...] = (*code.allocs, Loop(thread, threads, "thread", inner))
    for v in reversed(loops):
        out = (replace(v, body=out),)
    return Bound(replace(kernel, params=(*kernel.params, *scratch), body=out,
                         notes=(*kernel.notes, f"gpu rows: a block of {threads} threads per parallel iteration")),
                 tuple(scratch))


def _threads(space: Space) -> int:
    """As many threads as the widest loop that they share has iterations, 32 to LANES."""
    most = 0
    for s in _shared_loops(space.body):
        high = bounds(s.extent, space.ranges)[1]
        most = max(most, LANES if high is None else high)
    if most <= FEW:
        raise Unsuitable("no loop that is worth a block")
    return 32 if most <= 32 else LANES


def _shared_loops(stmts: Iterable[Stmt]) -> Iterable[Loop]:
    """Outermost vector and parallel loops."""
    for s in stmts:
        if isinstance(s, Loop) and s.kind in SHARED:
            yield s
        elif isinstance(s, Loop):
            yield from _shared_loops(s.body)
        elif isinstance(s, If):
            yield from _shared_loops((*s.then, *s.other))


Owner = DimLike | None        # what tells the thread of a place; None: any thread
Event = tuple[str, Owner]
FIRST: Owner = -1             # thread 0


class _Dirty:
    """Accesses since the last barrier: (buffer, owner)."""

    def __init__(self, reads: Iterable[Event] = (), writes: Iterable[Event] = ()):
        self.reads, self.writes = set(reads), set(writes)

    def copy(self) -> _Dirty:
        return _Dirty(self.reads, self.writes)

    def join(self, other: _Dirty) -> None:
        self.reads |= other.reads
        self.writes |= other.writes

    def conflict(self, new: _Dirty) -> bool:
        return (_meet(new.reads, self.writes) or _meet(new.writes, self.writes) or _meet(new.writes, self.reads))


def _meet(a: Iterable[Event], b: Iterable[Event]) -> bool:
    """May two threads touch one place?"""
    return any(x == y and not (p is not None and p == q) for x, p in a for y, q in b)


def _owner(index: DimLike, var: str, threads: int, fixed: set[str]) -> Owner:
    """The owner of place ``index`` in a shared loop over ``var``: thread t if index - owner is t modulo the number of
    threads, with an owner that is fixed for the block."""
    split = linear(index, var)
    if split is None or split[0] != 1:
        return None
    rest = split[1]
    left: DimLike = sum((Dim(((mono, c % threads),)) if mono else c % threads
                         for mono, c in (rest.terms if isinstance(rest, Dim) else (((), rest),)) if c % threads), 0)
    return left if symbols(left) <= fixed else None


class _Rows:
    """Code of one block.  ``allocs``: its shared memory."""

    def __init__(self, names: Names, thread: str, threads: int, space: Space, working: set[str], fixed: set[str]):
        self.names, self.t, self.threads, self.working, self.fixed = names, sym(thread), threads, working, fixed
        self.ranges = {**space.ranges, thread: (0, threads - 1)}
        self.b = Builder()
        self.allocs: list[Alloc] = []
        self.dirty = _Dirty()
        self.written = {name for name, _, write in accesses(space.body) if write} | working
        self.lanes = _lane_registers(space.body, threads, self.ranges)
        self.buffers: dict[int, list[str]] = {}  # of Folds

    # -- statements that every thread runs

    def run(self, stmts: Sequence[Stmt]) -> list[Stmt]:
        out: list[Stmt] = []
        for s in stmts:
            out.extend(self.statement(s))
        return out

    def statement(self, s: Stmt) -> list[Stmt]:
        if isinstance(s, Alloc) and s.name in self.working:
            if all(a.name != s.name for a in self.allocs):
                self.allocs.append(replace(s, space="shared"))
            return []
        if isinstance(s, Loop):
            if s.kind in SHARED:
                return self.order(s) + self.deal(s)
            return self.repeat(s)
        if isinstance(s, If):
            return self.choose(s)
        if isinstance(s, Fold):
            return self.fold(s)
        if isinstance(s, Acc) and s.name in self.lanes:
            return [*self.order(s), replace(s, shape=s.shape[:-1])]
        if isinstance(s, Store):
            first = self.b.eq(self.b.index(self.t), 0)
            return [*self.order(s), replace(s, where=first if s.where is None else self.b.and_(first, s.where))]
        return [*self.order(s), s]

    def order(self, s: Stmt) -> list[Stmt]:
        """A barrier if the statement touches what another thread may have touched; notes what it touches."""
        new = _Dirty()
        for name, index, write in accesses((s,)):
            if name in self.written:
                shared = isinstance(s, Loop)
                owner = _owner(index, s.var, self.threads, self.fixed) if isinstance(s, Loop) else None
                (new.writes if write else new.reads).add((name, FIRST if write and not shared else owner))
        return self.note(new)

    def note(self, new: _Dirty) -> list[Stmt]:
        out: list[Stmt] = []
        if self.dirty.conflict(new):
            out.append(Barrier())
            self.dirty = _Dirty()
        self.dirty.join(new)
        return out

    def repeat(self, s: Loop) -> list[Stmt]:
        """A loop that all threads run together.  What one round leaves touched meets the next one."""
        old = self.ranges.get(s.var)
        self.ranges[s.var] = (0, s.extent - 1)
        start = self.dirty.copy()
        self.run(s.body)
        self.dirty.join(start)
        start = self.dirty.copy()
        body = self.run(s.body)
        self.dirty.join(start)  # the loop may run zero times
        if old is None:
            del self.ranges[s.var]
        else:
            self.ranges[s.var] = old
        return [replace(s, body=tuple(body))]

    def choose(self, s: If) -> list[Stmt]:
        head = self.order(If(s.cond, ()))
        start = self.dirty.copy()
        then = self.run(s.then)
        after, self.dirty = self.dirty, start.copy()
        other = self.run(s.other)
        self.dirty.join(after)
        self.dirty.join(start)
        return [*head, If(s.cond, tuple(then), tuple(other))]

    # -- loops whose iterations the threads share

    def deal(self, s: Loop) -> list[Stmt]:
        body = self.private(s)
        high = bounds(s.extent, self.ranges)[1]
        if high is not None and high <= self.threads:
            return list(guarded(self.t, s.extent, (self.index(s, self.t), *body), self.ranges))
        turn = self.names.fresh("s")
        turns = ceildiv(s.extent, self.threads)
        at = self.threads * sym(turn) + self.t
        inner = guarded(at, s.extent, (self.index(s, at), *body), {**self.ranges, turn: (0, turns - 1)})
        return [Loop(turn, turns, "seq", inner)]

    def index(self, s: Loop, at: DimLike) -> Let:
        return Let(s.var, self.b.index(at), (0, s.extent - 1))

    def private(self, s: Loop) -> tuple[Stmt, ...]:
        """The body of a shared loop: registers that are dealt out lose their last index."""
        for x in walk(s.body):
            if isinstance(x, Alloc) and not small(x.size * x.dtype.bytes, 1 << 10):
                raise Unsuitable("large working memory inside a shared loop")
            if isinstance(x, Alloc) and x.name in self.working:
                raise Unsuitable("working memory inside a shared loop")

        def expr(e: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if e.op == "ref" and e.attr[0] in self.lanes:
                return Expr("ref", (), e.dtype, (e.attr[0], e.attr[1][:-1]))
            return None

        def stmt(x: Stmt) -> Stmt:
            if isinstance(x, Set) and x.name in self.lanes:
                return replace(x, index=x.index[:-1])
            if isinstance(x, Loop):
                return replace(x, body=tuple(map(stmt, x.body)))
            if isinstance(x, If):
                return replace(x, then=tuple(map(stmt, x.then)), other=tuple(map(stmt, x.other)))
            return x
        return tuple(map(stmt, map_exprs(s.body, expr)))

    # -- folds

    def fold(self, s: Fold) -> list[Stmt]:
        dealt = [a in self.lanes for a in s.accs]
        if not any(dealt):
            return [s]  # registers that every thread has whole
        if not all(dealt):
            raise Unsuitable("a Fold of registers of lanes and of all threads")
        dtypes = [self.lanes[a] for a in s.accs]
        shared = self.fold_buffers(s, dtypes)
        out = self.note(_Dirty(writes=((m, 0) for m in shared)))  # place t is thread t's
        mine = self.b.lt(self.b.index(self.t), self.b.index(s.extent)) if s.extent < self.threads else None
        out += [Store(m, self.t, self.b.ref(a, d), mine) for m, a, d in zip(shared, s.accs, dtypes, strict=True)]
        out.append(Barrier())
        width = s.extent
        while width > RADIX:
            width //= RADIX
            values = [[self.b.load(m, self.t + width * k, d) for m, d in zip(shared, dtypes, strict=True)]
                      for k in range(RADIX)]
            steps, result = self.tree(s, values)
            steps += [Store(m, self.t, v) for m, v in zip(shared, result, strict=True)]
            out += guarded(self.t, width, steps, self.ranges)
            out.append(Barrier())
        values = [[self.b.load(m, k, d) for m, d in zip(shared, dtypes, strict=True)] for k in range(width)]
        steps, result = self.tree(s, values)
        out += steps
        out += [Let(n, v) for n, v in zip(s.names, result, strict=True)]
        self.dirty = _Dirty(reads=((m, None) for m in shared))
        return out

    def fold_buffers(self, s: Fold, dtypes: Sequence[DType]) -> list[str]:
        """One shared array per register; the same ones each time this Fold is met."""
        if id(s) not in self.buffers:
            names = [self.names.fresh("f") for _ in dtypes]
            self.allocs += [Alloc(n, d, s.extent, "shared") for n, d in zip(names, dtypes, strict=True)]
            self.buffers[id(s)] = names
        return self.buffers[id(s)]

    def tree(self, s: Fold, values: Sequence[Sequence[Expr]]) -> tuple[list[Stmt], Sequence[Expr]]:
        """Bindings that combine the states pairwise, l with l + h, and the state that is left."""
        steps: list[Stmt] = []

        def bound(values: Sequence[Expr]) -> list[Expr]:
            refs = []
            for v in values:
                name = self.names.fresh("v")
                steps.append(Let(name, v))
                refs.append(self.b.ref(name, v.dtype))
            return refs
        states = [bound(v) for v in values]
        while len(states) > 1:
            h = len(states) // 2
            merged = []
            for x, y in zip(states[:h], states[h:], strict=True):
                known = dict(zip((*s.left, *s.right), (*x, *y), strict=True))
                merged.append(bound([_substituted(e, known) for e in s.values]))
            states = merged
        return steps, states[0]


def _substituted(e: Expr, known: Mapping[str, Expr]) -> Expr:
    """The expression with names replaced by values."""
    (out,) = map_exprs((Let("", e),), lambda x, args: known.get(x.attr[0]) if x.op == "ref" else None)
    assert isinstance(out, Let)
    return out.value


def _lane_registers(body: Sequence[Stmt], threads: int, ranges: Mapping) -> dict[str, DType]:
    """Registers of which each thread holds one lane: dtype by name.

    Their last index must be the variable of a shared loop wherever they are used in one; outside they may only be
    declared and folded.  Unsuitable where a register is used in both ways.
    """
    accs = {s.name: s for s in _outside(body) if isinstance(s, Acc) and s.shape}
    dealt: set[str] = set()
    for loop in _shared_loops(body):
        inside = {s.name for s in walk(loop.body) if isinstance(s, Acc)}
        for name, index in _register_uses(loop.body):
            if name in inside or name not in accs:
                if name in {s.name for s in _outside(body) if isinstance(s, Acc)} and _sets(loop.body, name):
                    raise Unsuitable(f"iterations of a shared loop write the same register {name}")
                continue
            if not index or loop.var not in symbols(index[-1]):
                if _sets(loop.body, name):
                    raise Unsuitable(f"iterations of a shared loop write register {name} elsewhere")
                continue
            high = bounds(loop.extent, ranges)[1]
            if index[-1] != sym(loop.var) or high is None or high > threads or accs[name].shape[-1] > threads:
                raise Unsuitable(f"register {name} is not indexed by a lane")
            dealt.add(name)
    for name, _ in _register_uses([s for s in _outside(body) if not isinstance(s, Fold)], deep=False):
        if name in dealt:
            raise Unsuitable(f"register {name} is used by all threads and by lanes")
    for loop in _shared_loops(body):
        for name, index in _register_uses(loop.body):
            if name in dealt and (not index or index[-1] != sym(loop.var)):
                raise Unsuitable(f"register {name} is used by all threads and by lanes")
    return {n: accs[n].dtype for n in dealt}


def _outside(stmts: Iterable[Stmt]) -> Iterable[Stmt]:
    """Every statement that is not inside a shared loop."""
    for s in stmts:
        if isinstance(s, Loop) and s.kind in SHARED:
            continue
        yield s
        if isinstance(s, Loop):
            yield from _outside(s.body)
        elif isinstance(s, If):
            yield from _outside((*s.then, *s.other))


def _sets(stmts: Iterable[Stmt], name: str) -> bool:
    return any(isinstance(s, Set) and s.name == name for s in walk(stmts))


def _register_uses(stmts: Iterable[Stmt], deep: bool = True) -> Iterable[tuple[str, tuple[DimLike, ...]]]:
    """(name, index) of every use of a register or binding."""
    for s in walk(stmts) if deep else stmts:
        if isinstance(s, Set):
            yield s.name, s.index
        seen: set[int] = set()
        stack = list(expressions(s))
        while stack:
            x = stack.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if x.op == "ref":
                yield x.attr[0], x.attr[1]
            stack.extend(x.args)
