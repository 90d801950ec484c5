"""Persistence as the load balancers of AWS have it, with their options: the names of the cookies, when they are
written, and how long they last. AWS encrypts the values; ours are signed digests, so a client can't read them or choose
a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.options.spelling import named_options
from sticky_core.options.unset import UNSET, NotGiven
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.signing import Secret

_WEEK = 7 * 86400
#: an ALB reserves the names of cookies that begin with these
_RESERVED = ("AWSALB", "AWSALBAPP", "AWSALBTG")


@named_options
def elb(
    *,
    duration: Duration = 0,
    application: str | None = None,
    secret: Secret | Sequence[Secret] | NotGiven = UNSET,
) -> Cookie | Follow:
    """Return the cookie of a Classic Load Balancer: `AWSELB`, with `AWSELBCORS` for requests from other sites.

    - `duration`: how long the cookie lasts from the first visit on, in seconds or as text (duration policy,
      cookie-expiration-period). It is not renewed. Browsers delete the cookie then; its age is not checked here.
      Default: 0, until the browser is closed.
    - `application`: the name of the application's cookie that our cookie follows, with a copy of its attributes
      (application policy, cookie-name). Default: none.
    - `secret`: as with `Cookie`.

    As with AWS, `AWSELB` is neither HttpOnly nor Secure unless the application's cookie is.

    Raises `ConfigError` with every problem found.
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
        length = seconds(duration)
    except ValueError as error:
        yield f"elb: duration: {error}"
        return
    if length and application is not None:
        yield f"elb: duration has no effect with application: the cookie lasts as long as {application}"
    if length < 0:
        yield f"elb: duration {duration!r} is below 0; 0 is until the browser is closed"


@named_options
def alb(
    *,
    duration: Duration | NotGiven = UNSET,
    application: str | None = None,
    secret: Secret | Sequence[Secret] | NotGiven = UNSET,
) -> Cookie | Follow:
    """Return the cookie of an Application Load Balancer: `AWSALB`, with `AWSALBCORS` for requests from other sites.
    Each response sets both.

    - `duration`: how long after its last request a client is still recognised, in seconds or as text, from 1 second to
      7 days (stickiness.lb_cookie.duration_seconds). Default: one day. The value contains the date of the last request;
      browsers keep the cookies for seven days in any case.
    - `application`: the name of the application's cookie that our cookie, then called `AWSALBAPP-0`, follows
      (application-based stickiness, app_cookie.cookie_name). Our cookie has attributes of its own and lasts seven days.
      A request has to carry both cookies; the value of the application's does not matter. Default: none.
    - `secret`: as with `Cookie`.

    Raises `ConfigError` with every problem found.
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
            yield f"alb: duration has no effect with application: the cookie is valid as long as {application} is sent"
        yield from (
            f"alb: {problem}" for problem in problems_of_duration("duration", duration, at_least=1, at_most=_WEEK)
        )
    if application is not None and application.startswith(_RESERVED):
        yield f"alb: application {application!r} is reserved by the load balancer: name the application's own cookie"
