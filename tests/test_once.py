"""What depends on constants alone: computed when the program is loaded, by all devices that run plans."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc import nn
from flowc.backends.interp import run_program
from flowc.backends.runtime import compile_program
from flowc.dataclass import replace
from flowc.diag import VerifyError
from flowc.parse import parse_plan
from flowc.passes import minimal_filters
from flowc.plan import ONCE
from flowc.text import plan_text, program_text
from flowc.verify import verify_program


def array(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def program_of(fn, *args):
    compiled = flowc.jit(fn).lower(*args).compile().compiled
    verify_program(compiled.program)
    return compiled, compiled.program


WEIGHTS = array(6, 2, 3, 3), array(5, 6), array(6, 6, 3, 3, seed=1)
X = array(2, 2, 5, 6)


def network(x):
    first, last, middle = WEIGHTS
    h = fnp.maximum(nn.conv(x, first, padding=1), 0)
    h = fnp.maximum(nn.conv(h, middle, padding=1), 0)
    return fnp.mean(h, axis=(2, 3)) @ last.T


@pytest.fixture
def tiles():
    """Convolutions by minimal filtering, small ones as well."""
    small = minimal_filters.FILTERS[0]
    with (mock.patch.dict("os.environ", FLOWC_CACHE="0"),
          mock.patch.object(minimal_filters, "best_filter", lambda n: small if minimal_filters.possible(n) else None)):
        yield


def test_kernels_are_transformed_when_the_program_is_loaded(tiles):
    compiled, program = program_of(network, X)
    once = program.plan.once()
    assert len(once) == 2 and all(b in program.plan.constants() for s in once for b in s.buffers)
    assert not any(s.note.startswith(("pack the", "transform the")) for wave in program.plan.waves() for s in wave)
    assert compiled.executable.constants.keys() == set(program.plan.constants())
    want = run_program(program, [X], {})[0]
    for device in ("cpu", "interpreter"):
        exe = compile_program(program, device)
        first, again = (exe.run([X], {})[0] for _ in range(2))
        assert first.tobytes() == again.tobytes()
        np.testing.assert_allclose(first, want, rtol=1e-4, atol=1e-4)
    assert flowc.verify(network, X)


def test_texts_of_what_runs_once(tiles):
    _, program = program_of(network, X)
    text = program_text(program)
    assert "  once\n" in text
    back = parse_plan(plan_text(program.plan))
    assert [s.wave for s in back.steps] == [s.wave for s in program.plan.steps]
    verify_program(replace(program, plan=back))


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 60), columns=st.integers(1, 90), dtype=st.sampled_from([np.float32, np.float64, np.int32]),
       turned=st.booleans(), seed=st.integers(0, 9))
def test_products_with_constants_of_any_size(rows, columns, dtype, turned, seed):
    w = (3 * array(columns, rows, seed=seed)).astype(dtype)
    w = w if turned else np.ascontiguousarray(w.T)

    def fn(x):
        return x @ (fnp.asarray(w).T if turned else w) + 1
    f = flowc.jit(fn, dynamic=True)
    for count in (1, 7, 40):
        x = (3 * array(count, rows, seed=count)).astype(dtype)
        np.testing.assert_allclose(f(x), x @ (w.T if turned else w) + 1, rtol=1e-4, atol=1e-4)


def test_what_grows_much_is_computed_in_every_call():
    w = array(300, 1)

    def fn(x):
        return x @ fnp.cumsum(fnp.asarray(w) * w.reshape(1, 300), axis=0)
    _, program = program_of(fn, array(2, 300))
    table = program.plan.table()
    assert sum(table[b].type.nbytes for b in program.plan.constants()) <= 1 << 15
    assert flowc.verify(fn, array(2, 300))


def test_steps_that_run_once_write_constants_only(tiles):
    _, program = program_of(network, X)
    steps = program.plan.steps
    late = next(i for i, s in enumerate(steps) if s.wave != ONCE)
    early = next(i for i, s in enumerate(steps) if s.wave == ONCE)
    for at, wave, code in ((late, ONCE, "V207"), (early, 0, "V207")):
        changed = tuple(replace(s, wave=wave) if i == at else s for i, s in enumerate(steps))
        with pytest.raises(VerifyError, match=code):
            verify_program(replace(program, plan=replace(program.plan, steps=changed)))


def test_programs_from_the_disk_compute_their_constants(tmp_path):
    tmp_path.chmod(0o700)
    x, w = array(512, 512), array(512, 512)
    with flowc.options(check=False, cache_dir=str(tmp_path)):
        first, again = (flowc.jit(lambda x: x @ w.T)(x) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert program_of(lambda x: x @ w.T, x)[1].plan.once()
