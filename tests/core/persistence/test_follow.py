"""What may be asked of a cookie that follows another, and of the presets that are made of it."""

from collections.abc import Callable

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.aws import alb, elb
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


@pytest.mark.parametrize(
    "preset, problem",
    [
        pytest.param(
            lambda: elb(duration=60, application="SID"), "elb: duration has no effect with", id="elb with both"
        ),
        pytest.param(lambda: elb(duration=-1), "elb: duration -1 is below 0", id="elb below 0"),
        pytest.param(lambda: elb(duration="soon"), "elb: duration: 'soon' is not a duration", id="elb no duration"),
        pytest.param(
            lambda: elb(application="AWSELB", secret=SECRET), "can't follow itself", id="elb following itself"
        ),
        pytest.param(lambda: elb(secret="short"), "shorter than 16 bytes", id="elb with a weak secret"),
        pytest.param(
            lambda: alb(duration=60, application="SID"), "alb: duration has no effect with", id="alb with both"
        ),
        pytest.param(lambda: alb(duration=0), "alb: duration 0 is not within 1..604800 seconds", id="alb for no time"),
        pytest.param(
            lambda: alb(duration="8d"), "alb: duration '8d' is not within 1..604800 seconds", id="alb too long"
        ),
        pytest.param(lambda: alb(duration="soon"), "alb: duration: 'soon' is not a duration", id="alb no duration"),
        *(
            pytest.param(lambda name=name: alb(application=name), f"{name!r} is reserved by the load", id=name)
            for name in ("AWSALB", "AWSALBAPP", "AWSALBAPP-0", "AWSALBTG", "AWSALBCORS")
        ),
    ],
)
def test_a_preset_that_cannot_work_is_refused(preset: Callable[[], object], problem: str):
    with pytest.raises(ConfigError) as refused:
        preset()
    (only,) = refused.value.problems
    assert problem in only


@pytest.mark.parametrize("duration", [1, "7d", "1h"])
def test_an_alb_s_duration(duration: int | str):
    alb(duration=duration, secret=SECRET)


def test_secret_of_the_environment_is_the_default_of_presets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    for preset in (elb, alb):
        with pytest.raises(ConfigError, match="needs a secret"):
            preset()
    monkeypatch.setenv("STICKY_SECRET", SECRET)
    assert [preset().name for preset in (elb, alb)] == ["AWSELB", "AWSALB"]  # type: ignore[union-attr]
