"""What a bug report should say about an installation and its machine.

Here: versions, processor, threads, GPU, cache, settings, and a trial compile.  Not here: the command (cli.py).
Nothing here fails because something is missing: what cannot be found out is said.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable

import numpy as np

from flowc import cache, config
from flowc.diag import FlowcError

LIBRARIES = ("numpy", "llvmlite", "networkx", "ml_dtypes")


def _version_of(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _llvm() -> str:
    from flowc.backends.llvm.engine import llvm_version
    return llvm_version()


def _processor() -> str:
    from flowc.backends.llvm.engine import host
    h = host()
    wanted = ("avx2", "avx512f", "fma", "neon", "sve", "rvv")
    features = str(getattr(h, "features", "")).split(",")
    have = " ".join(w for w in wanted if "+" + w in features)
    return f"{getattr(h, 'cpu', 'unknown')} ({have or platform.machine()})"


def _threads() -> str:
    from flowc.backends.llvm.pool import available_threads, num_threads
    return f"{num_threads()} in the pool, {available_threads()} allowed, {os.cpu_count()} processors"


def _gpu() -> str:
    mode = config.get("gpu")
    if mode == "sim":
        return f"the PTX interpreter, for {config.get('gpu_arch')} (FLOWC_GPU=sim)"
    driver = importlib.import_module("flowc.backends.cuda.driver")
    return driver.describe()


def _cache() -> str:
    state = cache.info()
    if state.refused:
        return f"not used: {state.refused}"
    return f"{state.path}: {state.entries} entries, {state.bytes} of {state.limit} bytes"


def _tuning() -> str:
    from flowc import tuned
    from flowc.backends.llvm.engine import processor
    return tuned.describe(processor())


def _trial() -> str:
    """Compile and run something small on the CPU and compare it with NumPy."""
    from flowc.api import jit
    x = np.linspace(-1, 1, 100, dtype=np.float32)
    got = jit(lambda v: v * 2 + 1, device="cpu")(x)
    if not np.array_equal(got, x * 2 + 1):
        raise FlowcError("C090", "a compiled function gives wrong results", cure="report this with what stands above")
    return "a compiled function gives NumPy's result"


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("LLVM", _llvm), ("processor", _processor), ("threads", _threads), ("GPU", _gpu), ("cache", _cache),
    ("tuning", _tuning), ("trial", _trial))


def report() -> tuple[list[str], bool]:
    """Lines to print, and whether everything that must work does."""
    healthy = sys.version_info >= (3, 11)
    lines = [f"{'flowc':<10} {_version_of('flowc')} in {os.path.dirname(os.path.abspath(__file__))}",
             f"{'Python':<10} {platform.python_implementation()} {platform.python_version()} on {platform.platform()}"]
    for name in LIBRARIES:
        version = _version_of(name)
        healthy &= version != "missing"
        lines.append(f"{name:<10} {version}")
    for label, check in CHECKS:
        try:
            text = check()
        except (FlowcError, OSError, ImportError, AttributeError, RuntimeError) as e:
            text = f"not available: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
            healthy &= label == "GPU"
        lines.append(f"{label:<10} {text}")
    lines.append("settings (* differs from the default):")
    lines += [f"{'*' if value != s.default else ' '} {s.env} = {value!r}" for s, value in _settings()]
    return lines, healthy


def _settings() -> list[tuple[config.Setting, object]]:
    out: list[tuple[config.Setting, object]] = []
    for s in config.SETTINGS.values():
        try:
            out.append((s, config.get(s.name)))
        except FlowcError as e:
            out.append((s, f"invalid: {e.text}"))
    return out
