"""Register tiles as functions that kernels share.

Here: which statements are a tile.  Not here: what a tile computes (passes/contract.py), how statements become a
function (emit_region.py), loops around tiles (emit_nest.py).  Read next: emit_nest.py.

The tile of a contraction is half of what its kernel takes to compile, and the same in all contractions of one form:
only memory, trip counts and conditions differ.  A tile runs for thousands of instructions, its call takes ten; the
arithmetic is the same as in line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowc.backends.llvm.emit_region import OtherError, Region
from flowc.kernel import Acc, Alloc, If, Let, Loop, Set, Stmt, Store

if TYPE_CHECKING:
    from flowc.backends.llvm.emit import Emitter

LEAST = 6       # vector registers of a tile that is worth a function
LONG = 200      # vector operations of its longest loop, at least, where they are known

_KINDS = (Acc, If, Let, Loop, Set, Store)
_SIMPLE = frozenset("const index ref load add sub mul fma min max and or not shl shr cast bitcast select eq ne lt le "
                    "gt ge dot_bf16 dot_i16 dot_i8".split())


def tile_call(e: Emitter, stmts: Sequence[Stmt], at: int) -> int:
    """Call the function of the tile that begins at ``stmts[at]``.  How many statements that were; 0 if they are no
    tile, or not worth a function."""
    first = stmts[at]
    if e.target.grid is not None or e.lanes > 1 or e.mask is not None or not isinstance(first, Acc):
        return 0
    count = 1 + max((k for k, s in enumerate(stmts[at:]) if first.name in e.survey.used((s,))), default=0)
    found = stmts[at:at + count]
    own = {s.name for s in found if isinstance(s, (Acc, Let))}
    if not _worth(e, first, found) or not own.isdisjoint(e.survey.used(stmts[at + count:])):
        return 0
    memory = [s for s in found if isinstance(s, Alloc)]
    try:
        region = Region(e, _KINDS, _SIMPLE, memory)
        tile = region.taken(region.block([s for s in found if not isinstance(s, Alloc)]))
    except OtherError:
        return 0
    e.run(memory)
    region.call(tile)
    e.enter(found)
    return count


def _worth(e: Emitter, first: Acc, stmts: Sequence[Stmt]) -> bool:
    width = e.widths.get(first.name, 1)
    registers = math.prod(first.shape) // width
    return width > 1 and registers >= LEAST and any(
        isinstance(s, Loop) and s.kind == "seq" and not (isinstance(s.extent, int) and s.extent * registers < LONG)
        for s in stmts)
