"""Running kernels: the interpreted device, launches, scheduling, barriers, instructions of whole warps.

Here: ``Device`` and ``Launch``.  Not here: text (parse.py), source (translate.py), memory (memory.py).

Many blocks run at once, their threads as lanes of NumPy arrays.  Lanes wait at basic blocks; the first one in the order
of flow.py runs next under the mask of the lanes that wait at it.  When nobody can run, blocks whose threads have all
arrived at a barrier go on; if there is none, the kernel is stuck, and the report says where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from flowc.backends.cuda.sim.errors import BarrierFault, LaunchError, MemoryFault, RaceFault, SimulatorError
from flowc.backends.cuda.sim.flow import END
from flowc.backends.cuda.sim.memory import (
    GLOBAL,
    WINDOWS,
    BlockMemory,
    GlobalMemory,
    GlobalRaces,
    fault,
    sectors,
    space_of,
    wavefronts,
)
from flowc.backends.cuda.sim.parse import ModuleText, param_block, parse
from flowc.backends.cuda.sim.translate import Compiled, compile_entry
from flowc.dataclass import dataclass

V = Any
MAX_THREADS, MAX_SHARED, MAX_GRID = 1024, 227 << 10, ((1 << 31) - 1, 65535, 65535)
WARP = 32
_UFUNCS: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
                           "or": np.bitwise_or, "xor": np.bitwise_xor}


@dataclass
class Statistics:
    """Counts since the device was made.  Sectors and wavefronts are counted only by a profiling device; the ideal ones
    are what perfectly placed accesses of the same bytes would need."""

    launches: int = 0
    blocks: int = 0
    steps: int = 0
    instructions: int = 0
    barriers: int = 0
    requests: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0

    def clear(self) -> None:
        for f in fields(self):
            setattr(self, f.name, 0)


class Module:
    """PTX text, parsed; entries are compiled when first launched.  PtxError for text that is not understood."""

    def __init__(self, ptx_text: str):
        self.text: ModuleText = parse(ptx_text)
        self._compiled: dict[str, Compiled] = {}

    @property
    def entries(self) -> list[str]:
        return list(self.text.entries)

    def kernel(self, name: str) -> Compiled:
        if name not in self._compiled:
            if name not in self.text.entries:
                raise LaunchError(f"the module has no kernel {name!r}, only {', '.join(self.text.entries) or 'none'}")
            self._compiled[name] = compile_entry(self.text, self.text.entries[name])
        return self._compiled[name]


class Device:
    """An interpreted GPU with ``nbytes`` of memory.

    races: look for races in shared memory.  profile: count memory transactions.  lanes: threads that run at once.
    max_steps: basic blocks a launch may run before it is taken to be endless.
    """

    def __init__(self, nbytes: int = 1 << 28, *, races: bool = True, profile: bool = False, lanes: int = 1 << 15,
                 max_steps: int = 20_000_000):
        self.memory = GlobalMemory(nbytes)
        self.races, self.profile, self.lanes, self.max_steps = races, profile, lanes, max_steps
        self.stats = Statistics()
        self._globals: dict[int, tuple[Module, dict[str, int]]] = {}

    def alloc(self, nbytes: int, name: str = "") -> int:
        return self.memory.alloc(nbytes, name)

    def free(self, address: int) -> None:
        self.memory.free(address)

    def put(self, array: np.ndarray, name: str = "") -> int:
        """Allocate and copy in; returns the address."""
        address = self.alloc(array.nbytes, name)
        self.copy_in(address, array)
        return address

    def get(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """A copy of device memory as an array."""
        dt = np.dtype(dtype)
        raw = self.memory.window(address, math.prod(shape) * dt.itemsize).copy()
        return raw.view(dt).reshape(shape)

    def copy_in(self, address: int, array: np.ndarray) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory.window(address, raw.size)[:] = raw

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """Fill a contiguous array from device memory."""
        array.reshape(-1).view(np.uint8)[:] = self.memory.window(address, array.nbytes)

    def load(self, module: Module) -> dict[str, int]:
        """Addresses of the module's global variables on this device."""
        variables = [v for v in module.text.variables if v.space in ("global", "const")]
        if not variables:
            return {}
        known = self._globals.get(id(module))
        if known is None:
            table: dict[str, int] = {}
            for v in variables:
                table[v.name] = self.alloc(v.size, v.name)
                self.memory.window(table[v.name], v.size)[:] = np.frombuffer(v.data or bytes(v.size), np.uint8)
            known = self._globals[id(module)] = (module, table)
        return known[1]

    def launch(self, module: Module, kernel_name: str, grid: Sequence[int], block: Sequence[int], shared_bytes: int,
               args: Sequence[Any]) -> None:
        """Run a kernel to its end.  args: integers (addresses too), floats or bytes, one per parameter."""
        code = module.kernel(kernel_name)
        g, b = (tuple((tuple(map(int, d)) + (1, 1))[:3]) for d in (grid, block))
        _check_launch(code, g, b, shared_bytes)
        self.stats.launches += 1
        params = param_block(code.entry.params, args)
        symbols = self.load(module)
        threads, count = math.prod(b), math.prod(g)
        at_once = max(1, self.lanes // threads)
        races = GlobalRaces(self.memory) if self.races and code.rereads else None
        with np.errstate(all="ignore"):
            for first in range(0, count, at_once):
                numbers = np.arange(first, min(count, first + at_once))
                Launch(self, code, g, b, shared_bytes, params, symbols, numbers, races).run()


def _check_launch(code: Compiled, grid: Sequence[int], block: Sequence[int], shared_bytes: int) -> None:
    name, threads = code.entry.name, math.prod(block)
    if any(not 0 < n <= top for n, top in zip(grid, MAX_GRID)):
        raise LaunchError(f"{name}: a grid of {tuple(grid)} blocks")
    if not 0 < threads <= MAX_THREADS or min(block) < 1:
        raise LaunchError(f"{name}: a block of {tuple(block)} threads")
    if code.entry.reqntid is not None and tuple(block) != code.entry.reqntid:
        raise LaunchError(f"{name} wants blocks of {code.entry.reqntid} threads, not {tuple(block)}")
    if code.entry.maxntid is not None and threads > math.prod(code.entry.maxntid):
        raise LaunchError(f"{name} allows at most {code.entry.maxntid} threads per block, not {tuple(block)}")
    if shared_bytes < 0 or code.shared_size + shared_bytes > MAX_SHARED:
        raise LaunchError(f"{name}: {code.shared_size + shared_bytes} bytes of shared memory")


class Launch:
    """The blocks ``numbers`` of one launch, run together.  Generated code calls the methods in the middle."""

    def __init__(self, device: Device, code: Compiled, grid: Sequence[int], block: Sequence[int], dynamic: int,
                 params: bytes, symbols: dict[str, int], numbers: np.ndarray, races: GlobalRaces | None = None):
        self.global_races, self.racing = races, True
        self.device, self.code, self.params, self.symbols = device, code, params, symbols
        threads = math.prod(block)
        wide = -(-threads // WARP) * WARP if code.warps or device.profile else threads
        self.threads, self.blocks, self.wide = threads, len(numbers), wide
        self.n = n = wide * self.blocks
        self.tid = np.tile(np.arange(wide, dtype=np.int64), self.blocks)
        self.block = np.repeat(np.arange(self.blocks), wide)
        self.numbers = numbers
        self.special = self._special_registers(grid, block, np.repeat(numbers, wide))
        self.memory = BlockMemory(self.block, self.blocks, code.shared_size + dynamic, code.local_size, code.granule,
                                  device.races)
        self.epoch = np.zeros(self.blocks, np.int64)
        self.waiting: dict[int, tuple[np.ndarray | None, int]] = {}
        self.parked: list[tuple[tuple[int, int], np.ndarray, int, str]] = []
        self.left = np.zeros(self.blocks, np.int64)  # threads per block that have ended
        live = self.tid < threads
        self._add(0, None if wide == threads else live, int(live.sum()) if n else 0)

    def _special_registers(self, grid: Sequence[int], block: Sequence[int], number: np.ndarray) -> dict[str, Any]:
        t = self.tid.astype(np.uint32)
        bx, by = np.uint32(block[0]), np.uint32(block[1])
        gx, gy = grid[0], grid[1]
        one = len(self.numbers) == 1
        n = number[:1] if one else number
        at = [(n % gx), (n // gx % gy), (n // (gx * gy))]
        out: dict[str, Any] = {"%tid.x": t % bx, "%tid.y": t // bx % by, "%tid.z": t // (bx * by),
                               "%laneid": t % np.uint32(WARP), "%warpid": t // np.uint32(WARP)}
        for k, d in enumerate("xyz"):
            a = at[k].astype(np.uint32)
            out[f"%ctaid.{d}"] = a[0] if one else a
            out[f"%ntid.{d}"], out[f"%nctaid.{d}"] = np.uint32(block[k]), np.uint32(grid[k])
        return out

    # -- scheduling

    def run(self) -> None:
        stats, code = self.device.stats, self.code
        stats.blocks += self.blocks
        registers = list(code.zeros)
        budget = self.device.max_steps
        while self.waiting or self.parked:
            if not self.waiting:
                self._release()
            at = min(self.waiting)
            mask, count = self.waiting.pop(at)
            stats.steps += 1
            stats.instructions += count * (len(code.blocks[at].code) + 1)
            budget -= 1
            if budget < 0:
                raise LaunchError(f"{code.entry.name} has not ended after {self.device.max_steps} steps")
            result = code.functions[at](self, registers, self.special, mask)
            self._leave(at, mask, count, result)

    def _add(self, at: int, mask: np.ndarray | None, count: int) -> None:
        if count == 0:
            return
        if at == END:
            self.left += np.full(self.blocks, self.wide) if mask is None else np.bincount(
                self.block[mask], minlength=self.blocks)
            return
        other, n = self.waiting.get(at, (None, 0))
        if n:
            assert mask is not None and other is not None
            mask, count = mask | other, count + n
        self.waiting[at] = (None if count == self.n else mask, count)

    def _leave(self, at: int, mask: np.ndarray | None, count: int, result: Any) -> None:
        """Send the lanes that ran block ``at`` on their way."""
        b = self.code.blocks[at]
        if b.end in ("jump", "exit"):
            self._add(b.target, mask, count)
        elif b.end == "barrier":
            ident = tuple(int(np.asarray(x).flat[0]) for x in result)
            full = np.ones(self.n, bool) if mask is None else mask
            self.parked.append(((ident[0], ident[1] if len(ident) > 1 else self.threads), full, b.target, b.text))
        else:
            if np.ndim(result) == 0:
                self._add(b.target if bool(result) != b.negated else b.other, mask, count)
                return
            taken = ~result if b.negated else result
            taken = taken if mask is None else taken & mask
            n = int(np.count_nonzero(taken))
            if n in (0, count):
                self._add(b.target if n else b.other, mask, count)
            else:
                self._add(b.target, taken, n)
                self._add(b.other, ~taken if mask is None else mask & ~taken, count - n)

    def _release(self) -> None:
        """Let go on every block of threads that has arrived at a barrier as a whole."""
        arrived: dict[tuple[int, int], np.ndarray] = {}
        for ident, mask, _, _ in self.parked:
            arrived[ident] = arrived.get(ident, 0) + np.bincount(self.block[mask], minlength=self.blocks)
        released: dict[tuple[int, int], np.ndarray] = {k: n == k[1] for k, n in arrived.items()}
        if not any(r.any() for r in released.values()):
            raise self._stuck(arrived)
        self._check_warps()
        rest = []
        for ident, mask, target, text in self.parked:
            go = mask & released[ident][self.block]
            n = int(np.count_nonzero(go))
            self._add(target, go, n)
            if n != int(np.count_nonzero(mask)):
                rest.append((ident, mask & ~go, target, text))
        for r in released.values():
            self.epoch += r
            self.device.stats.barriers += int(r.sum())
        self.parked = rest

    def _check_warps(self) -> None:
        """The threads of one warp must wait at one and the same barrier instruction."""
        if len(self.parked) < 2:
            return
        warp = self.block * (self.wide // WARP + 1) + self.tid // WARP
        seen: dict[int, str] = {}
        for _, mask, _, text in self.parked:
            for w in np.unique(warp[mask]).tolist():
                if w in seen:
                    raise BarrierFault(f"threads of one warp wait at two barriers: {seen[w]!r} and {text!r}",
                                       [f"block {int(self.numbers[w // (self.wide // WARP + 1)])}"])
                seen[w] = text

    def _stuck(self, arrived: dict[tuple[int, int], np.ndarray]) -> SimulatorError:
        (ident, want), counts = next((k, n) for k, n in arrived.items() if n.any())
        block = int(np.flatnonzero(counts)[0])
        text = next(t for k, m, _, t in self.parked if k == (ident, want) and m[self.block == block].any())
        where = f"block {int(self.numbers[block])}, {int(self.left[block])} of its threads have ended"
        return BarrierFault(f"deadlock: {int(counts[block])} of {want} threads have arrived at {text!r} and nobody "
                            "else can come", [where])

    # -- memory, called by generated code

    def param(self, offset: int, dtype: str) -> V:
        return np.frombuffer(self.params, dtype, 1, offset)[0]

    def symbol(self, name: str) -> V:
        return np.uint64(self.symbols[name])

    def _active(self, mask: V) -> tuple[V, bool]:
        """(indices of lanes or a full slice, is anybody there)."""
        if mask is None or (np.ndim(mask) == 0 and bool(mask)):
            return slice(None), True
        if np.ndim(mask) == 0:
            return np.zeros(0, np.int64), False
        at = np.flatnonzero(mask)
        return at, bool(at.size)

    def _place(self, space: str, address: V, lanes: V, size: int, write: bool, text: str) -> tuple[Any, np.ndarray]:
        """(memory, byte offsets in it) of checked accesses by ``lanes``."""
        a = np.asarray(address)
        a = (a[lanes] if a.ndim else a).astype(np.int64)
        if space in ("global", "const"):
            at = np.atleast_1d(a - GLOBAL)
            problem = self.device.memory.check(at, size)
            if problem is not None:
                raise self._fault(MemoryFault, problem[1], text, problem[0], np.atleast_1d(a), lanes)
            store: Any = self.device.memory.bytes
        else:
            m = self.memory
            limit = m.size if space == "shared" else m.depot
            base = (m.shared_base if space == "shared" else m.local_base)[lanes]
            inner = np.broadcast_to(a, base.shape)
            bad = (inner < 0) | (inner + size > limit)
            if bad.any():
                raise self._fault(MemoryFault, f"outside the {limit} bytes of {space} memory", text, bad, inner, lanes)
            at, store = inner + base, m.shared if space == "shared" else m.local
        off = at & (size - 1)
        if off.any():
            raise self._fault(MemoryFault, f"not a multiple of {size}", text, off != 0, np.atleast_1d(a), lanes)
        if self.racing and space == "shared" and self.memory.races is not None:
            self._race(at, size, lanes, write, text)
        elif self.racing and space == "global" and self.global_races is not None:
            self._global_race(at, size, lanes, write, text)
        if self.device.profile:
            self._count(space, at, lanes, size)
        return store, at

    def _race(self, at: np.ndarray, size: int, lanes: V, write: bool, text: str) -> None:
        races = self.memory.races
        assert races is not None
        stamp = (self.epoch[self.block[lanes]] << 32) | (self.tid[lanes] + 1)
        bad = (races.write if write else races.read)(at, size, stamp)
        if bad.any():
            raise self._fault(RaceFault, f"a race in shared memory, a {'write' if write else 'read'}", text, bad,
                              at - self.memory.shared_base[lanes], lanes)

    def _global_race(self, at: np.ndarray, size: int, lanes: V, write: bool, text: str) -> None:
        assert self.global_races is not None
        block = self.block[lanes]
        stamp = GlobalRaces.stamp(self.numbers[block], self.epoch[block], self.tid[lanes])
        at = np.broadcast_to(at, stamp.shape)
        bad = self.global_races.access(at, size, stamp, write)
        if bad.any():
            raise self._fault(RaceFault, f"a race in global memory, a {'write' if write else 'read'}", text, bad,
                              at + GLOBAL, lanes)

    def _fault(self, kind: Any, what: str, text: str, bad: np.ndarray, address: np.ndarray, lanes: V) -> Exception:
        lane = np.arange(self.n)[lanes]
        first = int(lane[np.broadcast_to(bad, lane.shape)][0])
        where = f"block {int(self.numbers[self.block[first]])}, thread {int(self.tid[first])}"
        return fault(kind, what, text, bad, np.broadcast_to(address, bad.shape), where)

    def _count(self, space: str, at: np.ndarray, lanes: V, size: int) -> None:
        lane = np.arange(self.n)[lanes]
        at, warp = np.broadcast_to(at, lane.shape), lane // WARP
        stats = self.device.stats
        if space == "shared":
            got, ideal = wavefronts(at - self.memory.shared_base[lanes], warp, size)
            stats.wavefronts, stats.ideal_wavefronts = stats.wavefronts + got, stats.ideal_wavefronts + ideal
        elif space != "local":
            requests, got, ideal = sectors(at, warp, size)
            stats.requests += requests
            stats.sectors, stats.ideal_sectors = stats.sectors + got, stats.ideal_sectors + ideal

    def _spaces(self, address: V, mask: V) -> list[tuple[str, V, V]]:
        """A generic access as accesses to the spaces it goes to: (space, address there, mask)."""
        found = space_of(address)
        out = []
        for s in ("global", "shared", "local"):
            here = found == s
            if not here.any():
                continue
            part = here if mask is None else here & mask
            if np.any(part):
                out.append((s, address - np.uint64(WINDOWS.get(s, 0)), None if np.all(part) else np.broadcast_to(
                    part, (self.n,))))
        return out

    def load(self, space: str, address: V, size: int, count: int, mask: V, text: str) -> list[V]:
        """``count`` values of ``size`` bytes per lane."""
        if space == "generic":
            out = [np.zeros(self.n, f"u{size}") for _ in range(count)]
            for name, a, m in self._spaces(address, mask):
                for o, v in zip(out, self.load(name, a, size, count, m, text)):
                    o[...] = v if m is None else np.where(m, v, o)
            return out
        lanes, anybody = self._active(mask)
        if not anybody:
            return [np.zeros((), f"u{size}")[()]] * count
        store, at = self._place(space, address, lanes, size * count, False, text)
        got = store.read(at, size, count)
        if np.ndim(address) == 0 and space in ("global", "const"):
            return [v[0] for v in got]
        if isinstance(lanes, slice):
            return got
        spread = [np.zeros(self.n, v.dtype) for v in got]
        for s, v in zip(spread, got):
            s[lanes] = v
        return spread

    def store(self, space: str, address: V, values: list[V], size: int, mask: V, text: str) -> None:
        if space == "generic":
            for s, a, m in self._spaces(address, mask):
                self.store(s, a, values, size, m, text)
            return
        lanes, anybody = self._active(mask)
        if not anybody:
            return
        store, at = self._place(space, address, lanes, size * len(values), True, text)
        picked = [np.asarray(v) for v in values]
        if np.ndim(address) == 0 and space in ("global", "const"):  # all lanes write one place: the last one stays
            picked = [v[lanes][-1:] if v.ndim else v for v in picked]
        else:
            picked = [v[lanes] if v.ndim else v for v in picked]
        store.write(at, size, picked)

    def atomic(self, space: str, kind: str, address: V, operands: list[V], dtype: str, bf16: bool, wanted: bool,
               mask: V, text: str) -> V:
        """Read-modify-write in the order of lanes; returns the values before."""
        dt = np.dtype(dtype)
        if space == "generic":
            (space, address, mask), *more = self._spaces(address, mask)
            if more:
                raise LaunchError(f"an atomic access to several spaces: {text!r}")
        out = np.zeros(self.n, dt)
        lanes, anybody = self._active(mask)
        if not anybody:
            return out
        self.racing = False  # atomic accesses do not race with each other
        store, at = self._place(space, address, lanes, dt.itemsize, True, text)
        self.racing = True
        view = store.views[dt.itemsize].view(dt)
        where = np.broadcast_to(at // dt.itemsize, np.arange(self.n)[lanes].shape)
        args = [np.broadcast_to(np.asarray(x), (self.n,))[lanes] for x in operands]
        quick = _UFUNCS.get(kind)
        if quick is not None and not wanted and not bf16:
            quick.at(view, where, args[0])
            return out
        out[lanes] = _serial(view, where, kind, args, bf16)
        return out

    # -- threads of a warp together

    def _rows(self, x: V, dtype: Any = None) -> np.ndarray:
        full = np.broadcast_to(np.asarray(x), (self.n,))
        return (full if dtype is None else full.astype(dtype)).reshape(-1, WARP)

    def _members(self, members: V, mask: V, text: str) -> np.ndarray:
        """Lanes that run, as rows of warps.  BarrierFault if one that the instruction names is not among them."""
        run = self._rows(True if mask is None else mask)
        named = (self._rows(members, np.int64)[:, :, None] >> np.arange(WARP)) & 1
        present = (run[:, None, :] | (named == 0)).all(2)
        exists = self._rows(self.tid < self.threads)
        present |= (run[:, None, :] | ~exists[:, None, :] | (named == 0)).all(2)
        if (run & ~present).any():
            raise BarrierFault(f"part of a warp runs an instruction of the whole warp: {text!r}")
        return run

    def shuffle(self, kind: str, x: V, n: V, c: V, members: V, mask: V, text: str) -> tuple[V, V]:
        run = self._members(members, mask, text)
        value, b, c = self._rows(x), self._rows(n, np.int64) & 31, self._rows(c, np.int64)
        lane = np.arange(WARP)[None, :]
        clamp, segment = c & 31, (c >> 8) & 31
        low, top = lane & segment, (lane & segment) | (clamp & ~segment)
        j = {"bfly": lane ^ b, "down": lane + b, "up": lane - b, "idx": low | (b & ~segment)}[kind]
        ok = (j >= top) if kind == "up" else (j <= top)
        j = np.where(ok, j, lane)
        if (run & ~np.take_along_axis(run, j, 1)).any():
            raise BarrierFault(f"a shuffle reads a lane that does not take part: {text!r}")
        return np.take_along_axis(value, j, 1).reshape(-1), ok.reshape(-1)

    def vote(self, kind: str, p: V, members: V, mask: V, text: str) -> V:
        run = self._members(members, mask, text)
        yes = self._rows(p) & run
        if kind == "ballot":
            out = (yes.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(1, dtype=np.uint32)
        else:
            out = {"all": (yes == run).all(1), "any": yes.any(1), "uni": (yes == run).all(1) | ~yes.any(1)}[kind]
        return np.repeat(out, WARP)

    def active(self, mask: V) -> V:
        return self.vote("ballot", True, 0, mask, "activemask")

    def reduce(self, kind: str, x: V, members: V, mask: V, text: str) -> V:
        run = self._members(members, mask, text)
        value = self._rows(x)
        fn = _UFUNCS[kind]
        info = np.iinfo(value.dtype)
        unit = {"min": info.max, "max": info.min, "and": -1 if info.min else info.max}.get(kind, 0)
        out = fn.reduce(np.where(run, value, value.dtype.type(unit)), axis=1, dtype=value.dtype)
        return np.repeat(out, WARP)

    def warp_barrier(self, members: V, mask: V, text: str) -> None:
        self._members(members, mask, text)

    def trap(self, mask: V, text: str) -> None:
        lanes, anybody = self._active(mask)
        if anybody:
            lane = int(np.arange(self.n)[lanes][0])
            raise LaunchError(f"the kernel stopped itself: {text!r} in block {int(self.numbers[self.block[lane]])}, "
                              f"thread {int(self.tid[lane])}")


def _serial(view: np.ndarray, where: np.ndarray, kind: str, args: Sequence[np.ndarray], bf16: bool) -> np.ndarray:
    """Atomic operations one after the other."""
    from flowc.backends.cuda.sim.numeric import narrow, widen
    old = np.empty(len(where), view.dtype)
    for k, at in enumerate(where.tolist()):
        old[k] = o = view[at]
        x = args[0][k]
        if kind == "add":
            view[at] = narrow(widen(o) + widen(x)) if bf16 else o + x
        elif kind == "cas":
            view[at] = args[1][k] if o == x else o
        elif kind in ("inc", "dec"):
            view[at] = (0 if o >= x else o + 1) if kind == "inc" else (x if o == 0 or o > x else o - 1)
        else:
            view[at] = x if kind == "exch" else _UFUNCS[kind](o, x)
    return old
