"""Stick rules and learned sessions: which of several rules speaks, what is stored of an answer, and what never is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure
from sticky_core.http.messages import Request
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples import response as res
from sticky_core.samples.request import cook, form, hdr, path_param, src, url_param
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis
from sticky_core.transaction.store_writes import pending_writes
from tests.core.fakes import ScriptedTransaction

Headers = Sequence[tuple[str, str]]

A, B = hdr("a"), hdr("b")


def table(**entries: str) -> StickTable:
    """A table of texts that knows so much already."""
    made = StickTable("string", expire=80)
    for key, server in entries.items():
        made.entries.put(key, server, 0.0)
    return made


def over(*persist: Persist, count: int = 3, start: int = 0, **options: Any) -> Backend:
    """s1, s2, s3 …; whoever is new goes to s1, then s2."""
    servers = options.pop("servers", None) or [Server(f"s{n}", f"http://10.0.0.{n}") for n in range(1, count + 1)]
    asked: dict[str, Any] = {"balance": RoundRobin(start=start), "clock": ManualClock(), "persist": persist} | options
    return Backend("web", servers, **asked)


def listed(table: StickTable) -> dict[str, str]:
    return {entry.key: entry.server for entry in table}


def held(backend: Backend, table: StickTable) -> dict[str, str]:
    """What is in it, by the backend's own clock."""
    return {table.key_text(key): server for key, server, _ in table.entries.items(backend.clock.monotonic())}


def later(backend: Backend, seconds: float) -> None:
    assert isinstance(backend.clock, ManualClock)
    backend.clock.advance(seconds)


# -- stick on


def test_requests_with_the_same_sample_go_to_the_same_server():
    backend = over(Stick.on(src))
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
    keys = table()
    backend = over(Stick.on(A, keys))
    assert [ScriptedTransaction(backend).run() for _ in range(3)] == ["s1", "s2", "s3"]
    assert held(backend, keys) == {}


def test_an_empty_sample_is_no_key():
    """HAProxy keeps an entry for it, which all that lack the value share."""
    keys = table()
    backend = over(Stick.on(A, keys))
    assert [ScriptedTransaction(backend, headers=[("a", "")]).run() for _ in range(2)] == ["s1", "s2"]
    assert held(backend, keys) == {}


def test_rules_in_haproxy_s_words_are_the_same():
    assert Stick.on("src").sample is src
    assert Stick.on("hdr(A)").sample == A
    assert Stick.match("cook(sid)", table()).sample == cook("sid")
    assert Stick.store_request("url_param(u)", table()).sample == url_param("u")
    assert Stick.store_response("res.cook(sid)", table()).sample == res.cook("sid")


def test_a_table_of_its_own_suits_the_sample():
    for rule, kind in ((Stick.on("src"), "ipv6"), (Stick.on("src,ipmask(24)"), "ipv6"), (Stick.on("hdr(a)"), "string")):
        assert (rule.table.type, rule.table.expire, rule.table.entries.size) == (kind, 1800, 1 << 20)
    assert Stick.on("src").table is not Stick.on("src").table


# -- which of several rules speaks

ONE, OTHER = [("a", "x")], [("b", "y")]
BOTH = [*ONE, *OTHER]


@pytest.mark.parametrize(
    "rules, headers, server",
    [
        pytest.param("a b", BOTH, "s2", id="the first match wins"),
        pytest.param("b a", BOTH, "s3", id="in the order written"),
        pytest.param("a b", OTHER, "s3", id="whose key is there"),
        pytest.param("b a", ONE, "s2", id="whose key is there, the other way round"),
        pytest.param("A b", BOTH, "s3", id="whose table knows it"),
        pytest.param("a", [("a", "z")], "s1", id="nobody knows it"),
        pytest.param("a", [], "s1", id="nothing is there"),
        pytest.param("dead b", BOTH, "s3", id="whose server is usable"),
        pytest.param("dead", BOTH, "s1", id="nobody's is"),
        pytest.param("never b", BOTH, "s3", id="for whom the rule is"),
        pytest.param("storing b", BOTH, "s3", id="a rule that only stores does not speak"),
    ],
)
def test_first_match_with_a_usable_server_binds_the_request(rules: str, headers: Headers, server: str):
    known = {
        "a": Stick.on(A, table(x="s2")),
        "A": Stick.match(A, table(other="s2")),
        "b": Stick.match(B, table(y="s3")),
        "dead": Stick.match(A, table(x="s4")),
        "never": Stick.on(A, table(x="s2"), when=lambda request: False),
        "storing": Stick.store_request(A, table(x="s2")),
    }
    backend = over(*(known[word] for word in rules.split()), count=4)
    backend["s4"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=headers).run() == server


def test_later_rule_that_matches_is_applied_as_well():
    first, second = table(x="s1"), table(y="s2")
    backend = over(Stick.match(A, first), Stick.match(B, second))
    for _ in range(4):
        later(backend, 60)  # of 80
        assert ScriptedTransaction(backend, headers=BOTH).run() == "s1"
    assert held(backend, second) == {"y": "s2"}


def test_first_rule_with_a_key_stores_into_a_table():
    keys = table()
    backend = over(Stick.on(A, keys), Stick.on(B, keys))
    ScriptedTransaction(backend, headers=BOTH).run()
    assert held(backend, keys) == {"x": "s1"}
    ScriptedTransaction(backend, headers=OTHER).run()
    assert held(backend, keys) == {"x": "s1", "y": "s2"}
    assert ScriptedTransaction(backend, headers=OTHER).run() == "s2"


def test_rule_that_would_store_too_late_is_not_matched_either():
    keys = table(y="s3")
    backend = over(Stick.on(A, keys), Stick.on(B, keys))
    assert ScriptedTransaction(backend, headers=[("a", "new"), ("b", "y")]).run() == "s1"
    assert held(backend, keys) == {"new": "s1", "y": "s3"}


def test_each_table_is_stored_to_by_itself():
    one, other = table(), table()
    backend = over(Stick.on(A, one), Stick.store_request(B, other))
    ScriptedTransaction(backend, headers=BOTH).run()
    assert (held(backend, one), held(backend, other)) == ({"x": "s1"}, {"y": "s1"})


def test_conditions_of_rules_that_come_too_late_are_not_evaluated():
    keys = table()
    asked: list[str] = []

    def when(name: str) -> Callable[[Request], object]:
        def told(request: Request) -> bool:
            asked.append(name)
            return True

        return told

    backend = over(Stick.store_request(A, keys, when=when("first")), Stick.store_request(B, keys, when=when("second")))
    ScriptedTransaction(backend, headers=BOTH).run()
    assert asked == ["first"]


def test_condition_gets_the_request():
    keys = table()
    backend = over(Stick.on(A, keys, when=lambda request: request.path.startswith("/shop")))
    ScriptedTransaction(backend, target="/", headers=ONE).run()
    assert held(backend, keys) == {}
    ScriptedTransaction(backend, target="/shop/cart", headers=ONE).run()
    assert held(backend, keys) == {"x": "s2"}


def test_condition_of_a_response_rule_gets_the_request():
    keys = table()
    backend = over(Stick.store_response(res.hdr("id"), keys, when=lambda request: request.method == "POST"))
    for method in ("GET", "POST"):
        ScriptedTransaction(backend, method=method).run(("id", method))
    assert held(backend, keys) == {"POST": "s2"}


def test_condition_of_a_response_rule_does_not_hold_if_its_body_was_not_read():
    keys = table()
    backend = over(Stick.store_response(res.hdr("id"), keys, when=lambda request: request.peek(10)))
    assert ScriptedTransaction(backend, body=b"something").run(("id", "1")) == "s1"
    assert held(backend, keys) == {}


# -- servers that are not there


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
    keys = table(x="s2")
    backend = over(Stick.on(A, keys))
    if state == "down":
        backend["s2"].health = Health.DOWN
    else:
        backend["s2"].state = AdminState(state)
    asked = ScriptedTransaction(backend, headers=ONE)
    assert asked.run() == server
    assert (asked.decision.claim, asked.decision.reason) == (claim, reason)
    backend["s2"].state, backend["s2"].health = AdminState.READY, Health.UP
    assert held(backend, keys) == {"x": afterwards}
    assert ScriptedTransaction(backend, headers=ONE).run() == afterwards


@pytest.mark.parametrize(
    "entry, reason",
    [("gone", Reason.UNKNOWN), ("s2@0123456789abcdef", Reason.OTHER_INSTANCE), ("s9@0123", Reason.UNKNOWN)],
)
def test_entry_that_names_no_server_of_the_backend_is_replaced(entry: str, reason: Reason):
    keys = table(x=entry)
    backend = over(Stick.on(A, keys))
    asked = ScriptedTransaction(backend, headers=ONE)
    assert asked.run() == "s1"
    assert (asked.decision.claim, asked.decision.reason) == (Claim.INVALID, reason)
    assert held(backend, keys) == {"x": "s1"}


def test_client_that_must_not_be_redispatched_gets_503_and_keeps_its_entry():
    keys = table(x="s2")
    backend = over(Stick.on(A, keys), unavailable="fail")
    backend["s2"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=ONE).run() is None
    assert held(backend, keys) == {"x": "s2"}


def test_persist_on_down_keeps_the_client_at_its_server():
    keys = table(x="s2")
    backend = over(Stick.on(A, keys), persist_on_down=True)
    backend["s2"].health = Health.DOWN
    assert ScriptedTransaction(backend, headers=ONE).run() == "s2"


def test_redispatch_moves_the_entry_for_good():
    keys = table(x="s2")
    backend = over(Stick.on(A, keys))
    asked = ScriptedTransaction(backend, headers=ONE)
    assert asked.run(failing=("s2",)) == "s1"
    assert (asked.decision.claim, asked.decision.reason) == (Claim.DOWN, Reason.FAILED)
    assert held(backend, keys) == {"x": "s1"}
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"


def test_redispatched_first_request_is_stored_with_the_server_that_responds():
    keys = table()
    backend = over(Stick.on(A, keys))
    assert ScriptedTransaction(backend, headers=ONE).run(failing=("s1", "s2")) == "s3"
    assert held(backend, keys) == {"x": "s3"}


# -- what is not stored


def test_response_of_ours_stores_nothing():
    one, other = table(), table()
    backend = over(Stick.on(A, one), Stick.store_response(res.hdr("id"), other))
    assert ScriptedTransaction(backend, headers=ONE).run(failing=("s1", "s2", "s3")) is None
    assert (len(one), len(other)) == (0, 0)


def test_nothing_is_stored_if_no_server_is_usable():
    keys = table()
    backend = over(Stick.on(A, keys), count=1)
    backend["s1"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=ONE).run() is None
    assert len(keys) == 0


@pytest.mark.parametrize("status", [200, 302, 404, 500, 503])
def test_response_with_any_status_stores_the_server(status: int):
    keys, given = table(), table()
    backend = over(Stick.on(A, keys), Stick.store_response(res.cook("sid"), given))
    ScriptedTransaction(backend, headers=ONE).run(("set-cookie", "sid=abc"), status=status)
    assert (held(backend, keys), held(backend, given)) == ({"x": "s1"}, {"abc": "s1"})


def test_non_stick_server_is_never_stored():
    keys, given = table(), table()
    servers = [Server("s1", "http://10.0.0.1", non_stick=True), Server("s2", "http://10.0.0.2")]
    backend = over(Stick.on(A, keys), Stick.store_response(res.cook("sid"), given), servers=servers)
    assert ScriptedTransaction(backend, headers=ONE).run(("set-cookie", "sid=abc")) == "s1"
    assert (len(keys), len(given)) == (0, 0)
    assert ScriptedTransaction(backend, headers=ONE).run() == "s2"
    assert ScriptedTransaction(backend, headers=ONE).run(failing=("s2",)) == "s1"
    assert held(backend, keys) == {"x": "s2"}  # whoever helps out is not stuck to


def test_full_table_with_nopurge_stores_no_new_client():
    keys = StickTable("string", size=1, nopurge=True)
    backend = over(Stick.on(A, keys))
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"
    assert [ScriptedTransaction(backend, headers=[("a", "new")]).run() for _ in range(2)] == ["s2", "s3"]
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"


def test_entry_expires_when_it_has_not_been_used():
    keys = table(x="s2")
    backend = over(Stick.on(A, keys))
    for _ in range(3):
        later(backend, 80)
        assert ScriptedTransaction(backend, headers=ONE).run() == "s2"
    later(backend, 90.1)  # an eighth of 80 more
    assert ScriptedTransaction(backend, headers=ONE).run() == "s1"


# -- requests of one client that come together


def test_simultaneous_first_requests_go_to_one_server():
    keys = table()
    backend = over(Stick.on(A, keys))
    together = [ScriptedTransaction(backend, headers=ONE) for _ in range(4)]
    servers = [each.start() for each in together]
    assert servers == [backend["s1"]] * 4
    assert len(backend["s1"].in_flight) == 4
    assert [len(backend[name].in_flight) for name in ("s2", "s3")] == [0, 0]
    for each in together:
        each.respond()
    assert held(backend, keys) == {"x": "s1"}


def test_failed_request_does_not_forget_the_reservation_of_another():
    keys = table()
    backend = over(Stick.on(A, keys), count=1, retries=0)
    quick, slow = ScriptedTransaction(backend, headers=ONE), ScriptedTransaction(backend, headers=ONE)
    quick.start()
    slow.start()
    quick.respond()
    assert slow.fail() is None
    slow.unavailable_response()
    assert held(backend, keys) == {"x": "s1"}


def test_failed_request_that_waited_does_not_forget_the_reservation_of_another():
    keys = table()
    backend = over(Stick.on(A, keys), servers=[Server("s1", "http://10.0.0.1", maxconn=1)], retries=0)
    busy, quick, slow = (
        ScriptedTransaction(backend),
        ScriptedTransaction(backend, headers=ONE),
        ScriptedTransaction(backend, headers=ONE),
    )
    assert (busy.start(), quick.start(), slow.start()) == (backend["s1"], None, None)
    busy.respond()
    assert quick.resume_wait(True) is backend["s1"]
    quick.respond()
    assert slow.resume_wait(True) is backend["s1"]
    assert slow.fail() is None
    slow.unavailable_response()
    assert held(backend, keys) == {"x": "s1"}


def test_failed_request_does_not_forget_the_server_that_another_was_moved_to():
    keys = table()
    backend = over(Stick.on(A, keys), count=2, retries=1)
    first, second = ScriptedTransaction(backend, headers=ONE), ScriptedTransaction(backend, headers=ONE)
    assert first.start() == second.start() == backend["s1"]
    assert second.fail() == backend["s2"]
    second.respond()
    first.fail()
    first.fail()
    first.unavailable_response()
    assert held(backend, keys) == {"x": "s2"}


def test_reservation_ends_with_its_request_if_no_server_responds():
    keys = table()
    backend = over(Stick.on(A, keys), count=1, retries=0)
    asked = ScriptedTransaction(backend, headers=ONE)
    asked.start()
    assert held(backend, keys) == {"x": "s1"}
    assert asked.fail() is None
    asked.unavailable_response()
    assert held(backend, keys) == {}


def test_client_that_leaves_before_a_response_has_reserved_nothing():
    keys = table()
    backend = over(Stick.on(A, keys), redispatch=False)
    asked = ScriptedTransaction(backend, headers=ONE)
    asked.start()
    assert asked.fail() is None and asked.wait is not None  # a pause before the same server again
    asked.abandon_wait()
    assert held(backend, keys) == {}


# -- learned sessions


def test_session_id_that_a_server_has_set_leads_back_to_it():
    learn = Learn.cookie("JSESSIONID")
    backend = over(learn)
    assert ScriptedTransaction(backend).run(("set-cookie", "JSESSIONID=abc; Path=/")) == "s1"
    assert [ScriptedTransaction(backend, cookie="JSESSIONID=abc").run() for _ in range(2)] == ["s1", "s1"]
    assert ScriptedTransaction(backend).run() == "s2"


WAYS = [
    pytest.param(Learn.header("Mcp-Session-Id"), ("mcp-session-id", "abc"), {"headers": [("mcp-session-id", "abc")]},
                 id="a header"),
    pytest.param(Learn(res.url_param("sid"), url_param("sid")), ("location", "/next?sid=abc"), {"target": "/?sid=abc"},
                 id="the query of the Location"),
    pytest.param(Learn(res.path_param("sid"), path_param("sid")), ("location", "/next;sid=abc"),
                 {"target": "/cart;sid=abc"}, id="the path of the Location"),
    pytest.param(Learn(res.cook("sid"), [cook("sid"), url_param("sid")]), ("set-cookie", "sid=abc"),
                 {"target": "/?sid=abc"}, id="given in a cookie, brought in the URL"),
    pytest.param(Learn([res.hdr("x-id"), res.cook("sid")], cook("sid")), ("set-cookie", "sid=abc"),
                 {"cookie": "sid=abc"}, id="the first that is there"),
    pytest.param(Learn(lambda reply: reply.header("x-id")[0][:3], lambda request: request.path[1:4]),
                 ("x-id", "abcdef"), {"target": "/abc"}, id="functions"),
    pytest.param(Learn(res.cook("sid"), form("sid")), ("set-cookie", "sid=abc"),
                 {"method": "POST", "headers": [("content-type", "application/x-www-form-urlencoded")],
                  "body": b"a=1&sid=abc"}, id="brought in a form"),
]  # fmt: skip


@pytest.mark.parametrize("learn, given_out, brought", WAYS)
def test_session_id_is_learned_where_servers_send_it(learn: Learn, given_out: tuple[str, str], brought: dict[str, Any]):
    backend = over(learn)
    ScriptedTransaction(backend, target="/login").run(given_out)
    assert held(backend, learn.table) == {"abc": "s1"}
    asked = ScriptedTransaction(backend, **brought)
    assert asked.run(("x-id", "other")) == "s1"
    assert asked.decision.claim is Claim.VALID


def test_session_id_that_no_server_has_sent_is_not_stored():
    learn = Learn.cookie("JSESSIONID")
    backend = over(learn)
    for number in range(50):
        ScriptedTransaction(backend, cookie=f"JSESSIONID={number}").run()
    assert len(learn.table) == 0


def test_invented_session_ids_push_no_session_out():
    learn = Learn(res.cook("sid"), cook("sid"), table=StickTable("string", size=2))
    backend = over(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=live"))
    for number in range(50):
        ScriptedTransaction(backend, cookie=f"sid={number}").run()
    assert ScriptedTransaction(backend, cookie="sid=live").run() == "s1"


def test_session_stays_with_its_server_until_another_has_responded():
    learn = Learn(res.cook("sid"), cook("sid"), table=table(abc="gone"))
    backend = over(learn)
    asked = ScriptedTransaction(backend, cookie="sid=abc")
    asked.start()
    assert (asked.decision.claim, held(backend, learn.table)) == (Claim.INVALID, {"abc": "gone"})
    asked.respond()
    assert held(backend, learn.table) == {"abc": "s1"}


def test_session_follows_a_client_that_is_redispatched():
    learn = Learn.cookie("sid")
    backend = over(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=abc"))
    assert ScriptedTransaction(backend, cookie="sid=abc").run(failing=("s1",)) == "s2"
    assert held(backend, learn.table) == {"abc": "s2"}


def test_new_session_id_is_stored_beside_the_old_one():
    """As when an application renews it at login: requests under way still bring the old one."""
    learn = Learn.cookie("sid")
    backend = over(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=old"))
    ScriptedTransaction(backend, cookie="sid=old").run(("set-cookie", "sid=new"))
    assert held(backend, learn.table) == {"old": "s1", "new": "s1"}


LOGOUTS = ["sid=abc; Max-Age=0", "sid=; Path=/", "sid=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]


@pytest.mark.parametrize("line", LOGOUTS)
def test_a_logout_forgets_the_session_and_stores_nothing(line: str):
    learn = Learn.cookie("sid")
    backend = over(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=abc"))
    ScriptedTransaction(backend, cookie="sid=abc").run(("set-cookie", line))
    assert held(backend, learn.table) == {}


@pytest.mark.parametrize("line", ["sid=abc; Max-Age=60", "other=; Max-Age=0", "sid=abc"])
def test_other_cookies_forget_nothing(line: str):
    learn = Learn.cookie("sid")
    backend = over(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=abc"))
    ScriptedTransaction(backend, cookie="sid=abc").run(("set-cookie", line))
    assert held(backend, learn.table) == {"abc": "s1"}


def test_logout_forgets_only_the_session_of_its_request():
    learn = Learn.cookie("sid")
    backend = over(learn)
    for value in ("abc", "def"):
        ScriptedTransaction(backend).run(("set-cookie", f"sid={value}"))
    ScriptedTransaction(backend, cookie="sid=abc").run(("set-cookie", "sid=; Max-Age=0"))
    assert held(backend, learn.table) == {"def": "s2"}


@pytest.mark.parametrize("line", LOGOUTS)
def test_logout_stores_nothing_by_haproxys_rules_either(line: str):
    keys = table()
    backend = over(Stick.match(cook("sid"), keys), Stick.store_response(res.cook("sid"), keys))
    ScriptedTransaction(backend).run(("set-cookie", line))
    assert held(backend, keys) == {}


def test_last_of_two_cookies_of_one_name_is_learned():
    keys = table()
    backend = over(Stick.store_response(res.cook("sid"), keys))
    ScriptedTransaction(backend).run(("set-cookie", "sid=one"), ("set-cookie", "sid=two"))
    assert held(backend, keys) == {"two": "s1"}


def test_first_of_two_rules_with_a_key_stores_into_a_table():
    keys = table()
    backend = over(Stick.store_response(res.hdr("x"), keys), Stick.store_response(res.hdr("y"), keys))
    ScriptedTransaction(backend).run(("x", "1"), ("y", "2"))
    ScriptedTransaction(backend).run(("y", "3"))
    assert held(backend, keys) == {"1": "s1", "3": "s2"}


def test_keys_of_request_and_response_are_stored_in_one_table():
    keys = table()
    backend = over(Stick.on(A, keys), Stick.store_response(res.cook("sid"), keys))
    ScriptedTransaction(backend, headers=ONE).run(("set-cookie", "sid=abc"))
    assert held(backend, keys) == {"x": "s1", "abc": "s1"}


# -- tables that are shared, and what servers are called in them


def test_backends_that_share_a_table_agree_by_the_names_of_servers():
    keys = table()
    http, websockets = over(Stick.on(A, keys)), over(Stick.on(A, keys), start=2)
    assert ScriptedTransaction(http, headers=ONE).run() == "s1"
    assert ScriptedTransaction(websockets, headers=ONE).run() == "s1"
    assert ScriptedTransaction(websockets, headers=[("a", "new")]).run() == "s3"
    assert ScriptedTransaction(http, headers=[("a", "new")]).run() == "s3"


def test_backends_that_share_a_table_agree_by_the_addresses_of_servers():
    keys = StickTable("string", srvkey="addr")
    one = over(Stick.on(A, keys))
    other = over(Stick.on(A, keys), servers=[Server(name, f"http://10.0.0.{n}") for n, name in enumerate("abc", 1)])
    ScriptedTransaction(one).run()
    assert ScriptedTransaction(one, headers=ONE).run() == "s2"
    assert listed(keys) == {"x": "10.0.0.2:80"}
    assert ScriptedTransaction(other, headers=ONE).run() == "b"


def test_rules_of_two_backends_have_tables_of_their_own():
    one, other = over(Stick.on(A)), over(Stick.on(A), start=2)
    assert ScriptedTransaction(one, headers=ONE).run() == "s1"
    assert ScriptedTransaction(other, headers=ONE).run() == "s3"


# -- beside cookies

SRV = Cookie("SRV", signed=False, nocache=False)


@pytest.mark.parametrize("persists", ["cookie first", "table first"])
def test_client_that_a_table_knows_gets_no_cookie(persists: str):
    rule = Stick.on(A, table(x="s2"))
    backend = over(*((SRV, rule) if persists == "cookie first" else (rule, SRV)))
    asked = ScriptedTransaction(backend, headers=ONE)
    assert asked.start() is backend["s2"]
    assert asked.respond().set_cookies == []


def test_new_client_gets_a_cookie_and_an_entry():
    keys = table()
    backend = over(SRV, Stick.on(A, keys))
    asked = ScriptedTransaction(backend, headers=ONE)
    asked.start()
    assert asked.respond().set_cookies == ["SRV=s1; path=/"]
    assert held(backend, keys) == {"x": "s1"}


@pytest.mark.parametrize("entry", ["s3", "s2", None], ids=["that says otherwise", "that says the same", "that is not"])
def test_valid_cookie_overwrites_the_entry(entry: str | None):
    keys = table(x=entry) if entry else table()
    backend = over(SRV, Stick.on(A, keys))
    asked = ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2")
    assert asked.run() == "s2"
    assert held(backend, keys) == {"x": "s2"}


def test_store_is_not_queried_for_a_client_with_a_valid_cookie_but_written_to():
    keys = StickTable("string", expire=60, store=Redis("redis://localhost"))
    backend = over(SRV, Stick.on(A, keys))
    asked = ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2")
    assert asked.start() is backend["s2"]
    asked.respond()
    (told,) = pending_writes(asked)
    assert "s2" in told.words


def test_store_is_not_written_to_for_an_id_that_was_not_learned():
    keys = StickTable("string", expire=60, store=Redis("redis://localhost"))
    backend = over(SRV, Learn(res.cook("sid"), cook("sid"), table=keys))
    asked = ScriptedTransaction(backend, cookie="SRV=s2; sid=invented")
    assert asked.start() is backend["s2"]
    asked.respond()
    assert list(pending_writes(asked)) == []


def test_table_before_the_cookie_overrules_it():
    backend = over(Stick.on(A, table(x="s3")), SRV)
    assert ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2").run() == "s3"


def test_table_counts_if_the_server_of_the_cookie_is_down():
    backend = over(SRV, Stick.on(A, table(x="s3")))
    backend["s2"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=ONE, cookie="SRV=s2").run() == "s3"


def test_rules_divided_by_a_cookie_are_applied_apart():
    backend = over(Stick.match(A, table(x="s4")), SRV, Stick.match(B, table(y="s3")), count=4)
    backend["s4"].state = AdminState.MAINT
    assert ScriptedTransaction(backend, headers=BOTH, cookie="SRV=s2").run() == "s2"
    assert ScriptedTransaction(backend, headers=BOTH).run() == "s3"


# -- what was asked for


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: Stick.on(hdr), "stick on: hdr does not say which: write hdr('name')"),  # type: ignore[arg-type]
        (lambda: Stick.on(7), "stick on: 7 is no sample"),  # type: ignore[arg-type]
        (lambda: Stick.match("src", None), "stick match: None is no table: write StickTable"),  # type: ignore[arg-type]
        (lambda: Stick.on("src", when="always"), "'always' is no condition"),  # type: ignore[arg-type]
        (lambda: Stick.on("dst"), "sample 'dst' is not known"),
        (lambda: Stick.store_response("cook(a)", StickTable()), "sample 'cook(a)' is not known"),
        (lambda: Learn((), cook("a")), "name at least one sample of responses"),
        (lambda: Learn(res.cook("a"), ()), "one of requests to look up"),
        (lambda: Learn(["a"], [cook("a")]), "learn: 'a' is no sample: hand one, such as cook('JSESSIONID')"),  # type: ignore[list-item]
        (lambda: Learn.cookie("a b"), "can't be the name of a cookie"),
        (lambda: Learn.cookie("a", timeout="soon"), "expire: "),
    ],
)
def test_options_that_cannot_work_are_reported(wrong: Callable[[], object], problem: str):
    with pytest.raises(ConfigError) as refused:
        wrong()
    assert problem in str(refused.value)


def test_table_of_addresses_needs_servers_with_addresses():
    def app(environ: object, start_response: object) -> list[bytes]:
        return []

    servers = [Server("s1", "http://10.0.0.1"), Server("s2", app), Server("s3", "unix:/run/app.sock")]
    with pytest.raises(ConfigError) as refused:
        over(Stick.on("src", StickTable("ip", srvkey="addr")), servers=servers)
    for name in ("s2", "s3"):
        assert f"server {name}: srvkey='addr' needs an address" in str(refused.value)
    assert "server s1" not in str(refused.value)


# -- whatever comes

KEYS = st.sampled_from(["x", "y", ""])
STEPS = st.lists(
    st.tuples(st.sampled_from(["visit", "fail", "down", "up"]), KEYS, st.sampled_from(["s1", "s2", "s3"])), max_size=20
)


@given(STEPS)
def test_entry_of_a_client_names_the_server_that_responded_last(steps: list[tuple[str, str, str]]):
    keys = table()
    backend = over(Stick.on(A, keys), retries=3)
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
                answered = ScriptedTransaction(backend, headers=[("a", key)]).run(failing=failing)
                if bound is not None and backend[bound].usable and bound not in failing:
                    assert answered == bound
                if key and answered is not None:
                    last[key] = answered
    assert held(backend, keys) == last
    assert all(not server.in_flight for server in backend.servers)


def test_a_failure_after_the_head_leaves_the_entry_alone():
    keys = table(x="s2")
    backend = over(Stick.on(A, keys))
    asked = ScriptedTransaction(backend, headers=ONE)
    asked.start()
    asked.decision.status = 200
    asked.record_failure(Failure.CLOSED)
    asked.release(backend["s2"], True)
    assert held(backend, keys) == {"x": "s2"}
