"""Requests with a key are served by the worker that owns the key, whichever worker accepts them."""

from typing import Any

import pytest

from sticky_core.clock import ManualClock
from tests.faces.workers.groups import Response
from tests.faces.workers.wsgi import run_together


def session_app(worker, request):
    """Gives out the name of a new session in a header, as MCP does, and knows only its own sessions."""
    name = request.headers.get("mcp-session-id")
    if name is not None:
        return Response(200 if name.startswith(f"session-{id(worker)}-") else 404, body=b"known")
    return Response(headers=[("Mcp-Session-Id", f"session-{id(worker)}-{len(worker.seen)}")], body=b"new")


def owners(workers, path):
    """The workers that have served this path."""
    return [worker for worker in workers if path in worker.paths]


# Keys that are spread by a hash


def test_hashed_keys_are_spread_over_the_workers_and_all_workers_send_them_to_the_same(start):
    workers = [start(key="/rooms/{id}", slots=3) for _ in range(3)]
    homes = {}
    for room in range(30):
        for worker in workers:
            response = worker.request(f"/rooms/{room}/chat", cookie=f"{worker.backend.cookie.name}=forged")
            assert response.cookies == []
        (homes[room],) = [each for each in workers if any(f"/{room}/" in path for path in each.paths)]
    assert len(set(homes.values())) == 3
    # without a key the cookie counts, and a client without a cookie is served by the worker that accepts it
    mark = workers[0].request().mark
    assert workers[1].request(cookie=mark).cookies == []
    assert workers[0].paths[-1] == "/"
    # a key counts more than the cookie, which is not forwarded
    room = next(room for room, home in homes.items() if home is workers[2])
    workers[1].request(f"/rooms/{room}", cookie=mark)
    assert workers[2].paths[-1] == f"/rooms/{room}"
    assert workers[2].seen[-1].headers == {"host": "example.org"}
    # only the keys of a worker that has ended move
    workers[2].kill()
    for room, home in homes.items():
        workers[0].request(f"/rooms/{room}")
        last = [worker for worker in workers[:2] if worker.paths[-1] == f"/rooms/{room}"]
        assert last == [home] if home is not workers[2] else len(last) == 1


@pytest.mark.parametrize("options", [{"slots": 3}, {}], ids=["hashed", "learned"])
def test_key_in_the_path_is_found_below_a_mount(start, options):
    workers = [start(key="/rooms/{id}", **options) for _ in range(3)]
    for _ in range(4):
        for worker in workers:
            worker.request("/rooms/7/chat", mount="/app")
    assert sorted(len(worker.seen) for worker in workers) == [0, 0, 12]


def test_hashed_key_of_the_query_decides_which_worker_serves(start):
    workers = [start(key="url_param(room)", slots=2) for _ in range(2)]
    for number in range(12):
        for each in workers:
            each.request(query=f"room={number}")
    rooms = [{request.query for request in worker.seen} for worker in workers]
    assert rooms[0] and rooms[1] and not rooms[0] & rooms[1]


def test_first_key_of_a_list_is_hashed(start):
    workers = [start(key=["hdr(X-Room)", "url_param(room)"], slots=2) for _ in range(2)]
    for room in range(12):
        for each in workers:
            each.request(query=f"room={room}")
            each.request(headers=[("X-Room", f"{room}")], query="room=another")
    rooms = [{request.query.removeprefix("room=") for request in worker.seen} - {"another"} for worker in workers]
    by_header = [{request.headers.get("x-room") for request in worker.seen} - {None} for worker in workers]
    assert rooms == by_header and not rooms[0] & rooms[1]


# Keys that are learned


def test_key_that_a_response_gives_out_is_found_by_all_workers(start):
    seen: list[Any] = []
    workers = [start(session_app, log=seen.append, key="hdr(Mcp-Session-Id)", cookie=None) for _ in range(3)]
    names = [worker.request().header("mcp-session-id") for worker in workers]
    for name in names:
        for worker in workers:
            for _ in range(2):  # the first time it is looked up, the second time it is known
                response = worker.request(headers=[("Mcp-Session-Id", name)])
                assert (response.status, response.cookies) == (200, [])
    assert {(each.claim.name, each.reason.value) for each in seen[3:]} == {("VALID", "server is usable")}


def test_requests_with_a_key_that_a_response_gives_out_are_all_served_by_its_worker(start):
    def give(worker, request):
        return Response(headers=[("Mcp-Session-Id", "a-new-one")])

    workers = [start(serve, key="hdr(Mcp-Session-Id)", cookie=None) for serve in (give, None, None)]
    workers[0].request()
    for each in workers:
        each.request(headers=[("Mcp-Session-Id", "a-new-one")])
    assert [len(worker.seen) for worker in workers] == [4, 0, 0]


def test_key_in_the_response_to_a_forwarded_request_is_known_in_the_worker_that_served_it(start):
    one, other, third = (start(session_app, key="hdr(Mcp-Session-Id)") for _ in range(3))
    mark = one.request().mark
    name = other.request(cookie=mark).header("mcp-session-id")
    other.stop()  # the worker that has forwarded it knows the key as well
    assert third.request(headers=[("Mcp-Session-Id", name)]).status == 200
    assert [len(worker.seen) for worker in (one, other, third)] == [3, 0, 0]


def test_request_with_a_key_is_served_although_a_worker_that_knows_the_key_was_killed(start):
    one, other, third = (start(serve, key="hdr(Mcp-Session-Id)") for serve in (session_app, None, None))
    mark = one.request().mark
    name = other.request(cookie=mark).header("mcp-session-id")
    other.kill()
    assert third.request(headers=[("Mcp-Session-Id", name)]).status == 200


def test_session_in_constant_use_is_found_however_long_ago_its_key_was_learned(start):
    clock = ManualClock()
    one, other, third = (start(session_app, key="hdr(Mcp-Session-Id)", cookie=None) for _ in range(3))
    for worker in (one, other, third):
        worker.backend.keys.table.clock = clock
    headers = [("Mcp-Session-Id", one.request().header("mcp-session-id"))]
    for _ in range(6):
        clock.advance(3000)
        assert other.request(headers=headers).status == 200
    other.stop()  # it has renewed the key, and so has its owner
    assert third.request(headers=headers).status == 200


def test_session_is_found_after_a_request_that_took_longer_than_keys_are_kept(start):
    clock = ManualClock()

    def serve(worker, request):
        clock.advance(3 * 3600)
        return session_app(worker, request)

    one, other, third = (start(serve, key="hdr(Mcp-Session-Id)", cookie=None) for _ in range(3))
    for worker in (one, other, third):
        worker.backend.keys.table.clock = clock
    headers = [("Mcp-Session-Id", one.request().header("mcp-session-id"))]
    assert other.request(headers=headers).status == 200
    other.stop()
    assert third.request(headers=headers).status == 200
    assert one.request(headers=headers).status == 200
    one_more = start(serve, key="hdr(Mcp-Session-Id)", cookie=None)
    third.stop()
    assert one_more.request(headers=headers).status == 200


def test_session_is_found_although_the_arbiter_of_its_key_was_just_killed(start):
    one, other, third = (start(session_app, key="hdr(Mcp-Session-Id)", cookie=None) for _ in range(3))
    names = [one.request().header("mcp-session-id") for _ in range(40)]
    name = next(name for name in names if third.backend.keys.arbiter(name).name == "w2")
    other.kill()
    assert third.request(headers=[("Mcp-Session-Id", name)]).status == 200
    assert one.request(headers=[("Mcp-Session-Id", name)]).status == 200


def test_new_key_is_owned_by_the_worker_that_accepts_its_first_request(start):
    workers = [start(key="/rooms/{id}") for _ in range(3)]
    for number in range(9):
        home = workers[number % 3]
        for worker in (home, *workers):
            worker.request(f"/rooms/{number}")
        assert home.paths[-4:] == [f"/rooms/{number}"] * 4


@pytest.mark.parametrize("number", [2, 4], ids=["two workers", "four workers"])
def test_key_is_known_to_all_workers_once_one_owns_it(start, number):
    workers = [start(key="url_param(room)", cookie=None) for _ in range(number)]
    for turn in range(3 * number):
        for room in range(2 * number):
            workers[(room + turn) % number].request(query=f"room={room}")
    rooms = [{request.query for request in worker.seen} for worker in workers]
    assert [len(each) for each in rooms] == [2] * number  # each where its first request was accepted


@pytest.mark.parametrize("number, rooms", [(3, 20), (4, 10)], ids=["three workers", "four workers"])
def test_key_that_all_workers_accept_at_the_same_time_has_one_owner(start, number, rooms):
    workers = [start(key="/rooms/{id}") for _ in range(number)]
    for room in range(rooms):
        path = f"/rooms/{room}"
        run_together(*(lambda worker=worker, path=path: worker.request(path) for worker in workers * 2))
        assert len(owners(workers, path)) == 1


def test_keys_of_a_killed_worker_get_one_new_owner_each_and_the_decision_has_the_reason(start):
    seen: list[Any] = []
    options = {"key": "/rooms/{id}", "cookie": None}
    one, other, third = start(**options), start(log=seen.append, **options), start(log=seen.append, **options)
    for room in range(6):
        for worker in (one, other, third):
            worker.request(f"/rooms/{room}")
    assert len(one.seen) == 18
    one.kill()
    seen.clear()
    for room in range(6):
        for worker in (other, third, other):
            worker.request(f"/rooms/{room}")
        assert len(owners((other, third), f"/rooms/{room}")) == 1
    assert [each.reason.value for each in seen].count("other instance") == 6


def test_key_counts_more_than_the_cookie(start):
    one, other = (start(key="/rooms/{id}") for _ in range(2))
    mark = one.request().mark
    response = other.request("/rooms/1", cookie=mark)
    assert (response.body, response.cookies) == (b"1", [])
    one.request("/rooms/1", cookie=mark)
    assert other.paths == ["/rooms/1"] * 2
    assert other.request(cookie=mark).body == b"2"


@pytest.mark.parametrize("slots", [None, 2], ids=["learned", "hashed"])
def test_key_that_raises_leaves_the_request_to_the_cookie(start, slots, caplog):
    def room(request):
        raise LookupError("no room")

    options = {} if slots is None else {"slots": slots}
    workers = [start(key=room, **options) for _ in range(2)]
    mark = workers[0].request().mark
    for worker in workers:
        assert worker.request(cookie=mark).status == 200
    assert [len(worker.seen) for worker in workers] == [3, 0]
    records = [each for each in caplog.records if "has raised LookupError('no room')" in each.getMessage()]
    assert len(records) >= 2 and all(each.exc_info for each in records)
