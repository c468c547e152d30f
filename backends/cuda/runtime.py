"""Programs on a GPU: memory, copies, launches.

Here: ``CudaExecutable``.  Not here: what drivers do (driver.py), kernels to PTX (ptx.py), what all devices share
(backends/runtime.py).

Kernels run in the order of the waves on one stream.  A host step copies its operands back, calls the op's NumPy
meaning, and copies the result in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from flowc.backends import buffers
from flowc.backends.cuda.driver import Driver, get_driver
from flowc.backends.cuda.ptx import PtxKernel, compile_kernel
from flowc.backends.runtime import Executable, arrays_of, concrete_type, normalise, run_host_step
from flowc.diag import FlowcError
from flowc.dims import evaluate
from flowc.plan import PlanBuffer, Program, Step

if TYPE_CHECKING:
    from flowc.backends.llvm.engine import Store

MAX_GRID = (1 << 31) - 1


class Loaded:
    """A kernel on a device."""

    def __init__(self, driver: Driver, code: PtxKernel):
        self.driver, self.code = driver, code
        self.handle = driver.load(code.text, code.entry)

    def launch(self, addresses: Sequence[int], dims: Sequence[int]) -> None:
        """Run on buffers at ``addresses`` with values of the kernel's dims."""
        code, sizes = self.code, dict(zip(self.code.dims, dims, strict=True))
        grid = min(evaluate(code.grid, sizes), MAX_GRID)
        if grid <= 0:
            return
        with _Memory(self.driver) as memory:
            scratch = [memory.take(_elements(b.shape, sizes) * b.dtype.bytes) for b in code.scratch]
            self.driver.launch(self.handle, grid, code.threads, [*addresses, *scratch, *dims])
            if scratch:
                self.driver.synchronise()


def _elements(shape: Sequence[Any], sizes: Mapping[str, int]) -> int:
    n = 1
    for d in shape:
        n *= evaluate(d, sizes)
    return n


class _Memory:
    """Device memory that is given back at the end of a ``with`` block."""

    def __init__(self, driver: Driver):
        self.driver, self._taken = driver, list[tuple[int, int]]()

    def __enter__(self) -> _Memory:
        return self

    def take(self, nbytes: int) -> int:
        address = self.driver.alloc(max(1, buffers.check_bytes(nbytes)))
        self._taken.append((address, max(1, nbytes)))
        return address

    def put(self, array: np.ndarray) -> int:
        address = self.take(array.nbytes)
        self.driver.copy_in(address, array)
        return address

    def __exit__(self, *_: object) -> None:
        for address, nbytes in self._taken:
            self.driver.free(address, nbytes)


class CudaExecutable(Executable):
    """A program on the device of the current driver."""

    def __init__(self, program: Program, store: Store | None = None):
        super().__init__(program.plan, arrays_of(program), "cuda")
        self.driver = get_driver()
        self.codes = {name: compile_kernel(k, self.driver.arch, store) for name, k in program.kernels.items()}
        self.kernels = {name: Loaded(self.driver, c) for name, c in self.codes.items()}
        self._types = {n: b.type for n, b in self.table.items()}
        self._constants: dict[str, int] = {}
        self._lock = threading.Lock()

    def _constant(self, name: str) -> int:
        """The address of a constant, uploaded once."""
        with self._lock:
            if name not in self._constants:
                array = normalise(self.constants[name], self.table[name].type)
                address = self.driver.alloc(max(1, array.nbytes))
                self.driver.copy_in(address, array)
                self._constants[name] = address
            return self._constants[name]

    def __del__(self) -> None:
        for name, address in getattr(self, "_constants", {}).items():
            try:
                self.driver.free(address, max(1, self.constants[name].nbytes))
            except FlowcError:  # the device is lost; its memory with it
                return

    # -- running

    def run(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        given = [normalise(a, self.table[p].type) for p, a in zip(self.plan.params, arrays, strict=True)]
        with self._placed(given, sizes) as at:
            for wave in self.plan.waves():
                for step in wave:
                    if step.kernel:
                        self._launch(step, at, sizes)
                    else:
                        self._host(step, at, sizes)
            self.driver.synchronise()
            return [self._result(name, given, at, sizes) for name in self.plan.outputs]

    @contextmanager
    def _placed(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Addresses of all buffers for one run."""
        with _Memory(self.driver) as memory:
            arena = memory.take(evaluate(self.plan.arena, sizes))
            at: dict[str, int] = {}
            for name, b in self.table.items():
                if b.place.kind == "param":
                    at[name] = memory.put(arrays[b.place.index])
                elif b.place.kind == "constant":
                    at[name] = self._constant(name)
                elif b.place.kind == "arena":
                    at[name] = arena + evaluate(b.place.offset, sizes)
                else:
                    at[name] = memory.take(evaluate(b.type.nbytes, sizes))
            yield at

    def _launch(self, step: Step, at: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        self.kernels[step.kernel].launch([at[b] for b in step.buffers], [evaluate(d, sizes) for d in step.dims])

    def _host(self, step: Step, at: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        views = {b: self._empty(self.table[b], sizes) for b in step.buffers}
        for b in step.buffers[:len(step.buffers) - step.outputs]:
            self.driver.copy_out(views[b], at[b])
        run_host_step(step, self._types, views, sizes)
        for b in step.buffers[len(step.buffers) - step.outputs:]:
            self.driver.copy_in(at[b], views[b])

    def _empty(self, b: PlanBuffer, sizes: Mapping[str, int]) -> np.ndarray:
        t = concrete_type(b.type, sizes)
        return buffers.empty(t.shape, t.dtype.numpy)  # type: ignore[arg-type]

    def _result(self, name: str, arrays: Sequence[np.ndarray], at: Mapping[str, int], sizes: Mapping[str, int]
                ) -> np.ndarray:
        b = self.table[name]
        if b.place.kind == "param":
            return buffers.copy_of(arrays[b.place.index])
        out = self._empty(b, sizes)
        self.driver.copy_out(out, at[name])
        return out

    def run_step(self, step: Step, views: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        if not step.kernel:
            run_host_step(step, self._types, views, sizes)
            return
        with _Memory(self.driver) as memory:
            at = {b: memory.put(np.ascontiguousarray(views[b])) for b in dict.fromkeys(step.buffers)}
            self._launch(step, at, sizes)
            self.driver.synchronise()
            for b in step.buffers[len(step.buffers) - step.outputs:]:
                out = np.empty(views[b].shape, views[b].dtype)
                self.driver.copy_out(out, at[b])
                views[b][...] = out

    # -- looking inside

    def as_text(self, stage: str) -> str:
        if stage == "ptx":
            return "\n".join(c.text for c in self.codes.values())
        if stage == "llvm":
            return "\n".join(c.ir for c in self.codes.values())
        return super().as_text(stage)

    def kernel_asm(self, name: str) -> str:
        """PTX of one kernel."""
        return self.codes[name].text


def prepare(store: Store | None = None) -> None:
    """Nothing that a program needs besides its kernels is compiled here."""


def compile_program(program: Program, store: Store | None = None) -> CudaExecutable:
    """Compile for the GPU, or the PTX interpreter; ``store`` keeps PTX between processes.

    UnsupportedError C340 without a GPU, and for instructions that GPUs do not have.
    """
    return CudaExecutable(program, store)
