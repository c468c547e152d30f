"""Tuning: figures of a processor, their file, schedules by problem, and that none of it changes a bit."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowc
from flowc import cache, cli, config, tune, tuned
from flowc.backends.llvm import engine, share
from flowc.compiled import machine
from flowc.diag import FlowcValueError
from flowc.dims import sym
from flowc.passes.choices import Choices, fields_text, parse_rules, problem_text, revised
from flowc.passes.schedule import ContractSchedule, MapSchedule
from flowc.tuned import Tuned
from flowc.types import f32

GOOD = Tuned(256, 48 << 10, 2 << 20, 9000, 3000, 100_000, 20_000, (("dot f32 *", "mr=4"),))


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """A cache of its own, so that no other test meets the figures."""
    path = tmp_path / "cache"
    with config.options(cache_dir=str(path)):
        yield path
    tuned._loaded.clear()


def score(x, w):
    return np.tanh(x @ w) * 2 + 1


def arrays(m=37, k=19, n=29):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n))]


# ---- the file -------------------------------------------------------------------------------------------------------

def test_nothing_measured_means_the_defaults():
    assert tuned.load("x") == tuned.NOTHING
    assert machine("cpu").l2 == 1 << 20 and machine("cpu").choices is None
    assert share.costs() == (share.SERIAL_WORK, share.CHUNK_WORK)
    assert "nothing measured" in tuned.describe("x")


def test_a_record_comes_back_and_is_used():
    tuned.save(engine.processor(), GOOD)
    assert tuned.load(engine.processor()) == GOOD
    m = machine("cpu")
    assert (m.vector_bits, m.l1, m.l2) == (256, 48 << 10, 2 << 20) and m.choices is not None
    assert share.costs() == (100_000, 20_000)
    with config.options(tuned=False):
        assert share.costs().serial_work == share.SERIAL_WORK and machine("cpu").choices is None
        assert "FLOWC_TUNED=0" in tuned.describe(engine.processor())
    assert tuned.forget(engine.processor()) and not tuned.forget(engine.processor())
    assert tuned.load(engine.processor()) == tuned.NOTHING


def test_files_of_other_processors_are_not_used():
    tuned.save("another", GOOD)
    assert tuned.load("mine") == tuned.NOTHING
    assert "1 file of other processors" in tuned.describe("mine")
    store = cache.DiskStore(cache.default_path())
    os.rename(store._note(store.path, tuned._key("another")), store._note(store.path, tuned._key("mine")))
    tuned._loaded.clear()
    assert tuned.load("mine") == tuned.NOTHING
    assert "ignored" in tuned.describe("mine")


@pytest.mark.parametrize("damage", [
    lambda b: b[:-1], lambda b: b"", lambda b: b[:10] + b"x" + b[11:], lambda b: b + b"x"])
def test_damaged_files_are_ignored_and_told(damage):
    path = tuned.save("mine", GOOD)
    with open(path, "rb") as f:
        data = f.read()
    with open(path, "wb") as f:
        f.write(damage(data))
    tuned._loaded.clear()
    assert tuned.load("mine") == tuned.NOTHING
    assert "ignored" in tuned.describe("mine")


@pytest.mark.parametrize("text", [
    b"[]", b"{}", b"nonsense", b"\xff", b'{"l1": 1}',
    *(b'{"vector_bits": %s, "l1": 0, "l2": 0, "work_per_us": 0, "fork_ns": 0, "serial_work": 0, "chunk_work": 0, '
      b'"schedules": %s}' % pair for pair in ((b"-1", b"[]"), (b"1.5", b"[]"), (b"true", b"[]"), (b"256", b"[1]"),
                                              (b"256", b'[["a"]]'), (b"256", b'{"a": "b"}'), (b"99999999", b"[]")))])
def test_records_that_make_no_sense_are_refused(text):
    cache.DiskStore(cache.default_path()).put_note(tuned._key("mine"), text)
    assert tuned.load("mine") == tuned.NOTHING and "ignored" in tuned.describe("mine")


def test_notes_outlive_the_compiled_code():
    tuned.save("mine", GOOD)
    cache.clear()
    tuned._loaded.clear()
    assert tuned.load("mine") == GOOD


def test_no_folder_no_record(folder):
    folder.write_text("a file")
    with pytest.raises(OSError):
        tuned.save("mine", GOOD)
    assert tuned.load("mine") == tuned.NOTHING


# ---- schedules ------------------------------------------------------------------------------------------------------

def test_problems_as_text():
    assert problem_text(("dot", f32, 4, sym("n"), 8)) == "dot f32 4x?x8"
    assert problem_text(("map", f32, 16, "add.mul")) == "map f32 16 add.mul"


def test_rules():
    assert parse_rules("dot f32 *: mr=8  nr=48;\nmap *: width=16;") == (("dot f32 *", "mr=8 nr=48"),
                                                                        ("map *", "width=16"))
    c = Choices(parse_rules("dot *: mr=2; *: mr=3"), [("dot f32 1x2x3", "mr=5")])
    assert c.choose(("dot", f32, 1, 2, 3), ContractSchedule()).mr == 2  # what is given comes before what was tuned
    assert c.choose(("conv", f32, 1), ContractSchedule()).mr == 3
    assert Choices((), [("dot f32 1x2x3", "mr=5")]).choose(("dot", f32, 1, 2, 3), ContractSchedule()).mr == 5


@pytest.mark.parametrize("text", ["nonsense", "dot: mr", "dot: mr=-1", ": mr=1", "dot:", "dot: mr=0x1"])
def test_rules_that_are_none(text):
    with pytest.raises(FlowcValueError, match="C005"):
        parse_rules(text)
    with config.options(schedules=text), pytest.raises(FlowcValueError, match="C005"):
        flowc.jit(score)(*arrays())


def test_rules_with_strange_fields():
    with config.options(schedules="dot *: nonsense=3"), pytest.raises(FlowcValueError, match="C006"):
        flowc.jit(score)(*arrays())
    other = Choices((), [("dot f32 1", "nonsense=3")])  # another version's: passed over
    assert other.choose(("dot", f32, 1), ContractSchedule()) == ContractSchedule()


@given(st.dictionaries(st.sampled_from(["mr", "nr", "kc", "mc", "nc", "width"]), st.integers(1, 1 << 40), min_size=1))
def test_revised_contractions_are_sound(values):
    s = revised(ContractSchedule(), " ".join(f"{k}={v}" for k, v in values.items()))
    assert s.nr % s.width == 0 and s.nc % s.nr == 0 and s.mc % s.mr == 0 and min(s.mr, s.nr, s.kc, s.mc, s.nc) > 0
    assert s.mr * s.nr // s.width <= 64 and s.width & (s.width - 1) == 0
    assert parse_rules(f"x: {fields_text(s)}")


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_revised_maps_are_sound(tile, width):
    s = revised(MapSchedule(), f"tile={tile} width={width}")
    assert s.width & (s.width - 1) == 0 and 0 < s.width <= 256 and s.tile >= 64


def test_thin_contractions_keep_their_rows():
    s = ContractSchedule("thin", mr=3, nr=2048, kc=2)
    assert revised(s, "mr=8 nr=100 kc=4000 form=direct") == replace(s, nr=96, kc=16)


@given(form=st.sampled_from(["packed copy_rows=0", "packed copy_rows=1", "direct"]), mr=st.integers(1, 30),
       nv=st.integers(1, 5), kc=st.integers(8, 40), mc=st.integers(1, 60), nc=st.integers(1, 90),
       width=st.integers(1, 64), tile=st.integers(64, 500))
def test_schedules_change_no_bit(form, mr, nv, kc, mc, nc, width, tile):
    x, w = arrays()
    want = flowc.jit(score)(x, w)
    rules = f"dot *: form={form} mr={mr} nr={16 * nv} kc={kc} mc={mc} nc={nc}; map *: width={width} tile={tile}"
    with config.options(schedules=rules):
        f = flowc.jit(score)
        assert f(x, w).tobytes() == want.tobytes()
        assert f.lower(x, w).compile().compiled.program is not None


def test_a_function_compiled_before_is_compiled_for_new_rules():
    f = flowc.jit(score)
    x, w = arrays()
    f(x, w)
    with config.options(schedules="dot *: mr=5"):
        f(x, w)
        assert "tile 5x" in f.lower(x, w).as_text("kernel")
    assert "tile 5x" not in f.lower(x, w).as_text("kernel")


# ---- measuring and tuning -------------------------------------------------------------------------------------------

def test_the_processor_is_measured():
    record = tune.calibrate(0.05)
    assert record.vector_bits in (128, 256, 512) and record.l1 < record.l2 and record.work_per_us > 0
    assert record.serial_work > 0 and record.chunk_work > 0
    tuned.save(engine.processor(), record)
    x, w = arrays()
    with config.options(tuned=False):
        want = flowc.jit(score)(x, w)
    assert flowc.jit(score)(x, w).tobytes() == want.tobytes()


@given(st.sampled_from([128, 256, 512]), st.integers(1, 10 ** 6), st.integers(1, 10 ** 6))
def test_figures_change_no_bit(bits, serial, chunk):
    x, w = arrays()
    with config.options(tuned=False):
        want = flowc.jit(score)(x, w)
    tuned.save(engine.processor(), replace(GOOD, vector_bits=bits, serial_work=serial, chunk_work=chunk, schedules=()))
    try:
        assert flowc.jit(score)(x, w).tobytes() == want.tobytes()
    finally:
        tuned.forget(engine.processor())


def test_caches_from_latencies(monkeypatch):
    monkeypatch.setattr(tune, "system_caches", dict)

    def latency(n: int) -> float:
        return 1e-9 if n <= 48 << 10 else 4e-9 if n <= 1280 << 10 else 15e-9
    assert tune.caches(latency) == (48 << 10, 1280 << 10)
    monkeypatch.setattr(tune, "system_caches", lambda: {1: 32 << 10, 2: 64 << 20})
    assert tune.caches(latency) == (32 << 10, 1280 << 10)  # near is believed, far is not


def test_system_caches_of_nowhere(tmp_path):
    assert tune.system_caches(str(tmp_path / "none")) == {}


def test_a_function_is_tuned(monkeypatch, capsys):
    monkeypatch.setitem(tune.STAGES, "ContractSchedule", [lambda s: ["mr=4", "mr=2"]])
    monkeypatch.setitem(tune.STAGES, "MapSchedule", [lambda s: ["width=8"]])
    x, w = arrays()
    graph = flowc.jit(score).lower(x, w).graph
    found = tune.tune_graph(graph, [x, w], 0.01)
    assert found and all(t.tried or t.refused for t in found)
    assert set(tune.problems(graph)) == {t.problem for t in found}
    won = [replace_best(t) for t in found]
    tune.store(won)
    assert machine("cpu").choices.tuned[won[0].problem] == won[0].best
    assert "error" not in capsys.readouterr().err


def replace_best(t: tune.Tried) -> tune.Tried:
    """As if another schedule had won."""
    t.best = t.before.replace("mr=", "mr=1")
    if t.best == t.before:
        t.best = "width=8"
    return t


def test_commands(capsys, folder):
    def call(*words: str) -> str:
        assert cli.main(list(words)) == 0
        return capsys.readouterr().out
    where = f"{__file__}:score"
    assert "was: nothing measured" in call("tune", "--seconds", "0.05", "--dry-run")
    assert "kept in" in call("tune", "--seconds", "0.05")
    assert "worth it from" in call("doctor")
    assert "dot f32 37x29x19" in call("tune", where, "--args", "f32[37,19]", "f32[19,29]", "--list")
    assert "forgotten" in call("tune", "--clear") and "nothing" in call("tune", "--clear")
