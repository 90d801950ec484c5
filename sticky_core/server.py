"""Server: one place a request can go. Its name, its weight, whether it may be used, and what it has seen."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sticky_core import target as targets
from sticky_core.cookies import is_value
from sticky_core.counters import Counters
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError, check
from sticky_core.target import App, Factory
from sticky_core.tls import TLS

#: HAProxy's letters for the names of servers and backends
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
HEAVIEST = 256


def is_weight(weight: object) -> bool:
    """Whether `weight` is one: a whole number from 0 to 256."""
    return isinstance(weight, int) and not isinstance(weight, bool) and 0 <= weight <= HEAVIEST


class AdminState(StrEnum):
    """What the operator wants of a server; its health is another matter."""

    READY = "ready"
    DRAIN = "drain"  #: keeps its clients, takes no new ones
    MAINT = "maint"  #: takes nobody


class Health(StrEnum):
    UP = "UP"
    DOWN = "DOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What was asked of a server. `Server` explains the words."""

    name: str
    target: str | App | None = None
    factory: Factory | None = None
    weight: int = 1
    cookie: str | None = None
    backup: bool = False
    stateless: bool = False
    maxconn: int = 0
    maxqueue: int = 0
    tls: TLS | None = None
    pool_max_conn: int | None = None
    pool_purge_delay: Duration | None = None

    def __post_init__(self) -> None:
        check(f"server {self.name}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not NAME.fullmatch(self.name):
            yield "a name is made of letters, digits and - _ . :"
        if (problem := targets.problem_of(self.target, self.factory)) is not None:
            yield problem
        if not is_weight(self.weight):
            yield f"weight {self.weight!r} is not within 0..{HEAVIEST}, in whole numbers"
        if self.cookie and not is_value(self.cookie):
            yield (
                f"cookie {self.cookie!r} can't be written in a cookie: "
                "printable ASCII without space, quotes, comma, semicolon, backslash"
            )
        if self.stateless and isinstance(self.target, str):
            yield "stateless is for apps: a URL has no life in this process"
        for name in ("maxconn", "maxqueue"):
            if getattr(self, name) < 0:
                yield f"{name} {getattr(self, name)!r} is below 0, which is no limit"
        if self.maxqueue and not self.maxconn:
            yield "maxqueue has no effect without maxconn: nobody waits for a server that takes everybody"
        yield from self._problems_of_url()

    def _problems_of_url(self) -> Iterator[str]:
        if not isinstance(self.target, str):
            for name in ("tls", "pool_max_conn", "pool_purge_delay"):
                if getattr(self, name) is not None:
                    yield f"{name} is for URLs: an app has no connections"
            return
        if self.tls is not None and not self.target.startswith("https:"):
            yield f"tls has no effect on {self.target}: write https://"
        if self.pool_max_conn is not None and self.pool_max_conn < 0:
            yield f"pool_max_conn {self.pool_max_conn!r} is below 0, which keeps no connection"
        if self.pool_purge_delay is not None:
            try:
                if seconds(self.pool_purge_delay) <= 0:
                    yield f"pool_purge_delay {self.pool_purge_delay!r} is not above 0: pool_max_conn=0 keeps none"
            except ValueError as error:
                yield f"pool_purge_delay: {error}"

    @property
    def cookie_id(self) -> str:
        """What marks say of this server: its name unless `cookie` says otherwise. A backup has none unless given, and
        no mark.
        """
        return self.cookie if self.cookie is not None else "" if self.backup else self.name


class Server:
    """One place a request can go: a URL, an app, or a factory whose app lives in this process.

    `weight`: its share of new clients, 0..256; 0 keeps its clients and takes no new ones.
    `cookie`: what marks call it, by default its name; several servers may share one, the first usable is meant; `""` is
    none.
    `backup`: takes requests only while no other server can (HAProxy `backup`); by default it has no mark, so that
    clients leave it when the others are back.
    `stateless`: the app keeps nothing in this process that a client would miss, so its marks outlive the process.
    `maxconn`: how many requests may be there at once, 0 for any number; who comes then waits in a queue. `maxqueue`:
    how many may wait for this very server, 0 for any number; who comes then goes elsewhere, or is sent away.

    For URLs: `tls`: how to speak to an `https://` one. `pool_max_conn`: how many idle connections are kept for the
    requests to come (100); `pool_purge_delay`: and for how long (5 s; HAProxy's words).

    Raises `ConfigError` with every problem found. A Server belongs to one Backend. What changes while it lives is
    `weight`, `state`, `health` and `life`; each change takes the backend's lock.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_health",
        "_life",
        "_state",
        "_weight",
        "config",
        "counters",
        "in_flight",
        "limit",
        "name",
        "only",
        "usable",
    )

    def __init__(
        self,
        name: str,
        target: str | App | None = None,
        *,
        factory: Factory | None = None,
        weight: int = 1,
        cookie: str | None = None,
        backup: bool = False,
        stateless: bool = False,
        maxconn: int = 0,
        maxqueue: int = 0,
        tls: TLS | None = None,
        pool_max_conn: int | None = None,
        pool_purge_delay: Duration | None = None,
    ) -> None:
        config = ServerConfig(
            name=name,
            target=target,
            factory=factory,
            weight=weight,
            cookie=cookie,
            backup=backup,
            stateless=stateless,
            maxconn=maxconn,
            maxqueue=maxqueue,
            tls=tls,
            pool_max_conn=pool_max_conn,
            pool_purge_delay=pool_purge_delay,
        )
        self._begin(config)

    @classmethod
    def of(cls, config: ServerConfig) -> Server:
        """A server as `config` asks."""
        server = cls.__new__(cls)
        server._begin(config)
        return server

    @classmethod
    def replicas(cls, factory: Factory, n: int, *, prefix: str = "r") -> list[Server]:
        """`n` servers `r1`, `r2`, … with an app each that `factory` makes: several instances of one app, each with its
        own memory.
        """
        if n < 1:
            raise ConfigError(f"replicas: {n} of them can't serve anybody")
        return [cls(f"{prefix}{number}", factory=factory) for number in range(1, n + 1)]

    def _begin(self, config: ServerConfig) -> None:
        self.config = config
        self.name = config.name
        #: the server as the tuple that most transactions end with
        self.only: tuple[Server, ...] = (self,)
        self._weight = config.weight
        self._state = AdminState.READY
        self._health = Health.UP
        self._life = ""
        self._changed: Callable[[Server], None] | None = None
        #: Whether who belongs here may be sent here (HAProxy: not STOPPED). Derived from state and health, kept because
        #: every request asks.
        self.usable = True
        #: An item per request that is here. Appending and popping are atomic, so its length needs no lock.
        self.in_flight: deque[None] = deque()
        #: how many that may be; 0 is any number
        self.limit = config.maxconn
        self.counters = Counters.new()

    def belong(self, changed: Callable[[Server], None]) -> None:
        """Join a backend, which will hear of every change."""
        self._changed = changed

    @property
    def belongs(self) -> bool:
        """Whether it is some backend's already."""
        return self._changed is not None

    @property
    def state(self) -> AdminState:
        """`ready`, `drain` or `maint`; assign one of them."""
        return self._state

    @state.setter
    def state(self, state: AdminState | Literal["ready", "drain", "maint"]) -> None:
        if state not in list(AdminState):
            raise ConfigError(f"server {self.name}: state {state!r} is none of {', '.join(AdminState)}")
        self._state = AdminState(state)
        self._tell()

    @property
    def health(self) -> Health:
        return self._health

    @health.setter
    def health(self, health: Health) -> None:
        self._health = health
        self._tell()

    @property
    def weight(self) -> int:
        """Its share of new clients, 0..256."""
        return self._weight

    @weight.setter
    def weight(self, weight: int) -> None:
        if not is_weight(weight):
            raise ConfigError(f"server {self.name}: weight {weight!r} is not within 0..{HEAVIEST}, in whole numbers")
        self._weight = weight
        self._tell()

    @property
    def life(self) -> str:
        """Whose memory this is (`sticky_core.life`); empty for a server whose memory is not ours."""
        return self._life

    @life.setter
    def life(self, life: str) -> None:
        self._life = life
        self._tell()

    @property
    def mortal(self) -> bool:
        """Whether what its clients know of it ends with this process."""
        return not isinstance(self.config.target, str) and not self.config.stateless

    @property
    def electable(self) -> bool:
        """Whether balance may choose it for a new client."""
        return self.usable and self._state is AdminState.READY and self._weight > 0

    @property
    def full(self) -> bool:
        """Whether it has as many requests as it may."""
        return 0 < self.limit <= len(self.in_flight)

    @property
    def total(self) -> int:
        """Requests that it has been tried with so far (HAProxy `stot`), those in flight included."""
        return self.counters.stot + len(self.in_flight)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed(self)
        else:
            self.settle()

    def settle(self) -> None:
        """Draw `usable` from what has changed. The backend calls it under its lock, so that the last change has the
        last word.
        """
        self.usable = self._health is Health.UP and self._state is not AdminState.MAINT

    def __repr__(self) -> str:
        return f"<Server {self.summary}>"

    @property
    def summary(self) -> str:
        """`s1 UP 3/100`: name, state, requests in flight and in all."""
        word = self._health if self._state is AdminState.READY else self._state.upper()
        return f"{self.name} {word} {len(self.in_flight)}/{self.total}"
