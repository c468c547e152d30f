"""flowc: a graph compiler in Python.  NumPy-style functions in, native code out.

Here: the public names and the room each comes from, loaded when first used.  Not here: anything else.
Read next: api.py for functions, session.py for the graph layer, config.py for settings.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# room -> names it gives to the public; below: names that are called otherwise there, and rooms as a whole
_ROOMS: dict[str, tuple[str, ...]] = {
    "flowc.backends.runtime": ("release_memory",),
    "flowc.api": ("grad", "interpret", "jit", "value_and_grad", "verify"),
    "flowc.function": ("spec",),
    "flowc.config": ("options", "set_option"),
    "flowc.tree": ("register_pytree",),
    "flowc.symbolic": ("Operation", "Variable", "constant", "get_default_graph", "global_variables",
                       "global_variables_initializer", "group", "identity", "placeholder", "reset_default_graph",
                       "trainable_variables"),
    "flowc.session": ("Session",),
    "flowc.optim": ("gradients",),
    "flowc.diag": ("FileFormatError", "FlowcError", "FlowcIndexError", "FlowcTypeError", "FlowcValueError",
                   "ParseError", "UnsupportedError", "VerifyError"),
}
_PUBLIC: dict[str, tuple[str, str]] = {name: (room, name) for room, names in _ROOMS.items() for name in names} | {
    "Graph": ("flowc.symbolic", "SessionGraph"),
    "nn": ("flowc.nn", ""),
    "numpy": ("flowc.numpy", ""),
    "random": ("flowc.random", ""),
    "train": ("flowc.optim", ""),
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def _load(name: str) -> Any:
    from flowc.uncollected import uncollected
    room, attribute = _PUBLIC[name]
    with uncollected():
        module = importlib.import_module(room)
    return getattr(module, attribute) if attribute else module


class _Hall(ModuleType):
    """This package's own type.  Importing a submodule sets it as an attribute of the package, and one room carries the
    name of a public function: here the function wins, whatever was imported before."""

    verify = property(lambda self: _load("verify"), lambda self, module: None)


sys.modules[__name__].__class__ = _Hall


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flowc' has no attribute {name!r}")
    value = globals()[name] = _load(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:  # the same names for type checkers; tests compare
    from flowc import nn as nn
    from flowc import numpy as numpy
    from flowc import optim as train  # noqa: F401
    from flowc import random as random
    from flowc.api import grad as grad
    from flowc.api import interpret as interpret
    from flowc.api import jit as jit
    from flowc.api import value_and_grad as value_and_grad
    from flowc.api import verify as verify
    from flowc.backends.runtime import release_memory as release_memory
    from flowc.config import options as options
    from flowc.config import set_option as set_option
    from flowc.diag import FileFormatError as FileFormatError
    from flowc.diag import FlowcError as FlowcError
    from flowc.diag import FlowcIndexError as FlowcIndexError
    from flowc.diag import FlowcTypeError as FlowcTypeError
    from flowc.diag import FlowcValueError as FlowcValueError
    from flowc.diag import ParseError as ParseError
    from flowc.diag import UnsupportedError as UnsupportedError
    from flowc.diag import VerifyError as VerifyError
    from flowc.function import spec as spec
    from flowc.optim import gradients as gradients
    from flowc.session import Session as Session
    from flowc.symbolic import Operation as Operation
    from flowc.symbolic import SessionGraph as Graph  # noqa: F401
    from flowc.symbolic import Variable as Variable
    from flowc.symbolic import constant as constant
    from flowc.symbolic import get_default_graph as get_default_graph
    from flowc.symbolic import global_variables as global_variables
    from flowc.symbolic import global_variables_initializer as global_variables_initializer
    from flowc.symbolic import group as group
    from flowc.symbolic import identity as identity
    from flowc.symbolic import placeholder as placeholder
    from flowc.symbolic import reset_default_graph as reset_default_graph
    from flowc.symbolic import trainable_variables as trainable_variables
    from flowc.tree import register_pytree as register_pytree
