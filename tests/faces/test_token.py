"""Tokens of our own, for clients that keep no cookies, on both faces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sticky_asgi import Cookie, Stick, StickTable, Token, hdr
from sticky_core.backend.backend import Backend
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.persistence import Persist
from sticky_core.server.state import AdminState

if TYPE_CHECKING:
    from tests.faces.conftest import Face


def over(face: Face, *persist: Persist, **options: Any) -> Backend:
    return face.backend(*(face.server(name) for name in ("s1", "s2", "s3")), persist=persist, **options)


def test_token_is_sent_in_a_header_and_comes_back_in_one(face: Face):
    get = face.client(over(face, Token(header="X-Session-Token")))
    tokens = [get().all("x-session-token") for _ in range(2)]
    assert [len(each) for each in tokens] == [1, 1]
    for _ in range(2):
        for (token,), server in zip(tokens, ("s1", "s2"), strict=True):
            response = get(headers=[("x-session-token", token)])
            assert (response.server, response.letters, response.all("x-session-token")) == (server, "VN", [])


def test_token_may_come_back_in_a_parameter_of_the_url(face: Face):
    get = face.client(over(face, Token(header="X-Session-Token", param="token")))
    (token,) = get().all("x-session-token")
    assert get(f"/cart?a=1&token={token}").server == "s1"


@pytest.mark.parametrize(("scheme", "secure"), [("http", ""), ("https", "; Secure")])
def test_cookie_carries_the_token_and_no_server_sees_it(face: Face, scheme: str, secure: str):
    get = face.client(over(face, Token(cookie="TOKEN")))
    response = get(scheme=scheme)
    (line,) = response.all("set-cookie")
    assert line == f"{response.mark}; path=/; HttpOnly{secure}; SameSite=Lax"
    assert (response.letters, response.all("cache-control")) == ("NI", ["private"])
    again = get(cookie=f"a=1; {response.mark}")
    assert again.seen is not None
    assert (again.server, again.seen.cookies, again.letters) == ("s1", ("a=1",), "VN")
    assert again.all("set-cookie") == []


def test_invented_token_is_replaced(face: Face):
    table = StickTable("string")
    get = face.client(over(face, Token(header="t", table=table)))
    response = get(headers=[("t", "A" * 24)])
    assert (response.decision.claim, len(response.all("t"))) == (Claim.NONE, 1)
    assert [entry.key for entry in table] == response.all("t")


def test_token_stays_with_a_client_that_is_redispatched(face: Face):
    backend = over(face, Token(header="t"))
    get = face.client(backend)
    (token,) = get().all("t")
    backend["s1"].state = AdminState.MAINT
    moved = get(headers=[("t", token)])
    assert (moved.all("t"), moved.decision.claim) == ([], Claim.DOWN)
    backend["s1"].state = AdminState.READY
    assert get(headers=[("t", token)]).server == moved.server


def test_client_that_another_persistence_knows_gets_no_token(face: Face):
    users = StickTable("string")
    get = face.client(over(face, Cookie("SRV", signed=False), Stick.on(hdr("user"), users), Token(header="t")))
    first = get()
    assert (len(first.all("t")), first.mark) == (1, "SRV=s1")
    assert get(cookie=first.mark).all("t") == []
    assert len(get(headers=[("user", "bob")]).all("t")) == 1
    assert get(headers=[("user", "bob")]).all("t") == []


def test_response_of_ours_carries_no_token(face: Face):
    backend = over(face, Token(header="t", cookie="t"))
    for server in backend.servers:
        server.state = AdminState.MAINT
    response = face.client(backend)()
    assert (response.status, response.all("t"), response.all("set-cookie")) == (503, [], [])
