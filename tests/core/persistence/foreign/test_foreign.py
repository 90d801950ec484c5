"""What all cookies of other balancers have in common."""

import pickle
from dataclasses import replace

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.http import cookies
from sticky_core.persistence import foreign
from sticky_core.persistence.claim import NO_COOKIE, UNREAD_COOKIES, Claim, InvalidMark, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.foreign.caddy import caddy_value
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.ingress_nginx import persistent_key
from sticky_core.persistence.foreign.yarp import arr_value
from sticky_core.persistence.persistence import label_of
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.foreign.clients import SECRET, at, found, replaced, result_of

URLS = ("http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80")
S1, S2, S3, S4 = (caddy_value("", f"10.0.0.{number}:80") for number in (1, 2, 3, 4))

ALL = [
    pytest.param(foreign.caddy("lb", "s3cret"), id="caddy"),
    pytest.param(foreign.traefik("lb"), id="traefik"),
    pytest.param(foreign.envoy("lb"), id="envoy"),
    pytest.param(foreign.table("lb", {"a": "s1"}), id="table"),
    pytest.param(foreign.ingress_nginx("lb", service="shop-web-80"), id="ingress_nginx"),
    pytest.param(foreign.nginx_sticky_module("lb", hmac="md5", hmac_key="s3cret"), id="nginx_sticky_module"),
    pytest.param(foreign.yarp("lb"), id="yarp"),
    pytest.param(foreign.arr("lb"), id="arr"),
    pytest.param(foreign.apache("lb"), id="apache"),
]

JUNK = [
    pytest.param("x" * 65536, id="64 KB"),
    pytest.param("x" * 4097, id="longer than browsers keep"),
    pytest.param("QUFB" * 16384, id="64 KB of base64"),
    pytest.param("\x00\xff\r\n", id="bytes"),
    pytest.param("\xe9\u20ac", id="not ASCII"),
    pytest.param("=", id="padding"),
    pytest.param('"', id="one quote"),
    pytest.param('""', id="quotes"),
    pytest.param("CgoxLjIuMy40Ojgw", id="an address that no server has"),
    pytest.param("http://192.0.2.1:80", id="a URL that no server has"),
    pytest.param("%31%30", id="percent-encoded"),
    pytest.param("9" * 5000, id="digits"),
    pytest.param("|" * 3000, id="bars"),
    pytest.param("~.~", id="delimiters"),
]


def test_every_function_has_a_row():
    assert {row.id for row in ALL} == set(foreign.__all__) - {"of_backend"}


def test_both_faces_export_them():
    assert sticky_asgi.accepts is sticky_wsgi.accepts is foreign


@pytest.mark.parametrize("cookie", ALL)
@pytest.mark.parametrize("junk", JUNK)
def test_junk_names_no_server(cookie: ForeignCookie, junk: str):
    result = result_of(cookie, at(*URLS), junk)
    assert (result.claim, result.reason, result.server) == (Claim.INVALID, Reason.UNKNOWN, None)
    engine = Cookie("NEW", secret=SECRET, accepts=[cookie]).build("web", at(*URLS), ManualClock())
    request = FakeRequest((f"lb={junk}; a=1",))
    accepted = engine.recognise(request)
    assert (accepted.claim, accepted.is_bound) == (Claim.INVALID, False)


@pytest.mark.parametrize("cookie", ALL)
def test_configuration_is_a_value(cookie: ForeignCookie):
    assert pickle.loads(pickle.dumps(cookie)) == cookie
    assert hash(cookie) == hash(pickle.loads(pickle.dumps(cookie)))
    assert "s3cret" not in repr(cookie)
    assert cookie.cookie_scopes() == ()
    assert label_of(cookie).startswith("accepts.") and label_of(cookie).endswith("('lb')")


@pytest.mark.parametrize("cookie", ALL)
def test_other_requests_have_no_cookie(cookie: ForeignCookie):
    engine = cookie.build("web", at(*URLS), ManualClock())
    assert engine.recognise(FakeRequest()) is NO_COOKIE
    assert engine.recognise(FakeRequest(("LB=a; lba=b; alb=c",))) is NO_COOKIE  # names are case-sensitive
    assert engine.recognise(FakeRequest(("a=" + "x" * cookies.MAX_LENGTH,))) is UNREAD_COOKIES
    result = engine.recognise(FakeRequest(("lb=",)))
    assert (result.claim, result.reason) == (Claim.INVALID, Reason.EMPTY)


def test_value_that_names_no_server_is_reported_with_a_remedy():
    result = result_of(foreign.caddy(), at(*URLS), S4)
    assert isinstance(result, InvalidMark)
    assert (result.place, result.name) == ("cookie lb of a client", S4)
    assert "formerly=" in result.remedy


@pytest.mark.parametrize("value, name", [("a-session.node9", "node9"), ("a-session", ""), (".node9", "node9")])
def test_session_before_a_route_is_not_logged(value: str, name: str):
    result = result_of(foreign.apache(), at(*URLS), value)
    assert isinstance(result, InvalidMark) and result.name == name


# -- several values, several servers


def test_each_of_several_cookies_is_tried():
    servers = at(*URLS)
    servers[0].state = AdminState.MAINT
    assert found(foreign.caddy(), servers, "junk", S2) == "s2"
    assert found(foreign.caddy(), servers, S1, S2) == "s2"
    assert found(foreign.caddy(), servers, "junk", S1) == "s1"
    many = [*(f"junk{number}" for number in range(cookies.MAX_CANDIDATES - 1)), S2]
    assert found(foreign.caddy(), servers, *many) == "s2"
    assert found(foreign.caddy(), servers, "one more", *many) is None
    engine = foreign.caddy().build("web", servers, ManualClock())
    assert engine.recognise(FakeRequest((f"lb={S1}", f"lb={S3}"))).server is servers[2]


def test_server_that_is_down_is_claimed():
    servers = at(*URLS)
    servers[1].health = Health.DOWN
    result = result_of(foreign.caddy(), servers, S2)
    assert (result.claim, result.reason, result.server) == (Claim.DOWN, Reason.DOWN, servers[1])
    engine = foreign.caddy().build("web", servers, ManualClock())
    assert engine.recognise(FakeRequest((f"lb={S2}",)), accept_down=True).is_bound


def test_first_usable_of_the_servers_with_one_address_gets_the_client():
    servers = at(URLS[0], URLS[0], URLS[1])
    assert found(foreign.caddy(), servers, S1) == "s1"
    servers[0].health = Health.DOWN
    assert found(foreign.caddy(), servers, S1) == "s2"
    servers[1].health = Health.DOWN
    assert found(foreign.caddy(), servers, S1) == "s1"


# -- changes


def test_keys_follow_an_address():
    servers = at(*URLS)
    engine = foreign.caddy().build("web", servers, ManualClock())
    servers[0].target = "http://10.0.0.4:80"
    engine.state_changed(servers[0])
    assert engine.recognise(FakeRequest((f"lb={S4}",))).server is servers[0]
    assert engine.recognise(FakeRequest((f"lb={S1}",))).server is None
    servers[0].health = Health.DOWN
    engine.state_changed(servers[0])
    assert engine.recognise(FakeRequest((f"lb={S4}",))).claim is Claim.DOWN


def test_backend_follows_addresses_and_former_ones():
    cookie = Cookie("NEW", secret=SECRET, accepts=[foreign.caddy()])
    backend = Backend("web", at(*URLS), persist=cookie)

    def named(value: str) -> str | None:
        assert backend.persistence is not None
        server = backend.persistence.recognise(FakeRequest((f"lb={value}",))).server
        return server.name if server is not None else None

    assert [named(each) for each in (S1, S2, S4)] == ["s1", "s2", None]
    for formerly, expected in ((["10.0.0.4:80"], ["s1", "s2", "s1"]), ([], ["s1", "s2", None])):
        configs = tuple(server.config for server in at(*URLS, formerly=formerly))
        backend.apply(replace(backend.config, servers=configs))
        assert [named(each) for each in (S1, S2, S4)] == expected
    backend.servers[0].target = "http://10.0.0.4:80"
    assert [named(each) for each in (S1, S2, S4)] == [None, "s2", "s1"]


def test_copy_for_other_servers():
    servers = at(*URLS)
    engine = foreign.caddy().build("web", servers, ManualClock())
    assert engine.recognise(FakeRequest((f"lb={S1}",))).server is servers[0]
    s4 = Server("s4", "http://10.0.0.4:80")
    copied = engine.with_servers([*servers[1:], s4], [s4], servers[:1])
    assert copied.recognise(FakeRequest((f"lb={S4}",))).server is s4
    assert copied.recognise(FakeRequest((f"lb={S1}",))).server is None
    assert engine.recognise(FakeRequest((f"lb={S1}",))).server is servers[0]
    assert engine.recognise(FakeRequest((f"lb={S4}",))).server is None


# -- what becomes of the cookie

DELETED = "Expires=Thu, 01-Jan-1970 00:00:01 GMT"


@pytest.mark.parametrize(
    "cookie, value, plain, tls",
    [
        pytest.param(foreign.caddy(), S2, "path=/", "path=/; Secure; SameSite=None", id="caddy"),
        pytest.param(foreign.traefik("lb"), URLS[1], "path=/", "path=/; Secure; SameSite=None", id="traefik"),
        pytest.param(
            foreign.traefik("lb", path="/shop", domain="a.example"),
            URLS[1],
            "path=/shop; domain=a.example",
            "path=/shop; domain=a.example; Secure; SameSite=None",
            id="traefik with options",
        ),
        pytest.param(foreign.envoy("lb"), "MTAuMC4wLjI6ODA=", "", "", id="envoy without a path"),
        pytest.param(
            foreign.envoy("lb", path="/a"), "MTAuMC4wLjI6ODA=", "path=/a", "path=/a; Secure; SameSite=None", id="envoy"
        ),
        pytest.param(foreign.table("lb", {"a": "s2"}), "a", "", "", id="table without a path"),
        pytest.param(
            foreign.ingress_nginx("lb", service="shop-web-b"),
            persistent_key("shop-web-b", "10.0.0.2:80"),
            "",
            "",
            id="ingress_nginx",
        ),
        pytest.param(
            foreign.ingress_nginx("lb", service="shop-web-b", path="/shop"),
            persistent_key("shop-web-b", "10.0.0.2:80"),
            "path=/shop",
            "path=/shop; Secure; SameSite=None",
            id="ingress_nginx with a path",
        ),
        pytest.param(
            foreign.nginx_sticky_module("lb", text="raw"),
            "10.0.0.2:80",
            "path=/",
            "path=/; Secure; SameSite=None",
            id="nginx_sticky_module",
        ),
        pytest.param(foreign.yarp("lb"), arr_value("s2"), "path=/", "path=/; Secure; SameSite=None", id="yarp"),
        pytest.param(foreign.arr("lb", path=None), arr_value("s2"), "", "", id="arr without a path"),
        pytest.param(foreign.apache("lb"), ".s2", "path=/", "path=/; Secure; SameSite=None", id="apache"),
        pytest.param(
            foreign.table("lb", {"a": "s2"}, path="/"), "a", "path=/", "path=/; Secure; SameSite=None", id="table"
        ),
    ],
)
def test_cookie_is_replaced_and_deleted(cookie: ForeignCookie, value: str, plain: str, tls: str):
    for secure, attributes in ((False, plain), (True, tls)):
        *others, last = replaced(cookie, at(*URLS), value, secure=secure)
        assert last.startswith("NEW=s2.")
        assert others == ([f"lb=; {DELETED}; {attributes}"] if attributes else [])


def test_server_does_not_get_the_cookie():
    engine = Cookie("NEW", secret=SECRET, accepts=[foreign.caddy()]).build("web", at(*URLS), ManualClock())
    for value in (S2, "junk"):
        request = FakeRequest((f"a=1; lb={value}; b=2", f"lb={value}", "c=3"))
        engine.recognise(request)
        assert request.cookies == ("a=1; b=2", "", "c=3")
    request = FakeRequest(("a=1; LB=2",))
    engine.recognise(request)
    assert request.forwarded_cookies is None


def test_response_is_not_marked():
    servers, response = at(*URLS), RecordedResponse()
    engine = foreign.caddy().build("web", servers, ManualClock())
    assert engine.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(), response) is Mark.NONE
    assert response.headers == []


def test_own_cookie_may_have_the_same_name():
    engine = Cookie("lb", secret=SECRET, accepts=[foreign.caddy("lb")]).build("web", at(*URLS), ManualClock())
    request, response = FakeRequest((f"lb={S2}",)), RecordedResponse()
    result = engine.recognise(request)
    assert (result.reason, request.cookies) == (Reason.ACCEPTED, ("",))
    assert result.server is not None
    engine.stamp_response(result, result.server, True, request, response)
    (only,) = response.set_cookies
    assert only.startswith("lb=s2.")


# -- wrong


@pytest.mark.parametrize(
    "options, problems",
    [
        pytest.param({"name": "a b"}, ["a cookie's name is made of letters"], id="name"),
        pytest.param({"name": ""}, ["a cookie's name is made of letters"], id="no name"),
        pytest.param({"name": 3}, ["a cookie's name is made of letters"], id="name of another type"),
        pytest.param({"path": "shop"}, ["path 'shop' does not begin with /: browsers ignore it: write path='/shop'"]),
        pytest.param({"path": 3}, ["path 3 can't be written"], id="path of another type"),
        pytest.param({"path": "/a b"}, ["path '/a b' can't be written"], id="path"),
        pytest.param({"path": "/", "domain": "a;b"}, ["domain 'a;b' can't be written"], id="domain"),
        pytest.param({"domain": "a.example"}, ["domain has no effect without path"], id="domain without a path"),
        pytest.param(
            {"name": "a b", "path": "x", "domain": ""},
            ["a cookie's name", "path 'x' does not", "domain '' can't"],
            id="all at once",
        ),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], problems: list[str]):
    with pytest.raises(ConfigError) as caught:
        foreign.envoy(**{"name": "lb"} | options)  # type: ignore[arg-type]
    name = options.get("name", "lb")
    assert len(caught.value.problems) == len(problems)
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert told.startswith(f"accepts.envoy {name}: {expected}")


def test_cookie_that_is_only_read_is_no_persistence_by_itself():
    with pytest.raises(ConfigError) as caught:
        Backend("web", at(*URLS), persist=foreign.caddy())
    (told,) = caught.value.problems
    assert told.startswith("backend web: accepts.caddy('lb') is only read") and "accepts=[accepts.caddy('lb')]" in told


def test_misspelt_option_is_named():
    with pytest.raises(ConfigError, match="caddy has no option secert: write secret"):
        foreign.caddy(secert="k")  # type: ignore[call-arg]


ADDRESSED = [
    pytest.param(foreign.envoy("lb"), id="envoy"),
    pytest.param(foreign.ingress_nginx("lb", service="shop-web-80"), id="ingress_nginx"),
]


@pytest.mark.parametrize("cookie", ADDRESSED)
def test_host_names_alone_are_refused_where_values_contain_addresses(cookie: ForeignCookie):
    """No client would be kept, and nothing would show it."""
    with pytest.raises(ConfigError) as caught:
        Backend("web", at("http://web-1:80", "http://web-2:80"), persist=accepting(cookie))
    (told,) = caught.value.problems
    assert told.endswith(
        "values contain IP addresses, and no server has one: write in formerly= of each server what it had, such as "
        "formerly=['10.0.0.1:80']"
    )
    named = Server("s2", "http://web-2:80", formerly=["10.0.0.2:80"])
    backend = Backend("web", [Server("s1", "http://web-1:80"), named], persist=accepting(cookie))
    with pytest.raises(ConfigError, match="no server has one"):
        backend.apply(replace(backend.config, servers=backend.config.servers[:1]))


@pytest.mark.parametrize("cookie", [*ADDRESSED, pytest.param(foreign.ingress_nginx("lb"), id="balanced")])
@pytest.mark.parametrize(
    "former, remedy", [("10.0.0.9", "'10.0.0.9:80'"), ("fd00::9", "'[fd00::9]:80'"), ("[fd00::9]", "'[fd00::9]:80'")]
)
def test_former_address_without_a_port_is_refused_where_values_contain_it(
    cookie: ForeignCookie, former: str, remedy: str
):
    servers = [Server("s1", URLS[0], formerly=[former]), *at(*URLS)[1:]]
    with pytest.raises(ConfigError) as caught:
        Backend("web", servers, persist=accepting(cookie))
    (told,) = caught.value.problems
    assert f"server s1: formerly: {former!r} has no port, which is in the values as well: write {remedy}" in told
    Backend("web", [Server("s1", URLS[0], formerly=[former, remedy.strip("'")])], persist=accepting(cookie))


def accepting(cookie: ForeignCookie) -> Cookie:
    return Cookie("NEW", secret=SECRET, accepts=[cookie])
