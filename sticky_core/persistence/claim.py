"""What a client claims (`Claim`), why the claim counts or not (`Reason`), and how the response is marked (`Mark`).

The letters of `Claim` and `Mark` are the third and fourth of HAProxy's termination state (configuration manual, 8.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreQuery


class Claim(Enum):
    """How the client's claim to a server turned out."""

    NONE = "N"  #: the client made no claim
    INVALID = "I"  #: it names no server of this backend, or is not a value of ours
    DOWN = "D"  #: its server is down, in maintenance, or did not respond
    VALID = "V"  #: its server was usable
    EXPIRED = "E"  #: the client was away for longer than maxidle
    OLD = "O"  #: the client came first longer ago than maxlife
    UNUSED = "U"  #: another persistence, or a rule, had decided before


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
    """How the response was marked."""

    NONE = "N"  #: not at all
    INSERTED = "I"  #: with a new mark
    UPDATED = "U"  #: with a renewed mark of the same server
    PASSED = "P"  #: with the application's own cookie, unchanged
    REWRITTEN = "R"  #: with the application's own cookie, and our id in it
    DELETED = "D"  #: the application's own cookie was removed, or the client's mark was deleted


class Reservation(Protocol):
    """A key that is reserved for the first server that takes its request, so that simultaneous requests of one client
    go to the same server.
    """

    def query(self, server: Server) -> StoreQuery | None:
        """Return the query that reserves the key for `server` in a store, or None if no store is involved."""
        ...

    def confirm(self, server: Server, query: StoreQuery | None) -> Server | None:
        """Take the store's reply to `query`, and return the server that has the key now: `server`, or another one if
        another request was first. None: that one is not usable.
        """
        ...

    def cancel(self, request: Request) -> None:
        """Give the key up, as no server has responded. Nothing happens if this request had not reserved it."""
        ...


@dataclass(frozen=True, slots=True)
class PersistenceResult:
    """What a persistence has recognised in a request. One value may serve many requests.

    - `claim`, `reason`: how the claim turned out, and why.
    - `server`: the server that the client claims, usable or not.
    - `last_seen`, `first_seen`: the dates in the mark, in seconds since the epoch.
    - `is_outdated`: the mark counts, but would be written differently today (an old key signed it).
    - `needs_no_mark`: whatever the time, a response of `server` needs no new mark.
    - `results`: the results of the members of a chain, in order.
    - `overrides_claim`: the request goes to `server` although the claim is not valid: by a rule, or though it is down.
    - `is_forced`: and it goes to no other server (`force_persist`).
    - `is_ignored`: the claim does not count and the response gets no mark (`ignore_persist`).
    - `queries`: queries that stores have to reply to before the request is recognised again.
    - `reservations`: keys to reserve for the server that takes the request.
    - `persistence_state`: what the persistence that made the result wants back in `stamp_response`.
    """

    claim: Claim
    reason: Reason
    server: Server | None = None
    last_seen: int | None = None
    first_seen: int | None = None
    is_outdated: bool = False
    needs_no_mark: bool = False
    results: tuple[PersistenceResult, ...] = ()
    overrides_claim: bool = False
    is_forced: bool = False
    is_ignored: bool = False
    queries: tuple[StoreQuery, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    persistence_state: object = None

    @property
    def is_bound(self) -> bool:
        """Whether the request goes to `server`; else the balance algorithm chooses a server."""
        return self.overrides_claim or self.claim is Claim.VALID


NO_COOKIE = PersistenceResult(Claim.NONE, Reason.NO_COOKIE)
NO_KEY = PersistenceResult(Claim.NONE, Reason.NO_KEY)
NO_ENTRY = PersistenceResult(Claim.NONE, Reason.NO_ENTRY)
NO_PERSISTENCE = PersistenceResult(Claim.NONE, Reason.NO_PERSISTENCE)


def unusable_reason(server: Server) -> Reason:
    """Return why clients can't go to a server that is not usable."""
    if server.in_maint:
        return Reason.MAINT
    return Reason.DRAINED if server.reachable else Reason.DOWN
