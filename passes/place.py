"""Order: which steps may run side by side.

Here: waves from the dependences between steps, and the dependence graph for people and tools (networkx).
Not here: memory (memory.py), the decision to split a step over threads (backends/llvm/share.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowc.dataclass import replace
from flowc.plan import Plan, Step

if TYPE_CHECKING:
    import networkx as nx


def dependences(steps: Sequence[Step]) -> list[list[int]]:
    """For every step, the positions of the steps whose results it reads.  A buffer is written once, so there are no
    other dependences."""
    writer = {b: i for i, s in enumerate(steps) for b in s.buffers[len(s.buffers) - s.outputs:]}
    return [sorted({writer[b] for b in s.buffers[:len(s.buffers) - s.outputs] if b in writer}) for s in steps]


def assign_waves(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, each in the earliest wave after everything it needs, ordered by wave.

    Steps must come after those they read from.  One pass, without the graph library, which takes longer to load than
    most graphs take to compile.
    """
    waves: list[int] = []
    for needs in dependences(steps):
        waves.append(1 + max((waves[i] for i in needs), default=-1))
    order = sorted(range(len(steps)), key=lambda i: (waves[i], i))
    return tuple(replace(steps[i], wave=waves[i]) for i in order)


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
