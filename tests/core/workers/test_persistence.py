"""What a worker makes of a request's key, and of a cookie that names a worker."""

from typing import Any

import pytest

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import SystemClock
from sticky_core.persistence.claim import Claim, Mark, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand
from sticky_core.workers.keys import KeyTable
from sticky_core.workers.persistence import LearnedKeys, RefreshedCookie
from tests.core.fakes import FakeRequest, RecordedResponse

W1, W2 = "w1@a", "w2@b"


class KeyRequest:
    """A request with a key. `replied`: whether the owner of its key was looked up on its behalf."""

    def __init__(self, key: str | None = "k", replied: bool = False) -> None:
        self._values = [key] if key is not None else []
        self._replied = replied

    def header(self, name: str) -> list[str]:
        return self._values

    def store_query(self, command: StoreCommand) -> Any:
        return "a reply" if self._replied else None


class FakeMembership:
    """Workers w1, which is this one, and w2, which runs as instance b."""

    def __init__(self) -> None:
        self.servers = [Server(f"w{number}", "http://127.0.0.1:1") for number in (1, 2)]
        self.own_server = self.servers[0]
        for server, instance in zip(self.servers, "ab", strict=True):
            server.instance = instance

    def refresh_peers(self) -> None: ...

    def live_peers(self) -> list[Server]:
        return self.servers[1:]


@pytest.fixture
def membership():
    return FakeMembership()


@pytest.fixture
def keys(membership):
    return KeyTable(membership, hdr("key"))


def build(keys, reports_lost=False):
    return LearnedKeys(keys, reports_lost).build("workers", (), SystemClock())


def result_of(persistence, request):
    result = persistence.recognise(request)
    server = result.server.name if result.server is not None else None
    return result.claim, result.reason, server, result.overrides_claim, bool(result.queries)


@pytest.mark.parametrize(
    "owner, request_, reports_lost, expected",
    [
        pytest.param(None, KeyRequest(None), False, (Claim.NONE, Reason.NO_KEY, None, False, False), id="no key"),
        pytest.param(None, KeyRequest(), False, (Claim.NONE, Reason.NO_ENTRY, None, False, True), id="an unknown key"),
        pytest.param(
            None,
            KeyRequest(replied=True),
            False,
            (Claim.NONE, Reason.NO_ENTRY, None, False, False),
            id="a key of an owner that has ended since it was looked up",
        ),
        pytest.param(W2, KeyRequest(), False, (Claim.VALID, Reason.BOUND, "w2", False, False), id="a peer's key"),
        pytest.param(W1, KeyRequest(), False, (Claim.VALID, Reason.BOUND, "w1", False, False), id="an own key"),
        pytest.param(
            "w2@older",
            KeyRequest(),
            False,
            (Claim.NONE, Reason.NO_ENTRY, None, False, True),
            id="the key of a worker that has ended",
        ),
        pytest.param(
            "w2@older",
            KeyRequest(),
            True,
            (Claim.INVALID, Reason.OTHER_INSTANCE, None, False, False),
            id="the same where lost sessions are reported",
        ),
        pytest.param(
            None,
            KeyRequest(),
            True,
            (Claim.NONE, Reason.NO_ENTRY, None, False, True),
            id="an unknown key where lost sessions are reported",
        ),
    ],
)
def test_key_is_recognised_by_its_owner(keys, owner, request_, reports_lost, expected):
    if owner is not None:
        keys.learn("k", owner)
    assert result_of(build(keys, reports_lost), request_) == expected


@pytest.mark.parametrize(
    "previous, expected",
    [
        pytest.param(None, (Claim.NONE, Reason.NO_ENTRY, "w1", True, False), id="a new key"),
        pytest.param("w2@older", (Claim.INVALID, Reason.OTHER_INSTANCE, "w1", True, False), id="of an ended worker"),
    ],
)
def test_first_request_after_a_claim_has_the_reason_of_the_claim(keys, previous, expected):
    persistence = build(keys)
    keys.record_claim("k", W1, previous)
    assert result_of(persistence, KeyRequest()) == expected
    assert result_of(persistence, KeyRequest()) == (Claim.VALID, Reason.BOUND, "w1", False, False)


def test_server_that_responds_owns_the_key_and_the_client_gets_no_mark(membership, keys):
    persistence = build(keys)
    request: Any = KeyRequest()
    result = persistence.recognise(request)
    assert persistence.stamp_response(result, membership.servers[1], False, request, RecordedResponse()) is Mark.NONE
    assert keys.last_owner("k") == W2


def test_peers_are_refreshed_before_a_cookie_is_read():
    order: list[str] = []
    server = Server("w1", "http://127.0.0.1:1")
    cookie = Cookie("W", signed=False)
    persistence = RefreshedCookie(cookie, lambda: order.append("refresh")).build("workers", (server,), SystemClock())
    result = persistence.recognise(FakeRequest(["W=w1"]))
    assert (result.claim, result.server, order) == (Claim.VALID, server, ["refresh"])
    assert persistence.recognise(FakeRequest()).reason is Reason.NO_COOKIE
    assert order == ["refresh"]  # no cookie, no refresh


def test_change_of_a_server_reaches_the_cookie_and_its_fast_path():
    server = Server("w1", "http://127.0.0.1:1")
    cookie = Cookie("W", secret="a-secret-of-sixteen-bytes-at-least")
    persistence = RefreshedCookie(cookie, lambda: None).build("workers", (server,), SystemClock())
    inner = persistence._persistence
    inner.fast_path = TwoGenerationCache(1)
    persistence.state_changed(server)
    assert persistence.fast_path is inner.fast_path
