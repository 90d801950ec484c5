"""Look up the owner of a key. The core's arbitration decides what to send and when to wait; this module sends and
waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from typing import TypeVar

from sticky_asgi.workers.peer import PeerApp
from sticky_core.server.server import Server
from sticky_core.workers.keys import KeyArbitration, KeyTable, Procedure, QueryPeers, Replies, WaitFor

T = TypeVar("T")


class KeyLookup:
    """Finds the owners of keys that this worker does not know. It serves `KeyTable` as a client serves a store."""

    def __init__(self, keys: KeyTable, peers: Mapping[int, PeerApp]) -> None:
        self._arbitration = KeyArbitration(keys, asyncio.Event)
        self._peers = peers
        self._claims: set[asyncio.Task[None]] = set()
        self._queries: set[asyncio.Task[str | None]] = set()

    async def execute(self, commands: Sequence[tuple[object, ...]]) -> list[object]:
        """Claim the key in each command. After that the `KeyTable` has the owners."""
        for command in commands:
            # a task of its own: a claim goes on if the request that made it is cancelled, since others may wait for it
            claim = asyncio.ensure_future(self._run(self._arbitration.claim(str(command[0]))))
            self._claims.add(claim)
            claim.add_done_callback(self._claims.discard)
            await asyncio.shield(claim)
        return [None] * len(commands)

    async def decide(self, key: str, claimant: str, silent: Container[object]) -> str:
        """As the arbiter of `key`, return its owner. `silent`: the worker slots of peers that are not queried."""
        return await self._run(self._arbitration.decide(key, claimant, silent))

    async def _run(self, procedure: Procedure[asyncio.Event, T]) -> T:
        """Perform the steps of a procedure of the core, and return its result."""
        try:
            step = next(procedure)
            while True:
                step = procedure.send(await self._perform(step))
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            procedure.close()

    async def _perform(self, step: QueryPeers | WaitFor[asyncio.Event]) -> Replies:
        match step:
            case QueryPeers(peers, request):
                return await self._query_peers(peers, request)
            case WaitFor(event):
                await event.wait()
                return ()

    async def _query_peers(self, peers: Sequence[Server], request: tuple[object, ...]) -> Replies:
        """Query all peers at the same time, and return at the first reply that names an owner."""
        queries = [asyncio.ensure_future(self._peers[peer.id].query_key(*request)) for peer in peers]
        self._queries.update(queries)
        for query in queries:
            query.add_done_callback(self._queries.discard)
        for reply in asyncio.as_completed(queries):
            owner = await reply
            if owner is not None:
                return (owner,)  # the other queries go on, so that their connections can be used again
        return ()

    async def close(self) -> None:
        """Cancel the queries that still run. The connections are the peers'."""
        for query in list(self._queries):
            query.cancel()
