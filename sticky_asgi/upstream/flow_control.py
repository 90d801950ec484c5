"""Flow control of a connection: its writer waits while the other end does not read."""

from __future__ import annotations

import asyncio


class FlowControlProtocol(asyncio.Protocol):
    """A protocol that lets its writer wait while the transport's write buffer is full."""

    __slots__ = ("writable",)

    def __init__(self) -> None:
        #: what to wait for before more is written; None: nothing
        self.writable: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        self.writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable = self.writable
        self.writable = None
        if writable is not None and not writable.done():
            writable.set_result(None)
