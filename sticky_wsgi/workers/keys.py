"""Look up the owner of a key. The core's arbitration decides what to send and when to wait; this module sends and
waits.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping, Sequence
from typing import TypeVar

from sticky_core.server.server import Server
from sticky_core.stores.store import Command
from sticky_core.workers.keys import KeyArbitration, KeyTable, Procedure, QueryPeers, Replies, WaitFor
from sticky_wsgi.workers.gunicorn import Heartbeat
from sticky_wsgi.workers.peer import PeerApp

T = TypeVar("T")


class KeyLookup:
    """Finds the owners of keys that this worker does not know. It serves `KeyTable` as a client serves a store.
    `heartbeat`: what a thread sends while it waits.
    """

    def __init__(self, keys: KeyTable, peers: Mapping[int, PeerApp], heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._arbitration = KeyArbitration(keys, threading.Event)
        self._peers = peers

    def execute(self, commands: Sequence[Command]) -> list[object]:
        """Claim the key in each command. After that the `KeyTable` has the owners."""
        for command in commands:
            self._run(self._arbitration.claim(str(command[0])))
        return [None] * len(commands)

    def decide(self, key: str, claimant: str, silent: Container[object]) -> str:
        """As the arbiter of `key`, return its owner. `silent`: the worker slots of peers that are not queried."""
        return self._run(self._arbitration.decide(key, claimant, silent))

    def _run(self, procedure: Procedure[threading.Event, T]) -> T:
        """Perform the steps of a procedure of the core, and return its result."""
        try:
            step = next(procedure)
            while True:
                step = procedure.send(self._perform(step))
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            procedure.close()

    def _perform(self, step: QueryPeers | WaitFor[threading.Event]) -> Replies:
        match step:
            case QueryPeers(peers, request):
                return self._query_peers(peers, request)
            case WaitFor(event):
                self._heartbeat.wait(event.wait)
                return ()

    def _query_peers(self, peers: Sequence[Server], request: tuple[object, ...]) -> Replies:
        """Query one peer after another, up to the first that names an owner."""
        for peer in peers:
            owner = self._peers[peer.id].query_key(*request)
            if owner is not None:
                return (owner,)
        return ()

    def close(self) -> None:
        """Nothing to close: the connections are the peers'."""
