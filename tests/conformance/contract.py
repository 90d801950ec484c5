"""What the tests of the WSGI and ASGI contracts share: a backend, an ASGI server for one request, and fixtures."""

import anyio
from starlette.types import Message, Scope

from sticky_asgi import Backend, Cookie, Server

#: seconds after which a step is taken to hang
DEADLINE = 300.0
SECRET = "a-secret-of-the-contract-tests"


def backend(*servers: Server, name: str = "web") -> Backend:
    return Backend(name, servers=servers, persist=Cookie(f"{name}-server", secret=SECRET))


class Referent:
    """An object in a request that a weak reference observes."""


#: the event loops; a test that needs several runs them one after the other
LOOPS = ("asyncio", "trio")


def http_scope(path: str = "/", **more: object) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        **more,
    }


class AsgiExchange:
    """The two functions of a server for one request, and the messages that were sent."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.sent: list[Message] = []
        self.incoming = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop()
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def marks(self) -> list[bytes]:
        return [value for name, value in self.sent[0]["headers"] if name == b"set-cookie"]


async def request(app, path: str = "/", **more: object) -> AsgiExchange:
    exchange = AsgiExchange(http_scope(path, **more))
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
