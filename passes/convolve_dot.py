"""Convolutions whose kernel is large and whose result is small: the taps are the lanes.

Here: that form.  Not here: when it is taken (convolve.py).

The gradient of a convolution with respect to its kernel is such a convolution: the image slides over the cotangent,
a few places only, and all pixels are summed.  Taps along the last axis are lanes, for the input and the kernel alike:

    for piece of the channels, group, place, panels of rows (mo) and of one other output axis (mc) in parallel:
        for channel of the piece, taps before the last, vector of taps: tile[mo][mc][lanes] += kernel * input
        fold the lanes of every result; store, or keep for the sum of the pieces

Number of lanes, pieces and trees depend on sizes and dtype only: all machines and any number of threads give the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod as int_prod

from flowc.dims import DimLike, ceildiv, dmin, linear, prod
from flowc.kernel import Expr, Fold, Kernel
from flowc.passes.convolve_copy import Convolution, Copy, bound, guess, plain
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index
from flowc.passes.lowering import Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.schedule import Machine
from flowc.passes.tiles import ceil_div
from flowc.types import Type

LANE_BITS = 512   # of the lanes of one result
RESULTS = 16      # results that make a task, roughly
TASKS = 32        # tasks wanted before the channels are cut into pieces


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
        p, lanes = self.p, self.lanes
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        places: list[DimLike] = [p.images, *p.outs]
        others = [n for i, n in enumerate(places) if i != self.column]
        with (k.loop(self.pieces, "parallel", "p") as piece, k.loop(p.groups, "parallel", "g") as g,
              nest(k, others, "parallel", "o") as other,
              k.loop(ceildiv(self.columns, self.mc), "parallel", "cb") as cb,
              k.loop(ceildiv(p.rows, self.mo), "parallel", "rb") as rb):
            def place(column: DimLike) -> Idx:
                at = list(other)
                at.insert(self.column, column)
                return tuple(at)
            tile = k.alloc(p.acc, self.mo * self.mc * lanes)
            self._multiply(k, inl, tile, piece, g, place, (rb * self.mo, cb * self.mc))
            with (k.loop(dmin(self.mo, p.rows - self.mo * rb), "seq", "i") as i,
                  k.loop(dmin(self.mc, self.columns - self.mc * cb), "seq", "j") as j):
                n, *at = place(self.mc * cb + j)
                o = p.output(n, g, self.mo * rb + i, at)
                value = self._folded(k, tile, (self.mc * i + j) * lanes)
                if self.pieces == 1:
                    p.finish(k, inl, o, value)
                else:
                    k.write(f"{self.name}.pieces", linear_index((piece, *o), (self.pieces, *p.node.shape)), value)
        if self.pieces == 1:
            declare_outputs(k, p.group, p.ctx)
        else:
            k.buffer(f"{self.name}.pieces", p.acc, (self.pieces, *p.node.shape), "out")
        note = f"convolution: {self.mo} channels x {self.mc} places, taps as {lanes} lanes, {self.pieces} pieces"
        return k.finish(p.ctx.dims, [*describe(p.group), note])

    def _multiply(self, k: KernelBuilder, inl: Inliner, tile: str, piece: DimLike, g: DimLike,
                  place: Callable[[DimLike], Idx], first: tuple[DimLike, DimLike]) -> None:
        p, lanes, mo, mc = self.p, self.lanes, self.mo, self.mc
        row, column = first
        acc = k.acc(p.acc, k.b.const(0, p.acc), (mo, mc, lanes))
        start = self.per_piece * piece
        *before, last = (bound(k, n) for n in p.taps)
        read_x, read_w = self._input(k, inl), self._kernel(k, inl)
        with (k.loop(dmin(self.per_piece, p.channels - start), "seq", "c") as c,
              nest(k, before, "seq", "k") as lead, k.loop(ceildiv(last, lanes), "seq", "v") as v,
              k.loop(mo, "unroll", "i") as i, k.loop(mc, "unroll", "j") as j,
              k.loop(lanes, "vector", "l", p.width) as lane):
            taps = (*lead, v * lanes + lane)
            where = None
            if not (isinstance(last, int) and last % lanes == 0):
                where = k.b.lt(k.b.index(taps[-1]), k.b.index(last))
            n, *at = place(dmin(column + j, self.columns - 1))  # beyond the last: never stored
            w = read_w(g * p.rows + dmin(row + i, p.rows - 1), start + c, taps, where)
            x = read_x(n, g, start + c, at, taps, where)
            k.set(acc, p.product(k, x, w, k.get(acc, i, j, lane)), i, j, lane)
        with (k.loop(mo, "unroll", "i") as i, k.loop(mc, "unroll", "j") as j,
              k.loop(lanes, "vector", "l", p.width) as lane):
            k.write(tile, (mc * i + j) * lanes + lane, k.get(acc, i, j, lane))

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

    def _folded(self, k: KernelBuilder, tile: str, first: DimLike) -> Expr:
        p, b = self.p, k.b
        acc = k.acc(p.acc, b.const(0, p.acc), (self.lanes,))
        with k.loop(self.lanes, "vector", "l", p.width) as lane:
            k.set(acc, b.load(tile, first + lane, p.acc), lane)
        left, right, out = k.fresh("x"), k.fresh("y"), k.fresh("r")
        both = b.add(b.ref(left, p.acc), b.ref(right, p.acc))
        k.add(Fold((out,), (acc,), self.lanes, (left,), (right,), (both,)))
        k.scopes[-1].names.add(out)
        return b.ref(out, p.acc)

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
