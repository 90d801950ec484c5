"""How long we wait for a server, and for a place at one (HAProxy `timeout connect|server|queue|tunnel`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

from sticky_core.durations import LONGEST, Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems


@dataclass(frozen=True)
class Timeouts:
    """Durations, in seconds or as HAProxy's text.

    `connect`: until a connection to a server stands, TLS included; also the longest pause before the same server is
    tried again (1 s at most). `server`: for the first byte of an answer, and between two pieces of it. `queue`: for a
    place at a server that has its `maxconn` (by default as `connect`). `tunnel`: between two messages of a WebSocket.

    Raises `ConfigError` for what is no duration, or not above 0.
    """

    connect: Duration = 5
    server: Duration = 60
    queue: Duration | None = None
    tunnel: Duration = 3600

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        for field in fields(self):
            if field.name == "queue" and self.queue is None:
                continue
            duration: Duration = getattr(self, field.name)
            for problem in problems_of_duration(field.name, duration, at_most=LONGEST):
                yield f"timeouts: {problem}"

    @cached_property
    def in_seconds(self) -> TimeoutSeconds:
        connect = seconds(self.connect)
        return TimeoutSeconds(
            connect, seconds(self.server), connect if self.queue is None else seconds(self.queue), seconds(self.tunnel)
        )


@dataclass(frozen=True, slots=True)
class TimeoutSeconds:
    """The same as numbers."""

    connect: float
    server: float
    queue: float
    tunnel: float
