"""The README: its programs run, its commands and rooms exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs_run(number, capsys, monkeypatch, tmp_path):
    source = PROGRAMS[number]
    path = tmp_path / f"readme_{number}.py"
    path.write_text("\n" * TEXT[:TEXT.index(source)].count("\n") + source)  # locations as in the README
    env = {"__name__": "readme"}
    if "import flowc" not in source:
        exec("import numpy as np\nimport flowc", env)
    exec(compile(path.read_text(), str(path), "exec"), env)


def test_dump_shown_is_what_the_program_prints(capsys, tmp_path):
    """The IR in the README is the output of the program above it, up to locations."""
    source = next(p for p in PROGRAMS if "as_text(\"graph\")" in p)
    path = tmp_path / "predict.py"
    path.write_text(source)
    exec(compile(source, str(path), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    shown = re.search(r"```\n(graph @predict.*?)```", TEXT, re.S)
    assert shown is not None

    def bare(text: str) -> list[str]:
        return [re.sub(r"\s+", " ", re.sub(r"@ \S+:\d+(:\d+)?", "", line)).strip() for line in text.splitlines()
                if line.strip()]
    got = bare(printed[printed.index("graph @predict"):])
    want = bare(shown[1])
    assert got[:len(want)] == want


def test_files_named_exist():
    for name in re.findall(r"`((?:flowc|passes|backends|tests|examples)/[\w/]*(?:\.py)?)`", TEXT):
        assert (ROOT / name).exists(), name


def test_benchmarks_named_exist():
    import sys
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.__main__ import COMMANDS, TABLE
    finally:
        sys.path.remove(str(ROOT))
    for name in re.findall(r"`python -m benchmarks check ([\w-]+)`", TEXT):
        assert name in TABLE
    for name in re.findall(r"python -m benchmarks ([\w-]+)", TEXT):
        assert name in COMMANDS
