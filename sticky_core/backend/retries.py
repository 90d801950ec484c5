"""Retries: when a request is replayed, and at which server (HAProxy `retries`, `retry-on`, `option redispatch`), and
how many of the requests in flight may be retries (Envoy `retry_budget`, Linkerd `retryBudget`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from math import inf

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import Failure, raise_problems

_WORDS = frozenset(failure.retry_word for failure in Failure if failure.retry_word)
#: accepted because HAProxy has it; it never happens here, without TLS 0-RTT
_NEVER = frozenset(("0rtt-rejected",))
_STATUSES = frozenset(("401", "403", "404", "408", "421", "425", "429", "500", "501", "502", "503", "504"))
_ALL_RETRYABLE = ("conn-failure", "empty-response", "junk-response", "response-timeout", "500", "502", "503", "504")


@dataclass(frozen=True)
class Retries:
    """How often a request is retried, and where.

    - `retries`: how many further attempts may be made.
    - `retry_on`: after which failures, in HAProxy's words.
    - `redispatch`: which server gets a further attempt: another one at once (True), the same one after a pause (False),
      or, as HAProxy counts, another one at every nth retry (n above 0) or at the nth before the last (below 0).
    """

    retries: int = 3
    retry_on: tuple[str, ...] = ("conn-failure",)
    redispatch: bool | int = True

    def problems(self) -> Iterator[str]:
        """Yield a problem for each option that can't work."""
        if not isinstance(self.retries, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"retries {self.retries!r} is no whole number"
        elif self.retries < 0:
            yield f"retries {self.retries} is below 0"
        if not isinstance(self.redispatch, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"redispatch {self.redispatch!r} is neither True nor False nor a whole number"
        known = {*_WORDS, *_NEVER, *_STATUSES, "none", "all-retryable-errors"}
        for word in self.retry_on:
            if word not in known:
                yield (
                    f"retry_on {word!r} is not known: write {_joined(known - _STATUSES)}, "
                    f"or a status of {_joined(_STATUSES)}"
                )
        if "none" in self.retry_on and len(self.retry_on) > 1:
            yield "retry_on: 'none' excludes other words"

    @cached_property
    def _expanded_words(self) -> frozenset[str]:
        words = set(self.retry_on)
        if "all-retryable-errors" in words:
            words.update(_ALL_RETRYABLE)
        return frozenset(words)

    @cached_property
    def statuses(self) -> frozenset[int]:
        """Statuses of responses that are held back while another server may succeed."""
        return frozenset(int(word) for word in self._expanded_words & _STATUSES)

    @cached_property
    def needs_replay(self) -> bool:
        """Whether a request may be replayed after a server has read it."""
        return bool(self.statuses) or any(
            failure.maybe_executed and failure.retry_word in self._expanded_words for failure in Failure
        )

    def covers(self, failure: Failure) -> bool:
        """Return whether `retry_on` names this failure."""
        return failure.retry_word in self._expanded_words

    def is_elsewhere(self, retry: int) -> bool:
        """Return whether the `retry`th retry (from 1) is sent to another server."""
        n = self.redispatch
        if n is True or n is False:
            return n
        if n > 0:
            return retry % n == 0
        return n < 0 and retry % max(self.retries + 1 + n, 1) == 0


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """How many retries a backend allows. A retry is allowed if either option allows it.

    - `share`: at most this share of the requests in flight at the backend may be retries, a number from 0 to 1, default
      0.2 (Envoy `budget_percent`, Linkerd `retryRatio`). Requests that wait in a queue, or in the pause before a
      retry, are in flight. A request is a retry until its response begins, or its WebSocket is accepted.
    - `per_second`: so many retries a second are always allowed, a number of at least 0, default 10; as many may come at
      once (Linkerd `minRetriesPerSecond`). It lets a backend with few requests retry at all.

    Raises `ConfigError` for a value out of range, and if both are 0.
    """

    share: float = 0.2
    per_second: float = 10

    @classmethod
    def of(cls, given: RetryBudget | float | None) -> RetryBudget | None:
        """Return the budget that `given` stands for: a number is its share."""
        return given if given is None or isinstance(given, RetryBudget) else cls(given)

    def __post_init__(self) -> None:
        raise_problems(f"retry_budget: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not _is_number(self.share) or not 0 <= self.share <= 1:
            yield f"share {self.share!r} is not a share: write 0.2 for a fifth of the requests in flight"
        if not _is_number(self.per_second) or not 0 <= self.per_second < inf:
            yield f"per_second {self.per_second!r} is no number of retries a second: write 10, or 0 for none"
        if self.share == self.per_second == 0:
            yield "share=0 and per_second=0 allow no retry at all: write retries=0 for that"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _joined(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
