"""Processes of both faces share a table through a real Valkey, and what becomes of their clients when it dies."""

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
    """A process that serves a face (see sharing.py)."""

    def __init__(self, face):
        self.face = face
        self._process = subprocess.Popen(
            [sys.executable, str(SHARING), face],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def tell(self, what, *words):
        """Begin to have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *words]) + "\n")
        self._process.stdin.flush()

    def said(self):
        """What came of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process of {self.face} has ended"
        return json.loads(line)

    def do(self, what, *words):
        self.tell(what, *words)
        return self.said()

    def close(self):
        self._process.communicate(timeout=300)
        return self._process.returncode


@pytest.fixture(scope="module")
def four():
    """Two processes of each face: to start one takes seconds on a busy machine."""
    four = [Process(face) for face in ("asgi", "wsgi", "asgi", "wsgi")]
    yield four
    assert [each.close() for each in four] == [0] * 4


@pytest.fixture
def process(valkey, four):
    """Processes that share a table, from now on."""
    begun = []

    def begin(*faces, **options):
        # a busy machine is no store that hangs
        options = {"expire": EXPIRE, "timeout": 10.0, "on_store_failure": "local", **options}
        chosen = []
        for face in faces:
            chosen.append(next(each for each in four if each.face == face and each not in chosen))
        for each in chosen:
            each.do("begin", valkey.url, options)
        begun.extend(chosen)
        return chosen

    yield begin
    for each in begun:
        each.do("end")


@pytest.fixture(params=[("asgi", "asgi"), ("wsgi", "wsgi"), ("asgi", "wsgi")], ids="+".join)
def pair(request, process):
    return process(*request.param)


def names(count):
    return [f"user-{number}" for number in range(count)]


def listening(until, *processes):
    for each in processes:
        until(lambda each=each: each.do("listens"), f"the process of {each.face} hears the news")


def commands(client):
    """How many were sent, by their names."""
    stats = client.info("commandstats")
    return Counter({name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("getex", "set", "eval")})


def test_two_processes_of_each_face_agree_on_every_client(process):
    processes = process("asgi", "wsgi", "asgi", "wsgi")
    users = names(40)
    homes = processes[0].do("visit", *users[:20]) + processes[1].do("visit", *users[20:])
    assert set(homes) == {"s1", "s2", "s3"}
    for each in processes:
        assert each.do("visit", *users) == homes
        assert each.do("visit", *reversed(users)) == homes[::-1]


def test_a_first_visit_takes_two_round_trips_a_known_client_one_and_one_in_the_near_copy_none(valkey, pair, until):
    here, there = pair
    for each in pair:
        each.do("visit", *names(6))
    listening(until, *pair)
    for each in pair:  # once in a hundred seconds, and no request waits for it
        until(lambda each=each: each.do("marked") == ["s1", "s2", "s3"], "the store knows which servers have clients")
    with valkey.client() as client:

        def asked(process, user):
            before = commands(client)
            process.do("visit", user)
            return dict(commands(client) - before)

        assert asked(here, "ann") == {"getex": 1, "set": 1}
        assert [asked(here, "ann") for _ in range(3)] == [{}] * 3
        assert asked(there, "ann") == {"getex": 1}
        assert [asked(there, "ann") for _ in range(3)] == [{}] * 3


def test_a_client_in_the_near_copy_touches_the_store_once_an_eighth_of_the_expiry_has_passed(valkey, process, until):
    for each in process("asgi", "wsgi"):
        user = f"user of {each.face}"
        each.do("visit", user)
        listening(until, each)
        each.do("visit", user)
        with valkey.client() as client:
            touched = []
            for _ in range(32):  # two expiries in steps of a sixteenth
                before = commands(client)
                each.do("advance", EXPIRE / 16)
                each.do("visit", user)
                # a script, and what it reads with: one command from us
                assert dict(commands(client) - before) in ({}, {"eval": 1, "getex": 1})
                touched.append((commands(client) - before)["eval"])
        assert 8 <= sum(touched) <= 16
        assert not any(first and second for first, second in pairwise(touched))


def test_a_client_that_moved_is_followed_by_the_other_process(pair, until):
    here, there = pair
    (home,) = here.do("visit", "ann")
    assert there.do("visit", "ann") == [home]
    listening(until, *pair)
    assert there.do("visit", "ann") == [home]
    until(lambda: there.do("known", "ann") == [home], "ann is in the near copy")
    here.do("state", home, "maint")
    (other,) = here.do("visit", "ann")
    assert other != home
    until(lambda: there.do("known", "ann") == [other], "the news of ann have come")
    assert there.do("visit", "ann") == [other]
    here.do("state", home, "ready")
    assert [each.do("visit", "ann") for each in pair] == [[other]] * 2


def test_two_processes_that_move_a_client_at_once_agree_where(pair, until):
    users = names(60)
    homes = pair[0].do("visit", *users)
    assert pair[1].do("visit", *users) == homes
    listening(until, *pair)
    for each in pair:
        each.do("state", "s1", "maint")
    for each in pair:
        each.tell("visit", *users)
    for each in pair:
        each.said()
    until(lambda: pair[0].do("known", *users) == pair[1].do("known", *users), "they agree")
    moved = pair[0].do("visit", *users)
    assert pair[1].do("visit", *users) == moved
    assert "s1" not in moved
    assert [(home, now) for home, now in zip(homes, moved, strict=True) if home not in ("s1", now)] == []


def raced(pair, users, until):
    """Each user's first request goes to both processes at once."""
    pair[0].tell("visit", *users)
    pair[1].tell("visit", *users)
    homes = [each.said() for each in pair]
    split = [user for user, one, other in zip(users, *homes, strict=True) if one != other]
    assert split == []
    assert set(homes[0]) == {"s1", "s2", "s3"}


def test_first_requests_of_one_client_to_two_processes_end_at_one_server(pair, until):
    raced(pair, names(1_000), until)


@pytest.mark.long
def test_ten_thousand_first_requests_raced_over_two_processes_split_no_client(pair, until):
    raced(pair, names(10_000), until)


def test_first_requests_of_one_client_to_one_process_end_at_one_server(process):
    for each in process("asgi", "wsgi"):
        users = [f"{each.face}-{number % 20}" for number in range(200)]
        homes: dict[str, set[str]] = {}
        for user, home in zip(users, each.do("visit", *users), strict=True):
            homes.setdefault(user, set()).add(home)
        assert [len(found) for found in homes.values()] == [1] * 20


def test_a_store_that_is_killed_under_load_and_comes_back_empty_loses_no_request_and_no_client(valkey, pair, until):
    here, there = pair
    users = names(60)
    for each, own in zip(pair, (users[:40], users[20:]), strict=True):
        each.do("visit", *own)
    listening(until, *pair)
    homes = here.do("visit", *users[:40]) + there.do("visit", *users[40:])
    for each in pair:
        each.do("load", *users[:40]) if each is here else each.do("load", *users[20:])

    def answered(count):
        before = [each.do("requests") for each in pair]
        until(lambda: all(each.do("requests") >= b + count for each, b in zip(pair, before, strict=True)), "load")

    answered(80)
    valkey.kill()
    until(lambda: all(each.do("breaker") != "closed" for each in pair), "both have noticed")
    answered(200)
    valkey.start()
    until(lambda: all(each.do("breaker") == "closed" for each in pair), "both are back")
    listening(until, *pair)
    answered(200)
    went = [each.do("enough") for each in pair]
    # each client had one home all the time, in either process
    assert went[0] == {user: [home] for user, home in zip(users[:40], homes[:40], strict=True)}
    assert went[1] == {user: [home] for user, home in zip(users[20:], homes[20:], strict=True)}
    # and each process knows of all again, those it had never seen from the other
    assert [each.do("visit", *users) for each in pair] == [homes] * 2


def test_while_the_store_is_away_new_clients_are_balanced_and_agreement_returns_with_it(valkey, pair, until):
    here, there = pair
    for each in pair:
        each.do("visit", "nobody")
    valkey.kill()
    users = names(30)
    homes = [each.do("visit", *users) for each in pair]
    assert {home for each in homes for home in each} == {"s1", "s2", "s3"}
    assert [each.do("visit", *users) for each in pair] == homes
    valkey.start()
    for each in pair:
        until(lambda each=each: each.do("breaker") == "closed", "it is back")
    first = here.do("visit", *users)
    assert first == homes[0]
    assert there.do("visit", *users) == first
    assert here.do("visit", *users) == first


def test_with_fail_nobody_is_served_who_could_be_split_until_the_store_is_back(valkey, process, until):
    for each in process("asgi", "wsgi", on_store_failure="fail"):
        (home,) = each.do("visit", "ann")
        valkey.kill()
        until(lambda each=each: each.do("breaker") != "closed", "it is noticed")
        assert each.do("visit", "ann", "bob") == ["503", "503"]
        valkey.start()
        until(lambda each=each: each.do("visit", "bob") != ["503"], "it is back")
        each.do("visit", "ann")
        assert home in ("s1", "s2", "s3")


def test_the_news_are_heard_before_any_request_asks_the_store(process, until):
    asgi, wsgi = process("asgi", "wsgi")
    until(lambda: asgi.do("listens"), "it hears the news since its lifespan began")
    assert not wsgi.do("listens")
    wsgi.do("visit", "")  # without a key
    until(lambda: wsgi.do("listens"), "it hears the news since its first request")


def test_a_server_has_drained_when_its_clients_come_to_no_other_process_either(valkey, process, until):
    here, there = pair = process("asgi", "wsgi")
    homes = here.do("visit", "ann", "bob")
    # each drains the server whose client comes to the other
    drains = [(here, homes[0]), (there, homes[1])]
    comes = [(here, "bob", homes[1]), (there, "ann", homes[0])]
    marks = [f"sticky:app:bound:{home}" for home in homes]

    def drained():
        for each in pair:
            each.do("advance", EXPIRE / 4)
        return [each.do("drained", home) for each, home in drains]

    with valkey.client() as client:

        def asked():
            """How often marks were looked for: nothing else here is read so."""
            return client.info("commandstats").get("cmdstat_get", {}).get("calls", 0)

        def served():
            assert [each.do("visit", user) for each, user, _ in comes] == [[home] for _, _, home in comes]
            assert drained() == [False, False]
            return asked() >= 4

        until(lambda: client.exists(*marks) == 2, "the store knows that they have clients")
        for each, home in drains:
            each.do("drain", home)
            each.do("advance", 100 * EXPIRE)
        until(served, "the store is asked again and again while they come")
        assert all(1 <= client.pttl(mark) / 1000 / EXPIRE <= 1.26 for mark in marks)
        for mark in marks:
            client.pexpire(mark, 1)  # their time has passed: the store's clock is not ours to move
        until(lambda: drained() == [True, True], "they are gone")


@pytest.mark.parametrize("faces", [("asgi", "asgi"), ("wsgi", "wsgi")], ids="+".join)
def test_a_store_that_hangs_fails_no_request(valkey, process, faces, until):
    pair = process(*faces, timeout=0.25)
    users = names(20)
    homes = pair[0].do("visit", *users)
    assert pair[1].do("visit", *users) == homes
    valkey.freeze()
    for _ in range(3):
        assert [each.do("visit", *users) for each in pair] == [homes] * 2
    strangers = [each.do("visit", *(f"stranger-{number}" for number in range(20))) for each in pair]
    assert {home for each in strangers for home in each} == {"s1", "s2", "s3"}
    valkey.thaw()
    for each in pair:
        until(lambda each=each: each.do("visit", "one more") and each.do("breaker") == "closed", "it is back")
    assert [each.do("visit", *users) for each in pair] == [homes] * 2
