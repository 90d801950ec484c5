"""Interrupt requests of an app when a server changes its state (HAProxy `on-marked-down`, `on-marked-up`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server
from sticky_wsgi.messages import Environ, StartResponse, WSGIApp


class InterruptibleApp:
    """An app around another that can interrupt the requests in flight (`on_marked_down`, `on_marked_up`).

    WSGI can't interrupt a call: a request to an app in this process ends at the next item of its body. A request to
    an upstream also ends while it waits for the upstream.
    """

    def __init__(self, app: WSGIApp, server: Server) -> None:
        self.app = app
        self._server = server
        self._interrupts = 0  # how often requests were interrupted
        self._reason = ""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        interrupts = self._interrupts

        def raise_if_interrupted() -> None:
            if self._interrupts != interrupts:
                raise ServerFailure(Failure.SHUT, self._server.name, self._reason)

        if isinstance(self._server.config.target, str):
            from sticky_wsgi.clients import disconnect_check

            client_gone = disconnect_check(environ)

            def check_both() -> bool:
                raise_if_interrupted()
                return client_gone()

            # `disconnect_check` looks up this key first, so that an upstream's connection calls this function ten times
            # a second while it waits.
            environ["waitress.client_disconnected"] = check_both
        body = self.app(environ, start_response)
        return body if isinstance(body, (list, tuple)) else _InterruptibleBody(body, raise_if_interrupted)

    def interrupt(self, reason: str) -> None:
        """Interrupt all requests in flight. Safe to call from any thread."""
        self._reason = reason
        self._interrupts += 1


class _InterruptibleBody:
    def __init__(self, body: Iterable[bytes], raise_if_interrupted: Callable[[], None]) -> None:
        self._body = body
        self._raise_if_interrupted = raise_if_interrupted

    def __iter__(self) -> Any:
        for item in self._body:
            self._raise_if_interrupted()
            yield item

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
