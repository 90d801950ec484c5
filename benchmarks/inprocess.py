"""Compare what the dispatcher and the middleware add to a request in process with well-known middlewares.

    python benchmarks/inprocess.py

Each contender wraps the same app, which responds at once; the time of the bare app is subtracted. The contenders run in
turns, and medians are shown: on a shared machine the ratios are stable, while the microseconds vary. Every request is
built from scratch with the cookie of one of many clients, as a server builds it; counters and a log hook are on.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import statistics
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Mount, Router
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import sticky_asgi
import sticky_wsgi
from sticky_core.backend.backend import Backend
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples.request import cook
from sticky_core.server.server import Server

SECRET = "a secret for benchmarks and nothing else"
PREFIX, PATH = "/shop", "/shop/cart/items"
SERVERS = 10
ACCEPTED: list[Persist] = [
    Cookie("SERVERID", secret="the secret before that one"),
    Cookie("SRV", signed=False),
    NginxCookie("srv_id"),
    Route(cook("JSESSIONID")),
]

ASGI_HEADERS = [
    (b"host", b"shop.example"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"text/html,application/xhtml+xml"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
]


@dataclass
class Contender:
    """An app to call, and the cookies of its clients, one for each request of a round."""

    name: str
    app: Any
    cookies: list[str | None]
    changing: bool = False
    path: str = PATH


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def cart_app(scope: Any, receive: Any, send: Any) -> None:
    scope["session"]["cart"] = ["tea"]
    await asgi_app(scope, receive, send)


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def backend(app: Any, persist: Persist) -> Backend:
    servers = [Server(f"s{number}", app) for number in range(1, SERVERS + 1)]
    return Backend("shop", servers, persist=persist, log=lambda decision: None)


def insert(**options: Any) -> Cookie:
    return Cookie("SERVERID", secret=SECRET, **options)


class ASGI:
    """Calls contenders as an ASGI server does, and makes their clients' cookies."""

    yardstick = "Router + Mount"
    bar = 1.0

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def session_app(self, scope: Any, receive: Any, send: Any) -> None:
        """Start a session for a request without a cookie."""
        if any(name == b"cookie" for name, _ in scope["headers"]):
            await asgi_app(scope, receive, send)
        else:
            headers = [(b"set-cookie", b"JSESSIONID=5f1c7e; Path=/")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok"})

    async def receive(self) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        pass

    async def record(self, message: Any) -> None:
        self.sent.append(message)

    def message(self, cookie: str | None, path: str = PATH) -> dict[str, Any]:
        headers = list(ASGI_HEADERS)
        if cookie is not None:
            headers.append((b"cookie", cookie.encode()))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "method": "GET",
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "state": {},
        }

    def set_cookie(self, app: Any) -> str:
        """Return the cookie that `app` sets for a new client."""
        self.sent.clear()
        drive(app(self.message(None), self.receive, self.record))
        text: str = next(value.decode() for name, value in self.sent[0]["headers"] if name == b"set-cookie")
        return text.split(";")[0]

    def time(self, app: Any, cookies: list[str | None], path: str) -> float:
        message, receive, send = self.message, self.receive, self.send

        async def call_all() -> float:
            begin = time.perf_counter()
            for cookie in cookies:
                await app(message(cookie, path), receive, send)
            return time.perf_counter() - begin

        seconds: float = drive(call_all())
        return seconds

    def contenders(self, clients: int) -> Iterator[Contender]:
        dispatch = sticky_asgi.Dispatcher
        no_cookie: list[str | None] = ["theme=dark; lang=en"] * clients
        yield Contender("bare app", asgi_app, no_cookie)
        yield Contender("Router + Mount", Router([Mount(PREFIX, app=asgi_app)]), no_cookie)
        session = SessionMiddleware(cart_app, secret_key=SECRET)
        yield Contender("SessionMiddleware, no session", SessionMiddleware(asgi_app, secret_key=SECRET), no_cookie)
        yield Contender("SessionMiddleware, a session", session, [self.set_cookie(session)] * clients)
        yield from ours(self, asgi_app, dispatch, sticky_asgi.StickyMiddleware, clients)


class WSGI:
    """Calls contenders as a WSGI server does, and makes their clients' cookies."""

    yardstick = "DispatcherMiddleware"
    bar = 2.0

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def session_app(self, environ: Any, start_response: Any) -> list[bytes]:
        """Start a session for a request without a cookie."""
        if "HTTP_COOKIE" in environ:
            return wsgi_app(environ, start_response)
        start_response("200 OK", [("Set-Cookie", "JSESSIONID=5f1c7e; Path=/")])
        return [b"ok"]

    def start_response(self, status: str, headers: Any, exc_info: Any = None, /) -> Any:
        return None

    def record(self, status: str, headers: Any, exc_info: Any = None, /) -> Any:
        self.sent[:] = headers

    def message(self, cookie: str | None, path: str = PATH) -> dict[str, Any]:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "shop.example",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": None,
            "wsgi.errors": None,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "HTTP_HOST": "shop.example",
            "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            "HTTP_ACCEPT": "text/html,application/xhtml+xml",
            "HTTP_ACCEPT_ENCODING": "gzip, deflate, br, zstd",
        }
        if cookie is not None:
            environ["HTTP_COOKIE"] = cookie.encode().decode()  # a new string: its hash is not computed yet
        return environ

    def set_cookie(self, app: Any) -> str:
        """Return the cookie that `app` sets for a new client."""
        app(self.message(None), self.record)
        return next(value for name, value in self.sent if name == "Set-Cookie").split(";")[0]

    def time(self, app: Any, cookies: list[str | None], path: str) -> float:
        message, start_response = self.message, self.start_response
        begin = time.perf_counter()
        for cookie in cookies:
            app(message(cookie, path), start_response)
        return time.perf_counter() - begin

    def contenders(self, clients: int) -> Iterator[Contender]:
        no_cookie: list[str | None] = ["theme=dark; lang=en"] * clients
        yield Contender("bare app", wsgi_app, no_cookie)
        mounts = DispatcherMiddleware(wsgi_app, {PREFIX: wsgi_app})
        yield Contender("DispatcherMiddleware", mounts, no_cookie)
        # its cost depends on the depth of the path; ours does not
        for path in (f"{PREFIX}/cart", f"{PREFIX}/api/v1/carts/42/items"):
            yield Contender(f"DispatcherMiddleware, {path}", mounts, no_cookie, path=path)
        yield from ours(self, wsgi_app, sticky_wsgi.Dispatcher, sticky_wsgi.StickyMiddleware, clients)


def ours(face: Any, app: Any, dispatcher: Any, middleware: Any, clients: int) -> Iterator[Contender]:
    def bound(target: Any) -> list[str | None]:
        return [f"theme=dark; visitor={number}; {face.set_cookie(target)}; lang=en" for number in range(clients)]

    plain = dispatcher(backend(app, insert()))
    yield Contender("ours, bound client", plain, bound(plain))
    routed = middleware(app, routes={PREFIX: backend(app, insert())})
    yield Contender("ours, bound client, by route", routed, bound(routed))
    others = {f"/department{number}": Backend(f"department{number}", [Server("s1", app)]) for number in range(1, 10)}
    routed = middleware(app, routes={**others, PREFIX: backend(app, insert())})
    yield Contender("ours, bound client, by one of ten routes", routed, bound(routed))
    changing = dispatcher(backend(app, insert()))
    yield Contender("ours, bound client, a header never seen before", changing, bound(changing), changing=True)
    yield Contender("ours, new client", changing, ["theme=dark; lang=en"] * clients)
    dated = dispatcher(backend(app, insert(maxidle="1h")))
    yield Contender("ours, bound client, maxidle", dated, bound(dated))
    for name, options in (("", {}), ("maxidle, ", {"maxidle": "1h"})):
        accepting = dispatcher(backend(app, insert(**options, accepts=ACCEPTED)))
        yield Contender(f"ours, bound client, {name}four cookies accepted", accepting, bound(accepting))
    prefixed = dispatcher(backend(face.session_app, Cookie("JSESSIONID", mode="prefix", secret=SECRET)))
    yield Contender("ours, bound client, prefix", prefixed, bound(prefixed))
    stuck = dispatcher(backend(app, Stick.on("src")))
    yield Contender("ours, stick on src", stuck, ["theme=dark; lang=en"] * clients)
    learned = dispatcher(backend(face.session_app, Learn.cookie("JSESSIONID")))
    yield Contender("ours, a learned session", learned, bound(learned))


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, without an event loop, which would be measured too."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a contender waits: it can't be measured without an event loop")


def measure(face: Any, rounds: int, clients: int) -> dict[str, float]:
    """Return the median time per request of each contender, in microseconds."""
    contenders = list(face.contenders(clients))
    fresh = itertools.count()
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc.collect()
    gc.freeze()
    gc.disable()
    for number in range(rounds + 3):  # the first three warm the interpreter up
        for contender in contenders:
            cookies = contender.cookies
            if contender.changing:
                cookies = [f"{cookie}; seen={next(fresh)}" for cookie in cookies]
            took = face.time(contender.app, cookies, contender.path)
            if number >= 3:
                seconds[contender.name].append(took / len(cookies))
        gc.collect()
    gc.enable()
    return {name: statistics.median(each) * 1e6 for name, each in seconds.items()}


def report(face: Any, medians: dict[str, float]) -> None:
    bare = medians["bare app"]
    unit = medians[face.yardstick] - bare
    print(f"\n{type(face).__name__}: {bare:.2f} µs for the bare app; added to it:")
    for name, median in medians.items():
        if name != "bare app":
            print(f"  {name:<48} {median - bare:6.2f} µs   {(median - bare) / unit:5.2f} × {face.yardstick}")
    print(f"  goal for a bound client: {face.bar:g} × {face.yardstick}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=200, help="rounds of each contender (200)")
    arguments.add_argument("--clients", type=int, default=500, help="clients, each with one request per round (500)")
    chosen = arguments.parse_args()
    logging.getLogger("sticky_sessions").setLevel(logging.ERROR)  # there is no lifespan on purpose, which is logged
    for face in (ASGI(), WSGI()):
        report(face, measure(face, chosen.rounds, chosen.clients))


if __name__ == "__main__":
    main()
