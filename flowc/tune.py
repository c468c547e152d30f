"""Measuring a processor for the cost model, and finding better schedules for the kernels of a function.

Here: ``flowc tune``: what is measured, how figures follow from it, which schedules are tried.
Not here: where results are kept (tuned.py), how the compiler looks them up (compiled.machine, backends/llvm/share.py,
passes/choices.py), the native kernels that are timed (backends/llvm/measure.py).  Read next: bench.py.

Everything tuned changes time only, never a bit: a schedule whose results differ from the chosen one's in a single bit
is refused here, which would be an error of flowc.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flowc import config, tuned
from flowc.api import jit
from flowc.bench import Stepper, rounds_for
from flowc.compiled import Compiled, Stages, compile_graph, machine
from flowc.dataclass import dataclass, replace
from flowc.diag import FlowcError
from flowc.graph import Graph
from flowc.passes.choices import Choices, fields_text, revised
from flowc.plan import Program, Step
from flowc.tuned import Tuned

GAIN = 0.03          # a schedule must be faster by this part to be taken
NARROW_GAIN = 1.05   # narrower vectors must be this much faster on the average
SPLIT_GAIN = 0.8     # threads are woken where they bring the time below this part
CHUNK_COST = 0.02    # of a chunk's time may go into handing it out
LEAST_CHUNK_US = 1.0


# ---- the processor --------------------------------------------------------------------------------------------------

def _row_softmax(x: Any) -> Any:
    e = np.exp(x - np.max(x, axis=1, keepdims=True))
    return e / np.sum(e, axis=1, keepdims=True)


# what the cost model's unit is measured on: different kinds of kernels on data that fits the inner caches
SAMPLES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "elementwise": (lambda x, y: (x * y + x) * 0.5 - y, ((1 << 15,), (1 << 15,))),
    "transcendental": (lambda x: np.tanh(x) * np.exp(-x * x), ((1 << 15,),)),
    "rows": (_row_softmax, ((64, 512),)),
    "columns": (lambda x: np.sum(x, axis=0), ((256, 128),)),
    "contraction": (lambda a, b: a @ b, ((192, 192), (192, 192))),
}


def _sample(name: str, bits: int = 0) -> tuple[Compiled, list[np.ndarray]]:
    fn, shapes = SAMPLES[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    target = machine("cpu")
    compiled = compile_graph(jit(fn).lower(*arrays).graph, device="cpu",
                             target=replace(target, vector_bits=bits or target.vector_bits, choices=None))
    return compiled, arrays


def _mean(ratios: Sequence[float]) -> float:
    """Geometric."""
    return float(np.exp(np.mean(np.log(ratios))))


def vector_bits(widest: int, seconds: float) -> int:
    """The width of vectors to use: a narrower one only where it is clearly faster."""
    from flowc.backends.llvm.measure import interleaved, median
    best = widest
    while best > 128:
        ratios = []
        for name in ("transcendental", "contraction"):
            (a, arrays), (b, _) = _sample(name, best), _sample(name, best // 2)
            calls = {"wide": partial(a, arrays), "narrow": partial(b, arrays)}
            t = interleaved(calls, rounds_for(calls, seconds / 4))
            ratios.append(median(t["wide"]) / median(t["narrow"]))
        if _mean(ratios) < NARROW_GAIN:
            break
        best //= 2
    return best


def work_per_us(seconds: float) -> int:
    """Work units of one thread in a microsecond, over the kinds of kernels."""
    from flowc.backends.llvm.measure import interleaved, median
    rates = []
    for name in SAMPLES:
        compiled, arrays = _sample(name)
        stepper = Stepper(compiled, arrays)
        steps = compiled.executable.plan.steps
        calls = {"it": partial(stepper.run, steps)}
        t = median(interleaved(calls, rounds_for(calls, seconds / len(SAMPLES)))["it"])
        rates.append(compiled.executable.work(stepper.sizes) / (t * 1e6))
    return max(1, round(_mean(rates)))


def caches(latency: Callable[[int], float]) -> tuple[int, int]:
    """Bytes of the first and second cache of a core, from the latency of loads in sets of growing size.

    A cache ends where the latency passes the geometric mean of its own and the next one's.  Random places fill a cache
    unevenly, so the knee comes early: what the system says is believed if it is near.
    """
    l1_time = latency(8 << 10)
    sizes = [k << 10 for k in (16, 24, 32, 48, 64, 96, 128, 192)]
    l1 = max((s for s in sizes if latency(s) < 1.6 * l1_time), default=sizes[0])
    l2_time, l3_time = latency(4 * l1), latency(64 * l1 * 4)
    middle = (l2_time * max(l3_time, l2_time)) ** 0.5
    sizes = [k << 10 for k in (192, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 3072, 4096)]
    l2 = l1 * 4
    for s in sizes:
        if s > l2 and latency(s) < middle:
            l2 = s
    told = system_caches()
    return tuple(told[level] if level in told and 0.25 <= told[level] / size <= 4 else size  # type: ignore[return-value]
                 for level, size in ((1, l1), (2, l2)))


def system_caches(root: str = "/sys/devices/system/cpu/cpu0/cache") -> dict[int, int]:
    """Bytes of the data caches of a core by level, as the system tells them; empty where it does not."""
    out: dict[int, int] = {}
    try:
        for name in sorted(os.listdir(root)):
            if not name.startswith("index"):
                continue
            words = {}
            for what in ("level", "type", "size"):
                with open(os.path.join(root, name, what)) as f:
                    words[what] = f.read().strip()
            unit = {"K": 1 << 10, "M": 1 << 20}.get(words["size"][-1:], 0)
            if words["type"] in ("Data", "Unified") and unit:
                out[int(words["level"])] = int(words["size"][:-1]) * unit
    except (OSError, ValueError):
        return {}
    return out


def fork_costs(meter: Any, rounds: int) -> tuple[float, float]:
    """Seconds of waking the threads and waiting for them, and of handing out one chunk.

    Threads wait a moment for more work and then sleep; calls come in bursts and alone, so the cost is the mean of
    both, the waking from sleep after a pause.
    """
    from flowc.backends.llvm.measure import median

    def one() -> float:
        start = time.perf_counter()
        meter.nothing()
        return time.perf_counter() - start
    busy = median([one() for _ in range(rounds)])
    rested = []
    for _ in range(max(5, rounds // 8)):
        time.sleep(0.002)
        rested.append(one())
    many = 512
    chunks = median([_timed(lambda: meter.nothing(many)) for _ in range(max(5, rounds // 4))])
    return (busy * median(rested)) ** 0.5, max(1e-9, (chunks - busy) / many)


def _timed(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def calibrate(seconds: float = 4.0) -> Tuned:
    """Measure this processor.  Takes about ``seconds``; schedules tuned before are kept."""
    from flowc.backends.llvm import engine
    from flowc.backends.llvm.measure import Meter
    before = tuned.look(engine.processor())[0]
    with config.options(tuned=False, schedules=""):
        bits = vector_bits(engine.host().vector_bits, seconds / 4)
        meter = Meter(bits)
        l1, l2 = caches(lambda n: meter.latency(n, max(2000, int(50_000 * min(1.0, seconds / 4)))))
        with config.options(num_threads=1):
            rate = work_per_us(seconds / 4)
        threads = meter.threads
        fork, chunk = fork_costs(meter, max(20, int(100 * seconds)))
    # alone: work/rate; shared: fork + work/(rate*threads); wanted: shared <= SPLIT_GAIN * alone
    serial = fork * 1e6 * rate / (SPLIT_GAIN - 1 / threads) if threads > 1 else 0
    least = max(LEAST_CHUNK_US, chunk * 1e6 / CHUNK_COST) * rate
    return Tuned(bits, l1, l2, rate, max(1, round(fork * 1e9)), max(1, round(serial or 50 * rate)),
                 max(1, round(least)), before.schedules)


# ---- the kernels of a function --------------------------------------------------------------------------------------

@dataclass
class Tried:
    """A problem with the schedule it had and the best one found, and the medians of their times in seconds."""

    problem: str
    before: str
    best: str
    before_s: float = 0.0
    best_s: float = 0.0
    tried: int = 0
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"{self.problem}: {self.refused}"
        change = "stays" if self.best == self.before else f"-> {self.best}"
        gain = f", {self.before_s / self.best_s:.2f} times faster" if self.best != self.before else ""
        return f"{self.problem}: {self.before} {change} ({self.before_s * 1e3:.3g} ms{gain}; {self.tried} tried)"


def _tiles(s: Any) -> list[str]:
    """Register tiles: rows by whole vectors, as many as accumulators fit in 32 or 16 registers."""
    if s.form == "thin":
        return [f"nr={n}" for n in (256, 512, 1024, 2048, 4096)]
    rows = {1: (4, 8, 12, 16, 24), 2: (4, 6, 8, 12, 14), 3: (4, 6, 8, 9), 4: (4, 6), 6: (4,)}
    return [f"mr={m} nr={n * s.width}" for n in rows for m in rows[n]]


def _forms(s: Any) -> list[str]:
    free = s.form in ("packed", "direct")
    return ["form=direct", "form=packed copy_rows=0", "form=packed copy_rows=1"] if free else []


def _scaled(name: str, *factors: float) -> Callable[[Any], list[str]]:
    return lambda s: [f"{name}={max(1, int(getattr(s, name) * f))}" for f in factors]


# schedule -> stages: what is tried while the fields of earlier stages keep their best values
STAGES: dict[str, list[Callable[[Any], list[str]]]] = {
    "ContractSchedule": [_forms, _tiles, _scaled("kc", 0.5, 0.75, 1.5, 2, 4), _scaled("mc", 0.25, 0.5, 2, 4),
                         _scaled("nc", 0.25, 0.5, 2, 4)],
    "MapSchedule": [_scaled("width", 0.25, 0.5, 2, 4), _scaled("tile", 0.25, 0.5, 2, 4, 16)],
}


def stages(schedule: Any) -> list[Callable[[Any], list[str]]]:
    """What to try for a schedule: its table; without one, halves and doubles of its numbers."""
    return STAGES.get(type(schedule).__name__) or [
        _scaled(f.name, 0.5, 2) for f in dataclasses.fields(schedule) if type(getattr(schedule, f.name)) is int]


def problems(graph: Graph) -> dict[str, Any]:
    """Every problem of a graph with the schedule that it gets now."""
    target = replace(machine("cpu"), choices=_recorder())
    compile_graph(graph, device="cpu", target=target)
    assert target.choices is not None
    return target.choices.seen


def _recorder() -> Choices:
    now = machine("cpu").choices
    return Choices(now.given, now.tuned.items()) if now is not None else Choices()


class _Problem:
    """One problem of a graph while it is tuned."""

    def __init__(self, graph: Graph, base: Stepper, problem: str, schedule: Any):
        self.graph, self.base, self.problem, self.schedule = graph, base, problem, schedule
        self.target = machine("cpu")

    def build(self, words: str) -> tuple[Stepper, list[Step]] | None:
        """A program of only the steps that another schedule changes, compiled; None if it changes nothing."""
        now = _recorder()
        choices = Choices((), {**now.tuned, self.problem: words}.items())
        from flowc.backends import runtime
        from flowc.passes.build import BuildOptions, build_with_groups
        compiled = self.base.compiled
        program, groups = build_with_groups(compiled.graph, BuildOptions(replace(self.target, choices=choices), "cpu",
                                                                         config.get("fuse")))
        changed = changed_groups(compiled.program, program)  # type: ignore[arg-type]
        if not changed:
            return None
        steps = [s for s in program.plan.steps if s.name.split(".")[0] in changed]
        part = Program(replace(program.plan, steps=tuple(steps)), {s.kernel: program.kernels[s.kernel] for s in steps},
                       program.constants)
        out = Compiled(compiled.source, "cpu", lambda: Stages(compiled.graph, part, groups))
        out.executable = runtime.compile_program(part, "cpu")
        params = [self.base.arrays[p] for p in part.plan.params]
        return Stepper(out, params, share=self.base, own=steps), steps

    def same_bits(self, stepper: Stepper, steps: Sequence[Step]) -> bool:
        stepper.run(steps)
        results = {self.base.compiled.groups["buffer"][n] for label in {s.name.split(".")[0] for s in steps}
                   for n in self.base.compiled.groups["steps"][label].outputs}
        return all(stepper.arrays[b].tobytes() == self.base.arrays[b].tobytes() for b in results)

    def own_steps(self, steps: Sequence[Step]) -> list[Step]:
        labels = {s.name.split(".")[0] for s in steps}
        return [s for s in self.base.exe.plan.steps if s.name.split(".")[0] in labels]


def changed_groups(a: Program, b: Program) -> set[str]:
    """Labels of the groups whose kernels differ between two programs of one graph."""
    def kernels(p: Program) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {}
        for s in p.plan.steps:
            k = p.kernels.get(s.kernel)
            out.setdefault(s.name.split(".")[0], []).append(
                None if k is None else (k.params, k.dims, k.body, k.ranges))
        return out
    old, new = kernels(a), kernels(b)
    return {label for label, ks in new.items() if ks != old.get(label)}


def tune_graph(graph: Graph, arrays: Sequence[np.ndarray], seconds: float = 2.0,
               say: Callable[[str], None] = lambda text: None) -> list[Tried]:
    """Try schedules for every kernel of a graph on these arguments; about ``seconds`` of timing per problem.

    Each candidate is compiled alone, checked to give the same bits, and timed in turn with the best so far.
    """
    recorder = _recorder()
    compiled = compile_graph(graph, device="cpu", target=replace(machine("cpu"), choices=recorder))
    base = Stepper(compiled, arrays)
    base.run(compiled.executable.plan.steps)
    out = []
    for problem, schedule in recorder.seen.items():
        p = _Problem(graph, base, problem, schedule)
        out.append(_tune(p, seconds))
        say(str(out[-1]))
    return out


def _tune(p: _Problem, seconds: float) -> Tried:
    best = now = p.schedule
    out = Tried(p.problem, fields_text(now), fields_text(now))
    plan = stages(now)
    for stage in plan:
        found: dict[str, Any] = {}
        for words in stage(best):
            candidate = revised(best, words)
            text = fields_text(candidate)
            if candidate != best and text not in found:
                found[text] = candidate
        times = _race(p, best, found, seconds / len(plan), out)
        if times is None:
            continue
        out.tried += len(times) - 1
        winner = min(times, key=times.__getitem__)
        now_s = times[fields_text(best)]
        out.before_s = out.before_s or now_s
        out.best_s = out.best_s or now_s
        if times[winner] < now_s * (1 - GAIN):
            best = found[winner]
            out.best_s *= times[winner] / now_s
    out.best = fields_text(best)
    if not out.tried and not out.refused:
        out.refused = "no other schedule gives other code"
    return out


def _race(p: _Problem, best: Any, found: Mapping[str, Any], seconds: float, out: Tried) -> dict[str, float] | None:
    """Medians of the best so far and of the candidates, one of each in turn."""
    from flowc.backends.llvm.measure import interleaved, median
    calls: dict[str, Callable[[], object]] = {}
    own: list[Step] = []
    for text in [fields_text(best), *found]:
        try:
            built = p.build(text)
        except (FlowcError, ValueError, MemoryError) as e:
            print(f"{p.problem}: {text}: {e}", file=sys.stderr)
            continue
        if built is None:
            continue
        stepper, steps = built
        if not p.same_bits(stepper, steps):
            print(f"{p.problem}: {text} gives other bits; this is an error of flowc: report it", file=sys.stderr)
            continue
        own = p.own_steps(steps)
        calls[text] = partial(stepper.run, steps)
    if not calls or set(calls) == {fields_text(best)}:
        return None
    if fields_text(best) not in calls:  # what the base program does already
        calls[fields_text(best)] = partial(p.base.run, own)
    return {n: median(t) for n, t in interleaved(calls, rounds_for(calls, seconds)).items()}


def store(found: Sequence[Tried]) -> str:
    """Keep the schedules that won, in place of older ones for the same problems; returns the file.  OSError."""
    from flowc.backends.llvm.engine import processor
    before = tuned.look(processor())[0]
    rules = dict(before.schedules)
    for t in found:
        if t.best != t.before:
            rules[t.problem] = t.best
    return tuned.save(processor(), replace(before, schedules=tuple(rules.items())))
