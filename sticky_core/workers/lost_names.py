"""What middleware around `StickyWorkers` adds to a request: the worker that serves a forwarded request gets text and
numbers, but no objects, which is warned of.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Set
from typing import Final, cast

_log = logging.getLogger("sticky_sessions")


#: the types of the values that are forwarded, whichever they are
PLAIN_TYPES: Final = frozenset((str, bytes, bool, float, type(None)))


def is_plain(value: object) -> bool:
    """Return whether a value can be forwarded: text, bytes, a truth value, a number (an int: of at most 64 bits), or
    None. A change of any other would not come back, and streams, sockets and functions work only in their process.
    """
    kind = value.__class__
    return kind in PLAIN_TYPES or (kind is int and -(1 << 63) <= cast(int, value) < 1 << 63)


class LostNames:
    """The names that forwarded requests have lost. Each is reported once.

    - `where`: where middleware puts such names: "scope", "environ".
    - `way_out`: what to write so that nothing is lost.
    - `is_known`: returns whether a name need not be reported: servers set it, or apps do not need it.
    """

    def __init__(self, where: str, way_out: str, is_known: Callable[[str], bool] | None = None) -> None:
        self._where = where
        self._way_out = way_out
        self._is_known = is_known
        self._seen: set[str] = set()
        self._has_lost_socket = False
        self._lock = threading.Lock()

    def report(self, names: Set[str]) -> None:
        """Log those of `names` that were not reported before."""
        if names <= self._seen:
            return
        with self._lock:
            new = names - self._seen
            self._seen |= new
        if self._is_known is not None:
            new = {name for name in new if not self._is_known(name)}
        if new:
            _log.warning(
                "StickyWorkers: middleware around StickyWorkers has put %s into the %s, and requests that another "
                "worker serves do not have that. %s",
                ", ".join(sorted(new)),
                self._where,
                self._way_out,
            )

    def report_socket(self) -> None:
        """Log, once, that a WebSocket was requested on WSGI, where apps take over the socket of the server for it."""
        with self._lock:
            has_lost_before, self._has_lost_socket = self._has_lost_socket, True
        if not has_lost_before:
            _log.warning(
                "StickyWorkers: a client requests a WebSocket in another worker than its own, and WSGI has no way to "
                "forward one, so the app refuses it. With Flask-SocketIO write SocketIO(app, allow_upgrades=False): "
                "clients go on with polling. For WebSockets serve an ASGI app"
            )


#: the first parts of the names under which servers put objects into an environ
_SERVERS: Final = frozenset(
    (
        "asgi",
        "cheroot",
        "eventlet",
        "gevent",
        "granian",
        "gunicorn",
        "meinheld",
        "mod_wsgi",
        "sticky",
        "uwsgi",
        "waitress",
        "wsgi",
        "x-wsgiorg",
    )
)
#: the names under which Werkzeug's server, debugger, ProxyFix and Request put what no app needs
_WERKZEUG: Final = frozenset(
    (
        "werkzeug.debug.preserve_context",
        "werkzeug.proxy_fix.orig",
        "werkzeug.request",
        "werkzeug.server.shutdown",
        "werkzeug.socket",
    )
)


def is_known_in_environ(name: str) -> bool:
    """Return whether a name in an environ need not be reported."""
    return name.partition(".")[0] in _SERVERS or name in _WERKZEUG
