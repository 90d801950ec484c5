"""Several persistences of one backend, in the order written: the first that binds the request wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sticky_core.http.messages import BodyNeeded, Request, ResponseHead
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.persistence import Persistence, UsedTable, no_fast_path
from sticky_core.server.server import Server


class PersistenceChain:
    """Several persistences as one."""

    def __init__(self, persistences: Sequence[Persistence]) -> None:
        self._persistences = persistences
        self.fast_path = no_fast_path()  # each member has results of its own for the same Cookie header
        self.max_idle = max(each.max_idle for each in persistences)

    @property
    def tables(self) -> Sequence[UsedTable]:
        return [table for each in self._persistences for table in each.tables]

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        """Return the first result that binds the request, else the first with a claim, else the first."""
        results: list[PersistenceResult] = []
        binding = claiming = None
        for persistence in self._persistences:
            if binding is None:
                result = persistence.recognise(request, accept_down=accept_down)
                if result.is_bound:
                    binding = result
                elif claiming is None and result.claim is not Claim.NONE:
                    claiming = result
            else:
                result = _superseded(persistence, request, accept_down)
            results.append(result)
        return replace(
            binding or claiming or results[0],
            results=tuple(results),
            needs_no_mark=binding is not None and all(_needs_no_mark(each, binding.server) for each in results),
            queries=tuple(query for each in results for query in each.queries),
            reservations=tuple(reservation for each in results for reservation in each.reservations),
        )

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        """Stamp the response by each member, and return the first mark that is not NONE."""
        marks = [
            persistence.stamp_response(each, server, is_bound, request, response)
            for persistence, each in zip(self._persistences, result.results, strict=True)
        ]
        return next((mark for mark in marks if mark is not Mark.NONE), Mark.NONE)

    def state_changed(self, server: Server) -> None:
        for persistence in self._persistences:
            persistence.state_changed(server)


def _superseded(persistence: Persistence, request: Request, accept_down: bool) -> PersistenceResult:
    """Return the result of a member after another one has bound the request. The member still removes its cookie from
    the request.
    """
    try:
        result = persistence.recognise(request, accept_down=accept_down)
    except BodyNeeded:  # the body is not read for a result that has no effect
        return PersistenceResult(Claim.UNUSED, Reason.SUPERSEDED)
    if result.claim is Claim.NONE:
        return replace(result, queries=(), reservations=())
    return replace(result, claim=Claim.UNUSED, reason=Reason.SUPERSEDED, queries=(), reservations=())


def _needs_no_mark(result: PersistenceResult, server: Server | None) -> bool:
    """Return whether the member with this result has nothing to write and nothing to store when `server` responds."""
    if result.persistence_state is None:
        return result.needs_no_mark or result.claim is Claim.NONE
    return result.needs_no_mark and result.server is server
