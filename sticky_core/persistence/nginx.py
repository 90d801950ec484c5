"""nginx's `sticky cookie`, to the byte, so that nginx and we can serve the same clients: plain, as it is by nature."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, get_args

from sticky_core.clock import Clock
from sticky_core.durations import LONGEST, Duration, seconds
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import NO_COOKIE, Claim, Mark, PersistenceResult, Reason, unusable_reason
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import UsedTable, no_fast_path
from sticky_core.samples.values import parse_address
from sticky_core.server.server import Server
from sticky_core.target import Location

#: how long nginx lets a route be
LONGEST_ROUTE = 32

SameSite = Literal["strict", "lax", "none"]


@dataclass(frozen=True, slots=True)
class NginxCookie:
    """Persistence by a cookie called `name`, as nginx has it (`sticky cookie`, ngx_http_upstream_module).

    A server's id is its `cookie=` (nginx `route=`, 32 characters at most), else the MD5 of its address and port, or of
    `unix:` and its socket. An app has neither, so its name is taken; a host's name stays a name, where nginx would take
    each address behind it: where both are to agree, write addresses, or routes.

    Every answer of a server sets the cookie, whether or not it came. It is not taken out of requests, and one by this
    name that the application sets goes out as well. The first in a request counts. One that names a backup does not
    count while another server is usable, nor does one whose server has as many requests as it may (`maxconn`).

    `expires`: how long browsers keep it, in seconds or as text such as `"1h"`, or `"max"`; by default until they are
    closed. `domain`, `httponly`, `secure`, `samesite` (`"strict"`, `"lax"`, `"none"`), `path`: its attributes, none
    unless given. Nothing is signed, so a client may choose its server: `Cookie` signs.

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
        raise_problems(f"nginx cookie {self.name}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not cookies.is_name(self.name):
            yield "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~, and does not begin with $"
        if self.expires is not None and self.expires != "max":
            try:
                if not 1 <= seconds(self.expires) <= LONGEST:
                    yield f"expires {self.expires!r} is not within 1..{LONGEST} seconds"
            except ValueError as error:
                yield f"expires: {error}, or 'max'"
        for option, value in (("domain", self.domain), ("path", self.path)):
            if value is not None and (not cookies.is_attribute(value) or " " in value):
                yield f"{option} {value!r} can't be written: printable ASCII without a space or a semicolon"
        if self.samesite is not None and self.samesite not in get_args(SameSite):
            yield f"samesite {self.samesite!r} is none of {', '.join(get_args(SameSite))}"

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        """Return none without a path: then browsers send the cookie back to the path of the request that got it."""
        if self.path is None or not self.path.startswith("/"):
            return ()
        return (CookieScope(self.name, self.path, (self.domain,) if self.domain is not None else ()),)

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> NginxCookieEngine:
        return NginxCookieEngine(self, servers, clock)


class NginxCookieEngine:
    """`NginxCookie` at work."""

    max_idle = inf
    tables: Sequence[UsedTable] = ()

    def __init__(self, cookie: NginxCookie, servers: Sequence[Server], clock: Clock) -> None:
        self._name = cookie.name
        self._clock = clock
        self._expires = 0.0 if cookie.expires in (None, "max") else seconds(cookie.expires or 0)
        self._expiry = cookies.NGINX_EXPIRES_MAX if cookie.expires == "max" else ""
        self._attributes = cookies.nginx_attribute_text(
            domain=cookie.domain,
            httponly=cookie.httponly,
            secure=cookie.secure,
            samesite=cookie.samesite,
            path=cookie.path,
        )
        # every answer sets the cookie, so nothing is ever settled
        self.fast_path = no_fast_path()
        self._servers = servers
        raise_problems(self._problems())
        self._bound = {server: PersistenceResult(Claim.VALID, Reason.BOUND, server) for server in servers}
        self._enrol()

    def _problems(self) -> Iterator[str]:
        for server in self._servers:
            if len(server.config.cookie or "") > LONGEST_ROUTE:
                yield (
                    f"nginx cookie {self._name}: server {server.name}: nginx has no route longer than {LONGEST_ROUTE} "
                    f"characters: shorten cookie={server.config.cookie!r}"
                )

    def _enrol(self) -> None:
        ids = {server: sid(server) for server in self._servers}
        groups: dict[str, list[Server]] = {}
        for server, each in ids.items():
            if each:
                groups.setdefault(each, []).append(server)
        self._ids, self._groups = ids, groups  # whole: somebody may be looking one up

    def state_changed(self, server: Server) -> None:
        """Its id follows its address."""
        if self._ids[server] != sid(server):
            self._enrol()

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is None:
            return NO_COOKIE
        for text in request.cookies:
            values, _ = cookies.take(text, self._name)
            if values:
                return self._claimed(values[0], accept_down)
        return NO_COOKIE

    def _claimed(self, value: str, accept_down: bool) -> PersistenceResult:
        if not value:
            return PersistenceResult(Claim.INVALID, Reason.EMPTY)
        group = self._groups.get(value)
        if group is None:
            return PersistenceResult(Claim.INVALID, Reason.UNKNOWN)
        for server in group:
            if not server.usable:
                if accept_down:
                    return PersistenceResult(Claim.DOWN, unusable_reason(server), server, overrides_claim=True)
            elif self._is_asked(server) and not _is_full(server):
                return self._bound[server]
        server = group[0]
        if not server.usable:
            return PersistenceResult(Claim.DOWN, unusable_reason(server), server)
        if self._is_asked(server):
            return PersistenceResult(Claim.DOWN, Reason.FULL, server)
        return PersistenceResult(Claim.INVALID, Reason.UNKNOWN)  # nginx does not look among the backups

    def _is_asked(self, server: Server) -> bool:
        """Whether its turn has come: a backup's only when no other server is left."""
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


def sid(server: Server) -> str:
    """What nginx calls a server in its cookies; empty if it is to have no mark."""
    if server.config.cookie is not None:
        return server.config.cookie
    return hashlib.md5(_place(server).encode(), usedforsecurity=False).hexdigest()


def _place(server: Server) -> str:
    """Where a server is, as nginx writes it (`$upstream_addr`)."""
    if not isinstance(server.config.target, str):
        return server.name
    location = Location.parse(server.config.target)
    if location.socket is not None:
        return f"unix:{location.socket}"
    host = parse_address(location.host) or location.host
    return f"[{host}]:{location.port}" if ":" in location.host else f"{host}:{location.port}"


def _is_full(server: Server) -> bool:
    return server.limit > 0 and len(server.in_flight) >= server.limit
