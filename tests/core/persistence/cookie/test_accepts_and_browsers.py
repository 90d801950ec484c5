"""What clients keep of an accepted cookie and of ours: they tell cookies apart in different ways."""

from collections.abc import Callable, Sequence

import pytest

from sticky_core.http import cookies
from sticky_core.persistence import foreign
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.persistence import Persist
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import NEW, NOW, OLD, build

HOST = "shop.example"
PLAIN = Cookie("OLD", signed=False)
DELETED = "Expires=Thu, 01-Jan-1970 00:00:01 GMT"


def servers_at_addresses() -> list[Server]:
    return [Server(name, f"http://127.0.0.1:{port}") for name, port in (("r1", 8001), ("r2", 8002))]


def engine_of(cookie: Persist, servers: Sequence[Server]) -> CookieEngine:
    engine = build(cookie, servers)  # type: ignore[arg-type]
    assert isinstance(engine, CookieEngine)
    return engine


def by_rfc6265(name: str, given: dict[str, str]) -> object:
    """A cookie of the host and one of its domain are the same."""
    return name, given.get("path", "/"), given.get("domain", HOST).lower().removeprefix(".")


def by_rfc6265bis(name: str, given: dict[str, str]) -> object:
    return *by_rfc6265(name, given), "domain" in given  # type: ignore[misc]


def by_partition(name: str, given: dict[str, str]) -> object:
    return *by_rfc6265bis(name, given), "partitioned" in given  # type: ignore[misc]


class Client:
    """A client at `HOST` that keeps its cookies by `identify`."""

    def __init__(self, identify: Callable[[str, dict[str, str]], object]) -> None:
        self._identify = identify
        self.jar: dict[object, tuple[str, str]] = {}

    def take(self, texts: Sequence[str]) -> None:
        for text in texts:
            name = cookies.set_cookie_name(text) or ""
            identity = self._identify(name, dict(cookies.attributes(text)))
            self.jar.pop(identity, None)
            if not cookies.deletes(text, NOW):
                self.jar[identity] = name, cookies.set_cookie_value(text)

    def request(self) -> FakeRequest:
        return FakeRequest(["; ".join(f"{name}={value}" for name, value in self.jar.values())], secure=True)


CHANGES = {
    "a dot before the domain": ({"domain": ".shop.example"}, {"domain": HOST}),
    "a domain in upper case": ({"domain": "Shop.Example"}, {"domain": HOST}),
    "the last of several domains": ({"domain": ["a.example", HOST]}, {"domain": HOST}),
    "a path as further attribute": ({"attr": "Path=/a"}, {"path": "/a"}),
    "the domain of the host": ({"domain": HOST}, {}),
    "no domain any more": ({}, {"domain": HOST}),
    "partitioned": ({}, {"partitioned": True, "samesite": "None"}),
    "partitioned no more": ({"partitioned": True, "secure": True}, {}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("identify", [by_rfc6265, by_rfc6265bis, by_partition])
@pytest.mark.parametrize("before, after", CHANGES.values(), ids=CHANGES)
def test_client_has_our_cookie_alone_afterwards(
    before: dict[str, object], after: dict[str, object], identify: Callable[[str, dict[str, str]], object]
):
    servers, client = servers_at_addresses(), Client(identify)
    old = Cookie("SRV", signed=False, **before)  # type: ignore[arg-type]
    response = RecordedResponse()
    former = engine_of(old, servers)
    former.stamp_response(former.recognise(FakeRequest()), servers[1], False, FakeRequest(), response)
    client.take(response.set_cookies)
    engine = engine_of(Cookie("SRV", secret=NEW, accepts=[old], **after), servers)  # type: ignore[arg-type]
    for reason in (Reason.ACCEPTED, Reason.BOUND):
        request, response = client.request(), RecordedResponse()
        result = engine.recognise(request)
        assert (result.claim, result.reason, result.server) == (Claim.VALID, reason, servers[1])
        engine.stamp_response(result, servers[1], True, request, response)
        client.take(response.set_cookies)
        ((name, value),) = client.jar.values()
        assert name == "SRV" and value.startswith("r2.")


def stamped(cookie: Persist, sent: str, *sets: str) -> list[str]:
    """Return what the response to a request with the cookies `sent` sets, if the app sets the cookies `sets`."""
    servers, response = servers_at_addresses(), RecordedResponse()
    engine = engine_of(cookie, servers)
    for text in sets:
        response.add("set-cookie", text)
    request = FakeRequest([sent])
    result = engine.recognise(request)
    assert result.server is servers[1]
    engine.stamp_response(result, servers[1], True, request, response)
    return response.set_cookies


def test_cookie_that_is_accepted_in_several_forms_is_deleted_once():
    accepts: list[Persist] = [
        PLAIN,
        Cookie("OLD", secret=OLD),
        foreign.of_backend("shop", Cookie("OLD", secret=OLD)),
        foreign.table("OLD", {"a": "r1"}, path="/"),
        Cookie("OLD", signed=False, path="/a"),
    ]
    *deletions, ours = stamped(Cookie("NEW", secret=NEW, accepts=accepts), "OLD=r2")
    assert deletions == [f"OLD=; {DELETED}; path=/", f"OLD=; {DELETED}; path=/a"] and ours.startswith("NEW=r2.")


@pytest.mark.parametrize(
    "sets, is_deleted",
    [
        pytest.param("OLD=own; Path=/", False, id="the same"),
        pytest.param("OLD=own; Domain=shop.example; Path=/", False, id="some clients take it for the same"),
        pytest.param("OLD=own", False, id="with the path of the request"),
        pytest.param("OLD=own; Path=/a", True, id="under another path"),
        pytest.param("OTHER=own; Path=/", True, id="another"),
    ],
)
def test_cookie_that_the_app_sets_under_an_accepted_name_stays(sets: str, is_deleted: bool):
    texts = stamped(Cookie("NEW", secret=NEW, accepts=[PLAIN]), "OLD=r2", sets)
    assert (texts[0], f"OLD=; {DELETED}; path=/" in texts) == (sets, is_deleted)


def test_old_cookie_is_deleted_before_ours_that_follows_one_of_the_app():
    follow = Follow("SID", Cookie("NEW", secret=NEW, accepts=[Cookie("NEW", signed=False, path="/a")]))
    sid, deletion, ours = stamped(follow, "SID=1; NEW=r2", "SID=1; Domain=shop.example")
    assert sid.startswith("SID=1") and deletion == f"NEW=; {DELETED}; path=/a" and ours.startswith("NEW=r2.")


def test_request_is_counted_once_if_its_response_is_stamped_twice():
    servers = servers_at_addresses()
    engine = engine_of(Cookie("NEW", secret=NEW, accepts=[PLAIN]), servers)
    assert engine.accepted is not None
    for text, counted in (("OLD=r2", (1, 0)), ("OLD=r9", (1, 1))):
        request = FakeRequest([text])
        result = engine.recognise(request)
        for _ in range(2):
            assert engine.stamp_response(result, servers[1], result.is_bound, request, RecordedResponse()) in Mark
        (count,) = engine.accepted.counts()
        assert (count.honoured, count.unknown) == counted


def test_app_without_its_cookie_does_not_get_an_accepted_one():
    prefixed = Cookie("APP", mode="prefix", signed=False)
    engine = engine_of(Follow("SID", Cookie("NEW", secret=NEW, accepts=[PLAIN, prefixed])), servers_at_addresses())
    request = FakeRequest(["OLD=r2; APP=r2~abc"])
    assert engine.recognise(request).claim is Claim.NONE
    assert request.cookies == ("APP=abc",)
