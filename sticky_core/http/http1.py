"""HTTP/1.1 as a client reads it, without I/O: bytes in, answers out (RFC 9112; parsed by httptools, which is llhttp).

llhttp is strict about characters and lines, and knows nothing of the request: which answers have no body, when a
connection has ended, how much is too much, and whether anything may follow are decided here. A body with a length is
counted and passed by; only a chunked one is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from sticky_core.errors import ConfigError

Header = tuple[bytes, bytes]

#: of a head, in bytes; a trailer section counts as one
MAX_HEAD: Final = 65536
#: how many answers of status 1xx may come before the one that counts
MAX_INTERIM: Final = 16
#: Of headers: how many names are remembered that clients or servers have come with, and of what length at most.
MAX_KNOWN_NAMES: Final = 4096
MAX_KNOWN_NAME_LENGTH: Final = 64
# Lines of chunks, extensions included: this much in all, and so much more for each chunk.
_CHUNK_LINES: Final = 16384
_CHUNK_LINE: Final = 64
# Pieces of a body below this are passed on together, in bytes: above, to join them costs more than to pass them on.
_LARGE: Final = 8192

#: A Connection header can't take these along: they are not about the connection, and servers would be fooled.
END_TO_END: Final = frozenset(
    (b"host", b"content-length", b"content-type", b"cookie", b"set-cookie", b"authorization", b"cache-control", b"date")
)

#: What goes from one end of a connection to the other and no further (RFC 9110, 7.6.1, and what is older than it).
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


#: what is told to whom a part is missing
MISSING_PACKAGE: Final = "forwarding to a URL needs {}: pip install 'sticky-sessions[proxy]'"


class BadResponse(Exception):
    """What the server sent is no answer, or not one that can be passed on."""


def connection_options(value: bytes) -> list[bytes]:
    """The names in a Connection header, in lower case."""
    return [name for part in value.split(b",") if (name := part.strip(b" \t").lower())]


def is_removable(name: bytes) -> bool:
    """Whether a header that Connection names goes with the connection: not if others depend on it."""
    return name not in END_TO_END and not name.startswith(b"x-forwarded-")


def headers_to_remove(names: list[bytes]) -> set[bytes]:
    """What goes no further because Connection names it, and would go on else: usually nothing."""
    return {name for name in names if name not in HOP_BY_HOP and is_removable(name)}


def require() -> None:
    """ConfigError unless the parser is installed."""
    _httptools()


def _httptools() -> Any:
    try:
        return import_module("httptools")
    except ImportError:
        raise ConfigError(MISSING_PACKAGE.format("httptools")) from None


class ResponseParser:
    """The answers that come on one connection, one after another: `begin` when a request goes out, then `feed` what
    comes.
    """

    __slots__ = (
        "__weakref__",
        "_accepts_upgrade",
        "_as_usual",
        "_chunked",
        "_chunks",
        "_current",
        "_errors",
        "_fed",
        "_got",
        "_head_only",
        "_hops",
        "_interim",
        "_left",
        "_length",
        "_make",
        "_parser",
        "_problem",
        "_tail",
        "_told",
        "awaits_continue",
        "body_parts",
        "finished",
        "headers",
        "reusable",
        "status",
        "trailer_names",
        "trailers",
        "upgrade",
        "upgraded_data",
    )

    def __init__(self) -> None:
        httptools = _httptools()
        self._make = httptools.HttpResponseParser
        self._errors = httptools.HttpParserUpgrade, httptools.HttpParserError
        self._parser: Any = None
        #: Whether no answer is under way: whatever comes now is one too many.
        self.finished = True
        self.reusable = True
        self.status = 0
        self._left = 0
        self._as_usual = False

    def begin_response(self, method: str, upgrade: bool = False) -> None:
        """A request goes out. `upgrade`: it asks for another protocol, and may be given it by a 101."""
        if self._parser is None or not self.reusable:
            self._parser = self._make(self)
        self.status = 0  #: 0 until the head is whole
        self.headers: list[Header] = []  #: those to pass on
        self.body_parts: list[bytes] = []  #: of the body, which nobody has taken yet
        self.finished = False  #: whether the answer is whole
        self.reusable = False  #: then: whether the connection may carry another
        self._fed = 0
        self._got = 0
        self._left = 0  # of a body that is passed by: how much is to come; below 0: whatever comes until the end
        self._length = -1
        if not self._as_usual:
            self._begin_as_usual()
        if upgrade or method == "HEAD":
            self._as_usual = False
            self._accepts_upgrade = upgrade
            self._head_only = method == "HEAD"

    def _begin_as_usual(self) -> None:
        """Forget what few answers have. Who notes any of it says that the answer is not `_as_usual`."""
        self._as_usual = True
        self.awaits_continue = False  #: whether a 100 would be news
        self._accepts_upgrade = False
        self._head_only = False
        self.trailers: list[Header] = []
        self.trailer_names: bytes | None = None  #: the Trailer header
        self.upgraded_data = b""  #: what came behind a 101
        self.upgrade = b""  #: the Upgrade header, if Connection names it
        self._tail = b""  # of what was fed before, as much as can matter
        self._told = False  # whether there was a head after an earlier read, and somebody has seen it
        self._interim = 0
        self._current = True  # whether it is HTTP/1.1 without asking the parser, which makes a text of it
        self._begin_head()

    def _begin_head(self) -> None:
        self._length = -1
        self._chunked = False
        self._chunks = 0
        self._hops: list[bytes] | None = None
        self._problem: str | None = None

    def feed(self, data: bytes) -> None:
        """More of what the server sends. BadAnswer if it is not the answer that it should be; or if this is `over`, and
        there is more.
        """
        if self._left:
            if not self.finished:
                return self._pass_by(data)
            self._left = 0
        if self.finished:
            self.reusable = False
            raise BadResponse("more than was asked for")
        fed = self._fed = self._fed + len(data)
        if fed > MAX_HEAD and not self.status and self._too_long(data):
            raise self._bad(f"a head of more than {MAX_HEAD} bytes")
        if fed == len(data) and data[:9] != b"HTTP/1.1 ":
            if data[0] != 0x48:  # an H; the parser would take RTSP as well, and empty lines
                raise self._bad("not HTTP")
            self._current = self._as_usual = False
        upgrade, error = self._errors
        try:
            self._parser.feed_data(data)
        except upgrade as switched:
            self.upgraded_data = data[switched.args[0] :]
            self._as_usual = False
        except error as wrong:
            if not self.finished or self.status == 101:
                raise self._bad(self._problem or str(wrong)) from None
            self.reusable = False
        if self._problem is not None:
            raise self._bad(self._problem)
        if self.finished:
            if (data[-1] < 0x0E or self._head_only) and not self._ends_with(data):
                self.reusable = False
        elif self.status and not self._chunked:
            self._left = self._length - self._got if self._length >= 0 else -1
            self._parser = None  # it waits for a body that it will not see
        elif self.status and fed - self._got > MAX_HEAD + _CHUNK_LINES + _CHUNK_LINE * self._chunks:
            raise self._bad("chunks with more around them than in them")
        else:
            self._tail = (self._tail + data[-4:])[-4:]
            self._told = self.status > 0
            self._as_usual = False

    def _bad(self, problem: str) -> BadResponse:
        """What comes after this is no better, and what came in the same read was no answer either."""
        self._problem = problem
        self.finished = self.reusable = self._as_usual = False
        if not self._told:
            self.status = 0
            self.body_parts = []
        return BadResponse(problem)

    def _too_long(self, data: bytes) -> bool:
        """Whether the head goes on beyond what a head may have."""
        allowed = MAX_HEAD - self._fed + len(data)
        return allowed <= 0 or b"\r\n\r\n" not in self._tail[-3:] + data[:allowed]

    def _pass_by(self, data: bytes) -> None:
        left = self._left
        if left > 0:
            size = len(data)
            if size >= left:
                self.finished = True
                if size > left:
                    data = data[:left]
                    self.reusable = False
            self._left = left - size
        self.body_parts.append(data)

    def _ends_with(self, data: bytes) -> bool:
        """Whether the answer ends where `data` does: the parser skips line breaks behind it without a word, and looks
        for a body behind a head that has none.
        """
        length = self._length
        if length > 0:
            if self._fed == len(data) == data.find(b"\r\n\r\n") + 4 + length:
                return True
            if not data.endswith(self.body_parts[-1]):
                return False
            data = data[:-length]
        last = data[-5:] if len(data) > 4 else (self._tail + data)[-5:]
        return last[1:] == b"\r\n\r\n" and last[0] > 0x0D

    def feed_eof(self) -> bool:
        """The server has closed its side. Whether the answer is whole; BadAnswer if not even its head is, and something
        of it had come.
        """
        if self._left < 0 and not self.finished:
            self.finished = True
            self.reusable = False
        if not self.finished and not self.status and (self._fed or self._interim):
            raise BadResponse("a head that is cut short")
        return self.finished

    def take_body(self) -> bytes:
        """The next piece of the body that has come: small ones together, large ones one by one."""
        parts = self.body_parts
        if not parts:
            return b""
        if len(parts) > 1:
            if len(parts[0]) > _LARGE:
                return parts.pop(0)
            part = b"".join(parts)
        else:
            part = parts[0]
        self.body_parts = []
        return part

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.finished:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.finished:
            return
        try:
            lower, heed = _HEADERS[name]
        except KeyError:
            lower, heed = _introduced(name)
        if self.status:
            self._on_trailer(lower, heed, value)
        elif heed is not None:
            heed(self, value)
        elif lower:
            self.headers.append((lower, value.rstrip(b" \t")))

    def _on_trailer(self, lower: bytes, heed: Callable[[ResponseParser, bytes], None] | None, value: bytes) -> None:
        if lower and heed is None:
            self.trailers.append((lower, value.rstrip(b" \t")))
            self._as_usual = False
        else:
            self.reusable = False  # the parser may have heeded it

    def heed_length(self, value: bytes) -> None:
        value = value.rstrip(b" \t")
        self._length = int(value)  # llhttp lets nothing but digits pass
        self.headers.append((b"content-length", value))

    def heed_coding(self, value: bytes) -> None:
        if self._chunked or value.rstrip(b" ").lower() != b"chunked":  # with a tab behind it the parser heeds none
            self._problem = "a transfer coding that is not chunked alone"
        self._chunked = True
        self._as_usual = False

    def heed_connection(self, value: bytes) -> None:
        self._hops = [*(self._hops or ()), *connection_options(value)]
        self._as_usual = False

    def heed_trailer(self, value: bytes) -> None:
        self.trailer_names = value.rstrip(b" \t")
        self._as_usual = False

    def heed_upgrade(self, value: bytes) -> None:
        self.upgrade = value.rstrip(b" \t")
        self._as_usual = False

    def on_headers_complete(self) -> None:
        if self.finished:
            return
        status: int = self._parser.get_status_code()
        if self._as_usual and self._length >= 0 and 200 <= status <= 999 and status != 204 and status != 304:
            self.status = status
            self.reusable = True
        elif status < 200:
            self._on_interim(status)
        else:
            self._on_unusual(status)

    def _on_unusual(self, status: int) -> None:
        parser = self._parser
        version: str = "1.1" if self._current else parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._problem = f"an answer in HTTP/{version}"
        elif status > 999:
            self._problem = f"status {status}"
        self.status = status
        self.reusable = parser.should_keep_alive() and not (self._chunked and version == "1.0")  # later it forgets
        if self._hops:
            if b"close" in self._hops:
                self.reusable = False
            if gone := headers_to_remove(self._hops):
                self.headers = [header for header in self.headers if header[0].lower() not in gone]
        if status == 204 or status == 304:  # a 304 may carry a length, which some servers would hold it to
            self.headers = [header for header in self.headers if header[0] != b"content-length"]
        if self._head_only or status == 204 or status == 304:
            self.finished = True
            self._length = 0
            self._parser = None  # it does not know, and would wait for a body

    def _on_interim(self, status: int) -> None:
        self._interim += 1
        self._current = self._as_usual = False
        if status == 100:
            self.awaits_continue = False
        if status == 101:
            self.status = status
            self.finished = True
            if not self._accepts_upgrade:
                self._problem = "a change of protocol that nobody asked for"
            elif not self.upgrade or b"upgrade" not in (self._hops or ()):
                self._problem = "a change of protocol without Upgrade and Connection"
        elif status < 100:
            self._problem = f"status {status:03}"
        elif self._interim > MAX_INTERIM:
            self._problem = f"more than {MAX_INTERIM} answers before the answer"

    def on_body(self, body: bytes) -> None:
        if self.finished:
            self.reusable = False
        else:
            self._got += len(body)
            self.body_parts.append(body)

    def on_chunk_header(self) -> None:
        if self.finished:
            self.reusable = False
        self._chunks += 1
        self._as_usual = False

    def on_message_complete(self) -> None:
        if self.status:
            self.finished = True
        elif not self._problem:
            self.headers = []
            self._begin_head()


#: The names of headers as they came: in lower case, and what heeds those that are not simply passed on. Empty for what
#: goes no further: hop by hop, and what the server in front says itself.
_HEADERS: dict[bytes, tuple[bytes, Callable[[ResponseParser, bytes], None] | None]] = dict.fromkeys(
    (*HOP_BY_HOP, b"date", b"server"), (b"", None)
)
_HEADERS.update(
    {
        b"content-length": (b"content-length", ResponseParser.heed_length),
        b"transfer-encoding": (b"transfer-encoding", ResponseParser.heed_coding),
        b"connection": (b"connection", ResponseParser.heed_connection),
        b"trailer": (b"trailer", ResponseParser.heed_trailer),
        b"upgrade": (b"upgrade", ResponseParser.heed_upgrade),
    }
)


def _introduced(name: bytes) -> tuple[bytes, Callable[[ResponseParser, bytes], None] | None]:
    """The same for a name that was not met before. Servers may invent them, so only so many are remembered."""
    lower = name.lower()
    known = _HEADERS.get(lower, (lower, None))
    if len(_HEADERS) < MAX_KNOWN_NAMES and len(name) <= MAX_KNOWN_NAME_LENGTH:
        _HEADERS[name] = known
    return known
