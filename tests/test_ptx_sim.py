"""The PTX interpreter: every class of instructions against NumPy or exact arithmetic, control flow, memory, faults.

Instructions are tested as hand-written PTX: a kernel in which every thread loads its operands, runs one instruction and
stores the result.  What LLVM makes of whole kernels is in test_cuda.py.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from flowc.backends.cuda.sim import (
    BarrierFault,
    Device,
    LaunchError,
    MemoryFault,
    Module,
    PtxError,
    RaceFault,
    SimulatorError,
)
from flowc.backends.cuda.sim import numeric as num
from flowc.backends.cuda.sim.flow import arrange
from flowc.backends.cuda.sim.instructions import ROWS
from flowc.backends.cuda.sim.parse import parse

HEAD = ".version 7.8\n.target sm_90\n.address_size 64\n"
WIDTH = {"pred": 1, **{f"{k}{b}": b for k in "usbf" for b in (8, 16, 32, 64)}, "bf16": 16, "f16x2": 32, "bf16x2": 32}
REG = {8: "rs", 16: "rs", 32: "r", 64: "rd"}
rng = np.random.default_rng(7)


def module(body: str, params: int = 3, extra: str = "", directives: str = "", name: str = "k") -> str:
    """A kernel with pointer parameters and plenty of registers."""
    args = ", ".join(f".param .u64 p{i}" for i in range(params))
    return (f"{HEAD}{extra}\n.visible .entry {name}({args}) {directives}\n{{\n.reg .pred %p<16>;\n.reg .b16 %rs<32>;\n"
            f".reg .b32 %r<64>;\n.reg .b64 %rd<64>;\n{body}\n}}\n")


THREAD = "mov.u32 %r60, %tid.x; mov.u32 %r61, %ctaid.x; mov.u32 %r62, %ntid.x; mad.lo.s32 %r63, %r61, %r62, %r60;\n"


def run(code: str, sources: list[tuple[str, np.ndarray]], result: str, block: int = 64) -> np.ndarray:
    """Run ``code`` per element: operands in $0, $1, ..., the result in $d; types are PTX types."""
    n = len(sources[0][1])
    lines = [THREAD]
    names = {"$d": f"%{REG[WIDTH[result]]}0"}
    for i, (t, _) in enumerate(sources):
        names[f"${i}"] = reg = f"%{REG[WIDTH[t]]}{i + 1}"
        lines.append(f"ld.param.b64 %rd{20 + i}, [p{i}]; mul.wide.u32 %rd{30 + i}, %r63, {max(WIDTH[t], 8) // 8};"
                     f" add.s64 %rd{20 + i}, %rd{20 + i}, %rd{30 + i}; ld.global.b{WIDTH[t]} {reg}, [%rd{20 + i}];")
    out = len(sources)
    for k in sorted(names, reverse=True):
        code = code.replace(k, names[k])
    lines.append(code)
    size = WIDTH[result] // 8
    lines.append(f"ld.param.b64 %rd50, [p{out}]; mul.wide.u32 %rd51, %r63, {size}; add.s64 %rd50, %rd50, %rd51;"
                 f" st.global.b{WIDTH[result]} [%rd50], {names['$d']}; ret;")
    device = Device(1 << 22)
    total = -(-n // block) * block
    held = [device.put(np.resize(a, total)) for _, a in sources]
    target = device.alloc(total * size)
    device.launch(Module(module("\n".join(lines), out + 1)), "k", (total // block,), (block,), 0, [*held, target])
    return device.get(target, (total,), f"u{size}")[:n]


def special(dtype: str, pairs: int = 1) -> list[np.ndarray]:
    """All combinations of special values, then random bits and plain numbers."""
    dt = np.dtype(dtype)
    if dt.kind == "f":
        info = np.finfo(dt)
        some = [0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 3, info.max, -info.max, info.tiny, info.smallest_subnormal,
                -info.smallest_subnormal, np.inf, -np.inf, np.nan, 1 + info.eps, 255.5, -128.75]
    else:
        info = np.iinfo(dt)
        some = [0, 1, 2, 3, 5, 7, 31, 32, 63, 100, info.max, info.min, info.max - 1, info.min + 1, info.max // 2]
    grid = np.array(list(itertools.product(some, repeat=pairs)), dtype=dt)
    raw = rng.integers(0, 256, (300, pairs, dt.itemsize), dtype=np.uint8).view(dt)[:, :, 0]
    plain = (rng.normal(size=(200, pairs)) * 10).astype(dt)
    return list(np.concatenate([grid, raw, plain]).T.copy())


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bits, any NaN for a NaN."""
    want = np.ascontiguousarray(want)
    got = got.view(want.dtype)
    with np.errstate(all="ignore"):
        nan = np.isnan(want) if want.dtype.kind == "f" else np.zeros(want.shape, bool)
        wrong = np.where(nan, ~np.isnan(got) if want.dtype.kind == "f" else False,
                         got.view(f"u{got.dtype.itemsize}") != want.view(f"u{want.dtype.itemsize}"))
    assert not wrong.any(), (np.flatnonzero(wrong)[:5], got[wrong][:5], want[wrong][:5])


def numpy_type(t: str) -> str:
    return {"u": "u", "s": "i", "b": "u", "f": "f"}[t[0]] + str(int(t[1:]) // 8)


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


# ---- memory ---------------------------------------------------------------------------------------------------------

def test_vectors_local_and_generic_memory():
    body = THREAD + """
    .local .align 16 .b8 depot[64];
    .shared .align 16 .b8 tile[1024];
    ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r60, 16; add.s64 %rd1, %rd1, %rd2;
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    mov.b64 %rd3, depot; cvta.local.u64 %rd4, %rd3;
    st.local.v2.b32 [%rd3+8], {%r1, %r2};
    ld.b32 %r5, [%rd4+12];
    mov.b64 %rd5, tile; cvta.shared.u64 %rd6, %rd5; add.s64 %rd7, %rd6, %rd2;
    st.v2.b32 [%rd7], {%r3, %r4}; st.b32 [%rd7+8], %r5;
    add.s64 %rd8, %rd5, %rd2; ld.shared.v2.b32 {%r6, %r7}, [%rd8]; ld.shared.b32 %r8, [%rd8+8];
    setp.eq.b32 %p1, %r60, 3; selp.b64 %rd9, %rd7, %rd1, %p1; ld.u8 %r9, [%rd9];
    isspacep.shared %p2, %rd9; selp.u32 %r10, 1, 0, %p2;
    ld.param.b64 %rd10, [p1]; add.s64 %rd10, %rd10, %rd2;
    cvta.to.shared.u64 %rd11, %rd7; sub.s64 %rd11, %rd11, %rd8; cvt.u32.u64 %r11, %rd11;
    add.s32 %r10, %r10, %r11;
    st.global.v4.b32 [%rd10], {%r6, %r8, %r9, %r10}; ret;"""
    x = rng.integers(0, 2**32, (64, 4), dtype=np.uint32)
    d = Device(1 << 20)
    p, q = d.put(x), d.alloc(x.nbytes)
    d.launch(Module(module(body)), "k", (1,), (64,), 0, [p, q, 0])
    got = d.get(q, x.shape, "u4")
    assert np.array_equal(got[:, 0], x[:, 2]) and np.array_equal(got[:, 1], x[:, 1])
    assert np.array_equal(got[:, 2], np.where(np.arange(64) == 3, x[:, 2], x[:, 0]) & 255)
    assert np.array_equal(got[:, 3], (np.arange(64) == 3))


def test_globals_and_constants():
    extra = (".global .align 8 .b8 table[24] = {0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 4, 64};\n"
             ".const .align 4 .u32 scale[2] = {3, 0x10};\n.global .align 4 .b8 counter[4];")
    body = THREAD + """mov.b64 %rd1, table; and.b32 %r1, %r60, 1; mul.wide.u32 %rd2, %r1, 8; add.s64 %rd1, %rd1, %rd2;
    ld.global.f64 %rd3, [%rd1]; ld.const.u32 %r2, [scale+4]; cvt.rn.f64.u32 %rd4, %r2; mul.rn.f64 %rd3, %rd3, %rd4;
    ld.param.b64 %rd5, [p0]; mul.wide.u32 %rd6, %r60, 8; add.s64 %rd5, %rd5, %rd6; st.global.f64 [%rd5], %rd3; ret;"""
    d = Device(1 << 20)
    p = d.alloc(8 * 32)
    d.launch(Module(module(body, extra=extra)), "k", (1,), (32,), 0, [p, 0, 0])
    assert np.array_equal(d.get(p, (32,), "f8"), np.where(np.arange(32) % 2, 40.0, 16.0))


@pytest.mark.parametrize("op, t, start, fn", [
    ("add", "u32", 5, lambda a: 5 + a.sum()), ("add", "f32", 0, lambda a: a.astype("f4").sum()),
    ("max", "s32", -3, lambda a: a.max()), ("min", "u32", 99, lambda a: a.min()),
    ("or", "b32", 0, np.bitwise_or.reduce),
    ("xor", "b32", 1, lambda a: 1 ^ np.bitwise_xor.reduce(a)), ("add", "u64", 0, lambda a: a.sum())])
def test_atomics(op, t, start, fn):
    n, bits = 96, WIDTH[t]
    a = rng.integers(1, 50, n).astype(numpy_type(t))
    reg = REG[bits]
    for form in ("red.global", "atom.global"):
        result = f"%{reg}5, " if form[:4] == "atom" else ""
        keep = f"st.global.b{bits} [%rd4], %{reg}5;" if result else ""
        body = THREAD + f"""ld.param.b64 %rd1, [p0]; ld.param.b64 %rd2, [p1]; mul.wide.u32 %rd3, %r63, {bits // 8};
        add.s64 %rd1, %rd1, %rd3; ld.global.b{bits} %{reg}6, [%rd1]; {form}.{op}.{t} {result}[%rd2], %{reg}6;
        ld.param.b64 %rd4, [p2]; add.s64 %rd4, %rd4, %rd3; {keep} ret;"""
        d = Device(1 << 20)
        p, q, r = d.put(a), d.put(np.array([start], a.dtype)), d.put(a)
        d.launch(Module(module(body)), "k", (3,), (32,), 0, [p, q, r])
        assert d.get(q, (1,), a.dtype)[0] == np.dtype(a.dtype).type(fn(a))
        if result and op == "add":
            assert sorted(d.get(r, (n,), a.dtype).tolist())[0] == start


def test_compare_and_swap_spin_lock_order():
    """Each thread swaps its number in; the chain of old values visits everybody once."""
    body = THREAD + """ld.param.b64 %rd1, [p0]; atom.global.exch.b32 %r1, [%rd1], %r63; ld.param.b64 %rd2, [p1];
    mul.wide.u32 %rd3, %r63, 4; add.s64 %rd2, %rd2, %rd3; st.global.u32 [%rd2], %r1;
    atom.global.cas.b32 %r2, [%rd1+4], 0, %r63; ret;"""
    d = Device(1 << 20)
    p, q = d.put(np.array([999, 0], "u4")), d.alloc(4 * 64)
    d.launch(Module(module(body)), "k", (2,), (32,), 0, [p, q, 0])
    old = d.get(q, (64,), "u4").tolist()
    assert sorted([*old, d.get(p, (1,), "u4")[0]]) == [*range(64), 999]


# ---- warps ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, operand, source", [
    ("bfly", 5, lambda i: i ^ 5), ("down", 3, lambda i: i + 3 if i + 3 < 32 else i),
    ("up", 3, lambda i: i - 3 if i >= 3 else i), ("idx", 9, lambda i: 9)])
def test_shuffles(kind, operand, source):
    clamp = 0 if kind == "up" else 31
    a = rng.integers(0, 2**32, 64, dtype=np.uint32)
    got = run(f"shfl.sync.{kind}.b32 $d|%p1, $0, {operand}, {clamp}, -1;", [("b32", a)], "b32")
    want = [a[w * 32 + source(i)] for w in range(2) for i in range(32)]
    assert np.array_equal(got, want)


def test_votes_and_reductions():
    a = rng.integers(-50, 50, 64).astype("i4")
    w = a.reshape(2, 32)
    for kind, fn in {"add": w.sum(1), "min": w.min(1), "max": w.max(1)}.items():
        same(run(f"redux.sync.{kind}.s32 $d, $0, -1;", [("s32", a)], "s32"), np.repeat(fn, 32).astype("i4"))
    flag = "setp.gt.s32 %p1, $0, 0; "
    same(run(flag + "vote.sync.ballot.b32 $d, %p1, -1;", [("s32", a)], "u32"),
         np.repeat(((w > 0) << np.arange(32)).sum(1), 32).astype("u4"))
    same(run(flag + "vote.sync.any.pred %p2, !%p1, -1; selp.u32 $d, 1, 0, %p2;", [("s32", a)], "u32"),
         np.repeat((w <= 0).any(1), 32).astype("u4"))
    same(run("activemask.b32 $d;", [("s32", a)], "u32"), np.full(64, 2**32 - 1, "u4"))


# ---- control flow ---------------------------------------------------------------------------------------------------

def test_divergent_loops_meet_again():
    """Collatz steps: every lane runs a loop of its own length; afterwards all of a warp are together."""
    body = THREAD + """ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, 4; add.s64 %rd1, %rd1, %rd2;
    add.s32 %r1, %r63, 1; mov.b32 %r2, 0;
    LOOP: setp.eq.b32 %p1, %r1, 1; @%p1 bra DONE;
    and.b32 %r3, %r1, 1; setp.eq.b32 %p2, %r3, 0; @%p2 bra EVEN;
    mad.lo.s32 %r1, %r1, 3, 1; bra.uni NEXT;
    EVEN: shr.u32 %r1, %r1, 1;
    NEXT: add.s32 %r2, %r2, 1; bra.uni LOOP;
    DONE: activemask.b32 %r4; setp.eq.b32 %p3, %r4, -1; selp.b32 %r5, 1000, 0, %p3; add.s32 %r2, %r2, %r5;
    st.global.u32 [%rd1], %r2; ret;"""

    def steps(n):
        k = 0
        while n != 1:
            n, k = (3 * n + 1 if n % 2 else n // 2), k + 1
        return k
    d = Device(1 << 20)
    p = d.alloc(4 * 128)
    d.launch(Module(module(body)), "k", (2,), (64,), 0, [p, 0, 0])
    assert d.get(p, (128,), "u4").tolist() == [steps(i + 1) + 1000 for i in range(128)]
    assert d.stats.blocks == 2 and d.stats.launches == 1 and d.stats.instructions > 128 * 10


def test_early_exit_and_guards():
    body = THREAD + """ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, 4; add.s64 %rd1, %rd1, %rd2;
    setp.ge.u32 %p1, %r63, 40; @%p1 ret;
    setp.lt.u32 %p2, %r63, 10; mov.b32 %r1, 5; @%p2 add.s32 %r1, %r1, %r63; @!%p2 st.global.u32 [%rd1+400], %r63;
    st.global.u32 [%rd1], %r1; ret;"""
    d = Device(1 << 20)
    p = d.put(np.zeros(200, "u4"))
    d.launch(Module(module(body)), "k", (2,), (32,), 0, [p, 0, 0])
    got = d.get(p, (200,), "u4")
    assert got[:40].tolist() == [5 + i if i < 10 else 5 for i in range(40)] and not got[40:100].any()
    assert got[110:140].tolist() == list(range(10, 40))


def test_order_of_blocks():
    """A cold block behind a loop must run before the loop's exit."""
    graph = {0: [1], 1: [2, 5], 2: [3, 6], 3: [1], 5: [], 6: [3]}
    order = arrange(graph, 0)
    at = {n: i for i, n in enumerate(order)}
    assert sorted(order) == sorted(graph) and at[6] < at[5] and at[6] < at[3] and order[0] == 0
    deep = {i: [i + 1] for i in range(5000)} | {5000: [0]}
    assert arrange(deep, 0) == list(range(5001))
    two_heads = {0: [1, 2], 1: [2, 3], 2: [1], 3: []}
    assert arrange(two_heads, 0)[-1] == 3


def test_grid_and_block_axes():
    body = """mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.s32 %r4, %r1, %r2, %r3;
    mov.u32 %r5, %tid.z; mov.u32 %r6, %ntid.y; mov.u32 %r7, %tid.y; mad.lo.s32 %r8, %r5, %r6, %r7;
    mov.u32 %r9, %ntid.x; mov.u32 %r10, %tid.x; mad.lo.s32 %r8, %r8, %r9, %r10; mad.lo.s32 %r11, %r4, 24, %r8;
    ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r11, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r11; ret;"""
    d = Device(1 << 20, lanes=64)
    p = d.alloc(4 * 24 * 15)
    d.launch(Module(module(body)), "k", (3, 5), (2, 3, 4), 0, [p, 0, 0])
    assert np.array_equal(d.get(p, (360,), "u4"), np.arange(360))


# ---- barriers and races ---------------------------------------------------------------------------------------------

NEIGHBOUR = THREAD + """.shared .align 4 .b8 tile[256];
    mov.b64 %rd1, tile; mul.wide.u32 %rd2, %r60, 4; add.s64 %rd3, %rd1, %rd2; st.shared.u32 [%rd3], %r63;
    BARRIER
    xor.b32 %r1, %r60, 63; mul.wide.u32 %rd4, %r1, 4; add.s64 %rd4, %rd1, %rd4; ld.shared.u32 %r2, [%rd4];
    ld.param.b64 %rd5, [p0]; mul.wide.u32 %rd6, %r63, 4; add.s64 %rd5, %rd5, %rd6; st.global.u32 [%rd5], %r2; ret;"""


def launch(body: str, block: int = 64, grid: int = 2, size: int = 1 << 12, extra: str = "", **options) -> Device:
    d = Device(1 << 20, **options)
    p = d.alloc(size, "result")
    d.result = p  # type: ignore[attr-defined]
    d.launch(Module(module(body, extra=extra)), "k", (grid,), (block,), 0, [p, 0, 0])
    return d


def test_barrier_orders_shared_memory():
    d = launch(NEIGHBOUR.replace("BARRIER", "bar.sync 0;"))
    got = d.get(d.result, (128,), "u4")
    assert got[:64].tolist() == list(range(63, -1, -1)) and d.stats.barriers == 2


def test_a_missing_barrier_is_a_race():
    with pytest.raises(RaceFault, match=r"race.*ld\.shared"):
        launch(NEIGHBOUR.replace("BARRIER", ""))
    launch(NEIGHBOUR.replace("BARRIER", ""), races=False)


@pytest.mark.parametrize("second", ("st.shared.u32 [%rd3], %r1;", "st.shared.u32 [%rd1], %r1;"))
def test_writes_race(second):
    body = NEIGHBOUR.replace("BARRIER", "bar.sync 0;").replace("ld.param.b64 %rd5", second + " ld.param.b64 %rd5", 1)
    with pytest.raises(RaceFault, match="write"):
        launch(body)


def test_a_barrier_that_some_threads_miss():
    body = NEIGHBOUR.replace("BARRIER", "setp.gt.u32 %p1, %r60, 40; @%p1 bra OVER; bar.sync 0; OVER:")
    with pytest.raises((BarrierFault, RaceFault)):
        launch(body)
    body = THREAD + "setp.gt.u32 %p1, %r60, 40; @%p1 ret; bar.sync 0; ret;"
    with pytest.raises(BarrierFault, match="41 of 64 threads"):
        launch(body)


def test_one_warp_at_two_barriers():
    body = THREAD + """setp.gt.u32 %p1, %r60, 40; @%p1 bra OTHER; bar.sync 0; bra.uni END;
    OTHER: bar.sync 0; END: ret;"""
    with pytest.raises(BarrierFault, match="one warp"):
        launch(body)


def test_named_barriers_of_half_a_block():
    body = THREAD + """shr.u32 %r1, %r60, 5; add.s32 %r2, %r1, 1; bar.sync %r2, 32; bar.sync 0; ret;"""
    with pytest.raises(SimulatorError):  # the number must be the same in all threads that run the instruction
        launch(body)
    body = THREAD + """setp.lt.u32 %p1, %r60, 32; @%p1 bra LOW; bar.sync 2, 32; bra.uni END;
    LOW: bar.sync 1, 32; END: bar.sync 0; ret;"""
    assert launch(body).stats.barriers == 6


def test_shuffles_need_the_whole_warp():
    body = THREAD + "setp.gt.u32 %p1, %r60, 40; @%p1 ret; shfl.sync.bfly.b32 %r1|%p2, %r60, 1, 31, -1; ret;"
    with pytest.raises(BarrierFault, match="shfl"):
        launch(body)


def test_endless_loops_end():
    with pytest.raises(LaunchError, match="not ended"):
        launch(THREAD + "LOOP: add.s32 %r1, %r1, 1; bra.uni LOOP;", max_steps=1000)


# ---- other faults ---------------------------------------------------------------------------------------------------

STORE = THREAD + """ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, 4; add.s64 %rd1, %rd1, %rd2;
st.global.u32 [%rd1OFFSET], %r63; ret;"""


def test_out_of_bounds_names_the_thread():
    launch(STORE.replace("OFFSET", ""), size=512)
    with pytest.raises(MemoryFault, match=r"next to result.*\n.*block 1, thread 63"):
        launch(STORE.replace("OFFSET", ""), size=508)
    with pytest.raises(MemoryFault, match="block 0, thread 0"):
        launch(STORE.replace("OFFSET", "+-4"), size=512)


def test_misaligned_access():
    with pytest.raises(MemoryFault, match="multiple of 4"):
        launch(STORE.replace("OFFSET", "+2"), size=1024)


def test_freed_memory_is_gone():
    d = Device(1 << 20)
    p = d.alloc(512)
    d.free(p)
    with pytest.raises(MemoryFault):
        d.launch(Module(module(STORE.replace("OFFSET", ""))), "k", (2,), (64,), 0, [p, 0, 0])
    with pytest.raises(LaunchError):
        d.free(p)
    q = d.alloc(512)
    assert (d.get(q, (512,), "u1") == 0xFF).all()  # nothing of what was there before
    with pytest.raises(MemoryFault):
        d.get(q, (513,), "u1")
    with pytest.raises(MemoryError):
        d.alloc(1 << 21)


def test_allocations_come_back_whole():
    d = Device(1 << 16)
    held = [d.alloc(3000) for _ in range(8)]
    for p in (*held[::2], *held[1::2]):
        d.free(p)
    assert d.memory.live == 0 and d.alloc(40000)


def test_shared_memory_starts_poisoned_and_is_bounded():
    body = THREAD + """.shared .align 4 .b8 tile[256]; mov.b64 %rd1, tile; mul.wide.u32 %rd2, %r60, 4;
    add.s64 %rd1, %rd1, %rd2; ld.shared.u32 %r1, [%rd1OFFSET]; ld.param.b64 %rd3, [p0]; mul.wide.u32 %rd4, %r63, 4;
    add.s64 %rd3, %rd3, %rd4; st.global.u32 [%rd3], %r1; ret;"""
    d = launch(body.replace("OFFSET", ""))
    assert (d.get(d.result, (128,), "u4") == 2**32 - 1).all()
    with pytest.raises(MemoryFault, match="outside the 256 bytes of shared"):
        launch(body.replace("OFFSET", "+4"))


def test_dynamic_shared_memory():
    body = THREAD + """mov.b64 %rd1, dyn; mul.wide.u32 %rd2, %r60, 4; add.s64 %rd1, %rd1, %rd2;
    st.shared.u32 [%rd1], %r1; ret;"""
    m = Module(module(body, extra=".extern .shared .align 16 .b8 dyn[];"))
    d = Device(1 << 20)
    d.launch(m, "k", (1,), (64,), 256, [0, 0, 0])
    with pytest.raises(MemoryFault):
        d.launch(m, "k", (1,), (64,), 252, [0, 0, 0])


@pytest.mark.parametrize("line", ["wgmma.fence.sync.aligned;", "add.oddly.s32 %r1, %r1, %r1;",
                                  "tex.2d.v4.f32 %r1, [p0];", "cvt.f32.f64 %r1;", "call.uni helper;",
                                  "setp.maybe.s32 %p1, %r1, %r2;",
                                  "ld.global.nc.secret.b32 %r1, [%rd1];", "cvt.s32.f32 %r1, %r2;"])
def test_unknown_instructions_are_named(line):
    text = module(THREAD + line + " ret;")
    with pytest.raises(PtxError, match=line.split()[0].rstrip(";").replace(".", r"\.")):
        Module(text).kernel("k")


@pytest.mark.parametrize("text", [".version 7.8\n.target sm_90\n.address_size 32\n",
                                  HEAD + ".func (.param .b32 r) f() { }",
                                  HEAD + ".entry k( { ret; }", HEAD + "\x01", HEAD + ".entry k() .unheard { ret; }"])
def test_text_outside_the_grammar(text):
    with pytest.raises(PtxError):
        parse(text)


def test_branches_to_nowhere():
    with pytest.raises(PtxError, match="NOWHERE"):
        Module(module("bra NOWHERE; ret;")).kernel("k")


def test_launches_that_cannot_be():
    m = Module(module("ret;", directives=".reqntid 64"))
    d = Device(1 << 16)
    d.launch(m, "k", (1,), (64,), 0, [0, 0, 0])
    for grid, block, shared, args in [((0,), (64,), 0, [0] * 3), ((1,), (32,), 0, [0] * 3),
                                      ((1,), (64,), 1 << 20, [0] * 3), ((1,), (64,), 0, [0] * 2)]:
        with pytest.raises(SimulatorError):
            d.launch(m, "k", grid, block, shared, args)
    with pytest.raises(LaunchError, match="no kernel"):
        d.launch(m, "other", (1,), (64,), 0, [0] * 3)
    with pytest.raises(LaunchError, match="trap"):
        d.launch(Module(module("trap; ret;")), "k", (1,), (64,), 0, [0] * 3)


def test_scalar_arguments_by_type():
    text = (HEAD + ".visible .entry k(.param .u64 p, .param .f32 a, .param .u16 b, .param .align 8 .b8 c[16]) {\n"
            ".reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .b16 %rs<4>;\n"
            "ld.param.u64 %rd1, [p]; ld.param.f32 %r1, [a]; ld.param.u16 %rs1, [b]; ld.param.b64 %rd2, [c+8];\n"
            "st.global.b32 [%rd1], %r1; st.global.b16 [%rd1+4], %rs1; st.global.b64 [%rd1+8], %rd2; ret; }")
    d = Device(1 << 16)
    p = d.alloc(16)
    d.launch(Module(text), "k", (1,), (1,), 0, [p, 1.5, 7, bytes(range(16))])
    assert d.get(p, (1,), "f4")[0] == 1.5 and d.get(p + 4, (1,), "u2")[0] == 7
    assert d.get(p + 8, (8,), "u1").tolist() == list(range(8, 16))


def test_memory_transactions_are_counted():
    def count(stride):
        body = THREAD + f"""ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, {stride}; add.s64 %rd1, %rd1, %rd2;
        ld.global.u32 %r1, [%rd1]; .shared .align 4 .b8 tile[8192]; mov.b64 %rd3, tile;
        mul.wide.u32 %rd4, %r60, {stride}; add.s64 %rd3, %rd3, %rd4; st.shared.u32 [%rd3], %r1; ret;"""
        return launch(body, size=1 << 14, profile=True).stats
    tight, loose = count(4), count(128)
    assert tight.sectors == tight.ideal_sectors == 16 and tight.wavefronts == tight.ideal_wavefronts == 4
    assert loose.sectors == 128 and loose.wavefronts == 32 * 4 and loose.requests == 4


def test_every_row_of_the_table_is_tested():
    """The rows named nowhere in this file are the ones of other families with the same code."""
    with open(__file__, encoding="utf-8") as f:
        text = f.read()
    quiet = {"ldu", "mad24", "membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard",
             "applypriority", "barrier", "st", "ld", "atom", "red", "bar", "trap"}
    missing = [r for r in ROWS if f"{r}." not in text and r not in quiet]
    assert not missing
