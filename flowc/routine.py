"""Runs of a session that were done before: straight to native code.

Here: what one pair of fetches and fed tensors comes to, worked out once.  Not here: what it means (session.py), the
native call (backends/llvm/callpath.py).  Read next: session.py.

A routine takes what is fed and the values of variables, calls the piece's code, stores updates and hands out results.
It does that only for what the native call takes as it is: arrays of the right dtype, rank and sizes.  Anything else,
errors among it, is left to the session, which looks at everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from flowc.compiled import Compiled
from flowc.graph import Node

PASSED_ON = object()  # what a routine gives for a run that the session has to look at

_SCALARS = {float: "float", int: "int", bool: "bool"}


class Routine:
    """One pair of fetches and fed tensors.

    sources: for each parameter of the piece the position of the fed value, or the variable's node.  results: for each
      fetch the number of the piece's output and whether it must be a copy, since a variable keeps it; None for an
      operation without a value.  stored: number of the output for each variable that is updated.
    rebuild: results -> what was fetched.  lock: held from reading to storing, where there is something to store.
    """

    def __init__(self, call: Callable[..., Any], sources: Sequence[int | Node],
                 results: Sequence[tuple[int, bool] | None], stored: Mapping[Node, int],
                 rebuild: Callable[[list[Any]], Any], lock: AbstractContextManager[Any]):
        self.call, self.sources, self.results, self.rebuild = call, sources, results, rebuild
        self.stored, self.lock = tuple(stored.items()), lock

    def run(self, fed: Sequence[Any], values: dict[Node, np.ndarray]) -> Any:
        """The results for fed values in the order of the feeds, or PASSED_ON.  values: of the variables."""
        try:
            with self.lock:
                args = [fed[s] if type(s) is int else values[s] for s in self.sources]  # type: ignore[index]
                if self.stored:
                    out = self.call(*args)
                    if out is not PASSED_ON:
                        for node, i in self.stored:
                            values[node] = out[i]
        except KeyError:  # a variable has no value
            return PASSED_ON
        if not self.stored:
            out = self.call(*args)
        if out is PASSED_ON:
            return out
        return self.rebuild([None if r is None else out[r[0]].copy() if r[1] else out[r[0]] for r in self.results])


def native(compiled: Compiled, given: Sequence[Any]) -> Callable[..., tuple] | None:
    """The compiled piece as a native call that gives a tuple of its outputs, or PASSED_ON for arguments unlike
    ``given``; None if there is none."""
    kinds = tuple("array" if type(a) is np.ndarray else _SCALARS.get(type(a), "") for a in given)
    if compiled.device != "cpu" or not compiled.source.outputs or "" in kinds:
        return None
    from flowc.backends.llvm.callpath import CallSpec, Container

    def otherwise(*args: Any) -> Any:
        return PASSED_ON
    outputs = tuple(range(len(compiled.source.outputs)))
    call = compiled.executable.native_callable(CallSpec(kinds, Container("tuple", outputs)), otherwise)
    return None if call is otherwise else call
