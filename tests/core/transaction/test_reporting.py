"""Reporting: what the monitor gets for each attempt, once, and how long the server took."""

from dataclasses import dataclass
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.reporting import Reporting
from sticky_core.transaction.status_retry import StatusRetry
from tests.core.fakes import ScriptedTransaction

Report = tuple[str, Failure | None, int, float]


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class ReportingTransaction(Reporting[str, None], StatusRetry[str, None], ScriptedTransaction):
    """A transaction that reports its attempts, and may hold responses back."""

    __slots__ = ()


class Observed:
    """A request to a backend, and the reports that its monitor has got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock = ManualClock()
        self.reports: list[Report] = []
        servers = [Server(name, app) for name in ("s1", "s2")]
        asked: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": Cookie("SRV", signed=False), **options}
        self.web = Backend("web", servers, clock=self.clock, **asked)
        monkeypatch.setattr(self.web.monitor, "record_request", self._record)
        self.request = ReportingTransaction(self.web)

    def _record(self, server: Server, failure: Failure | None, status: int, seconds: float) -> None:
        self.reports.append((server.name, failure, status, seconds))


def test_response_is_reported_with_its_status_and_the_seconds_since_the_attempt(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    observed.clock.advance(5)
    observed.request.start()
    observed.clock.advance(0.25)
    observed.request.respond(status=404)
    assert observed.reports == [("s1", None, 404, 0.25)]


@pytest.mark.parametrize("failure", list(Failure), ids=lambda failure: failure.name)
def test_failure_is_reported_if_it_is_the_servers_fault(monkeypatch: pytest.MonkeyPatch, failure: Failure):
    observed = Observed(monkeypatch)
    observed.request.start()
    observed.clock.advance(2)
    observed.request.record_failure(failure)
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == ([("s1", failure, 0, 2.0)] if failure.is_server_fault else [])


def test_each_attempt_is_reported_with_its_own_time(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    observed.request.start()
    observed.clock.advance(3)
    assert observed.request.fail() is observed.web["s2"]
    observed.clock.advance(1)
    observed.request.respond()
    assert observed.reports == [("s1", Failure.REFUSED, 0, 3.0), ("s2", None, 200, 1.0)]


def test_wait_for_a_slot_is_not_the_servers_time(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    web = Backend("web", [Server("s1", app, maxconn=1)], clock=observed.clock)
    monkeypatch.setattr(web.monitor, "record_request", observed._record)
    web.placement.acquire(web["s1"])
    request = ReportingTransaction(web)
    assert request.start() is None
    observed.clock.advance(4)
    web.placement.release(web["s1"])
    assert request.resume_wait(True) is web["s1"]
    observed.clock.advance(1)
    request.respond()
    assert observed.reports == [("s1", None, 200, 1.0)]


def test_truncated_response_is_reported_once(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    observed.request.start()
    observed.request.decision.status = 200
    observed.request.record_failure(Failure.CLOSED)
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == [("s1", Failure.TRUNCATED, 0, 0.0)]


def test_exception_of_the_app_is_reported_as_500_once(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    observed.request.start()
    assert observed.request.app_raised()
    observed.request.decision.status = 500
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == [("s1", None, 500, 0.0)]


def test_client_that_leaves_before_a_response_is_not_reported(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    observed.request.start()
    observed.request.client_disconnected()
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == []


@dataclass
class BodyOfClient:
    """The body of a request, of which the client has disconnected, or not."""

    client_left_first: bool
    replayable: bool = True
    discarded: bool = False

    def rewind(self) -> None: ...


def abandoned(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """Return a request with a client that has disconnected while a server had it."""
    observed = Observed(monkeypatch)
    observed.request.start()
    observed.request.body = BodyOfClient(True)
    return observed


def test_exception_after_the_client_has_disconnected_is_counted_as_its_disconnect_and_not_reported(
    monkeypatch: pytest.MonkeyPatch,
):
    observed = abandoned(monkeypatch)
    assert observed.request.app_raised()
    observed.request.decision.status = 500  # some frameworks respond, and raise then
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == []
    counters = observed.web["s1"].counters
    assert (counters[Total.CLI_ABRT], counters[Total.ERESP]) == (1, 0)


def test_exception_that_says_that_the_client_has_disconnected_is_not_reported(monkeypatch: pytest.MonkeyPatch):
    observed = Observed(monkeypatch)
    observed.request.start()
    assert observed.request.app_raised(is_disconnect=True)
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == []
    assert observed.web["s1"].counters[Total.CLI_ABRT] == 1


@pytest.mark.parametrize("status, reported", [(200, 1), (404, 1), (500, 0), (503, 0)])
def test_response_of_an_error_after_the_client_has_disconnected_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, status: int, reported: int
):
    observed = abandoned(monkeypatch)
    observed.request.respond(status=status)
    assert len(observed.reports) == reported


def test_failure_after_the_client_has_disconnected_is_not_reported(monkeypatch: pytest.MonkeyPatch):
    observed = abandoned(monkeypatch)
    observed.request.record_failure(Failure.CLOSED)
    observed.request.record_failure(Failure.NOT_FORWARDABLE)
    observed.request.release(observed.web["s1"], True)
    assert observed.reports == []
    counters = observed.web["s1"].counters
    assert (counters[Total.CLI_ABRT], counters[Total.ERESP]) == (1, 0)


@pytest.mark.parametrize("status, reports", [(503, [("s1", None, 503, 2.0)]), (500, [])])
def test_response_that_is_held_back_is_reported_at_once_and_its_end_is_not(
    monkeypatch: pytest.MonkeyPatch, status: int, reports: list[Report]
):
    observed = Observed(monkeypatch, retry_on="503")
    observed.request.start()
    observed.clock.advance(2)
    is_held = observed.request.hold_response(status)
    assert observed.reports == reports
    if is_held:
        observed.request.record_failure(Failure.TIMEOUT)
        assert not observed.request.app_raised()
        observed.request.release(observed.web["s1"], False)
        assert observed.reports == reports
