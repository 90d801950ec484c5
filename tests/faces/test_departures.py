"""A request that is over leaves nothing behind that only the garbage collector could find: at thousands a second it
would have to run all the time. And it is over when its client has left, whatever the server does about that.
"""

import asyncio
import gc
import weakref

import pytest

from sticky_asgi import Backend, Cookie, Dispatcher, Server, Upstream


class Exchange:
    """One request as uvicorn keeps it: an object that holds the scope, and whose methods are `receive` and `send`."""

    def __init__(self, scope):
        self.scope = scope

    async def receive(self):
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message):
        pass


async def read_and_answer(scope, receive, send):
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
    [pytest.param({}, id="nothing is retried"), pytest.param({"retry_on": "503"}, id="the body may be read again")],
)
def test_request_that_is_over_is_let_go_without_the_garbage_collector(options):
    servers = [Server("s1", read_and_answer), Server("s2", read_and_answer)]
    persist = Cookie("SERVERID", secret="a secret of sixteen bytes or more")
    dispatcher = Dispatcher(Backend("shop", servers, persist=persist, **options))
    scope = {"type": "http", "method": "GET", "path": "/", "scheme": "http", "headers": []}
    exchange = Exchange(scope)
    asyncio.run(dispatcher(scope, exchange.receive, exchange.send))
    left = weakref.ref(exchange)
    del exchange, scope
    assert left() is None


@pytest.mark.parametrize("blocked", ["http.response.start", "http.response.body"])
def test_who_can_send_nothing_to_a_client_that_has_left_is_let_go(blocked):
    """As hypercorn does with HTTP/2, where a client that left takes nothing in and nobody says so."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await reader.read()  # until we are gone
        writer.close()

    async def main():
        origin = await asyncio.start_server(answer, "127.0.0.1")
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
