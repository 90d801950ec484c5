"""Settings are what a `Cookie` means with its defaults applied."""

import pytest

from sticky_core.persistence.cookie.config import FallbackCookie
from tests.core.persistence.cookie.marks import NEW, cookie


@pytest.mark.parametrize(
    "options, renew_after",
    [
        pytest.param({"maxidle": "8h"}, 3600, id="an eighth"),
        pytest.param({"maxidle": 400}, 60, id="a minute at least"),
        pytest.param({"maxidle": 100}, 50, id="half of it at most"),
        pytest.param({"max_age": "8h", "maxidle": "1d"}, 3600, id="of the shortest"),
        pytest.param({"expires": "8h"}, 3600, id="of expires as well"),
        pytest.param({"maxlife": "8h"}, 0, id="not of maxlife"),
        pytest.param({"maxidle": "8h", "refresh": "always"}, 0, id="not with refresh=always"),
        pytest.param({"maxlife": "8h", "refresh": "never"}, 0, id="not with refresh=never"),
        pytest.param({}, 0, id="not without a lifetime"),
    ],
)
def test_signed_mark_is_renewed_after_an_eighth_of_its_lifetime(options: dict[str, object], renew_after: float):
    assert cookie(secret=NEW, **options).settings().renew_after == renew_after


def test_plain_mark_is_not_renewed_by_an_eighth():
    assert cookie(signed=False, maxidle="8h").settings().renew_after == 0


@pytest.mark.parametrize(
    "options, is_dated",
    [
        ({}, False),
        ({"maxidle": "8h"}, True),
        ({"maxlife": "8h"}, True),
        ({"max_age": "8h"}, True),
        ({"max_age": "8h", "refresh": "never"}, False),
        ({"max_age": "8h", "signed": False}, False),
        ({"maxidle": "8h", "signed": False}, True),
    ],
    ids=str,
)
def test_value_has_dates_if_they_are_needed(options: dict[str, object], is_dated: bool):
    signing: dict[str, object] = {} if "signed" in options else {"secret": NEW}
    assert cookie(**signing, **options).settings().is_dated is is_dated


@pytest.mark.parametrize(
    "options, strips",
    [({}, True), ({"indirect": False}, False), ({"mode": "prefix", "indirect": True}, False)],
    ids=str,
)
def test_only_inserted_cookies_are_removed_from_requests(options: dict[str, object], strips: bool):
    assert cookie(secret=NEW, **options).settings().strips_requests is strips


def test_fallback_is_written_after_the_cookie():
    fallback = FallbackCookie("SRV-old", samesite=None, secure=False)
    first, second = cookie(secret=NEW, path="/shop", max_age=60, fallback=fallback).settings().written
    assert (first.name, first.samesite, first.secure) == ("SRV", "Lax", "auto")
    assert (second.name, second.samesite, second.secure) == ("SRV-old", None, False)
    assert (second.path, second.max_age) == (first.path, first.max_age) == ("/shop", 60)


@pytest.mark.parametrize(
    "secure, is_tls, is_secure",
    [("auto", True, True), ("auto", False, False), (True, False, True), (False, True, False)],
)
def test_cookie_is_secure_as_configured_or_as_the_request(secure: object, is_tls: bool, is_secure: bool):
    (written,) = cookie(secret=NEW, secure=secure).settings().written
    assert written.is_secure(is_tls=is_tls) is is_secure
    assert ("; Secure" in written.attribute_text(is_tls=is_tls)) is is_secure


def test_deletion_has_no_max_age():
    (written,) = cookie(signed=False, max_age=60).settings().written
    assert written.attribute_text(is_tls=False) == "; path=/; Max-Age=60"
    assert written.attribute_text(is_tls=False, is_deleted=True) == "; path=/"


def test_repr_shows_no_secret():
    text = repr(cookie(secret=NEW).settings()) + repr(cookie(signed=False, dynamic="a dynamic key").settings())
    assert NEW.decode() not in text
    assert "a dynamic key" not in text
