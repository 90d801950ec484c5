"""StickyWorkers under real servers with several worker processes: every client finds its own memory again, whoever
accepts its connection.
"""

import json
import os
import signal
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

#: each with three workers; the default number of clients and requests is one that a machine with other work can bear
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
    """Starts a server by its name in SERVERS; `options` are those of StickyWorkers, None leaves it out."""

    def start(name, options=None, without=False, **variables):
        sticky = "null" if without else json.dumps(options or {})
        command = FOUR if name == "four of uvicorn" else SERVERS[name]
        served = serve(*command.split(), variables={"STICKY": sticky, **variables})
        # of all servers the parent ends so; uvicorn's never closes the socket that it listens at
        served.kind = replace(served.kind, peace=0, habits=("ResourceWarning",) if "uvicorn --" in command else ())
        return served

    return start


@pytest.fixture
def pair(serve):
    """Two servers of a worker each, which are siblings by name: so a port says who takes a request."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        sticky = json.dumps({"name": "pair", "directory": f"{folder}/run"})
        yield [serve(*ALONE.split(), variables={"STICKY": sticky}) for _ in range(2)]


class Visitor(threading.Thread):
    """A client with a memory of how often it has been counted; each request over a connection of its own."""

    def __init__(self, served, name: str, requests: int) -> None:
        super().__init__()
        self._client = served.client()
        self._name = name
        self._requests = requests
        self.wrong = 0
        self.seen: list[int | None] = []

    def run(self) -> None:
        for expected in range(1, self._requests + 1):
            answer = self._client.ask(f"/count?client={self._name}")
            told = json.loads(answer.body) if answer.status == 200 else {}
            self.seen.append(told.get("pid"))
            self.wrong += told.get("n") != expected


_names = (f"c{number}" for number in count())


def visited(served, clients: int, requests: int) -> tuple[int, Counter[int | None]]:
    """Of so many new clients, how many answers were wrong, and how many came from which process."""
    visitors = [Visitor(served, next(_names), requests) for _ in range(clients)]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join()
    return sum(each.wrong for each in visitors), Counter(pid for each in visitors for pid in each.seen)


def everybody_is_up(served, until, workers=WORKERS):
    """Wait until all workers answer."""
    pids: set[int] = set()

    def more():
        pids.update(json.loads(served.client().ask("/echo").body)["pid"] for _ in range(5))
        return len(pids) >= workers

    until(more, "all workers answer")


def test_every_client_finds_its_own_count_again_and_without_it_most_do_not(started, until):
    without = started("uvicorn", without=True)
    everybody_is_up(without, until)
    until(lambda: visited(without, 20, 20)[0] > 200, "more than half of the answers are wrong")
    without.stop()
    finds_its_own(started("uvicorn"), until, 20, 20)


@pytest.mark.long
def test_forty_clients_find_their_own_counts_in_fifty_requests_each(started, until):
    finds_its_own(started("four of uvicorn"), until, 40, 50, workers=4)


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "uvicorn"])
def test_every_client_finds_its_own_count_again_under(started, until, name):
    finds_its_own(started(name), until, 12, 12)


def finds_its_own(served, until, clients, requests, workers=WORKERS):
    everybody_is_up(served, until, workers)
    answered: Counter[int | None] = Counter()

    def more():
        wrong, seen = visited(served, clients, requests)
        assert wrong == 0
        answered.update(seen)
        return len(answered) > 1  # who accepts is the kernel's choice, and it may be one for all

    until(more, "more than one worker has clients")


# From here on under uvicorn, and where processes matter under gunicorn: what the workers do is the same everywhere.


@pytest.fixture(params=["uvicorn", "gunicorn asgi"])
def parent(request, started):
    """A server whose parent process looks after its workers."""
    return lambda **options: started(request.param, **options)


def asked(served, client, target: str, **more) -> Any:
    answer = client.ask(target, **more)
    assert answer.status == 200, (target, answer)
    return json.loads(answer.body)


def crowd(served, target: str, size: int = 12) -> list[tuple[Any, Any]]:
    """So many new clients, all at once, so that no worker takes them all: each with what it was told, if anything."""
    told: list[tuple[Any, Any]] = []

    def one():
        client = served.client()
        try:
            told.append((client, asked(served, client, target)))
        except OSError:
            pass  # a worker that ends closes its door without a word

    together = [threading.Thread(target=one) for _ in range(size)]
    for each in together:
        each.start()
    for each in together:
        each.join()
    return told


def homes(served, until) -> dict[int, Any]:
    """A client for each worker, by its process, that is bound to it."""
    found: dict[int, Any] = {}

    def more():
        for client, told in crowd(served, "/echo"):
            found.setdefault(told["pid"], client)
        return len(found) >= WORKERS

    until(more, "a client of each worker")
    return found


def at_rest(served, until) -> None:
    """Wait until no worker is on its way: gunicorn's forget a SIGTERM that comes before they are up."""
    if "gunicorn" in served.command:
        until(
            lambda: served.output.count("Booting worker") == served.output.count("ASGI server listening"),
            "workers that are up",
        )


def test_streams_and_websockets_are_handed_over_as_well(started, until):
    served = started("uvicorn")
    for client in homes(served, until).values():
        name = f"{id(client)}"
        for number in range(6):
            answer = client.ask(f"/stream?client={name}")
            assert answer.body == b"".join(b"data: %d\n\n" % (3 * number + event) for event in (1, 2, 3))
        pid = asked(served, client, f"/count?client={name}")["pid"]
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
    )


def test_a_request_looks_the_same_wherever_it_is_served(started, until):
    served = started("uvicorn")
    (client, *_) = homes(served, until).values()
    plain = {"x-raw": "caf\xe9", "cookie": "theme=dark"}
    seen: dict[int, Any] = {}
    while len(seen) < 20:
        told = asked(served, client, "/echo?a=%41&b", headers=plain)
        told["client"] = told["client"][0]
        told["headers"] = [pair for pair in told["headers"] if pair[0] != "cookie"]
        seen[len(seen)] = told
    assert all(told == seen[0] for told in seen.values())
    assert seen[0]["state"] == {"pid": seen[0]["pid"]}
    assert ["x-raw", "caf\xe9"] in seen[0]["headers"]


def test_only_the_clients_of_a_worker_that_is_killed_are_bound_anew_and_only_once(parent, until):
    served = parent()
    clients = homes(served, until)
    names = {pid: f"of {pid}".replace(" ", "-") for pid in clients}
    for pid, client in clients.items():
        for number in range(1, 4):
            assert asked(served, client, f"/count?client={names[pid]}")["n"] == number
    victim = next(iter(clients))
    os.kill(victim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{victim}").exists(), "its death")
    rebound = 0
    for pid, client in clients.items():
        told = [ask_again(served, client, f"/count?client={names[pid]}") for _ in range(6)]
        if pid == victim:
            assert [each["n"] for each in told] == [1, 2, 3, 4, 5, 6]
            assert [each["reason"] for each in told] == ["other instance", *["server is usable"] * 5]
            rebound += 1
        else:
            assert [each["n"] for each in told] == [4, 5, 6, 7, 8, 9]
    assert rebound == 1
    at_rest(served, until)


def ask_again(served, client, target):
    """Ask until somebody answers: what the kernel had queued at the dead worker's end is cut, and nobody's fault."""
    for _ in range(20):
        try:
            return asked(served, client, target)
        except OSError:
            continue
    raise AssertionError("nobody answers")


def test_what_was_at_the_worker_that_is_killed_ends_in_a_502_and_nothing_else_fails(started, until):
    served = started("uvicorn")

    def answered_for():
        clients = homes(served, until)
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
            lambda: all(asked(served, held, f"/left?client={name}-{n}")["open"] for n in range(8)),
            "all are at the worker",
        )
        os.kill(victim, signal.SIGKILL)
        for each in waiting:
            each.join()
        # those that came in by the victim's own door are cut; those that others had handed to it are answered for
        assert set(results) <= {502, None}
        for pid in others:
            assert asked(served, clients[pid], "/echo")["pid"] == pid
        return 502 in results

    until(answered_for, "one of eight comes in by another's door, as the kernel pleases")


def collect(client, target, method, results) -> None:
    try:
        results.append(client.ask(target, method).status)
    except OSError:  # nothing came
        results.append(None)


class Regular(threading.Thread):
    """A client that keeps asking, a connection for each request, until it is told to stop.

    `told`: what it was told each time, None where the connection was cut, or the status that was not 200.
    """

    def __init__(self, client, name: str, over: threading.Event) -> None:
        super().__init__()
        self._client = client
        self._name = name
        self._over = over
        self.told: list[Any] = []

    def run(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._client.ask(f"/count?client={self._name}")
                self.told.append(json.loads(answer.body) if answer.status == 200 else answer.status)
            except OSError:  # by whoever had accepted it, which was the victim
                self.told.append(None)

    @property
    def begun_anew(self) -> int:
        """How often its count began again."""
        return sum(isinstance(each, dict) and each["n"] == 1 for each in self.told)


def test_a_kill_under_load_moves_only_the_clients_of_the_victim_and_fails_nobody_elses(started, until):
    served = started("uvicorn")
    clients = homes(served, until)
    over = threading.Event()
    regulars = {pid: Regular(client, f"c{pid}", over) for pid, client in clients.items()}
    for each in regulars.values():
        each.start()

    def more(count):
        enough = {pid: len(each.told) + count for pid, each in regulars.items()}
        until(lambda: all(len(each.told) >= enough[pid] for pid, each in regulars.items()), "more answers")

    try:
        more(10)
        victim = next(iter(clients))
        os.kill(victim, signal.SIGKILL)
        more(30)
    finally:
        over.set()
        for each in regulars.values():
            each.join()
    for pid, each in regulars.items():
        statuses = [told for told in each.told if isinstance(told, int)]
        if pid == victim:
            assert each.begun_anew == 2
            assert statuses in ([], [502])  # what was at the victim in that moment
            assert [told["reason"] for told in each.told if isinstance(told, dict)].count("other instance") <= 1
        else:
            assert (each.begun_anew, statuses) == (1, [])
            assert {told["pid"] for told in each.told if isinstance(told, dict)} == {pid}


def test_workers_that_are_replaced_under_load_fail_nobody(started, until):
    """A reload: each worker ends in peace, and another takes its slot."""
    served = started("gunicorn asgi", options={"drain": 5})
    clients = homes(served, until)
    over = threading.Event()
    problems: list[object] = []

    def keep_asking(client, name):
        while not over.is_set():
            try:
                answer = client.ask(f"/count?client={name}")
            except OSError:
                continue  # its own connection was cut: gunicorn closes its door without a word
            if answer.status != 200:
                problems.append(answer)

    together = [
        threading.Thread(target=keep_asking, args=(client, f"r{number}"))
        for number, client in enumerate(clients.values())
    ]
    for each in together:
        each.start()
    try:
        served.process.send_signal(signal.SIGHUP)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in clients), "all old workers are gone")
        again = homes(served, until)
    finally:
        over.set()
        for each in together:
            each.join()
    assert problems == []
    assert not set(again) & set(clients)
    wrong, _ = visited(served, 6, 6)
    assert wrong == 0


def told_to(served, until, number: signal.Signals, times: int) -> None:
    """Tell gunicorn, which hears two signals as one if they come together."""
    served.process.send_signal(number)
    word = number.name.removeprefix("SIG").lower()
    until(lambda: served.output.count(f"Handling signal: {word}") == times, f"{word} is heard")


def test_workers_that_are_added_and_taken_away_take_slots_and_leave_them(started, until):
    served = started("gunicorn asgi")
    first = homes(served, until)
    for times in (1, 2):
        told_to(served, until, signal.SIGTTIN, times)
    seen: set[Any] = set()

    def all_five():
        seen.update(told["server"] for _, told in crowd(served, "/count?client=x"))
        return seen >= {"w4", "w5"}

    until(all_five, "five workers")
    for pid, client in first.items():
        assert asked(served, client, "/echo")["pid"] == pid
    at_rest(served, until)
    for times in (1, 2, 3):
        told_to(served, until, signal.SIGTTOU, times)

    def only_two():
        answered = {told["pid"] for _, told in crowd(served, "/count?client=x")}
        return len(answered) <= 2 and served.output.count("Worker exiting") >= 3

    until(only_two, "two workers")
    wrong, _ = visited(served, 6, 6)
    assert wrong == 0


def test_a_worker_that_has_served_its_requests_gives_its_slot_to_the_next(started, until):
    served = started("gunicorn asgi", GUNICORN_CMD_ARGS="--max-requests 30")
    seen: set[Any] = set()

    def replaced():
        seen.update((told["server"], told["pid"]) for _, told in crowd(served, "/count?client=x"))
        return len({pid for _, pid in seen}) > WORKERS + 1

    until(replaced, "workers that were replaced")
    assert len({server for server, _ in seen}) <= WORKERS + 2  # the next may come while the last is on its way out
    at_rest(served, until)


def test_much_goes_through_a_hand_over_and_little_of_it_stays(pair):
    size = 100_000_000
    one, other = pair
    mark = one.client()
    asked(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    before = [asked(served, served.client(), "/memory") for served in (one, other)]
    connection = there.open(f"/large?size={size}")
    connection.head()
    come = 0
    while piece := connection.receive():
        come += len(piece)
    assert come == size // 65536 * 65536
    told = asked(other, there, "/length", method="POST", body=b"x" * size)
    assert (told["size"], told["pid"]) == (size, before[0]["pid"])
    after = [asked(served, served.client(), "/memory") for served in (one, other)]
    for was, now in zip(before, after, strict=True):
        assert now["pid"] == was["pid"]
        assert now["peak"] - was["rss"] < 20_000_000


@pytest.mark.parametrize("count", [pytest.param(40, id="40"), pytest.param(500, id="500", marks=pytest.mark.long)])
def test_many_websockets_are_open_at_once_far_from_where_they_came_in(pair, count):
    one, other = pair
    mark = one.client()
    pid = asked(one, mark, "/echo")["pid"]
    with ExitStack() as stack:
        ends = [stack.enter_context(websocket(other, f"/talk?client=c{n}", mark)) for n in range(count)]
        for turn in (1, 2):
            for number, end in enumerate(ends):
                end.send(f"{number}")
            for number, end in enumerate(ends):
                assert end.recv() == f"{turn} {pid} {number}"


def test_a_client_that_leaves_is_missed_where_its_request_is(pair, until):
    one, other = pair
    mark = one.client()
    asked(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    connection = there.open("/forever?client=x")
    connection.read_until(b": here\n\n")
    connection.leave()
    until(lambda: asked(one, one.client(), "/left?client=x")["left"], "the app misses its client")


def test_what_an_app_raises_is_a_500_and_is_logged_with_where_it_was(pair):
    one, other = pair
    mark = one.client()
    asked(one, mark, "/echo")
    there = other.client()
    there.jar.update(mark.jar)
    other.kind = replace(other.kind, habits=("Traceback",))
    assert there.ask("/boom").status == 500
    assert "the app is broken" in other.output
    assert "in boom" in other.output
    assert asked(other, there, "/echo")["state"]["pid"] == json.loads(one.client().ask("/memory").body)["pid"]


def test_keys_belong_to_one_worker_whoever_takes_them(started, until):
    served = started("uvicorn", {"key": "/rooms/{name}", "cookie": None})
    everybody_is_up(served, until)
    for room in range(6):
        told = [told for _, told in crowd(served, f"/rooms/{room}")]
        assert sorted(each["n"] for each in told) == list(range(1, len(told) + 1))
        assert len({each["pid"] for each in told}) == 1


def test_sticky_run_is_uvicorn_with_workers_that_stick(served_by_command, until):
    finds_its_own(served_by_command, until, 10, 10)


@pytest.fixture
def served_by_command(serve):
    served = serve("sticky", "run", "--workers", f"{WORKERS}", "workers_asgi:app", variables={"STICKY": "null"})
    served.kind = replace(served.kind, habits=("ResourceWarning",))
    return served
