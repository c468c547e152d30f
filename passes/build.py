"""From an optimized graph to a program: groups, kernels, steps, waves, memory.

Here: names of buffers, sharing of equal kernels, the plan.  Not here: each of the stages (fuse.py, lower.py,
place.py, memory.py).  Read next: backends/runtime.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from flowc import progress
from flowc.dataclass import dataclass, field, replace
from flowc.dims import symbols
from flowc.graph import CONSTANT, Attrs, Graph, Literal, Node
from flowc.kernel import Kernel
from flowc.op import General, HostCall
from flowc.passes.alike import Families, merge_alike, structure
from flowc.passes.column_blocks import join_column_blocks
from flowc.passes.contract import lower_contraction
from flowc.passes.donate import donate
from flowc.passes.fuse import Group, partition
from flowc.passes.lower import lower_group
from flowc.passes.lowering import Context, Lowered
from flowc.passes.memory import plan_arena
from flowc.passes.place import assign_waves, computed_once
from flowc.passes.rewriting import canonical
from flowc.passes.rowblocks import join_row_blocks
from flowc.passes.schedule import Machine
from flowc.passes.stencil import merge_stencils
from flowc.passes.tally import tallies
from flowc.plan import Place, Plan, PlanBuffer, Program, Step
from flowc.types import Type


@dataclass
class BuildOptions:
    machine: Machine = field(default_factory=Machine)
    device: str = "cpu"
    fuse: bool = True
    donated: frozenset[int] = frozenset()  # params whose memory results may take over


def native(node: Node, machine: str = "cpu") -> bool:
    """Can kernels compute the node: it has a lowering for the machine, and neither it nor its operands are complex."""
    lower = node.op.lower
    if isinstance(lower, HostCall) or isinstance(lower, General) and lower.machine not in ("", machine):
        return False
    return node.dtype.kind != "c" and all(x.dtype.kind != "c" for x in node.inputs)


def build(graph: Graph, options: BuildOptions, allow=lambda name, node: True) -> Program:
    """The program that computes ``graph`` on ``options.machine``."""
    return build_with_groups(graph, options, allow)[0]


def build_with_groups(graph: Graph, options: BuildOptions, allow=lambda name, node: True) -> tuple[Program, dict]:
    """The program and what it was made from, as of a :class:`Builder`."""
    b = Builder(graph, options, allow)
    for _ in b.kernels_ahead():
        pass
    return b.program, b.groups()


class Pattern(NamedTuple):
    """Steps with places for buffers, ``#NUMBER`` for nodes and ``~NAME`` for temporaries.  whole: nothing else is
    read or written."""

    steps: Sequence[Step]
    temps: Mapping[str, Type]
    whole: bool


class Builder:
    """Makes a program: ``program`` is there when :meth:`kernels_ahead` has come to its end."""

    program: Program

    def __init__(self, graph: Graph, options: BuildOptions, allow=lambda name, node: True):
        self.graph, self.options, self.allow = graph, options, allow
        self.names: dict[Node, str] = {}
        self.constants: dict[str, Literal] = {}
        self.temps: dict[str, Type] = {}
        self.steps: list[Step] = []
        self.kernels: dict[str, Kernel] = {}
        self.families = Families()
        self.certain: list[Kernel] = []  # not given yet
        self.shared: dict[tuple, str] = {}
        self.patterns: dict[tuple | None, Pattern] = {}
        self.origin: dict[str, Group] = {}
        self.symbols = _graph_symbols(graph)

    def name_of(self, node: Node) -> str:
        name = self.names.get(node)
        if name is None:
            assert node.op is CONSTANT, node
            name = f"c{len(self.constants)}"
            self.names[node] = name
            self.constants[name] = node.attrs["value"]
        return name

    def groups(self) -> dict:
        """What the program was made from: ``steps`` (step label -> Group), ``names`` (buffer -> node), ``buffer``
        (node -> buffer)."""
        return {"steps": self.origin, "names": {name: n for n, name in self.names.items()}, "buffer": dict(self.names)}

    def kernels_ahead(self) -> Iterator[Kernel]:
        """Make the program.  Gives kernels on the way, when they are there; the program has the same objects but for
        the first of those that become one kernel."""
        graph = self.graph
        for i, p in enumerate(graph.params):
            self.names[p] = f"p{i}"
        machine = self.options.machine
        groups = partition(graph, self.options.fuse, partial(native, machine=machine.name), self.allow,
                           partial(tallies, machine=machine))
        if self.options.fuse and self.options.machine.name == "cpu":
            probe = Context(lambda n: "x", "k", self.symbols, graph.ranges, self.options.machine, lower_contraction)
            groups = join_row_blocks(groups, probe, set(graph.outputs), self.allow)
            groups = join_column_blocks(groups, graph, self.options.machine, self.allow)
            groups = merge_stencils(groups, graph, self.options.machine, self.allow)
        count = 0
        for g in groups:
            for n in g.outputs:
                self.names[n] = f"v{count}"
                count += 1
        lowering = _contraction_for(self.options.machine)
        for i, g in enumerate(groups):
            self.origin[f"s{i}"] = g
            progress.at("group", i, len(groups))
            if g.kind == "host":
                self.host_step(g, i)
                continue
            key, numbers = structure(g) or (None, {})
            pattern = self.patterns.get(key)
            if pattern is None:
                ctx = Context(self.name_of, f"k{i}", self.symbols, graph.ranges, self.options.machine, lowering)
                pattern = self.pattern(lower_group(g, ctx), ctx.name, numbers)
                if key is not None and pattern.whole:
                    self.patterns[key] = pattern
            self.add_steps(pattern, i, numbers)
            if not self.options.donated:  # else the kernel that writes a result may be another in the end
                yield from self.certain
                self.certain.clear()
        self.program = self.plan(groups)

    def host_step(self, g: Group, i: int) -> None:
        n = g.root
        self.steps.append(Step(f"s{i}", "", (*[self.name_of(x) for x in n.inputs], self.name_of(n)), (), 1, 0,
                               n.type.size, n.op.name, Attrs(n.attrs), "; ".join(g.refused)))

    def pattern(self, lowered: Lowered, prefix: str, numbers: Mapping[Node, int]) -> Pattern:
        """What a group has become, for other groups of its structure."""
        places = {self.names[n]: f"#{number}" for n, number in numbers.items() if n in self.names}
        temps = {f"~{name.removeprefix(prefix)}": t for name, t in lowered.temps.items()}
        places |= dict(zip(lowered.temps, temps, strict=True))
        steps, whole = [], True
        for kernel, work in zip(lowered.kernels, lowered.work, strict=True):
            outs = [p for p in kernel.params if p.role != "in"]
            ordered = [p for p in kernel.params if p.role == "in"] + outs
            whole = whole and all(p.name in places for p in ordered)
            formal, dims = canonical(replace(kernel, params=tuple(ordered)))
            buffers = tuple(places.get(p.name, p.name) for p in ordered)
            steps.append(Step("", self.kernel_name(formal), buffers, dims, len(outs), 0, work, "", Attrs(),
                              "; ".join(kernel.notes)))
        return Pattern(steps, temps, whole)

    def add_steps(self, pattern: Pattern, i: int, numbers: Mapping[Node, int]) -> None:
        """The steps of group ``i``, whose nodes have ``numbers``."""
        names = {place: f"k{i}{place[1:]}" for place in pattern.temps}
        self.temps |= {names[place]: t for place, t in pattern.temps.items()}
        nodes = {f"#{number}": n for n, number in numbers.items()}
        for j, s in enumerate(pattern.steps):
            label = f"s{i}" if len(pattern.steps) == 1 else f"s{i}.{j}"
            buffers = tuple(self.name_of(nodes[b]) if b in nodes else names.get(b, b) for b in s.buffers)
            self.steps.append(replace(s, name=label, buffers=buffers))

    def kernel_name(self, formal: Kernel) -> str:
        """Kernels that are equal but for names are one kernel."""
        new = f"k{len(self.kernels)}"
        name = self.shared.setdefault((formal.params, formal.dims, formal.body, formal.ranges), new)
        if name is new:
            kernel = self.kernels[name] = replace(formal, name=name)
            if self.families.add(kernel):
                self.certain.append(kernel)
        return name

    def plan(self, groups: Sequence[Group]) -> Program:
        graph = self.graph
        for n in graph.outputs:
            if n.op is CONSTANT:
                self.name_of(n)
        outputs = tuple(self.names[n] for n in graph.outputs)
        buffers = [PlanBuffer(self.names[p], p.type, Place("param", i)) for i, p in enumerate(graph.params)]
        placed = {self.names[p] for p in graph.params}
        for i, (n, name) in enumerate(zip(graph.outputs, outputs, strict=True)):
            if name not in placed and name not in self.constants:
                placed.add(name)
                buffers.append(PlanBuffer(name, n.type, Place("output", i)))
        by_name = {name: n for n, name in self.names.items()}
        for i, name in enumerate(self.constants):
            buffers.append(PlanBuffer(name, by_name[name].type, Place("constant", i)))
        temps = dict(self.temps)
        for g in groups:
            for n in g.outputs:
                if self.names[n] not in placed:
                    temps[self.names[n]] = n.type
        kernels, merged = merge_alike(self.kernels, self.steps, self.families)
        once: set[int] = set()
        if self.options.machine.name == "cpu":
            once = computed_once(merged, {name: by_name[name].type for name in self.constants}, temps)
            made = dict.fromkeys(b for i in sorted(once) for b in merged[i].buffers[-merged[i].outputs:])
            buffers += [PlanBuffer(b, temps.pop(b), Place("constant", len(self.constants) + i))
                        for i, b in enumerate(made)]
        steps = assign_waves(merged, once)
        arena, size = plan_arena(temps, steps, graph.ranges)
        plan = Plan(graph.name, self.options.device, tuple(self.names[p] for p in graph.params), outputs,
                    (*buffers, *arena), steps, size, tuple(self.symbols),
                    tuple((s, graph.ranges[s]) for s in self.symbols if s in graph.ranges), graph.constraints)
        return donate(Program(plan, kernels, self.constants), self.options.donated)


def _contraction_for(machine: Machine):
    if machine.name == "cpu":
        return lower_contraction
    from flowc.passes.gpu import lower_contraction as on_gpu
    return on_gpu


def _graph_symbols(graph: Graph) -> list[str]:
    names: dict[str, None] = {}
    for n in graph.nodes:
        for d in n.type.shape:
            if not isinstance(d, int):
                for s in sorted(symbols(d)):
                    names.setdefault(s)
    for n in graph.nodes:
        for v in n.attrs.values():
            for s in _attr_symbols(v):
                names.setdefault(s)
    return list(names)


def _attr_symbols(v) -> list[str]:
    if isinstance(v, tuple):
        return [s for x in v for s in _attr_symbols(x)]
    return sorted(symbols(v)) if type(v).__name__ == "Dim" else []
