"""What a newcomer may write instead of what is meant: each is an error that names it, with the way out."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import sticky_asgi
import sticky_asgi.testing
import sticky_wsgi
import sticky_wsgi.testing
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.nginx import NginxCookie

if TYPE_CHECKING:
    from tests.faces.conftest import Face

SECRET = "a-secret-of-these-tests"

#: the classes that a user may make, by package
CONSTRUCTORS = [
    pytest.param(exported, id=f"{package.__name__}.{name}")
    for package in (sticky_asgi, sticky_wsgi)
    for name in package.__all__
    if isinstance(exported := getattr(package, name), type)
    and not issubclass(exported, Enum | BaseException)
    and exported.__init__ is not object.__init__
] + [pytest.param(each.Cluster, id=each.__name__) for each in (sticky_asgi.testing, sticky_wsgi.testing)]


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_every_public_constructor_names_an_option_that_it_does_not_have(constructor: Any):
    arguments = (Starlette,) if constructor.__name__ == "Cluster" else ()
    with pytest.raises(ConfigError, match=f"^{constructor.__name__} has no option a_word_that_is_none: "):
        constructor(*arguments, a_word_that_is_none=1)


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda face, it: face.backend(it, retris=1), "Backend has no option retris: write retries"),
        (
            lambda face, it: face.backend(it, retry_body_limt=1),
            "Backend has no option retry_body_limt: write retry_body_limit",
        ),
        (lambda face, it: face.package.Server("s", it.target, wieght=1), "Server has no option wieght: write weight"),
        (lambda face, it: face.package.Check("/", intervall=1), "Check has no option intervall: write inter"),
        (lambda face, it: face.package.Cookie("A", http_only=True), "Cookie has no option http_only: write httponly"),
        (lambda face, it: face.package.Cookie("A", maxage=True), "Cookie has no option maxage: write max_age"),
        (
            lambda face, it: face.package.StickyWorkers(it.target, cokie="A"),
            "StickyWorkers has no option cokie: write cookie",
        ),
        (lambda face, it: face.package.elb(duraton=1), "elb has no option duraton: write duration"),
        (lambda face, it: face.package.StickTable("a", sice=1), "StickTable has no option sice: write size"),
        (
            lambda face, it: face.package.StickyMiddleware(it.target, route={"/": face.backend(it)}),
            "StickyMiddleware has no option route: write routes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misspelt_option_is_answered_with_the_nearest(face: Face, make: Any, problem: str):
    with pytest.raises(ConfigError, match=f"^{problem}$"):
        make(face, face.server("s1"))


@pytest.mark.parametrize(
    "balance, problem",
    [
        ("round-robin", "balance 'round-robin' is unknown: write 'roundrobin'"),
        ("RoundRobin", "balance 'RoundRobin' is unknown: write 'roundrobin'"),
        ("least_connections", "balance 'least_connections' is unknown: write 'least_conn'"),
        ("randm(2)", "balance 'randm(2)' is unknown: write 'random'"),
        ("sticky", "balance 'sticky' is unknown: write one of roundrobin, static-rr, "),
        (sticky_asgi.RoundRobin, "balance=RoundRobin is a class: write balance=RoundRobin(...), or its word as text"),
        (7, "balance=7 is no algorithm: write one such as RoundRobin(), or a word such as 'leastconn'"),
        (None, "balance=None is no algorithm: write one such as RoundRobin(), or a word such as 'leastconn'"),
    ],
)
def test_balance_that_is_none_is_an_error_with_the_way_out(face: Face, balance: Any, problem: str):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        face.backend(face.server("s1"), balance=balance)


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param(
            lambda it: {"routes": it},
            "is no mapping: write routes={'/path': backend}, or backend=backend for",
            id="backend",
        ),
        pytest.param(lambda it: {"routes": [it]}, "is no mapping: write routes={'/path': backend}", id="list"),
        pytest.param(lambda it: {"routes": {"cart": it}}, "route 'cart' is no path: .*: write '/cart'$", id="no slash"),
        pytest.param(
            lambda it: {"routes": {"/cart/": it}}, "route '/cart/' is no path: .*: write '/cart'$", id="slashes"
        ),
        pytest.param(
            lambda it: {"backend": {"/cart": it}}, "backend is a mapping: write routes={'/path'", id="mapping"
        ),
        pytest.param(lambda it: {}, "needs either a backend", id="nothing"),
    ],
)
def test_routes_that_are_none_are_an_error_with_the_way_out(face: Face, options: Any, problem: str):
    backend = face.backend(face.server("s1"))
    with pytest.raises(ConfigError, match=problem.replace("{", r"\{").replace("}", r"\}")):
        face.package.StickyMiddleware(face.app("app"), **options(backend))


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param(
            {"max_age": 60, "expires": "2m"},
            "max_age=60 and expires='2m' differ: browsers keep the cookie for max_age, and only old ones read expires: "
            "leave expires out, or write the same",
            id="max_age and expires",
        ),
        pytest.param(
            {"samesite": "LAX"},
            "samesite 'LAX' is none of Lax, Strict, None, or None to leave it out: write 'Lax'",
            id="lax",
        ),
        pytest.param({"samesite": "non"}, "or None to leave it out: write 'None'", id="none"),
        pytest.param(
            {"mode": "Insert"}, "mode 'Insert' is none of insert, rewrite, prefix, passive: write 'insert'", id="mode"
        ),
        pytest.param(
            {"refresh": "allways"}, "refresh 'allways' is none of due, never, always: write 'always'", id="refresh"
        ),
    ],
)
def test_option_of_a_cookie_that_cannot_be_meant_is_an_error_with_the_way_out(options: Any, problem: str):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        Cookie("A", secret=SECRET, **options)


def test_lifetimes_that_are_the_same_are_written_side_by_side():
    Cookie("A", secret=SECRET, max_age=120, expires="2m")


def test_words_of_nginx_are_answered_likewise():
    with pytest.raises(ConfigError, match="samesite 'Lax' is none of strict, lax, none: write 'lax'"):
        NginxCookie("A", samesite="Lax")  # type: ignore[arg-type]  # the mistake


def test_misspelt_option_of_a_middleware_inside_a_running_server_fails_its_start():
    app = Starlette()
    app.add_middleware(sticky_asgi.StickyMiddleware, route={})  # type: ignore[call-arg]  # the mistake
    with pytest.raises(ConfigError) as raised, TestClient(app):
        pytest.fail("it has started")
    assert raised.value.problems[0] == "StickyMiddleware has no option route: write routes"
    assert "needs either a backend" in raised.value.problems[1]


@pytest.mark.parametrize("option", ["Dispatcher", "StickyMiddleware"])
@pytest.mark.parametrize(
    "given, problem",
    [
        pytest.param(lambda face, it: it.target, "Backend(name, servers=[Server(name, app)])", id="app"),
        pytest.param(lambda face, it: it, "Backend(name, servers=[server])", id="server"),
        pytest.param(lambda face, it: [it], "is no Backend: write Backend(name, servers=[...])", id="list of servers"),
        pytest.param(
            lambda face, it: "http://10.0.0.1",
            "'http://10.0.0.1' is no Backend: write Backend(name, servers=[Server(name, 'http://10.0.0.1')])",
            id="URL",
        ),
        pytest.param(lambda face, it: {"/cart": face.backend(it)}, "routes=", id="mapping"),
    ],
)
def test_what_is_no_backend_is_an_error_with_the_way_out(face: Face, option: str, given: Any, problem: str):
    it = given(face, face.server("s1"))
    arguments = (it,) if option == "Dispatcher" else (face.app("app"), it)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        getattr(face.package, option)(*arguments)


def test_what_is_no_backend_is_named_with_its_route(face: Face):
    with pytest.raises(ConfigError, match=r"^route '/cart': <.*> is no Backend: write Backend\(name, servers="):
        face.package.StickyMiddleware(face.app("app"), routes={"/cart": face.server("s1").target})


def test_server_without_a_name_is_an_error_that_shows_where_the_name_stands(face: Face):
    with pytest.raises(ConfigError, match=r"has the wrong type: write a text: write Server\('s1', app\)$"):
        face.package.Server(face.app("app"))
    with pytest.raises(ConfigError, match=r"its name is missing: write Server\('s1', 'http://10\.0\.0\.1'\)$"):
        face.package.Server("http://10.0.0.1")


def test_one_url_in_the_place_of_the_servers_is_one_problem(face: Face):
    with pytest.raises(ConfigError) as raised:
        face.package.Backend("app", "http://10.0.0.1")
    assert raised.value.problems == (
        "backend app: servers='http://10.0.0.1' is no list of servers: write servers=[Server(name, 'http://10.0.0.1')]",
    )


def test_list_inside_the_list_of_servers_is_an_error_with_the_way_out(face: Face):
    with pytest.raises(ConfigError, match=r"a list inside the list of servers: write servers=\[\*servers, \.\.\.\]$"):
        face.package.Backend("app", [[face.server("s1")]])


@pytest.mark.parametrize(
    "name, options, problem",
    [
        ("app", {"timeouts": 30}, "timeouts=30 has the wrong type: write timeouts=Timeouts(server=30)"),
        ("app", {"forward": True}, "forward=True has the wrong type: write forward=Forward(...)"),
        (1, {}, "name=1 has the wrong type: write a text"),
    ],
)
def test_option_of_a_backend_of_the_wrong_type_is_an_error_with_the_way_out(
    face: Face, name: Any, options: Any, problem: str
):
    with pytest.raises(ConfigError) as raised:
        face.package.Backend(name, [face.server("s1")], **options)
    assert raised.value.problems == (f"backend {name}: {problem}",)


def test_option_that_is_similar_to_none_is_answered_with_all():
    with pytest.raises(ConfigError, match=r"^Cookie has no option insert: its options are .*\bmode\b"):
        Cookie("A", secret=SECRET, insert=True)  # type: ignore[call-arg]  # the mistake


def test_misspelt_health_is_answered_with_the_text_to_write(face: Face):
    server = face.server("s1")
    with pytest.raises(ConfigError, match=r"health 'down' is none of UP, DOWN, NOLB: write 'DOWN'$"):
        server.health = "down"  # type: ignore[assignment]  # the mistake


def test_workers_around_workers_are_an_error_that_says_to_leave_one_out(face: Face):
    workers = face.package.StickyWorkers(face.app("app"))
    with pytest.raises(ConfigError, match=r"no client would stay at its server: leave one of them out$"):
        face.package.StickyWorkers(workers)


@pytest.mark.parametrize("around", ["workers", "dispatcher", "middleware"])
def test_asgi_app_that_is_no_coroutine_function_fails_the_start(around: str):
    def app(scope: Any, receive: Any, send: Any) -> None:
        """A coroutine function without its `async`."""

    backend = sticky_asgi.Backend("cart", [sticky_asgi.Server("s1", app)], balance="roundrobin")
    wrapped: Any
    if around == "workers":
        wrapped = sticky_asgi.StickyWorkers(app)  # type: ignore[arg-type]  # the mistake
    elif around == "dispatcher":
        wrapped = sticky_asgi.Dispatcher(backend)
    else:
        wrapped = sticky_asgi.StickyMiddleware(Starlette(), routes={"/cart": backend})
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises((ConfigError, RuntimeError), match="can't be awaited: an ASGI app is written with `async def`"):
        asyncio.run(wrapped({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    assert [each["type"] for each in sent] == ["lifespan.startup.failed"]
    assert "an ASGI app is written with `async def`" in sent[0]["message"]


def test_sync_function_that_returns_the_coroutine_of_an_app_is_an_app():
    inner = Starlette()
    with TestClient(sticky_asgi.StickyWorkers(lambda scope, receive, send: inner(scope, receive, send))) as client:
        assert client.get("/").status_code == 404


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"retry_body_limit": "64k"}, "retry_body_limit='64k' has the wrong type: write a number of bytes"),
        ({"idempotency_key": "X-Key"}, "idempotency_key='X-Key' has the wrong type: write True, and the client sends"),
        (
            {"panic_threshold": "50%", "on_empty": "panic"},
            "panic_threshold='50%' has the wrong type: write 0.5 for half",
        ),
        ({"max_ejected": "50%"}, "max_ejected='50%' has the wrong type: write 0.5 for half"),
        (
            {"max_ejected": 0.5},
            "max_ejected has no effect, as no failed request takes a server down: give servers max_",
        ),
        ({"retry_on": 503}, "retry_on=503 has the wrong type: write retry_on='conn-failure 503'"),
        ({"retry_on": None}, "retry_on=None has the wrong type: write retry_on='conn-failure 503'"),
        ({"use_server": "s1"}, "use_server='s1' has the wrong type: write use_server={'s1': condition}"),
        ({"use_server": [("s1",)]}, "use_server=[('s1',)] has the wrong type: write use_server={'s1': condition}"),
        ({"log": "x.log"}, "log='x.log' can't be called: pass a function of a Decision"),
        ({"clock": 3}, "clock=3 has the wrong type: pass a Clock, or leave it out"),
        ({"rng": 42}, "rng=42 has the wrong type: write rng=random.Random(42)"),
        ({"persist": None}, "pass a Cookie, Stick, Learn, Token, or several, or leave persist out"),
    ],
    ids=str,
)
def test_option_of_a_backend_that_cannot_be_used_is_an_error_with_the_way_out(face: Face, options: Any, problem: str):
    with pytest.raises(ConfigError, match=f"^backend app: .*{re.escape(problem)}"):
        face.package.Backend("app", [face.server("s1")], **options)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"name": 3}, "name=3 has the wrong type: write a text"),
        ({"name": None}, "name=None has the wrong type: write a text"),
        ({"secret": 12345678901234567890}, "secret=12345678901234567890 has the wrong type: write a text, or a list"),
        ({"httponly": "False"}, "httponly='False' has the wrong type: write True or False"),
        ({"signed": "no"}, "signed='no' has the wrong type: write True or False"),
        ({"path": 3}, "path=3 has the wrong type: write a path, as a text"),
        ({"domain": 3}, "domain=3 has the wrong type: write a text, or a list of texts"),
    ],
    ids=str,
)
def test_option_of_a_cookie_of_the_wrong_type_is_an_error_with_the_way_out(options: Any, problem: str):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        Cookie(**{"name": "A", "secret": SECRET, **options})


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"path": len}, "has the wrong type: write a path such as '/health', or probe= for a function"),
        ({"path": "/", "expect": 200}, "expect=200 has the wrong type: write expect='status 200'"),
        ({"path": "/", "method": 1}, "method=1 has the wrong type: write a text such as 'HEAD'"),
        ({"port": "80"}, "port='80' has the wrong type: write a number"),
        ({"spread": "5%"}, "spread='5%' has the wrong type: write a number of percent"),
    ],
    ids=str,
)
def test_option_of_a_check_of_the_wrong_type_is_an_error_with_the_way_out(options: Any, problem: str):
    with pytest.raises(ConfigError, match=f"^check: .*{re.escape(problem)}$"):
        sticky_asgi.Check(**options)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"cookie": 3}, "cookie=3 has the wrong type: write the name of the cookie, as a text"),
        ({"name": 3}, "name=3 has the wrong type: write the name of the group, as a text"),
        ({"retry_on": 503}, "retry_on=503 has the wrong type: write retry_on='conn-failure 503'"),
        ({"log": "x.log"}, "log='x.log' can't be called: pass a function of a Decision"),
    ],
    ids=str,
)
def test_option_of_workers_of_the_wrong_type_is_an_error_with_the_way_out(face: Face, options: Any, problem: str):
    with pytest.raises(ConfigError, match=f"^StickyWorkers: {re.escape(problem)}$"):
        face.package.StickyWorkers(face.app("app"), **options)


def test_number_of_threads_that_is_a_text_is_an_error_with_the_way_out():
    with pytest.raises(ConfigError, match=r"^StickyWorkers: threads '4' is no number above 0: leave it out, or write"):
        sticky_wsgi.StickyWorkers(lambda environ, start_response: [], threads="4")  # type: ignore[arg-type]


def test_number_of_replicas_of_a_cluster_that_is_a_text_is_an_error():
    with pytest.raises(ConfigError, match=r"^cluster: replicas='3' has the wrong type: write how many replicas$"):
        sticky_asgi.testing.Cluster(Starlette, replicas="3")  # type: ignore[arg-type]  # the mistake


def test_trusted_proxies_that_are_a_truth_value_are_an_error_with_the_way_out():
    with pytest.raises(
        ConfigError, match=re.escape("trusted_proxies=True has the wrong type: write trusted_proxies=(")
    ):
        sticky_asgi.Forward(trusted_proxies=True)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    "route, problem",
    [
        ("/a/*", "route '/a/*' is no pattern: it matches every path below it: write '/a'"),
        ("/a/{id}", "route '/a/{id}' is no pattern: it matches every path below it: write '/a'"),
        ("/a/<int:id>/b", "route '/a/<int:id>/b' is no pattern: it matches every path below it: write '/a'"),
        ("/a/:id", "route '/a/:id' is no pattern: it matches every path below it: write '/a'"),
        ("/*", "route '/*' is no pattern: it matches every path below it: write '/'"),
        ("http://shop.example/a", "and does not end with one, but for '/' itself: write '/a'"),
        (None, "route None is no path: write a text such as '/cart'"),
    ],
)
def test_route_that_would_match_nothing_is_an_error_with_the_way_out(face: Face, route: Any, problem: str):
    backend = face.backend(face.server("s1"))
    with pytest.raises(ConfigError, match=re.escape(problem)):
        face.package.StickyMiddleware(face.app("app"), routes={route: backend})


@pytest.mark.parametrize("route", ["/a*b", "/a:b", "/{", "/a/<", "/12:30"])
def test_route_with_the_characters_of_a_pattern_in_a_segment_is_a_path(face: Face, route: str):
    face.package.StickyMiddleware(face.app("app"), routes={route: face.backend(face.server("s1"))})


@pytest.mark.parametrize(
    "key, problem",
    [
        ("Mcp-Session-Id", "write 'hdr(Mcp-Session-Id)' for the header, 'cook(Mcp-Session-Id)' for the cookie"),
        ("rooms/{id}", "is no path: a template of one begins with a slash: write '/rooms/{id}'"),
        ("hdr(Mcp Session)", "is not known: write src, path, method, hdr(<name>)"),
    ],
)
def test_key_that_is_no_sample_is_an_error_with_the_sample_to_write(face: Face, key: str, problem: str):
    with pytest.raises(
        ConfigError, match=f"^StickyWorkers: (sample|key) {re.escape(repr(key))} .*{re.escape(problem)}"
    ):
        face.package.StickyWorkers(face.app("app"), key=key)


def test_backend_beside_routes_is_an_error_with_the_way_out(face: Face):
    backend = face.backend(face.server("s1"))
    with pytest.raises(ConfigError, match=r"one backend for every path, or routes: write routes=\{'/': backend, "):
        face.package.StickyMiddleware(face.app("app"), backend, routes={"/cart": backend})


def test_arguments_of_replicas_in_the_wrong_order_are_an_error_that_shows_the_right_one(face: Face):
    with pytest.raises(ConfigError, match=r"^replicas: 3 is no function: write Server\.replicas\(create_app, 3\), "):
        face.package.Server.replicas(3, face.app)


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda it: it.NginxCookie(3), "nginx cookie 3: a cookie's name is made of"),
        (lambda it: it.NginxCookie("A", path=3), "nginx cookie A: path=3 has the wrong type: write a path"),
        (lambda it: it.NginxCookie("A", httponly="yes"), "nginx cookie A: httponly='yes' has the wrong type"),
        (lambda it: it.Follow(it.Cookie("B"), "A"), "no Cookie: write Follow('JSESSIONID', Cookie('SERVERID'))"),
        (lambda it: it.Follow("A", "B"), "'B' is no Cookie: write Follow('JSESSIONID', Cookie('SERVERID'))"),
        (lambda it: it.cook(it.Cookie("A")), "cook"),
        (lambda it: it.Learn.header(3), "3 is no name of a header"),
        (lambda it: it.Dispatcher(it.Cookie("A", path="/x")), "Cookie('A', path='/x') is no Backend"),
        (lambda it: it.accepts.of_backend("old", "A"), "'A' is no Cookie"),
        (lambda it: it.Dispatcher([it.Backend("web", [it.Server("s1", "http://10.0.0.1")])]), "are several: give one"),
    ],
)
@pytest.mark.parametrize("package", [sticky_asgi, sticky_wsgi], ids=["asgi", "wsgi"])
def test_name_of_the_wrong_type_is_a_problem_of_the_configuration(
    package: Any, make: Any, problem: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STICKY_SECRET", SECRET)
    with pytest.raises(ConfigError) as caught:
        make(package)
    assert problem in str(caught.value) and "not given" not in str(caught.value)


def test_cookie_is_shown_as_it_was_written():
    cookie = Cookie("A", secret=SECRET, path="/x", accepts=[Cookie("OLD", signed=False)])
    assert repr(cookie) == "Cookie('A', secret=..., path='/x', accepts=[Cookie('OLD', signed=False)])"


@pytest.mark.parametrize("method", ["plan", "apply"])
@pytest.mark.parametrize(
    "change, problem",
    [
        (
            lambda face, it: face.package.Cookie("B", secret=SECRET),
            "backend web: Cookie('B', secret=...) is no BackendConfig",
        ),
        (lambda face, it: it, "is no BackendConfig: change the one in force: replace(backend.config, retries=1)"),
        (lambda face, it: replace(it.config, persist="B"), "persist: 'B' is no way to persist: pass a Cookie"),
        (lambda face, it: replace(it.config, servers=[it["s1"]]), "is no ServerConfig: write its .config"),
        (lambda face, it: replace(it.config, servers=["s1"]), "'s1' is no ServerConfig: write Server(name, target)"),
    ],
)
def test_change_to_something_else_than_a_configuration(face: Face, method: str, change: Any, problem: str):
    backend = face.backend(face.server("s1"))
    with pytest.raises(ConfigError) as caught:
        getattr(backend, method)(change(face, backend))
    assert problem in str(caught.value)


def test_one_persistence_needs_no_tuple_in_a_change(face: Face):
    backend = face.backend(face.server("s1"))
    cookie = Cookie("B", secret=SECRET)
    assert backend.plan(replace(backend.config, persist=cookie)).options == ("persist",)  # type: ignore[arg-type]
    listed = replace(backend.config, persist=[cookie])  # type: ignore[arg-type]
    assert listed == replace(backend.config, persist=(cookie,))


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("haproxy", "write Cookie('SERVERID', signed=False)"),
        ("nginx", "write NginxCookie('srv_id')"),
        ("Caddy", "write accepts.caddy"),
        ("istio", "write accepts.envoy"),
        ("aws", "its values can't be read"),
        ("kong", "there are apache, arr, caddy"),
    ],
)
@pytest.mark.parametrize("package", [sticky_asgi, sticky_wsgi], ids=["asgi", "wsgi"])
def test_balancer_without_a_function_is_answered_with_what_to_write(package: Any, name: str, remedy: str):
    with pytest.raises(AttributeError, match=f"^accepts has no {name}: ") as caught:
        getattr(package.accepts, name)
    assert remedy in str(caught.value)
    assert not hasattr(package.accepts, "__wrapped__")
