"""State changes of servers as values. A callback receives them, or a thread or an event loop iterates over them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

from sticky_core.backend.event_loop import EventLoop
from sticky_core.deferred.dataclass import dataclass

_log = logging.getLogger("sticky_sessions")

#: how many changes are kept for a subscriber that does not take them
MAX_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class StateChange:
    """A server is in another state.

    - `backend`, `server`: their names.
    - `before`, `after`: `UP`, `DOWN`, `NOLB` (it takes no new clients, by its check), `DRAIN`, `DRAINED` (no client is
      left, or the deadline has passed and nothing is in flight) or `MAINT`; `NEW` before a server that was added,
      `REMOVED` after one that was removed.
    - `reason`: why, as in the log; may be empty.
    - `when`: seconds since the epoch.
    """

    backend: str
    server: str
    before: str
    after: str
    reason: str
    when: float

    def __str__(self) -> str:
        reason = f", reason: {self.reason}" if self.reason else ""
        return f"Server {self.backend}/{self.server} is {self.after}, was {self.before}{reason}"


class Events:
    """The state changes of one backend from now on, in order: `for change in events` in a thread, `async for` on an
    event loop. `close()`, or the end of a `with` block, ends the iteration.
    """

    def __init__(self, bus: EventBus, callback: Callable[[StateChange], object] | None = None) -> None:
        self._bus = bus
        self._callback = callback
        self._changes: deque[StateChange] = deque(maxlen=MAX_KEPT)
        self._condition = threading.Condition()
        self._wake: Callable[[], object] | None = None  # wakes the task that waits on its event loop
        self.closed = False
        bus.subscribe(self)

    def deliver(self, change: StateChange) -> None:
        """Pass a change to the callback, or keep it. Called by the bus."""
        if self._callback is not None:
            try:
                self._callback(change)
            except Exception:
                _log.exception("a callback for the events of backend %s failed", change.backend)
            return
        with self._condition:
            self._changes.append(change)
            self._condition.notify_all()
            wake = self._wake
        if wake is not None:
            wake()

    def close(self) -> None:
        """Receive no further changes."""
        self._bus.unsubscribe(self)
        with self._condition:
            self.closed = True
            self._condition.notify_all()
            wake = self._wake
        if wake is not None:
            wake()

    def take(self) -> list[StateChange]:
        """Remove and return the changes received so far, without waiting."""
        with self._condition:
            taken = list(self._changes)
            self._changes.clear()
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StateChange]:
        return self

    def __next__(self) -> StateChange:
        with self._condition:
            while not self._changes and not self.closed:
                self._condition.wait()
            if not self._changes:
                raise StopIteration
            return self._changes.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StateChange:
        while not self._changes and not self.closed:
            await EventLoop.current_wait()(self._subscribe, None)
        if not self._changes:
            raise StopAsyncIteration
        return self._changes.popleft()

    def _subscribe(self, wake: Callable[[], object]) -> None:
        with self._condition:
            self._wake = wake
            has_happened = bool(self._changes) or self.closed
        if has_happened:
            wake()


class EventBus:
    """Delivers every change to every subscriber, once and in order, from whichever threads they come."""

    def __init__(self) -> None:
        self._subscribers: tuple[Events, ...] = ()
        self._publishing = threading.Lock()
        self._subscribing = threading.Lock()
        self._queue: deque[StateChange] = deque()

    def subscribe(self, events: Events) -> None:
        with self._subscribing:
            self._subscribers = (*self._subscribers, events)

    def unsubscribe(self, events: Events) -> None:
        with self._subscribing:
            self._subscribers = tuple(each for each in self._subscribers if each is not events)

    def put(self, change: StateChange) -> None:
        """Queue a change for the next `publish`. May be called under a lock."""
        self._queue.append(change)

    def publish(self) -> None:
        """Deliver the queued changes. A change that a callback causes is delivered after the one that caused it."""
        while self._queue and self._publishing.acquire(blocking=False):
            try:
                while self._queue:
                    change = self._queue.popleft()
                    for events in self._subscribers:
                        events.deliver(change)
            finally:
                self._publishing.release()

    def after_fork(self) -> None:
        """Renew the locks and discard queued changes. Called in a forked child."""
        self._publishing = threading.Lock()
        self._subscribing = threading.Lock()
        self._queue.clear()
