"""Bodies: one reader per request, whom several attempts may ask. It reads as what it stands before, tells again what it
has told, keeps no more than it may, and on ASGI hears the client leave while nobody reads.
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
from sticky_wsgi.body import Body as WsgiBody

unhurried = settings(deadline=None)  # a busy machine is no defect
Message = dict[str, Any]

PIECE = 65536  # of what goes beyond the limit, so much is kept until more is asked for
PATIENCE = 300.0  # seconds for what takes milliseconds


# -- WSGI: a wsgi.input


class Input(io.BytesIO):
    """A server's. Who reads beyond the body reads the next request, or waits for ever."""

    def __init__(self, data: bytes = b"", behind: bytes | None = None) -> None:
        super().__init__(data + (behind or b""))
        self.length = len(data)
        self.ends = behind is None
        self.asked: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        return self._checked(super().read, size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._checked(super().readline, size)

    def _checked(self, read: Callable[[int | None], bytes], size: int | None) -> bytes:
        self.asked.append(-1 if size is None else size)
        if not self.ends:
            assert size is not None and size >= 0, "read to an end that never comes"
            assert self.tell() + size <= self.length, "read beyond the body"
        return read(size)


def body_of(
    data: bytes = b"", limit: int = 1 << 20, *, behind: bytes | None = b"GET /the-next HTTP/1.1", **environ: Any
) -> WsgiBody:
    """The body of a request whose CONTENT_LENGTH is told, unless told otherwise."""
    return WsgiBody({"wsgi.input": Input(data, behind), "CONTENT_LENGTH": str(len(data)), **environ}, limit)


def chunked(data: bytes = b"", limit: int = 1 << 20, **environ: Any) -> WsgiBody:
    """The body of a request whose length nobody knows before: its server marks the end."""
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
@unhurried
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
@unhurried
@given(data=TEXTS, limit=st.integers(0, 30), reads=st.lists(READS, max_size=8))
def test_beyond_the_limit_it_reads_on_all_the_same(
    made: Callable[..., WsgiBody], data: bytes, limit: int, reads: Sequence[tuple[str, int | None]]
) -> None:
    body, alone = made(data, limit), io.BytesIO(data)
    for way, size in reads:
        assert read(body, way, size) == read(alone, way, size), (way, size)
        assert body.replayable is (alone.tell() <= limit), "as much as was read is what counts"
        assert not body.discarded or not body.replayable
    if not body.discarded:
        body.rewind()
        alone.seek(0)
    assert body.read() == alone.read()


def test_read_calls_without_a_size_are_the_whole_rest() -> None:
    body = body_of(b"one\ntwo\nthree")
    assert body.readline() == b"one\n"
    assert body.readlines() == [b"two\n", b"three"]
    body.rewind()
    assert [*body] == [b"one\n", b"two\n", b"three"]
    body.rewind()
    assert body.read() == b"one\ntwo\nthree"
    assert (body.read(), body.readline(), body.readlines(), [*body]) == (b"", b"", [], [])


def test_a_piece_is_as_long_as_it_was_asked_for_even_where_it_was_told_only_in_part() -> None:
    """`read(CONTENT_LENGTH)` is what apps write, and PEP 3333 has no word for a short read."""
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
def test_who_does_not_mark_the_end_is_read_as_far_as_the_length_says(environ: dict[str, str], expected: bytes) -> None:
    came = Input(b"abc", behind=b"the next request")
    body = WsgiBody({"wsgi.input": came, **environ}, 100)
    assert body.read() == expected
    assert (body.read(), body.readline(), body.read(5), [*body]) == (b"", b"", b"", [])


@pytest.mark.parametrize(
    "environ, expected",
    [
        pytest.param({"HTTP_TRANSFER_ENCODING": "chunked"}, b"abcdef", id="chunks"),
        pytest.param({"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}, b"abcdef", id="an empty length"),
        pytest.param({}, b"abcdef", id="not a word"),
        pytest.param({"CONTENT_LENGTH": "0", "HTTP_TRANSFER_ENCODING": "chunked"}, b"abcdef", id="a wrong length"),
        pytest.param({"CONTENT_LENGTH": "3"}, b"abc", id="a length"),
    ],
)
def test_who_marks_the_end_is_read_up_to_there_unless_there_is_a_length(
    environ: dict[str, str], expected: bytes
) -> None:
    body = WsgiBody({"wsgi.input": Input(b"abcdef"), "wsgi.input_terminated": True, **environ}, 100)
    assert body.read() == expected
    body.rewind()
    assert body.readlines() == [expected]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    came = Input(b"x" * 100, behind=b"")
    body = WsgiBody({"wsgi.input": came, "CONTENT_LENGTH": "100"}, 1000)
    assert came.asked == []
    body.read(10)
    assert came.asked == [10]
    body.rewind()
    body.read(10)
    assert came.asked == [10], "what was read is not read again"
    assert body.read(0) == b""


@pytest.mark.parametrize(
    "reads, length, retellable, forgotten",
    [
        pytest.param([100], 100, True, False, id="at the limit"),
        pytest.param([60, 40, 1], 100, True, False, id="at the limit, and its end was read"),
        pytest.param([100], 200, True, False, id="at the limit, whatever is to come"),
        pytest.param([101], 101, False, False, id="beyond it, in one piece"),
        pytest.param([60, 41], 200, False, False, id="beyond it, in the last piece"),
        pytest.param([60, 41, 1], 101, False, False, id="beyond it, in the last piece, and its end was read"),
        pytest.param([60, 41, 1], 200, False, True, id="beyond it, and more was asked for"),
        pytest.param([PIECE], 2 * PIECE, False, False, id="far beyond it, in a piece of the usual size"),
        pytest.param([PIECE + 1], 2 * PIECE, False, True, id="in a piece beyond all measure"),
        pytest.param([-1], PIECE, False, False, id="the whole, which is a piece"),
        pytest.param([-1], PIECE + 1, False, True, id="the whole, which is more"),
    ],
)
def test_what_goes_beyond_the_limit_is_let_go_when_more_is_asked_for(
    reads: Sequence[int], length: int, retellable: bool, forgotten: bool
) -> None:
    data = bytes(number % 251 for number in range(length))
    body, alone = body_of(data, 100), io.BytesIO(data)
    for size in reads:
        assert body.read(size) == alone.read(size)
    assert (body.replayable, body.discarded) == (retellable, forgotten)
    if not forgotten:
        body.rewind()
        assert body.read() == data, "who has given up may be followed by another"


@pytest.mark.parametrize("limit", [0, 1000, PIECE])
def test_it_keeps_no_more_than_the_limit_and_a_piece(limit: int) -> None:
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


GONE: Message = {"type": "http.disconnect"}
CONNECT: Message = {"type": "websocket.connect"}


class Client:
    """A `receive` that is fed by hand, and that nobody may call twice at once."""

    def __init__(self, *messages: Message) -> None:
        self.messages = [*messages]
        self.asked = 0  # how often it was called
        self.waiting = False
        self.raises: Exception | None = None
        self._news = anyio.Event()

    def says(self, *messages: Message) -> None:
        self.messages += messages
        self._news.set()

    async def __call__(self) -> Message:
        assert not self.waiting, "receive was called twice at once"
        self.asked += 1
        self.waiting = True
        try:
            if self.raises is not None:
                raise self.raises
            while not self.messages:
                self._news = anyio.Event()
                await self._news.wait()
            await anyio.lowlevel.checkpoint()
            return self.messages.pop(0)
        finally:
            self.waiting = False


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """`test` on an event loop, which no task may outlive."""

    async def alone(**given: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            await test(**given)
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

    @wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(alone(**given))

    return run


async def settled() -> None:
    """Whatever can happen by itself has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


class Told(list[str]):
    """What a watcher was told."""

    def gone(self) -> None:
        self.append("gone")


PIECES = st.lists(st.binary(max_size=6), max_size=6)


def said(pieces: Sequence[bytes], leaves: bool) -> list[Message]:
    """What a client sends: a body in pieces, and perhaps it leaves in the middle."""
    if leaves:
        return [request(piece, True) for piece in pieces] + [GONE]
    return [*(request(piece, True) for piece in pieces[:-1]), request(b"".join(pieces[-1:])), GONE]


@unhurried
@given(
    pieces=PIECES,
    leaves=st.booleans(),
    attempts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    watches=st.booleans(),
)
def test_each_attempt_receives_what_it_would_have_received_alone(
    pieces: Sequence[bytes], leaves: bool, attempts: Sequence[int], watches: bool
) -> None:
    async def run() -> None:
        messages = said(pieces, leaves)
        body = AsgiBody(Client(*messages), 1000)
        for number in attempts:
            if watches:
                body.watch(lambda: None)
                await settled()
            alone = [*messages, *([GONE] * 10)]
            assert [await body() for _ in range(number)] == alone[:number]
            body.rewind()
            assert body.replayable and not body.discarded
        body.close()

    asyncio.run(run())


@unhurried
@given(pieces=PIECES, limit=st.integers(0, 20), watches=st.booleans())
def test_beyond_the_limit_it_receives_on_all_the_same(pieces: Sequence[bytes], limit: int, watches: bool) -> None:
    async def run() -> None:
        messages = said(pieces, False)
        body = AsgiBody(Client(*messages), limit)
        kept = 0
        for message in messages:
            if watches:
                body.watch(lambda: None)
            assert await body() == message
            kept += len(message.get("body", b""))
            if kept > limit:
                assert not body.replayable
            if not watches:  # else it may know already that there will be too much
                assert body.replayable is (kept <= limit)
        body.close()
        body.rewind()
        if kept <= limit:
            assert [await body() for _ in messages] == messages

    asyncio.run(run())


@on_loop
async def test_a_body_is_told_again_in_the_pieces_in_which_it_came() -> None:
    client = Client(request(b"ab", True), request(b"", True), request(b"c"))
    body = AsgiBody(client, 100)
    first = [await body() for _ in range(3)]
    body.rewind()
    assert [await body() for _ in range(3)] == first
    assert client.asked == 3
    assert all(one is other for one, other in zip(first, [body._messages[0], *first[1:]], strict=True))


@on_loop
async def test_what_goes_beyond_the_limit_is_let_go_when_more_is_asked_for_on_asgi() -> None:
    client = Client(request(b"x" * 60, True), request(b"y" * 60, True), request(b"z"))
    body = AsgiBody(client, 100)
    await body()
    assert (body.replayable, body.discarded) == (True, False)
    await body()
    assert (body.replayable, body.discarded) == (False, False)
    body.rewind()
    assert [(await body())["body"][:1] for _ in range(2)] == [b"x", b"y"], "who gives up here may be followed"
    assert (await body())["body"] == b"z"
    assert (body.replayable, body.discarded) == (False, True)


@on_loop
async def test_it_keeps_no_more_than_the_limit_and_a_message_on_asgi() -> None:
    client = Client()
    body = AsgiBody(client, 100)
    body.watch(lambda: None)
    for _ in range(50):
        client.says(request(b"x" * 60, True))
        await body()
        await settled()
    client.says(*(request(b"x" * 60, True) for _ in range(10)))
    await settled()
    kept = sum(len(message["body"]) for message in body._messages)
    assert kept <= 100 + 60
    assert len(client.messages) >= 8, "it looks one message ahead, and leaves the rest where it is"
    body.close()


@on_loop
async def test_the_beginning_of_a_websocket_is_told_again_and_its_messages_are_not() -> None:
    heard: Message = {"type": "websocket.receive", "text": "hello"}
    body = AsgiBody(Client(CONNECT, heard), 100)
    assert await body() == CONNECT
    body.rewind()
    assert body.replayable
    assert [await body(), await body()] == [CONNECT, heard]
    assert not body.replayable


@on_loop
async def test_a_client_that_has_left_has_left_for_ever_and_in_the_words_of_its_protocol() -> None:
    left: Message = {"type": "websocket.disconnect", "code": 1001}
    body = AsgiBody(Client(CONNECT, {"type": "websocket.receive", "text": "a"}, left), 100)
    told = [await body() for _ in range(6)]
    assert told[2:] == [left] * 4
    assert body.gone

    body = AsgiBody(Client(request(b"a"), GONE), 100)
    assert [await body() for _ in range(4)] == [request(b"a"), GONE, GONE, GONE]
    body.rewind()
    assert [await body() for _ in range(3)] == [request(b"a"), GONE, GONE], "and yet what it sent is told again"


@on_loop
async def test_what_is_there_already_is_told_at_once_and_what_is_not_is_not_waited_for() -> None:
    messages = [request(b"a", True), GONE]

    async def ready() -> Message:
        return messages.pop(0)

    body = AsgiBody(ready, 100)
    assert await body.next_if_arrived() == request(b"a", True)
    body.rewind()
    assert await body.next_if_arrived() == request(b"a", True), "it was kept"
    assert [await body.next_if_arrived(), await body.next_if_arrived()] == [GONE, GONE]

    client = Client()
    body = AsgiBody(client, 100)
    assert await body.next_if_arrived() is None
    assert await body.next_if_arrived() is None
    assert client.asked == 1
    client.says(request(b"a"))
    assert await body() == request(b"a"), "what has come in the meantime is not lost"
    body.close()


# -- whose client leaves while nobody reads

BEGINNINGS = {
    "nothing was read": [],
    "the whole body was read": [request(b"abc")],
    "half a body was read": [request(b"abc", True)],
    "a handshake was read": [CONNECT],
}
FAREWELLS = {"half a body was read": GONE, "a handshake was read": {"type": "websocket.disconnect", "code": 1006}}


@pytest.mark.parametrize("beginning", BEGINNINGS)
@on_loop
async def test_the_watch_hears_the_client_leave(beginning: str) -> None:
    client, told = Client(*BEGINNINGS[beginning]), Told()
    body = AsgiBody(client, 100)
    for _ in BEGINNINGS[beginning]:
        await body()
    body.watch(told.gone)
    await settled()
    assert told == [] and not body.gone and body.watched
    client.says(FAREWELLS.get(beginning, GONE))
    await settled()
    assert told == ["gone"] and body.gone


@pytest.mark.parametrize("beginning", ["the whole body was read", "a handshake was read"])
@on_loop
async def test_it_looks_past_what_nobody_has_read_yet_where_only_the_leave_can_follow(beginning: str) -> None:
    client, told = Client(*BEGINNINGS[beginning]), Told()
    body = AsgiBody(client, 100)
    body.watch(told.gone)
    await settled()
    client.says(FAREWELLS.get(beginning, GONE))
    await settled()
    assert told == ["gone"]
    assert await body() == BEGINNINGS[beginning][0], "what came before is still to be read"


@on_loop
async def test_a_watch_goes_on_between_the_pieces_that_are_read() -> None:
    client, told = Client(request(b"a", True)), Told()
    body = AsgiBody(client, 100)
    body.watch(told.gone)
    for _ in range(3):
        assert (await body())["more_body"]
        client.says(request(b"b", True))
        await settled()
    await body()
    await settled()
    assert told == []
    client.says(GONE)
    await settled()
    assert told == ["gone"], "nobody has asked for more since, and yet it is heard"


@on_loop
async def test_a_client_that_waits_to_be_asked_for_its_body_is_not_asked_by_the_way() -> None:
    """Who calls `receive` promises a 100 (RFC 9110, 10.1.1)."""
    client, told = Client(), Told()
    body = AsgiBody(client, 100)
    body.silent = True
    body.watch(told.gone)
    await settled()
    assert client.asked == 0
    client.says(request(b"a", True))
    assert await body() == request(b"a", True), "somebody wants it"
    client.says(GONE)
    await settled()
    assert told == ["gone"]


@on_loop
async def test_who_watches_a_client_that_has_left_is_told_at_once() -> None:
    told = Told()
    body = AsgiBody(Client(GONE), 100)
    await body()
    body.watch(told.gone)
    assert told == ["gone"]


@on_loop
async def test_who_no_longer_watches_is_not_told() -> None:
    client, told = Client(), Told()
    body = AsgiBody(client, 100)
    body.watch(told.gone)
    await settled()
    body.unwatch()
    assert not body.watched
    client.says(GONE)
    await settled()
    assert told == [] and body.gone


@on_loop
async def test_a_reader_hears_what_the_watch_has_read_and_nothing_is_read_twice_at_once() -> None:
    client, told = Client(), Told()
    body = AsgiBody(client, 100)
    body.watch(told.gone)
    await settled()
    reader = asyncio.ensure_future(body())
    await settled()
    assert client.asked == 1
    client.says(request(b"abc"))
    assert await reader == request(b"abc")
    client.says(GONE)
    await settled()
    assert told == ["gone"]


@pytest.mark.parametrize("watched", [False, True], ids=["nobody watches", "somebody watches"])
@on_loop
async def test_a_read_that_is_given_up_loses_nothing_for_the_next_attempt(watched: bool) -> None:
    client = Client()
    body = AsgiBody(client, 100)
    if watched:
        body.watch(lambda: None)
        await settled()
    reader = asyncio.ensure_future(body())
    await settled()
    reader.cancel()
    body.rewind()
    following = asyncio.ensure_future(body())  # before the other has heard that it is over
    await settled()
    assert reader.cancelled()
    client.says(request(b"abc"))
    assert await following == request(b"abc")
    body.close()


@on_loop
async def test_a_reader_that_an_attempt_has_left_behind_takes_nothing_from_the_next() -> None:
    client = Client()
    body = AsgiBody(client, 100)
    left_behind = asyncio.ensure_future(body())
    await settled()
    body.rewind()
    following = asyncio.ensure_future(body())
    await settled()
    client.says(request(b"abc"), GONE)
    assert await following in (request(b"abc"), GONE)
    await left_behind
    body.rewind()
    assert [await body(), await body()] == [request(b"abc"), GONE]


@pytest.mark.parametrize("first", ["the reader", "the watch"])
@on_loop
async def test_a_watch_goes_on_when_a_read_is_given_up(first: str) -> None:
    client, told = Client(), Told()
    body = AsgiBody(client, 100)
    if first == "the watch":
        body.watch(told.gone)
        await settled()
    reader = asyncio.ensure_future(body())
    await settled()
    body.watch(told.gone)
    reader.cancel()
    await settled()
    client.says(GONE)
    await settled()
    assert told == ["gone"]


@on_loop
async def test_a_server_that_raises_raises_for_who_reads_and_not_for_who_watches() -> None:
    loud: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loud.append(context))
    client, told = Client(), Told()
    body = AsgiBody(client, 100)
    client.raises = RuntimeError("no more")
    body.watch(told.gone)
    await settled()
    assert (told, loud) == ([], [])
    with pytest.raises(RuntimeError, match="no more"):
        await body()
    body.close()
    await settled()
    assert loud == []


@on_loop
async def test_a_body_that_is_closed_reads_no_more_and_leaves_no_task_behind() -> None:
    client, told = Client(), Told()
    body = AsgiBody(client, 100)
    body.watch(told.gone)
    await settled()
    assert client.waiting
    body.close()
    await settled()
    assert not client.waiting
    assert told == []
    body.close()


# -- where there is no asyncio, the same for who has a task to spare


@pytest.mark.parametrize("beginning", ["nothing was read", "the whole body was read", "a handshake was read"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_until_gone_ends_when_the_client_has_left(backend: str, beginning: str) -> None:
    async def test() -> None:
        client, told = Client(*BEGINNINGS[beginning], FAREWELLS.get(beginning, GONE)), Told()
        body = AsgiBody(client, 100)
        with anyio.fail_after(PATIENCE):
            await body.until_gone(told.gone)
        assert told == ["gone"]
        for message in BEGINNINGS[beginning]:
            assert await body() == message

    anyio.run(test, backend=backend)


def test_until_gone_stops_at_what_somebody_has_to_read_first() -> None:
    async def test() -> None:
        client, told = Client(request(b"a", True), request(b"b", True), GONE), Told()
        body = AsgiBody(client, 100)
        with anyio.fail_after(PATIENCE):
            await body.until_gone(told.gone)
        assert (told, client.asked) == ([], 1)
        assert await body() == request(b"a", True)

    trio.run(test)


def test_two_readers_share_one_receive_on_trio_too() -> None:
    async def test() -> None:
        client = Client()
        body = AsgiBody(client, 100)
        told: list[Message] = []

        async def reads() -> None:
            told.append(dict(await body()))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(reads)
                group.start_soon(reads)
                await anyio.wait_all_tasks_blocked()
                client.says(request(b"a"), GONE)
        assert told == [request(b"a"), GONE]

    trio.run(test)
