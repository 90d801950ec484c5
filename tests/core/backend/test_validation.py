"""Arguments of a backend: wrong types and impossible combinations are refused, with every problem at once."""

from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from tests.core.backend.backends import app, make_backend, servers


def never(request: object) -> bool:
    return False


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"name": ""}, "backend : a name is made of letters", id="no name"),
        pytest.param(
            {"name": "a b"}, "backend a b: a name is made of letters, digits and - _ . :", id="a name with a space"
        ),
        pytest.param({"name": "a/b"}, "backend a/b: a name is made of letters", id="a name with a slash"),
        pytest.param({"servers": []}, "backend web: has no servers", id="no servers"),
        pytest.param(
            {"servers": Server("s1", app)}, "write servers=[Server(name, app), ...]", id="a server for servers"
        ),
        pytest.param(
            {"servers": ["http://s1"]}, "'http://s1' is no Server: write Server(name,", id="a URL for a server"
        ),
        pytest.param({"persist": "SRV"}, "write persist=Cookie('SRV')", id="a name for a cookie"),
        pytest.param({"persist": [7]}, "persist=7 is no way to persist", id="a number for a cookie"),
        pytest.param(
            {"servers": servers("s1", "s2", "s1")},
            "backend web: has 2 servers called s1: give each a name of its own",
            id="one name twice",
        ),
        pytest.param({"retries": -1}, "backend web: retries -1 is below 0", id="retries below 0"),
        pytest.param(
            {"unavailable": "panic"},
            "backend web: unavailable 'panic' is neither 'redispatch' nor 'fail'",
            id="another word",
        ),
        pytest.param({"retries": "3"}, "backend web: retries '3' is no whole number", id="retries as a text"),
        pytest.param(
            {"retry_on": "conn-failure 5xx"}, "backend web: retry_on '5xx' is not known", id="another failure"
        ),
        pytest.param(
            {"retry_on": [503, "none"]}, "backend web: retry_on: 'none' excludes other words", id="none and a status"
        ),
        pytest.param({"redispatch": "yes"}, "backend web: redispatch 'yes' is neither True", id="another redispatch"),
        pytest.param(
            {"retry_body_limit": -1}, "backend web: retry_body_limit -1 is below 0", id="a body smaller than none"
        ),
        pytest.param({"balance": "fastest"}, "balance 'fastest' is unknown", id="another balance"),
        pytest.param(
            {"persist": Cookie("SRV", signed=False), "servers": [Server("s1", app, cookie="a|b")]},
            "backend web: cookie SRV: server s1: '|'",
            id="an id that could be misread",
        ),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], problem: str):
    with pytest.raises(ConfigError) as refused:
        Backend(**{"name": "web", "servers": servers("s1")} | options)  # type: ignore[arg-type]
    (only,) = refused.value.problems
    assert problem in only


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Backend(
            "a b",
            [Server("s1", app, cookie="a|b"), Server("s1", app)],
            balance="fastest",
            persist=[Cookie("SRV", signed=False), Cookie("OTHER", signed=False)],
            retries=-1,
            retry_on=("5xx", "none"),
            redispatch="yes",  # type: ignore[arg-type] # what a caller without types may write
            retry_body_limit=-1,
            unavailable="panic",  # type: ignore[arg-type] # likewise
        )
    told = str(refused.value)
    for part in ("a name is made of", "servers called s1", "retries -1", "unavailable 'panic'"):
        assert part in told
    for part in ("retry_on '5xx'", "retry_on: 'none' excludes other words", "redispatch 'yes'", "retry_body_limit -1"):
        assert part in told
    assert "balance 'fastest'" in told
    assert "cookie SRV: server s1" in told
    assert "cookie OTHER: server s1" in told
    assert len(refused.value.problems) == 11


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"on_empty": "panics"}, "on_empty 'panics' is neither"),
        ({"panic_threshold": 0.5}, "panic_threshold has no effect"),
        ({"on_empty": "panic", "panic_threshold": 50}, "panic_threshold 50 is not a share"),
        ({"allbackups": True}, "allbackups has no effect"),
        ({"persist_on_down": True}, "persist_on_down has no effect without persist"),
        ({"force_persist": never}, "force_persist has no effect without persist"),
        ({"ignore_persist": never}, "ignore_persist has no effect without persist"),
        ({"use_server": {"s9": never}}, "use_server names s9"),
        ({"check": "/health"}, "check='/health' is no check"),
        ({"check": Check(port=80)}, "check: port is for URLs"),
        ({"check": Check(on_marked_up="shutdown-backup-sessions")}, "on_marked_up has no effect without servers"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        make_backend(Server("s1", app), **options)
    (only,) = refused.value.problems
    assert problem in only


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"check": False}, "check=False has no effect"),
        ({"track": "s9"}, "track s9: there is no such server"),
        ({"track": "nowhere/s1"}, "there is no backend nowhere"),
        ({"track": "s1"}, "has no health of its own"),
        ({"track": "s2", "check": Check()}, "track takes another server's health over"),
        ({"fail_timeout": 5}, "fail_timeout has no effect without max_fails or fail_rate"),
        ({"track": "s2", "fail_rate": 0.5}, "give check, agent_check, max_fails and fail_rate to that server"),
        ({"slowstart": 0}, "slowstart 0 is not above 0"),
        ({"slowstart": float("nan")}, "slowstart nan is not above 0"),
        (
            {"backup": True, "check": Check(on_marked_up="shutdown-backup-sessions")},
            "server s1: check: on_marked_up has no effect on a backup: leave it out",
        ),
        ({"check": Check(on_marked_up="shutdown-backup-sessions")}, "on_marked_up has no effect without servers"),
    ],
)
def test_server_options_that_conflict_with_the_backend_are_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        make_backend(Server("s1", app, **options), Server("s2", app))
    assert problem in str(refused.value)
