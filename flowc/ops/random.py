"""Random bits from a key and a position: the same for every machine, thread count and order of evaluation.

Here: random_bits.  Not here: distributions, which the front end builds from bits.  Read next: scan.py.

Generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), a
bijection of 128-bit counters under a 64-bit key.  32-bit words come four to a counter, 64-bit words two (low half
first); the counter is the C-order position of the word divided by that number, its upper 64 bits are zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowc.dims import DimLike
from flowc.kernel import Builder, Expr
from flowc.op import Pointwise
from flowc.ops.rules import EXACT, declare, need_sizes, same_size
from flowc.types import DType, Type, u32, u64

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF


def philox(counters: np.ndarray, key: np.ndarray) -> np.ndarray:
    """u32[..., 4] blocks of random words from u32[..., 4] counters and a u32[2] key."""
    c0, c1, c2, c3 = (counters[..., k].astype(np.uint64) for k in range(4))
    k0, k1 = (int(k) for k in key)
    for _ in range(ROUNDS):
        a, b = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = ((b >> np.uint64(32)) ^ c1 ^ np.uint64(k0), b & np.uint64(MASK),
                          (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1), a & np.uint64(MASK))
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def _value(key: np.ndarray, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    count = int(np.prod(shape, dtype=object))
    blocks = -(-count * (dtype.bits // 32) // 4)
    at = np.arange(blocks, dtype=np.uint64)
    nothing = np.zeros_like(at)
    words = philox(np.stack([at & np.uint64(MASK), at >> np.uint64(32), nothing, nothing], -1).astype(np.uint32), key)
    flat = words.reshape(-1)
    if dtype is u64:
        flat = flat[0::2].astype(np.uint64) | flat[1::2].astype(np.uint64) << np.uint64(32)
    return flat[:count].reshape(shape)


def _block(b: Builder, at: Expr, k0: Expr, k1: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """The four words of counter ``at`` (i64)."""
    def product(x: Expr, by: int) -> tuple[Expr, Expr]:
        whole = b.mul(b.cast(x, u64), by)
        return b.cast(b.shr(whole, 32), u32), b.cast(whole, u32)

    c0, c1 = b.cast(at, u32), b.cast(b.shr(at, 32), u32)
    c2 = c3 = b.const(0, u32)
    for r in range(ROUNDS):
        if r:
            k0, k1 = b.add(k0, KEY_STEPS[0]), b.add(k1, KEY_STEPS[1])
        (a_high, a_low), (b_high, b_low) = product(c0, MULTIPLIERS[0]), product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = b.xor(b.xor(b_high, c1), k0), b_low, b.xor(b.xor(a_high, c3), k1), a_low
    return c0, c1, c2, c3


def _expr(b: Builder, idx: tuple, load: Callable[..., Expr], types: tuple[Type, ...], attrs: dict) -> Expr:
    position: DimLike = 0
    for i, size in zip(idx, attrs["shape"], strict=True):
        position = position * size + i
    wide = attrs["dtype"] is u64
    per_block = 2 if wide else 4
    w0, w1, w2, w3 = _block(b, b.index(position // per_block), load(0, (0,)), load(0, (1,)))
    which = b.index(position % per_block)
    if not wide:
        upper = b.select(b.eq(which, 2), w2, w3)
        return b.select(b.eq(which, 0), w0, b.select(b.eq(which, 1), w1, upper))
    low, high = (b.cast(b.select(b.eq(which, 0), p, q), u64) for p, q in ((w0, w2), (w1, w3)))
    return b.or_(low, b.shl(high, 32))


def _type(key: Type, shape: tuple, dtype: DType) -> Type:
    if key.rank != 1:
        raise ValueError(f"the key must have one axis of size 2, got {key}")
    same_size(key.shape[0], 2, "the key must have two words")
    if dtype not in (u32, u64):
        raise TypeError(f"dtype must be u32 or u64, not {dtype}")
    return Type(dtype, need_sizes(shape, None, "shape"))


declare("random_bits", "Random bits that depend on the key and the position in C order only.", numpy=_value,
        infer=_type, lower=Pointwise(_expr), attrs=("shape", "dtype"), dtypes=(u32,), ulp=EXACT,
        samples=lambda rng: [((rng.integers(0, 2 ** 32, 2, dtype=np.uint32),), {"shape": s, "dtype": d})
                             for d in (u32, u64) for s in ((), (0,), (9,), (3, 5))])
