"""Whether the client of a request has disconnected. WSGI does not report it; some servers do."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

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
    poll = select.poll()
    try:
        poll.register(socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # closed already
        return True


def _never() -> bool:
    return False
