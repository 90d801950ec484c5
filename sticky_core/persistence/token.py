"""Persistence by a random token that we make for each client, and a stick table that remembers its server. Clients
that keep no cookies send it back in a header or a parameter of the URL.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import cast

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration
from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Mark, PersistenceResult
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.stick.config import SIZE
from sticky_core.persistence.stick.engine import StickEngine
from sticky_core.persistence.stick.rule import StickRule
from sticky_core.samples.request import Sample, cook, hdr, url_param
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable

_BYTES = 18  # random bytes of a token: 144 bits
_LENGTH = 24  # characters of a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Persistence by a token. Only the response to the first request of a client carries the token.

    - `header`: the header that carries the token, in that response and in the client's requests. Default: none.
    - `cookie`: the name of a cookie that carries the token, in addition to `header` or instead of it. The cookie is
      HttpOnly, SameSite=Lax, and Secure where the client came over TLS; servers do not get it. Default: none.
    - `param`: the parameter of the URL in which clients may send the token. Default: none.
    - `timeout`: how long a token is stored after its last use, in seconds or as text. Default: 30 minutes. It has no
      effect with a `table`.
    - `table`: the stick table, of type string. Default: one for a million tokens.

    A client with a token that is not stored gets a new one.

    Raises `ConfigError` if neither a header nor a cookie carries the token, or a name is not valid.
    """

    header: str | None = None
    cookie: str | None = None
    param: str | None = None
    timeout: Duration = "30m"
    table: StickTable = field(default=cast("StickTable", None))

    def __post_init__(self) -> None:
        raise_problems(f"token: {problem}" for problem in self._problems())
        if self.table is None:  # pyright: ignore[reportUnnecessaryComparison] - it was not given
            object.__setattr__(self, "table", StickTable("string", size=SIZE, expire=self.timeout))

    def _problems(self) -> Iterator[str]:
        if self.header is None and self.cookie is None:
            yield "nothing carries the token: give header= or cookie="
        for option, name in (("header", self.header), ("cookie", self.cookie)):
            if name is not None and not cookies.is_name(name):
                yield f"{option} {name!r} can't be the name of a {option}"
        if self.param == "":
            yield "param is empty: give the name of the parameter"
        if self.table is None:  # pyright: ignore[reportUnnecessaryComparison] - it was not given
            return
        if self.table.type != "string":
            yield f"a table of type {self.table.type} holds no tokens: use type='string'"
        elif self.table.length < _LENGTH:
            yield f"a table with length={self.table.length} cuts tokens off: {_LENGTH} characters at least"

    def cookie_scopes(self) -> tuple[CookieScope, ...]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> TokenEngine:
        return TokenEngine(self, backend, servers, clock)


class TokenEngine(StickEngine):
    """`Token` for the servers of one backend: one stick rule, and a new token for a client that it does not match."""

    def __init__(self, token: Token, backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self._header = token.header.lower() if token.header is not None else None
        self._cookie = token.cookie
        self._table = token.table
        samples: list[Sample] = []
        if token.header is not None:
            samples.append(hdr(token.header))
        if token.cookie is not None:
            samples.append(cook(token.cookie))
        if token.param is not None:
            samples.append(url_param(token.param))
        rule = StickRule(token.table, tuple(samples), matches=True, updates_only=True)
        super().__init__((rule,), backend, servers, clock)
        self.make_token: Callable[[], str] = lambda: secrets.token_urlsafe(_BYTES)

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        result = super().recognise(request, accept_down=accept_down)
        if self._cookie is not None and request.cookie_key is not None:
            texts = request.cookies
            without_token = [cookies.take(text, self._cookie)[1] for text in texts]
            if without_token != list(texts):
                request.set_forwarded_cookies(without_token)
        return result

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        mark = super().stamp_response(result, server, is_bound, request, response)
        if result.persistence_state or is_bound or server.config.non_stick:
            return mark
        token = self.make_token()
        key = self._table.key(token)
        if key is None:
            return mark
        self.store_key(self._table, key, server, request)
        if self._header is not None:
            response.add(self._header, token)
        if self._cookie is not None:
            attributes = cookies.attribute_text(path="/", httponly=True, secure=request.secure, samesite="Lax")
            response.add("set-cookie", cookies.set_cookie(self._cookie, token, "", attributes))
            response.add("cache-control", "private")
        return Mark.INSERTED
