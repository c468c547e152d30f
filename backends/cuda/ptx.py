"""Kernels to PTX, and PTX to statistics.

Here: ``compile_kernel`` (bind, emit, compile), launch sizes, ``assemble`` through ptxas where one is installed.
Not here: how loops are bound (passes/gpu.py), emission (backends/llvm/emit.py), LLVM (backends/llvm/engine.py),
launching (runtime.py).  Read next: driver.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile

from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.emit_loops import blocks_of, threads_of
from flowc.backends.llvm.engine import Store, compile_ptx, object_key
from flowc.backends.llvm.target import nvptx_target
from flowc.dataclass import dataclass, replace
from flowc.diag import FlowcError, UnsupportedError
from flowc.dims import DimLike
from flowc.kernel import Buffer, Kernel
from flowc.passes.gpu import bind

ENTRY = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True)
class PtxKernel:
    """A compiled kernel.  The entry takes one address per buffer of ``params`` and ``scratch``, then one i64 per dim.

    threads: per block.  grid: number of blocks that are worth launching, a size over ``dims``; 0 means nothing to do;
    fewer also do all the work.  scratch: working memory that the launcher provides, sizes over ``dims``.
    """

    text: str
    entry: str
    params: tuple[Buffer, ...]
    dims: tuple[str, ...]
    threads: int
    grid: DimLike
    scratch: tuple[Buffer, ...] = ()
    shared: int = 0
    ir: str = ""


@dataclass(frozen=True)
class Assembled:
    """What ptxas says of a kernel.  Sizes in bytes: ``spills`` stored and loaded, ``stack`` per thread, ``shared``."""

    registers: int
    spills: int
    stack: int
    shared: int
    cubin: bytes
    log: str


def compile_kernel(kernel: Kernel, arch: str = "sm_80", store: Store | None = None) -> PtxKernel:
    """PTX of a kernel, which is bound to blocks and threads first if it is not yet.

    store: asked for the text first and given it when new; None: nowhere.
    UnsupportedError for instructions that GPUs do not have; FlowcError C110 for an unknown architecture.
    """
    bound = bind(kernel)
    module = Module()
    entry = ENTRY.sub("_", kernel.name)
    target = nvptx_target(arch)
    # one block per multiprocessor is enough: without this, ptxas may spill registers to make room for more
    target = replace(target, attributes=f'{target.attributes} "nvvm.minctasm"="1"')
    emit_kernel(bound.kernel, module, target, entry)
    ir = module.text()
    _refuse(ir)
    text = _text(ir, arch, store)
    count = len(bound.kernel.params) - len(bound.scratch)
    return PtxKernel(text, entry, bound.kernel.params[:count], bound.kernel.dims, threads_of(bound.kernel),
                     blocks_of(bound.kernel), bound.scratch, _shared_bytes(text), ir)


def _text(ir: str, arch: str, store: Store | None) -> str:
    key = object_key(ir, ("ptx", arch))
    known = store.get(key) if store is not None else None
    if known is not None:
        return known.decode()
    text = compile_ptx(ir, arch)
    if store is not None:
        store.put(key, text.encode())
    return text


def _refuse(ir: str) -> None:
    """Instructions that the code generator would accept and get wrong."""
    if re.search(r"= frem ", ir):
        raise UnsupportedError("C321", "the remainder of floats has no exact form on this GPU target",
                               cure="compute it on the CPU, or expand it in mathlib")


def _shared_bytes(text: str) -> int:
    """Static shared memory of a module with one kernel; ptxas may lay it out a little tighter or wider."""
    size = 0
    for align, bits, count in re.findall(r"^\s*\.shared\s+\.align\s+(\d+)\s+\.b(\d+)\s+[\w$]+\[(\d+)\]", text, re.M):
        size = -(-size // int(align)) * int(align) + int(bits) // 8 * int(count)
    return size


def ptxas() -> str | None:
    """The assembler of a CUDA toolkit, if one is installed."""
    return shutil.which("ptxas")


def assemble(text: str, arch: str) -> Assembled:
    """Machine code and its statistics.  FlowcError C322 without ptxas, C323 for text it refuses, with its report."""
    tool = ptxas()
    if tool is None:
        raise FlowcError("C322", "ptxas is not installed", cure="install a CUDA toolkit, or let the driver assemble")
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "kernel.ptx"), os.path.join(folder, "kernel.cubin")
        with open(source, "w", encoding="utf-8") as f:
            f.write(text)
        done = subprocess.run([tool, f"-arch={arch}", "-v", source, "-o", target], capture_output=True, text=True,
                              check=False)
        log = done.stdout + done.stderr
        if done.returncode:
            raise FlowcError("C323", f"ptxas refuses the code for {arch}", notes=log.strip().splitlines()[:20],
                             cure="this is an error of flowc; report it with FLOWC_DUMP_DIR's files")
        with open(target, "rb") as g:
            cubin = g.read()

    def total(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))
    return Assembled(max(map(int, re.findall(r"Used (\d+) registers", log)), default=0),
                     total(r"(\d+) bytes spill"), total(r"(\d+) bytes stack frame"), total(r"(\d+) bytes smem"), cubin,
                     log)
