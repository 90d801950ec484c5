"""Limits of this process or machine that keep it from opening a connection, such as the number of open files. No server
is at fault: none is taken down for it, no client is moved, and the log names the limit.
"""

from __future__ import annotations

import errno
import logging
from math import inf
from typing import Final, cast

from sticky_core.errors import Failure, ServerFailure
from sticky_core.health.check import CheckResult, CheckStatus

#: open files of the process and of the machine, memory for sockets, and ports for connections to one address
_ERRNOS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))

#: how long no further line is logged, in seconds: every request may meet the limit
LOG_INTERVAL: Final = 10.0

_log = logging.getLogger("sticky_sessions")


def is_local_limit(error: BaseException) -> bool:
    """Return whether `error`, or what it was raised from, is a limit of this process or machine."""
    causes: list[BaseException | None] = [error]
    while causes:
        each = causes.pop()
        if isinstance(each, OSError) and each.errno in _ERRNOS:
            return True
        if isinstance(each, BaseExceptionGroup):
            causes += cast("BaseExceptionGroup[BaseException]", each).exceptions
        elif each is not None:
            causes.append(each.__cause__)
    return False


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
