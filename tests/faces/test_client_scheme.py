"""Whether a client uses TLS: as the connection shows it, or as a trusted proxy reports it in X-Forwarded-Proto."""

from __future__ import annotations

import pytest

from sticky_core.http.forwarding import Forward
from sticky_core.persistence.aws import elb
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.stick.config import Stick
from sticky_core.persistence.token import Token
from sticky_core.samples.request import scheme
from tests.faces.conftest import Face, RecordedResponse

PROXY, CLIENT = "10.0.0.1", "192.0.2.7"
SECRET = "a secret of this test"
FALLBACK = FallbackCookie("OLD", secure="auto")


def response(face: Face, persist: Persist, reported: str, peer: str, **sent: str) -> RecordedResponse:
    server = face.server("s1", headers=[("set-cookie", "SID=1; Path=/")])
    backend = face.backend(server, persist=persist, forward=Forward(trusted_proxies=("10.0.0.0/8",)))
    headers = [("x-forwarded-proto", reported)] if reported else []
    return face.client(backend)(headers=headers, peer=peer, **sent)


def is_secure(response: RecordedResponse) -> list[bool]:
    """Whether each cookie of ours is Secure."""
    return ["; Secure" in text for text in response.all("set-cookie") if not text.startswith("SID=")]


@pytest.mark.parametrize(
    ("peer", "sent", "reported", "secure"),
    [
        (PROXY, "http", "https", True),
        (PROXY, "http", "http", False),
        (PROXY, "http", "", False),
        (PROXY, "https", "http", False),
        (PROXY, "https", "", True),
        ("", "http", "https", False),
        (CLIENT, "http", "https", False),
        (CLIENT, "https", "http", True),
    ],
)
def test_cookie_is_secure_if_a_trusted_proxy_reports_tls(
    face: Face, peer: str, sent: str, reported: str, secure: bool
) -> None:
    made = response(face, Cookie("SERVERID", secret=SECRET), reported, peer, scheme=sent)
    assert is_secure(made) == [secure]


@pytest.mark.parametrize(
    ("persist", "count"),
    [
        (Cookie("SERVERID", secret=SECRET, fallback=FALLBACK), 2),
        (Follow("SID", Cookie("SERVERID", secret=SECRET), attributes="own"), 1),
        (Token(cookie="TOKEN"), 1),
    ],
    ids=["fallback", "follow", "token"],
)
@pytest.mark.parametrize(("peer", "secure"), [(PROXY, True), (CLIENT, False)], ids=["proxy", "client"])
def test_every_cookie_of_ours_follows_the_proxys_report(
    face: Face, persist: Persist, count: int, peer: str, secure: bool
) -> None:
    assert is_secure(response(face, persist, "https", peer)) == [secure] * count


@pytest.mark.parametrize(("peer", "secure"), [(PROXY, True), (CLIENT, False)], ids=["proxy", "client"])
def test_fallback_of_a_copied_cookie_follows_it_too(face: Face, peer: str, secure: bool) -> None:
    follow = Follow("SID", Cookie("SERVERID", secret=SECRET, fallback=FALLBACK))
    assert is_secure(response(face, follow, "https", peer)) == [False, secure]


def test_cookies_with_fixed_attributes_do_not_follow_it(face: Face) -> None:
    assert is_secure(response(face, elb(secret=SECRET), "https", PROXY)) == [False, True]


def test_sample_of_the_scheme_is_what_the_proxy_reports(face: Face) -> None:
    stick = Stick.on(scheme)
    response(face, stick, "https", PROXY)
    assert [entry.key for entry in stick.table] == ["https"]
