"""How a request is packed into a frame: the parts of its scope that can be served in another process, and when its body
is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import itemgetter
from typing import Final, cast

from sticky_asgi.messages import KEY, TRANSACTION, Message, Scope
from sticky_core.workers.frames import Frame
from sticky_core.workers.lost_names import is_plain

_COMMON_KEYS: Final = (
    *("type", "asgi", "http_version", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client"),
    "server",
)
#: The keys of a scope that are forwarded, by its type: those that servers set (ASGI 3), no others. The type is first.
FORWARDED_KEYS: Final = {"http": (*_COMMON_KEYS, "method"), "websocket": (*_COMMON_KEYS, "method", "subprotocols")}
_forwarded_values: Final = {kind: itemgetter(*keys) for kind, keys in FORWARDED_KEYS.items()}
#: the keys that a server, or this middleware, may have put into a scope
SERVER_KEYS: Final = frozenset((*FORWARDED_KEYS["websocket"], "extensions", "state", KEY, TRANSACTION))
#: the headers that decide when a body is sent
_BODY_HEADERS: Final = frozenset((b"content-length", b"expect", b"transfer-encoding"))
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

#: the keys of the messages that apps send (ASGI 3, with the extensions above)
MESSAGE_KEYS: Final = frozenset(
    (
        *("type", "status", "headers", "trailers", "body", "more_body", "more_trailers", "path", "links"),
        *("subprotocol", "bytes", "text", "code", "reason"),
    )
)

DISCONNECTS: Final = ("http.disconnect", "websocket.disconnect")

#: where the items of `pack_scope` begin in a request frame
_SCOPE_AT: Final = 5


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
        if name in _BODY_HEADERS:
            if name == b"expect":
                return BodyMode.ON_DEMAND
            if value != b"0" or name == b"transfer-encoding":
                mode = BodyMode.AT_ONCE
    return mode


@dataclass(slots=True)
class Additions:
    """What middleware around `StickyWorkers` has put into a scope and into its state. `lost`: the names of what can't
    be forwarded.
    """

    scope: dict[str, object] = field(default_factory=dict)
    state: dict[str, object] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def add(self, name: object, value: object, where: dict[str, object], full_name: str) -> None:
        """Add a value to `where`, which is `scope` or `state`, if it can be forwarded, else its full name to `lost`."""
        if isinstance(name, str) and is_plain(value):
            where[name] = value
        else:
            self.lost.add(full_name)


def find_additions(
    scope: Scope, constants: Mapping[str, object], state: Mapping[str, object] | None
) -> Additions | None:
    """Return what middleware has put into a scope; None if it has put nothing there. `constants`, `state`: what each
    scope of this worker has from its lifespan.
    """
    items = cast("dict[object, object]", scope)
    in_state: object = items.get("state")
    if not in_state and items.keys() <= SERVER_KEYS:
        return None
    found = Additions()
    for name in items.keys() - SERVER_KEYS:
        value = items[name]
        if value is not constants.get(cast(str, name), items):
            found.add(name, value, found.scope, f"{name}")
    if not isinstance(in_state, dict | None):
        found.lost.add("state")
        return found
    for name, value in cast("dict[object, object]", in_state or {}).items():
        if state is None or value is not state.get(cast(str, name), items):
            found.add(name, value, found.state, f"state[{name!r}]")
    return found


def pack_scope(scope: Scope, additions: Additions | None) -> list[object]:
    """Return the items of a request frame that make its scope: the extensions, what middleware has put into the scope
    and into its state, then the value of each forwarded key, or False where the scope has none (no key has that value).
    """
    extensions = scope.get("extensions")
    if extensions:
        extensions = {name: value for name, value in extensions.items() if name in FORWARDED_EXTENSIONS}
    in_scope = in_state = None
    if additions is not None:
        in_scope, in_state = additions.scope or None, additions.state or None
    kind = scope["type"]
    values: Iterable[object]
    try:
        values = _forwarded_values[kind](scope)
    except KeyError:  # some keys are optional
        values = [scope.get(name, False) for name in FORWARDED_KEYS[kind]]
    return [extensions, in_scope, in_state, *values]


def unpack_scope(frame: Frame, constants: Mapping[str, object], state: Mapping[str, object] | None) -> Scope:
    """Return the scope in a request frame, as servers make it. `constants`, `state`: what each scope of this worker has
    from its lifespan. ValueError, TypeError or KeyError if the frame has no scope.
    """
    extensions, in_scope, in_state, *values = frame[_SCOPE_AT:]
    scope: Scope = dict(zip(FORWARDED_KEYS[values[0]], values, strict=True))
    if False in values:
        scope = {name: value for name, value in scope.items() if value is not False}
    if extensions is not None:
        scope["extensions"] = dict(extensions)
    scope["headers"] = list(scope.get("headers", ()))
    if "subprotocols" in scope:
        scope["subprotocols"] = list(scope["subprotocols"])
    scope.update(constants)
    if in_scope is not None:
        scope = {**dict(in_scope), **scope}
    if state is not None or in_state is not None:
        scope["state"] = {**(state or {}), **dict(in_state or {})}
    return scope


def payload_size(message: Message) -> int:
    """Return the length of the payload of a WebSocket message, in bytes or characters; 0 for other messages."""
    return len(message.get("bytes") or message.get("text") or ())
