"""Connections that show every byte, and clients that use them."""

import io
import select
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
#: Seconds after which a step that takes an instant is taken to hang.
DEADLINE = 300.0


@dataclass(frozen=True)
class Response:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class IncompleteRead(AssertionError):
    """A connection ended before all expected bytes were received. `partial`: those that were."""

    def __init__(self, what: str, partial: bytes) -> None:
        super().__init__(f"the connection ended before {what}: {partial!r}")
        self.partial = partial


class Wire:
    """One end of a connection, which sends and receives bytes without any library in between."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""
        self.is_closed = False  #: whether the other end has closed
        self.was_reset = False  #: whether it did so with RST, or without the end of TLS

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_timeout(self, seconds: float) -> None:
        """Limit how long a call may take."""
        self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """Return the next bytes; none if the other end has closed or reset the connection."""
        read, self._buffer = self._buffer, b""
        return read or self._receive()

    def _receive(self) -> bytes:
        received = b""
        if not self.is_closed:
            try:
                received = self._socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                self.was_reset = True
            self.is_closed = not received
        return received

    def _more(self, what: str) -> None:
        more = self._receive()
        if not more:
            raise IncompleteRead(what, self._buffer)
        self._buffer += more

    def read_until(self, mark: bytes) -> bytes:
        """Return everything up to `mark`, including it; what follows stays for the next call."""
        self.wait_for(mark)
        read, found, self._buffer = self._buffer.partition(mark)
        return read + found

    def wait_for(self, mark: bytes) -> None:
        """Wait until `mark` is received; everything stays for the next call."""
        while mark not in self._buffer:
            self._more(f"{mark!r}")

    def read(self, size: int) -> bytes:
        """Return so many bytes."""
        parts, length = [self._buffer], len(self._buffer)
        while length < size:
            parts.append(self._receive())
            length += len(parts[-1])
            if not parts[-1]:
                raise IncompleteRead(f"{size} bytes", b"".join(parts))
        received = b"".join(parts)
        self._buffer = received[size:]
        return received[:size]

    def read_all(self) -> bytes:
        """Return everything until the other end closes."""
        parts = []
        while more := self.receive():
            parts.append(more)
        return b"".join(parts)

    def is_readable(self) -> bool:
        """Whether there is anything to read, the end included."""
        if not self._buffer and not self.is_closed and select.select([self], [], [], 0)[0]:
            self._buffer = self._receive()
        return self.has_more or self.is_closed

    @property
    def has_more(self) -> bool:
        """Whether bytes were received and not read."""
        return bool(self._buffer)

    def shrink_buffers(self) -> None:
        """Let the system buffer little of what is sent and not yet read."""
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 65536)

    def shut_down_sending(self) -> None:
        """Close the connection for sending only."""
        self._socket.shutdown(socket.SHUT_WR)

    def shut_down(self) -> None:
        """Shut the connection down for all threads."""
        with suppress(OSError):  # it may be closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def abort(self) -> None:
        """Close with RST: the other end's next write fails."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._socket.close()


class Connection(Wire):
    """A connection for one request."""

    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(socket.create_connection((HOST, port), DEADLINE))
        self.send(request)

    def response(self) -> Response:
        """Return the whole response, after which the connection closes; or raise a ConnectionError."""
        return parse_response(self.read_all(), whole=True)

    def head(self) -> Response:
        """Return the response as far as its head."""
        return parse_response(self.read_until(b"\r\n\r\n"))


def parse_response(raw: bytes, whole: bool = False) -> Response:
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        raise ConnectionAbortedError(f"an incomplete head: {raw!r}")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        if whole and not body.endswith(b"0\r\n\r\n"):
            raise ConnectionAbortedError(f"incomplete chunks: {raw!r}")
        body = b"".join(chunks(body))
    response = Response(int(line.split()[1]), headers, body)
    if whole and any(len(body) < int(length) for length in response.values("content-length")):
        raise ConnectionAbortedError(f"an incomplete body: {raw!r}")
    return response


def chunks(body: bytes) -> Iterator[bytes]:
    stream = io.BytesIO(body)
    while size := int(stream.readline() or b"0", 16):
        yield stream.read(size)
        stream.readline()


@dataclass
class Client:
    """A minimal browser: a connection for each request, and a jar of cookies by name and path."""

    port: int
    opened: list[Connection]  #: the server process closes them
    jar: dict[tuple[str, str], str] = field(default_factory=dict)

    def open(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Connection:
        """Send a request, and read nothing of the response."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}:{self.port}", "Connection: close"]
        cookies = [f"{name}={value}" for (name, path), value in self.jar.items() if cookie_path_matches(target, path)]
        if cookies:
            lines.append(f"Cookie: {'; '.join(cookies)}")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        connection = Connection(self.port, "\r\n".join((*lines, "", "")).encode("latin-1") + body)
        self.opened.append(connection)
        return connection

    def request(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Response:
        """Send a request, keep the cookies of the response, and return it."""
        with closing(self.open(target, method, headers, body)) as connection:
            response = connection.response()
        for text in response.values("set-cookie"):
            self.keep(text)
        return response

    def keep(self, set_cookie: str) -> None:
        pair, *attributes = (part.strip() for part in set_cookie.split(";"))
        name, _, value = pair.partition("=")
        values = {key.lower(): value for key, _, value in (attribute.partition("=") for attribute in attributes)}
        self.jar[name, values.get("path", "/")] = value


def cookie_path_matches(target: str, path: str) -> bool:
    """Whether a cookie of `path` is sent to `target` (RFC 6265, 5.1.4)."""
    requested = target.partition("?")[0]
    return requested == path or requested.startswith(path if path.endswith("/") else f"{path}/")


@dataclass
class Message:
    """A request or a response, decoded as latin-1; names as they were written."""

    line: str
    fields: Sequence[tuple[str, str]]
    body: bytes = b""

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name]


def read_head(wire: Wire) -> Message:
    """Read the next head."""
    line, *lines = wire.read_until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
    fields = [(name, value.strip(" \t")) for name, _, value in (each.partition(":") for each in lines)]
    return Message(line, fields)


def read_body(wire: Wire, head: Message) -> bytes | None:
    """Read the whole body after `head`; None where the head does not say that there is one, or where it ends."""
    lengths, codings = head.values("content-length"), head.values("transfer-encoding")
    assert len(lengths) + len(codings) <= 1, f"two parsers may differ about where this ends: {head}"
    if lengths:
        return wire.read(int(lengths[0]))
    if not codings:
        return None
    assert codings == ["chunked"]
    body = b""
    try:
        while size := int(wire.read_until(b"\r\n"), 16):
            body += wire.read(size)
            assert wire.read(2) == b"\r\n"
        while wire.read_until(b"\r\n") != b"\r\n":
            pass  # trailers
    except IncompleteRead as error:
        raise IncompleteRead("the last chunk", body + error.partial) from None
    return body


class SiteClient(Wire):
    """A client of a site, with one connection."""

    def __init__(self, port: int, host: str) -> None:
        super().__init__(socket.create_connection((HOST, port), DEADLINE))
        self._host = host
        self._method = ""

    def request(self, line: str, *fields: str, body: bytes = b"") -> None:
        """Send a request. Host and Content-Length are added if `fields` do not have them."""
        names = {text.partition(":")[0].lower() for text in fields}
        if "host" not in names:
            fields = (f"Host: {self._host}", *fields)
        if body and not names & {"content-length", "transfer-encoding"}:
            fields = (*fields, f"Content-Length: {len(body)}")
        if not line.endswith("HTTP/1.0"):
            line = f"{line} HTTP/1.1"
        self._method = line.split(" ")[0]
        self.send("\r\n".join((line, *fields, "", "")).encode("latin-1") + body)

    def head(self) -> Message:
        """Read the head of the final response; interim ones are skipped."""
        while (head := read_head(self)).status < 200:
            pass
        return head

    def body(self, head: Message) -> bytes:
        """Read the whole body after `head`."""
        if self._method == "HEAD" or head.status in (204, 304):
            return b""
        body = read_body(self, head)
        if body is None:
            body = self.read_all()
            if self.was_reset:
                raise IncompleteRead("its end", body)
        return body

    def response(self) -> Message:
        """Read the whole response."""
        head = self.head()
        head.body = self.body(head)
        return head
