"""What was decided about one request: for the app, for logs, for tests."""

from __future__ import annotations

from sticky_core.errors import Failure
from sticky_core.persistence.claim import Claim, Mark, Reason


class Decision:
    """Which server has a request, and why. It fills up while the request is in flight; the app sees what was decided so
    far.

    It may be kept: it holds nothing of the request and of the backend, only names, numbers and words from closed lists.
    """

    __slots__ = (
        "attempts",
        "backend",
        "claim",
        "claimed",
        "failures",
        "has_no_response",
        "mark",
        "outer",
        "reason",
        "status",
    )

    # A transaction sets all of these by itself: every request does, and an __init__ takes twice the time.
    backend: str  #: the name of the backend
    attempts: tuple[str, ...]  #: the names of the servers that were tried, in order
    failures: tuple[Failure, ...]  #: how the attempts failed that brought no response, in order
    claim: Claim  #: how the client's claim turned out
    reason: Reason  #: why the claim turned out so
    claimed: str | None  #: the name of the server that the client claims, if it is one of the backend's
    mark: Mark  #: what was written to the client
    status: int  #: the status of the response; 0 until its head is known
    outer: Decision | None  #: the decision of a middleware around this one, if there is one
    has_no_response: bool  #: whether the request ended without a response of a server

    @property
    def server(self) -> str | None:
        """The name of the server that has the request, or has sent the response; None if none could take it."""
        return None if not self.attempts or self.has_no_response else self.attempts[-1]

    @property
    def why(self) -> str:
        """The decision as a sentence."""
        reason = self.reason.value if self.claimed is None else f"{self.claimed}: {self.reason.value}"
        if self.server is None:
            return f"{reason}; no server could take the request"
        return reason if self.claim is Claim.VALID else f"{reason}; balance chose {self.server}"

    def __str__(self) -> str:
        """Return the decision as the debug header has it."""
        attempts = ",".join(self.attempts) or "-"
        server = self.server or "-"
        return f'server={server}; claim={self.claim.name}; attempts={attempts}; mark={self.mark.name}; why="{self.why}"'

    def __repr__(self) -> str:
        return f"<Decision {self.backend}: {self}>"
