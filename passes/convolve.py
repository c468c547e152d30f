"""Convolutions on the CPU: every tap of the kernel reads whole vectors of neighbouring positions.

Here: the choice of form, the form with positions as lanes.  Not here: the copy of the input (convolve_copy.py), the
forms with taps as lanes (convolve_dot.py), with one output channel per group (convolve_rows.py), with the positions of
all images as columns (convolve_panels.py) and with fewer products than the sums as written (convolve_winograd.py,
convolve_gradient.py).

Positions as lanes.  An output position is a number t = sum of (index along an axis) * (pitch of the axis) in a copy of
the input that holds its padding.  A tap of the kernel reads at t plus an offset of its own, so neighbouring lanes read
neighbouring elements, also from one row of the image to the next; the few positions between two rows are computed and
dropped.  With a stride the copy holds one image per residue (phase), and inside a phase the stride is one.

    for image, group, panel of output channels (mr), tile of positions (nr) in parallel:
        for channel, taps: tile in registers += kernel[mr] * input[nr]
        for row of the output in the tile, channel: epilogue, store

Every result is one chain of fused multiply-adds over channels and taps in order, whatever the tile, so the bits depend
neither on it nor on threads.  The copy is made by the task that needs it where images are small and many, by a kernel
of its own otherwise, and not at all where the input lies in memory as the loop wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod as int_prod

from flowc.dataclass import dataclass, replace
from flowc.dims import DimLike, ceildiv, dmax, dmin, linear, prod
from flowc.kernel import Expr, Kernel
from flowc.passes import minimal_filters
from flowc.passes.contract import lower_contraction
from flowc.passes.convolve_copy import (
    LARGE,
    Axis,
    Convolution,
    Copy,
    bound,
    guess,
    packed_kernel,
    packed_shape,
    plain,
    rows_lie_well,
)
from flowc.passes.convolve_dot import Taps
from flowc.passes.convolve_gradient import Gradient
from flowc.passes.convolve_panels import Panels, lies_in_rows, lone
from flowc.passes.convolve_rows import Rows, RowSums
from flowc.passes.convolve_winograd import Winograd
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.problem import exists
from flowc.passes.schedule import Machine
from flowc.passes.tiles import ceil_div
from flowc.types import DType

LOCAL = 96 << 10     # bytes of one image that a task copies for itself, at most
TASKS = 16           # images that make enough tasks
LANES = 16           # lanes in comparisons of forms: part of the meaning, not of the machine
PANEL = 48           # positions that are gathered together, in the same comparisons
PIECE = 4.0          # steps of a sum that one piece of gathered positions takes, a row or a vector of it
ROWS = 48        # for which positions in place are gathered as well: read once, not again and again at long strides
SQUARE = 128     # results in both directions for which operands of one position each are worth being turned
BRING, SPREAD = 6.0, 1.05  # steps that copying a vector of a row takes; how much faster more copying must be
FOLDS = 1.2          # what taps as lanes cost beside positions as lanes


# ---- positions as lanes ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Tile:
    """``mr`` output channels times ``nr`` positions in registers."""

    mr: int
    nr: int

    def __str__(self) -> str:
        return f"convolution: {self.mr} channels x {self.nr} positions"


def choose_tile(machine: Machine, dtype: DType, rows: DimLike, positions: DimLike) -> Tile:
    """The tile of least time."""
    return fastest_tile(machine, dtype, rows, positions)[1]


def fastest_tile(machine: Machine, dtype: DType, rows: DimLike, positions: DimLike) -> tuple[float, Tile]:
    """The tile of least time, and that: a step costs its multiply-adds, or its loads if those take longer; vectors of
    the input that lie across cache lines count twice."""
    lanes, registers = machine.lanes(dtype), 24 if machine.vector_bits >= 512 else 12
    best: tuple[float, Tile] | None = None
    for nv in (3, 2, 4, 6, 8, 1):
        for mr in range(1, min(guess(rows), registers // nv) + 1):
            tiles = ceil_div(guess(rows), mr) * (ceil_div(positions, nv * lanes) if isinstance(positions, int) else
                                                 LARGE / nv)
            time = tiles * (max(mr * nv, 2 * nv + mr / 2, 6) + 1)
            if best is None or time < best[0]:
                best = time, Tile(mr, nv * lanes)
    assert best is not None
    return best


class Positions:
    """The form with positions as lanes."""

    def __init__(self, p: Convolution):
        self.p, self.axes = p, chosen_axes(p)
        c = p.ctx
        self.in_place = all(a.plain and not a.spread for a in self.axes) and plain(p, p.x) and self._pitched()
        self.copy = Copy(p, self.axes, not self.in_place and joins(p, self.axes))
        self.spans = list(p.x.shape[2:]) if self.in_place else self.copy.spans
        self.lead: list[DimLike] = [p.images] if self.copy.joined else []
        self.extent = reach([*self.lead, *p.outs], [*self.lead, *self.spans])  # positions up to the last result
        self.tile = choose_tile(c.machine, p.acc, p.rows, self.extent)
        self.even = isinstance(p.rows, int) and p.rows % self.tile.mr == 0
        self.weights_in_place = rows_lie_well(p, self.tile.mr, p.images * self.extent, self.tile.nr)
        self.slack = self.tile.nr + self.copy.shared
        image = self.copy.size(1, p.channels, self.slack)
        tasks = guess(p.images) * p.groups
        self.local = (not self.in_place and not self.copy.joined and isinstance(image, int)
                      and image * p.acc.bytes <= LOCAL and tasks >= TASKS)

    @property
    def stays(self) -> bool:
        """Does what a tile reads of the input stay in the nearest cache, while the kernel, if that is less than the
        image, passes by?  Taps that are neighbours do so in any case."""
        p = self.p
        if any(n != 1 for n in p.taps) or not isinstance(p.channels, int) or not isinstance(p.rows, int):
            return False
        return 2 * p.channels * self.tile.nr * p.acc.bytes <= p.ctx.machine.l1 and p.rows < guess(self.extent)

    def _pitched(self) -> bool:
        """Do rows follow each other as positions do?"""
        p = self.p
        k = p.ctx.builder("probe")
        with nest(k, p.x.shape, "seq") as idx:
            v = inliner(k, p.group, p.ctx).value(p.x, idx)
            pitch: DimLike = 1
            for i, n in reversed(list(zip(idx[2:], p.x.shape[2:], strict=True))):
                if not isinstance(i, int) and linear(v.attr[1], str(i))[0] != pitch:  # type: ignore[index]
                    return False
                pitch = pitch * n
        return True

    def lower(self) -> Lowered:
        p, c = self.p, self.p.ctx
        out = Lowered()
        if not (self.in_place or self.local):
            name = f"{c.name}.copy"
            kernel, kind, work = self.copy.kernel(name, self.slack)
            out.kernels.append(kernel)
            out.work.append(work * 2)
            out.temps[name] = kind
        if not self.weights_in_place:
            kernel, kind, work = packed_kernel(p, self.tile.mr, f"{c.name}.weights")
            out.kernels.append(kernel)
            out.work.append(work * 2)
            out.temps[f"{c.name}.weights"] = kind
        out.kernels.append(self._main())
        out.work.append(p.images * p.groups * p.rows * self.extent * (prod((p.channels, *p.taps)) + cost(p.group)) // 8)
        return out

    # -- multiplying

    def _main(self) -> Kernel:
        p, t = self.p, self.tile
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        images = 1 if self.copy.joined else p.images
        copy = self.copy.bind(k)
        kind = "seq" if self.local else "parallel"
        with k.loop(images, "parallel", "n") as n, k.loop(p.groups, "parallel", "g") as g:
            read = self._reader(k, inl, copy, n, g)
            panels, tiles = (ceildiv(p.rows, t.mr), kind, "p"), (ceildiv(self.extent, t.nr), kind, "t")
            with k.loop(*(tiles if self.stays else panels)) as i, k.loop(*(panels if self.stays else tiles)) as j:
                panel, tile = (j, i) if self.stays else (i, j)
                results = k.alloc(p.acc, t.mr * t.nr)
                self._multiply(k, inl, read, results, g, panel, t.nr * tile)
                self._epilogue(k, inl, copy, results, (n, g, panel), t.nr * tile)
        declare_outputs(k, p.group, p.ctx)
        where = "in place" if self.in_place else "copied by its task" if self.local else "copied"
        return k.finish(p.ctx.dims, [*describe(p.group), f"{t}, input {where}"])

    def _reader(self, k: KernelBuilder, inl: Inliner, copy: Copy, n: DimLike, g: DimLike) -> Callable[..., Expr]:
        """The input at (channel of the group, taps, position)."""
        p, b = self.p, k.b
        if self.in_place:
            extent = bound(k, self.extent)

            def direct(c: DimLike, taps: Idx, at: DimLike) -> Expr:
                first, _ = p.access.lhs(self._place(n, g, at), (c, *taps))
                where = None if isinstance(self.extent, int) and self.extent % self.tile.nr == 0 else b.lt(
                    b.index(at), b.index(extent))
                return inl.value(p.x, tuple(map(k.tidy, first)), where)
            return direct
        name, channels = f"{p.ctx.name}.copy", copy.all_channels
        if self.local:
            channels = p.channels
            name = k.alloc(p.acc, self.copy.size(1, channels, self.slack))
            with k.loop(channels, "seq", "c") as c:
                copy.fill(k, inl, name, n, g * channels + c, copy.start(0, channels, c, [0] * len(self.axes)))
            copy.end(k, name, 1, channels)
        else:
            k.buffer(name, p.acc, (self.copy.size(p.images, channels, self.slack),))

        def read(c: DimLike, taps: Idx, at: DimLike) -> Expr:
            phases, offset = copy.at([0] * len(taps), taps)
            image, channel = (0, c) if self.local else (0 if copy.joined else n, g * p.channels + c)
            return b.load(name, k.tidy(copy.start(image, channels, channel, phases) + offset + at), p.acc)
        return read

    def _place(self, n: DimLike, g: DimLike, at: DimLike) -> Idx:
        """Indices of the access at a position in place: all of it along the last axis, whose rows lie behind each
        other."""
        zero = (0,) * (len(self.axes) - 1)
        return (n, 0, *zero, at) if self.p.groups == 1 else (n, g, 0, *zero, at)

    def _multiply(self, k: KernelBuilder, inl: Inliner, read: Callable[..., Expr], results: str, g: DimLike,
                  panel: DimLike, first: DimLike) -> None:
        p, t = self.p, self.tile
        acc = k.acc(p.acc, k.b.const(0, p.acc), (t.mr, t.nr))
        shape, name = packed_shape(p, t.mr), f"{p.ctx.name}.weights"
        if not self.weights_in_place:
            k.buffer(name, p.acc, shape)
        with (nest(k, (p.channels, *p.taps), "seq", "k") as r, k.loop(t.mr, "unroll", "i") as i,
              k.loop(t.nr, "vector", "j", p.width) as j):
            if self.weights_in_place:
                row = t.mr * panel + i
                w = inl.value(p.w, (g * p.rows + (row if self.even else dmin(row, p.rows - 1)), *r))
            else:
                kk = linear_index(r, (p.channels, *p.taps))
                w = k.b.load(name, linear_index((g, panel, kk, i), shape), p.acc)
            k.set(acc, p.product(k, w, read(r[0], r[1:], first + j), k.get(acc, i, j)), i, j)
        with k.loop(t.mr, "unroll", "i") as i, k.loop(t.nr, "vector", "j", p.width) as j:
            k.write(results, t.nr * i + j, k.get(acc, i, j))

    def _epilogue(self, k: KernelBuilder, inl: Inliner, copy: Copy, results: str, panel: Idx, first: DimLike) -> None:
        """The rows of the output that the tile touches, each with the columns that lie in the tile."""
        p, t = self.p, self.tile
        outs = [*self.lead, *p.outs]
        spans = [*self.lead, *(p.x.shape[2:] if self.in_place else copy.spans)]
        while len(outs) > 1 and outs[-1] == spans[-1]:  # rows without anything in between are one row
            outs[-2:], spans[-2:] = [outs[-2] * outs[-1]], [spans[-2] * spans[-1]]
        columns, pitch = bound(k, outs[-1]), spans[-1]
        if len(outs) == 1:
            self._row(k, inl, results, panel, ((), outs), (-first, first, dmin(columns - first, t.nr)))
            return
        top = bound(k, first // dmax(pitch, 1))
        with k.loop((first + t.nr - 1) // dmax(pitch, 1) - top + 1, "seq", "q") as q:
            lead = tuple(bound(k, i) for i in unravel(top + q, spans[:-1]))
            start = pitch * (top + q) - first  # where the row begins in the tile
            low = bound(k, dmax(0, -start))
            count = bound(k, dmax(0, dmin(columns, t.nr - start) - low))
            where = exists(k, [("range", i, m) for i, m in zip(lead, outs[:-1], strict=True)], None)
            if where is None:
                self._row(k, inl, results, panel, (lead, outs), (start, low, count))
            else:
                with k.if_(where):
                    self._row(k, inl, results, panel, (lead, outs), (start, low, count))

    def _row(self, k: KernelBuilder, inl: Inliner, results: str, panel: Idx, row: tuple[Idx, Sequence[DimLike]],
             part: tuple[DimLike, DimLike, DimLike]) -> None:
        """Columns low .. low + count - 1 of a row that begins at ``start`` in the tile."""
        p, t = self.p, self.tile
        (n, g, rows), (lead, outs), (start, low, count) = panel, row, part
        shape = [*self.lead, *p.outs]
        with (k.loop(dmin(t.mr, p.rows - t.mr * rows), "seq", "i") as i, k.loop(count, "vector", "j", p.width) as j):
            at: Idx = (*lead, low + j)
            if len(outs) < len(shape):
                at = unravel(linear_index(at, outs), shape)
            if self.copy.joined:
                n, at = at[0], at[1:]
            v = k.b.load(results, t.nr * i + start + low + j, p.acc)
            p.finish(k, inl, p.output(n, g, t.mr * rows + i, at), v)


def chosen_axes(p: Convolution) -> list[Axis]:
    """The axes, the last one perhaps spread: a copy by the task with one plane for each tap along the rows has no
    positions between two rows.  Where images are small, these are many, and copying takes little time."""
    axes = p.axes(False)
    known = (*p.taps, *p.outs, *p.x.shape[1:], p.channels, p.rows)
    if not all(isinstance(n, int) and n > 0 for n in known) or p.taps[-1] == 1 or guess(p.images) * p.groups < TASKS:
        return axes
    spread = [*axes[:-1], replace(axes[-1], spread=True)]
    depth = int_prod(map(guess, (p.channels, *p.taps)))

    def time(axes: list[Axis]) -> float:
        copy = Copy(p, axes)
        copied = 0 if all(a.plain and not a.spread for a in axes) else guess(copy.size(1, p.channels, 0))
        lines = copied / guess(copy.spans[-1]) * ceil_div(guess(copy.spans[-1]), p.width)
        return depth * fastest_tile(p.ctx.machine, p.acc, p.rows, reach(p.outs, copy.spans))[0] + BRING * lines
    fits = guess(Copy(p, spread).size(1, p.channels, 0)) * p.acc.bytes <= LOCAL // 2
    return spread if fits and time(spread) < time(axes) / SPREAD else axes


def reach(outs: Sequence[DimLike], spans: Sequence[DimLike]) -> DimLike:
    """Positions up to and with the last result."""
    return linear_index([dmax(o, 1) - 1 for o in outs], spans) + 1


def density(p: Convolution, axes: Sequence[Axis]) -> tuple[float, float]:
    """Which part of the lanes gives results, image by image and with all images in one row of positions."""
    outs, spans = [guess(o) for o in p.outs], [guess(a.span) for a in axes]
    spans[-1] -= axes[-1].shared
    results, alone = int_prod(outs), guess(reach(outs, spans))
    return results / (ceil_div(alone, LANES) * LANES), results / max(1, int_prod(spans))


def joins(p: Convolution, axes: Sequence[Axis]) -> bool:
    alone, together = density(p, axes)
    return together > 1.2 * alone and guess(p.images) > 1


def gatherable(p: Convolution) -> bool:
    """Are all sizes numbers but that of the images, and is there something to gather?"""
    known = (*p.outs, *p.taps, *p.x.shape[1:], p.channels, p.rows, guess(p.images))
    return all(isinstance(d, int) and d > 0 for d in known)


def packs(p: Convolution, axes: Sequence[Axis]) -> bool:
    """Is gathering exactly the positions with results worth more than the lanes that it saves?"""
    if not gatherable(p):
        return False
    columns, last = guess(p.images) * int_prod(map(guess, p.outs)), guess(p.taps[-1])
    gather = PIECE * LANES / min(LANES, guess(p.outs[-1])) + PIECE / 2
    exact = ceil_div(columns, PANEL) * PANEL / columns + gather / guess(p.rows)
    if (guess(p.rows) >= ROWS and 2 * guess(p.channels) * PANEL * p.acc.bytes > p.ctx.machine.l1
            and lies_in_rows(p) is not None):
        return True
    if min(guess(p.rows), guess(p.images)) >= SQUARE and lone(p):
        return True
    return 1.04 * exact < 1 / max(*density(p, axes), last / (ceil_div(last, LANES) * LANES) / FOLDS)


def lower_convolution(g: Group, ctx: Context) -> Lowered:
    """Kernels of a group around a convolution."""
    p = Convolution(g, ctx)
    if not p.outs:
        return lower_contraction(g, ctx)
    tiles = minimal_filters.best_filter(p.node)
    if tiles is not None:
        return Winograd(p, tiles).lower()
    tiles = minimal_filters.best_sums(p.node)
    if tiles is not None:
        return Gradient(p, tiles).lower()
    if Rows.fits(p):
        return Rows(p).lower()
    if RowSums.fits(p):
        return RowSums(p).lower()
    axes = p.axes(False)
    if packs(p, axes):
        panels = Panels(p)
        return panels.lower(panels.p.work // 8)
    last = guess(p.taps[-1])
    sums = guess(prod((p.channels, *p.taps[:-1]))) * ceil_div(last, LANES)
    if sums >= 8 and last / (ceil_div(last, LANES) * LANES) > 1.5 * max(density(p, axes)):
        return Taps(p).lower()
    return Positions(p).lower()
