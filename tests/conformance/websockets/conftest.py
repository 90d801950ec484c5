"""Fixtures of the WebSocket tests: a client and an origin that a test controls byte by byte, a gateway between them.

The only part of the protocol in these classes is the format of a frame (RFC 6455, 5.2); the test does the rest.
"""

import asyncio
import base64
import hashlib
import http.client
import json
import os
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sticky_asgi import Backend, Dispatcher

Headers = Sequence[tuple[str, str]]
Message = dict[str, object]

HOST = "127.0.0.1"

#: Seconds after which a step that takes an instant is taken to hang.
DEADLINE = 300.0

#: Seconds without progress after which a socket is taken to be blocked. Too short a time can only hide a defect.
PATIENCE = 0.5

OPCODES = {"continuation": 0, "text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
KINDS = {opcode: kind for kind, opcode in OPCODES.items()}
FIN, MASKED = 0x80, 0x80
MASK = b"mask"

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the one of RFC 6455, 1.3

UVICORN = "uvicorn --no-access-log --no-proxy-headers --port {port}"
SERVERS = {
    "uvicorn, websockets": f"{UVICORN} --loop asyncio --ws websockets-sansio",
    "uvicorn, wsproto": f"{UVICORN} --loop uvloop --ws wsproto",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi --port {port}",
}
# uvicorn raises the signal again at its end
EXIT_CODES = {"uvicorn": -signal.SIGTERM, "hypercorn": 0, "granian": 0}

#: What a server prints at its end that has left something open.
LEAK_MESSAGES = ("ResourceWarning", "Task was destroyed", "never awaited", "Exception ignored", "Traceback")

#: The error of granian where an app responds to a client that has disconnected: granian sends the app no message.
FLOW_ERROR = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)+RuntimeError: ASGI flow error.*")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


class Head:
    """The first line and the header fields of a message, as received."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
        self.line = first.decode("latin-1")
        self.fields: list[tuple[str, str]] = []
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            self.fields.append((name, value.strip(" \t")))

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name]


class FrameConnection:
    """One end of a connection, which sends and receives bytes and frames unchanged."""

    def __init__(self, end: socket.socket, masking: bool) -> None:
        end.settimeout(DEADLINE)
        self.socket = end
        self._masking = masking  #: a client masks its frames, and receives unmasked ones only
        self._buffer = b""

    # bytes

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def _more(self, wanted: str) -> None:
        more = self.socket.recv(1 << 18)
        assert more, f"the other end closed before {wanted}: {self._buffer!r}"
        self._buffer += more

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more(f"{size} bytes")
        read, self._buffer = self._buffer[:size], self._buffer[size:]
        return read

    def head(self) -> Head:
        while b"\r\n\r\n" not in self._buffer:
            self._more("the end of a head")
        at = self._buffer.index(b"\r\n\r\n") + 4
        return Head(self.read(at))

    def rest(self) -> bytes:
        """Return everything until the connection ends."""
        try:
            while more := self.socket.recv(1 << 18):
                self._buffer += more
        except ConnectionResetError:
            pass
        read, self._buffer = self._buffer, b""
        return read

    def line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more("the end of a line")
        return self.read(self._buffer.index(b"\r\n") + 2)

    def body(self, head: Head) -> bytes:
        """Return the body after `head`."""
        if head.values("transfer-encoding"):
            body = b""
            while size := int(self.line(), 16):
                body += self.read(size)
                self.line()
            return body
        length = head.values("content-length")
        return self.read(int(length[0])) if length else self.rest()

    def is_quiet(self) -> bool:
        """Whether neither a byte nor the end was received."""
        return not self._buffer and not select.select([self.socket], [], [], 0)[0]

    # frames

    def send_frame(self, kind: str, payload: bytes | str = b"", more: bool = False) -> None:
        """Send one frame; `more`: it is not the last of its message."""
        self.send(self.frame(kind, payload, more))

    def frame(self, kind: str, payload: bytes | str = b"", more: bool = False) -> bytes:
        payload = payload.encode() if isinstance(payload, str) else payload
        mask = MASKED if self._masking else 0
        size = len(payload)
        if size < 126:
            begin = struct.pack("!BB", OPCODES[kind] | (0 if more else FIN), mask | size)
        elif size < 1 << 16:
            begin = struct.pack("!BBH", OPCODES[kind] | (0 if more else FIN), mask | 126, size)
        else:
            begin = struct.pack("!BBQ", OPCODES[kind] | (0 if more else FIN), mask | 127, size)
        return begin + MASK + xor_mask(payload, MASK) if self._masking else begin + payload

    def send_frames_for_ever(self, kind: str, payload: bytes | str) -> None:
        """Send the same frame for ever, until the OSError of a closed connection."""
        while True:
            self.send_frame(kind, payload)

    def read_message(self) -> tuple[str, bytes]:
        """Return kind and payload of the next message, joined if it is in fragments."""
        kind, payload, fin = self._frame()
        while not fin:
            following, piece, fin = self._frame()
            assert following == "continuation", f"a {following} frame inside a {kind} message"
            payload += piece
        return kind, payload

    def _frame(self) -> tuple[str, bytes, bool]:
        first, second = self.read(2)
        assert first & 0x70 == 0, f"reserved bits that were not negotiated: {first:08b}"
        assert bool(second & MASKED) is not self._masking, "a client masks its frames, and a server does not"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.read(8))
        mask = self.read(4) if second & MASKED else b""
        payload = self.read(size)
        return KINDS[first & 0x0F], xor_mask(payload, mask) if mask else payload, bool(first & FIN)

    # the end

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Send a close frame (RFC 6455), with a code or without."""
        self.send_frame("close", b"" if code is None else struct.pack("!H", code) + reason.encode())

    def read_close(self) -> tuple[int | None, str]:
        """Read a close frame and return its code, if it has one, and its reason."""
        kind, payload = self.read_message()
        assert kind == "close", f"a {kind} frame: {payload[:100]!r}"
        return (struct.unpack("!H", payload[:2])[0], payload[2:].decode()) if payload else (None, "")

    def has_ended(self) -> bool:
        """Wait for the end; return True if nothing but a close frame was received before it."""
        rest = self.rest()
        return not rest or rest[0] & 0x0F == OPCODES["close"]

    def complete_close(self) -> tuple[int | None, str] | None:
        """Read until the end, and send a close frame back if one is received. Return its code and reason."""
        close = None
        try:
            while self._buffer or (more := self.socket.recv(1 << 18)):
                if not self._buffer:
                    self._buffer = more
                close = self.read_close()
                self.close(close[0])
        except ConnectionResetError:
            pass
        return close

    def send_until_blocked(self, raw: bytes) -> int:
        """Send as much of `raw` as is accepted while the other end does not read. Return the number of bytes."""
        view = memoryview(raw)
        sent = 0
        self.socket.setblocking(False)
        while sent < len(raw) and select.select([], [self.socket], [], PATIENCE)[1]:
            try:
                sent += self.socket.send(view[sent:])
            except BlockingIOError:
                pass
        self.socket.settimeout(DEADLINE)
        return sent

    def close_socket(self) -> None:
        """Close the connection without a close frame."""
        self.socket.close()

    def reset_socket(self) -> None:
        """Reset the connection: the other end's next read fails."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def xor_mask(payload: bytes, mask: bytes) -> bytes:
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(len(payload))


class Upstream(FrameConnection):
    """A connection of the gateway to an origin, and the request on it."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end, masking=False)
        self.request = self.head()

    def accepting(self, *headers: tuple[str, str]) -> bytes:
        """Return a 101 for the key of the request."""
        (key,) = self.request.values("sec-websocket-key")
        return response_head(
            "101 Switching Protocols", (*SWITCHING, ("Sec-WebSocket-Accept", accept_key(key)), *headers)
        )

    def accept(self, *headers: tuple[str, str]) -> None:
        self.send(self.accepting(*headers))

    def deny(self, status: str, body: bytes = b"", *headers: tuple[str, str]) -> None:
        self.send(response_head(status, (*headers, ("Content-Length", f"{len(body)}"))) + body)


SWITCHING = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


def accept_key(key: str) -> str:
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


def response_head(status: str, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


class Origin:
    """A listening socket that accepts the gateway's connections one by one."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(DEADLINE)
        self._listener = listener
        self._connections: list[Upstream] = []

    def next_connection(self) -> Upstream:
        """Wait for the next connection and its request."""
        upstream = Upstream(self._listener.accept()[0])
        self._connections.append(upstream)
        return upstream

    def has_no_connection(self) -> bool:
        """Whether there is no other connection."""
        return not select.select([self._listener], [], [], 0)[0]

    def close_connections(self) -> None:
        """Close the connections of a test, so that none of them is left for the next."""
        while not self.has_no_connection():
            self._listener.accept()[0].close()
        for upstream in self._connections:
            upstream.socket.close()
        self._connections.clear()


class Origins:
    """Three origins: `first` and `second` at ports, `local` at a path; and two ports that refuse connections."""

    def __init__(self, directory: str) -> None:
        local = socket.socket(socket.AF_UNIX)
        local.bind(f"{directory}/origin.sock")
        local.listen()
        self.listeners = [socket.create_server((HOST, 0)), socket.create_server((HOST, 0)), local]
        self._refusing = [socket.socket(), socket.socket()]
        for refusing in self._refusing:
            refusing.bind((HOST, 0))  # bound, so that no other process gets the port; not listening
        self.first, self.second, self.local = map(Origin, self.listeners)
        ports = [end.getsockname()[1] for end in (*self.listeners[:2], *self._refusing)]
        first, second, refusing_port, other_refusing_port = (f"http://{HOST}:{port}" for port in ports)
        self.routes: Mapping[str, Mapping[str, object]] = {
            "/ws": {"servers": {"s1": first}, "cookie": "SERVERID"},
            "/quiet": {"servers": {"s1": first}, "timeouts": {"tunnel": 0.3}},
            "/base": {"servers": {"s1": f"{first}/app"}},
            "/local": {"servers": {"s1": f"unix:{directory}/origin.sock"}},
            "/dead": {"servers": {"s1": refusing_port, "s2": other_refusing_port}},
            "/failover": {"servers": {"s1": refusing_port, "s2": second}, "balance": "first", "cookie": "SERVERID"},
            "/retried": {
                "servers": {"s1": first, "s2": second},
                "balance": "first",
                "cookie": "SERVERID",
                "retry_on": "conn-failure empty-response junk-response 503",
            },
        }
        self.address = first

    def close_connections(self) -> None:
        for origin in (self.first, self.second, self.local):
            origin.close_connections()

    def close(self) -> None:
        self.close_connections()
        for end in (*self.listeners, *self._refusing):
            end.close()


class Gateway:
    """An ASGI server in a process of its own that forwards to the origins."""

    def __init__(self, command: str, routes: Mapping[str, object], output: Path) -> None:
        with socket.create_server((HOST, 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.server = command.partition(" ")[0]
        self.command = [sys.executable, "-m", *command.format(port=self.port).split(), "relay_asgi:app"]
        self._output = output
        self._connections: list[FrameConnection] = []
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                self.command,
                env=environment(RELAY=json.dumps(routes)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def comes_up(self) -> None:
        def listens() -> bool:
            assert self.process.poll() is None, f"{' '.join(self.command)} did not start:\n{self.output}"
            with socket.socket() as end:
                return end.connect_ex((HOST, self.port)) == 0

        until(listens, "a gateway that accepts connections")

    def counts(self) -> dict[str, int]:
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE)) as connection:
            connection.request("GET", "/look")
            counts: dict[str, int] = json.loads(connection.getresponse().read())
            return counts

    def ended(self) -> list[list[object]]:
        """Wait until a WebSocket has ended. Return which side has ended each since the last call, and the code."""
        found: list[list[object]] = []

        def has_some() -> bool:
            found.extend(self.forget_ended())
            return found != []

        until(has_some, "a WebSocket that ends")
        return found

    def forget_ended(self) -> list[list[object]]:
        """Return what there is for `ended`."""
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE)) as connection:
            connection.request("GET", "/ended")
            ended: list[list[object]] = json.loads(connection.getresponse().read())
            return ended

    def drain(self, path: str, do: str = "drain") -> list[str]:
        """Drain the servers behind a path at once, or make them `ready`, and return those that have drained."""
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE)) as connection:
            connection.request("GET", f"/drain?path={path}&do={do}")
            drained: list[str] = json.loads(connection.getresponse().read())
            return drained

    def open(self, buffer: int = 0) -> FrameConnection:
        """Open a connection without a request. `buffer`: how many bytes the client's kernel buffers for it."""
        end = socket.socket()
        if buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        end.settimeout(DEADLINE)
        end.connect((HOST, self.port))
        connection = FrameConnection(end, masking=True)
        self._connections.append(connection)
        return connection

    def request_websocket(
        self, target: str = "/ws", *headers: tuple[str, str], connection: str = "Upgrade", buffer: int = 0
    ) -> FrameConnection:
        """Send a request for a WebSocket, and read nothing of the response."""
        client = self.open(buffer)
        fields = (
            ("Host", f"{HOST}:{self.port}"),
            ("Upgrade", "websocket"),
            ("Connection", connection),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
            *headers,
        )
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
        client.send("\r\n".join(lines).encode("latin-1"))
        return client

    def close_connections(self) -> None:
        for client in self._connections:
            client.socket.close()
        self._connections.clear()

    def stop(self) -> None:
        """Stop it, and require that it ends without an error and leaves nothing open."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE)
        output = FLOW_ERROR.sub("", self.output)
        leaks = [word for word in LEAK_MESSAGES if word in output]
        assert (code, leaks) == (EXIT_CODES[self.server], []), (
            f"{' '.join(self.command)} ended with an error:\n{self.output}"
        )

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.close_connections()


def environment(**more: str) -> dict[str, str]:
    folder = Path(__file__).parents[1]
    paths = (Path(sys.modules["sticky_core"].__file__ or "").parents[1], folder / "apps")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "always::ResourceWarning",
        "STICKY_SECRET": "a-secret-of-the-conformance-tests",
        **more,
    }


@pytest.fixture(scope="module")
def origins() -> Iterator[Origins]:
    with tempfile.TemporaryDirectory(prefix="sticky") as directory:  # a UNIX socket's path is 107 bytes at most
        origins = Origins(directory)
        yield origins
        origins.close()


@pytest.fixture(scope="module", params=list(SERVERS.values()), ids=list(SERVERS))
def started(request, origins, tmp_path_factory) -> Iterator[Gateway]:
    gateway = Gateway(request.param, origins.routes, tmp_path_factory.mktemp("gateway") / "output.log")
    try:
        gateway.comes_up()
        yield gateway
        gateway.stop()
    finally:
        gateway.kill()


@pytest.fixture
def gateway(request, started, origins) -> Iterator[Gateway]:
    """The gateway, with nothing in flight before and after."""
    yield started
    request.node.add_report_section("teardown", " ".join(started.command), started.output)
    started.close_connections()
    origins.close_connections()
    until(lambda: started.counts()["in_flight"] == 0, "a gateway with nothing in flight")


@pytest.fixture
def origin(origins) -> Origin:
    """The origin of `/ws`."""
    first: Origin = origins.first
    return first


@pytest.fixture
def connected(gateway, origin) -> Callable[..., tuple[FrameConnection, Upstream]]:
    """Return a function that opens a WebSocket: it returns the client's end and the origin's."""

    def connect(target: str = "/ws", buffer: int = 0) -> tuple[FrameConnection, Upstream]:
        client = gateway.request_websocket(target, buffer=buffer)
        upstream = origin.next_connection()
        upstream.accept()
        assert client.head().status == 101
        return client, upstream

    return connect


class AppCall:
    """One call of an ASGI app, without a server: a test sends it messages and reads those that it sends."""

    def __init__(self, app: Dispatcher, scope: Message) -> None:
        self._app, self._scope = app, scope
        self._sent: queue.Queue[Message] = queue.Queue()
        self._has_started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._has_started.wait(DEADLINE)

    async def _run(self) -> None:
        async def send(message: Message) -> None:
            self._sent.put(message)

        self._loop = asyncio.get_running_loop()
        self._to_receive: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._app(self._scope, self._to_receive.get, send))  # type: ignore[arg-type]
        self._has_started.set()
        try:
            await self._task
        except (Exception, asyncio.CancelledError) as error:
            self._failure = error

    def send_frame(self, **message: object) -> None:
        self._loop.call_soon_threadsafe(self._to_receive.put_nowait, message)

    def read_message(self) -> Message:
        return self._sent.get(timeout=DEADLINE)

    def has_ended(self) -> list[Message]:
        """Wait until the app has returned. Return the messages that were not read."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the app does not return"
        if self._failure is not None:
            raise self._failure
        return list(self._sent.queue)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(DEADLINE)


@pytest.fixture
def call(origins) -> Iterator[Callable[..., AppCall]]:
    """Return a function that calls an app as a server would, with the scope of that server."""
    calls: list[AppCall] = []

    def called(backend: Backend, **scope: object) -> AppCall:
        whole = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"testserver")],
            "client": ("192.0.2.1", 4711),
            "server": (HOST, 80),
            "subprotocols": [],
            "extensions": {},
            **scope,
        }
        one = AppCall(Dispatcher(backend), whole)
        calls.append(one)
        return one

    yield called
    for each in calls:
        each.close()
    origins.close_connections()
