"""How a task waits on its event loop. The core knows no event loop: the ASGI face registers a function that waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

#: Registers a callback that is called, from any thread, when there may be something to see.
Subscribe = Callable[[Callable[[], object]], None]


class Wait(Protocol):
    """Waits on the running event loop until the callback that it passes to `subscribe` is called, or for so many
    seconds.
    """

    def __call__(self, subscribe: Subscribe, at_most: float | None, /) -> Awaitable[None]: ...


class EventLoop:
    """Where the ASGI face registers how to wait."""

    wait: Wait | None = None

    @classmethod
    def current_wait(cls) -> Wait:
        """Return how to wait. RuntimeError if no face has registered it."""
        if cls.wait is None:
            raise RuntimeError("to await this, import sticky_asgi; threads iterate, or call wait()")
        return cls.wait
