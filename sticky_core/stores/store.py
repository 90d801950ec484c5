"""Commands for stores that processes and hosts share, as values: the core makes them and reads the replies, a client in
each face sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from sticky_core.errors import StoreFailure

#: Seconds between two heartbeats: of a channel of invalidations, and of the commands that run in the background.
HEARTBEAT_INTERVAL = 1.0
#: The reply to a heartbeat proves the channel alive for this many seconds from when the heartbeat was sent.
FEED_TIMEOUT = 3.0

#: The words of one command. Only the store's own classes know what they mean.
Command = tuple[bytes | str | int | float, ...]


class Store(Protocol):
    """Where a command can be sent: a `SharedStore`, or the keys that workers share without one."""

    @property
    def on_store_failure(self) -> Literal["local", "fail"]:
        """How requests continue while the store does not reply."""
        ...

    def read_reply(self, reply: object) -> str | StoreFailure | None:
        """Return the text in the reply to a command for an entry; None: no text is kept. A reply that is neither is a
        failure of the store.
        """
        ...


class StoreCommand(NamedTuple):
    """One command for one store."""

    store: Store
    words: Command


class StoreQuery:
    """A command that is sent for a request, and its reply."""

    __slots__ = ("command", "reply", "sequence")

    reply: str | StoreFailure | None  #: the text that the store keeps, or None if it keeps none

    def __init__(self, command: StoreCommand, sequence: int) -> None:
        self.command = command
        self.sequence = sequence  #: the number of the latest invalidation received before the command was sent

    def set_reply(self, reply: object) -> None:
        """Take the reply as the client of the store returned it, whatever it is."""
        self.reply = self.command.store.read_reply(reply)


class BackgroundCommand(NamedTuple):
    """A command that no request waits for."""

    command: Command
    on_reply: Callable[[object], None]  #: called with the reply, or a `StoreFailure`
