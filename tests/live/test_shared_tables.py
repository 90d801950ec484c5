"""Processes of both faces share a table through a real Valkey, also when it dies."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import sticky_core

pytestmark = pytest.mark.live

ROOT = Path(sticky_core.__file__).parents[1]
SHARING = Path(__file__).with_name("sharing.py")
EXPIRE = 800.0


class Process:
    """A process that serves requests through one face (see sharing.py)."""

    def __init__(self, face):
        self.face = face
        self._process = subprocess.Popen(
            [sys.executable, str(SHARING), face],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def send(self, name, *arguments):
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()

    def result(self):
        """Return the result of the oldest command without one."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process of {self.face} has ended"
        return json.loads(line)

    def call(self, name, *arguments):
        self.send(name, *arguments)
        return self.result()

    def close(self):
        self._process.communicate(timeout=300)
        return self._process.returncode


@pytest.fixture(scope="module")
def four():
    """Two processes of each face, for all tests: starting one takes seconds on a busy machine."""
    four = [Process(face) for face in ("asgi", "wsgi", "asgi", "wsgi")]
    yield four
    assert [each.close() for each in four] == [0] * 4


@pytest.fixture
def process(valkey, four):
    """Have processes share a table until the test ends."""
    started = []

    def start(*faces, **options):
        # so long that a busy machine is not taken for a store that hangs
        options = {"expire": EXPIRE, "timeout": 10.0, "on_store_failure": "local", **options}
        chosen = []
        for face in faces:
            chosen.append(next(each for each in four if each.face == face and each not in chosen))
        for each in chosen:
            each.call("start", valkey.url, options)
        started.extend(chosen)
        return chosen

    yield start
    for each in started:
        each.call("stop")


@pytest.fixture(params=[("asgi", "asgi"), ("wsgi", "wsgi"), ("asgi", "wsgi")], ids="+".join)
def pair(request, process):
    return process(*request.param)


def users_named(count):
    return [f"user-{number}" for number in range(count)]


def wait_until_listening(until, *processes):
    for each in processes:
        until(lambda each=each: each.call("is_listening"), f"the process of {each.face} receives invalidations")


def commands(client):
    """Return how many commands were sent, by their users_named."""
    stats = client.info("commandstats")
    return Counter({name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("getex", "set", "eval")})


def test_two_processes_of_each_face_agree_on_every_client(process):
    processes = process("asgi", "wsgi", "asgi", "wsgi")
    users = users_named(40)
    servers = processes[0].call("serve", *users[:20]) + processes[1].call("serve", *users[20:])
    assert set(servers) == {"s1", "s2", "s3"}
    for each in processes:
        assert each.call("serve", *users) == servers
        assert each.call("serve", *reversed(users)) == servers[::-1]


def test_new_client_takes_two_round_trips_a_known_one_takes_one_and_a_local_copy_none(valkey, pair, until):
    here, there = pair
    for each in pair:
        each.call("serve", *users_named(6))
    wait_until_listening(until, *pair)
    for each in pair:  # once in a hundred seconds; no request waits for it
        until(
            lambda each=each: each.call("marked_servers") == ["s1", "s2", "s3"],
            "the marks of servers with clients are set",
        )
    with valkey.client() as client:

        def commands_for(process, user):
            before = commands(client)
            process.call("serve", user)
            return dict(commands(client) - before)

        assert commands_for(here, "ann") == {"getex": 1, "set": 1}
        assert [commands_for(here, "ann") for _ in range(3)] == [{}] * 3
        assert commands_for(there, "ann") == {"getex": 1}
        assert [commands_for(there, "ann") for _ in range(3)] == [{}] * 3


def test_local_copy_touches_the_store_once_an_eighth_of_the_expiry_has_passed(valkey, process, until):
    for each in process("asgi", "wsgi"):
        user = f"user of {each.face}"
        each.call("serve", user)
        wait_until_listening(until, each)
        each.call("serve", user)
        with valkey.client() as client:
            touched = []
            for _ in range(32):  # two expiries in steps of a sixteenth
                before = commands(client)
                each.call("advance", EXPIRE / 16)
                each.call("serve", user)
                # a script, and the command in it
                assert dict(commands(client) - before) in ({}, {"eval": 1, "getex": 1})
                touched.append((commands(client) - before)["eval"])
        assert 8 <= sum(touched) <= 16
        assert not any(first and second for first, second in pairwise(touched))


def test_client_that_moved_is_followed_by_the_other_process(pair, until):
    here, there = pair
    (server,) = here.call("serve", "ann")
    assert there.call("serve", "ann") == [server]
    wait_until_listening(until, *pair)
    assert there.call("serve", "ann") == [server]
    until(lambda: there.call("peek", "ann") == [server], "there is a local copy of ann")
    here.call("state", server, "maint")
    (other,) = here.call("serve", "ann")
    assert other != server
    until(lambda: there.call("peek", "ann") == [other], "the invalidation of ann has arrived")
    assert there.call("serve", "ann") == [other]
    here.call("state", server, "ready")
    assert [each.call("serve", "ann") for each in pair] == [[other]] * 2


def test_two_processes_that_move_a_client_at_once_agree_on_its_server(pair, until):
    users = users_named(60)
    servers = pair[0].call("serve", *users)
    assert pair[1].call("serve", *users) == servers
    wait_until_listening(until, *pair)
    for each in pair:
        each.call("state", "s1", "maint")
    for each in pair:
        each.send("serve", *users)
    for each in pair:
        each.result()
    until(lambda: pair[0].call("peek", *users) == pair[1].call("peek", *users), "they agree")
    moved = pair[0].call("serve", *users)
    assert pair[1].call("serve", *users) == moved
    assert "s1" not in moved
    assert [(server, now) for server, now in zip(servers, moved, strict=True) if server not in ("s1", now)] == []


def assert_no_client_is_split(pair, users, until):
    """Send each user's first request to both processes at once."""
    pair[0].send("serve", *users)
    pair[1].send("serve", *users)
    servers = [each.result() for each in pair]
    split = [user for user, one, other in zip(users, *servers, strict=True) if one != other]
    assert split == []
    assert set(servers[0]) == {"s1", "s2", "s3"}


def test_first_requests_of_one_client_to_two_processes_get_one_server(pair, until):
    assert_no_client_is_split(pair, users_named(1_000), until)


@pytest.mark.long
def test_ten_thousand_first_requests_to_two_processes_at_once_split_no_client(pair, until):
    assert_no_client_is_split(pair, users_named(10_000), until)


def test_first_requests_of_one_client_to_one_process_get_one_server(process):
    for each in process("asgi", "wsgi"):
        users = [f"{each.face}-{number % 20}" for number in range(200)]
        servers: dict[str, set[str]] = {}
        for user, server in zip(users, each.call("serve", *users), strict=True):
            servers.setdefault(user, set()).add(server)
        assert [len(found) for found in servers.values()] == [1] * 20


def test_no_request_and_no_client_is_lost_with_a_store_that_is_killed_under_load_and_comes_back_empty(
    valkey, pair, until
):
    here, there = pair
    users = users_named(60)
    for each, own in zip(pair, (users[:40], users[20:]), strict=True):
        each.call("serve", *own)
    wait_until_listening(until, *pair)
    servers = here.call("serve", *users[:40]) + there.call("serve", *users[40:])
    for each in pair:
        each.call("start_load", *users[:40]) if each is here else each.call("start_load", *users[20:])

    def wait_for_responses(count):
        before = [each.call("requests") for each in pair]
        until(lambda: all(each.call("requests") >= b + count for each, b in zip(pair, before, strict=True)), "load")

    wait_for_responses(80)
    valkey.kill()
    until(lambda: all(each.call("breaker") != "closed" for each in pair), "both breakers are open")
    wait_for_responses(200)
    valkey.start()
    until(lambda: all(each.call("breaker") == "closed" for each in pair), "both breakers are closed")
    wait_until_listening(until, *pair)
    wait_for_responses(200)
    served = [each.call("stop_load") for each in pair]
    # each client had one server all the time, in either process
    assert served[0] == {user: [server] for user, server in zip(users[:40], servers[:40], strict=True)}
    assert served[1] == {user: [server] for user, server in zip(users[20:], servers[20:], strict=True)}
    # and each process knows all clients again, also those of the other
    assert [each.call("serve", *users) for each in pair] == [servers] * 2


def test_while_the_store_fails_new_clients_are_balanced_and_processes_agree_when_it_is_back(valkey, pair, until):
    here, there = pair
    for each in pair:
        each.call("serve", "anonymous")
    valkey.kill()
    users = users_named(30)
    servers = [each.call("serve", *users) for each in pair]
    assert {server for each in servers for server in each} == {"s1", "s2", "s3"}
    assert [each.call("serve", *users) for each in pair] == servers
    valkey.start()
    for each in pair:
        until(lambda each=each: each.call("breaker") == "closed", "it is back")
    first = here.call("serve", *users)
    assert first == servers[0]
    assert there.call("serve", *users) == first
    assert here.call("serve", *users) == first


def test_with_fail_clients_that_could_be_split_get_503_until_the_store_is_back(valkey, process, until):
    for each in process("asgi", "wsgi", on_store_failure="fail"):
        (server,) = each.call("serve", "ann")
        valkey.kill()
        until(lambda each=each: each.call("breaker") != "closed", "the breaker is open")
        assert each.call("serve", "ann", "bob") == ["503", "503"]
        valkey.start()
        until(lambda each=each: each.call("serve", "bob") != ["503"], "it is back")
        each.call("serve", "ann")
        assert server in ("s1", "s2", "s3")


def test_invalidations_are_received_before_any_request_queries_the_store(process, until):
    asgi, wsgi = process("asgi", "wsgi")
    until(lambda: asgi.call("is_listening"), "it listens since its lifespan began")
    assert not wsgi.call("is_listening")
    wsgi.call("serve", "")  # without a key
    until(lambda: wsgi.call("is_listening"), "it listens since its first request")


def test_server_has_drained_when_it_has_no_clients_in_any_process(valkey, process, until):
    here, there = pair = process("asgi", "wsgi")
    servers = here.call("serve", "ann", "bob")
    # each process drains the server that the client of the other has
    drains = [(here, servers[0]), (there, servers[1])]
    requests = [(here, "bob", servers[1]), (there, "ann", servers[0])]
    marks = [f"sticky:app:bound:{server}" for server in servers]

    def drained():
        for each in pair:
            each.call("advance", EXPIRE / 4)
        return [each.call("drained", server) for each, server in drains]

    with valkey.client() as client:

        def marks_read():
            """Return how often marks were read: GET has no other use here."""
            return client.info("commandstats").get("cmdstat_get", {}).get("calls", 0)

        def clients_are_served():
            assert [each.call("serve", user) for each, user, _ in requests] == [[server] for _, _, server in requests]
            assert drained() == [False, False]
            return marks_read() >= 4

        until(lambda: client.exists(*marks) == 2, "their marks are set")
        for each, server in drains:
            each.call("drain", server)
            each.call("advance", 100 * EXPIRE)
        until(clients_are_served, "marks are read again and again while clients send requests")
        assert all(1 <= client.pttl(mark) / 1000 / EXPIRE <= 1.26 for mark in marks)
        for mark in marks:
            client.pexpire(mark, 1)  # expired: the store's clock cannot be moved
        until(lambda: drained() == [True, True], "both have drained")


@pytest.mark.parametrize("faces", [("asgi", "asgi"), ("wsgi", "wsgi")], ids="+".join)
def test_store_that_hangs_fails_no_request(valkey, process, faces, until):
    pair = process(*faces, timeout=0.25)
    users = users_named(20)
    servers = pair[0].call("serve", *users)
    assert pair[1].call("serve", *users) == servers
    valkey.freeze()
    for _ in range(3):
        assert [each.call("serve", *users) for each in pair] == [servers] * 2
    new_clients = [each.call("serve", *(f"new-{number}" for number in range(20))) for each in pair]
    assert {server for each in new_clients for server in each} == {"s1", "s2", "s3"}
    valkey.thaw()
    for each in pair:
        until(lambda each=each: each.call("serve", "one more") and each.call("breaker") == "closed", "it is back")
    assert [each.call("serve", *users) for each in pair] == [servers] * 2
