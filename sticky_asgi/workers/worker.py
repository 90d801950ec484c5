"""This process as a worker: its worker slot, the socket at which it listens, and the connections of its peers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from sticky_asgi.messages import ASGIApp, Scope
from sticky_asgi.stores import client as stores
from sticky_asgi.workers.keys import KeyLookup
from sticky_asgi.workers.learning import LearningApp
from sticky_asgi.workers.link import listens
from sticky_asgi.workers.peer import PeerApp
from sticky_asgi.workers.protocol import LIFESPAN_KEYS, Additions, find_additions
from sticky_asgi.workers.serving import PeerServer
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError
from sticky_core.workers.backend import BACKLOG, Workers, join_workers
from sticky_core.workers.config import WorkersConfig
from sticky_core.workers.lost_names import LostNames

#: what to do so that middleware around `StickyWorkers` loses nothing
WAY_OUT: Final = (
    "Put StickyWorkers around all other middleware: write app = StickyWorkers(app) behind the others, instead of "
    "app.add_middleware(StickyWorkers)"
)


class LocalWorker:
    """This process as one of the workers.

    - `config`: the options of the group.
    - `app`: the app that it serves.
    - `lifespan`: the scope of the lifespan as it came in; None if there is no lifespan.
    - `directory`: where the workers find each other; None: in the system's temporary directory.
    - `log`: called with the `Decision` of each request.

    ConfigError if this process can't be one of them.
    """

    def __init__(
        self,
        config: WorkersConfig,
        app: ASGIApp,
        lifespan: Scope | None,
        directory: str | os.PathLike[str] | None,
        log: Callable[[Decision], None] | None,
    ) -> None:
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError("StickyWorkers needs asyncio, and this event loop is not asyncio's") from None
        self.app = app
        given: dict[str, Any] = {**lifespan} if lifespan is not None else {}
        #: what the lifespan leaves for requests; None if there is no lifespan
        self.state: dict[str, Any] | None = given.get("state")
        #: what an app around this one puts into each scope, even that of the lifespan (Starlette: `app`)
        self.constants = {name: given[name] for name in given.keys() - LIFESPAN_KEYS}
        self._lost_names = LostNames("scope", WAY_OUT)
        self.connections: set[PeerServer] = set()
        self.peers: dict[int, PeerApp] = {}
        self._all_closed = asyncio.Event()
        own_app = LearningApp(app, self) if config.learns_from_bodies else app
        self.workers = join_workers(config, own_app, self._build_peer, listens, directory=directory, log=log)
        self.key_lookup: KeyLookup | None = None
        keys = self.workers.keys
        if keys is not None:
            self.key_lookup = KeyLookup(keys, self.peers)
            stores.register_client(keys, self.key_lookup)

    def _build_peer(self, workers: Workers, number: int) -> PeerApp:
        peer = self.peers[number] = PeerApp(workers, number, self._find_additions)
        return peer

    def _find_additions(self, scope: Scope) -> Additions | None:
        """Return what middleware has put into the scope of a request that is forwarded; warn of what is lost."""
        additions = find_additions(scope, self.constants, self.state)
        if additions is not None and additions.lost:
            self._lost_names.report(additions.lost)
        return additions

    async def listen(self) -> None:
        """Listen for peers, and let them find this worker. OSError if the socket can't be opened."""
        slot = self.workers.slot
        listener = self._listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(slot.draft_path)
            listener.setblocking(False)
            self._server = await self.loop.create_unix_server(lambda: PeerServer(self), sock=listener, backlog=BACKLOG)
        except BaseException:
            listener.close()
            slot.release()
            raise
        slot.publish()

    async def drain(self, grace: float) -> None:
        """Stop listening, and serve the forwarded requests that are in flight, for at most `grace` seconds."""
        self.workers.slot.drain()
        self._server.close()
        for connection in list(self.connections):
            connection.announce_shutdown()
        try:
            async with asyncio.timeout(grace):
                while self.connections:
                    self._all_closed.clear()
                    await self._all_closed.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.transport.abort()
        for peer in self.peers.values():
            peer.close()
        if self.workers.keys is not None:
            await stores.close((self.workers.keys,))

    def after_fork(self) -> None:
        """In a forked child: close the listener, or peers could connect to it after the parent has ended."""
        descriptor = self._listener.detach()
        if descriptor >= 0:
            os.close(descriptor)

    def connection_opened(self, connection: PeerServer) -> None:
        """Note a new connection of a peer."""
        self.connections.add(connection)

    def connection_closed(self, connection: PeerServer) -> None:
        """Note that a connection of a peer is closed."""
        self.connections.discard(connection)
        if not self.connections:
            self._all_closed.set()
