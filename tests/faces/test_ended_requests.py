"""A request that has ended leaves no reference cycles, which only the garbage collector could free: at thousands of
requests a second it would run all the time. And a request ends when its client has disconnected, whatever `send` does.
"""

import asyncio
import gc
import weakref

import pytest

from sticky_asgi import Backend, Cookie, Dispatcher, Server, Upstream


class Exchange:
    """One request as uvicorn holds it: an object with the scope, and with the methods `receive` and `send`."""

    def __init__(self, scope):
        self.scope = scope

    async def receive(self):
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message):
        pass


async def read_and_respond(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def _no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_garbage_collector")
@pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="nothing is retried"), pytest.param({"retry_on": "503"}, id="the body may be replayed")],
)
def test_ended_request_is_freed_without_the_garbage_collector(options):
    servers = [Server("s1", read_and_respond), Server("s2", read_and_respond)]
    persist = Cookie("SERVERID", secret="a secret of sixteen bytes or more")
    dispatcher = Dispatcher(Backend("shop", servers, persist=persist, **options))
    scope = {"type": "http", "method": "GET", "path": "/", "scheme": "http", "headers": []}
    exchange = Exchange(scope)
    asyncio.run(dispatcher(scope, exchange.receive, exchange.send))
    reference = weakref.ref(exchange)
    del exchange, scope
    assert reference() is None


@pytest.mark.parametrize("blocked", ["http.response.start", "http.response.body"])
def test_request_blocked_in_send_to_a_disconnected_client_is_cancelled(blocked):
    """With HTTP/2, hypercorn's `send` never returns after the client has disconnected."""

    async def respond(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await reader.read()  # until the proxy disconnects
        writer.close()

    async def main():
        origin = await asyncio.start_server(respond, "127.0.0.1")
        host, port = origin.sockets[0].getsockname()
        sending = asyncio.Event()

        async def receive():
            await sending.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == blocked:
                sending.set()
                await asyncio.Event().wait()

        upstream = Upstream(f"http://{host}:{port}")
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "scheme": "http", "headers": []}
        async with asyncio.timeout(300), origin:
            await upstream(scope, receive, send)

    asyncio.run(main())
