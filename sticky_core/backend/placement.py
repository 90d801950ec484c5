"""Placement: the one place that decides which server gets a request, and which request gets a slot that is free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from math import inf

from sticky_core.backend.deadlines import Deadlines
from sticky_core.backend.queue import Queue, Ticket
from sticky_core.backend.snapshot import Snapshot
from sticky_core.backend.state import BackendState
from sticky_core.balance.hash_preserve_affinity import Affinity
from sticky_core.http.messages import Request
from sticky_core.server.server import Server


def _run_no_timers() -> None:
    """Do nothing: there is no monitor yet."""


class Placement:
    """Chooses servers, counts requests in flight, and lets requests wait for a slot where `maxconn` is reached.

    A request passes the snapshot that it began with, which may not be in force any more: it chooses among those
    servers, by that balance. Requests in flight are counted for the snapshot in force, whichever a request began with.
    """

    def __init__(self, backend: BackendState) -> None:
        self._backend = backend
        #: Guards balance, the queue and the states of servers. A bound request acquires it only if requests are
        #: counted.
        self.lock = threading.Lock()
        #: requests that wait for a slot
        self.queue = Queue()
        self.deadlines = Deadlines()
        #: set by `Monitor`
        self.run_due_timers: Callable[[], None] = _run_no_timers
        #: Called after each release while servers that were removed still have requests in flight. Set by
        #: `Reconfigure`.
        self.on_release: Callable[[], None] | None = None

    # Choose

    def choose(self, snapshot: Snapshot, request: Request, tried: Container[Server]) -> Server | None:
        """Return a server for a request that is not bound to one: the server that balance chooses, else the first
        backup that is usable, else a server that drains or has weight 0. None: no server can take it.

        `tried`: servers that are not chosen.
        """
        if self.deadlines.next < inf:
            self.run_due_timers()
        with self.lock:
            is_in_force = snapshot is self._backend.snapshot
            avoid = tried if is_in_force else self._avoided_by_earlier(snapshot, tried)
            balancing = snapshot.balancing
            try:  # `Balancing.choose` in line: every new client passes here
                server = balancing.algorithm.choose(request, avoid)
            except Exception as error:
                server = balancing.choose_after_failure(error, balancing.active, request, avoid)
            return server if server is not None else self._choose_fallback(snapshot, request, avoid)

    def _avoided_by_earlier(self, snapshot: Snapshot, tried: Container[Server]) -> Container[Server]:
        """Return the servers to avoid for a request of a snapshot that is no longer in force. Its balancing may have
        gone on with other servers: then those that `snapshot` does not have are avoided as well. Else it is notified of
        the present states.
        """
        if snapshot.balancing is not self._backend.snapshot.balancing:
            snapshot.refresh()
        return _TriedOrForeign(tried, snapshot.members)

    def _choose_fallback(self, snapshot: Snapshot, request: Request, tried: Container[Server]) -> Server | None:
        """Return a server if balance has none: a backup, or one that drains or has weight 0."""
        balancing = snapshot.balancing
        server = balancing.choose_backup(request, tried)
        if server is not None:
            return server
        # HAProxy responds 503 here; a server that drains is still better than none
        return balancing.choose_last_resort(request, tried)

    def acquire_or_enqueue(
        self, snapshot: Snapshot, request: Request, bound: Server | None, tried: tuple[Server, ...]
    ) -> Server | Ticket | None:
        """Acquire a slot for a request, where requests are counted: at the server that it is `bound` to, else at a
        server that is chosen. If every server that could take it has reached its `maxconn`, return a ticket of the
        queue. None: no server can take it, or too many requests wait already (`maxqueue`).

        `tried`: servers that are not chosen.
        """
        if self.deadlines.next < inf:
            self.run_due_timers()
        with self.lock:
            is_in_force = snapshot is self._backend.snapshot
            avoid = tried if is_in_force else self._avoided_by_earlier(snapshot, tried)
            if bound is not None:
                placed = self._acquire_or_enqueue_at(bound, snapshot, tried)
                if placed is not None or not snapshot.retries.redispatch or snapshot.unavailable == "fail":
                    return placed
                tried_or_bound = tried + bound.as_tuple
                avoid = tried_or_bound if is_in_force else _TriedOrForeign(tried_or_bound, snapshot.members)
            balancing = snapshot.balancing
            affinity = balancing.algorithm.preserve_affinity
            server = balancing.choose(
                request, avoid if affinity == "always" else _TriedOrFull(avoid, self.queue, affinity)
            )
            if server is not None:
                return self._acquire_or_enqueue_at(server, snapshot, tried)
            # if a server only lacks a free slot, the request waits for it: backups are not used
            full = [server for server in balancing.active if server.electable and server not in avoid]
            if full:
                max_waiting = sum(server.config.maxqueue for server in full)
                if all(server.config.maxqueue for server in full) and self.queue.waiting >= max_waiting:
                    return None
                return self.enqueue(Ticket(None, tried, snapshot.members))
            server = self._choose_fallback(snapshot, request, _TriedOrFull(avoid, self.queue, "maxconn"))
            if server is None:
                server = self._choose_fallback(snapshot, request, avoid)
            return self._acquire_or_enqueue_at(server, snapshot, tried) if server is not None else None

    def _acquire_or_enqueue_at(
        self, server: Server, snapshot: Snapshot, tried: tuple[Server, ...]
    ) -> Server | Ticket | None:
        """Acquire a slot at `server`, or return a ticket of its queue; None if that is full (`maxqueue`)."""
        waiting = self.queue.waiting_for(server)
        if not server.limit or not (server.is_full or waiting):
            return self._acquire(server)
        if server.config.maxqueue and waiting >= server.config.maxqueue:
            return None
        return self.enqueue(Ticket(server, tried, snapshot.members))

    def count_requests(self) -> int:
        """Return how many requests are in flight at the servers in force, and how many wait in their queues. This looks
        at every server, and each changes meanwhile: it is for a decision about shares.
        """
        snapshot = self._backend.snapshot
        requests = sum(len(server.in_flight) for server in snapshot.servers)
        if snapshot.counts_requests:  # else there are no queues
            with self.lock:
                requests += self.queue.total
        return requests

    # Acquire and release slots

    def acquire(self, server: Server) -> None:
        """Count one more request in flight at `server`. Called only if requests are counted."""
        with self.lock:
            self._acquire(server)

    def _acquire(self, server: Server) -> Server:
        server.in_flight.append(None)
        self._backend.snapshot.balancing.acquired(server)
        return server

    def release(self, server: Server) -> None:
        """Count one request fewer in flight at `server`, and grant its slot to a request that waits. Called if
        `Server.counts_requests`; else a request removes itself from `Server.in_flight`.
        """
        with self.lock:
            granted = self._release(server)
        self.wake(granted)
        on_release = self.on_release  # read once: another thread may unset it
        if on_release is not None:
            on_release()

    def _release(self, server: Server) -> list[Ticket]:
        server.in_flight.pop()
        self._backend.snapshot.balancing.released(server)
        return self.grant(server) if server.limit else []

    # Wait for a slot

    def enqueue(self, ticket: Ticket) -> Ticket:
        """Put a ticket into the queue. Under the lock."""
        self.queue.join(ticket)
        return ticket

    def subscribe(self, ticket: Ticket, wake: Callable[[], bool]) -> bool:
        """Call `wake` when `ticket` leaves the queue. Return False, without calling it, if it has left already."""
        with self.lock:
            if ticket.has_left:
                return False
            ticket.wake = wake
            return True

    def redeem(self, ticket: Ticket) -> Server | None:
        """Take a ticket out of the queue. Return the server at which it was granted a slot, or None."""
        with self.lock:
            self.queue.leave(ticket)
            return ticket.granted

    def grant(self, server: Server) -> list[Ticket]:
        """Grant the free slots of `server` to the requests that have waited longest. Under the lock. Return their
        tickets, for `wake`.
        """
        granted: list[Ticket] = []
        while server.usable and not server.is_full:
            ticket = self.queue.pop(server)
            if ticket is None:
                break
            ticket.granted = self._acquire(server)
            granted.append(ticket)
        return granted

    def wake(self, tickets: list[Ticket]) -> None:
        """Notify the requests of these tickets that they have left the queue. A slot granted to a request that has
        ended meanwhile is granted to the next one. Called without the lock.
        """
        while tickets:
            again: list[Ticket] = []
            for ticket in tickets:
                # None: the request has not subscribed yet, and will see that its ticket has left the queue
                if ticket.wake is not None and not ticket.wake() and ticket.granted is not None:
                    again += self._release_granted(ticket)
            tickets = again

    def _release_granted(self, ticket: Ticket) -> list[Ticket]:
        server = ticket.granted
        assert server is not None
        with self.lock:
            ticket.granted = None
            return self._release(server)

    # A server changes

    def state_changed(self, server: Server) -> list[Ticket]:
        """Notify balance and persistence that `server` is in another state, and grant its free slots. Under the lock.
        Return the tickets that have left the queue, for `wake`: those granted a slot, and those for which no server is
        left.
        """
        snapshot = self._backend.snapshot
        snapshot.state_changed(server)
        woken = self.grant(server)
        if not server.usable:
            # HAProxy redispatches requests that wait for a server in MAINT always, and else only with `redispatch`
            if snapshot.retries.redispatch or server.in_maint:
                woken += self.queue.dismiss(server)
        if not server.electable and self.queue.waiting:
            woken += self.queue.dismiss_unservable([each for each in snapshot.balancing.active if each.electable])
        return woken

    def after_fork(self) -> None:
        """Renew the lock and the queue in a forked child: the requests are the parent's."""
        self.lock = threading.Lock()
        self.queue = Queue()
        self.on_release = None
        for server in self._backend.snapshot.servers:
            server.counters.renew_lock()
            server.in_flight.clear()
            server.draining.after_fork()
        self._backend.snapshot.balancing.after_fork()


class _TriedOrForeign:
    """Servers that are not chosen for a request of an earlier snapshot: those that were tried, and those that this
    snapshot does not have.
    """

    __slots__ = ("_members", "_tried")

    def __init__(self, tried: Container[Server], members: Container[Server]) -> None:
        self._tried = tried
        self._members = members

    def __contains__(self, server: object) -> bool:
        return isinstance(server, Server) and (server in self._tried or server not in self._members)


class _TriedOrFull:
    """Servers that are not chosen now: those that were tried, and those that have reached `maxconn` or have a queue."""

    __slots__ = ("_affinity", "_queue", "_tried")

    def __init__(self, tried: Container[Server], queue: Queue, affinity: Affinity) -> None:
        self._tried = tried
        self._queue = queue
        self._affinity = affinity

    def __contains__(self, server: object) -> bool:
        if not isinstance(server, Server):
            return False
        if server in self._tried:
            return True
        if not server.limit:
            return False
        waiting = self._queue.waiting_for(server)
        if self._affinity == "maxqueue":
            return server.is_full and 0 < server.config.maxqueue <= waiting
        return server.is_full or waiting > 0
