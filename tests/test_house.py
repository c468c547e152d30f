"""The house's own rules: floors, doors, budgets, what an import may load.

Everything here reads the source with ``ast``; the tables say which rooms stand where and which exceptions have been
argued for.  A table entry without a room, or an exception no longer needed, fails too: the tables stay true.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"flowc": "flowc", "passes": "flowc.passes", "backends": "flowc.backends"}  # folder -> package

# Lower may not import higher; within one floor the import graph has no cycle.  A name stands for its submodules too; a
# star at its end for every name that begins so.
FLOORS: list[tuple[str, tuple[str, ...]]] = [
    ("ground", ("flowc.diag", "flowc.dataclass", "flowc.digest", "flowc.config", "flowc.progress", "flowc.cache",
                "flowc.tuned", "flowc.uncollected")),
    ("numbers", ("flowc.dims", "flowc.proofs", "flowc.types", "flowc.tree")),
    ("nouns", ("flowc.op", "flowc.graph", "flowc.kernel", "flowc.plan")),
    ("faculties", ("flowc.text", "flowc.lex", "flowc.parse", "flowc.facts", "flowc.verify*",
                   "flowc.rewrite")),
    ("ops", ("flowc.ops",)),
    ("makers", ("flowc.size", "flowc.tensor", "flowc.trace", "flowc.numpy_*", "flowc.passes")),
    ("machines", ("flowc.backends",)),
    ("driver", ("flowc.check", "flowc.image", "flowc.compiled", "flowc.function", "flowc.fastpath", "flowc.api",
                "flowc.symbolic", "flowc.routine", "flowc.session", "flowc.optim", "flowc.idx")),
    ("hall", ("flowc", "flowc.numpy", "flowc.nn", "flowc.random", "flowc.__main__", "flowc.cli", "flowc.cases",
              "flowc.doctor", "flowc.bench", "flowc.tune")),
]

FRONT = ("flowc.size", "flowc.tensor", "flowc.trace", "flowc.numpy_*")

# Rooms of one floor that do not know each other: (who, whom).
STRANGERS = [
    *((f, "flowc.passes") for f in FRONT), *(("flowc.passes", f) for f in FRONT),
    ("flowc.trace", "flowc.numpy_*"), ("flowc.tensor", "flowc.trace"), ("flowc.tensor", "flowc.numpy_*"),
    ("flowc.backends.interp", "flowc.backends.llvm"), ("flowc.backends.llvm", "flowc.backends.cuda"),
    ("flowc.image", "flowc.compiled"), ("flowc.compiled", "flowc.function"), ("flowc.function", "flowc.symbolic"),
    ("flowc.symbolic", "flowc.session"),
    ("flowc.session", "flowc.optim"),
]

# Outside libraries, each with its door.  What is not here is the standard library and NumPy.
DOORS = {
    "llvmlite": {"flowc.backends.llvm.engine", "flowc.backends.llvm.translate"},
    "networkx": {"flowc.passes.place"},
    "ml_dtypes": {"flowc.types"},
}

FILE_BUDGET, FUNCTION_BUDGET = 600, 60
# "module" or "module:function" -> why it may be longer
LONGER: dict[str, str] = {
}


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, for every .py file of the three folders; links are not followed."""
    out = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / folder)
            if folder == "flowc" and relative.parts[0] in ("passes", "backends"):
                continue  # the tracked links
            parts = relative.with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            out[".".join((package, *parts))] = path
    return out


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(), str(sources()[module]))


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(module: str) -> list[tuple[str, int]]:
    """Absolute names imported anywhere in a module, inside functions too, with their lines.  ``from a import b`` gives
    ``a.b`` where that is a module.  Imports for type checkers only do not count."""
    out: list[tuple[str, int]] = []
    stack: list[ast.AST] = [tree(module)]
    while stack:
        node = stack.pop()
        if _typing_only(node):
            stack += node.orelse  # type: ignore[attr-defined]
            continue
        if isinstance(node, ast.Import):
            out += [(a.name, node.lineno) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") + (["__init__"] if sources()[module].name == "__init__.py" else [])
                base = ".".join(here[:-node.level] + ([base] if base else []))
            for a in node.names:
                full = f"{base}.{a.name}"
                out.append((full if full in sources() else base, node.lineno))
        stack += ast.iter_child_nodes(node)
    return list(dict.fromkeys(out))


def floor(module: str) -> int:
    """The floor of the longest table entry that stands for the module."""
    found = [(len(room), level) for level, (_, rooms) in enumerate(FLOORS) for room in rooms if inside(module, room)]
    return max(found)[1] if found else -1


def inside(module: str, room: str) -> bool:
    """Does a table entry stand for the module?  The package ``flowc`` itself is only its __init__."""
    if room.endswith("*"):
        return module.startswith(room[:-1])
    return module == room or room != "flowc" and module.startswith(room + ".")


def test_every_room_stands_on_a_floor():
    homeless = [m for m in sources() if floor(m) < 0]
    assert not homeless, f"give {homeless} a floor in FLOORS"


def test_the_floor_table_names_rooms_that_exist():
    gone = [r for _, rooms in FLOORS for r in rooms if not any(inside(m, r) for m in sources())]
    assert not gone


def test_imports_go_downward_only():
    upward = [f"{m}:{line} ({FLOORS[floor(m)][0]}) imports {x} ({FLOORS[floor(x)][0]})"
              for m in sources() for x, line in imports(m)
              if x.split(".")[0] == "flowc" and floor(x) > floor(m)]
    assert not upward, "\n".join(upward)


def test_strangers_stay_strangers():
    met = [f"{m}:{line} imports {x}" for who, whom in STRANGERS for m in sources() if inside(m, who)
           for x, line in imports(m) if inside(x, whom)]
    assert not met, "\n".join(met)


def test_imports_of_the_house_exist():
    missing = [f"{m}:{line} imports {x}" for m in sources() for x, line in imports(m)
               if x.split(".")[0] == "flowc" and x not in sources() and x != "flowc"]
    assert not missing, "\n".join(missing)


def test_no_import_cycles():
    """Also not through imports inside functions.  A package's __init__ is no part of it."""
    edges = {m: {x for x, _ in imports(m) if x in sources() and x != m} for m in sources()}
    state: dict[str, int] = {}
    for root in edges:
        stack = [(root, iter(sorted(edges[root])))] if root not in state else []
        state.setdefault(root, 1)
        while stack:
            node, rest = stack[-1]
            for x in rest:
                if state.get(x) == 1:
                    path = [n for n, _ in stack]
                    pytest.fail("cycle: " + " -> ".join([*path[path.index(x):], x]))
                if x not in state:
                    state[x] = 1
                    stack.append((x, iter(sorted(edges[x]))))
                    break
            else:
                state[node] = 2
                stack.pop()


def test_no_bare_passes_or_backends():
    bare = [f"{m}:{line} imports {x}" for m in sources() for x, line in imports(m)
            if x.split(".")[0] in ("passes", "backends")]
    assert not bare, "\n".join(bare)


def test_the_house_does_not_import_its_hall():
    hall = [f"{m}:{line}" for m in sources() if floor(m) < len(FLOORS) - 1
            for x, line in imports(m) if x == "flowc"]
    assert not hall, f"write `from flowc.room import name`: {hall}"


def test_one_door_per_outside_library():
    allowed = set(sys.stdlib_module_names) | {"numpy", "flowc"}
    wrong = []
    for m in sources():
        for x, line in imports(m):
            library = x.split(".")[0]
            if library not in allowed and m not in DOORS.get(library, ()):
                wrong.append(f"{m}:{line} imports {library}; door: {', '.join(DOORS.get(library, ())) or 'none'}")
    assert not wrong, "\n".join(wrong)
    unused = [lib for lib, doors in DOORS.items()
              if not any(x.split(".")[0] == lib for d in doors if d in sources() for x, _ in imports(d))]
    assert not unused, f"doors without a library: {unused}"


def test_the_cuda_driver_has_one_door():
    """The names under which the driver library is opened stand in one file."""
    for m in sources():
        strings = {n.value for n in ast.walk(tree(m)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        opened = [s for s in strings if s.startswith(("libcuda", "nvcuda"))]
        assert not opened or m == "flowc.backends.cuda.driver", f"{m} opens {opened}"


def _long() -> dict[str, int]:
    """Modules and functions over their budget, with their length."""
    out: dict[str, int] = {}
    for m, path in sources().items():
        lines = len(path.read_text().splitlines())
        if lines > FILE_BUDGET:
            out[m] = lines
        for n in ast.walk(tree(m)):
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (n.end_lineno or n.lineno) - n.lineno + 1
                if length > FUNCTION_BUDGET:
                    out[f"{m}:{n.name}"] = length
    return out


def test_budgets():
    over = {k: n for k, n in _long().items() if k not in LONGER}
    assert not over, f"over {FILE_BUDGET} lines per file or {FUNCTION_BUDGET} per function: {over}"


def test_exceptions_to_budgets_are_needed_and_have_reasons():
    stale = [k for k in LONGER if k not in _long()]
    assert not stale, f"within budget now, remove from LONGER: {stale}"
    assert all(len(reason) > 20 for reason in LONGER.values())


def test_every_file_says_what_it_is():
    files = [*sources().values(), *(ROOT / "tests").glob("*.py"), *(ROOT / "examples").glob("*.py"),
             *(ROOT / "benchmarks").glob("*.py")]
    silent = [str(p.relative_to(ROOT)) for p in files if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not silent, f"begin with a docstring: {silent}"


def test_nothing_is_left_undone():
    marks = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    left = [f"{m}:{i}" for m, path in sources().items()
            for i, line in enumerate(path.read_text().splitlines(), 1) if any(f"# {w}" in line for w in marks)]
    assert not left, f"finish or remove: {left}"


LOADED = """
import sys
before = set(sys.modules)
import numpy
known = set(sys.modules)
import flowc
{use}
print(*sorted({{m.split(".")[0] for m in set(sys.modules) - known}}))
"""


def loaded(use: str = "") -> set[str]:
    out = subprocess.run([sys.executable, "-c", LOADED.format(use=use)], capture_output=True, text=True, check=True,
                         cwd=ROOT)
    return set(out.stdout.split())


def test_import_loads_numpy_only():
    new = loaded()
    foreign = new - set(sys.stdlib_module_names) - {"flowc"}
    assert not foreign, f"import flowc loads {foreign}"


def test_naming_jit_loads_no_machine():
    """Decorating a function compiles nothing and loads nothing heavy."""
    assert not loaded("flowc.jit(lambda x: x + 1)") & {"llvmlite", "networkx", "ml_dtypes"}


def test_package_starts_nothing():
    """Importing starts no thread and opens no file for writing."""
    code = "import threading, flowc; assert threading.active_count() == 1"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
