"""Uploads of clients that take long, and to servers that take long, through real servers: which end a timeout is
charged to.
"""

import threading
import time
from contextlib import suppress

import pytest

from sticky_core.http.timeouts import SLOW_CLIENT

#: seconds, as in apps/sites.py
SERVER_TIMEOUT = 0.3

LENGTH = 100_000
MUCH = 32 << 20
UPLOADS = [f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked"]


def test_upload_may_last_longer_than_the_timeout_of_the_server(front, a, b):
    """`server` counts only while the server is waited for; with max_fails=1, one failure would take it down."""
    clients = [front.request("POST /", field, site="patient-with-clients") for field in UPLOADS]
    began = time.monotonic()
    sent = 0
    while time.monotonic() - began < 3 * SERVER_TIMEOUT:
        clients[0].send(b"x")
        clients[1].send(b"1\r\nx\r\n")
        sent += 1
        time.sleep(0.02)  # the pace of the client
    clients[0].send(bytes(LENGTH - sent))
    clients[1].send(b"0\r\n\r\n")
    with a.responding(lambda received: received.respond(body=b"%d" % len(received.read_body()))):
        lengths = [client.response().body for client in clients]
        assert lengths == [b"%d" % LENGTH, b"%d" % sent]
        assert front.request("GET /", site="patient-with-clients").response().status == 200
    assert b.has_no_request()


@pytest.mark.parametrize("field", UPLOADS)
def test_client_that_stops_sending_gets_a_408_and_the_server_is_not_at_fault(field, front, a, b):
    if not front.is_asgi:
        pytest.skip("a read of wsgi.input can't be interrupted: the web server limits how long it lasts")
    before = front.counts("impatient-with-clients")["a"]
    client = front.request("POST /", field, site="impatient-with-clients")
    part = b"5\r\nfirst\r\n" if "chunked" in field else b"first"
    client.send(part)
    received = a.next_request()
    received.wire.read_until(part)
    assert client.response().status == 408
    received.wait_closed()
    after = front.counts("impatient-with-clients")["a"]
    assert (after["failed"], after["aborted"]) == (before["failed"], before["aborted"] + 1)
    again = front.request("GET /", site="impatient-with-clients")
    a.next_request().respond()
    assert again.response().status == 200
    assert b.has_no_request()


def test_client_that_stops_sending_after_the_head_of_the_response_gets_no_complete_response(front, a, until):
    if not front.is_asgi:
        pytest.skip("a read of wsgi.input can't be interrupted: the web server limits how long it lasts")
    before = front.counts("impatient-with-clients")["a"]
    client = front.request("POST /", UPLOADS[1], site="impatient-with-clients")
    received = a.next_request()
    received.head("200 OK", "Content-Length: 20")
    received.send(b"0123456789")
    client.wait_for(b"0123456789")
    with pytest.raises(AssertionError, match="the connection ended before"):
        client.response()
    received.wait_closed()
    after = front.counts("impatient-with-clients")["a"]
    assert (after["failed"], after["aborted"]) == (before["failed"], before["aborted"] + 1)
    again = front.request("GET /", site="impatient-with-clients")
    a.next_request().respond()
    assert again.response().status == 200


def test_server_that_does_not_read_an_upload_gives_a_504(front, a):
    front.skip_if_impossible("an upload while it lasts")
    before = front.counts("impatient")["a"]["failed"]
    client = front.client("impatient")
    client.request("POST /", f"Content-Length: {MUCH}")

    def send() -> None:
        try:
            for _ in range(MUCH // 65536):
                client.send(bytes(65536))
        except OSError:
            pass  # the connection closes after the response

    thread = threading.Thread(target=send)
    thread.start()
    a.next_request().wire.shrink_buffers()
    assert client.head().status == 504
    client.shut_down()
    thread.join()
    assert front.counts("impatient")["a"]["failed"] == before + 1


def test_server_that_gives_up_on_a_client_that_does_not_read_is_not_at_fault(front, a, b):
    client = front.request("GET /", site="patient-with-clients")
    received = a.next_request()
    received.head("200 OK", f"Content-Length: {MUCH}")

    def send() -> None:
        received.wire.set_timeout(3 * SLOW_CLIENT)
        with suppress(OSError):
            received.send(bytes(MUCH))

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    received.reset()
    with suppress(AssertionError, OSError):
        client.response()
    again = front.request("GET /", site="patient-with-clients")
    a.next_request().respond()
    assert again.response().status == 200
    assert b.has_no_request()
