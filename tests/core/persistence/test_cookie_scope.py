"""Two cookies of one name overlap where some request would carry both (RFC 6265)."""

import pytest

from sticky_core.persistence.cookie_scope import CookieScope, CookieScopeIndex


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
    for first, second in ((one, other), (other, one)):
        index = CookieScopeIndex[str]()
        index.add("first", [first])
        assert index.overlapping("second", second) == (("first", first) if overlaps else None)


def test_the_cookies_of_an_owner_do_not_overlap_each_other():
    index = CookieScopeIndex[str]()
    index.add("one", [CookieScope("A"), CookieScope("B", "/b")])
    assert index.overlapping("one", CookieScope("A", "/a")) is None
    assert index.overlapping("other", CookieScope("B")) == ("one", CookieScope("B", "/b"))


def test_a_cookie_that_was_removed_overlaps_none_and_one_stored_twice_is_removed_once():
    index = CookieScopeIndex[str]()
    index.add("one", [CookieScope("A")])
    index.add("one", [CookieScope("A"), CookieScope("B")])
    index.add("two", [CookieScope("A")])
    index.discard("one", [CookieScope("A"), CookieScope("C")])
    assert index.overlapping("one", CookieScope("A")) == ("two", CookieScope("A"))
    assert index.overlapping("two", CookieScope("A")) is None
    assert index.overlapping("two", CookieScope("B")) == ("one", CookieScope("B"))


def test_in_a_forked_child_no_cookie_is_stored_until_its_owner_stores_it_again():
    index = CookieScopeIndex[str]()
    index.add("one", [CookieScope("A")])
    index.after_fork()
    assert index.overlapping("two", CookieScope("A")) is None
    index.add("one", [CookieScope("A")])
    assert index.overlapping("two", CookieScope("A")) == ("one", CookieScope("A"))
