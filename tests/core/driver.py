"""A transaction as a test drives it: each call returns the server, and what has to be waited for is kept beside."""

from __future__ import annotations

from sticky_core.http.cookies import CookieKey
from sticky_core.server.server import Server
from sticky_core.transaction.status_retry import StatusRetry
from sticky_core.transaction.steps import Need, NeedSlot, Step, Unavailable


class DrivenTransaction(StatusRetry[str, None]):
    """A transaction that keeps what it waits for in `wait`."""

    __slots__ = ("wait",)

    wait: Need | None

    def _take(self, step: Step) -> Server | None:
        self.wait = None if isinstance(step, Server | Unavailable) else step
        return step if isinstance(step, Server) else None

    def first_server(self, cookie_key: CookieKey) -> Server | None:
        return self._take(self.first(cookie_key))

    def next_server(self) -> Server | None:
        return self._take(self.next())

    def resume_wait(self, woken: bool) -> Server | None:
        assert isinstance(self.wait, NeedSlot)
        return self._take(self.resume(self.wait, woken))

    def abandon_wait(self) -> None:
        assert self.wait is not None
        self.abandon(self.wait)
        self.wait = None
