"""The verifier: every code has a program that triggers it, next to one that is right; compiled programs are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import programs
from hypothesis import given

import flowc.ops  # noqa: F401
from flowc.backends.interp import run_graph, run_kernel, run_program
from flowc.diag import Loc, VerifyError
from flowc.dims import sym
from flowc.graph import Attrs, Graph, Literal, Node, constant, make, param
from flowc.kernel import Expr, If, Kernel, Loop
from flowc.op import REGISTRY, HostCall, Op, register
from flowc.parse import parse_graph, parse_kernel, parse_plan
from flowc.passes.build import BuildOptions, build
from flowc.passes.pipeline import optimise
from flowc.passes.schedule import Machine
from flowc.plan import Program
from flowc.text import kernel_text
from flowc.types import Type, f32, f64
from flowc.verify import CODES, verify_graph, verify_kernel, verify_plan, verify_program

n = sym("n")
LIAR = REGISTRY.get("test_liar") or register(Op(
    "test_liar", "Gives another dtype than its rule says.", lambda x: np.float64(1), lambda x: x, HostCall(), arity=1))


# ---- graphs ---------------------------------------------------------------------------------------------------------

def x_of(shape=(n,), name="x") -> Node:
    return param(name, Type(f32, tuple(shape)))


def graph(*outputs: Node, params=(), **more) -> Graph:
    return Graph("g", params, outputs, **more)


def looped() -> Graph:
    x = x_of()
    a = make("exp", [x])
    b = make("neg", [a])
    a.inputs = (b,)
    return graph(b, params=[x])


def node(op, inputs, attrs=None, type_=None) -> Node:
    good = REGISTRY[op] if isinstance(op, str) else op
    return Node(good, tuple(inputs), Attrs(attrs or {}), type_ or inputs[0].type, Loc("m.py", 3, 4))


X, Y = x_of(), x_of((3,), "y")
UNKNOWN = Op("exp", "Not the registered one.", np.exp, lambda x: x, HostCall(), arity=1)
GRAPHS = {
    "V001": lambda: graph(node(UNKNOWN, [X]), params=[X]),
    "V002": lambda: graph(node("exp", [X, X]), params=[X]),
    "V003": lambda: graph(node("add", [X, Y]), params=[X, Y]),
    "V004": lambda: graph(node("exp", [X], type_=Type(f64, (n,))), params=[X]),
    "V005": looped,
    "V006": lambda: graph(make("exp", [X])),
    "V007": lambda: graph(X, params=[X, x_of()]),
    "V008": lambda: graph(make("iota", [], {"shape": (n,), "axis": 0, "dtype": f32})),
    "V009": lambda: graph(node("exp", [X], {"axis": 0}), params=[X]),
    "V010": lambda: graph(node("reduce_sum", [X], {"axes": [0]}, Type(f32, ())), params=[X]),
    "V011": lambda: graph(X, params=[X], ranges={"n": (5, 4)}),
}


@pytest.mark.parametrize("bad", [
    lambda: graph(X, params=[X], ranges={"n": (0, sym("k"))}), lambda: graph(X, params=[X], constraints=[(n, n + 1)]),
    lambda: graph(X, params=[X], ranges={"n": (n, None)}), lambda: graph(X, params=[X], constraints=[(n, sym("k"))])])
def test_sizes_that_cannot_be(bad):
    with pytest.raises(VerifyError, match="V011"):
        verify_graph(bad())


def test_listed_parameters_are_parameters():
    with pytest.raises(VerifyError, match="V006"):
        verify_graph(graph(X, params=[X, constant(np.float32(1))]))


def test_graphs_inside_attributes_are_verified():
    any_ = REGISTRY.get("test_body") or register(Op(
        "test_body", "Holds a graph.", lambda x, body: x, lambda x, body: x, HostCall(), attrs=("body",), arity=1))
    y = x_of((3,), "y")
    inner = Graph("inner", [y], [make("exp", [y])])
    verify_graph(graph(make(any_, [X], {"body": inner}), params=[X]))
    broken = Graph("inner", [y], [node("exp", [y, y])])
    with pytest.raises(VerifyError, match="V002") as e:
        verify_graph(graph(make(any_, [X], {"body": broken}), params=[X]))
    assert "in the graph body" in e.value.__notes__[0]
    total = make("reduce_sum", [y], {"axes": (0,)})
    outer = Graph("inner", [y], [make("broadcast", [total], {"shape": (n,), "axes": ()})])
    verify_graph(graph(make(any_, [X], {"body": outer}), params=[X]))  # symbols of the graph around it may be used
    with pytest.raises(VerifyError, match="V008"):
        verify_graph(outer)


def test_errors_speak_of_the_users_line():
    with pytest.raises(VerifyError) as e:
        verify_graph(GRAPHS["V002"]())
    assert "m.py:3:4" in str(e.value) and "operand 0: f32[n]" in str(e.value)


@given(programs())
def test_drawn_graphs_and_their_programs_are_right(drawn):
    verify_graph(drawn.graph)
    better = optimise(drawn.graph)
    verify_graph(better)
    verify_program(build(better, BuildOptions()))


# ---- kernels --------------------------------------------------------------------------------------------------------

HEAD = "kernel @k(%x: in f32[n], %y: out f32[n], %z: inout f32[n]) dims (n) where n >= 1 "


def kernel(body: str, head: str = HEAD) -> Kernel:
    return parse_kernel(f"{head} {{ {body} }}")


LOOP = "for i in n parallel {{ {} }}"
GPU = "for b in n block {{ alloc %s: f32[32] shared for t in 32 thread {{ {} }} }}"
# code -> right body, wrong body; the wrong one fails without strict unless the code is in STRICT
KERNELS = {
    "V101": (LOOP.format("let v: f32 = %x[i] %y[i] = v"), LOOP.format("let v: f32 = %x[i] let v: f32 = v %y[i] = v")),
    "V102": (LOOP.format("let v: f32 = %x[i] %y[i] = v"), LOOP.format("%y[i] = v:f32")),
    "V103": (LOOP.format("%y[i] = %x[i] + 1.0"), LOOP.format("%y[i] = %x[i] + cast(%x[i], f64)")),
    "V104": (GPU.format("barrier"), "let v: f32 = 1.0"),  # the wrong one is built below
    "V105": (LOOP.format("%y[i] = 1.0"), LOOP.format("%y[i] = 1")),
    "V106": (LOOP.format("%y[i] = %x[i]"), LOOP.format("%y[i] = %x[i + 1]")),
    "V107": (LOOP.format("%y[i] = load(%x[m], index(m) < index(n), 0.0)"),
             LOOP.format("%y[i] = %x[m]")),
    "V108": (LOOP.format("%y[n - 1 - i] = 1.0"), "for i in 4 parallel { %y[0] = 1.0 }"),
    "V109": (LOOP.format("%y[i] = 1.0"), LOOP.format("%y[(i*i % n)] = 1.0")),
    "V110": (GPU.format("%s[t] = 1.0 barrier"), GPU.format("if index(t) < 3 { barrier }")),
    "V111": ("acc s: f32[8] = 0.0 for j in 8 vector { s[j] = 1.0 }",
             "acc s: f32[8] = 0.0 for j in 8 vector { s[0] = 1.0 }"),
    "V112": ("for i in 4 unroll { }", "for i in n unroll { }"),
    "V113": (LOOP.format("%y[i] = 1.0"), LOOP.format("%x[i] = 1.0")),
    "V114": (LOOP.format("%z[i] = %z[i]"), LOOP.format("%y[i] = %y[i]")),
    "V115": ("for i in n parallel { for j in n parallel { } }", "for i in n seq { for j in n parallel { } }"),
    "V116": ("acc s: f32[8] = 0.0 for j in 8 seq { s[j] = 1.0 }", "acc s: f32[8] = 0.0 for j in 9 seq { s[j] = 1.0 }"),
    "V117": ("acc s: f32 = 0.0 s = 1.0", "acc s: f32 = 0.0 s = 1.0:f64"),
    "V118": ("acc s: f32[8] = 0.0 fold r = s over 8 with (x), (y) -> x + y",
             "acc s: f32[6] = 0.0 fold r = s over 6 with (x), (y) -> x + y"),
    "V119": ("alloc %t: f32[n] local", "alloc %t: f32[8] shared"),
    "V120": ("", ""),  # built below
    "V121": ("let k: i64 in 0..n - 1 = min(max(cast(%x[0], i64), 0), index(n - 1))", "let k: i64 in 1..n = 0"),
    "V122": ("acc s: f32 = 0.0 s = 1.0", "acc s: f32 = 0.0 for i in n parallel { s = 1.0 }"),
}
STRICT = {"V107", "V109"}
WITH_M = "kernel @k(%x: in f32[n], %y: out f32[n]) dims (n, m) "


def wrong_kernel(code: str) -> Kernel:
    if code == "V104":
        return replace(kernel(""), body=(replace(kernel(KERNELS[code][1]).body[0], value=Expr("wish", (), f32)),))
    if code == "V120":
        return kernel("", "kernel @k(%x: maybe f32[n]) dims (n)")
    return kernel(KERNELS[code][1], WITH_M if code == "V107" else HEAD)


@pytest.mark.parametrize("code", KERNELS)
def test_right_kernels_pass(code):
    verify_kernel(kernel(KERNELS[code][0], WITH_M if code == "V107" else HEAD), strict=True)


MORE_WRONG = [
    ("V101", "let n: f32 = 1.0"), ("V101", "for i in n seq { for i in n seq { } }"),
    ("V101", "alloc %x: f32[n] local"), ("V102", "for i in q seq { }"), ("V102", "%y[q] = 1.0"),
    ("V102", "%q[0] = 1.0"), ("V102", "%y[0] = %q[0]:f32"), ("V102", "q = 1.0"), ("V102", "alloc %t: f32[q] local"),
    ("V102", "for i in n seq { let v: f32 = 1.0 } %y[0] = v"),
    ("V102", "let v: f32 = 1.0 for i in n seq { %y[v] = 1.0 }"),
    ("V102", "for i in n seq { %y[0] = cast(i:i64, f32) }"),
    ("V103", "let v: bool = ~(%x[0]:bool)"), ("V103", "let v: f32 = min(%x[0], 1.0:f64)"),
    ("V103", "let v: bool = 1.0 & 2.0"), ("V103", "let v: f32 = select(1.0:f32, 1.0:f32, 2.0:f32)"),
    ("V103", "let v: f64 = bitcast(%x[0], f64)"), ("V103", "let v: f32 = ldexp(%x[0], 1:i64)"),
    ("V103", "let v: f32 = (%x[0] < 1.0):f32"), ("V103", "let v: i32 = index(n):i32"),
    ("V103", "let v: f32 = load(%x[0], 1.0:f32, 0.0)"), ("V103", "let w: i64 = 1 let v: f32 = w:f32"),
    ("V105", "let v: i8 = 128:i8"), ("V105", "let v: bool = 1:bool"), ("V105", "let v: i64 = true:i64"),
    ("V105", "let v: f32 = 3:f32"), ("V106", "%y[n] = 1.0"), ("V106", "%y[-1] = 1.0"),
    ("V106", "for i in n seq { %y[2*i + 1] = 1.0 }"), ("V106", "alloc %t: f32[8] local for i in 9 seq { %t[i] = 1.0 }"),
    ("V106", "for i in n seq { %y[i + 1] = 1.0 where index(i) < index(n) }"),
    ("V106", "let k: i64 in 0..n = min(max(cast(%x[0], i64), 0), index(n)) %y[k] = 1.0"),
    ("V108", "for i in 4 parallel { for j in 1 seq { %y[0] = 1.0 } }"),
    ("V108", "alloc %t: f32[8] local for j in 8 vector { %t[3] = 1.0 }"),
    ("V110", "barrier"), ("V110", GPU.format("for j in t seq { barrier }")),
    ("V110", GPU.format("let c: bool = %x[0] > 0.0 if c { barrier }")), ("V112", "acc s: f32[0] = 0.0"),
    ("V112", "for b in n block { for t in n thread { } }"), ("V115", "for i in n magic { }"),
    ("V115", "for i in n parallel { } for j in n parallel { }"),
    ("V115", "for i in 8 vector { for j in 8 vector { } }"),
    ("V115", "if index(n) > 1 { for i in n parallel { } }"), ("V115", "for i in n seq 0 { }"),
    ("V116", "acc s: f32[8] = 0.0 s[0, 0] = 1.0"), ("V116", "acc s: f32 = 0.0 s[0] = 1.0"),
    ("V116", "acc s: f32[8] = 0.0 %y[0] = s[8]"), ("V116", "let v: f32 = 1.0 %y[0] = v[0]"),
    ("V117", "acc s: f32 = 0.0:f64"), ("V117", "%y[0] = 1.0:f64"), ("V117", "let v: f32 in 0..1 = 1.0"),
    ("V117", "if 1.0:f32 { }"), ("V117", "%y[0] = 1.0 where 1.0:f32"),
    ("V118", "fold r = q over 8 with (x), (y) -> x:f32"),
    ("V118", "acc s: f32[8] = 0.0 fold r = s over 4 with (x), (y) -> x + y"),
    ("V118", "acc s: f32[8] = 0.0 fold r = s over 8 with (x), (y) -> x < y"),
    ("V119", "alloc %t: f32[8] attic"), ("V119", "for b in n block { alloc %t: f32[n] shared }"),
]


@pytest.mark.parametrize("code,body", MORE_WRONG, ids=[f"{c}-{i}" for i, (c, _) in enumerate(MORE_WRONG)])
def test_more_wrong_kernels(code, body):
    with pytest.raises(VerifyError) as e:
        verify_kernel(kernel(body))
    assert e.value.code == code, e.value


RIGHT = [  # bodies whose safety needs a proof
    "for b in (n + 4095) // 4096 parallel { for i in min(4096, n - 4096*b) vector 16 { %y[4096*b + i] = 1.0 } }",
    "for j in n // 64 seq { for l in 64 vector { %y[64*j + l] = %x[64*j + l] } }",
    ("for b in (n + 63) // 64 parallel { for l in 64 vector { "
     "%y[64*b + l] = load(%x[64*b + l], index(l) < index(n - 64*b), 0.0) where index(64*b + l) < index(n) } }"),
    ("for b in (n + 63) // 64 parallel { if index(64*b + 64) <= index(n) { for l in 64 vector { %y[64*b + l] = 1.0 } } "
     "else { for l in n - 64*b vector { %y[64*b + l] = 2.0 } } }"),
    "let k: i64 in 0..n - 1 = min(max(cast(%x[0], i64), 0), index(n - 1)) for i in 1 parallel { %y[k] = %x[k] }",
    "for i in n parallel { %z[i] = %z[i] + 1.0 }", "for i in n parallel { %z[n - 1 - i] = %z[n - 1 - i] + %x[i] }",
    "for i in n seq { if index(i) > 0 { %y[i - 1] = 1.0 } }",
    "for i in n seq { if ~(index(i) < 1) & (index(i) <= index(n - 2)) { %y[i + 1] = %x[i - 1] } }",
    "for i in n parallel { for j in 0 seq { %y[99] = 1.0 } }",
    ("for b in (n + 255) // 256 block { for t in 256 thread { if index(256*b + t) < index(n) { "
    "let i: i64 in 0..n - 1 = index(256*b + t) %y[i] = %x[i] } } }"),
    ("for b in n block { alloc %s: f32[64] shared for t in 64 thread { %s[t] = 1.0 barrier "
     "if index(t) < 32 { %s[t] = %s[t + 32] } barrier if index(t) == 0 { %y[b] = %s[t] } } }"),
]
RIGHT_2D = [  # %x: f32[n, m], %y: f32[n, m]
    "for i in n parallel { for j in m parallel { %y[m*i + j] = %x[m*i + j] } }",
    "for i in n*m parallel { %y[i] = %x[i] }",
    "for i in n*m parallel { %y[m*(i // m) + i % m] = %x[i] }",
    "for i in n*m parallel { %y[m*(i // m) + m - 1 - i % m] = %x[i] }",
    "for j in m parallel { for i in n seq { %y[m*i + j] = %x[m*i + j] } }",
    "for b in (m + 7) // 8 parallel { for i in n seq { for j in min(8, m - 8*b) vector { %y[m*i + 8*b + j] = 1.0 } } }",
    ("for i in n parallel { for b in (m + 7) // 8 parallel { for j in min(8, m - 8*b) vector { "
     "%y[m*i + 8*b + j] = 1.0 } } }"),
]
HEAD_2D = "kernel @k(%x: in f32[n, m], %y: out f32[n, m]) dims (n, m)"


@pytest.mark.parametrize("head,body", [*((HEAD, b) for b in RIGHT), *((HEAD_2D, b) for b in RIGHT_2D)])
def test_safe_kernels_are_proved(head, body):
    verify_kernel(kernel(body, head), strict=True)


def test_transposed_division_is_proved():
    """Quotient and remainder of one index are two digits: a flat loop may write the transpose."""
    verify_kernel(kernel("for i in n*8 parallel { %y[n*(i % 8) + i // 8] = %x[i] }",
                         "kernel @k(%x: in f32[n, 8], %y: out f32[8, n]) dims (n)"), strict=True)


UNSAFE = ["for i in n parallel { for j in m parallel { %y[(m - 1)*i + j] = 1.0 } }",
          "for i in n parallel { for j in m parallel { %y[i + j] = 1.0 } }",
          "for i in n*m parallel { %y[i // 2] = 1.0 }", "for i in n*m parallel { %y[i % m] = 1.0 }",
          "for b in n*m // 8 parallel { for j in 9 vector { %y[8*b + j] = 1.0 } }",
          "for i in n parallel { for j in m seq { %y[j] = 1.0 } }"]


@pytest.mark.parametrize("body", UNSAFE)
def test_unsafe_writes_are_not_proved(body):
    with pytest.raises(VerifyError):
        verify_kernel(kernel(body, HEAD_2D), strict=True)


def test_a_proof_of_distinct_places_is_never_wrong():
    """What passes strict verification has no race when it runs."""
    rng = np.random.default_rng(0)
    proved = 0

    def store(value: str) -> str:
        a, b, c, d, e = (int(v) for v in rng.integers((1, 0, 1, 0, 0), (12, 3, 5, 9, 9)))
        i = "i" if rng.random() < 0.7 else f"(7 - i) + {e}"
        tests = ["", f"where index(i) < {d}", f"where index(j) >= {d}", f"where index(i + j) == {d}"]
        where = tests[rng.integers(4)]
        return f"%y[{a}*{i} + {b}*(i // {c}) + {c}*j + (j % {c})] = cast(index({value}), f32) {where}"

    for _ in range(1500):
        k, lanes = (int(v) for v in rng.integers(1, 9, 2))
        stores = store("7*i + j") + " " + (store("99 - 7*i - j") if rng.random() < 0.5 else "")
        text = f"kernel @k(%y: out f32[400]) {{ for i in {k} parallel {{ for j in {lanes} parallel {{ {stores} }} }} }}"
        try:
            verify_kernel(parse_kernel(text), strict=True)
        except VerifyError as e:
            assert e.code in ("V109", "V108"), e
            continue
        proved += 1
        run_kernel(parse_kernel(text), {"y": np.zeros(400, np.float32)}, {}, races=True)
    assert proved > 150


def test_bounds_agree_with_a_run():
    """What passes strict verification stays inside; what is refuted goes outside when it runs."""
    rng = np.random.default_rng(1)
    count = {"proved": 0, "refuted": 0, "open": 0}
    for _ in range(1500):
        a, b, c, k, lanes, size, d = (int(v) for v in rng.integers((0, -3, -4, 1, 1, 1, 0), (9, 4, 6, 9, 9, 40, 12)))
        at = [f"{a}*i + {b}*j + {c}", f"({a}*i + j) // 3", f"min({a}*i + j, {size - 1})", f"{a}*i + (j % 4) + {c}",
              f"max({b}*j + i, {c})"][rng.integers(5)]
        test = ["", f"index({at}) < {size}", f"(index({at}) >= 0) & (index({at}) < {size})", f"index(i) < {d}",
                f"index(i + j) == {d}", f"~(index(j) < {d})"][rng.integers(6)]
        extent = str(lanes) if rng.random() < 0.5 else f"min({lanes}, {d} - i)"
        store = f"%y[{at}] = 1.0 where {test}" if test and rng.random() < 0.5 else (
            f"if {test} {{ %y[{at}] = 1.0 }}" if test else f"%y[{at}] = 1.0")
        text = f"kernel @k(%y: out f32[{size}]) {{ for i in {k} seq {{ for j in {extent} seq {{ {store} }} }} }}"
        kernel = parse_kernel(text)
        codes = []
        for check in (lambda k: verify_kernel(k), lambda k: verify_kernel(k, strict=True),
                      lambda k: run_kernel(k, {"y": np.zeros(size, np.float32)}, {})):  # noqa: B023
            try:
                check(kernel)
                codes.append("")
            except VerifyError as e:
                codes.append(e.code)
        plain, strict, _ = codes
        assert tuple(codes) in {("", "", ""), ("V106", "V106", "V401"), ("", "V107", ""), ("", "V107", "V401")}, text
        count["refuted" if plain else "open" if strict else "proved"] += 1
    assert count["proved"] > 800 and count["refuted"] > 200 and count["open"] < 150, count


def test_messages_show_the_statement_and_an_example():
    with pytest.raises(VerifyError) as e:
        verify_kernel(kernel(KERNELS["V106"][1]))
    assert "in %y[i] = %x[i + 1]" in str(e.value) and "n = " in str(e.value)


def test_deep_expressions_are_verified_without_recursion():
    k = kernel(LOOP.format("%y[i] = %x[i]"))
    e = k.body[0].body[0].value  # type: ignore[union-attr]
    for _ in range(20_000):
        e = Expr("neg", (e,), f32)
    loop = k.body[0]
    assert isinstance(loop, Loop) and not isinstance(loop, If)
    verify_kernel(replace(k, body=(replace(loop, body=(replace(loop.body[0], value=e),)),)))


# ---- plans ----------------------------------------------------------------------------------------------------------

PLAN = """plan @p(%x) -> (%y) on cpu dims (n) where n >= 1 {
  arena 64*((4*n + 63) // 64) + 4096
  buffer %x: f32[n] param 0
  buffer %y: f32[n] output 0
  buffer %c: f32[] constant 0
  buffer %a: f32[1024] arena at 0
  buffer %b: f32[n] arena at 4096
  wave 0
    s0: @k(%x) -> (%a)
    s1: @k(%x, %c) -> (%b)
  wave 1
    s2: @k(%a, %b) -> (%y)
}"""
PLANS = {  # code -> (old, new)
    "V201": ("s1:", "s0:"),
    "V202": ("wave 0\n    s0: @k(%x)", "buffer %d: f32[4] arena at 0\n  wave 0\n    s0: @k(%d)"),
    "V203": ("s1: @k(%x, %c)", "s1: @k(%x, %a)"), "V204": ("arena at 4096", "arena at 64"),
    "V205": ("arena at 4096", "arena at 4096*((n*n - n + 1) % 2)"), "V206": ("+ 4096", "+ 1024"),
    "V207": ("-> (%a)", "-> (%c)"), "V208": ("output 0", "output 1"), "V209": ("", ""),
    "V210": ("@k(%a, %b) -> (%y)", "@k(%a, %b) -> (%y) dims (m)"), "V211": ("constant 0", "elsewhere 0"),
}
MORE_PLANS = [  # code, old, new
    ("V201", "(%a, %b)", "(%a, %q)"), ("V201", "%b: f32", "%a: f32"),
    ("V201", "(%x) -> (%y) on", "(%x, %q) -> (%y) on"),
    ("V203", "s2: @k(%a, %b) -> (%y)", "s2: @k(%a, %y) -> (%y)"), ("V206", "arena at 4096", "arena at 64*n*(n + 1)"),
    ("V206", "arena at 4096", "arena at 4100"), ("V206", "arena at 0", "arena at -64"), ("V207", "-> (%a)", "-> (%x)"),
    ("V208", "  wave 1\n    s2: @k(%a, %b) -> (%y)", ""), ("V207", "(%a, %b) -> (%y)", "(%b) -> (%a, %y)"),
    ("V203", "s1: @k(%x, %c) -> (%b)", "s1: @k(%x, %c) -> (%a)"), ("V210", "f32[n] arena", "f32[m] arena"),
    ("V202", "wave 0\n", "buffer %d: f32[4] constant 1\n  once\n    s9: @k(%x) -> (%d)\n  wave 0\n"),
    ("V207", "wave 0\n    s0: @k(%x)", "once\n    s0: @k(%c)"),
    ("V208", "param 0", "output 0"), ("V204", "f32[1024] arena at 0", "f32[1024] arena at 64*((4*n + 63) // 64)")]


def wrong_plan(code: str):
    if code == "V209":
        plan = parse_plan(PLAN)
        return replace(plan, steps=(replace(plan.steps[0], wave=-2), *plan.steps[1:]))
    old, new = PLANS[code]
    assert old in PLAN
    return parse_plan(PLAN.replace(old, new, 1))


def test_right_plan_passes():
    verify_plan(parse_plan(PLAN), strict=True)


@pytest.mark.parametrize("code,old,new", MORE_PLANS)
def test_more_wrong_plans(code, old, new):
    assert old in PLAN
    with pytest.raises(VerifyError) as e:
        verify_plan(parse_plan(PLAN.replace(old, new, 1)))
    assert e.value.code == code, e.value


def test_memory_is_reused_after_the_last_read():
    text = PLAN.replace("(%a, %b) -> (%y)", "(%a, %b) -> (%d) wave 2 s3: @k(%d) -> (%e) wave 3 s4: @k(%e) -> (%y)")
    end = "64*((4*n + 63) // 64) + 4096"
    text = text.replace("  wave 0", f"  buffer %d: f32[4] arena at {end} buffer %e: f32[n] arena at 4096 wave 0")
    text = text.replace(f"arena {end}", f"arena {end} + 64")
    verify_plan(parse_plan(text), strict=True)  # %e lies where %b was, which is dead
    with pytest.raises(VerifyError, match="V204"):
        verify_plan(parse_plan(text.replace("s3: @k(%d)", "s3: @k(%d, %b)")))


# ---- programs -------------------------------------------------------------------------------------------------------

def program(change=lambda p: p) -> Program:
    x = x_of()
    y = make("sort", [make("exp", [x])], {"axis": 0})
    host_sorts = BuildOptions(Machine("cuda", 32))
    return change(build(Graph("g", [x], [make("add", [y, y])]), host_sorts))


def with_step(pick, **changes):
    def change(p: Program) -> Program:
        at = next(i for i, s in enumerate(p.plan.steps) if pick(s))
        steps = list(p.plan.steps)
        steps[at] = replace(steps[at], **{k: v(steps[at]) if callable(v) else v for k, v in changes.items()})
        return replace(p, plan=replace(p.plan, steps=tuple(steps)))
    return change


def with_constant(p: Program) -> Program:
    plan = parse_plan("plan @p() -> (%c) on cpu { arena 0 buffer %c: f32[2] constant 0 }")
    return Program(plan, {}, {"c": Literal(np.zeros(3, np.float32))})


def without_results(p: Program) -> Program:
    return Program(parse_plan("plan @p(%x) -> () on cpu { arena 0 buffer %x: f32[4] param 0 wave 0 s0: @k(%x) -> () }"),
                   {"k": parse_kernel("kernel @k(%y: out f32[4]) { }")})


PROGRAMS = {
    "V301": with_step(lambda s: s.kernel, kernel="nobody"), "V302": with_step(lambda s: s.kernel, dims=()),
    "V303": without_results, "V304": with_constant,
    "V305": with_step(lambda s: s.op, attrs=Attrs(axis=5)),
}


def test_right_program_passes():
    verify_program(program(), strict=True)


def test_wrong_kernels_in_programs_are_found():
    p = program()
    bad = {k: replace(v, body=(*v.body, Loop("q", 2, "magic", ()))) for k, v in p.kernels.items()}
    with pytest.raises(VerifyError, match="V115"):
        verify_program(replace(p, kernels=bad))


# ---- found by running -----------------------------------------------------------------------------------------------

def run(text: str, races: bool = False, **buffers) -> None:
    run_kernel(parse_kernel(text), buffers, {}, races=races)


F4 = np.zeros(4, np.float32)
RUNS = {
    "V401": lambda: run("kernel @k(%y: out f32[4]) { for i in 5 parallel { %y[i] = 1.0 } }", y=F4.copy()),
    "V402": lambda: run("kernel @k(%y: out f32[4]) { let k: i64 in 0..3 = 4 }", y=F4.copy()),
    "V403": lambda: run("kernel @k(%y: out f32[4]) { for i in 3 parallel { %y[0] = cast(index(i), f32) } }", True,
                        y=F4.copy()),
    "V404": lambda: run("kernel @k(%y: out f32[4]) { }", y=np.zeros(5, np.float32)),
    "V405": lambda: run_graph(graph(make(LIAR, [X]), params=[X]), [F4]),
    "V406": lambda: run_program(
        Program(parse_plan("plan @p() -> () on cpu { arena 8 buffer %a: f32[4] arena at 0 }"), {}), [], {}),
}


def trigger(code: str) -> None:
    if code in GRAPHS:
        verify_graph(GRAPHS[code]())
    elif code in KERNELS:
        verify_kernel(wrong_kernel(code), strict=code in STRICT)
    elif code in PLANS:
        verify_plan(wrong_plan(code), strict=code == "V205")
    elif code in PROGRAMS:
        verify_program(program(PROGRAMS[code]))
    else:
        RUNS[code]()


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_triggered(code):
    with pytest.raises(VerifyError) as e:
        trigger(code)
    assert e.value.code == code, str(e.value)
    assert "cure:" in str(e.value)


@pytest.mark.parametrize("code", sorted(STRICT | {"V205"}))
def test_what_is_only_unproved_passes_without_strict(code):
    if code in KERNELS:
        verify_kernel(wrong_kernel(code))
    else:
        verify_plan(wrong_plan(code))


def test_parsed_graphs_are_verified_too():
    verify_graph(parse_graph("graph @g(%x: f32[n]) -> (f32[n]) where n >= 1 { %0 = exp %x return %0 }"))


def test_kernel_text_of_the_right_ones_is_stable():
    for body in RIGHT:
        assert parse_kernel(kernel_text(kernel(body))) == kernel(body)
