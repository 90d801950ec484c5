"""The options of a `Cookie` with every default applied. `Cookie.settings` makes them once; the engine reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from sticky_core.deferred.dataclass import dataclass
from sticky_core.http import cookies
from sticky_core.persistence.cookie.modes import CookieMode
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import Persist

Refresh = Literal["due", "never", "always"]
#: the value of SameSite as it is written
WrittenSameSite = Literal["Lax", "Strict", "None"]
#: the value of SameSite as an option; in lower case as Starlette and nginx have it
SameSite = Literal[WrittenSameSite, "lax", "strict", "none"]

_WRITTEN_SAMESITE: Mapping[SameSite, WrittenSameSite] = {
    "Lax": "Lax",
    "lax": "Lax",
    "Strict": "Strict",
    "strict": "Strict",
    "None": "None",
    "none": "None",
}


def written_samesite(samesite: SameSite | None) -> WrittenSameSite | None:
    """Return the value of SameSite as it is written; None: it is left out, or is none of these words."""
    return _WRITTEN_SAMESITE.get(samesite) if isinstance(samesite, str) else None


#: a mark is due for renewal after this fraction of its shortest lifetime
_RENEWED_PART = 1 / 8
#: but not before this many seconds; half of the lifetime is the latest in any case
_SHORTEST_RENEWAL = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCookie:
    """One cookie that is written to clients: a `Cookie`, or its `FallbackCookie`.

    - `name`, `path`, `domains`: by these browsers identify the cookie; without domains it belongs to the host that has
      set it.
    - `httponly`, `samesite`, `partitioned`, `attr`: further attributes.
    - `secure`: whether the cookie is Secure; `"auto"`: if the client uses TLS.
    - `max_age`: Max-Age in seconds; 0: no such attribute.
    """

    name: str
    path: str
    domains: tuple[str, ...]
    httponly: bool
    secure: bool | Literal["auto"]
    samesite: WrittenSameSite | None
    partitioned: bool
    attr: tuple[str, ...]
    max_age: float

    def attribute_text(self, *, is_tls: bool, is_deleted: bool = False) -> str:
        """Return the attributes of the Set-Cookie that sets the cookie, or with `is_deleted` deletes it. `is_tls`:
        whether the client uses TLS.
        """
        return cookies.attribute_text(
            path=self.path,
            domains=self.domains,
            max_age=0 if is_deleted else self.max_age,
            httponly=self.httponly,
            secure=self.is_secure(is_tls=is_tls),
            samesite=self.samesite,
            partitioned=self.partitioned,
            attr=self.attr,
        )

    def is_secure(self, *, is_tls: bool) -> bool:
        """Return whether the cookie is Secure. `is_tls`: whether the client uses TLS."""
        return is_tls if self.secure == "auto" else self.secure


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieSettings:
    """The settings of one cookie.

    - `name`, `mode`: the cookie's name, and what its mode does.
    - `written`: each cookie that is written: the cookie itself, then its fallback.
    - `keys`: the secrets, oldest first; none if nothing is signed or opaque.
    - `is_signed`: values are signed. `is_opaque`: ids are keyed digests.
    - `dynamic_key`: HAProxy's `dynamic-cookie-key`; None: ids do not depend on addresses.
    - `is_indirect`: the server does not get the cookie, and the client does not get that of the application.
    - `preserves`: a cookie by this name that the application sets itself goes to the client.
    - `sets_private`: a response with a mark gets `Cache-Control: private`.
    - `postonly`: only responses to POST are marked.
    - `max_idle`, `max_life`, `expires`: in seconds; 0: without limit.
    - `refresh`: when a client that keeps its server gets a new mark.
    - `accepts`: what else names the server of a client. `accepts_until`: until when, in seconds since the epoch.
    """

    name: str
    mode: CookieMode
    written: tuple[WrittenCookie, ...]
    keys: tuple[bytes, ...] = field(repr=False)
    is_signed: bool
    is_opaque: bool
    dynamic_key: str | None = field(repr=False)
    is_indirect: bool
    preserves: bool
    sets_private: bool
    postonly: bool
    max_idle: float
    max_life: float
    expires: float
    refresh: Refresh
    accepts: tuple[Persist, ...]
    accepts_until: float

    @property
    def written_scopes(self) -> tuple[CookieScope, ...]:
        """The scopes of the cookies that are written; none if only the application writes the cookie."""
        inserts = self.mode.inserts
        if not inserts and self.mode.edit_value is None:
            return ()
        return tuple(CookieScope(each.name, each.path, each.domains, inserts) for each in self.written)

    @property
    def strips_requests(self) -> bool:
        """Whether the cookie is removed from requests."""
        return self.mode.inserts and self.is_indirect

    @property
    def renew_after(self) -> float:
        """After how many seconds a signed mark is due for renewal; 0: its age does not matter."""
        lifetimes = [each for each in (self.max_idle, self.written[0].max_age, self.expires) if each]
        if not self.is_signed or self.refresh != "due" or not lifetimes:
            return 0.0
        shortest = min(lifetimes)
        return min(max(shortest * _RENEWED_PART, _SHORTEST_RENEWAL), shortest / 2)

    @property
    def is_dated(self) -> bool:
        """Whether values carry dates."""
        return bool(self.max_idle or self.max_life or self.renew_after)
