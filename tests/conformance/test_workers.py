"""StickyWorkers under real ASGI servers with several worker processes: every client is served by the process that has
its session, whichever process accepts its connection.
"""

import json
import os
import signal
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

#: Each has three workers. The default numbers of clients and requests are small enough for a busy machine.
SERVERS = {
    "uvicorn": "uvicorn --workers 3 --no-access-log workers_asgi:app",
    "gunicorn uvicorn": "gunicorn -k uvicorn_worker.UvicornWorker -w 3 workers_asgi:app",
    "gunicorn asgi": "gunicorn -k asgi -w 3 workers_asgi:app",
    "hypercorn": "hypercorn --workers 3 workers_asgi:app",
    "granian": "granian --workers 3 workers_asgi:app",
}
FOUR = "uvicorn --workers 4 --no-access-log workers_asgi:app"
ALONE = "uvicorn --no-access-log workers_asgi:app"
WORKERS = 3
DEADLINE = 300.0


@pytest.fixture
def started(serve):
    """Starts a server by its name in SERVERS. `options`: those of StickyWorkers. `without`: leave StickyWorkers out."""

    def start(name, options=None, without=False, **variables):
        sticky = "null" if without else json.dumps(options or {})
        command = FOUR if name == "four of uvicorn" else SERVERS[name]
        served = serve(*command.split(), variables={"STICKY": sticky, **variables})
        # the parent process of each server exits with 0; uvicorn's never closes the socket that it listens at
        served.kind = replace(
            served.kind, exit_code=0, always_prints=("ResourceWarning",) if "uvicorn --" in command else ()
        )
        return served

    return start


@pytest.fixture
def pair_of(serve):
    """Starts two servers with one worker each, which are peers by name: so the port decides which worker accepts a
    request.
    """
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        sticky = json.dumps({"name": "pair", "directory": f"{folder}/run"})
        yield lambda command=ALONE: [serve(*command.split(), variables={"STICKY": sticky}) for _ in range(2)]


@pytest.fixture
def pair(pair_of):
    return pair_of()


class CountingClient(threading.Thread):
    """A client that checks that the app counts all its requests; each is sent over a new connection."""

    def __init__(self, served, name: str, requests: int) -> None:
        super().__init__()
        self._client = served.client()
        self._name = name
        self._requests = requests
        self.wrong = 0
        self.seen: list[int | None] = []

    def run(self) -> None:
        for expected in range(1, self._requests + 1):
            response = self._client.request(f"/count?client={self._name}")
            content = json.loads(response.body) if response.status == 200 else {}
            self.seen.append(content.get("pid"))
            self.wrong += content.get("n") != expected


_names = (f"c{number}" for number in count())


def count_wrong(served, clients: int, requests: int) -> tuple[int, Counter[int | None]]:
    """Return how many responses to so many new clients were wrong, and how many came from each process."""
    running = [CountingClient(served, next(_names), requests) for _ in range(clients)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    return sum(each.wrong for each in running), Counter(pid for each in running for pid in each.seen)


def wait_for_all_workers(served, until, workers=WORKERS):
    """Wait until all workers respond."""
    pids: set[int] = set()

    def more():
        pids.update(json.loads(served.client().request("/echo").body)["pid"] for _ in range(5))
        return len(pids) >= workers

    until(more, "responses from all workers")


def test_all_requests_of_a_client_are_counted_by_one_worker_and_without_stickiness_most_are_not(started, until):
    without = started("uvicorn", without=True)
    wait_for_all_workers(without, until)
    until(lambda: count_wrong(without, 20, 20)[0] > 200, "more than half of the responses are wrong")
    without.stop()
    assert_sticky(started("uvicorn"), until, 20, 20)


@pytest.mark.long
def test_fifty_requests_of_each_of_forty_clients_are_counted_by_one_worker(started, until):
    assert_sticky(started("four of uvicorn"), until, 40, 50, workers=4)


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "uvicorn"])
def test_all_requests_of_a_client_are_counted_by_one_worker_under(started, until, name):
    assert_sticky(started(name), until, 12, 12)


def assert_sticky(served, until, clients, requests, workers=WORKERS):
    wait_for_all_workers(served, until, workers)
    responses: Counter[int | None] = Counter()

    def more():
        wrong, seen = count_wrong(served, clients, requests)
        assert wrong == 0
        responses.update(seen)
        return len(responses) > 1  # the kernel chooses the worker that accepts, and may choose one for all

    until(more, "clients at more than one worker")
    assert "middleware around" not in served.output  # nothing that the server sets is taken for a middleware's


# From here on under uvicorn, and under gunicorn where its processes matter: the workers do the same under all servers.


@pytest.fixture(params=["uvicorn", "gunicorn asgi"])
def parent(request, started):
    """A server with a parent process that restarts its workers."""
    return lambda **options: started(request.param, **options)


def get_json(served, client, target: str, **more) -> Any:
    response = client.request(target, **more)
    assert response.status == 200, (target, response)
    return json.loads(response.body)


def request_from_new_clients(served, target: str, size: int = 12) -> list[tuple[Any, Any]]:
    """Send requests of so many new clients at the same time, so that no worker accepts them all; return each client
    with its response, if it got one.
    """
    contents: list[tuple[Any, Any]] = []

    def one():
        client = served.client()
        try:
            contents.append((client, get_json(served, client, target)))
        except OSError:
            pass  # a worker that stops closes its listener, and the connections in its backlog are reset

    together = [threading.Thread(target=one) for _ in range(size)]
    for each in together:
        each.start()
    for each in together:
        each.join()
    return contents


def client_of_each_worker(served, until) -> dict[int, Any]:
    """Return a client for each worker, by the process id of the worker to which the client is bound."""
    found: dict[int, Any] = {}

    def more():
        for client, content in request_from_new_clients(served, "/echo"):
            found.setdefault(content["pid"], client)
        return len(found) >= WORKERS

    until(more, "a client of each worker")
    return found


def wait_for_booted_workers(served, until, killed: int = 0) -> None:
    """Wait until no worker is starting: those of gunicorn ignore a SIGTERM that comes before they are up. `killed`: how
    many were killed, each of which gunicorn replaces.
    """

    def booted():
        begun = served.output.count("Booting worker")
        return begun >= WORKERS + killed and begun == served.output.count("ASGI server listening")

    if "gunicorn" in served.command:
        until(booted, "workers that have started")


def test_streams_and_websockets_are_forwarded(started, until):
    served = started("uvicorn")
    for client in client_of_each_worker(served, until).values():
        name = f"{id(client)}"
        for number in range(6):
            response = client.request(f"/stream?client={name}")
            assert response.body == b"".join(b"data: %d\n\n" % (3 * number + event) for event in (1, 2, 3))
        pid = get_json(served, client, f"/count?client={name}")["pid"]
        for number in range(6):
            with websocket(served, f"/talk?client={name} talk", client) as end:
                end.send("hello")
                assert end.recv() == f"{number + 1} {pid} hello"


def websocket(served, target, client=None):
    cookies = "; ".join(f"{name}={value}" for (name, _), value in client.jar.items()) if client is not None else ""
    return connect(
        f"ws://127.0.0.1:{served.port}{target.replace(' ', '%20')}",
        additional_headers={"Cookie": cookies} if cookies else None,
        compression=None,
        close_timeout=DEADLINE,
        max_size=None,
        ping_interval=None,
    )


def test_request_looks_the_same_in_whichever_worker_it_was_accepted(started, until):
    served = started("uvicorn")
    (client, *_) = client_of_each_worker(served, until).values()
    plain = {"x-raw": "caf\xe9", "cookie": "theme=dark"}
    seen: dict[int, Any] = {}
    while len(seen) < 20:
        content = get_json(served, client, "/echo?a=%41&b", headers=plain)
        content["client"] = content["client"][0]
        content["headers"] = [pair for pair in content["headers"] if pair[0] != "cookie"]
        seen[len(seen)] = content
    assert all(content == seen[0] for content in seen.values())
    assert seen[0]["state"] == {"pid": seen[0]["pid"]}
    assert ["x-raw", "caf\xe9"] in seen[0]["headers"]


def test_only_clients_of_a_killed_worker_are_rebound_and_only_once(parent, until):
    served = parent()
    clients = client_of_each_worker(served, until)
    names = {pid: f"of {pid}".replace(" ", "-") for pid in clients}
    for pid, client in clients.items():
        for number in range(1, 4):
            assert get_json(served, client, f"/count?client={names[pid]}")["n"] == number
    victim = next(iter(clients))
    os.kill(victim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{victim}").exists(), "the end of the worker")
    rebound = 0
    for pid, client in clients.items():
        contents = [ask_again(served, client, f"/count?client={names[pid]}") for _ in range(6)]
        if pid == victim:
            assert [each["n"] for each in contents] == [1, 2, 3, 4, 5, 6]
            assert [each["reason"] for each in contents] == ["other instance", *["server is usable"] * 5]
            rebound += 1
        else:
            assert [each["n"] for each in contents] == [4, 5, 6, 7, 8, 9]
    assert rebound == 1
    wait_for_booted_workers(served, until, killed=1)


def ask_again(served, client, target):
    """Retry until there is a response: connections in the backlog of the killed worker are reset by the kernel."""
    for _ in range(20):
        try:
            return get_json(served, client, target)
        except OSError:
            continue
    raise AssertionError("no response")


def test_requests_at_a_killed_worker_end_in_a_502_and_no_others_fail(started, until):
    served = started("uvicorn")

    def some_were_forwarded():
        clients = client_of_each_worker(served, until)
        victim, *others = clients
        held = clients[victim]
        name = f"h-{victim}"
        results: list[object] = []
        waiting = [
            threading.Thread(target=collect, args=(held, f"/hold?client={name}-{n}", "POST", results)) for n in range(8)
        ]
        for each in waiting:
            each.start()
        until(
            lambda: all(get_json(served, held, f"/left?client={name}-{n}")["open"] for n in range(8)),
            "all requests are at the worker",
        )
        os.kill(victim, signal.SIGKILL)
        for each in waiting:
            each.join()
        # connections that the victim had accepted are reset; for requests that peers had forwarded to it, they respond
        assert set(results) <= {502, None}
        for pid in others:
            assert get_json(served, clients[pid], "/echo")["pid"] == pid
        return 502 in results

    until(some_were_forwarded, "a forwarded request among eight: the kernel chooses which worker accepts")


def collect(client, target, method, results) -> None:
    try:
        results.append(client.request(target, method).status)
    except OSError:  # the connection was reset
        results.append(None)


class RepeatingClient(threading.Thread):
    """A client that sends requests, each over a new connection, until `over` is set.

    `results`: the JSON of each response, its status where that was not 200, None where the connection was reset.
    """

    def __init__(self, client, name: str, over: threading.Event) -> None:
        super().__init__()
        self._client = client
        self._name = name
        self._over = over
        self.results: list[Any] = []

    def run(self) -> None:
        while not self._over.is_set():
            try:
                response = self._client.request(f"/count?client={self._name}")
                self.results.append(json.loads(response.body) if response.status == 200 else response.status)
            except OSError:  # the victim had accepted the connection
                self.results.append(None)

    @property
    def restarts(self) -> int:
        """How often its count has started."""
        return sum(isinstance(each, dict) and each["n"] == 1 for each in self.results)


def test_kill_under_load_moves_only_the_clients_of_the_victim_and_fails_no_others(started, until):
    served = started("uvicorn")
    clients = client_of_each_worker(served, until)
    over = threading.Event()
    repeating = {pid: RepeatingClient(client, f"c{pid}", over) for pid, client in clients.items()}
    for each in repeating.values():
        each.start()

    def more(count):
        enough = {pid: len(each.results) + count for pid, each in repeating.items()}
        until(lambda: all(len(each.results) >= enough[pid] for pid, each in repeating.items()), "more responses")

    try:
        more(10)
        victim = next(iter(clients))
        os.kill(victim, signal.SIGKILL)
        more(30)
    finally:
        over.set()
        for each in repeating.values():
            each.join()
    for pid, each in repeating.items():
        statuses = [content for content in each.results if isinstance(content, int)]
        if pid == victim:
            assert each.restarts == 2
            assert statuses in ([], [502])  # the request that was at the victim in this moment
            assert [content["reason"] for content in each.results if isinstance(content, dict)].count(
                "other instance"
            ) <= 1
        else:
            assert (each.restarts, statuses) == (1, [])
            assert {content["pid"] for content in each.results if isinstance(content, dict)} == {pid}


def test_workers_that_are_replaced_under_load_fail_no_request(started, until):
    """A reload: each worker stops gracefully, and another takes its worker slot."""
    served = started("gunicorn asgi", options={"drain": 5})
    clients = client_of_each_worker(served, until)
    over = threading.Event()
    problems: list[object] = []

    def keep_requesting(client, name):
        while not over.is_set():
            try:
                response = client.request(f"/count?client={name}")
            except OSError:
                continue  # gunicorn closes its listener, and resets the connections in its backlog
            if response.status != 200:
                problems.append(response)

    together = [
        threading.Thread(target=keep_requesting, args=(client, f"r{number}"))
        for number, client in enumerate(clients.values())
    ]
    for each in together:
        each.start()
    try:
        served.process.send_signal(signal.SIGHUP)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in clients), "the end of all old workers")
        again = client_of_each_worker(served, until)
    finally:
        over.set()
        for each in together:
            each.join()
    assert problems == []
    assert not set(again) & set(clients)
    wrong, _ = count_wrong(served, 6, 6)
    assert wrong == 0


def signal_gunicorn(served, until, number: signal.Signals, times: int) -> None:
    """Send a signal and wait until gunicorn handles it: two equal signals at the same time are one."""
    served.process.send_signal(number)
    word = number.name.removeprefix("SIG").lower()
    until(lambda: served.output.count(f"Handling signal: {word}") == times, f"{word} is handled")


def test_workers_that_are_added_and_removed_take_worker_slots_and_release_them(started, until):
    served = started("gunicorn asgi")
    first = client_of_each_worker(served, until)
    for times in (1, 2):
        signal_gunicorn(served, until, signal.SIGTTIN, times)
    seen: set[Any] = set()

    def all_five():
        seen.update(content["server"] for _, content in request_from_new_clients(served, "/count?client=x"))
        return seen >= {"w4", "w5"}

    until(all_five, "five workers")
    for pid, client in first.items():
        assert get_json(served, client, "/echo")["pid"] == pid
    wait_for_booted_workers(served, until)
    for times in (1, 2, 3):
        signal_gunicorn(served, until, signal.SIGTTOU, times)

    def only_two():
        responses = {content["pid"] for _, content in request_from_new_clients(served, "/count?client=x")}
        return len(responses) <= 2 and served.output.count("Worker exiting") >= 3

    until(only_two, "two workers")
    wrong, _ = count_wrong(served, 6, 6)
    assert wrong == 0


def test_worker_that_reaches_max_requests_leaves_its_worker_slot_to_the_next(started, until):
    served = started("gunicorn asgi", GUNICORN_CMD_ARGS="--max-requests 30")
    seen: set[Any] = set()

    def replaced():
        seen.update(
            (content["server"], content["pid"]) for _, content in request_from_new_clients(served, "/count?client=x")
        )
        return len({pid for _, pid in seen}) > WORKERS + 1

    until(replaced, "replaced workers")
    # a worker may start before the one that it replaces has stopped
    assert len({server for server, _ in seen}) <= WORKERS + 2
    wait_for_booted_workers(served, until)


def test_large_bodies_are_forwarded_in_little_memory(pair):
    size = 100_000_000
    one, other = pair
    mark = one.client()
    get_json(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    before = [get_json(served, served.client(), "/memory") for served in (one, other)]
    connection = there.open(f"/large?size={size}")
    connection.head()
    received = 0
    while piece := connection.receive():
        received += len(piece)
    assert received == size // 65536 * 65536
    content = get_json(other, there, "/length", method="POST", body=b"x" * size)
    assert (content["size"], content["pid"]) == (size, before[0]["pid"])
    after = [get_json(served, served.client(), "/memory") for served in (one, other)]
    for was, now in zip(before, after, strict=True):
        assert now["pid"] == was["pid"]
        assert now["peak"] - was["rss"] < 20_000_000


@pytest.mark.parametrize("count", [pytest.param(40, id="40"), pytest.param(500, id="500", marks=pytest.mark.long)])
def test_many_forwarded_websockets_are_open_at_the_same_time(pair, count):
    one, other = pair
    mark = one.client()
    pid = get_json(one, mark, "/echo")["pid"]
    with ExitStack() as stack:
        ends = [stack.enter_context(websocket(other, f"/talk?client=c{n}", mark)) for n in range(count)]
        for turn in (1, 2):
            for number, end in enumerate(ends):
                end.send(f"{number}")
            for number, end in enumerate(ends):
                assert end.recv() == f"{turn} {pid} {number}"


def test_websocket_message_that_the_server_accepts_is_forwarded_however_long_it_is(pair_of):
    one, other = pair_of(ALONE.replace("uvicorn", "uvicorn --ws-max-size 80000000"))
    mark = one.client()
    pid = get_json(one, mark, "/echo")["pid"]
    with websocket(other, "/talk?client=long", mark) as end:
        for turn in (1, 2):
            end.send("y" * 35_000_000)
            received = end.recv()
            head = f"{turn} {pid} "
            assert (received[: len(head)], len(received)) == (head, len(head) + 35_000_000)


def test_disconnect_of_a_client_reaches_the_worker_that_serves_it(pair, until):
    one, other = pair
    mark = one.client()
    get_json(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    connection = there.open("/forever?client=x")
    connection.read_until(b": here\n\n")
    connection.abort()
    until(lambda: get_json(one, one.client(), "/left?client=x")["left"], "the app sees the disconnect")


def test_clients_that_give_up_while_their_worker_is_stopped_leave_no_descriptor_in_another(pair, until):
    one, other = pair
    mark = one.client()
    get_json(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    get_json(other, there, "/echo")  # the connection that stays
    folder = Path(f"/proc/{other.process.pid}/fd")
    before = len(list(folder.iterdir()))
    one.process.send_signal(signal.SIGSTOP)
    try:
        clients = [there.open("/length", "POST", body=b"x" * 10) for _ in range(20)]
        until(lambda: len(list(folder.iterdir())) >= before + 2 * 20 - 2, "the requests wait for the worker")
        for each in clients:
            each.abort()
        until(lambda: len(list(folder.iterdir())) <= before, "the descriptors are closed")
    finally:
        one.process.send_signal(signal.SIGCONT)
    assert get_json(other, there, "/echo")["pid"] == one.process.pid


def test_exception_in_the_app_of_a_peer_is_a_500_and_is_logged_with_its_traceback(pair):
    one, other = pair
    mark = one.client()
    get_json(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    other.kind = replace(other.kind, always_prints=("Traceback",))
    assert there.request("/boom").status == 500
    assert "the app is broken" in other.output
    assert "in boom" in other.output
    assert get_json(other, there, "/echo")["state"]["pid"] == json.loads(one.client().request("/memory").body)["pid"]


def test_what_middleware_around_it_adds_is_missed_in_forwarded_requests_and_named_once(serve):
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        sticky = json.dumps({"name": "pair", "directory": f"{folder}/run"})
        command = ALONE.replace("workers_asgi", "workers_around_asgi").split()
        one, other = (serve(*command, variables={"STICKY": sticky}) for _ in range(2))
        mark = one.client()
        assert get_json(one, mark, "/seen") == {"session": True, "app": True}
        there = other.client()
        there.jar.update(mark.jar)
        for _ in range(2):
            assert get_json(other, there, "/seen") == {"session": False, "app": True}
        assert other.output.count("has put session into the scope") == 1
        assert other.output.count("middleware around") == 1


def test_key_has_one_worker_whichever_accepts_its_requests(started, until):
    served = started("uvicorn", {"key": "/rooms/{name}", "cookie": None})
    wait_for_all_workers(served, until)
    for room in range(6):
        contents = [content for _, content in request_from_new_clients(served, f"/rooms/{room}")]
        assert sorted(each["n"] for each in contents) == list(range(1, len(contents) + 1))
        assert len({each["pid"] for each in contents}) == 1


def test_sticky_run_starts_uvicorn_with_sticky_workers(served_by_command, until):
    assert_sticky(served_by_command, until, 10, 10)


@pytest.fixture
def served_by_command(serve):
    served = serve("sticky", "run", "--workers", f"{WORKERS}", "workers_asgi:app", variables={"STICKY": "null"})
    served.kind = replace(served.kind, always_prints=("ResourceWarning",))
    return served


def test_orderly_end_of_all_workers_logs_nothing_and_the_end_of_a_killed_one_is_logged(parent, until):
    served = parent()
    clients = client_of_each_worker(served, until)

    def request_until_the_end(client):
        try:
            while True:
                client.request("/echo")
        except (OSError, HTTPException):
            pass  # the worker that accepts has ended

    loads = [threading.Thread(target=request_until_the_end, args=(client,)) for client in clients.values()]
    for load in loads:
        load.start()
    served.stop()
    for load in loads:
        load.join()
    assert "Server workers/" not in served.output

    served = parent()
    clients = client_of_each_worker(served, until)
    victim = next(iter(clients))
    os.kill(victim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{victim}").exists(), "the end of the worker")
    ask_again(served, clients[victim], "/echo")
    until(lambda: "its worker has ended without notice" in served.output, "a line about the killed worker")
    wait_for_booted_workers(served, until, killed=1)
