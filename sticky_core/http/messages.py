"""What the core may ask of a message, and what it may change. Each face has its own; all read lazily."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sticky_core.stores.store import StoreCommand, StoreQuery


class Unread(Exception):
    """So much of a request's body has to be read before the question can be answered. Faces read it, and the question
    is asked again.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class SharedTable(Protocol):
    """A table that is kept in a store."""

    def query(self, ask: StoreCommand) -> StoreQuery:
        """The same as a question of now."""
        ...

    def on_written(self, key: str, question: StoreQuery, now: float) -> None:
        """The store was told what it was owed, and this is what it said."""
        ...


class Request(Protocol):
    """A request as a persistence sees it, and as the server will see it."""

    __slots__ = ()

    #: what stands for the Cookie headers as they came, when looking up what was made of them before; None: there are
    #: none
    cookie_key: Hashable

    #: what `keep` has made of the Cookie headers, in words that only the face knows; None: they go on as they came. It
    #: is the same for all requests with this `cookie_key`, so it may be set again.
    forwarded_cookies: Any

    @property
    def cookies(self) -> tuple[str, ...]:
        """The texts of the Cookie headers, in order, as far as they are kept."""
        ...

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        """Let the server see these texts in place of `cookies`, each for each; an empty one is no header."""
        ...

    @property
    def method(self) -> str: ...

    def header(self, name: str) -> Sequence[str]:
        """The values of the headers called `name` (in lower case), in order."""
        ...

    @property
    def peer(self) -> str:
        """The address that the connection came from, as text; empty behind a UNIX socket."""
        ...

    @property
    def src(self) -> str:
        """The client's address as text, as far as trusted proxies tell; empty if it is not known."""
        ...

    @property
    def path(self) -> str:
        """The path as it was sent: percent-encoded, without the query (latin-1, a character per byte)."""
        ...

    @property
    def query(self) -> str:
        """What follows the `?`, as it was sent; empty if nothing does."""
        ...

    @property
    def scheme(self) -> str:
        """`http`, `https`, `ws` or `wss`, as far as the face knows."""
        ...

    def peek(self, limit: int) -> bytes:
        """The first `limit` bytes of the body, or all of it if there are less. Raises `Unread` until they are read; not
        to be caught.
        """
        ...

    def store_query(self, ask: StoreCommand) -> StoreQuery | None:
        """What a store has answered to `ask` on behalf of this request; None if it was not asked."""
        ...

    def queue_write(self, table: SharedTable, key: str, ask: StoreCommand) -> None:
        """Have a store told this at the head of the answer; the table will hear what it said."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether nothing of its body has been read that could not be read again."""
        ...

    @property
    def secure(self) -> bool:
        """Whether the client came over TLS, as far as the face knows (`https`, `wss`)."""
        ...


class ResponseHead(Protocol):
    """The head of an answer, on its way to the client."""

    @property
    def sets_cookies(self) -> bool:
        """Whether there are Set-Cookie headers at all."""
        ...

    @property
    def set_cookies(self) -> Sequence[str]:
        """The texts of the Set-Cookie headers, in order."""
        ...

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        """Put the text of every Set-Cookie header through `new`; None takes the header out."""
        ...

    def header(self, name: str) -> Sequence[str]:
        """The values of the headers called `name` (in lower case), in order."""
        ...

    @property
    def cache_control(self) -> str:
        """The values of all Cache-Control headers, joined by commas (RFC 9110, 5.3)."""
        ...

    def add(self, name: str, value: str) -> None:
        """Append a header."""
        ...
