"""ServerStatus: whether a server may get requests, and how many. It depends on admin state, health and weight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from sticky_core.errors import ConfigError
from sticky_core.health.runtime import CheckRuntime
from sticky_core.options.spelling import problem_of_word
from sticky_core.server.config import MAX_WEIGHT, ServerConfig, is_weight, limit_problem
from sticky_core.server.counters import Counters
from sticky_core.server.drain import DEADLINE, SPREAD, Drain
from sticky_core.server.instance import is_instance
from sticky_core.server.max_fails import MaxFails
from sticky_core.server.slowstart import SCALE, SlowStart
from sticky_core.server.state import AdminState, Health


class ServerStatus:
    """The state of a server. Requests read the derived values (`usable`, `electable`, `limit`, `eweight`);
    `refresh_state` derives them anew after each change, and at each deadline.
    """

    __slots__ = (
        "__weakref__",
        "_health",
        "_instance",
        "_maxconn",
        "_on_change",
        "_state",
        "_updated",
        "_weight",
        "agent",
        "agent_up",
        "checking",
        "config",
        "counters",
        "counts_requests",
        "draining",
        "electable",
        "eweight",
        "in_flight",
        "limit",
        "max_fails",
        "name",
        "reachable",
        "reason",
        "removed",
        "slowstart",
        "trackers",
        "tracks",
        "usable",
        "was_announced",
    )

    def _start_status(self, config: ServerConfig) -> None:
        #: the configuration in force: the address may have been assigned at run time
        self.config = config
        self.name = config.name
        self._weight = config.weight
        self._state: AdminState = AdminState.READY
        self._health = Health.UP
        self._instance = ""
        self._on_change: Callable[[Any], None] | None = None
        #: whether it was removed from its backend, for good
        self.removed = False
        #: Whether bound clients may be sent here (HAProxy: not STOPPED), and whether balance may choose it. Derived
        #: from what follows, and kept because every request reads them.
        self.usable = True
        self.electable = config.weight > 0
        #: whether it could serve a request at all: also while it drains, after its deadline
        self.reachable = True
        #: its effective weight, in sixteenths (`slowstart`)
        self.eweight = config.weight * SCALE
        #: An item per request in flight. Append and pop are atomic, so its length needs no lock.
        self.in_flight: deque[None] = deque()
        #: Whether a request must call `Placement.release` at its end; else it removes itself from `in_flight`. Set by
        #: the backend.
        self.counts_requests = False
        self._maxconn = config.maxconn
        #: how many requests may be in flight at present (`slowstart`); 0: any number
        self.limit = config.maxconn
        self.counters: Counters = Counters.new()
        #: the running check, and the schedule of the agent's queries; None: there is none
        self.checking: CheckRuntime | None = None
        self.agent: CheckRuntime | None = None
        self.agent_up = True
        #: the server that it tracks (takes its health from), and the servers that track it
        self.tracks: ServerStatus | None = None
        self.trackers: tuple[ServerStatus, ...] = ()
        #: the reason of the latest change, for logs
        self.reason = ""
        #: whether that change was announced before, so that it is no warning in logs
        self.was_announced = False
        self.slowstart = SlowStart(config.slowstart)
        self.max_fails = MaxFails(config)
        self.draining = Drain()
        self._updated = 0.0  # when `refresh_state` was called last
        if self.is_unresolved:
            self.refresh_state()

    @property
    def is_attached(self) -> bool:
        """Whether it belongs to a backend."""
        return self._on_change is not None

    # What may be assigned at run time

    @property
    def state(self) -> AdminState:
        """What the operator wants: `ready`, `drain` or `maint`. May be assigned; `drain` as by `Server.drain()`."""
        return self._state

    @state.setter
    def state(self, state: AdminState | Literal["ready", "drain", "maint"]) -> None:
        if state not in list(AdminState):
            raise ConfigError(f"server {self.name}: {problem_of_word('state', state, AdminState)}")
        self._set_state(AdminState(state), DEADLINE if state == AdminState.DRAIN else None, SPREAD)

    def _set_state(self, state: AdminState, deadline_after: float | None, spread: float) -> None:
        before, self._state = self._state, state
        self.draining.reset(deadline_after, spread)
        self.reason = ""
        if before is AdminState.MAINT and not self.in_maint:
            self._reset_health()
        self.notify()
        self.draining.notify_connections()

    def seconds_to_deadline(self, now: float) -> float | None:
        """Return in how many seconds the connections that are still open here are to be closed, 0 or less if that is
        overdue: at the deadline of the drain, or once the server was removed. None: they may stay open.
        """
        if self.removed:
            return 0.0
        deadline = self.draining.deadline
        if deadline is None or self._state is not AdminState.DRAIN:
            return None
        return deadline - now

    @property
    def health(self) -> Health:
        """Its health according to its check, its agent and failed requests, or as it was assigned since: `UP`, `DOWN`
        or `NOLB`. May be assigned, unless the server tracks another one.
        """
        if self.tracks is not None:
            return self.tracks.health
        if not self.agent_up or self.max_fails.is_down:
            return Health.DOWN
        checking = self.checking
        if checking is None:
            return self._health
        return Health.DOWN if not checking.is_up else Health.NOLB if checking.is_stopping else Health.UP

    @health.setter
    def health(self, health: Health | Literal["UP", "DOWN", "NOLB"]) -> None:
        if health not in list(Health):
            raise ConfigError(f"server {self.name}: {problem_of_word('health', health, Health)}")
        if self.tracks is not None:
            raise ConfigError(
                f"server {self.name}: it tracks {self.tracks.name}, so its health is that server's: assign it there"
            )
        self._health = health = Health(health)
        self.max_fails.reset()
        if self.checking is not None:
            self.checking.force(health is not Health.DOWN, stopping=health is Health.NOLB)
        self.reason = ""
        self.notify()

    def mark_down(self, reason: str, *, was_announced: bool) -> None:
        """Set its health DOWN. `reason`: why, for logs; `was_announced`: whether that was to be expected."""
        self._health = Health.DOWN
        self.reason, self.was_announced = reason, was_announced
        self.notify()

    @property
    def is_ejected(self) -> bool:
        """Whether failed requests alone keep it down (`observe`, `max_fails`, `fail_rate`): it is not in maintenance,
        and no active check, no agent and no operator has taken it down.
        """
        if self.in_maint or not self.agent_up:
            return False
        if self.tracks is not None:
            return self.tracks.is_ejected
        checking = self.checking
        if checking is None:
            return self.max_fails.is_down and self._health is not Health.DOWN
        return self.max_fails.is_down if checking.is_up else checking.is_down_by_requests

    @property
    def ejected_at(self) -> float:
        """When failed requests have taken it down last, by the clock's `monotonic`."""
        checking = self.checking
        return max(self.max_fails.ejected_at, checking.ejected_at if checking is not None else 0.0)

    def end_ejection(self, reason: str) -> None:
        """Set it up again, as far as failed requests have taken it down. Called by the backend, under its lock, which
        derives the state then. `reason`: why, for logs.
        """
        self.max_fails.reset()
        if self.checking is not None:
            self.checking.end_ejection()
        self.reason = reason

    @property
    def weight(self) -> int:
        """Its share of new clients, 0 to 256. May be assigned."""
        return self._weight

    @weight.setter
    def weight(self, weight: int) -> None:
        if not is_weight(weight):
            raise ConfigError(f"server {self.name}: weight {weight!r} is not within 0..{MAX_WEIGHT}, in whole numbers")
        self._weight = weight
        self.notify()

    @property
    def instance(self) -> str:
        """The id of the present start of its app (`sticky_core.server.instance`); empty if that is elsewhere."""
        return self._instance

    @instance.setter
    def instance(self, instance: str) -> None:
        if not is_instance(instance):
            raise ConfigError(
                f"server {self.name}: instance {instance!r} can't be written in a cookie: write letters and digits"
            )
        self._instance = instance
        self.notify()

    @property
    def maxconn(self) -> int:
        """How many requests may be in flight; 0: any number. May be assigned, unless its configuration has no
        `maxconn`: then its requests are not counted.
        """
        return self._maxconn

    @maxconn.setter
    def maxconn(self, maxconn: int) -> None:
        problem = limit_problem("maxconn", maxconn)
        if problem is None and maxconn and not self.config.maxconn:
            problem = "maxconn can't be assigned, as its configuration has none: pass one with it to `Backend.apply`"
        if problem is not None:
            raise ConfigError(f"server {self.name}: {problem}")
        self._maxconn = maxconn
        self.notify()

    def _reset_health(self) -> None:
        """Assume that the server is up until it is checked: maintenance is over."""
        self.agent_up = True
        self.max_fails.reset()
        if self.checking is not None:
            self.checking.reset()

    # Read

    @property
    def is_unresolved(self) -> bool:
        """Whether it has no address: it is in maintenance until it has one (HAProxy "MAINT (resolution)")."""
        return self.config.target is None and self.config.template is not None

    @property
    def in_maint(self) -> bool:
        """Whether it is in maintenance: by the operator, without an address, or with the server that it tracks."""
        return (
            self._state is AdminState.MAINT
            or self.is_unresolved
            or self.removed
            or (self.tracks is not None and self.tracks.in_maint)
        )

    def pauses(self, checking: CheckRuntime) -> bool:
        """Whether `checking`, a check of this server or the schedule of its agent, must not run at present: in
        maintenance only agents are queried, without an address nothing is, and no result of a check that was replaced
        counts.
        """
        if checking is self.checking:
            return self.in_maint
        return checking is not self.agent or self.is_unresolved

    @property
    def status(self) -> str:
        """State and health in one word: `UP`, `DOWN`, `NOLB`, `DRAIN`, `MAINT`; `REMOVED`."""
        if self.removed:
            return "REMOVED"
        if self.in_maint:
            return "MAINT"
        health = self.health
        if health is Health.DOWN:
            return "DOWN"
        if self._state is AdminState.DRAIN:
            return "DRAIN"
        return health.value

    @property
    def drained(self) -> bool:
        """Whether it drains, no client is left or the deadline has passed, and no request is in flight."""
        return self.draining.is_done

    @property
    def shuts_down_sessions(self) -> bool:
        """Whether requests in flight are ended when it goes down (`on_marked_down="shutdown-sessions"`)."""
        return self.checking is not None and self.checking.check.on_marked_down is not None

    @property
    def shuts_down_backup_sessions(self) -> bool:
        """Whether requests in flight at the backups are ended when it comes back (`on_marked_up`)."""
        return self.checking is not None and self.checking.check.on_marked_up is not None and not self.config.backup

    @property
    def is_full(self) -> bool:
        """Whether the server has no free slot."""
        return 0 < self.limit <= len(self.in_flight)

    @property
    def total(self) -> int:
        """How many requests it has had (HAProxy `stot`), those in flight included."""
        return self.counters.stot + len(self.in_flight)

    @property
    def throttle(self) -> int:
        """How much of its weight is effective, in percent (`slowstart`)."""
        return 100 * self.eweight // (self._weight * SCALE) if self._weight else 100

    @property
    def is_error_free(self) -> bool:
        """Whether a further request that succeeds changes nothing: neither its health nor what is counted."""
        return self.max_fails.ignores_success and (self.checking is None or self.checking.is_error_free)

    # Derive

    def notify(self) -> None:
        """Apply a change: through the backend, if the server belongs to one."""
        if self._on_change is not None:
            self._on_change(self)
        else:
            self.refresh_state()

    def refresh_state(self, now: float = 0.0, panic: bool = False) -> None:
        """Derive whether it is usable and its effective weight. The backend calls this under its lock after each
        change and at each deadline. `panic`: health is ignored.
        """
        if self.max_fails.expire(now):
            self.reason = "fail_timeout is over"
        health, in_maint = self.health, self.in_maint
        self.slowstart.update(now, is_down=in_maint or health is Health.DOWN, may_start=self.is_attached)
        self._updated = now
        self.eweight = self.slowstart.eweight(self._weight)
        self.limit = self.slowstart.limit(self._maxconn)
        self.reachable = not in_maint and (panic or health is not Health.DOWN)
        self.usable = self.reachable and not self._is_past_drain_deadline(now)
        self.electable = (
            self.usable and self._weight > 0 and self._state is AdminState.READY and health is not Health.NOLB
        )

    def _is_past_drain_deadline(self, now: float) -> bool:
        if self._state is not AdminState.DRAIN:
            self.draining.stop()
            return False
        return self.draining.update(now, len(self.in_flight), self.total)

    @property
    def next_deadline(self) -> float:
        """When time changes the state of the server next; infinity if it does not."""
        due = min(self.slowstart.next_deadline(self._updated), self.max_fails.next_deadline)
        if self._state is AdminState.DRAIN:
            due = min(due, self.draining.next_deadline(self._updated))
        return due
