"""StickyWorkers under WSGI servers with several worker processes: every client finds its own memory again, whoever
accepts its connection.
"""

import json
import os
import signal
import tempfile
import threading
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import socketio  # type: ignore[import-untyped]
from requests import Session

#: With so few connections each, one worker alone can't take all of ours.
GTHREAD = "gunicorn -k gthread --threads 4 --worker-connections 5 -w 3"

#: each with three workers, and how many requests the app sees at once in each
SERVERS = {
    "sync": ("gunicorn -w 3 workers_wsgi:app", 1),
    "sync, preloaded": ("gunicorn -w 3 --preload workers_wsgi:app", 1),
    "gthread": (f"{GTHREAD} workers_wsgi:app", 4),
    "gthread, preloaded": (f"{GTHREAD} --preload workers_wsgi:app", 4),
    "granian": ("granian-wsgi --workers 3 --blocking-threads 4 workers_wsgi:app", 1000),
}
WORKERS = 3
DEADLINE = 300.0
HOST = "127.0.0.1"


@pytest.fixture
def started(serve):
    """Starts a server by its name in SERVERS, or by its command; `options` are those of StickyWorkers, None leaves it
    out.
    """

    def start(name, options=None, without=False, **variables):
        sticky = "null" if without else json.dumps(options or {})
        command = SERVERS[name][0] if name in SERVERS else name
        served = serve(*command.split(), variables={"STICKY": sticky, **variables})
        if "gthread" not in command:  # a sync worker never closes the socket that it listens at
            served.kind = replace(served.kind, habits=("ResourceWarning",))
        return served

    return start


@pytest.fixture
def directory():
    """Where workers find each other: pytest's own are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


def asked(client, target, method="GET", **more):
    answer = client.ask(target, method, **more)
    assert answer.status == 200, (target, answer)
    return json.loads(answer.body)


class Visitor(threading.Thread):
    """A client with a memory of how often it has been counted; each request over a connection of its own."""

    def __init__(self, client, name, requests):
        super().__init__()
        self._client = client
        self._name = name
        self._requests = requests
        self.wrong = 0
        self.seen = []

    def run(self):
        for expected in range(1, self._requests + 1):
            answer = self._client.ask(f"/count?client={self._name}")
            told = json.loads(answer.body) if answer.status == 200 else {}
            self.seen.append(told.get("pid"))
            self.wrong += told.get("n") != expected


def together(threads):
    for each in threads:
        each.start()
    for each in threads:
        each.join()


_names = (f"c{number}" for number in count())


def visited(clients, requests):
    """How many answers were wrong, and how many came from which process. Nobody has counted these visitors before."""
    visitors = [Visitor(client, next(_names), requests) for client in clients]
    together(visitors)
    return sum(each.wrong for each in visitors), Counter(pid for each in visitors for pid in each.seen)


def children(served):
    """The processes that a server has started."""
    return [
        int(pid) for pid in Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    ]


@contextmanager
def alone(served, pid):
    """Only this worker of gunicorn's accepts anything."""
    others = [each for each in children(served) if each != pid]
    for each in others:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in others:
            os.kill(each, signal.SIGCONT)


def homes(served, until, workers=WORKERS):
    """A client for each worker, by its process, that is bound to it."""
    found: dict[Any, Any] = {}

    def bind(client):
        found.setdefault(asked(client, "/left")["pid"], client)

    def more():
        if served.kind.module != "gunicorn":
            # several at once, so that no worker takes them all
            together([threading.Thread(target=bind, args=(served.client(),)) for _ in range(8)])
        elif len(children(served)) >= workers:
            for pid in children(served):
                with alone(served, pid):
                    bind(served.client())
        return len(found) >= workers

    until(more, "a client of each worker")
    return found


#: where no more is to be seen than under the others
LONG = ("sync, preloaded", "gthread")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else (), id=name) for name in SERVERS]
)
def test_every_client_finds_its_own_count_again_and_without_it_most_do_not(started, until, name):
    without = started(name, without=True)
    homes(without, until)
    until(
        lambda: visited([without.client() for _ in range(21)], 20)[0] > 210, "more than half of the answers are wrong"
    )
    without.stop()
    served = started(name)
    clients = homes(served, until)
    wrong, answered = visited([replace(client, jar={**client.jar}) for client in clients.values()] * 7, 20)
    assert wrong == 0
    assert answered == dict.fromkeys(clients, 140)
    # at home or handed over, the app is never asked for more at once than its server would have
    assert all(asked(client, "/memory")["most"] <= SERVERS[name][1] for client in clients.values())


@pytest.mark.parametrize("name", ["sync, preloaded", "gthread, preloaded"])
def test_streams_and_bodies_are_handed_over_as_they_come(started, until, name):
    served = started(name)
    for pid, client in homes(served, until).items():
        for number in range(6):
            answer = client.ask(f"/stream?client=s{pid}")
            assert answer.body == b"".join(b"data: %d\n\n" % (3 * number + event) for event in (1, 2, 3))
        for _ in range(6):
            assert asked(client, "/lines", "POST", body=b"one\ntwo")["lines"] == ["one\n", "two"]


def test_a_request_looks_the_same_wherever_it_is_served(started, until):
    served = started("gthread, preloaded")
    (client, *_) = homes(served, until).values()
    seen: list[Any] = []
    while len(seen) < 20:
        told = asked(client, "/echo/%41?a=%41&b", "POST", headers={"X-Raw": "caf\xe9"}, body=b"a body")
        del told["environ"]["REMOTE_PORT"]
        seen.append(told)
    assert all(told == seen[0] for told in seen)
    assert seen[0]["body"] == "a body"
    assert seen[0]["environ"]["HTTP_X_RAW"] == "caf\xe9"


@pytest.mark.parametrize(
    "size", [pytest.param(24_000_000, id="24 MB"), pytest.param(100_000_000, id="100 MB", marks=pytest.mark.long)]
)
def test_what_is_large_goes_through_in_little_memory(started, until, size):
    served = started("gthread, preloaded")
    clients = homes(served, until)
    size = size // 65536 * 65536
    body = b"x" * size
    for client in clients.values():  # everybody has handed over before
        for _ in range(6):
            assert asked(client, "/length", "POST", body=b"x" * 300_000)["size"] == 300_000
    before = {pid: asked(client, "/memory")["peak"] for pid, client in clients.items()}
    came = sent = 0
    while came < WORKERS or sent < WORKERS:
        for pid, client in clients.items():
            told = asked(client, "/length", "POST", body=body)
            assert (told["pid"], told["size"]) == (pid, size)
            came += told["away"]
            answer = client.ask(f"/large?size={size}")
            assert len(answer.body) == size
            sent += answer.values("x-away") == ["1"]
    after = {pid: asked(client, "/memory")["peak"] for pid, client in clients.items()}
    assert {pid: after[pid] - before[pid] for pid in after if after[pid] - before[pid] > 20_000_000} == {}


def test_the_app_hears_of_clients_that_leave(started, until):
    served = started("gthread, preloaded")
    (client, *_) = homes(served, until).values()
    for name in ("forever", "hold"):
        number = 0
        away = False
        while not away:  # what waits without a word at home hears nothing from gunicorn itself
            number += 1
            told = f"/left?client={name}-{number}"
            with closing(client.open(f"/{name}?client={name}-{number}")):
                until(lambda told=told: asked(client, told)["open"], "it is there")
                away = name == "forever" or asked(client, told)["away"]
            if away:
                until(lambda told=told: asked(client, told)["left"], "it has left")
            else:
                client.ask(f"/release?client={name}-{number}")


# -- the life of workers


def test_only_the_clients_of_a_worker_that_is_killed_are_bound_anew_and_only_once(started, until):
    served = started("gthread, preloaded")
    clients = homes(served, until)
    victim = next(iter(clients))
    over = threading.Event()
    failed: list[Any] = []
    told: dict[Any, list[Any]] = {pid: [] for pid in clients}
    cut = dict.fromkeys(clients, 0)
    counted = {pid: threading.Event() for pid in clients}

    def keep_asking(pid, client):
        while not over.is_set():
            try:
                answer = client.ask(f"/count?client=of-{pid}")
            except OSError:
                cut[pid] += 1  # the victim had accepted it: nobody else's fault
                continue
            if answer.status == 200:
                told[pid].append(json.loads(answer.body))
            else:
                failed.append((pid, answer.status))
            if len(told[pid]) > 20:
                counted[pid].set()

    threads = [threading.Thread(target=keep_asking, args=each) for each in clients.items()]
    for each in threads:
        each.start()
    try:
        assert all(each.wait(DEADLINE) for each in counted.values())
        os.kill(victim, signal.SIGKILL)
        lengths = {pid: len(seen) for pid, seen in told.items()}
        until(lambda: all(len(told[pid]) > lengths[pid] + 20 for pid in told), "they go on")
    finally:
        over.set()
        for each in threads:
            each.join()
    assert {status for _, status in failed} <= {502}
    assert {pid for pid, _ in failed} <= {victim}  # what was on its way at the victim itself
    for pid, seen in told.items():
        numbers = [each["n"] for each in seen]
        again = [index for index, each in enumerate(seen) if each["reason"] == "other instance"]
        if pid != victim:
            assert numbers == sorted(set(numbers))
            assert numbers[-1] - len(numbers) <= cut[pid]  # its own worker counted what the victim could not tell
            assert again == []
        else:
            (moment,) = again
            assert numbers[moment:] == list(range(1, len(numbers) - moment + 1))


def test_a_child_that_a_killed_worker_leaves_behind_keeps_nothing_of_it(started, until):
    served = started("gthread, preloaded")
    clients = homes(served, until)
    victim, client = next(iter(clients.items()))
    assert asked(client, "/fork")["pid"] == victim
    os.kill(victim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{victim}").exists(), "its death")
    for _ in range(WORKERS):
        told = asked(client, "/count?client=x")
        assert told["pid"] != victim
    assert told["n"] == WORKERS


def test_what_was_at_the_worker_that_is_killed_ends_in_a_502_and_nothing_else_fails(started, until):
    served = started("gthread, preloaded")
    clients = homes(served, until)
    victim, *others = clients
    held = clients[victim]
    results = []

    def collect(number):
        try:
            results.append(held.ask(f"/hold?client=h{number}", "POST").status)
        except OSError:  # nothing came
            results.append(None)

    waiting = [threading.Thread(target=collect, args=(number,)) for number in range(3)]  # a place is left to ask
    for each in waiting:
        each.start()
    until(lambda: all(asked(held, f"/left?client=h{n}")["open"] for n in range(3)), "all are at the worker")
    os.kill(victim, signal.SIGKILL)
    for each in waiting:
        each.join()
    # those that came in by the victim's own door are cut; those that others had handed to it are answered for
    assert set(results) <= {502, None}
    for pid in others:
        assert asked(clients[pid], "/left")["pid"] == pid


@pytest.mark.parametrize("name", ["sync", "gthread"])
def test_workers_that_are_replaced_under_load_fail_nobody(started, until, name):
    """A reload: each worker ends in peace, and another takes a slot."""
    served = started(name, options={"drain": 5})
    clients = homes(served, until)
    over = threading.Event()
    problems = []

    def keep_asking(client, name):
        while not over.is_set():
            try:
                answer = client.ask(f"/count?client={name}")
            except OSError:
                continue  # its own connection was cut: gunicorn closes its door without a word
            if answer.status != 200:
                problems.append(answer)

    threads = [threading.Thread(target=keep_asking, args=(client, f"r{pid}")) for pid, client in clients.items()]
    for each in threads:
        each.start()
    try:
        served.process.send_signal(signal.SIGHUP)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in clients), "all old workers are gone")
    finally:
        over.set()
        for each in threads:
            each.join()
    assert problems == []
    assert not set(homes(served, until)) & set(clients)
    wrong, _ = visited([served.client() for _ in range(6)], 6)
    assert wrong == 0


def test_workers_that_are_added_and_taken_away_take_slots_and_leave_them(started, until, directory):
    served = started("gthread, preloaded", options={"directory": str(directory), "name": "kin"})
    first = homes(served, until)
    for number in (4, 5):  # two of the same signal at once are one
        served.process.send_signal(signal.SIGTTIN)
        until(lambda number=number: len(children(served)) == number, "another worker")
    five = homes(served, until, 5)
    assert {asked(client, "/left")["server"] for client in five.values()} == {"w1", "w2", "w3", "w4", "w5"}
    for pid, client in first.items():
        assert asked(client, "/left")["pid"] == pid
    for number in (4, 3, 2):
        served.process.send_signal(signal.SIGTTOU)
        until(lambda number=number: len(children(served)) == number, "one worker less")
    until(lambda: len(list((directory / "kin").glob("*.sock"))) == 2, "two workers")
    wrong, _ = visited([served.client() for _ in range(6)], 6)
    assert wrong == 0
    served.stop()
    assert list((directory / "kin").glob("*.sock*")) == []


def test_a_worker_that_has_served_its_requests_leaves_its_slot_to_another(started, until):
    served = started("sync, preloaded", GUNICORN_CMD_ARGS="--max-requests 20")
    seen = set()

    def replaced():
        for _ in range(10):
            try:
                told = asked(served.client(), "/count?client=x")
            except OSError:
                continue
            seen.add((told["server"], told["pid"]))
        return len({pid for _, pid in seen}) > 2 * WORKERS

    until(replaced, "workers that were replaced")
    assert len({server for server, _ in seen}) <= 2 * WORKERS  # the next comes while the last is on its way out


@pytest.mark.parametrize("name", ["sync, preloaded", "granian"])
def test_workers_that_end_in_peace_leave_no_socket_behind(started, until, directory, name):
    served = started(name, {"directory": str(directory), "name": "kin"})
    homes(served, until)
    sockets = list((directory / "kin").glob("*.sock"))
    assert len(sockets) == WORKERS
    served.process.send_signal(signal.SIGTERM)
    served.ends()
    assert not any(each.exists() for each in sockets)


def test_a_worker_that_is_told_so_is_found_before_its_first_request(started, until, directory):
    config = Path(__file__).parent / "apps" / "workers_gunicorn.py"
    options = {"directory": str(directory), "name": "kin", "key": "path", "slots": 3, "cookie": None}
    started(f"gunicorn -w 3 --preload -c {config} workers_wsgi:app", options)
    until(lambda: len(list((directory / "kin").glob("*.sock"))) == WORKERS, "all workers listen")


def test_nothing_runs_in_the_process_that_only_forks(started, until, directory):
    served = started("sync, preloaded", {"directory": str(directory), "name": "kin"})
    assert not (directory / "kin").exists() or served.client().ask("/left")
    homes(served, until)
    assert len(list((directory / "kin").glob("*.sock"))) == WORKERS
    assert len(os.listdir(f"/proc/{served.process.pid}/task")) == 1


def test_one_worker_alone_marks_nobody(started):
    client = started("gunicorn -w 1 workers_wsgi:app").client()
    assert "server" not in asked(client, "/left")
    assert client.jar == {}


def test_an_exception_out_of_the_app_is_the_servers_to_answer_wherever_it_came_from(started, until):
    served = started("gthread, preloaded")
    for client in homes(served, until).values():
        for _ in range(4):
            assert client.ask("/boom").status == 500
    served.kind = replace(served.kind, habits=("Traceback",))
    assert "RuntimeError: the app is broken" in served.output
    assert "RemoteAppError" in served.output


# -- what people run


@pytest.mark.parametrize("sticky", [True, False], ids=["with it", "without it"])
def test_carts_of_a_flask_app_stay_whole_under_gthread(started, until, sticky):
    served = started(f"{GTHREAD} --preload workers_flask:app", without=not sticky)
    homes(served, until)
    lost = []

    def shop():
        with closing(Session()) as session:
            session.headers["connection"] = "close"
            for number in range(1, 11):
                answer = session.post(f"http://{HOST}:{served.port}/cart/tea", timeout=DEADLINE)
                if answer.status_code != 200 or answer.json()["items"] != number:
                    lost.append(answer.status_code)

    together([threading.Thread(target=shop) for _ in range(8)])
    assert lost == [] if sticky else len(lost) > 8
    if not sticky:
        served.kind = replace(served.kind, habits=("Traceback",))


@pytest.mark.parametrize(
    "clients", [pytest.param(6, id="6 clients"), pytest.param(200, id="200 clients", marks=pytest.mark.long)]
)
def test_clients_of_flask_socketio_are_known_by_every_worker(started, until, clients):
    served = started("gunicorn -k gthread --threads 100 -w 3 --preload workers_socketio_wsgi:app")
    homes(served, until)
    told: list[Any] = []
    failed: list[Any] = []

    def talk(number):
        try:
            with socketio.SimpleClient(request_timeout=DEADLINE) as client:
                client.connect(f"http://{HOST}:{served.port}", transports=["polling"], wait_timeout=DEADLINE)
                client.emit("name", f"client {number}")
                told.extend((number, client.call("who", timeout=DEADLINE)) for _ in range(3))
        except Exception as error:
            failed.append(error)

    for first in range(0, clients, 20):
        together([threading.Thread(target=talk, args=(number,)) for number in range(first, min(clients, first + 20))])
    assert failed == []
    assert all(each["name"] == f"client {number}" for number, each in told)
    assert len(told) == 3 * clients
    assert "Invalid session" not in served.output


def test_clients_of_flask_socketio_are_not_known_without(started, until):
    """What everybody has met who has started more than one worker."""
    served = started("gunicorn -k gthread --threads 100 -w 3 --preload workers_socketio_wsgi:app", without=True)
    homes(served, until)
    client = served.client()

    def is_lost():
        opened = client.ask("/socket.io/?EIO=4&transport=polling")
        sid = json.loads(opened.body[1:])["sid"]
        return client.ask(f"/socket.io/?EIO=4&transport=polling&sid={sid}", "POST", body=b"40").status == 400

    until(is_lost, "a session that another worker has")
    assert "Invalid session" in served.output
