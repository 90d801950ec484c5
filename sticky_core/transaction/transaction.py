"""Transaction: one request in flight, from server to server until one responds.

The dispatch loop of a face asks for the `first` step and resolves what has to be waited for, until the step is a
server. It calls the server's app and records the outcome: `stamp` as the head of the response passes, `record_failure`
or `app_raised` if something went wrong. Then it calls `release`, once for each server that was a step, whatever
happened, and asks for the `next` step only if the server failed. Where no server can take the request, the client gets
the `unavailable_response`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sticky_core.backend.queue import Ticket
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure, StoreFailure
from sticky_core.http.cookies import CookieKey, limited_key
from sticky_core.http.error_page import ErrorPage, error_page
from sticky_core.http.messages import BodyNeeded, ResponseHead
from sticky_core.persistence.claim import NO_PERSISTENCE, RAISED, Claim, Mark, Reason
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.transaction.reservations import cancel_reservations, reserve
from sticky_core.transaction.retry import Retry, choose_retry, may_retry, pause
from sticky_core.transaction.state import ClientSend, RawRequest, TransactionState
from sticky_core.transaction.steps import UNAVAILABLE, NeedBody, NeedSlot, NeedStores, Step

_log = logging.getLogger("sticky_sessions")

#: the response header that `debug=True` adds
DEBUG_HEADER = "x-sticky"

#: failures that are neither of a connection nor of a response
_UNCOUNTED = frozenset((Failure.NOT_FORWARDABLE, Failure.NO_WEBSOCKET, Failure.LOCAL_LIMIT, Failure.TOTAL_TIMEOUT))

# Asking an Enum for its member costs as much as a few dict look-ups, and every request would.
_VALID, _INVALID, _RAISED = Claim.VALID, Claim.INVALID, Reason.RAISED


class Transaction(TransactionState[RawRequest, ClientSend]):
    """One request in flight. Each face adds the rest of the `Request`, and what the server's app responds into."""

    __slots__ = ()

    # Steps

    def first(self, cookie_key: CookieKey) -> Step:
        """Return the first step: the server that the client is bound to, else one that balance chooses.
        `cookie_key`: stands for the Cookie headers of the request.
        """
        snapshot = self.snapshot
        self.decision = decision = Decision()
        decision.backend = snapshot.name
        decision.status = 0
        persistence = snapshot.persistence
        if persistence is not None:
            remembered = persistence.fast_path.young.get(cookie_key)
            if remembered is not None:
                server, self.persisted, self.forwarded_cookies = remembered
                if server.usable:
                    if not server.counts_requests:
                        decision.attempts = server.name_as_tuple
                        server.in_flight.append(None)
                        return server
                    self._tried = decision.attempts = ()
                    # set, as this need not be the server of the first attempt
                    decision.claim_outcome = _VALID, Reason.BOUND, server.name
                    return self.place(server)
        self.cookie_key = limited_key(cookie_key) if type(cookie_key) is tuple else cookie_key
        self._tried = decision.attempts = ()
        return self.recognise()

    def recognise(self) -> Step:
        """Return the first step by what persistence recognises in the request, and by what stores have replied."""
        self.forwarded_cookies = None
        persistence = self.snapshot.persistence
        if persistence is None:
            self.set_result(NO_PERSISTENCE)
            return self.choose()
        try:
            result = persistence.recognise(self)
        except BodyNeeded as needed:
            self.set_result(NO_PERSISTENCE)
            return NeedBody(needed.limit, self.recognise)
        except Exception as error:  # not one of the functions that a persistence calls, which it catches itself
            self.function_failed("persist", persistence, error)
            self.forwarded_cookies = None
            result = RAISED
        if result.needs_no_mark and (self.has_writes or self.debug):
            result = replace(result, needs_no_mark=False)
        self.set_result(result)
        if result.queries:
            return NeedStores(result.queries, self.recognise, None)
        server = result.server
        if server is not None and (result.claim is _VALID or result.overrides_claim):
            if server.counts_requests or result.reservations:
                return self.place(server)
            # `place` in line: most bound clients that the fast path does not recognise pass here
            self._tried = server.as_tuple
            self.decision.attempts = server.name_as_tuple
            server.in_flight.append(None)
            return server
        if result.claim is _INVALID:
            self.owner.invalid_marks.count(result, self.snapshot.config.persist)
        return self.choose()

    def next(self) -> Step:
        """Return the next step after a failure. Unavailable: the request may not be replayed, or no server is left."""
        failure = self.decision.failures[-1]
        return self.retry(failure) if may_retry(self, failure) else UNAVAILABLE

    def retry(self, failure: Failure) -> Step:
        """Return the next step for a request that may be replayed."""
        self._tried = self.tried  # where the first server was remembered, this was not set
        retry = choose_retry(self, failure, len(self.decision.failures))
        if retry is Retry.NOWHERE or not self.acquire_retry(failure):
            return UNAVAILABLE
        match retry:
            case Retry.SAME_SERVER:
                return self.place(self.tried[-1])
            case Retry.SAME_SERVER_AFTER_PAUSE:
                return pause(self)
            case Retry.OTHER_SERVER:
                self.mark_redispatched(Reason.FAILED)
                return self.choose()

    def acquire_retry(self, failure: Failure) -> bool:
        """Return whether a retry after `failure` is allowed (`BudgetedRetry`)."""
        return True

    def resume(self, need: NeedSlot, woken: bool) -> Step:
        """Return the next step after the wait of `need`. `woken`: whether the wait was ended before its time."""
        if need.ticket is None:
            assert need.server is not None
            if need.server.usable or not self.snapshot.retries.redispatch:
                return self.place(need.server)
            self.mark_redispatched(Reason.FAILED)
            return self.choose()
        server = self.owner.placement.redeem(need.ticket)
        if server is not None:
            return self.seat(server, need.server)
        if not woken:
            return UNAVAILABLE
        untried = not self.tried  # else the redispatch is counted at the server that was tried last
        self.mark_redispatched(Reason.DOWN)
        step = self.choose(need.until)
        if untried and need.server is not None and step is not UNAVAILABLE:
            need.server.counters.cell[Total.WREDIS] += 1
        return step

    def body_read(self, need: NeedBody, beginning: bytes) -> Step:
        """Take the beginning of the body that `need` asked for, and return the next step."""
        self.set_peeked(beginning, need.limit)
        return need.then()

    def stores_replied(self, need: NeedStores, replies: Sequence[object]) -> Step:
        """Take the replies to the queries of `need`, and return the next step."""
        for query, reply in zip(need.queries, replies, strict=True):
            query.set_reply(reply)
            self.add_replied_query(query)
            if isinstance(query.reply, StoreFailure) and query.command.store.on_store_failure == "fail":
                if need.server is not None:
                    self.release_slot(need.server)
                return UNAVAILABLE
        return need.then()

    def abandon(self, step: Step) -> None:
        """End the transaction in the middle of a wait, because the client has disconnected."""
        self.stop_waiting(step)
        self.decision.has_no_response = True
        cancel_reservations(self)
        self._finish()

    def stop_waiting(self, step: Step) -> None:
        """Leave the queue that `step` waits in, and release a slot that was granted meanwhile."""
        server: Server | None = None
        if isinstance(step, NeedSlot):
            server = self.owner.placement.redeem(step.ticket) if step.ticket is not None else None
        elif isinstance(step, NeedStores):
            server = step.server
        if server is not None:
            self.release_slot(server)

    def choose(self, until: float | None = None) -> Step:
        """Return the next step for a request that is not bound to a server. `until`: how long it may wait in a queue,
        where it has waited before.
        """
        snapshot, owner = self.snapshot, self.owner
        if snapshot.unavailable == "fail" and self.persisted.claim is Claim.DOWN:
            if self.persisted.reason is not Reason.DRAINED:  # a server that drains is meant to lose its clients
                return UNAVAILABLE  # rather than a server that does not have the session
        try:
            if owner.snapshot.counts_requests:
                return self.place(None, until)
            server = owner.placement.choose(snapshot, self, self._tried)
        except BodyNeeded as needed:
            return NeedBody(needed.limit, lambda: self.choose(until))
        if owner.function_failures.pending:
            owner.function_failures.publish()
        if server is None:
            return UNAVAILABLE
        server.in_flight.append(None)
        return self.seat(server, None)

    def place(self, bound: Server | None, until: float | None = None) -> Step:
        """Acquire a slot at the server that the request is `bound` to, or at one that is chosen; else wait for one."""
        if bound is not None and not bound.counts_requests:
            bound.in_flight.append(None)
            return self.seat(bound, bound)
        snapshot = self.snapshot
        owner = self.owner
        placed = owner.placement.acquire_or_enqueue(snapshot, self, bound, self._tried)
        if owner.function_failures.pending:
            owner.function_failures.publish()
        if isinstance(placed, Ticket):
            if until is None:
                until = snapshot.clock.monotonic() + snapshot.config.timeouts.in_seconds.queue
            return NeedSlot(until, placed, bound)
        return self.seat(placed, bound) if placed is not None else UNAVAILABLE

    def seat(self, server: Server, bound: Server | None) -> Step:
        """Return `server`, where the request has acquired a slot, as the next attempt, and count it. `bound`: the
        server that the request is bound to.
        """
        tried = self._tried
        if self.persisted.reservations and not tried:
            return reserve(self, server, lambda: self.seat(server, bound), self.place)
        if server is not bound:
            server.counters.cell[Total.LBTOT] += 1
            if bound is not None:
                self.mark_redispatched(Reason.FULL)
        if tried:
            last = tried[-1]
            last.counters.cell[Total.WRETR if server is last else Total.WREDIS] += 1
        elif bound is not None and server is not bound:
            bound.counters.cell[Total.WREDIS] += 1
        self.add_attempt(server)
        return server

    def mark_redispatched(self, reason: Reason) -> None:
        """Note that a bound client goes to another server than its own."""
        if self.persisted.claim is _VALID:
            self.set_result(replace(self.persisted, claim=Claim.DOWN, reason=reason, needs_no_mark=False))
        elif self.persisted.overrides_claim:
            self.persisted = replace(self.persisted, overrides_claim=False)

    # The time for all attempts

    @property
    def seconds_left(self) -> float | None:
        """How long the head of the response is still waited for; None: without a limit (`TotalTimeout`)."""
        return None

    def lift_total_timeout(self) -> None:
        """Limit the current attempt no more: its server has responded (`TotalTimeout`)."""

    # The outcome of an attempt

    @property
    def holds_response(self) -> bool:
        """Whether the response of the current attempt is held back, and another server is tried next."""
        return False

    def hold_response(self, status: int) -> bool:
        """Return whether a response with this status is held back because the request is retried (`StatusRetry`)."""
        return False

    def drop_next_server(self) -> None:
        """Release the slot at the server that was to be tried next, as the transaction ends before that
        (`StatusRetry`).
        """

    def stamp(self, response: ResponseHead) -> None:
        """Edit the head of a response for the client, and mark it with the server that sends it.

        Not needed if the result `needs_no_mark` and the response sets no cookies. It is called again if the app
        replaces its head (PEP 3333, `exc_info`).
        """
        persistence = self.snapshot.persistence
        result = self.persisted
        if persistence is not None and result.reason is not _RAISED:
            is_bound = result.claim is _VALID or result.overrides_claim
            try:
                mark = persistence.stamp_response(result, self.tried[-1], is_bound, self, response)
            except Exception as error:
                self.function_failed("persist", persistence, error)
                mark = Mark.NONE
            self.decision.written_mark = mark
        if getattr(self, "_debug", False):  # `debug` in line
            response.add(DEBUG_HEADER, str(self.decision))

    def record_failure(self, failure: Failure) -> Failure:
        """Record that the server, not the app in it, failed, and return the failure as it is to be raised: after the
        head of a response, every failure of a server has truncated it.
        """
        if self.holds_response:
            return failure  # of a response that is not wanted any more
        decision = self.decision
        is_client_fault = failure in (Failure.CLIENT_TIMEOUT, Failure.CLIENT_SLOW)
        if decision.status and not is_client_fault:
            failure = Failure.TRUNCATED
        decision.failures += (failure,)
        if is_client_fault or self.client_left_first:
            self._count_disconnect()
        elif failure not in _UNCOUNTED:
            self.tried[-1].counters.cell[Total.ERESP if failure.maybe_executed else Total.ECON] += 1
        return failure

    def log_truncation(self, failure: Failure, error: ServerFailure) -> None:
        """Log, in one line, why the response to a client that has got its head is broken off. `failure`: as it was
        returned by `record_failure` for `error`.
        """
        level = logging.WARNING if failure.is_server_fault else logging.INFO
        detail = error.detail or (error.failure.text if error.failure is not failure else "")
        what = f"{failure.text}: {detail}" if detail else failure.text
        _log.log(level, "Server %s/%s: %s", self.decision.backend, self.tried[-1].name, what)

    def client_disconnected(self) -> None:
        """Count that the client has disconnected before the end, which is not the server's fault."""
        if not self.holds_response:  # else the response was given up, and the client is still there
            self._count_disconnect()
            if not self.decision.status:
                self.end_without_response()

    def _count_disconnect(self) -> None:
        if not getattr(self, "_client_left", False):  # else it is counted, and an exception follows from it
            self._client_left = True
            self.tried[-1].counters.cell[Total.CLI_ABRT] += 1

    def end_without_response(self) -> None:
        """Give up what was reserved for a server that has sent no head and sends none any more, whatever the reason:
        its app has raised, or returned nothing, or the client has disconnected. A head that a face makes up from here
        on gets no mark. A face calls this before `release`, and then writes what is queued for stores.
        """
        cancel_reservations(self)
        self.persisted = replace(self.persisted, needs_no_mark=True)

    def app_raised(self, is_disconnect: bool = False, is_local_limit: bool = False) -> bool:
        """Count an exception that the app has raised. Return whether it is to be raised again: not if its response is
        held back, as another server is tried. `is_disconnect`: whether the exception says that the client has
        disconnected. What an app raises once its client is known to have disconnected is counted alike.
        `is_local_limit`: whether the exception is a limit of this process, such as that of open files.
        """
        if self.holds_response:
            return False
        if is_disconnect or self.client_left_first:
            self._count_disconnect()
        else:
            self.tried[-1].counters.cell[Total.ERESP] += 1
        return True

    def release(self, server: Server, finished: bool) -> None:
        """Release the slot at `server`: once for each server that was a step. `finished`: the transaction ends here."""
        server.counters.cell[self.decision.status // 100] += 1
        if server.counts_requests:
            self.owner.placement.release(server)
        else:
            server.in_flight.pop()
        if finished:
            # `_finish` in line: every request passes here, and a call is a fiftieth of what it costs
            del self.client_send
            log = self.owner.log
            if log is not None:
                try:  # in line: a call would cost every request as much as the rest of this
                    log(self.decision)
                except Exception as error:
                    self.function_failed("log", log, error)

    def restore_response(self) -> Any:
        """Return the latest response that was held back and kept whole, to be sent after all: no other server has
        responded. The transaction is at its server again. None if there is no such response (`StatusRetry`).
        """
        return None

    def finish_restored(self) -> None:
        """End the transaction after the response of `restore_response` was sent."""
        cell = self.tried[-1].counters.cell
        cell[self.decision.status // 100] += 1
        cell[Total.NO_RESPONSE] -= 1  # which its attempt was counted as
        self._finish()

    def unavailable_response(self) -> ErrorPage:
        """Return the response of ours where no server has sent one. The transaction ends here; what is queued for
        stores is still to be written.
        """
        decision = self.decision
        decision.has_no_response = True
        cancel_reservations(self)
        response = self.build_error_page()
        decision.status = response.status
        if self.debug:
            response.headers.append((DEBUG_HEADER, str(decision)))
        self._finish()
        return response

    def build_error_page(self) -> ErrorPage:
        failures = self.decision.failures
        return error_page(failures[-1].status if failures else 503)

    def _finish(self) -> None:
        """Accept no more of a response, and log the decision."""
        del self.client_send
        log = self.owner.log
        if log is not None:
            try:
                log(self.decision)
            except Exception as error:
                self.function_failed("log", log, error)
