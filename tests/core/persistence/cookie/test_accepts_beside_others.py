"""Accepted marks beside our own cookie, other persistences, and many values."""

from collections.abc import Iterator, Sequence

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.http import cookies
from sticky_core.http.messages import BodyNeeded, Request
from sticky_core.persistence import foreign
from sticky_core.persistence.chain import PersistenceChain
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.route import Route
from sticky_core.persistence.signing import Signing
from sticky_core.samples.request import cook
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import NEW, build

PLAIN = Cookie("OLD", signed=False)


def servers_at_addresses() -> list[Server]:
    return [Server(name, f"http://127.0.0.1:{port}") for name, port in (("r1", 8001), ("r2", 8002))]


def engine_of(cookie: Persist, servers: Sequence[Server]) -> CookieEngine:
    engine = build(cookie, servers)  # type: ignore[arg-type]
    assert isinstance(engine, CookieEngine)
    return engine


def accepting(*accepts: Persist, **options: object) -> Cookie:
    return Cookie("NEW", **{"secret": NEW} | options, accepts=accepts or [PLAIN])  # type: ignore[arg-type]


def marked(engine: CookieEngine, server: Server) -> str:
    """Return our cookie as a client of `server` has it."""
    response = RecordedResponse()
    request = FakeRequest()
    engine.stamp_response(engine.recognise(request), server, False, request, response)
    return response.set_cookies[0].partition(";")[0]


def needs_body(request: Request) -> str:
    raise BodyNeeded(10)


def test_server_of_a_chain_gets_no_mark_of_ours_if_an_accepted_one_would_be_in_the_body():
    servers = servers_at_addresses()
    first = engine_of(Cookie("FIRST", signed=False), servers)
    second = engine_of(accepting(Route(needs_body)), servers)
    request = FakeRequest(["FIRST=r2; a=1"])
    result = PersistenceChain([first, second]).recognise(request)
    assert (result.server, request.cookies) == (servers[1], ("a=1",))


def test_old_mark_does_not_count_beside_ours_of_an_ended_instance():
    servers = servers_at_addresses()
    servers[0].instance = "0a"
    engine = engine_of(accepting(), servers)
    sent = marked(engine, servers[0])
    servers[0].instance = "0b"
    engine.state_changed(servers[0])
    result = engine.recognise(FakeRequest([f"{sent}; OLD=r2"]))
    assert (result.claim, result.reason, result.server) == (Claim.INVALID, Reason.OTHER_INSTANCE, servers[0])


def test_few_prefixes_are_verified(monkeypatch: pytest.MonkeyPatch):
    verified: list[str] = []
    monkeypatch.setattr(Signing, "verify", lambda self, value: verified.append(value))
    engine = engine_of(
        Cookie("NEW", signed=False, accepts=[Cookie("SID", mode="prefix", secret=NEW)]), servers_at_addresses()
    )
    sent = "; ".join(f"SID=r{number}.x~a" for number in range(100))
    request = FakeRequest([sent])
    assert engine.recognise(request).claim is Claim.INVALID
    assert len(verified) <= 2 * cookies.MAX_CANDIDATES and request.cookies == (sent,)


def test_response_of_a_server_without_an_id_deletes_no_cookie_that_was_not_sent():
    servers = [Server("r1", "http://127.0.0.1:8001"), Server("r2", "http://127.0.0.1:8002", cookie="")]
    engine = engine_of(accepting(NginxCookie("N"), foreign.table("T", {"a": "r2"})), servers)
    for text in ("T=a", "T=b", "N=b"):
        request, response = FakeRequest([text]), RecordedResponse()
        result = engine.recognise(request)
        assert engine.stamp_response(result, servers[1], result.is_bound, request, response) is Mark.NONE
        assert response.headers == []
    request, response = FakeRequest(["T=a; NEW=junk"]), RecordedResponse()
    result = engine.recognise(request)
    assert engine.stamp_response(result, servers[1], result.is_bound, request, response) is Mark.DELETED


@pytest.mark.parametrize(
    "accepted, written",
    [
        pytest.param(foreign.caddy("lb"), Cookie("lb", signed=False), id="of another balancer"),
        pytest.param(foreign.envoy("lb"), Cookie("lb", signed=False), id="without a path"),
        pytest.param(NginxCookie("lb"), Cookie("lb", signed=False), id="of nginx"),
        pytest.param(NginxCookie("lb"), NginxCookie("lb"), id="of nginx, as it is written"),
        pytest.param(Cookie("lb", signed=False), NginxCookie("lb"), id="ours, and nginx writes it"),
        pytest.param(
            foreign.of_backend("a", Cookie("lb", secret=NEW)), Cookie("lb", secret=NEW), id="of a renamed backend"
        ),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_cookie_that_is_written_beside_can_not_be_accepted(accepted: Persist, written: Persist, is_first: bool):
    persist = [accepting(accepted), written] if is_first else [written, accepting(accepted)]
    with pytest.raises(ConfigError, match="persists by cookie lb, which another cookie accepts and"):
        Backend("web", servers_at_addresses(), persist=persist)


def problems_of(**options: object) -> Iterator[str]:
    with pytest.raises(ConfigError) as caught:
        Cookie("NEW", **{"secret": NEW} | options)  # type: ignore[arg-type]
    yield from caught.value.problems


def test_every_problem_is_told_beside_those_of_accepts():
    path, wrong, until = problems_of(path="x", accepts=[PLAIN, 3], accepts_until="soon")
    assert "path 'x' is no path" in path and "3 is no persistence" in wrong and "accepts_until 'soon'" in until


def test_mark_that_is_accepted_twice_is_told():
    (told,) = problems_of(accepts=[PLAIN, Cookie("OLD", signed=False)])
    assert told == "cookie NEW: accepts: Cookie('OLD') is there twice: write it once"


def test_accepts_within_accepts_is_told():
    (told,) = problems_of(accepts=[Follow("SID", Cookie("F", secret=NEW, accepts=[PLAIN]))])
    assert "accepts: Follow has accepts of its own, which would have no effect" in told


@pytest.mark.parametrize(
    "accepted", [Cookie("SID", signed=False), NginxCookie("SID"), foreign.caddy("SID"), foreign.envoy("SID")]
)
def test_cookie_of_the_app_that_is_followed_can_not_be_accepted(accepted: Persist):
    with pytest.raises(ConfigError, match=r"follow SID: cookie NEW accepts .*SID.*, which would be removed from"):
        Follow("SID", accepting(accepted))


@pytest.mark.parametrize(
    "accepted",
    [
        Cookie("SID", mode="prefix", signed=False),
        Cookie("SID", mode="rewrite", signed=False),
        Cookie("SID", mode="passive"),
        Route(cook("SID")),
        foreign.nginx_sticky_module("SID", transfer=True),
    ],
)
def test_cookie_of_the_app_that_is_followed_may_name_the_server(accepted: Persist):
    request = FakeRequest(["SID=r9~abc"])
    engine_of(Follow("SID", accepting(accepted)), servers_at_addresses()).recognise(request)
    assert request.cookies == ("SID=r9~abc",)


def test_part_of_another_balancer_is_removed_also_once_a_server_has_its_address():
    servers = servers_at_addresses()
    backend = Backend(
        "web", servers, persist=accepting(foreign.nginx_sticky_module("route", text="raw", transfer=True))
    )
    assert isinstance(backend.persistence, CookieEngine)
    sent = f"{marked(backend.persistence, servers[0])}; route=127.0.0.1:8009 session"
    kept = sent.partition("; ")[2]
    for address, forwarded in (("", kept), ("http://127.0.0.1:8009", "route=session")):
        if address:
            servers[1].target = address
        for _ in range(2):  # the second time from a cache
            request = FakeRequest([sent])
            result = backend.persistence.recognise(request)
            assert (result.server, request.cookies) == (servers[0], (forwarded,))
