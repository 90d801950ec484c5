"""What persistences keep of the servers of a backend: those of each id, and the result for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
