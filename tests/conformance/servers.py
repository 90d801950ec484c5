"""Servers as processes: how each kind is started and stopped, and what it prints; and servers in a thread."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sticky_core
from tests.conformance.wire import DEADLINE, HOST, Client, Connection

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples"
SECRET = "a-secret-of-the-conformance-tests"
ADMIN_TOKEN = "let-the-tests-in"


@dataclass(frozen=True)
class ServerKind:
    """How a kind of server gets its port, which signal stops it, and its exit code without an error."""

    module: str
    bind: Callable[[int], Sequence[str]]
    stop: signal.Signals = signal.SIGTERM
    exit_code: int = 0
    always_prints: Sequence[str] = ()  #: which of LEAK_MESSAGES it prints with any app


KINDS = {
    # raises the signal again at its end
    "uvicorn": ServerKind("uvicorn", lambda port: ("--port", f"{port}"), exit_code=-signal.SIGTERM),
    "sticky": ServerKind("sticky_asgi.cli", lambda port: ("--port", f"{port}")),
    "hypercorn": ServerKind("hypercorn", lambda port: ("--bind", f"{HOST}:{port}")),
    "granian": ServerKind("granian", lambda port: ("--interface", "asgi", "--port", f"{port}")),
    "granian-wsgi": ServerKind("granian", lambda port: ("--interface", "wsgi", "--port", f"{port}")),
    "gunicorn": ServerKind("gunicorn", lambda port: ("--no-control-socket", "--bind", f"{HOST}:{port}")),
    # is stopped by Ctrl-C only, and never closes its listening socket
    "waitress-serve": ServerKind(
        "waitress",
        lambda port: ("--host", HOST, "--port", f"{port}"),
        stop=signal.SIGINT,
        always_prints=("ResourceWarning",),
    ),
}

#: What a server prints at its end that has left something open.
LEAK_MESSAGES = ("ResourceWarning", "Task was destroyed", "never awaited", "Exception ignored", "Traceback")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` if it does not in time."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def wait_until_stable(count: Callable[[], int]) -> int:
    """Wait until `count` has not changed for a while, and return it.

    On a busy machine that may be too early: a test that requires at most so much passes then.
    """
    seen, since = count(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.01)
        if count() != seen:
            seen, since = count(), time.monotonic()
    return seen


class ServerProcess:
    """A server in a process of its own."""

    def __init__(
        self,
        kind: ServerKind,
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
        """Whether it accepts connections; False as well once it has ended."""
        try:
            socket.create_connection((HOST, self.port), DEADLINE).close()
        except ConnectionError:
            return False
        return self.process.poll() is None

    def comes_up(self) -> bool:
        """Wait until it accepts connections, or has ended. Return whether it accepts."""
        until(lambda: self.listens() or self.process.poll() is not None, "a server that accepts connections")
        return self.process.poll() is None

    def ends(self) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.process.wait(DEADLINE)

    def stop(self) -> None:
        """Stop it, and require that it ends without an error and leaves nothing open."""
        self.process.send_signal(self.kind.stop)
        code = self.ends()
        leaks = [word for word in LEAK_MESSAGES if word in self.output and word not in self.kind.always_prints]
        assert (code, leaks) == (self.kind.exit_code, []), f"{' '.join(self.command)} ended with an error"

    def kill(self) -> None:
        """Kill it and the processes that it has started, if any are left."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for connection in self._opened:
            connection.close()


def environment() -> dict[str, str]:
    installed = Path(sticky_core.__file__).parents[1]  # checkout or wheel: the one that the tests import
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (installed, EXAMPLES, HERE / "apps"))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "always::ResourceWarning",
        "STICKY_SECRET": SECRET,
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def command_of(kind: ServerKind, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the command of a server. `arguments`: options, and last the app."""
    *options, app = arguments
    return [sys.executable, "-m", kind.module, *options, *kind.bind(port), app]


def start(launch: Callable[[], ServerProcess]) -> ServerProcess:
    """Launch a server, wait until it accepts connections, and return it."""
    for _ in range(3):
        served = launch()
        if served.comes_up():
            return served
        if "in use" not in served.output:  # another process may have taken the port meanwhile
            break
    raise AssertionError(f"{' '.join(served.command)} did not start:\n{served.output}")


def serve_by_uvicorn(app: Any, stack: ExitStack) -> int:
    """Serve an ASGI app by uvicorn, in a thread, until the stack is closed. Return the port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, HOST, 0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(setattr, server, "should_exit", True)
    until(lambda: server.started, "uvicorn listens")
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


def serve_by_waitress(app: Any, stack: ExitStack, threads: int) -> int:
    """Serve a WSGI app by waitress, in a thread that has `threads` others, until the stack is closed. Return the
    port.
    """
    import waitress  # type: ignore[import-untyped]  # it has no types

    server: Any = waitress.create_server(app, host=HOST, port=0, threads=threads)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(close_waitress, server)
    stack.callback(server.task_dispatcher.shutdown)
    port: int = server.effective_port
    return port


def close_waitress(server: Any) -> None:
    """Close a server of waitress that runs in another thread: there, woken up by a write to its trigger. It must not
    close the trigger before that write.
    """
    has_written = threading.Event()

    def close() -> None:
        has_written.wait()
        server.close()

    server.trigger.pull_trigger(close)
    has_written.set()
