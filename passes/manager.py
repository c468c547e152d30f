"""Running passes: their registry, the context they share, checks and dumps between them.

Here: ``PassContext``, the ``graph_pass`` decorator, ``run_passes``.  Not here: which passes run (pipeline.py).
Read next: pipeline.py.

A pass is a function from IR to IR.  It returns the very object it was given where it found nothing to do: a pass
that would see its own result again is skipped, so a list may name a pass several times at no cost.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from flowc import config
from flowc.dataclass import dataclass, field
from flowc.diag import FlowcError, FlowcValueError
from flowc.graph import CONSTANT, Graph, Node
from flowc.types import Type

T = TypeVar("T")


class Decision(NamedTuple):
    """One optional step that was allowed: in which pass, of which kind, by which rule, on which node."""

    stage: str
    kind: str
    name: str
    node: Node | None


class Timing(NamedTuple):
    """One pass that ran.  before, after: numbers of nodes; decisions: optional steps it took."""

    name: str
    seconds: float
    before: int
    after: int
    decisions: int


@dataclass
class PassContext:
    """What passes share during one compile.

    fuel: optional steps that may still be taken in all passes together; -1: no limit.  check: verify after each pass.
    fast: laws that hold for real numbers but not for all floats may be used.  dump_dir: where every stage is written
    as NN-name.flow; replay_dir: where such a file replaces the result of its stage.  hits: rules and other steps by
    name; visits: nodes looked at; last: the latest step taken.
    """

    fuel: int = -1
    check: bool = False
    fast: bool = False
    log: frozenset[str] = frozenset()
    dump_dir: str = ""
    replay_dir: str = ""
    hits: Counter[str] = field(default_factory=Counter)
    timings: list[Timing] = field(default_factory=list)
    visits: int = 0
    decisions: int = 0
    last: Decision | None = None
    stage: str = ""
    step: int = 0
    settled: dict[str, Any] = field(default_factory=dict)  # pass name -> the result that it would not change again
    final: dict[str, set[Node]] = field(default_factory=dict)  # rule set -> nodes that none of its laws applies to

    @classmethod
    def from_config(cls) -> PassContext:
        """A context as the settings ask for."""
        return cls(fuel=config.get("fuel"), check=config.get("check"), fast=config.get("fast_math"),
                   log=frozenset(config.get("log")), dump_dir=config.get("dump_dir"),
                   replay_dir=config.get("replay_dir"))

    def allow(self, kind: str, name: str, node: Node | None = None) -> bool:
        """May this optional step be taken?  Every yes counts; with fuel for n steps the answer after n is no."""
        if 0 <= self.fuel <= self.decisions:
            return False
        self.decisions += 1
        self.last = Decision(self.stage, kind, name, node)
        return True

    def dump(self, name: str, ir: Any) -> None:
        """Write a stage into the dump folder, if there is one.  Stages are numbered in the order of calls."""
        if self.dump_dir:
            os.makedirs(self.dump_dir, exist_ok=True)
            with open(os.path.join(self.dump_dir, f"{self.step:02}-{name}.flow"), "w", encoding="utf-8") as f:
                f.write(_text(ir))
        self.step += 1

    def replay(self, name: str, ir: T) -> T:
        """The stage as the replay folder has it, else ``ir``.  Call before ``dump``."""
        if not self.replay_dir:
            return ir
        path = os.path.join(self.replay_dir, f"{self.step:02}-{name}.flow")
        if not os.path.exists(path):
            return ir
        with open(path, encoding="utf-8") as f:
            return _replayed(f.read(), path, ir)


def _text(ir: Any) -> str:
    from flowc.text import to_text
    return ir if isinstance(ir, str) else to_text(ir)


def _replayed(text: str, path: str, ir: T) -> T:
    """The graph in ``text``, which must take and give what the graph ``ir`` does.  Constants too big for text are
    those of ``ir``."""
    if not isinstance(ir, Graph):
        raise FlowcValueError("C010", f"{path} cannot stand in for this stage: only graphs are replayed",
                              cure="remove the file from FLOWC_REPLAY_DIR")
    from flowc.parse import parse_graph
    from flowc.text import content_hash
    arrays = [n.attrs["value"].array for n in ir.nodes if n.op is CONSTANT]
    new = parse_graph(text, path, {content_hash(a): a for a in arrays})

    def signature(g: Graph) -> list[Type]:
        return [n.type for n in (*g.params, *g.outputs)]
    if len(new.params) != len(ir.params) or signature(new) != signature(ir):
        raise FlowcValueError("C010", f"{path} has other parameters or results than the stage it replaces",
                              notes=[f"file: {signature(new)}", f"stage: {signature(ir)}"],
                              cure="keep the types of parameters and results, or remove the file")
    return new  # type: ignore[return-value]


# ---- the registry ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Pass:
    """A registered pass.  after: passes that must come earlier in the pipeline.  doc: first line of its docstring."""

    name: str
    run: Callable[[Any, PassContext], Any]
    after: tuple[str, ...]
    doc: str

    def __call__(self, ir: Any, ctx: PassContext | None = None) -> Any:
        return self.run(ir, ctx or PassContext())


PASSES: dict[str, Pass] = {}


def graph_pass(name: str, after: Sequence[str] = ()) -> Callable[[Callable[[Any, PassContext], Any]], Pass]:
    """Register a function ``(ir, ctx) -> ir`` under ``name``; its docstring's first line is its help text."""
    def register(fn: Callable[[Any, PassContext], Any]) -> Pass:
        if name in PASSES:
            raise ValueError(f"two passes are called {name}")
        if not fn.__doc__:
            raise ValueError(f"pass {name} has no docstring")
        PASSES[name] = Pass(name, fn, tuple(after), fn.__doc__.strip().splitlines()[0])
        return PASSES[name]
    return register


def find(name: str) -> Pass:
    if name not in PASSES:
        raise FlowcValueError("C003", f"there is no pass {name!r}", cure=f"use some of {', '.join(PASSES)}")
    return PASSES[name]


def help_text() -> str:
    """One line per pass, for command-line help."""
    width = max(map(len, PASSES), default=0)
    return "\n".join(f"  {p.name:<{width}}  {p.doc}" for p in PASSES.values())


def check_order(names: Sequence[str]) -> None:
    """Raise ValueError if a pass of the list stands before one that it declares to come after."""
    for i, name in enumerate(names):
        late = [a for a in find(name).after if a in names and a not in names[:i]]
        if late:
            raise ValueError(f"pass {name} must come after {', '.join(late)}")


# ---- running --------------------------------------------------------------------------------------------------------

def run_passes(graph: Graph, names: Iterable[str], ctx: PassContext | None = None) -> Graph:
    """Run the named passes one after the other, with the checks, dumps and counts that ``ctx`` asks for."""
    ctx = PassContext.from_config() if ctx is None else ctx
    if ctx.step == 0:
        ctx.dump("trace", graph)
        _check(graph, "trace", ctx)
    for name in names:
        graph = run_pass(graph, name, ctx)
    if "rules" in ctx.log:
        _say(f"{graph.name}: " + (", ".join(f"{k} {n}" for k, n in ctx.hits.most_common()) or "no rule fired"))
    return graph


def run_pass(graph: Graph, name: str, ctx: PassContext) -> Graph:
    """Run one pass; skipped if ``graph`` is what it left behind the last time."""
    stage = find(name)
    if ctx.settled.get(name) is graph and not ctx.replay_dir:
        ctx.step += 1
        return graph
    ctx.stage = name
    before, start, taken = len(graph), time.perf_counter(), ctx.decisions
    try:
        new = stage.run(graph, ctx)
    except FlowcError as e:
        e.add_note(f"in pass {name}")
        raise
    seconds = time.perf_counter() - start
    new = ctx.replay(name, new)
    _check(new, name, ctx)
    ctx.dump(name, new)
    ctx.settled[name] = new
    ctx.timings.append(Timing(name, seconds, before, len(new), ctx.decisions - taken))
    if "passes" in ctx.log:
        _say(f"{graph.name}: {name:<12} {seconds * 1e3:8.2f} ms  {before} -> {len(new)} nodes, "
             f"{ctx.decisions - taken} steps")
    return new


def _check(graph: Graph, name: str, ctx: PassContext) -> None:
    if not ctx.check:
        return
    from flowc.verify import verify_graph
    try:
        verify_graph(graph)
    except FlowcError as e:
        e.add_note(f"after pass {name}")
        raise


def _say(line: str) -> None:
    print(f"[flowc] {line}", file=sys.stderr)
