"""An ASGI server in a test: the server's side of requests, and workers between their startup and their shutdown."""

import asyncio
from typing import Any

from sticky_asgi import StickyWorkers
from sticky_asgi.workers.worker import ROUNDS_TO_CONNECT

SECRET = "a-secret-of-sixteen-bytes-at-least"
DEADLINE = 300.0  # in seconds, for hangs only


def scope(path="/", *, cookie="", headers=(), **more):
    """An http scope as servers make it; `cookie`: the value of a Cookie header."""
    cookies = [(b"cookie", cookie.encode())] if cookie else []
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.org"), *headers, *cookies],
        "client": ("192.0.2.1", 4711),
        "server": ("127.0.0.1", 8000),
        **more,
    }


class FakeClient:
    """The server's side of one request: the messages of the client, and those that the app has sent."""

    def __init__(self, *messages, **more):
        self.scope = scope(**more)
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in messages:
            self.messages.put_nowait(message)
        if not messages and self.scope["type"] == "http":
            self.messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.receive_calls = 0
        self.sent: list[Any] = []
        self.sent_event = asyncio.Event()
        self.reads = asyncio.Event()  # whether the client reads the response
        self.reads.set()

    async def receive(self):
        self.receive_calls += 1
        return await self.messages.get()

    async def send(self, message):
        await self.reads.wait()
        self.sent.append(message)
        self.sent_event.set()

    async def request(self, app):
        await app(self.scope, self.receive, self.send)
        return self

    async def until(self, condition):
        """Wait until `condition` holds for the messages that the app has sent."""
        async with asyncio.timeout(DEADLINE):
            while not condition(self.sent):
                self.sent_event.clear()
                await self.sent_event.wait()

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return b"".join(bytes(message.get("body", b"")) for message in self.sent)

    @property
    def cookies(self):
        return [value.decode() for name, value in self.sent[0]["headers"] if name == b"set-cookie"]

    @property
    def mark(self):
        return self.cookies[0].partition(";")[0]


async def respond(send, body=b"", status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


class CountingApp:
    """An app that responds with the number of requests that it has served, and keeps their scopes."""

    def __init__(self):
        self.scopes: list[Any] = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            if "state" in scope:
                scope["state"]["memory"] = self
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            return await send({"type": "lifespan.shutdown.complete"})
        self.scopes.append(scope)
        await self.serve(scope, receive, send)

    async def serve(self, scope, receive, send):
        await respond(send, f"{len(self.scopes)}".encode())


class HoldingApp(CountingApp):
    """Holds requests, to paths other than `/`, until `released` is set; at `/begun` behind the head of the response."""

    def __init__(self):
        super().__init__()
        self.received = asyncio.Event()
        self.released = asyncio.Event()

    async def serve(self, scope, receive, send):
        if scope["path"].startswith("/begun"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if scope["path"] != "/":
            self.received.set()
            await self.released.wait()
        if scope["path"].startswith("/begun"):
            await send({"type": "http.response.body", "body": b"y"})
        else:
            await respond(send, f"{len(self.scopes)}".encode())


class WebSocketApp(CountingApp):
    """Echoes what it receives; `/deny` is denied with a response."""

    async def serve(self, scope, receive, send):
        if scope["type"] == "http":
            return await respond(send)
        self.received_messages = []
        while True:
            message = await receive()
            self.received_messages.append(message)
            match message["type"]:
                case "websocket.connect":
                    if scope["path"] == "/deny":
                        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
                        return await send({"type": "websocket.http.response.body", "body": b"no"})
                    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0], "headers": []})
                case "websocket.disconnect":
                    return
                case _ if message.get("text") == "bye":
                    return await send({"type": "websocket.close", "code": 4000, "reason": "said so"})
                case _:
                    await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})


def websocket(*messages, **more):
    """A WebSocket client that connects and sends these messages."""
    details = {"type": "websocket", "scheme": "ws", "subprotocols": ["chat"], **more}
    return FakeClient({"type": "websocket.connect"}, *messages, **details)


async def open_websocket(one, other):
    """Open a WebSocket of a client of worker `one`, which connects to worker `other` or to the same. Return the client,
    and its request, which goes on.
    """
    mark = (await one.request()).mark
    client = websocket(cookie=mark)
    requesting = asyncio.ensure_future(client.request(other.app))
    await client.until(lambda sent: sent)
    return client, requesting


class RunningWorker:
    """A worker between its startup and its shutdown."""

    def __init__(self, app, **options):
        self.inner = app
        self.app = StickyWorkers(app, **options)
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()

    async def start(self):
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(self.app(scope, self._to_app.get, self._from_app.put))
        self._to_app.put_nowait({"type": "lifespan.startup"})
        assert (await self._from_app.get())["type"] == "lifespan.startup.complete"
        return self

    @property
    def backend(self):
        return self.app.workers

    async def kill(self):
        """End it as SIGKILL does: its connections are closed, and its socket stays in the directory."""
        worker = self.app._worker
        assert worker is not None
        worker._timer.cancel()
        worker.loop.remove_reader(worker._listener)
        for _ in range(ROUNDS_TO_CONNECT):  # asyncio loses what it has accepted if the server is closed before
            await asyncio.sleep(0)
        worker._server.close()
        worker._abstract.close()
        for connection in list(worker.connections):
            connection.transport.abort()

    async def stop(self):
        self._to_app.put_nowait({"type": "lifespan.shutdown"})
        await self._task

    async def request(self, *messages, **more):
        async with asyncio.timeout(DEADLINE):
            return await FakeClient(*messages, **more).request(self.app)
