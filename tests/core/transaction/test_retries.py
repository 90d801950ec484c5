"""Retries of a transaction: which server gets them, what they cost, and how they wait for slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from sticky_core.transaction.steps import NeedSlot
from tests.core.fakes import ScriptedTransaction

PLAIN = Cookie("SRV", signed=False)


UPSTREAMS = ("http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.4")


def upstreams() -> list[Server]:
    return [Server(f"s{number}", url) for number, url in enumerate(UPSTREAMS, 1)]


def build_backend(servers: Sequence[Server] | None = None, **options: Any) -> Backend:
    asked: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": PLAIN, "clock": ManualClock()} | options
    return Backend("web", upstreams() if servers is None else servers, **asked)


def run_to_the_end(request: ScriptedTransaction, failure: Failure = Failure.REFUSED) -> list[str | float]:
    """Let every server fail. Return the servers that get an attempt, and the pauses between in seconds."""
    clock = request.snapshot.clock
    assert isinstance(clock, ManualClock)
    steps: list[str | float] = []
    server = request.start()
    while server is not None or request.wait is not None:
        if server is None:
            assert isinstance(request.wait, NeedSlot) and request.wait.ticket is None
            pause = request.wait.until - clock.monotonic()
            steps.append(round(pause, 6))
            clock.advance(pause)
            server = request.resume_wait(False)
            continue
        steps.append(server.name)
        request.record_failure(failure)
        request.release(server, False)
        server = request.next_server()
    assert all(not server.in_flight for server in request.snapshot.servers)
    return steps


BOUND = "SRV=s1"


@pytest.mark.parametrize(
    "redispatch, cookie, expected",
    [
        pytest.param(True, BOUND, ["s1", "s2", "s3", "s4"], id="True: elsewhere and at once"),
        pytest.param(True, "", ["s1", "s2", "s3", "s4"], id="True: a new client too"),
        pytest.param(False, BOUND, ["s1", 1, "s1", 1, "s1", 1, "s1"], id="False: the same"),
        pytest.param(False, "", ["s1", 1, "s1", 1, "s1", 1, "s1"], id="False: the same for a new client too"),
        pytest.param(-1, BOUND, ["s1", 1, "s1", 1, "s1", "s2"], id="-1: the last elsewhere"),
        pytest.param(-1, "", ["s1", "s2", 1, "s2", "s3"], id="-1: a new client at once, and at last"),
        pytest.param(-2, BOUND, ["s1", 1, "s1", "s2", 1, "s2"], id="-2: the one before the last"),
        pytest.param(2, BOUND, ["s1", 1, "s1", "s2", 1, "s2"], id="2: every second"),
        pytest.param(2, "", ["s1", "s2", "s3", 1, "s3"], id="2: a new client at once, and every second"),
        pytest.param(1, BOUND, ["s1", "s2", "s3", "s4"], id="1: every one"),
    ],
)
def test_servers_that_get_the_retries_after_connections_failed(
    redispatch: bool | int, cookie: str, expected: list[str | float]
):
    assert run_to_the_end(ScriptedTransaction(build_backend(redispatch=redispatch), cookie=cookie)) == expected


@pytest.mark.parametrize("connect, pause", [("300ms", 0.3), (1, 1.0), (5, 1.0)])
def test_pause_is_a_second_or_the_connect_timeout_if_that_is_less(connect: str | int, pause: float):
    backend = build_backend(redispatch=False, retries=1, timeouts=Timeouts(connect=connect))
    assert run_to_the_end(ScriptedTransaction(backend)) == ["s1", pause, "s1"]


EXECUTED = [failure for failure in Failure if failure.maybe_executed and failure.retry_word]


@pytest.mark.parametrize("failure", EXECUTED, ids=lambda failure: failure.name)
def test_server_that_was_reached_is_retried_without_a_pause(failure: Failure):
    backend = build_backend(redispatch=False, retry_on="all-retryable-errors")
    assert run_to_the_end(ScriptedTransaction(backend), failure) == ["s1", "s1", "s1", "s1"]


def app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.mark.parametrize("stateless", [False, True], ids=["with a memory", "without"])
def test_app_in_this_process_is_retried_without_a_pause(stateless: bool):
    apps = [Server(name, app, stateless=stateless) for name in ("s1", "s2")]
    assert run_to_the_end(ScriptedTransaction(build_backend(apps, redispatch=False))) == ["s1", "s1", "s1", "s1"]


@pytest.mark.parametrize("redispatch, expected", [(-1, ["s1", "s2"]), (False, ["s1", 1, "s1"])])
def test_retry_goes_to_another_server_if_the_first_is_down_after_the_pause(
    redispatch: bool | int, expected: list[str | float]
):
    backend = build_backend(redispatch=redispatch, retries=1)
    request = ScriptedTransaction(backend, cookie=BOUND)
    server = request.start()
    assert server is backend["s1"]
    request.record_failure(Failure.REFUSED)
    backend["s1"].health = Health.DOWN
    request.release(server, False)
    following = request.next_server()
    if request.wait is not None:
        following = request.resume_wait(False)
    assert following is backend[str(expected[-1])]


@pytest.mark.parametrize("retries", [0, 1, 2, 9])
@pytest.mark.parametrize("redispatch", [True, False, -1])
def test_number_of_retries_is_limited(retries: int, redispatch: bool | int):
    steps = run_to_the_end(ScriptedTransaction(build_backend(retries=retries, redispatch=redispatch), cookie=BOUND))
    attempts = [station for station in steps if isinstance(station, str)]
    assert len(attempts) == (min(retries + 1, 4) if redispatch is True else retries + 1)


@dataclass
class FakeBody:
    """A body, as far as it was read."""

    replayable: bool = True
    discarded: bool = False
    client_left_first: bool = False

    def rewind(self) -> None: ...


IN_THE_LIMIT, BEYOND_THE_LIMIT, DISCARDED = (
    FakeBody(),
    FakeBody(replayable=False),
    FakeBody(replayable=False, discarded=True),
)


IDEMPOTENT = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"]


OTHERS = ["POST", "PATCH", "CONNECT", "get", "PURGE"]


@pytest.mark.parametrize("method", [*IDEMPOTENT, *OTHERS])
@pytest.mark.parametrize(
    "body, may", [(None, True), (IN_THE_LIMIT, True), (BEYOND_THE_LIMIT, True), (DISCARDED, False)]
)
def test_request_that_no_server_executed_is_replayed_if_nothing_of_it_is_lost(
    method: str, body: FakeBody | None, may: bool
):
    request = ScriptedTransaction(build_backend(), method=method)
    if body is not None:
        request.body = body
    assert run_to_the_end(request) == (["s1", "s2", "s3", "s4"] if may else ["s1"])


@pytest.mark.parametrize("failure", EXECUTED, ids=lambda failure: failure.name)
@pytest.mark.parametrize(
    "body, fits", [(None, True), (IN_THE_LIMIT, True), (BEYOND_THE_LIMIT, False), (DISCARDED, False)]
)
@pytest.mark.parametrize(
    "method, opted_in, key, harmless",
    [
        *((method, False, None, True) for method in IDEMPOTENT),
        *((method, False, "a key", False) for method in OTHERS),
        *((method, True, None, False) for method in OTHERS),
        *((method, True, "", False) for method in OTHERS),
        *((method, True, "a key", True) for method in OTHERS),
    ],
)
def test_request_that_may_have_been_executed_is_replayed_if_that_does_no_harm(
    failure: Failure, body: FakeBody | None, fits: bool, method: str, opted_in: bool, key: str | None, harmless: bool
):
    backend = build_backend(retry_on="all-retryable-errors", idempotency_key=opted_in)
    headers = [] if key is None else [("idempotency-key", key)]
    request = ScriptedTransaction(backend, method=method, headers=headers)
    if body is not None:
        request.body = body
    assert run_to_the_end(request, failure) == (["s1", "s2", "s3", "s4"] if fits and harmless else ["s1"])


def totals(server: Server, *wanted: Total) -> list[int]:
    return [server.counters[total] for total in wanted]


def test_each_retry_is_counted_at_the_server_that_failed():
    backend = build_backend(redispatch=-2, retries=4)
    assert run_to_the_end(ScriptedTransaction(backend, cookie=BOUND)) == ["s1", 1, "s1", 1, "s1", "s2", 1, "s2"]
    assert totals(backend["s1"], Total.WRETR, Total.WREDIS, Total.ECON) == [2, 1, 3]
    assert totals(backend["s2"], Total.WRETR, Total.WREDIS, Total.ECON) == [1, 0, 2]


def test_retry_that_is_not_made_is_not_counted():
    backend = build_backend([Server("s1", app)], redispatch=True)
    assert run_to_the_end(ScriptedTransaction(backend)) == ["s1"]
    assert totals(backend["s1"], Total.WRETR, Total.WREDIS) == [0, 0]


def test_redispatched_client_gets_a_new_mark_and_one_that_stays_does_not():
    stays = ScriptedTransaction(build_backend(redispatch=False, retries=1), cookie=BOUND)
    run_to_the_end(stays)
    assert (stays.decision.claim, stays.persisted.needs_no_mark) == (Claim.VALID, True)
    moves = ScriptedTransaction(build_backend(retries=1), cookie=BOUND)
    run_to_the_end(moves)
    assert (moves.decision.claim, moves.decision.reason, moves.persisted.needs_no_mark) == (
        Claim.DOWN,
        Reason.FAILED,
        False,
    )


@pytest.mark.parametrize("out", ["down", "maint"])
@pytest.mark.parametrize("unavailable", ["redispatch", "fail"])
def test_client_is_redispatched_if_its_server_goes_down_during_the_pause(out: str, unavailable: str):
    backend = build_backend(redispatch=-1, unavailable=unavailable)
    request = ScriptedTransaction(backend, cookie=BOUND)
    server = request.start()
    assert server is backend["s1"]
    request.record_failure(Failure.REFUSED)
    request.release(server, False)
    assert request.next_server() is None
    if out == "down":
        server.health = Health.DOWN
    else:
        server.state = AdminState.MAINT
    following = request.resume_wait(False)
    assert following is (backend["s2"] if unavailable == "redispatch" else None)
    assert (request.decision.claim, request.decision.reason, request.persisted.needs_no_mark) == (
        Claim.DOWN,
        Reason.FAILED,
        False,
    )
    assert totals(server, Total.WRETR, Total.WREDIS) == [0, 1 if following else 0]


@pytest.mark.parametrize("redispatch", [True, -1])
def test_unavailable_fail_retries_no_other_server(redispatch: bool | int):
    backend = build_backend(redispatch=redispatch, unavailable="fail")
    steps = run_to_the_end(ScriptedTransaction(backend, cookie=BOUND))
    assert {each for each in steps if isinstance(each, str)} == {"s1"}


def full_backend(**options: Any) -> Backend:
    """Build a backend of s1 and s2 with one slot each. Both are acquired."""
    backend = build_backend([Server(name, app, maxconn=1) for name in ("s1", "s2")], **options)
    for server in backend.servers:
        backend.placement.acquire(server)
    return backend


def test_retry_waits_behind_requests_that_wait_already():
    backend = full_backend(redispatch=True)
    earlier = ScriptedTransaction(backend)
    assert earlier.start() is None
    backend.placement.release(backend["s1"])  # its slot is granted to the request that waits
    first = earlier.resume_wait(True)
    assert first is backend["s1"]
    later = ScriptedTransaction(backend)
    assert later.start() is None
    earlier.record_failure(Failure.REFUSED)
    earlier.release(first, False)
    assert earlier.next_server() is None and earlier.wait is not None, "s2 is full"
    backend.placement.release(backend["s2"])
    assert later.resume_wait(True) is backend["s1"], "the slot that was released"
    assert earlier.resume_wait(True) is backend["s2"]
    assert totals(backend["s1"], Total.WREDIS, Total.WRETR) == [1, 0]


@pytest.mark.parametrize("woken", [True, False])
def test_slot_that_was_granted_counts_even_if_the_wait_is_over(woken: bool):
    backend = full_backend()
    request = ScriptedTransaction(backend)
    assert request.start() is None
    backend.placement.release(backend["s2"])
    assert request.resume_wait(woken) is backend["s2"]
    assert request.wait is None


def test_wait_that_times_out_leaves_the_queue():
    backend = full_backend(timeouts=Timeouts(queue=7))
    request = ScriptedTransaction(backend)
    assert request.start() is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == 7.0
    assert request.resume_wait(False) is None
    assert request.wait is None
    backend.placement.release(backend["s1"])
    assert not backend["s1"].in_flight, "no request has its slot"
    assert request.unavailable_response().status == 503


def test_redispatch_to_another_queue_does_not_extend_the_timeout():
    clock = ManualClock()
    backend = full_backend(timeouts=Timeouts(queue=7), clock=clock)
    request = ScriptedTransaction(backend, cookie=BOUND)
    assert request.start() is None
    clock.advance(5)
    backend["s1"].state = AdminState.MAINT
    assert request.resume_wait(True) is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == 7.0
    backend.placement.release(backend["s2"])
    assert request.resume_wait(True) is backend["s2"]
    assert (request.decision.claim, request.decision.reason) == (Claim.DOWN, Reason.DOWN)


@pytest.mark.parametrize("granted", [False, True])
def test_abandoned_wait_releases_its_slot_to_the_next_request(granted: bool):
    logged: list[object] = []
    backend = full_backend(log=logged.append)
    leaving, staying = ScriptedTransaction(backend), ScriptedTransaction(backend)
    assert leaving.start() is None and staying.start() is None
    if granted:
        backend.placement.release(backend["s1"])
    leaving.abandon_wait()
    assert leaving.finished and leaving.decision.server is None and leaving.wait is None
    assert logged == [leaving.decision]
    if not granted:
        backend.placement.release(backend["s1"])
    assert staying.resume_wait(True) is backend["s1"]
    assert [len(server.in_flight) for server in backend.servers] == [1, 1]


def test_requests_that_balance_has_placed_are_counted_after_a_wait_too():
    backend = full_backend(persist=PLAIN)
    bound, chosen = ScriptedTransaction(backend, cookie="SRV=s2"), ScriptedTransaction(backend)
    assert bound.start() is None and chosen.start() is None
    for server in backend.servers:
        backend.placement.release(server)
    assert (chosen.resume_wait(True), bound.resume_wait(True)) == (backend["s1"], backend["s2"])
    assert [server.counters[Total.LBTOT] for server in backend.servers] == [1, 0]


@pytest.mark.parametrize("out", ["down", "maint"])
@pytest.mark.parametrize("waits_on", [False, True])
def test_redispatch_from_a_queue_is_counted_at_its_server_as_in_haproxy(out: str, waits_on: bool):
    backend = full_backend(persist=PLAIN)
    request = ScriptedTransaction(backend, cookie=BOUND)
    assert request.start() is None
    if not waits_on:
        backend.placement.release(backend["s2"])
    if out == "down":
        backend["s1"].health = Health.DOWN
    else:
        backend["s1"].state = AdminState.MAINT
    server = request.resume_wait(True)
    if waits_on:
        assert server is None and request.wait is not None
        backend.placement.release(backend["s2"])
        server = request.resume_wait(True)
    assert server is backend["s2"]
    assert [totals(each, Total.WREDIS, Total.WRETR, Total.LBTOT) for each in backend.servers] == [[1, 0, 0], [0, 0, 1]]
    request.record_failure(Failure.REFUSED)
    request.release(server, False)
    assert request.next_server() is None
    assert [totals(each, Total.WREDIS) for each in backend.servers] == [[1], [0]]


@pytest.mark.parametrize("waits_on", [False, True])
def test_redispatch_from_a_full_queue_is_counted_at_its_server_as_in_haproxy(waits_on: bool):
    backend = build_backend([Server(name, app, maxconn=1, maxqueue=1) for name in ("s1", "s2")])
    for server in backend.servers if waits_on else [backend["s1"]]:
        backend.placement.acquire(server)
    waiting, request = ScriptedTransaction(backend, cookie=BOUND), ScriptedTransaction(backend, cookie=BOUND)
    assert waiting.start() is None
    moved = request.start()
    if waits_on:
        assert moved is None
        backend.placement.release(backend["s2"])
        moved = request.resume_wait(True)
    assert moved is backend["s2"]
    assert [totals(each, Total.WREDIS, Total.WRETR) for each in backend.servers] == [[1, 0], [0, 0]]


@pytest.mark.parametrize("unavailable", ["redispatch", "fail"])
def test_rejection_from_a_queue_is_not_counted_as_a_redispatch(unavailable: str):
    backend = full_backend(unavailable=unavailable)
    if unavailable == "redispatch":
        backend["s2"].state = AdminState.MAINT
    request = ScriptedTransaction(backend, cookie=BOUND)
    assert request.start() is None
    backend["s1"].state = AdminState.MAINT
    assert request.resume_wait(True) is None and request.wait is None
    assert [totals(each, Total.WREDIS) for each in backend.servers] == [[0], [0]]


def test_unbound_request_is_not_counted_as_redispatched():
    backend = build_backend([Server("s1", app, maxconn=1), Server("b1", app, backup=True)])
    backend.placement.acquire(backend["s1"])
    request = ScriptedTransaction(backend)
    assert request.start() is None
    backend["s1"].health = Health.DOWN
    assert request.resume_wait(True) is backend["b1"]
    assert [totals(each, Total.WREDIS) for each in backend.servers] == [[0], [0]]
