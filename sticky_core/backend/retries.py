"""Retries: when a request is replayed, and at which server (HAProxy `retries`, `retry-on`, `option redispatch`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import Failure

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


def _joined(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
