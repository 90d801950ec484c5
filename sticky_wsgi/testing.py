"""A cluster of replicas of a WSGI app under test, and Werkzeug's test client to visit it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Self, cast

from werkzeug.test import Client as WerkzeugClient
from werkzeug.test import TestResponse

from sticky_core.errors import Failure, ServerFailure
from sticky_core.server.server import Server
from sticky_core.target import App
from sticky_core.testing.cluster import Cluster as CoreCluster
from sticky_core.testing.cluster import ClusterFactory, RecordedRequest
from sticky_wsgi.messages import KEY, Environ, StartResponse, WSGIApp
from sticky_wsgi.middleware import Dispatcher

__all__ = ["Cluster", "ClusterFactory"]


class Client(WerkzeugClient):
    """Werkzeug's client, but that a request is over when its answer is there; `buffered=False` reads the answer as it
    comes.
    """

    def open(self, *args: Any, buffered: bool = True, **options: Any) -> TestResponse:
        return super().open(*args, buffered=buffered, **options)


class Cluster(CoreCluster[Client]):
    """Several replicas of one WSGI app, to be killed and drained at will. Its words are those of
    `sticky_core.testing.cluster.Cluster`.
    """

    kind = "wsgi"

    @cached_property
    def app(self) -> Dispatcher:
        """The cluster as an app."""
        return Dispatcher(self.backend)

    def _mortal(self, name: str, app: App) -> App:
        return Mortal(name, app, self._alive)

    def _client(self, visits: list[RecordedRequest], **options: Any) -> Client:
        return Client(_Visited(self.app, visits), **options)

    def _end_streams(self, name: str) -> None:
        """They end by themselves: an app that yields finds its replica dead."""

    def _begin_anew(self, server: Server) -> None:
        self.app.replicas.build_app(server)

    def __enter__(self) -> Self:
        """Make all replicas now. RuntimeError if one can't be made."""
        replicas = self.app.replicas
        for server in self.backend.servers:
            try:
                replicas.build_app(server)
            except Exception as error:
                replicas.stop()
                raise RuntimeError(f"replica {server.name} failed to start: {type(error).__name__}: {error}") from error
        replicas.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.app.replicas.stop()


class Mortal:
    """An app that dies with its replica: it refuses what comes, and what it has open ends with its next item."""

    def __init__(self, name: str, app: WSGIApp, alive: Callable[[str], Callable[[], bool]]) -> None:
        self._name = name
        self._app = app
        self._alive = alive

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        alive = self._alive(self._name)
        body = self._app(environ, start_response)
        # what is whole has been answered; what is not can be cut
        return body if isinstance(body, (list, tuple)) else _Cut(self._name, body, alive)


class _Cut:
    def __init__(self, name: str, body: Iterable[bytes], alive: Callable[[], bool]) -> None:
        self._name = name
        self._body = body
        self._alive = alive

    def __iter__(self) -> Iterator[bytes]:
        for item in self._body:
            if not self._alive():
                raise ServerFailure(Failure.CLOSED, self._name)
            yield item

    def close(self) -> None:
        close = cast("Callable[[], object] | None", getattr(self._body, "close", None))
        if close is not None:
            close()


class _Visited:
    """The cluster's app as one client sees it."""

    def __init__(self, app: WSGIApp, visits: list[RecordedRequest]) -> None:
        self._app = app
        self._visits = visits

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        label = f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}"
        self._visits.append(RecordedRequest(label, environ, KEY))
        return self._app(environ, start_response)
