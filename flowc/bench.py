"""Times of one function: compiled against NumPy, step by step, and against what the machine can do.

Here: ``flowc bench``, running single steps of a plan on arrays of their own, estimates of flops and bytes.
Not here: what the machine can do (backends/llvm/measure.py), comparisons with other libraries (the repository's
benchmarks folder), tuning (tune.py).

Estimates: a multiply-add of a contraction is two operations, an elementwise operation and a step of a reduction are
one, a transcendental function is TRANSCENDENTAL.  Bytes are those of the arguments and results, each once: what no
program can avoid; of a step, those of the buffers it touches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flowc.backends import buffers
from flowc.compiled import Compiled, compile_graph
from flowc.dataclass import dataclass, field
from flowc.dims import evaluate, prod
from flowc.graph import Graph, Node
from flowc.op import Contraction
from flowc.passes.fuse import EXPENSIVE
from flowc.plan import Step

TRANSCENDENTAL = 16
LEAST_ROUNDS, MOST_ROUNDS = 5, 2000


# ---- steps one by one -----------------------------------------------------------------------------------------------

class Stepper:
    """A compiled graph with every buffer of its plan in memory of its own, so that steps run in any order.

    ``share``: another stepper whose buffers are used where this one's steps do not write them."""

    def __init__(self, compiled: Compiled, arrays: Sequence[np.ndarray], share: Stepper | None = None,
                 own: Sequence[Step] = ()):
        self.compiled, self.exe = compiled, compiled.executable
        self.sizes = compiled.sizes(arrays)
        written = {b for s in own for b in s.buffers[len(s.buffers) - s.outputs:]}
        plan = self.exe.plan
        self.arrays: dict[str, np.ndarray] = {}
        for name, b in self.exe.table.items():
            shape = tuple(evaluate(d, self.sizes) for d in b.type.shape)
            there = None if share is None or name in written else share.arrays.get(name)
            if b.place.kind == "param":
                self.arrays[name] = np.require(arrays[plan.params.index(name)], b.type.dtype.numpy, ("C", "A"))
            elif b.place.kind == "constant":
                self.arrays[name] = self.exe.constants[name]
            elif there is not None and there.shape == shape and there.dtype == b.type.dtype.numpy:
                self.arrays[name] = there
            else:
                self.arrays[name] = buffers.empty(shape, b.type.dtype.numpy)  # type: ignore[arg-type]
                self.arrays[name][...] = 0

    def run(self, steps: Sequence[Step]) -> None:
        for s in steps:
            self.exe.run_step(s, self.arrays, self.sizes)

    def bytes(self, step: Step) -> tuple[int, int]:
        """Bytes of the buffers that a step reads and writes."""
        cut = len(step.buffers) - max(1, step.outputs)
        return (sum(self.arrays[b].nbytes for b in step.buffers[:cut]),
                sum(self.arrays[b].nbytes for b in step.buffers[cut:]))


def operations(n: Node, sizes: Mapping[str, int]) -> int:
    """Floating point operations of a node, estimated; movement costs none."""
    family = n.op.family
    if isinstance(n.op.lower, Contraction):
        access = n.op.lower.access((*[x.type for x in n.inputs], n.type), n.attrs)
        return 2 * evaluate(prod((*access.out, *access.reduce)), sizes)
    if family == "movement" or family == "host":
        return 0
    inputs = n.inputs[0].type.size if n.inputs else 0
    size = evaluate(inputs if family in ("reduction", "general") else n.type.size, sizes)
    return size * (TRANSCENDENTAL if n.op.name in EXPENSIVE else 1)


# ---- what is measured -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Timing:
    """Seconds of one thing: median, and the tenth and ninetieth percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        low, middle, high = np.percentile(samples, (10, 50, 90))
        return cls(float(middle), float(low), float(high))

    def __str__(self) -> str:
        return f"{ms(self.median)} ms ({ms(self.low)} .. {ms(self.high)})"


@dataclass(frozen=True)
class StepTime:
    """A step of the plan: its share of the sum of all steps, estimated work, and its least time over its time."""

    name: str
    kernel: str
    seconds: float
    share: float
    flops: int
    bytes: int
    of_limit: float
    what: str


@dataclass
class Measured:
    """All figures of one function.  ``peers``: what it was compared with.  ``limit``: least seconds for the work and
    what bounds it."""

    name: str
    types: tuple[str, ...]
    threads: int
    rounds: int
    first: float
    compiled: Timing
    peers: dict[str, Timing]
    flops: int
    bytes: int
    limit: tuple[float, str]
    steps: list[StepTime] = field(default_factory=list)

    def lines(self) -> list[str]:
        c = self.compiled.median
        out = [f"{self.name}({', '.join(self.types)})",
               f"{self.threads} thread{'s' * (self.threads > 1)}, {self.rounds} rounds; median (10th .. 90th part)",
               f"{'compiled':<12} {self.compiled}; {rate(self.flops, c)}flop/s, {rate(self.bytes, c)}B/s"]
        out += [f"{name:<12} {t}; {t.median / c:.2f} times the time" for name, t in self.peers.items()]
        seconds, bound = self.limit
        needed = f"{rate(self.flops)}flop, {rate(self.bytes)}B at least"
        out += [f"{'limit':<12} {ms(seconds)} ms by {bound} ({needed}): {100 * seconds / c:.0f} % reached",
                f"{'first call':<12} {ms(self.first)} ms, compiling included"]
        if self.steps:
            out.append("steps of the plan, each on its own:")
            width = max(len(s.name) for s in self.steps)
            for s in self.steps:
                of_limit = f"{100 * s.of_limit:4.0f} % of limit" if s.of_limit else " " * 15
                out.append(f"  {s.name:<{width}} {ms(s.seconds):>8} ms {100 * s.share:4.0f} %  {of_limit}  "
                           f"{rate(s.flops):>7}flop {rate(s.bytes):>7}B  {s.what}")
        return out


def ms(seconds: float) -> str:
    t = seconds * 1e3
    return f"{t:.0f}" if t >= 100 else f"{t:.3g}" if t >= 0.001 else f"{t:.1g}"


def rate(amount: float, seconds: float = 1.0) -> str:
    """``12.3 G``: an amount per time with a prefix."""
    r = amount / seconds
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if r >= size:
            return f"{r / size:.3g} {prefix}"
    return f"{r:.3g} "


def rounds_for(calls: Mapping[str, Callable[[], object]], seconds: float) -> int:
    """Rounds that take about ``seconds`` altogether; every call is made twice to find out."""
    total = 0.0
    for fn in calls.values():
        fn()
        start = time.perf_counter()
        fn()
        total += time.perf_counter() - start
    return int(min(max(seconds / max(total, 1e-7), LEAST_ROUNDS), MOST_ROUNDS))


def measure(name: str, call: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], graph: Graph,
            arrays: Sequence[np.ndarray], seconds: float = 2.0) -> Measured:
    """Time ``call``, the compiled form of ``graph``, against ``peers``, interleaved; then its steps.

    The first call is timed too, so nothing should have been compiled before.  A peer that raises is left out.
    """
    from flowc.backends.llvm.measure import Meter, interleaved
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    calls = {"compiled": call}
    for peer, fn in peers.items():
        try:
            with np.errstate(all="ignore"):
                fn()
        except Exception:  # not every function runs on plain arrays
            continue
        calls[peer] = fn
    with np.errstate(all="ignore"):
        rounds = rounds_for(calls, seconds)
        times = {n: Timing.of(s) for n, s in interleaved(calls, rounds).items()}
    compiled = compile_graph(graph)
    sizes = compiled.sizes(arrays)
    meter = Meter()
    effort = 0.1 if seconds < 1 else 1.0
    limits = meter.limits(effort=effort)
    flops = sum(operations(n, sizes) for n in compiled.graph.nodes)
    read = sum(a.nbytes for a in arrays)
    written = sum(evaluate(o.type.nbytes, sizes) for o in graph.outputs)
    dtype = "f64" if any(o.dtype.name == "f64" for o in graph.outputs) else "f32"
    out = Measured(name, tuple(f"{a.dtype}{list(a.shape)}" for a in arrays), meter.threads, rounds, first,
                   times.pop("compiled"), times, flops, read + written, limits.seconds(flops, read, written, dtype))
    if compiled.program is not None:
        out.steps = _steps(compiled, arrays, limits, dtype, seconds)
    return out


def _steps(compiled: Compiled, arrays: Sequence[np.ndarray], limits: Any, dtype: str,
           seconds: float) -> list[StepTime]:
    from flowc.backends.llvm.measure import interleaved, median
    stepper = Stepper(compiled, arrays)
    steps = compiled.executable.plan.steps
    calls: dict[str, Callable[[], object]] = {s.name: partial(stepper.run, [s]) for s in steps}
    times = {n: median(t) for n, t in interleaved(calls, rounds_for(calls, seconds / 2)).items()}
    total = sum(times.values()) or 1.0
    counted: set[str] = set()
    out = []
    for s in reversed(steps):  # the last kernel of a group does its arithmetic, those before it prepare
        label = s.name.split(".")[0]
        group = compiled.groups["steps"][label]
        flops = 0 if label in counted else sum(operations(n, stepper.sizes) for n in group.members)
        counted.add(label)
        read, written = stepper.bytes(s)
        least = limits.seconds(flops, read, written, dtype)[0]
        first_note = s.note.split(";")[0] if s.note else s.op
        out.append(StepTime(s.name, s.kernel, times[s.name], times[s.name] / total, flops, read + written,
                            least / times[s.name] if times[s.name] > 0 else 0.0, first_note[:70]))
    return out[::-1]
