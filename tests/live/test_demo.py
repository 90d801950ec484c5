"""The command `sticky` as a user runs it: a process in a terminal, and a page in a browser."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from sticky_asgi import __version__

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 300.0
STICKY = (sys.executable, "-m", "sticky_asgi.cli")


def sticky(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command until it exits."""
    return subprocess.run([*STICKY, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)


@dataclass
class Demo:
    """A running process of `sticky demo`."""

    process: subprocess.Popen[str]
    stderr: IO[str]
    stdout: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def states(self) -> dict[str, str]:
        status, body = self.request("GET", "/replicas")
        assert status == 200
        return {replica["name"]: replica["state"] for replica in json.loads(body)}

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Stop the process by a signal; return its exit code and all that it wrote to stderr."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE)
        self.stderr.seek(0)
        return code, self.stderr.read()


@pytest.fixture
def demo() -> Iterator[Demo]:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [*STICKY, "demo", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        assert process.stdout is not None
        time_limit = threading.Timer(DEADLINE, process.kill)
        time_limit.start()
        try:
            stdout = ""
            while not (found := re.search(r"^ *http://127\.0\.0\.1:(\d+)$", stdout, re.MULTILINE)):
                line = process.stdout.readline()
                assert line, f"it ended before it printed its URL: {stdout!r}"
                stdout += line
            time_limit.cancel()
            yield Demo(process, stderr, stdout, int(found[1]))
        finally:
            time_limit.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


# -- in a terminal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_demo_serves_once_its_url_is_printed_and_exits_without_an_error(demo, number):
    status, body = demo.request("GET", "/")
    assert status == 200
    assert body.endswith("</html>\n")
    assert demo.stop(number) == (0, "")


def test_demo_waits_for_a_request_in_flight_before_it_ends(demo):
    responses: list[tuple[int, str]] = []
    buyer = threading.Thread(target=lambda: responses.append(demo.request("POST", "/checkout")))
    buyer.start()
    in_flight = '"in_flight":1'
    while in_flight not in demo.request("GET", "/replicas")[1]:
        assert buyer.is_alive()
    assert demo.stop(signal.SIGINT) == (0, "")
    buyer.join(DEADLINE)
    assert [status for status, _ in responses] == [200]


@pytest.mark.parametrize("missing", ["click", "uvicorn"])
def test_without_its_extra_the_command_prints_how_to_install_it(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['sticky', 'demo', '--port', '0']; "
        "from sticky_asgi.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"sticky: {missing} is not installed. Install it with: pip install 'sticky-sessions[serve]'\n"
    )


def test_another_missing_module_is_not_blamed_on_the_extra():
    script = (
        "import sys; sys.modules['starlette.routing'] = None; sys.argv = ['sticky', 'demo', '--port', '0']; "
        "from sticky_asgi.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 1
    assert "starlette.routing" in ended.stderr
    assert "sticky-sessions[serve]" not in ended.stderr


def test_a_port_in_use_is_reported_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = sticky("demo", "--port", f"{port}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"port {port} at 127.0.0.1 is in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_of_another_machine_is_reported_in_a_sentence():
    ended = sticky("demo", "--host", "192.0.2.1", "--port", "0")  # RFC 5737: no machine has it
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "can't listen at 192.0.2.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_version_is_that_of_the_package():
    ended = sticky("--version")
    assert (ended.returncode, ended.stdout) == (0, f"sticky-sessions, version {__version__}\n")


# -- against other sites


@pytest.mark.parametrize("path", ["/replicas/r1/maint", "/cart/tea", "/forget"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "http://elsewhere.example"}, id="another site"),
        pytest.param({"Origin": "null"}, id="a sandboxed frame"),
        pytest.param({"Origin": "http://127.0.0.1:1"}, id="another port"),
        pytest.param({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, id="a rebound name"),
    ],
)
def test_other_sites_can_not_control_the_demo(demo, path, headers):
    assert demo.request("POST", path, **headers)[0] == 403
    assert set(demo.states().values()) == {"ready"}


def test_a_rebound_name_can_not_even_read(demo):
    assert demo.request("GET", "/replicas", Host=f"elsewhere.example:{demo.port}")[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_page_itself_and_curl_can_control_the_demo(demo, host):
    own = {"Host": f"{host}:{demo.port}", "Origin": f"http://{host}:{demo.port}"}
    assert demo.request("POST", "/replicas/r1/maint", **own)[0] == 200
    assert demo.request("POST", "/replicas/r2/drain")[0] == 200
    assert demo.states() == {"r1": "maint", "r2": "drain", "r3": "ready"}


@pytest.mark.parametrize("path", ["/replicas/r4/maint", "/replicas/r1/asleep", "/cart/gold"])
def test_unknown_replicas_states_and_items_are_not_found(demo, path):
    assert demo.request("POST", path)[0] == 404


def test_a_link_does_not_change_a_state(demo):
    assert demo.request("GET", "/replicas/r1/maint")[0] == 405
    assert demo.states()["r1"] == "ready"


# -- in a browser

SERVED_BY = "document.getElementById('served-by').innerText"


def states_of(replica: str) -> str:
    return f"[aria-label='state of {replica}']"


@pytest.fixture
def page(browser, demo):
    """The demo's page in the browser of a new client. No test may cause an error in the browser."""
    page = browser.page()
    page.open(demo.url)
    page.until(f"{SERVED_BY} === 'r1 served you'")
    yield page
    assert page.complaints() == []


def test_a_client_stays_until_its_replica_is_taken_down_and_the_page_shows_why_it_moved(page, demo):
    page.click("add tea")
    page.until("document.getElementById('cart').innerText === 'tea'")
    assert page.text("#served-by") == "r1 served you"
    assert page.text("#claim") == "VALID"

    page.click("maint", within=states_of("r1"))
    page.until(f"""document.querySelector("{states_of("r1")} [aria-pressed='true']").innerText === 'maint'""")
    assert demo.states() == {"r1": "maint", "r2": "ready", "r3": "ready"}

    page.click("send another request")
    page.until(f"{SERVED_BY} === 'r2 served you'")
    assert page.text("#claim") == "DOWN"
    assert page.text("#reason") == "server is in maintenance"
    assert page.text("#why") == "r1: server is in maintenance; balance chose r2."
    assert page.text("#mark") == "INSERTED"
    assert page.text("#move") == "You moved from r1 to r2, and your cart stayed in r1’s memory."
    assert page.text("#cart") == "empty"

    page.click("send another request")
    page.until("document.getElementById('claim').innerText === 'VALID'")
    assert page.text("#served-by") == "r2 served you"
    assert page.evaluate("document.querySelectorAll('#log li').length") == 5

    code, stderr = demo.stop(signal.SIGINT)
    assert code == 0
    assert all(line.startswith("Server shop/r") for line in stderr.splitlines()), stderr  # the state changes above
    page.until(f"{SERVED_BY} === 'The demo does not respond'")


def test_a_drained_replica_keeps_its_client_and_accepts_no_new_one(page):
    page.click("add honey")
    page.until("document.getElementById('cart').innerText === 'honey'")
    for replica in ("r1", "r2"):
        page.click("drain", within=states_of(replica))
        page.until(f"""document.querySelector("{states_of(replica)} [aria-pressed='true']").innerText === 'drain'""")
    page.click("add honey")
    page.until("document.getElementById('cart').innerText === 'honey × 2'")
    assert page.text("#served-by") == "r1 served you"
    page.click("become a new client")
    page.until(f"{SERVED_BY} === 'r3 served you'")
    assert page.text("#claim") == "NONE"
    assert page.text("#cart") == "empty"


def test_with_every_replica_in_maint_the_page_shows_it_and_puts_one_back(page):
    for replica in ("r1", "r2", "r3"):
        page.click("maint", within=states_of(replica))
        page.until(f"""document.querySelector("{states_of(replica)} [aria-pressed='true']").innerText === 'maint'""")
    page.click("send another request")
    page.until(f"{SERVED_BY} === 'no replica could serve you: status 503'")
    assert page.text("#claim") == "DOWN"
    assert page.text("#why").startswith("r1: server is in maintenance; no server could take")
    page.click("ready", within=states_of("r1"))
    page.click("send another request")
    page.until(f"{SERVED_BY} === 'r1 served you'")
    assert page.text("#claim") == "VALID"


def test_a_slow_checkout_is_shown_in_flight(page):
    page.click("add tea")
    page.until("document.getElementById('cart').innerText === 'tea'")
    page.click("check out, slowly")
    page.until("document.getElementById('replicas').innerText.includes('1 in flight')")
    page.until("document.getElementById('cart').innerText === 'empty'")
    page.until("!document.getElementById('replicas').innerText.includes('1 in flight')")


def test_the_page_can_be_used_by_keyboard(page):
    focus = "document.activeElement.innerText"
    for _ in range(30):
        page.press("Tab", 9)
        if page.evaluate(focus) == "add bread":
            break
    assert page.evaluate(focus) == "add bread"
    page.press("Enter", 13, "\r")
    page.until("document.getElementById('cart').innerText === 'bread'")
    assert page.evaluate(focus) == "add bread"

    page.evaluate(f"""document.querySelector("{states_of("r1")} [data-state='maint']").focus()""")
    page.press("Enter", 13, "\r")
    page.until(f"""document.querySelector("{states_of("r1")} [aria-pressed='true']").innerText === 'maint'""")
    assert page.evaluate(focus) == "maint", "the button that was pressed has lost the focus"


def test_every_control_has_a_name_and_responses_are_announced(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    names: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            names.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert "" not in names["button"] + names["group"] + names["heading"] + names["region"]
    assert set(names["group"]) >= {"state of r1", "state of r2", "state of r3"}
    assert "status" in names
    assert page.evaluate("document.querySelector('[role=status]').innerText").startswith("r1 served you")


@pytest.mark.parametrize("width", [320, 380, 620, 850])
def test_nothing_is_cut_off_in_a_narrow_window(browser, demo, width):
    page = browser.page(width)
    page.open(demo.url)
    page.until(f"{SERVED_BY} === 'r1 served you'")
    page.click("maint", within=states_of("r1"))
    page.click("add tea")
    page.until("document.querySelectorAll('#log li').length >= 3")
    wide = """[...document.querySelectorAll('body *')]
        .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
        .map(element => element.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
