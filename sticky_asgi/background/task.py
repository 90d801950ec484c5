"""Tasks that run beside requests: health checks, and the resolution of names."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
from anyio.lowlevel import current_token

from sticky_asgi.messages import Schedule, scheduler


class BackgroundTask:
    """A task that runs beside requests, on the one event loop that owns it, until that loop or the lifespan ends."""

    _scope: anyio.CancelScope | None
    _ended: anyio.Event | None
    _task: object  # a reference: event loops hold their tasks weakly
    _schedule: Schedule | None  # calls a function on the owning event loop, from any thread

    def __init__(self) -> None:
        self._reset()

    @property
    def is_needed(self) -> bool:
        """Whether there is work to do."""
        return True

    def _acquire(self) -> bool:
        """Become the owner of the work, and return whether that succeeded: no other event loop may own it."""
        raise NotImplementedError

    def _release(self) -> None:
        """Leave the work to another owner."""
        raise NotImplementedError

    async def _run_forever(self) -> None:
        """Do the work until cancelled."""
        raise NotImplementedError

    def start(self) -> None:
        """Run as a task of this event loop, where no lifespan runs it."""
        if not self.is_needed or self._ended is not None:
            return
        native: Any = current_token().native_token
        if hasattr(native, "create_task"):
            if self._prepare():
                self._task = native.create_task(self.run())
        else:
            import trio

            if self._prepare():
                trio.lowlevel.spawn_system_task(self.run)

    def start_in(self, group: anyio.abc.TaskGroup) -> None:
        """Run in `group`, until `stop`."""
        if self.is_needed and self._ended is None and self._prepare():
            group.start_soon(self.run)

    def _prepare(self) -> bool:
        if not self._acquire():
            return False
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._schedule = scheduler()
        return True

    async def run(self) -> None:
        scope, ended = self._scope, self._ended
        assert scope is not None and ended is not None
        try:
            with scope:
                await self._run_forever()
        finally:
            self._reset()
            self._release()
            ended.set()

    async def stop(self) -> None:
        """Cancel the task, and wait until it has ended."""
        scope, ended = self._scope, self._ended
        if scope is not None and ended is not None:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await ended.wait()

    def after_fork(self) -> None:
        """Forget the parent process's task in a forked child."""
        self._reset()

    def _reset(self) -> None:
        self._scope = self._ended = self._task = self._schedule = None
