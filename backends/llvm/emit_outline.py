"""Functions out of line: mathlib's code once per module instead of once per use.

Here: when a function is called instead of written out, the text of such a function.  Not here: what the functions
compute (mathlib.py), in which order expressions are computed (emit_order.py).  Read next: emit_order.py.

Written out, a function runs without a call and its constants stay in registers, which counts in long loops; its
thirty to a hundred instructions at every use are most of what large kernels take to compile.  So the first use
in a kernel is written out, in long loops all up to a limit, and the others are calls.  The instructions are the same
either way, and so are the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit_code import Val, mangled, register_type
from flowc.backends.llvm.mathlib import EXPAND
from flowc.kernel import Expr, Loop, Stmt
from flowc.types import DType

if TYPE_CHECKING:
    from flowc.backends.llvm.emit_expr import Values

FEW = 1                # uses that are written out in any kernel
MANY = 16              # uses that are written out in a long loop
LONG = 1 << 16         # iterations of a long loop

_texts: dict[tuple, tuple[dict[str, str], dict[str, str]]] = {}


def uses_inline(stmts: Iterable[Stmt]) -> int:
    """How many uses of functions a kernel with this body writes out."""
    return MANY if _iterations(stmts) >= LONG else FEW


def _iterations(stmts: Iterable[Stmt]) -> int:
    """Iterations of the longest nest of loops; symbolic ones count as long."""
    most = 1
    for s in stmts:
        if isinstance(s, Loop):
            most = max(most, (s.extent if isinstance(s.extent, int) else LONG) * _iterations(s.body))
        else:
            most = max(most, *(_iterations(getattr(s, part, ())) for part in ("then", "other")))
    return most


def outlined(e: Values, x: Expr) -> bool:
    """Is this use of a function to be a call?  Asked once per use, as it counts the others."""
    if (x.op, x.dtype.name) not in EXPAND or x.op in ("ldexp", "scale") or x.op in e.target.native:
        return False
    if e.target.grid is not None or e.inline is None:  # devices have no calls; inside a function all is written out
        return False
    e.inline -= 1
    return e.inline < 0


def call(e: Values, x: Expr, args: Sequence[Val]) -> Val:
    """A call of the function ``x.op``; adds it to the module."""
    kinds = [a.dtype for a in x.args]
    wide, texts = e.together(args, kinds)
    lanes = e.lanes if wide else 1
    out = _vector(x.dtype, lanes)
    name = f"flowc.{x.op}.{mangled(out)}"
    if name not in e.module.helpers:
        key = (name, tuple(kinds), e.target)
        if key not in _texts:
            _texts[key] = _function(e, x, name, lanes, kinds)
        helpers, declared = _texts[key]
        e.module.helpers.update(helpers)
        e.module.declared.update(declared)
    operands = ", ".join(f"{_vector(d, lanes)} {t}" for d, t in zip(kinds, texts, strict=True))
    return Val(e.op(f"call {out} @{name}({operands})"), wide)


def _vector(d: DType, lanes: int) -> str:
    ty = register_type(d)
    return f"<{lanes} x {ty}>" if lanes > 1 else ty


def _function(e: Values, x: Expr, name: str, lanes: int, kinds: Sequence[DType]
              ) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of a function and of its tables by their names, and what they declare."""
    module = Module()
    signature = ", ".join(f"{_vector(d, lanes)} %x{i}" for i, d in enumerate(kinds))
    f = type(e)(module, e.target, name, signature, "nounwind willreturn memory(none)")
    f.inline = None
    f.ret, f.lanes = _vector(x.dtype, lanes), lanes
    f.lines[0] = f.lines[0].replace("define void", f"define internal {f.ret}")
    f.env = {f"x{i}": Val(f"%x{i}", lanes > 1) for i in range(len(kinds))}
    operands = [Expr("ref", (), d, (f"x{i}", ())) for i, d in enumerate(kinds)]
    out = f.value(EXPAND[x.op, x.dtype.name](f.builder, *operands))
    f.finish(f.splat(out, register_type(x.dtype)) if lanes > 1 else out.text)
    return {**module.helpers, name: module.functions[0]}, module.declared
