"""What was decided about one request: for the application, for logs, for tests."""

from __future__ import annotations

from sticky_core.errors import Failure
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.server.server import Server


class Decision:
    """Which server has a request, and why. It fills up as the request goes its way; an app that reads it sees the way
    there.

    It may be kept: once the request is over it holds no part of it.
    """

    # Most requests never set those with an underscore, and setting a slot costs as much as reading it.
    __slots__ = ("_failures", "_mark", "_outer", "_unanswered", "persisted", "status", "tried")

    persisted: PersistenceResult  #: what the client said of where it belongs
    tried: tuple[Server, ...]  #: the servers that were tried, in order
    status: int  #: of the answer; 0 until its head is known

    @property
    def failures(self) -> tuple[Failure, ...]:
        """How those of `tried` failed that did not answer."""
        return getattr(self, "_failures", ())

    @property
    def mark(self) -> Mark:
        """What the client was told in return."""
        return getattr(self, "_mark", Mark.NONE)

    @property
    def outer(self) -> Decision | None:
        """The decision of a middleware around this one, if there is any."""
        return getattr(self, "_outer", None)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        raise NotImplementedError

    @property
    def server(self) -> str | None:
        """The name of the server that has the request, or has answered it; None if none could take it."""
        return None if not self.tried or getattr(self, "_unanswered", False) else self.tried[-1].name

    @property
    def attempts(self) -> tuple[str, ...]:
        """The names of the servers that were tried, in order."""
        return tuple(server.name for server in self.tried)

    @property
    def claim(self) -> Claim:
        """How the client's claim turned out."""
        return self.persisted.claim

    @property
    def reason(self) -> Reason:
        """Why it turned out so."""
        return self.persisted.reason

    @property
    def claimed(self) -> str | None:
        """The name of the server that the client had named, if it named one of ours."""
        server = self.persisted.server
        return server.name if server is not None else None

    @property
    def why(self) -> str:
        """The decision as a sentence, for people."""
        said = self.reason.value if self.claimed is None else f"{self.claimed}: {self.reason.value}"
        if self.server is None:
            return f"{said}; no server could take the request"
        return said if self.claim is Claim.VALID else f"{said}; balance chose {self.server}"

    def __str__(self) -> str:
        """As the debug header says it."""
        attempts = ",".join(self.attempts) or "-"
        server = self.server or "-"
        return f'server={server}; claim={self.claim.name}; attempts={attempts}; mark={self.mark.name}; why="{self.why}"'

    def __repr__(self) -> str:
        return f"<Decision {self.backend}: {self}>"
