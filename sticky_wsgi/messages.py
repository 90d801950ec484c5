"""Environ and start_response as the core sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol, cast

from sticky_core.transaction import Transaction as CoreTransaction

#: where an environ carries its decision
KEY = "sticky.decision"

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Write = Callable[[bytes], object]


class StartResponse(Protocol):
    """The server's `start_response` (PEP 3333)."""

    def __call__(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write: ...


WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class Transaction(CoreTransaction[Environ, StartResponse]):
    """An environ on its way: the request, what of it the server is to see, and the `start_response` that its app
    answers into.
    """

    __slots__ = ()

    @property
    def method(self) -> str:
        method: str = self.message["REQUEST_METHOD"]
        return method

    @property
    def secure(self) -> bool:
        return self.message.get("wsgi.url_scheme") == "https"

    @property
    def cookies(self) -> tuple[str, ...]:
        # servers have joined those that came, so there is one
        return () if self.cookie_key is None else tuple(self.kept or (cast("str", self.cookie_key),))

    def keep(self, texts: Sequence[str]) -> None:
        self.kept = texts

    def forwarded(self) -> Environ:
        """An environ of its own for one attempt: an app writes into what it is given, and the next must not find it."""
        environ = self.message.copy()
        if self.kept is not None:
            if text := self.kept[0]:
                environ["HTTP_COOKIE"] = text
            else:
                del environ["HTTP_COOKIE"]
        return environ

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        """What the app answers into: late, again with `exc_info`, and with the server's own `write` to return."""
        sets_cookies = False
        for name, _ in headers:
            if len(name) == 10 and name.lower() == "set-cookie":
                sets_cookies = True
        self.status = _CODES[status]
        if sets_cookies or not self.presented.settled:
            head = Head(headers, sets_cookies)
            self.stamp(head)
            headers = head.headers
        if exc_info is None:
            return self.out(status, headers)
        return self.out(status, headers, exc_info)


class _Codes(dict[str, int]):
    """The status code in a status line, 0 where there is none. The usual lines are kept: to parse one costs more."""

    def __missing__(self, line: str) -> int:
        code = line[:3]
        return int(code) if code.isascii() and code.isdigit() else 0


_CODES = _Codes(
    (f"{status.value} {phrase}", status.value)
    for status in HTTPStatus
    for phrase in (status.phrase, status.phrase.upper())
)


class Head:
    """The headers of an answer, to be stamped. Changed by copy: the app's own are left as they are."""

    __slots__ = ("headers", "sets_cookies")

    def __init__(self, headers: Headers, sets_cookies: bool) -> None:
        self.headers = headers
        self.sets_cookies = sets_cookies

    def _values(self, wanted: str) -> list[str]:
        return [value for name, value in self.headers if name.lower() == wanted]

    @property
    def set_cookies(self) -> Sequence[str]:
        return self._values("set-cookie")

    @property
    def cache_control(self) -> str:
        return ",".join(self._values("cache-control"))

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        headers: Headers = []
        for name, value in self.headers:
            text = new(value) if name.lower() == "set-cookie" else value
            if text is not None:
                headers.append((name, text))
        self.headers = headers

    def add(self, name: str, value: str) -> None:
        self.headers = [*self.headers, (name.title(), value)]
