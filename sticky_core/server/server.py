"""Server: a place that requests can be sent to, and its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Unpack, cast

from sticky_core.dns.resolvers import Resolvers
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check
from sticky_core.http.tls import TLS
from sticky_core.server.config import ServerConfig, TemplateOptions
from sticky_core.server.drain import DEADLINE, SPREAD
from sticky_core.server.state import AdminState
from sticky_core.server.status import ServerStatus
from sticky_core.server.template import expand_template
from sticky_core.target import App, Factory, require_factory


class Server(ServerStatus):
    """A place that requests can be sent to: a URL, an app, or a factory that makes an app in this process. One option a
    line: meaning, default, the name in HAProxy or nginx:

    - `name`: its name, unique within its backend: letters, digits and `- _ . :`. Required.
    - `target`: a URL, `"http://10.0.0.1:8000"`, or an app (ASGI or WSGI). Required without `factory`.
    - `factory`: a function that makes the app, called once, in the process that serves. Default None.
    - `weight`: its share of new clients, 0 to 256; with 0 it keeps its clients and gets no new ones. Default 1. HAProxy
      `weight`.
    - `cookie`: its id in cookies. Several servers may have the same id: the first usable one gets the client. `""`: no
      id. By default its name; a backup has no id by default. HAProxy `cookie`.
    - `formerly`: the texts by which earlier configurations, or other balancers, knew it, as they wrote them: names and
      ids of cookies (`"s1"`), addresses with a port (`"10.0.0.1:80"`), URLs (`"http://10.0.0.1:80/"`), sockets
      (`"unix:/run/a.sock"`). A client, or an entry of a stick table, that names it so belongs to it; what is written
      names it as it is called now. None may be a name, id or address that another server of the backend has now.
      Default: none.
    - `backup`: whether it gets requests only while no other server can. By default it has no cookie id, so that clients
      leave it when other servers are back; those of a server that `Backend.apply` makes a backup stay. Default False.
      HAProxy `backup`.
    - `non_stick`: whether stick tables do not learn its clients. Default False. HAProxy `non-stick`.
    - `stateless`: whether the app keeps nothing in this process that a client would miss, so that cookies stay valid
      after a restart. Default False.
    - `maxconn`: how many requests may be in flight; further ones wait in a queue. Default 0: any number. HAProxy
      `maxconn`.
    - `maxqueue`: how many requests may wait for this server; further ones are sent to another server, or rejected.
      Default 0: any number. HAProxy `maxqueue`.
    - `tls`: how to connect to an `https://` URL, a `TLS`. Default None: with the defaults of `TLS`.
    - `pool_max_conn`: how many idle connections are kept. Default None: any number. HAProxy `pool-max-conn`.
    - `pool_purge_delay`: for how long an idle connection is kept, a duration. Default None: 5 s. HAProxy
      `pool-purge-delay`.
    - `check`: its health check, a `Check`; False: no check. Default None: the check of the backend. HAProxy `check`.
    - `agent_check`: an agent on its host that is queried regularly, an `AgentCheck`. Default None: no agent. HAProxy
      `agent-check`.
    - `track`: the server from which it takes its health: `"name"`, `"backend/name"`, or the `Server`. Default None: its
      health is its own. HAProxy `track`.
    - `slowstart`: for how long its weight and `maxconn` grow after a recovery or maintenance, a duration. Default None:
      both are full at once. HAProxy `slowstart`.
    - `max_fails`: after how many failed requests it gets no requests for `fail_timeout`. A request has failed if there
      was no complete response, or one with a status that the backend's `retry_on` names. The only server that is no
      backup stays up. Default 0: any number may fail. nginx `max_fails`.
    - `fail_rate`: from which share of failed requests on it gets no requests for `fail_timeout`, above 0 and up to 1: a
      request that fails takes it down if at least `fail_volume` requests have ended there within the last
      `fail_timeout` and at least this share of them has failed, itself included. Requests are counted by halves of that
      time, so those of its beginning may be forgotten already. With or without `max_fails`, and what failed means is
      the same. Default None: no share.
    - `fail_volume`: how many requests that takes, from 1 on. Default None: 20.
    - `fail_timeout`: for how long that is, a duration; and the time over which `fail_rate` counts. Default None: 10 s.
      nginx `fail_timeout`.

    Raises `ConfigError` with every problem found. A `Server` belongs to one `Backend`. `weight`, `state`, `health`,
    `maxconn`, `instance`, and the `target` of a URL, may be assigned at run time; each assignment takes the backend's
    lock, and one that can't be is a `ConfigError` and changes nothing.
    `Backend.apply` changes servers in place, and keeps what was assigned at run time where the new configuration does
    not differ from the one before.
    """

    __slots__ = ("_on_move", "as_tuple", "former_cookie_id", "id", "name_as_tuple", "requested")

    def __init__(
        self,
        name: str,
        target: str | App | None = None,
        *,
        factory: Factory | None = None,
        weight: int = 1,
        cookie: str | None = None,
        formerly: Sequence[str] = (),
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
        fail_rate: float | None = None,
        fail_volume: int | None = None,
        fail_timeout: Duration | None = None,
    ) -> None:
        config = ServerConfig(
            name=name,
            target=target,
            factory=factory,
            weight=weight,
            cookie=cookie,
            formerly=cast("tuple[str, ...]", formerly),
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
            fail_rate=fail_rate,
            fail_volume=fail_volume,
            fail_timeout=fail_timeout,
        )
        self._start(config)

    @classmethod
    def of(cls, config: ServerConfig) -> Server:
        """Return a new server with this configuration."""
        server = cls.__new__(cls)
        server._start(config)
        return server

    @classmethod
    def replicas(cls, factory: Factory, n: int, *, prefix: str = "r") -> list[Server]:
        """Return `n` new servers `r1`, `r2`, …, each with an app of its own made by `factory`: several replicas of one
        app, each with its own memory.
        """
        require_factory(factory, "replicas", f"Server.replicas(create_app, {n if isinstance(n, int) else 3})")  # pyright: ignore[reportUnnecessaryIsInstance]
        if not isinstance(cast(object, n), int):
            raise ConfigError(f"replicas: n={n!r} is no number: write how many servers")
        if n < 1:
            raise ConfigError(f"replicas: n={n} is below 1: write how many servers")
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
        """Return `n` new servers `web1`, `web2`, … (`"3-7"`: from `web3` to `web7`) for the addresses of a name, which
        is resolved again and again (HAProxy `server-template`). A server without an address is in maintenance.

        - `prefix`: the beginning of the servers' names.
        - `n`: how many servers, or from which number to which.
        - `where`: `"myservice.local:80"`, or a URL, `"https://myservice.local/base"`. A name that begins with an
          underscore, `"_http._tcp.myservice.local"`, has SRV records, which also set port and weight.
        - `resolvers`: how the name is resolved, a `Resolvers`. None: by the system.
        - `options`: further options of `Server`, for each of these servers.

        A server keeps its address as long as the name resolves to it; `Cookie(dynamic=...)` lets clients follow an
        address from server to server, and from process to process. TLS verifies the host name, not the address. Raises
        `ConfigError`.
        """
        return [cls.of(config) for config in expand_template(prefix, n, where, resolvers, options)]

    def _start(self, config: ServerConfig) -> None:
        #: the configuration as the user has given it; `config` is the one in force, with the address assigned at run
        #: time
        self.requested = config
        #: The id in the cookies of its clients from before it became a backup, which has none: they stay. Empty: none.
        self.former_cookie_id = ""
        #: its number within its backend, from 1 (HAProxy `id`); set by the backend
        self.id: int
        #: `(self,)`, made once: the `tried` of most requests
        self.as_tuple: tuple[Server, ...] = (self,)
        #: `(self.name,)`, made once: the `attempts` of most decisions
        self.name_as_tuple: tuple[str, ...] = (config.name,)
        self._on_move: Callable[[Server, ServerConfig], None] | None = None
        self._start_status(config)

    # Belong to a backend

    def attach(
        self, on_change: Callable[[Server], None], on_move: Callable[[Server, ServerConfig], None] | None = None
    ) -> None:
        """Attach the server to a backend. `on_change` is called after each change, `on_move` to change its address."""
        self._on_change = on_change
        self._on_move = on_move

    def remove(self) -> None:
        """Mark the server as removed from its backend: it gets no more requests. Under the backend's lock."""
        self.removed = True
        self._on_change = self._on_move = None
        self.refresh_state()
        self.draining.notify_connections()

    def inherit_from(self, before: Server) -> None:
        """Take over the id, the counters and what the operator has set from `before`, which this server replaces, under
        the same name or another.
        """
        self.id = before.id
        self.counters = before.counters
        self._state = before._state
        self.draining.inherit_from(before.draining)
        if self.config.weight == before.requested.weight:
            self._weight = before._weight
        self.refresh_state()

    # Another configuration

    def effective_config(self, requested: ServerConfig) -> ServerConfig:
        """Return the configuration that is in force once `requested` is applied: an address that was assigned at run
        time stays, unless `requested` changes the address. ConfigError if that address is in conflict with other
        options.
        """
        if requested.is_url and requested.target == self.requested.target and self.config.target != requested.target:
            return replace(requested, target=self.config.target)
        return requested

    @property
    def recognised_id(self) -> str:
        """The id by which its clients are recognised: that of its configuration, else its former one; empty: none."""
        config = self.config
        return (
            config.cookie_id
            or self.former_cookie_id
            or next(iter(config.formerly if config.cookie is None else ()), "")
        )

    def _former_cookie_id_under(self, requested: ServerConfig) -> str:
        """Return `former_cookie_id` as it is once `requested` is applied."""
        if not requested.backup or requested.cookie is not None:
            return ""
        return self.former_cookie_id if self.requested.backup else self.requested.cookie_id

    def update(self, requested: ServerConfig) -> None:
        """Apply a configuration, where it differs from the one before. Under the backend's lock."""
        config, before = self.effective_config(requested), self.requested
        self.former_cookie_id = self._former_cookie_id_under(requested)
        if requested.weight != before.weight:
            self._weight = requested.weight
        if requested.maxconn != before.maxconn:
            self._maxconn = requested.maxconn
        self.requested = requested
        if config.target != self.config.target:
            self.move(config)
        self.config = config
        self.slowstart.configure(config.slowstart)

    def move(self, config: ServerConfig) -> None:
        """Take the address of `config`. Checks in flight to the old address are ignored, and the new one is checked at
        once. Under the backend's lock.
        """
        was_unresolved = self.is_unresolved
        # before the address, so that the checks that are replaced never use it: faces read both without the lock
        self.checking = self.checking.restarted() if self.checking is not None else None
        self.agent = self.agent.restarted() if self.agent is not None else None
        self.config = config
        if was_unresolved and not self.in_maint:
            self._reset_health()

    def trial_copy(self, requested: ServerConfig) -> Server:
        """Return a copy as it would be under `requested`. It belongs to no backend, and gets no requests."""
        copy = Server.of(self.effective_config(requested))
        copy.id = self.id
        copy.former_cookie_id = self._former_cookie_id_under(requested)
        copy._state, copy._health, copy._instance = self._state, self.health, self._instance
        if requested.weight == self.requested.weight:
            copy._weight = self._weight
        copy.refresh_state()
        return copy

    # What may be assigned at run time

    def drain(self, deadline: Duration | None = DEADLINE, *, spread: Duration = SPREAD) -> None:
        """Drain the server: it keeps its clients and gets no new ones.

        - `deadline`: when its clients are sent to other servers, in seconds from now or as text, `"5m"`; None: never.
          Default 300 seconds.
        - `spread`: over how long the WebSockets that are still open then are closed, with code 1012, so that their
          clients do not all reconnect at once. Default 10 seconds.

        Responses that are in progress at the deadline are not cut. This drains the server in this process only: where
        processes share stick tables, call it in each of them. ConfigError if an argument is not a duration.
        """
        after = None if deadline is None else self._seconds("deadline", deadline)
        self._set_state(AdminState.DRAIN, after, self._seconds("spread", spread))

    def _seconds(self, name: str, given: Duration) -> float:
        try:
            value = seconds(given)
        except ValueError as error:
            raise ConfigError(f"server {self.name}: {name}: {error}") from None
        if not value >= 0:
            raise ConfigError(f"server {self.name}: {name} {given!r} is no number of seconds from 0 on")
        return value

    @property
    def is_in_process(self) -> bool:
        """Whether its sessions are lost when this process ends."""
        return not self.config.is_url and not self.config.stateless

    @property
    def target(self) -> str | App | None:
        """Its URL or app; None with a factory, or while its address is not known.

        Assign another URL to move it (HAProxy `set server <b>/<s> addr`): it keeps its name, health, counters, clients
        and requests in flight; new requests and checks use the new address, on new connections. ConfigError if the
        server is an app, or if the new target is not a URL.
        """
        return self.config.target

    @target.setter
    def target(self, target: str | None) -> None:
        config, given = self.config, cast(object, target)
        if not config.is_url or not isinstance(given, str | None):
            raise ConfigError(
                f"server {self.name}: only a URL can be moved, and only to a URL: for another app, pass a "
                "configuration with it to `Backend.apply`"
            )
        if target == config.target:
            return
        config = replace(config, target=target)
        if self._on_move is not None:
            self._on_move(self, config)
        else:
            self.move(config)
            self.notify()

    def __repr__(self) -> str:
        return f"<Server {self.summary}>"

    @property
    def summary(self) -> str:
        """`s1 UP 3/100`: name, status, requests in flight and in all."""
        return f"{self.name} {self.status} {len(self.in_flight)}/{self.total}"
