"""The function that runs a whole plan: every wave, every kernel, in native code.

Here: ``@run`` and ``@sizes`` of a program.
Not here: the kernels (emit.py), what is split over threads (share.py), arguments and results (callpath.py, cpu.py).
Read next: backends/runtime.py.

``void @run(ptr %buffers, ptr %dims, ptr %arena, ptr %pool)``
    buffers: pointers to the params, then the outputs, then the constants of the program, in plan order.
    dims: i64 values of ``plan.symbols``.  arena: ``plan.arena`` bytes.  pool: a thread pool, or null to run here.
``i32 @sizes(ptr %dims, ptr %out)``
    0 if the sizes break a range or constraint of the plan, or are so large that i64 arithmetic might wrap.  Otherwise
    1, and ``out`` holds the shapes of all outputs one after the other, the bytes of the arena and the total work.

Kernels split their work by chunk number and never by thread, so the number of chunks, which follows from the number
of threads and the work, changes no bit of a result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flowc.backends.llvm.builder import Function, Module
from flowc.backends.llvm.pool_ir import RUN_MANY, RUN_ONE
from flowc.backends.llvm.share import ROW, costs, field, field_at, put
from flowc.dataclass import replace
from flowc.dims import Call, Dim, DimLike, prod, substitute, sym, symbols
from flowc.kernel import Kernel, Let, Loop
from flowc.plan import ONCE, Place, Plan, Program, Step

PART = 48                           # steps per function: LLVM's time per function grows faster than its length

KERNEL_SIGNATURE = "void (ptr, i64, i64)"


def kernel_symbols(program: Program) -> dict[str, str]:
    """A symbol for every kernel by kernel name; kernels that are equal but for their names share one."""
    seen: dict[Kernel, str] = {}
    out: dict[str, str] = {}
    for name, kernel in program.kernels.items():
        key = replace(kernel, name="")
        if key not in seen:
            seen[key] = f"k{len(seen)}_" + re.sub(r"[^A-Za-z0-9_]", "_", name)[:40]
        out[name] = seen[key]
    return out


def parallel_extent(kernel: Kernel) -> DimLike | None:
    """Iterations of the outermost parallel nest, over the kernel's dims; None without such a nest.  An extent that
    the kernel computes itself is unknown outside and counts as a very large one: chunks beyond it are empty."""
    nest = next((s for s in kernel.body if isinstance(s, Loop) and s.kind == "parallel"), None)
    extents: list[DimLike] = []
    while nest is not None:
        extents.append(nest.extent)
        inner = nest.body[0] if len(nest.body) == 1 else None
        nest = inner if isinstance(inner, Loop) and inner.kind == "parallel" else None
    if not extents:
        return None
    total = prod(extents)
    for s in reversed(kernel.body):  # names that the kernel gives to sizes
        if isinstance(s, Let) and s.value.op == "index":
            total = substitute(total, {s.name: s.value.attr})
    return total if symbols(total) <= set(kernel.dims) else 1 << 40


def buffer_slots(plan: Plan, constants: Iterable[str]) -> dict[tuple[str, object], int]:
    """Position in ``%buffers`` of every param (``("param", i)``), output and constant (``("constant", name)``)."""
    keys: list[tuple[str, object]] = [("param", i) for i in range(len(plan.params))]
    keys += [("output", i) for i in range(len(plan.outputs))]
    keys += [("constant", name) for name in constants]
    return {key: i for i, key in enumerate(keys)}


def emit_entry(program: Program, module: Module, kernels: Mapping[str, str] | None = None, name: str = "run") -> None:
    """Add ``@run`` (called ``name``) to ``module``.  ``kernels``: symbol of each kernel, by default
    :func:`kernel_symbols`; what the module does not define is declared.  The plan must have no host steps."""
    kernels = kernel_symbols(program) if kernels is None else kernels
    defined = {m[1] for f in module.functions if (m := re.match(r"define [^@\n]*@\"?([^\"(]+)\"?\(", f))}
    for symbol in dict.fromkeys(kernels.values()):
        if symbol not in defined:
            module.declare(symbol, KERNEL_SIGNATURE)
    parts = list(_parts(program.plan.waves()))
    arguments = "ptr %buffers, ptr %dims, ptr %arena, ptr %pool"
    for i, part in enumerate(parts):
        title = name if len(parts) == 1 else f"{name}.part{i}"
        linkage = "" if len(parts) == 1 else "internal"
        _Part(program, module, Function(module, title, arguments, linkage=linkage), kernels, name).emit(part)
    if len(parts) != 1:
        f = Function(module, name, arguments)
        for i in range(len(parts)):
            f.raw(f"call void @{name}.part{i}({arguments})")
        f.finish()


def _parts(waves: Sequence[Sequence[Step]]) -> Iterator[list[list[Step]]]:
    """Waves, cut where they are very wide, grouped into functions of about PART steps."""
    part: list[list[Step]] = []
    count = 0
    for wave in waves:
        for at in range(0, len(wave), PART):
            piece = list(wave[at:at + PART])
            if count + len(piece) > PART and part:
                yield part
                part, count = [], 0
            part.append(piece)
            count += len(piece)
    if part:
        yield part


class _Part:
    """Emits one function that runs some waves.  Sizes and pointers are computed once, where they are first needed;
    that is always a block which every later wave passes through."""

    def __init__(self, program: Program, module: Module, f: Function, kernels: Mapping[str, str], name: str):
        self.program, self.module, self.f, self.kernels, self.name = program, module, f, kernels, name
        self.table = program.plan.table()
        self.slots = buffer_slots(program.plan, program.plan.constants())
        self.env: dict[str, str | int] = {}
        self.sizes: dict[DimLike, str | int] = {}
        self.pointers: dict[str, str] = {}
        self.frames: list[int] = []  # size of the argument array at each position of a wave
        self.table_rows = 0

    def emit(self, waves: Sequence[Sequence[Step]]) -> None:
        for wave in waves:
            self._wave(wave)
        allocas = [f"  %frame{i} = alloca [{max(n, 1)} x i64], align 8" for i, n in enumerate(self.frames)]
        if self.table_rows:
            allocas.append(f"  %group = alloca [{1 + ROW * self.table_rows} x i64], align 8")
        self.f.lines[2:2] = allocas
        self.f.finish()

    # -- values

    def _size(self, d: DimLike) -> str | int:
        if isinstance(d, int):
            return d
        for s in sorted(symbols(d)):
            if s not in self.env:
                self.env[s] = field(self.f, "%dims", self.program.plan.symbols.index(s), "i64")
        if d not in self.sizes:
            self.sizes[d] = self.f.dim(d, self.env)
        return self.sizes[d]

    def _pointer(self, name: str) -> str:
        if name not in self.pointers:
            place = self.table[name].place
            if place.kind == "arena":
                self.pointers[name] = self.f.op(f"getelementptr i8, ptr %arena, i64 {self._size(place.offset)}")
            else:
                self.pointers[name] = field(self.f, "%buffers", self.slots[_slot_key(name, place)], "ptr")
        return self.pointers[name]

    # -- steps

    def _arguments(self, position: int, step: Step) -> str:
        """Fill the argument array of a step; returns its name."""
        frame = f"%frame{position}"
        while len(self.frames) <= position:
            self.frames.append(0)
        self.frames[position] = max(self.frames[position], len(step.buffers) + len(step.dims))
        for i, buffer in enumerate(step.buffers):
            put(self.f, frame, i, "ptr", self._pointer(buffer))
        for i, d in enumerate(step.dims, len(step.buffers)):
            put(self.f, frame, i, "i64", self._size(d))
        return frame

    def _wave(self, steps: Sequence[Step]) -> None:
        f = self.f
        frames = [self._arguments(i, s) for i, s in enumerate(steps)]
        extents = [self._extent(s) for s in steps]
        works = [self._size(s.work) for s in steps]
        small = all(isinstance(w, int) for w in works) and sum(map(int, works)) < costs().serial_work
        if small or len(steps) == 1 and extents[0] == 1:
            self._serial(steps, frames)
            return
        alone, shared, done = f.label("alone"), f.label("shared"), f.label("done")
        f.cond_br(f.op("icmp eq ptr %pool, null"), alone, shared)
        f.begin(alone)
        self._serial(steps, frames)
        f.br(done)
        f.begin(shared)
        rows = [(f"@{self.kernels[s.kernel]}", frame, w, e)
                for s, frame, w, e in zip(steps, frames, works, extents, strict=True)]
        self._one(*rows[0]) if len(rows) == 1 else self._many(rows)
        f.br(done)
        f.begin(done)

    def _serial(self, steps: Sequence[Step], frames: Sequence[str]) -> None:
        for step, frame in zip(steps, frames, strict=True):
            self.f.raw(f"call void @{self.kernels[step.kernel]}(ptr {frame}, i64 0, i64 1)")

    def _one(self, kernel: str, frame: str, work: str | int, extent: str | int) -> None:
        run = field_at(self.f, "%pool", RUN_ONE, "ptr")
        self.f.raw(f"call void {run}(ptr %pool, ptr {kernel}, ptr {frame}, i64 {work}, i64 {extent})")

    def _many(self, rows: Sequence[tuple[str, str, str | int, str | int]]) -> None:
        self.table_rows = max(self.table_rows, len(rows))
        put(self.f, "%group", 0, "i64", len(rows))
        for i, row in enumerate(rows):
            for j, (ty, value) in enumerate(zip(("ptr", "ptr", "i64", "i64"), row, strict=True)):
                put(self.f, "%group", 1 + ROW * i + j, ty, value)
        run = field_at(self.f, "%pool", RUN_MANY, "ptr")
        self.f.raw(f"call void {run}(ptr %pool, ptr %group)")

    def _extent(self, step: Step) -> str | int:
        kernel = self.program.kernels[step.kernel]
        extent = parallel_extent(kernel)
        if extent is None:
            return 1
        return self._size(substitute(extent, dict(zip(kernel.dims, step.dims, strict=True))))


def _slot_key(name: str, place: Place) -> tuple[str, object]:
    return ("constant", name) if place.kind == "constant" else (place.kind, place.index)


# ---- sizes ----------------------------------------------------------------------------------------------------------

def hidden_symbols(plan: Plan) -> dict[DimLike, str]:
    """Param dims that are neither a number nor a plain symbol of the plan, each with the name under which ``@sizes``
    gets its actual value: these follow ``plan.symbols`` in ``%dims``."""
    out: dict[DimLike, str] = {}
    table = plan.table()
    for p in plan.params:
        for d in table[p].type.shape:
            if isinstance(d, Dim) and d.atom() not in plan.symbols and d not in out:
                out[d] = f".{len(out)}"
    return out


def emit_sizes(program: Program, module: Module, name: str = "sizes") -> None:
    """Add ``@sizes`` (called ``name``) to ``module``."""
    plan = program.plan
    table = plan.table()
    hidden = hidden_symbols(plan)
    results: list[DimLike] = [d for o in plan.outputs for d in table[o].type.shape]
    outputs = len(results)
    results += [plan.arena, _total(s.work for s in plan.steps if s.wave != ONCE)]
    equal = [*plan.constraints, *((sym(h), d) for d, h in hidden.items())]
    f = Function(module, name, "ptr %dims, ptr %out", ret="i32")
    env: dict[str, str | int] = {s: field(f, "%dims", i, "i64")
                                 for i, s in enumerate([*plan.symbols, *hidden.values()])}
    fine: list[str] = []
    limit = safe_size([*results, *(x for pair in equal for x in pair)])
    for value in env.values():
        fine.append(f.op(f"icmp ule i64 {value}, {limit}"))  # also refuses negative ones
    for symbol, (lo, hi) in plan.ranges:
        if symbol in env:
            if lo != 0:
                fine.append(f.op(f"icmp sge i64 {env[symbol]}, {f.dim(lo, env)}"))
            if hi is not None:
                fine.append(f.op(f"icmp sle i64 {env[symbol]}, {f.dim(hi, env)}"))
    for a, b in equal:
        fine.append(f.op(f"icmp eq i64 {f.dim(a, env)}, {f.dim(b, env)}"))
    for i, d in enumerate(results):
        value = f.dim(d, env)
        if i < outputs and not isinstance(value, int):
            fine.append(f.op(f"icmp sge i64 {value}, 0"))
        put(f, "%out", i, "i64", value)
    verdict = "true"
    for c in fine:
        verdict = f.op(f"and i1 {verdict}, {c}")
    f.finish(f.op(f"zext i1 {verdict} to i32"))


def _total(dims: Iterable[DimLike]) -> DimLike:
    """The sum of many sizes; equal ones are counted first, which keeps this linear for long plans."""
    counts: dict[DimLike, int] = {}
    number = 0
    for d in dims:
        if isinstance(d, int):
            number += d
        else:
            counts[d] = counts.get(d, 0) + 1
    total: DimLike = number
    for d, n in counts.items():
        total = total + d * n
    return total


def safe_size(dims: Iterable[DimLike]) -> int:
    """A power of two such that no step of computing ``dims`` leaves the range of i64 while no symbol exceeds it."""
    polynomials = [d for d in dims if isinstance(d, Dim)]
    for bits in range(40, 0, -1):
        if all(_magnitude(d, 1 << bits) < 1 << 62 for d in polynomials):
            return 1 << bits
    return 1


def _magnitude(d: DimLike, size: int) -> int:
    """An upper bound of |d| and of all parts of its computation, for symbols within 0..size."""
    if isinstance(d, int):
        return abs(d)
    total = 0
    for mono, c in d.terms:
        term = abs(c)
        for atom, power in mono:
            part = sum(_magnitude(a, size) for a in atom.args) if isinstance(atom, Call) else size
            term *= part ** power
        total += term
    return total
