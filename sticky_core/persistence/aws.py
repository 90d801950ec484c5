"""The stickiness of AWS load balancers, under their names: how their cookies are called, when they are written, and how
long they last. AWS encrypts its values; ours are signed digests, so a client can't read them or choose a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.options.unset import UNSET, NotGiven
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.signing import Secret

_WEEK = 7 * 86400
#: prefixes of names that an ALB reserves
_RESERVED = ("AWSALB", "AWSALBAPP", "AWSALBTG")


def elb(
    *,
    duration: Duration = 0,
    application: str | None = None,
    secret: Secret | Sequence[Secret] | NotGiven = UNSET,
) -> Cookie | Follow:
    """Return the cookie of a Classic Load Balancer: `AWSELB`, with `AWSELBCORS` for requests from other sites.

    - `duration`: the duration policy (cookie-expiration-period), in seconds or as text, counted from the first visit
      and not renewed. Browsers keep to it; it is not checked here. Default: 0, until the browser is closed.
    - `application`: the application policy (cookie-name): ours follows the application's cookie of this name, with its
      attributes, as AWS copies them. Default: none.
    - `secret`: as with `Cookie`.

    As at AWS, the cookie is neither HttpOnly nor Secure unless the application's is. Raises `ConfigError`.
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


def alb(
    *,
    duration: Duration | NotGiven = UNSET,
    application: str | None = None,
    secret: Secret | Sequence[Secret] | NotGiven = UNSET,
) -> Cookie | Follow:
    """Return the cookie of an Application Load Balancer: `AWSALB`, with `AWSALBCORS` for requests from other sites.
    Each response sets both.

    - `duration`: for how long a client may stay away and is still recognised
      (stickiness.lb_cookie.duration_seconds), 1 second to 7 days. Default: one day. The date travels in the value;
      browsers keep the cookies for seven days whatever it is.
    - `application`: application-based stickiness (app_cookie.cookie_name): `AWSALBAPP-0` is written with the
      application's cookie of this name, without its attributes, for seven days. A request has to carry both; of the
      application's cookie only the name matters. Default: none.
    - `secret`: as with `Cookie`.

    Raises `ConfigError`.
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
            yield f"alb: duration has no effect with application: the cookie counts as long as {application} does"
        yield from (
            f"alb: {problem}" for problem in problems_of_duration("duration", duration, at_least=1, at_most=_WEEK)
        )
    if application is not None and application.startswith(_RESERVED):
        yield f"alb: application {application!r} is reserved by the load balancer: name the application's own cookie"
