"""Requests that no server has made: test clients leave out keys that an app does not need, and write numbers as int."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.messages import Request
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples import form
from tests.faces.workers.wsgi import SECRET

BODY = b"user=ann&rest=1"


def wsgi_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Respond with the body of the request."""
    body = environ["wsgi.input"].read() if "wsgi.input" in environ else b"no body"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


def fails(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["wsgi.input"].read(4)
    raise ServerFailure(Failure.REFUSED)


def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    return None


def servers(*apps: Any) -> list[sticky_wsgi.Server]:
    return [sticky_wsgi.Server(f"s{number}", app) for number, app in enumerate(apps, 1)]


def stick_on_a_field() -> sticky_wsgi.Backend:
    return sticky_wsgi.Backend("web", servers(wsgi_app), persist=Stick.on(form("user")))


def retry() -> sticky_wsgi.Backend:
    return sticky_wsgi.Backend("web", servers(fails, wsgi_app), retry_on="conn-failure 503")


WSGI = {
    "Dispatcher": lambda: sticky_wsgi.Dispatcher(sticky_wsgi.Backend("web", servers(wsgi_app))),
    "a stick rule on the body": lambda: sticky_wsgi.Dispatcher(stick_on_a_field()),
    "retries of responses": lambda: sticky_wsgi.Dispatcher(
        sticky_wsgi.Backend("web", servers(wsgi_app), retry_on="conn-failure 503")
    ),
    "StickyMiddleware": lambda: sticky_wsgi.StickyMiddleware(wsgi_app, retry()),
    "StickyWorkers": lambda: sticky_wsgi.StickyWorkers(wsgi_app),
    "StickyWorkers with peers": lambda: sticky_wsgi.StickyWorkers(wsgi_app, name="bare", secret=SECRET),
}


@pytest.mark.parametrize("around", [each for each in WSGI if each != "StickyMiddleware"])
def test_environ_with_a_method_and_a_path_is_enough(around: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    app = WSGI[around]()
    heads: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        heads.append(status)

    try:
        body = b"".join(app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, start_response))
        assert heads == ["200 OK"]
        assert body in (b"", b"no body")
        assert b"".join(app({"PATH_INFO": "/"}, start_response)) == body  # a GET, as for Werkzeug
    finally:
        if isinstance(app, sticky_wsgi.StickyWorkers):
            app.stop()


@pytest.mark.parametrize("length", [len(BODY), str(len(BODY))], ids=["an int", "a text"])
@pytest.mark.parametrize("around", [each for each in WSGI if "Workers" not in each])
def test_length_of_a_body_may_be_an_int(around: str, length: object):
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": length,
        "wsgi.input": io.BytesIO(BODY),
    }
    assert b"".join(WSGI[around]()(environ, start_response)) == BODY


@pytest.mark.parametrize(
    "length, expected",
    [(3, b"3"), ("3", b"3"), (0, b"0"), ("0", b"0"), ("", None), (None, None)],
    ids=["an int", "a text", "zero as an int", "zero as a text", "an empty text", "None"],
)
def test_length_is_forwarded_to_a_url_as_text(length: object, expected: bytes | None):
    upstream = sticky_wsgi.Upstream("http://127.0.0.1:8000")
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "CONTENT_LENGTH": length, "HTTP_X_NUMBER": 7}
    lines = upstream.head(environ, "POST").head.lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"content-length")] == (
        [] if expected is None else [b"content-length: " + expected]
    )
    assert b"x-number: 7" in lines


def test_samples_are_texts_whatever_a_test_client_writes():
    seen: list[object] = []

    def sample(request: Request) -> str:
        seen.extend(value for name in ("content-length", "x-number", "x-none") for value in request.header(name))
        return "key"

    backend = sticky_wsgi.Backend("web", servers(wsgi_app), persist=Stick.on(sample))
    environ = {"PATH_INFO": "/", "CONTENT_LENGTH": 0, "HTTP_X_NUMBER": 7, "wsgi.input": io.BytesIO()}
    assert list(sticky_wsgi.Dispatcher(backend)(environ, start_response)) == [b""]
    assert seen == ["0", "7"]


def test_scope_with_what_asgi_requires_is_enough():
    seen: list[str] = []

    def sample(request: Request) -> str:
        seen.append(f"{request.method} {request.scheme} {request.path}?{request.query}")
        return "key"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    dispatcher = sticky_asgi.Dispatcher(
        sticky_asgi.Backend("web", [sticky_asgi.Server("s1", app)], persist=Stick.on(sample))
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(dispatcher({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert seen == ["GET http /?"]
    head = sticky_asgi.Upstream("http://127.0.0.1:8000").head({"type": "http", "path": "/a", "headers": []}, "GET").head
    assert head.startswith(b"GET /a HTTP/1.1\r\n")
