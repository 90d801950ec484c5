"""One behaviour, two faces: the `face` fixture runs a test on both. It has apps that record the requests which they
receive, and a client that sends exactly the bytes that a test gives it and records the whole response.

    backend = face.backend(face.server("s1"), face.server("s2"), persist=Cookie("SERVERID", signed=False))
    get = face.client(backend)
    response = get(cookie="SERVERID=s1")

The client is as strict as the protocol allows a server to be: messages that ASGI forbids fail the test, and on WSGI
`wsgiref.validate` is put around the package and around every app. Each ASGI request runs on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import ModuleType
from typing import Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from wsgiref.validate import validator

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.balance import RoundRobin
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import Clock
from sticky_core.decision import Decision
from sticky_core.persistence.claim import PersistenceResult
from sticky_core.persistence.persistence import Persist
from sticky_core.server.server import Server
from sticky_core.transaction.transaction import Transaction

Header = tuple[str, str]
Cookies = str | Sequence[str] | None  # one Cookie header, several, or none; a character per byte

#: statuses of responses without a body, and so without a content type
BODILESS = (204, 304)


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as an app received it."""

    server: str
    method: str
    path: str
    #: the values of the Cookie headers, as they arrived
    cookies: tuple[str, ...]
    #: the decision as the app could read it
    decided: Decision | None
    #: the whole body
    body: bytes = b""

    @property
    def decision(self) -> Decision:
        assert self.decided is not None, "no dispatcher has received this request"
        return self.decided


@dataclass
class RecordedResponse:
    """A response as the client received it, and what the package and the servers did about the request."""

    status: int = 0
    #: with the names as they were sent
    raw_headers: list[Header] = field(default_factory=list)
    body: bytes = b""
    #: the request as each server that was tried received it, in order
    tried: tuple[ReceivedRequest, ...] = ()
    #: the request as the server received it that sent the head; None: no server did, the response is our own
    seen: ReceivedRequest | None = None
    decided: Decision | None = None
    #: the exception that ended the exchange
    raised: Exception | None = None
    #: messages that were sent before the head (ASGI)
    interim: list[dict[str, Any]] = field(default_factory=list)

    @property
    def headers(self) -> list[Header]:
        return [(name.lower(), value) for name, value in self.raw_headers]

    def all(self, name: str) -> list[str]:
        """Return the values of all headers named `name`, in order."""
        return [value for key, value in self.headers if key == name]

    @property
    def server(self) -> str | None:
        """The name of the server that responded."""
        return self.seen.server if self.seen is not None else None

    @property
    def decision(self) -> Decision:
        assert self.decided is not None, "no dispatcher has received this request"
        return self.decided

    @property
    def letters(self) -> str:
        """The letters of claim and mark, as in HAProxy's log."""
        return self.decision.claim.value + self.decision.mark.value

    @property
    def mark(self) -> str:
        """`NAME=value` of the only cookie that the response sets, as a browser would send it back."""
        (cookie,) = self.all("set-cookie")
        return cookie.partition(";")[0]


class RecordingApp(ABC):
    """An app that responds as its attributes say, which may change between requests, and records its requests."""

    def __init__(self, face: Face, name: str) -> None:
        self.face = face
        self.name = name
        self.status = 200
        self.headers: Sequence[Header] = ()
        #: raised before the head is sent
        self.raises: Exception | None = None
        #: raised after the head and these bytes
        self.breaks: Exception | None = None
        self.first = b"the first"
        self.seen: list[ReceivedRequest] = []

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def record(self, seen: ReceivedRequest) -> None:
        self.seen.append(seen)
        self.face.tried.append(seen)
        if self.raises is not None:
            raise self.raises

    @property
    def head(self) -> list[Header]:
        """The headers, with a content type: wsgiref.validate requires one where there may be a body."""
        return [*self.headers] if self.status in BODILESS else [("content-type", "text/plain"), *self.headers]

    def begin_response(self) -> None:
        self.face.served_request = self.seen[-1]

    def body(self, method: str) -> bytes:
        return b"" if method == "HEAD" or self.status in BODILESS else self.name.encode()


class Client(ABC):
    """Sends one request at a time to an app of its face."""

    def __init__(self, face: Face, app: Callable[..., Any]) -> None:
        self._face = face
        self._app = app
        self._pieces = [b""]

    def __call__(
        self,
        path: str = "/",
        *,
        cookie: Cookies = None,
        method: str = "GET",
        scheme: str = "http",
        mount: str = "",
        joint: str | None = None,
        **more: Any,
    ) -> RecordedResponse:
        """Send a request and return the response; an exception of the app is raised. `more`: see `outcome`."""
        response = self.outcome(path, cookie=cookie, method=method, scheme=scheme, mount=mount, joint=joint, **more)
        if response.raised is not None:
            raise response.raised
        return response

    def outcome(
        self,
        path: str = "/",
        *,
        cookie: Cookies = None,
        method: str = "GET",
        scheme: str = "http",
        mount: str = "",
        joint: str | None = None,
        headers: Sequence[Header] = (),
        peer: str = "192.0.2.1",
        body: bytes = b"",
        pieces: int = 0,
        http_version: str = "1.1",
    ) -> RecordedResponse:
        """The same, but an exception of the app is in `raised`, beside what was sent before it. `pieces`: the body is
        sent chunked, in pieces of this size in bytes. `http_version`: as ASGI servers report it.
        """
        texts = (cookie,) if isinstance(cookie, str) else tuple(cookie or ())
        joint = self._face.cookie_separators[0] if joint is None else joint
        if joint and texts:
            texts = (joint.join(texts),)
        request = self._request(path, texts, method, scheme, mount)
        if pieces:
            headers = [*headers, ("transfer-encoding", "chunked")]
        elif body:
            headers = [*headers, ("content-length", str(len(body)))]
        self._add(request, headers, peer, body)
        if self._face.name == "asgi":
            request["http_version"] = http_version
        self._pieces = [body[at : at + pieces] for at in range(0, len(body) or 1, pieces)] if pieces else [body]
        return self._exchange(request)

    def get(self, target: str, *, mount: str = "", has_raw_target: bool = True) -> RecordedResponse:
        """Send a GET with this request target, percent-encoded, to the app below `mount`. `has_raw_target`: the server
        passes the target on as it was sent, beside the decoded path.
        """
        request = self._request("/", (), "GET", "http", "")
        self._set_target(request, target, mount, has_raw_target)
        return self._exchange(request)

    @abstractmethod
    def _set_target(self, request: dict[str, Any], target: str, mount: str, has_raw_target: bool) -> None: ...

    @abstractmethod
    def _add(self, request: dict[str, Any], headers: Sequence[Header], peer: str, body: bytes) -> None: ...

    def _exchange(self, request: dict[str, Any]) -> RecordedResponse:
        self._face.tried.clear()
        self._face.served_request = None
        response = RecordedResponse()
        try:
            self._send(request, response)
        except Exception as error:
            response.raised = error
        response.tried = tuple(self._face.tried)
        response.seen = self._face.served_request
        response.decided = self._face.decision(request)
        return response

    @abstractmethod
    def _request(self, path: str, cookies: Sequence[str], method: str, scheme: str, mount: str) -> dict[str, Any]: ...

    @abstractmethod
    def _send(self, request: dict[str, Any], response: RecordedResponse) -> None: ...


class Face(ABC):
    """One of the two packages, with the apps and the client to test it."""

    name: Literal["asgi", "wsgi"]
    package: ModuleType
    #: what a server puts between several Cookie headers (`joint=`); empty: apps get each header
    cookie_separators: tuple[str, ...]
    _client: type[Client]
    _recorder: type[RecordingApp]

    def __init__(self) -> None:
        #: the apps by the name of their server
        self.apps: dict[str, RecordingApp] = {}
        #: the request in flight as each server received it, and as the one received it that sent the head
        self.tried: list[ReceivedRequest] = []
        self.served_request: ReceivedRequest | None = None

    def app(self, name: str) -> RecordingApp:
        """Make an app that belongs to no backend, or that the test passes to one."""
        self.apps[name] = self._recorder(self, name)
        return self.apps[name]

    def server(
        self,
        name: str,
        *,
        status: int = 200,
        headers: Sequence[Header] = (),
        raises: Exception | None = None,
        breaks: Exception | None = None,
        weight: int = 1,
        cookie: str | None = None,
        backup: bool = False,
        stateless: bool = False,
        **options: Any,
    ) -> Server:
        """Make a server with an app of its own, `face.apps[name]`."""
        app = self.app(name)
        app.status, app.headers, app.raises, app.breaks = status, headers, raises, breaks
        made: Server = self.package.Server(
            name, self.validated(app), weight=weight, cookie=cookie, backup=backup, stateless=stateless, **options
        )
        return made

    def backend(
        self,
        *servers: Server,
        name: str = "web",
        persist: Persist | Sequence[Persist] = (),
        balance: str | Balance = RoundRobin(start=0),  # noqa: B008 - a value
        retries: int = 3,
        unavailable: Literal["redispatch", "fail"] = "redispatch",
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        **options: Any,
    ) -> sticky_asgi.Backend:
        """Make a backend; by default its first new client goes to the first server."""
        made: sticky_asgi.Backend = self.package.Backend(
            name,
            servers,
            persist=persist,
            balance=balance,
            retries=retries,
            unavailable=unavailable,
            log=log,
            clock=clock,
            **options,
        )
        return made

    def dispatcher(self, backend: sticky_asgi.Backend, *, debug: bool = False) -> Callable[..., Any]:
        """Make a dispatcher in front of `backend`."""
        made: Callable[..., Any] = self.package.Dispatcher(backend, debug=debug)
        return made

    def middleware(
        self, app: Callable[..., Any], routes: dict[str, sticky_asgi.Backend], *, debug: bool = False
    ) -> Callable[..., Any]:
        made: Callable[..., Any] = self.package.StickyMiddleware(app, routes=routes, debug=debug)
        return made

    def client(self, app: sticky_asgi.Backend | Callable[..., Any], *, debug: bool = False) -> Client:
        """Make a client of an app, or of a backend behind a dispatcher."""
        whole = self.dispatcher(app, debug=debug) if isinstance(app, sticky_asgi.Backend) else app
        return self._client(self, whole)

    def decision(self, request: dict[str, Any]) -> Decision | None:
        """Return `decision(request)`, or None if there is none."""
        try:
            found: Decision = self.package.decision(request)
        except LookupError:
            return None
        return found

    @staticmethod
    @abstractmethod
    def validated(app: Callable[..., Any]) -> Callable[..., Any]:
        """Return `app` wrapped in a validator of the protocol, if there is one."""


# -- ASGI


class AsgiRecordingApp(RecordingApp):
    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        method = scope.get("method", "")
        cookies = tuple(value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")
        body = b""
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
            message: dict[str, Any] = {"more_body": True}
            while message.get("more_body", False):
                message = await receive()
                assert message["type"] == "http.request", f"{message['type']} before the body's end"
                body += message.get("body", b"")
        self.record(ReceivedRequest(self.name, method, scope["path"], cookies, self.face.decision(scope), body))
        # ASGI requires names in lower case; a test may write them otherwise for WSGI
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.head]
        self.begin_response()
        if scope["type"] == "websocket":
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept", "headers": headers})
            return
        if "http.response.early_hint" in scope["extensions"]:
            await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if self.breaks is not None:
            if self.first:
                await send({"type": "http.response.body", "body": self.first, "more_body": True})
            raise self.breaks
        await send({"type": "http.response.body", "body": self.body(method)})


class AsgiClient(Client):
    def websocket(self, path: str = "/", *, cookie: Cookies = None) -> RecordedResponse:
        """Send the handshake of a WebSocket and return the response."""
        texts = (cookie,) if isinstance(cookie, str) else tuple(cookie or ())
        response = self._exchange({**self._request(path, texts, "GET", "ws", ""), "type": "websocket"})
        if response.raised is not None:
            raise response.raised
        return response

    def request_with_early_hints(self, path: str = "/") -> RecordedResponse:
        """Send a request by a server that passes early hints (103) on to the client."""
        request = self._request(path, (), "GET", "http", "")
        response = self._exchange({**request, "extensions": {"http.response.early_hint": {}}})
        if response.raised is not None:
            raise response.raised
        return response

    def _request(self, path: str, cookies: Sequence[str], method: str, scheme: str, mount: str) -> dict[str, Any]:
        path, _, query = path.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": scheme,
            "path": mount + path,
            "raw_path": (mount + path).encode(),
            "root_path": mount,
            "query_string": query.encode(),
            "headers": [
                (b"host", b"shop.example"),
                *((b"cookie", text.encode("latin-1")) for text in cookies),
            ],
            "client": ("192.0.2.1", 50000),
            "server": ("shop.example", 80),
            "extensions": {},
        }

    def _set_target(self, request: dict[str, Any], target: str, mount: str, has_raw_target: bool) -> None:
        path, _, query = target.partition("?")
        request |= {"path": unquote(path), "root_path": mount, "query_string": query.encode()}
        request["raw_path"] = path.encode("latin-1") if has_raw_target else None

    def _add(self, request: dict[str, Any], headers: Sequence[Header], peer: str, body: bytes) -> None:
        request["headers"] += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        request["client"] = (peer, 50000) if peer else None

    def _send(self, request: dict[str, Any], response: RecordedResponse) -> None:
        incoming: Iterator[dict[str, Any]] = iter(
            [{"type": "websocket.connect"}]
            if request["type"] == "websocket"
            else [
                {"type": "http.request", "body": piece, "more_body": number < len(self._pieces)}
                for number, piece in enumerate(self._pieces, 1)
            ]
        )
        ended = False
        finished = asyncio.Event()

        async def receive() -> dict[str, Any]:
            message = next(incoming, None)
            if message is None:  # the client stays until it has the response
                await finished.wait()
                message = {"type": f"{request['type']}.disconnect"}
            return message

        async def send(message: dict[str, Any]) -> None:
            nonlocal ended
            assert not ended, f"{message['type']} after the end"
            match message["type"]:
                case "http.response.start" | "websocket.accept":
                    assert not response.status, "a second head"
                    response.status = message.get("status", 101)
                    for name, value in message.get("headers", ()):
                        assert name == name.lower(), f"{name!r} is not lower case"
                        response.raw_headers.append((name.decode("latin-1"), value.decode("latin-1")))
                    ended = message["type"] == "websocket.accept"
                case "http.response.body":
                    assert response.status, "a body before the head"
                    response.body += message.get("body", b"")
                    ended = not message.get("more_body", False)
                case kind:
                    assert kind in request["extensions"], f"{kind}, which this server does not know"
                    assert not response.status, "an interim response after the head"
                    response.interim.append(message)
            if ended:
                finished.set()

        asyncio.run(self._app(request, receive, send))
        assert ended, "no response, or an incomplete one"


class Asgi(Face):
    name = "asgi"
    package = sticky_asgi
    cookie_separators = ("",)
    _client = AsgiClient
    _recorder = AsgiRecordingApp

    @staticmethod
    def validated(app: Callable[..., Any]) -> Callable[..., Any]:
        return app


# -- WSGI


class WsgiRecordingApp(RecordingApp):
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        cookies = (environ["HTTP_COOKIE"],) if "HTTP_COOKIE" in environ else ()
        path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        body = b""
        if environ.get("wsgi.input_terminated"):
            while piece := environ["wsgi.input"].read(65536):
                body += piece
        elif environ.get("CONTENT_LENGTH"):
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        self.record(ReceivedRequest(self.name, method, path, cookies, self.face.decision(environ), body))
        self.begin_response()
        start_response(f"{self.status} {HTTPStatus(self.status).phrase}", self.head)
        if self.breaks is not None and not self.first:
            raise self.breaks
        if self.breaks is not None:
            return self._broken(self.breaks)
        return [self.body(method)]

    def _broken(self, error: Exception) -> Iterator[bytes]:
        yield self.first
        raise error


class WsgiClient(Client):
    def _request(self, path: str, cookies: Sequence[str], method: str, scheme: str, mount: str) -> dict[str, Any]:
        path, _, query = path.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": mount,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "shop.example",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.1",
            "HTTP_HOST": "shop.example",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": scheme,
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for text in cookies:
            environ["HTTP_COOKIE"] = text
        return environ

    def _set_target(self, request: dict[str, Any], target: str, mount: str, has_raw_target: bool) -> None:
        parts = urlsplit(target)
        path = unquote_to_bytes(parts.path).decode("latin-1")
        script = mount.encode().decode("latin-1")
        request |= {"SCRIPT_NAME": script, "PATH_INFO": path.removeprefix(script), "QUERY_STRING": parts.query}
        if has_raw_target:
            request["RAW_URI"] = target

    def _add(self, request: dict[str, Any], headers: Sequence[Header], peer: str, body: bytes) -> None:
        for name, value in headers:
            key = name.upper().replace("-", "_")
            key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
            request[key] = f"{request[key]},{value}" if key in request else value
        request["REMOTE_ADDR"] = peer
        request["wsgi.input"] = io.BytesIO(body)
        if "HTTP_TRANSFER_ENCODING" in request:
            request["wsgi.input_terminated"] = True

    def _send(self, request: dict[str, Any], response: RecordedResponse) -> None:
        def start_response(status: str, headers: list[Header], exc_info: Any = None) -> Callable[[bytes], object]:
            assert not response.body, "a second head, after the first was sent"
            assert not response.status or exc_info is not None, "a second head without exc_info"
            response.status = int(status[:3])
            response.raw_headers = list(headers)
            return write

        def write(data: bytes) -> None:
            response.body += data

        body = validator(self._app)(request, start_response)
        try:
            for item in body:
                write(item)
        finally:
            body.close()  # type: ignore[attr-defined]  # the validator's has one


class Wsgi(Face):
    name = "wsgi"
    package = sticky_wsgi
    cookie_separators = (",", "; ")  # gunicorn, and most other servers
    _client = WsgiClient
    _recorder = WsgiRecordingApp

    @staticmethod
    def validated(app: Callable[..., Any]) -> Callable[..., Any]:
        return validator(app)


FACES: dict[str, type[Face]] = {"asgi": Asgi, "wsgi": Wsgi}


@pytest.fixture
def recognised(monkeypatch: pytest.MonkeyPatch) -> list[PersistenceResult]:
    """What persistence has recognised, of each attempt that has ended."""
    results: list[PersistenceResult] = []
    release = Transaction.release

    def recording_release(transaction: Transaction[Any, Any], server: Server, finished: bool) -> None:
        results.append(transaction.persisted)
        release(transaction, server, finished)

    monkeypatch.setattr(Transaction, "release", recording_release)
    return results


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Face:
    """Each of the two faces; `@pytest.mark.parametrize("face", ["asgi"], indirect=True)` runs a test on one."""
    made: Face = FACES[request.param]()
    return made
