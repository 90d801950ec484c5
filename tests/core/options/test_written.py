"""Configurations in messages, as users write them."""

import pytest

from sticky_core.options.written import as_written
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.route import Route
from sticky_core.samples.request import cook, hdr, url_param

SECRET = "a secret of these tests"


@pytest.mark.parametrize(
    "value, text",
    [
        (Cookie("A", secret=SECRET, dynamic="KEY"), "Cookie('A', secret=..., dynamic=...)"),
        (Cookie("A", signed=False, mode="prefix"), "Cookie('A', mode='prefix', signed=False)"),
        (Cookie("A", signed=False, samesite=None), "Cookie('A', signed=False, samesite=None)"),
        (
            Follow("SID", Cookie("A", signed=False, fallback=FallbackCookie("B", httponly=False))),
            "Follow('SID', Cookie('A', signed=False, fallback=FallbackCookie('B', httponly=False)))",
        ),
        (NginxCookie("A", httponly=True, secure=False), "NginxCookie('A', httponly=True)"),
        (Route(cook("A"), hdr("X", 2), url_param("b")), "Route(cook('A'), hdr('x', 2), url_param('b'))"),
        (Route(cook("A"), separator="!"), "Route(cook('A'), separator='!')"),
        ("text", "'text'"),
        (Cookie, repr(Cookie)),
    ],
)
def test_only_what_differs_from_the_defaults_is_written_and_no_secret(value: object, text: str):
    assert as_written(value) == text
