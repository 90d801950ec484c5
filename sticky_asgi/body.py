"""The only reader of a request's body. It stores what it has read, up to a limit, so that another attempt can read it
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from sticky_asgi.messages import Message, Receive
from sticky_core.decision import Decision

#: what `receive` returns again and again after a disconnect
DISCONNECT: Message = {"type": "http.disconnect"}


class Body:
    """A `receive` that stores its messages: http.request up to `limit` bytes in all, and websocket.connect.

    Messages beyond the limit are stored until the next one is requested, so that another attempt may follow one that
    fails before that.
    """

    # Defaults of the class: most requests have no body, and set none of these.
    _at = 0  # how many messages this attempt has received
    _kept = 0  # bytes of bodies in the stored messages
    _ahead_limit = 0  # so many bytes may be read ahead
    _reading = False
    _read_ended: anyio.Event | None = None  # set when the read in progress ends, for other readers
    _read_ahead_task: asyncio.Task[None] | None = None
    _on_client_gone: Callable[[], object] | None = None
    _disconnect = DISCONNECT
    client_gone = False  #: whether the client has disconnected
    client_left_first = False
    #: Whether the client waits for a 100 before it sends its body: a read would send one, so nothing is read ahead.
    awaits_continue = False
    replayable = True
    discarded = False

    def __init__(self, receive: Receive, limit: int, decision: Decision | None = None) -> None:
        """`decision`: that about the request, which holds the status of the response."""
        self._receive = receive
        self._decision = decision
        self._limit = limit
        self._messages: list[Message] = []

    async def __call__(self) -> Message:
        if not self.replayable and self._at:
            del self._messages[: self._at]
            self._at = 0
            self.discarded = True
        self.awaits_continue = False
        while self._at == len(self._messages):
            if self.client_gone:
                return self._disconnect
            if self._read_ahead_task is not None:
                await asyncio.shield(self._read_ahead_task)
            else:
                await self._read()
        message = self._messages[self._at]
        self._at += 1
        if self._kept > self._limit or message["type"] == "websocket.receive":
            self.replayable = False
        if self._on_client_gone is not None:
            self._continue_watching()
        return message

    async def peek(self, limit: int) -> bytes:
        """Return the first `limit` bytes of the body, or all of it if it is shorter. Readers receive them as well."""
        while self._kept < limit and not self.client_gone and self._has_more:
            await self._read()
        return b"".join(message.get("body", b"") for message in self._messages)[:limit]

    @property
    def _has_more(self) -> bool:
        """Whether more of the body may follow."""
        return not self._messages or (
            self._messages[-1]["type"] == "http.request" and self._messages[-1].get("more_body", False)
        )

    async def next_if_arrived(self) -> Message | None:
        """Return the next message if it has arrived, as it usually has, else None (asyncio only)."""
        if self._at == len(self._messages) and not self.client_gone:
            self._start_read_ahead()
            await asyncio.sleep(0)
        return await self() if self._at < len(self._messages) or self.client_gone else None

    async def receive_shielded(self) -> Message:
        """Return the next message. A cancellation during the wait does not reach the server's `receive` (asyncio only),
        which not all servers handle well.
        """
        if self._at == len(self._messages) and not self.client_gone:
            self.awaits_continue = False
            self._start_read_ahead()
        return await self()

    async def _read(self) -> None:
        if (
            self._reading
        ):  # an attempt that has not ended yet reads: servers do not allow two calls of `receive` at once
            if self._read_ended is None:
                self._read_ended = anyio.Event()
            return await self._read_ended.wait()
        self._reading = True
        try:
            self._store(await self._receive())
        except Exception:
            self._on_disconnect()
            raise
        finally:
            self._reading = False
            if self._read_ended is not None:
                self._read_ended.set()
                self._read_ended = None
            self._continue_watching()

    def _store(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.disconnect":
            self._on_disconnect()
        else:
            if kind == "http.request":
                self._kept += len(message.get("body", b""))
            elif kind == "websocket.disconnect":
                self._on_disconnect()
                self._disconnect = message
            self._messages.append(message)

    def _on_disconnect(self) -> None:
        self.client_gone = True
        self.client_left_first = self._decision is None or self._decision.status < 500

    def rewind(self) -> None:
        """Let the next attempt read from the beginning."""
        self._at = 0

    def watch(self, on_client_gone: Callable[[], object], *, reads_on: bool = False) -> None:
        """Call `on_client_gone` when the client disconnects while nothing else reads (asyncio only). At most one
        message that it sends before is stored for the next reader; with `reads_on`, as many as fit into the limit.
        """
        self._on_client_gone = on_client_gone
        if reads_on:
            self._ahead_limit = self._limit
        self._continue_watching()

    def unwatch(self) -> None:
        """Remove the callback of `watch`."""
        self._on_client_gone = None

    @property
    def watched(self) -> bool:
        return self._on_client_gone is not None

    def _continue_watching(self) -> None:
        on_client_gone = self._on_client_gone
        if on_client_gone is None:
            return
        if self.client_gone:
            on_client_gone()
        elif not self.awaits_continue:
            self._start_read_ahead()

    def _start_read_ahead(self) -> None:
        if self._read_ahead_task is None and not self._reading and self._may_read_ahead:
            self._read_ahead_task = asyncio.ensure_future(self._read_one_ahead())

    @property
    def _may_read_ahead(self) -> bool:
        """Whether no message is unread, or only one that only a disconnect can follow: the end of a body, or the
        beginning of a WebSocket; or more may be read ahead.
        """
        if self._at == len(self._messages) or self._kept < self._ahead_limit:
            return True
        last = self._messages[-1]
        return last["type"] == "websocket.connect" or (
            last["type"] == "http.request" and not last.get("more_body", False)
        )

    async def _read_one_ahead(self) -> None:
        """Read one message, so that a disconnect is noticed at once."""
        try:
            self._store(await self._receive())
        except Exception:
            return  # the next reader gets the exception
        finally:
            self._read_ahead_task = None
        self._continue_watching()

    async def watch_in_task(self, on_client_gone: Callable[[], object]) -> None:
        """Call `on_client_gone` when the client disconnects, as `watch` does, but on any event loop: run it as a task.
        It ends without a call when a message arrives that a reader has to receive first.
        """
        while not self.client_gone and self._may_read_ahead:
            await self._read()
        if self.client_gone:
            on_client_gone()

    def close(self) -> None:
        """Stop watching and reading ahead."""
        self._on_client_gone = None
        if self._read_ahead_task is not None:
            self._read_ahead_task.cancel()
            self._read_ahead_task = None
