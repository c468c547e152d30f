"""``flowc.numpy``: the public namespace of array functions, by the names of the Array API standard and of NumPy.

On traced values a function records nodes; outside a trace it is NumPy's own.  Inside a trace the functions that make
arrays (zeros, arange, asarray, ...) make tensors, which may be written to with traced values.
Not here: the functions themselves (numpy_api.py and its rooms).  Read next: nn.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from flowc.nn import conv2d, erf, gelu, layer_norm, maxpool2, sdpa, segment_sum, softmax  # noqa: F401  (beyond NumPy)
from flowc.numpy_api import public
from flowc.types import bf16

__array_api_version__ = "2024.12"

e, inf, nan, pi, newaxis = np.e, np.inf, np.nan, np.pi, None
bool = np.bool_  # the standard's names hide Python's
bool_ = np.bool_
int8, int16, int32, int64 = np.int8, np.int16, np.int32, np.int64
uint8, uint16, uint32, uint64 = np.uint8, np.uint16, np.uint32, np.uint64
float16, float32, float64 = np.float16, np.float32, np.float64
complex64, complex128 = np.complex64, np.complex128
dtype, finfo, iinfo, isdtype, promote_types = np.dtype, np.finfo, np.iinfo, np.isdtype, np.promote_types
s_, index_exp = np.s_, np.index_exp

linalg = SimpleNamespace()
for _name, _function in public().items():
    if _name.startswith("linalg."):
        setattr(linalg, _name.removeprefix("linalg."), _function)
    else:
        globals()[_name] = _function

from_dlpack = np.from_dlpack


class _Info:
    """What the standard's inspection functions report."""

    _KINDS = {"bool": ("bool",), "signed integer": ("int8", "int16", "int32", "int64"),
              "unsigned integer": ("uint8", "uint16", "uint32", "uint64"), "real floating": ("float32", "float64"),
              "complex floating": ("complex64", "complex128")}

    def capabilities(self) -> dict[str, Any]:
        return {"boolean indexing": False, "data-dependent shapes": False, "max dimensions": 64}

    def default_device(self) -> str:
        return "cpu"

    def devices(self) -> list[str]:
        return ["cpu"]

    def default_dtypes(self, *, device: Any = None) -> dict[str, np.dtype]:
        return {"real floating": np.dtype(float64), "complex floating": np.dtype(complex128),
                "integral": np.dtype(int64), "indexing": np.dtype(int64)}

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, np.dtype]:
        """Dtypes by name, of one kind or a tuple of kinds of the standard."""
        groups = {"integral": ("signed integer", "unsigned integer"),
                  "numeric": ("signed integer", "unsigned integer", "real floating", "complex floating")}
        kinds = tuple(self._KINDS) if kind is None else kind if isinstance(kind, tuple) else (kind,)
        names = [n for k in kinds for g in groups.get(k, (k,)) for n in self._KINDS[g]]
        return {n: np.dtype(n) for n in names}


def __array_namespace_info__() -> _Info:
    return _Info()


def __getattr__(name: str) -> Any:
    if name == "bfloat16":  # its library is loaded by those who ask for it
        return bf16.numpy.type
    raise AttributeError(f"flowc.numpy has no function {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "bfloat16"])
