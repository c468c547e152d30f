"""Text of the three IRs: what is printed parses back to an equal object, bad text gives ParseError and nothing else."""

from __future__ import annotations

import contextlib
import io
import random
import time

import numpy as np
import pytest
from graphs import programs
from hypothesis import given
from hypothesis import strategies as st
from strategies import special_values

import flowc.ops  # noqa: F401
from flowc import types as t
from flowc.diag import FlowcTypeError, Loc, ParseError
from flowc.dims import dmin, sym
from flowc.graph import PARAM, Attrs, Graph, Literal, Node, constant, make, param
from flowc.kernel import (
    INSTRS,
    Acc,
    Alloc,
    Barrier,
    Buffer,
    Builder,
    Expr,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Store,
)
from flowc.op import REGISTRY, HostCall, Op, register
from flowc.parse import parse_dim, parse_graph, parse_kernel, parse_plan, parse_program, parse_type
from flowc.passes.build import BuildOptions, build
from flowc.plan import Place, Plan, PlanBuffer, Program, Step
from flowc.text import attr_text, dim_text, graph_text, kernel_text, plan_text, program_text, to_text, type_text
from flowc.types import DTYPES, Type, bool_, f32, f64, i32, i64

n, m = sym("n"), sym("m")
ANY = REGISTRY.get("test_any") or register(Op(
    "test_any", "Takes anything, gives a scalar.", lambda *xs, **attrs: np.float32(0),
    lambda *xs, **attrs: Type(f32, ()), HostCall()))


def same_attr(a, b) -> bool:
    if isinstance(a, Graph):
        return isinstance(b, Graph) and same_graph(a, b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same_attr, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and np.float64(a).tobytes() == np.float64(b).tobytes()
    return Attrs(v=a) == Attrs(v=b)


def same_graph(a: Graph, b: Graph) -> bool:
    """Isomorphic: the same nodes in the same order, with equal attributes, types and places in the source."""
    if (a.name, a.ranges, list(a.ranges), a.constraints, len(a.nodes)) != (
            b.name, b.ranges, list(b.ranges), b.constraints, len(b.nodes)):
        return False
    at, bt = ({x: i for i, x in enumerate(g.nodes)} for g in (a, b))

    def key(x: Node, place):
        return x.op, x.type, [place[i] for i in x.inputs], None if x.loc is None else x.loc.key(), list(x.attrs)
    if any(key(x, at) != key(y, bt) or not all(same_attr(x.attrs[k], y.attrs[k]) for k in x.attrs)
           for x, y in zip(a.nodes, b.nodes, strict=True)):
        return False
    return all([p[x] for x in (*g.params, *g.outputs)] == [q[x] for x in (*h.params, *h.outputs)]
               for g, p, h, q in ((a, at, b, bt),))


def back(graph: Graph) -> None:
    constants: dict = {}
    text = graph_text(graph, constants)
    again = parse_graph(text, constants=constants)
    assert same_graph(graph, again), text
    assert graph_text(again, {}) == text


def rowmax() -> Graph:
    x, w = param("x", Type(f32, (n, 784))), param("w", Type(f32, (784, 10)))
    h = make("dot", [x, w], {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (0,)},
             Loc("/home/user/model.py", 12, 9))
    r = make("reduce_max", [make("abs", [h], {}, Loc("model.py", 13, 16))], {"axes": (1,)}, Loc("<stdin>", 13, 9))
    return Graph("rowmax", [x, w], [r], {"n": (1, None)})


# ---- as a person sees it --------------------------------------------------------------------------------------------

def test_graph_as_printed(golden):
    golden("text_graph.flow", graph_text(rowmax()))


def example_kernel() -> Kernel:
    b, i, j = Builder(), sym("i"), sym("j")
    x = b.load("0", 10 * i + j, f32)
    worst = b.max(b.ref("m", f32), b.abs(x))
    lane = b.lt(b.index(j), b.index(n - 64 * i))
    return Kernel("k1", (Buffer("0", f32, (n, 10)), Buffer("2", f32, (n,), "out")), ("n",), (
        Loop("i", n, "parallel", (
            Acc("m", f32, (), b.const(-np.inf, f32)),
            Acc("s", f32, (64,), b.const(0, f32)),
            Alloc("tile", f32, dmin(n, 64)),
            Loop("j", 10, "seq", (Set("m", (), worst),)),
            Loop("j", 64, "vector", (
                Set("s", (j,), b.select(lane, b.fma(b.load("0", j, f32, lane), 2.0, b.ref("s", f32, j)), 0.0)),), 16),
            Fold(("r",), ("s",), 64, ("x",), ("y",), (b.add(b.ref("x", f32), b.ref("y", f32)),)),
            Let("k", b.min(b.max(b.cast(b.ref("r", f32), i64), 0), b.index(n - 1)), (0, n - 1)),
            If(lane, (Store("2", sym("k"), b.neg(b.ref("m", f32))),), (Barrier(),)),
            Store("2", i, b.div(b.ref("m", f32), b.sub(b.ref("r", f32), b.sub(b.const(1, f32), 2.5))), lane))),),
        (("n", (1, None)),), ("rowmax: an example", "two lines"))


def test_kernel_as_printed(golden):
    kernel = example_kernel()
    golden("text_kernel.flow", kernel_text(kernel))
    assert parse_kernel(kernel_text(kernel)) == kernel
    assert parse_kernel(kernel_text(kernel)).notes == ()


def example_plan() -> Plan:
    return Plan("rowmax", "cpu", ("x", "w"), ("2", "x"), (
        PlanBuffer("x", Type(f32, (n, 784)), Place("param", 0)),
        PlanBuffer("w", Type(f32, (784, 10)), Place("param", 1)),
        PlanBuffer("0", Type(f32, (n, 10)), Place("arena", 0, 64 * n)),
        PlanBuffer("2", Type(f32, (n,)), Place("output")),
        PlanBuffer("c", Type(f32, ()), Place("constant"))), (
        Step("s0", "k0", ("x", "w", "0"), (n, 2 * n), work=7840 * n, note="contraction"),
        Step("s1.0", "", ("0", "2"), wave=1, op="sort", attrs=Attrs(axis=0, how=("stable", None, 1.5))),
        Step("s1.1", "k1", ("0", "c", "2", "x"), outputs=2, wave=1)),
        64 * n + 4096, ("n",), (("n", (1, 1 << 20)),), ((n, 2 * (n // 2)),))


def test_plan_as_printed(golden):
    golden("text_plan.flow", plan_text(example_plan()))
    assert parse_plan(plan_text(example_plan())) == example_plan()


def test_every_ir_prints_by_one_name():
    program = Program(example_plan(), {"k1": example_kernel()}, {"c": Literal(np.float32(2))})
    for ir, text in ((rowmax(), graph_text), (example_kernel(), kernel_text), (example_plan(), plan_text),
                     (program, program_text)):
        assert to_text(ir) == text(ir)
    assert parse_program(program_text(program)) == program


def test_one_text_may_hold_everything():
    values = [constant(np.arange(1000)), constant(np.linspace(0, 1, 99).astype(t.bf16.numpy)), constant(np.ones(999))]
    text = to_text(Graph("g", [], values))
    assert same_graph(parse_graph(text), Graph("g", [], values))
    cuts = (text.replace('"', '"!', 1), text.replace('"A', '"', 1), text.replace("bytes(i64[1000]", "bytes(i64[1001]"))
    for cut in cuts:
        with pytest.raises(ParseError, match="P008"):
            parse_graph(cut)


# ---- random programs ------------------------------------------------------------------------------------------------

@given(programs())
def test_random_programs_come_back(drawn):
    back(drawn.graph)
    program = build(drawn.graph, BuildOptions())
    constants: dict = {}
    assert parse_program(program_text(program, constants), constants=constants) == program


def test_every_operation_comes_back():
    """One graph per registered operation with samples."""
    rng = np.random.default_rng(0)
    for op in list(REGISTRY.values()):
        for arrays, attrs in (op.samples(rng) if op.samples else [])[:12]:
            params = [param(f"x{i}", t.array_type(np.asarray(a))) for i, a in enumerate(arrays)]
            back(Graph(f"of_{op.name}", params, [make(op, params, attrs)]))


# ---- attributes and constants ---------------------------------------------------------------------------------------

NESTED = Graph("inner", [param("a", Type(f32, (n,)))], [make("exp", [param("b", Type(f32, ()))])])
ATTRS = [0, -5, 1 << 80, True, False, None, 0.0, -0.0, 1.5, 1e300, float("inf"), float("-inf"), float("nan"), "",
         "text", 'quotes " and \\ and \n', "\u03b2 \U0001f600", f32, bool_, n, 3 * n - m // 4 + (n % 5) * m,
         dmin(n, m, 3), sym("f32"), sym("true"), sym("a b"), sym("i16") + 1, Type(f32, (n, 3)), Type(i64, ()), (), (1,),
         (1, 2, (n, None)), ((), ((),)), (n // 2,), Literal(np.arange(3)), (Literal(np.float32(1)), "x"), NESTED,
         (NESTED, NESTED)]


@pytest.mark.parametrize("value", ATTRS, ids=lambda v: repr(v)[:30])
def test_every_kind_of_attribute_comes_back(value):
    x = param("b", Type(f32, ()))
    back(Graph("g", [x], [make(ANY, [x], {"value": value, "not": 1}, Loc("a b.py", 3))]))


def test_nan_bits_of_attributes_come_back():
    odd = np.array([0x7FF8000000000123, 0xFFF8000000000000], np.uint64).view(np.float64)
    for x in odd:
        text = graph_text(Graph("g", [], [make(ANY, [], {"x": float(x)})]))
        y = parse_graph(text).outputs[0].attrs["x"]
        assert np.float64(y).tobytes() == np.float64(x).tobytes(), text


def test_an_attribute_without_text_is_refused():
    with pytest.raises(FlowcTypeError, match="P100"):
        attr_text([1, 2])
    deep: tuple = ()
    for _ in range(500):
        deep = (deep,)
    with pytest.raises(FlowcTypeError, match="P100"):
        attr_text(deep)


@pytest.mark.parametrize("d", DTYPES.values(), ids=str)
def test_constants_of_every_dtype_come_back_bit_by_bit(d):
    a = special_values(d)
    if d.kind == "f":
        bits = np.array([1, (1 << d.bits) - 1, (1 << d.bits - 1) + 1, (1 << d.bits) - 2], f"u{d.bytes}")
        a = np.concatenate([a, bits.view(d.numpy)])
    for value in (a[:7], np.resize(a[-9:], (3, 3)), a[:0], a[:1].reshape(()), a, np.resize(a, 300), a[:1].repeat(500)):
        back(Graph("g", [], [constant(value)]))
        assert same_graph(parse_graph(to_text(Graph("g", [], [constant(value)]))), Graph("g", [], [constant(value)]))


def big() -> tuple[Graph, str, dict]:
    graph = Graph("g", [], [constant(np.arange(100, dtype=np.float32).reshape(4, 25))])
    table: dict = {}
    return graph, graph_text(graph, table), table


def test_big_constants_go_by_hash():
    graph, text, table = big()
    ((key, a),) = table.items()
    assert key in text and a.shape == (4, 25)
    assert same_graph(parse_graph(text, constants=table), graph)
    for wrong in ({}, {key: a + 1}, {key: a.reshape(100)}, {key: a.astype(np.float64)}):
        with pytest.raises(ParseError, match="P008"):
            parse_graph(text, constants=wrong)
    assert graph_text(graph) == text  # without a table they are still only named


def test_big_constants_survive_a_file():
    graph = Graph("g", [], [constant(np.arange(50).astype(t.bf16.numpy))])
    table: dict = {}
    text = graph_text(graph, table)
    file = io.BytesIO()
    np.savez(file, **table)
    file.seek(0)
    assert same_graph(parse_graph(text, constants=dict(np.load(file))), graph)


# ---- names ----------------------------------------------------------------------------------------------------------

STRANGE = ["x", "0", "args[0]['w']", "a b", "", "`", '"', "\\", "\n", "\u03b2", "f32", "true", "for", "let", "where",
           "in", "index", "min", "load", "return", "%x", "@", "a.b", "a..b", "-", "i16", "$1", "else", "nan", "barrier",
           "param"]


@pytest.mark.parametrize("name", STRANGE, ids=repr)
def test_strange_names_come_back(name):
    x = param(name or "unnamed", Type(f32, (sym(name), 2 * sym(name) + 1)))
    back(Graph(name, [x], [make("exp", [x])], {name: (1, sym(name + "2") + 3)}, [(sym(name), 4)]))
    b = Builder()
    ref = b.ref(name, f32, sym(name))
    kernel = Kernel(name, (Buffer(name, f32, (sym(name),), "inout"),), (name,), (
        Loop(name, sym(name), "seq", (
            Acc(name, f32, (3,), b.const(1, f32)), Set(name, (sym(name),), b.add(ref, ref)), Set(name, (), ref),
            If(b.lt(b.index(sym(name)), 3), (Set(name, (sym(name),), ref),), (Set(name, (), ref),)),
            Let(name, b.index(sym(name)), (0, sym(name))), Store(name, sym(name), ref),
            Fold((name,), (name,), 2, (name,), (name,), (ref,)), Alloc(name, f32, sym(name), "shared"))),))
    assert parse_kernel(kernel_text(kernel)) == kernel
    plan = Plan(name, name or "cpu", (name,), (name,), (PlanBuffer(name, Type(f32, ()), Place("param")),),
                (Step(name, name, (name,), (sym(name),), work=sym(name)),), sym(name), (name,), ((name, (0, None)),))
    if name:
        assert parse_plan(plan_text(plan)) == plan


# ---- scalar expressions ---------------------------------------------------------------------------------------------

NUMBER_DTYPES = [d for d in DTYPES.values() if d.kind in "biuf"]


def constants_of(d: t.DType):
    if d.kind == "b":
        return st.booleans()
    if d.kind == "f":
        return st.floats()
    info = np.iinfo(d.numpy)
    return st.integers(int(info.min), int(info.max))


@st.composite
def exprs(draw, d: t.DType, depth: int = 4) -> Expr:
    """A well-typed expression of dtype ``d``; sharing comes from drawing one operand twice."""
    b = Builder()
    rows = [r for r in INSTRS.values()
            if r.result != "attr" and (d is bool_ if r.result == "bool" else r.dtypes(d) is not None)]
    name = draw(st.sampled_from(["const", "ref", "load", "cast", "bitcast", "index", *[r.name for r in rows] * 2]))
    if depth == 0 or name in ("const", "ref", "load", "index"):
        if name == "index" and d is i64:
            return b.index(draw(st.sampled_from([n, n // 2 - 3, dmin(n, m) * 2])))
        if name == "load":
            where = draw(exprs(bool_, 0)) if depth and draw(st.booleans()) else None
            return b.load(f"x_{d}", draw(st.sampled_from([0, n, 3 * n + m % 4])), d, where,
                          None if where is None else draw(exprs(d, 0)))
        if name == "ref":
            return b.ref(*draw(st.sampled_from([(f"v_{d}", d), (f"a_{d}", d, n, 2 * m)])))
        return b.make("const", (), d, draw(constants_of(d)))
    if name in ("cast", "bitcast"):
        good = [x for x in NUMBER_DTYPES if name == "cast" or x.bits == d.bits and "b" not in (x.kind, d.kind)]
        if good:
            return b.make(name, (draw(exprs(draw(st.sampled_from(good)), depth - 1)),), d)
        name = "select"
    row = INSTRS[name]
    like = draw(st.sampled_from([x for x in NUMBER_DTYPES if x.kind in row.kinds])) if row.result == "bool" else d
    dtypes = row.dtypes(like)
    args = [draw(exprs(x, depth - 1)) for x in dtypes]
    if len(args) > 1 and args[0].dtype is args[1].dtype and draw(st.integers(0, 3)) == 0:
        args[1] = args[0]
    return b.make(name, tuple(args), d)


def kernel_with(e: Expr) -> Kernel:
    """A kernel in which ``e`` stands in every kind of place."""
    known = [Let(f"v_{d}", Builder().const(1, d)) for d in NUMBER_DTYPES] + [
        Acc(f"a_{d}", d, (2, 3), Builder().const(0, d)) for d in NUMBER_DTYPES]
    same = "v2" if e.dtype is not f64 else "v3"
    body = [Let(same, e), Acc("acc", e.dtype, (), e), Set("acc", (), e), Set(f"a_{f64}", (n, 0), e),
            Store(f"x_{e.dtype}", n, e), Store(f"x_{f64}", n, e, Builder().eq(Builder().index(n), 3))]
    if e.dtype is bool_:
        body.append(If(e, (Store("x_bool", 0, e, e),)))
    return Kernel("k", tuple(Buffer(f"x_{d}", d, (n,), "inout") for d in NUMBER_DTYPES), ("n", "m"), (*known, *body))


@given(st.sampled_from(NUMBER_DTYPES).flatmap(exprs))
def test_expressions_come_back(e):
    kernel = kernel_with(e)
    assert parse_kernel(kernel_text(kernel)) == kernel


@pytest.mark.parametrize("name", INSTRS)
def test_every_instruction_comes_back(name):
    row, b = INSTRS[name], Builder()
    for d in NUMBER_DTYPES:
        dtypes = row.dtypes(d)
        if dtypes is None or name in ("index", "load", "ref"):
            continue
        for operand in (b.ref(f"v_{d}", d), b.const(1, d)):
            args = tuple(operand if x is d else b.ref(f"v_{x}", x) for x in dtypes)
            targets = {"cast": NUMBER_DTYPES, "bitcast": [x for x in NUMBER_DTYPES if x.bits == d.bits]}.get(
                name, [bool_ if row.result == "bool" else d])
            for to in targets:
                e = b.make(name, args, to, 1.0 if name == "const" and d.kind == "f" else 1 if name == "const" else None)
                kernel = kernel_with(e)
                assert parse_kernel(kernel_text(kernel)) == kernel


def test_wrong_expressions_come_back_too():
    """What the verifier refuses can still be looked at and written down."""
    b = Builder()
    x, y = b.ref("v_f32", f32), b.ref("v_i64", i64)
    for e in (Expr("add", (x, y), f64), Expr("ref", (), i32, ("v_f32", ())), Expr("load", (), i32, ("x_f32", n)),
              Expr("lt", (x, y), f32), Expr("const", (), f32, 1), Expr("const", (), i64, 2.5),
              Expr("ref", (), f32, ("?", ())), Expr("neg", (Expr("mul", (x, x), i64),), f32),
              Expr("index", (), i64, 3)):
        kernel = kernel_with(e)
        assert parse_kernel(kernel_text(kernel)) == kernel


def scalar(text: str) -> Expr:
    head = "kernel @k(%x: in f32[8], %y: out f32[8]) { let a: f32 = 1.0 let b: f32 = 2.0 let c: f32 = 3.0 "
    return parse_kernel(f"{head} let p: bool = true %y[0] = {text} }}").body[-1].value  # type: ignore[union-attr]


@pytest.mark.parametrize("text,full", [
    ("a + b * c", "add(a, mul(b, c))"), ("a - b - c", "sub(sub(a, b), c)"), ("a - (b - c)", "sub(a, sub(b, c))"),
    ("-a * b", "mul(neg(a), b)"), ("-(a * b)", "neg(mul(a, b))"), ("a / b / c", "div(div(a, b), c)"),
    ("a < b + c", "lt(a, add(b, c))"), ("(a < b) & (b < c) | p", "or(and(lt(a, b), lt(b, c)), p)"),
    ("p & ~p ^ p", "xor(and(p, not(p)), p)"), ("a - -1.5", "sub(a, -1.5)"), ("-1.5 - a", "sub(-1.5, a)"),
    ("neg(1.5:f32)", "neg(1.5:f32)"), ("a == -inf", "eq(a, -inf)"), ("1 << 2 + 3", "shl(1, add(2, 3))"),
    ("select(a < b, 1.0, c)", "select(lt(a, b), 1.0, c)"), ("((a))", "a")])
def test_precedence(text, full):
    assert scalar(text) == scalar(full)


def test_expressions_without_end_take_little_text():
    """Shared parts are printed once, long chains are cut."""
    b = Builder()
    e = b.load("x_f32", 0, f32)
    for _ in range(300):
        e = b.add(e, e)
    kernel = kernel_with(e)
    text = kernel_text(kernel)
    assert len(text) < 30_000 and parse_kernel(text) == kernel
    for _ in range(20_000):
        e = b.exp(e)
    kernel = kernel_with(e)
    assert parse_kernel(kernel_text(kernel)) == kernel


# ---- size and depth -------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_chain_of_100000_nodes():
    x = param("x", Type(f32, (n,)))
    loc, y = Loc("model.py", 3, 5), x
    for _ in range(100_000):
        y = make("neg", [y], {}, loc)
    graph = Graph("chain", [x], [y])
    took = []
    for _ in range(2):
        start = time.perf_counter()
        text = graph_text(graph)
        again = parse_graph(text)
        took.append(time.perf_counter() - start)
    assert len(again.nodes) == 100_001 and same_graph(graph, again)
    assert min(took) < 60


@pytest.mark.parametrize("open_,close", [("(", ")"), ("-", ""), ("min(", ")"), ("(1 + ", ")")])
def test_deep_sizes_are_refused_not_crashed_on(open_, close):
    assert parse_dim(open_ * 20 + "n" + close * 20) is not None
    for depth in (1000, 100_000):
        with pytest.raises(ParseError, match="P007"):
            parse_dim(open_ * depth + "n" + close * depth)


@pytest.mark.parametrize("text", [
    "kernel @k() {" + "if true {" * 5000, "kernel @k() { let a: f32 = " + "(" * 5000,
    "kernel @k() { let a: f32 = " + "-" * 5000,
    "kernel @k() { let a: f32 = " + "exp(" * 5000, "graph @g() -> () { %0 = test_any {a = " + "(" * 5000,
    "graph @g() -> () { %0 = test_any {a = " + "graph @g() -> () { %0 = test_any {a = " * 300,
    "kernel @k() { let a: f32 = " + "~(" * 5000, "kernel @k() { let a: f32 = " + "select(" * 300])
def test_deep_texts_are_refused_not_crashed_on(text):
    parse = parse_graph if text.startswith("graph") else parse_kernel
    with pytest.raises(ParseError, match="P007"):
        parse(text)


def test_products_do_not_explode():
    with pytest.raises(ParseError, match="P010"):
        parse_dim("*".join(f"(a{i} + b{i} + c{i} + d{i})" for i in range(40)))


def test_splats_do_not_fill_memory():
    with pytest.raises(ParseError, match="P008"):
        parse_graph("graph @g() -> (f32[]) { %0 = constant {value = splat(f32[1000000000000], 0.0)} return %0 }")


# ---- errors ---------------------------------------------------------------------------------------------------------

G = "graph @g(%x: f32[n]) -> f32[n] {\n  %0 = exp %x : f32[n] @ m.py:1:2\n  return %0\n}\n"
K = "kernel @k(%x: in f32[n], %y: out f32[n]) dims (n) {\n  for i in n parallel {\n    %y[i] = exp(%x[i])\n  }\n}\n"
BAD = [  # parser, text, code, line, column
    (parse_graph, G.replace("exp", "ex?p"), "P001", 2, 10),
    (parse_graph, G.replace("%x :", "%y :"), "P003", 2, 12),
    (parse_graph, G.replace("= exp", "= expp"), "P004", 2, 8),
    (parse_graph, G.replace("%x : f32[n]", "%x : f32[m]"), "P005", 2, 17),
    (parse_graph, G.replace("exp %x", "exp %x, %x"), "P005", 2, 8),
    (parse_graph, G.replace("-> f32[n]", "-> f32[4]"), "P005", 1, 25),
    (parse_graph, G.replace("f32[n])", "f33[n])"), "P004", 1, 14),
    (parse_graph, G.replace("return %0", "%0 = exp %x return %0"), "P009", 3, 3),
    (parse_graph, G.replace("exp %x :", "exp %x {a = 1, a = 2} :"), "P009", 2, 23),
    (parse_graph, G + "}", "P002", 5, 1),
    (parse_graph, G[:-3], "P002", 3, 12),
    (parse_graph, "", "P002", 1, 1),
    (parse_graph, G.replace("{\n  %0", "where 2*n >= 1 {\n  %0", 1), "P002", 1, 38),
    (parse_kernel, K.replace("%x[i]", "%z[i]"), "P003", 3, 17),
    (parse_kernel, K.replace("exp(%x[i])", "v1 + 1.0"), "P003", 3, 13),
    (parse_kernel, K.replace("exp(%x[i])", "$1"), "P003", 3, 13),
    (parse_kernel, K.replace("exp(", "exq("), "P004", 3, 13),
    (parse_kernel, K.replace("exp(%x[i])", "exp(%x[i], 1.0)"), "P002", 3, 13),
    (parse_kernel, K.replace("exp(%x[i])", "1.0 < 2.0 < 3.0"), "P002", 3, 23),
    (parse_kernel, K.replace("%x[i]", "%x[i // 0]"), "P006", 3, 22),
    (parse_kernel, K.replace("exp(%x[i])", "nan(0x0)"), "P006", 3, 17),
    (parse_dim, "n + ", "P002", 1, 5), (parse_dim, "min()", "P002", 1, 5), (parse_dim, "9" * 5000, "P006", 1, 1),
    (parse_type, "f32", "P002", 1, 4), (parse_type, "f32[n,,]", "P002", 1, 7), (parse_type, "str[n]", "P004", 1, 1),
    (parse_graph, "graph @g() -> (i8[1]) { %0 = constant {value = dense(i8[1], [300])} return %0 }", "P006", 1, 62),
    (parse_graph, "graph @g() -> (f32[2]) { %0 = constant {value = dense(f32[2], [1.0])} return %0 }", "P008", 1, 55),
    (parse_graph, "graph @g() -> (f32[]) { %0 = constant {value = dense(f32[], [1e39])} return %0 }", "P006", 1, 62),
    (parse_graph, "graph @`\\q`() -> () { return }", "P001", 1, 7),
]


@pytest.mark.parametrize("parse,text,code,line,col", BAD, ids=[f"{b[2]}-{i}" for i, b in enumerate(BAD)])
def test_errors_say_where(parse, text, code, line, col):
    with pytest.raises(ParseError) as e:
        parse(text)
    loc = e.value.loc
    assert (e.value.code, loc.line, loc.col) == (code, line, col), str(e.value)
    report = str(e.value).splitlines()
    assert "cure:" in report[-1]
    if text.split("\n")[line - 1].strip():
        carets = next(x for x in report if "^" in x)
        shown = report[report.index(carets) - 1]
        at = text.split("\n")[line - 1]
        strip = len(at) - len(at.lstrip())
        assert carets.index("^") - shown.index(at.strip()[0]) == min(col, len(at) + 1) - 1 - strip


def test_errors_name_the_file():
    with pytest.raises(ParseError, match=r"case\.flow:2:8"):
        parse_graph(BAD[2][1], "/tmp/some/case.flow")


def test_what_need_not_be_written():
    """Types inside, locations and wide spacing may be left out; comments go anywhere."""
    text = "graph @g(%x: float32[n]) # a comment\n -> (f32[n]) {%1=exp %x# more\nreturn %1}"
    g = parse_graph(text)
    assert g.outputs[0].type == Type(f32, (n,)) and g.outputs[0].loc is None
    wrong = G.replace("%x : f32[n]", "%x : f64[n]").replace("-> f32[n]", "-> f64[n]")
    assert parse_graph(wrong, check=False).outputs[0].type == Type(f64, (n,))


# ---- fuzzing --------------------------------------------------------------------------------------------------------

def mutate(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.randint(0, len(text)) for _ in range(2))
        j = min(j, i + rng.choice((0, 1, 3, 30)))
        piece = rng.choice(["", text[i:j] * 2, rng.choice("(){}[]%@$`\"#.,:=<>-+*/&|~^ \n0129naf\u00e9\x00"),
                            rng.choice(["//", "..", "->", "0x1", "1e5", "nan(", "min(", "f32", "$1 =", "where", "{a = ",
                                        "graph @g() -> () { return }", "for i in 3 seq {", "-", "true", "load(", "]"])])
        text = text[:i] + piece + text[j:]
    return text


SOURCES = [(parse_graph, graph_text(rowmax())), (parse_kernel, kernel_text(example_kernel())),
           (parse_plan, plan_text(example_plan())),
           (parse_graph, graph_text(Graph("g", [], [make(ANY, [], {f"k{i}": v for i, v in enumerate(ATTRS)})]), {})),
           (parse_dim, dim_text(3 * n - m // 4 + (n % 5) * dmin(m, 2))), (parse_type, type_text(Type(f32, (n, 3))))]


@given(st.integers(0, 1 << 60), st.sampled_from(SOURCES))
def test_any_text_parses_or_is_a_parse_error(seed, source):
    parse, text = source
    rng = random.Random(seed)
    for _ in range(20):
        with contextlib.suppress(ParseError):
            parse(mutate(text, rng))


@given(st.text(alphabet=st.sampled_from("graph kernel%x@f(){}[]:=,->0123456789.n*/+-<\"`$#\n "), max_size=60))
def test_soup_parses_or_is_a_parse_error(text):
    for parse in (parse_graph, parse_kernel, parse_plan, parse_program, parse_type, parse_dim):
        for whole in (text, f"kernel @k() {{ {text}", f"graph @g() -> () {{ {text}"):
            with contextlib.suppress(ParseError):
                parse(whole)


def test_params_are_not_operations_of_the_body():
    assert PARAM.name in REGISTRY  # a parameter written in the body parses; the verifier refuses it
    g = parse_graph('graph @g() -> (f32[]) { %0 = param {name = "x", type = f32[]} return %0 }')
    assert g.outputs[0].op is PARAM and not g.params
