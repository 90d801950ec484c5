"""ChangeLock: the lock that allows one thread at a time to change a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ChangeLock:
    """A lock that the thread which holds it may acquire again. Callbacks that are due meanwhile are called when it is
    released (`call_after_release`), so that they may change the backend in turn, or wait for another thread that does.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._holder = 0  # the id of the thread that holds it; 0: none
        self._depth = 0
        self._callbacks: list[Callable[[], object]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self._holder = threading.get_ident()

    def __exit__(self, *exc_info: object) -> None:
        if self._holder != threading.get_ident():
            return  # this thread has acquired it before a fork, and is in the child
        callbacks: list[Callable[[], object]] = []
        self._depth -= 1
        if not self._depth:
            self._holder = 0
            callbacks, self._callbacks = self._callbacks, []
        self._lock.release()
        for callback in callbacks:
            callback()

    def call_after_release(self, callback: Callable[[], object]) -> None:
        """Call `callback` when this thread releases the lock; at once, if it does not hold it."""
        if self._holder == threading.get_ident():
            self._callbacks.append(callback)
        else:
            callback()

    def after_fork(self) -> None:
        """Release it in a forked child, where the thread that held it does not exist."""
        self._reset()
