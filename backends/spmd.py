"""Runs one kernel statement by statement, all parallel iterations at a time: the oracle of emitted code.

Here: ``run_kernel``.  Not here: what instructions mean (meaning.py), plans and graphs (interp.py).
Read next: interp.py.

Iterations of parallel, vector, block and thread loops are lanes: every value is one number or one array with an
element per lane.  Entering such a loop splits each lane into as many as it has iterations; a condition, or a sequential
loop whose extent differs between lanes, goes on with a part of them.  All lanes take a statement before any takes the
next, so threads run in lock step and a barrier needs nothing.  Registers and local memory belong to the lanes that
existed where they were declared, shared memory to the lanes before the thread loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flowc.backends.meaning import NUMPY_MEANING
from flowc.diag import VerifyError
from flowc.dims import DimLike, evaluate, symbols
from flowc.kernel import Acc, Alloc, Barrier, Expr, Fold, If, Kernel, Let, Loop, Set, Stmt, Store
from flowc.text import dim_text, statement_text
from flowc.types import DType

CHUNK = 1 << 18  # lanes that run at a time where iterations are independent
LANE_KINDS = ("parallel", "vector", "block", "thread")
ITERATION_KINDS = ("parallel", "block")


class _Lanes:
    """A set of lanes: ``up[i]`` is the parent's lane that lane i was split or chosen from."""

    __slots__ = ("_maps", "count", "parent", "up")

    def __init__(self, count: int, parent: _Lanes | None = None, up: np.ndarray | None = None):
        self.count, self.parent, self.up = count, parent, up
        self._maps: dict[int, np.ndarray] = {}

    def of(self, home: _Lanes) -> np.ndarray | None:
        """The lane of ``home`` that each lane descends from; None if these are the lanes of ``home``."""
        if home is self:
            return None
        known = self._maps.get(id(home))
        if known is None:
            assert self.parent is not None and self.up is not None, "a value of lanes that are gone"
            above = self.parent.of(home)
            known = self._maps[id(home)] = self.up if above is None else above[self.up]
        return known


class _Memory:
    """A parameter (``home`` None, one row) or an Alloc: a row for each lane of ``home``."""

    __slots__ = ("array", "home", "name", "owner", "size")

    def __init__(self, name: str, array: np.ndarray, home: _Lanes | None):
        self.name, self.array, self.home = name, array, home
        self.size = array.shape[-1]
        self.owner: np.ndarray | None = None  # iteration that wrote each element last


def poison(dtype: DType, shape: Sequence[int]) -> np.ndarray:
    """Memory nothing was written to: NaN in floats, 0xA5 in every byte of integers, true."""
    if dtype.floating or dtype.kind == "c":
        return np.full(shape, np.nan, dtype.numpy)
    if dtype.kind == "b":
        return np.ones(shape, bool)
    return np.full((*shape, dtype.bytes), 0xA5, np.uint8).view(dtype.numpy).reshape(shape)


class _Sizes(dict):
    """Symbols as sizes see them: integers, or one integer per lane."""

    def __init__(self, run: _Run):
        super().__init__()
        self.run = run

    def __missing__(self, name: str) -> Any:
        value = self.run.get(name)
        return int(value) if value.ndim == 0 else value


class _Run:
    def __init__(self, kernel: Kernel, memory: dict[str, _Memory], dims: Mapping[str, int], races: bool):
        self.kernel, self.memory, self.races = kernel, memory, races
        self.lanes = self.root = _Lanes(1)
        self.values: dict[str, tuple[_Lanes, np.ndarray]] = {
            n: (self.root, np.asarray(v, np.int64)) for n, v in dims.items()}
        self.accs: dict[str, tuple[_Lanes, np.ndarray]] = {}
        self.before_threads: _Lanes | None = None
        self.iteration: tuple[_Lanes, np.ndarray] | None = None
        self.iterations = 0
        self.orders: dict[int, list[Expr]] = {}
        self.where_am_i: Stmt | None = None

    # -- values

    def get(self, name: str) -> np.ndarray:
        home, value = self.values[name]
        return self.here(home, value)

    def here(self, home: _Lanes, value: np.ndarray) -> np.ndarray:
        """A value of the lanes of ``home``, for the lanes that run now."""
        if value.ndim == 0:
            return value
        at = self.lanes.of(home)
        return value if at is None else value[at]

    def size(self, d: DimLike) -> Any:
        """A size as an int, or an array where lanes differ."""
        if isinstance(d, int):
            return d
        out = evaluate(d, _Sizes(self))
        return out if isinstance(out, int) or np.ndim(out) else int(out)

    def rows(self, home: _Lanes | None) -> Any:
        """Row of each lane in memory that belongs to ``home``."""
        if home is None or home.count == 1:
            return 0
        at = self.lanes.of(home)
        return np.arange(self.lanes.count) if at is None else at

    def lanewise(self, value: Any) -> np.ndarray:
        """One element per lane."""
        return np.broadcast_to(value, (self.lanes.count,))

    # -- expressions

    def order(self, root: Expr) -> list[Expr]:
        """Every expression below ``root`` once, operands first."""
        known = self.orders.get(id(root))
        if known is None:
            known, seen, stack = [], set(), [(root, False)]
            while stack:
                e, done = stack.pop()
                if done:
                    known.append(e)
                elif id(e) not in seen:
                    seen.add(id(e))
                    stack.append((e, True))
                    stack += [(a, False) for a in e.args]
            self.orders[id(root)] = known
        return known

    def value(self, root: Expr) -> np.ndarray:
        table: dict[int, np.ndarray] = {}
        for e in self.order(root):
            args = [table[id(a)] for a in e.args]
            leaf = _LEAVES.get(e.op)
            if leaf is not None:
                v = leaf(self, e, *args)
            elif e.op in ("cast", "bitcast"):
                v = NUMPY_MEANING[e.op](args[0], e.dtype)
            else:
                v = NUMPY_MEANING[e.op](*args)
            table[id(e)] = np.asarray(v)
        return table[id(root)]

    def const(self, e: Expr) -> np.ndarray:
        return np.asarray(e.attr).astype(e.dtype.numpy)

    def index(self, e: Expr) -> np.ndarray:
        return np.asarray(self.size(e.attr), np.int64)

    def ref(self, e: Expr) -> np.ndarray:
        name, at = e.attr
        if name not in self.accs:
            return self.get(name)
        home, array = self.accs[name]
        return np.asarray(array[self.element(name, home, array, at)])

    def element(self, name: str, home: _Lanes, array: np.ndarray, at: Sequence[DimLike]) -> tuple:
        """Index tuple of an element of an Acc for every lane."""
        places = []
        for axis, d in enumerate(at):
            i = self.size(d)
            self.check(f"{name}, axis {axis},", d, i, array.shape[1 + axis])
            places.append(i)
        rows = self.lanes.of(home)
        return (np.arange(self.lanes.count) if rows is None else rows, *places)

    def load(self, e: Expr, where: np.ndarray | None = None, other: np.ndarray | None = None) -> np.ndarray:
        name, index = e.attr
        m = self.memory[name]
        at, rows = self.size(index), self.rows(m.home)
        if where is None:
            self.check(f"%{name}", index, at, m.size)
            return np.asarray(m.array[rows, at])
        active = self.lanewise(where)
        at = self.lanewise(at)
        self.check(f"%{name}", index, at, m.size, active)
        if not active.any():
            return np.asarray(other)
        safe = np.where(active, at, at[np.argmax(active)])
        return np.asarray(np.where(active, m.array[rows, safe], other))

    def check(self, what: str, index: DimLike, at: Any, size: int, active: np.ndarray | None = None) -> None:
        bad = (at < 0) | (at >= size) if isinstance(at, np.ndarray) else np.asarray(not 0 <= at < size)
        if active is not None:
            bad = bad & active
        if not bad.any():
            return
        lane = int(np.argmax(bad)) if bad.ndim else 0
        place = int(at[lane]) if np.ndim(at) else int(at)
        known = {n: self.lanewise(self.get(n))[lane] for n in sorted(symbols(index))}
        raise VerifyError("V401", f"kernel {self.kernel.name}: {what} is accessed at {dim_text(index)} = {place}, "
                          f"outside 0..{size - 1}", notes=self.notes(known), cure="the kernel is wrong; report it")

    def notes(self, known: Mapping[str, Any] | None = None) -> list[str]:
        """The statement that runs now, and values of names in it."""
        here = [] if self.where_am_i is None else [f"in {statement_text(self.kernel, self.where_am_i)}"]
        return [*here, *(f"{n} = {v}" for n, v in (known or {}).items())]

    # -- statements

    def block(self, stmts: Sequence[Stmt]) -> None:
        for s in stmts:
            self.where_am_i = s
            _STEPS[type(s)](self, s)

    def let(self, s: Let) -> None:
        v = self.value(s.value)
        self.values[s.name] = self.lanes, v
        if s.range is not None:
            lo, hi = self.size(s.range[0]), None if s.range[1] is None else self.size(s.range[1])
            bad = self.lanewise(v < lo) if hi is None else self.lanewise(((v < lo) | (v > hi)) & (np.asarray(lo) <= hi))
            if bad.any():
                raise VerifyError("V402", f"kernel {self.kernel.name}: {s.name} = {self.lanewise(v)[bad][0]} is not in "
                                  "the range it was given", notes=self.notes(), cure="the kernel is wrong; report it")

    def acc(self, s: Acc) -> None:
        init = self.lanewise(self.value(s.init)).reshape((-1,) + (1,) * len(s.shape))
        self.accs[s.name] = self.lanes, np.array(np.broadcast_to(init, (self.lanes.count, *s.shape)))

    def set(self, s: Set) -> None:
        home, array = self.accs[s.name]
        v = self.value(s.value)
        at = self.element(s.name, home, array, s.index)
        if self.races:
            flat = np.ravel_multi_index(tuple(np.broadcast_arrays(*at)), array.shape) if array.size else at[0]
            self.check_duplicates(s.name, flat, self.lanewise(v))
        array[at] = v

    def store(self, s: Store) -> None:
        m = self.memory[s.buffer]
        v, at, rows = self.value(s.value), self.size(s.index), self.rows(m.home)
        active = None if s.where is None else self.lanewise(self.value(s.where))
        self.check(f"%{s.buffer}", s.index, at if active is None else self.lanewise(at), m.size, active)
        if active is not None or self.races:
            keep = slice(None) if active is None else active
            at, rows, v = (self.lanewise(x)[keep] for x in (at, rows, v))
            if self.races:
                self.check_races(m, rows * m.size + at, v, keep)
        elif np.ndim(at) == 0 and np.ndim(rows) == 0 and np.ndim(v):
            v = v[-1] if len(v) else v  # lanes that write one place: the last one wins
        m.array[rows, at] = v

    def check_duplicates(self, name: str, places: np.ndarray, v: np.ndarray) -> None:
        order = np.argsort(places, kind="stable")
        p, w = places[order], v[order]
        same = p[1:] == p[:-1]
        differ = same & ~((w[1:] == w[:-1]) | ((w[1:] != w[1:]) & (w[:-1] != w[:-1])))
        if differ.any():
            self.race(name, int(p[1:][differ][0]))

    def check_races(self, m: _Memory, places: np.ndarray, v: np.ndarray, keep: Any) -> None:
        """Two lanes of this statement, or two iterations of the parallel nest, that write different values."""
        self.check_duplicates(m.name, places, v)
        if self.iteration is None:
            return
        if m.owner is None:
            m.owner = np.full(m.array.size, -1, np.int64)
        me = self.lanewise(self.here(*self.iteration))[keep]
        before, old = m.owner[places], m.array.reshape(-1)[places]
        bad = (before >= 0) & (before != me) & ~((old == v) | ((old != old) & (v != v)))
        if bad.any():
            self.race(m.name, int(places[bad][0]))
        m.owner[places] = me

    def race(self, name: str, place: int) -> None:
        raise VerifyError("V403", f"kernel {self.kernel.name}: two parallel iterations write different values to "
                          f"element {place} of {name}", notes=self.notes(), cure="the kernel is wrong; report it")

    def fold(self, s: Fold) -> None:
        count = self.lanes.count
        state = [np.array(self.accs[a][1][self.rows_of(a)]).reshape(count, s.extent) for a in s.accs]
        parent, h = self.lanes, s.extent // 2
        while h:
            self.lanes = _Lanes(count * h, parent, np.repeat(np.arange(count), h))
            for name, x in zip((*s.left, *s.right), (*(x[:, :h] for x in state), *(x[:, h:2 * h] for x in state))):
                self.values[name] = self.lanes, np.ascontiguousarray(x).reshape(-1)
            new = [self.lanewise(self.value(v)).reshape(count, h) for v in s.values]
            for x, y in zip(state, new, strict=True):
                x[:, :h] = y
            self.lanes, h = parent, h // 2
        for name, x in zip(s.names, state, strict=True):
            self.values[name] = self.lanes, np.array(x[:, 0])

    def rows_of(self, acc: str) -> Any:
        at = self.lanes.of(self.accs[acc][0])
        return slice(None) if at is None else at

    def alloc(self, s: Alloc) -> None:
        size = self.size(s.size)
        home = self.before_threads if s.space == "shared" and self.before_threads is not None else self.lanes
        n = int(np.max(size, initial=0))
        self.memory[s.name] = _Memory(s.name, poison(s.dtype, (home.count, max(n, 0))), home)

    def if_(self, s: If) -> None:
        cond = self.value(s.cond)
        if cond.ndim == 0:
            self.block(s.then if cond else s.other)
            return
        for chosen, body in ((cond, s.then), (~cond, s.other)):
            if body and chosen.any():
                self.part(np.nonzero(chosen)[0], body)

    def part(self, chosen: np.ndarray, body: Sequence[Stmt]) -> None:
        """Run ``body`` on some of the lanes."""
        parent = self.lanes
        self.lanes = parent if len(chosen) == parent.count else _Lanes(len(chosen), parent, chosen)
        self.block(body)
        self.lanes = parent

    def loop(self, s: Loop) -> None:
        extent = self.size(s.extent)
        if s.kind in LANE_KINDS:
            self.lane_loop(s, extent)
            return
        if isinstance(extent, int):
            for i in range(extent):
                self.values[s.var] = self.root, np.asarray(i, np.int64)
                self.block(s.body)
            return
        for i in range(int(extent.max(initial=0))):
            self.values[s.var] = self.root, np.asarray(i, np.int64)
            self.part(np.nonzero(extent > i)[0], s.body)

    def lane_loop(self, s: Loop, extent: Any) -> None:
        parent, outside, iteration = self.lanes, self.before_threads, self.iteration
        if s.kind == "thread" and outside is None:
            self.before_threads = parent
        for up, var in _split(parent.count, extent, CHUNK if s.kind != "thread" else 0):
            self.lanes = _Lanes(len(up), parent, up)
            self.values[s.var] = self.lanes, var
            if s.kind in ITERATION_KINDS:
                self.iteration = self.lanes, self.iterations + np.arange(len(up))
                self.iterations += len(up)
            self.block(s.body)
        self.lanes, self.before_threads, self.iteration = parent, outside, iteration


def _split(count: int, extent: Any, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Lanes of a loop: parent lane and value of the loop variable of each, at most ``most`` at a time (0: all)."""
    extents = np.maximum(np.broadcast_to(np.asarray(extent, np.int64), (count,)), 0)
    ends = np.cumsum(extents)
    total = int(ends[-1]) if count else 0
    step = most or max(total, 1)
    for first in range(0, total, step):
        flat = np.arange(first, min(first + step, total))
        up = np.searchsorted(ends, flat, side="right")
        yield up, flat - (ends[up] - extents[up])


_LEAVES: dict[str, Callable[..., np.ndarray]] = {
    "const": _Run.const, "index": _Run.index, "ref": _Run.ref, "load": _Run.load}
_STEPS: dict[type, Callable[[_Run, Any], None]] = {
    Let: _Run.let, Acc: _Run.acc, Set: _Run.set, Store: _Run.store, Fold: _Run.fold, Alloc: _Run.alloc, If: _Run.if_,
    Barrier: lambda run, s: None, Loop: _Run.loop}


def run_kernel(kernel: Kernel, buffers: Mapping[str, np.ndarray], dims: Mapping[str, int], *,
               races: bool = False) -> None:
    """Run ``kernel`` on buffers by parameter name, in place; arrays of any shape are taken in C order.

    VerifyError: V401 an access outside a buffer, V402 a binding outside its range, V403 (with ``races``) parallel
    iterations that write different values to one place, V404 arguments that do not fit the parameters.
    """
    memory: dict[str, _Memory] = {}
    missing = [n for n in (*(p.name for p in kernel.params), *kernel.dims) if n not in buffers and n not in dims]
    if missing:
        raise _misfit(kernel, f"no value for {', '.join(missing)}")
    for p in kernel.params:
        a = np.asarray(buffers[p.name])
        size = 1
        for d in p.shape:
            size *= evaluate(d, dims)
        if a.dtype != p.dtype.numpy or a.size != size:
            raise _misfit(kernel, f"%{p.name} is {a.dtype}{list(a.shape)}, not {size} elements of {p.dtype}")
        flat = a.reshape(1, -1)
        if p.role != "in" and a.size and not (np.shares_memory(flat, a) and a.flags.writeable):
            raise _misfit(kernel, f"%{p.name} is written, but is not writable memory in C order")
        memory[p.name] = _Memory(p.name, flat, None)
    with np.errstate(all="ignore"):
        _Run(kernel, memory, dims, races).block(kernel.body)


def _misfit(kernel: Kernel, text: str) -> VerifyError:
    return VerifyError("V404", f"kernel {kernel.name}: {text}", cure="call it with what its parameters say")
