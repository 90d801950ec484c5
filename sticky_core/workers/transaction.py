"""A request that may be forwarded to a peer: the transaction of the worker that accepts it, and the decision that the
app reads in the worker that serves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from sticky_core.decision import Decision
from sticky_core.http.error_page import ErrorPage, error_page
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.state import ClientSend, RawRequest
from sticky_core.transaction.steps import UNAVAILABLE, Step
from sticky_core.transaction.transaction import Transaction
from sticky_core.workers.backend import Workers


class RemoteAppError(Exception):
    """An exception that the app has raised in another worker. Its text is the traceback from there."""


class PeerTransaction(Transaction[RawRequest, ClientSend]):
    """A transaction that may be forwarded to a peer. Faces put it before their own transaction class."""

    __slots__ = ("_claims_key_again", "_lost_is_counted", "_session_lost")

    workers: ClassVar[Workers]  #: a face sets it, in a subclass for each group of workers

    def peer_ended(self, instance: str) -> None:
        """Record that the chosen peer, the worker `instance`, does not listen any more."""
        self._session_lost = self.workers.forget_peer(self.tried[-1], instance)

    def mark_redispatched(self, reason: Reason) -> None:
        if getattr(self, "_session_lost", False) and self.persisted.claim is Claim.VALID:
            self._session_lost = False
            # if a key has recognised the client: other workers may receive this key now, and must agree on its owner
            self._claims_key_again = self.key is not None
            result = replace(self.persisted, claim=Claim.INVALID, reason=Reason.OTHER_INSTANCE)
            self.set_result(replace(result, needs_no_mark=False))
        else:
            super().mark_redispatched(reason)

    @property
    def key(self) -> str | None:
        """The key of the request; None if it has none, or workers do not learn keys."""
        state = self.persisted.persistence_state
        return state if isinstance(state, str) else None

    def _count_lost_session(self) -> None:
        """Count the request, once, if it is of a client with a worker that has ended."""
        if self.persisted.reason is Reason.OTHER_INSTANCE and not getattr(self, "_lost_is_counted", False):
            self._lost_is_counted = True
            self.workers.own_server.counters.cell[Total.LOST_SESSION] += 1

    def choose(self, until: float | None = None) -> Step:
        workers = self.workers
        self._count_lost_session()
        if self._reports_lost_session:
            return UNAVAILABLE
        if getattr(self, "_claims_key_again", False):
            self._claims_key_again = False
            return self.recognise()
        if workers.hashes_keys:
            workers.refresh_peers()
        return super().choose(until)

    @property
    def _reports_lost_session(self) -> bool:
        result = self.persisted
        return self.workers.reports_lost and result.reason is Reason.OTHER_INSTANCE and not result.is_ignored

    def build_error_page(self) -> ErrorPage:
        if not self._reports_lost_session:
            return super().build_error_page()
        response = error_page(410)
        deletions = [self.workers.expired_cookie(self.secure)]
        for accepted in self.snapshot.persistences.accepted:  # or one of those would lead to a 410 again and again
            deletions += accepted.deletions(self)
        response.headers.extend(("set-cookie", text) for text in deletions)
        return response


class KeyTransaction(PeerTransaction[RawRequest, ClientSend]):
    """A transaction of workers that learn keys: its key is in use until it has ended. Faces put it before their own
    transaction class, and only where keys are learned, so that other requests do not pay for it.
    """

    __slots__ = ()

    def release(self, server: Server, finished: bool) -> None:
        super().release(server, finished)
        keys = self.workers.keys
        assert keys is not None
        keys.end_use(self)
        result = self.persisted
        if result.reason is Reason.NO_ENTRY and result.claim is Claim.NONE and result.persistence_state is not None:
            keys.refused_keys.count_claimed(self.decision.status)  # this worker has just claimed the key
        else:
            self._count_lost_session()  # `choose` was not called if this worker has just claimed the key


def key_mixins(workers: Workers) -> Sequence[type[Transaction[Any, Any]]]:
    """Return what goes before `PeerTransaction` in the transactions of these workers."""
    return (KeyTransaction,) if workers.keys is not None else ()


_CLAIMS: Mapping[str, Claim] = Claim.__members__
_REASONS: Mapping[str, Reason] = Reason.__members__


class PeerRequest:
    """A request that a peer has accepted and forwarded to this worker, which serves it.

    - `claim`, `reason`: the names of the peer's result.
    - `key`: the key by which the peer has recognised the request; None if there is none.

    ValueError if one of these, which come from a frame, can't be.
    """

    def __init__(self, workers: Workers, claim: str, reason: str, key: str | None) -> None:
        self._server = server = workers.own_server
        self._keys = workers.keys
        #: the key by which the peer has recognised the request
        self.key = key
        found, why = _CLAIMS.get(claim), _REASONS.get(reason)
        is_key = key is None or isinstance(key, str)  # pyright: ignore[reportUnnecessaryIsInstance]
        if found is None or why is None or not is_key:
            raise ValueError(f"claim {claim!r}, reason {reason!r}, key {key!r}")
        #: the decision of the peer, for the app in this worker
        self.decision = decision = Decision()
        decision.backend = workers.name
        decision.attempts = server.name_as_tuple
        decision.claim_outcome = found, why, server.name if found is Claim.VALID else None
        decision.status = 0

    def start(self) -> None:
        """Count the request as in flight in this worker, and its key as in use: a peer that ends takes what it knows
        of the key with it.
        """
        self._server.in_flight.append(None)
        self._server.counters.cell[Total.FROM_PEER] += 1
        keys = self._keys
        if keys is not None and self.key is not None:
            keys.renew(self.key, keys.own_id)
            keys.begin_use(self, self.key, keys.own_id)

    def app_raised(self, is_disconnect: bool) -> None:
        """Count an exception of the app. `is_disconnect`: whether the client had disconnected before."""
        self._server.counters.cell[Total.CLI_ABRT if is_disconnect else Total.ERESP] += 1

    def finish(self) -> None:
        """Count the response, and the request as no longer in flight."""
        self._server.counters.cell[self.decision.status // 100] += 1
        self._server.in_flight.pop()
        if self._keys is not None:
            self._keys.end_use(self)
