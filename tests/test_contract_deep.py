"""Sums of very many products: cut into parts by the sizes alone, whatever the machine, the threads and the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
from flowc.backends.interp import run_program
from flowc.passes import contract_deep, tiles


@pytest.fixture
def short(monkeypatch):
    """Sums of a few dozen count as long."""
    monkeypatch.setattr(tiles, "DEEP", 32)
    for room in (tiles, contract_deep):
        monkeypatch.setattr(room, "LONG", 16)
    monkeypatch.setattr(contract_deep, "GRAIN", 8)


def operand(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.standard_normal(shape) * 3).astype(dtype) if dtype[0] == "f" else r.integers(0, 9, shape).astype(dtype)


def checked(fn, *args: np.ndarray, form: str = "contraction: deep", exact: bool = True) -> np.ndarray:
    """The result; it is that of the kernels as interpreted, bit for bit but for functions, and that of the graph."""
    with flowc.options(cache=False):
        c = flowc.jit(fn).lower(*args).compile()
        assert form in c.as_text("plan")
        got = np.asarray(c(*args))
        with np.errstate(all="ignore"):
            (want,) = run_program(c.compiled.program, args, {})
        assert got.tobytes() == want.tobytes() or not exact
        report = flowc.verify(fn, *args)
        assert report, report
    return got


@settings(max_examples=12)
@given(m=st.integers(2, 40), n=st.integers(2, 40), k=st.integers(32, 100), batch=st.sampled_from([(), (3,)]),
       dtype=st.sampled_from(["float32", "float64", "float16", "int32", "uint8"]),
       turned=st.tuples(st.booleans(), st.booleans()), before=st.booleans(),
       after=st.sampled_from([None, "light", "heavy"]), few=st.sampled_from([1, 1 << 21]))
def test_long_sums_of_every_shape(short, monkeypatch, m, n, k, batch, dtype, turned, before, after, few):
    monkeypatch.setattr(contract_deep, "FEW", few)
    monkeypatch.setattr(tiles, "NARROW", 1)
    a = operand(1, (*batch, *((k, m) if turned[0] else (m, k))), dtype)
    b = operand(2, (*batch, *((n, k) if turned[1] else (k, n))), dtype)

    def fn(x, y):
        x = np.swapaxes(x, -1, -2) if turned[0] else x
        y = np.swapaxes(y, -1, -2) if turned[1] else y
        z = (x + x if before else x) @ y
        return z if after is None else z + z if after == "light" else np.tanh(z * 0.1)
    checked(fn, a, b, exact=after != "heavy")


def test_parts_depend_on_the_sizes_and_change_no_bit_between_threads():
    a, b = operand(1, (20, 12_000), "float32"), operand(2, (12_000, 70), "float32")
    found = []
    for threads in (1, 2, 3):
        with flowc.options(num_threads=threads, cache=False):
            c = flowc.jit(lambda x, y: x @ y).lower(a, b).compile()
            assert "2 parts of 6144" in c.as_text("plan")
            found.append(c(a, b))
    with flowc.options(schedules="dot *: kc=100 mr=3 nr=32 mc=6 nc=32", cache=False):
        c = flowc.jit(lambda x, y: x @ y).lower(a, b).compile()
        assert "tile 3x32, block 6x32" in c.as_text("plan")
        found.append(c(a, b))
    first, second = a[:, :6144] @ b[:6144], a[:, 6144:] @ b[6144:]
    assert all(np.array_equal(f, found[0]) for f in found)
    assert np.allclose(found[0], first + second, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("shape", "turned", "deep"), [
    ((64, 9000, 64), False, True), ((784, 9000, 10), True, True), ((4, 9000, 300), False, True),
    ((4, 9000, 64), False, False), ((1, 9000, 300), False, False), ((64, 8000, 64), False, False)])
def test_which_sums_are_long(shape, turned, deep):
    m, k, n = shape
    a, b = flowc.spec(f"f32[{k}, {m}]" if turned else f"f32[{m}, {k}]"), flowc.spec(f"f32[{k}, {n}]")
    plan = flowc.jit(lambda x, y: (x.T if turned else x) @ y).lower(a, b).as_text("plan")
    assert ("contraction: deep" in plan) == deep


@pytest.mark.parametrize("turned", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize(("m", "n", "batch"), [(20, 9, ()), (33, 40, (2,))])
def test_sums_of_unknown_length(short, m, n, batch, turned):
    """Short ones are one part, whichever form adds them; all have the bits of the kernels as interpreted."""
    def fn(x, y):
        x = np.swapaxes(x, -1, -2) if turned[0] else x
        return np.maximum(x @ (np.swapaxes(y, -1, -2) if turned[1] else y), 0.5)

    def shapes(k):
        return (*batch, *((k, m) if turned[0] else (m, k))), (*batch, *((n, k) if turned[1] else (k, n)))
    specs = [flowc.spec("f32[" + ", ".join(map(str, s)) + "]") for s in shapes("k")]
    with flowc.options(cache=False):
        c = flowc.jit(fn).lower(*specs).compile()
    plan = c.as_text("plan")
    assert "contraction: deep" in plan and ("contraction: direct" in plan) == (not turned[1])
    for k in (0, 1, 15, 16, 17, 64, 70):
        args = [operand(i, s, "float32") for i, s in enumerate(shapes(k))]
        got = c(*args)
        (want,) = run_program(c.compiled.program, args, {"k": k})
        assert got.tobytes() == want.tobytes(), k
        assert np.allclose(got, fn(*args), rtol=1e-4, atol=1e-4)


def test_rules_do_not_turn_other_forms_into_deep_ones():
    a, b = flowc.spec("f32[64, 9000]"), flowc.spec("f32[9000, 64]")
    for rule in ("form=packed", "form=direct"):
        with flowc.options(schedules=f"dot *: {rule}"):
            assert "contraction: deep" in flowc.jit(lambda x, y: x @ y).lower(a, b).as_text("plan")


def test_operands_that_are_read_once_stay_where_they_are():
    """All columns in one tile: nothing is copied; more columns, or rows across memory, are."""
    def plan(fn, *shapes):
        return flowc.jit(fn).lower(*(flowc.spec(f"f32[{', '.join(map(str, s))}]") for s in shapes)).as_text("plan")
    assert "rows in place" in plan(lambda a, b: a @ b, (64, 65536), (65536, 64))
    assert "rows copied" in plan(lambda a, b: a @ b, (64, 65536), (65536, 1000))
    assert "rows copied" in plan(lambda a, b: a.T @ b, (65536, 64), (65536, 64))
