"""The client's network says which server (nginx `ip_hash`): the first three octets of an IPv4 address, all of an IPv6
address. Requests without an address go in turn, where nginx sends all of them to one server.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.balance.nginx.shares import Shares
from sticky_core.balance.nginx.smooth import SmoothTurns
from sticky_core.balance.parser import BalanceSpec
from sticky_core.balance.start import check_start
from sticky_core.clock import Rng
from sticky_core.http.messages import Request
from sticky_core.samples import request as samples
from sticky_core.samples.request import Sample
from sticky_core.samples.values import Key, parse_address
from sticky_core.server.server import Server

#: how often nginx hashes until it gives up and takes turns
TRIES = 21


@dataclass(frozen=True, slots=True)
class IpHash:
    """`key`: where the address is found, if not where the client comes from; an address or its text.
    `start`: with how many turns taken the requests begin that must go in turn; None draws it.
    """

    key: Sample = samples.src
    start: int | None = None

    def __post_init__(self) -> None:
        check_start("ip_hash", self.start)

    @classmethod
    def parse(cls, line: BalanceSpec) -> IpHash:
        line.end()
        return cls()

    def build(self, servers: Sequence[Server], rng: Rng) -> Networks:
        sample = self.key
        return Networks(sample, Shares(servers), SmoothTurns(servers, rng, self.start))


class Networks:
    """ip_hash at work."""

    counts_requests = False
    preserve_affinity: Affinity = "maxconn"

    def __init__(self, sample: Callable[[Request], Key | None], shares: Shares, turns: SmoothTurns) -> None:
        self._sample = sample
        self._shares = shares
        self._turns = turns

    def choose(self, request: Request, avoid: Container[Server]) -> Server | None:
        key = self._sample(request)
        address = parse_address(key) if isinstance(key, str) else key
        server: Server | None = None
        if isinstance(address, IPv4Address):
            server = self._shares.first(numbers(address.packed[:3]), avoid)
        elif isinstance(address, IPv6Address):
            server = self._shares.first(numbers(address.packed), avoid)
        return server if server is not None else self._turns.choose(request, avoid)

    def server_for_hash(self, number: int) -> Server | None:
        return self._shares.first(numbers(number.to_bytes(4, "big")[1:]), ())

    def acquired(self, server: Server) -> None:
        """Only requests without an address take turns."""

    released = acquired

    def state_changed(self, server: Server) -> None:
        self._shares.state_changed(server)
        self._turns.state_changed(server)


def numbers(octets: bytes) -> Iterator[int]:
    """What nginx hashes an address to, and again each time that the server found is none."""
    number = 89
    for _ in range(TRIES):
        for octet in octets:
            number = (number * 113 + octet) % 6271
        yield number
