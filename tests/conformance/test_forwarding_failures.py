"""Upstreams that fail, that are full, and that speak TLS, through real servers: what the client is told, and who is
asked next.
"""

import threading
import time

import pytest

OURS_A = "SERVERID=a; path=/"
OURS_B = "SERVERID=b; path=/"


def visit(front, origin, line: str = "GET /", site: str = "plain"):
    """A whole exchange: what the origin was asked."""
    caller = front.request(line, site=site)
    asked = origin.next_request()
    asked.respond(body=b"hello")
    assert caller.response().body == b"hello"
    return asked


# -- connections that are used again


def test_a_connection_is_used_again(front, a):
    first = visit(front, a)
    assert visit(front, a).wire is first.wire
    assert a.open_connections() == 1


def test_a_client_that_closes_does_not_close_the_upstream_s_connection(front, a):
    caller = front.request("GET /", "Connection: close")
    asked = a.next_request()
    assert asked.values("connection") == []
    asked.respond()
    caller.response()
    assert caller.receive() == b""
    assert visit(front, a).wire is asked.wire


@pytest.mark.parametrize(
    "version, fields", [("1.1", ["Connection: close"]), ("1.1", ["Connection: X-A, Close"]), ("1.0", [])]
)
def test_a_connection_that_the_origin_gives_up_is_not_used_again(version, fields, front, a):
    caller = front.request("GET /")
    asked = a.next_request()
    asked.head("200 OK", "Content-Length: 0", *fields, version=version)
    assert caller.response().status == 200
    assert visit(front, a).wire is not asked.wire
    asked.wait_closed()


def test_two_requests_at_once_have_two_connections(front, a):
    callers = [front.request("GET /one"), front.request("GET /two")]
    both = [a.next_request(), a.next_request()]
    assert both[0].wire is not both[1].wire
    for asked in both:
        asked.respond(body=asked.target.encode())
    assert [caller.response().body for caller in callers] == [b"/one", b"/two"]


def test_an_idle_connection_is_closed_when_it_has_idled_for_long(front, a):
    asked = visit(front, a, site="brief")
    if not front.is_asgi:  # where nobody sweeps, the next request does
        return
    asked.wait_closed()


def test_without_a_pool_every_request_has_a_connection_of_its_own(front, a):
    asked = visit(front, a, site="no-pool")
    asked.wait_closed()
    assert visit(front, a, site="no-pool").wire is not asked.wire


# -- an origin that closes an idle connection in the moment in which it is used again


@pytest.mark.parametrize("line", ["GET /", "HEAD /", "OPTIONS /", "DELETE /"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_what_may_be_sent_twice_goes_out_once_more_on_a_fresh_connection(line, how, front, a, b):
    before = front.counts("plain")["a"]["failed"]
    stale = visit(front, a).wire
    caller = front.request(line)
    asked = a.next_request()
    assert asked.wire is stale
    getattr(asked, how)()
    again = a.next_request()
    assert (again.line, again.fields) == (asked.line, asked.fields)
    assert again.wire is not stale
    again.respond()
    answer = caller.response()
    assert (answer.status, answer.values("set-cookie")) == (200, [OURS_A])
    assert b.has_no_request()
    assert front.counts("plain")["a"]["failed"] == before  # it is nobody's fault


def test_and_with_its_body(front, a):
    stale = visit(front, a).wire
    caller = front.request("PUT /", body=b"hello")
    asked = a.next_request()
    assert asked.wire is stale
    assert asked.read_body() == b"hello"
    asked.close()
    again = a.next_request()
    assert (again.line, again.read_body(), again.wire is stale) == ("PUT / HTTP/1.1", b"hello", False)
    again.respond()
    assert caller.response().status == 200


def test_but_not_a_third_time(front, a, b):
    visit(front, a)
    caller = front.request("GET /")
    a.next_request().close()
    a.next_request().close()
    assert caller.response().status == 502
    assert a.has_no_request() and b.has_no_request()


def test_what_must_not_be_sent_twice_is_executed_once(front, a, b):
    visit(front, a)
    caller = front.request("POST /", body=b"order")
    asked = a.next_request()
    assert asked.read_body() == b"order"
    asked.close()
    answer = caller.response()
    assert (answer.status, answer.values("set-cookie")) == (502, [])
    assert visit(front, a, "GET /next").target == "/next"
    assert b.has_no_request()


def test_what_must_not_be_sent_twice_never_meets_a_connection_that_is_closed(front, a):
    for number in range(10):
        stale = visit(front, a)
        stale.close()
        caller = front.request(f"POST /{number}", body=b"order")
        asked = a.next_request()
        assert (asked.target, asked.read_body()) == (f"/{number}", b"order")
        asked.respond(body=b"thanks")
        assert caller.response().body == b"thanks"
    assert a.has_no_request()


def test_an_origin_that_restarts_is_asked_again_over_fresh_connections(front, a):
    callers = [front.request("GET /") for _ in range(4)]
    for asked in [a.next_request() for _ in callers]:
        asked.respond()
    for caller in callers:
        assert caller.response().status == 200
    assert a.open_connections() == 4
    a.close_connections()
    for _ in range(6):
        visit(front, a)


# -- failures by their name


def closed(asked) -> None:
    asked.close()


def closed_in_anger(asked) -> None:
    asked.reset()


def said_nonsense(asked) -> None:
    asked.send(b"NONSENSE\r\n\r\n")


def cut_its_head(asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\nContent-Len")
    asked.close()


def said_two_lengths(asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")


def said_two_framings(asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


def said_a_coding_that_hides_the_end(asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")


def said_too_much(asked) -> None:
    try:
        asked.send(b"HTTP/1.1 200 OK\r\n" + b"X-A: %b\r\n" % (b"a" * 4096) * 64 + b"\r\n")
    except ConnectionError:
        pass


BAD = [closed, closed_in_anger, said_nonsense, cut_its_head, said_two_lengths, said_two_framings]
BAD += [said_a_coding_that_hides_the_end, said_too_much]


@pytest.mark.parametrize("fails", BAD, ids=lambda fails: fails.__name__.replace("_", " "))
def test_who_gives_no_answer_makes_a_502_that_carries_no_mark(fails, front, a, b):
    before = front.counts("plain")["a"]["failed"]
    caller = front.request("GET /")
    asked = a.next_request()
    fails(asked)
    answer = caller.response()
    assert (answer.status, answer.values("set-cookie")) == (502, [])
    assert a.has_no_request() and b.has_no_request()
    assert front.counts("plain")["a"]["failed"] == before + 1
    assert visit(front, a, "GET /next").wire is not asked.wire


def test_who_refuses_makes_a_503(front):
    answer = front.request("GET /", site="dead").response()
    assert (answer.status, answer.values("set-cookie")) == (503, [])
    assert answer.values("retry-after") != []


def test_who_does_not_pick_up_in_time_makes_a_503(front):
    assert front.request("GET /", site="unreachable").response().status == 503


def test_who_does_not_answer_in_time_makes_a_504(front, a, b):
    caller = front.request("GET /", site="impatient")
    asked = a.next_request()
    answer = caller.response()
    assert (answer.status, answer.values("set-cookie")) == (504, [])
    asked.wait_closed()
    assert a.has_no_request() and b.has_no_request()


def test_who_falls_silent_in_the_middle_is_cut(front, a):
    caller = front.request("GET /", site="less-patient")
    asked = a.next_request()
    asked.head("200 OK", "Content-Length: 20")
    asked.send(b"0123456789")
    caller.wait_for(b"0123456789")
    with pytest.raises(AssertionError, match="the connection ended before"):
        caller.response()
    asked.wait_closed()


def test_who_speaks_often_enough_may_take_as_long_as_it_likes(front, a):
    caller = front.request("GET /", site="less-patient")
    asked = a.next_request()
    asked.head("200 OK", "Transfer-Encoding: chunked")
    began = time.monotonic()
    while time.monotonic() - began < 1.2:  # all together take longer than the timeout
        asked.chunk(b"beat\n")
        assert b"beat\n" in caller.read_until(b"beat\n")
    asked.chunk(b"")
    caller.read_until(b"0\r\n\r\n")


def test_a_head_request_that_fails_has_no_body(front):
    caller = front.request("HEAD /", site="dead")
    assert caller.response().status == 503
    caller.request("GET /")
    assert caller.response().status == 503


# -- who is asked next


def test_who_refuses_is_followed_by_the_next_server_which_the_mark_names(front, b):
    caller = front.request("POST /a%2Fb?c", "X-A: caf\xe9", site="next", body=b"hello")
    asked = b.next_request()
    assert (asked.line, asked.values("x-a"), asked.read_body()) == ("POST /a%2Fb?c HTTP/1.1", ["caf\xe9"], b"hello")
    asked.respond("200 OK", "Set-Cookie: a=1", body=b"from b")
    answer = caller.response()
    assert (answer.status, answer.body, answer.values("set-cookie")) == (200, b"from b", ["a=1", OURS_B])


def test_who_refuses_is_followed_whatever_the_size_of_the_upload(front, b):
    caller = front.caller("next")
    thread = threading.Thread(target=caller.request, args=("POST /",), kwargs={"body": bytes(1 << 20)})
    thread.start()
    asked = b.next_request()
    assert len(asked.read_body()) == 1 << 20
    thread.join()
    asked.respond()
    assert caller.response().status == 200


def test_a_client_that_belongs_to_a_server_that_refuses_is_told_its_new_one(front, b):
    caller = front.request("GET /", "Cookie: SERVERID=a", site="next")
    asked = b.next_request()
    assert asked.values("cookie") == []
    asked.respond()
    assert caller.response().values("set-cookie") == [OURS_B]


@pytest.mark.parametrize("site", ["no-retries", "never"])
def test_without_retries_a_refusal_is_the_answer(site, front, b):
    assert front.request("GET /", site=site).response().status == 503
    assert b.has_no_request()


def with_a_503(asked) -> None:
    asked.respond("503 Busy", "X-Failed: 1", "Set-Cookie: failed=1", "Content-Encoding: gzip", body=b"busy " * 100)


def with_a_503_that_does_not_end(asked) -> None:
    asked.head("503 Busy", "X-Failed: 1", "Set-Cookie: failed=1", "Transfer-Encoding: chunked")
    asked.chunk(b"busy")


AGAIN = [*BAD, with_a_503, with_a_503_that_does_not_end]


@pytest.mark.parametrize("fails", AGAIN, ids=lambda fails: fails.__name__.replace("_", " "))
def test_retry_on_asks_the_next_server_and_nothing_of_the_one_before_is_left(fails, front, a, b):
    caller = front.request("PUT /a%2Fb?c", "X-A: caf\xe9", "Cookie: x=1; SERVERID=a", site="again", body=b"hello")
    first = a.next_request()
    first.read_body()
    fails(first)
    asked = b.next_request()
    assert (asked.line, asked.fields) == (first.line, first.fields)
    assert asked.read_body() == b"hello"
    asked.respond("201 Created", "X-B: 1", body=b"from b")
    answer = caller.response()
    assert (answer.status, answer.body, answer.values("set-cookie")) == (201, b"from b", [OURS_B])
    assert (answer.values("x-failed"), answer.values("content-encoding"), answer.values("x-b")) == ([], [], ["1"])


def test_retry_on_a_timeout_asks_the_next_server(front, a, b):
    caller = front.request("GET /", site="less-patient-again")
    first = a.next_request()
    asked = b.next_request()
    first.wait_closed()
    asked.respond(body=b"from b")
    assert caller.response().body == b"from b"


def test_the_last_answer_passes_when_nobody_is_left(front, a, b):
    caller = front.request("GET /", site="again")
    with_a_503(a.next_request())
    b.next_request().respond("503 Busy", "X-Last: 1", "Set-Cookie: last=1", body=b"busy as well")
    answer = caller.response()
    assert (answer.status, answer.body) == (503, b"busy as well")
    assert answer.values("set-cookie") == ["last=1", OURS_B]
    assert (answer.values("x-last"), answer.values("x-failed")) == (["1"], [])


def test_an_answer_that_is_not_to_be_retried_passes(front, a, b):
    caller = front.request("GET /", site="again")
    a.next_request().respond("500 Oops", body=b"oops")
    answer = caller.response()
    assert (answer.status, answer.body, answer.values("set-cookie")) == (500, b"oops", [OURS_A])
    assert b.has_no_request()


@pytest.mark.parametrize(
    "fails, status",
    [(closed, 502), (said_nonsense, 502), (with_a_503, 503)],
    ids=["closed", "said nonsense", "with a 503"],
)
def test_what_may_have_been_executed_is_not_executed_again(fails, status, front, a, b):
    caller = front.request("POST /", site="again", body=b"order")
    asked = a.next_request()
    asked.read_body()
    fails(asked)
    assert caller.response().status == status
    assert a.has_no_request() and b.has_no_request()


@pytest.mark.parametrize("fails", [closed, with_a_503], ids=["closed", "with a 503"])
def test_unless_the_client_gives_it_a_key(fails, front, a, b):
    caller = front.request("POST /", "Idempotency-Key: 42", site="keyed", body=b"order")
    asked = a.next_request()
    asked.read_body()
    fails(asked)
    again = b.next_request()
    assert (again.values("idempotency-key"), again.read_body()) == (["42"], b"order")
    again.respond(body=b"thanks")
    assert caller.response().body == b"thanks"


@pytest.mark.parametrize(
    "site, fields", [("keyed", []), ("again", ["Idempotency-Key: 42"])], ids=["no key", "not opted in"]
)
def test_a_key_counts_where_it_is_given_and_wanted(site, fields, front, a, b):
    caller = front.request("POST /", *fields, site=site, body=b"order")
    asked = a.next_request()
    asked.read_body()
    asked.close()
    assert caller.response().status == 502
    assert b.has_no_request()


def test_a_body_within_the_limit_is_told_again_and_one_beyond_it_is_not(front, a, b):
    caller = front.request("PUT /", site="small", body=b"0123456789")
    asked = a.next_request()
    asked.read_body()
    asked.close()
    again = b.next_request()
    assert again.read_body() == b"0123456789"
    again.respond()
    assert caller.response().status == 200
    caller = front.request("PUT /", site="small", body=b"0123456789+")
    asked = a.next_request()
    asked.read_body()
    asked.close()
    assert caller.response().status == 502
    assert b.has_no_request()


def test_without_redispatch_the_same_server_is_asked_again(front, a, b):
    caller = front.request("GET /", "Cookie: SERVERID=a", site="again-here")
    with_a_503(a.next_request())
    a.next_request().respond(body=b"better")
    assert caller.response().body == b"better"
    assert b.has_no_request()


def test_a_server_that_refuses_is_given_a_pause(front, origins, until):
    late = origins["late"]
    before = front.counts("patient")["a"]["failed"]
    caller = front.request("POST /", site="patient", body=b"hello")
    until(lambda: front.counts("patient")["a"]["failed"] > before, "a first attempt has failed")
    late.start_listening()
    try:
        asked = late.next_request()
        assert asked.read_body() == b"hello"
        asked.respond(body=b"at last")
        assert caller.response().body == b"at last"
    finally:
        late.refuse_connections()


def test_apps_and_upstreams_are_servers_of_one_backend(front, a):
    caller = front.request("GET /", "Cookie: SERVERID=app", site="mixed")
    answer = caller.response()
    assert (answer.body, answer.values("set-cookie")) == (b"the app itself", [])
    caller = front.request("GET /", "Cookie: SERVERID=a", site="mixed")
    a.next_request().respond(body=b"the upstream")
    answer = caller.response()
    assert (answer.body, answer.values("set-cookie")) == (b"the upstream", [])
    assert a.has_no_request()


def test_who_belongs_nowhere_is_sent_to_apps_and_upstreams_in_turn(front, a):
    with a.responding(lambda asked: asked.respond(body=b"the upstream")):
        bodies = [front.request("GET /", site="mixed").response().body for _ in range(4)]
    assert sorted(bodies[:2]) == sorted(bodies[2:]) == [b"the app itself", b"the upstream"]


# -- a place at a server


def queued(front, site: str) -> int:
    number: int = front.counts(site)["queue"]["waiting"]
    return number


def test_who_finds_no_place_in_time_is_told_503(front, a):
    first = front.request("GET /first", site="one-at-once")
    asked = a.next_request()
    answer = front.request("GET /second", site="one-at-once").response()
    assert (answer.status, answer.values("set-cookie")) == (503, [])
    assert a.has_no_request()
    asked.respond(body=b"first")
    assert first.response().body == b"first"
    assert visit(front, a, site="one-at-once").target == "/"


def test_who_has_waited_longest_is_next(front, a, until):
    first = front.request("GET /first", site="one")
    asked = a.next_request()
    waiting = []
    for number in range(4):
        waiting.append(front.request(f"POST /{number}", site="one", body=b"hello"))
        until(lambda: queued(front, "one") == len(waiting), "one more in the queue")
    for number, (before, after) in enumerate(zip([first, *waiting], waiting, strict=False)):
        assert a.has_no_request()
        asked.respond(body=b"thanks")
        assert before.response().body == b"thanks"
        asked = a.next_request()
        assert (asked.target, asked.read_body()) == (f"/{number}", b"hello")
        assert not after.is_readable()
    asked.respond(body=b"last")
    assert waiting[-1].response().body == b"last"


def test_who_leaves_the_queue_keeps_nobody_waiting(front, a, until):
    first = front.request("GET /first", site="one")
    asked = a.next_request()
    leaving = front.request("GET /leaving", site="one")
    until(lambda: queued(front, "one") == 1, "one in the queue")
    staying = front.request("GET /staying", site="one")
    until(lambda: queued(front, "one") == 2, "two in the queue")
    leaving.abort()
    until(lambda: queued(front, "one") == 1, "one has left the queue")
    asked.respond()
    assert first.response().status == 200
    following = a.next_request()
    assert following.target == "/staying"
    following.respond()
    assert staying.response().status == 200
    assert visit(front, a, site="one").target == "/"


def test_a_client_that_leaves_gives_its_place_to_the_next(front, a, until):
    first = front.request("GET /first", site="one")
    asked = a.next_request()
    second = front.request("GET /second", site="one")
    until(lambda: queued(front, "one") == 1, "one in the queue")
    first.abort()
    asked.wait_closed()
    following = a.next_request()
    assert following.target == "/second"
    following.respond()
    assert second.response().status == 200


def test_a_failure_gives_its_place_to_the_next(front, a, until):
    first = front.request("GET /first", site="one")
    asked = a.next_request()
    second = front.request("GET /second", site="one")
    until(lambda: queued(front, "one") == 1, "one in the queue")
    asked.close()
    assert first.response().status == 502
    following = a.next_request()
    assert following.target == "/second"
    following.respond()
    assert second.response().status == 200


def test_who_finds_the_queue_full_is_told_503_at_once(front, a, until):
    first = front.request("GET /first", site="one-more")
    asked = a.next_request()
    second = front.request("GET /second", site="one-more")
    until(lambda: queued(front, "one-more") == 1, "one in the queue")
    assert front.request("GET /third", site="one-more").response().status == 503
    asked.respond()
    assert first.response().status == 200
    a.next_request().respond()
    assert second.response().status == 200


def test_first_fills_the_first_server_before_the_next(front, a, b):
    first = front.request("GET /first", site="first")
    asked = a.next_request()
    second = front.request("GET /second", site="first")
    other = b.next_request()
    assert (asked.target, other.target) == ("/first", "/second")
    asked.respond()
    assert first.response().status == 200
    third = front.request("GET /third", site="first")
    again = a.next_request()
    assert again.target == "/third"
    for each in (again, other):
        each.response()
    assert (second.response().status, third.response().status) == (200, 200)


# -- TLS


def test_an_upstream_of_tls_is_verified_and_forwarded_to(front, origins, until):
    caller = front.request("POST /a%2Fb", "X-A: caf\xe9", site="tls", body=b"hello")
    asked = origins["tls"].next_request()
    assert (asked.target, asked.values("x-a"), asked.read_body()) == ("/a%2Fb", ["caf\xe9"], b"hello")
    assert asked.values("x-forwarded-proto") == ["http"]  # that is how the client came
    asked.respond(body=b"thanks" * 10_000)
    assert caller.response().body == b"thanks" * 10_000
    wires = [asked.wire]

    def used_again():  # a client may have its answer a moment before the connection is idle
        wires.append(visit(front, origins["tls"], site="tls").wire)
        return any(each is wires[-1] for each in wires[:-1])

    until(used_again, "a connection is used again")


@pytest.mark.parametrize("site, origin", [("tls-stranger", "tls"), ("tls-misnamed", "named")])
def test_a_certificate_that_is_not_good_enough_makes_a_503(site, origin, front, origins):
    caller = front.request("GET /", site=site)
    origins[origin].accept_failing_handshake()
    assert caller.response().status == 503


def test_any_certificate_is_good_enough_if_asked_for(front, origins):
    assert visit(front, origins["tls"], site="tls-careless").target == "/"


def test_sni_is_the_name_that_is_asked_for_and_verified(front, origins):
    origins["named"].names.clear()
    assert visit(front, origins["named"], site="tls-named").target == "/"
    assert origins["named"].names == ["origin.test"]


def test_a_client_certificate_is_shown(front, origins):
    asked = visit(front, origins["mutual"], site="tls-mutual")
    assert "client@sites.test" in str(asked.wire.certificate)


def test_a_client_that_leaves_takes_its_tls_connection_along(front, origins):
    caller = front.request("GET /", site="tls")
    asked = origins["tls"].next_request()
    caller.abort()
    asked.wait_closed()


def test_who_does_not_answer_in_time_over_tls_makes_a_504(front, origins):
    caller = front.request("GET /", site="tls-impatient")
    asked = origins["tls"].next_request()
    assert caller.response().status == 504
    asked.wait_closed()


def test_an_answer_over_tls_that_is_cut_short_is_seen_to_be(front, origins):
    caller = front.request("GET /", site="tls")
    asked = origins["tls"].next_request()
    asked.head("200 OK", "Content-Length: 100")
    asked.send(b"0123456789")
    caller.wait_for(b"0123456789")
    asked.close()
    with pytest.raises(AssertionError, match="the connection ended before"):
        caller.response()
