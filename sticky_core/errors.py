"""Whose turn it is to act: the operator's (`ConfigError`), a server's (`ServerFailure`), a store's (`StoreFailure`)."""

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


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one `ConfigError` with all `problems`, if there are any."""
    found = tuple(problems)
    if found:
        raise ConfigError(*found)


@contextmanager
def collect_problems(problems: list[str], where: str = "") -> Generator[None]:
    """Add the problems of a `ConfigError` to `problems`, each behind `where`, and go on: all are told at once."""
    try:
        yield
    except ConfigError as error:
        problems += (where + problem for problem in error.problems)


class Failure(Enum):
    """How a server failed a request, and whether the request may have been executed there.

    Only what is known not to have been executed may be told again to another server whatever its method. `word` is
    HAProxy's in `retry-on`; what has none is never retried.
    """

    #: nobody took the request
    REFUSED = "connection refused", False, 503, "conn-failure"
    #: the connection did not come about in time
    CONNECT_TIMEOUT = "no connection in time", False, 503, "conn-failure"
    #: it came about, and TLS on it did not
    TLS = "TLS failed", False, 503, "conn-failure"
    #: a replica that never came to life
    NOT_STARTED = "not started", False, 503, "conn-failure"
    #: the server went away with the request in its hands, before it answered
    CLOSED = "closed before the answer", True, 502, "empty-response"
    #: it, or another server, has changed its state, and what was on its way here was to end with that
    SHUT = "sessions shut down", True, 502, "empty-response"
    #: what it said was no answer, or not the whole head of one
    BAD_RESPONSE = "no valid answer", True, 502, "junk-response"
    #: it took too long to begin its answer
    TIMEOUT = "no answer in time", True, 504, "response-timeout"
    #: the request can't be passed on without ambiguity, which is the client's fault and no server's
    NOT_FORWARDABLE = "request can't be passed on", True, 400, ""
    #: it answered, with a status after which another server is asked
    RETRIED_STATUS = "answer not passed on", True, 502, ""
    #: the server went away, or fell silent, in the middle of its answer
    TRUNCATED = "answer cut short", True, 502, ""

    def __init__(self, text: str, executed: bool, status: int, word: str) -> None:
        self.text = text
        self.maybe_executed = executed
        #: what the client is told when nobody else answers, if it has not been told anything yet
        self.status = status
        self.retry_word = word

    @property
    def is_server_fault(self) -> bool:
        """Whether it says how the server is."""
        return self is not Failure.NOT_FORWARDABLE and self is not Failure.SHUT


class ServerFailure(Exception):
    """A server, not the application in it, failed a request. Raised by the app that stands for the server.

    `detail`: the evidence, for people.
    """

    def __init__(self, failure: Failure, server: str = "", detail: str = "") -> None:
        what = f"{failure.text}: {detail}" if detail else failure.text
        super().__init__(f"server {server}: {what}" if server else what)
        self.failure = failure
        self.server = server
        self.detail = detail


class StoreFailure(Exception):
    """A store did not answer, or not as it should. What stands for its answer; nothing is wrong with the request.

    `store`: its URL, without passwords. `detail`: the evidence, for people.
    """

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"store {store}: {detail}")
        self.store = store
        self.detail = detail
