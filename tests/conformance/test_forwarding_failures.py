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
    caller = front.ask(line, site=site)
    asked = origin.asked()
    asked.answer(body=b"hello")
    assert caller.answer().body == b"hello"
    return asked


# -- connections that are used again


def test_a_connection_is_used_again(front, a):
    first = visit(front, a)
    assert visit(front, a).wire is first.wire
    assert a.open() == 1


def test_a_client_that_closes_does_not_close_the_upstream_s_connection(front, a):
    caller = front.ask("GET /", "Connection: close")
    asked = a.asked()
    assert asked.values("connection") == []
    asked.answer()
    caller.answer()
    assert caller.receive() == b""
    assert visit(front, a).wire is asked.wire


@pytest.mark.parametrize(
    "version, fields", [("1.1", ["Connection: close"]), ("1.1", ["Connection: X-A, Close"]), ("1.0", [])]
)
def test_a_connection_that_the_origin_gives_up_is_not_used_again(version, fields, front, a):
    caller = front.ask("GET /")
    asked = a.asked()
    asked.head("200 OK", "Content-Length: 0", *fields, version=version)
    assert caller.answer().status == 200
    assert visit(front, a).wire is not asked.wire
    asked.gone()


def test_two_requests_at_once_have_two_connections(front, a):
    callers = [front.ask("GET /one"), front.ask("GET /two")]
    both = [a.asked(), a.asked()]
    assert both[0].wire is not both[1].wire
    for asked in both:
        asked.answer(body=asked.target.encode())
    assert [caller.answer().body for caller in callers] == [b"/one", b"/two"]


def test_an_idle_connection_is_closed_when_it_has_idled_for_long(front, a):
    asked = visit(front, a, site="brief")
    if not front.asgi:  # where nobody sweeps, the next request does
        return
    asked.gone()


def test_without_a_pool_every_request_has_a_connection_of_its_own(front, a):
    asked = visit(front, a, site="no-pool")
    asked.gone()
    assert visit(front, a, site="no-pool").wire is not asked.wire


# -- an origin that closes an idle connection in the moment in which it is used again


@pytest.mark.parametrize("line", ["GET /", "HEAD /", "OPTIONS /", "DELETE /"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_what_may_be_sent_twice_goes_out_once_more_on_a_fresh_connection(line, how, front, a, b):
    before = front.look("plain")["a"]["failed"]
    stale = visit(front, a).wire
    caller = front.ask(line)
    asked = a.asked()
    assert asked.wire is stale
    getattr(asked, how)()
    again = a.asked()
    assert (again.line, again.fields) == (asked.line, asked.fields)
    assert again.wire is not stale
    again.answer()
    answer = caller.answer()
    assert (answer.status, answer.values("set-cookie")) == (200, [OURS_A])
    assert b.untouched()
    assert front.look("plain")["a"]["failed"] == before  # it is nobody's fault


def test_and_with_its_body(front, a):
    stale = visit(front, a).wire
    caller = front.ask("PUT /", body=b"hello")
    asked = a.asked()
    assert asked.wire is stale
    assert asked.read_body() == b"hello"
    asked.close()
    again = a.asked()
    assert (again.line, again.read_body(), again.wire is stale) == ("PUT / HTTP/1.1", b"hello", False)
    again.answer()
    assert caller.answer().status == 200


def test_but_not_a_third_time(front, a, b):
    visit(front, a)
    caller = front.ask("GET /")
    a.asked().close()
    a.asked().close()
    assert caller.answer().status == 502
    assert a.untouched() and b.untouched()


def test_what_must_not_be_sent_twice_is_executed_once(front, a, b):
    visit(front, a)
    caller = front.ask("POST /", body=b"order")
    asked = a.asked()
    assert asked.read_body() == b"order"
    asked.close()
    answer = caller.answer()
    assert (answer.status, answer.values("set-cookie")) == (502, [])
    assert visit(front, a, "GET /next").target == "/next"
    assert b.untouched()


def test_what_must_not_be_sent_twice_never_meets_a_connection_that_is_closed(front, a):
    for number in range(10):
        stale = visit(front, a)
        stale.close()
        caller = front.ask(f"POST /{number}", body=b"order")
        asked = a.asked()
        assert (asked.target, asked.read_body()) == (f"/{number}", b"order")
        asked.answer(body=b"thanks")
        assert caller.answer().body == b"thanks"
    assert a.untouched()


def test_an_origin_that_restarts_is_asked_again_over_fresh_connections(front, a):
    callers = [front.ask("GET /") for _ in range(4)]
    for asked in [a.asked() for _ in callers]:
        asked.answer()
    for caller in callers:
        assert caller.answer().status == 200
    assert a.open() == 4
    a.forget()
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
    before = front.look("plain")["a"]["failed"]
    caller = front.ask("GET /")
    asked = a.asked()
    fails(asked)
    answer = caller.answer()
    assert (answer.status, answer.values("set-cookie")) == (502, [])
    assert a.untouched() and b.untouched()
    assert front.look("plain")["a"]["failed"] == before + 1
    assert visit(front, a, "GET /next").wire is not asked.wire


def test_who_refuses_makes_a_503(front):
    answer = front.ask("GET /", site="dead").answer()
    assert (answer.status, answer.values("set-cookie")) == (503, [])
    assert answer.values("retry-after") != []


def test_who_does_not_pick_up_in_time_makes_a_503(front):
    assert front.ask("GET /", site="unreachable").answer().status == 503


def test_who_does_not_answer_in_time_makes_a_504(front, a, b):
    caller = front.ask("GET /", site="impatient")
    asked = a.asked()
    answer = caller.answer()
    assert (answer.status, answer.values("set-cookie")) == (504, [])
    asked.gone()
    assert a.untouched() and b.untouched()


def test_who_falls_silent_in_the_middle_is_cut(front, a):
    caller = front.ask("GET /", site="less-patient")
    asked = a.asked()
    asked.head("200 OK", "Content-Length: 20")
    asked.send(b"0123456789")
    caller.wait_for(b"0123456789")
    with pytest.raises(AssertionError, match="the connection ended before"):
        caller.answer()
    asked.gone()


def test_who_speaks_often_enough_may_take_as_long_as_it_likes(front, a):
    caller = front.ask("GET /", site="less-patient")
    asked = a.asked()
    asked.head("200 OK", "Transfer-Encoding: chunked")
    began = time.monotonic()
    while time.monotonic() - began < 1.2:  # all together take longer than the timeout
        asked.chunk(b"beat\n")
        assert b"beat\n" in caller.read_until(b"beat\n")
    asked.chunk(b"")
    caller.read_until(b"0\r\n\r\n")


def test_a_head_request_that_fails_has_no_body(front):
    caller = front.ask("HEAD /", site="dead")
    assert caller.answer().status == 503
    caller.ask("GET /")
    assert caller.answer().status == 503


# -- who is asked next


def test_who_refuses_is_followed_by_the_next_server_which_the_mark_names(front, b):
    caller = front.ask("POST /a%2Fb?c", "X-A: caf\xe9", site="next", body=b"hello")
    asked = b.asked()
    assert (asked.line, asked.values("x-a"), asked.read_body()) == ("POST /a%2Fb?c HTTP/1.1", ["caf\xe9"], b"hello")
    asked.answer("200 OK", "Set-Cookie: a=1", body=b"from b")
    answer = caller.answer()
    assert (answer.status, answer.body, answer.values("set-cookie")) == (200, b"from b", ["a=1", OURS_B])


def test_who_refuses_is_followed_whatever_the_size_of_the_upload(front, b):
    caller = front.caller("next")
    thread = threading.Thread(target=caller.ask, args=("POST /",), kwargs={"body": bytes(1 << 20)})
    thread.start()
    asked = b.asked()
    assert len(asked.read_body()) == 1 << 20
    thread.join()
    asked.answer()
    assert caller.answer().status == 200


def test_a_client_that_belongs_to_a_server_that_refuses_is_told_its_new_one(front, b):
    caller = front.ask("GET /", "Cookie: SERVERID=a", site="next")
    asked = b.asked()
    assert asked.values("cookie") == []
    asked.answer()
    assert caller.answer().values("set-cookie") == [OURS_B]


@pytest.mark.parametrize("site", ["no-retries", "never"])
def test_without_retries_a_refusal_is_the_answer(site, front, b):
    assert front.ask("GET /", site=site).answer().status == 503
    assert b.untouched()


def with_a_503(asked) -> None:
    asked.answer("503 Busy", "X-Failed: 1", "Set-Cookie: failed=1", "Content-Encoding: gzip", body=b"busy " * 100)


def with_a_503_that_does_not_end(asked) -> None:
    asked.head("503 Busy", "X-Failed: 1", "Set-Cookie: failed=1", "Transfer-Encoding: chunked")
    asked.chunk(b"busy")


AGAIN = [*BAD, with_a_503, with_a_503_that_does_not_end]


@pytest.mark.parametrize("fails", AGAIN, ids=lambda fails: fails.__name__.replace("_", " "))
def test_retry_on_asks_the_next_server_and_nothing_of_the_one_before_is_left(fails, front, a, b):
    caller = front.ask("PUT /a%2Fb?c", "X-A: caf\xe9", "Cookie: x=1; SERVERID=a", site="again", body=b"hello")
    first = a.asked()
    first.read_body()
    fails(first)
    asked = b.asked()
    assert (asked.line, asked.fields) == (first.line, first.fields)
    assert asked.read_body() == b"hello"
    asked.answer("201 Created", "X-B: 1", body=b"from b")
    answer = caller.answer()
    assert (answer.status, answer.body, answer.values("set-cookie")) == (201, b"from b", [OURS_B])
    assert (answer.values("x-failed"), answer.values("content-encoding"), answer.values("x-b")) == ([], [], ["1"])


def test_retry_on_a_timeout_asks_the_next_server(front, a, b):
    caller = front.ask("GET /", site="less-patient-again")
    first = a.asked()
    asked = b.asked()
    first.gone()
    asked.answer(body=b"from b")
    assert caller.answer().body == b"from b"


def test_the_last_answer_passes_when_nobody_is_left(front, a, b):
    caller = front.ask("GET /", site="again")
    with_a_503(a.asked())
    b.asked().answer("503 Busy", "X-Last: 1", "Set-Cookie: last=1", body=b"busy as well")
    answer = caller.answer()
    assert (answer.status, answer.body) == (503, b"busy as well")
    assert answer.values("set-cookie") == ["last=1", OURS_B]
    assert (answer.values("x-last"), answer.values("x-failed")) == (["1"], [])


def test_an_answer_that_is_not_to_be_retried_passes(front, a, b):
    caller = front.ask("GET /", site="again")
    a.asked().answer("500 Oops", body=b"oops")
    answer = caller.answer()
    assert (answer.status, answer.body, answer.values("set-cookie")) == (500, b"oops", [OURS_A])
    assert b.untouched()


@pytest.mark.parametrize(
    "fails, status",
    [(closed, 502), (said_nonsense, 502), (with_a_503, 503)],
    ids=["closed", "said nonsense", "with a 503"],
)
def test_what_may_have_been_executed_is_not_executed_again(fails, status, front, a, b):
    caller = front.ask("POST /", site="again", body=b"order")
    asked = a.asked()
    asked.read_body()
    fails(asked)
    assert caller.answer().status == status
    assert a.untouched() and b.untouched()


@pytest.mark.parametrize("fails", [closed, with_a_503], ids=["closed", "with a 503"])
def test_unless_the_client_gives_it_a_key(fails, front, a, b):
    caller = front.ask("POST /", "Idempotency-Key: 42", site="keyed", body=b"order")
    asked = a.asked()
    asked.read_body()
    fails(asked)
    again = b.asked()
    assert (again.values("idempotency-key"), again.read_body()) == (["42"], b"order")
    again.answer(body=b"thanks")
    assert caller.answer().body == b"thanks"


@pytest.mark.parametrize(
    "site, fields", [("keyed", []), ("again", ["Idempotency-Key: 42"])], ids=["no key", "not opted in"]
)
def test_a_key_counts_where_it_is_given_and_wanted(site, fields, front, a, b):
    caller = front.ask("POST /", *fields, site=site, body=b"order")
    asked = a.asked()
    asked.read_body()
    asked.close()
    assert caller.answer().status == 502
    assert b.untouched()


def test_a_body_within_the_limit_is_told_again_and_one_beyond_it_is_not(front, a, b):
    caller = front.ask("PUT /", site="small", body=b"0123456789")
    asked = a.asked()
    asked.read_body()
    asked.close()
    again = b.asked()
    assert again.read_body() == b"0123456789"
    again.answer()
    assert caller.answer().status == 200
    caller = front.ask("PUT /", site="small", body=b"0123456789+")
    asked = a.asked()
    asked.read_body()
    asked.close()
    assert caller.answer().status == 502
    assert b.untouched()


def test_without_redispatch_the_same_server_is_asked_again(front, a, b):
    caller = front.ask("GET /", "Cookie: SERVERID=a", site="again-here")
    with_a_503(a.asked())
    a.asked().answer(body=b"better")
    assert caller.answer().body == b"better"
    assert b.untouched()


def test_a_server_that_refuses_is_given_a_pause(front, origins, until):
    late = origins["late"]
    before = front.look("patient")["a"]["failed"]
    caller = front.ask("POST /", site="patient", body=b"hello")
    until(lambda: front.look("patient")["a"]["failed"] > before, "a first attempt has failed")
    late.wake()
    try:
        asked = late.asked()
        assert asked.read_body() == b"hello"
        asked.answer(body=b"at last")
        assert caller.answer().body == b"at last"
    finally:
        late.sleep()


def test_apps_and_upstreams_are_servers_of_one_backend(front, a):
    caller = front.ask("GET /", "Cookie: SERVERID=app", site="mixed")
    answer = caller.answer()
    assert (answer.body, answer.values("set-cookie")) == (b"the app itself", [])
    caller = front.ask("GET /", "Cookie: SERVERID=a", site="mixed")
    a.asked().answer(body=b"the upstream")
    answer = caller.answer()
    assert (answer.body, answer.values("set-cookie")) == (b"the upstream", [])
    assert a.untouched()


def test_who_belongs_nowhere_is_sent_to_apps_and_upstreams_in_turn(front, a):
    with a.answering(lambda asked: asked.answer(body=b"the upstream")):
        bodies = [front.ask("GET /", site="mixed").answer().body for _ in range(4)]
    assert sorted(bodies[:2]) == sorted(bodies[2:]) == [b"the app itself", b"the upstream"]


# -- a place at a server


def queued(front, site: str) -> int:
    number: int = front.look(site)["queue"]["waiting"]
    return number


def test_who_finds_no_place_in_time_is_told_503(front, a):
    first = front.ask("GET /first", site="one-at-once")
    asked = a.asked()
    answer = front.ask("GET /second", site="one-at-once").answer()
    assert (answer.status, answer.values("set-cookie")) == (503, [])
    assert a.untouched()
    asked.answer(body=b"first")
    assert first.answer().body == b"first"
    assert visit(front, a, site="one-at-once").target == "/"


def test_who_has_waited_longest_is_next(front, a, until):
    first = front.ask("GET /first", site="one")
    asked = a.asked()
    waiting = []
    for number in range(4):
        waiting.append(front.ask(f"POST /{number}", site="one", body=b"hello"))
        until(lambda: queued(front, "one") == len(waiting), "one more in the queue")
    for number, (before, after) in enumerate(zip([first, *waiting], waiting, strict=False)):
        assert a.untouched()
        asked.answer(body=b"thanks")
        assert before.answer().body == b"thanks"
        asked = a.asked()
        assert (asked.target, asked.read_body()) == (f"/{number}", b"hello")
        assert not after.look()
    asked.answer(body=b"last")
    assert waiting[-1].answer().body == b"last"


def test_who_leaves_the_queue_keeps_nobody_waiting(front, a, until):
    first = front.ask("GET /first", site="one")
    asked = a.asked()
    leaving = front.ask("GET /leaving", site="one")
    until(lambda: queued(front, "one") == 1, "one in the queue")
    staying = front.ask("GET /staying", site="one")
    until(lambda: queued(front, "one") == 2, "two in the queue")
    leaving.leave()
    until(lambda: queued(front, "one") == 1, "one has left the queue")
    asked.answer()
    assert first.answer().status == 200
    following = a.asked()
    assert following.target == "/staying"
    following.answer()
    assert staying.answer().status == 200
    assert visit(front, a, site="one").target == "/"


def test_a_client_that_leaves_gives_its_place_to_the_next(front, a, until):
    first = front.ask("GET /first", site="one")
    asked = a.asked()
    second = front.ask("GET /second", site="one")
    until(lambda: queued(front, "one") == 1, "one in the queue")
    first.leave()
    asked.gone()
    following = a.asked()
    assert following.target == "/second"
    following.answer()
    assert second.answer().status == 200


def test_a_failure_gives_its_place_to_the_next(front, a, until):
    first = front.ask("GET /first", site="one")
    asked = a.asked()
    second = front.ask("GET /second", site="one")
    until(lambda: queued(front, "one") == 1, "one in the queue")
    asked.close()
    assert first.answer().status == 502
    following = a.asked()
    assert following.target == "/second"
    following.answer()
    assert second.answer().status == 200


def test_who_finds_the_queue_full_is_told_503_at_once(front, a, until):
    first = front.ask("GET /first", site="one-more")
    asked = a.asked()
    second = front.ask("GET /second", site="one-more")
    until(lambda: queued(front, "one-more") == 1, "one in the queue")
    assert front.ask("GET /third", site="one-more").answer().status == 503
    asked.answer()
    assert first.answer().status == 200
    a.asked().answer()
    assert second.answer().status == 200


def test_first_fills_the_first_server_before_the_next(front, a, b):
    first = front.ask("GET /first", site="first")
    asked = a.asked()
    second = front.ask("GET /second", site="first")
    other = b.asked()
    assert (asked.target, other.target) == ("/first", "/second")
    asked.answer()
    assert first.answer().status == 200
    third = front.ask("GET /third", site="first")
    again = a.asked()
    assert again.target == "/third"
    for each in (again, other):
        each.answer()
    assert (second.answer().status, third.answer().status) == (200, 200)


# -- TLS


def test_an_upstream_of_tls_is_verified_and_forwarded_to(front, origins, until):
    caller = front.ask("POST /a%2Fb", "X-A: caf\xe9", site="tls", body=b"hello")
    asked = origins["tls"].asked()
    assert (asked.target, asked.values("x-a"), asked.read_body()) == ("/a%2Fb", ["caf\xe9"], b"hello")
    assert asked.values("x-forwarded-proto") == ["http"]  # that is how the client came
    asked.answer(body=b"thanks" * 10_000)
    assert caller.answer().body == b"thanks" * 10_000
    wires = [asked.wire]

    def used_again():  # a client may have its answer a moment before the connection is idle
        wires.append(visit(front, origins["tls"], site="tls").wire)
        return any(each is wires[-1] for each in wires[:-1])

    until(used_again, "a connection is used again")


@pytest.mark.parametrize("site, origin", [("tls-stranger", "tls"), ("tls-misnamed", "named")])
def test_a_certificate_that_is_not_good_enough_makes_a_503(site, origin, front, origins):
    caller = front.ask("GET /", site=site)
    origins[origin].refuse()
    assert caller.answer().status == 503


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
    caller = front.ask("GET /", site="tls")
    asked = origins["tls"].asked()
    caller.leave()
    asked.gone()


def test_who_does_not_answer_in_time_over_tls_makes_a_504(front, origins):
    caller = front.ask("GET /", site="tls-impatient")
    asked = origins["tls"].asked()
    assert caller.answer().status == 504
    asked.gone()


def test_an_answer_over_tls_that_is_cut_short_is_seen_to_be(front, origins):
    caller = front.ask("GET /", site="tls")
    asked = origins["tls"].asked()
    asked.head("200 OK", "Content-Length: 100")
    asked.send(b"0123456789")
    caller.wait_for(b"0123456789")
    asked.close()
    with pytest.raises(AssertionError, match="the connection ended before"):
        caller.answer()
