"""Rules overrule the client's claim: persist_on_down, force_persist, ignore_persist and use_server."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import NO_COOKIE, NO_PERSISTENCE, Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.rules import Condition, IgnorablePersistence, RuledPersistence, with_rules
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from tests.core.fakes import FakeRequest, RecordedResponse

S1, S2 = ("SRV=s1",), ("SRV=s2",)


@dataclass(frozen=True)
class Options:
    """The rules of a backend."""

    persist_on_down: bool = False
    force_persist: Condition | None = None
    ignore_persist: Condition | None = None
    use_server: Sequence[tuple[str, Condition]] = ()


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def is_post(request: object) -> bool:
    return isinstance(request, FakeRequest) and request.method == "POST"


@pytest.fixture
def servers() -> list[Server]:
    return [Server("s1", app), Server("s2", app)]


@pytest.fixture
def cookie(servers: list[Server]) -> Persistence:
    return Cookie("SRV", signed=False).build("web", servers, ManualClock())


def set_down(server: Server) -> None:
    server.health = Health.DOWN
    server.refresh_state()


def ruled(options: Options, servers: list[Server], persistence: Persistence | None) -> Persistence:
    persistence = with_rules(options, servers, persistence)
    assert isinstance(persistence, RuledPersistence)
    return persistence


def test_persistence_without_rules_is_not_wrapped(servers: list[Server], cookie: Persistence):
    assert with_rules(Options(), servers, cookie) is cookie
    assert with_rules(Options(), servers, None) is None
    assert with_rules(Options(ignore_persist=is_post), servers, cookie) is cookie


def test_persist_on_down_binds_to_a_server_that_is_down(servers: list[Server], cookie: Persistence):
    persistence = ruled(Options(persist_on_down=True), servers, cookie)
    set_down(servers[0])
    result = persistence.recognise(FakeRequest(S1))
    assert (result.claim, result.server, result.is_bound) == (Claim.DOWN, servers[0], True)
    assert not result.is_forced


def test_persist_on_down_leaves_the_fast_path_in_use(servers: list[Server], cookie: Persistence):
    persistence = ruled(Options(persist_on_down=True), servers, cookie)
    assert persistence.fast_path is cookie.fast_path
    assert ruled(Options(force_persist=is_post), servers, cookie).fast_path is not cookie.fast_path


def test_force_persist_binds_the_requests_that_it_matches(servers: list[Server], cookie: Persistence):
    persistence = ruled(Options(force_persist=is_post), servers, cookie)
    set_down(servers[0])
    forced = persistence.recognise(FakeRequest(S1, method="POST"))
    assert (forced.claim, forced.is_bound, forced.is_forced) == (Claim.DOWN, True, True)
    other = persistence.recognise(FakeRequest(S1))
    assert (other.claim, other.is_bound, other.is_forced) == (Claim.DOWN, False, False)


def test_use_server_overrules_the_claim(servers: list[Server], cookie: Persistence):
    persistence = ruled(Options(use_server=[("s2", is_post)]), servers, cookie)
    result = persistence.recognise(FakeRequest(S1, method="POST"))
    assert (result.claim, result.reason) == (Claim.UNUSED, Reason.RULE)
    assert (result.server, result.is_bound) == (servers[1], True)
    assert persistence.recognise(FakeRequest(S1)).server is servers[0]


def test_first_use_server_with_a_usable_server_counts(servers: list[Server]):
    persistence = ruled(Options(use_server=[("s1", is_post), ("s2", is_post)]), servers, None)
    request = FakeRequest(method="POST")
    assert persistence.recognise(request).server is servers[0]
    set_down(servers[0])
    result = persistence.recognise(request)
    assert (result.claim, result.server, result.is_bound) == (Claim.NONE, servers[1], True)
    assert persistence.recognise(FakeRequest()) == NO_PERSISTENCE
    assert persistence.stamp_response(result, servers[1], True, request, RecordedResponse()) is Mark.NONE


def test_response_is_marked_by_the_persistence_under_the_rules(servers: list[Server], cookie: Persistence):
    persistence = ruled(Options(persist_on_down=True), servers, cookie)
    response = RecordedResponse()
    assert persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(), response) is Mark.INSERTED
    assert response.values("set-cookie") == ["SRV=s1; path=/"]


def test_ignore_persist_discards_the_claim_and_the_mark(servers: list[Server], cookie: Persistence):
    persistence = IgnorablePersistence(Options(ignore_persist=is_post), cookie)
    request, response = FakeRequest(S1, method="POST"), RecordedResponse()
    result = persistence.recognise(request)
    assert (result.claim, result.reason, result.server) == (Claim.UNUSED, Reason.RULE, None)
    assert request.cookies == ("",), "the server does not see the cookie all the same"
    assert persistence.stamp_response(result, servers[1], False, request, response) is Mark.NONE
    assert response.headers == []
    assert persistence.recognise(FakeRequest(S1)).server is servers[0]


def test_force_persist_counts_before_ignore_persist(servers: list[Server], cookie: Persistence):
    persistence = IgnorablePersistence(Options(ignore_persist=is_post, force_persist=is_post), cookie)
    assert persistence.recognise(FakeRequest(S2, method="POST")).server is servers[1]
