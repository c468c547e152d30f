"""Warm memory for large results and working space.

Here: a bounded store of large blocks that outlive the arrays they were lent to, arrays over such blocks, making
pages before they are needed.
Not here: where a buffer lies inside a block (passes/memory.py), device memory (backends/cuda/).
Read next: backends/runtime.py.

The first touch of fresh pages costs several times a pass over memory, and freeing a large array gives its pages back
to the system.  Results of 1 MiB and more therefore lie in blocks of 2 MiB pages that come back here when the array and
all its views are gone.  Free blocks are kept up to a limit, oldest dropped first.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from flowc import config
from flowc.diag import FlowcValueError

LARGE = 1 << 20            # bytes from which an array lies in a block
HUGE_PAGE = 2 << 20
ALIGN = 64                 # of everything handed out here
MAX_BYTES = (1 << 63) - 1
POPULATE_WRITE = 23        # of madvise, since Linux 5.14


class Block:
    """Anonymous memory, aligned to huge pages; ``size`` usable bytes from ``address``."""

    __slots__ = ("_map", "_start", "address", "size")

    def __init__(self, size: int):
        flags = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        self._map = mmap.mmap(-1, size + HUGE_PAGE, **flags)
        base = np.frombuffer(self._map, np.uint8).ctypes.data
        start = -base % HUGE_PAGE
        self.address, self.size, self._start = base + start, size, start
        if hasattr(mmap, "MADV_HUGEPAGE"):
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError, ValueError):  # kernels without huge pages: small ones do
                self._map.madvise(mmap.MADV_HUGEPAGE, page, size)

    def lend(self, nbytes: int) -> np.ndarray:
        """The first bytes as an array that gives the block back when it dies.  It lies directly on the memory map:
        NumPy shortens chains of plain arrays, and would drop an array in between."""
        lease = _Lease((nbytes,), np.uint8, buffer=self._map, offset=self._start)
        lease.block = self
        return lease

    def populate(self, nbytes: int) -> None:
        """Have the pages of the first bytes there.  Contents stay; other threads run meanwhile, and wait for one huge
        page at most where they change the memory map themselves."""
        if sys.platform == "linux":
            end = min(-(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE, self.size)
            for at in range(0, end, HUGE_PAGE):
                _madvise()(self.address + at, min(HUGE_PAGE, end - at), POPULATE_WRITE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


class _Lease(np.ndarray):
    """The base of an array that lies in a block.  NumPy keeps it alive for the array and every view of it; when it
    dies, the block comes back."""

    block: Block | None = None

    def __del__(self) -> None:
        block = self.block
        if block is not None and _STORE is not None:  # at the end of a process names go before arrays do
            self.block = None
            _STORE.give(block)


class BlockStore:
    """Free blocks by size, at most ``limit()`` bytes.  ``give`` may be called by the garbage collector at any point,
    also in the middle of another method here: it only appends to a deque and tidies up when nobody else is inside."""

    def __init__(self, limit: Callable[[], int]):
        self.limit = limit
        self._free: OrderedDict[int, Block] = OrderedDict()  # by address, oldest first
        self._back: deque[Block] = deque()
        self._lock = threading.Lock()
        self.bytes = 0  # of free blocks

    def take(self, nbytes: int) -> Block:
        """A block of at least ``nbytes``, warm if one of its size is free.  MemoryError if there is no memory."""
        size = block_size(nbytes)
        with self._lock:
            self._collect()
            for address in reversed(self._free):  # the one used last is the warmest
                if self._free[address].size == size:
                    block = self._free.pop(address)
                    self.bytes -= size
                    return block
        try:
            return Block(size)
        except (OSError, ValueError, OverflowError):
            self.release()
        try:
            return Block(size)
        except (OSError, ValueError, OverflowError) as e:
            raise MemoryError(f"no memory for {nbytes} bytes: {e}") from None

    def give(self, block: Block) -> None:
        self._back.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        """Sort in what came back and drop what exceeds the limit."""
        while self._back:
            block = self._back.popleft()
            self._free[block.address] = block
            self.bytes += block.size
        while self.bytes and self.bytes > self.limit():
            _, block = self._free.popitem(last=False)
            self.bytes -= block.size

    def release(self) -> int:
        """Give all free blocks back to the system; returns their bytes."""
        with self._lock:
            self._collect()
            freed, self.bytes = self.bytes, 0
            self._free.clear()
        return freed

    def renew_lock(self) -> None:
        self._lock = threading.Lock()


def block_size(nbytes: int) -> int:
    """Sizes are rounded up to eight steps per power of two, whole huge pages: few sizes, so that blocks are reused,
    and at most an eighth wasted beyond the last page."""
    pages = max(1, -(-nbytes // HUGE_PAGE))
    step = 1 << max(0, pages.bit_length() - 4)
    return -(-pages // step) * step * HUGE_PAGE


def limit() -> int:
    """Bytes of free memory that may be kept."""
    given = config.get("warm_memory")
    return _share() if given < 0 else given


@functools.cache
def _share() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = 8 << 30
    return min(1 << 30, total // 8)


_STORE = BlockStore(limit)
if hasattr(os, "register_at_fork"):
    # a child must not inherit a lock that another thread of the parent held; the blocks are copied on write
    os.register_at_fork(after_in_child=lambda: _STORE.renew_lock())


def check_bytes(nbytes: int, what: str = "an array") -> int:
    """``nbytes`` if it is a possible size.  FlowcValueError C202 for more than 2**63 - 1 bytes or a negative size."""
    if not 0 <= nbytes <= MAX_BYTES:
        raise FlowcValueError("C202", f"{what} of {nbytes} bytes cannot exist", cure="use smaller sizes")
    return nbytes


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """A writable array in C order with arbitrary contents, from warm memory if large.

    FlowcValueError C202 for sizes that cannot exist, MemoryError if there is no memory.
    """
    shape = tuple(shape)
    nbytes = check_bytes(math.prod(shape) * dtype.itemsize) if all(n >= 0 for n in shape) else check_bytes(-1)
    if nbytes < LARGE:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, buffer=_STORE.take(nbytes).lend(nbytes))


class Scratch:
    """Working memory for one run: ``address``, aligned to 64 bytes.  Give it back by ``close`` or by dropping it."""

    __slots__ = ("_holder", "address", "array")

    def __init__(self, nbytes: int):
        check_bytes(nbytes, "working memory")
        self._holder = empty((nbytes + ALIGN,), np.dtype(np.uint8))
        start = -self._holder.ctypes.data % ALIGN
        self.array = self._holder[start:start + nbytes]
        self.address = self._holder.ctypes.data + start

    def close(self) -> None:
        del self._holder, self.array


def copy_of(array: np.ndarray) -> np.ndarray:
    """A fresh copy in C order, from warm memory if large."""
    out = empty(array.shape, array.dtype)
    np.copyto(out, array)
    return out


def release() -> int:
    """Give all memory that is kept warm back to the system; returns its bytes."""
    return _STORE.release()


def touch_ahead(sizes: Iterable[int]) -> None:
    """Somebody will ask for arrays of ``sizes`` bytes, all at a time: a thread has their pages made meanwhile.  Where
    the system cannot do that (Linux before 5.14) whoever writes to them first does it."""
    large = [n for n in sizes if n >= LARGE]
    if large and sum(large) <= limit():
        with contextlib.suppress(MemoryError, RuntimeError):  # the system has no more memory, or no more threads
            blocks = [_STORE.take(n) for n in large]
            wanted = list(zip(blocks, large, strict=True))
            threading.Thread(target=_populate, args=(wanted,), name="flowc-touch", daemon=True).start()
            for block in reversed(blocks):  # of one size the last given back is lent first
                _STORE.give(block)


def _populate(wanted: list[tuple[Block, int]]) -> None:
    while wanted:
        block, nbytes = wanted.pop(0)  # and let go of those that are done
        block.populate(nbytes)


def kept() -> int:
    """Bytes of free memory kept warm now."""
    return _STORE.bytes


