"""A cookie says where a client belongs: ours (`insert`), or the application's with our id in it (`rewrite`, `prefix`),
or the application's as it is (`passive`). HAProxy's `cookie` keyword, signed.

Two types: `Cookie` is what was asked for, `CookiePersistence` is that at work over the servers of one backend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from math import inf
from typing import Final, Literal, TypeVar, get_args

from sticky_core import cookies, life, xxh64
from sticky_core.claim import NOTHING, Claim, Mark, Presented, Reason
from sticky_core.clock import Clock
from sticky_core.durations import LONGEST, Duration, seconds
from sticky_core.errors import check
from sticky_core.persistence import dates
from sticky_core.recent import Recent
from sticky_core.request import Reply, Request
from sticky_core.server import Server
from sticky_core.signing import ADDED as SIGNATURE
from sticky_core.signing import Secret, Signing, secrets
from sticky_core.target import address

_NO_MARK = Mark.NONE  # asking an Enum for its member costs as much as a few dict look-ups

_log = logging.getLogger("sticky_sessions")

T = TypeVar("T")

Mode = Literal["insert", "rewrite", "prefix", "passive"]
Refresh = Literal["due", "never", "always"]
SameSite = Literal["Lax", "Strict", "None"]


class _Unset(Enum):
    UNSET = "not given"

    def __repr__(self) -> str:
        return self.value


UNSET: Final = _Unset.UNSET
_Given = Literal[_Unset.UNSET]  # the type of an option that was not given

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
    "refresh": ("insert",),
    "maxidle": ("insert", "rewrite"),
    "maxlife": ("insert", "rewrite"),
}

_SKEW_SIGNED = 300  # how far in the future a date may be: two of our clocks apart
_SKEW_PLAIN = 86400  # as HAProxy has it
_REMEMBERED = 4096  # headers that were read, and dated values that were verified: of each as many, at most twice
_LONGEST = 1024  # characters of a header or value that is remembered: so all of them stay within some twenty megabytes


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
    browsers keep it; by default until they are closed. Names that begin with `__Host-` or `__Secure-` have their rules
    checked (RFC 6265bis, 4.1.3).

    `maxidle`: a client that was away for longer is not known again. `maxlife`: nor is one that came first longer ago.
    Both are durations: seconds, or text such as `"8h"`; the dates travel in the value, inside the signature. `refresh`:
    when a client that stays is written to anew. `"due"` (default): with `maxidle` or `max_age`, once an eighth of it
    has passed (a minute at least, half of it at most); plain dates as HAProxy does, every four seconds, and plain
    `max_age` alone never. `"never"`. `"always"`: with each answer (nginx, ALB).

    `dynamic`: HAProxy's `dynamic-cookie-key`; ids are made of it and the server's address. `opaque`: ids are keyed
    digests of what they would be otherwise, so they tell nothing; works with everything that is signed by a secret.

    Raises `ConfigError` with every problem found; an option that has no effect in its mode is one.
    """

    name: str
    mode: Mode = field(default="insert", kw_only=True)
    secret: Secret | Sequence[Secret] | _Given = field(default=UNSET, kw_only=True, repr=False)
    signed: bool | _Given = field(default=UNSET, kw_only=True)
    indirect: bool | _Given = field(default=UNSET, kw_only=True)
    nocache: bool | _Given = field(default=UNSET, kw_only=True)
    postonly: bool | _Given = field(default=UNSET, kw_only=True)
    preserve: bool | _Given = field(default=UNSET, kw_only=True)
    httponly: bool | _Given = field(default=UNSET, kw_only=True)
    secure: bool | Literal["auto"] | _Given = field(default=UNSET, kw_only=True)
    samesite: SameSite | _Given | None = field(default=UNSET, kw_only=True)
    partitioned: bool | _Given = field(default=UNSET, kw_only=True)
    path: str | _Given = field(default=UNSET, kw_only=True)
    domain: str | Sequence[str] | _Given = field(default=UNSET, kw_only=True)
    attr: str | Sequence[str] | _Given = field(default=UNSET, kw_only=True)
    max_age: Duration | _Given = field(default=UNSET, kw_only=True)
    maxidle: Duration | _Given = field(default=UNSET, kw_only=True)
    maxlife: Duration | _Given = field(default=UNSET, kw_only=True)
    refresh: Refresh | _Given = field(default=UNSET, kw_only=True)
    dynamic: str | _Given = field(default=UNSET, kw_only=True, repr=False)
    opaque: bool | _Given = field(default=UNSET, kw_only=True)

    def __post_init__(self) -> None:
        check(f"cookie {self.name}: {problem}" for problem in _problems(self))

    def over(self, backend: str, servers: Sequence[Server], clock: Clock) -> CookiePersistence:
        return CookiePersistence(self, backend, servers, clock)

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
    def is_secure(self) -> bool | Literal["auto"]:
        demanded = _prefix(self.name) != "" or self.same_site == "None" or self.partitioned is True
        return _or(self.secure, True if demanded else "auto" if self.is_signed else False)

    @property
    def same_site(self) -> SameSite | None:
        return _or(self.samesite, "Lax" if self.is_signed else None)

    @property
    def at_path(self) -> str:
        return _or(self.path, "/")

    @property
    def domains(self) -> tuple[str, ...]:
        return _several(self.domain)

    @property
    def attributes(self) -> tuple[str, ...]:
        return _several(self.attr)

    def keys(self) -> tuple[bytes, ...]:
        """The secrets in force, oldest to newest; none if nothing is keyed. ValueError if they can't do."""
        if not self.is_signed and self.opaque is not True:
            return ()
        return secrets(None if self.secret is UNSET else self.secret)


def _or(given: T | _Given, otherwise: T) -> T:
    return otherwise if given is UNSET else given


def _several(given: str | Sequence[str] | _Given) -> tuple[str, ...]:
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


def _problems_of_times(cookie: Cookie) -> Iterator[str]:
    for option, duration in (("max_age", cookie.max_age), ("maxidle", cookie.maxidle), ("maxlife", cookie.maxlife)):
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


#: What a value means: the servers that it may mean, in order, and what is presented if it is that one.
_Known = tuple[tuple[Server, Presented], ...]


class CookiePersistence:
    """`Cookie` at work. Values that carry no dates are made once and looked up; dated ones are verified once and
    remembered.
    """

    def __init__(self, cookie: Cookie, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self.cookie = cookie
        self.name = cookie.name
        self.mode = cookie.mode
        self._clock = clock
        self._backend = backend
        keys = cookie.keys()
        self._signing = Signing(keys, backend, cookie.name) if keys else None
        self._signed = cookie.is_signed
        self._inserts = cookie.inserts
        self._strips = cookie.inserts and cookie.is_indirect
        self._indirect = cookie.is_indirect
        self._preserve = cookie.is_preserving
        self._nocache = _or(cookie.nocache, True)
        self._postonly = _or(cookie.postonly, False)
        self._maxidle = _seconds(cookie.maxidle)
        self._maxlife = _seconds(cookie.maxlife)
        self._skew = _SKEW_SIGNED if self._signed else _SKEW_PLAIN
        refresh = _or(cookie.refresh, "due")
        self._always, self._never = refresh == "always", refresh == "never"
        max_age = _seconds(cookie.max_age)
        self.idle = self._maxidle or inf
        lives = [life for life in (self._maxidle, max_age) if life]
        # After how many seconds a mark is written anew; 0 is never. Plain dates: as soon as HAProxy's have moved on.
        self._renew_after = 0.0
        if self._signed and refresh == "due" and lives:
            self._renew_after = min(max(min(lives) / 8, 60.0), min(lives) / 2)
        self._dated = bool(self._maxidle or self._maxlife or self._renew_after)
        self._secure = cookie.is_secure
        self._attributes = {secure: _attributes(cookie, max_age, secure) for secure in (False, True)}
        self._deleting = {secure: _attributes(cookie, None, secure) for secure in (False, True)}

        # By id; several servers may share one, in the order of declaration.
        self._groups: dict[str, list[Server]] = {}
        # What each server is called, by key, the newest first; none if it has no mark.
        self._ids: dict[Server, tuple[str, ...]] = {}
        check(self._name_servers(servers))
        # Nothing that is longer was signed by us, and so it costs no signature to know.
        self._longest = max(map(len, self._groups), default=0) + life.ADDED + dates.ADDED + SIGNATURE

        # What undated marks say: all that are honoured; of each server, in its present life, all, and today's.
        self._lives: dict[Server, str] = {}
        self._known: dict[str, _Known] = {}
        self._made: dict[Server, list[str]] = {}
        self._values: dict[Server, str] = {}

        # What was seen of late: dated values, verified once, and headers, read once.
        self._dated_known: Recent[str, _Known]
        self._read: Recent[Hashable, tuple[_Known, Sequence[object] | None]]
        self.settled: Recent[Hashable, tuple[Server, Presented, Sequence[object] | None]]
        self._warned = False
        for server in servers:
            self._enrol(server)

    def _name_servers(self, servers: Sequence[Server]) -> Iterator[str]:
        for server in servers:
            server_id = server.config.cookie_id
            if self.cookie.dynamic is not UNSET and server.config.cookie is None:
                try:
                    server_id = _dynamic_id(self.cookie.dynamic, server)
                except ValueError as error:
                    yield (
                        f"cookie {self.name}: dynamic needs the address of server {server.name} ({error}): "
                        "give it a cookie= of its own, or use opaque"
                    )
                    continue
            if server_id and not cookies.is_value(server_id):
                yield (
                    f"cookie {self.name}: the name of server {server.name} can't be a cookie's value: "
                    "give it a cookie= of its own"
                )
            for character, reason in self._reserved():
                if character in server_id:
                    yield f"cookie {self.name}: server {server.name}: {character!r} in cookie {server_id!r} {reason}"
            ids: tuple[str, ...] = (server_id,) if server_id else ()
            if ids and self.cookie.opaque is True and self._signing is not None:
                ids = tuple(self._signing.digest(server_id, key) for key in self._signing.keys)
            self._ids[server] = ids
            for each in ids:
                self._groups.setdefault(each, []).append(server)

    def _reserved(self) -> Iterator[tuple[str, str]]:
        if self.mode == "prefix":
            yield "~", "would end the prefix there"
        else:
            yield "|", "would begin the dates there"
        if self._signed:
            yield "@", "would begin a replica's life there"

    def changed(self, server: Server) -> None:
        """Only another life makes other values."""
        if self._lives[server] != server.life:
            self._enrol(server)

    def _enrol(self, server: Server) -> None:
        """Make the undated values of a server for this life."""
        self._lives[server] = server.life
        for value in self._made.get(server, ()):
            self._known.pop(value, None)
        made: list[str] = []
        for key, server_id in enumerate(self._ids[server]):
            for signer in self._signing.keys if self._signed and self._signing is not None else (0,):
                value = self._signed_text(self._payload(server, server_id), signer)
                self._known[value] = self._bound(server_id, None, None, renew=key > 0 or signer > 0)
                made.append(value)
        self._made[server] = made
        if made:
            self._values[server] = made[0]
        # New tables rather than emptied ones: who is reading meanwhile may still fill those that it has.
        self._dated_known = Recent(_REMEMBERED)
        self._read = Recent(_REMEMBERED)
        self.settled = Recent(_REMEMBERED)

    def _payload(self, server: Server, server_id: str) -> str:
        return life.marked(server_id, server.life) if self._signed else server_id

    def _signed_text(self, payload: str, key: int = 0) -> str:
        return self._signing.sign(payload, key) if self._signed and self._signing is not None else payload

    def _bound(self, server_id: str, last: int | None, first: int | None, renew: bool) -> _Known:
        settled = last is None and first is None and not (renew or self._always or self._dated)
        return tuple(
            (server, Presented(Claim.VALID, Reason.BOUND, server, last, first, renew, settled))
            for server in self._groups[server_id]
        )

    # -- whom do you belong to

    def recognise(self, request: Request, *, stopped: bool = False) -> Presented:
        key = request.cookie_key
        if key is None:
            return NOTHING
        # Taken now: what is read of a life that ends meanwhile is remembered in tables that nobody looks into any more.
        read, settled = self._read, self.settled
        if (remembered := read.get(key)) is not None:
            known, request.kept = remembered
            return self._claimed(known, stopped)
        if (known_well := settled.get(key)) is not None and known_well[0].usable:
            _, presented, request.kept = known_well
            return presented
        texts = request.cookies
        values, left = cookies.take(texts[0], self.name)
        rest = [left]
        for text in texts[1:]:
            further, left = cookies.take(text, self.name)
            values = [*values, *further]
            rest.append(left)
        if not values:
            return NOTHING
        if self._strips:
            request.keep(rest)
        elif self.mode == "prefix":
            request.keep([cookies.replace(text, self.name, _without_prefix) for text in texts])
            values = [cookies.unquote(value).partition("~")[0] for value in values]
        if len(values) > 1:
            return self._best(values, stopped)
        known_or_not = self._look_up(values[0])
        if isinstance(known_or_not, Presented):
            return known_or_not
        presented = self._claimed(known_or_not, stopped)
        if len(texts) == 1 and len(texts[0]) <= _LONGEST:
            if known_or_not[0][1].settled:
                settled.put(key, (*known_or_not[0], request.kept))
            else:
                read.put(key, (known_or_not, request.kept))
        return presented

    def _best(self, values: Sequence[str], stopped: bool) -> Presented:
        """Of several cookies by our name the first counts whose server is usable; if none does, what tells most."""
        best: Presented | None = None
        for value in values:
            known = self._look_up(value)
            presented = known if isinstance(known, Presented) else self._claimed(known, stopped)
            if presented.direct:
                return presented
            if best is None or presented.claim is not Claim.INVALID:
                best = presented
        assert best is not None
        return best

    def _look_up(self, value: str) -> _Known | Presented:
        """What a value means, or why it means nothing: one of those made beforehand, or a dated one."""
        dated = self._dated_known
        known = self._known.get(value) or dated.get(value)
        if known is None:
            found = self._parsed(value)
            if isinstance(found, Presented) or len(value) > _LONGEST:
                return found
            dated.put(value, known := found)
        return known

    def _claimed(self, known: _Known, stopped: bool) -> Presented:
        for server, presented in known:
            if not presented.settled and (expired := self._expired(presented)) is not None:
                return expired
            if server.usable:
                return presented
            if stopped:
                break
        else:
            server, presented = known[0]
        return replace(presented, claim=Claim.DOWN, reason=_why_not(server), settled=False, sent=stopped)

    def _expired(self, presented: Presented) -> Presented | None:
        last, first = presented.last, presented.first
        if last is None and first is None:
            return None
        now = int(self._clock.wall())
        if first is not None and self._maxlife and not -self._skew <= now - first <= self._maxlife:
            return Presented(Claim.OLD, Reason.OLD, presented.server)
        if last is not None and self._maxidle and not -self._skew <= now - last <= self._maxidle:
            return Presented(Claim.EXPIRED, Reason.EXPIRED, presented.server)
        return None

    def _parsed(self, value: str) -> _Known | Presented:
        if not value:
            return Presented(Claim.INVALID, Reason.EMPTY)
        payload, renew = value, False
        if self._signed and self._signing is not None:
            verified = self._signing.verify(value) if len(value) <= self._longest else None
            if verified is None:
                return Presented(Claim.INVALID, Reason.FORGED)
            payload, key = verified
            renew = key > 0
        last = first = None
        if self.mode != "prefix":
            payload, last, first = dates.split(payload)
        server_id, marked_life = life.split(payload) if self._signed else (payload, "")
        group = self._groups.get(server_id)
        if group is None:
            # when the client came first stays known, whoever serves it from here on
            return Presented(Claim.INVALID, Reason.UNKNOWN, None, last, first)
        if self._signed and all(marked_life != server.life for server in group):
            self._look_for_siblings(group, marked_life)
            return Presented(Claim.INVALID, Reason.OTHER_LIFE, group[0], last, first)
        # an opaque id of an old key names its server by what it would not be called today
        return self._bound(server_id, last, first, renew or all(self._ids[server][0] != server_id for server in group))

    def _look_for_siblings(self, group: Sequence[Server], marked_life: str) -> None:
        """A life younger than ours can't be one we came after: it is another process's, and clients come to both."""
        if not self._warned and any(server.life and life.younger(marked_life, server.life) for server in group):
            self._warned = True
            _log.warning(
                "backend %s: a client came with the mark of a replica in another process. Replicas live in one "
                "process: under several workers each has its own, and clients lose their sessions. Run one worker, "
                "or put StickyWorkers around the app.",
                self._backend,
            )

    # -- here is your mark

    def mark(self, presented: Presented, server: Server, direct: bool, request: Request, reply: Reply) -> Mark:
        mark = self._settle_own(server, direct, reply) if reply.sets_cookies else _NO_MARK
        if direct and not self._due(presented):
            return mark
        if not self._inserts or mark is Mark.PASSED or presented.claim is Claim.UNUSED:
            return mark
        if self._postonly and request.method != "POST":
            return mark
        secure = request.secure if self._secure == "auto" else bool(self._secure)
        if not self._ids[server]:
            # HAProxy takes the cookie back from everybody; who sent none has none to give
            if presented.claim is Claim.NONE:
                return mark
            mark = Mark.DELETED
            reply.add("set-cookie", f"{self.name}=; Expires=Thu, 01-Jan-1970 00:00:01 GMT{self._deleting[secure]}")
        else:
            mark = Mark.UPDATED if direct else Mark.INSERTED
            reply.add("set-cookie", f"{self.name}={self._value(server, presented)}{self._attributes[secure]}")
        if self._nocache and not _forbids_caching(reply):
            reply.add("cache-control", "private")
        return mark

    def _settle_own(self, server: Server, direct: bool, reply: Reply) -> Mark:
        """What becomes of cookies that the application set under our name, in HAProxy's order of questions."""
        if not any(self.name in text and cookies.set_name(text) == self.name for text in reply.set_cookies):
            return Mark.NONE
        if self._preserve:
            return Mark.PASSED
        if self._inserts or (direct and self._indirect):
            self._edit_own(reply, lambda text: None)
            return Mark.DELETED
        if self.mode == "passive" or not self._ids[server]:
            return Mark.PASSED
        if self.mode == "rewrite":
            value = self._value(server, NOTHING)
            self._edit_own(reply, lambda text: cookies.set_value(text, lambda _: value))
        else:
            value = self._values[server]
            self._edit_own(reply, lambda text: cookies.set_value(text, lambda own: f"{value}~{own}"))
        return Mark.REWRITTEN

    def _edit_own(self, reply: Reply, new: Callable[[str], str | None]) -> None:
        reply.edit_cookies(lambda text: new(text) if cookies.set_name(text) == self.name else text)

    def _due(self, presented: Presented) -> bool:
        """Whether a client that is where it belongs needs a new mark."""
        last, first = presented.last, presented.first
        if presented.renew or self._always:
            return True
        if last is None and first is None and not self._dated:
            return False
        if (first is None) is bool(self._maxlife):  # its date is missing, or is one that nobody reads
            return True
        now = int(self._clock.wall())
        if not self._signed:
            return not self._never and (bool(self._maxidle) or last is not None) and (last is None or last < now)
        if not self._dated:
            return True
        return bool(self._renew_after) and (last is None or now - last >= self._renew_after)

    def _value(self, server: Server, presented: Presented) -> str:
        if not self._dated:
            return self._values[server]
        now = int(self._clock.wall())
        first = (presented.first or now) if self._maxlife else None
        return self._signed_text(dates.stamped(self._payload(server, self._ids[server][0]), now, first))


def _why_not(server: Server) -> Reason:
    """Why its clients can't go to a server."""
    if server.in_maint:
        return Reason.MAINT
    return Reason.DRAINED if server.reachable else Reason.DOWN


def _seconds(given: Duration | _Given) -> float:
    return 0.0 if given is UNSET else seconds(given)


def _dynamic_id(key: str, server: Server) -> str:
    if not isinstance(server.config.target, str):
        raise ValueError("it is an app")
    where = address(server.config.target)
    if where is None:
        raise ValueError("it is a UNIX socket")
    return xxh64.dynamic_id(key, *where)


def _attributes(cookie: Cookie, max_age: float | None, secure: bool) -> str:
    """What stands behind the value, in HAProxy's order; ours, which it would have in `attr`, stand before those."""
    parts = [f"path={cookie.at_path}", *(f"domain={domain}" for domain in cookie.domains)]
    if max_age:
        parts.append(f"Max-Age={int(max_age)}")
    if _or(cookie.httponly, cookie.is_signed):
        parts.append("HttpOnly")
    if secure:
        parts.append("Secure")
    if cookie.same_site is not None:
        parts.append(f"SameSite={cookie.same_site}")
    if cookie.partitioned is True:
        parts.append("Partitioned")
    return "".join(f"; {part}" for part in (*parts, *cookie.attributes))


def _without_prefix(value: str) -> str:
    """A prefixed value as the application knows it; what has no prefix stays as it is, quotes included."""
    _, tilde, own = cookies.unquote(value).partition("~")
    return own if tilde else value


def _forbids_caching(reply: Reply) -> bool:
    said = reply.cache_control
    return bool(said) and not {part.strip().lower() for part in said.split(",")}.isdisjoint(("private", "no-store"))
