"""How a request is packed into a frame: the parts of its scope that can be served in another process, and when its body
is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final, cast

from sticky_asgi.messages import KEY, TRANSACTION, Message, Scope
from sticky_core.workers.frames import Frame

#: The keys of a scope that are forwarded: those that servers set (ASGI 3, HTTP and WebSocket), no others.
FORWARDED_KEYS: Final = (
    "type",
    "asgi",
    "http_version",
    "scheme",
    "method",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
    "subprotocols",
)
#: the keys that a server, or this middleware, may have put into a scope
SERVER_KEYS: Final = frozenset((*FORWARDED_KEYS, "extensions", "state", KEY, TRANSACTION))
#: the keys of a lifespan's scope that are not the same in the scopes of requests
LIFESPAN_KEYS: Final = frozenset(("type", "asgi", "state"))
#: The extensions that work from another process: those that consist of messages, none that passes file descriptors.
FORWARDED_EXTENSIONS: Final = frozenset(
    (
        "http.response.early_hint",
        "http.response.pathsend",
        "http.response.push",
        "http.response.trailers",
        "tls",
        "websocket.http.response",
    )
)

DISCONNECTS: Final = ("http.disconnect", "websocket.disconnect")
#: code of `websocket.close`: the service restarts (RFC 6455 registry)
SERVICE_RESTART: Final = 1012

#: where the extensions, and then the values of FORWARDED_KEYS, begin in a request frame
_EXTENSIONS_AT: Final = 5


class BodyMode(Enum):
    """When the client's messages are read and sent to the peer."""

    AT_ONCE = 0
    EMPTY = 1  #: never: there is no body
    ON_DEMAND = 2  #: when the app reads it: to read the body sends `100 Continue` to the client (RFC 9110, 10.1.1)


def body_mode(scope: Scope) -> BodyMode:
    """Return when the body of a request is to be sent."""
    if scope["type"] == "websocket":
        return BodyMode.AT_ONCE
    mode = BodyMode.EMPTY if scope.get("http_version", "1.1")[0] == "1" else BodyMode.AT_ONCE
    for name, value in scope["headers"]:
        if name == b"expect":
            return BodyMode.ON_DEMAND
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            mode = BodyMode.AT_ONCE
    return mode


def pack_scope(scope: Scope) -> Iterator[object]:
    """Yield the items of a request frame that make its scope: the extensions, then the value of each forwarded key, or
    False where the scope has none (no key has that value).
    """
    extensions = scope.get("extensions")
    if extensions:
        extensions = {name: value for name, value in extensions.items() if name in FORWARDED_EXTENSIONS}
    yield extensions
    items = cast("dict[str, object]", scope)
    for name in FORWARDED_KEYS:
        yield items.get(name, False)


def lost_names(scope: Scope, constants: Mapping[str, object], state: Mapping[str, object] | None) -> set[str]:
    """Return the names that middleware has put into a scope, or its state, and that `pack_scope` leaves out.
    `constants`, `state`: what each scope of this worker has from its lifespan.
    """
    items = cast("dict[str, object]", scope)
    names = {name for name in items.keys() - SERVER_KEYS if items[name] is not constants.get(name, items)}
    found = cast("dict[str, object]", items.get("state") or {})
    for name, value in found.items():
        if state is None or state.get(name, found) is not value:
            names.add(f"state[{name!r}]")
    return names


def unpack_scope(frame: Frame) -> Scope:
    """Return the scope in a request frame, as servers make it. ValueError, TypeError or KeyError if it has none."""
    scope: Scope = {
        name: value
        for name, value in zip(FORWARDED_KEYS, frame[_EXTENSIONS_AT + 1 :], strict=True)
        if value is not False
    }
    extensions = frame[_EXTENSIONS_AT]
    if extensions is not None:
        scope["extensions"] = dict(extensions)
    if scope["type"] not in ("http", "websocket"):
        raise ValueError(f"a scope of type {scope['type']!r}")
    scope["headers"] = list(scope.get("headers", ()))
    if "subprotocols" in scope:
        scope["subprotocols"] = list(scope["subprotocols"])
    return scope


def message_size(message: Message) -> int:
    """Return the length of the payload of a message."""
    return len(message.get("body") or message.get("bytes") or message.get("text") or ())
