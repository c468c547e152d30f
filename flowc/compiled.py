"""From a graph to something that runs, with every stage at hand as text.

Here: ``compile_graph`` and ``Compiled`` (graph, program, executable; texts of all stages; checking every kernel
against the interpreter).  Not here: Python functions and signatures (function.py), passes, backends.
Read next: function.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import flowc.ops  # noqa: F401  (fills the registry)
from flowc import config, image, progress, tuned
from flowc.cache import default_store
from flowc.check import Report, verify_compiled
from flowc.dataclass import dataclass, field
from flowc.diag import FlowcTypeError, FlowcValueError
from flowc.dims import DimLike, evaluate, linear, symbols
from flowc.graph import Graph
from flowc.kernel import Kernel
from flowc.plan import Program, Unfinished
from flowc.types import Type
from flowc.uncollected import uncollected

if TYPE_CHECKING:
    from flowc.passes.manager import PassContext
    from flowc.passes.schedule import Machine

DEVICES = ("cpu", "cuda", "interpreter")


def check_device(device: str | None) -> str:
    """The device meant by ``device`` (None: the setting); FlowcValueError C003 lists the known ones."""
    name = device or config.get("device")
    if name not in DEVICES:
        raise FlowcValueError("C003", f"there is no device {name!r}", cure=f"use one of {', '.join(DEVICES)}")
    return "interpreter" if config.get("disable_jit") else name


@dataclass(frozen=True)
class Stages:
    """What lies between a graph and its executable: the graph after the passes, kernels and plan, what each step was
    made from (passes/build.py), the log of the passes."""

    graph: Graph
    program: Program | None = None
    groups: Mapping[str, Any] = field(default_factory=dict)
    log: Any = None


class Compiled:
    """A graph compiled for one device.

    Calling it takes one array per graph parameter and returns one array per output; sizes are bound from the
    arguments' shapes and every constraint is checked.  ``source``: the graph as given; ``graph``: after the passes;
    ``program``: kernels and plan (None on the interpreter).  These are made when asked for if the executable came
    from the disk.  ``lower``: makes them.
    """

    def __init__(self, source: Graph, device: str, lower: Callable[[], Stages] | None = None):
        self.source, self.device = source, device
        self.executable: Any = None
        self.stages = functools.cache(lower or (lambda: Stages(source)))
        self._bind = size_binder([p.type for p in source.params], [p.attrs["name"] for p in source.params],
                                 source.constraints, source.ranges)

    @property
    def graph(self) -> Graph:
        return self.stages().graph

    @property
    def program(self) -> Program | None:
        return self.stages().program

    @property
    def groups(self) -> Mapping[str, Any]:
        return self.stages().groups

    @property
    def log(self) -> Any:
        return self.stages().log

    def sizes(self, arrays: Sequence[np.ndarray]) -> dict[str, int]:
        """Value of every symbol, from the shapes of the arguments."""
        return self._bind(arrays)

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        sizes = self._bind(arrays)
        if self.executable is None:
            from flowc.backends.interp import run_graph
            return run_graph(self.source, list(arrays))
        return self.executable.run(arrays, sizes)

    def as_text(self, stage: str = "graph") -> str:
        """The text of a stage: trace, graph, plan, kernel, llvm, asm (CPU), ptx (CUDA)."""
        from flowc import text
        if stage == "trace":
            return text.graph_text(self.source)
        if stage == "graph":
            return text.graph_text(self.graph)
        if self.program is None:
            raise FlowcValueError("C004", f"the interpreter has no stage {stage!r}",
                                  cure="compile for cpu or cuda, or ask for trace or graph")
        if stage == "plan":
            return text.plan_text(self.program.plan)
        if stage == "kernel":
            return "\n".join(text.kernel_text(k) for k in self.program.kernels.values())
        stages = {"cpu": ("llvm", "asm"), "cuda": ("llvm", "ptx")}[self.device]
        if stage not in stages:
            raise FlowcValueError("C004", f"there is no stage {stage!r} on {self.device}",
                                  cure=f"use one of trace, graph, plan, kernel, {', '.join(stages)}")
        return self.executable.as_text(stage)

    def verify(self, arrays: Sequence[np.ndarray]) -> Report:
        """Run every kernel on the interpreter's values of its operands and compare what it writes."""
        return verify_compiled(self, arrays)


def size_binder(types: Sequence[Type], names: Sequence[str], constraints, ranges) -> Callable[..., dict[str, int]]:
    """A function from argument arrays to symbol values that checks ranks, dtypes, sizes and constraints."""
    solved: list[tuple[str, int, int, DimLike]] = []  # symbol, argument, axis, the size it stands in
    checks: list[tuple[int, int, DimLike]] = []
    known: set[str] = set()
    pending = []
    for i, t in enumerate(types):
        for a, d in enumerate(t.shape):
            free = symbols(d) - known
            if isinstance(d, int) or not free:
                checks.append((i, a, d))
            elif len(free) == 1 and linear(d, next(iter(free))) is not None:
                name = next(iter(free))
                solved.append((name, i, a, d))
                known.add(name)
            else:
                pending.append((i, a, d))
    checks += pending

    def fail(code: str, text: str, cure: str):
        raise FlowcTypeError(code, text, cure=cure)

    def bind(arrays: Sequence[np.ndarray]) -> dict[str, int]:
        if len(arrays) != len(types):
            fail("C010", f"{len(arrays)} arguments for {len(types)} parameters", f"pass {', '.join(names)}")
        for x, t, name in zip(arrays, types, names, strict=True):
            if x.dtype != t.dtype.numpy or x.ndim != t.rank:
                fail("C011", f"argument {name} is {x.dtype}{list(x.shape)}, compiled for {t}",
                     f"pass an array of type {t}")
        sizes: dict[str, int] = {}
        for name, i, a, d in solved:
            c, rest = linear(d, name)  # type: ignore[misc]
            gap = arrays[i].shape[a] - evaluate(rest, sizes)
            factor = evaluate(c, sizes)
            if factor == 0 or gap % factor:
                fail("C012", f"axis {a} of argument {names[i]} is {arrays[i].shape[a]}, which is no value of {d}",
                     f"pass a size of the form {d}")
            sizes[name] = gap // factor
        for i, a, d in checks:
            want = evaluate(d, sizes)
            if arrays[i].shape[a] != want:
                fail("C013", f"axis {a} of argument {names[i]} is {arrays[i].shape[a]}, compiled for {d}"
                     + ("" if isinstance(d, int) else f" = {want}"), f"pass {names[i]} as {types[i]}")
        for name, (lo, hi) in ranges.items():
            if name in sizes and (sizes[name] < evaluate(lo, sizes)
                                  or (hi is not None and sizes[name] > evaluate(hi, sizes))):
                fail("C014", f"size {name} = {sizes[name]} is outside {lo}..{'' if hi is None else hi}",
                     "pass arrays of a size in range")
        for left, right in constraints:
            if evaluate(left, sizes) != evaluate(right, sizes):
                fail("C015", f"{left} = {evaluate(left, sizes)} must equal {right} = {evaluate(right, sizes)}",
                     "pass arrays whose sizes agree")
        return sizes
    return bind


def machine(device: str) -> Machine:
    """The machine description that scheduling works with: this processor's, with what was measured of it."""
    from flowc.passes.schedule import Machine
    if device == "cuda":
        return Machine("cuda", 32)
    from flowc.backends.llvm.engine import host, processor
    from flowc.backends.llvm.target import dots
    from flowc.passes.choices import choices
    found = tuned.load(processor())
    return Machine("cpu", found.vector_bits or host().vector_bits, found.l1 or Machine.l1, found.l2 or Machine.l2,
                   choices(config.get("schedules"), found.schedules), dots(host().features))


def compile_graph(graph: Graph, *, device: str | None = None, target: Machine | None = None,
                  donated: Collection[int] = (), sizes: Mapping[str, int] | None = None) -> Compiled:
    """Optimize and compile ``graph`` for ``device`` (cpu, cuda, interpreter; default: the setting).
    target: what scheduling assumes of the machine, by default what is known of this one.  donated: params whose arrays
    a call may overwrite; used on the CPU.  sizes: values of the symbols in a call that waits for the result, whose
    memory is made ready meanwhile."""
    where = check_device(device)
    if where == "interpreter":
        return Compiled(graph, where)
    with uncollected():
        return _compiled(graph, where, target, donated, sizes)


def _compiled(graph: Graph, where: str, target: Machine | None, donated: Collection[int],
              sizes: Mapping[str, int] | None) -> Compiled:
    from flowc.passes.manager import PassContext
    ctx, fuse, target = PassContext.from_config(), config.get("fuse"), target or machine(where)
    given = frozenset(donated) if where == "cpu" else frozenset()
    lowering = _Lowering(graph, where, target, ctx, fuse, given)
    out = Compiled(graph, where, lowering.stages)
    with progress.line(graph.name):
        _compile(out, lowering, target, ctx, given, sizes)
    _dump(out)
    return out


class _Lowering:
    """The way from a graph to its program."""

    def __init__(self, graph: Graph, device: str, target: Machine, ctx: PassContext, fuse: bool,
                 donated: frozenset[int]):
        self._graph, self._device, self._target, self._ctx = graph, device, target, ctx
        self._fuse, self._donated = fuse, donated
        self._stages: Stages | None = None

    def kernels(self) -> Iterator[Kernel]:
        """Go it, and give the kernels that are met."""
        from flowc.passes.build import Builder, BuildOptions
        from flowc.passes.pipeline import optimise
        ctx = self._ctx
        optimised = optimise(self._graph, ctx)
        ctx.stage = "fuse"
        builder = Builder(optimised, BuildOptions(self._target, self._device, self._fuse, self._donated),
                          lambda what, node: ctx.allow("fuse", what, node))
        yield from builder.kernels_ahead()
        if ctx.check:
            from flowc.verify import verify_program
            verify_program(builder.program)
        self._stages = Stages(optimised, builder.program, builder.groups(), ctx)

    def stages(self) -> Stages:
        """What was met, after going there if nobody has."""
        if self._stages is None:
            for _ in self.kernels():
                pass
        assert self._stages is not None
        return self._stages


def _compile(out: Compiled, lowering: _Lowering, target: Machine, ctx: PassContext, donated: frozenset[int],
             sizes: Mapping[str, int] | None) -> None:
    """Give ``out`` its executable: the one on the disk, or a new one."""
    store = default_store()
    key = image.key(out.source, target, ctx, donated) if store is not None and out.device == "cpu" else None
    if store is not None and key is not None:
        out.executable = image.load(store, key, out.source, lambda: _program(out))
    if out.executable is not None:
        return
    from flowc.backends import runtime
    runtime.prepare(out.device, store)

    def kernels() -> Iterator[Kernel]:
        yield from lowering.kernels()
        if sizes is not None and out.device == "cpu":
            runtime.touch_ahead(_program(out).plan, sizes)
    out.executable = runtime.compile_program(Unfinished(kernels, lambda: _program(out)), out.device, store=store)
    if store is not None and key is not None:
        image.save(store, key, out.source, _program(out), out.executable)


def _program(c: Compiled) -> Program:
    program = c.program
    assert program is not None  # only the interpreter has none
    return program


def _dump(c: Compiled) -> None:
    """Write the stages after the graph passes into the dump folder, if one is set."""
    if not config.get("dump_dir"):
        return
    stages = {"cpu": ("plan", "kernel", "llvm", "asm"), "cuda": ("plan", "kernel", "llvm", "ptx")}[c.device]
    for stage in stages:
        c.log.dump(stage, c.as_text(stage))
