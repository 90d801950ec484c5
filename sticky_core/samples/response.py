"""A sample of a response is a part of its head that holds a key, such as a session id that a server has made: in a
cookie, a header, or the Location. HAProxy's `res.cook`, `res.hdr`.

A sample of a response is a callable, `ResponseHead -> key | None`, so a function of the user's is as good as one from
here. Samples of its body are in `response_body`, and have their names here too.
"""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.http import cookies
from sticky_core.http.messages import ResponseHead
from sticky_core.samples import request as samples
from sticky_core.samples.response_body import BodySample, body_param, json_field, sse_endpoint
from sticky_core.samples.values import Key, path_parameter, pick_value, query_parameter

__all__ = [
    "BodySample",
    "Sample",
    "body_param",
    "cook",
    "hdr",
    "json_field",
    "path_param",
    "sse_endpoint",
    "url_param",
]

Sample = Callable[[ResponseHead], Key | None]


@dataclass(frozen=True, slots=True)
class cook:
    """The value to which the response sets the cookie called `name`; the last, if there are several (HAProxy)."""

    name: str

    def __post_init__(self) -> None:
        if not cookies.is_name(self.name):
            raise ConfigError(f"res.cook({self.name}): this can't be the name of a cookie")

    def __call__(self, response: ResponseHead) -> str | None:
        text = self._last_text(response)
        return cookies.set_cookie_value(text) if text is not None else None

    def ends(self, response: ResponseHead, now: float) -> bool:
        """Return whether the response deletes the cookie, as a logout does; `now` in seconds since the epoch."""
        text = self._last_text(response)
        return text is not None and cookies.deletes(text, now)

    def _last_text(self, response: ResponseHead) -> str | None:
        if not response.sets_cookies:
            return None
        texts = [
            text for text in response.set_cookies if self.name in text and cookies.set_cookie_name(text) == self.name
        ]
        return texts[-1] if texts else None


@dataclass(frozen=True, slots=True)
class hdr:
    """One value of the headers called `name`; commas separate values. `number` is 1 for the first, -1 (default) for
    the last.
    """

    name: str
    number: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", samples.hdr(self.name, self.number).name)

    def __call__(self, response: ResponseHead) -> str | None:
        return pick_value(response.header(self.name), self.number)


@dataclass(frozen=True, slots=True)
class url_param:
    """The value of a parameter in the query of the Location."""

    name: str

    def __post_init__(self) -> None:
        samples.url_param(self.name)

    def __call__(self, response: ResponseHead) -> str | None:
        return query_parameter(_location(response).partition("#")[0].partition("?")[2], self.name)


@dataclass(frozen=True, slots=True)
class path_param:
    """The value of a parameter of the path of the Location, as in `/cart;jsessionid=abc`."""

    name: str

    def __post_init__(self) -> None:
        samples.path_param(self.name)

    def __call__(self, response: ResponseHead) -> str | None:
        return path_parameter(_location(response).partition("#")[0].partition("?")[0], self.name)


def _location(response: ResponseHead) -> str:
    return next(iter(response.header("location")), "")
