"""Retries: what is tried again, after which failure, where, and after which pause; all of it without a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.retries import Retries
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
from tests.core.driver import DrivenTransaction

EXECUTED = [failure for failure in Failure if failure.maybe_executed and failure.retry_word]
STATUSES = (401, 403, 404, 408, 421, 425, 429, 500, 501, 502, 503, 504)


def app(environ: object, start_response: object) -> list[bytes]:
    return []


# -- what was asked


@pytest.mark.parametrize(
    "asked, problem",
    [
        pytest.param(Retries(retries=-1), "retries -1 is below 0", id="retries below 0"),
        pytest.param(Retries(retries=1.5), "retries 1.5 is no whole number", id="half a retry"),  # type: ignore[arg-type]
        pytest.param(Retries(retry_on=("5xx",)), "retry_on '5xx' is not known", id="another word"),
        pytest.param(Retries(retry_on=("Conn-Failure",)), "retry_on 'Conn-Failure' is not known", id="in capitals"),
        pytest.param(Retries(retry_on=("200",)), "retry_on '200' is not known", id="a status that is no failure"),
        pytest.param(
            Retries(retry_on=("none", "503")), "retry_on: 'none' excludes other words", id="none and something"
        ),
        pytest.param(
            Retries(redispatch="yes"),  # type: ignore[arg-type]
            "redispatch 'yes' is neither True nor False nor a whole number",
            id="a word for redispatch",
        ),
        pytest.param(
            Retries(redispatch=None),  # type: ignore[arg-type]
            "redispatch None is neither True nor False nor a whole number",
            id="no redispatch",
        ),
    ],
)
def test_what_cannot_work_has_a_name(asked: Retries, problem: str):
    (only,) = asked.problems()
    assert problem in only


def test_an_unknown_word_is_answered_with_those_that_are_known():
    (problem,) = Retries(retry_on=("sometimes",)).problems()
    for word in ("none", "conn-failure", "empty-response", "junk-response", "response-timeout", "0rtt-rejected"):
        assert word in problem
    assert "all-retryable-errors" in problem
    assert all(str(status) in problem for status in STATUSES)


@pytest.mark.parametrize(
    "word",
    [
        "none",
        "conn-failure",
        "empty-response",
        "junk-response",
        "response-timeout",
        "0rtt-rejected",
        "all-retryable-errors",
        *map(str, STATUSES),
    ],
)
def test_each_of_haproxy_s_words_is_known(word: str):
    assert list(Retries(retry_on=(word,)).problems()) == []


# -- after which failure

WORDS = {
    "conn-failure": {Failure.REFUSED, Failure.CONNECT_TIMEOUT, Failure.TLS, Failure.NOT_STARTED},
    "empty-response": {Failure.CLOSED, Failure.SHUT},
    "junk-response": {Failure.BAD_RESPONSE},
    "response-timeout": {Failure.TIMEOUT},
    "0rtt-rejected": set(),
    "none": set(),
    "503": set(),
}
ALL = set().union(*WORDS.values())


@pytest.mark.parametrize(
    "words, failures",
    [
        *(pytest.param((word,), failures, id=word) for word, failures in WORDS.items()),
        pytest.param((), set(), id="no word at all"),
        pytest.param(("all-retryable-errors",), ALL, id="all-retryable-errors"),
        pytest.param(("conn-failure", "response-timeout"), WORDS["conn-failure"] | {Failure.TIMEOUT}, id="two words"),
    ],
)
def test_a_word_stands_for_failures(words: tuple[str, ...], failures: set[Failure]):
    assert {failure for failure in Failure if Retries(retry_on=words).after(failure)} == failures


@pytest.mark.parametrize(
    "failure", [Failure.NOT_FORWARDABLE, Failure.TRUNCATED, Failure.RETRIED_STATUS], ids=lambda each: each.name
)
def test_some_failures_are_never_tried_again(failure: Failure):
    assert not Retries(retry_on=("all-retryable-errors", *map(str, STATUSES))).after(failure)


@pytest.mark.parametrize(
    "words, statuses, rereads",
    [
        pytest.param((), set(), False, id="no word"),
        pytest.param(("none",), set(), False, id="none"),
        pytest.param(("conn-failure",), set(), False, id="what nobody has read"),
        pytest.param(("0rtt-rejected",), set(), False, id="what never happens"),
        pytest.param(("empty-response",), set(), True, id="what somebody has read"),
        pytest.param(("junk-response",), set(), True, id="junk"),
        pytest.param(("response-timeout",), set(), True, id="silence"),
        pytest.param(("404", "503"), {404, 503}, True, id="statuses"),
        pytest.param(("all-retryable-errors",), {500, 502, 503, 504}, True, id="all of HAProxy's"),
    ],
)
def test_who_has_been_read_must_be_read_again(words: tuple[str, ...], statuses: set[int], rereads: bool):
    asked = Retries(retry_on=words)
    assert set(asked.statuses) == statuses
    assert asked.needs_replay is rereads


# -- where


@pytest.mark.parametrize(
    "redispatch, retries, elsewhere",
    [
        (True, 3, [1, 2, 3]),
        (False, 3, []),
        (0, 3, []),
        (1, 3, [1, 2, 3]),
        (2, 5, [2, 4]),
        (3, 3, [3]),
        (4, 3, []),
        (-1, 3, [3]),  # HAProxy's bare `option redispatch`: the last
        (-1, 1, [1]),
        (-1, 5, [5]),
        (-2, 3, [2]),
        (-3, 3, [1, 2, 3]),
        (-2, 5, [4]),
        (-4, 5, [2, 4]),
        (-9, 3, [1, 2, 3]),
    ],
)
def test_redispatch_says_which_retries_go_elsewhere(redispatch: bool | int, retries: int, elsewhere: list[int]):
    asked = Retries(retries=retries, redispatch=redispatch)
    assert list(asked.problems()) == []
    assert [retry for retry in range(1, retries + 1) if asked.elsewhere(retry)] == elsewhere


class Asked(DrivenTransaction):
    """A request that is nothing but values."""

    __slots__ = ("_cookie", "_headers", "_method")

    def __init__(self, backend: Backend, method: str = "GET", cookie: str = "", **headers: str) -> None:
        self.owner = backend
        self.snapshot, self.raw_request, self.client_send = backend.snapshot, "a request", None
        self._method, self._cookie, self._headers = method, cookie, headers

    @property
    def method(self) -> str:
        return self._method

    @property
    def secure(self) -> bool:
        return False

    @property
    def scheme(self) -> str:
        return "http"

    @property
    def peer(self) -> str:
        return "192.0.2.1"

    @property
    def cookies(self) -> tuple[str, ...]:
        return (self._cookie,) if self._cookie else ()

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = list(texts)

    @property
    def path(self) -> str:
        return "/"

    @property
    def query(self) -> str:
        return ""

    def header(self, name: str) -> Sequence[str]:
        value = self._headers.get(name.replace("-", "_"))
        return () if value is None else (value,)


PLAIN = Cookie("SRV", signed=False)
UPSTREAMS = ("http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.4")


def upstreams() -> list[Server]:
    return [Server(f"s{number}", url) for number, url in enumerate(UPSTREAMS, 1)]


def backend(servers: Sequence[Server] | None = None, **options: Any) -> Backend:
    asked: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": PLAIN, "clock": ManualClock()} | options
    return Backend("web", upstreams() if servers is None else servers, **asked)


def way(request: Asked, failure: Failure = Failure.REFUSED) -> list[str | float]:
    """Who is asked if everybody fails, and the pauses between, in seconds."""
    clock = request.snapshot.clock
    assert isinstance(clock, ManualClock)
    stations: list[str | float] = []
    server = request.first_server(request.cookies or None)
    while server is not None or request.wait is not None:
        if server is None:
            assert isinstance(request.wait, NeedSlot) and request.wait.ticket is None
            pause = request.wait.until - clock.monotonic()
            stations.append(round(pause, 6))
            clock.advance(pause)
            server = request.resume_wait(False)
            continue
        stations.append(server.name)
        request.record_failure(failure)
        request.release(server, False)
        server = request.next_server()
    assert all(not server.in_flight for server in request.snapshot.servers)
    return stations


def totals(server: Server, *wanted: Total) -> list[int]:
    return [server.counters[total] for total in wanted]


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
def test_who_is_asked_after_a_server_that_could_not_be_reached(
    redispatch: bool | int, cookie: str, expected: list[str | float]
):
    assert way(Asked(backend(redispatch=redispatch), cookie=cookie)) == expected


@pytest.mark.parametrize("connect, pause", [("300ms", 0.3), (1, 1.0), (5, 1.0)])
def test_the_pause_is_a_second_or_the_time_to_connect_if_that_is_less(connect: str | int, pause: float):
    one = backend(redispatch=False, retries=1, timeouts=Timeouts(connect=connect))
    assert way(Asked(one)) == ["s1", pause, "s1"]


@pytest.mark.parametrize("failure", EXECUTED, ids=lambda failure: failure.name)
def test_a_server_that_could_be_reached_is_asked_again_without_a_pause(failure: Failure):
    one = backend(redispatch=False, retry_on="all-retryable-errors")
    assert way(Asked(one), failure) == ["s1", "s1", "s1", "s1"]


@pytest.mark.parametrize("stateless", [False, True], ids=["with a memory", "without"])
def test_an_app_in_this_process_is_asked_again_without_a_pause(stateless: bool):
    apps = [Server(name, app, stateless=stateless) for name in ("s1", "s2")]
    assert way(Asked(backend(apps, redispatch=False))) == ["s1", "s1", "s1", "s1"]


@pytest.mark.parametrize("redispatch, expected", [(-1, ["s1", "s2"]), (False, ["s1", 1, "s1"])])
def test_the_retry_of_a_server_that_is_gone_by_then_goes_elsewhere_unless_that_is_off(
    redispatch: bool | int, expected: list[str | float]
):
    one = backend(redispatch=redispatch, retries=1)
    request = Asked(one, cookie=BOUND)
    server = request.first_server(request.cookies)
    assert server is one["s1"]
    request.record_failure(Failure.REFUSED)
    one["s1"].health = Health.DOWN
    request.release(server, False)
    following = request.next_server()
    if request.wait is not None:
        following = request.resume_wait(False)
    assert following is one[str(expected[-1])]


@pytest.mark.parametrize("retries", [0, 1, 2, 9])
@pytest.mark.parametrize("redispatch", [True, False, -1])
def test_there_are_so_many_retries_in_all(retries: int, redispatch: bool | int):
    stations = way(Asked(backend(retries=retries, redispatch=redispatch), cookie=BOUND))
    attempts = [station for station in stations if isinstance(station, str)]
    assert len(attempts) == (min(retries + 1, 4) if redispatch is True else retries + 1)


# -- whether it may be told again


@dataclass
class Read:
    """A body, as far as it was read."""

    replayable: bool = True
    discarded: bool = False

    def rewind(self) -> None: ...


IN_THE_LIMIT, BEYOND_IT, GONE = Read(), Read(replayable=False), Read(replayable=False, discarded=True)
IDEMPOTENT = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"]
OTHERS = ["POST", "PATCH", "CONNECT", "get", "PURGE"]


@pytest.mark.parametrize("method", [*IDEMPOTENT, *OTHERS])
@pytest.mark.parametrize("body, may", [(None, True), (IN_THE_LIMIT, True), (BEYOND_IT, True), (GONE, False)])
def test_what_nobody_has_executed_may_be_told_again_as_long_as_it_is_all_there(
    method: str, body: Read | None, may: bool
):
    request = Asked(backend(), method)
    if body is not None:
        request.body = body
    assert way(request) == (["s1", "s2", "s3", "s4"] if may else ["s1"])


@pytest.mark.parametrize("failure", EXECUTED, ids=lambda failure: failure.name)
@pytest.mark.parametrize("body, fits", [(None, True), (IN_THE_LIMIT, True), (BEYOND_IT, False), (GONE, False)])
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
def test_what_may_have_been_executed_may_be_told_again_if_that_does_no_harm(
    failure: Failure, body: Read | None, fits: bool, method: str, opted_in: bool, key: str | None, harmless: bool
):
    one = backend(retry_on="all-retryable-errors", idempotency_key=opted_in)
    headers = {} if key is None else {"idempotency_key": key}
    request = Asked(one, method, **headers)
    if body is not None:
        request.body = body
    assert way(request, failure) == (["s1", "s2", "s3", "s4"] if fits and harmless else ["s1"])


# -- what is left of it


def test_each_retry_is_counted_at_the_server_that_it_leaves():
    one = backend(redispatch=-2, retries=4)
    assert way(Asked(one, cookie=BOUND)) == ["s1", 1, "s1", 1, "s1", "s2", 1, "s2"]
    assert totals(one["s1"], Total.WRETR, Total.WREDIS, Total.ECON) == [2, 1, 3]
    assert totals(one["s2"], Total.WRETR, Total.WREDIS, Total.ECON) == [1, 0, 2]


def test_a_retry_that_is_not_made_is_not_counted():
    one = backend([Server("s1", app)], redispatch=True)
    assert way(Asked(one)) == ["s1"]
    assert totals(one["s1"], Total.WRETR, Total.WREDIS) == [0, 0]


def test_a_client_that_is_moved_is_told_so_and_one_that_stays_is_not():
    stays = Asked(backend(redispatch=False, retries=1), cookie=BOUND)
    way(stays)
    assert (stays.decision.claim, stays.persisted.needs_no_mark) == (Claim.VALID, True)
    moves = Asked(backend(retries=1), cookie=BOUND)
    way(moves)
    assert (moves.decision.claim, moves.decision.reason, moves.persisted.needs_no_mark) == (
        Claim.DOWN,
        Reason.FAILED,
        False,
    )


@pytest.mark.parametrize("out", ["down", "maint"])
@pytest.mark.parametrize("unavailable", ["redispatch", "fail"])
def test_a_client_whose_server_goes_out_in_the_pause_is_moved_and_told_so(out: str, unavailable: str):
    one = backend(redispatch=-1, unavailable=unavailable)
    request = Asked(one, cookie=BOUND)
    server = request.first_server(request.cookies)
    assert server is one["s1"]
    request.record_failure(Failure.REFUSED)
    request.release(server, False)
    assert request.next_server() is None
    if out == "down":
        server.health = Health.DOWN
    else:
        server.state = AdminState.MAINT
    following = request.resume_wait(False)
    assert following is (one["s2"] if unavailable == "redispatch" else None)
    assert (request.decision.claim, request.decision.reason, request.persisted.needs_no_mark) == (
        Claim.DOWN,
        Reason.FAILED,
        False,
    )
    assert totals(server, Total.WRETR, Total.WREDIS) == [0, 1 if following else 0]


@pytest.mark.parametrize("redispatch", [True, -1])
def test_a_client_that_would_rather_be_sent_away_asks_nobody_else(redispatch: bool | int):
    one = backend(redispatch=redispatch, unavailable="fail")
    stations = way(Asked(one, cookie=BOUND))
    assert {each for each in stations if isinstance(each, str)} == {"s1"}


# -- the queue on the way to a retry


def full(**options: Any) -> Backend:
    """s1 and s2 with a place each, of which both are taken."""
    one = backend([Server(name, app, maxconn=1) for name in ("s1", "s2")], **options)
    for server in one.servers:
        one.placement.acquire(server)
    return one


def test_who_retries_waits_behind_those_that_wait_already():
    one = full(redispatch=True)
    earlier = Asked(one)
    assert earlier.first_server(None) is None
    one.placement.release(one["s1"])  # … goes to the one that waits
    first = earlier.resume_wait(True)
    assert first is one["s1"]
    later = Asked(one)
    assert later.first_server(None) is None
    earlier.record_failure(Failure.REFUSED)
    earlier.release(first, False)
    assert earlier.next_server() is None and earlier.wait is not None, "s2 is full"
    one.placement.release(one["s2"])
    assert later.resume_wait(True) is one["s1"], "the place that was left"
    assert earlier.resume_wait(True) is one["s2"]
    assert totals(one["s1"], Total.WREDIS, Total.WRETR) == [1, 0]


@pytest.mark.parametrize("woken", [True, False])
def test_a_place_that_was_granted_wins_over_a_wait_that_is_over(woken: bool):
    one = full()
    request = Asked(one)
    assert request.first_server(None) is None
    one.placement.release(one["s2"])
    assert request.resume_wait(woken) is one["s2"]
    assert request.wait is None


def test_a_wait_in_vain_ends_with_nobody_and_no_place_in_the_queue():
    one = full(timeouts=Timeouts(queue=7))
    request = Asked(one)
    assert request.first_server(None) is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == 7.0
    assert request.resume_wait(False) is None
    assert request.wait is None
    one.placement.release(one["s1"])
    assert not one["s1"].in_flight, "nobody has it"
    assert request.unavailable_response().status == 503


def test_who_is_sent_on_from_one_queue_to_another_does_not_wait_longer_for_that():
    clock = ManualClock()
    one = full(timeouts=Timeouts(queue=7), clock=clock)
    request = Asked(one, cookie=BOUND)
    assert request.first_server(request.cookies) is None
    clock.advance(5)
    one["s1"].state = AdminState.MAINT
    assert request.resume_wait(True) is None
    assert isinstance(request.wait, NeedSlot) and request.wait.until == 7.0
    one.placement.release(one["s2"])
    assert request.resume_wait(True) is one["s2"]
    assert (request.decision.claim, request.decision.reason) == (Claim.DOWN, Reason.DOWN)


@pytest.mark.parametrize("granted", [False, True])
def test_who_leaves_the_queue_gives_back_what_it_was_granted_to_whoever_waits(granted: bool):
    logged: list[object] = []
    one = full(log=logged.append)
    leaving, staying = Asked(one), Asked(one)
    assert leaving.first_server(None) is None and staying.first_server(None) is None
    if granted:
        one.placement.release(one["s1"])
    leaving.abandon_wait()
    assert leaving.finished and leaving.decision.server is None and leaving.wait is None
    assert logged == [leaving.decision]
    if not granted:
        one.placement.release(one["s1"])
    assert staying.resume_wait(True) is one["s1"]
    assert [len(server.in_flight) for server in one.servers] == [1, 1]


def test_what_balance_has_chosen_is_counted_whether_it_had_to_wait_or_not():
    one = full(persist=PLAIN)
    bound, chosen = Asked(one, cookie="SRV=s2"), Asked(one)
    assert bound.first_server(bound.cookies) is None and chosen.first_server(None) is None
    for server in one.servers:
        one.placement.release(server)
    assert (chosen.resume_wait(True), bound.resume_wait(True)) == (one["s1"], one["s2"])
    assert [server.counters[Total.LBTOT] for server in one.servers] == [1, 0]


@pytest.mark.parametrize("out", ["down", "maint"])
@pytest.mark.parametrize("waits_on", [False, True])
def test_who_is_sent_on_from_the_queue_of_its_server_is_counted_there_as_in_haproxy(out: str, waits_on: bool):
    one = full(persist=PLAIN)
    request = Asked(one, cookie=BOUND)
    assert request.first_server(request.cookies) is None
    if not waits_on:
        one.placement.release(one["s2"])
    if out == "down":
        one["s1"].health = Health.DOWN
    else:
        one["s1"].state = AdminState.MAINT
    server = request.resume_wait(True)
    if waits_on:
        assert server is None and request.wait is not None
        one.placement.release(one["s2"])
        server = request.resume_wait(True)
    assert server is one["s2"]
    assert [totals(each, Total.WREDIS, Total.WRETR, Total.LBTOT) for each in one.servers] == [[1, 0, 0], [0, 0, 1]]
    request.record_failure(Failure.REFUSED)
    request.release(server, False)
    assert request.next_server() is None
    assert [totals(each, Total.WREDIS) for each in one.servers] == [[1], [0]]


@pytest.mark.parametrize("waits_on", [False, True])
def test_who_finds_the_queue_of_its_server_full_is_counted_there_as_in_haproxy(waits_on: bool):
    one = backend([Server(name, app, maxconn=1, maxqueue=1) for name in ("s1", "s2")])
    for server in one.servers if waits_on else [one["s1"]]:
        one.placement.acquire(server)
    waiting, request = Asked(one, cookie=BOUND), Asked(one, cookie=BOUND)
    assert waiting.first_server(waiting.cookies) is None
    moved = request.first_server(request.cookies)
    if waits_on:
        assert moved is None
        one.placement.release(one["s2"])
        moved = request.resume_wait(True)
    assert moved is one["s2"]
    assert [totals(each, Total.WREDIS, Total.WRETR) for each in one.servers] == [[1, 0], [0, 0]]


@pytest.mark.parametrize("unavailable", ["redispatch", "fail"])
def test_who_is_sent_away_from_the_queue_is_not_counted_as_sent_on(unavailable: str):
    one = full(unavailable=unavailable)
    if unavailable == "redispatch":
        one["s2"].state = AdminState.MAINT
    request = Asked(one, cookie=BOUND)
    assert request.first_server(request.cookies) is None
    one["s1"].state = AdminState.MAINT
    assert request.resume_wait(True) is None and request.wait is None
    assert [totals(each, Total.WREDIS) for each in one.servers] == [[0], [0]]


def test_who_waits_for_anyone_leaves_nobody():
    one = backend([Server("s1", app, maxconn=1), Server("b1", app, backup=True)])
    one.placement.acquire(one["s1"])
    request = Asked(one)
    assert request.first_server(None) is None
    one["s1"].health = Health.DOWN
    assert request.resume_wait(True) is one["b1"]
    assert [totals(each, Total.WREDIS) for each in one.servers] == [[0], [0]]


# -- answers that are held back


def sparing(servers: Sequence[Server] | None = None, **options: Any) -> Backend:
    """Who answers 503 is not the last to be asked."""
    return backend(servers, retry_on="503", **options)


def with_one_place_each(**options: Any) -> Backend:
    return sparing([Server(name, app, maxconn=1) for name in ("s1", "s2")], **options)


def begun(one: Backend, **asked: Any) -> tuple[Asked, Server]:
    request = Asked(one, **asked)
    server = request.first_server(request.cookies or None)
    assert server is not None
    return request, server


def test_an_answer_is_held_back_only_once_another_server_has_been_reserved():
    one = with_one_place_each()
    request, server = begun(one)
    assert request.hold_response(503)
    assert request.holds_response
    assert [len(each.in_flight) for each in one.servers] == [1, 1]
    request.release(server, False)
    assert request.next_server() is one["s2"]
    assert not request.holds_response
    assert not request.hold_response(503), "nobody is left, so this one passes"
    assert request.decision.failures == (Failure.RETRIED_STATUS,)
    assert request.decision.attempts == ("s1", "s2")


def test_where_the_next_would_have_to_wait_the_answer_passes_and_nothing_is_counted():
    one = with_one_place_each()
    one.placement.acquire(one["s2"])
    request, _ = begun(one, cookie=BOUND)
    assert not request.hold_response(503)
    assert not request.holds_response
    assert (request.decision.failures, request.decision.claim, request.wait) == ((), Claim.VALID, None)
    assert totals(one["s1"], Total.WRETR, Total.WREDIS) == [0, 0]
    one.placement.release(one["s2"])
    assert not one["s2"].in_flight, "it waits no longer"


def test_on_the_same_server_without_a_second_place_the_answer_passes_and_nothing_is_counted():
    one = sparing([Server("s1", app, maxconn=1)], redispatch=False)
    request, server = begun(one)
    assert not request.hold_response(503)
    assert totals(server, Total.WRETR, Total.WREDIS) == [0, 0]


@pytest.mark.parametrize("status, held", [(503, True), (500, False), (200, False), (404, False)])
def test_only_statuses_that_were_named_are_held_back(status: int, held: bool):
    request, _ = begun(sparing())
    assert request.hold_response(status) is held


def test_when_it_ends_between_two_attempts_the_one_that_is_not_made_is_none():
    one = with_one_place_each()
    request, server = begun(one)
    assert request.hold_response(503)
    request.release(server, True)
    assert [len(each.in_flight) for each in one.servers] == [0, 0]
    assert request.decision.attempts == ("s1",)
    assert one["s2"].total == 0, "nobody has asked it"
    assert not request.holds_response


def test_a_server_that_was_given_up_is_no_longer_blamed():
    one = sparing()
    request, _ = begun(one)
    assert request.hold_response(503)
    request.record_failure(Failure.TRUNCATED)
    request.client_disconnected()
    assert request.app_raised() is False
    assert request.decision.failures == (Failure.RETRIED_STATUS,)
    for server in one.servers:
        assert totals(server, Total.ERESP, Total.ECON, Total.CLI_ABRT) == [0, 0, 0]
