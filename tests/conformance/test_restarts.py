"""Upstreams that are killed and started again under load: every request is executed at most once, and a GET that
another server can serve gets its response.
"""

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

APPS = Path(__file__).parent / "apps"
HOST = "127.0.0.1"
DEADLINE = 300.0

FACES = {
    "uvicorn": "uvicorn --no-access-log --timeout-keep-alive 75 relay_asgi:app",
    "gunicorn": "gunicorn -k gthread -w 1 --threads 16 --keep-alive 75 relay_wsgi:app",
}
CLIENTS = 8


class OriginProcess:
    """An origin in a process of its own, with a journal that survives it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._journal = folder / f"{name}.journal"
        self._journal.touch()
        with socket.create_server((HOST, 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        command = [sys.executable, str(APPS / "journal_origin.py"), f"{self.port}", str(self._journal), self.name]
        self._process = subprocess.Popen(command)

    def listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, f"{self.name} did not start"
        with socket.socket() as end:
            return end.connect_ex((HOST, self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def executed(self) -> list[str]:
        return self._journal.read_text().splitlines()


@pytest.fixture
def upstreams(tmp_path, until):
    both = [OriginProcess("s1", tmp_path), OriginProcess("s2", tmp_path)]
    for upstream in both:
        upstream.start()
    for upstream in both:
        until(upstream.listens, f"{upstream.name} listens")
    yield both
    for upstream in both:
        upstream.kill()


def executed(upstreams) -> Counter[str]:
    return Counter(line for upstream in upstreams for line in upstream.executed)


@pytest.fixture(params=list(FACES.values()), ids=list(FACES))
def relay(request, serve, upstreams) -> Callable[..., object]:
    """Start a gateway to the upstreams; `options` are the backend's."""
    servers = {upstream.name: upstream.url for upstream in upstreams}

    def started(**options: object):
        routes = {"/far": {"servers": servers, **options}}
        served = serve(*request.param.split(), variables={"RELAY": json.dumps(routes)})
        # an incomplete response ends in an exception, which servers print
        served.kind = replace(served.kind, always_prints=(*served.kind.always_prints, "Traceback"))
        return served

    return started


class PersistentClient(threading.Thread):
    """A client that keeps its connection and sends GET and POST in turn until it is stopped.

    `heads`: the status of each request by its name, None where there was none; `whole`: the requests with a complete
    response.
    """

    def __init__(self, port: int, number: int, over: threading.Event) -> None:
        super().__init__()
        self._port = port
        self._rng = random.Random(number)
        self._number = number
        self._over = over
        self.heads: dict[str, int | None] = {}
        self.whole: set[str] = set()

    def run(self) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=DEADLINE)
        with closing(connection):
            while not self._over.is_set():
                method = self._rng.choice(("GET", "POST"))
                target = f"/far/{self._number}/{len(self.heads)}"
                name = f"{method} {target}"
                self.heads[name] = None
                try:
                    connection.request(method, target, body=b"x" * 100 if method == "POST" else None)
                    response = connection.getresponse()
                    self.heads[name] = response.status
                    if response.read().endswith(target.encode()):
                        self.whole.add(name)
                except (OSError, http.client.HTTPException):
                    connection.close()  # the next request opens a new one


@pytest.mark.parametrize(
    "kills", [pytest.param(6, id="6 kills"), pytest.param(100, id="100 kills", marks=pytest.mark.long)]
)
def test_kills_under_load_execute_no_post_twice_and_fail_no_get(relay, upstreams, until, kills):
    served = relay(retry_on="conn-failure empty-response")
    over = threading.Event()
    visitors = [PersistentClient(served.port, number, over) for number in range(CLIENTS)]

    def requests_sent() -> int:
        return sum(len(visitor.heads) for visitor in visitors)

    def more(count: int) -> Callable[[], bool]:
        enough = requests_sent() + count
        return lambda: requests_sent() >= enough or not any(visitor.is_alive() for visitor in visitors)

    for visitor in visitors:
        visitor.start()
    try:
        for kill in range(kills):
            victim = upstreams[kill % 2]
            until(more(50), "requests while both live")
            victim.kill()
            until(more(50), "requests while one lives")
            victim.start()
            until(victim.listens, f"{victim.name} listens again")
        until(more(50), "requests while both live")
    finally:
        over.set()
        for visitor in visitors:
            visitor.join()

    heads: dict[str, int | None] = {}
    for visitor in visitors:
        heads |= visitor.heads
    times = executed(upstreams)
    gets = {name: status for name, status in heads.items() if name.startswith("GET")}
    posts = {name: status for name, status in heads.items() if name.startswith("POST")}
    assert {name: status for name, status in gets.items() if status != 200} == {}
    assert {name: times[name] for name in posts if times[name] > 1} == {}
    assert {name for name, status in posts.items() if status == 200 and times[name] != 1} == set()
    assert set(posts.values()) <= {200, 502}
    whole = set().union(*(visitor.whole for visitor in visitors))
    assert len(whole) > 0.9 * len(heads)


def request_status(served, method: str, target: str) -> int:
    """Send a request on a connection of its own and return the status of the response."""
    with closing(http.client.HTTPConnection(HOST, served.port, timeout=DEADLINE)) as connection:
        connection.request(method, target, body=b"x" if method == "POST" else None)
        response = connection.getresponse()
        response.read()
        return response.status


@pytest.mark.parametrize("method, times", [("POST", 1), ("GET", 2)])
def test_request_in_execution_is_replayed_only_if_that_is_safe(relay, upstreams, until, method, times):
    served = relay(retry_on="conn-failure empty-response", balance="first")
    statuses: list[int] = []
    client = threading.Thread(target=lambda: statuses.append(request_status(served, method, "/far/hold")))
    client.start()
    until(lambda: upstreams[0].executed, "s1 at work")
    upstreams[0].kill()
    if times == 2:
        until(lambda: upstreams[1].executed, "s2 at work")
        upstreams[1].kill()
    client.join()
    assert statuses in ([502], [503])  # 503: the last server that was tried has refused
    assert executed(upstreams) == {f"{method} /far/hold": times}


def test_connections_from_before_a_restart_fail_no_request(relay, upstreams, until):
    served = relay(retry_on="none", retries=0, balance="first")
    together = [
        threading.Thread(target=request_status, args=(served, "GET", f"/far/{number}")) for number in range(CLIENTS)
    ]
    for each in together:
        each.start()
    for each in together:
        each.join()
    first = upstreams[0]
    first.kill()
    first.start()
    until(first.listens, "s1 listens again")
    for number in range(CLIENTS):
        assert request_status(served, "POST", f"/far/after/{number}") == 200
        assert request_status(served, "GET", f"/far/after/{number}") == 200
    times = executed(upstreams)
    assert {times[f"{method} /far/after/{number}"] for method in ("GET", "POST") for number in range(CLIENTS)} == {1}
