"""Order: which steps may run side by side.

Here: what runs once, waves from the dependences between steps, the dependence graph for people and tools (networkx).
Not here: memory (memory.py), the decision to split a step over threads (backends/llvm/share.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from flowc.dataclass import replace
from flowc.plan import ONCE, Plan, Step
from flowc.types import Type

if TYPE_CHECKING:
    import networkx as nx

GROWTH = 8   # bytes of constants that are computed once for each byte of what they are made from, at most


def dependences(steps: Sequence[Step]) -> list[list[int]]:
    """For every step, the positions of the steps whose results it reads.  A buffer is written once, so there are no
    other dependences."""
    writer = {b: i for i, s in enumerate(steps) for b in s.buffers[len(s.buffers) - s.outputs:]}
    return [sorted({writer[b] for b in s.buffers[:len(s.buffers) - s.outputs] if b in writer}) for s in steps]


def assign_waves(steps: Sequence[Step], once: Collection[int] = ()) -> tuple[Step, ...]:
    """The steps, each in the earliest wave after everything it needs, ordered by wave; those at the positions ``once``
    in the wave before all calls.

    Steps must come after those they read from.  One pass, without the graph library, which takes longer to load than
    most graphs take to compile.
    """
    waves: list[int] = []
    for i, needs in enumerate(dependences(steps)):
        waves.append(ONCE if i in once else 1 + max((waves[i] for i in needs), default=-1))
    order = sorted(range(len(steps)), key=lambda i: (waves[i], i))
    return tuple(replace(steps[i], wave=waves[i]) for i in order)


def computed_once(steps: Sequence[Step], constants: Mapping[str, Type], temps: Mapping[str, Type]) -> set[int]:
    """Positions of the steps that read nothing but constants, or what such steps write: packed and transformed weights
    for instance.  Each writes temporaries that take not much more room than what it was made from, as they are kept."""
    known = {b: t.nbytes for b, t in constants.items()}  # bytes of the given constants that a buffer is made of
    out: set[int] = set()
    for i, s in enumerate(steps):
        cut = len(s.buffers) - s.outputs
        read, written = s.buffers[:cut], s.buffers[cut:]
        if not (s.kernel and read and all(b in known for b in read) and all(b in temps for b in written)
                and all(isinstance(d, int) for d in s.dims)):
            continue
        given, room = sum((known[b] for b in read), 0), sum((temps[b].nbytes for b in written), 0)
        if isinstance(given, int) and isinstance(room, int) and room <= GROWTH * given:
            out.add(i)
            known.update(dict.fromkeys(written, given))
    return out


def dependence_graph(plan: Plan) -> nx.DiGraph:
    """The plan's steps as a networkx graph: node = step name with attributes ``wave`` and ``kernel``, edge = the
    second step reads what the first one writes."""
    import networkx as nx
    dag: nx.DiGraph = nx.DiGraph()
    for s in plan.steps:
        dag.add_node(s.name, wave=s.wave, kernel=s.kernel or s.op)
    for s, needs in zip(plan.steps, dependences(plan.steps), strict=True):
        dag.add_edges_from((plan.steps[i].name, s.name) for i in needs)
    return dag


def critical_path(plan: Plan) -> list[str]:
    """Names of the steps on a longest chain: no schedule takes fewer waves."""
    import networkx as nx
    return nx.dag_longest_path(dependence_graph(plan))
