"""Memory of the interpreted device: global allocations, shared and local memory of the blocks in flight.

Here: allocating, bounds, alignment, races between barriers, counts of sectors and bank conflicts.
Not here: which instruction reads what (instructions.py), the launch (machine.py).  Read next: machine.py.

Everything is hostile on purpose: each allocation has gaps around it, and memory that nobody wrote holds all ones, which
is NaN in every float format.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowc.backends.cuda.sim.errors import LaunchError, MemoryFault, RaceFault

V = Any
PAGE = 256                       # allocations start and end on pages
GAP = 8                          # pages between allocations
GLOBAL = 0x700000000000          # address of the first byte of global memory
WINDOWS = {"shared": 0x7E0000000000, "local": 0x7C0000000000}  # in the generic address space
WINDOW = 1 << 40
U = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def space_of(address: V) -> V:
    """The state space that a generic address lies in."""
    a = np.asarray(address).astype(np.int64)
    inside = [(a >= base) & (a < base + WINDOW) for base in WINDOWS.values()]
    return np.select(inside, list(WINDOWS), "global")


class Bytes:
    """A stretch of memory seen as elements of 1, 2, 4 and 8 bytes."""

    def __init__(self, nbytes: int, fill: int):
        size = -(-max(nbytes, 1) // 8) * 8
        self.raw = np.zeros(size, np.uint8) if fill == 0 else np.full(size, fill, np.uint8)
        self.views = {n: self.raw.view(t) for n, t in U.items()}

    def read(self, at: V, size: int, count: int) -> list[V]:
        view, first = self.views[size], at // size
        return [view[first + k] for k in range(count)]

    def write(self, at: V, size: int, values: list[V]) -> None:
        view, first = self.views[size], at // size
        for k, v in enumerate(values):
            view[first + k] = v


class GlobalMemory:
    """Allocations in one arena of ``nbytes``; pages are taken from the system when first touched."""

    def __init__(self, nbytes: int):
        pages = -(-nbytes // PAGE) + 2 * GAP
        self.bytes = Bytes(pages * PAGE, 0)
        self.owner = np.zeros(pages, np.int32)  # 1 + allocation of each page, 0: none
        self.spans: list[tuple[int, int, str]] = []  # per allocation: start, end, name
        self._unused: list[int] = []  # numbers of allocations that are gone
        self._free: list[tuple[int, int]] = [(GAP, pages - GAP)]  # (first page, pages), in order, never adjacent
        self._live: dict[int, int] = {}  # address -> allocation

    @property
    def live(self) -> int:
        """Number of allocations."""
        return len(self._live)

    def alloc(self, nbytes: int, name: str = "") -> int:
        """The address of ``nbytes`` fresh bytes, a multiple of 256.  MemoryError if the arena is full."""
        if nbytes < 0:
            raise LaunchError(f"an allocation of {nbytes} bytes")
        pages = -(-max(nbytes, 1) // PAGE)
        fit = next((k for k, (_, n) in enumerate(self._free) if n >= pages + GAP), None)
        if fit is None:
            raise MemoryError(f"the interpreted device has no room for {nbytes} bytes")
        first, size = self._free[fit]
        rest = size - pages - GAP
        self._free[fit:fit + 1] = [(first + pages + GAP, rest)] if rest else []
        start = first * PAGE
        k = self._unused.pop() if self._unused else len(self.spans)
        self.spans[k:k + 1] = [(start, start + nbytes, name or f"allocation {k}")]
        self.owner[first:first + pages] = k + 1
        self._live[GLOBAL + start] = k
        self.bytes.raw[start:start + pages * PAGE] = 0xFF
        return GLOBAL + start

    def free(self, address: int) -> None:
        """Give an allocation back; later accesses to it are faults."""
        k = self._live.pop(address, None)
        if k is None:
            raise LaunchError(f"{address:#x} is not the address of an allocation")
        start, end, _ = self.spans[k]
        first, pages = start // PAGE, -(-max(end - start, 1) // PAGE)
        self.owner[first:first + pages] = 0
        self.spans[k] = (start, start, "freed memory")
        self._unused.append(k)
        at = bisect_left(self._free, (first, 0))
        size = pages + GAP
        if at < len(self._free) and self._free[at][0] == first + size:
            size += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == first:
            at -= 1
            first, before = self._free.pop(at)
            size += before
        self._free.insert(at, (first, size))

    def window(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes themselves, for copies by the host."""
        at = address - GLOBAL
        fault = self._outside(np.array([at]), nbytes) if nbytes else None
        if fault is not None:
            raise MemoryFault(f"a copy of {nbytes} bytes at {address:#x} leaves its allocation")
        return self.bytes.raw[at:at + nbytes]

    def _outside(self, at: np.ndarray, size: int) -> np.ndarray | None:
        """Which accesses of ``size`` bytes do not lie in one allocation; None if all do."""
        lo, hi = int(at.min()), int(at.max())
        limit = self.owner.size * PAGE
        if 0 <= lo and hi + size <= limit:
            k = int(self.owner[lo // PAGE])
            if k and hi + size <= self.spans[k - 1][1]:
                return None
        inside = (at >= 0) & (at < limit)
        owner = np.where(inside, self.owner[np.where(inside, at, 0) // PAGE], 0)
        ends = np.array([0, *(end for _, end, _ in self.spans)], np.int64)
        bad = (owner == 0) | (at + size > ends[owner])
        return bad if bad.any() else None

    def check(self, at: np.ndarray, size: int) -> tuple[np.ndarray, str] | None:
        bad = self._outside(at, size)
        if bad is None:
            return None
        where, gap = int(at[bad].flat[0]), GAP * PAGE
        near = [name for start, end, name in self.spans if start - gap <= where <= end + gap]
        return bad, f"outside every allocation{f', next to {near[-1]}' if near else ''}"


class Races:
    """Who touched which granule of shared memory last, and in which barrier interval of its block.

    A stamp is interval << 32 | thread + 1; MANY stands for several readers.
    """

    MANY = 0xFFFFFFFF

    def __init__(self, nbytes: int, granule: int):
        self.granule = granule
        self.writer = np.full(-(-nbytes // granule) + 8, -1, np.int64)
        self.reader = self.writer.copy()

    def _cells(self, at: np.ndarray, size: int) -> Iterator[np.ndarray]:
        for d in range(0, size, self.granule):
            yield (at + d) // self.granule

    def read(self, at: np.ndarray, size: int, stamp: np.ndarray) -> np.ndarray:
        """Lanes that read what another thread wrote in the same interval."""
        bad, now = np.zeros(at.shape, bool), stamp >> 32
        for cell in self._cells(at, size):
            last = self.writer[cell]
            bad |= (last >> 32 == now) & (last != stamp)
            before = self.reader[cell]
            many = (now << 32) | self.MANY
            new = np.where((before >> 32 == now) & (before != stamp), many, stamp)
            self.reader[cell] = new
            lost = self.reader[cell] != new  # several lanes of this very instruction
            if lost.any():
                self.reader[cell[lost]] = many[lost]
        return bad

    def write(self, at: np.ndarray, size: int, stamp: np.ndarray) -> np.ndarray:
        """Lanes that write what another thread read or wrote in the same interval."""
        bad, now = np.zeros(at.shape, bool), stamp >> 32
        for cell in self._cells(at, size):
            for last in (self.writer[cell], self.reader[cell]):
                bad |= (last >> 32 == now) & (last != stamp)
            self.writer[cell] = stamp
            bad |= self.writer[cell] != stamp
        return bad


class GlobalRaces:
    """The same for global memory during one launch, for kernels that read what they write.

    A stamp is block << 31 | interval << 11 | thread + 1; 0 for untouched places.  Accesses of two blocks are never in
    order, those of one block are if a barrier lies between them.  Only the last reader of a place is kept, so a race
    with an earlier one can be missed.
    """

    GRANULE = 4

    def __init__(self, memory: GlobalMemory):
        self.memory = memory
        self._cells: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # allocation -> last writer, last reader

    @staticmethod
    def stamp(block: np.ndarray, interval: np.ndarray, thread: np.ndarray) -> np.ndarray:
        return (block << 31) | ((interval & 0xFFFFF) << 11) | (thread + 1)

    def access(self, at: np.ndarray, size: int, stamp: np.ndarray, write: bool) -> np.ndarray:
        """Lanes that conflict with another thread.  Accesses that spread over allocations or are narrower than a
        granule are not looked at."""
        bad = np.zeros(at.shape, bool)
        k = int(self.memory.owner[int(at[0]) // PAGE]) - 1
        start, end, _ = self.memory.spans[k]
        if size < self.GRANULE or int(at.min()) < start or int(at.max()) + size > end:
            return bad
        if k not in self._cells:
            count = (end - start) // self.GRANULE + 1
            self._cells[k] = np.zeros(count, np.int64), np.zeros(count, np.int64)
        writer, reader = self._cells[k]
        for d in range(0, size, self.GRANULE):
            cell = (at + d - start) // self.GRANULE
            bad |= self._unordered(writer[cell], stamp)
            if write:
                bad |= self._unordered(reader[cell], stamp)
                writer[cell] = stamp
                bad |= writer[cell] != stamp
            else:
                reader[cell] = stamp
        return bad

    @staticmethod
    def _unordered(last: np.ndarray, now: np.ndarray) -> np.ndarray:
        other_block = last >> 31 != now >> 31
        other_thread = other_block | ((last ^ now) & 0x7FF != 0)
        return (last != 0) & other_thread & (other_block | (last >> 11 == now >> 11))


class BlockMemory:
    """Shared memory of the blocks in flight and local memory of their threads.

    ``lane_block``: block number of every lane; ``size``: bytes of shared memory per block, ``depot`` of local memory
    per thread.
    """

    def __init__(self, lane_block: np.ndarray, blocks: int, size: int, depot: int, granule: int, races: bool):
        self.size, self.depot = size, depot
        stride = -(-size // 16) * 16
        self.shared = Bytes(blocks * stride, 0xFF)
        self.local = Bytes(len(lane_block) * (-(-depot // 16) * 16), 0xFF)
        self.shared_base = lane_block.astype(np.int64) * stride
        self.local_base = np.arange(len(lane_block), dtype=np.int64) * (-(-depot // 16) * 16)
        self.races = Races(blocks * stride, granule) if races and size else None


def fault(kind: type[MemoryFault] | type[RaceFault], what: str, text: str, bad: np.ndarray, address: np.ndarray,
          where: str) -> Exception:
    return kind(f"{what}: {text!r}", [f"{where}, address {int(address[bad].flat[0]):#x}",
                                      f"{int(bad.sum())} of {bad.size} running threads"])


def sectors(at: np.ndarray, warp: np.ndarray, size: int) -> tuple[int, int, int]:
    """Warp requests, 32-byte sectors they touch, and the fewest sectors that could hold their bytes."""
    pairs = np.unique(np.stack([np.concatenate([warp] * 2), np.concatenate([at, at + size - 1]) // 32]), axis=1)
    _, lanes = np.unique(warp, return_counts=True)
    return len(lanes), pairs.shape[1], int((-(-lanes * size // 32)).sum())


def wavefronts(at: np.ndarray, warp: np.ndarray, size: int) -> tuple[int, int]:
    """Shared-memory passes over 32 banks of 4 bytes, and the fewest possible.  Wide accesses go in parts of a warp."""
    lanes = 32 if size <= 4 else 128 // size
    part = warp * 32 + (np.arange(len(at)) % 32) // lanes
    words = np.stack([np.concatenate([part] * max(1, size // 4)),
                      np.concatenate([at // 4 + k for k in range(max(1, size // 4))])])
    words = np.unique(words, axis=1)  # lanes that read one word share it
    bank = words[0] * 32 + words[1] % 32
    banks, counts = np.unique(bank, return_counts=True)
    groups = banks // 32
    order = np.r_[True, groups[1:] != groups[:-1]] if len(groups) else np.zeros(0, bool)
    return int(np.maximum.reduceat(counts, np.flatnonzero(order)).sum()) if len(groups) else 0, int(order.sum())
