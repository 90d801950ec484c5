"""A process that serves one face over a table in a store, and is told what to do in lines of JSON: first of all to
`begin`, and then to `end`, with this store and that.

Its servers are apps that have no memory: all processes have the same ones, as they would have the same upstreams.
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

#: how many requests are under way at once
ABREAST = 32


def backend(
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


class Asgi:
    """Requests to an ASGI dispatcher, on an event loop in a thread of its own."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.backend, self.table, self.store, self.clock = backend(url, sticky_asgi, self.app, **options)
        self.dispatcher = sticky_asgi.Dispatcher(self.backend)
        self.runner = asyncio.Runner()
        threading.Thread(target=self.runner.get_loop().run_forever, daemon=True).start()
        self.ending: asyncio.Future[None] | None = None
        begun = threading.Event()
        self.ended = asyncio.run_coroutine_threadsafe(self.live(begun), self.runner.get_loop())
        begun.wait()

    async def live(self, begun: threading.Event) -> None:
        self.ending = asyncio.get_running_loop().create_future()
        async with self.dispatcher.lifespan():
            begun.set()
            await self.ending

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.runner.get_loop()).result()

    def end(self) -> None:
        assert self.ending is not None
        self.runner.get_loop().call_soon_threadsafe(self.ending.set_result, None)
        self.ended.result()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("there is none")
        name = sticky_asgi.decision(scope).server or ""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    async def visit(self, user: str) -> str:
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            said.append(message)

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
        return said[1]["body"].decode() if said[0]["status"] == 200 else str(said[0]["status"])

    def visits(self, users: Iterable[str]) -> list[str]:
        async def all_of_them() -> list[str]:
            turn = asyncio.Semaphore(ABREAST)

            async def one(user: str) -> str:
                async with turn:
                    return await self.visit(user)

            return await asyncio.gather(*map(one, users))

        return self.run(all_of_them())


class Wsgi:
    """Requests to a WSGI dispatcher, in threads."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.backend, self.table, self.store, self.clock = backend(url, sticky_wsgi, self.app, **options)
        self.dispatcher = sticky_wsgi.Dispatcher(self.backend)
        self.threads = ThreadPoolExecutor(ABREAST)

    def app(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [(sticky_wsgi.decision(environ).server or "").encode()]

    def visit(self, user: str) -> str:
        said: list[str] = []
        environ = create_environ("/", headers={"X-User": user})

        def start_response(status: str, headers: object, exc_info: object = None) -> Any:
            said.append(status)

        body: Any = self.dispatcher(environ, start_response)
        name = b"".join(body).decode()
        if hasattr(body, "close"):
            body.close()
        return name if said[0] == "200 OK" else said[0][:3]

    def end(self) -> None:
        self.dispatcher.replicas.stop()

    def visits(self, users: Iterable[str]) -> list[str]:
        return list(self.threads.map(self.visit, users))


class Load:
    """Requests without a pause, until it is enough."""

    def __init__(self, face: Asgi | Wsgi, users: list[str]) -> None:
        self.requests = 0
        self.homes: dict[str, list[str]] = {user: [] for user in users}
        self._enough = threading.Event()
        self._face = face
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.is_set():
            for homes, server in zip(self.homes.values(), self._face.visits(self.homes), strict=True):
                if homes[-1:] != [server]:
                    homes.append(server)
            self.requests += len(self.homes)

    def end(self) -> dict[str, list[str]]:
        self._enough.set()
        self._thread.join()
        return self.homes


class Told:
    """What it is told to do, by name."""

    def __init__(self, face: type[Asgi | Wsgi]) -> None:
        self._make = face
        self._face: Any = None
        self._load: Any = None

    def begin(self, url: str, options: dict[str, Any]) -> None:
        self._face = self._make(url, options)

    def end(self) -> None:
        self._face.end()

    def visit(self, *users: str) -> list[str]:
        """Who has served them, or the status of what they got else."""
        visits: list[str] = self._face.visits(users)
        return visits

    def known(self, *users: str) -> list[str | None]:
        """Whose they are, as far as the near copy knows and believes."""
        table, now = self._face.table, self._face.clock.monotonic()
        return [table.peek(table.key(user), now) for user in users]

    def state(self, server: str, state: str) -> None:
        self._face.backend[server].state = state

    def drain(self, server: str) -> None:
        self._face.backend[server].drain(deadline=None)

    def drained(self, server: str) -> bool:
        drained: bool = self._face.backend.drained(server).wait(0)
        return drained

    def marked(self) -> list[str]:
        """The servers of which the store was told that they have clients."""
        return sorted(self._face.table.namespace.presence.marked_at)

    def advance(self, seconds: float) -> None:
        self._face.clock.advance(seconds)

    def breaker(self) -> str:
        state: str = self._face.store.breaker.state.value
        return state

    def listens(self) -> bool:
        heard_of: bool = self._face.store.is_listening
        return heard_of

    def load(self, *users: str) -> None:
        self._load = Load(self._face, list(users))

    def requests(self) -> int:
        requests: int = self._load.requests
        return requests

    def enough(self) -> dict[str, list[str]]:
        homes: dict[str, list[str]] = self._load.end()
        return homes


def main() -> None:
    told = Told(Asgi if sys.argv[1] == "asgi" else Wsgi)
    for line in sys.stdin:
        what, *words = json.loads(line)
        sys.stdout.write(json.dumps(getattr(told, what)(*words)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
