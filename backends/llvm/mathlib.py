"""Functions that no machine has as an instruction, expanded into ones that every machine has.

Here: the table the emitter looks into, and the error bound of every function.  Not here: the functions
(mathlib_f32.py, mathlib_f64.py), of what they are made (mathlib_parts.py, mathlib_pieces.py).

One text serves CPU and GPU at any number of lanes, so the bits are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flowc.backends.llvm import mathlib_f32, mathlib_f64, mathlib_parts
from flowc.kernel import Expr

EXPAND: dict[tuple[str, str], Callable[..., Expr]] = {
    **{(name, "f32"): fn for name, fn in mathlib_f32.FUNCTIONS.items()},
    **{(name, "f64"): fn for name, fn in mathlib_f64.FUNCTIONS.items()},
    **{("ldexp", d): mathlib_parts.ldexp for d in ("f32", "f64")},
    ("dot_bf16", "f32"): mathlib_parts.dot_bf16, ("dot_i16", "i32"): mathlib_parts.dot_i16,
    ("dot_i8", "i32"): mathlib_parts.dot_i8,
    **{("scale", d): mathlib_parts.two_factors for d in ("f32", "f64")},
}

# The largest error in units in the last place of the exact result, rounded up from what was measured: f32 on every
# 149th float of the line and every 7th between 1/32 and 8, f64 on some 10**6 random arguments; 16-bit floats are
# computed in f32 and rounded, 0.51.  Subnormal results count in their own units.
MAX_ULP: Mapping[str, tuple[float, float]] = {  # name -> (f32, f64)
    "exp": (0.9, 0.9), "exp2": (0.9, 0.9), "expm1": (1.5, 1.8), "log": (0.85, 0.65), "log2": (1.2, 0.6),
    "log10": (1.7, 0.7), "log1p": (1.6, 1.4), "sin": (1.5, 0.85), "cos": (1.5, 0.85), "tan": (2.7, 2.3),
    "asin": (1.2, 0.7), "acos": (1.2, 0.7), "atan": (1.5, 1.9), "sinh": (1.7, 1.7), "cosh": (1.5, 1.4),
    "tanh": (1.3, 1.5), "asinh": (2.0, 1.9), "acosh": (2.2, 2.0), "atanh": (2.2, 2.0), "erf": (0.8, 1.1),
    "erfc": (3.3, 3.5), "ndtr": (3.3, 3.8), "cbrt": (0.85, 0.8), "pow": (0.9, 1.3), "atan2": (1.6, 2.2),
}
