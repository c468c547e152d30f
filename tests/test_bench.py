"""Measuring: workloads give right results on every library at hand, tables and pictures come out, `flowc bench` tells.

Nothing here looks at a time.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowc import cli

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # the folder benchmarks is no part of the package

from benchmarks import dense, extras, peers, report, rounds, spaces, worker  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import Draw, everything, select  # noqa: E402
from benchmarks.irregular import random_graph, random_plan  # noqa: E402

SMALL = 0.02


def reference(w, args):
    judge = peers.Numpy(1)
    judge.load(replace(w, dtype="float64"), worker.wide(w, args))
    return judge.arrays(judge.build()())


@pytest.mark.parametrize("name", list(everything()))
def test_workloads_agree_with_float64(name, monkeypatch):
    monkeypatch.setattr(dense, "SWEEPS", 2)  # more of the same only take longer to compile
    w = everything()[name]
    args = w.make(Draw(SMALL))
    want = reference(w, args)
    peer = peers.Flowc(1)
    peer.load(w, args)
    assert worker.error(peer.arrays(peer.build()()), want) <= w.tol
    assert w.flops(*args) >= 0


@pytest.mark.parametrize("name", ["mlp_train_128", "softmax_regression_train_100", "lenet_train_64"])
def test_steps_by_hand_descend(name):
    """The loss after a step is less than before, in float64."""
    w = everything()[name]
    args = worker.wide(w, w.make(Draw(0.1)))
    loss, *after = w.step(0.01, *args)
    again = w.step(0.01, *after, *args[w.trained:])[0]
    assert again < loss


def test_formulas_are_numpys():
    w = everything()["chain_10m"]
    numbers: dict = {}
    x = np.linspace(-2, 2, 50)
    text = w.fn(spaces.formula_space(), spaces.Formula("x", numbers)).text
    values = {"x": x, "tanh": np.tanh, "exp": np.exp, **{name: v for v, name in numbers.items()}}
    np.testing.assert_allclose(eval(text, values), w.fn(spaces.numpy_space(), x))
    with pytest.raises(spaces.Missing):
        spaces.formula_space().erf(1)


def test_general_definitions_are_the_fused_ones():
    """What NumPy computes for attention and the like is what flowc's own functions compute."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 2, 5, 4))
    got = spaces.flowc_space().attention(q, q, q, causal=True)
    np.testing.assert_allclose(got, spaces.numpy_space().attention(q, q, q, causal=True), rtol=1e-6)


def test_random_graphs_are_the_same_each_time():
    assert random_plan(50) == random_plan(50)
    a = np.ones((4, 4)) * 0.1
    assert random_graph(spaces.numpy_space(), random_plan(200), a, a).shape == (4, 4)


def test_selecting():
    assert {w.name for w in select("tiny,training")} == {"tiny", "mlp_train_128", "softmax_regression_train_100",
                                                        "lenet_train_64"}


def test_errors_are_measured_by_the_largest_magnitude():
    one = np.array([100.0, 1.0])
    assert worker.error([one + [0, 1]], [one]) == pytest.approx(0.01)
    assert worker.error([one * np.nan], [one]) == np.inf and worker.error([], [one]) == np.inf
    assert worker.error([np.array([1, 2])], [np.array([1, 3])]) == pytest.approx(0.5e-3)


def test_disturbed_samples_do_not_count():
    samples = [{"s": 1.0, "delayed": 0.0}] * 4 + [{"s": 9.0, "delayed": 0.5}] * 3
    assert rounds.figures(samples)["ms"] == 1000.0
    assert rounds.figures([{"s": 2.0, "delayed": 0.5}])["ms"] == 2000.0


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Results of a tiny run of everything."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    common = ["--out", str(path), "-p", "roof,flowc,numpy", "--scale", "0.02", "--rounds", "2", "--sample", "0.001"]
    main(["run", "-w", "tiny,matmul_1024_f32,softmax_8*", "--threads", "1", *common])
    extras_of = {"sizes": {"elementwise chain": ("chain_10m", (1e-3, 1e-2))}, "scaled": ("matmul_1024_f32",)}
    old = extras.SIZES, extras.SCALED
    extras.SIZES, extras.SCALED = extras_of["sizes"], extras_of["scaled"]
    try:
        main(["growth", "--graphs", "5,10", "--threads", "1,2", *common, "-p", "flowc,numpy"])
        main(["small", *common])
    finally:
        extras.SIZES, extras.SCALED = old
    return path


def test_results_have_what_was_asked_for(measured):
    data = json.loads(measured.read_text())
    assert set(data) >= {"machine", "runs", "sizes", "threads", "graphs", "footprint", "overhead", "seconds"}
    assert set(data["runs"]) == {"1 thread, default heap", "1 thread, kept heap"}
    for rows in data["runs"].values():
        for row in rows.values():
            assert row["flowc"]["ok"] and row["numpy"]["ok"] and row["flowc"]["samples"] == 2
    cold, kept = (data["runs"][k]["tiny"]["flowc"]["disk"] for k in ("1 thread, default heap", "1 thread, kept heap"))
    assert kept and not (cold and not kept)
    assert set(data["graphs"]) == {"5", "10"}


def test_what_is_measured_is_not_measured_again(measured, capsys):
    before = measured.read_text()
    main(["run", "-w", "tiny", "--threads", "1", "--out", str(measured), "-p", "roof,flowc,numpy"])
    assert "all measured" in capsys.readouterr().err
    assert json.loads(measured.read_text() or before)["runs"] == json.loads(before)["runs"]


def test_tables(measured):
    text = report.markdown(json.loads(measured.read_text()))
    for title in ("Steady time", "Compile time", "Peak memory", "One call", "Import and size", "random graph",
                  "over size", "over threads"):
        assert title in text, title
    assert "| matmul_1024_f32 |" in text and "flowc is the fastest on" in text


def test_pictures(measured):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("pictures need matplotlib: pip install flowc[bench]")
    from benchmarks import plots
    paths = plots.draw(json.loads(measured.read_text()), str(measured.parent))
    names = {Path(p).name for p in paths}
    assert names >= {"families.svg", "graphs.svg", "sizes.svg", "threads.svg"}
    assert all(Path(p).stat().st_size < 400_000 for p in paths)


def test_pictures_without_matplotlib_name_the_extra(monkeypatch):
    from benchmarks import plots
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"flowc\[bench\]"):
        plots.pyplot()


def test_tables_of_nothing():
    assert "Measurements" in report.markdown({})


def test_a_missing_library_is_left_out_with_a_line(tmp_path):
    said: list[str] = []
    nowhere = rounds.Options(peers=["numpy", "openvino"], pythons={"openvino": "/nonexistent/python"}, rounds=1,
                             scale=SMALL, say=said.append)
    results = rounds.Results(str(tmp_path / "r.json"))
    rounds.run(["tiny"], [rounds.Setting(1)], nowhere, results)
    row = results.data["runs"]["1 thread, default heap"]["tiny"]
    assert "skip" in row["openvino"] and row["numpy"]["ok"]


def test_usage():
    out = subprocess.run([sys.executable, "-m", "benchmarks", "list"], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    assert len(out.splitlines()) == len(everything())
    assert subprocess.run([sys.executable, "-m", "benchmarks", "run", "-w", "nonsense"], cwd=ROOT,
                          capture_output=True).returncode == 1


# ---- flowc bench ----------------------------------------------------------------------------------------------------

def predict(x, w):
    e = np.exp(x @ w)
    return e / np.sum(e, axis=1, keepdims=True)


def test_bench_of_a_function(capsys):
    words = [f"{__file__}:predict", "--args", "f32[8,4]", "f32[4,3]", "--seconds", "0.02"]
    assert cli.main(["bench", *words]) == 0
    out = capsys.readouterr().out
    for w in ("predict(float32[8, 4], float32[4, 3])", "compiled", "NumPy", "limit", "first call", "steps of the plan",
              "dot"):
        assert w in out, w


def test_bench_of_a_graph(tmp_path, capsys):
    import flowc
    from flowc.text import to_text
    path = tmp_path / "case.flow"
    path.write_text(to_text(flowc.jit(predict).lower(flowc.spec("f32[n, 4]"), flowc.spec("f32[4, 3]")).graph))
    assert cli.main(["bench", str(path), "--size", "n=6", "--seconds", "0.02", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "float32[6, 4]" in out and "interpreter" in out and "1 thread," in out


def test_work_is_counted():
    import flowc
    from flowc.bench import operations
    graph = flowc.jit(predict).lower(np.ones((8, 4), np.float32), np.ones((4, 3), np.float32)).graph
    total = {n.op.name: operations(n, {}) for n in graph.nodes}
    assert total["dot"] == 2 * 8 * 4 * 3 and total["exp"] == 16 * 24 and total["reduce_sum"] == 24
    assert total["div"] == 24


def test_steps_alone_give_what_the_whole_gives():
    import flowc
    from flowc.bench import Stepper
    from flowc.compiled import compile_graph
    rng = np.random.default_rng(1)
    args = [rng.standard_normal(s).astype(np.float32) for s in ((9, 5), (5, 7))]
    c = compile_graph(flowc.jit(predict).lower(*args).graph, device="cpu")
    stepper = Stepper(c, args)
    stepper.run(c.executable.plan.steps)
    want = c(args)[0]
    assert np.array_equal(stepper.arrays[c.executable.plan.outputs[0]], want)
