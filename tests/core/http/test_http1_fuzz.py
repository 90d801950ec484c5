"""Generated responses: parsed as by h11, or a table lists the difference and its reason.

Few examples of each by default, many with `-m long`.
"""

import re
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sticky_core.http.http1 import (
    HOP_BY_HOP,
    MAX_HEAD,
    BadResponse,
    Header,
    ResponseParser,
    connection_options,
    is_removable,
)

h11 = pytest.importorskip("h11")

#: by default, and with -m long
EXAMPLES = pytest.mark.parametrize("examples", [500, pytest.param(10_000, marks=pytest.mark.long)])

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\nhello"


def examine(check: Callable[..., None], examples: int, **drawn: st.SearchStrategy[object]) -> None:
    busy = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=examples, deadline=None, suppress_health_check=busy)(given(**drawn)(check))()


# -- two parsers


@dataclass(frozen=True)
class Read:
    """A response as one of the parsers returned it."""

    status: int
    headers: Sequence[Header]
    body: bytes
    over: bool
    reusable: bool


def ours(reads: Sequence[bytes], method: str, closed: bool) -> Read | str:
    """What we read, or why it is no answer."""
    answers = ResponseParser()
    answers.begin_response(method)
    body: list[bytes] = []
    try:
        for data in reads:
            if answers.finished:
                answers.reusable = False
                break
            answers.feed(data)
            body += iter(answers.take_body, b"")
        if closed:
            answers.feed_eof()
    except BadResponse as problem:
        return str(problem)
    headers = answers.headers if answers.status else []
    return Read(answers.status, headers, b"".join(body), answers.finished, answers.finished and answers.reusable)


def theirs(reads: Sequence[bytes], method: str, closed: bool) -> Read | str:
    """What h11 reads, less the headers that we drop, or why it is no answer."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "shop.example")]))
    connection.send(h11.EndOfMessage())
    status, headers, body, over = 0, list[Header](), list[bytes](), False
    try:
        for data in (*reads, *([b""] if closed else [])):
            if over and not data:
                break
            connection.receive_data(data)
            while not over:
                event = connection.next_event()
                if isinstance(event, h11.Response):
                    status, headers = event.status_code, list(event.headers)
                elif isinstance(event, h11.Data):
                    body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    over = True
                elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                    break
    except h11.RemoteProtocolError as problem:
        if not (status and re.match("peer (unexpectedly )?closed connection", str(problem))):
            return str(problem)  # the other case: it is not over
    reusable = over and connection.their_state is h11.DONE and not connection.trailing_data[0]
    return Read(status, passed_on(headers, status), b"".join(body), over, reusable)


def passed_on(headers: Sequence[Header], status: int) -> list[Header]:
    """The headers of an answer that go further (RFC 9110, 7.6.1), less Date and Server."""
    named = [name for key, value in headers if key == b"connection" for name in connection_options(value)]
    gone = {*HOP_BY_HOP, b"proxy-authorization", b"date", b"server", *filter(is_removable, named)}
    if status in (204, 304):
        gone.add(b"content-length")
    return [(name, value) for name, value in headers if name not in gone]


# -- where they differ


@dataclass(frozen=True)
class Difference:
    """What one of the two refuses, and what it says; the other takes `example`."""

    reason: str
    example: bytes


#: llhttp says most of these; RFC 9112 lets a client refuse every one.
ONLY_WE_REFUSE = {
    "HTTP/1.2 and whatever else is not known": Difference(
        "Invalid HTTP version", WHOLE.replace(b"HTTP/1.1", b"HTTP/1.2")
    ),
    "HTTP/2.0 in the form of HTTP/1": Difference(r"a response in HTTP/\d.\d", WHOLE.replace(b"HTTP/1.1", b"HTTP/2.0")),
    "a folded value": Difference(
        "Unexpected whitespace after header value", WHOLE.replace(b"5\r\n", b"5\r\nX-A: 1\r\n 2\r\n", 1)
    ),
    "lone LFs behind the status line": Difference(
        "Missing expected CR after response line", WHOLE.replace(b"OK\r\n", b"OK\n")
    ),
    "a lone LF behind a status without a reason": Difference(
        "Invalid response status", WHOLE.replace(b" OK\r\n", b"\n")
    ),
    "lone LFs behind a header": Difference("Missing expected CR after header value", WHOLE.replace(b"5\r\n", b"5\n")),
    "a lone LF for the end of a head": Difference("Invalid header field char", OK + b"Content-Length: 5\r\n\nhello"),
    "a control character in a value": Difference(
        "Invalid header value char", WHOLE.replace(b"5\r\n", b"5\r\nX-A: \x01\r\n", 1)
    ),
    "a length and chunks": Difference(
        "Transfer-Encoding can't be present with Content-Length",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunks and a length": Difference(
        "Content-Length can't be present with (Transfer-Encoding|chunked encoding)",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    "one length twice": Difference(
        "Duplicate Content-Length", OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "one length twice in a line": Difference(
        "Invalid character in Content-Length", OK + b"Content-Length: 5, 5\r\n\r\nhello"
    ),
    "a length beyond 64 bits": Difference(
        "Content-Length overflow", OK + b"Content-Length: 99999999999999999999\r\n\r\n"
    ),
    "close in an interim answer": Difference(
        "Data after `Connection: close`", b"HTTP/1.1 103 x\r\nConnection: close\r\n\r\n" + WHOLE
    ),
    "many interim answers": Difference("more than 16 interim responses", b"HTTP/1.1 103 x\r\n\r\n" * 17 + WHOLE),
    "a space behind a chunk's size": Difference(
        "Invalid character in chunk size", CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"
    ),
    "a chunk's size beyond 64 bits": Difference("Chunk size overflow", CHUNKED + b"10000000000000000\r\n"),
    "chunked with a tab behind it, which llhttp does not know": Difference(
        "a transfer coding other than chunked", CHUNKED.replace(b"chunked", b"chunked\t") + b"0\r\n\r\n"
    ),
    "an extension that is none": Difference(
        "Invalid character in chunk extensions( name| value| quoted value|)", CHUNKED + b"5;\r\nhello\r\n0\r\n\r\n"
    ),
    "a lone CR in a chunk's extension": Difference(
        "Expected LF after chunk size", CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n"
    ),
}

#: None of these changes where an answer ends.
ONLY_H11_REFUSES = {
    "white space of other kinds in the reason, which we drop": Difference(
        "illegal status line", WHOLE.replace(b"OK", b"\x0b")
    ),
    "framing in a trailer, which we drop": Difference(
        "Only Transfer-Encoding: chunked is|multiple Transfer-Encoding",
        CHUNKED + b"0\r\nTransfer-Encoding: gzip\r\n\r\n",
    ),
    # h11 calls it a request line if no more than the first half has come
    "a line break between answers": Difference(
        "no response line received|illegal request line", b"HTTP/1.1 103 x\r\n\r\n\r\n" + WHOLE
    ),
}


def explained(reason: str, table: dict[str, Difference]) -> bool:
    return any(re.match(difference.reason, reason) for difference in table.values())


@pytest.mark.parametrize("difference", [pytest.param(row, id=name) for name, row in ONLY_WE_REFUSE.items()])
def test_some_responses_only_we_refuse(difference: Difference):
    refused = ours([difference.example], "GET", False)
    assert isinstance(refused, str)
    assert re.fullmatch(difference.reason, refused)
    assert isinstance(theirs([difference.example], "GET", False), Read)


@pytest.mark.parametrize("difference", [pytest.param(row, id=name) for name, row in ONLY_H11_REFUSES.items()])
def test_some_responses_only_h11_refuses(difference: Difference):
    refused = theirs([difference.example], "GET", False)
    assert isinstance(refused, str)
    assert re.match(difference.reason, refused)
    read = ours([difference.example], "GET", False)
    assert isinstance(read, Read)
    assert read.over


def agree(reads: list[bytes], method: str, closed: bool) -> None:
    """Both read the same, or both read nothing, or the tables say why only one does. h11 may wait for the end of a line
    that need not be reported.
    """
    we, they = ours(reads, method, closed), theirs(reads, method, closed)
    if isinstance(we, str):
        assert isinstance(they, str) or not they.over or explained(we, ONLY_WE_REFUSE), f"only we refuse: {we}"
    elif isinstance(they, str):
        assert explained(they, ONLY_H11_REFUSES), f"only h11 refuses: {they}"
    else:
        assert (we.status, list(we.headers), we.body, we.over) == (they.status, they.headers, they.body, they.over)
        # h11 knows no keep-alive of HTTP/1.0; for the rest, what we keep it would keep
        assert they.reusable or not we.reusable or re.search(rb"^HTTP/1.0 ", b"".join(reads), re.MULTILINE)


# -- responses that are mostly valid

tokens = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=6).map(str.encode)
texts = st.text("aZ0 \t,;=\"'\x80\xff", max_size=12).map(lambda text: text.encode("latin-1"))
good_lines = st.sampled_from(
    [
        b"X-A: 1\r\n",
        b"x-b:\r\n",
        b"Set-Cookie: a=1; Path=/\r\n",
        b"Set-Cookie:  b=2 \t\r\n",
        b'ETag:W/"x"\r\n',
        b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n",
        b"Server: x\r\n",
        b"Keep-Alive: timeout=5\r\n",
        b"Upgrade: h2c\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: x-a,, X-B\r\n",
        b"Connection: Close , Content-Length\r\n",
    ]
) | st.builds(b"%b: %b\r\n".__mod__, st.tuples(tokens, texts))
odd_lines = st.sampled_from(
    [
        b" X-A: 1\r\n",
        b"X-A : 1\r\n",
        b"X-A\r\n",
        b": 1\r\n",
        b"X-A: 1\r\n 2\r\n",
        b"X-A: 1\n",
        b"X-A: 1\r",
        b"X-A: \0\r\n",
        b"X-A: \x01\r\n",
        b"X-A: \x0b1\r\n",
        b"X A: 1\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: CHUNKED \r\n",
        b"\r\n",
    ]
)
good_starts = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 404 ", b"HTTP/1.1 204 x", b"HTTP/1.1 304 x", b"HTTP/1.0 200 OK"]
)
odd_starts = st.sampled_from(
    [
        b"HTTP/2.0 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.1 099 x",
        b"HTTP/1.1 999 x",
        b"HTTP/1.1 20 x",
        b"HTTP/1.1 2000 x",
        b"HTTP/1.1 101 x",
        b"HTTP/1.1 205 \xfc\t",
        b"HTTP/1.1 200 \x01",
        b"HTTP/1.1 200 \x0b",
        b"HTTP/1.1  200 OK",
        b"http/1.1 200 OK",
        b"RTSP/1.0 200 OK",
        b"\r\nHTTP/1.1 200 OK",
    ]
)
bodies = st.sampled_from([b"", b"hello", b"hello\n", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", WHOLE]) | st.binary(
    max_size=30
)
good_sizes = st.sampled_from(["{:x}\r\n", "{:X}\r\n", "00{:x}\r\n", "{:x};a\r\n", '{:x};a=b;c="d;e"\r\n'])
odd_sizes = st.sampled_from(
    ["{:x} \r\n", " {:x}\r\n", "{:x};\r\n", "{:x}\n", "0x{:x}\r\n", "{:x}; a\r\n", '{:x};a="\n"\r\n']
)
interim = st.sampled_from([b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 x\r\nLink: a\r\n\r\n" * 2])
behind = st.sampled_from([b"", b"", b"", b"\r\n", b"\n", b"x", b"0\r\n\r\n", WHOLE])


@st.composite
def sent_answers(draw: st.DrawFn) -> bytes:
    """The bytes of one connection, with one oddity at most: interim answers, an answer, and perhaps more."""
    oddity = draw(st.sampled_from(["none", "none", "start", "line", "size", "trailer", "length", "chunk"]))
    lines = draw(st.lists(good_lines, max_size=4))
    if oddity == "line":
        lines.append(draw(odd_lines))
    data = draw(bodies)
    if draw(st.booleans()) or oddity in ("size", "trailer", "chunk"):
        lines.insert(0, b"Transfer-Encoding: chunked\r\n")
        size = draw(odd_sizes if oddity == "size" else good_sizes).format(len(data)).encode()
        chunk = size + data + (draw(st.sampled_from([b"\n", b"", b"\r", b"x"])) if oddity == "chunk" else b"\r\n")
        trailers = draw(st.lists(odd_lines if oddity == "trailer" else good_lines, max_size=2))
        end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"", b"\n"]))
        body = (chunk if data else b"") * 2 + b"0\r\n" + b"".join(trailers) + end
    elif draw(st.integers(0, 3)) == 0:
        body = data
    else:
        off = draw(st.sampled_from([-1, 1, 5])) if oddity == "length" else 0
        lines.append(b"Content-Length: %d\r\n" % max(len(data) + off, 0))
        body = data
    start = draw(odd_starts if oddity == "start" else good_starts) + b"\r\n"
    return draw(interim) + start + b"".join(lines) + b"\r\n" + body + draw(behind)


GOOD = [
    WHOLE,
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + WHOLE,
    OK + b"Connection: close, x-a\r\nX-A: 1\r\nSet-Cookie: a=1\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.0 404 Not Found\r\nConnection: keep-alive\r\nContent-Length: 12\r\n\r\nnot\r\n\r\nfound",
    OK + b"Vary: a\r\nVary: b\r\n\r\nuntil the end",
    b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 5\r\n\r\n',
    CHUNKED + b'5\r\nhello\r\nA;a=b;c="d"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n',
    OK + b"Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n0\r\nX-Sum:\r\n\r\n",
]


@st.composite
def spoilt_answers(draw: st.DrawFn) -> bytes:
    """A good answer in which a few bytes are others, more or less."""
    sent = bytearray(draw(st.sampled_from(GOOD)))
    some = st.integers(0, 255) | st.sampled_from(b"\r\n\0 \t:;,0a\x7f\x80")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(sent) - 1))
        sent[at : at + draw(st.integers(0, 2))] = bytes(draw(st.lists(some, max_size=2)))
    return bytes(sent)


@st.composite
def reads_of(draw: st.DrawFn, answers: st.SearchStrategy[bytes]) -> list[bytes]:
    """The same bytes in a few reads."""
    sent = draw(answers)
    cuts = sorted({0, len(sent), *(draw(st.lists(st.integers(0, len(sent)), max_size=4)))})
    return [sent[begin:end] for begin, end in pairwise(cuts)]


methods = st.sampled_from(["GET", "GET", "GET", "HEAD"])


@EXAMPLES
def test_valid_responses_are_parsed_as_by_h11(examples: int):
    examine(agree, examples, reads=reads_of(sent_answers()), method=methods, closed=st.booleans())


@EXAMPLES
def test_corrupted_responses_are_parsed_as_by_h11(examples: int):
    examine(agree, examples, reads=reads_of(spoilt_answers()), method=methods, closed=st.booleans())


@EXAMPLES
def test_any_bytes_are_a_response_or_are_refused(examples: int):
    def survives(reads: list[bytes], method: str, closed: bool) -> None:
        read = ours(reads, method, closed)
        if isinstance(read, Read):
            assert len(read.body) <= sum(map(len, reads))

    anything = st.binary(max_size=60).map(OK.__add__) | st.binary(max_size=60).map(CHUNKED.__add__) | st.binary()
    examine(survives, examples, reads=reads_of(anything), method=methods, closed=st.booleans())


@EXAMPLES
def test_chunks_are_joined_whatever_they_contain_and_however_they_are_split(examples: int):
    def put_together(pieces: list[tuple[bytes, str]], trailers: list[bytes], data: st.DataObject) -> None:
        chunks = b"".join(size.format(len(piece)).encode() + piece + b"\r\n" for piece, size in pieces if piece)
        sent = CHUNKED + chunks + b"0\r\n" + b"".join(trailers) + b"\r\n"
        read = ours(data.draw(reads_of(st.just(sent))), "GET", False)
        assert isinstance(read, Read)
        assert (read.body, read.over) == (b"".join(piece for piece, _ in pieces), True)
        assert read.reusable

    trailer = st.sampled_from([b"X-Sum: 1\r\n", b"x:\r\n", b'ETag: "\xff"\r\n'])
    pieces = st.lists(st.tuples(bodies, good_sizes), max_size=4)
    examine(put_together, examples, pieces=pieces, trailers=st.lists(trailer, max_size=2), data=st.data())


# -- responses that never end

READ = 16384
ENDLESS = {
    "a reason": (b"HTTP/1.1 200 ", b"x"),
    "a header's name": (OK, b"x"),
    "a header's value": (OK + b"X-A: ", b"x"),
    "spaces before a value": (OK + b"X-A:", b" "),
    "headers": (OK, b"X-A: 1\r\n"),
    "names that go with the connection": (OK, b"Connection: x\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of an interim answer": (b"HTTP/1.1 103 x\r\n", b"X-A: 1\r\n"),
    "digits of a length": (OK + b"Content-Length: ", b"0"),
    "zeros before a chunk's size": (CHUNKED, b"0"),
    "a chunk's extension": (CHUNKED + b"1;", b"x"),
    "a chunk's quoted extension": (CHUNKED + b'1;a="', b"x"),
    "chunks with long extensions": (CHUNKED, b"1;" + b"x" * 200 + b"\r\nx\r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"X-A: 1\r\n"),
    "a trailer's name": (CHUNKED + b"0\r\n", b"x"),
    "a trailer's value": (CHUNKED + b"0\r\nX-A: ", b"x"),
    "line breaks": (b"", b"\r\n"),
    "line breaks after an interim answer": (b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n"),
}
UNENDING_BODIES = {
    "a length": (OK + b"Content-Length: 18446744073709551615\r\n\r\n", b"x"),
    "whatever comes": (OK + b"\r\n", b"x"),
    "one chunk": (CHUNKED + b"ffffffffffffffff\r\n", b"x"),
    "small chunks": (CHUNKED, b"1\r\nx\r\n"),
    "chunks with short extensions": (CHUNKED, b"1;a=b\r\nx\r\n"),
}


def without_end(begin: bytes, more: bytes) -> Iterator[bytes]:
    """A million bytes in reads of one size, which end wherever they do."""
    rest = begin
    for _ in range(2**20 // READ):
        rest += more * (READ // len(more) + 1)
        yield rest[:READ]
        rest = rest[READ:]


@pytest.mark.parametrize("begin, more", [pytest.param(*row, id=name) for name, row in ENDLESS.items()])
def test_a_response_that_never_ends_is_refused_soon(begin: bytes, more: bytes):
    answers = ResponseParser()
    answers.begin_response("GET")
    fed = 0

    def feed() -> None:
        nonlocal fed
        for data in without_end(begin, more):
            fed += len(data)
            answers.feed(data)
            while answers.take_body():
                pass

    with pytest.raises(BadResponse):
        feed()
    assert fed <= 2 * MAX_HEAD


@pytest.mark.parametrize("begin, more", [pytest.param(*row, id=name) for name, row in UNENDING_BODIES.items()])
def test_a_body_that_never_ends_takes_no_more_memory_than_one_read(begin: bytes, more: bytes):
    answers = ResponseParser()
    answers.begin_response("GET")
    reads = list(without_end(begin, more))
    tracemalloc.start()
    try:
        for data in reads:
            answers.feed(data)
            while answers.take_body():
                pass
        assert tracemalloc.get_traced_memory()[1] < 2**20 / 2 + 40 * READ
    finally:
        tracemalloc.stop()
    assert not answers.finished
