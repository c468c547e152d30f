"""The Plan IR: when each kernel runs, on which buffers, in which memory.

Here: buffers and their places, steps, waves, the plan.  Not here: how a plan is made (passes/place.py, memory.py),
how it runs (backends/runtime.py, backends/llvm/entry.py).  Read next: text.py.

Steps of one wave do not depend on each other: the runtime may run them side by side.  Waves run in order.  What
depends on constants alone is computed once, when the program is loaded (``ONCE``), and is a constant from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from flowc.dataclass import dataclass, field
from flowc.dims import DimLike, Range
from flowc.graph import Attrs, Literal
from flowc.kernel import Kernel
from flowc.types import Type

ONCE = -1   # the wave of steps that run when the program is loaded, in the plan's order


@dataclass(frozen=True)
class Place:
    """Where a buffer lives: ``param i`` (the caller's i-th argument), ``output i`` (the i-th result), ``arena`` at
    byte ``offset``, or ``constant`` (held by the program, or written by a step that runs once).

    over: of an output, the param in whose memory it lies, or -1.  That memory then begins with the argument's elements
    and is the caller's own array, which was donated, or a copy of it.
    """

    kind: str
    index: int = 0
    offset: DimLike = 0
    over: int = -1


@dataclass(frozen=True)
class PlanBuffer:
    name: str
    type: Type
    place: Place


@dataclass(frozen=True)
class Step:
    """Run one kernel, or call an op's NumPy meaning on the host.

    kernel: name in ``Program.kernels``, or "" for a host call, which then has ``op`` and ``attrs``.
    buffers: actual buffers in the order of the kernel's parameters (host call: inputs, then the output).
    dims: actual values of the kernel's dims.  outputs: how many of the last buffers are written.
    wave: index of its wave, or ``ONCE``.  work: estimated machine operations, for choosing to split or not.
    """

    name: str
    kernel: str
    buffers: tuple[str, ...]
    dims: tuple[DimLike, ...] = ()
    outputs: int = 1
    wave: int = 0
    work: DimLike = 0
    op: str = ""
    attrs: Attrs = field(default_factory=Attrs)
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Plan:
    """params: buffer name per argument.  outputs: buffer name per result (a name may repeat or be a param: the
    runtime then copies).  arena: bytes of working memory as a size, 64-byte aligned."""

    name: str
    device: str
    params: tuple[str, ...]
    outputs: tuple[str, ...]
    buffers: tuple[PlanBuffer, ...]
    steps: tuple[Step, ...]
    arena: DimLike = 0
    symbols: tuple[str, ...] = ()
    ranges: tuple[tuple[str, Range], ...] = ()
    constraints: tuple[tuple[DimLike, DimLike], ...] = ()

    def buffer(self, name: str) -> PlanBuffer:
        return self.table()[name]

    def table(self) -> Mapping[str, PlanBuffer]:
        return {b.name: b for b in self.buffers}

    def waves(self) -> list[list[Step]]:
        """Steps of every call grouped by wave, in running order."""
        calls = [s for s in self.steps if s.wave != ONCE]
        out: list[list[Step]] = [[] for _ in range(1 + max((s.wave for s in calls), default=-1))]
        for s in calls:
            out[s.wave].append(s)
        return out

    def once(self) -> list[Step]:
        """Steps that run when the program is loaded, in running order."""
        return [s for s in self.steps if s.wave == ONCE]

    def constants(self) -> list[str]:
        """Names of the constants, given ones and those that are computed once, in the order of native code."""
        return [b.name for b in self.buffers if b.place.kind == "constant"]


@dataclass(frozen=True)
class Program:
    """A plan with everything it names: kernels and constant arrays by buffer name."""

    plan: Plan
    kernels: Mapping[str, Kernel]
    constants: Mapping[str, Literal] = field(default_factory=dict)


@dataclass(frozen=True)
class Unfinished:
    """A program that is still being made.  kernels: makes it, and gives each kernel as soon as it is known; few are
    not those of the program in the end, which may also have more.  program: the whole, after that."""

    kernels: Callable[[], Iterator[Kernel]]
    program: Callable[[], Program]
