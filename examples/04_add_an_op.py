"""A new operation is one record: meaning, lowering, derivative, accuracy, domain.

    python examples/04_add_an_op.py

Everything else follows from the record: tracing checks its types, kernels fuse it, gradients flow through it, the
interpreter runs its NumPy meaning, and the text of graphs shows it by name.  Inside flowc the record would stand in
flowc/ops/elementwise.py, and the generated tests would cover it from then on.
"""

from __future__ import annotations

import numpy as np

import flowc
from flowc.numpy_core import emit, tensor
from flowc.ops.elementwise import unary
from flowc.ops.rules import bound, n
from flowc.trace import read, wrap


def softsign_value(x):
    return x / (1 + np.abs(x))


SOFTSIGN = unary(
    "softsign", "x / (1 + |x|).",
    softsign_value,                                                      # the meaning: the oracle of every test
    scalar=lambda b, x: b.div(x, b.add(b.abs(x), 1.0)),                  # the lowering: an expression of the loop IR
    vjp=lambda g, y, x: (n.div(g, n.mul(n.add(n.abs(x), 1.0), n.add(n.abs(x), 1.0))),),
    ulp=bound(2), domain=(-8.0, 8.0))


def softsign(x):
    """The function that programs call: records one node."""
    return wrap(emit("softsign", read(tensor(x))))


def loss(x):
    return (softsign(2 * x) + 1).sum()


def main() -> None:
    x = np.linspace(-3, 3, 7)
    print(flowc.jit(loss).lower(x).as_text("graph"))

    value, slope = flowc.value_and_grad(loss)(x)
    np.testing.assert_allclose(value, (softsign_value(2 * x) + 1).sum(), rtol=1e-14)
    step = 1e-6
    for i, one in enumerate(np.eye(len(x))):
        up, down = ((softsign_value(2 * (x + s * one)) + 1).sum() for s in (step, -step))
        assert abs(slope[i] - (up - down) / (2 * step)) < 1e-5
    print("value and gradient agree with NumPy and finite differences")
    print(flowc.verify(loss, x))


if __name__ == "__main__":
    main()
