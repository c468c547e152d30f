"""Pictures from results: libraries by family, every workload, roofline, growth of compile and run time.

Here: what each picture shows.  Not here: measuring, tables (report.py).  Needs matplotlib: `pip install flowc[bench]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks import extras, report
from benchmarks.cases import Draw, everything

COLOURS = {"flowc": "#d1495b", "numpy": "#4d78a8", "numexpr": "#9ecae9", "numba": "#5ba85b", "jax": "#8c6bb1",
           "torch": "#f28e2b", "torch.compile": "#a85d12", "onnxruntime": "#76b7b2", "openvino": "#59626e",
           "roof": "#000000"}
MARKS = dict(zip(COLOURS, "osvP^DdXph"))


def pyplot() -> Any:
    """matplotlib without a screen; RuntimeError naming the extra where it is missing."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("pictures need matplotlib: pip install flowc[bench]") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.alpha": 0.25, "svg.fonttype": "none", "svg.hashsalt": "flowc", "legend.frameon": False})
    return plt


class Canvas:
    """Where pictures go."""

    def __init__(self, folder: str, kind: str):
        self.folder, self.kind, self.plt = folder, kind, pyplot()
        self.paths: list[str] = []

    @contextmanager
    def picture(self, name: str, width: float, height: float, columns: int = 1, rows: int = 1) -> Iterator[Any]:
        figure, axes = self.plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
        yield [a for row in axes for a in row]
        path = os.path.join(self.folder, f"{name}.{self.kind}")
        figure.savefig(path, metadata={"Date": None} if self.kind == "svg" else None, dpi=110)
        self.plt.close(figure)
        self.paths.append(path)


def _legend(ax: Any, **more: Any) -> None:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, **more)


def families(c: Canvas, rows: dict[str, Any], setting: str) -> None:
    """Bars: geometric mean of a library's time over flowc's, by family."""
    groups: dict[str, dict[str, Any]] = {}
    for n, row in report.ordered(rows).items():
        groups.setdefault(everything()[n].family, {})[n] = row
    groups = {"all": rows, **groups}
    peers = [p for p in report.present(rows.values()) if p != "flowc"]
    shown = {g: {p: r for p in peers if (r := report.against(of, p))} for g, of in groups.items()}
    shown = {g: of for g, of in shown.items() if of}
    if not shown:
        return
    with c.picture("families", 10, 4.2) as (ax,):
        for i, of in enumerate(shown.values()):
            for j, (p, r) in enumerate(of.items()):
                ax.bar(i + (j + 0.5) * 0.84 / len(of) - 0.42, max(report.mean(r), 1e-2), 0.84 / len(of),
                       color=COLOURS[p], label=p if i == 0 else None)
        ax.axhline(1, color=COLOURS["flowc"], lw=1.5, label="flowc")
        ax.set_yscale("log")
        ax.set_xticks(range(len(shown)), [f"{g}\n({len(groups[g])})" for g in shown])
        ax.set_ylabel("time over flowc's (geometric mean)")
        ax.set_title(f"Above the line: slower than flowc. {setting}")
        _legend(ax, ncols=4)


def workloads(c: Canvas, rows: dict[str, Any], setting: str) -> None:
    """Every workload: times relative to the roof of the same rounds."""
    rows = {n: row for n, row in report.ordered(rows).items() if row.get("roof", {}).get("ms") and report.good(row)}
    if not rows:
        return
    with c.picture("workloads", 8, 1.8 + 0.2 * len(rows)) as (ax,):
        for p in report.present(rows.values()):
            at = [(report.good(row)[p] / row["roof"]["ms"], i) for i, row in enumerate(rows.values())
                  if p in report.good(row)]
            ax.plot([x for x, _ in at], [y for _, y in at], MARKS[p], color=COLOURS[p], label=p,
                    ms=7 if p == "flowc" else 4, zorder=3 if p == "flowc" else 2)
        ax.axvline(1, color=COLOURS["roof"], lw=1, label="roof")
        ax.set_xscale("log")
        ax.set_yticks(range(len(rows)), list(rows), fontsize=7)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel("time over that of the compulsory operations or bytes")
        ax.set_title(f"Left is faster. {setting}")
        _legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))


def roofline(c: Canvas, rows: dict[str, Any], setting: str) -> None:
    """Rate over intensity, with the rates that the roof reached."""
    points: dict[str, list[tuple[float, float]]] = {}
    rates, widths = [], []
    for row in report.ordered(rows).values():
        work = row.get("work", {})
        moved = work.get("read", 0) + work.get("written", 0)
        if not work.get("flops") or not moved:
            continue
        for p in ("flowc", report.best({k: v for k, v in row.items() if k != "flowc"})):
            if p and p in report.good(row):
                points.setdefault("flowc" if p == "flowc" else "best of the others", []).append(
                    (work["flops"] / moved, work["flops"] / row[p]["ms"] / 1e6))
        roof = row.get("roof", {}).get("ms")
        if roof and roof > 0.05:
            rates.append(work["flops"] / roof / 1e6)
            widths.append(moved / roof / 1e6)
    if not points or not rates:
        return
    peak, width = max(rates), sorted(widths)[int(0.8 * (len(widths) - 1))]
    with c.picture("roofline", 6, 4) as (ax,):
        xs = [x for at in points.values() for x, _ in at]
        grid = sorted({min(xs) / 2, max(xs) * 2, peak / width})
        ax.plot(grid, [min(peak, width * x) for x in grid], color=COLOURS["roof"], lw=1.2,
                label=f"{peak:.0f} GFLOP/s, {width:.0f} GB/s")
        for name, at in points.items():
            ax.plot([x for x, _ in at], [y for _, y in at], "o" if name == "flowc" else "x", ms=5,
                    color=COLOURS["flowc"] if name == "flowc" else "#555555", label=name)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("compulsory operations per compulsory byte")
        ax.set_ylabel("GFLOP/s")
        ax.set_title(f"Above the slope: data stayed in a cache. {setting}", fontsize=9)
        _legend(ax)


def _curves(ax: Any, section: dict[str, Any], what: str, x: Callable[[str], float], unit: float = 1.0) -> None:
    keys = sorted(section, key=float)
    for p in ["roof", *report.LIBRARIES]:
        at = [(x(k), section[k][p][what] * unit) for k in keys
              if what in section[k].get(p, {}) and section[k][p].get("ok", True)]
        if at:
            ax.plot(*zip(*at), marker=MARKS[p], ms=4, color=COLOURS[p], label=p, lw=2 if p == "flowc" else 1,
                    ls=":" if p == "roof" else "-")
    ax.set_xscale("log")
    ax.set_yscale("log")


def graphs(c: Canvas, section: dict[str, Any]) -> None:
    with c.picture("graphs", 9, 3.6, columns=2) as (first, again):
        _curves(first, section, "first_ms", float, 1e-3)
        first.set_ylabel("s to the first result")
        _curves(again, section, "ms", float)
        again.set_ylabel("ms per call afterwards")
        for ax in (first, again):
            ax.set_xlabel("operations of a random graph")
        _legend(first)


def sizes(c: Canvas, section: dict[str, Any]) -> None:
    with c.picture("sizes", 10, 3.2, columns=len(section)) as axes:
        for ax, (family, of) in zip(axes, section.items()):
            w = everything()[extras.SIZES[family][0]]

            def elements(k: str, w: Any = w) -> float:
                return float(w.make(Draw(float(k)))[0].size) if float(k) < 0.3 else _scaled(w, float(k))
            _curves(ax, of, "ms", elements)
            ax.set_title(family, fontsize=9)
            ax.set_xlabel("elements of the first argument")
        axes[0].set_ylabel("ms")
        _legend(axes[0])


def _scaled(w: Any, scale: float) -> float:
    """Elements of the first argument, from a small instance: the arrays themselves may be large."""
    small = w.make(Draw(0.05))[0]
    free = sum(n != m for n, m in zip(small.shape, w.make(Draw(0.1))[0].shape))
    return small.size * (scale / 0.05) ** free


def threads(c: Canvas, section: dict[str, Any]) -> None:
    counts = sorted(section, key=int)
    names = list(dict.fromkeys(n for k in counts for n in section[k]))
    rows = -(-len(names) // 4)
    with c.picture("threads", 10, 2.6 * rows, columns=min(4, len(names)), rows=rows) as axes:
        for ax, n in zip(axes, names):
            for p in ["roof", *report.LIBRARIES]:
                at = [(int(k), section[k][n][p]["ms"]) for k in counts if "ms" in section[k].get(n, {}).get(p, {})]
                if at:
                    ax.plot([k for k, _ in at], [at[0][1] / t for _, t in at], marker=MARKS[p], ms=4,
                            color=COLOURS[p], label=p, ls=":" if p == "roof" else "-")
            ax.plot([1, int(counts[-1])], [1, int(counts[-1])], color="#bbbbbb", lw=0.8)
            ax.set_title(n, fontsize=8)
            ax.set_xticks([int(k) for k in counts])
        axes[0].set_ylabel("times faster than one thread")
        _legend(axes[0])


def draw(data: dict[str, Any], folder: str, kind: str = "svg") -> Sequence[str]:
    """Every picture that the results have figures for; returns the files."""
    c = Canvas(folder, kind)
    runs = data.get("runs", {})
    if runs:
        setting = max(runs, key=lambda s: (len(runs[s]), "kept" in s, int(s.split()[0])))
        for make in (families, workloads, roofline):
            make(c, runs[setting], setting)
    for name, picture in (("graphs", graphs), ("sizes", sizes), ("threads", threads)):
        if data.get(name):
            picture(c, data[name])
    return c.paths
