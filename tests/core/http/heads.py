"""Build heads of requests to an upstream, and parse them again."""

from collections.abc import Iterable
from typing import Any

import pytest

from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.forwarding import (
    Forward,
    OutgoingRequest,
    RequestHeads,
)
from sticky_core.http.http1 import Header
from sticky_core.target import Location

LENGTH, CHUNKED = b"content-length", b"transfer-encoding"
HOST = (b"host", b"shop.example")
CLIENT = "192.0.2.7"
PROXY = "10.0.0.1"
ADDS_NOTHING = Forward(by="none")


def made(
    headers: Iterable[Header] = (HOST,),
    method: str = "GET",
    target: bytes = b"/",
    forward: Forward = ADDS_NOTHING,
    url: str = "http://upstream.example:8080",
    peer: str | None = CLIENT,
    secure: bool = False,
    **more: Any,
) -> OutgoingRequest:
    return RequestHeads(Location.parse(url), forward).build(method, target, headers, peer=peer, secure=secure, **more)


def parsed(head: bytes) -> tuple[bytes, list[Header]]:
    """Parse a head that every parser reads alike, and return its request line and headers."""
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    for line in (first, *lines):
        assert line
        assert not set(line) & set(b"\r\n\0")
        assert line[:1] not in (b" ", b"\t")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b": ")
        assert colon
        headers.append((name, value))
    return first, headers


def sent(headers: Iterable[Header] = (HOST,), **more: Any) -> list[Header]:
    return parsed(made(headers, **more).head)[1]


def refused(headers: Iterable[Header] = (HOST,), **more: Any) -> str:
    with pytest.raises(ServerFailure) as failure:
        made(headers, **more)
    assert failure.value.failure is Failure.NOT_FORWARDABLE
    assert failure.value.failure.status == 400
    return failure.value.detail
