"""Samples of answers: what is looked at in the head of one. A session identifier that a server hands out is seen here,
in a cookie, a header, or the address to which the client is sent on. HAProxy's `res.cook`, `res.hdr`.

A sample of an answer is a callable, `Reply -> key | None`, so a function of your own is as good as one from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sticky_core.errors import ConfigError
from sticky_core.http import cookies
from sticky_core.http.messages import ResponseHead
from sticky_core.samples import request as samples
from sticky_core.samples.request import Key, split_list

__all__ = ["Sample", "cook", "hdr", "path_param", "url_param"]

Sample = Callable[[ResponseHead], Key | None]


@dataclass(frozen=True, slots=True)
class cook:
    """The value to which a cookie called `name` is set, the last if there are several (HAProxy)."""

    name: str

    def __post_init__(self) -> None:
        if not cookies.is_name(self.name):
            raise ConfigError(f"res.cook({self.name}): this can't be the name of a cookie")

    def __call__(self, reply: ResponseHead) -> str | None:
        text = self._last(reply)
        return cookies.value_set(text) if text is not None else None

    def ends(self, reply: ResponseHead, now: float) -> bool:
        """Whether the cookie is deleted, a logout; `now` in seconds since the epoch."""
        text = self._last(reply)
        return text is not None and cookies.deletes(text, now)

    def _last(self, reply: ResponseHead) -> str | None:
        if not reply.sets_cookies:
            return None
        texts = [text for text in reply.set_cookies if self.name in text and cookies.set_name(text) == self.name]
        return texts[-1] if texts else None


@dataclass(frozen=True, slots=True)
class hdr:
    """A value of the headers called `name`, which commas divide: the last, or the `number`th (from the end if below
    0).
    """

    name: str
    number: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", samples.hdr(self.name, self.number).name)

    def __call__(self, reply: ResponseHead) -> str | None:
        return samples.pick_value(reply.header(self.name), self.number)


@dataclass(frozen=True, slots=True)
class url_param:
    """The value of a parameter in the query of the Location."""

    name: str

    def __post_init__(self) -> None:
        samples.url_param(self.name)

    def __call__(self, reply: ResponseHead) -> str | None:
        return samples.query_parameter(_location(reply).partition("#")[0].partition("?")[2], self.name)


@dataclass(frozen=True, slots=True)
class path_param:
    """The value of a parameter of the path of the Location, as in `/cart;jsessionid=abc`."""

    name: str

    def __post_init__(self) -> None:
        samples.path_param(self.name)

    def __call__(self, reply: ResponseHead) -> str | None:
        return samples.path_parameter(_location(reply).partition("#")[0].partition("?")[0], self.name)


def _location(reply: ResponseHead) -> str:
    return next(iter(reply.header("location")), "")


def parse_sample(text: str) -> Sample:
    """The sample that HAProxy's words name: `res.cook(name)`, `res.hdr(name)`, `res.hdr(name,1)`."""
    word, bracket, rest = text.partition("(")
    arguments = split_list([rest.removesuffix(")")]) if bracket and rest.endswith(")") else []
    match word, arguments:
        case "res.cook" | "set-cookie" | "scook", [name] if name:
            return cook(name)
        case "res.hdr" | "res.fhdr" | "shdr", [name] if name:
            return hdr(name)
        case "res.hdr" | "res.fhdr" | "shdr", [name, number] if name and samples.INTEGER.fullmatch(number):
            return hdr(name, int(number))
        case _:
            raise ConfigError(f"sample {text!r} is not known: write res.cook(<name>) or res.hdr(<name>)")
