"""What stands behind a server: apps of both kinds, factories, URLs; what is none of them is told so."""

import functools
from collections.abc import Awaitable, Callable, Iterable

import pytest

from sticky_core.target import Kind, address, kinds, problem_of

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
        pytest.param(functools.wraps(asgi)(lambda *args: None), {"asgi"}, id="wrapper that says whom it wraps"),
        pytest.param(dict, ANYTHING, id="builtin class without a signature"),
        pytest.param(print, ANYTHING, id="builtin of any number"),
        pytest.param(len, set(), id="builtin of one"),
        pytest.param("http://10.0.0.1", set(), id="text"),
        pytest.param(None, set(), id="nothing"),
        pytest.param(7, set(), id="a number"),
    ],
)
def test_a_signature_tells_what_a_callable_may_be(callee: object, expected: set[Kind]):
    assert kinds(callee) == expected


def test_real_applications_are_known_for_what_they_are():
    fastapi = pytest.importorskip("fastapi")
    flask = pytest.importorskip("flask")
    assert kinds(fastapi.FastAPI()) == {"asgi"}
    assert kinds(flask.Flask("shop")) == {"wsgi"}
    assert kinds(flask.Flask("shop").wsgi_app) == {"wsgi"}


@pytest.mark.parametrize(
    "target, factory",
    [
        pytest.param(asgi, None, id="ASGI app"),
        pytest.param(wsgi, None, id="WSGI app"),
        pytest.param(AsgiApp(), None, id="ASGI instance"),
        pytest.param(WsgiByClass, None, id="WSGI class"),
        pytest.param(lambda *args: None, None, id="app that tells nothing"),
        pytest.param("http://10.0.0.1:8080", None, id="http"),
        pytest.param("https://shop.example", None, id="https"),
        pytest.param("unix:/run/app.sock", None, id="UNIX socket"),
        pytest.param(None, create_app, id="factory"),
        pytest.param(None, create_app_with_two_options, id="factory with options"),
        pytest.param(None, AsgiApp, id="class as a factory"),
        pytest.param(None, functools.partial(needs_a_config, 1), id="partial as a factory"),
        pytest.param(None, dict, id="builtin as a factory"),
    ],
)
def test_what_can_be_served_has_no_problem(target: object, factory: object):
    assert problem_of(target, factory) is None


@pytest.mark.parametrize(
    "target, factory, problem",
    [
        pytest.param(None, None, "has neither a target (an app or a URL) nor a factory", id="nothing"),
        pytest.param(wsgi, create_app, "has both a target and a factory: give one", id="both"),
        pytest.param(
            "10.0.0.1:8080",
            None,
            "'10.0.0.1:8080' is no URL: it begins with one of http://, https://, unix:",
            id="an address",
        ),
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
        pytest.param(needs_a_config, None, "is neither an app nor a URL", id="function of one as a target"),
        pytest.param(7, None, "7 is neither an app nor a URL", id="a number as a target"),
        pytest.param(
            None, wsgi, "so it is an app rather than a factory: hand it as the target", id="WSGI app as a factory"
        ),
        pytest.param(
            None, AsgiApp(), "so it is an app rather than a factory: hand it as the target", id="ASGI app as a factory"
        ),
        pytest.param(None, needs_a_config, "cannot be called without arguments", id="function of one as a factory"),
        pytest.param(None, "http://10.0.0.1", "cannot be called without arguments", id="URL as a factory"),
    ],
)
def test_what_cannot_is_told_the_way_out(target: object, factory: object, problem: str):
    said = problem_of(target, factory)
    assert said is not None
    assert problem in said


@pytest.mark.parametrize(
    "url, expected",
    [
        pytest.param("http://10.0.0.1:8080", ("10.0.0.1", 8080), id="host and port"),
        pytest.param("http://10.0.0.1", ("10.0.0.1", 80), id="http without a port"),
        pytest.param("https://shop.example/base", ("shop.example", 443), id="https without a port"),
        pytest.param("http://[::1]:8080", ("::1", 8080), id="IPv6"),
        pytest.param("http://user:word@host:81/x?y", ("host", 81), id="everything"),
        pytest.param("unix:/run/app.sock", None, id="UNIX socket"),
    ],
)
def test_an_address_is_a_host_and_a_port(url: str, expected: tuple[str, int] | None):
    assert address(url) == expected


@pytest.mark.parametrize("url", ["http://", "http://:80", "http://host:port", "http://host:99999"])
def test_a_url_without_a_host_or_with_a_wrong_port_has_no_address(url: str):
    with pytest.raises(ValueError):
        address(url)
