"""A `Cookie` at work over the servers of one backend: whom a value means, and what an answer tells its client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Literal

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence import xxh64
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult, Reason, unusable_reason
from sticky_core.persistence.cookie import dates
from sticky_core.persistence.persistence import FastPath, UsedTable
from sticky_core.persistence.signing import ADDED as SIGNATURE
from sticky_core.persistence.signing import Signing
from sticky_core.server import instance as life
from sticky_core.server.server import Server
from sticky_core.target import host_and_port

if TYPE_CHECKING:
    from sticky_core.persistence.cookie.config import Cookie

_NO_MARK = Mark.NONE  # asking an Enum for its member costs as much as a few dict look-ups

_log = logging.getLogger("sticky_sessions")

_SKEW_SIGNED = 300  # how far in the future a date may be: two of our clocks apart
_SKEW_PLAIN = 86400  # as HAProxy has it
_REMEMBERED = 4096  # headers that were read, and dated values that were verified: of each as many, at most twice
_LONGEST = 1024  # characters of a header or value that is remembered: so all of them stay within some twenty megabytes


#: What a value means: the servers that it may mean, in order, and what is result if it is that one.
_Known = tuple[tuple[Server, PersistenceResult], ...]


class CookieEngine:
    """`Cookie` at work. Values that carry no dates are made once and looked up; dated ones are verified once and
    remembered.
    """

    tables: Sequence[UsedTable] = ()

    def __init__(self, cookie: Cookie, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self.cookie = cookie
        self.name = cookie.name
        self._names = tuple(each.name for each in cookie.written)
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
        self._nocache = cookie.is_nocache
        self._postonly = cookie.is_postonly
        self._maxidle = cookie.lasting("maxidle")
        self._maxlife = cookie.lasting("maxlife")
        self._skew = _SKEW_SIGNED if self._signed else _SKEW_PLAIN
        refresh = cookie.refreshed
        self._always, self._never = refresh == "always", refresh == "never"
        self._expires = cookie.lasting("expires")
        self.max_idle = self._maxidle or inf
        lives = [life for life in (self._maxidle, cookie.lasting("max_age"), self._expires) if life]
        # After how many seconds a mark is written anew; 0 is never. Plain dates: as soon as HAProxy's have moved on.
        self._renew_after = 0.0
        if self._signed and refresh == "due" and lives:
            self._renew_after = min(max(min(lives) / 8, 60.0), min(lives) / 2)
        self._dated = bool(self._maxidle or self._maxlife or self._renew_after)
        # Each cookie that is written: its name, what stands behind its value, and what behind its deletion, by whether
        # the request came over TLS.
        self._written = [
            (
                each.name,
                {secure: each.attribute_text(_or_as(each.is_secure, secure)) for secure in (False, True)},
                {secure: each.attribute_text(_or_as(each.is_secure, secure), deleted=True) for secure in (False, True)},
            )
            for each in cookie.written
        ]

        # By id; several servers may share one, in the order of declaration.
        self._groups: dict[str, list[Server]] = {}
        # What each server is called, by key, the newest first; none if it has no mark.
        self._ids: dict[Server, tuple[str, ...]] = {}
        raise_problems(self._name_servers(servers))
        # Nothing that is longer was signed by us, and so it costs no signature to know.
        self._longest = max(map(len, self._groups), default=0) + life.SUFFIX_LENGTH + dates.ADDED + SIGNATURE

        # What undated marks say: all that are honoured; of each server, in its present life, all, and today's.
        self._lives: dict[Server, str] = {}
        self._known: dict[str, _Known] = {}
        self._made: dict[Server, list[str]] = {}
        self._values: dict[Server, str] = {}

        # What was seen of late: dated values, verified once, and headers, read once.
        self._dated_known: TwoGenerationCache[str, _Known]
        self._read: TwoGenerationCache[Hashable, tuple[_Known, Sequence[object] | None]]
        self.fast_path: FastPath
        self._warned = False
        for server in servers:
            self._enrol(server)

    def _name_servers(self, servers: Sequence[Server]) -> Iterator[str]:
        for server in servers:
            server_id = server.config.cookie_id
            if (key := self.cookie.dynamic_key) is not None and server.config.cookie is None:
                try:
                    server_id = _dynamic_id(key, server)
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

    def state_changed(self, server: Server) -> None:
        """Another life makes other values, and with `dynamic` another address another id."""
        if self.cookie.dynamic_key is not None and server.config.cookie is None:
            self._rename(server)
        if self._lives[server] != server.instance:
            self._enrol(server)

    def _rename(self, server: Server) -> None:
        """Know it by the id of its present address, and no longer by that of the one before."""
        assert self.cookie.dynamic_key is not None
        try:
            server_id = _dynamic_id(self.cookie.dynamic_key, server)
        except ValueError:
            server_id = ""  # a UNIX socket has none
        ids, before = (server_id,) if server_id else (), self._ids[server]
        if ids == before:
            return
        self._ids[server] = ids
        for each in before:
            # a new list: somebody may be looking through the old one
            self._groups[each] = [other for other in self._groups[each] if other is not server]
            if not self._groups[each]:
                del self._groups[each]
        for each in ids:
            shared = each in self._groups
            self._groups[each] = [other for other in self._ids if each in self._ids[other]] if shared else [server]
            self._longest = max(self._longest, len(each) + life.SUFFIX_LENGTH + dates.ADDED + SIGNATURE)
        self._enrol(server)
        for each in (*before, *ids):  # what they share means others now
            for other in self._groups.get(each, ()):
                if other is not server:
                    self._enrol(other)

    def _enrol(self, server: Server) -> None:
        """Make the undated values of a server for this life."""
        self._lives[server] = server.instance
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
        self._dated_known = TwoGenerationCache(_REMEMBERED)
        self._read = TwoGenerationCache(_REMEMBERED)
        self.fast_path = FastPath(_REMEMBERED)

    def _payload(self, server: Server, server_id: str) -> str:
        return life.id_with_instance(server_id, server.instance) if self._signed else server_id

    def _signed_text(self, payload: str, key: int = 0) -> str:
        return self._signing.sign(payload, key) if self._signed and self._signing is not None else payload

    def _bound(self, server_id: str, last: int | None, first: int | None, renew: bool) -> _Known:
        settled = last is None and first is None and not (renew or self._always or self._dated)
        return tuple(
            (server, PersistenceResult(Claim.VALID, Reason.BOUND, server, last, first, renew, settled))
            for server in self._groups[server_id]
        )

    # -- whom do you belong to

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        key = request.cookie_key
        if key is None:
            return NO_COOKIE
        # Taken now: what is read of a life that ends meanwhile is remembered in tables that nobody looks into any more.
        read, settled = self._read, self.fast_path
        if (remembered := read.get(key)) is not None:
            known, request.forwarded_cookies = remembered
            return self._claimed(known, accept_down)
        if (known_well := settled.get(key)) is not None and known_well[0].usable:
            _, result, request.forwarded_cookies = known_well
            return result
        texts = request.cookies
        values = self._taken(texts, request)
        if not values:
            return NO_COOKIE
        if len(values) > 1:
            return self._best(values, accept_down)
        known_or_not = self._look_up(values[0])
        if isinstance(known_or_not, PersistenceResult):
            return known_or_not
        result = self._claimed(known_or_not, accept_down)
        if len(texts) == 1 and len(texts[0]) <= _LONGEST:
            if known_or_not[0][1].needs_no_mark:
                settled.put(key, (*known_or_not[0], request.forwarded_cookies))
            else:
                read.put(key, (known_or_not, request.forwarded_cookies))
        return result

    def _taken(self, texts: Sequence[str], request: Request) -> Sequence[str]:
        """The values that came, and the request as the server is to see it. A twin's count after all of the first; one
        that says the same is no further value.
        """
        values: Sequence[str] = ()
        rest = [*texts]
        for name in self._names:
            for number, text in enumerate(rest):
                found, rest[number] = cookies.take(text, name)
                values = [*values, *found] if values else found
        if not values:
            return ()
        if self._strips:
            request.set_forwarded_cookies(rest)
        elif self.mode == "prefix":
            request.set_forwarded_cookies([cookies.replace(text, self.name, _without_prefix) for text in texts])
            values = [cookies.unquote(value).partition("~")[0] for value in values]
        return values if len(self._names) == 1 else [*dict.fromkeys(values)]

    def _best(self, values: Sequence[str], accept_down: bool) -> PersistenceResult:
        """Of several cookies by our name the first counts whose server is usable; if none does, what tells most."""
        best: PersistenceResult | None = None
        for value in values:
            known = self._look_up(value)
            result = known if isinstance(known, PersistenceResult) else self._claimed(known, accept_down)
            if result.is_bound:
                return result
            if best is None or result.claim is not Claim.INVALID:
                best = result
        assert best is not None
        return best

    def _look_up(self, value: str) -> _Known | PersistenceResult:
        """What a value means, or why it means nothing: one of those made beforehand, or a dated one."""
        dated = self._dated_known
        known = self._known.get(value) or dated.get(value)
        if known is None and self._signed and self.mode != "prefix" and value[:1] == '"':
            value = cookies.unquote(value)  # Python's clients (http.cookies, aiohttp) quote what has an @ in it
            known = self._known.get(value) or dated.get(value)
        if known is None:
            found = self._parsed(value)
            if isinstance(found, PersistenceResult) or len(value) > _LONGEST:
                return found
            dated.put(value, known := found)
        return known

    def _claimed(self, known: _Known, accept_down: bool) -> PersistenceResult:
        for server, result in known:
            if not result.needs_no_mark and (expired := self._expired(result)) is not None:
                return expired
            if server.usable:
                return result
            if accept_down:
                break
        else:
            server, result = known[0]
        return replace(
            result,
            claim=Claim.DOWN,
            reason=unusable_reason(server),
            needs_no_mark=False,
            overrides_claim=accept_down,
        )

    def _expired(self, result: PersistenceResult) -> PersistenceResult | None:
        last, first = result.last_seen, result.first_seen
        if last is None and first is None:
            return None
        now = int(self._clock.wall())
        if first is not None and self._maxlife and not -self._skew <= now - first <= self._maxlife:
            return PersistenceResult(Claim.OLD, Reason.OLD, result.server)
        if last is not None and self._maxidle and not -self._skew <= now - last <= self._maxidle:
            return PersistenceResult(Claim.EXPIRED, Reason.EXPIRED, result.server)
        return None

    def _parsed(self, value: str) -> _Known | PersistenceResult:
        if not value:
            return PersistenceResult(Claim.INVALID, Reason.EMPTY)
        payload, renew = value, False
        if self._signed and self._signing is not None:
            verified = self._signing.verify(value) if len(value) <= self._longest else None
            if verified is None:
                return PersistenceResult(Claim.INVALID, Reason.FORGED)
            payload, key = verified
            renew = key > 0
        last = first = None
        if self.mode != "prefix":
            payload, last, first = dates.split(payload)
        server_id, marked_life = life.split_instance(payload) if self._signed else (payload, "")
        group = self._groups.get(server_id)
        if group is None:
            # when the client came first stays known, whoever serves it from here on
            return PersistenceResult(Claim.INVALID, Reason.UNKNOWN, None, last, first)
        if self._signed and all(marked_life != server.instance for server in group):
            self._look_for_siblings(group, marked_life)
            return PersistenceResult(Claim.INVALID, Reason.OTHER_INSTANCE, group[0], last, first)
        # an opaque id of an old key names its server by what it would not be called today
        return self._bound(server_id, last, first, renew or all(self._ids[server][0] != server_id for server in group))

    def _look_for_siblings(self, group: Sequence[Server], marked_life: str) -> None:
        """A life younger than ours can't be one we came after: it is another process's, and clients come to both."""
        if not self._warned and any(
            server.instance and life.began_after(marked_life, server.instance) for server in group
        ):
            self._warned = True
            _log.warning(
                "backend %s: a client came with the mark of a replica in another process. Replicas live in one "
                "process: under several workers each has its own, and clients lose their sessions. Run one worker, "
                "or put StickyWorkers around the app.",
                self._backend,
            )

    # -- here is your mark

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        mark = self._settle_own(server, is_bound, response) if response.sets_cookies else _NO_MARK
        if is_bound and not self._due(result):
            return mark
        if not self._inserts or mark is Mark.PASSED or result.claim is Claim.UNUSED:
            return mark
        if self._postonly and request.method != "POST":
            return mark
        if not self._ids[server]:
            # HAProxy takes the cookie back from everybody; who sent none has none to give
            if result.claim is Claim.NONE:
                return mark
            mark = Mark.DELETED
            self._delete(request, response)
        else:
            mark = Mark.UPDATED if is_bound else Mark.INSERTED
            self._write(self._value(server, result), request, response)
        self._hold_private(response)
        return mark

    def _write(self, value: str, request: Request, response: ResponseHead) -> None:
        expires = f"; Expires={dates.http(self._clock.wall() + self._expires)}" if self._expires else ""
        for name, behind, _ in self._written:
            response.add("set-cookie", f"{name}={value}{expires}{behind[request.secure]}")

    def _delete(self, request: Request, response: ResponseHead) -> None:
        for name, _, behind in self._written:
            response.add("set-cookie", f"{name}=; Expires=Thu, 01-Jan-1970 00:00:01 GMT{behind[request.secure]}")

    def _hold_private(self, response: ResponseHead) -> None:
        """No cache may give one client's mark to another."""
        if self._nocache and not _forbids_caching(response):
            response.add("cache-control", "private")

    def _settle_own(self, server: Server, is_bound: bool, response: ResponseHead) -> Mark:
        """What becomes of cookies that the application set under our name, in HAProxy's order of questions."""
        if not any(
            name in text and cookies.set_name(text) == name for text in response.set_cookies for name in self._names
        ):
            return Mark.NONE
        if self._preserve:
            return Mark.PASSED
        if self._inserts or (is_bound and self._indirect):
            self._edit_own(response, lambda text: None)
            return Mark.DELETED
        if self.mode == "passive" or not self._ids[server]:
            return Mark.PASSED
        if self.mode == "rewrite":
            value = self._value(server, NO_COOKIE)
            self._edit_own(response, lambda text: cookies.set_value(text, lambda _: value))
        else:
            value = self._values[server]
            self._edit_own(response, lambda text: cookies.set_value(text, lambda own: f"{value}~{own}"))
        return Mark.REWRITTEN

    def _edit_own(self, response: ResponseHead, new: Callable[[str], str | None]) -> None:
        response.edit_cookies(lambda text: new(text) if cookies.set_name(text) in self._names else text)

    def _due(self, result: PersistenceResult) -> bool:
        """Whether a client that is where it belongs needs a new mark."""
        last, first = result.last_seen, result.first_seen
        if result.is_outdated or self._always:
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

    def _value(self, server: Server, result: PersistenceResult) -> str:
        if not self._dated:
            return self._values[server]
        now = int(self._clock.wall())
        first = (result.first_seen or now) if self._maxlife else None
        return self._signed_text(dates.stamped(self._payload(server, self._ids[server][0]), now, first))


def _or_as(asked: bool | Literal["auto"], request: bool) -> bool:
    """Whether a cookie is Secure in the answer to a request that came so."""
    return request if asked == "auto" else asked


def _dynamic_id(key: str, server: Server) -> str:
    if server.is_unresolved:
        return ""  # until it has an address
    if not isinstance(server.config.target, str):
        raise ValueError("it is an app")
    where = host_and_port(server.config.target)
    if where is None:
        raise ValueError("it is a UNIX socket")
    return xxh64.dynamic_id(key, *where)


def _without_prefix(value: str) -> str:
    """A prefixed value as the application knows it; what has no prefix stays as it is, quotes included."""
    _, tilde, own = cookies.unquote(value).partition("~")
    return own if tilde else value


def _forbids_caching(response: ResponseHead) -> bool:
    said = response.cache_control
    return bool(said) and not {part.strip().lower() for part in said.split(",")}.isdisjoint(("private", "no-store"))
