"""Measuring workloads on all libraries side by side, in rounds, with results kept after each.

Here: starting workers, the order of samples, medians, the results file and resuming.  Not here: what a worker does
(worker.py), what is made of the results (report.py, plots.py).

All libraries of a row stay loaded, each in a process of its own; a round takes one sample of each in rotating order.
Machines are shared and change their speed, so only figures of one row are compared; ``roof`` is in the row too.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import select as selecting
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import PEERS, environment

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLEAN = 0.02       # part of a sample's time lost to other processes that still counts as undisturbed
SETTLE_S = 0.003   # a library whose threads ran for less than a tenth of this has come to rest
RESTLESS = 100     # such waits at most: threads of some spin for a while before they sleep
OURS = ("roof", "flowc")  # run under this Python unless told otherwise


@dataclass(frozen=True)
class Setting:
    """Number of threads and the heap: ``default`` or ``kept``."""

    threads: int
    heap: str = "default"

    @property
    def name(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}, {self.heap} heap"


@dataclass
class Options:
    """pythons: interpreter by library, "" for all others.  patience: seconds that one answer may take."""

    peers: Sequence[str] = tuple(PEERS)
    pythons: dict[str, str] = field(default_factory=dict)
    rounds: int = 7
    patience: float = 240.0
    scale: float = 1.0
    sample_s: float = 0.03
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def python(self, peer: str) -> str:
        return self.pythons.get(peer) or (sys.executable if peer in OURS else self.pythons.get("") or sys.executable)


class Process:
    """A worker, started when first asked; asked again after it died, it starts anew."""

    def __init__(self, peer: str, setting: Setting, python: str, cache: str, patience: float):
        self.peer, self.setting, self.python, self.cache, self.patience = peer, setting, python, cache, patience
        self.running: subprocess.Popen[str] | None = None

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        if self.running is None or self.running.poll() is not None:
            path = os.pathsep.join(p for p in (ROOT, os.environ.get("PYTHONPATH", "")) if p)
            env = {**os.environ, **environment(self.setting.threads, self.setting.heap, self.cache), "PYTHONPATH": path}
            try:
                self.running = subprocess.Popen(
                    [self.python, "-m", "benchmarks.worker", self.peer, str(self.setting.threads)], cwd=ROOT, env=env,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)
            except OSError as e:
                return {"skip": f"{self.python}: {e.strerror}"}
        p = self.running
        assert p.stdin is not None and p.stdout is not None
        try:
            p.stdin.write(json.dumps({"do": do, **what}) + "\n")
            p.stdin.flush()
            ready, _, _ = selecting.select([p.stdout], [], [], self.patience)
            line = p.stdout.readline() if ready else ""
        except OSError:
            ready, line = [p], ""
        if line:
            return json.loads(line)
        self.stop()
        return {"fail": f"ended with code {p.returncode}" if ready else f"over {self.patience:.0f} s"}

    def _ran(self) -> int:
        """Nanoseconds that the process's threads have run."""
        total = 0
        if self.running is not None:
            for path in glob.glob(f"/proc/{self.running.pid}/task/*/schedstat"):
                with contextlib.suppress(OSError, IndexError, ValueError), open(path) as f:
                    total += int(f.read().split()[0])
        return total

    def settle(self) -> None:
        """Wait until the process rests: idle threads that spin would slow down whoever is measured next."""
        for _ in range(RESTLESS):
            before = self._ran()
            time.sleep(SETTLE_S)
            if self._ran() - before < SETTLE_S * 1e8:
                return

    def stop(self) -> None:
        if self.running is not None:
            with contextlib.suppress(OSError):
                if self.running.stdin is not None:
                    self.running.stdin.close()
            try:
                self.running.wait(2)
            except subprocess.TimeoutExpired:
                self.running.kill()
                self.running.wait()
            self.running = None


# ---- results --------------------------------------------------------------------------------------------------------

class Results:
    """A JSON file: ``machine``, ``cache``, and sections of results; written whole after every change."""

    def __init__(self, path: str):
        self.path = path
        self.data: dict[str, Any] = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                self.data = json.load(f)
        self.data["machine"] = machine()

    def section(self, *names: str) -> dict[str, Any]:
        at = self.data
        for n in names:
            at = at.setdefault(n, {})
        return at

    def save(self) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with open(self.path + ".part", "w", encoding="utf-8") as f:
            json.dump(self.data, f, indent=1, sort_keys=True)
            f.write("\n")
        os.replace(self.path + ".part", self.path)

    @property
    def cache(self) -> str:
        """A folder for the libraries' compiled code that belongs to these results."""
        name = hashlib.sha256(os.path.abspath(self.path).encode()).hexdigest()[:12]
        path = os.path.join(tempfile.gettempdir(), f"flowc-benchmarks-{name}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def took(self, seconds: float) -> None:
        self.data["seconds"] = round(self.data.get("seconds", 0.0) + seconds, 1)


def machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), name)
    with contextlib.suppress(ImportError):
        from flowc.backends.llvm.engine import host
        name += f" ({host().cpu})"
    return {"processor": name, "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else os.cpu_count(), "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version()}


def marked(cache: str, key: str) -> bool:
    """Was this compiled with this cache before?  Remembers that it is now."""
    path = os.path.join(cache, "seen-" + hashlib.sha256(key.encode()).hexdigest()[:24])
    if os.path.exists(path):
        return True
    with open(path, "w"):
        return False


# ---- one row --------------------------------------------------------------------------------------------------------

class Bench:
    """Workers of one setting."""

    def __init__(self, setting: Setting, options: Options, cache: str):
        self.setting, self.options, self.cache = setting, options, cache
        self.workers = {p: self._process(p) for p in options.peers}
        self.judge = Process("numpy", Setting(1), sys.executable, "", options.patience)  # float64 results
        self.missing: dict[str, str] = {}

    def _process(self, peer: str) -> Process:
        o = self.options
        return Process(peer, self.setting, o.python(peer), self.cache if PEERS[peer].cached else "", o.patience)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        for p in [*self.workers.values(), self.judge]:
            p.stop()

    def row(self, key: str, what: dict[str, Any], peers: Sequence[str] | None = None) -> dict[str, Any]:
        """Figures of one workload: by library, and its ``work``."""
        o = self.options
        handle, path = tempfile.mkstemp(suffix=".npz")
        os.close(handle)
        what = {**what, "file": path, "scale": o.scale, "sample_s": o.sample_s}
        try:
            work = self.judge.ask("reference", **what)
            if "flops" not in work:
                return {"work": work}
            out: dict[str, Any] = {"work": work}
            for p in peers or self.workers:
                if p in self.missing:
                    out[p] = {"skip": self.missing[p]}
                    continue
                out[p] = self.workers[p].ask("prepare", **what, work=[work["flops"], work["read"], work["written"]])
                if "not installed" in out[p].get("skip", ""):
                    self.missing[p] = out[p]["skip"]
                    o.say(f"{p} is skipped: {out[p]['skip']}")
                elif "first_ms" in out[p]:
                    out[p]["disk"] = PEERS[p].cached and bool(self.cache) and marked(self.cache, f"{key} {p} {o.scale}")
            self._rounds(out)
        finally:
            os.unlink(path)
        return out

    def _rounds(self, out: dict[str, Any]) -> None:
        live = [p for p in out if "first_ms" in out[p]]
        samples: dict[str, list[dict[str, float]]] = {p: [] for p in live}
        for p in live:
            self.workers[p].settle()
        for r in range(self.options.rounds):
            for i in range(len(live)):
                p = live[(i + r) % len(live)]
                if "fail" in out[p]:
                    continue
                got = self.workers[p].ask("time")
                self.workers[p].settle()
                if "s" in got:
                    samples[p].append(got)
                else:
                    out[p] |= got
        for p in live:
            out[p] |= figures(samples[p])
            if "ms" in out[p]:
                out[p]["compile_ms"] = max(0.0, out[p]["first_ms"] - out[p]["ms"])
            for k, v in out[p].items():
                if isinstance(v, float):
                    out[p][k] = float(f"{v:.5g}")


def figures(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median and spread of the undisturbed samples; of the least disturbed half where there are few."""
    if not samples:
        return {}
    by_delay = sorted(samples, key=lambda s: s["delayed"])
    clean = [s["s"] for s in by_delay if s["delayed"] <= CLEAN]
    least = -(-len(samples) // 2)
    used = sorted(clean if len(clean) >= least else [s["s"] for s in by_delay[:least]])
    return {"ms": statistics.median(used) * 1e3, "low_ms": used[0] * 1e3, "high_ms": used[-1] * 1e3,
            "clean": len(clean), "samples": len(samples)}


def told(row: dict[str, Any]) -> str:
    """A line for whoever waits."""
    parts = []
    for p, r in row.items():
        if p == "work":
            if "flops" not in r:
                parts.append(f"no reference: {r}")
        elif "ms" in r:
            parts.append(f"{p} {r['ms']:.3g}" + ("" if r.get("ok", True) else f" WRONG ({r['error']:.1e})"))
        else:
            parts.append(f"{p} -" if "skip" in r else f"{p} failed")
    return ", ".join(parts)


def run(names: Sequence[str], settings: Sequence[Setting], options: Options, results: Results,
        again: bool = False) -> None:
    """Measure workloads under each setting; those that the results have are left out unless ``again``."""
    start = time.perf_counter()
    for setting in settings:
        rows = results.section("runs", setting.name)
        todo = [n for n in names if again or not set(options.peers) <= set(rows.get(n, {}))]
        if not todo:
            options.say(f"{setting.name}: all measured")
            continue
        with Bench(setting, options, results.cache) as bench:
            for i, n in enumerate(todo):
                began = time.perf_counter()
                rows[n] = {**rows.get(n, {}), **bench.row(n, {"workload": n})}
                results.took(time.perf_counter() - began)
                results.save()
                options.say(f"[{setting.name} {i + 1}/{len(todo)}] {n}: {told(rows[n])}")
    options.say(f"took {time.perf_counter() - start:.0f} s; "
                f"all rows of the file took {results.data.get('seconds', 0):.0f} s")
