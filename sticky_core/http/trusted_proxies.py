"""The client of a request: the peer of the connection, or what trusted proxies report in X-Forwarded-For and
X-Forwarded-Proto.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from sticky_core.cache import TwoGenerationCache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: means a peer without an address, behind a UNIX socket
UNIX = "unix"
# the longest address as text, with its zone; longer texts are not addresses and are not cached
_LONGEST = 64

#: the schemes that X-Forwarded-Proto may report, and whether they use TLS
_IS_TLS = {"http": False, "https": True, "ws": False, "wss": True}


def network_problems(networks: Iterable[str]) -> list[str]:
    """Return a problem for each of `networks` that is not valid."""
    problems: list[str] = []
    for network in networks:
        if network not in (UNIX, "*"):
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                problems.append(f"{network!r} is not a network: write '10.0.0.0/8', '::1', 'unix' or '*' ({error})")
    return problems


class Networks:
    """A set of networks that peers may be in. `"*"` contains every peer, `"unix"` those without an address."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._all = "*" in networks
        self._unix = UNIX in networks
        self._networks = [ipaddress.ip_network(network) for network in networks if network not in (UNIX, "*")]
        self._known: TwoGenerationCache[str, bool] = TwoGenerationCache(1024)

    def __bool__(self) -> bool:
        return self._all or self._unix or bool(self._networks)

    def __contains__(self, peer: str | None) -> bool:
        if self._all:
            return True
        if not peer:
            return self._unix
        if not self._networks or len(peer) > _LONGEST:
            return False
        known = self._known.get(peer)
        if known is None:
            known = self._holds(peer)
            self._known.put(peer, known)
        return known

    def _holds(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def find_client(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """Return the first address, from `peer` towards the client, that is no trusted proxy; the last if all are."""
        if peer not in self:
            return peer
        client = peer
        for hop in reversed(",".join(forwarded_for).split(",")):
            hop = hop.strip(" \t")
            if not hop:
                continue
            client = hop
            if hop not in self:
                break
        return client

    def find_scheme(self, peer: str | None, scheme: str, forwarded_proto: Sequence[str]) -> str:
        """Return the scheme that the client uses: `http` or `https`, `ws` or `wss` for a WebSocket.

        - `peer`, `scheme`: the peer of the connection, and how it has connected.
        - `forwarded_proto`: the values of X-Forwarded-Proto. Of several schemes the last counts: the peer has written
          it. They count only if the peer is a trusted proxy, and the scheme is one of these four.
        """
        if not forwarded_proto or peer not in self:
            return scheme
        reported = forwarded_proto[-1].rpartition(",")[2].strip(" \t").lower()
        if reported not in _IS_TLS:
            return scheme
        plain, tls = ("ws", "wss") if scheme in ("ws", "wss") else ("http", "https")
        return tls if _IS_TLS[reported] else plain
