"""Indexing, in-place writes, views and masks of traced values: as NumPy's own."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import tracing
from hypothesis import given
from hypothesis import strategies as st
from tracing import check, record, run, run_graph, same

import flowc.numpy as fnp
from flowc.diag import FlowcError
from flowc.size import SizeUnknownError
from flowc.trace import current_trace

A = np.arange(24.0).reshape(2, 3, 4)
SEEDS = st.integers(0, 2 ** 32 - 1)


# ---- indexing -------------------------------------------------------------------------------------------------------

def random_index(rnd: random.Random, shape: tuple[int, ...]) -> tuple:
    """Integers, slices, None, one ellipsis, integer arrays, boolean vectors, True."""
    items: list = []
    axis = 0
    common = rnd.choice([(2,), (3,), (2, 3), (1,), ()])
    while axis < len(shape):
        n, kind = shape[axis], rnd.random()
        if kind < 0.12:
            items.append(None)
            continue
        if kind < 0.18:
            break
        if kind < 0.24 and not any(k is Ellipsis for k in items):
            items.append(Ellipsis)
            axis += rnd.randint(0, len(shape) - axis)
            continue
        if kind < 0.5 or n == 0:
            lo, hi = [rnd.choice([None, rnd.randint(-n - 1, n + 1)]) for _ in range(2)]
            items.append(slice(lo, hi, rnd.choice([None, 1, 2, 3, -1, -2])))
        elif kind < 0.7:
            items.append(rnd.randint(-n, n - 1))
        elif kind < 0.92:
            values = [rnd.randint(-n, n - 1) for _ in range(int(np.prod(common)))]
            items.append(np.array(values, rnd.choice([np.int64, np.int32])).reshape(common))
        elif kind < 0.96:
            items.append(np.array([rnd.random() < 0.5 for _ in range(n)]))
        else:
            items.append(True)
            continue
        axis += 1
    return tuple(items)


OUTCOMES: Counter[str] = Counter()


@given(SEEDS)
def test_random_indices(seed):
    """Read, write a number, write an array, ``+=``; index arrays traced or constant; sizes known or symbolic."""
    rnd = random.Random(seed)
    shape = tuple(rnd.choice([0, 1, 2, 3, 4, 5]) for _ in range(rnd.randint(0, 4)))
    x = np.arange(float(np.prod(shape))).reshape(shape)
    index = random_index(rnd, shape)
    try:
        want = x[index]
    except IndexError:
        return
    dynamic = rnd.random() < 0.5
    traced = [i for i, k in enumerate(index) if isinstance(k, np.ndarray) and k.dtype != bool and rnd.random() < 0.5]

    def key(arrays):
        full = list(index)
        for i, a in zip(traced, arrays):
            full[i] = a
        return tuple(full)

    def get(x, *arrays):
        return x[key(arrays)] + 0

    def put(x, v, *arrays):
        x = x.copy()
        x[key(arrays)] = v
        return x

    def add(x, *arrays):
        x = x.copy()
        x[key(arrays)] += 5
        return x

    arrays = [index[i] for i in traced]
    for fn, args in ((get, (x, *arrays)), (put, (x, 7.0, *arrays)), (put, (x, np.random.rand(*want.shape), *arrays)),
                     (add, (x, *arrays))):
        try:
            check(fn, *args, dynamic=dynamic)
            OUTCOMES["same"] += 1
        except FlowcError as e:
            assert dynamic and e.code in ("T003", "T009", "T010"), (shape, index, e)
            OUTCOMES["refused"] += 1
        except tracing.OutOfRange:
            assert dynamic
            OUTCOMES["out of range"] += 1


def test_random_indices_rarely_refuse():
    assert not OUTCOMES or OUTCOMES["same"] > 4 * OUTCOMES["refused"]


@pytest.mark.parametrize("fn", [
    lambda x: x[0], lambda x: x[-1, ..., 2], lambda x: x[:, 1:-1], lambda x: x[::-1, ::2], lambda x: x[..., None, 1:],
    lambda x: x[:, [0, 2], [1, 1]], lambda x: x[0, :, [1, 3]], lambda x: x[np.array([[0], [1]]), [1, 2]],
    lambda x: x[:, None, [0, 0, 1]], lambda x: x[[True, False]], lambda x: x[:, np.array([True, False, True]), 1],
    lambda x: x[x.shape[0] - 1], lambda x: x[:, :x.shape[0]], lambda x: x[np.int64(1)], lambda x: x[()],
    lambda x: x[..., -3:], lambda x: x[..., :100], lambda x: x[..., 3:0:-1], lambda x: x[True], lambda x: x[1][2][3],
])
def test_indices(fn):
    check(lambda x: fn(x) + 0, A, dynamic=False)
    try:
        check(lambda x: fn(x) + 0, A, dynamic=True)
    except SizeUnknownError as e:  # a constant mask fits one size only
        assert "mask" in e.text


def test_zero_length_ellipsis_separates_arrays():
    check(lambda x: x[:, [0, 1], ..., [0, 1]], A, dynamic=False)


def test_traced_scalar_index_reads_and_writes():
    def fn(x, i):
        x = x.copy()
        row = x[i]
        row[1] = 9
        x[i, 0, 2] += 3
        return x, row + 0, x[:, i]
    for i in (0, 1, -1):
        check(fn, A, np.int64(i))
        same(run(lambda x, i: x[i], A, i), A[i])


def test_index_out_of_range_is_clamped_when_traced():
    assert run(lambda x, i: x[i], np.arange(3.0), np.int64(7)) == 2.0


def test_stencil_sizes_are_simple():
    traced = record(lambda x: x[2:] - 2 * x[1:-1] + x[:-2], np.arange(9.0), dynamic=True)
    assert str(traced.graph.outputs[0].type) == "f64[n9 - 2]"
    assert traced.graph.ranges == {"n9": (2, None)}
    check(lambda x: x[2:] - 2 * x[1:-1] + x[:-2], np.arange(9.0))


# ---- in-place writes and views --------------------------------------------------------------------------------------

def test_writes_do_not_reach_the_argument():
    x = np.zeros(3)
    traced = record(lambda x: _set(x, 0, 1), x)
    assert traced.mutated == (0,)
    assert record(lambda x: _set(x.copy(), 0, 1), x).mutated == ()
    same(traced.assemble(run_graph(traced.graph, [x])), np.array([1.0, 0, 0]))
    assert not x.any()


def _set(x, key, value):
    x[key] = value
    return x


def view_program(seed: int, layout: int):
    """Views of views and writes in random order; returns all of them."""
    def fn(x):
        rnd = random.Random(seed)
        views = [[x, x.copy(), x + 0][layout]]
        for _ in range(rnd.randint(2, 9)):
            base, kind = rnd.choice(views), rnd.randint(0, 11)
            rank = np.ndim(base)
            if kind <= 4 and rank:
                key = []
                for n in base.shape:
                    r = rnd.random()
                    key.append(slice(None) if r < 0.5 else
                               slice(rnd.randint(0, n), None, rnd.choice([1, -1, 2])) if r < 0.75 else
                               rnd.randrange(n) if n and rank > 1 else slice(1, None))
                if not all(isinstance(k, int) for k in key):
                    views.append(base[tuple(key)])
            else:
                views.append([base, base.T, base.reshape(-1), np.flip(base, 0) if rank else base,
                              np.expand_dims(base, 0), base + 1, np.swapaxes(base, 0, -1) if rank else base,
                              base[..., None]][kind % 8])
            if kind >= 7 or rnd.random() < 0.6:
                target, how = rnd.choice(views), rnd.randint(0, 3)
                if how == 0:
                    target[...] = rnd.randint(0, 99)
                elif np.ndim(target) and target.shape[0]:
                    if how == 1:
                        target += rnd.randint(1, 9)
                    elif how == 2:
                        target[0] = rnd.choice(views).sum()
                    else:
                        target[-1] *= 2
        return [v + 0 for v in views]
    return fn


ALIASES: Counter[str] = Counter()


@given(SEEDS, st.integers(0, 2))
def test_random_views(seed, layout):
    """Equal to NumPy, or refused where NumPy's own answer depends on the memory layout; never silently different."""
    rnd = random.Random(seed)
    shape = tuple(rnd.choices([1, 2, 3, 4], k=rnd.randint(1, 3)))
    x = np.arange(float(np.prod(shape))).reshape(shape)
    x = np.asfortranarray(x) if seed % 3 == 0 else x
    try:
        check(view_program(seed, layout), x, dynamic=False)
        ALIASES["same"] += 1
    except FlowcError as e:
        assert e.code == "T007", e
        ALIASES["refused"] += 1


def test_random_views_rarely_refuse():
    assert not ALIASES or ALIASES["same"] > 2 * ALIASES["refused"]


@pytest.mark.parametrize("layout", [0, 1])
def test_write_through_views(layout):
    def fn(x):
        x = x if layout else x.copy()
        row, column, late = x[0], x[:, 1], x[1:]
        row[:] = 1
        column += 10
        late[0, 0] = column[0]
        x *= 2
        deep = x[::-1].T[1:, None]
        deep[0, 0] = -1
        return x, row + 0, column + 0, late + 0, deep + 0
    check(fn, np.arange(12.0).reshape(3, 4))


def test_reshape_of_fresh_arrays_is_a_view():
    def fn(x):
        a = fnp.zeros((3, 3)) if current_trace() else np.zeros((3, 3))
        a.reshape(-1)[::4] = x
        a.ravel()[1] = 5
        return a
    check(fn, np.float64(2))


def test_reshape_then_write_without_reading_the_base():
    def fn(x):
        x = x.reshape(-1, 2)
        x[:, 0] = 7
        return x
    check(fn, np.arange(6.0), dynamic=False)


def test_scalars_are_no_views():
    def fn(x):
        s = x[0, 0]
        s += 5
        t = x.sum()
        u = t
        t += 1
        zero = x[0, 0, ...]
        zero += 1
        return x, s, t, u
    check(fn, np.arange(4.0).reshape(2, 2))


def test_inplace_operators_convert_back():
    def fn(x, y):
        x = x.copy()
        x += y
        x *= 2
        x //= np.float64(3)
        return x
    check(fn, np.arange(4, dtype=np.float32), np.arange(4.0))


def test_out_and_where_arguments():
    def fn(x, y):
        out = np.zeros_like(x)
        np.divide(x, y, out=out, where=y != 0)
        np.add(out, 1, out=out[1:2] if False else out)
        s = np.zeros_like(x)
        np.sum(x[None], axis=0, out=s)
        return out, s
    check(fn, np.array([1.0, 2, 3]), np.array([0.0, 4, 5]))


def test_augmented_fancy_index_counts_once_and_add_at_counts_all():
    def fn(x, i):
        a, b, c = x.copy(), x.copy(), x.copy()
        a[i] += 1
        np.add.at(b, i, 1.0)
        np.subtract.at(c, (i,), i * 0.5)
        return a, b, c
    check(fn, np.zeros(3), np.array([0, 2, 2, -1]))


# ---- masks ----------------------------------------------------------------------------------------------------------

def test_traced_masks_write():
    def fn(x, y):
        a, b, c, d = x.copy(), x.copy(), x.copy(), x.copy()
        a[a < 0] = 0
        b[b > 0] *= 2
        mask = y > 0
        c[mask] = np.sqrt(y[mask]) + 1
        d[:, d[0] > 0] = -5
        d[d[:, 0] > 0] += 1
        return a, b, c, d
    rng = np.random.default_rng(0)
    check(fn, rng.normal(size=(3, 4)), rng.normal(size=(3, 4)))


def test_masks_must_have_the_size_of_their_axis():
    mask = np.array([True, False])
    with pytest.raises(IndexError):
        np.zeros(3)[mask]
    with pytest.raises(FlowcError, match="T008"):
        run(lambda x: x[mask], np.zeros(3))
    with pytest.raises(SizeUnknownError):
        run(lambda x: x[mask], np.zeros(3), dynamic=True)


def test_size_arithmetic_stays_symbolic():
    def fn(x):
        n = x.shape[0]
        assert divmod(n, 2) == (n // 2, n % 2) and 0 - (-n) == n and +n == n and n ** 2 == n * n and 3 + n - 3 == n
        return (2 ** n) * x
    check(lambda x: (2 ** x.shape[0]) * x, np.ones(3))
    record(fn, np.ones(3), dynamic=True)


def test_values_without_place_in_the_dtype():
    for value in (np.nan, 1j, 2 ** 40):
        with pytest.raises(FlowcError, match="T004"):
            run(lambda x, v=value: _set(x, 0, v), np.zeros(2, np.int32))
    check(lambda x: _set(x.copy(), 0, 2.7), np.zeros(2, np.int32))


def test_traced_mask_rows():
    def fn(x, m):
        x = x.copy()
        x[m] = x[0]
        x[..., m[:2]] = 1
        return x
    check(fn, np.arange(6.0).reshape(3, 2), np.array([True, False, True]), dynamic=False)


def test_static_masks_select():
    mask = np.array([True, False, True])
    check(lambda x: x[:, mask] * 2, A, dynamic=False)
    check(lambda x: _set(x.copy(), (slice(None), mask), np.arange(4.0)), A, dynamic=False)
    check(lambda x: _set(x.copy(), mask, 7), np.arange(6.0).reshape(3, 2), dynamic=False)
    check(lambda x: _set(x.copy(), mask, x[0, 0]), np.arange(6.0).reshape(3, 2), dynamic=False)
    assert record(lambda x: _set(x, mask, 7), np.zeros(3)).graph.outputs[0].op.name == "select"
