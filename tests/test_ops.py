"""Every op of the registry: complete records, type rules, lowering against meaning, derivatives against differences.

The tables of ops come from the registry itself, so a new op is tested by being declared.  Scalar expressions are
evaluated for all elements at once with the NumPy meanings of the instructions (backends/interp.py); every read is
checked to lie inside its operand.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

import flowc.ops
from flowc import types as t
from flowc.diag import FlowcTypeError
from flowc.dims import evaluate, sym
from flowc.graph import CONSTANT, PARAM, Node, constant, make, param, topological
from flowc.kernel import Builder, Expr
from flowc.op import REGISTRY, Contraction, General, HostCall, Op, Pointwise, Reduction
from flowc.ops.contract import dilated
from flowc.ops.movement import matched_groups, reshaped_index
from flowc.ops.random import philox
from flowc.ops.rules import n as build
from flowc.types import Type, array_type

assert flowc.ops  # imported for its records
OPS = [op for op in REGISTRY.values() if op not in (PARAM, CONSTANT) and op.samples is not None]
POINTWISE = [op for op in OPS if isinstance(op.lower, Pointwise)]
NATIVE = [d for d in t.ALL if d.kind != "c"]  # complex dtypes are host calls


def rng_for(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def named(ops: list[Op]):
    return pytest.mark.parametrize("op", ops, ids=lambda op: op.name)


def types_of(arrays, attrs, op: Op) -> tuple[Type, ...]:
    ins = tuple(array_type(a) for a in arrays)
    return (*ins, op.infer(*ins, **attrs))


# ---- comparing ------------------------------------------------------------------------------------------------------

def ordered(a: np.ndarray) -> np.ndarray:
    """Floats as Python integers in which neighbours differ by 1 and both zeros are 0."""
    width = a.dtype.itemsize
    bits = a.view(f"i{width}").astype(object)
    return np.where(bits < 0, -(2 ** (8 * width - 1)) - bits, bits)


def assert_close(got: np.ndarray, want: np.ndarray, ulp: float | None, what: object = "", zeros: bool = True) -> None:
    """Equal dtype, shape, NaNs; floats within ``ulp`` steps (0: equal bits but for NaN; the sign of zero too where
    ``zeros``); None: within a few rounding steps of the largest value."""
    assert got.dtype == want.dtype and got.shape == want.shape, (what, got.dtype, want.dtype, got.shape, want.shape)
    if t.dtype(got.dtype).kind in "biu":
        assert np.array_equal(got, want), (what, got, want)
        return
    with np.errstate(all="ignore"):
        wrong = np.isnan(got) != np.isnan(want)
        assert not wrong.any(), (what, got[wrong][:5], want[wrong][:5])
        fine = ~np.isnan(want)
        g, w = got[fine], want[fine]
        if ulp is None:
            scale = np.abs(w.astype(np.complex128)).max(initial=1.0)
            eps = float(np.finfo(np.float32 if w.dtype.itemsize == 2 else w.dtype).eps)
            eps = {"f16": 2.0 ** -10, "bf16": 2.0 ** -7}.get(t.dtype(w.dtype).name, eps)
            same = (g == w) | (np.abs(g.astype(np.complex128) - w.astype(np.complex128)) <= 64 * eps * scale)
        elif ulp == 0:
            same = (g == w) & ((np.signbit(g) == np.signbit(w)) | (not zeros))
        else:
            same = np.abs(ordered(g) - ordered(w)) <= ulp
    assert same.all(), (what, g[~same][:5], w[~same][:5])


# ---- evaluating lowerings -------------------------------------------------------------------------------------------

class Indexed(Builder):
    """The builder lowering passes to ops: expressions, and indices from data."""

    def __init__(self) -> None:
        super().__init__()
        self.bound: dict = {}

    def as_index(self, value: Expr, lo, hi):
        name = f"at{len(self.bound)}"
        self.bound[name] = value, lo, hi
        return sym(name)


class Evaluator(dict):
    """Values of expressions for many index tuples at once.  As a mapping: the value of every symbol."""

    def __init__(self, b: Indexed, buffers: dict[str, np.ndarray], env: dict, refs: dict | None = None,
                 count: int = 1):
        from flowc.backends.interp import NUMPY_MEANING
        super().__init__(env)
        self.b, self.buffers, self.refs, self.table = b, buffers, refs or {}, NUMPY_MEANING
        self.memo: dict[Expr, np.ndarray] = {}
        self.nothing = count == 0

    def __missing__(self, name: str):
        value, *_ = self.b.bound[name]
        self[name] = self.value(value)
        return self[name]

    def value(self, e: Expr) -> np.ndarray:
        if e not in self.memo:
            self.memo[e] = self._value(e)
            assert self.memo[e].dtype == e.dtype.numpy, e.op
        return self.memo[e]

    def _value(self, e: Expr) -> np.ndarray:
        if e.op == "const":
            return np.asarray(e.attr).astype(e.dtype.numpy)
        if e.op == "index":
            return np.asarray(evaluate(e.attr, self), np.int64)
        if e.op == "ref":
            return self.refs[e.attr[0]]
        args = [self.value(a) for a in e.args]
        if e.op == "load":
            return self._load(e, *args)
        with np.errstate(all="ignore"):
            if e.op in ("cast", "bitcast"):
                return np.asarray(self.table[e.op](args[0], e.dtype))
            return np.asarray(self.table[e.op](*args))

    def _load(self, e: Expr, where=None, other=None) -> np.ndarray:
        name, index = e.attr
        if self.nothing:
            return np.empty(0, e.dtype.numpy)
        flat, at = self.buffers[name].reshape(-1), np.asarray(evaluate(index, self), np.int64)
        read = np.ones(at.shape, bool) if where is None else np.broadcast_arrays(where, at)[0]
        at = np.broadcast_to(at, read.shape)
        assert ((at >= 0) & (at < len(flat)))[read].all(), f"{name} read outside 0..{len(flat) - 1}"
        out = np.empty(read.shape, e.dtype.numpy)
        out[read] = flat[at[read]]
        if where is not None:
            out[~read] = np.broadcast_to(other, read.shape)[~read]
        return out


def loader(b: Indexed, types: tuple[Type, ...]):
    def load(k, idx, where=None, other=None):
        at = 0
        assert len(idx) == types[k].rank
        for i, s in zip(idx, types[k].shape, strict=True):
            at = at * s + i
        return b.load(f"in{k}", at, types[k].dtype, where, other)
    return load


def pointwise(op: Op, arrays, attrs) -> np.ndarray:
    """The result of the op's scalar expression, for all elements."""
    types = types_of(arrays, attrs, op)
    out, b = types[-1], Indexed()
    names = [f"i{k}" for k in range(out.rank)]
    e = op.lower.expr(b, tuple(map(sym, names)), loader(b, types), types, attrs)
    assert e.dtype is out.dtype, (op, e.dtype, out)
    places = np.indices(out.shape).reshape(out.rank, int(np.prod(out.shape)))
    buffers = {f"in{k}": a for k, a in enumerate(arrays)}
    run = Evaluator(b, buffers, dict(zip(names, places, strict=True)), count=places.shape[1])
    return np.broadcast_to(run.value(e), places.shape[1:]).reshape(out.shape)


def native(arrays, op: Op, attrs) -> bool:
    return all(x.dtype.kind != "c" for x in types_of(arrays, attrs, op))


# ---- records and type rules -----------------------------------------------------------------------------------------

@named([op for op in REGISTRY.values() if op not in (PARAM, CONSTANT) and not op.name.startswith("test_")])
def test_records_are_complete(op: Op):
    assert op.doc.endswith(".") and len(op.doc.split()) >= 2
    assert op.dtypes and op.ulp is not None and op.arity is not None or op.name == "concatenate"
    if op.samples is None:
        pytest.skip("an op of control flow: tested with its graphs")
    samples = op.samples(rng_for(op.name))
    assert samples and all(set(attrs) == set(op.attrs) for _, attrs in samples)
    if op.arity:
        seen = {array_type(arrays[0]).dtype for arrays, _ in samples}
        assert seen <= set(op.dtypes)
    for d, bound in op.ulp.items():
        assert d in t.DTYPES and 0 <= bound <= 4
    if op.vjp is not None:
        assert op.jvp is not None


@named(OPS)
def test_meaning_has_the_inferred_type(op: Op):
    for arrays, attrs in op.samples(rng_for(op.name)):
        before = [a.copy() for a in arrays]
        out = op.infer(*map(array_type, arrays), **attrs)
        value = op.numpy(*arrays, **attrs)
        assert isinstance(value, np.ndarray)
        assert value.dtype == out.dtype.numpy and value.shape == out.shape, (op, out, value.dtype, value.shape)
        assert all(np.array_equal(a.view(np.uint8) if a.ndim else a.tobytes(), b.view(np.uint8) if b.ndim else
                                  b.tobytes()) for a, b in zip(arrays, before, strict=True)), "operands are not written"


f32, i64, b1 = t.f32, t.i64, t.bool_
n, m = sym("n"), sym("m")
CONV = {"strides": (1,), "padding": ((0, 0),), "lhs_dilation": (1,), "rhs_dilation": (1,), "groups": 1}
DOT = {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (0,)}
WINDOW = {"window": (3,), "strides": (1,), "dilation": (1,)}


@pytest.mark.parametrize("name, types, attrs, want", [
    ("add", [Type(f32, (n, 3))] * 2, {}, "f32[n, 3]"),
    ("eq", [Type(f32, (n,))] * 2, {}, "bool[n]"),
    ("broadcast", [Type(f32, (n,))], {"shape": (m, n), "axes": (1,)}, "f32[m, n]"),
    ("reshape", [Type(f32, (n, 6))], {"shape": (2, n, 3)}, "f32[2, n, 3]"),
    ("reshape", [Type(f32, (n, m))], {"shape": (m * n,)}, "f32[m*n]"),
    ("slice", [Type(f32, (n,))], {"start": (1,), "stop": (n,), "step": (1,)}, "f32[n - 1]"),
    ("pad", [Type(f32, (n,)), Type(f32)], {"low": (2,), "high": (m,)}, "f32[m + n + 2]"),
    ("concatenate", [Type(f32, (n, 2)), Type(f32, (m, 2)), Type(f32, (1, 2))], {"axis": 0}, "f32[m + n + 1, 2]"),
    ("gather", [Type(f32, (n, 4)), Type(i64, (m, 2))], {"axis": 0}, "f32[m, 2, 4]"),
    ("dot", [Type(f32, (n, m)), Type(f32, (m, 5))], DOT, "f32[n, 5]"),
    ("conv", [Type(f32, (n, 3, m)), Type(f32, (8, 3, 3))], CONV | {"padding": ((1, 1),)}, "f32[n, 8, m]"),
    ("conv", [Type(f32, (n, 3, m)), Type(f32, (8, 3, 3))], CONV, "f32[n, 8, max(m - 2, 0)]"),
    ("windows", [Type(f32, (4, n))], WINDOW, "f32[4, max(n - 2, 0), 3]"),
    ("reduce_max", [Type(f32, (n, m))], {"axes": (1,)}, "f32[n]"),
    ("iota", [], {"shape": (n, m), "axis": 0, "dtype": f32}, "f32[n, m]"),
    ("size", [], {"value": n * m}, "i64[]"),
])
def test_symbolic_types(name, types, attrs, want):
    assert str(REGISTRY[name].infer(*types, **attrs)) == want


@pytest.mark.parametrize("name, types, attrs, words", [
    ("add", [Type(f32, (n,)), Type(f32, (m,))], {}, "sizes n and m, which are not known to be equal"),
    ("add", [Type(f32, (3,)), Type(f32, (4,))], {}, "sizes 3 and 4"),
    ("add", [Type(f32, (3,)), Type(t.f64, (3,))], {}, "f32 and f64"),
    ("add", [Type(f32, (3,))], {}, "takes 2 operands, got 1"),
    ("add", [Type(b1, (3,))] * 2, {}, "bool is not supported"),
    ("exp", [Type(t.i32, (3,))], {}, "i32 is not supported"),
    ("neg", [Type(f32)], {"axis": 1}, "attributes are none"),
    ("select", [Type(b1, (2,)), Type(f32, (3,)), Type(f32, (3,))], {}, "sizes 2 and 3"),
    ("cast", [Type(f32)], {"dtype": "f64"}, "dtype"),
    ("broadcast", [Type(f32, (1,))], {"shape": (4,), "axes": (0,)}, "sizes 1 and 4"),
    ("broadcast", [Type(f32, (2, 3))], {"shape": (3, 2), "axes": (1, 0)}, "increasing"),
    ("reshape", [Type(f32, (n, 2))], {"shape": (n,)}, "2*n elements"),
    ("reshape", [Type(f32, (4,))], {"shape": (-2, -2)}, "at least 0"),
    ("transpose", [Type(f32, (2, 3))], {"perm": (0, 0)}, "twice"),
    ("slice", [Type(f32, (4,))], {"start": (1,), "stop": (5,), "step": (1,)}, "1..5 leaves an axis of size 4"),
    ("slice", [Type(f32, (4,))], {"start": (3,), "stop": (1,), "step": (1,)}, "after its stop"),
    ("slice", [Type(f32, (4,))], {"start": (0,), "stop": (4,), "step": (0,)}, "at least 1"),
    ("update_slice", [Type(f32, (4,)), Type(f32, (3,))], {"start": (2,), "step": (1,)}, "leaves an axis of size 4"),
    ("pad", [Type(f32, (4,)), Type(f32)], {"low": (-1,), "high": (0,)}, "at least 0"),
    ("flip", [Type(f32, (4,))], {"axes": (1,)}, "not one of the 1 axes"),
    ("concatenate", [Type(f32, (2, 3)), Type(f32, (2, 4))], {"axis": 0}, "sizes 3 and 4"),
    ("concatenate", [], {"axis": 0}, "at least one"),
    ("gather", [Type(f32, (4,)), Type(t.i32, (2,))], {"axis": 0}, "must be i64"),
    ("scatter_add", [Type(f32, (4,)), Type(i64, (2,)), Type(f32, (3,))], {"axis": 0}, "sizes 2 and 3"),
    ("windows", [Type(f32, (4,))], WINDOW | {"window": (n,)}, "symbolic size n"),
    ("reduce_max", [Type(f32, (3, 0))], {"axes": (1,)}, "of nothing has no value"),
    ("reduce_sum", [Type(f32, (3,))], {"axes": (1,)}, "axis 1"),
    ("reduce_sum", [Type(f32)], {"axes": (0,)}, "a scalar has no axes"),
    ("argmax", [Type(f32, (3, 4))], {"axes": (0, 1)}, "exactly one axis"),
    ("dot", [Type(f32, (2, n)), Type(f32, (m, 5))], DOT, "sizes n and m"),
    ("dot", [Type(f32, (2, 3)), Type(f32, (3, 5))], DOT | {"lhs_contract": (2,)}, "axis 2"),
    ("conv", [Type(f32, (1, 4, 9)), Type(f32, (8, 3, 3))], CONV, "sizes 4 and 3"),
    ("conv", [Type(f32, (1, 4, 9)), Type(f32, (3, 2, 3))], CONV | {"groups": 2}, "must divide"),
    ("iota", [], {"shape": (3,), "axis": 0, "dtype": b1}, "real number"),
    ("random_bits", [Type(t.u32, (3,))], {"shape": (2,), "dtype": t.u32}, "two words"),
])
def test_bad_calls_say_what_is_wrong(name, types, attrs, words):
    operands = [param(f"x{k}", x) for k, x in enumerate(types)]
    with pytest.raises(FlowcTypeError) as e:
        make(name, operands, attrs)
    assert e.value.code == "T001" and words in e.value.text, e.value.text


def test_importing_the_ops_loads_numpy_only():
    code = "import flowc.ops, sys; print(*[m for m in ('llvmlite', 'networkx', 'ml_dtypes') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# ---- lowering against meaning ---------------------------------------------------------------------------------------

def loose_zero(op: Op) -> bool:
    return op.name not in ("max", "min", "reduce_max", "reduce_min", "windows_sum")


@named(POINTWISE)
def test_expression_equals_meaning(op: Op):
    for arrays, attrs in op.samples(rng_for(op.name)):
        if native(arrays, op, attrs):
            want = op.numpy(*arrays, **attrs)
            ulp = op.ulp.get(array_type(arrays[0]).dtype.name if arrays else "f32")
            assert_close(pointwise(op, arrays, attrs), want, ulp, (op, attrs, arrays), loose_zero(op))


@pytest.mark.parametrize("d", t.FLOATS, ids=str)
@named([op for op in POINTWISE if op.arity in (1, 2) and not op.attrs and t.f32 in op.dtypes])
def test_special_floats(op: Op, d):
    grid = strategies.special_values(d)
    arrays = (grid,) if op.arity == 1 else tuple(np.ascontiguousarray(a.ravel()) for a in np.meshgrid(grid, grid))
    assert_close(pointwise(op, arrays, {}), op.numpy(*arrays), op.ulp[d.name], op, loose_zero(op))


@pytest.mark.parametrize("d", [t.i8, t.u8], ids=str)
@named([op for op in POINTWISE if op.arity in (1, 2) and not op.attrs and t.i8 in op.dtypes])
def test_all_bytes(op: Op, d):
    info = np.iinfo(d.numpy)
    line = np.arange(info.min, info.max + 1).astype(d.numpy)
    arrays = (line,) if op.arity == 1 else tuple(np.ascontiguousarray(a.ravel()) for a in np.meshgrid(line, line))
    if d in op.dtypes:
        assert_close(pointwise(op, arrays, {}), op.numpy(*arrays), 0, op)


@pytest.mark.parametrize("d", [t.i16, t.i32, t.i64, t.u16, t.u32, t.u64], ids=str)
@named([op for op in POINTWISE if op.arity in (1, 2) and not op.attrs and t.i32 in op.dtypes])
def test_special_integers(op: Op, d):
    grid = strategies.special_values(d)
    arrays = (grid,) if op.arity == 1 else tuple(np.ascontiguousarray(a.ravel()) for a in np.meshgrid(grid, grid))
    if d in op.dtypes:
        assert_close(pointwise(op, arrays, {}), op.numpy(*arrays), 0, op)


@pytest.mark.parametrize("source", NATIVE, ids=str)
def test_casts_of_special_values(source):
    x = strategies.special_values(source)
    for d in NATIVE:
        assert_close(pointwise(REGISTRY["cast"], (x,), {"dtype": d}), REGISTRY["cast"].numpy(x, dtype=d), 0, d)


def test_cast_saturates():
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 300.0, -1.0, 2.0 ** 63, 127.9, -128.9])
    cast = REGISTRY["cast"].numpy
    assert cast(x, dtype=t.i8).tolist() == [0, 127, -128, 127, -128, 127, -1, 127, 127, -128]
    assert cast(x, dtype=t.u8).tolist() == [0, 255, 0, 255, 0, 255, 0, 255, 127, 0]
    assert cast(x, dtype=t.i64).tolist()[:8] == [0, 2 ** 63 - 1, -2 ** 63, 2 ** 63 - 1, -2 ** 63, 300, -1, 2 ** 63 - 1]
    assert cast(np.float32([2.0 ** 63, 2.0 ** 64]), dtype=t.u64).tolist() == [2 ** 63, 2 ** 64 - 1]
    assert cast(x, dtype=b1).all()


def test_integer_powers():
    pow_ = REGISTRY["pow"].numpy
    for d in (np.int8, np.uint64, np.int64):
        base, exponent = np.arange(0, 20, dtype=d), np.full(20, 13, d)
        want = [(b ** 13) % 2 ** (8 * base.itemsize) for b in range(20)]
        assert [int(v) % 2 ** (8 * base.itemsize) for v in pow_(base, exponent)] == want
    base = np.array([2, 1, -1, -1, 0, -7], np.int32)
    assert pow_(base, np.array([-1, -5, -3, -4, -1, -2], np.int32)).tolist() == [0, 1, -1, 1, 0, 0]


@given(st.data())
def test_views_and_layouts_do_not_matter(data):
    """Meanings see arrays, not memory: the same call on another layout gives the same bits."""
    op = data.draw(st.sampled_from([op for op in OPS if op.arity]))
    samples = op.samples(rng_for(op.name))
    arrays, attrs = samples[data.draw(st.integers(0, len(samples) - 1))]
    layout = data.draw(st.sampled_from([x for x in strategies.LAYOUTS if x != "zero"]))
    got = op.numpy(*[strategies.laid_out(a, layout) for a in arrays], **attrs)
    if t.dtype(got.dtype).kind in "fc" and isinstance(op.lower, (Contraction, Reduction)):
        assert_close(got, op.numpy(*arrays, **attrs), None, op)
    else:
        assert got.tobytes() == op.numpy(*arrays, **attrs).tobytes()


# ---- reductions, contractions, loops --------------------------------------------------------------------------------

def fold(op: Op, arrays, attrs, rng: np.random.Generator) -> np.ndarray:
    """The reduction's states combined by a tree over shuffled positions."""
    (x,), axes, lower = arrays, attrs["axes"], op.lower
    kept = [a for a in range(x.ndim) if a not in axes]
    rows = x.transpose(*kept, *axes).reshape(int(np.prod([x.shape[a] for a in kept])),
                                             int(np.prod([x.shape[a] for a in axes])))
    d, b = t.dtype(x.dtype), Indexed()
    dtypes = lower.state(d)

    def run(fn, **refs):
        return [np.asarray(Evaluator(b, {}, {}, refs).value(e)) for e in fn]

    def refs(stem, values):
        return {f"{stem}{k}": v for k, v in enumerate(values)}

    s, u = (tuple(b.ref(f"{stem}{k}", dt) for k, dt in enumerate(dtypes)) for stem in "su")
    unit = [np.full(len(rows), value, dt.numpy) for value, dt in zip(lower.unit(d), dtypes, strict=True)]
    states = [unit] + [run(lower.enter(b, b.ref("x", d), b.const(k, i64)), x=rows[:, k]) for k in
                       rng.permutation(rows.shape[1])]
    states = [[np.broadcast_to(v, len(rows)) for v in state] for state in states]
    combined = lower.combine(b, s, u)
    while len(states) > 1:
        pair = [states.pop(int(rng.integers(len(states)))) for _ in range(2)]
        states.append(run(combined, **refs("s", pair[0]), **refs("u", pair[1])))
    out = run([lower.leave(b, s)], **refs("s", states[0]))[0]
    return out.reshape([x.shape[a] for a in kept]).astype(op.infer(array_type(x), **attrs).dtype.numpy)


@named([op for op in OPS if isinstance(op.lower, Reduction)])
def test_reduction_equals_meaning_in_any_order(op: Op):
    rng = rng_for(op.name)
    for arrays, attrs in op.samples(rng):
        if native(arrays, op, attrs):
            d = array_type(arrays[0]).dtype.name
            got, want = fold(op, arrays, attrs, rng), op.numpy(*arrays, **attrs)
            assert_close(got, want, op.ulp.get(d), (op, d), loose_zero(op))


@named([REGISTRY[k] for k in ("reduce_max", "reduce_min", "argmax", "argmin")])
def test_extremes_of_ties_and_nans(op: Op):
    rng = rng_for(op.name)
    pool = np.array([1.0, 1.0, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan], np.float32)
    x = rng.choice(pool, (300, 5))
    x[:100][np.isnan(x[:100])] = 2.0
    for a in (x, np.nan_to_num(x).clip(-9, 9).astype(np.int8), x.astype(np.float16), x > 0):
        assert_close(fold(op, (a,), {"axes": (1,)}, rng), op.numpy(a, axes=(1,)), 0, op, False)


def contracted(op: Op, arrays, attrs) -> np.ndarray:
    """The sum that Access describes, in exact arithmetic, index by index."""
    types = types_of(arrays, attrs, op)
    access, out = op.lower.access(types, attrs), types[-1]
    assert len(access.out) == len(access.out_kinds)
    exact = np.zeros(out.shape, object)

    def read(a, index, conditions):
        for kind, i, k in conditions:
            if (kind == "range" and not 0 <= i < k) or (kind == "divisible" and i % k):
                return 0
        assert kind in ("range", "divisible") if conditions else True
        assert all(0 <= i < s for i, s in zip(index, a.shape, strict=True)), "read outside the operand"
        return Fraction(a[tuple(index)].item())

    for o in itertools.product(*map(range, access.out)):
        total = sum(read(arrays[0], *access.lhs(o, r)) * read(arrays[1], *access.rhs(o, r))
                    for r in itertools.product(*map(range, access.reduce)))
        exact[tuple(access.place(o))] += total
    return exact


@named([op for op in OPS if isinstance(op.lower, Contraction)])
def test_access_describes_the_meaning(op: Op):
    for arrays, attrs in op.samples(rng_for(op.name)):
        d = array_type(arrays[0]).dtype
        if d in (t.f64, t.i8):
            want, got = op.numpy(*arrays, **attrs), contracted(op, arrays, attrs)
            if d is t.i8:
                assert np.array_equal((got + 128) % 256 - 128, want.astype(object))
            else:
                assert_close(got.astype(float), want, None, (op, attrs))


@named([op for op in OPS if isinstance(op.lower, Contraction)])
def test_kinds_say_who_depends_on_an_index(op: Op):
    for arrays, attrs in op.samples(rng_for(op.name)):
        types = types_of(arrays, attrs, op)
        access = op.lower.access(types, attrs)
        o, r = [tuple(sym(f"{c}{k}") for k in range(len(s))) for c, s in (("o", access.out), ("r", access.reduce))]
        used = [str(access.lhs(o, r)), str(access.rhs(o, r))]
        for k, kind in enumerate(access.out_kinds):
            assert [f"o{k}" in text for text in used] == {"b": [True, True], "m": [True, False],
                                                          "n": [False, True]}[kind]


@named([op for op in OPS if isinstance(op.lower, General)])
def test_loops_equal_meaning(op: Op):
    from flowc.backends.interp import run_kernel
    from flowc.passes.inline import KernelBuilder, linear_index

    class Body(KernelBuilder):
        def load(self, operand, idx):
            x = types[operand]
            return self.b.load(f"in{operand}", linear_index(idx, x.shape), x.dtype)

        def load_out(self, idx):
            return self.b.load("out", linear_index(idx, types[-1].shape), types[-1].dtype)

        def store(self, idx, value):
            self.write("out", linear_index(idx, types[-1].shape), value)

    for arrays, attrs in op.samples(rng_for(op.name)):
        if not native(arrays, op, attrs):
            continue
        types = types_of(arrays, attrs, op)
        k = Body("k", {})
        names = [k.buffer(f"in{i}", x.dtype, x.shape) for i, x in enumerate(types[:-1])]
        out = np.full(types[-1].shape, 77).astype(types[-1].dtype.numpy)
        k.buffer("out", types[-1].dtype, types[-1].shape, "out")
        op.lower.body(k, names, "out", types, attrs)
        run_kernel(k.finish(()), {**dict(zip(names, arrays, strict=True)), "out": out}, {}, races=True)
        assert_close(out, op.numpy(*arrays, **attrs), 0, (op, attrs, arrays))


# ---- second sources -------------------------------------------------------------------------------------------------

def test_random_bits_known_answers():
    """Vectors published with Random123."""
    def words(text):
        return np.array([int(w, 16) for w in text.split()], np.uint32)

    for counter, key, want in (
            ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            ("ffffffff " * 4, "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1")):
        assert np.array_equal(philox(words(counter)[None], words(key))[0], words(want))
    bits, key = REGISTRY["random_bits"].numpy, np.zeros(2, np.uint32)
    assert [f"{v:08x}" for v in bits(key, shape=(5,), dtype=t.u32)[:4]] == "6627e8d5 e169c58d bc57ac4c 9b00dbd8".split()
    assert f"{bits(key, shape=(3,), dtype=t.u64)[1]:016x}" == "9b00dbd8bc57ac4c"
    assert np.array_equal(bits(key, shape=(4, 6), dtype=t.u32).ravel()[:7], bits(key, shape=(7,), dtype=t.u32))


def test_meanings_agree_with_other_libraries():
    special, signal = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.signal")
    x = np.linspace(-6, 6, 1001)
    for name in ("erf", "erfc"):
        assert np.allclose(REGISTRY[name].numpy(x), getattr(special, name)(x), rtol=1e-13, atol=0)
    assert np.allclose(REGISTRY["logistic"].numpy(x * 100), special.expit(x * 100), rtol=1e-13, atol=0)
    rng = rng_for("conv")
    a, w = rng.normal(size=(1, 1, 9, 8)), rng.normal(size=(1, 1, 3, 2))
    attrs = {"strides": (1, 1), "padding": ((0, 0),) * 2, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "groups": 1}
    assert np.allclose(REGISTRY["conv"].numpy(a, w, **attrs)[0, 0], signal.correlate(a[0, 0], w[0, 0], "valid"))
    full = REGISTRY["conv"].numpy(a, w[..., ::-1, ::-1], **attrs | {"padding": ((2, 2), (1, 1))})
    assert np.allclose(full[0, 0], signal.convolve(a[0, 0], w[0, 0], "full"))
    assert np.allclose(REGISTRY["linear_scan"].numpy(np.full(50, 0.9), a.ravel()[:50], axis=0),
                       signal.lfilter([1.0], [1.0, -0.9], a.ravel()[:50]))


def test_windows_sum_is_the_adjoint_of_windows():
    rng = rng_for("windows")
    for w, s, d, size in itertools.product((1, 2, 3), (1, 2, 4), (1, 2), (5, 6, 9)):
        attrs = {"window": (w,), "strides": (s,), "dilation": (d,)}
        x = rng.integers(-9, 9, size).astype(np.float64)
        y = REGISTRY["windows"].numpy(x, **attrs)
        g = rng.integers(-9, 9, y.shape).astype(np.float64)
        back = REGISTRY["windows_sum"].numpy(g, **attrs, shape=(size,))
        assert (g * y).sum() == (back * x).sum()
        assert np.array_equal(pointwise(REGISTRY["windows_sum"], (g,), attrs | {"shape": (size,)}), back)
        assert np.array_equal(pointwise(REGISTRY["windows"], (x,), attrs), y)


@given(st.lists(st.integers(1, 6), max_size=4), st.data())
def test_reshaped_index(sizes, data):
    """Also on symbolic sizes: cut at random into the factors of another shape."""
    total = int(np.prod(sizes))
    other, left = [], total
    while left > 1 and len(other) < 5:
        f = data.draw(st.sampled_from([k for k in range(1, left + 1) if left % k == 0]))
        other.append(f)
        left //= f
    other = data.draw(st.permutations([*other, left]))
    for at, idx in enumerate(np.ndindex(*other)):
        assert reshaped_index(idx, other, sizes) == (np.unravel_index(at, sizes) if sizes else ())
    old, new = (sym("n"), 4, sym("m")), (2, sym("n"), 2 * sym("m"))
    idx = tuple(sym(f"i{k}") for k in range(3))
    env = {"n": data.draw(st.integers(1, 5)), "m": data.draw(st.integers(1, 5))}
    found = reshaped_index(idx, new, old)
    shape = [evaluate(s, env) for s in new]
    for at, place in enumerate(np.ndindex(*shape)):
        here = tuple(evaluate(f, env | {f"i{k}": v for k, v in enumerate(place)}) for f in found)
        assert here == np.unravel_index(at, [evaluate(s, env) for s in old])


def test_reshape_divides_only_where_axes_mix():
    a, b, c = sym("a"), sym("b"), sym("c")
    assert len(matched_groups((a, b, c), (a, b * c))) == 2
    idx = tuple(sym(f"i{k}") for k in range(4))
    assert reshaped_index(idx, (1, a, 1, b), (a, b)) == (idx[1], idx[3])
    assert reshaped_index(idx[:2], (a, b), (1, a, b, 1)) == (0, idx[0], idx[1], 0)
    assert reshaped_index(idx[:3], (a, b, c), (a, b * c)) == (idx[0], c * idx[1] + idx[2])


# ---- derivatives ----------------------------------------------------------------------------------------------------

def run_graph(outputs: list[Node], feed: dict[Node, np.ndarray]) -> list[np.ndarray]:
    """Values of nodes, by the meanings of their ops."""
    value = dict(feed)
    for x in topological(outputs):
        if x not in value:
            value[x] = x.op.numpy(*[value[i] for i in x.inputs], **x.attrs)
            assert value[x].dtype == x.dtype.numpy and value[x].shape == x.shape, x
    return [value[x] for x in outputs]


def doubled(a: np.ndarray) -> np.ndarray:
    wide = {"float32": np.float64, "complex64": np.complex128}.get(a.dtype.name)
    return a if wide is None else a.astype(wide)


def smooth(a: np.ndarray) -> bool:
    return a.dtype in (np.float64, np.complex128)


def differentiable_samples(op: Op):
    """Sample calls in double precision, each shape once."""
    seen = set()
    for arrays, attrs in op.samples(rng_for(op.name)):
        arrays = tuple(map(doubled, arrays))
        key = (tuple(a.shape for a in arrays), tuple(a.dtype.name for a in arrays), str(attrs))
        if any(map(smooth, arrays)) and key not in seen and not any(a.dtype.itemsize == 2 for a in arrays):
            seen.add(key)
            out = op.infer(*map(array_type, arrays), **attrs)
            if out.dtype in (t.f64, t.c128):
                yield arrays, attrs


def slope(op: Op, arrays, attrs, tangents) -> np.ndarray:
    """Central difference along the tangents."""
    h = 1e-6
    up, down = ([a if v is None else a + s * h * v for a, v in zip(arrays, tangents, strict=True)] for s in (1, -1))
    return (op.numpy(*up, **attrs) - op.numpy(*down, **attrs)) / (2 * h)


def tangent_like(a: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    if not smooth(a):
        return None
    v = rng.normal(size=a.shape)
    return np.asarray(v + 1j * rng.normal(size=a.shape) if a.dtype.kind == "c" else v)


def cotangents(op: Op, arrays, attrs, g: np.ndarray) -> list[np.ndarray | None]:
    xs = [param(f"x{k}", array_type(a)) for k, a in enumerate(arrays)]
    y, gn = make(op, xs, attrs), param("g", array_type(g))
    parts = op.vjp(gn, y, *xs, **attrs)
    assert len(parts) == len(xs)
    for p, x in zip(parts, xs, strict=True):
        assert p is None or p.type == x.type, (op, p.type, x.type)
    feed = {gn: g, **dict(zip(xs, arrays, strict=True))}
    found = iter(run_graph([p for p in parts if p is not None], feed))
    return [None if p is None else next(found) for p in parts]


@named([op for op in OPS if op.vjp is not None and op.name != "stop_gradient"])
def test_gradients_against_differences(op: Op):
    rng, tried = rng_for("vjp " + op.name), 0
    for arrays, attrs in differentiable_samples(op):
        out = op.infer(*map(array_type, arrays), **attrs)
        g = tangent_like(np.zeros(out.shape, out.dtype.numpy), rng)
        for k, part in enumerate(cotangents(op, arrays, attrs, g)):
            v = tangent_like(arrays[k], rng)
            if v is None:
                assert part is None or not part.any()
                continue
            rise = slope(op, arrays, attrs, [v if i == k else None for i in range(len(arrays))])
            want, got = np.sum(g * rise).real, 0.0 if part is None else np.sum(part * v).real
            scale = 1 + np.abs(g * rise).sum()
            assert abs(want - got) <= 2e-6 * scale, (op, k, attrs, [a.shape for a in arrays], want, got)
            tried += 1
    assert tried or op.name in ("cast",), "no sample is differentiable"


@named([op for op in OPS if op.jvp is not None and op.name != "stop_gradient"])
def test_tangents_against_differences(op: Op):
    rng = rng_for("jvp " + op.name)
    for arrays, attrs in differentiable_samples(op):
        directions = [tangent_like(a, rng) for a in arrays]
        xs = [param(f"x{k}", array_type(a)) for k, a in enumerate(arrays)]
        ts = [None if v is None else param(f"t{k}", array_type(v)) for k, v in enumerate(directions)]
        y = make(op, xs, attrs)
        tangent = op.jvp(tuple(ts), y, *xs, **attrs)
        want = slope(op, arrays, attrs, directions)
        feed = {**dict(zip(xs, arrays, strict=True)), **{p: v for p, v in zip(ts, directions, strict=True) if p}}
        got = np.zeros_like(want) if tangent is None else run_graph([tangent], feed)[0]
        assert np.allclose(got, want, rtol=1e-5, atol=2e-6 * (1 + np.abs(want).max(initial=0))), (op, attrs)


@named([op for op in OPS if op.vjp is not None and op.name != "stop_gradient"])
def test_second_derivatives_against_differences(op: Op):
    """The derivative of ``sum(cotangents * directions)``, which every rule must give because it is made of ops."""
    from flowc.passes.autodiff import vjp
    rng = rng_for("second " + op.name)
    sample = max(differentiable_samples(op), key=lambda c: sum(a.size for a in c[0]), default=None)
    if sample is None:
        pytest.skip("no sample in double precision")
    arrays, attrs = sample
    xs = [param(f"x{k}", array_type(a)) for k, a in enumerate(arrays)]
    y = make(op, xs, attrs)
    g = tangent_like(np.zeros(y.shape, y.dtype.numpy), rng)
    gn = param("g", y.type)
    parts = [(k, p) for k, p in enumerate(op.vjp(gn, y, *xs, **attrs)) if p is not None]
    directions = {k: tangent_like(arrays[k], rng) for k, _ in parts}
    moves = {k: tangent_like(a, rng) for k, a in enumerate(arrays)}

    def feed(step: float) -> dict[Node, np.ndarray]:
        at = [a if moves[k] is None else a + step * moves[k] for k, a in enumerate(arrays)]
        return {gn: g, **dict(zip(xs, at, strict=True))}

    def total(step: float) -> float:
        values = run_graph([p for _, p in parts], feed(step))
        return sum(np.sum(v * directions[k]).real for (k, _), v in zip(parts, values, strict=True))

    found = vjp([p for _, p in parts], [constant(directions[k]) for k, _ in parts], xs)
    slopes = run_graph([p for p in found if p is not None], feed(0.0))
    moved = [k for k, p in enumerate(found) if p is not None]
    got = sum(np.sum(v * moves[k]).real for k, v in zip(moved, slopes, strict=True))
    want = (total(1e-6) - total(-1e-6)) / 2e-6
    assert abs(want - got) <= 1e-5 * (1 + abs(want) + abs(total(0.0))), (op, attrs, want, got)


@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_gradient_of_products_with_zeros(zeros):
    x = np.array([[2.0, 3.0, -1.5, 0.5], [1.0, 2.0, 3.0, 4.0]])
    x[0, :zeros] = 0
    (got,) = cotangents(REGISTRY["reduce_prod"], (x,), {"axes": (1,)}, np.ones(2))
    want = [[np.prod(np.delete(row, k)) for k in range(4)] for row in x]
    assert np.array_equal(got, want)
    g = rng_for("cumprod").integers(1, 9, x.shape).astype(float)
    (got,) = cotangents(REGISTRY["cumprod"], (x,), {"axis": 1}, g)
    want = [[sum(g[r, i] * np.prod(np.delete(x[r, :i + 1], k)) for i in range(k, 4)) for k in range(4)] for r in (0, 1)]
    assert np.allclose(got, want)


def test_gradient_is_shared_by_equal_extremes():
    x = np.array([[3.0, 1.0, 3.0, 3.0], [1.0, 2.0, 0.0, -1.0]])
    (got,) = cotangents(REGISTRY["reduce_max"], (x,), {"axes": (1,)}, np.array([3.0, 5.0]))
    assert got.tolist() == [[1, 0, 1, 1], [0, 5, 0, 0]]
    a, b = cotangents(REGISTRY["max"], (np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])), {}, np.ones(3))
    assert a.tolist() == [0, 0.5, 1] and b.tolist() == [1, 0.5, 0]


def test_gradient_at_corners_is_finite():
    a, b = cotangents(REGISTRY["pow"], (np.array([0.0, 0.0, 2.0]), np.array([0.0, 2.0, 0.0])), {}, np.ones(3))
    assert a.tolist() == [0, 0, 0] and b.tolist() == [0, 0, np.log(2)]


def test_gradient_of_overwritten_updates():
    x, v, at = np.zeros(4), np.array([1.0, 2.0, 3.0]), np.array([1, 3, 1])
    dx, _, dv = cotangents(REGISTRY["scatter"], (x, at, v), {"axis": 0}, np.array([5.0, 6.0, 7.0, 8.0]))
    assert dx.tolist() == [5, 0, 7, 0] and dv.tolist() == [0, 8, 6]


@pytest.mark.parametrize("stride, low, high, left, right, groups", [*itertools.product(
    (1, 2, 3), (0, 2), (-1, 1), (1, 2), (1, 2), (1, 2))])
def test_symbolic_convolution_gradients_have_the_operands_types(stride, low, high, left, right, groups):
    """Also where sizes are unknown: the sizes of both gradients come back in normal form."""
    x = param("x", Type(f32, (sym("b"), 2 * groups, sym("h"))))
    w = param("w", Type(f32, (3 * groups, 2, sym("k"))))
    attrs = {"strides": (stride,), "padding": ((low, high),), "lhs_dilation": (left,), "rhs_dilation": (right,),
             "groups": groups}
    y = make("conv", (x, w), attrs)
    dx, dw = y.op.vjp(param("g", y.type), y, x, w, **attrs)
    assert dx.type == x.type and dw.type == w.type


@pytest.mark.parametrize("name, types, attrs", [
    ("dot", [Type(f32, (n, m)), Type(f32, (m, 5))], DOT),
    ("reshape", [Type(f32, (n, 6))], {"shape": (2, n, 3)}),
    ("slice", [Type(f32, (n,))], {"start": (1,), "stop": (n - 1,), "step": (2,)}),
    ("update_slice", [Type(f32, (n,)), Type(f32, (m,))], {"start": (1,), "step": (3,)}),
    ("pad", [Type(f32, (n, m)), Type(f32)], {"low": (2, 0), "high": (m, 1)}),
    ("concatenate", [Type(f32, (n, 2)), Type(f32, (m, 2))], {"axis": 0}),
    ("gather", [Type(f32, (n, 4)), Type(i64, (m, 2))], {"axis": 0}),
    ("scatter", [Type(f32, (n, 4)), Type(i64, (m, 2)), Type(f32, (m, 2, 4))], {"axis": 0}),
    ("windows", [Type(f32, (n, m))], {"window": (3, 2), "strides": (2, 1), "dilation": (1, 2)}),
    ("reduce_prod", [Type(f32, (n, 3, m))], {"axes": (0, 2)}),
    ("reduce_max", [Type(f32, (n, m))], {"axes": (0,)}),
    ("cumprod", [Type(f32, (n, m))], {"axis": 0}),
    ("sort", [Type(f32, (n, m))], {"axis": 0}),
    ("broadcast", [Type(f32, (n,))], {"shape": (m, n, 2), "axes": (1,)}),
])
def test_symbolic_gradients_have_the_operands_types(name, types, attrs):
    xs = [param(f"x{k}", x) for k, x in enumerate(types)]
    y = make(name, xs, attrs)
    for part, x in zip(y.op.vjp(param("g", y.type), y, *xs, **attrs), xs, strict=True):
        assert part is None or part.type == x.type


def test_host_calls_are_few():
    assert {op.name for op in OPS if isinstance(op.lower, HostCall)} == {"real", "imag", "conj"}


def test_helpers():
    assert dilated(5, 3) == 13 and dilated(sym("n"), 1) == sym("n")
    x = param("x", Type(t.bf16, (2,)))
    (value,) = run_graph([build.mul(2.0, x)], {x: np.array([1, 3]).astype(t.bf16.numpy)})
    assert value.astype(float).tolist() == [2, 6] and constant(1.0).dtype is t.f64
