"""Check what an installed wheel gives a user; .ci/run runs this in a clean environment, outside the checkout.

Tests read the checkout, because a flat layout puts it first on the path. A file that hatchling left out, a dependency
that only the group `dev` installs, a command that starts only from the source: such mistakes show here.

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

HANG = 600.0  # seconds; a cold start takes two or three, and many times that on a busy machine

# A package, and what must not be imported along with it.
UNWANTED = {
    "sticky_core": ("anyio", "starlette", "werkzeug", "sticky_asgi", "sticky_wsgi"),
    "sticky_asgi": ("werkzeug", "sticky_wsgi"),
    "sticky_wsgi": ("anyio", "starlette", "sticky_asgi"),
}


def installed() -> None:
    """Check that the three packages come from the wheel and are marked as typed."""
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    for name in UNWANTED:
        file = importlib.import_module(name).__file__
        assert file is not None, f"{name} has no __init__.py"
        package = Path(file).resolve().parent
        assert package.parent == site_packages, f"{name} comes from {package}, not from {site_packages}"
        assert (package / "py.typed").is_file(), f"the wheel has no {name}/py.typed"


def isolated() -> None:
    """Check that the WSGI package imports no ASGI library, and the other way round."""
    for name, unwanted in UNWANTED.items():
        print_loaded = f"import sys, {name}; print(*sorted(set(sys.modules) & set({unwanted!r})))"
        loaded = subprocess.run(
            [sys.executable, "-I", "-c", print_loaded], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.split()
        assert not loaded, f"import {name} also imports {', '.join(loaded)}"


def plugin_is_harmless() -> None:
    """Check that our pytest plugin, which any suite in the same environment loads, does not disturb one."""
    with tempfile.TemporaryDirectory() as elsewhere:
        Path(elsewhere, "test_something_else.py").write_text("def test_something_else(): pass\n")
        suite = subprocess.run(
            [sys.executable, "-I", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", elsewhere],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert suite.returncode == 0, f"an unrelated suite fails beside our plugin:\n{suite.stdout}"


def command_names_its_extra() -> None:
    """Check that the command without its extra prints what to install, and no traceback."""
    command = Path(sys.executable).with_name("sticky")
    run = subprocess.run([command, "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode != 0, "`sticky demo` runs without its extra: is the extra needed?"
    assert "sticky-sessions[serve]" in run.stdout, f"without its extra it prints:\n{run.stdout}"


def demo_serves() -> None:
    """Check that `sticky demo` prints its URL, keeps a client on one server, and exits with 0 on SIGINT."""
    # A shell ignores SIGINT in what it starts in the background, and a child inherits that: undo it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    demo = subprocess.Popen(
        [Path(sys.executable).with_name("sticky"), "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    lines: queue.Queue[str | None] = queue.Queue()
    assert demo.stdout is not None
    threading.Thread(target=read_lines, args=(demo.stdout, lines), daemon=True).start()
    try:
        url = wait_for_url(lines)
        jar = CookieJar()
        # Without proxies: one from the environment of a CI must not be between this script and the demo.
        client = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar))

        def get(path: str) -> bytes:
            with client.open(url + path, timeout=HANG) as response:
                assert response.status == 200, f"the demo responds to GET {path} with {response.status}"
                body: bytes = response.read()
                return body

        assert b"</html>" in get("/"), "the demo's page is empty: is its .html in the wheel?"
        servers = [json.loads(get("/cart"))["server"] for _ in range(3)]
        assert "SERVERID" in {cookie.name for cookie in jar}, "no response of the demo sets SERVERID"
        assert len(set(servers)) == 1, f"one client of the demo was sent to {', '.join(servers)}"
        demo.send_signal(signal.SIGINT)
        code = demo.wait(timeout=HANG)
        assert code == 0, f"after SIGINT the demo exited with {code}"
    finally:
        demo.kill()  # has no effect if it has already exited
        demo.wait()


def read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Read the demo's output to its end, since a full pipe would stop the demo, and print it."""
    for line in stream:
        lines.put(line.rstrip())
        print("  |", line.rstrip(), flush=True)
    lines.put(None)


def wait_for_url(lines: queue.Queue[str | None]) -> str:
    """Return the URL that the demo prints when it has started."""
    until = time.monotonic() + HANG
    while (left := until - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            raise AssertionError("the demo ended before it printed its URL")
        if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
            return found[0]
    raise AssertionError(f"the demo did not print its URL within {HANG:g} s")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bare"]:
            checks = [installed, isolated, plugin_is_harmless, command_names_its_extra]
        case ["serve"]:
            checks = [installed, isolated, demo_serves]
        case _:
            raise SystemExit(__doc__)
    for check in checks:
        check()
        print(f"{check.__name__}: ok", flush=True)
