"""Products that write their results with the axes in the order in which they are wanted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc

SIZES = st.sampled_from([1, 2, 3, 5, 8, 17, 64, 67, 100, 130])


def operand(seed: int, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.standard_normal(shape) * 2).astype(dtype) if dtype[0] == "f" else r.integers(0, 9, shape).astype(dtype)


def kernels(fn, *args) -> int:
    return len(flowc.jit(fn).lower(*args).compile().compiled.program.kernels)


@settings(max_examples=60)
@given(st.data())
def test_results_in_any_order(data):
    """Batch, row, column and summed axes in any order in both operands and the result, and work after it."""
    counts = [data.draw(st.integers(0, 2)) for _ in range(3)] + [1]
    names = iter("abcdefg")
    batch, left, right, summed = ("".join(next(names) for _ in range(n)) for n in counts)
    size = {c: data.draw(SIZES if c == (batch + left + right)[-1:] else st.integers(1, 6))
            for c in batch + left + right + summed}
    first, second, out = ("".join(data.draw(st.permutations(s)))
                          for s in (batch + left + summed, batch + right + summed, batch + left + right))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int32", "float16"]))
    x, y = (operand(i, tuple(size[c] for c in s), dtype) for i, s in enumerate((first, second)))
    bias = operand(3, tuple(size[c] for c in out[-1:]), dtype)
    after = data.draw(st.booleans())

    def fn(x, y, bias):
        z = np.einsum(f"{first},{second}->{out}", x, y)
        return np.maximum(z + bias, 1) if after else z
    report = flowc.verify(flowc.jit(fn, dynamic=data.draw(st.booleans())), x, y, bias)
    assert report, report


@pytest.mark.parametrize(("text", "first", "second"), [
    ("bct,oc->bot", (3, 20, 70), (24, 20)), ("btc,oc->bot", (3, 70, 20), (24, 20)),
    ("oc,bct->bot", (24, 20), (3, 20, 70)), ("bhst,bthd->bshd", (2, 3, 9, 11), (2, 11, 3, 8)),
    ("bhst,bhtd->sbhd", (2, 3, 9, 11), (2, 3, 11, 8)), ("bsm,mhd->bhsd", (2, 9, 30), (30, 3, 64))])
def test_nothing_is_turned_in_memory(text, first, second):
    x, y = operand(0, first), operand(1, second)
    assert kernels(lambda x, y: np.maximum(np.einsum(text, x, y), 0), x, y) == 1
    assert flowc.verify(flowc.jit(lambda x, y: np.maximum(np.einsum(text, x, y), 0)), x, y)


@pytest.mark.parametrize(("text", "first", "second"), [
    ("bct,oc->bot", (300, 20, 7), (24, 20)),       # few columns
    ("bsm,mhd->bhsd", (2, 9, 300), (300, 3, 64))])  # long sums: the rows are not read again for every head
def test_what_is_not_worth_it_is_turned_afterwards(text, first, second):
    x, y = operand(0, first), operand(1, second)
    plan = flowc.jit(lambda x, y: np.einsum(text, x, y)).lower(x, y).as_text("plan")
    assert "its columns would be few" in plan
    assert flowc.verify(flowc.jit(lambda x, y: np.einsum(text, x, y)), x, y)


def test_a_stack_times_a_matrix():
    w, x = operand(0, (20, 30)), operand(1, (4, 30, 90))
    assert kernels(lambda w, x: w @ x, w, x) == 1
    np.testing.assert_allclose(flowc.jit(lambda w, x: w @ x)(w, x), w @ x, rtol=1e-4, atol=1e-4)


def test_products_that_are_added_up_write_their_results_turned():
    def taps(x, k):
        p = np.pad(x, ((0, 0), (0, 0), (1, 1)))
        return sum(np.einsum("bct,oc->bot", p[:, :, i:i + 90], k[:, :, i]) for i in range(3))
    x, k = operand(0, (2, 16, 90)), operand(1, (24, 16, 3))
    plan = flowc.jit(taps).lower(x, k).as_text("plan")
    assert plan.count("dot transpose") == 3 and "map" not in plan
    assert flowc.verify(flowc.jit(taps), x, k)


def test_a_result_that_is_also_wanted_as_it_is_is_computed_once():
    def both(x, w):
        z = np.einsum("bct,oc->bto", x, w)
        return z, np.swapaxes(z, 1, 2) + 1
    x, w = operand(0, (3, 20, 70)), operand(1, (24, 20))
    assert flowc.jit(both).lower(x, w).as_text("plan").count("contraction: dot") == 1
    assert flowc.verify(flowc.jit(both), x, w)


def test_heads_of_attention_are_put_side_by_side_on_the_way():
    def attention(q, k, v):
        s = np.einsum("bshd,bthd->bhst", q, k)
        e = np.exp(s - np.max(s, axis=-1, keepdims=True))
        return np.einsum("bhst,bthd->bshd", e / np.sum(e, axis=-1, keepdims=True), v)
    q, k, v = (operand(i, (2, 50, 3, 16)) for i in range(3))
    plan = flowc.jit(attention).lower(q, k, v).as_text("plan")
    assert "row blocks" in plan and "map" not in plan
    assert flowc.verify(flowc.jit(attention), q, k, v)
    other = operand(5, (3, 50, 3, 16))  # as many images as heads: they are not taken for each other

    def exchanged(q, k, v):
        s = np.einsum("bshd,bthd->bhst", q, k)
        e = np.exp(s - np.max(s, axis=-1, keepdims=True))
        return np.einsum("bhst,bthd->hbsd", e / np.sum(e, axis=-1, keepdims=True), v)
    assert flowc.verify(flowc.jit(exchanged), other, other[::-1].copy(), other + 1)


def test_the_gpu_writes_turned_results_too():
    w, x = operand(0, (20, 30)), operand(1, (4, 30, 90))
    with flowc.options(gpu="sim"):
        exe = flowc.jit(lambda w, x: np.maximum(w @ x, 0), device="cuda").lower(w, x).compile()
        assert len(exe.compiled.program.kernels) == 1
        np.testing.assert_allclose(exe(w, x), np.maximum(w @ x, 0), rtol=1e-4, atol=1e-4)
