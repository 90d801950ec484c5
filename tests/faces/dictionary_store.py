"""A store of another kind than Redis, as an application could have one: a dictionary in this process that any number of
backends share. It sends no invalidations, and its clients only execute commands.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sticky_core.clock import ManualClock
from sticky_core.stores.namespace import TableNamespace
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import Command, StoreCommand


class DictionaryServer:
    """The entries, and what a test can do to them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.is_down = False
        self.hangs = False
        #: makes what clients return of the replies, and of the names of their commands
        self.returned: Callable[[Sequence[str], list[object]], Any] = lambda names, replies: replies
        self.commands: list[str] = []  #: the names of those executed for entries
        self.marked = threading.Event()  #: set when a presence mark is
        self._entries: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def execute(self, commands: Sequence[Command]) -> Any:
        if self.is_down:
            raise ConnectionRefusedError("it is down")
        with self._lock:
            return self.returned([str(each[0]) for each in commands], [self._execute(*each) for each in commands])

    def keep(self, text: str) -> None:
        """Keep `text` in all entries."""
        self._entries = {key: (text, until) for key, (_, until) in self._entries.items()}

    def _execute(self, name: Any, key: Any, expire: Any, *texts: Any) -> str | None:
        kept, until = self._entries.get(key, (None, 0.0))
        kept = kept if self.clock.monotonic() < until else None
        if "mark" not in name:
            self.commands.append(name)
        reply: str | None
        match name, kept, *texts:
            case "get mark" | "recall", _:
                after = reply = kept
            case "reserve" | "set mark", _, text:
                after, reply = kept or text, kept
                if name == "set mark":
                    self.marked.set()
            case "move", _, previous, text:
                after = reply = text if kept in (None, previous) else kept
            case "put", _, text:
                after = reply = text
            case "touch", _, text:
                after = reply = kept or text
            case "forget", _, text:
                after = reply = None if kept == text else kept
            case _:
                raise AssertionError(name)
        if after is None:
            self._entries.pop(key, None)
        elif name != "get mark":
            self._entries[key] = after, self.clock.monotonic() + expire
        return reply


class DictionaryStore(SharedStore):
    """The config that users write."""

    clients = {  # noqa: RUF012 - nothing changes it
        "asgi": "tests.faces.dictionary_store:AsgiDictionaryClient",
        "wsgi": "tests.faces.dictionary_store:WsgiDictionaryClient",
    }

    def __init__(self, server: DictionaryServer, **options: Any) -> None:
        super().__init__("dictionary", clock=server.clock, **options)
        self.server = server

    def namespace(self, name: str, expire: float | None) -> TableNamespace:
        return self._register(DictionaryNamespace(self, name, expire))


class DictionaryNamespace(TableNamespace):
    def _command(self, name: str, digest: str, *texts: str) -> StoreCommand:
        return StoreCommand(self.store, (name, f"{self.name}:{digest}", self.expire, *texts))

    def recall(self, digest: str) -> StoreCommand:
        return self._command("recall", digest)

    def reserve(self, digest: str, text: str) -> StoreCommand:
        return self._command("reserve", digest, text)

    def move(self, digest: str, previous: str, text: str) -> StoreCommand:
        return self._command("move", digest, previous, text)

    def put(self, digest: str, text: str) -> StoreCommand:
        return self._command("put", digest, text)

    def touch(self, digest: str, text: str) -> StoreCommand:
        return self._command("touch", digest, text)

    def forget(self, digest: str, text: str) -> StoreCommand:
        return self._command("forget", digest, text)

    def set_mark(self, server: str, expire: float) -> Command:
        return ("set mark", f"{self.name}:mark:{server}", expire, "1")

    def get_mark(self, server: str) -> Command:
        return ("get mark", f"{self.name}:mark:{server}", 0.0)


class AsgiDictionaryClient:
    def __init__(self, store: DictionaryStore) -> None:
        self._server = store.server

    async def execute(self, commands: Sequence[Command]) -> list[object]:
        if self._server.hangs:
            await asyncio.Event().wait()
        replies: list[object] = self._server.execute(commands)
        await asyncio.sleep(0)
        return replies

    async def close(self) -> None:
        """There is nothing to close."""


class WsgiDictionaryClient:
    def __init__(self, store: DictionaryStore) -> None:
        self._server = store.server

    def execute(self, commands: Sequence[Command]) -> list[object]:
        if self._server.hangs:
            raise TimeoutError("it waited for as long as the store's timeout")
        replies: list[object] = self._server.execute(commands)
        return replies

    def close(self) -> None:
        """There is nothing to close."""
