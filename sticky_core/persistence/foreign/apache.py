"""The cookie with which Apache's mod_proxy_balancer is made sticky where the application has none (apache/httpd,
modules/proxy/mod_proxy_balancer.c): `Header add Set-Cookie "ROUTEID=.%{BALANCER_WORKER_ROUTE}e; path=/"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import raise_problems
from sticky_core.options.spelling import named_options
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.servers import ids_of
from sticky_core.persistence.foreign.values import ForeignValues
from sticky_core.server.server import Server

#: cookies that are sessions of applications
_SESSIONS = ("jsessionid", "phpsessid", "asp.net_sessionid")


@named_options
def apache(
    name: str = "ROUTEID", *, separator: str = ".", path: str | None = "/", domain: str | None = None
) -> ForeignCookie:
    """Return the cookie `ROUTEID` of Apache's documentation on mod_proxy_balancer, for `Cookie(accepts=[...])`. Where
    the route is in the application's session, write `Route(cook("JSESSIONID"), path_param("jsessionid"))`: that is
    never deleted.

    - `name`: the name of the cookie (`stickysession`). Default: `ROUTEID`.
    - `separator`: the text before the route (`stickysessionsep`). Default: `.`
    - `path`: the attribute Path, with which the cookie is deleted; None: do not delete it. Default: `/`
    - `domain`: the attribute Domain. Default: none.

    The value ends with a route, `.node1`. A server is found by its name, its `cookie=` and what its `formerly` lists.

    Raises `ConfigError` with every problem found.
    """
    if str(name).lower() in _SESSIONS:
        call = f"Route(cook({name!r}), path_param({name.lower()!r}))"
        raise_problems([f"accepts.apache {name}: it is the application's session, which is not deleted: write {call}"])
    return ForeignCookie("apache", name, ApacheValues(separator), path=path, domain=domain)


@dataclass(frozen=True, slots=True)
class ApacheValues(ForeignValues):
    """Values that end with a route; a key is a route."""

    separator: str

    def problems(self) -> Iterator[str]:
        separator = cast(object, self.separator)
        if not isinstance(separator, str) or not separator:
            yield f"separator={separator!r} is no separator: leave it out for a dot"

    def keys_of(self, server: Server) -> Sequence[str]:
        return ids_of(server)

    def logged_name(self, value: str) -> str:
        """Return the route: what is before it may be the session of the application."""
        return value.partition(self.separator)[2]

    def keys_in(self, value: str) -> Sequence[str]:
        return (value.partition(self.separator)[2],)
