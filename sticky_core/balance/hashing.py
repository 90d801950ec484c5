"""What `source`, `uri`, `url_param`, `hdr` and `hash` share: a key of the request is hashed, and the hash names a
server (HAProxy `hash-type`, `hash-key`, `hash-balance-factor`, `hash-preserve-affinity`).

`map-based`: the hash is an index into a map of all servers that may be chosen. Evenly spread, quick; when a server goes
or comes, nearly all keys move (1-1/n of them).
`consistent`: the hash is a place on a ring, and the nearest server's point takes it. Only the keys of the server that
goes move; unevenly spread unless weights are large, sixteen points standing for a weight of one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Literal, Protocol, get_args

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.eweight import MOST, eweight
from sticky_core.balance.hash_balance_factor import HashBalanceFactor
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.ring import Ring
from sticky_core.balance.start import begun
from sticky_core.balance.static_map import StaticMap
from sticky_core.balance.xxh32 import xxh32
from sticky_core.clock import Rng
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http.messages import Request
from sticky_core.samples.values import Key, key_bytes, parse_address
from sticky_core.server.server import Server
from sticky_core.target import host_and_port

HashKey = Literal["id", "id32", "addr", "addr-port", "name"]


# -- functions: a key to a number of 32 bits


def sdbm(key: bytes) -> int:
    """The one of the sdbm library, and HAProxy's default."""
    number = 0
    for byte in key:
        number = (byte + number * 65599) & 0xFFFFFFFF
    return number


def djb2(key: bytes) -> int:
    """Bernstein's."""
    number = 5381
    for byte in key:
        number = (byte + number * 33) & 0xFFFFFFFF
    return number


def wt6(key: bytes) -> int:
    """Tarreau's: two words that take turns and turn each other."""
    one, other, by, other_by = 0xA53C965A, 0x5CA6953A, 6, 18
    for byte in key:
        one = ~(one ^ byte) & 0xFFFFFFFF
        other = ~(other + byte) & 0xFFFFFFFF
        one, other = (
            (other << by | other >> (32 - by)) & 0xFFFFFFFF,
            (one << other_by | one >> (32 - other_by)) & 0xFFFFFFFF,
        )
        mixed = (one >> 16 ^ other) & 0xFFFF
        by, other_by = mixed & 31, mixed >> 11
    return one ^ other


def none(key: bytes) -> int:
    """The key is a number already; what does not begin with one is 0."""
    digits = key[1:] if key[:1] in (b"-", b"+") else key
    number = 0
    for byte in digits:
        if not 0x30 <= byte <= 0x39:
            break
        number = min(number * 10 + byte - 0x30, 0x7FFFFFFFFFFFFFFF)
    return (-number if key[:1] == b"-" else number) & 0xFFFFFFFF


FUNCTIONS: dict[str, Callable[[bytes], int]] = {
    "sdbm": sdbm,
    "djb2": djb2,
    "wt6": wt6,
    "crc32": zlib.crc32,
    "none": none,
}


@dataclass(frozen=True, slots=True)
class HashType:
    """What `hash-type` says: how a hash finds its server, and how a key is hashed."""

    method: Literal["map-based", "consistent"]
    function: str
    avalanche: bool

    @classmethod
    def of(cls, text: str) -> HashType:
        """`<method> [<function> [avalanche]]`. A ring that is given no function takes sdbm with avalanche."""
        match text.split():
            case ["map-based"]:
                return cls("map-based", "sdbm", False)
            case ["consistent"]:
                return cls("consistent", "sdbm", True)
            case ["map-based" | "consistent" as method, function] if function in FUNCTIONS:
                return cls(method, function, False)
            case ["map-based" | "consistent" as method, function, "avalanche"] if function in FUNCTIONS:
                return cls(method, function, True)
            case _:
                raise ConfigError(
                    f"hash_type {text!r} is not known: write map-based or consistent, perhaps with one of "
                    f"{', '.join(FUNCTIONS)}, perhaps with avalanche behind it"
                )

    def hasher(self) -> Callable[[Key], int]:
        """Keys to numbers. Those of late are remembered: to hash one takes longer than to choose by it."""
        function, scattered = FUNCTIONS[self.function], self.avalanche

        def compute(key: Key) -> int:
            number = function(key_bytes(key))
            return avalanche(number) if scattered else number

        remembered = lru_cache(maxsize=8192)(compute)

        def number(key: Key) -> int:
            return remembered(key) if isinstance(key, str) and len(key) <= _LONGEST else compute(key)

        return number


_LONGEST = 200  # of the keys that are remembered, so that nobody fills our memory with theirs


# -- what was asked


class Table(Protocol):
    """Servers, to be found by a hash."""

    def find(self, digest: int, avoid: Container[Server]) -> Server | None:
        """The server that `digest` names; another if that one is to be avoided."""
        ...

    def turn(self, avoid: Container[Server]) -> Server | None:
        """A server for who has no key: each in turn."""
        ...

    def state_changed(self, server: Server) -> None: ...

    def address_changed(self, server: Server) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashing:
    """`hash_type`: `"map-based"` (default) or `"consistent"`, perhaps a function (sdbm, djb2, wt6, crc32, none) and
    `avalanche`: `"consistent crc32"`, `"map-based djb2 avalanche"`.
    `hash_key`: what a server's points on the ring are made of: its `id` (default: its number, so the order counts), its
    `addr` or `addr-port` (for several proxies that need not have the same order; the id where there is none), or its
    `name` (ours).
    `hash_balance_factor`: no server gets more than so many percent of the mean load; 0 is no bound. For rings.
    `hash_preserve_affinity`: what becomes of a request whose server is full: it waits there (`always`), goes elsewhere
    (`maxconn`), waits unless the queue is full too (`maxqueue`).
    `start`: with how many turns taken the requests without a key begin; None draws it.
    """

    hash_type: str = "map-based"
    hash_key: HashKey = "id"
    hash_balance_factor: int = 0
    hash_preserve_affinity: Affinity = "always"
    start: int | None = None

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        method = ""
        try:
            method = HashType.of(self.hash_type).method
        except ConfigError as error:
            yield from error.problems
        if self.hash_key not in get_args(HashKey):
            yield f"hash_key {self.hash_key!r} is none of {', '.join(get_args(HashKey))}"
        if self.hash_balance_factor and self.hash_balance_factor <= 100:
            yield f"hash_balance_factor {self.hash_balance_factor} is not above 100 percent, nor 0 for none"
        if self.hash_preserve_affinity not in get_args(Affinity):
            yield f"hash_preserve_affinity {self.hash_preserve_affinity!r} is none of {', '.join(get_args(Affinity))}"
        if method == "map-based" and self.hash_key != "id":
            yield f"hash_key {self.hash_key} places points on a ring: it needs hash_type consistent"
        if method == "map-based" and self.hash_balance_factor:
            yield f"hash_balance_factor {self.hash_balance_factor} walks around a ring: it needs hash_type consistent"
        if self.start is not None and self.start < 0:
            yield f"start {self.start} is below 0"

    def build(self, servers: Sequence[Server], rng: Rng) -> Hashed:
        kind = HashType.of(self.hash_type)
        bound = HashBalanceFactor(servers, self.hash_balance_factor) if self.hash_balance_factor else None
        table: Table
        if kind.method == "map-based":
            table = StaticMap(servers, rng, self.start)
        else:
            table = Consistent(servers, rng, self.start, self.hash_key, bound)
        return Hashed(self.digest(kind), table, bound, self.hash_preserve_affinity)

    def digest(self, kind: HashType) -> Callable[[Request], int | None]:
        """How a request is hashed; None if it has nothing to hash."""
        raise NotImplementedError


# -- in force


class Hashed:
    """A hash at work."""

    counts_requests: bool
    preserve_affinity: Affinity

    def __init__(
        self,
        digest: Callable[[Request], int | None],
        table: Table,
        bound: HashBalanceFactor | None,
        preserve_affinity: Affinity,
    ) -> None:
        self.counts_requests = bound is not None
        self.preserve_affinity = preserve_affinity
        self._digest = digest
        self._table = table
        self._bound = bound

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        digest = self._digest(request)
        return self._table.turn(avoid) if digest is None else self._table.find(digest, avoid)

    def server_for_hash(self, number: int) -> Server | None:
        return self._table.find(number, ())

    def acquired(self, server: Server) -> None:
        if self._bound is not None:
            self._bound.acquired()

    def released(self, server: Server) -> None:
        if self._bound is not None:
            self._bound.released()

    def state_changed(self, server: Server) -> None:
        self._table.state_changed(server)
        if self._bound is not None:
            self._bound.state_changed()

    def address_changed(self, server: Server) -> None:
        self._table.address_changed(server)


class Consistent:
    """A ring of servers."""

    def __init__(
        self,
        servers: Sequence[Server],
        rng: Rng,
        start: int | None,
        hash_key: HashKey,
        bound: HashBalanceFactor | None,
    ) -> None:
        self._numbers = {server: number for number, server in enumerate(servers)}
        self._hash_key: HashKey = hash_key
        # The backend may have numbered them, backups among them, as HAProxy does; else they count from 1.
        self._ids: list[int] = [getattr(server, "id", number) for number, server in enumerate(servers, 1)]
        self._ring = Ring(servers, self._points)
        self._rng = rng
        self._start = start
        self._bound = bound
        self._at: int | None = None  # whose turn it was
        for server in servers:
            self.state_changed(server)
        self._ring.settle()

    def _points(self, number: int, count: int) -> list[int]:
        """The first points of a server."""
        at = base(self._ring.servers[number], self._ids[number], self._hash_key)
        return [avalanche(at + nth) for nth in range(count)]

    def state_changed(self, server: Server) -> None:
        self._ring.resize(self._numbers[server], eweight(server))

    def address_changed(self, server: Server) -> None:
        if self._hash_key in ("addr", "addr-port"):
            self._ring.misplace(self._numbers[server])

    def find(self, digest: int, avoid: Container[Server]) -> Server | None:
        ring = self._ring
        if not ring.counting:
            return None
        at = ring.nearest(digest)
        server = ring.owner(at)
        if server not in avoid and (self._bound is None or self._bound.allows(server)):
            return server
        return self._walk(at, avoid)

    def _walk(self, at: int, avoid: Container[Server]) -> Server | None:
        second: Server | None = None
        for server in self._ring.owners(at):
            if server not in avoid:
                if self._bound is None or self._bound.allows(server):
                    return server
                if second is None:
                    second = server
        return second

    def turn(self, avoid: Container[Server]) -> Server | None:
        ring = self._ring
        if not ring.counting:
            return None
        if self._at is None:
            self._at = begun(self._start, len(ring), self._rng) - 1
        for _ in range(ring.counting):
            self._at = ring.next(self._at)
            server = ring.owner(self._at)
            if server not in avoid:
                return server
        return None


def base(server: Server, number: int, hash_key: HashKey) -> int:
    """The number from which a server's points are counted on; `number` is its own, from 1."""
    where, port = None, 0
    if hash_key in ("addr", "addr-port") and isinstance(server.config.target, str):
        host, port = host_and_port(server.config.target) or ("", 0)
        where = parse_address(host)
    if where is not None:
        seed = avalanche(port) if hash_key == "addr-port" else 0
        if isinstance(where, IPv4Address):
            # HAProxy adds the address up as the machine has it in memory, which is little-endian where it runs
            return avalanche(seed + int.from_bytes(where.packed, "little"))
        return xxh32(where.packed, seed)
    match hash_key:
        case "id32":
            return avalanche(int.from_bytes(number.to_bytes(4, "little"), "big"))
        case "name":
            return avalanche(zlib.crc32(server.name.encode()))
        case _:
            return number * MOST
