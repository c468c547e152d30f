"""What is installed: the package list, the names at the top, the metadata, the public names."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import flowc

ROOT = Path(__file__).resolve().parent.parent
META = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    out = set()
    for folder, package in (("flowc", "flowc"), ("passes", "flowc.passes"), ("backends", "flowc.backends")):
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.relative_to(ROOT / folder).parent.parts
            if folder == "flowc" and parts[:1] in (("passes",), ("backends",)):
                continue
            out.add(".".join((package, *parts)))
    return out


def test_package_list_equals_the_disk():
    assert set(META["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_no_folder_of_modules_without_init():
    for folder in ("flowc", "passes", "backends"):
        for py in (ROOT / folder).rglob("*.py"):
            assert (py.parent / "__init__.py").exists(), f"{py.parent} is no package and will not be installed"


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_a_bare_import_in_the_repository_says_what_to_write(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT)
    assert f"import flowc.{name} instead of {name}" in done.stderr


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_links_for_static_tools(name):
    link = ROOT / "flowc" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


def test_dependencies_are_the_four():
    names = {d.split(">")[0].split("=")[0] for d in META["project"]["dependencies"]}
    assert names == {"numpy", "llvmlite", "networkx", "ml_dtypes"}


def test_nothing_of_ours_at_the_top_of_site_packages(tmp_path):
    """From outside the repository neither folder is importable under its bare name."""
    code = "import importlib.util as u; print([n for n in ('passes', 'backends', 'tests') if u.find_spec(n)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_wheel_contents(tmp_path):
    """The wheel is pure Python, holds every module once under flowc/, and the typing mark."""
    copy = tmp_path / "src"
    copy.mkdir()
    for name in ("flowc", "passes", "backends"):
        subprocess.run(["cp", "-a", str(ROOT / name), str(copy)], check=True)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path / "w"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "w").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {n.split("/")[0] for n in names}
    assert top == {"flowc", f"flowc-{flowc.__version__}.dist-info"}
    want = {"flowc/py.typed"}
    for folder, base in (("flowc", "flowc"), ("passes", "flowc/passes"), ("backends", "flowc/backends")):
        for py in (ROOT / folder).rglob("*.py"):
            relative = py.relative_to(ROOT / folder)
            if folder != "flowc" or relative.parts[0] not in ("passes", "backends"):
                want.add(f"{base}/{relative.as_posix()}")
    assert {n for n in names if n.startswith("flowc/")} == want


@pytest.mark.parametrize("name", sorted(flowc.__all__))
def test_public_names_load(name):
    assert getattr(flowc, name) is not None
    assert name in dir(flowc)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = flowc.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["verify"])
def test_functions_win_over_rooms_of_their_name(name):
    """Importing ``flowc.verify`` must not replace the function ``flowc.verify``; the room stays importable."""
    room = importlib.import_module(f"flowc.{name}")
    assert callable(getattr(flowc, name))
    assert getattr(flowc, name) is not room
    assert sys.modules[f"flowc.{name}"] is room


def test_type_checkers_see_every_public_name():
    """The block for type checkers names exactly what is loaded lazily."""
    import ast
    tree = ast.parse((ROOT / "flowc" / "__init__.py").read_text())
    seen = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.If) and isinstance(n.test, ast.Name)
            for i in n.body if isinstance(i, ast.ImportFrom) for a in i.names}
    assert seen == set(flowc.__all__) - {"__version__"}
