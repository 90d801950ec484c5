"""The run-time object of `Cookie`: recognises clients by their cookie and marks responses."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import (
    NO_COOKIE,
    Claim,
    Mark,
    PersistenceResult,
    Reason,
    no_cookie,
    unusable_reason,
)
from sticky_core.persistence.cookie.ids import CookieIds
from sticky_core.persistence.cookie.settings import CookieSettings
from sticky_core.persistence.cookie.values import LONGEST_REMEMBERED, REMEMBERED, Candidates, CookieValues
from sticky_core.persistence.cookie.writer import CookieWriter
from sticky_core.persistence.persistence import FastPath, UsedTable
from sticky_core.persistence.signing import Signing
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_core.persistence.accepted import AcceptedCookies

_NO_MARK = Mark.NONE  # reading the member of an Enum costs as much as a few dict look-ups

# how many seconds in the future a date may be, since the clocks of hosts differ
_SKEW_SIGNED = 300
_SKEW_PLAIN = 86400  # as in HAProxy


class CookieEngine:
    """A cookie for the servers of one backend.

    Recent Cookie headers are cached: with the final result in `fast_path`, or, if the dates in the value have to be
    compared with the clock, with the servers that the value names in `_parsed_headers`.
    """

    tables: Sequence[UsedTable] = ()

    def __init__(self, settings: CookieSettings, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self.name = settings.name
        self._settings = settings
        self._mode = settings.mode
        self._clock = clock
        signing = Signing(settings.keys, backend, settings.name) if settings.keys else None
        self._ids = CookieIds(settings, signing, servers)
        self._values = CookieValues(settings, self._ids, signing, backend, servers, clock)
        self._writer = CookieWriter(settings, clock)
        #: what else names a server, for a client without a cookie of ours; None: nothing does
        self.accepted: AcceptedCookies | None = None
        if settings.accepts:
            from sticky_core.persistence import accepted  # it takes memory, and few cookies accept others

            self.accepted = accepted.AcceptedCookies(settings, backend, servers, clock)
        self._names = self._writer.names
        self._strips_requests = settings.strips_requests
        self._max_idle = settings.max_idle
        self._max_life = settings.max_life
        self._skew = _SKEW_SIGNED if settings.is_signed else _SKEW_PLAIN
        self._is_dated = settings.is_dated
        self._renew_after = settings.renew_after
        self.max_idle = settings.max_idle or inf
        self._parsed_headers: TwoGenerationCache[cookies.CookieKey, tuple[Candidates, Sequence[object] | None]]
        self.fast_path: FastPath
        self._forget_results()

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> CookieEngine:
        engine = copy(self)
        engine._ids = self._ids.with_servers(servers, added, removed)
        engine._values = self._values.with_servers(engine._ids, added, removed)
        if self.accepted is not None:
            engine.accepted = self.accepted.with_servers(servers, added, removed)
        engine._forget_results()
        return engine

    def state_changed(self, server: Server) -> None:
        """Make new values if the server has another instance, or with `dynamic` another address."""
        is_accepted_otherwise = self.accepted is not None and self.accepted.state_changed(server)
        changed = self._ids.update(server)
        for each in changed:
            self._values.update(each)
        if self._values.has_other_instance(server):
            self._values.update(server)
            changed = [server]
        if changed or is_accepted_otherwise:
            self._forget_results()

    def _forget_results(self) -> None:
        # New caches: another thread that reads the old ones at this moment may still add results to them.
        self._parsed_headers = TwoGenerationCache(REMEMBERED)
        self.fast_path = FastPath(REMEMBERED)

    # The request

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        key = request.cookie_key
        if key is None:
            return NO_COOKIE if self.accepted is None else self.accepted.recognise(NO_COOKIE, request, accept_down)
        # Both are read first: if an instance ends meanwhile, its result is put into caches that are not used any more.
        parsed_headers, fast_path = self._parsed_headers, self.fast_path
        # where no value has a date, nothing is cached there: then a call less
        if parsed_headers.young and (parsed := parsed_headers.get(key)) is not None:
            candidates, request.forwarded_cookies = parsed
            return self._choose(candidates, accept_down)
        if (cached := fast_path.get(key)) is not None and cached[0].usable:
            _, result, request.forwarded_cookies = cached
            return result
        texts = request.cookies
        values = self._take(texts, request)
        if self.accepted is not None:
            self.accepted.remove_from(request)
        if not values:
            result = no_cookie(texts)
        elif len(values) > 1:
            result = self._best(values, accept_down)
        else:
            found = self._values.look_up(values[0])
            if not isinstance(found, PersistenceResult):
                result = self._choose(found, accept_down)
                if len(texts) == 1 and len(texts[0]) <= LONGEST_REMEMBERED:
                    if found[0][1].needs_no_mark:
                        fast_path.put(key, (*found[0], request.forwarded_cookies))
                    else:
                        parsed_headers.put(key, (found, request.forwarded_cookies))
                return result
            result = found
        return result if self.accepted is None else self.accepted.recognise(result, request, accept_down)

    def _take(self, texts: Sequence[str], request: Request) -> Sequence[str]:
        """Return the values of the cookie and then of its fallback in a request, each value once, and no more than are
        verified. Edit the cookies that the server gets, if the mode requires it.
        """
        values: list[str] = []
        rest = [*texts]
        for name in self._names:
            for number, text in enumerate(rest):
                found, rest[number] = cookies.take(text, name)
                values += found
        if not values:
            return ()
        if self._strips_requests:
            request.set_forwarded_cookies(rest)
        elif self._mode.has_prefix:
            request.set_forwarded_cookies([cookies.replace(text, self.name, _without_prefix) for text in texts])
            values = [cookies.unquote(value).partition("~")[0] for value in values]
        return values if len(values) == 1 else [*dict.fromkeys(values)][: cookies.MAX_CANDIDATES]

    def remove_from(self, request: Request) -> None:
        """Remove the cookie from what the server gets. Of a cookie with a prefix only a prefix that we have signed, or
        that names a server, is removed: where another cookie has replaced this one, the application's value may contain
        a `~` of its own.
        """
        texts = request.cookies
        if self._strips_requests:
            self._take(texts, request)
        elif self._mode.has_prefix and any(self.name in text for text in texts):
            own: dict[str, str] = {}  # the application's part of each value, of no more than are verified

            def without_prefix(value: str) -> str:
                if value not in own and len(own) < cookies.MAX_CANDIDATES:
                    own[value] = self._without_known_prefix(value)
                return own.get(value, value)

            edited = [cookies.replace(text, self.name, without_prefix) for text in texts]
            if edited != [*texts]:
                request.set_forwarded_cookies(edited)

    def _without_known_prefix(self, value: str) -> str:
        found = self._values.look_up(cookies.unquote(value).partition("~")[0])
        if isinstance(found, PersistenceResult):
            is_ours = self._settings.is_signed and found.reason not in (Reason.EMPTY, Reason.FORGED)
            return _without_prefix(value) if is_ours else value
        return _without_prefix(value)

    def _best(self, values: Sequence[str], accept_down: bool) -> PersistenceResult:
        """Return the result of the first value that binds the request; else of the last value that is not invalid; else
        of the first value.
        """
        best: PersistenceResult | None = None
        for value in values:
            found = self._values.look_up(value)
            result = found if isinstance(found, PersistenceResult) else self._choose(found, accept_down)
            if result.is_bound:
                return result
            if best is None or result.claim is not Claim.INVALID:
                best = result
        assert best is not None
        return best

    def _choose(self, candidates: Candidates, accept_down: bool) -> PersistenceResult:
        """Return the result for the first usable server of those that a value names; if none is usable or the value has
        expired, the result with the reason.
        """
        for server, result in candidates:
            if not result.needs_no_mark and (expired := self._expired(result)) is not None:
                return expired
            if server.usable:
                return result
            if accept_down:
                break
        else:
            server, result = candidates[0]
        return replace(
            result,
            claim=Claim.DOWN,
            reason=unusable_reason(server),
            needs_no_mark=False,
            overrides_claim=accept_down,
        )

    def _expired(self, result: PersistenceResult) -> PersistenceResult | None:
        """Return the result of a value with a date that is too old or too far in the future; None if its dates are
        valid or it has none.
        """
        last, first = result.last_seen, result.first_seen
        if last is None and first is None:
            return None
        now = int(self._clock.wall())
        if first is not None and self._max_life and not -self._skew <= now - first <= self._max_life:
            return PersistenceResult(Claim.OLD, Reason.OLD, result.server)
        if last is not None and self._max_idle and not -self._skew <= now - last <= self._max_idle:
            return PersistenceResult(Claim.EXPIRED, Reason.EXPIRED, result.server)
        return None

    # The response

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        if result.persistence_state is not None and self.accepted is not None:
            self.accepted.count(result)
        mark = self._handle_application_cookie(server, is_bound, response) if response.sets_cookies else _NO_MARK
        if self.accepted is not None and mark is Mark.REWRITTEN:
            self.accepted.delete(request, response)
        if is_bound and not self._is_due(result):
            return mark
        if not self._mode.inserts or mark is Mark.PASSED or result.claim is Claim.UNUSED:
            return mark
        if self._settings.postonly and request.method != "POST":
            return mark
        if not self._ids.written(server, is_bound):
            # HAProxy deletes the cookie in every response; here only if the client has sent one
            if result.claim is Claim.NONE or not self._is_sent(request):
                return mark
            mark = Mark.DELETED
            self._writer.delete(request, response)
        else:
            mark = Mark.UPDATED if is_bound else Mark.INSERTED
            if self.accepted is not None:
                self.accepted.delete(request, response)
            self._writer.set(self._values.make(server, result.first_seen), request, response)
        self._writer.make_private(response)
        return mark

    def _is_sent(self, request: Request) -> bool:
        """Return whether a client with a claim has sent our cookie: if not, it has sent one that is accepted."""
        if self.accepted is None:
            return True
        sent = self.accepted.sent_cookies(request)
        return any(cookies.take(text, name)[0] for text in sent for name in self._names)

    def _handle_application_cookie(self, server: Server, is_bound: bool, response: ResponseHead) -> Mark:
        """Pass on, remove or edit the cookies that the application sets under our names. The order of the conditions is
        HAProxy's.
        """
        if not self._writer.has_application_cookie(response):
            return Mark.NONE
        if self._settings.preserves:
            return Mark.PASSED
        if self._mode.inserts or (is_bound and self._settings.is_indirect):
            self._writer.remove_application_cookies(response)
            return Mark.DELETED
        edit = self._mode.edit_value
        if edit is None or not self._ids.written(server, is_bound):
            return Mark.PASSED
        value = self._values.make(server)
        self._writer.edit_application_cookies(response, lambda own: edit(value, own))
        return Mark.REWRITTEN

    def _is_due(self, result: PersistenceResult) -> bool:
        """Return whether a client that keeps its server needs a new mark."""
        last, first = result.last_seen, result.first_seen
        refresh = self._settings.refresh
        if result.is_outdated or refresh == "always":
            return True
        if last is None and first is None and not self._is_dated:
            return False
        if (first is None) is bool(self._max_life):  # the first date is missing, or is there although it is not needed
            return True
        now = int(self._clock.wall())
        if not self._settings.is_signed:
            return refresh != "never" and (bool(self._max_idle) or last is not None) and (last is None or last < now)
        if not self._is_dated:
            return True
        return bool(self._renew_after) and (last is None or now - last >= self._renew_after)


def _without_prefix(value: str) -> str:
    """Return the value that the application has set. A value without a prefix is not changed, quotes included."""
    _, tilde, own = cookies.unquote(value).partition("~")
    return own if tilde else value
