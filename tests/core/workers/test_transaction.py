"""A request that may be forwarded to a peer: where it goes when the peer has ended, and what the peer's app reads."""

import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import Failure
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.server.counters import Total
from sticky_core.transaction.steps import UNAVAILABLE
from sticky_core.workers.directory import app_digest
from sticky_core.workers.transaction import PeerRequest, PeerTransaction, key_mixins
from tests.core.fakes import RecordedResponse, ScriptedTransaction

#: the cookie of the group in these tests
COOKIE = f"STICKYWORKER_{app_digest('group', '', 'asgi')}"


@pytest.fixture
def request_at():
    """Makes a request that these workers have accepted, with a cookie."""

    def request_at(workers, cookie="", **more):
        # both classes have slots, so one takes the methods of the other rather than inheriting them
        members = vars(ScriptedTransaction).items()
        methods = {name: value for name, value in members if callable(value) or isinstance(value, property)}
        namespace = {**methods, "workers": workers}
        return type("PeerVisit", (*key_mixins(workers), PeerTransaction), namespace)(workers, cookie=cookie, **more)

    return request_at


def mark_of(request_at, workers):
    """What a new client of these workers is marked with."""
    request = request_at(workers)
    assert request.start() is workers.own_server
    (cookie,) = request.respond().set_cookies
    return cookie.partition(";")[0]


def test_new_client_is_served_by_the_worker_that_accepts_its_request(join, request_at):
    first, second = join(), join()
    assert request_at(first).start().name == "w1"
    assert request_at(second).start().name == "w2"


def test_client_of_a_peer_is_sent_there(join, request_at):
    first, second = join(), join()
    mark = mark_of(request_at, second)
    request = request_at(first, mark)
    assert request.start().name == "w2"
    assert (request.decision.claim, request.decision.reason) == (Claim.VALID, Reason.BOUND)


def test_client_of_a_peer_that_has_just_ended_is_served_here_and_marked_anew(join, kill, request_at):
    first, second = join(), join()
    mark = mark_of(request_at, second)
    kill(second)
    request = request_at(first, mark)
    assert request.start().name == "w2"
    request.peer_ended(second.slot.instance)
    assert request.fail(Failure.REFUSED).name == "w1"
    assert (request.decision.claim, request.decision.reason) == (Claim.INVALID, Reason.OTHER_INSTANCE)
    (cookie,) = request.respond().set_cookies
    assert cookie.partition("@")[0].startswith(f"{COOKIE}=w1")


def test_client_of_a_peer_that_fails_but_runs_has_not_lost_its_session(join, request_at):
    first, second = join(), join()
    mark = mark_of(request_at, second)
    request = request_at(first, mark)
    request.start()
    assert request.fail(Failure.REFUSED).name == "w1"
    assert (request.decision.claim, request.decision.reason) == (Claim.DOWN, Reason.FAILED)


@pytest.mark.parametrize("known", [False, True], ids=["the request finds it out", "it is known to have ended"])
def test_client_that_must_not_get_an_empty_session_gets_a_410_that_expires_its_cookie(join, kill, request_at, known):
    first, second = join(on_lost="gone"), join(on_lost="gone")
    mark = mark_of(request_at, second)
    kill(second)
    if known:
        first.forget_peer(first["w2"], second.slot.instance)
    request = request_at(first, mark)
    server = request.start()
    if not known:
        assert server.name == "w2"
        request.peer_ended(second.slot.instance)
        server = request.fail(Failure.REFUSED)
    assert server is None
    page = request.unavailable_response()
    assert page.status == 410
    assert dict(page.headers)["set-cookie"].startswith(
        f"STICKYWORKER_{app_digest('group', '', 'asgi')}=; Expires=Thu, 01-Jan-1970"
    )


def test_other_failures_keep_their_page_where_lost_sessions_are_reported(join, request_at):
    first, second = join(on_lost="gone"), join(on_lost="gone")
    request = request_at(first, mark_of(request_at, second))
    request.start()
    request.record_failure(Failure.CLOSED)
    request.release(request.tried[-1], False)
    assert request.next() is UNAVAILABLE
    assert request.unavailable_response().status == 502


# The decision in the worker that serves


@pytest.mark.parametrize(
    "claim, reason, claimed",
    [
        pytest.param("VALID", "BOUND", "w1", id="a client of this worker"),
        pytest.param("NONE", "NO_COOKIE", None, id="a new client"),
        pytest.param("INVALID", "OTHER_INSTANCE", None, id="a client of a worker that has ended"),
    ],
)
def test_forwarded_decision_has_the_claim_of_the_worker_that_accepted_the_request(join, claim, reason, claimed):
    workers = join()
    decision = PeerRequest(workers, claim, reason, None).decision
    assert (decision.claim, decision.reason) == (Claim[claim], Reason[reason])
    assert (decision.backend, decision.server, decision.claimed) == ("group", "w1", claimed)
    assert decision.attempts == ("w1",)


@pytest.mark.parametrize("claim, reason", [("KING", "BOUND"), ("VALID", "WHY"), ("", "")])
def test_forwarded_decision_refuses_a_claim_that_is_unknown(join, claim, reason):
    with pytest.raises(ValueError, match="claim"):
        PeerRequest(join(), claim, reason, None)


def test_forwarded_request_is_counted_in_the_worker_that_serves_it(join):
    workers = join()
    own = workers.own_server
    request = PeerRequest(workers, "VALID", "BOUND", None)
    request.start()
    assert len(own.in_flight) == 1
    request.decision.status = 204
    request.finish()
    assert (len(own.in_flight), own.total) == (0, 1)


@pytest.mark.parametrize("key", [3, b"k", ("k",)], ids=["a number", "bytes", "a tuple"])
def test_forwarded_request_with_a_key_that_is_no_text_is_refused(join, key):
    with pytest.raises(ValueError, match="key"):
        PeerRequest(join(), "VALID", "BOUND", key)


def test_key_of_a_forwarded_request_is_owned_by_the_worker_that_serves_it_and_in_use_until_its_end(join):
    workers = join(key="hdr(Mcp-Session-Id)")
    keys = workers.keys
    keys.table.clock = clock = ManualClock()
    request = PeerRequest(workers, "VALID", "BOUND", "k")
    request.start()
    clock.advance(10 * 3600)
    assert keys.live_owner("k") == keys.own_id
    clock.advance(10 * 3600)
    request.finish()
    clock.advance(3500)
    assert keys.live_owner("k") == keys.own_id


def test_key_of_an_accepted_request_is_in_use_until_its_end(join, request_at):
    workers = join(key="hdr(Mcp-Session-Id)")
    keys = workers.keys
    keys.table.clock = clock = ManualClock()
    keys.learn("k", keys.own_id)
    request = request_at(workers, headers=[("mcp-session-id", "k")])
    request.start()
    request.stamp(RecordedResponse())
    clock.advance(10 * 3600)
    assert keys.live_owner("k") == keys.own_id
    clock.advance(10 * 3600)
    request.release(workers.own_server, True)
    clock.advance(3500)
    assert keys.live_owner("k") == keys.own_id
    clock.advance(2 * 3600)
    assert keys.live_owner("k") is None


def test_exception_of_the_app_is_counted_as_a_failed_response(join):
    workers = join()
    request = PeerRequest(workers, "VALID", "BOUND", None)
    request.start()
    request.app_raised(False)
    request.finish()
    assert workers.own_server.counters.cell[Total.ERESP] == 1


def test_exception_because_the_client_has_disconnected_is_counted_as_its_disconnect(join):
    workers = join()
    request = PeerRequest(workers, "VALID", "BOUND", None)
    request.start()
    request.app_raised(True)
    request.finish()
    counters = workers.own_server.counters
    assert (counters[Total.CLI_ABRT], counters[Total.ERESP]) == (1, 0)


@pytest.mark.parametrize("secret, logged", [(None, 0), ("another secret of some length", 1)], ids=["generated", "own"])
def test_mark_of_before_a_restart_is_logged_unless_secrets_are_generated(
    join, request_at, caplog, monkeypatch, secret, logged
):
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    workers = join(secret=secret)
    assert request_at(workers, f"{COOKIE}=w1@19aa.{'A' * 43}").start() is workers.own_server
    assert workers.forged_marks == 1
    assert len([each for each in caplog.messages if "is not signed with the secret" in each]) == logged
