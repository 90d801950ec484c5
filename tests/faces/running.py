"""Running dispatchers, for tests of what works beside requests: checks, and changes of a backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio.from_thread

from sticky_core.backend.backend import Backend
from sticky_core.backend.change import Change

if TYPE_CHECKING:
    from tests.faces.conftest import Face, RecordedResponse

DEADLINE = 300.0


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


class RunningDispatcher:
    """A running dispatcher: on one event loop with its lifespans, or in the threads of this process."""

    def __init__(self, face: Face, dispatcher: Any, portal: Any) -> None:
        self._face = face
        self.dispatcher = dispatcher
        self._portal = portal

    def get(self, **options: Any) -> RecordedResponse:
        """Send a request, over ASGI on the event loop of the dispatcher."""
        client = self._face.client(self.dispatcher)
        if self._portal is None:
            return client(**options)
        run = asyncio.run
        asyncio.run = self._run  # type: ignore[assignment]
        try:
            return client(**options)
        finally:
            asyncio.run = run

    def _run(self, coroutine: Any) -> Any:
        async def await_it() -> Any:
            return await coroutine

        return self._portal.call(await_it)

    def apply(self, change: Callable[[], Change]) -> Change:
        """Change the backend as an app of this face would, and wait until the change is in force."""
        if self._portal is None:
            done = change()
            assert done.is_in_force, "on WSGI a change is in force at once"
            return done

        async def await_it() -> Change:
            done = change()
            await done
            return done

        done = self._portal.call(await_it)
        assert isinstance(done, Change)
        return done


@contextmanager
def running(face: Face, backend: Backend, library: str = "asyncio") -> Iterator[RunningDispatcher]:
    """Run a dispatcher in front of `backend`; a first request starts it."""
    dispatcher: Any = face.dispatcher(backend)
    with ExitStack() as stack:
        portal = None
        if face.name == "asgi":
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal(library))
            stack.enter_context(portal.wrap_async_context_manager(dispatcher.lifespan()))
        else:
            stack.callback(dispatcher.replicas.stop)
        run = RunningDispatcher(face, dispatcher, portal)
        run.get()
        yield run
