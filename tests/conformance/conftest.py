"""Real servers as real processes, a client that hides nothing, and an upstream that does only what a test says: by
these the conformance tests are run.
"""

import io
import json
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trustme

import sticky_core

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples"
HOST = "127.0.0.1"

#: How long a thing may take that should take an instant. Only what hangs gets there.
DEADLINE = 300.0

SECRET = "a-secret-of-the-conformance-tests"
ADMIN_TOKEN = "let-the-tests-in"


@dataclass(frozen=True)
class Kind:
    """How a server is told its port, how it is asked to end, and how it says that it did so in peace."""

    module: str
    bind: Callable[[int], Sequence[str]]
    stop: signal.Signals = signal.SIGTERM
    peace: int = 0
    habits: Sequence[str] = ()  #: what of LEFT_BEHIND it says with any app


KINDS = {
    # raises the signal again when it is through
    "uvicorn": Kind("uvicorn", lambda port: ("--port", f"{port}"), peace=-signal.SIGTERM),
    "sticky": Kind("sticky_asgi.cli", lambda port: ("--port", f"{port}")),
    "hypercorn": Kind("hypercorn", lambda port: ("--bind", f"{HOST}:{port}")),
    "granian": Kind("granian", lambda port: ("--interface", "asgi", "--port", f"{port}")),
    "granian-wsgi": Kind("granian", lambda port: ("--interface", "wsgi", "--port", f"{port}")),
    "gunicorn": Kind("gunicorn", lambda port: ("--no-control-socket", "--bind", f"{HOST}:{port}")),
    # knows Ctrl-C only, and never closes the socket it listens at
    "waitress-serve": Kind(
        "waitress",
        lambda port: ("--host", HOST, "--port", f"{port}"),
        stop=signal.SIGINT,
        habits=("ResourceWarning",),
    ),
}

#: What a server that leaves something behind says when it goes.
LEFT_BEHIND = ("ResourceWarning", "Task was destroyed", "never awaited", "Exception ignored", "Traceback")


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], object], str], None]:
    """Waits for a condition that another process brings about."""
    return until


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` if it never does."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


@pytest.fixture(name="still")
def _still() -> Callable[[Callable[[], int]], int]:
    """Waits until a number that another thread counts grows no more."""
    return still


def still(count: Callable[[], int]) -> int:
    """Wait until `count` has not changed for a while: the number it has come to.

    On a machine that is busy enough it may be told too early, and a test that asks for no more than so much passes.
    """
    seen, since = count(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.01)
        if count() != seen:
            seen, since = count(), time.monotonic()
    return seen


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class CutShort(AssertionError):
    """A connection ended before what should have come on it. `came`: what did."""

    def __init__(self, what: str, came: bytes) -> None:
        super().__init__(f"the connection ended before {what}: {came!r}")
        self.came = came


class Wire:
    """One end of a connection: every byte as it comes, and none that nobody asked for."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._came = b""
        self.over = False  #: whether the other end has closed
        self.reset = False  #: whether it did so in anger

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """What comes next; nothing if the other end has closed, in peace or not."""
        read, self._came = self._came, b""
        return read or self._receive()

    def _receive(self) -> bytes:
        came = b""
        if not self.over:
            try:
                came = self._socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                self.reset = True
            self.over = not came
        return came

    def _more(self, what: str) -> None:
        more = self._receive()
        if not more:
            raise CutShort(what, self._came)
        self._came += more

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to `mark` and with it; what follows stays for the next reading."""
        self.wait_for(mark)
        read, found, self._came = self._came.partition(mark)
        return read + found

    def wait_for(self, mark: bytes) -> None:
        """Wait until `mark` has come; everything stays for the next reading."""
        while mark not in self._came:
            self._more(f"{mark!r}")

    def read(self, size: int) -> bytes:
        """So many bytes."""
        parts, length = [self._came], len(self._came)
        while length < size:
            parts.append(self._receive())
            length += len(parts[-1])
            if not parts[-1]:
                raise CutShort(f"{size} bytes", b"".join(parts))
        came = b"".join(parts)
        self._came = came[size:]
        return came[:size]

    def read_all(self) -> bytes:
        """Everything until the other end closes."""
        parts = []
        while more := self.receive():
            parts.append(more)
        return b"".join(parts)

    def look(self) -> bool:
        """Whether there is anything to read, the end included."""
        if not self._came and not self.over and select.select([self], [], [], 0)[0]:
            self._came = self._receive()
        return self.has_more or self.over

    @property
    def has_more(self) -> bool:
        """Whether there is something that has come and was not read."""
        return bool(self._came)

    def narrow(self) -> None:
        """Let the system keep little of what is sent and not yet read."""
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 65536)

    def finish(self) -> None:
        """Say that nothing more will be sent, and stay to listen."""
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Neither send nor listen any more, and let no other thread."""
        with suppress(OSError):  # it may be over already
            self._socket.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Be gone at once: the other end's next write finds a connection that was reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._socket.close()


class Connection(Wire):
    """One request and the connection it has for itself."""

    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(socket.create_connection((HOST, port), DEADLINE))
        self.send(request)

    def answer(self) -> Answer:
        """The answer of a connection that closes after it: whole, or a ConnectionError."""
        return parsed(self.read_all(), whole=True)

    def head(self) -> Answer:
        """The answer as far as its head."""
        return parsed(self.read_until(b"\r\n\r\n"))


def parsed(raw: bytes, whole: bool = False) -> Answer:
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        raise ConnectionAbortedError(f"a head that was cut short: {raw!r}")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        if whole and not body.endswith(b"0\r\n\r\n"):
            raise ConnectionAbortedError(f"chunks that were cut short: {raw!r}")
        body = b"".join(chunks(body))
    answer = Answer(int(line.split()[1]), headers, body)
    if whole and any(len(body) < int(length) for length in answer.values("content-length")):
        raise ConnectionAbortedError(f"a body that was cut short: {raw!r}")
    return answer


def chunks(body: bytes) -> Iterator[bytes]:
    stream = io.BytesIO(body)
    while size := int(stream.readline() or b"0", 16):
        yield stream.read(size)
        stream.readline()


@dataclass
class Client:
    """A browser as small as can be: a connection for each request, and a jar of cookies by name and path."""

    port: int
    opened: list[Connection]  #: whoever started the server closes them
    jar: dict[tuple[str, str], str] = field(default_factory=dict)

    def open(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Connection:
        """Send a request, and leave the answer where it is."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}:{self.port}", "Connection: close"]
        cookies = [f"{name}={value}" for (name, path), value in self.jar.items() if within(target, path)]
        if cookies:
            lines.append(f"Cookie: {'; '.join(cookies)}")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        connection = Connection(self.port, "\r\n".join((*lines, "", "")).encode("latin-1") + body)
        self.opened.append(connection)
        return connection

    def ask(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send a request, and keep the cookies of the answer."""
        with closing(self.open(target, method, headers, body)) as connection:
            answer = connection.answer()
        for text in answer.values("set-cookie"):
            self.keep(text)
        return answer

    def keep(self, set_cookie: str) -> None:
        pair, *attributes = (part.strip() for part in set_cookie.split(";"))
        name, _, value = pair.partition("=")
        said = {key.lower(): value for key, _, value in (attribute.partition("=") for attribute in attributes)}
        self.jar[name, said.get("path", "/")] = value


def within(target: str, path: str) -> bool:
    """RFC 6265, 5.1.4."""
    asked = target.partition("?")[0]
    return asked == path or asked.startswith(path if path.endswith("/") else f"{path}/")


class Served:
    """A server in a process of its own."""

    def __init__(
        self,
        kind: Kind,
        command: Sequence[str],
        port: int,
        cwd: Path,
        output: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.command = command
        self.port = port
        self.admin_token = ADMIN_TOKEN
        self._opened: list[Connection] = []
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**environment(), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def client(self) -> Client:
        """A client with an empty jar."""
        return Client(self.port, self._opened)

    def listens(self) -> bool:
        """Whether it accepts connections; False as well once it is over."""
        try:
            socket.create_connection((HOST, self.port), DEADLINE).close()
        except ConnectionError:
            return False
        return self.process.poll() is None

    def comes_up(self) -> bool:
        """Wait until it accepts connections, or has ended without."""
        until(lambda: self.listens() or self.process.poll() is not None, "a server that accepts connections")
        return self.process.poll() is None

    def ends(self) -> int:
        """Wait for the end of the process: its exit code."""
        return self.process.wait(DEADLINE)

    def stop(self) -> None:
        """Ask it to end, and see that it does so in peace and leaves nothing behind."""
        self.process.send_signal(self.kind.stop)
        code = self.ends()
        left = [word for word in LEFT_BEHIND if word in self.output and word not in self.kind.habits]
        assert (code, left) == (self.kind.peace, []), f"{' '.join(self.command)} ended badly"

    def kill(self) -> None:
        """End it and whatever it has started, if anything is left of it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for connection in self._opened:
            connection.close()


def environment() -> dict[str, str]:
    here = Path(sticky_core.__file__).parents[1]  # checkout or wheel: the one that the tests import
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (here, EXAMPLES, HERE / "apps"))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "always::ResourceWarning",
        "STICKY_SECRET": SECRET,
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }


@pytest.fixture(scope="session", autouse=True)
def _ears() -> Iterator[None]:
    """Shells start background jobs deaf to Ctrl-C, and what those start is deaf as well: waitress would not end."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def command_of(kind: Kind, port: int, arguments: Sequence[str]) -> list[str]:
    """`arguments`: options, and last the app."""
    *options, app = arguments
    return [sys.executable, "-m", kind.module, *options, *kind.bind(port), app]


@pytest.fixture
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts a server that may not come up. After the test it is gone; its output is shown if that failed."""
    started: list[Served] = []

    def launched(kind: str, *arguments: str, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> Served:
        port = free_port()
        command = command_of(KINDS[kind], port, arguments)
        served = Served(KINDS[kind], command, port, cwd, tmp_path / f"{kind}-{len(started)}.log", variables)
        started.append(served)
        return served

    yield launched
    for served in started:
        served.kill()
        request.node.add_report_section("teardown", " ".join(served.command), served.output)


@pytest.fixture
def serve(launch: Callable[..., Served]) -> Iterator[Callable[..., Served]]:
    """Starts a server and waits until it accepts. After the test it is asked to end, and does so in peace."""
    serving: list[Served] = []

    def started(kind: str, *arguments: str, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> Served:
        served = up(lambda: launch(kind, *arguments, cwd=cwd, variables=variables))
        serving.append(served)
        return served

    yield started
    for served in serving:
        served.stop()


def up(launch: Callable[[], Served]) -> Served:
    """A server that has come up."""
    for _ in range(3):
        served = launch()
        if served.comes_up():
            return served
        if "in use" not in served.output:  # another process may have taken the port meanwhile
            break
    raise AssertionError(f"{' '.join(served.command)} did not start:\n{served.output}")


# -- forwarding: the sites of apps/sites.py, the servers in front of them, and the origins behind


@dataclass
class Message:
    """A request or an answer, its bytes as latin-1 reads them; names as they were written."""

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


def head_on(wire: Wire) -> Message:
    """The next head that comes."""
    line, *lines = wire.read_until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
    fields = [(name, value.strip(" \t")) for name, _, value in (each.partition(":") for each in lines)]
    return Message(line, fields)


def body_on(wire: Wire, head: Message) -> bytes | None:
    """The body behind `head`, whole; None where the head does not say that there is one, or where it ends."""
    lengths, codings = head.values("content-length"), head.values("transfer-encoding")
    assert len(lengths) + len(codings) <= 1, f"two readers may differ about where this ends: {head}"
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
    except CutShort as cut:
        raise CutShort("the last chunk", body + cut.came) from None
    return body


class Caller(Wire):
    """A client of a site, and its connection."""

    def __init__(self, port: int, host: str) -> None:
        super().__init__(socket.create_connection((HOST, port), DEADLINE))
        self._host = host
        self._method = ""

    def ask(self, line: str, *fields: str, body: bytes = b"") -> None:
        """Send a request. What `fields` do not say of Host and Content-Length is added."""
        said = {text.partition(":")[0].lower() for text in fields}
        if "host" not in said:
            fields = (f"Host: {self._host}", *fields)
        if body and not said & {"content-length", "transfer-encoding"}:
            fields = (*fields, f"Content-Length: {len(body)}")
        if not line.endswith("HTTP/1.0"):
            line = f"{line} HTTP/1.1"
        self._method = line.split(" ")[0]
        self.send("\r\n".join((line, *fields, "", "")).encode("latin-1") + body)

    def head(self) -> Message:
        """The head of the answer; those that only lead up to it are passed by."""
        while (head := head_on(self)).status < 200:
            pass
        return head

    def body(self, head: Message) -> bytes:
        """The body behind `head`, whole."""
        if self._method == "HEAD" or head.status in (204, 304):
            return b""
        body = body_on(self, head)
        if body is None:
            body = self.read_all()
            if self.reset:
                raise CutShort("its end", body)
        return body

    def answer(self) -> Message:
        """The answer, whole."""
        head = self.head()
        head.body = self.body(head)
        return head


class Line(Wire):
    """A connection at an origin."""

    reading = False  #: whether a request on it has a body that was not read yet

    @property
    def certificate(self) -> object:
        """The certificate that the client has shown, if it was verified."""
        assert isinstance(self._socket, ssl.SSLSocket)
        return self._socket.getpeercert()


@dataclass
class Asked(Message):
    """A request that has come to an origin, as far as its head. What becomes of it is the test's to say."""

    wire: Line = field(kw_only=True)

    def read_body(self) -> bytes:
        """The body, whole."""
        body = body_on(self.wire, self)
        self.wire.reading = False
        return body or b""

    def head(self, status: str, *fields: str, version: str = "1.1") -> None:
        """Send the head of an answer."""
        self.wire.send("\r\n".join((f"HTTP/{version} {status}", *fields, "", "")).encode("latin-1"))

    def send(self, data: bytes) -> None:
        """Send these bytes, which may be more of an answer."""
        self.wire.send(data)

    def chunk(self, data: bytes) -> None:
        """Send one chunk. An empty one is the last."""
        self.wire.send(b"%x\r\n%b\r\n" % (len(data), data))

    def answer(self, status: str = "200 OK", *fields: str, body: bytes = b"") -> None:
        """Send an answer, its body by Content-Length."""
        lines = (f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", "")
        self.wire.send("\r\n".join(lines).encode("latin-1") + body)

    def close(self) -> None:
        self.wire.close()

    def reset(self) -> None:
        self.wire.leave()

    def gone(self) -> None:
        """Wait until whoever has asked closes the connection; they have nothing more to say before."""
        assert self.wire.receive() == b""


class Origin:
    """An upstream that accepts connections and reads requests, and does nothing else unless a test says so."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None = None, awake: bool = True) -> None:
        self._listener = listener
        self._context = context
        self._lines: list[Line] = []
        self._bell, self._rope = socket.socketpair()
        self.names: list[str | None] = []  #: what clients have asked for by SNI
        if context is not None:
            context.sni_callback = lambda _, name, __: self.names.append(name)
        self._awake = False
        if awake:
            self.wake()

    def wake(self) -> None:
        """Accept connections from now on."""
        self._listener.listen(128)
        self._awake = True

    def sleep(self) -> None:
        """Refuse connections from now on; the address stays ours."""
        self.forget()
        address = self._listener.getsockname()
        self._listener.close()
        self._listener = bound(self._listener.family, address)
        self._awake = False

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

    def asked(self) -> Asked:
        """Wait for the next request, on whichever connection it comes."""
        asked = self._next()
        assert asked is not None, "no request has come"
        return asked

    def _next(self) -> Asked | None:
        while True:
            self._lines = [line for line in self._lines if line.fileno() >= 0]
            awaited = [line for line in self._lines if not line.reading]
            for line in awaited:
                if line.look():
                    if line.has_more:
                        return self._read(line)
                    line.close()
                    break
            else:
                ends: list[socket.socket | Line] = [self._listener, self._bell, *awaited]
                ready, _, _ = select.select(ends, [], [], DEADLINE)
                if self._listener in ready:
                    self.accept()
                elif not ready or self._bell in ready:
                    return None

    def _read(self, line: Line) -> Asked:
        head = head_on(line)
        asked = Asked(head.line, head.fields, wire=line)
        line.reading = bool(asked.values("content-length") or asked.values("transfer-encoding"))
        return asked

    def accept(self) -> None:
        """Take the next connection."""
        end, _ = self._listener.accept()
        end.settimeout(DEADLINE)
        if self._context is not None:
            end = self._context.wrap_socket(end, server_side=True)
        self._lines.append(Line(end))

    def refuse(self) -> None:
        """Wait for a client that refuses our certificate."""
        try:
            self.accept()
        except (ssl.SSLError, ConnectionError):
            return
        raise AssertionError("our certificate was good enough")

    def untouched(self) -> bool:
        """Whether no request has come that was not asked for."""
        self._take_in()
        return not any(line.has_more for line in self._lines if not line.reading)

    def open(self) -> int:
        """How many connections there are."""
        self._take_in()
        return len(self._lines)

    def _take_in(self) -> None:
        while select.select([self._listener], [], [], 0)[0]:
            self.accept()
        self._lines = [line for line in self._lines if line.fileno() >= 0]
        for line in self._lines:
            if line.look() and not line.has_more:
                line.close()
        self._lines = [line for line in self._lines if line.fileno() >= 0]

    @contextmanager
    def answering(self, reply: Callable[[Asked], None]) -> Iterator[None]:
        """Meanwhile give each request to `reply`, in a thread."""

        def answer() -> None:
            while (asked := self._next()) is not None:
                reply(asked)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        self._rope.send(b"!")
        thread.join(DEADLINE)
        assert not thread.is_alive()
        self._bell.recv(1)

    def forget(self) -> None:
        """Close all connections, those as well that nobody has looked at."""
        while self._awake and select.select([self._listener], [], [], 0)[0]:
            self._listener.accept()[0].close()
        for line in self._lines:
            line.close()
        self._lines.clear()

    def end(self) -> None:
        """Be no more."""
        self.forget()
        for end in (self._listener, self._bell, self._rope):
            end.close()


#: What a server in front makes impossible, or puts in other words than its client, and why. Whatever is not listed here
#: has to be right everywhere.
IMPOSSIBLE: dict[str, dict[str, str]] = {
    "a lone question mark": dict.fromkeys(
        ("uvicorn httptools", "uvicorn h11", "hypercorn", "granian"), "ASGI knows no empty query"
    ),
    "a fragment": {
        "uvicorn httptools": "llhttp cuts it off",
        "granian": "hyper cuts it off",
    },
    "characters that a URL should not have": {"granian": "hyper answers 400"},
    "an absolute target without a path": {"uvicorn httptools": "answers 400"},
    "a client without a Host": {"granian": "gives it an empty one"},
    "repeated request headers": {
        "gunicorn": "an environ has one value per name, joined by a comma",
        "waitress": "an environ has one value per name, joined by a comma",
    },
    "a chunked upload": {"waitress": "reads the upload before it calls, and then knows its length"},
    "an upload while it lasts": {"waitress": "reads the upload before it calls"},
    "an upload in small pieces": {
        "gunicorn": "has an input that blocks until it has as much as was asked of it",
        "waitress": "reads the upload before it calls",
    },
    "an answer without chunks for HTTP/1.0": {"uvicorn httptools": "chunks whatever has no length"},
    "a 100 that is the origin's to send": {
        "hypercorn": "sends it before it calls",
        "gunicorn": "sends it before it calls",
        "waitress": "sends it before it calls",
    },
    "a head before its body": {
        "hypercorn": "keeps the head until the first of the body",
        "granian": "keeps the head until the first of the body",
        "gunicorn": "keeps the head until the first of the body (PEP 3333)",
        "waitress": "keeps the head until the first of the body (PEP 3333)",
    },
}


@dataclass
class Front:
    """A server in front of the sites."""

    name: str
    served: Served
    callers: list[Caller] = field(default_factory=list)

    def caller(self, site: str = "plain") -> Caller:
        """A client that has connected, and says nothing yet."""
        caller = Caller(self.served.port, site)
        self.callers.append(caller)
        return caller

    def ask(self, line: str, *fields: str, site: str = "plain", body: bytes = b"") -> Caller:
        """A client with a connection of its own, and a request on it."""
        caller = self.caller(site)
        caller.ask(line, *fields, body=body)
        return caller

    def look(self, site: str) -> dict[str, dict[str, int]]:
        """What is counted at a site: for each server, and under its own name."""
        return self._look()[site]

    def in_flight(self) -> int:
        """How many requests there are, at all sites."""
        return sum(each["in_flight"] for site in self._look().values() for each in site.values())

    def _look(self) -> dict[str, dict[str, dict[str, int]]]:
        with closing(Caller(self.served.port, "look")) as caller:
            caller.ask("GET /", "Connection: close")
            said: dict[str, dict[str, dict[str, int]]] = json.loads(caller.answer().body)
        return said

    def can(self, what: str) -> bool:
        """Whether the server does not make `what` impossible."""
        return self.name not in IMPOSSIBLE[what]

    def needs(self, what: str) -> None:
        """Skip the test where the server makes `what` impossible."""
        reason = IMPOSSIBLE.get(what, {}).get(self.name)
        if reason is not None:
            pytest.skip(f"{what}: {self.name} {reason}")

    @property
    def asgi(self) -> bool:
        return "sites_asgi:app" in self.served.command


FRONTS = {
    "uvicorn httptools": "uvicorn --http httptools --no-proxy-headers sites_asgi:app",
    "uvicorn h11": "uvicorn --http h11 --no-proxy-headers sites_asgi:app",
    "hypercorn": "hypercorn sites_asgi:app",
    "granian": "granian sites_asgi:app",
    "gunicorn": "gunicorn -k gthread -w 1 --threads 8 --forwarded-allow-ips 192.0.2.1 sites_wsgi:app",
    "waitress": (
        "waitress-serve --threads 8 --channel-request-lookahead 1 --no-clear-untrusted-proxy-headers sites_wsgi:app"
    ),
}


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Whom the sites trust to sign certificates."""
    return trustme.CA()


def secured(certificate: trustme.LeafCert, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """TLS as a server speaks it; with `clients`, only to those who show a certificate of theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def bound(family: int = socket.AF_INET, address: str | tuple[str, int] = (HOST, 0)) -> socket.socket:
    """A socket that has an address, and refuses connections as yet."""
    listener = socket.socket(family)
    if address != (HOST, 0):  # we come back to where there were connections before
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


@pytest.fixture(name="every_origin", scope="session")
def _every_origin(authority: trustme.CA) -> Iterator[dict[str, Origin]]:
    """The origins by name, for as long as servers know their addresses."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        origins = {
            "a": Origin(bound()),
            "b": Origin(bound()),
            "late": Origin(bound(address=("127.0.0.2", 0)), awake=False),
            "unix": Origin(bound(socket.AF_UNIX, f"{folder}/origin.sock")),
            "tls": Origin(bound(), secured(authority.issue_cert(HOST))),
            "named": Origin(bound(), secured(authority.issue_cert("origin.test"))),
            "mutual": Origin(bound(), secured(authority.issue_cert(HOST), clients=authority)),
        }
        yield origins
        for origin in origins.values():
            origin.end()


@pytest.fixture
def origins(every_origin: dict[str, Origin]) -> Iterator[dict[str, Origin]]:
    """The origins by name. After the test no connection to them is left."""
    yield every_origin
    for origin in every_origin.values():
        origin.forget()


@pytest.fixture
def a(origins: dict[str, Origin]) -> Origin:
    """The origin of server a, who is asked first."""
    return origins["a"]


@pytest.fixture
def b(origins: dict[str, Origin]) -> Origin:
    """The origin of server b, who is asked if a has failed."""
    return origins["b"]


@pytest.fixture(scope="session")
def variables(
    every_origin: dict[str, Origin], authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What apps/sites.py reads of its environment."""
    folder = tmp_path_factory.mktemp("certificates")
    files = {name: str(folder / f"{name}.pem") for name in ("ca", "crt", "key")}
    client = authority.issue_cert("client@sites.test")
    authority.cert_pem.write_to_path(files["ca"])
    client.cert_chain_pems[0].write_to_path(files["crt"])
    client.private_key_pem.write_to_path(files["key"])
    urls = {name: origin.url for name, origin in every_origin.items()}
    full = bound()
    full.listen(0)
    with bound() as dead, full, socket.create_connection(full.getsockname(), DEADLINE):  # which fills its backlog
        for name, end in {"dead": dead, "full": full}.items():
            urls[name] = f"http://{HOST}:{end.getsockname()[1]}"
        yield {"ORIGINS": json.dumps(urls), "FILES": json.dumps(files)}


@pytest.fixture(name="sites", scope="session")
def _sites(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Served]]:
    """The server in front of the sites, by its name in FRONTS: started when it is first wanted, and kept."""
    folder = tmp_path_factory.mktemp("sites")
    serving: dict[str, Served] = {}

    def started(name: str) -> Served:
        if name not in serving or serving[name].process.poll() is not None:
            kind, *arguments = FRONTS[name].split()
            # an answer that is cut short ends in an exception, and servers show it
            peaceful = replace(KINDS[kind], habits=(*KINDS[kind].habits, "Traceback"))

            def launch() -> Served:
                port = free_port()
                command = command_of(peaceful, port, arguments)
                return Served(peaceful, command, port, ROOT, folder / f"{name}-{port}.log", variables)

            serving[name] = up(launch)
        return serving[name]

    yield started
    try:
        for served in serving.values():
            if served.process.poll() is None:
                served.stop()
    finally:
        for served in serving.values():
            served.kill()


@pytest.fixture
def caller() -> Iterator[Callable[..., Caller]]:
    """A client of a server's site. After the test it has closed."""
    callers: list[Caller] = []

    def connected(served: Served, site: str = "plain") -> Caller:
        callers.append(Caller(served.port, site))
        return callers[-1]

    yield connected
    for caller in callers:
        caller.close()


@pytest.fixture(params=FRONTS)
def front(
    request: pytest.FixtureRequest, sites: Callable[[str], Served], origins: dict[str, Origin]
) -> Iterator[Front]:
    """A server in front of the sites. After the test nothing is in flight there, or the next test gets another one."""
    served = sites(request.param)
    before = len(served.output)
    front = Front(request.param, served)
    yield front
    for caller in front.callers:
        caller.close()
    for origin in origins.values():
        origin.forget()
    request.node.add_report_section("teardown", front.name, served.output[before:])
    try:
        until(lambda: front.in_flight() == 0, "nothing in flight")
    except AssertionError:
        served.kill()
        raise
