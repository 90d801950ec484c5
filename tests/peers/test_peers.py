"""Starlette's, FastAPI's, Werkzeug's and Flask's own test suites pass with every app wrapped."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from itertools import count

import pytest

from tests.peers.expected import COOKIE, EXPECTED
from tests.peers.suites import SUITES, Run, run


@pytest.fixture(scope="session")
def run_suite(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Run a suite by its name. Each run happens once in a session."""
    base = tmp_path_factory.mktemp("peers")
    numbers = count(1)

    @cache
    def run_once(suite: str, wrapping: str | None, *, cookie: bool = True, only: Collection[str] = ()) -> Run:
        return run(SUITES[suite], base / str(next(numbers)), wrapping, cookie=cookie, only=only)

    return run_once


@pytest.mark.long
@pytest.mark.parametrize(
    "suite, wrapping", [(suite.name, each) for suite in SUITES.values() for each in suite.wrappings]
)
def test_suite_passes_with_every_app_wrapped(run_suite: Callable[..., Run], suite: str, wrapping: str):
    plain, wrapped = run_suite(suite, None), run_suite(suite, wrapping)
    passed = [test for test, outcome in plain.outcomes.items() if outcome == "passed"]
    assert plain.wrapped == 0 and len(passed) >= SUITES[suite].at_least, plain.output
    assert wrapped.wrapped > SUITES[suite].at_least / 10, wrapped.output

    new = [test for test in passed if wrapped.outcomes.get(test) != "passed"]
    expected = EXPECTED[suite]
    assert [test for test in new if not any(row.covers(test, wrapping) for row in expected)] == [], wrapped.output
    outdated = [row.test for row in expected if wrapping in row.wrappings]
    outdated = [test for test in outdated if test not in {each.partition("[")[0] for each in new}]
    assert outdated == [], "pass now: remove them from EXPECTED"

    marked = tuple(test for test in new if any(row.covers(test, wrapping) and row.reason == COOKIE for row in expected))
    if marked:
        without = run_suite(suite, wrapping, cookie=False, only=marked)
        assert without.outcomes == dict.fromkeys(marked, "passed"), without.output
