"""Our cookie follows the application's: it is set with it, has its attributes, counts only with it, and is deleted with
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sticky_asgi import Cookie, FallbackCookie, Follow
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.server.state import Health

if TYPE_CHECKING:
    from tests.faces.conftest import Face, RecordedResponse

SECRET = "a secret of some length"
OURS = Cookie("SRV", secret=SECRET)
PLAIN = Follow("SID", Cookie("SRV", signed=False))
GONE = "Expires=Thu, 01-Jan-1970 00:00:01 GMT"
NOW = 1_795_279_552  # Sat, 21 Nov 2026 16:45:52 GMT


def sets(*texts: str) -> list[tuple[str, str]]:
    return [("set-cookie", text) for text in texts]


def over(face: Face, persist: Follow = PLAIN, *app: str, balanced: str = "s2", **options):
    """Two servers with apps that set these cookies; balance chooses the server that is named."""
    servers = [face.server(name, headers=sets(*app)) for name in ("s1", "s2")]
    start = ("s1", "s2").index(balanced)
    return face.backend(*servers, persist=persist, balance=RoundRobin(start=start), clock=ManualClock(NOW), **options)


def ours(response: RecordedResponse, *app: str) -> list[str]:
    """Return the cookies that are set beside those of the app."""
    texts = response.all("set-cookie")
    assert texts[: len(app)] == [*app], "the app's own go out as they came"
    return texts[len(app) :]


ATTRIBUTES = [
    pytest.param("", "", id="none"),
    pytest.param("; Path=/shop", "; Path=/shop", id="path"),
    pytest.param("; Domain=.example.com", "; Domain=.example.com", id="domain"),
    pytest.param("; Secure", "; Secure", id="secure"),
    pytest.param("; HttpOnly", "; HttpOnly", id="httponly"),
    pytest.param("; Max-Age=600", "; Max-Age=600", id="max-age"),
    pytest.param("; Expires=Sun, 22 Nov 2026 00:00:00 GMT", "; Expires=Sun, 22 Nov 2026 00:00:00 GMT", id="expires"),
    pytest.param("; SameSite=None", "; SameSite=None", id="samesite"),
    pytest.param("; Priority=High; Partitioned", "; Priority=High; Partitioned", id="any other"),
    pytest.param("; path=/a_b;HTTPONLY ;secure", "; path=/a_b; HTTPONLY; secure", id="as they are written"),
    pytest.param('; Comment="a; b"', '; Comment="a; b"', id="a semicolon in quotes is one all the same"),
    pytest.param("; Path=/;", "; Path=/", id="a trailing semicolon"),
    pytest.param(" ; Path=/ ; ", "; Path=/", id="spaces"),
    pytest.param(";;Path=/;;", "; Path=/", id="nothing between semicolons"),
]


@pytest.mark.parametrize(("app", "copied"), ATTRIBUTES)
def test_cookie_is_set_with_the_attributes_of_the_applications(face: Face, app: str, copied: str):
    text = f"SID=1{app}"
    response = face.client(over(face, PLAIN, text))()
    assert ours(response, text) == [f"SRV=s2{copied}"]
    assert (response.letters, response.all("cache-control")) == ("NI", ["private"])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("SID=1", id="plain"),
        pytest.param('SID="a;b"', id="a semicolon in its value"),
        pytest.param("SID=a=b", id="an equals sign in its value"),
        pytest.param(" SID = 1", id="spaces around"),
    ],
)
def test_cookie_is_set_whatever_the_value_of_the_applications(face: Face, text: str):
    assert ours(face.client(over(face, PLAIN, text))(), text) == ["SRV=s2"]


@pytest.mark.parametrize(
    "text", ["SIDE=1; Path=/", "sid=1", "other=SID=1", "SID"], ids=["a longer name", "another case", "a value", "no ="]
)
def test_cookie_is_not_set_with_another_cookie(face: Face, text: str):
    response = face.client(over(face, PLAIN, text))()
    assert (ours(response, text), response.letters) == ([], "NN")


def test_without_the_applications_there_is_no_stickiness_and_no_cookie(face: Face):
    response = face.client(over(face))(cookie="a=1; SRV=s1")
    assert (response.server, ours(response)) == ("s2", [])
    assert (response.decision.claim, response.decision.reason) == (Claim.NONE, Reason.NO_COOKIE)
    assert response.seen is not None
    assert response.seen.cookies == ("a=1",)  # ours is taken out even so


def test_a_header_without_the_applications_is_not_remembered_as_one_with_it(face: Face):
    get = face.client(over(face, Follow("SID", OURS), "SID=1"))
    mark = ours(get(), "SID=1")[0].partition(";")[0]
    for _ in range(3):
        assert get(cookie=f"SID=1; {mark}").letters[0] == "V"
        assert get(cookie=mark).letters[0] == "N"


def test_both_cookies_together_lead_back(face: Face):
    get = face.client(over(face))
    for _ in range(3):
        response = get(cookie="SID=whatever; SRV=s1")
        assert (response.server, ours(response), response.letters) == ("s1", [], "VN")
        assert response.seen is not None
        assert response.seen.cookies == ("SID=whatever",)


def test_both_cookies_may_be_in_several_headers(face: Face):
    for joint in face.cookie_separators:
        response = face.client(over(face))(cookie=["SID=1", "SRV=s1"], joint=joint)
        assert (response.server, response.letters) == ("s1", "VN")


def test_cookie_lasts_as_long_as_the_applications(face: Face):
    response = face.client(over(face, PLAIN, "SID=1; Max-Age=600"))(cookie="SID=1; SRV=s1")
    assert ours(response, "SID=1; Max-Age=600") == ["SRV=s1; Max-Age=600"]
    assert response.decision.mark is Mark.UPDATED


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        pytest.param("SID=; Path=/shop; Max-Age=0", f"SRV=; {GONE}; Path=/shop", id="by Max-Age"),
        pytest.param("SID=x; Max-Age=-1; Domain=.a.example", f"SRV=; {GONE}; Domain=.a.example", id="below zero"),
        pytest.param(
            "SID=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly", f"SRV=; {GONE}; HttpOnly", id="by a date"
        ),
        pytest.param("SID=x; Expires=Sat, 21 Nov 2026 16:45:00 GMT", f"SRV=; {GONE}", id="by a date just past"),
        pytest.param("SID=; Path=/", f"SRV=; {GONE}; Path=/", id="by an empty value"),
    ],
)
def test_cookie_is_deleted_with_the_applications(face: Face, text: str, mark: str):
    response = face.client(over(face, PLAIN, text))(cookie="SID=1; SRV=s1")
    assert ours(response, text) == [mark]
    assert response.decision.mark is Mark.DELETED


def test_each_of_the_applications_has_one_of_ours_beside_it(face: Face):
    """An application that moves its cookie deletes it where it was."""
    texts = ["SID=; Path=/old; Max-Age=0", "SID=2; Path=/"]
    response = face.client(over(face, PLAIN, *texts))(cookie="SID=1; SRV=s1")
    assert ours(response, *texts) == [f"SRV=; {GONE}; Path=/old", "SRV=s1; Path=/"]
    assert response.decision.mark is Mark.UPDATED


def test_client_of_a_failed_server_gets_a_new_mark_with_our_own_attributes(face: Face):
    """The attributes of the application's cookie are not known when it is not set."""
    persist = Follow("SID", Cookie("SRV", signed=False, path="/shop", domain=".a.example"))
    backend = over(face, persist)
    backend["s1"].health = Health.DOWN
    response = face.client(backend)(cookie="SID=1; SRV=s1")
    assert ours(response) == ["SRV=s2; path=/shop; domain=.a.example"]
    assert response.letters == "DI"


def test_cookie_that_the_application_sets_under_our_name_is_replaced(face: Face):
    response = face.client(over(face, PLAIN, "SRV=mine", "SID=1"))()
    assert response.all("set-cookie") == ["SID=1", "SRV=s2"]


def test_cookie_that_the_application_sets_under_our_name_is_preserved(face: Face):
    persist = Follow("SID", Cookie("SRV", signed=False, preserve=True))
    response = face.client(over(face, persist, "SRV=mine", "SID=1"))()
    assert response.all("set-cookie") == ["SRV=mine", "SID=1"]
    assert response.decision.mark is Mark.PASSED


def test_server_without_an_id_deletes_the_cookie(face: Face):
    sorry = face.server("sorry", backup=True, headers=sets("SID=1; Path=/shop"))
    backend = face.backend(face.server("s1"), sorry, persist=PLAIN)
    backend["s1"].health = Health.DOWN
    get = face.client(backend)
    assert ours(get(), "SID=1; Path=/shop") == [f"SRV=; {GONE}; Path=/shop"]
    face.apps["sorry"].headers = ()
    assert ours(get(cookie="SID=1; SRV=s1")) == [f"SRV=; {GONE}; path=/"]
    assert ours(get(cookie="SID=1")) == []


def test_fallback_has_the_same_value_and_attributes_of_its_own(face: Face):
    fallback = FallbackCookie("SRV-old", samesite=None, secure=True, httponly=True)
    persist = Follow("SID", Cookie("SRV", signed=False, fallback=fallback))
    text = "SID=1; Path=/; SameSite=None"
    get = face.client(over(face, persist, text))
    assert ours(get(), text) == ["SRV=s2; Path=/; SameSite=None", "SRV-old=s2; Path=/; HttpOnly; Secure"]
    assert get(cookie="SID=1; SRV-old=s1").server == "s1"


def test_cookie_with_its_own_attributes_has_its_own_lifetime(face: Face):
    persist = Follow("SID", Cookie("SRV", signed=False, max_age=60), attributes="own")
    text = "SID=1; Path=/shop; Max-Age=600"
    assert ours(face.client(over(face, persist, text))(), text) == ["SRV=s2; path=/; Max-Age=60"]
    two = ["SID=; Path=/old; Max-Age=0", "SID=2"]
    assert ours(face.client(over(face, persist, *two))(), *two) == ["SRV=s2; path=/; Max-Age=60"]


def test_cookie_with_its_own_attributes_and_an_old_key_is_replaced(face: Face):
    """With copied attributes it is not replaced: it would lose them."""
    old, new = "an old secret, long enough", "a new secret, long enough"

    def follow(*secrets: str, own: bool) -> Follow:
        return Follow("SID", Cookie("SRV", secret=secrets), attributes="own" if own else "copied")

    for own in (True, False):
        servers = [face.server("s1", headers=sets("SID=1"), stateless=True)]
        first = face.client(face.backend(*servers, persist=follow(old, own=own)))()
        mark = ours(first, "SID=1")[0].partition(";")[0]
        get = face.client(face.backend(face.server("s1", stateless=True), persist=follow(old, new, own=own)))
        response = get(cookie=f"SID=1; {mark}")
        assert response.decision.claim is Claim.VALID
        assert len(ours(response)) == own


def test_cookie_behind_a_persistence_that_binds_is_still_set_and_deleted(face: Face):
    servers = [face.server(name, headers=sets("SID=1; Max-Age=60")) for name in ("s1", "s2")]
    get = face.client(face.backend(*servers, persist=[Cookie("A", signed=False), PLAIN]))
    response = get(cookie="A=s2; SID=1")
    assert response.server == "s2"
    assert ours(response, "SID=1; Max-Age=60") == ["SRV=s2; Max-Age=60"]
    response = get(
        cookie="A=s2; SRV=s1; SID=1"
    )  # it names another server, but what the application sets has ours beside
    assert response.server == "s2"
    assert ours(response, "SID=1; Max-Age=60") == ["SRV=s2; Max-Age=60"]
    assert get(cookie="SRV=s2; SID=1").server == "s2"


def test_cookie_behind_a_rule_is_not_set_alone(face: Face):
    backend = over(face, PLAIN, use_server={"s1": lambda request: True})
    face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    response = face.client(backend)(cookie="SID=1; SRV=s1")
    assert (response.server, ours(response), response.decision.claim) == ("s2", [], Claim.UNUSED)


def test_what_follows_needs_no_date_of_its_own(face: Face, recognised: list[PersistenceResult]):
    """It is written when the application's is, so a bound client is on the fast path."""
    persist = Follow("SID", Cookie("SRV", secret=SECRET, max_age=60), attributes="own")
    backend = over(face, persist, "SID=1")
    get = face.client(backend)
    mark = ours(get(), "SID=1")[0].partition(";")[0]
    face.apps["s2"].headers = ()
    assert isinstance(backend.clock, ManualClock)
    backend.clock.advance(3600)
    response = get(cookie=f"SID=1; {mark}")
    assert (response.letters, ours(response), recognised[-1].needs_no_mark) == ("VN", [], True)
