"""What persistences keep of the servers of a backend: those of each id, and the result for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy

from sticky_core.persistence.claim import Claim, PersistenceResult, Reason
from sticky_core.server.server import Server


def group_by_id(pairs: Iterable[tuple[str, Server]]) -> dict[str, list[Server]]:
    """Return the servers of each id, in the order of `pairs`. An empty id is none."""
    groups: dict[str, list[Server]] = {}
    for server_id, server in pairs:
        if server_id:
            groups.setdefault(server_id, []).append(server)
    return groups


def regroup(
    groups: Mapping[str, list[Server]],
    servers: Sequence[Server],
    added: Iterable[tuple[str, Server]],
    removed: Iterable[tuple[str, Server]],
) -> dict[str, list[Server]]:
    """Return a copy of `groups`, servers by id, without the pairs of `removed` and with those of `added`. Servers with
    the same id are in the order of `servers`.
    """
    groups = dict(groups)
    for server_id, server in removed:
        if not server_id:
            continue
        rest = [each for each in groups.pop(server_id) if each is not server]
        if rest:
            groups[server_id] = rest
    shared: set[str] = set()
    for server_id, server in added:
        if not server_id:
            continue
        if server_id in groups:
            shared.add(server_id)
        groups[server_id] = [*groups.get(server_id, ()), server]
    if shared:
        order = {server: number for number, server in enumerate(servers)}
        for server_id in shared:
            groups[server_id].sort(key=order.__getitem__)
    return groups


class FormerIds:
    """The ids that the servers had formerly (`Server(formerly=...)`): they are recognised, and never written. One that
    a server has now is that server's, and is not looked up here.

    `ids_under`: returns the ids for the texts of a server's `formerly`, as one persistence writes them.
    """

    def __init__(self, ids_under: Callable[[Server], Iterable[str]], servers: Iterable[Server]) -> None:
        self._ids_under = ids_under
        self._ids_of = {server: self._make(server) for server in servers if server.config.formerly}
        self._servers_of = group_by_id((each, server) for server, ids in self._ids_of.items() for each in ids)

    def _make(self, server: Server) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._ids_under(server)))

    def with_servers(self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]) -> FormerIds:
        """Return a copy for `servers`: without `removed`, and with `added`."""
        former = copy(self)
        former._ids_of = dict(self._ids_of)
        lost = [(each, server) for server in removed for each in former._ids_of.pop(server, ())]
        former._ids_of.update((server, self._make(server)) for server in added if server.config.formerly)
        gained = [(each, server) for server in added for each in former._ids_of.get(server, ())]
        former._servers_of = regroup(self._servers_of, servers, gained, lost)
        return former

    def of(self, server: Server) -> Sequence[str]:
        """Return the former ids of a server."""
        return self._ids_of.get(server, ())

    def servers(self, server_id: str) -> Sequence[Server]:
        """Return the servers that had an id, in the order of their declaration."""
        return self._servers_of.get(server_id, ())

    @property
    def longest(self) -> int:
        """The length of the longest former id; 0: there is none."""
        return max(map(len, self._servers_of), default=0)


def valid_results(servers: Sequence[Server]) -> dict[Server, PersistenceResult]:
    """Return the result of a valid claim for each server."""
    return {server: PersistenceResult(Claim.VALID, Reason.BOUND, server) for server in servers}


def renew_results(
    results: Mapping[Server, PersistenceResult], added: Sequence[Server], removed: Sequence[Server]
) -> dict[Server, PersistenceResult]:
    """Return a copy of `results` without `removed` and with `added`."""
    renewed = dict(results)
    for server in removed:
        del renewed[server]
    renewed.update(valid_results(added))
    return renewed
