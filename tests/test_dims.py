"""Sizes against Python integers: normal forms, division with every sign, soundness of what is proved."""

from __future__ import annotations

import operator
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowc.dims import Dim, apply, ceildiv, dmax, dmin, evaluate, floordiv, linear, mod, prod, substitute, sym, symbols
from flowc.parse import parse_dim
from flowc.proofs import bounds, known_eq, known_le, known_lt, proved_le, question, simplify
from flowc.text import dim_text

NAMES = ("a", "b", "c", "n")  # n is positive: the only symbol that divides
small = st.integers(-9, 9)


class Tree:
    """An expression as it was drawn: ``dim`` through flowc, ``value(env)`` by Python integers."""

    def __init__(self, dim, value, text):
        self.dim, self.value, self.text = dim, value, text

    def __repr__(self):
        return self.text


def leaf(x):
    if isinstance(x, int):
        return Tree(x, lambda env: x, str(x))
    return Tree(sym(x), lambda env: env[x], x)


INFIX = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def infix(op, x, y):
    return Tree(INFIX[op](x.dim, y.dim), lambda env: INFIX[op](x.value(env), y.value(env)), f"({x} {op} {y})")


def divided(op, x, k):
    """By a number of either sign, or by the symbol n."""
    d = sym("n") if k == "n" else k
    how = {"//": (floordiv, operator.floordiv), "%": (mod, operator.mod)}[op]
    return Tree(how[0](x.dim, d), lambda env: how[1](x.value(env), env["n"] if k == "n" else k), f"({x} {op} {k})")


def extreme(op, xs):
    how = {"min": (dmin, min), "max": (dmax, max)}[op]
    return Tree(how[0](*[x.dim for x in xs]), lambda env: how[1](*[x.value(env) for x in xs], *xs[:0])
                if len(xs) > 1 else xs[0].value(env), f"{op}({', '.join(map(str, xs))})")


divisors = st.one_of(st.integers(-6, 6).filter(bool), st.just("n"))
leaves = st.one_of(small, st.sampled_from(NAMES)).map(leaf)
trees = st.recursive(leaves, lambda x: st.one_of(
    st.builds(infix, st.sampled_from("+-*"), x, x), st.builds(infix, st.sampled_from("+-"), x, x),
    st.builds(divided, st.sampled_from(("//", "%")), x, divisors),
    st.builds(extreme, st.sampled_from(("min", "max")), st.lists(x, min_size=1, max_size=3))), max_leaves=10)
values = st.integers(-30, 30)
envs = st.fixed_dictionaries({"a": values, "b": values, "c": values, "n": st.integers(1, 30)})


def points(seed, count=12):
    rng = random.Random(seed)
    for _ in range(count):
        yield {**{n: rng.randint(-20, 20) for n in NAMES}, "n": rng.randint(1, 20)}


# ---- values ---------------------------------------------------------------------------------------------------------

@given(trees, envs)
def test_value_equals_python(tree, env):
    assert evaluate(tree.dim, env) == tree.value(env)


@given(trees, st.integers(0, 999))
def test_numpy_arrays_evaluate_elementwise(tree, seed):
    rows = list(points(seed))
    env = {n: np.array([r[n] for r in rows]) for n in NAMES}
    got = np.broadcast_to(evaluate(tree.dim, env), (len(rows),))
    assert got.tolist() == [tree.value(r) for r in rows]


@given(trees)
def test_constants_are_plain_ints(tree):
    assert isinstance(tree.dim, int) or isinstance(tree.dim, Dim) and symbols(tree.dim)


@given(trees, trees, envs)
def test_equal_forms_have_equal_values_and_hashes(x, y, env):
    if x.dim == y.dim:
        assert hash(x.dim) == hash(y.dim) and str(x.dim) == str(y.dim)
        assert x.value(env) == y.value(env)


# ---- normal form ----------------------------------------------------------------------------------------------------

@given(trees, trees, trees)
def test_polynomial_laws_hold_as_equality(x, y, z):
    a, b, c = x.dim, y.dim, z.dim
    assert a + b == b + a and a * b == b * a
    assert (a + b) + c == a + (b + c)
    assert a - a == 0 and a + 0 == a and a * 1 == a and a * 0 == 0 and a - 2 * a == -a
    assert a - b == a + (-1) * b


@given(st.lists(st.one_of(small, st.sampled_from(NAMES)).map(leaf), min_size=3, max_size=3))
def test_products_of_polynomials_distribute(xs):
    a, b, c = (x.dim for x in xs)
    assert (a + b) * c == a * c + b * c
    assert (a * b) * c == a * (b * c) == prod((a, b, c))


@given(trees)
def test_rebuilding_gives_the_same_form(tree):
    assert substitute(tree.dim, {"zzz": 1}) == tree.dim
    assert substitute(tree.dim, {n: sym(n) for n in NAMES}) == tree.dim


@given(trees)
def test_text_parses_back(tree):
    assert parse_dim(dim_text(tree.dim)) == tree.dim
    assert parse_dim(str(tree.dim)) == tree.dim


@given(trees, st.integers(-12, 12).filter(bool))
def test_quotient_and_remainder_belong_together(tree, k):
    q, r = floordiv(tree.dim, k), mod(tree.dim, k)
    for env in points(1):
        v = tree.value(env)
        assert (evaluate(q, env), evaluate(r, env)) == divmod(v, k)
    if k > 0:
        assert ceildiv(tree.dim, k) == floordiv(tree.dim + k - 1, k)


def test_what_the_form_knows():
    a, n, m = sym("a"), sym("n"), sym("m")
    assert 4 * (a // 4) + a % 4 == a
    assert 64 * ((a + 7) // 4096) + ((a + 7) // 64) % 64 == (a + 7) // 64
    assert (n * m + a) // n == m + a // n and (n * m) % n == 0 and (n * m + a) % n == a % n
    assert (6 * a + 4) // 2 == 3 * a + 2 and (6 * a + 5) % 3 == 2 and (a // 3) // 4 == a // 12
    assert (a % 4) % 8 == a % 4 and (a % 8) % 4 == a % 4 and (a % 4) // 8 == 0
    assert dmin(n, n + 1) == n and dmax(n, n + 1) == n + 1 and dmin(n, dmin(m, n)) == dmin(m, n) and dmin(3, 5) == 3
    assert apply("max", (n, m)) == dmax(m, n)
    assert str(dmin(n, 3) * n - 2) == "min(n, 3)*n - 2"


def test_division_by_zero_is_refused():
    for op in (floordiv, mod):
        with pytest.raises(ZeroDivisionError):
            op(sym("n"), 0)


def test_truth_is_refused():
    with pytest.raises(TypeError, match="known_eq"):
        bool(sym("n"))


# ---- substitution, linear parts -------------------------------------------------------------------------------------

@given(trees, trees, st.sampled_from("abc"), st.integers(0, 999))
def test_substitution_then_value_is_value_under_values(x, y, name, seed):
    replaced = substitute(x.dim, {name: y.dim})
    for env in points(seed):
        assert evaluate(replaced, env) == x.value({**env, name: y.value(env)})


@given(st.dictionaries(st.sampled_from(NAMES), small), small)
def test_sums_of_symbols_are_taken_apart(factors, const):
    d = sum((c * sym(name) for name, c in factors.items()), const)
    if isinstance(d, Dim):
        assert (d.affine()[0], dict(d.affine()[1])) == (const, {name: c for name, c in factors.items() if c})


@given(trees, envs)
def test_what_is_taken_apart_has_the_same_value(tree, env):
    d = tree.dim
    if isinstance(d, Dim) and d.affine() is not None:
        const, factors = d.affine()
        assert const + sum(c * env[name] for name, c in factors) == evaluate(d, env)
    assert sym("a").affine() == (0, (("a", 1),))
    assert (sym("a") * sym("b")).affine() is (sym("a") // 2 + 1).affine() is None


@given(trees, st.sampled_from(NAMES), st.integers(0, 999))
def test_linear_parts_add_up(tree, name, seed):
    parts = linear(tree.dim, name)
    if parts is None:
        return
    c, rest = parts
    assert name not in symbols(c) | symbols(rest)
    for env in points(seed):
        assert evaluate(c, env) * env[name] + evaluate(rest, env) == tree.value(env)


# ---- proofs ---------------------------------------------------------------------------------------------------------

@st.composite
def ranged(draw):
    """Ranges of the symbols, later ones in terms of earlier ones, and points inside of them."""
    ranges, rows = {}, [{} for _ in range(10)]
    rng = random.Random(draw(st.integers(0, 9999)))
    for name in ("n", "a", "b", "c"):
        lo = 1 if name == "n" else draw(st.integers(-8, 8))
        span = draw(st.integers(0, 12))
        hi = lo + span
        kind = draw(st.integers(0, 4))
        if name != "n" and kind == 1:
            hi = sym("n") * draw(st.integers(1, 4)) + lo
        elif name == "c" and kind == 2:
            lo, hi = sym("a") - 1, dmax(sym("b"), sym("a")) + span
        elif name != "n" and kind == 3:
            hi = dmin(sym("n") + lo, lo + span)
        elif kind == 4:
            hi = None
        ranges[name] = (lo, hi)
        for row in rows:
            low = evaluate(lo, row)
            high = low + rng.choice((0, 1, 50)) if hi is None else evaluate(hi, row)
            row[name] = rng.choice((low, high, rng.randint(low, high)))
    return ranges, rows


@given(trees, ranged())
def test_bounds_are_sound(tree, drawn):
    ranges, rows = drawn
    lo, hi = bounds(tree.dim, ranges)
    for row in rows:
        v = tree.value(row)
        assert lo is None or lo <= v
        assert hi is None or v <= hi


@given(trees, trees, ranged())
def test_comparisons_are_sound(x, y, drawn):
    ranges, rows = drawn
    for ask, law in ((known_le, operator.le), (known_lt, operator.lt), (known_eq, operator.eq)):
        answer = ask(x.dim, y.dim, ranges)
        if answer is not None:
            assert all(law(x.value(r), y.value(r)) is answer for r in rows), ask.__name__


@given(trees, ranged())
def test_simplify_keeps_values(tree, drawn):
    ranges, rows = drawn
    simple = simplify(tree.dim, ranges)
    for row in rows:
        assert evaluate(simple, row) == tree.value(row)
    assert symbols(simple) <= symbols(tree.dim)


@given(trees, envs)
def test_sizes_without_ranges_are_not_negative(tree, env):
    """Without a range a symbol is a size: what is proved then holds for all values from 0 on."""
    env = {n: abs(v) for n, v in env.items()}
    lo, hi = bounds(tree.dim)
    v = tree.value(env)
    assert (lo is None or lo <= v) and (hi is None or v <= hi)


PROVED = [  # facts that indices of compiled kernels need
    ("64*(n // 64) + l", "n - 1", {"n": (0, None), "l": (0, "n % 64 - 1")}),
    ("64*j + l", "n - 1", {"n": (0, None), "j": (0, "n // 64 - 1"), "l": (0, 63)}),
    ("4096*b + i", "n - 1",
     {"n": (0, None), "b": (0, "(n + 4095) // 4096 - 1"), "i": (0, "min(4096, n - 4096*b) - 1")}),
    ("n*i + j", "n*m - 1", {"n": (0, None), "m": (0, None), "i": (0, "m - 1"), "j": (0, "n - 1")}),
    ("64*j + l", "(n + 65535) // 65536 - 1",
     {"n": (0, None), "j": (0, "(n + 65535) // 4194304 - 1"), "l": (0, 63)}),
    ("n*min(n - 1, i) + k", "n*n - 1", {"n": (1, None), "i": (0, None), "k": (0, "n - 1")}),
    ("4*(n // 4)", "n", {"n": (0, None)}),
    ("0", "64*((40*n + 63) // 64) - 40*n", {"n": (0, None)}),
]


@pytest.mark.parametrize("left,right,ranges", PROVED, ids=[p[0] for p in PROVED])
def test_index_bounds_are_proved(left, right, ranges):
    table = {n: tuple(parse_dim(x) if isinstance(x, str) else x for x in r) for n, r in ranges.items()}
    assert known_le(parse_dim(left), parse_dim(right), table) is True
    assert known_le(0, parse_dim(left), table) is True


def test_a_product_of_many_symbols_takes_no_time():
    d = prod(sym(f"s{i}") for i in range(200))
    assert known_le(0, d) is True and known_le(1, d) is None
    assert substitute(d, {f"s{i}": 1 for i in range(200)}) == 1


def test_questions_share_the_budget_of_their_proofs():
    n, ranges = sym("n"), {"i": (0, sym("n") - 1)}

    def inside() -> bool:
        return proved_le(sym("i") + 1, n, ranges)
    assert inside()
    with question(100):
        assert inside()
        for k in range(200):
            assert not proved_le(sym("i"), n - k - 2, ranges)
        assert not inside()  # nothing is left: not proved, and not refuted
        with question(100):
            assert not inside()
    assert inside()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.integers(-9, 9),
       st.data())
def test_quotients_in_units(rows, columns, count, other, constant, data):
    """A divisor that is a multiple of a unit of which the rest stays below."""
    unit = rows * columns
    i, j, k = map(sym, "ijk")
    ranges = {"i": (-20, 20), "j": (0, rows - 1), "k": (0, columns - 1)}
    d = unit * i + columns * j + k + unit * constant + other
    at = {n: data.draw(st.integers(lo, hi)) for n, (lo, hi) in ranges.items()}
    for expression in (d // (unit * count), d % (unit * count)):
        better = simplify(expression, ranges)
        assert evaluate(better, at) == evaluate(expression, at)


def test_quotients_in_units_are_found():
    i, j, k = map(sym, "ijk")
    ranges = {"i": (0, 63), "j": (0, 27), "k": (0, 27)}
    assert simplify((784 * i + 28 * j + k) // 6272, ranges) == i // 8
    assert simplify((784 * i + 28 * j + k) % 6272, ranges) == 784 * (i % 8) + 28 * j + k
