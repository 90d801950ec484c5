"""This process as a worker: its worker slot, the socket at which it listens, and the connections of its peers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from sticky_asgi.messages import ASGIApp, Scope
from sticky_asgi.stores import client as stores
from sticky_asgi.workers.keys import KeyLookup
from sticky_asgi.workers.learning import LearningApp
from sticky_asgi.workers.link import listens, open_abstract
from sticky_asgi.workers.peer import PeerApp
from sticky_asgi.workers.protocol import LIFESPAN_KEYS, Additions, find_additions
from sticky_asgi.workers.serving import PeerServer
from sticky_core.decision import Decision
from sticky_core.errors import ConfigError
from sticky_core.workers.backend import BACKLOG, Workers, join_workers
from sticky_core.workers.config import WorkersConfig
from sticky_core.workers.lost_names import LostNames
from sticky_core.workers.repair import REPAIR_INTERVAL
from sticky_core.workers.slots import WorkerSlots

#: what to do so that middleware around `StickyWorkers` loses nothing
WAY_OUT: Final = (
    "Put StickyWorkers around all other middleware: write app = StickyWorkers(app) behind the others, instead of "
    "app.add_middleware(StickyWorkers)"
)

#: how many rounds of the event loop asyncio takes to accept the connections that wait, until `connection_made`
ROUNDS_TO_CONNECT: Final = 4


class LocalWorker:
    """This process as one of the workers.

    - `config`: the options of the group.
    - `app`: the app that it serves.
    - `lifespan`: the scope of the lifespan as it came in; None if there is no lifespan.
    - `slots`: the worker slots of the group.
    - `restart`: called if this process has to end as this worker, and to start as another.
    - `log`: called with the `Decision` of each request.

    ConfigError if this process can't be one of them.
    """

    def __init__(
        self,
        config: WorkersConfig,
        app: ASGIApp,
        lifespan: Scope | None,
        slots: WorkerSlots,
        restart: Callable[[], None],
        log: Callable[[Decision], None] | None,
    ) -> None:
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                "StickyWorkers needs asyncio, and this event loop is not asyncio's: under hypercorn, leave -k trio out"
            ) from None
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
        self._retired: asyncio.Server | None = None  # a server that peers can't find any more
        self._relisten_task: asyncio.Task[None] | None = None
        self._restart = restart
        own_app = LearningApp(app, self) if config.learns_from_bodies else app
        self.workers = join_workers(config, slots, own_app, self._build_peer, listens, log=log)
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
        try:
            self._listener, self._server = await self._open_listener()
            self._abstract = open_abstract(slot.abstract_address)
        except BaseException:
            slot.release()
            raise
        self._timer = self.loop.call_later(REPAIR_INTERVAL, self._repair_files)

    async def _open_listener(self) -> tuple[socket.socket, asyncio.Server]:
        slot = self.workers.slot
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(slot.draft_path)
            listener.setblocking(False)
            server = await self.loop.create_unix_server(lambda: PeerServer(self), sock=listener, backlog=BACKLOG)
            slot.publish()
        except BaseException:
            listener.close()
            raise
        return listener, server

    def _repair_files(self) -> None:
        """Make again what other programs have removed of this worker."""
        result = self.workers.repair_files()
        if self._retired is not None:  # its socket was removed: peers that had connected before are accepted by now
            self._retired.close()
            self._retired = None
        if result.must_restart:
            self._restart()
            return
        if result.needs_socket:
            self._relisten_task = self.loop.create_task(self._relisten())
        self._timer = self.loop.call_later(REPAIR_INTERVAL, self._repair_files)

    async def _relisten(self) -> None:
        with suppress(OSError):  # the next repair tries it again
            listener, server = await self._open_listener()
            self._retired = self._server
            self._listener, self._server = listener, server

    async def drain(self, grace: float) -> None:
        """Stop listening, and serve the forwarded requests that are in flight, for at most `grace` seconds."""
        self._timer.cancel()
        if self._relisten_task is not None:
            await self._relisten_task
        self._abstract.close()
        self.workers.slot.drain()
        # Peers find the socket no more. What they have connected before is served: asyncio would lose connections that
        # it has accepted, but not opened, when the server is closed.
        for _ in range(ROUNDS_TO_CONNECT):
            await asyncio.sleep(0)
        for server in (self._server, self._retired):
            if server is not None:
                server.close()
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
        """In a forked child: close the sockets, or peers could connect to them after the parent has ended."""
        for each in (self._listener, self._abstract):
            descriptor = each.detach()
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
