"""A request and a response that are nothing but values, and a transaction without a face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sticky_core.backend.backend import Backend
from sticky_core.errors import Failure
from sticky_core.http.cookies import CookieKey
from sticky_core.http.messages import Request, SharedTable
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery
from sticky_core.transaction.steps import Need, NeedBody, NeedSlot, Step, Unavailable
from sticky_core.transaction.transaction import Transaction


class FakeRequest(Request):
    """A request that has nothing but cookies, a method, and whether it came over TLS."""

    def __init__(self, cookies: Sequence[str] = (), method: str = "GET", secure: bool = False) -> None:
        self.cookie_key: CookieKey = tuple(cookies) or None
        self.forwarded_cookies: Sequence[object] | None = None
        self._method = method
        self._secure = secure
        self._sent = tuple(cookies)

    @property
    def cookies(self) -> tuple[str, ...]:
        return self._sent if self.forwarded_cookies is None else tuple(map(str, self.forwarded_cookies))

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = list(texts)

    @property
    def method(self) -> str:
        return self._method

    @property
    def secure(self) -> bool:
        return self._secure

    @property
    def scheme(self) -> str:
        return "https" if self._secure else "http"

    def header(self, name: str) -> Sequence[str]:
        return ()

    peer = src = "192.0.2.1"
    path = "/"
    query = ""
    replayable = True

    def peek(self, limit: int) -> bytes:
        return b""

    def note_missing_key(self, why: str) -> None:
        raise AssertionError("there is no decision")

    def store_query(self, command: StoreCommand) -> StoreQuery | None:
        return None

    def function_failed(self, place: str, function: object, error: Exception, *, is_locked: bool = False) -> None:
        raise AssertionError(f"{place}: {function!r} is not expected to raise") from error

    def queue_write(self, table: SharedTable, key: str, command: StoreCommand) -> None:
        raise AssertionError("there is no store")


@dataclass
class RecordedResponse:
    """The head of a response, as a list of headers."""

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def sets_cookies(self) -> bool:
        return self.set_cookies != []

    @property
    def set_cookies(self) -> list[str]:
        return self.values("set-cookie")

    @property
    def cache_control(self) -> str:
        return ",".join(self.values("cache-control"))

    def header(self, name: str) -> list[str]:
        return self.values(name)

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        edited = [(key, new(value) if key == "set-cookie" else value) for key, value in self.headers]
        self.headers = [(key, value) for key, value in edited if value is not None]

    def add(self, name: str, value: str) -> None:
        self.headers.append((name, value))


class ScriptedTransaction(Transaction[str, None]):
    """A transaction that a test drives step by step: `start`, then `fail` or `respond`; or `run` for all of them."""

    __slots__ = ("_body", "_headers", "_method", "_peer", "_sent", "_target", "wait")

    wait: Need | None  #: what the last step waits for

    def __init__(
        self,
        backend: Backend,
        peer: str = "192.0.2.1",
        target: str = "/",
        *,
        cookie: str = "",
        headers: Sequence[tuple[str, str]] = (),
        method: str = "GET",
        body: bytes = b"",
    ) -> None:
        self.owner = backend
        self.snapshot, self.raw_request, self.client_send = backend.snapshot, "a request", None
        self._peer, self._target, self._headers, self._method, self._body = peer, target, headers, method, body
        self._sent = (cookie,) if cookie else ()

    @property
    def method(self) -> str:
        return self._method

    @property
    def connection_scheme(self) -> str:
        return "http"

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def path(self) -> str:
        return self._target.partition("?")[0]

    @property
    def query(self) -> str:
        return self._target.partition("?")[2]

    @property
    def cookies(self) -> tuple[str, ...]:
        return self._sent if self.forwarded_cookies is None else tuple(self.forwarded_cookies)

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = list(texts)

    def header(self, name: str) -> Sequence[str]:
        return [value for key, value in self._headers if key == name]

    def start(self) -> Server | None:
        """Return the first server."""
        return self._take(self.first(self._sent or None))

    def fail(self, failure: Failure = Failure.REFUSED) -> Server | None:
        """Let the server fail, and return the next one."""
        self.record_failure(failure)
        self.release(self.tried[-1], False)
        return self.next_server()

    def next_server(self) -> Server | None:
        """Return the server that is tried after the one that was released."""
        return self._take(self.next())

    def _take(self, step: Step) -> Server | None:
        while isinstance(step, NeedBody):
            step = self.body_read(step, self._body[: step.limit])
        self.wait = None if isinstance(step, Server | Unavailable) else step
        return step if isinstance(step, Server) else None

    def resume_wait(self, woken: bool) -> Server | None:
        """End the wait for a slot, and return the next server."""
        assert isinstance(self.wait, NeedSlot)
        return self._take(self.resume(self.wait, woken))

    def abandon_wait(self) -> None:
        """Let the client leave while the request waits."""
        assert self.wait is not None
        self.abandon(self.wait)
        self.wait = None

    def respond(self, *headers: tuple[str, str], status: int = 200) -> RecordedResponse:
        """Let the server respond, and return the head as the client gets it."""
        response = RecordedResponse(status, list(headers))
        self.decision.status = status
        if response.sets_cookies or not self.persisted.needs_no_mark:  # as faces do
            self.stamp(response)
        self.release(self.tried[-1], True)
        return response

    def run(self, *headers: tuple[str, str], status: int = 200, failing: Sequence[str] = ()) -> str | None:
        """Run all steps, and return the name of the server that responds with these headers, or None if none does. The
        servers named in `failing` fail.
        """
        server = self.start()
        while server is not None and server.name in failing:
            server = self.fail()
        if server is None:
            self.unavailable_response()
            return None
        self.respond(*headers, status=status)
        return server.name
