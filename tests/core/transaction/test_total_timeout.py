"""The limit of all attempts of one request (`Timeouts(total=...)`): what it ends, and that no server is charged."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import Ewma, Hash, RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.health.check import Check
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.budgeted_retry import BudgetedRetry
from sticky_core.transaction.reporting import Reporting
from sticky_core.transaction.status_retry import StatusRetry
from sticky_core.transaction.steps import UNAVAILABLE, NeedBody, NeedSlot
from sticky_core.transaction.total_timeout import TotalTimeout
from tests.core.fakes import ScriptedTransaction

TOTAL = 10
BOUND = "SRV=s1"


class Request(TotalTimeout[str, None], BudgetedRetry[str, None], StatusRetry[str, None], ScriptedTransaction):
    """A request with a limit for all its attempts."""

    __slots__ = ()


class ReportedRequest(Reporting[str, None], Request):
    """The same, of a backend that observes requests."""

    __slots__ = ()


def app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def build_backend(clock: ManualClock, servers: Sequence[Server] = (), **options: Any) -> Backend:
    asked: dict[str, Any] = {
        "balance": RoundRobin(start=0),
        "persist": Cookie("SRV", signed=False),
        "timeouts": Timeouts(total=TOTAL, queue=60),
        **options,
    }
    servers = servers or [Server(f"s{number}", f"http://10.0.0.{number}") for number in range(1, 4)]
    return Backend("web", servers, clock=clock, **asked)


def build_full_backend(clock: ManualClock, **options: Any) -> Backend:
    backend = build_backend(clock, [Server(name, app, maxconn=1) for name in ("s1", "s2")], **options)
    for server in backend.servers:
        backend.placement.acquire(server)
    return backend


def assert_ended(request: Request, *failures: Failure) -> None:
    """Require that the request has ended with a 504, that its failures were these, and that no server is charged for
    the time.
    """
    assert request.wait is None
    assert request.decision.failures == (*failures, Failure.TOTAL_TIMEOUT)
    assert request.unavailable_response().status == 504
    assert "no server could take the request; no response in time over all attempts" in request.decision.why
    errors = [server.counters[total] for server in request.owner.servers for total in (Total.ECON, Total.ERESP)]
    assert sum(errors) == len([failure for failure in failures if failure.is_server_fault])
    assert request.owner.granted_retries.in_flight == 0


# -- waits


def test_wait_in_a_queue_ends_when_the_time_is_over(clock: ManualClock):
    backend = build_full_backend(clock)
    request = Request(backend)
    clock.advance(100)
    assert request.start() is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == 110
    clock.advance(TOTAL)
    assert request.resume_wait(False) is None
    assert_ended(request)
    assert request.decision.attempts == ()
    backend.placement.release(backend["s1"])
    assert not backend["s1"].in_flight, "it waits no longer"


def test_shorter_wait_ends_as_it_does_without(clock: ManualClock):
    request = Request(build_full_backend(clock, timeouts=Timeouts(total=TOTAL, queue=2)))
    assert request.start() is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == 2
    clock.advance(2)
    assert request.resume_wait(False) is None
    assert request.unavailable_response().status == 503
    assert request.decision.failures == ()


def test_slot_that_is_granted_too_late_is_released(clock: ManualClock):
    backend = build_full_backend(clock)
    request, staying = Request(backend), ScriptedTransaction(backend)
    assert request.start() is None and staying.start() is None
    backend.placement.release(backend["s1"])
    clock.advance(TOTAL)
    assert request.resume_wait(True) is None
    assert_ended(request)
    assert staying.resume_wait(True) is backend["s1"]


def test_wait_that_goes_on_in_another_queue_has_the_same_end(clock: ManualClock):
    backend = build_full_backend(clock)
    request = Request(backend, cookie=BOUND)
    assert request.start() is None
    clock.advance(4)
    backend["s1"].state = "maint"
    assert request.resume_wait(True) is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == TOTAL


def test_pause_ends_when_the_time_is_over(clock: ManualClock):
    backend = build_backend(clock, redispatch=False)
    request = Request(backend, cookie=BOUND)
    assert request.start() is backend["s1"]
    clock.advance(TOTAL - 0.25)
    assert request.fail() is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == TOTAL, "a quarter of a second, not a whole"
    clock.advance(0.25)
    assert request.resume_wait(False) is None
    assert_ended(request, Failure.REFUSED)
    assert request.decision.attempts == ("s1",)


@pytest.mark.parametrize("early", [0.0, 0.0005], ids=["at its time", "half a millisecond before"])
def test_timer_that_is_not_exact_leaves_no_time_for_an_attempt(early: float, clock: ManualClock):
    request = Request(build_full_backend(clock))
    assert request.start() is None
    clock.advance(TOTAL - early)
    assert request.resume_wait(False) is None
    assert_ended(request)


def test_wait_for_the_body_ends_when_the_time_is_over(clock: ManualClock):
    from sticky_core.samples.request import json_field

    backend = build_backend(clock, balance=Hash(json_field("id")), persist=())
    request = Request(backend, method="POST", headers=[("content-type", "application/json")])
    need = request.first(None)
    assert isinstance(need, NeedBody)
    assert request.seconds_left == TOTAL
    clock.advance(TOTAL)
    assert request.seconds_left == 0
    request.wait = None
    assert request.body_read(need, b'{"id": 1}') is UNAVAILABLE
    assert_ended(request)


# -- attempts


@pytest.mark.parametrize("redispatch", [True, False])
@pytest.mark.parametrize("failure", [Failure.REFUSED, Failure.CLOSED, Failure.TIMEOUT], ids=lambda each: each.name)
def test_no_further_attempt_begins_when_the_time_is_over(failure: Failure, redispatch: bool, clock: ManualClock):
    backend = build_backend(clock, redispatch=redispatch, retry_on="all-retryable-errors")
    request = Request(backend, cookie=BOUND)
    assert request.start() is backend["s1"]
    clock.advance(TOTAL)
    assert request.fail(failure) is None, "it has really failed, and is charged with that"
    assert_ended(request, failure)
    assert request.decision.attempts == ("s1",)


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_attempt_that_the_face_ends_is_charged_to_no_server(attempts: int, clock: ManualClock):
    request = Request(build_backend(clock), cookie=BOUND)
    server = request.start()
    for _ in range(attempts - 1):
        clock.advance(1)
        server = request.fail()
    assert server is not None
    clock.advance(TOTAL - attempts + 1)
    assert request.seconds_left == 0
    assert request.fail(Failure.TOTAL_TIMEOUT) is None
    assert_ended(request, *[Failure.REFUSED] * (attempts - 1))
    assert len(request.decision.attempts) == attempts


@pytest.mark.parametrize("options", [{"retries": 0}, {"retry_on": "none"}], ids=["no retries", "none that are due"])
def test_last_failure_after_the_time_is_over_is_a_504(options: dict[str, Any], clock: ManualClock):
    request = Request(build_backend(clock, **options))
    assert request.start() is not None
    clock.advance(TOTAL)
    assert request.fail(Failure.REFUSED) is None
    assert_ended(request, Failure.REFUSED)


def test_failure_in_time_is_what_it_is_without(clock: ManualClock):
    request = Request(build_backend(clock, retries=0))
    assert request.start() is not None
    clock.advance(TOTAL - 1)
    assert request.fail(Failure.REFUSED) is None
    assert request.unavailable_response().status == 503


def test_observed_server_is_not_charged_either(clock: ManualClock):
    servers = [Server(name, app, max_fails=1) for name in ("s1", "s2")]
    backend = build_backend(
        clock, servers, check=Check(observe="layer7", error_limit=1, on_error="mark-down"), balance=Ewma()
    )
    assert backend.snapshot.observes
    request = ReportedRequest(backend, cookie=BOUND)
    assert request.start() is backend["s1"]
    clock.advance(TOTAL)
    assert request.fail(Failure.TOTAL_TIMEOUT) is None
    assert_ended(request)
    assert [server.status for server in backend.servers] == ["UP", "UP"]


def test_limit_is_lifted_for_one_attempt(clock: ManualClock):
    """A head that has arrived need not have reached the client (WSGI): if no body follows, there is another attempt."""
    request = Request(build_backend(clock))
    assert request.start() is not None
    clock.advance(TOTAL / 2)
    request.lift_total_timeout()
    assert request.seconds_left is None
    assert request.fail() is not None
    assert request.seconds_left == TOTAL / 2
    request.lift_total_timeout()
    clock.advance(TOTAL)
    assert request.fail() is None
    assert_ended(request, Failure.REFUSED, Failure.REFUSED)


def test_client_that_is_bound_keeps_its_server(clock: ManualClock):
    """A 504 of ours writes no mark, and the next request goes to the same server."""
    backend = build_backend(clock)
    for _ in range(2):
        request = Request(backend, cookie=BOUND)
        assert request.start() is backend["s1"]
        clock.advance(TOTAL)
        request.fail(Failure.TOTAL_TIMEOUT)
        page = request.unavailable_response()
        assert "set-cookie" not in dict(page.headers)
        assert request.decision.claim is Claim.VALID


# -- responses that are held back


def build_retrying_backend(clock: ManualClock) -> Backend:
    return build_backend(clock, retry_on="503")


def test_response_after_the_time_is_over_passes(clock: ManualClock):
    request = Request(build_retrying_backend(clock))
    assert request.start() is not None
    clock.advance(TOTAL)
    assert not request.hold_response(503)


@pytest.mark.parametrize("is_kept", [True, False], ids=["whole", "too long to be kept"])
def test_server_that_would_be_next_is_not_tried_and_a_response_that_was_kept_is_passed_on(
    is_kept: bool, clock: ManualClock
):
    backend = build_retrying_backend(clock)
    request = Request(backend)
    server = request.start()
    assert server is not None
    assert request.hold_response(503)
    if is_kept:
        request.keep_response("the response")
    clock.advance(TOTAL)
    request.record_failure(Failure.TOTAL_TIMEOUT)
    request.release(server, False)
    assert request.next_server() is None
    assert [len(each.in_flight) for each in backend.servers] == [0, 0, 0]
    assert request.decision.attempts == ("s1",)
    if is_kept:
        assert request.restore_response() == "the response"
        assert request.decision.server == "s1"
    else:
        assert request.restore_response() is None
        assert request.unavailable_response().status == 504


# -- the option


def test_limit_is_changed_at_run_time(clock: ManualClock):
    backend = build_backend(clock)
    earlier = Request(backend)
    assert earlier.start() is not None
    backend.apply(replace(backend.config, timeouts=Timeouts(total="30s")))
    later = Request(backend)
    assert later.start() is not None
    assert (earlier.seconds_left, later.seconds_left) == (TOTAL, 30)
    backend.apply(replace(backend.config, timeouts=Timeouts()))
    assert backend.snapshot.total_timeout is None
    unlimited = Request(backend)
    assert unlimited.start() is not None
    assert unlimited.seconds_left is None


def test_request_without_a_limit_has_no_time(clock: ManualClock):
    request = ScriptedTransaction(build_backend(clock, timeouts=Timeouts()))
    assert request.start() is not None
    assert request.seconds_left is None
    request.lift_total_timeout()
