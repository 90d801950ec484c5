"""Writes a cookie to responses: adds Set-Cookie headers of ours, and edits those of the application under our names."""

from __future__ import annotations

from collections.abc import Callable

from sticky_core.clock import Clock
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.cookie.settings import CookieSettings


class CookieWriter:
    """Writes one cookie, and its fallback, to responses."""

    def __init__(self, settings: CookieSettings, clock: Clock) -> None:
        self.names = tuple(each.name for each in settings.written)
        self._clock = clock
        self._expires = settings.expires
        self._sets_private = settings.sets_private
        # the attributes of each cookie, by whether the client came over TLS, and the same for its deletion
        self._attributes = [
            (each.name, {is_tls: each.attribute_text(is_tls=is_tls) for is_tls in (False, True)})
            for each in settings.written
        ]
        self._attributes_of_deletion = [
            (each.name, {is_tls: each.attribute_text(is_tls=is_tls, is_deleted=True) for is_tls in (False, True)})
            for each in settings.written
        ]

    def set(self, value: str, request: Request, response: ResponseHead) -> None:
        """Set the cookie to `value`."""
        expiry = cookies.expires(self._clock.wall() + self._expires) if self._expires else ""
        for name, attributes in self._attributes:
            response.add("set-cookie", cookies.set_cookie(name, value, expiry, attributes[request.secure]))

    def delete(self, request: Request, response: ResponseHead) -> None:
        """Delete the cookie from the client."""
        for name, attributes in self._attributes_of_deletion:
            response.add("set-cookie", cookies.delete_cookie(name, attributes[request.secure]))

    def make_private(self, response: ResponseHead) -> None:
        """Forbid shared caches to store a response with a mark: they would send the mark to other clients."""
        if self._sets_private and not _is_uncacheable(response):
            response.add("cache-control", "private")

    def has_application_cookie(self, response: ResponseHead) -> bool:
        """Return whether the application sets a cookie under one of our names."""
        return any(
            name in text and cookies.set_cookie_name(text) == name
            for text in response.set_cookies
            for name in self.names
        )

    def edit_application_cookies(self, response: ResponseHead, edit: Callable[[str], str]) -> None:
        """Replace the value of each cookie that the application sets under one of our names."""
        names = self.names
        response.edit_cookies(
            lambda text: cookies.edit_set_cookie_value(text, edit) if cookies.set_cookie_name(text) in names else text
        )

    def remove_application_cookies(self, response: ResponseHead) -> None:
        """Remove each cookie that the application sets under one of our names."""
        response.edit_cookies(lambda text: None if cookies.set_cookie_name(text) in self.names else text)


def _is_uncacheable(response: ResponseHead) -> bool:
    """Return whether the application's Cache-Control already forbids shared caches to store a response."""
    directives = response.cache_control
    if not directives:
        return False
    return not {part.strip().lower() for part in directives.split(",")}.isdisjoint(("private", "no-store"))
