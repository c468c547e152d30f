"""Laws of movement, reductions and contractions.

Here: rules as data, in the order in which they are tried.  Not here: arithmetic (rules_algebra.py), how rules run
(flowc/rewrite.py).  Read next: simplify.py.

Movement is exact whatever the dtype; what has to be shown is that sizes agree.  A law that needs to know more about
symbolic sizes than it can prove does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowc.dims import DimLike, Ranges
from flowc.graph import Node
from flowc.passes.grain import apart
from flowc.proofs import known_eq, known_le
from flowc.rewrite import Match, P, Rule, any_op, attr, elementwise, rest, rule, splat_value, var

x, y, fill, inner = var("x"), var("y"), var("fill"), var("inner")
perm, first, shape, axes, more = attr("perm"), attr("first"), attr("shape"), attr("axes"), attr("more")


FEW = 16  # times as many positions that an axis has are worth selecting instead of sorting all


def all_equal(a: Sequence[DimLike], b: Sequence[DimLike]) -> bool:
    return len(a) == len(b) and all(known_eq(m, n) is True for m, n in zip(a, b, strict=True))


def kept(rank: int, gone: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a not in gone)


def never_empty(sizes: Sequence[DimLike], ranges: Ranges) -> bool:
    return all(known_le(1, n, ranges) is True for n in sizes)


# ---- transpose, reshape, flip ---------------------------------------------------------------------------------------

def _only_ones_move(m: Match) -> bool:
    """Does the transpose keep the order of all axes but those of size 1?  Then a reshape beside it does its work."""
    t = m.root if m.root.op.name == "transpose" else m.root.inputs[0]
    order = [a for a in t.attrs["perm"] if t.inputs[0].shape[a] != 1]
    return order == sorted(order)


def _between_reshapes(m: Match) -> Node | None:
    """Elementwise work on reshaped operands whose shape comes back behind it: the reshapes cancel."""
    work, operands = m.root.inputs[0], []
    for n in m.xs:
        if n.op.name == "reshape" and all_equal(n.inputs[0].shape, m.root.shape):
            operands.append(n.inputs[0])
        elif n.op.name == "broadcast" and n.inputs[0].rank == 0:
            operands.append(m.broadcast(n.inputs[0], m.root.shape, ()))
        else:
            return None
    if all(n.op.name == "broadcast" for n in m.xs):
        return None
    return m.make(work.op.name, *operands, **work.attrs)


SHUFFLE = [
    rule("transpose-identity", P.transpose(x, perm=perm), x, when=lambda m: m.perm == tuple(range(m.x.rank))),
    rule("transpose-transpose", P.transpose(P.transpose(x, perm=first), perm=perm), lambda m: m.make(
        "transpose", m.x, perm=tuple(m.first[a] for a in m.perm))),
    rule("reshape-same", P.reshape(x, shape=shape), x, when=lambda m: m.shape == m.x.shape),
    rule("reshape-reshape", P.reshape(P.reshape(x)), lambda m: m.again("reshape", m.x)),
    rule("reshape-between", P.reshape(any_op(elementwise, rest("xs"))), _between_reshapes),
    rule("reshape-transpose", P.reshape(P.transpose(x)), lambda m: m.again("reshape", m.x), when=_only_ones_move),
    rule("transpose-reshape", P.transpose(P.reshape(x)), lambda m: m.make("reshape", m.x, shape=m.root.shape),
         when=_only_ones_move),
    rule("flip-nothing", P.flip(x, axes=()), x),
    rule("flip-flip", P.flip(P.flip(x, axes=first), axes=axes), lambda m: m.make(
        "flip", m.x, axes=tuple(sorted(set(m.first) ^ set(m.axes))))),
    rule("flip-ones", P.flip(x, axes=axes), lambda m: m.make(
        "flip", m.x, axes=tuple(a for a in m.axes if m.x.shape[a] != 1)),
        when=lambda m: any(m.x.shape[a] == 1 for a in m.axes)),
]

# ---- broadcast ------------------------------------------------------------------------------------------------------


def _transpose_of_broadcast(m: Match) -> Node:
    """The axes of ``x`` land elsewhere; if their order changes the small operand is transposed instead."""
    place = {a: i for i, a in enumerate(m.perm)}  # axis of the broadcast -> axis of the result
    targets = [place[a] for a in m.axes]
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    small = m.x if order == list(range(len(order))) else m.make("transpose", m.x, perm=tuple(order))
    return m.make("broadcast", small, shape=m.root.shape, axes=tuple(sorted(targets)))


def _slice_of_broadcast(m: Match) -> Node:
    small = m.make("slice", m.x, **{k: tuple(m.root.attrs[k][a] for a in m.axes) for k in ("start", "stop", "step")})
    return m.make("broadcast", small, shape=m.root.shape, axes=m.axes)


def _flip_of_broadcast(m: Match) -> Node:
    small = m.make("flip", m.x, axes=tuple(i for i, a in enumerate(m.axes) if a in m.root.attrs["axes"]))
    return m.make("broadcast", small, shape=m.root.shape, axes=m.axes)


def _same_everywhere(m: Match) -> Node | None:
    """All operands are one scalar spread out, so the result is too."""
    if all(n.op.name == "broadcast" and n.inputs[0] is m.inner for n in m.others):
        return m.broadcast(m.inner, m.root.shape, ())
    return None


SPREAD = [
    rule("broadcast-identity", P.broadcast(x, shape=shape), x, when=lambda m: m.shape == m.x.shape),
    rule("broadcast-broadcast", P.broadcast(P.broadcast(x, axes=first), axes=axes), lambda m: m.make(
        "broadcast", m.x, shape=m.root.shape, axes=tuple(m.axes[a] for a in m.first))),
    # one value everywhere stays one value everywhere
    *(rule(f"{op}-of-splat", P[op](P.broadcast(x, axes=())), lambda m: m.broadcast(m.x, m.root.shape, ()))
      for op in ("transpose", "reshape", "slice", "flip", "windows")),
    rule("pad-of-splat", P.pad(P.broadcast(x, axes=()), x), lambda m: m.broadcast(m.x, m.root.shape, ())),
    rule("concatenate-of-splats", P.concatenate(P.broadcast(inner, axes=()), rest("others")), _same_everywhere),
    rule("transpose-of-broadcast", P.transpose(P.broadcast(x, axes=axes), perm=perm), _transpose_of_broadcast),
    rule("slice-of-broadcast", P.slice(P.broadcast(x, axes=axes)), _slice_of_broadcast),
    rule("flip-of-broadcast", P.flip(P.broadcast(x, axes=axes)), _flip_of_broadcast),
]

# ---- slice, pad, concatenate, update --------------------------------------------------------------------------------

SLICE = {"start": attr("start"), "stop": attr("stop"), "step": attr("step")}


def _is_whole(start: tuple, stop: tuple, step: tuple, n: tuple) -> bool:
    return all(s == 1 for s in step) and all(s == 0 for s in start) and all_equal(stop, n)


def _slice_of_slice(m: Match) -> Node | None:
    """Position s0 + (s1 + k*t1)*t0.  The end is that of the inner elements; for a stride it must be known."""
    before = [m.root.inputs[0].attrs[k] for k in ("start", "stop", "step")]
    start, stop, step = [], [], []
    for s0, _, t0, s1, e1, t1 in zip(*before, m.start, m.stop, m.step, strict=True):
        if t0 == 1:
            window = s0 + s1, s0 + e1
        elif isinstance(s1, int) and isinstance(e1, int):  # one past the last element; nothing at all if empty
            window = (s0 + s1 * t0, s0 + (e1 - 1) * t0 + 1) if e1 > s1 else (s0, s0)
        else:
            return None
        start.append(window[0])
        stop.append(window[1])
        step.append(t0 * t1)
    new = {"start": tuple(start), "stop": tuple(stop), "step": tuple(step)}
    return m.make("slice", m.x, **new)


def _first_of_argsort(m: Match) -> Node | None:
    """Few of the positions that sort an axis: the others need no order."""
    axis, shape = m.axis, m.x.shape
    count, size = m.stop[axis], shape[axis]
    cut = (*shape[:axis], count, *shape[axis + 1:])
    if not isinstance(count, int) or any(m.start) or any(s != 1 for s in m.step) or not all_equal(m.stop, cut):
        return None
    return m.make("argselect", m.x, axis=axis, count=count) if known_le(FEW * count, size) is True else None


def _slice_of_pad(m: Match) -> Node | None:
    """A window that touches no padding."""
    low = m.low
    start, stop = ([p - lo for p, lo in zip(ps, low, strict=True)] for ps in (m.start, m.stop))
    if not all(known_le(0, s) and known_le(e, n) for s, e, n in zip(start, stop, m.x.shape, strict=True)):
        return None
    return m.make("slice", m.x, start=tuple(start), stop=tuple(stop), step=m.step)


def _slice_of_concatenate(m: Match) -> Node | None:
    """A window inside one of the parts."""
    axis, offset = m.axis, 0
    for part in m.parts:
        end = offset + part.shape[axis]
        if known_le(offset, m.start[axis]) and known_le(m.stop[axis], end):
            start, stop = list(m.start), list(m.stop)
            start[axis], stop[axis] = start[axis] - offset, stop[axis] - offset
            return m.make("slice", part, start=tuple(start), stop=tuple(stop), step=m.step)
        offset = end
    return None


def _drop_empty_parts(m: Match) -> Node | None:
    parts = [p for p in m.parts if p.shape[m.axis] != 0]
    return m.again("concatenate", *parts) if parts and len(parts) < len(m.parts) else None


def _pad_of_pad(m: Match) -> Node | None:
    """Twice the same value: one node, or equal constants."""
    a, b = m.fill, m.outer
    if a is not b and (splat_value(a) is None or splat_value(b) is None or a.attrs != b.attrs):
        return None
    low, high = (tuple(p + q for p, q in zip(m.bound[f"{k}0"], m.bound[k], strict=True)) for k in ("low", "high"))
    return m.make("pad", m.x, a, low=low, high=high)


def _same_window(m: Match) -> bool:
    """A slice that reads back exactly the window that was written."""
    return m.at == m.start and m.by == m.step and all_equal(m.root.shape, m.y.shape)


CUT = [
    rule("slice-whole", P.slice(x, **SLICE), x, when=lambda m: _is_whole(m.start, m.stop, m.step, m.x.shape)),
    rule("slice-slice", P.slice(P.slice(x), **SLICE), _slice_of_slice),
    rule("slice-of-argsort", P.slice(P.argsort(x, axis=attr("axis")), **SLICE), _first_of_argsort),
    rule("slice-of-pad", P.slice(P.pad(x, fill, low=attr("low")), **SLICE), _slice_of_pad),
    rule("slice-of-concatenate", P.slice(P.concatenate(rest("parts"), axis=attr("axis")), **SLICE),
         _slice_of_concatenate),
    rule("slice-of-update", P.slice(P.update_slice(x, y, start=attr("at"), step=attr("by")), **SLICE),
         lambda m: m.y, when=_same_window),
    rule("pad-nothing", P.pad(x, fill, low=attr("low"), high=attr("high")), x,
         when=lambda m: all(p == 0 for p in m.low + m.high)),
    rule("pad-pad", P.pad(P.pad(x, fill, low=attr("low0"), high=attr("high0")), var("outer"),
                          low=attr("low"), high=attr("high")), _pad_of_pad),
    rule("concatenate-one", P.concatenate(x), x),
    rule("concatenate-empty", P.concatenate(rest("parts"), axis=attr("axis")), _drop_empty_parts),
    rule("update-whole", P.update_slice(x, y, step=attr("step")), y, when=lambda m: all(s == 1 for s in m.step)
         and all_equal(m.x.shape, m.y.shape)),
    rule("update-update", P.update_slice(P.update_slice(x, inner, start=attr("start"), step=attr("step")), y,
                                         start=attr("start"), step=attr("step")),
         lambda m: m.again("update_slice", m.x, m.y), when=lambda m: all_equal(m.inner.shape, m.y.shape)),
]

# ---- reductions -----------------------------------------------------------------------------------------------------

PICKS = ("reduce_max", "reduce_min", "reduce_and", "reduce_or")  # repeating an element changes nothing
REDUCTIONS = (*PICKS, "reduce_sum", "reduce_prod")


def _reduce_of_one(m: Match) -> Node | None:
    """Reduced axes of size 1 only.  A sum starts at 0, and 0 + -0.0 is 0.0; a product of complex numbers starts at 1,
    which makes NaN of infinities."""
    if any(m.x.shape[a] != 1 for a in m.axes) or m.x.dtype.kind == "c":
        return None
    flat = m.x if not m.axes else m.make("reshape", m.x, shape=m.root.shape)
    return m.make("add", flat, m.splat(0)) if m.root.op.name == "reduce_sum" and m.x.dtype.floating else flat


def _pick_of_broadcast(m: Match) -> Node | None:
    """Axes along which all elements are equal need not be reduced, if there is an element at all."""
    big = m.root.inputs[0]
    repeated = [a for a in m.axes if a not in m.to]
    if not repeated or not never_empty([big.shape[a] for a in repeated], m.ranges):
        return None
    left = kept(big.rank, repeated)
    place = {a: i for i, a in enumerate(left)}
    small = m.make("broadcast", m.x, shape=tuple(big.shape[a] for a in left), axes=tuple(place[a] for a in m.to))
    remaining = tuple(place[a] for a in m.axes if a in place)
    return m.make(m.root.op, small, axes=remaining) if remaining else small


def _fill_sum(m: Match) -> Node | None:
    """The sum of n times one number: n * x.  Exact for integers, better than adding up for floats."""
    big = m.root.inputs[0]
    count: DimLike = 1
    for a in m.axes:
        count = count * big.shape[a]
    if not isinstance(count, int) or m.root.dtype is not m.x.dtype or m.x.dtype.bits == 16:
        return None
    return m.splat(0) if count == 0 else m.make("mul", m.broadcast(m.x, m.root.shape, ()), m.splat(count))


def _reduce_of_reduce(m: Match) -> Node | None:
    if m.root.dtype is not m.x.dtype:
        return None
    left = kept(m.x.rank, m.first)
    axes = tuple(sorted({*m.first, *(left[a] for a in m.axes)}))
    return None if apart(m.x.shape, axes) else m.make(m.root.op, m.x, axes=axes)


def _exact_pairs(op: str, letters: str) -> Rule:
    return rule(f"{op}-{op}", P[op](P[op](x, axes=first), axes=axes), _reduce_of_reduce,
                when=lambda m: m.x.dtype.kind in letters)


SUMMARY = [
    *(rule(f"{op}-of-one", P[op](x, axes=axes), _reduce_of_one) for op in REDUCTIONS),
    *(rule(f"{op}-of-broadcast", P[op](P.broadcast(x, axes=attr("to")), axes=axes), _pick_of_broadcast)
      for op in PICKS),
    rule("sum-of-zeros", P.reduce_sum(0), lambda m: m.splat(0)),
    rule("sum-of-splat", P.reduce_sum(P.broadcast(x, axes=()), axes=axes), _fill_sum,
         when=lambda m: m.x.dtype.integer),
    rule("sum-of-splat-fast", P.reduce_sum(P.broadcast(x, axes=()), axes=axes), _fill_sum,
         when=lambda m: m.x.dtype.floating, fast=True),
    *(_exact_pairs(op, "iu") for op in ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")),
    *(_exact_pairs(op, "b") for op in ("reduce_and", "reduce_or")),
]

# ---- contractions ---------------------------------------------------------------------------------------------------

SIDES = (("lhs_batch", "lhs_contract"), ("rhs_batch", "rhs_contract"))


def _absorb(side: int) -> Callable[[Match], Node | None]:
    """``dot`` reads a transposed operand in its own order, if the free axes keep theirs."""
    batch, contract = SIDES[side]

    def build(m: Match) -> Node | None:
        attrs = dict(m.root.attrs)
        bound = (*attrs[batch], *attrs[contract])
        free = [m.perm[a] for a in kept(len(m.perm), bound)]
        if free != sorted(free):
            return None
        attrs[batch] = tuple(m.perm[a] for a in attrs[batch])
        attrs[contract] = tuple(m.perm[a] for a in attrs[contract])
        operands = (m.x, m.y) if side == 0 else (m.y, m.x)
        return m.make("dot", *operands, **attrs)
    return build


def _swap_operands(m: Match) -> Node | None:
    """The transpose that exchanges the free axes of both operands is the dot of exchanged operands."""
    old = m.root.inputs[0].attrs
    batch = len(old["lhs_batch"])
    lhs = m.x.rank - batch - len(old["lhs_contract"])
    rhs = m.y.rank - batch - len(old["rhs_contract"])
    wanted = (*range(batch), *range(batch + lhs, batch + lhs + rhs), *range(batch, batch + lhs))
    if m.perm != wanted:
        return None
    return m.make("dot", m.y, m.x, lhs_batch=old["rhs_batch"], rhs_batch=old["lhs_batch"],
                  lhs_contract=old["rhs_contract"], rhs_contract=old["lhs_contract"])


CONTRACT = [
    rule("dot-transposed-lhs", P.dot(P.transpose(x, perm=perm), y), _absorb(0)),
    rule("dot-transposed-rhs", P.dot(y, P.transpose(x, perm=perm)), _absorb(1)),
    rule("transpose-of-dot", P.transpose(P.dot(x, y), perm=perm), _swap_operands),
]

MOVEMENT: list[Rule] = [*SHUFFLE, *SPREAD, *CUT, *SUMMARY, *CONTRACT]
