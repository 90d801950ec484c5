"""The stickiness of AWS load balancers, by their names: what their cookies are called, when they are written, and how
long they last. AWS encrypts its values; ours are digests, signed, so nobody can read them or choose a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sticky_core.durations import Duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.options.unset import UNSET, NotGiven
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.signing import Secret

_WEEK = 7 * 86400
#: names that an ALB keeps for itself
_RESERVED = ("AWSALB", "AWSALBAPP", "AWSALBTG")


def elb(
    *,
    duration: Duration = 0,
    application: str | None = None,
    secret: Secret | Sequence[Secret] | NotGiven = UNSET,
) -> Cookie | Follow:
    """As a Classic Load Balancer: `AWSELB`, and beside it `AWSELBCORS`, which browsers send from other sites as well.

    `duration`: the duration policy (cookie-expiration-period). It counts from the first visit and is not refreshed;
    browsers keep to it, nobody checks it here. 0 (default) is as long as the browser is open. `application`: the
    application policy (cookie-name): ours follows the cookie of that name, with its attributes, as AWS copies them. As
    there, ours is neither HttpOnly nor Secure unless the application's is.

    `secret`: as with `Cookie`. Raises `ConfigError`.
    """
    raise_problems(_problems_of_elb(duration, application))
    cookie = Cookie(
        "AWSELB",
        secret=secret,
        opaque=True,
        httponly=False,
        secure=False,
        samesite=None,
        fallback=FallbackCookie("AWSELBCORS", secure=True, samesite="None"),
        max_age=duration if application is None and seconds(duration) else UNSET,
        refresh="never" if application is None else UNSET,
    )
    return cookie if application is None else Follow(application, cookie, attributes="elb")


def _problems_of_elb(duration: Duration, application: str | None) -> Iterator[str]:
    try:
        period = seconds(duration)
    except ValueError as error:
        yield f"elb: duration: {error}"
        return
    if period and application is not None:
        yield f"elb: duration has no effect with application: ours lasts as long as {application}"
    if period < 0:
        yield f"elb: duration {duration!r} is below 0, which is as long as the browser is open"


def alb(
    *,
    duration: Duration | NotGiven = UNSET,
    application: str | None = None,
    secret: Secret | Sequence[Secret] | NotGiven = UNSET,
) -> Cookie | Follow:
    """As an Application Load Balancer: `AWSALB`, and beside it `AWSALBCORS`, which browsers send from other sites as
    well; both with each answer.

    `duration`: for how long a client may stay away and is known again (stickiness.lb_cookie.duration_seconds): a second
    to seven days, by default one. It travels inside; browsers keep the cookies for seven days whatever it is.
    `application`: application-based stickiness (app_cookie.cookie_name): `AWSALBAPP-0` is written beside the cookie of
    that name, without its attributes, for seven days, and both have to come back; nothing but the name of the
    application's is looked at.

    `secret`: as with `Cookie`. Raises `ConfigError`.
    """
    raise_problems(_problems_of_alb(duration, application))
    if application is not None:
        cookie = Cookie(
            "AWSALBAPP-0", secret=secret, opaque=True, httponly=False, secure=False, samesite=None, expires=_WEEK
        )
        return Follow(application, cookie, attributes="own")
    return Cookie(
        "AWSALB",
        secret=secret,
        opaque=True,
        httponly=False,
        secure=False,
        samesite=None,
        fallback=FallbackCookie("AWSALBCORS", secure=True, samesite="None"),
        expires=_WEEK,
        maxidle="1d" if duration is UNSET else duration,
        refresh="always",
    )


def _problems_of_alb(duration: Duration | NotGiven, application: str | None) -> Iterator[str]:
    if duration is not UNSET:
        if application is not None:
            yield f"alb: duration has no effect with application: ours counts as long as {application} does"
        try:
            if not 1 <= seconds(duration) <= _WEEK:
                yield f"alb: duration {duration!r} is not within 1 second and 7 days"
        except ValueError as error:
            yield f"alb: duration: {error}"
    if application is not None and application.startswith(_RESERVED):
        yield f"alb: application {application!r} is a name that the load balancer keeps for itself: name the app's own"
