"""nginx's `sticky cookie` with exactly the same bytes, so that nginx and we can serve the same clients. It is not
signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import field
from math import inf
from typing import Literal, get_args

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import LONGEST, Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.options.spelling import problem_of_word
from sticky_core.options.types import type_problems
from sticky_core.persistence.claim import (
    GIVE_FORMERLY,
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
from sticky_core.persistence.groups import FormerIds, group_by_id, regroup, renew_results, valid_results
from sticky_core.persistence.persistence import UsedTable, no_fast_path
from sticky_core.samples.values import address_text, parse_address
from sticky_core.server.server import Server
from sticky_core.target import Location

#: the longest route that nginx allows, in characters
LONGEST_ROUTE = 32

SameSite = Literal["strict", "lax", "none"]

#: options with their type, and what to write
_TYPES = (
    ("domain", None | str, "a text, or leave it out"),
    ("path", None | str, "a path, such as path='/'"),
    ("httponly", bool, "True or False"),
    ("secure", bool, "True or False"),
)


@dataclass(frozen=True, slots=True)
class NginxCookie:
    """Persistence by a cookie as nginx has it (`sticky cookie`, ngx_http_upstream_module).

    - `name`: the cookie's name.
    - `expires`: how long browsers keep the cookie, in seconds or as text such as `"1h"`, or `"max"` (ten years).
      Default: until the browser is closed (nginx `expires=`).
    - `domain`: the attribute Domain. Default: none (nginx `domain=`).
    - `httponly`, `secure`: True or False. Default: False (nginx `httponly`, `secure`).
    - `samesite`: `"strict"`, `"lax"` or `"none"`. Default: no attribute (nginx `samesite=`).
    - `path`: the attribute Path. Default: none (nginx `path=`).

    The id of a server is its `cookie=` (nginx `route=`, 32 characters at most). Without `cookie=` it is the MD5 of the
    server's address and port, or of `unix:` and the path of its socket, or of the name of an app. For a host name we
    use the name, but nginx uses each address of the host: if nginx serves the same clients, write addresses or routes.

    Every response of a server sets the cookie, even if the request carried it. The cookie is not removed from requests
    (but in `accepts` of a `Cookie` it is), and a cookie of this name that the application sets goes to the client as
    well. If a request carries several, the first counts. A cookie that names a backup does not count while a server
    that is no backup is usable; a cookie that names a server at its `maxconn` does not count either. Nothing is signed,
    so a client can choose its server; `Cookie` signs.

    Raises `ConfigError` with every problem found.
    """

    name: str
    expires: Duration | None = field(default=None, kw_only=True)
    domain: str | None = field(default=None, kw_only=True)
    httponly: bool = field(default=False, kw_only=True)
    secure: bool = field(default=False, kw_only=True)
    samesite: SameSite | None = field(default=None, kw_only=True)
    path: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"nginx cookie {self.name}: {problem}" for problem in type_problems(self, _TYPES))
        raise_problems(f"nginx cookie {self.name}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not cookies.is_name(self.name):
            yield "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, and does not begin with $"
        if self.expires is not None and self.expires != "max":
            yield from problems_of_duration("expires", self.expires, at_least=1, at_most=LONGEST)
        for option, value in (("domain", self.domain), ("path", self.path)):
            if value is not None and (not cookies.is_attribute(value) or " " in value):
                yield f"{option} {value!r} can't be written: printable ASCII without a space or a semicolon"
        if self.path is not None and not self.path.startswith("/"):
            yield f"path {self.path!r} does not begin with /: browsers ignore it: write path={'/' + self.path!r}"
        if self.samesite is not None and self.samesite not in get_args(SameSite):
            yield problem_of_word("samesite", self.samesite, get_args(SameSite))

    @property
    def cookie_names(self) -> Collection[str]:
        return (self.name,)

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        """Return no scope if there is no path: then browsers derive it from the path of the request."""
        if self.path is None:
            return ()
        return (CookieScope(self.name, self.path, (self.domain,) if self.domain is not None else ()),)

    def deletions(self, *, is_tls: bool) -> Sequence[tuple[CookieScope, str]]:
        """Return the scope of the cookie, with the attributes of the Set-Cookie that deletes it; none if there is no
        path: then browsers may have it under several. `is_tls` does not matter.
        """
        return [(scope, self.attribute_text) for scope in self.cookie_scopes()]

    @property
    def attribute_text(self) -> str:
        """The attributes of the Set-Cookie, without those that say when the cookie ends."""
        return cookies.nginx_attribute_text(
            domain=self.domain, httponly=self.httponly, secure=self.secure, samesite=self.samesite, path=self.path
        )

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> NginxCookieEngine:
        return NginxCookieEngine(self, servers, clock)


class NginxCookieEngine:
    """`NginxCookie` for the servers of one backend."""

    max_idle = inf
    tables: Sequence[UsedTable] = ()

    def __init__(self, cookie: NginxCookie, servers: Sequence[Server], clock: Clock) -> None:
        self._name = cookie.name
        self._clock = clock
        self._expires = 0.0 if cookie.expires in (None, "max") else seconds(cookie.expires or 0)
        self._expiry = cookies.NGINX_EXPIRES_MAX if cookie.expires == "max" else ""
        self._attributes = cookie.attribute_text
        self.fast_path = no_fast_path()  # every response sets the cookie
        self._servers = servers
        raise_problems(self._problems(servers))
        self._valid = valid_results(servers)
        self._former = FormerIds(_former_nginx_ids, servers)
        self._update_ids()

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> NginxCookieEngine:
        engine = copy(self)
        engine._servers = servers
        raise_problems(engine._problems(added))
        engine._ids = dict(self._ids)
        lost = [(engine._ids.pop(server), server) for server in removed]
        engine._ids.update((server, nginx_id(server)) for server in added)
        gained = [(engine._ids[server], server) for server in added]
        engine._groups = regroup(self._groups, servers, gained, lost)
        engine._former = self._former.with_servers(servers, added, removed)
        engine._valid = renew_results(self._valid, added, removed)
        return engine

    def _problems(self, servers: Sequence[Server]) -> Iterator[str]:
        for server in servers:
            if len(server.config.cookie or "") > LONGEST_ROUTE:
                yield (
                    f"nginx cookie {self._name}: server {server.name}: nginx has no route longer than {LONGEST_ROUTE} "
                    f"characters: shorten cookie={server.config.cookie!r}"
                )

    def _update_ids(self) -> None:
        ids = {server: nginx_id(server) for server in self._servers}
        groups = group_by_id((server_id, server) for server, server_id in ids.items())
        self._ids, self._groups = ids, groups  # replaced, not changed: another thread may look up an id

    def state_changed(self, server: Server) -> None:
        """Compute the ids again if the server has another address."""
        if self._ids[server] != nginx_id(server):
            self._update_ids()

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is None:
            return NO_COOKIE
        texts = request.cookies
        for text in texts:
            values, _ = cookies.take(text, self._name)
            if values:
                return self._choose(values[0], accept_down)
        return no_cookie(texts)

    def remove_from(self, request: Request) -> None:
        """Remove the cookie from what the server gets: for a cookie of ours that accepts this one."""
        taken = [cookies.take(text, self._name) for text in request.cookies]
        if any(values for values, _ in taken):
            request.set_forwarded_cookies([rest for _, rest in taken])

    def _choose(self, value: str, accept_down: bool) -> PersistenceResult:
        if not value:
            return PersistenceResult(Claim.INVALID, Reason.EMPTY)
        group = self._groups.get(value) or self._former.servers(value)
        if not group:
            place = f"cookie {self._name} of a client"
            return InvalidMark(Claim.INVALID, Reason.UNKNOWN, place=place, name=value, remedy=GIVE_FORMERLY)
        for server in group:
            if not server.usable:
                if accept_down:
                    return PersistenceResult(Claim.DOWN, unusable_reason(server), server, overrides_claim=True)
            elif self._takes_clients(server) and not _is_full(server):
                return self._valid[server]
        server = group[0]
        if not server.usable:
            return PersistenceResult(Claim.DOWN, unusable_reason(server), server)
        if self._takes_clients(server):
            return PersistenceResult(Claim.DOWN, Reason.FULL, server)
        return PersistenceResult(Claim.INVALID, Reason.BACKUP, server)  # nginx does not search the backups then

    def _takes_clients(self, server: Server) -> bool:
        """Return whether a server takes clients. A backup does so only if all usable servers are backups."""
        return not server.config.backup or not any(each.usable and not each.config.backup for each in self._servers)

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        server_id = self._ids[server]
        if not server_id:
            return Mark.NONE
        expiry = self._expiry
        if self._expires:
            expiry = cookies.nginx_expires(self._clock.wall() + self._expires, self._expires)
        response.add("set-cookie", cookies.set_cookie(self._name, server_id, expiry, self._attributes))
        return Mark.UPDATED if is_bound else Mark.INSERTED


def nginx_id(server: Server) -> str:
    """Return the id of a server in nginx's cookies; empty (`cookie=""`) if no cookie names the server."""
    if server.config.cookie is not None:
        return server.config.cookie
    target = server.config.target
    return _md5(_upstream_addr(Location.parse(target)) if isinstance(target, str) else server.name)


def _former_nginx_ids(server: Server) -> Iterator[str]:
    """Yield the ids by which nginx may have named a server formerly: each text of `formerly` as a route, and the MD5 of
    it. None with `cookie=""`: its clients would get no other id instead.
    """
    if server.config.cookie == "":
        return
    from sticky_core.server.formerly import location_of  # few servers were called something else

    for text in server.config.formerly:
        yield text
        location = location_of(text)
        yield _md5(text if location is None else _upstream_addr(location))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _upstream_addr(location: Location) -> str:
    """Return the address of a server as nginx writes it (`$upstream_addr`)."""
    if location.socket is not None:
        return f"unix:{location.socket}"
    address = parse_address(location.host)
    host = location.host if address is None else address_text(address)
    return f"[{host}]:{location.port}" if ":" in location.host else f"{host}:{location.port}"


def _is_full(server: Server) -> bool:
    return server.limit > 0 and len(server.in_flight) >= server.limit
