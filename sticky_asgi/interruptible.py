"""Interrupt requests of an app when a server changes its state (HAProxy `on-marked-down`, `on-marked-up`)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio

from sticky_asgi.messages import ASGIApp, Schedule, Scope, scheduler
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server


class InterruptibleApp:
    """An app around another that can interrupt the requests in flight (`on_marked_down`, `on_marked_up`)."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app = app
        self._server = server
        self._in_flight: dict[anyio.CancelScope, Schedule] = {}
        self._reason = ""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        schedule = scheduler()
        with anyio.CancelScope() as request:
            self._in_flight[request] = schedule
            try:
                await self.app(scope, receive, send)
            finally:
                del self._in_flight[request]
        if request.cancelled_caught:
            raise ServerFailure(Failure.SHUT, self._server.name, self._reason)

    def interrupt(self, reason: str) -> None:
        """Interrupt all requests in flight. Safe to call from any thread."""
        self._reason = reason
        for request, schedule in list(self._in_flight.items()):
            with suppress(RuntimeError):  # its event loop has just ended, and with it the request
                schedule(request.cancel)
