"""Interrupt requests of an app when a server changes its state (HAProxy `on-marked-down`, `on-marked-up`), or when all
attempts of a request have taken too long (`Timeouts(total=...)`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio

from sticky_asgi.messages import ASGIApp, Schedule, Scope, find_transaction, scheduler
from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server


class InterruptibleApp:
    """An app around another that can interrupt the requests in flight (`on_marked_down`, `on_marked_up`, `total`)."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app = app
        self._server = server
        self._in_flight: dict[anyio.CancelScope, Schedule] = {}
        self._reason = ""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        schedule = scheduler()
        request = anyio.CancelScope()
        transaction = find_transaction(scope, send)
        if transaction is not None:
            transaction.cancel_at_the_end(request)
        try:
            with request:
                self._in_flight[request] = schedule
                try:
                    await self.app(scope, receive, send)
                finally:
                    del self._in_flight[request]
        except ServerFailure:
            raise
        except Exception as error:
            # after a cancellation, it is how the app has reacted to that
            if is_overdue(request):
                raise ServerFailure(Failure.TOTAL_TIMEOUT, self._server.name) from error
            if request.cancel_called:
                raise ServerFailure(Failure.SHUT, self._server.name, self._reason) from error
            raise
        if is_overdue(request):
            raise ServerFailure(Failure.TOTAL_TIMEOUT, self._server.name)
        if request.cancelled_caught:
            raise ServerFailure(Failure.SHUT, self._server.name, self._reason)

    def interrupt(self, reason: str) -> None:
        """Interrupt all requests in flight. Safe to call from any thread."""
        self._reason = reason
        for request, schedule in list(self._in_flight.items()):
            with suppress(RuntimeError):  # its event loop has just ended, and with it the request
                schedule(request.cancel)


def is_overdue(request: anyio.CancelScope) -> bool:
    """Return whether the time for all attempts was over before the response began, which lifts the deadline."""
    return request.cancel_called and anyio.current_time() >= request.deadline
