"""Retries of requests as far as the backend's budget allows them, and when a request gives its grant back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.retries import RetryBudget
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.budgeted_retry import BudgetedRetry
from sticky_core.transaction.status_retry import StatusRetry
from tests.core.fakes import ScriptedTransaction

ONE = RetryBudget(share=0, per_second=1)  # one retry, as the clock stands still


class Request(BudgetedRetry[str, None], StatusRetry[str, None], ScriptedTransaction):
    """A request of a backend with a budget."""

    __slots__ = ()


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def build_backend(*servers: Server, **options: Any) -> Backend:
    asked: dict[str, Any] = {
        "balance": RoundRobin(start=0),
        "persist": Cookie("SRV", signed=False),
        "clock": ManualClock(),
        "retry_budget": ONE,
        **options,
    }
    return Backend("web", servers or [Server(f"s{n}", f"http://10.0.0.{n}") for n in range(1, 6)], **asked)


def attempts(request: Request) -> int:
    """Let every server fail, and return how many were tried."""
    server = request.start()
    while server is not None:
        server = request.fail()
    request.unavailable_response()
    return len(request.decision.attempts)


# -- the option


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"retry_budget": 20}, "retry_budget: share 20 is not a share", id="percent"),
        pytest.param(
            {"retry_budget": "0.2"}, "retry_budget='0.2' has the wrong type: write retry_budget=0.2", id="text"
        ),
        pytest.param({"retry_budget": True}, "retry_budget: share True is not a share", id="a truth"),
        pytest.param({"retries": 0}, "retry_budget has no effect with retries=0", id="no retries"),
        pytest.param({"retry_on": "none"}, "retry_budget has no effect without retry_on", id="after no failure"),
    ],
)
def test_budget_that_cannot_work_is_refused_at_the_start_and_later(options, problem):
    with pytest.raises(ConfigError) as refused:
        build_backend(**options)
    assert f"backend web: {problem}" in str(refused.value)
    backend = build_backend()
    words = options.get("retry_on")
    with pytest.raises(ConfigError) as refused:
        backend.apply(replace(backend.config, **options | ({"retry_on": (words,)} if words else {})))
    assert f"backend web: {problem}" in str(refused.value)


def test_budget_is_none_unless_it_is_asked_for():
    backend = Backend("web", [Server("s1", app)])
    assert (backend.config.retry_budget, backend.snapshot.retry_budget) == (None, None)


def test_number_and_budget_are_the_same_configuration():
    number, value = build_backend(retry_budget=0.2), build_backend(retry_budget=RetryBudget())
    assert number.config == value.config
    assert number.snapshot.retry_budget == RetryBudget(share=0.2, per_second=10)


def test_budget_is_changed_at_run_time():
    backend = build_backend()
    earlier = Request(backend)
    assert backend.plan(replace(backend.config, retry_budget=1)).options == ("retry_budget",)
    backend.apply(replace(backend.config, retry_budget=RetryBudget(share=0, per_second=3)))
    assert attempts(Request(backend)) == 4
    backend.apply(replace(backend.config, retry_budget=None))
    assert backend.snapshot.retry_budget is None
    assert attempts(earlier) == 1, "a request keeps the configuration that it began with"


# -- what is denied


def test_request_that_is_denied_a_retry_ends_with_its_failure():
    backend = build_backend()
    assert [attempts(Request(backend)) for _ in range(3)] == [2, 1, 1]
    request = Request(backend)
    assert request.start() is not None
    assert request.fail() is None and request.wait is None
    assert request.decision.failures == (Failure.REFUSED,)
    assert request.unavailable_response().status == 503
    assert request.decision.retry_denied
    assert "no server could take the request; retry_budget denied a further attempt" in request.decision.why
    assert backend.granted_retries.denied == 4


def test_request_that_was_not_denied_says_nothing_of_the_budget():
    request = Request(build_backend())
    request.start()
    assert request.fail() is not None
    request.respond()
    assert not request.decision.retry_denied
    assert "budget" not in request.decision.why


@pytest.mark.parametrize("redispatch", [True, False, -1], ids=["elsewhere", "the same server", "the last elsewhere"])
@pytest.mark.parametrize("failure", [Failure.REFUSED, Failure.CLOSED, Failure.LOCAL_LIMIT], ids=lambda each: each.name)
def test_every_kind_of_retry_counts(redispatch, failure):
    backend = build_backend(redispatch=redispatch, retry_on="all-retryable-errors", retry_budget=RetryBudget(0, 2))
    for denied in (False, False, True):
        request = Request(backend, cookie="SRV=s1")
        assert request.start() is backend["s1"]
        following = request.fail(failure)
        assert (following is None and request.wait is None) is denied
        if request.wait is not None:
            following = request.resume_wait(False)
        if not denied:
            request.respond()
        else:
            request.unavailable_response()
    assert backend.granted_retries.in_flight == 0


def test_fifty_requests_at_five_dead_servers_are_tried_sixty_times():
    def tries(**options: Any) -> int:
        backend = build_backend(retries=4, **options)
        requests = [Request(backend) for _ in range(50)]
        waiting = [request for request in requests if request.start() is not None]
        while waiting:  # the servers fail all requests at the same time
            for request in waiting:
                request.record_failure(Failure.REFUSED)
                request.release(request.tried[-1], False)
            following = [(request, request.next_server()) for request in waiting]
            for request, server in following:
                if server is None:
                    request.unavailable_response()
            waiting = [request for request, server in following if server is not None]
        return sum(len(request.decision.attempts) for request in requests)

    assert tries(retry_budget=None) == 250
    assert tries(retry_budget=RetryBudget(share=0, per_second=10)) == 60


def test_share_counts_requests_at_servers_and_in_queues_and_itself():
    servers = [Server(f"s{n}", app, maxconn=1) for n in (1, 2)]
    backend = build_backend(*servers, retry_budget=RetryBudget(share=0.25, per_second=0), redispatch=False)
    first, second, third, fourth = (Request(backend) for _ in range(4))
    assert first.start() is not None and second.start() is not None
    assert third.start() is None and third.wait is not None
    assert first.fail(Failure.NOT_STARTED) is None
    assert first.wait is None, "three requests are in flight, and a quarter of three is less than one"
    assert third.resume_wait(True) is not None, "it has got the slot"
    assert fourth.start() is None and fourth.wait is not None
    fifth = Request(backend)
    assert fifth.start() is None and fifth.wait is not None
    assert second.fail(Failure.NOT_STARTED) is None and second.wait is not None, "four are; it waits for its server"
    assert backend.granted_retries.in_flight == 1


# -- a response that is held back


def test_response_passes_if_the_budget_denies_the_retry():
    backend = build_backend(retry_on="503")
    first, second = Request(backend), Request(backend, cookie="SRV=s2")
    assert first.start() is not None and second.start() is not None
    assert first.hold_response(503)
    before = second.persisted
    assert not second.hold_response(503)
    assert (second.decision.failures, second.persisted) == ((), before)
    second.respond(status=503)
    assert second.decision.why == "s2: server is usable; retry_budget denied a further attempt"
    assert [backend["s2"].counters[total] for total in (Total.WREDIS, Total.WRETR)] == [0, 0]


@pytest.mark.parametrize("maxconn", [0, 1], ids=["no other server", "a server that is full"])
def test_response_that_passes_as_no_server_is_free_uses_nothing_of_the_budget(maxconn):
    servers = [Server("s1", app)] if not maxconn else [Server(name, app, maxconn=1) for name in ("s1", "s2")]
    backend = build_backend(*servers, retry_on="503")
    if maxconn:
        backend.placement.acquire(backend["s2"])
    request = Request(backend)
    assert request.start() is not None
    for _ in range(3):
        assert not request.hold_response(503)
        assert not request.decision.retry_denied
    assert backend.granted_retries.in_flight == 0
    if maxconn:
        backend.placement.release(backend["s2"])
        assert request.hold_response(503)


# -- giving back


def respond(request: Request) -> None:
    request.respond()


def fail(request: Request) -> None:
    while request.fail() is not None:
        pass
    request.unavailable_response()


def raise_in_app(request: Request) -> None:
    request.app_raised()
    request.release(request.tried[-1], True)


def disconnect(request: Request) -> None:
    request.client_disconnected()
    request.release(request.tried[-1], True)


def restore(request: Request) -> None:
    assert request.hold_response(503)
    request.keep_response("the response")
    request.release(request.tried[-2], False)
    assert request.next_server() is not None
    assert request.fail(Failure.NOT_FORWARDABLE) is None
    assert request.restore_response() == "the response"
    request.decision.status = 503
    request.finish_restored()


@pytest.mark.parametrize("end", [respond, fail, raise_in_app, disconnect, restore])
def test_grant_is_given_back_at_every_end(end: Callable[[Request], None]):
    backend = build_backend(retry_budget=RetryBudget(0, 100), retry_on="conn-failure 503", retries=9)
    request = Request(backend)
    request.start()
    assert request.fail() is not None
    assert backend.granted_retries.in_flight == 1
    end(request)
    assert request.finished
    assert backend.granted_retries.in_flight == 0


def test_grant_is_kept_while_the_response_lasts():
    backend = build_backend()
    request = Request(backend)
    request.start()
    assert request.fail() is not None
    request.decision.status = 200  # the head has passed
    assert backend.granted_retries.in_flight == 1
    request.release(request.tried[-1], True)
    assert backend.granted_retries.in_flight == 0


def test_grant_is_given_back_if_the_client_leaves_in_the_pause():
    backend = build_backend(redispatch=False, retry_budget=RetryBudget(share=1, per_second=0))
    leaving, staying = Request(backend), Request(backend)
    assert leaving.start() is not None and staying.start() is not None
    assert leaving.fail() is None and leaving.wait is not None
    assert staying.fail() is None and staying.wait is not None, "both are in flight, and all of them may be retries"
    leaving.abandon_wait()
    assert backend.granted_retries.in_flight == 1
    assert staying.resume_wait(False) is not None
    staying.respond()
    assert backend.granted_retries.in_flight == 0
    alone = Request(backend)
    assert alone.start() is not None
    assert alone.fail() is None and alone.wait is not None
    alone.abandon_wait()


def test_retry_without_another_server_uses_nothing_of_the_budget():
    backend = build_backend(Server("s1", "http://10.0.0.1"))
    for _ in range(3):
        request = Request(backend)
        assert attempts(request) == 1
        assert not request.decision.retry_denied
    assert backend.granted_retries.in_flight == backend.granted_retries.denied == 0


def test_last_retry_is_no_denial():
    backend = build_backend(retries=1)
    request = Request(backend)
    assert attempts(request) == 2
    assert not request.decision.retry_denied
