"""The CPU as a device: a program as machine code.

Here: which modules a program is compiled into, running it whole or step by step, its texts.
Not here: code of kernels (emit.py) and of the entry (entry.py), LLVM (engine.py), the native call (callpath.py).
Read next: entry.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flowc import progress
from flowc.backends import buffers
from flowc.backends.llvm import pool
from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.callpath import CallSpec, make_callable
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.engine import OPT_LEVEL, QUICK, Code, Source, Store, compile_modules, content_name, host
from flowc.backends.llvm.entry import emit_entry, emit_sizes, parallel_extent
from flowc.backends.llvm.share import WORK_PER_US, costs
from flowc.backends.llvm.target import cpu_target
from flowc.backends.runtime import Executable, normalise, run_host_step
from flowc.dims import evaluate, substitute
from flowc.plan import Program, Step

MODULE = 300                         # lines from which on a module takes no further kernel
LONG_ENTRY = 400                     # lines from which on the code between the kernels is compiled quickly
PATIENCE = 500_000 * WORK_PER_US     # work (half a second) after which a run lets Python look for Ctrl-C

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_RUN = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)
_STAND_IN = "flowc_kernel_symbol"


class CpuExecutable(Executable):
    """A program compiled to machine code.

    Kernels are named by their content.  A large one is a module of its own, which programs share in memory and on
    disk; small ones are put together, the last of them with ``@run`` and ``@sizes``, since each module costs a few
    milliseconds whatever is in it.
    """

    def __init__(self, program: Program, store: Store | None = None):
        super().__init__(program, "cpu")
        self._store = store
        self._target = cpu_target(*host())
        self._costs = costs()
        self._hosted = any(not s.kernel for s in self.plan.steps)
        self._symbols: dict[str, str] = {}  # of the kernels, by name
        self._codes: dict[str, Code] = {}   # by kernel symbol
        self._entry: Code | None = None
        self.constants = {name: _aligned(a) for name, a in self.constants.items()}
        self._compile()
        self._work = sum((s.work for s in self.plan.steps if isinstance(s.work, int)), 0)
        self._run = _RUN(0 if self._entry is None else self._entry.address("run"))

    # -- compiling

    def _compile(self) -> None:
        helpers = min(len(self.program.kernels), pool.num_threads()) - 1
        plans: list[list[str]] = []  # symbols of the kernels of each module
        codes = compile_modules(self._modules(plans), store=self._store, helpers=helpers)
        for symbols, code in zip(plans, codes, strict=True):
            self._codes.update(dict.fromkeys(symbols, code))
        self._entry = codes[-1] if codes and not self._hosted else None

    def _modules(self, plans: list[list[str]]) -> Iterator[Source]:
        """The modules of the program, the one with the entry last.  ``plans`` is told the kernels of each."""
        module, symbols = Module(), list[str]()
        count, seen = len(self.program.kernels), set[str]()
        for i, (name, kernel) in enumerate(self.program.kernels.items()):
            progress.at("kernel", i, count)
            alone = Module()
            emit_kernel(kernel, alone, self._target, _STAND_IN)
            final = content_name(alone.text(), _STAND_IN)[1]
            self._symbols[name] = final
            if final in seen:
                continue
            seen.add(final)
            lines = alone.lines()
            target, mine = (Module(), []) if lines >= MODULE else (module, symbols)
            target.take(alone, _STAND_IN, final)
            mine.append(final)
            if target.lines() >= MODULE:
                plans.append(mine)
                yield Source(target.text())
                if target is module:
                    module, symbols = Module(), []
        yield from self._last_module(module, symbols, plans)

    def _last_module(self, module: Module, symbols: list[str], plans: list[list[str]]) -> Iterator[Source]:
        """The small kernels that are left and the entry, which is apart if it is long."""
        entry = Module()
        if not self._hosted:
            emit_entry(self.program, entry, self._symbols)
            emit_sizes(self.program, entry)
        long = entry.lines() > LONG_ENTRY
        if not long:
            entry.define(module)
        elif module.functions:
            plans.append(symbols)
            yield Source(module.text())
        if entry.functions:
            plans.append([] if long else symbols)
            yield Source(entry.text(), QUICK if long else OPT_LEVEL)

    # -- running

    def run(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        arrays = [normalise(a, self.table[p].type) for p, a in zip(self.plan.params, arrays, strict=True)]
        work = self.work(sizes)
        outputs = self.new_outputs(sizes)
        scratch = buffers.Scratch(evaluate(self.plan.arena, sizes))
        try:
            if self._entry is None or work > PATIENCE:
                self._run_steps(arrays, outputs, scratch.array, sizes)
            else:
                self._run_entry(arrays, outputs, scratch.address, sizes, work)
            return self.finish(arrays, outputs)
        finally:
            scratch.close()

    def work(self, sizes: Mapping[str, int]) -> int:
        """Estimated work of one run."""
        return self._work + sum(evaluate(s.work, sizes) for s in self.plan.steps if not isinstance(s.work, int))

    def _run_entry(self, arrays: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None], arena: int,
                   sizes: Mapping[str, int], work: int) -> None:
        held = [*arrays, *outputs, *self.constants.values()]
        pointers = (ctypes.c_void_p * len(held))(*[0 if a is None else a.ctypes.data for a in held])
        dims = (ctypes.c_int64 * len(self.plan.symbols))(*[sizes[s] for s in self.plan.symbols])
        self._run(ctypes.addressof(pointers), ctypes.addressof(dims), arena,
                  pool.handle(self._store) if work >= self._costs.serial_work else 0)

    def _run_steps(self, arrays: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None], arena: np.ndarray,
                   sizes: Mapping[str, int]) -> None:
        views = self.views(arrays, outputs, arena, sizes)
        for wave in self.plan.waves():
            for step in wave:
                self.run_step(step, views, sizes)

    def run_step(self, step: Step, views: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        if not step.kernel:
            run_host_step(step, {n: b.type for n, b in self.table.items()}, views, sizes)
            return
        held = [views[b] for b in step.buffers]
        dims = [evaluate(d, sizes) for d in step.dims]
        slots = (ctypes.c_int64 * max(1, len(held) + len(dims)))(*[a.ctypes.data for a in held], *dims)
        symbol = self._symbols[step.kernel]
        kernel = self.program.kernels[step.kernel]
        address = self._codes[symbol].address(symbol)
        extent = parallel_extent(kernel)
        work = evaluate(step.work, sizes)
        if extent is None or work < self._costs.serial_work:
            _KERNEL(address)(ctypes.addressof(slots), 0, 1)
            return
        limit = evaluate(substitute(extent, dict(zip(kernel.dims, step.dims, strict=True))), sizes)
        self._run_split(address, ctypes.addressof(slots), work, max(1, limit))

    def _run_split(self, kernel: int, slots: int, work: int, limit: int) -> None:
        """Run a kernel in chunks: all in one region, or in several if it takes long, so that Python can react to
        signals in between."""
        regions = min(limit, -(-work // PATIENCE))
        threads = pool.default(self._store) if pool.handle(self._store) else None
        if threads is None:
            for i in range(regions):
                _KERNEL(kernel)(slots, i, regions)
            return
        count = min(limit, max(1, work // self._costs.chunk_work), max(64, 16 * regions))
        for i in range(regions):
            first, last = count * i // regions, count * (i + 1) // regions
            if last > first:
                threads.span(kernel, slots, first, last - first, count)

    def native_callable(self, spec: CallSpec, fallback: Callable[..., object]) -> Callable[..., object]:
        if self._entry is None:
            return fallback
        return make_callable(self.program, spec, self._entry, fallback, self.constants, self._store)

    # -- looking inside

    def codes(self) -> list[Code]:
        """All loaded code, the entry last."""
        every = [*self._codes.values(), *([self._entry] if self._entry is not None else [])]
        return list({id(c): c for c in every}.values())

    def kernel_asm(self, name: str) -> str:
        symbol = self._symbols[name]
        return _function_text(self._codes[symbol].asm, symbol)

    def as_text(self, stage: str) -> str:
        if stage not in ("llvm", "asm"):
            return super().as_text(stage)
        return "\n".join(c.ir if stage == "llvm" else c.asm for c in self.codes())


def _function_text(asm: str, symbol: str) -> str:
    """The part of an assembly text that belongs to one function."""
    lines = asm.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith((f"{symbol}:", f"_{symbol}:"))), None)
    if start is None:
        return asm
    end = next((i for i in range(start + 1, len(lines)) if ".globl" in lines[i] or ".size" in lines[i]), len(lines))
    return "\n".join(lines[start:end]) + "\n"


def _aligned(array: np.ndarray) -> np.ndarray:
    """A read-only copy of a constant at an address that is a multiple of 64."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = np.ndarray(array.shape, array.dtype.newbyteorder("="), buffer=raw, offset=start)
    out[...] = array
    out.setflags(write=False)
    return out


def compile_program(program: Program, store: Store | None = None) -> CpuExecutable:
    return CpuExecutable(program, store)
