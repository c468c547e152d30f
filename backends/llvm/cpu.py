"""The CPU as a device: a program as machine code.

Here: running a program whole or step by step, its texts.
Not here: compiling it (compile.py), the native call (callpath.py).  Read next: binary.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowc.backends import buffers
from flowc.backends.llvm import callpath, pool
from flowc.backends.llvm.binary import Binary
from flowc.backends.llvm.callpath import CallSpec, make_callable
from flowc.backends.llvm.engine import Code, Store, begin
from flowc.backends.llvm.share import WORK_PER_US, costs
from flowc.backends.runtime import Executable, arrays_of, normalise, run_host_step
from flowc.dims import evaluate, substitute
from flowc.plan import ONCE, Program, Step, Unfinished

PATIENCE = 500_000 * WORK_PER_US     # work (half a second) after which a run lets Python look for Ctrl-C

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_RUN = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)


class CpuExecutable(Executable):
    """A program as machine code.

    constants: by buffer name, in the order of the program.  program: asked for texts when the code was read from the
    disk, which keeps none.
    """

    def __init__(self, binary: Binary, constants: Mapping[str, np.ndarray], store: Store | None = None,
                 program: Callable[[], Program] | None = None):
        super().__init__(binary.plan, {name: _aligned(a) for name, a in constants.items()}, "cpu")
        self.binary = binary
        self._store, self._program = store, program
        self._costs = costs()
        self._called = [s for s in self.plan.steps if s.wave != ONCE]
        self._work = sum((s.work for s in self._called if isinstance(s.work, int)), 0)
        self._run = _RUN(0 if binary.entry is None else binary.entry.address("run"))
        self.run_once()

    # -- running

    def run(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        arrays = [normalise(a, self.table[p].type) for p, a in zip(self.plan.params, arrays, strict=True)]
        work = self.work(sizes)
        outputs = self.new_outputs(arrays, sizes)
        scratch = buffers.Scratch(evaluate(self.plan.arena, sizes))
        try:
            if self.binary.entry is None or work > PATIENCE:
                self._run_steps(arrays, outputs, scratch.array, sizes)
            else:
                self._run_entry(arrays, outputs, scratch.address, sizes, work)
            return self.finish(arrays, outputs)
        finally:
            scratch.close()

    def work(self, sizes: Mapping[str, int]) -> int:
        """Estimated work of one run."""
        return self._work + sum(evaluate(s.work, sizes) for s in self._called if not isinstance(s.work, int))

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
        launch = self.binary.launches[step.kernel]
        address = self.binary.codes[launch.symbol].address(launch.symbol)
        work = evaluate(step.work, sizes)
        if launch.extent is None or work < self._costs.serial_work:
            _KERNEL(address)(ctypes.addressof(slots), 0, 1)
            return
        limit = evaluate(substitute(launch.extent, dict(zip(launch.dims, step.dims, strict=True))), sizes)
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
        if self.binary.entry is None:
            return fallback
        return make_callable(self.plan, spec, self.binary.entry, fallback, self.constants, self._store)

    def native_is_due(self) -> bool:
        return not callpath.on_its_way()

    # -- looking inside

    def codes(self) -> list[Code]:
        """All loaded code, the entry last."""
        return self.binary.loaded()

    def _with_texts(self) -> Binary:
        """The same code together with the texts that it came from."""
        if self._program is not None and not all(c.texts for c in self.binary.loaded()):
            from flowc.backends.llvm.compile import compile_binary
            self.binary = compile_binary(self._program(), self._store)  # one more reference to equal code
        return self.binary

    def kernel_asm(self, name: str) -> str:
        binary = self._with_texts()
        symbol = binary.launches[name].symbol
        return _function_text(binary.codes[symbol].asm, symbol)

    def as_text(self, stage: str) -> str:
        if stage not in ("llvm", "asm"):
            return super().as_text(stage)
        return "\n".join(c.ir if stage == "llvm" else c.asm for c in self._with_texts().loaded())


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


def prepare(store: Store | None = None) -> None:
    """Begin with the code that the first program of a process needs besides its own, while that is being made."""
    if pool.num_threads() > 1:
        begin([*pool.wanted(), *callpath.wanted()], store)


def compile_program(program: Program | Unfinished, store: Store | None = None) -> CpuExecutable:
    from flowc.backends.llvm.compile import compile_binary
    binary = compile_binary(program, store)
    return CpuExecutable(binary, arrays_of(program.program() if isinstance(program, Unfinished) else program), store)
