"""What a client of a store without invalidations needs: circuit breaker, timeout, and commands in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextvars import Context
from typing import Protocol

from sticky_core.errors import StoreFailure
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import HEARTBEAT_INTERVAL, Command


class BareClient(Protocol):
    """Only sends commands. It may raise any exception."""

    def execute(self, commands: Sequence[Command], /) -> Awaitable[list[object]]: ...
    async def close(self) -> None: ...


class GuardedClient:
    """A client around a `BareClient`, on one event loop."""

    def __init__(self, store: SharedStore, client: BareClient) -> None:
        self._store = store
        self._client = client
        self._now = store.clock.monotonic
        self._loop = asyncio.get_running_loop()
        self._background: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Begin to send commands in the background, unless another client in this process does."""
        if self._store.listener is None and self._store.acquire_listener(self):
            self._background = self._loop.create_task(self._run_background_commands(), context=Context())

    async def execute(self, commands: Sequence[Command]) -> list[object]:
        """Send commands and return the replies, in order, or as many failures."""
        store, breaker = self._store, self._store.breaker
        self.listen()
        if not breaker.allows(self._now()):
            return [store.failure()] * len(commands)
        try:
            async with asyncio.timeout(store.timeout):
                replies = await self._client.execute(commands)
            store.count_replies(replies, len(commands))
        except TimeoutError:
            failure = StoreFailure(store.name, f"no reply in {store.timeout:g} s")
        except StoreFailure as error:
            failure = error
        except Exception as error:
            failure = StoreFailure(store.name, str(error) or type(error).__name__)
        else:
            breaker.record_success(self._now())
            return replies
        breaker.record_failure(self._now(), failure.detail)
        return [failure] * len(commands)

    async def _run_background_commands(self) -> None:
        store = self._store
        try:
            while True:
                commands = store.background_commands(self._now())
                if commands:
                    replies = await self.execute([each.command for each in commands])
                    for command, reply in zip(commands, replies, strict=True):
                        command.on_reply(reply)
                await asyncio.sleep(HEARTBEAT_INTERVAL)
        finally:
            store.release_listener(self)

    async def close(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            background.cancel()
            await asyncio.wait([background])
        await self._client.close()
