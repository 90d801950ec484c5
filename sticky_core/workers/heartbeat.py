"""The heartbeat of a worker: gunicorn ends a worker from which it has got none for `timeout` seconds. A worker of the
class `sync` sends one between two requests, so a request that takes longer than the timeout ends its worker.

With peers, a request may wait meanwhile: for another worker, or for the request that this worker serves for a peer.
That is no request that takes too long, so the thread that waits sends heartbeats. The app is watched instead: if it
works on a request of a peer for longer than the timeout, the worker ends itself, as the web server would end it for a
request of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from sticky_core.deferred.dataclass import dataclass

#: since when the app works on a request that it does not work on at present
NOT_IN_APP = inf


@dataclass(frozen=True, slots=True)
class HeartbeatTimeout:
    """After `timeout` seconds without a heartbeat the web server ends the worker."""

    timeout: float

    def is_over(self, in_app_since: Iterable[float], now: float) -> bool:
        """Return whether the app works on a request for too long. `in_app_since`: since when it works on each of them
        without having waited for the peer, or `NOT_IN_APP`.
        """
        return any(now - since > self.timeout for since in in_app_since)

    def must_give_up(self, since: float, now: float) -> bool:
        """Return whether a thread that waits since `since` and can't send heartbeats has to give up, in time before the
        web server ends the worker: half of the timeout is left for what the thread has done before.
        """
        return now - since > self.timeout / 2

    def limit_drain(self, grace: float) -> float:
        """Return for how many seconds a worker that is about to end may serve its peers, of the `grace` seconds that
        are configured: it sends no heartbeats any more, and must not be ended in the middle of that.
        """
        return min(grace, self.timeout / 2)
