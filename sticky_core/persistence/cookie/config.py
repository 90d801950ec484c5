"""A cookie says where a client belongs: ours (`insert`), or the application's with our id in it (`rewrite`, `prefix`),
or the application's as it is (`passive`). HAProxy's `cookie` keyword, signed.

`Cookie` is what was asked for; `CookiePersistence`, next door, is that at work over the servers of one backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Final, Literal, TypeVar, get_args

from sticky_core.clock import Clock
from sticky_core.durations import LONGEST, Duration, seconds
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http import cookies
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.signing import Secret, secrets
from sticky_core.server.server import Server

__all__ = ["UNSET", "Cookie", "CookieEngine", "FallbackCookie", "Given", "Mode", "Refresh", "SameSite"]

T = TypeVar("T")

Mode = Literal["insert", "rewrite", "prefix", "passive"]
Refresh = Literal["due", "never", "always"]
SameSite = Literal["Lax", "Strict", "None"]


class _Unset(Enum):
    UNSET = "not given"

    def __repr__(self) -> str:
        return self.value


UNSET: Final = _Unset.UNSET
Given = Literal[_Unset.UNSET]  # the type of an option that was not given

# What each option needs in order to have an effect. `dates` is: they are written by insert, and by rewrite when signed.
_EFFECT: dict[str, tuple[Mode, ...]] = {
    "secret": ("insert", "rewrite", "prefix"),
    "signed": ("insert", "rewrite", "prefix", "passive"),
    "opaque": ("insert", "rewrite", "prefix"),
    "dynamic": ("insert", "rewrite", "prefix", "passive"),
    "indirect": ("insert", "prefix", "passive"),
    "preserve": ("insert", "prefix", "passive"),
    "nocache": ("insert",),
    "postonly": ("insert",),
    "httponly": ("insert",),
    "secure": ("insert",),
    "samesite": ("insert",),
    "partitioned": ("insert",),
    "path": ("insert",),
    "domain": ("insert",),
    "attr": ("insert",),
    "max_age": ("insert",),
    "expires": ("insert",),
    "fallback": ("insert",),
    "refresh": ("insert",),
    "maxidle": ("insert", "rewrite"),
    "maxlife": ("insert", "rewrite"),
}


@dataclass(frozen=True, slots=True)
class FallbackCookie:
    """A second cookie with the same value, for browsers that will not keep or send the first: whichever comes back is
    read. What is not given is as with the first. AWS calls its own `...CORS`; sites that are embedded in others write
    one for browsers that take `SameSite=None` for `Strict`.
    """

    name: str
    httponly: bool | Given = field(default=UNSET, kw_only=True)
    secure: bool | Literal["auto"] | Given = field(default=UNSET, kw_only=True)
    samesite: SameSite | Given | None = field(default=UNSET, kw_only=True)
    partitioned: bool | Given = field(default=UNSET, kw_only=True)

    def merged_with(self, first: Cookie) -> Cookie:
        """The twin of `first` as a cookie of its own."""
        given = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not UNSET}
        return replace(first, **given)


@dataclass(frozen=True, slots=True)
class Cookie:
    """Persistence by a cookie called `name` (HAProxy `cookie`, configuration manual 4.2).

    `mode`: who makes the cookie. `insert` (default): we do. `rewrite`: the application sets it, we put our id in place
    of its value. `prefix`: the application sets it, our id goes before its value (`id~value`) and is taken off again
    before the application sees it. `passive`: the application sets it to a server's id by itself; we only read.

    `secret`: what signs the id, so that a client can't name a server it was never given. At least 16 bytes; a list is
    oldest to newest: the newest signs, a value that an older one signed is honoured and issued anew. By default the
    environment's `STICKY_SECRET`. `signed=False` speaks HAProxy's plain dialect instead: its bytes and its dates, with
    `httponly`, `secure` and `samesite` only if asked for. Passive cookies are never signed.

    `indirect`: the server does not see the cookie (default in insert mode). `nocache`: an answer that carries a new
    cookie says `Cache-Control: private`, unless it says `private` or `no-store` already (default in insert mode).
    `postonly`: insert only in answers to POST. `preserve`: an application that sets the cookie itself is left alone.

    `httponly`, `secure` (True, False, or `"auto"`: where the client came over TLS), `samesite` (`"Lax"`, `"Strict"`,
    `"None"`, or None to say nothing), `partitioned`, `path`, `domain` (one or several), `attr` (further attributes, as
    they are): the cookie's attributes; by default HttpOnly, Secure on https, SameSite=Lax, path=/. `max_age`: how long
    browsers keep it; by default until they are closed. `expires`: the same, told them as a date. `twin`: a second
    cookie, with the same value. Names that begin with `__Host-` or `__Secure-` have their rules checked (RFC 6265bis,
    4.1.3).

    `maxidle`: a client that was away for longer is not known again. `maxlife`: nor is one that came first longer ago.
    Both are durations: seconds, or text such as `"8h"`; the dates travel in the value, inside the signature. `refresh`:
    when a client that stays is written to anew. `"due"` (default): with `maxidle`, `max_age` or `expires`, once an
    eighth of it has passed (a minute at least, half of it at most); plain dates as HAProxy does, every four seconds,
    and plain `max_age` or `expires` alone never. `"never"`. `"always"`: with each answer (ALB).

    `dynamic`: HAProxy's `dynamic-cookie-key`; ids are made of it and the server's address. `opaque`: ids are keyed
    digests of what they would be otherwise, so they tell nothing; works with everything that is signed by a secret.

    Raises `ConfigError` with every problem found; an option that has no effect in its mode is one.
    """

    name: str
    mode: Mode = field(default="insert", kw_only=True)
    secret: Secret | Sequence[Secret] | Given = field(default=UNSET, kw_only=True, repr=False)
    signed: bool | Given = field(default=UNSET, kw_only=True)
    indirect: bool | Given = field(default=UNSET, kw_only=True)
    nocache: bool | Given = field(default=UNSET, kw_only=True)
    postonly: bool | Given = field(default=UNSET, kw_only=True)
    preserve: bool | Given = field(default=UNSET, kw_only=True)
    httponly: bool | Given = field(default=UNSET, kw_only=True)
    secure: bool | Literal["auto"] | Given = field(default=UNSET, kw_only=True)
    samesite: SameSite | Given | None = field(default=UNSET, kw_only=True)
    partitioned: bool | Given = field(default=UNSET, kw_only=True)
    path: str | Given = field(default=UNSET, kw_only=True)
    domain: str | Sequence[str] | Given = field(default=UNSET, kw_only=True)
    attr: str | Sequence[str] | Given = field(default=UNSET, kw_only=True)
    max_age: Duration | Given = field(default=UNSET, kw_only=True)
    expires: Duration | Given = field(default=UNSET, kw_only=True)
    maxidle: Duration | Given = field(default=UNSET, kw_only=True)
    maxlife: Duration | Given = field(default=UNSET, kw_only=True)
    refresh: Refresh | Given = field(default=UNSET, kw_only=True)
    dynamic: str | Given = field(default=UNSET, kw_only=True, repr=False)
    opaque: bool | Given = field(default=UNSET, kw_only=True)
    fallback: FallbackCookie | Given = field(default=UNSET, kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"cookie {self.name}: {problem}" for problem in _problems(self))

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        if self.mode == "passive":
            return ()
        return tuple(CookieScope(each.name, each.at_path, each.domains, each.inserts) for each in self.written)

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> CookieEngine:
        return CookieEngine(self, backend, servers, clock)

    # What is in force where nothing was given. Read once, when the persistence is built.

    @property
    def inserts(self) -> bool:
        return self.mode == "insert"

    @property
    def is_signed(self) -> bool:
        return self.mode != "passive" and self.signed is not False

    @property
    def is_indirect(self) -> bool:
        return _or(self.indirect, self.inserts)

    @property
    def is_preserving(self) -> bool:
        return _or(self.preserve, False)

    @property
    def is_nocache(self) -> bool:
        return _or(self.nocache, True)

    @property
    def is_postonly(self) -> bool:
        return _or(self.postonly, False)

    @property
    def refreshed(self) -> Refresh:
        return _or(self.refresh, "due")

    @property
    def dynamic_key(self) -> str | None:
        return _or(self.dynamic, None)

    @property
    def is_secure(self) -> bool | Literal["auto"]:
        demanded = _prefix(self.name) != "" or self.same_site == "None" or self.partitioned is True
        return _or(self.secure, True if demanded else "auto" if self.is_signed else False)

    @property
    def same_site(self) -> SameSite | None:
        return _or(self.samesite, "Lax" if self.is_signed else None)

    @property
    def prefix(self) -> str:
        """The prefix by which browsers hold its name to rules; empty if it has none."""
        return _prefix(self.name)

    @property
    def at_path(self) -> str:
        return _or(self.path, "/")

    @property
    def domains(self) -> tuple[str, ...]:
        return _several(self.domain)

    @property
    def attributes(self) -> tuple[str, ...]:
        return _several(self.attr)

    def lasting(self, option: Literal["max_age", "expires", "maxidle", "maxlife"]) -> float:
        """A duration in seconds, 0 where none was given."""
        given: Duration | Given = getattr(self, option)
        return 0.0 if given is UNSET else seconds(given)

    @property
    def written(self) -> tuple[Cookie, ...]:
        """Each cookie that it writes, as if it were alone: itself, and its twin."""
        if self.fallback is UNSET:
            return (self,)
        alone = replace(self, fallback=UNSET)
        return (alone, self.fallback.merged_with(alone))

    def attribute_text(self, secure: bool, *, deleted: bool = False) -> str:
        """What stands behind the value, in HAProxy's order; ours, which it would have in `attr`, stand before those."""
        parts = [f"path={self.at_path}", *(f"domain={domain}" for domain in self.domains)]
        if (max_age := self.lasting("max_age")) and not deleted:
            parts.append(f"Max-Age={int(max_age)}")
        if _or(self.httponly, self.is_signed):
            parts.append("HttpOnly")
        if secure:
            parts.append("Secure")
        if self.same_site is not None:
            parts.append(f"SameSite={self.same_site}")
        if self.partitioned is True:
            parts.append("Partitioned")
        return "".join(f"; {part}" for part in (*parts, *self.attributes))

    def keys(self) -> tuple[bytes, ...]:
        """The secrets in force, oldest to newest; none if nothing is keyed. ValueError if they can't do."""
        if not self.is_signed and self.opaque is not True:
            return ()
        return secrets(None if self.secret is UNSET else self.secret)


def _or(given: T | Given, otherwise: T) -> T:
    return otherwise if given is UNSET else given


def _several(given: str | Sequence[str] | Given) -> tuple[str, ...]:
    return () if given is UNSET else (given,) if isinstance(given, str) else tuple(given)


def _prefix(name: str) -> str:
    """The prefix by which browsers hold a cookie to rules; they compare it without regard to case."""
    return next((prefix for prefix in ("__Host-", "__Secure-") if name.lower().startswith(prefix.lower())), "")


def _problems(cookie: Cookie) -> Iterator[str]:
    mode = cookie.mode
    if not cookies.is_name(cookie.name):
        yield "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, and does not begin with $"
    if mode not in get_args(Mode):
        yield f"mode {mode!r} is none of {', '.join(get_args(Mode))}"
        return
    given = {option.name for option in fields(cookie) if getattr(cookie, option.name) is not UNSET} & _EFFECT.keys()
    for option in _EFFECT:
        if option in given and mode not in _EFFECT[option]:
            where = " or ".join(f"mode={each!r}" for each in _EFFECT[option])
            yield f"{option} has no effect with mode={mode!r}: leave it out, or use {where}"
    if mode == "passive" and cookie.signed is True:
        yield "a passive cookie is the application's own and never signed: leave signed out"
    if mode in ("prefix", "passive") and cookie.preserve is True and cookie.indirect is not True:
        yield f"preserve has no effect with mode={mode!r} unless indirect=True"
    if mode == "rewrite" and not cookie.is_signed and given & {"maxidle", "maxlife"}:
        yield "plain rewritten cookies are undated, so maxidle and maxlife have no effect: sign them, or use insert"
    if cookie.signed is False and "secret" in given and cookie.opaque is not True:
        yield "secret has no effect with signed=False: leave one of them out"
    if mode != "passive":
        try:
            cookie.keys()
        except ValueError as error:
            yield str(error)
    if cookie.opaque is True and "dynamic" in given:
        yield "opaque and dynamic both make ids: use one"
    if cookie.dynamic == "":
        yield "dynamic needs a key (HAProxy dynamic-cookie-key)"
    yield from _problems_of_times(cookie)
    yield from _problems_of_attributes(cookie)
    if cookie.fallback is not UNSET:
        yield from _problems_of_twin(cookie, cookie.fallback)


def _problems_of_twin(cookie: Cookie, twin: object) -> Iterator[str]:
    if not isinstance(twin, FallbackCookie):
        yield f"fallback {twin!r} is none: write fallback=FallbackCookie(name, ...)"
        return
    if twin.name == cookie.name:
        yield "its fallback has the same name, and would overwrite it: give it another"
        return
    try:
        first = replace(cookie, fallback=UNSET)
    except ConfigError:
        return  # told already; what the twin has of it would be told twice
    try:
        twin.merged_with(first)
    except ConfigError as error:
        yield from (f"its fallback {problem.removeprefix('cookie ')}" for problem in error.problems)


def _problems_of_times(cookie: Cookie) -> Iterator[str]:
    for option, duration in (
        ("max_age", cookie.max_age),
        ("expires", cookie.expires),
        ("maxidle", cookie.maxidle),
        ("maxlife", cookie.maxlife),
    ):
        if duration is not UNSET:
            try:
                if not 1 <= seconds(duration) <= LONGEST:
                    yield f"{option} {duration!r} is not within 1..{LONGEST} seconds"
            except ValueError as error:
                yield f"{option}: {error}"
    if cookie.refresh is not UNSET and cookie.refresh not in get_args(Refresh):
        yield f"refresh {cookie.refresh!r} is none of {', '.join(get_args(Refresh))}"
    if cookie.refresh == "never" and cookie.maxidle is not UNSET:
        yield "refresh='never' would let maxidle end sessions that are in use: use maxlife for a fixed end"


def _problems_of_attributes(cookie: Cookie) -> Iterator[str]:
    if not cookie.at_path.startswith("/") or not cookies.is_attribute(cookie.at_path):
        yield f"path {cookie.at_path!r} is no path: it begins with / and has no semicolon"
    for domain in cookie.domains:
        if not domain or not cookies.is_attribute(domain) or " " in domain:
            yield f"domain {domain!r} is no domain"
    for attribute in cookie.attributes:
        if not cookies.is_attribute(attribute):
            yield f"attr {attribute!r} can't be written: printable ASCII without a semicolon"
    if cookie.samesite not in (UNSET, None, *get_args(SameSite)):
        yield f"samesite {cookie.samesite!r} is none of {', '.join(get_args(SameSite))}, or None to say nothing"
    if cookie.secure not in (UNSET, True, False, "auto"):
        yield f"secure {cookie.secure!r} is none of True, False, 'auto'"
    if cookie.mode == "insert" and cookie.is_secure is not True:
        for demands, what in (
            (bool(_prefix(cookie.name)), f"names that begin with {_prefix(cookie.name)}"),
            (cookie.samesite == "None", "SameSite=None"),
            (cookie.partitioned is True, "Partitioned"),
        ):
            if demands:
                yield f"browsers refuse {what} without Secure: leave secure out, or set secure=True"
    if cookie.mode == "insert" and _prefix(cookie.name) == "__Host-" and (cookie.at_path != "/" or cookie.domains):
        yield "browsers refuse names that begin with __Host- unless path is / and there is no domain"
