"""A request for the tests of samples."""

from collections.abc import Iterable
from typing import cast

from sticky_core.http.cookies import CookieKey
from sticky_core.http.messages import Request


class FakeRequest:
    method = "PUT"
    scheme = "https"

    def __init__(self, src: str, path: str, query: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.src, self.path, self.query, self._headers, self._body = src, path, query, list(headers), body
        self.peeked = 0  # how many bytes of the body were peeked at
        self.missing_keys: list[str] = []

    def header(self, name: str) -> list[str]:
        return [value for key, value in self._headers if key == name]

    @property
    def cookies(self) -> tuple[str, ...]:
        return tuple(self.header("cookie"))

    @property
    def cookie_key(self) -> CookieKey:
        return self.cookies or None

    def note_missing_key(self, why: str) -> None:
        self.missing_keys.append(why)

    def peek(self, limit: int) -> bytes:
        self.peeked = max(self.peeked, limit)
        return self._body[:limit]


def make_request(
    src: str = "", path: str = "/", query: str = "", headers: Iterable[tuple[str, str]] = (), body: bytes = b""
) -> Request:
    return cast(Request, FakeRequest(src, path, query, headers, body))
