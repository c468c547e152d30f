"""Graphs in files with values to run them on: what the commands work with.

Here: reading and writing a graph, arguments from words or at random, tests of a graph for bisecting and reducing.
Not here: the commands (cli.py), the text form (text.py, parse.py).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowc.diag import FileFormatError, FlowcError, FlowcValueError
from flowc.dims import evaluate, symbols
from flowc.graph import Graph
from flowc.types import Type

DEFAULT_SIZE = 5
MAX_TEXT = 256 << 20  # bytes of a graph as text


def read_graph(path: str) -> Graph:
    """The graph in a text file, or on standard input for ``-``; verified."""
    from flowc import ops  # noqa: F401  (fills the registry)
    from flowc.parse import parse_graph
    from flowc.verify import verify_graph
    if path == "-":
        text = sys.stdin.read()
    else:
        if not os.path.isfile(path):
            raise FileFormatError("F001", f"{path}: expected a graph as text, found "
                                  + ("a folder or device" if os.path.exists(path) else "no such file"),
                                  cure="check the path; FLOWC_DUMP_DIR writes such files")
        if os.path.getsize(path) > MAX_TEXT:
            raise FileFormatError("F004", f"{path}: expected at most {MAX_TEXT} bytes, found {os.path.getsize(path)}",
                                  cure="give a graph as text")
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        except UnicodeDecodeError as e:
            raise FileFormatError("F005", f"{path}: expected text, found bytes that are no UTF-8 ({e.reason} at "
                                  f"{e.start})", cure="give a graph as text") from None
    graph = parse_graph(text, path)
    verify_graph(graph)
    return graph


def write_graph(graph: Graph, folder: str, name: str = "case.flow") -> str:
    from flowc.text import to_text
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write(to_text(graph))
    return path


# ---- arguments ------------------------------------------------------------------------------------------------------

def parse_sizes(words: Sequence[str]) -> dict[str, int]:
    """``n=5`` and the like."""
    out = {}
    for w in words:
        found = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)", w)
        if not found:
            raise FlowcValueError("F014", f"--size {w} is no NAME=N", cure="write for instance --size n=7")
        out[found[1]] = int(found[2])
    return out


def random_array(t: Type, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Plain values of a type: floats around 0, small integers, both booleans."""
    shape = tuple(evaluate(d, sizes) for d in t.shape)
    if t.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if t.dtype.integer:
        return rng.integers(0, 8, shape).astype(t.dtype.numpy)
    a = rng.standard_normal(shape)
    return np.asarray(a + 1j * rng.standard_normal(shape) if t.dtype.kind == "c" else a).astype(t.dtype.numpy)


def _sizes(names: Sequence[str], given: Mapping[str, int], ranges: Mapping[str, Any]) -> dict[str, int]:
    out = dict(given)
    for name in names:
        low, high = ranges.get(name, (0, None))
        size = max(DEFAULT_SIZE, low) if isinstance(low, int) else DEFAULT_SIZE
        out.setdefault(name, min(size, high) if isinstance(high, int) else size)
    return out


def _free(types: Sequence[Type]) -> list[str]:
    return sorted({s for t in types for d in t.shape for s in symbols(d)})


def value(word: str, sizes: Mapping[str, int], rng: np.random.Generator, want: Type | None = None) -> Any:
    """One argument from the command line: an .npy file, a type to be filled at random, or a number."""
    if word.endswith(".npy"):
        try:
            return np.load(word, allow_pickle=False)
        except (OSError, ValueError, EOFError) as e:
            raise FileFormatError("F010", f"{word}: expected an array as numpy.save writes it, found: {e}",
                                  cure="check the path, and save it with numpy.save") from None
    if re.fullmatch(r"\w+\[.*\]", word):
        from flowc.parse import parse_type
        t = parse_type(word)
        return random_array(t, _sizes(_free([t]), sizes, {}), rng)
    for kind in (int, float, complex):
        try:
            number = kind(word)
        except ValueError:
            continue
        return number if want is None else np.asarray(number).astype(want.dtype.numpy)
    raise FlowcValueError("F014", f"argument {word!r} is no .npy file, type or number",
                          cure="write a.npy, f32[3,4] or 1.5")


def values(words: Sequence[str], sizes: Mapping[str, int], seed: int) -> list[Any]:
    """Arguments for a Python function."""
    rng = np.random.default_rng(seed)
    return [value(w, sizes, rng) for w in words]


def arguments(graph: Graph, words: Sequence[str], sizes: Mapping[str, int], seed: int) -> list[np.ndarray]:
    """One array per parameter, from ``words`` or at random.  Sizes that given arrays decide are used for the rest."""
    rng = np.random.default_rng(seed)
    types = [p.type for p in graph.params]
    unknown = set(sizes) - set(_free(types))
    if unknown:
        raise FlowcValueError("F014", f"the graph has no size {sorted(unknown)[0]}",
                              cure=f"its sizes are {', '.join(_free(types)) or 'all numbers'}")
    if words:
        if len(words) != len(types):
            raise FlowcValueError("F014", f"{len(words)} arguments for {len(types)} parameters",
                                  notes=[f"%{p.attrs['name']}: {p.type}" for p in graph.params],
                                  cure="give one per parameter")
        full = _sizes(_free(types), sizes, graph.ranges)
        return [np.asarray(value(w, full, rng, t)) for w, t in zip(words, types, strict=True)]
    full = _sizes(_free(types), sizes, graph.ranges)
    return [random_array(t, full, rng) for t in types]


# ---- tests of a graph -----------------------------------------------------------------------------------------------

def command_test(command: str) -> Callable[[Graph], bool]:
    """Does a shell command succeed for the graph?  ``{}`` in it stands for the graph's file."""
    def holds(graph: Graph) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = write_graph(graph, folder)
            filled = command.replace("{}", shlex.quote(path))
            return subprocess.run(filled, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  env={**os.environ, "FLOWC_CASE": path}).returncode == 0
    return holds


def differs_after_passes(original: Graph, arrays: Sequence[np.ndarray]) -> Callable[[Graph], bool]:
    """Does a graph with the same parameters give other results on the interpreter than ``original``?

    Passes may round better or sum in another order, so floats may differ by rounding at the scale of the largest value.
    """
    from flowc.backends.interp import run_graph
    want = run_graph(original, list(arrays))

    def bad(graph: Graph) -> bool:
        try:
            got = run_graph(graph, list(arrays))
        except FlowcError:
            return True
        return not all(close(g, w) for g, w in zip(got, want, strict=True))
    return bad


def close(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal, or for floats equal up to some hundred roundings at the scale of the largest finite value."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    if got.dtype.kind in "biu":
        return bool(np.array_equal(got, want))
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    g, w = got.astype(wide), want.astype(wide)
    scale = float(np.max(np.abs(w), initial=0.0, where=np.isfinite(w)))
    eps = {2: 2.0 ** -8, 4: 2.0 ** -23, 8: 2.0 ** -52, 16: 2.0 ** -52}[got.dtype.itemsize]
    if got.dtype.kind == "c" and got.dtype.itemsize == 8:
        eps = 2.0 ** -23
    return bool(np.allclose(g, w, rtol=256 * eps, atol=256 * eps * scale, equal_nan=True))
