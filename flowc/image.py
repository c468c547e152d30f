"""Compiled graphs on disk: under which key one is kept, and what is kept of its constants.

Here: those.  Not here: the store (cache.py), the machine code (backends/llvm/binary.py), compiling (compiled.py).

The key covers everything that a compile reads: the graph without its source lines, the settings, the machine, and
flowc itself.  A graph that is found this way is neither optimized nor lowered; who asks for its stages gets them made
then.  Not kept is what other code than flowc's had a hand in, what somebody watches (dumps, logs, checks of every
pass), and what holds very large constants.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowc import config
from flowc.cache import DiskStore
from flowc.dataclass import replace
from flowc.diag import FlowcError
from flowc.digest import digest
from flowc.graph import CONSTANT, Graph, Literal, Node
from flowc.ops import BUILTIN

if TYPE_CHECKING:
    from flowc.backends.llvm.cpu import CpuExecutable
    from flowc.passes.manager import PassContext
    from flowc.passes.schedule import Machine
    from flowc.plan import Program

LARGEST = 64 << 20   # bytes of constants in a graph that is kept: more take longer to read than to compile


def key(graph: Graph, machine: Machine, ctx: PassContext, donated: Iterable[int] = ()) -> str | None:
    """The key of ``graph`` compiled for the CPU; None if it is not to be kept."""
    nodes = graph.nodes
    if ctx.check or ctx.dump_dir or ctx.replay_dir or ctx.log or ctx.fuel >= 0 or not _own(nodes):
        return None
    if sum(n.attrs["value"].array.nbytes for n in nodes if n.op is CONSTANT) > LARGEST:
        return None
    source = fingerprint()
    if not source:
        return None
    from flowc.backends.llvm.engine import host, llvm_version
    from flowc.backends.llvm.share import costs
    rules = machine.choices and (machine.choices.given, machine.choices.tuned)
    hashed = digest()
    for part in (source, sys.version, np.__version__, llvm_version(), host(), replace(machine, choices=None), rules,
                 costs(), config.cache_key(), sorted(donated)):
        hashed.update(repr(part).encode() + b"\0")
    _add_graph(hashed, graph)
    return f"image {hashed.hexdigest()}"


def _own(nodes: Iterable[Node]) -> bool:
    """Are all ops flowc's own?  What others mean may change without flowc's knowledge."""
    return all(n.op.name in BUILTIN and (not n.attrs or all(
        _own(v.nodes) for v in n.attrs.values() if isinstance(v, Graph))) for n in nodes)


@functools.cache
def fingerprint() -> str:
    """What tells flowc's source files from edited ones: their names, sizes and times; "" if there are no files."""
    hashed = digest()
    try:
        for folder, inner, files in os.walk(os.path.dirname(__file__), followlinks=True):
            inner[:] = sorted(d for d in inner if d != "__pycache__")
            for name in sorted(files):
                if name.endswith(".py"):
                    s = os.stat(os.path.join(folder, name))
                    hashed.update(f"{name} {s.st_size} {s.st_mtime_ns}\n".encode())
    except OSError:
        return ""
    return hashed.hexdigest()


def _add_graph(hashed: Any, graph: Graph) -> None:
    number: dict[Node, int] = {}
    for n in graph.nodes:
        hashed.update(f"{n.op.name} {[number[x] for x in n.inputs]} {n.type}".encode())
        for name, value in n.attrs.items():
            hashed.update(name.encode())
            _add_value(hashed, value)
        number[n] = len(number)
    hashed.update(f"{graph.name} {[number[p] for p in graph.params]} {[number[o] for o in graph.outputs]} "
                  f"{sorted(graph.ranges.items())} {graph.constraints}".encode())


def _add_value(hashed: Any, value: Any) -> None:
    """An attribute; kinds are told apart, and floats go by their bits."""
    if isinstance(value, tuple):
        hashed.update(b"(")
        for v in value:
            _add_value(hashed, v)
        hashed.update(b")")
    elif isinstance(value, Literal):
        a = value.array
        hashed.update(f"{a.dtype.name}{a.shape}".encode())
        hashed.update(a.reshape(-1).view(np.uint8).data if a.size else b"")
    elif isinstance(value, Graph):
        _add_graph(hashed, value)
    elif isinstance(value, float):
        hashed.update(b"f" + struct.pack("<d", value))
    else:
        hashed.update(f"{type(value).__name__} {value!r};".encode())


# ---- constants ------------------------------------------------------------------------------------------------------

def _literals(graph: Graph) -> list[Literal]:
    return [n.attrs["value"] for n in graph.nodes if n.op is CONSTANT]


def save(store: DiskStore, key: str, graph: Graph, program: Program, executable: CpuExecutable) -> None:
    """Keep the machine code of ``program``, which was made from ``graph``.  Of its constants those are written that
    the graph does not have."""
    from flowc.backends.llvm.binary import pack
    at = {id(literal): i for i, literal in enumerate(_literals(graph))}
    constants = {name: at.get(id(literal), literal.array) for name, literal in program.constants.items()}
    if sum(c.nbytes for c in constants.values() if isinstance(c, np.ndarray)) <= LARGEST:
        store.put(key, pack(executable.binary, constants))


def load(store: DiskStore, key: str, graph: Graph,
         program: Callable[[], Program]) -> CpuExecutable | None:
    """What :func:`save` kept; None if there is nothing, or nothing that can be used.  program: a function that gives
    the program, for whoever wants to see it."""
    data = store.get(key)
    if data is None:
        return None
    from flowc.backends.llvm.binary import unpack
    from flowc.backends.llvm.cpu import CpuExecutable
    try:
        binary, constants = unpack(data)
        given: Sequence[Literal] = _literals(graph)
        assert isinstance(constants, dict)
        arrays = {name: given[c].array if isinstance(c, int) else c for name, c in constants.items()}
        return CpuExecutable(binary, arrays, store, program)
    except FlowcError:  # it does not load: compiled anew, it is written anew
        return None
