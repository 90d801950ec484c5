"""Sessions that are shut down because servers change their state (HAProxy `on-marked-down`, `on-marked-up`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server
from sticky_wsgi.messages import Environ, StartResponse, WSGIApp


class InterruptibleApp:
    """An app that can be left before it is through (`on_marked_down`, `on_marked_up`).

    As far as WSGI lets it: an app in this process is cut off at its next item; an upstream also while we wait for it.
    """

    def __init__(self, app: WSGIApp, server: Server) -> None:
        self.app = app
        self._server = server
        self._ends = 0
        self._why = ""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        ends = self._ends

        def look() -> None:
            if self._ends != ends:
                raise ServerFailure(Failure.SHUT, self._server.name, self._why)

        if isinstance(self._server.config.target, str):
            from sticky_wsgi.clients import has_left

            left = has_left(environ)

            def looks() -> bool:
                look()
                return left()

            # the word that has_left asks first: whoever waits for the upstream looks at us as well, ten times a second
            environ["waitress.client_disconnected"] = looks
        body = self.app(environ, start_response)
        return body if isinstance(body, (list, tuple)) else _Cut(body, look)

    def interrupt(self, why: str) -> None:
        """End what is open, from whatever thread."""
        self._why = why
        self._ends += 1


class _Cut:
    def __init__(self, body: Iterable[bytes], look: Callable[[], None]) -> None:
        self._body = body
        self._look = look

    def __iter__(self) -> Any:
        for item in self._body:
            self._look()
            yield item

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
