"""The order in which an app may send its messages (ASGI 3), where the server is in another process: the `send` of the
app raises at once, as that of a server does. Only what all servers refuse is refused; the rest is left to them.
"""

from __future__ import annotations

from sticky_asgi.messages import Message


class ResponseOrder:
    """The messages of an HTTP response."""

    __slots__ = ("_has_begun", "is_complete")

    def __init__(self) -> None:
        self._has_begun = False
        self.is_complete = False  #: whether the last piece of the body has been sent

    def check(self, message: Message) -> None:
        """Take a message that is about to be sent. RuntimeError if it can't follow those before."""
        kind = message["type"]
        if kind == "http.response.body":
            if self.is_complete or not self._has_begun:
                raise _unexpected(kind, "the response is complete" if self._has_begun else "the response has no head")
            self.is_complete = not message.get("more_body", False)
        elif kind == "http.response.start":
            if self._has_begun:
                raise _unexpected(kind, "the response has begun")
            self._has_begun = True


class WebSocketOrder:
    """The messages of a WebSocket. Some servers ignore those that follow a close, so these are left to the server."""

    __slots__ = ("_has_begun", "_is_accepted")

    is_complete = False  #: an app receives messages until the client disconnects

    def __init__(self) -> None:
        self._has_begun = self._is_accepted = False

    def check(self, message: Message) -> None:
        """Take a message that is about to be sent. RuntimeError if it can't follow those before."""
        kind = message["type"]
        if kind == "websocket.send":
            if not self._has_begun:
                raise _unexpected(kind, "the WebSocket is not accepted")
        elif kind == "websocket.accept" and self._is_accepted:
            raise _unexpected(kind, "the WebSocket is accepted already")
        elif kind in _BEGINS:
            self._has_begun = True
            self._is_accepted = kind == "websocket.accept"


_BEGINS = frozenset(("websocket.accept", "websocket.close", "websocket.http.response.start"))


def _unexpected(kind: str, why: str) -> RuntimeError:
    return RuntimeError(f"unexpected ASGI message {kind!r}: {why}")
