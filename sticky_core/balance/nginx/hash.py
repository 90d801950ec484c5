"""A key of the request says which server (nginx `hash <key> [consistent]`). Requests without one, or with an empty one,
go in turn.

Without `consistent`, as Cache::Memcached does; with it, as Cache::Memcached::Fast does (ketama): 160 points on a ring
for each weight, and a key belongs to the first point behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.nginx.ip_hash import TRIES
from sticky_core.balance.nginx.shares import Shares
from sticky_core.balance.nginx.smooth import SmoothTurns
from sticky_core.balance.ring import Ring
from sticky_core.balance.start import check_start
from sticky_core.clock import Rng
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.request import Sample
from sticky_core.samples.values import Key, key_bytes
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE

_POINTS = 160


@dataclass(frozen=True, slots=True)
class NginxHash:
    """`key`: a sample, or any function of the request that returns a text, bytes, a number or an address; None is no
    key. It is called while the backend is locked, so it looks at the request and at nothing that waits.
    `consistent`: when a server goes or comes, only its own keys move.
    `start`: with how many turns taken the requests begin that must go in turn; None draws it.
    """

    key: Sample
    consistent: bool = False
    start: int | None = None

    def __post_init__(self) -> None:
        check_start("hash", self.start)
        if not callable(self.key):
            raise ConfigError(
                f"hash: {self.key!r} is no sample: hand src, path, hdr(...), url_param(...), or a function"
            )

    def build(self, servers: Sequence[Server], rng: Rng) -> Keys:
        sample = self.key
        return Keys(
            sample, Ketama(servers) if self.consistent else Modulo(servers), SmoothTurns(servers, rng, self.start)
        )


class Modulo:
    """A key's number, modulo all weights."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._shares = Shares(servers)
        self.state_changed = self._shares.state_changed

    def address_changed(self, server: Server) -> None:
        """Where it is means nothing here."""

    def find(self, key: bytes, avoid: Container[Server]) -> Server | None:
        return self._shares.first(numbers(key), avoid)


def numbers(key: bytes) -> Iterator[int]:
    """What nginx hashes a key to, and again each time that the server found is none."""
    number = crc32(key) >> 16 & 0x7FFF
    yield number
    for again in range(1, TRIES):
        number += crc32(b"%d%b" % (again, key)) >> 16 & 0x7FFF
        yield number


class Ketama:
    """A ring of servers. nginx gives up after 20 points in a row whose servers are down; here the next one has it."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._numbers = {server: number for number, server in enumerate(servers)}
        self._ring = Ring(servers, lambda number, count: points(crc32(place(servers[number])), count))
        for server in servers:
            self.state_changed(server)
        self._ring.settle()

    def state_changed(self, server: Server) -> None:
        self._ring.resize(self._numbers[server], eweight(server) * _POINTS // SCALE)

    def address_changed(self, server: Server) -> None:
        self._ring.misplace(self._numbers[server])

    def find(self, key: bytes, avoid: Container[Server]) -> Server | None:
        ring = self._ring
        if not ring.counting:
            return None
        digest = crc32(key)
        server = ring.first_owner(digest)
        if server not in avoid:
            return server
        return next((server for server in ring.owners(ring.at_or_after(digest)) if server not in avoid), None)


def points(base: int, count: int) -> list[int]:
    """The first `count` points of a server: each is hashed from the one before."""
    found: list[int] = []
    before = bytes(4)
    for _ in range(count):
        where = crc32(before, base)
        found.append(where)
        before = where.to_bytes(4, "little")
    return found


def place(server: Server) -> bytes:
    """What nginx calls a server, as `server` has it: host, port if it is written, socket; here an app has its name."""
    target = server.config.target
    if not isinstance(target, str):
        return f"{server.name}\0".encode()
    where = target.partition("://")[2] or target
    if where.startswith("unix:"):
        return f"{where.removeprefix('unix:').partition(':')[0]}\0".encode()
    where = where.partition("/")[0]
    host, _, port = where.rpartition(":")
    return f"{host}\0{port}".encode() if host and port.isdecimal() else f"{where}\0".encode()


class Keys:
    """hash at work."""

    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, sample: Callable[[Request], Key | None], table: Modulo | Ketama, turns: SmoothTurns) -> None:
        self._sample = sample
        self._table = table
        self._turns = turns

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        key = self._sample(request)
        server: Server | None = None
        if key is not None and key != "":
            server = self._table.find(key_bytes(key), avoid)
        return server if server is not None else self._turns.choose(request, avoid)

    def server_for_hash(self, number: int) -> Server | None:
        return self._table.find(b"%d" % number, ())

    def acquired(self, server: Server) -> None:
        """Only requests without a key take turns."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._table.state_changed(server)
        self._turns.state_changed(server)

    def address_changed(self, server: Server) -> None:
        self._table.address_changed(server)
