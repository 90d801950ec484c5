"""A test bench for algorithms: servers s1, s2, …, and a new client for each request."""

import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from itertools import count
from typing import cast

import pytest

from sticky_core.balance.algorithm import Algorithm, Balance, MembershipAware
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class Client:
    """A request of the client with this number: address, path, query and header depend on it unless they are given."""

    def __init__(
        self,
        number: int = 0,
        *,
        src: str | None = None,
        path: str | None = None,
        query: str | None = None,
        headers: Iterable[tuple[str, str]] | None = None,
    ) -> None:
        scattered = number * 2654435761 & 0xFFFFFFFF  # so that all octets of the addresses differ
        self.src = str(IPv4Address(scattered)) if src is None else src
        self.path = f"/users/{number}" if path is None else path
        self.query = f"lang=en&user={number}" if query is None else query
        self._headers = [("x-user", str(number))] if headers is None else list(headers)

    def header(self, name: str) -> Sequence[str]:
        return [value for key, value in self._headers if key == name]


class Bench:
    """An algorithm with its servers, notified of everything as by a backend."""

    def __init__(
        self,
        balance: Balance,
        weights: Sequence[int],
        rng: Rng | None = None,
        targets: Callable[[int], object] = lambda number: app,
    ) -> None:
        self.servers = [Server(f"s{n}", targets(n), weight=weight) for n, weight in enumerate(weights, 1)]  # type: ignore[arg-type]
        self.algorithm: Algorithm = balance.build(self.servers, random.Random(1) if rng is None else rng)
        for server in self.servers:
            server.attach(self._changed)
        self._numbers = count(1)
        self._added = count(1)

    def _changed(self, server: Server) -> None:
        server.refresh_state()
        self.algorithm.state_changed(server)

    def add(self, weight: int = 1, target: object = app, id: int | None = None) -> Server:
        """Add a server as the last one."""
        server = Server(f"added{next(self._added)}", target, weight=weight)  # type: ignore[arg-type]
        if id is not None:
            server.id = id
        self.servers.append(server)
        assert isinstance(self.algorithm, MembershipAware)
        self.algorithm.added(server)
        server.attach(self._changed)
        return server

    def remove(self, server: Server) -> None:
        """Remove a server; those after it have another number then."""
        self.servers.remove(server)
        assert isinstance(self.algorithm, MembershipAware)
        self.algorithm.removed(server)
        server.remove()

    def choose(self, avoid: Container[Server] = (), client: Client | None = None) -> Server | None:
        request = Client(next(self._numbers)) if client is None else client
        return self.algorithm.choose(cast(Request, request), avoid)

    def chosen(self, *clients: Client) -> str:
        """Return the numbers of the servers chosen for `clients`, in order."""
        return "".join(str(self.number(self.choose((), client))) for client in clients)

    def number(self, server: Server | None) -> int:
        return 0 if server is None else self.servers.index(server) + 1

    def acquire(self, server: Server) -> None:
        server.in_flight.append(None)
        self.algorithm.acquired(server)

    def release(self, server: Server) -> None:
        server.in_flight.pop()
        self.algorithm.released(server)

    def serve(self, avoid: Container[Server] = ()) -> int:
        """Send a request that stays in flight. Return the number of its server, 0 if there is none."""
        server = self.choose(avoid)
        if server is not None:
            self.acquire(server)
        return self.number(server)

    def sequence(self, count: int) -> str:
        """Send `count` requests that end at once. Return the numbers of their servers."""
        served: list[int] = []
        for _ in range(count):
            served.append(self.serve())
            if served[-1]:
                self.release(self.servers[served[-1] - 1])
        return "".join(map(str, served))

    def fill(self, slots: Sequence[int]) -> Iterator[int]:
        """Send requests that stay in flight until all slots are used. Yield the numbers of their servers."""
        full = Full(dict(zip(self.servers, slots, strict=True)))
        while number := self.serve(full):
            yield number

    def reachable(self) -> str:
        """Return the numbers of the servers that get a request when each has one slot."""
        numbers = "".join(sorted(map(str, self.fill([1] * len(self.servers)))))
        self.release_all()
        return numbers

    def release_all(self) -> None:
        for server in self.servers:
            while server.in_flight:
                self.release(server)


class Full:
    """The servers to avoid: those that have used all their slots (`maxconn`), and `others`."""

    def __init__(self, slots: dict[Server, int], others: Container[Server] = ()) -> None:
        self._slots = slots
        self._others = others

    def __contains__(self, server: object) -> bool:
        assert isinstance(server, Server)
        return server in self._others or len(server.in_flight) >= self._slots[server]


class Scripted:
    """A source of given numbers instead of random ones. It records the arguments of `randrange`."""

    def __init__(self, numbers: Iterable[float] = ()) -> None:
        self.numbers = list(numbers)
        self.arguments: list[int] = []

    def randrange(self, stop: int, /) -> int:
        self.arguments.append(stop)
        return int(self.numbers.pop(0))

    def random(self) -> float:
        return self.numbers.pop(0)

    def getrandbits(self, k: int, /) -> int:
        raise AssertionError("no algorithm uses it so far")


# The fixtures are classes, so that hypothesis can use them: its fixtures have to outlive an example.


@pytest.fixture(name="bench", scope="session")
def _bench() -> type[Bench]:
    return Bench


@pytest.fixture(name="client", scope="session")
def _client() -> type[Client]:
    return Client


@pytest.fixture(name="full", scope="session")
def _full() -> type[Full]:
    return Full


@pytest.fixture(name="scripted", scope="session")
def _scripted() -> type[Scripted]:
    return Scripted
