"""The graph layer: placeholders, variables, a session; feed any node, fetch any node, run update ops.

    python examples/06_session.py

The graph is e = (a + b) * (b + 1).  Compiled without fusion, its plan shows that a + b and b + 1 do not wait for each
other: both stand in wave 0 and may run side by side; the product follows in wave 1.
"""

from __future__ import annotations

import numpy as np

import flowc


def main() -> None:
    g = flowc.Graph()
    with g.as_default():
        a = flowc.placeholder("float32", [None], name="a")
        b = flowc.placeholder("float32", [None], name="b")
        c = a + b
        d = b + 1
        e = c * d

    with flowc.Session(g) as session:
        two, three = np.float32([2, 4]), np.float32([1, 3])
        print("e with a and b fed:   ", session.run(e, feed_dict={a: two, b: three}))
        print("c and e in one run:   ", session.run({"c": c, "e": e}, feed_dict={a: two, b: three}))
        print("e with c fed, no a:   ", session.run(e, feed_dict={c: np.float32([10, 20]), b: three}))
        print("e with c and d fed:   ", session.run(e, feed_dict={c: two, d: three}))

        with flowc.options(fuse=False):
            plan = session.compile(e, [a, b]).as_text("plan")
        print("\nthe plan without fusion:")
        print(plan)

    with g.as_default():
        w = flowc.Variable(np.float32([5, -3]), name="w")
        target = flowc.placeholder("float32", [2], name="target")
        loss = ((w - target) * (w - target)).sum()
        step = flowc.train.GradientDescentOptimizer(0.1).minimize(loss)  # its update is part of the graph
        start = flowc.global_variables_initializer()

    with flowc.Session(g) as session:
        session.run(start)
        for _ in range(40):
            _, value = session.run([step, loss], feed_dict={target: two})
        print(f"loss after 40 steps: {value:.6f}, w: {session.run(w)} (target: {two})")


if __name__ == "__main__":
    main()
