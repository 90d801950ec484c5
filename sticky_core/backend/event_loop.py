"""How a task waits on its event loop. The core knows no event loop: the ASGI face registers a function that waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Protocol, cast

#: Registers a callback, which is called from any thread when the awaited event may have happened.
Subscribe = Callable[[Callable[[], object]], None]


class Wait(Protocol):
    """Waits on the running event loop until the callback that it passes to `subscribe` is called, or for `at_most`
    seconds; None: without a limit.
    """

    def __call__(self, subscribe: Subscribe, at_most: float | None, /) -> Awaitable[None]: ...


class EventLoop:
    """Where the ASGI face registers how to wait."""

    #: `module:name` of the function that waits; it is imported when something is awaited first
    place: str | None = None
    _wait: Wait | None = None

    @classmethod
    def current_wait(cls) -> Wait:
        """Return the registered function that waits. RuntimeError if no face has registered one."""
        wait = cls._wait
        if wait is None:
            if cls.place is None:
                raise RuntimeError("to await this, import sticky_asgi; threads iterate, or call wait()")
            module, _, name = cls.place.partition(":")
            wait = cls._wait = cast(Wait, getattr(import_module(module), name))
        return wait
