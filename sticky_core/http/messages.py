"""Requests and responses as the core sees them: what it may read from them, and what it may change. Each face has
classes of its own for both, and reads only what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sticky_core.http.cookies import CookieKey

if TYPE_CHECKING:
    from sticky_core.stores.store import StoreCommand, StoreQuery


class BodyNeeded(BaseException):
    """The first `limit` bytes of the request's body are needed. The dispatch loop reads them, and repeats the step that
    raised this. No `Exception`: a function of the user that reads the body has not failed.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class SharedTable(Protocol):
    """A table that is kept in a store."""

    def query(self, command: StoreCommand) -> StoreQuery:
        """Return `command` as a query that is sent now."""
        ...

    def on_written(self, key: str, query: StoreQuery, now: float) -> None:
        """Take the store's reply to a write (`Request.queue_write`)."""
        ...


class Request(Protocol):
    """A request as a persistence sees it, and as the server will get it."""

    __slots__ = ()

    #: Stands for the Cookie headers as they came, as the key under which earlier results are remembered. None: there
    #: are no Cookie headers; `cookies.UNREAD`: there are, but more or longer ones than are read.
    cookie_key: CookieKey

    #: The Cookie headers for the server, in the face's own form (`set_forwarded_cookies`); None: as they came. It
    #: is the same for all requests with this `cookie_key`, so it is remembered and set again.
    forwarded_cookies: Any

    @property
    def cookies(self) -> tuple[str, ...]:
        """The values of the Cookie headers for the server, in order; none if they are more or longer than what is read
        (`sticky_core.http.cookies.MAX_HEADERS`, `MAX_LENGTH`).
        """
        ...

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        """Replace the values of the Cookie headers for the server, one for one; an empty value removes the header."""
        ...

    @property
    def method(self) -> str: ...

    def header(self, name: str) -> Sequence[str]:
        """Return the values of the headers called `name` (in lower case), in order."""
        ...

    @property
    def peer(self) -> str:
        """The address of the other end of the connection, as text; empty with a UNIX socket."""
        ...

    @property
    def src(self) -> str:
        """The client's address as text, taken from X-Forwarded-For where the peer is a trusted proxy; empty if it is
        not known.
        """
        ...

    @property
    def path(self) -> str:
        """The path as it was sent: percent-encoded, without the query, what the app is mounted under, and the scheme
        and authority of an absolute form (latin-1, a character per byte). See `request_target`.
        """
        ...

    @property
    def query(self) -> str:
        """What follows the `?`, as it was sent; empty if there is no query."""
        ...

    @property
    def scheme(self) -> str:
        """`http`, `https`, `ws` or `wss`: as X-Forwarded-Proto reports it where the peer is a trusted proxy, else that
        of the connection.
        """
        ...

    def peek(self, limit: int) -> bytes:
        """Return the first `limit` bytes of the body, or all of it if it is shorter. Raises `BodyNeeded` until they are
        read; callers let that pass.
        """
        ...

    def note_missing_key(self, why: str) -> None:
        """Note in the decision why a sample has no key, such as a body that is too long. `why`: words of the
        configuration and nothing of the request, since decisions are kept.
        """
        ...

    def store_query(self, command: StoreCommand) -> StoreQuery | None:
        """Return the query that sent `command` to a store for this request, with its reply; None if none did."""
        ...

    def queue_write(self, table: SharedTable, key: str, command: StoreCommand) -> None:
        """Send `command` to the table's store before the head of the response goes to the client. The table gets the
        reply.
        """
        ...

    @property
    def replayable(self) -> bool:
        """Whether all that was read of the body can be read again."""
        ...

    def function_failed(self, place: str, function: object, error: Exception, *, is_locked: bool = False) -> None:
        """Count that `function`, which the user has passed as `place`, has raised for this request, which goes on
        without it. `is_locked`: the backend's lock is held.
        """
        ...

    @property
    def secure(self) -> bool:
        """Whether the client uses TLS: whether `scheme` is `https` or `wss`."""
        ...


class ResponseHead(Protocol):
    """The head of a response, before it goes to the client."""

    @property
    def sets_cookies(self) -> bool:
        """Whether there are Set-Cookie headers."""
        ...

    @property
    def set_cookies(self) -> Sequence[str]:
        """The values of the Set-Cookie headers, in order."""
        ...

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        """Replace the value of every Set-Cookie header by what `new` returns for it; None removes the header."""
        ...

    def header(self, name: str) -> Sequence[str]:
        """Return the values of the headers called `name` (in lower case), in order."""
        ...

    @property
    def cache_control(self) -> str:
        """The values of all Cache-Control headers, joined by commas (RFC 9110, 5.3)."""
        ...

    def add(self, name: str, value: str) -> None:
        """Append a header."""
        ...
