"""How long we wait: durations as people write them, in seconds, and none that is no wait."""

import pytest

from sticky_core.errors import ConfigError
from sticky_core.http.timeouts import Timeouts, TimeoutSeconds


@pytest.mark.parametrize(
    "timeouts, expected",
    [
        pytest.param(Timeouts(), TimeoutSeconds(5, 60, 5, 3600, 60), id="by default"),
        pytest.param(
            Timeouts(connect=2), TimeoutSeconds(2, 60, 2, 3600, 60), id="a place is waited for as long as a connection"
        ),
        pytest.param(Timeouts(connect=2, queue=7), TimeoutSeconds(2, 60, 7, 3600, 60), id="unless it is given"),
        pytest.param(
            Timeouts(connect="250ms", server="1m", queue="1500us", tunnel="8h"),
            TimeoutSeconds(0.25, 60, 0.0015, 28_800, 60),
            id="in HAProxy's text",
        ),
        pytest.param(Timeouts(client="10s"), TimeoutSeconds(5, 60, 5, 3600, 10), id="of the client"),
        pytest.param(
            Timeouts(connect=0.5, server="30"), TimeoutSeconds(0.5, 30, 0.5, 3600, 60), id="numbers are seconds"
        ),
    ],
)
def test_timeouts_are_seconds(timeouts: Timeouts, expected: TimeoutSeconds):
    seconds = timeouts.in_seconds
    assert (seconds.connect, seconds.server, seconds.queue, seconds.tunnel, seconds.client) == pytest.approx(
        (expected.connect, expected.server, expected.queue, expected.tunnel, expected.client)
    )
    assert timeouts.in_seconds is seconds


@pytest.mark.parametrize("name", ["connect", "server", "queue", "tunnel", "client", "total"])
@pytest.mark.parametrize(
    "duration, problem",
    [
        pytest.param(0, "0 is not above 0", id="none"),
        pytest.param("0s", "'0s' is not above 0", id="none, as text"),
        pytest.param(-1, "-1 is not above 0", id="less than none"),
        pytest.param("5 s", "'5 s' is not a duration", id="text with a space"),
        pytest.param("soon", "'soon' is not a duration", id="a word"),
        pytest.param(True, "True is not a duration", id="a truth"),
        pytest.param(float("nan"), "nan is not above 0", id="not a number"),
        pytest.param(float("inf"), "inf is not above 0 and at most 2147483647 s", id="for ever"),
        pytest.param("24856d", "'24856d' is not above 0 and at most", id="too long"),
    ],
)
def test_an_invalid_timeout_is_refused(name: str, duration: float | str, problem: str):
    with pytest.raises(ConfigError) as error:
        Timeouts(**{name: duration})
    (said,) = error.value.problems
    assert said.startswith(f"timeouts: {name}")
    assert problem in said


@pytest.mark.parametrize("name", ["connect", "server", "tunnel", "client"])
def test_timeout_that_always_counts_may_not_be_none(name: str):
    with pytest.raises(ConfigError, match=f"timeouts: {name}: None is not a duration"):
        Timeouts(**{name: None})  # type: ignore[arg-type]
    assert Timeouts(queue=None, total=None) == Timeouts()


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        Timeouts(0, "soon", -1, "")
    assert len(error.value.problems) == 4


@pytest.mark.parametrize("total, expected", [(None, None), (30, 30), ("1500ms", 1.5)])
def test_total_is_no_limit_unless_it_is_set(total: float | str | None, expected: float | None):
    assert Timeouts(total=total).in_seconds.total == expected


def test_timeouts_are_values():
    assert Timeouts(connect="5s") == Timeouts(connect="5s") != Timeouts()
    used = Timeouts()
    assert used.in_seconds
    assert used == Timeouts()
    assert {used: 1}[Timeouts()] == 1
