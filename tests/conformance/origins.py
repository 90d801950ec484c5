"""Upstreams that a test controls: they accept connections and read heads of requests, and do nothing else."""

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trustme

from tests.conformance.wire import DEADLINE, HOST, Message, Wire, read_body, read_head


class OriginConnection(Wire):
    """A connection at an origin."""

    has_unread_body = False  #: whether its latest request has a body that was not read yet

    @property
    def certificate(self) -> object:
        """The certificate of the client, if it was verified."""
        assert isinstance(self._socket, ssl.SSLSocket)
        return self._socket.getpeercert()


@dataclass
class ReceivedRequest(Message):
    """A request that an origin has received, as far as its head. The test decides how to respond."""

    wire: OriginConnection = field(kw_only=True)

    def read_body(self) -> bytes:
        """Read the whole body."""
        body = read_body(self.wire, self)
        self.wire.has_unread_body = False
        return body or b""

    def head(self, status: str, *fields: str, version: str = "1.1") -> None:
        """Send the head of a response."""
        self.wire.send("\r\n".join((f"HTTP/{version} {status}", *fields, "", "")).encode("latin-1"))

    def send(self, data: bytes) -> None:
        """Send bytes, such as more of a response."""
        self.wire.send(data)

    def chunk(self, data: bytes) -> None:
        """Send one chunk. An empty one is the last."""
        self.wire.send(b"%x\r\n%b\r\n" % (len(data), data))

    def respond(self, status: str = "200 OK", *fields: str, body: bytes = b"") -> None:
        """Send a response, with a Content-Length."""
        lines = (f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", "")
        self.wire.send("\r\n".join(lines).encode("latin-1") + body)

    def close(self) -> None:
        self.wire.close()

    def reset(self) -> None:
        self.wire.abort()

    def wait_closed(self) -> None:
        """Wait until the other end closes the connection, without sending anything before."""
        assert self.wire.receive() == b""


class Origin:
    """An upstream that accepts connections and reads heads of requests; everything else is done by the test."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None = None, listens: bool = True) -> None:
        self._listener = listener
        self._context = context
        self._connections: list[OriginConnection] = []
        self._wakeup, self._wakeup_sender = socket.socketpair()
        self.names: list[str | None] = []  #: the names that clients have sent as SNI
        if context is not None:
            context.sni_callback = lambda _, name, __: self.names.append(name)
        self._listens = False
        if listens:
            self.start_listening()

    def start_listening(self) -> None:
        """Accept connections from now on."""
        self._listener.listen(128)
        self._listens = True

    def refuse_connections(self) -> None:
        """Refuse connections from now on, and keep the address."""
        self.close_connections()
        address = self._listener.getsockname()
        self._listener.close()
        self._listener = bound(self._listener.family, address)
        self._listens = False

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        if self._listener.family == socket.AF_UNIX:
            return f"unix:{self._listener.getsockname()}"
        host, port = self._listener.getsockname()
        return f"http{'s' if self._context else ''}://{host}:{port}"

    def next_request(self) -> ReceivedRequest:
        """Wait for the next request, on any connection."""
        received = self._next()
        assert received is not None, "no request was received"
        return received

    def _next(self) -> ReceivedRequest | None:
        while True:
            self._connections = [connection for connection in self._connections if connection.fileno() >= 0]
            awaited = [connection for connection in self._connections if not connection.has_unread_body]
            for connection in awaited:
                if connection.is_readable():
                    if connection.has_more:
                        return self._read(connection)
                    connection.close()
                    break
            else:
                ends: list[socket.socket | OriginConnection] = [self._listener, self._wakeup, *awaited]
                ready, _, _ = select.select(ends, [], [], DEADLINE)
                if self._listener in ready:
                    self.accept()
                elif not ready or self._wakeup in ready:
                    return None

    def _read(self, connection: OriginConnection) -> ReceivedRequest:
        head = read_head(connection)
        received = ReceivedRequest(head.line, head.fields, wire=connection)
        connection.has_unread_body = bool(received.values("content-length") or received.values("transfer-encoding"))
        return received

    def accept(self) -> None:
        """Take the next connection."""
        end, _ = self._listener.accept()
        end.settimeout(DEADLINE)
        if self._context is not None:
            end = self._context.wrap_socket(end, server_side=True)
        self._connections.append(OriginConnection(end))

    def accept_failing_handshake(self) -> None:
        """Wait for a client that rejects the certificate."""
        try:
            self.accept()
        except (ssl.SSLError, ConnectionError):
            return
        raise AssertionError("the certificate was accepted")

    def has_no_request(self) -> bool:
        """Whether there is no request that was not read."""
        self._update_connections()
        return not any(connection.has_more for connection in self._connections if not connection.has_unread_body)

    def open_connections(self) -> int:
        """Return the number of connections."""
        self._update_connections()
        return len(self._connections)

    def _update_connections(self) -> None:
        while select.select([self._listener], [], [], 0)[0]:
            self.accept()
        self._connections = [connection for connection in self._connections if connection.fileno() >= 0]
        for connection in self._connections:
            if connection.is_readable() and not connection.has_more:
                connection.close()
        self._connections = [connection for connection in self._connections if connection.fileno() >= 0]

    @contextmanager
    def responding(self, reply: Callable[[ReceivedRequest], None]) -> Iterator[None]:
        """Pass each request to `reply` meanwhile, in a thread."""

        def run() -> None:
            while (received := self._next()) is not None:
                reply(received)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        self._wakeup_sender.send(b"!")
        thread.join(DEADLINE)
        assert not thread.is_alive()
        self._wakeup.recv(1)

    def close_connections(self) -> None:
        """Close all connections, including those that were not accepted yet."""
        while self._listens and select.select([self._listener], [], [], 0)[0]:
            self._listener.accept()[0].close()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def close(self) -> None:
        self.close_connections()
        for end in (self._listener, self._wakeup, self._wakeup_sender):
            end.close()


def tls_context(certificate: trustme.LeafCert, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """Return the TLS context of a server; with `clients`, it requires a certificate that they have signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def bound(family: int = socket.AF_INET, address: str | tuple[str, int] = (HOST, 0)) -> socket.socket:
    """Return a socket that has an address, and still refuses connections."""
    listener = socket.socket(family)
    if address != (HOST, 0):  # there were connections at this address before
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener
