"""BackendComponent: what is attached to a backend and exists as long as it does, such as a face's apps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sticky_core.backend.change import Change
from sticky_core.backend.config import BackendConfig
from sticky_core.backend.snapshot import Snapshot
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server


class BackendComponent:
    """Attached to a backend by `Backend.component`, and called when the backend changes. Every method does nothing
    unless it is overridden.

    "Under the lock" means `Placement.lock`.
    """

    def set_has_timers(self, has_timers: bool) -> None:
        """Record whether the backend has timers, so that `Monitor.run_due_timers` must be called before requests. Under
        the lock.
        """

    def after_fork(self) -> None:
        """Discard what belongs to the parent process. Called in a forked child."""

    def server_problems(self, servers: Iterable[ServerConfig]) -> Iterator[str]:
        """Yield the reasons why the component can't serve these servers."""
        yield from ()

    def config_problems(self, config: BackendConfig) -> Iterator[str]:
        """Yield the reasons why `config` is in conflict with other backends."""
        yield from ()

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        """Start what `change` adds. Call `on_ready` when that is done, at once or later, from any thread, with the
        exception if it failed.
        """
        on_ready(None)

    def undo(self, change: Change) -> None:
        """Stop what `prepare` started: the change has failed."""

    def swap(self, change: Change, snapshot: Snapshot) -> None:
        """Use `snapshot` for new requests: it is in force. Under the lock."""

    def after_swap(self, change: Change) -> None:
        """Release what is not used any more after a swap. Called without the lock."""

    def refuse(self, server: Server) -> None:
        """Refuse requests that are still on the way to `server`: it was removed, and no request is in flight there."""

    def retire(self, server: Server, on_done: Callable[[], None]) -> None:
        """End what serves `server`, which was removed and gets no more requests. Call `on_done` when that is done."""
        on_done()

    def prepare_move(self, server: Server, config: ServerConfig) -> object:
        """Return what `move` needs for the new address of `server`. This may raise; `move` may not."""
        return None

    def move(self, server: Server, prepared: object) -> None:
        """Use `prepared`, the result of `prepare_move`, for `server`, which has another address. Under the lock."""

    def after_move(self, server: Server) -> None:
        """Release what served the old address of `server`. Called without the lock."""
