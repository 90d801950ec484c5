"""What the tests of cookies share: servers, cookies, and the values that mark a client."""

from collections.abc import Sequence

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persistence
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse

NAME = "SRV"
OLD, NEW = b"the older secret", b"the newer secret"
NOW = 1_700_000_000
DAY = 86_400
IDLE, LIFE = 1000, 5000  # in seconds, for maxidle and maxlife


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def build(configured: Cookie, servers: Sequence[Server], clock: ManualClock | None = None) -> Persistence:
    """Return the persistence for `servers`, notified of their changes as by a backend."""
    persistence = configured.build("web", servers, clock if clock is not None else ManualClock(NOW))

    def changed(server: Server) -> None:
        server.refresh_state()
        persistence.state_changed(server)

    for server in servers:
        server.attach(changed)
    return persistence


def cookie(**options: object) -> Cookie:
    """Return a cookie with options from a row of a test, which may have any type."""
    return Cookie(**{"name": NAME} | options)  # type: ignore[arg-type]


def three_servers() -> list[Server]:
    return [Server(name, app) for name in ("r1", "r2", "r3")]


def recognise(persistence: Persistence, *texts: str) -> PersistenceResult:
    return persistence.recognise(FakeRequest(tuple(texts)))


def marked_value(
    persistence: Persistence,
    server: Server,
    result: PersistenceResult = NO_COOKIE,
    name: str = NAME,
) -> str:
    """Return the value that a response of `server` sets for a client that balance has sent there."""
    response = RecordedResponse()
    response.add("set-cookie", f"{name}=app; Path=/")  # rewrite and prefix need it; insert removes it
    persistence.stamp_response(result, server, False, FakeRequest(method="POST"), response)
    (line,) = response.values("set-cookie")
    return line.partition("=")[2].partition(";")[0]


def renew(configured: Cookie, text: str, now: int = NOW) -> tuple[Mark, str]:
    """Return the mark of a response to a bound client, and the value that it sets."""
    persistence = build(configured, servers := three_servers(), ManualClock(now))
    result = recognise(persistence, f"{NAME}={text}")
    assert result.claim is Claim.VALID
    response = RecordedResponse()
    mark = persistence.stamp_response(result, servers[0], True, FakeRequest(), response)
    lines = response.values("set-cookie")
    assert (mark is Mark.UPDATED) is bool(lines)
    return mark, lines[0].partition("=")[2].partition(";")[0] if lines else ""
