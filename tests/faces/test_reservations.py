"""The key that a client's first request reserves is given up if no server responds, whatever the reason: in memory and
in a store.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import sticky_asgi.stores.client
import sticky_wsgi.stores.client
from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.errors import Failure
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import hdr
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.faces.dictionary_store import DictionaryServer, DictionaryStore

if TYPE_CHECKING:
    from tests.faces.conftest import Face

Entries = Callable[[], dict[str, str]]


class HardStop(BaseException):
    """What a timeout of gevent is: no Exception."""


class Case:
    """A request with a key, in front of a server that is an app or a URL."""

    def __init__(self, face: Face, table: StickTable, target: Any, **options: Any) -> None:
        server = Server("s1", target, stateless=not isinstance(target, str))
        self.backend: Backend = face.backend(server, persist=Stick.on(hdr("x"), table), **options)
        self._dispatcher: Any = face.dispatcher(self.backend)
        self._face = face

    def request(self, *, disconnects: bool = False) -> BaseException | None:
        """Send the request, and return what was raised. `disconnects`: the client does so after it."""
        serve = self._serve_asgi if self._face.name == "asgi" else self._serve_wsgi
        try:
            serve(disconnects)
        except BaseException as error:
            return error
        return None

    def _serve_asgi(self, disconnects: bool) -> None:
        messages: list[dict[str, Any]] = [{"type": "http.request"}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            if not disconnects:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None: ...

        scope = {"type": "http", "method": "GET", "path": "/", "scheme": "http", "headers": [(b"x", b"ann")]}
        asyncio.run(self._dispatcher(scope | {"query_string": b""}, receive, send))

    def _serve_wsgi(self, disconnects: bool) -> None:
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.multiprocess": False,
            "HTTP_X": "ann",
            "waitress.client_disconnected": lambda: disconnects,
        }
        body: Any = self._dispatcher(environ, lambda status, headers, exc_info=None: lambda data: None)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, "close"):
                body.close()


def raising(face: Face, error: BaseException) -> Any:
    """Return an app that raises before it has responded."""
    if face.name == "asgi":

        async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
            raise error

        return asgi_app

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        raise error

    return wsgi_app


def silent(face: Face, body: Callable[[], Any] = list) -> Any:
    """Return an app that returns without a head, as after a disconnect of the client."""
    if face.name == "asgi":

        async def asgi_app(scope: Any, receive: Any, send: Any) -> None: ...

        return asgi_app
    return lambda environ, start_response: body()


@pytest.fixture(params=["in memory", "in a store"])
def table_and_entries(request: pytest.FixtureRequest, face: Face) -> Iterator[tuple[StickTable, Entries]]:
    """A stick table, and a function that returns its entries where they count."""
    if request.param == "in memory":
        table = StickTable("string", expire=80)
        yield table, lambda: {entry.key: entry.server for entry in table}
        return
    server = DictionaryServer()
    store = DictionaryStore(server)

    def entries() -> dict[str, str]:
        assert server.commands[-1] == "forget" or "reserve" not in server.commands
        return {key: kept for key, (kept, _) in server._entries.items() if "mark" not in key}

    yield StickTable("string", expire=80, store=store, clock=server.clock), entries
    if face.name == "wsgi":
        sticky_wsgi.stores.client.close([store])
    else:
        asyncio.run(sticky_asgi.stores.client.close([store]))


@pytest.mark.parametrize(
    "error", [RuntimeError("of the app"), asyncio.CancelledError(), HardStop()], ids=lambda error: type(error).__name__
)
def test_app_that_raises_before_its_response_leaves_no_entry(
    face: Face, table_and_entries: tuple[StickTable, Entries], error: BaseException
) -> None:
    table, entries = table_and_entries
    case = Case(face, table, raising(face, error))
    raised = case.request()
    assert type(raised) is type(error)
    assert (entries(), len(table)) == ({}, 0)
    assert not case.backend["s1"].in_flight


@pytest.mark.parametrize("body", [list, tuple, lambda: iter(())], ids=["list", "tuple", "iterator"])
def test_app_that_returns_without_a_response_leaves_no_entry(
    face: Face, table_and_entries: tuple[StickTable, Entries], body: Callable[[], Any]
) -> None:
    table, entries = table_and_entries
    case = Case(face, table, silent(face, body))
    assert case.request() is None
    assert (entries(), len(table)) == ({}, 0)
    assert not case.backend["s1"].in_flight


def test_client_that_disconnects_before_the_response_of_a_url_leaves_no_entry(
    face: Face, table_and_entries: tuple[StickTable, Entries]
) -> None:
    table, entries = table_and_entries
    with socket.create_server(("127.0.0.1", 0)) as never_responds:
        case = Case(face, table, f"http://127.0.0.1:{never_responds.getsockname()[1]}")
        assert case.request(disconnects=True) is None
    assert (entries(), len(table)) == ({}, 0)
    assert case.backend["s1"].counters[Total.CLI_ABRT] == 1


def test_url_that_refuses_leaves_no_entry(face: Face, table_and_entries: tuple[StickTable, Entries]) -> None:
    table, entries = table_and_entries
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert Case(face, table, f"http://127.0.0.1:{port}").request() is None
    assert (entries(), len(table)) == ({}, 0)


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_client_that_leaves_during_the_pause_before_a_retry_leaves_no_entry(
    face: Face, table_and_entries: tuple[StickTable, Entries]
) -> None:
    table, entries = table_and_entries
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    case = Case(face, table, f"http://127.0.0.1:{port}")
    case.backend.apply(replace(case.backend.config, redispatch=False))
    assert case.request(disconnects=True) is None
    assert (entries(), len(table)) == ({}, 0)


@pytest.mark.parametrize("command", ["recall", "reserve"])
def test_request_with_no_time_left_when_its_store_replies_leaves_no_entry(face: Face, command: str) -> None:
    server, log = DictionaryServer(), list[Decision]()
    store = DictionaryStore(server)

    def reply_late(names: Any, replies: list[object]) -> Any:
        if command in names:
            server.clock.advance(10)
        return replies

    server.returned = reply_late
    table = StickTable("string", expire=80, store=store, clock=server.clock)
    case = Case(face, table, silent(face), clock=server.clock, timeouts=Timeouts(total=10), log=log.append)
    assert case.request() is None
    assert [(decision.attempts, decision.failures) for decision in log] == [((), (Failure.TOTAL_TIMEOUT,))]
    assert not any("mark" not in key for key in server._entries) and len(table) == 0
    assert not case.backend["s1"].in_flight
    if face.name == "wsgi":
        sticky_wsgi.stores.client.close([store])
    else:
        asyncio.run(sticky_asgi.stores.client.close([store]))
