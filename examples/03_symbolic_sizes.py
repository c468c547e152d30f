"""One compile for all sizes.

    python examples/03_symbolic_sizes.py

A jitted function is compiled for the sizes of its first call.  When a size changes it is compiled once more with that
size as a symbol, and then never again for this rank and dtype.  With flowc.spec the symbols are there from the start.
"""

from __future__ import annotations

import numpy as np

import flowc


@flowc.jit
def centred(x):
    return x - x.mean(axis=0)


def main() -> None:
    rng = np.random.default_rng(0)
    with flowc.options(log=("recompiles",)):  # says on standard error why something is compiled
        for rows in (4, 9, 1000, 77, 0):
            x = rng.standard_normal((rows, 3)).astype(np.float32)
            y = centred(x) if rows else np.zeros((0, 3), np.float32)
            print(f"{rows:5} rows: largest column mean {np.abs(y.sum(axis=0) / max(rows, 1)).max(initial=0):.1e}")

    exe = centred.lower(flowc.spec("f32[n, 3]")).compile()
    print(exe.as_text("graph"))
    for rows in (2, 5, 1 << 16):
        x = rng.standard_normal((rows, 3)).astype(np.float32)
        np.testing.assert_allclose(exe(x), x - x.mean(axis=0), atol=1e-5)
    print("one executable, three sizes, NumPy's results")


if __name__ == "__main__":
    main()
