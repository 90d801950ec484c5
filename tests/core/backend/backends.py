"""Backends, servers and requests that several tests use."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sticky_core.backend.backend import Backend, BackendComponent, BackendConfig
from sticky_core.backend.change import Change
from sticky_core.backend.queue import Ticket
from sticky_core.backend.snapshot import Snapshot
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.health.check import CheckResult, CheckStatus
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.transaction.steps import NeedSlot
from tests.core.driver import DrivenTransaction
from tests.core.fakes import FakeRequest

Wait = Callable[..., "WaitingRequest"]


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def servers(*names: str) -> list[Server]:
    return [Server(name, app) for name in names]


def choose_name(backend: Backend, tried: Container[Server] = ()) -> str | None:
    server = backend.placement.choose(backend.snapshot, FakeRequest(), tried)
    return server.name if server is not None else None


class CountedComponent(BackendComponent):
    made = 0

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        type(self).made += 1


def full_backend(
    *names: str, maxqueue: int = 0, others: Sequence[Server] = (), taken: Sequence[str] | None = None, **options: Any
) -> Backend:
    """Build a backend of servers with one slot each. The slots of `taken`, by default all, are acquired."""
    made = [Server(name, app, maxconn=1, maxqueue=maxqueue) for name in names]
    backend = Backend("web", [*made, *others], **{"balance": RoundRobin(start=0)} | options)
    for name in names if taken is None else taken:
        backend.placement.acquire(backend[name])
    return backend


class WaitingRequest:
    """A request with a ticket, which counts how often it is woken."""

    def __init__(self, backend: Backend, ticket: Server | Ticket | None, alive: bool = True) -> None:
        assert isinstance(ticket, Ticket), f"{ticket} is no ticket"
        self.backend, self.ticket, self.alive, self.woken = backend, ticket, alive, 0
        self.is_subscribed = backend.placement.subscribe(ticket, self._wake)

    def _wake(self) -> bool:
        assert not self.backend.placement.lock.locked(), "woken while the lock is held"
        self.woken += 1
        return self.alive

    @property
    def server(self) -> str | None:
        """The server at which it has a slot, once it stops waiting."""
        server = self.backend.placement.redeem(self.ticket)
        return server.name if server is not None else None


def in_flight(backend: Backend) -> list[int]:
    return [len(server.in_flight) for server in backend.servers]


PLAIN = Cookie("SRV", signed=False)


FAILED = CheckResult(CheckStatus.L4CON)


def other_app(environ: object, start_response: object) -> list[bytes]:
    return []


def url(number: int) -> str:
    return f"http://10.0.0.{number}:80"


def urls(*numbers: int, **options: Any) -> list[Server]:
    return [Server(f"s{number}", url(number), **options) for number in numbers]


def build_backend(servers: Iterable[Server], **options: Any) -> Backend:
    options = {"persist": PLAIN, "balance": RoundRobin(start=0), "clock": ManualClock(), **options}
    return Backend("web", list(servers), **options)


def with_changed_server(before: BackendConfig, name: str, **changes: Any) -> BackendConfig:
    """Return a configuration in which one server is changed."""
    return replace(
        before, servers=tuple(replace(each, **changes) if each.name == name else each for each in before.servers)
    )


def names(backend: Backend) -> list[str]:
    return [server.name for server in backend.servers]


class FakeTransaction(DrivenTransaction):
    """A transaction over plain values."""

    __slots__ = ("_cookie", "_src")

    def __init__(self, backend: Backend, cookie: str = "", src: str = "192.0.2.1") -> None:
        self.owner = backend
        self.snapshot, self.raw_request, self.client_send = backend.snapshot, "a request", None
        self._cookie, self._src = cookie, src

    def begin(self) -> Server | None:
        return self.first_server(self.cookies or None)

    def end(self, status: int = 200) -> None:
        self.decision.status = status
        self.release(self.tried[-1], True)

    @property
    def cookies(self) -> tuple[str, ...]:
        return (self._cookie,) if self._cookie else ()

    def set_forwarded_cookies(self, texts: Any) -> None:
        self.forwarded_cookies = list(texts)

    @property
    def method(self) -> str:
        return "GET"

    @property
    def peer(self) -> str:
        return self._src

    path, query, scheme = "/", "", "http"

    @property
    def secure(self) -> bool:
        return False

    def header(self, name: str) -> list[str]:
        return []


def ticket_of(request: FakeTransaction) -> Ticket:
    """Return the ticket of a request that waits."""
    wait = request.wait
    assert isinstance(wait, NeedSlot) and wait.ticket is not None
    return wait.ticket


def serve(backend: Backend, cookie: str = "", src: str = "192.0.2.1") -> str | None:
    """Return the name of the server that a new request is sent to. The request is over at once."""
    request = FakeTransaction(backend, cookie, src)
    server = request.begin()
    if server is None:
        return None
    request.end()
    return server.name


class SlowComponent(BackendComponent):
    """A component that is ready for a change when the test says so."""

    def __init__(self, web: Backend) -> None:
        self.ready: Callable[[Exception | None], None] | None = None
        self.undone: list[Change] = []
        self.swaps: list[Snapshot] = []

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        self.ready = on_ready

    def undo(self, change: Change) -> None:
        self.undone.append(change)

    def swap(self, change: Change, snapshot: Snapshot) -> None:
        self.swaps.append(snapshot)


PASS, FAIL = CheckResult(CheckStatus.L7OK, 200), CheckResult(CheckStatus.L7STS, 503, "Service Unavailable")


def make_backend(*servers: Server, **options: Any) -> tuple[Backend, ManualClock]:
    clock = ManualClock()
    return Backend("web", servers, clock=clock, balance=RoundRobin(start=0), **options), clock


def choose_names(backend: Backend, times: int) -> list[str]:
    servers = [backend.placement.choose(backend.snapshot, FakeRequest(), ()) for _ in range(times)]
    return [server.name if server is not None else "-" for server in servers]
