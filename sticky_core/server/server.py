"""Server: a place that requests can be sent to, and its state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Unpack, cast

from sticky_core.dns.resolvers import Resolvers
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.tls import TLS
from sticky_core.server.config import MAX_WEIGHT, ServerConfig, TemplateOptions, is_weight
from sticky_core.server.counters import Counters
from sticky_core.server.drain import Drain
from sticky_core.server.max_fails import MaxFails
from sticky_core.server.slowstart import SCALE, SlowStart
from sticky_core.server.state import AdminState, Health
from sticky_core.server.template import expand_template
from sticky_core.target import App, Factory


class Server:
    """A place that requests can be sent to: a URL, an app, or a factory that makes an app in this process.

    - `name`: its name, unique within its backend: letters, digits and `- _ . :`.
    - `target`: a URL, `"http://10.0.0.1:8000"`, or an app (ASGI or WSGI). Required without `factory`.
    - `factory`: makes the app, once, in the process that serves. None.
    - `weight`: its share of new clients, 0 to 256; with 0 it keeps its clients and gets no new ones. 1. HAProxy
      `weight`.
    - `cookie`: its id in cookies. Several servers may have the same; the first usable one gets the client. `""`: none.
      By default its name; a backup has none. HAProxy `cookie`.
    - `backup`: it gets requests only while no other server can. By default it has no cookie id, so that clients leave
      it when other servers are back. False. HAProxy `backup`.
    - `non_stick`: stick tables do not learn its clients. False. HAProxy `non-stick`.
    - `stateless`: the app keeps nothing in this process that a client would miss, so cookies stay valid after a
      restart. False.
    - `maxconn`: how many requests may be in flight; further ones wait in a queue. 0: any number. HAProxy `maxconn`.
    - `maxqueue`: how many requests may wait for this server; further ones are sent to another server, or rejected. 0:
      any number. HAProxy `maxqueue`.
    - `tls`: how to connect to an `https://` URL, a `TLS`. None: with the defaults of `TLS`.
    - `pool_max_conn`: how many idle connections are kept. None: any number. HAProxy `pool-max-conn`.
    - `pool_purge_delay`: for how long an idle connection is kept, a duration. None: 5 s. HAProxy `pool-purge-delay`.
    - `check`: its health check, a `Check`. None: that of the backend. False: none. HAProxy `check`.
    - `agent_check`: an agent on its host that is called regularly, an `AgentCheck`. None. HAProxy `agent-check`.
    - `track`: the server whose health it has too: `"name"`, `"backend/name"`, or the `Server`. None. HAProxy `track`.
    - `slowstart`: for how long its weight and `maxconn` grow after a recovery or maintenance, a duration. None: they
      are there at once. HAProxy `slowstart`.
    - `max_fails`: after how many failed requests it gets none for `fail_timeout`. 0: they are not counted. nginx
      `max_fails`.
    - `fail_timeout`: for how long, a duration. None: 10 s. nginx `fail_timeout`.

    Raises `ConfigError` with every problem found. A `Server` belongs to one `Backend`. `weight`, `state`, `health`,
    `instance`, and the `target` of a URL, may be assigned at run time; each assignment takes the backend's lock.
    `Backend.apply` changes servers in place, and keeps what was assigned at run time where the new configuration does
    not differ from the one before.
    """

    __slots__ = (
        "__weakref__",
        "_health",
        "_instance",
        "_on_change",
        "_on_move",
        "_state",
        "_updated",
        "_weight",
        "agent",
        "agent_up",
        "as_tuple",
        "checking",
        "config",
        "counters",
        "draining",
        "electable",
        "eweight",
        "id",
        "in_flight",
        "limit",
        "max_fails",
        "maxconn",
        "name",
        "reachable",
        "reason",
        "removed",
        "requested",
        "slowstart",
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
        self._start(config)

    @classmethod
    def of(cls, config: ServerConfig) -> Server:
        """Make a server of a configuration."""
        server = cls.__new__(cls)
        server._start(config)
        return server

    @classmethod
    def replicas(cls, factory: Factory, n: int, *, prefix: str = "r") -> list[Server]:
        """Make `n` servers `r1`, `r2`, … with an app each, made by `factory`: several instances of one app, each with
        its own memory.
        """
        if n < 1:
            raise ConfigError(f"replicas: {n} of them can't serve anything")
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
        """Make `n` servers `web1`, `web2`, … (`"3-7"`: from `web3` to `web7`) for the addresses of a name, which is
        resolved again and again (HAProxy `server-template`). A server without an address is in maintenance.

        - `prefix`: the beginning of the servers' names.
        - `n`: how many servers, or from which number to which.
        - `where`: `"myservice.local:80"`, or a URL, `"https://myservice.local/base"`. A name that begins with an
          underscore, `"_http._tcp.myservice.local"`, has SRV records, which also set port and weight.
        - `resolvers`: how the name is resolved, a `Resolvers`. None: by the system.
        - everything else: as with `Server`, for each of them.

        A server keeps its address as long as the name resolves to it; `Cookie(dynamic=...)` lets clients follow an
        address from server to server, and from process to process. TLS verifies the host name, not the address. Raises
        `ConfigError`.
        """
        return [cls.of(config) for config in expand_template(prefix, n, where, resolvers, options)]

    def _start(self, config: ServerConfig) -> None:
        #: what was configured, and what of that is in force: the address may be another one since
        self.requested = self.config = config
        self.name = config.name
        #: `(self,)`, made once: the `tried` of most requests
        self.as_tuple: tuple[Server, ...] = (self,)
        self._weight = config.weight
        self._state = AdminState.READY
        self._health = Health.UP
        self._instance = ""
        self._on_change: Callable[[Server], None] | None = None
        self._on_move: Callable[[Server, ServerConfig], None] | None = None
        #: whether it was removed from its backend, for good
        self.removed = False
        #: Whether bound clients may be sent here (HAProxy: not STOPPED), and whether balance may choose it. Derived
        #: from what follows, and kept because every request reads them.
        self.usable = True
        self.electable = config.weight > 0
        #: whether it could serve a request at all: also while it drains, after its deadline
        self.reachable = True
        #: its effective weight, in sixteenths (`slowstart`)
        self.eweight = config.weight * SCALE
        #: its number within its backend, from 1 (HAProxy `id`); set by the backend
        self.id: int
        #: An item per request in flight. Append and pop are atomic, so its length needs no lock.
        self.in_flight: deque[None] = deque()
        #: how many requests may be in flight, and how many may be at present (`slowstart`); 0: any number
        self.maxconn = config.maxconn
        self.limit = config.maxconn
        self.counters = Counters.new()
        #: the running check, and when the agent is called; None: there is none
        self.checking: CheckRuntime | None = None
        self.agent: CheckRuntime | None = None
        self.agent_up = True
        #: the server whose health it has, and the servers that have its health
        self.tracks: Server | None = None
        self.trackers: tuple[Server, ...] = ()
        #: the reason of the latest change, for logs
        self.reason = ""
        self.slowstart = SlowStart(config.slowstart)
        self.max_fails = MaxFails(config.max_fails, config.fail_timeout)
        self.draining = Drain()
        self._updated = 0.0  # when `refresh_state` was called last
        if self.is_unresolved:
            self.refresh_state()

    # Belong to a backend

    def attach(
        self, on_change: Callable[[Server], None], on_move: Callable[[Server, ServerConfig], None] | None = None
    ) -> None:
        """Belong to a backend. `on_change` is called after each change, `on_move` to assign another address."""
        self._on_change = on_change
        self._on_move = on_move

    @property
    def is_attached(self) -> bool:
        """Whether it belongs to a backend."""
        return self._on_change is not None

    def remove(self) -> None:
        """Leave the backend: no request is sent here any more. Under the backend's lock."""
        self.removed = True
        self._on_change = self._on_move = None
        self.refresh_state()

    def inherit_from(self, before: Server) -> None:
        """Take the place of `before`, with another app: counters and what the operator has set are taken over."""
        self.id = before.id
        self.counters = before.counters
        self._state = before._state
        self.draining.inherit_from(before.draining)
        if self.config.weight == before.requested.weight:
            self._weight = before._weight
        self.refresh_state()

    # Another configuration

    def effective_config(self, requested: ServerConfig) -> ServerConfig:
        """Return what is in force once `requested` is applied: an address that was assigned at run time stays, unless
        `requested` has another one than the configuration before. ConfigError if that is in conflict with the rest.
        """
        if requested.is_url and requested.target == self.requested.target and self.config.target != requested.target:
            return replace(requested, target=self.config.target)
        return requested

    def update(self, requested: ServerConfig) -> None:
        """Apply a configuration, where it differs from the one before. Under the backend's lock."""
        config, before = self.effective_config(requested), self.requested
        if requested.weight != before.weight:
            self._weight = requested.weight
        if requested.maxconn != before.maxconn:
            self.maxconn = requested.maxconn
        self.requested = requested
        if config.target != self.config.target:
            self.move(config)
        self.config = config
        self.slowstart.configure(config.slowstart)
        self.max_fails.configure(config.fail_timeout)

    def move(self, config: ServerConfig) -> None:
        """Take the address of `config`. Checks in flight to the old address are ignored, and the new one is checked at
        once. Under the backend's lock.
        """
        was_unresolved, self.config = self.is_unresolved, config
        self.checking = self.checking.restarted() if self.checking is not None else None
        self.agent = self.agent.restarted() if self.agent is not None else None
        if was_unresolved and not self.in_maint:
            self._reset_health()

    def _reset_health(self) -> None:
        """Take it to be up until it is checked: maintenance is over."""
        self.agent_up = True
        if self.checking is not None:
            self.checking.reset()

    def trial_copy(self, requested: ServerConfig) -> Server:
        """Return a copy as it would be under `requested`. It belongs to no backend, and gets no requests."""
        copy = Server.of(self.effective_config(requested))
        copy.id = self.id
        copy._state, copy._health, copy._instance = self._state, self.health, self._instance
        if requested.weight == self.requested.weight:
            copy._weight = self._weight
        copy.refresh_state()
        return copy

    # What may be assigned at run time

    @property
    def state(self) -> AdminState:
        """What the operator wants: `ready`, `drain` or `maint`. May be assigned."""
        return self._state

    @state.setter
    def state(self, state: AdminState | Literal["ready", "drain", "maint"]) -> None:
        if state not in list(AdminState):
            raise ConfigError(f"server {self.name}: state {state!r} is none of {', '.join(AdminState)}")
        before, self._state = self._state, AdminState(state)
        self.draining.reset()
        self.reason = ""
        if before is AdminState.MAINT and not self.in_maint:
            self._reset_health()
        self.notify()

    def drain(self, deadline: Duration | None = 300) -> None:
        """Let it keep its clients and get no new ones; `deadline` (seconds, or text such as "5m"; None: never) later,
        its clients are sent to other servers. This counts for this process: where several share stick tables, each has
        to be called. ConfigError for what is no duration.
        """
        try:
            after = None if deadline is None else seconds(deadline)
        except ValueError as error:
            raise ConfigError(f"server {self.name}: deadline: {error}") from None
        if after is not None and not after >= 0:
            raise ConfigError(f"server {self.name}: deadline {deadline!r} is no number of seconds from 0 on")
        self.state = AdminState.DRAIN
        self.draining.set_deadline(after)
        self.notify()

    @property
    def health(self) -> Health:
        """Its health by its check, agent and failed requests, or as it was assigned since."""
        if self.tracks is not None:
            return self.tracks.health
        if not self.agent_up or self.max_fails.is_down:
            return Health.DOWN
        checking = self.checking
        if checking is None:
            return self._health
        return Health.DOWN if not checking.is_up else Health.NOLB if checking.is_stopping else Health.UP

    @health.setter
    def health(self, health: Health) -> None:
        self._health = health
        self.max_fails.reset()
        if self.checking is not None:
            self.checking.force(health is not Health.DOWN, stopping=health is Health.NOLB)
        self.reason = ""
        self.notify()

    @property
    def target(self) -> str | App | None:
        """Its URL or app; None with a factory, and while its address is not known.

        Assign another URL to move it (HAProxy `set server <b>/<s> addr`): it keeps its name, health, counters, clients
        and requests in flight; new requests and checks use the new address, on new connections. ConfigError for an app,
        and for what is no URL.
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
        if self._on_move is not None:
            self._on_move(self, config)
        else:
            self.move(config)
            self.notify()

    @property
    def weight(self) -> int:
        """Its share of new clients, 0 to 256. May be assigned."""
        return self._weight

    @weight.setter
    def weight(self, weight: int) -> None:
        if not is_weight(weight):
            raise ConfigError(f"server {self.name}: weight {weight!r} is not within 0..{MAX_WEIGHT}, in whole numbers")
        self._weight = weight
        self.notify()

    @property
    def instance(self) -> str:
        """The id of the present start of its app (`sticky_core.server.instance`); empty if that is elsewhere."""
        return self._instance

    @instance.setter
    def instance(self, instance: str) -> None:
        self._instance = instance
        self.notify()

    # Its state

    @property
    def is_unresolved(self) -> bool:
        """Whether it has no address: it is in maintenance until it has one (HAProxy "MAINT (resolution)")."""
        return self.config.target is None and self.config.template is not None

    @property
    def in_maint(self) -> bool:
        """Whether it is in maintenance: by the operator, without an address, or with the server that it tracks."""
        return (
            self._state is AdminState.MAINT
            or self.is_unresolved
            or self.removed
            or (self.tracks is not None and self.tracks.in_maint)
        )

    @property
    def status(self) -> str:
        """State and health in one word: `UP`, `DOWN`, `NOLB`, `DRAIN`, `MAINT`; `REMOVED`."""
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
    def drained(self) -> bool:
        """Whether it drains, and no client is left or the deadline has passed."""
        return self.draining.is_done

    @property
    def is_in_process(self) -> bool:
        """Whether what it keeps of its clients is lost when this process ends."""
        return not self.config.is_url and not self.config.stateless

    @property
    def shuts_down(self) -> bool:
        """Whether requests in flight are ended when it goes down (`on_marked_down="shutdown-sessions"`)."""
        return self.checking is not None and self.checking.check.on_marked_down is not None

    @property
    def shuts_backups(self) -> bool:
        """Whether requests in flight at the backups are ended when it comes back (`on_marked_up`)."""
        return self.checking is not None and self.checking.check.on_marked_up is not None and not self.config.backup

    @property
    def is_full(self) -> bool:
        """Whether as many requests are in flight as may be."""
        return 0 < self.limit <= len(self.in_flight)

    @property
    def total(self) -> int:
        """How many requests it has had (HAProxy `stot`), those in flight included."""
        return self.counters.stot + len(self.in_flight)

    @property
    def throttle(self) -> int:
        """How much of its weight is effective, in percent (`slowstart`)."""
        return 100 * self.eweight // (self._weight * SCALE) if self._weight else 100

    @property
    def is_error_free(self) -> bool:
        """Whether one more request that succeeds changes nothing for its health."""
        return not self.max_fails.count and (self.checking is None or self.checking.is_error_free)

    # Derive its state

    def notify(self) -> None:
        """Have a change applied: by the backend, if it belongs to one."""
        if self._on_change is not None:
            self._on_change(self)
        else:
            self.refresh_state()

    def refresh_state(self, now: float = 0.0, panic: bool = False) -> None:
        """Derive whether it is usable and its effective weight. The backend calls this under its lock after each
        change and at each deadline. `panic`: health is ignored.
        """
        if self.max_fails.expire(now):
            self.reason = "fail_timeout is over"
        health, in_maint = self.health, self.in_maint
        self.slowstart.update(now, is_down=in_maint or health is Health.DOWN, may_start=self.is_attached)
        self._updated = now
        self.eweight = self.slowstart.eweight(self._weight)
        self.limit = self.slowstart.limit(self.maxconn)
        self.reachable = not in_maint and (panic or health is not Health.DOWN)
        self.usable = self.reachable and not self._is_past_drain_deadline(now)
        self.electable = (
            self.usable and self._weight > 0 and self._state is AdminState.READY and health is not Health.NOLB
        )

    def _is_past_drain_deadline(self, now: float) -> bool:
        if self._state is not AdminState.DRAIN:
            self.draining.stop()
            return False
        return self.draining.update(now, len(self.in_flight), self.total)

    @property
    def next_deadline(self) -> float:
        """When time changes something about it next; infinity if it does not."""
        due = min(self.slowstart.next_deadline(self._updated), self.max_fails.next_deadline)
        if self._state is AdminState.DRAIN:
            due = min(due, self.draining.next_deadline(self._updated))
        return due

    def __repr__(self) -> str:
        return f"<Server {self.summary}>"

    @property
    def summary(self) -> str:
        """`s1 UP 3/100`: name, status, requests in flight and in all."""
        return f"{self.name} {self.status} {len(self.in_flight)}/{self.total}"
