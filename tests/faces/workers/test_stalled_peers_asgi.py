"""Workers that run and do not react, because their process is stopped or their event loop is blocked: what becomes of
the requests that are forwarded to them; and peers that do not read what they have asked for.
"""

import asyncio
import fcntl
import os
import socket
from contextlib import closing

import pytest

from sticky_asgi.workers import peer as peer_module
from sticky_asgi.workers.serving import PeerServer
from sticky_core.workers.frames import Frames, Kind
from tests.faces.workers.asgi import DEADLINE, CountingApp, FakeClient, respond

INSTANCE = "0123456789abcdef"
#: options by which the workers in the slots 1 and 2 get half of all paths each
HALVES = {"key": "path", "slots": 2, "cookie": None}
DISCONNECT = {"type": "http.disconnect"}


@pytest.fixture
def stalled(folder):
    """The socket of a worker in the second worker slot that accepts no connection."""
    (folder / "run" / "group@asgi").mkdir(mode=0o700, parents=True)
    (folder / "run").chmod(0o700)
    group = folder / "run" / "group@asgi"
    with (group / "2.lock").open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listener.bind(str(group / f"2.{INSTANCE}.sock"))
        listener.listen(100)
        yield listener


class BodyApp(CountingApp):
    """Responds with the body of the request."""

    async def serve(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return await respond(send, body)


def upload(*bodies, **more):
    """A client that sends a body in these pieces."""
    return FakeClient(*pieces(*bodies), method="POST", headers=[(b"transfer-encoding", b"chunked")], **more)


def pieces(*bodies):
    """The messages of a request with this body."""
    return [{"type": "http.request", "body": body, "more_body": True} for body in bodies] + [
        {"type": "http.request", "body": b"", "more_body": False}
    ]


def descriptors():
    return len(os.listdir("/dev/fd"))


async def paths_of_the_peer(front, count):
    """Return paths that the other worker is to serve."""
    paths: list[str] = []
    for number in range(1000):
        (server,) = [each for each in front.backend.servers if each.id == 2]
        if server.usable and await _is_for(front, server, f"/{number}"):
            paths.append(f"/{number}")
        if len(paths) == count:
            break
    return paths


async def _is_for(front, server, path):
    """Whether a request for this path is forwarded to `server`: its app is called."""
    replicas = front.app._only_replicas
    app, called = replicas.apps[server], []

    async def note(scope, receive, send):
        called.append(path)
        await respond(send)

    replicas.apps[server] = note
    try:
        await front.request(path=path)
    finally:
        replicas.apps[server] = app
    return bool(called)


def test_clients_that_give_up_while_their_worker_accepts_nothing_leave_no_descriptor(run, stalled):
    async def test(start):
        front = await start(**HALVES)
        paths = await paths_of_the_peer(front, 20)
        before = descriptors()
        clients = [upload(b"a body", path=path) for path in paths[:10]]
        clients += [FakeClient(*pieces(), path=path) for path in paths[10:]]
        for client in clients:
            client.messages.put_nowait(DISCONNECT)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(client.request(front.app) for client in clients))
        await asyncio.sleep(0)  # asyncio closes the sockets in its next round
        assert (descriptors(), [client.sent for client in clients]) == (before, [[]] * 20)
        (peer,) = [each for each in front.backend.servers if each.id == 2]
        assert len(peer.in_flight) == 0

    run(test)


def test_request_goes_to_another_worker_with_its_whole_body_if_its_own_does_not_accept_for_too_long(
    run, stalled, monkeypatch
):
    async def test(start):
        front = await start(BodyApp(), **HALVES)
        (path,) = await paths_of_the_peer(front, 1)
        monkeypatch.setattr(peer_module, "HELLO_TIMEOUT", 0.3)
        before = descriptors()
        client = upload(b"a body ", b"in pieces", path=path)
        await client.request(front.app)
        assert (client.status, client.body) == (200, b"a body in pieces")
        await asyncio.sleep(0)
        assert descriptors() == before

    run(test)


def test_request_whose_worker_is_slow_to_accept_is_forwarded_with_its_whole_body(run, monkeypatch):
    held = []
    accept = PeerServer.connection_made
    monkeypatch.setattr(PeerServer, "connection_made", lambda self, transport: held.append((self, transport)))

    async def test(start):
        owner, front = await start(BodyApp()), await start(BodyApp())
        mark = (await owner.request()).mark
        client = upload(b"a body ", b"in pieces", cookie=mark)
        read, receive = asyncio.Event(), client.receive

        async def receive_and_note():
            read.set()  # it is read because it is watched
            return await receive()

        client.receive = receive_and_note
        requesting = asyncio.ensure_future(client.request(front.app))
        await read.wait()
        for connection, transport in held:
            accept(connection, transport)
        await requesting
        assert (client.status, client.body) == (200, b"a body in pieces")
        assert len(owner.inner.scopes) == 2

    run(test)


def test_worker_at_which_too_many_connections_wait_is_not_taken_for_another_users(run, stalled, caplog):
    async def test(start):
        front = await start(BodyApp(), **HALVES)
        (path,) = await paths_of_the_peer(front, 1)
        stalled.listen(0)
        with closing(socket.socket(socket.AF_UNIX)) as waiting:
            waiting.connect(stalled.getsockname())
            client = upload(b"a body", path=path)
            await client.request(front.app)
        assert (client.status, client.body) == (200, b"a body")
        assert "another user" not in caplog.text

    run(test)


def test_query_of_a_worker_that_accepts_nothing_leaves_no_descriptor(run, stalled, monkeypatch):
    async def test(start):
        monkeypatch.setattr(peer_module, "QUERY_TIMEOUT", 0.05)
        front = await start(key="path")
        before = descriptors()
        peer = front.app._worker.peers[2]
        assert await peer.query_key(Kind.KEY_QUERY, "k") is None
        await asyncio.sleep(0)
        assert descriptors() == before

    run(test)


def test_key_is_found_although_its_arbiter_does_not_react(run, stalled, monkeypatch):
    async def test(start):
        owner, front = await start(key="path", cookie=None), await start(key="path", cookie=None)
        path = next(path for path in map("/{}".format, range(100)) if front.backend.keys.arbiter(path).name == "w2")
        monkeypatch.setattr(peer_module, "CLAIM_TIMEOUT", 0.1)
        owner.backend.keys.learn(path, owner.backend.keys.own_id)
        assert (await front.request(path=path)).status == 200
        assert (len(owner.inner.scopes), len(front.inner.scopes)) == (1, 0)

    run(test)


def test_peer_that_queries_and_never_reads_the_replies_loses_its_connection(run):
    async def test(start):
        owner, front = await start(key="path"), await start(key="path")
        query = Frames().pack(Kind.KEY_QUERY, "k")
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.setblocking(False)
            connection.connect(owner.backend.slot.path)
            loop = asyncio.get_running_loop()
            for _ in range(100):
                sending = loop.sock_sendall(connection, query * 10_000)
                if isinstance((await asyncio.gather(sending, return_exceptions=True))[0], ConnectionError):
                    break
            else:
                pytest.fail("it may send without end")
        await front.request(path="/1")
        assert (await owner.request(path="/1")).body == b"2"
        assert len(front.inner.scopes) == 2

    run(test)


def test_second_claim_on_a_connection_before_the_reply_to_the_first_closes_it(run, stalled, monkeypatch, caplog):
    async def test(start):
        monkeypatch.setattr(peer_module, "QUERY_TIMEOUT", 0.05)
        owner = await start(key="path")
        reader, writer = await asyncio.open_unix_connection(owner.backend.slot.path)
        writer.write(Frames().pack(Kind.KEY_CLAIM, "k", "w9@9") + Frames().pack(Kind.KEY_CLAIM, "l", "w9@9"))
        await reader.read()
        writer.close()
        assert "before the reply" in caplog.text

    run(test)
