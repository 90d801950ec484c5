"""Transaction: one request on its way through a backend, from server to server until one answers.

A face asks for the `first` server, calls its app, and asks for the `next` only if that server failed. It tells the
transaction what went wrong (`failed`, `broke`) and that the server has let the request go (`leave`, once per server,
whatever happened), and has the head of the answer stamped as it comes past (`stamp`), or asks for a page of ours
(`unanswered`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sticky_core.backend.queue import Ticket
from sticky_core.decision import Decision
from sticky_core.errors import Failure, StoreFailure
from sticky_core.http.error_page import ErrorPage, error_page
from sticky_core.http.forwarding import IDEMPOTENT
from sticky_core.http.messages import BodyNeeded, Request, ResponseHead, SharedTable
from sticky_core.persistence.claim import NO_PERSISTENCE, Claim, Reason, Reservation
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.stores.store import StoreCommand, StoreQuery
from sticky_core.transaction.waits import Need, NeedBody, NeedSlot, NeedStores

if TYPE_CHECKING:
    from sticky_core.backend.backend import Backend
    from sticky_core.backend.snapshot import Snapshot

#: the response header that `debug=True` adds
DEBUG_HEADER = "x-sticky"

# Asking an Enum for its member costs as much as a few dict look-ups, and every request would.
_VALID = Claim.VALID

#: the longest pause before the same server is tried again, in seconds
LONGEST_PAUSE = 1.0

Message = TypeVar("Message")  # a scope, an environ
Out = TypeVar("Out")  # `send`, `start_response`


class Body(Protocol):
    """The one reader of a request's body."""

    @property
    def replayable(self) -> bool:
        """Whether all that was read of it is kept to be read again, and is not more than may be told twice."""
        ...

    @property
    def discarded(self) -> bool:
        """Whether some of what was read can't be read again."""
        ...

    def rewind(self) -> None:
        """Another attempt begins: it is told everything again."""
        ...


class Transaction(Decision, Request, Generic[Message, Out]):
    """One request on its way, and its own decision: what a face hands to the app and to logs.

    Each face adds what it takes to be the `Request`, and what the server's app answers into.
    """

    __slots__ = (
        "_debug",
        "_door",
        "_following",
        "_owed",
        "_peeked",
        "_questions",
        "_reserved",
        "body",
        "client_send",
        "cookie_key",
        "forwarded_cookies",
        "owner",
        "raw_request",
        "snapshot",
    )

    cookie_key: Hashable
    forwarded_cookies: Any

    _following: Server | None
    _door: Need | None
    _peeked: tuple[bytes, int]  # the beginning of the body, and how much was asked for
    _questions: dict[StoreCommand, StoreQuery]  # what stores have answered on its behalf
    _owed: list[tuple[SharedTable, str, StoreQuery]]  # what stores are to be told
    _reserved: Sequence[Reservation]  # what is the first server's because of it

    # A face sets these, and `status` to 0, by itself: every request does, and an __init__ takes twice the time.
    snapshot: Snapshot  #: the configuration by which this request goes
    owner: Backend  #: the backend that serves it
    body: Body | None  #: set only where it may have to be read again
    raw_request: Message  #: it holds this decision, so until it is over they hold each other
    client_send: Out  #: where answers go

    def set_outer(self, outer: Decision) -> None:
        """There is a middleware around us that has decided something as well."""
        self._outer = outer

    def enable_debug(self) -> None:
        """Have answers say what was decided."""
        self._debug = True
        self.persisted = replace(self.persisted, needs_no_mark=False)

    @property
    def backend(self) -> str:
        return self.snapshot.name

    @property
    def debug(self) -> bool:
        """Whether answers say what was decided."""
        return getattr(self, "_debug", False)

    def first(self, cookie_key: Hashable) -> Server | None:
        """The first candidate: the server that the client belongs to, else one that balance chooses. None: nobody can
        take it.
        """
        backend = self.snapshot
        persistence = backend.persistence
        settled = persistence.fast_path.young.get(cookie_key) if persistence is not None else None
        server: Server | None = None
        if settled is not None:
            server, self.persisted, self.forwarded_cookies = settled
        if server is None or not server.usable:
            self.cookie_key = cookie_key
            self.tried = ()
            return self._recognised()
        if backend.counts_requests:
            self.tried = ()
            return self._placed(server)
        self.tried = server.as_tuple
        server.in_flight.append(None)
        return server

    def _recognised(self) -> Server | None:
        """The first candidate, by what the client says, and what stores say of it."""
        self.forwarded_cookies = None
        self.persisted = NO_PERSISTENCE
        persistence = self.snapshot.persistence
        if persistence is not None:
            try:
                self.persisted = presented = persistence.recognise(self)
            except BodyNeeded as unread:
                self._door = NeedBody(unread.limit, self._recognised)
                return None
            if presented.queries:
                self._door = NeedStores(presented.queries, self._recognised, None)
                return None
            if presented.needs_no_mark and (self.has_writes or self.debug):
                self.persisted = replace(presented, needs_no_mark=False)
            if presented.server is not None and (presented.overrides_claim or presented.claim is _VALID):
                return self._placed(presented.server)
        return self._chosen()

    def next(self) -> Server | None:
        """After a failure: the next candidate. None: the request may not be told again, or nobody is left; or, if there
        is a `wait`, not yet.
        """
        following: Server | None = getattr(self, "_following", None)
        if following is not None:
            self._following = None
            return following
        failure = self.failures[-1]
        may = self._may_be_told_again if failure.maybe_executed else not self._forgotten
        return self._again(failure) if may and self.snapshot.retries.after(failure) else None

    @property
    def src(self) -> str:
        trusted = self.snapshot.trusted_proxies
        peer = self.peer
        return (trusted.find_client(peer, self.header("x-forwarded-for")) or "") if trusted else peer

    def peek(self, limit: int) -> bytes:
        peeked, asked = getattr(self, "_peeked", (b"", -1))
        if asked < limit:
            raise BodyNeeded(limit)
        return peeked[:limit]

    def peeked(self, beginning: bytes) -> Server | None:
        """The body begins so, as far as the `wait` asked for it: the next candidate. None as with `next`."""
        door = self._door
        assert isinstance(door, NeedBody)
        self._door = None
        self._peeked = beginning, door.limit
        return door.then()

    def store_query(self, ask: StoreCommand) -> StoreQuery | None:
        questions: dict[StoreCommand, StoreQuery] = getattr(self, "_questions", {})
        return questions.get(ask)

    def queue_write(self, table: SharedTable, key: str, ask: StoreCommand) -> None:
        owed: list[tuple[SharedTable, str, StoreQuery]] = getattr(self, "_owed", [])
        self._owed = owed
        owed.append((table, key, table.query(ask)))

    @property
    def has_writes(self) -> bool:
        """Whether stores are to be told something."""
        return bool(getattr(self, "_owed", ()))

    @property
    def pending_writes(self) -> Sequence[StoreCommand]:
        """What stores are to be told now, before the client hears more; `paid` when that is done."""
        return [query.command for _, _, query in getattr(self, "_owed", ())]

    def writes_done(self, answers: Sequence[object]) -> None:
        """Stores were told what they were `owed`, and this is what they said."""
        owed, self._owed = self._owed, []
        now = self.snapshot.clock.monotonic()
        for (table, key, question), answer in zip(owed, answers, strict=True):
            question.reply = answer
            table.on_written(key, question, now)

    def stores_replied(self, answers: Sequence[object]) -> Server | None:
        """Stores have answered what the `wait` asked: the next candidate. None as with `next`."""
        door = self._door
        assert isinstance(door, NeedStores)
        self._door = None
        questions: dict[StoreCommand, StoreQuery] = getattr(self, "_questions", {})
        self._questions = questions
        for question, answer in zip(door.queries, answers, strict=True):
            question.reply = answer
            questions[question.command] = question
            if isinstance(answer, StoreFailure) and question.command.store.on_store_failure == "fail":
                if door.server is not None:
                    self._give_back(door.server)
                return None
        return door.then()

    @property
    def reread(self) -> Body | None:
        """The reader of its body, where it may have to be read again."""
        return getattr(self, "body", None)

    @property
    def replayable(self) -> bool:
        body = self.reread
        return body is None or body.replayable

    @property
    def _forgotten(self) -> bool:
        body = self.reread
        return body is not None and body.discarded

    @property
    def _may_be_told_again(self) -> bool:
        """Whether it does no harm if two servers execute it."""
        if not self.replayable:
            return False
        return self.method in IDEMPOTENT or (
            self.snapshot.config.idempotency_key and any(self.header("idempotency-key"))
        )

    def _again(self, failure: Failure) -> Server | None:
        backend = self.snapshot
        retry = len(self.failures)
        if retry > backend.retries.retries:
            return None
        last = self.tried[-1]
        if not self._moves(retry):
            # whatever was answered shows that nobody needs a pause, and an app in this process never does
            if not failure.maybe_executed and isinstance(last.config.target, str):
                pause = min(LONGEST_PAUSE, backend.config.timeouts.in_seconds.connect)
                self._door = NeedSlot(backend.clock.monotonic() + pause, None, last)
                return None
            return self._placed(last)
        self._mark_redispatched(Reason.FAILED)
        return self._chosen()

    def _mark_redispatched(self, reason: Reason) -> None:
        """The client, if it had a server, has to be content with another one."""
        if self.persisted.claim is _VALID:
            self.persisted = replace(self.persisted, claim=Claim.DOWN, reason=reason, needs_no_mark=False)
        elif self.persisted.overrides_claim:
            self.persisted = replace(self.persisted, overrides_claim=False)

    def _moves(self, retry: int) -> bool:
        """Whether the `retry`th is to go to another server."""
        retries = self.snapshot.retries
        if self.persisted.is_forced:
            return False
        if retries.elsewhere(retry):
            return True
        # HAProxy does not wait for the turn that its option names if the client belongs nowhere, or the server is gone
        return bool(retries.redispatch) and (not self.tried[-1].usable or (retry == 1 and not self.persisted.is_bound))

    @property
    def wait(self) -> Need | None:
        """Why there is no candidate yet, if there may be one. To be ended by `resume`, `peeked`, `answered` or
        `abandon`.
        """
        return getattr(self, "_door", None)

    def resume(self, woken: bool) -> Server | None:
        """The wait is over, because somebody has woken us, or nobody has in time: the next candidate. None as with
        `next`.
        """
        wait = self._door
        assert isinstance(wait, NeedSlot)
        self._door = None
        if wait.ticket is None:
            assert wait.server is not None
            if wait.server.usable or not self.snapshot.retries.redispatch:
                return self._placed(wait.server)
            self._mark_redispatched(Reason.FAILED)
            return self._chosen()
        server = self.owner.placement.redeem(wait.ticket)
        if server is not None:
            return self._seated(server, wait.server)
        if not woken:
            return None
        untried = not self.tried  # else it is counted at who was tried last
        self._mark_redispatched(Reason.DOWN)
        server = self._chosen(wait.until)
        if untried and wait.server is not None and (server is not None or self.wait is not None):
            wait.server.counters.cell[Total.WREDIS] += 1
        return server

    @property
    def finished(self) -> bool:
        """Whether nobody has anything to do with it any more."""
        return not hasattr(self, "raw_request")

    def abandon(self) -> None:
        """The client has left in the middle of a wait, and the transaction is over."""
        self._stop_waiting()
        self._unanswered = True
        self._cancel_reservations()
        self._depart()

    def _stop_waiting(self) -> None:
        """It is in no queue any more, and has no place that was granted in this moment."""
        door = self.wait
        self._door = None
        server: Server | None = None
        if isinstance(door, NeedSlot) and door.ticket is not None:
            server = self.owner.placement.redeem(door.ticket)
        elif isinstance(door, NeedStores):
            server = door.server
        if server is not None:
            self._give_back(server)

    def _give_back(self, server: Server) -> None:
        """A place that nobody takes."""
        owner = self.owner
        if owner.counts_requests:
            owner.placement.release(server)
        else:
            server.in_flight.pop()

    def _chosen(self, until: float | None = None) -> Server | None:
        backend = self.snapshot
        if backend.unavailable == "fail" and self.persisted.claim is Claim.DOWN:
            if self.persisted.reason is not Reason.DRAINED:  # that one was asked to let its clients go
                return None  # the client is rather sent away than to another server than its own
        try:
            if self.owner.counts_requests:
                return self._placed(None, until)
            server = self.owner.placement.choose(backend, self, self.tried)
        except BodyNeeded as unread:
            self._door = NeedBody(unread.limit, lambda: self._chosen(until))
            return None
        if server is None:
            return None
        server.in_flight.append(None)
        return self._seated(server, None)

    def _placed(self, bound: Server | None, until: float | None = None) -> Server | None:
        """A place at `bound`, or at a server that is chosen; perhaps not yet."""
        backend = self.snapshot
        if not self.owner.counts_requests and bound is not None:
            bound.in_flight.append(None)
            return self._seated(bound, bound)
        placed = self.owner.placement.acquire_or_enqueue(backend, self, bound, self.tried)
        if isinstance(placed, Ticket):
            if until is None:
                until = backend.clock.monotonic() + backend.config.timeouts.in_seconds.queue
            self._door = NeedSlot(until, placed, bound)
            return None
        return self._seated(placed, bound) if placed is not None else None

    def _seated(self, server: Server, bound: Server | None) -> Server | None:
        """It has a place at `server`, be it the one that it is `bound` to or another."""
        if self.persisted.reservations and not self.tried:
            return self._reserving(server, bound)
        if server is not bound:
            server.counters.cell[Total.LBTOT] += 1
            if bound is not None:
                self._mark_redispatched(Reason.FULL)
        if self.tried:
            last = self.tried[-1]
            last.counters.cell[Total.WRETR if server is last else Total.WREDIS] += 1
        elif bound is not None and server is not bound:
            bound.counters.cell[Total.WREDIS] += 1
        self.tried += server.as_tuple
        return server

    def _reserving(self, server: Server, bound: Server | None) -> Server | None:
        """Its client is to be `server`'s, unless another request of the same client has been quicker."""
        questions = [(each, each.query(server)) for each in self.persisted.reservations]

        def agreed() -> Server | None:
            reserves = self.persisted.reservations
            self._reserved = reserves
            self.persisted = replace(self.persisted, reservations=())
            for each, question in questions:
                winner = each.confirm(server, question)
                if winner is not None and winner is not server:
                    self._give_back(server)
                    self.persisted = replace(
                        self.persisted, claim=Claim.VALID, reason=Reason.BOUND, server=winner, needs_no_mark=False
                    )
                    return self._placed(winner)
            return self._seated(server, bound)

        asked = tuple(question for _, question in questions if question is not None)
        if not asked:
            return agreed()
        self._door = NeedStores(asked, agreed, server)
        return None

    def hold_response(self, status: int) -> bool:
        """An answer of this status has come: whether it is held back, because another server will be asked instead.
        That server is reserved now, so that an answer passes if nobody else is free.
        """
        backend = self.snapshot
        if status not in backend.retries.statuses or not self._may_be_told_again:
            return False
        before = self.failures, self.persisted
        self._failures = (*self.failures, Failure.RETRIED_STATUS)
        server = self._again(Failure.RETRIED_STATUS)
        if server is None:
            self._stop_waiting()  # nobody is free now: what we have is better than to wait
            self._failures, self.persisted = before
            return False
        self._following = server
        return True

    @property
    def holds_response(self) -> bool:
        """Whether an answer is held back, and another server is asked next."""
        return getattr(self, "_following", None) is not None

    def ended(self) -> None:
        """It is over; if that came between an answer that was held back and the next attempt, nobody makes that."""
        following = getattr(self, "_following", None)
        if following is not None:
            self._following = None
            self.tried = self.tried[:-1]
            self._give_back(following)

    def stamp(self, reply: ResponseHead) -> None:
        """Make the head of an answer what the client should see, marked with the server that answers.

        There is nothing to do if `presented` is settled and the answer sets no cookies. Called again if the app takes
        its head back (PEP 3333, `exc_info`).
        """
        persistence = self.snapshot.persistence
        if persistence is not None:
            presented = self.persisted
            self._mark = persistence.stamp_response(presented, self.tried[-1], presented.is_bound, self, reply)
        if self.debug:
            reply.add(DEBUG_HEADER, str(self))

    def record_failure(self, failure: Failure) -> Failure:
        """The server, not the app in it, failed: how, as it is to be told on. Behind the head of an answer it has cut
        that short, however it says so.
        """
        if self.holds_response:
            return failure  # it was given up already
        if self.status:
            failure = Failure.TRUNCATED
        self._failures = (*self.failures, failure)
        if failure is not Failure.NOT_FORWARDABLE:
            self.tried[-1].counters.cell[Total.ERESP if failure.maybe_executed else Total.ECON] += 1
        return failure

    def client_disconnected(self) -> None:
        """The client has left before the end: no fault of the server's."""
        if not self.holds_response:  # else it was we who left
            self.tried[-1].counters.cell[Total.CLI_ABRT] += 1

    def app_raised(self) -> bool:
        """An exception came out of the app. It is the app's: counted here, and to be raised as it is, unless its answer
        had been held back and another server is asked.
        """
        if self.holds_response:
            return False
        self.tried[-1].counters.cell[Total.ERESP] += 1
        return True

    def release(self, server: Server, over: bool) -> None:
        """The server has let the request go: once per server that `first` and `next` have named. `over`: so has the
        transaction.
        """
        server.counters.cell[self.status // 100] += 1
        owner = self.owner
        if owner.counts_requests:
            owner.placement.release(server)
        else:
            server.in_flight.pop()
        if over:
            # `_depart` once more, in line: every request passes here, and a call is a fiftieth of what it costs
            del self.raw_request, self.client_send
            self.body = None
            log = owner.log
            if log is not None:
                log(self)

    def unavailable_response(self) -> ErrorPage:
        """What the client is told when nobody answers. The transaction is over with it, but for what it is still
        `owed`.
        """
        self._unanswered = True
        self._cancel_reservations()
        answer = self._page()
        self.status = answer.status
        if self.debug:
            answer.headers.append((DEBUG_HEADER, str(self)))
        self._depart()
        return answer

    def _cancel_reservations(self) -> None:
        """What was reserved is nobody's again."""
        for reservation in getattr(self, "_reserved", ()):
            reservation.cancel(self)

    def _page(self) -> ErrorPage:
        """What that is."""
        return error_page(self.failures[-1].status if self.failures else 503)

    def _depart(self) -> None:
        """Let go of what holds us, so that no cycle is left behind, and tell whoever wants to know."""
        del self.raw_request, self.client_send
        self.body = None
        log = self.snapshot.log
        if log is not None:
            log(self)


class Reporting(Transaction[Message, Out]):
    """A transaction that reports how it turned out at each server. Faces put it before their own where that is of
    interest, so that nobody else pays for it.
    """

    __slots__ = ("_asked", "_reported")

    def first(self, cookie_key: Hashable) -> Server | None:
        return self._asks(super().first(cookie_key))

    def next(self) -> Server | None:
        return self._asks(super().next())

    def resume(self, woken: bool) -> Server | None:
        return self._asks(super().resume(woken))

    def peeked(self, beginning: bytes) -> Server | None:
        return self._asks(super().peeked(beginning))

    def stores_replied(self, answers: Sequence[object]) -> Server | None:
        return self._asks(super().stores_replied(answers))

    def _asks(self, server: Server | None) -> Server | None:
        self._asked = self.snapshot.clock.monotonic()
        return server

    def _report(self, failure: Failure | None, status: int) -> None:
        self._reported = len(self.tried)
        self._served(self.tried[-1], failure, status)

    def _served(self, server: Server, failure: Failure | None, status: int) -> None:
        owner = self.owner
        owner.monitor.record_request(server, failure, status, owner.clock.monotonic() - self._asked)

    def record_failure(self, failure: Failure) -> Failure:
        blames = failure.is_server_fault
        failure = super().record_failure(failure)
        if blames and not self.holds_response:
            self._report(failure, 0)
        return failure

    def app_raised(self) -> bool:
        broke = super().app_raised()
        if broke:
            self._report(None, 500)
        return broke

    def hold_response(self, status: int) -> bool:
        server, told = self.tried[-1], len(self.tried)
        spared = super().hold_response(status)
        if spared:
            self._reported = told
            self._served(server, None, status)
        return spared

    def release(self, server: Server, over: bool) -> None:
        status = self.status
        if status and getattr(self, "_reported", 0) < len(self.tried) and server is self.tried[-1]:
            self._reported = len(self.tried)
            self._served(server, None, status)
        super().release(server, over)
