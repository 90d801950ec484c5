"""`retry_budget` on both faces: what the client gets when it denies a retry, and when a retry is given back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sticky_core.backend.backend import Backend
from sticky_core.backend.retries import RetryBudget
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.cookie.config import Cookie

if TYPE_CHECKING:
    from tests.faces.conftest import Face

PLAIN = Cookie("SERVERID", signed=False, nocache=False)


def refused(name: str) -> ServerFailure:
    return ServerFailure(Failure.REFUSED, name)


def build_backend(face: Face, *, retries_allowed: int, **options: object) -> Backend:
    """Two servers that refuse connections, and one that responds. The clock stands still, so the minimum is all."""
    servers = [face.server(name, raises=refused(name)) for name in ("s1", "s2")]
    asked: dict[str, object] = {"persist": PLAIN, "clock": ManualClock(), **options}
    return face.backend(
        *servers,
        face.server("s3"),
        retry_budget=RetryBudget(share=0, per_second=retries_allowed),
        **asked,  # type: ignore[arg-type]
    )


def test_denied_retry_ends_the_request_with_its_failure(face: Face):
    backend = build_backend(face, retries_allowed=3)
    get = face.client(backend)
    assert get(cookie="SERVERID=s1").server == "s3"
    denied = get(cookie="SERVERID=s1")
    assert [request.server for request in denied.tried] == ["s1", "s2"]
    assert (denied.status, denied.server, denied.all("set-cookie")) == (503, None, [])
    assert (denied.decision.failures, denied.decision.retry_denied) == ((Failure.REFUSED, Failure.REFUSED), True)
    assert backend.granted_retries.denied == 1
    assert get(cookie="SERVERID=s3").server == "s3", "other requests are served"


def test_debug_header_names_the_budget(face: Face):
    get = face.client(build_backend(face, retries_allowed=1), debug=True)
    (said,) = get(cookie="SERVERID=s1").all("x-sticky")
    assert "retry_budget denied a further attempt" in said


def test_response_passes_if_the_budget_denies_its_retry(face: Face):
    backend = face.backend(
        face.server("s1", status=503),
        face.server("s2"),
        persist=PLAIN,
        clock=ManualClock(),
        retry_on="503",
        retry_budget=RetryBudget(share=0, per_second=1),
    )
    get = face.client(backend)
    assert get(cookie="SERVERID=s1").server == "s2"
    passed = get(cookie="SERVERID=s1")
    assert (passed.status, passed.server, passed.body) == (503, "s1", b"s1")
    assert passed.decision.retry_denied and passed.decision.failures == ()


def test_grant_is_given_back_at_the_end_of_each_request(face: Face):
    backend = build_backend(face, retries_allowed=100)
    get = face.client(backend)
    assert get(cookie="SERVERID=s1").server == "s3"
    face.apps["s3"].raises = refused("s3")
    assert get(cookie="SERVERID=s1").status == 503
    face.apps["s3"].raises = LookupError("a fault of the app")
    assert isinstance(get.outcome(cookie="SERVERID=s1").raised, LookupError)
    face.apps["s3"].raises = None
    face.apps["s3"].breaks = LookupError("in the middle of the response")
    broken = get.outcome(cookie="SERVERID=s1")
    assert isinstance(broken.raised, LookupError) and broken.status == 200
    assert backend.granted_retries.in_flight == 0


def test_budget_is_changed_while_requests_are_served(face: Face):
    backend = build_backend(face, retries_allowed=1)
    get = face.client(backend)
    assert get(cookie="SERVERID=s1").status == 503
    backend.apply(replace(backend.config, retry_budget=None))
    assert get(cookie="SERVERID=s1").server == "s3"
    backend.apply(replace(backend.config, retry_budget=RetryBudget(share=0, per_second=1)))
    assert get(cookie="SERVERID=s1").status == 503


def test_grant_is_given_back_when_the_response_begins(face: Face):
    seen: list[int] = []

    def look(request: object) -> None:
        seen.append(backend.granted_retries.in_flight)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        look(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        look(scope)
        await send({"type": "http.response.body", "body": b"whole"})

    def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
        look(environ)
        start_response("200 OK", [("content-type", "text/plain")])
        look(environ)
        yield b"whole"

    backend = face.backend(
        face.server("s1", raises=refused("s1")),
        face.package.Server("s2", asgi if face.name == "asgi" else wsgi),
        persist=PLAIN,
        retry_budget=1,
    )
    response = face.client(backend)(cookie="SERVERID=s1")
    assert (response.status, response.body, seen) == (200, b"whole", [1, 0])
    assert backend.granted_retries.in_flight == 0


def test_grant_for_the_same_server_is_given_back_when_the_response_begins():
    seen: list[int] = []

    def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
        seen.append(backend.granted_retries.in_flight)
        if len(seen) == 1:
            raise refused("s1")
        start_response("200 OK", [("content-type", "text/plain")])
        seen.append(backend.granted_retries.in_flight)
        yield b"whole"

    from tests.faces.conftest import Wsgi

    face = Wsgi()
    backend = face.package.Backend(
        "web", [face.package.Server("s1", wsgi)], persist=PLAIN, retry_budget=1, redispatch=False
    )
    response = face.client(backend)(cookie="SERVERID=s1")
    assert (response.status, response.all("set-cookie"), seen) == (200, [], [0, 1, 0]), "and it gets no other mark"
