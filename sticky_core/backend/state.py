"""BackendState: what the parts of a backend share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sticky_core.backend.component import BackendComponent
from sticky_core.backend.config import BackendConfig
from sticky_core.backend.function_failures import FunctionFailures
from sticky_core.backend.snapshot import Snapshot
from sticky_core.clock import Clock, Rng
from sticky_core.decision import Decision
from sticky_core.server.server import Server


class BackendState(Protocol):
    """A backend as its parts see it. They read it; only `Reconfigure` replaces values, under `Placement.lock`."""

    name: str
    log: Callable[[Decision], None] | None
    clock: Clock
    rng: Rng
    snapshot: Snapshot  #: the snapshot in force
    config: BackendConfig  #: the configuration applied last; the weight of servers may have been assigned since
    servers_by_name: dict[str, Server]
    components: dict[object, BackendComponent]
    function_failures: FunctionFailures

    @property
    def checks_are_free(self) -> bool:
        """Whether nothing runs the checks."""
        ...
