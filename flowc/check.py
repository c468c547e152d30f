"""Checking compiled kernels against the interpreter.

Here: the report, distances in units in the last place, what rounding explains.  Not here: compiling (compiled.py).

Each group of kernels gets its operands from the interpreter, so that an error is charged to the kernel that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from flowc.dataclass import dataclass, field
from flowc.diag import FlowcError
from flowc.dims import evaluate
from flowc.graph import Node
from flowc.kernel import CHUNK, LANES
from flowc.plan import Step


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


def allowed_ulp(group: Any) -> float:
    """Bound on the distance of a kernel from NumPy where nothing cancels: the bounds of its ops and one rounding per
    operation, twice."""
    total = 0.0
    for n in group.members:
        if n.dtype.floating:
            total += 1.0 + n.op.ulp.get(n.dtype.name, 1.0)
    return 4.0 + 2.0 * total


def verify_compiled(c: Any, arrays: Sequence[np.ndarray]) -> Report:
    """Check every kernel of ``c`` on the values the interpreter gives its operands.

    Each group of kernels gets its operands from the interpreter, so an error is charged to the kernel that makes it.
    Where operands cancel or a function is steep, small roundings grow: a distance beyond the plain bound is accepted
    if random roundings of a float64 run of the same group explain it.
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
                if table[b].place.over >= 0:
                    buffers[b] = np.array(arrays[table[b].place.over], order="C")
        for s in by_step[label]:
            c.executable.run_step(s, buffers, sizes)
        worst, allowed, detail = 0.0, 0.0, ""
        for n in group.outputs:
            got, want = buffers[c.groups["buffer"][n]], np.asarray(value(n))
            d = ulp_distance(got.reshape(want.shape), want)
            bound = allowed_ulp(group)
            far = d > bound
            if far.any() and n.dtype.floating:
                far &= ~explained(group, n, env, sizes, got.reshape(want.shape), want, c.device)
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


RUNS, MARGIN = 6, 12.0  # perturbed runs, and how far beyond their spread an error may lie


def explained(group: Any, node: Node, env: Mapping[Node, np.ndarray], sizes: Mapping[str, int], got: np.ndarray,
              want: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Where the distance of ``got`` from ``want``, or from what exact arithmetic gives, is what rounding does to this
    computation.

    The group is run in float64, exactly and with every float rounded at random by what its dtype and op allow; the
    spread of the results is the scale of the error (stochastic arithmetic, Vignes 1978).
    """
    rng = np.random.default_rng(0)
    exact = wide_run(group, node, env, sizes, None, device)
    with np.errstate(all="ignore"):
        spread = np.zeros(want.shape)
        for _ in range(RUNS):
            spread = np.fmax(spread, np.abs(wide_run(group, node, env, sizes, rng, device) - exact))
        g, w = got.astype(np.float64), want.astype(np.float64)
        return np.fmin(np.abs(g - w), np.abs(g - exact)) <= MARGIN * spread


def _rounded(a: np.ndarray, dtype: Any, ulp: float, rng: np.random.Generator | None) -> np.ndarray:
    if rng is None or dtype.name not in _BITS:
        return a
    digits, least = _FLOAT[_BITS[dtype.name]]
    unit = 2.0 ** -digits * (0.5 + ulp)
    return a * (1.0 + unit * rng.uniform(-1, 1, a.shape)) + 2.0 ** least * rng.uniform(-1, 1, a.shape) * (a != 0)


_BITS = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}


def _tree(n: Node, x: np.ndarray) -> float:
    """Additions on the way of an element through lanes, chunks and their folding (kernel.py)."""
    count = prod(x.shape[a] for a in n.attrs["axes"])
    return min(count, LANES + count / CHUNK + 8)


def _most(n: Node, x: np.ndarray, at: np.ndarray, updates: np.ndarray) -> float:
    """Updates of the place that has most of them."""
    size = x.shape[n.attrs["axis"]]
    return float(np.bincount(np.clip(at.ravel(), 0, size - 1)).max(initial=0)) if size else 0.0


# roundings on the way of an operand element into the result, for ops that round after each addition or product
_CHAINS: dict[str, Callable[..., float]] = {
    "reduce_sum": _tree,
    "reduce_prod": _tree,
    "dot": lambda n, x, y: prod(x.shape[a] for a in n.attrs["lhs_contract"]),
    "conv": lambda n, x, w: prod(w.shape[1:]),
    "scatter_add": _most,
}


def _chain_error(n: Node, args: Sequence[np.ndarray], sizes: Mapping[str, int], device: str) -> np.ndarray:
    """What the roundings of a long sum or product may come to, as a part of MARGIN.

    Equal addends are rounded the same way each time, so nothing averages out: half a unit for every addition on the
    way of an element into the result (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), times the
    same sum of magnitudes.  Convolutions by minimal filtering have a bound of their own (passes/minimal_filters.py).
    """
    from flowc.backends.interp import concrete, evaluate_node
    from flowc.passes import minimal_filters
    digits = max(23, _FLOAT[_BITS[n.dtype.name]][0])  # 16-bit floats are summed in f32
    args = [np.abs(a) if a.dtype.kind in "fc" else a for a in args]
    total, chain = np.abs(np.asarray(evaluate_node(n, args, sizes))), _CHAINS[n.op.name](n, *args)
    conv = n.op.name == "conv" and device == "cpu"
    tiles = minimal_filters.best_filter(n) if conv else None
    if tiles is not None:
        attrs = {k: concrete(v, sizes) for k, v in n.attrs.items()}
        total = minimal_filters.magnitudes(n, tiles, args[0], args[1], attrs)
        chain = chain / minimal_filters.TAPS ** 2 + minimal_filters.DEPTH
    elif conv and (tiles := minimal_filters.best_sums(n)) is not None:
        attrs = {k: concrete(v, sizes) for k, v in n.attrs.items()}
        total = minimal_filters.sum_magnitudes(n, tiles, args[0], args[1], attrs)
        chain = minimal_filters.summed_tiles(args[1].shape, tiles) + minimal_filters.DEPTH
    return total * (chain * 2.0 ** -digits / MARGIN)


def wide_run(group: Any, node: Node, env: Mapping[Node, np.ndarray], sizes: Mapping[str, int],
             rng: np.random.Generator | None, device: str = "cpu") -> np.ndarray:
    """The value of ``node`` with every float of its group computed in float64; with ``rng``, rounded at random."""
    from flowc.backends.interp import evaluate_node
    wide: dict[Node, np.ndarray] = {}
    for n in group.members:
        args = []
        many = n.op.family in ("reduction", "contraction")
        for x in n.inputs:
            a = wide.get(x, env[x])
            if x.dtype.floating:
                a = a.astype(np.float64)
                a = _rounded(a, n.dtype, 0.0, rng) if many else a
            args.append(a)
        try:
            value = np.asarray(evaluate_node(n, args, sizes))
            if rng is not None and n.op.name in _CHAINS and n.dtype.floating:
                value = value + _chain_error(n, args, sizes, device) * rng.uniform(-1, 1, value.shape)
        except FlowcError:
            value = np.asarray(env[n])
        wide[n] = _rounded(value.astype(np.float64), n.dtype, n.op.ulp.get(n.dtype.name, 0.0), rng) \
            if n.dtype.floating else value
        if n is node:
            break
    return wide[node].astype(np.float64)
