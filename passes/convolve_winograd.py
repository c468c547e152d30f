"""Convolutions of three taps along two axes by minimal filtering: 16 products where the sums as written take 36.

Here: that form.  Not here: the transforms, when they pay, what they do to rounding (minimal_filters.py), the other
forms (convolve.py), the gradient of such a convolution (convolve_gradient.py).

Tiles of 2 x 2 results are computed from 4 x 4 elements d of the input as At ((G g Gt) * (Bt d B)) A, summed over
channels before the last step: F(2 x 2, 3 x 3) of Lavin and Gray, "Fast algorithms for convolutional neural networks"
(2016), after Winograd.  For each of the 16 places of a transformed tile that sum is a product of matrices:

    copy the input with its padding, one image per parity (convolve_copy.py)
    for group, panel of output channels (mr), channel in parallel:       U[panel][place][channel][mr] = G g Gt
        (by the tasks below, where each wants panels of its own)
    for group, block of tiles (nr), block of output channels in parallel:
        for channel, row of tiles:                                       V[place][channel][nr] = Bt d B
            (before, where several tasks want the same)
        for panel of output channels (mr):
            for place: tile in registers over channels                   M[place][mr][nr]
            for channel of the panel:                                    Y = At M A
            what is not finite: again, as the sums are written
            for row of the output, channel of the panel:                 epilogue, store

Other axes are walked like images (their positions) and like channels (their taps).

What is not finite spreads over a tile, as inf - inf is NaN, and stays so: no result that is finite has seen any.  Those
that are not are computed again as written, one by one, so tiles, machines and threads change no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.kernel import Expr, Fold, Kernel
from flowc.passes.convolve_copy import Convolution, bound, guess, steps
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Lowered, cost, declare_outputs, describe, inliner, named, nest
from flowc.passes.minimal_filters import BRING, FINISH, TAPS, Filter, Rule, constant, small_axes, tiled
from flowc.passes.problem import either, exists
from flowc.passes.schedule import Machine
from flowc.passes.tiles import ceil_div
from flowc.types import DType, Type, i64

CHANNELS = 16    # of the kernel, transformed by one task
TOGETHER = 4     # times the second-level cache: the transformed input that several tasks read from memory, at most
LINE = 16        # elements between places: many at a distance of pages meet in few sets of the cache
CREWS = (1, 2, 4, 8)  # numbers of threads that shall all be busy to the end

# ---- the input -------------------------------------------------------------------------------------------------------

class Lines:
    """The input with its padding: [image][channel][rows...][phase][tile].  The innermost axis is cut into one phase per
    result of a tile, so that neighbouring tiles read neighbouring elements."""

    def __init__(self, p: Convolution, small: Sequence[int], tiles: Sequence[DimLike], f: Filter):
        a = p.node.attrs
        self.p, self.phases, self.channels = p, f.out, p.x.shape[1]
        self.strides = [f.out if i in small else n for i, n in enumerate(a["strides"])]
        self.steps = [1 if i in small else n for i, n in enumerate(a["rhs_dilation"])]
        ends = [(t - 1) * s + ((f.size if i in small else n) - 1) * e + 1
                for i, (t, s, n, e) in enumerate(zip(tiles, self.strides, p.taps, self.steps, strict=True))]
        self.rows = [dmax(0, n) for n in ends[:-1]]
        self.span = tiles[-1] + 1
        self.line = self.phases * self.span
        self.plane = prod(self.rows) * self.line + p.width  # whole vectors are read and written at the end

    @property
    def size(self) -> DimLike:
        return self.p.images * self.channels * self.plane

    def bind(self, k: KernelBuilder) -> Lines:
        """The same in a kernel, its sizes by name."""
        out = copy(self)
        out.rows, out.span = [bound(k, n) for n in self.rows], bound(k, self.span)
        out.line, out.plane = out.phases * out.span, bound(k, self.plane)
        return out

    def begin(self, n: DimLike, channel: DimLike, tile: Sequence[DimLike]) -> DimLike:
        """Where the first element of a tile lies."""
        row = linear_index([t * s for t, s in zip(tile[:-1], self.strides, strict=False)], self.rows)
        return (n * self.channels + channel) * self.plane + row * self.line + tile[-1]

    def offset(self, channel: DimLike, at: Sequence[DimLike]) -> DimLike:
        """How far behind it another element of the tile lies, or one of a later channel."""
        row = linear_index([t * s for t, s in zip(at[:-1], self.steps, strict=False)], self.rows)
        return channel * self.plane + row * self.line + at[-1] % self.phases * self.span + at[-1] // self.phases

    def kernel(self, name: str) -> Kernel:
        """Brings every row to a line, whose ends are zeros, and from there to its phases."""
        p, a = self.p, self.p.node.attrs
        k = p.ctx.builder("c")
        inl = inliner(k, p.group, p.ctx)
        zero = k.b.const(0, p.acc)
        with k.loop(p.images, "parallel", "n") as n, k.loop(self.channels, "parallel", "c") as c:
            lines = self.bind(k)
            line, (skip, _) = k.alloc(p.acc, lines.line + lines.phases * p.width), a["padding"][-1]
            low = bound(k, dmin(dmax(0, skip), lines.line))
            high = bound(k, dmin(dmax(low, p.x.shape[-1] + skip), lines.line))

            def blank(target: str, first: DimLike, count: DimLike) -> None:
                with k.loop(count, "vector", "x", p.width) as j:
                    k.write(target, first + j, zero)
            blank(line, 0, low)
            blank(line, high, lines.line - high)
            with nest(k, lines.rows, "seq", "y") as rows:
                at, needs = [], []
                for i, gaps, (pad, _), size in zip(rows, a["lhs_dilation"], a["padding"], p.x.shape[2:], strict=False):
                    needs += [("divisible", i - pad, gaps)] if gaps > 1 else []
                    needs.append(("range", (i - pad) // gaps, size))
                    at.append(k.tidy((i - pad) // gaps))
                to = lines.begin(n, c, [0] * len(self.strides)) + linear_index(rows, lines.rows) * lines.line

                def bring() -> None:
                    with k.loop(high - low, "vector", "x", p.width) as j:
                        v = inl.value(p.x, (n, c, *at, k.tidy(low + j - skip)))
                        k.write(line, low + j, k.b.cast(v, p.acc))
                    with (k.loop(lines.phases, "seq", "f") as f, k.loop(ceildiv(lines.span, p.width), "seq", "s") as s,
                          k.loop(p.width, "vector", "j", p.width) as j):
                        v = k.b.load(line, lines.phases * (p.width * s + j) + f, p.acc)
                        k.write(name, to + f * lines.span + p.width * s + j, v)
                either(k, exists(k, needs, None), bring, lambda: blank(name, to, lines.line))
        k.buffer(name, p.acc, (self.size,), "out")
        return k.finish(p.ctx.dims, [f"the input of {p.node.op.name} with its padding, in phases"])


class Lanes(NamedTuple):
    """What transforms run over: ``number`` neighbours, in vectors of ``width``."""

    number: int
    width: int
    dtype: DType


def two_ways(k: KernelBuilder, rule: Rule, size: int, lanes: Lanes, half: str,
             read: Callable[[DimLike, DimLike, DimLike], Expr],
             write: Callable[[DimLike, DimLike, DimLike, Expr], None]) -> None:
    """``rule`` along the columns of a tile of ``lanes``, then along its rows: ``read(y, x, lane)``,
    ``write(y, x, lane, value)``.  A column and a row stand in the code once; what lies between is put down in
    ``half``, which costs little beside the products."""
    count = lanes.number
    width = min(lanes.width, 1 << (count - 1).bit_length())
    vectors, rest = (count // width, width) if count % width == 0 else (1, count)  # a body stands in the code once

    def between(y: DimLike, x: DimLike, j: DimLike) -> DimLike:
        return (size * y + x) * count + j
    with k.loop(size, "seq", "x") as at, k.loop(vectors, "seq", "s") as s, k.loop(rest, "vector", "j", width) as i:
        j = width * s + i
        column = rule(k.b, [k.let(read(y, at, j)) for y in range(size)])
        for y, value in enumerate(column):
            k.write(half, between(y, at, j), value)
    with k.loop(len(column), "seq", "y") as at, k.loop(vectors, "seq", "s") as s, k.loop(
            rest, "vector", "j", width) as i:
        j = width * s + i
        row = rule(k.b, [k.let(k.b.load(half, between(at, x, j), lanes.dtype)) for x in range(size)])
        for x, value in enumerate(row):
            write(at, x, j, value)


# ---- the form --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Tile:
    """``mr`` output channels times ``nr`` tiles in registers; ``mc`` output channels of a task."""

    mr: int
    nr: int
    mc: int

    def __str__(self) -> str:
        return f"{self.mr} channels x {self.nr} tiles, {self.mc} channels of a task"


def choose_tile(machine: Machine, dtype: DType, f: Filter, sizes: tuple[int, int, int], tiles: DimLike,
                waste: float) -> Tile:
    """The blocks of least time, in steps of a sum; the transformed input of a task stays in the second-level cache.
    ``waste``: lanes by which tiles are brought, for each tile."""
    groups, rows, depth = sizes
    apart = brought_apart(machine, dtype, f, sizes, tiles)
    lanes, registers = machine.lanes(dtype), 24 if machine.vector_bits >= 512 else 12
    best: tuple[float, Tile] | None = None
    for nv in (2, 3, 1):
        nr = nv * lanes
        if nv > 1 and f.places * depth * nr * dtype.bytes > machine.l2 * 3 // 4:
            continue
        blocks = guess(tiles) / nr if not isinstance(tiles, int) else ceil_div(tiles, nr)
        for most in range(max(1, registers // nv // 2), registers // nv + 1):
            mr = min(most, rows)
            panels = ceil_div(rows, mr)
            step = max(mr * nv + 0.25 * nv + 0.125 * mr, 8.0)
            for parts in range(1, min(panels, 8) + 1):
                mc = ceil_div(panels, parts)
                task, bring = f.places * mc * (depth * step + FINISH * mr * nv), f.places * BRING * depth * nv * waste
                count = groups * blocks * ceil_div(panels, mc)
                once = apart and mc < panels
                time = sum(max(count / t, ceil_div(int(count), t)) * (task + (not once) * bring)
                           + once * groups * blocks * bring / t for t in CREWS)
                if best is None or time < 0.999 * best[0]:
                    best = time, Tile(mr, nr, mc * mr)
    assert best is not None
    return best[1]


def brought_apart(machine: Machine, dtype: DType, f: Filter, sizes: tuple[int, int, int], tiles: DimLike) -> bool:
    """May tasks that want the same transformed input read it from memory?  It is little enough to stay near."""
    groups, _, depth = sizes
    return isinstance(tiles, int) and groups * f.places * depth * tiles * dtype.bytes <= TOGETHER * machine.l2


class Winograd:
    """The form with transformed tiles."""

    def __init__(self, p: Convolution, f: Filter):
        small = small_axes(p.node)
        assert small is not None and isinstance(p.rows, int)
        self.p, self.small, self.filter, self.out, self.rows = p, small, f, f.out, p.rows
        self.tiles = tiled(p.node, small, f)
        self.taps = [1 if i in small else t for i, t in enumerate(p.taps)]  # summed like channels
        self.count = p.images * prod(self.tiles)
        self.depth: int = guess(prod((p.channels, *self.taps)))
        sizes, width = (p.groups, p.rows, self.depth), guess(self.tiles[-1])
        self.tile = choose_tile(p.ctx.machine, p.acc, f, sizes, self.count, ceil_div(width, p.width) * p.width / width)
        self.apart = self.tile.mc < p.rows and brought_apart(p.ctx.machine, p.acc, f, sizes, self.count)
        self.panels = ceil_div(p.rows, self.tile.mr)
        self.lines = Lines(p, small, self.tiles, f)
        self.kernel_shape = (p.groups, self.panels, f.places, self.depth * self.tile.mr + LINE)
        # the only block of tiles that wants the transformed kernel makes it, panel by panel
        self.on_way = (isinstance(self.count, int) and self.count <= self.tile.nr and not constant(p.w)
                       and self.filter.places * self.depth * self.tile.mr * p.acc.bytes <= p.ctx.machine.l2 * 3 // 4)
        self.pitch = self.depth * self.tile.nr + p.width  # of a place; the last piece of a row brings too much
        name = p.ctx.name
        self.copied, self.transformed, self.brought = f"{name}.copy", f"{name}.kernel", f"{name}.tiles"
        self.brought_shape = p.groups, ceildiv(self.count, self.tile.nr), f.places * self.pitch

    def lower(self) -> Lowered:
        p = self.p
        size = self.lines.size
        kernel = Type(p.acc, self.kernel_shape)
        work = p.groups * p.rows * self.depth * self.filter.places
        out = Lowered([self.lines.kernel(self.copied)], {self.copied: Type(p.acc, (size,))}, [size * 2])
        if not self.on_way:
            out.kernels.append(self.transform_kernel())
            out.temps[self.transformed] = kernel
            out.work.append(work * 2)
        if self.apart:
            out.kernels.append(self.bring_all())
            out.temps[self.brought] = Type(p.acc, self.brought_shape)
            out.work.append(self.count * self.depth * p.groups * self.filter.places)
        out.kernels.append(self.multiply())
        out.work.append(self.count * work // 8 + p.images * p.rows * cost(p.group))
        return out

    # -- the kernel

    def taps_at(self, r: Idx, i: DimLike, j: DimLike) -> Idx:
        """Taps of an element of the window at (i, j); ``r``: those along other axes."""
        out = list(r)
        out[self.small[0]], out[self.small[1]] = i, j
        return tuple(out)

    def transform_kernel(self) -> Kernel:
        p = self.p
        k = p.ctx.builder("w")
        inl = inliner(k, p.group, p.ctx)
        with (nest(k, (p.groups, self.panels), "parallel", "p") as (g, panel),
              k.loop(ceildiv(p.channels, CHANNELS), "parallel", "cb") as block):
            self.transform(k, inl, (g, panel, block), self.transformed, self.panel_at(g, panel))
        k.buffer(self.transformed, p.acc, self.kernel_shape, "out")
        return k.finish(p.ctx.dims, [f"transform the kernel of {p.node.op.name}"])

    def panel_at(self, g: DimLike, panel: DimLike) -> DimLike:
        return linear_index((g, panel, 0, 0), self.kernel_shape)

    def transform(self, k: KernelBuilder, inl: Inliner, at: Idx, target: str, start: DimLike) -> None:
        """A block of channels of a panel.  Rows side by side first, since what is written lies in many places."""
        p, t, (g, panel, block) = self.p, self.tile, at
        taps, step = prod(p.taps), steps(p, p.w)
        first, here = CHANNELS * block, k.alloc(p.acc, CHANNELS * taps * t.mr)
        count = dmin(CHANNELS, p.channels - first)

        def put(i: DimLike, c: DimLike, r: Idx, kk: DimLike) -> None:
            row = g * p.rows + dmin(t.mr * panel + i, p.rows - 1)  # rows beyond the last are never stored
            k.write(here, t.mr * kk + i, k.b.cast(inl.value(p.w, (row, c, *map(k.tidy, r))), p.acc))
        back = step is not None and step[-1] < 0  # taps are walked over along memory, which turns them by whole rows
        with (k.loop(count, "seq", "c") as c, k.loop(taps, "seq", "k") as kk,
              k.loop(t.mr, "vector", "i", min(p.width, t.mr)) as i):
            kk = taps - 1 - kk if back else kk
            put(i, first + c, unravel(kk, p.taps), taps * c + kk)
        half = k.alloc(p.acc, self.filter.size * TAPS * t.mr)
        with nest(k, (count, *self.taps), "seq", "c") as (c, *r):
            to = start + linear_index((first + c, *r), (p.channels, *self.taps)) * t.mr
            two_ways(k, self.filter.kernel, TAPS, Lanes(t.mr, p.width, p.acc), half, lambda y, x, i: k.b.load(
                here, t.mr * linear_index((c, *self.taps_at(tuple(r), y, x)), (count, *p.taps)) + i, p.acc),
                lambda y, x, i, value: k.write(
                    target, to + (self.filter.size * y + x) * self.kernel_shape[-1] + i, value))

    # -- multiplying

    def multiply(self) -> Kernel:
        p, t = self.p, self.tile
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        k.buffer(self.copied, p.acc, (self.lines.size,))
        if not self.on_way:
            k.buffer(self.transformed, p.acc, self.kernel_shape)
        with (k.loop(p.groups, "parallel", "g") as g, k.loop(ceildiv(self.count, t.nr), "parallel", "t") as block,
              k.loop(ceildiv(p.rows, t.mc), "parallel", "mb") as mb):
            lines = self.lines.bind(k)
            self.first = t.nr * block
            self.end = bound(k, dmin(self.first + t.nr, self.count))
            pieces = self.find_pieces(k, lines, g)
            v, begin = self.brought, linear_index((g, block, 0), self.brought_shape)
            if self.apart:
                k.buffer(v, p.acc, self.brought_shape)
            else:
                v, begin = k.alloc(p.acc, self.filter.places * self.pitch), 0
                self.bring(k, lines, pieces, (v, begin), (0, p.channels))
            products = k.alloc(p.acc, self.filter.places * t.mr * t.nr)
            results = k.alloc(p.acc, t.mr * self.out ** 2 * t.nr + p.width)  # room for what the last piece looks at
            rows_out = k.alloc(p.acc, t.mr * self.out ** 2 * t.nr)
            here = k.alloc(p.acc, prod(self.kernel_shape[-2:])) if self.on_way else ""
            most = t.mc // t.mr
            with k.loop(dmin(most, self.panels - most * mb), "seq", "p") as panel:
                panel = most * mb + panel
                rows = bound(k, dmin(t.mr, p.rows - t.mr * panel))
                if here:
                    with k.loop(ceildiv(p.channels, CHANNELS), "seq", "cb") as some:
                        self.transform(k, inl, (g, panel, some), here, 0)
                self.products(k, (v, begin), products, here or self.transformed, 0 if here else self.panel_at(g, panel))
                finite = self.results(k, products, results)
                with k.if_(k.b.not_(finite)):
                    self.again(k, inl, lines, pieces, results, (g, t.mr * panel, rows))
                self.interleave(k, results, rows_out)
                self.epilogue(k, inl, rows_out, (g, t.mr * panel, rows))
        declare_outputs(k, p.group, p.ctx)
        kind = f"convolution: minimal filtering, tiles of {self.out} x {self.out}, {t}"
        return k.finish(p.ctx.dims, [*describe(p.group), kind])

    def find_pieces(self, k: KernelBuilder, lines: Lines, g: DimLike) -> tuple[DimLike, str, str, str]:
        """A row of tiles comes in pieces of a vector: how many the block has, where each begins in the copy and in the
        block, and how long it is."""
        p, t, width = self.p, self.tile, self.p.width
        row = bound(k, self.tiles[-1])
        whole = ceildiv(row, width)
        most = ((t.nr - 1) // row + 2) * whole if isinstance(row, int) else t.nr
        top = bound(k, self.first // row)
        rows = bound(k, (self.end - 1) // row - top + 1)

        def reach(q: DimLike) -> tuple[DimLike, DimLike]:
            start = bound(k, dmax(self.first, (top + q) * row))
            return start, bound(k, dmin(self.end, (top + q + 1) * row) - start)
        begun, ended = (bound(k, ceildiv(reach(q)[1], width)) for q in (0, rows - 1))
        begins, places, lengths = (k.alloc(i64, most) for _ in range(3))
        with k.loop(rows, "seq", "q") as q:
            start, length = reach(q)
            n, *at = (bound(k, d) for d in unravel(start, (p.images, *self.tiles)))
            begin = lines.begin(n, g * p.channels, at)
            before = named(k, dmin(q, 1) * begun + dmax(q - 1, 0) * whole, most)
            with k.loop(ceildiv(length, width), "seq", "s") as s:
                k.write(begins, before + s, k.b.index(k.tidy(begin + width * s)))
                k.write(places, before + s, k.b.index(start - self.first + width * s))
                k.write(lengths, before + s, k.b.index(length - width * s))
        count = begun + dmin(rows - 1, 1) * (dmax(rows - 2, 0) * whole + ended)
        return named(k, count, most), begins, places, lengths

    def piece(self, k: KernelBuilder, lines: Lines, pieces: tuple, q: DimLike) -> tuple[DimLike, DimLike]:
        """Where a piece begins, in the copy and in the block."""
        c = self.p
        last = lines.begin(c.images - 1, (c.groups - 1) * c.channels, [o - 1 for o in self.tiles])
        return (k.as_index(k.b.load(pieces[1], q, i64), 0, last),
                k.as_index(k.b.load(pieces[2], q, i64), 0, self.tile.nr - 1))

    def element(self, k: KernelBuilder, lines: Lines, begin: DimLike, c: DimLike, others: Sequence[DimLike]) -> Expr:
        """The input at a channel of the group and a place of the tile at ``begin``."""
        return k.b.load(self.copied, k.tidy(begin + lines.offset(c, others)), self.p.acc)

    def bring_all(self) -> Kernel:
        """The transformed input of all blocks, some channels by each task."""
        p, t = self.p, self.tile
        k = p.ctx.builder("t")
        k.buffer(self.copied, p.acc, (self.lines.size,))
        with (nest(k, self.brought_shape[:2], "parallel", "t") as (g, block),
              k.loop(ceildiv(p.channels, CHANNELS), "parallel", "cb") as some):
            lines = self.lines.bind(k)
            self.first = t.nr * block
            self.end = bound(k, dmin(self.first + t.nr, self.count))
            begin = linear_index((g, block, 0), self.brought_shape)
            part = CHANNELS * some, dmin(CHANNELS, p.channels - CHANNELS * some)
            self.bring(k, lines, self.find_pieces(k, lines, g), (self.brought, begin), part)
        k.buffer(self.brought, p.acc, self.brought_shape, "out")
        return k.finish(p.ctx.dims, [f"transform the input of {p.node.op.name}"])

    def bring(self, k: KernelBuilder, lines: Lines, pieces: tuple, v: tuple[str, DimLike],
              channels: tuple[DimLike, DimLike]) -> None:
        """V = Bt d B, at a place of a buffer, for channels first .. first + count - 1.  What a piece brings beyond its
        end is written over by the next, or by the next channel's, unless another task brings that."""
        p, t, size = self.p, self.tile, self.filter.size
        half = k.alloc(p.acc, self.filter.places * p.width)
        with (nest(k, (channels[1], *self.taps), "seq", "c") as (c, *r), k.loop(pieces[0], "seq", "q") as q):
            begin, to = self.piece(k, lines, pieces, q)
            at = linear_index((channels[0] + c, *r), (p.channels, *self.taps)) * t.nr + to

            def write(y: DimLike, x: DimLike, j: DimLike, value: Expr) -> None:
                inside = k.b.lt(k.b.index(to + j), k.b.index(t.nr)) if self.apart else None
                k.write(v[0], v[1] + self.pitch * (size * y + x) + at + j, value, inside)
            two_ways(k, self.filter.input, size, Lanes(p.width, p.width, p.acc), half, lambda y, x, j: self.element(
                k, lines, begin + j, channels[0] + c, self.taps_at(tuple(r), y, x)), write)

    def products(self, k: KernelBuilder, v: tuple[str, DimLike], products: str, kernel: str, start: DimLike) -> None:
        p, t = self.p, self.tile
        with k.loop(self.filter.places, "seq", "e") as place:
            acc = k.acc(p.acc, k.b.const(0, p.acc), (t.mr, t.nr))
            with (k.loop(self.depth, "seq", "k") as kk, k.loop(t.mr, "unroll", "i") as i,
                  k.loop(t.nr, "vector", "j", p.width) as j):
                w = k.b.load(kernel, start + self.kernel_shape[-1] * place + t.mr * kk + i, p.acc)
                x = k.b.load(v[0], v[1] + self.pitch * place + t.nr * kk + j, p.acc)
                k.set(acc, k.b.fma(w, x, k.get(acc, i, j)), i, j)
            with k.loop(t.mr, "unroll", "i") as i, k.loop(t.nr, "vector", "j", p.width) as j:
                k.write(products, (t.mr * place + i) * t.nr + j, k.get(acc, i, j))

    def result(self, i: DimLike, y: DimLike, x: DimLike, at: DimLike) -> DimLike:
        return linear_index((i, y, x), (self.tile.mr, self.out, self.out)) * self.tile.nr + at

    def results(self, k: KernelBuilder, products: str, results: str) -> Expr:
        """Y = At M A, and whether all of it is finite."""
        p, t, b, size = self.p, self.tile, k.b, self.filter.size
        seen = k.acc(p.acc, b.const(0, p.acc), (p.width,))
        half = k.alloc(p.acc, self.filter.places * p.width)
        with k.loop(t.mr, "seq", "i") as i, k.loop(t.nr // p.width, "seq", "s") as s:
            def put(y: DimLike, x: DimLike, j: DimLike, value: Expr) -> None:
                value = k.let(value)
                k.write(results, self.result(i, y, x, p.width * s + j), value)
                k.set(seen, b.fma(value, b.const(0, p.acc), k.get(seen, j)), j)
            two_ways(k, self.filter.output, size, Lanes(p.width, p.width, p.acc), half, lambda y, x, j: b.load(
                products, (t.mr * (size * y + x) + i) * t.nr + p.width * s + j, p.acc), put)
        total, left, right = (k.fresh(n) for n in ("r", "x", "y"))
        k.add(Fold((total,), (seen,), p.width, (left,), (right,), (b.add(b.ref(left, p.acc), b.ref(right, p.acc)),)))
        k.scopes[-1].names.add(total)
        return k.let(b.eq(b.ref(total, p.acc), b.const(0, p.acc)))

    def again(self, k: KernelBuilder, inl: Inliner, lines: Lines, pieces: tuple, results: str, panel: Idx) -> None:
        """Results that are not finite as the sums are written: one chain over channels and taps, in order."""
        p, b, zero = self.p, k.b, k.b.const(0, self.p.acc)
        g, first, rows = panel
        with (k.loop(pieces[0], "seq", "q") as q, k.loop(rows, "seq", "i") as i,
              k.loop(self.out, "seq", "y") as y):
            begin, to = self.piece(k, lines, pieces, q)
            length = k.b.load(pieces[3], q, i64)
            acc = k.acc(p.acc, zero, (self.out, p.width))
            with nest(k, (p.channels, *p.taps), "seq", "c") as r:
                w = k.let(b.cast(inl.value(p.w, (g * p.rows + first + i, *r)), p.acc))
                with k.loop(self.out, "unroll", "x") as x, k.loop(p.width, "vector", "j", p.width) as j:
                    taps = list(r[1:])
                    taps[self.small[0]], taps[-1] = taps[self.small[0]] + y, taps[-1] + x
                    d = self.element(k, lines, begin + j, r[0], taps)
                    k.set(acc, b.fma(w, d, k.get(acc, x, j)), x, j)
            with k.loop(self.out, "unroll", "x") as x, k.loop(p.width, "vector", "j", p.width) as j:
                at = self.result(i, y, x, to + j)
                old = k.let(b.load(results, at, p.acc))
                keep = b.or_(b.eq(b.mul(old, zero), zero), b.ge(b.index(j), length))
                k.write(results, at, b.select(keep, old, k.get(acc, x, j)))

    def interleave(self, k: KernelBuilder, results: str, rows: str) -> None:
        """Results of a row of tiles side by side as in the row of the output."""
        p, t = self.p, self.tile
        with (k.loop(t.mr, "seq", "i") as i, k.loop(self.out, "seq", "y") as y, k.loop(self.out, "seq", "x") as x,
              k.loop(t.nr, "vector", "j", p.width) as j):
            v = k.b.load(results, self.result(i, y, x, j), p.acc)
            k.write(rows, self.result(i, y, 0, 0) + self.out * j + x, v)

    def epilogue(self, k: KernelBuilder, inl: Inliner, results: str, panel: Idx) -> None:
        """The rows of the output that the block touches."""
        p, (g, first, rows) = self.p, panel
        row = bound(k, self.tiles[-1])
        top = bound(k, self.first // row)
        with k.loop((self.end - 1) // row - top + 1, "seq", "q") as q:
            start = bound(k, dmax(self.first, (top + q) * row))
            length = bound(k, dmin(self.end, (top + q + 1) * row) - start)
            n, *at = (bound(k, d) for d in unravel(start, (p.images, *self.tiles)))
            column = self.out * at[-1]
            count = bound(k, dmin(self.out * length, p.outs[-1] - column))
            with k.loop(self.out, "seq", "y") as y:
                line = self.out * at[self.small[0]] + y
                where = exists(k, [("range", line, p.outs[self.small[0]])], None)

                def finish() -> None:
                    with k.loop(rows, "seq", "i") as i, k.loop(count, "vector", "x", p.width) as x:
                        place = list(at)
                        place[self.small[0]], place[-1] = line, column + x
                        v = k.b.load(results, self.result(i, y, 0, self.out * (start - self.first) + x), p.acc)
                        p.finish(k, inl, p.output(n, g, first + i, place), v)
                if where is None:
                    finish()
                else:
                    with k.if_(where):
                        finish()
