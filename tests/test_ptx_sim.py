"""The PTX interpreter: every class of instructions that compute against NumPy or exact arithmetic.

Instructions are tested as hand-written PTX: a kernel in which every thread loads its operands, runs one instruction and
stores the result.  Memory, control flow and faults are in test_ptx_machine.py, what LLVM makes of whole kernels in
test_cuda.py.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from ptx import WIDTH, numpy_type, rng, run, same, special

from flowc.backends.cuda.sim import numeric as num

# ---- integers -------------------------------------------------------------------------------------------------------

def divided(a, b):
    """Truncated quotient of Python integers; all ones for b = 0."""
    return [-1 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b)]


def wrapped(values, dtype: str) -> np.ndarray:
    bits = 8 * np.dtype(dtype).itemsize
    return np.array([int(v) & ((1 << bits) - 1) for v in values], np.uint64).astype(f"u{bits // 8}").view(dtype)


INT = ("u16", "s16", "u32", "s32", "u64", "s64")


@pytest.mark.parametrize("t", INT)
def test_integer_arithmetic(t):
    dt = numpy_type(t)
    a, b = special(dt, 2)
    x, y = a.tolist(), b.tolist()
    table = {
        f"add.{t}": [p + q for p, q in zip(x, y)], f"sub.{t}": [p - q for p, q in zip(x, y)],
        f"mul.lo.{t}": [p * q for p, q in zip(x, y)], f"mul.hi.{t}": [(p * q) >> WIDTH[t] for p, q in zip(x, y)],
        f"div.{t}": divided(x, y), f"rem.{t}": [p if q == 0 else p - q * d for p, q, d in zip(x, y, divided(x, y))],
        f"min.{t}": map(min, x, y), f"max.{t}": map(max, x, y),
    }
    for op, want in table.items():
        same(run(f"{op} $d, $0, $1;", [(t, a), (t, b)], t), wrapped(want, dt))


@pytest.mark.parametrize("t", ("u16", "s16", "u32", "s32"))
def test_wide_products(t):
    dt = numpy_type(t)
    wide = t[0] + str(2 * WIDTH[t])
    a, b = special(dt, 2)
    product = [p * q for p, q in zip(a.tolist(), b.tolist())]
    same(run(f"mul.wide.{t} $d, $0, $1;", [(t, a), (t, b)], wide), wrapped(product, numpy_type(wide)))
    c = np.resize(special(numpy_type(wide))[0], len(a))
    same(run(f"mad.wide.{t} $d, $0, $1, $2;", [(t, a), (t, b), (wide, c)], wide),
         wrapped([p + q for p, q in zip(product, c.tolist())], numpy_type(wide)))


def test_three_operand_integers():
    a, b = special("i4", 2)
    c = np.roll(a, 5)
    three = [("s32", a), ("s32", b), ("s32", c)]
    x, y, z = a.tolist(), b.tolist(), c.tolist()
    same(run("mad.lo.s32 $d, $0, $1, $2;", three, "s32"), wrapped([p * q + r for p, q, r in zip(x, y, z)], "i4"))
    same(run("mad.hi.s32 $d, $0, $1, $2;", three, "s32"),
         wrapped([(p * q >> 32) + r for p, q, r in zip(x, y, z)], "i4"))
    low = [((p << 8 & 0xFFFFFFFF ^ 1 << 31) - (1 << 31) >> 8) for p in x]
    low2 = [((p << 8 & 0xFFFFFFFF ^ 1 << 31) - (1 << 31) >> 8) for p in y]
    same(run("mul24.lo.s32 $d, $0, $1;", three[:2], "s32"), wrapped([p * q for p, q in zip(low, low2)], "i4"))
    for table in (0x80, 0xFE, 0x96, 0xE2, 0x01):
        want = [sum(((table >> (4 * (p >> k & 1) + 2 * (q >> k & 1) + (r >> k & 1))) & 1) << k for k in range(32))
                for p, q, r in zip(x, y, z)]
        same(run(f"lop3.b32 $d, $0, $1, $2, {table};", three, "s32"), wrapped(want, "i4"))
    sat = np.clip(a.astype("i8") + b, -2**31, 2**31 - 1).astype("i4")
    same(run("add.sat.s32 $d, $0, $1;", three[:2], "s32"), sat)


def test_carry():
    a, b = special("u8", 2)
    code = "add.cc.s64 %rd40, $0, $1; addc.s64 $d, 0, 0;"
    pairs = list(zip(a.tolist(), b.tolist()))
    same(run(code, [("u64", a), ("u64", b)], "u64"), wrapped([p + q >> 64 for p, q in pairs], "u8"))
    code = "sub.cc.s64 %rd40, $0, $1; subc.s64 $d, 0, 0;"
    same(run(code, [("u64", a), ("u64", b)], "u64"), wrapped([-int(p < q) for p, q in pairs], "u8"))


@pytest.mark.parametrize("t", ("b16", "b32", "b64"))
def test_logic_and_shifts(t):
    dt, bits = numpy_type(t), WIDTH[t]
    a, b = special(dt, 2)
    two = [(t, a), (t, b)]
    for op, fn in {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.items():
        same(run(f"{op}.{t} $d, $0, $1;", two, t), fn(a, b))
    same(run(f"not.{t} $d, $0;", two[:1], t), ~a)
    same(run(f"cnot.{t} $d, $0;", two[:1], t), (a == 0).astype(dt))
    n = rng.integers(0, 80, len(a)).astype("u4")
    shift = [(t, a), ("u32", n)]
    same(run(f"shl.{t} $d, $0, $1;", shift, t), wrapped([p << k for p, k in zip(a.tolist(), n.tolist())], dt))
    same(run(f"shr.u{bits} $d, $0, $1;", shift, t), wrapped([p >> k for p, k in zip(a.tolist(), n.tolist())], dt))
    signed = a.view(dt.replace("u", "i"))
    same(run(f"shr.s{bits} $d, $0, $1;", shift, t), wrapped([p >> k for p, k in zip(signed.tolist(), n.tolist())], dt))


def bit_field(x: int, pos: int, count: int, bits: int, signed: bool) -> int:
    """The definition of bfe in the reference."""
    pos, count = pos & 255, count & 255
    msb = bits - 1
    sign = (x >> min(pos + count - 1, msb)) & 1 if signed and count else 0
    out = 0
    for i in range(bits):
        out |= ((x >> (pos + i) & 1) if i < count and pos + i <= msb else sign) << i
    return out


@pytest.mark.parametrize("t", ("u32", "s32", "u64", "s64"))
def test_bit_counting_and_fields(t):
    bits, dt = WIDTH[t], numpy_type(t)
    (a,) = special(dt.replace("i", "u"))
    x = a.tolist()
    b = f"b{bits}"
    same(run(f"popc.{b} $d, $0;", [(b, a)], "u32"), np.array([p.bit_count() for p in x], "u4"))
    same(run(f"clz.{b} $d, $0;", [(b, a)], "u32"), np.array([bits - p.bit_length() for p in x], "u4"))
    same(run(f"brev.{b} $d, $0;", [(b, a)], b), np.array([int(f"{p:0{bits}b}"[::-1], 2) for p in x], a.dtype))
    signed = a.view(dt)
    find = [(~p if p < 0 else p).bit_length() - 1 for p in signed.tolist()]
    same(run(f"bfind.{t} $d, $0;", [(b, a)], "u32"), wrapped(find, "u4"))
    pos, count = (rng.integers(0, 70, len(a)).astype("u4") for _ in "pc")
    want = [bit_field(p, i, k, bits, t[0] == "s") for p, i, k in zip(x, pos.tolist(), count.tolist())]
    same(run(f"bfe.{t} $d, $0, $1, $2;", [(b, a), ("u32", pos), ("u32", count)], b), wrapped(want, a.dtype.str[1:]))


def test_bfi_prmt_shf():
    a, b = special("u4", 2)
    pos, count = (rng.integers(0, 40, len(a)).astype("u4") for _ in "pc")

    def insert(f, x, i, k):
        mask = ((1 << k) - 1 << i) & 0xFFFFFFFF
        return (x & ~mask) | (f << i & mask)
    want = [insert(*t) for t in zip(a.tolist(), b.tolist(), pos.tolist(), count.tolist())]
    same(run("bfi.b32 $d, $0, $1, $2, $3;", [("b32", a), ("b32", b), ("u32", pos), ("u32", count)], "b32"),
         wrapped(want, "u4"))

    def permute(p, q, s):
        raw = (q << 32 | p).to_bytes(8, "little")
        out = [raw[s >> 4 * k & 7] for k in range(4)]
        return sum((255 * (v >> 7) if s >> 4 * k & 8 else v) << 8 * k for k, v in enumerate(out))
    want = [permute(*t) for t in zip(a.tolist(), b.tolist(), np.roll(a, 3).tolist())]
    same(run("prmt.b32 $d, $0, $1, $2;", [("b32", a), ("b32", b), ("b32", np.roll(a, 3))], "b32"), wrapped(want, "u4"))
    three = [("b32", a), ("b32", b), ("u32", pos)]
    both = [(q << 32 | p, n) for p, q, n in zip(a.tolist(), b.tolist(), pos.tolist())]
    same(run("shf.l.wrap.b32 $d, $0, $1, $2;", three, "b32"), wrapped([v << (n & 31) >> 32 for v, n in both], "u4"))
    same(run("shf.r.clamp.b32 $d, $0, $1, $2;", three, "b32"), wrapped([v >> min(n, 32) for v, n in both], "u4"))


def test_integer_signs():
    for t, dt in (("s16", "i2"), ("s32", "i4"), ("s64", "i8")):
        (a,) = special(dt)
        same(run(f"abs.{t} $d, $0;", [(t, a)], t), wrapped([abs(x) for x in a.tolist()], dt))
        same(run(f"neg.{t} $d, $0;", [(t, a)], t), wrapped([-x for x in a.tolist()], dt))


# ---- floats ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("t", ("f32", "f64"))
def test_float_arithmetic(t):
    a, b = special(numpy_type(t), 2)
    two = [(t, a), (t, b)]
    with np.errstate(all="ignore"):
        for op, want in {"add.rn": a + b, "sub.rn": a - b, "mul.rn": a * b, "div.rn": a / b}.items():
            same(run(f"{op}.{t} $d, $0, $1;", two, t), want)
        same(run(f"sqrt.rn.{t} $d, $0;", two[:1], t), np.sqrt(a))
        same(run(f"rcp.rn.{t} $d, $0;", two[:1], t), 1 / a)
        same(run(f"neg.{t} $d, $0;", two[:1], t), -a)
        same(run(f"abs.{t} $d, $0;", two[:1], t), np.abs(a))
        same(run(f"copysign.{t} $d, $0, $1;", two, t), np.copysign(b, a))
        same(run(f"min.{t} $d, $0, $1;", two, t), smaller(a, b))
        same(run(f"max.{t} $d, $0, $1;", two, t), -smaller(-a, -b))


def smaller(a, b):
    """minNum with -0 below +0."""
    out = np.fmin(a, b)
    zero = (a == 0) & (b == 0)
    return np.where(zero, np.where(np.signbit(a) | np.signbit(b), -0.0, 0.0), out).astype(a.dtype)


@pytest.mark.parametrize("t", ("f16", "bf16", "f32"))
def test_min_max_with_nan(t):
    if t == "bf16":
        a, b = (num.narrow(x) for x in special("f4", 2))
        x, y = num.widen(a), num.widen(b)
    else:
        a, b = x, y = special(numpy_type(t), 2)
    nan = np.isnan(x) | np.isnan(y)
    with np.errstate(all="ignore"):
        want = np.where(nan, np.nan, smaller(np.where(nan, 0, x).astype(x.dtype), np.where(nan, 0, y).astype(x.dtype)))
    got = run(f"min.NaN.{t} $d, $0, $1;", [(t, a), (t, b)], t)
    assert (got[nan] == (0x7FFFFFFF if t == "f32" else 0x7FFF)).all()  # the canonical NaN
    same(num.widen(got) if t == "bf16" else got, want.astype(x.dtype))


def rounded(x: Fraction, dtype: str) -> float:
    """x in a float format, once, to nearest even; for formats that Python cannot round to itself."""
    if x == 0:
        return 0.0
    if dtype == "f8":
        try:
            size = abs(x.numerator) / x.denominator
        except OverflowError:
            size = math.inf
        return -size if x < 0 else size
    digits, low, high = {"f4": (24, -149, 128), "f2": (11, -24, 16), "bf": (8, -133, 128)}[dtype]
    size = abs(x)
    e = size.numerator.bit_length() - size.denominator.bit_length()
    e += size >= Fraction(2) ** (e + 1)
    e -= size < Fraction(2) ** e
    step = Fraction(2) ** max(e - digits + 1, low)
    out = round(size / step) * step
    return math.copysign(math.inf if out >= Fraction(2) ** high else float(out), x)


@pytest.mark.parametrize("t, code", [("f32", "f4"), ("f64", "f8"), ("f16", "f2"), ("bf16", "bf")])
def test_fma_rounds_once(t, code):
    dt = {"bf": "f4"}.get(code, code)
    a, b = special(dt, 2)
    picks = rng.permutation(len(a))
    c = np.roll(a, 17)[picks]
    a, b = a[picks], b[picks]
    near = rng.normal(size=400)  # products that nearly cancel, and sums that lie near the middle of two floats
    a = np.concatenate([a, near.astype(dt), near.astype(dt), np.full(100, 1, dt)])
    b = np.concatenate([b, (1 / near).astype(dt), near.astype(dt), (1 + 2.0 ** -rng.integers(1, 60, 100)).astype(dt)])
    with np.errstate(all="ignore"):
        small = (2.0 ** -rng.integers(0, 120, 100)).astype(dt)
        c = np.concatenate([c, np.full(400, -1, dt), (-near * near).astype(dt), small])
    if code == "bf":
        a, b, c = (num.widen(num.narrow(x)) for x in (a, b, c))
    raw = [(t, num.narrow(x) if code == "bf" else x) for x in (a, b, c)]
    got = run(f"fma.rn.{t} $d, $0, $1, $2;", raw, t)
    got = num.widen(got) if code == "bf" else got.view(dt)
    for x, y, z, r in zip(*(v.tolist() for v in (a, b, c, got))):
        if not all(map(math.isfinite, (x, y, z))):
            with np.errstate(all="ignore"):
                want = float(np.float64(x) * np.float64(y) + np.float64(z))
        else:
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            want = rounded(exact, code) if exact else (x * y + z if x * y == 0 else 0.0)
        equal = r == want and math.copysign(1, r) == math.copysign(1, want)
        assert equal or (r != r and want != want), (x, y, z, r, want)


@pytest.mark.parametrize("mode", ("rz", "rm", "rp"))
@pytest.mark.parametrize("t", ("f32", "f64"))
def test_directed_rounding(t, mode):
    dt = numpy_type(t)
    a, b = (x[np.isfinite(x)] for x in special(dt, 1) + special(dt, 1))
    n = min(len(a), len(b))
    a, b = a[:n], rng.permutation(b[:n])
    for op, exact in (("add", lambda x, y: Fraction(x) + Fraction(y)), ("mul", lambda x, y: Fraction(x) * Fraction(y))):
        got = run(f"{op}.{mode}.{t} $d, $0, $1;", [(t, a), (t, b)], t).view(dt)
        assert not np.isnan(got).any()
        for x, y, r in zip(a.tolist(), b.tolist(), got.tolist()):
            want = exact(x, y)
            if not math.isfinite(r):
                assert abs(want) > float(np.finfo(dt).max) and mode != "rz"
                continue
            error = Fraction(r) - want
            assert {"rz": abs(Fraction(r)) <= abs(want), "rm": error <= 0, "rp": error >= 0}[mode]
            with np.errstate(over="ignore"):
                up, down = (float(np.nextafter(np.dtype(dt).type(r), np.dtype(dt).type(s * math.inf))) for s in (1, -1))
            assert not (math.isfinite(up) and math.isfinite(down)) or down < want < up


def test_half_arithmetic():
    a, b = special("f2", 2)
    with np.errstate(all="ignore"):
        for op, want in {"add": a + b, "sub": a - b, "mul": a * b}.items():
            same(run(f"{op}.rn.f16 $d, $0, $1;", [("f16", a), ("f16", b)], "f16"), want)
        x, y = (num.narrow(v) for v in special("f4", 2))
        same(num.widen(run("add.rn.bf16 $d, $0, $1;", [("bf16", x), ("bf16", y)], "bf16")),
             num.widen(num.narrow(num.widen(x) + num.widen(y))))
        pairs = [np.stack([v, np.roll(v, 3)], 1).copy().view("u4")[:, 0] for v in (a, b)]
        got = run("add.rn.f16x2 $d, $0, $1;", [("f16x2", pairs[0]), ("f16x2", pairs[1])], "f16x2")
        same(got.view("f2"), (pairs[0].view("f2") + pairs[1].view("f2")))


def test_approximations_and_flushing():
    a = np.abs(rng.normal(size=300)).astype("f4") + np.float32(0.1)
    for op, fn in {"ex2.approx.f32": np.exp2, "lg2.approx.f32": np.log2, "sin.approx.f32": np.sin,
                   "cos.approx.f32": np.cos, "tanh.approx.f32": np.tanh, "rsqrt.approx.f32": lambda v: 1 / np.sqrt(v),
                   "rcp.approx.ftz.f32": lambda v: 1 / v, "sqrt.approx.f32": np.sqrt}.items():
        got = run(f"{op} $d, $0;", [("f32", a)], "f32").view("f4")
        assert np.allclose(got, fn(a.astype("f8")), rtol=2e-7, atol=1e-7)
    tiny = np.array([1e-40, -1e-40, 1e-37, 0], "f4")
    same(run("mul.ftz.rn.f32 $d, $0, $1;", [("f32", tiny), ("f32", np.ones(4, "f4"))], "f32"),
         np.array([0.0, -0.0, 1e-37, 0], "f4"))
    same(run("add.rn.sat.f32 $d, $0, $1;", [("f32", np.array([0.25, 3, -1, np.nan], "f4")),
                                            ("f32", np.array([0.5] * 4, "f4"))], "f32"),
         np.array([0.75, 1, 0, 0], "f4"))


def test_testp():
    (a,) = special("f4")
    tiny = np.finfo("f4").tiny
    for kind, want in {"finite": np.isfinite(a), "infinite": np.isinf(a), "notanumber": np.isnan(a),
                       "number": ~np.isnan(a), "subnormal": (a != 0) & (np.abs(a) < tiny),
                       "normal": np.isfinite(a) & (np.abs(a) >= tiny)}.items():
        same(run(f"testp.{kind}.f32 %p1, $0; selp.u32 $d, 1, 0, %p1;", [("f32", a)], "u32"), want.astype("u4"))


# ---- comparing and choosing -----------------------------------------------------------------------------------------

COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal}


@pytest.mark.parametrize("t", ("u16", "s32", "u32", "s64", "u64", "f32", "f64", "f16"))
def test_setp(t):
    a, b = special(numpy_type(t), 2)
    nan = np.isnan(a) | np.isnan(b) if t[0] == "f" else np.zeros(len(a), bool)
    code = "setp.{}." + t + " %p1, $0, $1; selp.u32 $d, 1, 0, %p1;"
    for op, fn in COMPARE.items():
        same(run(code.format(op), [(t, a), (t, b)], "u32"), (fn(a, b) & ~nan).astype("u4"))
        if t[0] == "f":
            same(run(code.format(op + "u"), [(t, a), (t, b)], "u32"), (fn(a, b) | nan).astype("u4"))
    if t[0] == "f":
        same(run(code.format("num"), [(t, a), (t, b)], "u32"), (~nan).astype("u4"))
        same(run(code.format("nan"), [(t, a), (t, b)], "u32"), nan.astype("u4"))


def test_setp_forms():
    a, b = special("i4", 2)
    code = """setp.gt.s32 %p2, $0, 3; setp.lt.{}.s32 %p1|%p3, $0, $1, %p2; selp.u32 %r20, 1, 0, %p1;
    selp.u32 %r21, 2, 0, %p3; or.b32 $d, %r20, %r21;"""
    c, x = a > 3, a < b
    for op, fn in {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.items():
        want = fn(x, c).astype("u4") | fn(~x, c).astype("u4") << 1
        same(run(code.format(op), [("s32", a), ("s32", b)], "u32"), want.astype("u4"))
    same(run("setp.lt.s32 %p1, $0, $1; not.pred %p2, %p1; and.pred %p3, %p2, %p2; @!%p3 mov.b32 $d, 7;"
             "@%p3 mov.b32 $d, 9;", [("s32", a), ("s32", b)], "s32"), np.where(a < b, 7, 9).astype("i4"))
    same(run("slct.b32.s32 $d, $0, $1, $0;", [("s32", a), ("s32", b)], "s32"), np.where(a >= 0, a, b))
    same(run("set.lt.u32.s32 $d, $0, $1;", [("s32", a), ("s32", b)], "u32"), np.where(a < b, 2**32 - 1, 0).astype("u4"))


def test_moves_and_packing():
    (a,) = special("u8")
    same(run("mov.b64 {%r1, %r2}, $0; mov.b64 $d, {%r2, %r1};", [("b64", a)], "b64"),
         a >> np.uint64(32) | a << np.uint64(32))
    low = a.astype("u4")
    same(run("mov.b32 {%rs5, %rs6}, $0; mov.b32 $d, {%rs6, %rs5};", [("b32", low)], "b32"),
         low >> np.uint32(16) | low << np.uint32(16))
    same(run("mov.f32 $d, 0f3FC00000;", [("b32", low)], "f32"), np.full(len(a), 1.5, "f4"))
    same(run("mov.b64 $d, 0d3FF8000000000000;", [("b64", a)], "f64"), np.full(len(a), 1.5))
    same(run("{ .reg .b32 %t; mov.b32 %t, $0; add.s32 $d, %t, -5; }", [("b32", low)], "b32"), low - np.uint32(5))


# ---- conversions ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("to", ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"))
@pytest.mark.parametrize("source", ("s16", "u32", "s32", "u64", "s64"))
def test_integer_conversions(source, to):
    (a,) = special(numpy_type(source))
    store = to if WIDTH[to] > 8 else "u16"
    got = run(f"cvt.{to}.{source} $d, $0;", [(source, a)], store)
    wide = a.astype(numpy_type(to)).astype(numpy_type(("s" if to[0] == "s" else "u") + str(WIDTH[store])))
    same(got, wide)
    info = np.iinfo(numpy_type(to))
    got = run(f"cvt.sat.{to}.{source} $d, $0;", [(source, a)], store)
    want = [min(max(x, int(info.min)), int(info.max)) for x in a.tolist()]
    same(got, wrapped(want, wide.dtype.str[1:]))


@pytest.mark.parametrize("to", ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"))
@pytest.mark.parametrize("source", ("f16", "bf16", "f32", "f64"))
def test_float_to_integer(source, to):
    if source == "bf16":
        raw = num.narrow(special("f4")[0])
        x = num.widen(raw).tolist()
    else:
        (raw,) = special(numpy_type(source))
        x = raw.tolist()
    info = np.iinfo(numpy_type(to))
    store = to if WIDTH[to] > 8 else ("s16" if to[0] == "s" else "u16")
    for mode, fn in {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}.items():
        got = run(f"cvt.{mode}.{to}.{source} $d, $0;", [(source, raw)], store)
        nan = 0 if source != "f64" and WIDTH[to] < 64 else 1 << (WIDTH[to] - 1)
        want = [nan if v != v else int(info.max if v > 0 else info.min) if math.isinf(v) else
                min(max(fn(v), int(info.min)), int(info.max)) for v in x]
        want = [int(np.uint64(v & (2**64 - 1)).astype(numpy_type(to))) for v in want]
        same(got, wrapped(want, numpy_type(store)))


@pytest.mark.parametrize("source", ("u16", "s16", "u32", "s32", "u64", "s64"))
@pytest.mark.parametrize("to", ("f16", "f32", "f64"))
def test_integer_to_float(source, to):
    (a,) = special(numpy_type(source))
    got = run(f"cvt.rn.{to}.{source} $d, $0;", [(source, a)], to)
    want = np.array([rounded(Fraction(x), numpy_type(to)) for x in a.tolist()]).astype(numpy_type(to))
    same(got, want)
    got = run(f"cvt.rz.{to}.{source} $d, $0;", [(source, a)], to).view(numpy_type(to))
    for x, r in zip(a.tolist(), got.tolist()):
        assert abs(Fraction(r)) <= abs(x) and (float(r) == x or r != 0)


@np.errstate(all="ignore")
def test_float_formats():
    (d,) = special("f8")
    d = np.concatenate([d, (1 + 2.0 ** -11 + 2.0 ** -30) * 2.0 ** rng.integers(-30, 16, 50)])
    exact = {"f32": "f4", "f16": "f2", "bf16": "bf"}
    for to, code in exact.items():
        got = run(f"cvt.rn.{to}.f64 $d, $0;", [("f64", d)], to)
        got = num.widen(got) if code == "bf" else got.view(code)
        want = [v if not math.isfinite(v) or v == 0 else rounded(Fraction(v), code) for v in d.tolist()]
        same(np.ascontiguousarray(got).view(f"u{got.dtype.itemsize}"), np.array(want).astype(got.dtype))
    (s,) = special("f4")
    same(run("cvt.f64.f32 $d, $0;", [("f32", s)], "f64"), s.astype("f8"))
    for mode, fn in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        same(run(f"cvt.{mode}.f32.f32 $d, $0;", [("f32", s)], "f32"), fn(s))
    same(run("cvt.sat.f32.f32 $d, $0;", [("f32", s)], "f32"), np.where(s > 0, np.minimum(s, 1), 0).astype("f4"))
    for mode in ("rz", "rm", "rp"):
        got = run(f"cvt.{mode}.f32.f64 $d, $0;", [("f64", d)], "f32").view("f4")
        for x, r in zip(d.tolist(), got.tolist()):
            if math.isfinite(x) and math.isfinite(r):
                assert {"rz": abs(r) <= abs(x), "rm": r <= x, "rp": r >= x}[mode]
    got = run("cvt.rz.bf16.f32 $d, $0;", [("f32", s)], "bf16")
    finite = np.isfinite(s)
    assert np.array_equal(got[finite], (s.view("u4") >> 16).astype("u2")[finite])
    got = run("cvt.rn.bf16x2.f32 $d, $0, $1;", [("f32", s), ("f32", -s)], "bf16x2").view("u2").reshape(-1, 2)
    same(num.widen(got[:, 1].copy()).view("u4"), num.widen(num.narrow(s)))
    (h,) = special("f2")
    same(run("cvt.f32.f16 $d, $0;", [("f16", h)], "f32"), h.astype("f4"))
    same(run("cvt.f32.bf16 $d, $0;", [("bf16", num.narrow(s))], "f32"), num.widen(num.narrow(s)))
