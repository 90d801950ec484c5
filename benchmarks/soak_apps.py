"""The apps that `soak.py` runs under real servers: a dispatcher of each face, and a stateful app with several workers.

Their configuration comes from the environment: SOAK_ORIGINS ("host:port host:port ..."), SOAK_STORE (a URL),
SOAK_EVENTS (a file to which state changes of servers are appended), and SOAK_LEDGER (a file to which the stateful app
appends the ids of the requests that it executes).

Requests to `/soak/...` are commands for the dispatchers: `/soak/state` responds with what the process is like,
`/soak/admin?server=s1&state=drain` sets an admin state, `/soak/apply?weight=2&extra=1` puts another configuration in
force.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from sticky_core.backend.backend import Backend
from sticky_core.backend.change import Change
from sticky_core.backend.events import StateChange
from sticky_core.health.check import Check
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis

SECRET = "a secret of the soak and of nothing else"
COMMANDS = "/soak/"


def append(path: str) -> Callable[[str], None]:
    """Return a function that appends a line to a file, in one write, so that processes may share it."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def append_line(line: str) -> None:
        os.write(file, f"{line}\n".encode())

    return append_line


@dataclass
class Gateway:
    """The backends of a dispatcher, and the commands that change them."""

    web: Backend
    table: Backend

    @classmethod
    def make(cls) -> Gateway:
        addresses = dict(enumerate(os.environ["SOAK_ORIGINS"].split(), 1))
        timeouts = Timeouts(connect=2, server=4, queue=20)
        # s4 is added and removed by `apply`
        web = Backend(
            "web",
            [cls.server(number, address) for number, address in addresses.items() if number < 4],
            persist=Cookie("SERVERID", secret=SECRET),
            balance="leastconn",
            check=Check("/health", inter=0.5, timeout=3, rise=2, fall=2, observe="layer7", error_limit=5),
            timeouts=timeouts,
            retry_on=("conn-failure", "empty-response", "response-timeout"),
        )
        table = Backend(
            "table",
            [Server(s.name, s.target, track=f"web/{s.name}", pool_purge_delay=1) for s in web.servers],
            persist=Stick.on(hdr("x-user"), StickTable("string", expire="1h", store=Redis(os.environ["SOAK_STORE"]))),
            timeouts=timeouts,
        )
        record = append(os.environ["SOAK_EVENTS"])

        def write(change: StateChange) -> None:
            record(json.dumps([change.when, change.server, change.before, change.after, change.reason]))

        web.events(write)
        return cls(web, table)

    @staticmethod
    def server(number: int, address: str) -> Server:
        return Server(f"s{number}", f"http://{address}", maxconn=40, pool_purge_delay=1)

    @property
    def routes(self) -> dict[str, Backend]:
        return {"/table": self.table, "/": self.web}

    def command(self, name: str, query: str) -> Change | None:
        """Do what a command says; return the change that is to be waited for, if there is one."""
        options = dict(parse_qsl(query))
        if name == "admin":
            for backend in (self.web, self.table):
                if options["state"] == "drain":
                    backend[options["server"]].drain()
                else:
                    backend[options["server"]].state = AdminState(options["state"])
        elif name == "apply":
            kept = tuple(replace(each, weight=int(options["weight"])) for each in self.web.config.servers[:3])
            extra = self.server(4, os.environ["SOAK_ORIGINS"].split()[3]).config
            new = replace(self.web.config, servers=(*kept, extra) if options["extra"] == "1" else kept)
            return self.web.apply(new)
        return None

    def state(self) -> bytes:
        gc.collect()
        return json.dumps(
            {
                "pid": os.getpid(),
                "servers": {server.name: server.status for server in self.web.servers},
                "in_flight": sum(len(each.in_flight) for b in (self.web, self.table) for each in b.servers),
            }
        ).encode()


def dispatcher_asgi() -> Any:
    import sticky_asgi

    gateway = Gateway.make()
    dispatcher = sticky_asgi.StickyMiddleware(not_found, routes=gateway.routes, debug=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(COMMANDS):
            return await dispatcher(scope, receive, send)
        change = gateway.command(scope["path"].removeprefix(COMMANDS), scope["query_string"].decode())
        if change is not None:
            await change
        await respond(send, gateway.state(), [])

    return app


def dispatcher_wsgi() -> Any:
    import sticky_wsgi

    gateway = Gateway.make()
    dispatcher = sticky_wsgi.StickyMiddleware(not_found_wsgi, routes=gateway.routes, debug=True)

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith(COMMANDS):
            return dispatcher(environ, start_response)
        change = gateway.command(path.removeprefix(COMMANDS), environ["QUERY_STRING"])
        if change is not None:
            change.wait()
        body = gateway.state()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return app


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    """Serve the lifespan; every path has a route."""
    assert scope["type"] == "lifespan"
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def not_found_wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Length", "0")])
    return []


async def respond(send: Any, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    head = [(b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


class Counts:
    """A stateful app without any middleware: how many requests of each session this process has served."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._record = append(os.environ["SOAK_LEDGER"])

    def serve(self, request_id: str, session: str) -> bytes:
        self._record(request_id)
        with self._lock:
            count = self._counts[session] = self._counts.get(session, 0) + 1
        return json.dumps({"pid": os.getpid(), "count": count, "id": request_id}).encode()


def workers_asgi() -> Any:
    import sticky_asgi

    counts = Counts()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await not_found(scope, receive, send)
        headers = dict(scope["headers"])
        while (await receive()).get("more_body", False):
            pass
        await asyncio.sleep(0.005)
        await respond(send, counts.serve(headers[b"x-soak-id"].decode(), headers[b"x-session"].decode()), [])

    return sticky_asgi.StickyWorkers(app, secret=SECRET)


def workers_wsgi() -> Any:
    import sticky_wsgi

    counts = Counts()

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        body = counts.serve(environ["HTTP_X_SOAK_ID"], environ["HTTP_X_SESSION"])
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return sticky_wsgi.StickyWorkers(app, secret=SECRET)
