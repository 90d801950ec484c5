"""Which worker owns a key: the table of one worker, and the rules by which workers agree on the owner of a new key."""

from typing import Any

import pytest

from sticky_core.backend.function_failures import FunctionFailures
from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import Reason
from sticky_core.samples import response as res
from sticky_core.samples.request import cook, hdr, path
from sticky_core.server.server import Server
from sticky_core.workers.frames import Kind
from sticky_core.workers.keys import FirstKey, InProgress, KeyArbitration, KeyTable, QueryPeers, WaitFor, first_owner
from tests.core.fakes import RecordedResponse

W1, W2, W3 = "w1@a", "w2@b", "w3@c"


class FakeMembership:
    """Workers w1, w2 and w3, of which one is this one; `starts` and `ends` change what a refresh finds."""

    def __init__(self, own: int = 1) -> None:
        self.servers = [Server(f"w{number}", "http://127.0.0.1:1") for number in (1, 2, 3)]
        for number, (server, instance) in enumerate(zip(self.servers, "abc", strict=True), 1):
            server.id, server.instance = number, instance
        self.own_server = self.servers[own - 1]
        self.running = {server.name: server.instance for server in self.servers}
        self.refreshes = 0
        self.function_failures = FunctionFailures("workers")

    def ends(self, name: str) -> None:
        del self.running[name]

    def starts(self, name: str, instance: str) -> None:
        self.running[name] = instance

    def refresh_peers(self) -> None:
        self.refreshes += 1
        for server in self.servers:
            server.instance = self.running.get(server.name, "")
            server.usable = server.name in self.running

    def live_peers(self) -> list[Server]:
        self.refresh_peers()
        return [server for server in self.servers if server.usable and server is not self.own_server]


class FakeEvent:
    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


@pytest.fixture
def membership():
    return FakeMembership()


@pytest.fixture
def keys(membership):
    return KeyTable(membership, path)


@pytest.fixture
def arbitration(keys):
    return KeyArbitration(keys, FakeEvent)


def key_with_arbiter(keys, name, next_name=None):
    """Return a key that has the worker `name` as arbiter; `next_name`: if that does not reply, this one."""
    for key in (f"key-{number}" for number in range(1000)):
        arbiter = keys.arbiter(key)
        if arbiter.name == name and next_name in (None, keys.arbiter(key, [arbiter.id]).name):
            return key
    raise AssertionError("no such key")


def run(procedure, replies=()):
    """What a procedure asks of its face, each step answered with the next of `replies`; and its result."""
    steps: list[Any] = []
    rest = list(replies)
    try:
        steps.append(next(procedure))
        while True:
            steps.append(procedure.send(rest.pop(0)))
    except StopIteration as done:
        assert not rest
        return [(sorted(peer.name for peer in step.peers), step.request) for step in steps], done.value


# The table


def test_learned_owner_is_returned_while_its_worker_runs(membership, keys):
    assert (keys.last_owner("k"), keys.live_owner("k")) == (None, None)
    keys.learn("k", W2)
    assert (keys.last_owner("k"), keys.live_owner("k")) == (W2, W2)
    membership.ends("w2")
    assert (keys.last_owner("k"), keys.live_owner("k")) == (W2, None)


def test_worker_that_was_restarted_does_not_own_the_keys_of_its_last_instance(membership, keys):
    keys.learn("k", W2)
    membership.starts("w2", "later")
    assert keys.live_owner("k") is None
    keys.learn("k", "w2@later")
    assert keys.live_owner("k") == "w2@later"


@pytest.mark.parametrize(
    "owner, server",
    [
        pytest.param(W1, "w1", id="this worker"),
        pytest.param(W3, "w3", id="a peer"),
        pytest.param("w3@older", None, id="an earlier instance"),
        pytest.param("w3", None, id="no instance"),
        pytest.param("w0@a", None, id="a number below the first worker slot"),
        pytest.param("w129@a", None, id="a number above the last worker slot"),
        pytest.param("wx@a", None, id="no number"),
        pytest.param("", None, id="empty text"),
    ],
)
def test_owner_from_a_frame_is_a_live_server_or_none(membership, keys, owner, server):
    membership.refresh_peers()
    found = keys.live_server(owner)
    assert (found.name if found is not None else None) == server


def test_peer_that_has_just_started_is_found_by_a_refresh(membership, keys):
    membership.refresh_peers()
    membership.starts("w2", "new")
    before = membership.refreshes
    assert keys.live_server("w2@new").name == "w2"
    assert membership.refreshes == before + 1


def test_all_workers_compute_the_same_arbiter_and_spread_keys_over_all(keys):
    others = [KeyTable(FakeMembership(own), path) for own in (2, 3)]
    arbiters = {key: keys.arbiter(key).name for key in map(str, range(60))}
    assert all(other.arbiter(key).name == name for other in others for key, name in arbiters.items())
    assert set(arbiters.values()) == {"w1", "w2", "w3"}


def test_arbiter_is_a_live_worker(membership, keys):
    key = key_with_arbiter(keys, "w3")
    membership.ends("w3")
    assert keys.arbiter(key).name in {"w1", "w2"}


@pytest.mark.parametrize(
    "owner, previous, recorded, reason",
    [
        pytest.param(W1, None, W1, Reason.NO_ENTRY, id="a new key is given to this worker"),
        pytest.param(W1, W1, W1, Reason.NO_ENTRY, id="this worker's own key has expired meanwhile"),
        pytest.param(W1, W2, W1, Reason.OTHER_INSTANCE, id="the key of a worker that has ended is given to this one"),
        pytest.param(W2, None, W2, None, id="a peer owns it"),
        pytest.param(W2, W3, W2, None, id="a peer owns it after another one"),
    ],
)
def test_result_of_a_claim_is_recorded_with_its_reason(keys, owner, previous, recorded, reason):
    keys.record_claim("k", owner, previous)
    assert keys.last_owner("k") == recorded
    assert keys.pop_claim_reason("k") is reason
    assert keys.pop_claim_reason("k") is None


def test_claims_of_requests_that_have_ended_early_are_bounded(keys, monkeypatch):
    monkeypatch.setattr("sticky_core.workers.keys._MAX_CLAIMED", 3)
    for number in range(20):
        keys.record_claim(f"k{number}", W1, None)
    assert sum(keys.pop_claim_reason(f"k{number}") is not None for number in range(20)) <= 4


@pytest.mark.parametrize(
    "sample, header, learned",
    [
        pytest.param(hdr("Mcp-Session-Id"), ("mcp-session-id", "k"), True, id="the header of the key"),
        pytest.param(hdr("Mcp-Session-Id"), ("x-other", "k"), False, id="another header"),
        pytest.param(cook("sid"), ("set-cookie", "sid=k; path=/"), True, id="the cookie of the key"),
        pytest.param(path, ("x-path", "k"), False, id="a key that no response has"),
    ],
)
def test_key_that_a_response_gives_out_is_owned_by_the_server_that_responded(membership, sample, header, learned):
    keys = KeyTable(membership, sample)
    keys.learn_from_response(RecordedResponse(headers=[header]), membership.servers[1])
    assert keys.last_owner("k") == (W2 if learned else None)


def test_all_keys_that_the_head_of_a_response_issues_are_learned_whatever_raises(membership):
    def raises(response):
        raise LookupError("no key")

    learn = (raises, res.cook("sid"), res.hdr("x-room"), res.json_field("sid"))
    keys = KeyTable(membership, FirstKey((hdr("x-session"), path)), learn)
    headers = [("x-session", "a"), ("set-cookie", "sid=b"), ("x-room", "c")]
    keys.learn_from_response(RecordedResponse(headers=headers), membership.servers[1])
    assert [keys.last_owner(key) for key in "abc"] == [W2] * 3
    assert list(membership.function_failures.counts.values()) == [1]


def test_key_is_forgotten_an_hour_after_its_last_use(keys):
    keys.table.clock = clock = ManualClock()
    keys.learn("k", W2)
    clock.advance(3599)
    assert keys.last_owner("k") == W2
    clock.advance(3600 * 1.2)
    assert keys.last_owner("k") is None


@pytest.mark.parametrize(
    "meet",
    [
        pytest.param(lambda keys, arbitration: keys.last_owner("k"), id="a request with it is accepted"),
        pytest.param(lambda keys, arbitration: keys.learn("k", W2), id="a response issues it, or has served it"),
        pytest.param(lambda keys, arbitration: keys.live_owner("k"), id="a peer queries it"),
        pytest.param(lambda keys, arbitration: run(arbitration.decide("k", W3)), id="a peer claims it at its arbiter"),
        pytest.param(lambda keys, arbitration: keys.renew("k", W2), id="a request with it is forwarded"),
    ],
)
def test_key_is_kept_as_long_as_it_is_met(keys, arbitration, meet):
    keys.table.clock = clock = ManualClock()
    keys.learn("k", W2)
    for _ in range(10):
        clock.advance(3000)
        meet(keys, arbitration)
    assert keys.table.peek("k", clock.monotonic()) == W2
    clock.advance(3600 * 1.2)
    assert keys.last_owner("k") is None


def test_key_that_was_used_last_is_evicted_last(membership, monkeypatch):
    monkeypatch.setattr("sticky_core.workers.keys._TABLE_SIZE", 16)
    keys = KeyTable(membership, path)
    keys.table.clock = clock = ManualClock()
    for number in range(100):
        keys.learn(f"k{number}", W2)
        keys.last_owner("k0")
    assert keys.last_owner("k0") == W2
    assert keys.table.peek("k1", clock.monotonic()) is None


def test_key_of_a_request_in_flight_is_kept_however_long_that_takes(keys):
    keys.table.clock = clock = ManualClock()
    keys.learn("k", W1)
    keys.begin_use("a stream", "k", W1)
    for _ in range(3):
        clock.advance(3 * 3600)
        assert keys.live_owner("k") == W1
    clock.advance(3 * 3600)
    keys.end_use("a stream")
    clock.advance(3500)
    assert keys.live_owner("k") == W1
    clock.advance(3600 * 1.2)
    assert keys.live_owner("k") is None


def test_end_of_a_request_does_not_take_its_key_from_a_later_owner(membership, keys):
    keys.table.clock = clock = ManualClock()
    membership.refresh_peers()
    keys.learn("k", W2)
    keys.begin_use("a request", "k", W2)
    clock.advance(3600)
    keys.learn("k", W3)
    keys.end_use("a request")
    assert keys.last_owner("k") == W3
    membership.ends("w3")
    keys.renew("k", W2)
    assert keys.last_owner("k") == W2


# The rules between workers


@pytest.mark.parametrize(
    "replies, claimant, owner",
    [
        pytest.param([None, None], W1, W1, id="no peer knows it: the claimant"),
        pytest.param([None, None], W2, W2, id="no peer knows it: a claimant that is a peer"),
        pytest.param([W2, None], W1, W2, id="a peer knows the owner"),
        pytest.param([None, W3], W1, W3, id="only the last peer knows the owner"),
        pytest.param([W2, W3], W1, W2, id="peers disagree: the first reply"),
        pytest.param([W3], W1, W3, id="replies behind the first owner are left out"),
        pytest.param([], W1, W1, id="no peer replies"),
        pytest.param(["w2@older"], W1, W1, id="the named owner has ended: the claimant"),
    ],
)
def test_arbiter_gives_a_key_to_its_owner_or_else_to_the_claimant(arbitration, replies, claimant, owner):
    steps, decided = run(arbitration.decide("k", claimant), [replies])
    assert decided == owner
    peers = [name for name in ("w2", "w3") if not claimant.startswith(name)]  # the claimant itself is not queried
    assert steps == [(peers, (Kind.KEY_QUERY, "k"))]


def test_arbiter_that_knows_the_owner_queries_no_peer(keys, arbitration):
    keys.learn("k", W3)
    assert run(arbitration.decide("k", W2)) == ([], W3)


def test_arbiter_gives_a_key_once_to_the_first_claimant(arbitration):
    assert run(arbitration.decide("k", W2), [()])[1] == W2
    assert run(arbitration.decide("k", W3)) == ([], W2)


def test_arbiter_gives_the_key_of_a_worker_that_has_ended_to_the_next_claimant(membership, keys, arbitration):
    keys.learn("k", W2)
    membership.ends("w2")
    assert run(arbitration.decide("k", W3), [()]) == ([([], (Kind.KEY_QUERY, "k"))], W3)


@pytest.mark.parametrize(
    "reply, owner, reason",
    [
        pytest.param(W2, W2, None, id="a peer owns it"),
        pytest.param(W1, W1, Reason.NO_ENTRY, id="this worker is given it"),
    ],
)
def test_key_of_another_arbiter_is_claimed_there(keys, arbitration, reply, owner, reason):
    key = key_with_arbiter(keys, "w3")
    steps, _ = run(arbitration.claim(key), [[reply]])
    assert steps == [(["w3"], (Kind.KEY_CLAIM, key, W1))]
    assert (keys.last_owner(key), keys.pop_claim_reason(key)) == (owner, reason)


@pytest.mark.parametrize("ends", [True, False], ids=["it has just ended", "it runs and does not react"])
@pytest.mark.parametrize(
    "known, owner, reason",
    [
        pytest.param(W2, W2, None, id="a survivor owns it"),
        pytest.param(None, W1, Reason.NO_ENTRY, id="no survivor knows it"),
    ],
)
def test_claim_to_which_the_arbiter_does_not_reply_is_decided_by_the_next_arbiter(
    membership, keys, arbitration, ends, known, owner, reason
):
    here, there = key_with_arbiter(keys, "w3", "w1"), key_with_arbiter(keys, "w3", "w2")
    if ends:
        membership.ends("w3")
        membership.refresh_peers = lambda: None  # which is found out only when the connection is refused
    claims = [(["w3"], (Kind.KEY_CLAIM, key, W1)) for key in (here, there)]
    assert run(arbitration.claim(here), [[None], [known]])[0] == [claims[0], (["w2"], (Kind.KEY_QUERY, here))]
    assert (keys.last_owner(here), keys.pop_claim_reason(here)) == (owner, reason)
    steps, _ = run(arbitration.claim(there), [[None], [known or W1]])
    assert steps == [claims[1], (["w2"], (Kind.KEY_CLAIM, there, W1, 3))]
    assert (keys.last_owner(there), keys.pop_claim_reason(there)) == (owner, reason)


def test_claim_is_decided_by_the_claimant_if_no_peer_replies(keys, arbitration):
    key = key_with_arbiter(keys, "w3", "w2")
    steps, _ = run(arbitration.claim(key), [[None], [None], []])
    assert steps == [
        (["w3"], (Kind.KEY_CLAIM, key, W1)),
        (["w2"], (Kind.KEY_CLAIM, key, W1, 3)),
        ([], (Kind.KEY_QUERY, key)),
    ]
    assert keys.last_owner(key) == W1


def test_arbiter_does_not_query_peers_that_have_not_replied_to_the_claimant(arbitration):
    assert run(arbitration.decide("k", W1, [3]), [[W2]]) == ([(["w2"], (Kind.KEY_QUERY, "k"))], W2)


def test_key_of_the_own_arbiter_is_decided_here(keys, arbitration):
    key = key_with_arbiter(keys, "w1")
    steps, _ = run(arbitration.claim(key), [[None, None]])
    assert steps == [(["w2", "w3"], (Kind.KEY_QUERY, key))]
    assert (keys.last_owner(key), keys.pop_claim_reason(key)) == (W1, Reason.NO_ENTRY)


def test_second_claim_of_a_key_waits_for_the_first_and_asks_no_peer(keys, arbitration):
    key = key_with_arbiter(keys, "w3")
    first, second = arbitration.claim(key), arbitration.claim(key)
    assert isinstance(next(first), QueryPeers)
    waiting = next(second)
    assert isinstance(waiting, WaitFor)
    assert not waiting.event.is_set
    with pytest.raises(StopIteration):
        first.send([W2])
    assert waiting.event.is_set
    with pytest.raises(StopIteration):
        second.send(())
    assert keys.last_owner(key) == W2


def test_second_decision_about_a_key_waits_for_the_first_and_returns_its_owner(arbitration):
    first, second = arbitration.decide("k", W2), arbitration.decide("k", W3)
    assert isinstance(next(first), QueryPeers)
    waiting = next(second)
    assert isinstance(waiting, WaitFor)
    for procedure, replies in ((first, [None]), (second, ())):
        with pytest.raises(StopIteration) as done:
            procedure.send(replies)
        assert done.value.value == W2
    assert waiting.event.is_set


def test_decision_that_is_given_up_lets_the_next_one_begin(arbitration):
    first, second = arbitration.decide("k", W2), arbitration.decide("k", W3)
    next(first)
    waiting = next(second)
    first.close()
    assert waiting.event.is_set
    assert isinstance(second.send(()), QueryPeers)
    with pytest.raises(StopIteration) as done:
        second.send(())
    assert done.value.value == W3


def test_claim_that_is_given_up_lets_the_next_one_begin(keys, arbitration):
    key = key_with_arbiter(keys, "w2")
    first = arbitration.claim(key)
    next(first)
    first.close()
    assert isinstance(next(arbitration.claim(key)), QueryPeers)


def test_work_on_one_key_does_not_hold_up_another():
    working = InProgress(FakeEvent)
    assert working.begin("k") is None
    assert working.begin("other") is None
    event = working.begin("k")
    assert event is not None and not event.is_set
    working.end("k")
    assert event.is_set
    assert working.begin("k") is None


@pytest.mark.parametrize(
    "replies, owner", [((), None), ([None], None), ([None, W2, W3], W2)], ids=["none", "none known", "two"]
)
def test_first_owner_among_replies(replies, owner):
    assert first_owner(replies) == owner
