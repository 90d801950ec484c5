"""Tracking: a server takes its health from another one (HAProxy `track`), in this backend or another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from weakref import WeakValueDictionary

from sticky_core.backend.state import BackendState
from sticky_core.errors import ConfigError, collect_problems
from sticky_core.server.config import ServerConfig, Tracked
from sticky_core.server.server import Server

#: the backend that was made last, by name
_latest: WeakValueDictionary[str, BackendState] = WeakValueDictionary()


def register(backend: BackendState) -> None:
    """Let servers of other backends track those of `backend`."""
    _latest[backend.name] = backend


#: returns the server with a name, or None
Named = Callable[[str], Server | None]


def find_tracked(
    backend: BackendState,
    servers: Iterable[Server],
    named: Named,
    problems: list[str],
    changed: Mapping[Server, ServerConfig] = MappingProxyType({}),
) -> dict[Server, Server]:
    """Return, for each of `servers` that tracks another server, that server. Problems are appended to `problems`.
    `named`: looks up a server of `backend`. `changed`: the configurations of servers that are about to be changed.
    """
    tracked: dict[Server, Server] = {}
    for server in servers:
        track = changed.get(server, server.requested).track
        if track is not None:
            with collect_problems(problems, f"backend {backend.name}: server {server.name}: "):
                tracked[server] = _find(backend, server, track, named, changed)
    return tracked


def _find(
    backend: BackendState, server: Server, track: str | Tracked, named: Named, changed: Mapping[Server, ServerConfig]
) -> Server:
    """Return the server that `track` names. ConfigError if `server` can't track it."""
    found: Server | None
    if isinstance(track, str):
        backend_name, _, name = track.rpartition("/")
        if backend_name and backend_name != backend.name:
            other = _latest.get(backend_name)
            if other is None:
                raise ConfigError(f"track {track}: there is no backend {backend_name} yet: make it first")
            named = other.servers_by_name.get
        found = named(name)
        if found is None:
            raise ConfigError(f"track {track}: there is no such server")
    else:
        assert isinstance(track, Server)
        found = track
    if backend.servers_by_name.get(found.name) is found and named(found.name) is not found:
        raise ConfigError(f"track: {found.name} is being removed: name another server, or leave track out")
    if found is server or changed.get(found, found.config).track is not None:
        raise ConfigError(f"track: {found.name} has no health of its own: name the server that is checked")
    if found.removed:
        raise ConfigError(f"track: {found.name} was removed")
    return found


def track(server: Server, tracked: Server | None) -> None:
    """Let `server` take its health from `tracked`; None: from its own checks. Under the lock of its backend."""
    before = server.tracks
    if tracked is before:
        return
    if before is not None:
        before.trackers = tuple(each for each in before.trackers if each is not server)
    if tracked is not None:
        tracked.trackers += server.as_tuple
    server.tracks = tracked
