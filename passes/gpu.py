"""The GPU schedule: loops of a neutral kernel bound to blocks and threads.

Here: ``bind`` and the strategies for maps and tasks.  Not here: rows (gpu_rows.py), contractions, which have a GPU form
of their own (gpu_contract.py), code (backends/llvm/emit.py), launching (backends/cuda).  Read next: gpu_rows.py.

- map: every point of the parallel space, and of one vector loop in it, is a thread.
- rows: every point of the parallel space is a block; its vector loops run over the block's threads.
- tasks: every point of the parallel space is a thread that runs all inner loops itself.  Always possible.

No strategy changes a bit of a result: lanes, chunks and the tree of a Fold are kept as they are.

Working memory that is too large for a thread or a block becomes a *scratch* parameter behind the kernel's own; then
only as many blocks are bound as there are scratch areas, and each walks several points.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowc.dataclass import replace
from flowc.dims import ceildiv, dmin, prod, sym, symbols
from flowc.kernel import Alloc, Buffer, Builder, Fold, If, Kernel, Let, Loop, Stmt, walk
from flowc.passes.gpu_contract import lower_contraction
from flowc.passes.gpu_remainder import expand_remainders
from flowc.passes.gpu_rows import bind_rows
from flowc.passes.gpu_space import (
    SCRATCH_BLOCKS,
    STACK_BYTES,
    Bound,
    Names,
    Space,
    Unsuitable,
    decode,
    guarded,
    move_out,
    small,
)

THREADS = 256  # of a block in maps and tasks


def bind(kernel: Kernel) -> Bound:
    """``kernel`` for a GPU.  A kernel with block or thread loops is returned as it is."""
    if any(isinstance(s, Loop) and s.kind in ("block", "thread") for s in walk(kernel.body)):
        return Bound(expand_remainders(kernel))
    bound = _choose(kernel)
    return replace(bound, kernel=expand_remainders(bound.kernel))


def _choose(kernel: Kernel) -> Bound:
    """The first strategy that fits; why others did not is noted."""
    space = Space.of(kernel)
    reasons = []
    for strategy in (bind_map, bind_rows):
        try:
            return strategy(kernel, space)
        except Unsuitable as e:
            reasons.append(f"{strategy.__name__[5:]}: {e}")
    bound = bind_tasks(kernel, space)
    return replace(bound, kernel=replace(bound.kernel, notes=(*bound.kernel.notes, *reasons)))


# ---- maps and tasks -------------------------------------------------------------------------------------------------

def bind_map(kernel: Kernel, space: Space) -> Bound:
    """One thread per element."""
    loops, body = list(space.loops), space.body
    if body and isinstance(body[-1], Loop) and body[-1].kind in ("vector", "parallel") and all(
            isinstance(s, Let) for s in body[:-1]):
        inner = body[-1]
        if symbols(inner.extent) - set(kernel.dims):
            return _tiled_map(kernel, space, inner)
        loops.append(inner)
        body = (*body[:-1], *inner.body)
    if any(isinstance(s, Loop) and s.kind != "unroll" for s in walk(body)):
        raise Unsuitable("there are loops inside")
    if any(isinstance(s, (Alloc, Fold)) for s in walk(body)):
        raise Unsuitable("working memory of its own")
    return _spread(kernel, loops, body, space, Names.of(kernel), "map: a thread per element")


def _tiled_map(kernel: Kernel, space: Space, inner: Loop) -> Bound:
    """A block per tile of varying size, as the CPU's schedule cuts them: threads walk the tile."""
    if any(isinstance(s, (Loop, Alloc, Fold)) for s in walk(inner.body)):
        raise Unsuitable("loops of varying extent inside")
    names = Names.of(kernel)
    t, s = names.fresh("t"), names.fresh("s")
    at = THREADS * sym(s) + sym(t)
    ranges = {**space.ranges, t: (0, THREADS - 1)}
    ranges[s] = (0, ceildiv(inner.extent, THREADS) - 1)
    step = guarded(at, inner.extent, (Let(inner.var, Builder().index(at), (0, inner.extent - 1)), *inner.body), ranges)
    walk_tile = Loop(s, ceildiv(inner.extent, THREADS), "seq", step)
    body: tuple[Stmt, ...] = (Loop(t, THREADS, "thread", (*space.body[:-1], walk_tile)),)
    for v in reversed(space.loops):
        body = (replace(v, kind="block", body=body),)
    return Bound(replace(kernel, body=body, notes=(*kernel.notes, f"gpu: a block of {THREADS} threads per tile")))


def bind_tasks(kernel: Kernel, space: Space) -> Bound:
    """One thread per point of the parallel space, inner loops in order."""
    body = tuple(map(_in_order, space.body))
    return _spread(kernel, space.loops, body, space, Names.of(kernel), "tasks: a thread per parallel iteration")


def _in_order(s: Stmt) -> Stmt:
    if isinstance(s, Loop):
        return replace(s, kind="seq" if s.kind == "parallel" else s.kind, body=tuple(map(_in_order, s.body)))
    if isinstance(s, If):
        return replace(s, then=tuple(map(_in_order, s.then)), other=tuple(map(_in_order, s.other)))
    return s


def _spread(kernel: Kernel, loops: Sequence[Loop], body: Sequence[Stmt], space: Space, names: Names, note: str
            ) -> Bound:
    """The points of a space dealt to threads."""
    points = prod(v.extent for v in loops)
    threads = min(THREADS, max(32, -(-points // 32) * 32)) if isinstance(points, int) else THREADS
    if not loops:
        threads = 1
    blocks = ceildiv(points, threads)
    large = [s for s in walk(body) if isinstance(s, Alloc) and not small(s.size * s.dtype.bytes, STACK_BYTES)]
    block, thread = names.fresh("b"), names.fresh("t")
    ranges = {**space.ranges, block: (0, blocks - 1), thread: (0, threads - 1)}
    area = threads * sym(block) + sym(thread)  # also the position, unless several points share an area
    scratch: list[Buffer] = []
    at, turns, turn = area, None, ""
    if large:
        blocks = dmin(blocks, SCRATCH_BLOCKS)
        turns, turn = ceildiv(points, blocks * threads), names.fresh("s")
        ranges[block], ranges[turn] = (0, blocks - 1), (0, turns - 1)
        at = blocks * threads * sym(turn) + area
        body, scratch = move_out(kernel, body, large, area, blocks * threads, names)
    inner: tuple[Stmt, ...] = (*decode(loops, at, ranges), *body)
    inner = guarded(at, points, inner, ranges) if loops else inner
    if turns is not None:
        inner = (Loop(turn, turns, "seq", inner),)
    out = Loop(block, blocks, "block", (Loop(thread, threads, "thread", inner),))
    return Bound(replace(kernel, params=(*kernel.params, *scratch), body=(out,), notes=(*kernel.notes, f"gpu {note}")),
                 tuple(scratch))


__all__ = ["Bound", "bind", "lower_contraction"]
