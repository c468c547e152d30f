"""Element types and tensor types.

Here: the dtypes flowc knows, NumPy-2 promotion between them, and ``Type``: a dtype with a shape of sizes.
Not here: sizes (dims.py), values (graph.py).  Read next: op.py.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np

from flowc.dataclass import dataclass
from flowc.dims import DimLike, prod


class DType:
    """One element type; the instances below are the only ones, so ``is`` compares.

    ``name`` is flowc's short name (``f32``), ``numpy`` the NumPy dtype, ``kind`` one of ``b i u f c``
    (bool, signed, unsigned, float, complex), ``bits`` the storage size of one element.
    """

    def __init__(self, name: str, numpy_name: str, kind: str, bits: int):
        self.name, self.numpy_name, self.kind, self.bits = name, numpy_name, kind, bits

    @cached_property
    def numpy(self) -> np.dtype:
        if self.name == "bf16":  # ml_dtypes is loaded only by programs that use it
            import ml_dtypes
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.numpy_name)

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def floating(self) -> bool:
        return self.kind == "f"

    @property
    def integer(self) -> bool:
        return self.kind in "iu"

    @property
    def real(self) -> DType:
        """The component type of a complex dtype, the dtype itself otherwise."""
        return {"c64": f32, "c128": f64}.get(self.name, self)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        return (dtype, (self.name,))


bool_ = DType("bool", "bool", "b", 8)
i8, i16, i32, i64 = (DType(f"i{b}", f"int{b}", "i", b) for b in (8, 16, 32, 64))
u8, u16, u32, u64 = (DType(f"u{b}", f"uint{b}", "u", b) for b in (8, 16, 32, 64))
f16, bf16 = DType("f16", "float16", "f", 16), DType("bf16", "bfloat16", "f", 16)
f32, f64 = DType("f32", "float32", "f", 32), DType("f64", "float64", "f", 64)
c64, c128 = DType("c64", "complex64", "c", 64), DType("c128", "complex128", "c", 128)

DTYPES: dict[str, DType] = {d.name: d for d in (
    bool_, i8, i16, i32, i64, u8, u16, u32, u64, f16, bf16, f32, f64, c64, c128)}
_BY_NUMPY = {d.numpy_name: d for d in DTYPES.values()}

BOOLS = (bool_,)
SIGNED, UNSIGNED = (i8, i16, i32, i64), (u8, u16, u32, u64)
INTS = SIGNED + UNSIGNED
FLOATS = (f16, bf16, f32, f64)
COMPLEX = (c64, c128)
REALS = INTS + FLOATS
NUMBERS = REALS + COMPLEX
ALL = BOOLS + NUMBERS


def dtype(x: Any) -> DType:
    """The flowc dtype named by ``x``: a DType, ``"f32"``, ``"float32"``, ``np.float32`` or ``np.dtype``.

    Raises TypeError, listing the supported dtypes, for anything else.
    """
    if isinstance(x, DType):
        return x
    if isinstance(x, np.dtype):
        return _of_numpy(x)
    if isinstance(x, str) and x in DTYPES:
        return DTYPES[x]
    try:
        name = x if isinstance(x, str) and x == "bfloat16" else np.dtype(x).name
    except TypeError:
        name = str(x)
    found = _BY_NUMPY.get(name)
    if found is None:
        raise TypeError(f"dtype {x!r} is not supported; flowc knows {', '.join(_BY_NUMPY)}")
    return found


@cache
def _of_numpy(x: np.dtype) -> DType:
    found = _BY_NUMPY.get(x.name)  # which NumPy puts together in each call
    if found is None:
        raise TypeError(f"dtype {x!r} is not supported; flowc knows {', '.join(_BY_NUMPY)}")
    return found


@cache
def promote(a: DType, b: DType) -> DType:
    """NumPy 2's promotion of two array dtypes.  bfloat16 with an integer or bool stays bfloat16 for 8-bit and
    widens to f32 or f64 like float16 does; bfloat16 with float16 gives f32.  Python scalars are weak: see trace.py."""
    if a is b:
        return a
    if bf16 in (a, b):
        other = b if a is bf16 else a
        if other is f16:
            return f32
        if other.kind == "b" or other.bits == 8 and other.integer:
            return bf16
        return promote(f32, other) if other.kind == "c" or other.bits > 16 else f32
    return dtype(np.promote_types(a.numpy, b.numpy))


@dataclass(frozen=True)
class Type:
    """A tensor type: element type and shape; sizes are ints or symbolic ``Dim`` expressions."""

    dtype: DType
    shape: tuple[DimLike, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> DimLike:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> DimLike:
        return self.size * self.dtype.bytes

    def with_shape(self, shape) -> Type:
        return Type(self.dtype, tuple(shape))

    def with_dtype(self, d: DType) -> Type:
        return Type(d, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"

    __repr__ = __str__


def array_type(a: np.ndarray) -> Type:
    """The static type of a NumPy array."""
    return Type(dtype(a.dtype), tuple(int(n) for n in a.shape))
