"""What runs beside requests: checks, and the resolution of names."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
from anyio.lowlevel import current_token

from sticky_asgi.messages import Soon, soon_here


class BackgroundTask:
    """What runs beside requests for as long as an event loop lives, or a lifespan: once, on the event loop that owns
    it.
    """

    _scope: anyio.CancelScope | None
    _ended: anyio.Event | None
    _task: object
    _soon: Soon | None  # how to reach the event loop

    def __init__(self) -> None:
        self._let_go()

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to run."""
        return True

    def _claimed(self) -> bool:
        """Whether it is ours to run, and nobody else's from here on."""
        raise NotImplementedError

    def _disowned(self) -> None:
        """It is anybody's to run again."""
        raise NotImplementedError

    async def _work(self) -> None:
        """What it does, for ever."""
        raise NotImplementedError

    def start(self) -> None:
        """Run it as a task of this event loop, where no lifespan does."""
        if not self.is_needed or self._ended is not None:
            return
        native: Any = current_token().native_token
        if hasattr(native, "create_task"):
            if self._own():
                self._task = native.create_task(self.run())
        else:
            import trio

            if self._own():
                trio.lowlevel.spawn_system_task(self.run)

    def start_in(self, group: anyio.abc.TaskGroup) -> None:
        """Run it in `group`, until `end`."""
        if self.is_needed and self._ended is None and self._own():
            group.start_soon(self.run)

    def _own(self) -> bool:
        if not self._claimed():
            return False
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._soon = soon_here()
        return True

    async def run(self) -> None:
        scope, ended = self._scope, self._ended
        assert scope is not None and ended is not None
        try:
            with scope:
                await self._work()
        finally:
            self._let_go()
            self._disowned()
            ended.set()

    async def stop(self) -> None:
        """Run it no more; over when nothing of it is on its way."""
        scope, ended = self._scope, self._ended
        if scope is not None and ended is not None:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await ended.wait()

    def after_fork(self) -> None:
        """We are a forked child: it runs in the parent."""
        self._let_go()

    def _let_go(self) -> None:
        self._scope = self._ended = self._task = self._soon = None
