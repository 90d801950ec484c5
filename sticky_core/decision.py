"""What was decided about one request: for the app, for logs, for tests."""

from __future__ import annotations

from enum import Enum
from typing import Final

from sticky_core.errors import Failure
from sticky_core.persistence.claim import Claim, Mark, Reason


class ClosedBy(Enum):
    """Which side has ended a WebSocket."""

    CLIENT = "client"  #: the client has closed it
    #: the server has closed it, or its app has returned or raised
    SERVER = "server"
    #: The middleware has closed it (its server has drained or was removed, `on_marked_down`, `timeouts.tunnel`, frames
    #: that can't be read, a worker that ends), or the web server that it runs in, at its own end.
    MIDDLEWARE = "middleware"
    LOST_CLIENT = "lost client"  #: the connection to the client was lost, without a close frame
    LOST_SERVER = "lost server"  #: the connection to the server was lost, without a close frame


#: the close code of a WebSocket that has fulfilled its purpose: that of ASGI's `websocket.close` without a code
NORMAL: Final = 1000
#: the close code of a service that restarts (IANA's registry of WebSocket close codes)
SERVICE_RESTART: Final = 1012
#: the close codes that stand for a close frame without a code, and for no close frame at all (RFC 6455, 7.1.5)
NO_CODE: Final = 1005
LOST: Final = 1006


class Decision:
    """Which server has a request, and why. It fills up while the request is in flight; the app sees what was decided
    so far.

    It may be kept: it holds nothing of the request and of the backend, only names, numbers and words from closed lists.
    """

    # A transaction sets `backend`, `attempts` and `status` by itself: every request does, and an __init__ takes twice
    # the time. It sets the others only where that is needed, which is rare.
    __slots__ = (
        "_closing",
        "_failures",
        "_has_no_response",
        "_missing_keys",
        "_outer",
        "_responder",
        "_retry_denied",
        "attempts",
        "backend",
        "claim_outcome",
        "status",
        "written_mark",
    )

    backend: str  #: the name of the backend
    attempts: tuple[str, ...]  #: the names of the servers that were tried, in order
    status: int  #: the status of the response; 0 until its head is known

    #: `claim`, `reason` and `claimed`. Not set for a client that the fast path recognises: its claim is valid, and
    #: names the server of the first attempt.
    claim_outcome: tuple[Claim, Reason, str | None]
    written_mark: Mark  #: `mark`; not set if nothing was written

    @property
    def claim(self) -> Claim:
        """How the client's claim turned out."""
        return self._outcome[0]

    @property
    def reason(self) -> Reason:
        """Why the claim turned out so."""
        return self._outcome[1]

    @property
    def claimed(self) -> str | None:
        """The name of the server that the client claims, if it is one of the backend's."""
        return self._outcome[2]

    @property
    def _outcome(self) -> tuple[Claim, Reason, str | None]:
        try:
            return self.claim_outcome
        except AttributeError:
            if not self.attempts:  # something has raised before anything was recognised
                return Claim.NONE, Reason.NO_PERSISTENCE, None
            return Claim.VALID, Reason.BOUND, self.attempts[0]

    @property
    def mark(self) -> Mark:
        """What was written to the client."""
        return getattr(self, "written_mark", Mark.NONE)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """How the attempts failed that brought no response, in order."""
        return getattr(self, "_failures", ())

    @failures.setter
    def failures(self, failures: tuple[Failure, ...]) -> None:
        self._failures = failures

    @property
    def outer(self) -> Decision | None:
        """The decision of a middleware around this one, if there is one."""
        return getattr(self, "_outer", None)

    @outer.setter
    def outer(self, outer: Decision) -> None:
        self._outer = outer

    @property
    def has_no_response(self) -> bool:
        """Whether the request ended without a response of a server."""
        return getattr(self, "_has_no_response", False)

    @has_no_response.setter
    def has_no_response(self, has_no_response: bool) -> None:
        self._has_no_response = has_no_response

    @property
    def retry_denied(self) -> bool:
        """Whether a further attempt was denied by `retry_budget`."""
        return getattr(self, "_retry_denied", False)

    @retry_denied.setter
    def retry_denied(self, retry_denied: bool) -> None:
        self._retry_denied = retry_denied

    @property
    def missing_keys(self) -> tuple[str, ...]:
        """Why samples had no key, if there is more to say than that they had none: a body or cookies were too long."""
        return getattr(self, "_missing_keys", ())

    @missing_keys.setter
    def missing_keys(self, missing_keys: tuple[str, ...]) -> None:
        self._missing_keys = missing_keys

    @property
    def closed_by(self) -> ClosedBy | None:
        """Which side has ended the WebSocket. None: it is open, its handshake was refused, or the request is none for a
        WebSocket. Over WSGI always None: there servers hand the socket to the app.
        """
        return getattr(self, "_closing", (None, None))[0]

    @property
    def close_code(self) -> int | None:
        """The code with which the WebSocket was closed (RFC 6455, 7.4): 1005 if the close frame had none, 1006 if the
        connection was lost. None: there is none, or it is not known.
        """
        return getattr(self, "_closing", (None, None))[1]

    def record_close(self, closed_by: ClosedBy, code: int | None) -> None:
        """Record which side has ended the WebSocket, and with which code. Nothing before it was accepted, and only the
        first counts: the other side replies to a close frame with one of its own.
        """
        if self.status == 101 and not hasattr(self, "_closing"):
            self._closing = closed_by, code

    @property
    def server(self) -> str | None:
        """The name of the server that has the request, or has sent the response; None if none could take it."""
        if not self.attempts or self.has_no_response:
            return None
        return getattr(self, "_responder", self.attempts[-1])

    @server.setter
    def server(self, server: str) -> None:
        self._responder = server

    @property
    def why(self) -> str:
        """The decision as a sentence."""
        reason = self.reason.value if self.claimed is None else f"{self.claimed}: {self.reason.value}"
        if self.missing_keys:
            reason = f"{reason} ({'; '.join(self.missing_keys)})"
        if self.server is None:
            reason = f"{reason}; no server could take the request"
            if self.failures and self.failures[-1] is Failure.TOTAL_TIMEOUT:
                reason = f"{reason}; {Failure.TOTAL_TIMEOUT.text}"
        elif self.claim is not Claim.VALID:
            reason = f"{reason}; balance chose {self.server}"
        return f"{reason}; retry_budget denied a further attempt" if self.retry_denied else reason

    def __str__(self) -> str:
        """Return the decision as the debug header has it."""
        attempts = ",".join(self.attempts) or "-"
        server = self.server or "-"
        closed_by, code = self.closed_by, self.close_code
        closing = "" if closed_by is None else f"closed_by={closed_by.name}; close_code={code or '-'}; "
        return (
            f"server={server}; claim={self.claim.name}; attempts={attempts}; mark={self.mark.name}; "
            f'{closing}why="{self.why}"'
        )

    def __repr__(self) -> str:
        return f"<Decision {self.backend}: {self}>"
