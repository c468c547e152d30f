"""The commands: run, opt, verify, bisect, reduce, bench, tune, ops, doctor, cache.

Here: arguments, help from the tables (commands, passes, settings, ops), what is printed.  Not here: the work itself
(api.py, passes/, backends/), looking at this machine (doctor.py).  Read next: cases.py.

Results go to standard output, everything else to standard error.  Exit codes: 0 fine, 1 a difference or failed check,
2 usage or bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from flowc import cases, config
from flowc.compiled import DEVICES
from flowc.dataclass import dataclass
from flowc.diag import FlowcError, FlowcValueError, VerifyError
from flowc.graph import Graph

OK, DIFFERENT, BAD = 0, 1, 2



@dataclass(frozen=True)
class Command:
    """One command: how it is called, what it does, its options, more help on demand."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], None]
    more: Callable[[], str] = lambda: ""


# ---- options that commands share ------------------------------------------------------------------------------------

def _file(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", metavar="FILE", help="a graph as text, as FLOWC_DUMP_DIR writes it; - is standard input")


def _inputs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--args", nargs="*", default=[], metavar="ARG", help="one per parameter, in order: a file a.npy, a "
                   "number, or a type such as f32[3,4] filled with random values; default: random for all")
    p.add_argument("--size", action="append", default=[], metavar="NAME=N", help="value of a symbolic size (default: "
                   f"{cases.DEFAULT_SIZE}, or the least its range allows)")
    _seed(p)


def _seed(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=int, default=0, help="of random values")


def _device(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", choices=DEVICES, help="default: the setting FLOWC_DEVICE")


def _passes(p: argparse.ArgumentParser) -> None:
    p.add_argument("--passes", metavar="A,B,...", help="passes to run, in this order; default: the whole pipeline")


def _several(*parts: Callable[[argparse.ArgumentParser], None]) -> Callable[[argparse.ArgumentParser], None]:
    def add(p: argparse.ArgumentParser) -> None:
        for part in parts:
            part(p)
    return add


def _arrays(args: argparse.Namespace, graph: Graph) -> list[Any]:
    return cases.arguments(graph, args.args, cases.parse_sizes(args.size), args.seed)


def _pass_names(args: argparse.Namespace) -> tuple[str, ...]:
    from flowc.passes.manager import find
    from flowc.passes.pipeline import GRAPH_PASSES
    if args.passes is None:
        return GRAPH_PASSES
    names = tuple(n.strip() for n in args.passes.split(",") if n.strip())
    for n in names:
        find(n)
    return names


# ---- run, opt -------------------------------------------------------------------------------------------------------

def _run_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="FILE.npz", help="also save the results, named out0, out1, ...")


def _run(args: argparse.Namespace) -> int:
    import numpy as np

    from flowc.compiled import compile_graph
    graph = cases.read_graph(args.file)
    results = compile_graph(graph, device=args.device)(_arrays(args, graph))
    for i, (r, o) in enumerate(zip(results, graph.outputs, strict=True)):
        print(f"out{i} : {o.type.dtype}[{', '.join(map(str, r.shape))}]")
        print(np.array2string(np.asarray(r), threshold=200))
    if args.out:
        np.savez(args.out, allow_pickle=False, **{f"out{i}": r for i, r in enumerate(results)})
    return OK


def _opt_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--fuel", type=int, default=None, metavar="N", help="stop optional rewriting after N steps")


def _opt(args: argparse.Namespace) -> int:
    from flowc.passes.manager import PassContext, run_passes
    from flowc.text import to_text
    graph = cases.read_graph(args.file)
    names = _pass_names(args)
    with config.options(**({} if args.fuel is None else {"fuel": args.fuel})):
        ctx = PassContext.from_config()
    ctx.check = True
    sys.stdout.write(to_text(run_passes(graph, names, ctx)).rstrip("\n") + "\n")
    return OK


def _opt_help() -> str:
    from flowc.passes import pipeline
    from flowc.passes.manager import help_text
    return f"passes:\n{help_text()}\n\npipeline: {','.join(pipeline.GRAPH_PASSES)}"


# ---- verify, bisect, reduce -----------------------------------------------------------------------------------------

_FUNCTION = re.compile(r"(?P<module>.+):(?P<function>[A-Za-z_][\w.]*)")


def _verify_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", metavar="FILE|MODULE:FUNCTION", help="a graph as text, or a Python function (of a module "
                   "or of a file: path/to/file.py:function), whose arguments --args gives")


def _verify(args: argparse.Namespace) -> int:
    found = _FUNCTION.fullmatch(args.what)
    if found and not os.path.exists(args.what):
        from flowc.api import verify
        fn = _load_function(found["module"], found["function"])
        values = cases.values(args.args, cases.parse_sizes(args.size), args.seed)
        report = verify(fn, *values, device=args.device)
    else:
        from flowc.compiled import compile_graph
        graph = cases.read_graph(args.what)
        report = compile_graph(graph, device=args.device).verify(_arrays(args, graph))
    print(report)
    return OK if report else DIFFERENT


def _load_function(where: str, name: str) -> Any:
    """A function of a module or of a Python file."""
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location("flowc_case", where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules["flowc_case"] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(where)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, OSError) as e:
        raise FlowcValueError("F011", f"cannot load {where}:{name}: {e}", cure="name a module on the import path or a "
                              "file, and a function in it") from None
    if not callable(found):
        raise FlowcValueError("F011", f"{where}:{name} is a {type(found).__name__}, no function",
                              cure="name a function")
    return found


def _bisect(args: argparse.Namespace) -> int:
    from flowc.passes.bisect import bisect
    graph = cases.read_graph(args.file)
    arrays = _arrays(args, graph)
    bad = cases.command_test(args.bad) if args.bad else cases.differs_after_passes(graph, arrays)
    culprit = bisect(graph, bad, _pass_names(args))
    if culprit is not None:
        print(culprit)
        return DIFFERENT
    if args.bad:
        print("the graph is good after all passes")
        return OK
    print("the graph is good after all passes; kernels:")
    from flowc.compiled import compile_graph
    report = compile_graph(graph, device=args.device).verify(arrays)
    print(report)
    return OK if report else DIFFERENT


def _bisect_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--bad", metavar="COMMAND", help="a shell command that succeeds for a bad graph; {} stands for its "
                   "file.  Default: the interpreter's results differ from those of FILE")


def _reduce(args: argparse.Namespace) -> int:
    from flowc.passes.reduce import reduce
    from flowc.text import to_text
    graph = cases.read_graph(args.file)
    test = re.fullmatch(r"exit\s+(\d+)", args.keep)
    keep = _exits_with(int(test[1]), args) if test else cases.command_test(args.keep)
    try:
        small = reduce(graph, keep, args.budget)
    except ValueError as e:
        raise FlowcValueError("F012", f"{args.file}: {e}", cure="give a --keep that holds for it as it is") from None
    text = to_text(small).rstrip("\n") + "\n"
    if args.out:
        with open(args.out, "w", encoding="utf-8") as f:
            f.write(text)
    else:
        sys.stdout.write(text)
    return OK


def _reduce_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--keep", default="exit 1", metavar="TEST", help="what the small graph must still do: `exit N` "
                   "(flowc verify exits with N; default: exit 1), or a shell command that succeeds, {} being the file")
    p.add_argument("--budget", type=int, default=2000, metavar="N", help="graphs to try at most")
    p.add_argument("--out", metavar="FILE", help="where the small graph goes; default: standard output")


def _exits_with(code: int, args: argparse.Namespace) -> Callable[[Graph], bool]:
    """Does ``flowc verify`` exit with ``code``?  In a process of its own: a case may crash."""
    def keep(graph: Graph) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = cases.write_graph(graph, folder)
            command = [sys.executable, "-m", "flowc", "verify", path, "--seed", str(args.seed)]
            command += ["--device", args.device] if args.device else []
            return subprocess.run(command, capture_output=True).returncode == code
    return keep


# ---- bench, tune ----------------------------------------------------------------------------------------------------

def _case_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--threads", type=int, default=0, metavar="N", help="threads to use; default: all that are allowed")
    p.add_argument("--seconds", type=float, default=2.0, help="of timing (default: 2)")


def _case(args: argparse.Namespace) -> tuple[str, Any, Any, list[Any]]:
    """Name, function or None, traced function or graph, and the arguments that the command names."""
    from flowc.api import jit
    from flowc.function import Function
    found = _FUNCTION.fullmatch(args.what)
    if found and not os.path.exists(args.what):
        fn = _load_function(found["module"], found["function"])
        f = fn if isinstance(fn, Function) else jit(fn)
        arrays = cases.values(args.args, cases.parse_sizes(args.size), args.seed)
        return found["function"], f, f.lower(*arrays).graph, arrays
    graph = cases.read_graph(args.what)
    return os.path.basename(args.what), None, graph, _arrays(args, graph)


def _bench(args: argparse.Namespace) -> int:
    import numpy as np

    from flowc.bench import measure
    from flowc.compiled import compile_graph
    name, f, graph, given = _case(args)
    with config.options(**({"num_threads": args.threads} if args.threads else {})):
        arrays = [np.asarray(a, p.dtype.numpy) for a, p in zip(_leaves(given), graph.params, strict=True)]
        if f is not None:
            result = measure(name, lambda: f(*given), {"NumPy": lambda: f.fn(*given)}, graph, arrays, args.seconds)
        else:
            made: list[Any] = []

            def call() -> Any:
                if not made:
                    made.append(compile_graph(graph))
                return made[0](arrays)
            plain = compile_graph(graph, device="interpreter")
            result = measure(name, call, {"interpreter": lambda: plain(arrays)}, graph, arrays, args.seconds)
    print("\n".join(result.lines()))
    return OK


def _leaves(given: list[Any]) -> list[Any]:
    from flowc.tree import flatten
    return list(flatten(tuple(given))[0])


def _tune_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", nargs="?", metavar="FILE|MODULE:FUNCTION", help="tune the schedules of this graph or "
                   "function; without it the processor is measured")
    p.add_argument("--list", action="store_true", help="show the problems and schedules of the function, tune nothing")
    p.add_argument("--dry-run", action="store_true", help="keep nothing")
    p.add_argument("--clear", action="store_true", help="forget what was measured and tuned")


def _tune(args: argparse.Namespace) -> int:
    import numpy as np

    from flowc import tune, tuned
    from flowc.backends.llvm.engine import processor
    if args.clear:
        print("forgotten" if tuned.forget(processor()) else "there was nothing")
        return OK
    with config.options(**({"num_threads": args.threads} if args.threads else {})):
        if args.what is None:
            record = tune.calibrate(args.seconds)
            print(f"was: {tuned.describe(processor())}\nnow: {record}")
            if not args.dry_run:
                print(f"kept in {tuned.save(processor(), record)}")
            return OK
        _, _, graph, given = _case(args)
        if args.list:
            from flowc.passes.choices import fields_text
            print("\n".join(f"{p}: {fields_text(s)}" for p, s in tune.problems(graph).items()))
            return OK
        arrays = [np.asarray(a, p.dtype.numpy) for a, p in zip(_leaves(given), graph.params, strict=True)]
        found = tune.tune_graph(graph, arrays, args.seconds, lambda text: print(text, flush=True))
    if not args.dry_run and any(t.best != t.before for t in found):
        print(f"kept in {tune.store(found)}")
    return OK


# ---- ops, doctor, cache ---------------------------------------------------------------------------------------------

def _ops_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("names", nargs="*", metavar="NAME", help="ops to describe; default: all")


def _ops(args: argparse.Namespace) -> int:
    import flowc.ops  # noqa: F401  (fills the registry)
    from flowc.op import REGISTRY
    unknown = [n for n in args.names if n not in REGISTRY]
    if unknown:
        raise FlowcValueError("F013", f"there is no op {unknown[0]!r}", cure="`flowc ops` lists all")
    chosen = [REGISTRY[n] for n in args.names] if args.names else sorted(REGISTRY.values(),
                                                                         key=lambda o: (o.family, o.name))
    for op in chosen:
        attrs = f" {{{', '.join(op.attrs)}}}" if op.attrs else ""
        print(f"{op.family:<12} {op.name}{attrs}: {op.doc}")
        if args.names:
            print(f"             dtypes {' '.join(d.name for d in op.dtypes) or 'any'}; derivative "
                  f"{'yes' if op.vjp else 'no'}; error in ulp "
                  f"{', '.join(f'{d} {u:g}' for d, u in op.ulp.items() if u) or 'none'}")
    return OK


def _doctor(args: argparse.Namespace) -> int:
    from flowc.doctor import report
    lines, healthy = report()
    print("\n".join(lines))
    return OK if healthy else DIFFERENT


def _cache_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", choices=["info", "clear"], nargs="?", default="info")


def _cache(args: argparse.Namespace) -> int:
    from flowc import cache
    if args.action == "clear":
        print(f"{cache.clear()} files removed from {cache.default_path()}")
        return OK
    state = cache.info()
    print(f"folder   {state.path}\nentries  {state.entries}\nbytes    {state.bytes} of {state.limit}")
    if state.refused:
        print(f"not used: {state.refused}")
    return OK


def _settings_help() -> str:
    rows = [f"  {s.env:<20}  {s.help} (default: {s.default if s.default not in ('', ()) else 'none'})"
            for s in config.SETTINGS.values()]
    return "settings, as environment variables:\n" + "\n".join(rows)


COMMANDS = (
    Command("run", "run a graph and print its results", _run, _several(_file, _inputs, _device, _run_options)),
    Command("opt", "run passes over a graph: text in, text out", _opt, _several(_file, _passes, _opt_options),
            _opt_help),
    Command("verify", "compare every compiled kernel with the interpreter", _verify,
            _several(_verify_options, _inputs, _device)),
    Command("bisect", "find the pass, rule and node after which a graph gives another result", _bisect,
            _several(_file, _inputs, _device, _passes, _bisect_options), _opt_help),
    Command("reduce", "make a graph smaller while it still shows a fault", _reduce,
            _several(_file, _device, _seed, _reduce_options)),
    Command("bench", "time a function: compiled, NumPy, each step of the plan, the machine's limit", _bench,
            _several(_verify_options, _inputs, _case_options)),
    Command("tune", "measure this processor, or find better schedules for a function", _tune,
            _several(_tune_options, _inputs, _case_options)),
    Command("ops", "list the operations", _ops, _ops_options),
    Command("doctor", "describe this installation and machine, for bug reports", _doctor, lambda p: None),
    Command("cache", "show or empty the cache of compiled code", _cache, _cache_options),
)


class _Parser(argparse.ArgumentParser):
    """Adds what only help texts need when help is asked for."""

    more: Callable[[], str] = staticmethod(lambda: "")

    def format_help(self) -> str:
        more = type(self).more() if "more" not in self.__dict__ else self.__dict__["more"]()
        return super().format_help() + (f"\n{more}\n" if more else "")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="flowc", description="A graph compiler: NumPy-style functions to native code.",
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.more = _settings_help
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for c in COMMANDS:
        sub = commands.add_parser(c.name, help=c.help, description=c.help[0].upper() + c.help[1:] + ".")
        assert isinstance(sub, _Parser)
        sub.more = c.more
        c.options(sub)
        sub.set_defaults(action_of=c)
    return top


def _version() -> str:
    import flowc
    return f"flowc {flowc.__version__}"


def main(argv: list[str]) -> int:
    """Run one command and return its exit code; errors are told on standard error, without a traceback."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as e:  # argparse has said why
        return e.code if isinstance(e.code, int) else BAD
    try:
        return args.action_of.run(args)
    except VerifyError as e:
        return _say(str(e), DIFFERENT)
    except FlowcError as e:
        return _say(str(e), BAD)
    except BrokenPipeError:  # the reader has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (OSError, MemoryError) as e:
        return _say(f"error: {e or type(e).__name__}", BAD)
    except KeyboardInterrupt:
        return _say("interrupted", 130)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code
