"""A process that measures one library: commands as lines of JSON on standard input, answers on standard output.

Here: building, checking against float64, timing, memory.  Not here: who asks what when (rounds.py), the libraries
(peers.py).

``python -m benchmarks.worker PEER THREADS`` runs under the library's own Python; it needs NumPy and the library.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cases import SEED, Draw, Workload, elements, everything
from benchmarks.irregular import random_graph, random_plan
from benchmarks.peers import PEERS, Numpy, Peer
from benchmarks.spaces import Missing

SAMPLE_S, MOST_CALLS = 0.03, 20_000


def delayed() -> float:
    """Seconds that this process's threads were ready to run and did not, and that the host took from the machine."""
    waited = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError), open(path) as f:
            waited += int(f.read().split()[1])
    stolen = 0.0
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/stat") as f:
        stolen = int(f.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    return waited * 1e-9 + stolen


def sample(call: Callable[[], Any], count: int) -> dict[str, float]:
    """Seconds per call, and the part of the time that something else took; one call first, to find its place again."""
    call()
    late, start = delayed(), time.perf_counter()
    for _ in range(count):
        call()
    took = time.perf_counter() - start
    return {"s": took / count, "delayed": (delayed() - late) / took}


def memory() -> dict[str, float]:
    """MiB: resident now, and the most since the peak was reset."""
    out = {}
    with contextlib.suppress(OSError), open("/proc/self/status") as f:
        for line in f:
            if line.startswith(("VmRSS", "VmHWM")):
                out[line[:5]] = int(line.split()[1]) / 1024
    return out


def reset_peak() -> None:
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest error by the largest magnitude of its result; for integers a thousandth of the part that differs."""
    if len(got) != len(want):
        return float("inf")
    worst = 0.0
    for g, w in zip(got, want):
        if g.size != w.size:
            return float("inf")
        g = g.reshape(w.shape)
        if not w.size:
            continue
        if w.dtype.kind in "iub":
            e = float(np.mean(g != w)) * 1e-3
        else:
            e = float(np.max(np.abs(g - w)) / (np.max(np.abs(w)) + 1e-30))
        worst = max(worst, e if e == e else float("inf"))
    return worst


def random_case(count: int) -> Workload:
    plan = random_plan(count)
    return Workload(f"random_{count}", "growth", lambda np, a, w: random_graph(np, plan, a, w),
                    lambda d: [d.normal(32, 32, by=0.3), d.normal(32, 32, by=0.3)], elements(count), tol=1e-2)


def find(what: dict[str, Any]) -> tuple[Workload, list[np.ndarray]]:
    """The workload of a command, and its arguments."""
    w = random_case(what["random"]) if "random" in what else everything()[what["workload"]]
    return w, w.make(Draw(what.get("scale", 1.0), SEED))


def wide(w: Workload, args: list[np.ndarray]) -> list[np.ndarray]:
    """The arguments in float64, after rounding to the dtype that the libraries get."""
    if w.dtype == "bfloat16":
        args = [_bf16(a) for a in args]
    return [a.astype(np.float64) if a.dtype.kind == "f" else a for a in args]


def _bf16(a: np.ndarray) -> np.ndarray:
    """float32 rounded to 8 bits of precision, to nearest even."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


class Worker:
    """Answers to commands; ``peer`` is loaded at the first that needs it."""

    def __init__(self, name: str, threads: int):
        self.name, self.threads = name, threads
        self.peer: Peer | None = None
        self.call: Callable[[], Any] | None = None

    def start(self) -> Peer:
        if self.peer is None:
            made = PEERS[self.name](self.threads)
            try:
                importlib.import_module(made.package)
            except ImportError as e:
                raise Missing(f"{made.package} is not installed ({e})") from None
            made.warm()
            self.peer = made
        return self.peer

    def reference(self, what: dict[str, Any]) -> dict[str, Any]:
        """float64 results into a file; work of the workload.  Only asked of NumPy."""
        w, args = find(what)
        peer = Numpy(1)
        peer.load(replace(w, dtype="float64"), wide(w, args))
        results = peer.arrays(peer.build()())
        np.savez(what["file"], *results)
        item = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}[w.dtype]
        written = sum(r.size * (item if r.dtype.kind == "f" else r.itemsize) for r in results)
        halves = w.dtype == "bfloat16"
        read = sum(a.nbytes // (2 if halves else 1) for a in args)
        if w.traffic is not None:
            total = w.traffic(args, written)
            read = total - written if total > written else total / 2
            written = min(written, total / 2) if total <= written else written
            if total > sum(a.nbytes for a in args) + written:  # several passes: half each way
                read = written = total / 2
        return {"flops": float(w.flops(*args)), "read": float(read), "written": float(written)}

    def prepare(self, what: dict[str, Any]) -> dict[str, Any]:
        """Build and call once, compare, find how many calls make a sample."""
        self.call = None
        peer = self.start()
        w, args = find(what)
        if self.name == "roof":
            peer.work = what["work"]  # type: ignore[attr-defined]
        peer.load(w, args)
        reset_peak()
        before = memory()
        start = time.perf_counter()
        call = peer.build()
        result = call()
        first = time.perf_counter() - start
        call()
        after = memory()
        out: dict[str, Any] = {"first_ms": first * 1e3, "peak_mib": after.get("VmHWM", 0.0),
                               "grown_mib": max(0.0, after.get("VmHWM", 0.0) - before.get("VmRSS", 0.0))}
        if self.name != "roof":
            with np.load(what["file"]) as z:
                out["error"] = error(peer.arrays(result), [z[k] for k in z.files])
            out["ok"] = out["error"] <= w.tol
        del result
        self.call = call
        self.count = max(1, min(MOST_CALLS, int(what.get("sample_s", SAMPLE_S) / max(sample(call, 1)["s"], 1e-9))))
        out["calls"] = self.count
        return out

    def time(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self.call is not None
        return sample(self.call, self.count)

    def answer(self, what: dict[str, Any]) -> dict[str, Any]:
        try:
            return getattr(self, what["do"])(what)
        except Missing as e:
            return {"skip": str(e)}
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # a library may raise anything
            text = str(e).strip().splitlines()
            return {"fail": f"{type(e).__name__}: {text[0][:160] if text else ''}"}


def main() -> None:
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not mix with answers
    if worker.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
