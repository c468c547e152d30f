"""Records: arrays whose innermost axis is a few fields, read and written through whole rows."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp

DTYPES = st.sampled_from(["float32", "float64", "int32", "uint8", "int16", "float16", "bool"])


def records(seed, n, fields, dtype="float32"):
    r = np.random.default_rng(seed)
    return (r.standard_normal((n, fields)) * 3).astype(dtype) if dtype[0] == "f" else r.integers(
        0, 2 if dtype == "bool" else 100, (n, fields)).astype(dtype)


@settings(max_examples=60)
@given(n=st.sampled_from([0, 1, 2, 7, 8, 15, 16, 17, 33, 100, 1000]), fields=st.integers(1, 12), out=st.integers(1, 9),
       dtype=DTYPES, dynamic=st.booleans(), data=st.data())
def test_any_fields(n, fields, out, dtype, dynamic, data):
    """Every field of the result is made from any fields of the operand, joined along the last axis."""
    chosen = [(data.draw(st.integers(0, fields - 1)), data.draw(st.integers(0, fields - 1))) for _ in range(out)]
    step = data.draw(st.sampled_from([1, -1]))

    def fn(x):
        parts = [x[::step, i] | x[:, j] if dtype == "bool" else x[::step, i] * x[:, j] + x[:, i] for i, j in chosen]
        return fnp.stack(parts, axis=-1), parts[0]
    x = records(n, n, fields, dtype)
    report = flowc.verify(flowc.jit(fn, dynamic=dynamic), x)
    assert report, report


@pytest.mark.parametrize("fields", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_joined_fields_are_lanes_over_records(fields, dtype):
    f = flowc.jit(lambda x: fnp.stack([x[:, k] + x[:, fields - 1 - k] for k in range(fields)], axis=1))
    x = records(1, 300, fields, dtype)
    assert np.array_equal(f(x), np.stack([x[:, k] + x[:, fields - 1 - k] for k in range(fields)], axis=1))
    assert "records: fields apart" in f.lower(x).as_text("kernel")


def test_nested_records():
    """Pixels of an image, one kernel; rows of unlike length are not whole records."""
    def swap(x):
        return fnp.stack([x[..., 2], x[..., 1], x[..., 0]], axis=-1)
    f = flowc.jit(swap)
    x = records(1, 40 * 30, 3).reshape(40, 30, 3)
    assert np.array_equal(f(x), x[..., ::-1])
    g = flowc.jit(lambda x: fnp.stack([x[1:-3:7], x[4::7]], axis=1))
    y = records(2, 1, 7 * 50 + 4)[0]
    assert np.array_equal(g(y), np.stack([y[1:-3:7], y[4::7]], axis=1))


def test_fields_of_a_computed_record_are_computed_in_place():
    def overlap(a, b):
        low = fnp.maximum(a[:, None, :2], b[None, :, :2])
        high = fnp.minimum(a[:, None, 2:], b[None, :, 2:])
        size = fnp.maximum(high - low, 0)
        return size[..., 0] * size[..., 1]
    f = flowc.jit(overlap)
    a, b = records(1, 30, 4), records(2, 50, 4)
    assert flowc.verify(f, a, b)
    assert f.lower(a, b).as_text("kernel").count("kernel @") == 1


def test_positions_of_several_gathers_are_computed_once():
    def corners(image, y, x):
        return image[y, x] + image[y + 1, x] + image[y, x + 1] * 2
    f = flowc.jit(corners)
    r = np.random.default_rng(0)
    args = r.standard_normal((20, 20, 3)).astype(np.float32), r.integers(0, 19, (9, 9)), r.integers(0, 19, (9, 9))
    assert flowc.verify(f, *args)
    assert f.lower(*args).as_text("kernel").count("kernel @") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library of Linux to protect a page")
def test_nothing_behind_the_last_record_is_read():
    """Fields are loaded with their neighbours; behind the last record lies a page that must not be touched."""
    size = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * size)
    start = np.frombuffer(pages, np.uint8).ctypes.data
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(start + size), ctypes.c_size_t(size), 0) == 0
    for fields, dtype in [(2, "float32"), (3, "float32"), (5, "float32"), (6, "float32"), (7, "float64"),
                          (9, "float32"), (3, "float64"), (17, "uint8")]:
        n = size // (fields * np.dtype(dtype).itemsize)
        x = np.frombuffer(pages, dtype, n * fields, size - n * fields * np.dtype(dtype).itemsize).reshape(n, fields)
        x[...] = records(fields, n, fields, dtype)
        for k in range(fields):
            f = flowc.jit(lambda x, k=k: x[:, k] * 2 - x[:, 0])
            assert np.array_equal(f(x), x[:, k] * 2 - x[:, 0])


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("fields", [2, 3, 7])
def test_fields_share_values_of_their_record(dropped, fields):
    """Computed once per record, in the kernel of the fields; not where the fields lie along another axis."""
    def fn(x, axis):
        a, b = (x[..., 0], x[..., 1]) if dropped else (x[..., 0:1], x[..., 1:2])
        shared = ((a * b + a) * (b - a) + 2) * (a + 1) - (b * b + 3) * (a + b) * 5
        parts = [shared * k + x[..., k] if dropped else shared * k + x[..., k:k + 1] for k in range(fields)]
        return fnp.stack(parts, axis=axis) if dropped else fnp.concatenate(parts, axis=axis)
    x = records(1, 12 * 30, fields).reshape(12, 30, fields)
    last, first = flowc.jit(lambda x: fn(x, -1)), flowc.jit(lambda x: fn(x, 0))
    for f in (last, first):
        report = flowc.verify(f, x)
        assert report, report
    assert last.lower(x).as_text("kernel").count("kernel @") == 1
    with flowc.options(schedules="map *: width=8 tile=64"):
        assert "64) vector 8 {" in last.lower(x).as_text("kernel")
    assert "records: fields apart" in last.lower(x).as_text("kernel")
