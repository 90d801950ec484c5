"""Two cookies of one name overlap where some request would carry both (RFC 6265)."""

import pytest

from sticky_core.persistence.cookie_scope import CookieScope


@pytest.mark.parametrize(
    "one, other, overlaps",
    [
        pytest.param(CookieScope("A"), CookieScope("A"), True, id="the same"),
        pytest.param(CookieScope("A"), CookieScope("B"), False, id="other names"),
        pytest.param(CookieScope("A"), CookieScope("a"), False, id="names compare exactly"),
        pytest.param(CookieScope("A", "/shop"), CookieScope("A", "/"), True, id="a path inside another"),
        pytest.param(CookieScope("A", "/shop"), CookieScope("A", "/shop/"), True, id="a slash at the end"),
        pytest.param(CookieScope("A", "/shop"), CookieScope("A", "/shopping"), False, id="half a segment"),
        pytest.param(CookieScope("A", "/a"), CookieScope("A", "/b"), False, id="paths beside each other"),
        pytest.param(CookieScope("A", "/", ("a.example",)), CookieScope("A"), True, id="any host may be the domain's"),
        pytest.param(
            CookieScope("A", "/", (".A.example",)), CookieScope("A", "/", ("b.a.EXAMPLE",)), True, id="a subdomain"
        ),
        pytest.param(
            CookieScope("A", "/", ("a.example",)), CookieScope("A", "/", ("ba.example",)), False, id="half a label"
        ),
        pytest.param(
            CookieScope("A", "/", ("a.example", "b.example")),
            CookieScope("A", "/", ("c.example", "b.example")),
            True,
            id="one of several domains",
        ),
        pytest.param(CookieScope("A", is_inserted=False), CookieScope("A"), False, id="one is the application's"),
    ],
)
def test_cookies_overlap_where_a_request_would_carry_both(one: CookieScope, other: CookieScope, overlaps: bool):
    assert one.overlaps(other) is overlaps
    assert other.overlaps(one) is overlaps
