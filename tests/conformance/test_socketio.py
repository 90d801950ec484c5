"""python-socketio under several workers, with its own client: the handshake, the polls and the upgrade are requests of
their own, and all belong to the worker that has made the session.
"""

import asyncio
import gc
import json
import logging
from dataclasses import replace

import aiohttp
import pytest
import socketio  # type: ignore[import-untyped]

# The client drops responses before it has read their bodies, and aiohttp closes their connections when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")

WORKERS = "uvicorn --workers 4 --no-access-log socketio_asgi:app"
DEADLINE = 300.0


@pytest.fixture
def started(serve, launch, until):
    def started(sticky="{}"):
        start = launch if sticky == "null" else serve
        served = start(*WORKERS.split(), variables={"STICKY": sticky})
        if sticky == "null":
            served.comes_up()
        until(lambda: served.output.count("Application startup complete") == 4, "all workers")
        served.kind = replace(served.kind, exit_code=0, always_prints=("ResourceWarning",))
        return served

    return started


class RepeatingClient:
    """A client that sends messages, and counts those that got the right acknowledgement. Each of its requests has its
    own connection.
    """

    def __init__(self, port, transports, messages, patience, keeps_cookies=True):
        self.url = f"http://localhost:{port}"  # clients accept no cookies from IP addresses
        self.transports = transports
        self.messages = messages
        self.patience = patience
        self.keeps_cookies = keeps_cookies
        self.acknowledged = 0
        self.transport = ""

    async def run(self):
        jar = aiohttp.CookieJar() if self.keeps_cookies else aiohttp.DummyCookieJar()
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:
            client = socketio.AsyncClient(reconnection=False, http_session=session)
            try:
                async with asyncio.timeout(self.patience):
                    await client.connect(self.url, transports=self.transports, wait_timeout=DEADLINE)
                    for number in range(self.messages):
                        result = await client.call("append", f"{number}", timeout=DEADLINE)
                        self.acknowledged += result["received"] == [f"{each}" for each in range(number + 1)]
                    self.transport = client.transport()
            except (socketio.exceptions.SocketIOError, OSError, TimeoutError):
                pass
            finally:
                # a close by polling waits for the poll in flight, which the server ends in half a minute
                if client.eio.read_loop_task is not None:
                    client.eio.read_loop_task.cancel()
                await client.eio.disconnect(abort=True)
        return self


def run_clients(served, count, transports, messages=3, at_once=8, patience=DEADLINE, keeps_cookies=True):
    async def run_all():
        gate = asyncio.Semaphore(at_once)

        async def one():
            async with gate:
                return await RepeatingClient(served.port, transports, messages, patience, keeps_cookies).run()

        return await asyncio.gather(*(one() for _ in range(count)))

    return asyncio.run(run_all())


@pytest.fixture(autouse=True)
def _quiet():
    """Silence the logger: the client logs what it then raises."""
    before = logging.getLogger("engineio.client").level
    logging.getLogger("engineio.client").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("engineio.client").setLevel(before)
    gc.collect()  # what the client has dropped: here, as in other tests the warnings of it are errors


@pytest.mark.parametrize(
    "count", [pytest.param(12, id="12 connections"), pytest.param(200, id="200 connections", marks=pytest.mark.long)]
)
def test_no_client_gets_an_invalid_session_and_without_sticky_workers_most_do(started, count):
    without = started("null")
    clients = run_clients(without, 12, ["polling"], at_once=12, patience=4)
    assert sum(client.acknowledged == client.messages for client in clients) < 9
    without.kill()
    served = started()
    clients = run_clients(served, count, ["polling"])
    assert [client.acknowledged for client in clients] == [3] * count
    assert {client.transport for client in clients} == {"polling"}
    upgraded = run_clients(served, count, ["polling", "websocket"])
    assert [client.acknowledged for client in upgraded] == [3] * count
    assert {client.transport for client in upgraded} == {"websocket"}
    assert "Invalid session" not in served.output


LEARN = {"key": "url_param(sid)", "learn": "res.json_field(sid)"}


@pytest.mark.parametrize("options", [{**LEARN, "cookie": None}, LEARN], ids=["by the key alone", "beside the cookie"])
@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"]], ids=["polling", "upgraded"])
def test_clients_without_cookies_are_recognised_by_the_id_in_the_body_of_the_handshake(started, options, transports):
    served = started(json.dumps(options))
    clients = run_clients(served, 34, transports, keeps_cookies=False)
    assert [client.acknowledged for client in clients] == [3] * 34
    assert {client.transport for client in clients} == {transports[-1]}
    assert "Invalid session" not in served.output
