"""The repair of the files of a worker: twice a second it looks whether what other workers need of it is in the
directory, and makes again what is missing. Programs that clean temporary directories remove what looks unused, or all.

What can't be made again as it was: a worker that starts in a directory which was just cleaned may take the worker slot
of one that runs, or generate a second secret. The abstract sockets of Linux prevent that (`slots`); elsewhere the
worker that started later gives way: it has fewer clients. It releases its worker slot and starts again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.workers.generated_secret import restore_secret
from sticky_core.workers.slots import WorkerSlot, WorkerSlots

_log = logging.getLogger("sticky_sessions")

#: the time between two looks at the files of a worker, in seconds
REPAIR_INTERVAL: Final = 0.5
#: for how long a process waits until a worker has made again what is missing, in seconds: several of these
REPAIR_TIMEOUT: Final = 3.0
#: the time between two looks while it waits, in seconds
REPAIR_PAUSE: Final = 0.05
#: how often it looks
REPAIR_LOOKS: Final = int(REPAIR_TIMEOUT / REPAIR_PAUSE)
#: how often the files are touched, and how often one worker logs what was missing, in seconds
TOUCH_INTERVAL: Final = 3600.0


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What a face has to do after a repair."""

    needs_socket: bool = False  #: bind a socket at the draft path, listen, and publish it
    must_restart: bool = False  #: end as this worker, and start as another


class FileRepair:
    """The repair of the files of one worker.

    - `slots`, `slot`: the worker slots of the group, and that of this worker.
    - `secret`: the secret that the workers have generated; empty if they use another.
    - `listens`: returns whether a process has a socket at this address.
    """

    def __init__(
        self, slots: WorkerSlots, slot: WorkerSlot, secret: str, listens: Callable[[str], bool], clock: Clock
    ) -> None:
        self._slots = slots
        self._slot = slot
        self._secret = secret
        self._listens = listens
        self._clock = clock
        self._touched = clock.monotonic()
        self._logged: float | None = None
        self._failed = False

    def run(self) -> RepairResult:
        """Make again what is missing, and return what the face has to do."""
        if not self._slot.is_held:
            return RepairResult()
        try:
            return self._run()
        except (OSError, ConfigError) as error:  # the disk is full, or the directory is another user's now
            if not self._failed:
                self._failed = True
                _log.error(
                    "StickyWorkers: files that are missing in %s can't be made again: %s", self._slots.path, error
                )
            return RepairResult()

    def _run(self) -> RepairResult:
        slot = self._slot
        missing: list[str] = []
        if slot.restore_directory():
            missing.append("the directory")
        if slot.restore_lock():
            missing.append("the lock file")
        conflict = "" if not self._is_older_worker_in_slot() else "its worker slot is that of a worker that runs"
        if self._secret:
            had_secret = os.path.exists(self._slots.path / "secret")
            if restore_secret(self._slots.path, self._secret) != self._secret:
                conflict = "the other workers have an older secret"
            elif not had_secret:
                missing.append("the secret")
        needs_socket = not os.path.exists(slot.path)
        if needs_socket:
            missing.append("the socket")
            with suppress(FileNotFoundError):
                os.unlink(slot.draft_path)
        now = self._clock.monotonic()
        if missing:
            self._log_missing(missing, now)
        if now - self._touched >= TOUCH_INTERVAL:
            self._touched = now
            slot.touch()
        if conflict:
            _log.warning(
                "StickyWorkers: the directory %s was cleaned before this worker has started, and %s: it starts again, "
                "and its clients are bound anew",
                self._slots.path,
                conflict,
            )
        self._failed = False
        return RepairResult(needs_socket and not conflict, bool(conflict))

    def _is_older_worker_in_slot(self) -> bool:
        """Return whether an older worker listens in the worker slot; remove the sockets of those that have ended."""
        slot = self._slot
        older = [each for number, each in self._slots.sockets() if number == slot.number and each < slot.instance]
        for instance in older:
            if self._listens(self._slots.socket_path(slot.number, instance)):
                return True
            self._slots.remove_socket(slot.number, instance)
        return False

    def _log_missing(self, missing: list[str], now: float) -> None:
        if self._logged is None or now - self._logged >= TOUCH_INTERVAL:
            self._logged = now
            _log.warning(
                "StickyWorkers: another program has removed %s of worker w%d in %s, and this worker makes that again: "
                "pass directory=, a directory that no program cleans",
                " and ".join(missing),
                self._slot.number,
                self._slots.path,
            )
