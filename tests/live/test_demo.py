"""The command `sticky` as people meet it: a process in a terminal, and a page in a browser."""

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
    """The command, run to its end."""
    return subprocess.run([*STICKY, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)


@dataclass
class Demo:
    """`sticky demo`, running."""

    process: subprocess.Popen[str]
    complaints: IO[str]
    said: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def states(self) -> dict[str, str]:
        status, body = self.ask("GET", "/replicas")
        assert status == 200
        return {replica["name"]: replica["state"] for replica in json.loads(body)}

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """The exit code, and what it said on stderr in all its life."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE)
        self.complaints.seek(0)
        return code, self.complaints.read()


@pytest.fixture
def demo() -> Iterator[Demo]:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [*STICKY, "demo", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=complaints, text=True
        )
        assert process.stdout is not None
        impatience = threading.Timer(DEADLINE, process.kill)
        impatience.start()
        try:
            said = ""
            while not (found := re.search(r"^ *http://127\.0\.0\.1:(\d+)$", said, re.MULTILINE)):
                line = process.stdout.readline()
                assert line, f"it ended before it said where it is: {said!r}"
                said += line
            impatience.cancel()
            yield Demo(process, complaints, said, int(found[1]))
        finally:
            impatience.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


# -- in a terminal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_demo_answers_once_it_says_where_and_ends_in_peace(demo, number):
    status, body = demo.ask("GET", "/")
    assert status == 200
    assert body.endswith("</html>\n")
    assert demo.end(number) == (0, "")


def test_demo_waits_for_a_request_in_flight_before_it_ends(demo):
    answers: list[tuple[int, str]] = []
    buyer = threading.Thread(target=lambda: answers.append(demo.ask("POST", "/checkout")))
    buyer.start()
    in_flight = '"in_flight":1'
    while in_flight not in demo.ask("GET", "/replicas")[1]:
        assert buyer.is_alive()
    assert demo.end(signal.SIGINT) == (0, "")
    buyer.join(DEADLINE)
    assert [status for status, _ in answers] == [200]


@pytest.mark.parametrize("missing", ["click", "uvicorn"])
def test_without_its_extra_the_command_names_the_way_out(missing):
    started = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['sticky', 'demo', '--port', '0']; "
        "from sticky_asgi.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", started], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"sticky: {missing} is not installed. It comes with: pip install 'sticky-sessions[serve]'\n"
    )


def test_another_missing_module_is_not_blamed_on_the_extra():
    started = (
        "import sys; sys.modules['starlette.routing'] = None; sys.argv = ['sticky', 'demo', '--port', '0']; "
        "from sticky_asgi.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", started], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 1
    assert "starlette.routing" in ended.stderr
    assert "sticky-sessions[serve]" not in ended.stderr


def test_a_port_in_use_is_said_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = sticky("demo", "--port", f"{port}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"port {port} at 127.0.0.1 is in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_of_somebody_else_is_said_in_a_sentence():
    ended = sticky("demo", "--host", "192.0.2.1", "--port", "0")  # RFC 5737: nobody's
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
def test_other_sites_can_not_drive_the_demo(demo, path, headers):
    assert demo.ask("POST", path, **headers)[0] == 403
    assert set(demo.states().values()) == {"ready"}


def test_a_rebound_name_can_not_even_look(demo):
    assert demo.ask("GET", "/replicas", Host=f"elsewhere.example:{demo.port}")[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_page_itself_and_curl_can(demo, host):
    own = {"Host": f"{host}:{demo.port}", "Origin": f"http://{host}:{demo.port}"}
    assert demo.ask("POST", "/replicas/r1/maint", **own)[0] == 200
    assert demo.ask("POST", "/replicas/r2/drain")[0] == 200
    assert demo.states() == {"r1": "maint", "r2": "drain", "r3": "ready"}


@pytest.mark.parametrize("path", ["/replicas/r4/maint", "/replicas/r1/asleep", "/cart/gold"])
def test_what_is_not_there_is_not_found(demo, path):
    assert demo.ask("POST", path)[0] == 404


def test_a_lever_is_not_pulled_by_a_link(demo):
    assert demo.ask("GET", "/replicas/r1/maint")[0] == 405
    assert demo.states()["r1"] == "ready"


# -- in a browser

ANSWERED = "document.getElementById('answered').innerText"


def levers(replica: str) -> str:
    return f"[aria-label='state of {replica}']"


@pytest.fixture
def page(browser, demo):
    """The demo's page as a new visitor has it. Whatever is done to it, the browser must not complain."""
    page = browser.page()
    page.open(demo.url)
    page.until(f"{ANSWERED} === 'r1 answered'")
    yield page
    assert page.complaints() == []


def test_a_client_stays_until_its_replica_is_taken_down_and_is_told_why_it_moved(page, demo):
    page.click("add tea")
    page.until("document.getElementById('cart').innerText === 'tea'")
    assert page.text("#answered") == "r1 answered"
    assert page.text("#claim") == "VALID"

    page.click("maint", within=levers("r1"))
    page.until(f"""document.querySelector("{levers("r1")} [aria-pressed='true']").innerText === 'maint'""")
    assert demo.states() == {"r1": "maint", "r2": "ready", "r3": "ready"}

    page.click("look again")
    page.until(f"{ANSWERED} === 'r2 answered'")
    assert page.text("#claim") == "DOWN"
    assert page.text("#reason") == "server is in maintenance"
    assert page.text("#why") == "r1: server is in maintenance; balance chose r2."
    assert page.text("#mark") == "INSERTED"
    assert page.text("#where") == "You moved from r1 to r2, and your cart stayed in r1’s memory."
    assert page.text("#cart") == "empty"

    page.click("look again")
    page.until("document.getElementById('claim').innerText === 'VALID'")
    assert page.text("#answered") == "r2 answered"
    assert page.evaluate("document.querySelectorAll('#log li').length") == 5

    code, told = demo.end(signal.SIGINT)
    assert code == 0
    assert all(line.startswith("Server shop/r") for line in told.splitlines()), told  # what the visitor did
    page.until(f"{ANSWERED} === 'The demo is silent'")


def test_a_drained_replica_keeps_its_client_and_takes_no_new_one(page):
    page.click("add honey")
    page.until("document.getElementById('cart').innerText === 'honey'")
    for replica in ("r1", "r2"):
        page.click("drain", within=levers(replica))
        page.until(f"""document.querySelector("{levers(replica)} [aria-pressed='true']").innerText === 'drain'""")
    page.click("add honey")
    page.until("document.getElementById('cart').innerText === 'honey × 2'")
    assert page.text("#answered") == "r1 answered"
    page.click("be a new client")
    page.until(f"{ANSWERED} === 'r3 answered'")
    assert page.text("#claim") == "NONE"
    assert page.text("#cart") == "empty"


def test_with_every_replica_in_maint_the_page_says_so_and_brings_one_back(page):
    for replica in ("r1", "r2", "r3"):
        page.click("maint", within=levers(replica))
        page.until(f"""document.querySelector("{levers(replica)} [aria-pressed='true']").innerText === 'maint'""")
    page.click("look again")
    page.until(f"{ANSWERED} === 'nobody could answer: 503'")
    assert page.text("#claim") == "DOWN"
    assert page.text("#why").startswith("r1: server is in maintenance; no server could take")
    page.click("ready", within=levers("r1"))
    page.click("look again")
    page.until(f"{ANSWERED} === 'r1 answered'")
    assert page.text("#claim") == "VALID"


def test_a_slow_checkout_is_seen_in_flight(page):
    page.click("add tea")
    page.until("document.getElementById('cart').innerText === 'tea'")
    page.click("check out, slowly")
    page.until("document.getElementById('replicas').innerText.includes('1 in flight')")
    page.until("document.getElementById('cart').innerText === 'empty'")
    page.until("!document.getElementById('replicas').innerText.includes('1 in flight')")


def test_the_page_can_be_worked_by_keyboard(page):
    focus = "document.activeElement.innerText"
    for _ in range(30):
        page.press("Tab", 9)
        if page.evaluate(focus) == "add bread":
            break
    assert page.evaluate(focus) == "add bread"
    page.press("Enter", 13, "\r")
    page.until("document.getElementById('cart').innerText === 'bread'")
    assert page.evaluate(focus) == "add bread"

    page.evaluate(f"""document.querySelector("{levers("r1")} [data-state='maint']").focus()""")
    page.press("Enter", 13, "\r")
    page.until(f"""document.querySelector("{levers("r1")} [aria-pressed='true']").innerText === 'maint'""")
    assert page.evaluate(focus) == "maint", "the button that was pressed has lost the focus"


def test_everything_can_be_named_and_answers_are_announced(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    names: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            names.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert "" not in names["button"] + names["group"] + names["heading"] + names["region"]
    assert set(names["group"]) >= {"state of r1", "state of r2", "state of r3"}
    assert "status" in names
    assert page.evaluate("document.querySelector('[role=status]').innerText").startswith("r1 answered")


@pytest.mark.parametrize("width", [320, 380, 620, 850])
def test_nothing_is_cut_off_in_a_narrow_window(browser, demo, width):
    page = browser.page(width)
    page.open(demo.url)
    page.until(f"{ANSWERED} === 'r1 answered'")
    page.click("maint", within=levers("r1"))
    page.click("add tea")
    page.until("document.querySelectorAll('#log li').length >= 3")
    wide = """[...document.querySelectorAll('body *')]
        .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
        .map(element => element.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
