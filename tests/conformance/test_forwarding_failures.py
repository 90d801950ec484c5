"""Upstreams that fail, that are full, and that use TLS, through real servers: what the client receives, and which
server is tried next.
"""

import threading
import time

import pytest

OURS_A = "SERVERID=a; path=/"
OURS_B = "SERVERID=b; path=/"


def exchange(front, origin, line: str = "GET /", site: str = "plain"):
    """Send a request, respond and read the response. Return what the origin received."""
    client = front.request(line, site=site)
    received = origin.next_request()
    received.respond(body=b"hello")
    assert client.response().body == b"hello"
    return received


# -- connections that are reused


def test_connection_is_reused(front, a):
    first = exchange(front, a)
    assert exchange(front, a).wire is first.wire
    assert a.open_connections() == 1


def test_client_that_closes_does_not_close_the_upstream_connection(front, a):
    client = front.request("GET /", "Connection: close")
    received = a.next_request()
    assert received.values("connection") == []
    received.respond()
    client.response()
    assert client.receive() == b""
    assert exchange(front, a).wire is received.wire


@pytest.mark.parametrize(
    "version, fields", [("1.1", ["Connection: close"]), ("1.1", ["Connection: X-A, Close"]), ("1.0", [])]
)
def test_connection_that_the_origin_closes_is_not_reused(version, fields, front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", "Content-Length: 0", *fields, version=version)
    assert client.response().status == 200
    assert exchange(front, a).wire is not received.wire
    received.wait_closed()


def test_concurrent_requests_use_separate_connections(front, a):
    clients = [front.request("GET /one"), front.request("GET /two")]
    both = [a.next_request(), a.next_request()]
    assert both[0].wire is not both[1].wire
    for received in both:
        received.respond(body=received.target.encode())
    assert [client.response().body for client in clients] == [b"/one", b"/two"]


def test_idle_connection_is_closed_after_its_timeout(front, a):
    received = exchange(front, a, site="brief")
    if not front.is_asgi:  # without a background task the next request closes it
        return
    received.wait_closed()


def test_without_a_pool_every_request_has_its_own_connection(front, a):
    received = exchange(front, a, site="no-pool")
    received.wait_closed()
    assert exchange(front, a, site="no-pool").wire is not received.wire


# -- an origin that closes an idle connection at the moment in which it is reused


@pytest.mark.parametrize("line", ["GET /", "HEAD /", "OPTIONS /", "DELETE /"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_idempotent_request_is_resent_on_a_new_connection(line, how, front, a, b):
    before = front.counts("plain")["a"]["failed"]
    stale = exchange(front, a).wire
    client = front.request(line)
    received = a.next_request()
    assert received.wire is stale
    getattr(received, how)()
    again = a.next_request()
    assert (again.line, again.fields) == (received.line, received.fields)
    assert again.wire is not stale
    again.respond()
    response = client.response()
    assert (response.status, response.values("set-cookie")) == (200, [OURS_A])
    assert b.has_no_request()
    assert front.counts("plain")["a"]["failed"] == before  # it counts as no failure


def test_idempotent_request_is_resent_with_its_body(front, a):
    stale = exchange(front, a).wire
    client = front.request("PUT /", body=b"hello")
    received = a.next_request()
    assert received.wire is stale
    assert received.read_body() == b"hello"
    received.close()
    again = a.next_request()
    assert (again.line, again.read_body(), again.wire is stale) == ("PUT / HTTP/1.1", b"hello", False)
    again.respond()
    assert client.response().status == 200


def test_request_is_not_sent_a_third_time(front, a, b):
    exchange(front, a)
    client = front.request("GET /")
    a.next_request().close()
    a.next_request().close()
    assert client.response().status == 502
    assert a.has_no_request() and b.has_no_request()


def test_request_that_is_not_idempotent_is_not_resent(front, a, b):
    exchange(front, a)
    client = front.request("POST /", body=b"order")
    received = a.next_request()
    assert received.read_body() == b"order"
    received.close()
    response = client.response()
    assert (response.status, response.values("set-cookie")) == (502, [])
    assert exchange(front, a, "GET /next").target == "/next"
    assert b.has_no_request()


def test_request_that_is_not_idempotent_never_uses_a_closed_connection(front, a):
    for number in range(10):
        stale = exchange(front, a)
        stale.close()
        client = front.request(f"POST /{number}", body=b"order")
        received = a.next_request()
        assert (received.target, received.read_body()) == (f"/{number}", b"order")
        received.respond(body=b"thanks")
        assert client.response().body == b"thanks"
    assert a.has_no_request()


def test_origin_that_restarts_gets_requests_over_new_connections(front, a):
    clients = [front.request("GET /") for _ in range(4)]
    for received in [a.next_request() for _ in clients]:
        received.respond()
    for client in clients:
        assert client.response().status == 200
    assert a.open_connections() == 4
    a.close_connections()
    for _ in range(6):
        exchange(front, a)


# -- kinds of failures


def closed(received) -> None:
    received.close()


def reset(received) -> None:
    received.reset()


def sent_garbage(received) -> None:
    received.send(b"NONSENSE\r\n\r\n")


def sent_half_a_head(received) -> None:
    received.send(b"HTTP/1.1 200 OK\r\nContent-Len")
    received.close()


def sent_two_lengths(received) -> None:
    received.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")


def sent_two_framings(received) -> None:
    received.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


def sent_a_coding_that_hides_the_end(received) -> None:
    received.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")


def sent_too_large_a_head(received) -> None:
    try:
        received.send(b"HTTP/1.1 200 OK\r\n" + b"X-A: %b\r\n" % (b"a" * 4096) * 64 + b"\r\n")
    except ConnectionError:
        pass


BAD = [closed, reset, sent_garbage, sent_half_a_head, sent_two_lengths, sent_two_framings]
BAD += [sent_a_coding_that_hides_the_end, sent_too_large_a_head]


@pytest.mark.parametrize("fail", BAD, ids=lambda fail: fail.__name__.replace("_", " "))
def test_upstream_without_a_valid_response_gives_a_502_without_a_mark(fail, front, a, b):
    before = front.counts("plain")["a"]["failed"]
    client = front.request("GET /")
    received = a.next_request()
    fail(received)
    response = client.response()
    assert (response.status, response.values("set-cookie")) == (502, [])
    assert a.has_no_request() and b.has_no_request()
    assert front.counts("plain")["a"]["failed"] == before + 1
    assert exchange(front, a, "GET /next").wire is not received.wire


def test_refused_connection_gives_a_503(front):
    response = front.request("GET /", site="dead").response()
    assert (response.status, response.values("set-cookie")) == (503, [])
    assert response.values("retry-after") != []


def test_connect_timeout_gives_a_503(front):
    assert front.request("GET /", site="unreachable").response().status == 503


def test_response_timeout_gives_a_504(front, a, b):
    client = front.request("GET /", site="impatient")
    received = a.next_request()
    response = client.response()
    assert (response.status, response.values("set-cookie")) == (504, [])
    received.wait_closed()
    assert a.has_no_request() and b.has_no_request()


def test_response_that_stalls_is_cut(front, a):
    client = front.request("GET /", site="less-patient")
    received = a.next_request()
    received.head("200 OK", "Content-Length: 20")
    received.send(b"0123456789")
    client.wait_for(b"0123456789")
    with pytest.raises(AssertionError, match="the connection ended before"):
        client.response()
    received.wait_closed()


def test_response_with_progress_may_last_longer_than_the_timeout(front, a):
    client = front.request("GET /", site="less-patient")
    received = a.next_request()
    received.head("200 OK", "Transfer-Encoding: chunked")
    began = time.monotonic()
    while time.monotonic() - began < 1.2:  # all pieces together take longer than the timeout
        received.chunk(b"beat\n")
        assert b"beat\n" in client.read_until(b"beat\n")
    received.chunk(b"")
    client.read_until(b"0\r\n\r\n")


def test_failed_head_request_has_no_body(front):
    client = front.request("HEAD /", site="dead")
    assert client.response().status == 503
    client.request("GET /")
    assert client.response().status == 503


# -- which server is tried next


def test_refused_connection_is_retried_and_the_mark_names_the_next_server(front, b):
    client = front.request("POST /a%2Fb?c", "X-A: caf\xe9", site="next", body=b"hello")
    received = b.next_request()
    assert (received.line, received.values("x-a"), received.read_body()) == (
        "POST /a%2Fb?c HTTP/1.1",
        ["caf\xe9"],
        b"hello",
    )
    received.respond("200 OK", "Set-Cookie: a=1", body=b"from b")
    response = client.response()
    assert (response.status, response.body, response.values("set-cookie")) == (200, b"from b", ["a=1", OURS_B])


def test_refused_connection_is_retried_whatever_the_size_of_the_upload(front, b):
    client = front.client("next")
    thread = threading.Thread(target=client.request, args=("POST /",), kwargs={"body": bytes(1 << 20)})
    thread.start()
    received = b.next_request()
    assert len(received.read_body()) == 1 << 20
    thread.join()
    received.respond()
    assert client.response().status == 200


def test_client_of_a_refusing_server_gets_the_mark_of_its_new_one(front, b):
    client = front.request("GET /", "Cookie: SERVERID=a", site="next")
    received = b.next_request()
    assert received.values("cookie") == []
    received.respond()
    assert client.response().values("set-cookie") == [OURS_B]


@pytest.mark.parametrize("site", ["no-retries", "never"])
def test_without_retries_a_refused_connection_is_the_response(site, front, b):
    assert front.request("GET /", site=site).response().status == 503
    assert b.has_no_request()


def with_a_503(received) -> None:
    received.respond("503 Busy", "X-Failed: 1", "Set-Cookie: failed=1", "Content-Encoding: gzip", body=b"busy " * 100)


def with_a_503_that_does_not_end(received) -> None:
    received.head("503 Busy", "X-Failed: 1", "Set-Cookie: failed=1", "Transfer-Encoding: chunked")
    received.chunk(b"busy")


AGAIN = [*BAD, with_a_503, with_a_503_that_does_not_end]


@pytest.mark.parametrize("fail", AGAIN, ids=lambda fail: fail.__name__.replace("_", " "))
def test_retry_on_sends_the_next_servers_response_only(fail, front, a, b):
    client = front.request("PUT /a%2Fb?c", "X-A: caf\xe9", "Cookie: x=1; SERVERID=a", site="again", body=b"hello")
    first = a.next_request()
    first.read_body()
    fail(first)
    received = b.next_request()
    assert (received.line, received.fields) == (first.line, first.fields)
    assert received.read_body() == b"hello"
    received.respond("201 Created", "X-B: 1", body=b"from b")
    response = client.response()
    assert (response.status, response.body, response.values("set-cookie")) == (201, b"from b", [OURS_B])
    assert (response.values("x-failed"), response.values("content-encoding"), response.values("x-b")) == ([], [], ["1"])


def test_retry_on_a_timeout_uses_the_next_server(front, a, b):
    client = front.request("GET /", site="less-patient-again")
    first = a.next_request()
    received = b.next_request()
    first.wait_closed()
    received.respond(body=b"from b")
    assert client.response().body == b"from b"


def test_last_response_is_forwarded_when_no_server_is_left(front, a, b):
    client = front.request("GET /", site="again")
    with_a_503(a.next_request())
    b.next_request().respond("503 Busy", "X-Last: 1", "Set-Cookie: last=1", body=b"busy as well")
    response = client.response()
    assert (response.status, response.body) == (503, b"busy as well")
    assert response.values("set-cookie") == ["last=1", OURS_B]
    assert (response.values("x-last"), response.values("x-failed")) == (["1"], [])


@pytest.mark.parametrize("pieces", [[b"busy"], [b"bu", b"sy"], [b"busy" * 10_000]])
def test_response_that_was_held_back_is_forwarded_if_the_other_server_refuses(pieces, front, a):
    client = front.request("GET /", site="again-or-not")
    received = a.next_request()
    received.head("503 Busy", "X-Busy: 1", f"Content-Length: {len(b''.join(pieces))}")
    for piece in pieces:
        received.send(piece)
    response = client.response()
    assert (response.status, response.body, response.values("x-busy")) == (503, b"".join(pieces), ["1"])
    assert response.values("set-cookie") == [OURS_A]


def test_response_that_is_not_in_retry_on_is_forwarded(front, a, b):
    client = front.request("GET /", site="again")
    a.next_request().respond("500 Oops", body=b"oops")
    response = client.response()
    assert (response.status, response.body, response.values("set-cookie")) == (500, b"oops", [OURS_A])
    assert b.has_no_request()


@pytest.mark.parametrize(
    "fail, status",
    [(closed, 502), (sent_garbage, 502), (with_a_503, 503)],
    ids=["closed", "sent garbage", "with a 503"],
)
def test_request_that_may_have_been_executed_is_not_replayed(fail, status, front, a, b):
    client = front.request("POST /", site="again", body=b"order")
    received = a.next_request()
    received.read_body()
    fail(received)
    assert client.response().status == status
    assert a.has_no_request() and b.has_no_request()


@pytest.mark.parametrize("fail", [closed, with_a_503], ids=["closed", "with a 503"])
def test_request_with_an_idempotency_key_is_replayed(fail, front, a, b):
    client = front.request("POST /", "Idempotency-Key: 42", site="keyed", body=b"order")
    received = a.next_request()
    received.read_body()
    fail(received)
    again = b.next_request()
    assert (again.values("idempotency-key"), again.read_body()) == (["42"], b"order")
    again.respond(body=b"thanks")
    assert client.response().body == b"thanks"


@pytest.mark.parametrize(
    "site, fields", [("keyed", []), ("again", ["Idempotency-Key: 42"])], ids=["no key", "not opted in"]
)
def test_idempotency_key_counts_only_where_it_is_enabled(site, fields, front, a, b):
    client = front.request("POST /", *fields, site=site, body=b"order")
    received = a.next_request()
    received.read_body()
    received.close()
    assert client.response().status == 502
    assert b.has_no_request()


def test_body_within_the_limit_is_replayed_and_a_larger_one_is_not(front, a, b):
    client = front.request("PUT /", site="small", body=b"0123456789")
    received = a.next_request()
    received.read_body()
    received.close()
    again = b.next_request()
    assert again.read_body() == b"0123456789"
    again.respond()
    assert client.response().status == 200
    client = front.request("PUT /", site="small", body=b"0123456789+")
    received = a.next_request()
    received.read_body()
    received.close()
    assert client.response().status == 502
    assert b.has_no_request()


def test_without_redispatch_the_same_server_is_retried(front, a, b):
    client = front.request("GET /", "Cookie: SERVERID=a", site="again-here")
    with_a_503(a.next_request())
    a.next_request().respond(body=b"better")
    assert client.response().body == b"better"
    assert b.has_no_request()


def test_retry_of_a_refusing_server_waits(front, origins, until):
    late = origins["late"]
    before = front.counts("patient")["a"]["failed"]
    client = front.request("POST /", site="patient", body=b"hello")
    until(lambda: front.counts("patient")["a"]["failed"] > before, "a first attempt has failed")
    late.start_listening()
    try:
        received = late.next_request()
        assert received.read_body() == b"hello"
        received.respond(body=b"at last")
        assert client.response().body == b"at last"
    finally:
        late.refuse_connections()


def test_apps_and_upstreams_are_servers_of_one_backend(front, a):
    client = front.request("GET /", "Cookie: SERVERID=app", site="mixed")
    response = client.response()
    assert (response.body, response.values("set-cookie")) == (b"the app itself", [])
    client = front.request("GET /", "Cookie: SERVERID=a", site="mixed")
    a.next_request().respond(body=b"the upstream")
    response = client.response()
    assert (response.body, response.values("set-cookie")) == (b"the upstream", [])
    assert a.has_no_request()


def test_new_clients_are_balanced_over_apps_and_upstreams(front, a):
    with a.responding(lambda received: received.respond(body=b"the upstream")):
        bodies = [front.request("GET /", site="mixed").response().body for _ in range(4)]
    assert sorted(bodies[:2]) == sorted(bodies[2:]) == [b"the app itself", b"the upstream"]


# -- slots


def queue_length(front, site: str) -> int:
    number: int = front.counts(site)["queue"]["waiting"]
    return number


def test_request_without_a_slot_in_time_gets_a_503(front, a):
    first = front.request("GET /first", site="one-at-once")
    received = a.next_request()
    response = front.request("GET /second", site="one-at-once").response()
    assert (response.status, response.values("set-cookie")) == (503, [])
    assert a.has_no_request()
    received.respond(body=b"first")
    assert first.response().body == b"first"
    assert exchange(front, a, site="one-at-once").target == "/"


def test_request_that_has_waited_longest_is_next(front, a, until):
    first = front.request("GET /first", site="one")
    received = a.next_request()
    waiting = []
    for number in range(4):
        waiting.append(front.request(f"POST /{number}", site="one", body=b"hello"))
        until(lambda: queue_length(front, "one") == len(waiting), "one more in the queue")
    for number, (before, after) in enumerate(zip([first, *waiting], waiting, strict=False)):
        assert a.has_no_request()
        received.respond(body=b"thanks")
        assert before.response().body == b"thanks"
        received = a.next_request()
        assert (received.target, received.read_body()) == (f"/{number}", b"hello")
        assert not after.is_readable()
    received.respond(body=b"last")
    assert waiting[-1].response().body == b"last"


def test_client_that_leaves_the_queue_delays_no_other(front, a, until):
    first = front.request("GET /first", site="one")
    received = a.next_request()
    leaving = front.request("GET /leaving", site="one")
    until(lambda: queue_length(front, "one") == 1, "one in the queue")
    staying = front.request("GET /staying", site="one")
    until(lambda: queue_length(front, "one") == 2, "two in the queue")
    leaving.abort()
    until(lambda: queue_length(front, "one") == 1, "one has left the queue")
    received.respond()
    assert first.response().status == 200
    following = a.next_request()
    assert following.target == "/staying"
    following.respond()
    assert staying.response().status == 200
    assert exchange(front, a, site="one").target == "/"


def test_client_that_disconnects_frees_its_slot_for_the_next(front, a, until):
    check_that_a_client_frees_its_slot(front, a, until)


@pytest.mark.parametrize("front", ["gunicorn with gevent"], indirect=True)
def test_requests_are_forwarded_and_clients_that_disconnect_are_noticed_under_gevent(front, a, until):
    for _ in range(3):
        exchange(front, a)
    assert a.open_connections() == 1
    check_that_a_client_frees_its_slot(front, a, until)


def check_that_a_client_frees_its_slot(front, a, until):
    """Require that the request of a client that disconnects ends, and that the next one in the queue is served."""
    first = front.request("GET /first", site="one")
    received = a.next_request()
    second = front.request("GET /second", site="one")
    until(lambda: queue_length(front, "one") == 1, "one in the queue")
    first.abort()
    received.wait_closed()
    following = a.next_request()
    assert following.target == "/second"
    following.respond()
    assert second.response().status == 200


def test_failure_frees_its_slot_for_the_next(front, a, until):
    first = front.request("GET /first", site="one")
    received = a.next_request()
    second = front.request("GET /second", site="one")
    until(lambda: queue_length(front, "one") == 1, "one in the queue")
    received.close()
    assert first.response().status == 502
    following = a.next_request()
    assert following.target == "/second"
    following.respond()
    assert second.response().status == 200


def test_request_to_a_full_queue_gets_a_503_at_once(front, a, until):
    first = front.request("GET /first", site="one-more")
    received = a.next_request()
    second = front.request("GET /second", site="one-more")
    until(lambda: queue_length(front, "one-more") == 1, "one in the queue")
    assert front.request("GET /third", site="one-more").response().status == 503
    received.respond()
    assert first.response().status == 200
    a.next_request().respond()
    assert second.response().status == 200


def test_first_fills_the_first_server_before_the_next(front, a, b):
    first = front.request("GET /first", site="first")
    received = a.next_request()
    second = front.request("GET /second", site="first")
    other = b.next_request()
    assert (received.target, other.target) == ("/first", "/second")
    received.respond()
    assert first.response().status == 200
    third = front.request("GET /third", site="first")
    again = a.next_request()
    assert again.target == "/third"
    for each in (again, other):
        each.respond()
    assert (second.response().status, third.response().status) == (200, 200)


# -- TLS


def test_upstream_with_tls_is_verified_and_used(front, origins, until):
    client = front.request("POST /a%2Fb", "X-A: caf\xe9", site="tls", body=b"hello")
    received = origins["tls"].next_request()
    assert (received.target, received.values("x-a"), received.read_body()) == ("/a%2Fb", ["caf\xe9"], b"hello")
    assert received.values("x-forwarded-proto") == ["http"]  # the client's own scheme
    received.respond(body=b"thanks" * 10_000)
    assert client.response().body == b"thanks" * 10_000
    wires = [received.wire]

    def is_reused():  # a client may have the response a moment before the connection is idle
        wires.append(exchange(front, origins["tls"], site="tls").wire)
        return any(each is wires[-1] for each in wires[:-1])

    until(is_reused, "a connection is used again")


@pytest.mark.parametrize("site, origin", [("tls-stranger", "tls"), ("tls-misnamed", "named")])
def test_invalid_certificate_gives_a_503(site, origin, front, origins):
    client = front.request("GET /", site=site)
    origins[origin].accept_failing_handshake()
    assert client.response().status == 503


def test_any_certificate_is_accepted_without_verification(front, origins):
    assert exchange(front, origins["tls"], site="tls-careless").target == "/"


def test_sni_is_the_name_that_is_sent_and_verified(front, origins):
    origins["named"].names.clear()
    assert exchange(front, origins["named"], site="tls-named").target == "/"
    assert origins["named"].names == ["origin.test"]


def test_client_certificate_is_sent(front, origins):
    received = exchange(front, origins["mutual"], site="tls-mutual")
    assert "client@sites.test" in str(received.wire.certificate)


def test_tls_connection_is_closed_when_its_client_closes(front, origins):
    client = front.request("GET /", site="tls")
    received = origins["tls"].next_request()
    client.abort()
    received.wait_closed()


def test_response_timeout_over_tls_gives_a_504(front, origins):
    client = front.request("GET /", site="tls-impatient")
    received = origins["tls"].next_request()
    assert client.response().status == 504
    received.wait_closed()


def test_incomplete_response_over_tls_is_visible_to_the_client(front, origins):
    client = front.request("GET /", site="tls")
    received = origins["tls"].next_request()
    received.head("200 OK", "Content-Length: 100")
    received.send(b"0123456789")
    client.wait_for(b"0123456789")
    received.close()
    with pytest.raises(AssertionError, match="the connection ended before"):
        client.response()
