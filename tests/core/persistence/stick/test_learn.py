"""Session ids that servers have made (`Learn`)."""

from __future__ import annotations

from typing import Any

import pytest

from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples import response as res
from sticky_core.samples.request import cook, form, path_param, url_param
from sticky_core.stick_table.table import StickTable
from tests.core.fakes import ScriptedTransaction
from tests.core.persistence.stick.backends import (
    ONE,
    A,
    entries_by_clock,
    make_backend,
    make_table,
)


def test_session_id_that_a_server_has_set_leads_back_to_it():
    learn = Learn.cookie("JSESSIONID")
    backend = make_backend(learn)
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
    backend = make_backend(learn)
    ScriptedTransaction(backend, target="/login").run(given_out)
    assert entries_by_clock(backend, learn.table) == {"abc": "s1"}
    transaction = ScriptedTransaction(backend, **brought)
    assert transaction.run(("x-id", "other")) == "s1"
    assert transaction.decision.claim is Claim.VALID


def test_session_id_that_no_server_has_sent_is_not_stored():
    learn = Learn.cookie("JSESSIONID")
    backend = make_backend(learn)
    for number in range(50):
        ScriptedTransaction(backend, cookie=f"JSESSIONID={number}").run()
    assert len(learn.table) == 0


@pytest.mark.parametrize(
    "persist",
    [
        pytest.param(Learn.cookie("JSESSIONID"), id="learn"),
        pytest.param(Stick.match("cook(JSESSIONID)", make_table()), id="match only"),
    ],
)
@pytest.mark.parametrize(
    "cookie, reason", [("JSESSIONID=unknown", Reason.NO_ENTRY), ("JSESSIONID=", Reason.NO_KEY), ("", Reason.NO_KEY)]
)
def test_reason_tells_an_unknown_session_id_from_none(persist: Learn | Stick, cookie: str, reason: Reason):
    request = ScriptedTransaction(make_backend(persist), cookie=cookie)
    request.run()
    assert (request.decision.claim, request.decision.reason) == (Claim.NONE, reason)


def test_invented_session_ids_push_no_session_out():
    learn = Learn(res.cook("sid"), cook("sid"), table=StickTable("string", size=2))
    backend = make_backend(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=live"))
    for number in range(50):
        ScriptedTransaction(backend, cookie=f"sid={number}").run()
    assert ScriptedTransaction(backend, cookie="sid=live").run() == "s1"


def test_session_stays_with_its_server_until_another_has_responded():
    learn = Learn(res.cook("sid"), cook("sid"), table=make_table(abc="gone"))
    backend = make_backend(learn)
    transaction = ScriptedTransaction(backend, cookie="sid=abc")
    transaction.start()
    assert (transaction.decision.claim, entries_by_clock(backend, learn.table)) == (Claim.INVALID, {"abc": "gone"})
    transaction.respond()
    assert entries_by_clock(backend, learn.table) == {"abc": "s1"}


def test_session_follows_a_client_that_is_redispatched():
    learn = Learn.cookie("sid")
    backend = make_backend(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=abc"))
    assert ScriptedTransaction(backend, cookie="sid=abc").run(failing=("s1",)) == "s2"
    assert entries_by_clock(backend, learn.table) == {"abc": "s2"}


def test_new_session_id_is_stored_beside_the_old_one():
    """As when an application renews it at login: requests under way still bring the old one."""
    learn = Learn.cookie("sid")
    backend = make_backend(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=old"))
    ScriptedTransaction(backend, cookie="sid=old").run(("set-cookie", "sid=new"))
    assert entries_by_clock(backend, learn.table) == {"old": "s1", "new": "s1"}


LOGOUTS = ["sid=abc; Max-Age=0", "sid=; Path=/", "sid=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]


@pytest.mark.parametrize("line", LOGOUTS)
def test_a_logout_forgets_the_session_and_stores_nothing(line: str):
    learn = Learn.cookie("sid")
    backend = make_backend(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=abc"))
    ScriptedTransaction(backend, cookie="sid=abc").run(("set-cookie", line))
    assert entries_by_clock(backend, learn.table) == {}


@pytest.mark.parametrize("line", ["sid=abc; Max-Age=60", "other=; Max-Age=0", "sid=abc"])
def test_other_cookies_forget_nothing(line: str):
    learn = Learn.cookie("sid")
    backend = make_backend(learn)
    ScriptedTransaction(backend).run(("set-cookie", "sid=abc"))
    ScriptedTransaction(backend, cookie="sid=abc").run(("set-cookie", line))
    assert entries_by_clock(backend, learn.table) == {"abc": "s1"}


def test_logout_forgets_only_the_session_of_its_request():
    learn = Learn.cookie("sid")
    backend = make_backend(learn)
    for value in ("abc", "def"):
        ScriptedTransaction(backend).run(("set-cookie", f"sid={value}"))
    ScriptedTransaction(backend, cookie="sid=abc").run(("set-cookie", "sid=; Max-Age=0"))
    assert entries_by_clock(backend, learn.table) == {"def": "s2"}


@pytest.mark.parametrize("line", LOGOUTS)
def test_logout_stores_nothing_by_haproxys_rules_either(line: str):
    keys = make_table()
    backend = make_backend(Stick.match(cook("sid"), keys), Stick.store_response(res.cook("sid"), keys))
    ScriptedTransaction(backend).run(("set-cookie", line))
    assert entries_by_clock(backend, keys) == {}


def test_last_of_two_cookies_of_one_name_is_learned():
    keys = make_table()
    backend = make_backend(Stick.store_response(res.cook("sid"), keys))
    ScriptedTransaction(backend).run(("set-cookie", "sid=one"), ("set-cookie", "sid=two"))
    assert entries_by_clock(backend, keys) == {"two": "s1"}


def test_first_of_two_rules_with_a_key_stores_into_a_table():
    keys = make_table()
    backend = make_backend(Stick.store_response(res.hdr("x"), keys), Stick.store_response(res.hdr("y"), keys))
    ScriptedTransaction(backend).run(("x", "1"), ("y", "2"))
    ScriptedTransaction(backend).run(("y", "3"))
    assert entries_by_clock(backend, keys) == {"1": "s1", "3": "s2"}


def test_keys_of_request_and_response_are_stored_in_one_table():
    keys = make_table()
    backend = make_backend(Stick.on(A, keys), Stick.store_response(res.cook("sid"), keys))
    ScriptedTransaction(backend, headers=ONE).run(("set-cookie", "sid=abc"))
    assert entries_by_clock(backend, keys) == {"x": "s1", "abc": "s1"}
