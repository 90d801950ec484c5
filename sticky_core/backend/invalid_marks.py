"""InvalidMarks: marks of clients that name no server of the backend, or are not signed with its secret.

Clients can send any mark. So each name is logged once, escaped and cut off; no more than `MAX_NAMES` names are logged
and remembered; and what is not signed with the secret is never logged by name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

from sticky_core.persistence.claim import InvalidMark, PersistenceResult, Reason

_log = logging.getLogger("sticky_sessions")

#: how many names are logged for one backend
MAX_NAMES: Final = 100
#: so many characters of a name are logged
MAX_LENGTH: Final = 64


class InvalidMarks:
    """How many requests of one backend came with such a mark, and the log of them. Another configuration of persistence
    (`Backend.apply`) begins the log anew.

    - `unknown`: how many marks have named no server.
    - `forged`: how many marks were not signed by us.
    - `logs_forged`: whether the first of these is logged.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._persist: Sequence[object] = ()  # the configuration that `_logged` belongs to
        self._logged: set[tuple[str, str]] = set()  # place and name
        self._forged_was_logged = False
        self.unknown = 0
        self.forged = 0
        self.logs_forged = True

    def count(self, result: PersistenceResult, persist: Sequence[object]) -> None:
        """Count the mark of a request if `result` says that it names no server or is not signed by us, and log it if it
        is the first of its kind. `persist`: the configuration of persistence that the request is served by.
        """
        match result.reason:
            case Reason.UNKNOWN:
                self._count_unknown(result, persist)
            case Reason.FORGED:
                self._count_forged(result, persist)
            case _:
                pass

    def _begin(self, persist: Sequence[object]) -> None:
        if persist is not self._persist:
            if persist != self._persist:
                self._logged = set()
                self._forged_was_logged = False
            self._persist = persist

    def _count_unknown(self, result: PersistenceResult, persist: Sequence[object]) -> None:
        mark = _details(result)
        key = mark.place, mark.name[:MAX_LENGTH]
        with self._lock:
            self.unknown += 1
            self._begin(persist)
            if key in self._logged or len(self._logged) > MAX_NAMES:
                return
            self._logged.add(key)
            is_last = len(self._logged) > MAX_NAMES
        if is_last:
            _log.warning(
                "backend %s: clients have named %d servers that it does not have: no more of these names are logged. "
                "`Backend.unknown_marks` goes on counting.",
                self._backend,
                MAX_NAMES,
            )
            return
        _log.warning(
            "backend %s: %s names %s. %sThis is logged once for each name; `Backend.unknown_marks` counts all.",
            self._backend,
            mark.place,
            f"server {_shown(mark.name)}, which there is not" if mark.name else "no server of this backend",
            f"{mark.remedy} " if mark.remedy else "",
        )

    def _count_forged(self, result: PersistenceResult, persist: Sequence[object]) -> None:
        mark = _details(result)
        with self._lock:
            self.forged += 1
            self._begin(persist)
            if self._forged_was_logged:
                return
            self._forged_was_logged = True
        if self.logs_forged:
            _log.warning(
                "backend %s: %s is not signed with the secret of this backend. %sThis is logged once; "
                "`Backend.forged_marks` counts all.",
                self._backend,
                mark.place,
                f"{mark.remedy} " if mark.remedy else "",
            )

    def after_fork(self) -> None:
        """Renew the lock in a forked child."""
        self._lock = threading.Lock()


def _details(result: PersistenceResult) -> InvalidMark:
    """Return what is logged of `result`. A persistence of the user's says no more than the reason."""
    return result if isinstance(result, InvalidMark) else InvalidMark(result.claim, result.reason)


def _shown(name: str) -> str:
    """Return a name as it is logged: on one line, and cut off."""
    text = ascii(name[:MAX_LENGTH])
    return text if len(text) <= MAX_LENGTH + 2 and len(name) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."
