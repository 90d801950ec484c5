"""Where a request goes after a failure. `test_retries.py` has the tables of whole requests."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.transaction.retry import LONGEST_PAUSE, Retry, choose_retry, may_execute_twice, may_retry, pause
from tests.core.fakes import ScriptedTransaction


def backend(target: object = "http://10.0.0.1", **options: object) -> Backend:
    servers = [Server(name, target) for name in ("s1", "s2")]  # type: ignore[arg-type]
    asked: dict[str, object] = {
        "balance": RoundRobin(start=0),
        "persist": Cookie("SRV", signed=False),
        "clock": ManualClock(),
        **options,
    }
    return Backend("web", servers, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "redispatch, failure, number, expected",
    [
        pytest.param(True, Failure.REFUSED, 1, Retry.OTHER_SERVER, id="redispatch"),
        pytest.param(False, Failure.REFUSED, 1, Retry.SAME_SERVER_AFTER_PAUSE, id="no redispatch"),
        pytest.param(False, Failure.CLOSED, 1, Retry.SAME_SERVER, id="a server that was reached"),
        pytest.param(-1, Failure.REFUSED, 1, Retry.SAME_SERVER_AFTER_PAUSE, id="before the last"),
        pytest.param(-1, Failure.REFUSED, 3, Retry.OTHER_SERVER, id="the last"),
        pytest.param(True, Failure.REFUSED, 4, Retry.NOWHERE, id="more than retries"),
    ],
)
def test_retry_goes_where_redispatch_says(redispatch, failure, number, expected):
    request = ScriptedTransaction(backend(redispatch=redispatch), cookie="SRV=s1")
    request.start()
    assert choose_retry(request, failure, number) is expected


def test_app_in_this_process_is_retried_without_a_pause():
    request = ScriptedTransaction(backend(lambda environ, start_response: [], redispatch=False), cookie="SRV=s1")
    request.start()
    assert choose_retry(request, Failure.NOT_STARTED, 1) is Retry.SAME_SERVER


@pytest.mark.parametrize("connect, seconds", [("300ms", 0.3), (5, LONGEST_PAUSE)])
def test_pause_is_the_connect_timeout_but_at_most_a_second(connect, seconds):
    web = backend(timeouts=Timeouts(connect=connect))
    request = ScriptedTransaction(web, cookie="SRV=s1")
    request.start()
    need = pause(request)
    assert (need.until, need.ticket, need.server) == (seconds, None, web["s1"])


@pytest.mark.parametrize("method, expected", [("GET", True), ("PUT", True), ("POST", False), ("PATCH", False)])
def test_only_idempotent_methods_may_be_executed_twice(method, expected):
    request = ScriptedTransaction(backend(), method=method)
    request.start()
    assert bool(may_execute_twice(request)) is expected


@pytest.mark.parametrize(
    "failure, expected", [(Failure.REFUSED, True), (Failure.CLOSED, False), (Failure.TRUNCATED, False)]
)
def test_only_failures_of_retry_on_are_retried(failure, expected):
    request = ScriptedTransaction(backend())
    request.start()
    assert bool(may_retry(request, failure)) is expected
