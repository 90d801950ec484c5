"""Who waits for a place at a server that has its `maxconn`, and who is next: the one who has waited longest.

A request that belongs to a server waits there; one that belongs nowhere waits for whichever server has room first
(HAProxy's server and backend queues). Called under the backend's lock; waiters are woken outside of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from itertools import count

from sticky_core.server.server import Server

_numbers = count()


class Ticket:
    """A place in a queue. It ends by being granted a server, or by being sent on to choose anew, or by giving up.

    `server`: the one that is waited for; None: whichever has room. `tried`: those that it is not waiting for any more.
    `among`: those that there were when it began; who came since is not known where it comes from. None: all are.
    """

    __slots__ = ("among", "granted", "number", "over", "server", "tried", "wake")

    def __init__(self, server: Server | None, tried: Container[Server], among: Container[Server] | None = None) -> None:
        self.server = server
        self.tried = tried
        self.among = among
        self.number = next(_numbers)
        self.granted: Server | None = None
        #: whether it is in no queue any more
        self.over = False
        #: Tells the waiter to look. Thread-safe; False if nobody is there any more.
        self.wake: Callable[[], bool] | None = None

    def would_take(self, server: Server) -> bool:
        """Whether a place at `server` is any use to who waits for whichever has room."""
        return server not in self.tried and (self.among is None or server in self.among)


Line = OrderedDict[Ticket, None]


class Queue:
    """The lines of one backend."""

    def __init__(self) -> None:
        self._anyone: Line = OrderedDict()
        self._of: dict[Server, Line] = {}

    def waiting_for(self, server: Server) -> int:
        """How many wait for `server` and no other (HAProxy `qcur`)."""
        line = self._of.get(server)
        return len(line) if line else 0

    @property
    def waiting(self) -> int:
        """How many wait for whichever server has room first."""
        return len(self._anyone)

    def join(self, ticket: Ticket) -> None:
        line = self._anyone if ticket.server is None else self._of.setdefault(ticket.server, OrderedDict())
        line[ticket] = None

    def leave(self, ticket: Ticket) -> None:
        """It waits no longer, whatever the reason."""
        if not ticket.over:
            ticket.over = True
            line = self._anyone if ticket.server is None else self._of[ticket.server]
            del line[ticket]

    def next(self, server: Server) -> Ticket | None:
        """Who has waited longest of those who would take a place at `server`; out of the line with that."""
        bound = next(iter(self._of.get(server, ())), None)
        anyone: Ticket | None = None
        if server.electable and not server.config.backup:  # who waits for the others is none of a backup's
            anyone = next((ticket for ticket in self._anyone if ticket.would_take(server)), None)
        ticket = bound
        if anyone is not None and (bound is None or anyone.number < bound.number):
            ticket = anyone
        if ticket is not None:
            self.leave(ticket)
        return ticket

    def dismiss(self, server: Server) -> list[Ticket]:
        """`server` can't be waited for any more: those who did are to choose anew."""
        tickets = list(self._of.get(server, ()))
        for ticket in tickets:
            self.leave(ticket)
        return tickets

    def forget(self, server: Server) -> None:
        """Nobody waits for `server` any more, and nobody will."""
        if not self._of.get(server):
            self._of.pop(server, None)

    def dismiss_hopeless(self, could: Sequence[Server]) -> list[Ticket]:
        """Only these can be waited for by who belongs nowhere: whoever waits for none of them is to choose anew."""
        tickets = [ticket for ticket in self._anyone if not any(map(ticket.would_take, could))]
        for ticket in tickets:
            self.leave(ticket)
        return tickets
