"""nginx's sticky cookie: what it calls its servers, and what may be asked of it."""

from collections.abc import Sequence

import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import NO_COOKIE
from sticky_core.persistence.nginx import NginxCookie, nginx_id
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse


def app(environ: object, start_response: object) -> list[bytes]:
    return []


# `printf %s 10.0.0.1:8080 | md5sum`
@pytest.mark.parametrize(
    "target, md5",
    [
        pytest.param("http://10.0.0.1:8080", "05ef642f508b1e5b76612ddbd5f89a4c", id="address and port"),
        pytest.param("http://10.0.0.1:8080/base", "05ef642f508b1e5b76612ddbd5f89a4c", id="whatever its path"),
        pytest.param("http://127.0.0.1", "cef54f47984626c9efbf070c50bfad1b", id="the port of its scheme"),
        pytest.param("https://[::1]:8443", "e56975279c7e3472eaa5ef228d5ba338", id="IPv6 in brackets"),
        pytest.param(
            "https://[0:0:0:0:0:0:0:1]:8443", "e56975279c7e3472eaa5ef228d5ba338", id="IPv6 as nginx shortens it"
        ),
        pytest.param("unix:/run/app.sock", "939db79304b0f599c2c20969650359ab", id="a UNIX socket"),
        pytest.param("http://unix:/run/app.sock:/base", "939db79304b0f599c2c20969650359ab", id="one with a base path"),
        pytest.param("http://app.example.com", "f5077b373f45026f9e9672e986f6422c", id="a host that has a name"),
        pytest.param(app, "54013ba69c196820e56801f1ef5aad54", id="an app, by the name of its server"),
    ],
)
def test_id_of_a_server_is_the_md5_of_its_address(target: str, md5: str):
    assert nginx_id(Server("cart", target)) == md5


def test_id_of_a_server_is_its_route_if_it_has_one():
    assert nginx_id(Server("cart", "http://10.0.0.1", cookie="a")) == "a"


def persistence(servers: Sequence[Server], **options: object):
    return NginxCookie("route", **options).build("web", servers, ManualClock())  # type: ignore[arg-type]


def test_first_usable_server_of_a_shared_route_gets_the_client():
    servers = [Server("s1", app, cookie="a"), Server("s2", app, cookie="a")]
    at_work = persistence(servers)
    assert at_work.recognise(FakeRequest(("route=a",))).server is servers[0]
    servers[0].health = servers[0].health.__class__.DOWN
    assert at_work.recognise(FakeRequest(("route=a",))).server is servers[1]


def test_server_with_an_empty_route_marks_no_response():
    server = Server("s1", app, cookie="")
    reply = RecordedResponse()
    assert persistence([server]).stamp_response(NO_COOKIE, server, False, FakeRequest(), reply).value == "N"
    assert reply.values("set-cookie") == []


def test_an_id_follows_the_address_of_its_server():
    server = Server("s1", "http://10.0.0.1:8080")
    at_work = persistence([server])
    server.config = Server("s1", "http://127.0.0.1").config
    at_work.state_changed(server)
    assert at_work.recognise(FakeRequest(("route=cef54f47984626c9efbf070c50bfad1b",))).is_bound
    assert not at_work.recognise(FakeRequest(("route=05ef642f508b1e5b76612ddbd5f89a4c",))).is_bound
    reply = RecordedResponse()
    at_work.stamp_response(NO_COOKIE, server, False, FakeRequest(), reply)
    assert reply.values("set-cookie") == ["route=cef54f47984626c9efbf070c50bfad1b"]


def test_route_is_not_longer_than_in_nginx():
    persistence([Server("s1", app, cookie="x" * 32)])
    with pytest.raises(ConfigError, match="server s1: nginx has no route longer than 32 characters"):
        persistence([Server("s1", app, cookie="x" * 33)])


def test_scope_is_known_if_the_cookie_has_a_path():
    (scope,) = NginxCookie("route", path="/shop", domain=".a.example").cookie_scopes()
    assert (scope.name, scope.path, scope.domains) == ("route", "/shop", (".a.example",))
    assert NginxCookie("route").cookie_scopes() == ()


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"name": "a b"}, "a cookie's name is made of letters", id="name"),
        pytest.param(
            {"path": "shop"}, "path 'shop' does not begin with /: browsers ignore it: write path='/shop'", id="p"
        ),
        pytest.param({"expires": 0}, "expires 0 is not within 1..2147483647 seconds", id="expires 0"),
        pytest.param({"expires": "soon"}, "expires: 'soon' is not a duration", id="expires no time"),
        pytest.param({"domain": "a;b"}, "domain 'a;b' can't be written", id="domain"),
        pytest.param({"domain": ""}, "domain '' can't be written", id="no domain"),
        pytest.param({"path": "/a b"}, "path '/a b' can't be written", id="path"),
        pytest.param({"path": "/\r\nx: y"}, "can't be written", id="path with a line end"),
        pytest.param({"samesite": "Lax"}, "samesite 'Lax' is none of strict, lax, none", id="samesite"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, object], problem: str):
    with pytest.raises(ConfigError) as refused:
        NginxCookie(**{"name": "route"} | options)  # type: ignore[arg-type]
    (only,) = refused.value.problems
    assert only.startswith("nginx cookie ")
    assert problem in only


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        NginxCookie("a b", expires=-1, domain=";", samesite="never")  # type: ignore[arg-type]
    assert len(refused.value.problems) == 4


def test_only_a_cookie_that_accepts_it_removes_it_from_what_the_server_gets():
    engine = persistence([Server("s1", app, cookie="a")])
    request = FakeRequest(("x=1; route=a; y=2", "z=3"))
    engine.recognise(request)
    assert request.forwarded_cookies is None
    engine.remove_from(request)
    assert list(request.forwarded_cookies or ()) == ["x=1; y=2", "z=3"]
