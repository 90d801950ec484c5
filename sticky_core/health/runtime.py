"""The running check of one server: a state machine without I/O. The face calls `delay(now)`, waits that long, probes
the server, and calls `record_check(result, now)`.

The theory: health is a number from 0 to rise+fall-1, and the server is up from `rise` on. A failure subtracts one, and
below `rise` sets it to 0; a success adds one, and from `rise` on sets it to the maximum. So `fall` failures in a row
take the server down, `rise` successes in a row bring it up, and while it is up, one success undoes all failures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from math import inf

from sticky_core.clock import Rng
from sticky_core.durations import seconds
from sticky_core.health.check import Check, CheckResult, CheckStatus, Verdict
from sticky_core.health.expect import Headers


class CheckRuntime:
    """The running check of one server. Call its methods with the backend's lock held, except `delay`.

    `first_delay`: seconds from the first call of `delay` to the first check. `wake`: a callback set by the task that
    sleeps until the next check; called when the check becomes due earlier than `delay` returned.
    """

    def __init__(self, check: Check, rng: Rng) -> None:
        self.check = check
        self.expect = check.expectation
        self._rng = rng
        self._inter = seconds(check.inter)
        self._fastinter = self._inter if check.fastinter is None else seconds(check.fastinter)
        self._downinter = self._inter if check.downinter is None else seconds(check.downinter)
        self._max_health = check.rise + check.fall - 1
        self.health = {
            "up": check.rise,
            "down": check.rise - 1,
            "fully-up": self._max_health,
            "fully-down": 0,
        }[check.init_state]
        self.is_stopping = False  #: whether the check passes, but the server gets no new clients
        #: whether failed requests have taken the server down (`observe`), and no check has failed since
        self.is_down_by_requests = False
        self.ejected_at = 0.0  #: when failed requests have taken the server down last, by the clock's `monotonic`
        self.result = CheckResult(CheckStatus.INI)
        self.has_run = False  #: whether the server was checked since checks were started
        self.first_delay = 0.0
        self._due: float | None = None
        self._errors = 0  # failed requests of clients in a row
        self.wake: Callable[[], object] | None = None

    def restarted(self) -> CheckRuntime:
        """Return a new run of this check with the same health, due at once, and wake the task of this one."""
        restarted = CheckRuntime(self.check, self._rng)
        restarted.health, restarted.is_stopping, restarted.result = self.health, self.is_stopping, self.result
        restarted.has_run = self.has_run
        restarted.is_down_by_requests, restarted.ejected_at = self.is_down_by_requests, self.ejected_at
        if self.wake is not None:
            self.wake()
        return restarted

    def forget_run(self) -> None:
        """Record that checks have ended. If the next start waits for this one, a failure takes the server down then, as
        at the first start: nothing has checked it meanwhile.
        """
        self.has_run = False
        if self.check.startup == "wait":
            self.health = min(self.health, self.check.rise)

    def inherit_from(self, before: CheckRuntime) -> None:
        """Take over the health that `before`, another check of the same server, had found."""
        self.health = (
            (self._max_health if before.health == before._max_health else self.check.rise) if before.is_up else 0
        )
        self.is_stopping = before.is_stopping
        self.is_down_by_requests, self.ejected_at = before.is_down_by_requests, before.ejected_at
        self.result = before.result
        self.has_run = before.has_run

    @property
    def is_up(self) -> bool:
        return self.health >= self.check.rise

    @property
    def inter(self) -> float:
        return self._inter

    def timeouts(self, connect: float) -> tuple[float, float | None]:
        """Return how many seconds the connection may take (`connect`: the backend's timeout for connections), and how
        many the rest of the check; None: what is left of the interval.
        """
        timeout = self.check.timeout
        return (self._inter, None) if timeout is None else (min(connect, self._inter), seconds(timeout))

    @property
    def timeout(self) -> float:
        """How many seconds a check without a connection may take."""
        return self._inter if self.check.timeout is None else seconds(self.check.timeout)

    def longest(self, connect: float | None) -> float:
        """Return how many seconds one check may take. `connect`: the backend's timeout for connections; None: of a
        check without a connection.
        """
        if connect is None:
            return self.timeout
        connect, rest = self.timeouts(connect)
        return connect + (rest or 0.0)

    @property
    def interval(self) -> float:
        """Seconds from one check to the next at the current health."""
        if self.health == self._max_health:
            return self._inter
        return self._downinter if self.health == 0 else self._fastinter

    def delay(self, now: float) -> float:
        """Return the seconds until the next check is due."""
        if self._due is None:
            self._due = now + self.first_delay
        return max(0.0, self._due - now)

    def record_check(self, result: CheckResult, now: float) -> None:
        """Apply the result of a check, and set when the next one is due."""
        self._apply(result)
        self.has_run = True
        if self.is_up or result.status.verdict is Verdict.FAILED:
            self.is_down_by_requests = False
        interval = self.interval
        varying = interval * self.check.spread / 100
        self._due = now + interval + (varying * (2 * self._rng.random() - 1) if varying else 0.0)

    def _apply(self, result: CheckResult) -> None:
        self.result = result
        match result.status.verdict:
            case Verdict.PASSED | Verdict.STOPPING:
                self.health = self._max_health if self.health + 1 >= self.check.rise else self.health + 1
                self.is_stopping = result.status.verdict is Verdict.STOPPING
                self._errors = 0
            case Verdict.FAILED:
                if self.health:
                    self.health -= 1
                if not self.is_up:
                    self.health = 0
                    self.is_stopping = False
            case Verdict.UNKNOWN:
                pass

    def judge(self, status: int, headers: Headers, body: bytes) -> CheckResult:
        """Return the result of a check for the response to it."""
        if self.check.stops_on_404 and status == 404 and self.is_up:
            return CheckResult(CheckStatus.L7OKC, status, "Not Found")
        name = self.expect.judge(status, headers, body)
        info = ""
        if name != "L7OK":
            info = f"expect {self.expect.text}" if self.expect.needs_body else _phrase(status)
        return CheckResult(CheckStatus[name], status, info)

    def force(self, up: bool, stopping: bool = False) -> None:
        """Set the health by hand (`set server … health up|stopping|down`)."""
        self.health = self._max_health if up else 0
        self.is_stopping = stopping
        self.is_down_by_requests = False
        self._errors = 0

    def reset(self) -> None:
        """Assume that the server, which returns from maintenance, is up until the next check, which is due at once."""
        self.health = self.check.rise
        self.is_stopping = self.is_down_by_requests = False
        self._errors = 0
        self.expedite(-inf)

    def end_ejection(self) -> None:
        """Set the server up again if failed requests have taken it down."""
        if self.is_down_by_requests:
            self.health = self.check.rise
            self.is_down_by_requests = False

    def expedite(self, due: float) -> None:
        """Make the next check due at `due`, unless it is due earlier."""
        if self._due is None or due < self._due:
            self._due = due
            if self.wake is not None:
                self.wake()

    @property
    def next_failure_takes_down(self) -> bool:
        """Whether the server goes down if the next request fails."""
        if not self.is_up or self._errors + 1 < self.check.max_errors or self.check.on_error == "fastinter":
            return False
        return self.check.on_error == "mark-down" or self.health <= self.check.rise

    def errors_result(self, reason: str) -> CheckResult:
        """Return the failed check as which `error_limit` failed requests count. `reason`: how the last one failed."""
        return CheckResult(
            CheckStatus.HANA, info=f"Detected {self.check.max_errors} consecutive errors, last one was: {reason}"
        )

    def record_request(self, succeeded: bool, reason: str, now: float, *, may_take_down: bool = True) -> bool:
        """Count a client's request that succeeded, or failed for `reason`. Return whether it triggered `on_error`
        (HAProxy `__health_adjust`).

        `may_take_down`: whether requests may take the server down. If they may not, and one would have, the next check
        is due after `fastinter` and takes it down if it fails, and so does the next request that fails, if it may.
        """
        if succeeded:
            self._errors = 0
            return False
        if not may_take_down and self.next_failure_takes_down:
            self.health = self.check.rise
            self.expedite(now + self._fastinter)
            return False
        self._errors += 1
        if self._errors < self.check.max_errors:
            return False
        self._errors = 0
        rise, on_error, failed = self.check.rise, self.check.on_error, self.errors_result(reason)
        was_up = self.is_up
        if on_error == "sudden-death":
            self.health = min(self.health, rise + 1)
        elif on_error == "mark-down":
            self.health = min(self.health, rise)
        if on_error != "fastinter":
            self._apply(failed)
        if was_up and not self.is_up:
            self.is_down_by_requests, self.ejected_at = True, now
        self.expedite(now + self._fastinter)
        return True

    @property
    def is_error_free(self) -> bool:
        """Whether no request has failed since the last success: one more success changes nothing."""
        return not self._errors

    @property
    def summary(self) -> str:
        """Health as HAProxy shows it: `2/3` of `fall` while the server is up, `1/2` of `rise` while it is down."""
        if self.is_up:
            return f"{self.health - self.check.rise + 1}/{self.check.fall}"
        return f"{self.health}/{self.check.rise}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def stagger_first_checks(checks: Sequence[CheckRuntime]) -> None:
    """Spread the first checks of a backend evenly over the shortest interval that is a second or longer, so that they
    do not all run at once.
    """
    shortest = min((each.inter for each in checks if each.inter >= 1), default=0.0)
    for number, each in enumerate(checks):
        each.first_delay = max(shortest, each.inter) * number / len(checks)
