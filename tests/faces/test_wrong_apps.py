"""An app that a middleware can't serve is refused when the middleware is made, with the line to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flask
import pytest
from starlette.applications import Starlette
from werkzeug.middleware.proxy_fix import ProxyFix

import sticky_asgi
import sticky_wsgi
from sticky_core.errors import ConfigError

if TYPE_CHECKING:
    from tests.faces.conftest import Face


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def create_app() -> Any: ...


class Quart:
    """An app that calls its `asgi_app`, as Quart does."""

    def __repr__(self) -> str:
        return "<Quart>"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.asgi_app(scope, receive, send)

    async def asgi_app(self, scope: Any, receive: Any, send: Any) -> None: ...


#: by middleware
AROUND: dict[str, Callable[[Face, Any], Any]] = {
    "StickyWorkers": lambda face, app: face.package.StickyWorkers(app),
    "StickyMiddleware": lambda face, app: face.package.StickyMiddleware(app, face.backend(face.server("s1"))),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    "asgi_app, wsgi_app",
    [
        pytest.param(asgi, wsgi, id="function"),
        pytest.param(Starlette(), flask.Flask("shop").wsgi_app, id="framework"),
    ],
)
def test_app_of_the_other_face_is_refused_with_the_line_to_write(face: Face, around: str, asgi_app: Any, wsgi_app: Any):
    wrong, right = (wsgi_app, asgi_app) if face.name == "asgi" else (asgi_app, wsgi_app)
    what, package = ("a WSGI", "sticky_wsgi") if face.name == "asgi" else ("an ASGI", "sticky_asgi")
    with pytest.raises(ConfigError) as refused:
        AROUND[around](face, wrong)
    assert str(refused.value) == f"{around}: {wrong!r} is {what} app: write `from {package} import {around}`"
    AROUND[around](face, right)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    "app, problem",
    [
        pytest.param(
            create_app,
            "takes no arguments, so it is a factory rather than an app: write {}(create_app())",
            id="factory",
        ),
        pytest.param("main:app", "'main:app' is no {kind} app: pass the app itself", id="name of an app"),
        pytest.param(None, "None is no {kind} app: pass the app itself", id="nothing"),
    ],
)
def test_what_is_no_app_is_refused(face: Face, around: str, app: Any, problem: str):
    with pytest.raises(ConfigError, match=re.escape(problem.format(around, kind=face.name.upper()))):
        AROUND[around](face, app)


def test_app_that_would_call_the_workers_again_is_refused_with_the_line_to_write(face: Face):
    app: Any = Quart() if face.name == "asgi" else flask.Flask("shop")
    own = f"{face.name}_app"
    with pytest.raises(ConfigError) as refused:
        setattr(app, own, face.package.StickyWorkers(app))
    assert str(refused.value) == (
        f"StickyWorkers: {app!r} has its app in {own}: write app.{own} = StickyWorkers(app.{own}), and serve app"
    )
    setattr(app, own, face.package.StickyWorkers(getattr(app, own)))


def test_app_that_serves_another_in_its_attribute_server_is_refused_with_the_line_to_write(face: Face):
    class Dash:
        def __init__(self) -> None:
            self.server: Any = Quart() if face.name == "asgi" else flask.Flask("board")

        def __call__(self, *arguments: Any) -> Any:
            return self.server(*arguments)

    class AsyncDash(Dash):
        async def __call__(self, *arguments: Any) -> Any:
            return await self.server(*arguments)

    app: Any = AsyncDash() if face.name == "asgi" else Dash()
    own = f"server.{face.name}_app"
    with pytest.raises(ConfigError) as refused:
        face.package.StickyWorkers(app)
    assert str(refused.value) == (
        f"StickyWorkers: {app!r} has its app in {own}: write app.{own} = StickyWorkers(app.{own}), and serve app.server"
    )


def test_app_that_calls_the_middleware_again_is_reported_with_the_line_to_write(face: Face):
    app: Any = Quart() if face.name == "asgi" else flask.Flask("shop")
    own = f"{face.name}_app"
    routes = {"/cart": face.backend(face.server("s1"))}
    around = face.middleware(app, routes)  # served in its place, it works
    setattr(app, own, around)
    message = f"StickyMiddleware: .* has its app in {own}: write app.{own} = StickyMiddleware\\(app.{own}\\), and serve"
    with pytest.raises(ConfigError, match=message):
        face.client(app)("/")


def test_middleware_with_an_attribute_of_that_name_is_an_app_like_any_other():
    class Server:  # as that of Socket.IO
        def __init__(self, app: Any) -> None:
            self.wsgi_app = app

        def __call__(self, environ: Any, start_response: Any) -> Any:
            return self.wsgi_app(environ, start_response)

    for app in (Server(wsgi), ProxyFix(wsgi), ProxyFix(flask.Flask("shop"))):
        sticky_wsgi.StickyWorkers(app)


@pytest.mark.anyio
async def test_wrong_app_inside_a_running_server_fails_its_start():
    workers = sticky_asgi.StickyWorkers(flask.Flask("shop"))  # type: ignore[arg-type]  # the mistake
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ConfigError, match="is a WSGI app: write `from sticky_wsgi import StickyWorkers`"):
        await workers({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.failed" and "from sticky_wsgi import" in sent[0]["message"]
