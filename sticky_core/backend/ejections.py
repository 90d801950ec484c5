"""Ejections: how many servers of a backend failed requests have taken down, and how many they may (`max_ejected`).

A server is ejected while failed requests alone keep it down (`observe`, `max_fails`, `fail_rate`). Servers that an
active check, an agent or the operator has taken down count neither as servers nor as ejected, so the limit is a share
of the servers that would serve if no request had failed. Backups are counted among themselves.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from math import floor

from sticky_core.backend.announcements import Announcements
from sticky_core.server.server import Server
from sticky_core.server.state import Health

#: after how many seconds without a refusal the next one is logged again
QUIET_TIME = 60.0

#: what the product of a share and a number may lack because of rounding
_ROUNDING = 1e-9


class Ejections:
    """The ejected servers of one backend. Under its lock.

    `limit`: the share of the servers that may be ejected, 0 to 1, rounded down to whole servers.
    """

    def __init__(self, backend: str, announcements: Announcements) -> None:
        self._backend = backend
        self._announcements = announcements
        self.limit = 1.0
        # each server of the backend, as what it is counted: whether it is a backup, and whether it is ejected; None: it
        # is not counted
        self._counted: dict[Server, tuple[bool, bool] | None] = {}
        self._totals: Counter[tuple[bool, bool]] = Counter()
        self._ejected: dict[Server, None] = {}  # servers with a health of their own, the longest ejected one first
        self._refused: dict[Server, float] = {}  # when a server that stays up was to be ejected last

    # Count

    def update(self, server: Server) -> None:
        """Count `server` in its present state, and those of the same backend that track it."""
        for each in (server, *self._trackers(server)):
            before, after = self._counted.get(each), _counted_as(each)
            self._count(each, before, after)
            self._counted[each] = after
            if each.tracks is None and after is not None and after[1]:
                self._ejected[each] = None
            else:
                self._ejected.pop(each, None)

    def forget(self, server: Server) -> None:
        """Count `server`, which was removed, no more."""
        self._count(server, self._counted.pop(server, None), None)
        self._ejected.pop(server, None)

    def _count(self, server: Server, before: tuple[bool, bool] | None, after: tuple[bool, bool] | None) -> None:
        if before == after:
            return
        if before is not None:
            self._totals[before] -= 1
        if after is not None:
            self._totals[after] += 1
        self._refused.pop(server, None)

    def _trackers(self, server: Server) -> Iterator[Server]:
        """Yield the servers of the same backend that track `server`."""
        return (each for each in server.trackers if isinstance(each, Server) and each in self._counted)

    # Limit

    def limit_to(self, limit: float) -> None:
        """Set the limit. If it is another one, refusals are logged again."""
        if limit != self.limit:
            self.limit = limit
            self._refused.clear()

    def allowed(self, backup: bool) -> tuple[int, int]:
        """Return how many servers (or backups) may be ejected, of how many."""
        count = self._totals[backup, False] + self._totals[backup, True]
        return floor(self.limit * count + _ROUNDING), count

    def ejected(self, backup: bool) -> int:
        """Return how many servers (or backups) are ejected."""
        return self._totals[backup, True]

    def allows(self, server: Server) -> bool:
        """Return whether `server`, which is up, may be ejected, and with it those of the same backend that track it."""
        counted = (self._counted.get(each) for each in (server, *self._trackers(server)))
        more = Counter(backup for backup, is_ejected in filter(None, counted) if not is_ejected)
        return all(self.ejected(backup) + count <= self.allowed(backup)[0] for backup, count in more.items())

    def surplus(self) -> list[Server]:
        """Return the servers that are to be set up again, as more are ejected than may be: those that have been down
        longest.
        """
        over = {backup: self.ejected(backup) - self.allowed(backup)[0] for backup in (False, True)}
        surplus: list[Server] = []
        if any(count > 0 for count in over.values()):
            for server in self._ejected:
                group = (self._counted.get(each) for each in (server, *self._trackers(server)))
                fewer = Counter(backup for backup, is_ejected in filter(None, group) if is_ejected)
                if any(over[backup] > 0 for backup in fewer):
                    surplus.append(server)
                    for backup, count in fewer.items():
                        over[backup] -= count
        return surplus

    def reason_to_end(self, server: Server) -> str:
        """Return why `server`, which is ejected, is set up again."""
        return "max_ejected={} allows {} of {} to be down".format(self.limit, *self.allowed(server.config.backup))

    def refuse(self, server: Server, reason: str, now: float) -> None:
        """Record that failed requests would have taken `server` down for `reason`, and that it stays up. That is logged
        at the next `publish`, unless it has been and goes on like that.
        """
        last = self._refused.get(server)
        self._refused[server] = now
        if last is not None and now - last <= QUIET_TIME:
            return
        is_backup = server.config.backup
        allowed, count = self.allowed(is_backup)
        self._announcements.queue_log_line(
            logging.WARNING,
            "Server %s/%s is not taken down: max_ejected=%s allows %d of %d %s to be down for failed requests, and %d "
            "are. Reason to take it down: %s.",
            self._backend,
            server.name,
            self.limit,
            allowed,
            count,
            "backups" if is_backup else "servers",
            self.ejected(is_backup),
            reason,
        )


def _counted_as(server: Server) -> tuple[bool, bool] | None:
    if server.in_maint:
        return None
    is_ejected = server.is_ejected
    return (server.config.backup, is_ejected) if is_ejected or server.health is not Health.DOWN else None
