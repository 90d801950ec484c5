"""How many cookies of a request are read: one with more is served like that of a client without a mark."""

from __future__ import annotations

import pytest

from sticky_core.http.cookies import MAX_CANDIDATES, MAX_HEADERS, MAX_LENGTH
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.persistence.signing import Signing
from sticky_core.persistence.stick.config import Stick
from sticky_core.persistence.token import Token
from sticky_core.samples.request import cook
from tests.faces.conftest import Client, Face

SECRETS = ["the secret of last year", "the secret of this year"]
SIGNED = Cookie("SRV", secret=SECRETS)
OTHER = "x" * 100

PERSISTS = {
    "signed": SIGNED,
    "dated": Cookie("SRV", secret=SECRETS, maxidle=60),
    "plain": Cookie("SRV", signed=False, indirect=True),
    "prefix": Cookie("SRV", mode="prefix", secret=SECRETS),
    "fallback": Cookie("NEW", secret=SECRETS, fallback=FallbackCookie("SRV", secure=False)),
    "follow": Follow("SID", SIGNED),
    "nginx": NginxCookie("SRV"),
    "token": Token(cookie="SRV"),
    "stick": Stick.on(cook("SRV")),
}


def client(face: Face, persist: Persist) -> Client:
    headers = [("set-cookie", "SID=1")] if isinstance(persist, Follow) else []
    if isinstance(persist, Cookie) and persist.mode == "prefix":
        headers = [("set-cookie", "SRV=1")]
    return face.client(face.backend(face.server("s1", headers=headers), face.server("s2"), persist=persist))


def mark(get: Client) -> str:
    """Return the mark of a new client, as it sends it back."""
    texts = [text.partition(";")[0] for text in get().all("set-cookie")]
    return "; ".join(texts) or "SRV=1"


@pytest.mark.parametrize("persist", PERSISTS.values(), ids=PERSISTS)
def test_request_with_a_long_cookie_header_is_served_and_its_marks_are_not_read(face: Face, persist: Persist) -> None:
    get = client(face, persist)
    text = f"a={'x' * MAX_LENGTH}; {mark(get)}"
    for _ in range(2):
        response = get(cookie=text)
        assert (response.status, response.decision.claim) == (200, Claim.NONE)
        assert response.seen is not None and response.seen.cookies == (text,)
        if not isinstance(persist, Token | Stick):
            assert response.decision.reason is Reason.UNREAD


@pytest.mark.parametrize("persist", PERSISTS.values(), ids=PERSISTS)
def test_mark_at_the_beginning_of_a_long_cookie_header_is_read(face: Face, persist: Persist) -> None:
    get = client(face, persist)
    sent = mark(get)
    server = get(cookie=sent).server
    response = get(cookie=f"{sent}; a={'x' * MAX_LENGTH}")
    assert (response.server, response.decision.claim) == (server, Claim.VALID)


@pytest.mark.parametrize("persist", PERSISTS.values(), ids=PERSISTS)
@pytest.mark.parametrize("sent", [(OTHER,) * MAX_HEADERS, (OTHER * 100, OTHER * 100)], ids=["many", "long"])
@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_request_with_many_or_long_cookie_headers_is_served_and_its_marks_are_not_read(
    face: Face, persist: Persist, sent: tuple[str, ...]
) -> None:
    get = client(face, persist)
    texts = (mark(get), *sent)
    for _ in range(2):
        response = get(cookie=texts)
        assert (response.status, response.decision.claim) == (200, Claim.NONE)
        assert response.seen is not None and response.seen.cookies == texts
        if not isinstance(persist, Token | Stick):
            assert response.decision.reason is Reason.UNREAD


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_marks_in_as_many_cookie_headers_as_are_read_are_valid(face: Face) -> None:
    get = client(face, SIGNED)
    others = ("a=1",) * (MAX_HEADERS - 1)
    response = get(cookie=(*others, mark(get)))
    assert (response.server, response.decision.claim) == ("s1", Claim.VALID)
    assert response.seen is not None and response.seen.cookies == others


@pytest.mark.parametrize(
    ("forged", "claim"), [(MAX_CANDIDATES - 1, Claim.VALID), (MAX_CANDIDATES, Claim.INVALID)], ids=["a dozen", "more"]
)
@pytest.mark.parametrize("copies", [1, 10], ids=["once", "each several times"])
def test_a_dozen_marks_of_a_request_are_verified_and_all_are_removed(
    face: Face, forged: int, claim: Claim, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = client(face, SIGNED)
    valid = mark(get)
    verified: list[str] = []
    sign = Signing.sign

    def counted(signing: Signing, payload: str, key: int = 0) -> str:
        verified.append(payload)
        return sign(signing, payload, key)

    monkeypatch.setattr(Signing, "sign", counted)
    marks = [f"SRV={number}.{'A' * 43}" for number in range(forged) for _ in range(copies)]
    response = get(cookie="; ".join([*marks, valid, "a=1"]))
    assert len(verified) <= MAX_CANDIDATES * len(SECRETS)
    assert response.decision.claim is claim
    assert response.seen is not None and response.seen.cookies == ("a=1",)


@pytest.mark.parametrize("persist", [SIGNED, Stick.on(cook("SRV"))], ids=["cookie", "sample"])
def test_the_reason_says_that_the_cookies_were_not_read(face: Face, persist: Persist) -> None:
    get = face.client(face.backend(face.server("s1"), persist=persist), debug=True)
    assert "more cookies than are read" in get(cookie=f"a={'x' * MAX_LENGTH}; SRV=x").all("x-sticky")[0]
    for few in (None, "a=1"):
        assert "more cookies than are read" not in get(cookie=few).all("x-sticky")[0]


# -- the fields of HTTP/2


@pytest.mark.parametrize("persist", [None, SIGNED, Stick.on(cook("b"))], ids=["none", "cookie", "stick"])
@pytest.mark.parametrize("version", ["2", "2.0", "3"])
@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_app_gets_the_cookie_fields_of_http2_as_one_header(face: Face, persist: Persist | None, version: str) -> None:
    backend = face.backend(face.server("s1"), persist=persist or ())
    get = face.client(backend)
    for _ in range(2):
        response = get(cookie=("a=1", "b=2"), http_version=version)
        assert response.seen is not None and response.seen.cookies == ("a=1; b=2",)
        assert response.seen.decided is response.decided is not None


@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_mark_in_a_field_of_http2_is_read_and_removed(face: Face) -> None:
    get = client(face, SIGNED)
    sent = mark(get)
    for fields in (("a=1", sent, "b=2"), (sent, "a=1; b=2"), ("a=1", "b=2", *(sent,) * 100)):
        for _ in range(2):
            response = get(cookie=fields, http_version="2")
            assert (response.server, response.decision.claim) == ("s1", Claim.VALID)
            assert response.seen is not None and response.seen.cookies == ("a=1; b=2",)
    assert get(cookie=(sent, ""), http_version="2").letters == "VN"


@pytest.mark.parametrize("version", ["", "1.0", "1.1"])
@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_cookie_headers_of_http1_stay_apart(face: Face, version: str) -> None:
    get = client(face, SIGNED)
    response = get(cookie=("a=1", mark(get), "b=2"), http_version=version)
    assert response.seen is not None and response.seen.cookies == ("a=1", "b=2")
