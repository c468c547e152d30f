"""What is not steady time: calls of tiny functions, imports, sizes on disk, and growth with size, threads and graph.

Read next: report.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.rounds import ROOT, Bench, Options, Results, Setting, told

# family -> (workload, scales); the sizes shown are of its first argument
SIZES: dict[str, tuple[str, tuple[float, ...]]] = {
    "elementwise chain": ("chain_10m", (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    "row softmax": ("softmax_8192x1024", (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)),
    "matrix product": ("matmul_2048_f32", (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)),
    "attention": ("attention_4x8x512x64", (1 / 8, 1 / 4, 1 / 2, 1.0)),
}
GRAPHS = (10, 100, 1000, 5000)
CAP_S = 120.0  # a library that needs longer for a graph is not asked for the next
SCALED = ("chain_10m", "softmax_8192x1024", "moments_columns_4096", "matmul_1024_f32", "jacobi_2048x10",
          "bodies_2048", "conv_3x3_8x64x56", "attention_4x8x512x64")

_IMPORT = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"

_SIZE = """
import json, os, re, sys
from importlib import metadata

def closure(name, seen):
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return
    try:
        dist = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    seen[name] = sum(os.path.getsize(f.locate()) for f in dist.files or [] if os.path.isfile(f.locate()))
    for r in dist.requires or []:
        if "extra ==" not in r:
            closure(re.match(r"[\\w.-]+", r)[0], seen)
    return seen

print(json.dumps(closure(sys.argv[1], {}) or {}))
"""


def footprint(peers: Sequence[str], options: Options, results: Results) -> None:
    """Import time (least of a few processes, interleaved) and installed size, with and without dependencies."""
    rows = results.section("footprint")
    named = list(dict.fromkeys(PEERS[p].package for p in peers))
    times: dict[str, list[float]] = {p: [] for p in named}
    env = {**os.environ, "PYTHONPATH": ROOT}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(options.rounds):
        for package in named:
            out = subprocess.run([options.python(package), "-c", _IMPORT.format(package)], capture_output=True,
                                 text=True, env=env, cwd=ROOT, check=False)
            if out.returncode == 0:
                times[package].append(float(out.stdout.split()[-1]))
    for package in named:
        if not times[package]:
            options.say(f"{package} is skipped: not installed")
            continue
        out = subprocess.run([options.python(package), "-c", _SIZE, package], capture_output=True, text=True, env=env,
                             cwd=ROOT, check=False)
        sizes = json.loads(out.stdout) if out.returncode == 0 else {}
        if package == "flowc":  # installed from a folder, a package has no files of its own on record
            sizes["flowc"] = sum(os.path.getsize(os.path.join(f, n)) for top in ("flowc", "passes", "backends")
                                 for f, _, ns in os.walk(os.path.join(ROOT, top)) for n in ns if n.endswith(".py"))
        rows[package] = {"import_s": round(min(times[package]), 4), "own_mib": round(sizes.get(package, 0) / 2**20, 2),
                         "all_mib": round(sum(sizes.values()) / 2**20, 1)}
    results.save()


def overhead(options: Options, results: Results) -> None:
    """Calls of functions of ten and a thousand elements: what is left is the call."""
    setting = Setting(1)
    with Bench(setting, options, results.cache) as bench:
        for name in ("tiny", "axpy_1k"):
            row = bench.row(name, {"workload": name})
            results.section("overhead")[name] = {p: {"us": round(r["ms"] * 1e3, 4)} for p, r in row.items()
                                                 if "ms" in r and r.get("ok") and p != "roof"}
            options.say(f"{name}: {told(row)}")
    results.save()


def sizes(options: Options, results: Results, threads: int, again: bool = False) -> None:
    """Run time over sizes."""
    for family, (name, scales) in SIZES.items():
        at = results.section("sizes", family)
        todo = [s for s in scales if again or not set(options.peers) <= set(at.get(f"{s:g}", {}))]
        if not todo:
            continue
        before = options.scale
        with Bench(Setting(threads, "kept"), options, results.cache) as bench:
            for s in todo:
                options.scale = s * before
                row = bench.row(f"{name}@{s:g}", {"workload": name})
                at[f"{s:g}"] = {p: r if p == "work" else _short(r) for p, r in row.items()}
                options.say(f"{family} x{s:g}: {told(row)}")
                results.save()
        options.scale = before


def threads(options: Options, results: Results, counts: Sequence[int], again: bool = False) -> None:
    """Run time over threads, on workloads that can be split."""
    for n in counts:
        at = results.section("threads", str(n))
        todo = [w for w in SCALED if again or not set(options.peers) <= set(at.get(w, {}))]
        if not todo:
            continue
        with Bench(Setting(n, "kept"), options, results.cache) as bench:
            for w in todo:
                row = bench.row(w, {"workload": w})
                at[w] = {p: _short(r) for p, r in row.items() if p != "work"}
                options.say(f"{n} threads, {w}: {told(row)}")
                results.save()


def graphs(options: Options, results: Results, counts: Sequence[int] = GRAPHS, again: bool = False) -> None:
    """Time to the first result of a random graph of N operations on 32 x 32, nothing cached; each in a new process."""
    slow: set[str] = set()
    for n in counts:
        at = results.section("graphs", str(n))
        for p in options.peers:
            if p == "roof" or p in at and not again:
                continue
            if p in slow:
                at[p] = {"skip": f"over {CAP_S:.0f} s for a smaller graph"}
                continue
            with Bench(Setting(1), Options(**{**options.__dict__, "peers": [p], "patience": CAP_S, "rounds": 3}),
                       "") as bench:
                start = time.perf_counter()
                row = bench.row(f"random_{n}", {"random": n})
            at[p] = _short(row.get(p, row["work"]))
            if "fail" in at[p] or time.perf_counter() - start > CAP_S:
                slow.add(p)
            options.say(f"{n} operations: {told(row)}" + (f", first result after {at[p]['first_ms']:.0f} ms"
                                                          if "first_ms" in at[p] else ""))
            results.save()


def _short(r: dict[str, Any]) -> dict[str, Any]:
    return {k: r[k] for k in ("ms", "first_ms", "ok", "skip", "fail") if k in r}
