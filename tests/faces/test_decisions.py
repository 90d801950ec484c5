"""A decision that is kept holds nothing of its request: only names, numbers and words from closed lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import EnvironBuilder

import sticky_asgi
import sticky_wsgi
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import hdr
from tests.faces.kept import assert_holds_no_request

if TYPE_CHECKING:
    from tests.faces.conftest import Face

SECRET = "a secret of some length"
SESSION = "session=ef7a93c1"


class Broken(Exception):
    """An exception of an app."""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"persist": Cookie("SRV", secret=SECRET)}, id="fast path"),
        pytest.param({"persist": Cookie("SRV", secret=SECRET, maxidle=60)}, id="dated cookie"),
        pytest.param({"persist": (Cookie("SRV", secret=SECRET), Stick.on(hdr("host")))}, id="chain"),
        pytest.param({"persist": Cookie("SRV", secret=SECRET), "balance": "leastconn"}, id="counted requests"),
        pytest.param({"persist": Cookie("SRV", secret=SECRET), "retry_on": "503"}, id="retried statuses"),
        pytest.param({}, id="no persistence"),
    ],
)
@pytest.mark.parametrize("outcome", ["success", "failure", "all fail", "exception", "failure after the head"])
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_kept_decision_holds_nothing_of_its_request(
    face: Face, options: dict[str, Any], outcome: str, debug: bool
) -> None:
    kept: list[Decision] = []
    backend = face.backend(face.server("s1"), face.server("s2"), log=kept.append, **options)
    get = face.client(backend, debug=debug)
    first = get(cookie=SESSION)
    mark = [text.partition(";")[0] for text in first.all("set-cookie")]
    server = face.apps[first.decision.server or ""]
    match outcome:
        case "failure":
            server.raises = ServerFailure(Failure.REFUSED)
        case "all fail":
            for each in face.apps.values():
                each.raises = ServerFailure(Failure.CLOSED)
        case "exception":
            server.raises = Broken()
        case "failure after the head":
            server.breaks = Broken()
    last = get.outcome(cookie="; ".join([SESSION, *mark]))
    assert (last.decision.backend, len(kept)) == ("web", 2)
    assert last.decision is kept[1]
    for decision in kept:
        assert type(decision) is Decision
        assert_holds_no_request(decision)


def test_kept_decision_of_nested_middlewares_holds_nothing_of_its_request(face: Face) -> None:
    kept: list[Decision] = []
    inner = face.backend(face.server("s1"), name="inner", persist=Cookie("SRV", secret=SECRET), log=kept.append)
    outer = face.backend(
        face.package.Server("o1", face.dispatcher(inner)), name="outer", persist=Cookie("OUT", secret=SECRET)
    )
    face.client(outer)(cookie=SESSION)
    (decision,) = kept
    assert decision.outer is not None and decision.outer.backend == "outer"
    assert_holds_no_request(decision)


def test_decision_is_live_while_the_app_has_the_request(face: Face) -> None:
    """The app holds the same object that is logged, with what was decided so far."""
    kept: list[Decision] = []
    backend = face.backend(face.server("s1"), persist=Cookie("SRV", signed=False), log=kept.append)
    response = face.client(backend)(cookie=f"{SESSION}; SRV=s1")
    assert response.seen is not None and response.seen.decision is kept[0]
    assert (kept[0].server, kept[0].status) == ("s1", 200)


def test_decision_is_there_for_middleware_around_if_a_function_of_the_configuration_raises(face: Face) -> None:
    def raises(request: object) -> bool:
        raise Broken

    backend = face.backend(face.server("s1"), use_server={"s1": raises})
    response = face.client(backend).outcome()
    assert response.raised is None
    assert (response.decision.backend, response.decision.server, response.decision.attempts) == ("web", "s1", ("s1",))


COOKIES = pytest.mark.parametrize("cookie", [SESSION, f"{SESSION}; SRV=s1"], ids=["new client", "fast path"])


@COOKIES
def test_decision_of_a_cancelled_asgi_request_holds_nothing_of_it(cookie: str) -> None:
    kept: list[Decision] = []
    has_request = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        has_request.set()
        await asyncio.Event().wait()

    backend = sticky_asgi.Backend(
        "web", [sticky_asgi.Server("s1", app)], persist=Cookie("SRV", signed=False), log=kept.append
    )
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"cookie", cookie.encode())],
        "client": ("192.0.2.1", 5000),
        "state": {},
    }

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: object) -> None: ...

    async def serve_and_cancel() -> None:
        request = asyncio.ensure_future(sticky_asgi.Dispatcher(backend)(scope, receive, send))
        await has_request.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(serve_and_cancel())
    (decision,) = kept
    assert decision.attempts == ("s1",)
    assert_holds_no_request(decision)


@COOKIES
def test_decision_of_a_wsgi_response_that_is_closed_early_holds_nothing_of_the_request(cookie: str) -> None:
    kept: list[Decision] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        yield b"two"

    backend = sticky_wsgi.Backend(
        "web", [sticky_wsgi.Server("s1", app)], persist=Cookie("SRV", signed=False), log=kept.append
    )
    environ = EnvironBuilder(headers=[("Cookie", cookie)]).get_environ()
    body: Any = sticky_wsgi.Dispatcher(backend)(environ, lambda *args: lambda data: None)
    assert next(iter(body)) == b"one"
    body.close()
    (decision,) = kept
    assert (decision.attempts, decision.status) == (("s1",), 200)
    assert_holds_no_request(decision)
