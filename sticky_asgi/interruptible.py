"""Sessions that are shut down because servers change their state (HAProxy `on-marked-down`, `on-marked-up`)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio

from sticky_asgi.messages import ASGIApp, Scope, Soon, soon_here
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server


class InterruptibleApp:
    """An app that can be left before it is through (`on_marked_down`, `on_marked_up`)."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app = app
        self._server = server
        self._open: dict[anyio.CancelScope, Soon] = {}
        self._why = ""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        soon = soon_here()
        with anyio.CancelScope() as here:
            self._open[here] = soon
            try:
                await self.app(scope, receive, send)
            finally:
                del self._open[here]
        if here.cancelled_caught:
            raise ServerFailure(Failure.SHUT, self._server.name, self._why)

    def interrupt(self, why: str) -> None:
        """End what is open, from whatever thread."""
        self._why = why
        for here, soon in list(self._open.items()):
            with suppress(RuntimeError):  # its event loop has just ended, and it with that
                soon(here.cancel)
