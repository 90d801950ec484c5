"""Several cookies in one backend: the first that binds the request wins, and the server gets none of them."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persistence
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.core.fakes import FakeRequest, RecordedResponse


def app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.fixture
def backend() -> Backend:
    return Backend(
        "web", [Server("s1", app), Server("s2", app)], persist=[Cookie("A", signed=False), Cookie("B", signed=False)]
    )


@pytest.fixture
def persistence(backend: Backend) -> Persistence:
    assert backend.persistence is not None
    return backend.persistence


@pytest.mark.parametrize(
    "text, claim, reason, server",
    [
        pytest.param("A=s1; B=s2", Claim.VALID, Reason.BOUND, "s1", id="both know the client: the first"),
        pytest.param("B=s1; A=s2", Claim.VALID, Reason.BOUND, "s2", id="in the order of the configuration"),
        pytest.param("B=s2", Claim.VALID, Reason.BOUND, "s2", id="only the second does"),
        pytest.param("A=Z; B=s2", Claim.VALID, Reason.BOUND, "s2", id="the first has no word of ours"),
        pytest.param("A=; B=s2", Claim.VALID, Reason.BOUND, "s2", id="the first is empty"),
        pytest.param("A=Z; B=Y", Claim.INVALID, Reason.UNKNOWN, None, id="neither has"),
        pytest.param("B=Z", Claim.INVALID, Reason.UNKNOWN, None, id="the second has not, the first is not there"),
        pytest.param("A=; B=Z", Claim.INVALID, Reason.EMPTY, None, id="the first with a claim is reported"),
        pytest.param("x=1", Claim.NONE, Reason.NO_COOKIE, None, id="none at all"),
    ],
)
def test_first_result_that_binds_the_request_wins(
    persistence: Persistence, text: str, claim: Claim, reason: Reason, server: str | None
):
    for _ in range(2):  # read, then remembered
        result = persistence.recognise(FakeRequest((text,)))
        named = result.server.name if result.server is not None else None
        assert (result.claim, result.reason, named) == (claim, reason, server)


def test_second_persistence_binds_if_the_server_of_the_first_is_unusable(backend: Backend, persistence: Persistence):
    for state, server in [(AdminState.MAINT, "s2"), (AdminState.READY, "s1"), (AdminState.MAINT, "s2")]:
        backend["s1"].state = state
        result = persistence.recognise(FakeRequest(("A=s1; B=s2",)))
        assert result.claim is Claim.VALID
        assert result.server is backend[server]


@pytest.mark.parametrize("text", ["A=s1; x=1; B=s2", "A=Z; x=1; B=Y", "B=s1; A=s2; x=1", "x=1; A=s1", "B=s1; x=1"])
def test_server_gets_none_of_the_cookies(persistence: Persistence, text: str):
    for _ in range(3):  # read, then remembered
        request = FakeRequest((text,))
        persistence.recognise(request)
        assert request.cookies == ("x=1",)


def stamp(persistence: Persistence, result: PersistenceResult, server: Server, is_bound: bool):
    response = RecordedResponse()
    mark = persistence.stamp_response(result, server, is_bound, FakeRequest(), response)
    return mark, response.values("set-cookie")


def test_new_client_gets_all_marks(backend: Backend, persistence: Persistence):
    result = persistence.recognise(FakeRequest(("x=1",)))
    mark, lines = stamp(persistence, result, backend["s1"], False)
    assert mark is Mark.INSERTED
    assert lines == ["A=s1; path=/", "B=s1; path=/"]


def test_bound_client_gets_no_mark(backend: Backend, persistence: Persistence):
    result = persistence.recognise(FakeRequest(("A=s1; B=s2",)))
    assert stamp(persistence, result, backend["s1"], True) == (Mark.NONE, [])


@pytest.mark.parametrize("turned", [False, True], ids=["", "the other way round"])
def test_two_inserted_cookies_of_one_name_are_refused(turned: bool):
    """They would overwrite each other with every response, as those of two backends would."""
    both = [Cookie("A", signed=False), Cookie("A", secret="a secret of some length")]
    with pytest.raises(ConfigError, match="cookie A"):
        Backend("web", [Server("s1", app)], persist=both[::-1] if turned else both)
