"""What every lowering works with: its result, its surroundings, and how nodes become statements.

Here: ``Lowered``, ``Context``, nests of loops, outputs.  Not here: any loop nest in particular (lower.py,
reductions.py, contract.py).  Read next: lower.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from flowc.dataclass import dataclass, field
from flowc.dims import DimLike, Ranges, sym
from flowc.graph import Node
from flowc.kernel import Kernel, Store, walk
from flowc.passes.fuse import EXPENSIVE, Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.schedule import Machine
from flowc.types import Type


@dataclass
class Lowered:
    """Kernels of one group in running order.  ``temps``: buffers between them.  Kernel parameters are named by the
    buffers they stand for.  ``work``: estimated machine operations per kernel."""

    kernels: list[Kernel] = field(default_factory=list)
    temps: dict[str, Type] = field(default_factory=dict)
    work: list[DimLike] = field(default_factory=list)


@dataclass
class Context:
    """What lowering needs besides the group: names of buffers and kernels, sizes, the machine."""

    name_of: Callable[[Node], str]
    name: str
    dims: Sequence[str]
    ranges: Ranges
    machine: Machine
    contraction: Callable[[Group, Context], Lowered]

    def builder(self, suffix: str = "") -> KernelBuilder:
        return KernelBuilder(self.name + suffix, self.ranges, self.dims)


def inliner(k: KernelBuilder, g: Group, ctx: Context) -> Inliner:
    members = set(g.members)
    uses: dict[Node, int] = {}
    for n in g.members:
        for x in n.inputs:
            uses[x] = uses.get(x, 0) + 1
    for n in g.outputs:
        uses[n] = uses.get(n, 0) + 1
    return Inliner(k, members, ctx.name_of, uses)


def nest(k: KernelBuilder, extents: Sequence[DimLike], kind: str, stem: str = "i") -> AbstractContextManager[Idx]:
    """Loops of one kind, one inside the other; gives the index tuple."""
    return _Nest([k.loop(n, kind, stem) for n in extents])


class _Nest(AbstractContextManager[Idx]):
    def __init__(self, loops: Sequence[AbstractContextManager[DimLike]]):
        self.loops = loops

    def __enter__(self) -> Idx:
        return tuple([block.__enter__() for block in self.loops])

    def __exit__(self, *failed: object) -> None:
        for block in reversed(self.loops):
            block.__exit__(*failed)  # type: ignore[arg-type]  # nothing, or an exception in three parts


def named(k: KernelBuilder, d: DimLike, most: DimLike) -> DimLike:
    """A size within 0..most by a name: what is computed from it, and proved of it, stays short."""
    if isinstance(d, int):
        return d
    name = k.let(k.b.index(d), range=(0, most)).attr[0]
    k.ranges[name] = (0, most)
    return sym(name)


def emit_outputs(k: KernelBuilder, inl: Inliner, nodes: Sequence[Node], idx: Idx, ctx: Context) -> None:
    for n in nodes:
        v = inl.value(n, idx)
        k.write(ctx.name_of(n), linear_index(idx, n.shape), v)


def declare_outputs(k: KernelBuilder, g: Group, ctx: Context) -> None:
    """Declare what the finished statements write; every output of the group must be among it."""
    written = {s.buffer for s in walk(k.scopes[0].stmts) if isinstance(s, Store)}
    for n in g.outputs:
        name = k.buffer(ctx.name_of(n), n.dtype, n.shape, "out")
        assert name in written, f"{g} computes {n} and does not write it"


def describe(g: Group) -> list[str]:
    names = [n.op.name for n in g.members]
    shown = " ".join(names[:24]) + (f" and {len(names) - 24} more" if len(names) > 24 else "")
    return [f"{g.kind}: {shown}", *g.refused]


def cost(g: Group) -> int:
    """Machine operations per element of the group's largest value, roughly."""
    return sum(16 if n.op.name in EXPENSIVE else 1 for n in g.members) + 2 * len(g.outputs) + 2
