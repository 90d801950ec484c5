"""Our own dialect of cookies, on both faces: signed by default, so that a client cannot name a server that it
was never given; with dates inside the signature, keys that change, and marks that name the instance they are
about.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend
    from tests.faces.conftest import Face

OLD, SECRET = "the secret of last year", "the secret of this year"
SIGNED = Cookie("SERVERID", secret=SECRET)
DATED = Cookie("SERVERID", secret=SECRET, maxidle=3600)
PREFIX = Cookie("JSESSIONID", secret=SECRET, mode="prefix")
SECOND = RoundRobin(start=1)  # the first new client goes to s2

LIFE = r"@[0-9a-f]{16}"
SIGNATURE = r"\.[A-Za-z0-9_-]{43}"


def two(
    face: Face,
    cookie: Cookie = SIGNED,
    *,
    name: str = "web",
    stateless: bool = False,
    clock: ManualClock | None = None,
) -> Backend:
    """s1 and s2; new clients begin with s2, so a client that gets s1 was recognised."""
    servers = [face.server("s1", stateless=stateless), face.server("s2", stateless=stateless)]
    return face.backend(*servers, name=name, persist=cookie, balance=SECOND, clock=clock or ManualClock())


def mark_of_s1(face: Face, backend: Backend) -> str:
    """Return what a client gets from s1: the second of two new clients."""
    get = face.client(backend)
    (response,) = [response for response in (get(), get()) if response.server == "s1"]
    return response.mark


# -- what is written


def test_first_response_carries_a_signed_mark_with_all_protecting_attributes(face: Face) -> None:
    response = face.client(two(face))()
    assert (response.status, response.server, response.letters) == (200, "s2", "NI")
    (cookie,) = response.all("set-cookie")
    assert re.fullmatch(rf"SERVERID=s2{LIFE}{SIGNATURE}; path=/; HttpOnly; SameSite=Lax", cookie)
    assert response.all("cache-control") == ["private"]


def test_returning_client_is_bound_without_a_new_mark_and_the_app_sees_none(face: Face) -> None:
    backend = two(face)
    get, mark = face.client(backend), mark_of_s1(face, backend)
    for _ in range(3):
        response = get(cookie=f"a=1; {mark}; b=2")
        assert (response.server, response.letters, response.all("set-cookie")) == ("s1", "VN", [])
        assert response.all("cache-control") == []
        assert response.seen is not None and response.seen.cookies == ("a=1; b=2",)
        assert (response.decision.claim, response.decision.reason) == (Claim.VALID, Reason.BOUND)


def test_debug_changes_nothing_but_the_header(face: Face) -> None:
    backend = two(face)
    get, mark = face.client(backend, debug=True), mark_of_s1(face, backend)
    response = get(cookie=mark)
    assert (response.server, response.letters, response.all("set-cookie")) == ("s1", "VN", [])
    assert len(response.all("x-sticky")) == 1


@pytest.mark.parametrize(
    "scheme, secure, attributes",
    [
        ("http", None, "; path=/; HttpOnly; SameSite=Lax"),
        ("https", None, "; path=/; HttpOnly; Secure; SameSite=Lax"),
        ("http", "auto", "; path=/; HttpOnly; SameSite=Lax"),
        ("https", "auto", "; path=/; HttpOnly; Secure; SameSite=Lax"),
        ("http", True, "; path=/; HttpOnly; Secure; SameSite=Lax"),
        ("https", False, "; path=/; HttpOnly; SameSite=Lax"),
    ],
)
def test_cookie_is_secure_over_tls_unless_configured_otherwise(
    face: Face, scheme: str, secure, attributes: str
) -> None:
    cookie = SIGNED if secure is None else replace(SIGNED, secure=secure)
    response = face.client(two(face, cookie))(scheme=scheme)
    assert response.all("set-cookie") == [response.mark + attributes]


@pytest.mark.parametrize(
    "cookie, attributes",
    [
        (replace(SIGNED, httponly=False, samesite=None), "; path=/"),
        (replace(SIGNED, samesite="Strict"), "; path=/; HttpOnly; SameSite=Strict"),
        (replace(SIGNED, samesite="None"), "; path=/; HttpOnly; Secure; SameSite=None"),
        (
            replace(SIGNED, partitioned=True),
            "; path=/; HttpOnly; Secure; SameSite=Lax; Partitioned",
        ),
        (replace(SIGNED, path="/shop"), "; path=/shop; HttpOnly; SameSite=Lax"),
        (
            replace(SIGNED, domain=["a.example", "b.example"]),
            "; path=/; domain=a.example; domain=b.example; HttpOnly; SameSite=Lax",
        ),
        (replace(SIGNED, max_age="8h"), "; path=/; Max-Age=28800; HttpOnly; SameSite=Lax"),
        (replace(SIGNED, attr="Priority=High"), "; path=/; HttpOnly; SameSite=Lax; Priority=High"),
        (replace(SIGNED, name="__Host-SERVERID"), "; path=/; HttpOnly; Secure; SameSite=Lax"),
        (replace(SIGNED, name="__Secure-SERVERID", path="/x"), "; path=/x; HttpOnly; Secure; SameSite=Lax"),
    ],
    ids=[
        "bare",
        "strict",
        "samesite-none",
        "partitioned",
        "path",
        "domains",
        "max-age",
        "attr",
        "host-name",
        "secure-name",
    ],
)
def test_attributes_are_written_in_one_order(face: Face, cookie: Cookie, attributes: str) -> None:
    response = face.client(two(face, cookie))()
    assert response.all("set-cookie") == [response.mark + attributes]


# -- keys that change


@pytest.mark.parametrize("cookie", [SIGNED, DATED, replace(SIGNED, opaque=True)], ids=["id", "dated", "opaque"])
def test_value_of_an_older_key_is_valid_and_replaced(face: Face, cookie: Cookie) -> None:
    before, during, after = (
        two(face, replace(cookie, secret=secret), stateless=True) for secret in (OLD, [OLD, SECRET], SECRET)
    )
    old = mark_of_s1(face, before)

    rotated = face.client(during)(cookie=old)
    assert (rotated.server, rotated.letters) == ("s1", "VU")
    new = rotated.mark
    assert new != old
    assert rotated.all("cache-control") == ["private"]

    again = face.client(during)(cookie=new)
    assert (again.server, again.letters, again.all("set-cookie")) == ("s1", "VN", [])

    kept = face.client(after)(cookie=new)
    assert (kept.server, kept.letters) == ("s1", "VN")
    lost = face.client(after)(cookie=old)
    assert (lost.server, lost.letters, lost.decision.reason) == ("s2", "II", Reason.FORGED)


def test_new_key_does_not_extend_maxlife(face: Face) -> None:
    clock = ManualClock()
    cookie = replace(SIGNED, maxlife=600)
    old = mark_of_s1(face, two(face, replace(cookie, secret=OLD), stateless=True, clock=clock))
    get = face.client(two(face, replace(cookie, secret=[OLD, SECRET]), stateless=True, clock=clock))
    clock.advance(500)
    rotated = get(cookie=old)
    assert rotated.letters == "VU"
    clock.advance(100)
    assert get(cookie=rotated.mark).letters == "VN"
    clock.advance(1)
    assert get(cookie=rotated.mark).letters == "OI"


# -- what is never honoured

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def respelled(value: str, number: int) -> str:
    """Another last character that base64 reads as the same signature: two of its bits have no meaning."""
    last = ALPHABET.index(value[-1])
    other = value[:-1] + ALPHABET[last & ~3 | (last + number) & 3]
    ours, theirs = (base64.urlsafe_b64decode(each.rpartition(".")[2] + "=") for each in (value, other))
    assert other != value and ours == theirs
    return other


FORGERIES: dict[str, Callable[[str], str]] = {
    "plain id": lambda value: value.partition("@")[0],
    "other server": lambda value: re.sub("(.)@", lambda last: chr(ord(last[1]) + 1) + "@", value, count=1),
    "longer id": lambda value: value.replace("@", "1@", 1),
    "other instance": lambda value: re.sub("@.", "@2", value, count=1),
    "no signature": lambda value: value.rpartition(".")[0],
    "empty signature": lambda value: value.rpartition(".")[0] + ".",
    "signature alone": lambda value: "." + value.rpartition(".")[2],
    "signature twice": lambda value: f"{value}.{value.rpartition('.')[2]}",
    "last character off": lambda value: value[:-1],
    "first character off": lambda value: value[1:],
    "half": lambda value: value[: len(value) // 2],
    "a dot": lambda value: ".",
    "empty": lambda value: "",
    "padding": lambda value: value + "=",
    "much padding": lambda value: value + "=" * 1000,
    "noise that base64 ignores": lambda value: value + "!!",
    "noise before the signature": lambda value: value.replace(".", ".!", 1),
    "first respelled": lambda value: respelled(value, 1),
    "second respelled": lambda value: respelled(value, 2),
    "third respelled": lambda value: respelled(value, 3),
    "standard base64": lambda value: value[:-1] + "+",
    "other case": lambda value: value.swapcase(),
    "a quote before it": lambda value: f'"{value}',
    "quoted twice": lambda value: f'""{value}""',
    "percent-encoded": lambda value: value.replace(".", "%2E"),
    "date added": lambda value: value.replace(".", "|ZVPxA.", 1),
    "life added": lambda value: value.replace(".", "@018bcfe568000000.", 1),
    "without life and dates": lambda value: f"{value.partition('@')[0]}.{value.rpartition('.')[2]}",
    "64 KB": lambda value: "A" * 65536,
    "64 KB after it": lambda value: value + "A" * 65536,
    "64 KB before the signature": lambda value: value.replace(".", "A" * 65536 + ".", 1),
    "64 KB of dots": lambda value: "." * 65536,
    "not ASCII": lambda value: "\xff\xfe\xe9" * 10,
    "not ASCII at its end": lambda value: value + "\xe9",
    "not ASCII before the signature": lambda value: value.replace(".", "\xe9.", 1),
    "UTF-8": lambda value: value + "é".encode().decode("latin-1"),
    "NUL": lambda value: value + "\0",
    "NUL first": lambda value: "\0" + value,
    "NUL in it": lambda value: value.replace(".", "\0.", 1),
    "DEL": lambda value: value + "\x7f",
    "vertical tab": lambda value: value + "\x0b",
}

forgeries = pytest.mark.parametrize("forge", FORGERIES.values(), ids=[*FORGERIES])


@forgeries
@pytest.mark.parametrize("cookie", [SIGNED, DATED, replace(SIGNED, opaque=True)], ids=["id", "dated", "opaque"])
def test_value_that_we_did_not_write_is_invalid_raises_nothing_and_is_replaced(
    face: Face, cookie: Cookie, forge: Callable[[str], str]
) -> None:
    backend = two(face, cookie)
    get = face.client(backend)
    name, _, value = mark_of_s1(face, backend).partition("=")
    assert forge(value) != value
    forged = get(cookie=f"a=1; {name}={forge(value)}")
    assert (forged.status, forged.server) == (200, "s2")
    assert forged.letters == "II"
    assert forged.seen is not None and forged.seen.cookies == ("a=1",)
    assert re.fullmatch(rf"SERVERID=\S+{SIGNATURE}", forged.mark)
    assert get(cookie=forged.mark).letters == "VN"
    assert get(cookie=f"{name}={value}").server == "s1", "and what we did write still is"


@pytest.mark.parametrize("cookie", [SIGNED, DATED, replace(SIGNED, opaque=True)], ids=["id", "dated", "opaque"])
def test_mark_in_quotes_as_pythons_clients_send_it_is_valid(face: Face, cookie: Cookie) -> None:
    backend = two(face, cookie)
    name, _, value = mark_of_s1(face, backend).partition("=")
    for _ in range(2):
        response = face.client(backend)(cookie=f'a=1; {name}="{value}"')
        assert (response.server, response.letters) == ("s1", "VN")
        assert response.seen is not None and response.seen.cookies == ("a=1",)


@forgeries
def test_forged_prefix_is_invalid_and_the_app_gets_its_own_value(face: Face, forge: Callable[[str], str]) -> None:
    backend = two(face, PREFIX)
    get = face.client(backend)
    for app in face.apps.values():
        app.headers = [("set-cookie", "JSESSIONID=abc")]
    value = mark_of_s1(face, backend).removeprefix("JSESSIONID=").removesuffix("~abc")
    forged = get(cookie=f"JSESSIONID={forge(value)}~abc")
    assert (forged.status, forged.server) == (200, "s2")
    assert forged.letters == "IR"
    assert forged.seen is not None and forged.seen.cookies == ("JSESSIONID=abc",)


@pytest.mark.parametrize("cookie", [SIGNED, DATED, replace(SIGNED, opaque=True)], ids=["id", "dated", "opaque"])
def test_mark_is_valid_only_for_its_backend_and_under_its_name(face: Face, cookie: Cookie) -> None:
    web = two(face, cookie, stateless=True)
    api = two(face, cookie, stateless=True, name="api")
    other = two(face, replace(cookie, name="OTHER"), stateless=True)
    value = mark_of_s1(face, web).partition("=")[2]
    assert face.client(two(face, cookie, stateless=True))(cookie=f"SERVERID={value}").letters == "VN"
    for elsewhere, name in ((api, "SERVERID"), (other, "OTHER")):
        response = face.client(elsewhere)(cookie=f"{name}={value}")
        assert (response.server, response.letters) == ("s2", "II")
        assert response.decision.reason in (Reason.FORGED, Reason.UNKNOWN)


def test_forged_mark_is_replaced_by_the_first_response_that_may_carry_one(face: Face) -> None:
    get = face.client(two(face, replace(SIGNED, postonly=True)))
    forged = "SERVERID=s1.forged"
    assert get(cookie=forged).letters == "IN"
    response = get(cookie=forged, method="POST")
    assert response.letters == "II"
    assert get(cookie=response.mark).letters == "VN"


def test_valid_mark_beside_a_forged_one_counts(face: Face) -> None:
    backend = two(face)
    mark = mark_of_s1(face, backend)
    for cookies in (["SERVERID=s1.forged", mark], [mark, "SERVERID=s1.forged"]):
        for joint in face.cookie_separators:
            response = face.client(backend)(cookie=cookies, joint=joint)
            assert (response.server, response.letters) == ("s1", "VN")
            assert response.seen is not None and response.seen.cookies == ()


# -- dates


def test_client_that_was_away_for_longer_than_maxidle_is_not_recognised(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, replace(SIGNED, maxidle="10m"), clock=clock)
    get, mark = face.client(backend), mark_of_s1(face, backend)
    assert re.fullmatch(rf"SERVERID=s1{LIFE}\|ZVPxA{SIGNATURE}", mark)
    clock.advance(600)
    assert get(cookie=mark).server == "s1"
    clock.advance(1)
    response = get(cookie=mark)
    assert (response.server, response.letters) == ("s2", "EI")
    assert (response.decision.claimed, response.decision.reason) == ("s1", Reason.EXPIRED)
    assert get(cookie=response.mark).letters == "VN"


def test_client_that_came_first_longer_ago_than_maxlife_is_not_recognised(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, replace(SIGNED, maxlife="10m"), clock=clock)
    get, mark = face.client(backend), mark_of_s1(face, backend)
    assert re.fullmatch(rf"SERVERID=s1{LIFE}\|ZVPxA\|ZVPxA{SIGNATURE}", mark)
    clock.advance(600)
    assert get(cookie=mark).letters == "VN", "nothing to renew: its end is fixed"
    clock.advance(1)
    response = get(cookie=mark)
    assert (response.server, response.letters) == ("s2", "OI")
    assert (response.decision.claimed, response.decision.reason) == ("s1", Reason.OLD)
    assert get(cookie=response.mark).letters == "VN"


def test_renewal_against_maxidle_does_not_lengthen_maxlife(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, replace(SIGNED, maxidle=400, maxlife=1000), clock=clock)
    get, mark = face.client(backend), mark_of_s1(face, backend)
    letters = ""
    for _ in range(5):
        clock.advance(200)
        response = get(cookie=mark)
        letters += response.letters
        mark = response.mark
    assert letters == "VU" * 5
    clock.advance(4)
    assert get(cookie=mark).letters == "OI"


@pytest.mark.parametrize("dates, letter", [({"maxidle": 3600}, "E"), ({"maxlife": 3600}, "O")])
def test_a_date_may_be_a_few_minutes_ahead_since_clocks_differ(face: Face, dates: dict[str, int], letter: str) -> None:
    cookie = replace(SIGNED, **dates)  # type: ignore[arg-type]  # both are durations
    for ahead, letters in ((300, "VN"), (304, f"{letter}I")):
        elsewhere = two(face, cookie, stateless=True, clock=ManualClock(1_700_000_000.0 + ahead))
        mark = mark_of_s1(face, elsewhere)
        here = two(face, cookie, stateless=True, clock=ManualClock(1_700_000_000.0))
        assert face.client(here)(cookie=mark).letters == letters


# -- when a client that stays is written to anew


@pytest.mark.parametrize("option", ["maxidle", "max_age"])
@pytest.mark.parametrize(
    "seconds, due",
    [(80_000, 10_000), (3600, 450), (480, 60), (240, 60), (100, 50), (10, 5)],
    ids=[
        "an eighth",
        "an eighth of an hour",
        "one minute",
        "at least a minute",
        "at most half",
        "half of little",
    ],
)
def test_a_mark_is_renewed_when_it_is_due(face: Face, option: str, seconds: int, due: int) -> None:
    clock = ManualClock()
    backend = two(face, replace(SIGNED, **{option: seconds}), clock=clock)  # type: ignore[arg-type]
    get, mark = face.client(backend), mark_of_s1(face, backend)
    assert re.fullmatch(rf"SERVERID=s1{LIFE}\|ZVPxA{SIGNATURE}", mark)
    clock.advance(due - 1)
    assert get(cookie=mark).letters == "VN"
    clock.advance(1)
    renewed = get(cookie=mark)
    assert (renewed.server, renewed.letters) == ("s1", "VU")
    assert get(cookie=renewed.mark).letters == "VN"
    assert get(cookie=mark).letters == "VU", "a mark that was replaced is still a mark"


def test_with_maxidle_and_max_age_the_shorter_decides(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, replace(SIGNED, maxidle=3600, max_age=800), clock=clock)
    get, mark = face.client(backend), mark_of_s1(face, backend)
    clock.advance(99)
    assert get(cookie=mark).letters == "VN"
    clock.advance(1)
    assert get(cookie=mark).letters == "VU"


@pytest.mark.parametrize("cookie", [SIGNED, DATED, replace(SIGNED, max_age=3600)], ids=["id", "maxidle", "max-age"])
def test_refresh_always_marks_each_response(face: Face, cookie: Cookie) -> None:
    backend = two(face, replace(cookie, refresh="always"))
    mark = mark_of_s1(face, backend)
    for _ in range(3):
        response = face.client(backend)(cookie=mark)
        assert (response.server, response.letters, response.mark) == ("s1", "VU", mark)


def test_refresh_never_leaves_max_age_to_run_out(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, replace(SIGNED, max_age=3600, refresh="never"), clock=clock)
    mark = mark_of_s1(face, backend)
    assert re.fullmatch(rf"SERVERID=s1{LIFE}{SIGNATURE}", mark), "no date, as no option reads it"
    clock.advance(3599)
    assert face.client(backend)(cookie=mark).letters == "VN"


def test_plain_max_age_alone_is_never_renewed(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, Cookie("SERVERID", signed=False, max_age=3600), clock=clock)
    mark = mark_of_s1(face, backend)
    assert mark == "SERVERID=s1"
    clock.advance(3599)
    assert face.client(backend)(cookie=mark).letters == "VN"


def test_refresh_never_with_maxidle_is_refused(face: Face) -> None:
    with pytest.raises(ConfigError, match="refresh='never' would let maxidle end sessions that are in use"):
        replace(DATED, refresh="never")


# -- values that do not contain the name of a server


@pytest.mark.parametrize(
    "cookie, value",
    [
        (Cookie("SERVERID", secret=SECRET, opaque=True), rf"[0-9a-f]{{32}}{LIFE}{SIGNATURE}"),
        (
            Cookie("SERVERID", secret=SECRET, opaque=True, maxidle=3600),
            rf"[0-9a-f]{{32}}{LIFE}\|ZVPxA{SIGNATURE}",
        ),
        (Cookie("SERVERID", secret=SECRET, opaque=True, signed=False), r"[0-9a-f]{32}"),
    ],
    ids=["signed", "dated", "plain"],
)
def test_opaque_mark_brings_the_client_back_without_naming_the_server(face: Face, cookie: Cookie, value: str) -> None:
    backend = two(face, cookie)
    mark = mark_of_s1(face, backend)
    assert re.fullmatch(f"SERVERID={value}", mark)
    assert face.client(backend)(cookie=mark).server == "s1"
    assert face.client(backend)(cookie="SERVERID=s1").letters == "II"
    respelled = two(face, replace(cookie, secret="another secret, as long"))
    assert mark_of_s1(face, respelled)[:30] != mark[:30]


def test_an_opaque_prefix_brings_the_client_back(face: Face) -> None:
    backend = two(face, replace(PREFIX, opaque=True))
    for app in face.apps.values():
        app.headers = [("set-cookie", "JSESSIONID=abc")]
    mark = mark_of_s1(face, backend)
    assert re.fullmatch(rf"JSESSIONID=[0-9a-f]{{32}}{LIFE}{SIGNATURE}~abc", mark)
    response = face.client(backend)(cookie=mark)
    assert response.server == "s1"
    assert response.seen is not None and response.seen.cookies == ("JSESSIONID=abc",)


def test_dynamic_ids_need_an_address(face: Face) -> None:
    """HAProxy makes dynamic ids from the address."""
    cookie = Cookie("SRV", signed=False, dynamic="s3cret")
    urls = [Server("s1", "http://10.0.0.1:8080"), Server("s2", "http://[::1]:8080")]
    face.backend(*urls, face.server("s3", cookie="three"), persist=cookie)

    servers = face.server("r1"), face.server("r2", cookie="two"), Server("s3", "unix:/run/app.sock")
    with pytest.raises(ConfigError) as raised:
        face.backend(*servers, persist=cookie)
    named = [re.findall(r"server (\w+) .*use opaque", problem) for problem in raised.value.problems]
    assert named == [["r1"], ["s3"]]


# -- several servers under one id, and servers without one


def test_first_usable_of_servers_that_share_an_id_gets_the_client(face: Face) -> None:
    servers = [face.server("s1", cookie="A"), face.server("s2"), face.server("bk", cookie="A", backup=True)]
    backend = face.backend(*servers, persist=SIGNED)
    get = face.client(backend)
    mark = get().mark
    assert get(cookie=mark).server == "s1"
    backend["s1"].state = "maint"
    response = get(cookie=mark)
    assert (response.server, response.letters, response.all("set-cookie")) == ("bk", "VN", [])
    backend["s1"].state = "ready"
    assert get(cookie=mark).server == "s1"
    backend["s1"].state = backend["bk"].state = "maint"
    response = get(cookie=mark)
    assert (response.server, response.letters) == ("s2", "DI")


def test_backup_sets_no_mark_and_deletes_the_one_of_the_client(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("sorry", backup=True), persist=SIGNED)
    get = face.client(backend)
    mark = get().mark
    backend["s1"].state = "maint"
    unknown = get()
    assert (unknown.server, unknown.letters, unknown.all("set-cookie")) == ("sorry", "NN", [])
    client = get(cookie=mark, scheme="https")
    assert (client.server, client.letters) == ("sorry", "DD")
    assert client.all("set-cookie") == [
        "SERVERID=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/; HttpOnly; Secure; SameSite=Lax"
    ]
    backend["s1"].state = "ready"
    assert get().server == "s1"


def test_a_backup_with_an_id_of_its_own_keeps_its_clients(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("bk", cookie="bk", backup=True), persist=SIGNED)
    get = face.client(backend)
    backend["s1"].state = "maint"
    mark = get().mark
    backend["s1"].state = "ready"
    assert get(cookie=mark).server == "bk"


# -- the application's own cookie


def test_signed_prefix_is_put_before_the_apps_value_and_removed_again(face: Face) -> None:
    backend = two(face, PREFIX)
    for app in face.apps.values():
        app.headers = [("set-cookie", "JSESSIONID=abc; Path=/x; HttpOnly")]
    response = face.client(backend)()
    (cookie,) = response.all("set-cookie")
    assert re.fullmatch(rf"JSESSIONID=s2{LIFE}{SIGNATURE}~abc; Path=/x; HttpOnly", cookie)
    mark = mark_of_s1(face, backend)
    again = face.client(backend)(cookie=f"a=1; {mark}")
    assert (again.server, again.letters, again.mark) == ("s1", "VR", mark)
    assert again.seen is not None and again.seen.cookies == ("a=1; JSESSIONID=abc",)


def test_a_client_cannot_name_a_server_by_a_prefix_of_its_own(face: Face) -> None:
    response = face.client(two(face, PREFIX))(cookie="JSESSIONID=s1~abc")
    assert (response.server, response.letters, response.decision.reason) == ("s2", "IN", Reason.FORGED)
    assert response.seen is not None and response.seen.cookies == ("JSESSIONID=abc",)


def test_rewritten_cookie_is_signed_and_ends_with_its_instance(face: Face) -> None:
    clock = ManualClock()
    backend = two(face, Cookie("SID", secret=SECRET, mode="rewrite", maxlife="10m"), clock=clock)
    for app in face.apps.values():
        app.headers = [("set-cookie", "SID=whatever; Path=/x")]
    mark = mark_of_s1(face, backend)
    assert re.fullmatch(rf"SID=s1{LIFE}\|ZVPxA\|ZVPxA{SIGNATURE}", mark)
    get = face.client(backend)
    face.apps["s1"].headers = face.apps["s2"].headers = ()
    clock.advance(600)
    bound = get(cookie=mark)
    assert (bound.server, bound.letters, bound.all("set-cookie")) == ("s1", "VN", [])
    assert bound.seen is not None and bound.seen.cookies == (mark,)
    clock.advance(1)
    old = get(cookie=mark)
    assert (old.server, old.letters, old.all("set-cookie")) == ("s2", "ON", [])


def test_a_passive_cookie_needs_no_secret(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    response = face.client(two(face, Cookie("SRV", mode="passive")))(cookie="SRV=s1")
    assert (response.server, response.letters) == ("s1", "VN")
    with pytest.raises(ConfigError, match="never signed"):
        Cookie("SRV", mode="passive", signed=True)


# -- replica lives


def process(face: Face, clock: ManualClock, kind: str) -> Backend:
    """What another process builds from the same configuration: two servers that have started."""

    def replica():
        return face.validated(face.app("replica"))

    match kind:
        case "replicas":
            servers = Server.replicas(replica, 2, prefix="s")
        case "apps":
            servers = [Server("s1", replica()), Server("s2", replica())]
        case _:
            servers = [Server("s1", replica(), stateless=True), Server("s2", replica(), stateless=True)]
    backend = face.backend(*servers, persist=SIGNED, clock=clock)
    face.client(backend)()
    return backend


@pytest.mark.parametrize("kind", ["replicas", "apps"])
def test_mark_of_another_instance_is_invalid_and_replaced(
    face: Face, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    before = process(face, clock, kind)
    mark = face.client(before)().mark
    clock.advance(1)
    after = process(face, clock, kind)
    caplog.clear()
    response = face.client(after)(cookie=mark)
    assert (response.status, response.letters) == (200, "II")
    assert response.decision.reason is Reason.OTHER_INSTANCE
    assert face.client(after)(cookie=response.mark).letters == "VN"
    assert not caplog.records, "we may well have succeeded it"


def test_mark_of_a_stateless_server_is_valid_after_its_process(face: Face) -> None:
    clock = ManualClock()
    mark = face.client(process(face, clock, "stateless"))().mark
    clock.advance(1)
    assert face.client(process(face, clock, "stateless"))(cookie=mark).letters == "VN"


def test_mark_of_a_later_instance_is_logged_once_as_of_another_process(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    ours = process(face, clock, "replicas")
    clock.advance(1)
    mark = face.client(process(face, clock, "replicas"))().mark
    caplog.clear()
    for _ in range(3):
        response = face.client(ours)(cookie=mark)
        assert (response.letters, response.decision.reason) == ("II", Reason.OTHER_INSTANCE)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("sticky_sessions", logging.WARNING)
    assert "backend web" in record.getMessage() and "StickyWorkers" in record.getMessage()


def test_other_instance_is_not_a_server_that_is_down(face: Face) -> None:
    """`unavailable="fail"` keeps clients from losing a session silently; with another instance it is lost."""
    clock = ManualClock()
    mark = face.client(process(face, clock, "apps"))().mark
    clock.advance(1)
    backend = face.backend(face.server("s1"), face.server("s2"), persist=SIGNED, unavailable="fail", clock=clock)
    response = face.client(backend)(cookie=mark)
    assert (response.status, response.letters) == (200, "II")


def test_redispatched_client_is_marked_with_the_server_that_responded(face: Face) -> None:
    backend = two(face)
    mark = mark_of_s1(face, backend)
    face.apps["s1"].raises = ServerFailure(Failure.REFUSED)
    get = face.client(backend)
    response = get(cookie=mark)
    assert (response.server, response.letters, response.decision.reason) == ("s2", "DI", Reason.FAILED)
    assert response.mark.startswith("SERVERID=s2@")
    assert get(cookie=response.mark).letters == "VN"
