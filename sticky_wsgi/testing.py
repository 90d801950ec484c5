"""A cluster of replicas of a WSGI app under test, and Werkzeug's test client to send requests to it."""

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
    """Werkzeug's client, except that it reads the whole response before it returns; `buffered=False` reads the response
    as it arrives.
    """

    def open(self, *args: Any, buffered: bool = True, **options: Any) -> TestResponse:
        return super().open(*args, buffered=buffered, **options)


class Cluster(CoreCluster[Client]):
    """Several replicas of one WSGI app, which a test can kill, drain and restart. Options and methods are those of
    `sticky_core.testing.cluster.Cluster`.
    """

    kind = "wsgi"

    @cached_property
    def app(self) -> Dispatcher:
        """The dispatcher in front of the replicas, as an app."""
        return Dispatcher(self.backend)

    def _make_killable(self, name: str, app: App) -> App:
        return KillableApp(name, app, self._begin_request)

    def _make_client(self, requests: list[RecordedRequest], **options: Any) -> Client:
        return Client(_RecordingApp(self.app, requests), **options)

    def _end_streams(self, name: str) -> None:
        """Do nothing: each stream checks at its next item whether its replica was killed."""

    def _restart_app(self, server: Server) -> None:
        self.app.replicas.build_app(server)

    def __enter__(self) -> Self:
        """Make all replicas now. RuntimeError if one of them fails to start."""
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


class KillableApp:
    """An app around a replica: once the replica is killed, new requests are refused, and requests in flight end at the
    next item of their body.
    """

    def __init__(self, name: str, app: WSGIApp, begin_request: Callable[[str], Callable[[], bool]]) -> None:
        self._name = name
        self._app = app
        self._begin_request = begin_request

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        is_alive = self._begin_request(self._name)
        body = self._app(environ, start_response)
        # a list or tuple is a complete response: there is nothing left to end
        return body if isinstance(body, (list, tuple)) else _KillableBody(self._name, body, is_alive)


class _KillableBody:
    def __init__(self, name: str, body: Iterable[bytes], is_alive: Callable[[], bool]) -> None:
        self._name = name
        self._body = body
        self._is_alive = is_alive

    def __iter__(self) -> Iterator[bytes]:
        for item in self._body:
            if not self._is_alive():
                raise ServerFailure(Failure.CLOSED, self._name)
            yield item

    def close(self) -> None:
        close = cast("Callable[[], object] | None", getattr(self._body, "close", None))
        if close is not None:
            close()


class _RecordingApp:
    """The cluster's app for one client: records the client's requests."""

    def __init__(self, app: WSGIApp, requests: list[RecordedRequest]) -> None:
        self._app = app
        self._requests = requests

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        label = f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}"
        self._requests.append(RecordedRequest(label, environ, KEY))
        return self._app(environ, start_response)
