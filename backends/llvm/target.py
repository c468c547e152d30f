"""What the emitter must know of a machine: a record per target.

Here: the record, the CPU and the NVPTX targets, the names of their intrinsics.
Not here: what this machine is (engine.py), what is emitted (emit.py), launching (backends/cuda).  Read next: emit.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

from flowc.dataclass import dataclass, field
from flowc.diag import UnsupportedError

# Operations of LLVM that the back end of each target turns into instructions.  Anything else may become a call to a
# library, or end the process, so it is refused while emitting.
_COMMON = frozenset({
    "fma", "fabs", "sqrt", "floor", "ceil", "trunc", "rint", "copysign", "smin", "smax", "umin", "umax",
})
_CPU = _COMMON | {
    "ldexp", "masked.load", "masked.store", "masked.gather", "masked.scatter", "vector.reduce.or",
    "stacksave", "stackrestore", "trap",
}
_SIZES = (128, 256, 512)
# instructions on words -> (features that a CPU needs for it, its intrinsics), the best first
_DOTS = (
    ("dot_bf16", {"avx512bf16", "avx512vl"}, {f"x86.avx512bf16.dpbf16ps.{bits}" for bits in _SIZES}),
    ("dot_i16", {"avx512vnni", "avx512vl"}, {f"x86.avx512.vpdpwssd.{bits}" for bits in _SIZES}),
    ("dot_i8", {"avx512vnni", "avx512vl"}, {f"x86.avx512.vpdpbusd.{bits}" for bits in _SIZES}),
    ("dot_i16", {"avxvnni", "-avx512f"}, {f"x86.avx512.vpdpwssd.{bits}" for bits in (128, 256)}),
    ("dot_i8", {"avxvnni", "-avx512f"}, {f"x86.avx512.vpdpbusd.{bits}" for bits in (128, 256)}),
    ("dot_i16", {"avx512bw"}, {"x86.sse2.pmadd.wd", "x86.avx2.pmadd.wd", "x86.avx512.pmaddw.d.512"}),
    ("dot_i16", {"avx2", "-avx512f"}, {"x86.sse2.pmadd.wd", "x86.avx2.pmadd.wd"}),
)
# (feature that a CPU needs, what permutes registers of f32 and f64)
_PERMUTES = (
    ("+avx512f", {"x86.avx512.permvar.sf.512", "x86.avx512.permvar.df.512", "x86.avx512.vpermi2var.pd.512"}),
    ("+avx2", {"x86.avx2.permps"}),
)
_SCALEF = frozenset(f"x86.avx512.mask.scalef.p{t}.{bits}" for t in "sd" for bits in (128, 256, 512))
_NVPTX = _COMMON | {
    "maximum", "minimum", "nvvm.read.ptx.sreg.ctaid.x", "nvvm.read.ptx.sreg.nctaid.x", "nvvm.read.ptx.sreg.tid.x",
    "nvvm.barrier.cta.sync.aligned.all",
}


@dataclass(frozen=True)
class Grid:
    """How a kernel finds its place on a GPU: intrinsics without ``llvm.`` that read the number of this block, the
    number of blocks and the number of this thread (i32), and the barrier of a block with its argument."""

    block: str
    blocks: str
    thread: str
    barrier: str
    barrier_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """One machine for the emitter.

    vector_bits: of one register; 0 if a vector loop runs element by element.
    pointers: LLVM pointer type by space (``param``, ``local``, ``shared``).
    intrinsics: ``llvm.*`` operations, without the prefix and the type suffixes, that may be used.
    native: Kernel IR instructions that are one intrinsic here and need no expansion.
    grid: how block and thread loops are bound; None where they run in order.
    attributes: function attributes of kernels.
    masks: masked loads and stores cost hardly more than plain ones.
    """

    name: str
    triple: str
    cpu: str = ""
    features: str = ""
    vector_bits: int = 512
    pointers: Mapping[str, str] = field(hash=False, default_factory=lambda: MappingProxyType(
        {"param": "ptr", "local": "ptr", "shared": "ptr"}))
    intrinsics: frozenset[str] = _CPU
    native: frozenset[str] = frozenset()
    grid: Grid | None = None
    attributes: str = "nounwind"
    masks: bool = False

    @property
    def vectors(self) -> bool:
        return self.vector_bits > 0

    def allow(self, intrinsic: str) -> None:
        """Raise UnsupportedError C120 unless ``intrinsic`` (``fma``, ``masked.load``) may be used."""
        if intrinsic not in self.intrinsics:
            raise UnsupportedError("C120", f"{self.name} has no operation llvm.{intrinsic}",
                                   cure="this is an error of flowc: the emitter must expand it")


def cpu_target(triple: str, cpu: str, features: str, vector_bits: int = 512, llvm: int = 22) -> Target:
    """A CPU.  ``features`` in LLVM's form ``+avx2,-avx512f``; AVX-512 scales by a power of two in one instruction
    (emit_scale.py)."""
    has = set(features.split(","))
    wide = "+avx512f" in has
    scalef = wide and "+avx512vl" in has
    native = frozenset({"ldexp"} if wide and llvm >= 22 else ()) | frozenset({"ldexp", "scale"} if scalef else ())
    # without a library behind it, llvm.ldexp is no instruction elsewhere
    intrinsics = _CPU if wide and llvm >= 22 else _CPU - {"ldexp"}
    intrinsics = intrinsics.union(_SCALEF if scalef else (), *(names for need, names in _PERMUTES if need in has))
    found = _dots(features)
    native = native | set(found)
    intrinsics = intrinsics.union(*found.values())
    return Target("cpu", triple, cpu, features, vector_bits, intrinsics=intrinsics, native=native, masks=wide)


@functools.cache
def dots(features: str) -> tuple[str, ...]:
    """The instructions on words that a CPU has."""
    return tuple(_dots(features))


def _dots(features: str) -> dict[str, set[str]]:
    """Those instructions, each with its intrinsics."""
    has = set(features.split(","))
    out: dict[str, set[str]] = {}
    for name, needs, intrinsics in _DOTS:
        if name not in out and all((f if f[0] == "-" else f"+{f}") in has for f in needs):
            out[name] = intrinsics
    return out


def nvptx_target(arch: str = "sm_80", features: str = "") -> Target:
    """An NVIDIA GPU from ``sm_80`` on.  Vector loops run element by element: a thread is a lane."""
    grid = Grid("nvvm.read.ptx.sreg.ctaid.x", "nvvm.read.ptx.sreg.nctaid.x", "nvvm.read.ptx.sreg.tid.x",
                "nvvm.barrier.cta.sync.aligned.all", ("i32 0",))
    pointers = MappingProxyType({"param": "ptr addrspace(1)", "local": "ptr", "shared": "ptr addrspace(3)"})
    return Target("nvptx", "nvptx64-nvidia-cuda", arch, features, 0, pointers, _NVPTX,
                  frozenset({"min", "max"}), grid)
