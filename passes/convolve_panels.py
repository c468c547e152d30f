"""Convolutions of small images with many channels: a packed contraction whose columns are the positions of all images.

Here: that form.  Not here: when it is taken (convolve.py), how tiles are multiplied (contract.py).

Positions as lanes of whole rows waste those between the rows and the images, which are most of them where images are
small.  Here the columns are exactly the positions with results, image after image; what every tap reads of them is
gathered into panels, for all output channels at once, or by a kernel before if several tasks want the same panel:

    copy the input with its padding, unless there is but one tap and it lies well
    pack the kernel, unless its rows lie well:           rows[panel][channel, taps][mr]
    for group, panel of positions, block of channels in parallel:
        where each row of positions begins in the copy
        for block of channels and taps:
            for channel, taps, rows of positions:     panel[channel, taps][nr] = copy[begin + offset]
            multiply as in any contraction
        for image in the panel, channel:              epilogue, store

Results are chains over channels and taps in order as in the other form, so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod as int_prod
from typing import NamedTuple

from flowc.dataclass import replace
from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.kernel import Buffer, Expr, Kernel
from flowc.passes.contract import Packed
from flowc.passes.convolve_copy import (
    Convolution,
    Copy,
    bound,
    guess,
    packed_kernel,
    packed_shape,
    rows_lie_well,
    steps,
    taps_follow,
)
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Lowered, declare_outputs, describe, inliner, named, nest
from flowc.passes.problem import Problem, Roles
from flowc.passes.register_tile import lanes_exist
from flowc.passes.schedule import ContractSchedule
from flowc.passes.tiles import ceil_div, packed_schedule
from flowc.types import Type, i64

TOGETHER = 16  # times the second-level cache: all gathered panels together, at most
ROWS = 1024   # output channels that a task multiplies by its panel, at most
LEAST = 64    # and at least: gathering costs as much as a few dozen rows
TASKS = 16    # tasks wanted


def joined_roles(groups: int, axes: int) -> Roles:
    """Output channels are rows; images and positions are columns."""
    channel = 1 if groups == 1 else 2
    spatial = range(channel + 1, channel + 1 + axes)
    return Roles((channel,), (0, *spatial), () if groups == 1 else (1,), 1)


def row_blocks(s: ContractSchedule, p: Problem) -> ContractSchedule:
    """Blocks of rows that a task multiplies by its panel: all of them, but for the sake of enough tasks."""
    blocks = ceil_div(guess(p.m), ROWS)
    if isinstance(p.n, int):
        blocks = max(blocks, min(ceil_div(TASKS, ceil_div(p.n, s.nr)), guess(p.m) // LEAST))
    mc = ceil_div(ceil_div(guess(p.m), max(1, blocks)), s.mr) * s.mr
    # rows come from far, in long pieces: as long as the columns leave room for them in the second-level cache
    kc = max(s.kc, 3 * p.ctx.machine.l2 // (8 * s.nr * p.acc.bytes))
    return replace(s, mc=mc, nc=s.nr, kc=kc, copy_rows=True)


class Lying(NamedTuple):
    """Where the input lies: its buffer, the place of its first element, distances of images and channels."""

    buffer: Buffer
    first: DimLike
    image: int
    channel: int


def lies_in_rows(c: Convolution) -> Lying | None:
    """There is one tap, and the positions of an image lie side by side, all of which are results: then nothing is
    copied before it is gathered.  None where it is not so."""
    step, sizes = steps(c, c.x), c.x.shape[2:]
    if step is None or any(n != 1 for n in c.taps) or not all(a.plain for a in c.axes(False)) or min(step) < 0:
        return None
    if sizes != c.outs or any(n != 1 and d != prod(sizes[i + 1:])
                              for i, (n, d) in enumerate(zip(sizes, step[2:], strict=True))):
        return None
    k = c.ctx.builder("probe")
    with nest(k, c.x.shape, "seq") as idx:
        name, at = inliner(k, c.group, c.ctx).value(c.x, idx).attr  # type: ignore[misc]
    first = at - sum((d * i for d, i in zip(step, idx, strict=True)), start=0)
    return Lying(k.params[name], k.tidy(first), step[0], step[1])


def lone(c: Convolution) -> bool:
    """Have images one position each, and do all taps lie in memory there?"""
    return (all(n == 1 for n in c.outs) and steps(c, c.x) is not None
            and all(a.gaps == 1 and isinstance(d, int) and d <= 0 for a in c.axes(False) for d in (a.low, a.high)))


class Panels(Packed):
    """The form with all positions as columns.  A task gathers one panel and multiplies it by a block of rows: memory
    is needed for as many panels as there are threads."""

    def __init__(self, c: Convolution):
        self.c, self.axes = c, c.axes(False)
        p = Problem(c.group, c.ctx, joined_roles(c.groups, len(c.outs)))
        super().__init__(p, row_blocks(packed_schedule(c.ctx.machine, p), p), f"{c.ctx.name}.rows")
        self.copy = Copy(c, self.axes)
        self.copied = f"{c.ctx.name}.copy"
        self.slack = self.copy.shared + self.s.width
        self.lies, self.lone = lies_in_rows(c), lone(c)
        self.packed = Type(p.acc, packed_shape(c, self.s.mr))
        # an address that is linear in channels and in taps, but not in both together
        self.by_taps = not p.row_reach.plain and taps_follow(c) and int_prod(map(guess, c.taps)) <= self.s.kc
        self.in_place = rows_lie_well(c, self.s.mr, p.n, self.s.nr) and (p.row_reach.plain or self.by_taps)
        self.by_taps = self.by_taps and self.in_place
        # a panel and what its last piece brings beyond it; by a kernel of its own where many tasks want it
        self.beyond = self.s.width
        self.room = p.k * self.s.nr + self.beyond
        whole = prod((*p.outer_extents, self.panels)) * self.room * p.acc.bytes
        self.apart = (guess(p.m) > self.s.mc and isinstance(whole, int) and whole <= TOGETHER * c.ctx.machine.l2
                      and not self.lies)
        # summed indices come in blocks of whole ranges of the innermost of them
        self.unit, self.lead = 1, len(c.taps) + 1
        for n in reversed((c.channels, *c.taps)):
            if self.unit * guess(n) > self.s.kc:
                break
            self.unit, self.lead = self.unit * guess(n), self.lead - 1
        self.s = replace(self.s, kc=self.s.kc // self.unit * self.unit, on_way=not self.apart)
        self.one_block = guess(p.k) <= self.s.kc
        self.gathered = ""
        self.pieces: tuple[DimLike, str, str, str] = 0, "", "", ""
        self.first: DimLike = 0  # place of a panel in there

    def lower(self, work: DimLike) -> Lowered:
        out = Lowered()
        if not (self.lies or self.lone):
            kernel, kind, size = self.copy.kernel(self.copied, self.slack)
            out = Lowered([kernel], {self.copied: kind}, [size * 2])
        if not self.in_place:
            rows, self.packed, size = packed_kernel(self.c, self.s.mr, self.temp)
            out.temps[self.temp] = self.packed
            out.kernels.append(rows)
            out.work.append(size * 2)
        if self.apart:
            name, size = f"{self.p.ctx.name}.panels", prod((*self.p.outer_extents, self.panels)) * self.room
            out.temps[name] = Type(self.p.acc, (size,))
            out.kernels.append(self.gather_all(name, size))
            out.work.append(size * 2)
        out.kernels.append(self.multiply())
        out.work.append(work)
        return out

    def multiply(self) -> Kernel:
        p, s = self.p, self.s
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        if not self.in_place:
            k.buffer(self.temp, p.acc, self.packed.shape)
        with (nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(self.panels, "parallel", "p") as panel,
              k.loop(ceildiv(p.m, s.mc), "parallel", "mb") as mb):
            if self.apart:
                self.first = linear_index((*outer, panel), (*p.outer_extents, self.panels)) * self.room
                k.buffer(self.gathered, p.acc, (prod((*p.outer_extents, self.panels)) * self.room,))
            else:
                self.pieces = self.find_pieces(k, outer, panel)
            tile, rows = k.alloc(p.acc, s.mc * s.nr), dmin(s.mc, p.m - s.mc * mb)

            def element(ip: DimLike, i: DimLike, kk: DimLike) -> Expr:
                if self.in_place:
                    return p.row_element(k, inl, outer, dmin(s.mc * mb + s.mr * ip + i, p.m - 1), kk)
                at = linear_index((self._group(outer), s.mc // s.mr * mb + ip, kk, i), self.packed.shape)
                return k.b.load(self.temp, at, p.acc)
            self.panel(k, inl, element, tile, outer, panel, s.mc * mb, rows)
            self.epilogue(k, inl, tile, outer, s.mc * mb, rows, panel)
        declare_outputs(k, p.group, p.ctx)
        return k.finish(p.ctx.dims, [*describe(p.group), f"convolution: gathered positions of all images, {s}"])

    def gather_all(self, name: str, size: DimLike) -> Kernel:
        k = self.p.ctx.builder("g")
        self.gathered = k.buffer(name, self.p.acc, (size,), "out")
        with nest(k, self.p.outer_extents, "parallel", "o") as outer, k.loop(self.panels, "parallel", "p") as panel:
            self.first = linear_index((*outer, panel), (*self.p.outer_extents, self.panels)) * self.room
            self.pieces = self.find_pieces(k, outer, panel)
            self.gather(k, self.gathered, self.first, 0, self.p.k, (*outer, panel))
        return k.finish(self.p.ctx.dims, [f"the positions of {self.p.node.op.name} in panels"])

    def find_pieces(self, k: KernelBuilder, outer: Idx, panel: DimLike) -> tuple[DimLike, str, str, str]:
        """Positions of one row of an image lie side by side in the copy, too, so a panel comes in pieces of a vector:
        how many, where each begins in the copy, and in the panel, and how far its row goes on.  What a piece brings
        beyond its end is written over by the next."""
        if self.lone:
            return 0, "", "", ""
        c, s, copy = self.c, self.s, self.copy
        row, first = prod(c.outs) if self.lies else c.outs[-1], s.nr * panel
        end, top, whole = dmin(first + s.nr, self.p.n), first // row, ceildiv(row, s.width)
        rows = bound(k, (end - 1) // row - top + 1)

        def reach(q: DimLike) -> tuple[DimLike, DimLike]:
            start = bound(k, dmax(first, (top + q) * row))
            return start, bound(k, dmin(end, (top + q + 1) * row) - start)
        begun, ended = (bound(k, ceildiv(reach(q)[1], s.width)) for q in (0, rows - 1))
        most = ((s.nr - 1) // row + 2) * dmin(whole, ceil_div(s.nr, s.width))
        begins, ends, rests = (k.alloc(i64, most) for _ in range(3))
        with k.loop(rows, "seq", "q") as q:
            start, length = reach(q)
            n, *at = (bound(k, d) for d in unravel(start, (c.images, *c.outs)))
            if self.lies:
                begin = n * self.lies.image + self._group(outer) * c.channels * self.lies.channel
                begin = begin + linear_index(at, c.outs)
            else:
                begin = copy.start(n, copy.all_channels, self._group(outer) * c.channels, [0] * len(self.axes))
                begin = begin + linear_index(at, copy.spans)
            before = named(k, dmin(q, 1) * begun + dmax(q - 1, 0) * whole, most)
            with k.loop(ceildiv(length, s.width), "seq", "s") as piece:
                k.write(begins, before + piece, k.b.index(k.tidy(begin + s.width * piece)))
                k.write(ends, before + piece, k.b.index(start - first + s.width * piece))
                k.write(rests, before + piece, k.b.index(length - s.width * piece))
        count = begun + dmin(rows - 1, 1) * (dmax(rows - 2, 0) * whole + ended)
        return named(k, count, most), begins, ends, rests

    def gather(self, k: KernelBuilder, target: str, first: DimLike, start: DimLike, count: DimLike, at: Idx) -> None:
        """What the taps read at the positions of the panel: [channel, taps][nr], ``count`` indices from ``start``."""
        if self.lone:
            self.turn(k, target, first, start, count, at)
            return
        c, p, s, copy = self.c, self.p, self.s, self.copy
        if self.lies:
            source, base = self.lies.buffer.name, self.lies.first
            k.params.setdefault(source, self.lies.buffer)
        else:
            source, base = k.buffer(self.copied, p.acc, (copy.size(c.images, copy.all_channels, self.slack),)), 0
        extents = (c.channels, *c.taps)
        pieces, begins, ends, rests = self.pieces
        with k.loop(count // self.unit, "seq", "u") as u:
            lead = tuple(bound(k, d) for d in unravel(start // self.unit + u, extents[:self.lead]))
            inside = extents[self.lead:]
            with nest(k, inside, "seq", "k") as r, k.loop(pieces, "seq", "q") as q:
                channel, *taps = lead + r
                if self.lies:
                    offset = base + channel * self.lies.channel
                else:
                    phases, offset = copy.at([0] * len(self.axes), taps)
                    offset = offset + copy.start(0, copy.all_channels, channel, phases)
                begin = k.as_index(k.b.load(begins, q, i64), 0, self._last())
                to = first + (self.unit * u + linear_index(r, inside)) * s.nr
                to = to + k.as_index(k.b.load(ends, q, i64), 0, s.nr)
                rest = k.let(k.b.load(rests, q, i64)) if self.lies else None
                with k.loop(s.width, "vector", "j", s.width) as j:
                    where = None if rest is None else k.b.lt(k.b.index(j), rest)
                    k.write(target, to + j, k.b.load(source, k.tidy(begin + offset) + j, p.acc, where))

    def turn(self, k: KernelBuilder, target: str, first: DimLike, start: DimLike, count: DimLike, at: Idx) -> None:
        """The same where images have one position, by runs of taps."""
        c, p, s = self.c, self.p, self.s
        inl, (*outer, panel), extents = inliner(k, p.group, p.ctx), at, (c.channels, *c.taps)

        def copy(exists: Callable[[DimLike], Expr | None]) -> None:
            with k.loop(count // self.unit, "seq", "u") as u:
                lead = tuple(bound(k, d) for d in unravel(start // self.unit + u, extents[:self.lead]))
                inside = extents[self.lead:]
                with nest(k, inside, "seq", "k") as r, k.loop(s.nr, "vector", "j", s.width) as j:
                    image = s.nr * panel + j
                    o = p.out_index(tuple(outer), 0, image)
                    where, _ = c.access.lhs(o, (*lead, *r))
                    v = inl.value(c.x, tuple(map(k.tidy, where)), exists(image))
                    k.write(target, first + (self.unit * u + linear_index(r, inside)) * s.nr + j, v)
        last = lanes_exist(k, p, s, s.nr * panel)
        if last is None:
            copy(lambda image: None)
            return
        whole = k.let(k.b.le(k.b.index(s.nr * panel + s.nr), k.b.index(p.n)))
        with k.if_(whole):
            copy(lambda image: None)
        with k.if_(k.b.not_(whole)):
            copy(lambda image: lanes_exist(k, p, s, image))

    def copy_columns(self, k: KernelBuilder, inl: Inliner, outer: Idx, panel: DimLike, here: str, start: DimLike,
                     count: DimLike) -> None:
        self.gather(k, here, 0, start, count, (*outer, panel))

    @contextmanager
    def walk(self, k: KernelBuilder, count: DimLike) -> Iterator[DimLike]:
        if not self.by_taps:
            with k.loop(count, "seq", "k") as kk:
                yield kk
            return
        taps = prod(self.c.taps)
        with k.loop(count // taps, "seq", "c") as c, k.loop(taps, "seq", "t") as t:
            yield taps * c + t

    def column(self, k: KernelBuilder, outer: Idx, panel: DimLike, kk: DimLike, j: DimLike) -> Expr:
        return k.b.load(self.gathered, self.first + kk * self.s.nr + j, self.p.acc)

    def _group(self, outer: Idx) -> DimLike:
        return outer[0] if outer else 0

    def _last(self) -> DimLike:
        """The greatest place where a position begins."""
        c, copy = self.c, self.copy
        if self.lies:
            return (c.images - 1) * self.lies.image + (c.groups - 1) * c.channels * self.lies.channel + prod(c.outs) - 1
        corner = linear_index([o - 1 for o in c.outs], copy.spans)
        return copy.start(c.images - 1, copy.all_channels, (c.groups - 1) * c.channels, [0] * len(c.outs)) + corner

    def epilogue(self, k: KernelBuilder, inl: Inliner, tile: str, outer: Idx, first: DimLike, rows: DimLike,
                 panel: DimLike) -> None:
        """Image by image: there, columns lie behind each other in memory.  Images of one position: rows do."""
        c, p, s = self.c, self.p, self.s
        positions, start = prod(c.outs), s.nr * panel
        end = dmin(start + s.nr, p.n)
        if positions == 1:
            with k.loop(end - start, "seq", "q") as q, k.loop(rows, "vector", "i", s.width) as i:
                v = k.b.load(tile, s.nr * i + q, p.acc)
                c.finish(k, inl, c.output(start + q, self._group(outer), first + i, [0] * len(c.outs)), v)
            return
        top = start // positions
        with k.loop((end - 1) // positions - top + 1, "seq", "q") as q:
            n = top + q
            low = dmax(start, n * positions)
            with (k.loop(rows, "seq", "i") as i,
                  k.loop(dmin(end, (n + 1) * positions) - low, "vector", "j", s.width) as j):
                at = unravel(low - n * positions + j, c.outs)
                v = k.b.load(tile, s.nr * i + low - start + j, p.acc)
                c.finish(k, inl, c.output(n, self._group(outer), first + i, at), v)
