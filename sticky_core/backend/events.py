"""What changes about servers, as values: told to callbacks, or taken one by one, by a thread or on an event loop."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

_log = logging.getLogger("sticky_sessions")

#: how many changes are kept for somebody who does not come to take them
MOST_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class StateChange:
    """A server is in another state: `UP`, `DOWN`, `NOLB` (takes no new clients by its own word), `DRAIN`, `DRAINED`
    (nobody is there any more, or the deadline has come), `MAINT`. One that was added was `NEW`, one that was removed is
    `REMOVED`.

    `when`: seconds since the epoch.
    """

    backend: str
    server: str
    before: str
    after: str
    reason: str
    when: float

    def __str__(self) -> str:
        why = f", reason: {self.reason}" if self.reason else ""
        return f"Server {self.backend}/{self.server} is {self.after}, was {self.before}{why}"


#: Hands a bell over, that is rung by whatever thread when there may be something to see.
LieDown = Callable[[Callable[[], object]], None]


class Sleep(Protocol):
    """How a task waits on its event loop: until the bell rings that it hands to `lie_down`, or so many seconds."""

    def __call__(self, lie_down: LieDown, at_most: float | None, /) -> Awaitable[None]: ...


class Loop:
    """Where the ASGI face puts its way to wait: the core knows no event loop."""

    sleep: Sleep | None = None

    @classmethod
    def waiting(cls) -> Sleep:
        if cls.sleep is None:
            raise RuntimeError("to await this, import sticky_asgi; threads iterate, or call wait()")
        return cls.sleep


class Events:
    """The changes of one backend from now on, in order: `for change in events` in a thread, `async for` on an event
    loop. `close()`, or leaving `with`, ends it.
    """

    def __init__(self, bus: Bus, callback: Callable[[StateChange], object] | None = None) -> None:
        self._bus = bus
        self._callback = callback
        self._kept: deque[StateChange] = deque(maxlen=MOST_KEPT)
        self._news = threading.Condition()
        self._bell: Callable[[], object] | None = None
        self.closed = False
        bus.join(self)

    def tell(self, change: StateChange) -> None:
        if self._callback is not None:
            try:
                self._callback(change)
            except Exception:
                _log.exception("a callback for the events of backend %s failed", change.backend)
            return
        with self._news:
            self._kept.append(change)
            self._news.notify_all()
            bell = self._bell
        if bell is not None:
            bell()

    def close(self) -> None:
        """Nobody wants to be told any more."""
        self._bus.part(self)
        with self._news:
            self.closed = True
            self._news.notify_all()
            bell = self._bell
        if bell is not None:
            bell()

    def take(self) -> list[StateChange]:
        """Those that have come by now, without waiting."""
        with self._news:
            taken = list(self._kept)
            self._kept.clear()
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StateChange]:
        return self

    def __next__(self) -> StateChange:
        with self._news:
            while not self._kept and not self.closed:
                self._news.wait()
            if not self._kept:
                raise StopIteration
            return self._kept.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StateChange:
        while not self._kept and not self.closed:
            await Loop.waiting()(self._lie_down, None)
        if not self._kept:
            raise StopAsyncIteration
        return self._kept.popleft()

    def _lie_down(self, bell: Callable[[], object]) -> None:
        with self._news:
            self._bell = bell
            late = bool(self._kept) or self.closed
        if late:
            bell()


class Bus:
    """Tells everybody everything, each change once and in order, whichever threads they come from."""

    def __init__(self) -> None:
        self._everybody: tuple[Events, ...] = ()
        self._told = threading.Lock()
        self._joining = threading.Lock()
        self._waiting: deque[StateChange] = deque()

    def join(self, events: Events) -> None:
        with self._joining:
            self._everybody = (*self._everybody, events)

    def part(self, events: Events) -> None:
        with self._joining:
            self._everybody = tuple(each for each in self._everybody if each is not events)

    def after_fork(self) -> None:
        """We are a forked child: locks of threads that did not come along are let go."""
        self._told = threading.Lock()
        self._joining = threading.Lock()
        self._waiting.clear()

    def put(self, change: StateChange) -> None:
        """To be told by the next `tell`. Callable under a lock."""
        self._waiting.append(change)

    def tell(self) -> None:
        """Tell what waits. A callback that changes something again has that told when it is through."""
        while self._waiting and self._told.acquire(blocking=False):
            try:
                while self._waiting:
                    change = self._waiting.popleft()
                    for events in self._everybody:
                        events.tell(change)
            finally:
                self._told.release()


class Drained:
    """That a server is drained: `await` it on an event loop, or `wait()` in a thread.

    `look`: whether it is; `after`: for how many seconds at most it is no use to look again.
    """

    def __init__(self, look: Callable[[], bool], pause: float) -> None:
        self._look = look
        self._pause = pause

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has come to that within `timeout` seconds; None waits as long as it takes."""
        pause = threading.Event()
        left = timeout
        while not self._look():
            if left is not None:
                if left <= 0:
                    return False
                left -= self._pause
            pause.wait(self._pause)
        return True

    def __await__(self) -> Generator[Any, Any, None]:
        return self._until().__await__()

    async def _until(self) -> None:
        while not self._look():
            await Loop.waiting()(_no_bell, self._pause)


def _no_bell(bell: Callable[[], object]) -> None:
    """Nobody rings: it is time alone that tells."""
