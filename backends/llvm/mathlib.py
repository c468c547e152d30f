"""Functions that no machine has as an instruction, expanded into ones that every machine has.

Here: the table the emitter looks into, and the error bound of every function.  Not here: the functions
(mathlib_f32.py, mathlib_f64.py), their pieces (mathlib_parts.py).

One text serves CPU and GPU at any number of lanes, so the bits are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.backends.llvm import mathlib_f32, mathlib_f64, mathlib_parts
from flowc.kernel import Expr

EXPAND: dict[tuple[str, str], Callable[..., Expr]] = {
    **{(name, "f32"): fn for name, fn in mathlib_f32.FUNCTIONS.items()},
    **{(name, "f64"): fn for name, fn in mathlib_f64.FUNCTIONS.items()},
    **{("ldexp", d): mathlib_parts.ldexp for d in ("f32", "f64")},
    **{("scale", d): mathlib_parts.two_factors for d in ("f32", "f64")},
}
