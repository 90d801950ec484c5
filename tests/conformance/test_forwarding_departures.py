"""Clients that disconnect, through real servers: the connection to the upstream is closed at once.

The origin sends no byte after a client has disconnected, so no failing write reveals it. That is required of WSGI as
well, where `gunicorn.socket` and `waitress.client_disconnected` show it.
"""

import pytest


def send_nothing(front, received, client) -> None:
    """The origin sends nothing."""


def send_head(front, received, client) -> None:
    received.head("200 OK", "Content-Length: 10")
    if front.is_possible("a head before its body"):
        assert client.head().status == 200


def send_piece(front, received, client) -> None:
    received.head("200 OK", "Content-Length: 1000000")
    received.send(b"0123456789")
    client.wait_for(b"0123456789")


def send_chunk(front, received, client) -> None:
    received.head("200 OK", "Transfer-Encoding: chunked")
    received.chunk(b"0123456789")
    client.wait_for(b"0123456789")


PHASES = {
    "before the head": send_nothing,
    "before the body": send_head,
    "in the middle of a body": send_piece,
    "between two chunks": send_chunk,
}


@pytest.mark.parametrize("way", ["abort", "close"])
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_upstream_connection_is_closed_when_its_client_closes(phase, way, front, a, b, until):
    before = front.counts("plain")
    client = front.request("GET /")
    received = a.next_request()
    phase(front, received, client)
    getattr(client, way)()
    received.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    after = front.counts("plain")
    assert (after["a"]["failed"], after["b"]["failed"]) == (before["a"]["failed"], before["b"]["failed"])
    assert a.has_no_request() and b.has_no_request()


def test_upstream_connection_is_closed_when_its_client_closes_during_an_upload(front, a, until):
    front.skip_if_impossible("an upload in small pieces")
    before = front.counts("plain")["a"]["failed"]
    client = front.request("POST /", "Content-Length: 1000000", body=b"some of it")
    received = a.next_request()
    received.wire.read_until(b"some of it")
    client.abort()
    received.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    assert front.counts("plain")["a"]["failed"] == before


def test_upstream_connection_is_closed_when_its_client_closes_after_an_upload(front, a, until):
    client = front.request("POST /", body=b"all of it")
    received = a.next_request()
    assert received.read_body() == b"all of it"
    client.abort()
    received.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")


def test_upstream_connection_is_kept_when_its_client_closes_after_the_response(front, a):
    client = front.request("GET /", "Connection: close")
    received = a.next_request()
    received.respond(body=b"hello")
    assert client.response().body == b"hello"
    client.abort()
    again = front.request("GET /again")
    following = a.next_request()
    assert (following.target, following.wire is received.wire) == ("/again", True)
    following.respond()
    assert again.response().status == 200


def test_fifty_clients_that_close_leave_no_connection_open(front, a, until):
    phases = list(PHASES.values())
    for number in range(10):
        clients = [front.request(f"GET /{number}") for _ in range(5)]
        requests = [a.next_request() for _ in clients]
        for at, received in enumerate(requests):
            # any client may get the response, and disconnects in the middle of it
            if phases[(number + at) % 4] is not send_nothing:
                received.head("200 OK", "Content-Length: 1000")
                received.send(b"0123456789")
        for client in clients:
            client.abort()
        for received in requests:
            received.wait_closed()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    assert a.open_connections() == 0
    client = front.request("GET /next")
    a.next_request().respond(body=b"next")
    assert client.response().body == b"next"


def test_next_request_on_a_connection_gets_nothing_of_the_response_before(front, a):
    client = front.request("GET /first")
    received = a.next_request()
    received.head("200 OK", "Content-Length: 10")
    received.send(b"01234")
    client.wait_for(b"01234")
    client.abort()
    received.wait_closed()
    again = front.request("GET /second")
    following = a.next_request()
    assert (following.target, following.wire is received.wire) == ("/second", False)
    following.respond(body=b"second")
    assert again.response().body == b"second"
