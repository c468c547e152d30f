"""flowc.nn and flowc.random, in and out of a trace."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tracing import check, record, run, same

from flowc import nn
from flowc.diag import FlowcError

RNG = np.random.default_rng(7)
BF16 = np.dtype(ml_dtypes.bfloat16)
A = RNG.normal(size=(3, 4))
B = RNG.normal(size=(4, 5))
P = RNG.uniform(0.1, 0.9, size=(3, 4))


def test_nn_in_and_out_of_a_trace():
    for fn in (nn.softmax, nn.log_softmax, nn.relu, nn.gelu, nn.sigmoid, nn.silu, nn.softplus, nn.logsumexp, nn.elu,
               nn.leaky_relu, nn.layer_norm, nn.rms_norm, nn.standardize):
        same(run(fn, A), np.asarray(fn(A)), rtol=1e-13)
    assert isinstance(nn.softmax(A), np.ndarray)
    np.testing.assert_allclose(nn.softmax(A).sum(-1), 1)
    np.testing.assert_allclose(np.exp(nn.log_softmax(A)), nn.softmax(A))


def test_nn_values_against_scipy():
    special = pytest.importorskip("scipy.special")
    np.testing.assert_allclose(nn.logsumexp(A, axis=0), special.logsumexp(A, axis=0))
    np.testing.assert_allclose(nn.softmax(A, axis=0), special.softmax(A, axis=0))
    np.testing.assert_allclose(nn.sigmoid(A), special.expit(A))
    np.testing.assert_allclose(nn.gelu(A), A * special.ndtr(A))
    np.testing.assert_allclose(nn.erf(A), special.erf(A))


def test_ufuncs_of_scipy():
    special = pytest.importorskip("scipy.special")
    for fn in (special.erf, special.erfc, special.expit, special.ndtr):
        check(lambda x, fn=fn: fn(x), A, rtol=1e-14)
    check(lambda x: (special.logit(x), special.xlogy(x, x), special.xlogy(0.0, x * 0)), P, rtol=1e-13)
    assert record(special.expit, A.astype(np.float32)).graph.outputs[0].dtype.numpy == np.float32


def test_one_hot_and_cross_entropy():
    labels = np.array([0, 3, 1])
    same(run(lambda k: nn.one_hot(k, 4), labels), np.eye(4, dtype=np.float32)[labels])
    want = -np.log(nn.softmax(A))[np.arange(3), labels]
    np.testing.assert_allclose(run(nn.cross_entropy, A, labels), want.mean())
    np.testing.assert_allclose(nn.cross_entropy(A, labels, reduction="none"), want)
    np.testing.assert_allclose(nn.cross_entropy(A, np.eye(4)[labels]), want.mean())
    with pytest.raises(FlowcError, match="T009"):
        nn.cross_entropy(A, labels, reduction="median")


def naive_conv(x, w, stride, pad, dilation):
    n, _, _, _ = x.shape
    o, _, kh, kw = w.shape
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    oh = (x.shape[2] - (kh - 1) * dilation - 1) // stride + 1
    ow = (x.shape[3] - (kw - 1) * dilation - 1) // stride + 1
    out = np.zeros((n, o, oh, ow))
    for i in range(oh):
        for j in range(ow):
            patch = x[:, :, i * stride:i * stride + kh * dilation:dilation,
                j * stride:j * stride + kw * dilation:dilation]
            out[:, :, i, j] = np.einsum("ncij,ocij->no", patch[:, :, :kh, :kw], w)
    return out


@pytest.mark.parametrize("stride,pad,dilation", [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 0, 1)])
def test_conv(stride, pad, dilation):
    x, w, b = RNG.normal(size=(2, 3, 9, 8)), RNG.normal(size=(4, 3, 3, 2)), RNG.normal(size=4)
    want = naive_conv(x, w, stride, pad, dilation)
    np.testing.assert_allclose(run(lambda x, w: nn.conv(x, w, stride=stride, padding=pad, dilation=dilation), x, w),
    want)
    np.testing.assert_allclose(nn.conv(x, w, b, stride=stride, padding=pad, dilation=dilation), want + b[:, None, None])


def test_conv_same_padding_keeps_the_size():
    x, w = np.ones((1, 2, 7)), np.ones((2, 1, 3))
    assert run(lambda x, w: nn.conv(x, w, padding="same", groups=2), x, w, dynamic=False).shape == (1, 2, 7)
    traced = record(lambda x: nn.conv(x, w[:, :, :, None], padding="same", stride=(1, 2), groups=2), np.ones((1, 2, 7,
        5)))
    assert traced.graph.outputs[0].type.shape == (1, 2, 7, 3)
    dynamic = record(lambda x: nn.conv(x, w[:1, :, :, None], padding="same"), np.ones((1, 1, 7, 5)), dynamic=True)
    assert str(dynamic.graph.outputs[0].type) == "f64[1, 1, n7, n5]"


def test_pools():
    x = RNG.normal(size=(2, 3, 6, 4))
    tiles = x.reshape(2, 3, 3, 2, 2, 2)
    same(run(lambda x: nn.max_pool(x, 2), x), tiles.max((3, 5)))
    same(run(lambda x: nn.avg_pool(x, 2), x), tiles.mean((3, 5)), rtol=1e-14)
    same(nn.max_pool(x, 2), tiles.max((3, 5)))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    want = np.max(np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3)), (-1, -2))[:, :, ::2, ::2]
    same(run(lambda x: nn.max_pool(x, 3, stride=2, padding=1), x), want)


def test_attention_and_linear():
    q, k, v = (RNG.normal(size=(2, 5, 8)) for _ in range(3))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(8)
    same(run(nn.attention, q, k, v), nn.softmax(scores) @ v, rtol=1e-13)
    causal = np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf)
    same(run(lambda q, k, v: nn.attention(q, k, v, causal=True), q, k, v), nn.softmax(causal) @ v, rtol=1e-13)
    same(run(nn.linear, A, B, np.ones(5)), A @ B + 1, rtol=1e-13)


def test_softmax_of_bf16_and_f32_keeps_the_dtype():
    for d in (np.float32, np.float16, BF16):
        assert record(lambda x: nn.softmax(nn.gelu(nn.layer_norm(x))), A.astype(d)).graph.outputs[0].dtype.numpy == d


def test_top_k():
    same(run(lambda x: nn.top_k(x, 2), A), (np.sort(A)[:, ::-1][:, :2], np.argsort(A)[:, ::-1][:, :2]))


# ---- random ---------------------------------------------------------------------------------------------------------

def test_random_streams():
    from flowc import random as fr
    key = fr.key(42)
    assert key.dtype == np.uint32 and key.shape == (2,) and isinstance(fr.uniform(key, (3,)), np.ndarray)
    for draw in (lambda k: fr.uniform(k, (50,), dtype=np.float64), lambda k: fr.normal(k, (50,)),
        lambda k: fr.split(k, 3),
                 lambda k: fr.randint(k, (50,), -3, 9), lambda k: fr.bernoulli(k, 0.3, (50,)),
                 lambda k: fr.permutation(k, 20),
                 lambda k: fr.uniform(k, (7,), -2, 5, np.float16), lambda k: fr.fold_in(k, 3),
                 lambda k: fr.exponential(k, (9,)),
                 lambda k: fr.truncated_normal(k, -1, 1, (40,)),
                 lambda k: fr.categorical(k, np.log(np.array([0.2, 0.8])), (9,)),
                 lambda k: fr.choice(k, 9, (3,))):
        same(run(draw, key), draw(key), rtol=1e-6)
    a, b = fr.split(key)
    assert a.tolist() != b.tolist() != key.tolist()
    assert not np.array_equal(fr.uniform(a, (4,)), fr.uniform(b, (4,)))


def test_random_distributions():
    from flowc import random as fr
    key, n = fr.key(1), 200_000
    u = fr.uniform(key, (n,))
    assert u.dtype == np.float32 and 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.005
    z = fr.normal(key, (n,), dtype=np.float64)
    assert np.isfinite(z).all() and abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z ** 4).mean() - 3) < 0.1
    k = fr.randint(key, (n,), 0, 6)
    assert k.min() == 0 and k.max() == 5 and np.all(np.abs(np.bincount(k) / n - 1 / 6) < 0.005)
    assert abs(fr.bernoulli(key, 0.3, (n,)).mean() - 0.3) < 0.005
    assert sorted(fr.permutation(key, 30).tolist()) == list(range(30))
    t = fr.truncated_normal(key, -1, 2, (n,))
    assert -1 <= t.min() and t.max() <= 2
    assert abs(fr.categorical(key, np.log(np.array([0.2, 0.8])), (n,)).mean() - 0.8) < 0.005
    assert len(set(fr.choice(key, 10, (10,), replace=False).tolist())) == 10
    with pytest.raises(FlowcError, match="T009"):
        fr.randint(key, (3,), 5, 5)
    with pytest.raises(FlowcError, match="T009"):
        fr.uniform(np.zeros(3), (3,))
    with pytest.raises(FlowcError, match="T009"):
        fr.key(1.5)


def test_random_with_symbolic_sizes():
    from flowc import random as fr
    key = fr.key(0)
    same(run(lambda x: fr.normal(key, x.shape) + x, np.zeros((3, 2), np.float32), dynamic=True), fr.normal(key, (3, 2)),
         rtol=1e-6)
