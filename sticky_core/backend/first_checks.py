"""FirstChecks: which servers of a backend have not been checked yet. Two milestones follow from it: `checked`, which
users wait for, and `startup`, which the start waits for (`Check.startup`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from sticky_core.backend.milestone import Milestone
from sticky_core.backend.state import BackendState
from sticky_core.health.runtime import CheckRuntime
from sticky_core.server.server import Server

_log = logging.getLogger("sticky_sessions")

#: How many checks that the start waits for run at once. Each needs a file descriptor, on WSGI a thread, and some time
#: of this process: a check that does not get it times out.
MAX_AT_ONCE = 100
#: how much longer than its timeout the start waits for a check, in seconds: the face that runs it records the timeout
GRACE = 5.0
#: after how many seconds of waiting for `checked` a warning says that nothing runs the checks
PATIENCE = 5.0


class FirstChecks:
    """The first checks of the servers of one backend. Call its methods with the backend's lock held, except `publish`.

    The start waits for the servers that are there when it begins: not for those that are added later, or return from
    maintenance while requests are served.
    """

    def __init__(self, backend: BackendState) -> None:
        self._backend = backend
        #: reached while every server with a check, that is not in maintenance, has been checked; another one after that
        self.checked = Milestone(self._warn_if_nothing_checks)
        self._is_checked = False
        self._unchecked: set[Server] = set()
        #: reached once the start need not wait any longer
        self.startup = Milestone()
        #: whether the start need not wait any longer
        self.is_over = False
        #: how many seconds the start waits at most
        self.timeout = 0.0
        # the servers that the start waits for, each with the run of its check; None: it has not begun
        self._awaited: dict[Server, CheckRuntime] | None = None
        self._not_due: deque[Server] = deque()  # of those, the ones with a check to be made due when another has ended
        self._to_reach: deque[Milestone] = deque()  # by `publish`
        self._idle_since: float | None = None  # since when a caller waits for `checked`, and nothing runs the checks
        self._has_warned = False

    @property
    def has_begun(self) -> bool:
        """Whether the start has begun to wait, or has waited."""
        return self._awaited is not None

    @property
    def unchecked(self) -> list[str]:
        """The names of the servers that have not been checked, sorted."""
        return sorted(server.name for server in self._unchecked)

    @property
    def are_awaited(self) -> bool:
        """Whether the start waits for a check."""
        return bool(self._awaited)

    def update(self, servers: Iterable[Server]) -> None:
        """Record which of `servers` have been checked: they may have been just now, or may have another check, be in
        maintenance or be removed.
        """
        not_due: set[Server] | None = None  # made only where it is needed
        for server in servers:
            checking = server.checking
            is_unchecked = checking is not None and not checking.has_run and not server.in_maint
            if is_unchecked:
                self._unchecked.add(server)
            else:
                self._unchecked.discard(server)
            if self._awaited and server in self._awaited:
                if checking is None or not (is_unchecked and _is_awaited(server)):
                    del self._awaited[server]
                    self._make_next_due()
                elif checking is not self._awaited[server]:  # the server has got another check, or another address
                    self._awaited[server] = checking
                    not_due = set(self._not_due) if not_due is None else not_due
                    if server not in not_due:
                        checking.expedite(self._backend.clock.monotonic())
        self._settle()

    def begin(self, now: float) -> list[str]:
        """Begin to wait for the unchecked servers with `startup="wait"`: make their checks due. Return their names."""
        if self._awaited is not None:
            return []
        awaited = [each for each in self._backend.snapshot.servers if each in self._unchecked and _is_awaited(each)]
        connect = self._backend.snapshot.config.timeouts.in_seconds.connect
        self.timeout = 0.0
        runs: dict[Server, CheckRuntime] = {}
        for number, server in enumerate(awaited):
            checking = server.checking
            assert checking is not None
            runs[server] = checking
            # Later ones are due as if nothing waited, or when one of these has ended: servers that hang delay them by
            # an interval at most.
            delay = checking.first_delay if number >= MAX_AT_ONCE else 0.0
            checking.expedite(now + delay)
            over_network = server.config.is_url and checking.check.probe is None
            longest = checking.longest(connect if over_network else None)
            self.timeout = max(self.timeout, delay + longest + GRACE)
        self._not_due = deque(awaited[MAX_AT_ONCE:])
        self._awaited = runs  # last: other threads read `has_begun` without the lock, and then `timeout`
        self._settle()
        return [server.name for server in awaited]

    def _make_next_due(self) -> None:
        """Make the check of one more server due, of those that the start waits for."""
        while self._not_due:
            server = self._not_due.popleft()
            if self._awaited and server in self._awaited and server.checking is not None:
                server.checking.expedite(self._backend.clock.monotonic())
                return

    def give_up(self) -> list[str]:
        """Wait for no server any longer. Return the names of those that were waited for in vain."""
        awaited, self._awaited = self._awaited or {}, {}
        self._not_due.clear()
        self._settle()
        return sorted(server.name for server in awaited)

    def restart(self) -> None:
        """Take all servers as unchecked, and let the start wait anew. What waits for it now goes on."""
        self._to_reach.append(self.startup)
        self.startup, self.is_over, self._awaited = Milestone(), False, None
        self._not_due.clear()
        for server in self._backend.snapshot.servers:
            if server.checking is not None:
                server.checking.forget_run()
        self.update(self._backend.snapshot.servers)

    def _settle(self) -> None:
        """Set what follows from the servers."""
        is_checked = not self._unchecked
        if is_checked is not self._is_checked:
            self._is_checked = is_checked
            if is_checked:
                self._to_reach.append(self.checked)
            else:
                self.checked = Milestone(self._warn_if_nothing_checks)
        if not self.is_over and self._awaited is not None and not self._awaited:
            self.is_over = True
            self._to_reach.append(self.startup)

    def publish(self) -> None:
        """Notify those that wait. Called without the lock."""
        while self._to_reach:
            try:
                milestone = self._to_reach.popleft()
            except IndexError:  # another thread was quicker
                return
            milestone.reach()

    def _warn_if_nothing_checks(self) -> None:
        """Log a warning, once, if a caller has waited for `checked` for some time and nothing runs the checks. Called
        regularly while a caller waits, without the lock.
        """
        if self._has_warned:
            return
        now = self._backend.clock.monotonic()
        if not self._backend.checks_are_free:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= PATIENCE:
            self._has_warned = True
            _log.warning(
                "backend %s: `checked` is waited for, and nothing checks its servers yet: checks run from the "
                "lifespan, or else from the first request, on",
                self._backend.name,
            )

    def after_fork(self) -> None:
        """Leave the milestones to the parent process. Called in a forked child."""
        self._to_reach.clear()
        self.checked, self.startup = Milestone(self._warn_if_nothing_checks), Milestone()
        self._is_checked = self.is_over = False
        self._awaited = None
        self._not_due.clear()
        self._settle()
        self.publish()


def _is_awaited(server: Server) -> bool:
    return server.checking is not None and server.checking.check.startup == "wait"
