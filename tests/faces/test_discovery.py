"""Servers of a template follow their name on both faces: as a resolver that is handed in says, or the system, or a name
server, which is a responder of our own on loopback.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
import pytest
import trustme
from werkzeug.test import EnvironBuilder

import sticky_wsgi
from sticky_core.dns.resolvers import Address, Query, Resolvers
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.http.forwarding import Forward
from sticky_core.http.tls import TLS
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

if TYPE_CHECKING:
    from tests.faces.conftest import Face

DEADLINE = 300.0
A, B, C = "127.0.0.1", "127.0.0.2", "127.0.0.3"
OFTEN: dict[str, Any] = {"timeout_resolve": 0.03, "timeout_retry": 0.5}
NAME = "myservice.local"


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


# -- who answers requests


class Origin(BaseHTTPRequestHandler):
    """Says at which address it is, and remembers by which name it was called."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: a second one would wait until the first is acknowledged
    called: set[str]

    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[0]).encode()
        self.called.add(self.headers["host"])
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


class Origins:
    """Servers at several addresses of loopback, all at one port."""

    def __init__(self, addresses: Sequence[str], context: ssl.SSLContext | None = None) -> None:
        self.called: set[str] = set()
        handler = type("Handler", (Origin,), {"called": self.called})
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


@pytest.fixture(scope="module")
def origins() -> Iterator[Origins]:
    made = Origins([A, B, C])
    yield made
    made.close()


# -- who answers for names


class Responder:
    """A name server: what its zone says, or what it is told to do to everybody."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((A, 0))
        self.address = f"{A}:{self._socket.getsockname()[1]}"
        #: by name and type, the records as text
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.beside: dict[tuple[str, str], list[str]] = {}
        #: said to all, if it is not what the zone says; "silent" says nothing
        self.says: str | None = None
        self.asked: list[tuple[str, str]] = []
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
        asked = query.question[0]
        key = asked.name.to_text(omit_final_dot=True), asked.rdtype.name
        self.asked.append(key)
        if self.says == "silent":
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self.says is not None:
            answer.set_rcode(dns.rcode.from_text(self.says))
        elif key in self.zone:
            if self.zone[key]:
                answer.answer.append(dns.rrset.from_text(asked.name, 1, "IN", key[1], *self.zone[key]))
            for (name, type_), records in self.beside.items():
                answer.additional.append(dns.rrset.from_text(f"{name}.", 1, "IN", type_, *records))
        elif not any(name == key[0] for name, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()


@pytest.fixture
def responder() -> Iterator[Responder]:
    made = Responder()
    yield made
    made.close()


class Book:
    """A resolver that is handed in: it says what it has been told, and counts how often."""

    def __init__(self, *found: str | Address) -> None:
        self.found: list[str | Address] = list(found)
        self.raises: Exception | None = None
        self.queries: list[Query] = []
        self.free = threading.Event()
        self.free.set()
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self, query: Query) -> list[str | Address]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.queries.append(query)
        try:
            self.free.wait(DEADLINE)
            if self.raises is not None:
                raise self.raises
            return list(self.found)
        finally:
            self.at_once -= 1


# -- who asks


class Heard:
    """An answer, as a client has it."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes, letters: str) -> None:
        self.status = status
        self.body = body.decode()
        self.letters = letters
        #: what it is to send back
        self.mark = next((value.partition(";")[0] for name, value in headers if name.lower() == "set-cookie"), "")


class Running:
    """A dispatcher at work: one event loop with its lifespan, or the threads of this process."""

    def __init__(self, face: Face, dispatcher: Any, portal: Any) -> None:
        self.face = face
        self.dispatcher = dispatcher
        self.portal = portal

    def get(self, cookie: str | None = None) -> Heard:
        """An answer, by the same loop in which names are resolved."""
        headers = {} if cookie is None else {"cookie": cookie}
        if self.portal is not None:
            heard: Heard = self.portal.call(self._asgi, headers)
            return heard
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
        return Heard(head[0], head[1], body, decided.claim.value + decided.mark.value)

    async def _asgi(self, headers: dict[str, str]) -> Heard:
        asked = [(name.encode(), value.encode()) for name, value in headers.items()]
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
            "headers": asked,
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
        told = [(name.decode(), value.decode()) for name, value in messages[0]["headers"]]
        whole = b"".join(message.get("body", b"") for message in messages[1:])
        return Heard(messages[0]["status"], told, whole, decided.claim.value + decided.mark.value)

    def where(self) -> str:
        """At which address a new client is answered."""
        heard = self.get()
        assert heard.status == 200
        return heard.body


@contextmanager
def running(
    face: Face, backend: Any, library: str = "asyncio", *, lifespan: bool = True, begun: bool = True
) -> Iterator[Running]:
    """`begun`: on WSGI, by a first request."""
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
        run = Running(face, dispatcher, portal)
        if begun and portal is None:
            run.get()
        yield run


def template(origins: Origins, resolver: Any, n: int = 3, **options: Any) -> list[Server]:
    asked = {**OFTEN, **options}
    return Server.template("web", n, f"{NAME}:{origins.port}", resolvers=Resolvers(resolver=resolver, **asked))


def addresses(backend: Any) -> list[str | None]:
    """Which address each server has, in order."""
    return [
        server.target.removeprefix("http://").partition(":")[0] if isinstance(server.target, str) else None
        for server in backend.servers
    ]


def checked(server: Server) -> str:
    """How its latest check turned out; with another address there is another."""
    assert server.checking is not None
    return str(server.checking.result)


def at_work(kind: str) -> list[str]:
    """The threads that resolve."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(kind)]


# -- beginning and ending


@pytest.mark.parametrize("lifespan", [True, False], ids=["lifespan", "first request"])
def test_the_first_request_finds_servers(face: Face, origins: Origins, lifespan: bool) -> None:
    book = Book(A, B)
    backend = face.backend(*template(origins, book))
    dispatched = face.dispatcher(backend)
    assert dispatched is not None and book.queries == [], "nobody is asked before there is anybody to ask for"
    with running(face, backend, lifespan=lifespan, begun=False) as run:
        assert {run.where(), run.where()} == {A, B}
        assert addresses(backend) == [A, B, None]
        assert [server.status for server in backend.servers] == ["UP", "UP", "MAINT"]
        assert book.queries[0] == Query(NAME, False, "ipv4", 0.5)


def test_requests_wait_for_addresses_no_longer_than_an_answer_may_take(face: Face, origins: Origins) -> None:
    book = Book(A)
    book.free.clear()
    backend = face.backend(*template(origins, book, timeout_retry=0.05))
    try:
        with running(face, backend, begun=False) as run:
            assert run.get().status == 503
            book.free.set()
            until(lambda: backend["web1"].usable)
            assert run.where() == A
            assert book.most_at_once == 1, "a question that takes long is waited for, and not asked again beside it"
    finally:
        book.free.set()


def test_none_resolves_beyond_the_end(face: Face, origins: Origins) -> None:
    book = Book(A)
    backend = face.backend(*template(origins, book))
    with running(face, backend) as run:
        run.get()
        until(lambda: len(book.queries) > 2)
    assert at_work("resolution") == []
    times = len(book.queries)
    time.sleep(0.1)
    assert len(book.queries) == times


def test_who_begins_again_resolves_again_from_where_it_was(face: Face, origins: Origins) -> None:
    book = Book(A, B)
    backend = face.backend(*template(origins, book))
    for _ in range(2):
        with running(face, backend) as run:
            before = len(book.queries)
            assert run.where() in (A, B)
            until(lambda: len(book.queries) > before)  # noqa: B023 - called before the next turn
    assert addresses(backend) == [A, B, None]


def test_a_forked_child_resolves_by_itself_from_its_first_request_on(face: Face, origins: Origins) -> None:
    if face.name == "asgi":
        pytest.skip("an event loop does not survive a fork")
    book = Book(A)
    backend = face.backend(*template(origins, book))
    with running(face, backend) as run:
        run.get()
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            code = 1
            try:
                assert at_work("resolution") == []
                before = len(book.queries)
                run.get()
                until(lambda: len(book.queries) > before + 1)
                assert len(at_work("resolution")) == 1
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0


def test_of_both_faces_in_front_of_one_backend_one_resolves(face: Face, origins: Origins) -> None:
    book = Book(A)
    backend = face.backend(*template(origins, book))
    with running(face, backend) as run:
        assert run.where() == A
        other = sticky_wsgi.Dispatcher(backend)
        other.replicas.get_ready()
        assert len(at_work("resolution")) == (1 if face.name == "wsgi" else 0)


# -- while it runs


def test_servers_follow_the_answers_and_clients_stay_where_theirs_stays(face: Face, origins: Origins) -> None:
    book = Book(A, B)
    backend = face.backend(*template(origins, book), persist=Cookie("SERVERID", signed=False))
    with running(face, backend) as run:
        until(lambda: addresses(backend) == [A, B, None])
        bound = "SERVERID=web2"
        assert run.get(cookie=bound).body == B
        book.found = [C, B]
        until(lambda: addresses(backend) == [C, B, None])
        assert run.get(cookie=bound).body == B
        assert run.get(cookie="SERVERID=web1").body == C
        book.found = [C]
        until(lambda: addresses(backend) == [C, None, None])
        moved = run.get(cookie=bound)
        assert (moved.body, moved.mark, moved.letters) == (C, "SERVERID=web1", "DI")


def test_clients_follow_an_address_by_a_dynamic_cookie(face: Face, origins: Origins) -> None:
    book = Book(A, B)
    backend = face.backend(*template(origins, book, n=2), persist=Cookie("SERVERID", dynamic="key", signed=False))
    with running(face, backend) as run:
        until(lambda: addresses(backend) == [A, B])
        first = run.get()
        mark, where = first.mark, first.body
        other = B if where == A else A
        # where it was leaves, and comes back elsewhere
        book.found = [other, C]
        until(lambda: where not in addresses(backend))
        assert run.get(cookie=mark).body != where
        book.found = [C, where]
        until(lambda: where in addresses(backend))
        answer = run.get(cookie=mark)
        assert (answer.body, answer.letters[0]) == (where, "V")


def test_a_name_that_fails_leaves_servers_until_its_time_is_over(face: Face, origins: Origins) -> None:
    book = Book(A)
    backend = face.backend(*template(origins, book, hold_nx=0.2, timeout_retry=0.02))
    with running(face, backend) as run:
        assert run.where() == A
        asked = len(book.queries)
        book.raises = LookupError("no such name")
        until(lambda: len(book.queries) > asked + 1)
        until(lambda: addresses(backend) == [None, None, None])
        assert run.get().status == 503
        book.raises = None
        until(lambda: addresses(backend) == [A, None, None])
        assert run.where() == A


def test_a_server_is_checked_from_when_it_has_an_address_and_no_longer(face: Face, origins: Origins) -> None:
    book = Book(A)
    servers = Server.template(
        "web",
        2,
        f"{NAME}:{origins.port}",
        resolvers=Resolvers(resolver=book, **OFTEN),
        check=Check("/health", inter=0.05, timeout=5, fall=1, rise=1),
    )
    backend = face.backend(*servers)
    with running(face, backend) as run:
        run.get()
        until(lambda: "Layer7 check passed" in checked(backend["web1"]))
        assert checked(backend["web2"]) == "Initializing"
        book.found = [B, A]
        until(lambda: "Layer7 check passed" in checked(backend["web2"]))
        assert [server.status for server in backend.servers] == ["UP", "UP"]
        assert NAME in {each.partition(":")[0] for each in origins.called}


def test_a_template_that_is_added_while_it_runs_is_resolved(face: Face, origins: Origins) -> None:
    book = Book(A)
    backend = face.backend(face.server("s1", weight=1))
    with running(face, backend) as run:
        assert run.get().body == "s1"
        backend.add(*template(origins, book, n=1))
        until(lambda: run.get().status == 200 and addresses(backend)[-1] == A)
        backend["s1"].state = AdminState.MAINT
        assert run.where() == A
        backend.remove("web1")
        until(lambda: at_work("resolution") == [])
        times = len(book.queries)
        time.sleep(0.1)
        assert len(book.queries) <= times + 1


# -- whom to ask


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_the_system_is_asked_by_default(face: Face, origins: Origins, library: str) -> None:
    if face.name == "wsgi" and library == "trio":
        pytest.skip("WSGI has no event loop")
    backend = face.backend(*Server.template("web", 2, f"localhost:{origins.port}"))
    with running(face, backend, library):
        until(lambda: addresses(backend) == [A, None])


@pytest.mark.parametrize(
    "number, word", [(socket.EAI_NONAME, "nx"), (socket.EAI_AGAIN, "timeout"), (socket.EAI_FAIL, "other")]
)
def test_how_the_system_fails_is_told(
    face: Face, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, word: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "as asked")

    backend = face.backend(
        *Server.template("web", 1, f"{NAME}:80", resolvers=Resolvers(**OFTEN | {"timeout_retry": 0.05}))
    )
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with running(face, backend) as run:
        assert run.get().status == 503
        until(lambda: f"{NAME} does not resolve: {word} (as asked)" in caplog.text)


def test_a_coroutine_function_is_awaited_or_refused(face: Face, origins: Origins) -> None:
    async def resolve(query: Query) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [A]

    backend = face.backend(*template(origins, resolve))
    if face.name == "wsgi":
        with pytest.raises(ConfigError, match=r"server web1: resolver .* is a coroutine function"):
            face.dispatcher(backend)
        return
    with running(face, backend) as run:
        assert run.where() == A


@pytest.fixture(params=["asyncio", "trio"])
def library(request: pytest.FixtureRequest, face: Face) -> str:
    """The event loops that can resolve; servers that are URLs are none of trio's, but names are."""
    if face.name == "wsgi" and request.param == "trio":
        pytest.skip("WSGI has no event loop")
    return str(request.param)


def by_nameserver(responder: Responder, **options: Any) -> Resolvers:
    return Resolvers(nameservers=[responder.address], **{**OFTEN, **options})


def test_a_name_server_is_asked_for_addresses(face: Face, responder: Responder, library: str) -> None:
    responder.zone[NAME, "A"] = [B, A]
    backend = face.backend(*Server.template("web", 3, f"{NAME}:8080", resolvers=by_nameserver(responder)))
    with running(face, backend, library):
        until(lambda: addresses(backend) == [A, B, None])
        responder.zone[NAME, "A"] = [B]
        until(lambda: addresses(backend) == [None, B, None])
    assert set(responder.asked) == {(NAME, "A")}


def test_srv_records_tell_hosts_ports_and_weights(face: Face, responder: Responder, library: str) -> None:
    service = f"_http._tcp.{NAME}"
    responder.zone[service, "SRV"] = [f"0 0 8081 a.{NAME}.", f"0 512 8082 b.{NAME}."]
    responder.zone[f"a.{NAME}", "A"] = [A]
    responder.zone[f"b.{NAME}", "A"] = [B]
    backend = face.backend(*Server.template("web", 3, service, resolvers=by_nameserver(responder)))
    with running(face, backend, library):
        until(lambda: addresses(backend) == [A, B, None])
        assert [server.target for server in backend.servers] == ["http://127.0.0.1:8081", "http://127.0.0.2:8082", None]
        assert [server.weight for server in backend.servers] == [1, 3, 1]
        # a host that moves keeps its server, one whose record goes does not
        responder.zone[f"b.{NAME}", "A"] = [C]
        until(lambda: addresses(backend) == [A, C, None])
        responder.zone[service, "SRV"] = [f"0 0 8082 b.{NAME}."]
        until(lambda: addresses(backend) == [None, C, None])
        until(lambda: backend["web2"].weight == 1)


def test_addresses_beside_srv_records_are_taken(face: Face, responder: Responder) -> None:
    service = f"_http._tcp.{NAME}"
    responder.zone[service, "SRV"] = [f"0 0 8081 a.{NAME}."]
    responder.beside[f"a.{NAME}", "A"] = [A]
    backend = face.backend(*Server.template("web", 1, service, resolvers=by_nameserver(responder)))
    with running(face, backend):
        until(lambda: addresses(backend) == [A])
    assert set(responder.asked) == {(service, "SRV")}


@pytest.mark.parametrize(
    "says, word", [("NXDOMAIN", "nx"), ("REFUSED", "refused"), ("SERVFAIL", "other"), ("silent", "timeout")]
)
def test_how_a_name_server_fails_decides_for_how_long_servers_stay(
    face: Face, responder: Responder, caplog: pytest.LogCaptureFixture, says: str, word: str
) -> None:
    responder.zone[NAME, "A"] = [A]
    asked = by_nameserver(responder, timeout_retry=0.1, **{f"hold_{word}": 0.1})
    backend = face.backend(*Server.template("web", 2, f"{NAME}:8080", resolvers=asked))
    with running(face, backend):
        until(lambda: addresses(backend) == [A, None])
        responder.says = says
        until(lambda: addresses(backend) == [None, None])
        assert f"{NAME} does not resolve: {word}" in caplog.text
        responder.says = None
        until(lambda: addresses(backend) == [A, None])


# -- by which name


def test_a_server_is_called_by_the_name_where_the_client_s_is_not_passed_on(face: Face, origins: Origins) -> None:
    origins.called.clear()
    backend = face.backend(*template(origins, Book(A)), forward=Forward(host="upstream"))
    with running(face, backend) as run:
        assert run.where() == A
    assert origins.called == {f"{NAME}:{origins.port}"}


def test_tls_verifies_the_host_that_was_named_and_calls_it_so(face: Face, tmp_path: Any) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    origins = Origins([A], context)
    servers = Server.template(
        "web",
        1,
        f"https://{NAME}:{origins.port}",
        resolvers=Resolvers(resolver=Book(A), **OFTEN),
        tls=TLS(ca_file=str(ca_file)),
        check=Check("/health", inter=0.05, timeout=5, fall=1, rise=1),
    )
    backend = face.backend(*servers)
    try:
        with running(face, backend) as run:
            assert run.where() == A
            until(lambda: "Layer7 check passed" in checked(backend["web1"]))
    finally:
        origins.close()
    assert f"{NAME}:{origins.port}" in origins.called


def test_the_name_of_a_service_is_none_for_tls() -> None:
    with pytest.raises(ConfigError, match=r"say tls=TLS\(sni=...\)"):
        Server.template("web", 1, f"https://_https._tcp.{NAME}")
    [server] = Server.template("web", 1, f"https://_https._tcp.{NAME}", tls=TLS(sni=NAME))
    assert server.config.tls is not None and server.config.tls.sni == NAME
