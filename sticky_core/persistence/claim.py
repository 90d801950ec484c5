"""How a client's claim turned out (`Claim`), why it did so (`Reason`), and how the response was marked (`Mark`).

The letters of `Claim` and `Mark` are the third and fourth of HAProxy's termination state (configuration manual, 8.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from sticky_core.deferred.dataclass import dataclass
from sticky_core.http import cookies
from sticky_core.http.messages import Request
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreQuery


class Claim(Enum):
    """How the client's claim to a server turned out."""

    NONE = "N"  #: the client made no claim
    INVALID = "I"  #: the claim names no server of this backend, or is not a value that we wrote
    DOWN = "D"  #: the claimed server is down, in maintenance, or did not respond
    VALID = "V"  #: the claimed server was usable
    EXPIRED = "E"  #: the last visit of the client was longer ago than maxidle
    OLD = "O"  #: the first visit of the client was longer ago than maxlife
    UNUSED = "U"  #: another persistence or a rule had chosen the server before


class Reason(Enum):
    """Why the claim turned out as it did."""

    NO_COOKIE = "no cookie"
    UNREAD = "more cookies than are read"
    EMPTY = "empty cookie"
    UNKNOWN = "names no server"
    FORGED = "not signed by us"
    BACKUP = "server is a backup"
    OTHER_INSTANCE = "other instance"
    EXPIRED = "idle for too long"
    OLD = "too old"
    DOWN = "server is down"
    MAINT = "server is in maintenance"
    DRAINED = "server has drained"
    FAILED = "server did not respond"
    FULL = "server is at maxconn"
    BOUND = "server is usable"
    ACCEPTED = "named by an accepted mark"
    SUPERSEDED = "another persistence matched first"
    RULE = "a rule matched first"
    NO_KEY = "request has no key"
    NO_ENTRY = "not in the table"
    NO_PERSISTENCE = "no persistence configured"
    RAISED = "persistence has raised an exception"


class Mark(Enum):
    """How the response was marked."""

    NONE = "N"  #: not at all
    INSERTED = "I"  #: with a new mark
    UPDATED = "U"  #: with a renewed mark that names the same server
    PASSED = "P"  #: with the application's own cookie, unchanged
    REWRITTEN = "R"  #: with the application's own cookie and our id in its value
    DELETED = "D"  #: the application's own cookie was removed, or the client's mark was deleted


class Reservation(Protocol):
    """A key to reserve for the server of the first request that carries it, so that simultaneous requests of one client
    go to the same server.
    """

    def query(self, server: Server) -> StoreQuery | None:
        """Return the query that reserves the key for `server` in a store, or None if no store is involved."""
        ...

    def confirm(self, server: Server, query: StoreQuery | None) -> Server | None:
        """Read the store's reply to `query`, and return the server that has the key now: `server`, or another server if
        another request reserved the key first. Return None if that other server is not usable.
        """
        ...

    def cancel(self, request: Request) -> None:
        """Release the key, because no server has responded. Do nothing if this request did not reserve it."""
        ...


@dataclass(frozen=True, slots=True)
class PersistenceResult:
    """What a persistence has recognised in a request. One object may be the result of many requests.

    - `claim`, `reason`: how the claim turned out, and why.
    - `server`: the server that the client claims, usable or not.
    - `last_seen`, `first_seen`: the dates in the mark, in seconds since the epoch; None: the mark has no such date.
    - `is_outdated`: the mark is valid, but a new mark of the same server would differ (an old key signed this one).
    - `needs_no_mark`: a response of `server` needs no new mark, at whatever time it is sent.
    - `results`: the results of the members of a chain, in order.
    - `overrides_claim`: the request goes to `server` although the claim is not valid: because of a rule, or because a
      server that is down is accepted.
    - `is_forced`: the request goes to no other server than `server` (`force_persist`).
    - `is_ignored`: the claim does not count and the response gets no mark (`ignore_persist`).
    - `queries`: queries to send to stores. When the stores have replied, the request is recognised again.
    - `reservations`: keys to reserve for the server that takes the request.
    - `persistence_state`: what the persistence that made the result needs again in `stamp_response`.
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
        """Whether the request goes to `server`. If not, the balance algorithm chooses a server."""
        return self.overrides_claim or self.claim is Claim.VALID


@dataclass(frozen=True, slots=True)
class InvalidMark(PersistenceResult):
    """The result of a mark that names no server of the backend (`Reason.UNKNOWN`) or is not signed by us (`FORGED`).
    What it says in addition is for the log (`sticky_core.backend.invalid_marks`).

    - `place`: where the mark is: `cookie SERVERID of a client`.
    - `name`: what it names; empty if that must not be logged: it is not signed, and may be a session id of the
      application.
    - `remedy`: a sentence on what to do for the clients that have it.
    """

    place: str = "the mark of a client"
    name: str = ""
    remedy: str = ""


#: the remedy where marks name servers by what `formerly` can repeat: ids, names, addresses
GIVE_FORMERLY = "If it was renamed or replaced, give the server in its place formerly= with this name."

NO_COOKIE = PersistenceResult(Claim.NONE, Reason.NO_COOKIE)
UNREAD_COOKIES = PersistenceResult(Claim.NONE, Reason.UNREAD)
NO_KEY = PersistenceResult(Claim.NONE, Reason.NO_KEY)
NO_ENTRY = PersistenceResult(Claim.NONE, Reason.NO_ENTRY)
NO_PERSISTENCE = PersistenceResult(Claim.NONE, Reason.NO_PERSISTENCE)
RAISED = PersistenceResult(Claim.NONE, Reason.RAISED, needs_no_mark=True)


def no_cookie(texts: Sequence[str]) -> PersistenceResult:
    """Return the result for a request that has Cookie headers, but not the cookie. `texts`: what is read of them
    (`Request.cookies`).
    """
    # `cookies.are_cut` in line: every new client with other cookies passes here
    return NO_COOKIE if texts and len(texts[0]) <= cookies.MAX_LENGTH else UNREAD_COOKIES


def unusable_reason(server: Server) -> Reason:
    """Return the reason why `server` is not usable."""
    if server.in_maint:
        return Reason.MAINT
    return Reason.DRAINED if server.reachable else Reason.DOWN
