"""Transaction: one request on its way through a backend, from server to server until one answers.

A face asks for the `first` server, calls its app, and asks for the `next` only if that server failed. It tells the
transaction what went wrong (`failed`, `broke`) and that the server has let the request go (`leave`, once per server,
whatever happened), and has the head of the answer stamped as it comes past (`stamp`), or asks for a page of ours
(`unanswered`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sticky_core.claim import NO_PERSISTENCE, Claim, Reason
from sticky_core.counters import Total
from sticky_core.decision import Decision
from sticky_core.errors import Failure
from sticky_core.page import Page, page
from sticky_core.request import Reply, Request
from sticky_core.server import Server

if TYPE_CHECKING:
    from sticky_core.backend import Backend

#: the response header that `debug=True` adds
DEBUG_HEADER = "x-sticky"

# Asking an Enum for its member costs as much as a few dict look-ups, and every request would.
_VALID = Claim.VALID

Message = TypeVar("Message")  # a scope, an environ
Out = TypeVar("Out")  # `send`, `start_response`


class Transaction(Decision, Request, Generic[Message, Out]):
    """One request on its way, and its own decision: what a face hands to the app and to logs.

    Each face adds what it takes to be the `Request`, and what the server's app answers into.
    """

    __slots__ = ("_debug", "cookie_key", "kept", "message", "out", "through")

    cookie_key: Hashable
    kept: Any

    # A face sets these three, and `status` to 0, by itself: every request does, and an __init__ takes twice the time.
    through: Backend
    message: Message  #: it holds this decision, so until it is over they hold each other
    out: Out  #: where answers go

    def enclosed(self, outer: Decision) -> None:
        """There is a middleware around us that has decided something as well."""
        self._outer = outer

    def tell(self) -> None:
        """Have answers say what was decided."""
        self._debug = True
        self.presented = replace(self.presented, settled=False)

    @property
    def backend(self) -> str:
        return self.through.name

    @property
    def debug(self) -> bool:
        """Whether answers say what was decided."""
        return getattr(self, "_debug", False)

    def first(self, cookie_key: Hashable) -> Server | None:
        """The first candidate: the server that the client belongs to, else one that balance chooses. None: nobody can
        take it.
        """
        backend = self.through
        persistence = backend.persistence
        settled = persistence.settled.young.get(cookie_key) if persistence is not None else None
        server: Server | None = None
        if settled is not None:
            server, self.presented, self.kept = settled
        if server is None or not server.usable:
            self.cookie_key = cookie_key
            self.kept = None
            self.tried = ()
            self.presented = presented = NO_PERSISTENCE if persistence is None else persistence.recognise(self)
            if presented.claim is not _VALID or presented.server is None:
                return self._chosen()
            server = presented.server
        self.tried = server.only
        server.in_flight.append(None)
        if backend.counts:
            backend.taken(server)
        return server

    def next(self) -> Server | None:
        """After a failure: the next candidate. None: the request may not be told again, or nobody is left."""
        if self.failures[-1].executed:
            return None
        if self.presented.claim is Claim.VALID:
            self.presented = replace(self.presented, claim=Claim.DOWN, reason=Reason.FAILED, settled=False)
        if len(self.failures) > self.through.retries:
            return None
        last = self.tried[-1]
        server = self._chosen()
        if server is not None:
            last.counters.cell[Total.WREDIS] += 1
        return server

    def _chosen(self) -> Server | None:
        backend = self.through
        if backend.unavailable == "fail" and self.presented.claim is Claim.DOWN:
            return None  # the client is rather sent away than to another server than its own
        server = backend.choose(self, self.tried)
        if server is not None:
            self.tried += server.only
            server.in_flight.append(None)
            server.counters.cell[Total.LBTOT] += 1
            if backend.counts:
                backend.taken(server)
        return server

    def stamp(self, reply: Reply) -> None:
        """Make the head of an answer what the client should see, marked with the server that answers.

        There is nothing to do if `presented` is settled and the answer sets no cookies. Called again if the app takes
        its head back (PEP 3333, `exc_info`).
        """
        persistence = self.through.persistence
        if persistence is not None:
            direct = self.presented.claim is _VALID
            self._mark = persistence.mark(self.presented, self.tried[-1], direct, self, reply)
        if self.debug:
            reply.add(DEBUG_HEADER, str(self))

    def failed(self, failure: Failure) -> Failure:
        """The server, not the app in it, failed: how, as it is to be told on. Behind the head of an answer it has cut
        that short, however it says so.
        """
        if self.status:
            failure = Failure.TRUNCATED
        self._failures = (*self.failures, failure)
        self.tried[-1].counters.cell[Total.ERESP if failure.executed else Total.ECON] += 1
        return failure

    def broke(self) -> None:
        """An exception came out of the app. It is the app's: counted here, raised as it is."""
        self.tried[-1].counters.cell[Total.ERESP] += 1

    def leave(self, server: Server, over: bool) -> None:
        """The server has let the request go: once per server that `first` and `next` have named. `over`: so has the
        transaction.
        """
        server.in_flight.pop()
        server.counters.cell[self.status // 100] += 1
        backend = self.through
        if backend.counts:
            backend.left(server)
        if over:
            # `_depart` once more, in line: every request passes here, and a call is a fiftieth of what it costs
            del self.message, self.out
            log = backend.log
            if log is not None:
                log(self)

    def unanswered(self) -> Page:
        """What the client is told when nobody answers. The transaction is over with it."""
        self._unanswered = True
        answer = page(self.failures[-1].status if self.failures else 503)
        self.status = answer.status
        if self.debug:
            answer.headers.append((DEBUG_HEADER, str(self)))
        self._depart()
        return answer

    def _depart(self) -> None:
        """Let go of what holds us, so that no cycle is left behind, and tell whoever wants to know."""
        del self.message, self.out
        log = self.through.log
        if log is not None:
            log(self)
