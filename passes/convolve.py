"""Convolutions on the CPU: every tap of the kernel reads whole vectors of neighbouring positions.

Here: axes and their phases, the copy of the input with its padding, the form with positions as lanes, the choice of
form.  Not here: the form with taps as lanes (convolve_dot.py), contractions in general (contract.py).

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
from dataclasses import dataclass
from math import gcd

from flowc.dims import DimLike, ceildiv, dmax, dmin, known_le, known_lt, linear, prod
from flowc.graph import Node
from flowc.kernel import Expr, Kernel
from flowc.op import Access
from flowc.op import Contraction as ContractionRule
from flowc.passes.contract import lower_contraction
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, Lowered, cost, declare_outputs, describe, inliner, nest
from flowc.passes.problem import accumulator
from flowc.passes.schedule import Machine
from flowc.passes.tiles import ceil_div
from flowc.types import DType, Type

LARGE = 512          # what an unknown size is taken for
LOCAL = 96 << 10     # bytes of one image that a task copies for itself, at most
TASKS = 16           # images that make enough tasks
LANES = 16           # lanes in comparisons of forms: part of the meaning, not of the machine


def guess(d: DimLike) -> int:
    return d if isinstance(d, int) else LARGE


@dataclass(frozen=True)
class Axis:
    """One spatial axis.  The element at ``lane * stride + other * step - low`` of the input, which has ``gaps - 1``
    zeros between its ``size`` elements, is read for every lane and every other index.

    In the copy, phase f holds the positions j * stride + f * step: there, lane l and other index o meet at
    j = l + shift in phase o mod period.
    """

    size: DimLike
    lanes: DimLike
    stride: int
    others: DimLike
    step: int
    low: DimLike
    high: DimLike
    gaps: int

    @property
    def period(self) -> int:
        return self.stride // gcd(self.stride, self.step)

    @property
    def phases(self) -> int:
        return min(self.period, self.others) if isinstance(self.others, int) else self.period

    @property
    def span(self) -> DimLike:
        """Positions of one phase."""
        hop = self.step // gcd(self.stride, self.step)
        return self.lanes + dmax(self.others - 1, 0) // self.period * hop

    def split(self, other: DimLike) -> tuple[DimLike, DimLike]:
        """(phase, shift) of an other index."""
        hop = self.step // gcd(self.stride, self.step)
        return other % self.period, other // self.period * hop

    def source(self, j: DimLike, phase: DimLike) -> tuple[DimLike, list[tuple]]:
        """Index into the input, and where it exists."""
        at = j * self.stride + phase * self.step - self.low
        conditions: list[tuple] = [("divisible", at, self.gaps)] if self.gaps > 1 else []
        return at // self.gaps, [*conditions, ("range", at // self.gaps, self.size)]

    def inside(self, phase: DimLike) -> tuple[DimLike, DimLike]:
        """The range of positions of a phase that lie inside the input, or between its elements."""
        first, total = self.low - phase * self.step, (self.size - 1) * self.gaps + 1
        low = dmin(dmax(0, ceildiv(first, self.stride)), self.span)
        return low, dmax(low, dmin(self.span, ceildiv(first + total, self.stride)))

    @property
    def shared(self) -> int:
        """Zeros at the end of a row that may be those at the beginning of the next, in every phase."""
        if not all(isinstance(d, int) for d in (self.lanes, self.span, self.size, self.low, self.others)):
            return 0
        rest = self.span - self.lanes
        for f in range(self.phases):
            low, high = self.inside(f)
            rest = min(rest, low, self.span - high)  # type: ignore[type-var]
        return max(0, rest)  # type: ignore[return-value]

    @property
    def plain(self) -> bool:
        """Are lanes neighbours in the input itself, all of which exist?"""
        return self.stride == self.gaps == 1 and all(isinstance(d, int) and d <= 0 for d in (self.low, self.high))


class Problem:
    """Sizes and operands of one convolution."""

    def __init__(self, g: Group, ctx: Context):
        c = g.contraction
        assert c is not None and isinstance(c.op.lower, ContractionRule)
        self.node, self.group, self.ctx = c, g, ctx
        self.x, self.w = c.inputs
        types = (self.x.type, self.w.type, c.type)
        self.access: Access = c.op.lower.access(types, c.attrs)
        self.groups: int = c.attrs["groups"]
        self.images, self.channels = self.x.shape[0], self.w.shape[1]
        self.rows = c.shape[1] // self.groups   # output channels of a group
        self.taps, self.outs = self.w.shape[2:], c.shape[2:]
        self.acc = accumulator(c.dtype)
        self.width = ctx.machine.lanes(self.acc)

    def axes(self, taps_are_lanes: bool) -> list[Axis]:
        a, out = self.node.attrs, []
        for i, (size, o, t) in enumerate(zip(self.x.shape[2:], self.outs, self.taps, strict=True)):
            here, there = (o, a["strides"][i]), (t, a["rhs_dilation"][i])
            if taps_are_lanes:
                here, there = there, here
            out.append(Axis(size, *here, *there, *a["padding"][i], a["lhs_dilation"][i]))
        return out

    def product(self, k: KernelBuilder, x: Expr, w: Expr, old: Expr) -> Expr:
        b = k.b
        return b.fma(x, w, old) if self.acc.floating else b.add(b.mul(x, w), old)

    def output(self, n: DimLike, g: DimLike, row: DimLike, at: Sequence[DimLike]) -> Idx:
        """Index of the result; ``row``: the channel inside the group."""
        return (n, g * self.rows + row, *at)

    def finish(self, k: KernelBuilder, inl: Inliner, o: Idx, value: Expr) -> None:
        """What is computed from one result, and the stores."""
        o = tuple(map(k.tidy, o))
        v = k.let(k.b.cast(value, self.node.dtype))
        inl.bound[self.node] = lambda idx, where: v if idx == o else None
        for n in self.group.outputs:
            k.write(self.ctx.name_of(n), linear_index(o, n.shape), inl.value(n, o))
        del inl.bound[self.node]


def plain(p: Problem, node: Node) -> bool:
    """Is the operand a tensor in memory of the accumulator's dtype, perhaps moved, so that an index is an address?"""
    k = p.ctx.builder("probe")
    inl = inliner(k, p.group, p.ctx)
    with nest(k, node.shape, "seq") as idx:
        v = inl.value(node, idx)
        if v.op != "load" or v.args or v.dtype is not p.acc or any(s.stmts for s in k.scopes):
            return False
        terms = [linear(v.attr[1], str(i)) for i in idx if not isinstance(i, int)]
        return all(t is not None and isinstance(t[0], int) for t in terms)


class Copy:
    """The input with its padding, cut into phases: [image][channel][phases...][spans...], or with the image as the
    slowest position: [channel][phases...][image][spans...] (``joined``).  The zeros at the end of a row are those at
    the beginning of the next one."""

    def __init__(self, p: Problem, axes: Sequence[Axis], joined: bool = False):
        self.p, self.axes, self.joined = p, axes, joined
        self.phases = [a.phases for a in axes]
        self.shared = axes[-1].shared
        self.spans = [*(a.span for a in axes[:-1]), axes[-1].span - self.shared]
        self.plane = prod(self.spans)
        self.all_channels = p.x.shape[1]

    def size(self, images: DimLike, channels: DimLike, slack: int) -> DimLike:
        """Elements, and room behind them for vectors that begin inside."""
        return images * channels * prod(self.phases) * self.plane + slack

    def start(self, n: DimLike, channels: DimLike, channel: DimLike, phases: Sequence[DimLike]) -> DimLike:
        """Where position 0 lies."""
        if self.joined:
            return linear_index((channel, *phases, n), (channels, *self.phases, self.p.images)) * self.plane
        return linear_index((n, channel, *phases), (1, channels, *self.phases)) * self.plane

    def at(self, lanes: Sequence[DimLike], others: Sequence[DimLike]) -> tuple[list[DimLike], DimLike]:
        """Phases, and the position, of one element."""
        split = [a.split(o) for a, o in zip(self.axes, others, strict=True)]
        return [f for f, _ in split], linear_index([i + s for i, (_, s) in zip(lanes, split, strict=True)], self.spans)

    def fill(self, k: KernelBuilder, inl: Inliner, target: str, n: DimLike, channel: DimLike, first: DimLike) -> None:
        """Copy one channel of one image to the planes that start at ``first``: whole rows of zeros, and rows with
        zeros at their ends."""
        p, last = self.p, self.axes[-1]
        with nest(k, self.phases, "seq", "f") as phases, nest(k, self.spans[:-1], "seq", "y") as rows:
            at, conditions = [], []
            for a, i, f in zip(self.axes, rows, phases, strict=False):
                here, needs = a.source(i, f)
                at.append(k.tidy(here))
                conditions += needs
            to = linear_index(phases, self.phases) * (self.plane * (p.images if self.joined else 1))
            to = first + to + linear_index((*rows, 0), self.spans)

            def put(j: DimLike, exists: bool) -> None:
                """Position j of the row; where it may lie between elements, under a condition."""
                if not exists:
                    k.write(target, to + j, k.b.const(0, p.acc))
                    return
                here, needs = last.source(j, phases[-1])
                where = holds(k, [c for c in needs if c[0] == "divisible"], None)
                v = k.b.cast(inl.value(p.x, (n, channel, *at, k.tidy(here)), where), p.acc)
                if where is not None and not (v.op == "load" and v.args):
                    v = k.b.select(where, v, k.b.const(0, p.acc))
                k.write(target, to + j, v)

            def run(low: DimLike, high: DimLike, exists: bool) -> None:
                with k.loop(high - low, "vector", "x", p.width) as j:
                    put(low + j, exists)

            low, high = last.inside(phases[-1])
            where = holds(k, conditions, None)
            if where is None:
                run(low, high, True)
            else:
                with k.if_(where):
                    run(low, high, True)
                with k.if_(k.b.not_(where)):
                    run(low, high, False)
            run(0, low, False)
            run(high, self.spans[-1], False)
    def end(self, k: KernelBuilder, target: str, images: DimLike, channels: DimLike) -> None:
        """The zeros behind the last row."""
        with k.loop(self.shared, "vector", "x", self.p.width) as j:
            if self.shared:
                k.write(target, self.size(images, channels, 0) + j, k.b.const(0, self.p.acc))

    def kernel(self, name: str, slack: int) -> tuple[Kernel, Type, DimLike]:
        """The kernel that makes the whole copy, the copy's type, the work."""
        p = self.p
        k = p.ctx.builder("c")
        inl = inliner(k, p.group, p.ctx)
        whole = self.size(p.images, self.all_channels, slack)
        with k.loop(p.images, "parallel", "n") as n, k.loop(self.all_channels, "parallel", "c") as c:
            self.fill(k, inl, name, n, c, self.start(n, self.all_channels, c, [0] * len(self.axes)))
            last = k.b.eq(k.b.index(linear_index((n, c), (1, self.all_channels))),
                          k.b.index(p.images * self.all_channels - 1))
            if self.shared:
                with k.if_(last):
                    self.end(k, name, p.images, self.all_channels)
        k.buffer(name, p.acc, (whole,), "out")
        return k.finish(p.ctx.dims, [f"the input of {p.node.op.name} with its padding"]), Type(p.acc, (whole,)), whole


# ---- positions as lanes ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Tile:
    """``mr`` output channels times ``nr`` positions in registers."""

    mr: int
    nr: int

    def __str__(self) -> str:
        return f"convolution: {self.mr} channels x {self.nr} positions"


def choose_tile(machine: Machine, dtype: DType, rows: DimLike, positions: DimLike) -> Tile:
    """The tile of least time: a step costs its multiply-adds, or its loads if those take longer; vectors of the input
    that lie across cache lines count twice."""
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
    return best[1]


class Positions:
    """The form with positions as lanes."""

    def __init__(self, p: Problem):
        self.p, self.axes = p, p.axes(False)
        c = p.ctx
        self.in_place = all(a.plain for a in self.axes) and plain(p, p.x) and self._pitched()
        self.copy = Copy(p, self.axes, not self.in_place and joins(p, self.axes))
        self.spans = list(p.x.shape[2:]) if self.in_place else self.copy.spans
        self.lead: list[DimLike] = [p.images] if self.copy.joined else []
        self.extent = reach([*self.lead, *p.outs], [*self.lead, *self.spans])  # positions up to the last result
        self.tile = choose_tile(c.machine, p.acc, p.rows, self.extent)
        panel = prod((p.channels, *p.taps)) * self.tile.mr * p.acc.bytes
        small = isinstance(panel, int) and panel <= c.machine.l1 // 2
        even = isinstance(p.rows, int) and p.rows % self.tile.mr == 0
        self.weights_in_place = small and even and plain(p, p.w)
        self.slack = self.tile.nr + self.copy.shared
        image = self.copy.size(1, p.channels, self.slack)
        tasks = guess(p.images) * p.groups
        self.local = (not self.in_place and not self.copy.joined and isinstance(image, int)
                      and image * p.acc.bytes <= LOCAL and tasks >= TASKS)

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
            kernel, kind, work = self._pack_weights(f"{c.name}.weights")
            out.kernels.append(kernel)
            out.work.append(work * 2)
            out.temps[f"{c.name}.weights"] = kind
        out.kernels.append(self._main())
        out.work.append(p.images * p.groups * p.rows * self.extent * (prod((p.channels, *p.taps)) + cost(p.group)) // 8)
        return out

    # -- the kernel's weights: [group][panel][channel, taps][mr]

    def _packed_weights(self) -> tuple[DimLike, ...]:
        p = self.p
        return p.groups, ceildiv(p.rows, self.tile.mr), prod((p.channels, *p.taps)), self.tile.mr

    def _pack_weights(self, name: str) -> tuple[Kernel, Type, DimLike]:
        p, mr, shape = self.p, self.tile.mr, self._packed_weights()
        k = p.ctx.builder("w")
        inl = inliner(k, p.group, p.ctx)
        with k.loop(shape[0], "parallel", "g") as g, k.loop(shape[1], "parallel", "p") as panel:
            with k.loop(mr, "seq", "i") as i:
                row = g * p.rows + dmin(mr * panel + i, p.rows - 1)  # rows beyond the last are never stored
                with k.loop(shape[2], "vector", "k", p.width) as kk:
                    v = inl.value(p.w, (row, *map(k.tidy, unravel(kk, (p.channels, *p.taps)))))
                    k.write(name, linear_index((g, panel, kk, i), shape), k.b.cast(v, p.acc))
        k.buffer(name, p.acc, shape, "out")
        return (k.finish(p.ctx.dims, [f"pack the kernel of {p.node.op.name}"]), Type(p.acc, shape), prod(shape))

    # -- multiplying

    def _main(self) -> Kernel:
        p, t = self.p, self.tile
        k = p.ctx.builder("m")
        inl = inliner(k, p.group, p.ctx)
        images = 1 if self.copy.joined else p.images
        kind = "seq" if self.local else "parallel"
        with k.loop(images, "parallel", "n") as n, k.loop(p.groups, "parallel", "g") as g:
            read = self._reader(k, inl, n, g)
            with (k.loop(ceildiv(p.rows, t.mr), kind, "p") as panel,
                  k.loop(ceildiv(self.extent, t.nr), kind, "t") as tile):
                results = k.alloc(p.acc, t.mr * t.nr)
                self._multiply(k, inl, read, results, g, panel, t.nr * tile)
                self._epilogue(k, inl, results, n, g, panel, t.nr * tile)
        declare_outputs(k, p.group, p.ctx)
        where = "in place" if self.in_place else "copied by its task" if self.local else "copied"
        return k.finish(p.ctx.dims, [*describe(p.group), f"{t}, input {where}"])

    def _reader(self, k: KernelBuilder, inl: Inliner, n: DimLike, g: DimLike) -> Callable[..., Expr]:
        """The input at (channel of the group, taps, position)."""
        p, copy, b = self.p, self.copy, k.b
        if self.in_place:
            def direct(c: DimLike, taps: Idx, at: DimLike) -> Expr:
                first, _ = p.access.lhs(self._place(n, g, at), (c, *taps))
                where = None if isinstance(self.extent, int) and self.extent % self.tile.nr == 0 else b.lt(
                    b.index(at), b.index(self.extent))
                return inl.value(p.x, tuple(map(k.tidy, first)), where)
            return direct
        name, channels = f"{p.ctx.name}.copy", copy.all_channels
        if self.local:
            channels = p.channels
            name = k.alloc(p.acc, copy.size(1, channels, self.slack))
            with k.loop(channels, "seq", "c") as c:
                copy.fill(k, inl, name, n, g * channels + c, copy.start(0, channels, c, [0] * len(self.axes)))
            copy.end(k, name, 1, channels)
        else:
            k.buffer(name, p.acc, (copy.size(p.images, channels, self.slack),))

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
        shape, name = self._packed_weights(), f"{p.ctx.name}.weights"
        if not self.weights_in_place:
            k.buffer(name, p.acc, shape)
        with nest(k, (p.channels, *p.taps), "seq", "k") as r:
            with k.loop(t.mr, "unroll", "i") as i, k.loop(t.nr, "vector", "j", p.width) as j:
                if self.weights_in_place:
                    w = inl.value(p.w, (g * p.rows + t.mr * panel + i, *r))
                else:
                    kk = linear_index(r, (p.channels, *p.taps))
                    w = k.b.load(name, linear_index((g, panel, kk, i), shape), p.acc)
                k.set(acc, p.product(k, w, read(r[0], r[1:], first + j), k.get(acc, i, j)), i, j)
        with k.loop(t.mr, "unroll", "i") as i, k.loop(t.nr, "vector", "j", p.width) as j:
            k.write(results, t.nr * i + j, k.get(acc, i, j))

    def _epilogue(self, k: KernelBuilder, inl: Inliner, results: str, n: DimLike, g: DimLike, panel: DimLike,
                  first: DimLike) -> None:
        """The rows of the output that the tile touches, each with the columns that lie in the tile."""
        p, t = self.p, self.tile
        outs, spans = [*self.lead, *p.outs], [*self.lead, *self.spans]
        while len(outs) > 1 and outs[-1] == spans[-1]:  # rows without anything in between are one row
            outs[-2:], spans[-2:] = [outs[-2] * outs[-1]], [spans[-2] * spans[-1]]
        pitch = spans[-1]
        one = len(outs) == 1
        top = 0 if one else first // dmax(pitch, 1)
        count = 1 if one else (first + t.nr - 1) // dmax(pitch, 1) - top + 1
        with k.loop(count, "seq", "q") as q:
            lead = unravel(top + q, spans[:-1]) if not one else ()
            start = pitch * (top + q) - first  # where the row begins in the tile
            low = dmax(0, -start)
            columns = dmax(0, dmin(outs[-1], t.nr - start) - low)
            where = holds(k, [("range", i, m) for i, m in zip(map(k.tidy, lead), outs[:-1], strict=True)], None)
            if where is None:
                self._rows(k, inl, results, n, g, panel, (lead, outs), (start, low, columns))
            else:
                with k.if_(where):
                    self._rows(k, inl, results, n, g, panel, (lead, outs), (start, low, columns))

    def _rows(self, k: KernelBuilder, inl: Inliner, results: str, n: DimLike, g: DimLike, panel: DimLike,
              row: tuple[Idx, Sequence[DimLike]], part: tuple[DimLike, DimLike, DimLike]) -> None:
        p, t = self.p, self.tile
        (lead, outs), (start, low, columns) = row, part
        shape = [*self.lead, *p.outs]
        with (k.loop(dmin(t.mr, p.rows - t.mr * panel), "seq", "i") as i,
              k.loop(columns, "vector", "j", p.width) as j):
            at = unravel(linear_index((*lead, low + j), outs), shape) if len(outs) < len(shape) else (*lead, low + j)
            if self.copy.joined:
                n, at = at[0], at[1:]
            v = k.b.load(results, t.nr * i + start + low + j, p.acc)
            p.finish(k, inl, p.output(n, g, t.mr * panel + i, at), v)


def holds(k: KernelBuilder, conditions: Sequence[tuple], where: Expr | None) -> Expr | None:
    """The conditions of an access that loop ranges do not decide, and ``where``, as one expression; None for none."""
    b = k.b
    for kind, d, n in conditions:
        if kind == "divisible":
            tests = [b.eq(b.index(k.tidy(d % n)), 0)]
        else:
            tests = [] if known_le(0, d, k.ranges) else [b.ge(b.index(d), 0)]
            tests += [] if known_lt(d, n, k.ranges) else [b.lt(b.index(d), b.index(n))]
        for t in tests:
            where = t if where is None else b.and_(where, t)
    return where


def reach(outs: Sequence[DimLike], spans: Sequence[DimLike]) -> DimLike:
    """Positions up to and with the last result."""
    return linear_index([dmax(o, 1) - 1 for o in outs], spans) + 1


def density(p: Problem, axes: Sequence[Axis]) -> tuple[float, float]:
    """Which part of the lanes gives results, image by image and with all images in one row of positions."""
    outs, spans = [guess(o) for o in p.outs], [guess(a.span) for a in axes]
    spans[-1] -= axes[-1].shared
    results = prod(outs)
    alone = reach(outs, spans)
    assert isinstance(results, int) and isinstance(alone, int)
    return results / (ceil_div(alone, LANES) * LANES), results / max(1, prod(spans))  # type: ignore[operator]


def joins(p: Problem, axes: Sequence[Axis]) -> bool:
    alone, together = density(p, axes)
    return together > 1.2 * alone and guess(p.images) > 1


def lower_convolution(g: Group, ctx: Context) -> Lowered:
    """Kernels of a group around a convolution."""
    p = Problem(g, ctx)
    if not p.outs:
        return lower_contraction(g, ctx)
    from flowc.passes.convolve_dot import Taps
    axes = p.axes(False)
    last = guess(p.taps[-1])
    sums = guess(prod((p.channels, *p.taps[:-1]))) * ceil_div(last, LANES)
    if sums >= 8 and last / (ceil_div(last, LANES) * LANES) > 1.5 * max(density(p, axes)):
        return Taps(p).lower()
    return Positions(p).lower()
