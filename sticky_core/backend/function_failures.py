"""FunctionFailures: functions of the configuration that have raised. A request goes on without them."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping

_log = logging.getLogger("sticky_sessions")


class FunctionFailures:
    """How often functions that the user has passed to one backend have raised: samples, conditions, keys of balance,
    the log. The first exception of each is logged with its traceback; all are counted.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        #: failures that `publish` is still to log, each with its exception
        self.pending: deque[tuple[str, Exception]] = deque()

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each function has raised, by its place: `the key of a stick rule: cart_id`."""
        with self._lock:
            return dict(self._counts)

    def record(self, place: str, function: object, error: Exception, *, is_locked: bool = False) -> None:
        """Count an exception of `function`, and log it if it is the first there. `is_locked`: the backend's lock is
        held, so it is logged by the next `publish`.
        """
        where = f"{place}: {_name(function)}"
        with self._lock:
            self._counts[where] += 1
            if self._counts[where] > 1:
                return
        self.pending.append((where, error))
        if not is_locked:
            self.publish()

    def publish(self) -> None:
        """Log what is pending. Called without the backend's lock."""
        while self.pending:
            try:
                where, error = self.pending.popleft()
            except IndexError:  # another thread has logged it
                return
            _log.error(
                "backend %s: %s has raised %r: the request goes on without it. Further exceptions there are counted in "
                "`Backend.function_failures.counts`, and not logged.",
                self._backend,
                where,
                error,
                exc_info=error,
            )

    def after_fork(self) -> None:
        """Renew the lock in a forked child."""
        self._lock = threading.Lock()
        self.pending.clear()


def _name(function: object) -> str:
    name: object = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else repr(function)
