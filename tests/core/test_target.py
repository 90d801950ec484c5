"""The target of a server: apps of both kinds, factories, URLs; anything else is refused with a reason."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from types import FunctionType
from typing import Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.target import Kind, Location, host_and_port, possible_kinds, require_made_app, target_problem

ANYTHING: set[Kind] = {"asgi", "wsgi", "factory"}


async def asgi(scope: object, receive: object, send: object) -> None: ...


def asgi_not_async(scope: object, receive: object, send: object) -> Awaitable[None]:
    return asgi(scope, receive, send)


def wsgi(environ: object, start_response: object) -> Iterable[bytes]:
    return []


def create_app() -> Callable[..., object]:
    return wsgi


def create_app_with_options(config: object = None, *, debug: bool = False) -> Callable[..., object]:
    return wsgi


def create_app_with_two_options(config: object = None, debug: bool = False) -> Callable[..., object]:
    return wsgi


def needs_a_config(config: object) -> Callable[..., object]:
    return wsgi


def needs_a_keyword(*, config: object) -> Callable[..., object]:
    return wsgi


def wsgi_of_any(*args: object) -> Iterable[bytes]:
    return []


async def async_of_any(*args: object) -> None: ...


def wrapping(wrapped: Callable[..., object], wrapper: Any) -> object:
    """Return a copy of `wrapper` that declares to wrap `wrapped`."""
    copy = FunctionType(wrapper.__code__, wrapper.__globals__)
    return functools.update_wrapper(copy, wrapped)


async def create_app_later() -> object:
    return asgi


def wants_four(a: object, b: object, c: object, d: object) -> None: ...


class AsgiApp:
    """An instance is an ASGI app, the class a factory."""

    async def __call__(self, scope: object, receive: object, send: object) -> None: ...


class WsgiApp:
    """An instance is a WSGI app, the class a factory."""

    def __call__(self, environ: object, start_response: object) -> Iterable[bytes]:
        return []

    def handle(self, environ: object, start_response: object) -> Iterable[bytes]:
        return []

    @classmethod
    def create(cls) -> "WsgiApp":
        return cls()

    @staticmethod
    def serve(environ: object, start_response: object) -> Iterable[bytes]:
        return []


class WsgiByClass:
    """PEP 3333: calling the class is the application, its instance the iterable."""

    def __init__(self, environ: object, start_response: object) -> None: ...


class MadeWithAName:
    def __init__(self, name: str) -> None: ...


@pytest.mark.parametrize(
    "callee, expected",
    [
        pytest.param(asgi, {"asgi"}, id="async function of three"),
        pytest.param(asgi_not_async, {"asgi"}, id="function of three"),
        pytest.param(wsgi, {"wsgi"}, id="function of two"),
        pytest.param(create_app, {"factory"}, id="function of none"),
        pytest.param(create_app_with_options, {"factory"}, id="function of an option"),
        pytest.param(create_app_with_two_options, {"factory", "wsgi"}, id="function of two options"),
        pytest.param(needs_a_config, set(), id="function of one"),
        pytest.param(needs_a_keyword, set(), id="function of a keyword"),
        pytest.param(wants_four, set(), id="function of four"),
        pytest.param(AsgiApp(), {"asgi"}, id="instance with an async call"),
        pytest.param(WsgiApp(), {"wsgi"}, id="instance with a call"),
        pytest.param(WsgiApp().handle, {"wsgi"}, id="bound method"),
        pytest.param(WsgiApp.create, {"factory"}, id="class method"),
        pytest.param(WsgiApp.serve, {"wsgi"}, id="static method"),
        pytest.param(AsgiApp, {"factory"}, id="class without arguments"),
        pytest.param(WsgiByClass, {"wsgi"}, id="class as a WSGI app"),
        pytest.param(MadeWithAName, set(), id="class that needs something else"),
        pytest.param(functools.partial(needs_a_config, 1), {"factory"}, id="partial that fills the one"),
        pytest.param(functools.partial(asgi, None), {"wsgi"}, id="partial that fills one of three"),
        pytest.param(functools.partial(asgi), {"asgi"}, id="partial that fills nothing"),
        pytest.param(functools.partial(needs_a_keyword, config=1), {"factory"}, id="partial that fills a keyword"),
        pytest.param(lambda: wsgi, {"factory"}, id="lambda of none"),
        pytest.param(lambda environ, start_response: [], {"wsgi"}, id="lambda of two"),
        pytest.param(lambda *args: None, ANYTHING, id="lambda of any number"),
        pytest.param(lambda *args, **more: None, ANYTHING, id="lambda of anything"),
        pytest.param(functools.wraps(asgi)(lambda *args: None), {"asgi"}, id="wrapper that declares what it wraps"),
        pytest.param(functools.wraps(asgi)(lambda scope, receive, send: None), {"asgi"}, id="wrapper of an app"),
        pytest.param(wrapping(needs_a_config, wsgi_of_any), ANYTHING, id="wrapper of a function of one"),
        pytest.param(wrapping(create_app, wsgi_of_any), ANYTHING, id="wrapper of a function of none"),
        pytest.param(wrapping(needs_a_config, asgi), {"asgi"}, id="ASGI wrapper of a function of one"),
        pytest.param(wrapping(create_app, wsgi), {"wsgi"}, id="WSGI wrapper of a function of none"),
        pytest.param(functools.cache(create_app), {"factory"}, id="cached factory"),
        pytest.param(async_of_any, {"asgi"}, id="coroutine function of any number"),
        pytest.param(dict, ANYTHING, id="builtin class without a signature"),
        pytest.param(print, ANYTHING, id="builtin of any number"),
        pytest.param(len, set(), id="builtin of one"),
        pytest.param("http://10.0.0.1", set(), id="text"),
        pytest.param(None, set(), id="nothing"),
        pytest.param(7, set(), id="a number"),
    ],
)
def test_the_signature_decides_what_a_callable_may_be(callee: object, expected: set[Kind]):
    assert possible_kinds(callee) == expected


def test_apps_of_real_frameworks_are_recognised():
    fastapi = pytest.importorskip("fastapi")
    flask = pytest.importorskip("flask")
    assert possible_kinds(fastapi.FastAPI()) == {"asgi"}
    assert possible_kinds(flask.Flask("shop")) == {"wsgi"}
    assert possible_kinds(flask.Flask("shop").wsgi_app) == {"wsgi"}


@pytest.mark.parametrize(
    "target, factory",
    [
        pytest.param(asgi, None, id="ASGI app"),
        pytest.param(wsgi, None, id="WSGI app"),
        pytest.param(AsgiApp(), None, id="ASGI instance"),
        pytest.param(WsgiByClass, None, id="WSGI class"),
        pytest.param(lambda *args: None, None, id="app with a signature that fits everything"),
        pytest.param("http://10.0.0.1:8080", None, id="http"),
        pytest.param("https://shop.example", None, id="https"),
        pytest.param("unix:/run/app.sock", None, id="UNIX socket"),
        pytest.param(None, create_app, id="factory"),
        pytest.param(None, create_app_with_two_options, id="factory with options"),
        pytest.param(None, AsgiApp, id="class as a factory"),
        pytest.param(None, functools.partial(needs_a_config, 1), id="partial as a factory"),
        pytest.param(None, dict, id="builtin as a factory"),
        pytest.param(wrapping(needs_a_config, wsgi_of_any), None, id="decorated WSGI app"),
        pytest.param(wrapping(create_app, wsgi), None, id="app that wraps a function of none"),
        pytest.param(None, functools.cache(create_app), id="cached factory"),
    ],
)
def test_a_valid_target_or_factory_has_no_problem(target: object, factory: object):
    assert target_problem(target, factory) is None


@pytest.mark.parametrize(
    "target, factory, problem",
    [
        pytest.param(None, None, "has neither a target (an app or a URL) nor a factory", id="nothing"),
        pytest.param(wsgi, create_app, "has both a target and a factory: give one", id="both"),
        pytest.param(
            "10.0.0.1:8080",
            None,
            "'10.0.0.1:8080' is no URL: write 'http://10.0.0.1:8080'",
            id="an address",
        ),
        pytest.param("shop:app", None, "is no URL: a URL begins with one of http://, https://, unix:", id="a module"),
        pytest.param("ftp://x", None, "is no URL", id="another scheme"),
        pytest.param("", None, "'' is no URL", id="empty text"),
        pytest.param(
            create_app,
            None,
            "so it is a factory rather than an app: write factory=create_app",
            id="factory as a target",
        ),
        pytest.param(
            AsgiApp, None, "so it is a factory rather than an app: write factory=AsgiApp", id="class as a target"
        ),
        pytest.param(
            functools.partial(needs_a_config, 1),
            None,
            "so it is a factory rather than an app",
            id="partial factory as a target",
        ),
        pytest.param(functools.cache(create_app), None, "so it is a factory", id="cached factory as a target"),
        pytest.param(
            None, create_app_later, "is async: a factory returns an app", id="coroutine function as a factory"
        ),
        pytest.param(
            None, asgi, "so it is an app rather than a factory", id="coroutine function of three as a factory"
        ),
        pytest.param(needs_a_config, None, "is neither an app nor a URL", id="function of one as a target"),
        pytest.param(7, None, "7 is neither an app nor a URL", id="a number as a target"),
        pytest.param(
            None, wsgi, "so it is an app rather than a factory: pass it as the target", id="WSGI app as a factory"
        ),
        pytest.param(
            None, AsgiApp(), "so it is an app rather than a factory: pass it as the target", id="ASGI app as a factory"
        ),
        pytest.param(None, needs_a_config, "cannot be called without arguments", id="function of one as a factory"),
        pytest.param(None, "http://10.0.0.1", "cannot be called without arguments", id="URL as a factory"),
    ],
)
def test_an_invalid_target_or_factory_is_refused_with_the_way_out(target: object, factory: object, problem: str):
    message = target_problem(target, factory)
    assert message is not None
    assert problem in message


@pytest.mark.parametrize(
    "made, kind, problem",
    [
        pytest.param(asgi, "asgi", None, id="ASGI app"),
        pytest.param(WsgiApp(), "wsgi", None, id="WSGI app"),
        pytest.param(lambda *args: None, "wsgi", None, id="app of any number of arguments"),
        pytest.param(None, "asgi", "factory create_app returned None: it has to end with `return app`", id="nothing"),
        pytest.param(
            wsgi,
            "asgi",
            r"factory create_app returned .*, which is no ASGI app: import from sticky_wsgi",
            id="WSGI app",
        ),
        pytest.param(
            asgi,
            "wsgi",
            r"factory create_app returned .*, which is no WSGI app: import from sticky_asgi",
            id="ASGI app",
        ),
        pytest.param(
            AsgiApp, "asgi", r".*, which is no ASGI app, but takes no arguments: write `return AsgiApp\(\)`", id="class"
        ),
        pytest.param("app", "asgi", r".* returned 'app', which is no ASGI app: it has to end with .*", id="text"),
    ],
)
def test_what_a_factory_returns_is_an_app_of_the_face(made: object, kind: Kind, problem: str | None):
    if problem is None:
        require_made_app(made, create_app, kind)
        return
    with pytest.raises(ConfigError, match=f"^{problem}$"):
        require_made_app(made, create_app, kind)


def test_coroutine_that_a_factory_returns_is_closed():
    made = create_app_later()
    with pytest.raises(ConfigError, match="factory create_app returned a coroutine: a factory returns an app"):
        require_made_app(made, create_app, "asgi")
    assert inspect.getcoroutinestate(made) == inspect.CORO_CLOSED


@pytest.mark.parametrize(
    "url, expected",
    [
        pytest.param("http://10.0.0.1:8080", ("10.0.0.1", 8080), id="host and port"),
        pytest.param("http://10.0.0.1", ("10.0.0.1", 80), id="http without a port"),
        pytest.param("https://shop.example/base", ("shop.example", 443), id="https without a port"),
        pytest.param("http://[::1]:8080", ("::1", 8080), id="IPv6"),
        pytest.param("http://host:81/x", ("host", 81), id="everything"),
        pytest.param("unix:/run/app.sock", None, id="UNIX socket"),
    ],
)
def test_the_host_and_port_of_a_url(url: str, expected: tuple[str, int] | None):
    assert host_and_port(url) == expected


@pytest.mark.parametrize("url", ["http://", "http://:80", "http://host:port", "http://host:99999"])
def test_a_url_without_a_host_or_with_an_invalid_port_is_refused(url: str):
    with pytest.raises(ValueError):
        host_and_port(url)


@pytest.mark.parametrize(
    "url, expected",
    [
        pytest.param("http://10.0.0.1:8080", Location("http", "10.0.0.1", 8080, None, ""), id="host and port"),
        pytest.param("http://shop.example", Location("http", "shop.example", 80, None, ""), id="http without a port"),
        pytest.param(
            "https://shop.example", Location("https", "shop.example", 443, None, ""), id="https without a port"
        ),
        pytest.param("http://shop.example/", Location("http", "shop.example", 80, None, ""), id="a slash is no base"),
        pytest.param("http://shop.example/a/b", Location("http", "shop.example", 80, None, "/a/b"), id="a base"),
        pytest.param(
            "http://shop.example/a//", Location("http", "shop.example", 80, None, "/a"), id="slashes behind a base"
        ),
        pytest.param(
            "http://shop.example/%C3%A4;x=1",
            Location("http", "shop.example", 80, None, "/%C3%A4;x=1"),
            id="a base path with every kind of character that paths may have",
        ),
        pytest.param("http://Shop.Example", Location("http", "shop.example", 80, None, ""), id="a host in capitals"),
        pytest.param(
            "http://a_b.example", Location("http", "a_b.example", 80, None, ""), id="a host with an underscore"
        ),
        pytest.param("https://[2001:db8::1]:8443/a", Location("https", "2001:db8::1", 8443, None, "/a"), id="IPv6"),
        pytest.param("unix:/run/app.sock", Location("http", "localhost", 80, "/run/app.sock", ""), id="a UNIX socket"),
        pytest.param(
            "unix:/run/app.sock:/a/",
            Location("http", "localhost", 80, "/run/app.sock", "/a"),
            id="a UNIX socket and a base",
        ),
        pytest.param(
            "unix:/run/app.sock:/",
            Location("http", "localhost", 80, "/run/app.sock", ""),
            id="a UNIX socket and a slash",
        ),
        pytest.param("unix:app.sock", Location("http", "localhost", 80, "app.sock", ""), id="a UNIX socket from here"),
        pytest.param(
            "http://unix:/run/app.sock:/a",
            Location("http", "localhost", 80, "/run/app.sock", "/a"),
            id="as nginx writes it",
        ),
        pytest.param(
            "https://unix:/run/app.sock",
            Location("https", "localhost", 443, "/run/app.sock", ""),
            id="TLS over a UNIX socket",
        ),
    ],
)
def test_a_url_is_parsed_into_the_location_of_the_upstream(url: str, expected: Location):
    assert Location.parse(url) == expected


@pytest.mark.parametrize(
    "url, problem",
    [
        pytest.param("shop.example", "is no URL: write 'http://shop.example'", id="no scheme"),
        pytest.param("[2001:db8::1]:80/a", "is no URL: write 'http://[2001:db8::1]:80/a'", id="no scheme in IPv6"),
        pytest.param("/run/app.sock", "is no URL: write 'unix:/run/app.sock'", id="the path of a socket"),
        pytest.param("ws://shop.example", "is no URL: write 'http://shop.example'", id="the scheme of WebSockets"),
        pytest.param("HTTP://shop.example", "is no URL: write 'http://shop.example'", id="a scheme in capitals"),
        pytest.param("ftp://shop.example", "a URL begins with one of http://, https://, unix:", id="another scheme"),
        pytest.param("http://", "names no host", id="no host"),
        pytest.param("http:///a", "names no host", id="a base and no host"),
        pytest.param("http://:80", "names no host", id="a port and no host"),
        pytest.param("http://shop.example:port", "is no URL", id="a port in letters"),
        pytest.param("http://shop.example:65536", "is no URL", id="a port that is too large"),
        pytest.param("http://shop.example:0", "no server can listen at port 0", id="port 0"),
        pytest.param("http://[2001:db8::1", "is no URL", id="half a bracket"),
        pytest.param("http://user:word@shop.example", "contains a user name", id="a user and a password"),
        pytest.param("http://user@shop.example", "contains a user name", id="a user"),
        pytest.param("http://shop example", "can't be written in a Host header", id="a host with a space"),
        pytest.param("http://sh\u00f6p.example", "can't be written in a Host header", id="a host beyond ASCII"),
        pytest.param("http://{shop}.example", "can't be written in a Host header", id="a host with braces"),
        pytest.param("http://shop.example/?a=b", "has a query or a fragment", id="a query"),
        pytest.param("http://shop.example/#a", "has a query or a fragment", id="a fragment"),
        pytest.param("http://shop.example/a b", "base path '/a b' is not valid", id="a base with a space"),
        pytest.param("http://shop.example/\u00e4", "base path '/\u00e4' is not valid", id="a base beyond ASCII"),
        pytest.param("unix:", "names no socket: write unix:/path/of.sock", id="no socket"),
        pytest.param("unix::/a", "names no socket", id="a base and no socket"),
        pytest.param(
            "unix:/run/app.sock:a", "base path 'a' is not valid: it begins with a slash", id="a base without a slash"
        ),
        pytest.param("unix:/run/app.sock:/a?b", "base path '/a?b' is not valid", id="a base with a query"),
        pytest.param("unix:/run/app.sock:/a#b", "base path '/a#b' is not valid", id="a base with a fragment"),
        pytest.param("unix:/run/app.sock:/a\r\nb", "is not valid", id="a base with a line break"),
    ],
)
def test_a_url_that_is_no_location_is_refused_with_the_reason(url: str, problem: str):
    with pytest.raises(ValueError) as error:
        Location.parse(url)
    assert problem in str(error.value)
    assert repr(url) in str(error.value)
    assert target_problem(url, None) == str(error.value)


@pytest.mark.parametrize(
    "url, authority",
    [
        pytest.param("http://shop.example", "shop.example", id="a name"),
        pytest.param("http://shop.example:80", "shop.example", id="http at its own port"),
        pytest.param("http://shop.example:443", "shop.example:443", id="http at that of https"),
        pytest.param("https://shop.example:443", "shop.example", id="https at its own port"),
        pytest.param("https://shop.example:80", "shop.example:80", id="https at that of http"),
        pytest.param("http://[2001:db8::1]", "[2001:db8::1]", id="IPv6"),
        pytest.param("http://[2001:db8::1]:8080/a", "[2001:db8::1]:8080", id="IPv6 and a port"),
        pytest.param("unix:/run/app.sock:/a", "localhost", id="a UNIX socket"),
        pytest.param("https://unix:/run/app.sock", "localhost", id="TLS over a UNIX socket"),
    ],
)
def test_the_authority_is_the_value_of_the_host_header(url: str, authority: str):
    assert Location.parse(url).authority == authority
