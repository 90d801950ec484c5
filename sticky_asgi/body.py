"""The one reader of what a client sends: every attempt reads from it, and what it has read can be told again, up to a
limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from sticky_asgi.messages import Message, Receive

#: what `receive` says for ever after
GONE: Message = {"type": "http.disconnect"}


class Body:
    """A `receive` that remembers: http.request messages up to `limit` bytes in all, and websocket.connect.

    What goes beyond the limit is kept until more is asked for, so that who gives up before may be followed by another.
    """

    # Most requests have no body, and nobody asks for what is not set here.
    _at = 0  # how many messages this attempt has been told
    _kept = 0
    _reading = False
    _others: anyio.Event | None = None  # what they wait for who would read at the same time
    _ahead: asyncio.Task[None] | None = None
    _on_gone: Callable[[], object] | None = None
    _farewell = GONE
    gone = False  #: whether the client has left
    #: Whether the client waits to be asked for its body, so that nobody is to ask by the way.
    silent = False
    replayable = True
    discarded = False

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._told: list[Message] = []

    async def __call__(self) -> Message:
        if not self.replayable and self._at:
            del self._told[: self._at]
            self._at = 0
            self.discarded = True
        self.silent = False
        while self._at == len(self._told):
            if self.gone:
                return self._farewell
            if self._ahead is not None:
                await asyncio.shield(self._ahead)
            else:
                await self._read()
        message = self._told[self._at]
        self._at += 1
        if self._kept > self._limit or message["type"] == "websocket.receive":
            self.replayable = False
        if self._on_gone is not None:
            self._look_on()
        return message

    async def peek(self, limit: int) -> bytes:
        """The first `limit` bytes of the body, or all of it if there are less. Who reads is told them as well."""
        while self._kept < limit and not self.gone and self._goes_on:
            await self._read()
        return b"".join(message.get("body", b"") for message in self._told)[:limit]

    @property
    def _goes_on(self) -> bool:
        """Whether there is more of the body to come."""
        return not self._told or (self._told[-1]["type"] == "http.request" and self._told[-1].get("more_body", False))

    async def at_once(self) -> Message | None:
        """The next message if it is there already, as it usually is (asyncio only)."""
        if self._at == len(self._told) and not self.gone:
            self._look_ahead()
            await asyncio.sleep(0)
        return await self() if self._at < len(self._told) or self.gone else None

    async def unhurt(self) -> Message:
        """The next message; who is cancelled while it waits leaves the server's `receive` alone (asyncio only): not all
        servers take that well.
        """
        if self._at == len(self._told) and not self.gone:
            self.silent = False
            self._look_ahead()
        return await self()

    async def _read(self) -> None:
        if self._reading:  # by an attempt that is not quite over: servers are not made for two at once
            if self._others is None:
                self._others = anyio.Event()
            return await self._others.wait()
        self._reading = True
        try:
            self._came(await self._receive())
        finally:
            self._reading = False
            if self._others is not None:
                self._others.set()
                self._others = None
            self._look_on()

    def _came(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.disconnect":
            self.gone = True
        else:
            if kind == "http.request":
                self._kept += len(message.get("body", b""))
            elif kind == "websocket.disconnect":
                self.gone = True
                self._farewell = message
            self._told.append(message)

    def rewind(self) -> None:
        """Another attempt begins: it is told everything again."""
        self._at = 0

    def watch(self, on_gone: Callable[[], object]) -> None:
        """Have `on_gone` called when the client leaves, while nobody reads (asyncio only). What it sends before is
        kept for who does, one message of it.
        """
        self._on_gone = on_gone
        self._look_on()

    def unwatch(self) -> None:
        """Nobody wants to be called any more."""
        self._on_gone = None

    @property
    def watched(self) -> bool:
        return self._on_gone is not None

    def _look_on(self) -> None:
        on_gone = self._on_gone
        if on_gone is None:
            return
        if self.gone:
            on_gone()
        elif not self.silent:
            self._look_ahead()

    def _look_ahead(self) -> None:
        if self._ahead is None and not self._reading and self._asks_for_more:
            self._ahead = asyncio.ensure_future(self._read_ahead())

    @property
    def _asks_for_more(self) -> bool:
        """Whether there is nothing unread but, at most, that behind which only the client's leave can come: the end of
        a body, or the beginning of a WebSocket.
        """
        if self._at == len(self._told):
            return True
        last = self._told[-1]
        return last["type"] == "websocket.connect" or (
            last["type"] == "http.request" and not last.get("more_body", False)
        )

    async def _read_ahead(self) -> None:
        """One message, so that whoever waits for it hears of it at once."""
        try:
            self._came(await self._receive())
        except Exception:
            return  # whoever reads will meet it
        finally:
            self._ahead = None
        self._look_on()

    async def until_gone(self, on_gone: Callable[[], object]) -> None:
        """The same as `watch` for who has a task to spare."""
        while not self.gone and self._asks_for_more:
            await self._read()
        if self.gone:
            on_gone()

    def close(self) -> None:
        """Nobody will read any more."""
        self._on_gone = None
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
