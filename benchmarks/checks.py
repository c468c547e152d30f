"""Small measurements behind numbers in the README: ``python -m benchmarks check [NAME ...]``.

Here: small, self-contained measurements against NumPy in the same process, interleaved, medians and ratios.
Not here: correctness (tests/).  Every measurement is a function in TABLE; its first docstring line is its help.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

THREADS = "1"


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds per call; one call of each in turn, so that all see the same machine."""
    for fn in calls.values():
        fn()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, fn in calls.items():
            start = time.perf_counter()
            fn()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in samples.items()}


def many(fn: Callable[[], object], count: int) -> Callable[[], object]:
    def loop() -> None:
        for _ in range(count):
            fn()
    return loop


def chain() -> str:
    """Ten elementwise operations on ten million float32, one thread, against NumPy."""
    import numpy as np

    import flowc

    def f(x, y):
        z = x * y + x
        z = z * 0.5 - y
        z = abs(z) + 1.0
        z = np.sqrt(z) * x
        return np.maximum(z, y) - 0.25

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(10_000_000, dtype=np.float32) for _ in range(2))
    fast = flowc.jit(f)
    assert np.array_equal(fast(x, y), f(x, y)), "flowc and NumPy differ"
    t = interleaved({"numpy": lambda: f(x, y), "flowc": lambda: fast(x, y)}, 15)
    return (f"numpy {t['numpy'] * 1e3:.1f} ms, flowc {t['flowc'] * 1e3:.1f} ms: "
            f"{t['numpy'] / t['flowc']:.2f} times faster")


def matmul() -> str:
    """Matrix product 1024 x 1024 x 1024 float32, one thread, against NumPy's BLAS."""
    import numpy as np

    import flowc
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1024, 1024), dtype=np.float32) for _ in range(2))
    fast = flowc.jit(lambda a, b: a @ b)
    exact = a.astype(np.float64) @ b
    assert np.abs(fast(a, b) - exact).max() < 1e-3, "wrong product"
    t = interleaved({"numpy": lambda: a @ b, "flowc": lambda: fast(a, b)}, 25)
    rate = {name: 2 * 1024 ** 3 / s / 1e9 for name, s in t.items()}
    return (f"numpy {t['numpy'] * 1e3:.2f} ms ({rate['numpy']:.0f} GFLOP/s), flowc {t['flowc'] * 1e3:.2f} ms "
            f"({rate['flowc']:.0f} GFLOP/s): {100 * t['numpy'] / t['flowc']:.0f} % of NumPy's speed")


def call() -> str:
    """A small call, e = (a + b) * (b + 1) on ten float32, against NumPy's three calls."""
    import numpy as np

    import flowc
    a, b = np.arange(10, dtype=np.float32), np.ones(10, np.float32)
    fast = flowc.jit(lambda a, b: (a + b) * (b + 1))
    fast(a, b)
    t = interleaved({"numpy": many(lambda: (a + b) * (b + 1), 1000), "flowc": many(lambda: fast(a, b), 1000)}, 25)
    return f"numpy {t['numpy'] * 1e6:.0f} ns, flowc {t['flowc'] * 1e6:.0f} ns per call"


def import_time() -> str:
    """``import flowc`` beyond NumPy's own import, best of seven processes."""
    def best(code: str) -> float:
        times = []
        for _ in range(7):
            out = subprocess.run([sys.executable, "-c", "import time; s = time.perf_counter(); " + code
                                  + "; print(time.perf_counter() - s)"], capture_output=True, text=True, check=True)
            times.append(float(out.stdout))
        return min(times)
    alone, both = best("import numpy"), best("import numpy, flowc")
    return f"numpy alone {alone * 1e3:.0f} ms, with flowc {both * 1e3:.0f} ms: {1e3 * (both - alone):.0f} ms more"


_FIRST = """
import os, time
os.environ["FLOWC_CACHE"] = "0"
import numpy as np, flowc
{warm}
def f(x, y):
    for _ in range(5):
        x = np.maximum(x * y + 1.5, -x) - y
    return x
x = np.ones(1000, np.float32)
g = flowc.jit(f)
s = time.perf_counter()
g(x, x)
print(time.perf_counter() - s)
"""


def first_call() -> str:
    """First call of a 20-operation elementwise function without a disk cache, with and without LLVM's own loading."""
    def best(warm: str) -> float:
        command = [sys.executable, "-c", _FIRST.format(warm=warm)]
        return min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5))
    return (f"{best('') * 1e3:.0f} ms in a fresh process (LLVM is loaded in it), "
            f"{best('flowc.jit(lambda a: a - 1)(np.ones(3))') * 1e3:.0f} ms after another compile")


def passes() -> str:
    """Time of the graph passes per node for graphs of 100, 1,000 and 10,000 operations."""
    import numpy as np

    import flowc
    from flowc.passes.manager import PassContext
    from flowc.passes.pipeline import optimise
    out = []
    for n in (100, 1000, 10000):
        def f(x, y, n=n):
            for i in range(n // 4):
                x = np.tanh(x * y + float(i)) - y
            return x
        graph = flowc.jit(f).lower(np.ones(8, np.float32), np.ones(8, np.float32)).graph
        start = time.perf_counter()
        optimise(graph, PassContext())
        out.append(f"{n}: {(time.perf_counter() - start) / n * 1e6:.0f} us")
    return "per operation, " + ", ".join(out)


TABLE = {"chain": chain, "matmul": matmul, "call": call, "import": import_time, "first-call": first_call,
         "passes": passes}


def run(names: list[str]) -> None:
    """Print the measurements of these names, of all for none; in a process where BLAS has one thread."""
    names = names or list(TABLE)
    unknown = [n for n in names if n not in TABLE]
    if unknown:
        raise SystemExit(f"no measurement {', '.join(unknown)}; there are {', '.join(TABLE)}")
    if os.environ.get("OMP_NUM_THREADS") != THREADS:  # BLAS reads these when NumPy is loaded
        env = {**os.environ, "OMP_NUM_THREADS": THREADS, "OPENBLAS_NUM_THREADS": THREADS, "FLOWC_NUM_THREADS": THREADS}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # starting from source text is not what users do
        raise SystemExit(subprocess.run([sys.executable, "-m", "benchmarks", "check", *names], env=env,
                                        check=False).returncode)
    for name in names:
        print(f"{name}: {TABLE[name]()}", flush=True)
