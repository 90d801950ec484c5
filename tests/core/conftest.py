"""What the tests of the core share: a request and a reply that are nothing but values, and a transaction that is a face
to itself; and properties are not hurried, since a busy machine is no defect."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings

from sticky_core.backend.backend import Backend
from sticky_core.errors import Failure
from sticky_core.server.server import Server
from sticky_core.transaction.steps import Need, NeedBody, NeedSlot, Step, Unavailable
from sticky_core.transaction.transaction import Transaction

settings.register_profile("unhurried", parent=settings.default, deadline=None)
settings.load_profile("unhurried")


class Asked:
    """A request as the core sees it."""

    def __init__(self, cookies: Sequence[str] = (), method: str = "GET", secure: bool = False) -> None:
        self.cookie_key: Hashable = tuple(cookies) or None
        self.forwarded_cookies: Sequence[object] | None = None
        self.method = method
        self.secure = secure
        self._came = tuple(cookies)

    @property
    def cookies(self) -> tuple[str, ...]:
        return self._came if self.forwarded_cookies is None else tuple(map(str, self.forwarded_cookies))

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = list(texts)


@dataclass
class Told:
    """The head of an answer, as a list of headers."""

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


class Visit(Transaction[str, None]):
    """A request on its way, step by step: `begin`, then `fail` or `answer`. It waits for nobody."""

    __slots__ = ("_body", "_came", "_headers", "_method", "_peer", "_target", "wait")

    wait: Need | None  #: what it waits for

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
        self._came = (cookie,) if cookie else ()

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
        return self._peer

    @property
    def path(self) -> str:
        return self._target.partition("?")[0]

    @property
    def query(self) -> str:
        return self._target.partition("?")[2]

    @property
    def cookies(self) -> tuple[str, ...]:
        return self._came if self.forwarded_cookies is None else tuple(self.forwarded_cookies)

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self.forwarded_cookies = list(texts)

    def header(self, name: str) -> Sequence[str]:
        return [value for key, value in self._headers if key == name]

    def begin(self) -> Server | None:
        """The first server that is asked."""
        return self._opened(self.first(self._came or None))

    def fail(self, failure: Failure = Failure.REFUSED) -> Server | None:
        """It failed: the next one."""
        self.record_failure(failure)
        self.release(self.tried[-1], False)
        return self._opened(self.next())

    def _opened(self, step: Step) -> Server | None:
        while isinstance(step, NeedBody):
            step = self.body_read(step, self._body[: step.limit])
        self.wait = None if isinstance(step, Server | Unavailable) else step
        return step if isinstance(step, Server) else None

    def resume_wait(self, woken: bool) -> Server | None:
        """The wait for a slot has ended: the next server."""
        assert isinstance(self.wait, NeedSlot)
        return self._opened(self.resume(self.wait, woken))

    def abandon_wait(self) -> None:
        """The client leaves while the request waits."""
        assert self.wait is not None
        self.abandon(self.wait)

    def answer(self, *headers: tuple[str, str], status: int = 200) -> Told:
        """It answers: the head as the client sees it."""
        reply = Told(status, list(headers))
        self.decision.status = status
        if reply.sets_cookies or not self.persisted.needs_no_mark:  # as faces do
            self.stamp(reply)
        self.release(self.tried[-1], True)
        return reply

    def whole(self, *headers: tuple[str, str], status: int = 200, failing: Sequence[str] = ()) -> str | None:
        """All of it: who answers, with these headers, when those fail that are named; None: we do."""
        server = self.begin()
        while server is not None and server.name in failing:
            server = self.fail()
        if server is None:
            self.unavailable_response()
            return None
        self.answer(*headers, status=status)
        return server.name


# Each call makes a new one, so properties may use them: hypothesis wants fixtures that outlive an example.


@pytest.fixture(scope="session")
def ask() -> type[Asked]:
    return Asked


@pytest.fixture(scope="session")
def tell() -> type[Told]:
    return Told


@pytest.fixture(scope="session")
def visit() -> type[Visit]:
    return Visit
