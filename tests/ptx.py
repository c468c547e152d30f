"""PTX written by hand: a kernel around one instruction, operands with special values, comparing bits."""

from __future__ import annotations

import itertools

import numpy as np

from flowc.backends.cuda.sim import (
    Device,
    Module,
)

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
