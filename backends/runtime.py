"""Runs programs: compile once, then arrays in, arrays out.

Here: what an ``Executable`` is, argument and result handling that devices share, host calls, the interpreter as a
device, the table of devices.  Not here: machine code (llvm/cpu.py), GPUs (cuda/runtime.py), memory kept between calls
(buffers.py).  Read next: backends/llvm/cpu.py.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowc import op as ops
from flowc.backends import buffers
from flowc.diag import FlowcError, FlowcTypeError, FlowcValueError
from flowc.dims import evaluate
from flowc.plan import Plan, PlanBuffer, Program, Step, Unfinished
from flowc.types import Type

if TYPE_CHECKING:
    from flowc.backends.llvm.callpath import CallSpec


def normalise(array: Any, type: Type) -> np.ndarray:
    """``array`` as compiled code wants it: C order, aligned, native byte order, of exactly ``type.dtype``.

    Copies only where needed; the result is never written to.  FlowcTypeError C211 for another dtype or rank.
    """
    a = np.asarray(array)
    want = type.dtype.numpy
    if a.dtype != want:
        if a.dtype.newbyteorder("=") != want:
            raise FlowcTypeError("C211", f"an array of {a.dtype} was given where {type} is expected",
                                 cure=f"convert it with .astype({want.name!r})")
        a = a.astype(want)
    if a.ndim != type.rank:
        raise FlowcTypeError("C211", f"an array of shape {a.shape} was given where {type} is expected",
                             cure=f"give an array with {type.rank} axes")
    if not (a.flags.c_contiguous and a.flags.aligned):
        a = np.array(a, order="C", copy=True, subok=False)
    return a


def concrete_type(t: Type, sizes: Mapping[str, int]) -> Type:
    return Type(t.dtype, tuple(evaluate(d, sizes) for d in t.shape))


def run_host_step(step: Step, types: Mapping[str, Type], views: Mapping[str, np.ndarray],
                  sizes: Mapping[str, int]) -> None:
    """Call the NumPy meaning of a host step's op on the views of its inputs and copy the result into its output."""
    from flowc.backends.interp import apply_op
    *inputs, out = step.buffers
    result = apply_op(ops.get(step.op), [views[b] for b in inputs], step.attrs, types[out], sizes)
    target = views[out]
    if result.shape != target.shape or result.dtype != target.dtype:
        raise FlowcError("C215", f"{step.op} gave {result.dtype}{list(result.shape)} where its type says "
                         f"{types[out]}", cure="this is an error in the operation's record; report it")
    target[...] = result


def arrays_of(program: Program) -> dict[str, np.ndarray]:
    """The constants of a program by buffer name."""
    return {name: literal.array for name, literal in program.constants.items()}


class Executable(ABC):
    """A compiled program.  ``run`` may be called from several threads at a time."""

    def __init__(self, plan: Plan, constants: Mapping[str, np.ndarray], device: str):
        self.plan, self.device = plan, device
        self.table: Mapping[str, PlanBuffer] = plan.table()
        self.constants: Mapping[str, np.ndarray] = {
            name: constants[name] if name in constants else self.new_constant(name) for name in plan.constants()}

    def new_constant(self, name: str) -> np.ndarray:
        """Room for a constant that a step computes once."""
        t = concrete_type(self.table[name].type, {})
        return buffers.empty(t.shape, t.dtype.numpy)  # type: ignore[arg-type]

    def run_once(self) -> None:
        """Compute the constants that depend on others: when everything else is ready to run."""
        for step in self.plan.once():
            self.run_step(step, self.constants, {})

    @abstractmethod
    def run(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        """Results for ``arrays``, one per param and of its dtype and rank, and values of the plan's symbols.
        Results are fresh arrays.  ValueError for sizes that cannot exist, MemoryError if there is no memory."""

    @abstractmethod
    def run_step(self, step: Step, views: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        """Run one step on arrays by buffer name; the step's last ``step.outputs`` buffers are written in place."""

    def native_callable(self, spec: CallSpec, fallback: Callable[..., Any]) -> Callable[..., Any]:
        """A callable for positional arguments as in ``spec`` that calls ``fallback`` for anything unusual; just
        ``fallback`` where this device has no faster way."""
        return fallback

    def native_is_due(self) -> bool:
        """May :meth:`native_callable` be asked now?  If not, what it needs is being made, and a later call may ask."""
        return True

    def as_text(self, stage: str) -> str:
        """The whole program as ``llvm`` or ``asm`` text, on a GPU as ``llvm`` or ``ptx``.  FlowcError C213 for a stage
        that the device does not have."""
        raise FlowcError("C213", f"there is no stage {stage!r} on the device {self.device}",
                         cure="compile for another device")

    def kernel_asm(self, name: str) -> str:
        """Machine code text of one kernel."""
        return self.as_text("asm")

    def llvm_ir(self) -> str:
        """LLVM IR text of the whole program."""
        return self.as_text("llvm")

    # -- what several devices share

    def new_outputs(self, arrays: list[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray | None]:
        """An array for every output that has a place of its own; None where an output is a param, a constant or
        another output and will be a copy.  Arrays are fresh but for those that take over a donated argument: if that
        is of no use, because it is read-only or shares memory with another, a copy is put into its place."""
        out: list[np.ndarray | None] = []
        for i, name in enumerate(self.plan.outputs):
            b = self.table[name]
            over = b.place.over
            if over >= 0 and b.place.index == i:
                if not _for_itself(over, arrays):
                    arrays[over] = buffers.copy_of(arrays[over])
                out.append(arrays[over])
            elif b.place.kind == "output" and b.place.index == i:
                t = concrete_type(b.type, sizes)
                out.append(buffers.empty(t.shape, t.dtype.numpy))  # type: ignore[arg-type]
            else:
                out.append(None)
        return out

    def views(self, arrays: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None], arena: np.ndarray,
              sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Every buffer of the plan as an array."""
        out: dict[str, np.ndarray] = {}
        for name, b in self.table.items():
            kind, index = b.place.kind, b.place.index
            if kind == "param":
                out[name] = arrays[index]
            elif kind == "output":
                array = outputs[index]
                assert array is not None
                out[name] = array
            elif kind == "constant":
                out[name] = self.constants[name]
            else:
                out[name] = _arena_view(b, arena, sizes)
        return out

    def finish(self, arrays: Sequence[np.ndarray], outputs: list[np.ndarray | None]) -> list[np.ndarray]:
        """The results, with copies made for outputs that have no place of their own."""
        for i, name in enumerate(self.plan.outputs):
            if outputs[i] is None:
                place = self.table[name].place
                source = (arrays[place.index] if place.kind == "param" else
                          outputs[place.index] if place.kind == "output" else self.constants[name])
                assert source is not None
                outputs[i] = buffers.copy_of(source)
        return outputs  # type: ignore[return-value]


def _for_itself(i: int, arrays: Sequence[np.ndarray]) -> bool:
    """May an argument be written to, and does it share its memory with no other?"""
    a = arrays[i]
    return a.flags.writeable and not any(np.may_share_memory(a, x) for j, x in enumerate(arrays) if j != i)


def _arena_view(b: PlanBuffer, arena: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    t, start = concrete_type(b.type, sizes), evaluate(b.place.offset, sizes)
    return np.ndarray(t.shape, t.dtype.numpy, buffer=arena, offset=start)  # type: ignore[arg-type]


class InterpreterExecutable(Executable):
    """A program run by the interpreter: slow, the reference for everything else."""

    def __init__(self, program: Program):
        super().__init__(program.plan, arrays_of(program), "interpreter")
        self.program = program
        self.run_once()

    def run(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        from flowc.backends.interp import run_program
        for name in self.plan.outputs:
            buffers.check_bytes(evaluate(self.table[name].type.nbytes, sizes))
        given = [normalise(a, self.table[p].type) for p, a in zip(self.plan.params, arrays, strict=True)]
        return run_program(self.program, given, sizes)  # fresh arrays

    def run_step(self, step: Step, views: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        if not step.kernel:
            run_host_step(step, {n: b.type for n, b in self.table.items()}, views, sizes)
            return
        from flowc.backends.interp import run_kernel
        kernel = self.program.kernels[step.kernel]
        run_kernel(kernel, {p.name: views[b] for p, b in zip(kernel.params, step.buffers, strict=True)},
                   {d: evaluate(v, sizes) for d, v in zip(kernel.dims, step.dims, strict=True)})


# device -> the module with its ``prepare(store)`` and ``compile_program(program, store)``, which gives its Executable;
# loaded when first asked for.  Those of PIECEWISE take a program that is still being made.
DEVICES = {
    "cpu": "flowc.backends.llvm.cpu",
    "cuda": "flowc.backends.cuda.runtime",
}
PIECEWISE = ("cpu",)


def touch_ahead(plan: Plan, sizes: Mapping[str, int]) -> None:
    """A call with ``sizes`` waits until the plan's program is compiled: make the memory of its results and its working
    memory ready meanwhile."""
    table = plan.table()
    own = [table[name] for i, name in enumerate(plan.outputs) if table[name].place.kind == "output"
           and table[name].place.index == i and table[name].place.over < 0]
    with contextlib.suppress(FlowcValueError):  # sizes that cannot exist: the call says so
        buffers.touch_ahead(map(buffers.check_bytes, (
            *(evaluate(b.type.nbytes, sizes) for b in own), evaluate(plan.arena, sizes) + buffers.ALIGN)))


def release_memory() -> int:
    """Give the memory that is kept warm between calls back to the system: that of freed results and the working memory
    of compiled functions that nobody calls now.  Returns its bytes.  ``FLOWC_WARM_MEMORY`` bounds what is kept."""
    callpath = sys.modules.get("flowc.backends.llvm.callpath")
    if callpath is not None:  # else no function has any
        callpath.release()
    return buffers.release()


def prepare(device: str, store: Any = None) -> None:
    """A program for ``device`` will be compiled: a device may begin with what does not depend on the program."""
    if device in DEVICES:
        importlib.import_module(DEVICES[device]).prepare(store)


def compile_program(program: Program | Unfinished, device: str = "cpu", store: Any = None) -> Executable:
    """Compile for one of ``DEVICES``, or for ``interpreter``.

    program: may be in the making; it is made then, while code for its first kernels is under way.
    store: where compiled code is kept between processes, with ``get(key)`` and ``put(key, bytes)``, such as
    flowc.cache.default_store(); None: nowhere.  FlowcValueError C214 for an unknown device.
    """
    if device not in DEVICES and device != "interpreter":
        raise FlowcValueError("C214", f"there is no device {device!r}",
                              cure=f"use one of {', '.join(DEVICES)}, interpreter")
    if isinstance(program, Unfinished) and device not in PIECEWISE:
        program = program.program()
    if device == "interpreter":
        return InterpreterExecutable(program)  # type: ignore[arg-type]
    return importlib.import_module(DEVICES[device]).compile_program(program, store)
