"""The commands: what they print, what they refuse, their exit codes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowc
from flowc import cases, cli, config
from flowc.text import to_text

ROOT = Path(__file__).resolve().parent.parent


def normal(x, w):
    return np.tanh(x @ w) * 1.0 + np.zeros(3, np.float32)


@pytest.fixture
def case(tmp_path) -> str:
    """A graph as text in a file."""
    lowered = flowc.jit(normal).lower(flowc.spec("f32[n, 4]"), flowc.spec("f32[4, 3]"))
    path = tmp_path / "case.flow"
    path.write_text(to_text(lowered.graph))
    return str(path)


@pytest.fixture
def call(capsys):
    """``call(*words, code=0)``: run a command in this process; returns (standard output, standard error)."""
    def run(*words: str, code: int = 0) -> tuple[str, str]:
        got = cli.main(list(words))
        out = capsys.readouterr()
        assert got == code, (got, out.out, out.err)
        assert "Traceback" not in out.err
        return out.out, out.err
    return run


# ---- run ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("device", ["interpreter", "cpu"])
def test_run_on_given_arrays(call, case, tmp_path, device):
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w)
    saved = tmp_path / "out.npz"
    out, _ = call("run", case, "--args", str(tmp_path / "x.npy"), str(tmp_path / "w.npy"), "--device", device,
                  "--out", str(saved))
    assert "out0 : f32[2, 3]" in out
    np.testing.assert_allclose(np.load(saved)["out0"], np.tanh(x @ w), rtol=1e-5)


def test_run_on_random_arrays(call, case):
    one, two = (call("run", case, "--seed", "7", "--size", "n=6")[0] for _ in range(2))
    assert "out0 : f32[6, 3]" in one and one == two
    assert call("run", case, "--seed", "8", "--size", "n=6")[0] != one
    assert f"f32[{cases.DEFAULT_SIZE}, 3]" in call("run", case)[0]
    assert "f32[2, 3]" in call("run", case, "--args", "f32[2,4]", "f32[4,3]")[0]


def test_run_from_standard_input(call, case, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(Path(case).read_text()))
    assert "out0" in call("run", "-")[0]


def test_numbers_as_arguments(call, tmp_path):
    path = tmp_path / "s.flow"
    path.write_text(to_text(flowc.jit(lambda x: x * 2).lower(flowc.spec("f64[]")).graph))
    assert "3." in call("run", str(path), "--args", "1.5")[0]


@pytest.mark.parametrize("words, told", [
    (("--args", "f32[2,4]"), "1 arguments for 2 parameters"),
    (("--args", "f32[2,5]", "f32[4,3]"), "4"),
    (("--args", "none.npy", "f32[4,3]"), "none.npy"),
    (("--args", "what", "f32[4,3]"), "'what'"),
    (("--args", "f99[2]", "f32[4,3]"), "f99"),
    (("--size", "k=3"), "no size k"),
    (("--size", "n"), "NAME=N"),
])
def test_run_refuses_bad_arguments(call, case, words, told):
    out, err = call("run", case, *words, code=2)
    assert told in err and "cure" in err and not out


@pytest.mark.parametrize("content, told", [
    (b"", "error"), (b"graph @f(", "error"), (b"\xff\xfe\0", "UTF-8"), (b"hello", "error"),
    (b"graph @f(%x: f32[2]) -> f32[2] {\n  %0 = nonsense %x : f32[2]\n  return %0\n}\n", "nonsense"),
    (b"graph @f(%x: f32[2]) -> f32[2] {\n  %0 = add %x, %y : f32[2]\n  return %0\n}\n", "y"),
], ids=["empty", "cut", "bytes", "words", "op", "name"])
def test_bad_files(call, tmp_path, content, told):
    path = tmp_path / "bad.flow"
    path.write_bytes(content)
    for command in ("run", "opt", "verify", "bisect", "reduce"):
        _, err = call(command, str(path), code=2)
        assert told in err and "bad.flow" in err


def test_no_such_file(call, tmp_path):
    assert "no such file" in call("run", str(tmp_path / "none"), code=2)[1]
    assert "folder" in call("opt", str(tmp_path), code=2)[1]


# ---- opt ------------------------------------------------------------------------------------------------------------

def test_opt_from_text_to_text(call, case, tmp_path):
    whole, _ = call("opt", case)
    assert whole.startswith("graph @normal(")
    again = tmp_path / "again.flow"
    again.write_text(whole)
    assert call("opt", str(again))[0] == whole                             # a fixed point, and text that parses
    assert call("opt", "--passes=", case)[0] == to_text(cases.read_graph(case)).rstrip("\n") + "\n"
    assert len(whole.splitlines()) < len(call("opt", "--passes=", case)[0].splitlines())
    assert call("opt", "--passes=simplify,cse,dce", case)[0].startswith("graph @normal(")
    assert call("opt", "--fuel=0", "--passes=simplify", case)[0] == call("opt", "--passes=", case)[0]


def test_opt_refuses_unknown_passes(call, case):
    assert "no pass 'nonsense'" in call("opt", "--passes=simplify,nonsense", case, code=2)[1]


# ---- verify, bisect, reduce -----------------------------------------------------------------------------------------

def test_verify_a_file(call, case):
    out, _ = call("verify", case, "--size", "n=9")
    assert "ok" in out and "worst ulp" in out


def test_verify_a_function(call, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("'''A case.'''\nimport numpy as np\ndef f(x, y):\n    return np.exp(x) + y\n")
    out, _ = call("verify", f"{file}:f", "--args", "f32[4]", "2.5")
    assert "ok" in out
    for what, told in ((f"{file}:g", "g"), (f"{file}:np.pi", "float"), ("no_such_module:f", "no_such_module")):
        assert told in call("verify", what, code=2)[1]


def test_verify_says_what_is_wrong(call, case, monkeypatch):
    """A kernel whose results are off by a hundredth."""
    from flowc.backends.llvm.cpu import CpuExecutable
    right = CpuExecutable.run_step

    def wrong(self, step, views, sizes):
        right(self, step, views, sizes)
        views[step.buffers[-1]][...] += np.float32(0.01)
    monkeypatch.setattr(CpuExecutable, "run_step", wrong)
    out, _ = call("verify", case, code=1)
    assert "WRONG" in out and "test_cli.py:22" in out


@pytest.fixture
def broken(monkeypatch):
    """A rule that is wrong: tanh(x) -> x."""
    from flowc.passes import simplify
    from flowc.rewrite import P, RuleSet, rule, var
    rules = [*simplify.RULES, rule("planted", P.tanh(var("x")), var("x"))]
    monkeypatch.setattr(simplify, "RULES", RuleSet(rules))


def test_bisect_finds_a_planted_rule(call, case, broken):
    out, _ = call("bisect", case, code=1)
    assert "simplify" in out and "planted" in out


def test_bisect_of_a_good_graph(call, case):
    out, _ = call("bisect", case)
    assert "good after all passes" in out


def test_bisect_by_a_command(call, case):
    out, _ = call("bisect", case, "--bad", "! grep -q ' = mul' {}", code=1)
    assert "pass" in out


def test_reduce_by_a_command(call, case, tmp_path):
    small = tmp_path / "small.flow"
    call("reduce", case, "--keep", "grep -q tanh {}", "--out", str(small))
    text = small.read_text()
    assert "tanh" in text and "dot" not in text
    assert len(text.splitlines()) <= 6  # three nodes


def test_reduce_needs_a_test_that_holds(call, case):
    assert "cure" in call("reduce", case, "--keep", "false", code=2)[1]


# ---- ops, doctor, cache, help ---------------------------------------------------------------------------------------

def test_ops(call):
    from flowc.op import REGISTRY
    out, _ = call("ops")
    assert len(out.splitlines()) == len(REGISTRY)
    assert "hyperbolic" in call("ops", "tanh")[0].lower()
    assert "nonsense" in call("ops", "nonsense", code=2)[1]


def test_doctor(call):
    out, _ = call("doctor")
    for w in ("flowc", "Python", "numpy", "llvmlite", "LLVM", "threads", "GPU", "cache", "FLOWC_CHECK"):
        assert w in out, w
    assert "gives NumPy's result" in out


def test_cache(call):
    flowc.jit(lambda x: x * 3 + 7)(np.ones(5, np.float32))
    out, _ = call("cache")
    assert os.environ["FLOWC_CACHE_DIR"] in out and "entries" in out
    assert "files removed" in call("cache", "clear")[0]
    assert "entries  0" in call("cache", "info")[0]


def test_help_comes_from_the_tables(call):
    from flowc.passes.manager import PASSES
    out, _ = call("--help")
    assert all(c.name in out for c in cli.COMMANDS)
    assert all(s.env in out for s in config.SETTINGS.values())
    out, _ = call("opt", "--help")
    assert all(p in out for p in PASSES)
    for c in cli.COMMANDS:
        assert call(c.name, "--help")[0]


def test_usage_errors(call):
    for words in ((), ("nonsense",), ("run",), ("run", "x", "--device", "tpu"), ("cache", "burn")):
        assert "usage" in call(*words, code=2)[1]


def test_version(call):
    assert call("--version")[0].strip() == f"flowc {flowc.__version__}"


SCRIPT = "import sys; from flowc.__main__ import main; sys.exit(main())"  # what the console command does


@pytest.mark.parametrize("command", [["-m", "flowc"], ["-c", SCRIPT]], ids=["module", "script"])
def test_as_a_process(case, command):
    done = subprocess.run([sys.executable, *command, "opt", case], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("graph @normal("), done.stderr
    done = subprocess.run([sys.executable, *command, "opt", "none.flow"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error[F001]") and "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(case):
    done = subprocess.run(f"{sys.executable} -m flowc ops | head -1", shell=True, capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Error" not in done.stderr


def test_dump_dir_holds_every_stage(case, tmp_path):
    folder = tmp_path / "dumps"
    done = subprocess.run([sys.executable, "-m", "flowc", "run", case, "--device", "cpu"], capture_output=True,
                          text=True, cwd=ROOT, env={**os.environ, "FLOWC_DUMP_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
    names = " ".join(sorted(p.name for p in folder.iterdir()))
    for stage in ("trace", "simplify", "plan", "kernel", "llvm", "asm"):
        assert stage in names, names
