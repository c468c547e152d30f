"""A CUDA program without a GPU: the PTX that flowc emits runs on an interpreter inside the package.

    python examples/07_gpu_simulator.py

FLOWC_GPU=sim chooses the interpreter; FLOWC_GPU=auto runs the same text on a GPU.
"""

from __future__ import annotations

import numpy as np

import flowc


def row_softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def main() -> None:
    x = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    with flowc.options(gpu="sim"):
        on_gpu = flowc.jit(row_softmax, device="cuda")
        got = on_gpu(x)
        ptx = on_gpu.lower(x).compile(device="cuda").as_text("ptx")
    want = flowc.interpret(row_softmax, x)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    body = [line for line in ptx.splitlines() if line.strip() and not line.strip().startswith("//")]
    print(f"{len(body)} lines of PTX, the first ones:")
    print("\n".join(body[:14]))
    print("largest difference from the interpreter of graphs:", float(np.abs(got - want).max()))


if __name__ == "__main__":
    main()
