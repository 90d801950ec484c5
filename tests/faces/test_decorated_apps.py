"""Apps that a decorator has made: what the decorator takes decides, not what the function that it wraps takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.wrappers import Request, Response

import sticky_wsgi
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from tests.faces.conftest import Face


def create_request_app(name: str) -> Any:
    """Return an app by the decorator of Werkzeug's tutorial."""

    @Request.application
    def app(request: Request) -> Response:
        return Response(f"{name} {request.path}")

    return app


def decorated_app(face: Face, handler: Callable[..., str]) -> Callable[..., Any]:
    """Return an app of the face that responds with the result of `handler`, and declares to wrap it."""
    if face.name == "wsgi":

        @functools.wraps(handler)
        def wsgi(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [handler().encode()]

        return wsgi

    @functools.wraps(handler)
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": handler().encode()})

    return asgi


@pytest.mark.parametrize("face", ["wsgi"], indirect=True)
def test_app_by_the_decorator_of_werkzeug_is_a_target_and_made_by_factories(face: Face):
    backend = face.backend(
        Server("s1", create_request_app("s1")),
        Server("s2", factory=lambda: create_request_app("s2")),
    )
    client = face.client(backend)
    assert [client("/cart").body for _ in range(2)] == [b"s1 /cart", b"s2 /cart"]


@pytest.mark.parametrize("face", ["wsgi"], indirect=True)
def test_app_by_the_decorator_of_werkzeug_runs_in_workers_and_behind_a_middleware(face: Face):
    assert face.client(sticky_wsgi.StickyWorkers(create_request_app("app")))("/").body == b"app /"
    middleware = face.middleware(create_request_app("app"), {"/cart": face.backend(face.server("s1"))})
    assert face.client(middleware)("/").body == b"app /"


def test_app_that_wraps_a_function_without_arguments_is_no_factory(face: Face):
    def handler() -> str:
        return "hello"

    backend = face.backend(
        Server("s1", decorated_app(face, handler)), Server("s2", factory=lambda: decorated_app(face, handler))
    )
    client = face.client(backend)
    assert [client().body for _ in range(2)] == [b"hello", b"hello"]


def test_cached_factory_makes_an_app(face: Face):
    @functools.cache
    def create_app() -> Callable[..., Any]:
        return decorated_app(face, lambda: "hello")

    assert face.client(face.backend(Server("s1", factory=create_app)))().body == b"hello"
