"""Starlette's, FastAPI's, Werkzeug's and Flask's own test suites pass with every app wrapped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
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


def without_parameters(tests: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of `tests` without their parameters, each once."""
    return tuple(dict.fromkeys(test.partition("[")[0] for test in tests))


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
    rows = EXPECTED[suite]
    unexpected = [test for test in new if not any(row.covers(test, wrapping) for row in rows)]
    if unexpected:  # some tests of the suites have time limits of their own, and fail on a busy machine
        alone = run_suite(suite, wrapping, only=without_parameters(unexpected))
        unexpected = [test for test in unexpected if alone.outcomes.get(test) != "passed"]
        assert unexpected == [], alone.output
    outdated = {row.test for row in rows if wrapping in row.wrappings} - set(without_parameters(new))
    assert outdated == set(), "pass now: remove them from EXPECTED"

    marked = [test for test in new if any(row.covers(test, wrapping) and row.reason == COOKIE for row in rows)]
    if marked:
        unmarked = run_suite(suite, wrapping, cookie=False, only=without_parameters(marked))
        assert [test for test in marked if unmarked.outcomes.get(test) != "passed"] == [], unmarked.output
