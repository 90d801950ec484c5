"""Groups of workers over either face, behind one interface: for behaviours that are the same in both."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sticky_wsgi
from sticky_core.decision import Decision
from sticky_core.workers.backend import Workers
from tests.faces.workers import asgi, wsgi

Header = tuple[str, str]


@dataclass
class SeenRequest:
    """A request as the app of a worker saw it."""

    path: str
    query: str
    headers: dict[str, str]
    decision: Decision | None


@dataclass
class Response:
    """What the app of a worker responds with, and what the client receives."""

    status: int = 200
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str:
        return next(value for key, value in self.headers if key.lower() == name)

    @property
    def cookies(self) -> list[str]:
        return [value for name, value in self.headers if name.lower() == "set-cookie"]

    @property
    def mark(self) -> str:
        """`NAME=value` of the first cookie, as a browser sends it back."""
        return self.cookies[0].partition(";")[0]


class GroupWorker(ABC):
    """One worker of a group. Its app responds with the number of requests that it has served, or as `serve` does."""

    def __init__(self, serve: Callable[["GroupWorker", SeenRequest], Response] | None) -> None:
        self.seen: list[SeenRequest] = []
        self.serve = serve
        self._lock = threading.Lock()

    def respond(self, request: SeenRequest) -> Response:
        with self._lock:
            self.seen.append(request)
            number = len(self.seen)
        return self.serve(self, request) if self.serve is not None else Response(body=b"%d" % number)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.seen]

    @property
    @abstractmethod
    def backend(self) -> Workers: ...

    @property
    @abstractmethod
    def is_running(self) -> bool: ...

    @abstractmethod
    def request(
        self,
        path: str = "/",
        *,
        query: str = "",
        cookie: str = "",
        headers: Sequence[Header] = (),
        scheme: str = "http",
        mount: str = "",
    ) -> Response:
        """Send a request to this worker, and return the response. `mount`: what a server or app around it serves."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the worker as its server does."""

    @abstractmethod
    def kill(self) -> None:
        """End it as SIGKILL does: its connections and its lock end, its socket stays in the directory."""


class AsgiWorker(GroupWorker):
    def __init__(self, loop: asyncio.AbstractEventLoop, serve: Any, options: dict[str, Any]) -> None:
        super().__init__(serve)
        self._loop = loop
        self._worker = asgi.RunningWorker(self._app, **options)
        self._stopped = False
        self._run(self._worker.start())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(asgi.DEADLINE)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope["root_path"])
        seen = SeenRequest(path, scope["query_string"].decode(), headers, scope.get("sticky"))
        response = self.respond(seen)
        found = [(name.lower().encode(), value.encode()) for name, value in response.headers]
        await asgi.respond(send, response.body, response.status, found)

    @property
    def is_running(self) -> bool:
        return self._worker.app.workers is not None

    @property
    def backend(self) -> Workers:
        backend = self._worker.app.workers
        assert backend is not None
        return backend

    def request(
        self,
        path: str = "/",
        *,
        query: str = "",
        cookie: str = "",
        headers: Sequence[Header] = (),
        scheme: str = "http",
        mount: str = "",
    ) -> Response:
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        client = self._run(
            self._worker.request(
                path=mount + path,
                root_path=mount,
                query_string=query.encode(),
                cookie=cookie,
                headers=raw,
                scheme=scheme,
            )
        )
        found = [(name.decode(), value.decode()) for name, value in client.sent[0]["headers"]]
        return Response(client.status, found, client.body)

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._run(self._worker.stop())

    def kill(self) -> None:
        async def kill() -> None:
            await self._worker.kill()
            self.backend.slot.after_fork()
            self._worker.app._worker = None
            await asyncio.sleep(0)  # asyncio closes the transports in its next round

        self._run(kill())


class WsgiWorker(GroupWorker):
    def __init__(self, serve: Any, options: dict[str, Any]) -> None:
        super().__init__(serve)
        self._sticky = sticky_wsgi.StickyWorkers(self._app, threads=4, **options)
        self._sticky.start()
        self._server = wsgi.FakeServer(self._sticky)

    def _app(self, environ: Any, start_response: Any) -> list[bytes]:
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        seen = SeenRequest(environ["PATH_INFO"], environ["QUERY_STRING"], headers, environ.get("sticky.decision"))
        response = self.respond(seen)
        start_response(f"{response.status} Status", response.headers)
        return [response.body]

    @property
    def is_running(self) -> bool:
        return self._sticky.workers is not None

    @property
    def backend(self) -> Workers:
        backend = self._sticky.workers
        assert backend is not None
        return backend

    def request(
        self,
        path: str = "/",
        *,
        query: str = "",
        cookie: str = "",
        headers: Sequence[Header] = (),
        scheme: str = "http",
        mount: str = "",
    ) -> Response:
        variables = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
        if cookie:
            variables["HTTP_COOKIE"] = cookie
        variables["HTTP_HOST"] = "example.org"
        variables["wsgi.url_scheme"] = scheme
        response = self._server.request(path, query, SCRIPT_NAME=mount, **variables)
        return Response(int(response.status[:3]), response.headers, response.data)

    def stop(self) -> None:
        self._sticky.stop()

    def kill(self) -> None:
        worker = self._sticky._worker
        assert worker is not None
        worker.stopping = True
        worker._wake_writer.send(b"\0")
        with worker._leader_lock:
            worker._close()
        for peer in worker.peers.values():
            peer.close()
        worker.workers.slot.after_fork()
        self._sticky._worker = self._sticky._only_replicas = None
