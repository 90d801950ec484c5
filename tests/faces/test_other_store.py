"""A stick table in a store of another kind than Redis, which sends no invalidations, on both faces: what the store and
its clients do not do themselves, the faces add.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

import sticky_asgi.stores.client
import sticky_wsgi.stores.client
from sticky_asgi import Stick, StickTable, hdr
from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.stores.breaker import LONGEST_PAUSE, State
from sticky_core.stores.store import HEARTBEAT_INTERVAL
from tests.faces.dictionary_store import DictionaryNamespace, DictionaryServer, DictionaryStore

if TYPE_CHECKING:
    from tests.faces.conftest import Face, RecordedResponse

PATIENCE = 300.0  # seconds for what takes milliseconds
EXPIRE = 80.0
USERS = [f"user-{number}" for number in range(9)]


class Process:
    """A backend as another process would have it: with a store and a table of its own."""

    def __init__(
        self, face: Face, server: DictionaryServer, servers: Mapping[str, Any] = MappingProxyType({}), **options: Any
    ) -> None:
        self.store = DictionaryStore(server, **options)
        self.table = StickTable("string", expire=EXPIRE, store=self.store, clock=server.clock)
        self.backend: Backend = face.backend(
            *(face.server(name, stateless=True, **servers) for name in ("s1", "s2", "s3")),
            persist=Stick.on(hdr("x-user"), self.table),
            clock=server.clock,
        )
        self._client = face.client(self.backend)

    def request(self, user: str) -> str | int:
        """Send a request of `user` and return the server of the response, or its status."""
        response = self._client(headers=[("x-user", user)])
        return response.server or response.status

    def outcome(self, user: str) -> RecordedResponse:
        """Send a request of `user` that may raise, and return the outcome."""
        return self._client.outcome(headers=[("x-user", user)])


@pytest.fixture
def server() -> DictionaryServer:
    return DictionaryServer()


@pytest.fixture
def processes(face: Face, server: DictionaryServer) -> Iterator[list[Process]]:
    both = [Process(face, server) for _ in range(2)]
    yield both
    close(face, *both)


def close(face: Face, *processes: Process) -> None:
    stores = [process.store for process in processes]
    if face.name == "wsgi":
        sticky_wsgi.stores.client.close(stores)
    else:
        asyncio.run(sticky_asgi.stores.client.close(stores))


def test_two_processes_agree_on_every_client(processes: list[Process]):
    one, other = processes
    servers = [one.request(user) for user in USERS]
    assert servers == ["s1", "s2", "s3"] * 3
    assert [other.request(user) for user in USERS] == servers


def test_each_request_queries_a_store_that_sends_no_invalidations(processes: list[Process], server: DictionaryServer):
    one, other = processes
    assert [process.request("ann") for process in (one, one, other, one)] == ["s1"] * 4
    assert server.commands == ["recall", "reserve", "recall", "recall", "recall"]
    assert not one.store.is_listening
    assert repr(one.store) == "<DictionaryStore dictionary closed>"


def test_client_that_another_process_has_moved_is_followed(processes: list[Process]):
    one, other = processes
    assert [one.request("ann"), other.request("ann")] == ["s1", "s1"]
    one.backend["s1"].state = "maint"
    assert [one.request("ann"), other.request("ann")] == ["s2", "s2"]


def test_while_the_store_fails_each_process_keeps_its_clients_and_no_request_waits(
    processes: list[Process], server: DictionaryServer
):
    one, other = processes
    assert [one.request(user) for user in USERS] == ["s1", "s2", "s3"] * 3
    server.is_down = True
    assert [one.request(user) for user in USERS] == ["s1", "s2", "s3"] * 3
    assert (one.store.breaker.state, one.store.breaker.failures) == (State.OPEN, 1)
    assert one.store.breaker.last_error == "it is down"
    server.is_down = False
    server.clock.advance(LONGEST_PAUSE)
    assert [other.request(user) for user in USERS] == ["s1", "s2", "s3"] * 3
    assert one.request("ann") == other.request("ann")
    assert one.store.breaker.state is State.CLOSED


def test_client_that_is_moved_while_the_store_fails_stays_where_it_is(
    processes: list[Process], server: DictionaryServer
):
    one, other = processes
    assert [one.request(user) for user in USERS[:3]] == ["s1", "s2", "s3"]
    server.is_down = True
    one.backend["s1"].state = "maint"
    moved = one.request(USERS[0])
    assert moved in ("s2", "s3")
    assert [one.request(USERS[0]) for _ in range(4)] == [moved] * 4

    server.is_down = False  # with the entries from before
    one.backend["s1"].state = "ready"
    server.clock.advance(LONGEST_PAUSE)
    assert [process.request(USERS[0]) for process in (one, other, one)] == [moved] * 3


def test_client_that_is_moved_twice_while_the_store_fails_stays_at_the_last_server(
    processes: list[Process], server: DictionaryServer
):
    one, other = processes
    assert one.request("ann") == "s1"
    server.is_down = True
    one.backend["s1"].state = "maint"
    second = one.request("ann")
    one.backend[str(second)].state = "maint"
    third = one.request("ann")
    assert {second, third} == {"s2", "s3"}

    server.is_down = False
    one.backend["s1"].state = one.backend[str(second)].state = "ready"
    server.clock.advance(LONGEST_PAUSE)
    assert [process.request("ann") for process in (one, other, one)] == [third] * 3


def test_client_that_another_process_has_moved_while_the_store_failed_here_is_followed(
    processes: list[Process], server: DictionaryServer
):
    one, other = processes
    assert [one.request("ann"), other.request("ann")] == ["s1", "s1"]
    server.is_down = True
    one.backend["s1"].state = "maint"
    moved = one.request("ann")
    server.is_down = False
    other.backend["s1"].state = other.backend[str(moved)].state = "maint"
    elsewhere = other.request("ann")
    assert elsewhere not in ("s1", moved)
    server.clock.advance(LONGEST_PAUSE)
    assert [one.request("ann"), other.request("ann")] == [elsewhere] * 2


def test_with_fail_requests_that_need_the_store_get_503(face: Face, server: DictionaryServer):
    process = Process(face, server, on_store_failure="fail")
    server.is_down = True
    assert process.request("ann") == 503
    close(face, process)


def test_client_that_hangs_is_waited_for_no_longer_than_the_timeout(face: Face, server: DictionaryServer):
    process = Process(face, server, timeout="50ms")
    server.hangs = True
    assert process.request("ann") == "s1"
    assert process.store.breaker.state is State.OPEN
    close(face, process)


NO_TEXTS = [b"s1\xff", 1, 1.5, True, ["s1"], {"s1": 1}, ValueError("s1"), object()]


def in_flight(process: Process) -> list[int]:
    return [len(server.in_flight) for server in process.backend.servers]


@pytest.mark.parametrize("name", ["recall", "reserve", "move", "touch", "put", "forget"])
@pytest.mark.parametrize("reply", NO_TEXTS, ids=[type(each).__name__ for each in NO_TEXTS])
def test_request_goes_on_without_the_store_where_a_reply_is_no_text(
    processes: list[Process], server: DictionaryServer, name: str, reply: object
):
    one, other = processes
    assert [one.request(user) for user in ("ann", "bob")] == ["s1", "s2"]
    server.returned = lambda names, replies: [
        reply if each == name else was for each, was in zip(names, replies, strict=True)
    ]
    assert {one.request("ann"), other.request("ann")} <= {"s1", "s2", "s3"}
    server.clock.advance(LONGEST_PAUSE)
    one.backend["s1"].state = other.backend["s1"].state = "maint"
    assert {one.request("ann"), other.request("eve")} <= {"s2", "s3"}
    assert in_flight(one) == in_flight(other) == [0, 0, 0]


@pytest.mark.parametrize("name", ["recall", "reserve"])
def test_with_fail_requests_whose_reply_is_no_text_get_503_and_hold_no_slot(
    face: Face, server: DictionaryServer, name: str
):
    process = Process(face, server, on_store_failure="fail")
    server.returned = lambda names, replies: [7 if each == name else None for each in names]
    assert process.request("ann") == 503
    assert process.store.breaker.last_error == "a reply is a text or nothing, not 7"
    assert in_flight(process) == [0, 0, 0]
    close(face, process)


@pytest.mark.parametrize("replies", [None, [], ["s1", "s1"], "s", 7], ids=repr)
def test_client_that_returns_too_many_or_too_few_replies_is_a_store_that_fails(
    processes: list[Process], server: DictionaryServer, replies: object
):
    one, _ = processes
    server.returned = lambda names, _: replies
    assert [one.request(user) for user in USERS] == ["s1", "s2", "s3"] * 3
    assert one.store.breaker.last_error == f"commands: 1, replies: {replies!r}"
    assert in_flight(one) == [0, 0, 0]


def test_entry_that_is_no_text_is_replaced(processes: list[Process], server: DictionaryServer):
    one, other = processes
    assert one.request("ann") == "s1"
    server.keep(b"\xff".decode("utf-8", "surrogateescape"))
    server.returned = lambda names, replies: [
        each.encode("utf-8", "surrogateescape") if isinstance(each, str) else each for each in replies
    ]
    moved = other.request("ann")
    assert moved in ("s1", "s2", "s3")
    assert [one.request("ann"), other.request("ann")] == [moved, moved]
    assert (one.store.breaker.failures, other.store.breaker.failures) == (0, 0)


@pytest.mark.parametrize("method", ["digest", "recall", "reserve", "move", "put", "touch", "forget"])
def test_slot_is_released_where_a_namespace_raises(
    face: Face, server: DictionaryServer, method: str, monkeypatch: pytest.MonkeyPatch
):
    process = Process(face, server, servers={"maxconn": 1})
    assert [process.request(user) for user in ("ann", "bob")] == ["s1", "s2"]

    def raising(*_: object) -> object:
        raise RuntimeError("no command")

    monkeypatch.setattr(DictionaryNamespace, method, raising)
    for user in ("ann", "eve"):
        process.outcome(user)
        assert in_flight(process) == [0, 0, 0]
    process.backend["s1"].state = "maint"
    for name in ("s2", "s3"):
        process.outcome("ann")
        assert in_flight(process) == [0, 0, 0]
        face.apps[name].raises = ServerFailure(Failure.NOT_STARTED, name)
    process.outcome("bob")
    assert in_flight(process) == [0, 0, 0]
    close(face, process)


def test_presence_marks_are_set_in_the_background(face: Face, processes: list[Process], server: DictionaryServer):
    one, _ = processes
    one.request("ann")
    close(face, one)  # a client that begins again sends background commands at once
    server.clock.advance(HEARTBEAT_INTERVAL)
    one.request("ann")
    assert server.marked.wait(PATIENCE)


class StoreWithoutClients(DictionaryStore):
    clients = {}  # noqa: RUF012 - nothing changes it


def test_store_that_has_no_client_for_a_face_is_a_configuration_error(face: Face, server: DictionaryServer):
    with pytest.raises(ConfigError, match=f"StoreWithoutClients has no client for {face.name.upper()}"):
        StoreWithoutClients(server).load_client(face.name)
