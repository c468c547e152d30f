"""Convolutions of three results along two axes, whose kernel is an image, by minimal filtering.

Here: that form; the gradient of a convolution of three taps with respect to its kernel is such a convolution.  Not
here: the transforms, when they pay, what they do to rounding (minimal_filters.py), the other forms (convolve.py).

Transposing the bilinear form of convolve_winograd.py with respect to its kernel: a tile y of the image that is the
kernel, of m x m elements, and the tile d of the input that it meets add G' ((A y At) * (Bt d B)) G to the 3 x 3
results.  The last step is taken once, after all tiles have been added: for each place of a transformed tile that is a
product of matrices, whose sums run over the tiles of all channels (the images that a gradient is summed over):

    copy the input and the kernel with their padding, the axis of which there is a result for each innermost
    for part of the tiles, group, block of images (rows), block of output channels (columns) in parallel:
        for some tiles (kc):
            for tile:    U[place][tile][rows] = Bt d B;    V[place][tile][columns] = A y At
            for place, register tiles:                     M[place][rows][columns] += U * V
        for row: 3 x 3 results from M; epilogue, store, or keep for the sum of the parts
    for group, row in parallel: add the parts in order; epilogue, store

What is not finite is computed again as written, as there.  The number of parts is a matter of sizes alone, each sum a
chain over the tiles of its part, so machines and threads change no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowc.dataclass import dataclass, replace
from flowc.dims import DimLike, ceildiv, dmax, dmin, prod
from flowc.graph import Node
from flowc.kernel import Expr, Fold, Kernel
from flowc.passes.convolve_copy import Convolution, bound, guess, steps
from flowc.passes.convolve_winograd import Lanes, two_ways
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.minimal_filters import SIDE, TAPS, Filter, parts_of
from flowc.passes.problem import either, exists
from flowc.passes.schedule import Machine
from flowc.passes.tiles import ceil_div
from flowc.types import DType, Type

LINE = 16        # elements between places: many at a distance of pages meet in few sets of the cache
MOST = 32        # tiles that are added at a time, at most


@dataclass(frozen=True)
class Tile:
    """``mr`` x ``nr`` results in registers, ``mc`` x ``nc`` of a task; ``kc`` tiles at a time."""

    mr: int
    nr: int
    mc: int
    nc: int
    kc: int

    def __str__(self) -> str:
        return f"block {self.mc}x{self.nc}, tile {self.mr}x{self.nr}, {self.kc} tiles at a time"


def choose_tile(machine: Machine, dtype: DType, f: Filter, rows: int, columns: int) -> Tile:
    """Registers that waste least; as many results of a task as leave room for what is added to them."""
    lanes, registers = machine.lanes(dtype), 24 if machine.vector_bits >= 512 else 12
    best: tuple[float, int, int] | None = None
    for nv in (2, 3, 1):
        for mr in range(1, min(registers // nv, rows, 8) + 1):
            steps = ceil_div(rows, mr) * ceil_div(columns, nv * lanes) * (max(mr * nv, 8) + 0.25 * nv + 0.125 * mr)
            if best is None or steps < 0.999 * best[0]:
                best = steps, mr, nv * lanes
    assert best is not None
    _, mr, nr = best

    def block(size: int, unit: int) -> int:
        units = ceil_div(size, unit)
        return unit * ceil_div(units, ceil_div(units * unit, max(unit, SIDE)))
    mc, nc = block(rows, mr), block(columns, nr)
    kc = machine.l2 // 2 // (f.places * (mc + nc) * dtype.bytes)
    return Tile(mr, nr, mc, nc, max(8, min(MOST, kc // 8 * 8)))


class Lines:
    """An operand with its padding, [plane][row][position][lane]: ``plane`` and ``lane`` are its first two axes."""

    def __init__(self, p: Convolution, node: Node, name: str, sizes: tuple[int, int, int],
                 skip: Sequence[int], order: Callable[[DimLike, DimLike], Idx]):
        self.p, self.node, self.name, self.skip, self.order = p, node, name, skip, order
        self.rows, self.span, self.lanes = sizes
        self.pitch = ceil_div(self.lanes, p.width) * p.width

    def type(self, planes: DimLike, slack: int) -> Type:
        return Type(self.p.acc, (planes * self.rows * self.span * self.pitch + slack,))

    def at(self, plane: DimLike, y: DimLike, x: DimLike) -> DimLike:
        return linear_index((plane, y, x), (0, self.rows, self.span)) * self.pitch

    def kernel(self, planes: DimLike, slack: int) -> Kernel:
        p, name = self.p, self.name
        k = p.ctx.builder(name[-2:])
        inl, zero = inliner(k, p.group, p.ctx), k.b.const(0, p.acc)
        height, width = self.node.shape[-2:]
        low = dmin(dmax(0, self.skip[1]), self.span)
        high = dmin(dmax(low, width + self.skip[1]), self.span)

        def blank(first: DimLike, count: DimLike) -> None:
            with k.loop(count * self.pitch, "vector", "z", p.width) as z:
                k.write(name, first + z, zero)
        with k.loop(planes, "parallel", "q") as q, k.loop(self.rows, "parallel", "y") as y:
            to, line = self.at(q, y, 0), k.tidy(y - self.skip[0])
            apart = "" if steps(p, self.node) else k.alloc(p.acc, p.width * self.span)

            def bring() -> None:
                def value(c: DimLike, x: DimLike) -> Expr:
                    at = (*self.order(c, q), line, k.tidy(low + x - self.skip[1]))
                    return k.b.cast(inl.value(self.node, at), p.acc)

                def copy(first: DimLike, count: int) -> None:
                    if apart:  # what is computed or converted is, by whole vectors, before it is turned
                        with k.loop(count, "seq", "c") as c, k.loop(high - low, "vector", "x", p.width) as x:
                            k.write(apart, self.span * c + x, value(first + c, x))
                    with k.loop(high - low, "seq", "x") as x, k.loop(count, "vector", "c", p.width) as c:
                        v = k.b.load(apart, self.span * c + x, p.acc) if apart else value(first + c, x)
                        k.write(name, to + (low + x) * self.pitch + first + c, v)
                with k.loop(self.lanes // p.width, "seq", "b") as block:
                    copy(p.width * block, p.width)
                if self.lanes % p.width:
                    copy(self.lanes // p.width * p.width, self.lanes % p.width)
                blank(to, low)
                blank(to + high * self.pitch, self.span - high)
            either(k, exists(k, [("range", line, height)], None), bring, lambda: blank(to, self.span))
        k.buffer(name, p.acc, self.type(planes, slack).shape, "out")
        return k.finish(p.ctx.dims, [f"an operand of {p.node.op.name} with its padding, lines of neighbours"])


class Gradient:
    """The form."""

    def __init__(self, p: Convolution, f: Filter):
        self.p, self.filter = p, f
        self.rows, self.columns = guess(p.images), guess(p.rows)
        height, width = map(guess, p.taps)
        self.tiles = (p.channels, ceil_div(height, f.out), ceil_div(width, f.out))
        self.count = prod(self.tiles)
        self.tile = t = choose_tile(p.ctx.machine, p.acc, f, self.rows, self.columns)
        self.blocks = ceil_div(self.rows, t.mc), ceil_div(self.columns, t.nc)
        self.parts = parts_of(p.node, f)
        self.per_part = ceildiv(self.count, self.parts)
        if isinstance(self.per_part, int):  # blocks of equal length
            self.tile = t = replace(t, kc=ceil_div(self.per_part, ceil_div(self.per_part, t.kc)))
        high, wide = self.tiles[1] * f.out, self.tiles[2] * f.out
        name, pads = p.ctx.name, [low for low, _ in p.node.attrs["padding"]]
        self.input = Lines(p, p.x, f"{name}.x", (high + TAPS - 1, wide + TAPS - 1, self.rows), pads,
                           lambda c, q: (c, q))
        self.kernel = Lines(p, p.w, f"{name}.w", (high, wide, self.columns), (0, 0), self._kernel_at)
        self.planes = p.groups * p.channels
        self.slack = max(t.mc, t.nc) + p.width  # blocks at the edges read beyond the last line
        self.half = Type(p.acc, (self.parts, p.groups, self.rows, TAPS ** 2, self.kernel.pitch))
        self.partial = f"{name}.parts"

    def _kernel_at(self, c: DimLike, q: DimLike) -> Idx:
        p = self.p
        return (c, q) if p.groups == 1 else (q // p.channels * p.rows + c, q % p.channels)

    def lower(self) -> Lowered:
        p, out = self.p, Lowered()
        for lines in (self.input, self.kernel):
            out.kernels.append(lines.kernel(self.planes, self.slack))
            out.temps[lines.name] = lines.type(self.planes, self.slack)
            out.work.append(prod(out.temps[lines.name].shape))
        out.kernels.append(self.main())
        out.work.append(p.groups * self.count * self.rows * self.columns * self.filter.places // 8)
        if self.parts > 1:
            out.temps[self.partial] = self.half
            out.kernels.append(self.combine())
            out.work.append(p.node.type.size * (self.parts + cost(p.group)))
        return out

    # -- products

    def main(self) -> Kernel:
        p, t, f = self.p, self.tile, self.filter
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        for lines in (self.input, self.kernel):
            k.buffer(lines.name, p.acc, lines.type(self.planes, self.slack).shape)
        with (k.loop(self.parts, "parallel", "p") as part, k.loop(p.groups, "parallel", "g") as g,
              k.loop(self.blocks[0], "parallel", "mb") as mb, k.loop(self.blocks[1], "parallel", "nb") as nb):
            wide = [ceil_div(n, p.width) * p.width for n in (t.mc, t.nc)]
            u, v = (k.alloc(p.acc, f.places * (t.kc * n + LINE)) for n in wide)
            m = k.alloc(p.acc, f.places * t.mc * t.nc)
            half = k.alloc(p.acc, f.places * max(wide))
            start = self.per_part * part
            count = bound(k, dmax(0, dmin(self.per_part, self.count - start)))
            with k.loop(dmax(1, ceildiv(count, t.kc)), "seq", "kb") as kb:
                here = bound(k, dmin(t.kc, count - t.kc * kb))
                with k.loop(here, "seq", "t") as at:
                    n, y, x = (bound(k, d) for d in unravel(start + t.kc * kb + at, self.tiles))
                    where = g * p.channels + n, f.out * y, f.out * x
                    for lines, size, rule, target, n, first in (
                            (self.input, f.size, f.input, u, wide[0], t.mc * mb),
                            (self.kernel, f.out, f.spread, v, wide[1], t.nc * nb)):
                        self.bring(k, lines, rule, size, where, first, half, target, n, at)
                self.add(k, u, v, m, wide, kb, here)
            self.results(k, inl, m, half, (part, g, mb, nb))
        if self.parts == 1:
            declare_outputs(k, p.group, p.ctx)
        else:
            k.buffer(self.partial, p.acc, self.half.shape, "out")
        kind = f"convolution: minimal filtering of sums over tiles of {f.out} x {f.out}, {t}, {self.parts} parts"
        return k.finish(p.ctx.dims, [*describe(p.group), kind])

    def bring(self, k: KernelBuilder, lines: Lines, rule: Callable, size: int, where: Idx, first: DimLike, half: str,
              target: str, wide: int, at: DimLike) -> None:
        """Transform a tile of an operand, for all lanes of the block."""
        p, plane = self.p, self.tile.kc * wide + LINE
        begin = bound(k, lines.at(*where) + first)
        two_ways(k, rule, size, Lanes(wide, p.width, p.acc), half, lambda y, x, j: k.b.load(
            lines.name, begin + lines.at(0, y, x) + j, p.acc), lambda y, x, j, value: k.write(
                target, (self.filter.size * y + x) * plane + wide * at + j, value))

    def add(self, k: KernelBuilder, u: str, v: str, m: str, wide: Sequence[int], kb: DimLike, here: DimLike) -> None:
        p, t, b = self.p, self.tile, k.b
        left, right = (t.kc * n + LINE for n in wide)
        with (k.loop(self.filter.places, "seq", "e") as place, k.loop(t.mc // t.mr, "seq", "ip") as ip,
              k.loop(t.nc // t.nr, "seq", "jp") as jp):
            first = (place * t.mc + t.mr * ip) * t.nc + t.nr * jp
            acc = k.acc(p.acc, b.const(0, p.acc), (t.mr, t.nr))
            with (k.if_(b.gt(b.index(kb), 0)), k.loop(t.mr, "unroll", "i") as i,
                  k.loop(t.nr, "vector", "j", p.width) as j):
                k.set(acc, b.load(m, first + t.nc * i + j, p.acc), i, j)
            with (k.loop(here, "seq", "t") as at, k.loop(t.mr, "unroll", "i") as i,
                  k.loop(t.nr, "vector", "j", p.width) as j):
                x = b.load(u, left * place + wide[0] * at + t.mr * ip + i, p.acc)
                y = b.load(v, right * place + wide[1] * at + t.nr * jp + j, p.acc)
                k.set(acc, b.fma(x, y, k.get(acc, i, j)), i, j)
            with k.loop(t.mr, "unroll", "i") as i, k.loop(t.nr, "vector", "j", p.width) as j:
                k.write(m, first + t.nc * i + j, k.get(acc, i, j))

    # -- results

    def results(self, k: KernelBuilder, inl: Inliner, m: str, half: str, task: Idx) -> None:
        """From the sums at all places: those of a row at once."""
        p, t, f, (part, g, mb, nb) = self.p, self.tile, self.filter, task
        line = k.alloc(p.acc, TAPS ** 2 * t.nc) if self.parts == 1 else ""
        columns = bound(k, dmin(t.nc, self.columns - t.nc * nb))
        with k.loop(dmin(t.mc, self.rows - t.mc * mb), "seq", "i") as i:
            row = t.mc * mb + i
            to = linear_index((part, g, row, 0, t.nc * nb), self.half.shape)
            with k.loop(ceildiv(columns, p.width), "seq", "s") as s:
                def put(y: DimLike, x: DimLike, j: DimLike, value: Expr) -> None:
                    if line:
                        k.write(line, (TAPS * y + x) * t.nc + p.width * s + j, value)
                    else:
                        k.write(self.partial, to + (TAPS * y + x) * self.kernel.pitch + p.width * s + j, value)
                two_ways(k, f.gather, f.size, Lanes(p.width, p.width, p.acc), half, lambda y, x, j: k.b.load(
                    m, ((f.size * y + x) * t.mc + i) * t.nc + p.width * s + j, p.acc), put)
            if line:
                self.finish(k, inl, line, t.nc, (g, row, t.nc * nb), columns)

    def combine(self) -> Kernel:
        """The sums of the parts in order, and what is computed from them."""
        p, pitch = self.p, self.kernel.pitch
        k = p.ctx.builder("s")
        inl = inliner(k, p.group, p.ctx)
        for lines in (self.input, self.kernel):
            k.buffer(lines.name, p.acc, lines.type(self.planes, self.slack).shape)
        k.buffer(self.partial, p.acc, self.half.shape)
        with nest(k, (p.groups, self.rows), "parallel", "i") as (g, row):
            line = k.alloc(p.acc, TAPS ** 2 * pitch)
            with k.loop(TAPS ** 2 * pitch, "vector", "z", p.width) as z:
                total = k.acc(p.acc, k.b.const(0, p.acc))
                with k.loop(self.parts, "seq", "p") as part:
                    v = k.b.load(self.partial, linear_index((part, g, row, 0, z), self.half.shape), p.acc)
                    k.set(total, k.b.add(k.get(total), v))
                k.write(line, z, k.get(total))
            self.finish(k, inl, line, pitch, (g, row, 0), self.columns)
        declare_outputs(k, p.group, p.ctx)
        return k.finish(p.ctx.dims, [*describe(p.group), f"the sum of {self.parts} parts"])

    def finish(self, k: KernelBuilder, inl: Inliner, line: str, pitch: int, at: Idx, count: DimLike) -> None:
        """Results of a row, [tap][column]; what is not finite again."""
        p, b, (g, row, first) = self.p, k.b, at
        seen, zero = k.acc(p.acc, b.const(0, p.acc), (p.width,)), b.const(0, p.acc)
        with (k.loop(TAPS ** 2, "seq", "r") as r, k.loop(ceildiv(count, p.width), "seq", "s") as s,
              k.loop(p.width, "vector", "j", p.width) as j):
            v = k.let(b.load(line, pitch * r + p.width * s + j, p.acc))
            exist = b.lt(b.index(p.width * s + j), b.index(count))
            k.set(seen, b.fma(b.select(exist, v, zero), zero, k.get(seen, j)), j)
        total, left, right = (k.fresh(n) for n in ("r", "x", "y"))
        k.add(Fold((total,), (seen,), p.width, (left,), (right,), (b.add(b.ref(left, p.acc), b.ref(right, p.acc)),)))
        k.scopes[-1].names.add(total)
        with k.if_(b.not_(b.eq(b.ref(total, p.acc), zero))):
            self.again(k, line, pitch, at, count)
        some = p.width if isinstance(count, int) and count % p.width == 0 else 0
        with (k.loop(ceildiv(count, p.width), "seq", "s") as block,  # the code of a vector of every tap is long enough
              k.loop(TAPS ** 2, "seq", "r") as r,
              k.loop(some or dmin(p.width, count - p.width * block), "vector", "j", p.width) as j):
            column = p.width * block + j
            o = p.output(row, g, first + column, unravel(r, (TAPS, TAPS)))
            p.finish(k, inl, o, b.load(line, pitch * r + column, p.acc))

    def again(self, k: KernelBuilder, line: str, pitch: int, at: Idx, count: DimLike) -> None:
        """Results that are not finite as the sums are written: one chain over channels and taps, in order."""
        p, b, (g, row, first), zero = self.p, k.b, at, k.b.const(0, self.p.acc)
        with nest(k, (TAPS, TAPS, ceildiv(count, p.width)), "seq", "r") as (y, x, s):
            acc = k.acc(p.acc, zero, (p.width,))
            with nest(k, (p.channels, *p.taps), "seq", "t") as (n, *taps):
                plane = g * p.channels + n
                d = b.load(self.input.name, self.input.at(plane, taps[0] + y, taps[1] + x) + row, p.acc)
                with k.loop(p.width, "vector", "j", p.width) as j:
                    w = b.load(self.kernel.name, self.kernel.at(plane, *taps) + first + p.width * s + j, p.acc)
                    k.set(acc, b.fma(d, w, k.get(acc, j)), j)
            with k.loop(p.width, "vector", "j", p.width) as j:
                to = pitch * (TAPS * y + x) + p.width * s + j
                old = k.let(b.load(line, to, p.acc))
                k.write(line, to, b.select(b.eq(b.mul(old, zero), zero), old, k.get(acc, j)))
