"""A route that the application writes behind the identifier of the session leads back to the server it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sticky_asgi import Cookie, Route
from sticky_core.balance import RoundRobin
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.samples.request import cook, path_param, url_param
from sticky_core.server.state import AdminState, Health

if TYPE_CHECKING:
    from tests.faces.conftest import Face

JVM = Route(cook("JSESSIONID"), path_param("jsessionid"), url_param("jsessionid"))


def over(face: Face, persist: Route = JVM, routes: tuple[str | None, ...] = (None, None), **options):
    """Two servers or more; balance chooses s2, so a client that gets s1 was recognised."""
    servers = [face.server(f"s{number}", cookie=route) for number, route in enumerate(routes, 1)]
    return face.backend(*servers, persist=persist, balance=RoundRobin(start=1), **options)


WAYS = [
    pytest.param("/", "JSESSIONID=abc123.s1", "s1", Claim.VALID, id="in the cookie"),
    pytest.param("/cart;jsessionid=abc123.s1", None, "s1", Claim.VALID, id="in the path"),
    pytest.param("/cart;jsessionid=abc123.s1/item", None, "s1", Claim.VALID, id="in a segment of the path"),
    pytest.param("/cart?a=1&jsessionid=abc123.s1", None, "s1", Claim.VALID, id="in the query"),
    pytest.param("/", "JSESSIONID=s1", "s1", Claim.VALID, id="nothing but the route"),
    pytest.param("/", "JSESSIONID=a.b.s1", "s1", Claim.VALID, id="an identifier with dots"),
    pytest.param("/", 'JSESSIONID="abc123.s1"', "s1", Claim.VALID, id="in quotes"),
    pytest.param("/cart;jsessionid=a.s2", "JSESSIONID=a.s1", "s1", Claim.VALID, id="the cookie before the path"),
    pytest.param("/c;jsessionid=a.s1?jsessionid=a.s2", None, "s1", Claim.VALID, id="the path before the query"),
    pytest.param("/cart;jsessionid=a.s1", "JSESSIONID=", "s1", Claim.VALID, id="past an empty one"),
    pytest.param("/cart;jsessionid=a.s1", "JSESSIONID=a.s9", "s2", Claim.INVALID, id="not past an unknown one"),
    pytest.param("/cart;jsessionid=a.s1", "JSESSIONID=abc", "s2", Claim.INVALID, id="not past one without a route"),
    pytest.param("/", "JSESSIONID=abc.", "s2", Claim.INVALID, id="an empty route"),
    pytest.param("/", "JSESSIONID=abc.s1.", "s2", Claim.INVALID, id="a route that ends elsewhere"),
    pytest.param("/", "JSESSIONID=abcs1", "s2", Claim.INVALID, id="a name without its separator"),
    pytest.param("/", "JSESSIONID=abc.S1", "s2", Claim.INVALID, id="another case"),
    pytest.param("/", "jsessionid=abc.s1", "s2", Claim.NONE, id="another cookie"),
    pytest.param("/", None, "s2", Claim.NONE, id="none"),
]


@pytest.mark.parametrize(("path", "cookie", "server", "claim"), WAYS)
def test_first_text_that_is_not_empty_is_the_route(
    face: Face, path: str, cookie: str | None, server: str, claim: Claim
):
    response = face.client(over(face))(path, cookie=cookie)
    assert (response.server, response.decision.claim) == (server, claim)
    assert response.all("set-cookie") == []


def test_requests_and_responses_are_not_changed(face: Face):
    face_backend = over(face)
    get = face.client(face_backend)
    face.apps["s1"].headers = [("set-cookie", "JSESSIONID=def.s1; Path=/")]
    response = get(cookie="a=1; JSESSIONID=abc.s1")
    assert response.seen is not None
    assert response.seen.cookies == ("a=1; JSESSIONID=abc.s1",)
    assert response.all("set-cookie") == ["JSESSIONID=def.s1; Path=/"]
    assert response.all("cache-control") == []
    assert response.letters == "VN"


def test_route_is_the_cookie_option_of_the_server(face: Face):
    get = face.client(over(face, routes=("tomcat-a", None)))
    assert get(cookie="JSESSIONID=abc.tomcat-a").server == "s1"
    assert get(cookie="JSESSIONID=abc.s1").decision.claim is Claim.INVALID


def test_several_servers_may_share_a_route(face: Face):
    backend = over(face, routes=("a", "b", "a"))
    get = face.client(backend)
    assert get(cookie="JSESSIONID=1.a").server == "s1"
    backend["s1"].state = AdminState.MAINT
    assert get(cookie="JSESSIONID=1.a").server == "s3"
    backend["s3"].health = Health.DOWN
    response = get(cookie="JSESSIONID=1.a")
    assert (response.server, response.decision.claim, response.decision.reason) == ("s2", Claim.DOWN, Reason.MAINT)


@pytest.mark.parametrize(
    ("state", "server", "reason"),
    [(AdminState.DRAIN, "s1", Reason.BOUND), (AdminState.MAINT, "s2", Reason.MAINT)],
    ids=["a server that drains keeps its own", "one in maintenance does not"],
)
def test_states_of_servers_count_as_with_cookies(face: Face, state: AdminState, server: str, reason: Reason):
    backend = over(face)
    backend["s1"].state = state
    response = face.client(backend)(cookie="JSESSIONID=1.s1")
    assert (response.server, response.decision.reason) == (server, reason)


def test_persist_on_down_binds_to_a_server_that_is_down(face: Face):
    backend = over(face, persist_on_down=True)
    backend["s1"].health = Health.DOWN
    response = face.client(backend)(cookie="JSESSIONID=1.s1")
    assert (response.server, response.letters) == ("s1", "DN")


def test_a_backup_has_no_route_unless_it_is_given_one(face: Face):
    for route, claim in ((None, Claim.INVALID), ("bk", Claim.VALID)):
        backup = face.server("bk", backup=True, cookie=route)
        get = face.client(face.backend(face.server("s1"), backup, persist=JVM))
        assert get(cookie="JSESSIONID=1.bk").decision.claim is claim


def test_another_separator(face: Face):
    get = face.client(over(face, Route(cook("JSESSIONID"), separator="!")))
    assert get(cookie="JSESSIONID=abc.s2!s1").server == "s1"
    assert get(cookie="JSESSIONID=abc!s2.s1").decision.claim is Claim.INVALID


def test_any_callable_may_return_a_route(face: Face):
    get = face.client(over(face, Route(lambda request: request.path.split("/")[1])))
    assert get("/s1/cart").server == "s1"


def test_a_cookie_of_ours_and_a_route_in_the_order_written(face: Face):
    servers = [face.server(name) for name in ("s1", "s2")]
    get = face.client(face.backend(*servers, persist=[Cookie("SRV", signed=False), JVM]))
    assert get(cookie="SRV=s1; JSESSIONID=1.s2").server == "s1"
    response = get(cookie="JSESSIONID=1.s2")
    assert (response.server, response.all("set-cookie")) == ("s2", [])  # a client known by one needs no other


def test_a_sticky_application_that_knows_its_own_route(face: Face):
    """As Tomcat does: each instance writes its route behind the identifiers that it makes."""
    get = face.client(over(face))
    for name, app in face.apps.items():
        app.headers = [("set-cookie", f"JSESSIONID=0123456789.{name}; Path=/")]
    for server in ("s2", "s1"):
        response = get()
        assert response.server == server
        assert [get(cookie=response.mark).server for _ in range(3)] == [server] * 3
