"""ServerConfig: the configuration of a server as a value: frozen, comparable, checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Protocol, TypedDict, cast, runtime_checkable

from sticky_core import target as targets
from sticky_core.deferred.dataclass import dataclass
from sticky_core.dns.resolvers import Resolvers, is_service
from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import raise_problems
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check
from sticky_core.http.cookies import is_value
from sticky_core.http.tls import TLS
from sticky_core.target import App, Factory

#: the characters that HAProxy allows in names of servers and backends
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
MAX_WEIGHT = 256


def is_weight(weight: object) -> bool:
    """Return whether `weight` is a whole number from 0 to 256."""
    return isinstance(weight, int) and not isinstance(weight, bool) and 0 <= weight <= MAX_WEIGHT


def limit_problem(name: str, number: object) -> str | None:
    """Return why `number` can't limit a number of requests, as the option `name`, or None if it can."""
    if not isinstance(number, int) or isinstance(number, bool):
        return f"{name} {number!r} is not a number of requests: write a whole number, or 0 for no limit"
    return f"{name} {number!r} is below 0: write 0 for no limit" if number < 0 else None


@runtime_checkable
class Tracked(Protocol):
    """A server that others may track: `Server`, which this module can't import."""

    name: str

    @property
    def status(self) -> str: ...
    @property
    def in_maint(self) -> bool: ...


class TemplateOptions(TypedDict, total=False):
    """The options that the servers of a template may have. `Server` documents them."""

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
    track: str | Tracked | None
    slowstart: Duration | None
    max_fails: int
    fail_rate: float | None
    fail_volume: int | None
    fail_timeout: Duration | None


# Each option with its types, and what to write. None comes first: most options are not given, and to test for a
# protocol takes long.
_TYPES = (
    ("cookie", None | str, "its id in cookies, as a text"),
    ("check", None | Check, "check=Check('/health')"),
    ("agent_check", None | AgentCheck, "agent_check=AgentCheck(port)"),
    ("track", None | str | Tracked, "the other server, or its name"),
    ("tls", None | TLS, "tls=TLS(...)"),
    ("max_fails", int, "how many requests may fail, or 0 for any number"),
    ("fail_rate", None | int | float, "0.5 for half of the requests"),
    ("fail_volume", None | int, "how many requests have to end before fail_rate counts"),
    ("pool_max_conn", None | int, "how many connections are kept"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration of a server. `Server` documents the options."""

    name: str
    target: str | App | None = None
    factory: Factory | None = None
    weight: int = 1
    cookie: str | None = None
    formerly: tuple[str, ...] = ()  #: a list is made a tuple
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
    track: str | Tracked | None = None
    slowstart: Duration | None = None
    max_fails: int = 0
    fail_rate: float | None = None
    fail_volume: int | None = None
    fail_timeout: Duration | None = None
    #: A URL with a host name that is resolved at run time (HAProxy `server-template`): `target` is the URL of the
    #: address, or None until that is known.
    template: str | None = None
    #: how the host name of `template` is resolved; None: by the system
    resolvers: Resolvers | None = None

    def __post_init__(self) -> None:
        if isinstance(cast(object, self.formerly), list):  # so that two configurations are equal however it was written
            object.__setattr__(self, "formerly", tuple(self.formerly))
        raise_problems(f"server {self.name}: {problem}" for problem in self._type_problems())
        raise_problems(f"server {self.name}: {problem}" for problem in self._problems())

    def _type_problems(self) -> Iterator[str]:
        """Yield a problem for each option of the wrong type. They are reported before the values are checked."""
        server_name = cast(object, self.name)
        if not isinstance(server_name, str):
            example = ": write Server('s1', app)" if callable(server_name) else ""
            yield f"name={server_name!r} has the wrong type: write a text{example}"
        elif targets.has_scheme(server_name):
            yield f"its name is missing: write Server('s1', {server_name!r})"
        for name, kind, write in _TYPES:
            given: object = getattr(self, name)
            if not isinstance(given, kind) and not (name == "check" and given is False):
                yield f"{name}={given!r} has the wrong type: write {write}"
        if self.formerly != ():
            from sticky_core.server import formerly  # it takes memory, and few servers were called something else

            yield from formerly.problems_of_types(self.formerly)

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
        if self.formerly:
            from sticky_core.server import formerly

            yield from formerly.problems_of_texts(self.formerly)
        if self.stateless and self.is_url:
            yield "stateless is for apps: a URL has no instance in this process"
        for name in ("maxconn", "maxqueue"):
            problem = limit_problem(name, getattr(self, name))
            if problem is not None:
                yield problem
        if self.maxqueue and not self.maxconn:
            yield "maxqueue has no effect without maxconn: no request waits for a server without a limit"
        yield from self._problems_of_url()
        yield from self._problems_of_health()

    @property
    def host_url(self) -> str:
        """The URL with the host name for the Host header and for TLS: `template`, or `target` if there is no template,
        or if the template has the name of a service (SRV), which is not a host.
        """
        assert isinstance(self.target, str)
        if self.template is None or is_service(targets.Location.parse(self.template).host):
            return self.target
        return self.template

    @property
    def is_url(self) -> bool:
        """Whether the server is a URL, even if its address is not known yet; otherwise it is an app in this process."""
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
                yield f"{self.template}: TLS can't verify the name of a service: write tls=TLS(sni=...)"
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
            yield f"pool_max_conn {self.pool_max_conn!r} is below 0: write 0 to keep no connection"
        for problem in problems_of_duration("pool_purge_delay", self.pool_purge_delay, is_optional=True):
            yield f"{problem}; to keep no connection, write pool_max_conn=0"

    def _problems_of_health(self) -> Iterator[str]:
        yield from problems_of_duration("slowstart", self.slowstart, is_optional=True)
        if self.max_fails < 0:
            yield f"max_fails {self.max_fails!r} is below 0: write 0 to count no failed requests"
        if self.fail_rate is not None and (isinstance(self.fail_rate, bool) or not 0 < self.fail_rate <= 1):
            yield (
                f"fail_rate {self.fail_rate!r} is not a share above 0 and up to 1: write 0.5 for half of the requests, "
                "or leave it out"
            )
        if self.fail_volume is not None:
            if self.fail_rate is None:
                yield "fail_volume has no effect without fail_rate"
            if isinstance(self.fail_volume, bool) or self.fail_volume < 1:
                yield f"fail_volume {self.fail_volume!r} is not a whole number from 1 on"
        if self.fail_timeout is not None and not self.counts_failures:
            yield "fail_timeout has no effect without max_fails or fail_rate"
        yield from problems_of_duration("fail_timeout", self.fail_timeout, is_optional=True)
        if self.track is not None and (self.check or self.agent_check is not None or self.counts_failures):
            yield (
                "track takes another server's health over: give check, agent_check, max_fails and fail_rate to that "
                "server"
            )
        if not self.is_url:
            if self.agent_check is not None:
                yield "agent_check is for URLs: an app has no host on which an agent could be"
            if self.check and self.check.port is not None:
                yield "check: port is for URLs: an app has none"
        elif (self.agent_check is not None or (self.check and self.check.port is not None)) and self._is_socket:
            yield f"port has no effect with a UNIX socket ({self.target}): leave it out"

    @property
    def counts_failures(self) -> bool:
        """Whether failed requests may take the server down (`max_fails`, `fail_rate`)."""
        return self.max_fails > 0 or self.fail_rate is not None

    @property
    def _is_socket(self) -> bool:
        return isinstance(self.target, str) and self.target.removeprefix("https://").removeprefix("http://").startswith(
            "unix:"
        )

    def has_another_app_than(self, before: ServerConfig) -> bool:
        """Return whether the server has to be started anew: it has another app than in `before`, or only one of the two
        configurations has a URL.
        """
        if self.is_url or before.is_url:
            return self.is_url is not before.is_url
        return self.target is not before.target or self.factory is not before.factory

    @property
    def cookie_id(self) -> str:
        """The id of the server in cookies and other marks: `cookie`, else the name. Empty for a backup without
        `cookie`: its clients get no mark.
        """
        return self.cookie if self.cookie is not None else "" if self.backup else self.name

    @property
    def id_options(self) -> tuple[str, bool, tuple[str, ...]]:
        """What decides which ids a persistence gives to the server: `cookie_id`; whether it is by default, in which
        case a server that has become a backup is recognised by its former id; and `formerly`.
        """
        return self.cookie_id, self.cookie is None, self.formerly
