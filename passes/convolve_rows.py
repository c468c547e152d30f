"""Convolutions of one output channel per group: rows of the image are lanes, and nothing is copied.

Here: that form, and the one of its gradients with respect to the kernel.  Not here: when other forms are taken
(convolve.py).

Where an input channel serves a single output channel, every product takes an element of its own, so loads take as long
as products do, and a copy of the input with its padding takes longer.  Here an element is loaded once for each tap
along the last axis and serves all taps along the axis before it, as rows of the result that lie below each other are
computed together:

    for image, group in parallel:
        for block of rows of the result, vector of a row:
            for channel, row of the input, tap along the row: load it, zero where it does not exist; for taps across
                rows: result[row - tap] += kernel * it
            for row: epilogue, store

Results are chains over channels and taps in order, as in the forms of convolve.py: all give the same bits.

With respect to the kernel, taps are lanes and all results of a channel are kept in registers:

    for image, group, row of results in parallel:
        for channel, block of rows of taps, vector of a row:
            the same rows of the input; for results: result += kernel[row - shift] * it
        fold the lanes of every result; store

There, the number of lanes and all sums depend on sizes and dtype only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod as int_prod

from flowc.dims import DimLike, ceildiv, dmin, linear, prod
from flowc.kernel import Expr
from flowc.op import Access
from flowc.passes.convolve_copy import Convolution, folded, guess, steps
from flowc.passes.inline import Idx, Inliner, KernelBuilder
from flowc.passes.lowering import Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.problem import exists
from flowc.passes.tiles import ceil_div

TOGETHER = 8      # rows at once, at most
FEW, LARGE = 2, 8 << 20   # and where the input has so many bytes, which come from memory
PRODUCTS = 256    # that stand in the code, at most, for one vector of a row
LANE_BITS = 512   # of one row, at most, where lanes are summed
SUMS = 24         # results in registers of that many bits
TASKS = 16        # tasks wanted


def _lies_in_rows(p: Convolution) -> bool:
    """Is there one output channel in a group, and are neighbours in a row neighbours in memory?"""
    return (p.rows == 1 and len(p.outs) >= 2 and all(isinstance(d, int) and d > 0 for d in p.taps)
            and all(n == 1 for n in p.node.attrs["lhs_dilation"]) and _adjacent(p) and steps(p, p.w) is not None)


def _adjacent(p: Convolution) -> bool:
    """Does the input lie in memory, neighbours in a row side by side?"""
    k = p.ctx.builder("probe")
    with nest(k, (p.images, p.groups, p.channels, *p.x.shape[2:]), "seq") as (n, g, c, *at):
        v = inliner(k, p.group, p.ctx).value(p.x, (n, k.tidy(g * p.channels + c), *at))
        if v.op != "load" or v.args or v.dtype is not p.acc or any(s.stmts for s in k.scopes):
            return False
        last = 1 if isinstance(at[-1], int) else linear(v.attr[1], str(at[-1]))  # type: ignore[index]
        return last == 1 or isinstance(last, tuple) and last[0] == 1


def together(p: Convolution, products: int) -> int:
    """Rows at once: an element serves more products if they are many, and memory is read in fewer runs if they are
    few.  By the sizes alone."""
    size = p.x.type.size
    far = isinstance(size, int) and size * p.acc.bytes > LARGE
    return max(1, min(FEW if far else TOGETHER, PRODUCTS // products))


class Rows:
    """Rows of the result as lanes."""

    def __init__(self, p: Convolution):
        self.p = p
        self.down, self.along = (guess(n) for n in p.taps[-2:])
        most = together(p, self.down * self.along)
        height, row = p.outs[-2:]
        self.rows = ceil_div(height, ceil_div(height, most)) if isinstance(height, int) and height > 0 else most
        self.lanes = p.width
        if isinstance(row, int):
            self.lanes = min(p.width, 1 << max(0, row - 1).bit_length())

    @staticmethod
    def fits(p: Convolution) -> bool:
        if not _lies_in_rows(p):
            return False
        down, along = (guess(n) for n in p.taps[-2:])
        return (p.node.attrs["strides"][-1] == 1 and along <= guess(p.outs[-1])
                and 1 < down * along <= PRODUCTS // 4)

    def lower(self) -> Lowered:
        p, w, r = self.p, self.lanes, self.rows
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        *before, height, row = p.outs
        with (nest(k, (p.images, p.groups), "parallel", "n") as (n, g), nest(k, before, "seq", "z") as lead,
              k.loop(ceildiv(height, r), "seq", "yb") as yb, k.loop(ceildiv(row, w), "seq", "xb") as xb):
            acc = k.acc(p.acc, k.b.const(0, p.acc), (r, w))
            with nest(k, (p.channels, *p.taps[:-2]), "seq", "c") as (c, *others):
                self.add(k, acc, (n, g, *lead, r * yb, w * xb), (c, *others))
            results = k.alloc(p.acc, r * w)
            with k.loop(r, "unroll", "y") as y, k.loop(w, "vector", "j", w) as j:
                k.write(results, w * y + j, k.get(acc, y, j))
            with (k.loop(dmin(r, height - r * yb), "seq", "y") as y,
                  k.loop(dmin(w, row - w * xb), "vector", "j", w) as j):
                v = k.b.load(results, w * y + j, p.acc)
                p.finish(k, inl, p.output(n, g, 0, (*lead, r * yb + y, w * xb + j)), v)
        declare_outputs(k, p.group, p.ctx)
        note = f"convolution: {r} rows of {w} positions, input in place"
        work = p.images * p.groups * prod(p.outs) * (prod((p.channels, *p.taps)) + cost(p.group)) // 8
        return Lowered([k.finish(p.ctx.dims, [*describe(p.group), note])], {}, [work])

    def add(self, k: KernelBuilder, acc: str, place: Idx, summed: Idx) -> None:
        """The products of one channel: ``place`` of the first result, the channel and taps along other axes."""
        p = self.p
        stride, step = p.node.attrs["strides"][-2], p.node.attrs["rhs_dilation"][-2]
        inl = inliner(k, p.group, p.ctx)
        n, g, *lead, top, left = place
        with k.loop(self.lanes, "vector", "j", self.lanes) as j:
            weights = [[k.let(inl.value(p.w, (g, summed[0], *summed[1:], y, x))) for x in range(self.along)]
                       for y in range(self.down)]
            sums = [k.let(k.get(acc, row, j)) for row in range(self.rows)]
            for _, pairs in met(self.rows, stride, self.down, step):
                row, tap = pairs[0]
                for x in range(self.along):
                    v = element(k, p, inl, place_of(p, n, g, (*lead, top + row, left + j)), (*summed, tap, x), [])
                    for to, y in pairs:
                        sums[to] = k.let(p.product(k, v, weights[y][x], sums[to]))
            for to, total in enumerate(sums):
                k.set(acc, total, to, j)


class RowSums:
    """Taps as lanes, all results of a channel in registers."""

    def __init__(self, p: Convolution):
        self.p = p
        self.height, self.row = (guess(n) for n in p.taps[-2:])
        self.down, self.along = (guess(n) for n in p.outs[-2:])
        most = LANE_BITS // max(32, p.acc.bits)
        # the fewest lanes that hold no result, in large vectors
        self.lanes = min((most, most // 2), key=lambda n: (ceil_div(self.row, n) * n, -n))
        self.down = ceil_div(self.down, ceil_div(self.down * self.along, SUMS))
        most = together(p, self.down * self.along)
        self.rows = ceil_div(self.height, ceil_div(self.height, most))

    @staticmethod
    def fits(p: Convolution) -> bool:
        a, outs = p.node.attrs, (p.images, *p.outs)
        return (_lies_in_rows(p) and all(isinstance(n, int) and n > 0 for n in outs) and a["rhs_dilation"][-1] == 1
                and (steps(p, p.w) or [0])[-1] == 1 and guess(p.outs[-1]) < min(SUMS // 2, guess(p.taps[-1]))
                and p.groups * int_prod(map(guess, outs[:-2])) >= TASKS)

    def lower(self) -> Lowered:
        p, size = self.p, self.along * self.lanes
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        *before, down, along = p.outs
        blocks = ceildiv(down, self.down)
        with nest(k, (p.images, p.groups, *before, blocks), "parallel", "n") as (n, g, *lead, yb):
            acc = k.acc(p.acc, k.b.const(0, p.acc), (self.down, self.along, self.lanes))
            with nest(k, (p.channels, *p.taps[:-2]), "seq", "c") as summed:
                whole, rest = divmod(self.height, self.rows)
                for start, count, rows in ((0, whole, self.rows), (whole * self.rows, min(rest, 1), rest)):
                    if not count:
                        continue
                    with (k.loop(count, "seq", "b") as block,
                          k.loop(ceil_div(self.row, self.lanes), "seq", "v") as v):
                        self.add(k, acc, (n, g, *lead, self.down * yb), (*summed, start + rows * block,
                                                                        self.lanes * v), rows)
            results = k.alloc(p.acc, self.down * size)
            with (k.loop(self.down, "unroll", "y") as y, k.loop(self.along, "unroll", "x") as x,
                  k.loop(self.lanes, "vector", "l", self.lanes) as lane):
                k.write(results, size * y + self.lanes * x + lane, k.get(acc, y, x, lane))
            with (k.loop(dmin(self.down, down - self.down * yb), "seq", "y") as y, k.loop(along, "seq", "x") as x):
                value = folded(k, p, self.lanes, lambda lane: k.b.load(
                    results, size * y + self.lanes * x + lane, p.acc))
                p.finish(k, inl, p.output(n, g, 0, (*lead, self.down * yb + y, x)), value)
        declare_outputs(k, p.group, p.ctx)
        note = f"convolution: {self.down} x {self.along} results, rows of taps as {self.lanes} lanes, input in place"
        work = p.node.type.size * (prod((p.channels, *p.taps)) // 8 + cost(p.group))
        return Lowered([k.finish(p.ctx.dims, [*describe(p.group), note])], {}, [work])

    def add(self, k: KernelBuilder, acc: str, place: Idx, first: Idx, rows: int) -> None:
        """The products of a block of rows of taps: ``place`` of the first result in a row, the ``first`` tap."""
        p = self.p
        stride, step = p.node.attrs["strides"][-2], p.node.attrs["rhs_dilation"][-2]
        inl = inliner(k, p.group, p.ctx)
        (n, g, *lead, top), (*summed, above, left) = place, first
        with k.loop(self.lanes, "vector", "l", self.lanes) as lane:
            tap = left + lane
            there = [("range", tap, self.row)]
            sums = [[k.let(k.get(acc, y, x, lane)) for x in range(self.along)] for y in range(self.down)]
            held: dict[int, Expr] = {}
            for _, pairs in met(self.down, stride, rows, step):
                y, row = pairs[0]
                for _, t in pairs:
                    if t not in held:
                        held[t] = k.let(inl.value(p.w, (g, *summed, above + t, tap), exists(k, there, None)))
                for x in range(self.along):
                    v = element(k, p, inl, place_of(p, n, g, (*lead, top + y, x)), (*summed, above + row, tap), there)
                    for to, t in pairs:
                        sums[to][x] = k.let(p.product(k, v, held[t], sums[to][x]))
            for y, line in enumerate(sums):
                for x, total in enumerate(line):
                    k.set(acc, total, y, x, lane)


def met(rows: int, stride: int, taps: int, step: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Rows of the input in order, each with the rows of results and the taps that meet there, by tap."""
    out: dict[int, list[tuple[int, int]]] = {}
    for tap in range(taps):
        for row in range(rows):
            out.setdefault(stride * row + step * tap, []).append((row, tap))
    return sorted(out.items())


def place_of(p: Convolution, n: DimLike, g: DimLike, at: Sequence[DimLike]) -> Idx:
    """The index of a result as the access wants it."""
    return (n, 0, *at) if p.groups == 1 else (n, g, 0, *at)


def element(k: KernelBuilder, p: Convolution, inl: Inliner, o: Idx, r: Idx, lanes: Sequence[tuple]) -> Expr:
    """The input that a result and a tap read; zero where there is none, or where the conditions ``lanes`` fail."""
    access: Access = p.access
    at = tuple(map(k.tidy, access.lhs(tuple(map(k.tidy, o)), tuple(map(k.tidy, r)))[0]))
    *conditions, last = [("range", i, n) for i, n in zip(at[2:], p.x.shape[2:], strict=True)]
    of_row, of_lane = exists(k, conditions, None), exists(k, [last, *lanes], None)
    where = of_lane if of_row is None else of_row if of_lane is None else k.b.and_(of_row, of_lane)
    v = inl.value(p.x, at, where)
    if where is not None and not (v.op == "load" and v.args):
        v = k.b.select(where, v, k.b.const(0, v.dtype))
    return k.let(v)
