"""LLVM's library, read and linked before it is needed.

Here: a thread that loads the file which llvmlite will load, begun when this module is imported.  Not here: llvmlite
itself (engine.py).

Linking the library takes a third of what a first compile waits for, and Python's own loader keeps the interpreter to
itself meanwhile.  The system's does not: the rest of flowc is imported, and the function traced, at the same time.
Nothing is lost where it cannot be had: llvmlite then loads the file as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading

NAMES = {"linux": "libllvmlite.so", "darwin": "libllvmlite.dylib"}


def _path() -> str | None:
    """The library's file, without importing its package."""
    from importlib.util import find_spec
    name, spec = NAMES.get(sys.platform), find_spec("llvmlite")
    if name is None or spec is None or spec.origin is None:
        return None
    path = os.path.join(os.path.dirname(spec.origin), "binding", name)
    return path if os.path.exists(path) else None


def _load(path: str) -> None:
    with contextlib.suppress(OSError, AttributeError):
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.argtypes, dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
        dlopen(os.fsencode(path), os.RTLD_NOW | os.RTLD_LOCAL)


def _begin() -> threading.Thread | None:
    path = None if "llvmlite.binding" in sys.modules else _path()
    if path is None:
        return None
    thread = threading.Thread(target=_load, args=(path,), name="flowc-load", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads
        return None
    if hasattr(os, "register_at_fork"):
        # the system's loader has a lock, which a child would inherit without the thread that holds it
        os.register_at_fork(before=lambda: thread.join() if thread is not threading.current_thread() else None)
    return thread


_begin()
