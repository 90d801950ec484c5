"""What the tests of cookies of other balancers share: a backend that accepts one, and the server that it finds."""

from collections.abc import Sequence

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import PersistenceResult
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse

SECRET = b"a secret of this test"


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def at(*urls: str, formerly: Sequence[str] = ()) -> list[Server]:
    """Return servers `s1`, `s2`, ... with these URLs; the first has `formerly`."""
    return [
        Server(f"s{number}", url, formerly=formerly if number == 1 else []) for number, url in enumerate(urls, start=1)
    ]


def result_of(cookie: ForeignCookie, servers: Sequence[Server], *values: str) -> PersistenceResult:
    text = "; ".join(f"{cookie.name}={value}" for value in values)
    return cookie.build("web", servers, ManualClock()).recognise(FakeRequest((text,)))


def found(cookie: ForeignCookie, servers: Sequence[Server], *values: str) -> str | None:
    """Return the name of the server that the values name; None if they name none."""
    server = result_of(cookie, servers, *values).server
    return server.name if server is not None else None


def replaced(cookie: ForeignCookie, servers: Sequence[Server], value: str, *, secure: bool = False) -> list[str]:
    """Return the Set-Cookie headers for a client with this value that goes where our cookie sends it."""
    engine = Cookie("NEW", secret=SECRET, accepts=[cookie]).build("web", servers, ManualClock())
    request, response = FakeRequest((f"{cookie.name}={value}",), secure=secure), RecordedResponse()
    result = engine.recognise(request)
    assert result.server is not None
    engine.stamp_response(result, result.server, True, request, response)
    return response.set_cookies
