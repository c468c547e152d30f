"""Convolutions of small images with many channels: a packed contraction whose columns are the positions of all images.

Here: that form.  Not here: when it is taken (convolve.py), how tiles are multiplied (contract.py).

Positions as lanes of whole rows waste those between the rows and the images, which are most of them where images are
small.  Here the columns are exactly the positions with results, image after image; what every tap reads of them is
gathered into panels, once for all output channels:

    copy the input with its padding
    for group, panel of positions in parallel:        where each position begins in the copy
        for channel, taps:                            panel[channel, taps][nr] = copy[begin + offset]
    for group, block of channels, block of panels:    multiply as in any contraction
        for image in the panel, channel:              epilogue, store

Results are chains over channels and taps in order as in the other form, so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from flowc.dims import DimLike, dmax, dmin, prod
from flowc.kernel import Kernel
from flowc.passes.contract import Packed
from flowc.passes.convolve_copy import Convolution, Copy
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Lowered, cost, nest
from flowc.passes.problem import Problem, Roles
from flowc.passes.tiles import packed_schedule
from flowc.types import i64


def joined_roles(groups: int, axes: int) -> Roles:
    """Output channels are rows; images and positions are columns."""
    channel = 1 if groups == 1 else 2
    spatial = range(channel + 1, channel + 1 + axes)
    return Roles((channel,), (0, *spatial), () if groups == 1 else (1,), 1)


class Panels(Packed):
    """The form with all positions as columns."""

    def __init__(self, c: Convolution):
        self.c, self.axes = c, c.axes(False)
        p = Problem(c.group, c.ctx, joined_roles(c.groups, len(c.outs)))
        super().__init__(p, packed_schedule(c.ctx.machine, p), f"{c.ctx.name}.packed")
        self.direct = False  # lanes of a panel belong to several images
        self.copy = Copy(c, self.axes)
        self.copied = f"{c.ctx.name}.copy"

    def lower(self, work: DimLike | None = None) -> Lowered:
        p = self.p
        work = prod(p.outer_extents) * p.m * p.n * (p.k + cost(p.group)) // 8
        kernel, kind, size = self.copy.kernel(self.copied, self.copy.shared)
        out = super().lower(work)
        return Lowered([kernel, *out.kernels], {self.copied: kind, **out.temps}, [size * 2, *out.work])

    def pack_columns(self) -> Kernel:
        c, p, s, copy = self.c, self.p, self.s, self.copy
        k = p.ctx.builder("p")
        zero = [0] * len(self.axes)
        source = k.buffer(self.copied, p.acc, (copy.size(c.images, copy.all_channels, copy.shared),))
        with nest(k, p.outer_extents, "parallel", "o") as outer, k.loop(self.panels, "parallel", "p") as panel:
            begins = k.alloc(i64, s.nr)
            with k.loop(s.nr, "vector", "j", s.width) as j:
                n, *at = unravel(dmin(s.nr * panel + j, p.n - 1), (c.images, *c.outs))  # beyond the last: never stored
                begin = copy.start(n, copy.all_channels, self._group(outer) * c.channels, zero)
                k.write(begins, j, k.b.index(k.tidy(begin + linear_index(at, copy.spans))))
            with nest(k, (c.channels, *c.taps), "seq", "k") as r, k.loop(s.nr, "vector", "j", s.width) as j:
                phases, offset = copy.at(zero, r[1:])
                offset = offset + copy.start(0, copy.all_channels, r[0], phases)
                begin = k.as_index(k.b.load(begins, j, i64), 0, self._last())
                kk = linear_index(r, (c.channels, *c.taps))
                v = k.b.load(source, k.tidy(begin + offset), p.acc)
                k.write(self.temp, linear_index((*outer, panel, kk, j), self.packed.shape), v)
        k.buffer(self.temp, p.acc, self.packed.shape, "out")
        return k.finish(p.ctx.dims, [f"gather the columns of {p.node.op.name}", str(s)])

    def copy_rows(self, k: KernelBuilder, copy: Callable[[DimLike, DimLike], None]) -> None:
        """Rows side by side, so that one place of the kernel is read for all of them however it was moved."""
        with nest(k, self.p.access.reduce, "seq", "k") as r, k.loop(self.s.mr, "unroll", "i") as i:
            copy(i, linear_index(r, self.p.access.reduce))

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
