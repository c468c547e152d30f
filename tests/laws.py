"""Left sides of rewriting rules, drawn from their patterns: types, operands and attributes that fit together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import flowc.ops
from flowc.diag import FlowcTypeError
from flowc.dims import sym
from flowc.graph import Node, make, param
from flowc.op import REGISTRY
from flowc.passes.simplify import LATE, RULES
from flowc.rewrite import (
    Apply,
    AttrVar,
    Const,
    Lit,
    Pattern,
    Rest,
    Rule,
    Var,
    elementwise,
    splat,
)
from flowc.types import ALL, DType, Type, bool_, f16, f64, i8

assert flowc.ops  # fills the registry
LAWS: dict[str, Rule] = {r.name: r for s in (RULES, LATE) for r in s}


# ---- choosing -------------------------------------------------------------------------------------------------------

class Refused(Exception):
    """The drawn parts do not fit together."""


class Chooser:
    """Choices by hypothesis, or by a seeded generator while the dtypes that suit a rule are found out."""

    def __init__(self, data: Any = None, seed: int = 0):
        self.data, self.random = data, random.Random(seed)

    def pick(self, options: Any) -> Any:
        options = list(options)
        if not options:
            raise Refused
        if self.data is None:
            return self.random.choice(options)
        return options[self.data.draw(st.integers(0, len(options) - 1))]

    def some(self, options: Any) -> tuple:
        return tuple(o for o in options if self.pick((True, False)))


N = sym("n")
SIZES = (0, 1, 1, 2, 3, N)


def special_values(d: DType) -> list[Any]:
    if d.kind == "b":
        return [False, True]
    if d.integer:
        info = np.iinfo(d.numpy)
        pool = [0, 1, 2, 3, 4, 7, 8, 64, -1, -2, -3, -8, info.min, info.max, info.min + 1, info.max - 1]
        return sorted({v for v in pool if info.min <= v <= info.max})
    if d.kind == "c":
        return [0j, complex(-0.0, 0.0), 1 + 0j, -1 + 0j, 2 - 3j, complex(np.inf, 1), complex(np.nan, 0), 0.5j]
    tiny, huge = (2.0 ** -14, 65504.0) if d is f16 else (2.0 ** -126, 3e38) if d.bits <= 32 else (2.0 ** -1022, 1.7e308)
    return [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 4.0, 3.0, -3.0, 0.1, -0.7, 2.5, 1e-3, 1024.0,
            np.inf, -np.inf, np.nan, tiny, -tiny, tiny / 4, huge, -huge]


def array(rng: np.random.Generator, d: DType, shape: tuple[int, ...], tame: bool = False) -> np.ndarray:
    """Special values mixed with plain ones; tame: small whole numbers, for sums that are exact in every order."""
    if tame:
        low = 0 if d.kind in "bu" else -3
        return rng.integers(low, 2 if d.kind == "b" else 4, shape).astype(d.numpy)
    with np.errstate(all="ignore"):
        pool = np.array(special_values(d)).astype(d.numpy)
    return np.asarray(pool[rng.integers(0, len(pool), shape)])


# ---- drawing a left side from a pattern -----------------------------------------------------------------------------

class Draw:
    """Builds a node that looks like a pattern.  ``dtype`` is that of the variables; ``fast``: ordinary constants."""

    def __init__(self, choose: Chooser, dtype: DType, fast: bool = False):
        self.choose, self.dtype, self.fast = choose, dtype, fast
        self.nodes: dict[str, Any] = {}
        self.params: list[Node] = []

    def leaf(self, dtype: DType, shape: tuple) -> Node:
        self.params.append(param(f"p{len(self.params)}", Type(dtype, shape)))
        return self.params[-1]

    def shape(self, low: int = 0, high: int = 3) -> tuple:
        return tuple(self.choose.pick(SIZES) for _ in range(self.choose.pick(range(low, high + 1))))

    def build(self, p: Pattern, dtype: DType, shape: tuple) -> Node:
        if isinstance(p, Lit):
            return splat(p.value, Type(dtype, shape))
        if isinstance(p, (Var, Const)):
            if p.name not in self.nodes:
                self.nodes[p.name] = self.bind(p, dtype, shape)
            return self.nodes[p.name]
        assert isinstance(p, Apply)
        return self.apply(p, dtype, shape)

    def bind(self, p: Var | Const, dtype: DType, shape: tuple) -> Node:
        if isinstance(p, Const):
            tame = self.fast and dtype.floating
            pool = [np.asarray(v).astype(dtype.numpy)[()] for v in ((0.5, 3.0, 0.7) if tame else special_values(dtype))]
            return splat(self.choose.pick([v for v in pool if p.where is None or p.where(v)]), Type(dtype, shape))
        node = self.leaf(dtype, shape)
        if p.where is None or p.where(node):
            return node
        for op in ("floor", "rint"):  # variables that must be integer-valued
            if dtype.floating and p.where(made := make(op, (node,))):
                return made
        raise Refused

    def apply(self, p: Apply, dtype: DType, shape: tuple) -> Node:
        op = REGISTRY[p.op] if isinstance(p.op, str) else self.choose.pick(
            o for o in REGISTRY.values() if p.accepts(o) and dtype in o.dtypes)
        slots = OPERANDS.get(family(op.name), elementwise_operands)(self, p, dtype, shape)
        inputs = []
        for i, a in enumerate(p.args):
            if isinstance(a, Rest):
                count = (op.arity or self.choose.pick((1, 2, 3))) - i
                self.nodes[a.name] = tuple(self.leaf(*slots(j)) for j in range(i, i + count))
                inputs += self.nodes[a.name]
            else:
                inputs.append(self.build(a, *slots(i)))
        return make(op, inputs, self.attrs(op.name, p, inputs))

    def attrs(self, op: str, p: Apply, inputs: list[Node]) -> dict[str, Any]:
        table = ATTRS.get(family(op))
        drawn = dict(table(self, p, inputs)) if table else {}
        for k, v in p.attrs.items():
            drawn[k] = self.nodes.setdefault(v.name, drawn[k]) if isinstance(v, AttrVar) else v
        return drawn


def family(op: str) -> str:
    return "reduce" if op.startswith("reduce_") else op


def elementwise_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    return lambda i: (dtype, shape)


def select_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    return lambda i: (dtype if i else bool_, shape)


def broadcast_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    small = () if p.attrs.get("axes") == () else d.shape(0, 2)
    return lambda i: (dtype, small)


def free_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    own = d.shape(0, 3)
    return lambda i: (dtype, own)


def pad_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    own = d.shape(0, 3)
    return lambda i: (dtype, () if i else own)


def concatenate_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    own = d.shape(1, 3)
    return lambda i: (dtype, (d.choose.pick(SIZES), *own[1:]))


def cast_operands(d: Draw, p: Apply, dtype: DType, shape: tuple) -> Callable[[int], tuple]:
    return lambda i: (dtype, shape)


OPERANDS: dict[str, Callable[..., Callable[[int], tuple]]] = {
    "select": select_operands, "broadcast": broadcast_operands, "pad": pad_operands,
    "concatenate": concatenate_operands, "cast": cast_operands,
    **dict.fromkeys(("reshape", "transpose", "slice", "flip", "windows", "reduce"), free_operands),
}


def broadcast_attrs(d: Draw, p: Apply, xs: list[Node]) -> dict[str, Any]:
    shape, axes = [], []
    for s in xs[0].shape:
        shape += d.shape(0, 1)
        axes.append(len(shape))
        shape.append(s)
    return {"shape": (*shape, *d.shape(0, 2)), "axes": tuple(axes)}


def reshape_attrs(d: Draw, p: Apply, xs: list[Node]) -> dict[str, Any]:
    s = xs[0].shape
    options = [s, (1, *s), (*s, 1)] + ([(s[0] * s[1], *s[2:])] if len(s) > 1 else []) + [tuple(x for x in s if x != 1)]
    return {"shape": d.choose.pick(options)}


def slice_attrs(d: Draw, p: Apply, xs: list[Node]) -> dict[str, Any]:
    start, stop = [], []
    for s in xs[0].shape:
        whole = not isinstance(s, int) or d.choose.pick((True, False))
        start.append(0 if whole else d.choose.pick(range(s + 1)))
        stop.append(s if whole else d.choose.pick(range(start[-1], s + 1)))
    return {"start": tuple(start), "stop": tuple(stop), "step": tuple(d.choose.pick((1, 1, 2)) for _ in start)}


def pad_attrs(d: Draw, p: Apply, xs: list[Node]) -> dict[str, Any]:
    if d.choose.pick((False, False, True)):
        return {"low": (0,) * xs[0].rank, "high": (0,) * xs[0].rank}
    return {k: tuple(d.choose.pick((0, 1, 2)) for _ in xs[0].shape) for k in ("low", "high")}


def windows_attrs(d: Draw, p: Apply, xs: list[Node]) -> dict[str, Any]:
    count = d.choose.pick(range(min(xs[0].rank, 2) + 1)) if xs[0].rank else 0
    return {"window": tuple(d.choose.pick((1, 2)) for _ in range(count)),
            "strides": tuple(d.choose.pick((1, 2)) for _ in range(count)), "dilation": (1,) * count}


ATTRS: dict[str, Callable[..., dict[str, Any]]] = {
    "broadcast": broadcast_attrs, "reshape": reshape_attrs, "slice": slice_attrs, "pad": pad_attrs,
    "windows": windows_attrs,
    "transpose": lambda d, p, xs: {"perm": d.choose.pick(itertools.permutations(range(xs[0].rank)))},
    "flip": lambda d, p, xs: {"axes": d.choose.some(range(xs[0].rank))},
    "concatenate": lambda d, p, xs: {"axis": 0},
    "reduce": lambda d, p, xs: {"axes": d.choose.some(range(xs[0].rank))},
    "cast": lambda d, p, xs: {"dtype": d.choose.pick(ALL)},
}


# ---- left sides whose parts must fit together more closely than a pattern says --------------------------------------

def draw_dot(d: Draw, transposed: int | None) -> Node:
    """Two operands with drawn orders of batch, free and contracted axes."""
    batch, contract = d.shape(0, 1), d.shape(0, 2)
    operands, attrs = [], {}
    for side, name in ((0, "lhs"), (1, "rhs")):
        sizes = [*batch, *contract, *d.shape(0, 2)]
        order = d.choose.pick(itertools.permutations(range(len(sizes))))
        at = {axis: place for place, axis in enumerate(order)}
        x = d.leaf(d.dtype, tuple(sizes[a] for a in order))
        if transposed == side:
            perm = d.choose.pick(itertools.permutations(range(len(sizes))))
            x = make("transpose", (x,), {"perm": perm})
            at = {axis: perm.index(place) for axis, place in at.items()}
        attrs[f"{name}_batch"] = tuple(at[i] for i in range(len(batch)))
        attrs[f"{name}_contract"] = tuple(at[len(batch) + i] for i in range(len(contract)))
        operands.append(x)
    return make("dot", operands, attrs)


def draw_transposed_dot(d: Draw) -> Node:
    y = draw_dot(d, None)
    batch, lhs = len(y.attrs["lhs_batch"]), y.inputs[0].rank - len(y.attrs["lhs_contract"])
    swap = (*range(batch), *range(lhs, y.rank), *range(batch, lhs))
    return make("transpose", (y,), {"perm": d.choose.pick((swap, swap, tuple(reversed(range(y.rank)))))})


def window_of(d: Draw, x: Node) -> tuple[dict[str, Any], tuple]:
    """A drawn strided window of ``x`` as attributes of slice, and its shape."""
    attrs = slice_attrs(d, Apply("slice", ()), [x])
    return attrs, make("slice", (x,), attrs).shape


def draw_slice_of_update(d: Draw) -> Node:
    x = d.leaf(d.dtype, d.shape(0, 3))
    attrs, shape = window_of(d, x)
    y = make("update_slice", (x, d.leaf(d.dtype, shape)), {"start": attrs["start"], "step": attrs["step"]})
    return make("slice", (y,), attrs)


def draw_update_update(d: Draw) -> Node:
    x = d.leaf(d.dtype, d.shape(0, 3))
    attrs, shape = window_of(d, x)
    at = {"start": attrs["start"], "step": attrs["step"]}
    y = make("update_slice", (x, d.leaf(d.dtype, shape)), at)
    return make("update_slice", (y, d.leaf(d.dtype, shape)), at)


def draw_update_whole(d: Draw) -> Node:
    shape = d.shape(0, 3)
    at = {"start": (0,) * len(shape), "step": (1,) * len(shape)}
    return make("update_slice", (d.leaf(d.dtype, shape), d.leaf(d.dtype, shape)), at)


def draw_slice_of_pad(d: Draw) -> Node:
    x = d.leaf(d.dtype, d.shape(0, 3))
    y = make("pad", (x, d.leaf(d.dtype, ())), pad_attrs(d, Apply("pad", ()), [x, x]))
    attrs, _ = window_of(d, x)  # where x now stands
    move = {k: tuple(p + q for p, q in zip(attrs[k], y.attrs["low"], strict=True)) for k in ("start", "stop")}
    return make("slice", (y,), {**attrs, **move})


def draw_first_of_argsort(d: Draw) -> Node:
    before, count = d.shape(0, 1), d.choose.pick((0, 1, 2))
    shape = (*before, d.choose.pick((16, 31, 40)), *d.shape(0, 1))
    y = make("argsort", (d.leaf(d.dtype, shape),), {"axis": len(before)})
    stop = (*before, count, *shape[len(before) + 1:])
    return make("slice", (y,), {"start": (0,) * len(shape), "stop": stop, "step": (1,) * len(shape)})


def draw_between_reshapes(d: Draw) -> Node:
    op = d.choose.pick(o for o in REGISTRY.values() if elementwise(o) and d.dtype in o.dtypes and not o.attrs)
    shape = d.shape(0, 2)
    wide = (*shape[:1], 1, *shape[1:])
    inputs = []
    for i in range(op.arity or 1):
        dtype = bool_ if op.name == "select" and not i else d.dtype
        if i and d.choose.pick((True, False)):
            inputs.append(make("broadcast", (d.leaf(dtype, ()),), {"shape": wide, "axes": ()}))
        else:
            inputs.append(make("reshape", (d.leaf(dtype, shape),), {"shape": wide}))
    return make("reshape", (make(op, inputs, {}),), {"shape": shape})


def draw_slice_of_concatenate(d: Draw) -> Node:
    tail = d.shape(0, 2)
    parts = [d.leaf(d.dtype, (d.choose.pick((0, 1, 2, 3)), *tail)) for _ in range(d.choose.pick((1, 2, 3)))]
    y = make("concatenate", parts, {"axis": 0})
    which = d.choose.pick(range(len(parts)))
    attrs, _ = window_of(d, parts[which])
    offset = sum(p.shape[0] for p in parts[:which])
    move = {k: (attrs[k][0] + offset, *attrs[k][1:]) for k in ("start", "stop")}
    return make("slice", (y,), {**attrs, **move})


def draw_concatenate_of_splats(d: Draw) -> Node:
    x, tail = d.leaf(d.dtype, ()), d.shape(0, 2)
    parts = [splat_of(x, (d.choose.pick(SIZES), *tail)) for _ in range(d.choose.pick((1, 2, 3)))]
    return make("concatenate", parts, {"axis": 0})


def splat_of(x: Node, shape: tuple) -> Node:
    return make("broadcast", (x,), {"shape": shape, "axes": ()})


def draw_pad_pad(d: Draw) -> Node:
    x, value = d.leaf(d.dtype, d.shape(0, 3)), d.leaf(d.dtype, ())
    y = make("pad", (x, value), pad_attrs(d, Apply("pad", ()), [x, value]))
    return make("pad", (y, value), pad_attrs(d, Apply("pad", ()), [y, value]))


def draw_broadcast_last(d: Draw) -> Node:
    p = LAWS["broadcast-last"].lhs
    op = d.choose.pick(o for o in REGISTRY.values() if p.accepts(o) and d.dtype in o.dtypes)
    small = d.shape(0, 2)
    like = d.leaf(d.dtype, small)
    attrs = broadcast_attrs(d, p, [like])
    inputs = []
    for i in range(op.arity or 1):
        dtype = d.dtype if op.name != "select" or not i else d.choose.pick((f64, i8))
        if op.name == "select" and i == 2:
            dtype = inputs[1].dtype
        whole = d.choose.pick((True, True, False)) or not i
        x = d.leaf(dtype, small if whole else ())
        inputs.append(make("broadcast", (x,), {**attrs, "axes": attrs["axes"] if whole else ()}))
    return make(op, inputs, {"dtype": d.choose.pick(ALL)} if op.attrs else {})


CASES: dict[str, Callable[[Draw], Node]] = {
    "dot-transposed-lhs": lambda d: draw_dot(d, 0), "dot-transposed-rhs": lambda d: draw_dot(d, 1),
    "transpose-of-dot": draw_transposed_dot, "slice-of-update": draw_slice_of_update,
    "update-update": draw_update_update, "update-whole": draw_update_whole, "slice-of-pad": draw_slice_of_pad,
    "slice-of-concatenate": draw_slice_of_concatenate, "concatenate-of-splats": draw_concatenate_of_splats,
    "pad-pad": draw_pad_pad, "broadcast-last": draw_broadcast_last, "slice-of-argsort": draw_first_of_argsort,
    "reshape-between": draw_between_reshapes,
}


def left_side(rule: Rule, choose: Chooser, dtype: DType) -> tuple[Node, list[Node]]:
    d = Draw(choose, dtype, rule.fast)
    try:
        root = CASES[rule.name](d) if rule.name in CASES else d.build(rule.lhs, dtype, d.shape(0, 2))
    except FlowcTypeError as e:
        raise Refused from e
    return root, d.params
