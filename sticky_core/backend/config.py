"""BackendConfig: the configuration of a backend as a value: frozen, comparable, checked as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import field, fields
from typing import Literal, cast

from sticky_core.backend.retries import Retries, RetryBudget
from sticky_core.balance.algorithm import Balance
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import collect_problems, raise_problems
from sticky_core.health.check import Check
from sticky_core.http.forwarding import Forward
from sticky_core.http.timeouts import Timeouts
from sticky_core.options.types import type_problems
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import AcceptsCookies, OnlyAccepted, Persist, cookie_names, label_of
from sticky_core.persistence.rules import Condition
from sticky_core.server.config import NAME, ServerConfig

Unavailable = Literal["redispatch", "fail"]
OnEmpty = Literal["fail", "panic"]


#: options with their type, and what to write
_TYPES = (
    ("name", str, "a text"),
    ("timeouts", Timeouts, "timeouts=Timeouts(server=30)"),
    ("retry_budget", None | RetryBudget | int | float, "retry_budget=0.2 for a fifth of the requests in flight"),
    ("forward", Forward, "forward=Forward(...)"),
    ("retry_body_limit", int, "a number of bytes"),
    ("idempotency_key", bool, "True, and the client sends the header Idempotency-Key"),
    ("panic_threshold", None | int | float, "0.5 for half of the servers"),
    ("max_ejected", None | int | float, "0.5 for half of the servers"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """The configuration of a backend. `Backend` documents the options."""

    name: str
    servers: tuple[ServerConfig, ...]
    balance: Balance
    persist: tuple[Persist, ...] = ()
    retries: int = 3
    retry_on: tuple[str, ...] = ("conn-failure",)
    retry_budget: RetryBudget | float | None = None  #: a number is made a `RetryBudget`
    redispatch: bool | int = True
    unavailable: Unavailable = "redispatch"
    retry_body_limit: int = 65536
    idempotency_key: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    forward: Forward = field(default_factory=Forward)
    check: Check | None = None
    on_empty: OnEmpty = "fail"
    panic_threshold: float | None = None
    max_ejected: float | None = None
    allbackups: bool = False
    persist_on_down: bool = False
    force_persist: Condition | None = None
    ignore_persist: Condition | None = None
    use_server: tuple[tuple[str, Condition], ...] = ()

    def __post_init__(self) -> None:
        # with `replace(config, persist=Cookie(...))` as with `Backend(persist=Cookie(...))`
        object.__setattr__(self, "persist", _as_tuple(self.persist))
        object.__setattr__(self, "servers", _as_tuple(self.servers))
        raise_problems(f"backend {self.name}: {problem}" for problem in self._type_problems())
        problems: list[str] = []
        with collect_problems(problems):  # so that two configurations are equal however the budget was written
            object.__setattr__(self, "retry_budget", RetryBudget.of(self.retry_budget))
        problems += self._problems()
        raise_problems(f"backend {self.name}: {problem}" for problem in problems)

    def _type_problems(self) -> Iterator[str]:
        yield from type_problems(self, _TYPES)
        for kind in {*map(type, self.servers)} - {ServerConfig}:  # a loop over all would take long with many servers
            given = next(server for server in self.servers if isinstance(server, kind))
            remedy = "its .config" if hasattr(given, "config") else "Server(name, target).config"
            yield f"servers: {given!r} is no ServerConfig: write {remedy}"
        for persist in cast("tuple[object, ...]", self.persist):
            if isinstance(persist, type) or not hasattr(persist, "build"):
                yield f"persist: {persist!r} is no way to persist: pass a Cookie, Stick, Learn, Token, or several"

    def _problems(self) -> Iterator[str]:
        if not NAME.fullmatch(self.name):
            yield "a name is made of letters, digits and - _ . :"
        if not self.servers:
            yield "has no servers"
        names = [server.name for server in self.servers]
        if len(set(names)) < len(names):
            for name, count in _repeated(names):
                yield f"has {count} servers called {name}: give each a name of its own"
        for name, count in _repeated(cookie.name for cookie in self.cookie_scopes):
            yield f"persists by cookie {name} in {count} ways that would undo each other: give each a name of its own"
        if [server for server in self.servers if server.formerly]:  # one call, however many servers there are
            from sticky_core.server import formerly  # few servers were called something else

            yield from formerly.problems_of_servers(self.servers)
        yield from self._problems_of_accepted()
        yield from Retries(self.retries, self.retry_on, self.redispatch).problems()
        if self.retry_budget is not None and (self.retries == 0 or self.retry_on in ((), ("none",))):
            yield f"retry_budget has no effect {'with retries=0' if self.retries == 0 else 'without retry_on'}"
        if self.retry_body_limit < 0:
            yield f"retry_body_limit {self.retry_body_limit} is below 0"
        if self.unavailable not in ("redispatch", "fail"):
            yield f"unavailable {self.unavailable!r} is neither 'redispatch' nor 'fail'"
        yield from self._problems_of_choice()
        yield from self._problems_of_rules()
        yield from self._problems_of_checks()

    @property
    def _has_backups(self) -> bool:
        return any(server.backup for server in self.servers)

    def check_of(self, server: ServerConfig) -> Check | None:
        """Return the check of a server: its own, else the backend's; None if it is not checked."""
        if server.check is False or server.track is not None:
            return None
        return server.check if server.check is not None else self.check

    def _may_be_ejected(self, server: ServerConfig) -> bool:
        check = self.check_of(server)
        observes = check is not None and check.observe is not None and check.on_error != "fastinter"
        return observes or server.counts_failures

    def changed_options(self, before: BackendConfig) -> tuple[str, ...]:
        """Return the names of the options that differ from those of `before`, without `servers`."""
        return tuple(
            each.name
            for each in fields(self)
            if each.name != "servers" and getattr(self, each.name) != getattr(before, each.name)
        )

    @property
    def cookie_scopes(self) -> list[CookieScope]:
        """The cookies that the persistences write."""
        return [scope for persist in self.persist for scope in persist.cookie_scopes()]

    def _problems_of_accepted(self) -> Iterator[str]:
        writers = {name: persist for persist in self.persist for name in cookie_names(persist)}
        for persist in self.persist:
            if isinstance(persist, OnlyAccepted):
                label = label_of(persist)
                yield f"{label} is only read, and no client would get a mark: write Cookie(name, accepts=[{label}])"
            for name in persist.accepted_names() if isinstance(persist, AcceptsCookies) else ():
                if writers.get(name, persist) is not persist:
                    yield f"persists by cookie {name}, which another cookie accepts and deletes: leave one out"

    def _problems_of_choice(self) -> Iterator[str]:
        balance = cast(object, self.balance)
        if isinstance(balance, type):
            yield f"balance={balance.__name__} is a class: write balance={balance.__name__}(...), or its word as text"
        elif not hasattr(balance, "build"):
            yield f"balance={balance!r} is no algorithm: write one such as RoundRobin(), or a word such as 'leastconn'"
        if self.on_empty not in ("fail", "panic"):
            yield f"on_empty {self.on_empty!r} is neither 'fail' nor 'panic'"
        if self.panic_threshold is not None:
            if self.on_empty != "panic":
                yield "panic_threshold has no effect without on_empty='panic'"
            if not 0 <= self.panic_threshold <= 1:
                yield f"panic_threshold {self.panic_threshold!r} is not a share: write 0.5 for half of the servers"
        if self.allbackups and not self._has_backups:
            yield "allbackups has no effect without servers that have backup=True"

    def _problems_of_rules(self) -> Iterator[str]:
        for name in ("persist_on_down", "force_persist", "ignore_persist"):
            if getattr(self, name) and not self.persist and (name == "ignore_persist" or not self.use_server):
                yield f"{name} has no effect without persist"
        if self.persist_on_down and self.force_persist is not None and self.ignore_persist is None:
            yield "force_persist has no effect beside persist_on_down, which is for every request: leave one out"
        for name in ("force_persist", "ignore_persist"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                yield f"{name} {getattr(self, name)!r} is no condition: pass a function of the request"
        names = {server.name for server in self.servers} if self.use_server else set[str]()
        for name, condition in self.use_server:
            if name not in names:
                yield f"use_server names {name}, and there is no such server"
            if not callable(condition):
                yield f"use_server: {condition!r} is no condition: pass a function of the request"

    def _problems_of_checks(self) -> Iterator[str]:
        if self.check is None:
            for server in self.servers:
                if server.check is False:
                    yield f"server {server.name}: check=False has no effect: the backend has no check either"
        if self.max_ejected is not None:
            if isinstance(self.max_ejected, bool) or not 0 <= self.max_ejected <= 1:
                yield f"max_ejected {self.max_ejected!r} is not a share: write 0.5 for half of the servers"
            if not any(map(self._may_be_ejected, self.servers)):
                yield (
                    "max_ejected has no effect, as no failed request takes a server down: give servers max_fails or "
                    "fail_rate, or a check observe='layer7'; or leave max_ejected out"
                )
        own = [server for server in self.servers if server.check]
        marked_up = [server for server in own if server.check and server.check.on_marked_up]
        if (marked_up or (self.check is not None and self.check.on_marked_up)) and not self._has_backups:
            yield "check: on_marked_up has no effect without servers that have backup=True"
        for server in marked_up:
            if server.backup:
                yield f"server {server.name}: check: on_marked_up has no effect on a backup: leave it out"
        checks = self.check
        if checks is not None and checks.port is not None:
            for server in self.servers:
                if server.check is None and server.track is None and not server.is_url:
                    yield (
                        f"server {server.name}: check: port is for URLs, and this is an app: give it a check of its "
                        "own, or check=False"
                    )


def _repeated(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return the names that occur more than once, sorted, each with how often it occurs."""
    return sorted((name, count) for name, count in Counter(names).items() if count > 1)


def _as_tuple(given: object) -> tuple[object, ...]:
    """Return one thing, or several in a list or a tuple, as a tuple."""
    if isinstance(given, tuple):
        return cast("tuple[object, ...]", given)
    return tuple(cast("list[object]", given)) if isinstance(given, list) else (given,)
