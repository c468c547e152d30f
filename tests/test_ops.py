"""Every op of the registry: complete records, type rules, lowering against meaning.

Derivatives are in test_op_slopes.py.  The tables of ops come from the registry itself, so a new op is tested by being
declared.  Scalar expressions are evaluated for all elements at once with the NumPy meanings of the instructions
(backends/interp.py); every read is checked to lie inside its operand.
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
from flowc.graph import CONSTANT, PARAM, make, param
from flowc.kernel import Builder, Expr
from flowc.op import REGISTRY, Contraction, General, Op, Pointwise, Reduction
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
