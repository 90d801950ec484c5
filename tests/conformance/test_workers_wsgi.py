"""StickyWorkers under real WSGI servers with several worker processes: every client is served by the process that has
its session, whichever process accepts its connection.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import socketio  # type: ignore[import-untyped]
from requests import Session

from tests.conformance.servers import start

#: With so few connections for each worker, one worker can't accept all of ours.
GTHREAD = "gunicorn -k gthread --threads 4 --worker-connections 5 -w 3"

#: Each has three workers. The number is how many requests the app serves at the same time in each worker.
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
    """Starts a server by its name in SERVERS, or by its command. `options`: those of StickyWorkers. `without`: leave
    StickyWorkers out.
    """

    def start(name, options=None, without=False, **variables):
        sticky = "null" if without else json.dumps(options or {})
        command = SERVERS[name][0] if name in SERVERS else name
        served = serve(*command.split(), variables={"STICKY": sticky, **variables})
        if "gthread" not in command:  # a sync worker never closes the socket that it listens at
            served.kind = replace(served.kind, always_prints=("ResourceWarning",))
        return served

    return start


@pytest.fixture
def directory():
    """Where workers find each other: the paths of pytest are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


def get_json(client, target, method="GET", **more):
    response = client.request(target, method, **more)
    assert response.status == 200, (target, response)
    return json.loads(response.body)


class CountingClient(threading.Thread):
    """A client that checks that the app counts all its requests; each is sent over a new connection."""

    def __init__(self, client, name, requests):
        super().__init__()
        self._client = client
        self._name = name
        self._requests = requests
        self.wrong = 0
        self.seen = []

    def run(self):
        for expected in range(1, self._requests + 1):
            response = self._client.request(f"/count?client={self._name}")
            content = json.loads(response.body) if response.status == 200 else {}
            self.seen.append(content.get("pid"))
            self.wrong += content.get("n") != expected


def together(threads):
    for each in threads:
        each.start()
    for each in threads:
        each.join()


_names = (f"c{number}" for number in count())


def count_wrong(clients, requests):
    """Return how many responses to these clients, under new names, were wrong, and how many came from each process."""
    running = [CountingClient(client, next(_names), requests) for client in clients]
    together(running)
    return sum(each.wrong for each in running), Counter(pid for each in running for pid in each.seen)


def children(served):
    """Return the ids of the processes that a server has started."""
    return [
        int(pid) for pid in Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    ]


@contextmanager
def only_accepting(served, pid):
    """Stop all workers of gunicorn but one, so that this one accepts all connections."""
    others = [each for each in children(served) if each != pid]
    for each in others:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in others:
            os.kill(each, signal.SIGCONT)


def client_of_each_worker(served, until, workers=WORKERS):
    """Return a client for each worker, by the process id of the worker to which the client is bound."""
    found: dict[Any, Any] = {}

    def bind(client):
        found.setdefault(get_json(client, "/left")["pid"], client)

    def more():
        if served.kind.module != "gunicorn":
            # several at the same time, so that no worker accepts them all
            together([threading.Thread(target=bind, args=(served.client(),)) for _ in range(8)])
        elif len(children(served)) >= workers:
            for pid in children(served):
                with only_accepting(served, pid):
                    bind(served.client())
        return len(found) >= workers

    until(more, "a client of each worker")
    return found


@pytest.fixture
def contained(launch):
    """Starts a server as the first process of a PID namespace of its own, as in a container that shares the file
    system.
    """
    container = ("unshare", "--pid", "--fork", "--kill-child")
    try:
        subprocess.run([*container, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare --pid: no program, or no permission")

    def start_contained(command, **variables):
        server, *arguments = command.split()
        return start(lambda: launch(server, *arguments, variables=variables, container=container))

    return start_contained


#: those that show nothing that the others do not show
LONG = ("sync, preloaded", "gthread")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else (), id=name) for name in SERVERS]
)
def test_all_requests_of_a_client_are_counted_by_one_worker_and_without_stickiness_most_are_not(started, until, name):
    without = started(name, without=True)
    client_of_each_worker(without, until)
    until(
        lambda: count_wrong([without.client() for _ in range(21)], 20)[0] > 210,
        "more than half of the responses are wrong",
    )
    without.stop()
    served = started(name)
    clients = client_of_each_worker(served, until)
    wrong, responses = count_wrong([replace(client, jar={**client.jar}) for client in clients.values()] * 7, 20)
    assert wrong == 0
    assert "middleware around" not in served.output  # nothing that the server sets is taken for a middleware's
    assert responses == dict.fromkeys(clients, 140)
    # own requests and forwarded ones together are never more at the same time than the server would run
    assert all(get_json(client, "/memory")["most"] <= SERVERS[name][1] for client in clients.values())


@pytest.mark.parametrize("name", ["sync, preloaded", "gthread, preloaded"])
def test_streams_and_bodies_are_forwarded_as_they_are_read(started, until, name):
    served = started(name)
    for pid, client in client_of_each_worker(served, until).items():
        for number in range(6):
            response = client.request(f"/stream?client=s{pid}")
            assert response.body == b"".join(b"data: %d\n\n" % (3 * number + event) for event in (1, 2, 3))
        for _ in range(6):
            assert get_json(client, "/lines", "POST", body=b"one\ntwo")["lines"] == ["one\n", "two"]


def test_request_looks_the_same_in_whichever_worker_it_was_accepted(started, until):
    served = started("gthread, preloaded")
    (client, *_) = client_of_each_worker(served, until).values()
    seen: list[Any] = []
    while len(seen) < 20:
        content = get_json(client, "/echo/%41?a=%41&b", "POST", headers={"X-Raw": "caf\xe9"}, body=b"a body")
        del content["environ"]["REMOTE_PORT"]
        seen.append(content)
    assert all(content == seen[0] for content in seen)
    assert seen[0]["body"] == "a body"
    assert seen[0]["environ"]["HTTP_X_RAW"] == "caf\xe9"


@pytest.mark.parametrize(
    "size", [pytest.param(24_000_000, id="24 MB"), pytest.param(100_000_000, id="100 MB", marks=pytest.mark.long)]
)
def test_large_bodies_are_forwarded_in_little_memory(started, until, size):
    served = started("gthread, preloaded")
    clients = client_of_each_worker(served, until)
    size = size // 65536 * 65536
    body = b"x" * size
    for client in clients.values():  # so that each worker has forwarded before
        for _ in range(6):
            assert get_json(client, "/length", "POST", body=b"x" * 300_000)["size"] == 300_000
    before = {pid: get_json(client, "/memory")["peak"] for pid, client in clients.items()}
    came = sent = 0
    while came < WORKERS or sent < WORKERS:
        for pid, client in clients.items():
            content = get_json(client, "/length", "POST", body=body)
            assert (content["pid"], content["size"]) == (pid, size)
            came += content["forwarded"]
            response = client.request(f"/large?size={size}")
            assert len(response.body) == size
            sent += response.values("x-forwarded-by-peer") == ["1"]
    after = {pid: get_json(client, "/memory")["peak"] for pid, client in clients.items()}
    assert {pid: after[pid] - before[pid] for pid in after if after[pid] - before[pid] > 20_000_000} == {}


def test_app_sees_the_disconnect_of_its_clients(started, until):
    served = started("gthread, preloaded")
    (client, *_) = client_of_each_worker(served, until).values()
    for name in ("forever", "hold"):
        number = 0
        forwarded = False
        while not forwarded:  # gunicorn itself does not show a disconnect to an app that waits without writing
            number += 1
            state_path = f"/left?client={name}-{number}"
            with closing(client.open(f"/{name}?client={name}-{number}")):
                until(lambda state_path=state_path: get_json(client, state_path)["open"], "the request in the app")
                forwarded = name == "forever" or get_json(client, state_path)["forwarded"]
            if forwarded:
                until(lambda state_path=state_path: get_json(client, state_path)["left"], "the disconnect")
            else:
                client.request(f"/release?client={name}-{number}")


# -- workers that start and end


def test_only_clients_of_a_killed_worker_are_rebound_and_only_once(started, until):
    served = started("gthread, preloaded")
    clients = client_of_each_worker(served, until)
    victim = next(iter(clients))
    over = threading.Event()
    failed: list[Any] = []
    responses: dict[Any, list[Any]] = {pid: [] for pid in clients}
    cut = dict.fromkeys(clients, 0)
    counted = {pid: threading.Event() for pid in clients}

    def keep_requesting(pid, client):
        while not over.is_set():
            try:
                response = client.request(f"/count?client=of-{pid}")
            except OSError:
                cut[pid] += 1  # the victim had accepted the connection
                continue
            if response.status == 200:
                responses[pid].append(json.loads(response.body))
            else:
                failed.append((pid, response.status))
            if len(responses[pid]) > 20:
                counted[pid].set()

    threads = [threading.Thread(target=keep_requesting, args=each) for each in clients.items()]
    for each in threads:
        each.start()
    try:
        assert all(each.wait(DEADLINE) for each in counted.values())
        os.kill(victim, signal.SIGKILL)
        lengths = {pid: len(seen) for pid, seen in responses.items()}
        until(lambda: all(len(responses[pid]) > lengths[pid] + 20 for pid in responses), "more responses")
    finally:
        over.set()
        for each in threads:
            each.join()
    assert {status for _, status in failed} <= {502}
    assert {pid for pid, _ in failed} <= {victim}  # the requests that were at the victim
    for pid, seen in responses.items():
        numbers = [each["n"] for each in seen]
        again = [index for index, each in enumerate(seen) if each["reason"] == "other instance"]
        if pid != victim:
            assert numbers == sorted(set(numbers))
            # the difference: requests that its worker has counted, while the victim could not send the response
            assert numbers[-1] - len(numbers) <= cut[pid]
            assert again == []
        else:
            (moment,) = again
            assert numbers[moment:] == list(range(1, len(numbers) - moment + 1))


def test_orderly_end_of_all_workers_logs_nothing_and_the_end_of_a_killed_one_is_logged(started, until):
    served = started("gthread")
    clients = client_of_each_worker(served, until)

    def request_until_the_end(client):
        try:
            while True:
                client.request("/echo")
        except (OSError, HTTPException):
            pass  # the worker that accepts has ended

    threads = [threading.Thread(target=request_until_the_end, args=(client,)) for client in clients.values()]
    for each in threads:
        each.start()
    served.stop()
    for each in threads:
        each.join()
    assert "Server workers/" not in served.output

    served = started("gthread")
    clients = client_of_each_worker(served, until)
    victim = next(iter(clients))
    os.kill(victim, signal.SIGKILL)

    def notices():
        try:
            clients[victim].request("/echo")
        except OSError:
            pass  # the victim had accepted the connection
        return "its worker has ended without notice" in served.output

    until(notices, "a line about the killed worker")
    client_of_each_worker(served, until)  # gunicorn's workers ignore a SIGTERM that comes before they are up


def test_forked_child_of_a_killed_worker_keeps_no_socket_of_it_open(started, until):
    served = started("gthread, preloaded")
    clients = client_of_each_worker(served, until)
    victim, client = next(iter(clients.items()))
    assert get_json(client, "/fork")["pid"] == victim
    os.kill(victim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{victim}").exists(), "the end of the worker")
    for _ in range(WORKERS):
        content = get_json(client, "/count?client=x")
        assert content["pid"] != victim
    assert content["n"] == WORKERS


def test_requests_at_a_killed_worker_end_in_a_502_and_no_others_fail(started, until):
    served = started("gthread, preloaded")
    clients = client_of_each_worker(served, until)
    victim, *others = clients
    held = clients[victim]
    results = []

    def collect(number):
        try:
            results.append(held.request(f"/hold?client=h{number}", "POST").status)
        except OSError:  # the connection was reset
            results.append(None)

    waiting = [
        threading.Thread(target=collect, args=(number,)) for number in range(3)
    ]  # one thread is left for `/left`
    for each in waiting:
        each.start()
    until(lambda: all(get_json(held, f"/left?client=h{n}")["open"] for n in range(3)), "all requests are at the worker")
    os.kill(victim, signal.SIGKILL)
    for each in waiting:
        each.join()
    # connections that the victim had accepted are reset; for requests that peers had forwarded to it, they respond
    assert set(results) <= {502, None}
    for pid in others:
        assert get_json(clients[pid], "/left")["pid"] == pid
    # a worker that is about to start would miss the signal to end
    client_of_each_worker(served, until)


@pytest.mark.parametrize("name", ["sync", "gthread"])
def test_workers_that_are_replaced_under_load_fail_no_request(started, until, name):
    """A reload: each worker stops gracefully, and another takes a worker slot."""
    served = started(name, options={"drain": 5})
    clients = client_of_each_worker(served, until)
    over = threading.Event()
    problems = []

    def keep_requesting(client, name):
        while not over.is_set():
            try:
                response = client.request(f"/count?client={name}")
            except OSError:
                continue  # gunicorn closes its listener, and resets the connections in its backlog
            if response.status != 200:
                problems.append(response)

    threads = [threading.Thread(target=keep_requesting, args=(client, f"r{pid}")) for pid, client in clients.items()]
    for each in threads:
        each.start()
    try:
        served.process.send_signal(signal.SIGHUP)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in clients), "the end of all old workers")
    finally:
        over.set()
        for each in threads:
            each.join()
    assert problems == []
    assert not set(client_of_each_worker(served, until)) & set(clients)
    wrong, _ = count_wrong([served.client() for _ in range(6)], 6)
    assert wrong == 0


def test_workers_that_are_added_and_removed_take_worker_slots_and_release_them(started, until, directory):
    served = started("gthread, preloaded", options={"directory": str(directory), "name": "kin"})
    first = client_of_each_worker(served, until)
    for number in (4, 5):  # two equal signals at the same time are one
        served.process.send_signal(signal.SIGTTIN)
        until(lambda number=number: len(children(served)) == number, "another worker")
    five = client_of_each_worker(served, until, 5)
    assert {get_json(client, "/left")["server"] for client in five.values()} == {"w1", "w2", "w3", "w4", "w5"}
    for pid, client in first.items():
        assert get_json(client, "/left")["pid"] == pid
    for number in (4, 3, 2):
        served.process.send_signal(signal.SIGTTOU)
        until(lambda number=number: len(children(served)) == number, "one worker less")
    until(lambda: len(list((directory / "kin@wsgi").glob("*.sock"))) == 2, "two workers")
    wrong, _ = count_wrong([served.client() for _ in range(6)], 6)
    assert wrong == 0
    served.stop()
    assert list((directory / "kin@wsgi").glob("*.sock*")) == []


def test_worker_that_reaches_max_requests_leaves_its_worker_slot_to_another(started, until):
    served = started("sync, preloaded", GUNICORN_CMD_ARGS="--max-requests 20")
    seen = set()

    def replaced():
        for _ in range(10):
            try:
                content = get_json(served.client(), "/count?client=x")
            except OSError:
                continue
            seen.add((content["server"], content["pid"]))
        return len({pid for _, pid in seen}) > 2 * WORKERS

    until(replaced, "replaced workers")
    # a worker may start before the one that it replaces has stopped
    assert len({server for server, _ in seen}) <= 2 * WORKERS


@pytest.mark.parametrize("name", ["sync, preloaded", "granian"])
def test_workers_that_stop_gracefully_leave_no_socket_behind(started, until, directory, name):
    served = started(name, {"directory": str(directory), "name": "kin"})
    client_of_each_worker(served, until)
    sockets = list((directory / "kin@wsgi").glob("*.sock"))
    assert len(sockets) == WORKERS
    served.process.send_signal(signal.SIGTERM)
    served.ends()
    assert not any(each.exists() for each in sockets)


@pytest.mark.parametrize("app", ["workers_wsgi", "workers_flask"])  # gunicorn's `worker.wsgi` is the Flask object
def test_worker_that_is_started_in_a_hook_listens_before_its_first_request(started, until, directory, app):
    config = Path(__file__).parent / "apps" / "workers_gunicorn.py"
    options = {"directory": str(directory), "name": "kin", "key": "path", "slots": 3, "cookie": None}
    started(f"gunicorn -w 3 --preload -c {config} {app}:app", options)
    until(lambda: len(list((directory / "kin@wsgi").glob("*.sock"))) == WORKERS, "all workers listen")


def test_no_thread_runs_in_the_process_that_only_forks(started, until, directory):
    served = started("sync, preloaded", {"directory": str(directory), "name": "kin"})
    assert not (directory / "kin@wsgi").exists() or served.client().request("/left")
    client_of_each_worker(served, until)
    assert len(list((directory / "kin@wsgi").glob("*.sock"))) == WORKERS
    assert len(os.listdir(f"/proc/{served.process.pid}/task")) == 1


def test_single_worker_sets_no_cookie(started):
    client = started("gunicorn -w 1 workers_wsgi:app").client()
    assert "server" not in get_json(client, "/left")
    assert client.jar == {}


def test_exception_of_the_app_is_a_500_of_the_server_that_accepted_the_request(started, until):
    served = started("gthread, preloaded")
    for client in client_of_each_worker(served, until).values():
        for _ in range(4):
            assert client.request("/boom").status == 500
    served.kind = replace(served.kind, always_prints=("Traceback",))
    assert "RuntimeError: the app is broken" in served.output
    assert "RemoteAppError" in served.output


# -- gevent


def test_server_with_workers_of_gevent_does_not_start_and_says_what_to_do(launch):
    served = launch("gunicorn", "-k", "gevent", "-w", "3", "workers_wsgi:app")
    # gunicorn's "worker failed to boot", or 1: its handler of that fails if several workers end at the same moment
    assert served.ends() in (3, 1)
    assert "gevent has replaced the threads and sockets of this process" in served.output
    assert "run gunicorn -k gthread" in served.output


def test_workers_of_gevent_that_got_the_app_before_they_were_patched_respond_with_500_and_log_why_once(started):
    served = started("gunicorn -k gevent -w 3 --preload --graceful-timeout 1 workers_wsgi:app")
    statuses: list[int] = []
    together(
        [threading.Thread(target=lambda: statuses.append(served.client().request("/count").status)) for _ in range(50)]
    )
    assert set(statuses) == {500}
    assert 1 <= served.output.count("run gunicorn -k gthread") <= WORKERS


# -- apps and libraries that people use


@pytest.mark.parametrize("sticky", [True, False], ids=["with StickyWorkers", "without"])
def test_carts_of_a_flask_app_stay_whole_under_gthread(started, until, sticky):
    served = started(f"{GTHREAD} --preload workers_flask:app", without=not sticky)
    client_of_each_worker(served, until)
    lost = []

    def shop():
        with closing(Session()) as session:
            session.headers["connection"] = "close"
            for number in range(1, 11):
                response = session.post(f"http://{HOST}:{served.port}/cart/tea", timeout=DEADLINE)
                if response.status_code != 200 or response.json()["items"] != number:
                    lost.append(response.status_code)

    together([threading.Thread(target=shop) for _ in range(8)])
    assert lost == [] if sticky else len(lost) > 8
    if not sticky:
        served.kind = replace(served.kind, always_prints=("Traceback",))


@pytest.mark.parametrize(
    "clients", [pytest.param(6, id="6 clients"), pytest.param(200, id="200 clients", marks=pytest.mark.long)]
)
def test_clients_of_flask_socketio_find_their_session_through_every_worker(started, until, clients):
    served = started("gunicorn -k gthread --threads 100 -w 3 --preload workers_socketio_wsgi:app")
    client_of_each_worker(served, until)
    results: list[Any] = []
    failed: list[Any] = []

    def talk(number):
        try:
            with socketio.SimpleClient(request_timeout=DEADLINE) as client:
                client.connect(f"http://{HOST}:{served.port}", transports=["polling"], wait_timeout=DEADLINE)
                client.emit("name", f"client {number}")
                results.extend((number, client.call("get name", timeout=DEADLINE)) for _ in range(3))
        except Exception as error:
            failed.append(error)

    for first in range(0, clients, 20):
        together([threading.Thread(target=talk, args=(number,)) for number in range(first, min(clients, first + 20))])
    assert failed == []
    assert all(each["name"] == f"client {number}" for number, each in results)
    assert len(results) == 3 * clients
    assert "Invalid session" not in served.output


def test_clients_of_flask_socketio_lose_their_session_without_stickiness(started, until):
    """The error that brings users here: several workers, and polling requests at the wrong one."""
    served = started("gunicorn -k gthread --threads 100 -w 3 --preload workers_socketio_wsgi:app", without=True)
    client_of_each_worker(served, until)
    client = served.client()

    def session_is_lost():
        opened = client.request("/socket.io/?EIO=4&transport=polling")
        sid = json.loads(opened.body[1:])["sid"]
        return client.request(f"/socket.io/?EIO=4&transport=polling&sid={sid}", "POST", body=b"40").status == 400

    until(session_is_lost, "a request at a worker that does not have the session")
    assert "Invalid session" in served.output


def test_apps_in_containers_that_share_the_directory_are_not_peers_and_do_not_remove_each_others_workers(
    started, contained, until, directory
):
    sticky = {"directory": str(directory / "run")}
    served = started("sync", sticky)
    clients = client_of_each_worker(served, until)
    for path in (directory / "run").iterdir():
        os.utime(path, (0, 0))  # as if its workers had started long ago
    one, other = (contained(SERVERS["sync"][0], STICKY=json.dumps(sticky)) for _ in range(2))
    at_one = one.client()
    counts = [get_json(at_one, "/count?client=x")["n"] for _ in range(3)]
    at_other = replace(other.client(), jar={**at_one.jar})
    content = get_json(at_other, "/count?client=x")
    assert (counts, content["n"], content["reason"]) == ([1, 2, 3], 1, "other instance")
    assert get_json(at_one, "/count?client=x")["n"] == 4
    wrong, _ = count_wrong(list(clients.values()), 10)
    assert wrong == 0
