"""What may be asked of a route, and that no text makes it work for long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.route import Route
from sticky_core.samples.request import cook
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def claimed(text: object, *routes: str, separator: str = ".") -> str | None:
    """Return the server that a request with this sample is bound to."""
    servers = [Server(f"s{number}", app, cookie=route) for number, route in enumerate(routes)]
    route = Route(lambda request: text, separator=separator)  # type: ignore[arg-type, return-value]
    server = route.build("web", servers, ManualClock()).recognise(FakeRequest()).server
    return server.config.cookie if server is not None else None


@pytest.mark.parametrize(
    "text, routes, meant",
    [
        pytest.param("abc.dc1.web", ["web", "dc1.web"], "dc1.web", id="the longest route"),
        pytest.param("abc.dc2.web", ["web", "dc1.web"], "web", id="a shorter one where that is none"),
        pytest.param("dc1.web", ["web", "dc1.web"], "dc1.web", id="the whole text"),
        pytest.param("abc.web.dc1", ["web"], None, id="not in the middle"),
        pytest.param(".web", ["web"], "web", id="behind nothing"),
        pytest.param("x" * 100_000 + ".web", ["web"], "web", id="a long identifier"),
        pytest.param("." * 100_000, ["web"], None, id="nothing but separators"),
        pytest.param(b"abc.web", ["web"], "web", id="bytes"),
        pytest.param(7, ["7"], "7", id="a number"),
        pytest.param("", ["web"], None, id="empty"),
        pytest.param('""', ["web"], None, id="quotes around nothing"),
        pytest.param(None, ["web"], None, id="no key"),
    ],
)
def test_server_of_a_route(text: object, routes: list[str], meant: str | None):
    assert claimed(text, *routes) == meant


@given(
    text=st.text("ab.", max_size=12), routes=st.lists(st.text("ab.", min_size=1, max_size=4), unique=True, max_size=5)
)
def test_longest_route_at_the_end_behind_a_separator_counts(text: str, routes: list[str]):
    ends = [text, *(text[at + 1 :] for at, character in enumerate(text) if character == ".")]
    expected = next((end for end in ends if end in routes), None)
    assert claimed(text, *routes) == expected


def test_only_the_end_of_a_text_that_could_be_a_route_is_searched():
    class Text(str):
        looked_at = 0

        def __getitem__(self, at: object) -> str:
            Text.looked_at += 1
            return super().__getitem__(at)  # type: ignore[index]

    assert claimed(Text("." * 100_000), "web") is None
    assert 0 < Text.looked_at < 10


def test_request_without_a_known_route_is_not_bound():
    at_work = Route(cook("JSESSIONID")).build("web", [Server("s1", app)], ManualClock())
    assert at_work.recognise(FakeRequest()).claim is Claim.NONE
    assert at_work.recognise(FakeRequest(("JSESSIONID=abc.s2",))).claim is Claim.INVALID


def test_routes_are_values():
    sample = cook("JSESSIONID")
    assert Route(sample) == Route(cook("JSESSIONID"))
    assert hash(Route(sample)) == hash(Route(cook("JSESSIONID")))
    assert Route(sample) != Route(sample, separator="!")
    assert repr(Route(sample)) == "Route(samples=(cook(name='JSESSIONID'),), separator='.')"


@pytest.mark.parametrize(
    "samples, separator, problem",
    [
        pytest.param([], ".", "route: there are no samples", id="nowhere"),
        pytest.param(
            ["JSESSIONID"], ".", "route: 'JSESSIONID' is no sample: pass a callable", id="a name for a sample"
        ),
        pytest.param([cook("a")], "", "route: separator is empty", id="no separator"),
    ],
)
def test_what_cannot_work_is_refused(samples: list[object], separator: str, problem: str):
    with pytest.raises(ConfigError) as refused:
        Route(*samples, separator=separator)  # type: ignore[arg-type]
    (only,) = refused.value.problems
    assert only.startswith(problem)
