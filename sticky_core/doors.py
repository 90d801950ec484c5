"""Doors: what a transaction may have to wait for before it knows its next server. Faces open them, and hand in what
they found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sticky_core.queue import Ticket
from sticky_core.request import Request
from sticky_core.server import Server
from sticky_core.stores import Question

__all__ = ["Asked", "Door", "Peek", "Reservation", "Wait"]


class Wait(NamedTuple):
    """Why there is no candidate yet: it is in a queue, or a server that failed is given a pause."""

    until: float  #: by the backend's monotonic clock
    ticket: Ticket | None  #: None: it is a pause
    server: Server | None  #: where it belongs, or is to be told again


class Peek(NamedTuple):
    """The beginning of the body has to be read."""

    limit: int  #: so many bytes of it
    then: Callable[[], Server | None]  #: who asks


class Asked(NamedTuple):
    """Stores have to be asked."""

    questions: tuple[Question, ...]
    then: Callable[[], Server | None]
    server: Server | None  #: whose place is held meanwhile


Door = Wait | Peek | Asked


class Reservation(Protocol):
    """A key that is to be the first server's that takes its request, so that requests of one client that come together
    agree on one.
    """

    def question(self, server: Server) -> Question | None:
        """What to ask a store so that it is `server`'s; None: nobody has to be asked."""
        ...

    def settle(self, server: Server, question: Question | None) -> Server | None:
        """After that was asked: whose it is; None: nobody's who could take a request."""
        ...

    def give_up(self, request: Request) -> None:
        """No server has answered: it is nobody's again, if it had become the server's."""
        ...
