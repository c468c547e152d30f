"""Forms of contractions: packed, direct, thin, row blocks.  Whatever the form, a result is one chain of additions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
from flowc import nn

DTYPES = st.sampled_from(["float32", "float64", "float16", "int32", "uint8"])
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 24, 33, 47, 48, 49, 64, 97, 130])


def operand(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.standard_normal(shape) * 3).astype(dtype) if dtype[0] == "f" else r.integers(0, 9, shape).astype(dtype)


def form_of(fn, *args) -> str:
    return flowc.jit(fn).lower(*args).as_text("plan")


@settings(max_examples=50)
@given(m=SIZES, k=SIZES, n=SIZES, batch=st.sampled_from([(), (1,), (3,), (2, 2)]), dtype=DTYPES,
       turned=st.tuples(st.booleans(), st.booleans()), after=st.sampled_from([None, "light", "heavy"]),
       dynamic=st.booleans())
def test_products_of_every_shape(m, k, n, batch, dtype, turned, after, dynamic):
    a = operand(1, (*batch, *((k, m) if turned[0] else (m, k))), dtype)
    b = operand(2, (*batch, *((n, k) if turned[1] else (k, n))), dtype)

    def fn(x, y):
        x = np.swapaxes(x, -1, -2) if turned[0] else x
        y = np.swapaxes(y, -1, -2) if turned[1] else y
        z = x @ y
        return z if after is None else z + z if after == "light" else np.tanh(z * 0.1)
    report = flowc.verify(flowc.jit(fn, dynamic=dynamic), a, b)
    assert report, report


@pytest.mark.parametrize(("m", "k", "n", "form"), [
    (1, 784, 512, "thin"), (4, 100, 300, "thin"), (100, 784, 10, "direct"), (128, 128, 128, "direct"),
    (9, 4096, 64, "direct"), (512, 600, 512, "packed")])
def test_forms_are_chosen_by_size(m, k, n, form):
    a, b = operand(1, (m, k), "float32"), operand(2, (k, n), "float32")
    assert f"contraction: {form}" in form_of(lambda x, y: x @ y, a, b)


@pytest.mark.parametrize("shape", [(1, 300, 200), (3, 200, 150), (40, 64, 40), (20, 1100, 130), (130, 300, 700)])
def test_the_form_changes_no_bit(shape):
    """The same product as a part of a larger one, in another form."""
    m, k, n = shape
    a, b = operand(1, (m, k), "float32"), operand(2, (k, n), "float32")
    alone = flowc.jit(lambda x, y: x @ y)(a, b)
    larger = flowc.jit(lambda x, y: x @ y)(np.concatenate([a, operand(3, (301, k), "float32")]), b)
    anywhere = flowc.jit(lambda x, y: x @ y, dynamic=True)(a, b)
    assert np.array_equal(alone, larger[:m]) and np.array_equal(alone, anywhere)


@pytest.mark.parametrize(("turned", "after"), [((False, False), "light"), ((True, False), "heavy"),
                                               ((False, True), "light"), ((True, True), "heavy")])
@pytest.mark.parametrize("m", [70, 100])
def test_few_rows_copy_a_large_operand_on_the_way(m, turned, after):
    k, n = 701, 390
    a = operand(1, (k, m) if turned[0] else (m, k), "float32")
    b = operand(2, (n, k) if turned[1] else (k, n), "float32")

    def fn(x, y):
        z = (x.T if turned[0] else x) @ (y.T if turned[1] else y)
        return z + z if after == "light" else np.tanh(z * 0.1)
    assert "columns copied on the way" in form_of(fn, a, b)
    report = flowc.verify(fn, a, b)
    assert report, report


ANY_SIZE = {batch: flowc.jit(lambda x, y: np.maximum(x @ y, 0.5), dynamic=True) for batch in (False, True)}


@settings(max_examples=20)
@given(m=st.sampled_from([1, 2, 4, 5, 16, 17, 40, 97, 200]), k=st.sampled_from([0, 1, 7, 8, 130, 1101]),
       n=st.sampled_from([2, 10, 16, 65, 130, 257, 1000]), batch=st.sampled_from([None, 2, 3]))
def test_unknown_sizes_take_the_form_that_fits_and_give_the_same_bits(m, k, n, batch):
    lead = () if batch is None else (batch,)
    a, b = operand(1, (*lead, m, k), "float32"), operand(2, (*lead, k, n), "float32")
    fn = ANY_SIZE[batch is not None]
    got = []
    for threads in (1, 2):
        with flowc.options(num_threads=threads):
            got.append(fn(a, b))
    padded = np.concatenate([a, operand(3, (*lead, 301, k), "float32")], axis=-2)  # never thin, one row or small
    whole = flowc.jit(lambda x, y: np.maximum(x @ y, 0.5))(padded, b)[..., :m, :]
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], whole)


def test_unknown_sizes_have_one_kernel_with_all_forms():
    low = flowc.jit(lambda x, y: x @ y).lower(flowc.spec("f32[m, k]"), flowc.spec("f32[k, n]"))
    plan = low.as_text("plan")
    assert all(f"contraction: {form}" in plan for form in ("thin", "direct", "packed")) and "s0.2" not in plan, plan
    known = flowc.jit(lambda x, y: x @ y).lower(flowc.spec("f32[m, 64]"), flowc.spec("f32[64, 10]")).as_text("plan")
    assert "contraction: direct" in known and "packed" not in known and "thin" not in known, known


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_stream_a_long_operand_with_any_producer(rows):
    a, b, c = operand(1, (rows, 200), "float32"), operand(2, (200, 1500), "float32"), operand(3, (200,), "float32")
    report = flowc.verify(lambda x, y, z: np.maximum(np.exp(x * 0.1) + z, 1) @ y, a, b, c)
    assert report, report


def test_work_after_a_product_is_not_repeated_by_the_next():
    def mlp(x, v, w):
        return np.maximum(x @ v, 0) @ w
    x, v, w = (operand(i, s, "float32") for i, s in enumerate([(64, 100), (100, 600), (600, 300)]))
    plan = form_of(mlp, x, v, w)
    assert "contraction: dot broadcast max" in plan or "contraction: broadcast dot max" in plan, plan
    assert flowc.verify(mlp, x, v, w)


# ---- row blocks -----------------------------------------------------------------------------------------------------

@settings(max_examples=15)
@given(rows=st.integers(1, 130), columns=st.integers(2, 70), depth=st.integers(1, 20), dynamic=st.booleans(),
       dtype=st.sampled_from(["float32", "float64"]))
def test_rows_of_a_block(rows, columns, depth, dynamic, dtype):
    """Blocks of any number of rows, the last of which has fewer."""
    r = np.random.default_rng(rows)
    x, c = r.standard_normal((rows, depth)).astype(dtype), r.standard_normal((columns, depth)).astype(dtype)

    def nearest(x, c):
        d = np.sum(c * c, axis=1) - 2 * (x @ c.T)
        return np.argmin(d, axis=1), np.min(d, axis=1), d - np.min(d, axis=1, keepdims=True)
    report = flowc.verify(flowc.jit(nearest, dynamic=dynamic), x, c)
    assert report, report


@settings(max_examples=15)
@given(lead=st.sampled_from([(), (2,), (2, 3)]), rows=st.integers(1, 70), columns=st.integers(2, 90),
       depth=st.integers(1, 20), out=st.integers(1, 70), dtype=st.sampled_from(["float32", "float64"]),
       causal=st.booleans(), dynamic=st.booleans())
def test_attention(lead, rows, columns, depth, out, dtype, causal, dynamic):
    q, k = operand(1, (*lead, rows, depth), dtype), operand(2, (*lead, columns, depth), dtype)
    v = operand(3, (*lead, columns, out), dtype)

    def fn(q, k, v):
        return nn.attention(q, k, v, causal=causal)
    report = flowc.verify(flowc.jit(fn, dynamic=dynamic), q, k, v)
    assert report, report


def test_attention_keeps_its_scores_in_the_cache():
    q = operand(1, (2, 8, 128, 64), "float32")
    lowered = flowc.jit(nn.attention).lower(q, q, q)
    assert "row blocks of" in lowered.as_text("plan")
    with flowc.options(num_threads=1):
        one = flowc.jit(nn.attention)(q, q, q)
    with flowc.options(num_threads=2):
        two = flowc.jit(nn.attention)(q, q, q)
    assert np.array_equal(one, two)


def test_scores_that_are_wanted_elsewhere_are_written():
    q = operand(1, (3, 40, 16), "float32")

    def fn(q):
        s = q @ np.swapaxes(q, -1, -2)
        return nn.softmax(s) @ q, s
    assert "row blocks" not in form_of(fn, q)
    assert flowc.verify(fn, q)


@settings(max_examples=25)
@given(rows=st.integers(1, 130), columns=st.integers(2, 80), depth=st.integers(1, 20), dynamic=st.booleans())
def test_rows_of_a_product_are_reduced_where_they_are_made(rows, columns, depth, dynamic):
    """Nearest centres: the matrix of distances is never written."""
    x, c = operand(1, (rows, depth), "float32"), operand(2, (columns, depth), "float32")

    def fn(x, c):
        d = np.sum(x * x, axis=1)[:, None] - 2.0 * (x @ c.T) + np.sum(c * c, axis=1)
        return np.argmin(d, axis=1), np.min(d, axis=1)
    report = flowc.verify(flowc.jit(fn, dynamic=dynamic), x, c)
    assert report, report


def test_products_that_are_reduced_by_rows_are_not_written():
    x, c = operand(1, (500, 64), "float32"), operand(2, (256, 64), "float32")
    plan = form_of(lambda x, c: np.argmin(x @ c.T + 1, axis=1), x, c)
    assert "row blocks of" in plan and "f32[500, 256]" not in plan.split("wave 0")[0], plan
