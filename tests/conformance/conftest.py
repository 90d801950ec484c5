"""Real servers as real processes, and a client that hides nothing: by these the conformance tests are run."""

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sticky_core

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples"
HOST = "127.0.0.1"

#: How long a thing may take that should take an instant. Only what hangs gets there.
DEADLINE = 30.0

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
    "hypercorn": Kind("hypercorn", lambda port: ("--bind", f"{HOST}:{port}")),
    "granian": Kind("granian", lambda port: ("--interface", "asgi", "--port", f"{port}")),
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


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class Connection:
    """One request and the connection it has for itself."""

    def __init__(self, port: int, request: bytes) -> None:
        self._socket = socket.create_connection((HOST, port), DEADLINE)
        self._came = b""
        self._socket.sendall(request)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to `mark` and with it; what follows stays for the next reading."""
        while mark not in self._came:
            more = self._socket.recv(65536)
            assert more, f"the server closed before {mark!r}: {self._came!r}"
            self._came += more
        read, found, self._came = self._came.partition(mark)
        return read + found

    def read_all(self) -> bytes:
        """Everything until the server closes."""
        while more := self._socket.recv(65536):
            self._came += more
        read, self._came = self._came, b""
        return read

    def answer(self) -> Answer:
        """The answer, whole, of a connection that closes after it."""
        return parsed(self.read_all())

    def head(self) -> Answer:
        """The answer as far as its head."""
        return parsed(self.read_until(b"\r\n\r\n"))

    def leave(self) -> None:
        """Be gone at once: the server's next write finds a connection that was reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._socket.close()


def parsed(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        body = b"".join(chunks(body))
    return Answer(int(line.split()[1]), headers, body)


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

    def __init__(self, kind: Kind, command: Sequence[str], port: int, cwd: Path, output: Path) -> None:
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
                env=environment(),
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


@pytest.fixture
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts a server that may not come up. After the test it is gone; its output is shown if that failed."""
    started: list[Served] = []

    def launched(kind: str, *arguments: str, cwd: Path = ROOT) -> Served:
        port = free_port()
        *options, app = arguments
        command = [sys.executable, "-m", KINDS[kind].module, *options, *KINDS[kind].bind(port), app]
        served = Served(KINDS[kind], command, port, cwd, tmp_path / f"{kind}-{len(started)}.log")
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

    def started(kind: str, *arguments: str, cwd: Path = ROOT) -> Served:
        for _ in range(3):
            served = launch(kind, *arguments, cwd=cwd)
            if served.comes_up():
                serving.append(served)
                return served
            if "in use" not in served.output:  # another process may have taken the port meanwhile
                break
        raise AssertionError(f"{' '.join(served.command)} did not start")

    yield started
    for served in serving:
        served.stop()
