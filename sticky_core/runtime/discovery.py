"""The names of a backend's servers (`ServerConfig.template`): all servers of a name share one resolution, and get their
addresses from it. A face sends the queries, and sleeps between them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from sticky_core.backend.backend import BackendComponent
from sticky_core.backend.change import Change
from sticky_core.backend.milestone import Milestone
from sticky_core.dns import nameservers
from sticky_core.dns.resolution import Resolution
from sticky_core.dns.resolvers import Address, Answer, Query, Resolvers, Status, is_service
from sticky_core.errors import ConfigError
from sticky_core.options.callables import is_async
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.target import Kind, Location

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend

_log = logging.getLogger("sticky_sessions")

SYSTEM = Resolvers()


class ResolvedName:
    """A name, the servers that get their addresses from it, and the state of its resolution."""

    def __init__(self, host: str, resolvers: Resolvers, servers: Sequence[Server], now: float) -> None:
        self.resolution = Resolution(resolvers, servers, now)
        self.resolvers = resolvers
        self.query = Query(host, is_service(host), resolvers.resolve_prefer, self.resolution.timeout)
        #: whether a server still has this name
        self.is_used = True
        #: the URLs to which servers could not be moved, by server
        self.rejected_urls: dict[Server, str | None] = {}
        #: whether servers may have other addresses than the resolution gives them
        self.needs_placement = False
        #: whether a thread is moving the servers
        self.is_placing = False

    def __repr__(self) -> str:
        resolution = self.resolution
        return f"<ResolvedName {self.query.name}: {len(resolution.assigned)} of {len(resolution.servers)} servers>"


class Discovery(BackendComponent):
    """The names of one backend: one object (`Backend.component`) for both faces. Safe to use from any thread."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.Lock()
        self._owner: object = None
        self._names: dict[Hashable, ResolvedName] = {}
        self._queried: set[ResolvedName] = set()  # the names that were queried at least once
        #: reached when each name has been queried once: requests need not wait any longer
        self.first_answers = Milestone()
        self.update_names()

    def update_names(self) -> tuple[ResolvedName, ...]:
        """Return the names to resolve, as the backend's servers are now."""
        with self._lock:
            self._update()
            names = tuple(self._names.values())
        if not names:
            self.first_answers.reach()
        return names

    def _update(self) -> None:
        if not self._names and not self.backend.snapshot.kinds["template"]:
            return
        wanted: dict[Hashable, list[Server]] = {}
        for server in self.backend.servers:
            key = _key(server.config)
            if key is not None:
                wanted.setdefault(key, []).append(server)
        now = self.backend.clock.monotonic()
        for key, name in list(self._names.items()):
            if key not in wanted:
                name.is_used = False
                del self._names[key]
        for key, servers in wanted.items():
            known = self._names.get(key)
            if known is not None:
                known.resolution.set_servers(servers)
                continue
            config = servers[0].config
            host = Location.parse(config.template or "").host
            self._names[key] = ResolvedName(host, config.resolvers or SYSTEM, servers, now)
        self._queried &= set(self._names.values())

    def after_swap(self, change: Change) -> None:
        self.update_names()

    def acquire(self, owner: object) -> bool:
        """Return whether `owner` has to resolve the names: the first caller has to, until it releases them. There is no
        owner while there are no names.
        """
        with self._lock:
            if self._owner is None and self._names:
                self._owner = owner
            return self._owner is owner

    @property
    def has_owner(self) -> bool:
        """Whether the names have an owner, which resolves them; true as well if there are none."""
        return self._owner is not None or not self._names

    def release(self, owner: object) -> None:
        with self._lock:
            if self._owner is owner:
                self._owner = None

    @property
    def first_answers_timeout(self) -> float:
        """How long requests wait for the first answers, at most, in seconds."""
        return max((name.resolution.timeout for name in list(self._names.values())), default=0.0)

    def delay(self, name: ResolvedName) -> float:
        """Return after how many seconds the next query for `name` is due."""
        return name.resolution.delay(self.backend.clock.monotonic())

    def record_answer(self, name: ResolvedName, answer: Answer) -> None:
        """Record the answer to a query for `name`, and move its servers to the addresses that it gives them."""
        with self._lock:
            if not name.is_used:
                return
            resolution = name.resolution
            before, surplus = resolution.status, resolution.surplus
            resolution.record_answer(answer, self.backend.clock.monotonic())
            warnings = self._warnings(name, before, surplus)
            name.needs_placement |= resolution.status is Status.VALID or resolution.has_expired
        for text, *values in warnings:
            _log.warning(text, *values)
        self._place_all(name)
        with self._lock:
            self._queried.add(name)
            is_last = not self.first_answers.reached and self._queried >= set(self._names.values())
        if is_last:
            self.first_answers.reach()
            self.backend.monitor.schedule_timers()

    def _place_all(self, name: ResolvedName) -> None:
        """Move the servers of `name` to the addresses that the resolution gives them. Without the lock, since a move
        notifies other components; in one thread at a time, so that the latest answer wins.
        """
        while True:
            with self._lock:
                if not name.needs_placement or name.is_placing:
                    return
                name.needs_placement, name.is_placing = False, True
                resolution = name.resolution
                assigned = [(server, resolution.assigned.get(server)) for server in resolution.servers]
            try:
                for server, address in assigned:
                    if name.is_used:
                        self._place(server, address, name)
            finally:
                name.is_placing = False

    def _place(self, server: Server, address: Address | None, name: ResolvedName) -> None:
        """Move `server` to `address`; None leaves it without one."""
        url = None
        if address is not None and address.address is not None:
            url = Location.parse(server.config.template or "").url_at(address.address, address.port)
        if server.target != url:
            if url is not None and name.rejected_urls.get(server) == url:
                return
            try:
                server.target = url
            except Exception:  # an impossible port, a missing TLS file: the other servers must still be moved
                name.rejected_urls[server] = url
                _log.exception("backend %s: server %s can't be moved to %s", self.backend.name, server.name, url)
                return
            name.rejected_urls.pop(server, None)
        if address is not None and address.weight is not None and not name.resolvers.ignore_weight:
            # HAProxy's scale: a record's 0 to 65535 become 1 to 256; 0 would give the server no requests
            weight = address.weight // 256 + 1
            if server.weight != weight:
                server.weight = weight

    def _warnings(self, name: ResolvedName, before: Status | None, surplus: int) -> list[tuple[object, ...]]:
        """Return the log messages, with their arguments, about what the latest answer has changed."""
        resolution, where = name.resolution, (self.backend.name, name.query.name)
        status = resolution.status
        warnings: list[tuple[object, ...]] = []
        if status is not before and status is not None:
            if status is not Status.VALID:
                info = f" ({resolution.info})" if resolution.info else ""
                text = (
                    "backend %s: %s does not resolve: %s%s. Its servers stay where they are until %g s after the last "
                    "answer."
                )
                warnings.append((text, *where, status.value, info, name.resolvers.hold(status)))
            elif before is not None:
                warnings.append(("backend %s: %s resolves again", *where))
        if resolution.surplus and resolution.surplus != surplus:
            text = "backend %s: %s has %d addresses more than servers: those get no requests"
            warnings.append((text, *where, resolution.surplus))
        return warnings

    def after_fork(self) -> None:
        """Forget the owner in a forked child: the owner runs in the parent process."""
        self._lock = threading.Lock()
        self._owner = None
        for name in self._names.values():
            name.is_placing = False
        if not self.first_answers.reached:
            self.first_answers = Milestone()


def problems_of(config: ServerConfig, kind: Kind) -> Iterator[str]:
    """Yield the reasons why this face can't resolve the name of a server with this configuration."""
    if config.template is None:
        return
    resolvers = config.resolvers or SYSTEM
    resolver = resolvers.resolver
    if resolver is None:
        if resolvers.nameservers or is_service(Location.parse(config.template).host):
            try:
                nameservers.require()
            except ConfigError as error:
                yield str(error)
    elif kind == "wsgi" and is_async(resolver):
        yield f"resolver {resolver!r} is a coroutine function, which WSGI can't await: pass a plain function"


def _key(config: ServerConfig) -> Hashable | None:
    """Return what the servers that share one resolution have in common; None if there is nothing to resolve.

    The whole URL counts: servers with another port or path have a resolution of their own.
    """
    return None if config.template is None else (config.template, config.resolvers)
