"""What is asked of a store outside, where stick tables are shared. The core makes the commands and reads the answers;
the faces send them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

#: Seconds between two looks at whether the channel of news is alive, and how long it is believed to be after one.
HEARTBEAT_INTERVAL = 1.0
FEED_TIMEOUT = 3.0

#: the words of one command
Command = tuple[bytes | str | int | float, ...]


class Store(Protocol):
    """Who is asked: `Redis`, or whoever answers in the place of one."""

    @property
    def on_store_failure(self) -> Literal["local", "fail"]:
        """What becomes of requests while nobody answers."""
        ...


class StoreCommand(NamedTuple):
    """One command for one store."""

    store: Store
    words: Command


class StoreQuery:
    """An `Ask` on its way, and what became of it."""

    __slots__ = ("command", "reply", "sequence")

    reply: object  #: as the store gave it, or a `StoreFailure`

    def __init__(self, ask: StoreCommand, since: int) -> None:
        self.command = ask
        self.sequence = since  #: how much news there had been before


def pack_commands(commands: Iterable[Command]) -> bytes:
    """Commands as Redis reads them (RESP, arrays of bulk strings)."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)
