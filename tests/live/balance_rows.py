"""Rows of the comparison of balance algorithms with HAProxy and nginx, and what their tests share: requests, choices
of the algorithms, and a client of the proxy.
"""

import random
import re
import selectors
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal

from sticky_core.balance.algorithm import Balance
from sticky_core.server.server import Server

DEADLINE = 300.0
KEYS = 2000
SERVERS = 10
WEIGHTS = (1, 2, 3, 5, 1, 10, 4, 1, 7, 3)
EQUAL = (1,) * SERVERS


@dataclass(frozen=True)
class FakeRequest:
    """A request for the algorithm, and for the proxy."""

    src: str = "192.0.2.1"
    path: str = "/"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def header(self, name: str) -> list[str]:
        return [value.strip(" \t") for key, value in self.headers if key == name]

    def encode(self, **more: object) -> bytes:
        target = f"{self.path}?{self.query}" if self.query else self.path
        lines = [f"GET {target} HTTP/1.1", "Host: shop.example", f"X-Src: {self.src}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        # last, since HAProxy's use_domain_only reads a byte too far, and a dot there would change its result
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def addresses(rng: random.Random) -> Iterator[FakeRequest]:
    for number in range(KEYS):
        bits = rng.getrandbits(128)
        yield FakeRequest(src=str(IPv6Address(bits) if number % 5 == 0 else IPv4Address(bits >> 96)))


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"


def word(rng: random.Random, longest: int, letters: str = LETTERS) -> str:
    return "".join(rng.choices(letters, k=rng.randint(1, longest)))


def uris(rng: random.Random) -> Iterator[FakeRequest]:
    for _ in range(KEYS):
        path = "".join(f"/{word(rng, 8)}%2F{rng.randrange(100)}" for _ in range(rng.randint(0, 5)))
        query = f"{word(rng, 4)}=/{word(rng, 12)}" if rng.random() < 0.5 else ""
        yield FakeRequest(path=path or "/", query=query)


def params(rng: random.Random) -> Iterator[FakeRequest]:
    """Requests with the parameter first, later, twice, empty, as the end of another name, without `=`, or none."""
    forms: tuple[str, ...] = (
        "user={}",
        "a=1&user={}&b=2",
        "user={}&user=other",
        "user=&a={}",
        "superuser={}",
        "user",
        "a={}",
        "",
    )
    forms += ("x=1;user={}", "user={};x=1", "user==?{}", "&user={}")
    for _ in range(KEYS):
        yield FakeRequest(query=rng.choice(forms).format(word(rng, 20)))


def users(rng: random.Random) -> Iterator[FakeRequest]:
    """Requests with the header once, as a list, quoted, twice, empty, or without it."""
    forms: tuple[tuple[str, ...], ...] = (("{}",), ("{}, other",), ('"{},x", other',), ("{}", "other"), ("",), ())
    forms += ((" {} ",), (",{}",), ('"\\",{}", other',))
    for _ in range(KEYS):
        value = word(rng, 30)
        yield FakeRequest(headers=tuple(("x-user", form.replace("{}", value)) for form in rng.choice(forms)))


def hosts(rng: random.Random) -> Iterator[FakeRequest]:
    forms = ("{}", "{}.com", "www.{}.com", "a.b.{}.co.uk", ".{}", "{}.", "x.{}", "{}..com", "10.0.0.{}")
    for _ in range(KEYS):
        yield FakeRequest(headers=(("x-host", rng.choice(forms).format(word(rng, 12, LETTERS[:62]))),))


def numbers(rng: random.Random) -> Iterator[FakeRequest]:
    forms = ("{}", "{}abc", "-{}", "+{}", "abc", "0{}", "99999999999{}")
    for _ in range(KEYS):
        yield FakeRequest(headers=(("x-user", rng.choice(forms).format(rng.getrandbits(40))),))


def many(rng: random.Random) -> Iterator[FakeRequest]:
    yield from [FakeRequest()] * 317  # a number that puts changes between them in the middle of a round


def few(rng: random.Random) -> Iterator[FakeRequest]:
    yield from [FakeRequest()] * 25


# -- rows


@dataclass(frozen=True)
class Change:
    """A step that is no request: the operator changes the state or the weight of a server."""

    server: str
    state: Literal["ready", "drain", "maint"] | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Row:
    id: str
    #: in the words of the proxy
    lines: tuple[str, ...]
    #: the algorithm of this project
    balance: Balance
    requests: Callable[[random.Random], Iterable[FakeRequest]]
    weights: tuple[int, ...] = WEIGHTS
    #: numbers of servers that the configuration disables
    disabled: tuple[int, ...] = ()
    #: the changes, spread evenly among the requests
    changes: tuple[Change, ...] = ()
    #: appended to each server's line
    server: str = ""
    #: for a keyword of HAProxy 3, which the installed one may not know: the checksum of the choices
    recorded: int | None = None

    @property
    def steps(self) -> Iterator[list[FakeRequest] | Change]:
        requests = list(self.requests(random.Random(self.id)))
        size = -(-len(requests) // (len(self.changes) + 1))
        yield requests[:size]
        for number, change in enumerate(self.changes, 1):
            yield change
            yield requests[number * size : (number + 1) * size]


def chosen_servers(row: Row, targets: Sequence[str]) -> list[str]:
    """Return the servers that the algorithm of this project chooses."""
    servers = [
        Server(f"s{number}", target, weight=weight)
        for number, (target, weight) in enumerate(zip(targets, row.weights, strict=False), 1)
    ]
    for number in row.disabled:
        servers[number - 1].state = "maint"
    algorithm = row.balance.build(servers, random.Random(row.id))

    def on_change(server: Server) -> None:
        server.refresh_state()
        algorithm.state_changed(server)

    for server in servers:
        server.attach(on_change)
    chosen: list[str] = []
    for step in row.steps:
        if isinstance(step, Change):
            server = next(server for server in servers if server.name == step.server)
            if step.state is not None:
                server.state = step.state
            if step.weight is not None:
                server.weight = step.weight
        else:
            for each in step:
                request: Any = each
                found = algorithm.choose(request, ())
                assert found is not None
                if algorithm.counts_requests:
                    algorithm.acquired(found)
                    algorithm.released(found)
                chosen.append(found.name)
    return chosen


def servers_of_responses(http_socket: Path, requests: Sequence[bytes]) -> list[str]:
    """Send requests over one connection, a hundred at a time, and return the server of each response."""
    found: list[str] = []
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(str(http_socket))
        for begin in range(0, len(requests), 100):
            some = requests[begin : begin + 100]
            connection.sendall(b"".join(some))
            received = b""
            while received.count(b"\r\n\r\n") < len(some):
                data = connection.recv(65536)
                assert data, received
                received += data
            heads = received.decode("latin-1").split("\r\n\r\n")[:-1]
            for head in heads:
                match = re.search(r"(?im)^x-server: (\S+)", head)
                assert match is not None, head
                found.append(match[1])
    return found


def accepts_connections(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class HeldRow:
    """An algorithm that depends on the requests in flight, which stay there until the test ends them."""

    id: str
    lines: tuple[str, ...]
    balance: Balance
    weights: tuple[int, ...] = (1, 1, 1, 1)
    maxconn: int = 0


def differences(row: Row, theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[int, FakeRequest, str, str]]:
    requests = [each for step in row.steps if not isinstance(step, Change) for each in step]
    assert len(requests) == len(theirs) == len(ours)
    return [
        (number, request, other, own)
        for number, (request, other, own) in enumerate(zip(requests, theirs, ours, strict=True))
        if other != own
    ]


class ZeroRng:
    """An `Rng` that always returns the first."""

    def randrange(self, stop: int, /) -> int:
        return 0

    def random(self) -> float:
        return 0.0

    def getrandbits(self, k: int, /) -> int:
        return 0


class HeldRequests:
    """Requests through a proxy that the test holds at the servers, and the same in an algorithm of this project.

    `wait_until_released`: waits until the proxy counts only so many in flight.
    """

    def __init__(
        self,
        held: HeldRow,
        http_socket: Path,
        name: str,
        holding_sockets: Sequence[socket.socket],
        wait_until_released: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._held = held
        self._http_socket = http_socket
        self._name = name
        self._holding_sockets = holding_sockets
        self._wait_until_released = wait_until_released
        self._both: list[tuple[socket.socket, socket.socket, Server]] = []
        self.servers = [
            Server(f"s{nth}", "http://127.0.0.1", weight=weight) for nth, weight in enumerate(held.weights, 1)
        ]
        self.algorithm = held.balance.build(self.servers, ZeroRng())

    def __contains__(self, server: object) -> bool:
        assert isinstance(server, Server)
        return 0 < self._held.maxconn <= len(server.in_flight)

    def begin(self, fake: FakeRequest) -> tuple[str, str]:
        """Send a request and return the servers that the proxy and the algorithm choose."""
        request: Any = fake
        own = self.algorithm.choose(request, self)
        assert own is not None
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(str(self._http_socket))
        client.sendall(fake.encode(x_row=self._name))
        with selectors.DefaultSelector() as selector:
            for holding_socket in self._holding_sockets:
                selector.register(holding_socket, selectors.EVENT_READ)
            ((key, _),) = selector.select(DEADLINE)
        number = next(
            number for number, holding_socket in enumerate(self._holding_sockets) if holding_socket is key.fileobj
        )
        connection, _ = self._holding_sockets[number].accept()
        chosen_server = self.servers[number]
        # the choice of the proxy counts for both, so that one difference does not cause others
        chosen_server.in_flight.append(None)
        self.algorithm.acquired(chosen_server)
        self._both.append((client, connection, chosen_server))
        return chosen_server.name, own.name

    def end(self, number: int) -> None:
        """End the `number`th request, and wait until the proxy has noticed."""
        client, connection, server = self._both.pop(number)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        connection.close()
        assert client.recv(65536).startswith(b"HTTP/1.1 204 ")
        client.close()
        self._wait_until_released(len(self._both))
        server.in_flight.pop()
        self.algorithm.released(server)

    def __len__(self) -> int:
        return len(self._both)

    def close(self) -> None:
        for client, connection, _ in self._both:
            client.close()
            connection.close()

    def compare(self) -> None:
        """Compare sixty requests, some of which end in between."""
        rng = random.Random(self._held.id)
        compared: list[tuple[str, str]] = []
        for request in list(uris(rng))[:60]:
            compared.append(self.begin(request))
            if len(self) > 8 and rng.random() < 0.5:
                self.end(rng.randrange(len(self)))
        assert len({other for other, _ in compared}) > 2, "one or two servers for all requests prove little"
        assert [own for _, own in compared] == [other for other, _ in compared]
