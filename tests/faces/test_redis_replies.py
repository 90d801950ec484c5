"""The clients of Redis on both faces, and a server that replies what no Redis does, or a byte at a time."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import sticky_asgi.stores.client
import sticky_wsgi.stores.client
from sticky_core.errors import StoreFailure
from sticky_core.stores.breaker import State
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import StoreCommand

if TYPE_CHECKING:
    from tests.faces.conftest import Face

#: seconds for what takes milliseconds; as a store's timeout the longest there is
PATIENCE = 60.0
#: seconds between two bytes of a slow reply, which is finished after far more than the timeout of its store
PAUSE, SLOW_BYTES = 0.01, 1000


class FakeRedis(socketserver.ThreadingTCPServer):
    """Replies with the same bytes to each command that redis-py sends to introduce itself, and to each other one."""

    daemon_threads = True
    introduction = b"+OK\r\n"
    reply = b"$2\r\ns1\r\n"
    is_slow = False  #: whether replies come a byte at a time

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Commands)
        self.ended = threading.Event()

    def store(self, **options: Any) -> Redis:
        return Redis(f"redis://127.0.0.1:{self.server_address[1]}", **options)


class _Commands(socketserver.StreamRequestHandler):
    server: FakeRedis

    def handle(self) -> None:
        try:
            while line := self.rfile.readline():
                words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
                is_introduction = words[0] in (b"CLIENT", b"HELLO", b"AUTH", b"SELECT")
                self._send(self.server.introduction if is_introduction else self.server.reply)
        except OSError:
            pass  # the client has closed the connection

    def _send(self, reply: bytes) -> None:
        if not reply:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif not self.server.is_slow:
            self.wfile.write(reply)
        else:
            for at in range(len(reply)):
                self.wfile.write(reply[at : at + 1])
                if self.server.ended.wait(PAUSE):
                    return


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    with FakeRedis() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def execute(face: Face, store: Redis) -> object:
    """Execute one command and return its reply."""
    commands = [StoreCommand(store, ("GETEX", "sticky:app:d", "PX", 1000))]
    if face.name == "wsgi":
        replies = sticky_wsgi.stores.client.execute(commands)
        sticky_wsgi.stores.client.close([store])
        return replies[0]

    async def execute_and_close() -> list[object]:
        replies = await sticky_asgi.stores.client.execute(commands)
        await sticky_asgi.stores.client.close([store])
        return replies

    return asyncio.run(execute_and_close())[0]


UNREADABLE = [
    pytest.param(b":x\r\n", id="a number that is none"),
    pytest.param(b"$x\r\n", id="a length that is none"),
    pytest.param(b"*x\r\n", id="a number of items that is none"),
    pytest.param(b"*1\r\n" * 5000, id="lists in lists"),
    pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="another protocol"),
    pytest.param(b"\r\n", id="an empty line"),
    pytest.param(b"", id="the end of the connection"),
]


@pytest.mark.parametrize("reply", UNREADABLE)
def test_reply_that_cannot_be_read_is_a_failure_of_the_store(face: Face, redis: FakeRedis, reply: bytes):
    redis.reply = reply
    store = redis.store(timeout=PATIENCE)
    failure = execute(face, store)
    assert isinstance(failure, StoreFailure) and "no reply" not in failure.detail
    assert store.breaker.state is State.OPEN


@pytest.mark.parametrize("reply", UNREADABLE)
def test_server_whose_introduction_cannot_be_read_is_a_store_that_fails(face: Face, redis: FakeRedis, reply: bytes):
    redis.introduction = reply
    store = redis.store(timeout=PATIENCE)
    failure = execute(face, store)
    assert isinstance(failure, StoreFailure) and "no reply" not in failure.detail
    assert store.breaker.state is State.OPEN


@pytest.mark.parametrize(
    "reply, seen",
    [
        (b"$2\r\ns1\r\n", "s1"),
        (b"+s1\r\n", "s1"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b":7\r\n", "a reply is a text or nothing, not 7"),
        (b"*1\r\n$2\r\ns1\r\n", "a reply is a text or nothing, not [b's1']"),
        (b"-WRONGTYPE no text\r\n", "WRONGTYPE no text"),
    ],
    ids=repr,
)
def test_reply_of_each_kind_is_a_text_or_nothing_or_a_failure(face: Face, redis: FakeRedis, reply: bytes, seen: object):
    redis.reply = reply
    store = redis.store(timeout=PATIENCE)
    read = store.read_reply(execute(face, store))
    assert (read.detail if isinstance(read, StoreFailure) else read) == seen


@pytest.mark.parametrize("part", ["introduction", "reply"])
def test_reply_that_comes_a_byte_at_a_time_is_waited_for_no_longer_than_the_timeout(
    face: Face, redis: FakeRedis, part: str
):
    setattr(redis, part, b"$%d\r\n%s\r\n" % (SLOW_BYTES, b"x" * SLOW_BYTES))
    redis.is_slow = True
    failure = execute(face, redis.store(timeout="200ms"))
    assert isinstance(failure, StoreFailure) and failure.detail == "no reply in 0.2 s"
