"""Maps over records: the innermost axis of the result is a few fields, each with an expression of its own.

Here: finding them, and the loop that computes all fields of many records at a time.
Not here: other maps (segments.py, turn.py), how fields are gathered and scattered (backends/llvm/emit_interleave.py).
Read next: segments.py.

``stack([f(x), g(x)], axis=-1)`` chooses between its parts by the place along an axis of two.  Lanes along that axis
would compute every part and drop all but one.  Here lanes run along the axis before it and the fields are written one
after the other, where each condition is decided; their stores are the columns of a table whose rows are stored whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dims import ceildiv, dmin, substitute, sym, symbols
from flowc.kernel import Kernel, Loop, Stmt, expressions, parts
from flowc.passes.places import may_be_records
from flowc.passes.rewriting import map_dims
from flowc.passes.schedule import Machine, MapSchedule
from flowc.passes.segments import decided, gap_of, inlined
from flowc.proofs import simplify


def fields_apart(kernel: Kernel, loops: Sequence[Loop], body: Sequence[Stmt], sched: MapSchedule, machine: Machine
                 ) -> Loop | None:
    """The nest ``loops`` around ``body`` with lanes along the records, if that is what it walks over."""
    if len(loops) < 2:
        return None
    *others, a, b = loops
    if not isinstance(b.extent, int) or not may_be_records((a.extent, b.extent)):
        return None
    stores = inlined(body)
    if stores is None or not _decides(stores, b.var) or symbols(a.extent) & {v.var for v in others}:
        return None
    at = a.var + "b"
    while at in kernel.dims or at in {v.var for v in loops}:
        at += "b"
    inner = dmin(sched.tile, a.extent - sched.tile * sym(at))
    ranges = {**dict(kernel.ranges), **{v.var: (0, v.extent - 1) for v in others},
              at: (0, ceildiv(a.extent, sched.tile) - 1), a.var: (0, inner - 1)}
    fields: list[Stmt] = []
    for j in range(b.extent):
        to = {a.var: sched.tile * sym(at) + sym(a.var), b.var: j}
        fields += decided(map_dims(stores, lambda d, to=to: simplify(substitute(d, to), ranges)))  # type: ignore[misc]
    width = min(sched.width, max(1, machine.vector_bits // max(32, *(p.dtype.bits for p in kernel.params))))
    lanes = Loop(a.var, inner, "vector", (Loop(b.var, 1, "unroll", tuple(fields)),), width)
    nest = Loop(at, ceildiv(a.extent, sched.tile), "parallel", (lanes,))
    for v in reversed(others):
        nest = Loop(v.var, v.extent, "parallel", (nest,))
    return nest


def _decides(stores: Sequence[Stmt], field: str) -> bool:
    """Does the field decide which operands are read?"""
    masks = [x.args[0] for s in stores for x in parts(expressions(s)) if x.op == "load" and x.args]
    found = [gap_of(x) for x in parts(masks)]
    return any(g is not None and field in symbols(g[0]) for g in found)
