"""Every example runs as a newcomer runs it, and the main job reaches its accuracy on each device."""

from __future__ import annotations

import gzip
import os
import re
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
MAIN = "mnist_softmax.py"


def run(name: str, *args: str, cwd: Path = ROOT, env: dict[str, str] | None = None, code: int = 0) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *args], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, **(env or {})}, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def accuracy(text: str) -> float:
    found = re.fullmatch(r"test accuracy: ([01]\.\d{4})", text.splitlines()[-1])
    assert found, text
    return float(found[1])


def test_every_example_has_a_test():
    here = Path(__file__).read_text()
    missing = [p.name for p in EXAMPLES.glob("*.py") if p.name not in here]
    assert not missing


# ---- the main job ---------------------------------------------------------------------------------------------------

def write_digit_like(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", *images.shape)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes(), 1))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1)) + struct.pack(">I", len(labels))
                                                    + labels.tobytes())


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    """A folder in MNIST's format with ten noisy prototypes: learned in one pass, small enough for every device."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("idx")
    labels = rng.integers(0, 10, 250).astype(np.uint8)
    prototypes = rng.integers(0, 2, (10, 6, 6)) * 200
    images = np.clip(prototypes[labels] + rng.normal(0, 110, (250, 6, 6)), 0, 255).astype(np.uint8)
    write_digit_like(folder, images, labels)
    return folder


needs_digits = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn's digits: the extra `examples`")


@needs_digits
@pytest.mark.parametrize("device", ["cpu", "interpreter"])
def test_digits(tmp_path, device):
    out = run(MAIN, "--device", device, "--plot", str(tmp_path / "curve.png"))
    assert accuracy(out) >= 0.95
    assert next(tmp_path.iterdir()).stat().st_size > 1000


@needs_digits
def test_digits_twice_the_same(tmp_path):
    one, two = (run(MAIN, "--epochs", "2", "--plot", str(tmp_path / "c.png")) for _ in range(2))
    assert one == two


def test_the_same_accuracy_on_every_device(blobs, tmp_path):
    args = ("--data", str(blobs), "--epochs", "2", "--batch", "40", "--plot", str(tmp_path / "c.png"))
    found = {device: accuracy(run(MAIN, *args, "--device", device, env={"FLOWC_GPU": "sim"}))
             for device in ("cpu", "interpreter", "cuda")}
    assert len(set(found.values())) == 1, found
    assert 0.5 < found["cpu"] < 1  # noisy images: equal accuracies are no accident


MNIST = Path(os.environ["MNIST_DIR"]) if os.environ.get("MNIST_DIR") else None


@pytest.mark.skipif(MNIST is None, reason="MNIST's files are not here; MNIST_DIR names their folder")
def test_mnist(tmp_path):
    out = run(MAIN, "--data", str(MNIST), "--epochs", "2", "--plot", str(tmp_path / "c.png"))
    assert "8000 images of 784 pixels" in out
    assert accuracy(out) >= 0.90


def without(tmp_path: Path, *modules: str) -> dict[str, str]:
    """An environment in which some libraries cannot be imported."""
    for m in modules:
        (tmp_path / m).mkdir()
        (tmp_path / m / "__init__.py").write_text(f"raise ImportError('no {m} here')\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_without_the_extras(blobs, tmp_path):
    env = without(tmp_path, "matplotlib", "tqdm", "sklearn")
    curve = tmp_path / "c.png"
    out = run(MAIN, "--data", str(blobs), "--epochs", "2", "--batch", "40", "--plot", str(curve), env=env)
    svg = curve.with_suffix(".svg").read_text()
    assert svg.startswith("<svg") and "polyline" in svg and "c.svg" in out
    error = run(MAIN, "--plot", str(curve), env=env, code=1)
    assert "scikit-learn" in error and "flowc[examples]" in error and "--data" in error


def test_the_plain_progress_bar_names_the_extra(blobs, tmp_path):
    env = {**os.environ, **without(tmp_path, "tqdm")}
    done = subprocess.run([sys.executable, str(EXAMPLES / MAIN), "--data", str(blobs), "--epochs", "1", "--plot",
                           str(tmp_path / "c.png")], capture_output=True, text=True, env=env)
    assert "flowc[examples]" in done.stderr and "[##############################]" in done.stderr


@pytest.mark.parametrize("spoil, words", [
    (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), ["t10k-labels-idx1-ubyte", "cure"]),
    (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09123"), ["9 bytes", "3 after"]),
    (lambda f: (f / "t10k-images-idx3-ubyte.gz").write_bytes(
        (f / "t10k-images-idx3-ubyte.gz").read_bytes()[:-20]), ["gzip", "cut short"]),
], ids=["missing", "truncated", "gzip"])
def test_wrong_files_are_named(blobs, tmp_path, spoil, words):
    for p in blobs.iterdir():
        (tmp_path / p.name).write_bytes(p.read_bytes())
    spoil(tmp_path)
    error = run(MAIN, "--data", str(tmp_path), code=1)
    for w in (str(tmp_path), *words):
        assert w in error


def test_no_folder_and_bad_options(tmp_path):
    assert "no such folder" in run(MAIN, "--data", str(tmp_path / "none"), code=1)
    assert "--batch" in run(MAIN, "--batch", "0", code=2)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_cuda_without_a_gpu_says_what_to_do(blobs, tmp_path):
    error = run(MAIN, "--data", str(blobs), "--device", "cuda", "--plot", str(tmp_path / "c.png"), code=1)
    assert "FLOWC_GPU=sim" in error


# ---- the others -----------------------------------------------------------------------------------------------------

def test_dumps():
    out = run("02_dumps.py")
    for w in ("graph @row_softmax", "f32[n, 10]", "plan @", "kernel @", "define", "02_dumps.py:"):
        assert w in out, w
    assert "---- plan" in run("02_dumps.py", "plan")
    assert "no stage" in run("02_dumps.py", "nonsense", code=1)


def test_symbolic_sizes():
    out = run("03_symbolic_sizes.py")
    assert "f32[n, 3]" in out and "one executable, three sizes" in out


def test_add_an_op():
    out = run("04_add_an_op.py")
    assert "softsign" in out and "agree" in out


def test_add_a_rule():
    out = run("05_add_a_rule.py")
    assert "log-exp" in out


def test_session():
    out = run("06_session.py")
    assert "[ 6. 28.]" in out  # (2 + 1) * (1 + 1), (4 + 3) * (3 + 1)
    assert "loss after 40 steps: 0.00" in out


def test_gpu_simulator():
    out = run("07_gpu_simulator.py")
    assert ".visible .entry" in out or ".entry" in out
