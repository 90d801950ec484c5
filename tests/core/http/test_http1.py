"""Responses parsed from a connection: where they end, whether another may follow, and what is refused."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.http import http1
from sticky_core.http.http1 import (
    MAX_HEAD,
    MAX_INTERIM,
    BadResponse,
    Header,
    ResponseParser,
    connection_options,
    is_removable,
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


# -- what a response is


@rows(BODIES)
def test_a_body_ends_where_its_framing_says(row: ResponseCase):
    assert row.outcome() == row.got


@rows(WITHOUT_BODY)
def test_some_responses_have_no_body_whatever_they_declare(row: ResponseCase):
    assert row.outcome() == row.got


@rows(INTERIM)
def test_an_interim_response_is_never_taken_for_the_final_one(row: ResponseCase):
    assert row.outcome() == row.got


@rows(KEPT)
def test_a_persistent_connection_is_reusable(row: ResponseCase):
    assert row.outcome() == row.got


@rows(CLOSED)
def test_a_connection_that_the_server_closes_is_not_reusable(row: ResponseCase):
    assert row.got is not None
    got = row.outcome()
    assert got == ParsedResponse(row.got.status, row.got.headers, row.got.body, reusable=False)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
def test_an_invalid_or_ambiguous_response_is_refused(sent: bytes):
    with pytest.raises(BadResponse):
        read(sent, closed=True)


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in BEHIND.items()])
@pytest.mark.parametrize("method, end", [pytest.param(*end, id=name) for name, end in ENDS.items()])
def test_data_after_a_response_is_dropped_and_ends_the_connection(method: str, end: bytes, more: bytes):
    alone = read(end, method=method)
    assert alone.over
    assert alone.reusable
    assert read(end + more, method=method) == ParsedResponse(
        alone.status, alone.headers, alone.body, alone.trailers, reusable=False
    )


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in BEHIND.items()])
@pytest.mark.parametrize("method, end", [pytest.param(*end, id=name) for name, end in ENDS.items()])
def test_data_that_arrives_later_is_refused_and_ends_the_connection(method: str, end: bytes, more: bytes):
    assert read(end, more, method=method) == read(end + more, method=method)


def test_data_before_the_first_request_is_refused():
    parser = ResponseParser()
    with pytest.raises(BadResponse, match="data after the response"):
        parser.feed(WHOLE)
    assert not parser.reusable


def test_no_response_is_accepted_after_an_invalid_one():
    parser = ResponseParser()
    parser.begin_response("GET")
    for sent in (b"SSH-2.0-OpenSSH_9.2\r\n", WHOLE, WHOLE):
        with pytest.raises(BadResponse):
            parser.feed(sent)
        assert (parser.status, parser.finished, parser.reusable, parser.take_body()) == (0, False, False, b"")


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
def test_an_invalid_response_has_no_status_and_is_not_finished(sent: bytes):
    parser = ResponseParser()
    parser.begin_response("GET")
    with pytest.raises(BadResponse):
        feed_and_finish(parser, sent)
    assert (parser.status, parser.finished, parser.take_body()) == (0, False, b"")


@pytest.mark.parametrize("spoilt", [b"5\nhello", b"x", b"5\r\nhellox"])
def test_a_head_that_was_returned_stays_when_its_body_is_invalid(spoilt: bytes):
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(CHUNKED + b"1\r\nx\r\n")
    with pytest.raises(BadResponse):
        parser.feed(spoilt)
    assert (parser.status, parser.finished, parser.reusable) == (200, False, False)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_connection_without_a_valid_response_is_never_reusable(sent: bytes, method: str):
    parser = ResponseParser()
    parser.begin_response(method)
    try:
        feed_and_finish(parser, sent)
    except BadResponse:
        pass
    assert not (parser.finished and parser.reusable)


# -- however the data is split


@rows(ANSWERS)
def test_every_split_in_two_gives_the_same_response(row: ResponseCase):
    whole = row.outcome()
    for cut in range(1, len(row.sent)):
        if len(row.sent) > 2000 and 100 < cut < len(row.sent) - 100 and cut % 97:
            continue
        assert row.outcome(row.sent[:cut], row.sent[cut:]) == whole, f"cut at {cut}"


@rows(ANSWERS)
def test_feeding_byte_by_byte_gives_the_same_response(row: ResponseCase):
    assert row.outcome(*(row.sent[at : at + 1] for at in range(len(row.sent)))) == row.outcome()


@given(data=st.data(), row=st.sampled_from(list(ANSWERS.values())))
def test_many_splits_give_the_same_response(data: st.DataObject, row: ResponseCase):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(row.sent) - 1), max_size=8)))
    reads = [row.sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(row.sent)], strict=True)]
    assert row.outcome(*reads) == row.outcome()


# -- headers


def test_headers_keep_their_order_and_bytes_with_names_in_lower_case():
    sent = (
        OK + b"Set-Cookie: a=1; Expires=Wed, 01 Jan 2031 00:00:00 GMT\r\nX-Name:  \t J\xfcrgen \xe2\x82\xac\t \r\n"
        b'SET-COOKIE: b=2\r\nVary: a\r\nVary: b\r\nX-Empty:\r\nETag: W/"x"\r\nContent-Length: 0\r\n\r\n'
    )
    assert read(sent).headers == (
        (b"set-cookie", b"a=1; Expires=Wed, 01 Jan 2031 00:00:00 GMT"),
        (b"x-name", b"J\xfcrgen \xe2\x82\xac"),
        (b"set-cookie", b"b=2"),
        (b"vary", b"a"),
        (b"vary", b"b"),
        (b"x-empty", b""),
        (b"etag", b'W/"x"'),
        (b"content-length", b"0"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
        "Date",
        "Server",
    ],
)
def test_hop_by_hop_headers_and_those_of_the_web_server_are_dropped(name: str):
    for written in (name, name.lower(), name.upper()):
        sent = OK + b"X-A: 1\r\n%b: x\r\nContent-Length: 0\r\n\r\n" % written.encode()
        assert read(sent).headers == ((b"x-a", b"1"), length(b"0"))


@pytest.mark.parametrize(
    "connection, gone",
    [
        pytest.param("x-a", {"x-a"}, id="a name"),
        pytest.param("X-A", {"x-a"}, id="in capitals"),
        pytest.param(" x-a ,,\tx-b, ", {"x-a", "x-b"}, id="several, with what may stand between them"),
        pytest.param("close, x-b", {"x-b"}, id="beside close"),
        pytest.param("etag", {"etag"}, id="a well-known one"),
        pytest.param("x-", set(), id="the beginning of one"),
        pytest.param("content-length", set(), id="the length"),
        pytest.param("Content-Type, Set-Cookie, Cache-Control", set(), id="what others depend on"),
        pytest.param("x-forwarded-host", set(), id="what is said of the client"),
    ],
)
def test_headers_named_in_connection_are_dropped_except_those_that_clients_depend_on(connection: str, gone: set[str]):
    headers = {"x-a": "1", "x-b": "2", "etag": "x", "content-length": "0", "content-type": "text/plain"}
    headers |= {"set-cookie": "a=1", "cache-control": "private", "x-forwarded-host": "shop.example"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    passed = tuple((name.encode(), value.encode()) for name, value in headers.items() if name not in gone)
    for sent in (f"Connection: {connection}\r\n{lines}", f"{lines}Connection: {connection}\r\n"):
        assert read(OK + sent.encode() + b"\r\n").headers == passed


def test_connection_may_come_in_several_lines():
    sent = OK + b"Connection: x-a\r\nX-A: 1\r\nX-B: 2\r\nConnection: x-b\r\nContent-Length: 0\r\n\r\n"
    assert read(sent).headers == (length(b"0"),)


@pytest.mark.parametrize(
    "value, names",
    [
        pytest.param(b"", [], id="none"),
        pytest.param(b"close", [b"close"], id="one"),
        pytest.param(b"Keep-Alive, X-A", [b"keep-alive", b"x-a"], id="two"),
        pytest.param(b" , \t,x ,", [b"x"], id="with gaps"),
    ],
)
def test_names_in_a_connection_header(value: bytes, names: list[bytes]):
    assert connection_options(value) == names


@pytest.mark.parametrize("name", [b"host", b"cookie", b"content-length", b"authorization", b"x-forwarded-for"])
def test_headers_that_connection_can_not_remove(name: bytes):
    assert not is_removable(name)


@pytest.mark.parametrize("name", [b"x-a", b"te", b"x-forward", b"etag"])
def test_headers_that_connection_can_remove(name: bytes):
    assert is_removable(name)


def test_the_names_in_the_trailer_header_are_returned():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(CHUNKED[:-2] + b"Trailer: X-Sum\r\n\r\n")
    assert parser.trailer_names == b"X-Sum"


# -- limits


def head_of(size: int, line: bytes = b"X-A: %b\r\n") -> bytes:
    """The head of a response without a body, this long."""
    frame = OK + b"Content-Length: 0\r\n" + line + b"\r\n"
    return frame % (b"x" * (size - len(frame % b"")))


@pytest.mark.parametrize("read_size", [1000, 16384, 70000])
def test_a_head_of_the_maximum_length_is_accepted(read_size: int):
    head = head_of(MAX_HEAD)
    assert len(head) == MAX_HEAD
    got = read(*(head[at : at + read_size] for at in range(0, len(head), read_size)))
    assert (got.over, got.reusable, len(got.headers)) == (True, True, 2)


@pytest.mark.parametrize("read_size", [1000, 16384, 70000])
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"X-A: %b\r\n", id="a long value"),
        pytest.param(b"%b: 1\r\n", id="a long name"),
    ],
)
def test_a_longer_head_is_refused(read_size: int, line: bytes):
    head = head_of(MAX_HEAD + 1, line)
    with pytest.raises(BadResponse, match="a head of more than 65536 bytes"):
        read(*(head[at : at + read_size] for at in range(0, len(head), read_size)))


def test_many_short_headers_count_as_a_long_head():
    with pytest.raises(BadResponse, match="a head of more than"):
        read(OK, *[b"a:b\r\n" * 1000] * 20)


def test_a_long_reason_counts_as_a_long_head():
    with pytest.raises(BadResponse, match="a head of more than"):
        read(b"HTTP/1.1 200 ", *[b"x" * 16384] * 5)


@pytest.mark.parametrize("cut", range(1, 6))
def test_data_received_with_the_end_of_a_long_head_does_not_count(cut: int):
    head = head_of(MAX_HEAD).replace(b"Content-Length: 0\r\nX-A: xx", b"Content-Length: 50000\r\n")
    head = head.replace(b"50000\r\nxx", b"50000\r\nX-A: ")
    assert MAX_HEAD - 10 < len(head) <= MAX_HEAD
    got = read(head[:-cut], head[-cut:] + b"x" * 50000)
    assert (got.over, got.reusable, len(got.body)) == (True, True, 50000)


def test_a_long_body_does_not_count_as_head():
    got = read(OK + b"Content-Length: 200000\r\n\r\n" + b"x" * 200000)
    assert (got.over, len(got.body)) == (True, 200000)


def test_interim_responses_and_the_head_share_one_limit():
    early = b"HTTP/1.1 103 x\r\nLink: %b\r\n\r\n" % (b"x" * 8000)
    with pytest.raises(BadResponse, match="a head of more than"):
        read(*[early] * 9)


def test_the_number_of_interim_responses_is_limited():
    assert read(*[CONTINUE] * MAX_INTERIM, WHOLE) == HELLO
    with pytest.raises(BadResponse, match="more than 16 interim responses"):
        read(*[CONTINUE] * (MAX_INTERIM + 1))


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(b"0\r\n" + b"X-A: 1\r\n" * 1000, id="trailers"),
        pytest.param(b"0\r\nX-A: " + b"x" * 8000, id="one trailer"),
        pytest.param(b"1;" + b"x" * 8000, id="an extension"),
        pytest.param(b"1" + b'\r\nx\r\n1;a="' + b"x" * 8000, id="a quoted extension"),
        pytest.param(b"0" * 8000, id="zeros before a size"),
    ],
)
def test_the_length_of_chunk_lines_is_limited(around: bytes):
    first, more = around[:100], around[-1000:]
    with pytest.raises(BadResponse, match="chunk lines are too long"):
        read(CHUNKED, first, *[more] * 200)


def test_many_short_extensions_are_limited_too():
    with pytest.raises(BadResponse, match="chunk lines are too long"):
        read(CHUNKED, *[(b"1;" + b"x" * 150 + b"\r\nx\r\n") * 10] * 200)


def test_many_small_chunks_are_accepted():
    reads = [b"1\r\nx\r\n" * 1000] * 100
    assert read(CHUNKED, *reads, b"0\r\n\r\n") == ParsedResponse(body=b"x" * 100_000)


def test_trailers_are_accepted_up_to_the_length_of_a_head():
    trailers = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 1000) for number in range(60))
    got = read(CHUNKED + b"0\r\n", trailers, b"\r\n")
    assert (got.over, got.reusable, len(got.trailers)) == (True, True, 60)


# -- bodies that are not parsed


def test_a_body_with_a_length_is_not_copied():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(OK + b"Content-Length: 3000\r\n\r\n")
    for _ in range(3):
        piece = bytes(1000)
        parser.feed(piece)
        assert parser.take_body() is piece
    assert parser.finished
    assert parser.reusable


def test_a_body_until_the_connection_closes_is_not_copied():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(UNTIL_CLOSE)
    for _ in range(3):
        piece = bytes(1000)
        parser.feed(piece)
        assert parser.take_body() is piece
    assert not parser.finished
    assert parser.feed_eof()
    assert not parser.reusable


def test_large_parts_are_returned_one_by_one():
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(UNTIL_CLOSE)
    pieces = [bytes([number]) * 20000 for number in range(3)]
    for piece in pieces:
        parser.feed(piece)
    for piece in pieces:
        assert parser.take_body() is piece
    assert parser.take_body() == b""


@given(st.lists(st.integers(1, 20000), max_size=6))
def test_a_body_is_returned_completely_however_it_was_split(sizes: list[int]):
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(OK + b"\r\n")
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    for piece in pieces:
        parser.feed(piece)
    assert taken(parser) == b"".join(pieces)


def test_small_parts_are_joined():
    parser = ResponseParser()
    parser.begin_response("GET")
    assert parser.take_body() == b""
    for piece in (LENGTH + b"he", b"l", b"lo"):
        parser.feed(piece)
    assert parser.take_body() == b"hello"
    assert parser.take_body() == b""


# -- the end of the connection


def test_a_close_before_the_response_is_not_an_error():
    parser = ResponseParser()
    parser.begin_response("GET")
    assert not parser.feed_eof()
    assert (parser.status, parser.reusable) == (0, False)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"H", id="one byte"),
        pytest.param(OK, id="a status line"),
        pytest.param(LENGTH[:-1], id="all but the last byte"),
        pytest.param(CONTINUE, id="an interim response"),
        pytest.param(CONTINUE + OK, id="an interim response and a status line"),
    ],
)
def test_a_head_that_is_cut_short_is_refused(sent: bytes):
    with pytest.raises(BadResponse, match="a head that is cut short"):
        read(sent, closed=True)


@pytest.mark.parametrize(
    "sent, whole",
    [
        pytest.param(WHOLE, True, id="a response with a length"),
        pytest.param(WHOLE[:-1], False, id="a response that is short of its length"),
        pytest.param(LENGTH, False, id="nothing but a head with a length"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", True, id="a response in chunks"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", False, id="chunks without the end"),
        pytest.param(CHUNKED + b"5\r\nhel", False, id="half a chunk"),
        pytest.param(UNTIL_CLOSE + b"hello", True, id="a response until the end"),
    ],
)
def test_feed_eof_returns_whether_the_response_is_complete(sent: bytes, whole: bool):
    parser = ResponseParser()
    parser.begin_response("GET")
    parser.feed(sent)
    assert parser.feed_eof() is whole
    assert parser.finished is whole


# -- one response after another


def one_after_another() -> Iterator[tuple[str, str, bytes, ParsedResponse]]:
    for name, row in (BODIES | WITHOUT_BODY | INTERIM | KEPT).items():
        if row.got is not None and row.got.reusable:
            yield name, row.method, row.sent, row.got


@pytest.mark.parametrize("method, sent, got", [pytest.param(*rest, id=name) for name, *rest in one_after_another()])
def test_the_next_response_on_the_connection_is_parsed_from_the_start(method: str, sent: bytes, got: ParsedResponse):
    parser = ResponseParser()
    for reads in ([sent], [sent[:-1], sent[-1:]], [sent]):
        parser.begin_response(method)
        assert (parser.finished, parser.status, parser.headers, parser.trailers) == (False, 0, [], [])
        for data in reads:
            parser.feed(data)
        assert (parser.status, parser.headers, taken(parser)) == (got.status, list(got.headers), got.body)
        assert (parser.finished, parser.reusable) == (True, True)
        parser.begin_response("GET")
        parser.feed(CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert (parser.finished, parser.reusable, parser.take_body()) == (True, True, b"hello")


def test_a_100_is_reported_once():
    parser = ResponseParser()
    parser.begin_response("POST")
    parser.awaits_continue = True
    parser.feed(EARLY)
    assert parser.awaits_continue
    parser.feed(CONTINUE)
    assert not parser.awaits_continue
    parser.feed(WHOLE)
    assert (parser.finished, parser.status) == (True, 200)


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"Upgrade: websocket\r\n", id="Upgrade alone"),
        pytest.param(b"Connection: upgrade\r\n", id="Connection alone"),
        pytest.param(b"Upgrade: websocket\r\nConnection: close\r\n", id="Connection with another word"),
    ],
)
def test_a_change_of_protocol_needs_both_upgrade_and_connection(fields: bytes, accepts: bool):
    sent = b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % fields
    assert outcome(sent + b"\x81\x00", upgrade=accepts) is None
    assert outcome(sent, upgrade=accepts) is None


def test_the_new_protocol_is_returned():
    parser = ResponseParser()
    parser.begin_response("GET", upgrade=True)
    parser.feed(SWITCH)
    assert (parser.status, parser.finished, parser.upgrade) == (101, True, b"websocket")


def test_data_after_a_change_of_protocol_is_returned_unchanged():
    frames = bytes(range(256)) * 10
    got = read(SWITCH + frames, upgrade=True)
    assert (got.status, got.rest, got.body, got.reusable) == (101, frames, b"", False)


# -- the parser


def test_a_missing_httptools_is_reported_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "httptools", None)
    for use in (http1.require, ResponseParser):
        with pytest.raises(ConfigError, match=r"pip install 'sticky-sessions\[proxy\]'"):
            use()


def test_the_parser_is_not_imported_before_it_is_needed():
    script = "import sys, sticky_core.http.http1; sys.exit('httptools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_memory_for_invented_names_is_bounded(monkeypatch: pytest.MonkeyPatch):
    known = dict(http1._HEADERS)
    monkeypatch.setattr(http1, "_HEADERS", known)
    got = read(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + b"X" * 6000 + b": 1\r\nX-Not-Kept: 2\r\nDATE: 3\r\n\r\n")
    assert list(got.headers) == [(b"content-length", b"0"), (b"x" * 6000, b"1"), (b"x-not-kept", b"2")]
    assert max(map(len, known)) <= http1.MAX_KNOWN_NAME_LENGTH
    for number in range(0, http1.MAX_KNOWN_NAMES + 100, 100):
        names = b"".join(b"X-Invented-%d: 1\r\n" % (number + each) for each in range(100))
        got = read(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + names + b"\r\n")
        assert len(got.headers) == 101
    assert len(known) <= http1.MAX_KNOWN_NAMES
