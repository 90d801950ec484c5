"""Bodies on their way to an upstream and back, through real servers: how their end is told, that they come as they go,
and that a cut is seen.

Nothing here waits for time to pass: the origin sends its next byte when the test says so.
"""

import gzip
import os
import threading

import pytest

BODY = bytes(range(256))
GZIPPED = gzip.compress(b"hello, " * 1000, mtime=0)


def framing(message) -> dict[str, list[str]]:
    """How the end of a message's body is told."""
    named = {name: message.values(name) for name in ("content-length", "transfer-encoding")}
    return {name: values for name, values in named.items() if values}


def told(front, origin, line: str, *fields: str, body: bytes = b""):
    """What the origin is told of a request, which it then answers."""
    caller = front.request(line, *fields, body=body)
    asked = origin.next_request()
    asked.body = asked.read_body()
    asked.respond()
    assert caller.response().status == 200
    return asked


# -- requests


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_a_request_without_a_body_says_nothing_of_one(method, front, a):
    asked = told(front, a, f"{method} /")
    assert (asked.method, framing(asked), asked.body) == (method, {}, b"")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_a_length_stays_a_length(method, front, a):
    asked = told(front, a, f"{method} /", body=BODY)
    assert (asked.method, framing(asked), asked.body) == (method, {"content-length": ["256"]}, BODY)


def test_a_length_of_nothing_stays_one(front, a):
    assert framing(told(front, a, "POST /", "Content-Length: 0")) == {"content-length": ["0"]}


CHUNKS = b"5\r\nhello\r\n3;an=extension\r\n, y\r\n2\r\nou\r\n0\r\n\r\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_chunked_upload_stays_chunked(method, front, a):
    front.skip_if_impossible("a chunked upload")
    asked = told(front, a, f"{method} /", "Transfer-Encoding: chunked", body=CHUNKS)
    assert (framing(asked), asked.body) == ({"transfer-encoding": ["chunked"]}, b"hello, you")


def test_a_chunked_upload_loses_nothing_even_where_a_server_counts_it(front, a):
    asked = told(front, a, "POST /", "Transfer-Encoding: chunked", body=CHUNKS)
    assert (len(framing(asked)), asked.body) == (1, b"hello, you")


def test_a_chunked_upload_of_nothing_stays_one(front, a):
    front.skip_if_impossible("a chunked upload")
    asked = told(front, a, "POST /", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    assert (framing(asked), asked.body) == ({"transfer-encoding": ["chunked"]}, b"")


@pytest.mark.parametrize("size", [65535, 65536, 65537, 1_000_000])
@pytest.mark.parametrize("coding", ["counted", "chunked"])
def test_a_large_upload_arrives_whole(coding, size, front, a):
    body = os.urandom(size)
    if coding == "counted":
        caller = front.request("POST /", f"Content-Length: {size}")
        sent = body
    else:
        caller = front.request("POST /", "Transfer-Encoding: chunked")
        parts = [body[at : at + 10_000] for at in range(0, size, 10_000)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    thread = threading.Thread(target=caller.send, args=(sent,))
    thread.start()
    asked = a.next_request()
    assert asked.read_body() == body
    thread.join()
    asked.respond()
    assert caller.response().status == 200


UPLOADS = ["Content-Length: 15", "Transfer-Encoding: chunked"]


@pytest.mark.parametrize("field", UPLOADS)
def test_the_head_of_an_upload_arrives_before_its_body_is_sent(field, front, a):
    front.skip_if_impossible("an upload in small pieces")
    caller = front.request("POST /", field)
    asked = a.next_request()
    asked.respond("401 Unauthorized", body=b"who are you?")
    assert caller.response().body == b"who are you?"


@pytest.mark.parametrize("field", UPLOADS)
def test_an_upload_arrives_piece_by_piece(field, front, a):
    front.skip_if_impossible("an upload in small pieces")
    chunked = "chunked" in field
    caller = front.request("POST /", field)
    caller.send(b"5\r\nfirst\r\n" if chunked else b"first")
    asked = a.next_request()
    assert b"first" in asked.wire.read_until(b"first")
    for piece in (b"secnd", b"third"):
        caller.send(b"5\r\n%b\r\n" % piece if chunked else piece)
        assert piece in asked.wire.read_until(piece)
    if chunked:
        caller.send(b"0\r\n\r\n")
        asked.wire.read_until(b"0\r\n\r\n")
    asked.respond(body=b"thanks")
    assert caller.response().body == b"thanks"


@pytest.mark.parametrize("leave", ["shut_down_sending", "abort"], ids=["half-close", "reset"])
@pytest.mark.parametrize("field, sent", [("Content-Length: 10", b"hel"), ("Transfer-Encoding: chunked", b"5\r\nhel")])
def test_an_upload_that_ends_too_early_never_looks_whole(field, sent, leave, front, a, until):
    caller = front.request("POST /cut", field, body=sent)
    asked = None
    if front.is_possible("an upload in small pieces"):
        asked = a.next_request()
        asked.wire.read_until(b"hel")
    getattr(caller, leave)()
    until(lambda: front.in_flight() == 0, "nothing in flight")
    following = front.request("GET /next")
    if asked is None:  # a server that reads ahead may not have asked at all
        asked = a.next_request()
    if asked.target == "/cut":
        assert asked.wire.read_all() in (b"", b"\r\n", b"hel", b"3\r\nhel\r\n")
        asked = a.next_request()
    assert asked.target == "/next"
    asked.respond()
    assert following.response().status == 200
    assert a.has_no_request()


DROP_ONE = ("granian", "waitress")


def test_a_request_with_two_framings_is_refused_or_has_one_of_them_dropped(front, a):
    caller = front.request("POST /", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
    if front.name in DROP_ONE:
        asked = a.next_request()
        assert (len(framing(asked)), asked.read_body()) == (1, b"hello")
        asked.respond()
        assert caller.response().status == 200
    else:
        assert caller.response().status == 400
        assert a.has_no_request()


# -- answers


def test_a_compressed_body_arrives_as_it_is(front, a):
    caller = front.request("GET /", "Accept-Encoding: gzip")
    asked = a.next_request()
    assert asked.values("accept-encoding") == ["gzip"]
    asked.respond("200 OK", "Content-Encoding: gzip", 'ETag: "an-etag"', "Accept-Ranges: bytes", body=GZIPPED)
    answer = caller.response()
    assert answer.body == GZIPPED
    assert framing(answer) == {"content-length": [str(len(GZIPPED))]}
    assert answer.values("content-encoding") == ["gzip"]
    assert answer.values("etag") == ['"an-etag"']


@pytest.mark.parametrize("coding", ["br", "zstd", "unheard-of"])
def test_a_coding_that_nobody_here_knows_arrives_as_it_is(coding, front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
    for part in (BODY[:100], BODY[100:], b""):
        asked.chunk(part)
    answer = caller.response()
    assert (answer.body, answer.values("content-encoding")) == (BODY, [coding])


def test_a_chunked_answer_of_nothing_is_whole(front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", "Transfer-Encoding: chunked")
    asked.chunk(b"")
    assert caller.response().body == b""


def test_trailers_do_no_harm(front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", "Transfer-Encoding: chunked", "Trailer: X-Late")
    asked.send(b"5;an=extension\r\nhello\r\n0\r\nX-Late: 1\r\nX-Later: 2\r\n\r\n")
    assert caller.response().body == b"hello"
    following = front.request("GET /next")
    again = a.next_request()
    assert again.wire is asked.wire
    again.respond(body=b"next")
    assert following.response().body == b"next"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_that_ends_with_its_connection_is_whole(version, front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", version=version)
    asked.send(BODY)
    asked.close()
    assert caller.response().body == BODY


def test_a_client_of_http_1_0_gets_no_chunks(front, a):
    front.skip_if_impossible("a response without chunks for HTTP/1.0")
    caller = front.request("GET / HTTP/1.0")
    asked = a.next_request()
    asked.head("200 OK", "Transfer-Encoding: chunked")
    asked.chunk(b"hello")
    asked.chunk(b"")
    answer = caller.response()
    assert (answer.body, answer.values("transfer-encoding")) == (b"hello", [])


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 1_000_000])
@pytest.mark.parametrize("coding", ["counted", "chunked"])
def test_a_large_answer_arrives_whole(coding, size, front, a):
    body = os.urandom(size)
    caller = front.request("GET /")
    asked = a.next_request()

    def send() -> None:
        if coding == "counted":
            asked.respond(body=body)
        else:
            asked.head("200 OK", "Transfer-Encoding: chunked")
            for at in range(0, size, 10_000):
                asked.chunk(body[at : at + 10_000])
            asked.chunk(b"")

    thread = threading.Thread(target=send)
    thread.start()
    assert caller.response().body == body
    thread.join()


NO_BODY = {
    "HEAD": ("HEAD /", "200 OK", ["Content-Length: 1234", 'ETag: "x"'], {"content-length": ["1234"]}),
    "HEAD, chunked": ("HEAD /", "200 OK", ["Transfer-Encoding: chunked", 'ETag: "x"'], None),
    "HEAD, nothing said": ("HEAD /", "200 OK", ['ETag: "x"'], None),
    "HEAD of what is not there": (
        "HEAD /",
        "404 Not Found",
        ["Content-Length: 9", 'ETag: "x"'],
        {"content-length": ["9"]},
    ),
    "304": ("GET /", "304 Not Modified", ['ETag: "x"'], {}),
    "304 with a length": ("GET /", "304 Not Modified", ['ETag: "x"', "Content-Length: 1234"], None),
    "204": ("GET /", "204 No Content", ['ETag: "x"'], {}),
    "204 to a DELETE": ("DELETE /", "204 No Content", ['ETag: "x"'], {}),
    "204 with a length of nothing": ("GET /", "204 No Content", ["Content-Length: 0", 'ETag: "x"'], {}),
}


@pytest.mark.parametrize("line, status, fields, expected", NO_BODY.values(), ids=NO_BODY)
def test_an_answer_that_has_no_body_has_none(line, status, fields, expected, front, a):
    caller = front.request(line)
    asked = a.next_request()
    asked.head(status, *fields)
    answer = caller.response()
    assert (answer.status, answer.values("etag"), answer.body) == (int(status[:3]), ['"x"'], b"")
    if expected is not None:
        assert framing(answer) == expected
    if "transfer-encoding" in framing(answer):
        assert line.startswith("HEAD")  # RFC 9112, 6.1: what a GET would have got
    # On both connections the next answer is the next answer.
    again = caller if not any("close" in value for value in answer.values("connection")) else front.caller()
    again.request("GET /next")
    following = a.next_request()
    assert following.target == "/next"
    assert following.wire is asked.wire or expected is None
    following.respond(body=b"next")
    assert again.response().body == b"next"


def test_what_leads_up_to_an_answer_is_not_taken_for_it(front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
    asked.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 Own\r\nX-A: 1\r\n\r\n")
    asked.respond("201 Created", "X-B: 2", body=b"hello")
    answer = caller.response()
    assert (answer.status, answer.body) == (201, b"hello")
    assert (answer.values("link"), answer.values("x-a"), answer.values("x-b")) == ([], [], ["2"])


def test_a_change_of_protocol_that_nobody_asked_for_is_no_answer(front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket")
    asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    answer = caller.response()
    assert (answer.status, answer.values("set-cookie")) == (502, [])
    asked.wait_closed()


@pytest.mark.parametrize("when", ["with it", "after it"])
def test_an_answer_too_many_is_nobody_s(when, front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    one_too_many = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    if when == "with it":
        asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + one_too_many)
        assert caller.response().body == b"hello"
    else:
        asked.respond(body=b"hello")
        assert caller.response().body == b"hello"
        asked.send(one_too_many)
    caller.request("GET /next")
    following = a.next_request()
    assert following.wire is not asked.wire
    following.respond(body=b"next")
    assert caller.response().body == b"next"


# -- cuts

CUTS = {
    "counted, nothing of it": ("Content-Length: 1000", b""),
    "counted, some of it": ("Content-Length: 1000", b"0123456789"),
    "counted, all but one byte": ("Content-Length: 11", b"0123456789"),
    "chunked, no chunk": ("Transfer-Encoding: chunked", b""),
    "chunked, within a chunk": ("Transfer-Encoding: chunked", b"14\r\n0123456789"),
    "chunked, between two": ("Transfer-Encoding: chunked", b"a\r\n0123456789\r\n"),
    "chunked, within the last": ("Transfer-Encoding: chunked", b"a\r\n0123456789\r\n0\r\n"),
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("field, sent", CUTS.values(), ids=CUTS)
def test_an_answer_that_is_cut_short_is_seen_to_be(field, sent, how, front, a, b, until):
    before = front.counts("plain")["a"]["failed"]
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", field)
    asked.send(sent)
    if sent:
        caller.wait_for(b"0123456789")
    getattr(asked, how)()
    if sent:
        head = caller.head()
        assert head.status == 200
        with pytest.raises(AssertionError, match="the connection ended before"):
            caller.body(head)
    else:
        # a server that has kept the head may still say that something is wrong
        assert ended_badly(caller)
    caller.close()
    until(lambda: front.counts("plain")["a"]["in_flight"] == 0, "nothing in flight")
    assert front.counts("plain")["a"]["failed"] == before + 1  # it is no success
    assert a.has_no_request() and b.has_no_request()  # and is not asked for again behind the client's back


def ended_badly(caller) -> bool:
    """Whether a client can see that it has not got the answer."""
    try:
        return bool(caller.response().status >= 500)
    except AssertionError as cut:
        return "the connection ended before" in str(cut)


def test_an_answer_that_should_end_with_its_connection_is_cut_by_a_reset(front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK")
    asked.send(b"0123456789")
    caller.wait_for(b"0123456789")
    asked.reset()
    head = caller.head()
    if framing(head):
        with pytest.raises(AssertionError, match="the connection ended before"):
            caller.body(head)
    else:  # nothing but a reset can tell this from a whole answer
        caller.read_all()
        assert caller.was_reset


# -- as it comes


def test_an_event_arrives_before_the_next_one_may_be_sent(front, a):
    caller = front.request("GET /", "Accept: text/event-stream")
    asked = a.next_request()
    asked.head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
    for number in range(5):
        event = b"data: %d\n\n" % number
        asked.chunk(event)
        assert event in caller.read_until(event)
    asked.chunk(b"")
    caller.read_until(b"0\r\n\r\n")


@pytest.mark.parametrize("coding", ["counted", "chunked", "until the end"])
def test_heartbeats_of_five_bytes_pass_one_by_one(coding, front, a):
    beat = b":hb\n\n"
    caller = front.request("GET /")
    asked = a.next_request()
    fields = {"counted": ["Content-Length: 50"], "chunked": ["Transfer-Encoding: chunked"], "until the end": []}
    asked.head("200 OK", *fields[coding])
    for _ in range(10):
        asked.chunk(beat) if coding == "chunked" else asked.send(beat)
        assert beat in caller.read_until(beat)
    asked.chunk(b"") if coding == "chunked" else asked.close()


def test_a_head_arrives_before_its_body_may_be_sent(front, a):
    front.skip_if_impossible("a head before its body")
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", "Content-Length: 5")
    assert caller.head().status == 200
    asked.send(b"hello")
    assert caller.read(5) == b"hello"


MUCH, IN_FLIGHT = 64 << 20, 40 << 20


def test_a_slow_reader_holds_the_origin_back(front, a, wait_until_stable):
    caller = front.caller()
    caller.shrink_buffers()
    caller.request("GET /")
    asked = a.next_request()
    asked.wire.shrink_buffers()
    asked.head("200 OK", f"Content-Length: {MUCH}")
    sent = 0

    def send() -> None:
        nonlocal sent
        piece = bytes(65536)
        for _ in range(MUCH // len(piece)):
            asked.send(piece)
            sent += len(piece)

    thread = threading.Thread(target=send)
    thread.start()
    head = caller.head()
    assert 0 < wait_until_stable(lambda: sent) < IN_FLIGHT
    assert len(caller.body(head)) == MUCH
    thread.join()


def test_a_slow_origin_holds_an_upload_back(front, a, wait_until_stable):
    front.skip_if_impossible("an upload while it lasts")
    caller = front.caller()
    caller.shrink_buffers()
    caller.request("POST /", f"Content-Length: {MUCH}")
    sent = 0

    def send() -> None:
        nonlocal sent
        piece = bytes(65536)
        for _ in range(MUCH // len(piece)):
            caller.send(piece)
            sent += len(piece)

    thread = threading.Thread(target=send)
    thread.start()
    asked = a.next_request()
    asked.wire.shrink_buffers()
    assert 0 < wait_until_stable(lambda: sent) < IN_FLIGHT
    assert len(asked.read_body()) == MUCH
    thread.join()
    asked.respond()
    assert caller.response().status == 200


# -- answers that do not wait for the request


def test_an_early_answer_is_heard_by_a_client_that_has_not_sent_all(front, a):
    front.skip_if_impossible("an upload in small pieces")
    caller = front.request("POST /", "Content-Length: 1000000", body=b"some of it")
    asked = a.next_request()
    asked.wire.read_until(b"some of it")
    asked.respond("413 Content Too Large", "Connection: close", "X-Why: too much", body=b"too much")
    answer = caller.response()
    assert (answer.status, answer.values("x-why"), answer.body) == (413, ["too much"], b"too much")
    asked.wait_closed()  # half a request is on it


def test_an_early_answer_is_heard_by_a_client_that_keeps_sending(front, a):
    front.skip_if_impossible("an upload while it lasts")
    caller = front.request("POST /", f"Content-Length: {MUCH}")

    def send() -> None:
        try:
            for _ in range(MUCH // 65536):
                caller.send(bytes(65536))
        except OSError:
            pass  # whoever has answered may close

    thread = threading.Thread(target=send)
    thread.start()
    asked = a.next_request()
    asked.respond("413 Content Too Large", "Connection: close", body=b"too much")
    answer = caller.response()
    assert (answer.status, answer.body) == (413, b"too much")
    caller.shut_down()
    thread.join()


def test_a_client_that_expects_a_100_gets_one_before_it_sends(front, a):
    def reply(asked) -> None:
        if asked.values("expect"):
            asked.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = asked.read_body()
        asked.respond(body=body.upper())

    caller = front.request("POST /", "Expect: 100-continue", "Content-Length: 5")
    with a.responding(reply):
        assert b" 100 " in caller.read_until(b"\r\n\r\n")
        caller.send(b"hello")
        answer = caller.response()
    assert (answer.status, answer.body) == (200, b"HELLO")


def test_a_client_that_expects_a_100_may_be_refused_without_one(front, a):
    front.skip_if_impossible("a 100 that the origin sends")
    caller = front.request("POST /", "Expect: 100-continue", "Content-Length: 5")
    asked = a.next_request()
    asked.respond("401 Unauthorized", "WWW-Authenticate: Basic", body=b"who are you?")
    assert b" 401 " in caller.read_until(b"\r\n")
    asked.wait_closed()  # whether the body comes is the client's to say, so the connection can't be used again


def test_an_origin_that_does_not_know_of_100_is_sent_the_body_all_the_same(front, a):
    def reply(asked) -> None:
        asked.respond(body=asked.read_body().upper())

    caller = front.request("POST /", "Expect: 100-continue", "Content-Length: 5", body=b"hello")
    with a.responding(reply):
        answer = caller.response()
    assert (answer.status, answer.body) == (200, b"HELLO")
