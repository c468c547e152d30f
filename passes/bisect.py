"""Which pass, which rule, which node: finding the step that makes a graph go bad.

Here: ``bisect``.  Not here: making the graph smaller (reduce.py), what "bad" means; the caller brings a predicate,
for instance "the compiled result differs from the interpreter's".  Read next: reduce.py.

Two searches by halves.  The first is over prefixes of the pass list, the second over fuel inside the pass found: with
fuel for k steps a pass takes exactly its first k optional steps.  Both keep one good and one bad end, so what they
return is a step after which a good graph is bad, also if later steps mend it or break it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowc.dataclass import dataclass
from flowc.diag import FlowcError, Loc
from flowc.graph import Graph, Node
from flowc.passes.manager import PassContext, run_passes
from flowc.passes.pipeline import GRAPH_PASSES

Bad = Callable[[Graph], bool]


@dataclass(frozen=True)
class Culprit:
    """The first step after which the graph is bad.

    stage: the pass, "input" if the graph was bad before any pass ran.  index: its place in the list of passes.
    step: number of the optional step inside the pass, from 1; 0 if the pass is guilty without any.
    kind, name, node: that step, as in PassContext.allow.  before, after: the graph without and with the step.
    """

    stage: str
    index: int
    step: int
    kind: str
    name: str
    node: Node | None
    before: Graph
    after: Graph

    @property
    def loc(self) -> Loc | None:
        return self.node.loc if self.node is not None else None

    def __str__(self) -> str:
        if self.stage == "input":
            return "the graph is bad before any pass runs"
        text = f"pass {self.stage} ({self.index + 1} of the list)"
        if not self.step:
            return f"{text}: its own work, with no optional step taken"
        at = f" at {self.loc}" if self.loc else ""
        return f"{text}, step {self.step}: {self.kind} {self.name} on {self.node!r}{at}"


def first_bad(low: int, high: int, bad: Callable[[int], bool]) -> int:
    """An n in low+1..high that is bad while n - 1 is good, given that ``low`` is good and ``high`` is bad."""
    while high - low > 1:
        middle = (low + high) // 2
        if bad(middle):
            high = middle
        else:
            low = middle
    return high


def bisect(graph: Graph, bad: Bad, names: Sequence[str] = GRAPH_PASSES, fast: bool = False) -> Culprit | None:
    """The culprit, or None if the graph is good after all passes.

    ``bad`` must give the same answer each time; an error of a pass itself counts as bad.  It is asked about
    log2(passes) + log2(steps) times.
    """
    if bad(graph):
        return Culprit("input", -1, 0, "", "", None, graph, graph)

    def prefix(n: int) -> bool:
        return _goes_bad(graph, names[:n], PassContext(fast=fast), bad)
    if not prefix(len(names)):
        return None
    index = first_bad(0, len(names), prefix) - 1
    name = names[index]
    start = run_passes(graph, names[:index], PassContext(fast=fast))

    full = PassContext(fast=fast)
    _try(start, name, full)

    def fueled(n: int) -> bool:
        return _goes_bad(start, [name], PassContext(fuel=n, fast=fast), bad)
    if fueled(0):
        after = _try(start, name, PassContext(fuel=0, fast=fast))
        return Culprit(name, index, 0, "", "", None, start, after or start)
    step = first_bad(0, full.decisions, fueled)
    ctx = PassContext(fuel=step, fast=fast)
    after = _try(start, name, ctx)
    before = _try(start, name, PassContext(fuel=step - 1, fast=fast))
    kind, rule, node = (ctx.last.kind, ctx.last.name, ctx.last.node) if ctx.last else ("", "", None)
    return Culprit(name, index, step, kind, rule, node, before or start, after or start)


def _try(graph: Graph, name: str, ctx: PassContext) -> Graph | None:
    """None if the pass fails."""
    try:
        return run_passes(graph, [name], ctx)
    except FlowcError:
        return None


def _goes_bad(graph: Graph, names: Sequence[str], ctx: PassContext, bad: Bad) -> bool:
    try:
        graph = run_passes(graph, names, ctx)
    except FlowcError:
        return True
    return bad(graph)
