"""Servers, resolvers and running dispatchers for the tests of name resolution."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from werkzeug.test import EnvironBuilder

from sticky_core.dns.resolvers import Address, Query, Resolvers
from sticky_core.server.server import Server
from tests.faces.running import DEADLINE

if TYPE_CHECKING:
    from tests.faces.conftest import Face

A, B, C = "127.0.0.1", "127.0.0.2", "127.0.0.3"
OFTEN: dict[str, Any] = {"timeout_resolve": 0.03, "timeout_retry": 0.5}
NAME = "myservice.local"


class Origin(BaseHTTPRequestHandler):
    """Responds with its address, and records the Host headers of requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the response in one piece: a second one would wait until the first is acknowledged
    hosts: set[str]

    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[0]).encode()
        self.hosts.add(self.headers["host"])
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


class Origins:
    """Servers at several loopback addresses, all with one port."""

    def __init__(self, addresses: Sequence[str], context: ssl.SSLContext | None = None) -> None:
        self.hosts: set[str] = set()
        handler = type("Handler", (Origin,), {"hosts": self.hosts})
        self._servers: list[ThreadingHTTPServer] = []
        self.port = 0
        for address in addresses:
            server = ThreadingHTTPServer((address, self.port), handler)
            server.daemon_threads = True
            if context is not None:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            self.port = server.server_address[1]
            self._servers.append(server)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class FakeNameserver:
    """A name server on loopback, which answers from its zone or with an error."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((A, 0))
        self.address = f"{A}:{self._socket.getsockname()[1]}"
        #: by name and type, the records as text
        self.zone: dict[tuple[str, str], list[str]] = {}
        #: additional records, in every answer
        self.additional: dict[tuple[str, str], list[str]] = {}
        #: answers every query, instead of the zone; "silent": no answer
        self.error: str | None = None
        self.queries: list[tuple[str, str]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            wire, client = self._socket.recvfrom(4096)
            if not wire:
                return self._socket.close()
            answer = self._answer(dns.message.from_wire(wire))
            if answer is not None:
                self._socket.sendto(answer.to_wire(), client)

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        key = question.name.to_text(omit_final_dot=True), question.rdtype.name
        self.queries.append(key)
        if self.error == "silent":
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self.error is not None:
            answer.set_rcode(dns.rcode.from_text(self.error))
        elif key in self.zone:
            if self.zone[key]:
                answer.answer.append(dns.rrset.from_text(question.name, 1, "IN", key[1], *self.zone[key]))
            for (name, type_), records in self.additional.items():
                answer.additional.append(dns.rrset.from_text(f"{name}.", 1, "IN", type_, *records))
        elif not any(name == key[0] for name, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()


class FakeResolver:
    """A resolver function that returns the addresses which a test sets, and records its queries."""

    def __init__(self, *addresses: str | Address) -> None:
        self.addresses: list[str | Address] = list(addresses)
        self.raises: Exception | None = None
        self.queries: list[Query] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.parallel = 0
        self.max_parallel = 0

    def __call__(self, query: Query) -> list[str | Address]:
        self.parallel += 1
        self.max_parallel = max(self.max_parallel, self.parallel)
        self.queries.append(query)
        try:
            self.may_answer.wait(DEADLINE)
            if self.raises is not None:
                raise self.raises
            return list(self.addresses)
        finally:
            self.parallel -= 1


class ReceivedResponse:
    """A response as a client receives it, and the letters of claim and mark."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes, letters: str) -> None:
        self.status = status
        self.body = body.decode()
        self.letters = letters
        #: the cookie to send back
        self.mark = next((value.partition(";")[0] for name, value in headers if name.lower() == "set-cookie"), "")


class RunningDispatcher:
    """A running dispatcher: one event loop with its lifespan, or the threads of this process."""

    def __init__(self, face: Face, dispatcher: Any, portal: Any) -> None:
        self.face = face
        self.dispatcher = dispatcher
        self.portal = portal

    def get(self, cookie: str | None = None) -> ReceivedResponse:
        """Send a request, over ASGI on the event loop on which names are resolved."""
        headers = {} if cookie is None else {"cookie": cookie}
        if self.portal is not None:
            response: ReceivedResponse = self.portal.call(self._asgi, headers)
            return response
        request = EnvironBuilder(headers=[*headers.items()]).get_environ()
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            head[:] = int(status[:3]), headers

        items = self.dispatcher(request, start_response)
        body = b"".join(items)
        if hasattr(items, "close"):
            items.close()
        decided = self.face.decision(request)
        assert decided is not None
        return ReceivedResponse(head[0], head[1], body, decided.claim.value + decided.mark.value)

    async def _asgi(self, headers: dict[str, str]) -> ReceivedResponse:
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": raw_headers,
            "client": ("192.0.2.1", 50000),
            "server": ("shop.example", 80),
            "extensions": {},
        }
        body, messages = [{"type": "http.request", "body": b"", "more_body": False}], []

        async def receive() -> dict[str, Any]:
            if not body:
                await anyio.sleep_forever()  # the client stays
            return body.pop()

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await self.dispatcher(scope, receive, send)
        decided = self.face.decision(scope)
        assert decided is not None
        response_headers = [(name.decode(), value.decode()) for name, value in messages[0]["headers"]]
        whole = b"".join(message.get("body", b"") for message in messages[1:])
        return ReceivedResponse(
            messages[0]["status"], response_headers, whole, decided.claim.value + decided.mark.value
        )

    def address(self) -> str:
        """Send a request of a new client; return the address of the server that responded."""
        response = self.get()
        assert response.status == 200
        return response.body


@contextmanager
def running(
    face: Face, backend: Any, library: str = "asyncio", *, lifespan: bool = True, warm: bool = True
) -> Iterator[RunningDispatcher]:
    """Run a dispatcher in front of `backend`. `warm`: on WSGI, a first request starts the resolution."""
    dispatcher: Any = face.dispatcher(backend)
    with ExitStack() as stack:
        portal = None
        if face.name == "asgi":
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal(library))
            if lifespan:
                stack.enter_context(portal.wrap_async_context_manager(dispatcher.lifespan()))
            else:
                stack.callback(portal.call, dispatcher.replicas.discovery.stop)
        else:
            stack.callback(dispatcher.replicas.stop)
        run = RunningDispatcher(face, dispatcher, portal)
        if warm and portal is None:
            run.get()
        yield run


def template(origins: Origins, resolver: Any, n: int = 3, **options: Any) -> list[Server]:
    resolvers = Resolvers(resolver=resolver, **{**OFTEN, **options})
    return Server.template("web", n, f"{NAME}:{origins.port}", resolvers=resolvers)


def addresses(backend: Any) -> list[str | None]:
    """Return the address of each server, in order."""
    return [
        server.target.removeprefix("http://").partition(":")[0] if isinstance(server.target, str) else None
        for server in backend.servers
    ]


def check_result(server: Server) -> str:
    """Return the result of the latest check; a server that moves begins anew."""
    assert server.checking is not None
    return str(server.checking.result)


def resolving_threads() -> list[str]:
    """Return the names of the threads that resolve."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("resolution")]
