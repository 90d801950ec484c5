"""Change: a change of a backend's configuration at run time, and how far it has come (`sticky_core.backend.reconfigure`
has the steps).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from sticky_core.backend.config import BackendConfig
from sticky_core.backend.difference import ServerDifference
from sticky_core.backend.milestone import Milestone
from sticky_core.backend.snapshot import Snapshot
from sticky_core.persistence.persistence_set import PersistenceSet
from sticky_core.server.server import Server


class Change:
    """A change of a backend. `await` it on an event loop, or `wait()` for it in a thread, until it is in force; if it
    has failed, the exception is raised. A change that needs no event loop is in force, or has failed, when the call
    that made it returns.

    - `config`: the new configuration.
    - `before`: the one in force until now.
    - `difference`: what is different about its servers; `servers`, `added`, `removed` and `changed` are taken from it.
    - `poll`: called regularly while a caller waits for `retired`.
    """

    def __init__(
        self,
        config: BackendConfig,
        before: BackendConfig,
        difference: ServerDifference,
        poll: Callable[[], object],
    ) -> None:
        self.config = config
        self.difference = difference
        self.servers = difference.servers
        self.added = difference.added
        self.removed = difference.removed
        self.changed = difference.changed
        #: the options of the backend that change
        self.options = config.changed_options(before)
        #: the snapshot to put in force, if it was built beforehand
        self.snapshot: Snapshot | None = None
        #: whether the snapshot is derived from the one in force, in proportion to the change
        self.is_derived = False
        #: its persistences, over servers as they would be
        self.trial_persistences: PersistenceSet | None = None
        #: the servers that are added, and copies of those that are changed, as they would be, if `is_derived`
        self.trial_servers: tuple[Server, ...] = ()
        #: the exception with which the change has failed
        self.failure: BaseException | None = None
        #: reached when the last request at the removed servers is over, and they are ended
        self.retired = Milestone(poll)
        self._decided = Milestone()
        self._preparing: set[object] = set()
        self._retiring: set[tuple[Server, object]] = set()

    @property
    def is_in_force(self) -> bool:
        """Whether new requests use it."""
        return self._decided.reached and self.failure is None

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether it is in force within `timeout` seconds; None: wait until it is. RuntimeError if it has
        failed: then nothing has changed. Do not call this in the thread of an event loop that has to run lifespans
        for it: `await` it there.
        """
        reached = self._decided.wait(timeout)
        self._raise_failure()
        return reached

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self._decided.__await__()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    # Called by the backend and its components

    def wait_for(self, components: Iterable[object]) -> None:
        """Record the components that have to be ready before the change is put in force."""
        self._preparing.update(components)

    def mark_ready(self, component: object) -> bool:
        """Record that a component is ready. Return whether all are."""
        self._preparing.discard(component)
        return not self._preparing

    def fail(self, failure: BaseException) -> None:
        """Record that the change has failed, and that nothing has changed."""
        self.failure = failure
        self._decided.reach()
        self.retired.reach()

    def complete(self) -> None:
        """Record that the change is in force."""
        self._decided.reach()

    def start_retiring(self, pairs: Iterable[tuple[Server, object]]) -> None:
        """Record which removed servers are still to be ended, and by which components."""
        self._retiring.update(pairs)
        if not self._retiring:
            self.retired.reach()

    def mark_retired(self, server: Server, component: object) -> None:
        """Record that a component has ended a removed server."""
        self._retiring.discard((server, component))
        if not self._retiring:
            self.retired.reach()

    @property
    def checked_servers(self) -> tuple[Server, ...] | None:
        """The servers that may have other checks than before, removed ones included; None: all."""
        return None if "check" in self.options else (*self.added, *self.removed, *self.changed)

    @property
    def is_reordered(self) -> bool:
        """Whether the servers that stay are in another order."""
        return not self.difference.keeps_order

    @property
    def summary(self) -> str:
        """`+s4 -s1 ~s2, changed options: retries`: the servers that are added, removed and changed, and the names of
        the backend's options that change.
        """
        parts = [f"+{server.name}" for server in self.added] + [f"-{server.name}" for server in self.removed]
        servers = " ".join([*parts, *(f"~{server.name}" for server in self.changed)])
        if not servers and self.is_reordered:
            servers = "the same servers in another order"
        options = f"changed options: {', '.join(self.options)}" if self.options else ""
        return ", ".join(filter(None, (servers, options))) or "nothing changes"

    def __repr__(self) -> str:
        state = "failed" if self.failure is not None else "in force" if self.is_in_force else "being prepared"
        return f"<Change of {self.config.name}: {self.summary}, {state}>"
