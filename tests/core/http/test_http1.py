"""Answers read off a connection: what they are, where they end, whether another may follow, and what is none."""

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
class Got:
    """An answer as it was read."""

    status: int = 200
    headers: Sequence[Header] = ()
    body: bytes = b""
    trailers: Sequence[Header] = ()
    over: bool = True
    reusable: bool = True
    rest: bytes = b""


def read(*reads: bytes, method: str = "GET", upgrade: bool = False, closed: bool = False) -> Got:
    """The answer that came in these reads. What comes behind its end in a further read is refused, and ends the
    connection as it would have in the same read.
    """
    answers = ResponseParser()
    answers.begin_response(method, upgrade)
    pieces = []
    for at, data in enumerate(reads):
        if answers.status == 101:
            answers.upgraded_data += b"".join(reads[at:])
            break
        if answers.finished:
            with pytest.raises(BadResponse, match="more than was asked for"):
                answers.feed(data)
            break
        answers.feed(data)
        pieces.append(taken(answers))
    if closed:
        answers.feed_eof()
    return Got(
        answers.status,
        tuple(answers.headers),
        b"".join(pieces),
        tuple(answers.trailers),
        answers.finished,
        answers.finished and answers.reusable,
        answers.upgraded_data,
    )


def taken(answers: ResponseParser) -> bytes:
    """What has come of the body, in however many pieces."""
    return b"".join(iter(answers.take_body, b""))


def feed_and_finish(answers: ResponseParser, sent: bytes) -> None:
    answers.feed(sent)
    answers.feed_eof()


def outcome(*reads: bytes, method: str = "GET", upgrade: bool = False, closed: bool = False) -> Got | None:
    """The answer, or None if it is none."""
    try:
        return read(*reads, method=method, upgrade=upgrade, closed=closed)
    except BadResponse:
        return None


def length(value: bytes) -> Header:
    return b"content-length", value


@dataclass(frozen=True)
class Row:
    """What a server sends, and what it is: an answer, or None where it is none."""

    sent: bytes
    got: Got | None
    method: str = "GET"
    upgrade: bool = False
    closed: bool = field(default=False, kw_only=True)  #: whether the server closes behind it

    def outcome(self, *reads: bytes) -> Got | None:
        return outcome(*(reads or (self.sent,)), method=self.method, upgrade=self.upgrade, closed=self.closed)


HELLO = Got(headers=(length(b"5"),), body=b"hello")
IN_CHUNKS = Got(body=b"hello")

BODIES = {
    "a length": Row(WHOLE, HELLO),
    "a length of 0": Row(OK + b"Content-Length: 0\r\n\r\n", Got(headers=(length(b"0"),))),
    "a length with zeros before it": Row(
        OK + b"Content-Length: 0005\r\n\r\nhello", Got(headers=(length(b"0005"),), body=b"hello")
    ),
    "a length, and less than that": Row(
        LENGTH + b"hell", Got(headers=(length(b"5"),), body=b"hell", over=False, reusable=False)
    ),
    "a length, less, and the end": Row(
        LENGTH + b"hell", Got(headers=(length(b"5"),), body=b"hell", over=False, reusable=False), closed=True
    ),
    "a body that ends with a line break": Row(
        OK + b"Content-Length: 6\r\n\r\nhell\r\n", Got(headers=(length(b"6"),), body=b"hell\r\n")
    ),
    "a body of nothing but line breaks": Row(
        OK + b"Content-Length: 6\r\n\r\n\r\n\r\n\r\n", Got(headers=(length(b"6"),), body=b"\r\n\r\n\r\n")
    ),
    "a body that looks like a head": Row(
        OK + b"Content-Length: 19\r\n\r\n" + UNTIL_CLOSE, Got(headers=(length(b"19"),), body=UNTIL_CLOSE)
    ),
    "chunks": Row(CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", IN_CHUNKS),
    "chunks of line breaks": Row(CHUNKED + b"2\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n", Got(body=b"\r\n\r\n")),
    "no chunk but the last": Row(CHUNKED + b"0\r\n\r\n", Got()),
    "chunk sizes with zeros and capitals": Row(
        CHUNKED + b"000A\r\n" + b"x" * 10 + b"\r\n00\r\n\r\n", Got(body=b"x" * 10)
    ),
    "chunk extensions": Row(CHUNKED + b'2;a\r\nhe\r\n3;b=c;d="e;f"\r\nllo\r\n0;z=1\r\n\r\n', IN_CHUNKS),
    "chunks, and no last one": Row(CHUNKED + b"5\r\nhello\r\n", Got(body=b"hello", over=False, reusable=False)),
    "chunks, no last one, and the end": Row(
        CHUNKED + b"5\r\nhello\r\n", Got(body=b"hello", over=False, reusable=False), closed=True
    ),
    "the last chunk, and no end of the trailers": Row(
        CHUNKED + b"5\r\nhello\r\n0\r\n", Got(body=b"hello", over=False, reusable=False), closed=True
    ),
    "trailers": Row(
        CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1 \r\nX-Empty:\r\n\r\n",
        Got(body=b"hello", trailers=((b"x-sum", b"1"), (b"x-empty", b""))),
    ),
    "trailers that would frame what is over": Row(
        CHUNKED + b"0\r\nConnection: close\r\nTrailer: X\r\nUpgrade: h2c\r\nX-Sum: 1\r\n\r\n",
        Got(trailers=((b"x-sum", b"1"),), reusable=False),
    ),
    "whatever comes until the end": Row(UNTIL_CLOSE + b"hello", Got(body=b"hello", reusable=False), closed=True),
    "whatever comes, and no end": Row(UNTIL_CLOSE + b"hello", Got(body=b"hello", over=False, reusable=False)),
    "nothing until the end": Row(UNTIL_CLOSE, Got(reusable=False), closed=True),
    "a head in a body until the end": Row(UNTIL_CLOSE + WHOLE, Got(body=WHOLE, reusable=False), closed=True),
    "line breaks until the end": Row(UNTIL_CLOSE + b"\r\n\r\n", Got(body=b"\r\n\r\n", reusable=False), closed=True),
}

WITHOUT_BODY = {
    "HEAD and a length": Row(LENGTH, Got(headers=(length(b"5"),)), "HEAD"),
    "HEAD and chunks": Row(CHUNKED, Got(), "HEAD"),
    "HEAD and neither": Row(UNTIL_CLOSE, Got(reusable=False), "HEAD"),
    "HEAD and close": Row(
        OK + b"Content-Length: 5\r\nConnection: close\r\n\r\n", Got(headers=(length(b"5"),), reusable=False), "HEAD"
    ),
    "304": Row(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", Got(304, ((b"etag", b"x"),))),
    "304 with the length of what it stands for, which some servers would hold it to": Row(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Got(304)
    ),
    "304 in chunks": Row(b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", Got(304)),
    "204": Row(b"HTTP/1.1 204 No Content\r\n\r\n", Got(204)),
    "204 with a length it must not have": Row(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Got(204)),
    "204 in chunks": Row(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", Got(204)),
    "204 to HEAD": Row(b"HTTP/1.1 204 No Content\r\n\r\n", Got(204), "HEAD"),
    "204 and close": Row(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", Got(204, reusable=False)),
}

INTERIM = {
    "100": Row(CONTINUE + WHOLE, HELLO),
    "103": Row(EARLY + WHOLE, HELLO),
    "several": Row(CONTINUE + EARLY + EARLY + WHOLE, HELLO),
    "as many as may be": Row(CONTINUE * MAX_INTERIM + WHOLE, HELLO),
    "one with a length": Row(b"HTTP/1.1 103 x\r\nContent-Length: 9\r\n\r\n" + WHOLE, HELLO),
    "one that takes a header along": Row(
        b"HTTP/1.1 103 x\r\nConnection: x-a\r\n\r\n" + OK + b"X-A: 1\r\nContent-Length: 0\r\n\r\n",
        Got(headers=((b"x-a", b"1"), length(b"0"))),
    ),
    "one, then chunks that end with a line break": Row(EARLY + CHUNKED + b"2\r\n\r\n\r\n0\r\n\r\n", Got(body=b"\r\n")),
    "one, then a body that ends with a line break": Row(
        EARLY + OK + b"Content-Length: 2\r\n\r\n\r\n", Got(headers=(length(b"2"),), body=b"\r\n")
    ),
    "one before an answer to HEAD": Row(CONTINUE + LENGTH, Got(headers=(length(b"5"),)), "HEAD"),
    "one before a change of protocol": Row(
        EARLY + SWITCH + b"\x81\x00", Got(101, rest=b"\x81\x00", reusable=False), upgrade=True
    ),
    "an answer instead of a change of protocol": Row(WHOLE, HELLO, upgrade=True),
    "an offer of another protocol": Row(
        OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", HELLO, upgrade=True
    ),
    "a change of protocol": Row(
        SWITCH[:-2] + b"Sec-WebSocket-Accept: x\r\n\r\n",
        Got(101, ((b"sec-websocket-accept", b"x"),), reusable=False),
        upgrade=True,
    ),
}

KEPT = {
    "HTTP/1.1": Row(WHOLE, HELLO),
    "HTTP/1.1 and keep-alive": Row(WHOLE.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1), HELLO),
    "HTTP/1.1 and a header to take along": Row(WHOLE.replace(b"\r\n", b"\r\nConnection: x-a\r\n", 1), HELLO),
    "HTTP/1.0 and keep-alive": Row(
        WHOLE.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n"), HELLO
    ),
}

CLOSED = {
    "HTTP/1.1 and close": Row(WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), HELLO),
    "HTTP/1.1 and close between tabs": Row(WHOLE.replace(b"\r\n", b"\r\nConnection:\tclose\t\r\n", 1), HELLO),
    "HTTP/1.1 and Close among others": Row(WHOLE.replace(b"\r\n", b"\r\nConnection: x-a , Close\r\n", 1), HELLO),
    "HTTP/1.1, keep-alive and close": Row(WHOLE.replace(b"\r\n", b"\r\nConnection: keep-alive, close\r\n", 1), HELLO),
    "HTTP/1.1, close in a second line": Row(
        WHOLE.replace(b"\r\n", b"\r\nConnection: x-a\r\nConnection: close\r\n", 1), HELLO
    ),
    "HTTP/1.1, close in the first of two lines": Row(
        WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\nConnection: x-a\r\n", 1), HELLO
    ),
    "HTTP/1.1 and close, in chunks": Row(
        CHUNKED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + b"5\r\nhello\r\n0\r\n\r\n", IN_CHUNKS
    ),
    "HTTP/1.0": Row(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), HELLO),
    "HTTP/1.0 and close": Row(
        WHOLE.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\nConnection: close\r\n"), HELLO
    ),
    "HTTP/1.0 in chunks, which it does not know": Row(
        CHUNKED.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n")
        + b"5\r\nhello\r\n0\r\n\r\n",
        IN_CHUNKS,
    ),
}

#: What comes behind an answer in the same read: never another answer, and the connection is closed.
BEHIND = {
    "an answer": WHOLE,
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
    "a change of protocol that nobody asked for": SWITCH,
    "a change of protocol that nobody asked for, with more": SWITCH + b"\x81\x00",
    "too many interim ones": CONTINUE * (MAX_INTERIM + 1) + WHOLE,
    "interim, and close": b"HTTP/1.1 103 x\r\nConnection: close\r\n\r\n" + WHOLE,
}

ANSWERS = {
    **{f"body: {name}": row for name, row in BODIES.items()},
    **{f"no body: {name}": row for name, row in WITHOUT_BODY.items()},
    **{f"interim: {name}": row for name, row in INTERIM.items()},
    **{f"kept: {name}": row for name, row in KEPT.items()},
    **{
        f"closed: {name}": Row(row.sent, Got(row.got.status, row.got.headers, row.got.body, reusable=False))
        for name, row in CLOSED.items()
        if row.got
    },
    **{f"none: {name}": Row(sent, None, closed=True) for name, sent in NO_ANSWER.items()},
    **{
        f"{name}, behind it {behind}": Row(end + more, None, method)
        for name, (method, end) in ENDS.items()
        for behind, more in BEHIND.items()
    },
}


def rows(table: dict[str, Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in table.items()])


# -- what an answer is


@rows(BODIES)
def test_a_body_ends_where_it_says(row: Row):
    assert row.outcome() == row.got


@rows(WITHOUT_BODY)
def test_some_answers_have_no_body_whatever_they_say(row: Row):
    assert row.outcome() == row.got


@rows(INTERIM)
def test_an_interim_answer_is_never_taken_for_the_answer(row: Row):
    assert row.outcome() == row.got


@rows(KEPT)
def test_a_connection_is_kept_that_may_be(row: Row):
    assert row.outcome() == row.got


@rows(CLOSED)
def test_a_connection_is_not_used_again_that_the_server_closes(row: Row):
    assert row.got is not None
    got = row.outcome()
    assert got == Got(row.got.status, row.got.headers, row.got.body, reusable=False)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
def test_what_is_no_answer_or_can_be_read_in_two_ways_is_refused(sent: bytes):
    with pytest.raises(BadResponse):
        read(sent, closed=True)


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in BEHIND.items()])
@pytest.mark.parametrize("method, end", [pytest.param(*end, id=name) for name, end in ENDS.items()])
def test_whatever_comes_behind_an_answer_is_dropped_and_ends_the_connection(method: str, end: bytes, more: bytes):
    alone = read(end, method=method)
    assert alone.over
    assert alone.reusable
    assert read(end + more, method=method) == Got(
        alone.status, alone.headers, alone.body, alone.trailers, reusable=False
    )


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in BEHIND.items()])
@pytest.mark.parametrize("method, end", [pytest.param(*end, id=name) for name, end in ENDS.items()])
def test_whatever_comes_later_is_refused_and_ends_the_connection(method: str, end: bytes, more: bytes):
    assert read(end, more, method=method) == read(end + more, method=method)


def test_whatever_comes_before_anything_was_asked_is_refused():
    answers = ResponseParser()
    with pytest.raises(BadResponse, match="more than was asked for"):
        answers.feed(WHOLE)
    assert not answers.reusable


def test_after_what_was_no_answer_nothing_is_one():
    answers = ResponseParser()
    answers.begin_response("GET")
    for sent in (b"SSH-2.0-OpenSSH_9.2\r\n", WHOLE, WHOLE):
        with pytest.raises(BadResponse):
            answers.feed(sent)
        assert (answers.status, answers.finished, answers.reusable, answers.take_body()) == (0, False, False, b"")


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
def test_what_is_no_answer_has_no_status_and_is_not_over(sent: bytes):
    answers = ResponseParser()
    answers.begin_response("GET")
    with pytest.raises(BadResponse):
        feed_and_finish(answers, sent)
    assert (answers.status, answers.finished, answers.take_body()) == (0, False, b"")


@pytest.mark.parametrize("spoilt", [b"5\nhello", b"x", b"5\r\nhellox"])
def test_a_head_that_was_told_stays_told_when_its_body_is_spoilt(spoilt: bytes):
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(CHUNKED + b"1\r\nx\r\n")
    with pytest.raises(BadResponse):
        answers.feed(spoilt)
    assert (answers.status, answers.finished, answers.reusable) == (200, False, False)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_ANSWER.items()])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_connection_that_brought_no_answer_is_never_kept(sent: bytes, method: str):
    answers = ResponseParser()
    answers.begin_response(method)
    try:
        feed_and_finish(answers, sent)
    except BadResponse:
        pass
    assert not (answers.finished and answers.reusable)


# -- however the bytes are cut


@rows(ANSWERS)
def test_every_cut_gives_the_same_answer(row: Row):
    whole = row.outcome()
    for cut in range(1, len(row.sent)):
        if len(row.sent) > 2000 and 100 < cut < len(row.sent) - 100 and cut % 97:
            continue
        assert row.outcome(row.sent[:cut], row.sent[cut:]) == whole, f"cut at {cut}"


@rows(ANSWERS)
def test_byte_by_byte_it_is_the_same_answer(row: Row):
    assert row.outcome(*(row.sent[at : at + 1] for at in range(len(row.sent)))) == row.outcome()


@given(data=st.data(), row=st.sampled_from(list(ANSWERS.values())))
def test_many_cuts_give_the_same_answer(data: st.DataObject, row: Row):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(row.sent) - 1), max_size=8)))
    reads = [row.sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(row.sent)], strict=True)]
    assert row.outcome(*reads) == row.outcome()


# -- headers


def test_headers_come_in_their_order_with_their_bytes_and_names_in_small_letters():
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
def test_what_is_the_connections_or_the_server_in_front_says_itself_goes_no_further(name: str):
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
def test_what_connection_names_goes_with_the_connection_but_for_what_others_depend_on(connection: str, gone: set[str]):
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
def test_what_connection_can_not_take_along(name: bytes):
    assert not is_removable(name)


@pytest.mark.parametrize("name", [b"x-a", b"te", b"x-forward", b"etag"])
def test_what_connection_can_take_along(name: bytes):
    assert is_removable(name)


def test_the_trailers_that_are_announced_are_told():
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(CHUNKED[:-2] + b"Trailer: X-Sum\r\n\r\n")
    assert answers.trailer_names == b"X-Sum"


# -- limits


def head_of(size: int, line: bytes = b"X-A: %b\r\n") -> bytes:
    """The head of an answer without a body, this long."""
    frame = OK + b"Content-Length: 0\r\n" + line + b"\r\n"
    return frame % (b"x" * (size - len(frame % b"")))


@pytest.mark.parametrize("read_size", [1000, 16384, 70000])
def test_a_head_may_be_as_long_as_it_may_be(read_size: int):
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


def test_many_short_headers_are_a_long_head_too():
    with pytest.raises(BadResponse, match="a head of more than"):
        read(OK, *[b"a:b\r\n" * 1000] * 20)


def test_a_long_reason_is_a_long_head_too():
    with pytest.raises(BadResponse, match="a head of more than"):
        read(b"HTTP/1.1 200 ", *[b"x" * 16384] * 5)


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_long_head_ends_where_it_ends_however_much_comes_with_its_last_bytes(cut: int):
    head = head_of(MAX_HEAD).replace(b"Content-Length: 0\r\nX-A: xx", b"Content-Length: 50000\r\n")
    head = head.replace(b"50000\r\nxx", b"50000\r\nX-A: ")
    assert MAX_HEAD - 10 < len(head) <= MAX_HEAD
    got = read(head[:-cut], head[-cut:] + b"x" * 50000)
    assert (got.over, got.reusable, len(got.body)) == (True, True, 50000)


def test_a_long_body_is_no_long_head():
    got = read(OK + b"Content-Length: 200000\r\n\r\n" + b"x" * 200000)
    assert (got.over, len(got.body)) == (True, 200000)


def test_interim_answers_and_the_head_share_one_limit():
    early = b"HTTP/1.1 103 x\r\nLink: %b\r\n\r\n" % (b"x" * 8000)
    with pytest.raises(BadResponse, match="a head of more than"):
        read(*[early] * 9)


def test_there_is_an_end_to_interim_answers():
    assert read(*[CONTINUE] * MAX_INTERIM, WHOLE) == HELLO
    with pytest.raises(BadResponse, match="more than 16 answers before the answer"):
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
def test_there_is_an_end_to_what_is_not_body(around: bytes):
    first, more = around[:100], around[-1000:]
    with pytest.raises(BadResponse, match="chunks with more around them than in them"):
        read(CHUNKED, first, *[more] * 200)


def test_many_extensions_are_too_much_even_where_each_is_short():
    with pytest.raises(BadResponse, match="chunks with more around them than in them"):
        read(CHUNKED, *[(b"1;" + b"x" * 150 + b"\r\nx\r\n") * 10] * 200)


def test_many_small_chunks_are_none_too_many():
    reads = [b"1\r\nx\r\n" * 1000] * 100
    assert read(CHUNKED, *reads, b"0\r\n\r\n") == Got(body=b"x" * 100_000)


def test_long_trailers_are_let_through_up_to_the_length_of_a_head():
    trailers = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 1000) for number in range(60))
    got = read(CHUNKED + b"0\r\n", trailers, b"\r\n")
    assert (got.over, got.reusable, len(got.trailers)) == (True, True, 60)


# -- bodies that are passed by


def test_a_body_with_a_length_is_passed_by_without_a_copy():
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(OK + b"Content-Length: 3000\r\n\r\n")
    for _ in range(3):
        piece = bytes(1000)
        answers.feed(piece)
        assert answers.take_body() is piece
    assert answers.finished
    assert answers.reusable


def test_a_body_until_the_end_is_passed_by_without_a_copy():
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(UNTIL_CLOSE)
    for _ in range(3):
        piece = bytes(1000)
        answers.feed(piece)
        assert answers.take_body() is piece
    assert not answers.finished
    assert answers.feed_eof()
    assert not answers.reusable


def test_large_pieces_are_taken_as_they_came():
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(UNTIL_CLOSE)
    pieces = [bytes([number]) * 20000 for number in range(3)]
    for piece in pieces:
        answers.feed(piece)
    for piece in pieces:
        assert answers.take_body() is piece
    assert answers.take_body() == b""


@given(st.lists(st.integers(1, 20000), max_size=6))
def test_a_body_is_taken_whole_in_whatever_pieces_it_came(sizes: list[int]):
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(OK + b"\r\n")
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    for piece in pieces:
        answers.feed(piece)
    assert taken(answers) == b"".join(pieces)


def test_small_pieces_that_nobody_took_are_taken_as_one():
    answers = ResponseParser()
    answers.begin_response("GET")
    assert answers.take_body() == b""
    for piece in (LENGTH + b"he", b"l", b"lo"):
        answers.feed(piece)
    assert answers.take_body() == b"hello"
    assert answers.take_body() == b""


# -- the end of the connection


def test_a_close_before_the_answer_is_no_answer_and_no_mistake():
    answers = ResponseParser()
    answers.begin_response("GET")
    assert not answers.feed_eof()
    assert (answers.status, answers.reusable) == (0, False)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"H", id="one byte"),
        pytest.param(OK, id="a status line"),
        pytest.param(LENGTH[:-1], id="all but the last byte"),
        pytest.param(CONTINUE, id="an interim answer"),
        pytest.param(CONTINUE + OK, id="an interim answer and a status line"),
    ],
)
def test_a_head_that_is_cut_short_is_none(sent: bytes):
    with pytest.raises(BadResponse, match="a head that is cut short"):
        read(sent, closed=True)


@pytest.mark.parametrize(
    "sent, whole",
    [
        pytest.param(WHOLE, True, id="an answer with a length"),
        pytest.param(WHOLE[:-1], False, id="an answer that is short of its length"),
        pytest.param(LENGTH, False, id="nothing but a head with a length"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", True, id="an answer in chunks"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", False, id="chunks without the end"),
        pytest.param(CHUNKED + b"5\r\nhel", False, id="half a chunk"),
        pytest.param(UNTIL_CLOSE + b"hello", True, id="an answer until the end"),
    ],
)
def test_the_end_tells_whether_the_answer_is_whole(sent: bytes, whole: bool):
    answers = ResponseParser()
    answers.begin_response("GET")
    answers.feed(sent)
    assert answers.feed_eof() is whole
    assert answers.finished is whole


# -- one answer after another


def one_after_another() -> Iterator[tuple[str, str, bytes, Got]]:
    for name, row in (BODIES | WITHOUT_BODY | INTERIM | KEPT).items():
        if row.got is not None and row.got.reusable:
            yield name, row.method, row.sent, row.got


@pytest.mark.parametrize("method, sent, got", [pytest.param(*rest, id=name) for name, *rest in one_after_another()])
def test_the_next_answer_on_the_connection_is_read_anew(method: str, sent: bytes, got: Got):
    answers = ResponseParser()
    for reads in ([sent], [sent[:-1], sent[-1:]], [sent]):
        answers.begin_response(method)
        assert (answers.finished, answers.status, answers.headers, answers.trailers) == (False, 0, [], [])
        for data in reads:
            answers.feed(data)
        assert (answers.status, answers.headers, taken(answers)) == (got.status, list(got.headers), got.body)
        assert (answers.finished, answers.reusable) == (True, True)
        answers.begin_response("GET")
        answers.feed(CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert (answers.finished, answers.reusable, answers.take_body()) == (True, True, b"hello")


def test_a_100_is_news_once():
    answers = ResponseParser()
    answers.begin_response("POST")
    answers.awaits_continue = True
    answers.feed(EARLY)
    assert answers.awaits_continue
    answers.feed(CONTINUE)
    assert not answers.awaits_continue
    answers.feed(WHOLE)
    assert (answers.finished, answers.status) == (True, 200)


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
def test_a_change_of_protocol_takes_both_upgrade_and_connection(fields: bytes, accepts: bool):
    sent = b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % fields
    assert outcome(sent + b"\x81\x00", upgrade=accepts) is None
    assert outcome(sent, upgrade=accepts) is None


def test_the_protocol_that_it_is_changed_to_is_told():
    answers = ResponseParser()
    answers.begin_response("GET", upgrade=True)
    answers.feed(SWITCH)
    assert (answers.status, answers.finished, answers.upgrade) == (101, True, b"websocket")


def test_what_comes_behind_a_change_of_protocol_is_left_as_it_came():
    frames = bytes(range(256)) * 10
    got = read(SWITCH + frames, upgrade=True)
    assert (got.status, got.rest, got.body, got.reusable) == (101, frames, b"", False)


# -- the parser


def test_without_httptools_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "httptools", None)
    for use in (http1.require, ResponseParser):
        with pytest.raises(ConfigError, match=r"pip install 'sticky-sessions\[proxy\]'"):
            use()


def test_the_parser_is_not_imported_before_it_is_needed():
    script = "import sys, sticky_core.http.http1; sys.exit('httptools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_names_that_servers_invent_take_no_room_without_end(monkeypatch: pytest.MonkeyPatch):
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
