"""The interpreters of the three IRs: slow, obvious, the reference for everything else.

Here: graphs node by node, plans step by step; ``run_kernel`` and ``NUMPY_MEANING`` are at home in spmd.py and
meaning.py and may be imported from here.  Not here: machine code.  Read next: spmd.py.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from flowc.backends.meaning import NUMPY_MEANING
from flowc.backends.spmd import poison, run_kernel
from flowc.diag import FlowcError, FlowcTypeError, FlowcValueError, VerifyError
from flowc.dims import Dim, DimLike, evaluate, linear, symbols
from flowc.graph import CONSTANT, PARAM, Graph, Node
from flowc.op import Op, get
from flowc.plan import PlanBuffer, Program, Step
from flowc.types import Type

__all__ = ["NUMPY_MEANING", "bind_sizes", "concrete", "evaluate_node", "run_graph", "run_kernel", "run_nodes",
           "run_program"]


# ---- sizes ----------------------------------------------------------------------------------------------------------

def bind_sizes(types: Sequence[Type], arrays: Sequence[np.ndarray]) -> dict[str, int]:
    """The value of every symbol in ``types`` from the shapes of ``arrays``.

    Sizes with one unknown symbol in a linear place are solved for it.  FlowcTypeError C301 for a wrong number of
    arrays, dtype or rank; FlowcValueError C302 for shapes that do not fit.
    """
    if len(types) != len(arrays):
        raise FlowcTypeError("C301", f"{len(arrays)} arrays for {len(types)} parameters", cure="give one for each")
    open_: list[tuple[DimLike, int, str]] = []
    for i, (t, a) in enumerate(zip(types, arrays, strict=True)):
        if a.dtype != t.dtype.numpy or a.ndim != t.rank:
            raise FlowcTypeError("C301", f"argument {i} is {a.dtype}{list(a.shape)}, not {t}", cure=f"give a {t}")
        open_ += [(d, n, f"axis {axis} of argument {i}") for axis, (d, n) in enumerate(zip(t.shape, a.shape))]
    sizes: dict[str, int] = {}
    while open_:
        later = []
        for d, n, what in open_:
            free = symbols(d) - sizes.keys()
            if not free:
                have = evaluate(d, sizes)
                if have != n:
                    shown = str(d) if isinstance(d, int) else f"{d} = {have}"
                    raise FlowcValueError("C302", f"{what} has size {n}, not {shown}",
                                          cure="give arrays whose shapes fit each other")
            elif not _solve(d, n, free, sizes):
                later.append((d, n, what))
        if len(later) == len(open_):
            d, n, what = later[0]
            raise FlowcValueError("C302", f"{what} has size {n}; {d} does not tell the symbols in it",
                                  cure="let each symbol stand alone on some axis")
        open_ = later
    return sizes


def _solve(d: DimLike, n: int, free: frozenset[str], sizes: dict[str, int]) -> bool:
    """Give the one free symbol of ``d`` the value that makes it ``n``, if that is possible."""
    name = next(iter(free))
    split = linear(d, name) if len(free) == 1 else None
    if split is None:
        return False
    factor, gap = evaluate(split[0], sizes), n - evaluate(split[1], sizes)
    if factor == 0 or gap % factor:
        return False
    sizes[name] = gap // factor
    return True


def concrete(value: Any, sizes: Mapping[str, int]) -> Any:
    """An attribute with every size replaced by its value.  KeyError names a symbol without one."""
    if isinstance(value, Dim):
        return evaluate(value, sizes)
    if isinstance(value, tuple):
        return tuple(concrete(v, sizes) for v in value)
    return Type(value.dtype, concrete(value.shape, sizes)) if isinstance(value, Type) else value


# ---- graphs ---------------------------------------------------------------------------------------------------------

@cache
def _wants_type(op: Op) -> bool:
    try:
        return "out_type" in inspect.signature(op.numpy).parameters
    except (TypeError, ValueError):
        return False


def apply_op(op: Op, arrays: Sequence[np.ndarray], attrs: Mapping[str, Any], type_: Type,
             sizes: Mapping[str, int]) -> np.ndarray:
    """The NumPy meaning of an op with sizes filled in, without floating-point warnings."""
    full = {k: concrete(v, sizes) for k, v in attrs.items()}
    if _wants_type(op):
        full["out_type"] = concrete(type_, sizes)
    with np.errstate(all="ignore"):
        return np.asarray(op.numpy(*arrays, **full))


def evaluate_node(node: Node, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """The value of one node from its operands' values.  FlowcError C303 where the meaning does not take them."""
    if node.op is CONSTANT:
        return node.attrs["value"].array
    try:
        return apply_op(node.op, arrays, node.attrs, node.type, sizes)
    except (FlowcError, MemoryError):
        raise
    except Exception as e:
        shown = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
        raise FlowcError("C303", f"{node.op.name}({shown}): {type(e).__name__}: {e}", loc=node.loc,
                         cure="the operation's record does not agree with its type rule; report it") from e


def run_nodes(nodes: Iterable[Node], env: MutableMapping[Node, np.ndarray], sizes: Mapping[str, int],
              keep: Iterable[Node] | None = None) -> MutableMapping[Node, np.ndarray]:
    """Evaluate ``nodes``, operands before uses, into ``env``, which holds the parameters.

    Every result is checked against its node's type (VerifyError V405).  With ``keep``, only the values of these nodes
    stay; all others leave ``env`` after their last use.
    """
    todo = [n for n in nodes if n not in env]
    uses: dict[Node, int] = {}
    for n in todo:
        for x in n.inputs:
            uses[x] = uses.get(x, 0) + 1
    kept = None if keep is None else set(keep)
    for n in todo:
        lost = n if n.op is PARAM else next((x for x in n.inputs if x not in env), None)
        if lost is not None:
            raise FlowcError("C304", f"{lost} has no value", loc=lost.loc,
                             cure="give the values of parameters, and nodes after their operands")
        value = evaluate_node(n, [env[x] for x in n.inputs], sizes)
        shape = tuple(evaluate(d, sizes) for d in n.shape)
        if value.dtype != n.dtype.numpy or value.shape != shape:
            raise VerifyError("V405", f"{n.op.name} gave {value.dtype}{list(value.shape)}, its type is {n.type}",
                              loc=n.loc, notes=[f"{k} = {v}" for k, v in sizes.items()],
                              cure="the operation's record does not agree with its type rule; report it")
        env[n] = value
        if kept is None:
            continue
        for x in n.inputs:
            uses[x] -= 1
            if not uses[x] and x not in kept:
                env.pop(x, None)
        if n not in kept and not uses.get(n):
            del env[n]
    return env


def run_graph(graph: Graph, arrays: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None) -> list[np.ndarray]:
    """The results of ``graph`` for ``arrays``, one per parameter.  ``sizes`` come from the shapes if not given.
    Results may share memory with arguments, constants and each other."""
    given = [np.asarray(a) for a in arrays]
    found = bind_sizes([p.type for p in graph.params], given)
    env: dict[Node, np.ndarray] = dict(zip(graph.params, given, strict=True))
    run_nodes(graph.nodes, env, {**(sizes or {}), **found}, keep=graph.outputs)
    return [env[o] for o in graph.outputs]


# ---- plans ----------------------------------------------------------------------------------------------------------

class _PlanRun:
    """Buffers of one run.  Arena memory holds poison before its buffer is born and after it has died."""

    def __init__(self, program: Program, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]):
        self.program, self.plan, self.sizes = program, program.plan, sizes
        self.arena = np.full(evaluate(self.plan.arena, sizes), 0xA5, np.uint8)
        self.table = self.plan.table()
        self.arrays: dict[str, np.ndarray] = {}
        for b in self.plan.buffers:
            self.arrays[b.name] = self.place(b, arrays)
        self.born: dict[str, int] = {}
        self.dies: dict[str, int] = {}
        for s in self.plan.steps:
            for name in s.buffers:
                if self.table[name].place.kind == "arena":
                    self.born[name] = min(self.born.get(name, s.wave), s.wave)
                    self.dies[name] = max(self.dies.get(name, s.wave), s.wave)

    def place(self, b: PlanBuffer, arrays: Sequence[np.ndarray]) -> np.ndarray:
        shape = tuple(evaluate(d, self.sizes) for d in b.type.shape)
        if b.place.kind == "param":
            a = np.array(arrays[b.place.index], order="C")
            if a.dtype != b.type.dtype.numpy or a.shape != shape:
                raise FlowcTypeError("C301", f"argument {b.place.index} is {a.dtype}{list(a.shape)}, not {b.type}",
                                     cure=f"give a {b.type}")
            a.setflags(write=False)
            return a
        if b.place.kind == "constant":
            given = self.program.constants.get(b.name)
            return poison(b.type.dtype, shape) if given is None else given.array
        if b.place.kind == "output":
            return poison(b.type.dtype, shape) if b.place.over < 0 else np.array(arrays[b.place.over], order="C")
        start, size = evaluate(b.place.offset, self.sizes), int(np.prod(shape, dtype=object)) * b.type.dtype.bytes
        if start < 0 or start + size > len(self.arena):
            raise VerifyError("V406", f"buffer {b.name} lies at {start}..{start + size} of an arena of "
                              f"{len(self.arena)} bytes", cure="the plan is wrong; report it")
        return np.ndarray(shape, b.type.dtype.numpy, buffer=self.arena, offset=start) if size else np.empty(
            shape, b.type.dtype.numpy)

    def spoil(self, names: Iterable[str]) -> None:
        for n in names:
            self.arrays[n][...] = poison(self.table[n].type.dtype, self.arrays[n].shape)

    def step(self, s: Step, races: bool) -> None:
        if s.kernel:
            k = self.program.kernels[s.kernel]
            run_kernel(k, {p.name: self.arrays[b] for p, b in zip(k.params, s.buffers, strict=True)},
                       {d: evaluate(v, self.sizes) for d, v in zip(k.dims, s.dims, strict=True)}, races=races)
            return
        *inputs, out = s.buffers
        target, t = self.arrays[out], self.table[out].type
        result = apply_op(get(s.op), [self.arrays[b] for b in inputs], s.attrs, t, self.sizes)
        if result.shape != target.shape or result.dtype != target.dtype:
            raise VerifyError("V405", f"{s.op} gave {result.dtype}{list(result.shape)}, its type is {t}",
                              cure="the operation's record does not agree with its type rule; report it")
        target[...] = result


def run_program(program: Program, arrays: Sequence[np.ndarray], sizes: Mapping[str, int],
                shuffle: int | None = None, races: bool = False) -> list[np.ndarray]:
    """The results of a program, as fresh arrays.

    Steps run wave by wave, inside a wave in the plan's order or, with ``shuffle``, in a random order from that seed.
    Memory that no living buffer holds is poisoned: a plan that reads too early or too late gives NaN or nonsense.
    """
    run = _PlanRun(program, [np.asarray(a) for a in arrays], sizes)
    rng = None if shuffle is None else random.Random(shuffle)
    for s in program.plan.once():
        run.step(s, races)
    for number, wave in enumerate(program.plan.waves()):
        steps = list(wave)
        if rng is not None:
            rng.shuffle(steps)
        run.spoil(n for n, w in run.born.items() if w == number)
        for s in steps:
            try:
                run.step(s, races)
            except FlowcError as e:
                e.add_note(f"in step {s.name}")
                raise
        run.spoil(n for n, w in run.dies.items() if w == number)
    return [np.array(run.arrays[n], order="C") for n in program.plan.outputs]
