"""What is repeated is lowered and compiled once: equal groups, and kernels that differ in where their operands begin.

Here: what a group's kernels depend on; finding kernels that are alike, the kernel that takes the beginnings as
integers.  Not here: kernels that are equal but for names (build.py).  Read next: build.py.

Equal layers of a network give groups of one structure, whose kernels are the same but for the buffers.  A loop over
slices that was traced step by step gives kernels that read ``x[0]``, ``x[1]``, ... at offsets of one buffer.  Compiled
once they cost one module instead of one for each step, and an addition for each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from flowc.dataclass import replace
from flowc.dims import DimLike, substitute, sym
from flowc.graph import CONSTANT, Node
from flowc.kernel import Kernel, Stmt, defined, walk
from flowc.passes.fuse import Group
from flowc.passes.rewriting import map_addresses, map_dims
from flowc.plan import Step

FEW = 4  # integers that a kernel takes for the offsets that differ


def structure(g: Group) -> tuple[tuple, dict[Node, int]] | None:
    """Everything that the kernels of a group depend on but for buffers, and the numbers of its nodes and operands in
    it; None for what is not looked into."""
    if g.kind in ("host", "stencil"):
        return None
    numbers: dict[Node, int] = {}

    def operand(x: Node) -> tuple:
        if x in numbers:
            return (numbers[x],)
        numbers[x] = len(numbers)
        return numbers[x], x.type, x.attrs if x.op is CONSTANT and x.rank == 0 else None

    def described(h: Group) -> tuple:
        rows = tuple((n.op.name, n.attrs, tuple(map(operand, n.inputs)), operand(n)) for n in h.members)
        root = None if h.contraction is None else operand(h.contraction)
        return (h.kind, h.outer, h.space, root, operand(h.root), rows, tuple(map(operand, h.outputs)),
                tuple(h.refused))

    return (*map(described, g.stages), described(g)), numbers


class Families:
    """Kernels by what they are but for constant offsets, sorted in while they are made."""

    def __init__(self) -> None:
        self._near: dict[tuple, list[Kernel]] = {}  # by what is quickly compared
        self._bare: dict[tuple, dict[tuple[Stmt, ...], list[tuple[Kernel, list[int]]]]] = {}

    def add(self, k: Kernel) -> bool:
        """Is it the first of its family?  Others may become one kernel with those before them."""
        key = k.params, k.dims, k.ranges, k.notes, len(k.body)
        near = self._near.setdefault(key, [])
        near.append(k)
        if len(near) == 1:
            return True
        bare = self._bare.setdefault(key, {})
        for new in near if len(near) == 2 else [k]:
            offsets: list[int] = []
            family = bare.setdefault(_without_offsets(new.body, offsets), [])
            family.append((new, offsets))
        return len(family) == 1

    def merged(self) -> dict[str, tuple[Kernel, tuple[int, ...]]]:
        """By name of a kernel that is alike others: the common kernel and the integers that make it the one of that
        name."""
        out: dict[str, tuple[Kernel, tuple[int, ...]]] = {}
        for family in (f for bare in self._bare.values() for f in bare.values()):
            if len(family) > 1 and len({len(offsets) for _, offsets in family}) == 1:
                out |= _common([k for k, _ in family], [offsets for _, offsets in family])
        return out


def merge_alike(kernels: Mapping[str, Kernel], steps: Sequence[Step],
                families: Families) -> tuple[dict[str, Kernel], list[Step]]:
    """Kernels and steps, with one kernel for those that differ in constant offsets.  families: of the kernels."""
    become = families.merged()
    if not become:
        return dict(kernels), list(steps)
    out = {k.name: k for k in (become[name][0] if name in become else k for name, k in kernels.items())}
    new = [replace(s, kernel=become[s.kernel][0].name, dims=(*s.dims, *become[s.kernel][1])) if s.kernel in become
           else s for s in steps]
    return out, new


def _without_offsets(body: Iterable[Stmt], offsets: list[int]) -> tuple[Stmt, ...]:
    """The statements with 0 for the constant term of every address; the terms, in the order of a walk."""
    def place(buffer: str, index: DimLike) -> tuple[str, DimLike]:
        offset = constant_term(index)
        offsets.append(offset)
        return buffer, index - offset
    return map_addresses(body, place)


def constant_term(d: DimLike) -> int:
    """The constant term of a size."""
    return d if isinstance(d, int) else next((c for m, c in d.terms if not m), 0)


def _common(family: list[Kernel], offsets: list[list[int]]) -> dict[str, tuple[Kernel, tuple[int, ...]]]:
    """The kernel of a family, if few integers tell its members apart; addresses that move together share one."""
    first = family[0]
    least = [min(column) for column in zip(*offsets, strict=True)]
    moves = [tuple(a - lo for a in column) for column, lo in zip(zip(*offsets, strict=True), least, strict=True)]
    different = [m for m in dict.fromkeys(moves) if any(m)]
    if len(different) > FEW:
        return {}
    taken = {*first.dims, *(name for s in walk(first.body) for name in defined(s))}
    free = (name for i in range(len(taken) + FEW) if (name := f"d{i}") not in taken)
    names = dict(zip(different, free, strict=False))
    at = iter(zip(least, moves, strict=True))

    def place(buffer: str, index: DimLike) -> tuple[str, DimLike]:
        start, move = next(at)
        there = index - constant_term(index) + start
        return buffer, there + sym(names[move]) if move in names else there

    body = map_addresses(first.body, place)
    ranges = tuple((name, (0, max(move))) for move, name in names.items())
    kernel = replace(first, dims=(*first.dims, *names.values()), body=body, ranges=(*first.ranges, *ranges))
    out = {}
    for i, k in enumerate(family):
        values = {name: move[i] for move, name in names.items()}
        # expressions may share parts in one kernel and not in the other: then the terms do not belong together
        if map_dims(body, partial(substitute, env=values)) != k.body:
            return {}
        out[k.name] = kernel, tuple(values.values())
    return out
