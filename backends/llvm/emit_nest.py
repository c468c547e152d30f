"""Loops around the tiles of contractions as functions that kernels share: packing, unpacking, epilogues.

Here: which loops are such a nest.  Not here: tiles (emit_tile.py), how statements become a function (emit_region.py).
Read next: emit_loops.py.

What brings the operands of a product and takes its results away are a few forms, whatever the sizes, so a second
product pays for none of it.  What is left of its kernel calls functions and does little else: such code runs rarely,
and is compiled quickly (compile.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_region import OtherError, Region
from flowc.kernel import Acc, If, Kernel, Let, Loop, Stmt, Store, children, expressions, parts, walk

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

LEAST = 256          # iterations of a nest, at least, where they are known
PRODUCT = 1 << 18    # iterations of a product that is worth functions of its own
COPY = 1 << 14       # the same of a kernel that only moves elements
MANY = 1 << 10       # iterations of a loop whose number is not known

_KINDS = (If, Let, Loop, Store)
_MOVES = frozenset("load cast bitcast select const index and or lt le gt ge eq ne".split())


def shares_nests(kernel: Kernel) -> bool:
    """Is the kernel a product, or does it only move elements; and is it so large that it is worth more modules?"""
    stmts, work = list(walk(kernel.body)), _iterations(kernel.body)
    if any(isinstance(s, Acc) for s in stmts):
        return work >= PRODUCT and any(isinstance(s, Acc) and len(s.shape) == 2 for s in stmts)
    return work >= COPY and all(x.op in _MOVES for s in stmts if isinstance(s, Store) for x in parts(expressions(s)))


def nest_call(e: Emitter, stmts: Sequence[Stmt], at: int) -> int:
    """Call the function of the nests of loops that begin at ``stmts[at]``.  How many statements that were; 0 if they
    are none, or not worth it."""
    if e.lanes > 1 or e.mask is not None or not isinstance(stmts[at], (Loop, If)):
        return 0
    nest, body = Region(e, _KINDS), list[Stmt]()
    for s in stmts[at:]:
        if not isinstance(s, (Loop, If)) or e.ahead is not None and any(id(x) in e.ahead.loops for x in walk((s,))):
            break
        before, nest.turned = nest.state(), any(isinstance(x, Loop) and e.other_form(x) is not None for x in walk((s,)))
        try:
            body.append(nest.statement(s))
        except OtherError:
            nest.restore(before)
            break
    found = stmts[at:at + len(body)]
    if not _long(found):
        return 0
    try:
        nest.call(nest.taken(body))
    except OtherError:
        return 0
    e.enter(found)
    return len(found)


def _long(stmts: Sequence[Stmt]) -> bool:
    """Do vector loops stand in them, and do these loops run long?"""
    return any(isinstance(x, Loop) and x.kind == "vector" for x in walk(stmts)) and _iterations(stmts) >= LEAST


def _iterations(stmts: Iterable[Stmt]) -> int:
    n = 0
    for s in stmts:
        inside = sum([_iterations(body) for body in children(s)]) or 1
        n += (s.extent if isinstance(s.extent, int) else MANY) * inside if isinstance(s, Loop) else inside
    return n
