"""What someone gets who installs the wheel: .ci/run runs this with a clean environment, outside the checkout.

Tests read the checkout, because a flat layout puts it first. A file that hatchling left out, a dependency
that only the developers have, a command that only starts from the source: they show here or at a user's.

    outside.py bare     the wheel and pytest, no extras
    outside.py serve    the wheel with [serve,testing]
"""

import importlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import IO

PATIENCE = 30.0  # seconds; a cold start on a busy machine takes two or three

# importing this must not bring in those
STRANGERS = {
    "sticky_core": ("anyio", "starlette", "werkzeug", "sticky_asgi", "sticky_wsgi"),
    "sticky_asgi": ("werkzeug", "sticky_wsgi"),
    "sticky_wsgi": ("anyio", "starlette", "sticky_asgi"),
}


def installed() -> None:
    """The three packages come from the wheel and tell type checkers that they are typed."""
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    for name in STRANGERS:
        file = importlib.import_module(name).__file__
        assert file is not None, f"{name} has no __init__.py"
        package = Path(file).resolve().parent
        assert package.parent == site_packages, f"{name} comes from {package}, not from {site_packages}"
        assert (package / "py.typed").is_file(), f"the wheel has no {name}/py.typed"


def apart() -> None:
    """A WSGI user pays for no ASGI library, and the other way round."""
    for name, strangers in STRANGERS.items():
        loaded = f"import sys, {name}; print(*sorted(set(sys.modules) & set({strangers!r})))"
        brought = subprocess.run(
            [sys.executable, "-I", "-c", loaded], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.split()
        assert not brought, f"import {name} brings in {', '.join(brought)}"


def harmless() -> None:
    """Our pytest plugin is loaded in any suite we are installed beside, extras or not; it disturbs none."""
    with tempfile.TemporaryDirectory() as elsewhere:
        Path(elsewhere, "test_something_else.py").write_text("def test_something_else(): pass\n")
        suite = subprocess.run(
            [sys.executable, "-I", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", elsewhere],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert suite.returncode == 0, f"a suite that has nothing to do with us fails:\n{suite.stdout}"


def helpful() -> None:
    """The command without its extra is no traceback: it says what to install."""
    command = Path(sys.executable).with_name("sticky")
    answer = subprocess.run([command, "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert answer.returncode != 0, "`sticky demo` runs without its extra: is the extra needed?"
    assert "sticky-sessions[serve]" in answer.stdout, f"without its extra it says:\n{answer.stdout}"


def served() -> None:
    """`sticky demo` says where it is, keeps a visitor, and leaves quietly when told to."""
    # Whoever starts us in the background has SIGINT ignored, and a child inherits that: undo it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    demo = subprocess.Popen(
        [Path(sys.executable).with_name("sticky"), "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    said: queue.Queue[str | None] = queue.Queue()
    assert demo.stdout is not None
    threading.Thread(target=listen, args=(demo.stdout, said), daemon=True).start()
    try:
        url = address(said)
        jar = CookieJar()
        # No proxies: a CI that has one in its environment must not send us through it to ourselves.
        visitor = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar))

        def get(path: str) -> bytes:
            with visitor.open(url + path, timeout=PATIENCE) as answer:
                assert answer.status == 200, f"the demo answers GET {path} with {answer.status}"
                body: bytes = answer.read()
                return body

        assert b"</html>" in get("/"), "the demo's page is empty: is its .html in the wheel?"
        servers = [json.loads(get("/cart"))["server"] for _ in range(3)]
        assert "SERVERID" in {cookie.name for cookie in jar}, "the demo marked no answer with SERVERID"
        assert len(set(servers)) == 1, f"one visitor of the demo was sent to {', '.join(servers)}"
        demo.send_signal(signal.SIGINT)
        code = demo.wait(timeout=PATIENCE)
        assert code == 0, f"the demo, told to stop by SIGINT, exited with {code}"
    finally:
        demo.kill()  # nothing, if it has already left
        demo.wait()


def listen(stream: IO[str], said: queue.Queue[str | None]) -> None:
    """Reads to the end, since a pipe that nobody empties would stop the demo, and shows what it says."""
    for line in stream:
        said.put(line.rstrip())
        print("  |", line.rstrip(), flush=True)
    said.put(None)


def address(said: queue.Queue[str | None]) -> str:
    until = time.monotonic() + PATIENCE
    while (left := until - time.monotonic()) > 0:
        try:
            line = said.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            raise AssertionError("the demo ended before it said where it is")
        if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
            return found[0]
    raise AssertionError(f"the demo did not say where it is within {PATIENCE:g} s")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bare"]:
            checks = [installed, apart, harmless, helpful]
        case ["serve"]:
            checks = [installed, apart, served]
        case _:
            raise SystemExit(__doc__)
    for check in checks:
        check()
        print(f"{check.__name__}: ok", flush=True)
