"""A sample of the body of a response: a key that a server gives out there, such as the id of a session in the JSON of
its response to a handshake. Only `StickyWorkers(learn=...)` reads bodies of responses.

At most the first bytes of a body are read, piece by piece and as they pass (`BodyReader`): a body is neither delayed
nor changed. Compressed bodies can't be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.samples.json_reader import as_key, read_field
from sticky_core.samples.values import query_parameter

__all__ = ["LIMIT", "BodyReader", "BodySample", "body_param", "json_field", "sse_endpoint"]

#: how many bytes of a body are read if a sample does not say otherwise
LIMIT: Final = 16384
_LONGEST: Final = 1 << 20
#: How many pieces of a body are searched once the text that precedes a key has been found. Each search begins at the
#: beginning of the body, so a body in very many small pieces would cost the square of their number.
_MAX_SEARCHES: Final = 64

_TEXT: Final = "text/plain"
#: What may be in front of a JSON object: the length and the type of a packet of Engine.IO, `)]}',`, `for(;;);`. A `[`
#: would begin a list of objects, and a quotation mark a text.
_BEFORE_JSON: Final = re.compile(rb'[^\[{"]{0,32}')
_LINE_END: Final = re.compile("\r\n|\n|\r")


@runtime_checkable
class BodySample(Protocol):
    """A sample of the body of a response. Those of this module are such; so is an object of the user's with these."""

    @property
    def limit(self) -> int:
        """How many bytes of a body are read."""
        ...

    @property
    def hint(self) -> bytes:
        """A text that precedes each key in a body: nothing is searched for before it has been found."""
        ...

    def accepts(self, content_type: str) -> bool:
        """Return whether bodies with this content type, in lower case and without parameters, can have a key."""
        ...

    def find(self, body: bytes, is_whole: bool) -> str | None:
        """Return the key in a body; None if there is none. `is_whole`: whether `body` is all of it, and not only its
        beginning.
        """
        ...


@dataclass(frozen=True, slots=True)
class json_field:
    """A text or number of a JSON object in the body, by its name, or `"session.id"` for one of an inner object; None if
    it does not end within the first `limit` bytes. Of several fields with one name the first counts.

    The object begins with the first `{`. Up to 32 other characters may precede it, as in the packet by which Engine.IO
    opens a session, `0{"sid":"…"}`; but no `[` and no quotation mark, so the objects of a list have no key, and neither
    has JSONP. Content types: `text/plain`, all of JSON, and `application/octet-stream`.
    """

    name: str
    limit: int = LIMIT

    def __post_init__(self) -> None:
        raise_problems(_problems("res.json_field", "a field", self.name, self.limit))

    @property
    def hint(self) -> bytes:
        last = self.name.rpartition(".")[2]
        return f'"{last}"'.encode() if last.isascii() else b'"'  # other names may be written with escapes

    def accepts(self, content_type: str) -> bool:
        return content_type.endswith("json") or content_type in (_TEXT, "application/octet-stream", "")

    def find(self, body: bytes, is_whole: bool) -> str | None:
        match = _BEFORE_JSON.match(body)
        assert match is not None
        try:
            return as_key(read_field(body[match.end() :], self.name.split(".")))
        except (ValueError, RecursionError):  # it is no JSON, or not complete yet
            return None


@dataclass(frozen=True, slots=True)
class body_param:
    """The value of a parameter in a body such as `sid=abc&expires=60`, as it was sent; None if it does not end within
    the first `limit` bytes. Content types: `application/x-www-form-urlencoded`, `text/plain`.
    """

    name: str
    limit: int = LIMIT

    def __post_init__(self) -> None:
        raise_problems(_problems("res.body_param", "a parameter", self.name, self.limit))

    @property
    def hint(self) -> bytes:
        return f"{self.name}=".encode()

    def accepts(self, content_type: str) -> bool:
        return content_type in ("application/x-www-form-urlencoded", _TEXT)

    def find(self, body: bytes, is_whole: bool) -> str | None:
        text = body.decode("latin-1")
        if is_whole:
            text = text.rstrip("\r\n")
        else:  # the last value may go on
            text = text[: text.rfind("&") + 1]
        wanted = self.hint.decode("latin-1")
        return next((part[len(wanted) :] for part in text.split("&") if part.startswith(wanted)), None)


@dataclass(frozen=True, slots=True)
class sse_endpoint:
    """The value of a parameter in the query of the URL that a stream of Server-Sent Events sends as its event
    `endpoint`, as it was sent: `event: endpoint`, `data: /messages/?session_id=abc`. So MCP's SSE transport tells a
    client where to send its messages. None if the event does not end within the first `limit` bytes. Content type:
    `text/event-stream`.
    """

    name: str
    limit: int = LIMIT

    def __post_init__(self) -> None:
        raise_problems(_problems("res.sse_endpoint", "a parameter", self.name, self.limit))

    @property
    def hint(self) -> bytes:
        return f"{self.name}=".encode()

    def accepts(self, content_type: str) -> bool:
        return content_type == "text/event-stream"

    def find(self, body: bytes, is_whole: bool) -> str | None:
        lines = _LINE_END.split(body.decode("utf-8-sig", "replace"))
        event = data = ""
        for line in lines[:-1]:  # the last one has no end yet
            name, _, value = line.partition(":")
            if not line and event == "endpoint":
                return query_parameter(data.partition("#")[0].partition("?")[2], self.name)
            if not line:
                event = data = ""
            elif name == "event":
                event = value.removeprefix(" ")
            elif name == "data":
                data += value.removeprefix(" ")
        return None


def _problems(sample: str, what: str, name: str, limit: int) -> Iterator[str]:
    if not name:
        yield f"{sample}: {what} has a name"
    if not 0 < limit <= _LONGEST:
        yield f"{sample}: a limit of {limit} bytes is not within 1..{_LONGEST}: so much is kept of each response"


class BodyReader:
    """Reads the beginning of the body of one response, until one of `samples` finds a key there.

    - `samples`: those that accept the content type of the response.
    - `length`: the Content-Length of the response; None if it has none.

    `is_done`: whether no more of the body need be read.
    """

    __slots__ = ("_body", "_hints", "_length", "_limit", "_samples", "_searches", "is_done")

    def __init__(self, samples: Sequence[BodySample], length: int | None) -> None:
        self._samples = samples
        self._length = length
        self._limit = max((sample.limit for sample in samples), default=0)
        self._body = bytearray()
        self._hints: set[bytes] = set()  # that have been found
        self._searches = 0
        self.is_done = not samples

    def read(self, piece: bytes, is_last: bool) -> str | None:
        """Read the next piece, and return the key once one is found. `is_last`: whether the body ends with it."""
        before = len(self._body)
        fits = before + len(piece) <= self._limit
        self._body += piece[: self._limit - before]
        is_whole = fits and (is_last or len(self._body) == self._length)
        key = self._search(before, is_whole)
        self.is_done = (
            key is not None or is_last or is_whole or len(self._body) >= self._limit or self._searches >= _MAX_SEARCHES
        )
        return key

    def _search(self, before: int, is_whole: bool) -> str | None:
        has_searched = False
        key = None
        for sample in self._samples:
            hint = sample.hint
            if hint not in self._hints:
                if self._body.find(hint, max(0, before - len(hint))) < 0:
                    continue
                self._hints.add(hint)
            has_searched = True
            limit = sample.limit
            key = sample.find(bytes(self._body[:limit]), is_whole and len(self._body) <= limit)
            if key is not None:
                break
        self._searches += has_searched
        return key
