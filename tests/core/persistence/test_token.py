"""Tokens of our own: sent once, mapped in a table, and worth nothing if a client has invented them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.stick.config import Stick
from sticky_core.persistence.token import Token
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.stick_table.table import StickTable
from tests.core.fakes import RecordedResponse, ScriptedTransaction

TOKEN = re.compile("[A-Za-z0-9_-]{24}")


def over(*persist: Persist, servers: list[Server] | None = None, **options: Any) -> Backend:
    made = servers or [Server(f"s{n}", f"http://10.0.0.{n}") for n in (1, 2, 3)]
    transaction: dict[str, Any] = {"balance": RoundRobin(start=0), "clock": ManualClock(), "persist": persist} | options
    return Backend("web", made, **transaction)


def response_to(transaction: ScriptedTransaction) -> RecordedResponse:
    assert transaction.start() is not None
    return transaction.respond()


def test_new_client_gets_a_token_and_is_recognised_by_it():
    backend = over(Token(header="X-Session-Token"))
    (token,) = response_to(ScriptedTransaction(backend)).values("x-session-token")
    assert TOKEN.fullmatch(token)
    for _ in range(2):
        transaction = ScriptedTransaction(backend, headers=[("x-session-token", token)])
        assert response_to(transaction).headers == []  # it is sent once
        assert (transaction.tried[0].name, transaction.decision.claim, transaction.decision.reason) == (
            "s1",
            Claim.VALID,
            Reason.BOUND,
        )


def test_each_client_gets_one_of_its_own():
    backend = over(Token(header="t"))
    tokens = [response_to(ScriptedTransaction(backend)).values("t")[0] for _ in range(20)]
    assert len(set(tokens)) == 20
    servers = [ScriptedTransaction(backend, headers=[("t", token)]).run() for token in tokens]
    assert servers == (["s1", "s2", "s3"] * 7)[:20]


def test_a_cookie_carries_it_as_well_and_servers_do_not_see_it():
    backend = over(Token(cookie="tok", header="t"))
    response = response_to(ScriptedTransaction(backend))
    (line,), (token,) = response.set_cookies, response.values("t")
    assert line == f"tok={token}; path=/; HttpOnly; SameSite=Lax"
    assert response.cache_control == "private"
    transaction = ScriptedTransaction(backend, cookie=f"a=1; tok={token}; b=2")
    assert transaction.start() is backend["s1"]
    assert transaction.cookies == ("a=1; b=2",)


def test_a_parameter_of_the_url_brings_it_back():
    backend = over(Token(header="t", param="tok"))
    (token,) = response_to(ScriptedTransaction(backend)).values("t")
    assert ScriptedTransaction(backend, target=f"/cart?a=1&tok={token}").run() == "s1"


@pytest.mark.parametrize("invented", ["", "x", "A" * 24, "A" * 10_000, "\xff"], ids=lambda text: repr(text)[:12])
def test_token_that_we_did_not_make_is_replaced(invented: str):
    keys = StickTable("string", expire=60)
    backend = over(Token(header="t", table=keys))
    transaction = ScriptedTransaction(backend, headers=[("t", invented)])
    (token,) = response_to(transaction).values("t")
    assert TOKEN.fullmatch(token) and transaction.decision.claim is Claim.NONE
    assert len(keys) == 1


def test_a_token_is_known_for_as_long_as_it_is_used():
    backend = over(Token(header="t", timeout=80))
    clock = backend.clock
    assert isinstance(clock, ManualClock)
    (token,) = response_to(ScriptedTransaction(backend)).values("t")
    for _ in range(3):
        clock.advance(80)
        assert response_to(ScriptedTransaction(backend, headers=[("t", token)])).values("t") == []
    clock.advance(91)
    assert response_to(ScriptedTransaction(backend, headers=[("t", token)])).values("t") != []


def test_client_that_is_redispatched_keeps_its_token():
    backend = over(Token(header="t"))
    (token,) = response_to(ScriptedTransaction(backend)).values("t")
    backend["s1"].state = AdminState.MAINT
    transaction = ScriptedTransaction(backend, headers=[("t", token)])
    assert response_to(transaction).headers == []
    assert transaction.decision.claim is Claim.DOWN
    backend["s1"].state = AdminState.READY
    assert ScriptedTransaction(backend, headers=[("t", token)]).run() == transaction.tried[-1].name != "s1"


def test_client_that_another_persistence_knows_gets_no_token():
    backend = over(Cookie("SRV", signed=False, nocache=False), Token(header="t"))
    assert response_to(ScriptedTransaction(backend, cookie="SRV=s2")).headers == []
    response = response_to(ScriptedTransaction(backend))
    assert (response.set_cookies, len(response.values("t"))) == (["SRV=s1; path=/"], 1)


def test_client_without_a_token_may_be_recognised_otherwise():
    keys = StickTable("string")
    keys["bob"] = "s3"
    backend = over(Token(header="t"), Stick.on(hdr("user"), keys))
    transaction = ScriptedTransaction(backend, headers=[("user", "bob")])
    assert response_to(transaction).headers == []
    assert transaction.tried[0].name == "s3"


def test_response_of_ours_carries_no_token():
    keys = StickTable("string")
    backend = over(Token(header="t", table=keys), retries=0)
    transaction = ScriptedTransaction(backend)
    transaction.start()
    assert transaction.fail() is None
    assert "t" not in dict(transaction.unavailable_response().headers)
    assert len(keys) == 0


def test_response_of_a_non_stick_server_carries_no_token():
    servers = [Server("s1", "http://10.0.0.1", non_stick=True)]
    assert response_to(ScriptedTransaction(over(Token(header="t"), servers=servers))).headers == []


@pytest.mark.parametrize(
    "transaction, problem",
    [
        ({}, "nothing carries the token: give header= or cookie="),
        ({"param": "t"}, "nothing carries the token: give header= or cookie="),
        ({"header": "a b"}, "header 'a b' can't be the name of a header"),
        ({"cookie": ""}, "cookie '' can't be the name of a cookie"),
        ({"header": "t", "param": ""}, "param is empty: give the name of the parameter"),
        ({"header": "t", "table": StickTable("ip")}, "a table of type ip holds no tokens: use type='string'"),
        ({"header": "t", "table": StickTable("string", length=8)}, "length=8 cuts tokens off: 24 characters at least"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_reported(transaction: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Token(**transaction)
    assert problem in str(refused.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Token(header="a b", cookie="c d", param="")
    assert str(refused.value).count("\n  - ") == 3
