"""Responses of servers, valid and invalid ones, and what the parser returns for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sticky_core.http.http1 import (
    MAX_INTERIM,
    BadResponse,
    Header,
    ResponseParser,
)

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: 5\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = OK + b"\r\n"
WHOLE = LENGTH + b"hello"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"


@dataclass(frozen=True)
class ParsedResponse:
    """What the parser returned for a response."""

    status: int = 200
    headers: Sequence[Header] = ()
    body: bytes = b""
    trailers: Sequence[Header] = ()
    over: bool = True
    reusable: bool = True
    rest: bytes = b""


def read(*reads: bytes, method: str = "GET", upgrade: bool = False, closed: bool = False) -> ParsedResponse:
    """The response that came in these reads. Data after its end in a further read is refused, and ends the connection
    as it would have in the same read.
    """
    parser = ResponseParser()
    parser.begin_response(method, upgrade)
    pieces = []
    for at, data in enumerate(reads):
        if parser.status == 101:
            parser.upgraded_data += b"".join(reads[at:])
            break
        if parser.finished:
            with pytest.raises(BadResponse, match="data after the response"):
                parser.feed(data)
            break
        parser.feed(data)
        pieces.append(taken(parser))
    if closed:
        parser.feed_eof()
    return ParsedResponse(
        parser.status,
        tuple(parser.headers),
        b"".join(pieces),
        tuple(parser.trailers),
        parser.finished,
        parser.finished and parser.reusable,
        parser.upgraded_data,
    )


def taken(parser: ResponseParser) -> bytes:
    """What has come of the body, in however many pieces."""
    return b"".join(iter(parser.take_body, b""))


def feed_and_finish(parser: ResponseParser, sent: bytes) -> None:
    parser.feed(sent)
    parser.feed_eof()


def outcome(*reads: bytes, method: str = "GET", upgrade: bool = False, closed: bool = False) -> ParsedResponse | None:
    """The response, or None if it is none."""
    try:
        return read(*reads, method=method, upgrade=upgrade, closed=closed)
    except BadResponse:
        return None


def length(value: bytes) -> Header:
    return b"content-length", value


@dataclass(frozen=True)
class ResponseCase:
    """What a server sends, and what it is: a response, or None where it is none."""

    sent: bytes
    got: ParsedResponse | None
    method: str = "GET"
    upgrade: bool = False
    closed: bool = field(default=False, kw_only=True)  #: whether the server closes behind it

    def outcome(self, *reads: bytes) -> ParsedResponse | None:
        return outcome(*(reads or (self.sent,)), method=self.method, upgrade=self.upgrade, closed=self.closed)


HELLO = ParsedResponse(headers=(length(b"5"),), body=b"hello")
IN_CHUNKS = ParsedResponse(body=b"hello")

BODIES = {
    "a length": ResponseCase(WHOLE, HELLO),
    "a length of 0": ResponseCase(OK + b"Content-Length: 0\r\n\r\n", ParsedResponse(headers=(length(b"0"),))),
    "a length with zeros before it": ResponseCase(
        OK + b"Content-Length: 0005\r\n\r\nhello", ParsedResponse(headers=(length(b"0005"),), body=b"hello")
    ),
    "a length, and less than that": ResponseCase(
        LENGTH + b"hell", ParsedResponse(headers=(length(b"5"),), body=b"hell", over=False, reusable=False)
    ),
    "a length, less, and the end": ResponseCase(
        LENGTH + b"hell", ParsedResponse(headers=(length(b"5"),), body=b"hell", over=False, reusable=False), closed=True
    ),
    "a body that ends with a line break": ResponseCase(
        OK + b"Content-Length: 6\r\n\r\nhell\r\n", ParsedResponse(headers=(length(b"6"),), body=b"hell\r\n")
    ),
    "a body of nothing but line breaks": ResponseCase(
        OK + b"Content-Length: 6\r\n\r\n\r\n\r\n\r\n", ParsedResponse(headers=(length(b"6"),), body=b"\r\n\r\n\r\n")
    ),
    "a body that looks like a head": ResponseCase(
        OK + b"Content-Length: 19\r\n\r\n" + UNTIL_CLOSE, ParsedResponse(headers=(length(b"19"),), body=UNTIL_CLOSE)
    ),
    "chunks": ResponseCase(CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", IN_CHUNKS),
    "chunks of line breaks": ResponseCase(
        CHUNKED + b"2\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n", ParsedResponse(body=b"\r\n\r\n")
    ),
    "no chunk but the last": ResponseCase(CHUNKED + b"0\r\n\r\n", ParsedResponse()),
    "chunk sizes with zeros and capitals": ResponseCase(
        CHUNKED + b"000A\r\n" + b"x" * 10 + b"\r\n00\r\n\r\n", ParsedResponse(body=b"x" * 10)
    ),
    "chunk extensions": ResponseCase(CHUNKED + b'2;a\r\nhe\r\n3;b=c;d="e;f"\r\nllo\r\n0;z=1\r\n\r\n', IN_CHUNKS),
    "chunks, and no last one": ResponseCase(
        CHUNKED + b"5\r\nhello\r\n", ParsedResponse(body=b"hello", over=False, reusable=False)
    ),
    "chunks, no last one, and the end": ResponseCase(
        CHUNKED + b"5\r\nhello\r\n", ParsedResponse(body=b"hello", over=False, reusable=False), closed=True
    ),
    "the last chunk, and no end of the trailers": ResponseCase(
        CHUNKED + b"5\r\nhello\r\n0\r\n", ParsedResponse(body=b"hello", over=False, reusable=False), closed=True
    ),
    "trailers": ResponseCase(
        CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1 \r\nX-Empty:\r\n\r\n",
        ParsedResponse(body=b"hello", trailers=((b"x-sum", b"1"), (b"x-empty", b""))),
    ),
    "trailers that would frame what is over": ResponseCase(
        CHUNKED + b"0\r\nConnection: close\r\nTrailer: X\r\nUpgrade: h2c\r\nX-Sum: 1\r\n\r\n",
        ParsedResponse(trailers=((b"x-sum", b"1"),), reusable=False),
    ),
    "whatever comes until the end": ResponseCase(
        UNTIL_CLOSE + b"hello", ParsedResponse(body=b"hello", reusable=False), closed=True
    ),
    "whatever comes, and no end": ResponseCase(
        UNTIL_CLOSE + b"hello", ParsedResponse(body=b"hello", over=False, reusable=False)
    ),
    "nothing until the end": ResponseCase(UNTIL_CLOSE, ParsedResponse(reusable=False), closed=True),
    "a head in a body until the end": ResponseCase(
        UNTIL_CLOSE + WHOLE, ParsedResponse(body=WHOLE, reusable=False), closed=True
    ),
    "line breaks until the end": ResponseCase(
        UNTIL_CLOSE + b"\r\n\r\n", ParsedResponse(body=b"\r\n\r\n", reusable=False), closed=True
    ),
}

WITHOUT_BODY = {
    "HEAD and a length": ResponseCase(LENGTH, ParsedResponse(headers=(length(b"5"),)), "HEAD"),
    "HEAD and chunks": ResponseCase(CHUNKED, ParsedResponse(), "HEAD"),
    "HEAD and neither": ResponseCase(UNTIL_CLOSE, ParsedResponse(reusable=False), "HEAD"),
    "HEAD and close": ResponseCase(
        OK + b"Content-Length: 5\r\nConnection: close\r\n\r\n",
        ParsedResponse(headers=(length(b"5"),), reusable=False),
        "HEAD",
    ),
    "304": ResponseCase(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", ParsedResponse(304, ((b"etag", b"x"),))),
    "304 with the length of what it stands for, which some servers would hold it to": ResponseCase(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", ParsedResponse(304)
    ),
    "304 in chunks": ResponseCase(
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", ParsedResponse(304)
    ),
    "204": ResponseCase(b"HTTP/1.1 204 No Content\r\n\r\n", ParsedResponse(204)),
    "204 with a length it must not have": ResponseCase(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", ParsedResponse(204)
    ),
    "204 in chunks": ResponseCase(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", ParsedResponse(204)
    ),
    "204 to HEAD": ResponseCase(b"HTTP/1.1 204 No Content\r\n\r\n", ParsedResponse(204), "HEAD"),
    "204 and close": ResponseCase(
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", ParsedResponse(204, reusable=False)
    ),
}

INTERIM = {
    "100": ResponseCase(CONTINUE + WHOLE, HELLO),
    "103": ResponseCase(EARLY + WHOLE, HELLO),
    "several": ResponseCase(CONTINUE + EARLY + EARLY + WHOLE, HELLO),
    "as many as may be": ResponseCase(CONTINUE * MAX_INTERIM + WHOLE, HELLO),
    "one with a length": ResponseCase(b"HTTP/1.1 103 x\r\nContent-Length: 9\r\n\r\n" + WHOLE, HELLO),
    "one that takes a header along": ResponseCase(
        b"HTTP/1.1 103 x\r\nConnection: x-a\r\n\r\n" + OK + b"X-A: 1\r\nContent-Length: 0\r\n\r\n",
        ParsedResponse(headers=((b"x-a", b"1"), length(b"0"))),
    ),
    "one, then chunks that end with a line break": ResponseCase(
        EARLY + CHUNKED + b"2\r\n\r\n\r\n0\r\n\r\n", ParsedResponse(body=b"\r\n")
    ),
    "one, then a body that ends with a line break": ResponseCase(
        EARLY + OK + b"Content-Length: 2\r\n\r\n\r\n", ParsedResponse(headers=(length(b"2"),), body=b"\r\n")
    ),
    "one before a response to HEAD": ResponseCase(CONTINUE + LENGTH, ParsedResponse(headers=(length(b"5"),)), "HEAD"),
    "one before a change of protocol": ResponseCase(
        EARLY + SWITCH + b"\x81\x00", ParsedResponse(101, rest=b"\x81\x00", reusable=False), upgrade=True
    ),
    "a response instead of a change of protocol": ResponseCase(WHOLE, HELLO, upgrade=True),
    "an offer of another protocol": ResponseCase(
        OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", HELLO, upgrade=True
    ),
    "a change of protocol": ResponseCase(
        SWITCH[:-2] + b"Sec-WebSocket-Accept: x\r\n\r\n",
        ParsedResponse(101, ((b"sec-websocket-accept", b"x"),), reusable=False),
        upgrade=True,
    ),
}

KEPT = {
    "HTTP/1.1": ResponseCase(WHOLE, HELLO),
    "HTTP/1.1 and keep-alive": ResponseCase(WHOLE.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1), HELLO),
    "HTTP/1.1 and a header to take along": ResponseCase(WHOLE.replace(b"\r\n", b"\r\nConnection: x-a\r\n", 1), HELLO),
    "HTTP/1.0 and keep-alive": ResponseCase(
        WHOLE.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n"), HELLO
    ),
}

CLOSED = {
    "HTTP/1.1 and close": ResponseCase(WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), HELLO),
    "HTTP/1.1 and close between tabs": ResponseCase(WHOLE.replace(b"\r\n", b"\r\nConnection:\tclose\t\r\n", 1), HELLO),
    "HTTP/1.1 and Close among others": ResponseCase(
        WHOLE.replace(b"\r\n", b"\r\nConnection: x-a , Close\r\n", 1), HELLO
    ),
    "HTTP/1.1, keep-alive and close": ResponseCase(
        WHOLE.replace(b"\r\n", b"\r\nConnection: keep-alive, close\r\n", 1), HELLO
    ),
    "HTTP/1.1, close in a second line": ResponseCase(
        WHOLE.replace(b"\r\n", b"\r\nConnection: x-a\r\nConnection: close\r\n", 1), HELLO
    ),
    "HTTP/1.1, close in the first of two lines": ResponseCase(
        WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\nConnection: x-a\r\n", 1), HELLO
    ),
    "HTTP/1.1 and close, in chunks": ResponseCase(
        CHUNKED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + b"5\r\nhello\r\n0\r\n\r\n", IN_CHUNKS
    ),
    "HTTP/1.0": ResponseCase(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), HELLO),
    "HTTP/1.0 and close": ResponseCase(
        WHOLE.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\nConnection: close\r\n"), HELLO
    ),
    "HTTP/1.0 in chunks, which it does not know": ResponseCase(
        CHUNKED.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n")
        + b"5\r\nhello\r\n0\r\n\r\n",
        IN_CHUNKS,
    ),
}

#: What comes behind a response in the same read: never another response, and the connection is closed.
BEHIND = {
    "a response": WHOLE,
    "the beginning of one": b"H",
    "the status line of one": OK,
    "the head of one": LENGTH,
    "an interim one": CONTINUE,
    "another protocol": SWITCH,
    "a line break": b"\r\n",
    "half a line break": b"\r",
    "the other half": b"\n",
    "line breaks": b"\r\n" * 2,
    "many line breaks": b"\r\n" * 20,
    "a letter": b"x",
    "a digit, which might be a chunk's size": b"5",
    "a chunk's size": b"5\r\n",
    "a chunk": b"5\r\nhello\r\n",
    "the last chunk": b"0\r\n\r\n",
    "NUL": b"\0",
}

ENDS = {
    "a length": ("GET", WHOLE),
    "a length, and a line break at the end": ("GET", LENGTH + b"hell\n"),
    "a length, and nothing but line breaks": ("GET", OK + b"Content-Length: 4\r\n\r\n\r\n\r\n"),
    "a length, and what looks like the end of a head": ("GET", LENGTH + b"x\r\n\r\n"),
    "a length of 0": ("GET", OK + b"Content-Length: 0\r\n\r\n"),
    "chunks": ("GET", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"),
    "trailers": ("GET", CHUNKED + b"0\r\nX-Sum: 1\r\n\r\n"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    "304 in chunks": ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "HEAD and a length": ("HEAD", LENGTH),
    "HEAD and a length of 0": ("HEAD", OK + b"Content-Length: 0\r\n\r\n"),
    "HEAD and chunks": ("HEAD", CHUNKED),
    "after an interim one": ("GET", EARLY + WHOLE),
}

NO_ANSWER = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2's own": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "ICE": b"ICE/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "a body without a head": b"<html>",
    "a line break first": b"\r\n" + WHOLE,
    "a space first": b" " + WHOLE,
    "small letters": WHOLE.replace(b"HTTP", b"http"),
    "HTTP/0.9": WHOLE.replace(b"HTTP/1.1", b"HTTP/0.9"),
    "HTTP/1.2": WHOLE.replace(b"HTTP/1.1", b"HTTP/1.2"),
    "HTTP/2.0": WHOLE.replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/3.0": WHOLE.replace(b"HTTP/1.1", b"HTTP/3.0"),
    "HTTP/1": WHOLE.replace(b"HTTP/1.1", b"HTTP/1"),
    "HTTP/11.1": WHOLE.replace(b"HTTP/1.1", b"HTTP/11.1"),
    "status 000": WHOLE.replace(b"200", b"000"),
    "status 042": WHOLE.replace(b"200", b"042"),
    "status 099": WHOLE.replace(b"200", b"099"),
    "status of two digits": WHOLE.replace(b"200", b"20"),
    "status of four digits": WHOLE.replace(b"200", b"2000"),
    "status of letters": WHOLE.replace(b"200", b"2OO"),
    "status with a sign": WHOLE.replace(b"200", b"+20"),
    "two spaces before the status": WHOLE.replace(b" 200", b"  200"),
    "no space before the status": WHOLE.replace(b" 200", b"200"),
    "no status": WHOLE.replace(b" 200 OK", b""),
    "a lone LF behind the status line": WHOLE.replace(b"OK\r\n", b"OK\n"),
    "a lone CR behind the status line": WHOLE.replace(b"OK\r\n", b"OK\r"),
    "a lone LF behind a header": WHOLE.replace(b"5\r\n", b"5\n"),
    "a lone LF at the end of the head": LENGTH[:-2] + b"\nhello",
    "nothing but lone LFs": WHOLE.replace(b"\r\n", b"\n"),
    "a space before the colon": WHOLE.replace(b"Length:", b"Length :"),
    "a tab before the colon": WHOLE.replace(b"Length:", b"Length\t:"),
    "a space before the first name": WHOLE.replace(b"Content", b" Content"),
    "a name without a colon": OK + b"Content-Length\r\n\r\n",
    "a colon without a name": OK + b": 5\r\n\r\n",
    "a folded value": OK + b"X-A: 1\r\n 2\r\nContent-Length: 5\r\n\r\nhello",
    "a value folded with a tab": OK + b"X-A: 1\r\n\t2\r\nContent-Length: 5\r\n\r\nhello",
    "a folded length": OK + b"Content-Length:\r\n 5\r\n\r\nhello",
    "a folded coding": OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "NUL in a name": OK + b"X\0A: 1\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in a value": OK + b"X-A: 1\0\r\nContent-Length: 5\r\n\r\nhello",
    "a lone CR in a value": OK + b"X-A: 1\r2\r\nContent-Length: 5\r\n\r\nhello",
    "a lone LF in a value": OK + b"X-A: 1\n2\r\nContent-Length: 5\r\n\r\nhello",
    "a lone CR in a name": OK + b"X\rA: 1\r\nContent-Length: 5\r\n\r\nhello",
    "a control character in a value": OK + b"X-A: \x01\r\nContent-Length: 5\r\n\r\nhello",
    "a name beyond ASCII": OK + b"X-\xc4: 1\r\nContent-Length: 5\r\n\r\nhello",
    "a name in quotes": OK + b'"X-A": 1\r\nContent-Length: 5\r\n\r\nhello',
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "one length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths in one line": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "an empty length": OK + b"Content-Length: \r\n\r\nhello",
    "a length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "a length below 0": OK + b"Content-Length: -5\r\n\r\nhello",
    "a length in hexadecimal": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "a length with a fraction": OK + b"Content-Length: 5.0\r\n\r\nhello",
    "a length of other digits": OK + b"Content-Length: \xd9\xa5\r\n\r\nhello",
    "a length and more": OK + b"Content-Length: 5 5\r\n\r\nhello",
    "a length beyond 64 bits": OK + b"Content-Length: 18446744073709551616\r\n\r\nhello",
    "a length of 5000 digits": OK + b"Content-Length: " + b"0" * 4999 + b"5\r\n\r\nhello",
    "a length, then chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks, then a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "a length and another coding": OK + b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    "a coding that is not chunked": OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\nhello",
    "a coding before chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding behind chunked": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a coding before chunked in a line of its own": OK
    + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two lines": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked with an empty neighbour": OK + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": OK + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked with a parameter": OK + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "chunked with a tab behind it": OK + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "chunked behind a vertical tab": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked with a space before the colon": OK + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "an empty coding": OK + b"Transfer-Encoding: \r\n\r\nhello",
    "another coding of an interim one": b"HTTP/1.1 103 x\r\nTransfer-Encoding: gzip\r\n\r\n" + WHOLE,
    "a chunk without a size": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk's size in letters": CHUNKED + b"g\r\n",
    "a chunk's size with a sign": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size below 0": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size with 0x": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size with an underscore": CHUNKED + b"0_5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size and a space": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a space and a chunk's size": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size beyond 64 bits": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a lone LF behind a chunk's size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "a lone CR behind a chunk's size": CHUNKED + b"5\rhello\r\n0\r\n\r\n",
    "a lone LF behind a chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "no line break behind a chunk": CHUNKED + b"5\r\nhello0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
    "a chunk shorter than its size": CHUNKED + b"6\r\nhello\r\n0\r\n\r\n",
    "a lone LF in a chunk's extension": CHUNKED + b"5;a=b\nc\r\nhello\r\n0\r\n\r\n",
    "a lone LF in a chunk's quoted extension": CHUNKED + b'5;a="\n"\r\nhello\r\n0\r\n\r\n',
    "a lone CR in a chunk's extension": CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in a chunk's extension": CHUNKED + b"5;a=\0\r\nhello\r\n0\r\n\r\n",
    "a lone LF behind the last chunk": CHUNKED + b"0\n\r\n",
    "a lone LF behind a trailer": CHUNKED + b"0\r\nX-Sum: 1\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\nX-Sum: 1\r\n 2\r\n\r\n",
    "a trailer without a colon": CHUNKED + b"0\r\nX-Sum\r\n\r\n",
    "a change of protocol that was not requested": SWITCH,
    "a change of protocol that was not requested, with more": SWITCH + b"\x81\x00",
    "too many interim ones": CONTINUE * (MAX_INTERIM + 1) + WHOLE,
    "interim, and close": b"HTTP/1.1 103 x\r\nConnection: close\r\n\r\n" + WHOLE,
}

ANSWERS = {
    **{f"body: {name}": row for name, row in BODIES.items()},
    **{f"no body: {name}": row for name, row in WITHOUT_BODY.items()},
    **{f"interim: {name}": row for name, row in INTERIM.items()},
    **{f"kept: {name}": row for name, row in KEPT.items()},
    **{
        f"closed: {name}": ResponseCase(
            row.sent, ParsedResponse(row.got.status, row.got.headers, row.got.body, reusable=False)
        )
        for name, row in CLOSED.items()
        if row.got
    },
    **{f"none: {name}": ResponseCase(sent, None, closed=True) for name, sent in NO_ANSWER.items()},
    **{
        f"{name}, behind it {behind}": ResponseCase(end + more, None, method)
        for name, (method, end) in ENDS.items()
        for behind, more in BEHIND.items()
    },
}


def rows(table: dict[str, ResponseCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in table.items()])
