"""A cookie of ours that follows one of the application's: it comes with it, lasts as long, and counts only beside it
(the application policy of AWS load balancers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from sticky_core.clock import Clock
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult
from sticky_core.persistence.cookie.config import UNSET, Cookie, FallbackCookie
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.server.server import Server

Attributes = Literal["copied", "elb", "own"]

# What a Classic ELB takes over of the application's cookie.
_ELB = (
    *("path", "port", "domain", "secure", "httponly", "discard", "max-age", "expires"),
    *("version", "comment", "commenturl", "samesite"),
)
_LASTING = ("max-age", "expires")
_DELETED = "Expires=Thu, 01-Jan-1970 00:00:01 GMT"


@dataclass(frozen=True, slots=True)
class Follow:
    """Persistence by `cookie`, ours, that follows the cookie called `application`:
    `Follow("JSESSIONID", Cookie("SERVERID"))`.

    An answer that sets the application's cookie carries ours beside it, one that deletes it takes ours back. A request
    without the application's is from a client that belongs nowhere, whatever else it carries; of the application's
    cookie only the name is looked at. A client whose server is gone belongs to the one that answers instead, and stays
    there.

    `attributes`: where those of ours come from. `"copied"` (default): from the application's cookie, as they are, its
    lifetime among them; an answer that has to tell a client of another server without setting the application's cookie
    carries those of `cookie`, since nobody knows the others then: give it the same `path` and `domain`. `"elb"`: the
    same, as a Classic ELB does: only the attributes that it knows, an underscore in the path as `%5F`, and nothing
    follows a Set-Cookie that ends in a semicolon. `"own"`: those of `cookie`, always.

    Raises `ConfigError` for options of `cookie` that would have no effect.
    """

    application: str
    cookie: Cookie
    attributes: Attributes = field(default="copied", kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"follow {self.application}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        cookie = self.cookie
        if not cookies.is_name(self.application):
            yield "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, and does not begin with $"
        if self.attributes not in get_args(Attributes):
            yield f"attributes {self.attributes!r} is none of {', '.join(get_args(Attributes))}"
        if not cookie.inserts:
            yield f"cookie {cookie.name} has mode={cookie.mode!r}, and only one that we insert can follow another"
            return
        for each in cookie.written:
            if each.name == self.application:
                yield f"cookie {each.name} can't follow itself: give ours another name"
            if self.attributes != "own" and each.prefix:
                yield (
                    f"cookie {each.name}: browsers hold names that begin with {each.prefix} to attributes, and only "
                    "the application decides those: give it another name, or set attributes='own'"
                )
        for option in ("postonly", "refresh", "maxidle"):
            if getattr(cookie, option) is not UNSET:
                yield f"cookie {cookie.name}: {option} has no effect: it is written when the application's is"
        for option in ("max_age", "expires"):
            if self.attributes != "own" and getattr(cookie, option) is not UNSET:
                yield (
                    f"cookie {cookie.name}: {option} has no effect: it lasts as long as the application's: "
                    "leave it out, or set attributes='own'"
                )

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        """Return none where the application's attributes decide where browsers send the cookie."""
        return self.cookie.cookie_scopes() if self.attributes == "own" else ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> FollowEngine:
        return FollowEngine(self, backend, servers, clock)


class FollowEngine(CookieEngine):
    """`Follow` at work."""

    def __init__(self, follow: Follow, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        # when it is due is not its own to say
        super().__init__(replace(follow.cookie, refresh="never"), backend, servers, clock)
        self._application = follow.application
        self._copies = follow.attributes != "own"
        self._as_elb = follow.attributes == "elb"
        self._twin = None if follow.cookie.fallback is UNSET else follow.cookie.fallback

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is None:
            return NO_COOKIE
        # asked first: what the cookie alone would say is not to be remembered for such a header
        if not any(cookies.take(text, self._application)[0] for text in request.cookies):
            self._taken(request.cookies, request)
            return NO_COOKIE
        return super().recognise(request, accept_down=accept_down)

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        mark = self._settle_own(server, is_bound, response) if response.sets_cookies else Mark.NONE
        if mark is Mark.PASSED:
            return mark
        followed = [text for text in response.set_cookies if self._is_followed(text)] if response.sets_cookies else []
        if followed:
            begins = bool(self._ids[server]) and not all(self._ends(text) for text in followed)
        elif self._speaks_alone(result, is_bound):
            begins = bool(self._ids[server])
        else:
            return mark
        value = self._value(server, result) if begins else ""
        if self._copies and followed:
            for text in followed:
                self._write_beside(text, value, request, response)
        elif begins:
            self._write(value, request, response)
        else:
            self._delete(request, response)
        self._hold_private(response)
        return Mark.DELETED if not begins else Mark.UPDATED if is_bound else Mark.INSERTED

    def _is_followed(self, text: str) -> bool:
        if self._application not in text or cookies.set_name(text) != self._application:
            return False
        return not (self._as_elb and text.rstrip(" \t").endswith(";"))

    def _ends(self, text: str) -> bool:
        return cookies.deletes(text, self._clock.wall())

    def _speaks_alone(self, result: PersistenceResult, is_bound: bool) -> bool:
        """Whether the client is told something although the application sets nothing: that it belongs to another server
        now. And, where that takes nothing away from what its cookie was given, that we would write it differently.
        """
        if not is_bound:
            return result.claim not in (Claim.NONE, Claim.UNUSED)
        return result.is_outdated and not self._copies

    def _write_beside(self, text: str, value: str, request: Request, response: ResponseHead) -> None:
        """Ours beside one of the application's, each for each: it may delete one and set another elsewhere."""
        attributes = self._copied(text)
        if not value or self._ends(text):
            value = ""
            attributes = [_DELETED, *(each for each in attributes if _name(each) not in _LASTING)]
        for name in self._names:
            if name != self.name and self._twin is not None:
                attributes = _as_twin(attributes, self._twin, request)
            response.add("set-cookie", "; ".join((f"{name}={value}", *attributes)))

    def _copied(self, text: str) -> list[str]:
        """The attributes of a Set-Cookie text, each as it is written."""
        _, _, behind = cookies.set_value(text, lambda _: "").partition("=")
        attributes = [each for part in behind.split(";") if (each := part.strip(" \t"))]
        if not self._as_elb:
            return attributes
        known = [each for each in attributes if _name(each) in _ELB]
        return [each.replace("_", "%5F") if _name(each) == "path" else each for each in known]


def _name(attribute: str) -> str:
    return attribute.partition("=")[0].rstrip(" \t").lower()


def _as_twin(attributes: Sequence[str], twin: FallbackCookie, request: Request) -> list[str]:
    """The attributes of the first cookie, but for those that its twin has of its own."""
    own = {"httponly": twin.httponly, "secure": twin.secure, "samesite": twin.samesite, "partitioned": twin.partitioned}
    kept = [each for each in attributes if own.get(_name(each), UNSET) is UNSET]
    if twin.httponly is True:
        kept.append("HttpOnly")
    if twin.secure is True or (twin.secure == "auto" and request.secure):
        kept.append("Secure")
    if twin.samesite not in (UNSET, None):
        kept.append(f"SameSite={twin.samesite}")
    if twin.partitioned is True:
        kept.append("Partitioned")
    return kept
