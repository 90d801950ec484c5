"""Options of a cookie that follows another."""

from collections.abc import Callable

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow

SECRET = "a secret of some length"


def ours(name: str = "SRV", **options: object) -> Cookie:
    return Cookie(name, secret=SECRET, **options)  # type: ignore[arg-type]


COPIED = "it lasts as long as the application's"
WRITTEN = "it is set when the application's cookie is"


@pytest.mark.parametrize(
    "follow, problem",
    [
        pytest.param(lambda: Follow("a b", ours()), "a cookie's name is made of letters", id="name"),
        pytest.param(
            lambda: Follow("SID", ours(), attributes="all"),  # type: ignore[arg-type]
            "'all' is none of copied, elb, own",
            id="attributes",
        ),
        pytest.param(lambda: Follow("SID", ours(mode="prefix")), "has mode='prefix'", id="another mode"),
        pytest.param(lambda: Follow("SRV", ours()), "cookie SRV can't follow itself", id="itself"),
        pytest.param(
            lambda: Follow("old", ours(fallback=FallbackCookie("old"))),
            "cookie old can't follow itself",
            id="its fallback",
        ),
        pytest.param(lambda: Follow("SID", ours("__Host-SRV")), "names that begin with __Host-", id="a prefix"),
        pytest.param(
            lambda: Follow("SID", ours(fallback=FallbackCookie("__secure-S", secure=True))),
            "__Secure-",
            id="the prefix of a fallback",
        ),
        pytest.param(lambda: Follow("SID", ours(postonly=True)), f"postonly has no effect: {WRITTEN}", id="postonly"),
        pytest.param(lambda: Follow("SID", ours(refresh="always")), f"refresh has no effect: {WRITTEN}", id="refresh"),
        pytest.param(lambda: Follow("SID", ours(maxidle=60)), f"maxidle has no effect: {WRITTEN}", id="maxidle"),
        pytest.param(lambda: Follow("SID", ours(max_age=60)), f"max_age has no effect: {COPIED}", id="max_age"),
        pytest.param(lambda: Follow("SID", ours(expires=60)), f"expires has no effect: {COPIED}", id="expires"),
    ],
)
def test_what_cannot_work_is_refused(follow: Callable[[], Follow], problem: str):
    with pytest.raises(ConfigError) as refused:
        follow()
    (only,) = refused.value.problems
    assert only.startswith("follow ")
    assert problem in only


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Follow("SRV", ours(postonly=True, max_age=60))
    assert len(refused.value.problems) == 3


def test_cookie_with_its_own_attributes_may_have_a_lifetime():
    Follow("SID", ours("__Host-SRV", max_age=60, maxlife="8h"), attributes="own")


def test_scope_is_known_if_the_attributes_are_those_of_the_cookie():
    cookie = ours(path="/shop")
    assert Follow("SID", cookie, attributes="own").cookie_scopes() == cookie.cookie_scopes() != ()
    assert Follow("SID", cookie).cookie_scopes() == ()
