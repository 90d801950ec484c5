"""Bodies forwarded to an upstream and back, through real servers: their framing, that each part is forwarded at once,
and that an incomplete body is visible.

No test waits for time to pass: the origin sends its next byte when the test calls for it.
"""

import gzip
import os
import threading

import pytest

BODY = bytes(range(256))
GZIPPED = gzip.compress(b"hello, " * 1000, mtime=0)


def framing_of(message) -> dict[str, list[str]]:
    """Return the headers that frame the body of a message."""
    named = {name: message.values(name) for name in ("content-length", "transfer-encoding")}
    return {name: values for name, values in named.items() if values}


def framing_received(front, origin, line: str, *fields: str, body: bytes = b""):
    """Send a request; the origin reads it and responds. Return what the origin received."""
    client = front.request(line, *fields, body=body)
    received = origin.next_request()
    received.body = received.read_body()
    received.respond()
    assert client.response().status == 200
    return received


# -- requests


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_request_without_a_body_has_no_framing_header(method, front, a):
    received = framing_received(front, a, f"{method} /")
    assert (received.method, framing_of(received), received.body) == (method, {}, b"")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_content_length_is_forwarded(method, front, a):
    received = framing_received(front, a, f"{method} /", body=BODY)
    assert (received.method, framing_of(received), received.body) == (method, {"content-length": ["256"]}, BODY)


def test_content_length_of_0_is_forwarded(front, a):
    assert framing_of(framing_received(front, a, "POST /", "Content-Length: 0")) == {"content-length": ["0"]}


CHUNKS = b"5\r\nhello\r\n3;an=extension\r\n, y\r\n2\r\nou\r\n0\r\n\r\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_chunked_upload_stays_chunked(method, front, a):
    front.skip_if_impossible("a chunked upload")
    received = framing_received(front, a, f"{method} /", "Transfer-Encoding: chunked", body=CHUNKS)
    assert (framing_of(received), received.body) == ({"transfer-encoding": ["chunked"]}, b"hello, you")


def test_chunked_upload_arrives_whole_where_a_server_gives_it_a_length(front, a):
    received = framing_received(front, a, "POST /", "Transfer-Encoding: chunked", body=CHUNKS)
    assert (len(framing_of(received)), received.body) == (1, b"hello, you")


def test_empty_chunked_upload_stays_chunked(front, a):
    front.skip_if_impossible("a chunked upload")
    received = framing_received(front, a, "POST /", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    assert (framing_of(received), received.body) == ({"transfer-encoding": ["chunked"]}, b"")


@pytest.mark.parametrize("size", [65535, 65536, 65537, 1_000_000])
@pytest.mark.parametrize("coding", ["counted", "chunked"])
def test_large_upload_arrives_whole(coding, size, front, a):
    body = os.urandom(size)
    if coding == "counted":
        client = front.request("POST /", f"Content-Length: {size}")
        sent = body
    else:
        client = front.request("POST /", "Transfer-Encoding: chunked")
        parts = [body[at : at + 10_000] for at in range(0, size, 10_000)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    thread = threading.Thread(target=client.send, args=(sent,))
    thread.start()
    received = a.next_request()
    assert received.read_body() == body
    thread.join()
    received.respond()
    assert client.response().status == 200


UPLOADS = ["Content-Length: 15", "Transfer-Encoding: chunked"]


@pytest.mark.parametrize("field", UPLOADS)
def test_head_of_an_upload_arrives_before_its_body_is_sent(field, front, a):
    front.skip_if_impossible("an upload in small pieces")
    client = front.request("POST /", field)
    received = a.next_request()
    received.respond("401 Unauthorized", body=b"who are you?")
    assert client.response().body == b"who are you?"


@pytest.mark.parametrize("field", UPLOADS)
def test_upload_arrives_piece_by_piece(field, front, a):
    front.skip_if_impossible("an upload in small pieces")
    chunked = "chunked" in field
    client = front.request("POST /", field)
    client.send(b"5\r\nfirst\r\n" if chunked else b"first")
    received = a.next_request()
    assert b"first" in received.wire.read_until(b"first")
    for piece in (b"secnd", b"third"):
        client.send(b"5\r\n%b\r\n" % piece if chunked else piece)
        assert piece in received.wire.read_until(piece)
    if chunked:
        client.send(b"0\r\n\r\n")
        received.wire.read_until(b"0\r\n\r\n")
    received.respond(body=b"thanks")
    assert client.response().body == b"thanks"


@pytest.mark.parametrize("disconnect", ["shut_down_sending", "abort"], ids=["half-close", "reset"])
@pytest.mark.parametrize("field, sent", [("Content-Length: 10", b"hel"), ("Transfer-Encoding: chunked", b"5\r\nhel")])
def test_incomplete_upload_never_looks_complete(field, sent, disconnect, front, a, until):
    client = front.request("POST /cut", field, body=sent)
    received = None
    if front.is_possible("an upload in small pieces"):
        received = a.next_request()
        received.wire.read_until(b"hel")
    getattr(client, disconnect)()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    following = front.request("GET /next")
    # A server that reads the body first may not forward the upload at all, or only now.
    while received is None or received.target != "/next":
        received = received_incomplete(received or a.next_request()) or a.next_request()
    received.respond()
    assert following.response().status == 200
    while not a.has_no_request():
        assert received_incomplete(a.next_request()) is None


def received_incomplete(received):
    """Require that the request was cut off if it is the upload; return it otherwise."""
    if received.target != "/cut":
        return received
    assert received.wire.read_all() in (b"", b"\r\n", b"hel", b"3\r\nhel\r\n")
    return None


DROP_ONE = ("granian", "waitress")


def test_request_with_two_framings_is_refused_or_forwarded_with_one(front, a):
    client = front.request("POST /", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
    if front.name in DROP_ONE:
        received = a.next_request()
        assert (len(framing_of(received)), received.read_body()) == (1, b"hello")
        received.respond()
        assert client.response().status == 200
    else:
        assert client.response().status == 400
        assert a.has_no_request()


# -- responses


def test_compressed_body_is_unchanged(front, a):
    client = front.request("GET /", "Accept-Encoding: gzip")
    received = a.next_request()
    assert received.values("accept-encoding") == ["gzip"]
    received.respond("200 OK", "Content-Encoding: gzip", 'ETag: "an-etag"', "Accept-Ranges: bytes", body=GZIPPED)
    response = client.response()
    assert response.body == GZIPPED
    assert framing_of(response) == {"content-length": [str(len(GZIPPED))]}
    assert response.values("content-encoding") == ["gzip"]
    assert response.values("etag") == ['"an-etag"']


@pytest.mark.parametrize("coding", ["br", "zstd", "unheard-of"])
def test_unknown_content_coding_is_unchanged(coding, front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
    for part in (BODY[:100], BODY[100:], b""):
        received.chunk(part)
    response = client.response()
    assert (response.body, response.values("content-encoding")) == (BODY, [coding])


def test_empty_chunked_response_is_complete(front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", "Transfer-Encoding: chunked")
    received.chunk(b"")
    assert client.response().body == b""


def test_trailers_do_no_harm(front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", "Transfer-Encoding: chunked", "Trailer: X-Late")
    received.send(b"5;an=extension\r\nhello\r\n0\r\nX-Late: 1\r\nX-Later: 2\r\n\r\n")
    assert client.response().body == b"hello"
    following = front.request("GET /next")
    again = a.next_request()
    assert again.wire is received.wire
    again.respond(body=b"next")
    assert following.response().body == b"next"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_response_that_ends_with_its_connection_is_complete(version, front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", version=version)
    received.send(BODY)
    received.close()
    assert client.response().body == BODY


def test_client_of_http_1_0_gets_no_chunks(front, a):
    front.skip_if_impossible("a response without chunks for HTTP/1.0")
    client = front.request("GET / HTTP/1.0")
    received = a.next_request()
    received.head("200 OK", "Transfer-Encoding: chunked")
    received.chunk(b"hello")
    received.chunk(b"")
    response = client.response()
    assert (response.body, response.values("transfer-encoding")) == (b"hello", [])


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 1_000_000])
@pytest.mark.parametrize("coding", ["counted", "chunked"])
def test_large_response_arrives_whole(coding, size, front, a):
    body = os.urandom(size)
    client = front.request("GET /")
    received = a.next_request()

    def send() -> None:
        if coding == "counted":
            received.respond(body=body)
        else:
            received.head("200 OK", "Transfer-Encoding: chunked")
            for at in range(0, size, 10_000):
                received.chunk(body[at : at + 10_000])
            received.chunk(b"")

    thread = threading.Thread(target=send)
    thread.start()
    assert client.response().body == body
    thread.join()


NO_BODY = {
    "HEAD": ("HEAD /", "200 OK", ["Content-Length: 1234", 'ETag: "x"'], {"content-length": ["1234"]}),
    "HEAD, chunked": ("HEAD /", "200 OK", ["Transfer-Encoding: chunked", 'ETag: "x"'], None),
    "HEAD, no length": ("HEAD /", "200 OK", ['ETag: "x"'], None),
    "HEAD, 404": (
        "HEAD /",
        "404 Not Found",
        ["Content-Length: 9", 'ETag: "x"'],
        {"content-length": ["9"]},
    ),
    "304": ("GET /", "304 Not Modified", ['ETag: "x"'], {}),
    "304 with a length": ("GET /", "304 Not Modified", ['ETag: "x"', "Content-Length: 1234"], None),
    "204": ("GET /", "204 No Content", ['ETag: "x"'], {}),
    "204 to a DELETE": ("DELETE /", "204 No Content", ['ETag: "x"'], {}),
    "204 with a length of 0": ("GET /", "204 No Content", ["Content-Length: 0", 'ETag: "x"'], {}),
}


@pytest.mark.parametrize("line, status, fields, expected", NO_BODY.values(), ids=NO_BODY)
def test_response_without_a_body_has_none(line, status, fields, expected, front, a):
    client = front.request(line)
    received = a.next_request()
    received.head(status, *fields)
    response = client.response()
    assert (response.status, response.values("etag"), response.body) == (int(status[:3]), ['"x"'], b"")
    if expected is not None:
        assert framing_of(response) == expected
    if "transfer-encoding" in framing_of(response):
        assert line.startswith("HEAD")  # RFC 9112, 6.1: the header that a GET would have got
    # On both connections the next response belongs to the next request.
    again = client if not any("close" in value for value in response.values("connection")) else front.client()
    again.request("GET /next")
    following = a.next_request()
    assert following.target == "/next"
    assert following.wire is received.wire or expected is None
    following.respond(body=b"next")
    assert again.response().body == b"next"


def test_interim_response_is_not_taken_for_the_final_one(front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
    received.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 Own\r\nX-A: 1\r\n\r\n")
    received.respond("201 Created", "X-B: 2", body=b"hello")
    response = client.response()
    assert (response.status, response.body) == (201, b"hello")
    assert (response.values("link"), response.values("x-a"), response.values("x-b")) == ([], [], ["2"])


def test_101_without_an_upgrade_request_is_no_response(front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket")
    received.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    response = client.response()
    assert (response.status, response.values("set-cookie")) == (502, [])
    received.wait_closed()


@pytest.mark.parametrize("when", ["with it", "after it"])
def test_unsolicited_response_reaches_no_client(when, front, a):
    client = front.request("GET /")
    received = a.next_request()
    one_too_many = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    if when == "with it":
        received.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + one_too_many)
        assert client.response().body == b"hello"
    else:
        received.respond(body=b"hello")
        assert client.response().body == b"hello"
        received.send(one_too_many)
    client.request("GET /next")
    following = a.next_request()
    assert following.wire is not received.wire
    following.respond(body=b"next")
    assert client.response().body == b"next"


# -- incomplete messages

CUTS = {
    "with a length, no byte": ("Content-Length: 1000", b""),
    "with a length, a part": ("Content-Length: 1000", b"0123456789"),
    "with a length, all but one byte": ("Content-Length: 11", b"0123456789"),
    "chunked, no chunk": ("Transfer-Encoding: chunked", b""),
    "chunked, within a chunk": ("Transfer-Encoding: chunked", b"14\r\n0123456789"),
    "chunked, between two": ("Transfer-Encoding: chunked", b"a\r\n0123456789\r\n"),
    "chunked, within the last": ("Transfer-Encoding: chunked", b"a\r\n0123456789\r\n0\r\n"),
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("field, sent", CUTS.values(), ids=CUTS)
def test_incomplete_response_is_visible_to_the_client(field, sent, how, front, a, b, until):
    before = front.counts("plain")["a"]["failed"]
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", field)
    received.send(sent)
    if sent:
        client.wait_for(b"0123456789")
    getattr(received, how)()
    if sent:
        head = client.head()
        assert head.status == 200
        with pytest.raises(AssertionError, match="the connection ended before"):
            client.body(head)
    else:
        # a server that has not sent the head may still respond with an error
        assert is_visibly_incomplete(client)
    client.close()
    until(lambda: front.counts("plain")["a"]["in_flight"] == 0, "nothing in flight")
    assert front.counts("plain")["a"]["failed"] == before + 1  # the request counts as failed
    assert a.has_no_request() and b.has_no_request()  # and is not retried


@pytest.mark.parametrize("site", ["plain", "alone"])
@pytest.mark.parametrize("field", ["Content-Length: 20", "Transfer-Encoding: chunked"])
def test_incomplete_response_is_logged_in_one_line_and_without_a_traceback(site, field, front, a, until):
    before = len(front.served.output)
    client = front.request("GET /", site=site)
    received = a.next_request()
    received.head("200 OK", field)
    received.send(b"a\r\n0123456789\r\n")
    client.wait_for(b"0123456789")
    received.close()
    head = client.head()
    with pytest.raises(AssertionError, match="the connection ended before"):
        client.body(head)
    until(lambda: "response cut short" in front.served.output[before:], "a line in the log")
    lines = front.served.output[before:].splitlines()
    assert len([line for line in lines if "response cut short" in line]) == 1
    assert not [line for line in lines if "Traceback" in line]


def is_visibly_incomplete(client) -> bool:
    """Whether a client can see that the response is incomplete."""
    try:
        return bool(client.response().status >= 500)
    except AssertionError as cut:
        return "the connection ended before" in str(cut)


def test_reset_of_a_response_that_ends_with_its_connection_is_visible_to_the_client(front, a):
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK")
    received.send(b"0123456789")
    client.wait_for(b"0123456789")
    received.reset()
    head = client.head()
    if framing_of(head):
        with pytest.raises(AssertionError, match="the connection ended before"):
            client.body(head)
    else:  # only a reset distinguishes this from a complete response
        client.read_all()
        assert client.was_reset


# -- streams


def test_event_arrives_before_the_next_is_sent(front, a):
    client = front.request("GET /", "Accept: text/event-stream")
    received = a.next_request()
    received.head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
    for number in range(5):
        event = b"data: %d\n\n" % number
        received.chunk(event)
        assert event in client.read_until(event)
    received.chunk(b"")
    client.read_until(b"0\r\n\r\n")


@pytest.mark.parametrize("coding", ["counted", "chunked", "until the end"])
def test_heartbeats_of_five_bytes_arrive_one_by_one(coding, front, a):
    beat = b":hb\n\n"
    client = front.request("GET /")
    received = a.next_request()
    fields = {"counted": ["Content-Length: 50"], "chunked": ["Transfer-Encoding: chunked"], "until the end": []}
    received.head("200 OK", *fields[coding])
    for _ in range(10):
        received.chunk(beat) if coding == "chunked" else received.send(beat)
        assert beat in client.read_until(beat)
    received.chunk(b"") if coding == "chunked" else received.close()


def test_head_of_a_response_arrives_before_its_body_is_sent(front, a):
    front.skip_if_impossible("a head before its body")
    client = front.request("GET /")
    received = a.next_request()
    received.head("200 OK", "Content-Length: 5")
    assert client.head().status == 200
    received.send(b"hello")
    assert client.read(5) == b"hello"


MUCH, IN_FLIGHT = 64 << 20, 40 << 20


def test_slow_client_slows_the_origin_down(front, a, wait_until_stable):
    client = front.client()
    client.shrink_buffers()
    client.request("GET /")
    received = a.next_request()
    received.wire.shrink_buffers()
    received.head("200 OK", f"Content-Length: {MUCH}")
    sent = 0

    def send() -> None:
        nonlocal sent
        piece = bytes(65536)
        for _ in range(MUCH // len(piece)):
            received.send(piece)
            sent += len(piece)

    thread = threading.Thread(target=send)
    thread.start()
    head = client.head()
    assert 0 < wait_until_stable(lambda: sent) < IN_FLIGHT
    assert len(client.body(head)) == MUCH
    thread.join()


def test_slow_origin_slows_an_upload_down(front, a, wait_until_stable):
    front.skip_if_impossible("an upload while it lasts")
    client = front.client()
    client.shrink_buffers()
    client.request("POST /", f"Content-Length: {MUCH}")
    sent = 0

    def send() -> None:
        nonlocal sent
        piece = bytes(65536)
        for _ in range(MUCH // len(piece)):
            client.send(piece)
            sent += len(piece)

    thread = threading.Thread(target=send)
    thread.start()
    received = a.next_request()
    received.wire.shrink_buffers()
    assert 0 < wait_until_stable(lambda: sent) < IN_FLIGHT
    assert len(received.read_body()) == MUCH
    thread.join()
    received.respond()
    assert client.response().status == 200


# -- responses before the end of the request


def test_early_response_reaches_a_client_that_has_not_sent_its_body(front, a):
    front.skip_if_impossible("an upload in small pieces")
    client = front.request("POST /", "Content-Length: 1000000", body=b"some of it")
    received = a.next_request()
    received.wire.read_until(b"some of it")
    received.respond("413 Content Too Large", "Connection: close", "X-Why: too much", body=b"too much")
    response = client.response()
    assert (response.status, response.values("x-why"), response.body) == (413, ["too much"], b"too much")
    received.wait_closed()  # the connection has received a part of a request


def test_early_response_reaches_a_client_that_keeps_sending(front, a):
    front.skip_if_impossible("an upload while it lasts")
    client = front.request("POST /", f"Content-Length: {MUCH}")

    def send() -> None:
        try:
            for _ in range(MUCH // 65536):
                client.send(bytes(65536))
        except OSError:
            pass  # the origin may close after its response

    thread = threading.Thread(target=send)
    thread.start()
    received = a.next_request()
    received.respond("413 Content Too Large", "Connection: close", body=b"too much")
    response = client.response()
    assert (response.status, response.body) == (413, b"too much")
    client.shut_down()
    thread.join()


def test_client_that_expects_a_100_gets_one_before_it_sends(front, a):
    def reply(received) -> None:
        if received.values("expect"):
            received.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = received.read_body()
        received.respond(body=body.upper())

    client = front.request("POST /", "Expect: 100-continue", "Content-Length: 5")
    with a.responding(reply):
        assert b" 100 " in client.read_until(b"\r\n\r\n")
        client.send(b"hello")
        response = client.response()
    assert (response.status, response.body) == (200, b"HELLO")


def test_client_that_expects_a_100_may_be_refused_without_one(front, a):
    front.skip_if_impossible("a 100 that the origin sends")
    client = front.request("POST /", "Expect: 100-continue", "Content-Length: 5")
    received = a.next_request()
    received.respond("401 Unauthorized", "WWW-Authenticate: Basic", body=b"who are you?")
    assert b" 401 " in client.read_until(b"\r\n")
    received.wait_closed()  # the client may or may not send the body, so the connection can't be used again


def test_origin_that_sends_no_100_gets_the_body_nevertheless(front, a):
    def reply(received) -> None:
        received.respond(body=received.read_body().upper())

    client = front.request("POST /", "Expect: 100-continue", "Content-Length: 5", body=b"hello")
    with a.responding(reply):
        response = client.response()
    assert (response.status, response.body) == (200, b"HELLO")
