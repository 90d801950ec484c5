"""Bodies: one reader per request, from which several attempts may read. It reads as its input does, returns again what
it has returned, stores no more than its limit, and on ASGI notices a disconnect while nothing reads.
"""

from __future__ import annotations

import asyncio
import io
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sticky_asgi.body import Body as AsgiBody
from sticky_core.errors import Failure, ServerFailure
from sticky_wsgi.body import Body as WsgiBody
from tests.faces.conftest import Face

slow = settings(deadline=None)  # a slow machine is no failure
Message = dict[str, Any]

PIECE = 65536  # how many bytes beyond the limit are stored until the next read
PATIENCE = 300.0  # seconds for what takes milliseconds


# -- WSGI: a wsgi.input


class Input(io.BytesIO):
    """The input of a server. A read beyond the body would read the next request, or block for ever."""

    def __init__(self, data: bytes = b"", behind: bytes | None = None) -> None:
        super().__init__(data + (behind or b""))
        self.length = len(data)
        self.ends = behind is None
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        return self._checked(super().read, size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._checked(super().readline, size)

    def _checked(self, read: Callable[[int | None], bytes], size: int | None) -> bytes:
        self.sizes.append(-1 if size is None else size)
        if not self.ends:
            assert size is not None and size >= 0, "read to an end that never comes"
            assert self.tell() + size <= self.length, "read beyond the body"
        return read(size)


def body_of(
    data: bytes = b"", limit: int = 1 << 20, *, behind: bytes | None = b"GET /the-next HTTP/1.1", **environ: Any
) -> WsgiBody:
    """Return a Body for a request with CONTENT_LENGTH, unless `environ` replaces that."""
    return WsgiBody({"wsgi.input": Input(data, behind), "CONTENT_LENGTH": str(len(data)), **environ}, limit)


def chunked(data: bytes = b"", limit: int = 1 << 20, **environ: Any) -> WsgiBody:
    """Return a Body for a request of unknown length: its server marks the end."""
    came = {"wsgi.input": Input(data), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return WsgiBody(came | environ, limit)


SIZES = st.one_of(st.none(), st.just(-1), st.integers(0, 12))
READS = st.one_of(
    st.tuples(st.just("read"), SIZES),
    st.tuples(st.just("readline"), SIZES),
    st.tuples(st.just("readlines"), st.one_of(st.none(), st.integers(-1, 12))),
    st.tuples(st.just("next line"), st.none()),
)
TEXTS = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"0123456789"]), max_size=12).map(b"".join)
MADE: dict[str, Callable[..., WsgiBody]] = {"with a length": body_of, "chunked": chunked}


def read(stream: Any, way: str, size: int | None) -> object:
    if way == "next line":
        return next(iter(stream), b"")
    return getattr(stream, way)(size)


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@slow
@given(data=TEXTS, attempts=st.lists(st.lists(READS, max_size=8), min_size=1, max_size=4))
def test_each_attempt_reads_what_it_would_have_read_alone(
    made: Callable[..., WsgiBody], data: bytes, attempts: Sequence[Sequence[tuple[str, int | None]]]
) -> None:
    body = made(data)
    for attempt in attempts:
        alone = io.BytesIO(data)
        for way, size in attempt:
            assert read(body, way, size) == read(alone, way, size), (way, size)
        body.rewind()
        assert body.replayable and not body.discarded
    assert body.read() == data, "and the whole at last"


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@slow
@given(data=TEXTS, limit=st.integers(0, 30), reads=st.lists(READS, max_size=8))
def test_beyond_the_limit_it_still_reads(
    made: Callable[..., WsgiBody], data: bytes, limit: int, reads: Sequence[tuple[str, int | None]]
) -> None:
    body, alone = made(data, limit), io.BytesIO(data)
    for way, size in reads:
        assert read(body, way, size) == read(alone, way, size), (way, size)
        assert body.replayable is (alone.tell() <= limit), "the bytes that were read count"
        assert not body.discarded or not body.replayable
    if not body.discarded:
        body.rewind()
        alone.seek(0)
    assert body.read() == alone.read()


def test_a_read_without_a_size_returns_the_whole_rest() -> None:
    body = body_of(b"one\ntwo\nthree")
    assert body.readline() == b"one\n"
    assert body.readlines() == [b"two\n", b"three"]
    body.rewind()
    assert [*body] == [b"one\n", b"two\n", b"three"]
    body.rewind()
    assert body.read() == b"one\ntwo\nthree"
    assert (body.read(), body.readline(), body.readlines(), [*body]) == (b"", b"", [], [])


def test_a_piece_has_the_requested_length_even_if_a_part_of_it_is_stored() -> None:
    """Apps call `read(CONTENT_LENGTH)`, and PEP 3333 does not mention short reads."""
    body = body_of(b"0123456789")
    assert body.read(4) == b"0123"
    body.rewind()
    assert body.read(10) == b"0123456789"


@pytest.mark.parametrize(
    "environ, expected",
    [
        pytest.param({"CONTENT_LENGTH": "3"}, b"abc", id="a length"),
        pytest.param({"CONTENT_LENGTH": ""}, b"", id="an empty one"),
        pytest.param({}, b"", id="none"),
        pytest.param({"CONTENT_LENGTH": "three"}, b"", id="a word"),
        pytest.param({"CONTENT_LENGTH": "-3"}, b"", id="a negative one"),
        pytest.param({"CONTENT_LENGTH": "³"}, b"", id="a digit that is no number"),
        pytest.param({"CONTENT_LENGTH": "0"}, b"", id="none at all"),
        pytest.param({"CONTENT_LENGTH": "3", "HTTP_TRANSFER_ENCODING": "chunked"}, b"abc", id="a length and chunks"),
    ],
)
def test_an_input_without_an_end_is_read_up_to_the_length(environ: dict[str, str], expected: bytes) -> None:
    came = Input(b"abc", behind=b"the next request")
    body = WsgiBody({"wsgi.input": came, **environ}, 100)
    assert body.read() == expected
    assert (body.read(), body.readline(), body.read(5), [*body]) == (b"", b"", b"", [])


@pytest.mark.parametrize(
    "environ, expected",
    [
        pytest.param({"HTTP_TRANSFER_ENCODING": "chunked"}, b"abcdef", id="chunks"),
        pytest.param({"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}, b"abcdef", id="an empty length"),
        pytest.param({}, b"abcdef", id="no header"),
        pytest.param({"CONTENT_LENGTH": "0", "HTTP_TRANSFER_ENCODING": "chunked"}, b"abcdef", id="a wrong length"),
        pytest.param({"CONTENT_LENGTH": "3"}, b"abc", id="a length"),
    ],
)
def test_an_input_with_an_end_is_read_up_to_it_unless_there_is_a_length(
    environ: dict[str, str], expected: bytes
) -> None:
    body = WsgiBody({"wsgi.input": Input(b"abcdef"), "wsgi.input_terminated": True, **environ}, 100)
    assert body.read() == expected
    body.rewind()
    assert body.readlines() == [expected]


def test_nothing_is_read_before_the_first_call() -> None:
    came = Input(b"x" * 100, behind=b"")
    body = WsgiBody({"wsgi.input": came, "CONTENT_LENGTH": "100"}, 1000)
    assert came.sizes == []
    body.read(10)
    assert came.sizes == [10]
    body.rewind()
    body.read(10)
    assert came.sizes == [10], "what was read is not read again"
    assert body.read(0) == b""


@pytest.mark.parametrize(
    "reads, length, replayable, discarded",
    [
        pytest.param([100], 100, True, False, id="at the limit"),
        pytest.param([60, 40, 1], 100, True, False, id="at the limit, and its end was read"),
        pytest.param([100], 200, True, False, id="at the limit, with more to come"),
        pytest.param([101], 101, False, False, id="beyond it, in one piece"),
        pytest.param([60, 41], 200, False, False, id="beyond it, in the last piece"),
        pytest.param([60, 41, 1], 101, False, False, id="beyond it, in the last piece, and its end was read"),
        pytest.param([60, 41, 1], 200, False, True, id="beyond it, and another read"),
        pytest.param([PIECE], 2 * PIECE, False, False, id="far beyond it, in a piece of the usual size"),
        pytest.param([PIECE + 1], 2 * PIECE, False, True, id="in a piece that is too large"),
        pytest.param([-1], PIECE, False, False, id="the whole, which is a piece"),
        pytest.param([-1], PIECE + 1, False, True, id="the whole, which is more"),
    ],
)
def test_bytes_beyond_the_limit_are_discarded_at_the_next_read(
    reads: Sequence[int], length: int, replayable: bool, discarded: bool
) -> None:
    data = bytes(number % 251 for number in range(length))
    body, alone = body_of(data, 100), io.BytesIO(data)
    for size in reads:
        assert body.read(size) == alone.read(size)
    assert (body.replayable, body.discarded) == (replayable, discarded)
    if not discarded:
        body.rewind()
        assert body.read() == data, "an attempt that stops early is followed by another"


@pytest.mark.parametrize("limit", [0, 1000, PIECE])
def test_it_stores_no_more_than_the_limit_and_a_piece(limit: int) -> None:
    size = 64 * PIECE

    class Endless:
        left = size

        def read(self, size: int) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    body = WsgiBody({"wsgi.input": Endless(), "CONTENT_LENGTH": str(size)}, limit)
    tracemalloc.start()
    try:
        while body.read(PIECE):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit + 5 * PIECE, "a bytearray that grows holds a little more, twice while it moves"


# -- ASGI: a receive


def request(body: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


DISCONNECT: Message = {"type": "http.disconnect"}
CONNECT: Message = {"type": "websocket.connect"}


class FakeReceive:
    """A `receive` that the test feeds; two calls at once are an error."""

    def __init__(self, *messages: Message) -> None:
        self.messages = [*messages]
        self.receive_calls = 0  # how often it was called
        self.waiting = False
        self.raises: Exception | None = None
        self._has_new_messages = anyio.Event()

    def sends(self, *messages: Message) -> None:
        self.messages += messages
        self._has_new_messages.set()

    async def __call__(self) -> Message:
        assert not self.waiting, "receive was called twice at once"
        self.receive_calls += 1
        self.waiting = True
        try:
            if self.raises is not None:
                raise self.raises
            while not self.messages:
                self._has_new_messages = anyio.Event()
                await self._has_new_messages.wait()
            await anyio.lowlevel.checkpoint()
            return self.messages.pop(0)
        finally:
            self.waiting = False


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run `test` on an event loop; fail if a task is left."""

    async def alone(**given: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            await test(**given)
        await no_task_can_run()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

    @wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(alone(**given))

    return run


async def no_task_can_run() -> None:
    """Wait until no task can run any more without input."""
    for _ in range(20):
        await asyncio.sleep(0)


class Calls(list[str]):
    """The calls of a watcher's callback."""

    def client_gone(self) -> None:
        self.append("gone")


PIECES = st.lists(st.binary(max_size=6), max_size=6)


def messages_of_client(pieces: Sequence[bytes], disconnects: bool) -> list[Message]:
    """What a client sends: a body in pieces, perhaps with a disconnect in the middle."""
    if disconnects:
        return [request(piece, True) for piece in pieces] + [DISCONNECT]
    return [*(request(piece, True) for piece in pieces[:-1]), request(b"".join(pieces[-1:])), DISCONNECT]


@slow
@given(
    pieces=PIECES,
    disconnects=st.booleans(),
    attempts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    watches=st.booleans(),
)
def test_each_attempt_receives_what_it_would_have_received_alone(
    pieces: Sequence[bytes], disconnects: bool, attempts: Sequence[int], watches: bool
) -> None:
    async def run() -> None:
        messages = messages_of_client(pieces, disconnects)
        body = AsgiBody(FakeReceive(*messages), 1000)
        for number in attempts:
            if watches:
                body.watch(lambda: None)
                await no_task_can_run()
            alone = [*messages, *([DISCONNECT] * 10)]
            assert [await body() for _ in range(number)] == alone[:number]
            body.rewind()
            assert body.replayable and not body.discarded
        body.close()

    asyncio.run(run())


@slow
@given(pieces=PIECES, limit=st.integers(0, 20), watches=st.booleans())
def test_beyond_the_limit_it_still_receives(pieces: Sequence[bytes], limit: int, watches: bool) -> None:
    async def run() -> None:
        messages = messages_of_client(pieces, False)
        body = AsgiBody(FakeReceive(*messages), limit)
        kept = 0
        for message in messages:
            if watches:
                body.watch(lambda: None)
            assert await body() == message
            kept += len(message.get("body", b""))
            if kept > limit:
                assert not body.replayable
            if not watches:  # else it may know already that the body is too large
                assert body.replayable is (kept <= limit)
        body.close()
        body.rewind()
        if kept <= limit:
            assert [await body() for _ in messages] == messages

    asyncio.run(run())


@on_loop
async def test_another_attempt_receives_the_body_in_the_same_pieces() -> None:
    client = FakeReceive(request(b"ab", True), request(b"", True), request(b"c"))
    body = AsgiBody(client, 100)
    first = [await body() for _ in range(3)]
    body.rewind()
    assert [await body() for _ in range(3)] == first
    assert client.receive_calls == 3
    assert all(one is other for one, other in zip(first, [body._messages[0], *first[1:]], strict=True))


@on_loop
async def test_messages_beyond_the_limit_are_discarded_at_the_next_call_on_asgi() -> None:
    client = FakeReceive(request(b"x" * 60, True), request(b"y" * 60, True), request(b"z"))
    body = AsgiBody(client, 100)
    await body()
    assert (body.replayable, body.discarded) == (True, False)
    await body()
    assert (body.replayable, body.discarded) == (False, False)
    body.rewind()
    assert [(await body())["body"][:1] for _ in range(2)] == [b"x", b"y"], (
        "an attempt that fails here may be followed by another"
    )
    assert (await body())["body"] == b"z"
    assert (body.replayable, body.discarded) == (False, True)


@on_loop
async def test_it_stores_no_more_than_the_limit_and_a_message_on_asgi() -> None:
    client = FakeReceive()
    body = AsgiBody(client, 100)
    body.watch(lambda: None)
    for _ in range(50):
        client.sends(request(b"x" * 60, True))
        await body()
        await no_task_can_run()
    client.sends(*(request(b"x" * 60, True) for _ in range(10)))
    await no_task_can_run()
    kept = sum(len(message["body"]) for message in body._messages)
    assert kept <= 100 + 60
    assert len(client.messages) >= 8, "it reads one message ahead, and leaves the rest unread"
    body.close()


@on_loop
async def test_another_attempt_receives_the_connect_of_a_websocket_and_not_its_messages() -> None:
    received: Message = {"type": "websocket.receive", "text": "hello"}
    body = AsgiBody(FakeReceive(CONNECT, received), 100)
    assert await body() == CONNECT
    body.rewind()
    assert body.replayable
    assert [await body(), await body()] == [CONNECT, received]
    assert not body.replayable


@on_loop
async def test_a_disconnect_is_returned_again_and_again_in_the_protocol_of_the_client() -> None:
    left: Message = {"type": "websocket.disconnect", "code": 1001}
    body = AsgiBody(FakeReceive(CONNECT, {"type": "websocket.receive", "text": "a"}, left), 100)
    calls = [await body() for _ in range(6)]
    assert calls[2:] == [left] * 4
    assert body.client_gone

    body = AsgiBody(FakeReceive(request(b"a"), DISCONNECT), 100)
    assert [await body() for _ in range(4)] == [request(b"a"), DISCONNECT, DISCONNECT, DISCONNECT]
    body.rewind()
    assert [await body() for _ in range(3)] == [request(b"a"), DISCONNECT, DISCONNECT], (
        "what it sent before is returned again"
    )


@on_loop
async def test_a_message_that_has_arrived_is_returned_and_none_is_waited_for() -> None:
    messages = [request(b"a", True), DISCONNECT]

    async def ready() -> Message:
        return messages.pop(0)

    body = AsgiBody(ready, 100)
    assert await body.next_if_arrived() == request(b"a", True)
    body.rewind()
    assert await body.next_if_arrived() == request(b"a", True), "it was kept"
    assert [await body.next_if_arrived(), await body.next_if_arrived()] == [DISCONNECT, DISCONNECT]

    client = FakeReceive()
    body = AsgiBody(client, 100)
    assert await body.next_if_arrived() is None
    assert await body.next_if_arrived() is None
    assert client.receive_calls == 1
    client.sends(request(b"a"))
    assert await body() == request(b"a"), "a message that has arrived meanwhile is not lost"
    body.close()


# -- ASGI: a disconnect while nothing reads

BEGINNINGS = {
    "nothing was read": [],
    "the whole body was read": [request(b"abc")],
    "half a body was read": [request(b"abc", True)],
    "a handshake was read": [CONNECT],
}
DISCONNECTS = {
    "half a body was read": DISCONNECT,
    "a handshake was read": {"type": "websocket.disconnect", "code": 1006},
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
@on_loop
async def test_a_watch_notices_the_disconnect(beginning: str) -> None:
    client, calls = FakeReceive(*BEGINNINGS[beginning]), Calls()
    body = AsgiBody(client, 100)
    for _ in BEGINNINGS[beginning]:
        await body()
    body.watch(calls.client_gone)
    await no_task_can_run()
    assert calls == [] and not body.client_gone and body.watched
    client.sends(DISCONNECTS.get(beginning, DISCONNECT))
    await no_task_can_run()
    assert calls == ["gone"] and body.client_gone


@pytest.mark.parametrize("beginning", ["the whole body was read", "a handshake was read"])
@on_loop
async def test_a_watch_reads_past_an_unread_message_that_only_a_disconnect_can_follow(beginning: str) -> None:
    client, calls = FakeReceive(*BEGINNINGS[beginning]), Calls()
    body = AsgiBody(client, 100)
    body.watch(calls.client_gone)
    await no_task_can_run()
    client.sends(DISCONNECTS.get(beginning, DISCONNECT))
    await no_task_can_run()
    assert calls == ["gone"]
    assert await body() == BEGINNINGS[beginning][0], "the message before the disconnect is still to be read"


@on_loop
async def test_a_watch_goes_on_between_the_pieces_that_are_read() -> None:
    client, calls = FakeReceive(request(b"a", True)), Calls()
    body = AsgiBody(client, 100)
    body.watch(calls.client_gone)
    for _ in range(3):
        assert (await body())["more_body"]
        client.sends(request(b"b", True))
        await no_task_can_run()
    await body()
    await no_task_can_run()
    assert calls == []
    client.sends(DISCONNECT)
    await no_task_can_run()
    assert calls == ["gone"], "no reader has called since, and yet the watch receives it"


@pytest.mark.parametrize("pieces, is_noticed", [(3, True), (20, False)], ids=["within the limit", "beyond the limit"])
@on_loop
async def test_a_watch_that_reads_on_notices_the_disconnect_behind_a_body_up_to_the_limit(
    pieces: int, is_noticed: bool
) -> None:
    sent = [request(b"0123456789", True)] * pieces
    client, calls = FakeReceive(*sent, DISCONNECT), Calls()
    body = AsgiBody(client, 100)
    body.watch(calls.client_gone, reads_on=True)
    for _ in range(pieces + 2):
        await no_task_can_run()
    assert (calls == ["gone"], client.receive_calls) == (is_noticed, 4 if is_noticed else 10)
    body.unwatch()
    body.rewind()
    assert [await body() for _ in sent] == sent


@on_loop
async def test_a_watch_does_not_read_the_body_of_a_client_that_waits_for_a_100() -> None:
    """A call of `receive` sends a 100 (RFC 9110, 10.1.1)."""
    client, calls = FakeReceive(), Calls()
    body = AsgiBody(client, 100)
    body.awaits_continue = True
    body.watch(calls.client_gone)
    await no_task_can_run()
    assert client.receive_calls == 0
    client.sends(request(b"a", True))
    assert await body() == request(b"a", True), "a reader calls receive"
    client.sends(DISCONNECT)
    await no_task_can_run()
    assert calls == ["gone"]


@on_loop
async def test_a_watch_on_a_disconnected_client_calls_at_once() -> None:
    calls = Calls()
    body = AsgiBody(FakeReceive(DISCONNECT), 100)
    await body()
    body.watch(calls.client_gone)
    assert calls == ["gone"]


@on_loop
async def test_a_removed_callback_is_not_called() -> None:
    client, calls = FakeReceive(), Calls()
    body = AsgiBody(client, 100)
    body.watch(calls.client_gone)
    await no_task_can_run()
    body.unwatch()
    assert not body.watched
    client.sends(DISCONNECT)
    await no_task_can_run()
    assert calls == [] and body.client_gone


@on_loop
async def test_a_reader_receives_what_the_watch_has_read_and_reads_do_not_overlap() -> None:
    client, calls = FakeReceive(), Calls()
    body = AsgiBody(client, 100)
    body.watch(calls.client_gone)
    await no_task_can_run()
    reader = asyncio.ensure_future(body())
    await no_task_can_run()
    assert client.receive_calls == 1
    client.sends(request(b"abc"))
    assert await reader == request(b"abc")
    client.sends(DISCONNECT)
    await no_task_can_run()
    assert calls == ["gone"]


@pytest.mark.parametrize("watched", [False, True], ids=["not watched", "watched"])
@on_loop
async def test_a_cancelled_read_loses_nothing_for_the_next_attempt(watched: bool) -> None:
    client = FakeReceive()
    body = AsgiBody(client, 100)
    if watched:
        body.watch(lambda: None)
        await no_task_can_run()
    reader = asyncio.ensure_future(body())
    await no_task_can_run()
    reader.cancel()
    body.rewind()
    following = asyncio.ensure_future(body())  # before the other has noticed its end
    await no_task_can_run()
    assert reader.cancelled()
    client.sends(request(b"abc"))
    assert await following == request(b"abc")
    body.close()


@on_loop
async def test_a_reader_of_an_earlier_attempt_takes_nothing_from_the_next() -> None:
    client = FakeReceive()
    body = AsgiBody(client, 100)
    earlier_reader = asyncio.ensure_future(body())
    await no_task_can_run()
    body.rewind()
    following = asyncio.ensure_future(body())
    await no_task_can_run()
    client.sends(request(b"abc"), DISCONNECT)
    assert await following in (request(b"abc"), DISCONNECT)
    await earlier_reader
    body.rewind()
    assert [await body(), await body()] == [request(b"abc"), DISCONNECT]


@pytest.mark.parametrize("first", ["the reader", "the watch"])
@on_loop
async def test_a_watch_goes_on_when_a_read_is_cancelled(first: str) -> None:
    client, calls = FakeReceive(), Calls()
    body = AsgiBody(client, 100)
    if first == "the watch":
        body.watch(calls.client_gone)
        await no_task_can_run()
    reader = asyncio.ensure_future(body())
    await no_task_can_run()
    body.watch(calls.client_gone)
    reader.cancel()
    await no_task_can_run()
    client.sends(DISCONNECT)
    await no_task_can_run()
    assert calls == ["gone"]


@on_loop
async def test_an_exception_of_the_server_reaches_a_reader_and_not_a_watcher() -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    client, calls = FakeReceive(), Calls()
    body = AsgiBody(client, 100)
    client.raises = RuntimeError("no more")
    body.watch(calls.client_gone)
    await no_task_can_run()
    assert (calls, unhandled) == ([], [])
    with pytest.raises(RuntimeError, match="no more"):
        await body()
    body.close()
    await no_task_can_run()
    assert unhandled == []


@on_loop
async def test_a_closed_body_reads_no_more_and_leaves_no_task() -> None:
    client, calls = FakeReceive(), Calls()
    body = AsgiBody(client, 100)
    body.watch(calls.client_gone)
    await no_task_can_run()
    assert client.waiting
    body.close()
    await no_task_can_run()
    assert not client.waiting
    assert calls == []
    body.close()


# -- without asyncio: the same in a task of its own


@pytest.mark.parametrize("beginning", ["nothing was read", "the whole body was read", "a handshake was read"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_watch_in_task_ends_when_the_client_has_disconnected(backend: str, beginning: str) -> None:
    async def test() -> None:
        client, calls = FakeReceive(*BEGINNINGS[beginning], DISCONNECTS.get(beginning, DISCONNECT)), Calls()
        body = AsgiBody(client, 100)
        with anyio.fail_after(PATIENCE):
            await body.watch_in_task(calls.client_gone)
        assert calls == ["gone"]
        for message in BEGINNINGS[beginning]:
            assert await body() == message

    anyio.run(test, backend=backend)


def test_watch_in_task_stops_at_a_message_that_has_to_be_read_first() -> None:
    async def test() -> None:
        client, calls = FakeReceive(request(b"a", True), request(b"b", True), DISCONNECT), Calls()
        body = AsgiBody(client, 100)
        with anyio.fail_after(PATIENCE):
            await body.watch_in_task(calls.client_gone)
        assert (calls, client.receive_calls) == ([], 1)
        assert await body() == request(b"a", True)

    trio.run(test)


def test_two_readers_share_one_receive_on_trio_too() -> None:
    async def test() -> None:
        client = FakeReceive()
        body = AsgiBody(client, 100)
        calls: list[Message] = []

        async def reads() -> None:
            calls.append(dict(await body()))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(reads)
                group.start_soon(reads)
                await anyio.wait_all_tasks_blocked()
                client.sends(request(b"a"), DISCONNECT)
        assert calls == [request(b"a"), DISCONNECT]

    trio.run(test)


# -- a server that reads the body and then turns out not to have executed the request


@pytest.mark.parametrize("pieces", [0, 3], ids=["with a length", "chunked"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_next_server_gets_the_body_that_a_server_has_read_without_executing_the_request(
    face: Face, method: str, pieces: int
) -> None:
    not_executed = ServerFailure(Failure.REFUSED, "s1")
    request = face.client(face.backend(face.server("s1", raises=not_executed), face.server("s2")))
    response = request(method=method, body=b"7 bytes", pieces=pieces)
    assert [each.body for each in response.tried] == [b"7 bytes", b"7 bytes"]
    assert (response.status, response.server) == (200, "s2")


def test_body_beyond_the_limit_is_not_replayed_in_part(face: Face) -> None:
    not_executed = ServerFailure(Failure.REFUSED, "s1")
    request = face.client(
        face.backend(face.server("s1", raises=not_executed), face.server("s2"), retry_body_limit=1000)
    )
    response = request(method="POST", body=bytes(200_000), pieces=50_000)
    assert (response.status, len(response.tried)) == (503, 1)
