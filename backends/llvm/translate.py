"""Modules to object code in several threads.

Here: one translation without the binding's lock, the team of threads that shares modules out.
Not here: which passes run and for which machine, loading, keys (engine.py), what a module holds (cpu.py).
Read next: engine.py.

llvmlite takes one lock around every call into LLVM, so that its threads translate one after the other.  LLVM itself
needs no lock while each thread has a context, a target machine and a pass manager of its own; such a set is a
:class:`Translator`, which calls the same C functions past the lock.  Where the binding has no such functions the
locked ones serve: slower, nothing else.  Which thread translates a module changes no byte of its object code.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from flowc import progress

STACK = 16 << 20       # bytes of a thread's stack: LLVM recurses deeply on long blocks
SWITCH = 2e-4          # seconds until a thread that comes back from LLVM is given the interpreter

_LONG = ("ParseAssembly", "VerifyModule", "RunNewModulePassManager", "TargetMachineEmitToMemory", "DisposeModule",
         "ContextDispose")   # worth letting other threads run
_SHORT = ("ContextCreate", "SetTarget", "SetDataLayout", "GetBufferStart", "GetBufferSize", "DisposeMemoryBuffer",
          "DisposeString")


class NotLlvmError(RuntimeError):
    """LLVM does not accept the text."""


@functools.cache
def _functions() -> dict[str, Any]:
    """The C functions of the binding by name, without its lock."""
    from llvmlite.binding import ffi
    out = {}
    for name in (*_LONG, *_SHORT):
        locked = getattr(ffi.lib, f"LLVMPY_{name}")
        out[name] = getattr(locked, "_cfn", locked)
    try:
        library = ctypes.PyDLL(ffi.lib._name, handle=ffi.lib._handle)  # calls through it keep the interpreter
        for name in _SHORT:
            quick = getattr(library, f"LLVMPY_{name}")
            quick.argtypes, quick.restype = out[name].argtypes, out[name].restype
            out[name] = quick
    except (AttributeError, OSError):
        pass
    return out


class Translator:
    """What one thread needs to translate modules, one after the other.

    machine: a target machine; passes: a pass manager and the builder that it runs with.  No other thread uses them.
    """

    def __init__(self, machine: Any, passes: tuple[Any, Any]):
        self._machine, (self._passes, self._builder) = machine, passes
        self._triple, self._layout = machine.triple.encode(), str(machine.target_data).encode()

    def object(self, text: str) -> bytes:
        """Object code of a module.  NotLlvmError for text that is no LLVM IR, RuntimeError if it cannot be
        compiled."""
        f = _functions()
        message, module = ctypes.c_char_p(), None
        context = f["ContextCreate"]()
        try:
            module = f["ParseAssembly"](context, text.encode(), ctypes.byref(message))
            if not module:
                raise NotLlvmError(_text(message))
            f["SetTarget"](module, self._triple)
            f["SetDataLayout"](module, self._layout)
            if f["VerifyModule"](module, ctypes.byref(message)):
                raise RuntimeError(_text(message))
            f["RunNewModulePassManager"](self._passes, module, self._builder)
            buffer = f["TargetMachineEmitToMemory"](self._machine, module, 1, ctypes.byref(message))
            if not buffer:
                raise RuntimeError(_text(message))
            try:
                return ctypes.string_at(f["GetBufferStart"](buffer), f["GetBufferSize"](buffer))
            finally:
                f["DisposeMemoryBuffer"](buffer)
        finally:
            if message:
                f["DisposeString"](message)
            if module:
                f["DisposeModule"](module)
            f["ContextDispose"](context)


def _text(message: ctypes.c_char_p) -> str:
    return (message.value or b"").decode(errors="replace")


class Job:
    """One module on its way: afterwards ``object``, or ``error``."""

    __slots__ = ("error", "level", "object", "text")

    def __init__(self, text: str, level: int):
        self.text, self.level = text, level
        self.object: bytes | None = None
        self.error: BaseException | None = None


class Team:
    """Threads that translate what they are given while the caller goes on; for use in a ``with`` block.

    translate: ``(text, level) -> object code``, called in any of the threads.  helpers: threads besides the caller.
    Leaving the block by an exception, Ctrl-C among them, drops the modules that nobody has begun.
    """

    def __init__(self, translate: Callable[[str, int], bytes], helpers: int):
        self._translate, self._helpers = translate, helpers
        self._jobs: list[Job] = []
        self._waiting: list[Job] = []
        self._busy = 0
        self._closed = False
        self._change = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []
        self._interval = 0.0

    def __enter__(self) -> Team:
        return self

    def submit(self, text: str, level: int) -> Job:
        """Have a module translated; the job is done after :meth:`finish`."""
        job = Job(text, level)
        self._jobs.append(job)
        with self._change:
            self._waiting.append(job)
            self._change.notify()
        if len(self._threads) < self._helpers:
            self._start()
        return job

    def _start(self) -> None:
        if not self._threads:
            self._interval = sys.getswitchinterval()
            sys.setswitchinterval(min(self._interval, SWITCH))
        old = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=self._help, name="flowc-compile", daemon=True)
            thread.start()
            self._threads.append(thread)
        except RuntimeError:  # no more threads: the caller does the work
            self._helpers = len(self._threads)
        finally:
            threading.stack_size(old)

    def _help(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if not self._waiting:
                    return
                job = self._next()
            self._do(job)

    def _next(self) -> Job:
        """The longest of the waiting jobs: what is left at the end is short."""
        job = max(self._waiting, key=lambda j: len(j.text))
        self._waiting.remove(job)
        self._busy += 1
        return job

    def _do(self, job: Job) -> None:
        try:
            job.object = self._translate(job.text, job.level)
        except BaseException as e:
            job.error = e
        finally:
            with self._change:
                self._busy -= 1
                self._change.notify_all()

    def finish(self) -> None:
        """Take part until every job is done.  Raises the error of the first job that failed, in the order in which
        they were submitted."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        while True:
            with self._change:
                done = len(self._jobs) - len(self._waiting) - self._busy
                if self._waiting:
                    job = self._next()
                elif self._busy:
                    self._change.wait()
                    continue
                else:
                    break
            progress.at("machine code", done, len(self._jobs))
            self._do(job)
            if isinstance(job.error, KeyboardInterrupt):
                raise job.error
        for job in self._jobs:
            if job.error is not None:
                raise job.error

    def __exit__(self, *error: object) -> None:
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify_all()
        try:
            for thread in self._threads:
                thread.join()
        finally:
            if self._threads:
                sys.setswitchinterval(self._interval)
