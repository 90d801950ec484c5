"""The server of an accepted cookie fails: ours names the one that has answered, and the old one is deleted once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.accepted import AcceptedCount
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.server.state import Health

if TYPE_CHECKING:
    from sticky_asgi import Backend
    from tests.faces.conftest import Face

OLD = Cookie("OLD", signed=False)
NEW = Cookie("NEW", signed=False, accepts=[OLD])
DELETED = "OLD=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"


def set_by(server: str) -> list[str]:
    return [DELETED, f"NEW={server}; path=/"]


def counted(backend: Backend) -> list[AcceptedCount]:
    return [replace(each, last=None) for each in backend.accepted_marks]


def count(honoured: int) -> list[AcceptedCount]:
    return [AcceptedCount("NEW", "Cookie('OLD')", honoured=honoured)]


@pytest.mark.parametrize("failure", [Failure.REFUSED, "down", "maint"])
def test_client_is_redispatched_and_bound_to_the_server_that_has_answered(face: Face, failure: Any) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=NEW)
    if failure == "down":
        backend["s1"].health = Health.DOWN
    elif failure == "maint":
        backend["s1"].state = "maint"
    else:
        face.apps["s1"].raises = ServerFailure(failure)
    get = face.client(backend)
    response = get(cookie="a=1; OLD=s1")
    assert (response.server, response.decision.claim, response.decision.claimed) == ("s2", Claim.DOWN, "s1")
    assert response.seen is not None and response.seen.cookies == ("a=1",)
    assert (response.all("set-cookie"), response.decision.mark) == (set_by("s2"), Mark.INSERTED)
    assert counted(backend) == count(1)
    again = get(cookie="NEW=s2; OLD=s1")
    assert (again.server, again.decision.reason, again.all("set-cookie")) == ("s2", Reason.BOUND, [])


@pytest.mark.parametrize("is_down", [True, False])
def test_client_is_rather_sent_away_and_keeps_its_old_cookie(face: Face, is_down: bool) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=NEW, unavailable="fail")
    if is_down:
        backend["s1"].health = Health.DOWN
    else:
        face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    get = face.client(backend)
    response = get(cookie="OLD=s1")
    assert (response.status, response.server, response.all("set-cookie")) == (503, None, [])
    backend["s1"].health = Health.UP
    face.apps["s1"].raises = None
    assert get(cookie="OLD=s1").all("set-cookie") == set_by("s1")


@pytest.mark.parametrize("other", [200, 503])
def test_response_that_is_held_back_deletes_nothing(face: Face, other: int) -> None:
    backend = face.backend(
        face.server("s1", status=503), face.server("s2", status=other), persist=NEW, retry_on="503", retries=1
    )
    response = face.client(backend)(cookie="OLD=s1")
    assert (response.server, response.status) == ("s2", other)
    assert response.all("set-cookie") == set_by("s2")
    assert counted(backend) == count(1)


def test_response_that_is_passed_on_after_all_binds_to_its_server(face: Face) -> None:
    failing = face.server("s2", raises=ServerFailure(Failure.REFUSED))
    backend = face.backend(face.server("s1", status=503), failing, persist=NEW, retry_on="503", retries=1)
    response = face.client(backend)(cookie="OLD=s1")
    assert (response.server, response.status, response.all("set-cookie")) == ("s1", 503, set_by("s1"))
    assert counted(backend) == count(1)


def test_rules_leave_the_old_cookie(face: Face) -> None:
    rules: list[dict[str, Any]] = [
        {"use_server": [("s2", lambda request: True)]},
        {"ignore_persist": lambda request: True},
    ]
    for rule in rules:
        backend = face.backend(face.server("s1"), face.server("s2"), persist=NEW, **rule)
        response = face.client(backend)(cookie="OLD=s1")
        assert response.all("set-cookie") == [] and counted(backend) == count(0)
        assert response.seen is not None and response.seen.cookies == ()


def test_forced_client_gets_our_cookie_of_a_server_that_is_down(face: Face) -> None:
    rules: list[dict[str, Any]] = [{"force_persist": lambda request: True}, {"persist_on_down": True}]
    for rule in rules:
        backend = face.backend(face.server("s1"), face.server("s2"), persist=NEW, **rule)
        backend["s1"].health = Health.DOWN
        response = face.client(backend)(cookie="OLD=s1")
        assert (response.server, response.all("set-cookie")) == ("s1", set_by("s1"))


@pytest.mark.parametrize("is_first", [True, False])
def test_chain_in_which_one_member_accepts(face: Face, is_first: bool) -> None:
    other = Cookie("OTHER", signed=False)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=[NEW, other] if is_first else [other, NEW])
    get = face.client(backend)
    response = get(cookie="a=1; OLD=s2")
    assert (response.server, response.decision.reason) == ("s2", Reason.ACCEPTED)
    assert response.all("set-cookie") == set_by("s2") and counted(backend) == count(1)
    response = get(cookie="a=1; OLD=s2; NEW=s1; OTHER=s2")
    assert response.server == ("s1" if is_first else "s2")
    assert response.seen is not None and response.seen.cookies == ("a=1",) and counted(backend) == count(1)


def test_cookie_that_follows_one_of_the_app(face: Face) -> None:
    follow = Follow("SID", NEW)
    backend = face.backend(
        face.server("s1"), face.server("s2", headers=[("set-cookie", "SID=2; Path=/a")]), persist=follow
    )
    get = face.client(backend)
    response = get(cookie="SID=1; OLD=s2")
    assert (response.server, response.decision.reason) == ("s2", Reason.ACCEPTED)
    assert response.all("set-cookie") == ["SID=2; Path=/a", DELETED, "NEW=s2; Path=/a"]
    response = get(cookie="OLD=s2")
    assert response.decision.claim is Claim.NONE
    assert response.seen is not None and response.seen.cookies == ()
