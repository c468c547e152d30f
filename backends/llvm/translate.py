"""Modules to object code in several threads.

Here: one translation without the binding's lock, the team of threads that shares modules out, the thread that goes
ahead.
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
from collections.abc import Callable, Mapping
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


_hurried = 0           # threads that want the interpreter back soon
_patient = 0.0         # the interval without them
_hurry_lock = threading.Lock()


def _hurry() -> None:
    """Hand the interpreter over more often, until as many calls of :func:`_calm`."""
    global _hurried, _patient
    with _hurry_lock:
        if not _hurried:
            _patient = sys.getswitchinterval()
            sys.setswitchinterval(min(_patient, SWITCH))
        _hurried += 1


def _calm() -> None:
    global _hurried
    with _hurry_lock:
        _hurried -= 1
        if not _hurried:
            sys.setswitchinterval(_patient)


class Job:
    """One module on its way: afterwards ``object``, or ``error``."""

    __slots__ = ("error", "level", "object", "text")

    def __init__(self, text: str, level: int):
        self.text, self.level = text, level
        self.object: bytes | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.object is not None or self.error is not None


class Team:
    """Threads that translate what they are given while the caller goes on; for use in a ``with`` block.

    translate: ``(text, level) -> object code``, called in any of the threads.  helpers: threads besides the caller.
    ordered: what came first is translated first, not what is longest.
    Leaving the block by an exception, Ctrl-C among them, drops the modules that nobody has begun.
    """

    def __init__(self, translate: Callable[[str, int], bytes], helpers: int, ordered: bool = False):
        self._translate, self._helpers, self._ordered = translate, helpers, ordered
        self._jobs: list[Job] = []
        self._waiting: list[Job] = []
        self._busy = 0
        self._closed = False
        self._change = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Team:
        return self

    @property
    def busy(self) -> bool:
        """Has it been given anything?"""
        return bool(self._jobs)

    def submit(self, text: str, level: int, last: bool = False) -> Job:
        """Have a module translated; the job is done after :meth:`finish`.  last: which follows at once, so that the
        caller takes part."""
        job = Job(text, level)
        self._jobs.append(job)
        with self._change:
            self._waiting.append(job)
            self._change.notify()
        if len(self._threads) < min(self._helpers, len(self._jobs) - last):
            self._start()
        return job

    def _start(self) -> None:
        old = threading.stack_size(STACK)
        _hurry()
        try:
            thread = threading.Thread(target=self._help, name="flowc-compile", daemon=True)
            thread.start()
            self._threads.append(thread)
        except RuntimeError:  # no more threads: the caller does the work
            self._helpers = len(self._threads)
            _calm()
        finally:
            threading.stack_size(old)

    def _help(self) -> None:
        try:
            while True:
                with self._change:
                    while not self._waiting and not self._closed:
                        self._change.wait()
                    if not self._waiting:
                        return
                    job = self._next()
                self._do(job)
        finally:
            _calm()

    def _next(self) -> Job:
        """The longest of the waiting jobs: what is left at the end is short."""
        job = self._waiting[0] if self._ordered else max(self._waiting, key=lambda j: len(j.text))
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

    def close(self) -> None:
        """No more modules will come: the threads end after the last."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def work(self) -> None:
        """Take part until every job is done."""
        while True:
            with self._change:
                done = len(self._jobs) - len(self._waiting) - self._busy
                if self._waiting:
                    job = self._next()
                elif self._busy:
                    self._change.wait()
                    continue
                else:
                    return
            progress.at("machine code", done, len(self._jobs))
            self._do(job)
            if isinstance(job.error, KeyboardInterrupt):
                raise job.error

    def finish(self) -> None:
        """Take part until every job is done.  Raises the error of the first job that failed, in the order in which
        they were submitted."""
        self.close()
        self.work()
        for job in self._jobs:
            if job.error is not None:
                raise job.error

    def drop(self) -> None:
        """Forget what nobody has begun, and wait for the rest."""
        with self._change:
            self._waiting.clear()
        self.close()
        for thread in self._threads:
            thread.join()

    def __exit__(self, *error: object) -> None:
        self.drop()


class Ahead:
    """Modules that a thread in the background translates before anybody asks for them.

    translate: as of a :class:`Team`.  What is needed first comes first.  Whoever asks too early takes part.
    """

    def __init__(self, translate: Callable[[str, int], bytes]):
        self._translate = translate
        self._jobs: dict[str, tuple[Job, Team]] = {}
        self._lock = threading.Lock()

    def begin(self, modules: Mapping[str, tuple[str, int]]) -> None:
        """Begin with modules, (text, level) by key, but for those that are under way."""
        with self._lock:
            new = {key: module for key, module in modules.items() if key not in self._jobs}
            if new:
                team = Team(self._translate, 1, ordered=True)
                self._jobs |= {key: (team.submit(*module), team) for key, module in new.items()}
                team.close()

    def done(self, key: str) -> bool | None:
        """Is a module there that was begun?  None: it was not, or has been taken."""
        found = self._jobs.get(key)
        return None if found is None else found[0].done

    def take(self, key: str) -> Job | None:
        """The job of a module that was begun, when it is done; None for any other."""
        with self._lock:
            job, team = self._jobs.pop(key, (None, None))
        if team is not None:
            team.work()
        return job

    def wait(self) -> None:
        """Take part until everything is done that was begun."""
        for _, team in list(self._jobs.values()):
            team.work()

    def settle(self) -> None:
        """Wait for what is being translated, and forget what nobody has begun."""
        with self._lock:
            for key, (job, team) in list(self._jobs.items()):
                team.drop()
                if not job.done:
                    del self._jobs[key]
