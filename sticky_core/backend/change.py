"""A change of a backend while it runs, and how far it has come.

Prepare, swap, retire: what comes is begun first, and if that fails nothing has changed; then requests to come find the
new configuration, while those on their way keep the one that they began with; then what went is ended, each server when
its last request is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sticky_core.backend.config import BackendConfig
from sticky_core.backend.events import Loop
from sticky_core.server.config import ServerConfig
from sticky_core.server.drain import POLL_INTERVAL
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_core.backend.snapshot import Snapshot


class ChangeLock:
    """Whose turn it is to change a backend: one thread's at a time, which may take it again while it has it. What
    others are to be told meanwhile waits until it is over (`afterwards`).
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._whose = 0
        self._depth = 0
        self._waiting: list[Callable[[], object]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self._whose = threading.get_ident()

    def __exit__(self, *exc_info: object) -> None:
        waiting: list[Callable[[], object]] = []
        self._depth -= 1
        if not self._depth:
            self._whose = 0
            waiting, self._waiting = self._waiting, []
        self._lock.release()
        for call in waiting:
            call()

    def after_fork(self) -> None:
        """Release it in a forked child, where the thread that held it does not exist."""
        self._renew()

    def afterwards(self, call: Callable[[], object]) -> None:
        """Have `call` made when this thread's turn is over; at once, if it is not its turn."""
        if self._whose == threading.get_ident():
            self._waiting.append(call)
        else:
            call()


class Milestone:
    """Something that a change comes to: `await` it on an event loop, or `wait()` for it in a thread.

    `look`: called now and then by who waits.
    """

    def __init__(self, look: Callable[[], object] | None = None) -> None:
        #: whether it has come to that
        self.reached = False
        self._look = look
        self._lock = threading.Lock()
        self._bells: list[Callable[[], object]] = []

    def reach(self) -> None:
        """It has come to that: whoever waits is told, by whatever thread this is."""
        with self._lock:
            self.reached = True
            bells, self._bells = self._bells, []
        for bell in bells:
            bell()

    def _lie_down(self, bell: Callable[[], object]) -> None:
        with self._lock:
            if not self.reached:
                self._bells.append(bell)
                return
        bell()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has come to that within `timeout` seconds; None waits as long as it takes."""
        rung = threading.Event()
        self._lie_down(rung.set)
        left = timeout
        while not self.reached:
            if left is not None and left <= 0:
                return False
            pause = POLL_INTERVAL if left is None else min(POLL_INTERVAL, left)
            rung.wait(pause)
            if left is not None:
                left -= pause
            if self._look is not None:
                self._look()
        return True

    def __await__(self) -> Generator[Any, Any, None]:
        return self._until().__await__()

    async def _until(self) -> None:
        hung: list[Callable[[], object]] = []

        def lie_down(bell: Callable[[], object]) -> None:
            hung.append(bell)
            self._lie_down(bell)

        while not self.reached:
            await Loop.waiting()(lie_down, POLL_INTERVAL)
            with self._lock:
                self._bells = [bell for bell in self._bells if bell not in hung]
            hung.clear()
            if self._look is not None:
                self._look()


class Change:
    """A change on its way. `await` it on an event loop, or `wait()` for it in a thread: then it is in force, or has
    failed, which is raised. A change for which nobody has to wait is in force when the call that asked for it returns.

    `retired`: that the last request at the servers that went is over, and they are ended; to be waited for alike.
    """

    def __init__(
        self,
        config: BackendConfig,
        servers: Sequence[Server],
        came: Sequence[Server],
        went: Mapping[Server, Server | None],
        asked: Mapping[Server, ServerConfig],
        look: Callable[[], object],
    ) -> None:
        #: what is asked, and of whom
        self.config = config
        self.servers = tuple(servers)
        #: servers that are new
        self.added = tuple(came)
        #: servers that go, and who takes the name over
        self.removed = dict(went)
        #: what is asked of those that stay, where it is something else than before
        self.changed = dict(asked)
        #: what is to be in force, where that could be built beforehand
        self.snapshot: Snapshot | None = None
        self.failure: BaseException | None = None
        self.retired = Milestone(look)
        self._decided = Milestone()
        self._unready: set[object] = set()
        self._leaving: set[tuple[Server, object]] = set()

    @property
    def is_in_force(self) -> bool:
        """Whether requests to come find it."""
        return self._decided.reached and self.failure is None

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is in force within `timeout` seconds; None waits as long as it takes. RuntimeError if it failed:
        then nothing has changed. Not for a thread whose event loop has lifespans to run for it: `await` it there.
        """
        reached = self._decided.wait(timeout)
        self._raise()
        return reached

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self._decided.__await__()
        self._raise()

    def _raise(self) -> None:
        if self.failure is not None:
            raise self.failure

    # Told by the backend, and by what faces keep beside it

    def wait_for(self, who: Iterable[object]) -> None:
        """These have to be ready before it can be in force."""
        self._unready.update(who)

    def mark_ready(self, who: object) -> bool:
        """One of them is. Whether all are."""
        self._unready.discard(who)
        return not self._unready

    def fail(self, failure: BaseException) -> None:
        """It can't be done, and nothing has changed."""
        self.failure = failure
        self._decided.reach()
        self.retired.reach()

    def complete(self) -> None:
        """It is in force."""
        self._decided.reach()

    def start_retiring(self, pairs: Iterable[tuple[Server, object]]) -> None:
        """Of these servers, these have something to end."""
        self._leaving.update(pairs)
        if not self._leaving:
            self.retired.reach()

    def retired_by(self, server: Server, who: object) -> None:
        """One of them has."""
        self._leaving.discard((server, who))
        if not self._leaving:
            self.retired.reach()

    @property
    def summary(self) -> str:
        """`+s4 -s1 ~s2`: who comes, who goes, who is changed."""
        signs = [f"+{server.name}" for server in self.added] + [f"-{server.name}" for server in self.removed]
        return " ".join([*signs, *(f"~{server.name}" for server in self.changed)]) or "the same servers"

    def __repr__(self) -> str:
        state = "failed" if self.failure is not None else "in force" if self.is_in_force else "being prepared"
        return f"<Change of {self.config.name}: {self.summary}, {state}>"
