"""What ``flowc tune`` found out about a processor, and where it is kept.

Here: the record, its file beside the compiled code, reading it once when something is compiled.
Not here: measuring (tune.py), who uses which figure (compiled.machine, backends/llvm/share.py, passes/choices.py).

A file holds the record of one processor: it is named after the processor and checked like an entry of the cache
(cache.py).  A file that is not whole, or whose figures make no sense, is ignored; ``flowc doctor`` says so.
Nothing in a record changes a result: it says how loops are cut and when threads are worth waking.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flowc import cache, config
from flowc.dataclass import dataclass


@dataclass(frozen=True)
class Tuned:
    """Figures of one processor; 0 stands for "not measured".

    vector_bits: width of the vectors that are worth using.  l1, l2: bytes of the caches of a core.
    work_per_us: work units (share.py) of one core in a microsecond.  fork_ns: what waking the threads and waiting for
    them takes.  serial_work, chunk_work: work below which a wave runs in its caller, and of the smallest chunk.
    schedules: (problem, fields) of kernels tuned one by one (passes/choices.py).
    """

    vector_bits: int = 0
    l1: int = 0
    l2: int = 0
    work_per_us: int = 0
    fork_ns: int = 0
    serial_work: int = 0
    chunk_work: int = 0
    schedules: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if not self.serial_work:
            parts = ["machine not measured"]
        else:
            parts = [f"vectors of {self.vector_bits} bits", f"L1 {self.l1 >> 10} KiB", f"L2 {self.l2 >> 10} KiB",
                     f"{self.work_per_us} work units per us",
                     f"threads woken and joined in {self.fork_ns / 1e3:.1f} us",
                     f"worth it from {self.serial_work} units, chunks of {self.chunk_work}"]
        count = len(self.schedules)
        return ", ".join(parts) + (f", {count} tuned schedule{'s' * (count > 1)}" if count else "")


NOTHING = Tuned()
# figure -> least and largest value that is believed
_SENSE = {"vector_bits": (64, 1 << 16), "l1": (1 << 10, 1 << 24), "l2": (1 << 14, 1 << 30),
          "work_per_us": (1, 10 ** 7), "fork_ns": (1, 10 ** 8), "serial_work": (1, 10 ** 10),
          "chunk_work": (1, 10 ** 10)}
_LONGEST = 1000  # characters of a problem or schedule

_loaded: dict[tuple[str, str], tuple[Tuned, str]] = {}  # (folder, processor) -> record, why there is none


def _key(processor: str) -> str:
    return f"tuned 1 {processor}"


def load(processor: str) -> Tuned:
    """The record for a processor; an empty one if there is none that can be used.  The file is read once."""
    return look(processor)[0] if config.get("tuned") else NOTHING


def look(processor: str) -> tuple[Tuned, str]:
    """The record, and why the file that is there is ignored ("": it is not)."""
    at = (cache.default_path(), processor)
    if at not in _loaded:
        _loaded[at] = _read(*at)
    return _loaded[at]


def _read(folder: str, processor: str) -> tuple[Tuned, str]:
    store = cache.DiskStore(folder)
    try:
        data = store.note(_key(processor))
        return (NOTHING, store.refused) if data is None else (_parse(data), "")
    except (OSError, ValueError, MemoryError, RecursionError) as e:
        return NOTHING, f"the file for this processor is ignored: {e}"


def _parse(data: bytes) -> Tuned:
    """The record in a file; ValueError for anything that is none."""
    import json
    content: Any = json.loads(data)
    names = {f.name for f in dataclasses.fields(Tuned)}
    if not isinstance(content, dict) or set(content) != names:
        raise ValueError("other fields than expected")
    for name, (low, high) in _SENSE.items():
        v = content[name]
        if type(v) is not int or v != 0 and not low <= v <= high:
            raise ValueError(f"{name} = {v!r} makes no sense")
    rows = content["schedules"]
    if not isinstance(rows, list) or not all(
            isinstance(r, list) and len(r) == 2 and all(isinstance(x, str) and len(x) <= _LONGEST for x in r)
            for r in rows):
        raise ValueError("schedules make no sense")
    return Tuned(**{**content, "schedules": tuple(map(tuple, rows))})


def save(processor: str, record: Tuned) -> str:
    """Keep a record; returns its file.  OSError if that is not possible."""
    import json
    data = json.dumps(dataclasses.asdict(record)).encode()
    _parse(data)
    path = cache.DiskStore(cache.default_path()).put_note(_key(processor), data)
    _loaded.clear()
    return path


def forget(processor: str) -> bool:
    """Remove the record of a processor; was there one?"""
    _loaded.clear()
    return cache.DiskStore(cache.default_path()).drop_note(_key(processor))


def describe(processor: str) -> str:
    """A line for bug reports."""
    record, why = look(processor)
    text = why or ("nothing measured; `flowc tune` does it" if record == NOTHING else str(record))
    if not config.get("tuned"):
        text = f"not used (FLOWC_TUNED=0); {text}"
    others = cache.DiskStore(cache.default_path()).other_notes(_key(processor))
    return text + (f"; {others} file{'s' * (others > 1)} of other processors" if others else "")
