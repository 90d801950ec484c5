"""Whether an exception of an app says that its client has disconnected, and how a response to it is broken off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from sticky_asgi.messages import Transaction
from sticky_core.errors import with_causes

#: where Starlette's exceptions for a client that has disconnected are
_STARLETTE_DISCONNECTS = {"starlette.requests": "ClientDisconnect", "starlette.websockets": "WebSocketDisconnect"}


def is_disconnect(error: BaseException, send: Any) -> bool:
    """Return whether `error`, or what it was raised from, is Starlette's exception for a client that has disconnected,
    or an OSError out of the client's `send` (ASGI 2.4). An OSError of the app's own, such as that of a database, is
    neither.
    """
    of_starlette = tuple(_loaded_starlette_disconnects())
    return any(
        isinstance(each, of_starlette) or (isinstance(each, OSError) and _was_raised_in(each, send))
        for each in with_causes(error)
    )


def _loaded_starlette_disconnects() -> Iterator[type[BaseException]]:
    """Yield Starlette's exceptions, if the app has loaded Starlette: it takes 1.6 MB of memory, and other apps can't
    raise what is not loaded.
    """
    for module, name in _STARLETTE_DISCONNECTS.items():
        if module in sys.modules:
            yield getattr(sys.modules[module], name)


#: the packages of web servers that break the connection off when an app returns before its response is complete
_SERVERS = ("uvicorn", "hypercorn", "granian")


def breaks_off_incomplete(send: Any) -> bool:
    """Return whether an incomplete response is broken off when the app returns: `send` is that of a web server of which
    this is known. An exception does the same, and the web server logs its traceback. A middleware in between might
    complete the response, so it must get the exception.
    """
    return type(getattr(_innermost(send), "__self__", None)).__module__.partition(".")[0] in _SERVERS


def is_refused_by_server(send: Any) -> bool:
    """Return whether the web server has refused the WebSocket before it was accepted, and reports that by nothing:
    hypercorn refuses a client that sends data before the accept. Its `send` then does nothing, and its `receive` waits
    for ever, so the app would keep its slot.
    """
    stream: Any = getattr(_innermost(send), "__self__", None)
    return type(stream).__module__.partition(".")[0] == "hypercorn" and getattr(stream, "closed", False) is True


def has_closed_unreported(send: Any) -> bool:
    """Return whether the client has closed its WebSocket by a close frame, although the web server reports that it is
    lost: hypercorn reports every end by the client so.
    """
    stream: Any = getattr(_innermost(send), "__self__", None)
    if type(stream).__module__.partition(".")[0] != "hypercorn":
        return False
    state = getattr(getattr(stream, "connection", None), "state", None)  # wsproto's
    return getattr(state, "name", "") in ("REMOTE_CLOSING", "CLOSED")


def _was_raised_in(error: BaseException, send: Any) -> bool:
    """Return whether `error` has passed through the code of `send`."""
    code = _code_of(send)
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code is code:
            return True
        traceback = traceback.tb_next
    return False


#: the modules of the middlewares that every Starlette app has: they pass messages on as they are, and complete nothing
_STARLETTE = ("starlette.middleware.errors", "starlette._exception_handler")


def _innermost(send: Any) -> Any:
    """Return the `send` that the dispatchers around this one, and the app that it is a middleware of, pass messages
    to.
    """
    while True:
        if isinstance(transaction := getattr(send, "__self__", None), Transaction):
            send = transaction.client_send
        elif getattr(send, "__module__", None) in _STARLETTE and "send" in send.__code__.co_freevars:
            send = send.__closure__[send.__code__.co_freevars.index("send")].cell_contents
        else:
            return send


def _code_of(send: Any) -> object:
    """Return the code that runs when `send` is awaited; an object that is no code if it is not written in Python."""
    send = _innermost(send)
    if isinstance(send, partial):
        send = cast("partial[object]", send).func
    method = send if hasattr(send, "__func__") or hasattr(send, "__code__") else type(send).__call__
    return getattr(getattr(method, "__func__", method), "__code__", method)
