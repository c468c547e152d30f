"""What all tests share: the golden texts, hypothesis profiles, and an environment of their own.

Options: ``--bless`` writes the golden texts anew (then read the diff); ``--rule-coverage`` lists the rewrite rules that
no test of the run has fired; ``--long`` draws many more random cases.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

_QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large,
                                                      HealthCheck.function_scoped_fixture]}
settings.register_profile("ci", max_examples=40, derandomize=True, database=None, print_blob=True, **_QUIET)
settings.register_profile("long", max_examples=2000, print_blob=True, **_QUIET)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flowc")
    group.addoption("--bless", action="store_true", help="write the golden texts anew instead of comparing")
    group.addoption("--rule-coverage", action="store_true", help="list rewrite rules without a hit")
    group.addoption("--long", action="store_true", help="hypothesis: the profile with many examples")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "ci")
    for name in [n for n in os.environ if n.startswith("FLOWC_")]:  # the caller's settings are not the tests'
        del os.environ[name]
    config.flowc_cache = tempfile.TemporaryDirectory(prefix="flowc-test-")  # type: ignore[attr-defined]
    # also for the processes that tests start
    os.environ["FLOWC_CACHE_DIR"] = config.flowc_cache.name  # type: ignore[attr-defined]
    os.environ["FLOWC_CHECK"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    from flowc.cache import settle
    settle()  # nobody writes into the folder any more
    config.flowc_cache.cleanup()  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption("--rule-coverage"):
        return
    from flowc.rewrite import coverage
    hits = coverage()
    terminalreporter.section("rewrite rules without a hit")
    for name in sorted(n for n, count in hits.items() if not count):
        terminalreporter.write_line(name)
    terminalreporter.write_line(f"{sum(1 for c in hits.values() if c)} of {len(hits)} rules fired")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """``golden(name, text)``: ``text`` equals the file tests/golden/NAME; with --bless the file is written."""
    bless = request.config.getoption("--bless")

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text if text.endswith("\n") else text + "\n"
        if bless:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"no golden text {name}; run pytest --bless, then read what it wrote"
        want = path.read_text()
        if text != want:
            diff = "".join(difflib.unified_diff(want.splitlines(True), text.splitlines(True), f"golden/{name}", "now"))
            pytest.fail(f"{name} differs; if that is meant: pytest --bless, then read the diff\n{diff}", pytrace=False)

    return compare
