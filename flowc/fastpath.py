"""Functions whose calls go straight to native code.

Here: the class of a jitted function, whose ``__call__`` is replaced by a native callable once a variant fits it.
Not here: what the native callable does (backends/llvm/callpath.py), signatures (jit.py).
"""

from __future__ import annotations

from typing import Any

from flowc.jit import Function, Variant
from flowc.tree import Tree


class FastFunction(Function):
    """One subclass per function, so that ``type(f).__call__`` can be a native callable without a Python frame."""

    @staticmethod
    def make(fn: Any, nums: tuple, names: tuple, device: str | None, dynamic: bool) -> FastFunction:
        cls = type("JitFunction", (FastFunction,), {"__doc__": getattr(fn, "__doc__", None)})
        return cls(fn, nums, names, device, dynamic)
