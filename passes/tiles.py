"""Tiles of contractions: which form a contraction takes on a machine, and how it is cut.

Here: the choice.  Not here: the loop nests of the forms (contract.py, contract_direct.py), what a schedule is made of
(schedule.py).

Forms.  *packed*: both operands are copied into the order in which the tile reads them; for products that are large in
every direction.  *direct*: the column operand is read where it lies; for products whose column operand fits half of
the second-level cache or is read once or twice.  *thin*: few rows; the column operand streams past once in whole rows.
*deep*: sums so long that neither operand's rows or columns can be kept whole.
Where sizes are unknown there are several forms, each with the sizes that it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from flowc.dataclass import replace
from flowc.dims import DimLike, dmax, dmin, prod
from flowc.passes.problem import Problem
from flowc.passes.schedule import ContractSchedule, Machine
from flowc.passes.words import words
from flowc.proofs import bounds
from flowc.types import DType

THIN = 4              # rows that stream
FEW = 12              # rows that stream if the column operand lies in memory: it comes once whatever is done with it
SLICE = 256           # columns of one thin task, at most: the sums of a few rows, and the columns, in the nearest cache
STREAM = 2048         # the same where the row operand is computed, which every task does
GROUP = 8             # summed indices that pass at a time
FAR = 16              # times half of the second-level cache: a column operand that may lie in memory
MEMORY = 64           # the same: that does, whatever the third-level cache
COPY = 12             # columns whose work is that of copying the rows of a task
BRING = 6             # rows whose work is that of bringing the columns of a task from the third-level cache
PACK = 16             # the same for a kernel of its own that packs the columns: they go through memory three times
CREWS = (1, 2, 4, 8)  # numbers of threads that shall all be busy to the end
CROWD = 2048          # bytes between rows: lines of rows at multiples of it meet in few sets of the first-level cache
DEEP = 8192           # products of a sum that is cut along its length
LONG = 4096           # products that one part adds up, at least
SMALL = 1 << 14       # results of a sum that is cut although its length is not known, at most
ABREAST = 3           # rows of a tile, at least, that holds all columns
NARROW = 64           # columns that lie side by side and pass in one stream
SHARE = (32, 512)     # rows and columns of a task where their number is unknown: enough tasks even of few
MANY = 64             # products side by side that keep all threads busy
CODE = 0.002          # of the time of a tile: what one more register of it is worth
WAYS = 8              # of that cache: more such rows at once would push each other out


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Form(NamedTuple):
    """A schedule and the sizes it is for: those for which ``excess``, which is never negative, is 0."""

    excess: DimLike
    schedule: ContractSchedule


def over(d: DimLike, most: int) -> DimLike:
    """0 if ``d`` is at most ``most``: sums of these mean *and*, products *or*."""
    return d // (most + 1)


def none_of(excesses: Iterable[DimLike]) -> DimLike:
    """1 if none is 0, else 0."""
    return prod(dmin(1, e) for e in excesses)


def choose_forms(machine: Machine, p: Problem) -> list[Form]:
    """The forms of a contraction, the first of which that fits the sizes is taken; the last fits all.  Where the
    sizes are known there is one."""
    problem = (p.node.op.name, p.acc, *p.outer_extents, p.m, p.n, p.k)
    out: list[Form] = []
    for form in _forms(machine, p):
        least, most = bounds(form.excess, p.ctx.ranges)
        if least is None or least <= 0:
            out.append(form)
        if most == 0:
            break
    last = machine.chosen(problem, out[-1].schedule)
    if last.form != out[-1].schedule.form:
        return [Form(0, last)]  # somebody decided
    return [*out[:-1], Form(0, last)]


def _forms(machine: Machine, p: Problem) -> Iterator[Form]:
    streams = p.col_reach.plain and p.col_reach.own == 1
    deep = is_deep(p, streams)
    if deep and isinstance(p.k, int):
        yield Form(0, deep_schedule(machine, p))
        return
    size = 2 * p.n * p.k * p.acc.bytes  # of the column operand, in halves of the cache it shall fit
    whole = size * prod(p.outer_extents)  # a stack of them comes from farther away
    if streams:
        # one register of columns is a tile like any other; enough of them to fill registers and threads stream
        lanes = machine.lanes(p.acc)
        few = dmax(0, lanes + 1 - p.n) + dmax(0, 4 * lanes + 1 - p.n) * over(p.m, 1)
        fits = over(p.m, THIN)
        if isinstance(p.m, int):
            fits *= over(p.m, FEW) + dmax(0, MEMORY * machine.l2 + 1 - whole)
        yield Form(few + fits, _thin(machine, p, whole))
    if streams and p.row_reach.plain and words(machine, p) is None:
        most = WAYS if crowded(p) else 32
        mr, nr, width = register_tile(machine, p.acc, p.m, p.n, most)
        # a copy of the columns that few rows need would be read as often as it is written, but is read in order
        far = over(p.m, 2 * register_tile(machine, p.acc, p.m, p.n, most, 0)[0]) + over(whole, FAR * machine.l2)
        yield Form(over(size, machine.l2) * over(p.m, WAYS) * far + (over(p.k, LONG) if deep else 0),
                   ContractSchedule("direct", mr=mr, nr=nr, width=width))
    if deep:
        yield Form(0, deep_schedule(machine, p))
        return
    s = packed_schedule(machine, p)
    if isinstance(p.m, int) and p.m <= s.mc:  # then there is no other task to share the copy with
        s = replace(s, on_way=True, kc=s.kc // 2)
    yield Form(0, s)


def is_deep(p: Problem, streams: bool) -> bool:
    """Are the sums long, or of unknown length but few, and all other sizes known?  A few narrow rows are read in one
    go as well.  Cutting a sum changes its rounding, so this is a matter of the operands, not of the machine."""
    results = prod((*p.outer_extents, p.m, p.n))
    if not isinstance(p.m, int) or not isinstance(p.n, int) or not isinstance(results, int) or min(p.m, p.n) < 2:
        return False
    if not isinstance(p.k, int):
        return p.m > WAYS and results <= SMALL
    return p.k >= DEEP and not (streams and p.m <= WAYS and p.n <= NARROW and p.row_reach.plain)


def deep_schedule(machine: Machine, p: Problem) -> ContractSchedule:
    """Blocks as even as tiles allow, the results of which fill half of the second-level cache: operands are read as
    often as there are blocks of the other.  Operands that lie well and are read once stay where they are."""
    lanes = machine.lanes(p.acc)
    vectors = ceil_div(p.n, lanes) if isinstance(p.n, int) else 0
    sums = 24 if machine.vector_bits >= 512 else 12
    if 0 < vectors <= sums // ABREAST and p.row_reach.plain and p.row_reach.summed == 1 and p.col_reach.plain and (
            p.col_reach.own == 1):
        mr, nr = sums // vectors, vectors * lanes
        mr = min(mr, p.m) if isinstance(p.m, int) and p.m else mr
        return ContractSchedule("deep", mr=mr, nr=nr, width=lanes, kc=machine.l2 // 4 // (nr * p.acc.bytes), nc=nr,
                                mc=_even(p.m, mr, 256), copy_rows=False)
    mr, nr, width = register_tile(machine, p.acc, p.m, p.n, WAYS if p.row_reach.own is None else 32)
    mc = _even(p.m, mr, 256)
    nc = _even(p.n, nr, machine.l2 // 2 // (mc * p.acc.bytes))
    return ContractSchedule("deep", mr=mr, nr=nr, width=width, kc=256 if p.acc.bits <= 32 else 128, mc=mc, nc=nc)


def _even(size: DimLike, unit: int, most: int) -> int:
    """Whole units in a block of at most about ``most`` of ``size``."""
    units = max(1, ceil_div(size, unit)) if isinstance(size, int) else 1
    return unit * ceil_div(units, ceil_div(units * unit, max(most, unit)))


def crowded(p: Problem) -> bool:
    """Do the rows lie so that reading many at once defeats the cache?"""
    own = p.row_reach.own
    return p.row_reach.summed == 1 and isinstance(own, int) and own * p.acc.bytes % CROWD == 0


def register_tile(machine: Machine, dtype: DType, m: DimLike, n: DimLike, most: int = 32, code: float = CODE
                  ) -> tuple[int, int, int]:
    """(rows, columns, lanes) of the tile that wastes least, of at most ``most`` rows: a step of the sum costs an issue
    slot per register of the tile and a part of one per operand loaded, and no less than the latency of an addition.
    Of tiles that are nearly as good the smaller one, as its ``code`` is compiled in less time."""
    lanes = machine.lanes(dtype)
    if not isinstance(n, int):  # one register of columns wastes least whatever their number
        return min(WAYS, m) if isinstance(m, int) and m else WAYS, lanes, lanes
    return _least_waste(32 if machine.vector_bits >= 512 else 16, lanes, m, n, most, code)


@lru_cache(1 << 10)
def _least_waste(registers: int, lanes: int, m: DimLike, n: int, most: int, code: float) -> tuple[int, int, int]:
    best: tuple[float, int, int, int] | None = None
    for mr, nv, width in _tiles(registers, lanes, n):
        if mr > most:
            continue
        step = max(mr * nv + 0.25 * nv + 0.125 * mr, 8.0)
        nr = nv * width
        rows = ceil_div(m, mr) if isinstance(m, int) else 1 / mr
        cols = ceil_div(n, nr)
        rows += 0.25 * (rows % 2) if isinstance(rows, int) and rows * cols < 8 else 0  # two threads share evenly
        cost = rows * cols * step * (width / lanes if width * 2 >= lanes else 0.5) * (1 + code * mr * nv)
        if best is None or cost < best[0] * 0.999:
            best = (cost, mr, nr, width)
    assert best is not None
    _, mr, nr, width = best
    return (min(mr, m) if isinstance(m, int) and m else mr), nr, width


def _tiles(registers: int, lanes: int, n: int) -> Iterator[tuple[int, int, int]]:
    """Register tiles, the squarest first: (rows, registers of columns, lanes)."""
    widths = [lanes]
    while widths[-1] > 2 and n <= widths[-1] // 2:
        widths.append(widths[-1] // 2)
    width = widths[-1]
    for nv in (3, 2, 4, 1, 6, 8) if width == lanes else (1,):
        for mr in range(min(30, (registers - 2 - nv) // nv), 0, -1):
            if mr * nv >= 4 or mr == 1:
                yield mr, nv, width


def _thin(machine: Machine, p: Problem, size: DimLike) -> ContractSchedule:
    lanes = machine.lanes(p.acc)
    # a row operand that is computed is computed for every task; long pieces of rows come from memory twice as fast
    far = isinstance(size, int) and size > FAR * machine.l2
    nr = SLICE if p.row_reach.plain and not far else STREAM
    if far and isinstance(p.m, int):
        nr = min(nr, max(SLICE, machine.l1 // 2 // (max(p.m, 1) * p.acc.bytes) // lanes * lanes))
    if isinstance(p.n, int):
        nr = min(nr, max(8 * lanes, ceil_div(ceil_div(p.n, 4), lanes) * lanes))
    return ContractSchedule("thin", mr=p.m if isinstance(p.m, int) else THIN, nr=nr, width=lanes, kc=GROUP)


def packed_schedule(machine: Machine, p: Problem) -> ContractSchedule:
    """24 accumulators leave room for operands in 32 registers (AVX-512), 12 in 16 (AVX2)."""
    w = machine.lanes(p.acc)
    kc = 256 if p.acc.bits <= 32 else 192
    in_place = isinstance(p.row_reach.own, int) and p.row_reach.summed == 1 and not crowded(p)
    # rows of a block: they stay in the second-level cache
    most = 128 if in_place or not isinstance(p.k, int) else machine.l2 * 3 // 4 // max(1, p.k * p.acc.bytes)
    outer = prod(p.outer_extents)
    many = min(outer, MANY) if isinstance(outer, int) and outer else 1
    mr, nr, mc, nc = _best_blocks(machine.vector_bits, w, p.m, p.n, min(128, max(48, most)), many)
    return ContractSchedule("packed", mr=mr, nr=nr, width=w, kc=kc, mc=mc, nc=nc, copy_rows=not in_place)


@lru_cache(1 << 10)
def _best_blocks(bits: int, w: int, m: DimLike, n: DimLike, most: int, outer: int) -> tuple[int, ...]:
    return min(_blocks(bits, w, m, n, most, outer))[1:]


def _blocks(bits: int, w: int, m: DimLike, n: DimLike, most: int, outer: int
            ) -> Iterator[tuple[float, int, int, int, int]]:
    """Ways to cut rows and columns into tiles and tasks: (cost, mr, nr, mc, nc).  A task that copies its rows and
    brings the columns costs as much as one with a few more columns and rows; all threads wait for the last."""
    shapes = ((8, 3), (12, 2), (24, 1)) if bits >= 512 else ((6, 2), (12, 1))
    for mr, nv in shapes if isinstance(n, int) else shapes[:1]:
        nr, slow = nv * w, {3: 1.0, 2: 1.01, 1: 1.2}[nv]
        if isinstance(m, int) and m:
            mr = ceil_div(m, ceil_div(m, mr))  # as many tiles, of fewer rows that do not exist
        if not isinstance(m, int) or not isinstance(n, int):
            rows, columns = (d if isinstance(d, int) else 960 for d in (m, n))
            yield slow * ceil_div(columns, nr) * nr, mr, nr, _even(rows, mr, SHARE[0]), _even(columns, nr, SHARE[1])
            continue
        panels, strips = max(1, ceil_div(n, nr)), max(1, ceil_div(m, mr))
        for nc in dict.fromkeys(nr * ceil_div(panels, parts) for parts in range(1, min(panels, 8) + 1)):
            for mc in range(mr, min(most, strips * mr) + 1, mr):
                tasks = outer * ceil_div(m, mc) * ceil_div(n, nc)
                one = (mc + BRING) * (nc + COPY)
                whole = (strips * mr + BRING * ceil_div(m, mc)) * (panels * nr + COPY * ceil_div(n, nc))
                apart = 0 if m <= mc else PACK * len(CREWS) * panels * nr
                # tasks at the edges may be small: who is free takes the next
                busy = sum(max(whole, min(ceil_div(tasks, t) * t * one / outer, whole + (t - 1) * one / outer))
                           for t in CREWS)
                yield apart + slow * busy, mr, nr, mc, nc
