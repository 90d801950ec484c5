"""The steps of a transaction: a server, what has to be waited for, or that no server can take the request."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import form
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.transaction.steps import UNAVAILABLE, NeedBody, NeedSlot
from tests.core.fakes import ScriptedTransaction

SRV = Cookie("SRV", signed=False)


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def backend(*, maxconn: int = 0, **options: object) -> Backend:
    servers = [Server(name, app, maxconn=maxconn) for name in ("s1", "s2")]
    asked: dict[str, object] = {"balance": RoundRobin(start=0), "persist": SRV, "clock": ManualClock(), **options}
    return Backend("web", servers, **asked)  # type: ignore[arg-type]


def test_first_step_of_a_new_client_is_the_server_that_balance_chooses():
    web = backend()
    request = ScriptedTransaction(web)
    assert request.first(None) is web["s1"]
    assert (request.tried, request.decision.attempts) == ((web["s1"],), ("s1",))
    assert (request.decision.claim, request.decision.reason) == (Claim.NONE, Reason.NO_COOKIE)


@pytest.mark.parametrize("maxconn", [0, 5], ids=["uncounted", "counted"])
def test_first_step_of_a_bound_client_is_its_server_on_and_off_the_fast_path(maxconn):
    web = backend(maxconn=maxconn)
    for _ in range(3):
        request = ScriptedTransaction(web, cookie="SRV=s2")
        assert request.start() is web["s2"]
        assert (request.tried, request.decision.attempts) == ((web["s2"],), ("s2",))
        decision = request.decision
        assert (decision.claim, decision.reason, decision.claimed) == (Claim.VALID, Reason.BOUND, "s2")
        request.respond()
        assert (decision.mark, decision.status) == (Mark.NONE, 200)


def test_step_without_a_usable_server_is_unavailable():
    web = backend()
    for server in web.servers:
        server.state = AdminState.MAINT
    request = ScriptedTransaction(web)
    assert request.first(None) is UNAVAILABLE
    assert request.unavailable_response().status == 503
    assert (request.decision.server, request.decision.status, request.finished) == (None, 503, True)


def test_step_at_full_servers_is_a_wait_for_a_slot():
    web = backend(maxconn=1, timeouts=Timeouts(queue=7))
    for server in web.servers:
        web.placement.acquire(server)
    request = ScriptedTransaction(web, cookie="SRV=s1")
    step = request.first("SRV=s1")
    assert isinstance(step, NeedSlot)
    assert (step.until, step.server) == (7.0, web["s1"])
    web.placement.release(web["s1"])
    assert request.resume(step, True) is web["s1"]


def test_step_that_needs_the_body_names_how_much_of_it():
    web = backend(persist=Stick.on(form("user")))
    headers = [("content-type", "application/x-www-form-urlencoded"), ("content-length", "6")]
    request = ScriptedTransaction(web, headers=headers, method="POST", body=b"user=1")
    step = request.first(None)
    assert isinstance(step, NeedBody)
    assert request.body_read(step, b"user=1") is web["s1"]


def test_failure_after_the_head_of_a_response_has_truncated_it():
    web = backend()
    request = ScriptedTransaction(web)
    request.start()
    request.decision.status = 200
    assert request.record_failure(Failure.TIMEOUT) is Failure.TRUNCATED
    assert request.decision.failures == (Failure.TRUNCATED,)


@pytest.mark.parametrize(
    "error, level, text",
    [
        (ServerFailure(Failure.TRUNCATED, detail="silent"), "WARNING", "Server web/s1: response cut short: silent"),
        (ServerFailure(Failure.TRUNCATED), "WARNING", "Server web/s1: response cut short"),
        (
            ServerFailure(Failure.CLOSED),
            "WARNING",
            "Server web/s1: response cut short: closed before the response",
        ),
        (ServerFailure(Failure.CLIENT_TIMEOUT), "INFO", "Server web/s1: no more of the request in time"),
    ],
)
def test_truncated_response_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, error: ServerFailure, level: str, text: str
):
    request = ScriptedTransaction(backend())
    request.start()
    request.decision.status = 200
    with caplog.at_level("INFO"):
        request.log_truncation(request.record_failure(error.failure), error)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [(level, text)]


def test_client_that_stops_sending_is_the_clients_failure_even_after_the_head_of_a_response():
    web = backend()
    request = ScriptedTransaction(web)
    request.start()
    assert request.record_failure(Failure.CLIENT_TIMEOUT) is Failure.CLIENT_TIMEOUT
    request.decision.status = 200
    assert request.record_failure(Failure.CLIENT_TIMEOUT) is Failure.CLIENT_TIMEOUT
    counters = web["s1"].counters
    assert [counters[total] for total in (Total.CLI_ABRT, Total.ERESP, Total.ECON)] == [1, 0, 0]


def test_client_that_stops_sending_gets_a_408_and_no_other_server_is_tried():
    web = backend(retry_on="all-retryable-errors")
    request = ScriptedTransaction(web)
    request.start()
    assert request.fail(Failure.CLIENT_TIMEOUT) is None
    assert request.unavailable_response().status == 408


def test_exception_of_the_app_and_a_client_that_leaves_are_counted_at_the_server():
    web = backend()
    request = ScriptedTransaction(web)
    request.start()
    assert request.app_raised()
    request.client_disconnected()
    assert [web["s1"].counters[total] for total in (Total.ERESP, Total.CLI_ABRT)] == [1, 1]


def test_abandoned_wait_leaves_the_queue_and_is_logged():
    logged: list[object] = []
    web = backend(maxconn=1, log=logged.append)
    for server in web.servers:
        web.placement.acquire(server)
    request = ScriptedTransaction(web)
    request.abandon(request.first(None))
    assert logged == [request.decision] and request.decision.server is None
    assert web.qcur() == 0


def test_debug_adds_the_decision_to_the_response():
    request = ScriptedTransaction(backend(), cookie="SRV=s1")
    request.start()
    request.enable_debug()
    assert request.respond().values("x-sticky") == [str(request.decision)]
