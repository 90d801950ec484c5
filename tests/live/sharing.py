"""A process that serves requests through one face, with a table in a store, and receives its commands as lines of JSON:
`start` first and `stop` last, for one store after the other.

Its servers are stateless apps: all processes have the same ones, as they would have the same upstreams.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from werkzeug.test import create_environ

import sticky_asgi
import sticky_wsgi
from sticky_core.clock import ManualClock
from sticky_core.samples.request import hdr
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis

T = TypeVar("T")

#: how many requests are in flight at once
CONCURRENCY = 32


def make_backend(
    url: str, face: Any, app: Any, expire: float, timeout: float, on_store_failure: Literal["local", "fail"]
) -> tuple[Any, StickTable, Redis, ManualClock]:
    clock = ManualClock()
    store = Redis(url, timeout=timeout, on_store_failure=on_store_failure)
    table = StickTable("string", expire=expire, store=store, clock=clock)
    servers = [face.Server(name, app, stateless=True) for name in ("s1", "s2", "s3")]
    return (
        face.Backend("app", servers=servers, persist=face.Stick.on(hdr("x-user"), table), clock=clock),
        table,
        store,
        clock,
    )


class AsgiProcess:
    """Requests to an ASGI dispatcher, on an event loop in a thread of its own."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.backend, self.table, self.store, self.clock = make_backend(url, sticky_asgi, self.app, **options)
        self.dispatcher = sticky_asgi.Dispatcher(self.backend)
        self.runner = asyncio.Runner()
        threading.Thread(target=self.runner.get_loop().run_forever, daemon=True).start()
        self.ending: asyncio.Future[None] | None = None
        ready = threading.Event()
        self.ended = asyncio.run_coroutine_threadsafe(self.run_lifespan(ready), self.runner.get_loop())
        ready.wait()

    async def run_lifespan(self, ready: threading.Event) -> None:
        self.ending = asyncio.get_running_loop().create_future()
        async with self.dispatcher.lifespan():
            ready.set()
            await self.ending

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.runner.get_loop()).result()

    def stop(self) -> None:
        assert self.ending is not None
        self.runner.get_loop().call_soon_threadsafe(self.ending.set_result, None)
        self.ended.result()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("the app has no lifespan")
        name = sticky_asgi.decision(scope).server or ""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    async def serve_one(self, user: str) -> str:
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"x-user", user.encode())],
            "client": ("127.0.0.1", 1),
            "server": ("app", 80),
        }
        await self.dispatcher(scope, receive, send)
        return messages[1]["body"].decode() if messages[0]["status"] == 200 else str(messages[0]["status"])

    def serve_all(self, users: Iterable[str]) -> list[str]:
        async def all_of_them() -> list[str]:
            semaphore = asyncio.Semaphore(CONCURRENCY)

            async def one(user: str) -> str:
                async with semaphore:
                    return await self.serve_one(user)

            return await asyncio.gather(*map(one, users))

        return self.run(all_of_them())


class WsgiProcess:
    """Requests to a WSGI dispatcher, in threads."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.backend, self.table, self.store, self.clock = make_backend(url, sticky_wsgi, self.app, **options)
        self.dispatcher = sticky_wsgi.Dispatcher(self.backend)
        self.threads = ThreadPoolExecutor(CONCURRENCY)

    def app(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [(sticky_wsgi.decision(environ).server or "").encode()]

    def serve_one(self, user: str) -> str:
        statuses: list[str] = []
        environ = create_environ("/", headers={"X-User": user})

        def start_response(status: str, headers: object, exc_info: object = None) -> Any:
            statuses.append(status)

        body: Any = self.dispatcher(environ, start_response)
        name = b"".join(body).decode()
        if hasattr(body, "close"):
            body.close()
        return name if statuses[0] == "200 OK" else statuses[0][:3]

    def stop(self) -> None:
        self.dispatcher.replicas.stop()

    def serve_all(self, users: Iterable[str]) -> list[str]:
        return list(self.threads.map(self.serve_one, users))


class Load:
    """Requests without a pause, until it is stopped."""

    def __init__(self, face: AsgiProcess | WsgiProcess, users: list[str]) -> None:
        self.requests = 0
        self.servers: dict[str, list[str]] = {user: [] for user in users}
        self._stopped = threading.Event()
        self._face = face
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for servers, server in zip(self.servers.values(), self._face.serve_all(self.servers), strict=True):
                if servers[-1:] != [server]:
                    servers.append(server)
            self.requests += len(self.servers)

    def stop(self) -> dict[str, list[str]]:
        self._stopped.set()
        self._thread.join()
        return self.servers


class Commands:
    """The commands, by name."""

    def __init__(self, face: type[AsgiProcess | WsgiProcess]) -> None:
        self._make = face
        self._face: Any = None
        self._load: Any = None

    def start(self, url: str, options: dict[str, Any]) -> None:
        self._face = self._make(url, options)

    def stop(self) -> None:
        self._face.stop()

    def serve(self, *users: str) -> list[str]:
        """Send a request of each user; return the servers of the responses, or statuses other than 200."""
        served: list[str] = self._face.serve_all(users)
        return served

    def peek(self, *users: str) -> list[str | None]:
        """Return the servers in fresh local copies."""
        table, now = self._face.table, self._face.clock.monotonic()
        return [table.peek(table.key(user), now) for user in users]

    def state(self, server: str, state: str) -> None:
        self._face.backend[server].state = state

    def drain(self, server: str) -> None:
        self._face.backend[server].drain(deadline=None)

    def drained(self, server: str) -> bool:
        drained: bool = self._face.backend.drained(server).wait(0)
        return drained

    def marked_servers(self) -> list[str]:
        """Return the servers that have a presence mark."""
        return sorted(self._face.table.namespace.presence.marked_at)

    def advance(self, seconds: float) -> None:
        self._face.clock.advance(seconds)

    def breaker(self) -> str:
        state: str = self._face.store.breaker.state.value
        return state

    def is_listening(self) -> bool:
        is_listening: bool = self._face.store.is_listening
        return is_listening

    def start_load(self, *users: str) -> None:
        self._load = Load(self._face, list(users))

    def requests(self) -> int:
        requests: int = self._load.requests
        return requests

    def stop_load(self) -> dict[str, list[str]]:
        servers: dict[str, list[str]] = self._load.stop()
        return servers


def main() -> None:
    commands = Commands(AsgiProcess if sys.argv[1] == "asgi" else WsgiProcess)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(getattr(commands, name)(*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
