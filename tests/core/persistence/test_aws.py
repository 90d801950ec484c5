"""The cookies of AWS's load balancers: which options work together, and what they make of a cookie."""

from collections.abc import Callable

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.aws import alb, elb
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow

SECRET = "a secret of some length"


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


@pytest.mark.parametrize(
    "preset, names",
    [
        pytest.param(lambda: elb(secret=SECRET), ["AWSELB", "AWSELBCORS"], id="elb"),
        pytest.param(lambda: alb(secret=SECRET), ["AWSALB", "AWSALBCORS"], id="alb"),
    ],
)
def test_preset_without_an_application_is_a_cookie_and_one_for_other_sites(
    preset: Callable[[], Cookie], names: list[str]
):
    cookie = preset()
    assert isinstance(cookie, Cookie)
    assert isinstance(cookie.fallback, FallbackCookie)
    assert [cookie.name, cookie.fallback.name] == names
    assert (cookie.fallback.secure, cookie.fallback.samesite) == (True, "None")


@pytest.mark.parametrize(
    "preset, name, attributes",
    [
        pytest.param(lambda: elb(application="SID", secret=SECRET), "AWSELB", "elb", id="elb"),
        pytest.param(lambda: alb(application="SID", secret=SECRET), "AWSALBAPP-0", "own", id="alb"),
    ],
)
def test_preset_with_an_application_follows_its_cookie(preset: Callable[[], Follow], name: str, attributes: str):
    follow = preset()
    assert isinstance(follow, Follow)
    assert (follow.application, follow.cookie.name, follow.attributes) == ("SID", name, attributes)
