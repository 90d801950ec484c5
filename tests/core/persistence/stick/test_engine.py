"""Stick rules: which rule binds a request, which server is stored, and when none is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import Failure
from sticky_core.http.messages import Request
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples import response as res
from sticky_core.samples.request import cook, src, url_param
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from sticky_core.stick_table.table import StickTable
from tests.core.fakes import ScriptedTransaction
from tests.core.persistence.stick.backends import (
    BOTH,
    ONE,
    OTHER,
    A,
    B,
    Headers,
    advance,
    entries_by_clock,
    make_backend,
    make_table,
)


def test_requests_with_the_same_sample_go_to_the_same_server():
    backend = make_backend(Stick.on(src))
    assert [ScriptedTransaction(backend, peer).run() for peer in ("10.1.0.1", "10.1.0.2", "10.1.0.3")] == [
        "s1",
        "s2",
        "s3",
    ]
    assert [ScriptedTransaction(backend, peer).run() for peer in ("10.1.0.3", "10.1.0.1", "10.1.0.2")] == [
        "s3",
        "s1",
        "s2",
    ]


def test_request_without_a_key_is_balanced_and_not_stored():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys))
    assert [ScriptedTransaction(backend).run() for _ in range(3)] == ["s1", "s2", "s3"]
    assert entries_by_clock(backend, keys) == {}


def test_an_empty_sample_is_no_key():
    """HAProxy keeps an entry for it, which all that lack the value share."""
    keys = make_table()
    backend = make_backend(Stick.on(A, keys))
    assert [ScriptedTransaction(backend, headers=[("a", "")]).run() for _ in range(2)] == ["s1", "s2"]
    assert entries_by_clock(backend, keys) == {}


def test_rules_in_haproxy_s_words_are_the_same():
    assert Stick.on("src").sample is src
    assert Stick.on("hdr(A)").sample == A
    assert Stick.match("cook(sid)", make_table()).sample == cook("sid")
    assert Stick.store_request("url_param(u)", make_table()).sample == url_param("u")
    assert Stick.store_response("res.cook(sid)", make_table()).sample == res.cook("sid")


def test_a_table_of_its_own_suits_the_sample():
    for rule, kind in ((Stick.on("src"), "ipv6"), (Stick.on("src,ipmask(24)"), "ipv6"), (Stick.on("hdr(a)"), "string")):
        assert (rule.table.type, rule.table.expire, rule.table.entries.size) == (kind, 1800, 1 << 20)
    assert Stick.on("src").table is not Stick.on("src").table


@pytest.mark.parametrize(
    "rules, headers, server",
    [
        pytest.param("a b", BOTH, "s2", id="the first match wins"),
        pytest.param("b a", BOTH, "s3", id="in the order written"),
        pytest.param("a b", OTHER, "s3", id="the rule with a key"),
        pytest.param("b a", ONE, "s2", id="the rule with a key, in the other order"),
        pytest.param("A b", BOTH, "s3", id="the rule with a table that has the key"),
        pytest.param("a", [("a", "z")], "s1", id="no table has the key"),
        pytest.param("a", [], "s1", id="nothing is there"),
        pytest.param("dead b", BOTH, "s3", id="the rule with a usable server"),
        pytest.param("dead", BOTH, "s1", id="no server is usable"),
        pytest.param("never b", BOTH, "s3", id="the rule that applies"),
        pytest.param("storing b", BOTH, "s3", id="a rule that only stores does not speak"),
    ],
)
def test_first_match_with_a_usable_server_binds_the_request(rules: str, headers: Headers, server: str):
    known = {
        "a": Stick.on(A, make_table(x="s2")),
        "A": Stick.match(A, make_table(other="s2")),
        "b": Stick.match(B, make_table(y="s3")),
        "dead": Stick.match(A, make_table(x="s4")),
        "never": Stick.on(A, make_table(x="s2"), when=lambda request: False),
        "storing": Stick.store_request(A, make_table(x="s2")),
    }
    backend = make_backend(*(known[word] for word in rules.split()), count=4)
    backend["s4"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=headers).run() == server


def test_later_rule_that_matches_is_applied_as_well():
    first, second = make_table(x="s1"), make_table(y="s2")
    backend = make_backend(Stick.match(A, first), Stick.match(B, second))
    for _ in range(4):
        advance(backend, 60)  # of 80
        assert ScriptedTransaction(backend, headers=BOTH).run() == "s1"
    assert entries_by_clock(backend, second) == {"y": "s2"}


def test_first_rule_with_a_key_stores_into_a_table():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), Stick.on(B, keys))
    ScriptedTransaction(backend, headers=BOTH).run()
    assert entries_by_clock(backend, keys) == {"x": "s1"}
    ScriptedTransaction(backend, headers=OTHER).run()
    assert entries_by_clock(backend, keys) == {"x": "s1", "y": "s2"}
    assert ScriptedTransaction(backend, headers=OTHER).run() == "s2"


def test_rule_that_would_store_too_late_is_not_matched_either():
    keys = make_table(y="s3")
    backend = make_backend(Stick.on(A, keys), Stick.on(B, keys))
    assert ScriptedTransaction(backend, headers=[("a", "new"), ("b", "y")]).run() == "s1"
    assert entries_by_clock(backend, keys) == {"new": "s1", "y": "s3"}


def test_each_table_is_stored_to_by_itself():
    one, other = make_table(), make_table()
    backend = make_backend(Stick.on(A, one), Stick.store_request(B, other))
    ScriptedTransaction(backend, headers=BOTH).run()
    assert (entries_by_clock(backend, one), entries_by_clock(backend, other)) == ({"x": "s1"}, {"y": "s1"})


def test_conditions_of_rules_that_come_too_late_are_not_evaluated():
    keys = make_table()
    evaluated: list[str] = []

    def when(name: str) -> Callable[[Request], object]:
        def condition(request: Request) -> bool:
            evaluated.append(name)
            return True

        return condition

    backend = make_backend(
        Stick.store_request(A, keys, when=when("first")), Stick.store_request(B, keys, when=when("second"))
    )
    ScriptedTransaction(backend, headers=BOTH).run()
    assert evaluated == ["first"]


def test_condition_gets_the_request():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys, when=lambda request: request.path.startswith("/shop")))
    ScriptedTransaction(backend, target="/", headers=ONE).run()
    assert entries_by_clock(backend, keys) == {}
    ScriptedTransaction(backend, target="/shop/cart", headers=ONE).run()
    assert entries_by_clock(backend, keys) == {"x": "s2"}


def test_condition_of_a_response_rule_gets_the_request():
    keys = make_table()
    backend = make_backend(Stick.store_response(res.hdr("id"), keys, when=lambda request: request.method == "POST"))
    for method in ("GET", "POST"):
        ScriptedTransaction(backend, method=method).run(("id", method))
    assert entries_by_clock(backend, keys) == {"POST": "s2"}


def test_condition_of_a_response_rule_does_not_hold_if_its_body_was_not_read():
    keys = make_table()
    backend = make_backend(Stick.store_response(res.hdr("id"), keys, when=lambda request: request.peek(10)))
    assert ScriptedTransaction(backend, body=b"something").run(("id", "1")) == "s1"
    assert entries_by_clock(backend, keys) == {}


@pytest.mark.parametrize(
    "state, server, claim, reason, afterwards",
    [
        pytest.param("ready", "s2", Claim.VALID, Reason.BOUND, "s2", id="ready"),
        pytest.param("drain", "s2", Claim.VALID, Reason.BOUND, "s2", id="draining: it keeps its own"),
        pytest.param("maint", "s1", Claim.DOWN, Reason.MAINT, "s1", id="in maintenance: moved"),
        pytest.param("down", "s1", Claim.DOWN, Reason.DOWN, "s1", id="down: moved"),
    ],
)
def test_client_of_an_unusable_server_is_bound_to_another(
    state: str, server: str, claim: Claim, reason: Reason, afterwards: str
):
    keys = make_table(x="s2")
    backend = make_backend(Stick.on(A, keys))
    if state == "down":
        backend["s2"].health = Health.DOWN
    else:
        backend["s2"].state = AdminState(state)
    transaction = ScriptedTransaction(backend, headers=ONE)
    assert transaction.run() == server
    assert (transaction.decision.claim, transaction.decision.reason) == (claim, reason)
    backend["s2"].state, backend["s2"].health = AdminState.READY, Health.UP
    assert entries_by_clock(backend, keys) == {"x": afterwards}
    assert ScriptedTransaction(backend, headers=ONE).run() == afterwards


@pytest.mark.parametrize(
    "entry, reason",
    [("gone", Reason.UNKNOWN), ("s2@0123456789abcdef", Reason.OTHER_INSTANCE), ("s9@0123", Reason.UNKNOWN)],
)
def test_entry_that_names_no_server_of_the_backend_is_replaced(entry: str, reason: Reason):
    keys = make_table(x=entry)
    backend = make_backend(Stick.on(A, keys))
    transaction = ScriptedTransaction(backend, headers=ONE)
    assert transaction.run() == "s1"
    assert (transaction.decision.claim, transaction.decision.reason) == (Claim.INVALID, reason)
    assert entries_by_clock(backend, keys) == {"x": "s1"}


def test_client_that_must_not_be_redispatched_gets_503_and_keeps_its_entry():
    keys = make_table(x="s2")
    backend = make_backend(Stick.on(A, keys), unavailable="fail")
    backend["s2"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=ONE).run() is None
    assert entries_by_clock(backend, keys) == {"x": "s2"}


def test_persist_on_down_keeps_the_client_at_its_server():
    keys = make_table(x="s2")
    backend = make_backend(Stick.on(A, keys), persist_on_down=True)
    backend["s2"].health = Health.DOWN
    assert ScriptedTransaction(backend, headers=ONE).run() == "s2"


def test_redispatch_moves_the_entry_for_good():
    keys = make_table(x="s2")
    backend = make_backend(Stick.on(A, keys))
    transaction = ScriptedTransaction(backend, headers=ONE)
    assert transaction.run(failing=("s2",)) == "s1"
    assert (transaction.decision.claim, transaction.decision.reason) == (Claim.DOWN, Reason.FAILED)
    assert entries_by_clock(backend, keys) == {"x": "s1"}
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"


def test_redispatched_first_request_is_stored_with_the_server_that_responds():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys))
    assert ScriptedTransaction(backend, headers=ONE).run(failing=("s1", "s2")) == "s3"
    assert entries_by_clock(backend, keys) == {"x": "s3"}


def test_response_of_ours_stores_nothing():
    one, other = make_table(), make_table()
    backend = make_backend(Stick.on(A, one), Stick.store_response(res.hdr("id"), other))
    assert ScriptedTransaction(backend, headers=ONE).run(failing=("s1", "s2", "s3")) is None
    assert (len(one), len(other)) == (0, 0)


def test_nothing_is_stored_if_no_server_is_usable():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), count=1)
    backend["s1"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=ONE).run() is None
    assert len(keys) == 0


@pytest.mark.parametrize("status", [200, 302, 404, 500, 503])
def test_response_with_any_status_stores_the_server(status: int):
    keys, given = make_table(), make_table()
    backend = make_backend(Stick.on(A, keys), Stick.store_response(res.cook("sid"), given))
    ScriptedTransaction(backend, headers=ONE).run(("set-cookie", "sid=abc"), status=status)
    assert (entries_by_clock(backend, keys), entries_by_clock(backend, given)) == ({"x": "s1"}, {"abc": "s1"})


def test_non_stick_server_is_never_stored():
    keys, given = make_table(), make_table()
    servers = [Server("s1", "http://10.0.0.1", non_stick=True), Server("s2", "http://10.0.0.2")]
    backend = make_backend(Stick.on(A, keys), Stick.store_response(res.cook("sid"), given), servers=servers)
    assert ScriptedTransaction(backend, headers=ONE).run(("set-cookie", "sid=abc")) == "s1"
    assert (len(keys), len(given)) == (0, 0)
    assert ScriptedTransaction(backend, headers=ONE).run() == "s2"
    assert ScriptedTransaction(backend, headers=ONE).run(failing=("s2",)) == "s1"
    assert entries_by_clock(backend, keys) == {"x": "s2"}  # a backup is not stored


def test_full_table_with_nopurge_stores_no_new_client():
    keys = StickTable("string", size=1, nopurge=True)
    backend = make_backend(Stick.on(A, keys))
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"
    assert [ScriptedTransaction(backend, headers=[("a", "new")]).run() for _ in range(2)] == ["s2", "s3"]
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"


def test_entry_expires_when_it_has_not_been_used():
    keys = make_table(x="s2")
    backend = make_backend(Stick.on(A, keys))
    for _ in range(3):
        advance(backend, 80)
        assert ScriptedTransaction(backend, headers=ONE).run() == "s2"
    advance(backend, 90.1)  # an eighth of 80 more
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"


KEYS = st.sampled_from(["x", "y", ""])
STEPS = st.lists(
    st.tuples(st.sampled_from(["visit", "fail", "down", "up"]), KEYS, st.sampled_from(["s1", "s2", "s3"])), max_size=20
)


@given(STEPS)
def test_entry_of_a_client_names_the_server_that_responded_last(steps: list[tuple[str, str, str]]):
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), retries=3)
    last: dict[str, str] = {}
    for what, key, name in steps:
        match what:
            case "down":
                backend[name].state = AdminState.MAINT
            case "up":
                backend[name].state = AdminState.READY
            case _:
                bound = last.get(key)
                failing = (name,) if what == "fail" else ()
                served_by = ScriptedTransaction(backend, headers=[("a", key)]).run(failing=failing)
                if bound is not None and backend[bound].usable and bound not in failing:
                    assert served_by == bound
                if key and served_by is not None:
                    last[key] = served_by
    assert entries_by_clock(backend, keys) == last
    assert all(not server.in_flight for server in backend.servers)


def test_a_failure_after_the_head_leaves_the_entry_alone():
    keys = make_table(x="s2")
    backend = make_backend(Stick.on(A, keys))
    transaction = ScriptedTransaction(backend, headers=ONE)
    transaction.start()
    transaction.decision.status = 200
    transaction.record_failure(Failure.CLOSED)
    transaction.release(backend["s2"], True)
    assert entries_by_clock(backend, keys) == {"x": "s2"}
