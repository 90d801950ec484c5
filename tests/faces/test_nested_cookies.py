"""Dispatchers inside each other with one cookie name: refused where attributes or a lifespan show them, warned about
once where only a request does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.testclient import TestClient

import sticky_asgi
import sticky_wsgi
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend
    from tests.faces.conftest import Face

SECRET = "a-secret-of-these-tests"


def cookie(name: str = "SERVERID", **options: Any) -> Cookie:
    return Cookie(name, secret=SECRET, **options)


def backend(face: Face, name: str, *persist: Cookie) -> Backend:
    return face.backend(face.server(f"{name}1"), name=name, persist=persist or (cookie(),))


class Wrapper:
    """A middleware that shows its app."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, *args: Any) -> Any:
        return self.app(*args)


def closure(app: Any) -> Any:
    """Return a middleware that does not show its app, of the kind of `app`."""
    if isinstance(app, sticky_asgi.middleware.DispatchApp | Starlette):

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)

        return asgi

    def wsgi(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    return wsgi


MEET = "both insert a cookie SERVERID where the paths / and / meet, so no client would stay at its server: give one"

WAYS: dict[str, Callable[[Any], Any]] = {
    "directly": lambda app: app,
    "behind a middleware": Wrapper,
    "behind two": lambda app: Wrapper(Wrapper(app)),
    "as a bound method": lambda app: app.__call__,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_two_middlewares_with_one_cookie_name_are_refused(face: Face, way: Callable[[Any], Any]):
    inner = way(face.middleware(face.app("app"), {"/cart": backend(face, "cart")}))
    with pytest.raises(ConfigError, match=f"backend cart and backend shop around it {MEET}"):
        face.middleware(inner, {"/shop": backend(face, "shop")})
    face.middleware(inner, {"/shop": backend(face, "shop", cookie("SHOP"))})
    face.middleware(inner, {"/": backend(face, "shop", cookie("SHOP"))})


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_dispatcher_inside_a_server_with_the_cookie_of_its_backend_is_refused(face: Face, way: Callable[[Any], Any]):
    inner = way(face.dispatcher(backend(face, "inner")))
    outer = face.backend(Server("s1", inner), name="outer", persist=cookie())
    with pytest.raises(
        ConfigError, match=f"backend outer: server s1: backend inner and backend outer around it {MEET}"
    ):
        face.dispatcher(outer)
    face.dispatcher(face.backend(Server("s1", inner), name="outer", persist=cookie("OUTER")))


def test_dispatcher_inside_an_added_server_is_refused(face: Face):
    outer = face.backend(face.server("s1"), name="outer", persist=cookie())
    face.dispatcher(outer)
    with pytest.raises(ConfigError, match=f"server s2: backend inner and backend outer around it {MEET}"):
        outer.add(Server("s2", face.dispatcher(backend(face, "inner"))))


def test_workers_and_a_middleware_with_one_cookie_name_are_refused(face: Face):
    inner = face.middleware(face.app("app"), {"/cart": backend(face, "cart")})
    with pytest.raises(ConfigError, match=f"backend cart and StickyWorkers around it {MEET}"):
        face.package.StickyWorkers(inner, cookie="SERVERID")
    workers = face.package.StickyWorkers(inner, cookie="STICKYWORKER")
    with pytest.raises(ConfigError, match="StickyWorkers and backend shop around it both insert a cookie STICKYWORKER"):
        face.middleware(workers, {"/shop": backend(face, "shop", cookie("STICKYWORKER"))})


def test_cookies_that_do_not_meet_and_one_backend_in_two_places_are_accepted(face: Face):
    shared = backend(face, "shared")
    inner = face.middleware(face.app("app"), {"/cart": shared})
    face.middleware(inner, {"/basket": shared})
    apart = face.middleware(face.app("app"), {"/cart": backend(face, "cart", cookie(path="/cart"))})
    face.middleware(apart, {"/shop": backend(face, "shop", cookie(path="/shop"))})
    passive = face.middleware(
        face.app("app"), {"/cart": face.backend(face.server("s1"), persist=Cookie("A", mode="passive"))}
    )
    face.middleware(passive, {"/shop": backend(face, "shop", cookie("A"))})


def test_middlewares_of_starlette_are_refused_at_the_start_of_the_server():
    face = _asgi()
    app = Starlette(
        middleware=[
            Middleware(sticky_asgi.StickyMiddleware, routes={"/shop": backend(face, "shop")}),
            Middleware(Wrapper),
            Middleware(sticky_asgi.StickyMiddleware, routes={"/cart": backend(face, "cart")}),
        ]
    )
    with pytest.raises(ConfigError, match=f"backend cart and backend shop around it {MEET}"), TestClient(app):
        pytest.fail("it has started")


def test_mounted_dispatcher_with_the_cookie_of_a_middleware_around_it_is_refused():
    face = _asgi()
    app = Starlette(routes=[Mount("/cart", sticky_asgi.Dispatcher(backend(face, "cart")))])
    with pytest.raises(ConfigError, match=f"backend cart and backend shop around it {MEET}"):
        sticky_asgi.StickyMiddleware(app, routes={"/shop": backend(face, "shop")})


@pytest.mark.parametrize("where", ["app", "replica"])
def test_dispatcher_that_only_a_lifespan_shows_is_refused_at_the_start(where: str):
    face = _asgi()
    inner = sticky_asgi.Dispatcher(backend(face, "inner"))
    outer: Any
    if where == "app":
        outer = sticky_asgi.StickyMiddleware(closure(inner), routes={"/shop": backend(face, "outer")})
    else:
        replica = Server("r1", factory=lambda: closure(inner))
        outer = sticky_asgi.Dispatcher(face.backend(replica, name="outer", persist=cookie()))
    failed = pytest.raises((ConfigError, RuntimeError), match=f"backend inner and backend outer around it {MEET}")
    with failed, TestClient(outer):
        pytest.fail("it has started")


def test_dispatcher_inside_an_app_of_a_factory_is_reported_when_the_replica_starts(
    face: Face, caplog: pytest.LogCaptureFixture
):
    replica = Server("r1", factory=lambda: Wrapper(face.dispatcher(backend(face, "inner"))))
    assert face.client(face.backend(replica, name="outer", persist=cookie()))().status == 503
    (failed,) = [record for record in caplog.records if "failed to start" in record.getMessage()]
    assert "backend inner and backend outer around it both insert" in failed.getMessage()


def test_dispatcher_that_only_a_request_shows_is_warned_about_once(face: Face, caplog: pytest.LogCaptureFixture):
    inner = closure(face.dispatcher(backend(face, "inner")))
    client = face.client(face.backend(Server("s1", inner), name="outer", persist=cookie()))
    for _ in range(3):
        assert client().status == 200
    messages = [message for message in caplog.messages if "both insert" in message]
    assert len(messages) == 1 and messages[0].startswith(
        "backend inner and backend outer around it both insert a cookie"
    )


def test_middleware_that_only_a_request_shows_is_warned_about_once_on_wsgi(caplog: pytest.LogCaptureFixture):
    from tests.faces.conftest import Wsgi

    face = Wsgi()
    inner = closure(sticky_wsgi.StickyMiddleware(face.app("app"), routes={"/cart": backend(face, "cart")}))
    client = face.client(sticky_wsgi.StickyMiddleware(inner, routes={"/shop": backend(face, "shop")}))
    for path in ("/", "/shop", "/cart", "/cart", "/"):
        assert client(path).status == 200
    messages = [message for message in caplog.messages if "both insert" in message]
    assert len(messages) == 1 and messages[0].startswith("backend cart and backend shop around it both insert a cookie")


def _asgi() -> Face:
    from tests.faces.conftest import Asgi

    return Asgi()
