"""Checks of what a backend is given, before anything is built of it: arguments of the wrong type are reported in words
rather than as a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from sticky_core.health.check import Check
from sticky_core.server.server import Server


def type_problems(servers: object, persist: object, check: object) -> Iterator[str]:
    """Yield a problem for each argument of `Backend` that has the wrong type."""
    if isinstance(servers, str):
        yield f"servers={servers!r} is no list of servers: write servers=[Server(name, {servers!r})]"
    elif isinstance(servers, Server) or not isinstance(servers, Sequence):
        yield f"servers={servers!r} is no list of servers: write servers=[Server(name, app), ...]"
    else:
        for server in cast("Sequence[object]", servers):
            if isinstance(server, list | tuple):
                yield f"{server!r} is a list inside the list of servers: write servers=[*servers, ...]"
            elif not isinstance(server, Server):
                yield f"{server!r} is no Server: write Server(name, {server!r})"
    if check is not None and not isinstance(check, Check):
        yield f"check={check!r} is no check: write check=Check('/health')"
    if isinstance(persist, str):
        yield (
            f"persist={persist!r} does not say how to persist: write persist=Cookie({persist!r}) for a cookie of ours, "
            f"Learn.cookie({persist!r}) for the application's, or Stick.on({persist!r}) for a sample"
        )
    else:
        for each in cast("Sequence[object]", persist) if isinstance(persist, Sequence) else (persist,):
            if isinstance(each, type):
                yield f"persist={each.__name__} does not say by what: call it, as Cookie('SERVERID') or Stick.on(src)"
            elif not hasattr(each, "build"):
                yield f"persist={each!r} is no way to persist: pass a Cookie, Stick, Learn, Token, or several"


def attach_problems(servers: Iterable[Server]) -> Iterator[str]:
    """Yield a problem for each server that can't be attached to a backend."""
    for server in servers:
        if not isinstance(cast(object, server), Server):
            yield f"{server!r} is no Server: write Server(name, {server!r})"
        elif server.is_attached or server.removed:
            yield (
                f"server {server.name}: belongs to another backend already: make another Server for this one"
                if server.is_attached
                else f"server {server.name}: was removed, and can't be added again: add Server.of(its config)"
            )
