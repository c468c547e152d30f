"""Stencils: steps that repeat become one kernel that works tile by tile.

Here: which chains are worth it, how far each stage reaches beyond a tile, how large tiles are, how many steps one
kernel does.  Not here: finding chains (chains.py), the loops (stencil_loops.py).  Read next: stencil_loops.py.

Each parallel task owns a tile of the result.  It copies what the tile depends on into buffers that stay in the cache,
does all steps there, each on a part that shrinks towards the tile, and copies the tile out: memory is passed over once
for many steps (overlapped tiling: Krishnamoorthy et al., PLDI 2007).  What tiles overlap is computed twice; that
bounds the number of steps.  Where there are several axes, all steps go over the first one together, some rows or planes
at a time, each a little behind the step before it: buffers only hold what lies between the first step and the last
(time skewing within a tile), and a tile may be long, with little overlap.  Every element is computed from the same
operands by the same instructions as without tiles, so no bit depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from flowc.dataclass import dataclass, field
from flowc.dims import DimLike, prod
from flowc.graph import Graph, Node
from flowc.passes.chains import Chain, Stage, Uses, chain_of, find_chains, join_padding, move_wraps, stage_of, uses_of
from flowc.passes.fuse import Group, in_order
from flowc.passes.schedule import Machine

REDUNDANT = 1.5        # computed elements per needed one, at most
STEPS = 32             # steps of one kernel, at most
BACK = 4               # steps that a step looks back, at most
GAIN = 0.95            # time with tiles by time without, at most
MAX_REACH = 256        # elements beyond a tile, at most
SHARED = 24 << 20      # bytes of one step that stay in the caches that cores share
MEMORY, L3, L2, L1 = 8, 12, 32, 128  # bytes that one core moves per cycle, from and to where they are
PACE = 0.6             # cycles per vector instruction: loads and arithmetic run side by side
PER_ROW = 3            # vectors' worth of time that a row costs beside its vectors
PER_TASK = 20_000      # elements' worth of time that a task costs beside its elements
TASKS = 8              # tasks that occupy a machine
MIN_SIZE = 1 << 15     # elements below which there is nothing to gain
INNER = (128, 256, 512, 1024, 2048)
SHIFTS = frozenset(("slice", "pad", "concatenate", "update_slice", "gather"))  # ops that read at other places
LINES = (1024, 2048, 4096, 8192, 16384)
OUTER = (4, 8, 16, 24, 32, 48, 64, 96, 128)
FIRST = (16, 32, 64, 128, 256, 512, 1024)
BAND = 8               # rows that a step does at once, at least; a quarter as many planes


@dataclass(frozen=True)
class Reach:
    """How far along one axis the part of a stage begins before the tile and ends behind it: ``before[stage]`` and
    ``behind[stage]`` in the last step, ``(grow, grown)`` more in every earlier one.  low, high: the most that any
    stage computes or reads."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    grow: int
    grown: int
    low: int
    high: int


@dataclass(frozen=True)
class Sweep:
    """All steps go over the first axis of a tile together, ``band`` elements of it at a time, each as far behind the
    one before as it reaches: step s, stage q by ``slope * s + behind[q]``.  Buffers hold ``window`` of them: what is
    between the first that are copied and the last that are read."""

    band: int
    window: int
    slope: int
    behind: tuple[int, ...]


@dataclass(eq=False)
class Stencil:
    """A chain, its reach along every axis, the tile, the extents of the tiled space, and the elements of a row that
    one vector loop does at once.  written: the results that others read, the node each is for them, and where that
    begins in it."""

    chain: Chain
    reach: tuple[Reach, ...]
    tile: tuple[int, ...]
    extent: tuple[DimLike, ...]
    unit: int
    redundant: float
    sweep: Sweep | None
    written: list[tuple[tuple[int, int, int], Node, tuple[int, ...]]] = field(default_factory=list)

    @property
    def rings(self) -> frozenset[int]:
        return frozenset().union(*(s.rings for s in self.chain.stages))

    def __str__(self) -> str:
        tile = "x".join(map(str, self.tile))
        return (f"stencil: {len(self.chain.steps)} steps, tile {tile}, "
                f"{100 * self.redundant - 100:.0f} % computed twice")


def merge_stencils(groups: list[Group], graph: Graph, machine: Machine,
                   allow: Callable[[str, Node], bool] = lambda name, node: True) -> list[Group]:
    """The groups with chains of maps merged into stencils, in running order."""
    maps = [g for g in groups if g.kind == "map"]
    if sum(any(n.op.name in SHIFTS for n in g.members) for g in maps) < 2:
        return groups
    uses = uses_of(groups, graph.outputs)
    maps = join_padding(maps, uses)
    plans = _plans(groups, maps, uses, machine, allow)
    if not plans and (moved := move_wraps(maps, uses)) != maps:
        plans = _plans(groups, moved, uses, machine, allow)
    everything = set().union(*plans.values())
    for plan, inside in plans.items():
        plan.written = [w for key in plan.chain.outside for w in _forms(plan.chain, key, uses, inside, everything)]
    merged = {g: group for plan, inside in plans.items() for group in [_merged(plan)] for g in inside}
    if not merged:
        return groups
    return _replaced(groups, merged, {n: g for g in groups for n in g.outputs} | uses.rings, set(graph.outputs))


def _plans(groups: Sequence[Group], maps: Sequence[Group], uses: Uses, machine: Machine,
           allow: Callable[[str, Node], bool]) -> dict[Stencil, set[Group]]:
    """The stencils among ``maps``, and which of ``groups`` each replaces."""
    by_rank: dict[int, list[Stage]] = {}
    for g in maps:
        stage = stage_of(g, uses.inner)
        if stage is not None:
            stage.between = g.root.dtype.bytes if len(uses.parts.get(g, ())) > 1 else 0
            by_rank.setdefault(g.root.rank, []).append(stage)
    makers = {n: g for g in groups for n in g.outputs} | uses.rings
    position = {g: i for i, g in enumerate(groups)}
    plans = {plan: uses.of(plan.chain.steps) for stages in by_rank.values() for steps in find_chains(stages)
             for plan in _bands(steps, uses, machine)}
    plans = {plan: inside for plan, inside in plans.items()
             if _alone(inside, makers, position) and allow("stencil", plan.chain.groups[-1].root)}
    while True:
        everything = set().union(*plans.values())
        kept = {plan: inside for plan, inside in plans.items() if not _lost(plan.chain, inside, everything, uses)}
        if len(kept) == len(plans):
            return plans
        plans = kept


def _replaced(groups: Sequence[Group], merged: Mapping[Group, Group], makers: Mapping[Node, Group],
              outputs: set[Node]) -> list[Group]:
    """The groups after merging; without those that nobody reads any more, positions in rings for instance."""
    out = list(dict.fromkeys(merged.get(g, g) for g in groups))
    for g in out:
        reads = {makers[x] for x in _operands(g) if x in makers} if g.stencil is not None else g.reads
        g.reads = {h for r in reads if (h := merged.get(r, r)) is not g}
    before = {r for g in groups for r in g.reads}
    while True:
        read = {r for g in out for r in g.reads}
        kept = [g for g in out if g in read or g not in before or g.stencil is not None or outputs & set(g.outputs)]
        if len(kept) == len(out):
            return in_order(out)
        out = kept


def _operands(g: Group) -> set[Node]:
    assert g.stencil is not None
    chain = g.stencil.chain
    inside = set(g.members)
    scalars = {x for n in g.members for x in n.inputs if x.rank == 0}
    return ({x for step in chain.steps for s in step for x in s.reads} | scalars) - inside


def _lost(chain: Chain, inside: set[Group], everything: set[Group], uses: Uses) -> bool:
    """Does a group that is no part of a stencil read a ring as it is kept inside of one, or the other way round?"""
    results = {n for step in chain.steps for s in step for n in s.outputs}
    read = {x for step in chain.steps for s in step for x in s.reads} - results
    return any(not uses.readers[x] <= everything for x in results & uses.rings.keys()) or any(
        uses.rings[x] not in everything for x in read & uses.rings.keys())


def _forms(chain: Chain, key: tuple[int, int, int], uses: Uses, inside: set[Group], everything: set[Group]
           ) -> list[tuple[tuple[int, int, int], Node, tuple[int, ...]]]:
    """A result as others read it, and where that begins in it: padded, as other stencils do, or not, or both."""
    n = chain.result(key)
    x = uses.plain.get(n)
    whole, part = (key, n, (0,) * n.rank), uses.readers[x] - everything if x is not None else set()
    others = uses.readers[n] | uses.readers[x] & everything if x is not None else uses.readers[n]
    out = [whole] if others - inside or not part else []
    return [*out, (key, x, uses.inner[x].low)] if x is not None and part else out


def _merged(plan: Stencil) -> Group:
    stages = plan.chain.groups
    g = Group("stencil", stages[-1].root, stages[-1].space, stages[-1].outer)
    g.members = list(dict.fromkeys(n for s in stages for n in s.members))
    g.outputs = [n for _, n, _ in plan.written]
    g.refused = list(dict.fromkeys(r for s in stages for r in s.refused))[:8]
    g.stencil = plan
    return g


def _alone(inside: set[Group], makers: Mapping[Node, Group], position: Mapping[Group, int]) -> bool:
    """Does nothing that the groups read depend on them?"""
    first = min(position[g] for g in inside)
    stack = list({makers[x] for g in inside for n in g.members for x in n.inputs if x in makers} - inside)
    seen = set(stack)
    while stack:
        g = stack.pop()
        for r in g.reads:
            if r in inside:
                return False
            if r not in seen and position[r] > first:
                seen.add(r)
                stack.append(r)
    return True


# ---- how many steps -------------------------------------------------------------------------------------------------

def _bands(steps: list[list[Stage]], uses: Uses, machine: Machine) -> list[Stencil]:
    """Chains of as many steps as pay, one after the other."""
    out = []
    first = 0
    while first < len(steps) - 1:
        end = _longest(steps, first, uses)
        if end - first < 2:
            first += 1
            continue
        best = _cut(steps[first:end], uses, machine)
        out += best
        first = end
    return out


def _longest(steps: list[list[Stage]], first: int, uses: Uses) -> int:
    """Behind the last step of the longest chain that begins at ``first``: at most a few steps behind the first whose
    result is read elsewhere, as only the last results are still there at the end."""
    limit = min(len(steps), first + 4 * STEPS)
    made = {n for s in steps[first] for n in s.outputs}
    if not any(made & s.reads.keys() for step in steps[first + 1:first + 1 + BACK] for s in step):
        return first
    inside = uses.of(steps[first:limit])
    last = next((k for k in range(first, limit) if any(
        not uses.reading(n) <= inside for s in steps[k] for n in s.outputs)), limit - 1)
    for end in range(min(limit, last + 1 + BACK), max(last, first + 1), -1):
        if chain_of(steps[first:end], uses) is not None:
            return end
    return first


def _cut(steps: list[list[Stage]], uses: Uses, machine: Machine) -> list[Stencil]:
    """The steps in equal parts, as few kernels' worth of time as there can be."""
    best: list[Stencil] = []
    least = GAIN * len(steps)
    for count in range(-(-len(steps) // STEPS), len(steps) // 2 + 1):
        cuts = [len(steps) * i // count for i in range(count + 1)]
        plans, total = [], 0.0
        for a, b in pairwise(cuts):
            chain = chain_of(steps[a:b], uses)
            plan = None if chain is None else plan_stencil(chain, machine)
            if plan is None:
                break
            plans.append(plan[0])
            total += plan[1] * (b - a)
        else:
            if total < least:
                best, least = plans, total
            elif best:
                break
    return best


# ---- how far, how large ---------------------------------------------------------------------------------------------

def plan_stencil(chain: Chain, machine: Machine) -> tuple[Stencil, float] | None:
    """The chain with its tile, and the time of a step by that of a step in a kernel of its own; None if tiles would
    have to overlap too much."""
    stages = chain.stages
    rank = len(stages[0].shape)
    extent = stages[0].shape
    if any(len(s.shape) != rank for s in stages):
        return None
    for s in stages:
        gaps = [a - b for a, b in zip(s.shape, extent, strict=True)]
        if not all(isinstance(x, int) and abs(x) <= MAX_REACH for x in gaps):
            return None
        extent = tuple(a if x > 0 else b for a, b, x in zip(s.shape, extent, gaps, strict=True))  # type: ignore
    rings = frozenset().union(*(s.rings for s in stages))
    if any(s.edges[a].inside or s.shape[a] != extent[a] for s in stages for a in rings):
        return None
    reach = [_reach(chain, a) for a in range(rank)]
    size = prod(extent)
    if any(r is None for r in reach) or not any(r.low or r.high for r in reach if r) or (
            isinstance(size, int) and size < MIN_SIZE):
        return None
    known = tuple(r for r in reach if r is not None)
    lanes = min(machine.lanes(n.dtype) for s in stages for n in s.group.members if n.rank)
    sweep = _sweep(chain, known)
    best = _best_tile(chain, known, extent, lanes, machine, sweep.window if sweep else 0)
    if best is None:
        return None
    return Stencil(chain, known, best[0], extent, 2 * lanes, best[1], sweep), best[2]


def _sweep(chain: Chain, reach: Sequence[Reach]) -> Sweep | None:
    """How the steps of a chain follow each other along the first axis; None where there are no other axes, or where
    it is a ring."""
    if len(reach) < 2 or any(0 in s.rings for s in chain.stages):
        return None
    slope, behind = _behind(chain)
    reads = [r for s in chain.stages for r in s.reads.values()]
    ahead = max(0, *[r.high[b] for r in reads for b, a in enumerate(r.axes) if a == 0])
    low = max(0, *[-r.low[b] for r in reads for b, a in enumerate(r.axes) if a == 0])
    behind = tuple(n + ahead for n in behind)
    span = slope * (len(chain.steps) - 1) + max(behind) + low
    window = 1 << (span + (BAND if len(reach) == 2 else BAND // 4) - 1).bit_length()
    return Sweep(window - span, window, slope, behind)


def _behind(chain: Chain) -> tuple[int, tuple[int, ...]]:
    """How far behind along the first axis steps and stages have to be: what is read has been computed, and what is
    overwritten has been read."""
    stages = chain.stages
    links = []  # (behind, ahead, steps between, rows)
    for q, s in enumerate(stages):
        for x, source in chain.sources[q].items():
            read = s.reads[x]
            depth = chain.depth.get((source.stage, source.output), 0) + 1
            links.append((q, source.stage, source.back, read.high[0]))
            links.append((source.stage, q, depth - source.back, -read.low[0]))
    slope = 0
    while True:
        behind = [0] * len(stages)
        for _ in range(len(stages) + 1):
            changed = False
            for q, to, apart, far in links:
                need = behind[to] + far - slope * apart
                if need > behind[q]:
                    behind[q], changed = need, True
            if not changed:
                return slope, tuple(behind)
        slope += 1


def _reach(chain: Chain, a: int) -> Reach | None:
    low, high = _side(chain, a, -1), _side(chain, a, 1)
    if low is None or high is None:
        return None
    return Reach(low[0], high[0], low[1], high[1], low[2], high[2])


def _side(chain: Chain, a: int, sign: int) -> tuple[tuple[int, ...], int, int] | None:
    """One side of an axis: how far every stage reaches in the last step, the growth per step, and the most there is.
    A stage that looks back ``d`` steps at an offset of ``r`` needs ``more[source] + d * grow >= more[it] + r``."""
    stages = chain.stages
    links = []
    outer = 0
    for q, s in enumerate(stages):
        for x, read in s.reads.items():
            source = chain.sources[q].get(x)
            for b, axis in enumerate(read.axes):
                if axis == a:
                    far = read.high[b] if sign > 0 else -read.low[b]
                    outer = max(outer, far)
                    if source is not None:
                        links.append((q, source.stage, source.back, far))
    for grow in range(MAX_REACH):
        more = [0] * len(stages)
        for _ in range(len(links) + 1):
            changed = False
            for q, to, back, far in links:
                need = more[q] + far - back * grow
                if need > more[to]:
                    more[to], changed = need, True
            if not changed:
                most = max(more) + (len(chain.steps) - 1) * grow + outer
                return (tuple(more), grow, most) if most <= MAX_REACH else None
    return None


def _best_tile(chain: Chain, reach: Sequence[Reach], extent: Sequence[DimLike], lanes: int, machine: Machine,
               window: int) -> tuple[tuple[int, ...], float, float] | None:
    """The fastest tile among those whose buffers fit the cache, the elements it computes per needed one, and its time
    by the time of steps in kernels of their own."""
    rank, stages, count = len(extent), chain.stages, len(chain.steps)
    moves = [bool(r.low or r.high) for r in reach]
    choices = [_candidates(n, a, rank, moves, 2 * lanes) for a, n in enumerate(extent)]
    grid = [g.astype(float) for g in np.meshgrid(*choices, indexing="ij")]
    alone = [g >= n if isinstance(n, int) else g < 0 for g, n in zip(grid, extent, strict=True)]

    def part(before: Sequence[float], behind: Sequence[float], row: float, axes: Sequence[int] = range(rank)
             ) -> np.ndarray:
        out = np.ones(())
        for a in axes:
            out = out * (grid[a] + np.where(alone[a], 0, before[a] + behind[a]) + (row if a == rank - 1 else 0))
        return out

    low, high = [r.low for r in reach], [r.high for r in reach]
    held = {(q, o): chain.depth.get((q, o), 0) + 1 for q, s in enumerate(stages) for o in range(len(s.outputs))}
    fixed = {x for q in range(len(stages)) for x in chain.fixed(q)}
    state = sum(stages[q].outputs[o].dtype.bytes * n for (q, o), n in held.items())
    kept = sum(x.dtype.bytes for x in fixed if x.rank == rank)
    inputs = kept + sum(x.dtype.bytes for x in chain.initial.values())
    outputs = sum(chain.result(key).dtype.bytes for key in chain.outside)
    room = part(low, high, 4 * lanes) * (state + kept)
    if window:
        room = room * window / part(low, high, 4 * lanes, (0,))
    size = prod(extent)
    passed = sum(sum(x.dtype.bytes for x in s.reads if x.rank == rank) + sum(n.dtype.bytes for n in s.outputs)
                 for s in stages)
    mid = (count - 1) / 2
    near = np.where(room <= machine.l1, L1, L2) if rank == 1 else L1
    done = sum(part([r.before[q] + mid * r.grow for r in reach], [r.behind[q] + mid * r.grown for r in reach],
                    PER_ROW * lanes) * (PACE * s.cost / lanes + passed / len(stages) / near)
               for q, s in enumerate(stages))
    between = sum(s.between for step in chain.steps for s in step) / count
    written = sum(n.dtype.bytes for s in stages for n in s.outputs)  # a line is read before it is written
    traffic = passed + written + 3 * between
    rate = MEMORY if not isinstance(size, int) or size * passed > SHARED else L3 if size * passed > machine.l2 else L2
    copies = part(low, high, PER_ROW * lanes) * inputs * (2 / L2 + 1 / rate) + np.prod(grid, axis=0) * outputs * (
        2 / L2 + 2 / rate)
    needed = np.prod(grid, axis=0)
    time = (count * done + copies + PACE * PER_TASK / lanes) / needed / count
    redundant = part([r.before[0] + mid * r.grow for r in reach], [r.behind[0] + mid * r.grown for r in reach],
                     0) / needed
    apart = max(PACE * sum(s.cost + s.conditions for s in stages) / lanes, traffic / rate)
    if isinstance(size, int):
        tasks = np.prod([np.ceil(n / g) for n, g in zip(extent, grid, strict=True)], axis=0)
        time = time * np.ceil(tasks / TASKS) * TASKS / tasks
    good = (room <= machine.l2 * 0.6) & (redundant <= REDUNDANT)
    if not good.any():
        return None
    at = np.unravel_index(np.argmin(np.where(good, time, np.inf)), time.shape)
    return tuple(int(c[i]) for c, i in zip(choices, at, strict=True)), float(redundant[at]), float(time[at] / apart)


def _candidates(n: DimLike, a: int, rank: int, moves: Sequence[bool], unit: int) -> list[int]:
    """Tile sizes of one axis: equal parts where the size is known."""
    inner = a == rank - 1
    if not inner and (a < rank - 3 or not moves[a] and a < rank - 2):
        return [1]
    sizes = LINES if inner and not any(moves[:-1]) else INNER if inner else OUTER if a else FIRST
    if not isinstance(n, int):
        return [t for t in sizes if inner or t <= OUTER[-1]]  # there may be few rows for many threads
    by = unit if inner else 1
    parts = {-(-n // (-(-n // t) * by)) * by for t in sizes if t < n}
    whole = {-(-n // by) * by} if n <= 2 * sizes[-1] else set()
    return sorted(parts | whole)
