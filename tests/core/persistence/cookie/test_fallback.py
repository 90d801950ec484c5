"""One value under two names: both are written, and either is read."""

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse

SECRET = "a secret of some length"


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def pair(fallback: FallbackCookie, **options: object):
    """A pair over two servers, plain by default."""
    cookie = Cookie(**{"name": "SRV", "signed": False, "fallback": fallback} | options)  # type: ignore[arg-type]
    servers = [Server("s1", app), Server("s2", app)]
    return cookie.build("web", servers, ManualClock()), servers


FALLBACK = FallbackCookie("SRV-old")


@pytest.mark.parametrize(
    "fallback, options, secure, behind",
    [
        pytest.param(FALLBACK, {}, False, ("", ""), id="like the first"),
        pytest.param(
            FallbackCookie("SRV-old", samesite="None", secure=True),
            {},
            False,
            ("", "; Secure; SameSite=None"),
            id="for other sites, as AWS has it",
        ),
        pytest.param(
            FallbackCookie("SRV-old", samesite=None),
            {"samesite": "None", "secure": True},
            False,
            ("; Secure; SameSite=None", "; Secure"),
            id="for browsers that take None for Strict",
        ),
        pytest.param(
            FallbackCookie("SRV-old", secure="auto"), {}, True, ("", "; Secure"), id="secure where the client is"
        ),
        pytest.param(FallbackCookie("SRV-old", secure="auto"), {}, False, ("", ""), id="and not where it is not"),
        pytest.param(
            FallbackCookie("SRV-old", httponly=False), {"httponly": True, "max_age": 60}, False,
            ("; Max-Age=60; HttpOnly", "; Max-Age=60"), id="what is not its own is the first's",
        ),
        pytest.param(
            FallbackCookie("SRV-old", partitioned=True, secure=True),
            {},
            False,
            ("", "; Secure; Partitioned"),
            id="partitioned",
        ),
    ],
)  # fmt: skip
def test_both_are_written(fallback: FallbackCookie, options: dict[str, object], secure: bool, behind: tuple[str, str]):
    persistence, servers = pair(fallback, **options)
    response = RecordedResponse()
    assert (
        persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(secure=secure), response) is Mark.INSERTED
    )
    assert response.values("set-cookie") == [f"SRV=s1; path=/{behind[0]}", f"SRV-old=s1; path=/{behind[1]}"]


@pytest.mark.parametrize(
    "texts, server, rest",
    [
        pytest.param(["SRV=s1; SRV-old=s1; a=1"], "s1", ["a=1"], id="both"),
        pytest.param(["SRV=s1; a=1"], "s1", ["a=1"], id="the first"),
        pytest.param(["a=1; SRV-old=s1"], "s1", ["a=1"], id="the fallback"),
        pytest.param(["SRV-old=s2; SRV=s1"], "s1", [], id="the first counts before the fallback"),
        pytest.param(["SRV-old=s2", "SRV=s1; a=1"], "s1", ["", "a=1"], id="in whichever header it came"),
        pytest.param(["SRV=x; SRV-old=s2"], "s2", [], id="the fallback where the first names no server"),
        pytest.param(["SRV=; SRV-old=s2"], "s2", [], id="or is empty"),
        pytest.param(["SRV-older=s1; a=1"], None, ["SRV-older=s1; a=1"], id="neither"),
    ],
)
def test_either_cookie_is_read_and_the_server_gets_neither(texts: list[str], server: str | None, rest: list[str]):
    persistence, _ = pair(FALLBACK, indirect=True)
    for _ in range(3):  # read, then remembered
        request = FakeRequest(tuple(texts))
        result = persistence.recognise(request)
        assert (result.server.name if result.server else None) == server
        assert [text for text in request.cookies if text] == [text for text in rest if text]


def test_a_header_with_both_is_remembered():
    """They come together from most browsers, so this is the happy path."""
    persistence, _ = pair(FALLBACK)
    request = FakeRequest(("SRV=s1; SRV-old=s1",))
    persistence.recognise(request)
    assert persistence.fast_path.get(request.cookie_key) is not None


def test_both_are_deleted():
    cookie = Cookie("SRV", signed=False, fallback=FallbackCookie("SRV-old", secure=True))
    server = Server("s1", app, cookie="")
    persistence = cookie.build("web", [server], ManualClock())
    response = RecordedResponse()
    result = persistence.recognise(FakeRequest(("SRV-old=x",)))
    assert result.claim is Claim.INVALID
    assert persistence.stamp_response(result, server, False, FakeRequest(), response) is Mark.DELETED
    gone = "Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"
    assert response.values("set-cookie") == [f"SRV=; {gone}", f"SRV-old=; {gone}; Secure"]


def test_fallback_that_the_application_sets_is_replaced():
    persistence, servers = pair(FALLBACK)
    response = RecordedResponse()
    response.add("set-cookie", "SRV-old=mine")
    assert persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(), response) is Mark.INSERTED
    assert response.values("set-cookie") == ["SRV=s1; path=/", "SRV-old=s1; path=/"]


def test_signed_value_is_valid_under_either_name():
    persistence, servers = pair(FALLBACK, signed=True, secret=SECRET, maxidle=60)
    response = RecordedResponse()
    persistence.stamp_response(NO_COOKIE, servers[1], False, FakeRequest(), response)
    first, fallback = (text.partition(";")[0] for text in response.values("set-cookie"))
    assert first.partition("=")[2] == fallback.partition("=")[2]
    assert persistence.recognise(FakeRequest((fallback,))).server is servers[1]


def test_expires_is_the_date_until_which_browsers_keep_the_cookie():
    clock = ManualClock(1_700_000_000)
    cookie = Cookie("SRV", signed=False, expires="1h")
    server = Server("s1", app)
    persistence = cookie.build("web", [server], clock)
    for hour in (23, 24):
        response = RecordedResponse()
        persistence.stamp_response(NO_COOKIE, server, False, FakeRequest(), response)
        when = "Tue, 14 Nov 2023 23:13:20" if hour == 23 else "Wed, 15 Nov 2023 00:13:20"
        assert response.values("set-cookie") == [f"SRV=s1; Expires={when} GMT; path=/"]
        clock.advance(3600)


def test_a_signed_one_is_renewed_before_it_ends():
    clock = ManualClock(1_700_000_000)
    server = Server("s1", app)
    persistence = Cookie("SRV", secret=SECRET, expires="8h").build("web", [server], clock)
    response = RecordedResponse()
    persistence.stamp_response(NO_COOKIE, server, False, FakeRequest(), response)
    request = FakeRequest((response.values("set-cookie")[0].partition(";")[0],))
    for passed, marks in ((3596, 0), (8, 1)):  # an eighth of it
        clock.advance(passed)
        response = RecordedResponse()
        persistence.stamp_response(persistence.recognise(request), server, True, request, response)
        assert len(response.values("set-cookie")) == marks
