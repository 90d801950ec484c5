"""What becomes of a request when something is in its way, on both faces: servers that may not be used,
servers that fail, apps that raise, no server left; which backend a path belongs to; and what cannot work.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flask
import pytest
import starlette.applications

from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import Health

if TYPE_CHECKING:
    from tests.faces.conftest import Face

PLAIN = Cookie("SERVERID", signed=False, nocache=False)
MARKED_S1, MARKED_S2 = "SERVERID=s1; path=/", "SERVERID=s2; path=/"

NOT_EXECUTED = [Failure.REFUSED, Failure.NOT_STARTED]
EXECUTED = [Failure.CLOSED, Failure.TRUNCATED]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def by_name(failure: Failure) -> str:
    return failure.name.lower()


def nothing_in_flight(backend) -> bool:
    return all(len(server.in_flight) == 0 for server in backend.servers)


# -- servers that may not be used


def put(server: Server, state: str) -> None:
    if state == "down":
        server.health = Health.DOWN
    else:
        server.state = state  # type: ignore[assignment]  # a word will do


@pytest.mark.parametrize("state, reason", [("maint", Reason.MAINT), ("down", Reason.DOWN)])
def test_a_client_of_an_unusable_server_gets_another_and_its_mark(face: Face, state: str, reason: Reason) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    put(backend["s1"], state)
    response = face.client(backend)(cookie="SERVERID=s1")
    assert (response.status, response.server, response.all("set-cookie")) == (200, "s2", [MARKED_S2])
    assert (response.decision.claim, response.decision.reason, response.decision.claimed) == (
        Claim.DOWN,
        reason,
        "s1",
    )
    assert response.decision.attempts == ("s2",)


@pytest.mark.parametrize("state", ["maint", "down", "drain"])
def test_a_server_that_is_out_or_drains_takes_no_new_clients(face: Face, state: str) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), face.server("s3"), persist=PLAIN)
    put(backend["s2"], state)
    get = face.client(backend)
    assert {get().server for _ in range(9)} == {"s1", "s3"}


def test_a_client_that_was_moved_stays_where_it_is_when_its_server_is_back(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    get = face.client(backend)
    backend["s1"].state = "maint"
    moved = get(cookie="SERVERID=s1").mark
    backend["s1"].state = "ready"
    response = get(cookie=moved)
    assert (response.server, response.letters) == ("s2", "VN")


def test_a_server_that_drains_keeps_its_clients(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    backend["s1"].state = "drain"
    response = face.client(backend)(cookie="SERVERID=s1")
    assert (response.server, response.letters, response.all("set-cookie")) == ("s1", "VN", [])


def test_weight_zero_keeps_its_clients_and_takes_no_new_ones(face: Face) -> None:
    backend = face.backend(face.server("s1", weight=0), face.server("s2"), persist=PLAIN)
    get = face.client(backend)
    assert {get().server for _ in range(4)} == {"s2"}
    assert get(cookie="SERVERID=s1").server == "s1"
    backend["s1"].weight = 1
    assert {get().server for _ in range(4)} == {"s1", "s2"}


def test_where_only_draining_servers_are_left_they_serve(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    backend["s1"].state, backend["s2"].state = "maint", "drain"
    response = face.client(backend)()
    assert (response.status, response.server, response.all("set-cookie")) == (200, "s2", [MARKED_S2])


def test_a_backup_serves_while_no_other_can_and_before_those_that_drain(face: Face) -> None:
    servers = [face.server("s1"), face.server("bk1", backup=True), face.server("bk2", backup=True)]
    backend = face.backend(*servers, persist=PLAIN)
    get = face.client(backend)
    assert get().server == "s1"
    backend["s1"].state = "drain"
    assert [get().server for _ in range(3)] == ["bk1", "bk1", "bk1"], "the first that can, as in HAProxy"
    backend["bk1"].health = Health.DOWN
    assert get().server == "bk2"
    backend["bk2"].state = "maint"
    assert get().server == "s1"
    backend["s1"].state = "ready"
    assert get().server == "s1"


# -- unavailable="fail"


@pytest.mark.parametrize("state", ["maint", "down", "refuses"])
def test_a_client_may_rather_be_sent_away_than_to_a_server_that_is_not_its_own(face: Face, state: str) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN, unavailable="fail")
    get = face.client(backend)
    if state == "refuses":
        face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    else:
        put(backend["s1"], state)
    response = get(cookie="SERVERID=s1")
    assert (response.status, response.server, response.all("set-cookie")) == (503, None, [])
    assert response.letters == "DN"
    assert all(seen.server == "s1" for seen in response.tried)
    face.apps["s1"].raises = None
    put(backend["s1"], "ready")
    backend["s1"].health = Health.UP
    assert get(cookie="SERVERID=s1").server == "s1"


@pytest.mark.parametrize("cookie", [None, "SERVERID=unknown", "SERVERID="])
def test_a_client_that_belongs_nowhere_is_served_all_the_same(face: Face, cookie: str | None) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN, unavailable="fail")
    backend["s1"].state = "maint"
    response = face.client(backend)(cookie=cookie)
    assert (response.status, response.server) == (200, "s2")


def test_a_client_with_an_expired_mark_is_a_new_client(face: Face) -> None:
    clock = ManualClock()
    cookie = Cookie("SERVERID", signed=False, maxidle=60)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=cookie, unavailable="fail", clock=clock)
    get = face.client(backend)
    mark = get().mark
    backend["s1"].state = "maint"
    assert get(cookie=mark).status == 503
    clock.advance(61)
    response = get(cookie=mark)
    assert (response.status, response.server, response.letters) == (200, "s2", "EI")


# -- servers that fail


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("failure", NOT_EXECUTED, ids=by_name)
def test_a_server_that_has_not_executed_a_request_gives_way_whatever_the_method(
    face: Face, failure: Failure, method: str
) -> None:
    failing = face.server("s1", raises=ServerFailure(failure))
    backend = face.backend(failing, face.server("s2"), persist=PLAIN)
    response = face.client(backend)(method=method)
    assert (response.status, response.server, response.all("set-cookie")) == (200, "s2", [MARKED_S2])
    assert response.decision.attempts == ("s1", "s2") == tuple(seen.server for seen in response.tried)
    assert response.decision.failures == (failure,)
    assert nothing_in_flight(backend)
    assert [failing.counters[total] for total in (Total.ECON, Total.ERESP, Total.WREDIS)] == [1, 0, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("failure", EXECUTED, ids=by_name)
def test_a_request_that_may_have_been_executed_is_not_replayed(face: Face, failure: Failure, method: str) -> None:
    failing = face.server("s1", raises=ServerFailure(failure))
    backend = face.backend(failing, face.server("s2"), persist=PLAIN)
    response = face.client(backend)(method=method)
    assert (response.status, response.server, response.all("set-cookie")) == (502, None, [])
    assert response.all("retry-after") == [], "the client decides whether to send the request again"
    assert response.all("cache-control") == ["no-store"]
    assert (b"502" in response.body) is (method != "HEAD")
    assert [seen.server for seen in response.tried] == ["s1"]
    assert nothing_in_flight(backend)
    assert [failing.counters[total] for total in (Total.ECON, Total.ERESP, Total.WREDIS)] == [0, 1, 0]


@pytest.mark.parametrize("first", [b"the first", b""], ids=["after-bytes", "before-bytes"])
@pytest.mark.parametrize("failure", [*NOT_EXECUTED, *EXECUTED], ids=by_name)
def test_a_failure_after_the_head_is_raised(face: Face, failure: Failure, first: bytes) -> None:
    breaks = ServerFailure(failure)
    backend = face.backend(face.server("s1", breaks=breaks), face.server("s2"), persist=PLAIN)
    face.apps["s1"].first = first
    response = face.client(backend).outcome()
    assert isinstance(response.raised, ServerFailure)
    assert (response.raised.failure, response.raised.server) == (Failure.TRUNCATED, "s1")
    assert response.raised.__cause__ is breaks
    assert (response.status, response.server, response.body) == (200, "s1", first)
    assert response.all("set-cookie") == [MARKED_S1]
    assert [seen.server for seen in response.tried] == ["s1"]
    assert response.decision.status == 200
    assert nothing_in_flight(backend)


def test_a_server_that_fails_after_its_head_is_the_server_of_the_decision(face: Face) -> None:
    breaks = ServerFailure(Failure.TRUNCATED)
    backend = face.backend(face.server("s1", breaks=breaks), face.server("s2"), persist=PLAIN)
    response = face.client(backend).outcome()
    assert (response.server, response.decision.server) == ("s1", "s1")


@pytest.mark.parametrize("retries, attempts", [(0, 1), (1, 2), (3, 4), (9, 6)])
def test_no_more_servers_are_tried_than_retries_allows(face: Face, retries: int, attempts: int) -> None:
    refused = ServerFailure(Failure.REFUSED)
    servers = [face.server(f"s{number}", raises=refused) for number in range(1, 7)]
    backend = face.backend(*servers, persist=PLAIN, retries=retries)
    response = face.client(backend)()
    assert (response.status, response.all("retry-after")) == (503, ["5"])
    tried = [seen.server for seen in response.tried]
    assert len(tried) == len({*tried}) == attempts
    assert response.decision.attempts == tuple(tried)
    assert response.decision.failures == (Failure.REFUSED,) * attempts
    assert nothing_in_flight(backend)


def test_three_retries_by_default(face: Face) -> None:
    servers = [face.server(f"s{n}", raises=ServerFailure(Failure.REFUSED)) for n in range(9)]
    made = face.package.Backend("web", servers)
    assert len(face.client(made)().tried) == 4


def test_a_backup_and_a_draining_server_step_up_when_all_others_have_failed(face: Face) -> None:
    refused = ServerFailure(Failure.REFUSED)
    servers = [face.server("s1", raises=refused), face.server("s2"), face.server("bk", backup=True)]
    face.apps["bk"].raises = refused
    backend = face.backend(*servers, persist=PLAIN)
    backend["s2"].state = "drain"
    response = face.client(backend)()
    assert (response.server, response.decision.attempts) == ("s2", ("s1", "bk", "s2"))


# -- apps that raise


class Broken(Exception):
    """An app's own."""


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("cookie", [None, "SERVERID=s1"])
def test_an_exception_out_of_an_app_is_the_apps_counted_and_raised_as_it_is(
    face: Face, method: str, cookie: str | None
) -> None:
    error = Broken()
    broken = face.server("s1", raises=error)
    backend = face.backend(broken, face.server("s2"), persist=PLAIN)
    response = face.client(backend).outcome(method=method, cookie=cookie)
    assert response.raised is error
    assert response.status == 0, "the server in front sends the response"
    assert [seen.server for seen in response.tried] == ["s1"], "it may have been executed"
    assert nothing_in_flight(backend)
    assert (broken.counters[Total.ERESP], broken.counters[Total.ECON]) == (1, 0)


@pytest.mark.parametrize("first", [b"the first", b""], ids=["after-bytes", "before-bytes"])
def test_an_exception_after_the_head_is_raised_and_counted_too(face: Face, first: bytes) -> None:
    error = Broken()
    broken = face.server("s1", breaks=error)
    backend = face.backend(broken, face.server("s2"), persist=PLAIN)
    face.apps["s1"].first = first
    response = face.client(backend).outcome()
    assert response.raised is error
    assert (response.status, response.body, response.all("set-cookie")) == (200, first, [MARKED_S1])
    assert nothing_in_flight(backend)
    assert broken.counters[Total.ERESP] == 1


# -- no server left


@pytest.mark.parametrize("cookie", [None, "SERVERID=s1", "SERVERID=s9"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "plain"])
def test_without_a_usable_server_the_response_is_503(face: Face, signed: bool, cookie: str | None) -> None:
    persist = Cookie("SERVERID", secret="0123456789abcdef") if signed else PLAIN
    backend = face.backend(face.server("s1"), face.server("s2"), persist=persist)
    put(backend["s1"], "maint")
    put(backend["s2"], "down")
    response = face.client(backend)(cookie=cookie)
    assert (response.status, response.server, response.tried) == (503, None, ())
    assert response.all("retry-after") == ["5"]
    assert response.all("set-cookie") == []
    assert response.all("cache-control") == ["no-store"]
    assert response.all("content-length") == [str(len(response.body))]
    assert b"503 Service Unavailable" in response.body
    assert (response.decision.server, response.decision.attempts, response.decision.status) == (None, (), 503)
    assert response.decision.mark is Mark.NONE


def test_the_error_page_for_head_has_a_content_length_and_no_body(face: Face) -> None:
    backend = face.backend(face.server("s1"), persist=PLAIN)
    backend["s1"].state = "maint"
    get = face.client(backend)
    head, whole = get(method="HEAD"), get()
    assert (head.status, head.body, head.headers) == (503, b"", whole.headers)


# -- replicas that do not start


def test_a_replica_that_fails_to_start_is_down_and_logged_once_and_the_others_serve(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def create_app() -> Callable[..., Any]:
        calls.append(len(calls) + 1)
        if calls[-1] == 2:
            raise RuntimeError("no database")
        return face.validated(face.app(f"app {calls[-1]}"))

    backend = face.backend(*Server.replicas(create_app, 3), persist=PLAIN)
    get = face.client(backend)
    assert not calls, "made in the process that serves, when the first request comes"
    responses = [get(cookie="SERVERID=r2"), *(get() for _ in range(5))]
    assert calls == [1, 2, 3]
    assert {response.server for response in responses} == {"app 1", "app 3"}
    assert {response.status for response in responses} == {200}
    assert (responses[0].decision.claim, responses[0].decision.reason) == (Claim.DOWN, Reason.DOWN)
    assert backend["r2"].health is Health.DOWN
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "sticky_sessions"
    assert "backend web: replica r2 failed to start" in record.getMessage()
    assert record.exc_info is not None and "no database" in str(record.exc_info[1])


def test_if_no_replica_starts_the_response_has_retry_after(face: Face) -> None:
    def create_app() -> Callable[..., Any]:
        raise RuntimeError("no database")

    response = face.client(face.backend(*Server.replicas(create_app, 2), persist=PLAIN))()
    assert (response.status, response.decision.attempts) == (503, ())


# -- what was decided, and where that is reported


def test_a_decision_names_the_server_of_a_request_and_the_reason(face: Face) -> None:
    logged: list[Decision] = []
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN, log=logged.append)
    get = face.client(backend)

    new = get().decision
    assert (new.backend, new.server, new.attempts, new.failures) == ("web", "s1", ("s1",), ())
    assert (new.claim, new.reason, new.claimed) == (Claim.NONE, Reason.NO_COOKIE, None)
    assert (new.mark, new.status, new.outer) == (Mark.INSERTED, 200, None)

    bound = get(cookie="SERVERID=s2").decision
    assert (bound.server, bound.claim, bound.reason, bound.claimed) == ("s2", Claim.VALID, Reason.BOUND, "s2")
    assert bound.mark is Mark.NONE

    unknown = get(cookie="SERVERID=s9").decision
    assert (unknown.claim, unknown.reason, unknown.claimed) == (Claim.INVALID, Reason.UNKNOWN, None)
    empty = get(cookie="SERVERID=").decision
    assert (empty.claim, empty.reason, empty.claimed) == (Claim.INVALID, Reason.EMPTY, None)

    face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    moved = get(cookie="SERVERID=s1").decision
    assert (moved.server, moved.attempts, moved.failures) == ("s2", ("s1", "s2"), (Failure.REFUSED,))
    assert (moved.claim, moved.reason, moved.claimed) == (Claim.DOWN, Reason.FAILED, "s1")

    assert logged == [new, bound, unknown, empty, moved]


def test_the_app_sees_the_decision_that_brought_the_request_to_it(face: Face) -> None:
    backend = face.backend(face.server("s1"), persist=PLAIN)
    response = face.client(backend)(cookie="SERVERID=s1")
    assert response.seen is not None
    assert response.seen.decision is response.decision


def test_a_decision_of_a_backend_without_persistence_has_no_claim_and_no_mark_is_sent(face: Face) -> None:
    response = face.client(face.backend(face.server("s1"), face.server("s2")))(cookie="SERVERID=s2")
    assert (response.server, response.letters, response.all("set-cookie")) == ("s1", "NN", [])
    assert response.decision.reason is Reason.NO_PERSISTENCE
    assert response.seen is not None and response.seen.cookies == ("SERVERID=s2",)


def test_a_request_without_a_dispatcher_has_no_decision(face: Face) -> None:
    response = face.client(face.validated(face.app("app")))()
    assert response.decided is None
    with pytest.raises(LookupError, match="has not come through"):
        face.package.decision({})


def test_the_log_is_called_once_for_each_request_however_it_ended(face: Face) -> None:
    logged: list[Decision] = []
    backend = face.backend(face.server("s1"), persist=PLAIN, log=logged.append)
    get = face.client(backend)
    get()
    face.apps["s1"].raises = Broken()
    get.outcome()
    face.apps["s1"].raises = ServerFailure(Failure.CLOSED)
    get()
    face.apps["s1"].raises, face.apps["s1"].breaks = None, Broken()
    get.outcome()
    backend["s1"].state = "maint"
    get()
    assert [decision.status for decision in logged] == [200, 0, 502, 200, 503]


def test_dispatchers_within_dispatchers_each_decide_and_mark_for_themselves(face: Face) -> None:
    inner = face.backend(
        face.server("i1"),
        face.server("i2"),
        name="inner",
        persist=Cookie("INNER", signed=False, nocache=False),
    )
    nested = face.validated(face.dispatcher(inner))
    outer = face.backend(Server("o1", nested), name="outer", persist=Cookie("OUTER", signed=False, nocache=False))
    get = face.client(outer)
    response = get()
    assert response.all("set-cookie") == ["INNER=i1; path=/", "OUTER=o1; path=/"]
    assert response.seen is not None
    assert (response.decision.backend, response.decision.server, response.decision.outer) == ("outer", "o1", None)
    assert (response.seen.decision.backend, response.seen.decision.server) == ("inner", "i1")
    assert response.seen.decision.outer is response.decision

    again = get(cookie="OUTER=o1; INNER=i2; a=1")
    assert (again.server, again.all("set-cookie")) == ("i2", [])
    assert again.seen is not None
    assert again.seen.cookies == ("a=1",)
    assert (again.seen.decision.claim, again.decision.claim) == (Claim.VALID, Claim.VALID)


def test_debug_adds_a_header_with_the_decision(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    get = face.client(backend, debug=True)
    (new,) = get().all("x-sticky")
    assert new.startswith("server=s1; claim=NONE; attempts=s1; mark=INSERTED; why=")
    (bound,) = get(cookie="SERVERID=s2").all("x-sticky")
    assert bound.startswith("server=s2; claim=VALID; attempts=s2; mark=NONE; why=")
    face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    (moved,) = get(cookie="SERVERID=s1").all("x-sticky")
    assert moved.startswith("server=s2; claim=DOWN; attempts=s1,s2; mark=INSERTED; why=")
    backend["s2"].state = "maint"
    (no_server,) = get().all("x-sticky")
    assert no_server.startswith("server=-; claim=NONE; attempts=s1; mark=NONE; why=")
    assert face.client(backend)(cookie="SERVERID=s2").all("x-sticky") == [], "and only then"


def test_a_middleware_debugs_too(face: Face) -> None:
    web = face.backend(face.server("s1"), persist=PLAIN)
    get = face.client(face.middleware(face.validated(face.app("app")), {"/web": web}, debug=True))
    assert len(get("/web").all("x-sticky")) == 1
    assert get("/else").all("x-sticky") == []


# -- several ways to know a client

PAIR = (Cookie("FIRST", signed=False, nocache=False), Cookie("SECOND", signed=False, nocache=False))


def test_of_several_persistences_each_marks_a_new_client(face: Face) -> None:
    response = face.client(face.backend(face.server("s1"), face.server("s2"), persist=PAIR))()
    assert response.all("set-cookie") == ["FIRST=s1; path=/", "SECOND=s1; path=/"]


@pytest.mark.parametrize(
    "cookie, server",
    [
        ("FIRST=s2; SECOND=s3", "s2"),
        ("SECOND=s3; FIRST=s2", "s2"),
        ("FIRST=s2", "s2"),
        ("SECOND=s3", "s3"),
        ("FIRST=unknown; SECOND=s3", "s3"),
        ("FIRST=out; SECOND=s3", "s3"),
    ],
)
def test_the_first_persistence_that_recognises_the_client_decides(face: Face, cookie: str, server: str) -> None:
    servers = [face.server(name) for name in ("s1", "s2", "s3", "out")]
    backend = face.backend(*servers, persist=PAIR)
    backend["out"].state = "maint"
    response = face.client(backend)(cookie=f"a=1; {cookie}")
    assert (response.server, response.decision.claim) == (server, Claim.VALID)
    assert response.seen is not None and response.seen.cookies == ("a=1",), "each cookie is removed"


def test_if_no_persistence_recognises_the_client_the_decision_has_the_first_claim(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PAIR)
    backend["s2"].state = "maint"
    response = face.client(backend)(cookie="SECOND=s2")
    assert (response.server, response.decision.claim, response.decision.claimed) == ("s1", Claim.DOWN, "s2")
    assert response.all("set-cookie") == ["FIRST=s1; path=/", "SECOND=s1; path=/"]


def test_a_claim_that_comes_too_late_is_unused_and_not_written_to(
    face: Face, recognised: list[PersistenceResult]
) -> None:
    clock = ManualClock()
    dated = Cookie("SECOND", signed=False, nocache=False, maxidle=60)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=(PAIR[0], dated), clock=clock)
    get = face.client(backend)
    clock.advance(30)
    late = "SECOND=s2|ZVPxA"  # thirty seconds ago: alone it would be renewed
    alone = get(cookie=late)
    assert (alone.server, alone.letters) == ("s2", "VU")
    beside = get(cookie=f"FIRST=s1; {late}")
    assert (beside.server, beside.letters, beside.all("set-cookie")) == ("s1", "VN", [])
    assert [part.claim for part in recognised[-1].results] == [Claim.VALID, Claim.UNUSED]


# -- routes


@pytest.mark.parametrize(
    "path, served",
    [
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x", "api"),
        ("/api/v2", "v2"),
        ("/api/v2/x", "v2"),
        ("/api/v20", "api"),
        ("/shop/x", "api"),
        ("/apix", "app"),
        ("/ap", "app"),
        ("/", "app"),
        ("/x/api", "app"),
        ("/API", "app"),
    ],
)
@pytest.mark.parametrize("mount", ["", "/mounted"])
def test_a_route_matches_whole_segments_and_the_longest_wins(face: Face, path: str, served: str, mount: str) -> None:
    api = face.backend(face.server("api"), name="api")
    v2 = face.backend(face.server("v2"), name="v2")
    app = face.middleware(face.validated(face.app("app")), {"/api": api, "/api/v2": v2, "/shop": api})
    response = face.client(app)(path, mount=mount)
    assert response.server == served
    assert response.seen is not None and response.seen.path == mount + path, "the path goes on unchanged"
    assert (response.decided is None) is (served == "app")


def test_one_backend_is_a_route_for_every_path(face: Face) -> None:
    web = face.backend(face.server("s1"))
    get = face.client(face.package.StickyMiddleware(face.validated(face.app("app")), backend=web))
    assert {get(path).server for path in ("/", "/x", "/x/y")} == {"s1"}


def test_the_root_is_what_no_other_route_takes(face: Face) -> None:
    api, web = (face.backend(face.server(name), name=name) for name in ("api", "web"))
    get = face.client(face.middleware(face.validated(face.app("app")), {"/": web, "/api": api}))
    assert [get(path).server for path in ("/", "/api", "/apix")] == ["web", "api", "web"]


# -- configurations that cannot work


def problems_of(make: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        make()
    message = str(raised.value)
    for problem in raised.value.problems:
        assert problem in message
    return list(raised.value.problems)


def holds(problems: list[str], *patterns: str) -> bool:
    """Whether each pattern is found in one problem of its own, and there are no other problems."""
    found = sorted(number for number, each in enumerate(problems) for pattern in patterns if re.search(pattern, each))
    return found == [*range(len(problems))] == [*range(len(patterns))]


def test_the_error_of_a_cookie_names_all_its_problems(face: Face) -> None:
    problems = problems_of(
        lambda: face.package.Cookie(
            "bad name",
            secret="short",
            samesite="None",
            secure=False,
            path="shop",
            attr="a;b",
            max_age="soon",
            maxidle=0,
            refresh="never",
        )
    )
    assert all(problem.startswith("cookie bad name: ") for problem in problems)
    assert holds(
        problems,
        "a cookie's name is made of",
        "a secret shorter than 16 bytes",
        "browsers refuse SameSite=None without Secure",
        "path 'shop' is no path",
        "attr 'a;b' can't be written",
        "max_age: 'soon' is not a duration",
        "maxidle 0 is not within",
        "refresh='never' would let maxidle end",
    )


def test_the_error_of_a_backend_names_all_its_problems(face: Face) -> None:
    servers = [face.server("s1"), face.server("s1"), face.server("s2")]
    problems = problems_of(lambda: face.package.Backend("no spaces", servers, retries=-1, unavailable="panic"))
    assert all(problem.startswith("backend no spaces: ") for problem in problems)
    assert holds(problems, "a name is made of", "2 servers called s1", "retries -1 is below 0", "unavailable 'panic'")


def test_the_error_of_a_server_names_all_its_problems(face: Face) -> None:
    problems = problems_of(lambda: face.package.Server("no spaces", weight=257, cookie="a;b"))
    assert all(problem.startswith("server no spaces: ") for problem in problems)
    assert holds(problems, "a name is made of", "neither a target .* nor a factory", "weight 257", "cookie 'a;b'")


def test_the_error_of_a_backend_names_the_problems_of_all_its_cookies_with_its_servers(face: Face) -> None:
    servers = [face.server("s1", cookie="a|b"), face.server("s2", cookie="c~d")]
    persist = [Cookie("A", signed=False), Cookie("B", signed=False, mode="prefix")]
    problems = problems_of(lambda: face.backend(*servers, persist=persist))
    assert holds(problems, r"cookie A: server s1: '\|' in cookie", "cookie B: server s2: '~' in cookie")


def test_the_error_of_routes_names_all_their_problems(face: Face) -> None:
    one, two = (face.backend(face.server("s1"), name="same") for _ in range(2))
    problems = problems_of(lambda: face.middleware(face.app("app"), {"api": one, "/shop/": two}))
    assert holds(problems, "route 'api' is no path", "route '/shop/' is no path", "two backends are called same")
    assert holds(problems_of(lambda: face.middleware(face.app("app"), {})), "routes is empty")
    neither = partial(face.package.StickyMiddleware, face.app("app"))
    assert holds(problems_of(neither), "either a backend .* or routes")
    both = partial(face.package.StickyMiddleware, face.app("app"), one, routes={"/": one})
    assert holds(problems_of(both), "one backend for every path, or routes")


def named(name: str = "SERVERID", **options: Any) -> Cookie:
    return Cookie(name, signed=False, **options)


def route_of(cookie: Cookie, default: str) -> str:
    """Return a route that the path of the cookie covers."""
    path = cookie.path
    return default if not isinstance(path, str) else f"{path}first" if path.endswith("/") else path


@pytest.mark.parametrize(
    "one, other, met",
    [
        pytest.param(named(), named(), True, id="alike"),
        pytest.param(named(path="/api"), named(), True, id="path-in-root"),
        pytest.param(named(path="/api"), named(path="/api/v2"), True, id="path-in-path"),
        pytest.param(named(path="/api/"), named(path="/api"), True, id="path-with-slash"),
        pytest.param(named(domain="a.example"), named(), True, id="domain-and-none"),
        pytest.param(named(domain=["a.example", "b.example"]), named(domain="b.example"), True, id="one-domain"),
        # RFC 6265, 5.2.3: neither a leading dot nor the case of a domain makes another one
        pytest.param(named(domain=".a.example"), named(domain="a.example"), True, id="domain-with-dot"),
        pytest.param(named(domain="A.example"), named(domain="a.example"), True, id="domain-in-capitals"),
        pytest.param(named(), named("OTHER"), False, id="other-name"),
        pytest.param(named(), named("serverid"), False, id="name-in-other-case"),
        pytest.param(named(path="/api"), named(path="/shop"), False, id="other-path"),
        pytest.param(named(path="/api"), named(path="/apix"), False, id="longer-path"),
        pytest.param(named(domain="a.example"), named(domain="b.example"), False, id="other-domain"),
        pytest.param(named(), named(mode="prefix"), False, id="prefix-inserts-none"),
        pytest.param(named(), Cookie("SERVERID", mode="passive"), False, id="passive-inserts-none"),
    ],
)
def test_cookies_of_one_name_may_not_overwrite_each_other(face: Face, one: Cookie, other: Cookie, met: bool) -> None:
    first = face.backend(face.server("s1"), name="first", persist=one)
    second = face.backend(face.server("s2"), name="second", persist=other)
    routes = {route_of(one, "/api/first"): first, route_of(other, "/shop"): second}
    if met:
        problems = problems_of(lambda: face.middleware(face.app("app"), routes))
        assert holds(problems, "backends first and second both insert a cookie SERVERID")
    else:
        face.middleware(face.app("app"), routes)


def test_two_cookies_of_one_name_in_one_backend_overwrite_each_other_too(face: Face) -> None:
    problems = problems_of(lambda: face.backend(face.server("s1"), persist=[named(), named(maxidle=60)]))
    assert holds(problems, "SERVERID")


def test_a_server_belongs_to_one_backend(face: Face) -> None:
    s1, s2, fresh = face.server("s1"), face.server("s2"), face.server("fresh")
    face.backend(s1, s2, name="first")
    problems = problems_of(lambda: face.backend(fresh, s1, s2, name="second"))
    assert holds(
        problems,
        "server s1: belongs to another backend already",
        "server s2: belongs to another backend already",
    )
    assert face.client(face.backend(fresh, name="third"))().server == "fresh", "no server is in use"


def test_a_factory_passed_as_an_app_is_refused(face: Face) -> None:
    def create_app() -> Callable[..., Any]:
        return face.app("app")

    problems = problems_of(lambda: face.package.Server("s1", create_app))
    assert holds(problems, "server s1: .* it is a factory rather than an app: write factory=create_app")


@pytest.mark.parametrize("made", [lambda: flask.Flask("app"), starlette.applications.Starlette])
def test_an_app_passed_as_a_factory_is_refused(face: Face, made: Callable[[], Any]) -> None:
    problems = problems_of(lambda: face.package.Server("s1", factory=made()))
    assert holds(problems, "server s1: .* it is an app rather than a factory: pass it as the target")


def test_a_server_is_one_thing(face: Face) -> None:
    app = face.app("app")
    both = problems_of(lambda: face.package.Server("s1", app, factory=lambda: app))
    assert holds(both, "server s1: has both a target and a factory")
    assert holds(problems_of(lambda: face.package.Server("s1", "10.0.0.1:80")), "'10.0.0.1:80' is no URL")
    assert holds(problems_of(lambda: face.package.Server("s1", 42)), "42 is neither an app nor a URL")


async def an_asgi_app(scope: object, receive: object, send: object) -> None: ...


def a_wsgi_app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.mark.parametrize("framework", [False, True], ids=["function", "framework"])
def test_an_app_of_the_other_face_is_refused_and_shown_the_way(face: Face, framework: bool) -> None:
    asgi: Any = starlette.applications.Starlette() if framework else an_asgi_app
    wsgi: Any = flask.Flask("app") if framework else a_wsgi_app
    wrong, right, way = (wsgi, asgi, "sticky_wsgi") if face.name == "asgi" else (asgi, wsgi, "sticky_asgi")
    backend = face.backend(Server("s1", right), Server("s2", wrong), Server("s3", wrong))
    problems = problems_of(lambda: face.dispatcher(backend))
    message = rf"is no {face.name.upper()} app: import from {way}"
    assert holds(problems, f"backend web: server s2: .* {message}", f"backend web: server s3: .* {message}")


def test_a_url_without_the_parser_is_refused_with_the_extra_that_brings_it(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    backend = face.backend(Server("s1", "http://10.0.0.1:8080"))
    assert holds(problems_of(lambda: face.dispatcher(backend)), r"backend web: server s1: .*sticky-sessions\[proxy\]")


# -- secrets


@pytest.mark.parametrize("given", [{}, {"secret": ""}, {"secret": "fifteen letters"}, {"secret": []}], ids=str)
@pytest.mark.parametrize("mode", ["insert", "prefix", "rewrite"])
def test_a_missing_or_short_secret_prints_the_line_that_makes_one(
    face: Face, mode: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    (problem,) = problems_of(lambda: face.package.Cookie("SERVERID", mode=mode, **given))
    assert problem.startswith("cookie SERVERID: ")
    line = re.search(r'python -c "(.+?)"', problem)
    assert line is not None and "STICKY_SECRET" in problem
    printed = subprocess.run([sys.executable, "-c", line[1]], capture_output=True, text=True, check=True).stdout
    face.package.Cookie("SERVERID", mode=mode, secret=printed.strip())


def test_the_secret_comes_from_the_environment_where_none_is_given(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    def mark(cookie: Cookie) -> str:
        backend = face.backend(face.server("s1", stateless=True), persist=cookie)
        return face.client(backend)().mark

    monkeypatch.setenv("STICKY_SECRET", "0123456789abcdef")
    ours = mark(face.package.Cookie("SERVERID"))
    assert ours == mark(Cookie("SERVERID", secret=b"0123456789abcdef"))
    monkeypatch.setenv("STICKY_SECRET", "too short")
    assert len(problems_of(lambda: face.package.Cookie("SERVERID"))) == 1


def test_by_default_the_first_new_client_goes_to_any_server(face: Face) -> None:
    """So that the workers of a server do not all begin with the first."""

    class Drawn:
        def __init__(self, number: int) -> None:
            self.number = number

        def random(self) -> float:
            return 0.0

        def randrange(self, stop: int, /) -> int:
            assert stop == 3
            return self.number

        def getrandbits(self, k: int, /) -> int:
            return 0

    for number, server in enumerate(("s1", "s2", "s3")):
        servers = [face.server(name) for name in ("s1", "s2", "s3")]
        backend = face.package.Backend("web", servers, balance=RoundRobin(), rng=Drawn(number))
        assert face.client(backend)().server == server
