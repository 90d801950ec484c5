"""A check at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from math import inf

from sticky_core.clock import Rng
from sticky_core.durations import seconds
from sticky_core.health.check import Check, CheckResult, CheckStatus, Verdict
from sticky_core.health.expect import Headers


class CheckRuntime:
    """A check at work over one server. Under the backend's lock, but for `delay`.

    `first`: how many seconds from its first look the first check is due. `wake`: set by whoever sleeps until the next
    check, and called when that is due earlier than was said.
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
        self.is_stopping = False  #: whether it passes, but wants no new clients
        self.result = CheckResult(CheckStatus.INI)
        self.first_delay = 0.0
        self._due: float | None = None
        self._errors = 0  # in a row, of clients' requests
        self.wake: Callable[[], object] | None = None

    def restarted(self) -> CheckRuntime:
        """The same check where nobody has looked yet: what was known of health holds, and it is due at once."""
        made = CheckRuntime(self.check, self._rng)
        made.health, made.is_stopping, made.result = self.health, self.is_stopping, self.result
        if self.wake is not None:
            self.wake()
        return made

    def inherit_from(self, before: CheckRuntime) -> None:
        """Go on where another check was: what it knew of the server's health holds."""
        self.health = (
            (self._max_health if before.health == before._max_health else self.check.rise) if before.is_up else 0
        )
        self.is_stopping = before.is_stopping
        self.result = before.result

    @property
    def is_up(self) -> bool:
        return self.health >= self.check.rise

    @property
    def inter(self) -> float:
        return self._inter

    def timeouts(self, connect: float) -> tuple[float, float | None]:
        """How long a connection may take, where one usually may take `connect`, and how long what comes after it; None:
        what is left of the interval.
        """
        timeout = self.check.timeout
        return (self._inter, None) if timeout is None else (min(connect, self._inter), seconds(timeout))

    @property
    def timeout(self) -> float:
        """How long a check may take that needs no connection."""
        return self._inter if self.check.timeout is None else seconds(self.check.timeout)

    @property
    def interval(self) -> float:
        """Until the next check, as health stands."""
        if self.health == self._max_health:
            return self._inter
        return self._downinter if self.health == 0 else self._fastinter

    def delay(self, now: float) -> float:
        """How many seconds until the next check."""
        if self._due is None:
            self._due = now + self.first_delay
        return max(0.0, self._due - now)

    def record_check(self, result: CheckResult, now: float) -> None:
        """A check has come back."""
        self._apply(result)
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
        """What an answer means."""
        if self.check.stops_on_404 and status == 404 and self.is_up:
            return CheckResult(CheckStatus.L7OKC, status, "Not Found")
        verdict = self.expect.judge(status, headers, body)
        info = ""
        if verdict != "L7OK":
            info = f"expect {self.expect.text}" if self.expect.needs_body else _phrase(status)
        return CheckResult(CheckStatus[verdict], status, info)

    def force(self, up: bool, stopping: bool = False) -> None:
        """Somebody knows better (`set server … health up|stopping|down`)."""
        self.health = self._max_health if up else 0
        self.is_stopping = stopping
        self._errors = 0

    def reset(self) -> None:
        """It comes back from maintenance: believed to be well until the next check, which is due at once."""
        self.health = self.check.rise
        self.is_stopping = False
        self._errors = 0
        self.expedite(-inf)

    def expedite(self, due: float) -> None:
        """Let the next check be due then, unless it is earlier anyway."""
        if self._due is None or due < self._due:
            self._due = due
            if self.wake is not None:
                self.wake()

    def record_request(self, well: bool, why: str, now: float) -> bool:
        """A client's request has turned out well or not. Whether that means anything (HAProxy `__health_adjust`)."""
        if well:
            self._errors = 0
            return False
        self._errors += 1
        if self._errors < self.check.max_errors:
            return False
        self._errors = 0
        rise, on_error = self.check.rise, self.check.on_error
        failed = CheckResult(
            CheckStatus.HANA, info=f"Detected {self.check.max_errors} consecutive errors, last one was: {why}"
        )
        if on_error == "sudden-death":
            self.health = min(self.health, rise + 1)
        elif on_error == "mark-down":
            self.health = min(self.health, rise)
        if on_error != "fastinter":
            self._apply(failed)
        self.expedite(now + self._fastinter)
        return True

    @property
    def is_error_free(self) -> bool:
        """Whether one more that turns out well means nothing new."""
        return not self._errors

    @property
    def summary(self) -> str:
        """How far it is from the other state: `2/3` of `fall` while it is up, `1/2` of `rise` while it is down."""
        if self.is_up:
            return f"{self.health - self.check.rise + 1}/{self.check.fall}"
        return f"{self.health}/{self.check.rise}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def stagger_first_checks(checks: Sequence[CheckRuntime]) -> None:
    """Let the first checks of a backend come one by one rather than all at once, within the shortest interval of those
    that are a second or more.
    """
    within = min((each.inter for each in checks if each.inter >= 1), default=0.0)
    for number, each in enumerate(checks):
        each.first_delay = max(within, each.inter) * number / len(checks)
