"""The names behind a backend's servers (`Server.template`): one resolution for all servers of a name, and their
addresses as it says. A face asks, and sleeps in between.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from sticky_core.backend.backend import BackendComponent
from sticky_core.backend.change import Change, Milestone
from sticky_core.dns import nameservers
from sticky_core.dns.resolution import Resolution
from sticky_core.dns.resolvers import Address, Answer, Query, Resolvers, Status, is_service
from sticky_core.errors import ConfigError
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.target import Kind, Location

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend

_log = logging.getLogger("sticky_sessions")

SYSTEM = Resolvers()


class ResolvedName:
    """A name, with the servers that it fills, and how far its resolution is."""

    def __init__(self, host: str, resolvers: Resolvers, servers: Sequence[Server], now: float) -> None:
        self.resolution = Resolution(resolvers, servers, now)
        self.resolvers = resolvers
        self.query = Query(host, is_service(host), resolvers.resolve_prefer, self.resolution.timeout)
        #: whether it is still some server's
        self.is_used = True
        #: where servers could not be moved to
        self.rejected_urls: dict[Server, str | None] = {}
        #: whether servers may not be where they belong, and whether somebody is about to move them
        self.needs_placement = False
        self.is_placing = False

    def __repr__(self) -> str:
        return f"<Name {self.query.name}: {len(self.resolution.assigned)} of {len(self.resolution.servers)} servers>"


class Discovery(BackendComponent):
    """One per backend (`Backend.keep`), whichever faces it has. Safe to use from any thread."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.Lock()
        self._owner: object = None
        self._names: dict[Hashable, ResolvedName] = {}
        self._answered: set[ResolvedName] = set()
        #: that each name has been asked for once: requests need not wait for it any more
        self.first_answers = Milestone()
        self.update_names()

    def update_names(self) -> tuple[ResolvedName, ...]:
        """What is to be resolved, as the backend's servers are now."""
        with self._lock:
            self._look()
            names = tuple(self._names.values())
        if not names:
            self.first_answers.reach()
        return names

    def _look(self) -> None:
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
        self._answered &= set(self._names.values())

    def after_swap(self, change: Change) -> None:
        self.update_names()

    def acquire(self, owner: object) -> bool:
        """Whether `owner` is to resolve: the first that asks, until it disowns, while there is something to resolve."""
        with self._lock:
            if self._owner is None and self._names:
                self._owner = owner
            return self._owner is owner

    @property
    def has_owner(self) -> bool:
        """Whether somebody resolves, or nobody has to."""
        return self._owner is not None or not self._names

    def release(self, owner: object) -> None:
        with self._lock:
            if self._owner is owner:
                self._owner = None

    @property
    def first_answers_timeout(self) -> float:
        """For how many seconds at most a beginning waits for addresses."""
        return max((name.resolution.timeout for name in list(self._names.values())), default=0.0)

    def delay(self, name: ResolvedName) -> float:
        """For how many seconds there is nothing to ask of `name`."""
        return name.resolution.delay(self.backend.clock.monotonic())

    def record_answer(self, name: ResolvedName, answer: Answer) -> None:
        """What came of asking for `name`: its servers get the addresses that are theirs now."""
        with self._lock:
            if not name.is_used:
                return
            resolution = name.resolution
            before, surplus = resolution.status, resolution.surplus
            resolution.record_answer(answer, self.backend.clock.monotonic())
            news = self._news(name, before, surplus)
            name.needs_placement |= resolution.status is Status.VALID or resolution.has_expired
        for text, *values in news:
            _log.warning(text, *values)
        self._place_all(name)
        with self._lock:
            self._answered.add(name)
            first = not self.first_answers.reached and self._answered >= set(self._names.values())
        if first:
            self.first_answers.reach()
            self.backend.monitor.schedule_timers()

    def _place_all(self, name: ResolvedName) -> None:
        """Move the servers of `name` to where they belong. Without the lock, since that is told to others; one thread
        at a time, so that the last answer has the last word.
        """
        while True:
            with self._lock:
                if not name.needs_placement or name.is_placing:
                    return
                name.needs_placement, name.is_placing = False, True
                resolution = name.resolution
                places = [(server, resolution.assigned.get(server)) for server in resolution.servers]
            try:
                for server, found in places:
                    if name.is_used:
                        self._place(server, found, name)
            finally:
                name.is_placing = False

    def _place(self, server: Server, found: Address | None, name: ResolvedName) -> None:
        """`server` is there now; None: nowhere."""
        url = None
        if found is not None and found.address is not None:
            url = Location.parse(server.config.template or "").url_at(found.address, found.port)
        if server.target != url:
            if url is not None and name.rejected_urls.get(server) == url:
                return
            try:
                server.target = url
            except Exception:  # a port that is none, a file for TLS that is not there: no reason to resolve no more
                name.rejected_urls[server] = url
                _log.exception("backend %s: server %s can't be moved to %s", self.backend.name, server.name, url)
                return
            name.rejected_urls.pop(server, None)
        if found is not None and found.weight is not None and not name.resolvers.ignore_weight:
            # HAProxy's scale: 65536 steps of a record become 256, and none is 0, which would mean that it is not used
            weight = found.weight // 256 + 1
            if server.weight != weight:
                server.weight = weight

    def _news(self, name: ResolvedName, before: Status | None, surplus: int) -> list[tuple[object, ...]]:
        """What is news, to be logged."""
        resolution, where = name.resolution, (self.backend.name, name.query.name)
        status = resolution.status
        news: list[tuple[object, ...]] = []
        if status is not before and status is not None:
            if status is not Status.VALID:
                info = f" ({resolution.info})" if resolution.info else ""
                text = (
                    "backend %s: %s does not resolve: %s%s. Its servers stay where they are until %g s after the last "
                    "answer."
                )
                news.append((text, *where, status.value, info, name.resolvers.hold(status)))
            elif before is not None:
                news.append(("backend %s: %s resolves again", *where))
        if resolution.surplus and resolution.surplus != surplus:
            text = "backend %s: %s has %d addresses more than servers: those get no requests"
            news.append((text, *where, resolution.surplus))
        return news

    def after_fork(self) -> None:
        """We are a forked child: whoever resolves does so in the parent."""
        self._lock = threading.Lock()
        self._owner = None
        for name in self._names.values():
            name.is_placing = False
        if not self.first_answers.reached:
            self.first_answers = Milestone()


def problems_of(asked: ServerConfig, kind: Kind) -> Iterator[str]:
    """Why the name of such a server can't be resolved by this face."""
    if asked.template is None:
        return
    resolvers = asked.resolvers or SYSTEM
    resolver = resolvers.resolver
    if resolver is None:
        if resolvers.nameservers or is_service(Location.parse(asked.template).host):
            try:
                nameservers.require()
            except ConfigError as error:
                yield str(error)
    elif kind == "wsgi" and (
        inspect.iscoroutinefunction(resolver) or inspect.iscoroutinefunction(type(resolver).__call__)
    ):
        yield f"resolver {resolver!r} is a coroutine function, which WSGI can't await: hand a plain one"


def _key(config: ServerConfig) -> Hashable | None:
    """What servers have in common that are filled by one resolution; None if there is nothing to resolve.

    The URL counts as a whole: at another port or under another path, an address is another place.
    """
    return None if config.template is None else (config.template, config.resolvers)
