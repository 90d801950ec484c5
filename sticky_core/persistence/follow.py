"""A cookie of ours that follows a cookie of the application: ours is set when the application sets its cookie, lasts as
long, and is valid only in a request that carries both (the application policy of AWS load balancers).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import field, replace
from typing import Literal, cast, get_args

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.options.spelling import problem_of_word
from sticky_core.options.unset import UNSET
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult, no_cookie
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie, name_prefix
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.cookie.settings import written_samesite
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import inserted_names, label_of
from sticky_core.server.server import Server

Attributes = Literal["copied", "elb", "own"]

# the attributes that a Classic ELB copies from the application's cookie
_ELB_ATTRIBUTES = (
    *("path", "port", "domain", "secure", "httponly", "discard", "max-age", "expires"),
    *("version", "comment", "commenturl", "samesite"),
)
_EXPIRY_ATTRIBUTES = ("max-age", "expires")


@dataclass(frozen=True, slots=True)
class Follow:
    """Persistence by a cookie of ours that follows a cookie of the application:
    `Follow("JSESSIONID", Cookie("SERVERID"))`.

    - `application`: the name of the application's cookie. Its value in a request does not matter.
    - `cookie`: our cookie, a `Cookie` in insert mode.
    - `attributes`: where our cookie takes its attributes from.
      `"copied"` (default): from the application's cookie, unchanged, the lifetime included. A response that binds a
      client to another server but does not set the application's cookie has no attributes to copy and takes those of
      `cookie`, so give `cookie` the `path` and `domain` of the application's.
      `"elb"`: the same, as a Classic ELB does it: it copies only the attributes that it knows, writes an underscore in
      the path as `%5F`, and ignores a Set-Cookie that ends in a semicolon.
      `"own"`: always from `cookie`.

    A response that sets the application's cookie sets ours too, and a response that deletes it deletes ours. A request
    without the application's cookie counts as that of a new client, even if it carries our cookie. If the server of a
    client is not usable, the client is bound to the server that responds.

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
            yield problem_of_word("attributes", self.attributes, get_args(Attributes))
        if not isinstance(cast(object, cookie), Cookie):
            yield f"{cookie!r} is no Cookie: write Follow('JSESSIONID', Cookie('SERVERID')), the application's first"
            return
        settings = cookie.settings()
        if not settings.mode.inserts:
            yield f"cookie {cookie.name} has mode={cookie.mode!r}: only a cookie with mode='insert' can follow another"
            return
        for each in settings.written:
            if each.name == self.application:
                yield f"cookie {each.name} can't follow itself: give ours another name"
            if self.attributes != "own" and (prefix := name_prefix(each.name)):
                yield (
                    f"cookie {each.name}: browsers demand certain attributes for names that begin with {prefix}, and "
                    "only the application decides those: give it another name, or set attributes='own'"
                )
        for accepted in settings.accepts:
            if self.application in inserted_names(accepted):
                yield (
                    f"cookie {cookie.name} accepts {label_of(accepted)}, which would be removed from requests: it is "
                    "the cookie of the application: leave it out"
                )
        for option in ("postonly", "refresh", "maxidle"):
            if getattr(cookie, option) is not UNSET:
                yield (
                    f"cookie {cookie.name}: {option} has no effect: it is set when the application's cookie is: "
                    "leave it out"
                )
        for option in ("max_age", "expires"):
            if self.attributes != "own" and getattr(cookie, option) is not UNSET:
                yield (
                    f"cookie {cookie.name}: {option} has no effect: it lasts as long as the application's cookie: "
                    "leave it out, or set attributes='own'"
                )

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        """Return no scope if attributes are copied: then the application decides where browsers send the cookie."""
        return self.cookie.cookie_scopes() if self.attributes == "own" else ()

    def accepted_names(self) -> Collection[str]:
        return self.cookie.accepted_names()

    def written_scopes(self) -> tuple[CookieScope, ...]:
        """Return the scopes that the cookie has where there are no attributes to copy."""
        return self.cookie.cookie_scopes()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> FollowEngine:
        return FollowEngine(self, backend, servers, clock)


class FollowEngine(CookieEngine):
    """`Follow` for the servers of one backend."""

    def __init__(self, follow: Follow, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        # the application's cookie decides when ours is written
        super().__init__(replace(follow.cookie.settings(), refresh="never"), backend, servers, clock)
        self._application = follow.application
        self._copies = follow.attributes != "own"
        self._is_elb = follow.attributes == "elb"
        self._fallback = None if follow.cookie.fallback is UNSET else follow.cookie.fallback

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is None:
            return NO_COOKIE
        texts = request.cookies
        # Checked first: for a header without the application's cookie, no result of our cookie must be cached.
        if not any(cookies.take(text, self._application)[0] for text in texts):
            self._take(texts, request)
            if self.accepted is not None:
                self.accepted.remove_from(request)
            return no_cookie(texts)
        return super().recognise(request, accept_down=accept_down)

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        if result.persistence_state is not None and self.accepted is not None:
            self.accepted.count(result)
        mark = self._handle_application_cookie(server, is_bound, response) if response.sets_cookies else Mark.NONE
        if mark is Mark.PASSED:
            return mark
        followed = [text for text in response.set_cookies if self._is_followed(text)] if response.sets_cookies else []
        has_id = bool(self._ids.of(server))
        if followed:
            is_set = has_id and not all(self._is_deletion(text) for text in followed)
        elif self._needs_mark_alone(result, is_bound):
            is_set = has_id
        else:
            return mark
        if is_set and self.accepted is not None:
            self.accepted.delete(request, response)
        value = self._values.make(server, result.first_seen) if is_set else ""
        if self._copies and followed:
            for text in followed:
                self._write_for(text, value, request, response)
        elif is_set:
            self._writer.set(value, request, response)
        else:
            self._writer.delete(request, response)
        self._writer.make_private(response)
        return Mark.DELETED if not is_set else Mark.UPDATED if is_bound else Mark.INSERTED

    def _is_followed(self, text: str) -> bool:
        """Return whether a Set-Cookie text sets or deletes the application's cookie."""
        if self._application not in text or cookies.set_cookie_name(text) != self._application:
            return False
        return not (self._is_elb and text.rstrip(" \t").endswith(";"))

    def _is_deletion(self, text: str) -> bool:
        return cookies.deletes(text, self._clock.wall())

    def _needs_mark_alone(self, result: PersistenceResult, is_bound: bool) -> bool:
        """Return whether a response needs our cookie although it does not set the application's cookie. It does if the
        client is bound to another server now. It also does if the client's mark is outdated, unless attributes are
        copied, since there are none to copy.
        """
        if not is_bound:
            return result.claim not in (Claim.NONE, Claim.UNUSED)
        return result.is_outdated and not self._copies

    def _write_for(self, text: str, value: str, request: Request, response: ResponseHead) -> None:
        """Write our cookie for one of the application's Set-Cookie headers. There may be several: the application may
        delete its cookie under one path and set it under another.
        """
        attributes = self._copied_attributes(text)
        is_deletion = not value or self._is_deletion(text)
        if is_deletion:
            attributes = [each for each in attributes if _name(each) not in _EXPIRY_ATTRIBUTES]
        joined = cookies.join_attributes(attributes)
        for name in self._names:
            if name != self.name and self._fallback is not None:
                joined = _merge_fallback(attributes, self._fallback, request)
            response.add(
                "set-cookie",
                cookies.delete_cookie(name, joined) if is_deletion else cookies.set_cookie(name, value, "", joined),
            )

    def _copied_attributes(self, text: str) -> list[str]:
        """Return the attributes to copy from a Set-Cookie text to ours, unchanged."""
        _, _, after_value = cookies.edit_set_cookie_value(text, lambda _: "").partition("=")
        attributes = [each for part in after_value.split(";") if (each := part.strip(" \t"))]
        if not self._is_elb:
            return attributes
        known = [each for each in attributes if _name(each) in _ELB_ATTRIBUTES]
        return [each.replace("_", "%5F") if _name(each) == "path" else each for each in known]


def _name(attribute: str) -> str:
    return attribute.partition("=")[0].rstrip(" \t").lower()


def _merge_fallback(attributes: Sequence[str], fallback: FallbackCookie, request: Request) -> str:
    """Return the attributes of the first cookie as text, each replaced if an option of the fallback sets it."""
    own = {
        "httponly": fallback.httponly,
        "secure": fallback.secure,
        "samesite": fallback.samesite,
        "partitioned": fallback.partitioned,
    }
    return cookies.join_attributes(each for each in attributes if own.get(_name(each), UNSET) is UNSET) + (
        cookies.attribute_text(
            httponly=fallback.httponly is True,
            secure=fallback.secure is True or (fallback.secure == "auto" and request.secure),
            samesite=None if fallback.samesite is UNSET else written_samesite(fallback.samesite),
            partitioned=fallback.partitioned is True,
        )
    )
