"""What all forms of a convolution share: its sizes and operands, its axes, a copy of the input with its padding.

Here: those.  Not here: loops that multiply (convolve.py, convolve_dot.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import gcd

from flowc.dataclass import dataclass
from flowc.dims import DimLike, ceildiv, dmax, dmin, linear, prod, sym
from flowc.graph import Node
from flowc.kernel import Expr, Fold, Kernel
from flowc.op import Access
from flowc.op import Contraction as ContractionRule
from flowc.passes.fuse import Group
from flowc.passes.inline import Idx, Inliner, KernelBuilder, linear_index, unravel
from flowc.passes.lowering import Context, inliner, nest
from flowc.passes.problem import accumulator, either, exists
from flowc.types import Type

LARGE = 512          # what an unknown size is taken for
PAGE = 4096          # bytes between rows all of which meet in one set of the first-level cache
FEW = 4              # rows that find room there
OFTEN = 4            # times that a kernel is read before it is worth being packed


def guess(d: DimLike) -> int:
    return d if isinstance(d, int) else LARGE


@dataclass(frozen=True)
class Axis:
    """One spatial axis.  The element at ``lane * stride + other * step - low`` of the input, which has ``gaps - 1``
    zeros between its ``size`` elements, is read for every lane and every other index.

    In the copy, phase f holds the positions j * stride + f * step: there, lane l and other index o meet at
    j = l + shift in phase o mod period.  ``spread``: every other index has a phase of its own, which then holds nothing
    but lanes.
    """

    size: DimLike
    lanes: DimLike
    stride: int
    others: DimLike
    step: int
    low: DimLike
    high: DimLike
    gaps: int
    spread: bool = False

    @property
    def period(self) -> int:
        if self.spread and isinstance(self.others, int):
            return max(1, self.others)
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
        rest = self.span - self.lanes
        for f in range(self.phases):
            low, high = self.inside(f)
            rest = dmin(rest, low, self.span - high)
        return max(0, rest) if isinstance(rest, int) else 0

    @property
    def plain(self) -> bool:
        """Are lanes neighbours in the input itself, all of which exist?"""
        return self.stride == self.gaps == 1 and all(isinstance(d, int) and d <= 0 for d in (self.low, self.high))


class Convolution:
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
            (low, high), gaps = a["padding"][i], a["lhs_dilation"][i]
            out.append(Axis(size, *here, *there, low, high, gaps))
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


def folded(k: KernelBuilder, p: Convolution, lanes: int, read: Callable[[DimLike], Expr]) -> Expr:
    """The sum of the lanes that are read, as a tree."""
    b = k.b
    acc = k.acc(p.acc, b.const(0, p.acc), (lanes,))
    with k.loop(lanes, "vector", "l", min(p.width, lanes)) as lane:
        k.set(acc, read(lane), lane)
    left, right, out = k.fresh("x"), k.fresh("y"), k.fresh("r")
    both = b.add(b.ref(left, p.acc), b.ref(right, p.acc))
    k.add(Fold((out,), (acc,), lanes, (left,), (right,), (both,)))
    k.scopes[-1].names.add(out)
    return b.ref(out, p.acc)


def bound(k: KernelBuilder, d: DimLike) -> DimLike:
    """A size that is not negative, by a name of its own where it is no polynomial: what it stands in stays short."""
    d = k.tidy(d)
    if isinstance(d, int) or all(isinstance(a, str) for m, _ in d.terms for a, _ in m):
        return d
    ref = k.let(k.b.index(d), k.fresh("d"), range=(0, None))
    name: str = ref.attr[0]
    k.ranges[name] = (0, None)
    return sym(name)


def steps(p: Convolution, node: Node) -> list[int] | None:
    """By how much the address of an operand's element grows with each index, if it is a tensor in memory of the
    accumulator's dtype, perhaps moved."""
    k = p.ctx.builder("probe")
    inl = inliner(k, p.group, p.ctx)
    with nest(k, node.shape, "seq") as idx:
        v = inl.value(node, idx)
        if v.op != "load" or v.args or v.dtype is not p.acc or any(s.stmts for s in k.scopes):
            return None
        terms = [(0, 0) if isinstance(i, int) else linear(v.attr[1], str(i)) for i in idx]
    out = [t[0] for t in terms if t is not None and isinstance(t[0], int)]
    return out if len(out) == node.rank else None


def plain(p: Convolution, node: Node) -> bool:
    """Is an index of the operand an address?"""
    return steps(p, node) is not None


def rows_lie_well(p: Convolution, rows: int, positions: DimLike, together: int) -> bool:
    """May so many rows of the kernel be read at once where they lie, for each ``together`` of all ``positions``?  Not
    if they meet in one set of the cache, and not often if every channel lies far from the one before."""
    step = steps(p, p.w)
    often = not isinstance(positions, int) or positions > OFTEN * together
    return step is not None and (rows <= FEW or step[0] * p.acc.bytes % PAGE != 0) and not (often and turned(step))


def turned(step: Sequence[int]) -> bool:
    """Do the rows of a kernel lie nearer to each other than its channels do?"""
    return abs(step[0]) < abs(step[1])


def packed_shape(p: Convolution, mr: int) -> tuple[DimLike, ...]:
    """Of the kernel: [group][panel][channel, taps][mr]."""
    return p.groups, ceildiv(p.rows, mr), prod((p.channels, *p.taps)), mr


def packed_kernel(p: Convolution, mr: int, name: str) -> tuple[Kernel, Type, DimLike]:
    """Rows side by side, ``mr`` at a time: the kernel that packs them, their type, the work."""
    shape, taps, step = packed_shape(p, mr), (p.channels, *p.taps), steps(p, p.w)
    k = p.ctx.builder("w")
    inl = inliner(k, p.group, p.ctx)

    def put(g: DimLike, panel: DimLike, i: DimLike, r: Idx, kk: DimLike) -> None:
        row = g * p.rows + dmin(mr * panel + i, p.rows - 1)  # rows beyond the last are never stored
        v = inl.value(p.w, (row, *map(k.tidy, r)))
        k.write(name, linear_index((g, panel, kk, i), shape), k.b.cast(v, p.acc))
    if step is not None and turned(step):
        with (nest(k, (p.groups, p.channels), "parallel", "c") as (g, c), k.loop(shape[1], "seq", "p") as panel,
              nest(k, p.taps, "seq", "k") as r, k.loop(mr, "unroll", "i") as i):
            put(g, panel, i, (c, *r), linear_index((c, *r), taps))
    else:
        with (nest(k, shape[:2], "parallel", "p") as (g, panel), k.loop(mr, "seq", "i") as i,
              k.loop(shape[2], "vector", "k", p.width) as kk):
            put(g, panel, i, unravel(kk, taps), kk)
    k.buffer(name, p.acc, shape, "out")
    return k.finish(p.ctx.dims, [f"pack the kernel of {p.node.op.name}"]), Type(p.acc, shape), prod(shape)


def taps_follow(p: Convolution) -> bool:
    """Does the place of a tap grow, or fall, evenly with its number?"""
    step = (steps(p, p.w) or [])[2:]
    return bool(step) and all(a == b * n for a, b, n in zip(step, step[1:], p.taps[1:]))


class Copy:
    """The input with its padding, cut into phases: [image][channel][phases...][spans...], or with the image as the
    slowest position: [channel][phases...][image][spans...] (``joined``).  The zeros at the end of a row are those at
    the beginning of the next one."""

    def __init__(self, p: Convolution, axes: Sequence[Axis], joined: bool = False):
        self.p, self.axes, self.joined = p, axes, joined
        self.phases = [a.phases for a in axes]
        self.shared = axes[-1].shared
        self.spans = [*(a.span for a in axes[:-1]), axes[-1].span - self.shared]
        self.plane = prod(self.spans)
        self.all_channels = p.x.shape[1]

    def size(self, images: DimLike, channels: DimLike, slack: int) -> DimLike:
        """Elements, and room behind them for vectors that begin inside."""
        return images * channels * prod(self.phases) * self.plane + slack

    def bind(self, k: KernelBuilder) -> Copy:
        """The same in a kernel, its sizes by name."""
        out = copy(self)
        out.spans = [bound(k, n) for n in self.spans]
        out.plane = bound(k, prod(out.spans))
        return out

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

            def put(j: DimLike, inside: bool) -> None:
                """Position j of the row; where it may lie between elements, under a condition."""
                if not inside:
                    k.write(target, to + j, k.b.const(0, p.acc))
                    return
                here, needs = last.source(j, phases[-1])
                where = exists(k, [c for c in needs if c[0] == "divisible"], None)
                v = k.b.cast(inl.value(p.x, (n, channel, *at, k.tidy(here)), where), p.acc)
                if where is not None and not (v.op == "load" and v.args):
                    v = k.b.select(where, v, k.b.const(0, p.acc))
                k.write(target, to + j, v)

            def run(low: DimLike, high: DimLike, inside: bool) -> None:
                with k.loop(high - low, "vector", "x", p.width) as j:
                    put(low + j, inside)

            low, high = (bound(k, d) for d in last.inside(phases[-1]))
            either(k, exists(k, conditions, None), lambda: run(low, high, True), lambda: run(low, high, False))
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
        here = self.bind(k)
        with k.loop(p.images, "parallel", "n") as n, k.loop(self.all_channels, "parallel", "c") as c:
            here.fill(k, inl, name, n, c, here.start(n, self.all_channels, c, [0] * len(self.axes)))
            last = k.b.eq(k.b.index(linear_index((n, c), (1, self.all_channels))),
                          k.b.index(p.images * self.all_channels - 1))
            if self.shared:
                with k.if_(last):
                    here.end(k, name, p.images, self.all_channels)
        k.buffer(name, p.acc, (whole,), "out")
        return k.finish(p.ctx.dims, [f"the input of {p.node.op.name} with its padding"]), Type(p.acc, (whole,)), whole
