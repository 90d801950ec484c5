"""The common part of `source`, `uri`, `url_param`, `hdr` and `hash`: a key of the request is hashed, and the hash
decides the server (HAProxy `hash-type`, `hash-key`, `hash-balance-factor`, `hash-preserve-affinity`).

`map-based`: the hash is an index into a map of all electable servers. Evenly spread and fast; when a server is removed
or added, nearly all keys move (1-1/n of them).
`consistent`: the hash is a position on a ring, and the server with the nearest point gets the key. Only the keys of a
removed server move; unevenly spread unless weights are large, since a weight of one has sixteen points.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from copy import copy
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Literal, Protocol, get_args

from sticky_core.balance.avalanche import avalanche
from sticky_core.balance.eweight import MAX_EWEIGHT, eweight
from sticky_core.balance.hash_balance_factor import HashBalanceFactor
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.moved_hashes import MovedHashes, count_moved_hashes
from sticky_core.balance.ring import Ring
from sticky_core.balance.start import initial_turns
from sticky_core.balance.static_map import StaticMap
from sticky_core.balance.xxh32 import xxh32
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http.messages import Request
from sticky_core.options.spelling import problem_of_word
from sticky_core.samples.values import Key, key_bytes, parse_address
from sticky_core.server.server import Server
from sticky_core.target import host_and_port

HashKey = Literal["id", "id32", "addr", "addr-port", "name"]


# -- hash functions: from a key to a number of 32 bits


def sdbm(key: bytes) -> int:
    """The hash of the sdbm library, HAProxy's default."""
    number = 0
    for byte in key:
        number = (byte + number * 65599) & 0xFFFFFFFF
    return number


def djb2(key: bytes) -> int:
    """Bernstein's hash."""
    number = 5381
    for byte in key:
        number = (byte + number * 33) & 0xFFFFFFFF
    return number


def wt6(key: bytes) -> int:
    """Tarreau's hash: two words that are mixed in turn, each rotated by bits of the other."""
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
    """The key is a number itself; a key that does not begin with one is 0."""
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
    """A parsed `hash-type`: how a hash finds its server, and how a key is hashed."""

    method: Literal["map-based", "consistent"]
    function: str
    avalanche: bool

    @classmethod
    def parse(cls, text: str) -> HashType:
        """Parse `<method> [<function> [avalanche]]`. `consistent` without a function means sdbm with avalanche."""
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
                    f"hash_type {text!r} is unknown: write map-based or consistent, optionally followed by one of "
                    f"{', '.join(FUNCTIONS)}, optionally followed by avalanche"
                )

    def hasher(self) -> Callable[[Key], int]:
        """Return the hash function for keys. It caches recent keys: hashing one takes longer than the choice."""
        function, avalanched = FUNCTIONS[self.function], self.avalanche

        def compute(key: Key) -> int:
            number = function(key_bytes(key))
            return avalanche(number) if avalanched else number

        cached = lru_cache(maxsize=8192)(compute)

        def number(key: Key) -> int:
            return cached(key) if isinstance(key, str) and len(key) <= _MAX_CACHED_KEY else compute(key)

        return number


_MAX_CACHED_KEY = 200  # the longest key that is cached, so that clients can't fill the memory


# -- configuration


class HashTable(Protocol):
    """Maps hashes to servers."""

    def find(self, digest: int, avoid: Container[Server]) -> Server | None:
        """Return the server of `digest`, or another one if that server is in `avoid`."""
        ...

    def find_all(self, digests: Sequence[int]) -> list[Server | None]:
        """Return the server of each digest."""
        ...

    def next_server(self, avoid: Container[Server]) -> Server | None:
        """Return the next server in turn, for a request without a key."""
        ...

    def state_changed(self, server: Server) -> None: ...

    def added(self, server: Server) -> None: ...

    def removed(self, server: Server) -> None: ...

    def address_changed(self, server: Server) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashing:
    """The options of every hash. One option a line:

    - `hash_type`: `"map-based"` or `"consistent"`, optionally followed by a function (sdbm, djb2, wt6, crc32, none) and
      `avalanche`, str, `"map-based"`: `"consistent crc32"`, `"map-based djb2 avalanche"` (`hash-type`).
    - `hash_key`: what the points of a server on the ring are computed from, `"id"`: `id` or `id32`, its number, so the
      order of servers counts; `addr` or `addr-port`, for several proxies with different orders (the id for a server
      without an address); or `name`, which HAProxy does not have (`hash-key`).
    - `hash_balance_factor`: the most load that a server gets, in percent of the mean, int, 0 for no limit; needs
      `consistent` (`hash-balance-factor`).
    - `hash_preserve_affinity`: what happens to a request if its server is full, `"always"`: it waits (`always`), goes
      to another server (`maxconn`), or waits unless the queue is full too (`maxqueue`) (`hash-preserve-affinity`).
    - `start`: how many turns to skip before the first request without a key, int, None draws a random number.
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
            method = HashType.parse(self.hash_type).method
        except ConfigError as error:
            yield from error.problems
        if self.hash_key not in get_args(HashKey):
            yield problem_of_word("hash_key", self.hash_key, get_args(HashKey))
        if self.hash_balance_factor and self.hash_balance_factor <= 100:
            yield f"hash_balance_factor {self.hash_balance_factor} is not above 100 percent, nor 0 for none"
        if self.hash_preserve_affinity not in get_args(Affinity):
            yield problem_of_word("hash_preserve_affinity", self.hash_preserve_affinity, get_args(Affinity))
        if method == "map-based" and self.hash_key != "id":
            yield f"hash_key {self.hash_key} places points on a ring: it needs hash_type consistent"
        if method == "map-based" and self.hash_balance_factor:
            yield f"hash_balance_factor {self.hash_balance_factor} walks around a ring: it needs hash_type consistent"
        if self.start is not None and self.start < 0:
            yield f"start {self.start} is below 0"

    def build(self, servers: Sequence[Server], rng: Rng) -> HashAlgorithm:
        kind = HashType.parse(self.hash_type)
        bound = HashBalanceFactor(servers, self.hash_balance_factor) if self.hash_balance_factor else None
        table: HashTable
        if kind.method == "map-based":
            table = StaticMap(servers, rng, self.start)
        else:
            table = ConsistentTable(servers, rng, self.start, self.hash_key, bound)
        function: object = getattr(self, "key", self)
        return HashAlgorithm(
            self.build_digest(kind), table, bound, self.hash_preserve_affinity, type(self).__name__.lower(), function
        )

    def build_digest(self, kind: HashType) -> Callable[[Request], int | None]:
        """Return the function that hashes a request, or returns None if the request has no key."""
        raise NotImplementedError


# -- algorithm


class HashAlgorithm:
    """The algorithm of every `Hashing`: hashes a request and looks up its server in a table.

    `word`, `function`: the name of the balance, and the function that returns its keys, for logs.
    """

    counts_requests: bool
    preserve_affinity: Affinity

    def __init__(
        self,
        digest: Callable[[Request], int | None],
        table: HashTable,
        bound: HashBalanceFactor | None,
        preserve_affinity: Affinity,
        word: str,
        function: object,
    ) -> None:
        self._place, self._function = f"the key of balance {word}", function
        self.counts_requests = bound is not None
        # a map has the order of declaration, and so have the shares that `hash_balance_factor` allows
        self.order_matters = bound is not None or not isinstance(table, ConsistentTable)
        self.preserve_affinity = preserve_affinity
        self._digest = digest
        self._table = table
        self._bound = bound

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        digest = self.hash_of(request)
        return self._table.next_server(avoid) if digest is None else self._table.find(digest, avoid)

    def copy(self) -> HashAlgorithm | None:
        """Return a copy that may be given other servers, if it has a ring and nothing else; None if it has not."""
        if self._bound is not None or not isinstance(self._table, ConsistentTable):
            return None
        algorithm = copy(self)
        algorithm._table = self._table.copy()
        return algorithm

    def hash_of(self, request: Request) -> int | None:
        try:
            return self._digest(request)
        except Exception as error:
            request.function_failed(self._place, self._function, error, is_locked=True)
            return None

    def server_for_hash(self, number: int) -> Server | None:
        return self._table.find(number, ())

    def servers_for_hashes(self, numbers: Sequence[int]) -> list[Server | None]:
        """Return the server of each hash."""
        return self._table.find_all(numbers)

    def moved_hashes(self, after: HashAlgorithm, changed: Container[Server], limit: int) -> MovedHashes | None:
        """Return how many of the 2^32 hashes would go from one server to another if `after` replaced this. `changed`:
        the servers of either that differ in their points. None if there are no rings to compare, or more than `limit`
        points that differ.
        """
        if not isinstance(self._table, ConsistentTable) or not isinstance(after._table, ConsistentTable):
            return None
        return self._table.moved_hashes(after._table, changed, limit)

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

    def added(self, server: Server) -> None:
        self._table.added(server)
        if self._bound is not None:
            self._bound.added(server)

    def removed(self, server: Server) -> None:
        self._table.removed(server)
        if self._bound is not None:
            self._bound.removed(server)

    def address_changed(self, server: Server) -> None:
        self._table.address_changed(server)


class ConsistentTable:
    """A table of `hash-type consistent`: a ring of servers."""

    def __init__(
        self,
        servers: Sequence[Server],
        rng: Rng,
        start: int | None,
        hash_key: HashKey,
        bound: HashBalanceFactor | None,
    ) -> None:
        self._numbers = {server: number for number, server in enumerate(servers)}  # on the ring
        self._hash_key: HashKey = hash_key
        # The backend may have numbered the servers, backups included, as HAProxy does; otherwise from 1 on.
        self._ids = {server: getattr(server, "id", number) for number, server in enumerate(servers, 1)}
        self._ring = Ring(servers, self._points)
        self._rng = rng
        self._start = start
        self._bound = bound
        self._position: int | None = None  # the point of the last server in turn
        for server in servers:
            self.state_changed(server)
        self._ring.rebuild()

    def find_all(self, digests: Sequence[int]) -> list[Server | None]:
        return [self.find(digest, ()) for digest in digests]

    def moved_hashes(self, after: ConsistentTable, changed: Container[Server], limit: int) -> MovedHashes | None:
        """As `HashAlgorithm.moved_hashes`."""
        rings = self._ring, after._ring
        points = sum(ring.active_count_of(changed) for ring in rings)
        return count_moved_hashes(*rings, changed) if points <= limit else None

    def copy(self) -> ConsistentTable:
        """Return a copy that may be given other servers."""
        table = copy(self)
        table._numbers, table._ids = dict(self._numbers), dict(self._ids)
        table._ring = self._ring.copy(table._points)
        return table

    def _points(self, number: int, count: int) -> list[int]:
        """Return the first `count` points of the server with this number."""
        server = self._ring.servers[number]
        at = ring_base(server, self._ids[server], self._hash_key)
        return [avalanche(at + nth) for nth in range(count)]

    def state_changed(self, server: Server) -> None:
        self._ring.resize(self._numbers[server], eweight(server))

    def added(self, server: Server) -> None:
        self._ids[server] = getattr(server, "id", len(self._ids) + 1)
        self._numbers[server] = self._ring.add(server)
        self.state_changed(server)

    def removed(self, server: Server) -> None:
        self._ring.remove(self._numbers.pop(server))
        del self._ids[server]

    def address_changed(self, server: Server) -> None:
        if self._hash_key in ("addr", "addr-port"):
            self._ring.invalidate_points(self._numbers[server])

    def find(self, digest: int, avoid: Container[Server]) -> Server | None:
        ring = self._ring
        if not ring.active_count:
            return None
        at = ring.nearest(digest)
        server = ring.server_of(at)
        if server not in avoid and (self._bound is None or self._bound.allows(server)):
            return server
        return self._walk(at, avoid)

    def _walk(self, at: int, avoid: Container[Server]) -> Server | None:
        second: Server | None = None
        for server in self._ring.servers_after(at):
            if server not in avoid:
                if self._bound is None or self._bound.allows(server):
                    return server
                if second is None:
                    second = server
        return second

    def next_server(self, avoid: Container[Server]) -> Server | None:
        ring = self._ring
        if not ring.active_count:
            return None
        if self._position is None:
            self._position = initial_turns(self._start, len(ring), self._rng) - 1
        for _ in range(ring.active_count):
            self._position = ring.next_point(self._position)
            server = ring.server_of(self._position)
            if server not in avoid:
                return server
        return None


def ring_base(server: Server, number: int, hash_key: HashKey) -> int:
    """Return the number from which the points of `server` are computed. `number`: its own number, from 1 on."""
    ip, port = None, 0
    if hash_key in ("addr", "addr-port") and isinstance(server.config.target, str):
        host, port = host_and_port(server.config.target) or ("", 0)
        ip = parse_address(host)
    if ip is not None:
        seed = avalanche(port) if hash_key == "addr-port" else 0
        if isinstance(ip, IPv4Address):
            # HAProxy adds the address as it is in memory, which is little-endian on common machines
            return avalanche(seed + int.from_bytes(ip.packed, "little"))
        return xxh32(ip.packed, seed)
    match hash_key:
        case "id32":
            return avalanche(int.from_bytes(number.to_bytes(4, "little"), "big"))
        case "name":
            return avalanche(zlib.crc32(server.name.encode()))
        case _:
            return number * MAX_EWEIGHT
