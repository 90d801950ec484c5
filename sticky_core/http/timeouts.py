"""How long to wait for a server, and for a slot at one (HAProxy `timeout connect|server|queue|tunnel`), and for a
response in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property

from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import LONGEST, Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems

#: In seconds: a client that takes longer to read a part of a response counts as slow. A server may give up on it, which
#: is not the server's fault.
SLOW_CLIENT = 1.0


@dataclass(frozen=True)
class Timeouts:
    """Timeouts, in seconds or as HAProxy's text.

    - `connect`: to establish a connection to a server, TLS included, duration, 5 s; also the longest pause before the
      same server is tried again, though at most 1 s (`timeout connect`).
    - `server`: for the server to take in more of a request, then for the first byte of the response, and between two
      parts of it, duration, 60 s (`timeout server`). It does not count while more of the request is awaited from the
      client.
    - `queue`: for a slot at a server that has reached its `maxconn`, duration, as `connect` by default (`timeout
      queue`).
    - `tunnel`: between two messages of a WebSocket, duration, 1 h (`timeout tunnel`).
    - `client`: between two parts of the body of a request that is being forwarded, duration, 60 s; then the client
      gets a 408 (`timeout client`, nginx `client_body_timeout`). On WSGI the web server in front decides that.
    - `total`: for the head of the response over all attempts, from the first look at the request on: waits in queues,
      pauses, connections, and what client and servers take until then; duration, default None: no limit (Envoy
      `timeout`). When it is over, no further attempt begins, the client gets a 504, and no server is charged with it. A
      response that has begun is not cut off; a WebSocket has begun when it is accepted or refused. On ASGI an app in
      this process is cancelled; what can't be, such as a plain function that Starlette runs in a thread, is awaited
      before the 504. On WSGI an app in this process can't be interrupted: its response is passed on however late it is;
      waits, further attempts, and connections to upstreams are limited.

    Raises `ConfigError` for a value that is not a duration above 0.
    """

    connect: Duration = 5
    server: Duration = 60
    queue: Duration | None = None
    tunnel: Duration = 3600
    client: Duration = 60
    total: Duration | None = None

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        for field in fields(self):
            duration: Duration | None = getattr(self, field.name)
            is_optional = field.name in ("queue", "total")
            for problem in problems_of_duration(field.name, duration, is_optional=is_optional, at_most=LONGEST):
                yield f"timeouts: {problem}"

    @cached_property
    def in_seconds(self) -> TimeoutSeconds:
        connect = seconds(self.connect)
        return TimeoutSeconds(
            connect,
            seconds(self.server),
            connect if self.queue is None else seconds(self.queue),
            seconds(self.tunnel),
            seconds(self.client),
            None if self.total is None else seconds(self.total),
        )


@dataclass(frozen=True, slots=True)
class TimeoutSeconds:
    """`Timeouts` as numbers of seconds."""

    connect: float
    server: float
    queue: float
    tunnel: float
    client: float
    total: float | None = None
