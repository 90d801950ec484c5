"""Whose turn it is to act: the operator's (`ConfigError`), or a server's (`ServerFailure`)."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import Enum


class ConfigError(ValueError):
    """What was configured cannot work. `problems` holds every reason found, each naming the thing and the way out."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join((f"{len(self.problems)} problems:", *(f"  - {problem}" for problem in self.problems)))


def check(problems: Iterable[str]) -> None:
    """Raise one `ConfigError` with all `problems`, if there are any."""
    found = tuple(problems)
    if found:
        raise ConfigError(*found)


@contextmanager
def collected(problems: list[str], where: str = "") -> Generator[None]:
    """Add the problems of a `ConfigError` to `problems`, each behind `where`, and go on: all are told at once."""
    try:
        yield
    except ConfigError as error:
        problems += (where + problem for problem in error.problems)


class Failure(Enum):
    """How a server failed a request, and whether the request may have been executed there.

    Only what is known not to have been executed may be told again to another server whatever its method.
    """

    #: nobody took the request: HAProxy's `conn-failure`
    REFUSED = "connection refused", False, 503
    #: a replica that never came to life
    NOT_STARTED = "not started", False, 503
    #: the server went away with the request in its hands, before it answered: HAProxy's `empty-response`
    CLOSED = "closed before the answer", True, 502
    #: the server went away in the middle of its answer
    TRUNCATED = "answer cut short", True, 502

    def __init__(self, text: str, executed: bool, status: int) -> None:
        self.text = text
        self.executed = executed
        #: what the client is told when nobody else answers, if it has not been told anything yet
        self.status = status


class ServerFailure(Exception):
    """A server, not the application in it, failed a request. Raised by the app that stands for the server."""

    def __init__(self, failure: Failure, server: str = "") -> None:
        super().__init__(f"server {server}: {failure.text}" if server else failure.text)
        self.failure = failure
        self.server = server
