"""Lines that are fetched before they are asked for: which walks fetch, and that no result depends on it."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowc
import flowc.nn as nn
import flowc.numpy as fnp
from flowc.backends.llvm import emit_ahead

COLUMNS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129])
WALKS = {"strips": lambda x, at: x[:, 0] @ x, "blocks": lambda x, at: fnp.var(x, axis=0),
         "scattered": lambda x, at: nn.segment_sum(x, at, 9)}


@pytest.fixture
def fetched(monkeypatch):
    monkeypatch.setattr(emit_ahead, "LARGE", 0)
    monkeypatch.setattr(emit_ahead, "SHORT", 0)
    monkeypatch.setattr(emit_ahead, "TABLE", 0)
    monkeypatch.setenv("FLOWC_CACHE", "0")


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WALKS)), st.sampled_from([1, 9, 300]), COLUMNS,
       st.sampled_from(["float32", "float64"]), st.booleans())
def test_fetching_ahead_changes_nothing(fetched, walk, rows, n, dtype, dynamic):
    """Also where the next row, block or update lies past the end."""
    draw = np.random.default_rng(1)
    x, at = draw.integers(0, 9, (rows, n)).astype(dtype), draw.integers(-1, 10, rows)
    report = flowc.verify(flowc.jit(WALKS[walk], dynamic=dynamic), x, at)
    assert report, report


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for its instructions")
@pytest.mark.parametrize("walk", sorted(WALKS))
@pytest.mark.parametrize("rows", [1 << 14, 1 << 9])
def test_large_operands_are_fetched_ahead(walk, rows):
    """Small ones are in the caches, or get there at once."""
    low = flowc.jit(WALKS[walk]).lower(flowc.spec(f"f32[{rows}, {16 if walk == 'scattered' else 1024}]"),
                                       flowc.spec(f"i64[{rows}]"))
    large = rows * (16 if walk == "scattered" else 1024) * 4 >= emit_ahead.LARGE
    assert ("prefetch" in low.compile().as_text("asm")) == large


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for its instructions")
@pytest.mark.parametrize(("columns", "places"), [(8, 20), (8, 100), (16, 20), (4, 100), (4, 200)])
def test_updates_of_few_places_are_not_fetched_ahead(columns, places):
    """There they wait for each other."""
    n = emit_ahead.LARGE // (4 * columns)
    low = flowc.jit(lambda x, at: nn.segment_sum(x, at, places)).lower(flowc.spec(f"f32[{n}, {columns}]"),
                                                                       flowc.spec(f"i64[{n}]"))
    assert ("prefetch" in low.compile().as_text("asm")) == (4 * columns * places >= emit_ahead.TABLE)
