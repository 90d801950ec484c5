"""Server: one place a request can go. Its name, its weight, whether it may be used, and what it has seen."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from typing import Literal, TypedDict, Unpack, cast

from sticky_core import target as targets
from sticky_core.dns.resolvers import Resolvers, is_service
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.cookies import is_value
from sticky_core.http.tls import TLS
from sticky_core.server.counters import Counters
from sticky_core.target import App, Factory

#: HAProxy's letters for the names of servers and backends
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
MAX_WEIGHT = 256


def _nowhere(server: Server) -> bool:
    """Nobody shares a table with it."""
    return False


def is_weight(weight: object) -> bool:
    """Whether `weight` is one: a whole number from 0 to 256."""
    return isinstance(weight, int) and not isinstance(weight, bool) and 0 <= weight <= MAX_WEIGHT


class AdminState(StrEnum):
    """What the operator wants of a server; its health is another matter."""

    READY = "ready"
    DRAIN = "drain"  #: keeps its clients, takes no new ones
    MAINT = "maint"  #: takes nobody


class Health(StrEnum):
    UP = "UP"
    DOWN = "DOWN"
    NOLB = "NOLB"  #: it wants no new clients (`disable_on_404`)


#: in how many steps weights grow (HAProxy `BE_WEIGHT_SCALE`)
SCALE = 16
#: seconds between two looks at whether anybody is left at a server that drains
POLL_INTERVAL = 0.1
FAIL_TIMEOUT = 10.0


class TemplateOptions(TypedDict, total=False):
    """What each server of a template may be given. `Server` explains the words."""

    weight: int
    cookie: str | None
    backup: bool
    non_stick: bool
    maxconn: int
    maxqueue: int
    tls: TLS | None
    pool_max_conn: int | None
    pool_purge_delay: Duration | None
    check: Check | Literal[False] | None
    agent_check: AgentCheck | None
    track: str | Server | None
    slowstart: Duration | None
    max_fails: int
    fail_timeout: Duration | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What was asked of a server. `Server` explains the words."""

    name: str
    target: str | App | None = None
    factory: Factory | None = None
    weight: int = 1
    cookie: str | None = None
    backup: bool = False
    non_stick: bool = False
    stateless: bool = False
    maxconn: int = 0
    maxqueue: int = 0
    tls: TLS | None = None
    pool_max_conn: int | None = None
    pool_purge_delay: Duration | None = None
    check: Check | Literal[False] | None = None
    agent_check: AgentCheck | None = None
    track: str | Server | None = None
    slowstart: Duration | None = None
    max_fails: int = 0
    fail_timeout: Duration | None = None
    #: A URL with a name for a host, whose address is found while we run (HAProxy `server-template`): `target` is that,
    #: or None until it is known.
    template: str | None = None
    #: how that name is resolved; None: as the system does
    resolvers: Resolvers | None = None

    def __post_init__(self) -> None:
        raise_problems(f"server {self.name}: {problem}" for problem in self._strangers())
        raise_problems(f"server {self.name}: {problem}" for problem in self._problems())

    def _strangers(self) -> Iterator[str]:
        """What is not of the kind that it stands for, told before it is looked at more closely."""
        for name, kind, write in (
            ("name", str, "a text"),
            ("cookie", str | None, "what marks are to call it, as a text"),
            ("check", Check | None, "check=Check('/health')"),
            ("agent_check", AgentCheck | None, "agent_check=AgentCheck(port)"),
            ("track", str | Server | None, "the other server, or its name"),
            ("tls", TLS | None, "tls=TLS(...)"),
            ("max_fails", int, "how many requests may fail, or 0 for any number"),
            ("pool_max_conn", int | None, "how many connections are kept"),
        ):
            given: object = getattr(self, name)
            if not isinstance(given, kind) and not (name == "check" and given is False):
                yield f"{name}={given!r} is none: write {write}"

    def _problems(self) -> Iterator[str]:
        if not NAME.fullmatch(self.name):
            yield "a name is made of letters, digits and - _ . :"
        yield from self._problems_of_target()
        if not is_weight(self.weight):
            yield f"weight {self.weight!r} is not within 0..{MAX_WEIGHT}, in whole numbers"
        if self.cookie and not is_value(self.cookie):
            yield (
                f"cookie {self.cookie!r} can't be written in a cookie: "
                "printable ASCII without space, quotes, comma, semicolon, backslash"
            )
        if self.stateless and self.is_url:
            yield "stateless is for apps: a URL has no life in this process"
        for name in ("maxconn", "maxqueue"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool):
                yield f"{name} {number!r} is no number of requests: write a whole one, or 0 for no limit"
            elif number < 0:
                yield f"{name} {number!r} is below 0, which is no limit"
        if self.maxqueue and not self.maxconn:
            yield "maxqueue has no effect without maxconn: nobody waits for a server that takes everybody"
        yield from self._problems_of_url()
        yield from self._problems_of_health()

    @property
    def host_url(self) -> str:
        """The URL by which it is called, of one that has an address: that of its name, unless that is a service's,
        which no host is called by.
        """
        assert isinstance(self.target, str)
        if self.template is None or is_service(targets.Location.parse(self.template).host):
            return self.target
        return self.template

    @property
    def is_url(self) -> bool:
        """Whether it is a URL, if only one whose address is not known yet; else it is an app in this process."""
        return self.template is not None or isinstance(self.target, str)

    def _problems_of_target(self) -> Iterator[str]:
        if self.template is None:
            problem = targets.target_problem(self.target, self.factory)
        elif self.factory is not None or not isinstance(self.target, str | None):
            problem = "template is for URLs: leave the app out, or the template"
        else:
            problem = targets.target_problem(self.template, None)
            if problem is None and self.target is not None:
                problem = targets.target_problem(self.target, None)
        if problem is not None:
            yield problem
        elif self.template is not None:
            problem = targets.name_problem(self.template)
            if problem is not None:
                yield problem
            elif self.template.startswith("https:") and (self.tls is None or self.tls.sni is None):
                yield f"{self.template}: the name of a service is none that TLS could verify: say tls=TLS(sni=...)"
        elif self.resolvers is not None:
            yield "resolvers have no effect without a name to resolve: write Server.template"

    def _problems_of_url(self) -> Iterator[str]:
        if not self.is_url:
            for name in ("tls", "pool_max_conn", "pool_purge_delay"):
                if getattr(self, name) is not None:
                    yield f"{name} is for URLs: an app has no connections"
            return
        for url in (self.template, self.target):
            if self.tls is not None and isinstance(url, str) and not url.startswith("https:"):
                yield f"tls has no effect on {url}: write https://"
        if self.pool_max_conn is not None and self.pool_max_conn < 0:
            yield f"pool_max_conn {self.pool_max_conn!r} is below 0, which keeps no connection"
        for problem in problems_of_duration("pool_purge_delay", self.pool_purge_delay, is_optional=True):
            yield f"{problem}; pool_max_conn=0 keeps no connection"

    def _problems_of_health(self) -> Iterator[str]:
        yield from problems_of_duration("slowstart", self.slowstart, is_optional=True)
        if self.max_fails < 0:
            yield f"max_fails {self.max_fails!r} is below 0, which counts none"
        if self.fail_timeout is not None and not self.max_fails:
            yield "fail_timeout has no effect without max_fails"
        yield from problems_of_duration("fail_timeout", self.fail_timeout, is_optional=True)
        if self.track is not None and (self.check or self.agent_check is not None or self.max_fails):
            yield "track takes another server's health over: leave check, agent_check and max_fails to that one"
        if not self.is_url:
            if self.agent_check is not None:
                yield "agent_check is for URLs: an app has no host on which an agent could be"
            if self.check and self.check.port is not None:
                yield "check: port is for URLs: an app has none"
        elif (self.agent_check is not None or (self.check and self.check.port is not None)) and self._is_socket:
            yield f"a port is of no use behind a UNIX socket: leave it out, with {self.target}"

    @property
    def _is_socket(self) -> bool:
        return isinstance(self.target, str) and self.target.removeprefix("https://").removeprefix("http://").startswith(
            "unix:"
        )

    def has_another_app_than(self, than: ServerConfig) -> bool:
        """Whether what stands behind it is not what stood behind it: another app, or none where there was one."""
        if self.is_url or than.is_url:
            return self.is_url is not than.is_url
        return self.target is not than.target or self.factory is not than.factory

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
    `non_stick`: stick tables never learn that a client was here (HAProxy `non-stick`).
    `stateless`: the app keeps nothing in this process that a client would miss, so its marks outlive the process.
    `maxconn`: how many requests may be there at once, 0 for any number; who comes then waits in a queue. `maxqueue`:
    how many may wait for this very server, 0 for any number; who comes then goes elsewhere, or is sent away.

    For URLs: `tls`: how to speak to an `https://` one. `pool_max_conn`: how many idle connections are kept for the
    requests to come (any number); `pool_purge_delay`: and for how long (5 s; HAProxy's words).

    `check`: its own, in place of the backend's; False: none. `agent_check`: an agent beside it is asked. `track`: its
    health is that of another server, by `"name"`, `"backend/name"`, or itself. `slowstart`: after a recovery or
    maintenance its weight and `maxconn` grow over so long a time. `max_fails`: after how many requests that failed it
    is left alone for `fail_timeout` (10 s; nginx's words).

    Raises `ConfigError` with every problem found. A Server belongs to one Backend. What changes while it lives is
    `weight`, `state`, `health`, `life`, and the `target` of a URL; each change takes the backend's lock. What
    `Backend.apply` asks of it is changed in place; it leaves what was changed by hand alone unless that is what differs
    in what is asked.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_drain_for",
        "_fail_timeout",
        "_failed",
        "_failed_until",
        "_fails",
        "_health",
        "_life",
        "_looked",
        "_move",
        "_quiet",
        "_seen",
        "_since",
        "_slowstart",
        "_state",
        "_stopped",
        "_weight",
        "agent",
        "agent_up",
        "as_tuple",
        "bound_somewhere",
        "checking",
        "config",
        "counters",
        "deadline",
        "drained",
        "electable",
        "eweight",
        "id",
        "in_flight",
        "limit",
        "max_fails",
        "max_idle",
        "maxconn",
        "name",
        "reachable",
        "reason",
        "removed",
        "requested",
        "trackers",
        "tracks",
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
        non_stick: bool = False,
        stateless: bool = False,
        maxconn: int = 0,
        maxqueue: int = 0,
        tls: TLS | None = None,
        pool_max_conn: int | None = None,
        pool_purge_delay: Duration | None = None,
        check: Check | Literal[False] | None = None,
        agent_check: AgentCheck | None = None,
        track: str | Server | None = None,
        slowstart: Duration | None = None,
        max_fails: int = 0,
        fail_timeout: Duration | None = None,
    ) -> None:
        config = ServerConfig(
            name=name,
            target=target,
            factory=factory,
            weight=weight,
            cookie=cookie,
            backup=backup,
            non_stick=non_stick,
            stateless=stateless,
            maxconn=maxconn,
            maxqueue=maxqueue,
            tls=tls,
            pool_max_conn=pool_max_conn,
            pool_purge_delay=pool_purge_delay,
            check=check,
            agent_check=agent_check,
            track=track,
            slowstart=slowstart,
            max_fails=max_fails,
            fail_timeout=fail_timeout,
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

    @classmethod
    def template(
        cls,
        prefix: str,
        n: int | str,
        where: str,
        *,
        resolvers: Resolvers | None = None,
        **options: Unpack[TemplateOptions],
    ) -> list[Server]:
        """`n` servers `web1`, `web2`, … (`"3-7"`: from `web3` to `web7`) for the addresses of a name, which is resolved
        again and again while they run (HAProxy `server-template`). A server without an address is in maintenance.

        `where`: `"myservice.local:80"`, or a URL, `"https://myservice.local/base"`; a name that begins with an
        underscore, `"_http._tcp.myservice.local"`, has SRV records, which tell port and weight. `resolvers`: how it is
        resolved. Everything else is as with `Server`, for each of them. A server whose address stays in the answers
        keeps it; `Cookie(dynamic=...)` lets clients follow an address from server to server, and from process to
        process. TLS names and verifies the host that was named, not its address. Raises `ConfigError`.
        """
        asked = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)", str(n))
        numbers = range(int(asked[1] or 1), int(asked[2]) + 1) if asked is not None else ()
        if not numbers:
            raise ConfigError(f"template {prefix}: {n!r} are no servers: write how many, or from which to which: '3-7'")
        url = where if targets.has_scheme(where) else f"http://{where}"
        if url.startswith("https:") and targets.target_problem(url, None) is None:
            host = targets.Location.parse(url).host
            tls = options.get("tls") or TLS()
            if tls.sni is None and not is_service(host):
                options["tls"] = replace(tls, sni=host)
        return [
            cls.of(ServerConfig(name=f"{prefix}{number}", template=url, resolvers=resolvers, **options))
            for number in numbers
        ]

    def _begin(self, config: ServerConfig) -> None:
        #: what was asked of it, and what of that is in force: its address may be another by now
        self.requested = self.config = config
        self.name = config.name
        #: the server as the tuple that most transactions end with
        self.as_tuple: tuple[Server, ...] = (self,)
        self._weight = config.weight
        self._state = AdminState.READY
        self._health = Health.UP
        self._life = ""
        self._changed: Callable[[Server], None] | None = None
        self._move: Callable[[Server, ServerConfig], None] | None = None
        #: whether it was taken out of its backend, for good
        self.removed = False
        #: Whether who belongs here may be sent here (HAProxy: not STOPPED), and whether balance may choose it. Derived
        #: from all below, kept because every request asks.
        self.usable = True
        self.electable = config.weight > 0
        #: whether it could take a request at all: also while it drains, past its deadline
        self.reachable = True
        #: its weight as it counts now, in sixteenths (`slowstart`)
        self.eweight = config.weight * SCALE
        #: its number within its backend, from 1 (HAProxy `id`); set when it joins one
        self.id: int
        #: An item per request that is here. Appending and popping are atomic, so its length needs no lock.
        self.in_flight: deque[None] = deque()
        #: how many that may be, and how many may be at once for now; 0 is any number
        self.maxconn = config.maxconn
        self.limit = config.maxconn
        self.counters = Counters.new()
        #: the check at work over it, and when its agent is asked; None: nobody checks
        self.checking: CheckRuntime | None = None
        self.agent: CheckRuntime | None = None
        self.agent_up = True
        #: whose health is its health, and who has its health of it
        self.tracks: Server | None = None
        self.trackers: tuple[Server, ...] = ()
        #: what the latest change comes from, for logs
        self.reason = ""
        self._stopped = False
        self._since: float | None = None  # when it began to come back slowly
        self.max_fails = config.max_fails
        self._set_times()
        self._fails = 0
        self._failed = 0.0  # when a request failed last
        self._failed_until: float | None = None
        #: For how long a client may stay away from it and is still known; set by its backend.
        self.max_idle = 0.0
        #: whether a process with which a table is shared may still serve clients of it
        self.bound_somewhere: Callable[[Server], bool] = _nowhere
        #: When its clients go elsewhere, while it drains; and whether nobody is here any more.
        self.deadline: float | None = None
        self.drained = False
        self._drain_for: float | None = None
        self._seen: int = 0  # requests so far when we last looked
        self._quiet = 0.0  # since when it has not had any
        self._looked = 0.0
        if self.is_unresolved:
            self.refresh_state()

    def _set_times(self) -> None:
        config = self.config
        self._slowstart = seconds(config.slowstart) if config.slowstart is not None else 0.0
        self._fail_timeout = seconds(config.fail_timeout) if config.fail_timeout is not None else FAIL_TIMEOUT

    def attach(
        self, changed: Callable[[Server], None], move: Callable[[Server, ServerConfig], None] | None = None
    ) -> None:
        """Join a backend, which will hear of every change, and moves it to another address."""
        self._changed = changed
        self._move = move

    def remove(self) -> None:
        """It is out of its backend: nobody is sent here any more. Under the backend's lock."""
        self.removed = True
        self._changed = self._move = None
        self.refresh_state()

    def inherit_from(self, before: Server) -> None:
        """Stand where `before` stood, with another app: what was counted and what the operator has said of that
        one holds for this one.
        """
        self.id = before.id
        self.counters = before.counters
        self._state = before._state
        self._drain_for, self.deadline = before._drain_for, before.deadline
        if self.config.weight == before.requested.weight:
            self._weight = before._weight
        self.refresh_state()

    def effective_config(self, asked: ServerConfig) -> ServerConfig:
        """What is in force once `asked` is asked: it is where it was moved to unless that is to be another place
        than before. ConfigError if that does not go with the rest.
        """
        if asked.is_url and asked.target == self.requested.target and self.config.target != asked.target:
            return replace(asked, target=self.config.target)
        return asked

    def update(self, asked: ServerConfig) -> None:
        """Be as is asked now, where that is not what was asked before. Under the backend's lock."""
        config, before = self.effective_config(asked), self.requested
        if asked.weight != before.weight:
            self._weight = asked.weight
        if asked.maxconn != before.maxconn:
            self.maxconn = asked.maxconn
        self.requested = asked
        if config.target != self.config.target:
            self.move(config)
        self.config = config
        self._set_times()

    def move(self, config: ServerConfig) -> None:
        """Its address is that of `config`. What is on the way to the old one says nothing of it, so it is checked anew,
        at once. Under the backend's lock.
        """
        unresolved, self.config = self.is_unresolved, config
        self.checking = self.checking.restarted() if self.checking is not None else None
        self.agent = self.agent.restarted() if self.agent is not None else None
        if unresolved and not self.in_maint:
            self._is_back()

    def _is_back(self) -> None:
        """It is believed to be well until it is checked."""
        self.agent_up = True
        if self.checking is not None:
            self.checking.reset()

    def trial_copy(self, asked: ServerConfig) -> Server:
        """A server that nobody asks anything, and that stands as this one would if `asked` were asked of it."""
        shadow = Server.of(self.effective_config(asked))
        shadow.id = self.id
        shadow._state, shadow._health, shadow._life = self._state, self.health, self._life
        if asked.weight == self.requested.weight:
            shadow._weight = self._weight
        shadow.refresh_state()
        return shadow

    @property
    def is_attached(self) -> bool:
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
        before, self._state = self._state, AdminState(state)
        self._drain_for = self.deadline = None
        self.drained = False
        self.reason = ""
        if before is AdminState.MAINT and not self.in_maint:
            self._is_back()
        self.notify()

    def drain(self, deadline: Duration | None = 300) -> None:
        """Let it keep its clients and take no new ones; after `deadline` (None: never) its clients go elsewhere. This
        is for this process: where several share tables, each has to be told. ConfigError for what is no duration.
        """
        try:
            wait = None if deadline is None else seconds(deadline)
        except ValueError as error:
            raise ConfigError(f"server {self.name}: deadline: {error}") from None
        if wait is not None and not wait >= 0:
            raise ConfigError(f"server {self.name}: deadline {deadline!r} is no number of seconds from 0 on")
        self.state = AdminState.DRAIN
        self._drain_for = wait
        self.notify()

    @property
    def health(self) -> Health:
        """As its checks say, or whoever has assigned it last."""
        if self.tracks is not None:
            return self.tracks.health
        if not self.agent_up or self._failed_until is not None:
            return Health.DOWN
        checking = self.checking
        if checking is None:
            return self._health
        return Health.DOWN if not checking.is_up else Health.NOLB if checking.is_stopping else Health.UP

    @health.setter
    def health(self, health: Health) -> None:
        self._health = health
        self._failed_until = None
        if self.checking is not None:
            self.checking.force(health is not Health.DOWN, stopping=health is Health.NOLB)
        self.reason = ""
        self.notify()

    @property
    def target(self) -> str | App | None:
        """The URL, or the app, that is asked; None for a factory's, and while an address is not known.

        Assign another URL to move it there, whoever is in flight (HAProxy `set server <b>/<s> addr`): it keeps its
        name, health, counters and clients; requests and checks to come go to the new address, on connections of their
        own. ConfigError for an app, and for what is no URL.
        """
        return self.config.target

    @target.setter
    def target(self, target: str | None) -> None:
        config, given = self.config, cast(object, target)
        if not config.is_url or not isinstance(given, str | None):
            raise ConfigError(
                f"server {self.name}: only a URL moves, and only to a URL: for another app, hand `Backend.apply` a "
                "configuration with it"
            )
        if target == config.target:
            return
        config = replace(config, target=target)
        if self._move is not None:
            self._move(self, config)
        else:
            self.move(config)
            self.notify()

    @property
    def is_unresolved(self) -> bool:
        """Whether it has no address: it is in maintenance until it has one (HAProxy "MAINT (resolution)")."""
        return self.config.target is None and self.config.template is not None

    @property
    def in_maint(self) -> bool:
        """Whether it is in maintenance, for want of an address as well, or the server is that it tracks."""
        return (
            self._state is AdminState.MAINT
            or self.is_unresolved
            or self.removed
            or (self.tracks is not None and self.tracks.in_maint)
        )

    @property
    def status(self) -> str:
        """One word for state and health: `UP`, `DOWN`, `NOLB`, `DRAIN`, `MAINT`; `REMOVED`."""
        if self.removed:
            return "REMOVED"
        if self.in_maint:
            return "MAINT"
        health = self.health
        if health is Health.DOWN:
            return "DOWN"
        if self._state is AdminState.DRAIN:
            return "DRAIN"
        return health.value

    @property
    def weight(self) -> int:
        """Its share of new clients, 0..256."""
        return self._weight

    @weight.setter
    def weight(self, weight: int) -> None:
        if not is_weight(weight):
            raise ConfigError(f"server {self.name}: weight {weight!r} is not within 0..{MAX_WEIGHT}, in whole numbers")
        self._weight = weight
        self.notify()

    @property
    def instance(self) -> str:
        """Whose memory this is (`sticky_core.server.instance`); empty for a server whose memory is not ours."""
        return self._life

    @instance.setter
    def instance(self, life: str) -> None:
        self._life = life
        self.notify()

    @property
    def is_in_process(self) -> bool:
        """Whether what its clients know of it ends with this process."""
        return not self.config.is_url and not self.config.stateless

    @property
    def shuts_down(self) -> bool:
        """Whether it takes what is in flight with it when it goes down (`on_marked_down="shutdown-sessions"`)."""
        return self.checking is not None and self.checking.check.on_marked_down is not None

    @property
    def shuts_backups(self) -> bool:
        """Whether it ends what is in flight at the backups when it comes back (`on_marked_up`)."""
        return self.checking is not None and self.checking.check.on_marked_up is not None and not self.config.backup

    @property
    def is_full(self) -> bool:
        """Whether it has as many requests as it may."""
        return 0 < self.limit <= len(self.in_flight)

    @property
    def total(self) -> int:
        """Requests that it has been tried with so far (HAProxy `stot`), those in flight included."""
        return self.counters.stot + len(self.in_flight)

    def notify(self) -> None:
        """Something about it has changed."""
        if self._changed is not None:
            self._changed(self)
        else:
            self.refresh_state()

    def refresh_state(self, now: float = 0.0, panic: bool = False) -> None:
        """Draw from what has changed, by itself or as time passes, whether it may be used and how much of it. The
        backend calls it under its lock, so that the last change has the last word. `panic`: health does not count.
        """
        if self._failed_until is not None and now >= self._failed_until:
            self._failed_until = None
            self.reason = "fail_timeout is over"
        health, maint = self.health, self.in_maint
        if maint or health is Health.DOWN:
            self._stopped = True
            self._since = None
        elif self._stopped:
            self._stopped = False
            if self._slowstart and self._changed is not None:
                self._since = now
        self._throttle(now)
        self.reachable = not maint and (panic or health is not Health.DOWN)
        self.usable = self.reachable and not self._drains_no_more(now)
        self.electable = (
            self.usable and self._weight > 0 and self._state is AdminState.READY and health is not Health.NOLB
        )

    def _throttle(self, now: float) -> None:
        """Weight and `maxconn` as far as they have grown (HAProxy `server_recalc_eweight`, `srv_dynamic_maxconn`)."""
        self._looked = now
        self.eweight = self._weight * SCALE
        self.limit = self.maxconn
        if self._since is None:
            return
        grown = (now - self._since) / self._slowstart
        if grown >= 1:
            self._since = None
            return
        self.eweight = self._weight * (int(SCALE * grown) + 1)
        self.limit = max(1, int(self.maxconn * grown)) if self.maxconn else 0

    def _drains_no_more(self, now: float) -> bool:
        """Whether the deadline has come by which its clients go elsewhere; also sees whether anybody is left."""
        if self._state is not AdminState.DRAIN:
            self._quiet = -1.0
            return False
        if self._drain_for is not None and self.deadline is None:
            self.deadline = now + self._drain_for
        total = self.total
        if self._quiet < 0 or self.in_flight or total != self._seen:
            self._seen, self._quiet = total, now
        past = self.deadline is not None and now >= self.deadline
        if not self.drained:
            quiet = not self.in_flight and now - self._quiet >= self.max_idle
            self.drained = past or (quiet and not self.bound_somewhere(self))
        return past

    @property
    def next_deadline(self) -> float:
        """When time changes something about it."""
        due = inf
        if self._since is not None:
            due = self._looked + max(1.0, self._slowstart / 20)
        if self._failed_until is not None:
            due = min(due, self._failed_until)
        if self._state is AdminState.DRAIN:
            if self.deadline is not None and self._looked < self.deadline:
                due = min(due, self.deadline)
            if not self.drained:
                due = min(due, max(self._quiet + self.max_idle, self._looked + POLL_INTERVAL))
        return due

    @property
    def throttle(self) -> int:
        """How much of its weight counts, in percent (`slowstart`)."""
        return 100 * self.eweight // (self._weight * SCALE) if self._weight else 100

    def failed_at(self, now: float) -> bool:
        """A request has failed: whether that is one too many (nginx `max_fails`)."""
        self._fails += 1
        self._failed = now
        if self._fails < self.max_fails:
            return False
        self._failed_until = now + self._fail_timeout
        self.reason = f"{self._fails} requests failed"
        return True

    def served_at(self, now: float) -> None:
        """A request has not failed: those that did before a `fail_timeout` are forgotten."""
        if now - self._failed > self._fail_timeout:
            self._fails = 0

    @property
    def is_error_free(self) -> bool:
        """Whether one more request that does not fail means nothing new."""
        return not self._fails and (self.checking is None or self.checking.is_error_free)

    def __repr__(self) -> str:
        return f"<Server {self.summary}>"

    @property
    def summary(self) -> str:
        """`s1 UP 3/100`: name, state, requests in flight and in all."""
        return f"{self.name} {self.status} {len(self.in_flight)}/{self.total}"
