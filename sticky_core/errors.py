"""Errors, by what has to be repaired: the configuration (`ConfigError`), a server (`ServerFailure`), a store
(`StoreFailure`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import cast


class ConfigError(ValueError):
    """The configuration cannot work. `problems` holds every reason found; each names the option and how to fix it."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join((f"{len(self.problems)} problems:", *(f"  - {problem}" for problem in self.problems)))


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one `ConfigError` that holds all `problems`, if there are any."""
    found = tuple(problems)
    if found:
        raise ConfigError(*found)


@contextmanager
def collect_problems(problems: list[str], where: str = "") -> Generator[None]:
    """Catch a `ConfigError` raised in the block and append its problems to `problems`, each prefixed with `where`.
    So all problems can be reported at once.
    """
    try:
        yield
    except ConfigError as error:
        problems += (where + problem for problem in error.problems)


class Failure(Enum):
    """How a server failed a request.

    - `text`: the failure in words, for logs.
    - `maybe_executed`: whether the server may have executed the request. A request that was certainly not executed may
      be replayed at another server whatever its method.
    - `status`: the status that the client gets if no other server responds and no response has begun.
    - `retry_word`: HAProxy's word for it in `retry-on`; a failure without one is never retried.
    """

    #: the server accepted no connection
    REFUSED = "connection refused", False, 503, "conn-failure"
    #: the connection was not established in time
    CONNECT_TIMEOUT = "no connection in time", False, 503, "conn-failure"
    #: the connection was established, the TLS handshake failed
    TLS = "TLS failed", False, 503, "conn-failure"
    #: a replica (an app in this process) that has not started
    NOT_STARTED = "not started", False, 503, "conn-failure"
    #: this process could not open a connection: a limit of its own is reached, and no server is at fault
    LOCAL_LIMIT = "no connection can be opened here", False, 503, "conn-failure"
    #: the server closed the connection after it got the request and before it sent a response
    CLOSED = "closed before the response", True, 502, "empty-response"
    #: a state change of this or of another server ended the requests in flight (`shutdown-sessions`)
    SHUT = "sessions shut down", True, 502, "empty-response"
    #: the server sent something that is not a valid response head, or only a part of one
    BAD_RESPONSE = "no valid response", True, 502, "junk-response"
    #: the server responded to the handshake of a WebSocket as to any other request, as many do at a path that has none;
    #: no server is at fault
    NO_WEBSOCKET = "no WebSocket there", True, 502, "junk-response"
    #: the server did not begin its response in time
    TIMEOUT = "no response in time", True, 504, "response-timeout"
    #: all attempts together took longer than `Timeouts(total=...)` allows; no server is at fault
    TOTAL_TIMEOUT = "no response in time over all attempts", True, 504, ""
    #: the request is ambiguous, so it is not forwarded; the client is at fault, no server is
    NOT_FORWARDABLE = "request can't be forwarded", True, 400, ""
    #: the client stopped sending in the middle of its request; no server is at fault
    CLIENT_TIMEOUT = "no more of the request in time", True, 408, ""
    #: the server closed the connection in the middle of a response that the client did not read; no server is at fault
    CLIENT_SLOW = "response cut short while the client did not read it", True, 502, ""
    #: the server responded with a status after which the request is retried at another server
    RETRIED_STATUS = "response not passed on", True, 502, ""
    #: the server closed the connection, or stopped sending, in the middle of its response
    TRUNCATED = "response cut short", True, 502, ""

    def __init__(self, text: str, executed: bool, status: int, word: str) -> None:
        self.text = text
        self.maybe_executed = executed
        self.status = status
        self.retry_word = word

    @property
    def is_server_fault(self) -> bool:
        """Whether the failure counts against the server (its health, `max_fails`, `fail_rate`)."""
        return self not in (
            Failure.NOT_FORWARDABLE,
            Failure.NO_WEBSOCKET,
            Failure.CLIENT_TIMEOUT,
            Failure.CLIENT_SLOW,
            Failure.LOCAL_LIMIT,
            Failure.SHUT,
            Failure.TOTAL_TIMEOUT,
        )


class ServerFailure(Exception):
    """A server, as opposed to the application that it runs, failed a request. Raised by the app of the server.

    `detail`: the evidence, as text for logs.
    """

    def __init__(self, failure: Failure, server: str = "", detail: str = "") -> None:
        what = f"{failure.text}: {detail}" if detail else failure.text
        super().__init__(f"server {server}: {what}" if server else what)
        self.failure = failure
        self.server = server
        self.detail = detail


class StoreFailure(Exception):
    """A store did not reply, or not as expected. Used in place of the reply; the request itself is not at fault.

    `store`: the URL of the store, without passwords. `detail`: the evidence, as text for logs.
    """

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"store {store}: {detail}")
        self.store = store
        self.detail = detail


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, the exceptions in it if it is a group, and those that they were raised from, or while they were
    handled; each once, since an exception that was raised from itself is its own cause.
    """
    found: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in found:
            continue
        found.add(id(each))
        yield each
        left += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            left += cast("BaseExceptionGroup[BaseException]", each).exceptions
