"""Hypothesis strategies that draw whole typed graphs with sizes and argument values.

Every draw is valid.  Operators are drawn first, then operands that fit, made to fit by casts, broadcasts and slices.
Sizes come from a small pool, each as a number or a symbol, so that shapes meet.  Values are plain in most draws and
special (NaN, infinities, signed zeros, denormals, extremes) in some: too many NaNs would blind every comparison.

Discontinuous operators (comparisons, rounding, conversions to integers, argmax) are drawn on *exact* values only, those
that every implementation must agree on bit by bit: one rounding step before them would be a large difference after.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

import flowc.ops  # noqa: F401
from flowc.dims import DimLike, evaluate, prod, sym
from flowc.graph import Graph, Node, constant, make, param
from flowc.types import DType, Type, bf16, bool_, dtype, f16, f32, f64, i8, i32, i64, u8, u32

SIZES = (0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 70)
LARGE = (100, 129, 257, 1000, 4097, 65537)  # beyond lanes, chunks, tiles and pieces
DTYPES = (f32, f32, f32, f64, i32, i64, bool_, f16, bf16, u8, i8, u32)
DRAWN: Counter[str] = Counter()  # operators drawn so far, for the test that watches the generator

UNARY = {"f": ("neg abs sqrt exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh asinh atan erf erfc ndtr "
               "cbrt logistic sign rsqrt").split(),
         "i": ["neg", "abs", "not", "sign"], "u": ["not", "abs"], "b": ["not"]}
SMOOTH_ONLY = {"sign"}
EXACT_FLOAT = {"neg", "abs", "sqrt", "sign", "add", "sub", "mul", "div", "max", "min", "copysign"}
BINARY = {"f": "add sub mul div max min copysign pow atan2".split(),
          "i": "add sub mul floor_divide mod max min and or xor shl shr".split(),
          "u": "add sub mul floor_divide mod max min and or xor shl shr".split(), "b": "and or xor max min".split()}
JUMPS = {"f": "floor ceil trunc rint isnan isinf isfinite floor_divide mod fmod".split()}
COMPARE = "eq ne lt le gt ge".split()
REDUCE = {"f": "reduce_sum reduce_max reduce_min reduce_prod".split(),
          "i": "reduce_sum reduce_max reduce_min reduce_prod".split(),
          "u": "reduce_sum reduce_max reduce_min".split(), "b": ["reduce_and", "reduce_or"]}


@dataclass
class Drawn:
    """A graph, values of its symbols, and arguments."""

    graph: Graph
    sizes: dict[str, int]
    arrays: list[np.ndarray] = field(repr=False)

    def __repr__(self) -> str:
        from flowc.text import graph_text
        return f"sizes {self.sizes}\n{graph_text(self.graph)}"


class _Pool:
    """Nodes drawn so far; which of them are exact."""

    def __init__(self, draw, sizes: dict[str, int], least: dict[str, int], room: int):
        self.draw, self.sizes, self.least, self.room = draw, sizes, least, room
        self.nodes: list[Node] = []
        self.exact: set[Node] = set()

    def add(self, node: Node, exact: bool) -> Node:
        DRAWN[node.op.name] += 1
        self.nodes.append(node)
        if exact:
            self.exact.add(node)
        return node

    def pick(self, want=lambda n: True) -> Node | None:
        fit = [n for n in self.nodes if want(n)]
        return self.draw(st.sampled_from(fit)) if fit else None

    def count(self, d: DimLike) -> int:
        return evaluate(d, self.sizes)

    def small(self, *nodes: Node) -> bool:
        """Are all of them of a size that interpreters get through?"""
        return all(self.count(n.type.size) <= self.room and n.rank <= 6 for n in nodes)

    def positions(self, count: int) -> Node:
        return constant(np.array(self.draw(st.lists(st.integers(-3, 90), min_size=count, max_size=count)), np.int64))

    def numbers(self, dtype: DType, shape: tuple[int, ...]) -> Node:
        """A constant of small whole numbers, exact in every dtype."""
        rng = np.random.default_rng(self.draw(st.integers(0, 2 ** 32 - 1)))
        return constant(rng.integers(0 if dtype.kind == "u" else -3, 4, shape).astype(dtype.numpy))

    def fit(self, x: Node, like: Node) -> Node | None:
        """``x`` cast and broadcast to the type of ``like``, if that is possible."""
        exact = x in self.exact
        if x.dtype is not like.dtype:
            if x.dtype.kind == "f" and like.dtype.kind != "f" and not exact:
                return None
            x = make("cast", (x,), {"dtype": like.dtype})
        if x.shape != like.shape:
            axes, at = [], 0
            for d in x.shape:
                while at < like.rank and like.shape[at] != d:
                    at += 1
                if at == like.rank:
                    return None
                axes.append(at)
                at += 1
            x = make("broadcast", (x,), {"shape": like.shape, "axes": tuple(axes)})
        if exact:
            self.exact.add(x)
        return x


def _elementwise(p: _Pool) -> Node | None:
    x = p.pick(lambda n: n.dtype.kind in "biuf")
    if x is None:
        return None
    kind = x.dtype.kind
    exact = x in p.exact
    names = [n for n in UNARY[kind] if exact or n not in SMOOTH_ONLY]
    if exact and kind == "f":
        names = names + JUMPS["f"][:7]
    name = p.draw(st.sampled_from(names))
    return p.add(make(name, (x,)), exact and (kind != "f" or name in EXACT_FLOAT or name in JUMPS["f"]))


def _binary(p: _Pool) -> Node | None:
    x = p.pick(lambda n: n.dtype.kind in "biuf")
    y = p.pick() if x is not None else None
    y = p.fit(y, x) if y is not None and x is not None else None
    if x is None or y is None:
        return None
    kind = x.dtype.kind
    exact = x in p.exact and y in p.exact
    names = BINARY[kind] + (COMPARE if exact else []) + (JUMPS["f"][7:] if exact and kind == "f" else [])
    if kind == "f" and y not in p.exact:  # the sign of what is nearly zero
        names = [n for n in names if n != "copysign"]
    name = p.draw(st.sampled_from(names))
    if name == "copysign":  # the sign of a NaN is nobody's promise
        one = make("broadcast", (constant(1, y.dtype),), {"shape": y.shape, "axes": ()})
        y = make("select", (make("isnan", (y,)), one, y))
    return p.add(make(name, (x, y)), exact and (kind != "f" or name in EXACT_FLOAT or name in COMPARE
                                                or name in JUMPS["f"]))


def _select(p: _Pool) -> Node | None:
    c = p.pick(lambda n: n.dtype is bool_)
    x = p.pick(lambda n: c is not None and n.shape == c.shape)
    y = p.pick()
    y = p.fit(y, x) if x is not None and y is not None else None
    if c is None or x is None or y is None:
        return None
    return p.add(make("select", (c, x, y)), c in p.exact and x in p.exact and y in p.exact)


def _cast(p: _Pool) -> Node | None:
    x = p.pick()
    to = p.draw(st.sampled_from(DTYPES))
    if x is None or (x.dtype.kind == "f" and to.kind != "f" and x not in p.exact):
        return None
    return p.add(make("cast", (x,), {"dtype": to}), x in p.exact)


def _movement(p: _Pool) -> Node | None:
    x = p.pick(lambda n: n.rank > 0)
    if x is None:
        return None
    which = p.draw(st.sampled_from(("transpose", "flip", "slice", "pad", "concatenate", "flatten", "insert", "gather",
                                    "broadcast")))
    out: Node | None = None
    exact = x in p.exact
    if which == "transpose":
        out = make("transpose", (x,), {"perm": tuple(p.draw(st.permutations(range(x.rank))))})
    elif which == "flip":
        out = make("flip", (x,), {"axes": tuple(sorted(p.draw(st.sets(st.integers(0, x.rank - 1), min_size=1))))})
    elif which == "slice":
        axis = p.draw(st.integers(0, x.rank - 1))
        n = x.shape[axis]
        surely = n if isinstance(n, int) else p.least.get(str(n), 0)
        start, step = p.draw(st.integers(0, min(surely, 2))), p.draw(st.integers(1, 3))
        starts, stops, steps = [0] * x.rank, list(x.shape), [1] * x.rank
        starts[axis], steps[axis] = start, step
        out = make("slice", (x,), {"start": tuple(starts), "stop": tuple(stops), "step": tuple(steps)})
    elif which == "pad":
        low = tuple(p.draw(st.integers(0, 2)) for _ in range(x.rank))
        high = tuple(p.draw(st.integers(0, 2)) for _ in range(x.rank))
        out = make("pad", (x, constant(1, x.dtype)), {"low": low, "high": high})
    elif which == "concatenate":
        axis = p.draw(st.integers(0, x.rank - 1))
        y = p.pick(lambda n: n.dtype is x.dtype and n.rank == x.rank and all(
            a == b for i, (a, b) in enumerate(zip(n.shape, x.shape)) if i != axis))
        assert y is not None
        out = make("concatenate", (x, y), {"axis": axis})
        return p.add(out, x in p.exact and y in p.exact)
    elif which == "flatten":
        out = make("reshape", (x,), {"shape": (prod(x.shape),)})
    elif which == "insert":
        at = p.draw(st.integers(0, x.rank))
        out = make("reshape", (x,), {"shape": (*x.shape[:at], 1, *x.shape[at:])})
    elif which == "gather":
        axis = p.draw(st.integers(0, x.rank - 1))
        if p.count(x.shape[axis]) > 0:
            index = p.pick(lambda n: n.dtype is i64 and n in p.exact and n.rank < 3) if p.draw(st.booleans()) else None
            out = make("gather", (x, index or p.positions(p.draw(st.integers(1, 5)))), {"axis": axis})
            exact = x in p.exact and (index is None or index in p.exact)
    else:
        d = p.draw(st.sampled_from([*[n.shape[0] for n in p.nodes if n.rank], 3]))
        at = p.draw(st.integers(0, x.rank))
        axes = tuple(i if i < at else i + 1 for i in range(x.rank))
        out = make("broadcast", (x,), {"shape": (*x.shape[:at], d, *x.shape[at:]), "axes": axes})
    return p.add(out, exact) if out is not None and p.small(out) else None


def _reduce(p: _Pool) -> Node | None:
    x = p.pick(lambda n: n.rank > 0 and n.dtype.kind in "biuf")
    if x is None:
        return None
    axes = tuple(sorted(p.draw(st.sets(st.integers(0, x.rank - 1), min_size=1))))
    names = list(REDUCE[x.dtype.kind])
    if x in p.exact and x.dtype.kind != "b":
        names += ["argmax", "argmin"]
    name = p.draw(st.sampled_from(names))
    empty = any(p.count(x.shape[a]) == 0 for a in axes)
    if empty and name in ("reduce_max", "reduce_min", "argmax", "argmin"):
        return None
    if name in ("argmax", "argmin"):
        axes = axes[:1]
    exact = x in p.exact and (x.dtype.kind != "f" or name in ("reduce_max", "reduce_min", "argmax", "argmin"))
    return p.add(make(name, (x,), {"axes": axes}), exact)


def _dot(p: _Pool) -> Node | None:
    x = p.pick(lambda n: n.rank > 0 and n.dtype.kind in "iuf" and n.dtype.bits > 8)
    if x is None:
        return None
    axis = p.draw(st.integers(0, x.rank - 1))
    y = p.pick(lambda n: n.dtype is x.dtype and x.shape[axis] in n.shape)
    assert y is not None
    other = p.draw(st.sampled_from([i for i, d in enumerate(y.shape) if d == x.shape[axis]]))
    lhs, rhs = [], []
    if p.draw(st.booleans()):  # a batch axis of equal size
        pairs = [(i, j) for i, a in enumerate(x.shape) for j, b in enumerate(y.shape)
                 if a == b and i != axis and j != other]
        if pairs:
            i, j = p.draw(st.sampled_from(pairs))
            lhs, rhs = [i], [j]
    work = p.count(x.type.size) * p.count(y.type.size) // max(1, p.count(prod(x.shape[i] for i in lhs)))
    if work > 10 * p.room or x.rank + y.rank > 6:
        return None
    out = make("dot", (x, y), {"lhs_batch": tuple(lhs), "rhs_batch": tuple(rhs), "lhs_contract": (axis,),
                               "rhs_contract": (other,)})
    return p.add(out, x in p.exact and y in p.exact and x.dtype.kind != "f") if p.small(out) else None


def _row(p: _Pool) -> Node | None:
    """What networks do along one axis: softmax, normalization, log of a sum of exponentials, distance to the mean."""
    x = p.pick(lambda n: n.rank > 0 and n.dtype.kind == "f")
    if x is None:
        return None
    axis = p.draw(st.integers(0, x.rank - 1))
    kept = tuple(a for a in range(x.rank) if a != axis)
    if p.count(x.shape[axis]) == 0:
        return None

    def reduce(name: str, y: Node) -> Node:
        return make(name, (y,), {"axes": (axis,)})

    def back(y: Node) -> Node:
        return make("broadcast", (y,), {"shape": x.shape, "axes": kept})

    which = p.draw(st.sampled_from(("softmax", "logsumexp", "normalize", "range", "weights")))
    if which in ("softmax", "logsumexp"):
        top = reduce("reduce_max", x)
        e = p.add(make("exp", (make("sub", (x, back(top))),)), False)
        total = p.add(reduce("reduce_sum", e), False)
        if which == "logsumexp":
            return p.add(make("add", (make("log", (total,)), top)), False)
        return p.add(make("div", (e, back(total))), False)
    if which == "normalize":
        centred = p.add(make("sub", (x, back(reduce("reduce_max", x)))), x in p.exact)
        square = reduce("reduce_sum", make("mul", (centred, centred)))
        return p.add(make("mul", (centred, back(make("rsqrt", (square,))))), False)
    if which == "range":
        low, high = reduce("reduce_min", x), reduce("reduce_max", x)
        return p.add(make("sub", (high, low)), x in p.exact)
    total = p.add(reduce("reduce_sum", make("abs", (x,))), False)
    return p.add(make("div", (x, back(total))), False)


def _general(p: _Pool) -> Node | None:
    """Ops with loops of their own: running values, writes at positions, sorting."""
    x = p.pick(lambda n: n.rank > 0 and n.dtype.kind in "iuf")
    if x is None:
        return None
    axis, exact = p.draw(st.integers(0, x.rank - 1)), x in p.exact
    which = p.draw(st.sampled_from(("cumsum", "cumprod", "scatter", "scatter_add", "update_slice", "sort", "argsort")))
    if which in ("cumsum", "cumprod"):
        return p.add(make(which, (x,), {"axis": axis}), exact and x.dtype.kind != "f")
    if which in ("sort", "argsort"):
        return p.add(make(which, (x,), {"axis": axis}), exact) if exact else None
    count = p.draw(st.integers(1, 4))
    if which == "update_slice":
        n = x.shape[axis]
        surely = n if isinstance(n, int) else p.least.get(str(n), 0)
        if not surely or not all(isinstance(d, int) for i, d in enumerate(x.shape) if i != axis):
            return None
        step = p.draw(st.integers(1, 2))
        start = p.draw(st.integers(0, surely - 1))
        extent = p.draw(st.integers(0, (surely - 1 - start) // step + 1))
        shape = tuple(extent if i == axis else d for i, d in enumerate(x.shape))
        steps = tuple(step if i == axis else 1 for i in range(x.rank))
        starts = tuple(start if i == axis else 0 for i in range(x.rank))
        return p.add(make(which, (x, p.numbers(x.dtype, shape)), {"start": starts, "step": steps}), exact)
    at = p.positions(count)
    updates = make("gather", (x, p.positions(count)), {"axis": axis})
    return p.add(make(which, (x, at, updates), {"axis": axis}), exact and (which == "scatter" or x.dtype.kind != "f"))


def _filter(p: _Pool) -> Node | None:
    """Sliding windows, their sum, and convolutions, along the last axis or two."""
    x = p.pick(lambda n: n.rank > 0 and n.dtype.kind in "iuf" and n.dtype.bits > 8)
    if x is None:
        return None
    exact = x in p.exact
    strides, dilation = p.draw(st.integers(1, 3)), p.draw(st.integers(1, 2))
    taps = p.draw(st.integers(1, 4))
    if p.draw(st.booleans()):
        attrs = {"window": (taps,), "strides": (strides,), "dilation": (dilation,)}
        w = make("windows", (x,), attrs)
        if not p.small(w):
            return None
        if p.draw(st.booleans()):
            return p.add(w, exact)
        w = make("mul", (w, w))
        return p.add(make("windows_sum", (w,), {**attrs, "shape": (x.shape[-1],)}), exact and x.dtype.kind != "f")
    while x.rank < 3:
        x = make("reshape", (x,), {"shape": (*x.shape[:-1], 1, *x.shape[-1:])})
    channels = x.shape[1]
    if not isinstance(channels, int) or not 0 < channels <= 8 or x.rank > 4:
        return None
    groups = p.draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
    outs = groups * p.draw(st.integers(1, 3))
    w = p.numbers(x.dtype, (outs, channels // groups, *(taps if i == 2 else 1 for i in range(2, x.rank))))
    one = (1,) * (x.rank - 3)
    pads = tuple((p.draw(st.integers(-1, 2)), p.draw(st.integers(0, 2))) for _ in range(2, x.rank))
    out = make("conv", (x, w), {"strides": (strides, *one), "padding": pads, "rhs_dilation": (dilation, *one),
                                "lhs_dilation": (p.draw(st.integers(1, 2)), *one), "groups": groups})
    return p.add(out, exact and x.dtype.kind != "f") if p.small(out) else None


def _made(p: _Pool) -> Node | None:
    """Values from nothing: positions, and bits that depend on a key."""
    x = p.pick(lambda n: 0 < n.rank)
    if x is None:
        return None
    if p.draw(st.booleans()):
        d = p.draw(st.sampled_from((i64, f32, i32)))
        return p.add(make("iota", (), {"shape": x.shape, "axis": p.draw(st.integers(0, x.rank - 1)), "dtype": d}), True)
    key = constant(np.array([p.draw(st.integers(0, 9)), 7], np.uint32))
    return p.add(make("random_bits", (key,), {"shape": x.shape, "dtype": u32}), True)


MAKERS = (_elementwise, _elementwise, _binary, _binary, _binary, _select, _cast, _movement, _movement, _reduce, _reduce,
          _dot, _row, _row, _general, _filter, _made)


def values(draw, t: Type, sizes: dict[str, int], special: bool) -> np.ndarray:
    shape = tuple(evaluate(d, sizes) for d in t.shape)
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    d = t.dtype
    if d.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if d.integer:
        info = np.iinfo(d.numpy)
        a = rng.integers(-9 if d.kind == "i" else 0, 10, shape).astype(d.numpy)
        if special and a.size:
            a.reshape(-1)[rng.integers(0, a.size, max(1, a.size // 8))] = rng.choice([info.min, info.max, 0])
        return a
    a = np.asarray(rng.standard_normal(shape) * 2).astype(d.numpy)
    if special and a.size:
        flat = a.reshape(-1)
        for v in (np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3e38, 1.0, 0.5):
            with np.errstate(all="ignore"):
                flat[rng.integers(0, a.size)] = np.asarray(v).astype(d.numpy)
    return a


@st.composite
def programs(draw, dtypes: tuple[DType, ...] = DTYPES, max_ops: int = 14, symbolic: bool = True,
             special: bool | None = None, large: bool = False) -> Drawn:
    """A graph of up to ``max_ops`` operators with arguments.  ``large``: one of the sizes is."""
    sizes: dict[str, int] = {}
    least: dict[str, int] = {}  # what the graph promises of a symbol
    pool: list[DimLike] = []
    room = 300_000 if large else 40_000
    for i in range(draw(st.integers(1, 3))):
        n = draw(st.sampled_from(LARGE if large and i == 0 else SIZES))
        if symbolic and (n != 1 or draw(st.booleans())) and draw(st.booleans()):
            sizes[f"n{i}"], least[f"n{i}"] = n, draw(st.sampled_from((0, 0, min(n, 1), min(n, 3))))
            pool.append(sym(f"n{i}"))
        else:
            pool.append(n)
    p = _Pool(draw, sizes, least, room)
    params: list[Node] = []
    for i in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.sampled_from(pool), max_size=3)))
        while evaluate(prod(shape), sizes) > room // 2:
            shape = shape[1:]
        params.append(p.add(param(f"x{i}", Type(dtype(draw(st.sampled_from(dtypes))), shape)), True))
    for s in sizes:  # every symbol must be known from an argument
        if not any(sym(s) in x.shape for x in params):
            params.append(p.add(param(f"of_{s}", Type(f32, (sym(s),))), True))
    for _ in range(draw(st.integers(1, max_ops))):
        draw(st.sampled_from(MAKERS))(p)
    made = [n for n in p.nodes if n not in params] or params
    outputs = draw(st.lists(st.sampled_from(made[-6:]), min_size=1, max_size=4))
    if draw(st.integers(0, 5)) == 0:
        outputs.append(draw(st.sampled_from(params)))
    hard = draw(st.integers(0, 3)) == 0 if special is None else special
    arrays = [values(draw, x.type, sizes, hard) for x in params]
    return Drawn(Graph("drawn", params, outputs, {s: (least[s], None) for s in sizes}), sizes, arrays)
