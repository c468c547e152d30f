"""From a graph to something that runs, with every stage at hand as text.

Here: ``compile_graph`` and ``Compiled`` (graph, program, executable; texts of all stages; checking every kernel
against the interpreter).  Not here: Python functions and signatures (function.py), passes, backends.
Read next: function.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import flowc.ops  # noqa: F401  (fills the registry)
from flowc import config
from flowc.cache import default_store
from flowc.diag import FlowcError, FlowcTypeError, FlowcValueError
from flowc.dims import DimLike, evaluate, linear, symbols
from flowc.graph import Graph, Node
from flowc.plan import Program, Step
from flowc.types import Type

DEVICES = ("cpu", "cuda", "interpreter")


def check_device(device: str | None) -> str:
    """The device meant by ``device`` (None: the setting); FlowcValueError C003 lists the known ones."""
    name = device or config.get("device")
    if name not in DEVICES:
        raise FlowcValueError("C003", f"there is no device {name!r}", cure=f"use one of {', '.join(DEVICES)}")
    return "interpreter" if config.get("disable_jit") else name


class Compiled:
    """A graph compiled for one device.

    Calling it takes one array per graph parameter and returns one array per output; sizes are bound from the
    arguments' shapes and every constraint is checked.  ``source``: the graph as given; ``graph``: after the passes;
    ``program``: kernels and plan (None on the interpreter).
    """

    def __init__(self, source: Graph, device: str):
        self.source, self.device = source, device
        self.graph: Graph = source
        self.program: Program | None = None
        self.executable: Any = None
        self.groups: dict[str, Any] = {}
        self.log: Any = None
        self._bind = size_binder([p.type for p in source.params], [p.attrs["name"] for p in source.params],
                                 source.constraints, source.ranges)

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


def machine(device: str):
    """The machine description that scheduling works with."""
    from flowc.passes.schedule import Machine
    if device == "cuda":
        return Machine("cuda", 32)
    from flowc.backends.llvm.engine import host
    return Machine("cpu", host()[3])


def compile_graph(graph: Graph, *, device: str | None = None) -> Compiled:
    """Optimize and compile ``graph`` for ``device`` (cpu, cuda, interpreter; default: the setting)."""
    where = check_device(device)
    out = Compiled(graph, where)
    if where == "interpreter":
        return out
    from flowc.backends import runtime
    from flowc.passes.build import BuildOptions, build_with_groups
    from flowc.passes.manager import PassContext
    from flowc.passes.pipeline import optimise
    ctx = PassContext.from_config()
    out.log = ctx
    out.graph = optimise(graph, ctx)
    ctx.stage = "fuse"
    options = BuildOptions(machine(where), where, config.get("fuse"))
    out.program, out.groups = build_with_groups(out.graph, options, lambda what, node: ctx.allow("fuse", what, node))
    if config.get("check"):
        from flowc.verify import verify_program
        verify_program(out.program)
    out.executable = runtime.compile_program(out.program, where, store=default_store())
    _dump(out)
    return out


def _dump(c: Compiled) -> None:
    """Write the stages after the graph passes into the dump folder, if one is set."""
    if not config.get("dump_dir"):
        return
    stages = {"cpu": ("plan", "kernel", "llvm", "asm"), "cuda": ("plan", "kernel", "llvm", "ptx")}[c.device]
    for stage in stages:
        c.log.dump(stage, c.as_text(stage))


# ---- checking -------------------------------------------------------------------------------------------------------

@dataclass
class KernelCheck:
    """One kernel group against the interpreter: worst error of its outputs in units in the last place."""

    step: str
    kernels: tuple[str, ...]
    ops: tuple[str, ...]
    lines: tuple[str, ...]
    worst_ulp: float
    allowed_ulp: float
    ok: bool
    detail: str = ""


@dataclass
class Report:
    """What ``verify`` found; true if every kernel agrees.  Printing it gives a table."""

    checks: list[KernelCheck] = field(default_factory=list)

    def __bool__(self) -> bool:
        return all(c.ok for c in self.checks)

    @property
    def worst_ulp(self) -> float:
        return max((c.worst_ulp for c in self.checks), default=0.0)

    def __str__(self) -> str:
        rows = [f"{'step':8} {'worst ulp':>10} {'allowed':>10}  result  operations"]
        for c in self.checks:
            ops = " ".join(c.ops[:8]) + (" ..." if len(c.ops) > 8 else "")
            rows.append(f"{c.step:8} {c.worst_ulp:10.3g} {c.allowed_ulp:10.3g}  {'ok    ' if c.ok else 'WRONG '}  {ops}"
                        + (f"  @ {c.lines[0]}" if c.lines else "") + (f"  {c.detail}" if c.detail else ""))
        return "\n".join(rows)

    __repr__ = __str__


# stored fraction bits, and the exponent of the least subnormal
_FLOAT = {"float16": (10, -24), "bfloat16": (7, -133), "float32": (23, -149), "float64": (52, -1074)}


def ulp_distance(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Element distances in units in the last place of ``want``; 0 for equal bits or two NaNs, inf where only one is
    finite or NaN.  Integers and bools: 0 or inf."""
    if got.dtype.kind in "biu":
        return np.where(got == want, 0.0, np.inf)
    with np.errstate(all="ignore"):
        if got.dtype.kind == "c":
            return np.maximum(ulp_distance(got.real, want.real), ulp_distance(got.imag, want.imag))
        digits, least = _FLOAT[want.dtype.name]
        eps, tiny = 2.0 ** -digits, 2.0 ** least
        g, w = got.astype(np.float64), want.astype(np.float64)
        unit = np.maximum(2.0 ** np.floor(np.log2(np.maximum(np.abs(w), tiny))) * eps, tiny)
        d = np.abs(g - w) / unit
        d = np.where((g == w) | (np.isnan(g) & np.isnan(w)), 0.0, d)
        return np.where(np.isnan(d), np.inf, d)


def allowed_ulp(group: Any, sizes: Mapping[str, int], reference: np.ndarray, scale: float) -> float:
    """Bound on a kernel's distance from NumPy: the ops' own bounds add up along the kernel; sums and products of many
    terms may differ by the rounding of that many terms, relative to the sum of magnitudes (``scale``)."""
    total = 0.0
    for n in group.members:
        total += max(n.op.ulp.values(), default=0.0) if n.dtype.floating else 0.0
        terms = 0
        if n.op.family == "reduction" and n.dtype.floating:
            terms = evaluate(n.inputs[0].type.size, sizes) // max(1, evaluate(n.type.size, sizes))
        elif n.op.family == "contraction":
            both = evaluate(n.inputs[0].type.size, sizes) * evaluate(n.inputs[1].type.size, sizes)
            terms = int((both / max(1, evaluate(n.type.size, sizes))) ** 0.5) + 1
        total += 2.0 * terms ** 0.5 if terms else 0.0
        total += 0.5 * len(n.inputs) if n.dtype.floating else 0.0
    return 4.0 + 2.0 * total * scale


def verify_compiled(c: Compiled, arrays: Sequence[np.ndarray]) -> Report:
    """Check every kernel of ``c`` on the values the interpreter gives its operands.

    Each group of kernels gets its operands from the interpreter, so an error is charged to the kernel that makes it.
    Where operands cancel, a small result carries the rounding of large terms: the distance is then measured against
    a float64 run of the same group as well, and the kernel may err as NumPy does.
    """
    from flowc.backends.interp import run_nodes
    report = Report()
    sizes = c.sizes(arrays)
    if c.program is None:
        return report
    plan, table = c.program.plan, c.program.plan.table()
    env: dict[Node, np.ndarray] = dict(zip(c.graph.params, arrays, strict=True))
    names = c.groups["names"]

    def value(node: Node) -> np.ndarray:
        if node not in env:
            run_nodes([n for n in c.graph.nodes if n not in env], env, sizes)
        return env[node]

    run_nodes([n for n in c.graph.nodes if n not in env], env, sizes)
    by_step: dict[str, list[Step]] = {}
    for s in plan.steps:
        by_step.setdefault(s.name.split(".")[0], []).append(s)
    for label, group in c.groups["steps"].items():
        buffers: dict[str, np.ndarray] = {}
        for s in by_step[label]:
            for b in s.buffers:
                if b in buffers:
                    continue
                t = table[b].type
                shape = tuple(evaluate(d, sizes) for d in t.shape)
                node = names.get(b)
                inside = node is None or node in group.outputs
                buffers[b] = np.zeros(shape, t.dtype.numpy) if inside else np.asarray(value(node), order="C")
        for s in by_step[label]:
            c.executable.run_step(s, buffers, sizes)
        worst, allowed, detail = 0.0, 0.0, ""
        for n in group.outputs:
            got, want = buffers[c.groups["buffer"][n]], np.asarray(value(n))
            d = ulp_distance(got.reshape(want.shape), want)
            scale = 1.0
            bound = allowed_ulp(group, sizes, want, scale)
            far = d > bound
            if far.any() and n.dtype.floating:
                far = _judge(group, n, env, sizes, got.reshape(want.shape), want, far, bound)
            if far.any() and not detail:
                at = tuple(int(i) for i in np.argwhere(far)[0])
                detail = f"{n.op.name}{list(at)}: kernel {got.reshape(want.shape)[at]!r}, interpreter {want[at]!r}"
            worst = max(worst, float(np.max(d, initial=0.0, where=np.isfinite(d))) if not far.any()
                        else float(np.max(d, initial=0.0)))
            allowed = max(allowed, bound)
        lines = tuple(dict.fromkeys(str(n.loc) for n in group.members if n.loc is not None))
        report.checks.append(KernelCheck(label, tuple(s.kernel for s in by_step[label]),
                                         tuple(n.op.name for n in group.members), lines, worst, allowed, not detail,
                                         detail))
    return report


def _judge(group: Any, node: Node, env: Mapping[Node, np.ndarray], sizes: Mapping[str, int], got: np.ndarray,
           want: np.ndarray, far: np.ndarray, bound: float) -> np.ndarray:
    """Where the kernel is farther from a float64 run than rounding of the operands' magnitudes explains."""
    exact = wide_run(group, node, env, sizes)
    with np.errstate(all="ignore"):
        g, w = got.astype(np.float64), want.astype(np.float64)
        eps = 2.0 ** -_FLOAT[want.dtype.name][0]
        size = magnitude_run(group, node, env, sizes)
        error, theirs = np.abs(g - exact), np.abs(w - exact)
        fine = (error <= 4 * theirs) | (error <= bound * eps * size)
        return far & ~(fine | (g == w) | (np.isnan(g) & np.isnan(w)))


def wide_run(group: Any, node: Node, env: Mapping[Node, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """The value of ``node`` with every float of its group computed in float64."""
    return _run_wide(group, node, env, sizes, lambda a: a)


def magnitude_run(group: Any, node: Node, env: Mapping[Node, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """The largest magnitude met while computing ``node``: the scale its rounding errors refer to."""
    members = set(group.members)
    inputs = [x for n in group.members for x in n.inputs if x not in members and x.dtype.floating]
    inner = [n for n in group.members if n.dtype.floating]
    top = 0.0
    for x in (*inputs, *inner):
        a = np.abs(np.asarray(env[x], np.float64))
        top = max(top, float(np.max(a, initial=0.0, where=np.isfinite(a))))
    return np.asarray(top)


def _run_wide(group: Any, node: Node, env: Mapping[Node, np.ndarray], sizes: Mapping[str, int], f) -> np.ndarray:
    from flowc.backends.interp import evaluate_node
    wide: dict[Node, np.ndarray] = {}
    for n in group.members:
        args = []
        for x in n.inputs:
            a = wide.get(x, env[x])
            args.append(a.astype(np.float64) if x.dtype.floating else a)
        try:
            wide[n] = np.asarray(evaluate_node(n, args, sizes))
        except FlowcError:
            wide[n] = np.asarray(env[n])
        if n is node:
            break
    return wide[node].astype(np.float64)
