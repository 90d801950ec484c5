"""How many requests the app of a WSGI worker serves at the same time: its own, and those that peers forward."""

import threading
from typing import Any

import pytest

from tests.faces.workers.wsgi import DEADLINE, HoldingApp, RecordingApp, close, respond, run_together, wait_until


@pytest.mark.parametrize("threads", [1, 3])
def test_own_requests_and_forwarded_ones_share_the_permits_of_a_worker(worker, threads):
    crowd = HoldingApp()
    front, owner = worker(RecordingApp(), threads=8), worker(crowd, threads=threads)
    owner.request()
    cookie = {"HTTP_COOKIE": owner.cookie}
    calls = [lambda each=each: each.request("/wait", **cookie) for each in (front, owner) * 4]

    def open_the_gate():
        wait_until(lambda: crowd.inside == threads, "all permits are held")
        crowd.gate.set()

    run_together(open_the_gate, *calls)
    assert crowd.most == threads
    # one more thread, which waits for requests
    assert sum(each.name == "group w2" for each in threading.enumerate()) <= threads + 1


def test_no_permit_is_held_while_a_request_is_forwarded(worker):
    """Two workers with one permit each forward a request to each other, and each is served while the other waits."""
    both = threading.Barrier(2)

    def app(environ, start_response):
        if environ["PATH_INFO"] != "/":
            both.wait(DEADLINE)
        return respond(start_response)

    one, two = worker(app, threads=1), worker(app, threads=1)
    one.request()
    two.request()
    run_together(
        lambda: one.request("/meet", HTTP_COOKIE=two.cookie),
        lambda: two.request("/meet", HTTP_COOKIE=one.cookie),
    )
    assert not both.broken


def test_permit_is_held_until_the_response_is_closed(worker):
    def app(environ, start_response):
        start_response("200 OK", [])
        return iter([b"one", b"two"])

    front, owner = worker(app), worker(app, threads=1)
    owner.request()
    held = owner.open(owner.environ())
    responses = []
    requesting = threading.Thread(target=lambda: responses.append(front.request(HTTP_COOKIE=owner.cookie).data))
    requesting.start()
    wait_until(lambda: owner.app.workers.own_server.in_flight, "the request in flight")
    assert not responses
    close(held.body)
    requesting.join(DEADLINE)
    assert responses == [b"onetwo"]


def test_keys_are_looked_up_while_all_permits_are_held(worker):
    crowd = HoldingApp()
    front, owner = (worker(crowd, threads=1, key="url_param(room)", cookie=None) for _ in range(2))
    owner.request(query="room=a")
    held = [threading.Thread(target=each.request, args=("/wait", "room=a")) for each in (front, owner, front)]
    for each in held:
        each.start()
    wait_until(lambda: crowd.inside, "its permit is held")
    for room in range(6):  # the busy worker is the arbiter of some of them
        assert front.request(query=f"room={room}").status == "200 OK"
    crowd.gate.set()
    for each in held:
        each.join(DEADLINE)


@pytest.mark.parametrize("threads", [1, 2])
def test_app_that_calls_itself_while_it_serves_a_request_does_not_wait_for_a_permit(worker, threads):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/batch":
            paths = environ["QUERY_STRING"].split(",")
            return respond(start_response, *(owner.request(path, HTTP_COOKIE=owner.cookie).data for path in paths))
        return respond(start_response, environ["PATH_INFO"].encode())

    front, owner = worker(app, threads=threads), worker(app, threads=threads)
    owner.request()
    responses = []
    for server in (owner, front):  # in the thread of the server, and in a thread that serves peers
        run_together(
            *[lambda server=server: responses.append(server.request("/batch", "/a,/b", HTTP_COOKIE=owner.cookie).data)]
            * threads
        )
    assert responses == [b"/a/b"] * 2 * threads
    wait_until(lambda: not owner.app.workers.own_server.in_flight, "no request in flight")


def test_response_that_a_test_client_has_not_closed_does_not_keep_the_next_request_waiting(worker):
    def app(environ, start_response):
        start_response("200 OK", [])
        return iter([environ["PATH_INFO"].encode()])

    server = worker(app, threads=1)
    bodies: list[Any] = []
    run_together(lambda: bodies.extend(server.open(server.environ(path)).body for path in ("/a", "/b", "/c")))
    assert [list(body) for body in bodies] == [[b"/a"], [b"/b"], [b"/c"]]
    for body in bodies:
        close(body)
    assert not server.app.workers.own_server.in_flight
