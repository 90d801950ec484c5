"""Change: a change of a backend's configuration at run time, and how far it has come (`sticky_core.backend.reconfigure`
has the steps).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from sticky_core.backend.config import BackendConfig
from sticky_core.backend.milestone import Milestone
from sticky_core.backend.snapshot import Snapshot
from sticky_core.persistence.persistence_set import PersistenceSet
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server


class Change:
    """A change of a backend. `await` it on an event loop, or `wait()` for it in a thread, until it is in force; if it
    has failed, the exception is raised. A change that needs no event loop is in force, or has failed, when the call
    that made it returns.

    - `config`: the new configuration.
    - `before`: the one in force until now.
    - `servers`: its servers, in order.
    - `added`: servers that are new, replacements included.
    - `removed`: servers that are removed, each with the server that replaces it under the same name, or None.
    - `changed`: servers that stay but get another configuration, each with its new configuration.
    - `poll`: called regularly while a caller waits for `retired`.
    """

    def __init__(
        self,
        config: BackendConfig,
        before: BackendConfig,
        servers: Sequence[Server],
        added: Sequence[Server],
        removed: Mapping[Server, Server | None],
        changed: Mapping[Server, ServerConfig],
        poll: Callable[[], object],
    ) -> None:
        self.config = config
        self.servers = tuple(servers)
        self.added = tuple(added)
        self.removed = dict(removed)
        self.changed = dict(changed)
        #: the options of the backend that change
        self.options = config.changed_options(before)
        self._before = before
        #: the snapshot to put in force, if it was built beforehand
        self.snapshot: Snapshot | None = None
        #: its persistences, over servers as they would be
        self.trial_persistences: PersistenceSet | None = None
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
    def is_reordered(self) -> bool:
        """Whether the servers that stay are in another order."""
        return _common_names(self.config, self._before) != _common_names(self._before, self.config)

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


def _common_names(config: BackendConfig, other: BackendConfig) -> list[str]:
    """Return the names of the servers that both have, in the order of `config`."""
    names = {each.name for each in other.servers}
    return [each.name for each in config.servers if each.name in names]
