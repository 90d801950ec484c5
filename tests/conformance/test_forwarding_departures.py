"""Clients that leave, through real servers: whoever asks an upstream for them lets go of it at once.

The origin never sends another byte after a client has left, so nobody learns of it by writing. That is asked of WSGI as
well, where it can be seen through `gunicorn.socket` and `waitress.client_disconnected`.
"""

import pytest


def nothing(front, asked, caller) -> None:
    """The origin says nothing."""


def a_head(front, asked, caller) -> None:
    asked.head("200 OK", "Content-Length: 10")
    if front.is_possible("a head before its body"):
        assert caller.head().status == 200


def a_piece(front, asked, caller) -> None:
    asked.head("200 OK", "Content-Length: 1000000")
    asked.send(b"0123456789")
    caller.wait_for(b"0123456789")


def a_chunk(front, asked, caller) -> None:
    asked.head("200 OK", "Transfer-Encoding: chunked")
    asked.chunk(b"0123456789")
    caller.wait_for(b"0123456789")


PHASES = {
    "before the head": nothing,
    "before the body": a_head,
    "in the middle of a body": a_piece,
    "between two chunks": a_chunk,
}


@pytest.mark.parametrize("way", ["abort", "close"])
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_a_client_that_leaves_takes_its_upstream_connection_along(phase, way, front, a, b, until):
    before = front.counts("plain")
    caller = front.request("GET /")
    asked = a.next_request()
    phase(front, asked, caller)
    getattr(caller, way)()
    asked.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    after = front.counts("plain")
    assert (after["a"]["failed"], after["b"]["failed"]) == (before["a"]["failed"], before["b"]["failed"])
    assert a.has_no_request() and b.has_no_request()


def test_a_client_that_leaves_in_the_middle_of_its_upload_takes_its_upstream_connection_along(front, a, until):
    front.skip_if_impossible("an upload in small pieces")
    before = front.counts("plain")["a"]["failed"]
    caller = front.request("POST /", "Content-Length: 1000000", body=b"some of it")
    asked = a.next_request()
    asked.wire.read_until(b"some of it")
    caller.abort()
    asked.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    assert front.counts("plain")["a"]["failed"] == before


def test_a_client_that_leaves_after_its_upload_takes_its_upstream_connection_along(front, a, until):
    caller = front.request("POST /", body=b"all of it")
    asked = a.next_request()
    assert asked.read_body() == b"all of it"
    caller.abort()
    asked.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")


def test_a_client_that_leaves_with_its_answer_leaves_the_upstream_connection_behind(front, a):
    caller = front.request("GET /", "Connection: close")
    asked = a.next_request()
    asked.respond(body=b"hello")
    assert caller.response().body == b"hello"
    caller.abort()
    again = front.request("GET /again")
    following = a.next_request()
    assert (following.target, following.wire is asked.wire) == ("/again", True)
    following.respond()
    assert again.response().status == 200


def test_fifty_clients_that_leave_leave_no_connection_behind(front, a, until):
    phases = list(PHASES.values())
    for number in range(10):
        callers = [front.request(f"GET /{number}") for _ in range(5)]
        heard = [a.next_request() for _ in callers]
        for at, asked in enumerate(heard):
            # which caller's it is nobody knows: whoever gets an answer leaves in the middle of it
            if phases[(number + at) % 4] is not nothing:
                asked.head("200 OK", "Content-Length: 1000")
                asked.send(b"0123456789")
        for caller in callers:
            caller.abort()
        for asked in heard:
            asked.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    assert a.open_connections() == 0
    caller = front.request("GET /next")
    a.next_request().respond(body=b"next")
    assert caller.response().body == b"next"


def test_who_asks_next_on_a_connection_is_not_told_what_the_one_before_has_not_read(front, a):
    caller = front.request("GET /first")
    asked = a.next_request()
    asked.head("200 OK", "Content-Length: 10")
    asked.send(b"01234")
    caller.wait_for(b"01234")
    caller.abort()
    asked.wait_closed()
    following = front.request("GET /second")
    heard = a.next_request()
    assert (heard.target, heard.wire is asked.wire) == ("/second", False)
    heard.respond(body=b"second")
    assert following.response().body == b"second"
