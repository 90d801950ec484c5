"""The state of one request in flight, and the request as persistence, balance and samples read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sticky_core.decision import Decision
from sticky_core.errors import Failure
from sticky_core.http.cookies import CookieKey
from sticky_core.http.messages import BodyNeeded, Request, SharedTable
from sticky_core.persistence.claim import PersistenceResult, Reservation
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend
    from sticky_core.backend.granted_retries import RetryGrant
    from sticky_core.backend.snapshot import Snapshot

RawRequest = TypeVar("RawRequest")  # a scope, an environ
ClientSend = TypeVar("ClientSend")  # `send`, `start_response`


class ReplayableBody(Protocol):
    """The only reader of a request's body, from which each attempt reads."""

    @property
    def replayable(self) -> bool:
        """Whether all that was read is kept, and fits into the limit up to which a request is replayed."""
        ...

    @property
    def discarded(self) -> bool:
        """Whether a part of what was read is lost, so that no further server can get the body."""
        ...

    @property
    def client_left_first(self) -> bool:
        """Whether the client has disconnected before a response of status 500 or above began. What an attempt does
        after that says nothing about its server.
        """
        ...

    def rewind(self) -> None:
        """Let the next attempt read the body from its beginning."""
        ...


class TransactionState(Request, Generic[RawRequest, ClientSend]):
    """What is known of one request in flight. A face adds what it takes to be the `Request`."""

    # Most requests never set those with an underscore, and setting a slot costs as much as reading it.
    __slots__ = (
        "_asked_at",
        "_attempt_scope",
        "_client_left",
        "_debug",
        "_ends_at",
        "_held",
        "_held_head",
        "_is_lifted",
        "_kept",
        "_next_server",
        "_peeked",
        "_queries",
        "_reported_attempts",
        "_reservations",
        "_retry_grants",
        "_tried",
        "_writes",
        "body",
        "client_send",
        "cookie_key",
        "decision",
        "forwarded_cookies",
        "owner",
        "persisted",
        "raw_request",
        "snapshot",
    )

    # A face sets these four by itself: every request does, and an __init__ takes twice the time.
    snapshot: Snapshot  #: the configuration that this request is served by
    owner: Backend  #: the backend that serves it
    raw_request: RawRequest
    client_send: ClientSend  #: takes the response; not set any more once the request is finished

    body: ReplayableBody | None  #: set only where the body may have to be read again
    cookie_key: CookieKey
    forwarded_cookies: Any
    decision: Decision
    persisted: PersistenceResult  #: what persistence has recognised

    _asked_at: float  # when the current attempt began (`Reporting`)
    _attempt_scope: Any  # cancels the current attempt when the time is over, on ASGI
    _ends_at: float  # when the time for all attempts is over (`TotalTimeout`)
    _held: tuple[Server, tuple[Failure, ...], PersistenceResult]  # before the response was held back (`StatusRetry`)
    _held_head: Any  # the head of the response that is held back, on WSGI
    _is_lifted: bool  # whether the server of the current attempt has responded in time (`TotalTimeout`)
    _kept: tuple[Server, tuple[Failure, ...], PersistenceResult, Any]  # the latest `_held` with the whole response
    _client_left: bool  # whether its disconnect has been counted
    _next_server: Server | None  # chosen while the response of the current one was held back (`StatusRetry`)
    _peeked: tuple[bytes, int]  # the beginning of the body, and how many bytes were asked for
    _queries: dict[StoreCommand, StoreQuery]  # queries that stores have replied to
    _reported_attempts: int  # how many attempts have been reported (`Reporting`)
    _reservations: Sequence[Reservation]  # reserved for the first server
    _retry_grants: tuple[RetryGrant, ...]  # the retries that the budget has granted (`BudgetedRetry`)
    _tried: tuple[Server, ...]  # not set where the first server was remembered: then it is the only one
    _writes: list[tuple[SharedTable, str, StoreQuery]]  # writes that stores have not got yet

    @property
    def finished(self) -> bool:
        """Whether the request has ended, and was logged."""
        return not hasattr(self, "client_send")

    @property
    def tried(self) -> tuple[Server, ...]:
        """The servers of `decision.attempts`."""
        try:
            return self._tried
        except AttributeError:
            server = self.persisted.server
            assert server is not None
            return server.as_tuple

    @tried.setter
    def tried(self, tried: tuple[Server, ...]) -> None:
        self._tried = tried

    @property
    def debug(self) -> bool:
        """Whether the response gets a header with the decision."""
        return getattr(self, "_debug", False)

    def enable_debug(self) -> None:
        """Add a header with the decision to the response."""
        self._debug = True
        self.persisted = replace(self.persisted, needs_no_mark=False)

    def set_result(self, result: PersistenceResult) -> None:
        """Set what persistence has recognised, and note it in the decision."""
        self.persisted = result
        server = result.server
        self.decision.claim_outcome = result.claim, result.reason, server.name if server is not None else None

    def add_attempt(self, server: Server) -> None:
        """Note that `server` is tried next. `tried` was set."""
        self._tried += server.as_tuple
        self.decision.attempts += server.name_as_tuple

    def remove_attempt(self) -> None:
        """Take back the last `add_attempt`."""
        self._tried = self._tried[:-1]
        self.decision.attempts = self.decision.attempts[:-1]

    def release_slot(self, server: Server) -> None:
        """Release a slot at `server` that was acquired and is not used."""
        if server.counts_requests:
            self.owner.placement.release(server)
        else:
            server.in_flight.pop()

    # The request as the core reads it

    @property
    def src(self) -> str:
        trusted = self.snapshot.trusted_proxies
        peer = self.peer
        return peer if trusted is None else trusted.find_client(peer, self.header("x-forwarded-for")) or ""

    @property
    def connection_scheme(self) -> str:
        """`http`, `https`, `ws` or `wss`: how the peer has connected, as far as the face knows."""
        raise NotImplementedError

    @property
    def scheme(self) -> str:
        trusted = self.snapshot.trusted_proxies
        scheme = self.connection_scheme
        if trusted is None:
            return scheme
        return trusted.find_scheme(self.peer, scheme, self.header("x-forwarded-proto"))

    @property
    def secure(self) -> bool:
        # most often there are no trusted proxies; then a call less
        scheme = self.connection_scheme if self.snapshot.trusted_proxies is None else self.scheme
        return scheme in ("https", "wss")

    def peek(self, limit: int) -> bytes:
        beginning, known = getattr(self, "_peeked", (b"", -1))
        if known < limit:
            raise BodyNeeded(limit)
        return beginning[:limit]

    def set_peeked(self, beginning: bytes, limit: int) -> None:
        """Set the first `limit` bytes of the body, or all of it."""
        self._peeked = beginning, limit

    def note_missing_key(self, why: str) -> None:
        missing_keys = self.decision.missing_keys
        if why not in missing_keys:  # the request may be recognised again, once stores have replied
            self.decision.missing_keys = (*missing_keys, why)

    def store_query(self, command: StoreCommand) -> StoreQuery | None:
        queries: dict[StoreCommand, StoreQuery] = getattr(self, "_queries", {})
        return queries.get(command)

    def add_replied_query(self, query: StoreQuery) -> None:
        """Keep a query that a store has replied to for `store_query`."""
        queries: dict[StoreCommand, StoreQuery] = getattr(self, "_queries", {})
        self._queries = queries
        queries[query.command] = query

    def queue_write(self, table: SharedTable, key: str, command: StoreCommand) -> None:
        writes: list[tuple[SharedTable, str, StoreQuery]] = getattr(self, "_writes", [])
        self._writes = writes
        writes.append((table, key, table.query(command)))

    def function_failed(self, place: str, function: object, error: Exception, *, is_locked: bool = False) -> None:
        self.owner.function_failures.record(place, function, error, is_locked=is_locked)

    @property
    def has_writes(self) -> bool:
        """Whether writes wait for `flush_writes`."""
        return bool(getattr(self, "_writes", ()))

    @property
    def writes(self) -> Sequence[tuple[SharedTable, str, StoreQuery]]:
        """The queued writes, in order: the table, the key, and the query that writes it."""
        return getattr(self, "_writes", ())

    def clear_writes(self) -> None:
        self._writes = []

    @property
    def reservations(self) -> Sequence[Reservation]:
        """What is reserved for the server that takes the request first."""
        return getattr(self, "_reservations", ())

    def set_reservations(self, reservations: Sequence[Reservation]) -> None:
        self._reservations = reservations

    @property
    def replayable_body(self) -> ReplayableBody | None:
        """The reader of the body, where the body may have to be read again."""
        return getattr(self, "body", None)

    @property
    def replayable(self) -> bool:
        body = self.replayable_body
        return body is None or body.replayable

    @property
    def client_left_first(self) -> bool:
        """Whether the client is known to have disconnected before its request failed."""
        body = self.replayable_body
        return getattr(self, "_client_left", False) or (body is not None and body.client_left_first)
