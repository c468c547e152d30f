"""Convolutions of small images with many channels: a packed contraction whose columns are the positions of all images.

Here: that form.  Not here: when it is taken (convolve.py), how tiles are multiplied (contract.py).

Positions as lanes of whole rows waste those between the rows and the images, which are most of them where images are
small.  Here the columns are exactly the positions with results, image after image; what every tap reads of them is
gathered into panels, once for many output channels:

    copy the input with its padding; pack the kernel:  rows[panel][channel, taps][mr]
    for group, panel of positions, block of channels in parallel:
        where each position begins in the copy
        for channel, taps:                            panel[channel, taps][nr] = copy[begin + offset]
        multiply as in any contraction
        for image in the panel, channel:              epilogue, store

Results are chains over channels and taps in order as in the other form, so both give the same bits.
"""

from __future__ import annotations

from dataclasses import replace

from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.kernel import Expr, Kernel
from flowc.passes.contract import Packed
from flowc.passes.convolve_copy import Convolution, Copy, guess
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Lowered, declare_outputs, describe, inliner, nest
from flowc.passes.problem import Problem, Roles
from flowc.passes.schedule import ContractSchedule
from flowc.passes.tiles import ceil_div, packed_schedule
from flowc.types import Type, i64

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
    return replace(s, mc=mc, nc=s.nr, kc=4 * s.kc, copy_rows=True)  # rows come from far: in long pieces


class Panels(Packed):
    """The form with all positions as columns.  A task gathers one panel and multiplies it by a block of rows: memory
    is needed for as many panels as there are threads."""

    def __init__(self, c: Convolution):
        self.c, self.axes = c, c.axes(False)
        p = Problem(c.group, c.ctx, joined_roles(c.groups, len(c.outs)))
        super().__init__(p, row_blocks(packed_schedule(c.ctx.machine, p), p), f"{c.ctx.name}.rows")
        self.copy = Copy(c, self.axes)
        self.copied = f"{c.ctx.name}.copy"
        self.packed = Type(p.acc, (*p.outer_extents, ceildiv(p.m, self.s.mr), p.k, self.s.mr))
        self.gathered = ""

    def lower(self, work: DimLike) -> Lowered:
        kernel, kind, size = self.copy.kernel(self.copied, self.copy.shared)
        return Lowered([kernel, self.pack_rows(), self.multiply()], {self.copied: kind, self.temp: self.packed},
                       [size * 2, self.packed.size * 2, work])

    def pack_rows(self) -> Kernel:
        """Rows side by side, so that one place of the kernel is read for all of them however it was moved."""
        p, mr = self.p, self.s.mr
        k = p.ctx.builder("w")
        inl = inliner(k, p.group, p.ctx)
        with (nest(k, self.packed.shape[:-2], "parallel", "o") as (*outer, ip),
              nest(k, p.access.reduce, "seq", "k") as r, k.loop(mr, "unroll", "i") as i):
            kk, row = linear_index(r, p.access.reduce), dmin(mr * ip + i, p.m - 1)  # beyond the last: never stored
            v = p.row_element(k, inl, tuple(outer), row, kk)
            k.write(self.temp, linear_index((*outer, ip, kk, i), self.packed.shape), v)
        k.buffer(self.temp, p.acc, self.packed.shape, "out")
        return k.finish(p.ctx.dims, [f"pack the kernel of {p.node.op.name}"])

    def multiply(self) -> Kernel:
        p, s = self.p, self.s
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        k.buffer(self.temp, p.acc, self.packed.shape)
        with (nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(self.panels, "parallel", "p") as panel,
              k.loop(ceildiv(p.m, s.mc), "parallel", "mb") as mb):
            self.gather(k, outer, panel)
            tile, rows = k.alloc(p.acc, s.mc * s.nr), dmin(s.mc, p.m - s.mc * mb)

            def element(ip: DimLike, i: DimLike, kk: DimLike) -> Expr:
                at = linear_index((*outer, s.mc // s.mr * mb + ip, kk, i), self.packed.shape)
                return k.b.load(self.temp, at, p.acc)
            self.panel(k, inl, element, tile, outer, panel, s.mc * mb, rows)
            self.epilogue(k, inl, tile, outer, s.mc * mb, rows, panel)
        declare_outputs(k, p.group, p.ctx)
        return k.finish(p.ctx.dims, [*describe(p.group), f"convolution: gathered positions of all images, {s}"])

    def gather(self, k: KernelBuilder, outer: Idx, panel: DimLike) -> None:
        """What the taps read at the positions of a panel: [channel, taps][nr]."""
        c, p, s, copy = self.c, self.p, self.s, self.copy
        zero = [0] * len(self.axes)
        source = k.buffer(self.copied, p.acc, (copy.size(c.images, copy.all_channels, copy.shared),))
        begins = k.alloc(i64, s.nr)
        with k.loop(s.nr, "vector", "j", s.width) as j:
            n, *at = unravel(dmin(s.nr * panel + j, p.n - 1), (c.images, *c.outs))  # beyond the last: never stored
            begin = copy.start(n, copy.all_channels, self._group(outer) * c.channels, zero)
            k.write(begins, j, k.b.index(k.tidy(begin + linear_index(at, copy.spans))))
        self.gathered = k.alloc(p.acc, p.k * s.nr)
        with nest(k, (c.channels, *c.taps), "seq", "k") as r, k.loop(s.nr, "vector", "j", s.width) as j:
            phases, offset = copy.at(zero, r[1:])
            offset = offset + copy.start(0, copy.all_channels, r[0], phases)
            begin = k.as_index(k.b.load(begins, j, i64), 0, self._last())
            v = k.b.load(source, k.tidy(begin + offset), p.acc)
            k.write(self.gathered, linear_index(r, (c.channels, *c.taps)) * s.nr + j, v)

    def column(self, k: KernelBuilder, outer: Idx, panel: DimLike, kk: DimLike, j: DimLike) -> Expr:
        return k.b.load(self.gathered, kk * self.s.nr + j, self.p.acc)

    def _group(self, outer: Idx) -> DimLike:
        return outer[0] if outer else 0

    def _last(self) -> DimLike:
        """The greatest place where a position begins."""
        c, copy = self.c, self.copy
        corner = linear_index([o - 1 for o in c.outs], copy.spans)
        return copy.start(c.images - 1, copy.all_channels, (c.groups - 1) * c.channels, [0] * len(c.outs)) + corner

    def epilogue(self, k: KernelBuilder, inl: Inliner, tile: str, outer: Idx, first: DimLike, rows: DimLike,
                 panel: DimLike) -> None:
        """Image by image: there, columns lie behind each other in memory."""
        c, p, s = self.c, self.p, self.s
        positions, start = prod(c.outs), s.nr * panel
        end = dmin(start + s.nr, p.n)
        top = start // positions
        with k.loop((end - 1) // positions - top + 1, "seq", "q") as q:
            n = top + q
            low = dmax(start, n * positions)
            with (k.loop(rows, "seq", "i") as i,
                  k.loop(dmin(end, (n + 1) * positions) - low, "vector", "j", s.width) as j):
                at = unravel(low - n * positions + j, c.outs)
                v = k.b.load(tile, s.nr * i + low - start + j, p.acc)
                c.finish(k, inl, c.output(n, self._group(outer), first + i, at), v)
