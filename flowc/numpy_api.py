"""The one table of NumPy functions, filled: importing this room makes ``np.*`` work on traced values.

Here: the rooms that make up the table, and what can be asked about it.  Not here: any function.  One entry serves
``np.f(x)`` (the array-function and ufunc protocols), ``flowc.numpy.f`` and the method ``x.f``; see ``api`` in
numpy_core.py for how to add one.  Read next: numpy.py.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flowc import (  # noqa: F401  (each fills the table)
    numpy_create,
    numpy_elementwise,
    numpy_index,
    numpy_join,
    numpy_linalg,
    numpy_more,
    numpy_reduce,
    numpy_shape,
)
from flowc.numpy_core import PUBLIC
from flowc.size import rooms


def public() -> dict[str, Callable[..., Any]]:
    """Every function of flowc.numpy by name; names of ``linalg`` carry the prefix ``linalg.``."""
    return dict(sorted(PUBLIC.items()))


functions = SimpleNamespace(**PUBLIC)  # for the rooms that compose them


def supported(fn: Callable[..., Any]) -> bool:
    """Does a NumPy function work on traced values."""
    return fn in rooms.functions
