"""The apps behind the servers of one backend, in this process: made once, when they are first needed, in the process
that serves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sticky_core import http1, life
from sticky_core.errors import ConfigError
from sticky_core.server import Health, Server
from sticky_core.target import OTHER_FACE, App, Kind, kinds
from sticky_core.upstream import Upstream

if TYPE_CHECKING:
    from sticky_core.backend import Backend

_log = logging.getLogger("sticky_sessions")


class Replicas:
    """One per backend and face (`Backend.keep`). A server whose app is None does not live, and refuses what comes."""

    kind: Kind
    forwards: type[Upstream]  #: what stands for a server that is a URL

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        #: whether a request may go straight to its server; else `begin`
        self.begun = False
        self.made = False
        self._timed = False
        self.apps: dict[Server, App | None] = dict.fromkeys(backend.servers)
        #: Whether a request may have to be read more than once, or looked after while it waits; and how much of it is
        #: kept for that.
        self.rereads = backend.rereads
        self.retry_body_limit = backend.config.retry_body_limit
        self._upstreams: dict[Server, Upstream] = {}
        self._lock = threading.Lock()

    def problems(self) -> Iterator[str]:
        """Why the servers' targets can't be served by this face."""
        for server in self.backend.servers:
            target = server.config.target
            where = f"backend {self.backend.name}: server {server.name}"
            if isinstance(target, str):
                try:
                    http1.require()
                except ConfigError as error:
                    yield f"{where}: {error}"
            elif target is not None and self.kind not in kinds(target):
                other = OTHER_FACE[self.kind]
                yield f"{where}: {target!r} is no {self.kind.upper()} app: import from {other}, or hand another app"

    def begin(self) -> None:
        """What has to be done before a request while `begun` is not true. Make all apps, unless somebody has: one that
        can't be made leaves its server DOWN, and the others serve. Let time have its way with the servers.
        """
        if not self.made:
            self.make_all()
        self.backend.tick()
        if not self._timed:
            self._settle()

    def make_all(self) -> bool:
        """Make all apps. False: somebody has."""
        with self._lock:
            if self.made:
                return False
            for server in self.backend.servers:
                try:
                    self.make(server)
                except Exception:
                    _log.exception("backend %s: replica %s failed to start and is DOWN", self.backend.name, server.name)
                    server.health = Health.DOWN
            self.made = True
            return True

    def start(self) -> None:
        """All apps are made: requests may come."""
        self.made = True
        self._settle()

    def timed(self, timed: bool) -> None:
        """Whether time changes something about the servers. Under the backend's lock."""
        self._timed = timed
        self.begun = self.made and not timed and self._watched

    @property
    def _watched(self) -> bool:
        """Whether the checks are on their way, if there are any."""
        return True

    def _settle(self) -> None:
        self.backend.appoint()

    def make(self, server: Server) -> App:
        """Begin a server's life: a factory makes a new app with an empty memory; an app that was handed over keeps what
        it has.
        """
        config = server.config
        if isinstance(config.target, str):
            app = self._upstream(server).app
        elif config.factory is not None:
            app = config.factory()
            server.life = self._new_life(server)
        else:
            assert config.target is not None
            app = config.target
            server.life = server.life or self._new_life(server)
        self.apps[server] = app
        return app

    def _upstream(self, server: Server) -> Upstream:
        upstream = self._upstreams.get(server)
        if upstream is None:
            asked = self.backend.config
            upstream = self._upstreams[server] = self.forwards.of(server.config, asked.timeouts, asked.forward)
        return upstream

    def _new_life(self, server: Server) -> str:
        return life.begin(self.backend.clock, self.backend.rng) if server.mortal else ""

    def end(self) -> None:
        """Let all apps go. The next to begin has new ones."""
        for upstream in self._upstreams.values():
            upstream.close()
        with self._lock:
            self.begun = self.made = False
            self.apps.update(dict.fromkeys(self.apps))

    def forked(self) -> None:
        """What was made in the parent shares no memory with it from here on: begin again."""
        self._lock = threading.Lock()
        for server in self.backend.servers:
            server.life = ""
        self.end()
