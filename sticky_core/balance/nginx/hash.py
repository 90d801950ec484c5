"""A key of the request decides the server (nginx `hash <key> [consistent]`). Requests without a key, or with an empty
one, go to each server in turn.

Without `consistent` it works like Cache::Memcached; with it, like Cache::Memcached::Fast (ketama): 160 points on a ring
for a weight of one, and a key belongs to the first point after its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from zlib import crc32

from sticky_core.balance.eweight import eweight
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.nginx.ip_hash import MAX_TRIES
from sticky_core.balance.nginx.smooth import SmoothAlgorithm
from sticky_core.balance.nginx.weight_ranges import WeightRanges
from sticky_core.balance.ring import Ring
from sticky_core.balance.start import check_start
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.samples.request import Sample
from sticky_core.samples.values import Key, key_bytes
from sticky_core.server.server import Server
from sticky_core.server.slowstart import SCALE

_POINTS = 160


@dataclass(frozen=True, slots=True)
class NginxHash:
    """`key`: a sample, or any function of the request that returns str, bytes, int or an IP address; None means no key.
    It is called with the backend's lock held, so it must not wait for anything.
    `consistent`: whether only the keys of a removed or added server move, bool, False.
    `start`: how many turns to skip before the first request without a key, int, None draws a random number.
    """

    key: Sample
    consistent: bool = False
    start: int | None = None

    def __post_init__(self) -> None:
        check_start("hash", self.start)
        if not callable(self.key):
            raise ConfigError(
                f"hash: {self.key!r} is not a sample: pass src, path, hdr(...), url_param(...), or a function"
            )

    def build(self, servers: Sequence[Server], rng: Rng) -> NginxHashAlgorithm:
        sample = self.key
        return NginxHashAlgorithm(
            sample,
            KetamaTable(servers) if self.consistent else ModuloTable(servers),
            SmoothAlgorithm(servers, rng, self.start),
        )


class ModuloTable:
    """Maps a key to a server by its number modulo the sum of the weights."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._shares = WeightRanges(servers)
        self.state_changed = self._shares.state_changed
        self.added = self._shares.added
        self.removed = self._shares.removed

    def address_changed(self, server: Server) -> None:
        """Nothing to do: addresses are not used."""

    def find(self, key: bytes, avoid: Container[Server]) -> Server | None:
        return self._shares.first_usable(key_numbers(key), avoid)


def key_numbers(key: bytes) -> Iterator[int]:
    """Yield nginx's hash of `key`, and then the next one for each server found that is not usable."""
    number = crc32(key) >> 16 & 0x7FFF
    yield number
    for again in range(1, MAX_TRIES):
        number += crc32(b"%d%b" % (again, key)) >> 16 & 0x7FFF
        yield number


class KetamaTable:
    """A ring of servers. nginx gives up after 20 points in a row with servers that are down; here the next usable
    server gets the key.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._numbers = {server: number for number, server in enumerate(servers)}
        self._ring = Ring(servers, self._points)
        for server in servers:
            self.state_changed(server)
        self._ring.rebuild()

    def _points(self, number: int, count: int) -> list[int]:
        """Return the first `count` points of the server with this number."""
        return ketama_points(crc32(nginx_name(self._ring.servers[number])), count)

    def added(self, server: Server) -> None:
        self._numbers[server] = self._ring.add(server)
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        self._ring.remove(self._numbers.pop(server))

    def state_changed(self, server: Server) -> None:
        self._ring.resize(self._numbers[server], eweight(server) * _POINTS // SCALE)

    def address_changed(self, server: Server) -> None:
        self._ring.invalidate_points(self._numbers[server])

    def find(self, key: bytes, avoid: Container[Server]) -> Server | None:
        ring = self._ring
        if not ring.active_count:
            return None
        digest = crc32(key)
        server = ring.server_at_or_after(digest)
        if server not in avoid:
            return server
        return next((server for server in ring.servers_after(ring.at_or_after(digest)) if server not in avoid), None)


def ketama_points(base: int, count: int) -> list[int]:
    """Return the first `count` points of a server: each is the hash of the one before."""
    points: list[int] = []
    before = bytes(4)
    for _ in range(count):
        point = crc32(before, base)
        points.append(point)
        before = point.to_bytes(4, "little")
    return points


def nginx_name(server: Server) -> bytes:
    """Return nginx's name of a server: its host, with a NUL and the port if one is written, or its socket; for an app,
    the server's name.
    """
    target = server.config.target
    if not isinstance(target, str):
        return f"{server.name}\0".encode()
    address = target.partition("://")[2] or target
    if address.startswith("unix:"):
        return f"{address.removeprefix('unix:').partition(':')[0]}\0".encode()
    address = address.partition("/")[0]
    host, _, port = address.rpartition(":")
    return f"{host}\0{port}".encode() if host and port.isdecimal() else f"{address}\0".encode()


class NginxHashAlgorithm:
    """The algorithm of `NginxHash`."""

    order_matters = True
    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(
        self, sample: Callable[[Request], Key | None], table: ModuloTable | KetamaTable, turns: SmoothAlgorithm
    ) -> None:
        self._sample = sample
        self._table = table
        self._turns = turns

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        key = self._key(request)
        server = self._table.find(key, avoid) if key is not None else None
        return server if server is not None else self._turns.choose(request, avoid)

    def hash_of(self, request: Request) -> int | None:
        key = self._key(request)
        return None if key is None else crc32(key)

    def _key(self, request: Request) -> bytes | None:
        try:
            key = self._sample(request)
            return None if key is None or key == "" else key_bytes(key)
        except Exception as error:
            request.function_failed("the key of balance hash", self._sample, error, is_locked=True)
            return None

    def server_for_hash(self, number: int) -> Server | None:
        return self._table.find(b"%d" % number, ())

    def acquired(self, server: Server) -> None:
        """Nothing to do: only requests without a key take turns."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._table.state_changed(server)
        self._turns.state_changed(server)

    def added(self, server: Server) -> None:
        self._table.added(server)
        self._turns.added(server)

    def removed(self, server: Server) -> None:
        self._table.removed(server)
        self._turns.removed(server)

    def address_changed(self, server: Server) -> None:
        self._table.address_changed(server)
