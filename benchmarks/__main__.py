"""``python -m benchmarks COMMAND``: measure flowc and other libraries side by side, make tables and pictures of it.

Here: the commands and their options.  Not here: measuring (rounds.py, extras.py), tables and pictures (report.py,
plots.py), the small measurements against NumPy alone (checks.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from benchmarks import checks, extras, report
from benchmarks.cases import everything, select
from benchmarks.peers import PEERS
from benchmarks.rounds import OURS, ROOT, Options, Results, Setting, run

RESULTS = os.path.join(ROOT, "benchmarks", "results", "results.json")
TABLE = checks.TABLE


def _common(p: argparse.ArgumentParser) -> None:
    p.add_argument("-p", "--peers", default=",".join(PEERS), help="comma list; default: all, missing ones are skipped")
    p.add_argument("--python", action="append", default=[], metavar="[PEER=]PATH", help="run a library under another "
                   "Python; without a name: all but flowc and roof")
    p.add_argument("--out", default=RESULTS, metavar="FILE.json", help="results; what it has is not measured again")
    p.add_argument("--again", action="store_true", help="measure again what the results have")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--scale", type=float, default=1.0, help="factor for all sizes")
    p.add_argument("--patience", type=float, default=240.0, metavar="SECONDS", help="for one build, then it fails")
    p.add_argument("--sample", type=float, default=0.03, metavar="SECONDS", help="calls are repeated this long")
    p.add_argument("--threads", default="", metavar="1,N", help="default: 1 and all")


def _selecting(p: argparse.ArgumentParser) -> None:
    p.add_argument("-w", "--workloads", default="*", metavar="GLOBS", help="comma list of patterns of names or "
                   "families; `list` shows them")
    p.add_argument("--heap", default="default,kept", help="default, kept (freed memory stays in the process) or both")


def _options(a: argparse.Namespace) -> Options:
    peers = [p.strip() for p in a.peers.split(",") if p.strip()]
    unknown = [p for p in peers if p not in PEERS]
    if unknown:
        raise SystemExit(f"no library {', '.join(unknown)}; there are {', '.join(PEERS)}")
    pythons = dict(x.split("=", 1) if "=" in x else ("", x) for x in a.python)
    return Options(peers, pythons, a.rounds, a.patience, a.scale, a.sample)


def _threads(a: argparse.Namespace) -> list[int]:
    if a.threads:
        return [int(x) for x in a.threads.split(",")]
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({every, 1}, reverse=True)


def _run(a: argparse.Namespace) -> None:
    names = [w.name for w in select(a.workloads)]
    if not names:
        raise SystemExit(f"no workload is called {a.workloads}; `list` shows them")
    settings = [Setting(t, h) for t in _threads(a) for h in a.heap.split(",")]
    run(names, settings, _options(a), Results(a.out), a.again)


def _growth(a: argparse.Namespace) -> None:
    options, results = _options(a), Results(a.out)
    most = max(_threads(a))
    parts: dict[str, Callable[[], None]] = {
        "graphs": lambda: extras.graphs(options, results, _counts(a.graphs), a.again),
        "sizes": lambda: extras.sizes(options, results, most, a.again),
        "threads": lambda: extras.threads(options, results, range(1, most + 1) if most <= 4 else
                                          [t for t in (1, 2, 4, 8, 16, 32, 64) if t < most] + [most], a.again)}
    for part in a.parts.split(","):
        if part not in parts:
            raise SystemExit(f"no part {part}; there are {', '.join(parts)}")
        parts[part]()


def _counts(text: str) -> list[int]:
    return [int(x) for x in text.split(",")] if text else list(extras.GRAPHS)


def _growth_options(p: argparse.ArgumentParser) -> None:
    _common(p)
    p.add_argument("--parts", default="graphs,sizes,threads")
    p.add_argument("--graphs", default="", metavar="N,N,...", help="operations of the random graphs")


def _small(a: argparse.Namespace) -> None:
    options, results = _options(a), Results(a.out)
    extras.footprint(options.peers, options, results)
    extras.overhead(options, results)


def _all(a: argparse.Namespace) -> None:
    a.parts, a.graphs = "graphs,sizes,threads", ""
    _run(a)
    _small(a)
    _growth(a)
    _report(a)


def _report(a: argparse.Namespace) -> None:
    results = Results(a.out).data
    base = os.path.splitext(a.out)[0]
    with open(base + ".md", "w", encoding="utf-8") as f:
        f.write(report.markdown(results))
    print(base + ".md")
    from benchmarks import plots
    for path in plots.draw(results, os.path.dirname(os.path.abspath(a.out)), a.format):
        print(path)


def _report_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", default=RESULTS, metavar="FILE.json")
    p.add_argument("--format", default="svg", choices=["svg", "png"])


def _all_options(p: argparse.ArgumentParser) -> None:
    _common(p)
    _selecting(p)
    p.add_argument("--format", default="svg", choices=["svg", "png"])


def _list(a: argparse.Namespace) -> None:
    for w in everything().values():
        print(f"{w.family:<15} {w.name}")


def _check(a: argparse.Namespace) -> None:
    checks.run(a.names)


def _check_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLE)}; default: all")


def _run_options(p: argparse.ArgumentParser) -> None:
    _common(p)
    _selecting(p)


COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None]]] = {
    "all": ("everything below but check: about two hours with every library; continues where it was stopped", _all,
            _all_options),
    "run": ("steady times of the workloads, interleaved; compile times; memory", _run, _run_options),
    "small": ("overhead of a call, import time, installed size", _small, _common),
    "growth": ("compile time over graphs, run time over sizes and threads", _growth, _growth_options),
    "report": ("tables and pictures from the results", _report, _report_options),
    "list": ("the workloads by family", _list, lambda p: None),
    "check": ("the figures of the README against NumPy alone", _check, _check_options),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, action, add) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        add(sub)
        sub.set_defaults(action=action)
    a = parser.parse_args(argv)
    assert set(OURS) <= set(PEERS)
    try:
        a.action(a)
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
