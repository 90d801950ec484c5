"""What callers wait for: `await` it on an event loop, or `wait()` for it in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from sticky_core.backend.event_loop import EventLoop
from sticky_core.server.drain import POLL_INTERVAL


class Milestone:
    """Something that is reached once.

    `poll`: called regularly while a caller waits.
    """

    def __init__(self, poll: Callable[[], object] | None = None) -> None:
        self.reached = False
        self._poll = poll
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def reach(self) -> None:
        """Set `reached`, and notify all callers that wait. Called from any thread."""
        with self._lock:
            self.reached = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def __bool__(self) -> bool:
        """Whether it is reached, so that `if backend.checked:` is no test that is always true."""
        return self.reached

    def __repr__(self) -> str:
        return f"<Milestone: {'reached' if self.reached else 'not reached'}>"

    def _subscribe(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the milestone is reached; at once, if it is reached already."""
        with self._lock:
            if not self.reached:
                self._callbacks.append(callback)
                return
        callback()

    def _unsubscribe(self, callbacks: Sequence[Callable[[], object]]) -> None:
        with self._lock:
            self._callbacks = [each for each in self._callbacks if each not in callbacks]

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether it is reached within `timeout` seconds; None: wait until it is."""
        event = threading.Event()
        self._subscribe(event.set)
        left = timeout
        try:
            while not self.reached:
                if left is not None and left <= 0:
                    return False
                pause = POLL_INTERVAL if left is None else min(POLL_INTERVAL, left)
                event.wait(pause)
                if left is not None:
                    left -= pause
                if self._poll is not None:
                    self._poll()
        finally:
            self._unsubscribe([event.set])
        return True

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait_on_event_loop().__await__()

    async def _wait_on_event_loop(self) -> None:
        own: list[Callable[[], object]] = []

        def subscribe(callback: Callable[[], object]) -> None:
            own.append(callback)
            self._subscribe(callback)

        while not self.reached:
            try:
                await EventLoop.current_wait()(subscribe, POLL_INTERVAL)
            finally:  # also if this is cancelled
                self._unsubscribe(own)
                own.clear()
            if self._poll is not None:
                self._poll()


class Drained:
    """Waits until a server is drained: `await` it on an event loop, or `wait()` for it in a thread.

    `is_drained`: returns whether the server is drained; `interval`: seconds between two calls of that.
    """

    def __init__(self, is_drained: Callable[[], bool], interval: float) -> None:
        self._is_drained = is_drained
        self._interval = interval

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether the server is drained within `timeout` seconds; None: wait until it is."""
        pause = threading.Event()
        left = timeout
        while not self._is_drained():
            if left is not None:
                if left <= 0:
                    return False
                left -= self._interval
            pause.wait(self._interval)
        return True

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait_on_event_loop().__await__()

    async def _wait_on_event_loop(self) -> None:
        while not self._is_drained():
            await EventLoop.current_wait()(_subscribe_to_nothing, self._interval)


def _subscribe_to_nothing(callback: Callable[[], object]) -> None:
    """Never call `callback`: only time passes."""
