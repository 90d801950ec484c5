"""Persistence by a cookie: ours (`insert`), the application's with our id in it (`rewrite`, `prefix`), or the
application's unchanged (`passive`). It is HAProxy's `cookie` keyword, with signed values.

`Cookie` is what the user writes, `CookieSettings` the same with every default applied, and `CookieEngine` the run-time
object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import field, fields, replace
from math import inf
from types import NoneType
from typing import TYPE_CHECKING, Literal, cast, get_args

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import LONGEST, Duration, problems_of_duration, seconds
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http import cookies
from sticky_core.options.spelling import problem_of_word
from sticky_core.options.types import Kind, type_problems
from sticky_core.options.unset import UNSET, NotGiven, value_or
from sticky_core.persistence.cookie.engine import CookieEngine
from sticky_core.persistence.cookie.modes import MODES, Mode, modes_with
from sticky_core.persistence.cookie.settings import (
    CookieSettings,
    Refresh,
    SameSite,
    WrittenCookie,
    WrittenSameSite,
    written_samesite,
)
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import AcceptsCookies, Persist, cookie_names, label_of
from sticky_core.persistence.signing import Secret, secrets
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_core.options.moments import Moment

#: names for which browsers demand certain attributes (RFC 6265bis, 4.1.3), compared without regard to case
_NAME_PREFIXES = ("__Host-", "__Secure-")

_DURATIONS: tuple[Literal["max_age", "expires", "maxidle", "maxlife"], ...] = (
    "max_age",
    "expires",
    "maxidle",
    "maxlife",
)


@dataclass(frozen=True, slots=True)
class FallbackCookie:
    """A second cookie with the same value, for browsers that do not keep or do not send the first. A request may carry
    either. Examples: `AWSALBCORS` of AWS, and for a site that is embedded in other sites a cookie without `SameSite`,
    since some old browsers treat `SameSite=None` as `Strict`.

    - `name`: the name of the second cookie. It differs from that of the first.
    - `httponly`, `secure`, `samesite`, `partitioned`: as with `Cookie`. Default: those of the first cookie.
    """

    name: str
    httponly: bool | NotGiven = field(default=UNSET, kw_only=True)
    secure: bool | Literal["auto"] | NotGiven = field(default=UNSET, kw_only=True)
    samesite: SameSite | NotGiven | None = field(default=UNSET, kw_only=True)
    partitioned: bool | NotGiven = field(default=UNSET, kw_only=True)

    def merged_with(self, first: Cookie) -> Cookie:
        """Return the fallback as a `Cookie`: the options of `first`, except those that are given here."""
        given = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not UNSET}
        return replace(first, **given)


@dataclass(frozen=True, slots=True)
class Cookie:
    """Persistence by a cookie (HAProxy `cookie`, configuration manual 4.2).

    Name and mode:

    - `name`: the cookie's name. If it begins with `__Host-` or `__Secure-`, the attributes that browsers demand for
      such a name are checked (RFC 6265bis, 4.1.3).
    - `mode`: how the cookie is made. `"insert"` (default): we set it. `"rewrite"`: the application sets it, and we
      replace its value by our id. `"prefix"`: the application sets it, and we put our id before its value (`id~value`)
      and remove the id from requests. `"passive"`: the application sets it to the id of a server, and we only read it.
      HAProxy `insert`, `rewrite`, `prefix`, or none of these.

    The value:

    - `secret`: the key that signs values, text or bytes, at least 16 bytes, so that a client can't make a value that
      names a server. Or a list of secrets, oldest first: the newest signs; a value signed by an older one is valid, and
      is replaced. Default: the environment variable `STICKY_SECRET`. Not for passive cookies.
    - `signed`: False: the value is plain, with the bytes and dates of HAProxy; then `httponly`, `secure` and `samesite`
      are written only if given. Default: True, but passive cookies are never signed.
    - `opaque`: True: the id is a keyed digest, so it does not reveal the server's name. Default: False. Not for passive
      cookies.
    - `dynamic`: a key, text; the id of a server is computed from it and the server's address (HAProxy
      `dynamic-cookie-key`). Default: none; the id is the server's `cookie=` or name.
    - `maxidle`: a duration; a client is not recognised if its last visit was longer ago. Default: no limit. Insert and
      rewrite (HAProxy `maxidle`).
    - `maxlife`: a duration; a client is not recognised if its first visit was longer ago. Default: no limit. Insert and
      rewrite (HAProxy `maxlife`).
    - `refresh`: when a client that keeps its server gets a new mark. Insert only.
      `"due"` (default): a signed mark after an eighth of the shortest of `maxidle`, `max_age` and `expires`, but not
      before 60 s, nor after more than half of it; never if none of them is given. A plain mark with dates every four
      seconds, as in HAProxy; a plain mark without dates never.
      `"always"`: with each response (as an ALB of AWS does). `"never"`.

    Requests and responses:

    - `indirect`: True: the server does not get the cookie. Default: True in insert mode, else False (HAProxy
      `indirect`). Not in rewrite mode.
    - `preserve`: True: a cookie by this name that the application sets itself goes to the client unchanged. Default:
      False (HAProxy `preserve`). Not in rewrite mode.
    - `nocache`: True: a response with a new mark gets `Cache-Control: private`, unless it is `private` or `no-store`
      already. Default: True (HAProxy `nocache`). Insert only.
    - `postonly`: True: only responses to POST are marked. Default: False (HAProxy `postonly`). Insert only.
    - `fallback`: a `FallbackCookie`, a second cookie with the same value. Default: none. Insert only.

    The attributes, insert only:

    - `httponly`: True or False. Default: True; False if `signed=False` (HAProxy `httponly`).
    - `secure`: True, False, or `"auto"`: Secure where the client came over TLS, as the connection shows it, or as a
      proxy of `Forward(trusted_proxies=...)` reports it in X-Forwarded-Proto. Default: `"auto"`, but True where
      browsers demand it; False if `signed=False` (HAProxy `secure`).
    - `samesite`: `"Lax"`, `"Strict"`, `"None"`, as such or in lower case; or None: no attribute. Default: `"Lax"`;
      None if `signed=False` (HAProxy `attr "SameSite=…"`).
    - `partitioned`: True or False. Default: False (HAProxy `attr Partitioned`).
    - `path`: text. Default: `/`, as HAProxy has it. It has to cover the routes of the backend: browsers compare it
      exactly, so `/Cart` and `/cart/` do not cover the route `/cart`.
    - `domain`: text, or a list of texts; one attribute for each. Default: none (HAProxy `domain`).
    - `attr`: text, or a list of texts; further attributes, written unchanged. Default: none (HAProxy `attr`).
    - `max_age`: a duration, how long browsers keep the cookie. Default: until the browser is closed.
    - `expires`: the same, written as a date. Default: none.

    Moving clients from another cookie or another balancer:

    - `accepts`: a list of what else names the server of a client that has no cookie of ours: cookies of earlier
      configurations (`Cookie`), and what other balancers or the application have written (`NginxCookie`, `Route`,
      `accepts.caddy(...)` and the other functions of `accepts`). Such a client goes to that server once more, and the
      response sets our cookie and deletes the other one. What it deletes is a cookie with a known path that is not the
      application's; any other is left, and ignored from then on. The first in the list that names a usable server
      counts. Whatever is not signed lets a client choose its server. Default: nothing.
    - `accepts_until`: when that ends: a date, a datetime, or either as text such as `"2027-03-01"`; without a time zone
      it is UTC. Afterwards only our own cookie counts. Default: never.

    Durations are seconds, or text such as `"8h"`, and at least 1 s. The dates for `maxidle` and `maxlife` are part of
    the value, and signed with it.

    Raises `ConfigError` with every problem found. An option without effect in the chosen mode is a problem as well.
    """

    name: str
    mode: Mode = field(default="insert", kw_only=True)
    secret: Secret | Sequence[Secret] | NotGiven = field(default=UNSET, kw_only=True, repr=False)
    signed: bool | NotGiven = field(default=UNSET, kw_only=True)
    indirect: bool | NotGiven = field(default=UNSET, kw_only=True)
    nocache: bool | NotGiven = field(default=UNSET, kw_only=True)
    postonly: bool | NotGiven = field(default=UNSET, kw_only=True)
    preserve: bool | NotGiven = field(default=UNSET, kw_only=True)
    httponly: bool | NotGiven = field(default=UNSET, kw_only=True)
    secure: bool | Literal["auto"] | NotGiven = field(default=UNSET, kw_only=True)
    samesite: SameSite | NotGiven | None = field(default=UNSET, kw_only=True)
    partitioned: bool | NotGiven = field(default=UNSET, kw_only=True)
    path: str | NotGiven = field(default=UNSET, kw_only=True)
    domain: str | Sequence[str] | NotGiven = field(default=UNSET, kw_only=True)
    attr: str | Sequence[str] | NotGiven = field(default=UNSET, kw_only=True)
    max_age: Duration | NotGiven = field(default=UNSET, kw_only=True)
    expires: Duration | NotGiven = field(default=UNSET, kw_only=True)
    maxidle: Duration | NotGiven = field(default=UNSET, kw_only=True)
    maxlife: Duration | NotGiven = field(default=UNSET, kw_only=True)
    refresh: Refresh | NotGiven = field(default=UNSET, kw_only=True)
    dynamic: str | NotGiven = field(default=UNSET, kw_only=True, repr=False)
    opaque: bool | NotGiven = field(default=UNSET, kw_only=True)
    fallback: FallbackCookie | NotGiven = field(default=UNSET, kw_only=True)
    accepts: Sequence[Persist] | NotGiven = field(default=UNSET, kw_only=True)
    accepts_until: Moment | NotGiven = field(default=UNSET, kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"cookie {self.name}: {problem}" for problem in type_problems(self, _TYPES))
        raise_problems(f"cookie {self.name}: {problem}" for problem in _problems(self))

    def __repr__(self) -> str:
        """Return what a user would write: the options that are given, a secret as `...`."""
        from sticky_core.options.written import as_written  # for messages only

        return as_written(self)

    def settings(self) -> CookieSettings:
        """Return the options of the cookie with every default applied."""
        mode = MODES[self.mode]
        written = [_written(self)]
        if self.fallback is not UNSET:
            written.append(_written(self.fallback.merged_with(replace(self, fallback=UNSET))))
        return CookieSettings(
            name=self.name,
            mode=mode,
            written=tuple(written),
            keys=_keys(self),
            is_signed=_is_signed(self),
            is_opaque=value_or(self.opaque, False),
            dynamic_key=value_or(self.dynamic, None),
            is_indirect=value_or(self.indirect, mode.is_indirect),
            preserves=value_or(self.preserve, False),
            sets_private=value_or(self.nocache, True),
            postonly=value_or(self.postonly, False),
            max_idle=_in_seconds(self.maxidle),
            max_life=_in_seconds(self.maxlife),
            expires=_in_seconds(self.expires),
            refresh=value_or(self.refresh, "due"),
            accepts=tuple(value_or(self.accepts, ())),
            accepts_until=_end_of_accepting(self),
        )

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        """Return the scopes of the cookie and of its fallback; none if only the application writes the cookie."""
        return self.settings().written_scopes

    def accepted_names(self) -> Collection[str]:
        """Return the names of the cookies in `accepts`."""
        return set[str]().union(*map(cookie_names, value_or(self.accepts, ())))

    def deletions(self, *, is_tls: bool) -> Sequence[tuple[CookieScope, str]]:
        """Return the scopes of the cookie and of its fallback, each with the attributes of the Set-Cookie that deletes
        it; none if the cookie is the application's. `is_tls`: whether the client uses TLS.
        """
        settings = self.settings()
        if not settings.mode.inserts:
            return ()
        return [
            (scope, each.attribute_text(is_tls=is_tls, is_deleted=True))
            for scope, each in zip(settings.written_scopes, settings.written, strict=True)
        ]

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> CookieEngine:
        return CookieEngine(self.settings(), backend, servers, clock)


# Defaults


def _is_signed(cookie: Cookie) -> bool:
    return MODES[cookie.mode].is_signable and cookie.signed is not False


def _keys(cookie: Cookie) -> tuple[bytes, ...]:
    """Return the secrets, oldest first; none if nothing is signed or opaque. Raise ValueError if there is no secret, or
    one is too short.
    """
    if not _is_signed(cookie) and cookie.opaque is not True:
        return ()
    return secrets(value_or(cookie.secret, None))


def _samesite(cookie: Cookie) -> WrittenSameSite | None:
    return written_samesite(value_or(cookie.samesite, "Lax" if _is_signed(cookie) else None))


def _secure(cookie: Cookie) -> bool | Literal["auto"]:
    is_demanded = bool(name_prefix(cookie.name)) or _samesite(cookie) == "None" or cookie.partitioned is True
    return value_or(cookie.secure, True if is_demanded else "auto" if _is_signed(cookie) else False)


def _written(cookie: Cookie) -> WrittenCookie:
    return WrittenCookie(
        name=cookie.name,
        path=value_or(cookie.path, "/"),
        domains=_as_tuple(cookie.domain),
        httponly=value_or(cookie.httponly, _is_signed(cookie)),
        secure=_secure(cookie),
        samesite=_samesite(cookie),
        partitioned=cookie.partitioned is True,
        attr=_as_tuple(cookie.attr),
        max_age=_in_seconds(cookie.max_age),
    )


def _in_seconds(duration: Duration | NotGiven) -> float:
    return 0.0 if duration is UNSET else seconds(duration)


def _end_of_accepting(cookie: Cookie) -> float:
    """Return `accepts_until` in seconds since the epoch. ValueError if it is no moment."""
    if cookie.accepts_until is UNSET:
        return inf
    from sticky_core.options import moments  # it takes memory, and few cookies accept others

    return moments.seconds_since_epoch(cookie.accepts_until)


def _as_tuple(option: str | Sequence[str] | NotGiven) -> tuple[str, ...]:
    return () if option is UNSET else (option,) if isinstance(option, str) else tuple(option)


def name_prefix(name: str) -> str:
    """Return the prefix of a cookie's name that makes browsers demand certain attributes; empty if it has none."""
    return next((prefix for prefix in _NAME_PREFIXES if name.lower().startswith(prefix.lower())), "")


# Validation

_IS_PLAIN = "; or, if it is HAProxy's or was plain until now, write signed=False"

_TYPES: tuple[tuple[str, Kind, str], ...] = (
    ("name", str, "a text"),
    *(
        (option, bool, "True or False")
        for option in (
            "signed",
            "indirect",
            "nocache",
            "postonly",
            "preserve",
            "httponly",
            "partitioned",
            "opaque",
        )
    ),
    ("secret", (str, bytes, Sequence, NoneType), "a text, or a list of texts"),
    ("path", str, "a path, as a text"),
    ("domain", (str, Sequence), "a text, or a list of texts"),
    ("attr", (str, Sequence), "a text, or a list of texts"),
    ("dynamic", str, "a text"),
)


def _problems(cookie: Cookie) -> Iterator[str]:
    if not cookies.is_name(cookie.name):
        yield "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, and does not begin with $"
    if cookie.mode not in MODES:
        yield problem_of_word("mode", cookie.mode, get_args(Mode))
        return
    yield from _problems_of_mode(cookie)
    yield from _problems_of_ids(cookie)
    yield from _problems_of_times(cookie)
    yield from _problems_of_attributes(cookie)
    if cookie.fallback is not UNSET:
        yield from _problems_of_fallback(cookie, cookie.fallback)
    if cookie.accepts is not UNSET:
        yield from _problems_of_accepted(cookie, cookie.accepts)
    if cookie.accepts_until is not UNSET:
        if cookie.accepts is UNSET:
            yield "accepts_until has no effect without accepts: leave it out"
        try:
            _end_of_accepting(cookie)
        except (ValueError, OverflowError):
            yield (
                f"accepts_until {cookie.accepts_until!r} is no date: "
                "write one such as '2027-03-01' or '2027-03-01T12:00+01:00'"
            )


def _problems_of_mode(cookie: Cookie) -> Iterator[str]:
    name, mode = cookie.mode, MODES[cookie.mode]
    options = [each.name for each in fields(cookie) if each.name not in ("name", "mode")]
    given = {option for option in options if getattr(cookie, option) is not UNSET}
    for option in options:
        if option in given and option not in mode.options:
            others = " or ".join(f"mode={each!r}" for each in modes_with(option))
            yield f"{option} has no effect with mode={name!r}: leave it out, or use {others}"
    if not mode.is_signable and cookie.signed is True:
        yield f"a {name} cookie is the application's own and never signed: leave signed out"
    if "preserve" in mode.options and not mode.inserts and cookie.preserve is True and cookie.indirect is not True:
        yield f"preserve has no effect with mode={name!r} unless indirect=True"
    if mode.needs_signature_for_dates and not _is_signed(cookie) and given & {"maxidle", "maxlife"}:
        yield "plain rewritten cookies have no dates, so maxidle and maxlife have no effect: sign them, or use insert"


def _problems_of_ids(cookie: Cookie) -> Iterator[str]:
    if cookie.signed is False and cookie.secret is not UNSET and cookie.opaque is not True:
        yield "secret has no effect with signed=False: leave one of them out"
    if MODES[cookie.mode].is_signable:
        try:
            _keys(cookie)
        except ValueError as error:
            yield f"{error}{'' if cookie.secret is not UNSET else _IS_PLAIN}"
    if cookie.opaque is True and cookie.dynamic is not UNSET:
        yield "opaque and dynamic both make ids: use one"
    if cookie.dynamic == "":
        yield "dynamic needs a key (HAProxy dynamic-cookie-key)"


def _problems_of_times(cookie: Cookie) -> Iterator[str]:
    for option in _DURATIONS:
        duration: Duration | NotGiven = getattr(cookie, option)
        if duration is not UNSET:
            yield from problems_of_duration(option, duration, at_least=1, at_most=LONGEST)
    if cookie.max_age is not UNSET and cookie.expires is not UNSET and _differ(cookie.max_age, cookie.expires):
        yield (
            f"max_age={cookie.max_age!r} and expires={cookie.expires!r} differ: browsers keep the cookie for max_age, "
            "and only old ones read expires: leave expires out, or write the same"
        )
    if cookie.refresh is not UNSET and cookie.refresh not in get_args(Refresh):
        yield problem_of_word("refresh", cookie.refresh, get_args(Refresh))
    if cookie.refresh == "never" and cookie.maxidle is not UNSET:
        yield "refresh='never' would let maxidle end sessions that are in use: use maxlife for a fixed end"


def _differ(one: Duration, other: Duration) -> bool:
    try:
        return seconds(one) != seconds(other)
    except ValueError:  # reported by itself
        return False


def _problems_of_attributes(cookie: Cookie) -> Iterator[str]:
    path, domains = value_or(cookie.path, "/"), _as_tuple(cookie.domain)
    if not path.startswith("/") or not cookies.is_attribute(path):
        yield f"path {path!r} is no path: it begins with / and has no semicolon"
    for domain in domains:
        if not domain or not cookies.is_attribute(domain) or " " in domain:
            yield f"domain {domain!r} is no domain"
    for attribute in _as_tuple(cookie.attr):
        if not cookies.is_attribute(attribute):
            yield f"attr {attribute!r} can't be written: printable ASCII without a semicolon"
    if cookie.samesite not in (UNSET, None, *get_args(SameSite)):
        yield problem_of_word("samesite", cookie.samesite, get_args(WrittenSameSite), ", or None to leave it out")
    if cookie.secure not in (UNSET, True, False, "auto"):
        yield f"secure {cookie.secure!r} is none of True, False, 'auto'"
    if not MODES[cookie.mode].inserts:
        return
    prefix = name_prefix(cookie.name)
    if _secure(cookie) is not True:
        for is_demanded, what in (
            (bool(prefix), f"names that begin with {prefix}"),
            (_samesite(cookie) == "None", "SameSite=None"),
            (cookie.partitioned is True, "Partitioned"),
        ):
            if is_demanded:
                yield f"browsers refuse {what} without Secure: leave secure out, or set secure=True"
    if prefix == "__Host-" and (path != "/" or domains):
        yield "browsers refuse names that begin with __Host- unless path is / and there is no domain"


def _problems_of_fallback(cookie: Cookie, fallback: object) -> Iterator[str]:
    if not isinstance(fallback, FallbackCookie):
        yield f"fallback {fallback!r} is no FallbackCookie: write fallback=FallbackCookie(name, ...)"
        return
    if fallback.name == cookie.name:
        yield "its fallback has the same name, and would overwrite it: give it another"
        return
    try:
        first = replace(cookie, fallback=UNSET)
    except ConfigError:
        return  # reported already; the fallback shares these problems
    try:
        fallback.merged_with(first)
    except ConfigError as error:
        yield from (f"its fallback {problem.removeprefix('cookie ')}" for problem in error.problems)


def _problems_of_accepted(cookie: Cookie, accepts: object) -> Iterator[str]:
    if not isinstance(accepts, (list, tuple)):
        name = accepts if isinstance(accepts, str) else "OLD"
        example = accepts if _is_persistence(accepts) else f"Cookie({name!r})"
        yield f"accepts {accepts!r} is no list: write accepts=[{example}], or leave it out"
        return
    try:
        itself = replace(cookie, accepts=UNSET, accepts_until=UNSET)
    except ConfigError:  # reported already
        itself = None
    for number, each in enumerate(cast("Sequence[object]", accepts)):
        if not _is_persistence(each):
            name = each if isinstance(each, str) else "OLD"
            yield f"accepts: {each!r} is no persistence: write one such as Cookie({name!r}) or accepts.caddy('lb')"
            continue
        label = label_of(cast("Persist", each))
        if (isinstance(each, Cookie) and each.accepts is not UNSET) or (
            isinstance(each, AcceptsCookies) and each.accepted_names()
        ):
            yield f"accepts: {label} has accepts of its own, which would have no effect: put all in one list"
        elif each == itself:
            yield f"accepts: {label} is this cookie itself: leave it out"
        elif each in accepts[:number]:
            yield f"accepts: {label} is there twice: write it once"


def _is_persistence(given: object) -> bool:
    return not isinstance(given, type) and hasattr(given, "build") and hasattr(given, "cookie_scopes")
