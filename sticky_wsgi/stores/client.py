"""Send commands to stores: all commands for one store in one round trip.

Each process has clients of its own. A client opens connections when it sends its first command, or listens.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from sticky_core.errors import ConfigError
from sticky_core.fork import register
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import Command, Store, StoreCommand
from sticky_wsgi.stores.guarded import GuardedClient


class StoreClient(Protocol):
    """Sends commands to one store, from any thread."""

    def execute(self, commands: Sequence[Command], /) -> list[object]:
        """Send commands and return the replies, in order."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class ListeningClient(Protocol):
    """A client that also receives invalidations, or sends commands in the background."""

    def listen(self) -> None:
        """Begin to receive, or to send in the background, unless another client in this process does."""
        ...


def execute(commands: Sequence[StoreCommand]) -> list[object]:
    """Send commands and return the replies of the stores, in order: bytes, a number, None; or a `StoreFailure` where
    there was no reply within the store's `timeout`, and at once while its breaker is open.
    """
    positions: dict[Store, list[int]] = {}
    for position, command in enumerate(commands):
        positions.setdefault(command.store, []).append(position)
    replies: list[object] = [None] * len(commands)
    for store, store_positions in positions.items():
        received = _clients.client(store).execute([commands[position].words for position in store_positions])
        for position, reply in zip(store_positions, received, strict=True):
            replies[position] = reply
    return replies


def listen(stores: Iterable[Store]) -> None:
    """Begin to receive invalidations before the first command. A ConfigError is ignored: the first command
    raises it."""
    try:
        for store in stores:
            client = _clients.client(store)
            if isinstance(client, ListeningClient):
                client.listen()
    except ConfigError:
        pass


def close(stores: Iterable[Store]) -> None:
    """Close the clients of this process. The next command opens new ones."""
    for store in stores:
        client = _clients.by_store.pop(store, None)
        if client is not None and os.getpid() == _clients.pid:  # else its locks and connections are the parent's
            client.close()


def register_client(store: Store, client: StoreClient) -> None:
    """Have `client` execute the commands for `store` in this process: workers send theirs to each other."""
    _clients.by_store[store] = client


class _Clients:
    """The clients of this process."""

    def __init__(self) -> None:
        self.by_store: dict[Store, StoreClient] = {}
        self._lock = threading.Lock()
        self.pid = os.getpid()
        register(self)

    def client(self, store: Store) -> StoreClient:
        client = self.by_store.get(store)
        if client is None:
            assert isinstance(store, SharedStore)  # any other has a registered client
            client_class: Callable[[Any], StoreClient] = store.load_client("wsgi")
            with self._lock:
                client = self.by_store.get(store)
                if client is None:
                    client = client_class(store)
                    self.by_store[store] = client = client if store.invalidates else GuardedClient(store, client)
        return client

    def after_fork(self) -> None:
        """Forget the parent's clients: their connections and threads are not the child's. redis-py drops a parent's
        connection without a message to the server.
        """
        self._lock = threading.Lock()
        self.pid = os.getpid()
        self.by_store = {}


_clients = _Clients()


def _close_all() -> None:
    close(list(_clients.by_store))


atexit.register(_close_all)
