"""Workers that start, end and fail: what becomes of the requests that peers have forwarded to them; and connections
that are not a peer's.
"""

import asyncio
import os
import socket

import pytest

from sticky_asgi import ServerFailure, decision
from sticky_core.workers.frames import Frame, Frames, Kind
from tests.faces.workers.asgi import (
    FakeClient,
    HoldingApp,
    WebSocketApp,
    open_websocket,
)


@pytest.mark.parametrize(
    "method, retry_on, status",
    [
        pytest.param("POST", "conn-failure", 502, id="a POST"),
        pytest.param("GET", "conn-failure", 502, id="a GET"),
        pytest.param("POST", "conn-failure empty-response", 502, id="a POST, with retries configured"),
        pytest.param("GET", "conn-failure empty-response", 200, id="a GET, with retries configured"),
    ],
)
def test_request_at_a_killed_worker_is_replayed_only_if_that_is_harmless(run, method, retry_on, status):
    async def test(start):
        app = HoldingApp()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        requesting = asyncio.ensure_future(other.request(path="/hold", method=method, cookie=mark))
        await app.received.wait()
        await one.kill()
        client = await requesting
        assert client.status == status
        assert len(other.inner.scopes) == (1 if status == 200 else 0)

    run(test, retry_on=retry_on)


def test_response_that_a_kill_cuts_short_raises(run):
    async def test(start):
        app = HoldingApp()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        client = FakeClient(path="/begun", cookie=mark)
        requesting = asyncio.ensure_future(client.request(other.app))
        await client.until(lambda sent: len(sent) > 1)
        await one.kill()
        with pytest.raises(ServerFailure, match="cut short"):
            await requesting

    run(test)


def test_worker_that_stops_serves_the_forwarded_requests_in_flight_and_gets_no_new_ones(run):
    async def test(start):
        app = HoldingApp()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        requesting = asyncio.ensure_future(other.request(path="/begun", cookie=mark))
        await app.received.wait()
        stopped = asyncio.Event()
        with other.backend.events(lambda change: stopped.set()):
            stopping = asyncio.ensure_future(one.stop())
            await stopped.wait()
        lost = await other.request(cookie=mark)
        assert (lost.body, decision(other.inner.scopes[0]).reason.value) == (b"1", "other instance")
        assert not stopping.done()
        app.released.set()
        assert (await requesting).body == b"xy"
        await stopping
        assert [name for name in os.listdir(other.backend.slots.path) if name.startswith("1.")] == ["1.lock"]
        one.stop = lambda: asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("rounds", range(5))
def test_connection_that_was_made_just_before_a_worker_stops_is_accepted(run, rounds):
    async def test(start):
        worker = await start()
        slot = worker.backend.slot
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(slot.path)
            peer.setblocking(False)
            for _ in range(rounds):
                await asyncio.sleep(0)
            stopping = asyncio.ensure_future(worker.stop())
            worker.stop = lambda: asyncio.sleep(0)
            frames = Frames()
            found: list[Frame] = []
            while len(found) < 2:
                data = await asyncio.get_running_loop().sock_recv(peer, 65536)
                assert data
                found += frames.feed(data)
            assert found == [(Kind.HELLO, slot.instance), (Kind.SHUTDOWN,)]
        await stopping

    run(test)


def test_worker_that_stops_closes_forwarded_websockets(run):
    async def test(start):
        app = WebSocketApp()
        one, other = await start(app), await start()
        client, requesting = await open_websocket(one, other)
        await one.stop()
        one.stop = lambda: asyncio.sleep(0)
        await requesting
        assert client.sent[-1]["code"] == 1012
        assert app.received_messages[-1]["code"] == 1012

    run(test)


def test_drain_timeout_ends_the_forwarded_requests_in_flight(run):
    async def test(start):
        app = HoldingApp()
        one, other = await start(app, drain="50ms"), await start()
        mark = (await one.request()).mark
        requesting = asyncio.ensure_future(other.request(path="/hold", cookie=mark))
        await app.received.wait()
        await one.stop()
        one.stop = lambda: asyncio.sleep(0)
        assert (await requesting).status == 502
        app.released.set()

    run(test)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"\xff\xff\xff\xff", id="a frame that is too long"),
        pytest.param(b"\0\0\0\1\xc1", id="no msgpack"),
        pytest.param(b"\0\0\0\0", id="an empty frame"),
        pytest.param(Frames().pack(99), id="an unknown kind"),
        pytest.param(Frames().pack(Kind.REQUEST), id="a request without anything"),
        pytest.param(
            Frames().pack(Kind.REQUEST, "VALID", "BOUND", None, 1, None, None, None, *[False] * 13), id="no type"
        ),
        pytest.param(
            Frames().pack(Kind.REQUEST, "WHAT", "BOUND", None, 1, None, None, None, "http", *[False] * 12),
            id="an unknown claim",
        ),
        pytest.param(
            Frames().pack(Kind.REQUEST, "VALID", "BOUND", None, 9, None, None, None, "http", *[False] * 12),
            id="an unknown body mode",
        ),
        pytest.param(
            Frames().pack(Kind.REQUEST, "VALID", "BOUND", None, 1, None, 5, None, "http", *[False] * 12),
            id="additions that are no mapping",
        ),
        pytest.param(
            Frames().pack(Kind.REQUEST, "VALID", "BOUND", 4, 1, None, None, None, "http", *[False] * 12),
            id="a key that is no text",
        ),
    ],
)
def test_bad_frame_closes_its_connection_and_nothing_else(run, caplog, garbage):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.request()).mark
        await other.request(cookie=mark)
        reader, writer = await asyncio.open_unix_connection(one.backend.slot.path)
        writer.write(garbage)
        await reader.read()
        writer.close()
        assert (await other.request(cookie=mark)).body == b"3"
        assert len(one.app._worker.connections) == 1
        assert "bad frame" in caplog.text

    run(test)


def test_connection_of_another_user_is_closed(run, monkeypatch, caplog):
    async def test(start):
        one = await start()
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        reader, writer = await asyncio.open_unix_connection(one.backend.slot.path)
        assert await reader.read() == b""
        writer.close()
        monkeypatch.undo()
        assert "another user" in caplog.text
        assert os.stat(one.backend.slot.path).st_mode & 0o077 == 0

    if not hasattr(socket, "SO_PEERCRED"):
        pytest.skip("this system does not report the user at the other end of a socket")
    run(test)


def test_forked_child_of_a_worker_keeps_no_socket_of_it_open(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.request()).mark
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes the pipe
            os._exit(0)
        os.close(reading)
        try:
            await one.kill()
            assert (await other.request(cookie=mark)).body == b"1"
            one.backend.slot.release()
            one.app._worker = None
            assert (await start()).backend.own_server.name == "w1"
        finally:
            os.close(writing)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - it is about to exit

    run(test)
