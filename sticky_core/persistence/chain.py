"""Several ways to know a client, in the order written: the first that speaks wins."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from sticky_core.cache import TwoGenerationCache
from sticky_core.http.messages import Request, ResponseHead, Unread
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.persistence import Persistence
from sticky_core.server.server import Server


class PersistenceChain:
    """Persistences at work, as one."""

    def __init__(self, persistences: Sequence[Persistence]) -> None:
        self._persistences = persistences
        # each part has its own
        self.fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]] = (
            TwoGenerationCache(0)
        )
        self.max_idle = max(each.max_idle for each in persistences)

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        """What the first says that speaks; if none does, what the first says to whom the client has said anything."""
        parts: list[PersistenceResult] = []
        spoken = telling = None
        for persistence in self._persistences:
            # those that come too late still take their own out of the request
            part = self._part(persistence, request, accept_down, overtaken=spoken is not None)
            if spoken is None:
                if part.is_bound:
                    spoken = part
                elif telling is None and part.claim is not Claim.NONE:
                    telling = part
            parts.append(part)
        settled = spoken is not None and all(_holds(part, spoken.server) for part in parts)
        return replace(
            spoken or telling or parts[0],
            results=tuple(parts),
            needs_no_mark=settled,
            queries=tuple(question for part in parts for question in part.queries),
            reservations=tuple(reserve for part in parts for reserve in part.reservations),
        )

    def _part(
        self, persistence: Persistence, request: Request, accept_down: bool, *, overtaken: bool
    ) -> PersistenceResult:
        if not overtaken:
            return persistence.recognise(request, accept_down=accept_down)
        try:
            part = persistence.recognise(request, accept_down=accept_down)
        except Unread:  # nobody reads a body for what does not count
            return PersistenceResult(Claim.UNUSED, Reason.SUPERSEDED)
        claim, reason = part.claim, part.reason
        if claim is not Claim.NONE:
            claim, reason = Claim.UNUSED, Reason.SUPERSEDED
        return replace(part, claim=claim, reason=reason, queries=(), reservations=())

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        """Each marks for itself; the most telling of what they did."""
        marks = [
            persistence.stamp_response(part, server, direct, request, reply)
            for persistence, part in zip(self._persistences, presented.results, strict=True)
        ]
        return next((mark for mark in marks if mark is not Mark.NONE), Mark.NONE)

    def state_changed(self, server: Server) -> None:
        for persistence in self._persistences:
            persistence.state_changed(server)


def _holds(part: PersistenceResult, server: Server | None) -> bool:
    """Whether it has nothing to say, and nothing to remember, of an answer of `server`'s."""
    if part.persistence_state is None:
        return part.needs_no_mark or part.claim is Claim.NONE
    return part.needs_no_mark and part.server is server
