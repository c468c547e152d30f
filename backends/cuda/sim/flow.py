"""Control flow: basic blocks of an entry and the order in which waiting threads run.

Here: cutting code into blocks, their successors, the order.  Not here: what blocks do (translate.py), who waits where
(machine.py).  Read next: numeric.py.

Order.  Threads of one launch wait at many blocks; the block that comes first in the order runs next, with all threads
that wait at it.  If the order is topological but for back edges and keeps every loop in one piece, threads that parted
meet again at the earliest common block: nobody passes a block that others can still reach.  This is the scheduling by
thread frontiers of Diamos et al., "SIMD re-convergence at thread frontiers" (2011).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flowc.backends.cuda.sim.errors import PtxError
from flowc.backends.cuda.sim.parse import Entry, Instruction, Operand, Reg, Sym
from flowc.dataclass import dataclass

END = -1  # successor of a block after which a thread is done


@dataclass(frozen=True)
class Block:
    """``code`` without the instruction that ends it.  ``end``: jump, branch, exit or barrier.

    branch: a thread goes to ``target`` where ``cond`` (negated: where not), else to ``other``; exit: likewise, with
    END as target; barrier: threads wait, then go to ``target``, ``operands`` are those of the instruction.
    ``text`` is the ending instruction for messages.
    """

    code: tuple[Instruction, ...]
    end: str
    target: int
    other: int = END
    cond: Reg | None = None
    negated: bool = False
    operands: tuple[Operand, ...] = ()
    text: str = ""


def _is_barrier(i: Instruction) -> bool:
    return i.parts[:2] in (("bar", "sync"), ("barrier", "sync")) or i.parts[:3] == ("barrier", "cta", "sync")


def _ends(i: Instruction) -> bool:
    return i.base in ("bra", "ret", "exit") or _is_barrier(i)


def cut(entry: Entry) -> list[Block]:
    """The blocks of an entry in the order of running, the first is the entry's own.  Targets are positions in this
    list."""
    code = entry.code
    starts = {0, *entry.labels.values(), *(i + 1 for i, x in enumerate(code) if _ends(x))}
    at = sorted(s for s in starts if s < len(code))
    bounds = dict(zip(at, [*at[1:], len(code)], strict=True))
    raw = {s: _block(entry, s, e) for s, e in bounds.items()}
    order = arrange({s: [t for t in (b.target, b.other) if t in raw] for s, b in raw.items()}, 0) if raw else []
    rank = {s: k for k, s in enumerate(order)}

    def place(target: int) -> int:
        return rank.get(target, END)
    return [Block(b.code, b.end, place(b.target), place(b.other), b.cond, b.negated, b.operands, b.text)
            for b in (raw[s] for s in order)]


def _block(entry: Entry, start: int, end: int) -> Block:
    """Targets here are positions in the code; one beyond it means END."""
    last = entry.code[end - 1]
    if not _ends(last):
        return Block(tuple(entry.code[start:end]), "jump", end)
    body = tuple(entry.code[start:end - 1])
    guard, negated = last.guard if last.guard is not None else (None, False)
    if _is_barrier(last):
        if guard is not None:
            raise PtxError(f"a barrier under a condition is not supported: {last.text!r}")
        return Block(body, "barrier", end, operands=last.operands, text=last.text)
    if last.base == "bra":
        label = last.operands[0]
        if not isinstance(label, Sym) or label.name not in entry.labels:
            raise PtxError(f"a branch to an unknown label: {last.text!r}")
        target = entry.labels[label.name]
        if guard is None:
            return Block(body, "jump", target)
        return Block(body, "branch", target, end, guard, negated, text=last.text)
    if guard is None:
        return Block(body, "exit", END, text=last.text)
    return Block(body, "branch", END, end, guard, negated, text=last.text)


def arrange(successors: Mapping[int, Sequence[int]], entry: int) -> list[int]:
    """The nodes that ``entry`` reaches, so that every edge leads forward except those that close a loop, and every
    loop is contiguous.  Works for loops with several entries, too."""
    reach, stack = {entry}, [entry]
    while stack:
        for t in successors[stack.pop()]:
            if t not in reach:
                reach.add(t)
                stack.append(t)
    out: list[int] = []
    work: list[tuple[set[int], int]] = [(reach, entry)]
    while work:  # a stack of regions that are still to be arranged, the next one on top
        region, head = work.pop()
        if len(region) == 1:
            out.extend(region)
            continue
        # edges into the head are what closes the loop: without them the region falls apart into smaller ones
        parts = list(_components(region, head, successors))
        for part in reversed(parts):
            inner = head if head in part else _entrance(part, region - part, successors)
            work.append((part, inner))
    return out


def _entrance(part: set[int], others: set[int], successors: Mapping[int, Sequence[int]]) -> int:
    """Where a loop is entered from outside; the first in the text if there are several."""
    heads = {t for n in others for t in successors[n] if t in part}
    return min(heads or part)


def _components(region: set[int], head: int, successors: Mapping[int, Sequence[int]]) -> Iterator[set[int]]:
    """Strongly connected components of a region without its edges into ``head``, in topological order (Tarjan's
    algorithm, iterative; it finds them in reverse)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on: list[int] = []
    waiting: set[int] = set()
    found: list[set[int]] = []

    def inside(n: int) -> Iterator[int]:
        return iter([t for t in successors[n] if t in region and t != head])
    for root in [head, *sorted(region)]:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        on.append(root)
        waiting.add(root)
        stack = [(root, inside(root))]
        while stack:
            n, rest = stack[-1]
            for t in rest:
                if t not in index:
                    index[t] = low[t] = len(index)
                    on.append(t)
                    waiting.add(t)
                    stack.append((t, inside(t)))
                    break
                if t in waiting:
                    low[n] = min(low[n], index[t])
            else:
                stack.pop()
                if stack:
                    low[stack[-1][0]] = min(low[stack[-1][0]], low[n])
                if low[n] == index[n]:
                    part: set[int] = set()
                    while n not in part:
                        part.add(on.pop())
                    waiting -= part
                    found.append(part)
    return reversed(found)
