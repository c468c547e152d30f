"""Tables from results, as Markdown.

Here: what each table shows and how figures are rounded.  Not here: pictures (plots.py).

Figures of one row were taken side by side and may be compared; rows, and the tables of two settings, may not: machines
change their speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cases import everything
from benchmarks.peers import PEERS

METHOD = ("Medians of samples taken in turn, every result checked against float64. `roof` does the row's compulsory "
          "operations, or moves its compulsory bytes, in the same rounds: what the machine gave at that moment. In "
          "brackets: times the best of the row. Compare within a row only.")
COMPILING = ("First call minus a steady one; nothing cached / from the library's own disk cache, where it has one and "
             "an earlier process filled it. Exporting a model is not counted.")
MEMORY = "Growth of the process over building and calling, arguments not counted."

LIBRARIES = [p for p in PEERS if p != "roof"]


def number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}" if x >= 0.01 else f"{x:.2g}"


def good(row: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of the libraries that gave right results."""
    return {p: row[p]["ms"] for p in LIBRARIES if "ms" in row.get(p, {}) and row[p].get("ok", True)}


def best(row: dict[str, Any]) -> str | None:
    times = good(row)
    return min(times, key=times.__getitem__) if times else None


def present(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The libraries with any figure."""
    seen = {p for row in rows for p, r in row.items() if isinstance(r, dict) and {"ms", "us", "first_ms"} & set(r)}
    return [p for p in LIBRARIES if p in seen]


def mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


def against(rows: dict[str, Any], peer: str, ours: str = "flowc") -> list[float]:
    """How many times the time of ``ours`` a library takes, over the workloads that both compute."""
    out = []
    for row in rows.values():
        t = good(row)
        if peer in t and ours in t:
            out.append(t[peer] / t[ours])
    return out


def ordered(rows: dict[str, Any]) -> dict[str, Any]:
    """Workloads in the order of the table of workloads."""
    return {n: rows[n] for n in everything() if n in rows}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows), ""]


def _cell(row: dict[str, Any], p: str, first: str | None) -> str:
    r = row.get(p, {})
    if "ms" not in r:
        return "fail" if "fail" in r else "–"
    if not r.get("ok", True):
        return "wrong"
    least = row[first]["ms"] if first else r["ms"]
    return f"**{number(r['ms'])}**" if p == first else f"{number(r['ms'])} ({r['ms'] / least:.2f})"


def steady(rows: dict[str, Any]) -> list[str]:
    """Times, best library, distance from the roof."""
    rows = ordered(rows)
    peers = present(rows.values())
    lines = []
    for n, row in rows.items():
        first = best(row)
        roof = row.get("roof", {}).get("ms")
        ours = row.get("flowc", {}).get("ms")
        share = [f"{100 * roof / row[first]['ms']:.0f} %" if roof and first else "–",
                 f"{100 * roof / ours:.0f} %" if roof and ours and row["flowc"].get("ok") else "–"]
        lines.append([n, number(roof) if roof else "–", *(_cell(row, p, first) for p in peers), *share])
    out = _table(["workload", "roof", *peers, "best of roof", "flowc of roof"], lines)
    summary = [(p, against(rows, p)) for p in peers if p != "flowc"]
    if any(r for _, r in summary):
        out += ["Geometric mean of a library's time over flowc's, on what both compute:", ""]
        out += _table(["library", "times flowc's time", "workloads", "flowc is faster on"],
                      [[p, f"{mean(r):.2f}", str(len(r)), str(sum(x > 1 for x in r))] for p, r in summary if r])
    wins = sum(best(row) == "flowc" for row in rows.values() if len(good(row)) > 1)
    return [*out, f"flowc is the fastest on {wins} of {len(rows)}.", ""]


def compiling(runs: dict[str, Any]) -> list[str]:
    """First call minus steady, nothing cached and from the disk cache."""
    names = [n for n in everything() if any(n in rows for rows in runs.values())]
    peers = present(row for rows in runs.values() for row in rows.values())
    lines = []
    for n in names:
        cells = []
        for p in peers:
            found: dict[bool, float] = {}
            for rows in runs.values():
                r = rows.get(n, {}).get(p, {})
                if "compile_ms" in r:
                    kept = bool(r.get("disk"))
                    found[kept] = min(found.get(kept, math.inf), r["compile_ms"])
            cells.append(" / ".join(number(found[k]) for k in (False, True) if k in found) or "–")
        lines.append([n, *cells])
    return _table(["workload", *peers], lines)


def memory(rows: dict[str, Any]) -> list[str]:
    rows = ordered(rows)
    peers = present(rows.values())
    return _table(["workload", *peers], [[n, *(number(row[p]["grown_mib"]) if "grown_mib" in row.get(p, {}) else "–"
                                               for p in peers)] for n, row in rows.items()])


def _growth(title: str, section: dict[str, Any], what: str, unit: float = 1.0) -> list[str]:
    keys = sorted(section, key=float)
    peers = present(section.values())
    return _table([title, *keys], [[p, *(number(section[k][p][what] * unit) if what in section[k].get(p, {}) else "–"
                                         for k in keys)] for p in peers])


def failures(runs: dict[str, Any]) -> list[str]:
    seen: dict[str, str] = {}
    for rows in runs.values():
        for n, row in ordered(rows).items():
            for p, r in row.items():
                if "fail" in r:
                    seen[f"{n}, {p}"] = r["fail"]
                elif r.get("ok") is False:
                    seen[f"{n}, {p}"] = f"wrong by {r['error']:.1e} of the largest magnitude"
    return [f"- {k}: {v}" for k, v in seen.items()]


def markdown(data: dict[str, Any]) -> str:
    m = data.get("machine", {})
    out = ["# Measurements", "",
           f"{m.get('processor')}, {m.get('threads')} threads, {m.get('system')}, Python {m.get('python')}.", "",
           METHOD, ""]
    runs = data.get("runs", {})
    for setting, rows in runs.items():
        out += [f"## Steady time in ms: {setting}", "", *steady(rows)]
    if runs:
        first = next(iter(runs))
        out += ["## Compile time in ms", "", COMPILING, "", *compiling(runs)]
        out += [f"## Peak memory in MiB: {first}", "", MEMORY, "", *memory(runs[first])]
    if "overhead" in data:
        rows = data["overhead"]
        peers = present(rows.values())
        out += ["## One call, in us", "", *_table(["workload", *peers], [
            [n, *(number(row[p]["us"]) if p in row else "–" for p in peers)] for n, row in rows.items()])]
    if "footprint" in data:
        head = ["package", "import, ms", "own, MiB", "with dependencies, MiB"]
        out += ["## Import and size on disk", "", *_table(head, [
            [p, number(r["import_s"] * 1e3), number(r["own_mib"]), number(r["all_mib"])]
            for p, r in data["footprint"].items()])]
    if "graphs" in data:
        out += ["## Time to the first result of a random graph of N operations, in s", "",
                *_growth("N", data["graphs"], "first_ms", 1e-3), "Steady time of the same graphs, in ms:", "",
                *_growth("N", data["graphs"], "ms")]
    for family, section in data.get("sizes", {}).items():
        out += [f"## Time in ms over size: {family}", "", *_growth("scale", section, "ms")]
    if "threads" in data:
        counts = sorted(data["threads"], key=int)
        names = list(dict.fromkeys(n for c in counts for n in data["threads"][c]))
        peers = present(row for c in counts for row in data["threads"][c].values())
        out += ["## Time in ms over threads", "", *_table(["workload", "library", *counts], [
            [n, p, *(number(data["threads"][c][n][p]["ms"]) if "ms" in data["threads"][c].get(n, {}).get(p, {}) else "–"
                     for c in counts)] for n in names for p in peers])]
    bad = failures(runs)
    out += ["## Failures", "", *bad, ""] if bad else []
    if "seconds" in data:
        out += [f"The rows took {data['seconds'] / 60:.0f} minutes to measure.", ""]
    return "\n".join(out)
