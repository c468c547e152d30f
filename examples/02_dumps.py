"""Every stage of one compile, as text: what was traced, what the passes made of it, what runs.

    python examples/02_dumps.py [stage ...]     # graph optimized plan kernel llvm asm ptx; default: all

With FLOWC_DUMP_DIR=folder every compile of any program writes the same texts, one file per pass.
"""

from __future__ import annotations

import sys

import numpy as np

import flowc


@flowc.jit
def row_softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def main() -> None:
    lowered = row_softmax.lower(flowc.spec("f32[n, 10]"))
    exe = lowered.compile(device="cpu")
    stages = {"graph": lambda: lowered.as_text("graph")}
    stages |= {name: lambda name=name: exe.as_text(name) for name in ("plan", "kernel", "llvm", "asm")}
    stages["ptx"] = lambda: lowered.compile(device="cuda").as_text("ptx")
    wanted = sys.argv[1:] or list(stages)
    unknown = [w for w in wanted if w not in stages]
    if unknown:
        sys.exit(f"error: no stage {unknown[0]!r}; there are {' '.join(stages)}")
    with flowc.options(gpu="sim"):  # PTX is text: no GPU is needed to read it
        for name in wanted:
            print(f"---- {name} " + "-" * (100 - len(name)))
            print(stages[name]().rstrip())
    x = np.linspace(-3, 3, 30, dtype=np.float32).reshape(3, 10)
    np.testing.assert_allclose(row_softmax(x).sum(axis=1), 1, rtol=1e-6)
    print("---- rows sum to one")


if __name__ == "__main__":
    main()
