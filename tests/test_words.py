"""Products of narrow numbers, several at a time: the bits are those of products one by one, whatever the operands."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
from flowc.backends.interp import run_program
from flowc.compiled import compile_graph, machine

BF16 = ml_dtypes.bfloat16
WITH = replace(machine("cpu"), dots=("dot_bf16", "dot_i16", "dot_i8"))
WITHOUT = replace(WITH, dots=())
TINY, HUGE = 2.0 ** -126, 2.0 ** 120


def bits(a: np.ndarray) -> np.ndarray:
    """NaNs are as good as one another."""
    a = np.asarray(a)
    return np.where(a != a, -1, a.view(f"i{a.itemsize}"))


def compiled(fn, *args, target=WITH, fast: bool = True):
    c = compile_graph(flowc.jit(fn).lower(*args).graph, target=target)
    text = "\n".join(str(k) for k in c.program.kernels.values())
    assert ("dot_" in text) == (fast and target is WITH)
    return c


def check(fn, *args: np.ndarray) -> np.ndarray:
    """Machine code, with words and without, and the interpreted kernels agree in every bit."""
    with flowc.options(cache=False), np.errstate(all="ignore"):
        c = compiled(fn, *args)
        (got,), (want,), (slow,) = c(args), run_program(c.program, args, {}), compiled(fn, *args, target=WITHOUT)(args)
    assert np.array_equal(bits(got), bits(want)), "interpreted"
    assert np.array_equal(bits(got), bits(slow)), "one by one"
    return got


def operand(seed: int, shape: tuple[int, ...], scale: float = 1.0, zeros: bool = False) -> np.ndarray:
    r = np.random.default_rng(seed)
    x = r.standard_normal(shape)
    return np.where(r.random(shape) < 0.5, 0, x).astype(BF16) * BF16(scale) if zeros else (x * scale).astype(BF16)


@settings(max_examples=12)
@given(m=st.integers(1, 40), n=st.integers(1, 60), k=st.integers(0, 40), batch=st.sampled_from([(), (2,)]),
       turned=st.tuples(st.booleans(), st.booleans()), widened=st.booleans(), before=st.booleans(),
       scale=st.sampled_from([1.0, TINY, HUGE, 2.0 ** -60]), zeros=st.booleans())
def test_products_of_every_shape(m, n, k, batch, turned, widened, before, scale, zeros):
    a = operand(1, (*batch, *((k, m) if turned[0] else (m, k))), scale, zeros)
    b = operand(2, (*batch, *((n, k) if turned[1] else (k, n))), zeros=zeros)

    def fn(x, y):
        x = np.maximum(x, BF16(0)) if before else x
        x, y = (x.astype(np.float32), y.astype(np.float32)) if widened else (x, y)
        x = np.swapaxes(x, -1, -2) if turned[0] else x
        y = np.swapaxes(y, -1, -2) if turned[1] else y
        return x @ y
    if 1 not in (m, n):
        check(fn, a, b)


@pytest.mark.parametrize("special", [TINY / 8, np.inf, np.nan, -0.0, 3e38])
@pytest.mark.parametrize("where", [0, 1])
def test_one_special_number_anywhere(special, where):
    args = [operand(1, (20, 33)), operand(2, (33, 50))]
    args[where][7, 19] = special
    args[1 - where][3, 3] = HUGE
    check(lambda x, y: x @ y, *args)


def test_sums_that_would_be_subnormal():
    """Every element is a normal number, and every product is not, or they cancel to less."""
    a, b = operand(1, (20, 33), 2.0 ** -70), operand(2, (33, 50), 2.0 ** -70)
    assert np.count_nonzero(check(lambda x, y: x.astype(np.float32) @ y.astype(np.float32), a, b))
    a, b = np.ones((8, 2), BF16), np.full((2, 16), 2.0 ** -126, BF16)
    a[:, 1], b[1] = -1, 1.5 * 2.0 ** -126
    got = check(lambda x, y: x.astype(np.float32) @ y.astype(np.float32), a, b)
    assert (got == -2.0 ** -127).all()


def integers(seed: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The extremes among them."""
    info = np.iinfo(dtype)
    x = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)
    return np.where(x % 5 == 0, dtype(info.min), x)


@settings(max_examples=16)
@given(m=st.integers(2, 40), n=st.integers(2, 60), k=st.integers(2, 40), turned=st.tuples(st.booleans(), st.booleans()),
       dtypes=st.tuples(*[st.sampled_from([np.int8, np.uint8, np.int16])] * 2), before=st.booleans(),
       into=st.sampled_from([np.int16, np.int32, np.uint32]))
def test_integers_that_are_widened(m, n, k, turned, dtypes, before, into):
    a, b = (integers(i, s[::-1] if t else s, d) for i, (s, t, d) in enumerate(
        zip(((m, k), (k, n)), turned, dtypes, strict=True)))

    def fn(x, y):
        x = x ^ dtypes[0](3) if before else x
        return (x.T if turned[0] else x).astype(into) @ (y.T if turned[1] else y).astype(into)
    assert np.array_equal(check(fn, a, b), fn(a, b))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_integers_that_wrap(dtype):
    assert check(lambda x, y: x @ y, integers(1, (150, 23), dtype), integers(2, (23, 20), dtype)).dtype == dtype
    a, b = integers(1, (150, 1101), dtype), integers(2, (1101, 130), dtype)  # several blocks of the sum
    got, slow = (compiled(lambda x, y: x @ y, a, b, target=t)((a, b))[0] for t in (WITH, WITHOUT))
    assert got.dtype == dtype and np.array_equal(got, slow) and np.array_equal(got, a @ b)


def test_sizes_that_are_not_known():
    for dtype in (None, np.int8, np.int16):
        fn = flowc.jit(lambda x, y: x @ y, dynamic=True)
        for m, k, n in ((3, 5, 70), (200, 301, 70), (0, 4, 5), (70, 1, 90)):
            args = [operand(i, s) if dtype is None else integers(i, s, dtype) for i, s in enumerate(((m, k), (k, n)))]
            report = flowc.verify(fn, *args)
            assert report, report


def test_long_rows_and_many_blocks():
    def fn(x, y):
        return np.maximum(x @ y, BF16(0))
    check(fn, operand(1, (30, 1100)), operand(2, (1100, 20)))
    a, b, found = operand(1, (200, 1100)), operand(2, (1100, 70)), []
    for threads in (1, 2, 3):
        with flowc.options(num_threads=threads, cache=False):
            found += [bits(c((a, b))[0]) for c in (compiled(fn, a, b), compiled(fn, a, b, target=WITHOUT))]
    assert all(np.array_equal(f, found[0]) for f in found)


def test_rules_keep_their_meaning():
    a, b = operand(1, (150, 300)), operand(2, (300, 150))
    want = check(lambda x, y: x @ y, a, b)
    for rule in ("form=direct", "copy_rows=0", "mr=3 nr=16 kc=8", "width=8", "mc=6 nc=32"):
        with flowc.options(schedules=f"dot *: {rule}", cache=False):
            assert np.array_equal(bits(flowc.jit(lambda x, y: x @ y)(a, b)), bits(want)), rule


def test_other_operands_stay_one_by_one():
    a, b = operand(1, (20, 33)), operand(2, (33, 50)).astype(np.float32)
    compiled(lambda x, y: x.astype(np.float32) @ y, a, b, fast=False)
    compiled(lambda x, y: x @ y, b.T, b, fast=False)
    for narrow, wide in ((np.uint16, np.int32), (np.int8, np.int64), (np.int32, np.int32), (np.int8, np.float32)):
        x = integers(1, (40, 40), narrow)
        compiled(lambda x, wide=wide: x.astype(wide) @ x.astype(wide), x, fast=False)
