"""Whether the client of a request has disconnected, which WSGI does not report, but some servers do; and how the
connection to a client is broken off.
"""

from __future__ import annotations

import errno
import select
import sys
from collections.abc import Callable
from typing import Any

from sticky_core.errors import Failure, ServerFailure
from sticky_wsgi.messages import Environ


def disconnect_check(environ: Environ) -> Callable[[], bool]:
    """Return a function that returns whether the client of `environ` has disconnected: that of waitress, or one that
    checks the client's socket, which gunicorn passes. With other servers it always returns False.
    """
    disconnected: Callable[[], bool] | None = environ.get("waitress.client_disconnected")
    if disconnected is not None:
        return disconnected
    socket: Any = environ.get("gunicorn.socket")
    if socket is None or not hasattr(select, "POLLRDHUP"):
        return _never
    return lambda: _hung_up(socket)


def _hung_up(socket: Any) -> bool:
    # The system's own: the one that gevent puts in its place knows no POLLRDHUP. It does not block with a timeout of 0.
    gevent: Any = sys.modules.get("gevent.monkey")
    poll = gevent.get_original("select", "poll")() if gevent is not None else select.poll()
    try:
        poll.register(socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # closed already
        return True


def _never() -> bool:
    return False


class TruncatedResponse(ServerFailure, ConnectionResetError):
    """A response was cut short after the client has got its head. Servers take this for a connection that is lost: they
    close it, and log no traceback. If the app only ended the response, gunicorn would keep the connection open, and
    chunks would look complete.
    """

    def __init__(self, failure: Failure, server: str, detail: str) -> None:
        super().__init__(failure, server, detail)
        self.errno = errno.ECONNRESET


def truncation(environ: Environ, failure: Failure, server: str, detail: str) -> ServerFailure:
    """Return the exception that makes the web server break the connection to its client off."""
    waitress: Any = sys.modules.get("waitress.channel")
    if waitress is None or "waitress.client_disconnected" not in environ:
        return TruncatedResponse(failure, server, detail)
    # waitress logs the traceback of every exception but its own
    truncated: ServerFailure = type("TruncatedResponse", (ServerFailure, waitress.ClientDisconnected), {})(
        failure, server, detail
    )
    return truncated
