"""`ForeignCookie`: a cookie that another balancer has set. It is only read: `Cookie(accepts=[...])` replaces it by its
own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import field
from math import inf
from typing import Literal, cast

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import (
    NO_COOKIE,
    Claim,
    InvalidMark,
    Mark,
    PersistenceResult,
    Reason,
    no_cookie,
    unusable_reason,
)
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.foreign.values import ForeignValues, Reader
from sticky_core.persistence.groups import group_by_id, regroup, renew_results, valid_results
from sticky_core.persistence.persistence import UsedTable, no_fast_path
from sticky_core.server.server import Server

#: A longer value names no server, and nothing of it is decoded. Browsers keep no cookie that is longer (RFC 6265, 6.1).
_LONGEST = 4096

_REMEDY = "If it stands for a server of this backend, write what the server was called there in its formerly=."


@dataclass(frozen=True, slots=True)
class ForeignCookie:
    """A cookie that another balancer has set; the functions of `accepts` return it.

    - `function`: the name of that function, for messages.
    - `name`: the name of the cookie.
    - `values`: how its values name servers.
    - `path`, `domain`: the attributes Path and Domain with which the other balancer sets it. Without them it can't be
      deleted. `path` None: not known; `domain` None: no such attribute.
    - `delimiter`: the balancer's part of the value ends there, and the rest is the application's cookie. Such a cookie
      is never deleted. Empty: all of it is the balancer's.

    Raises `ConfigError` with every problem found.
    """

    function: str
    name: str
    values: ForeignValues
    path: str | None = field(default=None, kw_only=True)
    domain: str | None = field(default=None, kw_only=True)
    delimiter: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"{self.where}: {problem}" for problem in self._problems())

    @property
    def where(self) -> str:
        """What messages about it begin with: `accepts.caddy lb`."""
        return f"accepts.{self.function} {self.name}"

    @property
    def label(self) -> str:
        """The cookie in logs and counts: `accepts.caddy('lb')`."""
        return f"accepts.{self.function}({self.name!r})"

    def _problems(self) -> Iterator[str]:
        name = cast(object, self.name)
        if not isinstance(name, str) or not cookies.is_name(name):
            yield "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, and does not begin with $"
        for option, value in (("path", self.path), ("domain", self.domain)):
            given = cast(object, value)
            if given is not None and (not isinstance(given, str) or not cookies.is_attribute(given) or " " in given):
                yield f"{option} {given!r} can't be written: printable ASCII without a space or a semicolon"
            elif option == "path" and isinstance(given, str) and not given.startswith("/"):
                yield f"path {given!r} does not begin with /: browsers ignore it: write path={'/' + given!r}"
        if self.domain is not None and self.path is None:
            yield "domain has no effect without path: both are needed to delete the cookie"
        elif self.delimiter and self.path is not None:
            yield "path has no effect on a cookie that is the application's: it is not deleted"
        yield from self.values.problems()

    @property
    def is_only_accepted(self) -> Literal[True]:
        """Always True: see `OnlyAccepted`."""
        return True

    @property
    def cookie_names(self) -> Collection[str]:
        """The name of the cookie; none if it is the application's."""
        return () if self.delimiter else (self.name,)

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        """Return no scope: the cookie is not written."""
        return ()

    def deletions(self, *, is_tls: bool) -> Sequence[tuple[CookieScope, str]]:
        """Return the scope of the cookie, with the attributes of the Set-Cookie that deletes it; none if its path is
        not known. `is_tls`: whether the client uses TLS. Then browsers accept the attributes in a frame of another site
        as well, and under names such as `__Secure-lb`.
        """
        if self.path is None or self.delimiter:
            return ()
        domains = (self.domain,) if self.domain is not None else ()
        text = cookies.attribute_text(
            path=self.path, domains=domains, secure=is_tls, samesite="None" if is_tls else None
        )
        return [(CookieScope(self.name, self.path, domains), text)]

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> ForeignCookieEngine:
        return ForeignCookieEngine(self, servers)


class ForeignCookieEngine:
    """`ForeignCookie` for the servers of one backend.

    What is decoded from a cookie is looked up among the keys of the servers, and used for nothing else.
    """

    max_idle = inf
    tables: Sequence[UsedTable] = ()

    def __init__(self, cookie: ForeignCookie, servers: Sequence[Server]) -> None:
        self._cookie = cookie
        self._servers = servers
        self._check(servers, servers)
        self.fast_path = no_fast_path()
        self._configs = {server: server.config for server in servers}
        self._keys = {server: self._keys_of(server) for server in servers}
        self._groups = group_by_id((key, server) for server, keys in self._keys.items() for key in keys)
        self._valid = valid_results(servers)
        # made when a cookie is read first, and again for other keys
        self._reader: tuple[Mapping[str, Collection[Server]], Reader] | None = None

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> ForeignCookieEngine:
        engine = copy(self)
        engine._servers = servers
        engine._check(servers, added)
        engine._configs, engine._keys = dict(self._configs), dict(self._keys)
        lost = [(key, server) for server in removed for key in engine._keys.pop(server)]
        for server in removed:
            del engine._configs[server]
        for server in added:
            engine._configs[server], engine._keys[server] = server.config, engine._keys_of(server)
        gained = [(key, server) for server in added for key in engine._keys[server]]
        engine._groups = regroup(self._groups, servers, gained, lost)
        engine._valid = renew_results(self._valid, added, removed)
        return engine

    def _check(self, servers: Sequence[Server], new: Sequence[Server]) -> None:
        raise_problems(f"{self._cookie.where}: {each}" for each in self._cookie.values.problems_with(servers, new))

    def _keys_of(self, server: Server) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._cookie.values.keys_of(server)))

    def state_changed(self, server: Server) -> None:
        """Make the keys of a server again if it has another configuration, such as another address."""
        if self._configs[server] is server.config:
            return
        before, self._configs[server] = self._keys[server], server.config
        after = self._keys_of(server)
        if after == before:
            return
        self._keys[server] = after
        # replaced, not changed: another thread may look up a key
        self._groups = regroup(
            self._groups, self._servers, [(key, server) for key in after], [(key, server) for key in before]
        )

    # The request

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is None:
            return NO_COOKIE
        texts = request.cookies
        best: PersistenceResult | None = None
        for value in self._values(texts):
            result = self._result(value, accept_down)
            if result.is_bound:
                return result
            if best is None or (best.server is None and result.server is not None):
                best = result
        return best or no_cookie(texts)

    def _values(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield the values of the cookie, each once, and no more than are looked at."""
        values = dict.fromkeys(value for text in texts for value in cookies.take(text, self._cookie.name)[0])
        for value, _ in zip(values, range(cookies.MAX_CANDIDATES), strict=False):
            yield value

    def _result(self, value: str, accept_down: bool) -> PersistenceResult:
        if not value:
            return PersistenceResult(Claim.INVALID, Reason.EMPTY)
        group = self._group(value)
        for server in group:
            if server.usable:
                return self._valid[server]
            if accept_down:
                return PersistenceResult(Claim.DOWN, unusable_reason(server), server, overrides_claim=True)
        if group:
            return PersistenceResult(Claim.DOWN, unusable_reason(group[0]), group[0])
        # with a part that is the application's, it may be a session id
        name = "" if self._cookie.delimiter else self._cookie.values.logged_name(value)
        place = f"cookie {self._cookie.name} of a client"
        return InvalidMark(Claim.INVALID, Reason.UNKNOWN, place=place, name=name, remedy=_REMEDY)

    def _group(self, value: str) -> Sequence[Server]:
        """Return the servers that a value names; none if it is unknown."""
        if self._cookie.delimiter:
            value = value.partition(self._cookie.delimiter)[0]
        if len(value) > _LONGEST:
            return ()
        groups, reader = self._groups, self._reader
        if reader is None or reader[0] is not groups:
            self._reader = reader = groups, self._cookie.values.reader(groups)
        return next((groups[key] for key in reader[1](value) if key in groups), ())

    def remove_from(self, request: Request) -> None:
        """Remove the cookie from what the server gets; of one that is the application's, only a part in front that
        names a server.
        """
        name, texts = self._cookie.name, request.cookies
        if not any(name in text for text in texts):
            return
        if self._cookie.delimiter:
            edited = [cookies.replace(text, name, self._without_mark) for text in texts]
        else:
            edited = [cookies.take(text, name)[1] for text in texts]
        if edited != [*texts]:
            request.set_forwarded_cookies(edited)

    def _without_mark(self, value: str) -> str:
        _, delimiter, own = value.partition(self._cookie.delimiter)
        return own if delimiter and self._group(value) else value

    # The response

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        return Mark.NONE
