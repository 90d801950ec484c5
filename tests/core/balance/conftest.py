"""A bench to put an algorithm on: servers s1, s2, …, and clients that come one by one, each another."""

import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from itertools import count
from typing import cast

import pytest

from sticky_core.balance.algorithm import Algorithm, Balance
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class Client:
    """A request of the `number`th client, in whatever way clients are told apart; or as it is said."""

    def __init__(
        self,
        number: int = 0,
        *,
        src: str | None = None,
        path: str | None = None,
        query: str | None = None,
        headers: Iterable[tuple[str, str]] | None = None,
    ) -> None:
        scattered = number * 2654435761 & 0xFFFFFFFF  # addresses count up in none of their octets
        self.src = str(IPv4Address(scattered)) if src is None else src
        self.path = f"/users/{number}" if path is None else path
        self.query = f"lang=en&user={number}" if query is None else query
        self._headers = [("x-user", str(number))] if headers is None else list(headers)

    def header(self, name: str) -> Sequence[str]:
        return [value for key, value in self._headers if key == name]


class Bench:
    """An algorithm at work, told of everything as a backend would tell it."""

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

    def _changed(self, server: Server) -> None:
        server.refresh_state()
        self.algorithm.state_changed(server)

    def choose(self, avoid: Container[Server] = (), client: Client | None = None) -> Server | None:
        asking = Client(next(self._numbers)) if client is None else client
        return self.algorithm.choose(cast(Request, asking), avoid)

    def chosen(self, *clients: Client) -> str:
        """The numbers of the servers of `clients`, in order."""
        return "".join(str(self.number(self.choose((), client))) for client in clients)

    def number(self, server: Server | None) -> int:
        return 0 if server is None else self.servers.index(server) + 1

    def take(self, server: Server) -> None:
        server.in_flight.append(None)
        self.algorithm.acquired(server)

    def leave(self, server: Server) -> None:
        server.in_flight.pop()
        self.algorithm.released(server)

    def serve(self, avoid: Container[Server] = ()) -> int:
        """The number of the server that a request goes to, and stays; 0 if there is none."""
        server = self.choose(avoid)
        if server is not None:
            self.take(server)
        return self.number(server)

    def sequence(self, count: int) -> str:
        """The numbers of the servers of `count` requests that are over at once."""
        served: list[int] = []
        for _ in range(count):
            served.append(self.serve())
            if served[-1]:
                self.leave(self.servers[served[-1] - 1])
        return "".join(map(str, served))

    def filled(self, places: Sequence[int]) -> Iterator[int]:
        """The numbers of the servers of requests that stay, until each server has as many as it has places."""
        full = Full(dict(zip(self.servers, places, strict=True)))
        while number := self.serve(full):
            yield number

    def reachable(self) -> str:
        """The numbers of the servers that get a request when each has one place."""
        numbers = "".join(sorted(map(str, self.filled([1] * len(self.servers)))))
        self.all_leave()
        return numbers

    def all_leave(self) -> None:
        for server in self.servers:
            while server.in_flight:
                self.leave(server)


class Full:
    """Who is to be avoided because it has as many requests as it has places (`maxconn`), and whoever else."""

    def __init__(self, places: dict[Server, int], others: Container[Server] = ()) -> None:
        self._places = places
        self._others = others

    def __contains__(self, server: object) -> bool:
        assert isinstance(server, Server)
        return server in self._others or len(server.in_flight) >= self._places[server]


class Scripted:
    """Chance that says what it is told to, and what it was asked: a number below the one asked for, or that share."""

    def __init__(self, numbers: Iterable[float] = ()) -> None:
        self.numbers = list(numbers)
        self.asked: list[int] = []

    def randrange(self, stop: int, /) -> int:
        self.asked.append(stop)
        return int(self.numbers.pop(0))

    def random(self) -> float:
        return self.numbers.pop(0)

    def getrandbits(self, k: int, /) -> int:
        raise AssertionError("not asked so far")


# Each call makes a new one, so properties may use them: hypothesis wants fixtures that outlive an example.


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
