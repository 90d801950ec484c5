"""What a client of a store without invalidations needs: circuit breaker, and commands in the background."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from sticky_core.errors import StoreFailure
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import HEARTBEAT_INTERVAL, Command


class BareClient(Protocol):
    """Only sends commands, from any thread, and waits for replies no longer than the store's `timeout`. It may raise
    any exception.
    """

    def execute(self, commands: Sequence[Command], /) -> list[object]: ...
    def close(self) -> None: ...


class GuardedClient:
    """A client around a `BareClient`, in one process."""

    def __init__(self, store: SharedStore, client: BareClient) -> None:
        self._store = store
        self._client = client
        self._now = store.clock.monotonic
        self._closed = threading.Event()
        self._background: threading.Thread | None = None

    def listen(self) -> None:
        """Begin to send commands in the background, unless another client in this process does."""
        if self._store.listener is None and self._store.acquire_listener(self):
            name = f"background commands of {self._store.name}"
            self._background = threading.Thread(target=self._run_background_commands, name=name, daemon=True)
            self._background.start()

    def execute(self, commands: Sequence[Command]) -> list[object]:
        """Send commands and return the replies, in order, or as many failures."""
        store, breaker = self._store, self._store.breaker
        self.listen()
        if not breaker.allows(self._now()):
            return [store.failure()] * len(commands)
        try:
            replies = self._client.execute(commands)
            store.count_replies(replies, len(commands))
        except StoreFailure as error:
            failure = error
        except Exception as error:
            failure = StoreFailure(store.name, str(error) or type(error).__name__)
        else:
            breaker.record_success(self._now())
            return replies
        breaker.record_failure(self._now(), failure.detail)
        return [failure] * len(commands)

    def _run_background_commands(self) -> None:
        store = self._store
        try:
            while not self._closed.is_set():
                commands = store.background_commands(self._now())
                if commands:
                    replies = self.execute([each.command for each in commands])
                    for command, reply in zip(commands, replies, strict=True):
                        command.on_reply(reply)
                self._closed.wait(HEARTBEAT_INTERVAL)
        finally:
            store.release_listener(self)

    def close(self) -> None:
        self._closed.set()
        background, self._background = self._background, None
        if background is not None and background is not threading.current_thread():
            background.join()
        self._client.close()
