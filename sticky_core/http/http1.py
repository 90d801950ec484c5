"""HTTP/1.1 responses parsed without I/O: bytes in, responses out (RFC 9112; httptools parses, which is llhttp).

llhttp is strict about characters and lines, but does not know the request. Decided here: which responses have no body,
when a connection has ended, which sizes are too large, and whether more data may follow. A body with a length is
counted, but not parsed; only a chunked one is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from sticky_core.errors import ConfigError

Header = tuple[bytes, bytes]

#: the longest head, in bytes; also the longest trailer section
MAX_HEAD: Final = 65536
#: how many 1xx responses may come before the final one
MAX_INTERIM: Final = 16
#: How many names of headers that clients or servers have sent are remembered, and how long they are at most.
MAX_KNOWN_NAMES: Final = 4096
MAX_KNOWN_NAME_LENGTH: Final = 64
# The bytes of chunk lines, extensions included: at most this many in total, and this many more for each chunk.
_CHUNK_LINES: Final = 16384
_CHUNK_LINE: Final = 64
# Body parts up to this size in bytes are joined; for larger ones joining costs more than passing them on one by one.
_MAX_JOINED: Final = 8192

#: A Connection header can't remove these: they do not concern the connection, and servers depend on them.
END_TO_END: Final = frozenset(
    (b"host", b"content-length", b"content-type", b"cookie", b"set-cookie", b"authorization", b"cache-control", b"date")
)

#: Headers that are valid for one connection only (RFC 9110, 7.6.1, and older ones), so they are not forwarded.
#: Proxy-Authorization is not one of them: a request's is forwarded, as by HAProxy. Nor is Proxy-Authenticate, but an
#: app on WSGI may not send it (PEP 3333).
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


#: the message if a package is not installed
MISSING_PACKAGE: Final = "forwarding to a URL needs {}: pip install 'sticky-sessions[proxy]'"


class BadResponse(Exception):
    """The server sent something that is not a response, or not one that can be passed on."""


def connection_options(value: bytes) -> list[bytes]:
    """Return the names in a Connection header, in lower case."""
    return [name for part in value.split(b",") if (name := part.strip(b" \t").lower())]


def is_removable(name: bytes) -> bool:
    """Whether a header that Connection names is removed: not if servers depend on it."""
    return name not in END_TO_END and not name.startswith(b"x-forwarded-")


def headers_to_remove(names: list[bytes]) -> set[bytes]:
    """Return the headers to remove because Connection names them, besides hop-by-hop ones: usually none."""
    return {name for name in names if name not in HOP_BY_HOP and is_removable(name)}


def require() -> None:
    """Raise ConfigError unless httptools is installed."""
    _httptools()


def _httptools() -> Any:
    try:
        return import_module("httptools")
    except ImportError:
        raise ConfigError(MISSING_PACKAGE.format("httptools")) from None


class ResponseParser:
    """Parses the responses on one connection, one after another: call `begin_response` when a request is sent, then
    `feed` with the data received.
    """

    __slots__ = (
        "__weakref__",
        "_accepts_upgrade",
        "_body_parsed",
        "_bytes_fed",
        "_chunked",
        "_chunks",
        "_connection_options",
        "_errors",
        "_has_early_head",
        "_head_only",
        "_interim",
        "_is_http_1_1",
        "_is_simple",
        "_length",
        "_parser",
        "_parser_class",
        "_problem",
        "_tail",
        "_unparsed_left",
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
        self._parser_class = httptools.HttpResponseParser
        self._errors = httptools.HttpParserUpgrade, httptools.HttpParserError
        self._parser: Any = None
        #: Whether the response is complete; more data is an error then.
        self.finished = True
        self.reusable = True
        self.status = 0
        self._unparsed_left = 0
        self._is_simple = False

    def begin_response(self, method: str, upgrade: bool = False) -> None:
        """Prepare for the response to a request. `upgrade`: the request asks for another protocol: a 101 is allowed."""
        if self._parser is None or not self.reusable:
            self._parser = self._parser_class(self)
        self.status = 0  #: 0 until the head is complete
        self.headers: list[Header] = []  #: the headers to pass on
        self.body_parts: list[bytes] = []  #: parts of the body that `take_body` has not returned yet
        self.finished = False  #: whether the response is complete
        self.reusable = False  #: once `finished`: whether the connection can be used for another request
        self._bytes_fed = 0
        self._body_parsed = 0
        self._unparsed_left = 0  # bytes to come of a body that is not parsed; below 0: until the connection is closed
        self._length = -1
        if not self._is_simple:
            self._reset_rare_state()
        if upgrade or method == "HEAD":
            self._is_simple = False
            self._accepts_upgrade = upgrade
            self._head_only = method == "HEAD"

    def _reset_rare_state(self) -> None:
        """Reset the state that few responses change. Code that changes it sets `_is_simple` to False."""
        self._is_simple = True
        self.awaits_continue = False  #: whether a 100 has been requested and not received
        self._accepts_upgrade = False
        self._head_only = False
        self.trailers: list[Header] = []
        self.trailer_names: bytes | None = None  #: the Trailer header
        self.upgraded_data = b""  #: the data after a 101
        self.upgrade = b""  #: the Upgrade header, if Connection names it
        self._tail = b""  # the last bytes fed before, as many as can matter
        self._has_early_head = False  # whether an earlier `feed` completed the head, so that the caller has seen it
        self._interim = 0
        self._is_http_1_1 = True  # whether it is known to be HTTP/1.1; the parser would build a string for it
        self._begin_head()

    def _begin_head(self) -> None:
        self._length = -1
        self._chunked = False
        self._chunks = 0
        self._connection_options: list[bytes] | None = None
        self._problem: str | None = None

    def feed(self, data: bytes) -> None:
        """Parse more data from the server. Raise BadResponse if it is not a valid response, or if the response is
        already finished.
        """
        if self._unparsed_left:
            if not self.finished:
                return self._feed_unparsed(data)
            self._unparsed_left = 0
        if self.finished:
            self.reusable = False
            raise BadResponse("data after the response")
        fed = self._bytes_fed = self._bytes_fed + len(data)
        if fed > MAX_HEAD and not self.status and self._is_head_too_long(data):
            raise self._fail(f"a head of more than {MAX_HEAD} bytes")
        if fed == len(data) and data[:9] != b"HTTP/1.1 ":
            if data[0] != 0x48:  # an H; the parser would accept RTSP as well, and empty lines
                raise self._fail("not HTTP")
            self._is_http_1_1 = self._is_simple = False
        upgrade, parse_error = self._errors
        try:
            self._parser.feed_data(data)
        except upgrade as error:
            self.upgraded_data = data[error.args[0] :]
            self._is_simple = False
        except parse_error as error:
            if not self.finished or self.status == 101:
                raise self._fail(self._problem or str(error)) from None
            self.reusable = False
        if self._problem is not None:
            raise self._fail(self._problem)
        if self.finished:
            if (data[-1] < 0x0E or self._head_only) and not self._ends_exactly_at(data):
                self.reusable = False
        elif self.status and not self._chunked:
            self._unparsed_left = self._length - self._body_parsed if self._length >= 0 else -1
            self._parser = None  # it expects a body that it will not get
        elif self.status and fed - self._body_parsed > MAX_HEAD + _CHUNK_LINES + _CHUNK_LINE * self._chunks:
            raise self._fail("chunk lines are too long")
        else:
            self._tail = (self._tail + data[-4:])[-4:]
            self._has_early_head = self.status > 0
            self._is_simple = False

    def _fail(self, problem: str) -> BadResponse:
        """Return the error for an invalid response. What was parsed in the same `feed` is discarded too."""
        self._problem = problem
        self.finished = self.reusable = self._is_simple = False
        if not self._has_early_head:
            self.status = 0
            self.body_parts = []
        return BadResponse(problem)

    def _is_head_too_long(self, data: bytes) -> bool:
        """Whether the head is longer than MAX_HEAD."""
        allowed = MAX_HEAD - self._bytes_fed + len(data)
        return allowed <= 0 or b"\r\n\r\n" not in self._tail[-3:] + data[:allowed]

    def _feed_unparsed(self, data: bytes) -> None:
        left = self._unparsed_left
        if left > 0:
            size = len(data)
            if size >= left:
                self.finished = True
                if size > left:
                    data = data[:left]
                    self.reusable = False
            self._unparsed_left = left - size
        self.body_parts.append(data)

    def _ends_exactly_at(self, data: bytes) -> bool:
        """Whether the response ends where `data` does: the parser silently skips line breaks after it, and expects a
        body after a head that has none.
        """
        length = self._length
        if length > 0:
            if self._bytes_fed == len(data) == data.find(b"\r\n\r\n") + 4 + length:
                return True
            if not data.endswith(self.body_parts[-1]):
                return False
            data = data[:-length]
        last = data[-5:] if len(data) > 4 else (self._tail + data)[-5:]
        return last[1:] == b"\r\n\r\n" and last[0] > 0x0D

    def feed_eof(self) -> bool:
        """The server has closed the connection. Return whether the response is complete; raise BadResponse if only a
        part of its head was received.
        """
        if self._unparsed_left < 0 and not self.finished:
            self.finished = True
            self.reusable = False
        if not self.finished and not self.status and (self._bytes_fed or self._interim):
            raise BadResponse("a head that is cut short")
        return self.finished

    def close(self) -> None:
        """Free the parser; nothing may be fed any more. It refers to this object, and without this both would wait for
        the garbage collector.
        """
        self._parser = None

    def take_body(self) -> bytes:
        """Return the next part of the body received: small ones joined, large ones one by one."""
        parts = self.body_parts
        if not parts:
            return b""
        if len(parts) > 1:
            if len(parts[0]) > _MAX_JOINED:
                return parts.pop(0)
            part = b"".join(parts)
        else:
            part = parts[0]
        self.body_parts = []
        return part

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        if self.finished:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.finished:
            return
        try:
            lower, handle = _HEADERS[name]
        except KeyError:
            lower, handle = _learn_name(name)
        if self.status:
            self._on_trailer(lower, handle, value)
        elif handle is not None:
            handle(self, value)
        elif lower:
            self.headers.append((lower, value.rstrip(b" \t")))

    def _on_trailer(self, lower: bytes, handle: Callable[[ResponseParser, bytes], None] | None, value: bytes) -> None:
        if lower and handle is None:
            self.trailers.append((lower, value.rstrip(b" \t")))
            self._is_simple = False
        else:
            self.reusable = False  # the parser may have acted on it

    def handle_content_length(self, value: bytes) -> None:
        value = value.rstrip(b" \t")
        self._length = int(value)  # llhttp accepts digits only
        self.headers.append((b"content-length", value))

    def handle_transfer_encoding(self, value: bytes) -> None:
        if (
            self._chunked or value.rstrip(b" ").lower() != b"chunked"
        ):  # llhttp does not recognise it with a tab after it
            self._problem = "a transfer coding other than chunked"
        self._chunked = True
        self._is_simple = False

    def handle_connection(self, value: bytes) -> None:
        if self._connection_options is None:
            self._connection_options = []
        self._connection_options += connection_options(value)
        self._is_simple = False

    def handle_trailer(self, value: bytes) -> None:
        self.trailer_names = value.rstrip(b" \t")
        self._is_simple = False

    def handle_upgrade(self, value: bytes) -> None:
        self.upgrade = value.rstrip(b" \t")
        self._is_simple = False

    def on_headers_complete(self) -> None:
        if self.finished:
            return
        status: int = self._parser.get_status_code()
        if self._is_simple and self._length >= 0 and 200 <= status <= 999 and status != 204 and status != 304:
            self.status = status
            self.reusable = True
        elif status < 200:
            self._on_interim(status)
        else:
            self._on_other_head(status)

    def _on_other_head(self, status: int) -> None:
        parser = self._parser
        version: str = "1.1" if self._is_http_1_1 else parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._problem = f"a response in HTTP/{version}"
        elif status > 999:
            self._problem = f"status {status}"
        self.status = status
        self.reusable = parser.should_keep_alive() and not (
            self._chunked and version == "1.0"
        )  # the parser forgets it later
        if self._connection_options:
            if b"close" in self._connection_options:
                self.reusable = False
            if removed := headers_to_remove(self._connection_options):
                self.headers = [header for header in self.headers if header[0].lower() not in removed]
        if status == 204 or status == 304:  # a 304 may have a length, for which some web servers would expect a body
            self.headers = [header for header in self.headers if header[0] != b"content-length"]
        if self._head_only or status == 204 or status == 304:
            self.finished = True
            self._length = 0
            self._parser = None  # it does not know that there is no body, and would expect one

    def _on_interim(self, status: int) -> None:
        self._interim += 1
        self._is_http_1_1 = self._is_simple = False
        if status == 100:
            self.awaits_continue = False
        if status == 101:
            self.status = status
            self.finished = True
            if not self._accepts_upgrade:
                self._problem = "a change of protocol that was not requested"
            elif not self.upgrade or b"upgrade" not in (self._connection_options or ()):
                self._problem = "a change of protocol without Upgrade and Connection"
        elif status < 100:
            self._problem = f"status {status:03}"
        elif self._interim > MAX_INTERIM:
            self._problem = f"more than {MAX_INTERIM} interim responses"

    def on_body(self, body: bytes) -> None:
        if self.finished:
            self.reusable = False
        else:
            self._body_parsed += len(body)
            self.body_parts.append(body)

    def on_chunk_header(self) -> None:
        if self.finished:
            self.reusable = False
        self._chunks += 1
        self._is_simple = False

    def on_message_complete(self) -> None:
        if self.status:
            self.finished = True
        elif not self._problem:
            self.headers = []
            self._begin_head()


#: The names of headers as received: the name in lower case, and the method for a header that is not simply passed on.
#: An empty name: the header is dropped (hop-by-hop headers, and those that our web server adds itself).
_HEADERS: dict[bytes, tuple[bytes, Callable[[ResponseParser, bytes], None] | None]] = dict.fromkeys(
    # an app on WSGI may not send Proxy-Authorization, which means nothing in a response
    (*HOP_BY_HOP, b"proxy-authorization", b"date", b"server"),
    (b"", None),
)
_HEADERS.update(
    {
        b"content-length": (b"content-length", ResponseParser.handle_content_length),
        b"transfer-encoding": (b"transfer-encoding", ResponseParser.handle_transfer_encoding),
        b"connection": (b"connection", ResponseParser.handle_connection),
        b"trailer": (b"trailer", ResponseParser.handle_trailer),
        b"upgrade": (b"upgrade", ResponseParser.handle_upgrade),
    }
)


def _learn_name(name: bytes) -> tuple[bytes, Callable[[ResponseParser, bytes], None] | None]:
    """Return the entry of a new name and remember it. Servers may invent names, so their number is limited."""
    lower = name.lower()
    known = _HEADERS.get(lower, (lower, None))
    if len(_HEADERS) < MAX_KNOWN_NAMES and len(name) <= MAX_KNOWN_NAME_LENGTH:
        _HEADERS[name] = known
    return known
