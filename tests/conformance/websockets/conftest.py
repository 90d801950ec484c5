"""WebSockets by hand, at both ends: a client and an origin that a test drives byte by byte, a gateway between them.

A test reads as the conversation goes: the client knocks, the origin meets the gateway, says what it wants, and the
client hears of it. Nothing here knows more of the protocol than how a frame is written (RFC 6455, 5.2).
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

#: How long a thing may take that should take an instant. Only what hangs gets there.
DEADLINE = 300.0

#: How long a socket may take no more before we believe that nobody reads. Too short a time could only hide a defect.
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
# raises the signal again when it is through
PEACE = {"uvicorn": -signal.SIGTERM, "hypercorn": 0, "granian": 0}

#: What a server that leaves something behind says when it goes.
LEFT_BEHIND = ("ResourceWarning", "Task was destroyed", "never awaited", "Exception ignored", "Traceback")

#: What granian says to an app that answers a client that has left before the answer; it told the app nothing of it.
FLOW_ERROR = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)+RuntimeError: ASGI flow error.*")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


class Head:
    """The first line and the header fields of a message, as they came."""

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


class Line:
    """One end of a connection: what is told goes out as it is, what is heard is what came."""

    def __init__(self, end: socket.socket, masking: bool) -> None:
        end.settimeout(DEADLINE)
        self.socket = end
        self._masking = masking  #: a client masks its frames, and hears of unmasked ones only
        self._came = b""

    # bytes

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def _more(self, wanted: str) -> None:
        more = self.socket.recv(1 << 18)
        assert more, f"the other end closed before {wanted}: {self._came!r}"
        self._came += more

    def read(self, size: int) -> bytes:
        while len(self._came) < size:
            self._more(f"{size} bytes")
        read, self._came = self._came[:size], self._came[size:]
        return read

    def head(self) -> Head:
        while b"\r\n\r\n" not in self._came:
            self._more("the end of a head")
        at = self._came.index(b"\r\n\r\n") + 4
        return Head(self.read(at))

    def rest(self) -> bytes:
        """Everything until the end."""
        try:
            while more := self.socket.recv(1 << 18):
                self._came += more
        except ConnectionResetError:
            pass
        read, self._came = self._came, b""
        return read

    def line(self) -> bytes:
        while b"\r\n" not in self._came:
            self._more("the end of a line")
        return self.read(self._came.index(b"\r\n") + 2)

    def body(self, head: Head) -> bytes:
        """What follows `head`, as far as it says."""
        if head.values("transfer-encoding"):
            body = b""
            while size := int(self.line(), 16):
                body += self.read(size)
                self.line()
            return body
        length = head.values("content-length")
        return self.read(int(length[0])) if length else self.rest()

    def is_quiet(self) -> bool:
        """Whether not a byte has come, nor an end."""
        return not self._came and not select.select([self.socket], [], [], 0)[0]

    # frames

    def tell(self, kind: str, payload: bytes | str = b"", more: bool = False) -> None:
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
        return begin + MASK + masked(payload, MASK) if self._masking else begin + payload

    def talk(self, kind: str, payload: bytes | str) -> None:
        """Say the same for ever: it ends with the OSError of a connection that is gone."""
        while True:
            self.tell(kind, payload)

    def hear(self) -> tuple[str, bytes]:
        """The next message, put together if it came in pieces: its kind and its payload."""
        kind, payload, fin = self._frame()
        while not fin:
            following, piece, fin = self._frame()
            assert following == "continuation", f"a {following} frame inside a {kind} message"
            payload += piece
        return kind, payload

    def _frame(self) -> tuple[str, bytes, bool]:
        first, second = self.read(2)
        assert first & 0x70 == 0, f"reserved bits that nobody negotiated: {first:08b}"
        assert bool(second & MASKED) is not self._masking, "a client masks its frames, and a server does not"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.read(8))
        mask = self.read(4) if second & MASKED else b""
        payload = self.read(size)
        return KINDS[first & 0x0F], masked(payload, mask) if mask else payload, bool(first & FIN)

    # the end

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Say goodbye as RFC 6455 has it, with a code or without."""
        self.tell("close", b"" if code is None else struct.pack("!H", code) + reason.encode())

    def hear_close(self) -> tuple[int | None, str]:
        """The goodbye of the other end: its code, if it gave one, and its reason."""
        kind, payload = self.hear()
        assert kind == "close", f"a {kind} frame: {payload[:100]!r}"
        return (struct.unpack("!H", payload[:2])[0], payload[2:].decode()) if payload else (None, "")

    def ends(self) -> bool:
        """Wait for the end; True if nothing came before it but the other end's goodbye."""
        rest = self.rest()
        return not rest or rest[0] & 0x0F == OPCODES["close"]

    def leave(self) -> tuple[int | None, str] | None:
        """Wait for the end, and answer a goodbye if one comes before it: what it said."""
        said = None
        try:
            while self._came or (more := self.socket.recv(1 << 18)):
                if not self._came:
                    self._came = more
                said = self.hear_close()
                self.close(said[0])
        except ConnectionResetError:
            pass
        return said

    def press(self, raw: bytes) -> int:
        """Send as much of `raw` as the other end takes without reading: how many bytes it took."""
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

    def hang_up(self) -> None:
        """Close the connection without a word."""
        self.socket.close()

    def vanish(self) -> None:
        """Be gone at once: the other end's next reading finds a connection that was reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def masked(payload: bytes, mask: bytes) -> bytes:
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(len(payload))


class Upstream(Line):
    """A connection that the gateway has made, and the request that it began with."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end, masking=False)
        self.request = self.head()

    def accepting(self, *headers: tuple[str, str]) -> bytes:
        """A 101 that answers the key that came."""
        (key,) = self.request.values("sec-websocket-key")
        return answer("101 Switching Protocols", (*SWITCHING, ("Sec-WebSocket-Accept", accept_of(key)), *headers))

    def accept(self, *headers: tuple[str, str]) -> None:
        self.send(self.accepting(*headers))

    def deny(self, status: str, body: bytes = b"", *headers: tuple[str, str]) -> None:
        self.send(answer(status, (*headers, ("Content-Length", f"{len(body)}"))) + body)


SWITCHING = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


def accept_of(key: str) -> str:
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


def answer(status: str, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


class Origin:
    """A place where the gateway's connections arrive, to be met one by one."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(DEADLINE)
        self._listener = listener
        self._met: list[Upstream] = []

    def meet(self) -> Upstream:
        """Wait for the next connection and its request. What the pool opened and closed again is passed over."""
        upstream = Upstream(self._listener.accept()[0])
        self._met.append(upstream)
        return upstream

    def is_alone(self) -> bool:
        """Whether nobody else has come."""
        return not select.select([self._listener], [], [], 0)[0]

    def forget(self) -> None:
        """Close what is left of a test: nothing of it may reach the next."""
        while not self.is_alone():
            self._listener.accept()[0].close()
        for upstream in self._met:
            upstream.socket.close()
        self._met.clear()


class Origins:
    """Three origins: `first` and `second` at ports, `local` at a path. `nobody` and `nobody_else` refuse."""

    def __init__(self, directory: str) -> None:
        local = socket.socket(socket.AF_UNIX)
        local.bind(f"{directory}/origin.sock")
        local.listen()
        self.listeners = [socket.create_server((HOST, 0)), socket.create_server((HOST, 0)), local]
        self._refusing = [socket.socket(), socket.socket()]
        for refusing in self._refusing:
            refusing.bind((HOST, 0))  # bound, so that nobody else gets the port; not listening
        self.first, self.second, self.local = map(Origin, self.listeners)
        ports = [end.getsockname()[1] for end in (*self.listeners[:2], *self._refusing)]
        first, second, nobody, nobody_else = (f"http://{HOST}:{port}" for port in ports)
        self.routes: Mapping[str, Mapping[str, object]] = {
            "/ws": {"servers": {"s1": first}, "cookie": "SERVERID"},
            "/base": {"servers": {"s1": f"{first}/app"}},
            "/local": {"servers": {"s1": f"unix:{directory}/origin.sock"}},
            "/dead": {"servers": {"s1": nobody, "s2": nobody_else}},
            "/failover": {"servers": {"s1": nobody, "s2": second}, "balance": "first", "cookie": "SERVERID"},
            "/retried": {
                "servers": {"s1": first, "s2": second},
                "balance": "first",
                "cookie": "SERVERID",
                "retry_on": "conn-failure empty-response junk-response 503",
            },
        }
        self.address = first

    def forget(self) -> None:
        for origin in (self.first, self.second, self.local):
            origin.forget()

    def close(self) -> None:
        self.forget()
        for end in (*self.listeners, *self._refusing):
            end.close()


class Gateway:
    """An ASGI server in a process of its own, relaying to the origins."""

    def __init__(self, command: str, routes: Mapping[str, object], output: Path) -> None:
        with socket.create_server((HOST, 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.server = command.partition(" ")[0]
        self.command = [sys.executable, "-m", *command.format(port=self.port).split(), "relay_asgi:app"]
        self._output = output
        self._lines: list[Line] = []
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

    def look(self) -> dict[str, int]:
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE)) as connection:
            connection.request("GET", "/look")
            said: dict[str, int] = json.loads(connection.getresponse().read())
            return said

    def open(self, buffer: int = 0) -> Line:
        """A connection, not yet a word on it; `buffer`: how many bytes the client's kernel holds for it."""
        end = socket.socket()
        if buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        end.settimeout(DEADLINE)
        end.connect((HOST, self.port))
        line = Line(end, masking=True)
        self._lines.append(line)
        return line

    def knock(
        self, target: str = "/ws", *headers: tuple[str, str], connection: str = "Upgrade", buffer: int = 0
    ) -> Line:
        """Ask for a WebSocket, and leave the answer where it is."""
        line = self.open(buffer)
        fields = (
            ("Host", f"{HOST}:{self.port}"),
            ("Upgrade", "websocket"),
            ("Connection", connection),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
            *headers,
        )
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
        line.send("\r\n".join(lines).encode("latin-1"))
        return line

    def forget(self) -> None:
        for line in self._lines:
            line.socket.close()
        self._lines.clear()

    def stop(self) -> None:
        """Ask it to end, and see that it does so in peace and leaves nothing behind."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE)
        said = FLOW_ERROR.sub("", self.output)
        left = [word for word in LEFT_BEHIND if word in said]
        assert (code, left) == (PEACE[self.server], []), f"{' '.join(self.command)} ended badly:\n{self.output}"

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.forget()


def environment(**more: str) -> dict[str, str]:
    here = Path(__file__).parents[1]
    paths = (Path(sys.modules["sticky_core"].__file__ or "").parents[1], here / "apps")
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
    started.forget()
    origins.forget()
    until(lambda: started.look()["in_flight"] == 0, "a gateway with nothing in flight")


@pytest.fixture
def origin(origins) -> Origin:
    """The origin that `/ws` leads to."""
    first: Origin = origins.first
    return first


@pytest.fixture
def connected(gateway, origin) -> Callable[..., tuple[Line, Upstream]]:
    """Opens a WebSocket: the client's end and the origin's."""

    def connect(target: str = "/ws", buffer: int = 0) -> tuple[Line, Upstream]:
        client = gateway.knock(target, buffer=buffer)
        upstream = origin.meet()
        upstream.accept()
        assert client.head().status == 101
        return client, upstream

    return connect


class Call:
    """One call of an ASGI app, without a server: a test tells it messages and hears what it sends."""

    def __init__(self, app: Dispatcher, scope: Message) -> None:
        self._app, self._scope = app, scope
        self._sent: queue.Queue[Message] = queue.Queue()
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._begun.wait(DEADLINE)

    async def _run(self) -> None:
        async def send(message: Message) -> None:
            self._sent.put(message)

        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._app(self._scope, self._told.get, send))  # type: ignore[arg-type]
        self._begun.set()
        try:
            await self._task
        except (Exception, asyncio.CancelledError) as error:
            self._failure = error

    def tell(self, **message: object) -> None:
        self._loop.call_soon_threadsafe(self._told.put_nowait, message)

    def hear(self) -> Message:
        return self._sent.get(timeout=DEADLINE)

    def ends(self) -> list[Message]:
        """Wait until the app has returned: what it sent that was not heard."""
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
def call(origins) -> Iterator[Callable[..., Call]]:
    """Calls an app that relays to the first origin, as a server would, with what this server says of itself."""
    calls: list[Call] = []

    def called(backend: Backend, **scope: object) -> Call:
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
        one = Call(Dispatcher(backend), whole)
        calls.append(one)
        return one

    yield called
    for each in calls:
        each.close()
    origins.forget()
