"""Queue: requests that wait for a slot at a server that has reached its `maxconn`. The one that has waited longest is
next.

A request that is bound to a server waits for that one; a request that is not waits for whichever server has a free slot
first (HAProxy's server queues and backend queue). Called under the backend's lock; requests are woken outside of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from itertools import count

from sticky_core.server.server import Server

_numbers = count()


class Ticket:
    """The place of one request in a queue. It leaves the queue when it is granted a slot, when its request is to choose
    another server, or when its request stops waiting.

    - `server`: the server that it waits for; None: whichever has a free slot first.
    - `tried`: servers that it does not wait for.
    - `candidates`: the servers of the request's snapshot; it waits for no others. None: it may wait for all.
    """

    __slots__ = ("candidates", "granted", "has_left", "number", "server", "tried", "wake")

    def __init__(
        self, server: Server | None, tried: Container[Server], candidates: Container[Server] | None = None
    ) -> None:
        self.server = server
        self.tried = tried
        self.candidates = candidates
        self.number = next(_numbers)
        #: the server at which it was granted a slot
        self.granted: Server | None = None
        #: whether it has left the queue
        self.has_left = False
        #: Wakes the request, from any thread. Returns False if the request has ended.
        self.wake: Callable[[], bool] | None = None

    def accepts(self, server: Server) -> bool:
        """Return whether the request can use a slot at `server`. For tickets without a `server`."""
        return server not in self.tried and (self.candidates is None or server in self.candidates)


_Tickets = OrderedDict[Ticket, None]


class Queue:
    """The queues of one backend: one per server, and one for whichever server has a free slot first."""

    def __init__(self) -> None:
        self._for_any_server: _Tickets = OrderedDict()
        self._by_server: dict[Server, _Tickets] = {}

    def waiting_for(self, server: Server) -> int:
        """Return how many requests wait for `server` and no other (HAProxy `qcur`)."""
        tickets = self._by_server.get(server)
        return len(tickets) if tickets else 0

    @property
    def waiting(self) -> int:
        """How many requests wait for whichever server has a free slot first."""
        return len(self._for_any_server)

    @property
    def total(self) -> int:
        """How many requests wait at all."""
        return self.waiting + sum(map(len, self._by_server.values()))

    def join(self, ticket: Ticket) -> None:
        """Put a ticket at the end of its queue."""
        self._tickets(ticket)[ticket] = None

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket out of its queue, if it is still there."""
        if not ticket.has_left:
            ticket.has_left = True
            del self._tickets(ticket)[ticket]

    def _tickets(self, ticket: Ticket) -> _Tickets:
        if ticket.server is None:
            return self._for_any_server
        return self._by_server.setdefault(ticket.server, OrderedDict())

    def pop(self, server: Server) -> Ticket | None:
        """Take out the ticket that has waited longest of those that accept a slot at `server`."""
        bound = next(iter(self._by_server.get(server, ())), None)
        unbound: Ticket | None = None
        if server.electable and not server.config.backup:  # requests that wait for other servers do not use backups
            unbound = next((ticket for ticket in self._for_any_server if ticket.accepts(server)), None)
        ticket = bound
        if unbound is not None and (bound is None or unbound.number < bound.number):
            ticket = unbound
        if ticket is not None:
            self.leave(ticket)
        return ticket

    def dismiss(self, server: Server) -> list[Ticket]:
        """Take out and return the tickets that wait for `server`: their requests are to choose another one."""
        tickets = list(self._by_server.get(server, ()))
        for ticket in tickets:
            self.leave(ticket)
        return tickets

    def dismiss_unservable(self, servers: Sequence[Server]) -> list[Ticket]:
        """Take out and return the unbound tickets that accept none of `servers`, which are all for which they could
        wait: their requests are to choose anew.
        """
        tickets = [ticket for ticket in self._for_any_server if not any(map(ticket.accepts, servers))]
        for ticket in tickets:
            self.leave(ticket)
        return tickets

    def forget(self, server: Server) -> None:
        """Drop the queue of `server`, which was removed, unless a request waits in it."""
        if not self._by_server.get(server):
            self._by_server.pop(server, None)
