"""Marks of earlier configurations and of other balancers that a `Cookie` accepts: what one names counts as if our own
cookie named it, and the response replaces it by our cookie.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

from sticky_core import fork
from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import collect_problems, raise_problems
from sticky_core.http import cookies
from sticky_core.http.dates import http_date
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Claim, PersistenceResult, Reason
from sticky_core.persistence.cookie.settings import CookieSettings
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import Persist, Persistence, ReusablePersistence, label_of
from sticky_core.server.server import Server

_log = logging.getLogger("sticky_sessions")


@runtime_checkable
class DeletableCookie(Protocol):
    """The configuration of a persistence by a cookie that can be deleted from clients."""

    def deletions(self, *, is_tls: bool) -> Sequence[tuple[CookieScope, str]]:
        """Return each cookie that clients may have, with the attributes of the Set-Cookie that deletes it; none if its
        path is not known. `is_tls`: whether the client uses TLS.
        """
        ...


@runtime_checkable
class RemovableCookie(Protocol):
    """A persistence by a cookie that is no concern of the application."""

    def remove_from(self, request: Request) -> None:
        """Remove the cookie, or what is not the application's of it, from what the server gets."""
        ...


@dataclass(frozen=True, slots=True)
class AcceptedCount:
    """How many requests came with a mark that a cookie accepts (`Cookie(accepts=...)`).

    - `cookie`: the name of our cookie.
    - `accepted`: the accepted persistence, such as `Cookie('SERVERID')`.
    - `honoured`: requests with a mark that names a server. They went there if it was usable.
    - `unknown`: requests with a mark that names no server.
    - `last`: when the latest of either was answered, in seconds since the epoch; None: there was none.
    """

    cookie: str
    accepted: str
    honoured: int = 0
    unknown: int = 0
    last: float | None = None

    def __str__(self) -> str:
        last = "" if self.last is None else f", the last on {http_date(self.last)}"
        return (
            f"cookie {self.cookie} accepts {self.accepted}: {self.honoured} requests named a server, {self.unknown} "
            f"named none{last}"
        )


class _Identity(NamedTuple):
    """By what browsers tell cookies apart. Of several attributes of one name the last counts, and neither the case nor
    a leading dot of a domain does (RFC 6265, 5.2 and 5.3; `Partitioned`: CHIPS).
    """

    name: str
    path: str
    domain: str
    is_partitioned: bool

    @classmethod
    def of(cls, set_cookie: str) -> _Identity:
        """Return that of the cookie that a Set-Cookie text sets or deletes. Without a path, the path is empty."""
        given = dict(cookies.attributes(set_cookie))
        domain = given.get("domain", "").lower().removeprefix(".")
        return cls(cookies.set_cookie_name(set_cookie) or "", given.get("path", ""), domain, "partitioned" in given)

    def may_be(self, other: _Identity) -> bool:
        """Return whether some client takes both for one cookie: not all know Partitioned, or tell the domain of a
        cookie from the host that has set it, and the path may be that of the request.
        """
        return self.name == other.name and (self.path == other.path or not self.path or not other.path)


class _Accepted:
    """One accepted persistence, its engine for the servers of a backend, and how many clients came with it.

    `deleted`: the cookies that are not deleted because of it: ours overwrites them, or they are deleted already. Those
    that it deletes are added.
    """

    def __init__(self, persist: Persist, engine: Persistence, deleted: set[_Identity]) -> None:
        self.persist = persist
        self.engine = engine
        self.counter = _Counter()
        #: the Set-Cookie texts that delete its cookies, by whether the client uses TLS
        self.deletions: dict[bool, list[tuple[_Identity, str]]] = {False: [], True: []}
        if isinstance(persist, DeletableCookie):
            found: set[_Identity] = set()
            for is_tls, texts in self.deletions.items():
                for scope, attributes in persist.deletions(is_tls=is_tls):
                    text = cookies.delete_cookie(scope.name, attributes)
                    if (identity := _Identity.of(text)) not in deleted:
                        texts.append((identity, text))
                        found.add(identity)
            deleted |= found

    def with_engine(self, engine: Persistence) -> _Accepted:
        accepted = copy(self)
        accepted.engine = engine
        return accepted


class AcceptedCookies:
    """What the cookie with these settings accepts, for the servers of one backend."""

    def __init__(self, settings: CookieSettings, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self._name = name = settings.name
        self._until = settings.accepts_until
        self._backend = backend
        self._clock = clock
        self._accepted: list[_Accepted] = []
        self._warning = _Warning()
        self._configs = {server: server.config for server in servers}
        # a cookie that ours overwrites is not deleted
        deleted = {
            _Identity.of(f"{each.name}={each.attribute_text(is_tls=False)}")
            for each in (settings.written if settings.written_scopes else ())
        }
        problems: list[str] = []
        for persist in settings.accepts:
            with collect_problems(problems):
                engine = persist.build(backend, servers, clock)
                if engine.tables:
                    problems.append(
                        f"cookie {name}: accepts: {label_of(persist)} has a table, which names servers as before: "
                        "write it in persist=, beside the cookie"
                    )
                self._accepted.append(_Accepted(persist, engine, deleted))
        raise_problems(problems)

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> AcceptedCookies:
        """Return a copy for `servers`: without `removed`, and with `added`."""
        changed = copy(self)
        changed._configs = dict(self._configs)
        for server in removed:
            del changed._configs[server]
        changed._configs.update((server, server.config) for server in added)
        changed._accepted = [
            each.with_engine(
                each.engine.with_servers(servers, added, removed)
                if isinstance(each.engine, ReusablePersistence)
                else each.persist.build(self._backend, servers, self._clock)
            )
            for each in self._accepted
        ]
        return changed

    def take_over(self, before: AcceptedCookies) -> None:
        """Go on counting where `before` stops, if it is the same cookie in an earlier configuration: what both accept
        keeps its counts. What `before` has logged is not logged again.
        """
        if before._name != self._name:
            return
        for each in self._accepted:
            each.counter = next((was.counter for was in before._accepted if was.persist == each.persist), each.counter)
        if before._until == self._until:
            self._warning = before._warning

    def silence(self) -> None:
        """Do not log the end of accepting: this is a trial, without clients."""
        self._warning = _Warning()
        self._warning.is_logged = True

    def state_changed(self, server: Server) -> bool:
        """Update what depends on `server`. Return whether other values may name it than before, so that another part of
        an application's cookie is removed from requests: it has another configuration, such as another address.
        """
        for each in self._accepted:
            each.engine.state_changed(server)
        before, self._configs[server] = self._configs[server], server.config
        return before is not server.config

    def remove_from(self, request: Request) -> None:
        """Remove the accepted cookies from what the server gets, except the application's own."""
        for each in self._accepted:
            if isinstance(each.engine, RemovableCookie):
                each.engine.remove_from(request)

    def recognise(self, own: PersistenceResult, request: Request, accept_down: bool) -> PersistenceResult:
        """Return the first result that binds the request; else the first that names a server; else `own`, the result of
        our cookie, or if there is no such cookie, the first with a claim.

        Nothing is looked at if our cookie names a server: what a client still has beside it does not count.
        """
        if own.claim not in (Claim.NONE, Claim.INVALID) or own.server is not None:
            return own
        if self.has_ended:
            self._log_end()
            return own
        forwarded = request.forwarded_cookies
        results: list[PersistenceResult] = []
        for number, each in enumerate(self._accepted):
            request.forwarded_cookies = None  # each reads what the client has sent
            try:
                found = each.engine.recognise(request, accept_down=accept_down)
            finally:
                request.forwarded_cookies = forwarded
            reason = Reason.ACCEPTED if found.claim is Claim.VALID else found.reason
            result = replace(
                found, reason=reason, is_outdated=True, needs_no_mark=False, persistence_state=_Found(number)
            )
            results.append(result)
            if result.is_bound:
                break
        return _best(own, results)

    @property
    def engines(self) -> Sequence[Persistence]:
        """What recognises the accepted marks; nothing once accepting has ended."""
        return () if self.has_ended else [each.engine for each in self._accepted]

    @property
    def has_ended(self) -> bool:
        """Whether `accepts_until` has passed."""
        return self._clock.wall() >= self._until

    def _log_end(self) -> None:
        if not self._warning.is_logged:
            self._warning.is_logged = True
            _log.warning(
                "backend %s: cookie %s: accepts_until has passed: only this cookie counts now, so remove accepts.",
                self._backend,
                self._name,
            )

    def count(self, result: PersistenceResult) -> None:
        """Count the request of `result` if an accepted cookie has decided it. An app may replace the head of its
        response, so this may be called again.
        """
        found = result.persistence_state
        if isinstance(found, _Found) and not found.is_counted and result.claim is not Claim.UNUSED:
            found.is_counted = True
            self._accepted[found.number].counter.add(self._clock.wall(), is_known=result.server is not None)

    def counts(self) -> list[AcceptedCount]:
        """Return how many requests came with what is accepted, in the order of the configuration."""
        return [count for _, count in self.counts_by_persist()]

    def counts_by_persist(self) -> list[tuple[Persist, AcceptedCount]]:
        """Return the same, each with the configuration that is accepted."""
        return [
            (each.persist, AcceptedCount(self._name, label_of(each.persist), *each.counter.read()))
            for each in self._accepted
        ]

    def sent_cookies(self, request: Request) -> Sequence[str]:
        """Return the Cookie texts as the client has sent them."""
        if request.cookie_key is None:
            return ()
        forwarded = request.forwarded_cookies
        request.forwarded_cookies = None
        sent = request.cookies
        request.forwarded_cookies = forwarded
        return sent

    def deletions(self, request: Request) -> list[str]:
        """Return the Set-Cookie texts that delete the accepted cookies which the client has sent."""
        return [text for _, text in self._deletions(request)]

    def _deletions(self, request: Request) -> list[tuple[_Identity, str]]:
        sent = self.sent_cookies(request)
        if not sent:
            return []
        deletions = (each.deletions[request.secure] for each in self._accepted if any(each.deletions.values()))
        return [
            (identity, deletion)
            for of_one in deletions
            for identity, deletion in of_one
            if any(cookies.take(text, identity.name)[0] for text in sent)
        ]

    def delete(self, request: Request, response: ResponseHead) -> None:
        """Delete the accepted cookies that the client has sent, as it gets ours. Called before ours is set: clients
        that take both for one cookie keep ours. What the response itself sets is not deleted.
        """
        deletions = self._deletions(request)
        if not deletions:
            return
        set_now = [_Identity.of(text) for text in response.set_cookies] if response.sets_cookies else []
        for identity, deletion in deletions:
            if not any(identity.may_be(each) for each in set_now):
                response.add("set-cookie", deletion)


class _Found:
    """Marks the result of a request as that of an accepted persistence, by its number."""

    __slots__ = ("is_counted", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_counted = False


def _best(own: PersistenceResult, results: Iterable[PersistenceResult]) -> PersistenceResult:
    naming = claiming = None
    for result in results:
        if result.is_bound:
            return result
        if naming is None and result.server is not None:
            naming = result
        if claiming is None and result.claim is not Claim.NONE:
            claiming = result
    return naming or (claiming if claiming is not None and own.claim is Claim.NONE else own)


class _Warning:
    """Whether the end of accepting is logged already, by any of the engines that share this."""

    is_logged = False


class _Counter:
    """How many requests came with one accepted mark. Several threads add to it, and several engines share it: those of
    former and of present servers and configurations.
    """

    def __init__(self) -> None:
        self._honoured = 0
        self._unknown = 0
        self._last: float | None = None
        self.after_fork()
        fork.register(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def add(self, now: float, *, is_known: bool) -> None:
        with self._lock:
            if is_known:
                self._honoured += 1
            else:
                self._unknown += 1
            self._last = now

    def read(self) -> tuple[int, int, float | None]:
        """Return how many marks were honoured, how many unknown, and when the latest came."""
        with self._lock:
            return self._honoured, self._unknown, self._last
