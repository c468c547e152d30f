"""Results in the memory of arguments that the caller gives away.

Here: which result may take over which argument's memory, and kernels that read and write one buffer.
Not here: whose memory is donated (flowc/function.py), what happens to arrays when it runs (backends/runtime.py).

A result takes over an argument of its type if nothing reads the argument once the result is being written: every
other reader runs in an earlier wave, and the kernel that writes the result either does not read the argument, or
reads each element just before it writes the same one.  Such a kernel gets one buffer instead of two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count

from flowc.dataclass import replace
from flowc.dims import Call, Dim, DimLike, symbols
from flowc.kernel import Kernel, Loop, Stmt, Store, children, expressions, parts, walk
from flowc.passes.rewriting import canonical, map_addresses
from flowc.plan import Program, Step


def donate(program: Program, donated: Collection[int]) -> Program:
    """The program in which results lie where it is possible in the params of the numbers ``donated``."""
    plan = program.plan
    pairs = _pairs(program, donated)
    if not pairs:
        return program
    kernels, names = dict(program.kernels), {_content(k): name for name, k in program.kernels.items()}
    steps = list(plan.steps)
    for result, param in pairs.items():
        i = next(i for i, s in enumerate(steps) if result in _written(s))
        if param in _read(steps[i]):
            steps[i] = _in_one_buffer(steps[i], param, result, kernels, names)
    place = {result: plan.params.index(param) for result, param in pairs.items()}
    buffers = tuple(replace(b, place=replace(b.place, over=place[b.name])) if b.name in place else b
                    for b in plan.buffers)
    used = {s.kernel for s in steps}
    return Program(replace(plan, steps=tuple(steps), buffers=buffers),
                   {name: k for name, k in kernels.items() if name in used}, program.constants)


def _read(s: Step) -> tuple[str, ...]:
    return s.buffers[:len(s.buffers) - s.outputs]


def _written(s: Step) -> tuple[str, ...]:
    return s.buffers[len(s.buffers) - s.outputs:]


def _content(k: Kernel) -> tuple:
    return k.params, k.dims, k.body, k.ranges


def _pairs(program: Program, donated: Collection[int]) -> dict[str, str]:
    """Result -> param whose memory it takes over: updates in place first."""
    plan, table = program.plan, program.plan.table()
    writers: dict[str, list[Step]] = {}
    readers: dict[str, list[Step]] = {}
    for s in plan.steps:
        for b in _written(s):
            writers.setdefault(b, []).append(s)
        for b in _read(s):
            readers.setdefault(b, []).append(s)
    results = [b.name for b in plan.buffers if b.place.kind == "output" and len(writers.get(b.name, ())) == 1]
    params = [p for i, p in enumerate(plan.params) if i in donated and p not in plan.outputs]
    out: dict[str, str] = {}
    for in_place in (True, False):
        for result in results:
            (writer,) = writers[result]
            for p in params:
                if result in out or p in out.values() or table[p].type != table[result].type:
                    continue
                late = [s for s in readers.get(p, ()) if s.wave >= writer.wave]
                if late == [writer] and _overwrites(program, writer, p, result) if in_place else not late:
                    out[result] = p
    return out


def _overwrites(program: Program, s: Step, param: str, result: str) -> bool:
    """Does the step read the param only where, and just before, it writes the result?"""
    kernel = program.kernels.get(s.kernel)
    if kernel is None or s.buffers.count(param) != 1:
        return False
    name = dict(zip(s.buffers, (p.name for p in kernel.params), strict=True))
    return overwrites(kernel, name[param], name[result])


def overwrites(kernel: Kernel, source: str, target: str) -> bool:
    """Is every element of ``source`` read only in the statements that end with writing the same of ``target``, once?
    An index that is held back by an edge may stand for one element twice: then the second time reads what the first
    wrote."""
    found = list(_stores(kernel.body, target, ()))
    if len(found) != 1:
        return False
    index, before, loops = found[0]
    moving = {x.var for x in loops if x.extent != 1}
    if not moving <= symbols(index) <= moving | set(kernel.dims) or _clamped(index):
        return False
    here, everywhere = _loads(before, source), _loads(walk(kernel.body), source)
    return len(here) == len(everywhere) and all(i == index for i in here)


def _stores(block: Sequence[Stmt], target: str, loops: tuple[Loop, ...]
            ) -> Iterable[tuple[DimLike, Sequence[Stmt], tuple[Loop, ...]]]:
    """Index, statements up to it in its block, and loops around each store to ``target``."""
    for i, s in enumerate(block):
        if isinstance(s, Store) and s.buffer == target:
            yield s.index, block[:i + 1], loops
        for inner in children(s):
            yield from _stores(inner, target, (*loops, s) if isinstance(s, Loop) else loops)


def _loads(stmts: Iterable[Stmt], source: str) -> list[DimLike]:
    return [x.attr[1] for s in stmts for x in parts(expressions(s)) if x.op == "load" and x.attr[0] == source]


def _clamped(d: DimLike) -> bool:
    atoms = [atom for mono, _ in d.terms for atom, _ in mono] if isinstance(d, Dim) else []
    return any(isinstance(a, Call) and (a.fn in ("min", "max") or any(map(_clamped, a.args))) for a in atoms)


def _in_one_buffer(s: Step, param: str, result: str, kernels: dict[str, Kernel], names: dict[tuple, str]) -> Step:
    """The step with a kernel that reads ``param`` from the buffer of ``result``."""
    k = kernels[s.kernel]
    name: Mapping[str, str] = dict(zip(s.buffers, (p.name for p in k.params), strict=True))
    body = map_addresses(k.body, lambda b, i: (name[result] if b == name[param] else b, i))
    params = tuple(replace(p, role="inout") if p.name == name[result] else p for p in k.params
                   if p.name != name[param])
    formal, _ = canonical(replace(k, params=params, body=body))
    kernel = names.setdefault(_content(formal), next(n for n in map("k{}".format, count()) if n not in kernels))
    kernels.setdefault(kernel, replace(formal, name=kernel))
    return replace(s, kernel=kernel, buffers=tuple(b for b in s.buffers if b != param))
