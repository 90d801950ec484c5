"""Send commands to stores: all commands for one store in one round trip, shared with other requests of the same moment.

Each event loop has clients of its own. A client opens connections when it sends its first command, or listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from sticky_asgi.stores.guarded import GuardedClient
from sticky_core.errors import ConfigError
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import Command, Store, StoreCommand


class StoreClient(Protocol):
    """Sends commands to one store."""

    def execute(self, commands: Sequence[Command], /) -> Awaitable[list[object]]:
        """Send commands and return the replies, in order."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class ListeningClient(Protocol):
    """A client that also receives invalidations, or sends commands in the background."""

    def listen(self) -> None:
        """Begin to receive, or to send in the background, unless another client in this process does."""
        ...


_Clients = dict[Store, StoreClient]
_clients_by_loop: dict[asyncio.AbstractEventLoop, _Clients] = {}


async def execute(commands: Sequence[StoreCommand]) -> list[object]:
    """Send commands and return the replies of the stores, in order: bytes, a number, None; or a `StoreFailure` where
    there was no reply within the store's `timeout`, and at once while its breaker is open.

    ConfigError if the event loop is not asyncio's.
    """
    clients = _clients()
    positions: dict[Store, list[int]] = {}
    for position, command in enumerate(commands):
        positions.setdefault(command.store, []).append(position)
    # the commands for all stores are sent before the first replies are awaited
    sent = [
        _client(clients, store).execute([commands[position].words for position in store_positions])
        for store, store_positions in positions.items()
    ]
    replies: list[object] = [None] * len(commands)
    for pending, store_positions in zip(sent, positions.values(), strict=True):
        for position, reply in zip(store_positions, await pending, strict=True):
            replies[position] = reply
    return replies


def listen(stores: Iterable[Store]) -> None:
    """Begin to receive invalidations before the first command. A ConfigError is ignored: the first command
    raises it."""
    try:
        clients = _clients()
        for store in stores:
            client = _client(clients, store)
            if isinstance(client, ListeningClient):
                client.listen()
    except ConfigError:
        pass


async def close(stores: Iterable[Store]) -> None:
    """Close the clients of this event loop. The next command opens new ones."""
    try:
        clients = _clients()
    except ConfigError:
        return
    for store in stores:
        client = clients.pop(store, None)
        if client is not None:
            await client.close()


def register_client(store: Store, client: StoreClient) -> None:
    """Have `client` execute the commands for `store` on this event loop: workers send theirs to each other."""
    _clients()[store] = client


def _clients() -> _Clients:
    """Return the clients of this event loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError(
            "a store needs asyncio, and this event loop is not asyncio's: under hypercorn, leave -k trio out"
        ) from None
    clients = _clients_by_loop.get(loop)
    if clients is None:
        for closed in [each for each in list(_clients_by_loop) if each.is_closed()]:
            _clients_by_loop.pop(closed, None)
        clients = _clients_by_loop[loop] = {}
    return clients


def _client(clients: _Clients, store: Store) -> StoreClient:
    client = clients.get(store)
    if client is None:
        assert isinstance(store, SharedStore)  # any other has a registered client
        client_class: Callable[[Any], StoreClient] = store.load_client("asgi")
        client = client_class(store)
        clients[store] = client = client if store.invalidates else GuardedClient(store, client)
    return client
