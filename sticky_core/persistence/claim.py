"""What a client says about where it belongs, how that turned out, and what it was told in return.

The letters are the third and fourth of HAProxy's termination state (configuration manual, 8.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreQuery


class Claim(Enum):
    """How a client's claim to a server turned out."""

    NONE = "N"  #: it made none
    INVALID = "I"  #: it names no server here, or is not our word
    DOWN = "D"  #: its server is down or in maintenance, or did not answer
    VALID = "V"  #: its server was there for it
    EXPIRED = "E"  #: idle for longer than maxidle
    OLD = "O"  #: older than maxlife
    UNUSED = "U"  #: not asked: another persistence, or a rule, had spoken before


class Reason(Enum):
    """Why the claim turned out so."""

    NO_COOKIE = "no cookie"
    EMPTY = "empty cookie"
    UNKNOWN = "names no server"
    FORGED = "not signed by us"
    OTHER_INSTANCE = "other instance"
    EXPIRED = "idle for too long"
    OLD = "too old"
    DOWN = "server is down"
    MAINT = "server is in maintenance"
    DRAINED = "server has drained"
    FAILED = "server did not respond"
    FULL = "server is at maxconn"
    BOUND = "server is usable"
    SUPERSEDED = "another persistence matched first"
    RULE = "a rule matched first"
    NO_KEY = "request has no key"
    NO_ENTRY = "not in the table"
    NO_PERSISTENCE = "no persistence configured"


class Mark(Enum):
    """What the client was told in return."""

    NONE = "N"  #: nothing
    INSERTED = "I"  #: a new mark
    UPDATED = "U"  #: the same server again, renewed
    PASSED = "P"  #: the application's own cookie, as it is
    REWRITTEN = "R"  #: the application's own cookie, with our id in it
    DELETED = "D"  #: the application's own cookie was taken out, or the client's mark was taken back


class Reservation(Protocol):
    """A key that is to be the first server's that takes its request, so that requests of one client that come together
    agree on one.
    """

    def query(self, server: Server) -> StoreQuery | None:
        """What to ask a store so that it is `server`'s; None: nobody has to be asked."""
        ...

    def confirm(self, server: Server, question: StoreQuery | None) -> Server | None:
        """After that was asked: whose it is; None: nobody's who could take a request."""
        ...

    def cancel(self, request: Request) -> None:
        """No server has answered: it is nobody's again, if it had become the server's."""
        ...


@dataclass(frozen=True, slots=True)
class PersistenceResult:
    """What one persistence made of a request. The same value may serve many requests."""

    claim: Claim
    reason: Reason
    server: Server | None = None  #: the server that is claimed, usable or not
    last_seen: int | None = None  #: when the client was last seen, in the mark's own words: seconds since the epoch
    first_seen: int | None = None  #: when it was first seen
    is_outdated: bool = False  #: honoured, but written in a way that we would not write today (an old key)
    needs_no_mark: bool = False  #: whatever the time, a client that is where it belongs needs no new mark
    results: tuple[PersistenceResult, ...] = ()  #: where several persistences were asked: what each of them made of it
    overrides_claim: bool = (
        False  #: it goes to `server` although the claim is not valid: by a rule, or though it is down
    )
    is_forced: bool = False  #: and nowhere else (`force_persist`)
    is_ignored: bool = False  #: whatever it claims, and it is told nothing (`ignore_persist`)
    queries: tuple[StoreQuery, ...] = ()  #: what stores have to be asked first, to be recognised anew then
    reservations: tuple[Reservation, ...] = ()  #: what is to be the server's that takes the request
    persistence_state: object = None  #: what the persistence wants to know again when it marks

    @property
    def is_bound(self) -> bool:
        """Whether it goes to `server`, rather than where balance sends it."""
        return self.overrides_claim or self.claim is Claim.VALID


NO_COOKIE = PersistenceResult(Claim.NONE, Reason.NO_COOKIE)
NO_PERSISTENCE = PersistenceResult(Claim.NONE, Reason.NO_PERSISTENCE)


def unusable_reason(server: Server) -> Reason:
    """Why its clients can't go to a server."""
    if server.in_maint:
        return Reason.MAINT
    return Reason.DRAINED if server.reachable else Reason.DOWN
