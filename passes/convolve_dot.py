"""Convolutions whose kernel is large and whose result is small: the taps are the lanes.

Here: that form.  Not here: when it is taken (convolve.py).

The gradient of a convolution with respect to its kernel is such a convolution: the image slides over the cotangent,
a few places only, and all pixels are summed.  Taps along the last axis are lanes, for the input and the kernel alike:

    for piece of the channels, group, place, panels of rows (mo) and of one other output axis (mc) in parallel:
        for channel of the piece, taps before the last, vector of taps: tile[mo][mc][lanes] += kernel * input
            (large images: several tiles, in turns after some lines of taps)
        fold the lanes of every result; store, or keep for the sum of the pieces

Number of lanes, pieces and trees depend on sizes and dtype only: all machines and any number of threads give the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isqrt
from math import prod as int_prod
from typing import NamedTuple

from flowc.dims import DimLike, ceildiv, dmin, linear, prod
from flowc.kernel import Expr, Kernel
from flowc.passes.convolve_copy import Convolution, Copy, bound, folded, guess, plain
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.schedule import Machine
from flowc.passes.tiles import ceil_div
from flowc.types import Type

LANE_BITS = 512   # of the lanes of one result
RESULTS = 16      # results that make a task, roughly
TASKS = 32        # tasks wanted before the channels are cut into pieces
CREW = 16         # and before tiles are joined to larger ones
TURNS = 64        # tiles of one task


class Blocks(NamedTuple):
    """A task has ``panels`` of rows times ``tiles`` of places, which take turns after every ``lines`` of taps: these
    stay in the second-level cache meanwhile, and so do the sums.  No lines: one tile, all taps."""

    panels: int = 1
    tiles: int = 1
    lines: int = 0

    def __str__(self) -> str:
        return f"{self.panels} x {self.tiles} tiles take turns after {self.lines} lines"


class Taps:
    """The form with taps as lanes."""

    def __init__(self, p: Convolution):
        self.p, self.axes = p, p.axes(True)
        self.lanes = LANE_BITS // max(32, p.acc.bits)
        self.copy = Copy(p, self.axes)
        self.slack = self.lanes + self.copy.shared
        self.x_in_place = all(a.plain for a in self.axes) and plain(p, p.x) and self._adjacent(p.x.shape, True)
        self.w_in_place = plain(p, p.w) and self._adjacent(p.w.shape, False)
        places: list[DimLike] = [p.images, *p.outs]
        self.column = max((i for i, n in enumerate(places) if n != 1), default=0)  # the output axis in the tile
        self.columns = places[self.column]
        self.mo, self.mc = choose_tile(p.ctx.machine, self.lanes * p.acc.bits, p.rows, self.columns)
        self.size = self.mo * self.mc * self.lanes
        # tiles: all places, those along one axis a few at a time
        self.spread = (*(n for i, n in enumerate(places) if i != self.column), ceildiv(self.columns, self.mc))
        self.tiles, self.panels = prod(self.spread), ceildiv(p.rows, self.mo)
        self.blocks = choose_blocks(p, self.mo, self.panels, self.tiles)
        tasks = int_prod(map(guess, places)) * p.groups * guess(p.rows) // RESULTS
        wanted = 1 if tasks >= TASKS else min(guess(p.channels), ceil_div(TASKS, max(1, tasks)))
        self.per_piece = ceildiv(p.channels, wanted)
        self.pieces = wanted
        if isinstance(p.channels, int) and isinstance(self.per_piece, int):  # no empty ones
            self.pieces = ceil_div(p.channels, max(1, self.per_piece))
        self.name = p.ctx.name

    def _adjacent(self, shape: tuple[DimLike, ...], input: bool) -> bool:
        """Are neighbours along the last axis neighbours in memory?"""
        p, k = self.p, self.p.ctx.builder("probe")
        with nest(k, shape, "seq") as idx:
            v = inliner(k, p.group, p.ctx).value(p.x if input else p.w, idx)
            return isinstance(idx[-1], int) or linear(v.attr[1], str(idx[-1]))[0] == 1  # type: ignore[index]

    def lower(self) -> Lowered:
        p, out = self.p, Lowered()
        if not self.x_in_place:
            kernel, kind, work = self.copy.kernel(f"{self.name}.copy", self.slack)
            out.kernels.append(kernel)
            out.work.append(work * 2)
            out.temps[f"{self.name}.copy"] = kind
        if not self.w_in_place:
            out.kernels.append(self._copy_weights())
            out.work.append(p.w.type.size * (cost(p.group) + 1))
            out.temps[f"{self.name}.kernel"] = Type(p.acc, p.w.shape)
        out.kernels.append(self._main())
        out.work.append(p.node.type.size * prod((p.channels, *p.taps)) // 4)
        if self.pieces != 1:
            out.temps[f"{self.name}.pieces"] = Type(p.acc, (self.pieces, *p.node.shape))
            out.kernels.append(self._combine())
            out.work.append(p.node.type.size * (self.pieces + cost(p.group)))
        return out

    def _copy_weights(self) -> Kernel:
        """The kernel operand in memory, computed once."""
        p = self.p
        k = p.ctx.builder("w")
        inl = inliner(k, p.group, p.ctx)
        shape = p.w.shape
        with (nest(k, shape[:2], "parallel") as o, nest(k, shape[2:-1], "seq", "y") as q,
              k.loop(shape[-1], "vector", "x", p.width) as j):
            k.write(f"{self.name}.kernel", linear_index((*o, *q, j), shape),
                    k.b.cast(inl.value(p.w, (*o, *q, j)), p.acc))
        k.buffer(f"{self.name}.kernel", p.acc, shape, "out")
        return k.finish(p.ctx.dims, [f"the kernel of {p.node.op.name}"])

    def _main(self) -> Kernel:
        p, b = self.p, self.blocks
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        with (k.loop(self.pieces, "parallel", "p") as piece, k.loop(p.groups, "parallel", "g") as g,
              k.loop(ceildiv(self.tiles, b.tiles), "parallel", "tb") as tb,
              k.loop(ceildiv(self.panels, b.panels), "parallel", "rb") as rb):
            table = k.alloc(p.acc, b.panels * b.tiles * self.size)
            self._multiply(k, inl, table, piece, g, (rb, tb))
            with self._each(k, (rb, tb)) as (panel, place, column, first), k.loop(
                    dmin(self.mo, p.rows - self.mo * panel), "seq", "i") as i, k.loop(
                    dmin(self.mc, self.columns - column), "seq", "j") as j:
                n, *at = place(column + j)
                o = p.output(n, g, self.mo * panel + i, at)
                value = folded(k, p, self.lanes, lambda lane: k.b.load(
                    table, first + (self.mc * i + j) * self.lanes + lane, p.acc))
                if self.pieces == 1:
                    p.finish(k, inl, o, value)
                else:
                    k.write(f"{self.name}.pieces", linear_index((piece, *o), (self.pieces, *p.node.shape)), value)
        if self.pieces == 1:
            declare_outputs(k, p.group, p.ctx)
        else:
            k.buffer(f"{self.name}.pieces", p.acc, (self.pieces, *p.node.shape), "out")
        note = f"convolution: {self.mo} channels x {self.mc} places, taps as {self.lanes} lanes, {self.pieces} pieces"
        return k.finish(p.ctx.dims, [*describe(p.group), note + (f", {b}" if b.lines else "")])

    @contextmanager
    def _each(self, k: KernelBuilder, task: tuple[DimLike, DimLike]
              ) -> Iterator[tuple[DimLike, Callable[[DimLike], Idx], DimLike, DimLike]]:
        """The tiles of a task: panel of rows, the place at a column, the first column, where the tile is kept."""
        b, (rb, tb) = self.blocks, task
        panels: DimLike = 1 if b.panels == 1 else dmin(b.panels, self.panels - b.panels * rb)
        tiles: DimLike = 1 if b.tiles == 1 else dmin(b.tiles, self.tiles - b.tiles * tb)
        with k.loop(panels, "seq", "r") as r, k.loop(tiles, "seq", "t") as t:
            *other, cb = (bound(k, i) for i in unravel(b.tiles * tb + t, self.spread))

            def place(column: DimLike) -> Idx:
                return (*other[:self.column], column, *other[self.column:])
            yield b.panels * rb + r, place, self.mc * cb, (b.tiles * r + t) * self.size

    def _multiply(self, k: KernelBuilder, inl: Inliner, table: str, piece: DimLike, g: DimLike,
                  task: tuple[DimLike, DimLike]) -> None:
        p, b = self.p, self.blocks
        *before, last = (bound(k, n) for n in p.taps)
        read_x, read_w = self._input(k, inl), self._kernel(k, inl)
        start = self.per_piece * piece
        channels = dmin(self.per_piece, p.channels - start)

        def add(acc: str, panel: DimLike, place: Callable[[DimLike], Idx], column: DimLike, c: DimLike, lead: Idx
                ) -> None:
            """The products of one line of taps."""
            with (k.loop(ceildiv(last, self.lanes), "seq", "v") as v, k.loop(self.mo, "unroll", "i") as i,
                  k.loop(self.mc, "unroll", "j") as j, k.loop(self.lanes, "vector", "l", p.width) as lane):
                taps = (*lead, v * self.lanes + lane)
                where = None
                if not (isinstance(last, int) and last % self.lanes == 0):
                    where = k.b.lt(k.b.index(taps[-1]), k.b.index(last))
                n, *at = place(dmin(column + j, self.columns - 1))  # beyond the last: never stored
                w = read_w(g * p.rows + dmin(self.mo * panel + i, p.rows - 1), start + c, taps, where)
                x = read_x(n, g, start + c, at, taps, where)
                k.set(acc, p.product(k, x, w, k.get(acc, i, j, lane)), i, j, lane)

        def move(acc: str, first: DimLike, load: bool) -> None:
            with (k.loop(self.mo, "unroll", "i") as i, k.loop(self.mc, "unroll", "j") as j,
                  k.loop(self.lanes, "vector", "l", p.width) as lane):
                at = first + (self.mc * i + j) * self.lanes + lane
                if load:
                    k.set(acc, k.b.load(table, at, p.acc), i, j, lane)
                else:
                    k.write(table, at, k.get(acc, i, j, lane))

        def registers() -> str:
            return k.acc(p.acc, k.b.const(0, p.acc), (self.mo, self.mc, self.lanes))
        if not b.lines:
            with self._each(k, task) as (panel, place, column, first):
                acc = registers()
                with k.loop(channels, "seq", "c") as c, nest(k, before, "seq", "k") as lead:
                    add(acc, panel, place, column, c, lead)
                move(acc, first, False)
            return
        with k.loop(b.panels * b.tiles * self.size, "vector", "z", p.width) as z:
            k.write(table, z, k.b.const(0, p.acc))
        with (k.loop(channels, "seq", "c") as c, nest(k, before[:-1], "seq", "k") as lead,
              k.loop(ceildiv(before[-1], b.lines), "seq", "lb") as lb,
              self._each(k, task) as (panel, place, column, first)):
            acc = registers()
            move(acc, first, True)
            with k.loop(dmin(b.lines, before[-1] - b.lines * lb), "seq", "y") as y:
                add(acc, panel, place, column, c, (*lead, b.lines * lb + y))
            move(acc, first, False)

    def _input(self, k: KernelBuilder, inl: Inliner) -> Callable[..., Expr]:
        p, copy = self.p, self.copy.bind(k)
        name = f"{self.name}.copy"
        if not self.x_in_place:
            k.buffer(name, p.acc, (self.copy.size(p.images, copy.all_channels, self.slack),))

        def read(n: DimLike, g: DimLike, c: DimLike, at: Idx, taps: Idx, where: Expr | None) -> Expr:
            if self.x_in_place:
                o = (n, 0, *at) if p.groups == 1 else (n, g, 0, *at)
                return inl.value(p.x, tuple(map(k.tidy, p.access.lhs(o, (c, *taps))[0])), where)
            phases, offset = copy.at(taps, at)
            index = copy.start(n, copy.all_channels, g * p.channels + c, phases) + offset
            return k.b.load(name, k.tidy(index), p.acc, where)
        return read

    def _kernel(self, k: KernelBuilder, inl: Inliner) -> Callable[..., Expr]:
        p, name = self.p, f"{self.name}.kernel"
        if not self.w_in_place:
            k.buffer(name, p.acc, p.w.shape)

        def read(row: DimLike, c: DimLike, taps: Idx, where: Expr | None) -> Expr:
            if self.w_in_place:
                return inl.value(p.w, (row, c, *taps), where)
            return k.b.load(name, k.tidy(linear_index((row, c, *taps), p.w.shape)), p.acc, where)
        return read

    def _combine(self) -> Kernel:
        """Sums of the pieces in order, and what is computed from them."""
        p = self.p
        k = p.ctx.builder("s")
        inl = inliner(k, p.group, p.ctx)
        name = k.buffer(f"{self.name}.pieces", p.acc, (self.pieces, *p.node.shape))
        shape = p.node.shape
        with nest(k, shape[:-1], "parallel", "o") as lead, k.loop(shape[-1], "vector", "j", p.width) as j:
            total = k.acc(p.acc, k.b.const(0, p.acc))
            with k.loop(self.pieces, "seq", "p") as piece:
                part = k.b.load(name, linear_index((piece, *lead, j), (self.pieces, *shape)), p.acc)
                k.set(total, k.b.add(k.get(total), part))
            p.finish(k, inl, (*lead, j), k.get(total))
        declare_outputs(k, p.group, p.ctx)
        return k.finish(p.ctx.dims, [*describe(p.group), f"the sum of {self.pieces} pieces"])


def choose_tile(machine: Machine, bits: int, rows: DimLike, columns: DimLike) -> tuple[int, int]:
    """Results in registers: as many products as possible for one load."""
    registers = (24 if machine.vector_bits >= 512 else 12) // max(1, bits // machine.vector_bits)
    best: tuple[float, int, int] | None = None
    for mc in range(1, min(guess(columns), 9) + 1):
        for mo in range(1, min(guess(rows), registers // mc) + 1):
            tiles = ceil_div(guess(rows), mo) * ceil_div(guess(columns), mc)
            time = tiles * (max(mo * mc, 2 * mc + mo, 6) + 1)
            if best is None or time < best[0]:
                best = time, mo, mc
    return (1, 1) if best is None else best[1:]


def choose_blocks(p: Convolution, mo: int, panels: DimLike, tiles: DimLike) -> Blocks:
    """One tile, where few taps lie along a line or in a column of lines."""
    *before, last = p.taps
    if not before or not isinstance(before[-1], int) or not isinstance(last, int) or not isinstance(
            panels, int) or not isinstance(tiles, int):
        return Blocks()
    lines = max(1, 2 * p.ctx.machine.l1 // (mo * last * p.acc.bytes))
    most = min(TURNS, panels * tiles // CREW)
    if lines >= before[-1] or most < 4:
        return Blocks()
    across = ceil_div(panels, ceil_div(panels, max(isqrt(most), most // tiles)))
    return Blocks(across, min(tiles, most // across), ceil_div(before[-1], ceil_div(before[-1], lines)))
