"""Memory: offsets of temporaries in one arena, reused after their last reader.

Here: live ranges and first-fit slots with symbolic sizes.  Not here: who allocates the arena (backends/runtime.py).

Two temporaries share a slot if their waves do not overlap; the slot is as large as the largest of them.  With
symbolic sizes a slot is reused only by a temporary that is provably no larger, or provably no smaller, which then
sets its size; everything else gets a slot of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowc.dataclass import dataclass
from flowc.dims import DimLike, Ranges, ceildiv
from flowc.plan import Place, PlanBuffer, Step
from flowc.proofs import proved_le
from flowc.types import Type

ALIGN = 64
CANDIDATES = 64  # slots looked at per temporary: keeps planning linear


@dataclass
class _Slot:
    size: DimLike
    free_from: int  # first wave at which it may be written again


def plan_arena(temps: Mapping[str, Type], steps: Sequence[Step], ranges: Ranges) -> tuple[list[PlanBuffer], DimLike]:
    """Buffers with offsets, and the size of the arena in bytes, a multiple of 64."""
    born: dict[str, int] = {}
    dies: dict[str, int] = {}
    for s in steps:
        for b in s.buffers:
            if b in temps:
                born.setdefault(b, s.wave)
                dies[b] = max(dies.get(b, 0), s.wave)
    slots: list[_Slot] = []
    slot_of: dict[str, int] = {}
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (wave after which it is free, slot)
    for name in sorted(born, key=lambda n: (born[n], n)):
        size = ceildiv(temps[name].nbytes, ALIGN) * ALIGN
        still = []
        for until, i in busy:
            (free.append(i) if until < born[name] else still.append((until, i)))  # type: ignore[func-returns-value]
        busy = still
        chosen = _fit(size, slots, free[-CANDIDATES:], ranges)
        if chosen is None:
            slots.append(_Slot(size, 0))
            chosen = len(slots) - 1
        else:
            free.remove(chosen)
            if proved_le(slots[chosen].size, size, ranges):
                slots[chosen].size = size
        slot_of[name] = chosen
        busy.append((dies[name], chosen))
    offsets: list[DimLike] = []
    at: DimLike = 0
    for slot in slots:
        offsets.append(at)
        at = at + slot.size
    return [PlanBuffer(n, temps[n], Place("arena", 0, offsets[i])) for n, i in slot_of.items()], at


def _fit(size: DimLike, slots: Sequence[_Slot], free: Sequence[int], ranges: Ranges) -> int | None:
    """The tightest free slot that holds ``size``, else the largest that may grow to it, else None."""
    holds = [i for i in free if proved_le(size, slots[i].size, ranges)]
    if holds:
        best = holds[0]
        for i in holds[1:]:
            if proved_le(slots[i].size, slots[best].size, ranges):
                best = i
        return best
    grows = [i for i in free if proved_le(slots[i].size, size, ranges)]
    return grows[-1] if grows else None
