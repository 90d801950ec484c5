"""Limits of this process or machine that keep it from opening a connection, such as the number of open files. No server
is at fault: none is taken down for it, no client is moved, and the log names the limit.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from math import inf
from typing import Final

from sticky_core.errors import Failure, ServerFailure, with_causes
from sticky_core.health.check import CheckResult, CheckStatus

#: open files of the process and of the machine, memory for sockets
_ERRNOS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: No port is left for a connection to this address. A machine without IPv6 has the same error for every IPv6 address,
#: also where `localhost` has one of each version: so it is a limit only if no address had another error.
_NO_PORT: Final = errno.EADDRNOTAVAIL

#: how long no further line is logged, in seconds: every request may meet the limit
LOG_INTERVAL: Final = 10.0

_log = logging.getLogger("sticky_sessions")


def is_local_limit(error: BaseException) -> bool:
    """Return whether `error`, or what it was raised from, is a limit of this process or machine."""
    numbers = {each.errno for each in with_causes(error) if isinstance(each, OSError) and each.errno is not None}
    return numbers == {_NO_PORT} or not numbers.isdisjoint(_ERRNOS)


def error_of_attempts(errors: Sequence[OSError]) -> OSError:
    """Return the error of a connection that could not be opened to any address of a server: the last one, raised from
    all of them. `errors`: of each address, at least one.
    """
    error = errors[-1]
    if len(errors) > 1:
        error.__cause__ = ExceptionGroup("all addresses failed", errors)
    return error


def connect_failure(error: OSError, now: float, server: str = "") -> ServerFailure:
    """Return the failure of a server to which no connection could be opened. `now`: monotonic, in seconds."""
    detail = error.strerror or str(error)
    if not is_local_limit(error):
        return ServerFailure(Failure.REFUSED, server, detail)
    LOG.write(detail, now)
    return ServerFailure(Failure.LOCAL_LIMIT, server, detail)


def connect_result(error: OSError, detail: str, now: float) -> CheckResult:
    """Return the result of a check that could not open a connection. `detail`: the error as text. `now`: monotonic, in
    seconds.
    """
    if not is_local_limit(error):
        return CheckResult(CheckStatus.L4CON, info=detail)
    LOG.write(detail, now)
    return CheckResult(CheckStatus.UNK, info=detail)


class LocalLimitLog:
    """Logs that a limit is reached, at most every `LOG_INTERVAL` seconds."""

    def __init__(self) -> None:
        self._next = -inf

    def write(self, detail: str, now: float) -> None:
        if now >= self._next:
            self._next = now + LOG_INTERVAL
            _log.error(
                "%s: this process could not open a connection, as a limit of its own or of the machine is reached. "
                "No server is taken down for it. See `ulimit -n` and net.ipv4.ip_local_port_range",
                detail,
            )


LOG: Final = LocalLimitLog()
