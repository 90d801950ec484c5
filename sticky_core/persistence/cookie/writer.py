"""Writes a cookie to responses: adds Set-Cookie headers of ours, and edits those of the application under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
        self._depends_on_tls = any(each.secure == "auto" for each in settings.written)
        # the name and attributes of each cookie, by whether the client uses TLS, and the same for its deletion
        self._attributes = _by_tls(settings, is_deleted=False)
        self._attributes_of_deletion = _by_tls(settings, is_deleted=True)

    def set(self, value: str, request: Request, response: ResponseHead) -> None:
        """Set the cookie to `value`."""
        expiry = cookies.expires(self._clock.wall() + self._expires) if self._expires else ""
        for name, attributes in self._attributes[self._depends_on_tls and request.secure]:
            response.add("set-cookie", cookies.set_cookie(name, value, expiry, attributes))

    def delete(self, request: Request, response: ResponseHead) -> None:
        """Delete the cookie from the client."""
        for name, attributes in self._attributes_of_deletion[self._depends_on_tls and request.secure]:
            response.add("set-cookie", cookies.delete_cookie(name, attributes))

    def make_private(self, response: ResponseHead) -> None:
        """Forbid shared caches to store a response with a mark: they would send the mark to other clients."""
        if self._sets_private:
            directives = response.cache_control
            if not directives or not _forbids_shared_caches(directives):
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


def _by_tls(settings: CookieSettings, *, is_deleted: bool) -> Mapping[bool, Sequence[tuple[str, str]]]:
    """Return the name and the attributes of each cookie that is written, by whether the client uses TLS."""
    return {
        is_tls: [(each.name, each.attribute_text(is_tls=is_tls, is_deleted=is_deleted)) for each in settings.written]
        for is_tls in (False, True)
    }


def _forbids_shared_caches(directives: str) -> bool:
    """Return whether a Cache-Control already forbids shared caches to store the response."""
    return not {part.strip().lower() for part in directives.split(",")}.isdisjoint(("private", "no-store"))
