"""What tracing says when it cannot go on: the user's line, the operands, the reason, the cure.

Each case is compared with its golden text in tests/golden/errors; ``--bless`` writes them anew.
"""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest
from tracing import record

import flowc.numpy as fnp
from flowc import nn
from flowc.diag import FlowcError, FlowcIndexError, UnsupportedError
from flowc.dims import sym
from flowc.trace import Leaf, trace
from flowc.tree import flatten
from flowc.types import Type, f32, i32

n, m = sym("n"), sym("m")
H, W, BIAS = Type(f32, (n, 784)), Type(f32, (784, 10)), Type(f32, (m,))
X, Y, K = Type(f32, (3, 4)), Type(f32, (4,)), Type(i32, (3,))
KEPT: list = []


def traced(fn, **types):
    leaves = [Leaf(t, False, name) for name, t in types.items()]
    _, tree = flatten(((), dict.fromkeys(types, 0)))
    order = sorted(types)
    return trace(fn, [leaves[list(types).index(k)] for k in order], tree)


# ---- the cases: name -> (function, argument types); the comments in the lines are part of the texts ------------------

def truth(x):
    if x.sum() > 0:
        return x
    return -x


def truth_of_and(x, y):
    return x if (x > 0).all() and (y > 0).all() else y


def add_symbols(h, w, bias):
    return h @ w + bias


def add_sizes(x, y):
    return x + y[:3]


def add_unknown(h, x):
    return h[:, :4] * x


def matmul_sizes(x, w):
    return x @ w


def add_text(x):
    return x + "1"


def subtract_booleans(x):
    return (x > 0) - (x > 1)


def inplace_integer(k):
    k /= 2
    return k


def shift_float(x):
    return x << 1


def big_number(k):
    return k + 3_000_000_000


def math_function(x):
    return math.sqrt(x[0, 0])


def index_list(k):
    return [1, 2, 3][k[0]]


def store_into_numpy(x):
    out = np.zeros(4)
    out[0] = x[0, 0]
    return out


def add_into_numpy(x):
    total = np.zeros(4)
    total += x[0]
    return total


def make_array(x):
    return np.array([x[0, 0], x[1, 1]])


def unsupported_function(x):
    return np.linalg.svd(x)


def unsupported_name(x):
    return np.unwrap(x)


def depends_on_data(x):
    return np.nonzero(x)


def select_by_mask(x):
    return x[x > 0].sum()


def write_by_mask(x, y):
    x[x > 0] = y
    return x


def index_outside(x):
    return x[5]


def too_many_indices(x):
    return x[0, 0, 0]


def float_index(x):
    return x[1.5]


def axis_outside(x):
    return x.sum(axis=2)


def reshape_sizes(x):
    return x.reshape(5, -1)


def reshape_symbols(h):
    return h.reshape(10, -1)


def size_comparison(h):
    return h if h.shape[0] > 100 else -h


def size_as_number(h):
    return [h[i] for i in range(h.shape[0])]


def iterate(h):
    return [row * 2 for row in h]


def length(h):
    return len(h)


def write_read_only(x):
    np.broadcast_to(x, (2, 3, 4))[0] = 1
    return x


def write_reshaped(x):
    flat = (x.T + 1).reshape(-1)
    x = x.T.reshape(-1)
    base = fnp.transpose(x.reshape(3, 4))
    view = base.reshape(-1)
    view[0] = 1
    return flat, base


def return_object(x):
    return object()


def slice_with_traced(x, k):
    return x[k[0]:]


def pickled(x):
    return pickle.dumps(x)


def concatenate_ranks(x, y):
    return np.concatenate([x, y])


def stack_shapes(x, y):
    return np.stack([x, y])


def einsum_sizes(x, y):
    return np.einsum("ij,ik->jk", x, y[[0, 1], None])


def empty_max(x):
    return x[:0].max()


def arange_traced(k):
    return fnp.arange(k[0])


def negative_power(k):
    return k ** -1


def bincount(k):
    return np.bincount(k)


def conv_ranks(x, y):
    return nn.conv(x[None], y)


def attribute(x):
    return x.strides


CASES = {
    "truth": (truth, {"x": X}), "truth_of_and": (truth_of_and, {"x": X, "y": Y}),
    "add_symbols": (add_symbols, {"h": H, "w": W, "bias": BIAS}), "add_sizes": (add_sizes, {"x": X, "y": Y}),
    "add_unknown": (add_unknown, {"h": H, "x": X}), "matmul_sizes": (matmul_sizes, {"x": X, "w": W}),
    "add_text": (add_text, {"x": X}), "subtract_booleans": (subtract_booleans, {"x": X}),
    "inplace_integer": (inplace_integer, {"k": K}), "shift_float": (shift_float, {"x": X}),
    "big_number": (big_number, {"k": K}), "math_function": (math_function, {"x": X}), "index_list": (index_list,
    {"k": K}),
    "add_into_numpy": (add_into_numpy, {"x": X}),
    "make_array": (make_array, {"x": X}), "unsupported_function": (unsupported_function, {"x": X}),
    "unsupported_name": (unsupported_name, {"x": X}), "depends_on_data": (depends_on_data, {"x": X}),
    "select_by_mask": (select_by_mask, {"x": X}), "write_by_mask": (write_by_mask, {"x": X, "y": Y}),
    "index_outside": (index_outside, {"x": X}), "too_many_indices": (too_many_indices, {"x": X}),
    "float_index": (float_index, {"x": X}), "axis_outside": (axis_outside, {"x": X}),
    "reshape_sizes": (reshape_sizes, {"x": X}), "reshape_symbols": (reshape_symbols, {"h": H}),
    "size_comparison": (size_comparison, {"h": H}), "size_as_number": (size_as_number, {"h": H}),
    "iterate": (iterate, {"h": H}), "length": (length, {"h": H}), "write_read_only": (write_read_only, {"x": X}),
    "write_reshaped": (write_reshaped, {"x": X}), "return_object": (return_object, {"x": X}),
    "slice_with_traced": (slice_with_traced, {"x": X, "k": K}), "pickled": (pickled, {"x": X}),
    "concatenate_ranks": (concatenate_ranks, {"x": X, "y": Y}), "stack_shapes": (stack_shapes, {"x": X, "y": Y}),
    "einsum_sizes": (einsum_sizes, {"x": X, "y": Y}), "empty_max": (empty_max, {"x": X}),
    "arange_traced": (arange_traced, {"k": K}), "negative_power": (negative_power, {"k": K}),
    "bincount": (bincount, {"k": K}), "conv_ranks": (conv_ranks, {"x": X, "y": Y}), "attribute": (attribute, {"x": X}),
}


def without_lines(text: str) -> str:
    """Line numbers of this file are left out of the golden texts."""
    return re.sub(r"(test_errors\.py):\d+", r"\1", text)


@pytest.mark.parametrize("name", CASES)
def test_golden(name, golden):
    fn, types = CASES[name]
    with pytest.raises(FlowcError) as e:
        traced(fn, **types)
    text = str(e.value)
    assert text.splitlines()[-1].strip().startswith("cure: ")
    assert e.value.code in text
    golden(f"errors/{name}.txt", without_lines(text))
    line = fn.__code__.co_firstlineno
    assert e.value.loc is not None and (name == "write_reshaped" or line <= e.value.loc.line < line + 8)


def test_element_of_a_numpy_array():
    """NumPy raises its own ValueError here; the reason and the cure are its cause."""
    with pytest.raises(ValueError) as e:
        traced(store_into_numpy, x=X)
    assert e.value.__cause__.code == "T002" and "flowc.numpy.zeros" in e.value.__cause__.cure


# ---- errors outside of the function ---------------------------------------------------------------------------------

def test_leak_after_the_trace(golden):
    traced(lambda x: KEPT.append(x * 2), x=X)
    with pytest.raises(FlowcError) as e:
        KEPT.pop() + 1
    golden("errors/leak_after.txt", without_lines(str(e.value)))


def test_leak_into_another_trace(golden):
    traced(lambda x: KEPT.append(x), x=X)
    y = KEPT.pop()
    with pytest.raises(FlowcError) as e:
        traced(lambda x: np.maximum(x, y), x=X)
    golden("errors/leak_other.txt", without_lines(str(e.value)))


def test_leaked_tensors_stay_harmless():
    traced(lambda x: KEPT.append(x), x=X)
    y = KEPT.pop()
    assert "Tensor(f32[3, 4])" in repr(y) and y.shape == (3, 4) and f"{y:.2f}" == repr(y)
    for use in (lambda: y[0], lambda: np.sum(y), lambda: y.sum(), lambda: fnp.exp(y), lambda: np.stack([y, y]),
                lambda: y.T, lambda: copy.deepcopy(y), lambda: y.reshape(-1)):
        with pytest.raises(FlowcError, match="T005"):
            use()
    with pytest.raises(FlowcError, match="T005"):
        y[0] = 1
    with pytest.raises(FlowcError, match="T005"):
        y += 1


def test_inner_function_may_not_write_outer_values(golden):
    def outer(x):
        y = x + 1

        def inner(w):
            y[0] = w[0]
            return w
        traced(inner, w=X)
        return y
    with pytest.raises(FlowcError) as e:
        traced(outer, x=X)
    golden("errors/inner_write.txt", without_lines(str(e.value)))


def test_a_failed_trace_leaves_nothing_behind():
    from flowc.trace import current_trace
    with pytest.raises(ZeroDivisionError):
        traced(lambda x: 1 // 0, x=X)
    assert current_trace() is None


def test_kinds_of_errors():
    for name, kind in (("index_outside", FlowcIndexError), ("unsupported_function", UnsupportedError),
                       ("truth", TypeError), ("empty_max", ValueError), ("index_outside", IndexError)):
        with pytest.raises(kind):
            traced(CASES[name][0], **CASES[name][1])


def test_attributes_behave_for_hasattr():
    def fn(x):
        assert not hasattr(x, "strides") and not hasattr(x, "nothing") and hasattr(x, "sum")
        with pytest.raises(AttributeError):
            x.nothing
        return x
    traced(fn, x=X)


def test_item_and_tolist():
    for use in (lambda x: x.item(), lambda x: x.tolist(), lambda x: int(x[0, 0]), lambda x: float(x[0, 0]),
                lambda x: complex(x[0, 0]), lambda x: 3 in x, lambda x: not x, lambda x: np.asarray(x),
                lambda x: memoryview(x) if False else x.__dlpack__()):
        with pytest.raises(FlowcError) as e:
            traced(use, x=X)
        assert e.value.code in ("T002", "T005") and e.value.loc is not None and e.value.cure


def test_every_error_of_bad_arguments_has_a_cure():
    bad = [lambda x: np.reshape(x, (-1, -1)), lambda x: np.transpose(x, (0, 0)), lambda x: np.sum(x, axis=(0, 0)),
           lambda x: np.squeeze(x, 0), lambda x: np.split(x, 5), lambda x: np.append(x, x[0], 0),
           lambda x: np.einsum("ij,jk", x), lambda x: np.einsum("ijk", x), lambda x: np.take(x, 0, mode="odd"),
           lambda x: np.take(x, 12), lambda x: np.pad(x, -1), lambda x: np.moveaxis(x, (0, 1), 0), lambda x: x[::0],
           lambda x: np.roll(x, 1.5), lambda x: np.repeat(x, [1, 2], 0), lambda x: np.sort(x, axis=7),
           lambda x: np.linalg.norm(x, 3), lambda x: np.average(x, weights=[1, 2]), lambda x: np.searchsorted(x, 1),
           lambda x: np.quantile(x, 0.5, method="odd"), lambda x: np.select([x > 0], [x, x]), lambda x: np.where(x, x),
           lambda x: np.linalg.matrix_power(x[:, :3], -1), lambda x: np.broadcast_to(x, (2, 2)), lambda x: x @ 2,
           lambda x: np.meshgrid(x, indexing="xx"), lambda x: x.astype("U3"), lambda x: x[..., ...], lambda x: x["a"],
           lambda x: np.pad(x, 1, "linear_ramp"), lambda x: np.expand_dims(x, (0, 0)), lambda x: np.diag(x[None]),
           lambda x: np.convolve(x[0], x[0], "odd"), lambda x: np.add.reduceat(x, [0, 1]),
           lambda x: np.add(x, x, where=x > 0),
           lambda x: fnp.zeros(2.5), lambda x: fnp.asarray(x + 1, copy=False, dtype=int),
           lambda x: np.max(x, where=x > 0),
           lambda x: x + np.array(["a"]), lambda x: x + np.ma.masked_array([1.0]), lambda x: x.reshape(2, order="F")]
    for fn in bad:
        with pytest.raises(FlowcError) as e:
            traced(fn, x=X)
        assert e.value.cure and e.value.loc is not None and e.value.loc.file == __file__, str(e.value)


def test_numpy_refuses_and_so_does_tracing():
    """The same calls fail in NumPy: tracing is not stricter on them."""
    for fn in (lambda x: x[5], lambda x: x.sum(2), lambda x: x + np.ones(3), lambda x: x.reshape(5), lambda x: x @ x):
        with pytest.raises((ValueError, IndexError)):
            fn(np.ones((3, 4)))
        with pytest.raises(FlowcError):
            record(fn, np.ones((3, 4)))
