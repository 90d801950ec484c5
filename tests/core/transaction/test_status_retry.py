"""Responses that are held back because of their status, while another server is tried."""

from collections.abc import Sequence
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.status_retry import StatusRetry
from tests.core.fakes import ScriptedTransaction

BOUND = "SRV=s1"


class HoldingTransaction(StatusRetry[str, None], ScriptedTransaction):
    """A transaction that may hold responses back."""

    __slots__ = ()


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def totals(server: Server, *wanted: Total) -> list[int]:
    return [server.counters[total] for total in wanted]


def build_retrying_backend(servers: Sequence[Server] | None = None, **options: Any) -> Backend:
    """Build a backend that retries after a response with status 503."""
    if servers is None:
        servers = [Server(f"s{number}", f"http://10.0.0.{number}") for number in range(1, 5)]
    asked: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": Cookie("SRV", signed=False)} | options
    return Backend("web", servers, clock=ManualClock(), retry_on="503", **asked)


def build_backend_with_one_slot_each(**options: Any) -> Backend:
    return build_retrying_backend([Server(name, app, maxconn=1) for name in ("s1", "s2")], **options)


def begin_request(backend: Backend, **asked: Any) -> tuple[HoldingTransaction, Server]:
    request = HoldingTransaction(backend, **asked)
    server = request.start()
    assert server is not None
    return request, server


def test_response_is_held_back_only_after_a_slot_elsewhere_was_acquired():
    backend = build_backend_with_one_slot_each()
    request, server = begin_request(backend)
    assert request.hold_response(503)
    assert request.holds_response
    assert [len(each.in_flight) for each in backend.servers] == [1, 1]
    request.release(server, False)
    assert request.next_server() is backend["s2"]
    assert not request.holds_response
    assert not request.hold_response(503), "no server is left, so this response is sent"
    assert request.decision.failures == (Failure.RETRIED_STATUS,)
    assert request.decision.attempts == ("s1", "s2")


def test_response_that_was_kept_is_restored_if_no_other_server_responds():
    backend = build_retrying_backend()
    request, server = begin_request(backend, cookie=BOUND)
    before = request.persisted
    assert request.hold_response(503)
    request.keep_response("the response")
    request.release(server, False)
    other = request.next_server()
    assert other is not None
    request.record_failure(Failure.CLOSED)
    request.release(other, False)
    assert request.next_server() is None
    assert request.restore_response() == "the response"
    decision = request.decision
    assert (request.tried[-1], request.persisted, decision.server) == (server, before, server.name)
    assert (decision.attempts, decision.failures) == (("s1", "s2"), (Failure.CLOSED,))
    decision.status = 503
    request.finish_restored()
    assert request.finished
    assert totals(server, Total.HRSP_5XX, Total.NO_RESPONSE) == [1, 0]


def test_nothing_is_restored_if_no_response_was_kept():
    request, _ = begin_request(build_retrying_backend())
    assert request.restore_response() is None
    assert request.hold_response(503)
    assert request.restore_response() is None


def test_response_is_sent_if_a_retry_would_have_to_wait():
    backend = build_backend_with_one_slot_each()
    backend.placement.acquire(backend["s2"])
    request, _ = begin_request(backend, cookie=BOUND)
    assert not request.hold_response(503)
    assert not request.holds_response
    assert (request.decision.failures, request.decision.claim, request.wait) == ((), Claim.VALID, None)
    assert totals(backend["s1"], Total.WRETR, Total.WREDIS) == [0, 0]
    backend.placement.release(backend["s2"])
    assert not backend["s2"].in_flight, "it waits no longer"


def test_response_is_sent_if_the_same_server_has_no_second_slot():
    backend = build_retrying_backend([Server("s1", app, maxconn=1)], redispatch=False)
    request, server = begin_request(backend)
    assert not request.hold_response(503)
    assert totals(server, Total.WRETR, Total.WREDIS) == [0, 0]


class AbandonedBody:
    """The body of a request with a client that has disconnected."""

    replayable = True
    discarded = False
    client_left_first = True

    def rewind(self) -> None: ...


@pytest.mark.parametrize("status, held", [(503, True), (500, False), (200, False), (404, False)])
def test_only_configured_statuses_are_held_back(status: int, held: bool):
    request, _ = begin_request(build_retrying_backend())
    assert request.hold_response(status) is held


def test_request_that_ends_between_two_attempts_releases_the_second():
    backend = build_backend_with_one_slot_each()
    request, server = begin_request(backend)
    assert request.hold_response(503)
    request.release(server, True)
    assert [len(each.in_flight) for each in backend.servers] == [0, 0]
    assert request.decision.attempts == ("s1",)
    assert backend["s2"].total == 0, "it has got no request"
    assert not request.holds_response


def test_failure_of_a_response_that_is_held_back_is_not_recorded():
    backend = build_retrying_backend()
    request, _ = begin_request(backend)
    assert request.hold_response(503)
    request.record_failure(Failure.TRUNCATED)
    request.client_disconnected()
    assert request.app_raised() is False
    assert request.decision.failures == (Failure.RETRIED_STATUS,)
    for server in backend.servers:
        assert totals(server, Total.ERESP, Total.ECON, Total.CLI_ABRT) == [0, 0, 0]


def test_response_to_a_client_that_has_disconnected_is_sent():
    """Its server has responded so because the body was incomplete, and the next one would as well."""
    request, _ = begin_request(build_retrying_backend())
    request.body = AbandonedBody()
    assert not request.hold_response(503)


@pytest.mark.parametrize("method, held", [("GET", True), ("PUT", True), ("POST", False), ("PATCH", False)])
def test_response_to_a_request_that_may_not_be_executed_twice_is_sent(method: str, held: bool):
    request, _ = begin_request(build_retrying_backend(), method=method)
    assert request.hold_response(503) is held
