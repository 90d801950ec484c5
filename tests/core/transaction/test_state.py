"""The state of a request in flight: its attempts, the client's address, the known part of the body, queries, writes."""

from dataclasses import dataclass
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import LeastConn, RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.http.forwarding import Forward
from sticky_core.http.messages import BodyNeeded
from sticky_core.persistence.claim import Claim, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery
from tests.core.fakes import ScriptedTransaction


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def build_backend(**options: Any) -> Backend:
    asked: dict[str, Any] = {"balance": RoundRobin(start=0), "persist": Cookie("SRV", signed=False), **options}
    return Backend("web", [Server(name, app) for name in ("s1", "s2")], clock=ManualClock(), **asked)


def started(cookie: str = "", **options: Any) -> ScriptedTransaction:
    request = ScriptedTransaction(build_backend(**options), cookie=cookie)
    request.start()
    return request


def test_attempts_are_added_and_taken_back():
    request = started()
    s1, s2 = request.owner.servers
    request.add_attempt(s2)
    assert (request.tried, request.decision.attempts) == ((s1, s2), ("s1", "s2"))
    request.remove_attempt()
    assert (request.tried, request.decision.attempts) == ((s1,), ("s1",))


def test_server_that_was_recognised_is_the_only_one_tried_if_no_other_is_set():
    request = ScriptedTransaction(build_backend())
    s1, s2 = request.owner.servers
    request.persisted = PersistenceResult(Claim.VALID, Reason.BOUND, s2)
    assert request.tried == (s2,)
    request.tried = (s1,)
    assert request.tried == (s1,)


@pytest.mark.parametrize("server, name", [(None, None), ("s2", "s2")])
def test_result_is_noted_in_the_decision(server: str | None, name: str | None):
    request = started()
    result = PersistenceResult(Claim.DOWN, Reason.FAILED, request.owner[server] if server is not None else None)
    request.set_result(result)
    decision = request.decision
    assert request.persisted is result
    assert (decision.claim, decision.reason, decision.claimed) == (Claim.DOWN, Reason.FAILED, name)


def test_debug_needs_a_mark():
    request = started("SRV=s1")
    assert (request.debug, request.persisted.needs_no_mark) == (False, True)
    request.enable_debug()
    assert (request.debug, request.persisted.needs_no_mark) == (True, False)


@pytest.mark.parametrize("balance", [RoundRobin(start=0), LeastConn()], ids=["uncounted", "counted"])
def test_slot_that_is_not_used_is_released(balance: Any):
    request = started(balance=balance)
    (server,) = request.tried
    assert len(server.in_flight) == 1
    request.release_slot(server)
    assert not server.in_flight


def test_slot_that_is_counted_goes_to_a_waiting_request():
    web = Backend("web", [Server("s1", app, maxconn=1)])
    first, waiting = ScriptedTransaction(web), ScriptedTransaction(web)
    assert (first.start(), waiting.start()) == (web["s1"], None)
    first.release_slot(web["s1"])
    assert (len(web["s1"].in_flight), web.qcur()) == (1, 0), "the slot is granted at once"
    assert waiting.resume_wait(True) is web["s1"]


@pytest.mark.parametrize(
    "trusted, peer, client",
    [
        ([], "10.0.0.9", "10.0.0.9"),
        (["10.0.0.0/8"], "10.0.0.9", "192.0.2.7"),
        (["10.0.0.0/8"], "192.0.2.1", "192.0.2.1"),
    ],
    ids=["none is trusted", "trusted", "not trusted"],
)
def test_address_of_the_client_is_the_one_that_a_trusted_proxy_names(trusted: list[str], peer: str, client: str):
    web = build_backend(forward=Forward(trusted_proxies=tuple(trusted)))
    request = ScriptedTransaction(web, peer, headers=[("x-forwarded-for", "192.0.2.7")])
    assert request.src == client


@pytest.mark.parametrize(
    ("peer", "scheme", "secure"),
    [("10.0.0.1", "https", True), ("192.0.2.1", "http", False)],
    ids=["trusted", "not trusted"],
)
def test_scheme_of_the_client_is_the_one_that_a_trusted_proxy_reports(peer: str, scheme: str, secure: bool):
    web = build_backend(forward=Forward(trusted_proxies=("10.0.0.0/8",)))
    request = ScriptedTransaction(web, peer, headers=[("x-forwarded-proto", "https")])
    assert (request.scheme, request.secure) == (scheme, secure)


@pytest.mark.parametrize(
    "limit, beginning", [(0, b""), (2, b"us"), (4, b"user"), (5, None)], ids=["0", "less", "as much", "more"]
)
def test_beginning_of_the_body_is_read_as_far_as_it_is_known(limit: int, beginning: bytes | None):
    request = ScriptedTransaction(build_backend())
    with pytest.raises(BodyNeeded) as needed:
        request.peek(limit)
    assert needed.value.limit == limit
    request.set_peeked(b"user", 4)
    if beginning is None:
        with pytest.raises(BodyNeeded):
            request.peek(limit)
    else:
        assert request.peek(limit) == beginning


def test_query_is_kept_with_its_reply_for_the_same_command():
    request = ScriptedTransaction(build_backend())
    store: Any = object()
    command, other = StoreCommand(store, ("get", "a")), StoreCommand(store, ("get", "b"))
    assert request.store_query(command) is None
    query = StoreQuery(command, 0)
    request.add_replied_query(query)
    assert request.store_query(StoreCommand(store, ("get", "a"))) is query
    assert request.store_query(other) is None


class FakeTable:
    def query(self, command: StoreCommand) -> StoreQuery:
        return StoreQuery(command, 7)

    def on_written(self, key: str, query: StoreQuery, now: float) -> None: ...


def test_writes_are_queued_in_order_until_they_are_cleared():
    request = ScriptedTransaction(build_backend())
    table, store = FakeTable(), object()
    commands = [StoreCommand(store, (word,)) for word in "ab"]  # type: ignore[arg-type]
    assert (request.has_writes, list(request.writes)) == (False, [])
    for key, command in zip("xy", commands, strict=True):
        request.queue_write(table, key, command)
    assert request.has_writes
    assert [(written, key, query.command) for written, key, query in request.writes] == [
        (table, "x", commands[0]),
        (table, "y", commands[1]),
    ]
    request.clear_writes()
    assert (request.has_writes, list(request.writes)) == (False, [])


@dataclass
class FakeBody:
    replayable: bool
    discarded: bool = False
    client_left_first: bool = False

    def rewind(self) -> None: ...


@pytest.mark.parametrize(
    "body, replayable", [(None, True), (FakeBody(True), True), (FakeBody(False), False)], ids=["none", "kept", "lost"]
)
def test_request_is_replayable_if_its_body_is(body: FakeBody | None, replayable: bool):
    request = ScriptedTransaction(build_backend())
    if body is not None:
        request.body = body
    assert request.replayable_body is body
    assert request.replayable is replayable


def test_request_is_finished_when_its_last_server_is_released():
    request = started()
    assert not request.finished
    request.respond()
    assert request.finished
