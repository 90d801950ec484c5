"""The client's network decides the server (nginx `ip_hash`): the first three octets of an IPv4 address, all of an IPv6
address. Requests without an address go to each server in turn, whereas nginx sends all of them to one server.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.nginx.smooth import SmoothAlgorithm
from sticky_core.balance.nginx.weight_ranges import WeightRanges
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import check_start
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request
from sticky_core.samples import request as samples
from sticky_core.samples.request import Sample
from sticky_core.samples.values import Key, parse_address
from sticky_core.server.server import Server

#: how often nginx hashes before it takes turns instead
MAX_TRIES = 21


@dataclass(frozen=True, slots=True)
class IpHash:
    """`key`: a sample of the address, as an IP address or as text; by default the address of the client (`src`).
    `start`: how many turns to skip before the first request without an address, int, None draws a random number.
    """

    key: Sample = samples.src
    start: int | None = None

    def __post_init__(self) -> None:
        check_start("ip_hash", self.start)

    @classmethod
    def parse(cls, spec: BalanceSpec) -> IpHash:
        spec.expect_end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> IpHashAlgorithm:
        sample = self.key
        return IpHashAlgorithm(sample, WeightRanges(servers), SmoothAlgorithm(servers, rng, self.start))


class IpHashAlgorithm:
    """The algorithm of `IpHash`."""

    order_matters = True
    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, sample: Callable[[Request], Key | None], shares: WeightRanges, turns: SmoothAlgorithm) -> None:
        self._sample = sample
        self._shares = shares
        self._turns = turns

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        octets = self._octets(request)
        server = self._shares.first_usable(address_numbers(octets), avoid) if octets is not None else None
        return server if server is not None else self._turns.choose(request, avoid)

    def _octets(self, request: Request) -> bytes | None:
        """Return what nginx hashes of the address of a client: three octets of IPv4, all of IPv6; None: no address."""
        try:
            key = self._sample(request)
            address = parse_address(key) if isinstance(key, str) else key
        except Exception as error:
            request.function_failed("the key of balance ip_hash", self._sample, error, is_locked=True)
            return None
        if isinstance(address, IPv4Address):
            return address.packed[:3]
        return address.packed if isinstance(address, IPv6Address) else None

    def hash_of(self, request: Request) -> int | None:
        octets = self._octets(request)
        return None if octets is None else next(address_numbers(octets))

    def server_for_hash(self, number: int) -> Server | None:
        return self._shares.first_usable(address_numbers(number.to_bytes(4, "big")[1:]), ())

    def acquired(self, server: Server) -> None:
        """Nothing to do: only requests without an address take turns."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._shares.state_changed(server)
        self._turns.state_changed(server)

    def added(self, server: Server) -> None:
        self._shares.added(server)
        self._turns.added(server)

    def removed(self, server: Server) -> None:
        self._shares.removed(server)
        self._turns.removed(server)


def address_numbers(octets: bytes) -> Iterator[int]:
    """Yield nginx's hash of an address, and then the next one for each server found that is not usable."""
    number = 89
    for _ in range(MAX_TRIES):
        for octet in octets:
            number = (number * 113 + octet) % 6271
        yield number
